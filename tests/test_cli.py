"""What a user types, what it leaves on disk, and the one line that answers every wrong request."""

import importlib
import json
import logging
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from sharpness.cli import COMMANDS, main, sharpness as group
from sharpness.cli.logs import LIBRARY
from sharpness.experiments import RECIPES

import sharpness as sh
from sharpness import names, plots
from sharpness.averages import AVERAGES
from sharpness.building import ACTIVATIONS, INITIALIZATIONS
from sharpness.data import DATA, TRANSFORMS
from sharpness.measures import MEASURES
from sharpness.methods import METHODS
from sharpness.models import MODELS
from sharpness.operators import OPERATORS
from sharpness.optimizers import OPTIMIZERS, OPTIONS
from sharpness.problem import LOSSES
from sharpness.results import RESULTS
from sharpness.sampling import BATCHES
from sharpness.schedules import SCALINGS, SCHEDULES
from sharpness.training import cpu_threads

Ask = Callable[..., tuple[int, str, str]]

LINEAR = '--model-options={"widths": []}'  # softmax regression: 650 parameters
SHORT = ("--updates=5", "--batch-size=600", "--threads=1", LINEAR)
BROUGHT = ("--model=nets:build", "--data=nets:digits", "--loss=cross_entropy")
REGRESSION = ("--model=nets:curve", "--data=nets:points", "--loss=nets:squares")
FEW = ("--starts=1", "--sign-starts=1")
ENDLESS = ("--stop-loss=1e-9", "--updates=10000000", "--threads=1")
CONFIGURATIONS = {
    "broken": "k = = 2",
    "unknown": "exampels = 3",
    "far": "zzzz = 3",
    "twice": "micro-batch = 3\nmicro_batch = 3",
    "kinds": "plot = 3\n[eigs]\nk = [2]\n[line]\nalphas = [0, 1, 3]\n[show]\njson = 3",
}
NETS = """
import torch
from torch import nn

from sharpness.data import digits as images


def build():
    return nn.Sequential(nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 10))


def digits():
    (inputs, targets), _ = images()
    return (inputs[:100], targets[:100]), (inputs[100:200], targets[100:200])


def loud():
    print("so many digits")
    return digits()


def curve():
    return nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))


def points():
    x = torch.linspace(-1, 1, 30)[:, None]
    return (x[::2], x[::2].sin()), (x[1::2], x[1::2].sin())


def squares(outputs, targets):
    return (outputs - targets).square().mean()
"""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with cpu_threads(1):
        yield


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in, where nothing is known yet of a user's modules."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    forget()
    yield tmp_path
    forget()


def forget() -> None:
    """Be as a fresh process, to which nobody has named a module yet."""
    sys.modules.pop("nets", None)
    sys.path[:] = [folder for folder in sys.path if folder not in ("", os.getcwd())]
    names.GIVEN.clear()
    importlib.invalidate_caches()


@pytest.fixture
def nets(here: Path) -> Path:
    (here / "nets.py").write_text(NETS)
    return here


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of all kinds, made once."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "nets.py").write_text(NETS)
    with cpu_threads(1):
        linear = {"model_options": {"widths": []}, "batch_size": 600, "updates": 5, "threads": 1}
        runs = {
            "sb": linear | {"batch_size": 60},
            "lb": linear,
        }
        for name, options in runs.items():
            config = sh.TrainConfig(**options)
            request = {"command": "train", "options": {"name": name}, "inputs": {}}
            sh.save(folder / f"{name}.h5", sh.train(config), request=request)
    whole = (folder / "sb.h5").read_bytes()
    middle = len(whole) // 2
    flipped = bytes([whole[middle] ^ 1])
    (folder / "flipped.h5").write_bytes(whole[:middle] + flipped + whole[middle + 1 :])
    for name, text in CONFIGURATIONS.items():
        (folder / f"{name}.toml").write_text(text)
    net = torch.nn.Sequential(torch.nn.Linear(64, 4), torch.nn.Tanh(), torch.nn.Linear(4, 10))
    torch.save(net.state_dict(), folder / "mine.pt")
    return folder


@pytest.fixture
def files(made: Path, here: Path) -> Path:
    shutil.copytree(made, here, dirs_exist_ok=True)
    return here


def contents(folder: Path) -> dict[str, bytes | None]:
    """All that is in a folder, by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def stamp(path: Path) -> tuple[bytes, int, int]:
    return path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino


def same(a: Any, b: Any) -> bool:
    if is_dataclass(a) and type(a) is type(b):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same(*pair) for pair in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


def the_line(err: str) -> str:
    """The one line of an error, without its head."""
    head = "sharpness: error: "
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith(head)
    return lines[0].removeprefix(head)


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command, with the words that call it."""
    todo: list[tuple[str, click.Command]] = [("", group)]
    while todo:
        words, command = todo.pop()
        yield words, command
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                below = command.get_command(context, name)
                assert below is not None
                todo.append((f"{words} {name}".strip(), below))


# ---- the chain -----------------------------------------------------------------------------


