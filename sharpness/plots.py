"""Results on matplotlib Axes; nothing here computes, and nothing touches pyplot's global state.

Colors are those of Okabe and Ito (2008), which the color-blind tell apart, in an order of
falling lightness contrast; what is told by color is told by a marker or a dash too, for print in
gray.
"""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatterMathtext, LogLocator, MaxNLocator, NullFormatter
from torch import Tensor

from sharpness.errors import InputError
from sharpness.results import Eigenpairs, Line

BLUE, ORANGE, GREEN, PURPLE, BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000"
COLORS = (BLUE, ORANGE, GREEN, PURPLE, BLACK)
MARKERS = ("o", "s", "^", "D", "v")
DASHES = ("-", "--", "-.", ":", "-")
GRAY = "#8c8c8c"


def figure(
    width: float,
    height: float,
    *,
    rows: int = 1,
    columns: int = 1,
    sharey: bool | Literal["row"] = False,
) -> tuple[Figure, Any]:
    """Return an empty figure of this size in inches and its Axes, an array (rows, columns)."""
    made = Figure(figsize=(width, height), layout="constrained")
    return made, made.subplots(rows, columns, squeeze=False, sharey=sharey)


def png(made: Figure, *, dpi: int = 200) -> bytes:
    """Return the figure as a PNG file."""
    buffer = BytesIO()
    made.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def line(result: Line, ax: Axes, *, legend: bool = True) -> Axes | None:
    """Draw the loss along a line, logarithmic, and the accuracy on a second axis (Keskar, Fig. 3).

    Solid is train, dashed is test. Without an accuracy there is no second axis.

    Returns:
        The second Axes, or None.
    """
    losses = {k: v for k, v in result.values.items() if k == "loss" or k.endswith("_loss")}
    rates = {k: v for k, v in result.values.items() if k == "accuracy" or k.endswith("_accuracy")}
    handles: list[Line2D] = []
    for name, values in losses.items():
        handles += _along(ax, result.alphas, values, name, BLUE, "o")
    ax.set_yscale("log")
    label_decades(ax)
    ax.set_xlabel(r"position $\alpha$  (0: start, 1: end)")
    ax.set_ylabel("loss", color=BLUE)
    ax.tick_params(axis="y", colors=BLUE)
    for end in (0, 1):
        ax.axvline(end, color=GRAY, linewidth=0.8, linestyle=":", zorder=0)
    twin = None
    if rates:
        twin = ax.twinx()
        for name, values in rates.items():
            handles += _along(twin, result.alphas, 100 * values, name, ORANGE, "s")
        twin.set_ylim(-3, 103)
        twin.set_ylabel("accuracy (%)", color=ORANGE)
        twin.tick_params(axis="y", colors=ORANGE)
    if legend:
        # Above the axes: inside, the curves of two scales leave no free corner.
        ax.legend(
            handles=handles,
            fontsize="small",
            frameon=False,
            loc="lower center",
            bbox_to_anchor=(0.5, 1.0),
            ncols=2,
        )
    return twin


def eigenvalues(result: Eigenpairs, ax: Axes, *, label: str | None = None, style: int = 0) -> None:
    """Draw the eigenvalues by rank with their residuals as bars; unconverged ones are hollow."""
    values, converged = result.values.double(), result.converged
    rank = torch.arange(1, len(values) + 1)
    color, marker = COLORS[style % len(COLORS)], MARKERS[style % len(MARKERS)]
    ax.errorbar(rank, values, yerr=result.residuals.double(), fmt="none", ecolor=color, capsize=2)
    ax.plot(rank, values, color=color, linewidth=0.8, alpha=0.6, zorder=1)
    for filled in (True, False):
        chosen = converged == filled
        if chosen.any():
            name = label if filled else f"{label or 'pair'}, not converged"
            face = color if filled else "white"
            ax.plot(
                rank[chosen],
                values[chosen],
                marker,
                color=color,
                markerfacecolor=face,
                markersize=5,
                label=name,
            )
    ax.set_xlabel("rank $i$")
    ax.set_ylabel(r"eigenvalue $\lambda_i$")
    if bool((values > 0).all()):
        ax.set_yscale("log")
        label_decades(ax)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def paired(
    columns: Mapping[str, Tensor],
    ax: Axes,
    *,
    intervals: Sequence[tuple[float, float, float]] | None = None,
    log: bool = True,
) -> None:
    """Draw one column of points for each group, lines between partners, and each group's mean.

    Args:
        columns: By group, one number for each seed, shape (s,); NaN is left out.
        intervals: For each group, its mean, low and high of the interval drawn beside the points.
        log: Of the axis.
    """
    if not columns:
        raise InputError("paired needs at least one column, got none: name a group")
    table = torch.stack([column.double() for column in columns.values()])  # (g, s)
    x = torch.arange(len(table), dtype=torch.float64)
    for numbers in table.T:
        ax.plot(x, numbers, color=GRAY, linewidth=0.6, alpha=0.7, zorder=1)
    for i, numbers in enumerate(table):
        color, marker = COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]
        at = torch.full_like(numbers, float(i))
        ax.plot(at, numbers, marker, color=color, markersize=4, alpha=0.75, zorder=2)
        if intervals:
            mean, low, high = intervals[i]
            bars = None if np.isnan(low) else [[mean - low], [high - mean]]
            ax.errorbar(
                [i + 0.22],
                [mean],
                yerr=bars,
                fmt="_",
                color=BLACK,
                markersize=9,
                capsize=3,
                linewidth=1.4,
                zorder=3,
            )
    ax.set_xticks(range(len(table)), list(columns))
    ax.set_xlim(-0.4, len(table) - 0.4)
    if log and not (table <= 0).any():
        ax.set_yscale("log")
        label_decades(ax)


