"""What anybody's HDF5 file holds, read by a child process.

libhdf5 follows links to other files, unpacks what has no end and crashes on files made for it
(hdf5#6618, CVE-2026-19028). So the bytes go to ``reading_hdf5_child``, which has limits and can
open no file, and what comes back is taken for as little as the file itself: sizes and kinds are
checked, and the end of the child, whatever it was, is told in one line.
"""

import json
import math
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from threading import Timer
from typing import Any

import torch
from torch import Tensor

from sharpness.errors import ComputationError
from sharpness.text import plain

MAGIC = b"\x89HDF\r\n\x1a\n"
CHILD = "sharpness.reading_hdf5_child"
WAIT = 60.0  # seconds, and as many for each GB: the child's own limit of CPU time is shorter
SAID = 2**24  # bytes of names and shapes
FLOATS = {"f2": torch.float16, "f4": torch.float32, "f8": torch.float64}
INTEGERS = {
    f"{sign}{size}": getattr(torch, f"{kind}{8 * size}")
    for sign, kind in (("i", "int"), ("u", "uint"))
    for size in (1, 2, 4, 8)
}
DTYPES: dict[str, torch.dtype] = {**FLOATS, **INTEGERS}


def tensors(raw: bytes, path: Path) -> dict[str, Tensor]:
    """Return the arrays by their names, joined with ``/``.

    Raises:
        ComputationError: If the child refuses the file, or comes to an end with it.
    """
    code, answer = _asked(raw)
    if code:
        raise ComputationError(f"{path} cannot be read as HDF5: {_ended(code)}")
    try:
        end = answer.index(b"\n") + 1
        said = json.loads(answer[:end])
        if "refused" not in said:
            return _taken(said["arrays"], memoryview(answer)[end:])
        reason = str(said["refused"])
    except Exception as error:  # of a child that the file may have taken over
        raise ComputationError(
            f"{path} cannot be read as HDF5: its reader said what is no answer ({plain(error)})"
        ) from error
    raise ComputationError(f"{path} is refused: {plain(reason)}")


def _asked(raw: bytes) -> tuple[int, bytes]:
    """Return the exit code of the child, and what it said of these bytes."""
    # No module of the working directory may take the place of one that the child imports (-P), no
    # plugin of libhdf5 is looked for, and a second thread is memory for nothing.
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HDF5_")},
        "HDF5_PLUGIN_PRELOAD": "::",
        "OPENBLAS_NUM_THREADS": "1",
    }
    with subprocess.Popen(  # noqa: S603  our own module
        [sys.executable, "-P", "-m", CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    ) as child:
        timer = Timer(WAIT * (1 + len(raw) / 1e9), child.kill)
        timer.start()
        try:
            assert child.stdin is not None  # noqa: S101  as asked for above
            assert child.stdout is not None  # noqa: S101
            with suppress(BrokenPipeError):
                child.stdin.write(raw)
                child.stdin.close()
            answer = child.stdout.read(SAID + 3 * len(raw))
        finally:
            timer.cancel()
            child.kill()
    return child.returncode, answer


def _taken(arrays: list[Any], data: memoryview) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    start = 0
    for name, kind, shape in arrays:
        end = start + DTYPES[kind].itemsize * math.prod(shape)
        if name in found or not start <= end <= len(data):
            raise ValueError("names or sizes")
        piece = bytearray(data[start:end])  # of its own, writable
        flat = torch.frombuffer(piece, dtype=DTYPES[kind]) if piece else torch.zeros(0)
        found[str(name)] = flat.to(DTYPES[kind]).reshape(shape)
        start = end
    if start != len(data):
        raise ValueError("sizes")
    return found


def _ended(code: int) -> str:
    if code in (-signal.SIGKILL, -signal.SIGXCPU):
        return "it takes more time or memory than a file of its size should"
    if code < 0:
        return f"it ends the reader by signal {-code}: the file is damaged or made to do so"
    return "its reader failed: get the file again"
