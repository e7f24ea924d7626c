"""The PAC-Bayes measures: how much noise the weights can take before accuracy falls.

After Jiang et al. (2020), who divide by N and take the root. Letters: w the solution, w_0 the start
of its training, N examples, n parameters; sigma the standard deviation of noise, or alpha the bound
of the worst perturbation, at which the accuracy has fallen by the ``deviation``; epsilon 1e-3.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from sharpness.errors import InputError
from sharpness.finite import require_finite
from sharpness.intervals import t_interval
from sharpness.logits import require_scores
from sharpness.norms import start_of
from sharpness.objective import Inputs, Objective, Point, Targets, Weighted, accuracy, fingerprint
from sharpness.options import is_whole, require_one_of
from sharpness.results import Measured, Run, Solution
from sharpness.specs import spec_of
from sharpness.vectors import stream

FORMS = ("flatness", "init", "origin")
EPSILON = 1e-3  # the noise that a weight of 0 gets where noise is relative, after Jiang et al.
STREAM = 19  # the key of the noise
RANGE = 30  # octaves to either side in which a size is looked for
BISECTIONS = 8  # of an octave: to 0.3 %
SLOPE = 0.25  # octaves to either side, over which the fall of the accuracy is differentiated
ASCENTS = 5  # steps of a sign iteration

LOG = logging.getLogger(__name__)

Progress = Callable[[int, int | None, str], None]


def pac_bayes(
    objective: Objective,
    point: Point | None = None,
    *,
    run: Run | None = None,
    form: Literal["flatness", "init", "origin"] = "flatness",
    magnitude_aware: bool = False,
    deviation: float = 0.1,
    worst: bool = False,
    draws: int = 10,
    seed: int = 0,
    progress: Progress | None = None,
) -> Measured:
    """Return sqrt(m / N) with m = 1 / sigma^2, sigma the noise that costs a tenth of accuracy.

    That is the ``flatness`` form; ``init`` and ``origin`` have m = |w - w_0|^2 / (4 sigma^2) +
    log(N / sigma) + 10, or |w|^2 there (see docs/theory). Sigma is a standard deviation, found by
    bisection under the same noise for all sizes; the scatter of the accuracy over the draws of
    noise is that of the value, by the slope of the accuracy in the size.

    Invariant to permutation of neurons, orthogonal maps of attention heads and logit shift, but
    for the chance of its draws.

    Cost: about 14 ``draws`` forward passes, some more where sigma is far from a tenth of the root
    mean square of the weights; with ``worst`` up to 6 gradients for each in place of one.

    Args:
        run: With its start, for the init form; for the origin form too where magnitude-aware.
        form: What is added to the flatness.
        magnitude_aware: Whether noise has the variance sigma^2 w_i^2 + epsilon^2 in place of
            sigma^2, or the bound alpha |w_i| + epsilon in place of alpha.
        deviation: The fall of the accuracy that is allowed.
        worst: Whether the perturbation is the worst that is found within |u_i| <= alpha, by sign
            ascents from the gradient and from random vertices, in place of noise. The value is a
            lower bound then: there may be a worse one.
        draws: Of noise, two at least for an error; or starts of the search.
        seed: Of noise and starts.
        progress: Called after each size.

    Raises:
        InputError: If there is no such form, the run has no start that is needed, outputs are no
            classes with labels, or a number is not in its range.
        ComputationError: If the loss is not finite at the solution.

    >>> model = torch.nn.Linear(50, 2, bias=False).double()
    >>> x, y = torch.eye(50).double(), torch.ones(50).long()
    >>> f = Objective(model, [(x, y)], torch.nn.functional.cross_entropy)
    >>> w = torch.cat([torch.zeros(50), torch.ones(50)]).double()  # each margin is 1
    >>> found = pac_bayes(f, w, draws=100)  # a tenth falls at 1 / sigma = 1.2816 sqrt(2)
    >>> abs(found.value * 50**0.5 / (1.2816 * 2**0.5) - 1) < 0.05
    True
    """
    _require(form, magnitude_aware, deviation, worst, draws)
    default = run.end if run else objective.theta
    here = objective.settled(objective.at(default if point is None else point))
    needs_start = form == "init" or (form == "origin" and magnitude_aware)
    start = objective.at(start_of(run, f"pac_bayes of the form {form}")) if needs_start else None
    loss, accuracy = _loss_and_accuracy(objective, here)
    LOG.info("pac_bayes: %s from an accuracy of %.3f", form, accuracy)
    sizes = _Sizes(objective, here, magnitude_aware, worst, draws, seed, accuracy, progress)
    low = sizes.largest(deviation)
    of = _Form(form, here, start, magnitude_aware, worst, _examples(objective))
    value, samples, words = _value(sizes, of, low, deviation)
    options = {
        "form": form,
        "magnitude_aware": magnitude_aware,
        "deviation": deviation,
        "worst": worst,
        "draws": draws,
    }
    number = partial(torch.tensor, dtype=torch.float64)
    none = number(2 * [math.nan])
    _, *bounds = t_interval(samples) if len(samples) else (math.nan, math.nan, math.nan)
    interval = number(bounds)
    if worst and not math.isnan(value):
        interval = number([value, math.inf])
    stderr = float(samples.std()) / math.sqrt(draws) if len(samples) > 1 else math.nan
    sample = objective.is_sample
    return Measured(
        measure="pac-bayes",
        value=value,
        stderr=math.nan if sample or worst else stderr,
        interval=none if sample else interval,
        threshold=math.nan,
        loss=loss,
        converged=not math.isnan(value),
        words=words,
        samples={"value": samples},
        details={
            "size": number(sizes.size(low) if low is not None else math.nan),
            "accuracy": number(accuracy),
            "tried_sizes": number([sizes.size(x) for x in sizes.tried]),
            "falls": torch.stack(list(sizes.tried.values())),
        },
        gradients=float(sizes.gradients),
        products=0.0,
        forwards=1.0 + sizes.forwards,
        spec=spec_of("pac-bayes", options, seed, fingerprint(here), objective, run),
    )


def _require(form: str, aware: bool, deviation: float, worst: bool, draws: int) -> None:
    require_one_of(FORMS, form=form)
    if not 0 < deviation < 1:
        raise InputError(
            f"pac_bayes needs a deviation between 0 and 1, got {deviation}: give a share of the "
            "examples"
        )
    if not is_whole(draws, 1):
        raise InputError(f"pac_bayes needs at least 1 draw, got {draws}: take 10")
    if aware and worst and form != "flatness":
        raise InputError(
            "pac_bayes that is magnitude-aware and of the worst perturbation has the form flatness "
            f"alone, got {form}: leave one of the three out"
        )


def _right(z: Any, targets: Targets) -> Tensor:
    """Return the share of the examples of a batch that are classified right, ()."""
    if isinstance(targets, Weighted):
        raise InputError(
            "pac_bayes needs examples that weigh the same, got weights: leave them out"
        )
    require_scores("pac_bayes", z, targets)
    return accuracy(z, targets)


def _loss_and_accuracy(objective: Objective, here: Solution) -> tuple[float, float]:
    def both(i: int, inputs: Inputs, targets: Targets) -> Tensor:
        z = objective.outputs(here, inputs)
        return torch.stack([_right(z, targets), objective.loss_of_outputs(z, targets).double()])

    with torch.no_grad():
        accuracy, loss = objective.mean(both)
    require_finite(objective, "pac_bayes", here, loss)
    return float(loss), float(accuracy)


def _examples(objective: Objective) -> float:
    """Return the number of examples that the solution was made for, of which some may be here."""
    return float(objective.spec.get("of", objective.weight()))


class _Sizes:
    """How far the accuracy falls by perturbations of 2^e times a usual size, by the number e.

    Attributes:
        tried: The falls by each draw, (s,), of each e.
    """

    def __init__(
        self,
        objective: Objective,
        here: Solution,
        aware: bool,
        worst: bool,
        draws: int,
        seed: int,
        accuracy: float,
        progress: Progress | None,
    ) -> None:
        self.here, self.aware, self.worst, self.accuracy = here, aware, worst, accuracy
        self.draws, self.seed, self.progress = draws, seed, progress
        theta = here.theta.detach()
        norm = float(torch.linalg.vector_norm(theta, dtype=torch.float64))
        self.usual = 1.0 if aware else norm / math.sqrt(len(theta)) or 1.0
        self.there = theta.clone()
        self.objective = objective.placed(Solution(self.there, here.buffers))
        self.tried: dict[float, Tensor] = {}
        self.gradients = self.forwards = 0

    def size(self, e: float) -> float:
        """Return sigma, or alpha."""
        return self.usual * 2.0**e

    def fall(self, e: float) -> float:
        """Return the mean fall of the accuracy, or the largest of the worst perturbation."""
        if e not in self.tried:
            noises = [self._noise(i) for i in range(self.draws)]
            falls = [(self._climbed if self.worst else self._noisy)(e, i, x) for i, x in noises]
            self.tried[e] = torch.tensor(falls, dtype=torch.float64)
            if self.progress:
                size = self.size(e)
                self.progress(len(self.tried), None, f"size {size:.3g}: {max(falls):.3g} at most")
        found = self.tried[e]
        return float(found.max() if self.worst else found.mean())

    def _noise(self, i: int) -> tuple[int, Tensor]:
        numbers = stream(self.seed, i, STREAM).standard_normal(len(self.there))
        return i, torch.from_numpy(numbers).to(self.there)

    def _scales(self, e: float) -> Tensor:
        """Return the standard deviations of noise, or the bounds, (n,)."""
        size, theta = self.size(e), self.here.theta.detach()
        if not self.aware:
            return torch.full_like(theta, size)
        if self.worst:
            return size * theta.abs() + EPSILON
        return (size**2 * theta.square() + EPSILON**2).sqrt()

    def _noisy(self, e: float, i: int, noise: Tensor) -> float:
        """Return the fall by one draw of noise."""
        torch.add(self.here.theta.detach(), self._scales(e) * noise, out=self.there)
        self.forwards += 1
        there = self._settled()

        def right(i: int, inputs: Inputs, targets: Targets) -> Tensor:
            return _right(self.objective.outputs(there, inputs), targets)

        with torch.no_grad():
            return self.accuracy - float(self.objective.mean(right))

    def _settled(self) -> Solution:
        """Return the perturbed point, with statistics re-estimated there, where they are."""
        return self.objective.settled(Solution(self.there, self.here.buffers))

    def _climbed(self, e: float, i: int, noise: Tensor) -> float:
        """Return the largest fall on a sign ascent of the loss, from the center or a vertex."""
        bound, highest = self._scales(e), 0.0
        u = bound * noise.sign() if i else torch.zeros_like(bound)
        for _ in range(ASCENTS + 1):
            torch.add(self.here.theta.detach(), u, out=self.there)
            fall, slope = self._fall_and_slope()
            highest = max(highest, fall)
            following = bound * slope.sign()
            if torch.equal(following, u):
                break
            u = following
        return highest

    def _fall_and_slope(self) -> tuple[float, Tensor]:
        self.gradients += 1
        f, there = self.objective, self._settled()

        def both(i: int, inputs: Inputs, targets: Targets) -> Tensor:
            leaf = there.theta.detach().clone().requires_grad_()
            z = f.outputs(replace(there, theta=leaf), inputs)
            (slope,) = torch.autograd.grad(
                f.loss_of_outputs(z, targets), leaf, materialize_grads=True
            )
            return torch.cat([_right(z, targets).to(slope)[None], slope])

        with torch.enable_grad(), f.with_native_rnn():
            mean = f.mean(both)
        return self.accuracy - float(mean[0]), mean[1:]

    def largest(self, deviation: float) -> float | None:
        """Return the largest e below the first size by which the accuracy falls further, or None.

        Sizes are doubled or halved until the fall is on the other side, and then bisected.
        """
        e = -3.0
        step = 1.0 if self.fall(e) <= deviation else -1.0
        while abs(e) < RANGE and (self.fall(e + step) <= deviation) == (step > 0):
            e += step
        if abs(e) >= RANGE:
            return None
        low, high = sorted((e, e + step))
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if self.fall(middle) <= deviation else (low, middle)
        return low

    def slope(self, e: float) -> float:
        """Return by how much the fall grows with e."""
        return (self.fall(e + SLOPE) - self.fall(e - SLOPE)) / (2 * SLOPE)


@dataclass(frozen=True)
class _Form:
    """The measure as a function of the size."""

    form: str
    here: Solution
    start: Solution | None
    aware: bool
    worst: bool
    N: float

    def at(self, size: float) -> float:
        """Return sqrt(m / N), 0 where m is negative."""
        return math.sqrt(max(self._measure(size), 0.0) / self.N)

    def _measure(self, size: float) -> float:
        if self.form == "flatness":
            return 1 / size**2
        w = self.here.theta.detach().double()
        n, moved = len(w), w if self.start is None else w - self.start.theta.double()
        square = float((moved if self.form == "init" else w).square().sum())
        rest = math.log(self.N / size) + 10
        if not self.aware:
            more = math.log(2 * n) if self.worst else 1.0
            return square * more / (4 * size**2) + rest
        above = EPSILON**2 + (size**2 + 1) * square / n
        return float((above / (EPSILON**2 + size**2 * moved.square())).log().sum()) / 4 + rest


def _value(
    sizes: _Sizes, form: _Form, low: float | None, deviation: float
) -> tuple[float, Tensor, str]:
    """Return the value, samples of which it is the mean, and words."""
    none = torch.full((0,), math.nan, dtype=torch.float64)
    if low is None:
        ends = [sizes.size(x) for x in (min(sizes.tried), max(sizes.tried))]
        return (
            math.nan,
            none,
            f"no size from {ends[0]:.3g} to {ends[1]:.3g} is the largest by which the accuracy, "
            f"{sizes.accuracy:.3f}, falls by at most {deviation:g}",
        )
    if sizes.worst:
        high = sizes.size(low + 2.0**-BISECTIONS)
        value = form.at(high)
        return (
            value,
            torch.tensor([value], dtype=torch.float64),
            f"at least this: a perturbation of {high:.4g} was found that lowers the accuracy, "
            f"{sizes.accuracy:.3f}, by more than {deviation:g}, and none of {sizes.size(low):.4g}",
        )
    value, slope, falls = form.at(sizes.size(low)), sizes.slope(low), sizes.tried[low]
    around = [form.at(sizes.size(low + x)) for x in (-SLOPE, SLOPE)]
    rate = (around[1] - around[0]) / (2 * SLOPE)
    # A draw by which the accuracy falls further would have a smaller size.
    moves = -(falls - falls.mean()) / slope if slope > 0 else falls * math.nan
    words = (
        f"noise of {sizes.size(low):.4g} lowers the accuracy, {sizes.accuracy:.3f}, by "
        f"{float(falls.mean()):.3f} on average of {sizes.draws} draws, and {deviation:g} is allowed"
    )
    return value, value + rate * moves, words
