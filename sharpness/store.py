"""Results in HDF5 files that are complete or absent.

A file is built in memory, sealed, written under another name, synced and linked or renamed:
libhdf5, which leaves an unreadable file when it is killed and dies itself on a full disk, never
writes to one. The seal, a SHA-256 of all bytes, stands behind the end of the HDF5 data, where HDF5
readers do not look; a program that opens the file for writing cuts it off, and ``load`` refuses
the file.

Layout: arrays, also those of a dict with axes and lists of words, are datasets of the root group
under their own names, and their axes HDF5 dimension scales as netCDF-4 has them, so
``xarray.open_dataset(path)`` shows coordinates. A Solution, a list of them and a dict without axes
are groups. Numbers, words and the type are attributes, and so, as JSON, are the spec, the versions
that computed it and the request: the command, its options and the inputs, by which a file that
exists is known to be what was asked for. Names, bytes and dtypes only: nothing in a file can name
code to run.
"""

import glob
import hashlib
import json
import logging
import os
import stat
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import h5py
import numpy as np
import torch
from torch import Tensor

from sharpness import disk
from sharpness._version import __version__
from sharpness.errors import ComputationError, InputError
from sharpness.records import layout
from sharpness.results import RESULTS, Result, Solution
from sharpness.signals import whole
from sharpness.text import differences

FORMAT = 2  # 1 had names of groups in attributes and truths as an HDF5 enumeration
SEAL = b"\nSEAL 1\n"  # 8 bytes, then 32 of SHA-256
# What netCDF-4 calls an axis without coordinate values; never written, so it takes no space.
AXIS = "This is a netCDF dimension but not a netCDF variable.%10d"
LFS = b"version https://git-lfs"  # what Git holds in place of a large file
PACKAGES = ("torch", "numpy", "scipy", "h5py")

LOG = logging.getLogger(__name__)

R = TypeVar("R", bound=Result)
Request = dict[str, Any]  # JSON values


def save(
    path: str | os.PathLike[str],
    result: Result,
    *,
    request: Request | None = None,
    overwrite: bool = False,
) -> None:
    """Write a result to ``path``, whole or not at all; the same result gives the same bytes.

    Raises:
        InputError: If something else is there already and ``overwrite`` was not asked for.

    >>> from tempfile import TemporaryDirectory
    >>> from sharpness.results import Line
    >>> with TemporaryDirectory() as folder:
    ...     save(f"{folder}/a.h5", Line(torch.zeros(1), {"loss": torch.ones(1)}, 0.0, {}))
    ...     os.listdir(folder)
    ['a.h5']
    """
    data = _encode(result, request)
    write(path, data + SEAL + hashlib.sha256(data).digest(), overwrite=overwrite)


def load(path: str | os.PathLike[str]) -> Result:
    """Return the result that ``save`` wrote to ``path``, checked to the last byte.

    Raises:
        InputError: If there is no such file.
        ComputationError: If the file is damaged, not ours, or of a newer format.

    >>> from tempfile import TemporaryDirectory
    >>> from sharpness.results import Line
    >>> with TemporaryDirectory() as folder:
    ...     save(f"{folder}/a.h5", Line(torch.zeros(1), {"loss": torch.ones(1)}, 0.5, {}))
    ...     load(f"{folder}/a.h5").distance
    0.5
    """
    with h5py.File(BytesIO(_sealed(path))) as file:
        result = _decode(file, path)
    LOG.info("read %s, a %s", path, type(result).__name__)
    return result


def load_as(path: str | os.PathLike[str], kind: type[R]) -> R:
    """Return the result at ``path``, which must be of this kind.

    Raises:
        InputError: If it is another, or there is no such file.
        ComputationError: As ``load``.
    """
    found = load(path)
    if not isinstance(found, kind):
        raise InputError(f"{path} needs to hold {kind.__name__}, but holds {type(found).__name__}")
    return found


def reuse(path: str | os.PathLike[str], request: Request, *, overwrite: bool = False) -> bool:
    """Say whether ``path`` already holds the answer to this request.

    Raises:
        InputError: If it holds another's, unless that is to be overwritten.
        ComputationError: If it is damaged, unless it is to be overwritten.
    """
    if not os.path.lexists(path):
        return False
    try:
        with h5py.File(BytesIO(_sealed(path))) as file:
            there = json.loads(file.attrs.get("request", b"null"))
    except (InputError, ComputationError):
        if overwrite:
            return False
        raise
    asked = json.loads(json.dumps(request))
    if there == asked:
        _clear(Path(path))
        return True
    if overwrite:
        return False
    if isinstance(there, dict) and there.get("command") != asked["command"]:
        there, asked = there.get("command"), asked["command"]
    raise InputError(
        f"{path} holds the answer to another request ({differences(there, asked)}): choose another "
        "output, or overwrite it"
    )


