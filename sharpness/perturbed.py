"""How far the loss rises in a ball of weights: to the highest point found, and one step up.

    worst case:  max L(w + d) - L(w) over |c^-1 d|_p <= rho       (Andriushchenko et al. 2023)
    SAM:         L(w + e) - L(w),  e = rho c^2 g / |c g|_2        (Foret et al., Kwon et al. 2021)

with c = 1, or c = |w| element by element: "adaptive", the same for all networks that are the same
but for a diagonal scaling. With ``batch_size`` m a number is the mean over disjoint mini-batches of
m examples of what it is on each: m-sharpness. Definitions: ``docs/theory.md``.

Letters: w the point, g gradient, n parameters, N examples, m of them in each of M mini-batches;
d = c u, G = c g.
"""

import logging
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sharpness.apgd import NORMS, Ball, Look, Norm, climb
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
from sharpness.errors import InputError
from sharpness.intervals import t_interval
from sharpness.objective import Objective, Point, fingerprint
from sharpness.options import require_choice, require_positive, require_whole
from sharpness.results import Measured
from sharpness.specs import spec_of

STARTS = 2**29  # of a seed's vectors the first of ours: no one else takes so many
MOST_LATE = 0.01  # share of a rise that may come in the last quarter of the iterations

LOG = logging.getLogger(__name__)


def worst_case(
    objective: Objective,
    point: Point | None = None,
    *,
    rho: float = 0.05,
    norm: Norm = "l2",
    adaptive: bool = False,
    batch_size: int | None = None,
    normalize_logits: bool = False,
    of: Of = "loss",
    iterations: int = 20,
    restarts: int = 1,
    seed: int = 0,
    pieces: Pieces = None,
    progress: Progress = None,
) -> Measured:
    """Return the largest rise of the loss found in a ball around the point, a lower bound.

    The best of all points that Auto-PGD looks at (Croce and Hein 2020), from the center and from
    random points of the ball: never below 0, and in a ball of l2 at least the value of ``sam``.
    The loss is that of the mini-batches, after normalization if asked for; examples that fill no
    mini-batch are left out.

    Invariant to permutation of neurons, orthogonal maps of attention heads and logit shift.
    With ``adaptive`` it is invariant to layer-wise scaling, neuron-wise scaling, permutation of
    neurons and filter scaling before BatchNorm, and to none of the others; the norm ``linf`` loses
    orthogonal maps. That holds for the maximum; what a start finds depends on rounding, unless the
    factors are powers of two.

    Cost: ``iterations`` + 1 + ``restarts`` (``iterations`` + 1) gradients.

    Args:
        rho: Radius of the ball; Foret et al. train with 0.05.
        norm: Of the ball: ``l2``, or ``linf`` for a box.
        adaptive: Whether |d_i| counts in units of |w_i|; zero weights then stay zero.
        batch_size: Examples of a mini-batch, with a worst case of its own each. Default: all.
        normalize_logits: Whether class scores are normalized before the loss, so that the scale of
            the last layer does not matter.
        of: What is measured where the loss is climbed: its own rise, or that of the 0-1 error.
        iterations: Of one start at most.
        restarts: Starts at random points, beside that at the center, which cannot leave a
            stationary point.
        seed: Of the starts and of the mini-batches.
        pieces: What was found, by mini-batch; those here are not repeated.
        progress: Called after each mini-batch.

    Raises:
        InputError: If a number is not in its range, or the model has no class scores where they are
            needed.
        ComputationError: If the loss or the norm of its gradient is not finite in the ball.

    >>> model = torch.nn.Linear(1, 1, bias=False).double()
    >>> one = torch.ones(1, 1).double()
    >>> f = Objective(model, [(one, one)], torch.nn.functional.mse_loss)  # (w - 1)^2
    >>> round(worst_case(f, torch.tensor([3.0]).double(), rho=0.5).value, 9)  # 2.5^2 - 2^2
    2.25
    """
    who = "worst_case"
    here = objective.at(objective.theta if point is None else point)
    require_positive(who, rho=rho)
    require_choice(who, NORMS, norm=norm)
    require_choice(who, OF, of=of)
    require_whole(who, 1, iterations=iterations)
    require_whole(who, 0, restarts=restarts)
    lost = rounding(here.theta, 2 if norm == "l2" else math.inf, adaptive=adaptive)
    require_seen(who, "rho", rho, lost=lost, theta=here.theta)
    options = {
        "rho": rho,
        "norm": norm,
        "adaptive": adaptive,
        "batch_size": batch_size,
        "normalize_logits": normalize_logits,
        "of": of,
        "iterations": iterations,
        "restarts": restarts,
    }
    room = Displaced(
        f"{who} in its ball",
        objective,
        here,
        adaptive=adaptive,
        batch_size=batch_size,
        seed=seed,
        normalize=normalize_logits,
        of=of,
    )
    plan = _Plan(Ball(norm, rho), iterations, restarts, seed)
    LOG.info("%s: %d mini-batches, %d starts of each", who, room.count, restarts + 1)
    rows = rows_of(room, lambda i, f: _ascended(room, f, plan, i), pieces, progress)
    rises, losses, values, firsts, gradients, forwards, error, late = rows[:, :8].unbind(1)
    starts = rows[:, 8:].view(room.count, restarts + 1, 2)
    value, stderr, interval = _over_batches(room, rises, error, bound=True)
    settled = int((late <= MOST_LATE).sum())
    return Measured(
        measure="worst-case",
        value=value,
        stderr=stderr,
        interval=interval,
        threshold=math.nan,
        loss=float(losses.mean()),
        converged=settled == room.count,
        words=_worst_words(options, value, room, firsts, starts, settled),
        samples={"rise": rises},
        details={
            "first_order": firsts,
            of: values,
            "start_loss_rises": starts[..., 0],
            "start_risen_shares": starts[..., 1],
            "late_shares": late,
            "left_out": torch.tensor(room.left_out),
        },
        gradients=float(gradients.sum()) * room.share,
        products=0.0,
        forwards=float(forwards.sum()) * room.share,
        spec=spec_of("worst-case", options, seed, fingerprint(here), objective),
    )


