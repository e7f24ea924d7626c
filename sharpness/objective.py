"""The function every other module studies: mean loss as a function of the parameters."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import (
    DataLoader,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from sharpness.distributed import mean_over_ranks
from sharpness.errors import ComputationError, InputError
from sharpness.names import located, named
from sharpness.results import Solution
from sharpness.vectors import digest, flatten, unflatten

Inputs = Tensor | tuple[Any, ...] | dict[str, Any]  # one, positional or keyword arguments
Batches = Iterable[tuple[Inputs, Tensor]]
Measure = Callable[[Tensor, Tensor], Tensor]  # (outputs, targets) -> mean over the batch, ()
Point = Tensor | Solution  # a bare theta, shape (n,), takes the buffers of the model

SHUFFLING = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
# Losses that broadcast (N, 1) against (N,) to (N, N), and average that.
BROADCASTING = {
    nn.functional.mse_loss,
    nn.functional.l1_loss,
    nn.functional.smooth_l1_loss,
    nn.functional.huber_loss,
}
BROADCASTING_MODULES = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)


class Objective:
    """Mean loss of a model over a fixed data set, as a function of theta, shape (n,).

    Theta lists the parameters with ``requires_grad`` in the order of ``named_parameters``;
    frozen parameters and buffers belong to the function: a Solution brings its own, a bare theta
    takes those that the model came with. The model is evaluated in eval mode: under dropout or
    batch statistics the loss is no function of theta alone.

    Args:
        model: Stays as it is, bit by bit: only a copy of its modules and buffers is used.
        batches: ``(inputs, targets)``, the same in the same order at every iteration.
        loss: Mean over one batch, as a function of (outputs, targets).
        metrics: Further such means by name, for ``evaluate``.
        count: What a batch weighs, as a function of its targets. Default: their number; for a
            mean over tokens, the number of tokens.
        spec: What else there is to record, such as where the data come from.

    Raises:
        InputError: If ``batches`` cannot be repeated, are empty or shuffle.

    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> batches = [(torch.ones(2, 1), torch.zeros(2, 1)), (torch.ones(1, 1), torch.ones(1, 1))]
    >>> f = Objective(model, batches, torch.nn.functional.mse_loss)
    >>> f.value(torch.tensor([3.0])).round(decimals=12)  # (9 + 9 + 4) / 3
    tensor(7.3333, dtype=torch.float64)
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        loss: Measure,
        *,
        metrics: Mapping[str, Measure] | None = None,
        count: Callable[[Tensor], int] = len,
        spec: Mapping[str, Any] | None = None,
    ) -> None:
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        kinds = {f"{p.dtype} on {p.device}" for p in trainable.values()}
        if len(kinds) != 1:
            raise InputError(
                "Objective needs trainable parameters of one dtype on one device, got "
                f"{', '.join(sorted(kinds)) or 'none'}: set requires_grad or convert the model"
            )
        _require_fixed(batches)
        # A copy, for its own modes and running statistics survive the user's training on and
        # an interrupt; the memo keeps the large part, the parameters, shared.
        self.model = deepcopy(model, {id(p): p for p in model.parameters()}).eval()
        self.batches, self.loss, self.metrics = batches, loss, dict(metrics or {})
        self.count = count
        self.shapes = {name: p.shape for name, p in trainable.items()}
        self.theta = flatten(trainable.values())  # (n,)
        self.spec = {
            "objective": named(type(model)),
            "loss": named(loss),
            "metrics": {name: named(f) for name, f in self.metrics.items()},
            "parameters": len(self.theta),
            "dtype": str(self.theta.dtype),
            "device": self.theta.device.type,
            "threads": torch.get_num_threads(),
            "batch_norm": "frozen",
            **(spec or {}),
        }

    def at(self, point: Point) -> Solution:
        """Return the point in this objective's dtype and on its device, checked.

        Raises:
            InputError: If theta is not one of this model.
        """
        theta, buffers = (
            (point.theta, point.buffers) if isinstance(point, Solution) else (point, {})
        )
        if theta.shape != self.theta.shape:
            raise InputError(
                f"Objective needs theta of shape {tuple(self.theta.shape)}, got "
                f"{tuple(theta.shape)}: list the trainable parameters of this model"
            )
        real = self.theta.dtype
        return Solution(
            theta.to(self.theta),
            {
                name: b.to(self.theta.device, real if b.is_floating_point() else b.dtype)
                for name, b in buffers.items()
            },
        )

    def outputs(self, point: Point, inputs: Inputs) -> Tensor:
        """Return the model's outputs there, shape (batch, ...)."""
        here = self.at(point)
        values = {**here.buffers, **unflatten(here.theta, self.shapes)}
        return functional_call(self.model, values, *arguments(inputs))

    def batch_loss(self, point: Point, inputs: Inputs, targets: Tensor) -> Tensor:
        """Return the mean loss of one batch, shape ()."""
        return self.loss_of_outputs(self.outputs(point, inputs), targets)

    def loss_of_outputs(self, z: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of one batch with these outputs, shape ()."""
        broadcasts = self.loss in BROADCASTING or isinstance(self.loss, BROADCASTING_MODULES)
        if broadcasts and z.shape != targets.shape:
            raise InputError(
                f"{self.spec['loss']} needs outputs and targets of one shape, got "
                f"{tuple(z.shape)} and {tuple(targets.shape)}: reshape the targets"
            )
        loss = self.loss(z, targets)
        if not isinstance(loss, Tensor) or loss.ndim:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise InputError(
                f"a loss needs to be one number, a tensor (), got {got}: take the mean"
            )
        return loss

    def mean(self, f: Callable[[int, Inputs, Tensor], Tensor]) -> Tensor:
        """Average f(i, inputs, targets), itself a mean over batch i, over all examples.

        Loss, gradient and every curvature product are such averages. This is the only
        loop over data, the only weight of a ragged last batch, the only collective;
        derivatives are taken inside f, so the collective is never differentiated.
        """
        total, count = self.theta.new_zeros(()), 0
        for i, batch in enumerate(self.batches):
            if not (isinstance(batch, tuple | list) and len(batch) == 2):
                raise InputError(
                    f"Objective needs batches (inputs, targets), got a {type(batch).__name__} as "
                    f"batch {i}: yield pairs"
                )
            inputs, targets = on_device(self.theta.device, batch[0]), batch[1].to(self.theta.device)
            weight = self.count(targets)
            try:
                value = f(i, inputs, targets)
            except (InputError, ComputationError, torch.OutOfMemoryError):
                raise
            except (RuntimeError, ValueError, IndexError, TypeError) as error:  # the user's
                raise ComputationError(
                    f"the model or the loss failed in batch {i}: {located(error)}"
                ) from error
            total = total + weight * value
            count += weight
        if not count:
            raise InputError("Objective needs a batch on each rank, got none: start fewer ranks")
        return mean_over_ranks(total, count)

    @property
    def is_sample(self) -> bool:
        """Whether the examples are a sample of the data, as the spec says."""
        return bool(self.spec.get("examples") != self.spec.get("of"))

    def sampling_error(self, f: Callable[[int, Inputs, Tensor], Tensor]) -> Tensor:
        """Return the standard error of ``mean(f)``, of a sample, as an estimate for all the data.

        From the scatter of the batches, which hold a sample in random order, with the correction
        for a finite population; NaN where there is but one batch.
        """
        x = self.mean(lambda *batch: f(*batch).double())
        scatter = self.mean(lambda *batch: (f(*batch).double() - x).square())
        batches = len(self.batches) if isinstance(self.batches, Sized) else 1
        left = 1 - self.spec["examples"] / self.spec["of"]  # of the data, not in the sample
        return (scatter / (batches - 1) * left).sqrt() if batches > 1 else x * torch.nan

    def value(self, point: Point) -> Tensor:
        """Return the mean loss there, shape (), summed in float64."""
        with torch.no_grad():
            return self.mean(lambda i, x, y: self.batch_loss(point, x, y).double())

    def gradient(self, point: Point) -> Tensor:
        """Return the gradient of the mean loss in theta, shape (n,)."""
        return self.value_and_gradient(point)[1]

    def value_and_gradient(self, point: Point) -> tuple[Tensor, Tensor]:
        """Return the mean loss, shape (), and its gradient, shape (n,), from one pass."""
        here = self.at(point)

        def both(i: int, inputs: Inputs, targets: Tensor) -> Tensor:
            theta = here.theta.detach().requires_grad_()
            value = self.batch_loss(Solution(theta, here.buffers), inputs, targets)
            slope = torch.zeros_like(here.theta)
            if value.requires_grad:
                (slope,) = torch.autograd.grad(value, theta, materialize_grads=True)
            return torch.cat([value.detach().to(slope)[None], slope])

        if torch.is_inference_mode_enabled():
            raise InputError("a gradient needs derivatives, got torch.inference_mode: leave it")
        with torch.enable_grad():
            mean = self.mean(both)
        return mean[0], mean[1:]

    def evaluate(self, point: Point) -> dict[str, Tensor]:
        """Return the mean loss and every metric there by name, in float64, from one pass."""

        def measured(i: int, inputs: Inputs, targets: Tensor) -> Tensor:
            z = self.outputs(point, inputs)
            loss = self.loss_of_outputs(z, targets)
            others = [f(z, targets) for f in self.metrics.values()]
            return torch.stack([loss.double(), *(x.double() for x in others)])

        with torch.no_grad():
            return dict(zip(("loss", *self.metrics), self.mean(measured), strict=True))


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the part of the examples whose largest output is at the target, shape ().

    >>> accuracy(torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.tensor([1, 1]))
    tensor(0.5000, dtype=torch.float64)
    """
    return (outputs.argmax(dim=1) == targets).double().mean()


def fingerprint(point: Solution) -> str:
    """Return the SHA-256 of theta and buffers, by which a spec names a point."""
    return digest(point.theta, *(point.buffers[name] for name in sorted(point.buffers)))


def arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return inputs as positional and keyword arguments of the model."""
    if isinstance(inputs, dict):
        return (), inputs
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def on_device(device: torch.device, inputs: Any) -> Any:
    """Return inputs with their tensors on the device."""
    if isinstance(inputs, dict):
        return {name: on_device(device, part) for name, part in inputs.items()}
    if isinstance(inputs, tuple | list):
        return tuple(on_device(device, part) for part in inputs)
    return inputs.to(device) if isinstance(inputs, Tensor) else inputs


def _require_fixed(batches: Batches) -> None:
    need = f"Objective needs the same batches at every iteration, got {type(batches).__name__}"
    if isinstance(batches, Iterator):
        raise InputError(f"{need}, which can be read once: pass list(batches)")
    if isinstance(batches, Sized) and not len(batches):
        raise InputError(f"{need} without a batch: start fewer ranks or give more data")
    if isinstance(batches, DataLoader):
        sampler = getattr(batches.batch_sampler, "sampler", batches.sampler)
        if isinstance(sampler, SHUFFLING) or getattr(sampler, "shuffle", False):
            raise InputError(f"{need} with {type(sampler).__name__}: pass shuffle=False")
        if batches.drop_last or getattr(batches.batch_sampler, "drop_last", False):
            raise InputError(f"{need} with drop_last=True: pass drop_last=False")
