"""Eigenvalues of mini-batches on matplotlib Axes: how they are spread around those of all the data.

Letters: M mini-batches, k pairs.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from sharpness.results import BatchEigenvalues
from sharpness.styles import BLACK, BLUE, GRAY, ORANGE, label_decades

DECADE = 10.0  # times the smallest value, from which on an axis is logarithmic
MOST_BINS = 40
FINE = 200  # points of the outline of a violin
FEWEST = 3  # values of which a violin tells anything
GOLDEN = (math.sqrt(5) - 1) / 2  # whose multiples spread dots evenly, without chance
# Of a row of height 1 around its line: the violin above and the dots below.
ABOVE, DOTS, BELOW = 0.4, 0.12, 0.36


def batches(result: BatchEigenvalues, made: Figure) -> None:
    """Draw the histogram of the largest eigenvalue, and below it a row for each, on one axis."""
    k = result.values.shape[1]
    above, below = made.subplots(2, 1, sharex=True, height_ratios=[1.2, 0.3 + 0.75 * k])
    batch_violins(result, below)
    _histogram(result, above, 0, log=below.get_xscale() == "log")
    found: dict[str, Any] = {}
    for ax in (above, below):
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    found.pop(_whole_label(result, 0), None)  # told by the histogram, with its value
    above.tick_params(axis="x", labelbottom=False)
    above.set_ylabel(f"count of {_symbol(0)}")
    above.legend(
        found.values(),
        found.keys(),
        fontsize="small",
        frameon=False,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=2,
    )


def batch_histogram(result: BatchEigenvalues, ax: Axes, *, pair: int = 0) -> None:
    """Draw how many mini-batches have an eigenvalue where, and the value of all the data.

    The mean over the mini-batches has its 95 % interval as a band. What did not converge is left
    out and told. The axis is logarithmic where the values span a decade.

    Args:
        pair: Which eigenvalue, 0 for the largest.
    """
    log = _log([result], [pair])
    _scale(ax, [result], [pair], log=log)
    _histogram(result, ax, pair, log=log)
    _label_x(ax, [result], [pair], log=log)


def _histogram(result: BatchEigenvalues, ax: Axes, pair: int, *, log: bool) -> None:
    known = result.counted[:, pair]
    known = known[~known.isnan()].double()
    count, missed = len(known), len(result.values) - len(known)
    label = f"{count} mini-batches of {result.batch_size}"
    label += f", {missed} left out: not converged" if missed else ""
    if count:
        u = (known.log10() if log else known).numpy()
        edges = np.histogram_bin_edges(u, "auto")
        counts, edges = np.histogram(u, edges if len(edges) <= MOST_BINS + 1 else MOST_BINS)
        ends = 10**edges if log else edges
        ax.bar(
            ends[:-1],
            counts,
            np.diff(ends),
            align="edge",
            color=to_rgba(BLUE, 0.45),
            edgecolor=BLUE,
            linewidth=0.6,
            label=label,
        )
    else:
        ax.plot([], [], " ", label=label)
    mean, low, high = result.mean(pair)
    if not math.isnan(mean):
        bounds = "interval unknown" if math.isnan(low) else f"[{low:.3g}, {high:.3g}]"
        told = f"mean {mean:.3g} {bounds}"
        ax.axvline(mean, color=BLACK, linestyle="--", linewidth=1.2, label=told)
        if not math.isnan(low):
            ax.axvspan(
                max(low, ax.get_xlim()[0]), high, color=GRAY, alpha=0.3, linewidth=0, zorder=0
            )
    _whole_line(result, ax, pair)
    ax.set_ylabel("count")
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))


def batch_violins(
    results: BatchEigenvalues | Mapping[str, BatchEigenvalues], ax: Axes, *, pair: int = 0
) -> None:
    """Draw a row for each eigenvalue of a result, or for one eigenvalue of several results.

    Above the line of a row is the smoothed density of what converged, below it a dot for each
    mini-batch; on it the mean with its 95 % interval and, as a bar through the row, the value of
    all the data. What did not converge is a hollow triangle, at least so large. The axis is
    logarithmic where the values span a decade.

    Args:
        results: One, or several by the names of their rows.
        pair: Which eigenvalue of several results, 0 for the largest.
    """
    rows: list[tuple[str, BatchEigenvalues, int]]
    if isinstance(results, BatchEigenvalues):
        rows = [(_symbol(i), results, i) for i in range(results.values.shape[1])]
    else:
        rows = [(name, result, pair) for name, result in results.items()]
    members, pairs = [result for _, result, _ in rows], [i for *_, i in rows]
    log = _log(members, pairs)
    _scale(ax, members, pairs, log=log)
    for place, (_, result, i) in enumerate(rows):
        _row(ax, result, i, -place, log=log)
    ax.set_yticks([-place for place in range(len(rows))], [name for name, *_ in rows])
    ax.set_ylim(0.5 - len(rows), 0.5)
    ax.set_ylabel("values, density", fontsize="small")
    ax.tick_params(axis="y", length=0)
    _label_x(ax, members, pairs, log=log)


def _row(ax: Axes, result: BatchEigenvalues, i: int, y: float, *, log: bool) -> None:
    values, converged = result.values[:, i].double(), result.converged[:, i]
    known = values[converged]
    ax.axhline(y, color=GRAY, linewidth=0.6, zorder=0)
    if len(known) >= FEWEST and known.max() > known.min():
        x, height = _violin(known, log=log)
        ax.fill_between(
            x.numpy(), y, (y + ABOVE * height).numpy(), color=BLUE, alpha=0.35, linewidth=0
        )
    spread = torch.arange(1, len(values) + 1, dtype=torch.float64) * GOLDEN % 1
    heights = y - DOTS - (BELOW - DOTS) * spread
    ax.plot(
        known,
        heights[converged],
        "o",
        color=BLUE,
        markersize=3.2,
        alpha=0.7,
        markeredgewidth=0,
        label=_once(ax, "a mini-batch"),
    )
    if not converged.all():
        ax.plot(
            values[~converged],
            heights[~converged],
            ">",
            color=BLUE,
            markerfacecolor="white",
            markersize=4.5,
            label=_once(ax, "not converged: at least"),
        )
    mean, low, high = result.mean(i)
    if not math.isnan(mean):
        known_bounds = not math.isnan(low)
        ax.errorbar(
            [mean],
            [y],
            xerr=[[mean - max(low, ax.get_xlim()[0])], [high - mean]] if known_bounds else None,
            fmt="D",
            color=BLACK,
            markerfacecolor=BLACK if known_bounds else "white",
            markersize=4.5,
            capsize=3,
            linewidth=1.4,
            zorder=4,
            label=_once(ax, "mean, 95 % interval" if known_bounds else "mean, interval unknown"),
        )
    sure = bool(result.whole_converged[i])
    ax.plot(
        [float(result.whole_values[i])] * 2,
        [y - BELOW - 0.04, y + ABOVE + 0.04],
        color=ORANGE,
        linestyle="-" if sure else ":",
        linewidth=2,
        zorder=3,
        label=_once(ax, _whole_label(result, i)),
    )


def _whole_label(result: BatchEigenvalues, i: int) -> str:
    return "all the data" + ("" if result.whole_converged[i] else ", not converged: at least")


def _once(ax: Axes, label: str) -> str:
    """Return a label for the legend, none where it is there already."""
    return f"_{label}" if label in ax.get_legend_handles_labels()[1] else label


def _violin(known: Tensor, *, log: bool) -> tuple[Tensor, Tensor]:
    """Return the outline of the smoothed density between the ends, its highest point at 1.

    By normal curves of Silverman's (1986, equation 3.31) width.
    """
    u = known.log10() if log else known
    quarters = u.quantile(torch.tensor([0.25, 0.75], dtype=torch.float64))
    scale = float(u.std())
    if quarters[1] > quarters[0]:
        scale = min(scale, float(quarters.diff()) / 1.34)
    width = 0.9 * scale * len(u) ** -0.2
    grid = torch.linspace(float(u.min()), float(u.max()), FINE, dtype=torch.float64)
    height = torch.exp(-((grid[:, None] - u) / width).square() / 2).sum(dim=1)
    return 10**grid if log else grid, height / height.max()


def _whole_line(result: BatchEigenvalues, ax: Axes, pair: int) -> None:
    whole, sure = float(result.whole_values[pair]), bool(result.whole_converged[pair])
    label = f"all {result.examples} examples: {'' if sure else 'at least '}{whole:.3g}"
    label += "" if sure else ", not converged"
    dash = "-" if sure else ":"
    ax.axvline(whole, color=ORANGE, linestyle=dash, linewidth=2, label=label)


def _drawn(results: list[BatchEigenvalues], pairs: list[int]) -> Tensor:
    """Return all values that are drawn, with those of all the data."""
    parts = [
        torch.cat([x.values[:, i], x.whole_values[i : i + 1]]).double()
        for x, i in zip(results, pairs, strict=True)
    ]
    return torch.cat(parts)


def _log(results: list[BatchEigenvalues], pairs: list[int]) -> bool:
    at = _drawn(results, pairs)
    return bool(at.min() > 0 and at.max() > DECADE * at.min())


def _scale(ax: Axes, results: list[BatchEigenvalues], pairs: list[int], *, log: bool) -> None:
    """Let an axis hold all that is drawn, with some room."""
    at = _drawn(results, pairs)
    ends = [end for x, i in zip(results, pairs, strict=True) for end in x.mean(i)[1:]]
    known = [x for x in ends if x > 0 or (not log and not math.isnan(x))]
    low, high = min([float(at.min()), *known]), max([float(at.max()), *known])
    if log:
        room = (high / low) ** 0.04
        ax.set_xscale("log")
        ax.set_xlim(low / room, high * room)
        return
    room = 0.04 * (high - low) or 0.1 * abs(high) or 1.0
    ax.set_xlim(low - room, high + room)


def _label_x(ax: Axes, results: list[BatchEigenvalues], pairs: list[int], *, log: bool) -> None:
    if log:
        label_decades(ax, "x")
    else:
        ax.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    name = "eigenvalue" if len(set(pairs)) > 1 else f"eigenvalue {_symbol(pairs[0])}"
    decays = {x.spec.get("weight_decay", 0.0) for x in results}
    more = f", with weight decay {decays.pop():g}" if len(decays) == 1 and any(decays) else ""
    ax.set_xlabel(name + more)


def _symbol(i: int) -> str:
    return rf"$\lambda_{{{i + 1}}}$"
