"""Curvature matrices of an Objective as symmetric operators on vectors of length n."""

import inspect
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import Node
from torch.nn.attention import SDPBackend, sdpa_kernel

from sharpness.errors import ComputationError, InputError
from sharpness.finite import in_block, not_finite
from sharpness.micro_batches import saved
from sharpness.objective import BatchMean, Inputs, Objective, Point, Targets, fingerprint
from sharpness.options import require_one_of
from sharpness.results import Solution

# Of one batch, by its number, inputs and targets: what is averaged to a product, shape (n,), or
# its rows (2, n), the second of which is how much the first may be off.
Rows = BatchMean

# How torch tells that there is no second derivative: of its own functions, of custom operators
# and of compiled models.
MISSING = ("derivative", "autograd formula", "double backward")
# All that once_differentiable makes of a backward is this code around that of the author.
ONCE = once_differentiable(lambda *_: None).__code__
COMPILED = "CompiledFunction"  # what torch.compile calls each of its own
REMEDY = (
    "write its backward by differentiable operations, or take the Hessian with "
    'engine="finite-difference"'
)


class Operator(Protocol):
    """A symmetric map on vectors of shape (n,), n = size."""

    size: int
    dtype: torch.dtype
    device: torch.device

    @property
    def spec(self) -> dict[str, Any]:
        """What it is a matrix of."""
        ...

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


def to_scipy(A: Operator) -> Any:
    """Return A as a ``scipy.sparse.linalg.LinearOperator``, with products on host arrays.

    A is symmetric, so it is its own adjoint too. Arrays have the dtype of A, and each product
    takes its vector to the device of A and back.

    Raises:
        InputError: At a product, if its vector is complex.

    >>> from scipy.sparse.linalg import eigsh
    >>> A = to_scipy(Dense(torch.diag(torch.tensor([1.0, 5.0, 2.0]))))
    >>> float(eigsh(A, k=1, return_eigenvectors=False)[0].round(4))
    5.0
    """
    from scipy.sparse.linalg import LinearOperator

    like = torch.empty(0, dtype=A.dtype, device=A.device)
    dtype = torch.empty(0, dtype=A.dtype).numpy().dtype

    def product(v: Any) -> Any:
        if v.dtype.kind == "c":
            raise InputError(
                f"a product needs a real vector, got {v.dtype}: take real and imaginary parts"
            )
        # A copy: torch takes no strides below 0 and nothing read-only.
        host = torch.from_numpy(v.ravel().astype(dtype, order="C"))
        return (A @ host.to(like)).cpu().numpy()

    return LinearOperator((A.size, A.size), matvec=product, rmatvec=product, dtype=dtype)


