"""Results on matplotlib Axes; nothing here computes, and nothing touches pyplot's global state."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from io import BytesIO
from typing import Any, Literal

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation
from torch import Tensor

from sharpness.batch_plots import (
    batch_histogram as batch_histogram,
    batch_violins as batch_violins,
    batches as batches,
)
from sharpness.class_plots import (
    class_cosines as class_cosines,
    class_eigenvalues as class_eigenvalues,
)
from sharpness.errors import InputError
from sharpness.layer_plots import height, layers as layers
from sharpness.measure_plots import (
    invariance as invariance,
    invariance_size,
    measured as measured,
)
from sharpness.plane_plots import (
    KINDS as KINDS,
    UNITS as UNITS,
    convexity as convexity,
    levels_of as levels_of,
    plane as plane,
    planes as planes,
    quantities as quantities,
)
from sharpness.results import (
    BatchEigenvalues,
    ClassStructure,
    Comparison,
    Convexity,
    Cut,
    Density,
    Diagonal,
    Eigenpairs,
    EpsilonTrend,
    Estimate,
    Invariance,
    Layers,
    Line,
    Measured,
    Plane,
    Result,
    Run,
    Sharpness,
    SubspaceSharpness,
    Trajectory,
)
from sharpness.spectrum_plots import (
    density as density,
    diagonal as diagonal,
    estimate as estimate,
)
from sharpness.styles import (
    BLACK as BLACK,
    BLUE as BLUE,
    COLORS as COLORS,
    DARK as DARK,
    DASHES as DASHES,
    GRAY as GRAY,
    GREEN as GREEN,
    MARKERS as MARKERS,
    ORANGE as ORANGE,
    PURPLE as PURPLE,
    label_decades as label_decades,
)
from sharpness.text import objective_spec, operator_name

MOST_COLUMNS = 4  # of panels
MOST_MARKERS = 30  # of one curve; more run into each other
# Formats of pictures, with what keeps the time of their making out of their bytes.
FORMATS: dict[str, dict[str, Any]] = {
    "png": {},
    "pdf": {"metadata": {"CreationDate": None}},
    "svg": {"metadata": {"Date": None}},
}
ABOVE: dict[str, Any] = {  # where a legend covers nothing
    "fontsize": "small",
    "frameon": False,
    "loc": "lower center",
    "bbox_to_anchor": (0.5, 1.0),
}
# Measures and parts whose names are not words.
SYMBOLS = {
    "lambda_1": r"$\lambda_1$",
    "adaptive_lambda_1": r"adaptive $\lambda_1$",
    "metric_2_1": "Metric 2.1",
    "subspace_2_1": "Metric 2.1 in subspaces",
}


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
    return encoded(made, dpi=dpi)


def encoded(made: Figure, *, form: str = "png", dpi: int = 200) -> bytes:
    """Return the figure as a file of one of ``FORMATS``; the same figure gives the same bytes.

    Raises:
        InputError: If the format is not one of them.
    """
    if form not in FORMATS:
        raise InputError(
            f"a picture needs a format of {', '.join(FORMATS)}, got {form}: choose one"
        )
    buffer = BytesIO()
    with rc_context({"svg.hashsalt": "sharpness", "pdf.fonttype": 42}):
        made.savefig(buffer, format=form, dpi=dpi, **FORMATS[form])
    return buffer.getvalue()


def drawn(result: Result) -> Figure:
    """Return the figure of a result, by ``FIGURES``.

    Raises:
        InputError: If there is none for its kind, or nothing in it to draw.

    >>> alphas = torch.tensor([0.0, 0.5, 1.0])
    >>> made = drawn(Line(alphas, {"loss": alphas.square() + 1}, 1.0, {}))
    >>> [ax.get_ylabel() for ax in made.axes]
    ['loss']
    """
    if type(result) not in FIGURES:
        kinds = ", ".join(kind.__name__ for kind in FIGURES)
        raise InputError(
            f"a figure needs a result of kind {kinds}, got {type(result).__name__}: "
            "take its numbers by show"
        )
    return FIGURES[type(result)](result)


def training(result: Run, made: Figure) -> None:
    """Draw the losses of a training on a logarithmic axis, and below them the accuracies.

    Solid is train, dashed is test; a dotted line is the training loss that was to be met. The
    axis counts updates below and epochs above. A cross on it marks a loss that is not finite.

    Raises:
        InputError: If the run is a checkpoint that was read, which has no history.
    """
    history = result.history
    if "update" not in history:
        raise InputError(
            "a figure of a training needs its history, got a checkpoint that was read: draw "
            "what was measured at it"
        )
    rates = [part for part in ("train", "test") if f"{part}_right" in history]
    axes = made.subplots(2 if rates else 1, 1, sharex=True, squeeze=False)[:, 0]
    updates = history["update"]
    for part in ("train", "test"):
        _curve(axes[0], updates, history[f"{part}_loss"], part, BLUE, "o")
    goal = result.spec.get("train", {}).get("stop_loss")
    if goal is not None:
        axes[0].axhline(goal, color=GRAY, linestyle=":", label=f"stop at {goal:g}")
    axes[0].set_ylabel("loss")
    _logarithmic(axes[0])
    _crosses(axes[0], updates, {part: history[f"{part}_loss"] for part in ("train", "test")})
    for part in rates:
        index = result.train_index if part == "train" else result.test_index
        percent = 100 * history[f"{part}_right"].double() / len(index)
        _curve(axes[1], updates, percent, part, ORANGE, "s")
    if rates:
        axes[1].set_ylabel("accuracy (%)")
    for ax in axes:  # beside: inside, no corner is free of all curves
        ax.legend(fontsize="small", frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes[-1].set_xlabel("updates")
    axes[-1].xaxis.set_major_locator(MaxNLocator(6, integer=True))
    last, seen = int(updates[-1]), int(history["examples"][-1])
    if last and seen:
        rate = seen / len(result.train_index) / last
        above = axes[0].secondary_xaxis("top", functions=(lambda x: x * rate, lambda x: x / rate))
        above.set_xlabel("epochs")


def line(
    result: Line, ax: Axes, *, legend: bool = True, basins: bool = False, distance: bool = False
) -> Axes | None:
    """Draw the loss along a line, logarithmic, and the accuracy on a second axis (Keskar, Fig. 3).

    Solid is train, dashed is test. Without an accuracy there is no second axis. A cross on the axis
    marks a point where something is not finite.

    Args:
        basins: Shade where the loss is below a level around either end.
        distance: Give lengths in parameter space above, where the path is straight.

    Returns:
        The second Axes, or None.
    """
    losses = {k: v for k, v in result.values.items() if k == "loss" or k.endswith("_loss")}
    rates = {k: v for k, v in result.values.items() if k == "accuracy" or k.endswith("_accuracy")}
    handles: list[Line2D] = []
    for name, values in losses.items():
        handles += _along(ax, result.alphas, values, name, BLUE, "o")
    _logarithmic(ax)
    arc = result.spec.get("path", "linear") == "curvilinear"
    ax.set_xlabel(rf"position $\alpha$ {'on an arc ' if arc else ''} (0: start, 1: end)")
    ax.set_ylabel("loss", color=BLUE)
    ax.tick_params(axis="y", colors=BLUE)
    for end in (0, 1):
        ax.axvline(end, color=GRAY, linewidth=0.8, linestyle=":", zorder=0)
    if basins and not math.isnan(result.level):
        around = [result.basin(result.level, at=end) for end in (0, 1)]
        handles += _basins(ax, around, result.level, next(iter(losses)))
    handles += _crosses(ax, result.alphas, result.values)
    above = distance and not arc
    if above:
        _lengths(ax, result.distance, r"distance from the start $\alpha \, \Vert\Delta\theta\Vert$")
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
        figure = ax.get_figure(root=True)
        assert figure is not None  # noqa: S101
        room = ScaledTranslation(0, 0.45 if above else 0, figure.dpi_scale_trans)  # of the labels
        ax.legend(
            handles=handles,
            fontsize="small",
            frameon=False,
            loc="lower center",
            bbox_to_anchor=(0.5, 1.0),
            bbox_transform=ax.transAxes + room,
            ncols=2,
        )
    return twin


def cuts(result: Cut, made: Figure) -> None:
    """Draw losses along directions around a solution on a logarithmic axis, and below accuracies.

    Random directions make a band from the lowest to the highest, around their mean; eigenvectors
    and other single directions have a curve each, of the first part. Dashed without markers is the
    parabola that slope and curvature at the center give, and gray where the first loss is below a
    level along all directions. A cross on the axis marks a point where something is not finite.
    """
    names = [name for name in result.values if name.endswith(("loss", "accuracy"))]
    kinds = sorted({name.rpartition("_")[2] for name in names}, reverse=True)
    axes = made.subplots(len(kinds), 1, sharex=True, squeeze=False)[:, 0]
    for ax, kind in zip(axes, kinds, strict=True):
        shown = [name for name in names if name.endswith(kind)]
        scale = 100 if kind == "accuracy" else 1
        if result.is_band:
            for i, name in enumerate(shown):
                _band_of(ax, result.alphas, scale * result.values[name], name, i)
        else:
            _each(ax, result, scale * result.values[shown[0]], shown[0])
        if kind == "loss":
            _parabolas(ax, result)
            handles = _basins(ax, _common(result), result.level, shown[0])
        else:
            ax.set_ylim(-3, 103)
            handles = []
        part = "" if result.is_band else f", {shown[0].rpartition('_')[0]}".rstrip(", ")
        ax.set_ylabel(f"{kind}{' (%)' if kind == 'accuracy' else ''}{part}")
        ax.axvline(0, color=GRAY, linewidth=0.8, linestyle=":", zorder=0)
        marks = {name: result.values[name] for name in shown}
        handles = [*ax.get_legend_handles_labels()[0], *handles]
        handles += _crosses(ax, result.alphas, marks)
        handles = list({str(handle.get_label()): handle for handle in handles}.values())
        ax.legend(
            handles=handles,
            fontsize="small",
            frameon=False,
            loc="center left",
            bbox_to_anchor=(1.0, 0.5),
        )
    low, high = float(result.lengths.min()), float(result.lengths.max())
    unit = abs(low - 1) < 1e-3 and abs(high - 1) < 1e-3
    axes[-1].set_xlabel(
        r"position $\alpha$, a distance" if unit else r"position $\alpha$ along $d$  (0: center)"
    )
    axes[-1].xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    if not unit and high <= 1.02 * low:  # raw directions of many entries differ by less
        _lengths(axes[0], (low + high) / 2, r"distance $\alpha \, \Vert d \Vert$")


def _lengths(ax: Axes, length: float, name: str) -> None:
    """Give lengths in parameter space above the axes, so many for one of the position."""
    there: Callable[[Any], Any] = lambda x: x * length  # noqa: E731
    back: Callable[[Any], Any] = lambda x: x / length  # noqa: E731
    ax.secondary_xaxis("top", functions=(there, back)).set_xlabel(name)


def _band_of(ax: Axes, alphas: Tensor, values: Tensor, name: str, i: int) -> None:
    """Draw the mean of rows (k, p), and from the lowest to the highest a band."""
    part, _, kind = name.rpartition("_")
    color, dashed = COLORS[i % len(COLORS)], part == "test"
    several = len(values) > 1
    ax.plot(
        alphas,
        values.mean(dim=0),
        color=color,
        linestyle="--" if dashed else "-",
        marker=MARKERS[i % len(MARKERS)] if len(alphas) <= MOST_MARKERS else None,
        markersize=3.5,
        markerfacecolor="white" if dashed else color,
        linewidth=1.3,
        label=f"{part or kind}{f', mean of {len(values)}' if several else ''}",
    )
    if several:
        low, high = values.min(dim=0).values, values.max(dim=0).values
        ax.fill_between(alphas.numpy(), low, high, color=color, alpha=0.18, linewidth=0)


def _each(ax: Axes, result: Cut, values: Tensor, name: str) -> None:
    """Draw a curve for each direction."""
    converged = result.spec.get("directions", {}).get("converged", [])
    for i, row in enumerate(values):
        curvature = float(result.curvatures[i])
        known = "" if math.isnan(curvature) else f": $d^T H d$ = {curvature:.3g}"
        missed = i < len(converged) and not converged[i]
        told = known if name.endswith("loss") else ""
        ax.plot(
            result.alphas,
            row,
            color=COLORS[i % len(COLORS)],
            marker=MARKERS[i % len(MARKERS)],
            markevery=max(1, len(row) // MOST_MARKERS),
            markersize=3.5,
            linewidth=1.3,
            label=f"$d_{{{i + 1}}}${told}{', not converged' if missed else ''}",
        )


def _parabolas(ax: Axes, result: Cut) -> None:
    """Scale the axis for the curves that are there, and draw the parabolas that it has room for."""
    _logarithmic(ax)
    made = result.quadratic()
    if made.isnan().all():
        return
    ax.set_ylim(ax.get_ylim())
    single = not result.is_band
    for i, row in enumerate(made if single else made.mean(dim=0, keepdim=True)):
        ax.plot(
            result.alphas,
            row,
            color=COLORS[i % len(COLORS)] if single else BLACK,
            linestyle="--",
            linewidth=0.9,
            label="parabola at 0" if i == 0 else None,
            zorder=3,
        )


def _common(result: Cut) -> list[Any]:
    """Return the basin around the center along all directions, if it is known."""
    if math.isnan(result.level) or not bool((result.alphas == 0).any()):
        return []
    found = [result.basin(i, result.level) for i in range(len(result.directions))]
    return [(max(basin.low for basin in found), min(basin.high for basin in found))]


def _basins(ax: Axes, basins: Sequence[Any], level: float, name: str) -> list[Any]:
    """Shade intervals in which the loss of this name is below a level, each once."""
    part = name.rpartition("_")[0]
    label = f"{part} loss < {level:.3g}".lstrip()
    shades = [
        ax.axvspan(low, high, color=GRAY, alpha=0.2, linewidth=0, zorder=0, label=label)
        for low, high in {basin[:2] for basin in basins}
    ]
    return shades[:1]


def _crosses(ax: Axes, alphas: Tensor, values: Mapping[str, Tensor]) -> list[Line2D]:
    """Mark where a value is not finite."""
    lost = torch.stack([~x.isfinite().view(-1, len(alphas)).all(dim=0) for x in values.values()])
    x = alphas[lost.any(dim=0)]
    if not len(x):
        return []
    return ax.plot(
        x,
        torch.zeros_like(x),
        "x",
        color=BLACK,
        markersize=5,
        transform=ax.get_xaxis_transform(),  # on the axis: above, accuracies are near 100 %
        clip_on=False,
        label="not finite",
    )


def eigenvalues(result: Eigenpairs, ax: Axes, *, label: str | None = None, style: int = 0) -> None:
    """Draw the eigenvalues by rank with their residuals as bars; unconverged ones are hollow.

    Those of a sample of the data have a pale bar too, of two standard errors to each side.
    """
    values, converged = result.values.double(), result.converged
    rank = torch.arange(1, len(values) + 1)
    color, marker = COLORS[style % len(COLORS)], MARKERS[style % len(MARKERS)]
    ax.errorbar(rank, values, yerr=result.residuals.double(), fmt="none", ecolor=color, capsize=2)
    if bool((result.sampling_errors != 0).any()):
        wide = 2 * result.sampling_errors.double()
        ax.errorbar(
            rank,
            values,
            yerr=wide,
            fmt="none",
            ecolor=color,
            elinewidth=5,
            alpha=0.25,
            zorder=0,
            label="sampling error, 2 s.e.",
        )
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
    else:
        ax.axhline(0, color=GRAY, linewidth=0.8, zorder=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def starts(result: Sharpness, ax: Axes) -> None:
    """Draw the value of Metric 2.1 that each start reached, by its method.

    Lines mark the best of them, which is the result, the value that a loss linear in theta would
    have, and the rounding of the loss, which a value must exceed to mean anything.
    """
    number = torch.arange(1, len(result.start_values) + 1)
    levels = (
        (result.value, BLACK, "-", f"value {result.value:.4g}"),
        (result.first_order, GREEN, "--", f"first order {result.first_order:.3g}"),
        (result.rounding, GRAY, ":", f"rounding {result.rounding:.1e}"),
    )
    for y, color, dash, name in levels:
        ax.axhline(y, color=color, linestyle=dash, linewidth=1.1, label=name, zorder=1)
    for sign, name in ((False, "L-BFGS-B"), (True, "signs")):
        chosen = result.start_signs == sign
        if chosen.any():
            color, marker = COLORS[int(sign)], MARKERS[int(sign)]
            values = result.start_values[chosen]
            ax.plot(number[chosen], values, marker, color=color, markersize=6, label=name)
    _from_zero(ax)
    ax.set_xlabel("start")
    ax.set_ylabel("rise of the loss (% of 1 + loss)")
    ax.set_xlim(0.5, len(number) + 0.5)
    ax.set_xticks(range(1, len(number) + 1, 1 + len(number) // 12))


def trend(result: EpsilonTrend, ax: Axes) -> None:
    """Draw Metric 2.1 over epsilon, both in logarithms, and what a linear loss would have.

    Lines from the first value of slopes 1 and 2 are what a slope and what curvature would make of
    it. Values of 0 have no place; hollow ones are not above ten times their rounding.
    """
    x, y = result.epsilon, result.values
    shown = y > 0
    if shown.any():
        first = int(shown.nonzero()[0, 0])
        for slope, dash in ((1, ":"), (2, "-.")):
            guide = y[first] * (x / x[first]) ** slope
            ax.plot(x, guide, dash, color=GRAY, linewidth=1, label=f"slope {slope}", zorder=0)
    if (result.first_order > 0).any():
        ax.plot(x, result.first_order, "--", color=GREEN, linewidth=1.1, label="first order")
    ax.plot(x[shown], y[shown], "-", color=BLUE, linewidth=1.2)
    above = y > 10 * result.rounding
    for chosen, face, label in ((shown & above, BLUE, "value"), (shown & ~above, "white", "noise")):
        if chosen.any():
            ax.plot(x[chosen], y[chosen], "o", color=BLUE, markerfacecolor=face, label=label)
    ax.set_xscale("log")
    if shown.any() or (result.first_order > 0).any():
        ax.set_yscale("log")
    ax.set_xlabel(r"$\epsilon$")
    ax.set_ylabel("rise of the loss (% of 1 + loss)")


def draws(result: SubspaceSharpness, ax: Axes) -> None:
    """Draw Metric 2.1 of each random subspace, and beside them the mean with its interval.

    Hollow is the value that a loss linear in theta would have in the same subspace.
    """
    count = len(result.draw_values)
    number = torch.arange(1, count + 1)
    ax.plot(number, result.draw_values, "o", color=BLUE, markersize=6, label="draw")
    ax.plot(
        number,
        result.draw_first_order,
        "o",
        color=GREEN,
        markerfacecolor="white",
        markersize=6,
        label="first order",
        zorder=1,
    )
    low, high = result.interval.tolist()
    known = not math.isnan(low)
    ax.axhline(result.value, color=GRAY, linewidth=0.8, linestyle=":", zorder=0)
    ax.errorbar(
        [count + 1],
        [result.value],
        yerr=[[result.value - low], [high - result.value]] if known else None,
        fmt="D",
        color=BLACK,
        markerfacecolor=BLACK if known else "white",
        capsize=4,
        label="mean, 95 % interval" if known else "mean, interval unknown",
    )
    _from_zero(ax)
    ax.set_ylabel("rise of the loss (% of 1 + loss)")
    ax.set_xlabel("draw of the subspace")
    ticks = list(range(1, count + 1, 1 + count // 12))
    ax.set_xticks([*ticks, count + 1], [*map(str, ticks), "mean"])
    ax.set_xlim(0.5, count + 1.5)


def along(result: Trajectory, made: Figure) -> None:
    """Draw lambda_1 and Metric 2.1 over the training loss, which falls to the right.

    After Keskar et al. (2017), Figure 6. What did not converge is hollow; bars are two standard
    errors where the data are a sample; dashed is what a loss linear in theta would have.
    """
    above, below = made.subplots(2, 1, sharex=True)
    x = result.train_loss
    for ax, y, errors, color, marker in (
        (above, result.lambda_1, result.lambda_1_sampling_errors, BLUE, "o"),
        (below, result.metric_2_1, result.metric_2_1_sampling_errors, ORANGE, "s"),
    ):
        ax.plot(x, y, color=color, marker=marker, markersize=4.5, linewidth=1.3)
        if bool((errors != 0).any()):
            name = "sampling error, 2 s.e." if ax is below else None
            ax.errorbar(x, y, yerr=2 * errors, fmt="none", ecolor=color, capsize=2, label=name)
    missed = ~result.converged
    if missed.any():
        name = "not converged"
        above.plot(x[missed], result.lambda_1[missed], "o", color=BLUE, mfc="white", label=name)
        above.legend(fontsize="small", frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    below.plot(x, result.first_order, color=GREEN, linestyle="--", label="first order")
    below.legend(fontsize="small", frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    above.set_ylabel(r"$\lambda_1$ of the Hessian")
    below.set_ylabel("Metric 2.1 (%)")
    below.set_xlabel(r"training loss  (training goes to the right $\rightarrow$)")
    for ax in (above, below):
        _logarithmic(ax)
    if bool((x > 0).all()):
        below.set_xscale("log")
        label_decades(below, "x")
    below.invert_xaxis()


def contrasts(result: Comparison, made: Figure) -> None:
    """Draw each contrast of a comparison with its 95 % interval, one panel for each measure.

    Ratios are on logarithmic axes and differences, reference - group, on linear ones; a line
    marks "no difference". A hollow point has an unknown interval, and what is unknown
    altogether says so, as do panels without the numbers of some runs, that did not converge, say.

    Raises:
        InputError: If there is no contrast.
    """
    panels = [(name, x, True) for name, x in result.ratios.items()]
    panels += [(name, x, False) for name, x in result.differences.items()]
    if not panels or not result.contrasts:
        raise InputError(
            "a figure of a comparison needs a contrast, got none: take its numbers by show"
        )
    rows, columns = _shape(len(panels))
    grid = made.subplots(rows, columns, sharey=True, squeeze=False)
    for ax, (name, effects, ratio) in zip(grid.flat, panels, strict=False):
        _forest(ax, effects, ratio=ratio)
        measure, _, kind = name.rpartition("_")
        ax.set_title(_named(measure), fontsize="medium")
        unit = " (points)" if kind == "difference" and "accuracy" in measure else ""
        numbers = result.values.get(measure, torch.zeros_like(result.reached, dtype=torch.float64))
        lost = int((numbers.isnan() & result.reached).sum())
        left = f"\nwithout {lost} unknown" if lost else ""
        ax.set_xlabel(f"{kind}{unit}{left}", fontsize="small")
    for ax in grid.flat[len(panels) :]:
        ax.set_visible(False)
    names = [
        f"{name}  ({int(count)})".replace(" x", " \u00d7")
        for name, count in zip(result.contrasts, result.pairs, strict=True)
    ]
    for ax in grid[:, 0]:
        ax.set_yticks(range(len(names)), names, fontsize="small")
    grid[0, 0].set_ylim(len(names) - 0.4, -0.6)  # the first on top


def _forest(ax: Axes, numbers: Tensor, *, ratio: bool) -> None:
    """Draw rows of (estimate, low, high), shape (c, 3), below each other."""
    none = 1.0 if ratio else 0.0
    ax.axvline(none, color=GRAY, linewidth=1, linestyle="--", zorder=0)
    for y, (mean, low, high) in enumerate(numbers.tolist()):
        if math.isnan(mean):
            middle = ax.get_yaxis_transform()  # x in parts of the axes
            ax.text(
                0.5,
                y,
                "unknown",
                transform=middle,
                ha="center",
                va="center",
                fontsize="small",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
            )
            continue
        known = not math.isnan(low)
        ax.errorbar(
            [mean],
            [y],
            xerr=[[mean - low], [high - mean]] if known else None,
            fmt="o",
            color=BLUE,
            markerfacecolor=BLUE if known else "white",
            markersize=4.5,
            capsize=2.5,
        )
        if not known:
            ax.annotate("?", (mean, y), (5, 0), textcoords="offset points", va="center")
    ax.margins(x=0.1)
    if ratio:
        ax.set_xscale("log")
        label_decades(ax, "x")
    else:
        ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.tick_params(axis="x", labelsize="small")


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
    if log and not (table <= 0).any() and not table.isnan().all():
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
    Axes in which no mean is known stay as they are.

    Args:
        log: Scale the axis by logarithms.
    """
    means = np.concatenate([np.asarray(x.get_ydata(), float) for ax in axes for x in ax.lines])
    bands = [path for ax in axes for c in ax.collections for path in c.get_paths()]
    edges = [np.asarray(path.vertices)[:, 1] for path in bands]
    known = np.concatenate([means, *edges])
    known, means = known[np.isfinite(known)], means[np.isfinite(means)]
    if not len(means):
        return
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


