"""Quadrature nodes of the spectral measure of a vector, by Lanczos in the complement of others.

m steps from a unit vector v give a tridiagonal T, whose eigenvalues are the nodes and the squared
first components of whose eigenvectors the weights: v^T f(A) v = sum_i w_i f(node_i), exactly for
polynomials of degree up to 2m - 1 (Golub and Welsch 1969).

Letters: n unknowns, m steps, d vectors that are left out.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sharpness.errors import ComputationError
from sharpness.rayleigh_ritz import CANCELLED, inner

NOTHING = 100  # machine precisions of the largest entry of T: what is less is rounding


def nodes_of(
    product: Callable[[Tensor], Tensor],
    v: Tensor,
    steps: int,
    *,
    without: Tensor | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return nodes, ascending, and weights of v, shape (j,) each, j <= steps, in float64.

    Fewer than ``steps`` where the vectors that come of v span an invariant subspace: the measure
    is then exact. The basis is kept orthonormal to rounding, or copies of converged nodes would
    come back as others.

    Cost: j products; m + 4 vectors of memory, v and two products among them.

    Args:
        product: u -> A u.
        v: Of unit length, orthogonal to ``without``.
        without: Orthonormal rows, (d, n), of an invariant subspace that is left out.
        progress: Called with the number of steps done.

    Raises:
        ComputationError: If a product is not finite.

    >>> A, v = torch.tensor([1.0, 5.0]).double(), torch.tensor([0.6, 0.8]).double()
    >>> nodes_of(lambda u: A * u, v, 9)
    (tensor([1.0000, 5.0000], dtype=torch.float64), tensor([0.3600, 0.6400], dtype=torch.float64))
    """
    w = product(v)  # before there is a basis: a first product is probed, in memory of its own
    rows, left = v.new_empty(steps, len(v)), torch.empty_like(v)
    rows[0] = v
    diagonal: list[float] = []
    beside: list[float] = []
    for j in range(steps):
        if j:
            w = product(rows[j])
        parts = [rows[: j + 1]] if without is None else [without, rows[: j + 1]]
        before = rows[max(j - 1, 0) : j + 1]
        near = inner(before, w)
        # Never in place of the product, which may be kept by its operator, and from here on in
        # place: of vectors this long, a new one costs more than the arithmetic.
        torch.addmv(w, before.T, near, alpha=-1, out=left)
        alpha = near[-1]
        for _ in range(2):
            far = [_take_out(part, left) for part in parts]
            alpha = alpha + far[-1][-1]
            square = inner(left[None], left)[0]
            found = torch.stack([alpha, square.sqrt(), torch.cat(far).norm()]).double().cpu()
            if not torch.isfinite(found).all():
                raise ComputationError(
                    f"a spectrum needs finite products, got one that is not in step {j + 1}: look "
                    "at the loss there"
                )
            value, beta, lost = found.tolist()
            if beta >= CANCELLED * (beta**2 + lost**2) ** 0.5:
                break
        diagonal.append(value)
        if progress:
            progress(j + 1)
        scale = max(abs(x) for x in [*diagonal, *beside])
        if beta <= NOTHING * torch.finfo(v.dtype).eps * scale or j == steps - 1:
            break
        beside.append(beta)
        torch.div(left, beta, out=rows[j + 1])
    T = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if beside:
        off = torch.tensor(beside, dtype=torch.float64)
        T += torch.diag(off, 1) + torch.diag(off, -1)
    theta, S = torch.linalg.eigh(T)
    return theta, S[0] ** 2


def _take_out(rows: Tensor, w: Tensor) -> Tensor:
    """Return what w had along each of the rows, which it has no more."""
    along = inner(rows, w)
    w.addmv_(rows.T, along, alpha=-1)
    return along