def test_the_chain_leaves_what_the_library_computes_beside_the_runs(here: Path, ask: Ask) -> None:
    runs = here / "a b ü"
    runs.mkdir()
    sb, lb = runs / "sb.h5", runs / "lb.h5"
    assert ask("train", *SHORT, "-o", sb)[0] == 0
    assert ask("train", *SHORT, "--order-seed=1", "--learning-rate=0.01", "-o", lb)[0] == 0
    assert ask("eigs", sb, "-k", "3")[0] == 0
    assert ask("eigs", "--split", "test", sb, "-k", "2", "--which", "SA")[0] == 0
    assert ask("line", sb, lb, "--alphas=-1:2:4")[0] == 0
    assert ask("measure", "epsilon-sharpness", sb, lb, *FEW)[0] == 0
    analyses = ["sb.eigs", "sb.test.eigs", "sb-lb.line", "sb.epsilon-sharpness"]
    names = {f"{name}.h5" for name in ("sb", "lb", *analyses, "lb.epsilon-sharpness")}
    assert contents(runs).keys() == names

    config = sh.TrainConfig(
        model_options={"widths": []}, batch_size=600, updates=5, threads=torch.get_num_threads()
    )
    run = sh.train(config)
    assert same(sh.load(sb), run)
    f, other = sh.objective_of(run), sh.objective_of(run, split="test")
    end = sh.load(lb).end
    alphas = torch.tensor([-1, 0, 1, 2], dtype=torch.float64)
    wanted = [
        sh.eigsh(sh.Hessian(f), 3),
        sh.eigsh(sh.Hessian(other), 2, which="SA"),
        sh.line({"train": f, "test": other}, run.end, end, alphas=alphas),
        sh.epsilon_sharpness(f, run.end, starts=1, sign_starts=1),
    ]
    for name, result in zip(analyses, wanted, strict=True):
        assert same(sh.load(runs / f"{name}.h5"), result), name

    for path in sorted(runs.iterdir()):
        code, out, err = ask("show", path)
        assert (code, err) == (0, "")
        assert out.startswith(f"{path.name}: {type(sh.load(path)).__name__}\n")
        assert "asked for by\n" in out


def test_the_options_reach_the_library(files: Path, ask: Ask) -> None:
    run = sh.load("sb.h5")
    f = sh.objective_of(run, examples=64, dtype="float64", micro_batch=1, seed=3)
    options = ("--examples=64", "--dtype=float64", "--micro-batch=1", "--seed=3")
    how = ("--operator=gauss-newton", "--engine=fresh", "--which=LM", "--tol=1e-5", "--budget=90")
    assert ask("eigs", "sb.h5", "-k2", *options, *how, "-o", "e.h5")[0] == 0
    operator = sh.GaussNewton(f, engine="fresh")
    pairs = sh.eigsh(operator, 2, which="LM", tol=1e-5, budget=90, seed=3)
    assert same(sh.load("e.h5"), pairs)
    box = ("--epsilon=5e-4", "--iterations=2")
    assert ask("measure", "epsilon-sharpness", "sb.h5", *options, *FEW, *box, "-o", "m.h5")[0] == 0
    found = sh.epsilon_sharpness(
        f, run.end, epsilon=5e-4, starts=1, sign_starts=1, iterations=2, seed=3
    )
    assert same(sh.load("m.h5"), found)


def test_json_is_one_document_and_alone_on_stdout(files: Path, ask: Ask) -> None:
    calls = {
        "Run": ["train", *SHORT, "-o", "x.h5"],
        "Eigenpairs": ["eigs", "sb.h5", "-k2"],
        "Line": ["line", "sb.h5", "lb.h5", "--alphas=-1e300:1:3"],
        "Cut": ["line", "sb.h5", "-n2", "--alphas=-1e300:1:3", "--no-quadratic"],
        "Sharpness": ["measure", "epsilon-sharpness", "sb.h5", *FEW],
    }
    for kind, call in calls.items():
        for again in (False, True):
            code, out, err = ask(*call, "--json")
            assert code == 0
            assert json.loads(out, parse_constant=pytest.fail)["type"] == kind
            assert err.startswith("already done" if again else "wrote")
    assert json.loads(out)["value"] == sh.load("sb.epsilon-sharpness.h5").value
    code, out, err = ask("show", "--json", "sb.eigs.h5")
    assert (code, err) == (0, "")
    assert json.loads(out)["values"] == sh.load("sb.eigs.h5").values.tolist()


def test_what_a_users_function_prints_does_not_get_into_the_json(nets: Path, ask: Ask) -> None:
    code, out, err = ask("train", "--data=nets:loud", "--updates=1", "--json", "-o", "x.h5")
    assert code == 0
    assert json.loads(out)["type"] == "Run"
    assert "so many digits" in err


# ---- the same command again ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "output", "change", "named"),
    [
        (
            ["train", *SHORT, "-o", "x.h5"],
            "x.h5",
            ["--weight-decay=0.1"],
            "weight_decay 0.0 there, 0.1 asked for",
        ),
        (["eigs", "sb.h5", "-k2"], "sb.eigs.h5", ["-k3"], "k 2 there, 3 asked for"),
        (
            ["line", "sb.h5", "lb.h5", "--alphas=0:1:3"],
            "sb-lb.line.h5",
            ["--alphas=0:1:4"],
            "alphas [0.0, 1.0, 3] there, [0.0, 1.0, 4] asked for",
        ),
        (
            ["measure", "epsilon-sharpness", "sb.h5", *FEW],
            "sb.epsilon-sharpness.h5",
            ["--epsilon=5e-4"],
            "epsilon 0.001 there, 0.0005 asked for",
        ),
    ],
)
def test_a_request_is_answered_once_and_another_one_is_refused(
    call: list[str], output: str, change: list[str], named: str, files: Path, ask: Ask
) -> None:
    _, first, _ = ask(*call)
    path = files / output
    before = stamp(path)
    assert ask(*call) == (0, first, f"already done: {output}\n")
    assert ask(*call, "--overwrite") == (0, first, f"already done: {output}\n")
    assert stamp(path) == before
    code, out, err = ask(*call, *change)
    assert (code, out) == (2, "")
    assert f"{output} holds the answer to another request ({named})" in the_line(err)
    assert stamp(path) == before
    code, out, err = ask(*call, *change, "--overwrite")
    assert (code, err.splitlines()[0]) == (0, f"wrote {output}")
    assert stamp(path) != before
    assert ask(*call)[0] == 2


