"""Data sets, by name or from the user, and their seeded splits.

A source is what a data set's function returns, and what Python users pass: ``(train, test)``, or
``(all, size)`` where the split into a training part of that size (by default) and a test part is
drawn by seed. A part is ``(inputs, targets)`` or a map-style Dataset of such pairs, which is read
once, into memory: a curvature needs the same examples again and again.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, default_collate

from sharpness.errors import InputError
from sharpness.vectors import stream

# All inputs (a tensor, or a tuple or dict of them) and all targets; the first axis is the example.
Part = tuple[Any, Tensor]


# Examples of a Dataset that are read twice: chance in its augmentation would show itself.
AGAIN = 64


@dataclass(frozen=True)
class Split:
    """The training and the test part of a data set, and which of its examples they are."""

    train: Part
    test: Part
    train_index: Tensor  # (N,)  into the training part of the source, or into all
    test_index: Tensor


def digits() -> tuple[Part, int]:
    """Return 1797 handwritten digits, inputs (1797, 64) in [0, 1] and targets 0 to 9.

    Source: E. Alpaydin and C. Kaynak (1998), Optical Recognition of Handwritten Digits, the test
    set, as scikit-learn's ``load_digits`` has it; 8 x 8 pixels of 0 to 16, here divided by 16.

    >>> (inputs, targets), size = digits()
    >>> inputs.shape, targets[:10].tolist(), size
    (torch.Size([1797, 64]), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], 600)
    """
    with np.load(Path(__file__).parent / "data" / "digits.npz") as file:
        images, labels = file["images"], file["labels"]
    return (torch.from_numpy(images).float() / 16, torch.from_numpy(labels).long()), 600


DATA: dict[str, Callable[[], Any]] = {"digits": digits}


def split(
    source: Any, *, train_examples: int | None = None, label_noise: float = 0.0, split_seed: int = 0
) -> Split:
    """Return the two parts of a source.

    Where the source has both, ``train_examples`` takes a stratified sample of the training part;
    where it has one, the sample is the training part and all others are the test part. Stratified
    means that the classes keep their shares to within one example. Both are in the source's order.

    Args:
        label_noise: The exact share of training labels that are moved to another class, the
            examples and the classes drawn uniformly from ``split_seed``.

    Raises:
        InputError: If the source is no data set, or has too few examples or no classes.
    """
    first, second = _pair(source)
    everything = part(first)
    total = size(everything)
    if isinstance(second, int) and not isinstance(second, bool):
        wanted = second if train_examples is None else train_examples
        chosen = stratified(everything[1], wanted, split_seed)
        left = np.ones(total, bool)
        left[chosen] = False
        test, test_index = everything, np.flatnonzero(left)
        if not len(test_index):
            raise InputError(
                f"a test part needs at least one example, got {wanted} of {total} for training: "
                "ask for fewer"
            )
    else:
        wanted = total if train_examples is None else train_examples
        chosen = stratified(everything[1], wanted, split_seed)
        test = part(second)
        test_index = np.arange(size(test))
    train_index = torch.from_numpy(chosen)
    inputs, targets = take(everything, train_index)
    return Split(
        train=(inputs, _with_noise(targets, everything[1], label_noise, split_seed)),
        test=take(test, torch.from_numpy(test_index)),
        train_index=train_index,
        test_index=torch.from_numpy(test_index),
    )


def part(source: Any) -> Part:
    """Return one part as (inputs, targets) in memory, checked.

    Raises:
        InputError: If it is a loader, a generator or empty, if inputs and targets differ in
            length, or if an input is not finite.
    """
    if isinstance(source, DataLoader | IterableDataset | Iterator):
        raise InputError(
            f"data need (inputs, targets) or a map-style Dataset, got a {type(source).__name__}, "
            "which need not give the same examples in the same order again: pass its dataset or "
            "tensors"
        )
    if not (isinstance(source, tuple | list) and len(source) == 2):
        source = _read(source)
    inputs, targets = source
    inputs, targets = _map(_tensor, inputs), _tensor(targets)
    if not isinstance(targets, Tensor) or not targets.ndim or not len(targets):
        raise InputError(
            f"data need targets in a tensor, one for each of at least one example, got "
            f"{_described(targets)}: give more data"
        )
    leaves = list(_leaves(inputs))
    lengths = {len(leaf) if leaf.ndim else 0 for leaf in leaves}
    if lengths != {len(targets)}:
        found = ", ".join(map(str, sorted(lengths))) or "no"
        raise InputError(
            f"data need as many inputs as targets, got {found} inputs and {len(targets)} targets: "
            "give the same examples in both"
        )
    for name, leaf in [("inputs", leaf) for leaf in leaves] + [("targets", targets)]:
        if leaf.is_floating_point() and not torch.isfinite(leaf).all():
            bad = ~torch.isfinite(leaf).flatten(1 if leaf.ndim > 1 else 0)
            rows = bad.any(dim=1) if leaf.ndim > 1 else bad
            raise InputError(
                f"data need finite {name}, got {int(bad.sum())} that are not, the first in "
                f"example {int(rows.nonzero()[0])}: clean the data"
            )
    return inputs, targets


def size(part: Part) -> int:
    """Return the number of examples."""
    return len(part[1])


def take(part: Part, index: Tensor) -> Part:
    """Return the examples with these numbers, shape (b,), in that order."""
    return _map(lambda leaf: leaf[index], part[0]), part[1][index]


def batches(part: Part, batch_size: int) -> list[Part]:
    """Return the examples in order, as views, in batches of which the last may be smaller."""
    cuts = [slice(i, i + batch_size) for i in range(0, size(part), batch_size)]
    return [(_map(lambda leaf, cut=cut: leaf[cut], part[0]), part[1][cut]) for cut in cuts]


def converted(part: Part, dtype: torch.dtype) -> Part:
    """Return the part with its floating-point numbers in this dtype."""

    def convert(leaf: Tensor) -> Tensor:
        return leaf.to(dtype) if leaf.is_floating_point() else leaf

    return _map(convert, part[0]), convert(part[1])


def tensors(part: Part) -> list[Tensor]:
    """Return all tensors of a part, inputs first."""
    return [*_leaves(part[0]), part[1]]


def is_labels(targets: Tensor) -> bool:
    """Say whether targets, shape (N,), are class numbers."""
    return targets.ndim == 1 and not (targets.is_floating_point() or targets.is_complex())


def stratified(targets: Tensor, wanted: int, seed: int) -> Any:
    """Return the numbers of ``wanted`` examples in increasing order, an int64 array.

    Each class keeps its share, rounded by the largest remainder; targets that are not classes are
    sampled uniformly.

    Raises:
        InputError: If there are fewer examples than that.
    """
    total = len(targets)
    if not isinstance(wanted, int) or not 0 < wanted <= total:
        raise InputError(
            f"a sample needs at least 1 and at most {total} examples, got {wanted}: change it"
        )
    rng = stream(seed, 0)
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


def _with_noise(targets: Tensor, everything: Tensor, share: float, seed: int) -> Tensor:
    if not 0 <= share < 1:
        raise InputError(f"label_noise needs to be at least 0 and below 1, got {share}: change it")
    if share == 0:
        return targets
    if not is_labels(targets):
        raise InputError(f"label_noise needs classes as targets, got {_described(targets)}: set 0")
    labels = np.unique(everything.cpu().numpy())
    if len(labels) < 2:
        raise InputError(f"label_noise needs at least 2 classes, got {len(labels)}: set 0")
    if not round(share * len(targets)):
        raise InputError(
            f"label_noise needs to move a label, got {share} of {len(targets)} examples: raise it"
        )
    rng = stream(seed, 1)
    moved = torch.from_numpy(rng.choice(len(targets), round(share * len(targets)), replace=False))
    shift = rng.integers(1, len(labels), len(moved))
    old = np.searchsorted(labels, targets[moved].cpu().numpy())
    noisy = targets.clone()
    noisy[moved] = torch.from_numpy(labels[(old + shift) % len(labels)]).to(targets.dtype)
    return noisy


def _pair(source: Any) -> tuple[Any, Any]:
    if not (isinstance(source, tuple | list) and len(source) == 2):
        raise InputError(
            "data need (train, test), or (all, size of the training part), got "
            f"{_described(source)}: return such a pair"
        )
    return source[0], source[1]


def _read(dataset: Any) -> Part:
    """Return all pairs of a map-style Dataset, collated."""
    if isinstance(dataset, Tensor | np.ndarray):
        raise InputError(
            "data need (train, test), each (inputs, targets), got an array as one of the two: "
            "return both parts"
        )
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise InputError(
            f"data need (inputs, targets) or a map-style Dataset, got {_described(dataset)}: "
            "return one of them"
        )
    pairs = [dataset[i] for i in range(len(dataset))]
    if not pairs or not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
        first = _described(pairs[0]) if pairs else "none"
        raise InputError(
            f"a Dataset needs pairs (inputs, target), at least one, got {first}: change it"
        )
    for i in range(min(AGAIN, len(pairs))):
        if not _same(pairs[i], dataset[i]):
            raise InputError(
                "a Dataset needs the same example at every look, got two different ones for "
                f"number {i}: switch random augmentation off"
            )
    return _collated(pairs)


def _collated(pairs: list[Any]) -> Part:
    try:
        inputs, targets = default_collate(pairs)
    except (TypeError, RuntimeError, ValueError) as error:
        raise InputError(
            f"a Dataset needs examples of one shape and kind, numbers or tensors, got others "
            f"({' '.join(str(error).split())}): convert them"
        ) from error
    return inputs, targets


def _same(one: Any, other: Any) -> bool:
    """Say whether two examples agree bit by bit, as torch would collate them."""
    a, b = (list(_leaves(_map(_tensor, _collated([pair])))) for pair in (one, other))
    return len(a) == len(b) and all(
        x.shape == y.shape and torch.equal(x.nan_to_num(), y.nan_to_num())
        for x, y in zip(a, b, strict=True)
    )


def _map(f: Callable[..., Any], inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return {name: _map(f, leaf) for name, leaf in inputs.items()}
    if isinstance(inputs, tuple | list):
        return tuple(_map(f, leaf) for leaf in inputs)
    return f(inputs)


def _leaves(inputs: Any) -> Iterator[Tensor]:
    nested = inputs.values() if isinstance(inputs, dict) else inputs
    if isinstance(inputs, Tensor):
        yield inputs
    else:
        for leaf in nested:
            yield from _leaves(leaf)


def _tensor(leaf: Any) -> Tensor:
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc":
        # A copy: torch takes no strides below 0, no foreign byte order and nothing read-only.
        leaf = torch.from_numpy(np.array(leaf, dtype=leaf.dtype.newbyteorder("="), order="C"))
    if not isinstance(leaf, Tensor):
        raise InputError(f"data need tensors or arrays, got {_described(leaf)}: convert them")
    return leaf.detach()


def _described(x: Any) -> str:
    if isinstance(x, Tensor):
        return f"{x.dtype} of shape {tuple(x.shape)}"
    if isinstance(x, np.ndarray):
        return f"an array of {x.dtype}"
    if isinstance(x, tuple | list):
        return f"a {type(x).__name__} of {len(x)}"
    return f"a {type(x).__name__}"
