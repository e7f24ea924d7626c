"""Measures on matplotlib Axes: one with its certificate, or all where the function is the same."""

import math

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sharpness.results import Invariance, Measured
from sharpness.styles import BLACK, BLUE, GRAY, ORANGE, label_decades

UNKNOWN = "interval unknown"
FAR = 2  # powers of ten, where the colors of factors end
APART = 20  # times, from which value and threshold need a logarithmic axis


def measured(result: Measured, ax: Axes) -> None:
    """Draw the samples of a measure, and beside them its value with its bounds.

    A dashed line is the threshold of the run's own optimizer. A value that did not converge, or
    whose bounds are unknown, is hollow; one that is undefined is not there, as its label says.
    """
    name, samples = next(iter(result.samples.items()), ("", torch.zeros(0)))
    if len(samples) == 1:  # it is the value
        samples = samples[:0]
    count = len(samples)
    if count:
        number = torch.arange(1, count + 1)
        told = "sample" if name == "value" else f"sample: {name.replace('_', ' ')}"
        ax.plot(number, samples.double(), "o", color=BLUE, markersize=4, label=told)
    if not math.isnan(result.threshold):
        label = f"threshold {result.threshold:.4g}"
        ax.axhline(result.threshold, color=ORANGE, linestyle="--", linewidth=1.1, label=label)
    _value(result, ax, count + 1)
    if count:
        ax.axhline(result.value, color=GRAY, linewidth=0.8, linestyle=":", zorder=0)
    ticks = [int(x) for x in MaxNLocator(6, integer=True).tick_values(1, count) if 1 <= x <= count]
    ticks = [x for x in ticks if count - x >= 0.06 * count] if count > 1 else ticks
    ax.set_xticks([*ticks, count + 1], [*map(str, ticks), "value"])
    ax.set_xlim(0.5 if count else 0, count + 1.5 + 0.02 * count if count else 2)
    ax.set_xlabel("sample" if count else "")
    ax.set_ylabel(result.measure)
    _scale(result, ax, samples)


def _value(result: Measured, ax: Axes, place: int) -> None:
    low, high = result.interval.tolist()
    known = not (math.isnan(low) and math.isnan(high))
    words = f"{result.value:.4g}" if not math.isnan(result.value) else "undefined"
    if not known and not math.isnan(result.value):
        words += f", {UNKNOWN}"
    elif math.isnan(high) and known:
        words = f"at least {words}"
    elif low < high:
        words += f" [{low:.4g}, {high:.4g}]"
    if not result.converged:
        words += ", NOT converged"
    below, above = (0.0 if math.isnan(x) else abs(result.value - x) for x in (low, high))
    ax.errorbar(
        [place],
        [result.value],
        yerr=[[below], [above]] if below or above else None,
        fmt="D",
        color=BLACK,
        markerfacecolor=BLACK if known and result.converged else "white",
        capsize=4,
        label=words,
    )


def _scale(result: Measured, ax: Axes, samples: torch.Tensor) -> None:
    """Take a logarithmic axis where value and threshold are far apart, and both above 0."""
    pair = (result.value, result.threshold)
    if not all(x > 0 for x in pair) or not (samples > 0).all():
        return
    if max(pair) > APART * min(pair):
        ax.set_yscale("log")
        label_decades(ax)


def invariance(result: Invariance, ax: Axes) -> None:
    """Draw by which factor each measure changed under each change of the weights.

    White is a measure that is the same to its accuracy, gray one that is undefined. Colors are
    logarithms of factors, and end at a hundred.
    """
    change = result.after / result.before[:, None]
    logs = torch.where(change > 0, change.log10(), torch.nan)
    logs = torch.where(result.moved, logs, 0.0)
    logs[result.before.isnan()] = torch.nan
    colors = colormaps["PuOr"].with_extremes(bad="#d9d9d9")
    drawn = ax.imshow(logs.numpy(), vmin=-FAR, vmax=FAR, cmap=colors, aspect="auto")
    for i, row in enumerate(logs.tolist()):
        for j, x in enumerate(row):
            text, color = _cell(result, i, j, x)
            ax.text(j, i, text, ha="center", va="center", fontsize="x-small", color=color)
    ax.set_xticks(range(len(result.symmetries)), [_broken(x) for x in result.symmetries])
    ax.set_yticks(range(len(result.measures)), result.measures)
    ax.tick_params(labelsize="small", length=0)
    ax.xaxis.tick_top()
    ax.xaxis.set_label_position("top")
    ax.set_xlabel("change of the weights that leaves the function")
    ax.set_ylabel("measure")
    figure = ax.get_figure()
    if isinstance(figure, Figure):
        bar = figure.colorbar(drawn, ax=ax, label="factor", shrink=0.6, extend="both")
        bar.set_ticks(
            list(range(-FAR, FAR + 1)), labels=[f"{10.0**x:g}" for x in range(-FAR, FAR + 1)]
        )


def invariance_size(result: Invariance) -> tuple[float, float]:
    """Return width and height of a figure in inches."""
    return 3.4 + 1.0 * len(result.symmetries), 1.5 + 0.24 * len(result.measures)


def _cell(result: Invariance, i: int, j: int, log: float) -> tuple[str, str]:
    """Return what stands in a cell, and its color."""
    before, after = float(result.before[i]), float(result.after[i, j])
    if math.isnan(before):
        return "-", "black"
    if not result.moved[i, j]:
        return "same" if result.converged[i, j] else "same,\nnot converged", GRAY
    if math.isnan(after):
        return "undefined", "black"
    color = "white" if abs(log) > 0.7 * FAR else "black"
    text = f"x{after / before:.3g}" if before and after / before > 0 else f"{after:.2g}"
    return text if result.converged[i, j] else f"{text}\nnot converged", color


def _broken(title: str) -> str:
    """Return a title in lines of one or two words."""
    return "\n".join(title.replace("before ", "before\u00a0").replace("of ", "of\u00a0").split(" "))