def test_a_run_that_was_replaced_is_another_request(files: Path, ask: Ask) -> None:
    assert ask("eigs", "sb.h5", "-k2")[0] == 0
    shutil.copy("lb.h5", "sb.h5")
    code, _, err = ask("eigs", "sb.h5", "-k2")
    assert code == 2
    assert "another request" in the_line(err)


def test_the_same_seeds_give_the_same_bytes_elsewhere(here: Path, ask: Ask) -> None:
    for folder in ("one", "two"):
        os.mkdir(folder)
        sb, lb = f"{folder}/sb.h5", f"{folder}/lb.h5"
        assert ask("train", *SHORT, "-o", sb)[0] == 0
        assert ask("train", *SHORT, "--seed=1", "--split-seed=0", "-o", lb)[0] == 0
        assert ask("eigs", sb, "-k2")[0] == 0
        assert ask("line", sb, lb, "--alphas=0:1:3")[0] == 0
        assert ask("measure", "epsilon-sharpness", sb, *FEW)[0] == 0
    assert len(contents(here / "one")) == 5
    assert contents(here / "one") == contents(here / "two")


# ---- the user's own ------------------------------------------------------------------------


def test_a_checkpoint_of_plain_pytorch_is_studied_by_the_command_line_alone(
    files: Path, ask: Ask
) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(64, 4), torch.nn.Tanh(), torch.nn.Linear(4, 10))
    torch.save(net.state_dict(), "sb.pt")
    assert ask("eigs", "sb.pt", "-k2", *BROUGHT)[0] == 0
    assert ask("measure", "epsilon-sharpness", "sb.pt", *FEW, *BROUGHT)[0] == 0
    assert ask("line", "sb.pt", "mine.pt", "--alphas=0:1:3", *BROUGHT)[0] == 0
    (inputs, targets), test = importlib.import_module("nets").digits()
    entropy = torch.nn.functional.cross_entropy
    accuracy = {"accuracy": sh.accuracy}
    parts = {"train": (inputs, targets), "test": test}
    objectives = {k: sh.Objective(net, [v], entropy, metrics=accuracy) for k, v in parts.items()}
    f = objectives["train"]
    pairs, found = sh.eigsh(sh.Hessian(f), 2), sh.epsilon_sharpness(f, starts=1, sign_starts=1)
    assert torch.equal(sh.load("sb.eigs.h5").values, pairs.values)
    assert sh.load("sb.epsilon-sharpness.h5").value == found.value
    line = sh.load("sb-mine.line.h5")
    for name, objective in objectives.items():
        for key, value in objective.evaluate(objective.theta).items():
            assert line.values[f"{name}_{key}"][0] == value


@pytest.mark.parametrize(
    ("call", "given"),
    [
        (["train", "--updates=3", "-o", "x.h5"], BROUGHT),
        (["eigs", "run.h5", "-k1"], BROUGHT[:2]),
        (["eigs", "run.h5", "-k1"], ["--trust-spec"]),
        (["eigs", "mine.pt", "-k1"], BROUGHT),
        (["measure", "epsilon-sharpness", "mine.pt", *FEW], BROUGHT),
    ],
)
def test_another_text_of_the_users_file_is_another_request(
    call: list[str], given: list[str], files: Path, ask: Ask
) -> None:
    assert ask("train", *BROUGHT, "--updates=2", "-o", "run.h5")[0] == 0
    forget()
    assert ask(*call, *given)[0] == 0
    forget()
    code, _, err = ask(*call, *given)
    assert (code, err.split(":")[0]) == (0, "already done")
    forget()
    Path("nets.py").write_text(NETS.replace("Tanh", "ReLU"))
    code, out, err = ask(*call, *given)
    assert (code, out) == (2, "")
    assert "nets:build" in the_line(err)


def test_a_regression_goes_through_all_commands_without_an_accuracy(nets: Path, ask: Ask) -> None:
    printed = []
    for name, seed in (("a", 0), ("b", 1)):
        options = ("--batch-size=5", "--epochs=2", f"--seed={seed}", "-o", f"{name}.h5")
        printed.append(ask("train", *REGRESSION, *options))
    printed.append(ask("eigs", "a.h5", "-k2", *REGRESSION))
    printed.append(ask("line", "a.h5", "b.h5", "--alphas=0:1:3", *REGRESSION))
    printed.append(ask("measure", "epsilon-sharpness", "a.h5", *FEW, *REGRESSION))
    names = ("a.h5", "a.eigs.h5", "a-b.line.h5", "a.epsilon-sharpness.h5")
    printed.append(ask("show", *names))
    printed.append(ask("show", "--json", "a.h5"))
    assert [code for code, _, _ in printed] == [0] * len(printed)
    said = " ".join(out + err for _, out, err in printed).lower()
    assert "loss" in said
    assert "accuracy" not in said
    assert "right" not in said
    assert "gap" not in said


