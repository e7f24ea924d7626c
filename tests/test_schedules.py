"""Schedules are their closed forms, and torch's own where it has them."""

import inspect
import math
from itertools import pairwise
from typing import Any

import pytest
import torch

from sharpness.errors import InputError
from sharpness.schedules import SCALINGS, SCHEDULES, VALUES, scheduled, warmed

T = 40
OPTIONS: dict[str, dict[str, Any]] = {
    "step": {"milestones": [10, 25], "factor": 0.2},
    "cosine": {"floor": 0.1},
    "linear": {"floor": 0.25},
    "polynomial": {"power": 0.5},
    "triangular": {"half_cycle": 7, "peak": 5.0},
    "triangular2": {"half_cycle": 7, "peak": 5.0},
    "increase-batch": {"milestones": [10, 25], "factor": 3, "most": 4},
}


def rates(name: str, **options: Any) -> list[float]:
    f = scheduled(name, options)
    return [f(t, T).rate for t in range(T)]


def of_torch(make: Any, lr: float = 1.0) -> list[float]:
    """The rates by which torch's scheduler makes the updates."""
    p = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([p], lr=lr, momentum=0.5)
    scheduler, found = make(optimizer), []
    for _ in range(T):
        found.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return found


torch_rates = torch.optim.lr_scheduler


@pytest.mark.parametrize(
    ("name", "options", "make", "lr"),
    [
        (
            "step",
            OPTIONS["step"],
            lambda o: torch_rates.MultiStepLR(o, milestones=[10, 25], gamma=0.2),
            1.0,
        ),
        ("cosine", {}, lambda o: torch_rates.CosineAnnealingLR(o, T_max=T), 1.0),
        ("cosine", {"floor": 0.1}, lambda o: torch_rates.CosineAnnealingLR(o, T, eta_min=0.1), 1.0),
        ("linear", {"floor": 0.25}, lambda o: torch_rates.LinearLR(o, 1.0, 0.25, T), 1.0),
        ("polynomial", {}, lambda o: torch_rates.PolynomialLR(o, T, power=0.5), 1.0),
        ("polynomial", {"power": 3}, lambda o: torch_rates.PolynomialLR(o, T, power=3), 1.0),
        (
            "triangular",
            OPTIONS["triangular"],
            lambda o: torch_rates.CyclicLR(o, 1.0, 5.0, step_size_up=7, cycle_momentum=False),
            1.0,
        ),
        (
            "triangular2",
            OPTIONS["triangular2"],
            lambda o: torch_rates.CyclicLR(
                o, 1.0, 5.0, step_size_up=7, mode="triangular2", cycle_momentum=False
            ),
            1.0,
        ),
    ],
)
def test_rates_are_those_of_the_schedulers_of_torch(
    name: str, options: dict[str, Any], make: Any, lr: float
) -> None:
    # torch multiplies from step to step: some T roundings.
    assert rates(name, **options) == pytest.approx(of_torch(make, lr), rel=1e-12, abs=1e-14)


def test_one_cycle_is_that_of_torch_in_rate_and_momentum() -> None:
    """Torch's last update is at the end of the cycle, and its peak one step before ``rise``."""
    p = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([p], lr=1.0, momentum=0.9)
    theirs = torch_rates.OneCycleLR(optimizer, max_lr=1.0, total_steps=T, pct_start=0.3)
    f = scheduled("one-cycle", {"rise": (0.3 * T - 1) / (T - 1)})
    for t in range(T):
        group, mine = optimizer.param_groups[0], f(t, T - 1)
        assert mine.rate == pytest.approx(group["lr"], rel=1e-12)
        assert mine.momentum == pytest.approx(group["momentum"], rel=1e-12)
        optimizer.step()
        if t < T - 1:
            theirs.step()


