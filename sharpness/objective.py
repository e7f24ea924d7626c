"""The function every other module studies: mean loss as a function of the parameters."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import (
    DataLoader,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from sharpness.batch_norm import by_batch, copied, layers, pooled, require_policy, watched
from sharpness.distributed import first_difference, mean_over_ranks, world_size
from sharpness.errors import ComputationError, InputError, OutOfMemoryError, is_out_of_memory
from sharpness.gemm import in_force
from sharpness.heap import keep_heap
from sharpness.names import located, named
from sharpness.options import require_one_of
from sharpness.results import Solution
from sharpness.signals import whole
from sharpness.vectors import digest, flatten, unflatten

Inputs = Tensor | tuple[Any, ...] | dict[str, Any]  # one, positional or keyword arguments
Batches = Iterable[tuple[Inputs, Tensor] | tuple[Inputs, Tensor, Tensor]]  # the third: weights
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
REDUCTIONS = ("mean", "sum", "none")
# In what one computes with weights of these dtypes: a product in bfloat16 would be off by 17 %.
COMPUTED_IN = {
    torch.float64: torch.float64,
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}
MEMORY = 2**33  # bytes: a constant, because what does not fit is computed in another order
LOOK = 7_346_219  # the seed of torch in a second look at the data: any that no one else takes


@dataclass(frozen=True)
class Weighted:
    """The targets of a batch and the weights of its losses."""

    targets: Tensor
    weights: Tensor  # of the shape of the losses, or its first axes: (batch,) for examples
    total: float  # their sum


Targets = Tensor | Weighted
BatchMean = Callable[[int, Inputs, Targets], Tensor]  # of the number of a batch and its parts


@dataclass(frozen=True)
class _Settled(Solution):
    """A point of one Objective, with all that its model depends on there."""


class Objective:
    """Mean loss of a model over a fixed data set, as a function of theta, shape (n,).

    Theta lists the parameters with ``requires_grad`` in the order of ``named_parameters``;
    frozen parameters and buffers belong to the function: a Solution brings its own, a bare theta
    takes those that the model came with. The model is evaluated in eval mode: under dropout the
    loss is no function of theta alone. Noise that is left then, in the model or in the batches,
    is refused at the first use, which evaluates the first batch twice.

    Args:
        model: Stays as it is, bit by bit: only a copy of its modules and buffers is used. Weights
            in bfloat16 or float16 are copied too: loss, gradient and curvature are those of
            float32 numbers with the same values, and so are inputs and targets.
        batches: ``(inputs, targets)``, the same in the same order at every iteration; or all
            ``(inputs, targets, weights)``, for a loss of reduction ``none``. With weights w_i of
            the losses l_i, of shape (batch,) or as the losses, the loss is sum w_i l_i / sum w_i
            over all the data, so that a weight of 2 is an example that is there twice.
        loss: Mean over one batch, as a function of (outputs, targets); outputs are what the model
            returns, of any structure.
        reduction: What the loss is instead of a ``mean``: the ``sum`` over a batch, which is
            divided by its count, or ``none`` for a tensor of losses, over all of which the mean
            is taken.
        metrics: Further such means by name, for ``evaluate``. Of a batch with weights, each
            example is measured by itself and weighs the sum of its weights.
        count: What a batch without weights weighs, as a function of its targets. Default: their
            number. It is what the loss divides by: for a mean over tokens, the number of tokens;
            for ``cross_entropy(..., weight=w)``, ``lambda y: w[y].sum()``.
        batch_norm: What layers with running statistics do (see ``sharpness.batch_norm``):
            ``frozen``, ``batch``, ``reestimate`` or ``interpolate``. Re-estimated statistics are
            taken anew at every point, by a pass over ``statistics`` in which each batch is
            normalized by its own, and are constants there: no derivative goes through them, so
            that the gradient is that of the loss under ``frozen`` with these statistics, and
            curvature that of its loss at the point where the operator was made.
        memory: Bytes for what is kept beside the model: half of it for the data, where they are
            read many times, and half for the graphs of curvature.
        statistics: Batches of the *training* part, also for an Objective on another part, from
            which ``reestimate`` computes; their targets only count.
        spec: What else there is to record, such as where the data come from.

    Raises:
        InputError: If ``batches`` cannot be repeated, are empty or shuffle, or if there are no
            ``statistics`` to re-estimate from; at the first use, if weights are negative, not
            finite, all 0 or of another shape than the losses.

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
        reduction: str = "mean",
        metrics: Mapping[str, Measure] | None = None,
        count: Callable[[Tensor], float | Tensor] = len,
        batch_norm: str = "frozen",
        statistics: Batches | None = None,
        memory: int = MEMORY,
        spec: Mapping[str, Any] | None = None,
    ) -> None:
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        kinds = {f"{p.dtype} on {p.device}" for p in trainable.values()}
        if len(kinds) != 1:
            raise InputError(
                "Objective needs trainable parameters of one dtype on one device, got "
                f"{', '.join(sorted(kinds)) or 'none'}: set requires_grad or convert the model"
            )
        weights = next(iter(trainable.values()))
        if weights.dtype not in COMPUTED_IN or weights.device.type == "meta":
            raise InputError(
                "Objective needs trainable parameters of real numbers, got "
                f"{weights.dtype} on {weights.device}: load them, or write complex ones as pairs"
            )
        _require_reduction(loss, reduction)
        _require_fixed(batches)
        if statistics is not None:
            _require_fixed(statistics)
        # A copy, for its own modes and running statistics survive the user's training on and
        # an interrupt.
        real = COMPUTED_IN[weights.dtype]
        self.is_widened = real != weights.dtype
        self.model = (deepcopy(model).to(real) if self.is_widened else copied(model)).eval()
        self.batches, self.loss, self.metrics = batches, loss, dict(metrics or {})
        self.reduction, self.count, self.statistics = reduction, count, statistics
        self.memory = memory
        self._looked_at: set[str] = set()  # what was found to be the same at a second look
        self._is_placed = False  # whether the model's parameters are views of theta
        self.shapes = {name: p.shape for name, p in trainable.items()}
        self.theta = flatten(trainable.values()).to(real)  # (n,)
        keep_heap()
        gemm = in_force(self.theta)
        self.spec = {
            "objective": named(type(model)),
            "loss": named(loss),
            "reduction": reduction,
            "metrics": {name: named(f) for name, f in self.metrics.items()},
            "parameters": len(self.theta),
            "dtype": str(real),
            **({"weights_dtype": str(weights.dtype)} if self.is_widened else {}),
            "device": self.theta.device.type,
            "threads": torch.get_num_threads(),
            **({"gemm": gemm} if gemm else {}),  # torch's default is what older files stand for
            "batch_norm": batch_norm,
            **(spec or {}),
        }
        self._set_policy(batch_norm)

    def under(self, batch_norm: str) -> "Objective":
        """Return the same mean loss under another policy of BatchNorm.

        Raises:
            InputError: If there is no such policy, or are no statistics to re-estimate from.
        """
        if batch_norm == self.batch_norm:
            return self
        other = copy(self)
        other.spec = {**self.spec, "batch_norm": batch_norm}
        other._set_policy(batch_norm)
        return other

    def over(self, batches: Batches, *, spec: Mapping[str, Any] | None = None) -> "Objective":
        """Return the same mean loss over other batches, such as some of the examples.

        Args:
            batches: As those of an Objective.
            spec: What its spec says otherwise.

        Raises:
            InputError: If they cannot be repeated, are empty or shuffle.
        """
        _require_fixed(batches)
        other = copy(self)
        other.batches, other.spec = batches, {**self.spec, **(spec or {})}
        other._looked_at = self._looked_at - {"batches"}
        return other

    def measuring(self, metrics: Mapping[str, Measure]) -> "Objective":
        """Return the same mean loss with other metrics."""
        other = copy(self)
        other.metrics = dict(metrics)
        other.spec = {**self.spec, "metrics": {name: named(f) for name, f in metrics.items()}}
        return other

    def kept(self) -> "Objective":
        """Return the same mean loss with batches that are read once and kept on the device.

        They are left where they are if they are more than half of ``memory``.
        """
        kept = self._kept(self.batches, "batches")
        return self if kept is self.batches else self.over(kept)

    def placed(self, point: Solution) -> "Objective":
        """Return the same mean loss for many points that are written to its theta, in turn.

        The parameters of its model are views of ``point.theta`` itself, which is its ``theta``:
        at that tensor, as it is at the time, a batch costs no more than a call of the model, and
        elsewhere what it costs here. The data are read once and kept on the device, unless they
        are more than half of ``memory``.

        Args:
            point: In the dtype and on the device of this objective; its buffers become the
                model's own.
        """
        own = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        values = {**point.buffers, **unflatten(point.theta, self.shapes)}
        frozen = {id(p): p for p in self.model.parameters()}
        placed = {
            id(own[name]): nn.Parameter(value, requires_grad=False)
            if isinstance(own[name], nn.Parameter)
            else value.clone()
            for name, value in values.items()
            if name in own
        }
        other = copy(self)
        other.model = deepcopy(self.model, frozen | placed)
        other.theta, other._is_placed = point.theta, True
        other.batches = self._kept(self.batches, "batches")
        if self.batch_norm == "reestimate" and self.statistics is not None:
            other.statistics = self._kept(self.statistics, "statistics")
        other._set_policy(self.batch_norm)
        return other

    def _kept(self, batches: Batches, name: str) -> Batches:
        """Return the batches in a list, on the device, unless they are too many."""
        kept: list[Any] = []
        left = self.memory // 2

        def keep(i: int, inputs: Inputs, targets: Targets) -> Tensor:
            if isinstance(targets, Weighted):
                kept.append((inputs, targets.targets, targets.weights))
            else:
                kept.append((inputs, targets))
            return self.theta.new_zeros(())

        for _ in self._each(batches, keep, name):
            left -= _bytes(kept[-1])
            if left < 0:
                return batches
        return kept

    def _set_policy(self, batch_norm: str) -> None:
        require_policy(batch_norm)
        norms = list(layers(self.model))
        if batch_norm == "reestimate" and norms and self.statistics is None:
            raise InputError(
                f"reestimate needs batches of the training part, got none for {norms[0]}: give "
                "them as statistics, or take an Objective from objective_of"
            )
        self.batch_norm = batch_norm
        own = norms and batch_norm in ("batch", "reestimate")
        self._by_batch = by_batch(self.model) if own else None

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

    def settled(self, point: Point) -> Solution:
        """Return the point with the buffers that the function has there, to be used many times.

        Cost: under ``reestimate`` a pass over the statistics, for a point that is not settled.
        """
        if isinstance(point, _Settled):
            return point
        here = self.at(point)
        fresh = self._statistics_at(here) if self.batch_norm == "reestimate" else {}
        return _Settled(here.theta, {**here.buffers, **fresh})

    def outputs(self, point: Point, inputs: Inputs) -> Tensor:
        """Return the model's outputs there, shape (batch, ...)."""
        z = self._forward(self.settled(point), inputs)
        # Not at any point: a user's theta may be traced by torch.func, and not be compared.
        if isinstance(point, _Settled) and "outputs" not in self._looked_at:
            self._look_again_at_outputs(point, inputs, z)
        return z

    def _forward(self, here: Solution, inputs: Inputs, *, estimate: bool = False) -> Tensor:
        values, model = dict(here.buffers), self.model
        if not (self._is_placed and here.theta is self.theta):
            values |= unflatten(here.theta, self.shapes)
        if self._by_batch is not None and (estimate or self.batch_norm == "batch"):
            model = self._by_batch
            known = {name for name, _ in [*model.named_parameters(), *model.named_buffers()]}
            values = {name: value for name, value in values.items() if name in known}
        if self.is_widened:
            inputs = _widened(inputs)
        args, options = arguments(inputs)
        z: Tensor = (
            functional_call(model, values, args, options) if values else model(*args, **options)
        )
        return z

    def _statistics_at(self, here: Solution) -> dict[str, Tensor]:
        """Return the running statistics there, from a pass over the training part."""
        if self._by_batch is None or self.statistics is None:
            return {}
        norms = layers(self.model)

        def forward(i: int, inputs: Inputs, targets: Targets) -> Tensor:
            self._forward(here, inputs, estimate=True)
            return here.theta.new_zeros(())

        with torch.no_grad(), watched(self._by_batch, list(norms)) as moments:
            for _ in self._each(self.statistics, forward, "statistics"):
                pass
        found: dict[str, Tensor] = {}
        for name, layer in norms.items():
            if moments[name]:  # a layer that is not used has none
                mean, variance = pooled(layer, moments[name])
                variance = variance.to(here.theta)
                found[f"{name}.running_mean"] = mean.to(here.theta)
                # One that overflows would switch its channel off, and leave a finite loss.
                found[f"{name}.running_var"] = variance.masked_fill(variance.isinf(), torch.nan)
        return found

    def _look_again_at_outputs(self, here: Solution, inputs: Inputs, z: Any) -> None:
        devices = [here.theta.device] if here.theta.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices):
            again = self._forward(here, inputs)
        if not _agree(z, again):
            raise InputError(
                f"Objective needs a model that gives the same outputs twice in eval mode, got two "
                f"different ones from {self.spec['objective']}: switch dropout and other noise "
                "off where self.training is false"
            )
        self._looked_at.add("outputs")

    def batch_loss(self, point: Point, inputs: Inputs, targets: Targets) -> Tensor:
        """Return the mean loss of one batch, shape ()."""
        return self.loss_of_outputs(self.outputs(point, inputs), targets)

    def loss_of_outputs(self, z: Tensor, targets: Targets) -> Tensor:
        """Return the mean loss of one batch with these outputs, shape ()."""
        if isinstance(targets, Weighted):
            return _weighted_mean(self._losses(z, targets.targets), targets)
        loss = self._losses(z, targets)
        if self.reduction == "none":
            return loss.mean()
        return loss / self.count(targets) if self.reduction == "sum" else loss

    def slope_of_outputs(self, z: Tensor, targets: Targets) -> Tensor:
        """Return the gradient of the mean loss of one batch in its outputs, at z, like z."""
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.loss_of_outputs(leaf, targets), leaf)
        return slope

    def _losses(self, z: Tensor, targets: Tensor) -> Tensor:
        """Return what the loss is of one batch, of the shape that its reduction declares."""
        broadcasts = self.loss in BROADCASTING or isinstance(self.loss, BROADCASTING_MODULES)
        if broadcasts and isinstance(z, Tensor) and z.shape != targets.shape:
            raise InputError(
                f"{self.spec['loss']} needs outputs and targets of one shape, got "
                f"{tuple(z.shape)} and {tuple(targets.shape)}: reshape the targets"
            )
        loss = self.loss(z, targets)
        many = self.reduction == "none"
        if not isinstance(loss, Tensor) or (loss.ndim > 0) != many:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            need = "a tensor of losses" if many else "one number, a tensor ()"
            raise InputError(
                f"a loss of reduction {self.reduction} needs to be {need}, got {got}: take the "
                "mean, or declare what it is by reduction"
            )
        return loss

    def mean(self, f: BatchMean) -> Tensor:
        """Average f(i, inputs, targets), itself a mean over batch i, over all examples.

        Loss, gradient and every curvature product are such averages. This is the only
        loop over data, the only weight of a ragged last batch, the only collective;
        derivatives are taken inside f, so the collective is never differentiated.
        """
        self._require_one_model()
        total, sum_of_weights = self.theta.new_zeros(()), 0.0
        for weight, value in self._each(self.batches, f, "batches"):
            # The mean over a batch that weighs nothing is 0 / 0.
            total = total + (weight * value if weight else torch.zeros_like(value))
            sum_of_weights += weight
        mean = mean_over_ranks(total, sum_of_weights)
        if not sum_of_weights and mean.isnan().any():  # nor on another rank
            raise InputError(
                "Objective needs a batch that weighs more than 0, got none: change the weights "
                "or the count"
            )
        return mean

    def _require_one_model(self) -> None:
        """Refuse ranks whose models or options differ: their mean would be that of no model."""
        if world_size() == 1 or "ranks" in self._looked_at:
            return
        self._looked_at.add("ranks")
        facts = {key: str(self.spec[key]) for key in ("loss", "dtype", "batch_norm")}
        blocks = unflatten(self.theta, self.shapes)
        found = first_difference(facts | {name: digest(block) for name, block in blocks.items()})
        if found:
            raise InputError(
                f"Objective needs one model on all ranks, got another {found[0]} on rank "
                f"{found[1]} than on rank 0: load the same weights and options everywhere"
            )

    def first_not_finite(
        self, f: BatchMean, of: Literal["batches", "statistics"] = "batches"
    ) -> tuple[int, Tensor] | None:
        """Return the number of the first batch where f is not finite, and f there, or None."""
        for i, (weight, value) in enumerate(self._each(getattr(self, of), f, of)):
            if weight and not torch.isfinite(value).all():
                return i, value
        return None

    def first(self, f: BatchMean) -> Tensor:
        """Return f of the first batch."""
        return next(self._each(self.batches, f, "batches"))[1]

    def _each(self, batches: Batches, f: BatchMean, name: str) -> Iterator[tuple[float, Tensor]]:
        """Yield the weight of each batch and f there."""
        self._require_gemm()
        looked, parts = name in self._looked_at, 0
        first = None if looked else _first(batches)
        for i, batch in enumerate(batches):
            _require_batch(i, batch, parts)
            parts = len(batch)
            if not looked and i == 0:
                _require_same(first, batch, batches)
                self._looked_at.add(name)
            inputs, targets = on_device(self.theta.device, batch[0]), self._targets(i, *batch[1:])
            weight = self._weight(targets)
            try:
                with whole():
                    value = f(i, inputs, targets)
            except (InputError, ComputationError):
                raise
            except (
                RuntimeError,
                ValueError,
                LookupError,
                TypeError,
                AttributeError,
                MemoryError,
            ) as error:
                if is_out_of_memory(error):
                    raise self._out_of_memory(i, batch[1], error) from error
                # The user's: of a model or a loss.
                raise ComputationError(
                    f"the model or the loss failed in batch {i}: {located(error)}"
                ) from error
            yield weight, value
        if not parts:
            raise InputError("Objective needs a batch on each rank, got none: start fewer ranks")

    def _out_of_memory(self, i: int, targets: Any, error: Exception) -> OutOfMemoryError:
        examples = len(targets) if isinstance(targets, Sized) else 1
        splits = self._by_batch is None and examples > 1
        if self._by_batch is not None:
            remedy = "statistics of batches change with a split, so take frozen ones"
        else:
            remedy = "make batches smaller" if splits else "free some, or take a smaller model"
        count = f"{examples} examples" if examples > 1 else "1 example"
        return OutOfMemoryError(
            f"batch {i}, of {count}, needs more memory than there is ({located(error)}): {remedy}",
            examples=examples,
            splits=splits,
        )

    def _require_gemm(self) -> None:
        made, now = (x or "torch's own" for x in (self.spec.get("gemm"), in_force(self.theta)))
        if made != now:
            raise InputError(
                f"Objective needs the matrix product that it was made under, {made}, got {now}: "
                "make and use it in one place, inside of sh.fast_gemm() or outside"
            )

    def _targets(self, i: int, targets: Tensor, weights: Tensor | None = None) -> Targets:
        """Return the targets of batch i on the device of theta, with their weights if there are."""
        targets = targets.to(self.theta.device)
        if self.is_widened:
            targets = _widened(targets)
        if weights is None:
            return targets
        if self.reduction != "none":
            raise InputError(
                f"weights need a loss of reduction none, got {self.reduction}: declare "
                'reduction="none" and give the loss of each example'
            )
        # Before they move, so that a GPU is not waited for.
        low, total = torch.stack([weights.double().min(), weights.double().sum()]).tolist()
        if not (low >= 0 and math.isfinite(total)):
            raise InputError(
                f"weights need to be finite and at least 0, got {total if low >= 0 else low} in "
                f"batch {i}: change them"
            )
        return Weighted(targets, weights.to(self.theta.device), total)

    def _weight(self, targets: Targets) -> float:
        """Return what a batch weighs in a mean."""
        if isinstance(targets, Weighted):
            return targets.total
        weight = float(self.count(targets))
        if not (weight >= 0 and math.isfinite(weight)):
            raise InputError(
                f"count needs to give a finite number of at least 0, got {weight}: change it"
            )
        return weight

    def weight(self) -> float:
        """Return what all batches weigh: the number of targets, or the sum of counts or weights."""
        none = self.theta.new_zeros(())
        return math.fsum(
            weight for weight, _ in self._each(self.batches, lambda *_: none, "batches")
        )

    @property
    def is_sample(self) -> bool:
        """Whether the examples are a sample of the data, as the spec says."""
        return bool(self.spec.get("examples") != self.spec.get("of"))

    def sampling_error(self, f: BatchMean) -> Tensor:
        """Return the standard error of ``mean(f)``, of a sample, as an estimate for all the data.

        From the scatter of the batches, which hold a sample in random order, with the correction
        for a finite population; NaN where there is but one batch. To first order, for batches
        of different weight: a mean is then the ratio of two sums, and both of them scatter.
        """
        weights: list[float] = []

        def noted(i: int, inputs: Inputs, targets: Targets) -> Tensor:
            weights.append(self._weight(targets))
            return f(i, inputs, targets).double()

        x = self.mean(noted)
        usual = math.fsum(weights) / len(weights)

        def scatter(i: int, inputs: Inputs, targets: Targets) -> Tensor:
            return self._weight(targets) / usual * (f(i, inputs, targets).double() - x).square()

        left = 1 - self.spec["examples"] / self.spec["of"]  # of the data, not in the sample
        if len(weights) == 1:
            return x * torch.nan
        return (self.mean(scatter) / (len(weights) - 1) * left).sqrt()

    def value(self, point: Point) -> Tensor:
        """Return the mean loss there, shape (), summed in float64."""
        here = self.settled(point)
        with torch.no_grad():
            return self.mean(lambda i, x, y: self.batch_loss(here, x, y).double())

    def gradient(self, point: Point) -> Tensor:
        """Return the gradient of the mean loss in theta, shape (n,)."""
        return self.value_and_gradient(point)[1]

    def value_and_gradient(self, point: Point) -> tuple[Tensor, Tensor]:
        """Return the mean loss, shape (), and its gradient, shape (n,), from one pass."""
        here = self.settled(point)

        def both(i: int, inputs: Inputs, targets: Targets) -> Tensor:
            value, slope = self.batch_gradient(here, inputs, targets)
            return torch.cat([value.to(slope)[None], slope])

        if torch.is_inference_mode_enabled():
            raise InputError("a gradient needs derivatives, got torch.inference_mode: leave it")
        with torch.enable_grad(), self.with_native_rnn():
            mean = self.mean(both)
        return mean[0], mean[1:]

    def batch_gradient(
        self, point: Point, inputs: Inputs, targets: Targets
    ) -> tuple[Tensor, Tensor]:
        """Return the mean loss of one batch, shape (), and its gradient, shape (n,)."""
        here = self.settled(point)
        theta = here.theta.detach().requires_grad_()
        value = self.batch_loss(replace(here, theta=theta), inputs, targets)
        slope = torch.zeros_like(here.theta)
        if value.requires_grad:
            (slope,) = torch.autograd.grad(value, theta, materialize_grads=True)
        return value.detach(), slope

    @property
    def evaluated(self) -> nn.Module:
        """The modules that outputs come from; others where a batch has its own statistics."""
        own = self._by_batch if self.batch_norm == "batch" else None
        return self.model if own is None else own

    @property
    def is_recurrent(self) -> bool:
        """Whether the model has LSTM, GRU or RNN layers."""
        return any(isinstance(part, nn.RNNBase) for part in self.model.modules())

    @contextmanager
    def with_native_rnn(self) -> Iterator[None]:
        """Compute recurrent layers without cuDNN meanwhile, as torch itself does.

        Those of cuDNN have no second derivative, and in eval mode not even a first one.
        """
        if not self.is_recurrent:
            yield
            return
        before = torch.backends.cudnn.enabled
        torch.backends.cudnn.enabled = False
        try:
            yield
        finally:
            torch.backends.cudnn.enabled = before

    def evaluate(self, point: Point) -> dict[str, Tensor]:
        """Return the mean loss and every metric there by name, in float64, from one pass."""
        here = self.settled(point)

        def measured(i: int, inputs: Inputs, targets: Targets) -> Tensor:
            z = self.outputs(here, inputs)
            return self.measured_outputs(z, targets, self.loss_of_outputs(z, targets))

        with torch.no_grad():
            return dict(zip(("loss", *self.metrics), self.mean(measured), strict=True))

    def shares(self, model: nn.Module) -> bool:
        """Say whether its model has the very parameters of another, and no buffers."""
        own, others = map(id, self.model.parameters()), map(id, model.parameters())
        return next(self.model.buffers(), None) is None and list(own) == list(others)

    def evaluate_shared(self) -> dict[str, Tensor]:
        """Return what ``evaluate`` gives at the present parameters of a model that it ``shares``.

        It does not set them, which a small network takes half a pass for.
        """
        other = copy(self)
        other._is_placed = True  # theta stands for what is there
        return other.evaluate(other.theta)

    def evaluate_with_gradient(self, point: Point) -> tuple[dict[str, Tensor], Tensor]:
        """Return what ``evaluate`` gives there and the gradient, shape (n,), from one pass.

        At the theta of an objective that was ``placed`` it costs no more than the gradients of the
        model's own parameters and their sum.
        """
        here = self.settled(point)
        numbers = here.theta.new_zeros(1 + len(self.metrics), dtype=torch.float64)
        slope, sum_of_weights = torch.zeros_like(here.theta), 0.0
        is_own = self._is_placed and here.theta is self.theta
        own = dict(self.model.named_parameters())
        leaves: list[Tensor] = [here.theta.detach()]
        if is_own:
            leaves = [own[name] for name in self.shapes]
        sums = list(unflatten(slope, self.shapes).values()) if is_own else [slope]
        there = here if is_own else replace(here, theta=leaves[0])

        def add(i: int, inputs: Inputs, targets: Targets) -> Tensor:
            nonlocal sum_of_weights
            z = self.outputs(there, inputs)
            loss = self.loss_of_outputs(z, targets)
            weight = self._weight(targets)
            if weight:  # the mean over a batch that weighs nothing is 0 / 0
                sum_of_weights += weight
                with torch.no_grad():
                    numbers.add_(self.measured_outputs(z, targets, loss), alpha=weight)
                if loss.requires_grad:
                    parts = torch.autograd.grad(loss, leaves, allow_unused=True)
                    for total, part in zip(sums, parts, strict=True):
                        if part is not None:
                            total.add_(part, alpha=weight)
            return numbers[0]

        if torch.is_inference_mode_enabled():
            raise InputError("a gradient needs derivatives, got torch.inference_mode: leave it")
        with torch.enable_grad(), self.with_native_rnn(), _derived(leaves):
            self.mean(add)
        found = mean_over_ranks(numbers, sum_of_weights)
        named_numbers = dict(zip(("loss", *self.metrics), found, strict=True))
        return named_numbers, mean_over_ranks(slope, sum_of_weights)

    def measured_outputs(self, z: Tensor, targets: Targets, loss: Tensor) -> Tensor:
        """Return the loss of one batch with these outputs and its metrics, (1 + m,), float64."""
        others = [_metric(f, z, targets) for f in self.metrics.values()]
        return torch.stack([loss.double(), *(x.double() for x in others)])


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


