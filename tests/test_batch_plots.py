"""A picture of mini-batches has every value where it is, and the value of all the data beside."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from sharpness import plots
from sharpness.results import BatchEigenvalues


def made(values: list[float], *more: list[float], whole: float = 3.0, wd: float = 0.0) -> Any:
    """A result of these values of lambda_1, and of further eigenvalues."""
    table = torch.tensor([values, *more]).double().T
    M, k = table.shape
    sure = torch.ones(M, k, dtype=torch.bool)
    all_of = torch.full((k,), whole).double()
    return BatchEigenvalues(
        values=table,
        residuals=0 * table,
        converged=sure,
        losses=0 * table[:, 0],
        weights=0 * table[:, 0] + 5,
        batch_products=torch.full((M,), 9),
        whole_values=all_of,
        whole_residuals=0 * all_of,
        whole_converged=sure[0],
        whole_sampling_errors=0 * all_of,
        whole_loss=0.0,
        examples=5 * M,
        batch_size=5,
        products=9 * M,
        spec={"weight_decay": wd},
    )


def missed(result: Any, *places: int) -> Any:
    converged = result.converged.clone()
    converged[list(places), 0] = False
    return replace(result, converged=converged)


def axes() -> Axes:
    return Figure().subplots()


def curve(ax: Axes, label: str) -> Any:
    """The line of this label."""
    (found,) = (line for line in ax.get_lines() if str(line.get_label()).startswith(label))
    return found


def bars(ax: Axes) -> list[Any]:
    """The bars of a histogram; what comes behind them is the band of its interval."""
    found: list[Any] = list(ax.patches)
    return found[:-1]


def labels(ax: Axes) -> str:
    return "\n".join(ax.get_legend_handles_labels()[1])


VALUES = [2.0, 2.5, 3.0, 4.0, 4.5, 6.0, 9.0]


@pytest.mark.parametrize("scale", [1.0, 1e-6])
@pytest.mark.parametrize("last", [9.0, 90.0])
def test_the_bars_count_the_values_in_them(last: float, scale: float) -> None:
    ax, values = axes(), scale * torch.tensor([*VALUES, last]).double()
    plots.batch_histogram(made(values.tolist(), whole=3 * scale), ax)
    assert ax.get_xscale() == ("log" if last == 90 else "linear")
    assert sum(bar.get_height() for bar in bars(ax)) == len(values)
    for bar in bars(ax):
        low, high = bar.get_x(), bar.get_x() + bar.get_width()
        inside = (values >= low * (1 - 1e-9)) & (values <= high * (1 + 1e-9))
        edges = np.isclose(values, low, rtol=1e-9) | np.isclose(values, high, rtol=1e-9)
        assert int(inside.sum() - edges.sum()) <= bar.get_height() <= int(inside.sum())
    low, high = ax.get_xlim()
    assert low < values.min() < values.max() < high


def test_the_histogram_has_the_mean_its_interval_and_the_value_of_all_the_data() -> None:
    ax, result = axes(), made(VALUES)
    plots.batch_histogram(result, ax)
    mean, low, high = result.mean()
    assert curve(ax, "mean").get_xdata() == [mean, mean]
    band: Any = ax.patches[-1]
    assert band.get_x() == pytest.approx(low)
    assert band.get_x() + band.get_width() == pytest.approx(high)
    assert curve(ax, "all 35 examples: 3").get_xdata() == [3.0, 3.0]
    assert f"mean {mean:.3g} [{low:.3g}, {high:.3g}]" in labels(ax)
    assert "7 mini-batches of 5" in labels(ax)


def test_what_did_not_converge_is_in_no_bar_and_no_mean() -> None:
    ax, result = axes(), missed(made(VALUES), 6, 0)
    plots.batch_histogram(result, ax)
    assert sum(bar.get_height() for bar in bars(ax)) == 5
    assert "5 mini-batches of 5, 2 left out: not converged" in labels(ax)
    assert curve(ax, "mean").get_xdata()[0] == 4.0


@pytest.mark.parametrize("draw", [plots.batch_histogram, plots.batch_violins])
def test_without_any_that_converged_there_is_no_mean(draw: Any) -> None:
    ax, result = axes(), missed(made(VALUES), *range(7))
    draw(result, ax)
    assert "mean" not in labels(ax)
    assert "not converged" in labels(ax)


@pytest.mark.parametrize("draw", [plots.batch_histogram, plots.batch_violins])
def test_one_mini_batch_has_no_interval_and_says_so(draw: Any) -> None:
    ax = axes()
    draw(made([4.0]), ax)
    assert "interval unknown" in labels(ax)


@pytest.mark.parametrize("draw", [plots.batch_histogram, plots.batch_violins])
def test_a_value_of_all_the_data_that_did_not_converge_is_dotted_and_at_least(draw: Any) -> None:
    ax, result = axes(), made(VALUES)
    draw(replace(result, whole_converged=torch.tensor([False])), ax)
    assert curve(ax, "all").get_linestyle() == ":"
    assert "at least" in labels(ax)
    assert "not converged" in labels(ax)


def test_a_row_has_a_dot_for_each_mini_batch_and_hollow_triangles_for_bounds() -> None:
    ax, result = axes(), missed(made(VALUES), 2, 5)
    plots.batch_violins(result, ax)
    dots, bounds = curve(ax, "a mini-batch"), curve(ax, "not converged: at least")
    assert sorted([*dots.get_xdata(), *bounds.get_xdata()]) == VALUES
    assert bounds.get_xdata().tolist() == [3.0, 6.0]
    assert (bounds.get_marker(), bounds.get_markerfacecolor()) == (">", "white")
    assert curve(ax, "all the data").get_xdata().tolist() == [3.0, 3.0]
    heights = [*dots.get_ydata(), *bounds.get_ydata()]
    assert len(set(heights)) == len(VALUES)  # none upon another
    assert all(-0.5 < y < 0 for y in heights)


def test_a_violin_reaches_from_the_least_to_the_largest_and_is_highest_where_most_are() -> None:
    ax, values = axes(), [1.0, 4.9, 5.0, 5.0, 5.1, 8.0]
    plots.batch_violins(made(values), ax)
    (violin,) = (x for x in ax.collections if isinstance(x, PolyCollection))
    (path,) = violin.get_paths()
    x, y = np.asarray(path.vertices).T
    assert (x.min(), x.max()) == (1.0, 8.0)
    assert abs(x[y.argmax()] - 5) < 0.2


@pytest.mark.parametrize("values", [[4.0, 4.0, 4.0], [4.0, 5.0]])
def test_of_equal_or_two_values_no_violin_is_drawn(values: list[float]) -> None:
    ax = axes()
    plots.batch_violins(made(values), ax)
    assert not any(isinstance(x, PolyCollection) for x in ax.collections)


def test_negative_values_have_a_linear_axis() -> None:
    for draw in (plots.batch_histogram, plots.batch_violins):
        ax = axes()
        draw(made([-1.0, 2.0, 300.0]), ax)
        assert ax.get_xscale() == "linear"


def test_an_interval_below_zero_is_cut_at_the_edge_of_a_logarithmic_axis() -> None:
    result = made([0.1, 0.1, 50.0])
    assert result.mean()[1] < 0
    for draw in (plots.batch_histogram, plots.batch_violins):
        figure = Figure()
        ax = figure.subplots()
        draw(result, ax)
        assert ax.get_xscale() == "log"
        figure.draw_without_rendering()


def test_several_results_have_a_row_each_by_name_and_one_legend() -> None:
    ax = axes()
    plots.batch_violins({"SB": made(VALUES), "LB": made([20.0, 30.0, 40.0], whole=15.0)}, ax)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["SB", "LB"]
    assert ax.get_yticks().tolist() == [0, -1]
    told = ax.get_legend_handles_labels()[1]
    assert len(told) == len(set(told))
    assert ax.get_xscale() == "log"


def test_a_figure_of_several_eigenvalues_has_one_axis_and_says_the_weight_decay() -> None:
    result = made(VALUES, [0.1 * x for x in VALUES], wd=0.5)
    figure = plots.drawn(result)
    above, below = figure.axes
    assert above.get_xlim() == below.get_xlim()
    assert below.get_xscale() == above.get_xscale() == "log"
    assert [label.get_text() for label in below.get_yticklabels()] == [
        r"$\lambda_{1}$",
        r"$\lambda_{2}$",
    ]
    assert "weight decay 0.5" in below.get_xlabel()
    assert sum(bar.get_height() for bar in bars(above)) == len(VALUES)
    assert above.get_legend() is not None
