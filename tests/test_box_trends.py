"""Metric 2.1 over epsilon: known exponents, and no value below the one before."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sharpness import box_trends
from sharpness.box_sharpness import epsilon_sharpness
from sharpness.box_trends import epsilon_trend
from sharpness.errors import InputError

sys.path.insert(0, str(Path(__file__).parent))
from boxed import SEPARABLE, numbers, quadratic, symmetric, trained


def test_values_never_fall_and_are_those_of_their_displacements() -> None:
    f = trained()
    found = epsilon_trend(f)
    assert (found.values.diff() > 0).all()
    for i, epsilon in enumerate(found.epsilon.tolist()):
        y = found.displacements[i]
        assert (y.abs() <= epsilon * (f.theta.abs() + 1) * (1 + 1e-15)).all()
        assert found.maxima[i] == f.value(f.theta + y)
        one = epsilon_sharpness(f, epsilon=epsilon, starts=1, sign_starts=3, certificate=False)
        assert found.values[i] >= one.value * (1 - 1e-12)
        assert found.first_order[i] == pytest.approx(one.first_order, rel=1e-12)
    assert found.values[0] == one.value or len(found.epsilon) > 1


def test_values_do_not_fall_even_where_a_larger_box_is_searched_badly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The highest point of the smaller box stays one of the larger."""
    true, boxes = box_trends.climbed, []

    def poor(box: Any, ways: Any) -> Any:
        boxes.append(box)
        found = true(box, ways)
        if len(boxes) > 1:
            for climb in found.values():
                climb.best, climb.z = 0.0, torch.zeros_like(climb.z)
        return found

    monkeypatch.setattr(box_trends, "climbed", poor)
    found = epsilon_trend(trained(), epsilons=(1e-3, 2e-3, 3e-3))
    assert found.values[0] > 0
    assert (found.values == found.values[0]).all()
    assert torch.equal(found.displacements[2], found.displacements[0])


def test_each_box_is_searched_from_the_highest_point_of_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    true, begins = box_trends.climbed, []

    def watched(box: Any, ways: Any) -> Any:
        found = true(box, ways)
        begins.append({name: box.metric(climb.begin) for name, climb in found.items()})
        return found

    monkeypatch.setattr(box_trends, "climbed", watched)
    found = epsilon_trend(trained(), epsilons=(1e-3, 2e-3), sign_starts=1)
    assert box_trends.BEFORE not in begins[0]
    assert begins[1][box_trends.BEFORE] == pytest.approx(float(found.values[0]), rel=1e-9)


@pytest.mark.parametrize("power", [1, 2])
def test_the_exponent_of_a_slope_is_1_and_of_curvature_2(power: int) -> None:
    H, g, x = symmetric(0, 6)
    f = quadratic((power - 1) * H, (2 - power) * g, x, 0.1)
    found = epsilon_trend(f, epsilons=(1e-3, 5e-3, 6e-3, 0.1))
    torch.testing.assert_close(found.exponents, torch.full((4,), float(power)).double())
    assert found.first_order_shares.isclose(numbers(2.0 - power)).all()


@pytest.mark.parametrize(
    ("epsilon", "want"), [(1e-3, 0.37449038461538453), (0.05, 17.868589743589745)]
)
def test_each_value_is_that_of_a_separable_quadratic(epsilon: float, want: float) -> None:
    found = epsilon_trend(SEPARABLE, epsilons=(epsilon / 2, epsilon), starts=3)
    assert float(found.values[1]) == pytest.approx(want, rel=1e-9)


def test_the_passes_are_counted() -> None:
    f, calls = trained(), []
    f.value(f.theta)  # the first use looks at the first batch twice
    f.model.register_forward_hook(lambda *_: calls.append(1))
    told: list[tuple[int, int | None]] = []
    found = epsilon_trend(
        f, epsilons=(1e-3, 2e-3), progress=lambda done, total, _: told.append((done, total))
    )
    assert len(calls) / 2 == found.gradients + found.forwards  # of two batches
    # The center, and of each box its maximum and the signs of the gradient.
    assert found.forwards == 1 + 2 * 2
    assert told == [(1, 2), (2, 2)]


def test_exponents_that_cannot_be_told_are_unknown() -> None:
    f = trained()
    assert epsilon_trend(f, epsilons=(1e-3,)).exponents.isnan().all()
    top = quadratic(-torch.eye(2).double(), torch.zeros(2).double(), numbers(0, 1), 1.0)
    found = epsilon_trend(top, epsilons=(1e-3, 1e-2))
    assert found.values.tolist() == [0, 0]
    assert found.exponents.isnan().all()
    assert found.first_order_shares.isnan().all()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"epsilons": ()}, "epsilons that grow, got"),
        ({"epsilons": (1e-3, 1e-3)}, "epsilons that grow"),
        ({"epsilons": (2e-3, 1e-3)}, "sort them"),
        ({"epsilons": (0.0, 1e-3)}, "epsilon_trend needs epsilon above 0"),
        ({"epsilons": (1e-3, float("nan"))}, "epsilons that grow"),
        ({"epsilons": (1e-16, 1e-3)}, "rounding of the weights"),
        ({"starts": 0, "sign_starts": 0}, "epsilon_trend needs a start"),
    ],
)
def test_impossible_requests_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        epsilon_trend(SEPARABLE, **options)
