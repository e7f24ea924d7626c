"""Planes and convexity maps on matplotlib Axes; nothing here computes a loss.

Colors are of viridis, whose lightness rises all the way: they keep their order in print in gray
and for the color-blind. What is told by color, of paths and solutions, is the quantity of the plane
on the same scale, so that a point that lies off the plane shows in another color than the plane
below it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator
from torch import Tensor

from sharpness.errors import InputError
from sharpness.results import Convexity, Plane

Grid = np.ndarray[Any, np.dtype[np.float64]]
Unit = Literal["step", "distance", "relative"]
KINDS = ("filled", "contour", "heat", "surface")
UNITS = ("step", "distance", "relative")
COLORS = "viridis"
INK, PALE = "#000000", "#d9d9d9"
HATCH = "xxxx"
MARKERS = ("s", "^", "D", "v", "P", "X")
# Levels in a decade, from few to many.
SUBS = ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0))
ROUND = (1, 2, 2.5, 5, 10)  # steps of even levels and ticks
MOST = 14  # levels
SMALL, LARGE = 14.0, 130.0  # areas of the points of a path, in points^2
LINE = 14.5  # points, of a legend
LOST = "not finite"
NO_LEVELS: Grid = np.array([0.0, 1.0])
VIEW = {"elev": 32, "azim": -58}


def plane(
    result: Plane,
    ax: Axes,
    *,
    value: str | None = None,
    kind: str = "filled",
    unit: Unit = "step",
    levels: Sequence[float] | Grid | None = None,
    colorbar: bool = True,
    legend: bool = True,
    title: str = "",
) -> None:
    """Draw a loss or another value over a plane, with its path and solutions.

    Levels are logarithmic where all losses are positive and span more than a decade. A path's
    points have the color of their own loss and a size that grows with their distance to the plane.
    Where a value is not finite the plane is crossed out, all of it where none is, and a point of a
    path or a solution is a cross. What BatchNorm does stands beside the color bar.

    Args:
        ax: For a ``surface``, Axes of ``projection="3d"``.
        value: One of ``result.values``. Default: the first.
        kind: One of ``KINDS``: ``filled`` contours, ``contour`` lines, a ``heat`` map of the grid
            points themselves, or a ``surface``, whose height is logarithmic as the levels are.
        unit: Of the axes: a ``step`` is alpha, ``distance`` is alpha |u|, a length in parameter
            space, and ``relative`` is alpha |u| / |theta|.
        levels: Of the contours and the color bar, ascending. Default: ``levels_of`` this plane.
        title: Above the legend.

    Raises:
        InputError: If the value, the kind or the unit is unknown.
    """
    name = _known(result, value)
    if kind not in KINDS or unit not in UNITS:
        table, got = (KINDS, kind) if kind not in KINDS else (UNITS, unit)
        raise InputError(f"a plane is drawn by {', '.join(table)}, got {got!r}: choose one")
    marks = _levels([(result, name)]) if levels is None else np.asarray(levels, dtype=float)
    scale = _scale(marks)
    x, y = _places(result, unit)
    Z = _shown(name, result.values[name]).T  # (q, p): rows of equal beta
    finite = np.ma.masked_invalid(Z)
    handles: list[Any] = []
    if kind == "surface":
        drawn = _surface(ax, x, y, finite, scale)
        cast("Any", ax).set_zlabel(_quantity(name), fontsize="small")
    else:
        drawn = _flat(ax, x, y, finite, kind, marks, scale)
        _limits(ax, x, y, cells=kind == "heat")
    if finite.mask.any():
        handles.append(_crossed_out(ax, x, y, Z, f"{_word(name)} {LOST}", kind))
    handles += _overlay(result, ax, name, unit, scale, kind)
    if kind == "surface":
        handles += [_mark("", 0, _axis(result, i, unit)) for i in (0, 1)]
    _label(ax, result, unit)
    if colorbar and marks is not NO_LEVELS:
        _bar(ax, drawn, marks, _quantity(name) + _policy(result))
    if not legend:  # that of another panel does not tell what is missing in this one
        handles = [handle for handle in handles if LOST in str(handle.get_label())]
    if handles:
        _legend(ax, handles)
    if title:
        _title(ax, title, [ax])


def planes(
    results: Mapping[str, Plane] | Sequence[Plane],
    made: Figure,
    *,
    value: str | None = None,
    kind: str = "filled",
    unit: Unit = "step",
) -> None:
    """Draw planes beside each other by the same levels, colors and axes, to be compared.

    Args:
        results: By the names above them.
        value: One that all of them have. Default: the first of the first.

    Other arguments and errors are those of ``plane``.
    """
    named = results if isinstance(results, Mapping) else {"": results[0]} if results else {}
    if not isinstance(results, Mapping) and len(results) > 1:
        named = {str(i): result for i, result in enumerate(results, start=1)}
    if not named:
        raise InputError("planes needs at least one plane, got none: give one")
    name = _known(next(iter(named.values())), value)
    grid = _subplots(made, 1, len(named), kind)[0]
    panels = [(title, result, name) for title, result in named.items()]
    _row(grid, panels, kind, unit, legends=len(panels))


def quantities(result: Plane, made: Figure, *, kind: str = "filled", unit: Unit = "step") -> None:
    """Draw all losses of a plane beside each other, by the same levels, and below accuracies.

    Arguments and errors are those of ``plane``.
    """
    kinds = _kinds_of(result)
    grid = _subplots(made, len(kinds), max(map(len, kinds.values())), kind)
    for k, (ending, names) in enumerate(kinds.items()):
        row = grid[k]
        titles = [_word(name.removesuffix(ending)) or "" for name in names]
        panels = [(title, result, name) for title, name in zip(titles, names, strict=True)]
        _row(row[: len(names)], panels, kind, unit, legends=int(k == 0))
        if k + 1 < len(kinds) and kind != "surface":
            for ax in row:
                ax.set_xlabel("")
        for ax in row[len(names) :]:
            ax.set_visible(False)


def _kinds_of(result: Plane) -> dict[str, list[str]]:
    """Return the names of values by what they end in, losses first."""
    found: dict[str, list[str]] = {}
    for name in result.values:
        found.setdefault(name.rpartition("_")[2], []).append(name)
    return found


def _subplots(made: Figure, rows: int, columns: int, kind: str) -> Any:
    solid = kind == "surface"
    return made.subplots(
        rows,
        columns,
        squeeze=False,
        sharex=not solid,
        sharey=not solid,
        subplot_kw={"projection": "3d"} if solid else {},
    )


def _row(
    axes: Sequence[Axes],
    panels: Sequence[tuple[str, Plane, str]],
    kind: str,
    unit: Unit,
    *,
    legends: int,
) -> None:
    """Draw panels (title, plane, value) by the same levels, colors and limits.

    Args:
        legends: How many of the panels have one.
    """
    marks = _levels([(result, name) for _, result, name in panels])
    for i, (ax, (title, result, name)) in enumerate(zip(axes, panels, strict=True)):
        plane(
            result,
            ax,
            value=name,
            kind=kind,
            unit=unit,
            levels=marks,
            colorbar=False,
            legend=i < legends,
            title=title,
        )
        if i and kind != "surface":
            ax.set_ylabel("")
    for ax, (title, _, _) in zip(axes, panels, strict=True):
        if title:
            _title(ax, title, axes)
    limits = [(*ax.get_xlim(), *ax.get_ylim()) for ax in axes]
    left, right, low, high = zip(*limits, strict=True)
    for ax in axes:
        ax.set_xlim(min(left), max(right))
        ax.set_ylim(min(low), max(high))
    names = {_quantity(name) for _, _, name in panels}
    policies = {_policy(result) for _, result, _ in panels}
    words = names.pop() if len(names) == 1 else _quantity(panels[0][2].rpartition("_")[2])
    words += policies.pop() if len(policies) == 1 else ""
    if marks is not NO_LEVELS:
        _bar(list(axes), ScalarMappable(_scale(marks), COLORS), marks, words)


def convexity(
    result: Convexity, ax: Axes, *, unit: Unit = "step", colorbar: bool = True, legend: bool = True
) -> None:
    """Draw the smallest over the largest eigenvalue of the Hessian, a cell for each point.

    Dark is convex or nearly so, bright is negative curvature beside the positive one. A point with
    an eigenvalue that did not converge has a ring; where there is no ratio, because the largest is
    not finite or not above 0, the cell is crossed out.

    Args:
        unit: As in ``plane``.

    Raises:
        InputError: If the unit is unknown.
    """
    if unit not in UNITS:
        raise InputError(f"a map is drawn by {', '.join(UNITS)}, got {unit!r}: choose one")
    ratio = _numbers(result.ratio).T
    finite = np.ma.masked_invalid(ratio)
    some = not np.all(finite.mask)
    x, y = _places(result, unit)
    handles: list[Any] = [_center(ax)]
    if some:
        low, high = min(float(finite.min()), -0.01), max(float(finite.max()), 0.0)
        drawn = ax.pcolormesh(
            x,
            y,
            finite,
            cmap=f"{COLORS}_r",
            norm=Normalize(low, high),
            shading="nearest",
            rasterized=True,
        )
    if finite.mask.any():
        handles.append(_crossed_out(ax, x, y, ratio, "no ratio", "heat"))
    missed = ~(result.smallest_converged & result.largest_converged)
    missed &= result.smallest.isfinite() & result.largest.isfinite()
    if missed.any():
        j, i = np.nonzero(missed.cpu().numpy().T)
        handles += ax.plot(
            x[i], y[j], "o", color=INK, mfc="none", markersize=6, label="not converged"
        )
    _limits(ax, x, y, cells=True)
    _label(ax, result, unit)
    if colorbar and some:
        doubt = _doubt(result)
        words = rf"$\lambda_{{\min}} / \lambda_{{\max}}$ of the Hessian, $\pm$ {doubt:.1g}"
        bar = _figure(ax).colorbar(drawn, ax=ax)
        bar.set_label(words + _policy(result))
    if legend:
        _legend(ax, handles)


def levels_of(results: Sequence[Plane], value: str | None = None) -> Grid:
    """Return round levels, ascending, that cover a value on all of the planes and on their paths.

    They are those of ``plane``: logarithmic where all that is finite is positive and spans more
    than a decade. Planes that are drawn by the same levels can be compared.

    Raises:
        InputError: If nothing is finite.

    >>> from sharpness.objective import Objective
    >>> from sharpness.planes import plane
    >>> import torch
    >>> model = torch.nn.Linear(2, 1)
    >>> f = Objective(model, [(torch.eye(2), torch.zeros(2, 1))], torch.nn.functional.mse_loss)
    >>> axes, grid = torch.eye(3)[:2], torch.arange(-3, 4)
    >>> found = plane(f, torch.zeros(3), *axes, alphas=grid, betas=grid)
    >>> levels_of([found])  # of (alpha^2 + beta^2) / 2
    array([0., 1., 2., 3., 4., 5., 6., 7., 8., 9.])
    """
    found = _levels([(result, _known(result, value)) for result in results])
    if found is NO_LEVELS:
        raise InputError("levels of planes need a finite value, got none: take smaller planes")
    return found


def _levels(panels: Sequence[tuple[Plane, str]]) -> Grid:
    """Return the levels of panels; where nothing is finite, any."""
    parts = []
    for result, name in panels:
        beside = (result.path_values, result.solution_values)
        parts += [_shown(name, result.values[name]).ravel()]
        parts += [
            _shown(name, part[f"{kind}_{name}"])
            for kind, part in zip(("path", "solution"), beside, strict=True)
            if f"{kind}_{name}" in part
        ]
    known = np.concatenate(parts)
    known = known[np.isfinite(known)]
    if not len(known):
        return NO_LEVELS
    low, high = float(known.min()), float(known.max())
    rates = all(name.endswith("accuracy") for _, name in panels)
    if low > 0 and high / low > 10 and not rates:
        return _decades(low, high)
    room = 0.5 * (high == low) * max(1.0, abs(low))
    ticks = MaxNLocator(10, steps=ROUND, min_n_ticks=5).tick_values(low - room, high + room)
    marks = np.array([float(f"{tick:.10g}") for tick in ticks])  # rounding must not cut the ends
    return np.unique(np.clip(marks, 0, 100) if rates else marks)  # of which 100 is one


def _decades(low: float, high: float) -> Grid:
    """Return logarithmic levels that cover low to high, as many as can be read."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1
    found = np.array([10.0**first, 10.0**last])
    step = 1 + (last - first) // MOST
    for subs in SUBS if step == 1 else SUBS[:1]:
        marks = np.array([s * 10.0**k for k in range(first, last + step, step) for s in subs])
        begin = np.flatnonzero(marks <= low)[-1]
        end = np.flatnonzero(marks >= high)[0]
        if end - begin + 1 > MOST:
            break
        found = marks[begin : end + 1]
    return found


