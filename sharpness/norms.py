"""Sizes of a solution: norms of its weights, of its paths, and its distance from the start.

They know nothing of curvature, and stand beside measures of sharpness as what they have to beat.
"""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sharpness.errors import InputError
from sharpness.finite import require_finite
from sharpness.objective import Inputs, Objective, Point, Targets, fingerprint
from sharpness.options import require_one_of
from sharpness.results import Measured, Run, Solution
from sharpness.specs import spec_of
from sharpness.vectors import unflatten

KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "l2": torch.linalg.vector_norm,
    "frobenius-product": torch.linalg.vector_norm,
    "spectral-product": lambda W: torch.linalg.matrix_norm(W, 2),
}
# What sums over paths can go through; with weights and inputs of at least 0, rectifiers do nothing.
HOMOGENEOUS = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Identity, nn.Flatten, nn.Unflatten),
    *(nn.ReLU, nn.LeakyReLU, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.Sequential, nn.ModuleList, nn.ModuleDict),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.ZeroPad2d),
)
SLACK = 1e-9  # of outputs in float64 that are to double with their input


def weight_norm(
    objective: Objective,
    point: Point | None = None,
    *,
    kind: Literal["l2", "frobenius-product", "spectral-product"] = "l2",
    seed: int = 0,
    progress: Callable[[int, int | None, str], None] | None = None,
) -> Measured:
    """Return |theta|, or the product of the norms of all weights of two axes or more.

    Invariant to permutation of neurons and orthogonal maps of attention heads. The products, of
    Frobenius norms or of largest singular values, leave biases out, and do not change either when
    layers are scaled against each other. A convolution is the matrix of its filters as rows.

    Cost: one forward pass, for the loss.

    Args:
        kind: Of all trainable parameters in one vector, or a product over the weights.
        seed: Of nothing: there is no chance in it.
        progress: Called at the end.

    Raises:
        InputError: If there is no such kind, or no weight to take a product over.
        ComputationError: If the loss is not finite.

    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> f = Objective(model, [(torch.ones(1, 2), torch.ones(1, 1))], torch.nn.functional.mse_loss)
    >>> weight_norm(f, torch.tensor([3.0, 4.0])).value
    5.0
    """
    require_one_of(KINDS, kind=kind)
    here = objective.at(objective.theta if point is None else point)
    parts = unflatten(here.theta.detach().cpu().double(), objective.shapes)
    if kind != "l2":
        parts = {name: W.flatten(1) for name, W in parts.items() if W.ndim > 1}
    if not parts:
        raise InputError(
            f"kind {kind} needs weights of two axes or more, got a model without a trainable one: "
            "take l2"
        )
    norms = torch.stack([KINDS[kind](W) for W in parts.values()])
    value = float(norms.norm() if kind == "l2" else norms.prod())
    count = f"{len(norms)} {'parameters' if kind == 'l2' else 'weights'}"
    words = f"the norm of {count}" if kind == "l2" else f"the product of the norms of {count}"
    found = _Found("weight-norm", value, words, {"norms": norms}, options={"kind": kind})
    return _measured(objective, here, found, seed=seed, progress=progress)


def distance_from_start(
    objective: Objective,
    point: Point | None = None,
    *,
    run: Run | None = None,
    seed: int = 0,
    progress: Callable[[int, int | None, str], None] | None = None,
) -> Measured:
    """Return |theta - theta_0|, the distance of a solution from the start of its training.

    Invariant to permutation of neurons, orthogonal maps of attention heads and logit shift, of the
    start and the solution alike.

    Cost: one forward pass, for the loss.

    Args:
        point: Default: the end of the run.
        run: With a start.
        seed: Of nothing: there is no chance in it.
        progress: Called at the end.

    Raises:
        InputError: If there is no run, or it has no start or one of another model.
        ComputationError: If the loss is not finite.

    >>> from sharpness.problem import objective_of
    >>> from sharpness.training import TrainConfig, train
    >>> run = train(TrainConfig(model_options={"widths": []}, batch_size=600, updates=1))
    >>> distance_from_start(objective_of(run), run.start, run=run).value
    0.0
    """
    start = start_of(run, "distance_from_start")
    here = objective.at((run.end if run else start) if point is None else point)
    moved = here.theta.detach().double() - objective.at(start).theta.double()
    parts = unflatten(moved.cpu(), objective.shapes)
    distances = torch.stack([part.norm() for part in parts.values()])
    words = f"the distance from the start, over {len(distances)} parameters"
    found = _Found("distance-from-start", float(moved.norm()), words, {"distances": distances})
    return _measured(objective, here, found, seed=seed, progress=progress, run=run)


def start_of(run: Run | None, who: str) -> Solution:
    """Return the start of a run.

    Raises:
        InputError: If there is none.
    """
    if run is None or run.start is None:
        got = "no run" if run is None else "a checkpoint, which has but an end"
        raise InputError(f"{who} needs a run with its start, got {got}: train one with sharpness")
    return run.start


