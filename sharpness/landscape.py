"""The loss along lines and other paths between two solutions (Goodfellow, Vinyals & Saxe 2015)."""

import logging
import math
from collections.abc import Callable, Mapping, MutableMapping

import torch
from torch import Tensor

from sharpness.batch_norm import layers, mixed_variance
from sharpness.errors import InputError
from sharpness.grid import evaluated, joined, moved_statistics, policy_of
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
    a, b = joined("line", [start, end], next(iter(named.values())))
    if torch.equal(a.theta, b.theta) and not moved_statistics([a, b]):
        raise InputError("line needs two solutions, got the same twice: give another")
    policy = policy_of("line", batch_norm, named, [a, b])
    named = {name: objective.under(policy) for name, objective in named.items()}
    LOG.info("line: %d points of %d objectives", len(alphas), len(named))
    places = alphas.tolist()
    other = torch.empty_like(b.theta)

    def write(i: int, theta: Tensor) -> dict[str, Tensor]:
        of_a, of_b = PATHS[path](places[i])
        torch.mul(b.theta, of_b, out=other)
        torch.mul(a.theta, of_a, out=theta).add_(other)
        return _mixed(a, b, places[i]) if policy == "interpolate" else {}

    def told(done: int, total: int | None, point: str) -> None:
        if progress:
            progress(done, total, f"alpha {places[done - 1]:.3g}")

    values = evaluated(named, a, [repr(x) for x in places], write, pieces=pieces, progress=told)
    return Line(
        alphas=alphas,
        values=values,
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


def _mixed(a: Solution, b: Solution, alpha: float) -> dict[str, Tensor]:
    """Return the running statistics between two solutions."""
    buffers = {}
    for name, one in a.buffers.items():
        other = b.buffers[name]
        if name.endswith("running_var"):
            buffers[name] = mixed_variance(name, one, other, alpha)
        elif name.endswith("running_mean"):
            buffers[name] = torch.where(one == other, one, (1 - alpha) * one + alpha * other)
    return buffers
