"""How far the loss rises under random noise on the weights: E L(w + d) - L(w).

d = sigma c z with z independent, normal or uniform on [-1, 1], and c = 1, or c = |w| element by
element: "adaptive" (Andriushchenko et al. 2023). Definition: ``docs/theory.md``.

Letters: w the point, n parameters, M mini-batches; c axes, u = z.
"""

import logging
import math
from typing import Any, Literal

import torch

from sharpness.displaced import (
    OF,
    SMALLER,
    Displaced,
    Of,
    Pieces,
    Progress,
    batches_words,
    measured_words,
    require_seen,
    rounding,
    rows_of,
    units_words,
)
from sharpness.intervals import t_interval
from sharpness.objective import Objective, Point, fingerprint
from sharpness.options import require_choice, require_positive, require_whole
from sharpness.results import Measured
from sharpness.specs import spec_of
from sharpness.vectors import gaussian, uniform

Noise = Literal["gaussian", "uniform"]
NOISES = ("gaussian", "uniform")
DRAWS = 2**30  # of a seed's vectors the first of ours: no one else takes so many

LOG = logging.getLogger(__name__)


def average_case(
    objective: Objective,
    point: Point | None = None,
    *,
    sigma: float = 0.01,
    noise: Noise = "gaussian",
    adaptive: bool = False,
    batch_size: int | None = None,
    normalize_logits: bool = False,
    of: Of = "loss",
    draws: int = 50,
    seed: int = 0,
    pieces: Pieces = None,
    progress: Progress = None,
) -> Measured:
    """Return the mean rise of the loss under random noise on the weights.

    Of pairs +d and -d, whose mean has no term of first order, so that near a minimum it is
    sigma^2 tr(H) / 2 for Gaussian noise, and a third of it for uniform noise; H is c H c if
    ``adaptive``. With ``batch_size`` each mini-batch has draws of its own, and nothing else
    changes: the mean of a loss over mini-batches is that over their examples.

    Invariant to permutation of neurons, orthogonal maps of attention heads and logit shift.
    With ``adaptive`` it is invariant to layer-wise scaling, neuron-wise scaling, permutation of
    neurons and filter scaling before BatchNorm, and to none of the others; uniform noise loses
    orthogonal maps. That holds for the expectation, of which draws give an interval.

    Cost: 2 ``draws`` + 1 forward passes.

    Args:
        sigma: Standard deviation of Gaussian noise on each weight; of uniform noise the bound.
        noise: ``gaussian``, or ``uniform`` on [-sigma, sigma].
        adaptive: Whether the noise of w_i is in units of |w_i|.
        batch_size: Examples of a mini-batch, with draws of its own each. Default: all.
        normalize_logits: Whether class scores are normalized before the loss, so that the scale of
            the last layer does not matter.
        of: What rises, the loss or the 0-1 error.
        draws: Pairs of noise; two at least give an interval.
        seed: Of the noise and of the mini-batches.
        pieces: What was found, by mini-batch; those here are not repeated.
        progress: Called after each mini-batch.

    Raises:
        InputError: If a number is not in its range, or the model has no class scores where they are
            needed.
        ComputationError: If the loss is not finite at the point or under the noise.

    >>> model = torch.nn.Linear(1, 1, bias=False).double()
    >>> one = torch.ones(1, 1).double()
    >>> f = Objective(model, [(one, one)], torch.nn.functional.mse_loss)  # H = 2 everywhere
    >>> found = average_case(f, torch.tensor([3.0]).double(), sigma=0.1, draws=1000)
    >>> bool(found.interval[0] < 0.01 < found.interval[1])  # sigma^2 H / 2
    True
    """
    who = "average_case"
    here = objective.at(objective.theta if point is None else point)
    require_positive(who, sigma=sigma)
    require_choice(who, NOISES, noise=noise)
    require_choice(who, OF, of=of)
    require_whole(who, 1, draws=draws)
    lost = rounding(here.theta, 2, adaptive=adaptive) / math.sqrt(len(here.theta))
    require_seen(who, "sigma", sigma, lost=lost, theta=here.theta)
    options = {
        "sigma": sigma,
        "noise": noise,
        "adaptive": adaptive,
        "batch_size": batch_size,
        "normalize_logits": normalize_logits,
        "of": of,
        "draws": draws,
    }
    room = Displaced(
        f"{who} under its noise",
        objective,
        here,
        adaptive=adaptive,
        batch_size=batch_size,
        seed=seed,
        normalize=normalize_logits,
        of=of,
    )
    LOG.info("%s: %d mini-batches, %d pairs of each", who, room.count, draws)
    rows = rows_of(room, lambda i, f: _shaken(room, f, options, i, seed), pieces, progress)
    losses, values, errors = rows[:, 1:4].unbind(1)
    rises = rows[:, 4:].mean(dim=0)  # (draws,)  of the mean over the mini-batches
    value, low, high = t_interval(rises)
    stderr = float(rises.std()) / math.sqrt(draws) if draws > 1 else math.nan
    if objective.is_sample:  # of the data too
        sampling = float(errors[0]) if batch_size is None else math.nan
        whole = math.hypot(stderr, sampling)
        low, high = (value + (x - value) * (whole / stderr if stderr else 1.0) for x in (low, high))
        stderr = whole
    return Measured(
        measure="average-case",
        value=value,
        stderr=stderr,
        interval=torch.tensor([low, high], dtype=torch.float64),
        threshold=math.nan,
        loss=float(losses.mean()),
        converged=True,
        words=_average_words(options, value, stderr, room),
        samples={"rise": rises},
        details={of: values, "left_out": torch.tensor(room.left_out)},
        gradients=0.0,
        products=0.0,
        forwards=room.count * room.share * (1 + 2 * draws),
        spec=spec_of("average-case", options, seed, fingerprint(here), objective),
    )


def _shaken(
    room: Displaced, f: Objective, options: dict[str, Any], i: int, seed: int
) -> list[float]:
    """Return of one mini-batch: mean rise, loss and value at w, sampling error, rises of pairs."""
    sigma, draws, n = options["sigma"], options["draws"], len(room.w)
    room.go()
    center, base = room.see(f), room.micro
    moved = [torch.zeros_like(x) for x in base]
    rises = []
    for j in range(i * draws, (i + 1) * draws):
        if options["noise"] == "gaussian":
            u = gaussian(n, seed, DRAWS + j, like=room.w)
        else:
            u = uniform(n, seed, DRAWS + j).to(room.w)
        values = []
        for by in (sigma, -sigma):
            room.go(u, by)
            values.append(room.see(f, SMALLER.format("sigma")).value)
            for total, x in zip(moved, room.micro, strict=True):
                total.add_(x, alpha=1 / (2 * draws))
        rises.append(sum(values) / 2 - center.value)
    error = 0.0
    if room.is_sample:
        error = room.sampling_error([a - b for a, b in zip(moved, base, strict=True)])
    return [math.fsum(rises) / draws, center.loss, center.value, error, *rises]


def _average_words(options: dict[str, Any], value: float, stderr: float, room: Displaced) -> str:
    bounded = options["noise"] == "uniform"
    size = f"up to {options['sigma']:g}" if bounded else f"of deviation {options['sigma']:g}"
    unit = units_words(adaptive=options["adaptive"])
    return (
        f"{measured_words(options['of'])} rises by {value:.4g} -+ {stderr:.2g} on average under "
        f"{options['noise']} noise {size}{unit}{batches_words(room)}, of {options['draws']} pairs"
    )
