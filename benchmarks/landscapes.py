"""Points of a plane in a second: ours beside loss-landscapes, and beside bare forward passes.

Ours and the bare passes take the same micro-batches, in turn in one process; loss-landscapes has
none and takes all examples at once, in a process of its own.
"""

import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import sharpness as sh

from .workloads import Workload, make

if TYPE_CHECKING:
    from .__main__ import Session

NAMES = ("W1", "W2", "W3")
STEPS = {"W1": 15, "W2": 9, "W3": 7}  # points along each axis of a plane, of some seconds
ROUNDS = 2  # planes of one process, after a small one that is not counted
FIRST = 3  # points along each axis of that one
FAST = ("W1", "W2")  # measured under fast_gemm too: matrix products are most of their time
PACKAGES = {"loss_landscapes": "loss-landscapes"}
Cut = list[tuple[Tensor, Tensor]]  # the data in micro-batches


def landscapes(session: "Session") -> None:
    """Read points in a second over those of loss-landscapes, and our time over bare passes."""
    for _ in range(session.rounds):
        for name in NAMES:
            if name not in session.names:
                continue
            mine = session.ask("points", name, tool="ours")
            if not mine:
                continue
            ratios = [a / b for a, b in zip(mine["ours"], mine["bare"], strict=True)]
            session.read(f"forward {name}", median(ratios))
            fast = session.ask("points", name, tool="ours_fast") if name in FAST else None
            if find_spec("loss_landscapes"):
                peer = session.ask("points", name, tool="loss_landscapes")
                for key, own, tool in (("points", mine, "ours"), ("fast", fast, "ours_fast")):
                    if peer and own:
                        ratio = median(peer["loss_landscapes"]) / median(own[tool])
                        session.read(f"{key} {name}", ratio)


def points(workload: str, folder: str, tool: str) -> dict[str, Any]:
    """Return the seconds of a point, of several planes one after the other."""
    w = make(workload, torch.load(Path(folder) / f"{workload}.pt", weights_only=True))
    cut = w.batches()
    tools: dict[str, Callable[[int], Any]] = {
        "ours": lambda steps: ours(w, cut, steps),
        "bare": lambda steps: bare(w, cut, steps),
        "ours_fast": lambda steps: ours_fast(w, cut, steps),
        "loss_landscapes": lambda steps: loss_landscapes(w, steps),
    }
    names = ("ours", "bare") if tool == "ours" else (tool,)
    found: dict[str, list[float]] = {name: [] for name in names}
    for steps in (FIRST, *[STEPS[workload]] * ROUNDS):
        for name in names:
            begun = time.perf_counter()
            tools[name](steps)
            if steps != FIRST:
                found[name].append((time.perf_counter() - begun) / steps**2)
    return found


def ours(w: Workload, cut: Cut, steps: int) -> sh.Plane:
    """Return the plane of two filter-normalized directions, made from the model and the data."""
    f = sh.Objective(w.model, cut, w.loss)
    grid = torch.linspace(-1, 1, steps, dtype=torch.float64)
    u, v = sh.directions.filter_normalized(f, 2)
    return sh.plane(f, f.theta, u, v, alphas=grid, betas=grid)


def ours_fast(w: Workload, cut: Cut, steps: int) -> sh.Plane:
    """Return the same plane under ``sharpness.fast_gemm``, whose check counts too."""
    with sh.fast_gemm():
        return ours(w, cut, steps)


def bare(w: Workload, cut: Cut, steps: int) -> list[float]:
    """Return the mean loss of plain PyTorch, as many times as the plane has points."""
    return bare_losses(w, cut, steps**2)


def bare_losses(w: Workload, cut: Cut, count: int) -> list[float]:
    """Return the mean loss of plain PyTorch, so many times over."""
    found = []
    with torch.no_grad():
        for _ in range(count):
            total = sum(len(y) * float(w.loss(w.model(x), y)) for x, y in cut)
            found.append(total / len(w.targets))
    return found


def loss_landscapes(w: Workload, steps: int) -> Any:
    """Return the plane of loss-landscapes, as its documentation has it."""
    from loss_landscapes import random_plane
    from loss_landscapes.metrics import Loss

    metric = Loss(w.loss, w.inputs, w.targets)
    return random_plane(w.model, metric, distance=1, steps=steps, normalization="filter")
