"""The top ten eigenvalues of the Hessian of a workload, by the library and by its peers.

A solver is called with a workload and the tolerance, and returns an ``Answer``; all that it needs
to build, it builds in there. Ours and curvlinops take the same batches; the peers that keep or
weigh them otherwise take all examples as one.
"""

import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

import sharpness as sh
from sharpness.curvature import Operator
from sharpness.vectors import gaussian

from .workloads import Workload

PAIRS = 10  # the eigenvalues asked for, the largest in magnitude


@dataclass(frozen=True)
class Answer:
    """Eigenpairs as a solver gave them, and what they cost."""

    values: Tensor  # (k,)
    vectors: Tensor  # (k, n)
    products: int  # those of a check not counted
    check_products: int = 0
    product_seconds: float | None = None  # spent inside the products


class Timed:
    """An operator that counts its products and the seconds spent in them."""

    def __init__(self, A: Operator) -> None:
        self.A, self.size, self.dtype, self.device, self.spec = A, A.size, A.dtype, A.device, A.spec
        self.products, self.seconds = 0, 0.0

    def __matmul__(self, v: Tensor) -> Tensor:
        """Return the product with v, shape (n,)."""
        begun = time.perf_counter()
        w = self.A @ v
        self.seconds += time.perf_counter() - begun
        self.products += 1
        return w


def ours(workload: Workload, tol: float) -> Answer:
    """Return the answer of ``sharpness.eigsh``."""
    A = Timed(sh.Hessian(workload.objective()))
    pairs = sh.eigsh(A, PAIRS, which="LM", tol=tol)
    return Answer(pairs.values, pairs.vectors, pairs.products, pairs.check_products, A.seconds)


def ours_fast(workload: Workload, tol: float) -> Answer:
    """Return the answer of ``sharpness.eigsh`` with oneDNN's product, checked before."""
    with sh.fast_gemm():
        return ours(workload, tol)


def scipy_on_ours(workload: Workload, tol: float) -> Answer:
    """Return the answer of SciPy's eigsh for our operator, from the start vector of ours."""
    A = Timed(sh.Hessian(workload.objective()))
    start = gaussian(A.size, 0, 0, like=torch.zeros((), dtype=A.dtype)).numpy()
    values, vectors = eigsh(sh.to_scipy(A), k=PAIRS, which="LM", tol=tol, v0=start)
    return _answer(values, vectors, A.products, A.seconds)


def curvlinops(workload: Workload, tol: float) -> Answer:
    """Return the answer of curvlinops' Hessian with SciPy's eigsh, as its documentation has it."""
    from curvlinops import HessianLinearOperator

    workload = _for_peers(workload)
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no forward derivative
        A = HessianLinearOperator(
            workload.model,
            nn.CrossEntropyLoss(),
            list(workload.model.parameters()),
            workload.batches(),
        ).to_scipy()
        products = 0

        def product(v: Any) -> Any:
            nonlocal products
            products += 1
            return A @ v

        counted = LinearOperator(A.shape, matvec=product, dtype=A.dtype)
        values, vectors = eigsh(counted, k=PAIRS, which="LM", tol=tol)
    return _answer(values, vectors, products)


def pyhessian(workload: Workload, tol: float) -> Answer:
    """Return the answer of PyHessian with its own stopping rule, whatever ``tol``."""
    from pyhessian import hessian

    workload = _for_peers(workload)
    module, products = sys.modules["pyhessian.hessian"], 0
    product = module.hessian_vector_product

    def counted(*args: Any) -> Any:
        nonlocal products
        products += 1
        return product(*args)

    module.hessian_vector_product = counted  # type: ignore[attr-defined]
    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
        warnings.simplefilter("ignore")  # that it keeps a graph in .grad
        A = hessian(
            workload.model,
            cross_entropy,
            data=(workload.inputs, workload.targets),
            cuda=False,
        )
        values, vectors = A.eigenvalues(top_n=PAIRS)
    rows = [torch.cat([part.detach().flatten() for part in vector]) for vector in vectors]
    return Answer(torch.tensor(values), torch.stack(rows), products)


def hessian_eigenthings(workload: Workload, tol: float) -> Answer:
    """Return the answer of pytorch-hessian-eigenthings 1.0, given as many steps as our basis."""
    from hessian_eigenthings import HessianOperator, lanczos, supervised_loss

    workload = _for_peers(workload)
    data = [(workload.inputs, workload.targets)]
    with sdpa_kernel(SDPBackend.MATH):
        A = HessianOperator(workload.model, data, supervised_loss(cross_entropy))
        pairs = lanczos(A, k=PAIRS, which="LM", tol=tol, max_iter=PAIRS + 20, seed=0)
    return Answer(pairs.eigenvalues, pairs.eigenvectors, pairs.iterations)


SOLVERS: dict[str, Callable[[Workload, float], Answer]] = {
    "ours": ours,
    "ours_fast": ours_fast,
    "curvlinops": curvlinops,
    "scipy_on_ours": scipy_on_ours,
    "pyhessian": pyhessian,
    "hessian_eigenthings": hessian_eigenthings,
}
PACKAGES = {  # whose versions the results tell, by the solver that needs them
    "curvlinops": "curvlinops-for-pytorch",
    "pyhessian": "pyhessian",
    "hessian_eigenthings": "hessian-eigenthings",
}


def true_residual(A: Operator, values: Tensor, vectors: Tensor) -> float:
    """Return max |A v - lambda v| / max |lambda| over the pairs, with |v| = 1, summed in float64.

    >>> A = sh.Dense(torch.diag(torch.tensor([2.0, 1.0])))
    >>> round(true_residual(A, torch.tensor([2.0]), torch.tensor([[3.0, 4.0]])), 6)  # 0.8 / 2
    0.4
    """
    largest, scale = 0.0, values.abs().max().double()
    for theta, vector in zip(values.double(), vectors, strict=True):
        v = vector.double() / vector.double().norm()
        w = (A @ v.to(A.dtype)).double()
        largest = max(largest, float((w - theta * v).norm() / scale))
    return largest


def _answer(values: Any, vectors: Any, products: int, seconds: float | None = None) -> Answer:
    return Answer(
        torch.from_numpy(values.copy()),
        torch.from_numpy(vectors.T.copy()),
        products,
        product_seconds=seconds,
    )


class _ClassesSecond(nn.Module):
    """A model of sequences with outputs (b, classes, length), as ``nn.CrossEntropyLoss`` has it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (b, vocabulary, length)."""
        z: Tensor = self.model(x)
        return z.transpose(1, 2)


def _for_peers(workload: Workload) -> Workload:
    """Return the workload for losses that are a mean over all targets by themselves."""
    if workload.targets.ndim == 1:
        return workload
    return replace(workload, model=_ClassesSecond(workload.model), loss=cross_entropy)
