"""``sharpness batches`` saves what the library computes, and a stop loses one mini-batch."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sharpness as sh
from sharpness import journal
from sharpness.results import BatchEigenvalues, Run
from sharpness.store import load_as
from sharpness.training import TrainConfig, cpu_threads, train

Ask = Callable[..., tuple[int, str, str]]
BATCHES = ["batches", "sb.h5", "--batch-size=150"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with cpu_threads(1):
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    config = TrainConfig(model_options={"widths": [4]}, batch_size=100, updates=30, threads=1)
    sh.save(folder / "sb.h5", train(config))
    return folder / "sb.h5"


@pytest.fixture
def run(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sb.h5").write_bytes(made.read_bytes())
    return load_as("sb.h5", Run)


def test_the_file_has_what_the_library_computes(run: Run, ask: Ask) -> None:
    options = [
        "--count=2",
        "-k2",
        "--weight-decay=0.1",
        "--decayed=0,*.bias",
        "--params=0",
        "--seed=4",
    ]
    more = ["--examples=300", "--split=test", "--operator=gauss-newton", "--tol=1e-5"]
    code, out, err = ask("batches", "sb.h5", "--batch-size=100", *options, *more)
    assert code == 0, err
    wanted = sh.batch_eigenvalues(
        sh.objective_of(run, split="test", examples=300, seed=4),
        batch_size=100,
        count=2,
        k=2,
        operator="gauss-newton",
        weight_decay=0.1,
        decayed=["0", "*.bias"],
        params=["0"],
        tol=1e-5,
        seed=4,
    )
    found = load_as("sb.test.batches.h5", BatchEigenvalues)
    for name in ("values", "residuals", "converged", "losses", "batch_products", "whole_values"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name
    assert found.spec == json.loads(json.dumps(wanted.spec))
    assert "GaussNewton + 0.1 I on 0, *.bias on 0: " in out
    assert "2 mini-batches of 100 of 300 examples, 100 of them in none, drawn by seed 4" in out
    assert not Path("sb.test.batches.h5.part").exists()


def test_the_words_tell_the_law_where_it_holds(run: Run, ask: Ask) -> None:
    whole = ask(*BATCHES)[1]
    assert "never less: the largest eigenvalue is convex" in whole
    found = load_as("sb.batches.h5", BatchEigenvalues)
    times = found.mean()[0] / float(found.whole_values[0])
    assert f"the mean of lambda_1 is {times:.3g} times that of all the data" in whole
    some = ask(*BATCHES, "--count=3", "-o", "some.h5")[1]
    assert "times that of all the data" in some
    assert "never less" not in some


def test_one_mini_batch_of_all_examples_is_all_the_data(run: Run, ask: Ask) -> None:
    assert ask("batches", "sb.h5", "--batch-size=600")[0] == 0
    found = load_as("sb.batches.h5", BatchEigenvalues)
    torch.testing.assert_close(found.values[0], found.whole_values, rtol=1e-4, atol=0)
    assert "[unknown]" in ask("show", "sb.batches.h5")[1]


def test_what_did_not_converge_is_told_with_its_mini_batch(run: Run, ask: Ask) -> None:
    code, out, _ = ask(*BATCHES, "--tol=1e-12", "--engine=fresh")
    assert code == 0
    assert "NOT converged: 4 values, lower bounds that do not count in means" in out
    assert "lambda_1 of mini-batch 1 >= " in out
    assert "lambda_1    unknown" in out
    assert "(NOT converged)" in out
    assert ask("plot", "sb.batches.h5")[0] == 0


@pytest.mark.parametrize(
    ("of", "options"),
    [
        ({}, {"batch_size": 200, "count": 2, "k": 2}),
        (
            {"split": "test", "examples": 150, "seed": 2},
            {"batch_size": 50, "operator": "gauss-newton"},
        ),
        ({"micro_batch": 40}, {"batch_size": 150, "weight_decay": 0.1, "decayed": ["*.weight"]}),
        ({"dtype": "float64"}, {"batch_size": 300, "engine": "finite-difference", "tol": 1e-3}),
        ({}, {"batch_size": 300, "tol": 1e-12}),
    ],
    ids=str,
)
def test_mini_batches_of_every_kind_verify(
    of: dict[str, Any], options: dict[str, Any], run: Run
) -> None:
    found = sh.batch_eigenvalues(sh.objective_of(run, **of), **options)
    verified = sh.verify(found, [run])
    assert verified.agrees, verified.text
    assert bool(verified.notes) == (not found.converged.all())
    wrong = replace(found, values=1.01 * found.values, losses=found.losses + 0.01)
    named = {check.name for check in sh.verify(wrong, [run]).checks if not check.agrees}
    assert "loss of mini-batch 1" in named
    assert ("eigenvalue 1 of mini-batch 1" in named) == bool(found.converged.all())


@pytest.mark.parametrize("policy", ["frozen", "batch", "reestimate"])
def test_mini_batches_under_every_policy_of_batch_norm_verify(policy: str) -> None:
    config = TrainConfig(model="cnn", model_options={"channels": [2]}, updates=3, threads=1)
    run = train(config)
    f = sh.objective_of(run, examples=60, batch_norm=policy)
    verified = sh.verify(sh.batch_eigenvalues(f, batch_size=20), [run])
    assert verified.agrees, verified.text


def test_a_command_that_was_stopped_goes_on_and_gives_the_same_bytes(
    run: Run, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask(*BATCHES, "-q")[0] == 0
    wanted = Path("sb.batches.h5").read_bytes()
    Path("sb.batches.h5").unlink()
    put = journal.Journal.__setitem__
    done: list[str] = []

    def stopping(self: Any, key: str, value: Tensor) -> None:
        put(self, key, value)
        done.append(key)
        if key == "batch 1":
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "__setitem__", stopping)
        assert ask(*BATCHES, "-q")[0] == 143
        assert ask(*BATCHES, "-q")[0] == 0
    assert done == ["whole", "batch 0", "batch 1", "batch 2", "batch 3"]
    assert Path("sb.batches.h5").read_bytes() == wanted


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("", "Missing option '--batch-size'"),
        ("--batch-size 0", "at least 1, got 0"),
        ("--batch-size 601", "1 to 600, all the examples, got 601"),
        ("--batch-size 600 --split test --examples 500", "1 to 500, all the examples, got 600"),
        ("--batch-size 70 --count 9", "70 of 600 examples need a count of 1 to 8, got 9"),
        ("--batch-size 70 --count 0", "at least 1, got 0"),
        ("--batch-size 70 -k 0", "at least 1, got 0"),
        ("--batch-size 70 -k 9999", "parameters, got k=9999"),
        ("--batch-size 70 --operator hess", "needs one of hessian"),
        ("--batch-size 70 --weight-decay -1", "at least 0, got -1"),
        ("--batch-size 70 --weight-decay nan", "finite number"),
        ("--batch-size 70 --decayed 0", "give both"),
        ("--batch-size 70 --weight-decay 1 --decayed head", "'head' matches no parameter"),
    ],
)
def test_a_wrong_request_gets_one_line(options: str, named: str, run: Run, ask: Ask) -> None:
    before = sorted(os.listdir())
    code, out, err = ask("batches", "sb.h5", *options.split(), "-q")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert named in err
    assert sorted(os.listdir()) == before
