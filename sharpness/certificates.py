"""What certifies an eigenvalue or an estimate as the value of a measure, and what it cost."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sharpness.curvature import Curvature
from sharpness.intervals import LEVEL, NORMAL
from sharpness.results import Eigenpairs, Estimate


@dataclass(frozen=True)
class Certificate:
    """A value and what certifies it, as fields of ``Measured``."""

    value: float
    stderr: float
    interval: Tensor  # (2,)
    converged: bool
    words: str


def of_eigenvalue(pairs: Eigenpairs, i: int = 0) -> Certificate:
    """Return the i-th eigenvalue with its residual and, of a sample, its sampling error.

    >>> from sharpness.curvature import Dense
    >>> from sharpness.lanczos import eigsh
    >>> found = of_eigenvalue(eigsh(Dense(torch.eye(3).double()), 1))
    >>> round(found.value, 9), found.stderr, found.converged
    (1.0, 0.0, True)
    """
    value, residual = float(pairs.values[i]), float(pairs.residuals[i])
    error = float(pairs.sampling_errors[i])
    half = residual + NORMAL * error
    converged = bool(pairs.converged[i])
    words = f"an eigenvalue lies within the residual {residual:.1e}, and "
    words += (
        "a complete search found none that is larger"
        if converged
        else "the search for larger ones did not end: it is a lower bound, not converged"
    )
    if error:  # NaN is true
        words += f"; the sampling error of the examples is {_told(error)}"
    return Certificate(
        value,
        error,
        torch.tensor([value - half, value + half], dtype=torch.float64),
        converged,
        words,
    )


def of_estimate(found: Estimate, what: str, *, is_sample: bool) -> Certificate:
    """Return an estimate with its interval over probes; of a sample, its error is unknown."""
    count, interval = len(found.samples), found.interval.double()
    words = f"{LEVEL:.0%} interval of {what} over {count} samples of probes".replace("%", " %")
    words += f", standard error {_told(found.stderr)}"
    if found.stderr == 0:
        words = f"{what} is exact to rounding: nothing of it was left to chance"
    if not is_sample:
        return Certificate(found.value, found.stderr, interval, found.met, words)
    words += "; by how much a sample of the examples is off is unknown"
    unknown = torch.full_like(interval, math.nan)
    return Certificate(found.value, math.nan, unknown, found.met, words)


def spent(A: Curvature, found: Eigenpairs | Estimate) -> tuple[float, float]:
    """Return the passes that built graphs of first order, and products, of a search or estimate.

    The graph of one micro-batch, built to see whether all fit in memory, is not counted.
    """
    products = found.products + found.check_products
    if isinstance(found, Eigenpairs) and A.objective.is_sample:
        products += 2 * len(found.values)  # for the sampling errors
    return float(1 if A.engine == "cached" else products), float(products)


def _told(error: float) -> str:
    return "unknown" if math.isnan(error) else f"{error:.2g}"
