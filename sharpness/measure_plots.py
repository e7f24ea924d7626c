"""One number of a measure on matplotlib Axes: its samples, its bounds and its threshold."""

import math

import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from sharpness.results import Measured
from sharpness.styles import BLACK, BLUE, GRAY, ORANGE, label_decades

UNKNOWN = "interval unknown"
APART = 20  # times, from which value and threshold need a logarithmic axis


def measured(result: Measured, ax: Axes) -> None:
    """Draw the samples of a measure, and beside them its value with its bounds.

    A dashed line is the threshold of the run's own optimizer. A value that did not converge, or
    whose bounds are unknown, is hollow; one that is undefined is not there, as its label says.
    """
    name, samples = next(iter(result.samples.items()), ("", torch.zeros(0)))
    count = len(samples)
    if count:
        number = torch.arange(1, count + 1)
        told = name.replace("_", " ")
        ax.plot(number, samples.double(), "o", color=BLUE, markersize=4, label=f"sample: {told}")
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
