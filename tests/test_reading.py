"""A file gives the weights that were saved in it, bit by bit, or an error of one line."""

import hashlib
import json
import os
import pickle
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from sharpness import reading
from sharpness.errors import ComputationError, InputError
from sharpness.models import MODELS
from sharpness.problem import read
from sharpness.reading import read_checkpoint, require_match, unprefixed
from sharpness.store import load, save
from sharpness.training import TrainConfig, train

sys.path.insert(0, str(Path(__file__).parent))
import hostile
from hostile import WEIGHTS, saved

Ask = Callable[..., tuple[int, str, str]]


def same(got: dict[str, Tensor], want: dict[str, Tensor]) -> bool:
    return got.keys() == want.keys() and all(
        got[name].dtype == x.dtype and torch.equal(got[name], x) for name, x in want.items()
    )


def refused(path: Path, content: bytes, named: str) -> None:
    path.write_bytes(content)
    with pytest.raises(ComputationError, match=named) as caught:
        read_checkpoint(path)
    text = str(caught.value)
    assert text.isprintable()  # no second line, and nothing that a terminal obeys
    assert str(path) in text


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda weights: weights,
        lambda weights: {
            name: nn.Parameter(x, x.is_floating_point()) for name, x in weights.items()
        },
        lambda weights: {"epoch": 3, "state_dict": weights, "optimizer": {"lr": 0.1}},
        lambda weights: {"model_state_dict": weights},
        lambda weights: {"model": weights},
        lambda weights: {f"module.{name}": x for name, x in weights.items()},
        lambda weights: {"state_dict": {f"module.{name}": x for name, x in weights.items()}},
    ],
    ids=["plain", "parameters", "state_dict", "model_state_dict", "model", "parallel", "both"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_weights_come_back_bit_by_bit(
    wrapped: Callable[[dict[str, Tensor]], Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    weights = {**WEIGHTS, "weight": WEIGHTS["weight"].to(dtype)}
    (tmp_path / "a.pt").write_bytes(saved(wrapped(weights)))
    got = unprefixed(read_checkpoint(tmp_path / "a.pt").weights, weights)
    assert same(got, weights)
    assert not any(x.requires_grad for x in got.values())


def test_a_module_of_that_name_is_no_prefix_of_dataparallel(tmp_path: Path) -> None:
    for other in ("head.weight", "module.bias"):  # also where all names of the model have it
        weights = {"module.weight": torch.ones(2), other: torch.ones(3)}
        (tmp_path / "a.pt").write_bytes(saved(weights))
        assert same(unprefixed(read_checkpoint(tmp_path / "a.pt").weights, weights), weights)


def test_tied_weights_and_views_are_welcome(tmp_path: Path) -> None:
    x = torch.randn(40, 3)
    weights = {"a": x, "b": x, "row": x[1], "turned": x.T}
    (tmp_path / "a.pt").write_bytes(saved(weights))
    assert same(read_checkpoint(tmp_path / "a.pt").weights, weights)


def test_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(saved(WEIGHTS))
    want = hashlib.sha256(saved(WEIGHTS)).hexdigest()
    assert read_checkpoint(tmp_path / "a.pt").sha256 == want


def test_a_flipped_bit_gives_an_error_or_the_same_weights(tmp_path: Path) -> None:
    whole, path, messages = saved(WEIGHTS), tmp_path / "a.pt", []
    # Every third byte, each of its bits in turn, and every byte of the directory's end.
    places = {*range(0, len(whole), 3), *range(len(whole) - 100, len(whole))}
    for i in places:
        damaged = bytearray(whole)
        damaged[i] ^= 1 << (i // 3 % 8)
        path.write_bytes(damaged)
        try:
            assert same(read_checkpoint(path).weights, WEIGHTS), i  # the padding may be anything
        except ComputationError as error:
            messages.append(str(error))
    assert len(messages) > len(places) / 3
    assert not any("\n" in message for message in messages)


def test_every_flipped_bit_of_a_weight_is_refused(tmp_path: Path) -> None:
    whole, path = saved(WEIGHTS), tmp_path / "a.pt"
    start = whole.index(WEIGHTS["weight"].numpy().tobytes())
    for bit in range(8 * 24):
        damaged = bytearray(whole)
        damaged[start + bit // 8] ^= 1 << (bit % 8)
        refused(path, bytes(damaged), "is damaged")


def test_a_bit_that_makes_a_folder_of_the_weights_changes_no_number(tmp_path: Path) -> None:
    damaged = bytearray(saved(WEIGHTS))
    with zipfile.ZipFile(BytesIO(damaged)) as members:
        name = next(name for name in members.namelist() if name.endswith("data/0"))
    damaged[damaged.rindex(name.encode()) - 8] |= 0x10  # torch 2.13 alone takes unwritten memory
    (tmp_path / "a.pt").write_bytes(damaged)
    assert same(read_checkpoint(tmp_path / "a.pt").weights, WEIGHTS)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = saved(WEIGHTS)
    for length in range(4, len(whole), 10):
        refused(tmp_path / "a.pt", whole[:length], "truncated checkpoint")
    refused(tmp_path / "a.pt", whole[:-1], "truncated checkpoint")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html>", "looks like HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        (b"weights", "no checkpoint that torch.save wrote"),
    ],
    ids=["empty", "html", "lfs", "text"],
)
def test_a_file_that_is_no_checkpoint_is_refused_as_what_it_is(
    content: bytes, named: str, tmp_path: Path
) -> None:
    refused(tmp_path / "a.pt", content, named)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"epoch": 3}, "holds epoch"),
        ({**WEIGHTS, "epoch": 3}, "holds weight, count, epoch"),
        ({}, "holds nothing"),
        ([torch.ones(2)], "holds a list"),
        (torch.ones(2), "holds a Tensor"),
        ({(1, 2): torch.ones(2)}, "holds a tuple"),
    ],
    ids=["no tensors", "not only tensors", "empty", "list", "tensor", "names"],
)
def test_what_is_no_state_dict_is_refused(content: Any, named: str, tmp_path: Path) -> None:
    refused(tmp_path / "a.pt", saved(content), named)


