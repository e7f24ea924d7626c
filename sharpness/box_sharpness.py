"""Keskar's Metric 2.1: how far the loss rises in a small box around a solution.

    phi = 100 (max f(x + y) - f(x)) / (1 + f(x)),  |y_i| <= b_i = epsilon (|x_i| + 1)

after Keskar et al. (2017), Metric 2.1 with A = I; in a subspace, A^T z with |z_i| <= epsilon
(|(A^+ x)_i| + 1) takes the place of y. The maximum is approached from below, in the
variables u = y / b on [-1, 1], by two methods: SciPy's L-BFGS-B (theirs), whose objective must be
scaled with u or each step is some 1e-7 of the box, and whose tolerances must be zero or it stops
where it starts; and the sign iteration u <- sign(gradient), Frank-Wolfe with unit steps, which
climbs from vertex to vertex because a convex function has its maximum there.

Letters: x = theta, n parameters, p dimensions of a subspace, G = b * gradient.
"""

import logging
import math
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from sharpness.errors import InputError
from sharpness.finite import require_finite
from sharpness.intervals import t_interval
from sharpness.objective import Objective, Point, Targets, fingerprint
from sharpness.results import Sharpness, Solution, SubspaceSharpness
from sharpness.vectors import gaussian, uniform

# A displacement of fewer units in the last place of a weight is rounded away.
FEWEST_UNITS = 16
WITHIN = "use a smaller epsilon or float64"

LOG = logging.getLogger(__name__)


def epsilon_sharpness(
    objective: Objective,
    point: Point | None = None,
    *,
    epsilon: float = 1e-3,
    starts: int = 10,
    sign_starts: int = 10,
    iterations: int = 10,
    seed: int = 0,
    pieces: MutableMapping[str, Tensor] | None = None,
    progress: Callable[[int, int | None, str], None] | None = None,
) -> Sharpness:
    """Return the largest rise of the loss found in the box, in percent of 1 + loss.

    The value is the best of all points that any start evaluated, so it is a lower bound of the
    metric and never negative. Not invariant to rescalings of theta (Dinh et al. 2017).

    Cost: about ``starts`` (1.2 ``iterations`` + 1) + ``sign_starts`` min(``iterations``, 5)
    gradients.

    Args:
        point: The center, a Solution or theta of shape (n,). Default: the model as it came.
        epsilon: Of the box; Keskar et al. use 1e-3 and 5e-4.
        starts: Of L-BFGS-B, uniform in the box. One reaches the maximum of a hard small problem
            in two cases of three, ten in practically all.
        sign_starts: Of the sign iteration: the signs of the gradient at the center, then random
            vertices.
        iterations: Of one start at most; 10 in the paper.
        seed: Of all random starts.
        pieces: What each start found; those that are here are not run again.
        progress: Called after each start.

    Raises:
        InputError: If epsilon is not positive or below the rounding of the weights, or there is
            no start.
        ComputationError: If the loss or its gradient is not finite at the center, or at a point of
            the box that is tried: there is no maximum then.

    >>> model = torch.nn.Linear(1, 1, bias=False).double()
    >>> batches = [(torch.ones(1, 1).double(), torch.zeros(1, 1).double())]
    >>> f = Objective(model, batches, torch.nn.functional.mse_loss)  # f = x^2, so that at x = 0
    >>> found = epsilon_sharpness(f, torch.zeros(1).double(), epsilon=0.1)
    >>> round(found.value, 9)  # phi = 100 epsilon^2
    1.0
    """
    LOG.info(
        "epsilon_sharpness: epsilon %g, %d starts of L-BFGS-B and %d of the sign iteration",
        epsilon,
        starts,
        sign_starts,
    )
    here = objective.at(objective.theta if point is None else point)
    _require(epsilon, starts, sign_starts, iterations, here.theta)
    box = _Box(objective, here, epsilon)
    runs = _runs(starts, sign_starts)
    ends = _climbs(box, runs, iterations, seed, {} if pieces is None else pieces, progress)
    displacement, maximum = box.highest(ends)
    on_bounds = (ends[:, 2:].abs() >= 1).double().mean(dim=1)
    return Sharpness(
        value=box.metric(maximum - box.loss),
        epsilon=float(epsilon),
        loss=box.loss,
        maximum=maximum,
        first_order=box.metric(float(box.G.abs().sum())),
        rounding=box.metric(torch.finfo(here.theta.dtype).eps * abs(maximum)),
        sampling_error=box.metric(box.sampling_error(displacement)),
        on_bounds=float((displacement.abs() >= box.b.to(displacement)).double().mean()),
        gradients=1 + int(ends[:, 1].sum()),
        displacement=displacement.cpu(),
        start_values=box.metric(1.0) * ends[:, 0],
        start_on_bounds=on_bounds,
        start_gradients=ends[:, 1].long(),
        start_signs=torch.tensor([method == "sign" for method, _ in runs]),
        spec={
            "algorithm": "epsilon_sharpness",
            "epsilon": epsilon,
            "starts": starts,
            "sign_starts": sign_starts,
            "iterations": iterations,
            "seed": seed,
            "point": fingerprint(here),
            "objective": objective.spec,
        },
    )


