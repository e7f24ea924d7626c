"""What was interrupted goes on, and ends with the bytes of what was not."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sharpness.cli import eigs, sources
from torch import Tensor, nn

from sharpness import cli as sharpness_cli, journal, training
from sharpness.errors import InputError
from sharpness.optimizers import OPTIMIZERS
from sharpness.results import Run
from sharpness.signals import Stopped, answered
from sharpness.store import load, load_as, save
from sharpness.training import TrainConfig, cpu_threads, train

sys.path.insert(0, str(Path(__file__).parent))
from interruptions import content, interrupted

Ask = Callable[..., tuple[int, str, str]]
SMALL = TrainConfig(
    model_options={"widths": [4]},
    train_examples=50,
    batch_size=20,
    updates=17,
    check_every=3,
    stop_loss=1e-3,
    checkpoint_losses=[2.29, 2.26],
    threads=1,
)


class Noisy(nn.Sequential):
    """Dropout draws, BatchNorm remembers, and one parameter never has a gradient."""

    def __init__(self) -> None:
        super().__init__(
            nn.Linear(64, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 10)
        )
        self.idle = nn.Parameter(torch.ones(3))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with cpu_threads(1):
        yield


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", [None, Noisy])
def test_a_training_that_is_interrupted_after_every_update_ends_with_the_same_bytes(
    optimizer: str, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(SMALL, optimizer=optimizer, learning_rate=0.05)
    config = replace(config, momentum=0.9 if optimizer in ("sgd", "rmsprop") else 0.0)
    if model is not None:
        torch.manual_seed(0)
        config = replace(config, model=model(), model_options={})
    wanted = content(train(config), tmp_path)
    for every in (1, 4):
        run, begun, rounds = None, None, 0
        while run is None:
            run, begun = interrupted(config, every, begun, monkeypatch)
            if begun is not None:  # through the file, as the command does
                save(tmp_path / "sb.h5.part", begun, overwrite=True)
                begun = load_as(tmp_path / "sb.h5.part", Run)
            rounds += 1
        assert rounds > config.updates / every
        assert content(run, tmp_path) == wanted


SCHEDULED: dict[str, dict[str, Any]] = {
    "warm-up and cosine": {"schedule": "cosine", "warmup": 5, "batches": "replacement"},
    "one-cycle": {"schedule": "one-cycle", "clip_norm": 0.5},
    "triangular2 in epochs": {
        "schedule": "triangular2",
        "schedule_options": {"half_cycle": 0.7},
        "schedule_unit": "epochs",
        "checkpoint_geometric": 1.5,
        "checkpoint_updates": [5, 11],
    },
    "growing stratified batches": {
        "batch_size": 10,
        "batches": "stratified",
        "schedule": "increase-batch",
        "schedule_options": {"milestones": [1.5], "factor": 2.5},
        "schedule_unit": "epochs",
    },
}
EXAMPLES = (torch.eye(50), torch.ones(50, 1))
ENDS: dict[str, dict[str, Any]] = {
    "a bound": {
        "stop_loss": 2.0,
        "stop_within": 1e-3,
        "learning_rate": 0.02,
        "model_options": {"widths": []},
    },
    "patience": {"patience": 9, "min_improvement": 0.5},
    "divergence": {
        "data": (2 * (EXAMPLES,)),
        "loss": "mse",
        "model_options": {"widths": []},
        "optimizer": "sgd",
        "learning_rate": 300.0,
        "keep_diverged": True,
    },
    "early stopping": {
        "optimizer": "adam",
        "learning_rate": 0.1,
        "label_noise": 0.5,
        "updates": 300,
        "early_stopping": 12,
        "data_options": {"validation": 0.2},
        "checkpoint_updates": [2, 290],
    },
}
STOPPED = {
    "a bound": "stop_loss",
    "patience": "patience",
    "divergence": "diverged",
    "early stopping": "early_stopping",
}
# What has no rate, or no momentum, to move.
WITHOUT = {("rprop", name) for name in SCHEDULED} | {
    (optimizer, "one-cycle") for optimizer in ("adagrad", "lbfgs")
}
CASES = {
    f"{name} of {optimizer}": {"optimizer": optimizer, **changes}
    for name, changes in SCHEDULED.items()
    for optimizer in OPTIMIZERS
    if (optimizer, name) not in WITHOUT
} | ENDS


@pytest.mark.parametrize("case", CASES)
def test_schedules_and_ends_go_on_where_they_were_interrupted(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(SMALL, **{"stop_loss": None, "checkpoint_losses": [], **CASES[case]})
    wanted = train(config)
    assert wanted.stopped == STOPPED.get(case, "updates")
    assert wanted.updates >= 3
    run, begun = None, None
    while run is None:
        run, begun = interrupted(config, 3, begun, monkeypatch)
        if begun is not None:
            save(tmp_path / "sb.h5.part", begun, overwrite=True)
            begun = load_as(tmp_path / "sb.h5.part", Run)
    assert content(run, tmp_path) == content(wanted, tmp_path)


def test_an_unfinished_run_of_the_first_version_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knew no growing batches, and no ends but three."""
    first = ("looked", "next_look", "last_row", "examples", "epoch", "stopped", "random")
    wanted = content(train(SMALL), tmp_path)
    for steps in (2, 4, 5, 9):
        _, begun = interrupted(SMALL, steps, None, monkeypatch)
        assert begun is not None
        state = {name: begun.spec["state"][name] for name in first}
        older = replace(begun, spec={**begun.spec, "state": state})
        assert content(train(SMALL, begun=older), tmp_path) == wanted


