"""Extreme eigenpairs of a symmetric operator by thick-restart Lanczos.

Wu & Simon (2000) as a Rayleigh-Ritz method (see ``sharpness.rayleigh_ritz``). Next comes the
Lanczos vector, what a product has outside the basis, or, after a restart, the largest residual,
which is the same (Stewart 2001). Once the pairs have converged a random vector comes, because a
Krylov space holds one vector of each eigenspace.

Letters: n unknowns, m basis vectors, k wanted pairs.
"""

import logging
import math
from collections.abc import Callable, MutableMapping
from itertools import count

import torch
from torch import Tensor

from sharpness.curvature import Operator
from sharpness.errors import InputError
from sharpness.operators import sampling_errors_of
from sharpness.probes import PROBES, Counted
from sharpness.rayleigh_ritz import Basis, Key, inner
from sharpness.results import Eigenpairs
from sharpness.vectors import gaussian

LOG = logging.getLogger(__name__)

# Wanted are the eigenvalues for which this is largest.
WHICH: dict[str, Key] = {"LA": torch.positive, "SA": torch.negative, "LM": torch.abs}
# Square roots of the machine precisions, rounded: the error of an isolated value is the square.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}
# Up to this n the default basis spans the whole space: the answer of a dense solver, nothing to
# check, and never more than n products where a hard spectrum would take thousands.
SMALL = 200
MEMORY = 4 * 2**30  # bytes of the basis: a constant, because another basis rounds differently
SPARE = 8  # vectors beside the basis and its products
FEWEST = 10  # products of a check that ends because its best pair has converged
ROUNDING = 10  # machine precisions by which a residual may be larger than the search knows
RISK = 1e-2  # of a check that misses an eigenvalue: a bound, for the worst of all spectra


