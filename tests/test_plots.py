"""Figures show the numbers of the result, with their names and their doubts."""

import struct

import pytest
import torch
from matplotlib.axes import Axes

from sharpness import plots
from sharpness.errors import InputError
from sharpness.results import Eigenpairs, Line


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
