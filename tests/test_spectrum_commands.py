"""``sharpness density`` and ``sharpness trace`` save what the library computes."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sharpness as sh
from sharpness import journal
from sharpness.results import Density, Diagonal, Estimate, Run
from sharpness.store import load_as, request_of
from sharpness.training import TrainConfig, cpu_threads, train

Ask = Callable[..., tuple[int, str, str]]


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


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the products that commands take from now on."""
    products, original = [0], sh.Hessian.__matmul__

    def product(self: Any, v: Tensor) -> Tensor:
        products[0] += 1
        return original(self, v)

    monkeypatch.setattr(sh.Hessian, "__matmul__", product)
    return products


def test_a_density_is_that_of_the_library(run: Run, ask: Ask) -> None:
    options = ["--steps=9", "--probes=3", "--deflate=2", "--examples=200", "--split=test"]
    code, out, _ = ask("density", "sb.h5", *options, "--seed=4")
    assert code == 0
    assert "test" in out
    f = sh.objective_of(run, split="test", examples=200, seed=4)
    A = sh.Hessian(f)
    wanted = sh.density(A, steps=9, probes=3, deflate=sh.eigsh(A, 2, seed=4), seed=4)
    found = load_as("sb.test.density.h5", Density)
    assert torch.equal(found.nodes, wanted.nodes)
    assert torch.equal(found.weights, wanted.weights)
    assert torch.equal(found.known, wanted.known)
    assert not Path("sb.test.density.h5.part").exists()


