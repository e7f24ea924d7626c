"""Intervals agree with SciPy and hold what they promise."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from sharpness.comparison import compared, geometric_mean, paired_difference, paired_ratio
from sharpness.errors import InputError


@pytest.mark.parametrize("count", [2, 3, 10])
def test_the_paired_interval_is_scipys(count: int) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, count))
    want = stats.ttest_rel(a, b).confidence_interval(0.95)
    mean, low, high = paired_difference(torch.from_numpy(a), torch.from_numpy(b))
    assert (mean, low, high) == pytest.approx((float((a - b).mean()), want.low, want.high))
    ratios = paired_ratio(torch.from_numpy(np.exp(a)), torch.from_numpy(np.exp(b)))
    assert ratios == pytest.approx([math.exp(x) for x in (mean, low, high)])


def test_ten_pairs_cover_the_truth_in_95_of_100_cases() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(2000):
        a, b = torch.from_numpy(rng.lognormal(size=(2, 10)))
        _, low, high = paired_ratio(a, 3 * b)
        inside += low <= 1 / 3 <= high
    assert 0.94 < inside / 2000 < 0.96  # two standard deviations of 2000 cases


def test_pairs_with_an_unknown_do_not_count() -> None:
    a, b = torch.tensor([1.0, math.nan, 3.0]), torch.tensor([0.0, 0.0, 1.0])
    assert paired_difference(a, b) == paired_difference(a[[0, 2]], b[[0, 2]])


def test_one_pair_has_an_unknown_interval_and_none_an_unknown_mean() -> None:
    mean, low, high = paired_difference(torch.ones(1), torch.zeros(1))
    assert mean == 1
    assert math.isnan(low)
    assert math.isnan(high)
    assert all(map(math.isnan, paired_difference(torch.zeros(0), torch.zeros(0))))
    assert all(map(math.isnan, paired_ratio(torch.zeros(0), torch.zeros(0))))


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(InputError, match="positive numbers, got 0"):
        paired_ratio(torch.ones(2), torch.tensor([1.0, 0.0]))
    with pytest.raises(InputError, match=r"\(2,\) and \(3,\)"):
        paired_difference(torch.ones(2), torch.ones(3))


def test_the_geometric_mean_leaves_unknowns_out() -> None:
    assert geometric_mean(torch.tensor([2.0, math.nan, 8.0])) == pytest.approx(4)
    assert math.isnan(geometric_mean(torch.tensor([math.nan])))


def test_runs_that_missed_the_loss_leave_with_their_partners() -> None:
    lambdas = {"SB": [1.0, 2.0, 3.0, 4.0, 90.0], "LB": [2.0, 8.0, 6.0, 80.0, 5.0]}
    rights = {"SB": [90.0, 91.0, 92.0, 93.0, 5.0], "LB": [89.0, 89.0, 91.0, 10.0, 93.0]}
    found = compared(
        {"lambda_1": lambdas, "test_accuracy": rights},
        {"SB": [True, True, True, True, False], "LB": [True, True, True, False, True]},
        range(5),
        {"LB / SB": ("LB", "SB")},
        spec={"recipe": "planted"},
    )
    assert found.pairs.tolist() == [3]
    ratio = found.ratios["lambda_1_ratio"][0].tolist()
    want = paired_ratio(torch.tensor([2.0, 8.0, 6.0]), torch.tensor([1.0, 2.0, 3.0]))
    assert ratio == pytest.approx(want)
    gap = found.differences["test_accuracy_difference"][0].tolist()  # SB - LB
    assert gap == pytest.approx(paired_difference(torch.tensor([1.0, 2.0, 1.0]), torch.zeros(3)))
    assert found.values["lambda_1"].tolist() == [lambdas["SB"], lambdas["LB"]]
    assert found.groups == ["SB", "LB"]
    assert found.spec["contrasts"] == {"LB / SB": ["LB", "SB"]}


def test_a_ratio_of_numbers_that_are_not_positive_is_unknown_and_no_error() -> None:
    found = compared(
        {"test_loss": {"SB": [1.0, -1.0], "LB": [2.0, 3.0]}},
        {"SB": [True, True], "LB": [True, True]},
        range(2),
        {"LB / SB": ("LB", "SB")},
        spec={},
    )
    assert found.ratios["test_loss_ratio"].isnan().all()
    assert math.isnan(geometric_mean(torch.tensor([1.0, -1.0])))