def test_a_signal_within_a_look_at_the_loss_costs_the_look_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, looks = content(train(SMALL), tmp_path), 0
    evaluate = training._Training._measured

    def stopping(self: Any, *asked: Any) -> Any:
        nonlocal looks
        looks += 1
        if looks % 3 == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, *asked)

    monkeypatch.setattr(training._Training, "_measured", stopping)
    begun, stops = None, 0
    while True:
        kept: list[Run] = []
        try:
            with answered():
                run = train(SMALL, begun=begun, keep=kept.append)
            break
        except Stopped:
            stops += 1
            begun = kept[-1] if kept else None
    assert stops > 2
    assert content(run, tmp_path) == wanted


def test_an_unfinished_run_is_a_run_that_says_so() -> None:
    kept: list[Run] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "KEEP_EVERY", 0.0)
        patch.setattr(training, "KEEP_SHARE", 0)
        run = train(SMALL, keep=kept.append)
    assert {x.stopped for x in kept} == {"interrupted"}
    assert [x.updates for x in kept] == list(range(SMALL.updates or 0))
    assert run.stopped == "updates"
    assert "state" not in run.spec
    whole = {f.name for f in fields(Run)}
    assert all(getattr(kept[-1], name) is not None for name in whole)


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"seed": 1}, "seed 0 there, 1 asked for"), ({"label_noise": 0.1}, "label_noise 0.0")],
)
def test_only_what_was_interrupted_and_is_the_same_goes_on(
    changed: dict[str, Any], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, begun = interrupted(SMALL, 3, None, monkeypatch)
    with pytest.raises(InputError, match=named):
        train(replace(SMALL, **changed), begun=begun)
    with pytest.raises(InputError, match="got updates: begin anew"):
        train(SMALL, begun=train(SMALL))


def test_a_step_torn_by_a_second_signal_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Run] = []

    def update(self: Any, *batch: Any) -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("went on")

    monkeypatch.setattr(training._Training, "_update", update)
    with answered(), pytest.raises(Stopped):
        train(SMALL, keep=kept.append)
    assert not kept


def test_what_keeping_costs_makes_it_rarer(monkeypatch: pytest.MonkeyPatch) -> None:
    now, times = 0.0, []
    monkeypatch.setattr(training, "monotonic", lambda: now)
    original = training._Training._update

    def update(self: Any, *batch: Any) -> None:
        nonlocal now
        now += 1
        original(self, *batch)

    def keep(run: Run) -> None:
        nonlocal now
        times.append(run.updates)
        now += 2

    monkeypatch.setattr(training._Training, "_update", update)
    train(replace(SMALL, updates=120, stop_loss=None), keep=keep)
    assert times == [10, 48, 86]  # after ten seconds, then every twenty times two


RUN = ["--model-options", '{"widths": [4]}', "--batch-size=100", "--epochs=3", "--threads=1", "-q"]
PLANE = ["plane", "sb.h5", "--alphas=-1:1:5", "-q"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Ask) -> Path:
    monkeypatch.chdir(tmp_path)
    assert ask("train", *RUN, "-o", "sb.h5")[0] == 0
    return tmp_path


def stopping(monkeypatch: pytest.MonkeyPatch, after: int, number: int = signal.SIGTERM) -> None:
    """Let a signal come when the piece of that number was put into a journal."""
    original, count = journal.Journal.__setitem__, 0

    def put(self: Any, key: str, value: Tensor) -> None:
        nonlocal count
        count += 1
        original(self, key, value)
        if count == after:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(journal.Journal, "__setitem__", put)


