"""Learning rates and batch sizes that change while a network is trained, as pure functions.

A schedule is a function of the time t that is done and the time T of the whole training, in
updates or in epochs, but the same for both and for all of its options that are times: it is as
well one of t / T. It returns factors of the base rate and of the base batch size.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

from sharpness.options import Values, is_number, require_entry


class Setting(NamedTuple):
    """What a schedule says of one update."""

    rate: float = 1.0  # factor of the base rate
    batch: float = 1.0  # factor of the base batch size
    momentum: float | None = None  # the optimizer's own where there is none


def constant(t: float, total: float) -> Setting:
    """Return the base rate, whatever the time."""
    return Setting()


def step(t: float, total: float, *, milestones: Sequence[float], factor: float = 0.1) -> Setting:
    """Return the base rate times ``factor`` for each of the ``milestones`` that are reached.

    >>> [round(step(t, 9, milestones=[3, 6]).rate, 6) for t in (0, 2, 3, 6)]
    [1.0, 1.0, 0.1, 0.01]
    """
    return Setting(factor ** bisect_right(milestones, t))


def cosine(t: float, total: float, *, floor: float = 0.0) -> Setting:
    """Return half a cosine from the base rate to ``floor`` times it (Loshchilov, Hutter 2017).

    >>> [round(cosine(t, 4).rate, 6) for t in range(5)]
    [1.0, 0.853553, 0.5, 0.146447, 0.0]
    """
    return Setting(_down(t / total, 1.0, floor))


def linear(t: float, total: float, *, floor: float = 0.0) -> Setting:
    """Return a line from the base rate to ``floor`` times it."""
    return polynomial(t, total, power=1.0, floor=floor)


def polynomial(t: float, total: float, *, power: float = 0.5, floor: float = 0.0) -> Setting:
    """Return a power of the share of time that is left: by default its square root.

    >>> polynomial(3, 4).rate, polynomial(1, 2, power=2).rate
    (0.5, 0.25)
    """
    left = max(0.0, 1 - t / total)
    return Setting(floor + (1 - floor) * left**power)


def one_cycle(
    t: float,
    total: float,
    *,
    rise: float = 0.3,
    start: float = 0.04,
    end: float = 4e-6,
    momenta: Sequence[float] | None = (0.85, 0.95),
) -> Setting:
    """Return one cycle of half cosines, up to the base rate and down, the momentum against it.

    Args:
        rise: Share of the time until the base rate is reached.
        start: Of the base rate; likewise ``end``.
        momenta: The lowest, with the base rate, and the highest, at both ends; None leaves the
            optimizer its own.

    Source: L. N. Smith, N. Topin (2018), Super-convergence.

    >>> [round(one_cycle(t, 10).rate, 6) for t in (0, 3, 10)]
    [0.04, 1.0, 4e-06]
    >>> [one_cycle(t, 10).momentum for t in (0, 3, 10)]
    [0.95, 0.85, 0.95]
    """
    low, high = momenta or (0.0, 0.0)
    share = t / total
    if share <= rise:
        rate, momentum = _down(share / rise, start, 1.0), _down(share / rise, high, low)
    else:
        left = (share - rise) / (1 - rise)
        rate, momentum = _down(left, 1.0, end), _down(left, low, high)
    return Setting(rate, momentum=momentum if momenta else None)


def triangular(t: float, total: float, *, half_cycle: float, peak: float = 6.0) -> Setting:
    """Return a cyclical rate: a line from the base rate to ``peak`` times it, and back.

    Cycle c = floor(1 + t / (2 s)) and x = |t / s - 2 c + 1| with the half cycle s; the factor is
    1 + (peak - 1) max(0, 1 - x).

    Source: L. N. Smith (2017), Cyclical learning rates; a peak of 6 is that of its CIFAR-10 net.

    >>> [triangular(t, 9, half_cycle=2, peak=3).rate for t in range(5)]
    [1.0, 2.0, 3.0, 2.0, 1.0]
    """
    return Setting(1 + (peak - 1) * _triangle(t, half_cycle)[1])


def triangular2(t: float, total: float, *, half_cycle: float, peak: float = 6.0) -> Setting:
    """Return a cyclical rate whose rise is halved from one cycle to the next.

    >>> [triangular2(t, 9, half_cycle=2, peak=3).rate for t in (2, 4, 6, 10)]
    [3.0, 1.0, 2.0, 1.5]
    """
    cycle, height = _triangle(t, half_cycle)
    return Setting(1 + (peak - 1) * height / 2 ** (cycle - 1))


def increase_batch(
    t: float,
    total: float,
    *,
    milestones: Sequence[float],
    factor: float = 5.0,
    most: float | None = None,
) -> Setting:
    """Return a batch that grows ``factor`` times at each milestone, where a rate would fall.

    The noise scale of SGD is near rate * N / batch, so both are one. Beyond ``most`` times the base
    batch the rate falls in its place.

    Source: S. Smith, P.-J. Kindermans, C. Ying, Q. Le (2018), Don't decay the learning rate,
    increase the batch size.

    >>> [tuple(increase_batch(t, 9, milestones=[3, 6], factor=4, most=8))[:2] for t in (0, 3, 6)]
    [(1.0, 1.0), (1.0, 4.0), (0.5, 8.0)]
    """
    wanted = float(factor) ** bisect_right(milestones, t)
    batch = wanted if most is None else min(wanted, float(most))
    return Setting(batch / wanted, batch)


Schedule = Callable[..., Setting]
SCHEDULES: dict[str, Schedule] = {
    "constant": constant,
    "step": step,
    "cosine": cosine,
    "linear": linear,
    "polynomial": polynomial,
    "one-cycle": one_cycle,
    "triangular": triangular,
    "triangular2": triangular2,
    "increase-batch": increase_batch,
}
UNITS = ("updates", "epochs")  # of the time


def by_ratio(k: float) -> float:
    """Return the ratio of the batch sizes, which keeps the noise scale (Goyal and others 2017)."""
    return k


def by_root(k: float) -> float:
    """Return its square root, which keeps the covariance of an update (Hoffer and others 2017)."""
    return math.sqrt(k)


# Of the batch size over the base batch size: by what the base rate is multiplied.
SCALINGS: dict[str, Callable[[float], float]] = {"linear": by_ratio, "sqrt": by_root}


def scaled_rate(rate: float, scaling: str | None, k: float) -> float:
    """Return the rate at a batch of k times the base batch size: the same without a scaling.

    >>> [scaled_rate(0.001, scaling, 4) for scaling in (None, "sqrt", "linear")]
    [0.001, 0.002, 0.004]
    """
    return rate * (SCALINGS[scaling](k) if scaling else 1.0)


def scheduled(name: str, options: Mapping[str, Any]) -> Callable[[float, float], Setting]:
    """Return a schedule with its options, checked, as a function of t and T.

    Raises:
        InputError: If there is none of this name, an option is missing or unknown, or its value
            is not in its range.

    >>> scheduled("step", {"milestones": [10], "factor": 0.5})(10, 20).rate
    0.5
    """
    require_entry("schedule", SCHEDULES, name, options, VALUES, given=2)
    return partial(SCHEDULES[name], **options)


def warmed(updates: int, warmup: int) -> float:
    """Return the factor of the rate after so many updates: the last of the warm-up is at 1.

    Source: P. Goyal et al. (2017), Accurate, large minibatch SGD.

    >>> [warmed(u, 4) for u in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    return min(1.0, (updates + 1) / warmup) if warmup else 1.0


def _down(share: float, first: float, last: float) -> float:
    """Return half a cosine from the first to the last number."""
    return last + (first - last) * (1 + math.cos(math.pi * min(share, 1.0))) / 2


def _triangle(t: float, half_cycle: float) -> tuple[int, float]:
    """Return the cycle, from 1, and the height in it, from 0 to 1."""
    cycle = math.floor(1 + t / (2 * half_cycle))
    return cycle, max(0.0, 1 - abs(t / half_cycle - 2 * cycle + 1))


def _above(x: Any) -> bool:
    return is_number(x) and x > 0


def _share(x: Any) -> bool:
    return is_number(x, 0, 1)


def _grows(x: Any) -> bool:
    return (
        isinstance(x, list | tuple) and all(map(_above, x)) and all(a < b for a, b in pairwise(x))
    )


VALUES: Values = {
    "milestones": ("growing times above 0", _grows),
    "factor": ("a number above 0", _above),
    "floor": ("a number from 0 to 1", _share),
    "power": ("a number above 0", _above),
    "rise": ("a number between 0 and 1", lambda x: is_number(x) and 0 < x < 1),
    "start": ("a number from 0 to 1", _share),
    "end": ("a number from 0 to 1", _share),
    "momenta": (
        "two numbers from 0 to below 1, or none,",
        lambda x: (
            x is None
            or (isinstance(x, list | tuple) and len(x) == 2 and all(_share(m) and m < 1 for m in x))
        ),
    ),
    "half_cycle": ("a time above 0", _above),
    "peak": ("a number of at least 1", lambda x: is_number(x, 1)),
    "most": ("a number of at least 1", lambda x: x is None or is_number(x, 1)),
}
