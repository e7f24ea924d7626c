"""The loss along lines through parameter space (Goodfellow, Vinyals & Saxe 2015)."""

from collections.abc import Callable, Mapping, MutableMapping

import torch
from torch import Tensor

from sharpness.errors import InputError
from sharpness.objective import Objective, Point, fingerprint
from sharpness.results import Line, Solution


def line(
    objectives: Objective | Mapping[str, Objective],
    start: Point,
    end: Point,
    *,
    alphas: Tensor,
    pieces: MutableMapping[str, Tensor] | None = None,
    progress: Callable[[int, int | None, str], None] | None = None,
) -> Line:
    """Return loss and metrics at (1 - alpha) start + alpha end for each alpha.

    In this form, rather than start + alpha (end - start), both ends are exact.

    Cost: one pass over the data of each objective for each alpha.

    Args:
        objectives: One, or several by name; the name leads in ``values``: "train_loss".
        start: Where alpha is 0, shape (n,).
        end: Where alpha is 1, shape (n,). Of two Solutions the buffers must agree: between others
            "the loss" depends on what BatchNorm does there.
        alphas: Coordinates, shape (p,), also beyond 0 and 1.
        pieces: Loss and metrics of a point, by objective and alpha; those here are not repeated.
        progress: Called after each point.

    Raises:
        InputError: If the ends differ in shape or alphas are not finite and one-dimensional.

    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> f = Objective(model, [(torch.ones(1, 1), torch.zeros(1, 1))], torch.nn.functional.mse_loss)
    >>> line(f, torch.zeros(1), torch.ones(1), alphas=torch.tensor([0.0, 0.5, 1.0])).values["loss"]
    tensor([0.0000, 0.2500, 1.0000], dtype=torch.float64)
    """
    named = {"": objectives} if isinstance(objectives, Objective) else dict(objectives)
    a, b = _ends(start, end, next(iter(named.values())))
    if alphas.ndim != 1 or not len(alphas) or not torch.isfinite(alphas).all():
        raise InputError(f"line needs finite alphas of shape (p,), got {alphas}: drop the others")
    pieces = {} if pieces is None else pieces
    values: dict[str, list[Tensor]] = {}
    for done, alpha in enumerate(alphas.tolist(), start=1):
        for name, objective in named.items():
            keys = [f"{name}_{key}" if name else key for key in ("loss", *objective.metrics)]
            piece = f"{name} {alpha!r}"
            if piece not in pieces:
                theta = (1 - alpha) * a.theta + alpha * b.theta
                measured = objective.evaluate(Solution(theta, a.buffers))
                pieces[piece] = torch.stack(list(measured.values())).cpu()
            for key, value in zip(keys, pieces[piece], strict=True):
                values.setdefault(key, []).append(value)
        if progress:
            progress(done, len(alphas), f"alpha {alpha:.3g}")
    return Line(
        alphas=alphas,
        values={key: torch.stack(column) for key, column in values.items()},
        distance=float(torch.linalg.vector_norm(b.theta - a.theta, dtype=torch.float64)),
        spec={
            "algorithm": "line",
            "start": fingerprint(a),
            "end": fingerprint(b),
            "objectives": {name: objective.spec for name, objective in named.items()},
        },
    )


def _ends(start: Point, end: Point, objective: Objective) -> tuple[Solution, Solution]:
    shapes = [(p.theta if isinstance(p, Solution) else p).shape for p in (start, end)]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"line needs two ends of one shape (n,), got {tuple(shapes[0])} and "
            f"{tuple(shapes[1])}: take both from the same model"
        )
    a, b = objective.at(start), objective.at(end)
    if isinstance(start, Solution) and isinstance(end, Solution):
        for name in sorted(a.buffers.keys() | b.buffers.keys()):
            one, other = a.buffers.get(name), b.buffers.get(name)
            if one is None or other is None or not torch.equal(one, other):
                raise InputError(
                    f"line needs solutions with the same buffers, got two of {name}: choose what "
                    "BatchNorm does between them"
                )
    return a, Solution(b.theta, {**a.buffers, **b.buffers})