# ---- where the weights are ------------------------------------------------------------------

AVERAGE = {f"module.{name}": x + 1 for name, x in WEIGHTS.items()}


def test_a_key_chooses_among_several_sets_of_weights(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    refused(path, saved({"model": WEIGHTS, "ema": AVERAGE}), "under model, ema: choose by key")
    assert same(read_checkpoint(path, key="model").weights, WEIGHTS)
    assert same(read_checkpoint(path, key="ema").weights, AVERAGE)
    refused(path, saved({"ema": WEIGHTS, "epoch": 3}), "holds ema, epoch: choose ema by key")
    assert same(read_checkpoint(path, key="ema").weights, WEIGHTS)
    for key in ("nosuch", "epoch"):
        with pytest.raises(ComputationError, match=f"tensors under {key}, but has them under ema"):
            read_checkpoint(path, key=key)
    path.write_bytes(saved(WEIGHTS))
    with pytest.raises(ComputationError, match="under weight, but has them under no key"):
        read_checkpoint(path, key="weight")


def test_a_tuple_that_many_groups_of_an_optimizer_share_is_no_bomb(tmp_path: Path) -> None:
    model = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(60)))
    groups = [{"params": [p]} for p in model.parameters()]  # all have the betas of the defaults
    optimizer = torch.optim.AdamW(groups)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    (tmp_path / "a.pt").write_bytes(saved(content))
    assert same(read_checkpoint(tmp_path / "a.pt").weights, model.state_dict())


def test_a_refusal_of_torch_without_a_name_is_told_by_its_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(*_: Any, **__: Any) -> Any:
        raise pickle.UnpicklingError("no")

    monkeypatch.setattr(torch, "load", refusing)
    refused(tmp_path / "a.pt", saved(WEIGHTS), r"tensors, numbers and text \(UnpicklingError\)")