def subspace_sharpness(
    objective: Objective,
    point: Point | None = None,
    *,
    epsilon: float = 1e-3,
    dimension: int = 100,
    draws: int = 5,
    starts: int = 2,
    sign_starts: int = 3,
    iterations: int = 10,
    seed: int = 0,
    progress: Callable[[int, int | None, str], None] | None = None,
) -> SubspaceSharpness:
    """Return Metric 2.1 in random subspaces of p dimensions: mean and spread over draws of A.

    The columns of A are Gaussian and not normalized: with orthonormal ones, the numbers of Keskar
    et al. (2017, Table 4) would need eigenvalues of more than 1000.

    Cost: as ``epsilon_sharpness`` for each draw; p vectors of memory.

    Args:
        point: The center, a Solution or theta of shape (n,). Default: the model as it came.
        epsilon: Of the box; Keskar et al. use 1e-3 and 5e-4.
        dimension: p, of the subspace; 100 in the paper.
        draws: Of A; two at least give an interval.
        starts: Of L-BFGS-B in each subspace, uniform in the box.
        sign_starts: Of the sign iteration in each subspace.
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
    _require(epsilon, starts, sign_starts, iterations, here.theta)
    n = len(here.theta)
    if draws < 1 or not 1 <= dimension <= n:
        raise InputError(
            f"subspace_sharpness needs a draw and 1 <= dimension <= {n}, got draws={draws}, "
            f"dimension={dimension}: change them"
        )
    LOG.info("subspace_sharpness: epsilon %g, %d draws of %d dimensions", epsilon, draws, dimension)
    values: list[float] = []
    slopes: list[float] = []
    gradients = 0
    for draw in range(draws):
        first = draw * dimension  # the rows of A are other vectors of the stream in each draw
        rows = (gaussian(n, seed, first + i, like=here.theta) for i in range(dimension))
        box = _Box(objective, here, epsilon, torch.stack(list(rows)))
        ends = _climbs(box, _runs(starts, sign_starts), iterations, seed + draw, {}, None)
        _, maximum = box.highest(ends)
        values.append(box.metric(maximum - box.loss))
        slopes.append(box.metric(float(box.G.abs().sum())))
        gradients += 1 + int(ends[:, 1].sum())
        if progress:
            progress(draw + 1, draws, f"value {values[-1]:.4g}")
    mean, low, high = t_interval(torch.tensor(values, dtype=torch.float64))
    return SubspaceSharpness(
        value=mean,
        stderr=float(np.std(values, ddof=1) / math.sqrt(draws)) if draws > 1 else math.nan,
        interval=torch.tensor([low, high], dtype=torch.float64),
        epsilon=float(epsilon),
        loss=box.loss,
        gradients=gradients,
        draw_values=torch.tensor(values, dtype=torch.float64),
        draw_first_order=torch.tensor(slopes, dtype=torch.float64),
        spec={
            "algorithm": "subspace_sharpness",
            "epsilon": epsilon,
            "dimension": dimension,
            "columns": "gaussian",
            "draws": draws,
            "starts": starts,
            "sign_starts": sign_starts,
            "iterations": iterations,
            "seed": seed,
            "point": fingerprint(here),
            "objective": objective.spec,
        },
    )


def _runs(starts: int, sign_starts: int) -> list[tuple[str, int]]:
    return [("L-BFGS-B", i) for i in range(starts)] + [("sign", i) for i in range(sign_starts)]


def _climbs(
    box: "_Box",
    runs: list[tuple[str, int]],
    iterations: int,
    seed: int,
    pieces: MutableMapping[str, Tensor],
    progress: Callable[[int, int | None, str], None] | None,
) -> Tensor:
    """Return what each start found, a row (p + 2,) each: rise, gradients, u."""
    found: list[Tensor] = []
    for done, (method, i) in enumerate(runs, start=1):
        name = f"{method} {i}"
        if name not in pieces:
            climb = _Climb(box)
            if method == "sign":
                _sign_iteration(climb, _vertex(box, seed, i), iterations)
            else:
                _lbfgsb(climb, uniform(len(box.b), seed, i).numpy(), iterations)
            row = np.concatenate([[climb.best, climb.gradients], climb.u])
            pieces[name] = torch.from_numpy(row)
        found.append(pieces[name])
        if progress:
            highest = max(float(piece[0]) for piece in found)
            progress(done, len(runs), f"value {box.metric(highest):.4g}")
    return torch.stack(found)


class _Box:
    """The loss as a function of u on [-1, 1]^p, in float64 on the host, as SciPy wants it.

    Args:
        A: Rows that span a subspace, shape (p, n). Default: the whole space, p = n.
    """

    def __init__(
        self, objective: Objective, here: Solution, epsilon: float, A: Tensor | None = None
    ) -> None:
        self.objective, self.here, self.A = objective, here, A
        self.b = epsilon * (self._coordinates(here.theta).double().abs() + 1)  # (p,)
        value, (_, slope) = objective.value(here), objective.value_and_gradient(here)
        require_finite(objective, "epsilon_sharpness", here, value, slope)
        self.loss = float(value)
        self.G = self.b * self._components(slope).double()  # (p,)
        steepest = float(self.G.abs().mean())
        # Unscaled, the first step is the gradient itself: some 1e-7 of a box of size 1.
        self.scale = max(1 / epsilon**2, 10 / steepest if steepest else 0.0)

    def displacement(self, u: Tensor) -> Tensor:
        """Return y = b u, or A^T (b u), shape (n,), in the dtype of theta."""
        z = (self.b * u.to(self.b.device)).to(self.here.theta)
        return z if self.A is None else z @ self.A

    def _coordinates(self, x: Tensor) -> Tensor:
        """Return the least-squares coordinates of x in the subspace, shape (p,)."""
        if self.A is None:
            return x
        gram, right = (self.A @ self.A.T).double(), (self.A @ x).double()
        return torch.linalg.solve(gram, right)

    def _components(self, slope: Tensor) -> Tensor:
        """Return the gradient in the coordinates, shape (p,)."""
        return slope if self.A is None else self.A @ slope

    def rise(self, u: np.ndarray[Any, Any]) -> tuple[float, np.ndarray[Any, Any]]:
        """Return f(x + b u) - f(x) and its gradient in u, shape (n,), from one pass."""
        there = self.here.theta + self.displacement(torch.from_numpy(u))
        value, slope = self._finite(Solution(there, self.here.buffers))
        inside = self.b * self._components(slope).double()
        both = torch.cat([value.double()[None], inside]).cpu().numpy()
        return float(both[0]) - self.loss, both[1:]

    def _finite(self, there: Solution) -> tuple[Tensor, Tensor]:
        """Return loss and gradient at a point of the box, for its maximum is over all of them."""
        found = self.objective.value_and_gradient(there)
        require_finite(self.objective, "epsilon_sharpness in its box", there, *found, remedy=WITHIN)
        return found

    def highest(self, ends: Tensor) -> tuple[Tensor, float]:
        """Return the best displacement, shape (n,), and the loss there, summed in float64."""
        best = ends[ends[:, 0].argmax()]
        displacement = self.displacement(best[2:])
        there = Solution(self.here.theta + displacement, self.here.buffers)
        maximum = float(self.objective.value(there))
        if maximum > self.loss:
            return displacement, maximum
        return torch.zeros_like(displacement), self.loss  # the center itself is the highest

    def sampling_error(self, displacement: Tensor) -> float:
        """Return the standard error of the rise at this displacement; 0 if the data are whole."""
        if not self.objective.is_sample:
            return 0.0
        here = self.objective.settled(self.here)  # once, not for each batch
        there = self.objective.settled(Solution(here.theta + displacement, self.here.buffers))

        def rise(i: int, inputs: Any, targets: Targets) -> Tensor:
            f = self.objective.batch_loss
            return f(there, inputs, targets).double() - f(here, inputs, targets).double()

        with torch.no_grad():
            return float(self.objective.sampling_error(rise))

    def metric(self, rise: float) -> float:
        """Return 100 rise / (1 + loss)."""
        return 100 * rise / (1 + self.loss)


@dataclass
class _Climb:
    """What one start has found: its best point so far, and at what cost."""

    box: _Box
    best: float = 0.0  # the center itself counts
    gradients: int = 0
    u: np.ndarray[Any, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.u = np.zeros(len(self.box.b))

    def rise(self, u: np.ndarray[Any, Any]) -> tuple[float, np.ndarray[Any, Any]]:
        value, slope = self.box.rise(u)
        self.gradients += 1
        if value > self.best:
            self.best, self.u = value, u.copy()
        return value, slope


def _lbfgsb(climb: _Climb, u: np.ndarray[Any, Any], iterations: int) -> None:
    scale = climb.box.scale

    def descent(u: np.ndarray[Any, Any]) -> tuple[float, np.ndarray[Any, Any]]:
        value, slope = climb.rise(u)
        return -scale * value, -scale * slope

    minimize(
        descent,
        u,
        method="L-BFGS-B",
        jac=True,
        bounds=[(-1.0, 1.0)] * len(u),
        options={"maxiter": iterations, "ftol": 0.0, "gtol": 0.0, "maxls": 20},
    )


def _sign_iteration(climb: _Climb, u: np.ndarray[Any, Any], iterations: int) -> None:
    for _ in range(iterations):
        _, slope = climb.rise(u)
        following = np.where(slope == 0, u, np.sign(slope))
        if np.array_equal(following, u):
            return
        u = following


def _vertex(box: _Box, seed: int, i: int) -> np.ndarray[Any, Any]:
    """Return the vertex of the i-th sign start: along the gradient, then at random."""
    # Other vectors than the starts of L-BFGS-B, of which there are fewer.
    inside = uniform(len(box.b), seed, 2**16 + i).to(box.b)
    random = torch.where(inside < 0, -1.0, 1.0).double()
    signs = torch.where(box.G == 0, random, box.G.sign()) if i == 0 else random
    return signs.cpu().numpy()


def _require(epsilon: float, starts: int, sign_starts: int, iterations: int, theta: Tensor) -> None:
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise InputError(
            f"epsilon_sharpness needs epsilon above 0 and finite, got {epsilon}: change it"
        )
    largest = torch.finfo(theta.dtype).max ** 0.5
    if epsilon > largest:
        raise InputError(
            f"epsilon_sharpness needs epsilon up to {largest:.1e} in {theta.dtype}, where its "
            f"square overflows, got {epsilon:.1e}: lower it"
        )
    finest = FEWEST_UNITS * torch.finfo(theta.dtype).eps
    if epsilon < finest:
        raise InputError(
            f"epsilon_sharpness needs epsilon >= {finest:.1e} in {theta.dtype}, got {epsilon:.1e}, "
            "which rounding of the weights would lose: raise it or use float64"
        )
    if min(starts, sign_starts) < 0 or starts + sign_starts < 1 or iterations < 1:
        raise InputError(
            f"epsilon_sharpness needs a start and an iteration, got starts={starts}, "
            f"sign_starts={sign_starts}, iterations={iterations}: raise them"
        )
