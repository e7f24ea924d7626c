"""Critical sharpness is what closed forms say, within the bound that its bisections leave."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sharpness.critical import critical_sharpness
from sharpness.errors import ComputationError, InputError
from sharpness.objective import Objective
from sharpness.optimizers import OPTIMIZERS
from sharpness.problem import objective_of
from sharpness.results import Run, Solution
from sharpness.training import TrainConfig, train


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def function(of: Callable[[Tensor], Tensor], *x: float, dtype: Any = torch.float64) -> Objective:
    """The objective whose loss is this function of theta, at x."""

    class Function(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.theta = nn.Parameter(torch.tensor(x, dtype=dtype))

        def forward(self, inputs: Tensor) -> Tensor:
            return of(self.theta) * inputs[:, 0]

    one = torch.ones(1, 1, dtype=dtype)
    return Objective(Function(), [(one, one)], lambda z, _: z.mean())


def quadratic(theta: Tensor) -> Tensor:
    return theta.square() @ numbers(4, 1) / 2


FINE = 40  # bisections that leave 1e-12


def test_a_quadratic_has_its_curvature_along_the_gradient() -> None:
    found = critical_sharpness(function(quadratic, 1, 2), bisections=FINE)
    assert found.value == pytest.approx(3.4, rel=1e-11)
    assert float(found.details["eta"]) == pytest.approx(10 / 17, rel=1e-11)
    assert float(found.details["slope"]) == pytest.approx(20, rel=1e-14)
    assert float(found.details["one_step"]) == pytest.approx(3.4, rel=1e-12)
    assert found.loss == pytest.approx(4, rel=1e-14)
    assert (found.stderr, found.converged) == (0.0, True)


@pytest.mark.parametrize("bisections", range(9))
def test_k_bisections_leave_an_error_of_at_most_two_to_the_minus_k_minus_1(bisections: int) -> None:
    worst = 0.0
    for i in range(12):
        found = critical_sharpness(function(quadratic, 1, 1 + i), bisections=bisections)
        x = numbers(1, 1 + i)
        g = x * numbers(4, 1)
        exact = 2 * g @ g / (g @ (numbers(4, 1) * g))
        eta = float(found.details["eta"])
        worst = max(worst, abs(eta / float(exact) - 1))
        assert found.interval[0] <= 2 / exact <= found.interval[1]
        assert found.interval[1] / found.interval[0] <= 1 + 2.0**-bisections * (1 + 1e-12)
    bound = 2.0 ** -(bisections + 1)
    assert bound / 4 < worst <= bound


@pytest.mark.parametrize("p", [2, 4, 6])
def test_of_a_power_it_is_not_the_curvature(p: int) -> None:
    for x in (1.0, 3.0):
        f = function(lambda theta: theta.abs().pow(p).sum() / p, x)
        found = critical_sharpness(f, bisections=FINE)
        curvature = (p - 1) * x ** (p - 2)
        assert found.value == pytest.approx(curvature / (p - 1), rel=1e-10)


def test_a_loss_that_never_rises_has_none() -> None:
    found = critical_sharpness(function(lambda theta: (-theta).exp().sum(), 0.0))
    assert found.value == 0
    assert found.words.startswith("the loss does not rise up to eta = ")
    assert float(found.details["eta"]) == math.inf
    assert found.interval[0] == 0
    assert 0 < found.interval[1] < 1e-15


def test_it_looks_for_the_first_rise_by_doublings_and_may_jump_over_a_barrier() -> None:
    def bump(theta: Tensor) -> Tensor:
        # Down with slope 1 to -40 and up; a narrow barrier around 1.5 on the way.
        x = -theta.sum()
        return (x - 20).abs() - 20 + 5 * (-((x - 1.5) / 0.02).square()).exp()

    found = critical_sharpness(function(bump, 0.0), bisections=FINE, direction="gradient")
    assert float(found.details["eta"]) == pytest.approx(40, rel=1e-9)
    assert "if it rises once only" in found.words


def test_an_increasing_function_of_the_loss_changes_nothing_along_the_same_step() -> None:
    # Of one variable all gradients are along the same line: eta |g| is what stays.
    def loss(theta: Tensor) -> Tensor:
        return (theta.square() / 2 + theta.pow(4) / 8).sum()

    steps = []
    for of in (loss, lambda theta: loss(theta).log1p(), lambda theta: 8 * loss(theta)):
        f = function(of, 1.3)
        found = critical_sharpness(f, bisections=FINE)
        steps.append(float(found.details["eta"] * f.gradient(f.theta).abs().sum()))
    assert steps == pytest.approx(steps[:1] * 3, rel=1e-10)


def test_a_multiple_of_the_loss_multiplies_it_bit_by_bit() -> None:
    one = critical_sharpness(function(quadratic, 1, 2))
    eight = critical_sharpness(function(lambda theta: 8 * quadratic(theta), 1, 2))
    assert eight.value == 8 * one.value


def test_a_first_step_that_is_too_long_is_halved() -> None:
    found = critical_sharpness(function(lambda theta: 100 + quadratic(theta), 1, 2), bisections=20)
    assert found.details["etas"][1] == found.details["etas"][0] / 2
    assert found.value == pytest.approx(3.4, rel=1e-5)


def test_where_the_gradient_is_zero_there_is_none() -> None:
    found = critical_sharpness(function(quadratic, 0, 0))
    assert math.isnan(found.value)
    assert found.words.startswith("undefined: the loss does not fall at first")
    assert not found.converged
    assert found.forwards == 1


def test_a_fall_below_rounding_is_told() -> None:
    f = function(
        lambda theta: 1 + quadratic(theta.double()).to(theta) * 1e-12, 1, 2, dtype=torch.float32
    )
    found = critical_sharpness(f)
    assert not found.converged
    assert "rounding" in found.words


def test_a_loss_that_overflows_has_risen() -> None:
    f = function(lambda theta: (80 * theta).cosh().sum(), 1.0, dtype=torch.float32)
    found = critical_sharpness(f, bisections=20)
    step = float(found.details["eta"]) * float(f.gradient(f.theta))
    assert step == pytest.approx(2, rel=1e-5)  # to -1
    assert found.details["losses"].isinf().any()


def test_a_loss_that_is_no_number_has_risen() -> None:
    f = function(lambda theta: (theta.square() + 0 * (2 - theta.abs()).log()).sum(), 1.0)
    found = critical_sharpness(f, bisections=FINE)
    step = float(found.details["eta"]) * float(f.gradient(f.theta))
    assert step == pytest.approx(2, rel=1e-10)  # to -1; NaN beyond -2
    assert found.details["losses"].isnan().any()


def test_the_cost_is_that_of_the_calls_of_the_loss() -> None:
    calls = []

    def of(theta: Tensor) -> Tensor:
        calls.append(theta.requires_grad)
        return quadratic(theta)

    f = function(of, 1, 2)
    f.value(f.theta)  # which looks twice, once
    calls.clear()
    found = critical_sharpness(f)
    assert calls.count(True) == found.gradients == 1
    assert calls.count(False) == found.forwards
    assert found.forwards == 1 + len(found.details["etas"]) == 1 + len(found.details["losses"])
    assert found.products == 0


# ---- along the update --------------------------------------------------------------------------


def trained(updates: int = 3, **options: Any) -> Run:
    how: dict[str, Any] = {"optimizer": "adam", "learning_rate": 0.01} | options
    return train(
        TrainConfig(
            model_options={"widths": []},
            batch_size=600,
            updates=updates,
            dtype="float64",
            threads=1,
            **how,
        )
    )


UPDATES = [
    {"optimizer": "sgd"},
    {"optimizer": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    {"optimizer": "rmsprop", "momentum": 0.5},
    {"optimizer": "adam"},
    {"optimizer": "adamw", "weight_decay": 0.1},
    {"optimizer": "adagrad"},
    {"optimizer": "rprop"},
]


@pytest.mark.parametrize("options", UPDATES, ids=lambda o: o["optimizer"])
def test_the_update_is_that_of_the_training_that_goes_on(options: dict[str, Any]) -> None:
    run, following = trained(3, **options), trained(4, **options)
    f = objective_of(run)
    found = critical_sharpness(f, run=run, direction="update", bisections=FINE)
    delta = (run.end.theta - following.end.theta) / 0.01
    slope = f.gradient(run.end) @ delta
    torch.testing.assert_close(float(found.details["slope"]), float(slope), rtol=1e-9, atol=0)
    # The first trial is the update itself.
    torch.testing.assert_close(
        float(found.details["losses"][0]), float(f.value(following.end)), rtol=1e-12, atol=0
    )
    assert float(found.details["etas"][0]) == 0.01
    assert found.threshold == 200
    eta = float(found.details["eta"])
    for factor, rises in ((0.999, False), (1.001, True)):
        there = f.value(Solution(run.end.theta - factor * eta * delta, run.end.buffers))
        assert bool(there > found.loss) == rises


def test_adam_at_its_edge_has_2_over_eta_along_its_update_and_not_38_over_eta() -> None:
    # On h x^2 / 2 with P = 1 and h = 38 / eta, averages of gradients let x' = -x for ever:
    # m before is -(2 / eta) x, and after .9 m + .1 h x it is (2 / eta) x.
    eta, x = 0.1, 1.0
    h = 38 / eta
    f = function(lambda theta: h * theta.square().sum() / 2, x)
    run = trained(1, learning_rate=eta)
    steps = 10_000  # until corrections of the averages are over
    state = {
        "exp_avg": numbers(-2 / eta * x),
        "exp_avg_sq": numbers((1 - 0.001 * (h * x) ** 2) / 0.999),  # below 0, to be 1 after
        "step": numbers(steps),
    }
    edge = replace(run, end=Solution(numbers(x), {}), optimizer=state)
    found = critical_sharpness(f, run=edge, direction="update", bisections=FINE)
    assert found.value == pytest.approx(2 / eta, rel=1e-4)  # 0.999^10000 is 5e-5
    assert found.threshold == pytest.approx(2 / eta)


def test_momentum_that_climbs_leaves_it_undefined() -> None:
    run = trained(optimizer="sgd", momentum=0.9)
    f = objective_of(run)
    up = -100 * f.gradient(run.end)
    found = critical_sharpness(
        f, run=replace(run, optimizer={"momentum_buffer": up}), direction="update"
    )
    assert math.isnan(found.value)
    assert float(found.details["slope"]) < 0
    assert found.words.startswith("undefined: the loss does not fall at first")


def test_the_update_of_float32_weights_is_not_rounded_as_they_are() -> None:
    how: dict[str, Any] = {"model_options": {"widths": []}, "batch_size": 600, "threads": 1}
    run = train(TrainConfig(optimizer="sgd", learning_rate=1e-6, updates=2, **how))
    f = objective_of(run)
    found = critical_sharpness(f, run=run, direction="update")
    g = f.gradient(run.end).double()
    torch.testing.assert_close(float(found.details["slope"]), float(g @ g), rtol=1e-6, atol=0)


def test_the_gradient_has_a_threshold_where_it_is_the_update() -> None:
    plain, adam = trained(optimizer="sgd"), trained()
    assert critical_sharpness(objective_of(plain), run=plain).threshold == 200
    other = critical_sharpness(objective_of(adam), run=adam)
    assert math.isnan(other.threshold)
    assert "the gradient is not the update" in other.words
    assert other.spec["run"] == adam.spec
    assert other.spec["options"] == {"direction": "gradient", "bisections": 6}


def test_of_a_sample_of_the_examples_the_error_is_unknown() -> None:
    run = trained()
    found = critical_sharpness(objective_of(run, examples=100), run=run)
    assert math.isnan(found.stderr)
    assert "of these examples alone" in found.words


def test_splitting_the_data_does_not_change_it() -> None:
    run = trained()
    values = [
        critical_sharpness(objective_of(run, micro_batch=size), run=run, bisections=FINE).value
        for size in (600, 77)
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-10)


def test_training_leaves_the_state_of_the_run_as_it_is() -> None:
    run = trained()
    before = {name: x.clone() for name, x in run.optimizer.items()}
    critical_sharpness(objective_of(run), run=run, direction="update")
    assert all(torch.equal(before[name], x) for name, x in run.optimizer.items())
    assert OPTIMIZERS.keys() >= {options["optimizer"] for options in UPDATES}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda f, run: critical_sharpness(f, direction="newton"), "direction of gradient, update"),
        (lambda f, run: critical_sharpness(f, bisections=-1), "0 to 52 bisections, got -1"),
        (lambda f, run: critical_sharpness(f, bisections=2.5), "0 to 52 bisections, got 2.5"),
        (lambda f, run: critical_sharpness(f, direction="update"), "needs a run with an optimizer"),
        (
            lambda f, run: critical_sharpness(f, f.theta + 1, run=run, direction="update"),
            "the end of its run, got another",
        ),
        (
            lambda f, run: critical_sharpness(
                f, run=replace(run, stopped="read", spec={"train": {}}), direction="update"
            ),
            "a checkpoint that was read",
        ),
    ],
)
def test_what_it_cannot_be_taken_of_is_refused(call: Callable[..., Any], words: str) -> None:
    run = trained(1)
    with pytest.raises(InputError, match=words) as caught:
        call(objective_of(run), run)
    assert "\n" not in str(caught.value)


def test_a_loss_that_is_not_finite_stops_it() -> None:
    with pytest.raises(ComputationError, match="critical_sharpness needs a finite"):
        critical_sharpness(function(lambda theta: theta.log().sum(), 0.0))
