"""Extreme eigenpairs of a symmetric operator by thick-restart Lanczos.

Wu & Simon (2000) as a Rayleigh-Ritz method: the products P = Q A are kept beside the basis Q, so
the projection T = Q A Q^T is exact whatever vector comes next, and residuals cost no product.
Next comes the Lanczos vector, what a product has outside the basis, or, after a restart, the
largest residual, which is the same (Stewart 2001). Once the pairs have converged a random vector
comes, because a Krylov space holds one vector of each eigenspace.

Letters: n unknowns, m basis vectors, k wanted pairs. Rows of Q are orthonormal.
"""

import logging
import math
from collections.abc import Callable, Iterator, MutableMapping
from itertools import count

import torch
from torch import Tensor

from sharpness.curvature import Curvature, Operator
from sharpness.errors import ComputationError, InputError
from sharpness.results import Eigenpairs
from sharpness.vectors import gaussian

LOG = logging.getLogger(__name__)

Key = Callable[[Tensor], Tensor]

# Wanted are the eigenvalues for which this is largest.
WHICH: dict[str, Key] = {"LA": torch.positive, "SA": torch.negative, "LM": torch.abs}
# Square roots of the machine precisions, rounded: the error of an isolated value is the square.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}
# Up to this n the default basis spans the whole space: the answer of a dense solver, nothing to
# check, and never more than n products where a hard spectrum would take thousands.
SMALL = 200
FEWEST = 10  # products of a check that ends because its best pair has converged
STRIDE = 5  # products between two looks at residuals that rounding holds up
BLOCK = 2**14  # terms of one float32 sum
PANEL = 2**16  # columns that are rotated at a time, so that no second basis is needed
CANCELLED = 0.7  # of a vector is left at most: its part in the basis is subtracted once more
RISK = 1e-2  # of a check that misses an eigenvalue: a bound, for the worst of all spectra


def eigsh(
    A: Operator,
    k: int,
    *,
    which: str = "LA",
    tol: float | None = None,
    m: int | None = None,
    budget: int | None = None,
    v0: Tensor | None = None,
    seed: int = 0,
    pieces: MutableMapping[str, Tensor] | None = None,
    progress: Callable[[int, int | None, str], None] | None = None,
) -> Eigenpairs:
    """Return k eigenpairs of A, the most wanted first, repeated eigenvalues with their copies.

    A pair converges when |A v - lambda v| <= ``tol`` max |theta| over the Ritz values theta, so
    ``eigsh(c A)`` is ``c eigsh(A)`` for c > 0. The converged pairs are then checked: a search of
    the complement of the basis starts from a random vector. If it changes one of the k values by
    more than that tolerance, a new check follows; otherwise it ends when an eigenvalue that it
    hides is improbable (see ``_risk``), or when the best pair beyond the k-th has converged too.

    Cost: n products when m = n. Otherwise the check adds some ten to the search where the k are
    outliers, and about as many again where the k-th lies inside a dense spectrum.

    Args:
        which: ``LA`` largest, ``SA`` smallest (most negative), ``LM`` largest in magnitude.
        tol: Default: 1e-8 in float64, 1e-4 in float32.
        m: Basis size; peak memory is about 2m + 8 vectors. Default: max(2k, k + 20), at most n;
            n itself up to n = 200.
        budget: Products to spend; past it ``converged`` marks what is not. Default: 100 m.
        v0: Start vector, shape (n,), or vectors, (s, n), such as those of a nearby answer, from
            which the search may end at its first look, after k + 1 products. Default: the first
            normal vector of ``seed``.
        seed: Of all random vectors. There is no unseeded run.
        pieces: The products, by number; those found here are not computed again.
        progress: Called after each product.

    Raises:
        InputError: If k, m, which, dtype or budget cannot be met.
        ComputationError: If a product is not finite.

    >>> from sharpness.curvature import Dense
    >>> eigsh(Dense(torch.diag(torch.tensor([2.0, 3.0, 3.0, 1.0]))), 2).values.round(decimals=4)
    tensor([3., 3.])
    """
    n = A.size
    m = (n if n <= SMALL else min(n, max(2 * k, k + 20))) if m is None else m
    budget = 100 * m if budget is None else budget
    if which not in WHICH or A.dtype not in TOLERANCE:
        raise InputError(
            f"eigsh needs one of {', '.join(WHICH)} and float32 or float64, got {which} and "
            f"{A.dtype}: choose another or convert the model"
        )
    if not (0 < k <= n and (k + 2 <= m <= n or m == n) and k <= budget):
        raise InputError(
            "eigsh needs 0 < k <= n, k + 2 <= m <= n (or m = n) and budget >= k, "
            f"got k={k}, m={m}, n={n}, budget={budget}: ask for fewer pairs or change m"
        )
    tol = TOLERANCE[A.dtype] if tol is None else tol
    if not (tol > 0 and math.isfinite(tol)):
        raise InputError(f"eigsh needs tol above 0 and finite, got {tol}: change it")
    if v0 is not None:
        fits = v0.shape == (n,) or (v0.ndim == 2 and v0.shape[1] == n and 0 < len(v0) < max(m, 2))
        if not (fits and torch.isfinite(v0).all() and v0.any(dim=-1).all()):
            raise InputError(
                f"eigsh needs a finite v0 of shape ({n},) that is not 0, or fewer than m of them "
                f"as rows, got {tuple(v0.shape)}: change it"
            )
    LOG.info(
        "eigsh of %s, n = %d: %d pairs (%s) from a basis of %d to %g of the largest, engine %s",
        A.spec.get("operator"),
        n,
        k,
        which,
        m,
        tol,
        A.spec.get("engine", "none"),
    )
    Q = torch.zeros(m, n, dtype=A.dtype, device=A.device)
    noise = (gaussian(n, seed, i, like=Q) for i in count())
    basis = _Basis(Q, _numbered(A, pieces), noise, WHICH[which])
    search = _Search(basis, k, tol, budget)
    search.run(next(noise) if v0 is None else v0, progress)
    values, residuals, settled = search.finish()
    products = search.searched or search.spent

    LOG.info("eigsh: %d products, %d of %d pairs converged", search.spent, int(settled.sum()), k)
    vectors = Q[:k].clone()  # not a view, which would hold all m
    gram = torch.stack([_inner(vectors, v) for v in vectors])
    return Eigenpairs(
        values=values,
        vectors=vectors,
        residuals=residuals,
        sampling_errors=(
            A.sampling_errors(vectors)
            if isinstance(A, Curvature)
            else torch.zeros(k, dtype=torch.float64)
        ),
        orthogonality=float((gram - torch.eye(k).to(gram)).abs().max()),
        converged=settled & search.complete,
        products=products,
        check_products=search.spent - products,
        spec={
            "algorithm": "eigsh",
            "k": k,
            "which": which,
            "tol": tol,
            "m": m,
            "budget": budget,
            "start": "random" if v0 is None else "given",
            "seed": seed,
            "operator": A.spec,
        },
    )


