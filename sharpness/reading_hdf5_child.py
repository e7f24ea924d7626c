"""The process that reads an HDF5 file of others: bytes on stdin, arrays on stdout.

It knows nothing of the file's name, and before it looks at the first byte it gives up memory, time
and the right to open files. The walk is strict all the same: one name at a time, hard links to
groups and plain arrays alone, each reached once, and no more bytes than the file can hold.
"""

import json
import math
import resource
import sys
from collections.abc import Iterator
from io import BytesIO
from typing import Any, BinaryIO

import h5py
import numpy as np
from h5py import h5d, h5g, h5l, h5o, h5pl, h5s, h5t, h5z
from numpy.typing import NDArray

SPACE = 2**30  # bytes for Python, numpy and libhdf5, of addresses more than of memory
SECONDS = 10  # of CPU time, and as many for each GB
TIMES = 3  # the arrays may be larger than the file, which is packed
DEPTH = 16
OBJECTS = 100_000
LETTERS = 1000  # of a name
FILTERS = {h5z.FILTER_DEFLATE, h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32}
LAYOUTS = {h5d.COMPACT, h5d.CONTIGUOUS, h5d.CHUNKED}
KINDS = {"f2", "f4", "f8", *(f"{sign}{size}" for sign in "iu" for size in (1, 2, 4, 8))}


class RefusedError(Exception):
    """The file holds what is not read."""


def main(source: BinaryIO, target: BinaryIO) -> None:
    """Read a file from ``source`` under limits and write its arrays, or why not, to ``target``."""
    raw = source.read()
    limit(len(raw))
    try:
        found = arrays(raw)
        said: dict[str, Any] = {
            "arrays": [[name, x.dtype.str[1:], x.shape] for name, x in found.items()]
        }
    except RefusedError as error:
        found, said = {}, {"refused": str(error)}
    except Exception as error:  # libhdf5's, and what h5py makes of it
        found, said = {}, {"refused": f"{type(error).__name__} of HDF5, {error}"}
    target.write(json.dumps(said).encode() + b"\n")
    for array in found.values():
        target.write(array.data if array.size else b"")
    target.flush()


def limit(size: int) -> None:
    """Give up what reading a file of this size does not need, for good."""
    while h5pl.size():
        h5pl.remove(0)
    seconds = SECONDS + SECONDS * size // 10**9
    for what, most in (
        (resource.RLIMIT_AS, SPACE + (TIMES + 2) * size),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 0),  # the kernel opens no file any more, whoever asks
    ):
        resource.setrlimit(what, (most, most))


def arrays(raw: bytes) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file by their names, joined with ``/``.

    Raises:
        RefusedError: If there is anything but groups and arrays of numbers in it.
    """
    found: dict[str, h5d.DatasetID] = {}
    left = TIMES * len(raw)
    with h5py.File(BytesIO(raw), "r") as file:
        root = h5g.open(file.id, b"/")
        for place, dataset in _walk(root, "", {h5o.get_info(root).addr}):
            claimed = _claimed(dataset, place)
            left -= claimed
            if left < 0:
                raise RefusedError(f"{place!a} claims more than {TIMES} times what the file holds")
            # Nobody has written it: a dimension without values, as netCDF has them and our files.
            if dataset.get_storage_size() or not claimed:
                found[place] = dataset
        return {place: _read(dataset) for place, dataset in found.items()}


def _walk(group: h5g.GroupID, path: str, seen: set[int]) -> Iterator[tuple[str, h5d.DatasetID]]:
    """Yield the names and arrays below a group; ``seen`` has the addresses of all before."""
    if path.count("/") > DEPTH:
        raise RefusedError(f"it has groups more than {DEPTH} deep")
    if len(seen) + group.get_num_objs() > OBJECTS:
        raise RefusedError(f"it has more than {OBJECTS:,} objects")
    for name in list(group):
        place = path + _name(name)
        # Of this one step: asked by its whole path, a link on the way would be followed.
        if group.links.get_info(name).type != h5l.TYPE_HARD:
            raise RefusedError(f"{place!a} is a link to another place or file")
        thing = h5o.open(group, name)
        address = h5o.get_info(thing).addr
        if address in seen:
            raise RefusedError(f"{place!a} is there under two names")
        seen.add(address)
        if isinstance(thing, h5g.GroupID):
            yield from _walk(thing, f"{place}/", seen)
        elif isinstance(thing, h5d.DatasetID):
            yield place, thing
        else:
            raise RefusedError(f"{place!a} is neither a group nor an array")


def _name(name: bytes) -> str:
    text = name.decode("utf-8", "surrogateescape")  # what is no UTF-8 is not printable then
    if text in ("", ".", "..") or "/" in text or len(text) > LETTERS or not text.isprintable():
        raise RefusedError(f"{text[:40]!a} is no name of an array")
    return text


def _claimed(dataset: h5d.DatasetID, place: str) -> int:
    """Return the bytes of an array of numbers that lie in this file.

    Raises:
        RefusedError: If it is of another kind, or if they lie elsewhere or nowhere.
    """
    how = dataset.get_create_plist()
    if how.get_layout() not in LAYOUTS or how.get_external_count():
        raise RefusedError(f"{place!a} takes its data from another file")
    if {how.get_filter(i)[0] for i in range(how.get_nfilters())} - FILTERS:
        raise RefusedError(
            f"{place!a} is packed by other filters than gzip, shuffle and fletcher32"
        )
    numbers = dataset.get_type().get_class() in (h5t.INTEGER, h5t.FLOAT)
    if not numbers or dataset.dtype.str[1:] not in KINDS:
        raise RefusedError(f"{place!a} is no array of real or whole numbers of 8 to 64 bits")
    if dataset.get_space().get_simple_extent_type() == h5s.NULL:
        raise RefusedError(f"{place!a} has no shape")
    claimed, stored = math.prod(dataset.shape) * dataset.dtype.itemsize, dataset.get_storage_size()
    if how.get_layout() == h5d.CHUNKED:
        pieces = [-(-n // m) for n, m in zip(dataset.shape, how.get_chunk(), strict=True)]
        whole = dataset.get_num_chunks() == math.prod(pieces)
    else:
        whole = stored == claimed
    if stored and not whole:
        raise RefusedError(f"{place!a} is not stored whole: the rest would be made up")
    return claimed


def _read(dataset: h5d.DatasetID) -> NDArray[Any]:
    kind = dataset.dtype.newbyteorder("=")
    array = np.empty(dataset.shape, kind)
    dataset.read(h5s.ALL, h5s.ALL, array)
    return array


if __name__ == "__main__":
    main(sys.stdin.buffer, sys.stdout.buffer)