def _logarithmic(ax: Axes) -> None:
    """Make the y axis logarithmic unless that hides something that is drawn."""
    drawn = [np.asarray(curve.get_ydata(), dtype=float) for curve in ax.get_lines()]
    if all((y[np.isfinite(y)] > 0).all() for y in drawn):
        ax.set_yscale("log")
        label_decades(ax)


def _from_zero(ax: Axes) -> None:
    """Let the y axis begin at 0 where nothing is below it, with room for what is there."""
    low, high = ax.get_ylim()
    ax.set_ylim(min(low, 0) if low < -0.06 * high else 0, high + 0.05 * (high - low))


def _curve(ax: Axes, x: Tensor, y: Tensor, part: str, color: str, marker: str) -> None:
    test = part == "test"
    ax.plot(
        x,
        y,
        color=color,
        linestyle="--" if test else "-",
        marker=marker if len(x) <= MOST_MARKERS else None,
        markersize=3.5,
        markerfacecolor="white" if test else color,
        linewidth=1.3,
        label=part,
    )


def _named(measure: str) -> str:
    """Return the title of a measure; behind Metric 2.1 may stand the epsilon of its box."""
    for name in ("metric_2_1", "subspace_2_1"):
        if measure.startswith(f"{name}_"):
            return f"{SYMBOLS[name]}\n$\\epsilon$ = {measure.removeprefix(f'{name}_')}"
    return SYMBOLS.get(measure, measure.replace("_", " "))


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


