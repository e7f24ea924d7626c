"""What random probes tell of a spectrum, on matplotlib Axes; nothing here computes a product.

Letters: n eigenvalues, s probes, m steps.
"""

import math
from dataclasses import replace
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, SymmetricalLogLocator
from torch import Tensor

from sharpness.errors import InputError
from sharpness.results import Density, Diagonal, Estimate
from sharpness.styles import BLACK, BLUE, GRAY, GREEN, ORANGE, label_decades

FLOOR = 0.01  # of the peak of one eigenvalue of n, below which a density is not drawn
DECADE = 0.1  # width of the density of logarithms
TAIL = 7  # widths to each side of a node beyond which its normal curve is below the floor
FINE = 3  # points of a curve in a width
SIDES = 1.96  # standard errors of a normal interval of 95 %
MOST_ENTRIES = 2000  # of a diagonal; more would lie on the same dots of a picture
UNKNOWN = "interval unknown"


def density(result: Density, ax: Axes, *, width: float | None = None, log: bool = False) -> None:
    """Draw the smoothed density of eigenvalues on a logarithmic axis, with its 95 % interval.

    The interval is that over the probes, and unknown with one. Triangles above are eigenvalues that
    are known and count exactly, strokes below the quadrature nodes. What is below a hundredth of
    the peak of one eigenvalue is not drawn. A node stands for all eigenvalues that its steps do not
    tell apart, of which most are at zero as a rule: the sign and the logarithm of a node there tell
    little.

    Args:
        width: Standard deviation of the normal curve that each node becomes. Default:
            ``default_width``; for ``log`` a tenth of a decade.
        log: Draw the density of log10 |lambda| on a logarithmic axis instead (Papyan 2020), the
            negative eigenvalues also by themselves, dashed, with their share. Those that are zero
            to rounding lie beyond the axis and are told.

    Raises:
        InputError: If the width is not above 0, or, for ``log``, all eigenvalues are zero to
            rounding.
    """
    nodes = _nodes(result)
    at = torch.cat([nodes, result.known])
    if log:
        at = at[at.abs() > result.rounding].abs().log10()
        if not len(at):
            raise InputError(
                "a density of logarithms needs an eigenvalue above rounding, got none: draw it "
                "without log"
            )
    wide = (DECADE if log else default_width(result)) if width is None else width
    smooth = Density.on_log if log else Density.on
    grid = _grid(at, wide) if wide > 0 else at
    mean, low, high = smooth(result, grid, wide)
    floor = FLOOR / (result.size * wide * math.sqrt(2 * math.pi))
    x = 10**grid if log else grid
    ax.set_yscale("log")
    _line(result, ax, x, (mean, low, high), floor)
    if log:
        ax.set_xscale("log")
        _below_zero(result, ax, grid, wide, floor)
    _frame(ax, at, wide, floor, log=log)
    _marks(result, ax, nodes, log=log)
    if log:
        label_decades(ax, "x")
    else:
        ax.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    label_decades(ax)
    ax.set_xlabel("|eigenvalue|" if log else "eigenvalue")
    ax.set_ylabel(r"density of $\log_{10} |\lambda|$" if log else "density")


def default_width(result: Density) -> float:
    """Return the width that nodes of a density are drawn with, from the range of the spectrum.

    Its square is 1e-5 times the range, as that of Ghorbani et al. (2019); where the range is below
    1, the width is that much of the range instead, so that it stays 0.3 % of it at most. Of a
    spectrum that is one value the range is the size of that value.

    >>> weights = torch.ones(1, 2).double() / 2
    >>> counts = {"known": torch.zeros(0).double(), "size": 2, "products": 2, "check_products": 2}
    >>> found = Density(torch.tensor([[-1.0, 99.0]]).double(), weights, **counts, spec={})
    >>> round(default_width(found) ** 2, 9)
    0.001
    """
    at = torch.cat([_nodes(result), result.known])
    spread, size = float(at.max() - at.min()), float(at.abs().max())
    if spread <= 1e-3 * size or not size:
        spread = size or 1.0
    return math.sqrt(1e-5) * min(spread, math.sqrt(spread))


