"""What a batch-size experiment varies and holds, and the arms that follow."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import pairwise
from typing import Any

from sharpness.errors import InputError
from sharpness.schedules import SCALINGS as RATE_SCALINGS, scaled_rate


@dataclass(frozen=True)
class Design:
    """What is varied and what is held; the fields that ``TrainConfig`` has too mean the same.

    Those that are None are filled in by ``filled``, for each kind of design by its own rule.
    """

    design: str = "pair"
    model: str = "mlp"
    model_options: dict[str, Any] = field(default_factory=dict)
    data: str = "digits"
    loss: str = "cross_entropy"
    train_examples: int | None = None
    seeds: int | None = None
    batch_sizes: list[int] | None = None
    rates: list[float] | None = None  # of Adam
    noise: float = 0.2  # share of wrong labels of the noisy condition
    level: float = 1e-2  # the training loss where all trainings end
    updates: int | None = None  # the cap
    epsilon: float = 1e-3  # of Metric 2.1
    scalings: list[str] | None = None  # of ``SCALINGS``, in place of several rates


@dataclass(frozen=True)
class Arm:
    """One way to train; the fields that ``TrainConfig`` has too mean the same."""

    key: str  # in file names
    name: str  # in tables
    batch_size: int
    learning_rate: float
    rate_scaling: str | None = None
    base_batch_size: int | None = None
    scalings: list[str] | None = None  # those of the design under which it is this training

    @property
    def columns(self) -> Sequence[float | str]:
        """What it has in common with arms of other batch sizes: the scaling, or the rate."""
        return self.scalings or [self.learning_rate]


@dataclass(frozen=True)
class Kind:
    """A kind of design: its open ends and its arms."""

    seeds: int
    updates: int
    batch_sizes: Callable[[int], list[int]]  # of the number of training examples
    rates: list[float]
    arms: Callable[[Design], list[Arm]]


CHECK_EVERY = 2  # updates: the full batch at a high rate overshoots the level by half in ten
# Examples: as many as two updates of the base batch see. Smaller batches move less in an update,
# and a look at all examples after every two of them costs as much as the updates.
CHECK_EXAMPLES = 16
BASE = 8  # batch size whose rate is scaled, where it is in the design
SCALINGS = ("fixed", *RATE_SCALINGS)
# A scaled rate may be too high to ever meet the level. A training that just meets 1e-2 within the
# cap has its loss fall by a tenth every 800 updates.
PATIENCE, IMPROVEMENT = 2_000, 0.1
QUICK = {"seeds": 2, "level": 0.1}
# Where sharpness is looked at along the training, in units of the level where it ends.
ALONG = (100.0, 30.0, 10.0, 3.0)


def _pair(design: Design) -> list[Arm]:
    sizes, rates = design.batch_sizes or [], design.rates or []
    if len(sizes) != 2 or len(rates) != 1:
        raise InputError(
            f"the design pair needs two batch sizes and one rate, got {sizes} and {rates}: take "
            "the design batch-rate for more"
        )
    (small, large), rate = sizes, rates[0]
    scaled = rate * math.sqrt(large / small)
    return [
        Arm("sb", f"SB {small}", small, rate),
        Arm("lb", f"LB {large}", large, rate),
        Arm("lb-sqrt", f"LB {large}, rate x{scaled / rate:.2f}", large, scaled),
    ]


def _grid(design: Design) -> list[Arm]:
    if design.scalings:
        return _scaled(design, design.scalings)
    return [
        Arm(f"b{size}-r{rate:g}", f"batch {size}, rate {rate:g}", size, rate)
        for size in design.batch_sizes or []
        for rate in design.rates or []
    ]


def _scaled(design: Design, scalings: Sequence[str]) -> list[Arm]:
    """Return the arms of each batch size and scaling; one at the base, where they are the same."""
    sizes, (rate,) = design.batch_sizes or [], design.rates or []
    base = BASE if BASE in sizes else sizes[0]
    found = []
    for B in sizes:
        for scaling in scalings if base != B else ["base"]:
            by = scaling if scaling in RATE_SCALINGS else None
            found.append(
                Arm(
                    f"b{B}-{scaling}",
                    f"batch {B}, {scaling}, rate {scaled_rate(rate, by, B / base):.3g}",
                    B,
                    rate,
                    rate_scaling=by,
                    base_batch_size=base if by else None,
                    scalings=[scaling] if base != B else list(scalings),
                )
            )
    return found


KINDS = {
    "pair": Kind(10, 20_000, lambda n: [8, n], [1e-3], _pair),
    "batch-rate": Kind(6, 40_000, lambda n: [8, n // 10, n], [3e-4, 1e-3, 2.7e-3, 8.7e-3], _grid),
}


def filled(design: Design, examples: int) -> Design:
    """Return the design with its open ends filled in, checked.

    Raises:
        InputError: If it cannot be met with so many training examples.
    """
    if design.design not in KINDS:
        raise InputError(
            f"design needs to be one of {', '.join(KINDS)}, got {design.design!r}: choose one"
        )
    kind = KINDS[design.design]
    sizes = kind.batch_sizes(examples) if design.batch_sizes is None else design.batch_sizes
    rates = design.rates
    if rates is None:
        rates = KINDS["pair"].rates if design.scalings else kind.rates
    whole = replace(
        design,
        batch_sizes=list(sizes),
        rates=list(rates),
        seeds=kind.seeds if design.seeds is None else design.seeds,
        updates=kind.updates if design.updates is None else design.updates,
    )
    if not (whole.seeds or 0) >= 1:
        raise InputError(f"keskar needs seeds of at least 1, got {whole.seeds}: raise it")
    if not (_ascends(sizes) and len(sizes) > 1 and sizes[0] >= 1 and sizes[-1] <= examples):
        raise InputError(
            f"keskar needs two batch sizes or more, ascending, from 1 to {examples}, got "
            f"{', '.join(map(str, sizes))}: change them"
        )
    if not (_ascends(rates) and rates and rates[0] > 0 and math.isfinite(rates[-1])):
        raise InputError(
            f"keskar needs rates above 0, ascending, got {', '.join(f'{x:g}' for x in rates)}: "
            "change them"
        )
    if design.scalings is not None:
        _require_scalings(whole, design.scalings)
    if not 1e-5 <= design.epsilon < math.inf:  # rounding of float32 weights loses less
        raise InputError(f"keskar needs epsilon >= 1e-5, got {design.epsilon}: change it")
    if not (design.level > 0 and math.isfinite(design.level)):
        raise InputError(f"keskar needs a level above 0 and finite, got {design.level}: change it")
    return whole


def arms(design: Design) -> list[Arm]:
    """Return the ways to train of a design that is filled in, the small batch's first."""
    return KINDS[design.design].arms(design)


