"""Methods by name: along which gradient the optimizer steps in one update, and how often.

A method is a function ``(task, **options)`` of the batch of this update. It works around any
optimizer, also one that evaluates the loss several times (L-BFGS), and knows nothing of the loop
that calls it: the parameters are those of the optimizer. The first loss that it evaluates is that
of the batch as it is, at the weights where the update begins, before any gradient has changed;
the running statistics of BatchNorm move by that pass alone, once per update.

Letters: x weights, x_k those where the update begins, f loss on the batch, g its gradient at x_k.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sharpness.batch_norm import layers
from sharpness.data import batches
from sharpness.errors import InputError
from sharpness.objective import arguments
from sharpness.options import Values, is_number, is_whole, require_entry


@dataclass(frozen=True)
class Task:
    """What one update is made from: a model in training mode, its loss, a batch, an optimizer."""

    model: nn.Module
    loss: Callable[[Any, Tensor], Tensor]  # of outputs and targets: the mean over the batch, ()
    inputs: Any
    targets: Tensor
    optimizer: torch.optim.Optimizer
    ghost_batch: int | None = None  # examples that BatchNorm normalizes together
    clip_norm: float | None = None  # of a gradient that is stepped along, at most
    autocast: torch.dtype | None = None  # of passes in mixed precision

    @property
    def parameters(self) -> list[Tensor]:
        """The tensors that the optimizer updates."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def outputs(self, inputs: Any) -> Any:
        """Return what the model makes of inputs."""
        args, options = arguments(inputs)
        with self._precision():
            return self.model(*args, **options)

    def of_outputs(self, outputs: Any, targets: Tensor) -> Tensor:
        """Return the loss of outputs, in the precision that torch gives a loss beside theirs."""
        with self._precision():
            return self.loss(outputs, targets)

    def _precision(self) -> AbstractContextManager[Any]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.targets.device.type, self.autocast)

    def value(self, inputs: Any) -> Tensor:
        """Return the loss on the batch with these inputs, with its graph.

        Ghost batches go through the model one after the other, so that with q = momentum the
        running statistics of S of them become (1 - q)^S mu + sum_i (1 - q)^(S - i) q mu_i.

        Source: E. Hoffer, I. Hubara, D. Soudry (2017), Train longer, generalize better, section 4.
        """
        total, ghost = len(self.targets), self.ghost_batch
        if ghost is None or ghost >= total:
            return self.of_outputs(self.outputs(inputs), self.targets)
        parts = batches((inputs, self.targets), ghost)
        values = [len(y) / total * self.of_outputs(self.outputs(x), y) for x, y in parts]
        return torch.stack(values).sum()


def plain(task: Task) -> None:
    """Step along the gradient of the loss on the batch."""
    _step(task, lambda: _backward(task, task.value(task.inputs)))


def sam(task: Task, *, rho: float = 0.05) -> None:
    """Step along the gradient at x_k + e, where e = rho g / |g|: sharpness-aware minimization.

    It is that of Foret et al. (2021), with the norm over all parameters
    together and without the term of second order. Where g is 0, so is e. Two passes; dropout
    draws anew in the second.

    Args:
        task: The batch.
        rho: Above 0, the length of e; the default is the paper's.
    """
    _ascend(task, rho, torch.ones_like)


def asam(task: Task, *, rho: float = 0.5, eta: float = 0.01) -> None:
    """Step along the gradient at x_k + e, where e = rho T^2 g / |T g| and T = diag(|x_k| + eta).

    That is adaptive SAM (Kwon et al. 2021), in which |T^-1 e| = rho: SAM in units of the
    weights. T is that of all parameters, as the definition has it, so that with eta = 0 the
    rescaling of layers moves e with the weights; the paper's code leaves biases at T = 1.

    Args:
        task: The batch.
        rho: Above 0; the default is the paper's for CIFAR-10.
        eta: At least 0; the default is the paper's.
    """
    _ascend(task, rho, lambda p: p.abs() + eta)


