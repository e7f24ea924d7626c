"""Data sets, by name, from files or from the user, their seeded splits and what is made of them.

A source is what a data set's function returns, and what Python users pass: ``(train, test)``,
also as a dict with these keys, or ``(all, size)`` where the split into a training part of that size
(by default) and a test part is drawn by seed. A part is ``(inputs, targets)`` or a map-style
Dataset, which is read once, into memory: a curvature needs the same examples again and again. Its
examples are such pairs, or dicts, as those of Hugging Face's, with a label and an image or
other inputs; images become tensors (c, h, w) of pixels in [0, 1].

``TRANSFORMS`` are the options that every data set has.
"""

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, default_collate

from sharpness.augmentation import augmented, settings
from sharpness.data_files import (
    READERS,
    cifar10,
    cifar100,
    emnist,
    fashion_mnist,
    mnist,
    pixels,
)
from sharpness.errors import InputError
from sharpness.labels import (
    held_out,
    is_labels as is_labels,  # also a part of this module: what a data set's targets are
    moved,
    redrawn,
    stratified as stratified,
    subset,
)
from sharpness.names import called, is_array_file, resolve, shown
from sharpness.synthetic import clusters, planted, teacher_student

# All inputs (a tensor, or a tuple or dict of them) and all targets; the first axis is the example.
Part = tuple[Any, Tensor]


# Where an example that is a dict has its target, and its image.
TARGETS = ("label", "labels", "fine_label", "target", "targets", "y")
IMAGES = ("image", "img", "pixel_values")
# Examples of a Dataset that are read twice: chance in its augmentation would show itself.
AGAIN = 64


@dataclass(frozen=True)
class Split:
    """The parts of a data set, and which of its examples they are."""

    train: Part
    test: Part
    train_index: Tensor  # (N,)  into the training part of the source, or into all
    test_index: Tensor
    validation: Part | None = None  # taken from the training part, by the option
    validation_index: Tensor | None = None

    @property
    def parts(self) -> dict[str, Part]:
        """The parts that there are, by name."""
        found = {"train": self.train, "test": self.test, "validation": self.validation}
        return {name: part for name, part in found.items() if part is not None}

    def holding(self, change: Callable[[Part], Part]) -> "Split":
        """Return the same examples with each part changed."""
        validation = None if self.validation is None else change(self.validation)
        return replace(
            self, train=change(self.train), test=change(self.test), validation=validation
        )


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


# Those of ``data_files`` are read from the user's disk.
DATA: dict[str, Callable[..., Any]] = {
    "digits": digits,
    "mnist": mnist,
    "fashion-mnist": fashion_mnist,
    "emnist": emnist,
    "cifar-10": cifar10,
    "cifar-100": cifar100,
    "clusters": clusters,
    "teacher-student": teacher_student,
    "planted": planted,
}
IMMUTABLE = ("digits", "clusters", "teacher-student", "planted")


def standardized(inputs: Any, by: Any, of: Any) -> Any:
    """Return inputs less the mean and over the deviation of those of the training part.

    Where the deviation is 0, they are divided by 1.

    Args:
        by: ``pixel``, for each place by itself, or ``channel``, for each channel of images
            (N, c, h, w); inputs of other shapes share one mean and one deviation.
        of: Inputs of the training part.

    Raises:
        InputError: If they are not one tensor of floating-point numbers.

    >>> x = torch.tensor([[1.0, 7.0], [3.0, 7.0]])
    >>> standardized(x, "pixel", x).tolist()
    [[-1.0, 0.0], [1.0, 0.0]]
    """
    if by not in ("pixel", "channel"):
        raise InputError(f"standardize needs pixel or channel, got {by}: change data_options")
    if not (isinstance(of, Tensor) and of.is_floating_point()):
        kind = of.dtype if isinstance(of, Tensor) else f"a {type(of).__name__}"
        raise InputError(f"standardize needs inputs of real numbers, got {kind}: leave it out")
    over = [0] if by == "pixel" else [i for i in range(of.ndim) if i != 1 or of.ndim != 4]
    mean = of.double().mean(over, keepdim=True)
    deviation = (of.double() - mean).square().mean(over, keepdim=True).sqrt()
    # In float64 a constant pixel is at most some roundings away from its mean.
    constant = deviation <= 1e-12 * mean.abs()
    return ((inputs.double() - mean) / deviation.masked_fill(constant, 1.0)).to(inputs.dtype)


