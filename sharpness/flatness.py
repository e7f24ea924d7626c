"""Flatness that a rescaling of a network leaves alone: relative flatness, and Fisher-Rao.

Letters: W a weight of K rows w_s and d columns, one for each feature; H_st the block of the Hessian
in w_s and w_t; J the Jacobian of the outputs z; M the curvature of the loss in them.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sharpness.by_layer import Probed, formed, places_by
from sharpness.curvature import GaussNewton, Hessian, Operator, OutputCurvature
from sharpness.errors import InputError
from sharpness.finite import require_finite
from sharpness.fisher import EmpiricalFisher
from sharpness.intervals import NORMAL
from sharpness.lanczos import SMALL, eigsh
from sharpness.likelihoods import likelihood_of
from sharpness.names import named
from sharpness.objective import Inputs, Objective, Point, Targets, fingerprint
from sharpness.operators import Made, Scaled
from sharpness.options import require_one_of
from sharpness.probes import require_symmetric
from sharpness.results import Measured, Solution
from sharpness.specs import spec_of
from sharpness.spectrum import trace
from sharpness.vectors import unflatten

FORMS = ("trace", "eigenvalue")
FISHERS = {"model": GaussNewton, "data": EmpiricalFisher}
FISHER_FORMS = ("quadratic", "homogeneous")
# Of |J theta - k z| to |J theta|. Sums of squares leave the root of the rounding.
EULER = {torch.float64: 1e-6, torch.float32: 1e-3}

LOG = logging.getLogger(__name__)

Progress = Callable[[int, int | None, str], None]


@dataclass(frozen=True)
class _Found:
    value: float
    stderr: float
    interval: Tensor  # (2,)
    converged: bool
    words: str
    samples: Tensor  # (s,)
    details: dict[str, Tensor]


def relative_flatness(
    objective: Objective,
    point: Point | None = None,
    *,
    layer: str | None = None,
    form: Literal["trace", "eigenvalue"] = "trace",
    rescaled: bool = False,
    probes: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> Measured:
    """Return the curvature of the loss in one layer times the size of its weights.

    sum_st <w_s, w_t> tr H_st, or with the ``eigenvalue`` form sum_s |w_s|^2 lambda_1(H_ss), after
    Petzka et al. (2021). With W = L Q, the rows of Q orthonormal, the first is the trace of
    (L^T x I) H (L x I), a matrix of min(K, d) d unknowns: up to 200 are formed, and the value is
    exact; of more it is estimated (see ``trace``).

    Invariant to layer-wise scaling, permutation of neurons, filter scaling before BatchNorm,
    GL(d_head) of attention, orthogonal maps of attention heads and logit shift. To scalings of
    single neurons it is so for those of the layer itself, and for those before it where features
    are ``rescaled``. The output matrix of attention changes under GL(d_head), and the eigenvalue
    form under a shift of the logits.

    Cost: as many products as that matrix has unknowns, or ``probes``; for the other form a search
    in each row, of d products up to d = 200; three more that probe. One forward pass for the loss,
    and two for the features.

    Args:
        layer: The name of its weight, of two axes or, of a convolution, more: the first is that of
            the neurons. Default: the last of the model.
        form: Which of the two.
        rescaled: Whether features are first scaled to unit standard deviation, and weights to
            match. A feature that is constant stays as it is.
        probes: Products of an estimate.
        seed: Of the probes and of the searches.
        progress: Called after products.

    Raises:
        InputError: If there is no such weight or form, or features are to be rescaled of a layer
            that is no ``torch.nn.Linear``.
        ComputationError: If loss or curvature are not finite.

    >>> model = torch.nn.Linear(1, 2, bias=False).double()
    >>> x, y = torch.tensor([[1.0], [2.0]]).double(), torch.tensor([0, 1])
    >>> f = Objective(model, [(x, y)], torch.nn.functional.cross_entropy)
    >>> found = relative_flatness(f, torch.tensor([3.0, 3.0]).double())
    >>> round(found.value, 9)  # mean x^2 (sum p |w|^2 - |sum p w|^2): equal rows have no spread
    0.0
    """
    here, name, W = _layer_of(objective, point, layer, form)
    settled = objective.settled(here)
    loss = objective.value(settled)
    require_finite(objective, "relative_flatness", settled, loss)
    scale = _deviations(objective, settled, name) if rescaled else torch.ones_like(W[0])
    LOG.info("relative_flatness: %s of %s", form, name)
    H = Hessian(objective, settled)
    require_symmetric(H, seed)
    block = Probed(H, places_by("tensor", objective.shapes)[name])
    measured = _by_trace if form == "trace" else _by_eigenvalues
    found = measured(block, W * scale, 1 / scale, probes, seed, progress)
    unknown = math.nan if objective.is_sample else 0.0
    options = {"layer": layer, "form": form, "rescaled": rescaled, "probes": probes}
    return Measured(
        measure="relative-flatness",
        value=found.value,
        stderr=found.stderr + unknown,
        interval=found.interval + unknown,
        threshold=math.nan,
        loss=float(loss),
        converged=found.converged,
        words=f"{form} of {name}, {len(W)} neurons of {len(W[0])} weights: {found.words}",
        samples={"value": found.samples},
        details=found.details | {"neuron_norms": (W * scale).norm(dim=1).cpu()},
        gradients=0.0,
        products=float(H.products),
        forwards=1.0 + 2.0 * rescaled,
        spec=spec_of("relative-flatness", options, seed, fingerprint(here), objective, weight=name),
    )


def fisher_rao(
    objective: Objective,
    point: Point | None = None,
    *,
    labels: Literal["model", "data"] = "model",
    form: Literal["quadratic", "homogeneous"] = "quadratic",
    seed: int = 0,
    progress: Progress | None = None,
) -> Measured:
    """Return the Fisher-Rao norm, theta^T F theta, exactly.

    F is the Fisher information with labels of the ``model``, which is the Gauss-Newton matrix, or
    that with labels of the ``data``, the mean of g g^T over examples; no label is drawn. Where the
    outputs are homogeneous in theta, J theta = k z (Euler), it is k^2 z^T M z, k^2 E <dl/dz, z>^2
    with the slopes of either: the ``homogeneous`` form, k the number of layers of a network of
    rectifiers without biases (Liang et al. 2019).

    Invariant to layer-wise scaling, neuron-wise scaling, permutation of neurons, filter scaling
    before BatchNorm, GL(d_head) of attention, orthogonal maps of attention heads and logit shift.

    Cost: one product and one forward pass; two more products, or forward passes for the homogeneous
    form, for the sampling error of a part of the data.

    Args:
        labels: Of the model or of the data.
        form: The quadratic form, of any network, or what Euler's identity makes of it.
        seed: Of nothing: there is no chance in it.
        progress: Called at the end.

    Raises:
        InputError: If there is no such form, if the loss is no negative log-likelihood of labels of
            the model, or if the homogeneous form is asked for of a model with biases or with
            outputs that are not homogeneous.
        ComputationError: If loss or curvature are not finite.

    >>> model = torch.nn.Linear(1, 1, bias=False).double()
    >>> x = torch.tensor([[1.0], [2.0]]).double()
    >>> f = Objective(model, [(x, 0 * x)], torch.nn.functional.mse_loss)
    >>> fisher_rao(f, torch.tensor([3.0]).double()).value  # 2 mean(x^2) theta^2
    45.0
    """
    require_one_of(FISHERS, labels=labels)
    require_one_of(FISHER_FORMS, form=form)
    here = objective.at(objective.theta if point is None else point)
    settled = objective.settled(here)
    A = FISHERS[labels](objective, settled)
    loss = _likely_loss(objective, settled, labels)
    LOG.info("fisher_rao: %s form, labels of the %s", form, labels)
    found = (_quadratic if form == "quadratic" else _homogeneous)(objective, settled, A)
    if progress:
        progress(1, 1, f"value {found.value:.4g}")
    more = 2.0 * objective.is_sample
    options = {"labels": labels, "form": form}
    return Measured(
        measure="fisher-rao",
        value=found.value,
        stderr=found.stderr,
        interval=found.interval,
        threshold=math.nan,
        loss=loss,
        converged=True,
        words=found.words,
        samples={"value": found.samples},
        details=found.details,
        gradients=0.0,
        products=1.0 + more * (form == "quadratic"),
        forwards=1.0 + more * (form == "homogeneous"),
        spec=spec_of("fisher-rao", options, seed, fingerprint(here), objective),
    )


def _likely_loss(objective: Objective, here: Solution, labels: str) -> float:
    """Return the loss, once it is known to be the log-likelihood of labels, where that matters."""

    def loss(i: int, inputs: Inputs, targets: Targets) -> Tensor:
        z = objective.outputs(here, inputs)
        if i == 0 and not isinstance(z, Tensor):
            raise InputError(
                f"fisher_rao needs outputs in one tensor, got a {type(z).__name__}: return the "
                "tensor alone"
            )
        if i == 0 and labels == "model":
            slope = partial(objective.slope_of_outputs, targets=targets)
            if likelihood_of(slope, z) is None:
                raise InputError(
                    "fisher_rao needs the negative log-likelihood of labels, a cross-entropy or "
                    f'squared errors, got {named(objective.loss)}: take labels="data"'
                )
        return objective.loss_of_outputs(z, targets).double()

    with torch.no_grad():
        value = objective.mean(loss)
    require_finite(objective, "fisher_rao", here, value)
    return float(value)


def _exact(
    value: float, stderr: float, words: str, details: dict[str, Tensor] | None = None
) -> _Found:
    """Return a number of which only the examples may be a sample, with its normal interval."""
    half = NORMAL * stderr
    bounds = torch.tensor([value - half, value + half], dtype=torch.float64)
    return _Found(value, stderr, bounds, True, words, bounds.mean()[None], details or {})


def _quadratic(objective: Objective, here: Solution, A: OutputCurvature) -> _Found:
    """Return theta^T A theta."""
    theta = here.theta.detach()
    value = float(theta.double() @ (A @ theta).double())
    stderr = float(A.sampling_errors(theta[None])[0])
    return _exact(value, stderr, "the quadratic form itself, by one product")


def _homogeneous(objective: Objective, here: Solution, A: OutputCurvature) -> _Found:
    """Return k^2 z^T M z, once it is known that J theta = k z."""
    biases = [name for name, shape in objective.shapes.items() if len(shape) < 2]
    if biases:
        raise InputError(
            f'form="homogeneous" needs layers without biases, got {biases[0]}: take the quadratic '
            "form"
        )

    def inner(i: int, z: Tensor, targets: Targets) -> Tensor:
        z = z.detach()
        return (z * A.output_map(i, z.clone(), targets)(z)).double().sum().detach()

    def euler(i: int, inputs: Inputs, targets: Targets) -> Tensor:
        def outputs(theta: Tensor) -> Tensor:
            return objective.outputs(replace(here, theta=theta), inputs)

        theta = here.theta.detach()
        jvp: Any = torch.autograd.functional.jvp
        z, Jtheta = (x.detach() for x in jvp(outputs, theta, theta))
        means = [
            (x.double() * y.double()).mean() for x, y in ((Jtheta, z), (z, z), (Jtheta, Jtheta))
        ]
        return torch.stack([*means, inner(i, z, targets)])

    def again(i: int, inputs: Inputs, targets: Targets) -> Tensor:
        return inner(i, objective.outputs(here, inputs), targets)

    with torch.enable_grad():
        product, square, length, value = objective.mean(euler).tolist()
        degree = product / square if square else 0.0
        left = max(length - degree * product, 0.0)  # |J theta - k z|^2, for this k the least
        relative = math.sqrt(left / length) if length else 0.0
        if not relative <= EULER[here.theta.dtype]:
            raise InputError(
                'form="homogeneous" needs outputs that are homogeneous in the parameters, got '
                f"J theta that differs from {degree:.4g} z by {relative:.1e} of its norm: take the "
                "quadratic form"
            )
        error = float(objective.sampling_error(again)) if objective.is_sample else 0.0
    number = partial(torch.tensor, dtype=torch.float64)
    return _exact(
        degree**2 * value,
        degree**2 * error,
        f"outputs are homogeneous of degree {degree:.4g}, but for {relative:.1e}",
        {"degree": number(degree), "euler_residual": number(relative)},
    )


class _Contracted(Made):
    """(L^T x S) H (L x S), with H the block of a weight and S = diag(s) of its columns."""

    def __init__(self, block: Operator, L: Tensor, s: Tensor) -> None:
        self.L, self.s = L.to(block.device, block.dtype), s.to(block.device, block.dtype)
        super().__init__([block], self.L.shape[1] * len(s))

    @property
    def making(self) -> dict[str, Any]:
        """The rank of the weight."""
        return {"contracted": list(self.L.shape)}

    def product(self, v: Tensor) -> Tensor:
        """Return the product with v, in the order of a matrix of as many columns as W."""
        inside = (self.L @ v.view(self.L.shape[1], -1)) * self.s
        outside = (self.parts[0] @ inside.flatten()).view_as(inside) * self.s
        return (self.L.T @ outside).flatten()


def _by_trace(
    block: Operator, W: Tensor, s: Tensor, probes: int, seed: int, progress: Progress | None
) -> _Found:
    """Return the trace of H in terms of W and of columns scaled by s."""
    # Triangular, so that a neuron that is scaled scales its row of L, and nothing else.
    L = torch.linalg.qr(W.T).R.T  # (K, min(K, d))
    A = _Contracted(block, L, s)
    if A.size <= SMALL:
        diagonal = formed(A, progress).double().diagonal().cpu()
        value = float(diagonal.sum())
        both = torch.tensor([value, value], dtype=torch.float64)
        words = f"exact, from {A.size} products"
        return _Found(value, 0.0, both, True, words, both[:1], {"diagonal": diagonal})
    told = trace(A, probes=probes, seed=seed, progress=progress)
    words = f"estimated from {told.products} products, {told.exact:.4g} of it exact"
    samples = told.exact + told.samples
    return _Found(told.value, told.stderr, told.interval, True, words, samples, {})


def _by_eigenvalues(
    block: Operator, W: Tensor, s: Tensor, probes: int, seed: int, progress: Progress | None
) -> _Found:
    """Return the sum of the largest eigenvalues of the rows' blocks, each times |w_s|^2."""
    K, d = W.shape
    squares = W.square().sum(dim=1).cpu()
    values, residuals = torch.zeros(2, K, dtype=torch.float64)
    converged = torch.ones(K, dtype=torch.bool)
    for i in squares.nonzero().flatten().tolist():  # a neuron of no weight counts for nothing
        row = Scaled(Probed(block, torch.arange(i * d, (i + 1) * d)), s)
        pair = eigsh(row, 1, seed=seed)
        values[i], residuals[i] = float(pair.values[0]), float(pair.residuals[0])
        converged[i] = bool(pair.converged[0])
        if progress:
            progress(i + 1, K, f"lambda_1 {float(values[i]):.3g}")
    parts = squares * values
    value, slack = float(parts.sum()), float((squares * residuals).sum())
    met = bool(converged.all())
    bounds = torch.tensor([value - slack, value + slack], dtype=torch.float64)
    return _Found(
        value,
        0.0,
        bounds if met else bounds * math.nan,
        met,
        f"{int(converged.sum())} of {K} largest eigenvalues converged",
        parts.sum()[None],
        {"parts": parts, "eigenvalues": values, "residuals": residuals},
    )


