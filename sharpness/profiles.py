"""What a curve along a line tells: barriers, the widths of basins, whether it is monotone.

Coordinates are alphas, (p,), in any order; values belong to them. What is asked of a place needs a
point of the grid there, to rounding.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sharpness.errors import InputError

MOST_POINTS = 1_000_000  # of a grid: as many as a command takes


class Barrier(NamedTuple):
    """How far a loss or an error rises between alpha = 0 and 1; infinite or NaN where it is."""

    height: float  # above the mean of both ends (Frankle et al. 2020)
    above_chord: float  # above the straight line between them (Entezari et al. 2022)
    alpha: float  # where it is the highest


class Basin(NamedTuple):
    """The interval around a point in which the loss is below a level, by linear interpolation.

    Where the grid ends, or is not finite, before the level is met, the basin is at least as wide
    as to the last point: that side is censored.
    """

    low: float
    high: float
    low_censored: bool
    high_censored: bool


class Monotone(NamedTuple):
    """The largest rise and fall of a curve from any point between the ends to any later one."""

    rise: float
    fall: float


def require_alphas(what: str, alphas: Tensor) -> None:
    """Refuse coordinates that are no grid.

    Raises:
        InputError: If they are not finite, not of shape (p,), fewer than 2 or too many.
    """
    if alphas.ndim != 1 or not torch.isfinite(alphas).all():
        raise InputError(f"{what} needs finite alphas of shape (p,), got {alphas}: drop the others")
    if not 2 <= len(alphas) <= MOST_POINTS:
        raise InputError(
            f"{what} needs 2 to {MOST_POINTS:,} finite alphas, got {len(alphas)}: change them"
        )


def value(alphas: Tensor, values: Tensor, at: float) -> float:
    """Return the value at a point of the grid.

    Raises:
        InputError: If the grid has no point there.

    >>> value(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0.0, 3.0, 2.0]), 1.0)
    2.0
    """
    return float(values[_index(alphas, at)])


def barrier(alphas: Tensor, values: Tensor) -> Barrier:
    """Return the barrier on [0, 1].

    Raises:
        InputError: If the grid has no point at 0 or at 1.

    >>> barrier(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0.0, 3.0, 2.0]))
    Barrier(height=2.0, above_chord=2.0, alpha=0.5)
    """
    x, f = _between_ends(alphas, values)
    chord = (1 - x) * f[0] + x * f[-1]
    height = f - (f[0] + f[-1]) / 2
    return Barrier(float(height.max()), float((f - chord).max()), float(x[height.argmax()]))


def basin(alphas: Tensor, values: Tensor, level: float, *, at: float = 0.0) -> Basin:
    """Return the interval around the point ``at`` in which values are below the level.

    Raises:
        InputError: If the grid has no point there, or the value there is not below the level.

    >>> x = torch.tensor([-1.0, 0.0, 1.0, 2.0])
    >>> basin(x, x.square(), 2.0)
    Basin(low=-1.0, high=1.3333333730697632, low_censored=True, high_censored=False)
    """
    x, f = _sorted(alphas, values)
    middle = _index(x, at)
    if not f[middle] < level:
        raise InputError(
            f"a basin needs a point below the level, got {float(f[middle]):.4g} at alpha {at:g} "
            f"and the level {level:g}: choose a higher level"
        )
    high, high_censored = _crossing(x[middle:], f[middle:], level)
    low, low_censored = _crossing(x[: middle + 1].flip(0), f[: middle + 1].flip(0), level)
    return Basin(low, high, low_censored, high_censored)


def monotone(alphas: Tensor, values: Tensor) -> Monotone:
    """Return the largest rise and fall on [0, 1]; one of them is 0 where the curve is monotone.

    Infinite or NaN where a value is. (Lucas et al. 2021, for a loss that falls, bound the rise.)

    Raises:
        InputError: If the grid has no point at 0 or at 1.

    >>> monotone(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0.0, 3.0, 2.0]))
    Monotone(rise=3.0, fall=1.0)
    """
    _, f = _between_ends(alphas, values)
    rise, fall = f - f.cummin(dim=0).values, f.cummax(dim=0).values - f
    return Monotone(float(rise.max()), float(fall.max()))


def _sorted(alphas: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    order = alphas.argsort(stable=True)
    return alphas[order], values[order]


def _between_ends(alphas: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    x, f = _sorted(alphas, values)
    inside = slice(_index(x, 0.0), _index(x, 1.0) + 1)
    return x[inside], f[inside]


def _index(x: Tensor, at: float) -> int:
    """Return which point is there, but for the rounding of a grid, maybe in single precision."""
    i = int((x - at).abs().argmin())
    if abs(float(x[i]) - at) > 4 * torch.finfo(torch.float32).eps * float(x.abs().max()):
        raise InputError(f"this needs a grid with a point at {at:g}, got none: take other alphas")
    return i


def _crossing(x: Tensor, f: Tensor, level: float) -> tuple[float, bool]:
    """Return where values that start below the level meet it, and whether they never do."""
    above = ~(f < level)
    if not above.any():
        return float(x[-1]), True
    i = int(above.long().argmax())
    if not torch.isfinite(f[i]):
        return float(x[i - 1]), True
    part = (level - f[i - 1]) / (f[i] - f[i - 1])
    return float(x[i - 1] + part * (x[i] - x[i - 1])), False