def _one(
    draw: Callable[[Any, Axes], Any], width: float, height: float, *, columns: int = 3
) -> Callable[[Any], Figure]:
    """Return what makes a figure of one pair of axes with its legend above them."""

    def make(result: Any) -> Figure:
        made, grid = figure(width, height)
        ax = grid[0, 0]
        draw(result, ax)
        handles, _ = ax.get_legend_handles_labels()
        if handles and ax.get_legend() is None:
            ax.legend(**ABOVE, ncols=columns)
        _entitle(made, result)
        return made

    return make


def _density_figure(result: Density) -> Figure:
    """Return a figure of the density over the eigenvalues and over their logarithms."""
    made, grid = figure(6.2, 6.8, rows=2)
    for ax, log in zip(grid[:, 0], (False, True), strict=True):
        density(result, ax, log=log)
        ax.legend(**ABOVE, ncols=2)
    _entitle(made, result)
    return made


def _layers_figure(result: Layers) -> Figure:
    made = Figure(figsize=(6.8, height(result)), layout="constrained")
    layers(result, made)
    _entitle(made, result)
    return made


def _invariance_figure(result: Invariance) -> Figure:
    made, grid = figure(*invariance_size(result))
    invariance(result, grid[0, 0])
    _entitle(made, result)
    return made


