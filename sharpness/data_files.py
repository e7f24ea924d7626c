"""Data sets that lie on the user's disk: their original files, or arrays in one file.

Nothing is downloaded. A set is looked for in a folder: the one that is given, else ``NAME`` in
the folder that the environment variable SHARPNESS_DATA names, else ``data/NAME``. Files are
read under strict rules: magic numbers and sizes are checked before memory is taken, and a pickle
runs nothing (see ``unpickling``). Pixels are divided by 255, as in the code of Keskar et al.
(2017), and nothing else is done to them.

Formats: IDX of Y. LeCun, plain or packed by gzip; the binary and the Python version of CIFAR;
NumPy's ``.npz``; HDF5.
"""

import gzip
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sharpness.errors import ComputationError, InputError
from sharpness.reading import MAX_BYTES, read_hdf5, regular_bytes
from sharpness.text import plain
from sharpness.unpickling import unpickled

FOLDER = "SHARPNESS_DATA"  # the environment variable
PACKED = 1032  # deflate makes no byte of less than 1/1032 of it
EMNIST = ("balanced", "byclass", "bymerge", "digits", "letters", "mnist")
CIFAR_PIXELS = 3 * 32 * 32
CIFAR_EXAMPLES = 10_000  # of an original file, 50,000 of CIFAR-100's train
# How others call inputs and targets of a file.
PAIRS = (("x", "y"), ("inputs", "targets"), ("images", "labels"), ("data", "targets"))
SHARE = 0.8  # of a file without parts of its own, for training

Pair = tuple[Tensor, Tensor]


def mnist(*, folder: str | None = None) -> tuple[Pair, Pair]:
    """Return MNIST from its four IDX files, inputs (N, 1, 28, 28) in [0, 1].

    Source: Y. LeCun, C. Cortes and C. J. C. Burges (1998), 60,000 and 10,000 handwritten digits.

    Args:
        folder: Where ``train-images-idx3-ubyte`` and the three others are, plain or ``.gz``.
    """
    return _idx_pair("mnist", folder, "train", "t10k")


def fashion_mnist(*, folder: str | None = None) -> tuple[Pair, Pair]:
    """Return Fashion-MNIST from its four IDX files, inputs (N, 1, 28, 28) in [0, 1].

    Source: H. Xiao, K. Rasul and R. Vollgraf (2017), 60,000 and 10,000 pictures of clothes, in
    files of the names and the form of MNIST's.

    Args:
        folder: Where they are, not the folder of MNIST.
    """
    return _idx_pair("fashion-mnist", folder, "train", "t10k")


def emnist(*, folder: str | None = None, split: str = "balanced") -> tuple[Pair, Pair]:
    """Return a split of EMNIST from its four IDX files, inputs (N, 1, 28, 28) in [0, 1].

    Source: G. Cohen, S. Afshar, J. Tapson and A. van Schaik (2017). The files hold each image
    transposed, which is undone here, and the letters numbered from 1, here from 0.

    Args:
        folder: Where ``emnist-SPLIT-train-images-idx3-ubyte`` and the others are, plain or ``.gz``.
        split: ``balanced``, ``byclass``, ``bymerge``, ``digits``, ``letters`` or ``mnist``.
    """
    if split not in EMNIST:
        raise InputError(f"emnist needs split to be one of {', '.join(EMNIST)}, got {split!r}")
    parts = _idx_pair("emnist", folder, f"emnist-{split}-train", f"emnist-{split}-test")
    first = 1 if split == "letters" else 0
    (x, y), (u, v) = parts
    return (x.mT.contiguous(), y - first), (u.mT.contiguous(), v - first)


def cifar10(*, folder: str | None = None) -> tuple[Pair, Pair]:
    """Return CIFAR-10 from its binary or its Python files, inputs (N, 3, 32, 32) in [0, 1].

    Source: A. Krizhevsky (2009), Learning Multiple Layers of Features from Tiny Images, 50,000
    and 10,000 photographs.

    Args:
        folder: Where ``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin`` are, or
            the same names without ``.bin``.
    """
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    within = ("cifar-10-batches-bin", "cifar-10-batches-py")
    *train, test = _cifar("cifar-10", folder, names, within, label=0, labels=1)
    return (torch.cat([x for x, _ in train]), torch.cat([y for _, y in train])), test


