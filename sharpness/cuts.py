"""The loss along directions around one solution, with the quadratic that its derivatives give."""

import logging
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from sharpness.batch_norm import layers
from sharpness.curvature import Hessian
from sharpness.errors import InputError
from sharpness.finite import require_finite
from sharpness.grid import evaluated
from sharpness.objective import Objective, Point, fingerprint
from sharpness.profiles import require_alphas
from sharpness.results import Cut, Solution
from sharpness.vectors import digest

LOG = logging.getLogger(__name__)


def cut(
    objectives: Objective | Mapping[str, Objective],
    center: Point,
    directions: Tensor,
    *,
    alphas: Tensor,
    quadratic: bool = True,
    made: Mapping[str, Any] | None = None,
    pieces: MutableMapping[str, Tensor] | None = None,
    progress: Callable[[int, int | None, str], None] | None = None,
) -> Cut:
    """Return loss and metrics at center + alpha d for each row d and each alpha.

    At alpha = 0 they are exactly what ``evaluate`` gives at the center. Beside them are the slope
    gradient^T d and the curvature d^T H d of the first objective's loss: where the parabola they
    make leaves the curve, curvature at the center says nothing of the loss.

    What BatchNorm does is up to the objectives. Statistics that are taken anew at each point
    (``reestimate``) are constants of the slope and the curvature, so that the parabola is not that
    of the curve.

    Cost: one pass over the data of each objective for each point, the center once for all
    directions; one gradient, and one product for each direction.

    Args:
        objectives: One, or several by name; the name leads in ``values``: "train_loss".
        center: A Solution, or theta of shape (n,).
        directions: Rows, (k, n), such as those of ``sharpness.directions``.
        alphas: Coordinates, shape (p,), at least two.
        quadratic: Whether slopes and curvatures are wanted; else they are NaN.
        made: How the directions were made, for the record.
        pieces: Loss and metrics of a point, by objective, direction and alpha; those here are not
            repeated.
        progress: Called after each point.

    Raises:
        InputError: If directions are not finite rows for this center, or alphas are no grid.
        ComputationError: If the parabola is wanted where loss or gradient is not finite.

    >>> model = torch.nn.Linear(2, 1, bias=False).double()
    >>> one = torch.ones(1, 2).double()
    >>> f = Objective(model, [(one, 0 * one[:, :1])], torch.nn.functional.mse_loss)
    >>> found = cut(f, one[0], torch.eye(2).double(), alphas=torch.tensor([0.0, 1.0]))
    >>> found.values["loss"]  # of (x + y)^2
    tensor([[4., 9.],
            [4., 9.]], dtype=torch.float64)
    """
    named = {"": objectives} if isinstance(objectives, Objective) else dict(objectives)
    first = next(iter(named.values()))
    require_alphas("cut", alphas)
    here = first.at(center)
    if directions.ndim != 2 or not len(directions) or directions.shape[1] != len(here.theta):
        raise InputError(
            f"cut needs directions as rows, (k, {len(here.theta)}), got "
            f"{tuple(directions.shape)}: stack them"
        )
    rows = directions.detach().to(here.theta)
    if not torch.isfinite(rows).all() or not rows.any(dim=1).all():
        raise InputError("cut needs finite directions other than 0, got another: leave it out")
    policies = sorted({objective.batch_norm for objective in named.values()})
    if len(policies) > 1:
        raise InputError(
            f"cut needs objectives of one BatchNorm policy, got {', '.join(policies)}: choose one"
        )
    LOG.info("cut: %d points on %d directions", len(alphas), len(rows))
    values = _values(named, here, rows, alphas, {} if pieces is None else pieces, progress)
    found = _derivatives(first, here, rows) if quadratic else _unknown(len(rows))
    name = next(iter(named))
    return Cut(
        alphas=alphas,
        directions=rows,
        lengths=torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).cpu(),
        values=values,
        slopes=found[0],
        curvatures=found[1],
        curvature_sampling_errors=found[2],
        loss=float(first.value(here)),
        norm=float(torch.linalg.vector_norm(here.theta, dtype=torch.float64)),
        spec={
            "algorithm": "cut",
            "center": fingerprint(here),
            "directions": {**(made or {}), "sha256": digest(rows)},
            "quadratic_of": (f"{name}_loss" if name else "loss") if quadratic else None,
            "batch_norm": policies[0],
            "batch_norm_layers": len(layers(first.model)),
            "objectives": {key: objective.spec for key, objective in named.items()},
        },
    )


def _values(
    named: Mapping[str, Objective],
    here: Solution,
    rows: Tensor,
    alphas: Tensor,
    pieces: MutableMapping[str, Tensor],
    progress: Callable[[int, int | None, str], None] | None,
) -> dict[str, Tensor]:
    """Return loss and metrics by name, (k, p) each."""
    places = [(i, alpha) for i in range(len(rows)) for alpha in alphas.tolist()]
    points = [f"{i} {alpha!r}" if alpha else "center" for i, alpha in places]

    def write(number: int, theta: Tensor) -> dict[str, Tensor]:
        i, alpha = places[number]
        if alpha:
            torch.mul(rows[i], alpha, out=theta).add_(here.theta)
        else:
            theta.copy_(here.theta)
        return {}

    def told(done: int, total: int | None, point: str) -> None:
        if progress:
            i, alpha = places[done - 1]
            progress(done, total, f"direction {i + 1}, alpha {alpha:.3g}")

    values = evaluated(named, here, points, write, pieces=pieces, progress=told)
    return {key: column.view(len(rows), len(alphas)) for key, column in values.items()}


def _derivatives(objective: Objective, here: Solution, rows: Tensor) -> tuple[Tensor, ...]:
    """Return slopes, curvatures and the sampling errors of the latter, (k,) each."""
    A = Hessian(objective, here)
    value, slope = objective.value_and_gradient(here)
    require_finite(objective, "the parabola of a cut", here, value, slope)
    slopes = rows.double() @ slope.double()
    curvatures = torch.stack([row.double() @ (A @ row).double() for row in rows])
    return slopes.cpu(), curvatures.cpu(), A.sampling_errors(rows).double()


def _unknown(k: int) -> tuple[Tensor, ...]:
    return tuple(torch.full((k,), torch.nan, dtype=torch.float64) for _ in range(3))
