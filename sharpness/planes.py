"""The loss over planes in parameter space (Li et al. 2018), and where it is convex there.

Letters: u, v the axes, alpha, beta the coordinates, p and q how many of them.
"""

import logging
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sharpness.batch_norm import layers
from sharpness.curvature import Hessian
from sharpness.directions import projected, random_walk_shares
from sharpness.errors import InputError
from sharpness.grid import MOST, evaluated, joined, moved_statistics, policy_of, require_axis
from sharpness.lanczos import eigsh
from sharpness.objective import Objective, Point, fingerprint
from sharpness.results import Convexity, Plane, Run, Solution
from sharpness.vectors import digest

LOG = logging.getLogger(__name__)

Progress = Callable[[int, int | None, str], None]


def plane(
    objectives: Objective | Mapping[str, Objective],
    center: Point,
    u: Tensor,
    v: Tensor,
    *,
    alphas: Tensor,
    betas: Tensor,
    batch_norm: str | None = None,
    axes: Sequence[str] = ("u", "v"),
    path: Run | Mapping[int, Point] | None = None,
    solutions: Mapping[str, Point] | None = None,
    made: Mapping[str, Any] | None = None,
    pieces: MutableMapping[str, Tensor] | None = None,
    progress: Progress | None = None,
) -> Plane:
    """Return loss and metrics at center + alpha u + beta v, for each alpha and each beta.

    At the center they are, bit by bit, what ``evaluate`` gives there under the same policy. A
    number that is not finite is kept as it is.

    A training's path and other solutions lie beside the plane, as a rule. They come with the
    coordinates of their nearest points on it, with their distances to it, and with their own
    losses, which are not those of the plane below them.

    Cost: one pass over the data of each objective for each point; under ``reestimate`` one over
    the training part more. The memory does not grow with the number of points.

    Args:
        objectives: One, or several by name; the name leads in ``values``: "train_loss".
        center: Where both coordinates are 0, a Solution or theta, shape (n,).
        u: First axis, shape (n,), of any length; v likewise, at any angle to it but 0.
        alphas: Coordinates along u, shape (p,), ascending.
        betas: Coordinates along v, shape (q,), ascending.
        batch_norm: What BatchNorm does at the points (see ``sharpness.batch_norm``). Default: what
            the objectives do; of ``frozen`` ones, which have the statistics of the center
            everywhere, ``reestimate`` where those of the path or of a solution differ.
        axes: What u and v are, in figures.
        path: A run, whose start, checkpoints and end are drawn, or points by the updates done.
        solutions: Further points by name.
        made: How u and v were made, for the record.
        pieces: Loss and metrics of a point, by objective and place; those here are not repeated.
        progress: Called after each point.

    Raises:
        InputError: If the axes are zero or parallel, if the coordinates are no ascending numbers,
            at least two along each axis and a million in all at most, if shapes differ, or if
            BatchNorm cannot do so.

    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> f = Objective(model, [(torch.eye(2), torch.zeros(2, 1))], torch.nn.functional.mse_loss)
    >>> u, v = 2 * torch.eye(2)
    >>> found = plane(f, torch.zeros(2), u, v, alphas=torch.arange(2), betas=torch.arange(3))
    >>> found.values["loss"]  # 2 (alpha^2 + beta^2)
    tensor([[ 0.,  2.,  8.],
            [ 2.,  4., 10.]], dtype=torch.float64)
    """
    named = {"": objectives} if isinstance(objectives, Objective) else dict(objectives)
    first = next(iter(named.values()))
    on_path = path.points if isinstance(path, Run) else dict(path or {})
    others = dict(solutions or {})
    here, *marks = joined("plane", [center, *on_path.values(), *others.values()], first)
    directions, alphas, betas = _grid(here, u, v, alphas, betas, axes)
    policy = policy_of("plane", batch_norm, named, [here, *marks])
    if policy == "interpolate" and moved_statistics([here, *marks]):
        raise InputError(
            "a plane needs to be frozen, batch or reestimate where running statistics differ, got "
            "interpolate, which is for lines: choose another"
        )
    named = {name: objective.under(policy) for name, objective in named.items()}
    p, q = len(alphas), len(betas)
    LOG.info("plane: %d x %d points of %d objectives, %s", p, q, len(named), policy)
    names = [f"{a!r} {b!r}" for a in alphas.tolist() for b in betas.tolist()]
    names += [f"update {done}" for done in on_path] + [f"solution {name}" for name in others]

    def told(done: int, total: int | None, point: str) -> None:
        if progress:
            i, j = divmod(done - 1, q)
            place = f"alpha {float(alphas[i]):.3g}, beta {float(betas[j]):.3g}" if i < p else point
            progress(done, total, place)

    write = _writer(here, directions, alphas, betas, marks)
    found = evaluated(named, here, names, write, pieces=pieces, progress=told)
    sizes = [p * q, len(on_path), len(others)]
    cuts = {key: torch.split(column, sizes) for key, column in found.items()}
    coordinates, distances = _beside(directions, marks, here)
    r = len(on_path)
    return Plane(
        alphas=alphas,
        betas=betas,
        values={key: parts[0].view(p, q) for key, parts in cuts.items()},
        path_updates=torch.tensor(list(on_path), dtype=torch.int64),
        path=coordinates[:r],
        path_distances=distances[:r],
        path_values={f"path_{key}": parts[1] for key, parts in cuts.items()},
        explained=_explained(directions, marks[:r]),
        random_walk=random_walk_shares(r, 2) if r > 2 else torch.full((2,), torch.nan).double(),
        solutions=list(others),
        solution_points=coordinates[r:],
        solution_distances=distances[r:],
        solution_values={f"solution_{key}": parts[2] for key, parts in cuts.items()},
        **_frame(here, directions, axes),
        spec={
            "algorithm": "plane",
            **_named(here, directions, next(iter(named.values())), made),
            "objectives": {name: objective.spec for name, objective in named.items()},
            **({"path_ends": [fingerprint(marks[i]) for i in (0, r - 1)]} if r else {}),
            **(
                {"solutions": dict(zip(others, map(fingerprint, marks[r:]), strict=True))}
                if others
                else {}
            ),
        },
    )


