"""What a batch-size experiment varies and holds, and the arms that follow."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from sharpness.errors import InputError


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


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    key: str  # in file names
    name: str  # in tables
    batch_size: int
    learning_rate: float


@dataclass(frozen=True)
class Kind:
    """A kind of design: its open ends and its arms."""

    seeds: int
    updates: int
    batch_sizes: Callable[[int], list[int]]  # of the number of training examples
    rates: list[float]
    arms: Callable[[Design], list[Arm]]


CHECK_EVERY = 2  # updates: the full batch at a high rate overshoots the level by half in ten
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
    return [
        Arm(f"b{size}-r{rate:g}", f"batch {size}, rate {rate:g}", size, rate)
        for size in design.batch_sizes or []
        for rate in design.rates or []
    ]


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
    rates = kind.rates if design.rates is None else design.rates
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
    if not 1e-5 <= design.epsilon < math.inf:  # rounding of float32 weights loses less
        raise InputError(f"keskar needs epsilon >= 1e-5, got {design.epsilon}: change it")
    if not (design.level > 0 and math.isfinite(design.level)):
        raise InputError(f"keskar needs a level above 0 and finite, got {design.level}: change it")
    return whole


def arms(design: Design) -> list[Arm]:
    """Return the ways to train of a design that is filled in, the small batch's first."""
    return KINDS[design.design].arms(design)


def _ascends(numbers: Sequence[float]) -> bool:
    return all(a < b for a, b in pairwise(numbers))