@pytest.mark.parametrize("forgotten", BROUGHT[:2])
def test_what_a_run_file_names_is_imported_only_on_the_users_word(
    forgotten: str, files: Path, ask: Ask
) -> None:
    assert ask("train", *BROUGHT, "--updates=2", "-o", "run.h5")[0] == 0
    (files / "nets.py").write_text('open("imported", "w").close()\n' + NETS)
    forget()
    assert ask("show", "run.h5")[0] == 0
    code, out, err = ask("eigs", "run.h5", "-k1")
    assert (code, out) == (2, "")
    assert "nets:build" in the_line(err)
    assert not Path("imported").exists()
    # One that is given says nothing of the other.
    given = [option for option in BROUGHT[:2] if option != forgotten]
    code, _, err = ask("eigs", "run.h5", "-k1", *given)
    assert code == 2
    assert forgotten.removeprefix("--").partition("=")[2] in the_line(err)
    assert ask("eigs", "run.h5", "-k1", "--trust-spec")[0] == 0
    assert Path("imported").exists()


# ---- wrong requests ------------------------------------------------------------------------

EIGS, LINE = ["eigs", "sb.h5"], ["line", "sb.h5", "lb.h5"]
TRAIN = ["train", "-o", "x.h5", *SHORT]
EPSILON = ["measure", "epsilon-sharpness", "sb.h5"]
KESKAR = ["run", "keskar", "-o", "k", "--seeds=1", "--workers=1"]
WRONG: list[tuple[list[str], int, str]] = [
    # words
    ([*TRAIN, "more"], 2, "more"),
    # inputs
    (["eigs", "mine.pt"], 2, "--model, --data, --loss"),
    (["eigs", "mine.pt", "--model=nets:build"], 2, "--data, --loss"),
    (["eigs", "mine.pt", "--model=mlp", *BROUGHT[1:]], 2, "mine.pt"),
    # pictures and lists
    (["plot", "sb.h5", "--dpi=0"], 2, "--dpi"),
    (["plot", "sb.h5", "--dpi=1000000"], 2, "2400"),
    # configurations
    ([*EIGS, "--config=sb.h5"], 2, "TOML"),
    ([*EIGS, "--config=broken.toml"], 2, "line 1"),
    ([*EIGS, "--config=unknown.toml"], 2, "did you mean examples?"),
    ([*EIGS, "--config=far.toml"], 2, "zzzz"),
    ([*EIGS, "--config=twice.toml"], 2, "twice"),
    ([*EIGS, "--config=kinds.toml"], 2, "-k"),
    ([*LINE, "--config=kinds.toml"], 2, "--alphas"),
    (["show", "sb.h5", "--config=kinds.toml"], 2, "--json"),
    (["plot", "sb.h5", "--config=kinds.toml"], 2, "plot"),
    # numbers
    ([*EIGS, "--examples=601"], 2, "601"),
    ([*TRAIN, "--batch-size=601"], 2, "600"),
    ([*TRAIN, "--updates=0"], 2, "--updates"),
    ([*TRAIN, "--train-examples=1797"], 2, "1797"),
    ([*TRAIN, "--label-noise=1"], 2, "label_noise"),
    ([*TRAIN, "--momentum=0.9"], 2, "momentum"),
    ([*TRAIN, "--model-options=3"], 2, "JSON"),
    ([*TRAIN, "--model-options={"], 2, "JSON"),
    ([*TRAIN, f"--model-options={'[' * 30000}"], 2, "JSON"),
    ([*TRAIN, '--model-options={"widths": [-1]}'], 2, "widths"),
    ([*TRAIN, '--model-options={"widths": 5}'], 2, "mlp"),
    ([*TRAIN, '--model-options={"depth": 5}'], 2, "depth"),
    ([*EPSILON, "--epsilon=1e-12"], 2, "1.0e-12"),
    ([*EPSILON, "--starts=0", "--sign-starts=0"], 2, "start"),
    ([*LINE, "--count=2"], 2, "--count"),
    ([*LINE, "--orthogonal"], 2, "--orthogonal"),
    (["line", "sb.h5", "--directions=gradient", "-n2"], 2, "one direction"),
    (["line", "sb.h5", "-n0"], 2, "at least 1"),
    # data
    ([*TRAIN, "--data=nets:points", "--batch-size=5"], 2, "cross_entropy"),
    # trainings and recipes
    (
        [*TRAIN, '--model-options={"widths": [4]}', "--optimizer=sgd", "--learning-rate=1e30"],
        1,
        "learning rate",
    ),
    ([*KESKAR, "--batch-sizes=600,600"], 2, "600, 600"),
    ([*KESKAR, "--batch-sizes=8,601"], 2, "601"),
    ([*KESKAR, "--batch-sizes=8,x"], 2, "--batch-sizes"),
    ([*KESKAR, "--batch-sizes=8,60,600"], 2, "batch-rate"),
    ([*KESKAR, "--rates=1e-3,0"], 2, "--rates"),
    ([*KESKAR, "--scalings=sqrt"], 2, "design batch-rate, got pair"),
    ([*KESKAR, "--design=batch-rate", "--scalings=cubic"], 2, "fixed, linear, sqrt, got 'cubic'"),
    ([*KESKAR, "--design=batch-rate", "--scalings=sqrt,sqrt"], 2, "each once, got sqrt, sqrt"),
    ([*KESKAR, "--design=batch-rate", "--scalings=sqrt", "--rates=1,2"], 2, "one rate"),
    ([*KESKAR, "--noise=1"], 2, "label_noise"),
    ([*KESKAR, "--seeds=0"], 2, "--seeds"),
]