def convexity(
    objective: Objective,
    center: Point,
    u: Tensor,
    v: Tensor,
    *,
    alphas: Tensor,
    betas: Tensor,
    batch_norm: str | None = None,
    axes: Sequence[str] = ("u", "v"),
    tol: float = 1e-3,
    budget: int | None = None,
    seed: int = 0,
    made: Mapping[str, Any] | None = None,
    pieces: MutableMapping[str, Tensor] | None = None,
    progress: Progress | None = None,
) -> Convexity:
    """Return the extreme eigenvalues of the Hessian at center + alpha u + beta v.

    Their ratio tells how far from convex the loss is there, in all directions and not in those of
    the plane alone: at least 0 where it is convex, and -1 where the most negative curvature is as
    strong as the most positive one (Li et al. 2018, section 6).

    Cost: for each point the products of two eigenvalues. Along a row of equal alpha, each search
    starts from the vectors of the point before.

    Args:
        tol: Of residuals, relative to the largest magnitude. Default: ten times finer than that
            of Li et al.'s code.
        budget: Products of each eigenvalue. Default: that of ``eigsh``.
        seed: Of its random vectors.
        pieces: What was found along a row, by its alpha; rows that are here are not repeated.
        progress: Called after each point.

    The other arguments, and the errors, are those of ``plane``.

    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> x = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> f = Objective(model, [(x, torch.zeros(2, 1))], torch.nn.functional.mse_loss)
    >>> u, v = torch.eye(2)
    >>> grid = {"alphas": torch.arange(2), "betas": torch.arange(2)}
    >>> convexity(f, torch.zeros(2), u, v, **grid).largest.round(decimals=4)
    tensor([[4., 4.],
            [4., 4.]], dtype=torch.float64)
    """
    (here,) = joined("convexity", [center], objective)
    directions, alphas, betas = _grid(here, u, v, alphas, betas, axes)
    objective = objective.under(policy_of("convexity", batch_norm, {"": objective}, [here]))
    pieces = {} if pieces is None else pieces
    p, q = len(alphas), len(betas)
    LOG.info("convexity: %d x %d points", p, q)
    write = _writer(here, directions, alphas, betas, [])
    options = {"tol": tol, "budget": budget, "seed": seed}
    rows = []
    for i, alpha in enumerate(alphas.tolist()):
        name = f"row {alpha!r}"
        if name not in pieces:
            theta, row = torch.empty_like(here.theta), []
            starts: dict[str, Tensor] = {}
            for j in range(q):
                write(i * q + j, theta)
                row.append(_extremes(objective, Solution(theta, here.buffers), starts, options))
                if progress:
                    ends = f"eigenvalues {row[-1][0]:.2g} to {row[-1][3]:.2g}"
                    progress(i * q + j + 1, p * q, ends)
            pieces[name] = torch.tensor(row, dtype=torch.float64)
        elif progress:
            progress((i + 1) * q, p * q, name)
        rows.append(pieces[name])
    columns = torch.stack(rows).movedim(2, 0)  # (7, p, q)
    return Convexity(
        alphas=alphas,
        betas=betas,
        smallest=columns[0],
        smallest_residuals=columns[1],
        smallest_converged=columns[2].bool(),
        largest=columns[3],
        largest_residuals=columns[4],
        largest_converged=columns[5].bool(),
        products=int(columns[6].sum()),
        **_frame(here, directions, axes),
        spec={
            "algorithm": "convexity",
            **_named(here, directions, objective, made),
            **options,
            "objective": objective.spec,
        },
    )