def _bytes(inputs: Any) -> int:
    """Return what the tensors of inputs take."""
    if isinstance(inputs, dict):
        inputs = tuple(inputs.values())
    if isinstance(inputs, tuple | list):
        return sum(map(_bytes, inputs))
    return inputs.nbytes if isinstance(inputs, Tensor) else 0


def _widened(inputs: Any) -> Any:
    """Return inputs with their tensors of reduced precision in float32."""
    if isinstance(inputs, dict):
        return {name: _widened(part) for name, part in inputs.items()}
    if isinstance(inputs, tuple | list):
        return tuple(_widened(part) for part in inputs)
    narrow = isinstance(inputs, Tensor) and inputs.dtype in COMPUTED_IN
    return inputs.to(COMPUTED_IN[inputs.dtype]) if narrow else inputs


@contextmanager
def _derived(leaves: list[Tensor]) -> Iterator[None]:
    """Let derivatives be taken in these meanwhile."""
    try:
        for leaf in leaves:
            leaf.requires_grad_()
        yield
    finally:
        for leaf in leaves:
            leaf.requires_grad_(False)


def _weighted_mean(losses: Tensor, of: Weighted) -> Tensor:
    """Return sum w l / sum w over the losses of one batch, shape ()."""
    w = of.weights
    if not w.ndim or w.shape != losses.shape[: w.ndim]:
        raise InputError(
            f"weights need the shape of the losses, {tuple(losses.shape)}, or its first axes, got "
            f"{tuple(w.shape)}: give one for each example"
        )
    each = losses.reshape(*w.shape, -1).mean(dim=-1)
    return (w.to(losses) * each).sum() / of.total


