"""Figures of spectra draw what the result says, and say what it leaves to chance."""

import math
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from sharpness import plots
from sharpness.curvature import Dense
from sharpness.errors import InputError
from sharpness.lanczos import eigsh
from sharpness.results import Density, Diagonal, Estimate
from sharpness.spectrum import density
from sharpness.spectrum_plots import default_width

NAN = float("nan")
NO_COST: dict[str, Any] = {"products": 0, "check_products": 0, "spec": {}}
SCALES = pytest.mark.parametrize("log", [False, True], ids=["linear", "log"])


def axes() -> Axes:
    made: Axes = plots.figure(5, 3.6)[1][0][0]
    return made


def doubles(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def labels(ax: Axes) -> list[str]:
    return [str(label) for label in ax.get_legend_handles_labels()[1]]


def curve(ax: Axes, start: str) -> Any:
    (found,) = [line for line in ax.get_lines() if str(line.get_label()).startswith(start)]
    return found


def band(ax: Axes, label: str) -> Any:
    (found,) = [area for area in ax.collections if area.get_label() == label]
    return found


def spectrum(*nodes: list[float], known: Tensor | None = None, size: int = 100) -> Density:
    """A density whose probes have these nodes, each of equal weight."""
    rows = torch.tensor(nodes, dtype=torch.float64)
    weights = torch.full_like(rows, 1 / rows.shape[1])
    return Density(rows, weights, doubles() if known is None else known, size, **NO_COST)


def rotated(values: Tensor, probes: int, *, deflated: int = 0) -> Density:
    """The density of a dense operator with these eigenvalues."""
    n = len(values)
    Q = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))[0]
    A = Dense(Q @ torch.diag(values.double()) @ Q.T)
    return density(A, probes=probes, steps=15, deflate=eigsh(A, deflated) if deflated else None)


# ---- densities ---------------------------------------------------------------------------------


@SCALES
def test_the_line_of_a_density_is_its_mean_and_the_band_its_interval(log: bool) -> None:
    found = rotated(torch.linspace(-1, 2, 40), probes=4)
    ax, width = axes(), 0.2
    plots.density(found, ax, width=width, log=log)
    drawn = curve(ax, "n = 40")
    x = torch.as_tensor(drawn.get_xdata(), dtype=torch.float64)
    mean, low, high = found.on_log(x.log10(), width) if log else found.on(x, width)
    floor = 0.01 / (40 * width * math.sqrt(2 * math.pi))
    y = torch.as_tensor(drawn.get_ydata())
    assert torch.equal(y.isnan(), mean < floor)
    assert torch.allclose(y[~y.isnan()], mean[mean >= floor], rtol=1e-9)
    edges = np.concatenate([path.vertices for path in band(ax, "95 % interval").get_paths()])
    for i in torch.nonzero(high > floor * 1.01).flatten()[::7]:
        column = edges[np.isclose(edges[:, 0], float(x[i]), rtol=1e-12, atol=1e-12), 1]
        assert column.min() == pytest.approx(float(low[i].clamp(min=floor)))
        assert column.max() == pytest.approx(float(high[i]))


def test_the_line_of_a_density_has_unit_mass() -> None:
    ax = axes()
    plots.density(spectrum([0.0, 1.0, 5.0], [0.1, 2.0, 4.0]), ax)
    drawn = curve(ax, "n = 100")
    y = np.nan_to_num(drawn.get_ydata())
    assert np.trapezoid(y, drawn.get_xdata()) == pytest.approx(1, rel=1e-3)


@SCALES
def test_a_spectrum_of_one_value_is_one_normal_curve(log: bool) -> None:
    for value in (1.0, -3e-8, 7e5):
        ax = axes()
        found = density(Dense(value * torch.eye(20).double()), probes=2)
        plots.density(found, ax, log=log)
        width = 0.1 if log else default_width(found)
        drawn = curve(ax, "n = 20")
        peak = np.nanmax(drawn.get_ydata())
        assert peak == pytest.approx(1 / (width * math.sqrt(2 * math.pi)), rel=0.02)
        at = float(drawn.get_xdata()[np.nanargmax(drawn.get_ydata())])
        assert at == pytest.approx(abs(value) if log else value, rel=0.1)
        low, high = ax.get_xlim()
        assert low < at < high