@pytest.mark.parametrize(
    ("name", "options", "want"),
    [
        ("constant", {}, {0: 1.0, 20: 1.0, 40: 1.0}),
        ("step", OPTIONS["step"], {0: 1.0, 9: 1.0, 10: 0.2, 24: 0.2, 25: 0.04, 40: 0.04}),
        ("cosine", {}, {0: 1.0, 20: 0.5, 40: 0.0}),
        ("linear", {}, {0: 1.0, 20: 0.5, 40: 0.0}),
        ("polynomial", {}, {0: 1.0, 30: 0.5, 40: 0.0}),
        ("one-cycle", {}, {0: 0.04, 12: 1.0, 26: (1 + 4e-6) / 2, 40: 4e-6}),
        ("triangular", OPTIONS["triangular"], {0: 1.0, 7: 5.0, 14: 1.0, 21: 5.0}),
        ("triangular2", OPTIONS["triangular2"], {0: 1.0, 7: 5.0, 14: 1.0, 21: 3.0, 35: 2.0}),
        ("increase-batch", OPTIONS["increase-batch"], {0: 1.0, 10: 1.0, 25: 4 / 9}),
    ],
)
def test_rates_at_start_middle_milestones_and_end_are_closed_forms(
    name: str, options: dict[str, Any], want: dict[int, float]
) -> None:
    f = scheduled(name, options)
    for t, rate in want.items():
        assert f(t, T).rate == pytest.approx(rate, abs=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_does_not_depend_on_the_unit_of_time(name: str) -> None:
    options = OPTIONS.get(name, {})
    times = {"milestones": lambda x: [8 * t for t in x], "half_cycle": lambda x: 8 * x}
    scaled = {key: times.get(key, lambda x: x)(x) for key, x in options.items()}
    for t in range(T + 1):  # eight is a power of two: nothing is rounded
        assert scheduled(name, options)(t, T) == scheduled(name, scaled)(8 * t, 8 * T)


@pytest.mark.parametrize("options", [{}, {"most": 4}, {"most": 9}])
def test_a_growing_batch_lowers_the_noise_scale_as_the_falling_rate_does(
    options: dict[str, Any],
) -> None:
    grown = scheduled("increase-batch", {"milestones": [10, 25], "factor": 3, **options})
    fallen = scheduled("step", {"milestones": [10, 25], "factor": 1 / 3})
    for t in range(T):
        assert grown(t, T).rate / grown(t, T).batch == pytest.approx(fallen(t, T).rate, rel=1e-15)
        assert grown(t, T).batch <= options.get("most", 9)


def test_a_warm_up_is_a_line_and_then_nothing() -> None:
    factors = [warmed(u, 5) for u in range(8)]
    assert factors[4:] == [1.0] * 4
    assert [b - a for a, b in pairwise(factors[:5])] == pytest.approx([0.2] * 4)
    assert factors[0] == 0.2
    assert warmed(0, 0) == 1.0


def test_the_scalings_keep_what_they_claim() -> None:
    k = 7.0
    assert SCALINGS["linear"](k) / k == 1  # rate over batch: the noise scale
    assert math.isclose(SCALINGS["sqrt"](k) ** 2 / k, 1)  # its square: the covariance of an update


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("sinus", {}, "schedule needs to be one of constant, step, .*, got 'sinus'"),
        ("constant", {"floor": 0.1}, "schedule constant needs no options, got 'floor'"),
        ("cosine", {"milestones": [1]}, "schedule cosine needs floor options, got 'milestones'"),
        ("step", {}, "schedule step needs milestones, got none"),
        (
            "step",
            {"milestones": [5, 3]},
            r"growing times above 0 as milestones, got \[5, 3\]",
        ),
        ("step", {"milestones": 5}, "needs growing times above 0 as milestones, got 5"),
        ("step", {"milestones": [1], "factor": 0}, "needs a number above 0 as factor, got 0"),
        ("linear", {"floor": 1.5}, "needs a number from 0 to 1 as floor, got 1.5"),
        ("polynomial", {"power": -1}, "a number above 0 as power"),
        ("one-cycle", {"rise": 1}, "a number between 0 and 1 as rise"),
        ("one-cycle", {"momenta": [0.5]}, "two numbers .* as momenta"),
        ("one-cycle", {"start": "x"}, "as start, got 'x'"),
        ("triangular", {"half_cycle": True}, "a time above 0 as half_cycle, got True"),
        ("triangular2", {"half_cycle": 2, "peak": 0.5}, "at least 1 as peak"),
        ("increase-batch", {"milestones": [1], "most": 0}, "at least 1 as most"),
    ],
)
def test_options_that_a_schedule_cannot_take_are_refused(
    name: str, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        scheduled(name, options)


def test_every_option_of_every_schedule_is_checked() -> None:
    for f in SCHEDULES.values():
        assert set(list(inspect.signature(f).parameters)[2:]) <= VALUES.keys()