# In the order in which they are done; augment while training, and elsewhere never.
TRANSFORMS: dict[str, Callable[..., Any]] = {
    "classes": subset,
    "validation": held_out,
    "random_labels": redrawn,
    "standardize": standardized,
    "augment": augmented,
}


def source_of(data: Any, options: Mapping[str, Any] | None = None) -> Any:
    """Return the source that a name, a file of arrays, a function or an object stands for.

    Args:
        options: Arguments of the data set's function, beside those of ``TRANSFORMS``.

    Raises:
        InputError: If the name or an option is unknown, or if a file is missing.
        ComputationError: If a file is damaged.

    >>> source_of("digits")[1]
    600
    """
    if not isinstance(options or {}, Mapping):
        raise InputError(f"data_options need to be names with values, got {options}: change them")
    own = {key: value for key, value in (options or {}).items() if key not in TRANSFORMS}
    if is_array_file(data):
        _require_options(data, own, [])
        return READERS[Path(data).suffix.lower()](data)
    source = resolve(data, DATA, "data")
    if not callable(source):
        _require_options(shown(data), own, [])
        return source
    if own:
        _require_options(shown(data), own, _parameters(source, own))
    return called(source, "data", data, own)


def is_read_anew(data: Any) -> bool:
    """Say whether a name stands for what another time can be other data: a file or a function.

    >>> is_read_anew("digits"), is_read_anew("mnist"), is_read_anew("mine.npz")
    (False, True, True)
    """
    return isinstance(data, str) and data not in IMMUTABLE


def _parameters(f: Callable[..., Any], own: Mapping[str, Any]) -> list[str]:
    """Return the options that a function takes; those that are given where it takes any."""
    try:
        parameters = inspect.signature(f).parameters.values()
    except ValueError:
        return list(own)  # a builtin without a signature
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return list(own)
    return [p.name for p in parameters if p.kind not in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL)]


def _require_options(name: str, own: Mapping[str, Any], takes: list[str]) -> None:
    for key in own:
        if key not in takes:
            known = [*takes, *TRANSFORMS]
            close = difflib.get_close_matches(key, known, 1)
            raise InputError(
                f"data_options of {name} need to be some of {', '.join(known)}, got {key}: "
                + (f"did you mean {close[0]}?" if close else "leave it out")
            )