def cifar100(*, folder: str | None = None, labels: str = "fine") -> tuple[Pair, Pair]:
    """Return CIFAR-100 from its binary or its Python files, inputs (N, 3, 32, 32) in [0, 1].

    Source: A. Krizhevsky (2009), Learning Multiple Layers of Features from Tiny Images, 50,000
    and 10,000 photographs.

    Args:
        folder: Where ``train.bin`` and ``test.bin`` are, or ``train`` and ``test``.
        labels: ``fine``, of 100 classes, or ``coarse``, of 20.
    """
    if labels not in ("fine", "coarse"):
        raise InputError(f"cifar-100 needs labels to be fine or coarse, got {labels!r}")
    within = ("cifar-100-binary", "cifar-100-python")
    coarse = labels == "coarse"
    train, test = _cifar(
        *("cifar-100", folder, ["train", "test"], within), label=int(not coarse), labels=2
    )
    return train, test


def npz(path: str) -> Any:
    """Return the data of a ``.npz`` file; its arrays are called as ``arrays`` says.

    Raises:
        InputError: If there is no such file, or no inputs and targets in it.
        ComputationError: If it is damaged, or claims more than it holds.
    """
    file = Path(path)
    raw = regular_bytes(file)
    try:
        found = dict(_members(raw, file))
    except ComputationError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError) as error:
        raise ComputationError(
            f"{path} cannot be read as .npz ({plain(error)}): write it again by numpy.savez"
        ) from error
    return arrays(found, file)


def hdf5(path: str) -> Any:
    """Return the data of an HDF5 file; its arrays are called as ``arrays`` says.

    Raises:
        InputError: If there is no such file, or no inputs and targets in it.
        ComputationError: If it is damaged, or holds anything but plain arrays.
    """
    return arrays(read_hdf5(path), Path(path))


# By the ends of ``names.ARRAY_FILES``.
READERS: dict[str, Callable[[str], Any]] = {".npz": npz, ".h5": hdf5, ".hdf5": hdf5}


def arrays(found: dict[str, Tensor], path: Path) -> Any:
    """Return ``(train, test)``, or ``(all, size)`` of arrays by name.

    They are ``train_x``, ``train_y``, ``test_x`` and ``test_y``, also ``x_train`` or
    ``train/x``, or ``x`` and ``y``, of which 80 % are for training by default; instead of x and
    y, ``inputs`` and ``targets``, ``images`` and ``labels``, or ``data`` and ``targets``. Bytes are
    pixels and divided by 255, other numbers stay as they are.

    >>> x, y = torch.arange(10, dtype=torch.uint8)[:, None], torch.arange(10)
    >>> (inputs, targets), size = arrays({"x": x, "y": y}, Path("mine.npz"))
    >>> inputs.max() == 9 / 255, size
    (tensor(True), 8)
    """
    named = {name.lower().replace("/", "_"): value for name, value in found.items()}
    for x, y in PAIRS:
        parts = [_named_pair(named, part, x, y) for part in ("train", "test")]
        if parts[0] and parts[1]:
            return parts[0], parts[1]
        whole = _named_pair(named, "", x, y)
        if whole:
            return whole, max(1, round(SHARE * len(whole[1])))
    names = ", ".join(plain(name) for name in list(found)[:8]) or "none"
    raise InputError(
        f"{path} needs arrays train_x, train_y, test_x and test_y, or x and y, got {names}: rename "
        "them"
    )


def _named_pair(named: dict[str, Tensor], part: str, x: str, y: str) -> Pair | None:
    for form in (f"{part}_{{}}", f"{{}}_{part}") if part else ("{}",):
        inputs, targets = named.get(form.format(x)), named.get(form.format(y))
        if inputs is not None and targets is not None:
            return _inputs(inputs), _targets(targets)
    return None


