"""Several trainings that differ in their seeds alone, in one go: small networks share each step.

The weights of all networks are stacked, one update is one forward and one backward pass of the
stack (``torch.func``), and one step of an optimizer whose rule treats each number by itself. A
member that meets its own end leaves the stack, and the others go on.
"""

import json
import logging
import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sharpness.data import size, take
from sharpness.objective import arguments, on_device
from sharpness.optimizers import ELEMENTWISE, OPTIMIZERS
from sharpness.problem import seeded
from sharpness.results import Run
from sharpness.training import (
    TrainConfig,
    _Training,
    cpu_threads,
    problem_of,
    record,
    remarks,
    resolved,
    train,
)

SEEDS: dict[str, Any] = {
    "seed": 0,
    "order_seed": 0,
    "split_seed": 0,
}  # all that members may differ in
# The fields that a stack does justice to; one that is not here, and is set, is trained by itself.
KNOWN = {
    *("model", "model_options", "data", "loss", "train_examples", "label_noise", "batch_size"),
    *("optimizer", "learning_rate", "momentum", "nesterov", "weight_decay", "optimizer_options"),
    *("rate_scaling", "base_batch_size", "batches", "data_options"),
    *("epochs", "updates", "examples", "stop_loss", "patience", "min_improvement"),
    *("check_every", "checkpoint_losses"),
    *("seed", "order_seed", "split_seed", "dtype", "device", "threads"),
}
# What treats each number by itself.
ACTIVATIONS = (
    *(nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.ELU, nn.SELU, nn.SiLU, nn.Softplus, nn.LeakyReLU),
    *(nn.Hardtanh, nn.Identity),
)
SAME = 1e-3  # of a loss: a stack that is another function is off by more, rounding by far less

LOG = logging.getLogger(__name__)
Values = dict[str, Tensor]  # by the names of parameters and buffers, (members, ...) each


def train_all(
    configs: Sequence[TrainConfig],
    *,
    progress: Callable[[int, int | None, str], None] | None = None,
    tell: Callable[[str], None] = LOG.warning,
) -> list[Run]:
    """Return the runs of these trainings, in their order, each as ``train`` returns it.

    Trainings that differ in nothing but their seeds are trained in one stack where the network
    and the optimizer allow it; all others one by one. In a stack sums round otherwise: a run is
    that of ``train`` to rounding, and the same again every time. Networks are left out that have
    running statistics, dropout or another chance in training mode, or operations that
    ``torch.func.vmap`` does not know, and so is L-BFGS, whose steps depend on all numbers together.

    Args:
        configs: Of each training; each ends by itself, at its own training loss.
        progress: Called after each training with how many are done.
        tell: Called with what is allowed and likely not meant.

    Raises:
        InputError: If a configuration cannot be met.
        ComputationError: If a training loss stops being finite.

    >>> configs = [TrainConfig(batch_size=100, updates=5, seed=seed) for seed in (0, 1)]
    >>> one, other = train_all(configs)
    >>> one.updates, other.spec["train"]["seed"]
    (5, 1)
    >>> torch.allclose(other.end.theta, train(configs[1]).end.theta, atol=1e-5)
    True
    """
    ready = [resolved(config) for config in configs]
    found: dict[int, Run] = {}

    def done(i: int, run: Run) -> None:
        found[i] = run
        if progress:
            progress(len(found), len(ready), f"seed {ready[i].seed}, {run.updates} updates")

    for members in _groups(ready):
        stack = _stack([ready[i] for i in members]) if len(members) > 1 else None
        if stack is not None:
            LOG.info("train_all: %d trainings in one stack", len(members))
            for t in stack.members:
                for remark in remarks(t.config, size(t.problem.data.train)):
                    tell(remark)
            for i, run in zip(members, _train(stack), strict=True):
                done(i, run)
            continue
        for i in members:
            done(i, train(ready[i], tell=tell))
    return [found[i] for i in range(len(ready))]


def _groups(configs: list[TrainConfig]) -> list[list[int]]:
    """Return the numbers of those that differ in their seeds alone, together."""
    groups: dict[Any, list[int]] = {}
    for i, config in enumerate(configs):
        objects = [id(x) for x in (config.model, config.data, config.loss)]
        told = json.dumps(record(replace(config, **SEEDS)), sort_keys=True)
        names = [isinstance(x, str) for x in (config.model, config.data, config.loss)]
        # Objects of one class have one record.
        unlike = tuple(None if known else x for known, x in zip(names, objects, strict=True))
        groups.setdefault((told, unlike), []).append(i)
    return list(groups.values())