def _nodes(result: Density) -> Tensor:
    """Return the nodes of all probes, without those whose weight is but rounding."""
    return result.nodes[result.weights > torch.finfo(torch.float64).eps].double()


def _grid(at: Tensor, width: float) -> Tensor:
    """Return points so close that no peak is missed, and only where there is one, (p,)."""
    sides = torch.arange(-TAIL * FINE, TAIL * FINE + 1)
    steps = (at * (FINE / width)).round()[:, None] + sides
    return torch.unique(steps) * (width / FINE)


def _line(
    result: Density, ax: Axes, x: Tensor, bounds: tuple[Tensor, Tensor, Tensor], floor: float
) -> None:
    mean, low, high = bounds
    probes, steps = result.nodes.shape
    several = f"mean of {probes} probes" if probes > 1 else "1 probe"
    doubt = "" if probes > 1 else f", {UNKNOWN}"
    label = f"n = {result.size:,}, {several}, {steps} steps{doubt}"
    ax.plot(x, torch.where(mean < floor, torch.nan, mean), color=BLUE, linewidth=1.2, label=label)
    if probes > 1:
        shown = high >= floor
        ax.fill_between(
            x.numpy(),
            low.clamp(min=floor).numpy(),
            high.clamp(min=floor).numpy(),
            where=shown.numpy().tolist(),
            color=BLUE,
            alpha=0.25,
            linewidth=0,
            label="95 % interval",
        )


def _below_zero(result: Density, ax: Axes, grid: Tensor, width: float, floor: float) -> None:
    """Draw the part of negative eigenvalues, and say what is zero to rounding."""
    if result.negative_mass[0] > 0:
        part = replace(result, nodes=result.nodes.clamp(max=0), known=result.known.clamp(max=0))
        mean = part.on_log(grid, width)[0]
        y = torch.where(mean < floor, torch.nan, mean)
        label = f"negative: {_percent(result.negative_mass)}"
        ax.plot(10**grid, y, color=ORANGE, linestyle="--", linewidth=1.2, label=label)
    zero = result.mass(-result.rounding, result.rounding)
    if zero[0] > 0:
        ax.plot([], [], " ", label=f"zero to rounding: {_percent(zero)}")


def _percent(share: tuple[float, float, float]) -> str:
    mean, low, high = (100 * x for x in share)
    if math.isnan(low):
        return f"{mean:.2g} %, {UNKNOWN}"
    return f"{mean:.2g} % ({max(low, 0.0):.2g} to {high:.2g})"


def _frame(ax: Axes, at: Tensor, width: float, floor: float, *, log: bool) -> None:
    """Show all eigenvalues and nothing below the floor, with room for marks above."""
    low, high = float(at.min()), float(at.max())
    room = 5 * width + 0.03 * (high - low)
    low, high = low - room, high + room
    ax.set_xlim(*((10**low, 10**high) if log else (low, high)))
    top = max(ax.dataLim.y1, 10 * floor)
    ax.set_ylim(floor / 3, top * (top / floor) ** 0.12)


def _marks(result: Density, ax: Axes, nodes: Tensor, *, log: bool) -> None:
    """Mark known eigenvalues above and nodes below; their heights mean nothing."""
    for x, y, color, marker, size, name in (
        (result.known, 0.96, ORANGE, "v", 5, f"{len(result.known)} known, exact"),
        (nodes, 0.025, GRAY, "|", 5, "nodes"),
    ):
        there = x[x.abs() > result.rounding].abs() if log else x
        if len(there):
            ax.plot(
                there,
                torch.full_like(there, y),
                marker,
                color=color,
                markersize=size,
                markeredgewidth=0.6,
                transform=ax.get_xaxis_transform(),
                label=name,
                zorder=3,
            )