class Curvature(ABC):
    """A mean over examples of symmetric maps, one for each batch of an Objective, at theta.

    Fused attention and the RNNs of cuDNN have no second derivative (pytorch#116350): inside of a
    product their plain forms take their place.

    Args:
        point: Where, a Solution or theta of shape (n,). Default: the model as it came.
        engine: How a product comes about, one of ``ENGINES``. ``cached`` builds the map of each
            batch once and keeps its graph; ``fresh`` builds it again for each product, in the
            memory of one batch; ``finite-difference`` takes differences of gradients, for what
            has no second derivative, and tells by how much they may be off in ``error``. Default:
            ``cached`` where the graphs of all batches fit in ``memory``, else ``fresh``, as the
            first batch tells; ``spec["engine_reason"]`` says so.
        memory: Bytes for the graphs that are kept, where no engine is chosen. Default: half of
            the objective's.

    Attributes:
        error: Of the last product, a norm; None where the product is exact to rounding. Its
            largest ratio to the norm of the vector so far, an error in terms of eigenvalues, is
            ``spec["product_error"]``.
        products: How many there were so far.
        seconds: What they took, graphs included.
    """

    def __init__(
        self,
        objective: Objective,
        point: Point | None = None,
        *,
        engine: str | None = None,
        memory: int | None = None,
    ) -> None:
        if engine is not None:
            require_one_of(ENGINES, engine=engine)
        self.objective, self._asked = objective, engine
        self.memory = objective.memory // 2 if memory is None else memory
        self.error: float | None = None
        self.products, self.seconds = 0, 0.0
        self._here = objective.at(objective.theta if point is None else point)
        self.theta = self._here.theta.detach().requires_grad_()
        self.size, self.dtype, self.device = len(self.theta), self.theta.dtype, self.theta.device
        self.maps: dict[int, Callable[[Tensor], Tensor]] = {}  # of the engine that keeps them
        self._losses = self.theta.new_zeros(())  # NaN once the loss of a batch is not finite

    @cached_property
    def spec(self) -> dict[str, Any]:
        """What this is a matrix of, and how its products come about."""
        engine, reason = self._choice
        return {
            "operator": type(self).__name__,
            "engine": engine,
            "engine_reason": reason,
            "kernels": {
                "attention": "math",
                **({"rnn": "native"} if self.objective.is_recurrent else {}),
            },
            **self.making,
            "point": fingerprint(self._here),
            "objective": self.objective.spec,
        }

    @property
    def making(self) -> dict[str, Any]:
        """What else there is to say of how the matrix comes about, by the names of arguments."""
        return {}

    @property
    def engine(self) -> str:
        """The name of the engine."""
        return self._choice[0]

    @cached_property
    def _choice(self) -> tuple[str, str]:
        """Return the engine and the reason for it."""
        if self._asked is not None:
            return self._asked, "asked for"
        batches = self.objective.batches
        count = len(batches) if isinstance(batches, Sized) else sum(1 for _ in batches)
        graphs = self._graph_bytes() * count
        engine = "cached" if graphs <= self.memory else "fresh"
        verb = "fit" if engine == "cached" else "do not fit"
        return engine, f"graphs of {_mebibytes(graphs)} {verb} in {_mebibytes(self.memory)}"

    def _graph_bytes(self) -> int:
        """Return what the graph of the first batch keeps, in bytes."""
        kept = []

        def build(i: int, inputs: Inputs, targets: Targets) -> Tensor:
            kept.append(self.batch_map(i, inputs, targets))
            return self.theta.new_zeros(())

        _ = self.point
        with self._derivatives(), saved() as seen:
            self.objective.first(build)
        seen.pop(self.theta.untyped_storage().data_ptr(), None)
        kept.clear()  # until here: what is freed would have its place taken by another
        return sum(seen.values())

    @cached_property
    def point(self) -> Solution:
        """The point with theta as a leaf; re-estimated statistics are constants of all products."""
        return replace(self.objective.settled(self._here), theta=self.theta)

    def __matmul__(self, v: Tensor) -> Tensor:
        """Return the product with v, shape (n,).

        Raises:
            InputError: If v is no finite vector of that shape.
            ComputationError: If the loss or the product is not finite, or has no second
                derivative.
        """
        if v.shape != (self.size,):
            raise InputError(
                f"a product needs a vector of shape ({self.size},), got {tuple(v.shape)}: list "
                "the trainable parameters of this model"
            )
        begun = perf_counter()
        with self._derivatives():
            rows = self.objective.mean(self._product(v))
        product, *change = rows.view(-1, self.size)
        # A hinge lets no NaN through to its slope: the losses themselves are looked at too.
        if not (torch.isfinite(product).all() & torch.isfinite(self._losses)):
            self._require_finite(v, product)
        self.products += 1
        self.seconds += perf_counter() - begun  # a GPU was waited for by the line before
        if change:
            self.error = float(change[0].norm())
            ratio = self.error / float(v.norm()) if self.error else 0.0
            self.spec["product_error"] = max(ratio, self.spec.get("product_error", 0.0))
        return product

    def sampling_errors(self, vectors: Tensor) -> Tensor:
        """Return the standard errors of v^T A v, shape (k,), for the rows v of vectors, (k, n).

        They are those of the eigenvalues to first order (see ``Objective.sampling_error``), and
        0 where the examples are all there are. They do not tell by how much the largest
        eigenvalue of a sample is too large on average.

        Cost: two products for each row, none for a whole data set.
        """
        if not self.objective.is_sample:
            return torch.zeros(len(vectors), dtype=torch.float64)

        def quadratic(v: Tensor) -> BatchMean:
            product = self._product(v)
            return lambda *batch: v @ product(*batch).view(-1, self.size)[0]

        with self._derivatives():
            errors = [self.objective.sampling_error(quadratic(v)) for v in vectors]
        return torch.stack(errors).cpu()

    @contextmanager
    def _derivatives(self) -> Iterator[None]:
        """Let second derivatives be taken, also of what is computed again on the way back."""
        if torch.is_inference_mode_enabled():
            raise InputError("curvature needs derivatives, got torch.inference_mode: leave it")
        with (
            torch.enable_grad(),
            sdpa_kernel(SDPBackend.MATH),
            self.objective.with_native_rnn(),
        ):
            yield

    def _product(self, v: Tensor) -> Rows:
        _ = self.point  # before the pass over the data: it may take one of its own
        return ENGINES[self.engine](self, v)

    def _require_finite(self, v: Tensor, product: Tensor) -> None:
        """Raise the error that names what is not finite, from a second look at every batch."""
        if not torch.isfinite(v).all():
            raise InputError("a product needs a finite vector, got one that is not: change it")
        fault = not_finite(self.objective, "curvature", self.point, gradient=False)
        if fault:
            raise fault
        self._losses.zero_()  # of batches that weigh nothing
        if torch.isfinite(product).all():
            return
        rows = self._product(v)
        with self._derivatives():
            found = self.objective.first_not_finite(
                lambda *batch: rows(*batch).view(-1, self.size)[0]
            )
        if not found:
            raise ComputationError(
                "curvature needs a finite product, got one whose mean over all batches and ranks "
                "is not: look at its scale and at the other ranks"
            )
        needed, got, remedy = in_block(self.objective, "product", *found)
        raise ComputationError(f"curvature needs {needed}, got {got}: {remedy}")

    def _seen(self, loss: Tensor) -> Tensor:
        """Return a loss of one batch, and note if it is not finite."""
        self._losses += 0 * loss.detach()
        return loss

    def differences(self, v: Tensor) -> Rows:
        """Return the rows of a batch by differences of gradients, where that is possible."""
        raise InputError(
            f"finite-difference needs the Hessian or the adaptive one, got {type(self).__name__}: "
            "take another engine"
        )

    @abstractmethod
    def batch_map(self, i: int, inputs: Inputs, targets: Targets) -> Callable[[Tensor], Tensor]:
        """Return the map of batch i, a function from (n,) to (n,)."""


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

    def batch_map(self, i: int, inputs: Inputs, targets: Targets) -> Callable[[Tensor], Tensor]:
        """Return v -> H v of one batch."""
        return self.map_of(self._slope(inputs, targets))

    def map_of(self, slope: Tensor) -> Callable[[Tensor], Tensor]:
        """Return v -> H v of a batch with that gradient, shape (n,), and its graph."""
        return lambda v: _vjp(slope, self.theta, v)

    def gradient(self) -> Tensor:
        """Return the gradient, shape (n,), by graphs that ``cached`` products take up.

        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> batches = [(torch.ones(1, 1), torch.zeros(1, 1))]
        >>> A = Hessian(Objective(model, batches, lambda z, y: z.pow(3).mean()), torch.ones(1))
        >>> A.gradient(), A @ torch.ones(1)
        (tensor([3.]), tensor([6.]))
        """

        def slope(i: int, inputs: Inputs, targets: Targets) -> Tensor:
            found = self._slope(inputs, targets)
            self.maps[i] = self.map_of(found)
            return found.detach()

        _ = self.point  # before the pass over the data: it may take one of its own
        with self._derivatives():
            return self.objective.mean(slope)

    def _slope(self, inputs: Inputs, targets: Targets) -> Tensor:
        """Return the gradient of one batch, shape (n,), with its graph."""
        loss = self._seen(self.objective.batch_loss(self.point, inputs, targets))
        return _vjp(loss, self.theta, create_graph=True)

    def differences(self, v: Tensor) -> Rows:
        """Return the rows (g(theta + h v) - g(theta - h v)) / 2h, and how far off that may be.

        The error is h^2 / 6 of a third derivative of g along v, and rounding of eps |g| / h. The
        steps that balance them are h |v| = eps^(1/3) (1 + |theta|). Twice the step makes the
        first four times as large and halves the second; twice the change by it is therefore
        above either, for gradients without kinks on the way.

        Cost: four gradients.
        """
        theta, norm = self.theta.detach(), float(v.norm())
        relative = torch.finfo(self.dtype).eps ** (1 / 3)
        h = relative * (1 + float(theta.norm())) / norm if norm else 1.0

        def rows(i: int, inputs: Inputs, targets: Targets) -> Tensor:
            def slope(step: float) -> Tensor:
                there = replace(self.point, theta=theta + step * v)
                loss, slope = self.objective.batch_gradient(there, inputs, targets)
                self._seen(loss)
                return slope

            near, far = ((slope(s) - slope(-s)) / (2 * s) for s in (h, 2 * h))
            return torch.stack([near, 2 * (far - near)])

        return rows


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

    def map_of(self, slope: Tensor) -> Callable[[Tensor], Tensor]:
        """Return v -> |theta| H (|theta| v) of a batch with that gradient and its graph."""
        scale, product = self.theta.detach().abs(), super().map_of(slope)
        return lambda v: scale * product(scale * v)

    def differences(self, v: Tensor) -> Rows:
        """Return the rows of H (|theta| v), times |theta|."""
        scale = self.theta.detach().abs()
        rows = super().differences(scale * v)
        return lambda *batch: scale * rows(*batch)


