"""Keskar's Metric 2.1: how far the loss rises in a small box around a solution.

    phi = 100 (max f(x + y) - f(x)) / (1 + f(x)),  |y_i| <= b_i = epsilon (|x_i| + 1)

after Keskar et al. (2017), Metric 2.1 with A = I; in a subspace, A z with |z_i| <= epsilon
(|(A^+ x)_i| + 1) takes the place of y. The maximum is approached from below, by the ways up of
``box_climbs``; what the quadratic model of the loss says of it is in ``box_certificates``.

Letters: x = theta, n parameters, p dimensions of a subspace, G = b * gradient, q the top
eigenvector of B H B with B = diag(b) and H the Hessian.
"""

import logging
import math
from collections.abc import Callable, MutableMapping
from time import perf_counter
from typing import Literal, get_args

import torch
from torch import Tensor

from sharpness.box_certificates import UPPER, Certificate, certificate as certified
from sharpness.box_climbs import (
    Climb,
    Start,
    climbed,
    from_gradient,
    highest,
    lbfgsb,
    sign_iteration,
)
from sharpness.boxes import COLUMNS, Box, require_box, subspace
from sharpness.errors import InputError
from sharpness.intervals import t_interval
from sharpness.objective import Objective, Point, fingerprint
from sharpness.results import Sharpness, SubspaceSharpness

Mode = Literal["converged", "faithful"]
Kind = Literal["gaussian", "orthonormal", "coordinates"]

SMALL = 1e-2  # percent: below is less than the smallest that Keskar et al. (2017) publish, 0.05
UNITS = 10  # times its rounding, up to which a value means nothing
CONFIRMED = 10  # times the value, up to which a ceiling confirms that it is small

LOG = logging.getLogger(__name__)


def epsilon_sharpness(
    objective: Objective,
    point: Point | None = None,
    *,
    epsilon: float = 1e-3,
    mode: Mode = "converged",
    starts: int = 10,
    sign_starts: int = 10,
    iterations: int = 10,
    certificate: bool = True,
    seed: int = 0,
    pieces: MutableMapping[str, Tensor] | None = None,
    progress: Callable[[int, int | None, str], None] | None = None,
) -> Sharpness:
    """Return the largest rise of the loss found in the box, in percent of 1 + loss.

    The value is the best of all points that any start evaluated, so it is a lower bound of the
    metric and never negative. Beside it are bounds of the quadratic model of the loss, which the
    loss itself can exceed, and, where the value is small, why.

    Invariant to permutation of neurons, where the maximum is found.
    Not invariant to layer-wise scaling, neuron-wise scaling, filter scaling before BatchNorm,
    GL(d_head) of attention, orthogonal maps of attention heads and logit shift (Dinh et al. 2017).

    Cost: about ``starts`` (1.2 ``iterations`` + 1) + (``sign_starts`` + 2) min(``iterations``, 5)
    gradients, and some 80 products for the certificate; faithful, the gradients of one start.

    Args:
        point: The center, a Solution or theta of shape (n,). Default: the model as it came.
        epsilon: Of the box; Keskar et al. use 1e-3 and 5e-4.
        mode: ``faithful`` is one random start of SciPy's L-BFGS-B alone, as in the paper;
            ``converged`` the best of that same start and of others, by L-BFGS-B and by sign
            iteration, and of up to 64 dimensions the end of flips of single coordinates.
        starts: Of L-BFGS-B, uniform in the box; one if faithful. One reaches the maximum of a
            hard small problem in two cases of three, ten in practically all.
        sign_starts: Of the sign iteration: the signs of the gradient at the center, in growing
            parts of the box, then random vertices; none if faithful. With a certificate the signs
            of q and of -q are two more.
        iterations: Of one start at most; 10 in the paper.
        certificate: Whether to take q and the bounds of the model; never if faithful.
        seed: Of all random starts.
        pieces: What each start found; those that are here are not run again.
        progress: Called after each start.

    Raises:
        InputError: If epsilon is not positive or below the rounding of the weights, or there is
            no start.
        ComputationError: If the loss or its gradient is not finite at the center, or at a point of
            the box that is tried: there is no maximum then; or if it has no second derivative for
            a certificate.

    >>> model = torch.nn.Linear(1, 1, bias=False).double()
    >>> batches = [(torch.ones(1, 1).double(), torch.zeros(1, 1).double())]
    >>> f = Objective(model, batches, torch.nn.functional.mse_loss)  # f = x^2, so that at x = 0
    >>> found = epsilon_sharpness(f, torch.zeros(1).double(), epsilon=0.1)
    >>> round(found.value, 9), round(found.factor, 9)  # phi = 100 epsilon^2, and no more
    (1.0, 1.0)
    """
    here = objective.at(objective.theta if point is None else point)
    require_box("epsilon_sharpness", epsilon, here.theta)
    require_mode("epsilon_sharpness", mode)
    require_starts("epsilon_sharpness", starts, sign_starts, iterations)
    LOG.info("epsilon_sharpness: epsilon %g, %s", epsilon, mode)
    begun = perf_counter()
    box = Box(objective, here, epsilon)
    known = _certificate(box, seed, pieces) if certificate and mode == "converged" else None
    ways = _ways(box, mode, starts, sign_starts, iterations, seed, known)
    found = climbed(box, ways, pieces, progress, flip=mode == "converged")
    in_scipy = sum(climb.scipy_seconds for climb in found.values())
    LOG.info("epsilon_sharpness: %.1f s, %.1f in SciPy", perf_counter() - begun, in_scipy)
    options: dict[str, object] = {
        "epsilon": epsilon,
        "mode": mode,
        "starts": starts,
        "sign_starts": sign_starts,
    }
    options |= {"iterations": iterations, "certificate": certificate, "seed": seed}
    return _record(box, found, known, {"algorithm": "epsilon_sharpness", **options})


