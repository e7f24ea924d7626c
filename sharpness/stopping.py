"""When a training ends, and where: levels of the loss that are crossed, patience, checkpoints."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from sharpness.results import Solution

HALVINGS = 60  # of a line: beyond the bits of a float64


@dataclass(frozen=True)
class Patience:
    """The best loss so far, and after how many updates it was met; JSON values.

    >>> looked = Patience(updates=20).after(0, 1.0).after(10, 0.5).after(25, 0.6)
    >>> looked.best, looked.at, looked.is_over(29), looked.is_over(30)
    (0.5, 10, False, True)
    >>> Patience(updates=20, improvement=0.1).after(0, -1.0).after(10, -0.95).best
    -1.0
    """

    updates: int  # without a better loss, to wait
    improvement: float = 0.0  # share of its size by which a better loss is below the best one
    best: float = math.inf
    at: int = 0

    def after(self, update: int, loss: float) -> "Patience":
        """Return what is known after a further look."""
        better = self.best == math.inf or loss < self.best - self.improvement * abs(self.best)
        return replace(self, best=loss, at=update) if better else self

    def is_over(self, update: int) -> bool:
        """Say whether the best loss is as many updates ago as patience lasts."""
        return update - self.at >= self.updates


def crossing(before: tuple[int, float], after: tuple[int, float], level: float) -> float:
    """Return after how many updates a level is met, by a line between two looks in log loss.

    Args:
        before: The updates and the loss, above the level, of a look.
        after: Of the next one, whose loss is at or below it.

    >>> crossing((10, 1.0), (20, 0.01), 0.1)
    15.0
    """
    (u, above), (v, below) = before, after
    if below <= 0:
        return float(v)  # whose logarithm is no number
    return u + (v - u) * math.log(above / level) / math.log(above / below)


def between(a: Solution, b: Solution, alpha: float) -> Solution:
    """Return (1 - alpha) a + alpha b, with the counts of batches of b.

    >>> import torch
    >>> a, b = (Solution(torch.tensor([x]), {}) for x in (1.0, 3.0))
    >>> between(a, b, 0.5).theta
    tensor([2.])
    """

    def mixed(x: Tensor, y: Tensor) -> Tensor:
        return (1 - alpha) * x + alpha * y if y.is_floating_point() else y

    buffers = {name: mixed(a.buffers[name], y) for name, y in b.buffers.items()}
    return Solution(mixed(a.theta, b.theta), buffers)


def at_level(
    loss_at: Callable[[Solution], float], a: Solution, b: Solution, level: float, within: float
) -> tuple[float, Solution]:
    """Return alpha and the solution between a and b whose log loss is within a bound of a level.

    The loss is continuous on the line, above the level at a and at or below it at b: halving finds
    a point at the level, also where there are several. Should rounding end the search early, b.

    Args:
        loss_at: The loss of a solution.
        a: A solution whose loss is above the level.
        b: One at or below it.
        level: Of the loss.
        within: The largest difference of the logarithms.

    >>> import torch
    >>> a, b = (Solution(torch.tensor([x], dtype=torch.float64), {}) for x in (2.0, 0.0))
    >>> alpha, _ = at_level(lambda point: float(point.theta), a, b, 0.5, 0.0)
    >>> alpha
    0.75
    """
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        alpha = (low + high) / 2
        point = between(a, b, alpha)
        loss = loss_at(point)
        if loss > 0 and abs(math.log(loss / level)) <= within:
            return alpha, point
        low, high = (alpha, high) if loss > level else (low, alpha)
    return 1.0, b


def marks(updates: list[int], ratio: float | None) -> Iterator[int]:
    """Yield after how many updates the solution is stored, in increasing order.

    Args:
        updates: At these.
        ratio: And at 1 and then each time at so many times as many, rounded, but at least one more.

    >>> list(marks([4, 3, 4], None)), [next(m) for m in [marks([3], 1.5)] for _ in range(7)]
    ([3, 4], [1, 2, 3, 4, 6, 9, 14])
    """
    given = sorted(set(updates))
    for mark in _geometric(ratio) if ratio else ():
        while given and given[0] <= mark:
            first = given.pop(0)
            if first < mark:
                yield first
        yield mark
    yield from given


def _geometric(ratio: float) -> Iterator[int]:
    mark = 1
    while True:
        yield mark
        mark = max(mark + 1, round(mark * ratio))