def said(args: list[str]) -> str:
    """A name of the test: what is wrong, without what any training needs."""
    return " ".join(arg for arg in args if arg not in SHORT)[-70:]


@pytest.mark.parametrize(("args", "code", "named"), WRONG, ids=[said(args) for args, *_ in WRONG])
def test_a_wrong_request_gets_one_line_and_changes_nothing(
    args: list[str], code: int, named: str, files: Path, ask: Ask
) -> None:
    before = contents(files)
    got, out, err = ask(*args)
    assert named in the_line(err)
    assert (got, out) == (code, "")
    assert contents(files) == before


def test_a_damaged_output_is_an_error_until_it_is_overwritten(files: Path, ask: Ask) -> None:
    shutil.copy("flipped.h5", "sb.eigs.h5")
    code, _, err = ask("eigs", "sb.h5", "-k1")
    assert code == 1
    assert "sb.eigs.h5" in the_line(err)
    assert ask("eigs", "sb.h5", "-k1", "--overwrite")[0] == 0
    assert len(sh.load("sb.eigs.h5").values) == 1


def test_a_bug_keeps_its_traceback(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*args: Any, **options: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("sharpness.lanczos.eigsh", bug)
    with pytest.raises(ZeroDivisionError):
        main(["eigs", "sb.h5"])
    assert not Path("sb.eigs.h5").exists()


def test_a_name_that_is_no_utf_8_is_a_name_too(files: Path, ask: Ask) -> None:
    name = os.fsdecode(b"\xff.h5")
    shutil.copy("sb.h5", name)
    assert ask("eigs", name, "-k1")[0] == 0
    assert Path(os.fsdecode(b"\xff.eigs.h5")).exists()


# ---- pictures, lists, configurations, logs -------------------------------------------------


@pytest.fixture
def kept(here: Path, results: dict[str, Any]) -> Path:
    """A folder with a file of each kind of result, named as its kind."""
    for kind, result in results.items():
        sh.save(here / f"{kind}.h5", result, request={"command": "made", "options": {}})
    return here


KINDS = pytest.mark.parametrize("kind", RESULTS)


@KINDS
def test_every_kind_of_file_is_shown_in_words_and_in_strict_json(
    kind: str, kept: Path, ask: Ask
) -> None:
    code, out, err = ask("show", f"{kind}.h5")
    assert (code, err) == (0, "")
    assert out.startswith(f"{kind}.h5: {kind}\n")
    assert "computed by\n" in out
    code, out, err = ask("show", "--json", f"{kind}.h5")
    assert (code, err) == (0, "")
    told = json.loads(out, parse_constant=pytest.fail)
    result = sh.load(f"{kind}.h5")
    assert told.keys() - {"not_finite"} == {"type", *(field.name for field in fields(result))}
    assert told["spec"] == result.spec
    tool = [sys.executable, "-m", "json.tool"]
    assert subprocess.run(tool, input=out.encode(), capture_output=True, check=True).stdout


@KINDS
def test_every_kind_of_file_has_its_picture_beside_it(kind: str, kept: Path, ask: Ask) -> None:
    picture = kept / f"{kind}.png"
    assert ask("plot", f"{kind}.h5") == (0, "", f"wrote {kind}.png\n")
    before = stamp(picture)
    assert before[0] == plots.encoded(plots.drawn(sh.load(f"{kind}.h5")), dpi=200)
    for again in ([], ["--overwrite"]):
        assert ask("plot", f"{kind}.h5", *again) == (0, "", f"already done: {kind}.png\n")
    assert stamp(picture) == before
    code, out, err = ask("plot", f"{kind}.h5", "--dpi=50")
    assert (code, out) == (2, "")
    assert f"{kind}.png" in the_line(err)
    assert stamp(picture) == before
    assert ask("plot", f"{kind}.h5", "--dpi=50", "--overwrite")[0] == 0
    assert stamp(picture) != before


@pytest.mark.parametrize(
    ("form", "head"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")]
)
def test_pictures_have_the_format_of_their_name_or_of_the_option(
    form: str, head: bytes, kept: Path, ask: Ask
) -> None:
    assert ask("plot", "Line.h5", "Run.h5", "--format", form)[0] == 0
    assert ask("plot", "Line.h5", "-o", f"mine.{form.upper()}", "-q") == (0, "", "")
    for name in (f"Line.{form}", f"Run.{form}", f"mine.{form.upper()}"):
        assert (kept / name).read_bytes().startswith(head)
    code, out, _ = ask("plot", "Line.h5", "Run.h5", "--format", form, "--json", "--dpi=200")
    assert code == 0
    assert json.loads(out) == [
        {"file": f"{kind}.h5", "type": kind, "picture": f"{kind}.{form}", "written": False}
        for kind in ("Line", "Run")
    ]


def test_a_picture_that_cannot_be_drawn_keeps_all_others_from_being_written(
    kept: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("Line.png").write_text("mine")
    before = contents(kept)
    code, out, err = ask("plot", "Run.h5", "Line.h5")
    assert (code, out) == (2, "")
    assert "Line.png exists" in the_line(err)
    monkeypatch.delitem(plots.FIGURES, sh.Line)
    code, out, err = ask("plot", "Run.h5", "Line.h5")
    assert (code, out) == (2, "")
    assert "got Line" in the_line(err)
    assert contents(kept) == before


def test_a_remark_on_a_training_is_one_line_on_stderr(here: Path, ask: Ask) -> None:
    asked = ["train", "--optimizer=rprop", "--updates=2", "--threads=1", "-o", "a.h5"]
    code, _, err = ask(*asked)
    lines = [line for line in err.splitlines() if "rprop is made for full batches" in line]
    assert (code, len(lines)) == (0, 1)
    assert ask(*asked, "-q", "--overwrite", "--seed=1")[2] == ""


def test_options_of_a_training_that_are_lists_and_objects_arrive(here: Path, ask: Ask) -> None:
    asked = ["--updates=5", "--threads=1", "--checkpoint-updates=2", "--checkpoint-updates=4"]
    asked += ["--schedule=step", '--schedule-options={"milestones": [3]}', "--clip-norm=1"]
    assert ask("train", *asked, "-q", "-o", "a.h5")[0] == 0
    run = sh.load("a.h5")
    assert run.checkpoint_updates.tolist() == [2, 4]
    assert run.spec["train"]["schedule_options"] == {"milestones": [3]}
    assert run.spec["train"]["clip_norm"] == 1.0
    assert "warmup" not in run.spec["train"]
    code, _, err = ask("train", *asked, "--schedule=linear", "-q", "-o", "b.h5")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "schedule linear needs floor options, got 'milestones'" in err


def test_the_list_has_every_name_that_an_option_takes(here: Path, ask: Ask) -> None:
    code, out, err = ask("list", "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    tables: list[Any] = [MODELS, ACTIVATIONS, INITIALIZATIONS, DATA, TRANSFORMS, LOSSES]
    tables += [
        OPTIMIZERS,
        METHODS,
        AVERAGES,
        BATCHES,
        SCHEDULES,
        SCALINGS,
        MEASURES,
        OPERATORS,
        RECIPES,
    ]
    assert [list(lines) for lines in told.values()] == [list(table) for table in tables]
    _, out, _ = ask("list")
    for lines in told.values():
        for name, line in lines.items():
            assert 10 < len(line) < 300
            assert any(row.split() == [*name.split(), *line.split()] for row in out.splitlines())


def test_the_list_has_the_options_of_each_name_with_their_defaults(here: Path, ask: Ask) -> None:
    told = json.loads(ask("list", "--json")[1])
    assert told["methods of an update"]["sam"].endswith("(rho=0.05)")
    assert told["methods of an update"]["plain"].endswith("on the batch")
    assert told["schedules"]["step"].endswith("(milestones, factor=0.1)")  # the first is needed
    assert told["averages of weights"]["swa"].endswith("(start=0.75, every=10)")
    assert 'activation="relu", batch_norm=false' in told["models"]["mlp"]
    for name, (_, options) in OPTIONS.items():
        assert all(f"{option}=" in told["optimizers"][name] for option in options)


def test_the_list_of_a_folder_has_its_results_and_tells_the_damaged(kept: Path, ask: Ask) -> None:
    below = kept / "b" / "c"
    below.mkdir(parents=True)
    shutil.copy("Run.h5", below / "run")  # a result by its seal, whatever its name
    whole = Path("Line.h5").read_bytes()
    (below / "cut.h5").write_bytes(whole[:-9])
    (below / "text.txt").write_text("no result")
    (below / ".Run.h5.12").write_bytes(whole)
    code, out, err = ask("list", "--json", ".")
    assert (code, err) == (0, "")
    told = {entry["path"]: entry for entry in json.loads(out)}
    assert told.keys() == {"b/c/cut.h5", "b/c/run", *(f"{kind}.h5" for kind in RESULTS)}
    assert all(told[f"{kind}.h5"]["type"] == kind for kind in RESULTS)
    assert told["b/c/cut.h5"]["damaged"]
    assert "mlp on digits batch 100 rate 0.001 seed 0" in told["b/c/run"]["description"]
    _, out, _ = ask("list", ".")
    assert "b/c/cut.h5: DAMAGED" in out
    assert len(out.splitlines()) == len(told)
    assert ask("list", "b", "b/c") == (0, ask("list", "b")[1] * 2, "")


CONFIGURED = """
checkpoint-losses = [2.0, 1e-30]
updates = 5
seed = 3
[train]
batch_size = 600
model_options = { widths = [] }
optimizer = "sgd"
momentum = 0.5
nesterov = true
threads = 1
output = "a.h5"
[eigs]
k = 2
"""


def test_options_given_by_a_file_are_the_same_request(here: Path, ask: Ask) -> None:
    Path("run.toml").write_text(CONFIGURED)
    assert ask("train", "--config=run.toml")[0] == 0
    record = sh.load("a.h5").spec["train"]
    assert (record["batch_size"], record["nesterov"], record["seed"]) == (600, True, 3)
    assert record["checkpoint_losses"] == [2.0, 1e-30]
    words = ["--updates=5", "--seed=3", "--batch-size=600", "--threads=1", LINEAR]
    words += ["--optimizer=sgd", "--momentum=0.5", "--nesterov"]
    words += ["--checkpoint-losses=2", "--checkpoint-losses=1e-30"]
    code, _, err = ask("train", *words, "-o", "a.h5")
    assert (code, err) == (0, "already done: a.h5\n")
    assert ask("train", *words, "-o", "b.h5")[0] == 0
    assert Path("a.h5").read_bytes() == Path("b.h5").read_bytes()


def test_the_command_line_wins_over_a_file_and_a_table_over_what_is_outside(
    files: Path, ask: Ask
) -> None:
    Path("run.toml").write_text(
        "seed = 1\njson = true\n[eigs]\nseed = 2\npairs = 2\n"
        "[measure]\nseed = 4\n[measure.epsilon-sharpness]\nstarts = 1\nsign_starts = 0\n"
    )
    code, out, _ = ask("eigs", "sb.h5", "--config=run.toml")
    assert code == 0
    assert json.loads(out)["spec"]["seed"] == 2
    assert len(sh.load("sb.eigs.h5").values) == 2
    code, out, _ = ask("eigs", "sb.h5", "--config=run.toml", "--seed=3", "-k1", "-o", "x.h5")
    assert code == 0
    assert json.loads(out)["spec"]["seed"] == 3
    assert len(sh.load("x.h5").values) == 1
    code, out, _ = ask("measure", "epsilon-sharpness", "sb.h5", "--config=run.toml")
    assert code == 0
    spec = json.loads(out)["spec"]
    assert (spec["seed"], spec["starts"], spec["sign_starts"]) == (4, 1, 0)


@pytest.mark.parametrize("words", [w for w, c in commands() if not isinstance(c, click.Group)])
def test_every_command_takes_the_shared_options(words: str) -> None:
    names = {name for param in dict(commands())[words].params for name in param.opts}
    assert {"--json", "-q", "-v", "--debug", "--config"} <= names


def test_verbose_tells_what_is_read_and_computed_and_quiet_tells_nothing(
    files: Path, ask: Ask
) -> None:
    code, out, err = ask("eigs", "sb.h5", "-k2", "-v")
    assert code == 0
    told = err.splitlines()
    assert "beside them, engine cached" in told.pop()
    assert told.pop() == "wrote sb.eigs.h5"
    assert all(re.match(r"\[\d+\.\d s\] \w+: ", line) for line in told)
    assert any("sb.h5" in line for line in told)
    assert any("eigsh" in line and "650" in line and "cached" in line for line in told)
    assert ask("eigs", "sb.h5", "-k2") == (0, out, "already done: sb.eigs.h5\n")
    assert ask("eigs", "sb.h5", "-k2", "-q") == (0, out, "")
    assert ask("eigs", "sb.h5", "-k2", "-q", "-o", "other.h5") == (0, out, "")
    assert [type(handler) for handler in LIBRARY.handlers] == [logging.NullHandler]


def test_the_library_alone_logs_nowhere() -> None:
    code = (
        "import sharpness as sh; f = sh.objective_of(sh.train(sh.TrainConfig(updates=1))); "
        "sh.eigsh(sh.Hessian(f), 1, budget=3)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


# ---- help ----------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [words for words, _ in commands()])
def test_help_names_every_option_and_keeps_the_examples_in_lines(words: str, ask: Ask) -> None:
    code, out, err = ask(*words.split(), "--help")
    assert (code, err) == (0, "")
    command = dict(commands())[words]
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
            assert all(name in out for name in (*parameter.opts, *parameter.secondary_opts))
    assert "\\b" not in out
    examples = [line for line in (command.help or "").splitlines() if "  sharpness " in line]
    assert all(f"\n  {example.strip()}\n" in out.replace("\n    ", "\n  ") for example in examples)


def test_a_line_has_no_option_that_it_ignores(ask: Ask) -> None:
    _, out, _ = ask("line", "--help")
    assert "--split " not in out  # it shows both parts


def test_every_field_of_a_training_is_an_option(ask: Ask) -> None:
    _, out, _ = ask("train", "--help")
    for field in fields(sh.TrainConfig):
        assert f"--{field.name.replace('_', '-')} " in out


def test_a_call_without_a_command_shows_the_commands(ask: Ask) -> None:
    code, out, err = ask()
    assert (code, out) == (2, "")
    assert all(name in err for name in COMMANDS)


@pytest.mark.parametrize("args", ["'--help'", "'--version'", "'gird'", ""])
def test_the_first_words_do_not_wait_for_torch(args: str) -> None:
    code = f"""
import sys
from sharpness.cli import main
try:
    main([{args}])
finally:
    assert not {{"torch", "numpy", "h5py"}} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode in (0, 2), done.stderr


def test_the_packages_take_no_name_of_others() -> None:
    code = (
        "import sharpness.cli, sharpness.experiments, sys; "
        "assert not {'cli', 'experiments'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- processes -----------------------------------------------------------------------------

SHARPNESS = [sys.executable, "-m", "sharpness"]
QUIET = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}


def completed(shell: str, words: str) -> list[str]:
    """What a shell offers for the last of the words."""
    words_of_shell = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    if shell == "fish":
        words_of_shell["COMP_CWORD"] = words.split(" ")[-1]
    code = "import sys; from sharpness.cli import main; main()"
    env = {**QUIET, **words_of_shell, "_SHARPNESS_COMPLETE": f"{shell}_complete"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
    assert done.stderr == b""
    return done.stdout.decode().splitlines()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_options_and_choices(shell: str) -> None:
    def offered(words: str) -> set[str]:
        lines = completed(shell, words)
        if shell == "zsh":
            return set(lines[1::3])
        return {line.split(",")[1].split("\t")[0] for line in lines}

    assert offered("sharpness ") == set(COMMANDS)
    assert offered("sharpness l") == {"layers", "line", "list"}
    assert offered("sharpness eigs --op") == {"--operator"}
    assert offered("sharpness eigs --which ") == {"LA", "SA", "LM"}
    assert offered("sharpness plot --format p") == {"png", "pdf"}
    assert offered("sharpness measure e") == {"epsilon-sharpness", "epsilon-trend"}


@pytest.mark.parametrize("words", ["sharpness ", "sharpness e"])
def test_commands_are_completed_without_waiting_for_torch(words: str) -> None:
    code = f"""
import os, sys
os.environ.update(COMP_WORDS={words!r}, COMP_CWORD="1", _SHARPNESS_COMPLETE="bash_complete")
from sharpness.cli import main
try:
    main([])
finally:
    assert not {{"torch", "numpy", "h5py"}} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert b"plain,eigs" in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_text_that_enables_completion_is_a_script_that_the_shell_accepts(shell: str) -> None:
    env = {**QUIET, "_SHARPNESS_COMPLETE": f"{shell}_source"}
    code = "from sharpness.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
    assert b"_SHARPNESS_COMPLETE" in done.stdout
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=done.stdout, check=True)


def test_more_threads_than_there_can_be_are_refused(files: Path) -> None:
    # A process of its own: torch dies of a segmentation fault.
    done = subprocess.run(
        [*SHARPNESS, *TRAIN, "--threads=100000"], stderr=subprocess.PIPE, env=QUIET
    )
    assert done.returncode == 2
    assert "threads" in the_line(done.stderr.decode())


def on_a_terminal(args: list[str], until: bytes, number: int) -> tuple[int, bytes]:
    """Run with stderr on a terminal; at the first ``until``, send a signal to the whole group."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*SHARPNESS, *args], stderr=theirs, stdout=theirs, env=QUIET, start_new_session=True
    )
    os.close(theirs)
    seen = b""
    try:
        while until not in seen:
            seen += os.read(ours, 1 << 16)
        if number:
            os.killpg(process.pid, number)
        while True:
            seen += os.read(ours, 1 << 16)
    except OSError:  # the other side has closed
        return process.wait(60), seen
    finally:
        process.kill()
        os.close(ours)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_leaves_one_line_and_what_goes_on(number: int, code: int, here: Path) -> None:
    got, seen = on_a_terminal(["train", *ENDLESS, "-o", "sb.h5"], b"updates", number)
    assert got == code
    last = seen.rpartition(b"\x1b[K")[2].decode().replace("\r\n", "\n")
    assert "the same command again" in the_line(last)
    assert contents(here).keys() == {"sb.h5.part"}
    assert sh.load("sb.h5.part").stopped == "interrupted"


def test_progress_is_gone_from_the_terminal_when_the_result_comes(files: Path) -> None:
    code, seen = on_a_terminal([*LINE, "--alphas=0:1:3"], b"points", 0)
    assert code == 0
    drawn, _, after = seen.rpartition(b"\r\x1b[K")
    assert b"3 of 3 points" in drawn
    assert b"\n" not in drawn
    assert after.startswith(b"distance of the ends")
    assert after.endswith(b"wrote sb-lb.line.h5\r\n")


def test_a_reader_that_has_seen_enough_ends_the_command_without_words(files: Path) -> None:
    with subprocess.Popen(
        [*SHARPNESS, "show", *["sb.h5"] * 200],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=QUIET,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"sb.h5: Run\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def living(session: int) -> list[int]:
    """The processes of a session that are still at work."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, *numbers = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        if int(numbers[2]) == session and state != "Z":
            found.append(int(folder.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_recipe_that_was_stopped_or_killed_leaves_no_worker_and_continues(here: Path) -> None:
    recipe = ["run", "keskar", "--seeds=3", "--level=1.2", "--workers=2"]
    recipe += ['--model-options={"widths": [16]}']
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        process = subprocess.Popen(
            [*SHARPNESS, *recipe, "-o", "stopped"],
            stderr=subprocess.PIPE,
            env=QUIET,
            start_new_session=True,
        )
        assert process.stderr is not None
        known = len(list(here.glob("stopped/noisy/*.h5")))
        while len(list(here.glob("stopped/noisy/*.h5"))) == known:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(30) == code
        deadline = time.monotonic() + 10
        while living(process.pid):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        err = process.stderr.read().decode()
        process.stderr.close()
        if number != signal.SIGKILL:
            assert "the same command again" in the_line(err)
        assert not Path("stopped/comparison.h5").exists()
        partial = [path for path in here.rglob(".*") if number != signal.SIGKILL]
        assert not partial
    for folder in ("stopped", "whole"):
        subprocess.run([*SHARPNESS, *recipe, "-q", "-o", folder], env=QUIET, check=True)
    assert contents(here / "stopped") == contents(here / "whole")
