# ruff: noqa: PT017
"""Whatever a disk does, results and journals hold what was written or say that they do not.

The calls by which a folder changes are taken over at the ``os`` module, below all code of ours:
recorded, to rebuild every state in which a crash may leave the disk, or made to fail.
"""

import errno
import hashlib
import os
import random
import resource
import stat
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sharpness import store, training
from sharpness.errors import ComputationError, InputError
from sharpness.journal import Journal
from sharpness.results import Line, Run
from sharpness.store import load, reuse, save
from sharpness.training import TrainConfig, train

SECTOR = 512  # bytes that a disk writes as one
DEAD = 2**22 - 1  # no process: above what Linux counts to here
SPEC = {"command": "plane", "seed": 0}
REQUESTS = [{"command": "line", "seed": seed} for seed in (0, 1)]
LINES = [
    Line(torch.arange(2.0), {"loss": torch.full((2,), value)}, value, {"of": value})
    for value in (1.0, 2.0)
]
CONFIG = TrainConfig(model_options={"widths": []}, batch_size=300, updates=6, threads=1)
Files = dict[str, bytes]


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder in memory, where there is one: thousands of files are written here."""
    memory = Path("/dev/shm")  # noqa: S108
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def piece(seed: int, count: int = 3) -> Tensor:
    return torch.arange(seed, seed + count, dtype=torch.float32)


PIECES = {
    "a": piece(1),
    "b": piece(2, 200),
    "c": torch.tensor(True),
    "d": piece(4).reshape(3, 1),
    "e": piece(5, 40).to(torch.bfloat16),
    "f": torch.zeros(0, dtype=torch.int64),
}


def same(got: Tensor, wanted: Tensor) -> bool:
    return got.dtype == wanted.dtype and got.shape == wanted.shape and torch.equal(got, wanted)


# What is on disk, by call


@dataclass
class Recorder:
    """The calls that change a folder, in their order.

    Calls are ("names", {name: file or None}), ("data", file, offset, bytes), ("cut", file, size),
    ("sync", file), ("sync names",) and ("mark", what a program was promised then).
    """

    folder: Path
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    start: Files = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)
    descriptors: dict[int, int | None] = field(default_factory=dict)  # None: of the folder

    def __post_init__(self) -> None:
        for path in sorted(self.folder.iterdir()):
            self.start[path.name] = path.read_bytes()
            self.names[path.name] = len(self.sizes)
            self.sizes.append(path.stat().st_size)

    def mark(self, promise: Any) -> None:
        self.calls.append(("mark", promise))

    def rename(self, **names: int | None) -> None:
        self.calls.append(("names", names))
        for name, file in names.items():
            if file is None:
                self.names.pop(name, None)
            else:
                self.names[name] = file

    def name(self, path: Any) -> str | None:
        return Path(path).name if Path(path).parent == self.folder else None

    def opened(self, path: Any, flags: int, descriptor: int) -> None:
        if Path(path) == self.folder:
            self.descriptors[descriptor] = None
        elif (name := self.name(path)) and flags & (os.O_RDWR | os.O_WRONLY):
            if name not in self.names:
                self.sizes.append(0)
                self.rename(**{name: len(self.sizes) - 1})
            self.descriptors[descriptor] = self.names[name]
        else:
            self.descriptors.pop(descriptor, None)  # of another file by now

    def written(self, descriptor: int, data: bytes) -> None:
        if (file := self.descriptors.get(descriptor)) is not None:
            self.calls.append(("data", file, self.sizes[file], data))
            self.sizes[file] += len(data)

    def cut(self, descriptor: int, size: int) -> None:
        if (file := self.descriptors.get(descriptor)) is not None:
            self.calls.append(("cut", file, size))
            self.sizes[file] = size

    def synced(self, descriptor: int) -> None:
        if descriptor in self.descriptors:
            file = self.descriptors[descriptor]
            self.calls.append(("sync names",) if file is None else ("sync", file))

    def install(self, patch: pytest.MonkeyPatch) -> None:
        system = {
            name: getattr(os, name)
            for name in ("open", "write", "ftruncate", "fsync", "link", "replace", "unlink")
        }

        def opening(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            descriptor: int = system["open"](path, flags, *args, **kwargs)
            self.opened(path, flags, descriptor)
            return descriptor

        def writing(descriptor: int, data: Any) -> int:
            count: int = system["write"](descriptor, data)
            self.written(descriptor, bytes(data[:count]))
            return count

        def cutting(descriptor: int, size: int) -> None:
            system["ftruncate"](descriptor, size)
            self.cut(descriptor, size)

        def syncing(descriptor: int) -> None:
            self.synced(descriptor)  # the disk of a test needs no pressing

        def linking(source: Any, target: Any) -> None:
            system["link"](source, target)
            self.rename(**{Path(target).name: self.names[Path(source).name]})

        def replacing(source: Any, target: Any) -> None:
            system["replace"](source, target)
            file = self.names[Path(source).name]
            self.rename(**{Path(source).name: None, Path(target).name: file})

        def unlinking(path: Any, **kwargs: Any) -> None:
            system["unlink"](path, **kwargs)
            if name := self.name(path):
                self.rename(**{name: None})

        for name, function in {
            "open": opening,
            "write": writing,
            "ftruncate": cutting,
            "fsync": syncing,
            "link": linking,
            "replace": replacing,
            "unlink": unlinking,
        }.items():
            patch.setattr(os, name, function)
        patch.setattr(os, "getpid", lambda: DEAD)


def record(folder: Path, work: Callable[[Recorder], None]) -> Recorder:
    """Return the calls of a piece of work, checked against what it left."""
    found = Recorder(folder)
    with pytest.MonkeyPatch.context() as patch:
        found.install(patch)
        work(found)
    there = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert list(files(found, found.names, [range(len(found.calls))])) == [there]
    return found


def states(found: Recorder) -> Iterator[tuple[Files, list[Any]]]:
    """Yield each different content of the folder after a crash, with what was promised until then.

    Calls up to any one were made. Of those that no later sync put on disk, names and cuts are there
    or not, each for itself, and of the bytes every choice of sectors, and every torn end.
    """
    known = set()
    for end in range(len(found.calls) + 1):
        if end < len(found.calls) and found.calls[end][0] in ("names", "data", "cut"):
            continue  # what a crash here may leave, one after the next call may leave too
        made = found.calls[:end]
        promises = [call[1] for call in made if call[0] == "mark"]
        for names in _names(found, made):
            for content in files(found, names, _kept(made, set(names.values()))):
                digest = hashlib.sha256(repr(sorted(content.items())).encode()).digest()
                key = len(promises), digest
                if key not in known:
                    known.add(key)
                    yield content, promises


def _names(found: Recorder, made: list[tuple[Any, ...]]) -> Iterator[dict[str, int]]:
    at = [i for i, call in enumerate(made) if call[0] == "names"]
    synced = max((i for i, call in enumerate(made) if call[0] == "sync names"), default=-1)
    pending = [i for i in at if i > synced]
    for choice in product([True, False], repeat=len(pending)):
        kept = dict(zip(pending, choice, strict=True))
        names: dict[str, int | None] = {name: i for i, name in enumerate(found.start)}
        for i in at:
            if kept.get(i, True):
                names |= made[i][1]
        yield {name: file for name, file in names.items() if file is not None}


def _kept(made: list[tuple[Any, ...]], reached: set[int]) -> Iterator[list[Any]]:
    """Yield the calls on the contents of files that may be on disk.

    Of those that wait for a sync every subset, and the last one also in parts of its data.
    """
    at = [i for i, call in enumerate(made) if call[0] in ("data", "cut") and call[1] in reached]
    pending = [i for i in at if ("sync", made[i][1]) not in made[i:]]
    for choice in product([True, False], repeat=len(pending[-8:])):
        dropped = {i for i, is_there in zip(pending[-8:], choice, strict=True) if not is_there}
        kept = [i for i in at if i not in dropped]
        yield kept
        if len(dropped) <= 1 and kept and kept[-1] in pending:
            yield from ([*kept[:-1], part] for part in _parts(made[kept[-1]]))


def _parts(call: tuple[Any, ...]) -> Iterator[Any]:
    """Yield what may be on disk of the data of a call."""
    if call[0] != "data":
        return
    _, file, offset, data = call
    bounds = sorted(
        {offset, offset + len(data)}
        | set(range(-(-offset // SECTOR) * SECTOR, offset + len(data), SECTOR))
    )
    spans = [(a - offset, b - offset) for a, b in pairwise(bounds)]
    if len(spans) <= 8:
        choices = list(product([True, False], repeat=len(spans)))
    else:  # one is missing, or all behind one
        choices = [tuple(j != gap for j in range(len(spans))) for gap in range(len(spans))]
        choices += [tuple(j < gap for j in range(len(spans))) for gap in range(len(spans))]
    for choice in choices:
        there = bytearray(len(data))  # zeros where a sector was not written
        last = 0
        for (a, b), is_there in zip(spans, choice, strict=True):
            if is_there:
                there[a:b], last = data[a:b], b
        yield ("data", file, offset, bytes(there))
        yield ("data", file, offset, bytes(there[:last]))
    if len(data) <= 2 * SECTOR:
        for end in range(len(data)):
            yield ("data", file, offset, data[:end])


def files(found: Recorder, names: dict[str, int], kept: Any) -> Iterator[Files]:
    """Yield the folder with these names for each choice of calls that are on disk."""
    start = list(found.start.values())
    for choice in kept:
        contents = [bytearray(start[i] if i < len(start) else b"") for i in range(len(found.sizes))]
        for part in choice:
            call = found.calls[part] if isinstance(part, int) else part
            if call[0] not in ("data", "cut"):
                continue
            content = contents[call[1]]
            if call[0] == "cut":
                del content[call[2] :]
                content.extend(bytes(call[2] - len(content)))
                continue
            _, _, offset, data = call
            if data:
                content.extend(bytes(max(0, offset - len(content))))
                content[offset : offset + len(data)] = data
        yield {name: bytes(contents[file]) for name, file in names.items()}


def lay(folder: Path, content: Mapping[str, bytes]) -> None:
    for path in folder.iterdir():
        path.unlink()
    for name, data in content.items():
        (folder / name).write_bytes(data)


def listed(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# Every crash point


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reopen thousands of states without waiting for the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encode each of two results once: what is tested comes after that."""
    encoded = {
        id(line): store._encode(line, request)
        for line, request in zip(LINES, REQUESTS, strict=True)
    }
    monkeypatch.setattr(store, "_encode", lambda result, request: encoded[id(result)])


