"""Numbers of the Hessian as measures are those of closed forms, with what certifies them."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sharpness.curvature import Hessian
from sharpness.curvature_measures import (
    eigenvalue_ratio,
    hessian_frobenius,
    hessian_trace,
    largest_eigenvalue,
)
from sharpness.data import digits
from sharpness.errors import InputError
from sharpness.measures import MEASURES
from sharpness.objective import Objective
from sharpness.problem import objective_of
from sharpness.results import Measured, Run
from sharpness.spectrum import trace
from sharpness.training import TrainConfig, train

OF = [largest_eigenvalue, hessian_trace, hessian_frobenius, eigenvalue_ratio]
NAMES = ["lambda-1", "trace", "frobenius", "lambda-ratio"]


@pytest.fixture(scope="module")
def softmax() -> Objective:
    """Softmax regression of all digits at W = 0, whose Hessian is known."""
    (X, y), _ = digits()
    X = X.double()
    model = nn.Linear(X.shape[1], 10, bias=False).double()
    nn.init.zeros_(model.weight)
    return Objective(
        model, list(zip(X.split(700), y.split(700), strict=True)), nn.functional.cross_entropy
    )


def second_moment(f: Objective) -> Tensor:
    X = torch.cat([batch[0] for batch in f.batches])
    return X.T @ X / len(X)


def test_softmax_regression_at_zero_has_its_golden_numbers(softmax: Objective) -> None:
    top = largest_eigenvalue(softmax)
    assert top.value == pytest.approx(1.04552996869546, rel=1e-10)
    assert (top.stderr, top.converged) == (0.0, True)
    assert top.interval[0] <= 1.04552996869546 * (1 + 1e-14)
    assert top.interval[1] >= 1.04552996869546 * (1 - 1e-14)
    assert float(top.details["residual"]) < 1e-7
    assert "an eigenvalue lies within the residual" in top.words
    S = torch.linalg.eigvalsh(second_moment(softmax)).flip(0)
    ratio = eigenvalue_ratio(softmax)  # the first of nine, and the tenth
    assert ratio.value == pytest.approx(float(S[0] / S[1]), rel=1e-7)
    assert ratio.interval[0] <= S[0] / S[1] <= ratio.interval[1]
    assert len(ratio.details["values"]) == 10
    ninth = eigenvalue_ratio(softmax, k=9)
    assert ninth.value == pytest.approx(1, rel=1e-7)


def test_trace_and_norm_of_softmax_regression_lie_in_their_intervals(softmax: Objective) -> None:
    S = second_moment(softmax)
    sum_of_squares = float(9 / 100 * S.square().sum())  # H = (I - 11^T / 10) / 10 (x) S
    found = hessian_trace(softmax, probes=30)
    assert abs(found.value - 13.512779111018364) < 4 * found.stderr
    assert found.interval[0] < found.value < found.interval[1]
    assert float(found.samples["trace"].mean()) == pytest.approx(found.value, rel=1e-12)
    norm = hessian_frobenius(softmax, probes=30)
    assert abs(norm.value - math.sqrt(sum_of_squares)) < 4 * norm.stderr
    assert norm.value**2 == pytest.approx(float(norm.samples["squared"].mean()), rel=1e-12)
    assert norm.value**2 == pytest.approx(float(norm.details["squared"]), rel=1e-12)
    low, high = norm.interval.tolist()
    assert 0 <= low < norm.value < high
    error = float(norm.details["stderr_of_squared"])
    assert norm.stderr == pytest.approx(error / (2 * norm.value))


class Factors(nn.Module):
    """Two factors and the product x u v, whose function a rescaling leaves alone."""

    def __init__(self, a: float) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 2, bias=False), nn.Linear(2, 4, bias=False)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            self.first.weight.copy_(torch.randn(2, 3, generator=generator) * a)
            self.second.weight.copy_(torch.randn(4, 2, generator=generator) / a)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


def scaled_by(a: float) -> Objective:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(20, 3, generator=generator).double()
    y = torch.randint(4, (20,), generator=generator)
    return Objective(Factors(a).double(), [(x, y)], nn.functional.cross_entropy)


@pytest.mark.parametrize("of", OF, ids=NAMES)
def test_only_the_scaled_ones_are_unchanged_by_a_rescaling_of_layers(of: Any) -> None:
    options = {"probes": 60} if of in (hessian_trace, hessian_frobenius) else {}
    one, other = (of(scaled_by(a), scaled=True, **options).value for a in (1.0, 8.0))
    assert one == pytest.approx(other, rel=1e-6)
    one, other = (of(scaled_by(a), **options).value for a in (1.0, 8.0))
    assert abs(one / other - 1) > 0.1


def test_all_probes_of_a_small_matrix_make_the_trace_exact() -> None:
    found = hessian_trace(scaled_by(1.0), probes=60)
    A = dense(scaled_by(1.0))
    assert found.value == pytest.approx(float(A.trace()), rel=1e-10)
    norm = hessian_frobenius(scaled_by(1.0), probes=60)
    assert norm.value == pytest.approx(float(A.norm()), rel=1e-10)


def dense(f: Objective) -> Tensor:
    x, y = next(iter(f.batches))[:2]
    return torch.func.hessian(lambda theta: f.batch_loss(theta, x, y))(f.theta)


def run_of(**options: Any) -> Run:
    how: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.05, "updates": 2} | options
    return train(TrainConfig(model_options={"widths": []}, batch_size=600, threads=1, **how))


@pytest.mark.parametrize(
    ("options", "threshold"),
    [
        ({}, 40.0),
        ({"momentum": 0.5}, 60.0),
        ({"momentum": 0.5, "weight_decay": 0.25}, 59.75),  # of H + wd I
        ({"optimizer": "adam"}, math.nan),
        ({"optimizer": "rprop"}, math.nan),
    ],
)
def test_lambda_1_has_the_threshold_of_sgd(options: dict[str, Any], threshold: float) -> None:
    run = run_of(**options)
    f = objective_of(run, examples=100)
    found = largest_eigenvalue(f, run=run)
    assert found.threshold == pytest.approx(threshold, nan_ok=True)
    assert math.isnan(largest_eigenvalue(f, run=run, scaled=True).threshold)
    assert found.spec["run"] == run.spec
    assert largest_eigenvalue(f, run.end).value == found.value


def test_of_a_sample_the_sampling_error_of_lambda_1_is_told_and_that_of_others_is_unknown() -> None:
    run = run_of()
    f = objective_of(run, examples=200, micro_batch=20)
    found = largest_eigenvalue(f, run.end)
    assert found.stderr > 0
    half = float(found.interval[1]) - found.value
    assert half == pytest.approx(1.96 * found.stderr + float(found.details["residual"]), rel=1e-3)
    for of in OF[1:]:
        other = of(f, run.end)
        assert math.isnan(other.stderr)
        assert "unknown" in other.words
    assert hessian_trace(f, run.end).interval.isnan().all()


def test_a_search_that_does_not_reach_its_tolerance_is_marked() -> None:
    run = run_of()
    f = objective_of(run)
    found = largest_eigenvalue(f, run.end, tol=1e-14)  # below the rounding of float32
    assert not found.converged
    assert "it is a lower bound, not converged" in found.words
    ratio = eigenvalue_ratio(f, run.end, tol=1e-14)
    assert not ratio.converged
    assert ratio.words.endswith("not converged")


def test_a_ratio_over_nothing_is_undefined() -> None:
    x = torch.tensor([[1.0, 0.0]]).double()
    model = nn.Linear(2, 1, bias=False).double()
    f = Objective(model, [(x, x[:, :1])], nn.functional.mse_loss)  # H = diag(2, 0)
    found = eigenvalue_ratio(f, k=2)
    assert math.isnan(found.value)
    assert found.words.startswith("undefined: lambda_2 = ")
    assert found.interval.isnan().all()


@pytest.mark.parametrize("of", OF, ids=NAMES)
def test_the_cost_is_that_of_the_calls_of_the_loss(of: Any) -> None:
    calls: list[int] = []
    f = scaled_by(1.0)

    def loss(z: Tensor, y: Tensor) -> Tensor:
        calls.append(len(y))
        return nn.functional.cross_entropy(z, y)

    found: Measured = of(Objective(f.model, f.batches, loss))
    # The graph, the loss, and a look whether the graph fits.
    assert len(calls) == found.gradients + found.forwards + 1 == 3
    assert found.products > 0
    if of is hessian_trace:
        made = trace(Hessian(f))
        assert found.products == made.products + made.check_products


@pytest.mark.parametrize(("name", "of"), list(zip(NAMES, OF, strict=True)), ids=NAMES)
def test_each_measure_is_listed_under_its_name_and_computed_again_from_its_options(
    name: str, of: Any
) -> None:
    assert MEASURES[name] is of
    f = scaled_by(1.0)
    found = of(f, scaled=True, seed=3)
    assert (found.measure, found.spec["algorithm"]) == (name, name)
    again = MEASURES[name](f, seed=found.spec["seed"], **found.spec["options"])
    assert isinstance(again, Measured)
    assert again.value == found.value


@pytest.mark.parametrize(
    ("of", "options", "words"),
    [
        (eigenvalue_ratio, {"k": 1}, "needs k from 2 to the 14 parameters, got k=1"),
        (eigenvalue_ratio, {"k": 15}, "got k=15"),
        (largest_eigenvalue, {"tol": -1.0}, "tol above 0"),
        (hessian_trace, {"probes": 0}, "probes need"),
        (hessian_frobenius, {"probes": 0}, "probes need"),
    ],
)
def test_numbers_out_of_range_are_refused(of: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        of(scaled_by(1.0), **options)
    assert "\n" not in str(caught.value)


def test_without_classes_the_ratio_needs_its_k() -> None:
    x = torch.ones(3, 2)
    f = Objective(nn.Linear(2, 1), [(x, x[:, :1])], nn.functional.mse_loss)
    with pytest.raises(InputError, match=r"integer targets .* got \(3, 1\) .*: give k"):
        eigenvalue_ratio(f)
