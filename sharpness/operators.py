"""Operators made of operators: sums and multiples, weight decay, diagonal scalings and blocks.

They take any ``Operator``, a user's own too. Letters: n unknowns.
"""

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sharpness.curvature import AdaptiveHessian, Curvature, GaussNewton, Hessian, Operator
from sharpness.errors import InputError
from sharpness.fisher import EmpiricalFisher, Fisher
from sharpness.objective import Objective, Point
from sharpness.options import require_one_of
from sharpness.vectors import digest

NAMED = 5  # parameters that an error names
OPERATORS: dict[str, type[Curvature]] = {
    "hessian": Hessian,
    "adaptive-hessian": AdaptiveHessian,
    "gauss-newton": GaussNewton,
    "fisher": Fisher,
    "empirical-fisher": EmpiricalFisher,
}


class Made:
    """An operator that is made of others.

    Attributes:
        error: By how much the last product may be off at most, a norm; None where those of all
            parts are exact to rounding.
    """

    def __init__(self, parts: Sequence[Operator], size: int) -> None:
        self.parts, self.size = parts, size
        self.dtype, self.device = parts[0].dtype, parts[0].device

    @cached_property
    def spec(self) -> dict[str, Any]:
        """What it is made of, and how."""
        return {"operator": type(self).__name__, **self.making, "of": self.parts[0].spec}

    @property
    def making(self) -> dict[str, Any]:
        """What was done to the operator that it is made of."""
        raise NotImplementedError

    @property
    def shapes(self) -> Mapping[str, torch.Size]:
        """Shapes of the parameters that the unknowns are, by name.

        Raises:
            InputError: If no part is a matrix of a model's parameters.
        """
        return shapes_of(self.parts[0])

    @property
    def error(self) -> float | None:
        """See the class."""
        return getattr(self.parts[0], "error", None)

    def sampling_errors(self, vectors: Tensor) -> Tensor:
        """Return the standard errors of v^T A v, shape (k,), for the rows of vectors, (k, n)."""
        return sampling_errors_of(self.parts[0], vectors)

    def __matmul__(self, v: Tensor) -> Tensor:
        """Return the product with v, shape (n,).

        Raises:
            InputError: If v is of another shape.
        """
        if v.shape != (self.size,):
            raise InputError(
                f"a product needs a vector of shape ({self.size},), got {tuple(v.shape)}: take one "
                "for this operator"
            )
        return self.product(v)

    def product(self, v: Tensor) -> Tensor:
        """Return the product with v of that shape."""
        raise NotImplementedError


class Sum(Made):
    """c_1 A_1 + c_2 A_2 + ..., of operators of one size, or the multiple of one.

    Sampling errors of a sum are bounds: at most the sum of those of its terms.

    Args:
        terms: Pairs (c, A).

    Raises:
        InputError: If there is none, if sizes, dtypes or devices differ, or a factor is not finite.

    >>> from sharpness.curvature import Dense
    >>> A = Dense(torch.diag(torch.tensor([1.0, 4.0])))
    >>> Sum((2.0, A), (-1.0, Dense(torch.eye(2)))) @ torch.ones(2)
    tensor([1., 7.])
    """

    def __init__(self, *terms: tuple[float, Operator]) -> None:
        if not terms:
            raise InputError("a sum needs operators, got none: give pairs of a factor and one")
        self.factors = [float(c) for c, _ in terms]
        if not all(map(math.isfinite, self.factors)):
            raise InputError(f"a sum needs finite factors, got {self.factors}: change them")
        parts = [A for _, A in terms]
        kinds = {f"{A.size} unknowns in {A.dtype} on {A.device}" for A in parts}
        if len(kinds) > 1:
            raise InputError(
                f"a sum needs operators of one kind, got {' and '.join(sorted(kinds))}: convert "
                "the model, or take others"
            )
        super().__init__(parts, parts[0].size)

    @cached_property
    def spec(self) -> dict[str, Any]:
        """The terms and their factors."""
        terms = [{"factor": c, "of": A.spec} for c, A in zip(self.factors, self.parts, strict=True)]
        return {"operator": "Sum", "terms": terms}

    @property
    def error(self) -> float | None:
        """See the class."""
        errors = [getattr(A, "error", None) for A in self.parts]
        if all(error is None for error in errors):
            return None
        return sum(abs(c) * (e or 0.0) for c, e in zip(self.factors, errors, strict=True))

    def sampling_errors(self, vectors: Tensor) -> Tensor:
        """Return bounds of the standard errors of v^T A v, shape (k,)."""
        errors = [
            abs(c) * sampling_errors_of(A, vectors)
            for c, A in zip(self.factors, self.parts, strict=True)
        ]
        return torch.stack(errors).sum(dim=0)

    def product(self, v: Tensor) -> Tensor:
        """Return sum c_i A_i v."""
        total = torch.zeros_like(v)
        for c, A in zip(self.factors, self.parts, strict=True):
            total = total + c * (A @ v)
        return total