def require_result(path: Path, allowed: list[int]) -> None:
    """Require that one of these results is there, and that it can be written again."""
    there = None
    if path.exists():
        (there,) = [i for i in (0, 1) if load(path).distance == LINES[i].distance]  # type: ignore[attr-defined]
    assert there in allowed
    if not reuse(path, REQUESTS[1], overwrite=True):
        save(path, LINES[1], request=REQUESTS[1], overwrite=there is not None)
    assert reuse(path, REQUESTS[1])
    assert load(path).spec == LINES[1].spec
    assert listed(path.parent) == [path.name]


@pytest.mark.parametrize("over", [False, True], ids=["new", "over an old one"])
def test_after_any_crash_a_result_is_the_old_or_the_new_one_and_can_be_written_again(
    over: bool, tmp_path: Path, quick: None, encoded_once: None
) -> None:
    path = tmp_path / "r.h5"
    if over:
        save(path, LINES[0], request=REQUESTS[0])

    def work(found: Recorder) -> None:
        save(path, LINES[1], request=REQUESTS[1], overwrite=over)
        found.mark("saved")

    count = 0
    for content, promises in states(record(tmp_path, work)):
        count += 1
        lay(tmp_path, content)
        require_result(path, [1] if promises else [0, 1] if over else [None, 1])
    print(f"{count} states")
    assert count >= 20


