"""A check of what every algorithm on an Operator takes for granted."""

from collections.abc import MutableMapping

import torch
from torch import Tensor

from sharpness.curvature import Operator
from sharpness.errors import InputError
from sharpness.vectors import gaussian

# Of the norm of a product. Single precision leaves 3e-5 of it in a network with ReLU; dropout and
# shuffled batches change it by 3e-2 and more.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
FIRST = 2**31  # the number of the first probe in its stream: no start vector of an eigensolver
# What makes an operator fail, most likely.
CAUSES = {
    "repeatable": "switch off dropout and other noise, shuffling and random augmentation",
    "linear": (
        "look for data or statistics of BatchNorm that change between products, and for "
        "finite differences across kinks or in float32"
    ),
    "symmetric": "look for a custom function whose backward is not the derivative of its forward",
}


PROBES = 2  # products beside that with a given vector


def require_symmetric(
    A: Operator, seed: int = 0, *, known: tuple[Tensor, Tensor] | None = None
) -> int:
    """Return the number of products spent to see that A is one symmetric linear map.

    For u and a normal w: A (u + 2 w) = A u + 2 A w and w . A u = u . A w, to 1e-6 of |A u| and
    |A w| in float64 and 1e-3 in float32. Products that change between calls are not linear
    either; which of the two it was, A u once more tells. What fails has no eigenvalues to speak
    of; what passes may still be another map than meant, such as that of a loss with BatchNorm by
    batch in a fixed order.

    Cost: two products, one more without ``known``, and one more before an error.

    Args:
        known: A vector u, with its product. Default: another normal one.

    Raises:
        InputError: If A fails, with the likely causes.

    >>> from sharpness.curvature import Dense
    >>> require_symmetric(Dense(torch.tensor([[2.0, 1.0], [1.0, 3.0]])))
    3
    >>> require_symmetric(Dense(torch.tensor([[2.0, 1.0], [-1.0, 3.0]])))
    Traceback (most recent call last):
    sharpness.errors.InputError: an operator needs to be symmetric, ...
    """
    like = torch.empty(0, dtype=A.dtype, device=A.device)
    w = gaussian(A.size, seed, FIRST, like=like)
    u = gaussian(A.size, seed, FIRST + 1, like=like) if known is None else known[0]
    # As long as u, whatever that is: each has its share in the sum.
    w = w * (u.norm() / w.norm())
    Au = A @ u if known is None else known[1]
    Aw, both = A @ w, A @ (u + 2 * w)
    scale = torch.stack([Au.double().norm(), Aw.double().norm()]).max()
    gaps = {
        "linear": (both.double() - Au - 2 * Aw.double()).norm(),
        # Of a normal w, w . x is as large as |w| |x| / sqrt(n): where A is not symmetric, so is
        # this.
        "symmetric": (w.double() @ Au.double() - u.double() @ Aw.double()).abs()
        * (A.size**0.5 / u.double().norm()),
    }
    for name, gap in gaps.items():
        relative = float(gap / scale) if gap else 0.0  # the zero map is symmetric
        if not relative <= TOLERANCE[A.dtype]:
            again = float((A @ u - Au).norm() / scale)
            changed = name == "linear" and not again <= TOLERANCE[A.dtype]
            name = "repeatable" if changed else name
            raise InputError(
                f"an operator needs to be {name}, got products that differ by {relative:.0e} of "
                f"their norm: {CAUSES[name]}"
            )
    return PROBES + (known is None)


class Counted:
    """A as an operator that counts and numbers its products; a first one is probed.

    The i-th product is taken from or put into ``pieces``.
    """

    def __init__(self, A: Operator, pieces: MutableMapping[str, Tensor] | None, seed: int) -> None:
        self.A, self.pieces, self.seed = A, pieces, seed
        self.size, self.dtype, self.device, self.spec = A.size, A.dtype, A.device, A.spec
        self.spent = self.probes = 0

    def __matmul__(self, v: Tensor) -> Tensor:
        """Return the product with v, shape (n,)."""
        name = f"product {self.spent}"
        self.spent += 1
        if self.pieces is None:
            return self.A @ v
        if name not in self.pieces:
            self.pieces[name] = self.A @ v
        return self.pieces[name].to(v)

    def row(self, q: Tensor) -> Tensor:
        """Return the product with a row of the basis, which may be elsewhere than A."""
        v = q.to(self.device, self.dtype)
        w = self @ v
        # Differences of gradients are no linear map across kinks: their error is told instead.
        is_map = getattr(self.A, "error", None) is None
        if self.spent == 1 and is_map and torch.isfinite(w).all():
            self.probes = require_symmetric(self, self.seed, known=(v, w))
        return w.to(q)
