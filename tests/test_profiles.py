"""Barriers and basins of curves whose barriers and basins are known."""

import json
from math import inf, isnan, nan
from pathlib import Path

import pytest
import torch

from sharpness.errors import InputError
from sharpness.profiles import barrier, basin, monotone
from sharpness.results import Line

# As the published curves have them: {f < 0.1} around either end, the ratio of their widths, the
# highest loss between the ends, and the barrier of the test error in points.
CURVES = ("train_loss", "test_accuracy_percent")
PUBLISHED = {
    "C1": ((-0.514, 0.447), (0.983, 1.004), 44.7, 0.874, 10.4),
    "C2": ((-0.530, 0.515), (0.964, 1.128), 6.3, 1.706, 29.2),
    "C3": ((-0.379, 0.291), (0.994, 1.002), 80.3, 2.325, 14.0),
    "C4": ((-0.213, 0.284), (0.995, 1.021), 18.7, 9.030, 62.5),
}


@pytest.mark.parametrize("net", PUBLISHED)
def test_the_published_curves_have_their_basins_and_barriers(net: str) -> None:
    small, large, ratio, highest, points = PUBLISHED[net]
    curves = json.loads((Path(__file__).parent / "keskar_curves.json").read_text())
    alphas, loss, percent = (
        torch.tensor(x, dtype=torch.float64)
        for x in (curves["alphas"], *(curves[net][key] for key in CURVES))
    )
    values = {"train_loss": loss, "test_accuracy": percent / 100}
    between = Line(alphas, values, 1.0, {})
    widths = []
    for at, wanted in ((0.0, small), (1.0, large)):
        found = between.basin(0.1, at=at)
        assert found[:2] == pytest.approx(wanted, abs=1e-3)
        assert found[2:] == (False, False)
        widths.append(found.high - found.low)
    assert widths[0] / widths[1] == pytest.approx(ratio, abs=0.06)
    ends = float(loss[alphas == 0] + loss[alphas == 1]) / 2
    found = between.barrier()
    assert (found.height + ends, found.alpha) == (pytest.approx(highest, abs=6e-4), 0.75)
    assert 100 * between.barrier("test_accuracy").height == pytest.approx(points, abs=0.06)


X = torch.linspace(-1, 2, 31, dtype=torch.float64)


def test_the_two_barriers_differ_by_what_the_ends_differ() -> None:
    # f = 3 x + 4 x (1 - x): above the chord 4 x (1 - x), above the mean 1.5 of the ends 3 - 1.5.
    found = barrier(X, 3 * X + 4 * X * (1 - X))
    assert found.above_chord == pytest.approx(1, abs=1e-14)
    assert (found.height, found.alpha) == (pytest.approx(1.56, abs=1e-14), pytest.approx(0.9))


def test_a_curve_without_a_barrier_has_that_of_its_higher_end() -> None:
    found = barrier(X, X)
    assert (found.height, found.above_chord) == (0.5, pytest.approx(0, abs=1e-15))


def test_what_lies_beyond_the_ends_is_no_barrier() -> None:
    f = torch.where((X < -0.05) | (X > 1.05), 100.0, 0.0)
    assert barrier(X, f)[:2] == (0, 0)
    assert monotone(X, f) == (0, 0)


def test_a_basin_is_that_of_its_point_and_no_other() -> None:
    f = (X * (X - 1)).abs()  # 0 at both ends, 0.25 between them
    first, second = basin(X, f, 0.2), basin(X, f, 0.2, at=1.0)
    assert first.high < 0.5 < second.low
    assert first.low == pytest.approx(1 - second.high)
    assert basin(X, f, 0.3).high == basin(X, f, 0.3, at=1.0).high > 1


def test_a_basin_that_the_grid_cuts_off_says_so_on_that_side() -> None:
    found = basin(X, X.exp(), 2.0)
    assert (found.low, found.low_censored, found.high_censored) == (-1, True, False)
    assert found.high == pytest.approx(torch.tensor(2.0).log().item(), abs=2e-3)


@pytest.mark.parametrize("unknown", [nan, inf])
def test_what_is_not_finite_ends_a_basin_at_the_point_before(unknown: float) -> None:
    f = X.square()
    f[14] = unknown  # at 0.4
    found = basin(X, f, 0.5)
    assert found.high == pytest.approx(0.3)
    assert (found.low_censored, found.high_censored) == (False, True)
    assert not barrier(X, f).height < inf
    assert not monotone(X, f).rise < inf


def test_an_unknown_between_the_ends_is_an_unknown_barrier() -> None:
    f = X.clone()
    f[14] = nan
    assert isnan(barrier(X, f).height)


def test_a_curve_that_falls_and_rises_has_both() -> None:
    assert monotone(X, -X) == (0, pytest.approx(1))
    found = monotone(X, (X - 0.4).square())
    assert found == (pytest.approx(0.36), pytest.approx(0.16))


def test_the_order_of_the_points_plays_no_part() -> None:
    order = torch.randperm(len(X))
    f = (3 * X).sin()
    for asked in (barrier, monotone):
        assert asked(X[order], f[order]) == asked(X, f)
    assert basin(X[order], f[order], 0.5) == basin(X, f, 0.5)


def test_a_grid_in_single_precision_has_its_ends() -> None:
    x = torch.linspace(-0.7, 1.3, 21)
    assert x[7] != 0
    assert barrier(x, x.square()).height == pytest.approx(0.5, rel=1e-6)


def test_places_without_a_point_and_levels_below_it_are_refused() -> None:
    with pytest.raises(InputError, match="a point at 1, got none"):
        barrier(X[:15], X[:15])
    with pytest.raises(InputError, match=r"got 0\.36 at alpha 0.6 and the level 0\.1"):
        basin(X, X.square(), 0.1, at=0.6)
    with pytest.raises(InputError, match="one of loss, got rate"):
        Line(X, {"loss": X}, 1.0, {}).barrier("rate")


def test_the_level_is_above_both_ends_or_unknown() -> None:
    losses = {0.01: 0.1, 0.3: 0.6, nan: nan, inf: nan}
    for end, level in losses.items():
        f = torch.where(X > 0.5, end, 0.01)
        assert Line(X, {"loss": f}, 1.0, {}).level == pytest.approx(level, nan_ok=True)
    assert isnan(Line(X[:15], {"loss": X[:15]}, 1.0, {}).level)
