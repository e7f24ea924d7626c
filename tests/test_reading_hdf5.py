"""An HDF5 file of others gives its arrays bit by bit, or an error of one line."""

import json
import re
import resource
import runpy
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from sharpness import reading_hdf5, reading_hdf5_child as child
from sharpness.errors import ComputationError, InputError
from sharpness.problem import read
from sharpness.reading import read_checkpoint, read_hdf5
from sharpness.store import save
from sharpness.training import TrainConfig, train

sys.path.insert(0, str(Path(__file__).parent))
import hostile
from test_reading import NAMES, Ask, chances, mutated, network, same

KINDS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">f8", ">i2")


def filled(file: h5py.File) -> None:
    for kind in KINDS:
        file[f"kinds/{kind[-2:]}{kind[0] == '>'}"] = np.arange(6).reshape(2, 3).astype(kind)
    file["d/b/c"] = np.float32(3)
    file["empty"] = np.zeros((0, 3))
    packed = {"compression": "gzip", "shuffle": True, "fletcher32": True}
    file.create_dataset("packed", data=np.arange(99.0).reshape(11, 9), chunks=(4, 4), **packed)
    file["d"].attrs["of no account"] = "text"


def checksummed(file: h5py.File) -> None:
    for name, shape in (("a/w", (20, 30)), ("a/b", (20,)), ("c", (7, 3))):
        data = np.linspace(-1, 1, int(np.prod(shape))).reshape(shape)
        file.create_dataset(name, data=data, chunks=shape, fletcher32=True, track_times=False)