class _Stack:
    """Members whose weights lie in one tensor for each parameter of the network."""

    def __init__(self, members: list[_Training]) -> None:
        self.members = members
        self.shape = deepcopy(members[0].model)  # of the forward pass; its numbers are not used
        self.layers = _layered(self.shape)
        models = [t.model for t in members]
        states = [{**dict(m.named_parameters()), **dict(m.named_buffers())} for m in models]
        trainable = {n for n, p in members[0].model.named_parameters() if p.requires_grad}
        self.values: Values = {
            name: torch.stack([state[name].detach() for state in states]) for name in states[0]
        }
        self.parameters = {
            name: nn.Parameter(self.values[name]) for name in self.values if name in trainable
        }
        self.values |= self.parameters
        self._point()
        self.optimizer = self._optimizer()

    def _optimizer(self) -> torch.optim.Optimizer:
        first = self.members[0]
        config = replace(first.config, learning_rate=first.rate)
        return OPTIMIZERS[config.optimizer](list(self.parameters.values()), config)

    def _point(self) -> None:
        """Let the weights of each member be its part of the stack, which looks at it see."""
        for i, t in enumerate(self.members):
            own = dict(t.model.named_parameters())
            for name, p in self.parameters.items():
                own[name].data = p.detach()[i]

    def loss(self, inputs: Any, targets: Tensor) -> Tensor:
        """Return the mean over members of the loss of each on its batch, ().

        A loss is a mean over examples, and all batches are of one size: the loss of all examples
        together is that mean.
        """

        def of_one(values: Values, inputs: Any) -> Any:
            args, options = arguments(inputs)
            return functional_call(self.shape, values, args, options)

        if self.layers is not None and isinstance(inputs, Tensor):
            outputs = _passed(self.layers, self.values, inputs)  # (members, batch, ...)
        else:
            outputs = torch.vmap(of_one)(self.values, inputs)
        f = self.members[0].objectives["train"]
        return f.loss_of_outputs(outputs.flatten(0, 1), targets.flatten(0, 1))

    def update(self, inputs: Any, targets: Tensor) -> None:
        """Take one step of all members."""
        total = len(self.members) * self.loss(inputs, targets)
        if not torch.isfinite(total):
            self._fail(inputs, targets)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(total)
        self.optimizer.step()
        for t in self.members:
            t.updates += 1
            t.examples += targets.shape[1]

    def _fail(self, inputs: Any, targets: Tensor) -> None:
        """Raise the error of the first member whose loss is not finite."""
        for i, t in enumerate(self.members):
            number = float(_loss(t, _part(inputs, i), targets[i]).detach())
            if not math.isfinite(number):
                own = dict(t.model.named_parameters())
                for name, p in self.parameters.items():
                    own[name].grad = None if p.grad is None else p.grad[i]
                raise t._not_finite(f"a finite loss, got {number} in update {t.updates + 1}")

    def hand_over(self, i: int) -> None:
        """Give a member its part of the optimizer's state."""
        t = self.members[i]
        own = dict(t.model.named_parameters())
        for name, p in self.parameters.items():
            t.optimizer.state[own[name]] = {
                key: x[i].clone() if isinstance(x, Tensor) and x.ndim else deepcopy(x)
                for key, x in self.optimizer.state.get(p, {}).items()
            }

    def keep(self, left: list[int]) -> None:
        """Go on with these members; the weights of the others stay as they are."""
        states = {name: self.optimizer.state.get(p, {}) for name, p in self.parameters.items()}
        index = torch.tensor(left, device=next(iter(self.values.values())).device)
        self.members = [self.members[i] for i in left]
        self.values = {name: x.detach()[index] for name, x in self.values.items()}
        self.parameters = {name: nn.Parameter(self.values[name]) for name in self.parameters}
        self.values |= self.parameters
        self._point()
        self.optimizer = self._optimizer()
        for name, p in self.parameters.items():
            self.optimizer.state[p] = {
                key: x[index] if isinstance(x, Tensor) and x.ndim else x
                for key, x in states[name].items()
            }


def _stack(configs: list[TrainConfig]) -> _Stack | None:
    """Return the stack of these trainings at their start, None where they need one by one."""
    first = configs[0]
    if first.optimizer not in ELEMENTWISE or not record(first).keys() <= KNOWN:
        return None
    members = [_Training(first, problem_of(first))]
    try:
        with seeded(0, members[0].parameters[0].device):
            if not _keeps_buffers(members[0]):
                return None
            members += [_Training(config, problem_of(config)) for config in configs[1:]]
            if len({size(t.problem.data.train) for t in members}) > 1:
                return None
            stack = _Stack(members)
            return stack if _is_same(stack) else None
    except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
        LOG.info("train_all: one by one, because %s", " ".join(str(error).split())[:200])
        return None


def _is_same(stack: _Stack) -> bool:
    """Say whether a stack has the losses and the gradients of its members at the start."""
    members = stack.members
    total = len(members) * stack.loss(*_joined([_first(t) for t in members]))
    found = torch.autograd.grad(total, list(stack.parameters.values()), allow_unused=True)
    losses = [_loss(t, *_first(t)) for t in members]
    if not torch.allclose(total, torch.stack(losses).sum(), rtol=SAME, atol=0):
        return False
    for i, loss in enumerate(losses):
        own = torch.autograd.grad(loss, members[i].parameters, allow_unused=True)
        for g, wanted in zip(found, own, strict=True):
            if (g is None) != (wanted is None):
                return False
            if g is not None and wanted is not None and (g[i] - wanted).norm() > SAME * g[i].norm():
                return False
    return True