def _scale(marks: Grid) -> Normalize:
    """Return the scale of colors, which is that of the levels."""
    if len(marks) < 2 or not (np.diff(marks) > 0).all():
        raise InputError(
            f"levels need to be at least two that ascend, got {list(marks)}: sort them"
        )
    even = np.allclose(np.diff(marks), marks[1] - marks[0])
    return Normalize(marks[0], marks[-1]) if even or marks[0] <= 0 else LogNorm(marks[0], marks[-1])


def _flat(ax: Axes, x: Grid, y: Grid, Z: Any, kind: str, marks: Grid, scale: Normalize) -> Any:
    options: dict[str, Any] = {"cmap": COLORS, "norm": scale}
    if Z.mask.all():
        return ScalarMappable(scale, COLORS)
    if kind == "heat":
        return ax.pcolormesh(x, y, Z, shading="nearest", rasterized=True, **options)
    if kind == "contour":
        options |= {"linewidths": 1.4, "linestyles": "solid"}
        lines = ax.contour(x, y, Z, levels=_between(marks, Z), **options)
        return ScalarMappable(lines.norm, COLORS)
    drawn = ax.contourf(x, y, Z, levels=marks, **options)
    inner = _between(marks, Z)
    if len(inner):
        ax.contour(x, y, Z, levels=inner, colors=INK, linewidths=0.4, alpha=0.6, linestyles="solid")
    return drawn