@pytest.mark.parametrize("version", ["earliest", "latest"])
def test_arrays_of_numbers_come_back_bit_by_bit(version: str, tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_bytes(hostile.hdf5(filled, libver=version))
    got = read_hdf5(tmp_path / "a.h5")
    assert len(got) == len(KINDS) + 4
    for kind in KINDS:
        want = np.arange(6).reshape(2, 3).astype(kind[-2:])
        found = got[f"kinds/{kind[-2:]}{kind[0] == '>'}"].numpy()
        assert found.dtype == want.dtype
        assert (found == want).all()
    assert got["d/b/c"].item() == 3
    assert got["empty"].shape == (0, 3)
    assert got["packed"].equal(torch.arange(99.0, dtype=torch.float64).reshape(11, 9))
    got["packed"] += 1  # one's own


def test_a_file_that_is_no_hdf5_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_bytes(b"text")
    with pytest.raises(ComputationError, match="begin as HDF5"):
        read_hdf5(tmp_path / "a.h5")
    with pytest.raises(InputError, match="No such file"):
        read_hdf5(tmp_path / "nosuch.h5")


# ---- as a checkpoint ------------------------------------------------------------------------


def weights_under(group: str) -> bytes:
    file = BytesIO()
    with h5py.File(file, "w") as made:
        for name, tensor in network().items():
            made[group + name.replace(".", "/")] = tensor.numpy()
    return file.getvalue()


@pytest.mark.parametrize("group", ["", "model/"])
def test_weights_are_read_whose_groups_are_the_modules(group: str, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(weights_under(group))
    known = {"model": "mlp", "model_options": {"widths": []}, "data": "digits"}
    run = read(path, **known, loss="cross_entropy")
    want = torch.cat([tensor.flatten() for tensor in network().values()])
    assert torch.equal(run.end.theta, want)
    assert run.spec["checkpoint"]["checksum"] == "none"


def test_a_key_chooses_a_group(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(weights_under("model/"))
    with h5py.File(path, "a") as file:
        file["epoch"] = 3
        file["ema/w"] = np.ones(2)
    assert same(read_checkpoint(path, key="model").weights, network())
    assert read_checkpoint(path, key="ema").weights.keys() == {"w"}
    with pytest.raises(ComputationError, match="under epoch, but has them under ema, model"):
        read_checkpoint(path, key="epoch")


def test_two_names_that_are_one_with_dots_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a/b"], file["a.b"] = 1.0, 2.0
    assert read_hdf5(tmp_path / "a.h5").keys() == {"a/b", "a.b"}
    with pytest.raises(ComputationError, match="one name for each"):
        read_checkpoint(tmp_path / "a.h5")


def test_a_run_of_ours_without_its_seal_is_no_checkpoint(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["end/theta"] = np.ones(3)
    with pytest.raises(ComputationError, match="run of ours whose seal is missing or broken"):
        read_checkpoint(tmp_path / "a.h5")


def test_the_command_line_takes_an_hdf5_file_of_others_for_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Ask
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("theirs.h5").write_bytes(weights_under(""))
    asked = ("eigs", "theirs.h5", "-k1", "--examples=64")
    assert ask(*asked, *NAMES)[0] == 0
    assert "NOT checked for damage: 'theirs.h5'" in ask("show", "theirs.eigs.h5")[1]
    code, _, err = ask(*asked)
    assert code == 1
    assert "if it is a checkpoint, give --model, --data, --loss; if it was a run of ours" in err
    assert err.count("\n") == 1
    # A run of ours that lost its seal is none, whatever is given.
    assert ask("train", "--updates=2", "--model-options", '{"widths": []}', "-o", "a.h5")[0] == 0
    Path("a.h5").write_bytes(Path("a.h5").read_bytes()[:-40])
    code, _, err = ask("eigs", "a.h5", *NAMES)
    assert code == 1
    assert "looks like a run of ours whose seal is missing or broken" in err
    assert err.count("\n") == 1


def test_the_arrays_of_our_own_files_are_read_as_those_of_any(tmp_path: Path) -> None:
    run = train(TrainConfig(model_options={"widths": []}, updates=2))
    save(tmp_path / "run.h5", run)
    got = read_hdf5(tmp_path / "run.h5")
    assert torch.equal(got["end/theta"], run.end.theta)
    assert torch.equal(got["train_index"], run.train_index)
    assert "train_example" not in got  # a dimension, whose values nobody wrote


# ---- files that do harm ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostiles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bytes, str]]:
    return hostile.hdf5_files(tmp_path_factory.mktemp("hostile"))


def test_every_hostile_hdf5_file_is_refused_in_one_line(
    hostiles: dict[str, tuple[bytes, str]], tmp_path: Path
) -> None:
    signals = 0
    for name, (content, named) in hostiles.items():
        (tmp_path / "a.h5").write_bytes(content)
        with pytest.raises(ComputationError, match=named) as caught:
            read_checkpoint(tmp_path / "a.h5")
        text = str(caught.value)
        assert text.isprintable(), name
        assert hostile.CANARY.decode() not in text
        signals += "signal" in text
    assert len(hostiles) >= 40
    print(f"{len(hostiles)} hostile HDF5 files refused in one line, {signals} killed their reader")


# What ends a process, or asks it for gigabytes, is for the child alone.
GENTLE = ("a chunk", "a checksum")


def test_the_walk_refuses_them_by_itself(hostiles: dict[str, tuple[bytes, str]]) -> None:
    for name, (content, _) in hostiles.items():
        if name.startswith(GENTLE):
            continue
        target = BytesIO()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(child, "limit", lambda size: None)
            child.main(BytesIO(content), target)
        said = json.loads(target.getvalue())
        assert said.keys() == {"refused"}, name


def test_the_child_says_its_arrays_and_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(child, "limit", asked.append)
    raw, target = hostile.hdf5(filled), BytesIO()
    child.main(BytesIO(raw), target)
    head, _, data = target.getvalue().partition(b"\n")
    arrays = json.loads(head)["arrays"]
    assert asked == [len(raw)]
    assert ["a", "f8", [5]] in arrays
    assert ["empty", "f8", [0, 3]] in arrays
    assert len(data) == sum(int(kind[1:]) * int(np.prod(shape)) for _, kind, shape in arrays)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_the_child_is_a_program_from_stdin_to_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = hostile.hdf5(lambda file: file.create_dataset("nobody wrote it", (3,), "f4"))
    target = BytesIO()
    monkeypatch.setattr(resource, "setrlimit", lambda *limit: None)
    monkeypatch.setattr(child.h5pl, "size", lambda: 0)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=BytesIO(raw)))
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=target))
    runpy.run_module("sharpness.reading_hdf5_child", run_name="__main__")
    assert target.getvalue() == b'{"arrays": [["a", "f8", [5]]]}\n' + np.arange(5.0).tobytes()


