"""Bounds of the largest rise that the quadratic model of a loss has in a box.

    q(u) = G u + u^T M u / 2 on [-1, 1]^p,  M = B H B,  B = diag(b)

They are bounds of the model: of the loss itself, only what was evaluated is a lower bound.

Letters: H Hessian, (mu, v) eigenpairs of M in falling order, p dimensions of the box, G = b *
gradient.
"""

import logging
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sharpness.boxes import Box
from sharpness.curvature import Hessian
from sharpness.errors import ComputationError, OutOfMemoryError
from sharpness.lanczos import eigsh
from sharpness.operators import Scaled
from sharpness.vectors import rademacher

TOLERANCE = 1e-2  # of eigenpairs; what their residuals leave open is added to the ceilings
BUDGET = 300  # products of one search
PAIRS = 8  # from which the scaling of the ceiling is made
LEAST = 0.01  # of the mean of the scaling: a coordinate that no pair has would have none
CLIMB = 10  # products that seek a high vertex of the model
EXACT, PROBES = 64, 10  # dimensions up to which the trace is exact, and probes beyond
# In the order of a piece. Lower bounds of the maximum: "khinchine" is one for every symmetric H to
# the error of its trace, "first_order" and "rank_one" where H has no negative eigenvalue, and
# those of vertices always.
VERTICES = ("gradient_vertex", "eigenvector_vertex", "best_vertex")
LOWER = ("khinchine", "first_order", "rank_one", *VERTICES)
UPPER = ("eigenvalue_ceiling", "scaled_ceiling")  # NaN where a search did not converge
BOUNDS = (*LOWER, *UPPER)

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Certificate:
    """Bounds of the model by name, as rises of the loss, and the eigenvector that they come from.

    Args:
        v: Top eigenvector of M, shape (p,).
        products: Spent on it.
    """

    bounds: dict[str, float]
    v: Tensor
    products: int

    @property
    def piece(self) -> Tensor:
        """All of it in one vector, float64 on the host."""
        numbers = torch.tensor([*self.bounds.values(), self.products], dtype=torch.float64)
        return torch.cat([numbers, self.v.double().cpu()])

    @classmethod
    def of(cls, piece: Tensor) -> "Certificate":
        """Return the certificate that a piece is of."""
        *bounds, products = piece[: len(BOUNDS) + 1].tolist()
        v = piece[len(BOUNDS) + 1 :]
        return cls(dict(zip(BOUNDS, bounds, strict=True)), v, int(products))


def certificate(box: Box, seed: int) -> Certificate:
    """Return bounds of the model in a box of the whole space, theory.md says which.

    Cost: two searches of eigenpairs, some 30 and 20 products where the top eigenvalues are
    outliers, about as many as dimensions where these are few, and some 20 for vertices and trace.

    Raises:
        ComputationError: If the loss has no second derivative, or a product is not finite.
    """
    try:
        return _certificate(box, seed)
    except OutOfMemoryError:
        raise
    except ComputationError as error:
        raise ComputationError(f"{error}; or leave the certificate out") from error


def _certificate(box: Box, seed: int) -> Certificate:
    H = Hessian(box.objective, box.here)
    # Without epsilon, whose square would make the entries tiny.
    A, square = Scaled(H, box.reach.to(box.sides)), box.epsilon**2
    pairs = eigsh(A, min(PAIRS, A.size), tol=TOLERANCE, budget=_budget(A.size), seed=seed)
    v, slope = pairs.vectors[0], float(box.G.abs().sum())
    model = _Model(box.G, A, square)
    bounds = dict.fromkeys(BOUNDS, math.nan)
    bounds["first_order"] = slope
    bounds["khinchine"] = float(box.G.norm()) / 2**0.5 + _trace(A, seed) * square / 2
    w = (A @ v).double()
    along = float(v.double() @ w)  # of any v, so that it need not have converged
    bounds["rank_one"] = square * float(w.abs().sum()) ** 2 / (2 * along) if along > 0 else 0.0
    bounds["gradient_vertex"] = model.value(_signs(box.G).to(v))[0]
    u, bounds["eigenvector_vertex"] = model.better(_signs(v))
    best = max(bounds["gradient_vertex"], model.climb(u))
    bounds["best_vertex"] = max(best, bounds["eigenvector_vertex"])
    if pairs.converged[0]:
        top = max(float(pairs.values[0]) + float(pairs.residuals[0]), 0.0)
        bounds["eigenvalue_ceiling"] = slope + A.size * square * top / 2
        bounds["scaled_ceiling"] = slope + square * _scaled(A, pairs.values, pairs.vectors, seed)
    LOG.info("certificate of the box: %d products", H.products)
    return Certificate(bounds, v, H.products)


def _scaled(A: Scaled, mu: Tensor, V: Tensor, seed: int) -> float:
    """Return sum(d) lambda_1(D^-1/2 A D^-1/2) / 2, which no u^T A u / 2 exceeds, for any d > 0.

    The d that would make it smallest is |A u| at the maximum u; here it is made of the top pairs.
    """
    known = mu.clamp(min=0).double()
    if not known.any():
        return 0.0  # no value of the model is above that of its linear part
    d = (known * V.double().abs().sum(dim=1)) @ V.double().abs()
    d = d / d.mean() + LEAST
    B = Scaled(A, d.rsqrt())
    pair = eigsh(B, 1, tol=TOLERANCE, budget=_budget(A.size), seed=seed)
    if not pair.converged[0]:
        return math.nan
    return float(d.sum()) * max(float(pair.values[0]) + float(pair.residuals[0]), 0.0) / 2


def _budget(size: int) -> int:
    """Return how many products a search may take: those of all dimensions, where these are few."""
    return max(BUDGET, min(size, 2 * BUDGET) + 2 * PAIRS)


def _trace(A: Scaled, seed: int) -> float:
    """Return the trace of A: of few dimensions exactly, else the mean over random signs."""
    n, like = A.size, A.d
    if n <= EXACT:
        rows = torch.eye(n).to(like)
        return sum(float((A @ e) @ e) for e in rows)
    rows = torch.stack([rademacher(n, seed, i, like=like) for i in range(PROBES)])
    return sum(float(((A @ s) * s).double().sum()) for s in rows) / PROBES


def _signs(v: Tensor) -> Tensor:
    return torch.where(v < 0, -1.0, 1.0).to(v)


class _Model:
    """G u + square u^T A u / 2 at vertices u."""

    def __init__(self, G: Tensor, A: Scaled, square: float) -> None:
        self.G, self.A, self.square = G, A, square

    def value(self, u: Tensor) -> tuple[float, Tensor]:
        """Return the value at u, and its gradient there."""
        u = u.to(self.A.d)
        w = self.square * (self.A @ u).double()
        return float(self.G @ u.double() + u.double() @ w / 2), self.G + w

    def better(self, u: Tensor) -> tuple[Tensor, float]:
        """Return that of u and -u whose value is larger, and the value."""
        u = u if float(self.G @ u.double()) >= 0 else -u
        return u, self.value(u)[0]

    def climb(self, u: Tensor) -> float:
        """Return the largest value that the sign iteration from u finds."""
        best = -math.inf
        for _ in range(CLIMB):
            value, slope = self.value(u)
            best = max(best, value)
            following = torch.where(slope == 0, u.double(), slope.sign()).to(u)
            if torch.equal(following, u):
                break
            u = following
        return best
