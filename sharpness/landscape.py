"""The loss along lines and other paths between two solutions (Goodfellow, Vinyals & Saxe 2015)."""

import logging
import math
from collections.abc import Callable, Mapping, MutableMapping

import torch
from torch import Tensor

from sharpness.batch_norm import layers, mixed_variance, require_policy
from sharpness.errors import InputError
from sharpness.objective import Objective, Point, fingerprint
from sharpness.profiles import require_alphas
from sharpness.results import Line, Solution

LOG = logging.getLogger(__name__)


def line(
    objectives: Objective | Mapping[str, Objective],
    start: Point,
    end: Point,
    *,
    alphas: Tensor,
    path: str = "linear",
    batch_norm: str | None = None,
    pieces: MutableMapping[str, Tensor] | None = None,
    progress: Callable[[int, int | None, str], None] | None = None,
) -> Line:
    """Return loss and metrics at (1 - alpha) start + alpha end for each alpha.

    In this form, rather than start + alpha (end - start), both ends are exact. The ``curvilinear``
    path of Keskar et al. (2017, Figure 7) goes over cos(pi alpha / 2) start + sin(pi alpha / 2)
    end.

    Under every policy of BatchNorm, the ends are what ``evaluate`` gives there under that policy.
    Under ``interpolate`` the running means are (1 - alpha) m_a + alpha m_b, and the running
    variances v_a^(1 - alpha) v_b^alpha, which stay positive also beyond both ends.

    Cost: one pass over the data of each objective for each alpha; under ``reestimate`` one over
    the training part more.

    Args:
        objectives: One, or several by name; the name leads in ``values``: "train_loss".
        start: Where alpha is 0, shape (n,).
        end: Where alpha is 1, shape (n,). A bare theta takes the buffers of the other end. Buffers
            other than those of BatchNorm must agree; its counts of batches play no part.
        alphas: Coordinates, shape (p,), also beyond 0 and 1, at least two.
        path: One of ``PATHS``.
        batch_norm: What BatchNorm does on the way (see ``sharpness.batch_norm``). Default: what
            the objectives do; of ``frozen`` ones, ``reestimate`` where the running statistics of
            the ends differ.
        pieces: Loss and metrics of a point, by objective and alpha; those here are not repeated.
        progress: Called after each point.

    Raises:
        InputError: If the ends are the same, or differ in shape or in buffers that the policy does
            not join, if there are no ``statistics`` to re-estimate from, or if alphas are not
            finite and one-dimensional.

    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> f = Objective(model, [(torch.ones(1, 1), torch.zeros(1, 1))], torch.nn.functional.mse_loss)
    >>> line(f, torch.zeros(1), torch.ones(1), alphas=torch.tensor([0.0, 0.5, 1.0])).values["loss"]
    tensor([0.0000, 0.2500, 1.0000], dtype=torch.float64)
    """
    named = {"": objectives} if isinstance(objectives, Objective) else dict(objectives)
    require_alphas("line", alphas)
    if path not in PATHS:
        raise InputError(f"a path needs to be one of {', '.join(PATHS)}, got {path!r}: choose one")
    a, b = _ends(start, end, next(iter(named.values())))
    policy = _policy(batch_norm, named, a, b)
    named = {name: objective.under(policy) for name, objective in named.items()}
    LOG.info("line: %d points of %d objectives", len(alphas), len(named))
    pieces = {} if pieces is None else pieces
    values: dict[str, list[Tensor]] = {}
    for done, alpha in enumerate(alphas.tolist(), start=1):
        for name, objective in named.items():
            keys = [f"{name}_{key}" if name else key for key in ("loss", *objective.metrics)]
            piece = f"{name} {alpha!r}"
            if piece not in pieces:
                measured = objective.evaluate(_between(a, b, alpha, path, policy))
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
            "path": path,
            "batch_norm": policy,
            "batch_norm_layers": len(layers(next(iter(named.values())).model)),
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
    if not isinstance(start, Solution):
        a = Solution(a.theta, b.buffers)
    if not isinstance(end, Solution):
        b = Solution(b.theta, a.buffers)
    model = objective.model
    names = a.buffers.keys() | b.buffers.keys()
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    missing = {name: own[name].detach() for name in names if name in own}
    a, b = (Solution(x.theta, {**missing, **x.buffers}) for x in (a, b))
    norms = {f"{layer}.{name}" for layer, part in layers(model).items() for name in part._buffers}
    for name in sorted(names):
        one, other = a.buffers.get(name), b.buffers.get(name)
        if one is None or other is None or not (name in norms or torch.equal(one, other)):
            raise InputError(
                "line needs solutions that differ in theta and BatchNorm's statistics alone, got "
                f"two of {name}: choose another pair"
            )
    if torch.equal(a.theta, b.theta) and all(
        torch.equal(a.buffers[name], b.buffers[name]) for name in names
    ):
        raise InputError("line needs two solutions, got the same twice: give another")
    return a, b


def _policy(asked: str | None, named: Mapping[str, Objective], a: Solution, b: Solution) -> str:
    """Return the policy that is in force between these ends."""
    counts = "num_batches_tracked"
    moved = [
        name
        for name in a.buffers
        if not (name.endswith(counts) or torch.equal(a.buffers[name], b.buffers[name]))
    ]
    own = sorted({objective.batch_norm for objective in named.values()})
    if asked is None and len(own) > 1:
        raise InputError(
            f"line needs objectives of one BatchNorm policy, got {', '.join(own)}: choose one"
        )
    if asked is None:
        return "reestimate" if own == ["frozen"] and moved else own[0]
    require_policy(asked)
    if asked == "frozen" and moved:
        raise InputError(
            f"frozen needs the same running statistics at both ends, got two of {moved[0]}: choose "
            "reestimate, interpolate or batch"
        )
    return asked


def _straight(alpha: float) -> tuple[float, float]:
    return 1 - alpha, alpha


def _around(alpha: float) -> tuple[float, float]:
    quarters = round(alpha)
    if alpha == quarters:  # exact, where pi / 2 is not
        return ((1, 0), (0, 1), (-1, 0), (0, -1))[quarters % 4]
    return math.cos(math.pi / 2 * alpha), math.sin(math.pi / 2 * alpha)


# The shares of the start and of the end in a point, by alpha.
PATHS: dict[str, Callable[[float], tuple[float, float]]] = {
    "linear": _straight,
    "curvilinear": _around,
}


def _between(a: Solution, b: Solution, alpha: float, path: str, policy: str) -> Solution:
    of_a, of_b = PATHS[path](alpha)
    theta = of_a * a.theta + of_b * b.theta
    buffers = dict(a.buffers)
    if policy == "interpolate":
        for name, one in a.buffers.items():
            other = b.buffers[name]
            if name.endswith("running_var"):
                buffers[name] = mixed_variance(name, one, other, alpha)
            elif name.endswith("running_mean"):
                buffers[name] = torch.where(one == other, one, (1 - alpha) * one + alpha * other)
    return Solution(theta, buffers)
