"""A number beside the same number, computed again, and how far the two may be apart."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sharpness.objective import Objective
from sharpness.results import Eigenpairs

# Of means and sums over data and parameters, that round in another order elsewhere. Losses in
# float32, of the MLP for digits, are up to 2e-7 of their size from those in float64, and an
# eigenvalue up to 7e-7 of the largest from that of a fresh product; the rest is for larger ones.
RELATIVE = {torch.float32: 1e-5, torch.float64: 1e-10}
# Machine precisions that a loss may be off: it is a difference of logits, of some 10 each.
UNITS = 10
# Of the best point of an ascent, whose ten steps take rounding further.
ASCENT = 1e-2


@dataclass(frozen=True)
class Check:
    """A number of a result beside the same number, computed again.

    >>> Check("loss", 2.0, 2.1, 1e-5, 2.0).agrees
    False
    """

    name: str  # such as "train_loss at alpha 0.5"
    stored: float
    recomputed: float
    tolerance: float  # of the difference
    scale: float  # of the numbers, to which the difference is compared in words

    @property
    def difference(self) -> float:
        """The distance of both; 0 where they are the same infinity, or both not a number."""
        if self.stored == self.recomputed or (
            math.isnan(self.stored) and math.isnan(self.recomputed)
        ):
            return 0.0
        return abs(self.stored - self.recomputed)

    @property
    def agrees(self) -> bool:
        """Whether both are the same to the tolerance, which allows for nothing infinite."""
        return self.difference == 0 or self.difference <= self.tolerance < math.inf


def relative_of(*dtypes: torch.dtype) -> float:
    """Return the tolerance of sums in the coarsest of these dtypes."""
    return max(RELATIVE[dtype] for dtype in dtypes)


def of_values(
    stored: Mapping[str, Tensor],
    again: Mapping[str, Tensor],
    place: tuple[int, ...],
    other: tuple[int, ...],
    at: str,
    f: Objective,
) -> Iterable[Check]:
    """Return the checks of loss and metrics at a point, but of a metric that was left out."""
    return [
        of_loss(f"{key} {at}", stored[key][place], again[key][other], f)
        for key in stored
        if key in again
    ]


def of_loss(name: str, stored: Any, recomputed: Any, f: Objective) -> Check:
    """Return the check of a mean over the data, which is small where large numbers cancel."""
    scale = abs(float(recomputed))
    rounding = UNITS * torch.finfo(f.theta.dtype).eps
    limit = relative_of(f.theta.dtype) * scale + rounding
    return Check(name, float(stored), float(recomputed), limit, scale)


def of_sum(name: str, stored: Any, recomputed: Any, f: Objective) -> Check:
    """Return the check of a sum of positive numbers."""
    scale = abs(float(recomputed))
    return Check(name, float(stored), float(recomputed), relative_of(f.theta.dtype) * scale, scale)


def of_stored(name: str, stored: Any, recomputed: Any) -> Check:
    """Return the check of a number made in float64 of stored ones."""
    scale = abs(float(recomputed))
    return Check(name, float(stored), float(recomputed), RELATIVE[torch.float64] * scale, scale)


def of_exact(name: str, stored: Any, recomputed: Any) -> Check:
    """Return the check of a count, which is the same or another."""
    return Check(name, float(stored), float(recomputed), 0.0, abs(float(recomputed)))


def of_search(
    name: str, value: Tensor, residual: Tensor, pair: Eigenpairs, tol: float, largest: float
) -> Iterable[Check]:
    """Yield the checks of an eigenvalue that another search finds, each to its residual.

    Args:
        tol: To which residuals are, relative to the largest magnitude of all.
        largest: That of the eigenvalues that are known; ten times it is allowed for.
    """
    found, other = float(pair.values[0]), float(pair.residuals[0])
    rounding = relative_of(pair.vectors.dtype) * largest
    yield Check(name, float(value), found, float(residual) + other + rounding, largest)
    limit = 10 * tol * largest + rounding
    yield Check(f"residual of {name}", float(residual), other, limit, largest)
