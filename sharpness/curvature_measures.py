"""Measures of sharpness that are numbers of the Hessian: its largest eigenvalue, trace and norm.

Each is a search or an estimate of ``lanczos`` and ``spectrum`` with what certifies it, in the
record that all measures share. See "The Hessian" and "What random probes tell" in
``docs/theory.md``.

Letters: C classes, n parameters, r a residual.
"""

import math
from collections.abc import Callable, MutableMapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sharpness.certificates import Certificate, of_eigenvalue, of_estimate, spent
from sharpness.curvature import AdaptiveHessian, Curvature, Hessian
from sharpness.errors import InputError
from sharpness.lanczos import eigsh
from sharpness.objective import Inputs, Objective, Point, Targets, Weighted
from sharpness.options import is_whole
from sharpness.results import Eigenpairs, Estimate, Measured, Run
from sharpness.specs import spec_of
from sharpness.spectrum import frobenius, trace
from sharpness.thresholds import RULES, at_end, decay, stability_threshold

Pieces = MutableMapping[str, Tensor]
Progress = Callable[[int, int | None, str], None]


def largest_eigenvalue(
    objective: Objective,
    point: Point | None = None,
    *,
    run: Run | None = None,
    scaled: bool = False,
    tol: float | None = None,
    seed: int = 0,
    pieces: Pieces | None = None,
    progress: Progress | None = None,
) -> Measured:
    """Return lambda_1, the largest eigenvalue of the Hessian.

    The interval is certain: an eigenvalue lies within the residual, and the complete search says
    that none is larger. On a sample of the examples it has the sampling error too (see "The
    Hessian" in ``docs/theory.md`` for what that leaves out).

    Not invariant to layer-wise scaling, neuron-wise scaling, filter scaling before BatchNorm and
    GL(d_head) of attention. Invariant to permutation of neurons, orthogonal maps of attention
    heads and logit shift. With ``scaled``, scalings of layers, neurons and filters leave it, and
    maps of heads and shifts of logits do not.

    Cost: the products of one eigenvalue, and a forward pass.

    Args:
        point: Where, a Solution or theta. Default: the end of the run, or the model as it came.
        run: Whose optimizer makes the threshold, if it is SGD.
        scaled: Take diag(|theta|) H diag(|theta|) in place of H.
        tol: Of the residual (see ``eigsh``).
        seed: Of the search.
        pieces: Products, by number; those here are not computed again.
        progress: Called after each product.

    Raises:
        InputError: If the tolerance is not above 0.
        ComputationError: If a product is not finite.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]]).double()
    >>> model = torch.nn.Linear(2, 1, bias=False).double()
    >>> f = Objective(model, [(x, x[:, :1])], torch.nn.functional.mse_loss)  # H = diag(1, 4)
    >>> round(largest_eigenvalue(f).value, 9)
    4.0
    """
    A = _at(objective, point, run, scaled)
    pairs = eigsh(A, 1, tol=tol, seed=seed, pieces=pieces, progress=progress)
    found = of_eigenvalue(pairs)
    threshold, why = _threshold(run, scaled)
    found = replace(found, words=found.words + why)
    more = {"residual": pairs.residuals[0].double().cpu()}
    options = {"scaled": scaled, "tol": tol}
    return _measured("lambda-1", A, pairs, found, more, {}, options, seed, run, threshold)


def hessian_trace(
    objective: Objective,
    point: Point | None = None,
    *,
    scaled: bool = False,
    probes: int = 32,
    seed: int = 0,
    pieces: Pieces | None = None,
    progress: Progress | None = None,
) -> Measured:
    """Return the trace of the Hessian, the sum of its eigenvalues, estimated by ``hutch++``.

    Not invariant to layer-wise scaling, neuron-wise scaling, filter scaling before BatchNorm and
    GL(d_head) of attention. Invariant to permutation of neurons, orthogonal maps of attention
    heads and logit shift, but for the draws of the probes. With ``scaled``, scalings of layers,
    neurons and filters leave it, and maps of heads and shifts of logits do not.

    Cost: ``probes`` products and two that probe the operator, and a forward pass.

    Args:
        point: Where, a Solution or theta. Default: the model as it came.
        scaled: Take diag(|theta|) H diag(|theta|) in place of H.
        probes: Products to spend (see ``trace``).
        seed: Of the probes.
        pieces: Products, by number; those here are not computed again.
        progress: Called after each product.

    Raises:
        InputError: If there are too few probes.
        ComputationError: If a product is not finite.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]]).double()
    >>> model = torch.nn.Linear(2, 1, bias=False).double()
    >>> f = Objective(model, [(x, x[:, :1])], torch.nn.functional.mse_loss)  # H = diag(1, 4)
    >>> round(hessian_trace(f).value, 9)
    5.0
    """
    A = _at(objective, point, None, scaled)
    made = trace(A, probes=probes, seed=seed, pieces=pieces, progress=progress)
    found = of_estimate(made, "the trace", is_sample=objective.is_sample)
    samples = {"trace": made.exact + made.samples.double().cpu()}
    options = {"scaled": scaled, "probes": probes}
    more = {"stderr_of_probes": torch.tensor(made.stderr, dtype=torch.float64)}
    return _measured("trace", A, made, found, more, samples, options, seed)