class OutputCurvature(Curvature):
    """J^T M J, with J the Jacobian of the outputs of a batch and M a symmetric map of them."""

    def batch_map(self, i: int, inputs: Inputs, targets: Targets) -> Callable[[Tensor], Tensor]:
        """Return v -> J^T M J v of one batch."""
        z: object = self.objective.outputs(self.point, inputs)
        if not isinstance(z, Tensor):
            raise InputError(
                f"{type(self).__name__} needs outputs in one tensor, got a {type(z).__name__}: "
                "take the Hessian, or return the tensor alone"
            )
        u = torch.zeros_like(z, requires_grad=True)
        Ju = _vjp(z, self.theta, u, create_graph=True)  # J^T u is linear in u: its vjp is J
        M = self.output_map(i, z.detach(), targets)
        return lambda v: _vjp(z, self.theta, M(_vjp(Ju, u, v)))

    @abstractmethod
    def output_map(self, i: int, z: Tensor, targets: Targets) -> Callable[[Tensor], Tensor]:
        """Return M of batch i, a function of tensors of the shape of its outputs z."""


class GaussNewton(OutputCurvature):
    """J^T H J, with J the Jacobian of the outputs and H the Hessian of the loss in them.

    H is that of the loss as it is: with its classes on any axis, class weights, ignored targets
    or smoothed labels. The matrix is positive semidefinite for a convex loss, and equal to the
    Hessian where the outputs are linear in theta.

    >>> X, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 1)
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> f = Objective(model, [(X, y)], torch.nn.functional.mse_loss)
    >>> GaussNewton(f) @ torch.ones(2)
    tensor([1., 4.])
    """

    def output_map(self, i: int, z: Tensor, targets: Targets) -> Callable[[Tensor], Tensor]:
        """Return the Hessian of the loss of one batch in its outputs."""
        leaf = z.requires_grad_()
        loss = self._seen(self.objective.loss_of_outputs(leaf, targets))
        slope = _vjp(loss, leaf, create_graph=True)
        return lambda u: _vjp(slope, leaf, u)