def proximal(task: Task, *, strength: float = 1e-3, steps: int = 3) -> None:
    """Step towards argmin f(x) + strength / 2 |x - x_k|^2.

    That is conservative training (Li et al. 2014), its sub-problem solved inexactly by steps of
    the optimizer, which keeps its state from one update to the next. In the limit of many steps
    on a quadratic, x - x_k = -(H + strength I)^-1 g.

    Args:
        task: The batch.
        strength: Above 0; the default, and that of steps, are those of Keskar et al. (2017), who
            took steps of Adam.
        steps: Of the optimizer in one update, at least 1.
    """
    anchors = [p.detach().clone() for p in task.parameters]

    def pulled() -> Tensor:
        value = _backward(task, task.value(task.inputs))
        with torch.no_grad():
            for p, anchor in zip(task.parameters, anchors, strict=True):
                if p.grad is not None:
                    p.grad.add_(p - anchor, alpha=strength)
                    value = value + strength / 2 * (p - anchor).square().sum()
        return value

    for i in range(steps):
        _step(task, pulled, moves_statistics=i == 0)


def adversarial(task: Task, *, epsilon: float = 0.1, clean: float = 0.5) -> None:
    """Step along the gradient of clean f(z) + (1 - clean) f(z + epsilon sign(df/dz)).

    z are the inputs, and the moved ones are constants: adversarial training by the fast gradient
    sign method (Goodfellow et al. 2015). Two passes.

    Args:
        task: The batch.
        epsilon: Above 0, in units of the inputs.
        clean: From 0 to 1; the default is the paper's.

    Raises:
        InputError: If the inputs are whole numbers, which no gradient moves.
    """

    def both() -> Tensor:
        inputs = _moved(task.inputs, lambda z: z.detach().clone().requires_grad_())
        value = clean * _backward(task, task.value(inputs))
        for p in task.parameters:
            if p.grad is not None:
                p.grad.mul_(clean)
        attacked = _moved(inputs, lambda z: _attacked(z, epsilon))
        with _statistics_kept(task.model):
            other = (1 - clean) * task.value(attacked)
            torch.autograd.backward(other)
        return value + other.detach()

    _step(task, both)


def stability(task: Task, *, alpha: float = 0.01, sigma: float = 0.04) -> None:
    """Step along the gradient of f + alpha D, D how far the outputs at noisy inputs are.

    D is the mean over examples of the squared distance between the outputs at z and those at
    z + N(0, sigma^2), which torch draws: stability training (Zheng et al. 2016) with the squared
    Euclidean distance. Two passes.

    Args:
        task: The batch.
        alpha: At least 0.
        sigma: Above 0, in units of the inputs.

    Raises:
        InputError: If the inputs are whole numbers, to which no noise is added.
    """

    def both() -> Tensor:
        outputs = task.outputs(task.inputs)
        value = task.of_outputs(outputs, task.targets)
        noisy = _moved(task.inputs, lambda z: z + sigma * torch.randn_like(z))
        with _statistics_kept(task.model):
            away = (outputs - task.outputs(noisy)).to(value.dtype)
            distance = away.square().sum() / len(away)
            return _backward(task, value + alpha * distance)

    _step(task, both)


METHODS: dict[str, Callable[..., None]] = {
    "plain": plain,
    "sam": sam,
    "asam": asam,
    "proximal": proximal,
    "adversarial": adversarial,
    "stability": stability,
}
VALUES: Values = {
    **{
        name: ("a number above 0", lambda x: is_number(x) and x > 0)
        for name in ("rho", "strength", "epsilon", "sigma")
    },
    **{name: ("a number of at least 0", lambda x: is_number(x, 0)) for name in ("eta", "alpha")},
    "clean": ("a number from 0 to 1", lambda x: is_number(x, 0, 1)),
    "steps": ("a whole number of at least 1", lambda x: is_whole(x, 1)),
}