def hessian_frobenius(
    objective: Objective,
    point: Point | None = None,
    *,
    scaled: bool = False,
    probes: int = 32,
    seed: int = 0,
    pieces: Pieces | None = None,
    progress: Progress | None = None,
) -> Measured:
    """Return the Frobenius norm of the Hessian, the root of the sum of its squared eigenvalues.

    Value, standard error (to first order) and interval are those of the squared norm, of which
    the samples are, under the root.

    Not invariant to layer-wise scaling, neuron-wise scaling, filter scaling before BatchNorm and
    GL(d_head) of attention. Invariant to permutation of neurons, orthogonal maps of attention
    heads and logit shift, but for the draws of the probes. With ``scaled``, scalings of layers,
    neurons and filters leave it, and maps of heads and shifts of logits do not.

    Cost: ``probes`` products and two that probe the operator, and a forward pass.

    Args:
        point: Where, a Solution or theta. Default: the model as it came.
        scaled: Take diag(|theta|) H diag(|theta|) in place of H.
        probes: Products to spend (see ``frobenius``).
        seed: Of the probes.
        pieces: Products, by number; those here are not computed again.
        progress: Called after each product.

    Raises:
        InputError: If there are too few probes.
        ComputationError: If a product is not finite.

    >>> x = torch.tensor([[3.0, 0.0], [0.0, 4.0]]).double().sqrt()
    >>> model = torch.nn.Linear(2, 1, bias=False).double()
    >>> f = Objective(model, [(x, x[:, :1])], torch.nn.functional.mse_loss)  # H = diag(3, 4)
    >>> round(hessian_frobenius(f).value, 9)
    5.0
    """
    A = _at(objective, point, None, scaled)
    made = frobenius(A, probes=probes, seed=seed, pieces=pieces, progress=progress)
    squared = of_estimate(made, "the squared norm", is_sample=objective.is_sample)
    value = math.sqrt(max(squared.value, 0.0))
    found = replace(
        squared,
        value=value,
        stderr=squared.stderr / (2 * value) if value else squared.stderr,
        interval=squared.interval.clamp(min=0).sqrt(),
    )
    samples = {"squared": made.exact + made.samples.double().cpu()}
    options = {"scaled": scaled, "probes": probes}
    more = {
        "squared": torch.tensor(squared.value, dtype=torch.float64),
        "stderr_of_squared": torch.tensor(made.stderr, dtype=torch.float64),
    }
    return _measured("frobenius", A, made, found, more, samples, options, seed)


def eigenvalue_ratio(
    objective: Objective,
    point: Point | None = None,
    *,
    k: int | None = None,
    scaled: bool = False,
    tol: float | None = None,
    seed: int = 0,
    pieces: Pieces | None = None,
    progress: Progress | None = None,
) -> Measured:
    """Return lambda_1 / lambda_k of the Hessian, for k the number of classes by default.

    The bounds of the interval follow from those of both eigenvalues, value plus or minus residual.
    Undefined where the k-th is not above its residual.

    Not invariant to layer-wise scaling, neuron-wise scaling, filter scaling before BatchNorm and
    GL(d_head) of attention. Invariant to permutation of neurons, orthogonal maps of attention
    heads and logit shift. With ``scaled``, scalings of layers, neurons and filters leave it, and
    maps of heads and shifts of logits do not. A multiple of the loss has the same ratio.

    Cost: the products of k eigenvalues, and a forward pass.

    Args:
        point: Where, a Solution or theta. Default: the model as it came.
        k: 2 to n. Default: the number of classes, of outputs (batch, classes).
        scaled: Take diag(|theta|) H diag(|theta|) in place of H.
        tol: Of the residuals (see ``eigsh``).
        seed: Of the search.
        pieces: Products, by number; those here are not computed again.
        progress: Called after each product.

    Raises:
        InputError: If k is not in its range, or there is none and the outputs are not of classes.
        ComputationError: If a product is not finite.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]]).double()
    >>> model = torch.nn.Linear(2, 1, bias=False).double()
    >>> f = Objective(model, [(x, x[:, :1])], torch.nn.functional.mse_loss)  # H = diag(1, 4)
    >>> round(eigenvalue_ratio(f, k=2).value, 9)
    4.0
    """
    A = _at(objective, point, None, scaled)
    rank = _classes(objective, A) if k is None else k
    if not is_whole(rank, 2, A.size):
        raise InputError(
            f"eigenvalue_ratio needs k from 2 to the {A.size} parameters, got k={rank}: change it"
        )
    pairs = eigsh(A, rank, tol=tol, seed=seed, pieces=pieces, progress=progress)
    found = _ratio(pairs, rank, is_sample=objective.is_sample)
    more = {"values": pairs.values.double().cpu(), "residuals": pairs.residuals.double().cpu()}
    options = {"k": k, "scaled": scaled, "tol": tol}
    return _measured("lambda-ratio", A, pairs, found, more, {}, options, seed)