def request_of(path: str | os.PathLike[str]) -> Request | None:
    """Return the request that a file answers, None where it was saved without one."""
    with h5py.File(BytesIO(_sealed(path))) as file:
        return json.loads(file.attrs.get("request", b"null"))


def versions_of(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the versions of the packages that computed a file, by name."""
    with h5py.File(BytesIO(_sealed(path))) as file:
        return {**json.loads(file.attrs["versions"])}


def kind_of(path: str | os.PathLike[str]) -> str | None:
    """Return the type of the result in one of our files, None of any other; nothing is checked."""
    try:
        if seal_of(path) is None:
            return None
        with h5py.File(path) as file:
            kind: bytes = file.attrs["type"]
            return kind.decode()
    except (OSError, KeyError):
        return None


def seal_of(path: str | os.PathLike[str]) -> str | None:
    """Return the SHA-256 in the seal of one of our files, None of any other.

    Raises:
        InputError: If it may not be read.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        return None  # a pipe would keep its reader waiting
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 40))
            tail = file.read()
    except PermissionError as error:
        raise InputError(f"{path} needs to be readable: {error.strerror}") from error
    return tail[8:].hex() if tail[:8] == SEAL else None


def write(path: str | os.PathLike[str], data: bytes, *, overwrite: bool = False) -> None:
    """Write bytes to ``path``, whole or not at all.

    Raises:
        InputError: If other bytes are there already and ``overwrite`` was not asked for.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    with whole(), disk.naming(target):
        _clear(target)
        disk.remove(partial)  # of an earlier process of this number
        try:
            descriptor = disk.create(partial)
            try:
                disk.append(descriptor, data, target)
                disk.sync(descriptor, target)
            finally:
                os.close(descriptor)
            if overwrite:
                disk.replace(partial, target)
            else:
                _link(partial, target, data)
        finally:
            disk.remove(partial)
        disk.sync_directory(target.parent)  # a rename is on disk when its directory is


def _clear(target: Path) -> None:
    """Remove what a process that was killed in the middle of a write has left."""
    for partial in target.parent.glob(f".{glob.escape(target.name)}.*"):
        process = partial.name.rpartition(".")[2]
        if process.isdigit() and not _lives(int(process)):
            with suppress(OSError):  # it is in nobody's way
                disk.remove(partial)


def _lives(process: int) -> bool:
    if os.name != "posix":
        return True  # pragma: no cover - elsewhere there is no harmless signal to ask by
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _link(partial: Path, target: Path, data: bytes) -> None:
    """Give the file its name unless that is taken: unlike a rename, a link replaces nothing."""
    try:
        disk.link(partial, target)
    except FileExistsError as error:
        if target.is_file() and target.read_bytes() == data:
            return
        raise InputError(
            f"{target} exists and holds something else: choose another output, or overwrite it"
        ) from error


def _sealed(path: str | os.PathLike[str]) -> bytes:
    """Return the HDF5 data of a file of ours, checked."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise InputError(f"{path} needs to be a file that is there: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise InputError(f"{path} needs to be a regular file: give a result as save wrote it")
    try:
        raw = Path(path).read_bytes()
    except PermissionError as error:
        raise InputError(f"{path} needs to be readable: {error.strerror}") from error
    if not raw:
        raise ComputationError(f"{path} is empty: compute it again")
    if raw.startswith(LFS):
        raise ComputationError(f"{path} is a Git LFS pointer, not the file: run git lfs pull")
    data, seal, digest = raw[:-40], raw[-40:-32], raw[-32:]
    if seal != SEAL or hashlib.sha256(data).digest() != digest:
        raise ComputationError(
            f"load needs a result as save wrote it, got {path} with a missing or broken seal: "
            "it is damaged, was opened for writing or is not ours, so compute it again"
        )
    return data


def _encode(result: Result, request: Request | None) -> bytes:
    buffer = BytesIO()
    with h5py.File(buffer, "w", track_order=True) as file:
        file.attrs["format"] = FORMAT
        file.attrs["type"] = np.bytes_(type(result).__name__)  # fixed length, as all text here
        file.attrs["versions"] = _json(versions())
        if request is not None:
            file.attrs["request"] = _json(request)
        for name, kind, axes in layout(type(result)):
            value = getattr(result, name)
            if kind is Tensor or kind == list[str]:
                _write(file, name, value, axes, name)
            elif name == "spec":
                file.attrs[name] = _json(value)
            elif get_origin(kind) is dict and axes:
                for part, tensor in value.items():
                    _write(file, part, tensor, axes, name)
            elif get_origin(kind) is dict:
                _write_group(file, name, value)
            elif kind == list[Solution]:
                points = file.create_group(name, track_order=True)
                for i, point in enumerate(value):
                    _write_solution(points, str(i), point)
            elif Solution in (kind, *get_args(kind)):
                if value is not None:
                    _write_solution(file, name, value)
            elif isinstance(value, str):
                file.attrs[name] = np.bytes_(value.encode())
            else:  # of truth netCDF has none: numbers, as in arrays
                file.attrs[name] = int(value) if isinstance(value, bool) else value
    return buffer.getvalue()


