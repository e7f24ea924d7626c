"""Directions in parameter space: random, between solutions, principal, and what is done to them.

Directions are rows, (count, n), in the dtype and on the device of what they are for; they are
computed in float64 on the CPU, so that a seed means the same numbers on every device. Eigenvectors
need no function here: ``eigsh(Hessian(objective), k).vectors`` are such rows, of unit length.

A random direction has no scale of its own: a network whose weights are ten times as large looks
flatter along the same vector. Li et al. (2018) give each filter of the direction the norm of that
filter of theta; the theory page says what that is worth and what it is not.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from sharpness.curvature import Hessian
from sharpness.errors import InputError
from sharpness.finite import require_finite
from sharpness.lanczos import eigsh
from sharpness.objective import Objective, Point
from sharpness.options import is_whole
from sharpness.records import Shown
from sharpness.results import Run, Solution
from sharpness.vectors import gaussian, unflatten

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)  # _NormBase: Batch- and InstanceNorm
IGNORABLE = ("bias", "norm")
DIRECTIONS = ("random", "eigenvectors", "gradient")
AXES = ("random", "eigenvectors", "principal")  # of planes


class RandomDirections(Protocol):
    """What each of ``NORMALIZATIONS`` is: a function of an objective and a count."""

    def __call__(
        self,
        objective: Objective,
        count: int = 1,
        *,
        point: Point | None = None,
        ignore: Collection[str] = (),
        seed: int = 0,
    ) -> Tensor:
        """Return rows, (count, n)."""
        ...


@dataclass(frozen=True, repr=False)
class Principal(Shown):
    """The principal components of a trajectory, beside those of a random walk."""

    directions: Tensor  # (count, n)  orthonormal rows
    explained: Tensor  # (count,)  share of the variance of the points along each
    random_walk: Tensor  # (count,)  what a random walk through as many points would have


class Projected(NamedTuple):
    """Points on a plane, or on whatever their axes span."""

    coordinates: Tensor  # (p, count)
    distances: Tensor  # (p,)  of each point to the plane, a length in parameter space


def filter_normalized(
    objective: Objective,
    count: int = 1,
    *,
    point: Point | None = None,
    ignore: Collection[str] = (),
    seed: int = 0,
) -> Tensor:
    """Return Gaussian rows, (count, n), each filter of which has the norm of that of theta.

    A filter is a slice along the first axis of a tensor of at least two: an output channel of a
    convolution, the weights into one neuron. Each entry of a bias or of another tensor with one
    axis is a filter by itself: it keeps its size, 0 too, with a random sign. (Li et al. 2018,
    section 4; their code has the entries of theta itself there, the same in all directions.)

    Args:
        point: Whose norms they are, a Solution or theta. Default: the model as it came.
        ignore: Parameters that do not move: ``norm`` for those of normalization layers, ``bias``
            for all others of one axis or of a name that ends so.
        seed: Of the Gaussian vectors; row i is the same for every count.

    Raises:
        InputError: If a filter of theta is zero, so that it has no scale to give.

    >>> model = nn.Linear(2, 2, bias=False).double()
    >>> model.weight.data = torch.tensor([[3.0, 4.0], [0.0, 2.0]]).double()
    >>> one = torch.ones(1, 2).double()
    >>> f = Objective(model, [(one, one)], nn.functional.mse_loss)
    >>> filter_normalized(f, 3).view(3, 2, 2).norm(dim=2).round(decimals=9)
    tensor([[5., 2.],
            [5., 2.],
            [5., 2.]], dtype=torch.float64)
    """
    rows = _gaussians(objective, count, seed)
    return rescaled(objective, rows, "filter", point=point, ignore=ignore)


def layer_normalized(
    objective: Objective,
    count: int = 1,
    *,
    point: Point | None = None,
    ignore: Collection[str] = (),
    seed: int = 0,
) -> Tensor:
    """Return Gaussian rows, (count, n), each tensor of which has the norm of that of theta.

    Arguments and errors are those of ``filter_normalized``.
    """
    rows = _gaussians(objective, count, seed)
    return rescaled(objective, rows, "layer", point=point, ignore=ignore)


def weight_normalized(
    objective: Objective,
    count: int = 1,
    *,
    point: Point | None = None,
    ignore: Collection[str] = (),
    seed: int = 0,
) -> Tensor:
    """Return Gaussian rows, (count, n), times |theta|, entry by entry.

    Unlike the other normalizations it commutes with every positive rescaling of single neurons of
    a ReLU network. Arguments are those of ``filter_normalized``.
    """
    rows = _gaussians(objective, count, seed)
    return rescaled(objective, rows, "weight", point=point, ignore=ignore)


def unnormalized(
    objective: Objective,
    count: int = 1,
    *,
    point: Point | None = None,
    ignore: Collection[str] = (),
    seed: int = 0,
) -> Tensor:
    """Return Gaussian rows, (count, n), as they are drawn, of length about sqrt(n).

    Arguments are those of ``filter_normalized``.
    """
    rows = _gaussians(objective, count, seed)
    return rescaled(objective, rows, "none", point=point, ignore=ignore)


NORMALIZATIONS: dict[str, RandomDirections] = {
    "filter": filter_normalized,
    "layer": layer_normalized,
    "weight": weight_normalized,
    "none": unnormalized,
}


def rescaled(
    objective: Objective,
    directions: Tensor,
    normalization: str,
    *,
    point: Point | None = None,
    ignore: Collection[str] = (),
) -> Tensor:
    """Return the rows under one of ``NORMALIZATIONS``, (count, n): what the random ones are under.

    Rows of a meaning, as eigenvectors, are others afterwards.

    Raises:
        InputError: If the normalization is unknown, or theta has no scale to give.

    >>> f = Objective(nn.Linear(2, 1, bias=False), [(torch.ones(1, 2),) * 2], torch.dist)
    >>> theta = torch.tensor([3.0, 4.0])
    >>> rescaled(f, torch.tensor([[0.0, 1.0]]), "filter", point=theta)
    tensor([[0., 5.]])
    """
    if normalization not in SCALES:
        raise InputError(
            f"a normalization needs to be one of {', '.join(SCALES)}, got {normalization!r}: "
            "choose one"
        )
    ignored = _ignored(objective.model, ignore)
    here = objective.at(objective.theta if point is None else point).theta
    blocks = unflatten(here.detach().cpu().double(), objective.shapes)
    rows = []
    for row in _rows(directions, len(here)).double():
        parts = unflatten(row, objective.shapes)
        scaled = [
            torch.zeros_like(part)
            if name in ignored
            else SCALES[normalization](part, blocks[name], name)
            for name, part in parts.items()
        ]
        rows.append(torch.cat([part.flatten() for part in scaled]))
    return torch.stack(rows).to(objective.theta)


def orthogonalized(directions: Tensor) -> Tensor:
    """Return rows of the same norms that are orthogonal, (count, n), the first as it is.

    By Gram and Schmidt's method, twice for each row, which makes the cosines as small as rounding.

    Raises:
        InputError: If a row depends on those before it.

    >>> orthogonalized(torch.tensor([[2.0, 0.0], [3.0, 4.0]]))
    tensor([[2., 0.],
            [0., 5.]])
    """
    rows = _rows(directions, directions.shape[-1]).double()
    units = _orthonormal(rows, torch.finfo(directions.dtype).eps * 100 * rows.norm(dim=1))
    found = (units * rows.norm(dim=1, keepdim=True)).to(directions)
    return torch.cat([directions[:1], found[1:]])


def between(a: Point, b: Point) -> Tensor:
    """Return the one row b - a, (1, n), so that a + alpha (b - a) runs from a to b.

    Raises:
        InputError: If they differ in shape, or not at all.

    >>> between(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 5.0]))
    tensor([[0., 3.]])
    """
    one, other = _thetas([a, b])
    if torch.equal(one, other):
        raise InputError("between needs two solutions, got the same twice: give another")
    return (other - one)[None]


def through(a: Point, b: Point, c: Point) -> Tensor:
    """Return the rows b - a and c - a, (2, n), of the plane through three solutions.

    Raises:
        InputError: If they differ in shape, or are on one line.

    >>> through(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 5.0]), torch.tensor([2.0, 2.0]))
    tensor([[0., 3.],
            [1., 0.]])
    """
    points = _thetas([a, b, c])
    rows = torch.stack([points[1] - points[0], points[2] - points[0]])
    # How far rounding alone may move a point off the line: with each entry, eps times its size.
    sizes = torch.stack(points).double().norm(dim=1).sum().cpu()
    slack = 4 * torch.finfo(rows.dtype).eps * sizes
    try:
        _orthonormal(rows.cpu().double(), slack.expand(2))
    except InputError as error:
        raise InputError(
            "through needs three solutions that are not on one line, got three that are: give "
            "another"
        ) from error
    return rows


def gradient_direction(objective: Objective, point: Point | None = None) -> Tensor:
    """Return the gradient as one row of unit length, (1, n): where the loss rises the fastest.

    Raises:
        InputError: If the gradient is zero there.
        ComputationError: If the loss or the gradient is not finite there.

    >>> f = Objective(nn.Linear(1, 1, bias=False), [(torch.ones(1, 1),) * 2], nn.MSELoss())
    >>> gradient_direction(f, torch.tensor([3.0]))  # of (theta - 1)^2
    tensor([[1.]])
    """
    here = objective.theta if point is None else point
    value, slope = objective.value_and_gradient(here)
    require_finite(objective, "gradient_direction", here, value, slope)
    length = torch.linalg.vector_norm(slope, dtype=torch.float64)
    if not 0 < float(length) < torch.inf:
        raise InputError(
            f"gradient_direction needs a gradient other than 0, got one of norm {float(length):g}: "
            "take random directions or eigenvectors"
        )
    return (slope.double() / length).to(slope)[None]


def make(
    objective: Objective,
    kind: str,
    count: int = 1,
    *,
    point: Point | None = None,
    normalization: str | None = None,
    ignore: Collection[str] = (),
    orthogonal: bool = False,
    seed: int = 0,
) -> tuple[Tensor, dict[str, Any]]:
    """Return rows of one of ``DIRECTIONS``, (count, n), and the record of how they were made.

    Eigenvectors are the first ``count`` of the Hessian, of unit length; the record tells which of
    them converged. The gradient is one row, of unit length too.

    Args:
        normalization: One of ``NORMALIZATIONS``. Default: ``filter`` for random directions, and
            ``none`` for the others, which would not be what they are afterwards.
        ignore: As of ``filter_normalized``.
        orthogonal: Whether rows are made orthogonal, at last.

    Raises:
        InputError: If there is no such kind, or only one gradient, and as the others here.

    >>> f = Objective(nn.Linear(1, 1, bias=False), [(torch.ones(1, 1),) * 2], nn.MSELoss())
    >>> make(f, "gradient", point=torch.tensor([3.0]))
    (tensor([[1.]]), {'kind': 'gradient', 'count': 1, 'normalization': 'none'})
    """
    if kind not in DIRECTIONS:
        raise InputError(
            f"directions need to be one of {', '.join(DIRECTIONS)}, got {kind!r}: choose one"
        )
    normalization = normalization or ("filter" if kind == "random" else "none")
    record: dict[str, Any] = {"kind": kind, "count": count, "normalization": normalization}
    if ignore:
        record["ignore"] = sorted(ignore)
    if kind == "random":
        rows = _gaussians(objective, count, seed)
        record["seed"] = seed
    elif kind == "eigenvectors":
        pairs = eigsh(Hessian(objective, point), count, seed=seed)
        rows = pairs.vectors
        record |= {"seed": seed, "converged": pairs.converged.tolist()}
    else:
        if count != 1:
            raise InputError(f"gradient is one direction, got a count of {count}: ask for 1")
        rows = gradient_direction(objective, point)
    rows = rescaled(objective, rows, normalization, point=point, ignore=ignore)
    if orthogonal:
        rows = orthogonalized(rows)
        record["orthogonal"] = True
    return rows, record


def principal(trajectory: Run | Sequence[Point], count: int = 2) -> Principal:
    """Return the principal components of the points of a trajectory.

    They span the directions of largest variance of theta_i - theta_end, about their mean as
    principal components are (Li et al. 2018, section 7), so that the end is an origin of their
    plane and not its center. Large shares say little by themselves: those of a random walk are
    large too (see ``random_walk_shares``) and stand beside them.

    Args:
        trajectory: A run with checkpoints, of which the start and the end are points too, or
            points in their order.
        count: Fewer than there are points.

    Raises:
        InputError: If there are too few points, or they are all the same.

    >>> points = [torch.tensor([x, 2.0, 0.0]) for x in (0.0, 1.0, 2.0)]
    >>> found = principal(points, 1)
    >>> found.directions, found.explained
    (tensor([[1., 0., 0.]]), tensor([1.], dtype=torch.float64))
    """
    points = list(trajectory.points.values() if isinstance(trajectory, Run) else trajectory)
    if not 1 <= count < len(points):
        raise InputError(
            f"principal needs 1 <= count < points, got count={count} of a trajectory of "
            f"{len(points)}: train with checkpoint_losses, or ask for fewer"
        )
    thetas = _thetas(points)
    rows = torch.stack(thetas).cpu().double()
    rows = rows - rows[-1]  # exactly 0 if all are the same, which a mean may miss by rounding
    _, sizes, components = torch.linalg.svd(rows - rows.mean(dim=0), full_matrices=False)
    if not float(sizes[0]) > 0:
        raise InputError("principal needs points that differ, got one point many times: train on")
    largest = components.abs().argmax(dim=1, keepdim=True)  # which makes the sign of a row a fact
    components = components * components.gather(1, largest).sign()
    return Principal(
        directions=components[:count].to(thetas[0]),
        explained=(sizes.square() / sizes.square().sum())[:count],
        random_walk=random_walk_shares(len(points), count),
    )


def random_walk_shares(points: int, count: int) -> Tensor:
    """Return the shares of variance of a random walk in many dimensions, (count,).

    Of p points whose p - 1 steps are independent and of one distribution,
    6 / ((p^2 - 1) 2 (1 - cos(pi k / p))), k = 1, 2, ..., in the limit of many dimensions: the
    inverses of the eigenvalues of the second difference along a path of p nodes, with sum
    (p^2 - 1) / 6 (Antognini & Sohl-Dickstein 2018). Of many points, 6 / (pi k)^2: 61 % and 15 %.

    >>> random_walk_shares(3, 2)  # a path of three: 1 and 3
    tensor([0.7500, 0.2500], dtype=torch.float64)
    """
    k = torch.arange(1, count + 1, dtype=torch.float64)
    return 6 / ((points**2 - 1) * 2 * (1 - (torch.pi * k / points).cos()))


def projected(directions: Tensor, points: Sequence[Point] | Tensor, origin: Point) -> Projected:
    """Return where points lie on the plane through origin along the rows, and how far from it.

    Coordinates x minimize |origin + x directions - point|, for axes of any angle and length.

    Args:
        directions: Axes, (count, n).
        points: Solutions or thetas, or rows (p, n).
        origin: Where all coordinates are 0.

    Raises:
        InputError: If shapes differ, or an axis depends on those before it.

    >>> axes = torch.tensor([[2.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    >>> found = projected(axes, torch.tensor([[3.0, 1.0, 5.0]]), torch.zeros(3))
    >>> found.coordinates, found.distances
    (tensor([[1., 1.]], dtype=torch.float64), tensor([5.], dtype=torch.float64))
    """
    center, *thetas = (theta.cpu().double() for theta in _thetas([origin, *points]))
    axes = _rows(directions, len(center)).double()
    lengths = axes.norm(dim=1)
    units = _orthonormal(axes, 100 * torch.finfo(directions.dtype).eps * lengths)
    offsets = torch.stack(thetas) - center  # (p, n)
    inside = offsets @ units.T  # (p, count)
    # axes = (axes units^T) units, with a triangular matrix between them.
    mixing = axes @ units.T
    coordinates = torch.linalg.solve_triangular(mixing, inside, upper=False, left=False)
    return Projected(coordinates, (offsets - inside @ units).norm(dim=1))


def _gaussians(objective: Objective, count: int, seed: int) -> Tensor:
    if not is_whole(count, 1):
        raise InputError(f"directions need a count of at least 1, got {count}: change it")
    like = torch.empty(0, dtype=torch.float64)
    n = len(objective.theta)
    return torch.stack([gaussian(n, seed, i, like=like) for i in range(count)])


def _by_filter(d: Tensor, weights: Tensor, name: str) -> Tensor:
    if weights.ndim < 2:
        return d.sign() * weights.abs()
    wanted = weights.flatten(1).norm(dim=1)
    if not (wanted > 0).all():
        zero = int((wanted > 0).long().argmin())
        raise InputError(
            f"filter normalization needs filters other than 0, got {name}[{zero}]: normalize by "
            "layer, or not at all"
        )
    return d * _ratio(wanted, d.flatten(1).norm(dim=1)).view(-1, *[1] * (d.ndim - 1))


def _by_layer(d: Tensor, weights: Tensor, name: str) -> Tensor:
    if weights.ndim > 1 and not weights.any():
        raise InputError(
            f"layer normalization needs layers other than 0, got {name}: take raw directions, by "
            "none"
        )
    return d * _ratio(weights.norm(), d.norm())


def _by_weight(d: Tensor, weights: Tensor, name: str) -> Tensor:
    return d * weights.abs()


def _as_it_is(d: Tensor, weights: Tensor, name: str) -> Tensor:
    return d


SCALES: dict[str, Callable[[Tensor, Tensor, str], Tensor]] = {
    "filter": _by_filter,
    "layer": _by_layer,
    "weight": _by_weight,
    "none": _as_it_is,
}


def _ratio(wanted: Tensor, there: Tensor) -> Tensor:
    """Return their ratio, and 0 where a direction that was given does not move a block."""
    return torch.where(there > 0, wanted / there.clamp(min=torch.finfo(there.dtype).tiny), 0)


def _ignored(model: nn.Module, ignore: Collection[str]) -> set[str]:
    """Return the names of the parameters that are not to move."""
    unknown = [ignore] if isinstance(ignore, str) else sorted(set(ignore) - set(IGNORABLE))
    if unknown:
        raise InputError(
            f"ignore needs names of {', '.join(IGNORABLE)}, got {unknown[0]!r}: give them in a list"
        )
    norms = {
        f"{name}.{key}" if name else key
        for name, part in model.named_modules()
        if isinstance(part, NORMS)
        for key, _ in part.named_parameters(recurse=False)
    }
    biases = {
        name
        for name, p in model.named_parameters()
        if name not in norms and (p.ndim < 2 or name.endswith("bias"))
    }
    return {
        name
        for role, names in (("norm", norms), ("bias", biases))
        if role in ignore
        for name in names
    }


def _rows(directions: Tensor, n: int) -> Tensor:
    """Return directions on the CPU, checked."""
    if directions.ndim != 2 or not len(directions) or directions.shape[1] != n:
        raise InputError(
            f"directions need to be rows, (count, {n}), got {tuple(directions.shape)}: stack them"
        )
    rows = directions.detach().cpu()
    if not torch.isfinite(rows).all():
        raise InputError("directions need to be finite, got an infinite one: compute it again")
    return rows


def _orthonormal(rows: Tensor, slack: Tensor) -> Tensor:
    """Return orthonormal rows that span the same; what is left of each must exceed its slack."""
    units: list[Tensor] = []
    for i, row in enumerate(rows):
        left = row
        for _ in range(2):  # twice is enough (Giraud et al. 2005)
            for unit in units:
                left = left - (unit @ left) * unit
        length = left.norm()
        if not length > slack[i]:
            raise InputError(
                f"directions need to be independent, got row {i} of length "
                f"{float(row.norm()):.3g} in the span of the {i} before it: leave it out"
            )
        units.append(left / length)
    return torch.stack(units)


def _thetas(points: Sequence[Point]) -> list[Tensor]:
    thetas = [p.theta if isinstance(p, Solution) else p for p in points]
    for theta in thetas:
        if theta.ndim != 1 or theta.shape != thetas[0].shape:
            raise InputError(
                f"directions need points of one shape (n,), got {tuple(thetas[0].shape)} and "
                f"{tuple(theta.shape)}: take them from the same model"
            )
    return [theta.detach() for theta in thetas]
