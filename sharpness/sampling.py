"""Which examples make the batches of one epoch, drawn by name: functions of a generator.

An epoch has as many draws as there are examples, cut into batches of which the last may be
smaller. Letters: N examples, B batch size, C classes.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from sharpness.data import is_labels
from sharpness.errors import InputError

# Of the targets of the training part, (N,), the batch size B and a generator: the numbers of the
# examples of each batch.
Sampler = Callable[[Tensor, int, np.random.Generator], list[Any]]


def shuffled(targets: Tensor, batch_size: int, rng: np.random.Generator) -> list[Any]:
    """Return batches of a permutation: every example once in an epoch.

    >>> import torch
    >>> [len(batch) for batch in shuffled(torch.zeros(7), 3, np.random.default_rng(0))]
    [3, 3, 1]
    """
    return _cut(rng.permutation(len(targets)), batch_size)


def replacement(targets: Tensor, batch_size: int, rng: np.random.Generator) -> list[Any]:
    """Return batches of independent draws: an epoch leaves some 37 % of the examples out."""
    return _cut(rng.integers(0, len(targets), len(targets)), batch_size)


def stratified(targets: Tensor, batch_size: int, rng: np.random.Generator) -> list[Any]:
    """Return batches with every class in each: every example once in an epoch.

    Each class gives one example to every batch; of its others each batch takes a share, rounded by
    the largest remainder, equal ones in random order.

    Raises:
        InputError: If targets are no classes, a batch is smaller than the number of classes, or a
            class has fewer examples than there are batches.

    >>> import torch
    >>> targets = torch.tensor([0, 0, 0, 0, 1, 1])
    >>> batches = stratified(targets, 3, np.random.default_rng(0))
    >>> [sorted(targets[batch].tolist()) for batch in batches]
    [[0, 0, 1], [0, 0, 1]]
    """
    if not is_labels(targets):
        raise InputError(
            "stratified batches need classes as targets, got others: take shuffled batches"
        )
    labels = targets.cpu().numpy()
    classes, counts = np.unique(labels, return_counts=True)
    sizes = [len(batch) for batch in _cut(labels, batch_size)]
    if min(sizes) < len(classes):
        raise InputError(
            f"stratified batches need an example of each of {len(classes)} classes, got a batch of "
            f"{min(sizes)} in an epoch of {len(labels)}: change the batch size"
        )
    if counts.min() < len(sizes):
        raise InputError(
            f"stratified batches need {len(sizes)} examples of every class, one for each batch, "
            f"got {counts.min()} of class {classes[counts.argmin()]}: take larger batches"
        )
    members = [rng.permutation(np.flatnonzero(labels == label)) for label in classes]
    taken, free = np.zeros_like(counts), counts - len(sizes)
    batches = []
    for size in sizes:
        more = _shares(free, size - len(classes), rng)
        ends = taken + 1 + more
        drawn = [m[a:b] for m, a, b in zip(members, taken, ends, strict=True)]
        batches.append(rng.permutation(np.concatenate(drawn)))
        taken, free = ends, free - more
    return batches


BATCHES: dict[str, Sampler] = {
    "shuffled": shuffled,
    "replacement": replacement,
    "stratified": stratified,
}


def _shares(free: Any, wanted: int, rng: np.random.Generator) -> Any:
    """Return how many of each class are taken, ``wanted`` in all, in proportion to ``free``."""
    quota = free * wanted / max(free.sum(), 1)
    shares = np.floor(quota).astype(int)
    ties = rng.permutation(len(free))
    most = ties[np.argsort((shares - quota)[ties], kind="stable")]
    shares[most[: wanted - shares.sum()]] += 1
    return shares


def _cut(order: Any, batch_size: int) -> list[Any]:
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