def test_more_probes_come_to_those_of_the_file(
    run: Run, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["density", "sb.h5", "--steps=9", "-q"]
    assert ask(*command, "--probes=2")[0] == 0
    status, _, err = ask(*command, "--probes=3")
    assert status == 2
    assert "probes 2 there, 3 asked for" in err
    products = counted(monkeypatch)
    assert ask(*command, "--probes=3", "--overwrite")[0] == 0
    assert products[0] == 9 + 2  # of one probe, and those that look whether the map is symmetric
    found = load_as("sb.density.h5", Density)
    Path("sb.density.h5").unlink()
    assert ask(*command, "--probes=3")[0] == 0
    assert torch.equal(found.nodes, load_as("sb.density.h5", Density).nodes)


def test_probes_of_another_number_of_threads_are_not_taken_over(
    run: Run, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["density", "sb.h5", "--steps=9", "-q"]
    with cpu_threads(2):
        assert ask(*command, "--probes=2")[0] == 0
    products = counted(monkeypatch)
    assert ask(*command, "--probes=3", "--overwrite")[0] == 0
    assert products[0] == 3 * 9 + 2


def test_a_density_that_was_stopped_goes_on_and_gives_the_same_bytes(
    run: Run, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["density", "sb.h5", "--steps=9", "--probes=3", "--deflate=1", "-q"]
    assert ask(*command)[0] == 0
    wanted = Path("sb.density.h5").read_bytes()
    Path("sb.density.h5").unlink()
    put = journal.Journal.__setitem__

    def stopping(self: Any, key: str, value: Tensor) -> None:
        put(self, key, value)
        if key == "probe 1":
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "__setitem__", stopping)
        assert ask(*command)[0] == 143
    products = counted(monkeypatch)
    assert ask(*command)[0] == 0
    assert products[0] == 9 + 2
    assert Path("sb.density.h5").read_bytes() == wanted


@pytest.mark.parametrize(
    ("options", "output", "function"),
    [
        ([], "sb.trace.h5", lambda A: sh.trace(A)),
        (
            ["--method=xtrace", "--probes=8", "--deflate=2"],
            "sb.trace.h5",
            lambda A: sh.trace(A, method="xtrace", probes=8, deflate=sh.eigsh(A, 2)),
        ),
        (
            ["--quantity=frobenius", "--rtol=0.5"],
            "sb.frobenius.h5",
            lambda A: sh.frobenius(A, rtol=0.5),
        ),
        (
            ["--quantity=diagonal", "--probes=6"],
            "sb.diagonal.h5",
            lambda A: sh.diagonal(A, probes=6),
        ),
    ],
)
def test_an_estimate_is_that_of_the_library(
    options: list[str], output: str, function: Callable[[Any], Any], run: Run, ask: Ask
) -> None:
    code, out, err = ask("trace", "sb.h5", *options)
    assert (code, bool(out)) == (0, True), err
    wanted, found = function(sh.Hessian(sh.objective_of(run))), sh.load(output)
    if isinstance(wanted, Diagonal):
        assert isinstance(found, Diagonal)
        assert torch.equal(found.values, wanted.values)
        assert torch.equal(found.stderr, wanted.stderr)
    else:
        assert isinstance(found, Estimate)
        assert (found.value, found.interval.tolist()) == (wanted.value, wanted.interval.tolist())


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("density sb.h5 --steps 0", "needs a whole number of at least 1, got 0"),
        ("density sb.h5 --probes 0", "needs a whole number of at least 1, got 0"),
        ("density sb.h5 --deflate -1", "at least 0, got -1"),
        ("trace sb.h5 --method hutch", "needs one of hutchinson"),
        ("trace sb.h5 --quantity frobenius --method xtrace", "one of hutchinson, hutch++, got"),
        ("trace sb.h5 --quantity diagonal --rtol 0.1", "rtol is for traces and norms"),
        ("trace sb.h5 --method xtrace --probes 3", "at least 4 probes"),
        ("trace sb.h5 --budget 40", "budget is for rtol"),
        ("trace sb.h5 --rtol nan", "finite number"),
    ],
)
def test_a_wrong_request_gets_one_line(command: str, named: str, run: Run, ask: Ask) -> None:
    before = sorted(os.listdir())
    code, out, err = ask(*command.split(), "-q")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert named in err
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("command", ["eigs", "trace", "density"])
def test_commands_take_blocks_weight_decay_and_fisher_matrices(
    command: str, run: Run, ask: Ask
) -> None:
    small = {
        "eigs": ["-k", "1"],
        "trace": ["--probes", "6"],
        "density": ["--steps", "4", "--probes", "2"],
    }[command]
    algorithms: dict[str, Callable[[Any], Tensor]] = {
        "eigs": lambda A: sh.eigsh(A, 1, seed=3).values,
        "trace": lambda A: sh.trace(A, probes=6, seed=3).samples,
        "density": lambda A: sh.density(A, steps=4, probes=2, seed=3).nodes,
    }
    fields = {"eigs": "values", "trace": "samples", "density": "nodes"}
    f = sh.objective_of(run)
    calls = {
        ("--params", "0.bias,*.weight"): sh.Block(sh.Hessian(f), ["0.bias", "*.weight"]),
        ("--weight-decay", "0.5"): sh.WeightDecayed(sh.Hessian(f), 0.5),
        ("--weight-decay", "0.5", "--decayed", "0", "--params", "0"): sh.Block(
            sh.WeightDecayed(sh.Hessian(f), 0.5, params=["0"]), ["0"]
        ),
        ("--operator", "fisher", "--draws", "2"): sh.Fisher(f, draws=2, seed=3),
        ("--operator", "empirical-fisher"): sh.EmpiricalFisher(f),
    }
    for i, (options, A) in enumerate(calls.items()):
        code, _, err = ask(command, "sb.h5", *small, *options, "--seed", "3", "-o", f"{i}.h5")
        assert code == 0, err
        found = sh.load(f"{i}.h5")
        assert torch.equal(getattr(found, fields[command]), algorithms[command](A))
        assert found.spec["operator"] == A.spec


def test_what_says_nothing_of_the_operator_is_refused(run: Run, ask: Ask) -> None:
    code, _, err = ask("trace", "sb.h5", "--draws", "2")
    assert (code, "draws are for fisher, got hessian: leave them out" in err) == (2, True)
    code, _, err = ask("trace", "sb.h5", "--decayed", "0")
    assert (code, "decayed needs the weight_decay that it is for, got none: give both" in err) == (
        2,
        True,
    )


def test_a_request_without_these_options_is_that_of_older_files(run: Run, ask: Ask) -> None:
    assert ask("trace", "sb.h5", "--probes", "3")[0] == 0
    asked = request_of("sb.trace.h5")
    assert asked is not None
    assert not {"params", "weight_decay", "decayed", "draws"} & asked["options"].keys()
