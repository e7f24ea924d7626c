"""Tensors of foreign files under strict rules; nothing in a file can name code or another file.

A file is read once, and all that is asked of it is asked of those bytes. A checkpoint is a state
dict alone or under a key of its own, as ``torch.save``, safetensors or HDF5 files hold it; the
modules ``reading_*`` know the formats, here is what is asked of all.
"""

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sharpness import reading_hdf5, reading_safetensors, reading_torch
from sharpness.errors import ComputationError, InputError
from sharpness.text import plain

KEYS = ("state_dict", "model_state_dict", "model")  # where others keep the weights
PREFIX = "module."  # of a model in DataParallel
# A file is held in memory whole, beside its tensors: 4e9 parameters in float32, far more than
# products with a Hessian are taken of here, and a slip such as a disk image ends at once.
MAX_BYTES = 16 * 2**30
REAL = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8),
)


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a checkpoint, and what its file is."""

    weights: dict[str, Tensor]  # on the CPU
    sha256: str  # of the file
    checksum: str  # by which damage would have shown: crc32 or none


def read_checkpoint(
    path: str | Path, *, key: str | None = None, max_bytes: int = MAX_BYTES
) -> Checkpoint:
    """Return the weights of a checkpoint by name.

    Args:
        key: Where in the file the weights are. Default: the file itself, or one of ``KEYS`` if
            there are no other weights of the same names.
        max_bytes: Refuse larger files, which are held in memory whole.

    Raises:
        InputError: If there is no such regular file.
        ComputationError: If it is damaged, or holds anything but dense tensors of real numbers.
    """
    path = Path(path)
    raw = regular_bytes(path, max_bytes)
    stored, checksum = None, "none"
    if raw.startswith(reading_hdf5.MAGIC):
        content: Any = _by_dots(reading_hdf5.tensors(raw, path), path, key)
    elif reading_safetensors.begins(raw):
        content = reading_safetensors.tensors(raw, path)
    elif raw.startswith(reading_torch.MAGIC):
        content, stored, checksum = reading_torch.content(raw, path)
    else:
        raise ComputationError(f"{path} {_diagnosis(raw)}: save model.state_dict() by torch.save")
    weights = _state_dict(content, path, key)
    for name, tensor in weights.items():
        _require_dense(tensor, f"{path}", plain(name), stored)
    detached = {name: value.detach() for name, value in weights.items()}
    return Checkpoint(detached, hashlib.sha256(raw).hexdigest(), checksum)


def read_hdf5(path: str | Path, *, max_bytes: int = MAX_BYTES) -> dict[str, Tensor]:
    """Return the arrays of numbers in anybody's HDF5 file, by their names joined with ``/``.

    The file is read in a process of its own, which has limits of memory and time and can open no
    other file; attributes are not read.

    Raises:
        InputError: If there is no such regular file.
        ComputationError: If the file is damaged, or holds anything but groups and plain arrays.

    >>> import h5py
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     with h5py.File(f"{folder}/a.h5", "w") as file:
    ...         file["layer/weight"] = [1.0, 2.0]
    ...     read_hdf5(f"{folder}/a.h5")
    {'layer/weight': tensor([1., 2.], dtype=torch.float64)}
    """
    path = Path(path)
    raw = regular_bytes(path, max_bytes)
    if not raw.startswith(reading_hdf5.MAGIC):
        raise ComputationError(f"{path} needs to begin as HDF5 files do: look at the name")
    return reading_hdf5.tensors(raw, path)


def unprefixed(weights: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights by the names of the model, where the file has more before all of them.

    That is the prefix of DataParallel, a group that holds all others in an HDF5 file, or the
    attribute that holds the network in a module of Lightning or under ``torch.compile``, beside
    which a file may keep tensors of others, such as a loss: where all tensors of the model are
    found behind one prefix, and behind no other.
    """
    if weights.keys() == wanted.keys():
        return weights
    first = "." + next(iter(wanted))
    prefixes = {name.removesuffix(first) + "." for name in weights if name.endswith(first)}
    whole = [prefix for prefix in prefixes if all(prefix + name in weights for name in wanted)]
    if len(whole) == 1 and not wanted.keys() & weights.keys():
        return {name: weights[whole[0] + name] for name in wanted}
    prefix = next(iter(weights)).partition(".")[0] + "."
    if not all(name.startswith(prefix) for name in weights):
        return weights
    bare = {name.removeprefix(prefix): value for name, value in weights.items()}
    return bare if prefix == PREFIX or bare.keys() == wanted.keys() else weights


