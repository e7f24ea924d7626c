"""The local learning coefficient, by Langevin dynamics around a solution.

    lambda = n beta (E L(w) - L(w*)),  w ~ exp(-n beta L(w) - gamma / 2 |w - w*|^2)

after Lau et al. (2023), by chains of
w <- w - eps / 2 (n beta grad L(w) + gamma (w - w*)) + N(0, eps).

Letters: w* the solution, C chains of d draws, n parameters; a = n beta h + gamma the curvatures of
what is sampled, h those of the loss.
"""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from sharpness.by_batch import gathered, starts_of, taken
from sharpness.curvature import Hessian
from sharpness.errors import ComputationError, InputError
from sharpness.finite import require_finite
from sharpness.intervals import t_interval
from sharpness.lanczos import eigsh
from sharpness.objective import Inputs, Objective, Point, Targets, Weighted, fingerprint
from sharpness.options import is_whole, require_whole
from sharpness.results import Measured, Solution
from sharpness.specs import spec_of
from sharpness.vectors import stream

STREAM = 17  # the key of the noise and of the mini-batches
TOP = 0.2  # the step times the largest a, which makes its mode 5 % too large
TOLERANCE = 1e-2  # of that curvature, for a step
MIXED = 1.05  # R-hat up to which chains agree
SURE = 0.99  # the level at which two estimates differ
EVERY = 50  # steps between looks at the chains

LOG = logging.getLogger(__name__)

Progress = Callable[[int, int | None, str], None]


