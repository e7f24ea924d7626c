"""The pieces of a long computation on disk while it runs, so that a kill costs seconds of it.

A journal is a file that is only ever appended to. A record is

    marker, 8 bytes | lengths of head and body, 2 x 8 | their SHA-256, 32 | head, JSON | body

and counts once ``fsync`` has returned. The first holds the spec of the computation, and each other
one a piece with its key, or the process that opened the file. Records are put on disk in groups,
and the head tells the number of the group and the place in it. What a crash tears lies in the last
group and is cut off; a bad record that later groups follow was whole once: that is told as damage.
"""

import hashlib
import json
import os
import struct
import time
from collections.abc import Iterator, MutableMapping
from contextlib import suppress
from pathlib import Path
from socket import gethostname
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sharpness import disk
from sharpness.errors import ComputationError, InputError
from sharpness.signals import Stopped, whole
from sharpness.text import differences

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows has no such lock
    fcntl = None  # type: ignore[assignment]

MARKER = b"SHRPJ1\r\n"
LENGTHS = struct.Struct("<QQ")
HEAD = len(MARKER) + LENGTHS.size + 32  # where the head of a record begins
EVERY = 2.0  # seconds between two groups: what a kill may cost
FULL = 2**26  # bytes that do not wait for that time
BLOCK = 2**20  # bytes that are read at once


class _Record(NamedTuple):
    head: dict[str, Any]
    begin: int
    body: int
    end: int


