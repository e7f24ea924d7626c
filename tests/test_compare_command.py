"""``sharpness compare`` and ``along``: what they compute, keep, say and refuse."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import sharpness as sh
from sharpness import names
from sharpness.analyses import ANALYSES
from sharpness.training import TrainConfig, cpu_threads

Ask = Callable[..., tuple[int, str, str]]
TINY = {"model_options": {"widths": [4]}, "stop_loss": 2.2, "threads": 1}
NETS = """
import torch
from torch import nn

from sharpness.data import digits as images


def build():
    return nn.Sequential(nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 10))


def digits():
    (inputs, targets), _ = images()
    return (inputs[:100], targets[:100]), (inputs[100:200], targets[100:200])
"""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with cpu_threads(1):
        yield


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    sys.modules.pop("nets", None)
    names.GIVEN.clear()
    return tmp_path


@pytest.fixture
def runs(here: Path) -> Path:
    for size in (60, 600):
        for seed in (0, 1):
            config = TrainConfig(**TINY, batch_size=size, seed=seed, checkpoint_losses=[2.25])
            sh.save(here / f"b{size}-{seed}.h5", sh.train(config))
    return here


def comparison(path: Path) -> sh.Comparison:
    found = sh.load(path)
    assert isinstance(found, sh.Comparison)
    return found


def test_what_is_missing_is_computed_beside_the_runs_and_once(runs: Path, ask: Ask) -> None:
    code, out, err = ask("compare", *sorted(runs.glob("*.h5")), "--workers=1")
    assert code == 0, err
    made = {path.name for path in runs.glob("*.h5")}
    stems = [f"b{size}-{seed}" for size in (60, 600) for seed in (0, 1)]
    analyses = {f"{stem}.{name}.h5" for stem in stems for name in ANALYSES}
    assert made == {*(f"{stem}.h5" for stem in stems), *analyses, "comparison.h5"}
    assert "batch_size 600 / 60   (2 pairs; A: batch_size 600, B: batch_size 60)" in out
    assert "no difference shown" in out
    # `*.h5` now finds the analyses as well, and the same command is done.
    stamps = {path: path.stat().st_mtime_ns for path in runs.iterdir()}
    inputs = [path for path in sorted(runs.glob("*.h5")) if path.name != "comparison.h5"]
    code, again, err = ask("compare", *inputs)
    assert (code, again) == (0, out)
    assert "24 files passed over, which hold no run" in err
    assert "already done" in err
    assert {path: path.stat().st_mtime_ns for path in runs.iterdir()} == stamps


def test_the_numbers_are_those_of_the_library_and_of_the_folder(runs: Path, ask: Ask) -> None:
    ask("compare", ".", "-o", "c.h5", "--workers=1")
    found = comparison(runs / "c.h5")
    assert found.groups == ["batch_size 60", "batch_size 600"]
    for i, size in enumerate((60, 600)):
        for seed in (0, 1):
            run = sh.load(runs / f"b{size}-{seed}.h5")
            assert isinstance(run, sh.Run)
            f = sh.objective_of(run)
            top = sh.eigsh(sh.Hessian(f), 1).values[0]
            assert float(found.values["lambda_1"][i, seed]) == pytest.approx(float(top), rel=1e-4)
            value = f.value(run.end)
            assert float(found.values["train_loss"][i, seed]) == pytest.approx(float(value))


def test_checkpoints_of_anybody_are_compared_by_group(here: Path, ask: Ask) -> None:
    (here / "nets.py").write_text(NETS)
    for name in ("a0", "a1", "b0", "b1"):
        model = torch.nn.Sequential(torch.nn.Linear(64, 4), torch.nn.Tanh(), torch.nn.Linear(4, 10))
        torch.save(model.state_dict(), here / f"{name}.pt")
    brought = ("--model=nets:build", "--data=nets:digits", "--loss=cross_entropy", "--workers=1")
    code, out, err = ask("compare", "sb=a0.pt", "sb=a1.pt", "lb=b0.pt", "lb=b1.pt", *brought)
    assert code == 0, err
    assert "lb / sb   (2 pairs; A: lb, B: sb)" in out
    found = comparison(here / "comparison.h5")
    assert found.groups == ["sb", "lb"]
    assert "distance" not in found.values  # nobody knows where they started
    code, out, err = ask("compare", "a0.pt", "b0.pt", *brought, "-o", "pair.h5", "--json")
    assert code == 0, err
    printed = json.loads(out)
    assert printed["groups"] == ["a0.pt", "b0.pt"]
    assert printed["ratios"]["lambda_1_ratio"][0][1:] == [None, None]  # unknown, and not 0
    # Of a sample are the analyses; what a run itself has is of all its data.
    code, out, err = ask(
        "compare",
        "a0.pt",
        "b0.pt",
        *brought,
        "-o",
        "few.h5",
        "--json",
        "--examples=40",
        "--overwrite",
    )
    assert code == 0, err
    few = json.loads(out)["values"]
    assert few["train_loss"] == printed["values"]["train_loss"]
    assert few["lambda_1"] != printed["values"]["lambda_1"]


def test_sharpness_along_a_training_is_that_of_the_library(runs: Path, ask: Ask) -> None:
    code, out, err = ask("along", "b60-0.h5")
    assert code == 0, err
    run, found = sh.load("b60-0.h5"), sh.load("b60-0.along.h5")
    assert isinstance(run, sh.Run)
    assert isinstance(found, sh.Trajectory)
    want = sh.along_training(sh.objective_of(run), run)
    torch.testing.assert_close(found.lambda_1, want.lambda_1)
    torch.testing.assert_close(found.metric_2_1, want.metric_2_1)
    assert out.count("\n") == 2 + len(found.updates)


def test_show_warns_where_values_are_of_other_losses_or_examples(runs: Path, ask: Ask) -> None:
    for name in ("b60-0.h5", "b600-1.h5"):
        ask("eigs", name, "-k1")
    code, _, err = ask("show", "b60-0.eigs.h5", "b600-1.eigs.h5")
    assert code == 0
    assert "WARNING b60-0.eigs.h5 and b600-1.eigs.h5 are of other examples or labels" in err
    code, _, err = ask("show", "b60-0.eigs.h5", "b60-0.eigs.h5")
    assert (code, err) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["b60-0.h5"], 2, "two runs, got 1"),
        (["b60-0.h5", "b60-0.h5"], 2, "each run once"),
        (["b60-0.h5", "b60-1.h5"], 2, "more than their seeds"),
        (["b60-0.h5", "other.h5"], 2, "one loss, got cross_entropy in b60-0.h5 and mse in other"),
        (["b60-0.h5", "nosuch.h5"], 2, "nosuch.h5"),
        (["a=b60-0.h5", "b600-0.h5"], 2, "a group for each run or for none"),
        (["empty"], 2, "at least two runs, got 0"),
        (["b60-0.h5", "b600-0.h5", "--workers=0"], 2, "--workers"),
        (["b60-0.h5", "b600-0.h5", "-o", "nosuch/c.h5"], 2, "nosuch"),
        (["b60-0.h5", "damaged.h5"], 1, "damaged.h5"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else None,
)
def test_what_cannot_be_compared_gets_one_line_and_leaves_nothing(
    arguments: list[str], code: int, words: str, runs: Path, ask: Ask
) -> None:
    other = TrainConfig(**{**TINY, "stop_loss": None}, loss=_squares, updates=1)
    run = sh.train(other)
    spec = {**run.spec, "train": {**run.spec["train"], "loss": "mse"}}
    sh.save(runs / "other.h5", sh.Run(**{**vars(run), "spec": spec}))
    (runs / "damaged.h5").write_bytes((runs / "b600-0.h5").read_bytes()[:-1])
    (runs / "empty").mkdir()
    before = {path.name for path in runs.iterdir()}
    got, _, err = ask("compare", *arguments)
    (line,) = err.splitlines()
    assert got == code
    assert words in line
    assert {path.name for path in runs.iterdir()} == before


def _squares(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (outputs.softmax(dim=1).gather(1, targets[:, None]) - 1).square().mean()
