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
STEPS = 5  # points along each axis of one plane
ROUNDS = 3  # planes of one process, after one that is not counted
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
            if find_spec("loss_landscapes"):
                peer = session.ask("points", name, tool="loss_landscapes")
                if peer:
                    ratio = median(peer["loss_landscapes"]) / median(mine["ours"])
                    session.read(f"points {name}", ratio)


def points(workload: str, folder: str, tool: str) -> dict[str, Any]:
    """Return the seconds of a point, of several planes one after the other."""
    w = make(workload, torch.load(Path(folder) / f"{workload}.pt", weights_only=True))
    cut = w.batches()
    actions: dict[str, Callable[[], Any]] = {
        "ours": lambda: ours(w, cut),
        "bare": lambda: bare(w, cut),
    }
    if tool == "loss_landscapes":
        actions = {tool: lambda: loss_landscapes(w)}
    found: dict[str, list[float]] = {name: [] for name in actions}
    for i in range(1 + ROUNDS):
        for name, act in actions.items():
            begun = time.perf_counter()
            act()
            if i:
                found[name].append((time.perf_counter() - begun) / STEPS**2)
    return found


def ours(w: Workload, cut: Cut) -> sh.Plane:
    """Return the plane of two filter-normalized directions, made from the model and the data."""
    f = sh.Objective(w.model, cut, w.loss)
    grid = torch.linspace(-1, 1, STEPS, dtype=torch.float64)
    u, v = sh.directions.filter_normalized(f, 2)
    return sh.plane(f, f.theta, u, v, alphas=grid, betas=grid)


def bare(w: Workload, cut: Cut) -> list[float]:
    """Return the mean loss of plain PyTorch, as many times as the plane has points."""
    found = []
    with torch.no_grad():
        for _ in range(STEPS**2):
            total = sum(len(y) * float(w.loss(w.model(x), y)) for x, y in cut)
            found.append(total / len(w.targets))
    return found


def loss_landscapes(w: Workload) -> Any:
    """Return the plane of loss-landscapes, as its documentation has it."""
    from loss_landscapes import random_plane
    from loss_landscapes.metrics import Loss

    metric = Loss(w.loss, w.inputs, w.targets)
    return random_plane(w.model, metric, distance=1, steps=STEPS, normalization="filter")
