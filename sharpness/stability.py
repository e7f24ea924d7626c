"""Sharpness as the optimizer meets it: on its own mini-batches and in its own metric.

See "Where an optimizer becomes unstable" in ``docs/theory.md``.

Letters: N examples, B of them in a mini-batch, g and H gradient and Hessian of one mini-batch, P
the preconditioner, eta the learning rate.
"""

import math
from collections.abc import Callable, MutableMapping
from typing import Literal, get_args

import torch
from torch import Tensor

from sharpness.by_batch import draw, mini_batch, starts_of
from sharpness.certificates import of_eigenvalue, spent
from sharpness.curvature import Hessian, Operator
from sharpness.errors import InputError
from sharpness.finite import require_finite
from sharpness.intervals import t_interval
from sharpness.lanczos import eigsh
from sharpness.objective import Objective, Point, fingerprint
from sharpness.operators import Scaled, WeightDecayed
from sharpness.options import is_whole
from sharpness.results import Measured, Run, Solution
from sharpness.specs import spec_of
from sharpness.thresholds import (
    FLOOR,
    at_end,
    decay,
    is_plain,
    preconditioner,
    settings,
    stability_threshold,
)

FEW = 200  # mini-batches below which the interval of a ratio covers too seldom
Form = Literal["mean", "ratio"]
Pieces = MutableMapping[str, Tensor]
Progress = Callable[[int, int | None, str], None]


def batch_sharpness(
    objective: Objective,
    point: Point | None = None,
    *,
    run: Run | None = None,
    batch_size: int | None = None,
    form: Form = "mean",
    batches: int = 200,
    seed: int = 0,
    pieces: Pieces | None = None,
    progress: Progress | None = None,
) -> Measured:
    """Return the curvature of mini-batches along their own gradients, E[g'Hg / |g|^2].

    Gradient g and Hessian H are of the same mini-batch, drawn without replacement, each
    independently of the others. Mini-batches without a gradient do not count, and their share is
    told. The form ``ratio`` is E[g'Hg] / E[|g|^2]: a step of plain SGD of rate eta raises the loss
    of its own mini-batch on average, exactly on a quadratic, where that is above 2 / eta
    (Andreyev and Beneventano 2024, whose released code returns the mean).

    Not invariant to layer-wise scaling, neuron-wise scaling, filter scaling before BatchNorm and
    GL(d_head) of attention. Invariant to permutation of neurons, orthogonal maps of attention
    heads and logit shift.

    Cost: B / N of a gradient and of a product for each mini-batch, a gradient more where it is
    larger than a micro-batch, and a forward pass. It is gathered as in ``batch_eigenvalues``.

    Args:
        point: Where, a Solution or theta. Default: the end of the run, or the model as it came.
        run: Whose batch size is the default, and whose learning rate makes the threshold.
        batch_size: B, from 1 to N. Default: that of the run. All N make one exact mini-batch.
        form: Of the average, ``mean`` or ``ratio``; the other one is in the details.
        batches: How many are drawn. Below 200 the interval of a ratio covers too seldom.
        seed: Of the draws.
        pieces: What each mini-batch gave; those here are not computed again.
        progress: Called after each mini-batch.

    Raises:
        InputError: If there is no batch size, a number is not in its range, or inputs have not the
            example as their first axis.
        ComputationError: If the loss of a mini-batch is not finite, or has no second derivative.

    >>> x = torch.tensor([[2.0, 0.0], [0.0, 2.0]]).double()  # rows of one norm, |x|^2 = 4
    >>> model = torch.nn.Linear(2, 1, bias=False).double()
    >>> f = Objective(model, [(x, x[:, :1])], lambda z, y: (z - y).square().mean() / 2)
    >>> found = batch_sharpness(f, batch_size=1, batches=3)
    >>> round(found.value, 9), round(found.stderr, 9)
    (4.0, 0.0)
    """
    _require_form(form, batches)
    B = _batch_size(run, batch_size)
    here = objective.at(point if point is not None else run.end if run else objective.theta)
    settled = objective.settled(here)
    # Statistics that are estimated anew are constants here: taken once, for all mini-batches.
    fixed = objective.under("frozen") if objective.batch_norm == "reestimate" else objective
    there, kept = Solution(settled.theta, settled.buffers), fixed.kept()
    starts = starts_of(kept)
    N = starts[-1]
    if not 1 <= B <= N:
        raise InputError(
            f"batch_sharpness needs a batch_size of 1 to {N}, all the examples, got {B}: change it"
        )
    loss = kept.value(there)
    require_finite(objective, "batch_sharpness", here, loss)
    count = 1 if B == N else batches
    pieces = {} if pieces is None else pieces
    for i in range(count):
        name = f"batch {i}"
        if name not in pieces:
            f = kept if B == N else mini_batch(kept, draw(N, B, seed, i), starts)
            pieces[name] = _along_gradient(f, there)
        if progress:
            progress(i + 1, count, f"|g|^2 {float(pieces[name][1]):.2g}")
    gHg, gg, graphs = torch.stack([pieces[f"batch {i}"] for i in range(count)]).T
    samples = _samples(gHg, gg)
    value, low, high = t_interval(samples[form])
    known = samples[form][~samples[form].isnan()]
    error = float(known.std() / len(known) ** 0.5) if len(known) > 1 else math.nan
    if B == N and len(known):
        low, high, error = value, value, 0.0
    threshold, why = _plain_threshold(run, B)
    words = _told(samples[form], form, B, N) + why
    if objective.is_sample:
        words += f"; of these examples alone, with a standard error of {error:.2g}"
    unknown = objective.is_sample
    options = {"batch_size": batch_size, "form": form, "batches": batches}
    return Measured(
        measure="batch-sharpness",
        value=value,
        stderr=math.nan if unknown else error,
        interval=torch.tensor([low, high], dtype=torch.float64) * (math.nan if unknown else 1),
        threshold=threshold,
        loss=float(loss),
        converged=not math.isnan(value),
        words=words,
        samples={form: samples[form], "gHg": gHg.contiguous(), "gg": gg.contiguous()},
        details={
            "mean": samples["mean"].nanmean(),
            "ratio": samples["ratio"].nanmean(),
            "stderr_of_batches": torch.tensor(error, dtype=torch.float64),
            "without_gradient": (gg == 0).double().mean(),
            "batch_size": torch.tensor(B),
        },
        gradients=float(graphs.sum()) * B / N,
        products=count * B / N,
        forwards=1.0,
        spec=spec_of("batch-sharpness", options, seed, fingerprint(here), objective, run),
    )


