"""Tensors of foreign files under strict rules; nothing in a file can name code to run.

A checkpoint is a state dict as ``torch.save`` writes it, alone or under a key of its own. Before
``torch.load(weights_only=True)`` sees the file, the checksums of all its members are tested:
torch compiles that test out and would load damaged weights silently (pytorch#126952).
"""

import hashlib
import stat
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sharpness.errors import ComputationError, InputError

KEYS = ("state_dict", "model_state_dict", "model")  # where others keep the weights
PREFIX = "module."  # of a model in DataParallel


def read_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], str]:
    """Return the weights of a checkpoint by name, on the CPU, and the SHA-256 of the file.

    Raises:
        InputError: If there is no such regular file.
        ComputationError: If it is damaged, or holds anything but dense tensors of real numbers.
    """
    path = Path(path)
    raw = regular_bytes(path)
    try:
        if not zipfile.is_zipfile(path):
            raise ComputationError(
                f"{path} {_diagnosis(raw)}: save model.state_dict() by torch.save"
            )
        with zipfile.ZipFile(path) as members:
            damaged = members.testzip()
    except ComputationError:
        raise
    except Exception as error:
        raise ComputationError(f"{path} is damaged: {error}: get it again") from error
    if damaged:
        raise ComputationError(f"{path} is damaged: the checksum of {damaged} is wrong")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ComputationError(
            f"{path} holds more than tensors, numbers and text ({_refused(error)}): save "
            "model.state_dict()"
        ) from error
    weights = _state_dict(content, path)
    for name, tensor in weights.items():
        plain = tensor.layout is torch.strided and not tensor.is_meta
        if not plain or tensor.is_quantized or tensor.is_nested:
            raise ComputationError(
                f"{path} needs dense tensors: {name} is {tensor.layout} on {tensor.device}, of "
                f"{tensor.dtype}{' and nested' * tensor.is_nested}"
            )
        if type(tensor) not in (Tensor, torch.nn.Parameter):
            raise ComputationError(f"{path} needs plain tensors: {name} is a {type(tensor)}")
        if tensor.numel() * tensor.element_size() > len(raw):
            raise ComputationError(f"{path} is no honest file: {name} claims more than it holds")
    return weights, hashlib.sha256(raw).hexdigest()


def unprefixed(weights: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights without the prefix of DataParallel, where the model has none."""
    if weights.keys() == wanted.keys() or not all(name.startswith(PREFIX) for name in weights):
        return weights
    return {name.removeprefix(PREFIX): value for name, value in weights.items()}


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
            raise InputError(f"{name} needs the tensors of the model: {keys[0]} {verb} {what}")
    for key, value in weights.items():
        want = wanted[key]
        if value.shape != want.shape:
            raise InputError(
                f"{name} needs the shapes of the model: {key} is {tuple(value.shape)}, the model "
                f"has {tuple(want.shape)}"
            )
        if value.is_floating_point() != want.is_floating_point() or value.is_complex():
            raise InputError(
                f"{name} needs the kinds of the model: {key} is {value.dtype}, the model has "
                f"{want.dtype}"
            )
        bad = int((~torch.isfinite(value.to(want.dtype))).sum())  # also beyond its range
        if bad:
            raise ComputationError(f"{name} needs finite weights: {key} holds {bad} that are not")


def regular_bytes(path: Path) -> bytes:
    """Return the bytes of a regular file.

    Raises:
        InputError: If there is none, or if it is a directory or a device.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise InputError(f"{path} needs to be a file that is there: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
        raise InputError(f"{path} needs to be a file, but is {kind}: give a file")
    try:
        return path.read_bytes()
    except PermissionError as error:
        raise InputError(f"{path} needs to be readable: {error.strerror}") from error


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, dict):
        inside = [content[key] for key in KEYS if isinstance(content.get(key), dict)]
        weights = inside[0] if inside else content
        if weights and all(isinstance(value, Tensor) for value in weights.values()):
            return {str(name): value.detach() for name, value in weights.items()}
        found = ", ".join(map(str, list(weights)[:5])) or "nothing"
    else:
        found = f"a {type(content).__name__}"
    raise ComputationError(
        f"{path} needs a state dict, alone or under {', '.join(KEYS)}, but holds {found}: save "
        "model.state_dict()"
    )


def _diagnosis(raw: bytes) -> str:
    if not raw:
        return "is empty"
    if raw.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself"
    if raw.lstrip()[:1] == b"<":
        return "is no checkpoint (it looks like HTML)"
    if raw[:2] == b"PK":
        return "is a truncated checkpoint (no zip directory)"
    return "is no checkpoint that torch.save wrote since torch 1.6"


def _refused(error: Exception) -> str:
    """Return the one word of torch's six lines that says what was refused."""
    text = str(error)
    for mark in ("GLOBAL ", "Unsupported global: GLOBAL ", "Unsupported operand ", "class "):
        if mark in text:
            return text.split(mark, 1)[1].split()[0]
    return type(error).__name__