def subspace_sharpness(
    objective: Objective,
    point: Point | None = None,
    *,
    epsilon: float = 1e-3,
    dimension: int = 100,
    columns: Kind = "gaussian",
    draws: int = 5,
    mode: Mode = "converged",
    starts: int = 2,
    sign_starts: int = 3,
    iterations: int = 10,
    seed: int = 0,
    progress: Callable[[int, int | None, str], None] | None = None,
) -> SubspaceSharpness:
    """Return Metric 2.1 in random subspaces of p dimensions: mean and spread over draws of A.

    The columns of A are Gaussian and not normalized: with orthonormal ones, the numbers of Keskar
    et al. (2017, Table 4) would need eigenvalues of more than 1000. With all n coordinates it is
    the metric of the whole space.

    Not invariant to layer-wise scaling, neuron-wise scaling, permutation of neurons for a given
    seed, filter scaling before BatchNorm, GL(d_head) of attention, orthogonal maps of attention
    heads and logit shift.

    Cost: as ``epsilon_sharpness`` without a certificate for each draw; p vectors of memory, but
    for coordinates.

    Args:
        point: The center, a Solution or theta of shape (n,). Default: the model as it came.
        epsilon: Of the box; Keskar et al. use 1e-3 and 5e-4.
        dimension: p, of the subspace; 100 in the paper.
        columns: Of A: ``gaussian``, independent normal numbers; ``orthonormal``, a basis of the
            same subspace; or ``coordinates``, p of the parameters.
        draws: Of A; two at least give an interval.
        mode: As in ``epsilon_sharpness``.
        starts: Of L-BFGS-B in each subspace, uniform in the box; one if faithful.
        sign_starts: Of the sign iteration in each subspace; none if faithful.
        iterations: Of one start at most; 10 in the paper.
        seed: Of A and of all starts.
        progress: Called after each draw.

    Raises:
        InputError: If a number is not in its range, or p is larger than n.
        ComputationError: If the loss or its gradient is not finite at the center, or at a point of
            the box that is tried: there is no maximum then.

    >>> model = torch.nn.Linear(1, 1, bias=False).double()
    >>> f = Objective(model, [(torch.ones(1, 1).double(),) * 2], lambda z, _: z.mean())
    >>> found = subspace_sharpness(f, torch.zeros(1).double(), dimension=1, draws=2)
    >>> bool(found.interval[0] <= found.value <= found.interval[1])
    True
    """
    here = objective.at(objective.theta if point is None else point)
    require_box("subspace_sharpness", epsilon, here.theta)
    require_mode("subspace_sharpness", mode)
    require_starts("subspace_sharpness", starts, sign_starts, iterations)
    n = len(here.theta)
    if draws < 1 or not 1 <= dimension <= n or columns not in COLUMNS:
        raise InputError(
            f"subspace_sharpness needs a draw, 1 <= dimension <= {n} and columns of "
            f"{', '.join(COLUMNS)}, got draws={draws}, dimension={dimension}, columns={columns}: "
            "change them"
        )
    LOG.info("subspace_sharpness: epsilon %g, %d draws of %d dimensions", epsilon, draws, dimension)
    rows: list[list[float]] = []
    gradients = forwards = 0
    for draw in range(draws):
        A = subspace(columns, dimension, seed, draw, like=here.theta)
        box = Box(objective, here, epsilon, A)
        ways = _ways(box, mode, starts, sign_starts, iterations, seed + draw, None)
        found = climbed(box, ways, flip=mode == "converged")
        z, maximum = top(box, found)
        slope = box.metric(float(box.G.abs().sum()))
        rows.append([box.metric(maximum - box.loss), slope, box.on_bounds(z)])
        gradients += 1 + sum(climb.gradients for climb in found.values())
        forwards += 2 + sum(climb.forwards for climb in found.values())
        if progress:
            progress(draw + 1, draws, f"value {rows[-1][0]:.4g}")
    values, slopes, on_bounds = torch.tensor(rows, dtype=torch.float64).T.contiguous()
    mean, low, high = t_interval(values)
    options: dict[str, object] = {
        "epsilon": epsilon,
        "dimension": dimension,
        "columns": columns,
        "draws": draws,
    }
    options |= {"mode": mode, "starts": starts, "sign_starts": sign_starts}
    return SubspaceSharpness(
        value=mean,
        stderr=float(values.std() / math.sqrt(draws)) if draws > 1 else math.nan,
        interval=torch.tensor([low, high], dtype=torch.float64),
        epsilon=float(epsilon),
        loss=box.loss,
        gradients=gradients,
        forwards=forwards,
        draw_values=values,
        draw_first_order=slopes,
        draw_on_bounds=on_bounds,
        spec={
            "algorithm": "subspace_sharpness",
            **options,
            "iterations": iterations,
            "seed": seed,
            "point": fingerprint(here),
            "objective": objective.spec,
        },
    )


