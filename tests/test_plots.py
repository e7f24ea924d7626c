"""Figures show the numbers of the result, with their names and their doubts."""

import struct
import time
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sharpness import plots
from sharpness.errors import InputError
from sharpness.results import (
    RESULTS,
    Comparison,
    Cut,
    Eigenpairs,
    EpsilonTrend,
    Line,
    Result,
    Run,
    Sharpness,
    SubspaceSharpness,
    Trajectory,
)
from sharpness.store import load, save


def axes() -> Axes:
    made: Axes = plots.figure(4, 3)[1][0][0]
    return made


ALPHAS = torch.linspace(-1, 2, 7, dtype=torch.float64)


def along(names: list[str]) -> Line:
    values = {name: torch.rand(7, dtype=torch.float64) + 0.1 for name in names}
    return Line(ALPHAS, values, 1.0, {})


def test_a_line_has_its_losses_left_and_its_accuracies_right() -> None:
    result = along(["train_loss", "train_accuracy", "test_loss", "test_accuracy"])
    ax = axes()
    twin = plots.line(result, ax)
    assert twin is not None
    drawn = {h.get_label(): h for h in (*ax.get_lines(), *twin.get_lines())}
    for name in result.values:
        part, kind = name.split("_")
        y = torch.as_tensor(drawn[f"{kind}, {part}"].get_ydata())
        assert torch.equal(y, result.values[name] * (100 if kind == "accuracy" else 1))
    assert drawn["loss, train"].get_linestyle() == "-"
    assert drawn["loss, test"].get_linestyle() == "--"
    assert ax.get_yscale() == "log"
    assert (ax.get_ylabel(), twin.get_ylabel()) == ("loss", "accuracy (%)")


@pytest.mark.parametrize("names", [["loss"], ["train_loss", "test_loss"]])
def test_without_an_accuracy_there_is_no_second_axis(names: list[str]) -> None:
    ax = axes()
    assert plots.line(along(names), ax) is None
    assert len(ax.figure.axes) == 1


def test_a_line_with_unknown_losses_is_drawn_where_they_are_known() -> None:
    result = along(["loss"])
    result.values["loss"][2] = torch.nan
    plots.line(result, axes())


def pairs(values: list[float], converged: list[bool]) -> Eigenpairs:
    k = len(values)
    return Eigenpairs(
        values=torch.tensor(values),
        vectors=torch.eye(k),
        residuals=torch.full((k,), 0.1),
        sampling_errors=torch.zeros(k, dtype=torch.float64),
        orthogonality=0.0,
        converged=torch.tensor(converged),
        products=1,
        check_products=1,
        spec={},
    )


def test_pairs_that_did_not_converge_are_hollow_and_named() -> None:
    ax = axes()
    plots.eigenvalues(pairs([3.0, 2.0, 1.0], [True, False, True]), ax, label="H")
    drawn = {h.get_label(): h for h in ax.get_lines()}
    assert drawn["H"].get_xdata().tolist() == [1, 3]
    hollow = drawn["H, not converged"]
    assert hollow.get_xdata().tolist() == [2]
    assert hollow.get_markerfacecolor() == "white"


@pytest.mark.parametrize(("least", "scale"), [(1.0, "log"), (-1.0, "linear")])
def test_the_axis_is_logarithmic_where_all_eigenvalues_are_positive(
    least: float, scale: str
) -> None:
    ax = axes()
    plots.eigenvalues(pairs([3.0, least], [True, True]), ax)
    assert ax.get_yscale() == scale


def test_partners_are_joined_and_means_have_their_intervals() -> None:
    ax = axes()
    columns = {"SB": torch.tensor([1.0, 2.0]), "LB": torch.tensor([3.0, torch.nan])}
    plots.paired(columns, ax, intervals=[(1.5, 1.0, 2.0), (3.0, float("nan"), float("nan"))])
    joined = [h.get_ydata() for h in ax.get_lines() if h.get_color() == plots.GRAY]
    assert [next(iter(y)) for y in joined] == [1.0, 2.0]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["SB", "LB"]
    bars = [c for c in ax.containers if c.has_yerr]
    assert len(bars) == 1  # the unknown interval is not drawn as one of length 0
    (stem,) = bars[0].lines[2]
    assert stem.get_segments()[0][:, 1].tolist() == [1.0, 2.0]
    with pytest.raises(InputError, match="at least one column"):
        plots.paired({}, ax)


