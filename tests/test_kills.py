"""Commands that are killed, stopped, out of disk or not alone end with the same bytes.

A command is listed in ``COMMANDS``, and all that is tested here is tested of it. Commands run in
forks of a process that has imported torch already, by ``forking.py``, to save their start.
"""

import hashlib
import json
import os
import random
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook

from sharpness import store
from sharpness.journal import Journal
from sharpness.results import Plane, Run
from sharpness.signals import Stopped
from sharpness.store import load_as

MLP = ["--model-options", '{"widths": [16]}', "--threads", "1"]
LINEAR = ["--model-options", '{"widths": []}']
TRAIN = ["train", *MLP, "--batch-size", "8", "--seed", "1", "--split-seed", "1"]
RUN = ["run", "keskar", "--quick", *LINEAR, "--seeds", "1", "--level", "2.2", "--noise", "0"]
PLANE = ["plane", "sb.h5", "-o", "out.h5"]
# So that a small problem has something to lose: seconds between commits and keeps, and how large
# a search for eigenvalues has to be.
HASTE = {
    "sharpness.journal:EVERY": 0.05,
    "sharpness.training:KEEP_EVERY": 0.1,
    "sharpness.cli.eigs:LARGE": 1,
}


@dataclass(frozen=True)
class Command:
    """A command line, and what it leaves: a file with pieces beside it, or a folder of files."""

    args: list[str]
    output: str = "out.h5"
    needs: list[str] = field(default_factory=list)  # files of ``made``
    kept: str = "pieces"  # or "update" of a training, or "files" of a recipe


COMMANDS = {
    "train": Command([*TRAIN, "--updates", "900", "-o", "out.h5"], kept="update"),
    "plane": Command([*PLANE, "--alphas=-1:1:17"], needs=["sb.h5"]),
    "convexity": Command([*PLANE, "--convexity", "--alphas=-1:1:3"], needs=["sb.h5"]),
    "eigs": Command(
        ["eigs", "sb.h5", "-k", "8", "--dtype", "float64", "-o", "out.h5"], needs=["sb.h5"]
    ),
    "density": Command(
        ["density", "sb.h5", "--steps", "20", "--probes", "30", "-o", "out.h5"], needs=["sb.h5"]
    ),
    "layers": Command(["layers", "sb.h5", "--probes", "64", "-o", "out.h5"], needs=["sb.h5"]),
    "batches": Command(["batches", "sb.h5", "--batch-size", "20", "-o", "out.h5"], needs=["sb.h5"]),
    "run": Command(
        [*RUN, "--batch-sizes", "100,600", "--workers", "1", "-o", "out"],
        output="out",
        kept="files",
    ),
}


class Forks:
    """A process that runs commands in forks of itself."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("forking.py")
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"},
        )

    def ask(self, request: dict[str, Any]) -> Any:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{json.dumps(request)}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(
        self,
        folder: Path,
        args: list[str],
        *,
        limit: int | None = None,
        tuned: dict[str, float] = HASTE,
    ) -> int:
        process: int = self.ask({"in": str(folder), "args": args, "limit": limit, "set": tuned})
        return process

    def wait(self, process: int) -> tuple[int, str, str]:
        code, out, err = self.ask({"wait": process})
        return code, out, err

    def run(self, folder: Path, args: list[str], **more: Any) -> tuple[int, str, str]:
        return self.wait(self.start(folder, args, **more))

    def close(self) -> None:
        with self.process:  # which closes its pipes and waits
            pass


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    found = Forks()
    yield found
    found.close()


@pytest.fixture(scope="module")
def made(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that commands need."""
    folder = tmp_path_factory.mktemp("made")
    for name, seed in (("sb.h5", "1"), ("lb.h5", "2")):
        code, _, err = forks.run(folder, [*TRAIN, "--updates", "100", "--seed", seed, "-o", name])
        assert code == 0, err
    return folder


@dataclass(frozen=True)
class Whole:
    """What a command leaves that nobody interrupts."""

    files: dict[str, str]  # SHA-256 by name
    seconds: float


@pytest.fixture(scope="module")
def whole(forks: Forks, made: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Whole]:
    found = {}
    for name, command in COMMANDS.items():
        folder = fresh(tmp_path_factory.mktemp("whole"), command, made)
        begun = time.monotonic()
        code, _, err = forks.run(folder, command.args)
        assert code == 0, err
        found[name] = Whole(files(folder), time.monotonic() - begun)
    return found


def fresh(folder: Path, command: Command, made: Path) -> Path:
    """Return a new folder with what a command needs."""
    new = folder / str(len(list(folder.iterdir())))
    new.mkdir()
    for name in command.needs:
        (new / name).write_bytes((made / name).read_bytes())
    return new