def test_a_spectrum_of_zeros_has_a_density_but_none_of_logarithms() -> None:
    found = spectrum([0.0], [0.0])
    plots.density(found, axes())
    with pytest.raises(InputError, match="needs an eigenvalue above rounding"):
        plots.density(found, axes(), log=True)


@SCALES
@pytest.mark.parametrize("width", [0.0, -1.0, NAN])
def test_a_width_that_is_not_above_zero_is_refused(log: bool, width: float) -> None:
    with pytest.raises(InputError, match="width above 0"):
        plots.density(spectrum([1.0, 2.0]), axes(), width=width, log=log)


@SCALES
def test_one_probe_has_no_band_and_says_that_the_interval_is_unknown(log: bool) -> None:
    ax = axes()
    plots.density(rotated(torch.linspace(1, 2, 40), probes=1), ax, log=log)
    assert not ax.collections
    assert "n = 40, 1 probe, 15 steps, interval unknown" in labels(ax)
    ax = axes()
    plots.density(rotated(torch.linspace(1, 2, 40), probes=3), ax, log=log)
    assert "n = 40, mean of 3 probes, 15 steps" in labels(ax)
    assert "95 % interval" in labels(ax)
    assert not any("unknown" in label for label in labels(ax))


@SCALES
def test_known_eigenvalues_and_nodes_are_marked_where_they_are(log: bool) -> None:
    values = torch.cat([torch.linspace(-1, 1, 38), torch.tensor([8.0, 9.0])])
    found = rotated(values, probes=2, deflated=2)
    ax = axes()
    plots.density(found, ax, log=log)
    assert curve(ax, "2 known, exact").get_xdata().tolist() == pytest.approx([9, 8])
    nodes = found.nodes.flatten().abs() if log else found.nodes.flatten()
    assert curve(ax, "nodes").get_xdata().tolist() == nodes.tolist()
    ax = axes()
    plots.density(rotated(values, probes=2), ax, log=log)
    assert not any("known" in label for label in labels(ax))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e5])
def test_no_peak_falls_between_the_points_of_a_line(scale: float) -> None:
    found = spectrum([0.0, 0.5 * scale, 0.77 * scale, scale])
    ax = axes()
    plots.density(found, ax)
    y, width = curve(ax, "n = 100").get_ydata(), default_width(found)
    inner = y[1:-1][(y[1:-1] > y[:-2]) & (y[1:-1] > y[2:])]
    assert len(inner) == 4
    # Within half a step, 1 / 6 of a width, a normal curve falls by 1.4 %.
    np.testing.assert_allclose(inner, 0.25 / (width * math.sqrt(2 * math.pi)), rtol=0.015)


def test_the_width_is_that_of_ghorbani_and_no_more_than_a_share_of_a_small_range() -> None:
    assert default_width(spectrum([-20.0, 80.0])) ** 2 == pytest.approx(1e-5 * 100)
    assert default_width(spectrum([0.0, 1.0])) ** 2 == pytest.approx(1e-5)
    assert default_width(spectrum([0.0, 1e-4])) == pytest.approx(1e-5**0.5 * 1e-4)
    with_known = spectrum([0.0, 1.0], known=doubles(100.0))
    assert default_width(with_known) ** 2 == pytest.approx(1e-5 * 100)


def test_negative_eigenvalues_are_drawn_by_themselves_over_logarithms() -> None:
    found = spectrum([-0.1, 1.0, 2.0, 3.0], [-0.2, 1.0, 2.0, 3.0], known=doubles(9.0), size=101)
    ax = axes()
    plots.density(found, ax, log=True)
    dashed = curve(ax, "negative")
    assert dashed.get_label() == "negative: 25 % (25 to 25)"
    below = spectrum([-0.1] + [1e-200] * 3, [-0.2] + [1e-200] * 3, known=doubles(0.0), size=101)
    x = torch.as_tensor(dashed.get_xdata())
    wanted = below.on_log(x.log10(), 0.1)[0]
    y = torch.as_tensor(dashed.get_ydata())
    assert torch.allclose(y[~y.isnan()], wanted[~y.isnan()], rtol=1e-6)
    assert 0.1 < x[~y.isnan()].log10().diff().sum() < 2
    ax = axes()
    plots.density(spectrum([1.0, 2.0]), ax, log=True)
    assert not any("negative" in label for label in labels(ax))