class WeightDecayed(Made):
    """A + wd I on the parameters that are decayed: the curvature of the loss + wd / 2 |theta|^2.

    Args:
        weight_decay: wd, as of torch's optimizers.
        params: Patterns of the names of the parameters that are decayed (see ``places``).
            Default: all.

    Raises:
        InputError: If wd is negative or not finite, or a pattern matches no parameter.

    >>> from sharpness.curvature import Dense
    >>> WeightDecayed(Dense(torch.diag(torch.tensor([1.0, 4.0]))), 0.5) @ torch.ones(2)
    tensor([1.5000, 4.5000])
    """

    def __init__(
        self, A: Operator, weight_decay: float, *, params: Sequence[str] | None = None
    ) -> None:
        if not (weight_decay >= 0 and math.isfinite(weight_decay)):
            raise InputError(
                f"weight_decay needs to be at least 0 and finite, got {weight_decay}: change it"
            )
        super().__init__([A], A.size)
        self.weight_decay, self.params = float(weight_decay), params
        self._places = None if params is None else places(shapes_of(A), params).to(A.device)

    @property
    def making(self) -> dict[str, Any]:
        """The weight decay and its parameters."""
        params = None if self.params is None else list(self.params)
        return {"weight_decay": self.weight_decay, "params": params}

    def product(self, v: Tensor) -> Tensor:
        """Return A v + wd v, the second of what is decayed."""
        w = self.parts[0] @ v
        if self._places is None:
            return w + self.weight_decay * v
        return w.index_add(0, self._places, v[self._places], alpha=self.weight_decay)


class Scaled(Made):
    """diag(d) A diag(d): A in the coordinates theta / d.

    Args:
        d: Shape (n,).

    Raises:
        InputError: If d is no finite vector of that shape.

    >>> from sharpness.curvature import Dense
    >>> Scaled(Dense(torch.ones(2, 2)), torch.tensor([1.0, 3.0])) @ torch.ones(2)
    tensor([ 4., 12.])
    """

    def __init__(self, A: Operator, d: Tensor) -> None:
        if d.shape != (A.size,) or not torch.isfinite(d).all():
            raise InputError(
                f"a scaling needs a finite vector of shape ({A.size},), got shape "
                f"{tuple(d.shape)}{'' if torch.isfinite(d).all() else ' that is not'}: change it"
            )
        super().__init__([A], A.size)
        self.d = d.detach().to(A.device, A.dtype)

    @property
    def making(self) -> dict[str, Any]:
        """The SHA-256 of d."""
        return {"scale_sha256": digest(self.d)}

    @property
    def error(self) -> float | None:
        """See the class."""
        error: float | None = super().error
        return None if error is None else error * float(self.d.abs().max())

    def sampling_errors(self, vectors: Tensor) -> Tensor:
        """Return the standard errors of (d v)^T A (d v), shape (k,)."""
        return super().sampling_errors(vectors * self.d)

    def product(self, v: Tensor) -> Tensor:
        """Return d * (A (d * v))."""
        return self.d * (self.parts[0] @ (self.d * v))


class Block(Made):
    """The block of A on some of its unknowns: all else is held fixed.

    Its eigenvalues lie between the smallest and the largest of A (Cauchy). A product costs one of
    A.

    Args:
        params: Patterns of names of parameters (see ``places``), or the places of the unknowns,
            integers of shape (b,), ascending.

    Raises:
        InputError: If a pattern matches no parameter, or the places are not such.

    >>> from sharpness.curvature import Dense
    >>> A = Dense(torch.diag(torch.tensor([1.0, 4.0, 9.0])))
    >>> Block(A, torch.tensor([0, 2])) @ torch.ones(2)
    tensor([1., 9.])
    """

    def __init__(self, A: Operator, params: Sequence[str] | Tensor) -> None:
        self.params = None if isinstance(params, Tensor) else list(params)
        at = params if isinstance(params, Tensor) else places(shapes_of(A), params)
        if at.ndim != 1 or at.is_floating_point() or not len(at):
            raise InputError(
                f"a block needs the places of its unknowns, got {at.dtype} of shape "
                f"{tuple(at.shape)}: give integers"
            )
        at = at.cpu().long()
        if int(at[0]) < 0 or int(at[-1]) >= A.size or not (at.diff() > 0).all():
            raise InputError(
                f"a block needs ascending places from 0 to {A.size - 1}, got {int(at.min())} to "
                f"{int(at.max())}: change them"
            )
        super().__init__([A], len(at))
        self.places = at.to(A.device)

    @property
    def making(self) -> dict[str, Any]:
        """The patterns, or the SHA-256 of the places."""
        if self.params is not None:
            return {"params": self.params}
        return {"places_sha256": digest(self.places)}

    @property
    def shapes(self) -> Mapping[str, torch.Size]:
        """Shapes of the parameters that the unknowns are, by name."""
        whole = shapes_of(self.parts[0])
        if self.params is None:
            raise InputError(
                "a block of places has no names of parameters: take the block of the whole at last"
            )
        return {name: shape for name, shape in whole.items() if _matches(name, self.params)}

    def sampling_errors(self, vectors: Tensor) -> Tensor:
        """Return the standard errors of v^T A v, shape (k,)."""
        return super().sampling_errors(torch.stack([self._whole(v) for v in vectors]))

    def product(self, v: Tensor) -> Tensor:
        """Return the part of A v in the block, for a v that is 0 outside of it."""
        return (self.parts[0] @ self._whole(v))[self.places]

    def _whole(self, v: Tensor) -> Tensor:
        whole = v.new_zeros(self.parts[0].size)
        whole[self.places] = v
        return whole


