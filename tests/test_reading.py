"""A file gives the weights that were saved in it, bit by bit, or an error of one line."""

import argparse
import hashlib
import os
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sharpness.errors import ComputationError, InputError
from sharpness.reading import read_checkpoint, unprefixed

WEIGHTS = {"weight": torch.arange(6.0).reshape(3, 2).sin(), "count": torch.arange(3)}


def saved(content: Any, **options: Any) -> bytes:
    file = BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def same(got: dict[str, Tensor], want: dict[str, Tensor]) -> bool:
    return got.keys() == want.keys() and all(
        got[name].dtype == x.dtype and torch.equal(got[name], x) for name, x in want.items()
    )


def refused(path: Path, content: bytes, named: str) -> None:
    path.write_bytes(content)
    with pytest.raises(ComputationError, match=named) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


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
    got, _ = read_checkpoint(tmp_path / "a.pt")
    got = unprefixed(got, weights)
    assert same(got, weights)
    assert not any(x.requires_grad for x in got.values())


def test_a_module_of_that_name_is_no_prefix_of_dataparallel(tmp_path: Path) -> None:
    for other in ("head.weight", "module.bias"):  # also where all names of the model have it
        weights = {"module.weight": torch.ones(2), other: torch.ones(3)}
        (tmp_path / "a.pt").write_bytes(saved(weights))
        assert same(unprefixed(read_checkpoint(tmp_path / "a.pt")[0], weights), weights)


def test_tied_weights_and_views_are_welcome(tmp_path: Path) -> None:
    x = torch.randn(40, 3)
    weights = {"a": x, "b": x, "row": x[1], "turned": x.T}
    (tmp_path / "a.pt").write_bytes(saved(weights))
    assert same(read_checkpoint(tmp_path / "a.pt")[0], weights)


def test_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(saved(WEIGHTS))
    want = hashlib.sha256(saved(WEIGHTS)).hexdigest()
    assert read_checkpoint(tmp_path / "a.pt")[1] == want


def test_a_flipped_bit_gives_an_error_or_the_same_weights(tmp_path: Path) -> None:
    whole, path, messages = saved(WEIGHTS), tmp_path / "a.pt", []
    # Every third byte, each of its bits in turn, and every byte of the directory's end.
    places = {*range(0, len(whole), 3), *range(len(whole) - 100, len(whole))}
    for i in places:
        damaged = bytearray(whole)
        damaged[i] ^= 1 << (i // 3 % 8)
        path.write_bytes(damaged)
        try:
            assert same(read_checkpoint(path)[0], WEIGHTS), i  # the padding may be anything
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


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = saved(WEIGHTS)
    for length in range(2, len(whole), 10):
        refused(tmp_path / "a.pt", whole[:length], "truncated checkpoint")
    refused(tmp_path / "a.pt", whole[:-1], "truncated checkpoint")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html>", "looks like HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        (b"weights", "no checkpoint that torch.save wrote"),
        (saved(WEIGHTS, _use_new_zipfile_serialization=False), "since torch 1.6"),
    ],
    ids=["empty", "html", "lfs", "text", "legacy"],
)
def test_a_file_that_is_no_checkpoint_is_refused_as_what_it_is(
    content: bytes, named: str, tmp_path: Path
) -> None:
    refused(tmp_path / "a.pt", content, named)


def test_a_zip_of_other_things_is_refused(tmp_path: Path) -> None:
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as members:
        members.writestr("a.txt", "text")
    refused(tmp_path / "a.pt", file.getvalue(), "holds more than tensors")


def itself() -> dict[str, Any]:
    content: dict[str, Any] = {}
    content["model"] = content
    return content


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear.*model.state_dict"),
        ({"state_dict": WEIGHTS, "args": argparse.Namespace(lr=0.1)}, "argparse.Namespace"),
        ({"epoch": 3}, "holds epoch"),
        ({**WEIGHTS, "epoch": 3}, "holds weight, count, epoch"),
        ({}, "holds nothing"),
        ([torch.ones(2)], "holds a list"),
        (torch.ones(2), "holds a Tensor"),
        (itself(), "needs a state dict"),
        ({"w": torch.eye(2).to_sparse()}, "dense tensors.*w is .*sparse"),
        ({"w": torch.ones(2, device="meta")}, "dense tensors.*w is .*meta"),
        ({"w": torch.ones(1).expand(10**9)}, "w claims more than it holds"),
    ],
    ids=[
        *("module", "namespace", "no tensors", "not only tensors", "empty", "list", "tensor"),
        *("itself", "sparse", "meta", "expanded"),
    ],
)
def test_what_is_no_dense_state_dict_is_refused(content: Any, named: str, tmp_path: Path) -> None:
    refused(tmp_path / "a.pt", saved(content), named)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_a_nested_tensor_is_refused(tmp_path: Path) -> None:
    ragged = torch.nested.nested_tensor([torch.ones(2), torch.ones(1)])
    refused(tmp_path / "a.pt", saved({"w": ragged}), "dense tensors.*w is .*nested")


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


def test_a_path_without_a_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, named in [
        ("missing.pt", "missing.pt .*No such file"),
        ("missing/a.pt", "No such file"),
        (".", "is a directory"),
        ("pipe", "not a regular file"),
    ]:
        with pytest.raises(InputError, match=named):
            read_checkpoint(tmp_path / name)