def eigsh(
    A: Operator,
    k: int,
    *,
    which: str = "LA",
    tol: float | None = None,
    m: int | None = None,
    budget: int | None = None,
    memory: int = MEMORY,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
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

    In the end the residuals are taken once more, from the products of the basis or from k fresh
    ones, so that they hold the rounding of all that came before. A tolerance below that rounding,
    some 1e-6 in float32, ends with pairs that are not converged and not with the budget.

    Cost: n products when m = n. Otherwise the check adds some ten to the search where the k are
    outliers, and about as many again where the k-th lies inside a dense spectrum. Two more tell
    whether A is a symmetric linear map (see ``sharpness.probes``); they count as checks.

    Args:
        which: ``LA`` largest, ``SA`` smallest (most negative), ``LM`` largest in magnitude.
        tol: Default: 1e-8 in float64, 1e-4 in float32.
        m: Basis size. Default: max(2k, k + 20), at most n, and less if ``memory`` is short; n
            itself up to n = 200.
        budget: Products to spend; past it ``converged`` marks what is not. Default: 100 m.
        memory: Bytes for 2m + 8 vectors, the basis and its products. Where they do not fit the
            products are not kept: m + 8 vectors, and k fresh products in the end.
        dtype: Of the basis, such as float64 beside an operator in float32. Default: that of A.
        device: Of the basis, such as the CPU where a GPU is short. Default: that of A.
        v0: Start vector, shape (n,), or vectors, (s, n), such as those of a nearby answer, from
            which the search may end at its first look, after k + 1 products. Default: the first
            normal vector of ``seed``.
        seed: Of all random vectors. There is no unseeded run.
        pieces: The products, by number; those found here are not computed again.
        progress: Called after each product.

    Raises:
        InputError: If k, m, which, dtype, budget or memory cannot be met, or if A is no symmetric
            linear map.
        ComputationError: If a product is not finite.

    >>> from sharpness.curvature import Dense
    >>> eigsh(Dense(torch.diag(torch.tensor([2.0, 3.0, 3.0, 1.0]))), 2).values.round(decimals=4)
    tensor([3., 3.])
    """
    n = A.size
    dtype = A.dtype if dtype is None else dtype
    if which not in WHICH or not {A.dtype, dtype} <= TOLERANCE.keys():
        raise InputError(
            f"eigsh needs one of {', '.join(WHICH)} and float32 or float64, got {which} and "
            f"{A.dtype if A.dtype not in TOLERANCE else dtype}: choose another or convert the model"
        )
    m, stored = _sizes(n, k, m, memory // (n * dtype.itemsize) - SPARE)
    budget = 100 * m if budget is None else budget
    fewest = k + PROBES + (0 if stored else k)
    if not (0 < k <= n and (k + 2 <= m <= n or m == n) and fewest <= budget):
        raise InputError(
            f"eigsh needs 0 < k <= n, k + 2 <= m <= n (or m = n) and a budget of {fewest} for "
            f"them, got k={k}, m={m}, n={n}, budget={budget}: ask for fewer pairs or change m"
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
    Q = torch.empty(m, n, dtype=dtype, device=device or A.device)
    noise = (gaussian(n, seed, i, like=Q) for i in count())
    counted = Counted(A, pieces, seed)
    basis = Basis(Q, counted.row, noise, WHICH[which], stored=stored)
    search = _Search(basis, counted, k, tol, budget)
    search.run(next(noise) if v0 is None else v0, progress)
    values, residuals, settled = search.finish()
    products = search.searched or counted.spent - counted.probes

    LOG.info("eigsh: %d products, %d of %d pairs converged", counted.spent, int(settled.sum()), k)
    basis.P = None  # before the vectors take its place
    vectors = Q[:k].clone()  # not a view, which would hold all m
    gram = inner(vectors, vectors.T)
    return Eigenpairs(
        values=values,
        vectors=vectors,
        residuals=residuals,
        sampling_errors=sampling_errors_of(A, vectors.to(A.device, A.dtype)),
        orthogonality=float((gram - torch.eye(k).to(gram)).abs().max()),
        converged=settled & search.complete,
        products=products,
        check_products=counted.spent - products,
        spec={
            "algorithm": "eigsh",
            "k": k,
            "which": which,
            "tol": tol,
            "m": m,
            "budget": budget,
            "memory": memory,
            "basis": {
                "dtype": str(dtype),
                "device": Q.device.type,
                "residuals": "stored products" if stored else "fresh products",
            },
            "start": "random" if v0 is None else "given",
            "seed": seed,
            "operator": A.spec,
        },
    )


def _sizes(n: int, k: int, m: int | None, room: int) -> tuple[int, bool]:
    """Return the basis size, and whether its products are kept, where there is room for vectors.

    Raises:
        InputError: If not even a basis fits.
    """
    wanted = (n if n <= SMALL else min(n, max(2 * k, k + 20))) if m is None else m
    least = min(n, k + 2) if m is None else m
    if room < least:
        raise InputError(
            f"eigsh needs memory for {least + SPARE} vectors of {n} numbers, got that of "
            f"{room + SPARE}: raise it, or ask for fewer pairs"
        )
    return min(wanted, room), 2 * min(wanted, room) <= room


class _Search:
    """The state of a search for k pairs, and of the check that none was missed."""

    def __init__(self, basis: Basis, counted: Counted, k: int, tol: float, budget: int) -> None:
        self.basis, self.counted, self.k, self.tol = basis, counted, k, tol
        # True residuals cost k products in the end where those of the rows are not at hand.
        self.budget = budget - (0 if basis.P is not None else k)
        self.m, self.n = basis.Q.shape
        self.searched = 0  # products before the first check, without probes
        self.complete = False
        self.is_check = self.is_deep = False
        self.checked = torch.zeros(0)  # how wanted the values were when the check began
        self.begun, self.anchor = 0, 0  # products before the check, rows that it does not enter

    def run(self, start: Tensor, progress: Callable[[int, int | None, str], None] | None) -> None:
        """Search until the pairs have converged and were checked, or the budget is spent."""
        basis, k = self.basis, self.k
        given = list(start.reshape(-1, self.n).to(basis.Q).flip(0))
        while not self.complete and self.counted.spent < self.budget:
            if given:
                basis.turn(given.pop())
            basis.grow()
            whole, full = basis.rows == self.n, basis.rows == self.m
            if self.m == self.n and not whole:
                continue  # all rows are wanted, whatever the first ones say
            theta, S = basis.ritz()
            if progress:
                largest = float(basis.residuals(S[:, :k]).max())
                progress(self.counted.spent, None, f"residual {largest:.0e}")
            if whole:
                self.complete = True
            elif basis.rows > k and not self.is_check:
                self._seek(theta, S, full)
            elif basis.rows > k:
                self._check(theta, S, full)

    def finish(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rotate to the pairs; return values, residuals and which are within the tolerance."""
        theta, S = self.basis.ritz()
        self.basis.rotate(theta, S, self.k)
        residuals = self.basis.true_residuals(theta[: self.k])
        settled = residuals <= self.tol * theta.abs().max()
        like = self.basis.Q
        return theta[: self.k].to(like), residuals.to(like), settled.to(like.device)

    def _limit(self, theta: Tensor) -> float:
        """Return the residual that will do, with room for the rounding that it does not show."""
        rounding = ROUNDING * torch.finfo(self.basis.Q.dtype).eps
        return max(self.tol - rounding, rounding) * float(theta.abs().max())

    def _seek(self, theta: Tensor, S: Tensor, full: bool) -> None:
        """Begin the check where the pairs have converged, restart where the basis is full."""
        residuals = self.basis.residuals(S[:, : self.k])
        if (residuals <= self._limit(theta)).all():
            self._begin(theta, S)
        elif full:
            self._restart(theta, S, int(residuals.argmax()))

    def _begin(self, theta: Tensor, S: Tensor) -> None:
        """Begin a check, from a random vector, beside as many rows as leave room for it."""
        self.searched = self.searched or self.counted.spent - self.counted.probes
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
        self.anchor, self.begun = self.basis.rows, self.counted.spent
        self.basis.turn(next(self.basis.noise))

    def _check(self, theta: Tensor, S: Tensor, full: bool) -> None:
        """End the check, or go on with what it found."""
        basis, k, limit = self.basis, self.k, self._limit(theta)
        wanted, steps = basis.key(theta), self.counted.spent - self.begun
        if (wanted[:k] - self.checked > limit).any():
            self.is_check = False
            self._seek(theta, S, full)
            return
        rest = theta[k:] if self.is_deep else basis.ritz(self.anchor)[0]
        gap = wanted[k - 1] + limit - basis.key(rest).max()
        hidden = bool(_risk(rest, gap, steps, self.n) > RISK)
        residuals = basis.residuals(S[:, : k + 1])
        settled = residuals <= limit
        # The best that the complement has, once it had time to come forward.
        found_next = self.is_deep and steps >= FEWEST and bool(settled[k])
        self.complete = bool(settled[:k].all()) and (found_next or not hidden)
        if self.complete or not full:
            return
        if self.is_deep:
            self._restart(theta, S, k if settled[:k].all() else int(residuals[:k].argmax()))
        else:
            # The k-th lies inside a dense part: give the complement all the room there is.
            self.is_deep = True
            self._turn_to_complement(theta, S, k)

    def _restart(self, theta: Tensor, S: Tensor, worst: int) -> None:
        """Keep the wanted pairs and some more, which shield them from the rest of the spectrum."""
        keep = min(self.m - 1, self.k + max(1, (self.m - self.k) // 2))
        w = self.basis.residual(S[:, worst])
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
