"""The worst case in a ball and the average under noise, beside the bare passes they are made of.

All take the same micro-batches, in turn in one process. The random vectors of the average are drawn
beside its bare forward passes too, by the function of the library, for they are the same on every
device; without them is read apart.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import sharpness as sh
from sharpness.vectors import gaussian

from .bars import paired
from .landscapes import Cut, bare_losses
from .workloads import Workload, make

if TYPE_CHECKING:
    from .__main__ import Session

NAMES = ("W1", "W2")
ITERATIONS = 20  # of one climb: 21 gradients
DRAWS = 20  # pairs: 41 forward passes
ROUNDS = 3  # in one process, after a short one that is not counted
SHORT = 2  # iterations and draws of that one


def perturbations(session: "Session") -> None:
    """Read our time over that of bare gradients, and of bare forward passes."""
    for _ in range(session.rounds):
        for name in NAMES:
            found = session.ask("perturbed", name) if name in session.names else None
            if not found:
                continue
            session.read(f"worst {name}", paired(found["worst"], found["gradients"]))
            session.read(f"adaptive {name}", paired(found["adaptive"], found["gradients"]))
            both = [a + b for a, b in zip(found["forwards"], found["noise"], strict=True)]
            session.read(f"average {name}", paired(found["average"], both))
            session.read(f"average {name} alone", paired(found["average"], found["forwards"]))


def perturbed(workload: str, folder: str) -> dict[str, Any]:
    """Return the seconds of each tool, several times one after the other."""
    w = make(workload, torch.load(Path(folder) / f"{workload}.pt", weights_only=True))
    cut = w.batches()
    like = torch.empty(0)
    n = sum(p.numel() for p in w.model.parameters())
    tools: dict[str, Callable[[int], Any]] = {
        "worst": lambda short: worst(w, cut, short or ITERATIONS),
        "gradients": lambda short: bare_gradients(w, cut, 1 + (short or ITERATIONS)),
        "adaptive": lambda short: worst(w, cut, short or ITERATIONS, adaptive=True),
        "average": lambda short: average(w, cut, short or DRAWS),
        "forwards": lambda short: bare_losses(w, cut, 1 + 2 * (short or DRAWS)),
        "noise": lambda short: [gaussian(n, 0, i, like=like) for i in range(short or DRAWS)],
    }
    seconds: dict[str, list[float]] = {name: [] for name in tools}
    for short in (SHORT, *[0] * ROUNDS):
        for name, act in tools.items():
            begun = time.perf_counter()
            act(short)
            if not short:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def worst(w: Workload, cut: Cut, iterations: int, *, adaptive: bool = False) -> sh.Measured:
    """Return the worst case in a ball of l2 from one start, made from the model and the data."""
    f = sh.Objective(w.model, cut, w.loss)
    rho = 0.5 if adaptive else 0.05
    return sh.worst_case(f, rho=rho, adaptive=adaptive, iterations=iterations, restarts=0)


def average(w: Workload, cut: Cut, draws: int) -> sh.Measured:
    """Return the average case, made from the model and the data."""
    return sh.average_case(sh.Objective(w.model, cut, w.loss), draws=draws)


def bare_gradients(w: Workload, cut: Cut, count: int) -> list[Tensor]:
    """Return the gradient of the mean loss as plain PyTorch takes it, so many times over."""
    parameters = list(w.model.parameters())
    total: list[Tensor] = []
    for _ in range(count):
        total = [torch.zeros_like(p) for p in parameters]
        for inputs, targets in cut:
            loss = w.loss(w.model(inputs), targets)
            parts = torch.autograd.grad(loss, parameters)
            for sum_, part in zip(total, parts, strict=True):
                sum_.add_(part, alpha=len(targets) / len(w.targets))
    return total
