"""Curvature matrices of an Objective as symmetric operators on vectors of length n."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sharpness.errors import ComputationError, InputError
from sharpness.objective import Inputs, Objective, Point, fingerprint
from sharpness.results import Solution


class Operator(Protocol):
    """A symmetric map on vectors of shape (n,), n = size."""

    size: int
    dtype: torch.dtype
    device: torch.device
    spec: dict[str, Any]

    def __matmul__(self, v: Tensor) -> Tensor: ...


class Dense:
    """An explicit symmetric matrix: the operator of tests and small problems.

    >>> Dense(torch.diag(torch.tensor([1.0, 4.0]))) @ torch.ones(2)
    tensor([1., 4.])
    """

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.size = matrix, len(matrix)
        self.dtype, self.device = matrix.dtype, matrix.device
        self.spec: dict[str, Any] = {"operator": "Dense", "size": self.size}

    def __matmul__(self, v: Tensor) -> Tensor:
        """Return the product with v, shape (n,)."""
        return self.matrix @ v


class Curvature(ABC):
    """A mean over examples of symmetric maps, one for each batch of an Objective, at theta.

    Args:
        point: Where, a Solution or theta of shape (n,). Default: the model as it came.
        engine: ``cached`` builds the map of each batch once and keeps its graph; ``fresh``
            builds it again for each product, in the memory of one batch.
    """

    def __init__(
        self, objective: Objective, point: Point | None = None, *, engine: str = "cached"
    ) -> None:
        if engine not in ENGINES:
            raise InputError(f"engine needs to be cached or fresh, got {engine!r}")
        self.objective, self.engine = objective, engine
        self._here = objective.at(objective.theta if point is None else point)
        self.theta = self._here.theta.detach().requires_grad_()
        self.size, self.dtype, self.device = len(self.theta), self.theta.dtype, self.theta.device
        self.spec: dict[str, Any] = {
            "operator": type(self).__name__,
            "engine": engine,
            "point": fingerprint(self._here),
            "objective": objective.spec,
        }
        self._maps: dict[int, Callable[[Tensor], Tensor]] = {}

    @cached_property
    def point(self) -> Solution:
        """The point with theta as a leaf; re-estimated statistics are constants of all products."""
        return replace(self.objective.settled(self._here), theta=self.theta)

    def __matmul__(self, v: Tensor) -> Tensor:
        """Return the product with v, shape (n,)."""
        with torch.enable_grad():
            return self.objective.mean(self._product(v))

    def sampling_errors(self, vectors: Tensor) -> Tensor:
        """Return the standard errors of v^T A v, shape (k,), for the rows v of vectors, (k, n).

        They are those of the eigenvalues to first order (see ``Objective.sampling_error``), and
        0 where the examples are all there are.

        Cost: two products for each row, none for a whole data set.
        """
        if not self.objective.is_sample:
            return torch.zeros(len(vectors), dtype=torch.float64)

        def quadratic(v: Tensor) -> Callable[[int, Inputs, Tensor], Tensor]:
            product = self._product(v)
            return lambda *batch: v @ product(*batch)

        with torch.enable_grad():
            errors = [self.objective.sampling_error(quadratic(v)) for v in vectors]
        return torch.stack(errors).cpu()

    def _product(self, v: Tensor) -> Callable[[int, Inputs, Tensor], Tensor]:
        if torch.is_inference_mode_enabled():
            raise InputError("curvature needs derivatives, got torch.inference_mode: leave it")
        _ = self.point  # before the pass over the data: it may take one of its own

        def product(i: int, inputs: Inputs, targets: Tensor) -> Tensor:
            if i in self._maps:
                return self._maps[i](v)
            # Fused attention kernels have no second derivative (pytorch#116350).
            with sdpa_kernel(SDPBackend.MATH):
                batch_map = self.batch_map(inputs, targets)
            if self.engine == "cached":
                self._maps[i] = batch_map
            return batch_map(v)

        return product

    @abstractmethod
    def batch_map(self, inputs: Inputs, targets: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the map of one batch, a function from (n,) to (n,)."""


class Hessian(Curvature):
    """The second derivative of the loss in theta.

    By double backward: forward over reverse fails on the mean of squares (pytorch#123996), and
    a linearization costs more to build than the few products of an eigensolver give back.

    Cost: about two gradients for a product, one more where the graph is not kept.

    >>> X, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 1)
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> f = Objective(model, [(X, y)], torch.nn.functional.mse_loss)
    >>> Hessian(f) @ torch.ones(2)  # 2 / N X^T X = diag(1, 4)
    tensor([1., 4.])
    """

    def batch_map(self, inputs: Inputs, targets: Tensor) -> Callable[[Tensor], Tensor]:
        """Return v -> H v of one batch."""
        loss = self.objective.batch_loss(self.point, inputs, targets)
        slope = _vjp(loss, self.theta, create_graph=True)
        return lambda v: _vjp(slope, self.theta, v)