def sam(
    objective: Objective,
    point: Point | None = None,
    *,
    rho: float = 0.05,
    adaptive: bool = False,
    eta: float = 0.0,
    batch_size: int | None = None,
    seed: int = 0,
    pieces: Pieces = None,
    progress: Progress = None,
) -> Measured:
    """Return the rise of the loss to the point that SAM, or ASAM if ``adaptive``, steps up to.

    L(w + e) - L(w) with e = rho g / |g|_2, or rho T^2 g / |T g|_2 for T = diag(|w| + eta), so that
    |T^-1 e|_2 = rho; a lower bound of ``worst_case`` in the same ball. On a quadratic it is
    rho |g| + rho^2 g' H g / (2 |g|^2). Undefined, NaN, where the gradient is zero.

    Invariant to permutation of neurons, orthogonal maps of attention heads and logit shift.
    With ``adaptive`` and eta = 0 it is invariant to layer-wise scaling, neuron-wise scaling,
    permutation of neurons and filter scaling before BatchNorm, and to none of the others.

    Cost: a gradient and a forward pass.

    Args:
        rho: Length of the step; 0.05 is SAM's default.
        adaptive: Whether the step is ASAM's, in units of |w| + eta.
        eta: Added to |w|; 0.01 in ASAM's code, which loses the invariances.
        batch_size: Examples of a mini-batch, with a step of its own each. Default: all.
        seed: Of the mini-batches.
        pieces: What was found, by mini-batch; those here are not repeated.
        progress: Called after each mini-batch.

    Raises:
        InputError: If a number is not in its range, or eta is given without ``adaptive``.
        ComputationError: If the loss or the norm of its gradient is not finite.

    >>> model = torch.nn.Linear(1, 1, bias=False).double()
    >>> one = torch.ones(1, 1).double()
    >>> f = Objective(model, [(one, one)], torch.nn.functional.mse_loss)  # (w - 1)^2
    >>> round(sam(f, torch.tensor([3.0]).double(), rho=0.5).value, 9)  # 0.5 * 4 + 0.5^2
    2.25
    """
    who = "sam"
    here = objective.at(objective.theta if point is None else point)
    require_positive(who, rho=rho)
    if not (isinstance(eta, int | float) and eta >= 0 and math.isfinite(eta)):
        raise InputError(f"sam needs eta of at least 0 and finite, got {eta}: change it")
    if eta and not adaptive:
        raise InputError(f"sam needs adaptive for an eta, got {eta}: set adaptive or leave it out")
    lost = rounding(here.theta, 2, adaptive=adaptive)
    require_seen(who, "rho", rho, lost=lost, theta=here.theta)
    options = {"rho": rho, "adaptive": adaptive, "eta": eta, "batch_size": batch_size}
    room = Displaced(
        who, objective, here, adaptive=adaptive, eta=eta, batch_size=batch_size, seed=seed
    )
    ball = Ball("l2", rho)
    rows = rows_of(room, lambda i, f: _stepped(room, f, ball), pieces, progress)
    rises, losses, firsts, forwards, error = rows.unbind(1)
    value, stderr, interval = _over_batches(room, rises, error, bound=False)
    return Measured(
        measure="sam",
        value=value,
        stderr=stderr,
        interval=interval,
        threshold=math.nan,
        loss=float(losses.mean()),
        converged=not bool(rises.isnan().any()),
        words=_sam_words(options, value, room, firsts),
        samples={"rise": rises},
        details={"first_order": firsts, "left_out": torch.tensor(room.left_out)},
        gradients=room.count * room.share,
        products=0.0,
        forwards=float(forwards.sum()) * room.share,
        spec=spec_of("sam", options, seed, fingerprint(here), objective),
    )


@dataclass(frozen=True)
class _Plan:
    ball: Ball
    iterations: int
    restarts: int
    seed: int


