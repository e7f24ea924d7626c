"""Optimizers do what theory says of their rules, and refuse what they do not take."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sharpness.errors import InputError
from sharpness.optimizers import OPTIMIZERS, OPTIONS, require_options, set_state, state_of
from sharpness.problem import objective_of
from sharpness.training import TrainConfig, record, train

RATE, MOMENTUM = 0.1, 0.9


def made(x: Tensor, **settings: Any) -> tuple[nn.Parameter, torch.optim.Optimizer]:
    config = TrainConfig(**settings)
    require_options(config)
    p = nn.Parameter(x.clone())
    return p, OPTIMIZERS[config.optimizer]([p], config)


def descended(x: Tensor, gradients: list[Tensor], **settings: Any) -> Tensor:
    """Where these gradients lead from x."""
    p, optimizer = made(x, **settings)
    for g in gradients:
        p.grad = g.clone()
        optimizer.step()
    return p.detach()


def spectral_radius(curvature: float, **settings: Any) -> float:
    """Of the linear map of (x, momentum) that one step is on curvature x^2 / 2."""
    columns = []
    for state in torch.eye(2, dtype=torch.float64):
        p, optimizer = made(state[:1], optimizer="sgd", learning_rate=RATE, **settings)
        set_state(optimizer, [p], {"momentum_buffer": state[1:]})
        p.grad = curvature * p.detach()
        optimizer.step()
        columns.append(torch.cat([p.detach(), state_of(optimizer, [p])["momentum_buffer"]]))
    return float(torch.linalg.eigvals(torch.stack(columns, dim=1)).abs().max())


@pytest.mark.parametrize(
    ("settings", "threshold"),
    [
        ({"momentum": MOMENTUM}, 2 * (1 + MOMENTUM) / RATE),
        ({"momentum": MOMENTUM, "nesterov": True}, 2 * (1 + MOMENTUM) / (1 + 2 * MOMENTUM) / RATE),
        ({"momentum": MOMENTUM, "weight_decay": 3.0}, 2 * (1 + MOMENTUM) / RATE - 3.0),
        (
            {"momentum": MOMENTUM, "optimizer_options": {"dampening": 0.5}},
            2 * (1 + MOMENTUM) / (1 - 0.5) / RATE,
        ),
    ],
    ids=["Polyak", "Nesterov", "with decay", "dampened"],
)
def test_momentum_is_stable_just_below_its_threshold_and_not_above(
    settings: dict[str, Any], threshold: float
) -> None:
    assert spectral_radius(0.999 * threshold, **settings) < 1
    assert spectral_radius(1.001 * threshold, **settings) > 1


def test_the_thresholds_of_momentum_are_those_of_the_literature() -> None:
    assert spectral_radius(38.0, momentum=MOMENTUM) == pytest.approx(1, abs=1e-12)
    assert spectral_radius(95 / 7, momentum=MOMENTUM, nesterov=True) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("eta_lambda", [1.5, 3.0, 3.8])
def test_gradient_descent_on_two_layers_follows_the_catapult_map(eta_lambda: float) -> None:
    """Of f = u v / sqrt(n) and the loss f^2 / 2 (Lewkowycz et al. 2020)."""
    n, f = 64, 0.5
    u = torch.randn(n, dtype=torch.float64)
    v = torch.randn(n, dtype=torch.float64)
    v += u * (f * n**0.5 - u @ v) / (u @ u)
    sharp = float(u @ u + v @ v) / n
    eta = eta_lambda / sharp
    p, optimizer = made(torch.cat([u, v]), optimizer="sgd", learning_rate=eta)
    seen = []
    for _ in range(400):
        optimizer.zero_grad()
        z = p[:n] @ p[n:] / n**0.5
        (z.square() / 2).backward()
        optimizer.step()
        f, sharp = (
            (1 - eta * sharp + (eta * f) ** 2 / n) * f,
            sharp + eta * f**2 / n * (eta * sharp - 4),
        )
        now = p.detach()
        seen.append((float(now[:n] @ now[n:]) / n**0.5, float(now @ now) / n, f, sharp))
    for output, norm, f, sharp in seen[:20]:
        assert output == pytest.approx(f, rel=1e-9)
        assert norm == pytest.approx(sharp, rel=1e-9)
    output, norm = seen[-1][:2]
    assert abs(output) < 1e-6
    assert norm < 2 / eta  # it ends where it is stable, also where it began above
    grew = max(abs(x) for x, *_ in seen) > 0.5
    assert grew == (eta_lambda > 2)


def test_the_noise_of_sgd_on_a_quadratic_has_its_stationary_variance() -> None:
    """Eta s^2 / (B h (2 - eta h)), of many independent coordinates."""
    h, eta, s, batch, count = 2.0, 0.3, 1.5, 4, 40_000
    p, optimizer = made(torch.zeros(count), optimizer="sgd", learning_rate=eta)
    for _ in range(40):  # (1 - eta h)^80 of the start is left: 1e-32
        p.grad = h * p.detach() + s / batch**0.5 * torch.randn(count)
        optimizer.step()
    wanted = eta * s**2 / (batch * h * (2 - eta * h))
    # Four standard errors of the variance of so many normal numbers.
    assert float(p.detach().square().mean()) == pytest.approx(wanted, rel=4 * (2 / count) ** 0.5)


G = torch.tensor([0.5, -2.0], dtype=torch.float64)
TWICE = torch.tensor([1.0, -1.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("settings", "gradients", "moved"),
    [
        ({"optimizer": "adam", "optimizer_options": {"eps": 1.0}}, [G], -G / (G.abs() + 1)),
        (
            {"optimizer": "adam", "optimizer_options": {"betas": [0.0, 0.0], "eps": 0.0}},
            [G, 3 * G, -G],
            -G.sign(),
        ),
        (
            {"optimizer": "adam", "optimizer_options": {"betas": [0.0, 0.5], "amsgrad": True}},
            [G, 0 * G],
            -G.sign(),
        ),
        (
            {"optimizer": "adamw", "weight_decay": 0.5, "optimizer_options": {"eps": 1.0}},
            [G],
            -G / (G.abs() + 1) - 0.5,
        ),
        (
            {"optimizer": "sgd", "momentum": 0.5, "optimizer_options": {"dampening": 0.25}},
            [G, TWICE],
            -G - (0.5 * G + 0.75 * TWICE),
        ),
        ({"optimizer": "rmsprop", "optimizer_options": {"alpha": 0.75}}, [G], -2 * G.sign()),
        (
            {"optimizer": "rmsprop", "optimizer_options": {"alpha": 0.75, "eps": 1.0}},
            [G],
            -G / (G.abs() / 2 + 1),
        ),
        (
            {"optimizer": "rmsprop", "optimizer_options": {"alpha": 0.75, "centered": True}},
            [G],
            -G.sign() / (0.25 - 0.0625) ** 0.5,
        ),
        ({"optimizer": "rprop", "optimizer_options": {"etas": [0.5, 2.0]}}, [G, G], -3 * G.sign()),
        (
            {"optimizer": "rprop", "optimizer_options": {"step_sizes": [1e-6, 1.1e-3]}},
            [G, G],
            -2.1 * G.sign(),
        ),
        (
            {"optimizer": "adagrad", "optimizer_options": {"initial_accumulator_value": 3.0}},
            [G],
            -G / (3 + G.square()).sqrt(),
        ),
        (
            {"optimizer": "adagrad", "optimizer_options": {"lr_decay": 1.0, "eps": 1.0}},
            [0 * G, G],
            -G / 2 / (G.abs() + 1),
        ),
    ],
    ids=lambda x: "-".join(["", *x.get("optimizer_options", [])]) if isinstance(x, dict) else "",
)
def test_options_move_the_weights_as_the_rule_says(
    settings: dict[str, Any], gradients: list[Tensor], moved: Tensor
) -> None:
    rate = 1e-3
    start = torch.ones(2, dtype=torch.float64)
    found = (descended(start, gradients, learning_rate=rate, **settings) - start) / rate
    # The default eps of 1e-8 beside |g| of 0.5 at least, and the rounding of 1 + 1e-3.
    torch.testing.assert_close(found, moved, rtol=1e-7, atol=1e-11)


def test_every_optimizer_has_its_options_and_all_of_them_are_taken() -> None:
    assert OPTIONS.keys() == OPTIMIZERS.keys()
    for name, (of, options) in OPTIONS.items():
        own = of([nn.Parameter(torch.ones(1))]).param_groups[0]
        assert set(options) <= own.keys(), name


def linear(**settings: Any) -> TrainConfig:
    """Least squares, whose minimum is known."""
    torch.manual_seed(1)
    x = torch.randn(40, 5, dtype=torch.float64)
    y = torch.randn(40, 2, dtype=torch.float64)
    config = TrainConfig(model=nn.Linear(5, 2), data=((x, y), (x, y)), loss="mse")
    return replace(config, dtype="float64", batch_size=40, threads=1, **settings)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({}, 1e-4),  # it stops at changes of 1e-9 in the loss, whose least curvature is some 0.2
        ({"tolerance_change": 1e-18, "tolerance_grad": 1e-10, "history_size": 4}, 1e-8),
    ],
)
def test_lbfgs_finds_the_minimum_of_least_squares(options: dict[str, Any], error: float) -> None:
    config = linear(optimizer="lbfgs", learning_rate=1.0, updates=4, optimizer_options=options)
    run = train(config)
    x, y = config.data[0]
    solved = torch.linalg.lstsq(torch.cat([x, torch.ones(40, 1)], dim=1), y).solution
    found = torch.cat([run.end.theta[:10].reshape(2, 5), run.end.theta[10:, None]], dim=1)
    torch.testing.assert_close(found, solved.T, rtol=0, atol=error)


def test_the_state_of_lbfgs_is_that_of_its_last_updates() -> None:
    """Its memory holds changes of theta and of the gradient, which the Hessian relates."""
    settings = {"max_iter": 4, "max_eval": 20, "history_size": 2}
    config = linear(optimizer="lbfgs", learning_rate=1.0, updates=1, optimizer_options=settings)
    run = train(config)
    n = len(run.end.theta)
    shapes = {name: tuple(x.shape) for name, x in run.optimizer.items()}
    assert shapes["d"] == shapes["prev_flat_grad"] == (n,)
    assert shapes["old_dirs"] == shapes["old_stps"] == (2, n)
    assert run.optimizer["n_iter"] == 4
    f = objective_of(run, model=config.model, data=config.data)
    for y, s in zip(run.optimizer["old_dirs"], run.optimizer["old_stps"], strict=True):
        slope = f.gradient(run.end.theta + s) - f.gradient(run.end.theta)
        torch.testing.assert_close(y, slope, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_that_is_given_its_state_takes_the_same_steps(name: str) -> None:
    def going(p: nn.Parameter, optimizer: torch.optim.Optimizer, steps: int) -> Tensor:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = (p.square() * torch.arange(1.0, 4.0)).sum() + p.pow(4).sum()
            loss.backward()
            return loss.detach()

        for _ in range(steps):
            optimizer.step(closure)  # type: ignore[arg-type]
        return p.detach()

    settings: dict[str, Any] = {"optimizer": name, "learning_rate": 0.01}
    if name == "lbfgs":
        settings["optimizer_options"] = {"max_iter": 2}
    p, optimizer = made(torch.ones(3), **settings)
    going(p, optimizer, 3)
    q, other = made(p.detach(), **settings)
    set_state(other, [q], state_of(optimizer, [p]))
    before = p.detach().clone()
    assert torch.equal(going(q, other, 3), going(p, optimizer, 3))
    assert not torch.equal(p, before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "adams"}, "optimizer needs to be one of adam, .*, got 'adams'"),
        ({"optimizer": "lbfgs", "weight_decay": 0.1}, "weight_decay needs adam or"),
        ({"optimizer": "rprop", "momentum": 0.1}, "momentum needs sgd or rmsprop"),
        (
            {"optimizer_options": {"beta": 0.9}},
            "optimizer_options of adam need to be of betas, eps, amsgrad, got 'beta': leave it out",
        ),
        ({"optimizer_options": {"betas": 0.9}}, "betas of adam needs 2 finite numbers, got 0.9"),
        ({"optimizer_options": {"betas": [0.9, True]}}, "betas of adam needs 2 finite numbers"),
        ({"optimizer_options": {"betas": [0.9, 1.0]}}, "adam needs options in their ranges, got"),
        ({"optimizer_options": {"eps": float("nan")}}, "eps of adam needs a finite number"),
        ({"optimizer_options": {"amsgrad": 1}}, "amsgrad of adam needs true or false, got 1"),
        (
            {"optimizer": "lbfgs", "optimizer_options": {"max_eval": 0}},
            "max_eval of lbfgs needs a whole number of at least 1, got 0",
        ),
        (
            {
                "optimizer": "sgd",
                "momentum": 0.9,
                "nesterov": True,
                "optimizer_options": {"dampening": 0.5},
            },
            "sgd needs options in their ranges, got others: Nesterov",
        ),
    ],
)
def test_what_an_optimizer_does_not_take_is_refused_in_one_line(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as refused:
        train(TrainConfig(**settings))
    assert "\n" not in str(refused.value)


def test_the_record_tells_options_where_there_are_any() -> None:
    assert "optimizer_options" not in record(TrainConfig())  # as in files of older versions
    config = TrainConfig(optimizer_options={"betas": [0.5, 0.9]})
    assert record(config)["optimizer_options"] == {"betas": [0.5, 0.9]}