def _between(marks: Grid, Z: Any) -> Grid:
    """Return the levels that a contour can have."""
    return marks[(marks > Z.min()) & (marks < Z.max())]


def _surface(ax: Any, x: Grid, y: Grid, Z: Any, scale: Normalize) -> Any:
    """Draw a surface; the axes of three dimensions have no logarithmic scale of their own."""
    X, Y = np.meshgrid(x, y)
    height = _height(Z.filled(np.nan), scale)
    colors = ScalarMappable(scale, COLORS)
    if not Z.mask.all():
        ax.plot_surface(
            X,
            Y,
            height,
            facecolors=colors.to_rgba(Z),
            rcount=len(y),
            ccount=len(x),
            linewidth=0.15,
            edgecolor=(0, 0, 0, 0.35),
            shade=False,
            rasterized=True,
        )
    ax.view_init(**VIEW)
    ax.set_box_aspect((1, 1, 0.8), zoom=0.9)
    ax.computed_zorder = False  # or the surface hides what lies before it
    if isinstance(scale, LogNorm):
        ax.zaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.zaxis.set_major_formatter(FuncFormatter(lambda z, _: f"$10^{{{z:g}}}$"))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=ROUND))
    for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
        axis.set_pane_color((0.97, 0.97, 0.97, 1))
        axis.set_tick_params(labelsize="small", pad=1)
    return colors