def with_tied(weights: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights, also under the other names of tensors that the model has twice.

    Safetensors files of Hugging Face keep a tensor that several parts of a model share once.

    Args:
        weights: By name.
        wanted: The state of the model, in which what is tied lies in the same memory.
    """
    homes = {(x.data_ptr(), x.shape): weights[k] for k, x in wanted.items() if k in weights}
    missing = {
        name: homes[x.data_ptr(), x.shape]
        for name, x in wanted.items()
        if name not in weights and x.numel() and (x.data_ptr(), x.shape) in homes
    }
    return weights | missing


def require_match(weights: dict[str, Tensor], wanted: dict[str, Tensor], name: str) -> None:
    """Refuse weights that are not every tensor wanted and no other, each of its shape and kind.

    Raises:
        InputError: If a tensor is missing, unknown, or of another shape or kind.
        ComputationError: If one holds a number that is not finite.
    """
    problems = {
        "missing": [k for k in wanted if k not in weights],
        "not in the model": [k for k in weights if k not in wanted],
    }
    for what, keys in problems.items():
        if keys:
            verb = f"and {len(keys) - 1} more are" if len(keys) > 1 else "is"
            raise InputError(
                f"{name} needs the tensors of the model: {plain(keys[0])} {verb} {what}"
            )
    for key, value in weights.items():
        want = wanted[key]
        if value.shape != want.shape:
            raise InputError(
                f"{name} needs the shapes of the model: {key} is {tuple(value.shape)}, the model "
                f"has {tuple(want.shape)}"
            )
        if value.is_floating_point() != want.is_floating_point():
            raise InputError(
                f"{name} needs the kinds of the model: {key} is {value.dtype}, the model has "
                f"{want.dtype}"
            )
        bad = int((~torch.isfinite(value.to(want.dtype))).sum())  # also beyond its range
        if bad:
            raise ComputationError(f"{name} needs finite weights: {key} holds {bad} that are not")


def regular_bytes(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the bytes of a regular file.

    Raises:
        InputError: If there is none, if it is a directory or a device, or larger than that.
    """
    try:
        # What is asked is asked of the open file: the name may stand for another one by then.
        with open(path, "rb", opener=_without_waiting) as file:
            _require_regular(os.fstat(file.fileno()), path, max_bytes)
            return file.read()
    except IsADirectoryError as error:
        raise InputError(f"{path} needs to be a file, but is a directory: give a file") from error
    except PermissionError as error:
        raise InputError(f"{path} needs to be readable: {error.strerror}") from error
    except OSError as error:
        raise InputError(f"{path} needs to be a file that is there: {error.strerror}") from error


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe waits for its writer


def _require_regular(status: os.stat_result, path: Path, max_bytes: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} needs to be a file, but is not a regular file: give a file")
    if status.st_size > max_bytes:
        raise InputError(
            f"{path} needs at most {max_bytes:,} bytes, got {status.st_size:,}: raise max_bytes"
        )


def _require_dense(tensor: Tensor, path: str, name: str, stored: Any) -> None:
    """Refuse what is no plain array of real numbers that lies in the file.

    Args:
        stored: The storages by their addresses that came out of the file, None where the reader
            makes only such.
    """
    plain_kind = tensor.layout is torch.strided and not tensor.is_meta
    if not plain_kind or tensor.is_quantized or tensor.is_nested:
        raise ComputationError(
            f"{path} needs dense tensors: {name} is {tensor.layout} on {tensor.device}, of "
            f"{tensor.dtype}{' and nested' * tensor.is_nested}"
        )
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        raise ComputationError(f"{path} needs plain tensors: {name} is a {type(tensor)}")
    if tensor.dtype not in REAL:
        raise ComputationError(f"{path} needs real or whole numbers: {name} is {tensor.dtype}")
    memory = tensor.untyped_storage()
    # torch also makes tensors of memory that nobody has written, when a file asks for them.
    known = stored is None or not tensor.numel() or memory.data_ptr() in stored
    if not known or tensor.numel() * tensor.element_size() > memory.nbytes():
        raise ComputationError(f"{path} is no honest file: {name} claims more than it holds")


def _state_dict(content: Any, path: Path, key: str | None) -> dict[str, Tensor]:
    """Return the tensors by name under the key, or where others have them.

    Raises:
        ComputationError: If there are none, or weights of the same names in several places.
    """
    inside = content if isinstance(content, dict) else {}
    found = {name: value for name, value in inside.items() if _is_weights(value)}
    if key is not None:
        if key in found:
            return found[key]
        raise ComputationError(
            f"{path} needs tensors under {plain(key)}, but has them under "
            f"{_listed(found) or 'no key'}: choose another key"
        )
    if _is_weights(content):
        return dict(content)
    usual = [name for name in KEYS if name in found]
    if not usual:
        kind = _listed(inside) or "nothing" if isinstance(content, dict) else _a(content)
        hint = f"choose {_listed(found)} by key" if found else "save model.state_dict()"
        raise ComputationError(
            f"{path} needs a state dict, alone or under {', '.join(KEYS)}, but holds {kind}: {hint}"
        )
    names = _bare(found[usual[0]])
    rivals = [name for name, value in found.items() if names & _bare(value)]
    if len(rivals) > 1:
        raise ComputationError(
            f"{path} needs one set of weights, but has some under {_listed(rivals)}: choose by key"
        )
    return found[usual[0]]


def _is_weights(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and bool(content)
        and all(type(k) is str and isinstance(v, Tensor) for k, v in content.items())
    )


def _bare(weights: dict[str, Tensor]) -> set[str]:
    return {name.removeprefix(PREFIX) for name in weights}


def _listed(names: Any) -> str:
    """Return the first names; what is no text is told by its kind, for its own can be endless."""
    return ", ".join(plain(x) if type(x) is str else _a(x) for x in list(names)[:5])


def _a(x: Any) -> str:
    return f"a {type(x).__name__}"


def _by_dots(tensors: dict[str, Tensor], path: Path, key: str | None) -> dict[str, Any]:
    """Return the arrays of an HDF5 file as a state dict; where one is chosen, those of each group.

    Raises:
        ComputationError: If two get the same name, or if it is a run of ours.
    """
    if "end/theta" in tensors:
        raise ComputationError(
            f"{path} looks like a run of ours whose seal is missing or broken: it is damaged or "
            "was opened for writing, so compute it again"
        )
    dotted = {name.replace("/", "."): value for name, value in tensors.items()}
    if len(dotted) < len(tensors):
        raise ComputationError(f"{path} needs one name for each array where / is read as a dot")
    if key is None:
        return dotted
    groups: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        group, _, rest = name.partition("/")
        if rest:
            groups.setdefault(group, {})[rest.replace("/", ".")] = value
    return groups


def _diagnosis(raw: bytes) -> str:
    if not raw:
        return "is empty"
    if raw.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself"
    if raw.lstrip()[:1] == b"<":
        return "is no checkpoint (it looks like HTML)"
    return "is no checkpoint that torch.save wrote since torch 1.6, nor safetensors or HDF5"