def _batches_figure(result: BatchEigenvalues) -> Figure:
    height = 3.4 + 0.75 * result.values.shape[1]
    made = Figure(figsize=(6.2, height), layout="constrained")
    batches(result, made)
    _entitle(made, result)
    return made


def _classes_figure(result: ClassStructure) -> Figure:
    """Return a figure of the eigenvalues and of the cosines between class means."""
    made, grid = figure(9.6, 4.6, columns=2)
    class_eigenvalues(result, grid[0, 0])
    grid[0, 0].legend(**ABOVE, ncols=2)
    class_cosines(result, grid[0, 1])
    _entitle(made, result)
    return made


def _trajectory_figure(result: Trajectory) -> Figure:
    made = Figure(figsize=(6.0, 5.0), layout="constrained")
    along(result, made)
    _entitle(made, result)
    return made


def _cut_figure(result: Cut) -> Figure:
    rates = any(name.endswith("accuracy") for name in result.values)
    made = Figure(figsize=(6.6, 5.4 if rates else 3.8), layout="constrained")
    cuts(result, made)
    _entitle(made, result)
    return made


def _training_figure(result: Run) -> Figure:
    made = Figure(
        figsize=(6.4, 5.2 if "train_right" in result.history else 3.6), layout="constrained"
    )
    training(result, made)
    _entitle(made, result)
    return made