def _height(Z: Any, scale: Normalize) -> Any:
    return np.log10(Z) if isinstance(scale, LogNorm) else np.asarray(Z)


def _crossed_out(ax: Any, x: Grid, y: Grid, Z: Grid, words: str, kind: str) -> Any:
    """Mark the points without a number, and cross out what no color covers for their sake."""
    j, i = np.nonzero(~np.isfinite(Z))
    if kind == "surface":
        floor = np.full(len(i), ax.get_zlim()[0])
        return ax.plot(x[i], y[j], floor, "x", color=INK, markersize=4, label=words)[0]
    style: dict[str, Any] = {"facecolor": PALE, "edgecolor": "#7f7f7f", "hatch": HATCH, "lw": 0}
    if kind == "contour":  # which covers nothing: the cells of the points alone
        across, up = _borders(x), _borders(y)
        cells = [
            _cell(across[a], across[a + 1], up[b], up[b + 1]) for a, b in zip(i, j, strict=True)
        ]
        ax.add_patch(PathPatch(Path.make_compound_path(*cells), zorder=0, **style))
    else:
        left, right, low, high = _edges(x, y) if kind == "heat" else (x[0], x[-1], y[0], y[-1])
        ax.add_patch(PathPatch(_cell(left, right, low, high), zorder=0, **style))
    return Patch(**style, label=words)


