"""Extreme eigenpairs of a symmetric operator by thick-restart Lanczos.

Wu & Simon (2000) as a Rayleigh-Ritz method: the products P = Q A are kept beside the basis Q, so
the projection T = Q A Q^T is exact whatever vector comes next, and residuals cost no product.
Next comes the largest residual, which is the Lanczos vector (Stewart 2001), and, once the pairs
have converged, a random vector, because a Krylov space holds one vector of each eigenspace.

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
STRIDE = 10  # products between two looks, each cheaper than one, and the fewest of a check
BLOCK = 2**14  # terms of one float32 sum
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
    their complement starts from a random vector. If it changes one of the k values by more than
    that tolerance, a new check follows; otherwise it ends when its best pair has converged too,
    or when an eigenvalue that it hides beyond the k-th is improbable (see ``_risk``).

    Cost: n products when m = n. Otherwise the check adds ten or twenty to the search where the k
    are outliers, and about as many again where the k-th lies inside a dense spectrum.

    Args:
        which: ``LA`` largest, ``SA`` smallest (most negative), ``LM`` largest in magnitude.
        tol: Default: 1e-8 in float64, 1e-4 in float32.
        m: Basis size; peak memory is about 3m vectors. Default: max(2k, k + 20), at most n;
            n itself up to n = 200.
        budget: Products to spend; past it ``converged`` marks what is not. Default: 100 m.
        v0: Start vector, shape (n,). Default: the first normal vector of ``seed``.
        seed: Of all random vectors. There is no unseeded run.
        pieces: The products, by number; those found here are not computed again.
        progress: Called at each look at the residuals.

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
    key, tol = WHICH[which], TOLERANCE[A.dtype] if tol is None else tol
    if not (tol > 0 and math.isfinite(tol)):
        raise InputError(f"eigsh needs tol above 0 and finite, got {tol}: change it")
    if v0 is not None and (v0.shape != (n,) or not torch.isfinite(v0).all() or not v0.any()):
        raise InputError(
            f"eigsh needs a finite v0 of shape ({n},) that is not 0, got {tuple(v0.shape)}: "
            "change it"
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
    basis = _Basis(Q, _numbered(A, pieces), noise)

    w = next(noise) if v0 is None else v0
    start, spent, complete = 0, 0, False
    searched, checked = 0, None  # products before the first check, values at the last one
    while not complete and spent < budget:
        end = m if m == n else min(m, max(start + STRIDE, k + 1))
        end = min(end, start + budget - spent)
        basis.extend(w, start, end)
        spent += end - start
        # The extra pairs that a restart keeps shield the k from the rest of the spectrum.
        start = end if end < m else min(m, k + max(1, (m - k) // 2))
        theta = basis.rotate(end, start, key)
        R = basis.residuals(theta[: k + 1])  # (k + 1, n), one more than wanted for the check
        residuals, limit = R.norm(dim=1), tol * theta.abs().max()
        settled, wanted = residuals <= limit, key(theta)
        if progress:
            progress(spent, None, f"residual {float(residuals[:k].max()):.0e}")

        if end == n:
            complete = True  # the basis spans the whole space
        elif not settled[:k].all():
            w = R[residuals[:k].argmax()]
        elif checked is None or (wanted[:k] - checked > limit).any():
            searched = searched or spent
            checked, begun, start, w = wanted[:k], spent, k, next(noise)
        elif spent - begun < STRIDE or not (
            settled[k] or _risk(theta[k:], wanted[k - 1] - wanted[k], spent - begun, n) <= RISK
        ):
            w = R[k]
        else:
            complete = True

    LOG.info("eigsh: %d products, %d of %d pairs converged", spent, int(settled[:k].sum()), k)
    vectors = Q[:k].clone()  # not a view, which would hold all m
    gram = torch.stack([_inner(vectors, v) for v in vectors])
    return Eigenpairs(
        values=theta[:k].clone(),
        vectors=vectors,
        residuals=residuals[:k].clone(),
        sampling_errors=(
            A.sampling_errors(vectors)
            if isinstance(A, Curvature)
            else torch.zeros(k, dtype=torch.float64)
        ),
        orthogonality=float((gram - torch.eye(k).to(gram)).abs().max()),
        converged=settled[:k] & complete,
        products=searched or spent,
        check_products=spent - (searched or spent),
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
        self, Q: Tensor, product: Callable[[Tensor], Tensor], noise: Iterator[Tensor]
    ) -> None:
        self.Q, self.P, self.T = Q, torch.zeros_like(Q), Q.new_zeros(len(Q), len(Q))
        self.product, self.noise = product, noise

    def extend(self, w: Tensor, start: int, end: int) -> None:
        """Fill the rows from start to end: a Krylov space that begins with w."""
        Q, P, T = self.Q, self.P, self.T
        w = _outside(Q[:start], w)
        for j in range(start, end):
            w = _outside(Q[:j], w)  # again, for what cancellation left behind the first time
            # This comparison waits for the device; a product costs a thousand times as much.
            if _norm(w) <= 10 * torch.finfo(w.dtype).eps * T.abs().max():
                # The rows span an invariant subspace: go on in its complement.
                w = _outside(Q[:j], _outside(Q[:j], next(self.noise)))
            Q[j] = w / _norm(w)
            P[j] = self.product(Q[j])
            c = _inner(Q[: j + 1], P[j])
            T[j, : j + 1] = c
            w = P[j] - c @ Q[: j + 1]

    def rotate(self, end: int, keep: int, key: Key) -> Tensor:
        """Replace ``end`` rows by the most wanted Ritz vectors; return all Ritz values."""
        Q, P, T = self.Q, self.P, self.T
        if not torch.isfinite(T).all():
            raise ComputationError("eigsh met a product that is not finite: look at the loss there")
        theta, S = torch.linalg.eigh(T[:end, :end])
        order = key(theta).argsort(descending=True, stable=True)
        theta, S = theta[order], S[:, order[:keep]]
        Q[:keep], P[:keep] = S.T @ Q[:end], S.T @ P[:end]
        T.zero_().diagonal()[:keep] = theta[:keep]
        return theta

    def residuals(self, theta: Tensor) -> Tensor:
        """Return A v - theta v of the first Ritz vectors v, a row for each theta."""
        return self.P[: len(theta)] - theta[:, None] * self.Q[: len(theta)]


def _risk(rest: Tensor, gap: Tensor, steps: int, n: int) -> Tensor:
    """Bound the probability that ``steps`` from a random vector hide an eigenvalue.

    Kuczynski & Wozniakowski (1992): the largest Ritz value is too small by more than epsilon
    times the spread of the spectrum with probability 1.648 sqrt(n) exp(-(2 steps - 1)
    sqrt(epsilon)) at most. Their space is not restarted; the tests hold it for ours.

    Args:
        rest: Ritz values of the complement.
        gap: From the best of them to the k-th pair: the error that would hide a better one.
    """
    epsilon = gap / (rest.max() - rest.min() + gap)
    return 1.648 * n**0.5 * torch.exp(-(2 * steps - 1) * epsilon.sqrt())


def _outside(Q: Tensor, w: Tensor) -> Tensor:
    """Return w without its part in the rows of Q."""
    return w - _inner(Q, w) @ Q


def _inner(Q: Tensor, w: Tensor) -> Tensor:
    """Return Q w, block by block: a float32 sum of a million terms keeps but four digits."""
    blocks = [slice(i, i + BLOCK) for i in range(0, len(w), BLOCK)]
    return torch.stack([Q[:, block] @ w[block] for block in blocks]).sum(dim=0)


def _norm(w: Tensor) -> Tensor:
    return torch.linalg.vector_norm(w, dtype=torch.float64)  # for the same reason