def planes_figure(
    results: Mapping[str, Plane],
    *,
    value: str | None = None,
    kind: str = "filled",
    unit: Literal["step", "distance", "relative"] = "step",
) -> Figure:
    """Return the figure of planes by their titles, beside each other as ``planes`` draws them."""
    made = Figure(figsize=(1.2 + 4.0 * len(results), 4.6), layout="constrained")
    planes(results, made, value=value, kind=kind, unit=unit)
    return made


def _plane_figure(result: Plane) -> Figure:
    kinds = [name.rpartition("_")[2] for name in result.values]
    rows, columns = len(set(kinds)), max(map(kinds.count, kinds))
    made = Figure(figsize=(1.2 + 3.6 * columns, 0.6 + 4.0 * rows), layout="constrained")
    quantities(result, made)
    _entitle(made, result)
    return made


def _comparison_figure(result: Comparison) -> Figure:
    rows, columns = _shape(len(result.ratios) + len(result.differences))
    longest = max((len(name) for name in result.contrasts), default=0)
    made = Figure(
        figsize=(
            max(5.0, 1.0 + 0.07 * longest + 2.1 * columns),
            0.4 + rows * (1.1 + 0.27 * len(result.contrasts)),
        ),
        layout="constrained",
    )
    contrasts(result, made)
    made.supxlabel(
        "with 95 % intervals and the number of pairs\n"
        "ratio: group / reference; difference: reference \u2212 group",
        fontsize="small",
        color=DARK,
    )
    return made