@pytest.mark.parametrize(
    ("command", "output", "total"),
    [
        (PLANE, "sb.plane.h5", 50),
        ([*PLANE, "--convexity", "--alphas=-1:1:3"], "sb.convexity.h5", 3),
        (["eigs", "sb.h5", "-k3", "-q"], "sb.eigs.h5", 20),
    ],
)
def test_a_command_that_was_stopped_goes_on_and_gives_the_same_bytes(
    command: list[str],
    output: str,
    total: int,
    here: Path,
    ask: Ask,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(eigs, "LARGE", 1)
    assert ask(*command)[0] == 0
    wanted = Path(output).read_bytes()
    Path(output).unlink()
    assert not Path(f"{output}.part").exists()
    seen = []
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)):
        with monkeypatch.context() as patch:
            stopping(patch, 1 + total // 10, number)
            status, out, err = ask(*command)
        assert (status, out) == (code, "")
        last = err.splitlines()[-1]
        assert last.startswith("sharpness: error: interrupted: ")
        assert f"{output}.part keeps " in last
        assert last.endswith(": the same command again continues")
        seen.append(int(last.partition(" keeps ")[2].split()[0]))
        assert not Path(output).exists()
    assert seen == sorted(seen)
    status, _, err = ask(*command)
    assert status == 0
    assert Path(output).read_bytes() == wanted
    assert not Path(f"{output}.part").exists()


def test_the_journal_of_another_request_is_refused_until_it_is_overwritten(
    here: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stopping(patch, 7)
        assert ask(*PLANE)[0] == 143
    before = Path("sb.plane.h5.part").read_bytes()
    status, _, err = ask(*PLANE, "--seed=3")
    assert status == 2
    assert "sb.plane.h5.part belongs to another computation (seed 0 there, 3 asked for)" in err
    assert Path("sb.plane.h5.part").read_bytes() == before
    assert ask(*PLANE, "--seed=3", "--overwrite")[0] == 0
    assert not Path("sb.plane.h5.part").exists()


def test_all_points_of_a_plane_come_from_its_journal(
    here: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sources, "fitting", lambda *_: (_ for _ in ()).throw(OSError(5, "Input")))
        assert ask(*PLANE)[0] == 1
    with monkeypatch.context() as patch:
        removed: list[Any] = []
        patch.setattr(journal.Journal, "remove", lambda self: removed.append(self))
        assert ask(*PLANE)[0] == 0
    Path("sb.plane.h5").rename("first.h5")
    monkeypatch.setattr(
        "sharpness.objective.Objective.evaluate", lambda *_: pytest.fail("computed again")
    )
    command = [word for word in PLANE if word != "-q"]
    status, _, err = ask(*command)
    assert status == 0
    assert "continuing from the 50 pieces in sb.plane.h5.part" in err
    assert Path("sb.plane.h5").read_bytes() == Path("first.h5").read_bytes()


def test_a_training_command_goes_on_and_leaves_no_part(
    here: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["train", *RUN[:-1], "-o", "other.h5"]
    original = training._Training._update

    def update(self: Any, *batch: Any) -> None:
        if self.updates == 9:
            os.kill(os.getpid(), signal.SIGUSR1)
        original(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(training._Training, "_update", update)
        status, _, err = ask(*command)
    assert status == 138
    assert err.splitlines()[-1] == (
        "sharpness: error: interrupted: other.h5.part keeps 10 updates: "
        "the same command again continues"
    )
    assert load_as("other.h5.part", Run).updates == 10
    status, _, err = ask(*command[:-2], "--seed=4", *command[-2:])
    assert status == 2
    assert "seed 0 there, 4 asked for" in err
    status, _, err = ask(*command)
    assert status == 0
    assert "continuing from update 10 in other.h5.part" in err
    assert Path("other.h5").read_bytes() == Path("sb.h5").read_bytes()
    assert not Path("other.h5.part").exists()


NARROW = """
import torch
from torch import nn

ROOM = [40]


class Narrow(nn.Sequential):
    def forward(self, x):
        if len(x) > ROOM[0]:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        return super().forward(x)


def build():
    return Narrow(nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 10))


def normed():
    return Narrow(nn.Linear(64, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 10))
"""


@pytest.fixture
def narrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A checkpoint of a model that has memory for 40 examples, and how to name it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("narrow_nets", None)
    (tmp_path / "narrow_nets.py").write_text(NARROW)
    for name, layers in (
        ("build", [nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 10)]),
        ("normed", [nn.Linear(64, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 10)]),
    ):
        torch.save(nn.Sequential(*layers).state_dict(), f"{name}.pt")
    monkeypatch.setattr("sharpness.problem._require_mean", lambda *_: None)  # takes 64 examples
    return ["--data=digits", "--loss=cross_entropy", "--micro-batch=256"]


def test_batches_that_memory_does_not_hold_are_halved_and_recorded(
    narrow: list[str], ask: Ask
) -> None:
    commands = {
        "build.eigs.h5": ["eigs", "build.pt", "-k2"],
        "build.plane.h5": ["plane", "build.pt", "--alphas=-1:1:3"],
        "build.epsilon-sharpness.h5": ["measure", "epsilon-sharpness", "build.pt"],
    }
    for output, command in commands.items():
        status, _, err = ask(*command, "--model=narrow_nets:build", *narrow)
        assert status == 0, err
        halvings = [line for line in err.splitlines() if line.startswith("out of memory")]
        assert len(halvings) == 3  # 256, 128, 64
        assert halvings[-1] == "out of memory in batches of 64 examples: going on with 32"
        assert '"micro_batch": 32' in str(load(output).spec).replace("'", '"')


def test_what_a_split_would_change_is_refused_when_memory_runs_out(
    narrow: list[str], ask: Ask
) -> None:
    command = ["eigs", "normed.pt", "--model=narrow_nets:normed", *narrow[:2], "--bn=batch"]
    status, out, err = ask(*command, "--examples=100")
    assert (status, out) == (1, "")
    assert "batch 0, of 100 examples, needs more memory than there is" in err
    assert "statistics of batches change with a split" in err
    assert not Path("normed.eigs.h5").exists()


def test_one_example_that_memory_does_not_hold_is_the_end(
    narrow: list[str], ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["eigs", "build.pt", "--model=narrow_nets:build", *narrow]
    original = sources.opened

    def then_tight(*args: Any) -> Any:
        found = original(*args)
        __import__("narrow_nets").ROOM[0] = 0
        monkeypatch.setattr("sharpness.problem._fit", lambda *_: {})
        return found

    monkeypatch.setattr(eigs, "opened", then_tight)
    monkeypatch.setattr("sharpness.problem.micro_batch_of", lambda *_, **__: 256)
    status, _, err = ask(*command)
    assert status == 1
    assert "of 1 example, needs more memory than there is" in err.splitlines()[-1]
    assert "going on with 1" in err.splitlines()[-2]


def test_the_size_that_fits_is_kept_with_the_pieces(
    narrow: list[str], ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["plane", "build.pt", "--model=narrow_nets:build", *narrow, "--alphas=-1:1:3"]
    assert ask(*command)[0] == 0
    wanted = Path("build.plane.h5").read_bytes()
    Path("build.plane.h5").unlink()
    with monkeypatch.context() as patch:
        stopping(patch, 7)
        assert ask(*command)[0] == 143
    __import__("narrow_nets").ROOM[0] = 10**9  # memory is there again, but the pieces are of 32
    status, _, err = ask(*command)
    assert status == 0
    assert "out of memory" not in err
    assert Path("build.plane.h5").read_bytes() == wanted


def test_memory_that_runs_out_after_the_first_piece_ends_the_command(
    narrow: list[str], ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = journal.Journal.__setitem__

    def put(self: Any, key: str, value: Tensor) -> None:
        original(self, key, value)
        if key.startswith("train"):
            __import__("narrow_nets").ROOM[0] = 10

    monkeypatch.setattr(journal.Journal, "__setitem__", put)
    command = ["plane", "build.pt", "--model=narrow_nets:build", *narrow, "--alphas=-1:1:3"]
    status, _, err = ask(*command)
    assert status == 1
    assert "keeps 4 pieces: when the cause is gone the same command again continues" in err


def test_a_second_signal_while_the_first_is_told_ends_the_command_with_its_code(
    here: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = sharpness_cli._failed

    def interrupted_too(text: str, code: int) -> int:
        found = told(text, code)
        os.kill(os.getpid(), signal.SIGINT)
        return found

    monkeypatch.setattr(sharpness_cli, "_failed", interrupted_too)
    stopping(monkeypatch, 7)
    status, _, err = ask(*PLANE)
    assert status == 130
    assert len(err.splitlines()) == 1
    assert "keeps 7 pieces: the same command again continues" in err
