"""What quadrature nodes and weights tell of a spectrum, by probe, and the interval over probes.

Letters: n eigenvalues, d of them known, s probes, m nodes each.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sharpness.intervals import t_interval

Interval = tuple[float, float, float]  # mean, low, high


def sums(
    nodes: Tensor, weights: Tensor, known: Tensor, size: int, f: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return the sum of f over all eigenvalues as each probe has it, (s,).

    >>> nodes, weights = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.5, 0.5]])
    >>> sums(nodes, weights, torch.tensor([9.0]), 3, lambda x: x)
    tensor([13.])
    """
    values = torch.where(weights > 0, f(nodes), 0.0)
    return (size - len(known)) * (weights * values).sum(dim=1) + f(known).sum()


def smoothed(
    nodes: Tensor, weights: Tensor, known: Tensor, size: int, grid: Tensor, width: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the density on a grid, (p,) each: mean, low and high over the probes.

    Each node is a normal curve of this standard deviation and of its weight, so that the integral
    over all numbers is 1.

    >>> nodes, weights = torch.zeros(2, 1).double(), torch.ones(2, 1).double()
    >>> grid = torch.tensor([0.0]).double()
    >>> mean, low, high = smoothed(nodes, weights, torch.zeros(0).double(), 3, grid, 1.0)
    >>> round(float(mean), 6), round(float(high - low), 6)  # 1 / sqrt(2 pi)
    (0.398942, 0.0)
    """

    def curves(x: Tensor) -> Tensor:
        z = (grid[:, None] - x) / width
        return torch.exp(-z * z / 2) / (width * math.sqrt(2 * math.pi))

    each = torch.stack(
        [
            weights_of @ curves(x.nan_to_num()).T
            for x, weights_of in zip(nodes, weights, strict=True)
        ]
    )  # (s, p)
    share = (size - len(known)) / size
    atoms = curves(known).sum(dim=1) / size
    columns = torch.tensor([t_interval(column) for column in (share * each + atoms).T])
    mean, low, high = columns.T.contiguous()
    return mean, low.clamp(min=0), high


def outliers(values: Tensor, most: int | None = None) -> int:
    """Return how many eigenvalues stand apart: those above the largest ratio of neighbors.

    Among the first ``most`` of the values, which descend; those that are not above 0 do not count.

    >>> outliers(torch.tensor([15.0, 15.0, 1.0, 0.9, 0.8]))
    2
    """
    positive = values[values > 0][:most]
    if len(positive) < 2:
        return 0
    return 1 + int((positive[:-1] / positive[1:]).argmax())
