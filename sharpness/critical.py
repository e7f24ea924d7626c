"""Critical sharpness: how long a step may be before the loss is above where it began.

After Kalra et al. (2026); see "Where an optimizer becomes unstable" in ``docs/theory.md``.

Letters: L the loss, g its gradient, Delta the direction of the step theta - eta Delta, eta_c the
first eta at which the loss is above L0, that at theta.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from sharpness.errors import InputError
from sharpness.finite import require_finite
from sharpness.objective import Objective, Point, fingerprint
from sharpness.optimizers import OPTIMIZERS, set_state
from sharpness.options import is_whole
from sharpness.results import Measured, Run, Solution
from sharpness.specs import spec_of
from sharpness.thresholds import at_end, is_plain, own_state, settings
from sharpness.vectors import flatten, unflatten

MOST = 64  # times that a step is halved or doubled
MOST_BISECTIONS = 52  # one for each binary digit
Direction = Literal["gradient", "update"]


def critical_sharpness(
    objective: Objective,
    point: Point | None = None,
    *,
    run: Run | None = None,
    direction: Direction = "gradient",
    bisections: int = 6,
    seed: int = 0,
    progress: Callable[[int, int | None, str], None] | None = None,
) -> Measured:
    """Return 2 / eta_c, eta_c the shortest step along Delta after which the loss has risen.

    A step is doubled until the loss at theta - eta Delta is above L0, or halved until it is not,
    and the last doubling bisected. On a quadratic this is Delta' H Delta / g' Delta, along the
    gradient g' H g / g' g, at most lambda_1; elsewhere it is no curvature. It is 0 where the loss
    never rises, and undefined where it does not fall at first, g' Delta <= 0.

    Not invariant to layer-wise scaling, neuron-wise scaling, filter scaling before BatchNorm and
    GL(d_head) of attention. Invariant to permutation of neurons, orthogonal maps of attention
    heads and logit shift.

    Cost: a gradient and some five to fifteen forward passes.

    Args:
        point: Where, a Solution or theta. Default: the end of the run, or the model as it came.
        run: Whose learning rate is the first step, and whose optimizer makes the update.
        direction: Delta: the ``gradient`` of the objective, or the ``update`` that the optimizer
            makes of it next, from its state at the end of the run, per unit of its learning rate.
        bisections: k, 0 to 52, for a relative error of eta_c below 2^-(k+1).
        seed: Of nothing: there is no chance in it.
        progress: Called after each forward pass.

    Raises:
        InputError: If the direction is unknown or needs a run that is not given, or the point is
            not the run's end.
        ComputationError: If the loss or its gradient is not finite at the point.

    >>> model = torch.nn.Linear(2, 1, bias=False).double()
    >>> x = torch.tensor([[2.0, 0.0], [0.0, 1.0]]).double()
    >>> f = Objective(model, [(x, torch.zeros(2, 1).double())], lambda z, _: z.square().sum() / 2)
    >>> found = critical_sharpness(f, torch.tensor([1.0, 2.0]).double(), bisections=20)
    >>> round(found.value, 4)  # H = diag(4, 1), g = (4, 2): g' H g / g' g
    3.4
    """
    _require(direction, bisections)
    here = objective.at(point if point is not None else run.end if run else objective.theta)
    L0, (_, g) = objective.value(here), objective.value_and_gradient(here)
    require_finite(objective, "critical_sharpness", here, L0, g)
    delta = g.double() if direction == "gradient" else _update(objective, here, run, g)
    slope = float(g.double() @ delta)
    trials = _Trials(objective, here, delta, float(L0), progress)
    rate = at_end(run).get("learning_rate")
    low, high = (math.nan, math.nan)
    if slope > 0:
        low, high = trials.bracket(rate or _first(float(L0), slope, here.theta, delta))
        for _ in range(bisections if low > 0 and high < math.inf else 0):
            middle = (low + high) / 2
            low, high = (low, middle) if trials.rises(middle) else (middle, high)
    value, interval, converged, words = _judged(low, high, slope, trials)
    threshold, why = _threshold(run, direction)
    options = {"direction": direction, "bisections": bisections}
    return Measured(
        measure="critical-sharpness",
        value=value,
        stderr=math.nan if objective.is_sample else 0.0,
        interval=torch.tensor(interval, dtype=torch.float64),
        threshold=threshold,
        loss=float(L0),
        converged=converged,
        words=words + why + ("; of these examples alone" if objective.is_sample else ""),
        samples={},
        details={
            "eta": torch.tensor(2 / value if value else math.inf, dtype=torch.float64),
            "slope": torch.tensor(slope, dtype=torch.float64),
            "one_step": torch.tensor(trials.one_step(slope), dtype=torch.float64),
            "etas": torch.tensor(trials.etas, dtype=torch.float64),
            "losses": torch.tensor(trials.losses, dtype=torch.float64),
        },
        gradients=1.0,
        products=0.0,
        forwards=1.0 + len(trials.etas),
        spec=spec_of("critical-sharpness", options, seed, fingerprint(here), objective, run),
    )


@dataclass
class _Trials:
    """The steps that were tried, and the losses after them."""

    objective: Objective
    here: Solution
    delta: Tensor  # float64, (n,)
    L0: float
    progress: Callable[[int, int | None, str], None] | None
    etas: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def rises(self, eta: float) -> bool:
        """Say whether the loss is above L0 after this step; one that is not finite is."""
        theta = (self.here.theta.double() - eta * self.delta).to(self.here.theta)
        loss = float(self.objective.value(Solution(theta, self.here.buffers)))
        self.etas.append(eta)
        self.losses.append(loss)
        if self.progress:
            self.progress(len(self.etas), None, f"loss {loss:.4g} at eta {eta:.3g}")
        return not loss <= self.L0

    def bracket(self, eta: float) -> tuple[float, float]:
        """Return a step that does not raise the loss and twice it, which does.

        Or (0, eta) where none was found that does not, and (eta, inf) where none was that does.
        """
        up = self.rises(eta)
        for _ in range(MOST):
            following = eta / 2 if up else 2 * eta
            if self.rises(following) != up:
                return min(eta, following), max(eta, following)
            eta = following
        return (0.0, eta) if up else (eta, math.inf)

    def one_step(self, slope: float) -> float:
        """Return what the first trial alone tells, exact on a quadratic."""
        if not self.etas:
            return math.nan
        eta = self.etas[0]
        return 2 * (self.losses[0] - self.L0 + eta * slope) / (eta**2 * slope)


def _first(L0: float, slope: float, theta: Tensor, delta: Tensor) -> float:
    """Return the first step without a learning rate: by which the slope alone takes L0 to 0.

    It scales with the loss and with Delta as eta_c does.
    """
    length = float(theta.double().norm() / delta.norm())
    return abs(L0) / slope or length or 1 / float(delta.norm())


def _update(objective: Objective, here: Solution, run: Run | None, g: Tensor) -> Tensor:
    """Return the next update of a run's optimizer with this gradient, over its learning rate.

    By the optimizer itself, on a copy in float64: the change of a float32 weight is rounded.
    """
    who = "critical_sharpness along the update"
    if run is None:
        raise InputError(f"{who} needs a run with an optimizer, got none: give the run")
    config, _ = settings(run, who)
    if config.method != "plain" or config.optimizer == "lbfgs":
        raise InputError(
            f"{who} needs an optimizer whose update is one of the gradient, got {config.optimizer} "
            f'by the method {config.method}: take direction="gradient"'
        )
    if fingerprint(objective.at(run.end)) != fingerprint(here):
        raise InputError(
            f"{who} needs the point of the optimizer's state, the end of its run, got another: "
            'leave the point out, or take direction="gradient"'
        )
    if not config.learning_rate:
        raise InputError(
            f'{who} needs a rate above 0 at the end of the run, got 0: take direction="gradient"'
        )
    theta = here.theta.double().cpu()
    blocks = unflatten(theta, objective.shapes)
    slopes = unflatten(g.double().cpu(), objective.shapes)
    parameters = [nn.Parameter(block.clone()) for block in blocks.values()]
    optimizer = OPTIMIZERS[config.optimizer](parameters, config)
    set_state(optimizer, parameters, {name: _widened(x) for name, x in own_state(run).items()})
    for p, slope in zip(parameters, slopes.values(), strict=True):
        p.grad = slope.clone()
    optimizer.step()
    return ((theta - flatten(parameters)) / config.learning_rate).to(g.device)


def _widened(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def _judged(
    low: float, high: float, slope: float, trials: _Trials
) -> tuple[float, tuple[float, float], bool, str]:
    """Return value, its certain bounds, whether it is certain, and why, of a bracket of eta_c."""
    if not slope > 0:
        why = f"the loss does not fall at first, g' Delta = {slope:.2g}"
        return math.nan, (math.nan, math.nan), False, f"undefined: {why}"
    if not low:
        why = f"the loss rises by steps down to eta = {high:.2g}, below rounding"
        return math.nan, (math.nan, math.nan), False, f"undefined: {why}"
    if high == math.inf:
        return 0.0, (0.0, 2 / low), True, f"the loss does not rise up to eta = {low:.2g}"
    eta = (low + high) / 2
    words = f"eta_c = {eta:.5g} lies between {low:.5g} and {high:.5g}, if it rises once only"
    finest = torch.finfo(trials.here.theta.dtype).eps * abs(trials.L0)
    fall = eta * slope / 4  # how deep a parabola with this slope and this eta_c falls
    if fall > finest:
        return 2 / eta, (2 / high, 2 / low), True, words
    words += f"; the loss falls by {fall:.1e} between, which rounding of {finest:.1e} hides"
    return 2 / eta, (math.nan, math.nan), False, words


def _threshold(run: Run | None, direction: str) -> tuple[float, str]:
    """Return 2 / eta where Delta is the update, and what there is to say of it."""
    train = at_end(run)
    if "learning_rate" not in train:
        return math.nan, ""
    if direction == "gradient" and not is_plain(train):
        return math.nan, "; no threshold: the gradient is not the update of this optimizer"
    value = 2 / train["learning_rate"] if train["learning_rate"] else math.inf
    return value, f"; above 2 / eta = {value:.4g} the next full-batch update raises the loss"


def _require(direction: str, bisections: int) -> None:
    if direction not in get_args(Direction):
        raise InputError(
            f"critical_sharpness needs a direction of {', '.join(get_args(Direction))}, got "
            f"{direction!r}: choose one"
        )
    if not is_whole(bisections, 0, MOST_BISECTIONS):
        raise InputError(
            f"critical_sharpness needs 0 to {MOST_BISECTIONS} bisections, got {bisections}: "
            "change it"
        )