class AdaptiveHessian(Hessian):
    """diag(|theta|) H diag(|theta|), the curvature in relative changes of the parameters.

    Its eigenvalues stay when a rescaling of theta by diagonal factors leaves the function alone,
    as those of layers and neurons of a ReLU network do; those of H do not (Dinh et al. 2017, whose
    f = (u v - 1)^2 / 2 is in the example). Source: the element-wise T of Kwon et al. (2021).

    Cost: as the Hessian.

    >>> class Product(torch.nn.Module):
    ...     def __init__(self, u):
    ...         super().__init__()
    ...         self.w = torch.nn.Parameter(torch.tensor([u, 1 / u]))
    ...
    ...     def forward(self, x):
    ...         return self.w.prod() * x
    >>> def loss(z, y):
    ...     return (z - y).square().mean() / 2
    >>> data = [(torch.ones(1), torch.ones(1))]
    >>> for u in (1.0, 100.0):  # |u| H |u| = [[1, 1], [1, 1]] at all these minima, u v = 1
    ...     (AdaptiveHessian(Objective(Product(u), data, loss)) @ torch.tensor([1.0, 0.0])).round()
    tensor([1., 1.])
    tensor([1., 1.])
    """

    def batch_map(self, inputs: Inputs, targets: Tensor) -> Callable[[Tensor], Tensor]:
        """Return v -> |theta| H (|theta| v) of one batch."""
        scale, product = self.theta.detach().abs(), super().batch_map(inputs, targets)
        return lambda v: scale * product(scale * v)


class GaussNewton(Curvature):
    """J^T H J, with J the Jacobian of the outputs and H the Hessian of the loss in them.

    Positive semidefinite for a convex loss; equal to the Hessian where the outputs are linear.

    >>> X, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 1)
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> f = Objective(model, [(X, y)], torch.nn.functional.mse_loss)
    >>> GaussNewton(f) @ torch.ones(2)
    tensor([1., 4.])
    """

    def batch_map(self, inputs: Inputs, targets: Tensor) -> Callable[[Tensor], Tensor]:
        """Return v -> J^T H J v of one batch."""
        z: object = self.objective.outputs(self.point, inputs)
        if not isinstance(z, Tensor):
            raise InputError(
                f"GaussNewton needs outputs in one tensor, got a {type(z).__name__}: take the "
                "Hessian, or return the tensor alone"
            )
        u = torch.zeros_like(z, requires_grad=True)
        Ju = _vjp(z, self.theta, u, create_graph=True)  # J^T u is linear in u: its vjp is J
        leaf = z.detach().requires_grad_()
        slope = _vjp(self.objective.loss_of_outputs(leaf, targets), leaf, create_graph=True)
        return lambda v: _vjp(z, self.theta, _vjp(slope, leaf, _vjp(Ju, u, v)))


ENGINES = ("cached", "fresh")
OPERATORS: dict[str, type[Curvature]] = {
    "hessian": Hessian,
    "adaptive-hessian": AdaptiveHessian,
    "gauss-newton": GaussNewton,
}


def _vjp(y: Tensor, x: Tensor, v: Tensor | None = None, *, create_graph: bool = False) -> Tensor:
    """Return (dy / dx)^T v, zero where y does not depend on x; the graph of y is kept."""
    if not y.requires_grad:
        return torch.zeros_like(x)
    try:
        (product,) = torch.autograd.grad(
            y, x, v, retain_graph=True, create_graph=create_graph, materialize_grads=True
        )
    except RuntimeError as error:
        if "derivative" not in str(error):
            raise
        raise ComputationError(
            f"curvature needs a second derivative, got none: {' '.join(str(error).split())}"
        ) from error
    if create_graph:
        _require_differentiable(product)
    return product


def _require_differentiable(y: Tensor) -> None:
    """Refuse a graph with a function that its author called differentiable once.

    Torch cuts the graph there, so that the product behind would be a silent zero.
    """
    seen, left = set(), [y.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "torch::autograd::Error":
            raise ComputationError(
                "curvature needs a second derivative, got a custom function in the model or the "
                "loss that is once_differentiable: write its backward by differentiable operations"
            )
        left += [following for following, _ in node.next_functions]