def estimate(result: Estimate, ax: Axes) -> None:
    """Draw the samples of an estimate, with the exact part, and beside them the value.

    A bar is the 95 % interval; of one sample it is unknown. A tolerance that was asked for and not
    met is told, and the value is hollow then, as it is without an interval.
    """
    count = len(result.samples)
    number = torch.arange(1, count + 1)
    ax.plot(number, result.exact + result.samples, "o", color=BLUE, markersize=5, label="sample")
    if result.exact:
        name = f"exact part {result.exact:.4g}"
        ax.axhline(result.exact, color=GREEN, linestyle="--", linewidth=1.1, label=name, zorder=0)
    low, high = result.interval.tolist()
    known = not math.isnan(low)
    words = "95 % interval" if known else UNKNOWN
    if not result.met:
        words += f", NOT within rtol {result.spec.get('rtol', math.nan):g}"
    ax.axhline(result.value, color=GRAY, linewidth=0.8, linestyle=":", zorder=0)
    ax.errorbar(
        [count + 1],
        [result.value],
        yerr=[[max(result.value - low, 0.0)], [max(high - result.value, 0.0)]] if known else None,
        fmt="D",
        color=BLACK,
        markerfacecolor=BLACK if known and result.met else "white",
        capsize=4,
        label=f"{result.value:.4g}, {words}",
    )
    ticks = list(range(1, count + 1, 1 + count // 10))
    if len(ticks) > 1 and count + 1 - ticks[-1] < ticks[1] - ticks[0]:
        ticks.pop()  # its label would meet the last
    ax.set_xticks([*ticks, count + 1], [*map(str, ticks), "value"])
    ax.set_xlim(0.5, count + 1.5 + 0.02 * count)
    ax.set_xlabel("sample")
    ax.set_ylabel(result.quantity)


def diagonal(result: Diagonal, ax: Axes) -> None:
    """Draw the entries of a diagonal, sorted, with 1.96 standard errors to each side as a band.

    Logarithmic where all entries are above 0, else linear within the median of their sizes and
    logarithmic beyond; those below 0 are dashed and counted. Of many entries every so many-th is
    drawn.
    """
    values, order = result.values.double().sort(descending=True)
    below = values < 0
    half = SIDES * result.stderr.double()[order]
    n = len(values)
    chosen = torch.linspace(0, n - 1, min(n, MOST_ENTRIES), dtype=torch.float64).round().long()
    rank = 1 + chosen
    known = not bool(half.isnan().any())
    few: dict[str, Any] = {"marker": "o", "markersize": 3} if n <= 30 else {}
    for part, color, dash, name in (
        (~below, BLUE, "-", f"{n:,} entries, {result.samples} samples"),
        (below, ORANGE, "--", _negative(values, half)),
    ):
        y = torch.where(part, values, torch.nan)[chosen]
        if part.any():
            label = name if known else f"{name}, {UNKNOWN}"
            ax.plot(rank, y, color=color, linestyle=dash, linewidth=1.4, label=label, **few)
    edges = values
    if known:
        low, high = values - half, values + half
        edges = torch.cat([low, high])
        ax.fill_between(
            rank.numpy(),
            low[chosen].numpy(),
            high[chosen].numpy(),
            color=GRAY,
            alpha=0.35,
            linewidth=0,
            zorder=0,
            label=f"$\\pm${SIDES:g} standard errors",
        )
    _scale(ax, values, edges)
    ax.set_xlabel("rank of the entry")
    ax.set_ylabel("entry of the diagonal")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _negative(values: Tensor, half: Tensor) -> str:
    sure = int((values + half < 0).sum())
    return f"{int((values < 0).sum()):,} below 0" + (f", {sure:,} with their band" if sure else "")


def _scale(ax: Axes, values: Tensor, edges: Tensor) -> None:
    """Scale the axis for all entries; a band that reaches below the least is cut off there."""
    top = float(edges.max())
    if bool((values > 0).all()):
        ax.set_yscale("log")
        ax.set_ylim(float(values.min()) / 3, top * 1.5)
        label_decades(ax)
        return
    sizes = values[values != 0].abs()
    if len(sizes):
        linear = float(sizes.median())
        ax.set_yscale("symlog", linthresh=linear)
        ticks = SymmetricalLogLocator(base=10, linthresh=linear)
        ticks.set_params(numticks=9)
        ax.yaxis.set_major_locator(ticks)
    ax.axhline(0, color=GRAY, linewidth=0.8, zorder=0)
