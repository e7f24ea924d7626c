"""The state of an optimizer of torch as flat tensors by name, as a run keeps it."""

import torch
from torch import Tensor, nn

from sharpness.vectors import flatten

NUMBERS = ("step",)  # of the state: one for each parameter tensor


def optimizer_state(
    optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]
) -> dict[str, Tensor]:
    """Return the state by name, each entry of a parameter in the order of theta, (n,).

    Numbers such as Adam's step stand once for each parameter tensor. A parameter that never had
    a gradient has no state, that is zeros.
    """
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
    """Give an optimizer the state that ``optimizer_state`` returned, ``Run.optimizer``."""
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