def test_tensors_beside_the_weights_are_no_second_set(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(saved({"model": WEIGHTS, "rng": {"cpu": torch.ones(3)}}))
    assert same(read_checkpoint(tmp_path / "a.pt").weights, WEIGHTS)


def test_weights_must_be_those_of_the_model() -> None:
    wanted = {"w": torch.ones(2), "n": torch.tensor(3)}
    require_match({"w": torch.zeros(2, dtype=torch.float16), "n": torch.tensor(4)}, wanted, "a.pt")
    bad = [
        ({"w": wanted["w"]}, "n is missing"),
        ({}, "w and 1 more are missing"),
        ({**wanted, "\x1b[2J": torch.ones(1)}, r"\\x1b\[2J is not in the model"),
        ({**wanted, "w": torch.ones(2, 1)}, r"w is \(2, 1\), the model has \(2,\)"),
        ({**wanted, "w": torch.ones(2).int()}, "kinds of the model: w is torch.int32"),
        ({**wanted, "n": torch.tensor(3.0)}, "kinds of the model: n is torch.float32"),
    ]
    for weights, named in bad:
        with pytest.raises(InputError, match=named):
            require_match(weights, wanted, "a.pt")
    # Also what the model's own dtype cannot hold.
    big = {**wanted, "w": torch.tensor([1e300, 1.0], dtype=torch.float64)}
    with pytest.raises(ComputationError, match="w holds 1 that are not"):
        require_match(big, wanted, "a.pt")


def test_only_a_first_part_that_all_names_have_is_left_out() -> None:
    wanted = {"w": torch.ones(1), "b": torch.ones(1)}
    for prefix in ("model.", "_orig_mod.", "module."):
        weights = {prefix + name: x for name, x in wanted.items()}
        assert same(unprefixed(weights, wanted), wanted)
        for others in ({**weights, "w": torch.ones(1)}, {"other.c": torch.ones(1)}):
            assert same(unprefixed(others, wanted), others)


# ---- files that do harm ---------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::UserWarning")  # of making them
@pytest.mark.parametrize("name", hostile.CHECKPOINTS)
def test_a_hostile_checkpoint_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    make, named = hostile.CHECKPOINTS[name]
    refused(tmp_path / "a.pt", make(), named)


@pytest.mark.parametrize("name", hostile.SAFETENSORS)
def test_a_hostile_safetensors_file_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    refused(tmp_path / "a.safetensors", hostile.SAFETENSORS[name], "safetensors|holds nothing")


WATCHED = """
import json, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from sharpness.errors import ComputationError
from sharpness.reading import read_checkpoint
QUIET = ("object.__getattr__", "object.__setattr__", "object.__delattr__", "sys._getframe")
seen, allowed, watching = [], "", False
def watch(event, args):
    if watching and event not in QUIET and (event, str(*args[:1])) != ("open", allowed):
        seen.append([allowed, event, str(args)[:200]])
paths = sorted(map(str, Path(sys.argv[1]).iterdir()))
sys.addaudithook(watch)
refusals = 0
for watching in (False, True):  # what torch imports for a kind of tensor, it imports once
    for allowed in paths:
        try:
            read_checkpoint(allowed)
        except ComputationError:
            refusals += watching
watching = False
print(json.dumps({"refusals": refusals, "seen": seen}))
"""


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_reading_a_hostile_checkpoint_opens_imports_and_runs_nothing_else(tmp_path: Path) -> None:
    files = [make() for make, _ in hostile.CHECKPOINTS.values()] + [*hostile.SAFETENSORS.values()]
    for i, content in enumerate(files):
        (tmp_path / f"{i:03}.pt").write_bytes(content)
    answer = subprocess.run(
        [sys.executable, "-c", WATCHED, str(tmp_path)], capture_output=True, check=True, text=True
    )
    said = json.loads(answer.stdout)
    assert said == {"refusals": len(files), "seen": []}
    print(f"{len(files)} hostile checkpoints refused, nothing else opened, imported or run")


class Hostile:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("key", ["state_dict", "optimizer"])
def test_a_file_cannot_run_code(key: str, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    content = {"state_dict": WEIGHTS, key: Hostile(f"touch {marker}")}
    refused(tmp_path / "a.pt", saved(content), "system")
    assert not marker.exists()


def test_all_is_asked_of_bytes_that_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(saved(WEIGHTS))
    original = reading.regular_bytes

    def exchanged(*args: Any) -> bytes:
        raw = original(*args)
        path.unlink()  # another file, or none, is there by the time of the next look
        return raw

    monkeypatch.setattr(reading, "regular_bytes", exchanged)
    assert same(read_checkpoint(path).weights, WEIGHTS)


def test_a_subclass_is_refused_also_where_torch_was_told_to_trust_it(tmp_path: Path) -> None:
    make, _ = hostile.CHECKPOINTS["a tensor subclass"]
    with torch.serialization.safe_globals([hostile.Weight]):
        refused(tmp_path / "a.pt", make(), "plain tensors: w is a .*Weight")


# ---- checksums ------------------------------------------------------------------------------


def test_a_file_without_checksums_is_known_as_such(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(hostile.without_checksums(WEIGHTS))
    file = read_checkpoint(tmp_path / "a.pt")
    assert same(file.weights, WEIGHTS)
    assert file.checksum == "none"
    (tmp_path / "a.pt").write_bytes(saved(WEIGHTS))
    assert read_checkpoint(tmp_path / "a.pt").checksum == "crc32"


def test_safetensors_come_back_bit_by_bit_and_have_no_checksum(tmp_path: Path) -> None:
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.uint8)
    weights = {str(kind): torch.tensor([[0.0, 1.0, -0.0]]).to(kind) for kind in kinds}
    weights |= {"scalar": torch.tensor(3), "empty": torch.zeros(0, 2)}
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors.torch.save(weights, {"format": "pt"}))
    file = read_checkpoint(path)
    assert same(file.weights, weights)
    assert file.checksum == "none"


# ---- damage by chance -----------------------------------------------------------------------


def chances(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311


def mutated(raw: bytes, other: bytes, chance: random.Random) -> tuple[str, bytes]:
    """Return a kind of damage, and a file that has it."""
    data, place = bytearray(raw), chance.randrange(len(raw))
    length = chance.randint(1, 64)
    kind = chance.choice(["bit", "byte", "burst", "truncate", "zero", "splice"])
    if kind == "bit":
        data[place] ^= 1 << chance.randrange(8)
    elif kind == "byte":
        data[place] = chance.randrange(256)
    elif kind == "burst":
        data[place : place + length] = chance.randbytes(len(data[place : place + length]))
    elif kind == "truncate":
        del data[place:]
    elif kind == "zero":
        length = chance.choice([length, 512])
        data[place : place + length] = bytes(len(data[place : place + length]))
    else:
        start = chance.randrange(len(other))
        data[place : place + length] = other[start : start + length]
    return kind, bytes(data)


def seeds() -> list[tuple[bytes, dict[str, Tensor]]]:
    big = torch.linspace(-1, 1, 600).reshape(20, 30)
    mixed = {
        str(kind): torch.arange(1, 9).to(kind)
        for kind in (torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.bool)
    }
    views = {"a": big, "b": big, "row": big[1], "turned": big.T}
    nested = {"epoch": 3, "state_dict": WEIGHTS, "optimizer": {"lr": 0.1, "m": [torch.ones(3)]}}
    parameters = {"w": nn.Parameter(big)}
    found = [(saved(x), x) for x in (WEIGHTS, mixed, views, parameters)]
    return [*found, (saved(nested), WEIGHTS)]


CHUNKS, EACH = 10, 2000


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_damage_to_a_checkpoint_is_an_error_or_changes_no_number(
    chunk: int, tmp_path: Path
) -> None:
    chance, files, path = chances(chunk), seeds(), tmp_path / "a.pt"
    messages = []
    for i in range(EACH):
        raw, want = files[i % len(files)]
        kind, damaged = mutated(raw, chance.choice(files)[0], chance)
        path.write_bytes(damaged)
        try:
            got = read_checkpoint(path).weights
        except ComputationError as error:
            messages.append(str(error))
        else:
            assert same(got, want), (chunk, i, kind)
    assert all(message.isprintable() for message in messages)
    n = len(messages)
    assert EACH / 2 < n < EACH
    print(f"{EACH} damaged checkpoints: {n} refused, {EACH - n} the same numbers")


def test_damage_to_a_safetensors_file_is_an_error_or_gives_tensors(tmp_path: Path) -> None:
    # Other numbers may come of it, for there is no checksum; what is recorded says so.
    weights = {**WEIGHTS, "big": torch.ones(20, 30), "half": torch.ones(3, dtype=torch.float16)}
    raw, path, chance = safetensors.torch.save(weights), tmp_path / "a.safetensors", chances(0)
    counts = {"the same": 0, "others": 0}
    messages = []
    for _ in range(5000):
        _, damaged = mutated(raw, raw, chance)
        path.write_bytes(damaged)
        try:
            file = read_checkpoint(path)
        except ComputationError as error:
            messages.append(str(error))
        else:
            assert file.checksum == "none"
            assert all(isinstance(x.sum(), Tensor) for x in file.weights.values())
            counts["the same" if same(file.weights, weights) else "others"] += 1
    assert all(message.isprintable() for message in messages)
    assert min(counts.values()) > 0
    print(f"5,000 damaged safetensors files: {len(messages)} refused, numbers {counts}")


# ---- the command line -----------------------------------------------------------------------

NAMES = ("--model=mlp", '--model-options={"widths": []}', "--data=digits", "--loss=cross_entropy")


def network() -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MODELS["mlp"](inputs=[64], outputs=10, widths=[]).state_dict()


def through_the_command_line(count: int, ask: Ask) -> None:
    raw, chance, refusals = saved(network()), chances(count), 0
    Path("whole.pt").write_bytes(raw)
    asked = ("eigs", "-k1", "--examples=64", *NAMES, "-o", "x.h5")
    assert ask(*asked, "whole.pt")[0] == 0
    whole = load("x.h5")
    Path("x.h5").unlink()
    for i in range(count):
        kind, damaged = mutated(raw, raw, chance)
        Path("a.pt").write_bytes(damaged)
        code, out, err = ask(*asked, "a.pt")
        if code:
            assert (code, out, err.count("\n")) == (1, "", 1), (i, kind)
            assert "a.pt" in err
            assert not Path("x.h5").exists()
            refusals += 1
        else:
            assert torch.equal(load("x.h5").values, whole.values), (i, kind)
            Path("x.h5").unlink()
    assert {path.name for path in Path().iterdir()} == {"a.pt", "whole.pt"}
    print(f"{count} damaged checkpoints by the command line: {refusals} refused in one line")


def test_the_command_line_refuses_damage_in_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Ask
) -> None:
    monkeypatch.chdir(tmp_path)
    through_the_command_line(20, ask)


@pytest.mark.slow
def test_the_command_line_refuses_damage_200_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Ask
) -> None:
    monkeypatch.chdir(tmp_path)
    through_the_command_line(200, ask)