def _numbered(
    A: Operator, pieces: MutableMapping[str, Tensor] | None
) -> Callable[[Tensor], Tensor]:
    """Return the product with A; the i-th one is taken from or put into ``pieces``."""
    if pieces is None:
        return A.__matmul__
    names = (f"product {i}" for i in count())

    def product(q: Tensor) -> Tensor:
        name = next(names)
        if name not in pieces:
            pieces[name] = A @ q
        return pieces[name]

    return product


class _Basis:
    """Orthonormal rows Q, the products P = Q A and the lower triangle of T = Q A Q^T."""

    def __init__(
        self,
        Q: Tensor,
        product: Callable[[Tensor], Tensor],
        noise: Iterator[Tensor],
        key: Key,
    ) -> None:
        self.Q, self.P, self.rows = Q, torch.zeros_like(Q), 0
        # On the host and in float64: each of its small eigenproblems costs less than a transfer.
        self.T = torch.zeros(len(Q), len(Q), dtype=torch.float64)
        self.product, self.noise, self.key = product, noise, key
        self.next, self.beta = Q.new_zeros(0), 0.0  # what the last product has outside, its norm

    def grow(self) -> None:
        """Add a row along ``next``, its product, and what that has outside the rows."""
        Q, P, T, j = self.Q, self.P, self.T, self.rows
        if self.beta <= 10 * torch.finfo(Q.dtype).eps * T.abs().max():
            # The rows span an invariant subspace: go on in its complement.
            self.turn(next(self.noise))
        Q[j] = self.next / self.beta
        P[j] = self.product(Q[j])
        c = _inner(Q[: j + 1], P[j])
        self.next = P[j] - c @ Q[: j + 1]
        T[j, : j + 1] = c.cpu()
        if not torch.isfinite(T[j]).all():
            raise ComputationError("eigsh met a product that is not finite: look at the loss there")
        self.rows, self.beta = j + 1, _norm(self.next)
        if self.beta < CANCELLED * math.hypot(self.beta, float(T[j].norm())):
            self.next = _outside(Q[: j + 1], self.next)
            self.beta = _norm(self.next)

    def turn(self, w: Tensor) -> None:
        """Let the next row be along w."""
        rows = self.Q[: self.rows]
        # Twice, for what cancellation leaves behind the first time.
        self.next = _outside(rows, _outside(rows, w))
        self.beta = _norm(self.next)

    def ritz(self, first: int = 0) -> tuple[Tensor, Tensor]:
        """Return the Ritz values of the rows from the first, most wanted first, and vectors in it.

        The vectors are columns of coefficients, shape (rows - first, rows - first).
        """
        theta, S = torch.linalg.eigh(self.T[first : self.rows, first : self.rows])
        order = self.key(theta).argsort(descending=True, stable=True)
        return theta[order], S[:, order]

    def residuals(self, theta: Tensor, S: Tensor) -> Tensor:
        """Return |A v - theta v| of Ritz vectors v, the columns of S in the rows."""
        S, theta = S.T.to(self.Q), theta.to(self.Q)[:, None]
        total = torch.zeros(len(S), dtype=torch.float64)
        for panel in _panels(self.Q):
            Q, P = self.Q[: self.rows, panel], self.P[: self.rows, panel]
            total += (S @ P - theta * (S @ Q)).double().square().sum(dim=1).cpu()
        return total.sqrt()

    def residual(self, theta: Tensor, s: Tensor) -> Tensor:
        """Return A v - theta v of one Ritz vector v, with coefficients s in the rows, (n,)."""
        s = s.to(self.Q)
        return s @ self.P[: self.rows] - theta.to(self.Q) * (s @ self.Q[: self.rows])

    def rotate(self, theta: Tensor, S: Tensor, keep: int) -> None:
        """Replace the rows by the first Ritz vectors, columns of S, with these Ritz values."""
        turned = S[:, :keep].T.to(self.Q)
        for panel in _panels(self.Q):
            for X in (self.Q, self.P):
                X[:keep, panel] = turned @ X[: self.rows, panel]
        self.T.zero_().diagonal()[:keep] = theta[:keep]
        self.rows = keep


