"""Points of a plane in a second: ours beside loss-landscapes, and beside bare forward passes.

Ours and the bare passes take the same micro-batches, in turn in one process; loss-landscapes has
none and takes all examples at once, in a process of its own.
"""

import time
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

import sharpness as sh
from sharpness.data import batches

from .workloads import Workload, make

if TYPE_CHECKING:
    from .__main__ import Session

STEPS = 7  # points along each axis of one plane
ROUNDS = 3  # planes of one process, after one that is not counted
# Examples of a micro-batch, for which all of a batch's outputs stay in the caches of the processor.
MICRO_BATCH = {"W1": 256, "W2": 1024, "W3": 64}
PACKAGES = {"loss_landscapes": "loss-landscapes"}


def landscapes(session: "Session") -> None:
    """Read points in a second over those of loss-landscapes, and our time over bare passes."""
    for _ in range(session.rounds):
        for name in MICRO_BATCH:
            if name not in session.names:
                continue
            ours = session.ask("points", name, tool="ours")
            if not ours:
                continue
            ratios = [a / b for a, b in zip(ours["ours"], ours["bare"], strict=True)]
            session.read(f"forward {name}", median(ratios))
            if find_spec("loss_landscapes"):
                peer = session.ask("points", name, tool="loss_landscapes")
                if peer:
                    ratio = median(peer["loss_landscapes"]) / median(ours["ours"])
                    session.read(f"points {name}", ratio)


def points(workload: str, folder: str, tool: str) -> dict[str, Any]:
    """Return the seconds of a point, of several planes one after the other."""
    weights = torch.load(Path(folder) / f"{workload}.pt", weights_only=True)
    w = make(workload, weights)
    actions = {"ours": {"ours": ours, "bare": bare}, "loss_landscapes": {tool: loss_landscapes}}
    found: dict[str, list[float]] = {name: [] for name in actions[tool]}
    for i in range(1 + ROUNDS):
        for name, act in actions[tool].items():
            begun = time.perf_counter()
            act(w)
            if i:
                found[name].append((time.perf_counter() - begun) / STEPS**2)
    return found


def ours(w: Workload) -> sh.Plane:
    """Return the plane of two filter-normalized directions, made from the model and the data."""
    f = sh.Objective(w.model, micro_batches(w), w.loss)
    grid = torch.linspace(-1, 1, STEPS, dtype=torch.float64)
    u, v = sh.directions.filter_normalized(f, 2)
    return sh.plane(f, f.theta, u, v, alphas=grid, betas=grid)


def bare(w: Workload) -> list[float]:
    """Return the mean loss of plain PyTorch, as many times as the plane has points."""
    cut, found = micro_batches(w), []
    with torch.no_grad():
        for _ in range(STEPS**2):
            losses = [len(y) * w.loss(w.model(x), y) for x, y in cut]
            found.append(float(sum(losses)) / len(w.targets))
    return found


def loss_landscapes(w: Workload) -> Any:
    """Return the plane of loss-landscapes, as its documentation has it."""
    from loss_landscapes import random_plane
    from loss_landscapes.metrics import Loss

    metric = Loss(w.loss, w.inputs, w.targets)
    return random_plane(w.model, metric, distance=1, steps=STEPS, normalization="filter")


def micro_batches(w: Workload) -> list[Any]:
    """Return the data in the batches of this benchmark."""
    return batches((w.inputs, w.targets), MICRO_BATCH.get(w.name, len(w.targets)))