def require_journal(
    path: Path, promised: Mapping[str, Tensor], put: Mapping[str, Tensor], *, damaged: bool = False
) -> None:
    """Require what was promised and nothing that was not put, twice, with a new piece between."""
    if damaged:
        try:
            Journal(path, SPEC).__exit__(None, None, None)
        except ComputationError as error:
            assert "was damaged" in str(error)
    with Journal(path, SPEC) as journal:
        got = dict(journal)
        assert promised.keys() <= got.keys() <= put.keys()
        assert all(same(got[key], put[key]) for key in got)
        journal["new"] = piece(9)
    with Journal(path, SPEC) as journal:
        assert list(journal) == [*got, "new"]
        assert all(same(journal[key], {**put, "new": piece(9)}[key]) for key in journal)
    assert listed(path.parent) == [path.name]


def sessions(path: Path) -> Callable[[Recorder], None]:
    """Return the work of two processes on a journal, the second of which finishes."""

    def work(found: Recorder) -> None:
        with Journal(path, SPEC) as journal:
            for group in ("a", "bc", "d"):
                for key in group:
                    journal[key] = PIECES[key]
                journal.commit()
                found.mark(group)
        with Journal(path, SPEC) as journal:
            for group in ("e", "f"):
                for key in group:
                    journal[key] = PIECES[key]
                journal.commit()
                found.mark(group)
            found.mark("remove")
            journal.remove()

    return work


