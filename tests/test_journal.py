"""A journal gives back what was put into it, to its own computation, one process at a time."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sharpness import disk, journal
from sharpness.curvature import Dense
from sharpness.errors import ComputationError, InputError
from sharpness.journal import Journal, part_of
from sharpness.lanczos import eigsh

SPEC = {"command": "plane", "options": {"seed": 0, "alphas": [-1.0, 1.0, 3]}}
TENSORS = {
    "loss -1.0 -1.0": torch.tensor([0.1, 0.5], dtype=torch.float64),
    "product 0": torch.linspace(-1, 1, 7),
    "a number": torch.tensor(3),
    "truths": torch.tensor([[True, False], [False, False]]),
    "nothing": torch.zeros(0, 4),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "not finite": torch.tensor([float("nan"), float("inf")]),
    "strided": torch.arange(12.0).reshape(3, 4).T[::2],
    "ü \udcff/%": torch.tensor([1]),  # a name may be that of a file
}


def bits(x: Tensor) -> tuple[Any, ...]:
    return x.dtype, x.shape, x.reshape(-1).view(torch.uint8).tolist()


def same(found: Any, wanted: dict[str, Tensor]) -> bool:
    return list(found) == list(wanted) and all(bits(found[k]) == bits(wanted[k]) for k in wanted)


def test_pieces_come_back_bit_by_bit_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "a.part"
    with Journal(path, SPEC) as pieces:
        for name, value in TENSORS.items():
            pieces[name] = value
            assert bits(pieces[name]) == bits(value)  # before it is on disk
        assert len(pieces) == len(TENSORS)
    with Journal(path, SPEC) as pieces:
        assert same(pieces, TENSORS)
        with pytest.raises(KeyError):
            pieces["none"]
        pieces["more"] = torch.ones(1)
    with Journal(path, SPEC) as pieces:
        assert same(pieces, {**TENSORS, "more": torch.ones(1)})


def test_a_piece_is_a_copy(tmp_path: Path) -> None:
    with Journal(tmp_path / "a.part", SPEC) as pieces:
        x = torch.ones(2)
        pieces["x"] = x
        x.zero_()
        pieces["x"].zero_()
        assert pieces["x"].tolist() == [1, 1]


def test_no_piece_is_replaced_or_taken_out(tmp_path: Path) -> None:
    with Journal(tmp_path / "a.part", SPEC) as pieces:
        pieces["x"] = torch.ones(1)
        with pytest.raises(InputError, match="keeps its pieces, got another x"):
            pieces["x"] = torch.zeros(1)
        with pytest.raises(InputError, match="keeps its pieces, got the removal of x"):
            del pieces["x"]
        assert pieces["x"] == 1


def test_pieces_wait_two_seconds_for_the_disk_unless_they_are_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, syncs, sync = 100.0, 0, disk.sync

    def counted(descriptor: int, path: Path) -> None:
        nonlocal syncs
        syncs += 1
        sync(descriptor, path)

    monkeypatch.setattr(journal.time, "monotonic", lambda: now)
    with Journal(tmp_path / "a.part", SPEC) as pieces:
        monkeypatch.setattr(disk, "sync", counted)
        pieces["a"] = torch.ones(1)
        now = 101.9
        pieces["b"] = torch.ones(1)
        assert syncs == 0
        now = 102.0
        pieces["c"] = torch.ones(1)
        assert syncs == 1
        pieces["d"] = torch.ones(1)
        assert syncs == 1
        monkeypatch.setattr(journal, "FULL", 8)
        pieces["e"] = torch.ones(1)
        assert syncs == 2
        pieces["f"] = torch.ones(1, dtype=torch.int8)
    assert syncs == 3  # and the rest at the end
    with Journal(tmp_path / "a.part", SPEC) as pieces:
        assert list(pieces) == list("abcdef")


def test_another_computation_is_refused_with_the_differences_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.part"
    with Journal(path, SPEC) as pieces:
        pieces["x"] = torch.ones(1)
    before = path.read_bytes()
    other = {**SPEC, "options": {**SPEC["options"], "seed": 7}}
    with pytest.raises(InputError, match=r"another computation \(seed 0 there, 7 asked for\)"):
        Journal(path, other)
    assert path.read_bytes() == before
    with Journal(path, other, overwrite=True) as pieces:
        assert not pieces
        pieces["y"] = torch.ones(1)
    with Journal(path, other, overwrite=True) as pieces:
        assert list(pieces) == ["y"]  # its own are kept


def test_a_second_writer_is_told_who_the_first_is_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.part"
    code = (
        "import sys, time; from sharpness.journal import Journal; begun = time.monotonic()\n"
        "try: Journal(sys.argv[1], {})\n"
        "except Exception as error: print(type(error).__name__, time.monotonic() - begun, error)"
    )
    with Journal(path, SPEC) as pieces:
        pieces["x"] = torch.ones(1)
        pieces.commit()
        before = path.read_bytes()
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
        )
        kind, seconds, text = done.stdout.split(maxsplit=2)
        assert kind == "ComputationError"
        assert float(seconds) < 1
        assert f"is being written by process {os.getpid()} on " in text
        assert path.read_bytes() == before
    with Journal(path, SPEC) as pieces:  # the lock went with its holder
        assert pieces["x"] == 1


def test_a_lock_without_a_record_yet_is_a_lock_too(tmp_path: Path) -> None:
    path = tmp_path / "a.part"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    journal.fcntl.flock(descriptor, journal.fcntl.LOCK_EX)
    with pytest.raises(ComputationError, match="is being written by another process"):
        Journal(path, SPEC)
    os.close(descriptor)


def test_a_file_that_its_writer_removes_meanwhile_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, flock, calls = tmp_path / "a.part", journal.fcntl.flock, 0

    def late(descriptor: int, how: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            path.unlink()  # between our opening it and our lock
        flock(descriptor, how)

    monkeypatch.setattr(journal.fcntl, "flock", late)
    with Journal(path, SPEC) as pieces:
        pieces["x"] = torch.ones(1)
    assert calls == 2
    with Journal(path, SPEC) as pieces:
        assert list(pieces) == ["x"]


def test_without_locks_a_journal_works_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "fcntl", None)
    with Journal(tmp_path / "a.part", SPEC) as pieces:
        pieces["x"] = torch.ones(1)
    with Journal(tmp_path / "a.part", SPEC) as pieces:
        assert pieces["x"] == 1


def test_a_journal_without_pieces_leaves_no_file(tmp_path: Path) -> None:
    with Journal(tmp_path / "a.part", SPEC):
        pass
    with pytest.raises(ZeroDivisionError) as caught, Journal(tmp_path / "b.part", SPEC):
        raise ZeroDivisionError
    assert not hasattr(caught.value, "__notes__")
    assert not os.listdir(tmp_path)


def test_a_journal_is_removed_when_the_result_is_there(tmp_path: Path) -> None:
    with Journal(tmp_path / "a.part", SPEC) as pieces:
        pieces["x"] = torch.ones(1)
        pieces.commit()
        pieces["y"] = torch.ones(1)
        pieces.remove()
    assert not os.listdir(tmp_path)


def test_what_is_kept_is_told_with_the_exception_that_ends_it(tmp_path: Path) -> None:
    def work(path: Path, error: BaseException, count: int) -> None:
        with Journal(path, SPEC) as pieces:
            for i in range(count):
                pieces[f"x{i}"] = torch.ones(1)
            raise error

    def fails(path: Path, error: BaseException, count: int) -> list[str]:
        with pytest.raises(type(error)) as caught:
            work(path, error, count)
        return caught.value.__notes__

    path = tmp_path / "a.part"
    (one,) = fails(path, KeyboardInterrupt(), 1)
    assert one == f"{path} keeps 1 piece: the same command again continues"
    path.unlink()
    (two,) = fails(path, OSError(28, "No space left on device"), 2)
    assert two.endswith("keeps 2 pieces: when the cause is gone the same command again continues")


def test_a_file_that_is_gone_at_a_commit_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.part"
    pieces = Journal(path, SPEC)
    pieces["x"] = torch.ones(1)
    path.unlink()
    with pytest.raises(OSError, match="was removed by someone else"):
        pieces.__exit__(None, None, None)
    assert not os.listdir(tmp_path)


def test_a_failed_write_ends_it_and_keeps_what_was_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, calls = tmp_path / "a.part", 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        raise OSError(28, "No space left on device")

    def work() -> None:
        with Journal(path, SPEC) as pieces:
            pieces["x"] = torch.ones(1)
            pieces.commit()
            pieces["y"] = torch.ones(1)
            monkeypatch.setattr(os, "fsync", full)
            pieces.commit()

    with pytest.raises(OSError, match="No space") as caught:
        work()
    monkeypatch.undo()
    assert calls == 1  # a sync that failed is not tried again
    assert caught.value.filename == str(path)
    assert "keeps 1 piece" in caught.value.__notes__[0]
    with Journal(path, SPEC) as pieces:
        assert list(pieces) == ["x"]


@pytest.mark.parametrize("text", [b"GIF89a", b"SHRPJ2\r\n" + bytes(100)])
def test_a_file_of_something_else_is_left_alone(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.part"
    path.write_bytes(text)
    for overwrite in (False, True):
        with pytest.raises(InputError, match="is no journal"):
            Journal(path, SPEC, overwrite=overwrite)
    assert path.read_bytes() == text


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"")
    (tmp_path / "a.part").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic link"):
        Journal(tmp_path / "a.part", SPEC)
    assert (tmp_path / "victim").read_bytes() == b""


@pytest.fixture
def three(tmp_path: Path) -> tuple[Path, list[int]]:
    """A journal of three groups, and where each of them begins."""
    path, begins = tmp_path / "a.part", []
    with Journal(path, SPEC) as pieces:
        for i in range(3):
            begins.append(path.stat().st_size)
            for j in range(2):
                pieces[f"{i} {j}"] = torch.full((3,), float(i))
            pieces.commit()
    return path, begins


def test_damage_is_told_once_and_costs_what_was_damaged(three: tuple[Path, list[int]]) -> None:
    path, begins = three
    raw = bytearray(path.read_bytes())
    raw[begins[1] + 60] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ComputationError, match="was damaged, and 5 pieces of it are whole"):
        Journal(path, SPEC)
    with Journal(path, SPEC) as pieces:
        assert list(pieces) == ["0 0", "0 1", "1 1", "2 0", "2 1"]
    assert os.listdir(path.parent) == ["a.part"]


def test_a_torn_tail_is_cut_off_even_where_later_sectors_were_written(
    three: tuple[Path, list[int]],
) -> None:
    path, begins = three
    raw = path.read_bytes()
    torn = raw[: begins[2]] + bytes(100) + raw[begins[2] + 100 :]
    for tail in (torn, raw[:-1], raw + bytes(4096), raw + journal.MARKER):
        path.write_bytes(tail)
        with Journal(path, SPEC) as pieces:
            assert list(pieces)[:4] == ["0 0", "0 1", "1 0", "1 1"]
            assert set(pieces) <= {"0 0", "0 1", "1 0", "1 1", "2 0", "2 1"}
            pieces["more"] = torch.ones(1)
        with Journal(path, SPEC) as pieces:
            assert "more" in pieces


def test_damage_in_the_spec_is_told_until_the_file_is_overwritten(
    three: tuple[Path, list[int]],
) -> None:
    path, _ = three
    raw = bytearray(path.read_bytes())
    raw[70] ^= 1
    path.write_bytes(raw)
    for _ in range(2):
        with pytest.raises(ComputationError, match="where it says what it belongs to"):
            Journal(path, SPEC)
    with Journal(path, SPEC, overwrite=True) as pieces:
        assert not pieces


def test_a_piece_that_changes_on_disk_meanwhile_is_an_error(three: tuple[Path, list[int]]) -> None:
    path, begins = three
    with Journal(path, SPEC) as pieces:
        with path.open("r+b") as file:
            file.seek(begins[0] + 60)
            file.write(b"\0\0\0\0")
        with pytest.raises(ComputationError, match="needs to stay as it was written"):
            pieces["0 0"]


def test_records_are_found_across_the_blocks_in_which_a_file_is_read(
    three: tuple[Path, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, begins = three
    raw = bytearray(path.read_bytes())
    raw[begins[1]] ^= 1
    for block in (8, 9, 13, 64):
        path.write_bytes(raw)
        monkeypatch.setattr(journal, "BLOCK", block)
        with pytest.raises(ComputationError, match="5 pieces"):
            Journal(path, SPEC)


def test_a_search_continues_from_its_products(tmp_path: Path) -> None:
    class Counting(Dense):
        products, most = 0, 10**9

        def __matmul__(self, v: Tensor) -> Tensor:
            if self.products == self.most:
                raise KeyboardInterrupt
            self.products += 1
            return super().__matmul__(v)

    matrix = torch.diag(torch.linspace(0, 1, 300, dtype=torch.float64) ** 4)
    whole = Counting(matrix)
    wanted = eigsh(whole, 3)
    path, spent = part_of(tmp_path / "a.eigs.h5"), 0
    assert path.name == "a.eigs.h5.part"
    for most in (5, 9, 10**9):
        A = Counting(matrix)
        A.most = most
        try:
            with Journal(path, SPEC) as pieces:
                got = eigsh(A, 3, pieces=pieces)
        except KeyboardInterrupt:
            pass
        spent += A.products
    assert spent == whole.products
    assert torch.equal(got.values, wanted.values)
    assert torch.equal(got.vectors, wanted.vectors)


def test_a_file_that_is_cut_off_meanwhile_is_an_error(three: tuple[Path, list[int]]) -> None:
    path, begins = three
    with Journal(path, SPEC) as pieces:
        os.truncate(path, begins[0] + 60)
        with pytest.raises(ComputationError, match="needs to stay as it was written"):
            pieces["0 0"]


def test_a_journal_is_opened_once_in_a_process_too(three: tuple[Path, list[int]]) -> None:
    path, _ = three
    with (
        Journal(path, SPEC),
        pytest.raises(ComputationError, match=f"is being written by process {os.getpid()} on "),
    ):
        Journal(path, SPEC)
