"""The noise that a linear classifier can take is known from the normal distribution."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.special import ndtri
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from sharpness.bounds import EPSILON, _Sizes, pac_bayes
from sharpness.errors import ComputationError, InputError
from sharpness.objective import Objective
from sharpness.problem import objective_of
from sharpness.results import Measured, Run
from sharpness.training import TrainConfig, train

N = 200


def linear(margins: Tensor) -> Objective:
    """Two classes, one input for each example: margins are moved independently of each other."""
    n = len(margins)
    x, y = torch.eye(n).double(), torch.ones(n).long()
    cut = n // 3
    model = nn.Linear(n, 2, bias=False).double()
    f = Objective(model, [(x[:cut], y[:cut]), (x[cut:], y[cut:])], cross_entropy)
    f.theta.copy_(torch.cat([torch.zeros(n), margins]).double())
    return f


# Noise sigma in both outputs is sqrt(2) sigma in their difference.
QUANTILE = -float(ndtri(0.1))
FLAT = linear(torch.ones(N))


def value(size: float) -> float:
    return 1 / size / math.sqrt(N)


def test_a_tenth_of_a_linear_classifier_falls_at_a_normal_quantile() -> None:
    """With a variance in place of the deviation, 1 / sigma would be off by a fourth."""
    found = pac_bayes(FLAT, draws=60)
    want = value(1 / QUANTILE / math.sqrt(2))
    assert abs(found.value - want) < 4 * found.stderr < 0.1 * want
    assert found.details["accuracy"] == 1
    size = float(found.details["size"])
    assert found.value == pytest.approx(value(size), rel=1e-12)
    assert found.samples["value"].mean() == pytest.approx(found.value, rel=1e-9)
    other = pac_bayes(FLAT, draws=60, deviation=0.3)
    want = value(1 / -float(ndtri(0.3)) / math.sqrt(2))
    assert abs(other.value - want) < 4 * other.stderr


def test_the_interval_covers_in_nineteen_of_twenty_seeds() -> None:
    want = value(1 / QUANTILE / math.sqrt(2))
    seeds = 60
    found = [pac_bayes(FLAT, draws=10, seed=seed).interval.tolist() for seed in range(seeds)]
    covered = sum(low <= want <= high for low, high in found)
    assert covered >= 0.95 * seeds - 4 * math.sqrt(0.95 * 0.05 * seeds)
    assert all(high < 1.5 * want for _, high in found)


def test_relative_noise_is_that_of_each_weight() -> None:
    """Weights of 0 have but epsilon, so that only one of two outputs moves."""
    found = pac_bayes(FLAT, magnitude_aware=True, draws=60)
    assert abs(found.value - value(1 / QUANTILE)) < 4 * found.stderr < 0.1 * value(1 / QUANTILE)


def test_the_scale_of_the_weights_is_no_part_of_relative_noise() -> None:
    one, other = (
        pac_bayes(FLAT, a * FLAT.theta, magnitude_aware=True, draws=4).value for a in (1.0, 4.0)
    )
    assert other == pytest.approx(one, rel=0.01)  # epsilon is a smaller share
    one, other = (pac_bayes(FLAT, a * FLAT.theta, draws=4).value for a in (1.0, 4.0))
    assert 4 * other == pytest.approx(one, rel=1e-12)


@pytest.mark.parametrize("aware", [False, True])
def test_the_worst_perturbation_of_a_linear_classifier_is_that_of_its_margins(
    aware: bool,
) -> None:
    """Margins 1/N, 2/N, ... fall by twice the bound, or by it in proportion and two epsilons."""
    f = linear(torch.arange(1, N + 1) / N)
    found = pac_bayes(f, worst=True, magnitude_aware=aware, draws=2)
    # One more than a tenth of the examples has to be on the other side.
    margin = (0.1 * N + 1) / N
    size = (margin - 2 * EPSILON) / margin if aware else margin / 2
    assert value(size) / 1.003 <= found.value <= value(size)
    assert found.interval.tolist() == [found.value, math.inf]
    assert math.isnan(found.stderr)
    assert found.gradients > 0
    assert found.forwards == 1
    assert found.words.startswith("at least this")


def test_the_worst_of_all_starts_counts_and_the_first_is_the_solution(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Tensor] = []
    found_there = _Sizes._fall_and_slope

    def look(sizes: _Sizes) -> tuple[float, Tensor]:
        seen.append(sizes.there.clone())
        return found_there(sizes)

    monkeypatch.setattr(_Sizes, "_fall_and_slope", look)
    pac_bayes(FLAT, worst=True, draws=1)
    assert torch.equal(seen[0], FLAT.theta)

    def climbed(sizes: _Sizes, e: float, i: int, noise: Tensor) -> float:
        return 0.2 if i == 1 and sizes.size(e) > 0.5 else 0.0

    monkeypatch.setattr(_Sizes, "_climbed", climbed)
    found = pac_bayes(FLAT, worst=True, draws=3)
    assert value(0.5) / 1.003 <= found.value <= value(0.5)


@pytest.fixture(scope="module")
def run() -> Run:
    return train(TrainConfig(model_options={"widths": [8]}, batch_size=50, updates=300))


def measure(found: Measured, N: int) -> float:
    return found.value**2 * N


@pytest.mark.parametrize("form", ["init", "origin"])
def test_the_other_forms_are_their_formulas(form: Any, run: Run) -> None:
    f = objective_of(run)
    assert run.start is not None
    count = int(f.weight())
    w = run.end.theta.double()
    moved = w - run.start.theta.double()
    square = float((moved if form == "init" else w).square().sum())
    found = pac_bayes(f, run=run, form=form, draws=3)
    sigma = float(found.details["size"])
    rest = math.log(count / sigma) + 10
    assert measure(found, count) == pytest.approx(square / (4 * sigma**2) + rest, rel=1e-9)
    assert found.spec["run"] == run.spec
    found = pac_bayes(f, run=run, form=form, worst=True, draws=1)
    above = sorted(float(x) for x in found.details["tried_sizes"])
    alpha = above[above.index(float(found.details["size"])) + 1]
    log = math.log(2 * len(w))
    want = square * log / (4 * alpha**2) + math.log(count / alpha) + 10
    assert measure(found, count) == pytest.approx(want, rel=1e-9)
    found = pac_bayes(f, run=run, form=form, magnitude_aware=True, draws=3)
    sigma = float(found.details["size"])
    total = sum(
        math.log(
            (EPSILON**2 + (sigma**2 + 1) * square / len(w))
            / (EPSILON**2 + sigma**2 * float(x) ** 2)
        )
        for x in moved
    )
    want = total / 4 + math.log(count / sigma) + 10
    assert measure(found, count) == pytest.approx(want, rel=1e-9)


def test_an_accuracy_that_does_not_fall_tells_no_noise() -> None:
    found = pac_bayes(FLAT, -FLAT.theta, draws=2)  # all wrong: no noise makes it worse
    assert math.isnan(found.value)
    assert not found.converged
    assert found.words.startswith("no size from")
    assert found.interval.isnan().all()


def test_one_draw_tells_no_error_and_a_sample_none_of_its_own() -> None:
    assert math.isnan(pac_bayes(FLAT, draws=1).stderr)
    sample = linear(torch.ones(N))
    sample.spec |= {"examples": N, "of": 9 * N}
    found = pac_bayes(sample, draws=3)
    assert math.isnan(found.stderr)
    assert found.interval.isnan().all()
    assert found.value == pytest.approx(pac_bayes(FLAT, draws=3).value / 3, rel=1e-12)


def test_the_passes_are_counted() -> None:
    calls = []

    class Counting(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(len(x))
            return super().forward(x)

    x, y = torch.eye(6).double(), torch.ones(6).long()
    f = Objective(
        Counting(6, 2, bias=False).double(), [(x[:4], y[:4]), (x[4:], y[4:])], cross_entropy
    )
    theta = torch.cat([torch.zeros(6), torch.ones(6)]).double()
    f.value(f.theta)  # which looks twice at the first batch
    for worst in (False, True):
        calls.clear()
        found = pac_bayes(f, theta, worst=worst, draws=2)
        assert sum(calls) == 6 * (found.forwards + found.gradients)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"form": "norm"}, "form needs to be one of flatness, init, origin"),
        ({"deviation": 0.0}, "a deviation between 0 and 1"),
        ({"deviation": math.nan}, "a deviation between 0 and 1"),
        ({"draws": 0}, "at least 1 draw"),
        ({"form": "init"}, "form init needs a run with its start, got no run"),
        ({"form": "origin", "magnitude_aware": True}, "form origin needs a run with its start"),
        ({"form": "init", "magnitude_aware": True, "worst": True}, "leave one of the three out"),
    ],
)
def test_what_is_out_of_range_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        pac_bayes(FLAT, **options)


def test_a_run_without_a_start_has_no_distance_from_it(run: Run) -> None:
    with pytest.raises(InputError, match="got a checkpoint, which has but an end"):
        pac_bayes(objective_of(run), run=replace(run, start=None), form="init")


def test_it_needs_classes_and_a_finite_loss() -> None:
    x = torch.ones(3, 2).double()
    f = Objective(nn.Linear(2, 2).double(), [(x, x)], mse_loss)
    with pytest.raises(InputError, match=r"^pac_bayes needs .* whole labels .* shape \(3, 2\)"):
        pac_bayes(f)
    one = Objective(nn.Linear(2, 1).double(), [(x, x[:, :1])], mse_loss)
    with pytest.raises(InputError, match=r"^pac_bayes needs class scores .* shape \(3, 1\)"):
        pac_bayes(one)
    with pytest.raises(ComputationError, match="finite weights"):
        pac_bayes(FLAT, FLAT.theta * math.nan)