def _inputs(values: Tensor) -> Tensor:
    if values.dtype == torch.uint8:
        return pixels(values)
    real = values.is_floating_point() and values.dtype != torch.float16
    return values if real else values.float() if values.dtype == torch.float16 else values.long()


def _targets(values: Tensor) -> Tensor:
    if values.is_floating_point():
        return values
    return values.long().flatten() if values.shape[1:] == (1,) else values.long()


def pixels(values: Tensor) -> Tensor:
    """Return bytes divided by 255, in float32.

    >>> pixels(torch.tensor([0, 51, 255], dtype=torch.uint8))
    tensor([0.0000, 0.2000, 1.0000])
    """
    return values.float().div_(255)


def _place(name: str, folder: Any) -> Path:
    if folder is None:
        return Path(os.environ.get(FOLDER) or "data", name)
    if not isinstance(folder, str):
        raise InputError(f"{name} needs folder to be the name of a folder, got {folder!r}")
    return Path(folder)


def _first(candidates: Iterator[Path]) -> Path | None:
    return next((path for path in candidates if path.exists()), None)


def _missing(name: str, file: str, place: Path, files: str) -> InputError:
    return InputError(
        f"{name} needs {file} in {place}, got no such file: put {files} there, or give "
        f"folder in data_options or {FOLDER}"
    )


def _idx_pair(name: str, folder: Any, train: str, test: str) -> tuple[Pair, Pair]:
    place, kinds = _place(name, folder), {"images": 3, "labels": 1}
    files = [f"{part}-{kind}-idx{n}-ubyte" for part in (train, test) for kind, n in kinds.items()]
    found = []
    for file in files:
        # torchvision unpacks into raw; some copies write a dot.
        names = [f"{x}{gz}" for x in (file, file.replace("-idx", ".idx")) for gz in ("", ".gz")]
        path = _first(place / within / x for within in ("", "raw") for x in names)
        if path is None:
            raise _missing(name, file, place, f"the {len(files)} files (or .gz)")
        found.append(path)
    parts = []
    for images_at, labels_at in (found[:2], found[2:]):
        images, labels = idx(images_at, 3), idx(labels_at, 1)
        if len(images) != len(labels):
            raise ComputationError(
                f"{labels_at} needs a label for each of the {len(images):,} images of "
                f"{images_at.name}, got {len(labels):,}: get both files again"
            )
        parts.append((pixels(images[:, None]), labels.long()))
    return parts[0], parts[1]


