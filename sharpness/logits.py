"""Class scores: their normalization before a loss, and the 0-1 error that they make.

The loss of normalized scores does not change when the last layer is scaled, as the error does not,
where that of the scores themselves falls with each factor above 1 (Andriushchenko et al. 2023).

Letters: z scores, (N, C); y labels, (N,).
"""

from copy import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sharpness.errors import InputError
from sharpness.objective import Inputs, Measure, Objective, Targets, Weighted

LEAST = 1e-10  # of a norm by which scores are divided, as in the paper's code


def normalized_logits(objective: Objective) -> Objective:
    """Return the mean loss of (z - mean z) / max(|z - mean z|_2, 1e-10), for class scores z.

    Invariant to scaling of the last layer, and to a shift of all scores of an example. Its loss
    refuses outputs that are no class scores, and targets that are no labels.

    >>> model = torch.nn.Linear(1, 2, bias=False).double()
    >>> batches = [(torch.ones(1, 1).double(), torch.tensor([0]))]
    >>> f = normalized_logits(Objective(model, batches, torch.nn.functional.cross_entropy))
    >>> [round(float(f.value(a * torch.tensor([3.0, 1.0]))), 6) for a in (1, 2)]
    [0.217622, 0.217622]
    >>> round(float(torch.tensor(-(2**0.5)).exp().log1p()), 6)  # the scores are (1, -1) / 2^.5
    0.217622
    """
    other = copy(objective)
    other.loss = partial(_of_normalized, objective.loss)
    other.spec = {**objective.spec, "logits": "normalized"}
    return other


def with_error(objective: Objective) -> Objective:
    """Return the same mean loss with the 0-1 error as its only metric, NaN for wrong labels.

    >>> batches = [(torch.eye(2), torch.tensor([0, 0]))]
    >>> f = with_error(Objective(torch.nn.Linear(2, 2), batches, torch.nn.functional.cross_entropy))
    >>> f.evaluate(torch.tensor([1.0, 0, 0, 1, 0, 0]))["error"]
    tensor(0.5000, dtype=torch.float64)
    """
    return objective.measuring({"error": _error})


def require_scores(who: str, z: Any, y: Tensor) -> None:
    """Refuse outputs that are no class scores, and targets that are no labels.

    Raises:
        InputError: If they are not.
    """
    if isinstance(z, Tensor) and z.ndim == 2 and z.shape[1] > 1:
        if y.shape == z.shape[:1] and not (y.is_floating_point() or y.is_complex()):
            return
        got = f"targets of shape {tuple(y.shape)} in {y.dtype}"
    elif isinstance(z, Tensor):
        got = f"outputs of shape {tuple(z.shape)}"
    else:
        got = f"outputs that are a {type(z).__name__}"
    raise InputError(
        f"{who} needs class scores (N, C) and whole labels (N,), got {got}: leave it out, or take "
        "a classifier"
    )


def require_labels(objective: Objective, inside: Tensor) -> None:
    """Refuse labels that are those of no class, which make an error NaN.

    Args:
        inside: The error.

    Raises:
        InputError: If the error is NaN.
    """
    if not torch.isnan(inside).any():
        return
    seen: list[int] = []

    def look(i: int, inputs: Inputs, targets: Targets) -> Tensor:
        y = targets.targets if isinstance(targets, Weighted) else targets
        seen.extend((int(y.min()), int(y.max())))
        return objective.theta.new_zeros(())

    objective.mean(look)
    raise InputError(
        "the 0-1 error needs labels that number the class scores from 0, got labels from "
        f"{min(seen)} to {max(seen)}: change them, or measure the loss"
    )


def _of_normalized(loss: Measure, z: Tensor, y: Tensor) -> Tensor:
    require_scores("normalize_logits", z, y)
    centered = z - z.mean(dim=1, keepdim=True)
    return loss(centered / torch.linalg.vector_norm(centered, dim=1, keepdim=True).clamp(LEAST), y)


def _error(z: Tensor, y: Tensor) -> Tensor:
    """Return the part of the examples whose largest score is not at the label, shape ()."""
    require_scores('of="error"', z, y)
    # No comparison that a GPU would have to wait for: a wrong label is told at the first look.
    inside = (y >= 0) & (y < z.shape[1])
    return (z.argmax(dim=1) != y).double().where(inside, torch.nan).mean()