def test_what_is_zero_to_rounding_is_told_and_does_not_stretch_the_axis() -> None:
    ax = axes()
    plots.density(spectrum([0.0, 1e-17, 1.0, 2.0], [0.0, 0.0, 1.0, 3.0]), ax, log=True)
    assert "zero to rounding: 50 % (50 to 50)" in labels(ax)
    assert ax.get_xlim()[0] > 0.1


@pytest.mark.parametrize("probes", [1, 3])
def test_words_of_a_drawn_density_do_not_meet(probes: int) -> None:
    values = torch.cat([torch.zeros(10), torch.linspace(-1, 1, 38), torch.tensor([8.0, 9.0])])
    made = plots.drawn(rotated(values, probes=probes, deflated=2))
    made.draw_without_rendering()
    above, below = made.axes
    assert (above.get_xlabel(), below.get_xlabel()) == ("eigenvalue", "|eigenvalue|")
    assert [ax.get_yscale() for ax in made.axes] == ["log", "log"]
    assert [ax.get_xscale() for ax in made.axes] == ["linear", "log"]
    assert_apart(made)


# ---- estimates ---------------------------------------------------------------------------------


def estimate(samples: Tensor, interval: Tensor, *, met: bool = True) -> Estimate:
    value = 10 + float(samples.mean())
    spec = {"rtol": 0.01}
    cost = {"products": 9, "check_products": 2}
    return Estimate("trace", value, 0.5, interval, 10.0, samples, met, **cost, spec=spec)


def test_samples_stand_with_their_exact_part_beside_the_value_and_its_interval() -> None:
    ax = axes()
    plots.estimate(estimate(doubles(1, 2, 6), doubles(12, 14)), ax)
    assert curve(ax, "sample").get_ydata().tolist() == [11, 12, 16]
    assert curve(ax, "exact part 10").get_ydata()[0] == 10
    (bar,) = ax.containers
    assert bar.lines[0].get_ydata().tolist() == [13]
    assert bar.lines[0].get_markerfacecolor() == "#000000"
    (stem,) = bar.lines[2]
    assert stem.get_segments()[0][:, 1].tolist() == [12, 14]
    assert bar.get_label() == "13, 95 % interval"
    assert ax.get_ylabel() == "trace"


def test_an_estimate_of_one_sample_has_no_bar_and_an_unknown_interval() -> None:
    ax = axes()
    plots.estimate(estimate(doubles(1), doubles(NAN, NAN)), ax)
    (bar,) = ax.containers
    assert not bar.has_yerr
    assert bar.get_label() == "11, interval unknown"
    assert bar.lines[0].get_markerfacecolor() == "white"


def test_a_tolerance_that_was_not_met_is_told() -> None:
    ax = axes()
    plots.estimate(estimate(doubles(1, 2, 6), doubles(12, 14), met=False), ax)
    (bar,) = ax.containers
    assert bar.get_label() == "13, 95 % interval, NOT within rtol 0.01"
    assert bar.lines[0].get_markerfacecolor() == "white"


def test_an_estimate_without_an_exact_part_has_no_line_of_it() -> None:
    ax = axes()
    plots.estimate(replace(estimate(doubles(1, 2), doubles(11, 12)), exact=0.0), ax)
    assert not any("exact" in label for label in labels(ax))


def test_an_interval_that_rounding_puts_beside_the_value_is_drawn() -> None:
    ax = axes()
    plots.estimate(estimate(doubles(1, 1), doubles(11 + 1e-12, 11 - 1e-12)), ax)
    assert ax.containers[0].has_yerr


@pytest.mark.parametrize("count", [1, 2, 11, 24, 300])
def test_words_of_a_drawn_estimate_do_not_meet(count: int) -> None:
    made = plots.drawn(estimate(torch.rand(count).double(), doubles(9, 11), met=False))
    assert_apart(made)


# ---- diagonals ---------------------------------------------------------------------------------