@pytest.mark.parametrize("numbers", [[3.0, 4.4, 9.0], [0.98, 1.0, 1.01], [1e-3, 1e-2], [1e-9, 1]])
def test_a_logarithmic_axis_has_labels_whatever_it_spans(numbers: list[float]) -> None:
    made, grid = plots.figure(4, 3)
    plots.paired({"a": torch.tensor(numbers)}, grid[0][0])
    made.draw_without_rendering()
    low, high = grid[0][0].get_ylim()
    ticks = [t for t in grid[0][0].get_yticks() if low <= t <= high]
    labels = {t.get_text() for t in grid[0][0].get_yticklabels()}
    assert 3 <= len(ticks) <= 12
    assert len(labels) == len(grid[0][0].get_yticks())  # no two alike


def test_a_picture_is_a_png_of_the_size_asked_for_and_always_the_same() -> None:
    def picture() -> bytes:
        made, grid = plots.figure(4, 3)
        plots.line(Line(ALPHAS, {"loss": ALPHAS.square() + 1}, 1.0, {}), grid[0][0])
        return plots.png(made, dpi=100)

    data = picture()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (400, 300)
    assert picture() == data


# ---- a figure for each kind ----------------------------------------------------------------

KINDS = pytest.mark.parametrize("kind", RESULTS)
NAN = float("nan")


def curves(ax: Axes) -> dict[str, Any]:
    return {str(drawn.get_label()): drawn for drawn in ax.get_lines()}


def texts(made: Figure) -> list[Any]:
    """All texts of a figure that are shown."""
    found = [made._suptitle, made._supxlabel]  # type: ignore[attr-defined]
    shown = [ax for ax in made.axes if ax.get_visible()]
    shown += [child for ax in shown for child in ax.child_axes]
    for ax in shown:
        found += [*ax.texts, ax.title, ax.xaxis.label, ax.yaxis.label]
        found += ax.get_legend().get_texts() if ax.get_legend() else []
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            found += [label for tick in ticks for label in (tick.label1, tick.label2)]
    return [text for text in found if text and text.get_visible() and text.get_text().strip()]


@KINDS
def test_each_kind_has_a_figure_with_named_axes_in_which_no_words_meet(
    kind: str, results: dict[str, Result], tmp_path: Path
) -> None:
    save(tmp_path / "r.h5", results[kind])
    made = plots.drawn(load(tmp_path / "r.h5"))
    made.draw_without_rendering()
    axes = [ax for ax in made.axes if ax.get_visible()]
    assert any(ax.get_xlabel() for ax in axes)
    assert all(ax.get_ylabel() or ax.get_title() for ax in axes)
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts(made)]
    for text, box in boxes:
        assert (box.min >= -1).all(), text
        assert (box.max <= made.bbox.max + 1).all(), text
    for (one, a), (other, b) in combinations(boxes, 2):
        inner = np.minimum(a.max, b.max) - np.maximum(a.min, b.min)
        assert (inner < 1).any(), (one, other)