def matrix(
    f: Objective,
    point: Point | None = None,
    *,
    operator: str = "hessian",
    engine: str | None = None,
    draws: int | None = None,
    seed: int = 0,
    weight_decay: float = 0.0,
    decayed: Sequence[str] | None = None,
    params: Sequence[str] | None = None,
) -> tuple[Operator, Curvature]:
    """Return the operator of these options, and the matrix of f that it is made of.

    Args:
        operator: A name of ``OPERATORS``.
        engine: How its products come about (see ``Hessian``).
        draws: Labels for each target, of ``fisher`` alone. Default: 1.
        seed: Of those labels.
        weight_decay: Added to it (see ``WeightDecayed``).
        decayed: Patterns of the parameters that are decayed. Default: all.
        params: Patterns of the parameters whose ``Block`` it is at last. Default: all.

    Raises:
        InputError: If there is no such operator, or an option is for another one.
    """
    require_one_of(OPERATORS, operator=operator)
    more: dict[str, Any] = {}
    if OPERATORS[operator] is Fisher:
        more = {"draws": 1 if draws is None else draws, "seed": seed}
    elif draws is not None:
        raise InputError(f"draws are for fisher, got {operator}: leave them out")
    if decayed is not None and not weight_decay:
        raise InputError("decayed needs the weight_decay that it is for, got none: give both")
    base = OPERATORS[operator](f, point, engine=engine, **more)
    A: Operator = base
    if weight_decay:
        A = WeightDecayed(A, weight_decay, params=decayed)
    return (A if params is None else Block(A, params)), base


def shapes_of(A: Operator) -> Mapping[str, torch.Size]:
    """Return the shapes of the parameters that the unknowns of A are, by name.

    Raises:
        InputError: If A is no matrix of a model's parameters.
    """
    if isinstance(A, Made):
        return A.shapes
    objective = getattr(A, "objective", None)
    if objective is None:
        raise InputError(
            f"names of parameters need an operator of a model, got a {type(A).__name__}: give the "
            "places of the unknowns"
        )
    shapes: Mapping[str, torch.Size] = objective.shapes
    return shapes


def places(shapes: Mapping[str, torch.Size], patterns: Sequence[str]) -> Tensor:
    """Return which unknowns belong to the parameters whose names match, ascending, (b,).

    Args:
        patterns: Names, or patterns as of files: ``*`` any letters, ``?`` one, ``[ab]`` one of
            these. The name of a module stands for all that is in it.

    Raises:
        InputError: If a pattern matches none.

    >>> shapes = {"0.weight": torch.Size([1, 2]), "0.bias": torch.Size([1])}
    >>> places(shapes, ["*.bias"]), places(shapes, ["0"])
    (tensor([2]), tensor([0, 1, 2]))
    """
    if isinstance(patterns, str) or not patterns:
        raise InputError(f"params need patterns in a list, got {patterns!r}: give some names")
    for pattern in patterns:
        if not any(_matches(name, [pattern]) for name in shapes):
            names = ", ".join(list(shapes)[:NAMED])
            raise InputError(f"params {pattern!r} matches no parameter; names begin {names}")
    found, begun = [], 0
    for name, shape in shapes.items():
        end = begun + shape.numel()
        if _matches(name, patterns):
            found.append(torch.arange(begun, end))
        begun = end
    return torch.cat(found)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Say whether a parameter, or a module that it is in, has a name of such a pattern."""
    parts = name.split(".")
    names = [".".join(parts[:i]) for i in range(1, len(parts) + 1)]
    return any(fnmatchcase(known, pattern) for pattern in patterns for known in names)


def sampling_errors_of(A: Operator, vectors: Tensor) -> Tensor:
    """Return the standard errors that A tells of v^T A v, 0 where it is no mean over examples."""
    tell = getattr(A, "sampling_errors", None)
    errors: Tensor = (
        torch.zeros(len(vectors), dtype=torch.float64) if tell is None else tell(vectors)
    )
    return errors