def test_the_limits_are_given_up_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: dict[int, tuple[int, int]] = {}
    monkeypatch.setattr(resource, "setrlimit", limits.__setitem__)
    paths = [child.h5pl.get(i) for i in range(child.h5pl.size())]
    try:
        child.limit(10**9)
        assert child.h5pl.size() == 0
    finally:
        for path in paths:
            child.h5pl.append(path)
    assert limits == {
        resource.RLIMIT_AS: (2**30 + 5 * 10**9,) * 2,
        resource.RLIMIT_CPU: (20, 20),
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_FSIZE: (0, 0),
        resource.RLIMIT_NOFILE: (0, 0),
    }


LIMITED = """
import sys
from io import BytesIO
import h5py
from sharpness.reading_hdf5_child import limit
raw = sys.stdin.buffer.read()
limit(len(raw))
said = []
for attempt in (
    lambda: open(sys.argv[1]).read(),
    lambda: bytes(h5py.File(BytesIO(raw))["w"][()]),
    lambda: bytearray(2**31),
    lambda: __import__("antigravity"),
):
    try:
        said.append(repr(attempt()))
    except Exception as error:
        said.append(f"{type(error).__name__} {error}")
print(said)
"""


def test_the_kernel_opens_no_other_file_even_where_the_walk_would(tmp_path: Path) -> None:
    content = hostile.hdf5_files(tmp_path)["data in another file"][0]
    with h5py.File(BytesIO(content)) as file:  # the bait is real
        assert bytes(file["w"][()])[:24] == hostile.CANARY[:24]
    code = [sys.executable, "-P", "-c", LIMITED, str(tmp_path / "canary")]
    done = subprocess.run(code, input=content, capture_output=True, check=True)
    said = done.stdout.decode()
    assert said.count("Error") >= 3, said
    assert "Too many open files" in said
    assert "MemoryError" in said
    assert hostile.CANARY[:5].decode() not in said


CALLS = r"\b(open|openat|openat2|creat|execve|fork|vfork|clone|clone3|socket|connect|unlink)\("


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
def test_the_child_opens_nothing_once_it_has_seen_the_file(tmp_path: Path) -> None:
    for name in ("data in another file", "a link to another file", "packed by a plugin"):
        log = tmp_path / "log"
        command = [sys.executable, "-P", "-m", reading_hdf5.CHILD]
        watch = ["strace", "-f", "-o", str(log), "-e", "trace=%file,%network,%process,prlimit64"]
        content = hostile.hdf5_files(tmp_path)[name][0]
        done = subprocess.run([*watch, *command], input=content, capture_output=True, check=False)
        if not log.read_text():
            pytest.skip("strace may not watch here")
        assert b"refused" in done.stdout
        after = log.read_text().rpartition("RLIMIT_NOFILE, {rlim_cur=0")[2].splitlines()[1:]
        done_so = [line for line in after if " = " in line and "= -1" not in line]
        assert not [line for line in done_so if re.search(CALLS, line)], done_so


