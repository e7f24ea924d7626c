"""One measurement in a process of its own: ``python -m benchmarks.measure REQUEST``.

The request is one JSON object, ``{"task": ..., "workload": ..., "folder": ..., ...}``, where the
folder holds the weights of the trained models; so is the answer, the last line of stdout.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import sharpness as sh
from sharpness.vectors import gaussian

from .bars import paired
from .boxes import climb
from .ensembles import timed
from .landscapes import points
from .perturbations import perturbed
from .solvers import SOLVERS, true_residual
from .spectra import TOOLS
from .trainings import actions
from .workloads import SOLVED, Workload, make, tiny

ROUNDS = 9  # of products and gradients in one process, at most
SECONDS, FEWEST = 6.0, 3  # after so long no further round, but so many at least


def main(request: str) -> None:
    """Print what one task found."""
    asked = json.loads(request)
    found = TASKS[asked.pop("task")](**asked)
    print(json.dumps({**found, "threads": torch.get_num_threads()}))


def train(workload: str, folder: str) -> dict[str, Any]:
    """Leave the weights of the trained model in the folder."""
    made = make(workload)
    torch.save(made.model.state_dict(), Path(folder) / f"{workload}.pt")
    f = made.objective()
    return {"unknowns": len(f.theta), "loss": float(f.value(f.theta))}


def gradient(workload: str, folder: str, examples: int | None = None) -> dict[str, Any]:
    """Return seconds of products and gradients, taken in turn.

    The gradient is that of plain PyTorch, by the same batches, with the attention kernels that
    the product has to use (``gradient``) and those that PyTorch prefers (``fused``).
    """
    w = _trained(workload, folder, examples)
    A = sh.Hessian(w.objective())
    v = gaussian(A.size, 0, 0, like=A.theta.detach())

    def by_math() -> None:
        with sdpa_kernel(SDPBackend.MATH):
            plain_gradient(w)

    return _in_turn(product=lambda: A @ v, gradient=by_math, fused=lambda: plain_gradient(w))


def product(
    workload: str, folder: str, engine: str | None = None, *, whole: bool = False
) -> dict[str, Any]:
    """Return seconds of products of one engine, by micro-batches or by the whole data at once."""
    A = sh.Hessian(_trained(workload, folder, None).objective(whole=whole), engine=engine)
    v = gaussian(A.size, 0, 0, like=A.theta.detach())
    return _in_turn(product=lambda: A @ v)


def solve(workload: str, folder: str, solver: str, tol: float, verify: list[str]) -> dict[str, Any]:
    """Return the seconds, the products, the peak memory and the answer of one solver.

    The clock runs from a model and data in memory to the eigenpairs. Before it, the solver solves
    a tiny problem: imports at the first use and the start of threads are nobody's work.

    Args:
        verify: Precisions in which the residuals are taken again, by one operator for all.
    """
    w = _trained(workload, folder, SOLVED.get(workload))
    SOLVERS[solver](tiny(), tol)
    before = _memory("VmRSS", reset=True)
    begun = time.perf_counter()
    answer = SOLVERS[solver](w, tol)
    seconds = time.perf_counter() - begun
    return {
        "seconds": seconds,
        "product_seconds": answer.product_seconds,
        "products": answer.products,
        "check_products": answer.check_products,
        "memory_mib": (_memory("VmHWM") - before) / 1024,
        "values": answer.values.tolist(),
        "residuals": {kind: _residual(w, kind, answer.values, answer.vectors) for kind in verify},
    }


def estimate(
    workload: str,
    folder: str,
    quantity: str,
    tool: str,
    count: int,
    bounds: list[float] | None = None,
) -> dict[str, Any]:
    """Return the seconds, the products, the peak memory and the answer of one estimate.

    The clock runs from a model and data in memory, as in ``solve``.
    """
    w, act = _trained(workload, folder, None), TOOLS[quantity][tool]
    act(tiny(), 4)
    before = _memory("VmRSS", reset=True)
    begun = time.perf_counter()
    found = act(w, count, bounds)
    seconds = time.perf_counter() - begun
    memory = (_memory("VmHWM") - before) / 1024
    return {"seconds": seconds, "memory_mib": memory, **asdict(found)}


def box(
    workload: str, folder: str, way: str, *, fast: bool, target: float | None = None
) -> dict[str, Any]:
    """Return what one way up in the box of Metric 2.1 found and spent, as ``boxes.climb``."""
    climb(tiny(), way, fast=False)
    return climb(_trained(workload, folder, None), way, fast=fast, target=target)


def training(workload: str, folder: str, batch_size: int, *, fast: bool = False) -> dict[str, Any]:
    """Return the seconds of both trainings, in turn, and the median of their ratios."""
    found = _in_turn(**actions(batch_size, fast=fast))
    return {**found, "ratio": paired(found["ours"], found["by_hand"])}


def ensemble(workload: str, folder: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the seconds of several trainings one by one and in a stack; no folder is needed."""
    return {"of": workload, **timed(options)}


TASKS: dict[str, Callable[..., dict[str, Any]]] = {
    "train": train,
    "gradient": gradient,
    "product": product,
    "solve": solve,
    "points": points,
    "estimate": estimate,
    "perturbed": perturbed,
    "box": box,
    "training": training,
    "ensemble": ensemble,
}


def plain_gradient(w: Workload) -> list[Tensor]:
    """Return the gradient of the mean loss as PyTorch takes it, batch by batch, by parameter."""
    parameters = list(w.model.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    for inputs, targets in w.batches():
        loss = w.loss(w.model(inputs), targets)
        share = w.count(targets) / w.count(w.targets)
        for sum_, part in zip(total, torch.autograd.grad(loss, parameters), strict=True):
            sum_.add_(part, alpha=share)
    return total


def _trained(workload: str, folder: str, examples: int | None) -> Workload:
    w = make(workload, torch.load(Path(folder) / f"{workload}.pt", weights_only=True))
    return w if examples is None else w.first(examples)


def _in_turn(**actions: Callable[[], Any]) -> dict[str, Any]:
    """Return the seconds of each action, several times one after the other."""
    for act in actions.values():  # builds graphs, starts threads
        act()
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    begun = time.perf_counter()
    for i in range(ROUNDS):
        if i >= FEWEST and time.perf_counter() - begun > SECONDS:
            break
        for name, act in actions.items():
            start = time.perf_counter()
            act()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def _residual(w: Workload, dtype: str, values: Tensor, vectors: Tensor) -> float:
    """Return the true residual by our default operator, in float64 at the same float32 weights."""
    if dtype == "float64":
        inputs = w.inputs.double() if w.inputs.is_floating_point() else w.inputs
        w = replace(w, model=w.model.double(), inputs=inputs)
    return true_residual(sh.Hessian(w.objective()), values, vectors)


def _memory(field: str, *, reset: bool = False) -> float:
    """Return VmRSS or its peak VmHWM in KiB, NaN where the system has no /proc.

    The maximum of getrusage would be no less than that of the process that started this one.
    """
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    main(sys.argv[1])