def diagonal(values: Tensor, stderr: Tensor) -> Diagonal:
    return Diagonal(values, stderr, 4, **NO_COST)


def test_a_diagonal_is_sorted_with_its_standard_errors_as_a_band() -> None:
    ax = axes()
    plots.diagonal(diagonal(doubles(1, 9, 4), doubles(0.1, 0.9, 0.4)), ax)
    drawn = curve(ax, "3 entries, 4 samples")
    assert drawn.get_xdata().tolist() == [1, 2, 3]
    assert drawn.get_ydata().tolist() == [9, 4, 1]
    edges = band(ax, r"$\pm$1.96 standard errors").get_paths()[0].vertices
    for rank, value, error in ((1, 9, 0.9), (2, 4, 0.4), (3, 1, 0.1)):
        column = edges[edges[:, 0] == rank, 1]
        assert column.min() == pytest.approx(value - 1.96 * error)
        assert column.max() == pytest.approx(value + 1.96 * error)
    assert ax.get_yscale() == "log"
    assert not any("below" in label for label in labels(ax))


def test_negative_entries_are_dashed_and_counted_and_the_axis_has_both_signs() -> None:
    ax = axes()
    plots.diagonal(diagonal(doubles(5, -1, -3, 0, -2), doubles(1, 1, 1, 0, 1)), ax)
    dashed = curve(ax, "3 below 0, 2 with their band")
    assert [y for y in dashed.get_ydata() if not math.isnan(y)] == [-1, -2, -3]
    assert dashed.get_linestyle() == "--"
    whole = [y for y in curve(ax, "5 entries").get_ydata() if not math.isnan(y)]
    assert whole == [5, 0]
    assert ax.get_yscale() == "symlog"


def test_a_band_below_zero_does_not_stretch_the_axis_of_positive_entries() -> None:
    ax = axes()
    plots.diagonal(diagonal(doubles(5, 1), doubles(10, 10)), ax)
    ax.get_figure().draw_without_rendering()  # type: ignore[union-attr]
    assert ax.get_ylim()[0] == pytest.approx(1 / 3)


def test_a_diagonal_of_one_sample_has_no_band_and_unknown_intervals() -> None:
    ax = axes()
    plots.diagonal(diagonal(doubles(2, -1), doubles(NAN, NAN)), ax)
    assert not ax.collections
    assert labels(ax) == ["2 entries, 4 samples, interval unknown", "1 below 0, interval unknown"]


def test_the_ends_of_a_long_diagonal_are_drawn_and_of_the_rest_so_many_as_can_be_seen() -> None:
    ax = axes()
    values = torch.arange(1, 10**5 + 1).double()
    plots.diagonal(diagonal(values, torch.zeros_like(values)), ax)
    y = curve(ax, "100,000 entries").get_ydata()
    assert (y[0], y[-1]) == (1e5, 1)
    assert len(y) == 2000


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0], [3.0], [-3.0], [1e-9, 1e6], [-1e-9, 1e6]])
def test_every_diagonal_has_a_figure_in_which_no_words_meet(values: list[float]) -> None:
    numbers = doubles(*values)
    for stderr in (numbers.abs() / 10, torch.full_like(numbers, NAN)):
        assert_apart(plots.drawn(diagonal(numbers, stderr)))


def assert_apart(made: Figure) -> None:
    """Words of legends, labels and numbers of the axes lie within the picture, and none on another.

    Warnings are errors, so that a picture that cannot be laid out fails too.
    """
    made.draw_without_rendering()
    found = []
    for ax in made.axes:
        legend = ax.get_legend()
        found += [*legend.get_texts()] if legend else []
        found += [ax.xaxis.label, ax.yaxis.label]
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            found += [t.label1 for t in axis.get_major_ticks() if low <= t.get_loc() <= high]
    boxes = [(x.get_text(), x.get_window_extent()) for x in found if x.get_text().strip()]
    for text, box in boxes:
        assert (box.min >= -1).all(), text
        assert (box.max <= made.bbox.max + 1).all(), text
    for (one, a), (other, b) in combinations(boxes, 2):
        inner = np.minimum(a.max, b.max) - np.maximum(a.min, b.min)
        assert (inner < 1).any(), (one, other)
