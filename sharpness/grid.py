"""Loss and metrics at many points of parameter space: the engine of lines and planes.

All points are written, one after the other, into one vector, whose views the models have for
their parameters (see ``Objective.placed``). So the memory does not grow with the number of points,
and a point costs a pass over the data and one update of that vector.
"""

from collections.abc import Callable, Mapping, MutableMapping, Sequence

import torch
from torch import Tensor

from sharpness.batch_norm import layers, require_policy
from sharpness.errors import InputError
from sharpness.objective import Objective, Point
from sharpness.results import Solution

MOST = 1_000_000  # points: years of work, or a slip of the hand


def evaluated(
    objectives: Mapping[str, Objective],
    base: Solution,
    points: Sequence[str],
    write: Callable[[int, Tensor], Mapping[str, Tensor]],
    *,
    pieces: MutableMapping[str, Tensor] | None = None,
    progress: Callable[[int, int | None, str], None] | None = None,
) -> dict[str, Tensor]:
    """Return loss and metrics by name at each of the points, (p,) each, in float64.

    At a point they are what ``evaluate`` gives there, bit by bit. Numbers that are not finite are
    kept as they are.

    Args:
        objectives: By name, which leads in that of a measure: "train_loss" of "train".
        base: The buffers of all points, and where the writing of theta begins.
        points: The name of each, for pieces and progress.
        write: Called with the number of a point and theta, shape (n,): writes the point there, and
            returns the buffers in which it differs from the base. Points come in order, but those
            that need no evaluation are left out.
        pieces: Loss and metrics of a point, by objective and point; those here are not repeated.
        progress: Called after each point.

    Raises:
        InputError: If the objectives differ in dtype or device.

    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> f = Objective(model, [(torch.ones(1, 1), torch.zeros(1, 1))], torch.nn.functional.mse_loss)
    >>> start = Solution(torch.zeros(1), {})
    >>> evaluated({"": f}, start, ["2", "3"], lambda i, theta: theta.fill_(i + 2) and {})
    {'loss': tensor([4., 9.], dtype=torch.float64)}
    """
    theta = base.theta.clone()
    _require_alike(objectives)
    placed = {
        name: objective.placed(Solution(theta, base.buffers))
        for name, objective in objectives.items()
    }
    found = {
        name: torch.zeros(len(points), 1 + len(objective.metrics), dtype=torch.float64)
        for name, objective in objectives.items()
    }
    for i, point in enumerate(points):
        here: Solution | None = None
        for name, objective in placed.items():
            piece = pieces.get(f"{name} {point}") if pieces is not None else None
            if piece is None:
                here = here or Solution(theta, dict(write(i, theta)))
                piece = torch.stack(list(objective.evaluate(here).values())).cpu()
                if pieces is not None:
                    pieces[f"{name} {point}"] = piece
            found[name][i] = piece
        if progress:
            progress(i + 1, len(points), point)
    return {
        f"{name}_{key}" if name else key: column
        for name, objective in objectives.items()
        for key, column in zip(
            ("loss", *objective.metrics), found[name].T.contiguous(), strict=True
        )
    }


def require_axis(name: str, values: Tensor) -> None:
    """Refuse coordinates that are no axis of a grid.

    Raises:
        InputError: If they are not at least two finite numbers that ascend.

    >>> require_axis("alphas", torch.tensor([1.0, 0.0]))
    Traceback (most recent call last):
    sharpness.errors.InputError: alphas need to ascend, got 1 before 0: sort them
    """
    if values.ndim != 1 or len(values) < 2:
        raise InputError(
            f"{name} need at least 2 points in shape (p,), got shape {tuple(values.shape)}: give "
            "more"
        )
    if not torch.isfinite(values).all():
        raise InputError(f"{name} need to be finite, got {values}: drop the others")
    falls = values.diff() <= 0
    if falls.any():
        i = int(falls.long().argmax())
        one, other = float(values[i]), float(values[i + 1])
        raise InputError(f"{name} need to ascend, got {one:g} before {other:g}: sort them")


def joined(who: str, points: Sequence[Point], objective: Objective) -> list[Solution]:
    """Return points of one model with all buffers in which they may differ.

    A bare theta takes the buffers of the first that has some. They may differ in the statistics
    of BatchNorm alone; its counts of batches play no part.

    Raises:
        InputError: If they differ in shape or in other buffers.
    """
    shapes = [(p.theta if isinstance(p, Solution) else p).shape for p in points]
    other = next((shape for shape in shapes if shape != shapes[0]), shapes[0])
    if other != shapes[0]:
        raise InputError(
            f"{who} needs points of one shape (n,), got {tuple(shapes[0])} and {tuple(other)}: "
            "take all from the same model"
        )
    solutions = [objective.at(point) for point in points]
    own = {**dict(objective.model.named_parameters()), **dict(objective.model.named_buffers())}
    known = [s for s, point in zip(solutions, points, strict=True) if isinstance(point, Solution)]
    lent = known[0].buffers if known else {}
    names = {name for solution in solutions for name in solution.buffers}
    missing = {name: own[name].detach() for name in names if name in own}
    solutions = [
        Solution(s.theta, {**missing, **(s.buffers if isinstance(p, Solution) else lent)})
        for s, p in zip(solutions, points, strict=True)
    ]
    norms = {
        f"{layer}.{name}"
        for layer, part in layers(objective.model).items()
        for name in part._buffers
    }
    for name in sorted(names):
        one = solutions[0].buffers.get(name)
        for solution in solutions[1:]:
            two = solution.buffers.get(name)
            if one is None or two is None or not (name in norms or torch.equal(one, two)):
                raise InputError(
                    f"{who} needs solutions that differ in theta and BatchNorm's statistics alone, "
                    f"got two of {name}: choose others"
                )
    return solutions


def moved_statistics(points: Sequence[Solution]) -> list[str]:
    """Return the names of the running statistics in which points differ from the first."""
    first = points[0].buffers
    return [
        name
        for point in points[1:]
        for name in first
        if not (
            name.endswith("num_batches_tracked") or torch.equal(first[name], point.buffers[name])
        )
    ]


def policy_of(
    who: str, asked: str | None, named: Mapping[str, Objective], points: Sequence[Solution]
) -> str:
    """Return the policy of BatchNorm that is in force where all these points are studied together.

    By default that of the objectives; of ``frozen`` ones, ``reestimate`` where the points differ in
    their running statistics, for those of one are no statistics of another.

    Raises:
        InputError: If there is none, or if ``frozen`` is asked for where they differ.
    """
    moved = moved_statistics(points)
    own = sorted({objective.batch_norm for objective in named.values()})
    if asked is None and len(own) > 1:
        raise InputError(
            f"{who} needs objectives of one BatchNorm policy, got {', '.join(own)}: choose one"
        )
    if asked is None:
        return "reestimate" if own == ["frozen"] and moved else own[0]
    require_policy(asked)
    if asked == "frozen" and moved:
        raise InputError(
            f"frozen needs the same running statistics at all solutions, got two of {moved[0]}: "
            "choose reestimate, interpolate or batch"
        )
    return asked


def _require_alike(objectives: Mapping[str, Objective]) -> None:
    kinds = {f"{f.theta.dtype} on {f.theta.device}": f for f in objectives.values()}
    if len(kinds) > 1:
        raise InputError(
            f"objectives need one dtype and one device, got {' and '.join(sorted(kinds))}: make "
            "them alike"
        )