def path_norm(
    objective: Objective,
    point: Point | None = None,
    *,
    seed: int = 0,
    progress: Callable[[int, int | None, str], None] | None = None,
) -> Measured:
    """Return the root of the sum, over all paths of a network, of its squared weights' product.

    Paths lead from an input or a bias to an output (Neyshabur et al. 2015). The sum is that of the
    outputs for an input of ones, with all parameters squared: in float64, by a copy of the model.
    Max pooling takes the largest of its sums. A loop of layers counts each turn.

    Invariant to layer-wise scaling, neuron-wise scaling and permutation of neurons.

    Cost: one forward pass for the loss, and four of one example.

    Args:
        seed: Of nothing: there is no chance in it.
        progress: Called at the end.

    Raises:
        InputError: If a layer is not positively homogeneous, such as BatchNorm, which has to be
            folded into the weights before it, or if inputs are not one tensor of real numbers.
        ComputationError: If the loss is not finite.

    >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
    >>> batches = [(torch.ones(1, 1), torch.ones(1, 1))]
    >>> f = Objective(model, batches, torch.nn.functional.mse_loss)
    >>> theta = torch.tensor([1.0, 2.0, 0.0, 0.0, 2.0, 1.0, 1.0])  # 1 -> 2, 2 -> 1, and a bias of 1
    >>> path_norm(f, theta).value  # 4 + 4 + 1
    3.0
    """
    here = objective.at(objective.theta if point is None else point)
    _require_homogeneous(objective.model)
    squared = _Squared(objective, here)
    with_biases, without = squared.paths(1.0, biases=True), squared.paths(1.0, biases=False)
    for factor in (2.0, 0.5):
        scaled = squared.paths(factor, biases=False)
        if not (scaled - factor * without).abs().max() <= SLACK * scaled.abs().max():
            raise InputError(
                "path_norm needs outputs that double with their input where biases are 0, got "
                f"others from {objective.spec['objective']}: take weight_norm"
            )
    details = {"squared": with_biases, "squared_without_biases": without}
    value = math.sqrt(float(with_biases.sum()))
    words = f"exact, by a pass of squared weights to {len(with_biases)} outputs"
    found = _Found("path-norm", value, words, details, forwards=4 / objective.weight())
    return _measured(objective, here, found, seed=seed, progress=progress)


def _require_homogeneous(model: nn.Module) -> None:
    """Refuse layers of torch's own that no sum over paths goes through."""
    for name, part in model.named_modules():
        own = type(part).__module__.startswith("torch.nn.")
        if own and not isinstance(part, HOMOGENEOUS):
            is_norm = "Norm" in type(part).__name__
            raise InputError(
                "path_norm needs positively homogeneous layers, such as linear ones and ReLU, got "
                f"{name or 'the model'}, a {type(part).__name__}: "
                f"{'fold it into the weights' if is_norm else 'take weight_norm'}"
            )


class _Squared:
    """The model with its parameters squared, in float64, and an input of one example."""

    def __init__(self, objective: Objective, here: Solution) -> None:
        self.model = deepcopy(objective.model).double()
        own = {name: p.detach() for name, p in objective.model.named_parameters()}
        own |= unflatten(here.theta.detach(), objective.shapes)
        self.squares = {
            name: here.buffers.get(name, p).detach().double().square() for name, p in own.items()
        }
        inputs: list[Any] = []

        def look(i: int, x: Inputs, targets: Targets) -> Tensor:
            inputs.append(x)
            return here.theta.new_zeros(())

        objective.first(look)
        x = inputs[0]
        if not (isinstance(x, Tensor) and x.is_floating_point()):
            got = str(x.dtype) if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise InputError(
                f"path_norm needs inputs in one tensor of real numbers, got {got}: take weight_norm"
            )
        self.ones = torch.ones_like(x[:1], dtype=torch.float64)

    def paths(self, factor: float, *, biases: bool) -> Tensor:
        """Return the sums over the paths to each output, (C,), for an input of this number."""
        values = {
            name: p if biases or p.ndim > 1 else torch.zeros_like(p)
            for name, p in self.squares.items()
        }
        with torch.no_grad():
            z: Tensor = functional_call(self.model, values, (factor * self.ones,))
        return z.flatten().cpu()


@dataclass(frozen=True)
class _Found:
    name: str
    value: float
    words: str
    details: dict[str, Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    forwards: float = 0.0  # beside that for the loss


def _measured(
    objective: Objective,
    here: Solution,
    found: _Found,
    *,
    seed: int,
    progress: Callable[[int, int | None, str], None] | None,
    run: Run | None = None,
) -> Measured:
    """Return the record of a number that has nothing to do with data, and so no error."""
    loss = objective.value(here)
    require_finite(objective, found.name.replace("-", "_"), here, loss)
    if progress:
        progress(1, 1, f"value {found.value:.4g}")
    both = torch.tensor([found.value, found.value], dtype=torch.float64)
    return Measured(
        measure=found.name,
        value=found.value,
        stderr=0.0,
        interval=both,
        threshold=math.nan,
        loss=float(loss),
        converged=True,
        words=found.words,
        samples={"value": both[:1]},
        details=found.details,
        gradients=0.0,
        products=0.0,
        forwards=1.0 + found.forwards,
        spec=spec_of(found.name, found.options, seed, fingerprint(here), objective, run),
    )
