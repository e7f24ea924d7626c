"""Figures of planes show the numbers of the grid where they are, by one scale for all."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from sharpness import plots
from sharpness.errors import InputError
from sharpness.results import Convexity, Plane

A, B = torch.linspace(-1, 1, 5).double(), torch.linspace(-2, 4, 7).double()
NONE = torch.zeros(0, dtype=torch.float64)


def bowl(**changes: Any) -> Plane:
    """A plane whose loss is 0.01 + alpha^2 + beta^2, with nothing beside it."""
    values = {"loss": 0.01 + A[:, None].square() + B.square()}
    nowhere = torch.full((2,), math.nan, dtype=torch.float64)
    made: dict[str, Any] = {
        "alphas": A,
        "betas": B,
        "values": values,
        "axes": ["first", "second"],
        "directions": torch.eye(2),
        "lengths": torch.tensor([3.0, 6.0]).double(),
        "cosine": 0.0,
        "norm": 1.5,
        "path_updates": torch.zeros(0, dtype=torch.int64),
        "path": torch.zeros(0, 2).double(),
        "path_distances": NONE,
        "path_values": {"path_loss": NONE},
        "explained": nowhere,
        "random_walk": nowhere,
        "solutions": [],
        "solution_points": torch.zeros(0, 2).double(),
        "solution_distances": NONE,
        "solution_values": {"solution_loss": NONE},
        "spec": {},
    }
    return Plane(**made | changes)


def trained() -> Plane:
    """The same with a path and a solution."""
    return bowl(
        path_updates=torch.tensor([0, 10, 20]),
        path=torch.tensor([[-0.5, 3.0], [0.5, 1.0], [0.0, 0.0]]).double(),
        path_distances=torch.tensor([2.0, 1.0, 0.0]).double(),
        path_values={"path_loss": torch.tensor([300.0, 0.5, 0.01]).double()},
        explained=torch.tensor([0.75, 0.125]).double(),
        random_walk=torch.tensor([0.625, 0.25]).double(),
        solutions=["other"],
        solution_points=torch.tensor([[0.5, -1.0]]).double(),
        solution_distances=torch.tensor([4.5]).double(),
        solution_values={"solution_loss": torch.tensor([0.002], dtype=torch.float64)},
    )


def axes(kind: str = "filled") -> Axes:
    made = Figure(figsize=(5, 4), layout="constrained")
    return made.add_subplot(projection="3d" if kind == "surface" else None)


def legend(ax: Axes) -> list[str]:
    found = ax.get_legend()
    return [text.get_text() for text in found.get_texts()] if found else []


def test_a_heat_map_has_each_value_at_its_alpha_and_beta() -> None:
    ax = axes()
    plots.plane(bowl(), ax, kind="heat")
    (mesh,) = ax.collections
    corners = mesh.get_coordinates()  # (q + 1, p + 1, 2), around the points
    values = mesh.get_array().reshape(len(B), len(A))
    for i, a in enumerate(A):
        for j, b in enumerate(B):
            middle = corners[j : j + 2, i : i + 2].mean(axis=(0, 1))
            assert middle.tolist() == pytest.approx([float(a), float(b)])
            assert values[j, i] == pytest.approx(0.01 + float(a) ** 2 + float(b) ** 2)
    assert ax.get_xlim() == (-1.25, 1.25)  # no cell is cut


@pytest.mark.parametrize("kind", ["filled", "contour"])
def test_a_contour_lies_where_the_loss_has_its_level(kind: str) -> None:
    a, b = torch.linspace(-1, 1, 81).double(), torch.linspace(-2, 2, 121).double()
    fine = {"loss": a[:, None].square() + b.square() / 4 + 0.01}
    ax = axes()
    plots.plane(bowl(alphas=a, betas=b, values=fine), ax, kind=kind, levels=[0.01, 0.5, 1.0, 3.0])
    lines = ax.collections[-1] if kind == "contour" else ax.collections[1]
    assert lines.levels.tolist() == [0.5, 1.0]  # those inside of the values
    vertices = lines.get_paths()[0].vertices
    on = vertices[:, 0] ** 2 + vertices[:, 1] ** 2 / 4 + 0.01
    assert on.tolist() == pytest.approx([0.5] * len(on), abs=2e-3)


def test_a_surface_is_as_high_as_the_logarithm_of_the_loss() -> None:
    ax: Any = axes("surface")
    plots.plane(bowl(), ax, kind="surface")
    low, high = ax.get_zlim()
    assert low <= math.log10(0.01)
    assert high >= math.log10(17.01)
    assert high - low < 1.2 * math.log10(1701)
    assert ax.get_zlabel() == "loss"


@pytest.mark.parametrize(
    ("unit", "scale", "words"),
    [
        ("step", (1, 1), ["first", "= 3", "2.00"]),
        ("distance", (3, 6), ["distance", "first"]),
        ("relative", (2, 4), ["theta", "first"]),
    ],
)
def test_axes_are_steps_distances_or_parts_of_the_norm_of_theta(
    unit: Any, scale: tuple[int, int], words: list[str]
) -> None:
    ax = axes()
    plots.plane(trained(), ax, unit=unit)
    assert ax.get_xlim() == pytest.approx((-scale[0], scale[0]))
    assert ax.get_ylim() == pytest.approx((-2 * scale[1], 4 * scale[1]))
    assert all(word in ax.get_xlabel() for word in words)
    path = next(c for c in ax.collections if len(c.get_offsets()) == 3)
    want = trained().path * torch.tensor(scale)
    assert path.get_offsets().tolist() == want.tolist()


def test_a_path_has_the_color_of_its_own_loss_and_the_size_of_its_distance() -> None:
    result = trained()
    ax = axes()
    plots.plane(result, ax)
    path = next(c for c in ax.collections if len(c.get_offsets()) == 3)
    assert path.get_array().tolist() == result.path_values["path_loss"].tolist()
    sizes = path.get_sizes()
    assert sizes[0] > sizes[1] > sizes[2] > 0
    assert sizes[0] - sizes[1] == pytest.approx(sizes[1] - sizes[2])
    surface = ax.collections[0]
    for x in (0.002, 0.5, 200.0):  # colors can be compared
        assert path.to_rgba(x) == pytest.approx(surface.to_rgba(x))
    assert surface.norm.vmin <= 0.002  # the solution's loss, below all of the plane
    assert surface.norm.vmax >= 300  # the path's, above all of it
    arrays = [c.get_array() for c in ax.collections if c.get_array() is not None]
    assert [0.002] in [array.tolist() for array in arrays]
    assert "other, 4.5 from the plane" in legend(ax)
    assert "path by its own loss, on the plane" in legend(ax)
    assert "path by its own loss, 2 from the plane" in legend(ax)
    assert "75 % of the path's variance\n(of a random walk's 62 %)" in ax.get_xlabel()
    assert "12 % of the path's variance\n(of a random walk's 25 %)" in ax.get_ylabel()


@pytest.mark.parametrize("kind", plots.KINDS)
def test_points_that_are_not_finite_are_crossed_out_and_named(kind: str) -> None:
    values = bowl().values["loss"].clone()
    values[0, 0], values[2, 3] = math.inf, math.nan
    ax = axes(kind)
    plots.plane(bowl(values={"loss": values}), ax, kind=kind)
    assert "loss not finite" in legend(ax)
    if kind == "surface":
        marks = next(c for c in ax.get_lines() if c.get_label() == "loss not finite")
        assert sorted(zip(*(x.tolist() for x in marks.get_data_3d()[:2]), strict=True)) == [
            (-1.0, -2.0),
            (0.0, 1.0),
        ]
    else:
        (patch,) = ax.patches
        assert patch.get_hatch()
        assert patch.get_zorder() < ax.collections[0].get_zorder()
        for place in ((-0.99, -1.99), (0.1, 1.2)):
            assert patch.get_path().contains_point(place)
        # Contours cover nothing, so that only the cells of these points may be crossed out.
        assert patch.get_path().contains_point((0.5, 3.0)) == (kind != "contour")
    bare = axes(kind)
    plots.plane(bowl(), bare, kind=kind)
    assert "loss not finite" not in legend(bare)
    assert not bare.patches


@pytest.mark.parametrize("kind", plots.KINDS)
@pytest.mark.parametrize("level", [0.0, 1.0, -3e9])
def test_a_plane_of_one_number_is_drawn(kind: str, level: float) -> None:
    made = Figure(figsize=(4, 4), layout="constrained")
    plots.planes({"": bowl(values={"loss": torch.full((5, 7), level).double()})}, made, kind=kind)
    made.draw_without_rendering()


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.005, 3.1), (0.01, 0.2), (1e-9, 1e9), (1e-30, 1e25), (2.0, 20.1), (9.999e-4, 1.0), (3, 4)],
)
def test_levels_cover_all_values_by_round_numbers_that_can_be_told_apart(
    low: float, high: float
) -> None:
    values = torch.tensor([[low, high], [low, low]], dtype=torch.float64)
    marks = plots.levels_of([bowl(values={"loss": values})])
    assert marks[0] <= low < marks[1]
    assert marks[-2] < high <= marks[-1]
    assert 3 <= len(marks) <= 15
    for mark in marks:
        assert len(f"{mark:.10g}".strip("0.").replace(".", "").split("e")[0].strip("0")) <= 3


def test_planes_to_be_compared_share_levels_colors_and_axes() -> None:
    low = bowl()
    high = bowl(
        values={"loss": 100 * low.values["loss"]}, alphas=2 * A, lengths=low.lengths * 0 + 1
    )
    made = Figure(figsize=(9, 4), layout="constrained")
    plots.planes({"low": low, "high": high}, made)
    one, other, bar = made.axes
    scales = [ax.collections[0].norm for ax in (one, other)]
    assert (scales[0].vmin, scales[0].vmax) == (scales[1].vmin, scales[1].vmax)
    assert isinstance(scales[0], LogNorm)
    assert scales[0].vmax >= 1701
    assert np.array_equal(one.collections[0].levels, other.collections[0].levels)
    assert one.get_xlim() == other.get_xlim() == (-2, 2)
    assert bar.get_ylabel() == "loss"
    assert [ax.get_title() for ax in (one, other)] == ["low", "high"]


def test_all_values_are_drawn_with_losses_by_one_scale_and_accuracies_in_percent() -> None:
    loss = bowl().values["loss"]
    names = {"train_loss": loss, "train_accuracy": 1 / (1 + loss), "test_loss": 2 * loss}
    result = bowl(values=names, path_values={}, solution_values={})
    made = plots.drawn(result)
    train, test, accuracy, *others = made.axes
    assert train.collections[0].norm.vmax == test.collections[0].norm.vmax >= 34
    assert accuracy.collections[0].norm.vmax == 100
    labels = [ax.get_ylabel() for ax in others if ax.get_ylabel()]
    assert labels == ["loss", "train accuracy (%)"]


@pytest.mark.parametrize("name", ["train_loss", "test_loss", "train_accuracy"])
def test_each_panel_names_what_is_not_finite_in_it(name: str) -> None:
    loss = bowl().values["loss"]
    values = {"train_loss": loss, "test_loss": 2 * loss, "train_accuracy": 1 / (1 + loss)}
    values[name] = values[name].clone()
    values[name][1, 1] = math.nan
    made = plots.drawn(bowl(values=values, path_values={}, solution_values={}))
    told = [text for ax in made.axes for text in legend(ax) if "not finite" in text]
    assert told == [f"{name.replace('_', ' ')} not finite"]


def test_the_policy_of_batchnorm_is_on_the_figure_where_there_is_any() -> None:
    for layers, want in ((2, "loss  (BatchNorm: reestimate)"), (0, "loss")):
        ax = axes()
        spec = {"batch_norm": "reestimate", "batch_norm_layers": layers}
        plots.plane(bowl(spec=spec), ax)
        assert ax.figure.axes[-1].get_ylabel() == want


def a_map(**changes: Any) -> Convexity:
    true = torch.ones(5, 7, dtype=torch.bool)
    return Convexity(
        **{
            "alphas": A,
            "betas": B,
            "smallest": -A.square()[:, None].expand(5, 7),
            "largest": torch.full((5, 7), 2.0).double(),
            "smallest_residuals": torch.full((5, 7), 0.02).double(),
            "largest_residuals": torch.zeros(5, 7).double(),
            "smallest_converged": true,
            "largest_converged": true,
            "axes": ["first", "second"],
            "directions": torch.eye(2),
            "lengths": torch.ones(2).double(),
            "cosine": 0.0,
            "norm": 1.0,
            "products": 1,
            "spec": {},
        }
        | changes
    )


def test_a_map_shows_the_ratio_with_its_doubt_and_dark_where_the_loss_is_convex() -> None:
    ax = axes()
    plots.convexity(a_map(), ax)
    (mesh,) = ax.collections
    values = mesh.get_array().reshape(7, 5)
    assert values[3].tolist() == pytest.approx((-A.square() / 2).tolist())
    assert "0.01" in ax.figure.axes[-1].get_ylabel()  # 0.02 of 2
    light = [float(np.dot(mesh.to_rgba(x)[:3], [0.3, 0.6, 0.1])) for x in (0.0, -0.25, -0.5)]
    assert light[0] < light[1] < light[2]
    assert legend(ax) == ["center"]


def test_a_map_marks_what_did_not_converge_and_what_has_no_ratio() -> None:
    missed = torch.ones(5, 7, dtype=torch.bool)
    missed[1, 2] = False
    largest = torch.full((5, 7), 2.0).double()
    largest[0, 0], largest[4, 6] = math.nan, -1.0
    ax = axes()
    plots.convexity(a_map(smallest_converged=missed, largest=largest), ax)
    assert legend(ax) == ["center", "no ratio", "not converged"]
    rings = next(line for line in ax.get_lines() if line.get_label() == "not converged")
    assert (rings.get_xdata().tolist(), rings.get_ydata().tolist()) == ([-0.5], [0.0])
    assert ax.collections[0].get_array().mask.sum() == 2
    assert ax.patches[0].get_hatch()


@pytest.mark.parametrize("kind", plots.KINDS)
def test_a_plane_without_a_number_is_crossed_out_and_has_no_color_bar(kind: str) -> None:
    ax = axes(kind)
    plots.plane(bowl(values={"loss": torch.full((5, 7), math.inf)}), ax, kind=kind)
    assert "loss not finite" in legend(ax)
    assert len(ax.figure.axes) == 1
    assert not ax.collections
    if kind != "surface":
        assert ax.patches[0].get_hatch()


def test_a_map_without_a_ratio_is_crossed_out_and_has_no_color_bar() -> None:
    """The largest eigenvalue is no number, or not above 0."""
    ax = axes()
    missed = torch.zeros(5, 7, dtype=torch.bool)
    plots.convexity(a_map(largest=torch.full((5, 7), math.nan), largest_converged=missed), ax)
    assert legend(ax) == ["center", "no ratio"]
    assert len(ax.figure.axes) == 1
    ax = axes()
    plots.convexity(a_map(largest=torch.full((5, 7), -1.0), largest_converged=missed), ax)
    assert legend(ax) == ["center", "no ratio", "not converged"]


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(InputError, match="got 'cloud'"):
        plots.plane(bowl(), axes(), kind="cloud")
    with pytest.raises(InputError, match="got 'miles'"):
        plots.plane(bowl(), axes(), unit="miles")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="got 'miles'"):
        plots.convexity(a_map(), axes(), unit="miles")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="has the values loss, got 'gain'"):
        plots.plane(bowl(), axes(), value="gain")
    with pytest.raises(InputError, match="finite value"):
        plots.levels_of([bowl(values={"loss": torch.full((5, 7), math.nan)})])
    with pytest.raises(InputError, match="at least one plane"):
        plots.planes({}, Figure())
    with pytest.raises(InputError, match="levels need"):
        plots.plane(bowl(), axes(), levels=[1.0, 1.0])


@pytest.mark.parametrize("kind", plots.KINDS)
@pytest.mark.parametrize("form", plots.FORMATS)
def test_every_kind_is_drawn_in_every_format(kind: str, form: str) -> None:
    made = plots.planes_figure({"a": trained(), "b": replace(trained(), norm=2.0)}, kind=kind)
    assert len(plots.encoded(made, form=form, dpi=50)) > 1000