def test_after_any_crash_a_journal_has_what_was_committed_and_nothing_else(
    tmp_path: Path, quick: None
) -> None:
    path = tmp_path / "r.h5.part"
    count = 0
    for content, promises in states(record(tmp_path, sessions(path))):
        count += 1
        lay(tmp_path, content)
        is_removed = "remove" in promises and not content
        promised = {} if is_removed else {key: PIECES[key] for key in "".join(promises[:5])}
        require_journal(path, promised, PIECES)
    print(f"{count} states")
    assert count >= 1_000


def whole_journal(folder: Path) -> tuple[bytes, list[tuple[int, str]]]:
    """Return the bytes of a journal of all pieces, and which were committed at which length."""
    path, sizes = folder / "r.h5.part", []
    with Journal(path, SPEC) as journal:
        for group in ("a", "bc", "d", "e", "f"):
            for key in group:
                journal[key] = PIECES[key]
            journal.commit()
            sizes.append((path.stat().st_size, group))
    data = path.read_bytes()
    path.unlink()
    return data, sizes


def test_after_any_crash_behind_a_torn_end_a_journal_has_what_was_committed(
    tmp_path: Path, quick: None
) -> None:
    path = tmp_path / "r.h5.part"
    whole, sizes = whole_journal(tmp_path)
    count = 0
    for length in [*range(0, len(whole), len(whole) // 5), len(whole) - 1]:
        lay(tmp_path, {path.name: whole[:length]})
        committed = {key: PIECES[key] for size, group in sizes if size <= length for key in group}
        fresh = {"x": piece(7), "y": piece(8, 150)}

        def work(found: Recorder, fresh: dict[str, Tensor] = fresh) -> None:
            with Journal(path, SPEC) as journal:
                for key, value in fresh.items():
                    journal[key] = value
            found.mark("xy")

        for content, promises in states(record(tmp_path, work)):
            count += 1
            lay(tmp_path, content)
            require_journal(path, committed | (fresh if promises else {}), PIECES | fresh)
    print(f"{count} states")
    assert count >= 2_000


def test_after_any_crash_of_a_repair_a_journal_has_what_was_whole(
    tmp_path: Path, quick: None
) -> None:
    path = tmp_path / "r.h5.part"
    whole, sizes = whole_journal(tmp_path)
    damaged = bytearray(whole)
    damaged[sizes[1][0] - 1] ^= 1  # in "c"
    lay(tmp_path, {path.name: damaged})
    kept = {key: value for key, value in PIECES.items() if key != "c"}

    def work(found: Recorder) -> None:
        with pytest.raises(ComputationError, match="5 pieces of it are whole"):
            Journal(path, SPEC)
        with Journal(path, SPEC) as journal:
            journal["x"] = piece(7)
        found.mark("x")

    count = 0
    for content, promises in states(record(tmp_path, work)):
        count += 1
        lay(tmp_path, content)
        for name in content:
            if name != path.name:  # what a later save clears
                (tmp_path / name).unlink()
        new = {"x": piece(7)}
        require_journal(path, kept | (new if promises else {}), kept | new, damaged=True)
    print(f"{count} states")
    assert count >= 500


def test_after_any_crash_a_training_goes_on_from_what_was_kept_last(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "KEEP_EVERY", 0.0)
    monkeypatch.setattr(training, "KEEP_SHARE", 0)
    path, kept = tmp_path / "r.h5.part", []

    def work(found: Recorder) -> None:
        def keep(run: Run) -> None:
            save(path, run, overwrite=True)
            kept.append(run.updates)
            found.mark(run.updates)

        train(CONFIG, keep=keep)

    def begun() -> Run | None:
        return load(path) if path.exists() else None  # type: ignore[return-value]

    wanted = train(CONFIG)
    count, ends = 0, {}
    for content, promises in states(record(tmp_path, work)):
        count += 1
        lay(tmp_path, content)
        data = content.get(path.name)
        assert data is not None or not promises
        if data not in ends:
            run = begun()
            ends[data] = run.updates if run else -1
            again = train(CONFIG, begun=run)
            assert torch.equal(again.end.theta, wanted.end.theta)
        assert ends[data] >= max(promises, default=-1)
    print(f"{count} states, {len(kept)} times kept")
    assert len(ends) == len(kept) + 1
    assert count >= 300


# Calls that fail

CHANGES = ("open", "write", "ftruncate", "fsync", "link", "replace", "unlink")


@dataclass
class Faults:
    """One call of the ``os`` module that fails, or writes short, among those on a folder."""

    folder: Path
    at: int  # which call, from 0
    error: int  # 0: that call and all after it write a part only
    names: tuple[str, ...] = CHANGES
    calls: list[str] = field(default_factory=list)

    def __enter__(self) -> "Faults":
        self.patch = pytest.MonkeyPatch()
        self.inside: set[int] = set()
        for name in self.names:
            self.patch.setattr(os, name, self.instead(name, getattr(os, name)))
        return self

    def __exit__(self, *error: object) -> None:
        self.patch.undo()

    @property
    def failed(self) -> str | None:
        return self.calls[self.at] if self.at < len(self.calls) else None

    def instead(self, name: str, system: Callable[..., Any]) -> Callable[..., Any]:
        def call(what: Any, *args: Any, **kwargs: Any) -> Any:
            if not self.concerns(name, what):
                return system(what, *args, **kwargs)
            number = len(self.calls)
            is_folder = name == "fsync" and stat.S_ISDIR(os.fstat(what).st_mode)
            self.calls.append("fsync names" if is_folder else name)
            if self.error and number == self.at:
                named = () if isinstance(what, int) else (str(what),)
                raise OSError(self.error, os.strerror(self.error), *named)
            if not self.error and number >= self.at and name == "write":
                return system(what, args[0][: max(1, len(args[0]) // 3)])
            result = system(what, *args, **kwargs)
            if name == "open":
                self.inside.add(result)
            return result

        return call

    def concerns(self, name: str, what: Any) -> bool:
        if isinstance(what, int):
            return name in ("pread", "fsync") or what in self.inside
        path = Path(what)
        return self.folder in (path, path.parent)


def each_fault(
    folder: Path,
    names: tuple[str, ...] = CHANGES,
    errors: tuple[int, ...] = (errno.EIO, errno.ENOSPC, errno.EDQUOT, 0),
) -> Iterator[Faults]:
    """Yield faults of each kind at each call, until one comes too late."""
    for error in errors:
        for at in range(100):
            fault = Faults(folder, at, error, names)
            yield fault
            if fault.failed is None:
                break
        else:
            raise AssertionError("there is no end of calls")


@pytest.mark.parametrize("over", [False, True], ids=["new", "over an old one"])
def test_a_save_with_a_call_that_fails_says_so_and_leaves_the_old_file(
    over: bool, tmp_path: Path, quick: None
) -> None:
    path, count = tmp_path / "r.h5", 0
    for fault in each_fault(tmp_path):
        lay(tmp_path, {})
        if over:
            save(path, LINES[0])
        try:
            with fault:
                save(path, LINES[1], overwrite=over)
            assert fault.error == 0 or fault.failed in (None, "unlink")
            assert load(path).spec == LINES[1].spec
        except OSError as error:
            assert (error.errno, error.filename) == (fault.error, str(path))
            new = over and path.exists() and load(path).spec == LINES[1].spec
            is_late = "link" in fault.calls or "replace" in fault.calls
            assert fault.failed != "fsync" or "fsync" not in fault.calls[fault.at + 1 :]
            if not is_late:
                assert not new
                assert load(path).spec == LINES[0].spec if over else not path.exists()
        left = set(listed(tmp_path)) - {path.name}
        assert not left or fault.failed == "unlink"
        count += fault.failed is not None
        save(path, LINES[1], overwrite=True)
        assert load(path).spec == LINES[1].spec
        assert listed(tmp_path) == [path.name]
    print(f"{count} faults")
    assert count > 20


def session(path: Path, put: dict[str, Tensor], committed: dict[str, Tensor]) -> None:
    """Put pieces into a journal in three groups; tell in these dicts how far it came."""
    with Journal(path, SPEC) as journal:
        for group in ("ab", "c", "d"):
            for key in group:
                put[key] = journal[key] = PIECES[key]
            journal.commit()
            committed.update(put)


@pytest.mark.parametrize("begin", ["new", "torn"])
def test_a_journal_with_a_call_that_fails_says_so_and_keeps_what_was_committed(
    begin: str, tmp_path: Path, quick: None
) -> None:
    path, count = tmp_path / "r.h5.part", 0
    with Journal(path, SPEC) as journal:
        journal["z"] = piece(26)
    torn = path.read_bytes() + b"SHRP"
    for fault in each_fault(tmp_path, ("pread", *CHANGES)):
        lay(tmp_path, {path.name: torn} if begin == "torn" else {})
        before = {"z": piece(26)} if begin == "torn" else {}
        put, committed = dict(before), dict(before)
        try:
            with fault:
                session(path, put, committed)
            assert not fault.error or fault.failed is None
        except OSError as error:
            assert error.errno == fault.error
            assert error.filename in (str(path), str(tmp_path))
            later = fault.calls[fault.at + 1 :]
            assert fault.failed != "fsync" or not {"fsync", "write"} & set(later)
            if len(committed) > len(before):
                assert f"keeps {len(committed)} piece" in error.__notes__[0]
        count += fault.failed is not None
        assert listed(tmp_path) in ([], [path.name])
        require_journal(path, committed, {**put, **PIECES})
    print(f"{count} faults")
    assert count > 30


def test_a_journal_that_failed_takes_no_piece_for_written(tmp_path: Path) -> None:
    path = tmp_path / "r.h5.part"
    journal = Journal(path, SPEC)
    size = path.stat().st_size
    journal["a"] = PIECES["a"]
    with Faults(tmp_path, 0, errno.EIO, ("fsync",)), pytest.raises(OSError, match="Input"):
        journal.commit()
    assert path.stat().st_size == size  # so that the disk has its room back
    with pytest.raises(OSError, match="nothing was written since"):
        journal.commit()
    with pytest.raises(OSError, match="nothing was written since"):
        journal.__exit__(None, None, None)
    assert not path.exists()


def test_a_training_whose_disk_fails_says_so_and_goes_on_from_what_was_kept(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "KEEP_EVERY", 0.0)
    monkeypatch.setattr(training, "KEEP_SHARE", 0)
    path, count = tmp_path / "r.h5.part", 0
    config = replace(CONFIG, updates=3)
    wanted = train(config).end.theta
    resumed = {}  # by the bytes that were kept
    for fault in each_fault(tmp_path, errors=(errno.EIO, 0)):
        lay(tmp_path, {})
        kept = 0

        def keep(run: Run) -> None:
            nonlocal kept
            save(path, run, overwrite=True)
            kept = run.updates

        try:
            with fault:
                train(config, keep=keep)
        except OSError as error:
            assert (error.errno, error.filename) == (fault.error, str(path))
        count += fault.failed is not None
        data = path.read_bytes() if path.exists() else None
        if data not in resumed:
            begun = store.load_as(path, Run) if data else None
            resumed[data] = begun.updates if begun else 0
            assert torch.equal(train(config, begun=begun).end.theta, wanted)
        assert resumed[data] >= kept
    print(f"{count} faults")
    assert count > 15


# Disks that are full


def limited(work: Callable[[], None], limit: int) -> OSError | None:
    """Return what the system says of a file longer than this, None where it is short enough."""
    signals, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        work()
    except OSError as error:
        return error
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (signals, hard))
    return None


def in_a_fork(work: Callable[[], None]) -> None:
    """Do this in a process of its own, which a signal must not end."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert not os.WIFSIGNALED(status), f"signal {os.WTERMSIG(status)}"
    assert os.waitstatus_to_exitcode(status) == 0


TOGETHER = 256  # limits in one process: a fork costs more than a save


@pytest.mark.parametrize("over", [False, True], ids=["new", "over an old one"])
def test_at_every_limit_of_the_disk_a_result_is_whole_or_the_old_one(
    over: bool, tmp_path: Path, quick: None, encoded_once: None
) -> None:
    path = tmp_path / "r.h5"
    save(path, LINES[0], request=REQUESTS[0])
    old, name = path.read_bytes(), path.name
    save(path, LINES[1], request=REQUESTS[1], overwrite=True)
    new = path.read_bytes()

    def at(limits: range) -> None:
        for limit in limits:
            lay(tmp_path, {name: old} if over else {})
            error = limited(
                lambda: save(path, LINES[1], request=REQUESTS[1], overwrite=over), limit
            )
            assert (error is None) == (limit >= len(new))
            if error:
                assert (error.errno, error.filename) == (errno.EFBIG, str(path))
            there = {found.name: found.read_bytes() for found in tmp_path.iterdir()}
            assert there == ({name: new} if not error else {name: old} if over else {})

    count = len(new) + 2
    for first in range(0, count, TOGETHER):
        in_a_fork(lambda first=first: at(range(first, min(first + TOGETHER, count))))  # type: ignore[misc]
    print(f"{count} limits, 0 signals")


def test_at_every_limit_of_the_disk_a_journal_keeps_what_was_committed(
    tmp_path: Path, quick: None
) -> None:
    path = tmp_path / "r.h5.part"
    session(path, {}, {})
    count = path.stat().st_size + 2 + len(str(DEAD))  # numbers of processes differ in length

    def at(limits: range) -> None:
        for limit in limits:
            lay(tmp_path, {})
            put: dict[str, Tensor] = {}
            committed: dict[str, Tensor] = {}
            error = limited(lambda: session(path, put, committed), limit)  # noqa: B023
            if error:
                assert (error.errno, error.filename) == (errno.EFBIG, str(path))
            else:
                assert limit >= path.stat().st_size
            assert bool(committed) == path.exists()
            require_journal(path, committed, put)

    for first in range(0, count, TOGETHER):
        in_a_fork(lambda first=first: at(range(first, min(first + TOGETHER, count))))  # type: ignore[misc]
    print(f"{count} limits, 0 signals")


# Bytes that change


def damages(whole: bytes, count: int | None = None) -> Iterator[tuple[str, bytes]]:
    """Yield the bytes with one bit flipped: at each byte, or at so many places."""
    rng = random.Random(0)  # noqa: S311
    for i in (
        range(len(whole)) if count is None else (rng.randrange(len(whole)) for _ in range(count))
    ):
        damaged = bytearray(whole)
        damaged[i] ^= 1 << rng.randrange(8)
        yield f"byte {i}", bytes(damaged)


def zeroed(whole: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the bytes with one sector that was lost, in zeros or ones."""
    for begin in range(0, len(whole), SECTOR):
        for fill in (b"\0", b"\xff"):
            end = min(begin + SECTOR, len(whole))
            data = whole[:begin] + fill * (end - begin) + whole[end:]
            if data != whole:
                yield f"sector {begin}", data


def shortened(whole: bytes) -> Iterator[tuple[str, bytes]]:
    for length in range(len(whole)):
        yield f"length {length}", whole[:length]


def require_seen(path: Path, found: Iterator[tuple[str, bytes]]) -> int:
    """Require that each of these files is refused by its name; return how many."""
    count = 0
    for place, data in found:
        path.write_bytes(data)
        with pytest.raises(ComputationError) as error:
            load(path)
        assert path.name in str(error.value), place
        count += 1
    return count


def test_every_change_of_a_result_is_seen(tmp_path: Path, quick: None) -> None:
    path = tmp_path / "r.h5"
    save(path, LINES[0])
    small = path.read_bytes()
    noise = torch.rand(1_500, dtype=torch.float64)
    save(path, Line(noise, {"loss": noise}, 1.0, {}), overwrite=True)
    large = path.read_bytes()
    flips = require_seen(path, damages(small)), require_seen(path, damages(large, 5_000))
    sectors = require_seen(path, zeroed(small)) + require_seen(path, zeroed(large))
    lengths = require_seen(path, shortened(small))
    print(
        f"{flips[0]:,} flips at every byte of {len(small):,}, {flips[1]:,} in {len(large):,}, "
        f"{sectors} sectors, {lengths:,} lengths: all seen"
    )
    assert flips == (len(small), 5_000)
    assert lengths == len(small)


def require_less(path: Path, found: Iterator[tuple[str, bytes]], put: dict[str, Tensor]) -> int:
    """Require an error by name or fewer pieces, all as they were put; return how many."""
    count = 0
    for place, data in found:
        lay(path.parent, {path.name: data})
        is_told = False
        for _ in range(2):  # an error that kept what is whole comes but once
            try:
                with Journal(path, SPEC) as journal:
                    got = dict(journal)
            except (InputError, ComputationError) as error:
                assert path.name in str(error), place
                is_told = True
                continue
            assert is_told or len(got) < len(put), place
            assert all(same(got[key], put[key]) for key in got), place
        count += 1
    return count


def test_every_change_of_a_journal_is_seen(tmp_path: Path, quick: None) -> None:
    path = tmp_path / "r.h5.part"
    small, _ = whole_journal(tmp_path)
    put = {
        f"row {i}": torch.rand(50, generator=torch.Generator().manual_seed(i)) for i in range(60)
    }
    with Journal(path, SPEC) as journal:
        for i, (key, value) in enumerate(put.items()):
            journal[key] = value
            if i % 7 == 0:
                journal.commit()
    large = path.read_bytes()
    flips = (
        require_less(path, damages(small), PIECES),
        require_less(path, damages(large, 5_000), put),
    )
    sectors = require_less(path, zeroed(small), PIECES) + require_less(path, zeroed(large), put)
    lengths = require_less(path, shortened(small), PIECES)
    print(
        f"{flips[0]:,} flips at every byte of {len(small):,}, {flips[1]:,} in {len(large):,}, "
        f"{sectors} sectors, {lengths:,} lengths: all seen"
    )
    assert flips == (len(small), 5_000)
    assert lengths == len(small)


def test_damage_ahead_of_the_last_group_is_told_and_costs_one_piece(
    tmp_path: Path, quick: None
) -> None:
    path = tmp_path / "r.h5.part"
    whole, sizes = whole_journal(tmp_path)
    begin = sizes[-2][0]  # of the last group
    kept = 0
    for place, data in damages(whole[:begin]):
        lay(tmp_path, {path.name: data + whole[begin:]})
        with pytest.raises(ComputationError, match="damaged"):
            Journal(path, SPEC)
        try:
            with Journal(path, SPEC) as journal:
                assert len(journal) >= len(PIECES) - 1, place
                kept += 1
        except ComputationError as error:
            assert "where it says what it belongs to" in str(error)
    print(f"{begin:,} flips, told each time; of {kept:,} at most one piece was lost")
    assert kept > 0.8 * begin
