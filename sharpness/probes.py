"""A check of what every algorithm on an Operator takes for granted."""

import torch

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


def require_symmetric(A: Operator, seed: int = 0) -> int:
    """Return the number of products spent to see that A is one symmetric linear map, 4.

    For normal u and w: A u twice is the same, A (u + 2 w) = A u + 2 A w and w . A u = u . A w, to
    1e-6 of |A u| and |A w| in float64 and 1e-3 in float32. What fails has no eigenvalues to
    speak of; what passes may still be another map than meant, such as that of a loss with
    BatchNorm by batch in a fixed order.

    Raises:
        InputError: If A fails, with the likely causes.

    >>> from sharpness.curvature import Dense
    >>> require_symmetric(Dense(torch.tensor([[2.0, 1.0], [1.0, 3.0]])))
    4
    >>> require_symmetric(Dense(torch.tensor([[2.0, 1.0], [-1.0, 3.0]])))
    Traceback (most recent call last):
    sharpness.errors.InputError: an operator needs to be symmetric, ...
    """
    like = torch.empty(0, dtype=A.dtype, device=A.device)
    u, w = (gaussian(A.size, seed, FIRST + i, like=like) for i in range(2))
    products = [A @ u, A @ u, A @ w, A @ (u + 2 * w)]
    Au, again, Aw, both = (product.double() for product in products)
    scale = torch.stack([Au.norm(), Aw.norm()]).max()
    gaps = torch.stack(
        [
            (again - Au).norm(),
            (both - Au - 2 * Aw).norm(),
            # Of a normal w, w . x is as large as |x|: where A is not symmetric, so is this.
            (w.double() @ Au - u.double() @ Aw).abs(),
        ]
    )
    gaps = torch.where(gaps == 0, 0, gaps / scale)  # the zero map is symmetric
    for (name, cause), gap in zip(CAUSES.items(), gaps.tolist(), strict=True):
        if not gap <= TOLERANCE[A.dtype]:
            raise InputError(
                f"an operator needs to be {name}, got products that differ by {gap:.0e} of their "
                f"norm: {cause}"
            )
    return len(products)