def test_what_was_not_checked_for_damage_is_recorded_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Ask
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = network()
    Path("one.safetensors").write_bytes(safetensors.torch.save(weights))
    Path("two.pt").write_bytes(hostile.without_checksums(weights))
    Path("three.pt").write_bytes(saved(weights))
    for name, checksum in (("one.safetensors", "none"), ("two.pt", "none"), ("three.pt", "crc32")):
        assert ask("eigs", name, "-k1", "--examples=64", *NAMES, "-o", f"{name}.h5")[0] == 0
        record = load(f"{name}.h5").spec["operator"]["objective"]["run"]["checkpoint"]
        assert (record["name"], record["checksum"]) == (name, checksum)
        out = ask("show", f"{name}.h5")[1]
        assert (f"NOT checked for damage: '{name}' has no checksum" in out) == (checksum == "none")
    values = [load(f"{name}.h5").values for name in ("one.safetensors", "two.pt", "three.pt")]
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])
    Path("four.pt").write_bytes(saved({name: 2 * x for name, x in weights.items()}))
    assert ask("line", "one.safetensors", "four.pt", "--alphas=0:1:2", *NAMES)[0] == 0
    assert ask("show", "one-four.line.h5")[1].count("NOT checked for damage") == 1


def test_what_a_file_says_moves_no_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Ask
) -> None:
    monkeypatch.chdir(tmp_path)
    run = train(TrainConfig(model_options={"widths": []}, updates=1))
    record = {**run.spec["train"], "model": f"os:{hostile.ESCAPE}"}
    save("a.h5", replace(run, spec={**run.spec, "train": record}))
    for command in (("show", "a.h5"), ("show", "--json", "a.h5"), ("eigs", "a.h5")):
        code, out, err = ask(*command)
        assert code == 2 * (command[0] == "eigs")
        assert r"\x1b[2J" in out + err or r"\u001b[2J" in out + err
        assert (out + err).replace("\n", "").isprintable()