def preconditioned_sharpness(
    objective: Objective,
    run: Run,
    *,
    tol: float | None = None,
    seed: int = 0,
    pieces: Pieces | None = None,
    progress: Progress | None = None,
) -> Measured:
    """Return the largest eigenvalue of P^-1 H at the end of a run, P of the run's own optimizer.

    P is the diagonal by which the next update divides (Cohen et al. 2022): the identity for SGD,
    (1 - beta_1^t) (sqrt(v / (1 - beta_2^t)) + epsilon) for Adam and AdamW, sqrt(v) + epsilon for
    RMSprop and Adagrad. Where weight decay is added to the gradient, H is H + wd I. The threshold
    is that of ``stability_threshold``.

    Invariant to permutation of neurons and logit shift. Not invariant to layer-wise scaling,
    neuron-wise scaling, filter scaling before BatchNorm, GL(d_head) of attention and orthogonal
    maps of attention heads.

    Cost: the products of one eigenvalue, and a forward pass.

    Args:
        objective: Of the run's model, on its training part.
        run: Whose end, optimizer and state are taken.
        tol: Of the residual (see ``eigsh``).
        seed: Of the search.
        pieces: Products, by number; those here are not computed again.
        progress: Called after each product.

    Raises:
        InputError: If the run has no such optimizer, or not its state.
        ComputationError: If a product is not finite.

    >>> from sharpness.problem import objective_of
    >>> from sharpness.training import TrainConfig, train
    >>> how = {"model_options": {"widths": []}, "batch_size": 600, "updates": 1}
    >>> run = train(TrainConfig(optimizer="sgd", learning_rate=0.5, dtype="float64", **how))
    >>> found = preconditioned_sharpness(objective_of(run), run)  # P = 1: lambda_1 of H
    >>> pairs = eigsh(Hessian(objective_of(run), run.end), 1)
    >>> round(found.value / float(pairs.values[0]), 9), found.threshold  # 2 / eta
    (1.0, 4.0)
    """
    who = "preconditioned_sharpness"
    settings(run, who)
    here = objective.at(run.end)
    sizes = [shape.numel() for shape in objective.shapes.values()]
    P, at_floor = preconditioner(run, sizes, who)
    H, wd = Hessian(objective, here), decay(run.spec["train"])
    A: Operator = WeightDecayed(H, wd) if wd else H
    root = torch.where(P > 0, P.rsqrt(), 0.0)
    pairs = eigsh(Scaled(A, root), 1, tol=tol, seed=seed, pieces=pieces, progress=progress)
    loss = objective.value(here)
    found = of_eigenvalue(pairs)
    threshold, rule = stability_threshold(at_end(run))
    weight = float(pairs.vectors[0].double().cpu().square()[at_floor].sum())
    words = f"{found.words}; {rule}"
    if at_floor.any():
        words += f"; {weight:.0%} of its eigenvector".replace("%", " %")
        words += f" is where sqrt(v) is below {FLOOR} epsilon"
    gradients, products = spent(H, pairs)
    return Measured(
        measure="preconditioned-sharpness",
        value=found.value,
        stderr=found.stderr,
        interval=found.interval,
        threshold=threshold,
        loss=float(loss),
        converged=found.converged,
        words=words,
        samples={},
        details={
            "residual": pairs.residuals[0].double().cpu(),
            "weight_at_epsilon": torch.tensor(weight, dtype=torch.float64),
            "share_at_epsilon": at_floor.double().mean(),
            "weight_decay": torch.tensor(wd, dtype=torch.float64),
        },
        gradients=gradients,
        products=products,
        forwards=1.0,
        spec=spec_of(
            "preconditioned-sharpness", {"tol": tol}, seed, fingerprint(here), objective, run
        ),
    )