class Journal(MutableMapping[str, Tensor]):
    """Tensors by name in a file: what a long algorithm takes for ``pieces``, to continue later.

    A piece is on disk some two seconds after it was put here, and all are at the end of ``with``.
    It is read when it is asked for, with its checksum, and lies on the CPU. No piece is taken out
    or replaced. Other processes are locked out meanwhile, and a journal without pieces is removed.

    Args:
        path: Made if it is not there, for its owner's eyes alone.
        spec: What is computed, as JSON values.
        overwrite: Begin anew in a file of another spec, or in a damaged one.

    Raises:
        InputError: If the file belongs to another computation, or is no journal.
        ComputationError: If another process writes it, or if it is damaged: what is whole in it
            is kept then, and the next opening continues from there.
        OSError: If the disk does not take a piece; those before it are kept.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     with Journal(f"{folder}/squares.part", {"of": "numbers"}) as pieces:
    ...         pieces["two"] = torch.tensor([4.0])
    ...     with Journal(f"{folder}/squares.part", {"of": "numbers"}) as pieces:
    ...         dict(pieces)
    {'two': tensor([4.])}
    """

    def __init__(
        self, path: str | os.PathLike[str], spec: dict[str, Any], *, overwrite: bool = False
    ) -> None:
        self.path, self.spec = Path(path), json.loads(json.dumps(spec))
        self._index: dict[str, _Record] = {}  # of what is on disk
        self._waiting: dict[str, tuple[dict[str, Any], bytes]] = {}  # and of what is not yet
        self._full = 0  # bytes of them
        self._group = 0  # of the next records
        self._failed = self._removed = False
        self._descriptor = self._locked()
        self._size = size = os.fstat(self._descriptor).st_size
        try:
            with disk.naming(self.path):
                self._open(overwrite)
        except BaseException:
            if not size:
                with suppress(OSError):  # an empty file is in nobody's way
                    disk.remove(self.path)
            os.close(self._descriptor)
            raise
        self._committed = time.monotonic()

    def __getitem__(self, key: str) -> Tensor:
        """Return the piece of this name, a copy on the CPU."""
        if key in self._waiting:
            head, body = self._waiting[key]
        else:
            at = self._index[key]
            with disk.naming(self.path):
                is_there = _record_at(self._descriptor, at.begin, at.end) == at
                head, body = at.head, _read(self._descriptor, at.body, at.end)
            if not is_there:
                raise ComputationError(
                    f"{self.path} needs to stay as it was written, got another record for {key}: "
                    "run the same command again"
                )
        flat = torch.empty(len(body), dtype=torch.uint8)
        flat.numpy()[:] = memoryview(body)
        return flat.view(getattr(torch, head["dtype"])).reshape(head["shape"])

    def __setitem__(self, key: str, value: Tensor) -> None:
        """Keep a piece."""
        if key in self:
            raise InputError(f"a journal keeps its pieces, got another {key}: give it a new name")
        dtype = str(value.dtype).removeprefix("torch.")
        flat = value.detach().cpu().reshape(-1)
        head = {"key": key, "dtype": dtype, "shape": list(value.shape)}
        self._waiting[key] = head, flat.view(torch.uint8).numpy().tobytes()
        self._full += flat.nbytes
        if self._full >= FULL or time.monotonic() - self._committed >= EVERY:
            self.commit()

    def __delitem__(self, key: str) -> None:
        """Refuse."""
        raise InputError(f"a journal keeps its pieces, got the removal of {key}: leave it there")

    def __contains__(self, key: object) -> bool:
        """Say whether there is a piece of this name, without reading it."""
        return key in self._index or key in self._waiting

    def __iter__(self) -> Iterator[str]:
        """Yield the names in the order in which the pieces came."""
        yield from self._index
        yield from self._waiting

    def __len__(self) -> int:
        """Return the number of pieces."""
        return len(self._index) + len(self._waiting)

    def __enter__(self) -> "Journal":
        """Return the journal."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Commit and close; an exception that passes by is told what is kept."""
        try:
            if error is None or not self._failed:
                self.commit()
        except BaseException as failure:  # of the disk, or a signal meanwhile
            error = failure
            raise
        finally:
            self._close(error)

    def commit(self) -> None:
        """Put on disk what waits.

        Raises:
            OSError: If the disk does not take it, and from then on: what a failed ``fsync`` has
                lost, another one does not bring back.
        """
        if self._failed:
            raise OSError(None, "a write failed, and nothing was written since", str(self.path))
        if not self._waiting:
            return
        with whole():
            self._failed = True  # unless all goes well
            if not _is_at(self._descriptor, self.path):
                raise OSError(None, "was removed by someone else", str(self.path))
            for key, record in self._append(list(self._waiting.values())).items():
                self._index[key] = record
            self._waiting.clear()
            self._full = 0
            self._failed, self._committed = False, time.monotonic()

    def remove(self) -> None:
        """Remove the file, because the result is there."""
        self._waiting.clear()
        disk.remove(self.path)
        disk.sync_directory(self.path.parent)
        self._removed = True

    def _close(self, error: BaseException | None) -> None:
        try:
            if not (self._index or self._removed):
                self.remove()
        finally:
            os.close(self._descriptor)
        if error is not None and self._index:
            count = len(self._index)
            kept = f"{self.path} keeps {count:,} {'piece' if count == 1 else 'pieces'}"
            stop = isinstance(error, Stopped | KeyboardInterrupt)
            when = "" if stop else "when the cause is gone "
            error.add_note(f"{kept}: {when}the same command again continues")

    def _append(self, pieces: list[tuple[dict[str, Any], bytes]]) -> dict[str, _Record]:
        """Write records behind the others and sync; return those of pieces by key."""
        found, parts, end = {}, [], self._size
        for place, (head, body) in enumerate(pieces):
            numbered = {**head, "group": self._group, "place": place}
            parts.append(_encoded(numbered, body))
            begin, end = end, end + len(parts[-1])
            if "key" in head:
                found[head["key"]] = _Record(numbered, begin, end - len(body), end)
        try:
            disk.append(self._descriptor, b"".join(parts), self.path)
            disk.sync(self._descriptor, self.path)
        except OSError:
            with suppress(OSError):  # a torn tail is cut off at the next opening too
                disk.cut(self._descriptor, self._size, self.path)
            raise
        self._size, self._group = end, self._group + 1
        return found

    def _locked(self) -> int:
        """Return a descriptor of the file, locked against all other processes."""
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        while True:
            descriptor = os.open(self.path, flags, 0o600)
            try:
                if fcntl is not None:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                writer = _writer(descriptor)
                os.close(descriptor)
                raise ComputationError(
                    f"{self.path} is being written by {writer}: wait for it, or choose another "
                    "output"
                ) from error
            if _is_at(descriptor, self.path):
                return descriptor
            os.close(descriptor)  # of a file that its writer has removed, being done

    def _open(self, overwrite: bool) -> None:
        """Read what is there, cut off a torn tail, and begin a new group."""
        records, is_damaged = _scanned(self._descriptor, self._size)
        begun = _read(self._descriptor, 0, min(len(MARKER), self._size))
        # A crash may leave a first group of zeros.
        if not (records or MARKER.startswith(begun.rstrip(b"\0"))):
            raise InputError(f"{self.path} is no journal: remove it, or choose another output")
        spec = records[0].head.get("spec") if records else None
        if overwrite and (is_damaged or (records and spec != self.spec)):
            records, is_damaged = [], False
        if records and spec is None:
            raise ComputationError(
                f"{self.path} is damaged where it says what it belongs to: remove it, or overwrite "
                "it"
            )
        if records and spec != self.spec:
            raise InputError(
                f"{self.path} belongs to another computation ({differences(spec, self.spec)}): "
                "choose another output, or overwrite it"
            )
        if is_damaged:
            self._repair(records)
        end = records[-1].end if records else 0
        if end < self._size:
            disk.cut(self._descriptor, end, self.path)
        self._size = end
        self._index = {r.head["key"]: r for r in records if "key" in r.head}
        self._group = records[-1].head["group"] + 1 if records else 0
        who = {"opened": {"process": os.getpid(), "host": gethostname()}}
        self._append([(who, b"")] if records else [({"spec": self.spec}, b""), (who, b"")])
        if not records:
            disk.sync_directory(self.path.parent)  # a file is on disk when its name is

    def _repair(self, records: list[_Record]) -> None:
        """Leave a journal of what is whole in place of a damaged one, and tell."""
        repaired = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        disk.remove(repaired)
        descriptor = disk.create(repaired, mode=0o600)
        try:
            for record in records:
                data = _read(self._descriptor, record.begin, record.end)
                disk.append(descriptor, data, self.path)
            disk.sync(descriptor, self.path)
            disk.replace(repaired, self.path)
            disk.sync_directory(self.path.parent)
        finally:
            os.close(descriptor)
            disk.remove(repaired)
        kept = sum("key" in record.head for record in records)
        raise ComputationError(
            f"{self.path} was damaged, and {kept} pieces of it are whole: the same command again "
            "continues from them"
        )