def idx(path: Path, axes: int) -> Tensor:
    """Return the bytes in an IDX file of so many axes, plain or packed by gzip.

    Raises:
        ComputationError: If it begins otherwise, or is not of the size that its header says.
    """
    raw = regular_bytes(path)
    stream: Any = gzip.GzipFile(fileobj=BytesIO(raw)) if raw[:2] == b"\x1f\x8b" else BytesIO(raw)
    header, magic = 4 + 4 * axes, 2048 + axes
    try:
        head = stream.read(header)
        if len(head) < header or int.from_bytes(head[:4], "big") != magic:
            raise ComputationError(
                f"{path} needs to begin by the number {magic} and {axes} sizes, as IDX files of "
                f"bytes do, got {head[:4].hex(' ') or 'nothing'} in {len(raw):,} bytes: get the "
                "original file"
            )
        sizes = [int.from_bytes(head[i : i + 4], "big") for i in range(4, header, 4)]
        claimed = math.prod(sizes)
        if claimed > PACKED * len(raw):
            raise _wrong_size(path, header + claimed, f"{len(raw):,}, too few even if packed")
        body = stream.read(claimed + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ComputationError(
            f"{path} is damaged or cut off at {len(raw):,} bytes ({plain(error)}): get it again"
        ) from error
    if len(body) != claimed:
        more = len(body) > claimed and stream.__class__ is gzip.GzipFile
        got = "more" if more else f"{header + len(body) + len(stream.read()):,}"
        raise _wrong_size(path, header + claimed, got)
    return torch.frombuffer(bytearray(body), dtype=torch.uint8).reshape(sizes)


def _wrong_size(path: Path, wanted: int, got: str) -> ComputationError:
    return ComputationError(
        f"{path} needs the {wanted:,} bytes that its header says, got {got}: get it again"
    )


def _cifar(
    name: str, folder: Any, names: list[str], within: tuple[str, str], *, label: int, labels: int
) -> list[Pair]:
    """Return the files of one version: the binary one if its first file is there."""
    place = _place(name, folder)
    at = {x: _first(place / y / x for y in ("", *within)) for x in (f"{names[0]}.bin", names[0])}
    ending = ".bin" if at[f"{names[0]}.bin"] or not at[names[0]] else ""
    parts = []
    for stem in names:
        file = f"{stem}{ending}"
        path = _first(place / y / file for y in ("", *within))
        if path is None:
            raise _missing(name, file, place, "the unpacked binary or Python version")
        examples = CIFAR_EXAMPLES * (5 if stem == "train" else 1)
        if ending:
            parts.append(_cifar_binary(path, label, labels, examples))
        else:
            parts.append(_cifar_python(path, label, labels, examples))
    return parts


def _cifar_binary(path: Path, label: int, labels: int, examples: int) -> Pair:
    """Return the records of a binary file: labels of a byte each, then red, green and blue rows."""
    raw, record = regular_bytes(path), labels + CIFAR_PIXELS
    if not raw or len(raw) % record:
        raise ComputationError(
            f"{path} needs whole records of {record:,} bytes, {examples * record:,} in the "
            f"original, got {len(raw):,} bytes: get it again"
        )
    rows = torch.frombuffer(bytearray(raw), dtype=torch.uint8).reshape(-1, record)
    return pixels(rows[:, labels:].reshape(-1, 3, 32, 32)), rows[:, label].long()


def _cifar_python(path: Path, label: int, labels: int, examples: int) -> Pair:
    found = unpickled(regular_bytes(path), path)
    key = "labels" if labels == 1 else ("coarse_labels", "fine_labels")[label]
    rows, targets = found.get("data"), found.get(key)
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.shape[1] != CIFAR_PIXELS:
        shape = rows.shape if isinstance(rows, np.ndarray) else "none"
        raise ComputationError(
            f"{path} needs data of shape ({examples}, {CIFAR_PIXELS}), got {shape}: get it again"
        )
    # By type: lists in lists would be unfolded without end.
    if not isinstance(targets, list) or any(type(x) is not int for x in targets):
        raise ComputationError(f"{path} needs whole numbers as {key}, got others: get it again")
    if len(targets) != len(rows) or not rows.size or not 0 <= min(targets) <= max(targets) < 100:
        raise ComputationError(
            f"{path} needs a label of 0 to 99 for each of at least one image, got {len(rows):,} "
            f"images and {len(targets):,} {key}: get it again"
        )
    images = torch.from_numpy(rows.copy()).reshape(-1, 3, 32, 32)
    return pixels(images), torch.tensor(targets)


def _members(raw: bytes, path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the arrays of numbers in a ``.npz`` file, each of the size that it says."""
    with zipfile.ZipFile(BytesIO(raw)) as archive:
        members = archive.infolist()
        claimed = sum(member.file_size for member in members)
        if claimed > min(PACKED * len(raw), MAX_BYTES):
            raise ComputationError(f"{path} is no honest file: it claims {claimed:,} bytes")
        for member in members:
            with archive.open(member) as stream:
                yield member.filename.removesuffix(".npy"), _npy(stream, member.file_size)


def _npy(stream: Any, size: int) -> Tensor:
    version = np.lib.format.read_magic(stream)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"version {version} of its arrays")
    shape, fortran, kind = readers[version](stream)
    if kind.kind not in "biuf" or kind.itemsize > 8:
        raise ValueError(f"an array of {kind}, which are no real numbers")
    wanted = math.prod(shape) * kind.itemsize
    if wanted != size - stream.tell():
        raise ValueError(f"an array of {wanted:,} bytes in {size - stream.tell():,}")
    flat: NDArray[Any] = np.frombuffer(stream.read(wanted), kind)
    array = flat.reshape(shape, order="F" if fortran else "C")
    return torch.from_numpy(array.astype(kind.newbyteorder("="), order="C"))
