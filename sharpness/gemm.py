"""The product of float32 matrices on the CPU: torch's default, or oneDNN's where that is as exact.

On some CPUs with AVX-512 torch's default product runs at half the rate of oneDNN's, which torch
takes when it is allowed to round operands to bfloat16. Without instructions for that, oneDNN
computes in float32 nevertheless; with them (AMX) it rounds. So what it does is measured at each
use, never assumed, and no time is: a timing that chooses the product would choose the bits.

Letters: operands m x k and k x n, the unit roundoff u = 2^-24 of float32.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from sharpness.errors import InputError

Product = tuple[Callable[..., Tensor], tuple[Tensor, ...]]  # a function and its operands

# m, k, n: square, ragged, tall, wide, and outer products; oneDNN takes those of m k n > 16^3.
SHAPES = [(256, 256, 256), (129, 257, 65), (1024, 64, 10), (10, 2048, 64), (256, 16, 512)]
ROUNDOFF = 2.0**-24
MATMUL = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
DEFAULT = ("none", "ieee")  # torch's names for its product in full float32
_entered = 0  # how many fast_gemm are open, in all threads


@contextmanager
def fast_gemm() -> Iterator[None]:
    """Return a context in which oneDNN takes the products of float32 matrices on the CPU.

    Products of several shapes with seeded matrices are compared with float64 as it is entered.
    With independent entries of mean zero, a sum of k products that is rounded after each of them,
    in whatever order, errs by u (1 + sqrt((k + 1) / 2)) <= 2 u sqrt(k) of its size (root mean
    square, rounding errors as independent: N. J. Higham and T. Mary (2019), SIAM J. Sci. Comput.
    41, A2815); this is the limit, 1.9e-6 for k = 256, where operands rounded to bfloat16 err by
    2.4e-3. The bits of the products depend on the context, so an ``Objective`` that is made in it
    records ``gemm: oneDNN`` in its spec and is refused outside, as is one of outside in here.
    Other dtypes and devices are left alone.

    Raises:
        InputError: If oneDNN does not take the products on this machine, or errs by more.

    >>> A = torch.ones(64, 64)
    >>> try:
    ...     with fast_gemm():
    ...         B = A @ A
    ... except InputError:  # not on this CPU
    ...     B = A @ A
    >>> torch.equal(B, 64 * A)
    True
    """
    global _entered
    # What is inherited has to be so afterwards, and torch only tells what is in force.
    inherited = MATMUL.fp32_precision == torch.backends.mkldnn.fp32_precision
    before = "none" if inherited else MATMUL.fp32_precision
    products = list(_products())
    try:
        MATMUL.fp32_precision = "ieee"
        default = [f(*operands) for f, operands in products]
        MATMUL.fp32_precision = "bf16"
        _require_float32(products, default)
        _entered += 1
        try:
            yield
        finally:
            _entered -= 1
    finally:
        MATMUL.fp32_precision = before


def in_force(like: Tensor) -> str | None:
    """Return what takes products of matrices such as this, None for torch's default.

    ``oneDNN`` in ``fast_gemm``; ``bf16`` or ``tf32`` where torch is allowed this by its user.
    """
    setting = MATMUL.fp32_precision
    if like.dtype != torch.float32 or like.device.type != "cpu" or setting in DEFAULT:
        return None
    return "oneDNN" if _entered and setting == "bf16" else str(setting)


def _products() -> Iterator[Product]:
    """Yield functions of torch and their operands, always the same ones."""
    g = torch.Generator().manual_seed(0)
    for m, k, n in SHAPES:
        A, B, C = (torch.randn(shape, generator=g) for shape in [(2, m, k), (2, k, n), (m, n)])
        yield torch.mm, (A[0], B[0])
        yield torch.mm, (A[1].view(k, m).T, B[1].view(n, k).T)
        yield torch.addmm, (C, A[0], B[1])
        yield torch.bmm, (A, B)
        yield torch.mv, (A[1], B[0].flatten()[:k])


def _require_float32(products: list[Product], default: list[Tensor]) -> None:
    found = [f(*operands) for f, operands in products]
    if all(torch.equal(C, other) for C, other in zip(found, default, strict=True)):
        raise InputError(
            "fast_gemm needs a CPU where oneDNN takes products of float32 matrices, got those of "
            "torch's default: leave it out"
        )
    for (f, operands), C in zip(products, found, strict=True):
        exact = f(*(A.double() for A in operands))
        error = float((C - exact).norm() / exact.norm())
        k = operands[-2].shape[-1]
        limit = 2 * ROUNDOFF * k**0.5
        if not error <= limit:
            raise InputError(
                f"fast_gemm needs float32 products that err by at most {limit:.1e} for k = {k}, "
                f"got {error:.1e} from {f.__name__} on this CPU: leave it out"
            )