def test_the_command_line_chooses_weights_by_their_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Ask
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = network()
    other = {name: 2 * x for name, x in weights.items()}
    Path("a.pt").write_bytes(saved({"model": weights, "ema": other}))
    asked = ("eigs", "a.pt", "-k1", "--examples=64", *NAMES)
    code, _, err = ask(*asked)
    assert code == 1
    assert "under model, ema: choose by key" in err
    assert ask(*asked, "--key=ema")[0] == 0
    run = load("a.eigs.h5").spec["operator"]["objective"]["run"]
    assert run["checkpoint"]["key"] == "ema"
    code, _, err = ask(*asked, "--key=model")
    assert code == 2  # another request
    assert '"ema" there, "model" asked for' in err
    want = read("a.pt", model="mlp", model_options={"widths": []}, data="digits",
                loss="cross_entropy", key="ema").end.theta  # fmt: skip
    assert torch.equal(want, torch.cat([x.flatten() for x in other.values()]))
    code, _, err = ask(*asked, "--key=ema", "--max-bytes=100", "--overwrite")
    assert code == 2
    assert "at most 100 bytes" in err


# ---- regular files --------------------------------------------------------------------------


def test_a_file_that_may_not_be_read_is_a_wrong_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*args: Any) -> int:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.pt").write_bytes(saved(WEIGHTS))
    monkeypatch.setattr(os, "open", denied)  # root may read whatever its mode
    with pytest.raises(InputError, match="readable: Permission denied"):
        read_checkpoint(tmp_path / "a.pt")


def test_a_file_beyond_the_cap_is_not_read(tmp_path: Path) -> None:
    raw = saved(WEIGHTS)
    (tmp_path / "a.pt").write_bytes(raw)
    assert read_checkpoint(tmp_path / "a.pt", max_bytes=len(raw)).checksum == "crc32"
    with pytest.raises(InputError, match=r"needs at most .* raise max_bytes"):
        read_checkpoint(tmp_path / "a.pt", max_bytes=len(raw) - 1)
    with open(tmp_path / "sparse.pt", "wb") as file:
        file.truncate(reading.MAX_BYTES + 1)  # takes no space
    with pytest.raises(InputError, match="needs at most"):
        read_checkpoint(tmp_path / "sparse.pt")


def test_a_path_without_a_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, named in [
        ("missing.pt", "missing.pt .*No such file"),
        ("missing/a.pt", "No such file"),
        (".", "is a directory"),
        ("pipe", "not a regular file"),
        ("/dev/null", "not a regular file"),
    ]:
        with pytest.raises(InputError, match=named):
            read_checkpoint(tmp_path / name)
