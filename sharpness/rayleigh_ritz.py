"""Rayleigh-Ritz pairs of a symmetric operator in a growing orthonormal basis.

T = Q A Q^T is exact whatever vector comes next, for each row is projected against all of them.
What a product has outside of the rows is a *rest*: A Q^T = Q^T T + F^T C^T. Where the next row is
along the last rest, as in Lanczos, only that of the last row is left; each turn to another vector
leaves one more. So the residuals of all Ritz pairs cost no product and no pass over the basis.

Letters: n unknowns, m rows at most, r rests. Rows of Q are orthonormal.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sharpness.errors import ComputationError

Key = Callable[[Tensor], Tensor]

BLOCK = 2**14  # terms of one float32 sum
PANEL = 2**16  # columns that are rotated at a time, so that no second basis is needed
CANCELLED = 0.7  # of a vector is left at most: its part in the basis is subtracted once more


class Basis:
    """Orthonormal rows Q, the lower triangle of T = Q A Q^T, and the rests F of the products.

    Args:
        product: v -> A v, for rows of the basis.
        noise: Random vectors, for a basis that cannot go on by itself.
        key: Wanted are the Ritz values for which this is largest.
        stored: Keep the products, m vectors more, from which true residuals cost none.
    """

    def __init__(
        self,
        Q: Tensor,
        product: Callable[[Tensor], Tensor],
        noise: Iterator[Tensor],
        key: Key,
        *,
        stored: bool = True,
    ) -> None:
        m = len(Q)
        self.Q, self.P, self.rows = Q, torch.empty_like(Q) if stored else None, 0
        # On the host and in float64: each of its small eigenproblems costs less than a transfer.
        self.T = torch.zeros(m, m, dtype=torch.float64)
        self.F, self.C = Q[:0].clone(), torch.zeros(m, 0, dtype=torch.float64)
        self.gram = torch.zeros(0, 0, dtype=torch.float64)  # of the rests, ``next`` the last
        self.product, self.noise, self.key = product, noise, key
        self.next, self.beta = Q.new_zeros(0), 0.0  # along it comes the next row, and its norm
        self.is_chained = False  # the next row is along the rest of the last one

    def grow(self) -> None:
        """Add a row along ``next``, its product, and what that has outside the rows."""
        if self.beta <= self._rounding():
            # The rows span an invariant subspace: go on in its complement.
            self.turn(next(self.noise))
        Q, j = self.Q, self.rows
        Q[j] = self.next / self.beta
        w = self.product(Q[j])
        if self.P is not None:
            self.P[j] = w
        # A Lanczos product is along its own row and the one before: taken out first, so that
        # there is nothing left to cancel when all rows are taken out.
        first = max(j - 1, 0) if self.is_chained else 0
        near = inner(Q[first : j + 1], w)
        w = w - near @ Q[first : j + 1]
        if len(self.F):
            self.F = self.F - inner(self.F, Q[j])[:, None] * Q[j]
        row = torch.zeros(j + 1, dtype=torch.float64)
        self.rows = j + 1
        for _ in range(2):
            far = inner(Q[: j + 1], w)
            w = w - far @ Q[: j + 1]
            # All in one transfer, for each of them waits for a GPU.
            found = torch.cat([near, far, *self._gram(w)]).double().cpu()
            if not torch.isfinite(found).all():
                raise ComputationError(
                    "eigsh met a product that is not finite: look at the loss there"
                )
            r = len(self.F) + 1
            by_near, by_far, squares = torch.split(found, [len(near), j + 1, r * r])
            row[j + 1 - len(near) :] += by_near
            row += by_far
            near = near[:0]  # is counted
            self.gram = squares.view(r, r)
            self.beta = math.sqrt(float(self.gram[-1, -1]))
            if self.beta >= CANCELLED * math.hypot(self.beta, float(by_far.norm())):
                break
        self.T[j, : j + 1], self.next, self.is_chained = row, w, True
        self._forget()

    def _gram(self, w: Tensor) -> list[Tensor]:
        """Return the rows of the Gram matrix of the rests and w, whose norm is squared last."""
        last = inner(self.F, w) if len(self.F) else w[:0]
        rows = [torch.cat([inner(self.F, f), x[None]]) for f, x in zip(self.F, last, strict=True)]
        return [*rows, last, (w * w).sum()[None]]

    def turn(self, w: Tensor) -> None:
        """Let the next row be along w; the rest of the last one is kept."""
        self._keep_rest()
        rows = self.Q[: self.rows]
        # Twice, for what cancellation leaves behind the first time.
        self.next = _outside(rows, _outside(rows, w))
        self.beta = math.sqrt(float((self.next * self.next).sum()))

    def ritz(self, first: int = 0) -> tuple[Tensor, Tensor]:
        """Return the Ritz values of the rows from the first, most wanted first, and vectors in it.

        The vectors are columns of coefficients, shape (rows - first, rows - first).
        """
        theta, S = torch.linalg.eigh(self.T[first : self.rows, first : self.rows])
        order = self.key(theta).argsort(descending=True, stable=True)
        return theta[order], S[:, order]

    def residuals(self, S: Tensor) -> Tensor:
        """Return |A v - theta v| of Ritz vectors v, the columns of S, to the rounding of T."""
        weights = S.T @ self._weights()
        return ((weights @ self.gram) * weights).sum(dim=1).clamp(min=0).sqrt()

    def residual(self, s: Tensor) -> Tensor:
        """Return A v - theta v of one Ritz vector v, with coefficients s in the rows, (n,)."""
        rests = torch.cat([self.F, self.next[None]]) if self.is_chained else self.F
        return (s @ self._weights()).to(rests) @ rests

    def rotate(self, theta: Tensor, S: Tensor, keep: int) -> None:
        """Replace the rows by the first Ritz vectors, columns of S, with these Ritz values."""
        self._keep_rest()
        S = S[:, :keep]
        turned = S.T.to(self.Q)
        for panel in _panels(self.Q):
            for X in (self.Q, self.P):
                if X is not None:
                    X[:keep, panel] = turned @ X[: self.rows, panel]
        weights = S.T @ self.C[: self.rows]
        self.C.zero_()[:keep] = weights
        self.T.zero_().diagonal()[:keep] = theta[:keep]
        self.rows = keep

    def true_residuals(self, theta: Tensor) -> Tensor:
        """Return |A q - theta q| of the rows q, of which these are the Ritz values.

        Cost: a product for each row, unless they are stored.
        """
        total = torch.zeros(self.rows, dtype=torch.float64)
        for i in range(self.rows):
            q, value = self.Q[i], theta[i].to(self.Q)
            w = self.product(q) if self.P is None else self.P[i]
            r = w - value * q
            total[i] = (r * r).sum()
        return total.sqrt()

    def _rounding(self) -> float:
        """Return the norm below which a vector is the rounding of products."""
        return 10 * torch.finfo(self.Q.dtype).eps * float(self.T.abs().max())

    def _weights(self) -> Tensor:
        """Return how much of each rest each row has, shape (rows, r), that of the last included."""
        C = self.C[: self.rows]
        if not self.is_chained:
            return C
        last = torch.zeros(self.rows, 1, dtype=C.dtype)
        last[-1] = 1
        return torch.cat([C, last], dim=1)

    def _keep_rest(self) -> None:
        """Count ``next`` among the rests, as few as span them all."""
        if not self.is_chained:
            return
        weights, E = self._weights(), torch.cat([self.F, self.next[None]])
        squares, U = torch.linalg.eigh(self.gram)
        U = U[:, squares > self._rounding() ** 2]
        self.F, self.gram = U.T.to(E) @ E, U.T @ self.gram @ U
        self.C = torch.zeros(len(self.Q), U.shape[1], dtype=torch.float64)
        self.C[: self.rows] = weights @ U
        self.is_chained = False

    def _forget(self) -> None:
        """Drop the rests that lie in the rows by now."""
        squares = self.gram.diagonal()[:-1]
        left = squares > self._rounding() ** 2
        if not left.all():
            self.F, self.C = self.F[left.to(self.F.device)], self.C[:, left]
            left = torch.cat([left, torch.ones(1, dtype=torch.bool)])
            self.gram = self.gram[left][:, left]


def inner(Q: Tensor, w: Tensor) -> Tensor:
    """Return Q w, block by block: a float32 sum of a million terms keeps but four digits."""
    blocks = zip(torch.split(Q, BLOCK, dim=1), torch.split(w, BLOCK), strict=True)
    return torch.stack([q @ x for q, x in blocks]).sum(dim=0)


def _panels(Q: Tensor) -> Iterator[slice]:
    return (slice(i, i + PANEL) for i in range(0, Q.shape[1], PANEL))


def _outside(Q: Tensor, w: Tensor) -> Tensor:
    """Return w without its part in the rows of Q."""
    return w - inner(Q, w) @ Q