@KINDS
@pytest.mark.parametrize("form", plots.FORMATS)
def test_the_same_figure_gives_the_same_bytes_another_day(
    kind: str, form: str, results: dict[str, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = plots.encoded(plots.drawn(results[kind]), form=form, dpi=40)
    monkeypatch.setattr(time, "time", lambda: 1e9)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    assert plots.encoded(plots.drawn(results[kind]), form=form, dpi=40) == first


def test_an_unknown_format_and_an_unknown_kind_are_refused() -> None:
    with pytest.raises(InputError, match="png, pdf, svg, got gif"):
        plots.encoded(plots.figure(1, 1)[0], form="gif")
    with pytest.raises(InputError, match=r"kind Run, Eigenpairs, .*, got int"):
        plots.drawn(3)  # type: ignore[arg-type]


def test_a_training_shows_losses_accuracies_and_the_loss_to_meet(
    results: dict[str, Result],
) -> None:
    run = results["Run"]
    assert isinstance(run, Run)
    record = {**run.spec["train"], "stop_loss": 0.5}
    made = Figure()
    plots.training(replace(run, spec={**run.spec, "train": record}), made)
    above, below = made.axes
    for part, total in (("train", 600), ("test", 1197)):
        drawn = curves(above)[part]
        assert drawn.get_xdata().tolist() == run.history["update"].tolist()
        assert drawn.get_ydata().tolist() == run.history[f"{part}_loss"].tolist()
        right = 100 * run.history[f"{part}_right"].double() / total
        assert curves(below)[part].get_ydata().tolist() == right.tolist()
    assert curves(above)["stop at 0.5"].get_ydata()[0] == 0.5
    assert above.get_yscale() == "log"
    (epochs,) = above.child_axes
    made.draw_without_rendering()
    assert epochs.get_xlim()[1] == pytest.approx(above.get_xlim()[1] / 6)  # 6 updates an epoch


def test_a_run_that_was_read_has_no_curves_and_one_of_a_regression_has_no_accuracy(
    results: dict[str, Result],
) -> None:
    run = results["Run"]
    assert isinstance(run, Run)
    with pytest.raises(InputError, match="needs its history"):
        plots.drawn(replace(run, history={}))
    losses = {k: v for k, v in run.history.items() if "right" not in k}
    made = plots.drawn(replace(run, history=losses))
    assert [ax.get_ylabel() for ax in made.axes] == ["loss"]


def test_a_loss_of_zero_is_not_hidden_by_a_logarithmic_axis() -> None:
    ax = axes()
    plots.line(Line(ALPHAS, {"loss": ALPHAS.square()}, 1.0, {}), ax)
    assert ax.get_yscale() == "linear"


def test_starts_are_told_apart_by_method_and_doubts_are_lines(results: dict[str, Result]) -> None:
    found = results["Sharpness"]
    assert isinstance(found, Sharpness)
    ax = axes()
    plots.starts(found, ax)
    drawn = curves(ax)
    for name, sign in (("L-BFGS-B", False), ("signs", True)):
        values = found.start_values[found.start_signs == sign]
        assert drawn[name].get_ydata().tolist() == values.tolist()
    lines = {name.split()[0]: curve.get_ydata()[0] for name, curve in drawn.items()}
    assert lines["value"] == found.value
    assert found.value == pytest.approx(float(found.start_values.max()), rel=1e-3)
    assert lines["first"] == found.first_order
    assert lines["rounding"] == found.rounding


def test_a_trend_stands_beside_lines_of_slope_1_and_2(results: dict[str, Result]) -> None:
    found = results["EpsilonTrend"]
    assert isinstance(found, EpsilonTrend)
    ax = axes()
    plots.trend(found, ax)
    drawn = curves(ax)
    assert drawn["value"].get_ydata().tolist() == found.values.tolist()
    assert drawn["first order"].get_ydata().tolist() == found.first_order.tolist()
    growth = found.epsilon / found.epsilon[0]
    for power in (1, 2):
        guide = (found.values[0] * growth**power).tolist()
        assert drawn[f"slope {power}"].get_ydata().tolist() == pytest.approx(guide)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    ax = axes()
    plots.trend(replace(found, rounding=found.values[:1].expand(3)), ax)  # all but the first drown
    assert len(curves(ax)["noise"].get_ydata()) == int((found.values <= 10 * found.values[0]).sum())
    ax = axes()
    none = torch.zeros_like(found.values)
    plots.trend(replace(found, values=none, first_order=none), ax)
    assert "value" not in curves(ax)


def test_draws_stand_beside_their_mean_and_its_interval(results: dict[str, Result]) -> None:
    found = results["SubspaceSharpness"]
    assert isinstance(found, SubspaceSharpness)
    ax = axes()
    plots.draws(found, ax)
    assert curves(ax)["draw"].get_ydata().tolist() == found.draw_values.tolist()
    assert curves(ax)["first order"].get_ydata().tolist() == found.draw_first_order.tolist()
    (bars,) = ax.containers
    (stem,) = bars.lines[2]
    assert stem.get_segments()[0][:, 1].tolist() == pytest.approx(found.interval.tolist())
    ax = axes()
    plots.draws(replace(found, interval=torch.tensor([NAN, NAN])), ax)
    assert not ax.containers[0].has_yerr
    assert "mean, interval unknown" in ax.get_legend_handles_labels()[1]


def test_sharpness_along_a_training_is_drawn_over_the_falling_loss(
    results: dict[str, Result],
) -> None:
    found = results["Trajectory"]
    assert isinstance(found, Trajectory)
    assert len(found.updates) > 2
    converged = torch.ones(len(found.updates), dtype=torch.bool)
    converged[1] = False
    made = Figure()
    plots.along(replace(found, converged=converged), made)
    above, below = made.axes
    for ax, wanted in ((above, found.lambda_1), (below, found.metric_2_1)):
        drawn = ax.get_lines()[0]
        assert drawn.get_xdata().tolist() == found.train_loss.tolist()
        assert drawn.get_ydata().tolist() == wanted.tolist()
    assert curves(above)["not converged"].get_xdata().tolist() == [float(found.train_loss[1])]
    assert curves(below)["first order"].get_ydata().tolist() == found.first_order.tolist()
    left, right = below.get_xlim()
    assert left > right


def test_contrasts_have_intervals_and_what_is_unknown_is_marked() -> None:
    found = Comparison(
        groups=["a", "b"],
        seeds=torch.arange(2),
        values={},
        reached=torch.ones(2, 2, dtype=torch.bool),
        contrasts=["known", "no interval", "nothing"],
        ratios={"lambda_1_ratio": torch.tensor([[2.0, 1.5, 3.0], [2.0, NAN, NAN], [NAN] * 3])},
        differences={"test_loss_difference": torch.tensor([[-1.0, -2.0, 0.5]] * 3)},
        pairs=torch.tensor([5, 1, 0]),
        spec={},
    )
    made = plots.drawn(found)
    ratio, difference = made.axes
    assert (ratio.get_xscale(), difference.get_xscale()) == ("log", "linear")
    assert ratio.get_title() == plots.SYMBOLS["lambda_1"]
    assert [ax.get_lines()[0].get_xdata()[0] for ax in made.axes] == [1.0, 0.0]  # no difference
    known, unknown = ratio.containers
    (stem,) = known.lines[2]
    assert stem.get_segments()[0][:, 0].tolist() == [1.5, 3.0]
    assert not unknown.has_xerr
    assert unknown.lines[0].get_markerfacecolor() == "white"
    assert {text.get_text(): text.get_position()[1] for text in ratio.texts}["unknown"] == 2
    labels = [label.get_text() for label in ratio.get_yticklabels()]
    assert labels == ["known  (5)", "no interval  (1)", "nothing  (0)"]
    low, high = ratio.get_ylim()
    assert low > high  # the first is on top
    with pytest.raises(InputError, match="needs a contrast"):
        plots.drawn(replace(found, ratios={}, differences={}))


def test_eigenvalues_of_a_sample_show_its_error(results: dict[str, Result]) -> None:
    found = results["Eigenpairs"]
    assert isinstance(found, Eigenpairs)
    ax = axes()
    plots.eigenvalues(found, ax)
    bars = next(c for c in ax.containers if c.get_label().startswith("sampling error"))
    segments = bars.lines[2][0].get_segments()
    half = [float(s[1, 1] - s[0, 1]) / 4 for s in segments]
    assert half == pytest.approx(found.sampling_errors.tolist(), rel=1e-5)


def test_a_line_shades_the_basins_of_its_ends_and_has_lengths_above() -> None:
    loss = 4 * (ALPHAS * (ALPHAS - 1)).square() + 1e-3
    made = plots.drawn(Line(ALPHAS, {"loss": loss}, 5.0, {}))
    (ax,) = made.axes
    level, shades = 0.1, [patch for patch in ax.patches if patch.get_label() == "loss < 0.1"]
    wanted = [Line(ALPHAS, {"loss": loss}, 5.0, {}).basin(level, at=end)[:2] for end in (0, 1)]
    found = sorted((p.get_x(), p.get_x() + p.get_width()) for p in shades)
    assert found == [pytest.approx(basin) for basin in sorted(wanted)]
    (above,) = ax.child_axes
    made.draw_without_rendering()
    assert above.get_xlim() == pytest.approx([5 * x for x in ax.get_xlim()])
    arc = plots.drawn(Line(ALPHAS, {"loss": loss}, 5.0, {"path": "curvilinear"})).axes[0]
    assert not arc.child_axes
    assert "arc" in arc.get_xlabel()


def test_what_is_not_finite_has_a_cross() -> None:
    values = ALPHAS.square() + 0.01
    values[[1, 5]] = torch.tensor([torch.nan, torch.inf], dtype=torch.float64)
    ax = plots.drawn(Line(ALPHAS, {"loss": values}, 5.0, {})).axes[0]
    assert curves(ax)["not finite"].get_xdata().tolist() == ALPHAS[[1, 5]].tolist()
    assert "not finite" not in curves(plots.drawn(along(["loss"])).axes[0])


def cut_along(kind: str, k: int) -> Cut:
    x = ALPHAS - 0.5
    loss = 0.01 + torch.arange(1, k + 1)[:, None] * x.square()
    return Cut(
        alphas=x,
        directions=torch.eye(k),
        lengths=torch.full((k,), 2.0, dtype=torch.float64),
        values={"train_loss": loss, "train_accuracy": 1 / (1 + loss), "test_loss": 2 * loss},
        slopes=torch.zeros(k, dtype=torch.float64),
        curvatures=2 * torch.arange(1, k + 1).double(),
        curvature_sampling_errors=torch.zeros(k, dtype=torch.float64),
        loss=0.01,
        norm=4.0,
        spec={"directions": {"kind": kind, "converged": [True] * (k - 1) + [False]}},
    )


def test_random_directions_are_a_band_around_their_mean_with_its_parabola() -> None:
    result = cut_along("random", 3)
    upper, lower = plots.drawn(result).axes
    loss = result.values["train_loss"]
    assert curves(upper)["train, mean of 3"].get_ydata().tolist() == loss.mean(dim=0).tolist()
    edges = upper.collections[0].get_paths()[0].vertices[:, 1]
    assert (edges.min(), edges.max()) == (loss.min(), loss.max())
    parabola = curves(upper)["parabola at 0"]
    np.testing.assert_allclose(parabola.get_ydata(), loss.mean(dim=0))
    assert parabola.get_linestyle() == "--"
    assert len(upper.collections) == 2  # train and test
    percent = 100 * result.values["train_accuracy"].mean(dim=0)
    assert curves(lower)["train, mean of 3"].get_ydata().tolist() == percent.tolist()
    (shade,) = upper.patches  # the narrowest of the three, (0.09 / 3)^(1/2) to each side
    assert shade.get_x() == pytest.approx(result.basin(2).low)
    assert upper.child_axes[0].get_xlabel().startswith("distance")


def test_eigenvectors_have_a_curve_and_a_parabola_each() -> None:
    result = cut_along("eigenvectors", 3)
    upper, _ = plots.drawn(result).axes
    for i, row in enumerate(result.values["train_loss"]):
        (mine,) = [
            h for h in upper.get_lines() if str(h.get_label()).startswith(f"$d_{{{i + 1}}}$")
        ]
        assert mine.get_ydata().tolist() == row.tolist()
        assert ("not converged" in mine.get_label()) == (i == 2)
        assert f"= {2 * (i + 1)}" in mine.get_label()
    dashed = [h for h in upper.get_lines() if h.get_linestyle() == "--"]
    assert len(dashed) == 3
    assert not upper.collections


def test_a_parabola_does_not_stretch_the_axis_and_an_unknown_one_is_not_drawn() -> None:
    result = cut_along("random", 2)
    low, high = plots.drawn(result).axes[0].get_ylim()
    steep = replace(result, curvatures=1e6 * result.curvatures)
    assert plots.drawn(steep).axes[0].get_ylim() == (low, high)
    unknown = replace(result, curvatures=torch.full((2,), torch.nan, dtype=torch.float64))
    assert "parabola at 0" not in curves(plots.drawn(unknown).axes[0])