def _certificate(box: Box, seed: int, pieces: MutableMapping[str, Tensor] | None) -> Certificate:
    if pieces is None:
        return certified(box, seed)
    if "certificate" not in pieces:
        pieces["certificate"] = certified(box, seed).piece
    return Certificate.of(pieces["certificate"])


def ways_up(
    box: Box, starts: int, sign_starts: int, iterations: int, seed: int, v: Tensor | None = None
) -> dict[str, Start]:
    """Return the starts of a search by name.

    Args:
        v: Top eigenvector of B H B, shape (p,).
    """

    def signs(of: Tensor) -> Start:
        return sign_iteration(lambda: box.vertex(of, seed, 0), iterations)

    def vertex(i: int) -> Start:
        return sign_iteration(lambda: box.random_vertex(seed, i), iterations)

    ways = {f"L-BFGS-B {i + 1}": lbfgsb(seed, i, iterations) for i in range(starts)}
    if sign_starts:
        ways["sign of the gradient"] = from_gradient(seed, iterations)
        if v is not None:
            v = v.to(box.sides)
            ways |= {"sign of q": signs(v), "sign of -q": signs(-v)}
    return ways | {f"random vertex {i}": vertex(i) for i in range(1, sign_starts)}


def _ways(
    box: Box,
    mode: Mode,
    starts: int,
    sign_starts: int,
    iterations: int,
    seed: int,
    known: Certificate | None,
) -> dict[str, Start]:
    if mode == "faithful":
        return ways_up(box, 1, 0, iterations, seed)
    return ways_up(box, starts, sign_starts, iterations, seed, known.v if known else None)