def _require_form(form: str, batches: int) -> None:
    if form not in get_args(Form):
        raise InputError(
            f"batch_sharpness needs a form of {', '.join(get_args(Form))}, got {form!r}: choose one"
        )
    if not is_whole(batches, 1):
        raise InputError(f"batch_sharpness needs a batch at least, got batches={batches}: raise it")


def _batch_size(run: Run | None, batch_size: int | None) -> int:
    given = batch_size
    if given is None and run is not None:
        given = at_end(run).get("batch_size")
    if given is None:
        raise InputError(
            "batch_sharpness needs a batch_size, got none, and no training that has one: give it"
        )
    if not is_whole(given):
        raise InputError(f"batch_sharpness needs a whole batch_size, got {given}: change it")
    return given


def _along_gradient(f: Objective, here: Solution) -> Tensor:
    """Return g'Hg and |g|^2 of a mini-batch, and how often its graph was built, float64, (3,)."""
    one = isinstance(f.batches, list) and len(f.batches) == 1
    # The graph of the gradient serves the product, where it is that of one micro-batch alone.
    H = Hessian(f, here, engine="cached" if one else "fresh")
    g = H.gradient() if one else f.gradient(here)
    slope, product = g.double(), (H @ g).double()
    return torch.stack([slope @ product, slope @ slope, slope.new_tensor(1 if one else 2)]).cpu()


def _samples(gHg: Tensor, gg: Tensor) -> dict[str, Tensor]:
    """Return by form what the value is the mean of, (s,) each; NaN without a gradient.

    Those of the ratio are the pseudovalues of the jackknife, whose mean has less bias than the
    ratio of the means: K R - (K - 1) R_k, where R_k leaves the k-th of K mini-batches out.
    """
    steep = gg > 0
    x, y = gHg[steep], gg[steep]
    K = len(x)
    pseudo = torch.full_like(gg, math.nan)
    if K > 1:
        pseudo[steep] = K * x.sum() / y.sum() - (K - 1) * (x.sum() - x) / (y.sum() - y)
    elif K:
        pseudo[steep] = x / y
    return {"mean": torch.where(steep, gHg / gg, math.nan), "ratio": pseudo}


def _told(values: Tensor, form: str, B: int, N: int) -> str:
    """Return what certifies the average of these samples."""
    count = int((~values.isnan()).sum())
    if not count:
        return "undefined: no mini-batch has a gradient"
    if B == N:
        return "exact: all examples are one mini-batch"
    words = f"Student's 95 % interval over {count} independent mini-batches of {B}"
    if form == "ratio" and count < FEW:
        words += f", which covers too seldom: below {FEW} the ratio is heavy-tailed"
    if count < len(values):
        share = (len(values) - count) / len(values)
        words += f"; {100 * share:.3g} % of the mini-batches have no gradient and do not count"
    return words + "; comparable at one batch size only"


def _plain_threshold(run: Run | None, B: int) -> tuple[float, str]:
    """Return 2 / eta for plain SGD at its own batch size, and what there is to say of it."""
    if run is None:
        return math.nan, ""
    train = at_end(run)
    if "learning_rate" not in train:
        return math.nan, "; no threshold without a learning rate"
    if train["optimizer"] == "sgd" and train.get("momentum"):
        return math.nan, "; no single threshold with momentum, where it depends on the batch size"
    if not is_plain(train):
        return math.nan, "; no threshold: there is one for plain SGD without weight decay only"
    if train["batch_size"] != B:
        own = train["batch_size"]
        return math.nan, f"; no threshold: there is one at the run's own batch size, {own}, only"
    value = 2 / train["learning_rate"] if train["learning_rate"] else math.inf
    return value, (
        f"; where the ratio is above 2 / eta = {value:.4g}, a step of SGD raises the loss of its "
        "own mini-batch, on average and on a quadratic"
    )