def split(
    source: Any,
    *,
    train_examples: int | None = None,
    label_noise: float = 0.0,
    split_seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> Split:
    """Return the parts of a source.

    Where the source has both, ``train_examples`` takes a stratified sample of the training part;
    where it has one, the sample is the training part and all others are the test part. Stratified
    means that the classes keep their shares to within one example. All are in the source's order.

    Args:
        label_noise: The exact share of training labels that are moved to another class, the
            examples and the classes drawn uniformly from ``split_seed``.
        options: Of ``TRANSFORMS``: ``classes`` are chosen before the sample is drawn, whose size
            by default falls with them; ``validation`` is taken from the sample; labels change in
            what is left, and its statistics ``standardize`` all parts.

    Raises:
        InputError: If the source is no data set, or has too few examples or no classes.
    """
    chosen = {key: value for key, value in (options or {}).items() if key in TRANSFORMS}
    if label_noise and "random_labels" in chosen:
        raise InputError(
            f"random_labels need no label_noise, got {label_noise} beside them: leave one out"
        )
    first, second = _pair(source)
    whole = part(first)
    total = size(whole)
    everything, kept = _of_classes(whole, chosen)
    if isinstance(second, int) and not isinstance(second, bool):
        usual = max(1, round(second * size(everything) / total))
        wanted = usual if train_examples is None else train_examples
        sample = torch.from_numpy(stratified(everything[1], wanted, split_seed))
        left = torch.ones(size(everything), dtype=torch.bool)
        left[sample] = False
        if not left.any():
            raise InputError(
                f"a test part needs at least one example, got {wanted} of {size(everything)} for "
                "training: ask for fewer"
            )
        rest = left.nonzero().flatten()
        test, test_index = take(everything, rest), kept[rest]
    else:
        wanted = size(everything) if train_examples is None else train_examples
        sample = torch.from_numpy(stratified(everything[1], wanted, split_seed))
        test, test_index = _of_classes(part(second), chosen)
    held = None
    if "validation" in chosen:
        stay, out = held_out(everything[1][sample], chosen["validation"], split_seed)
        sample, held = sample[stay], sample[out]
    inputs, targets = take(everything, sample)
    targets = moved(targets, everything[1], label_noise, split_seed)
    if "random_labels" in chosen:
        targets = redrawn(targets, everything[1], chosen["random_labels"], split_seed)
    parts = Split(
        train=(inputs, targets),
        test=test,
        train_index=kept[sample],
        test_index=test_index,
        validation=None if held is None else take(everything, held),
        validation_index=None if held is None else kept[held],
    )
    return _with_inputs(parts, chosen)


def _of_classes(whole: Part, chosen: Mapping[str, Any]) -> tuple[Part, Tensor]:
    """Return the examples of the chosen classes, renumbered, and their numbers in the whole."""
    if "classes" not in chosen:
        return whole, torch.arange(size(whole))
    index, targets = subset(whole[1], chosen["classes"])
    return (take(whole, index)[0], targets), index


def _with_inputs(parts: Split, chosen: Mapping[str, Any]) -> Split:
    """Return the parts with their inputs standardized; augmentation is only looked at."""
    if "augment" in chosen:
        settings(chosen["augment"], parts.train[0])
    if "standardize" not in chosen:
        return parts
    of, by = parts.train[0], chosen["standardize"]
    return parts.holding(lambda part: (standardized(part[0], by, of), part[1]))


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


def _pair(source: Any) -> tuple[Any, Any]:
    if isinstance(source, Mapping) and {"train", "test"} <= source.keys():
        return source["train"], source["test"]
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
    pairs = [_row(dataset[i]) for i in range(len(dataset))]
    if not pairs or not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
        first = _described(pairs[0]) if pairs else "none"
        raise InputError(
            f"a Dataset needs pairs (inputs, target), at least one, or dicts with one of "
            f"{', '.join(TARGETS)} and other keys, got {first}: change it"
        )
    for i in range(min(AGAIN, len(pairs))):
        if not _same(pairs[i], _row(dataset[i])):
            raise InputError(
                "a Dataset needs the same example at every look, got two different ones for "
                f"number {i}: switch random augmentation off"
            )
    return _collated(pairs)


def _row(example: Any) -> Any:
    """Return a pair (inputs, target) of an example that is one or a dict, its images as tensors."""
    if isinstance(example, Mapping):
        names = [name for name in TARGETS if name in example]
        if not names or len(example) < 2:
            return example
        image = next((name for name in IMAGES if name in example), None)
        others = {name: _image(x) for name, x in example.items() if name not in TARGETS}
        inputs = others[image] if image else others
        inputs = next(iter(others.values())) if len(others) == 1 else inputs
        return inputs, example[names[0]]
    if isinstance(example, tuple | list) and len(example) == 2:
        return _image(example[0]), example[1]
    return example


def _image(x: Any) -> Any:
    """Return the pixels (c, h, w) of a picture in [0, 1], lists as arrays, others as they are."""
    if isinstance(x, list):
        return np.asarray(x)
    # What Pillow's images have; torchvision gives them where no transform is asked for.
    if not hasattr(x, "__array_interface__") or isinstance(x, np.ndarray | np.generic):
        return x
    array = np.array(x)
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise InputError(
            f"a picture needs pixels of one byte, got {_described(array)}: convert it to L or RGB"
        )
    values = pixels(torch.from_numpy(array))
    return values[None] if array.ndim == 2 else values.movedim(-1, 0)


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