def _shape(panels: int) -> tuple[int, int]:
    """Return the rows and columns of so many panels."""
    rows = max(1, math.ceil(panels / MOST_COLUMNS))
    return rows, max(1, math.ceil(panels / rows))


def _entitle(made: Figure, result: Any) -> None:
    """Write above a figure what its spec says of the network and the data."""
    about = _about(result.spec)
    if isinstance(result, Cut):
        about.insert(0, f"{result.title}; $\\Vert\\theta\\Vert$ = {result.norm:.4g}")
    if result.spec.get("batch_norm_layers"):
        about.append(f"BatchNorm: {result.spec['batch_norm']}")
    made.suptitle("\n".join(about), fontsize="small", color=DARK)


def _about(spec: Mapping[str, Any]) -> list[str]:
    record = spec.get("train")
    if record:
        return [
            f"{record['model']} on {record['data']}, {record['optimizer']} at rate "
            f"{record['learning_rate']:g}, batch size {record['batch_size']}, seed {record['seed']}"
        ]
    operator = spec.get("operator", {})
    made = objective_spec(operator) if operator else None
    objectives = spec.get("objectives") or {"": spec.get("objective") or made}
    known = [objective for objective in objectives.values() if objective]
    if not known:
        return []
    parts = [
        f"{x['split']} part, {x['examples']} of {x['of']} examples" for x in known if "split" in x
    ]
    head = [operator_name(operator)] if operator else []
    if "epsilon" in spec:
        head.append(f"$\\epsilon$ = {spec['epsilon']:g}")
    return [", ".join([*head, f"{known[0]['parameters']:,} parameters"]), "; ".join(parts)]


FIGURES: dict[type, Callable[[Any], Figure]] = {
    Run: _training_figure,
    Eigenpairs: _one(eigenvalues, 5, 3.6),
    Line: _one(partial(line, basins=True, distance=True), 5.6, 4.3),
    Cut: _cut_figure,
    Sharpness: _one(starts, 5, 3.8),
    SubspaceSharpness: _one(draws, 5, 3.8),
    Measured: _one(measured, 5.2, 3.8, columns=2),
    Invariance: _invariance_figure,
    EpsilonTrend: _one(trend, 5, 3.8),
    Trajectory: _trajectory_figure,
    Comparison: _comparison_figure,
    Plane: _plane_figure,
    Convexity: _one(convexity, 5.2, 4.4),
    Density: _density_figure,
    Estimate: _one(estimate, 5.2, 3.8, columns=2),
    Diagonal: _one(diagonal, 5.2, 3.8, columns=2),
    Layers: _layers_figure,
    BatchEigenvalues: _batches_figure,
    ClassStructure: _classes_figure,
}