def learning_coefficient(
    objective: Objective,
    point: Point | None = None,
    *,
    n_beta: float | None = None,
    gamma: float = 100.0,
    step: float | None = None,
    chains: int = 4,
    burn_in: int = 500,
    draws: int = 1000,
    batch_size: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Measured:
    """Return the local learning coefficient, n beta (E L - L(w*)) over draws around the solution.

    Half an effective dimension: of a quadratic sum_i n beta h_i / (2 a_i (1 - eps a_i / 4)), which
    is half the rank for small gamma and steps. A large gamma makes it n beta tr H / (2 gamma), the
    trace. So it is computed three times: with half the step and with a tenth of gamma too. It
    counts as converged where these agree, where the chains agree, and where it is not negative,
    which tells that the solution is no minimum.

    Invariant to permutation of neurons, orthogonal maps of attention heads and logit shift, but
    for the chance of its draws. Re-estimated statistics of BatchNorm are those of the solution.

    Cost: 3 ``chains`` (``burn_in`` + ``draws``) gradients of all or of ``batch_size`` examples, and
    without a step a search for one eigenvalue.

    Args:
        n_beta: The number of examples times the inverse temperature. Default: N / log N of all the
            examples, whatever the mini-batch.
        gamma: How strongly draws are held at the solution, as a curvature.
        step: eps, of the dynamics, unstable from 4 / max a on. Default: 0.2 / max a.
        chains: From the solution; two at least give an error.
        burn_in: Steps before the first draw.
        draws: Of each chain.
        batch_size: Of mini-batches, drawn anew in each step and chain. Default: all examples.
        seed: Of noise and mini-batches.
        progress: Called every 50 steps.

    Raises:
        InputError: If a number is not in its range, or n_beta or step has no default here.
        ComputationError: If losses are not finite, at the solution or along the chains.

    >>> class Quadratic(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.w = torch.nn.Parameter(torch.zeros(2).double())
    ...
    ...     def forward(self, x):
    ...         return self.w.square().sum() / 2 + 0 * x
    >>> f = Objective(Quadratic(), [(torch.zeros(2).double(),) * 2], lambda z, y: z.mean())
    >>> found = learning_coefficient(f, n_beta=100.0, gamma=1.0, chains=200, burn_in=50, draws=20)
    >>> abs(found.value - 100 / 101 / 0.95) < 4 * found.stderr  # two of half a dimension
    True
    """
    who = "learning_coefficient"
    _require_numbers(gamma=gamma, n_beta=n_beta, step=step)
    require_whole(who, 1, chains=chains, draws=draws)
    require_whole(who, 0, burn_in=burn_in)
    options = {
        "n_beta": n_beta,
        "gamma": gamma,
        "step": step,
        "chains": chains,
        "burn_in": burn_in,
        "draws": draws,
        "batch_size": batch_size,
    }
    here = objective.at(objective.theta if point is None else point)
    settled = objective.settled(here)
    loss = objective.value(settled)
    require_finite(objective, who, settled, loss)
    N = objective.weight()
    n_beta = _n_beta(N) if n_beta is None else float(n_beta)
    chosen, top, products = step, math.nan, 0
    if chosen is None:
        chosen, top, products = _step(objective, settled, n_beta, gamma, seed)
    LOG.info("learning_coefficient: %d chains, step %g, gamma %g", chains, chosen, gamma)
    slopes = _Slopes(objective, settled, batch_size, chains, seed)
    told = _Told(progress, (3 if gamma else 2) * (burn_in + draws))
    steps = (burn_in, draws)
    variants = [(chosen, gamma), (chosen / 2, gamma), (chosen, gamma / 10)]
    found = [
        _estimate(_sampled(slopes, _Kernel(n_beta, g, eps), steps, key, told), loss, n_beta)
        for key, (eps, g) in enumerate(variants[: 3 if gamma else 2])
    ]
    verdict, words = _verdict(found, chains, draws)
    chain = found[0]
    unknown = math.nan if objective.is_sample else 0.0
    value, low, high = t_interval(chain.coefficients)
    number = partial(torch.tensor, dtype=torch.float64)
    return Measured(
        measure="learning-coefficient",
        value=value,
        stderr=chain.stderr + unknown,
        interval=number([low, high]) + unknown,
        threshold=math.nan,
        loss=float(loss),
        converged=verdict,
        words=words,
        samples={
            "coefficient": chain.coefficients,
            "half_trace_drift": chain.drift,
            "share_below": chain.below,
            "distance": chain.distances.mean(dim=1),
            "acceptance": chain.acceptance,
        },
        details={
            "losses": chain.losses,
            "distances": chain.distances,
            "r_hat": number(chain.r_hat),
            "effective_draws": number(chain.effective),
            "half_step": number([found[1].value, found[1].stderr]),
            "tenth_gamma": number([found[2].value, found[2].stderr] if gamma else 2 * [math.nan]),
            "chain_stderr": number(chain.stderr),
            "n_beta": number(n_beta),
            "step": number(chosen),
            "step_curvature": number(chosen * top),
        },
        gradients=len(found) * chains * sum(steps) * (batch_size or N) / N,
        products=float(products),
        forwards=1.0,
        spec=spec_of(
            "learning-coefficient",
            options,
            seed,
            fingerprint(here),
            objective,
            chains_at_once=slopes.at_once,
        ),
    )


def _require_numbers(**numbers: float | None) -> None:
    for name, x in numbers.items():
        least = "at least 0" if name == "gamma" else "positive"
        if x is not None and not (math.isfinite(x) and (x > 0 or (name == "gamma" and x == 0))):
            raise InputError(
                f"learning_coefficient needs {name} to be {least} and finite, got {x}: change it"
            )


def _n_beta(N: float) -> float:
    if N < 2:
        raise InputError(
            f"learning_coefficient needs n_beta where N / log N is none, got {N:g} examples: give "
            "it"
        )
    return N / math.log(N)


def _step(
    objective: Objective, here: Solution, n_beta: float, gamma: float, seed: int
) -> tuple[float, float, int]:
    """Return a step for the largest curvature of what is sampled, that, and the products spent."""
    pair = eigsh(Hessian(objective, here), 1, tol=TOLERANCE, seed=seed)
    top = n_beta * max(float(pair.values[0]), 0.0) + gamma
    if not top > 0:
        raise InputError(
            "learning_coefficient needs a step where no curvature tells one, got none above 0 and "
            "a gamma of 0: give a step, or a gamma"
        )
    return TOP / top, top, pair.products + pair.check_products


class _Told:
    """The steps of all chains so far, and who is told of them."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def step(self, loss: Tensor) -> None:
        """Count a step, and tell of some."""
        self.done += 1
        if self.progress and (self.done % EVERY == 0 or self.done == self.total):
            self.progress(self.done, self.total, f"loss {float(loss.mean()):.4g}")


class _Slopes:
    """Loss and gradient of all chains, of all the examples or of mini-batches of their own."""

    def __init__(
        self,
        objective: Objective,
        here: Solution,
        batch_size: int | None,
        chains: int,
        seed: int,
    ) -> None:
        self.here, self.chains, self.seed, self.batch_size = here, chains, seed, batch_size
        self.objective = objective.kept()
        self.at_once = True
        if batch_size is None:
            return
        starts = starts_of(self.objective)
        self.N = starts[-1]
        if not is_whole(batch_size, 1, self.N):
            raise InputError(
                f"mini-batches need a batch_size of 1 to {self.N}, all the examples, got "
                f"{batch_size}: change it"
            )
        self.inputs, self.targets, *weights = gathered(self.objective, torch.arange(self.N), starts)
        if weights:
            raise InputError(
                "mini-batches of a chain need examples that weigh the same, got weights: leave "
                "batch_size out"
            )

    def rows(self, key: int) -> Iterator[Tensor | None]:
        """Yield the examples of each chain in each step, (C, m), None for all."""
        if self.batch_size is None:
            while True:
                yield None
        streams = [stream(self.seed, key, STREAM, c) for c in range(self.chains)]
        while True:
            drawn = [s.choice(self.N, self.batch_size, replace=False) for s in streams]
            yield torch.from_numpy(np.stack(drawn)).to(self.here.theta.device)

    def at(self, w: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return losses, (C,), and gradients, (C, n), in float64."""
        with torch.enable_grad(), self.objective.with_native_rnn():
            if self.at_once:
                try:
                    return self._at(w, rows, self._together)
                except (ComputationError, RuntimeError, ValueError):
                    # What torch cannot do for several points at once it does one by one; what the
                    # model itself cannot do fails there again.
                    self.at_once = False
            return self._at(w, rows, self._one_by_one)

    def _at(
        self, w: Tensor, rows: Tensor | None, many: Callable[..., Tensor]
    ) -> tuple[Tensor, Tensor]:
        if rows is None:
            both = self.objective.mean(lambda i, x, y: many(w, x, y, None))
        else:
            both = many(w, self.inputs, self.targets, rows)
        return both[:, 0], both[:, 1:]

    def _loss(self, theta: Tensor, inputs: Inputs, targets: Targets) -> Tensor:
        return self.objective.batch_loss(replace(self.here, theta=theta), inputs, targets)

    def _together(self, w: Tensor, inputs: Inputs, targets: Targets, rows: Tensor | None) -> Tensor:
        # Chains share nothing, so that the slope of the sum is that of each.
        points = w.detach().requires_grad_()
        if rows is None:
            losses = torch.func.vmap(lambda theta: self._loss(theta, inputs, targets))(points)
        else:
            losses = torch.func.vmap(
                lambda theta, at: self._loss(theta, taken(inputs, at), taken(targets, at))
            )(points, rows)
        (slopes,) = torch.autograd.grad(losses.sum(), points, materialize_grads=True)
        return torch.cat([losses[:, None].double(), slopes.double()], dim=1).detach()

    def _one_by_one(
        self, w: Tensor, inputs: Inputs, targets: Targets, rows: Tensor | None
    ) -> Tensor:
        found = []
        for c, theta in enumerate(w):
            x, y = inputs, targets
            if rows is not None and not isinstance(targets, Weighted):
                x, y = taken(inputs, rows[c]), taken(targets, rows[c])
            there = replace(self.here, theta=theta)
            loss, slope = self.objective.batch_gradient(there, x, y)
            found.append(torch.cat([loss[None].double(), slope.double()]))
        return torch.stack(found)


@dataclass(frozen=True)
class _Kernel:
    n_beta: float
    gamma: float
    step: float


@dataclass(frozen=True)
class _Draws:
    losses: Tensor  # (C, d)
    distances: Tensor  # (C, d)
    acceptance: Tensor  # (C,)  of the steps as proposals of MALA; NaN with mini-batches


def _sampled(
    slopes: _Slopes, kernel: _Kernel, steps: tuple[int, int], key: int, told: _Told
) -> _Draws:
    """Return the draws of all chains, every one from the solution on."""
    burn_in, draws = steps
    center = slopes.here.theta.detach()
    w = center.repeat(slopes.chains, 1)
    noise, batches = stream(slopes.seed, key, STREAM), slopes.rows(key)
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    before: tuple[Tensor, Tensor, Tensor] | None = None  # energy, position and drift
    for i in range(burn_in + draws):
        losses, gradients = slopes.at(w, next(batches))
        away = (w - center).double()
        drift = -kernel.n_beta * gradients - kernel.gamma * away
        square = away.square().sum(dim=1)
        energy = kernel.n_beta * losses + kernel.gamma / 2 * square
        now = (energy, away, drift)
        if i >= burn_in:
            accepted = _acceptance(before, now, kernel.step)
            rows.append((losses, square.sqrt(), accepted))
        before = now
        xi = torch.from_numpy(noise.standard_normal(w.shape)).to(drift)
        w = (center + away + kernel.step / 2 * drift + math.sqrt(kernel.step) * xi).to(center)
        told.step(losses)
    trace, distances, accepted = (torch.stack(x, dim=1).cpu() for x in zip(*rows, strict=True))
    if not torch.isfinite(trace).all():
        at = int((~torch.isfinite(trace)).any(dim=0).long().argmax())
        raise ComputationError(
            "learning_coefficient needs finite losses along its chains, got "
            f"{float(trace[:, at].sum())} after {burn_in + at} steps: take a step below "
            f"{kernel.step:.3g}, or a larger gamma"
        )
    full = slopes.batch_size is None
    return _Draws(trace, distances, accepted.nanmean(dim=1) if full else accepted[:, 0] * math.nan)


def _acceptance(
    before: tuple[Tensor, Tensor, Tensor] | None, now: tuple[Tensor, Tensor, Tensor], step: float
) -> Tensor:
    """Return with which probability a Metropolis-adjusted step would have been taken, (C,)."""
    (there, to, drift) = now
    if before is None:
        return torch.full_like(there, math.nan)
    energy, origin, along = before
    forth = (to - origin - step / 2 * along).square().sum(dim=1)
    back = (origin - to - step / 2 * drift).square().sum(dim=1)
    return (energy - there + (forth - back) / (2 * step)).clamp(max=0).exp()


@dataclass(frozen=True)
class _Estimate:
    value: float
    stderr: float
    coefficients: Tensor  # (C,)
    drift: Tensor  # (C,)  of the second half of the draws against the first
    below: Tensor  # (C,)  share of draws whose loss is below that of the solution
    acceptance: Tensor
    losses: Tensor
    distances: Tensor
    r_hat: float
    effective: float


def _estimate(draws: _Draws, loss: Tensor, n_beta: float) -> _Estimate:
    rises = n_beta * (draws.losses - float(loss))
    each = rises.mean(dim=1)
    half = max(rises.shape[1] // 2, 1)
    C = len(each)
    return _Estimate(
        value=float(each.mean()),
        stderr=float(each.std()) / math.sqrt(C) if C > 1 else math.nan,
        coefficients=each,
        drift=rises[:, -half:].mean(dim=1) - rises[:, :half].mean(dim=1),
        below=(rises < 0).double().mean(dim=1),
        acceptance=draws.acceptance,
        losses=draws.losses,
        distances=draws.distances,
        r_hat=split_r_hat(rises),
        effective=effective_draws(rises),
    )


def _verdict(found: list[_Estimate], chains: int, draws: int) -> tuple[bool, str]:
    """Return whether a coefficient was found, and in words how far it can be trusted."""
    chain, faults = found[0], []
    _, _, high = t_interval(chain.coefficients)
    if high < 0 or (chains == 1 and chain.value < 0):
        faults.append("it is negative: the solution is not a minimum")
    if chains == 1:
        faults.append("one chain tells no error")
    if not chain.r_hat <= MIXED:
        faults.append(f"the chains disagree, R-hat {chain.r_hat:.3g} above {MIXED}")
    told = []
    names = ("half the step", "a tenth of gamma")
    for name, other in zip(names[: len(found) - 1], found[1:], strict=True):
        said = f"{other.value:.4g} +- {other.stderr:.2g} with {name}"
        if chains > 1 and abs(other.value - chain.value) > _slack(chain, other, chains):
            faults.append(f"it depends on {name.split()[-1]}: {said}")
        else:
            told.append(said)
    facts = [f"{chains} chains of {draws} draws, {chain.effective:.0f} effective", *told]
    if not faults:
        facts.insert(1, f"R-hat {chain.r_hat:.3f}")
    return not faults, "; ".join(["no verdict, " + ", ".join(faults)] * bool(faults) + facts)


def _slack(one: _Estimate, other: _Estimate, chains: int) -> float:
    """Return by how much two estimates may differ by chance."""
    t = float(stdtrit(2 * (chains - 1), (1 + SURE) / 2))
    return t * math.hypot(one.stderr, other.stderr)


def split_r_hat(x: Tensor) -> float:
    """Return how much wider all chains are together than each half of one is, 1 if not at all.

    After Gelman et al. (2013), for draws of shape (C, d); NaN for fewer than four of each.

    >>> split_r_hat(torch.tensor([[0.0, 1.0, 0.0, 1.0]]))  # the halves agree
    0.7071067811865476
    """
    half = x.shape[1] // 2
    if half < 2:
        return math.nan
    halves = torch.cat([x[:, :half], x[:, -half:]]).double()
    within, between = float(halves.var(dim=1).mean()), float(halves.mean(dim=1).var())
    if not within:
        return 1.0 if not between else math.inf
    return math.sqrt((half - 1) / half + between / within)


def effective_draws(x: Tensor) -> float:
    """Return how many independent draws tell as much of the mean as these, (C, d).

    By autocorrelations within and between chains, summed as far as pairs of them are positive
    (Geyer 1992; Gelman et al. 2013); at most C d.

    >>> effective_draws(torch.tensor([[0.0, 1.0, 0.0, 1.0]]))
    4.0
    """
    C, d = x.shape
    if d < 4:
        return math.nan
    centered = (x - x.mean(dim=1, keepdim=True)).double()
    spectrum = torch.fft.rfft(centered, n=2 * d)
    covariance = torch.fft.irfft(spectrum.abs().square(), n=2 * d)[:, :d].mean(dim=0) / d
    within = float(covariance[0]) * d / (d - 1)
    total = within * (d - 1) / d + (float(x.double().mean(dim=1).var()) if C > 1 else 0.0)
    if not total:
        return float(C * d)
    rho = 1 - (within - covariance * d / (d - 1)) / total
    pairs = rho[: 2 * (d // 2)].view(-1, 2).sum(dim=1)
    ends = (pairs <= 0).nonzero()
    kept = pairs[: int(ends[0]) if len(ends) else len(pairs)].cummin(dim=0).values
    return C * d / max(2 * float(kept.sum()) - 1, 1.0)