def part_of(path: str | os.PathLike[str]) -> Path:
    """Return where the pieces of a result lie until it is there.

    >>> part_of("runs/sb.plane.h5").name
    'sb.plane.h5.part'
    """
    return Path(f"{os.fspath(path)}.part")


def _encoded(head: dict[str, Any], body: bytes) -> bytes:
    text = json.dumps(head, allow_nan=False).encode()
    lengths = LENGTHS.pack(len(text), len(body))
    digest = hashlib.sha256(lengths)
    digest.update(text)
    digest.update(body)
    return b"".join([MARKER, lengths, digest.digest(), text, body])


def _record_at(descriptor: int, begin: int, size: int) -> _Record | None:
    """Return the record that begins there, None where there is no whole one."""
    raw = _read(descriptor, begin, min(begin + HEAD, size))
    if len(raw) < HEAD or not raw.startswith(MARKER):
        return None
    lengths, digest = raw[len(MARKER) : -32], raw[-32:]
    of_head, of_body = LENGTHS.unpack(lengths)
    head, body = begin + HEAD, begin + HEAD + of_head
    end = body + of_body
    if end > size:
        return None
    computed = hashlib.sha256(lengths)
    for block in range(head, end, BLOCK):
        computed.update(_read(descriptor, block, min(block + BLOCK, end)))
    if computed.digest() != digest:
        return None
    return _Record(json.loads(_read(descriptor, head, body)), begin, body, end)


def _scanned(descriptor: int, size: int) -> tuple[list[_Record], bool]:
    """Return the records that count, and whether one among them is damaged."""
    records: list[_Record] = []
    gaps: list[int] = []  # how many records came before each
    begin = 0
    while 0 <= begin < size:
        record = _record_at(descriptor, begin, size)
        if record:
            records.append(record)
            begin = record.end
        else:
            gaps.append(len(records))
            begin = _next_marker(descriptor, begin + 1, size)
    if not gaps:
        return records, False
    after = records[gaps[0] :]
    # Of the group that a crash may have torn, and no record before it.
    torn = not after or all(
        r.head["group"] == after[-1].head["group"] and r.head["place"] > 0 for r in after
    )
    return (records[: gaps[0]], False) if torn else (records, True)


def _next_marker(descriptor: int, begin: int, size: int) -> int:
    """Return where the next record may begin, -1 where none does."""
    while begin < size:
        block = _read(descriptor, begin, min(begin + BLOCK, size))
        found = block.find(MARKER)
        if found >= 0:
            return begin + found
        begin += max(len(block) - len(MARKER) + 1, 1)
    return -1


def _read(descriptor: int, begin: int, end: int) -> bytes:
    parts = []
    while begin < end:
        part = os.pread(descriptor, min(end - begin, 2**30), begin)
        if not part:
            break
        parts.append(part)
        begin += len(part)
    return b"".join(parts)


def _is_at(descriptor: int, path: Path) -> bool:
    """Say whether the open file is the one of this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _writer(descriptor: int) -> str:
    """Return in words which process opened a journal last."""
    opened, begin, size = None, 0, os.fstat(descriptor).st_size
    while record := _record_at(descriptor, begin, size):
        opened, begin = record.head.get("opened", opened), record.end
    return f"process {opened['process']} on {opened['host']}" if opened else "another process"