def _cell(left: float, right: float, low: float, high: float) -> Path:
    return Path([(left, low), (right, low), (right, high), (left, high), (left, low)], closed=True)


def _borders(x: Grid) -> Grid:
    """Return the places half way between points and at the ends, (p + 1,)."""
    return np.concatenate([x[:1], (x[1:] + x[:-1]) / 2, x[-1:]])


def _overlay(
    result: Plane, ax: Any, name: str, unit: Unit, scale: Normalize, kind: str
) -> list[Any]:
    """Draw center, path and solutions, and return what the legend says of them."""
    handles: list[Any] = []
    sizes = _lengths_of(result, unit)
    lost: list[Grid] = []
    options: dict[str, Any] = {"cmap": COLORS, "norm": scale, "edgecolors": INK, "zorder": 6}
    if kind == "surface":
        options["depthshade"] = False
    if len(result.path):
        places = _numbers(result.path) * sizes
        losses = _shown(name, result.path_values[f"path_{name}"])
        far = _numbers(result.path_distances)
        areas = SMALL + (LARGE - SMALL) * far / max(float(far.max()), 1e-300)
        above = [_height(losses, scale)] if kind == "surface" else []
        for color, width in (("white", 2.6), (INK, 1.0)):  # a line that shows on every color
            ax.plot(*places.T, *above, "-", color=color, linewidth=width, zorder=5)
        ax.scatter(*places.T, *above, s=areas, c=losses, linewidths=0.8, **options)
        handles += _path_words(result, areas, name.rpartition("_")[2])
        lost += list(places[~np.isfinite(losses)])
    for i, title in enumerate(result.solutions):
        place = _numbers(result.solution_points[i]) * sizes
        loss = _shown(name, result.solution_values[f"solution_{name}"])[i : i + 1]
        above = [_height(loss, scale)] if kind == "surface" else []
        marker = MARKERS[i % len(MARKERS)]
        ax.scatter(*place[:, None], *above, s=60, marker=marker, c=loss, linewidths=1.0, **options)
        words = f"{title}, {_apart(result, float(result.solution_distances[i]))}"
        handles.append(_mark(marker, 7, words))
        lost += [] if np.isfinite(loss).all() else [place]
    if lost:  # a marker without a color is not drawn
        handles.append(_lost(ax, np.array(lost), f"its own {_word(name)} {LOST}", kind))
    if kind == "surface":
        return handles
    return [_center(ax), *handles]