def require_method(name: str, options: Mapping[str, Any]) -> None:
    """Refuse a method that is unknown, or options that it does not take.

    Raises:
        InputError: If the name or an option is unknown, or a value is not in its range.
    """
    require_entry("method", METHODS, name, options, VALUES, given=1)


def _step(task: Task, gradient: Callable[[], Tensor], *, moves_statistics: bool = True) -> None:
    """Let the optimizer step along the gradient that ``gradient`` leaves in the parameters.

    Args:
        task: The batch.
        gradient: Returns the value of which that is the gradient.
        moves_statistics: Whether its first call moves the running statistics.
    """
    moves = moves_statistics

    def evaluate() -> Tensor:
        nonlocal moves
        with nullcontext() if moves else _statistics_kept(task.model):
            moves = False
            value = gradient()
        if task.clip_norm is not None:
            nn.utils.clip_grad_norm_(task.parameters, task.clip_norm)
        return value

    task.optimizer.step(evaluate)  # type: ignore[arg-type]  # torch's step takes a tensor too


def _backward(task: Task, value: Tensor) -> Tensor:
    """Leave the gradient of a value in the parameters, and return the value without its graph."""
    task.optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(value)
    return value.detach()


def _ascend(task: Task, rho: float, scale: Callable[[Tensor], Tensor]) -> None:
    """Step along the gradient at x_k + rho T^2 g / |T g|, T the scale of each parameter."""

    def gradient() -> Tensor:
        value = _backward(task, task.value(task.inputs))
        with torch.no_grad():
            used = [(p, p.grad) for p in task.parameters if p.grad is not None]
            scales = [scale(p) for p, _ in used]
            scaled = [t * g for t, (_, g) in zip(scales, used, strict=True)]
            norm = torch.stack([torch.linalg.vector_norm(x) for x in scaled]).norm()
            length = torch.where(norm > 0, rho / norm, 0.0)
            ways = [length * t * x for t, x in zip(scales, scaled, strict=True)]
        with _statistics_kept(task.model), _displaced([p for p, _ in used], ways):
            _backward(task, task.value(task.inputs))
        return value

    _step(task, gradient)


@contextmanager
def _displaced(parameters: list[Tensor], ways: list[Tensor]) -> Iterator[None]:
    """Move the parameters meanwhile, and set them to what they were, to the last bit."""
    before = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p, way in zip(parameters, ways, strict=True):
            p.add_(way)
    try:
        yield
    finally:
        with torch.no_grad():
            for p, was in zip(parameters, before, strict=True):
                p.copy_(was)


@contextmanager
def _statistics_kept(model: nn.Module) -> Iterator[None]:
    """Leave the running statistics as they are, whatever passes there are meanwhile.

    They are set back only at the end, because the graph of a pass refers to its own buffers.
    """
    buffers = [b for layer in layers(model).values() for b in layer.buffers(recurse=False)]
    before = [b.clone() for b in buffers]
    try:
        yield
    finally:
        for b, was in zip(buffers, before, strict=True):
            b.copy_(was)


def _attacked(z: Tensor, epsilon: float) -> Tensor:
    slope = torch.zeros_like(z) if z.grad is None else z.grad
    return z.detach() + epsilon * slope.sign()


def _moved(inputs: Any, f: Callable[[Tensor], Tensor]) -> Any:
    """Return inputs with f of each tensor of real numbers; others, such as masks, stay."""
    found = 0

    def moved(part: Any) -> Any:
        nonlocal found
        if isinstance(part, dict):
            return {name: moved(x) for name, x in part.items()}
        if isinstance(part, tuple | list):
            return tuple(moved(x) for x in part)
        if isinstance(part, Tensor) and part.is_floating_point():
            found += 1
            return f(part)
        return part

    result = moved(inputs)
    if not found:
        raise InputError(
            "adversarial and stability need inputs of real numbers, to move them, got whole ones: "
            "choose another method"
        )
    return result