def cached(A: Curvature, v: Tensor) -> Rows:
    """Return the product of a batch by a map that is built once and keeps its graph."""

    def product(i: int, inputs: Inputs, targets: Targets) -> Tensor:
        if i not in A.maps:
            A.maps[i] = A.batch_map(i, inputs, targets)
        return A.maps[i](v)

    return product


def fresh(A: Curvature, v: Tensor) -> Rows:
    """Return the product of a batch by a map that is built for it."""
    return lambda i, inputs, targets: A.batch_map(i, inputs, targets)(v)


def finite_difference(A: Curvature, v: Tensor) -> Rows:
    """Return the product of a batch by differences of gradients, and how far off it may be.

    >>> X, y = torch.tensor([[1.0], [2.0]]).double(), torch.zeros(2, 1).double()
    >>> model = torch.nn.Linear(1, 1, bias=False).double()
    >>> f = Objective(model, [(X, y)], lambda z, y: z.pow(4).mean())  # f'' = 12 w^2 17 / 2
    >>> A = Hessian(f, torch.ones(1).double(), engine="finite-difference")
    >>> product = A @ torch.ones(1).double()
    >>> abs(product - 102) < A.error, A.error < 1e-6 * 102
    (tensor([True]), True)
    """
    return A.differences(v)


