"""Optimizers by name, their options, and their state as flat tensors that a run can keep.

They are torch's, with torch's defaults; a few options have fields of their own in a configuration,
all others are given by name in ``optimizer_options``. Gradient descent is ``sgd`` with all
examples in one batch.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sharpness.errors import InputError
from sharpness.options import is_number, is_whole
from sharpness.vectors import flatten

Settings = Any  # a TrainConfig, whose module lies above this one
Build = Callable[[list[nn.Parameter], Settings], torch.optim.Optimizer]

# Their state is stored in the run by the names that torch gives it.
OPTIMIZERS: dict[str, Build] = {
    "adam": lambda p, c: torch.optim.Adam(
        p, lr=c.learning_rate, weight_decay=c.weight_decay, fused=True, **_options(c)
    ),
    "adamw": lambda p, c: torch.optim.AdamW(
        p, lr=c.learning_rate, weight_decay=c.weight_decay, fused=True, **_options(c)
    ),
    "sgd": lambda p, c: torch.optim.SGD(
        p,
        lr=c.learning_rate,
        momentum=c.momentum,
        nesterov=c.nesterov,
        weight_decay=c.weight_decay,
        fused=True,
        **_options(c),
    ),
    "rmsprop": lambda p, c: torch.optim.RMSprop(
        p, lr=c.learning_rate, momentum=c.momentum, weight_decay=c.weight_decay, **_options(c)
    ),
    "rprop": lambda p, c: torch.optim.Rprop(p, lr=c.learning_rate, **_options(c)),
    "adagrad": lambda p, c: torch.optim.Adagrad(
        p, lr=c.learning_rate, weight_decay=c.weight_decay, **_options(c)
    ),
    "lbfgs": lambda p, c: torch.optim.LBFGS(
        p, lr=c.learning_rate, line_search_fn="strong_wolfe", **_options(c)
    ),
}
# The fields of a configuration that mean something to some of them only.
TAKES = {
    "momentum": ("sgd", "rmsprop"),
    "nesterov": ("sgd",),
    "weight_decay": ("adam", "adamw", "sgd", "rmsprop", "adagrad"),
}
# What ``optimizer_options`` can hold: arguments of torch's class by their names there.
OPTIONS: dict[str, tuple[type[torch.optim.Optimizer], tuple[str, ...]]] = {
    "adam": (torch.optim.Adam, ("betas", "eps", "amsgrad")),
    "adamw": (torch.optim.AdamW, ("betas", "eps", "amsgrad")),
    "sgd": (torch.optim.SGD, ("dampening",)),
    "rmsprop": (torch.optim.RMSprop, ("alpha", "eps", "centered")),
    "rprop": (torch.optim.Rprop, ("etas", "step_sizes")),
    "adagrad": (torch.optim.Adagrad, ("lr_decay", "initial_accumulator_value", "eps")),
    "lbfgs": (
        torch.optim.LBFGS,
        ("max_iter", "max_eval", "tolerance_grad", "tolerance_change", "history_size"),
    ),
}
# Their rules treat each number by itself, so that several networks can be updated in one tensor.
ELEMENTWISE = ("adam", "adamw", "sgd", "rmsprop", "rprop", "adagrad")
NUMBERS = ("step",)  # of a state: one for each parameter tensor
# L-BFGS has one state for all parameters together. Vectors (n,), lists of vectors (m, n), numbers:
VECTORS = ("d", "prev_flat_grad")
MEMORIES = ("old_dirs", "old_stps")
PLAIN = ("t", "prev_loss", "n_iter", "func_evals")


def require_options(config: Settings) -> None:
    """Refuse an optimizer that is unknown, or options that it does not take.

    Raises:
        InputError: If the name, a field or an option is not one of this optimizer, or is not in
            its range.
    """
    name = config.optimizer
    if name not in OPTIMIZERS:
        raise InputError(f"optimizer needs to be one of {', '.join(OPTIMIZERS)}, got {name!r}")
    for field, optimizers in TAKES.items():
        if getattr(config, field) and name not in optimizers:
            raise InputError(
                f"{field} needs {' or '.join(optimizers)}, got {getattr(config, field)} with "
                f"{name}: leave it out"
            )
    if config.nesterov and not config.momentum:
        raise InputError("nesterov needs a momentum above 0, got 0: give one")
    of, known = OPTIONS[name]
    defaults = inspect.signature(of).parameters
    for option, value in config.optimizer_options.items():
        if option not in known:
            raise InputError(
                f"optimizer_options of {name} need to be of {', '.join(known)}, got {option!r}: "
                "leave it out"
            )
        kind = _kind(defaults[option].default)
        if not _is(value, kind):
            raise InputError(f"{option} of {name} needs {kind}, got {value!r}: change it")
    try:
        OPTIMIZERS[name]([nn.Parameter(torch.zeros(1))], config)
    except ValueError as error:  # torch's, of a number that is not in its range
        raise InputError(f"{name} needs options in their ranges, got others: {error}") from error


def state_of(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> dict[str, Tensor]:
    """Return the state by name, each entry of a parameter in the order of theta, (n,).

    Numbers such as Adam's step stand once for each parameter tensor. A parameter that never had
    a gradient has no state, that is zeros. Of L-BFGS it is all that the next update depends on:
    the last direction ``d`` and gradient, both (n,), up to ``history_size`` changes of the
    gradient (``old_dirs``) and of theta (``old_stps``), (m, n), and numbers.
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        return _lbfgs_state(optimizer.state.get(parameters[0], {}))
    states = [optimizer.state.get(p, {}) for p in parameters]
    names = sorted({name for state in states for name, x in state.items() if torch.is_tensor(x)})
    flat: dict[str, Tensor] = {}
    for name in names:
        known = next(state[name] for state in states if name in state)
        blank = [torch.zeros_like(p) if known.ndim else known.new_zeros(()) for p in parameters]
        pieces = [state.get(name, zero) for state, zero in zip(states, blank, strict=True)]
        flat[name] = flatten(pieces).cpu()
    return flat