def _extremes(
    objective: Objective, point: Solution, starts: dict[str, Tensor], options: dict[str, Any]
) -> list[float]:
    """Return (value, residual, converged) of both eigenvalues and the products they took.

    Args:
        starts: Vectors to begin from, by the end of the spectrum; those found take their places.
    """
    if not torch.isfinite(objective.value(point)):
        return [torch.nan, torch.nan, 0.0] * 2 + [0.0]
    A = Hessian(objective, point)
    found, products = [], 0
    for which in ("SA", "LA"):
        pairs = eigsh(A, 1, which=which, v0=starts.get(which), **options)
        starts[which] = pairs.vectors
        found += [float(x[0]) for x in (pairs.values, pairs.residuals, pairs.converged)]
        products += pairs.products + pairs.check_products
    return [*found, float(products)]


def _grid(
    here: Solution, u: Tensor, v: Tensor, alphas: Tensor, betas: Tensor, axes: Sequence[str]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return u and v as rows like theta, and the coordinates in float64, checked."""
    shape = tuple(here.theta.shape)
    for name, axis in (("u", u), ("v", v)):
        if tuple(axis.shape) != shape:
            raise InputError(
                f"a plane needs axes of the shape of theta, {shape}, got {tuple(axis.shape)} as "
                f"{name}: list the trainable parameters of this model"
            )
        if not torch.isfinite(axis).all() or not axis.any():
            raise InputError(
                f"a plane needs finite axes other than 0, got no such {name}: choose another"
            )
    rows = torch.stack([u.to(here.theta), v.to(here.theta)])  # (2, n)
    units = [row.double() / row.double().norm() for row in rows]
    sine = float((units[1] - (units[0] @ units[1]) * units[0]).norm())
    if sine <= torch.finfo(rows.dtype).eps ** 0.5:
        raise InputError(
            f"a plane needs two axes at an angle, got one of sine {sine:.1e} between them: take "
            "another axis, or draw a line"
        )
    require_axis("alphas", alphas)
    require_axis("betas", betas)
    if len(alphas) * len(betas) > MOST:
        raise InputError(
            f"a plane needs at most {MOST:,} points, got {len(alphas)} x {len(betas)}: take fewer"
        )
    if len(axes) != 2 or axes[0] == axes[1]:
        raise InputError(f"a plane needs two names of its axes, got {list(axes)}: change them")
    return rows, alphas.cpu().double(), betas.cpu().double()


def _writer(
    here: Solution, directions: Tensor, alphas: Tensor, betas: Tensor, marks: Sequence[Solution]
) -> Callable[[int, Tensor], Mapping[str, Tensor]]:
    """Return what writes point i into theta: those of the grid by rows, then the marks."""
    u, v = directions
    a, b = alphas.tolist(), betas.tolist()
    row, written = torch.empty_like(here.theta), -1

    def write(i: int, theta: Tensor) -> Mapping[str, Tensor]:
        nonlocal written
        if i >= len(a) * len(b):
            theta.copy_(marks[i - len(a) * len(b)].theta)
            return {}  # its statistics are the center's, or of no account under the policy
        if i // len(b) != written:
            written = i // len(b)
            torch.add(here.theta, u, alpha=a[written], out=row)
        torch.add(row, v, alpha=b[i % len(b)], out=theta)
        return {}

    return write


def _beside(
    directions: Tensor, marks: Sequence[Solution], origin: Solution
) -> tuple[Tensor, Tensor]:
    """Return coordinates (m, 2) and distances to the plane (m,)."""
    if not marks:
        return torch.zeros(0, 2, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
    found = projected(directions, marks, origin)
    return found.coordinates, found.distances


def _explained(directions: Tensor, path: Sequence[Solution]) -> Tensor:
    """Return the shares of the variance of points along each axis, (2,)."""
    if len(path) < 2:
        return torch.full((2,), torch.nan, dtype=torch.float64)
    rows = torch.stack([point.theta for point in path]).cpu().double()
    rows = rows - rows[-1]
    rows = rows - rows.mean(dim=0)
    axes = directions.cpu().double()
    along = rows @ axes.T / axes.norm(dim=1)  # (r, 2)
    return along.square().sum(dim=0) / rows.square().sum()


def _frame(here: Solution, directions: Tensor, axes: Sequence[str]) -> dict[str, Any]:
    """Return the fields that place a plane in parameter space."""
    u, v = directions.double()
    return {
        "axes": list(axes),
        "directions": directions,
        "lengths": torch.stack([u.norm(), v.norm()]).cpu(),
        "cosine": float(u @ v / (u.norm() * v.norm())),
        "norm": float(here.theta.double().norm()),
    }


def _named(
    here: Solution, directions: Tensor, objective: Objective, made: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return what a spec says of a plane."""
    return {
        "center": fingerprint(here),
        "directions": {**(made or {}), "sha256": digest(directions)},
        "batch_norm": objective.batch_norm,
        "batch_norm_layers": len(layers(objective.model)),
    }