def _lost(ax: Any, places: Grid, words: str, kind: str) -> Any:
    """Mark points of a path and solutions that have no number."""
    floor = [np.full(len(places), ax.get_zlim()[0])] if kind == "surface" else []
    options: dict[str, Any] = {"markersize": 8, "mew": 1.6, "zorder": 8, "label": words}
    return ax.plot(*places.T, *floor, "x", color="#D55E00", **options)[0]


def _path_words(result: Plane, areas: Grid, value: str) -> list[Line2D]:
    """Return the points of a path that are the nearest to the plane and the farthest."""
    far = _numbers(result.path_distances)
    words = {
        f"path by its own {value}, {_apart(result, far[i])}": i
        for i in (int(far.argmin()), int(far.argmax()))
    }
    return [_mark("o", math.sqrt(areas[i]), text) for text, i in words.items()]


def _apart(result: Plane, distance: float) -> str:
    rounding = 1e-6 * max(result.norm, float(result.lengths.max()))
    return f"{distance:.2g} from the plane" if distance > rounding else "on the plane"


def _mark(marker: str, size: float, label: str) -> Line2D:
    return Line2D(
        [], [], linestyle="", marker=marker, markersize=size, mfc="white", mec=INK, label=label
    )


def _center(ax: Axes) -> Line2D:
    for color, width, size in (("white", 3.0, 8.5), (INK, 1.4, 6.5)):
        drawn = ax.plot(
            0, 0, "+", color=color, markersize=size, mew=width, zorder=9, label="center"
        )
    return drawn[0]


def _bar(axes: Any, drawn: Any, marks: Grid, words: str) -> None:
    """Draw the color bar with the levels as its ticks."""
    first = axes[0] if isinstance(axes, list) else axes
    is_flat = not hasattr(first, "get_zlim")
    beside: dict[str, Any] = {} if is_flat else {"shrink": 0.7, "pad": 0.12}
    bar = _figure(first).colorbar(drawn, ax=axes, **beside)
    step = 1 + (len(marks) - 1) // MOST
    bar.ax.yaxis.set_major_locator(FixedLocator(list(marks[::step])))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda z, _: _number(z)))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    bar.ax.tick_params(labelsize="small")
    bar.set_label(words)


def _number(z: float) -> str:
    if z == 0 or 1e-3 <= abs(z) < 1e4:
        return f"{z:.4g}"
    digits, power = f"{z:.3e}".split("e")
    return rf"${float(digits):g}\times 10^{{{int(power)}}}$".replace(r"1\times ", "", 1)


def _figure(ax: Axes) -> Figure:
    made = ax.get_figure(root=True)
    assert made is not None  # noqa: S101
    return made


def _legend(ax: Axes, handles: list[Any]) -> None:
    """Write the legend above the axes, where it covers nothing."""
    ax.legend(
        handles=handles,
        fontsize="small",
        frameon=False,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        borderaxespad=0.2,
        handletextpad=0.5,
    )


def _title(ax: Axes, title: str, row: Sequence[Axes]) -> None:
    """Write a title above the tallest legend of a row of axes, so that all are on one line."""
    legends = [legend for other in row if (legend := other.get_legend())]
    lines = [sum(1 + text.get_text().count("\n") for text in x.get_texts()) for x in legends]
    ax.set_title(title, fontsize="medium", pad=6 + LINE * max(lines, default=0))


def _label(ax: Any, result: Plane | Convexity, unit: Unit) -> None:
    """Say what the axes are."""
    if hasattr(ax, "zaxis"):  # their axes have no room for it: the legend has
        ax.set_xlabel(r"$\alpha$")
        ax.set_ylabel(r"$\beta$")
        return
    size = "small" if isinstance(result, Plane) and len(result.path) > 2 else "medium"
    ax.set_xlabel(_axis(result, 0, unit), fontsize=size)
    ax.set_ylabel(_axis(result, 1, unit), fontsize=size)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=ROUND))