def top(box: Box, found: dict[str, Climb]) -> tuple[Tensor, float]:
    """Return the best point, z of shape (p,), and the loss there, summed in float64."""
    z = highest(found).z
    maximum = float(box.objective.value(box.at(z)))
    # Where rounding alone rose, the center itself is the highest.
    return (z, maximum) if maximum > box.loss else (torch.zeros_like(z), box.loss)


def _record(
    box: Box, found: dict[str, Climb], known: Certificate | None, spec: dict[str, object]
) -> Sharpness:
    z, maximum = top(box, found)
    climbs, percent = found.values(), box.metric(1.0)
    value, rounding = box.metric(maximum - box.loss), box.rounding(maximum)
    first_order = box.metric(float(box.G.abs().sum()))
    bounds = {name: percent * x for name, x in known.bounds.items()} if known else {}
    return Sharpness(
        value=value,
        epsilon=float(box.epsilon),
        loss=box.loss,
        maximum=maximum,
        first_order=first_order,
        rounding=rounding,
        sampling_error=box.metric(box.sampling_error(z)),
        on_bounds=box.on_bounds(z),
        why=_why(value, rounding, first_order, found, bounds),
        bounds={name: _numbers(x) for name, x in bounds.items()},
        gradients=1 + sum(climb.gradients for climb in climbs),
        products=known.products if known else 0,
        # The last four are those of the sampling error.
        forwards=2 + sum(climb.forwards for climb in climbs) + 4 * box.objective.is_sample,
        displacement=z.cpu(),
        start=list(found),
        start_values=percent * _numbers([climb.best for climb in climbs]),
        start_begins=percent * _numbers([climb.begin for climb in climbs]),
        start_on_bounds=_numbers([box.on_bounds(climb.z) for climb in climbs]),
        start_iterations=torch.tensor([climb.iterations for climb in climbs]),
        start_gradients=torch.tensor([climb.gradients for climb in climbs]),
        start_signs=torch.tensor([not name.startswith("L-BFGS-B") for name in found]),
        spec={**spec, "point": fingerprint(box.here), "objective": box.objective.spec},
    )


def _numbers(x: float | list[float]) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def _why(
    value: float,
    rounding: float,
    first_order: float,
    found: dict[str, Climb],
    bounds: dict[str, float],
) -> str:
    """Return why a value is small, "" where it is not; ``Sharpness.why`` says what words mean."""
    noise = UNITS * rounding
    if value > max(SMALL, noise):
        return ""
    known = [bounds[name] for name in UPPER if name in bounds and not math.isnan(bounds[name])]
    ceiling = min(known, default=math.inf)
    nowhere = all(
        name.startswith("L-BFGS-B") and not climb.iterations for name, climb in found.items()
    )
    if nowhere or value <= noise < bounds.get("best_vertex", first_order):
        return "stuck"
    if ceiling <= max(noise, CONFIRMED * value):
        return "truly flat"
    return "at float precision" if value <= noise else "unknown"


def require_mode(who: str, mode: str) -> None:
    """Refuse a mode that is none.

    Raises:
        InputError: If it is none.
    """
    if mode not in get_args(Mode):
        raise InputError(
            f"{who} needs a mode of {', '.join(get_args(Mode))}, got {mode}: choose one"
        )


def require_starts(who: str, starts: int, sign_starts: int, iterations: int) -> None:
    """Refuse a search without a start or an iteration.

    Raises:
        InputError: If there is none.
    """
    if min(starts, sign_starts) < 0 or starts + sign_starts < 1 or iterations < 1:
        raise InputError(
            f"{who} needs a start and an iteration, got starts={starts}, "
            f"sign_starts={sign_starts}, iterations={iterations}: raise them"
        )