def _layer_of(
    objective: Objective, point: Point | None, layer: str | None, form: str
) -> tuple[Solution, str, Tensor]:
    """Return the point, and the name and the weight of the layer, (K, d) in float64."""
    require_one_of(FORMS, form=form)
    weights = [name for name, shape in objective.shapes.items() if len(shape) > 1]
    if not weights:
        raise InputError(
            "relative_flatness needs a weight of two axes or more, got a model without a trainable "
            "one: take another measure"
        )
    name = weights[-1] if layer is None else layer
    if name not in weights:
        raise InputError(
            f"layer needs to be the name of a trainable weight of two axes or more, got {layer!r}: "
            f"take one of {', '.join(weights)}"
        )
    here = objective.at(objective.theta if point is None else point)
    W = unflatten(here.theta, objective.shapes)[name].detach()
    return here, name, W.flatten(1).cpu().double()


def _deviations(objective: Objective, here: Solution, name: str) -> Tensor:
    """Return the standard deviations of what goes into a layer, (d,), 1 where it is constant."""
    owner, _, kind = name.rpartition(".")
    layer = objective.evaluated.get_submodule(owner)
    if not (isinstance(layer, nn.Linear) and kind == "weight"):
        raise InputError(
            f"rescaled needs the weight of a torch.nn.Linear, got {name} of a "
            f"{type(layer).__name__}: take another layer, or leave the features as they are"
        )
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().double()))

    def mean(f: Callable[[Tensor], Tensor]) -> Tensor:
        def one(i: int, inputs: Inputs, targets: Targets) -> Tensor:
            seen.clear()
            objective.outputs(here, inputs)
            if not seen:
                raise InputError(
                    f"rescaled needs a layer that is called, got {owner}, whose weight alone is "
                    "used: take another layer"
                )
            return f(torch.cat([x.flatten(0, -2) for x in seen])).mean(dim=0)

        with torch.no_grad():
            return objective.mean(one)

    try:
        center = mean(lambda x: x)
        sigma = mean(lambda x: (x - center).square()).sqrt()
    finally:
        hook.remove()
    # A constant is one but for rounding, that of the mean included.
    flat = sigma <= 1e3 * torch.finfo(here.theta.dtype).eps * center.abs()
    return sigma.masked_fill(flat, 1.0).cpu()