def listed(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def committed(data: bytes) -> int:
    """Return how many pieces of a journal are whole, by the form that its module describes."""
    count, begin = 0, 0
    while data[begin : begin + 8] == b"SHRPJ1\r\n":
        lengths = data[begin + 8 : begin + 24]
        of_head, of_body = struct.unpack("<QQ", lengths)
        content = data[begin + 56 : begin + 56 + of_head + of_body]
        digest = data[begin + 24 : begin + 56]
        if hashlib.sha256(lengths + content).digest() != digest:
            break
        count += "key" in json.loads(content[:of_head])
        begin += 56 + of_head + of_body
    return count


def kept(folder: Path, command: Command) -> Any:
    """Return what is on disk by now: a number of pieces or updates, or files as they are."""
    if command.kept == "files":
        return {
            (str(path), found.st_ino, found.st_mtime_ns)
            for path in folder.rglob("*.h5")
            for found in [path.stat()]
        }
    if (folder / command.output).exists():
        return 0  # it is done, and what was kept is in nobody's way
    part = folder / f"{command.output}.part"
    try:
        if command.kept == "update":
            return load_as(part, Run).updates if part.exists() else 0
        return committed(part.read_bytes())
    except FileNotFoundError:
        return 0


def lost(before: Any, folder: Path, command: Command, err: str) -> int:
    """Return how much of what was on disk is not continued from."""
    if command.kept == "files":
        return len(before - kept(folder, command))
    if (folder / command.output).exists() and "already done" in err:
        return 0
    told = re.search(r"continuing from (?:the|update) ([\d,]+)", err)
    return max(0, before - (int(told[1].replace(",", "")) if told else 0))


def kill(
    name: str, count: int, forks: Forks, made: Path, whole: dict[str, Whole], folder: Path
) -> tuple[int, int, int, int]:
    """Return kills, losses, ends and ends with the same bytes; each run is killed up to thrice."""
    command, rng = COMMANDS[name], random.Random(name)  # noqa: S311
    kills = losses = ends = same = 0
    while kills < count:
        here, left, before = fresh(folder, command, made), 3, None
        while True:
            process = forks.start(here, command.args)
            if left and kills < count:
                time.sleep(rng.uniform(0, whole[name].seconds / 2))
                now = kept(here, command)
                os.kill(process, signal.SIGKILL)
            else:
                now = None
            code, _, err = forks.wait(process)
            if before is not None and (code == 0 or now is None):
                losses += lost(before, here, command, err)
            if code != -signal.SIGKILL:
                break
            # What a killed run had not told yet must still be there at the next.
            before = now if before is None or command.kept != "files" else before | now
            kills, left = kills + 1, left - 1
        assert code == 0, err
        ends += 1
        same += files(here) == whole[name].files
        assert files(here) == whole[name].files, name
    return kills, losses, ends, same


SHARES = {"train": 3, "plane": 3, "convexity": 3, "eigs": 2, "density": 2, "layers": 2}
SHARES |= {"batches": 2, "run": 3}


def test_what_is_killed_at_any_moment_loses_nothing_and_ends_with_the_same_bytes(
    forks: Forks, made: Path, whole: dict[str, Whole], tmp_path: Path
) -> None:
    found = []
    for name, count in SHARES.items():
        folder = tmp_path / name
        folder.mkdir()
        found.append(kill(name, count, forks, made, whole, folder))
    kills, losses, ends, same = map(sum, zip(*found, strict=True))
    print(f"{kills} kills, {losses} lost, {same} of {ends} the same bytes")
    assert (kills, losses, same) == (20, 0, ends)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_thousand_kills_lose_nothing(
    name: str, forks: Forks, made: Path, whole: dict[str, Whole], tmp_path: Path
) -> None:
    count = 1_000 // len(COMMANDS)
    kills, losses, ends, same = kill(name, count, forks, made, whole, tmp_path)
    print(f"{name}: {kills} kills, {losses} lost, {same} of {ends} the same bytes")
    assert (kills, losses, same) == (count, 0, ends)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plane", "train"])
def test_a_kill_costs_some_seconds_of_work_at_the_real_intervals(
    name: str, forks: Forks, made: Path, tmp_path: Path
) -> None:
    long = {
        "plane": Command([*PLANE, "--alphas=-1:1:101"], needs=["sb.h5"]),
        "train": Command([*TRAIN, "--updates", "20000", "-o", "out.h5"], kept="update"),
    }[name]
    folder = fresh(tmp_path, long, made)
    process = forks.start(folder, long.args, tuned={})
    while not kept(folder, long):
        time.sleep(0.1)
    before = kept(folder, long)
    os.kill(process, signal.SIGKILL)
    assert forks.wait(process)[0] == -signal.SIGKILL
    code, _, err = forks.run(folder, long.args, tuned={})
    assert code == 0, err
    assert lost(before, folder, long, err) == 0
    assert "continuing from" in err
    again = fresh(tmp_path, long, made)
    assert forks.run(again, long.args, tuned={})[0] == 0
    assert files(folder) == files(again)


# Signals

SIGNALS = {
    "SIGTERM": [signal.SIGTERM],
    "SIGINT": [signal.SIGINT],
    "SIGUSR1": [signal.SIGUSR1],
    "two SIGINTs": [signal.SIGINT] * 2,
}


def errors(text: str) -> list[str]:
    """Return the lines of a command's stderr that are no notes, of which one is allowed."""
    assert "Traceback" not in text, text
    return [line for line in text.splitlines() if line.startswith("sharpness: error: ")]


def stop(
    name: str, sent: list[signal.Signals], moment: float, forks: Forks, folder: Path
) -> int | None:
    """Send signals once the command has begun to keep something; return its exit code."""
    command = COMMANDS[name]
    process = forks.start(folder, command.args)
    part = folder / f"{command.output}.part"
    begun = time.monotonic()
    while not (part.exists() or (folder / command.output).exists()):
        assert time.monotonic() - begun < 60, forks.wait(process)  # it has failed
        time.sleep(0.005)
    time.sleep(moment)
    for number in sent:
        os.kill(process, number)
        time.sleep(0.01)
    code, _, err = forks.wait(process)
    if code == 0:
        return None
    assert code == 128 + sent[0], err
    (line,) = errors(err)
    assert line.startswith("sharpness: error: interrupted: ")
    if part.exists():
        assert "the same command again continues" in line
        assert "out.h5.part" in line or len(sent) == 2  # the second may come before that is said
    return code


def stopped(
    count: int, forks: Forks, made: Path, whole: dict[str, Whole], tmp_path: Path
) -> dict[str, int]:
    rng, found = random.Random(1), dict.fromkeys(SIGNALS, 0)  # noqa: S311
    for name in ("train", "plane", "eigs"):
        (tmp_path / name).mkdir()
        for what, sent in SIGNALS.items():
            for _ in range(count):
                folder = fresh(tmp_path / name, COMMANDS[name], made)
                moment = rng.uniform(0, whole[name].seconds / 2)
                found[what] += stop(name, sent, moment, forks, folder) is not None
                code, _, err = forks.run(folder, COMMANDS[name].args)
                assert code == 0, err
                assert files(folder) == whole[name].files
    return found


def test_a_signal_ends_a_command_in_one_line_and_the_next_start_continues(
    forks: Forks, made: Path, whole: dict[str, Whole], tmp_path: Path
) -> None:
    found = stopped(1, forks, made, whole, tmp_path)
    print(f"stopped by {found}, all the same bytes then")
    assert sum(found.values()) >= 6


@pytest.mark.slow
def test_a_hundred_signals_lose_nothing(
    forks: Forks, made: Path, whole: dict[str, Whole], tmp_path: Path
) -> None:
    found = stopped(16, forks, made, whole, tmp_path)  # some come after the end
    print(f"stopped by {found}, all the same bytes then")
    assert sum(found.values()) >= 100


# Disks that are full

DRAWN = Command(["plot", "sb.h5", "-o", "out.png"], output="out.png", needs=["sb.h5"])


def full(name: str, share: float, forks: Forks, made: Path, tmp_path: Path) -> None:
    """Run a command over an old output on a disk that takes this share of the new one."""
    command = {**COMMANDS, "plot": DRAWN}[name]
    (tmp_path / name).mkdir(exist_ok=True)
    folder = fresh(tmp_path / name, command, made)
    code, _, err = forks.run(folder, command.args)
    assert code == 0, err
    output = folder / command.output
    new, old = output.read_bytes(), (made / "lb.h5").read_bytes()
    output.write_bytes(old)
    args = [*command.args, "--overwrite"]
    limit = round(share * (len(new) - 1))
    code, _, err = forks.run(folder, args, limit=limit)
    assert code == 1, (limit, err)
    (line,) = errors(err)
    # A disk that takes nothing at all has no room for the temporary folder of a library either.
    assert command.output in line or (not limit and "temporary directory" in line)
    assert output.read_bytes() == old
    left = set(files(folder)) - set(command.needs) - {command.output}
    assert left <= {f"{command.output}.part"}
    if left and command.kept == "pieces":
        assert committed((folder / f"{command.output}.part").read_bytes()) > 0
        assert "keeps" in line
    code, _, err = forks.run(folder, args)
    assert code == 0, err
    assert output.read_bytes() == new
    assert set(files(folder)) == {*command.needs, command.output}


LIMITS = [("train", 1.0), ("eigs", 0.5), ("plane", 0.02), ("plane", 0.9), ("plot", 0.5)]


@pytest.mark.parametrize(("name", "share"), LIMITS)
def test_a_full_disk_ends_a_command_in_one_line_and_leaves_the_old_file(
    name: str, share: float, forks: Forks, made: Path, tmp_path: Path
) -> None:
    full(name, share, forks, made, tmp_path)


@pytest.mark.slow
def test_thirty_full_disks(forks: Forks, made: Path, tmp_path: Path) -> None:
    rng = random.Random(2)  # noqa: S311
    for name in ("train", "eigs", "plane", "convexity", "plot"):
        for share in (0.0, 1.0, *(rng.random() for _ in range(4))):
            full(name, share, forks, made, tmp_path)


# Several at once


def together(
    forks: Forks, made: Path, folder: Path, command: Command
) -> tuple[list[tuple[int, str]], Path]:
    """Return codes and stderr of eight processes of one command, started at once."""
    here = fresh(folder, command, made)
    processes = [forks.start(here, command.args, tuned={}) for _ in range(8)]
    ended = [forks.wait(process) for process in processes]
    return [(code, err) for code, _, err in ended], here


def test_of_eight_processes_on_a_journal_one_proceeds(
    forks: Forks, made: Path, whole: dict[str, Whole], tmp_path: Path
) -> None:
    ended, folder = together(forks, made, tmp_path, COMMANDS["plane"])
    wrote = [err for code, err in ended if code == 0 and "wrote out.h5" in err]
    after = [err for code, err in ended if code == 0 and "already done: out.h5" in err]
    refused = [err for code, err in ended if code == 1]
    print(f"{len(wrote)} proceeded, {len(refused)} refused, {len(after)} came after the end")
    assert (len(wrote), len(after) + len(refused)) == (1, 7)
    for err in refused:
        (line,) = errors(err)
        assert re.search(r"out\.h5\.part is being written by process \d+ on ", line)
    assert files(folder) == whole["plane"].files


def test_eight_processes_without_a_journal_write_the_same_whole_file(
    forks: Forks, made: Path, tmp_path: Path
) -> None:
    args = ["line", "sb.h5", "lb.h5", "-o", "out.h5"]
    ended, folder = together(forks, made, tmp_path, Command(args, needs=["sb.h5", "lb.h5"]))
    assert all(code == 0 for code, _ in ended), ended
    assert set(files(folder)) == {"sb.h5", "lb.h5", "out.h5"}
    code, _, err = forks.run(folder, args)
    assert (code, "already done" in err) == (0, True)


# Continuing where all is done


def test_continuing_a_plane_whose_points_are_all_there_evaluates_none_of_them(
    made: Path, tmp_path: Path, ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise Stopped(signal.SIGTERM)

    calls = {}
    for points in (2, 21):

        def counted(*args: Any, points: int = points) -> None:
            calls[points] += 1

        out, calls[points] = tmp_path / f"{points}.h5", 0
        args = ["plane", made / "sb.h5", "-o", out, f"--alphas=-1:1:{points}"]
        with monkeypatch.context() as patch:
            patch.setattr(store, "save", interrupted)
            assert ask(*args)[0] == 128 + signal.SIGTERM
        pieces = committed(out.with_name(f"{out.name}.part").read_bytes())
        begun = time.monotonic()
        with register_module_forward_hook(counted):
            code, _, err = ask(*args)
        print(
            f"{points**2} points: {time.monotonic() - begun:.2f} s, {calls[points]} layers called"
        )
        assert code == 0
        assert f"from the {pieces} pieces" in err
        assert pieces == 2 * points**2  # of the train and of the test part
        assert store.load_as(out, Plane).values["train_loss"].shape == (points, points)
    assert calls[2] == calls[21]  # by which an Objective looks at its model and its data
    assert listed(tmp_path) == ["2.h5", "21.h5"]


def test_pieces_beside_a_result_that_is_there_are_removed_unless_they_are_anothers(
    made: Path, tmp_path: Path, ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ["plane", made / "sb.h5", "-o", tmp_path / "out.h5", "--alphas=-1:1:3"]
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "remove", lambda journal: None)  # as if killed ahead of it
        assert ask(*args)[0] == 0
    assert listed(tmp_path) == ["out.h5", "out.h5.part"]
    assert "already done" in ask(*args)[2]
    assert listed(tmp_path) == ["out.h5"]
    with Journal(tmp_path / "out.h5.part", {"command": "another"}) as journal:
        journal["a"] = torch.zeros(1)
    assert "already done" in ask(*args)[2]
    assert listed(tmp_path) == ["out.h5", "out.h5.part"]
