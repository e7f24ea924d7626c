"""The commands take data from files and by options, and say in one line what is missing."""

import json
import os
import signal
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sharpness.cli import main

from sharpness import training
from sharpness.data import TRANSFORMS, digits
from sharpness.results import Eigenpairs, Run
from sharpness.signals import Stopped, answered
from sharpness.store import load, load_as, save
from sharpness.training import TrainConfig, train

Ask = Callable[..., tuple[int, str, str]]
LINEAR = ["--model-options", '{"widths": []}', "--updates", "3", "--threads", "1"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SHARPNESS_DATA", raising=False)


def arrays(path: str, *, shift: int = 0) -> None:
    (inputs, targets), _ = digits()
    np.savez(path, x=inputs[:100], y=targets[shift : 100 + shift])


def idx_files(folder: Path) -> None:
    """MNIST's four files, of 5 and 3 examples."""
    folder.mkdir(parents=True)
    for part, examples in (("train", 5), ("t10k", 3)):
        for kind, shape in (("images-idx3", (examples, 28, 28)), ("labels-idx1", (examples,))):
            header = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
            content = np.arange(np.prod(shape)).astype(np.uint8) % 10
            (folder / f"{part}-{kind}-ubyte").write_bytes(header + content.tobytes())


def test_a_file_of_arrays_is_trained_on_and_another_content_is_another_request(ask: Ask) -> None:
    arrays("mine.npz")
    command = ["train", "--data", "mine.npz", *LINEAR, "-o", "sb.h5"]
    assert ask(*command)[0] == 0
    assert load_as("sb.h5", Run).spec["data"]["train_examples"] == 80
    assert "already done" in ask(*command)[2]
    arrays("mine.npz", shift=1)
    code, _, said = ask(*command)
    assert code == 2
    assert "another request (mine.npz" in said


def test_missing_files_end_with_2_and_damaged_ones_with_1(ask: Ask) -> None:
    for data, named in (("mnist", "data/mnist"), ("no.h5", "no.h5 needs to be a file")):
        code, out, said = ask("train", "--data", data, *LINEAR, "-o", "sb.h5")
        assert (code, out) == (2, "")
        assert named in said
        assert said.count("\n") == 1
    idx_files(Path("data/mnist"))
    code, _, _ = ask("train", "--data", "mnist", *LINEAR, "--batch-size", "5", "-o", "sb.h5")
    assert code == 0
    images = Path("data/mnist/train-images-idx3-ubyte")
    images.write_bytes(images.read_bytes()[:-1])
    code, _, said = ask("train", "--data", "mnist", *LINEAR, "--batch-size", "5", "-o", "lb.h5")
    assert code == 1
    assert "3,936 bytes that its header says, got 3,935" in said
    assert said.count("\n") == 1


def test_wrong_options_end_with_2_and_name_those_that_there_are(ask: Ask) -> None:
    for text, named in (
        ('{"clases": 3}', "did you mean classes?"),
        ('{"classes": 30}', "classes needs to be a number of 1 to 10"),
        ("[1]", "needs a JSON object"),
    ):
        code, _, said = ask("train", "--data-options", text, *LINEAR, "-o", "sb.h5")
        assert code == 2
        assert named in said
    assert "foo.npy" in ask("train", "--data", "foo.npy", *LINEAR, "-o", "sb.h5")[2]


def test_the_validation_part_is_analyzed_and_verified(ask: Ask) -> None:
    options = '{"validation": 0.5, "classes": 2}'
    assert ask("train", "--data-options", options, *LINEAR, "-o", "sb.h5")[0] == 0
    assert ask("eigs", "sb.h5", "-k", "1", "--split", "validation")[0] == 0
    pairs = load("sb.validation.eigs.h5")
    assert isinstance(pairs, Eigenpairs)
    run = load_as("sb.h5", Run)
    assert (
        pairs.spec["operator"]["objective"]["data_sha256"]
        == (run.spec["data"]["validation_sha256"])
    )
    for file in ("sb.h5", "sb.validation.eigs.h5"):
        assert ask("verify", file)[0] == 0
    assert ask("train", *LINEAR, "-o", "lb.h5")[0] == 0
    code, _, said = ask("eigs", "lb.h5", "--split", "validation")
    assert code == 2
    assert "train with data_options validation" in said


def test_the_options_of_a_data_set_are_a_factor_of_a_comparison(ask: Ask) -> None:
    for name, more in (("a", []), ("b", ["--data-options", '{"random_labels": 1}'])):
        assert ask("train", *LINEAR, *more, "-o", f"{name}.h5")[0] == 0
    code, out, _ = ask("compare", "a.h5", "b.h5", "--workers", "1")
    assert code == 0
    assert "data_options" in out


def test_the_list_shows_sets_and_options(ask: Ask) -> None:
    listed = json.loads(ask("list", "--json")[1])
    assert {"digits", "mnist", "emnist", "cifar-10", "planted"} <= listed["data sets"].keys()
    assert listed["data options"].keys() == TRANSFORMS.keys()
    with pytest.raises(SystemExit):
        main(["train", "--help"])


def test_a_request_without_options_says_nothing_of_them(ask: Ask) -> None:
    assert ask("train", *LINEAR, "-o", "sb.h5")[0] == 0
    assert ask("eigs", "sb.h5", "-k", "1")[0] == 0
    for file in ("sb.h5", "sb.eigs.h5"):
        assert b"data_options" not in Path(file).read_bytes()


def test_an_augmented_training_that_is_interrupted_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(
        data_options={"augment": True}, train_examples=40, batch_size=7, updates=15, threads=1
    )
    plain = train(replace(config, data_options={}))
    save("whole.h5", train(config))
    assert not np.array_equal(plain.end.theta, load_as("whole.h5", Run).end.theta)
    run, begun, update = None, None, training._Training._update
    while run is None:
        kept: list[Run] = []
        count = 0

        def stopping(self: Any, *batch: Any) -> None:
            nonlocal count
            count += 1
            if count == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            update(self, *batch)

        with monkeypatch.context() as patch, answered():
            patch.setattr(training._Training, "_update", stopping)
            try:
                run = train(config, begun=begun, keep=kept.append)
            except Stopped:
                begun = kept[-1]
    save("pieces.h5", run)
    assert Path("pieces.h5").read_bytes() == Path("whole.h5").read_bytes()