def _train(stack: _Stack) -> list[Run]:
    """Return the runs of all members, in their order."""
    config = stack.members[0].config
    where = stack.members[0].parameters[0].device
    members, found = stack.members, {}
    following = {id(t): t._batches() for t in stack.members}
    with cpu_threads(config.threads), seeded(config.order_seed or 0, where):
        while True:
            for t in stack.members:
                t._look(None)
            left = [i for i, t in enumerate(stack.members) if not t.stopped]
            for i, t in enumerate(stack.members):
                if t.stopped:
                    stack.hand_over(i)
                    found[id(t)] = t._result(t.stopped)
            if not left:
                return [found[id(t)] for t in members]
            if len(left) < len(stack.members):
                stack.keep(left)
            stack.update(*_joined([next(following[id(t)]) for t in stack.members]))


def _keeps_buffers(t: _Training) -> bool:
    """Say whether a pass in training mode changes no buffer, as running statistics would be."""
    trial = deepcopy(t.model)
    before = [b.clone() for b in trial.buffers()]
    args, options = arguments(_first(t)[0])
    with torch.no_grad():
        trial(*args, **options)
    return all(map(torch.equal, before, trial.buffers()))


def _first(t: _Training) -> tuple[Any, Tensor]:
    where = t.parameters[0].device
    inputs, targets = take(t.problem.data.train, torch.arange(t.config.batch_size))
    return on_device(where, inputs), targets.to(where)


def _loss(t: _Training, inputs: Any, targets: Tensor) -> Tensor:
    """Return the loss of a member by itself on a batch, ()."""
    args, options = arguments(inputs)
    return t.objectives["train"].loss_of_outputs(t.model(*args, **options), targets)


def _part(inputs: Any, i: int) -> Any:
    """Return the inputs of member i out of those of all."""
    if isinstance(inputs, dict):
        return {name: _part(part, i) for name, part in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(_part(part, i) for part in inputs)
    return inputs[i]


def _joined(batches: list[tuple[Any, Tensor]]) -> tuple[Any, Tensor]:
    """Return the batches of all members as one, each tensor (members, batch, ...)."""
    return _joined_parts([x for x, _ in batches]), torch.stack([y for _, y in batches])


def _joined_parts(parts: list[Any]) -> Any:
    if isinstance(parts[0], dict):
        return {name: _joined_parts([part[name] for part in parts]) for name in parts[0]}
    if isinstance(parts[0], tuple):
        return tuple(_joined_parts(list(several)) for several in zip(*parts, strict=True))
    return torch.stack(parts)


def _layered(model: nn.Module) -> list[tuple[str, nn.Module]] | None:
    """Return the layers of a plain chain of linear layers and activations, None of others.

    ``torch.func.vmap`` costs some tens of microseconds per operation, which is more than these
    layers take; each of them does to a stack what it does to one network.
    """
    if type(model) is not nn.Sequential:
        return None
    parts = list(model.named_children())
    plain = not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    known = all(type(part) in (nn.Linear, nn.Flatten, *ACTIVATIONS) for _, part in parts)
    whole = all(
        (part.start_dim, part.end_dim) == (1, -1)
        for _, part in parts
        if isinstance(part, nn.Flatten)
    )
    # What is there twice is named once.
    return parts if len(parts) == len(model) and plain and known and whole else None


def _passed(parts: list[tuple[str, nn.Module]], values: Values, x: Tensor) -> Tensor:
    """Return what the layers make of inputs (members, batch, ...)."""
    for name, part in parts:
        if isinstance(part, nn.Flatten):
            x = x.flatten(2)
        elif isinstance(part, nn.Linear):
            W, b = values[f"{name}.weight"], values.get(f"{name}.bias")
            rows: Tensor = _Stacked.apply(x.flatten(1, -2), W, b)  # type: ignore[no-untyped-call]
            x = rows.reshape(*x.shape[:-1], W.shape[1])
        else:
            x = part(x)
    return x


class _Stacked(torch.autograd.Function):
    """X W^T + b of stacked X (m, rows, in), W (m, out, in) and b (m, out).

    The gradients lie in memory as the weights do. Those of torch's own rule are transposed, and
    copied before they are added up, which takes longer than the product.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, W)
        ctx.has_bias = b is not None
        if b is None:
            return torch.bmm(x, W.transpose(1, 2))
        return torch.baddbmm(b.unsqueeze(1), x, W.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, W = ctx.saved_tensors
        dx = torch.bmm(g, W) if ctx.needs_input_grad[0] else None
        dW = torch.bmm(g.transpose(1, 2), x) if ctx.needs_input_grad[1] else None
        return dx, dW, g.sum(1) if ctx.has_bias else None
