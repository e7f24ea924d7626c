"""Targets that are classes: samples that keep their shares, and labels changed by seed.

Each kind of draw has a stream of its own of the split's seed: a sample 0, moved labels 1, the
validation part 3, random labels 4.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sharpness.errors import InputError
from sharpness.vectors import stream


def is_labels(targets: Tensor) -> bool:
    """Say whether targets, shape (N,), are class numbers."""
    return targets.ndim == 1 and not (targets.is_floating_point() or targets.is_complex())


def stratified(targets: Tensor, wanted: int, seed: int, *, key: int = 0) -> Any:
    """Return the numbers of ``wanted`` examples in increasing order, an int64 array.

    Each class keeps its share, rounded by the largest remainder; targets that are not classes are
    sampled uniformly.

    Args:
        key: Of the stream of the seed.

    Raises:
        InputError: If there are fewer examples than that.
    """
    total = len(targets)
    if not isinstance(wanted, int) or not 0 < wanted <= total:
        raise InputError(
            f"a sample needs at least 1 and at most {total} examples, got {wanted}: change it"
        )
    rng = stream(seed, key)
    if wanted == total:
        return np.arange(total)
    if not is_labels(targets):
        return np.sort(rng.choice(total, wanted, replace=False))
    labels = targets.cpu().numpy()
    classes, counts = np.unique(labels, return_counts=True)
    quota = counts * wanted / total
    chosen = np.floor(quota).astype(int)
    ties = rng.permutation(len(classes))  # equal remainders have equal chances
    most = ties[np.argsort((chosen - quota)[ties], kind="stable")]
    chosen[most[: wanted - chosen.sum()]] += 1
    drawn = [
        rng.choice(np.flatnonzero(labels == label), count, replace=False)
        for label, count in zip(classes, chosen, strict=True)
    ]
    return np.sort(np.concatenate(drawn))


def moved(targets: Tensor, everything: Tensor, share: float, seed: int) -> Tensor:
    """Return targets of which this exact share is moved to another class, uniformly by ``seed``.

    Args:
        everything: Targets with all classes that there are.

    Raises:
        InputError: If the share is not in [0, 1) or moves no label, or if there is no other class.
    """
    if not 0 <= share < 1:
        raise InputError(f"label_noise needs to be at least 0 and below 1, got {share}: change it")
    if share == 0:
        return targets
    labels = _classes(everything, "label_noise")
    if not round(share * len(targets)):
        raise InputError(
            f"label_noise needs to move a label, got {share} of {len(targets)} examples: raise it"
        )
    rng = stream(seed, 1)
    places = torch.from_numpy(rng.choice(len(targets), round(share * len(targets)), replace=False))
    shift = rng.integers(1, len(labels), len(places))
    old = np.searchsorted(labels, targets[places].cpu().numpy())
    noisy = targets.clone()
    noisy[places] = torch.from_numpy(labels[(old + shift) % len(labels)]).to(targets.dtype)
    return noisy


def subset(targets: Tensor, wanted: Any) -> tuple[Tensor, Tensor]:
    """Return the numbers of the examples of some classes, and their targets, counted from 0.

    Args:
        wanted: How many classes, the first ones, or a list of them in their new order.

    Raises:
        InputError: If targets are no classes, or do not have these.

    >>> index, renumbered = subset(torch.tensor([0, 1, 2, 7, 2]), [7, 2])
    >>> index.tolist(), renumbered.tolist()
    ([2, 3, 4], [1, 0, 1])
    >>> subset(torch.tensor([0, 1, 2, 7, 2]), 2)[0].tolist()
    [0, 1]
    """
    known = _classes(targets, "classes", least=1).tolist()
    numbered = isinstance(wanted, Sequence) and all(type(x) is int for x in wanted)
    chosen = list(wanted) if numbered else known[:wanted] if type(wanted) is int else []
    count = len(chosen) if numbered else wanted
    if not chosen or len(chosen) != count or len(set(chosen)) != count or set(chosen) - {*known}:
        raise InputError(
            f"classes needs to be a number of 1 to {len(known)}, or a list of some of "
            f"{', '.join(map(str, known[:12]))}{', ...' * (len(known) > 12)}, each once, got "
            f"{wanted}: change data_options"
        )
    new = torch.full((len(targets),), -1)
    for number, label in enumerate(chosen):
        new[targets.cpu() == label] = number
    index = (new >= 0).nonzero().flatten()
    return index, new[index].to(targets.dtype)


def held_out(targets: Tensor, wanted: Any, seed: int) -> tuple[Tensor, Tensor]:
    """Return the numbers of the examples that stay for training, and of a validation part.

    The classes keep their shares in both, as in any stratified sample.

    Args:
        wanted: The number of examples for validation, or their share, below 1.

    Raises:
        InputError: If that leaves one of the two without an example.

    >>> stay, validation = held_out(torch.arange(20) % 2, 0.2, seed=0)
    >>> len(stay), (validation % 2).bincount().tolist()
    (16, [2, 2])
    """
    total, number = len(targets), type(wanted) in (int, float) and wanted > 0
    count = (wanted if type(wanted) is int else round(wanted * total)) if number else 0
    if not 0 < count < total:
        raise InputError(
            f"validation needs a share between 0 and 1, or a number of 1 to {total - 1} examples "
            f"of the training part, got {wanted}: change data_options"
        )
    chosen = torch.from_numpy(stratified(targets, count, seed, key=3))
    stays = torch.ones(total, dtype=torch.bool)
    stays[chosen] = False
    return stays.nonzero().flatten(), chosen


def redrawn(targets: Tensor, everything: Tensor, share: Any, seed: int) -> Tensor:
    """Return targets of which this share is drawn anew from all classes, by ``seed``.

    A label may be drawn as it was: of C classes a share (1 - 1/C) of those drawn changes. At
    share 1 the labels tell nothing of the inputs (Zhang et al. 2017).

    Args:
        everything: Targets with all classes that there are.

    Raises:
        InputError: If the share is not in (0, 1] or draws no label, or if there is no other class.

    >>> random = redrawn(torch.zeros(10000, dtype=torch.int64), torch.arange(4), 1.0, seed=0)
    >>> [2400 < n < 2600 for n in random.bincount().tolist()]
    [True, True, True, True]
    """
    number = isinstance(share, int | float) and not isinstance(share, bool)
    if not (number and 0 < share <= 1 and round(share * len(targets))):
        raise InputError(
            f"random_labels needs a share above 0 and at most 1, that draws a label of "
            f"{len(targets)}, got {share}: change data_options"
        )
    labels = _classes(everything, "random_labels")
    rng = stream(seed, 4)
    places = rng.choice(len(targets), round(share * len(targets)), replace=False)
    drawn = torch.from_numpy(rng.choice(labels, len(places)))
    random = targets.clone()
    random[torch.from_numpy(places)] = drawn.to(targets.dtype)
    return random


def _classes(targets: Tensor, option: str, *, least: int = 2) -> Any:
    """Return the sorted classes that there are, at least so many."""
    if not is_labels(targets):
        raise InputError(
            f"{option} needs classes as targets, got {targets.dtype} of shape "
            f"{tuple(targets.shape)}: leave it out"
        )
    labels = np.unique(targets.cpu().numpy())
    if len(labels) < least:
        raise InputError(f"{option} needs at least {least} classes, got {len(labels)}: set 0")
    return labels