def _ascended(room: Displaced, f: Objective, plan: _Plan, i: int) -> list[float]:
    """Return of one mini-batch: rise, loss and value at w, first order, costs, errors, starts."""
    ball, losses, values = plan.ball, [], []

    def see(u: Tensor | None) -> Look:
        remedy = None if u is None else SMALLER.format("rho")
        room.go(u)
        seen, slope = room.see_slope(f, remedy)
        losses.append(seen.loss)
        values.append(seen.value)
        steep = float(ball.dual(slope))
        room.require_steep(f, steep, remedy)
        return Look(seen.loss - losses[0], steep, slope)

    center, nowhere = see(None), torch.zeros_like(room.w)
    climbs = [climb(see, ball, nowhere, center, iterations=plan.iterations)]
    for k in range(i * plan.restarts, (i + 1) * plan.restarts):
        u = ball.random(len(nowhere), plan.seed, STARTS + k, like=nowhere)
        if room.axes is not None:
            u.masked_fill_(room.axes == 0, 0.0)  # it moves nothing there, and must take no room
        climbs.append(climb(see, ball, u, see(u), iterations=plan.iterations))
    best = max(climbs, key=lambda found: found.value)
    forwards, error = _sampled(room, f, best.u) if room.of == "loss" else (0, math.nan)
    return [
        max(values) - values[0],
        losses[0],
        values[0],
        ball.rho * center.steep,
        len(values),
        forwards,
        error,
        best.late,
        *(x for found in climbs for x in (found.value, found.paid)),
    ]


def _stepped(room: Displaced, f: Objective, ball: Ball) -> list[float]:
    """Return of one mini-batch: rise, loss at w, first order, forward passes, sampling error."""
    room.go()
    center, slope = room.see_slope(f)
    steep = float(ball.dual(slope))
    room.require_steep(f, steep)
    if not steep:
        return [math.nan, center.loss, 0.0, 0.0, math.nan]
    u = ball.step(torch.zeros_like(slope), Look(0.0, steep, slope), ball.rho)
    room.go(u)
    rise = room.see(f, SMALLER.format("rho")).value - center.value
    forwards, error = _sampled(room, f, u)
    return [rise, center.loss, ball.rho * steep, 1 + forwards, error]


def _sampled(room: Displaced, f: Objective, u: Tensor) -> tuple[int, float]:
    """Return the forward passes for, and the standard error of, the rise to u in a sample."""
    if not room.is_sample:
        return 0, 0.0
    micro = []
    for to in (None, u):
        room.go(to)
        room.see(f)
        micro.append(room.micro)
    return 2, room.sampling_error([b - a for a, b in zip(*micro, strict=True)])


def _over_batches(
    room: Displaced, rises: Tensor, errors: Tensor, *, bound: bool
) -> tuple[float, float, Tensor]:
    """Return value, standard error and interval of rises that leave nothing else to chance.

    Args:
        errors: Of sampling, where all the examples are one mini-batch.
        bound: Whether a rise is but a lower bound.
    """
    if room.index is not None:
        value, low, high = t_interval(rises)
        known = rises[~rises.isnan()]
        stderr = float(known.std()) / math.sqrt(len(known)) if len(known) > 1 else math.nan
    else:
        value = float(rises[0])
        stderr = float(errors[0]) if room.is_sample else 0.0
        low = math.nan if room.is_sample else value
        high = math.nan if bound else low
    return value, stderr, torch.tensor([low, high], dtype=torch.float64)


def _worst_words(
    options: dict[str, Any],
    value: float,
    room: Displaced,
    firsts: Tensor,
    starts: Tensor,
    settled: int,
) -> str:
    """Return what certifies a worst case: the starts have rows (rise, share of steps up)."""
    unit = units_words(adaptive=options["adaptive"])
    found = starts[..., 0].mean(dim=0)
    paid = starts[..., 1].nanmean() if not starts[..., 1].isnan().all() else math.nan
    of = "" if options["of"] == "loss" else "the loss "
    words = (
        f"{measured_words(options['of'])} rises by at least {value:.4g} in the {options['norm']} "
        f"ball with radius {options['rho']:g}{unit}{batches_words(room)}, {of}by "
        f"{float(firsts.mean()):.4g} to first order; {100 * float(paid):.0f} % of the steps went up"
    )
    if len(found) > 1:
        of = "" if options["of"] == "loss" else "rises of the loss of "
        words += f", and {len(found)} starts found {of}{found.min():.4g} to {found.max():.4g}"
    if settled < room.count:
        still = f"in {room.count - settled} of {room.count} mini-batches " if room.count > 1 else ""
        words += f"; {still}the loss still rose in the last quarter of the steps, or not at all"
    return words


def _sam_words(options: dict[str, Any], value: float, room: Displaced, firsts: Tensor) -> str:
    if math.isnan(value):
        return "undefined: the gradient is zero, and a step along it has no direction"
    unit = units_words(adaptive=options["adaptive"], eta=options["eta"])
    return (
        f"the loss rises by {value:.4g} after a step of length {options['rho']:g}{unit} along the "
        f"gradient{batches_words(room)}, by {float(firsts.mean()):.4g} to first order"
    )