def test_no_module_of_the_working_directory_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("h5py", "numpy", "json", "sharpness"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w').close()")
    (tmp_path / "a.h5").write_bytes(hostile.hdf5(filled))
    assert "packed" in read_hdf5(tmp_path / "a.h5")
    assert not Path("ran").exists()


# ---- what a child says that was taken over --------------------------------------------------


def answered(kind: str, shape: str, data: int) -> str:
    said = f'{{"arrays": [["a", "{kind}", {shape}]]}}'
    return f"print({said!r}); print('x' * {data - 1})"


@pytest.mark.parametrize(
    ("code", "named"),
    [
        ("print('no JSON')", "no answer"),
        ("print(1)", "no answer"),
        ("pass", "no answer"),
        ("print('[' * 100000)", "no answer"),
        ("print('{\"arrays\": 3}')", "no answer"),
        (answered("f8", "[2]", 15), "no answer"),
        (answered("f8", "[2]", 17), "no answer"),
        (answered("f8", "[-2]", 16), "no answer"),
        (answered("f8", "[-1, -2]", 16), "no answer"),
        (answered("f8", "[2.0]", 16), "no answer"),
        (answered("f8", "[1e400]", 16), "no answer"),
        (answered("O8", "[2]", 16), "no answer"),
        ('print(\'{"refused": "\\\\u001b[2J"}\')', r"refused: \\x1b\[2J"),
        ("print('{}'); raise SystemExit(3)", "its reader failed"),
        ("import os; os.abort()", "signal 6"),
        ("import os; os.kill(os.getpid(), 24)", "more time or memory"),
        ("import time; time.sleep(60)", "more time or memory"),
        ("while True: print('x' * 10**6)", "more time or memory"),
    ],
)
def test_whatever_the_child_says_or_does_is_one_line(
    code: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = "" if "while" in code or code == "pass" else "import sys; sys.stdin.buffer.read(); "
    (tmp_path / "taken_over.py").write_text(reads + code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(reading_hdf5, "CHILD", "taken_over")
    monkeypatch.setattr(reading_hdf5, "WAIT", 2.0 if "sleep" in code or "while" in code else 60.0)
    with pytest.raises(ComputationError, match=named) as caught:
        reading_hdf5.tensors(reading_hdf5.MAGIC + bytes(10**6), Path("a.h5"))
    assert str(caught.value).isprintable()


# ---- damage by chance -----------------------------------------------------------------------

WARM = """
import os, struct, sys
from io import BytesIO
from sharpness.reading_hdf5_child import main
while size := sys.stdin.buffer.read(8):
    raw = sys.stdin.buffer.read(struct.unpack("<Q", size)[0])
    source, target = os.pipe()
    child = os.fork()
    if not child:
        main(BytesIO(raw), open(target, "wb"))
        os._exit(0)
    os.close(target)
    with open(source, "rb") as file:
        answer = file.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    sys.stdout.buffer.write(struct.pack("<qQ", code, len(answer)) + answer)
    sys.stdout.buffer.flush()
"""


@pytest.fixture
def warm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A reader whose imports are done: each file goes to a fork of it, under the same limits."""
    with subprocess.Popen(
        [sys.executable, "-P", "-c", WARM], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as reader:

        def asked(raw: bytes) -> tuple[int, bytes]:
            assert reader.stdin is not None
            assert reader.stdout is not None
            reader.stdin.write(struct.pack("<Q", len(raw)) + raw)
            reader.stdin.flush()
            code, size = struct.unpack("<qQ", reader.stdout.read(16))
            return code, reader.stdout.read(size)

        monkeypatch.setattr(reading_hdf5, "_asked", asked)
        yield


def damaged_files(count: int, path: Path) -> None:
    """Read damaged files of two kinds: one whose every byte has a checksum, one of all sorts."""
    made = [hostile.hdf5(filled), only_checksummed()]
    whole: list[dict[str, Tensor]] = []
    for raw in made:
        path.write_bytes(raw)
        whole.append(read_hdf5(path))
    chance = chances(count)
    counts: dict[str, Any] = {"refused": [0, 0], "the same": [0, 0], "others": [0, 0]}
    messages = []
    for i in range(count):
        which = i % 2
        kind, damaged = mutated(made[which], made[1 - which], chance)
        path.write_bytes(damaged)
        if not damaged.startswith(reading_hdf5.MAGIC):
            continue
        try:
            got = read_hdf5(path)
        except ComputationError as error:
            messages.append(str(error))
            counts["refused"][which] += 1
        else:
            counts["the same" if same(got, whole[which]) else "others"][which] += 1
            assert all(isinstance(x.double().sum(), Tensor) for x in got.values()), kind
    assert all(message.isprintable() for message in messages)
    assert min(counts["refused"]) > 0
    assert counts["others"][1] == 0
    print(f"{count} damaged HDF5 files, [without, with] checksums of all bytes: {counts}")


def only_checksummed() -> bytes:
    file = BytesIO()
    with h5py.File(file, "w", libver="latest") as made:
        checksummed(made)
    return file.getvalue()


def test_damage_to_an_hdf5_file_is_an_error_or_gives_tensors(warm: None, tmp_path: Path) -> None:
    damaged_files(300, tmp_path / "a.h5")


@pytest.mark.slow
def test_damage_to_2000_hdf5_files_is_an_error_or_gives_tensors(tmp_path: Path) -> None:
    damaged_files(2000, tmp_path / "a.h5")