def band(
    x: Tensor,
    intervals: Sequence[tuple[float, float, float]],
    ax: Axes,
    *,
    label: str,
    style: int = 0,
) -> None:
    """Draw means over x with their intervals as a band.

    Args:
        x: Shape (p,).
        intervals: Mean, low and high at each x; the bounds of an unknown interval are NaN.
        style: Number of the color, marker and dash, which the first five have each their own.
    """
    color, marker = COLORS[style % len(COLORS)], MARKERS[style % len(MARKERS)]
    mean, low, high = (np.array(column) for column in zip(*intervals, strict=True))
    ax.plot(
        x,
        mean,
        color=color,
        linestyle=DASHES[style % len(DASHES)],
        marker=marker,
        markersize=4,
        linewidth=1.3,
        label=label,
    )
    ax.fill_between(x.numpy(), low, high, color=color, alpha=0.18, linewidth=0)


def frame(axes: Sequence[Axes], *, log: bool) -> None:
    """Give Axes the same limits, those of their bands but not far beyond the means.

    With a few runs an interval spans decades; it is cut off then, so that the means can be read.

    Args:
        log: Scale the axis by logarithms.
    """
    means = np.concatenate([np.asarray(x.get_ydata(), float) for ax in axes for x in ax.lines])
    bands = [path for ax in axes for c in ax.collections for path in c.get_paths()]
    edges = [np.asarray(path.vertices)[:, 1] for path in bands]
    known = np.concatenate([means, *edges])
    known, means = known[np.isfinite(known)], means[np.isfinite(means)]
    if log:
        low, high = max(known.min(), means.min() / 5), min(known.max(), means.max() * 5)
        for ax in axes:
            ax.set_yscale("log")
            ax.set_ylim(low / 1.3, high * 1.3)
            label_decades(ax)
        return
    room = max(means.max() - means.min(), 1.0)
    low, high = max(known.min(), means.min() - room), min(known.max(), means.max() + room)
    for ax in axes:
        ax.set_ylim(low - room / 10, high + room / 10)


def label_decades(ax: Axes) -> None:
    """Label a logarithmic y axis for the limits that it has now: at least some three numbers."""
    low, high = ax.get_ylim()
    decades = np.log10(high / low)
    if decades > 2:
        ax.yaxis.set_major_locator(LogLocator(base=10))
        ax.yaxis.set_major_formatter(LogFormatterMathtext())
    else:
        by_parts = LogLocator(base=10, subs=(1.0, 2.0, 5.0))
        ax.yaxis.set_major_locator(by_parts if decades > 1 else MaxNLocator(5))
        ax.yaxis.set_major_formatter(lambda y, _: f"{y:.4g}")
    ax.yaxis.set_minor_formatter(NullFormatter())


def _along(
    ax: Axes, alphas: Tensor, values: Tensor, name: str, color: str, marker: str
) -> list[Line2D]:
    part, _, kind = name.rpartition("_")
    dashed = part == "test"
    return ax.plot(
        alphas,
        values,
        color=color,
        linestyle="--" if dashed else "-",
        marker=marker,
        markersize=3.5,
        markerfacecolor="white" if dashed else color,
        linewidth=1.3,
        label=f"{kind}, {part}" if part else kind,
    )
