"""Where a number that is not finite comes from: of which weight, buffer, batch or example.

An Objective returns such numbers as they are, because on a grid they are data. Where one number is
the answer an algorithm asks ``require_finite``, which costs nothing while all is well.
"""

from typing import Any

import torch
from torch import Tensor

from sharpness.batch_norm import layers
from sharpness.errors import ComputationError
from sharpness.objective import Inputs, Objective, Point, Targets, Weighted
from sharpness.results import Solution
from sharpness.vectors import unflatten

Fault = tuple[str, str, str]  # what is needed, what came, and the remedy

CLEAN, LOOK = "clean the data", "look at the solution"
POLE = "look for a root or a norm at 0, or an overflow"


def require_finite(
    objective: Objective, who: str, point: Point, *numbers: Tensor, remedy: str | None = None
) -> None:
    """Refuse numbers that were computed at a point and are not finite, and name their cause.

    Cost: one look at the numbers; a second one at the weights and all batches where it is needed.

    Args:
        who: Needs them, for the message.
        numbers: Any tensors.
        remedy: In place of the one that fits the cause.

    Raises:
        ComputationError: If a number is not finite.

    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> batches = [(torch.ones(1, 1), torch.zeros(1, 1))]
    >>> f = Objective(model, batches, torch.nn.functional.mse_loss)
    >>> require_finite(f, "this", torch.ones(1), f.value(torch.ones(1)))
    >>> far = torch.tensor([1e30])
    >>> require_finite(f, "this", far, f.value(far), remedy="come back")
    Traceback (most recent call last):
    sharpness.errors.ComputationError: this needs a finite loss, got inf in batch 0: come back
    """
    if all(bool(torch.isfinite(x).all()) for x in numbers):
        return
    raise not_finite(objective, who, point, remedy=remedy) or ComputationError(
        f"{who} needs finite numbers, got one that is not in the mean over all batches and ranks: "
        f"{remedy or 'look at its scale and at the other ranks'}"
    )


def not_finite(
    objective: Objective,
    who: str,
    point: Point,
    *,
    gradient: bool = True,
    remedy: str | None = None,
) -> ComputationError | None:
    """Return the error that names what is not finite at a point, or None if all is.

    The first that is found of these: weights, buffers that the loss depends on, inputs and targets
    of the first batch whose loss is not finite, that loss, and the gradient of a batch.

    Args:
        gradient: Whether it plays a part.
        remedy: In place of the one that fits the cause.
    """
    here = objective.settled(point)
    fault = _in_tensors(objective, here) or _in_batches(objective, here)
    if gradient and not fault:
        with torch.enable_grad(), objective.with_native_rnn():
            lost = objective.first_not_finite(
                lambda i, x, y: objective.batch_gradient(here, x, y)[1]
            )
        fault = in_block(objective, "gradient", *lost) if lost else None
    if not fault:
        return None
    needed, got, usual = fault
    return ComputationError(f"{who} needs {needed}, got {got}: {remedy or usual}")


def in_block(objective: Objective, what: str, i: int, vector: Tensor) -> Fault:
    """Return the fault of a vector of batch i that is not finite, shape (n,), by its parameter."""
    blocks = unflatten(vector, objective.shapes)
    name, block = next((n, b) for n, b in blocks.items() if not torch.isfinite(b).all())
    value = float(block[~torch.isfinite(block)][0])
    return f"a finite {what}", f"{value} for {name} in batch {i}", POLE


def _in_tensors(f: Objective, here: Solution) -> Fault | None:
    """Return the fault of the first weight or buffer that is not finite."""
    buffers = dict(f.model.named_buffers()) | here.buffers  # those of a solution may be weights
    weights = {name: buffers.pop(name, x) for name, x in f.model.named_parameters()}
    for name, x in (weights | unflatten(here.theta, f.shapes)).items():
        bad = int((~torch.isfinite(x)).sum())
        if bad:
            return "finite weights", _count(bad, name), LOOK
    statistics = {
        f"{layer}.{name}" if layer else name
        for layer, part in layers(f.model).items()
        for name in part._buffers
    }
    for name, x in buffers.items():
        bad = int((x.isnan() | x.isposinf()).sum())  # masks are made of -inf
        if not bad or (name in statistics and f.batch_norm == "batch"):  # which has its own
            continue
        if name in statistics and f.batch_norm == "reestimate":
            again = ("finite re-estimated statistics of BatchNorm", _count(bad, name), LOOK)
            return _in_statistics(f) or again
        return "finite buffers", _count(bad, name), LOOK
    return None


def _count(bad: int, name: str) -> str:
    return f"{bad} that {'is' if bad == 1 else 'are'} not in {name}"


def _in_statistics(f: Objective) -> Fault | None:
    """Return the fault of the inputs from which BatchNorm's statistics are re-estimated."""
    read: list[str | None] = []

    def look(i: int, inputs: Inputs, targets: Targets) -> Tensor:
        read.append(_example(inputs))
        return torch.tensor(torch.nan if read[-1] else 0.0)

    lost = f.first_not_finite(look, of="statistics")
    if not lost:
        return None
    return "finite inputs", f"{read[-1]} of batch {lost[0]} of the statistics", CLEAN


def _in_batches(f: Objective, here: Solution) -> Fault | None:
    """Return the fault of the first batch whose loss is not finite."""
    read: dict[str, Any] = {}

    def loss(i: int, inputs: Inputs, targets: Targets) -> Tensor:
        read["inputs"] = inputs
        read["targets"] = targets.targets if isinstance(targets, Weighted) else targets
        return f.batch_loss(here, inputs, targets)

    with torch.no_grad():
        lost = f.first_not_finite(loss)
    if not lost:
        return None
    i, value = lost
    for name, part in read.items():
        found = _example(part)
        if found:
            return f"finite {name}", f"{found} of batch {i}", CLEAN
    return "a finite loss", f"{float(value)} in batch {i}", "look at the data and the weights"


def _example(part: Any, *, alone: bool = True) -> str | None:
    """Return the first number of a nest of tensors that is not finite, with its example.

    Args:
        alone: Else a tensor may be a mask, which is made of -inf.
    """
    if isinstance(part, dict | tuple | list):
        parts = part.values() if isinstance(part, dict) else part
        return next((found for x in parts if (found := _example(x, alone=False))), None)
    if not isinstance(part, Tensor) or not part.ndim:
        return None
    bad = ~torch.isfinite(part) if alone else part.isnan() | part.isposinf()
    if not bad.any():
        return None
    return f"{float(part[bad][0])} in example {int(bad.nonzero()[0, 0])}"
