"""What safetensors files hold, from bytes in memory.

The format: eight bytes with the length of the header, the header in JSON, and the data. It has no
checksum, so that damage to the data does not show (safetensors#220).
"""

import json
import math
from pathlib import Path
from typing import Any

from torch import Tensor

from sharpness.errors import ComputationError
from sharpness.text import plain

HEADER = 100_000_000  # bytes at most, as the library has it
FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # bytes of a number
SIZES = FLOATS | {"BOOL": 1} | {f"{sign}{8 * size}": size for sign in "IU" for size in (1, 2, 4, 8)}


def begins(raw: bytes) -> bool:
    """Say whether a file begins as this format does: a length, and the brace of the header."""
    return raw[8:9] == b"{" and raw[4:8] == bytes(4)


def tensors(raw: bytes, path: Path) -> dict[str, Tensor]:
    """Return the tensors by name.

    Raises:
        ComputationError: If the header is damaged or says other than what the file holds.
    """
    from safetensors.torch import load  # here alone: most files are others

    size = int.from_bytes(raw[:8], "little")
    try:
        if not 2 <= size <= min(HEADER, len(raw) - 8):
            raise ValueError(f"its header claims {size:,} bytes")
        header = json.loads(raw[8 : 8 + size], object_pairs_hook=_each_once)
        header.pop("__metadata__", None)
        _require_tiled(header, len(raw) - 8 - size)
        return load(raw)
    except Exception as error:  # also those of the JSON reader and of the library
        raise ComputationError(
            f"{path} is no whole safetensors file: {plain(error)}: get it again"
        ) from error


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def _require_tiled(header: dict[str, Any], size: int) -> None:
    """Refuse tensors that do not take up the data one after the other, each as its shape says."""
    places = []
    for name, entry in header.items():
        kind, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if kind not in SIZES:
            raise ValueError(f"{plain(name)} is {plain(kind)}, which is no real or whole number")
        if not all(type(n) is int and n >= 0 for n in (*shape, start, end)):
            raise ValueError(f"the shape of {plain(name)} is not of whole numbers")
        if end - start != SIZES[kind] * math.prod(shape):
            raise ValueError(f"{plain(name)} claims another size than it has")
        places.append((start, end))
    places.sort()
    if [start for start, _ in places] + [size] != [0] + [end for _, end in places]:
        raise ValueError("its tensors do not make up the file")