def _write(
    file: h5py.File, name: str, value: Tensor | list[str], axes: tuple[str, ...], field: str
) -> None:
    if name in file or not name.replace("-", "_").isidentifier():
        raise InputError(f"save needs a new plain name for each array, got {name!r}: rename it")
    if isinstance(value, list):
        array = np.array(value, dtype=h5py.string_dtype())
    else:
        array = value.detach().cpu().numpy()
    truths = array.dtype == bool  # netCDF has none: numbers, marked as xarray marks them
    data = file.create_dataset(name, data=array.astype(np.int8) if truths else array)
    if truths:
        data.attrs["dtype"] = np.bytes_("bool")
    data.attrs["field"] = np.bytes_(field)
    for i, axis in enumerate(axes):
        if axis == name:
            data.make_scale(name)
            continue
        if axis not in file:
            file.create_dataset(axis, shape=data.shape[i], dtype=">f4")
            file[axis].make_scale(AXIS % data.shape[i])
        data.dims[i].attach_scale(file[axis])


def _write_group(parent: h5py.Group, name: str, tensors: dict[str, Tensor]) -> None:
    group = parent.create_group(name, track_order=True)
    for key, value in tensors.items():
        # The one sign that HDF5 keeps for itself; a parameter's name may have it.
        group.create_dataset(
            key.replace("%", "%25").replace("/", "%2F"), data=value.detach().cpu().numpy()
        )


def _write_solution(parent: h5py.Group, name: str, point: Solution) -> None:
    group = parent.create_group(name, track_order=True)
    group.create_dataset("theta", data=point.theta.detach().cpu().numpy())
    _write_group(group, "buffers", point.buffers)


def _decode(file: h5py.File, path: str | os.PathLike[str]) -> Result:
    if file.attrs["format"] > FORMAT:
        raise ComputationError(
            f"load needs format <= {FORMAT}, got {file.attrs['format']} in {path}: "
            "install a newer sharpness"
        )
    cls = RESULTS[file.attrs["type"].decode()]
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, dataset in file.items():
        if "field" in dataset.attrs and dataset.dtype.kind != "O":  # an axis or a group has none
            tensors.setdefault(dataset.attrs["field"].decode(), {})[name] = _read(dataset)
    values: dict[str, Any] = {}
    words = {name for name, x in file.items() if isinstance(x, h5py.Group) or x.dtype.kind == "O"}
    there = {*tensors, *words, *file.attrs}  # an axis may be named like a field that came later
    for name, kind, axes in layout(cls):
        if name in cls.later and name not in there:
            continue
        if kind is Tensor:
            values[name] = tensors[name][name]
        elif name == "spec" or (name in file.attrs and kind == list[str]):  # format 1
            values[name] = json.loads(file.attrs[name])
        elif kind == list[str]:
            values[name] = file[name].asstr()[()].tolist()
        elif get_origin(kind) is dict:
            values[name] = tensors.get(name, {}) if axes else _read_group(file[name])
        elif kind == list[Solution]:
            values[name] = [_read_solution(file[name][str(i)]) for i in range(len(file[name]))]
        elif Solution in (kind, *get_args(kind)):
            values[name] = _read_solution(file[name]) if name in file else None
        elif kind is str:
            values[name] = file.attrs[name].decode()
        else:
            values[name] = kind(file.attrs[name])
    return cls(**values, **{k: made(values) for k, made in cls.later.items() if k not in values})


def _read(dataset: h5py.Dataset) -> Tensor:
    array = torch.from_numpy(np.asarray(dataset[()]))
    return array.bool() if dataset.attrs.get("dtype") == b"bool" else array


def _read_group(group: h5py.Group) -> dict[str, Tensor]:
    return {key.replace("%2F", "/").replace("%25", "%"): _read(x) for key, x in group.items()}


def _read_solution(group: h5py.Group) -> Solution:
    return Solution(_read(group["theta"]), _read_group(group["buffers"]))


def versions() -> dict[str, str]:
    """Return the versions of what computes here."""
    found = {"sharpness": __version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def _json(value: Any) -> np.bytes_:
    return np.bytes_(json.dumps(value, allow_nan=False).encode())