def _at(objective: Objective, point: Point | None, run: Run | None, scaled: bool) -> Curvature:
    where = point if point is not None else run.end if run else None
    return AdaptiveHessian(objective, where) if scaled else Hessian(objective, where)


def _threshold(run: Run | None, scaled: bool) -> tuple[float, str]:
    """Return the threshold of lambda_1 of H itself, and what there is to say of it."""
    train = at_end(run)
    if "learning_rate" not in train:
        return math.nan, ""
    rule = RULES.get(train["optimizer"])
    if scaled or rule is None or rule.preconditioner is not None:
        return math.nan, "; no threshold: there is one of preconditioned sharpness only"
    value, words = stability_threshold(train)
    return value - decay(train), f"; {words}"  # of H + wd I, whose eigenvalues are wd larger


def _classes(objective: Objective, A: Curvature) -> int:
    """Return how many classes the outputs have."""

    def count(i: int, inputs: Inputs, targets: Targets) -> Tensor:
        y = targets.targets if isinstance(targets, Weighted) else targets
        with torch.no_grad():
            z: object = objective.outputs(A.point, inputs)
        of_classes = isinstance(z, Tensor) and z.ndim == 2 and z.shape[1] > 1
        if not (of_classes and isinstance(z, Tensor) and y.ndim == 1 and not y.is_floating_point()):
            shape = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
            raise InputError(
                "eigenvalue_ratio needs outputs (batch, classes) and integer targets (batch,), got "
                f"{shape} and {y.dtype} of shape {tuple(y.shape)}: give k"
            )
        return torch.tensor(z.shape[1])

    return int(objective.first(count))


def _ratio(pairs: Eigenpairs, k: int, *, is_sample: bool) -> Certificate:
    """Return lambda_1 / lambda_k with the bounds that both residuals leave it."""
    values, residuals = pairs.values.double(), pairs.residuals.double()
    top, last = float(values[0]), float(values[-1])
    above, beside = float(residuals[0]), float(residuals[-1])
    unknown = torch.full((2,), math.nan, dtype=torch.float64)
    converged = bool(pairs.converged.all())
    if last <= beside:
        words = f"undefined: lambda_{k} = {last:.3g} is not above its residual {beside:.1e}"
        return Certificate(math.nan, math.nan, unknown, converged, words)
    bounds = [(top - above) / (last + beside), (top + above) / (last - beside)]
    words = f"lambda_1 = {top:.5g} and lambda_{k} = {last:.5g} within {above:.1e} and {beside:.1e}"
    words += "" if converged else ", not converged"
    if is_sample:
        words += "; by how much a sample of the examples is off is unknown"
        return Certificate(top / last, math.nan, unknown, converged, words)
    return Certificate(top / last, 0.0, torch.tensor(bounds, dtype=torch.float64), converged, words)


def _measured(
    name: str,
    A: Curvature,
    made: Eigenpairs | Estimate,
    found: Certificate,
    details: dict[str, Tensor],
    samples: dict[str, Tensor],
    options: dict[str, Any],
    seed: int,
    run: Run | None = None,
    threshold: float = math.nan,
) -> Measured:
    gradients, products = spent(A, made)
    return Measured(
        measure=name,
        value=found.value,
        stderr=found.stderr,
        interval=found.interval,
        threshold=threshold,
        loss=float(A.objective.value(A.point)),
        converged=found.converged,
        words=found.words,
        samples=samples,
        details=details,
        gradients=gradients,
        products=products,
        forwards=1.0,
        spec=spec_of(name, options, seed, A.spec["point"], A.objective, run),
    )