def _metric(f: Measure, z: Any, targets: Targets) -> Tensor:
    """Return a metric of one batch, in which the examples have their weights, shape ()."""
    if not isinstance(targets, Weighted):
        return f(z, targets)
    y, w = targets.targets, targets.weights
    if not isinstance(z, Tensor) or len(w) != len(y):
        raise InputError(
            "metrics of batches with weights need outputs in one tensor and a weight for each "
            f"example, got a {type(z).__name__} and {len(w)} for {len(y)}: leave metrics out"
        )
    # A mean over a batch of one is that of the example.
    each = torch.stack([f(z[i : i + 1], y[i : i + 1]).double() for i in range(len(y))])
    return (w.reshape(len(w), -1).sum(dim=1) * each).sum() / targets.total


def _require_batch(i: int, batch: Any, parts: int) -> None:
    """Refuse what is no batch, or has other parts than the batches before it."""
    if not (isinstance(batch, tuple | list) and len(batch) in (2, 3)):
        raise InputError(
            "Objective needs batches (inputs, targets) or (inputs, targets, weights), got a "
            f"{type(batch).__name__} as batch {i}: yield pairs"
        )
    if len(batch) == 3 and not (isinstance(batch[2], Tensor) and batch[2].numel()):
        raise InputError(
            f"weights need to be a tensor with entries, got a {type(batch[2]).__name__} in batch "
            f"{i}: give one for each example"
        )
    if parts not in (0, len(batch)):
        raise InputError(
            f"Objective needs weights in all batches or in none, got {len(batch)} parts in batch "
            f"{i} after {parts}: give weights of 1 to the others"
        )