class _Search:
    """The state of a search for k pairs, and of the check that none was missed."""

    def __init__(self, basis: _Basis, k: int, tol: float, budget: int) -> None:
        self.basis, self.k, self.tol, self.budget = basis, k, tol, budget
        self.m, self.n = basis.Q.shape
        self.spent = self.searched = 0  # products of all, and before the first check
        self.complete = False
        self.is_check = self.is_deep = False
        self.checked = torch.zeros(0)  # how wanted the values were when the check began
        self.begun, self.anchor = 0, 0  # products before the check, rows that it does not enter
        self.patience = 0  # products before the next look
        self.is_krylov = True  # the rows span a Krylov space: all residuals are along one vector

    def run(self, start: Tensor, progress: Callable[[int, int | None, str], None] | None) -> None:
        """Search until the pairs have converged and were checked, or the budget is spent."""
        basis, k = self.basis, self.k
        given = start.reshape(-1, self.n).to(basis.Q)
        self.is_krylov = len(given) == 1
        while not self.complete and self.spent < self.budget:
            if self.spent < len(given):
                basis.turn(given[self.spent])
            basis.grow()
            self.spent += 1
            whole, full = basis.rows == self.n, basis.rows == self.m
            if self.m == self.n and not whole:
                continue  # all rows are wanted, whatever the first ones say
            theta, S = basis.ritz()
            if progress:
                largest = float((basis.beta * S[-1, :k]).abs().max())
                progress(self.spent, None, f"residual {largest:.0e}")
            if whole:
                self.complete = True
            elif basis.rows > k and not self.is_check:
                self._seek(theta, S, full)
            elif basis.rows > k:
                self._check(theta, S, full)

    def finish(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rotate to the pairs; return values, residuals and which are within the tolerance."""
        theta, S = self.basis.ritz()
        residuals = self.basis.residuals(theta[: self.k], S[:, : self.k])
        self.basis.rotate(theta, S, self.k)
        like, limit = self.basis.Q, self._limit(theta)
        return theta[: self.k].to(like), residuals.to(like), (residuals <= limit).to(like.device)

    def _limit(self, theta: Tensor) -> float:
        return self.tol * float(theta.abs().max())

    def _seek(self, theta: Tensor, S: Tensor, full: bool) -> None:
        """Look at the pairs where they may have converged, and restart where the basis is full."""
        basis, k, limit = self.basis, self.k, self._limit(theta)
        estimates = basis.beta * S[-1, :k].abs()  # Paige (1971)
        near = bool((estimates <= limit).all()) or not self.is_krylov
        if not (full or (near and self.spent >= self.patience)):
            return
        residuals = basis.residuals(theta[:k], S[:, :k])
        if (residuals <= limit).all():
            self._begin(theta, S)
            return
        self.patience = self.spent + STRIDE
        if full:
            self._restart(theta, S, int(residuals.argmax()))

    def _begin(self, theta: Tensor, S: Tensor) -> None:
        """Begin a check, from a random vector, beside as many rows as leave room for it."""
        self.searched = self.searched or self.spent
        self.is_check, self.checked = True, self.basis.key(theta[: self.k])
        keep = self._shield(theta)
        self.is_deep = keep is None
        self._turn_to_complement(theta, S, self.k if keep is None else keep)

    def _shield(self, theta: Tensor) -> int | None:
        """Return how many rows to keep beside which the check will be short, if any.

        The more are kept, the farther the rest is from the k-th, and the fewer rows are left.
        """
        wanted, k, found = self.basis.key(theta), self.k, []
        for keep in range(k, min(self.basis.rows, self.m - 1) + 1):
            rest = theta[min(keep, len(theta) - 1) :]
            gap = wanted[k - 1] + self._limit(theta) - self.basis.key(rest).max()
            found.append((float(_risk(rest, gap, self.m - keep, self.n)), keep))
        least, keep = min(found)
        # With a margin, for the Ritz values of the rest are not yet as far out as they will be.
        return keep if least <= RISK**2 else None

    def _turn_to_complement(self, theta: Tensor, S: Tensor, keep: int) -> None:
        if self.basis.rows > keep:
            self.basis.rotate(theta, S, keep)
        self.anchor, self.begun = self.basis.rows, self.spent
        self.patience = self.spent + (FEWEST if self.is_deep else 0)
        self.basis.turn(next(self.basis.noise))

    def _check(self, theta: Tensor, S: Tensor, full: bool) -> None:
        """End the check, or go on with what it found."""
        basis, k, limit = self.basis, self.k, self._limit(theta)
        wanted, steps = basis.key(theta), self.spent - self.begun
        if (wanted[:k] - self.checked > limit).any():
            self.is_check, self.is_krylov = False, False
            self.patience = self.spent + STRIDE
            if full:
                self._restart(theta, S, 0)
            return
        rest = theta[k:] if self.is_deep else basis.ritz(self.anchor)[0]
        gap = wanted[k - 1] + limit - basis.key(rest).max()
        hidden = bool(_risk(rest, gap, steps, self.n) > RISK)
        if self.spent < self.patience or not (full or self.is_deep or not hidden):
            return
        residuals = basis.residuals(theta[: k + 1], S[:, : k + 1])
        settled = residuals <= limit
        found_next = self.is_deep and bool(settled[k])  # the best that the complement has
        self.complete = bool(settled[:k].all()) and (found_next or not hidden)
        if self.complete:
            return
        self.patience = self.spent + STRIDE
        if full and self.is_deep:
            self._restart(theta, S, k if settled[:k].all() else int(residuals[:k].argmax()))
        elif full:
            # The k-th lies inside a dense part: give the complement all the room there is.
            self.is_deep = True
            self._turn_to_complement(theta, S, k)

    def _restart(self, theta: Tensor, S: Tensor, worst: int) -> None:
        """Keep the wanted pairs and some more, which shield them from the rest of the spectrum."""
        keep = min(self.m - 1, self.k + max(1, (self.m - self.k) // 2))
        w = self.basis.residual(theta[worst], S[:, worst])
        self.basis.rotate(theta, S, keep)
        self.basis.turn(w)


def _risk(rest: Tensor, gap: Tensor, steps: int, n: int) -> Tensor:
    """Bound the probability that ``steps`` from a random vector hide an eigenvalue.

    Kuczynski & Wozniakowski (1992): the largest Ritz value is too small by more than epsilon
    times the spread of the spectrum with probability 1.648 sqrt(n) exp(-(2 steps - 1)
    sqrt(epsilon)) at most. A restarted space is not theirs; the tests hold it for ours.

    Args:
        rest: Ritz values of the complement.
        gap: From the best of them to the k-th pair: the error that would hide a better one.
    """
    epsilon = (gap / (rest.max() - rest.min() + gap)).clamp(min=0).nan_to_num()
    return 1.648 * n**0.5 * torch.exp(-(2 * steps - 1) * epsilon.sqrt())


def _panels(Q: Tensor) -> Iterator[slice]:
    return (slice(i, i + PANEL) for i in range(0, Q.shape[1], PANEL))


def _outside(Q: Tensor, w: Tensor) -> Tensor:
    """Return w without its part in the rows of Q."""
    return w - _inner(Q, w) @ Q


def _inner(Q: Tensor, w: Tensor) -> Tensor:
    """Return Q w, block by block: a float32 sum of a million terms keeps but four digits."""
    blocks = [slice(i, i + BLOCK) for i in range(0, len(w), BLOCK)]
    return torch.stack([Q[:, block] @ w[block] for block in blocks]).sum(dim=0)


def _norm(w: Tensor) -> float:
    """Return |w|; a pairwise sum of squares is exact to seven digits where torch.norm is not."""
    return math.sqrt(float((w * w).sum()))