def set_state(
    optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], flat: dict[str, Tensor]
) -> None:
    """Give an optimizer the state that ``state_of`` returned; the next updates are the same."""
    if isinstance(optimizer, torch.optim.LBFGS):
        optimizer.state[parameters[0]].update(_lbfgs_restored(flat, parameters[0].device))
        return
    begin = 0
    for i, p in enumerate(parameters):
        end = begin + p.numel()
        found = {
            name: x[i] if name in NUMBERS else x[begin:end].reshape(p.shape)
            for name, x in flat.items()
        }
        begin = end
        if any(name in found and not found[name] for name in NUMBERS):
            continue  # it never had a gradient, and torch makes its state at the first
        for name, value in found.items():
            like = optimizer.state[p].get(name)
            where = p.device if name not in NUMBERS or like is None else like.device
            optimizer.state[p][name] = value.clone().to(where)


def _lbfgs_state(state: dict[str, Any]) -> dict[str, Tensor]:
    if "d" not in state:  # no update yet
        return {}
    flat = {name: state[name].detach().cpu().clone() for name in VECTORS}
    numbers = {name: torch.tensor(float(state[name]), dtype=torch.float64) for name in PLAIN}
    d = flat["d"]
    scale = {"H_diag": torch.as_tensor(state["H_diag"]).to(d)}
    lists = {
        name: torch.stack(state[name]).cpu() if state[name] else d.new_zeros(0, len(d))
        for name in MEMORIES
    }
    products = {"ro": torch.stack(state["ro"]).cpu() if state["ro"] else d.new_zeros(0)}
    return flat | numbers | scale | lists | products


def _lbfgs_restored(flat: dict[str, Tensor], where: torch.device) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for name, x in flat.items():
        if name in PLAIN:
            state[name] = x.item()
        elif name in (*MEMORIES, "ro"):
            # Each in memory of its own, as torch has them: sums round by alignment.
            state[name] = [row.clone().to(where) for row in x]
        else:
            state[name] = x.clone().to(where)
    return state | {name: int(state[name]) for name in ("n_iter", "func_evals") if name in state}


def _options(config: Settings) -> dict[str, Any]:
    """Return the options as torch takes them; JSON has lists where torch has pairs."""
    given = config.optimizer_options.items()
    return {name: tuple(x) if isinstance(x, list) else x for name, x in given}


def _kind(default: Any) -> str:
    """Return in words what a value has to be, to be of the kind of this default."""
    if isinstance(default, bool):
        return "true or false"
    if isinstance(default, tuple):
        return f"{len(default)} finite numbers"
    # LBFGS.max_eval is None by default, and a whole number as max_iter is.
    whole = default is None or (isinstance(default, int) and default > 0)
    return "a whole number of at least 1" if whole else "a finite number"


def _is(value: Any, kind: str) -> bool:
    if kind == "true or false":
        return isinstance(value, bool)
    if kind == "a whole number of at least 1":
        return is_whole(value, 1)
    if kind == "a finite number":
        return is_number(value)
    several = isinstance(value, list | tuple) and len(value) == int(kind.split()[0])
    return several and all(_is(x, "a finite number") for x in value)