def base_of(arms: Sequence[Arm]) -> Arm | None:
    """Return the arm at the base batch size, where the rate is scaled from one."""
    return next((arm for arm in arms if arm.scalings and arm.key.endswith("-base")), None)


def check_every(design: Design, batch_size: int) -> int:
    """Return after how many updates the training loss is looked at.

    >>> [check_every(Design(scalings=["sqrt"]), B) for B in (1, 4, 8, 600)]
    [16, 4, 2, 2]
    """
    if not design.scalings:  # their trainings are in older files too
        return CHECK_EVERY
    return max(CHECK_EVERY, math.ceil(CHECK_EXAMPLES / batch_size))


def record(part: Design | Arm) -> dict[str, Any]:
    """Return a design or an arm as files have it; what it has no use for is left out.

    So designs that do without have the record of files that are older than the fields.
    """
    later = {"scalings", "rate_scaling", "base_batch_size"} & {f.name for f in fields(part)}
    values = asdict(part)
    return {k: x for k, x in values.items() if k not in later or x is not None}


def _require_scalings(design: Design, scalings: Sequence[str]) -> None:
    if design.design != "batch-rate":
        raise InputError(
            f"scalings need the design batch-rate, got {design.design}: choose it, or leave them "
            "out"
        )
    if not scalings or len({*scalings}) < len(scalings) or not {*scalings} <= {*SCALINGS}:
        raise InputError(
            f"scalings need to be of {', '.join(SCALINGS)}, each once, got "
            f"{', '.join(map(str, scalings)) or 'none'}: change them"
        )
    if len(design.rates or []) != 1:
        raise InputError(
            "scalings need one rate, that of the base batch size, got "
            f"{', '.join(f'{x:g}' for x in design.rates or [])}: give one"
        )


def _ascends(numbers: Sequence[float]) -> bool:
    return all(a < b for a, b in pairwise(numbers))