def _axis(result: Plane | Convexity, i: int, unit: Unit) -> str:
    """Return what an axis is: its name, its length, and what it explains of a path."""
    coordinate, vector = ((r"\alpha", "u"), (r"\beta", "v"))[i]
    length = float(result.lengths[i])
    converged = result.spec.get("directions", {}).get("converged", [])
    axis = result.axes[i] + ("" if all(converged[i : i + 1]) else ", not converged")
    norm = rf"$\Vert {vector} \Vert$ = {length:.3g}"
    words = {
        "step": rf"${coordinate}$, {axis}  ({norm}, "
        rf"{length / result.norm if result.norm else math.inf:#.3g} $\Vert\theta\Vert$)",
        "distance": rf"distance ${coordinate} \Vert {vector} \Vert$, {axis}",
        "relative": rf"${coordinate} \Vert {vector} \Vert / \Vert\theta\Vert$, {axis}",
    }[unit]
    if isinstance(result, Plane) and len(result.path) > 2:
        share, walk = float(result.explained[i]), float(result.random_walk[i])
        words += f"\n{100 * share:.2g} % of the path's variance"
        words += f"\n(of a random walk's {100 * walk:.2g} %)"
    return words


def _places(result: Plane | Convexity, unit: Unit) -> tuple[Grid, Grid]:
    """Return the grid along both axes in this unit."""
    along_u, along_v = _lengths_of(result, unit)
    return along_u * _numbers(result.alphas), along_v * _numbers(result.betas)


def _lengths_of(result: Plane | Convexity, unit: Unit) -> Grid:
    """Return what a step along each axis is in this unit, (2,)."""
    lengths = _numbers(result.lengths)
    return {
        "step": np.ones(2),
        "distance": lengths,
        "relative": lengths / (result.norm or math.nan),
    }[unit]


def _limits(ax: Axes, x: Grid, y: Grid, *, cells: bool) -> None:
    left, right, low, high = _edges(x, y) if cells else (x[0], x[-1], y[0], y[-1])
    ax.set_xlim(left, right)
    ax.set_ylim(low, high)


def _edges(x: Grid, y: Grid) -> tuple[float, float, float, float]:
    """Return where the cells of a heat map end, which are drawn around their points."""
    return (
        x[0] - (x[1] - x[0]) / 2,
        x[-1] + (x[-1] - x[-2]) / 2,
        y[0] - (y[1] - y[0]) / 2,
        y[-1] + (y[-1] - y[-2]) / 2,
    )


def _doubt(result: Convexity) -> float:
    """Return by how much a ratio may be off at most, from the residuals."""
    off = result.smallest_residuals + result.ratio.abs() * result.largest_residuals
    doubt = _numbers(off / result.largest)
    return float(np.nanmax(np.where(np.isfinite(_numbers(result.ratio)), doubt, np.nan)))


def _policy(result: Plane | Convexity) -> str:
    """Return what BatchNorm did, where there is any."""
    if not result.spec.get("batch_norm_layers"):
        return ""
    return f"  (BatchNorm: {result.spec['batch_norm']})"


def _known(result: Plane, value: str | None) -> str:
    name = next(iter(result.values)) if value is None else value
    if name not in result.values:
        raise InputError(
            f"a plane has the values {', '.join(result.values)}, got {name!r}: choose one"
        )
    return name


def _shown(name: str, values: Tensor) -> Grid:
    """Return values as they are drawn: shares of right answers in percent."""
    return _numbers(values) * (100.0 if name.endswith("accuracy") else 1.0)


def _word(name: str) -> str:
    """Return a value's name in words."""
    return name.replace("_", " ")


def _quantity(name: str) -> str:
    return _word(name) + (" (%)" if name.endswith("accuracy") else "")


def _numbers(values: Tensor) -> Grid:
    return np.asarray(values.detach().cpu().double().numpy())