def _require_reduction(loss: Any, reduction: str) -> None:
    require_one_of(REDUCTIONS, reduction=reduction)
    # Of a module of torch, or of a function with this option bound.
    own = getattr(loss, "reduction", None) or getattr(loss, "keywords", {}).get("reduction")
    if own in REDUCTIONS and own != reduction:
        raise InputError(
            f'a loss needs to be of the reduction {reduction}, got one with reduction="{own}": '
            "take the mean, or declare what it is by reduction"
        )


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


def _first(batches: Batches) -> Any:
    """Return the first batch of a pass of its own, under other random numbers than the next."""
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(LOOK)
        return next(iter(batches), None)


def _require_same(first: Any, batch: Any, batches: Batches) -> None:
    if first is batch or _agree(first, batch, exact=True):
        return
    raise InputError(
        f"Objective needs the same batches at every iteration, got {type(batches).__name__} whose "
        "first batch differs at a second look: switch shuffling and random augmentation off"
    )


def _agree(one: Any, other: Any, *, exact: bool = False) -> bool:
    """Say whether two nests of tensors are the same, to rounding unless exactly."""
    if is_dataclass(one) and is_dataclass(other):
        one, other = ([getattr(x, f.name) for f in fields(x)] for x in (one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(
            _agree(one[name], other[name], exact=exact) for name in one
        )
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(
            _agree(a, b, exact=exact) for a, b in zip(one, other, strict=True)
        )
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        return True  # what is no tensor has no numbers to compare
    if one.shape != other.shape:
        return False
    if exact or not one.is_floating_point():
        return torch.equal(one.nan_to_num(), other.nan_to_num())
    # Without a graph, or on a GPU, another kernel may round otherwise.
    finite = torch.isfinite(one)
    if not torch.equal(finite, torch.isfinite(other)):
        return False
    gap, scale = (one - other)[finite].abs(), one[finite].abs()
    return not len(gap) or bool(gap.max() <= torch.finfo(one.dtype).eps ** 0.5 * scale.max())
