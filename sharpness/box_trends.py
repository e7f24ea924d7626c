"""How Metric 2.1 grows with its box: as epsilon for a slope, as its square for curvature.

Each box is searched from the highest point of the box before, besides the usual starts.

Letters: e epsilons, n parameters.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from sharpness.box_climbs import climbed, sign_iteration
from sharpness.box_sharpness import require_starts, top, ways_up
from sharpness.boxes import Box, require_box
from sharpness.errors import InputError
from sharpness.objective import Objective, Point, fingerprint
from sharpness.results import EpsilonTrend

EPSILONS = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3)  # around those of Keskar et al. (2017)
BEFORE = "smaller box"  # the start where the box before was highest


def epsilon_trend(
    objective: Objective,
    point: Point | None = None,
    *,
    epsilons: Sequence[float] = EPSILONS,
    starts: int = 1,
    sign_starts: int = 3,
    iterations: int = 10,
    seed: int = 0,
    progress: Callable[[int, int | None, str], None] | None = None,
) -> EpsilonTrend:
    """Return Metric 2.1 in boxes of growing epsilon around one point.

    No value is below the one before: a box holds the smaller ones, and its search begins with
    their highest point. The exponent d log(value) / d log(epsilon) is 1 where the slope at the
    point makes the loss rise and 2 where its curvature does; more is curvature that grows.

    Invariant to permutation of neurons, where the maxima are found.
    Not invariant to layer-wise scaling, neuron-wise scaling, filter scaling before BatchNorm,
    GL(d_head) of attention, orthogonal maps of attention heads and logit shift.

    Cost: for each epsilon that of ``epsilon_sharpness`` with these starts and no certificate.

    Args:
        point: The center, a Solution or theta of shape (n,). Default: the model as it came.
        epsilons: Of the boxes, growing.
        starts: Of L-BFGS-B in each box, uniform in it.
        sign_starts: Of the sign iteration in each box: the signs of the gradient at the center, in
            growing parts of the box, then random vertices; one more begins at the highest point of
            the box before.
        iterations: Of one start at most.
        seed: Of all random starts.
        progress: Called after each box.

    Raises:
        InputError: If the epsilons do not grow, one is not positive or below the rounding of the
            weights, or there is no start.
        ComputationError: If the loss or its gradient is not finite at the center, or at a point of
            a box that is tried.

    >>> model = torch.nn.Linear(1, 1, bias=False).double()
    >>> batches = [(torch.ones(1, 1).double(), torch.zeros(1, 1).double())]
    >>> f = Objective(model, batches, torch.nn.functional.mse_loss)  # f = x^2: phi = 100 epsilon^2
    >>> found = epsilon_trend(f, torch.zeros(1).double(), epsilons=(0.1, 0.2))
    >>> found.values.round(decimals=9).tolist(), found.exponents.round(decimals=9).tolist()
    ([1.0, 4.0], [2.0, 2.0])
    """
    here = objective.at(objective.theta if point is None else point)
    require_starts("epsilon_trend", starts, sign_starts, iterations)
    sizes = [float(x) for x in epsilons]
    if not sizes or not all(a < b for a, b in pairwise(sizes)):
        raise InputError(f"epsilon_trend needs epsilons that grow, got {sizes}: sort them")
    for epsilon in sizes:
        require_box("epsilon_trend", epsilon, here.theta)
    first = Box(objective, here, sizes[0])
    z, maximum = torch.zeros_like(first.sides), first.loss
    rows: list[list[float]] = []
    points: list[Tensor] = []
    for done, epsilon in enumerate(sizes, start=1):
        box = first.resized(epsilon)
        ways = ways_up(box, starts, sign_starts, iterations, seed)
        if z.any():
            ways[BEFORE] = sign_iteration(partial(torch.div, z, box.sides), iterations)
        found = climbed(box, ways)
        z, maximum = max((z, maximum), top(box, found), key=lambda x: x[1])
        errors = box.metric(box.sampling_error(z)), box.rounding(maximum)
        spent = sum(x.gradients for x in found.values()), sum(x.forwards for x in found.values())
        slope = box.metric(float(box.G.abs().sum()))
        rows.append([box.metric(maximum - box.loss), slope, maximum, *errors, *spent])
        points.append(z.cpu())
        if progress:
            progress(done, len(sizes), f"epsilon {epsilon:g}: value {rows[-1][0]:.4g}")
    values, slopes, maxima, sampling, rounding, gradients, forwards = torch.tensor(
        rows, dtype=torch.float64
    ).T.contiguous()
    return EpsilonTrend(
        epsilon=torch.tensor(sizes, dtype=torch.float64),
        values=values,
        first_order=slopes,
        maxima=maxima,
        sampling_errors=sampling,
        rounding=rounding,
        displacements=torch.stack(points),
        loss=first.loss,
        gradients=1 + int(gradients.sum()),
        forwards=1 + len(sizes) * (1 + 4 * objective.is_sample) + int(forwards.sum()),
        spec={
            "algorithm": "epsilon_trend",
            "epsilons": sizes,
            "starts": starts,
            "sign_starts": sign_starts,
            "iterations": iterations,
            "seed": seed,
            "point": fingerprint(here),
            "objective": objective.spec,
        },
    )