ENGINES: dict[str, Callable[[Curvature, Tensor], Rows]] = {
    "cached": cached,
    "fresh": fresh,
    "finite-difference": finite_difference,
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
        if not any(sign in str(error) for sign in MISSING):
            raise
        said = textwrap.shorten(str(error), 120, placeholder=" ...")
        raise ComputationError(
            f"curvature needs a second derivative, got none ({said}): {REMEDY}"
        ) from error
    if create_graph:
        _require_differentiable(product, y)
    return product


def _require_differentiable(slope: Tensor, y: Tensor) -> None:
    """Refuse a slope of y with a function that has no second derivative, and does not say so.

    Torch cuts the graph there, so that the product behind would be a silent zero. It marks the cut
    only if the slope that comes in has a graph, which behind a mean alone it has not.
    """
    kinds: list[Any] = [type(node) for node in _nodes(y)]
    custom = torch.autograd.function.BackwardCFunction
    owners = {kind._forward_cls for kind in kinds if issubclass(kind, custom)}
    if any(owner.__name__ == COMPILED for owner in owners):
        raise ComputationError(
            "curvature needs a second derivative, got a function made by torch.compile, which has "
            'none: leave it uncompiled, or take the Hessian with engine="finite-difference"'
        )
    names = sorted(owner.__name__ for owner in owners if _is_once(owner.backward, owner.vjp))
    if not names and all(node.name() != "torch::autograd::Error" for node in _nodes(slope)):
        return
    raise ComputationError(
        "curvature needs a second derivative, got a custom function that is once_differentiable, "
        f"{' or '.join(names) or 'in the model or the loss'}: {REMEDY}"
    )


def _is_once(*backwards: Any) -> bool:
    """Say whether one of these was made by ``once_differentiable``, also below other decorators."""

    def is_made(f: Any) -> bool:
        return getattr(f, "__code__", None) is ONCE

    return any(is_made(inspect.unwrap(f, stop=is_made)) for f in backwards)


def _nodes(y: Tensor) -> Iterator[Node]:
    """Yield all functions in the graph of y."""
    seen, left = set(), [y.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        left += [following for following, _ in node.next_functions]


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.0f} MiB"
