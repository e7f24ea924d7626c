"""Measures are found by name, given what they take, and stand in one table with what they cost."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sharpness import measures
from sharpness.errors import ComputationError, InputError, OutOfMemoryError
from sharpness.measures import Entry, Row, chosen, measure_all, measured, row
from sharpness.objective import Objective
from sharpness.problem import objective_of
from sharpness.results import Measured, Run, Solution
from sharpness.store import load_as, save
from sharpness.training import TrainConfig, train


def number(value: float = 2.0, **changes: Any) -> Measured:
    given: dict[str, Any] = {
        "measure": "half",
        "value": value,
        "stderr": 0.0,
        "interval": torch.tensor([value, value]).double(),
        "threshold": math.nan,
        "loss": 0.5,
        "converged": True,
        "words": "half of all",
        "samples": {},
        "details": {},
        "gradients": 1.0,
        "products": 0.0,
        "forwards": 2.0,
        "spec": {},
    }
    return Measured(**{**given, **changes})


def half(objective: Objective, point: Any = None, *, share: float = 0.5) -> Measured:
    """Return a share of the sum of theta.

    Args:
        share: Which.
    """
    here = objective.at(objective.theta if point is None else point)
    return number(share * float(here.theta.sum()))


def rate(objective: Objective, *, run: Run | None = None, seed: int = 0) -> Measured:
    """Return the rate of a run."""
    if run is None:
        raise InputError("rate needs a run, got none: give one")
    return number(run.spec["train"]["learning_rate"] + seed)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "MEASURES", {"half": half, "rate": rate})
    table = {
        "half": Entry("half", {}),
        "all": Entry("half", {"share": 1.0}),
        "rate": Entry("rate", {}),
    }
    monkeypatch.setattr(measures, "TABLE", table)


@pytest.fixture
def f() -> Objective:
    model = nn.Linear(1, 2, bias=False).double()
    x = torch.ones(1, 1).double()
    return Objective(model, [(x, torch.zeros(1, 2).double())], nn.functional.mse_loss)


def theta(*x: float) -> Tensor:
    return torch.tensor(x).double()


@pytest.mark.usefixtures("fakes")
def test_a_measure_is_given_of_point_run_and_seed_what_it_takes(f: Objective) -> None:
    assert measured("half", f, theta(1.0, 3.0), seed=7).value == 2  # type: ignore[union-attr]
    run = train(TrainConfig(updates=1, threads=1, learning_rate=0.25))
    assert measured("rate", objective_of(run), run=run, seed=2).value == 2.25


@pytest.mark.usefixtures("fakes")
def test_without_a_point_the_end_of_the_run_is_measured() -> None:
    run = train(TrainConfig(updates=1, threads=1, model_options={"widths": []}))
    moved = Solution(run.end.theta + 1, run.end.buffers)
    found = measured("half", objective_of(run), run=replace(run, end=moved))
    assert found.value == pytest.approx(float(moved.theta.double().sum()) / 2, rel=1e-5)


@pytest.mark.usefixtures("fakes")
def test_the_table_says_why_a_measure_is_not_there(f: Objective) -> None:
    found = measure_all(f, point=theta(1.0, 3.0))
    rows = {name: row(name, x) for name, x in found.items()}
    assert [rows[name].value for name in ("half", "all")] == [2, 4]
    assert math.isnan(rows["rate"].value)
    assert rows["rate"].words == "rate needs a run, got none: give one"
    assert rows["rate"].told == "undefined"


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize(
    "error", [OutOfMemoryError("no room", examples=1, splits=False), KeyError("x")]
)
def test_what_is_no_answer_of_a_measure_ends_the_table(
    error: Exception, f: Objective, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(objective: Objective) -> Measured:
        raise error

    monkeypatch.setitem(measures.MEASURES, "half", fails)
    with pytest.raises(type(error)):
        measure_all(f, only=["half"])


@pytest.mark.usefixtures("fakes")
def test_names_are_looked_up(f: Objective) -> None:
    assert chosen(["rate", "half"]) == ["half", "rate"]
    for only in ([], ["third"]):
        with pytest.raises(InputError, match="measures need to be of half, all, rate, got"):
            measure_all(f, only=only)
    with pytest.raises(InputError, match="measure needs to be one of half, rate, got 'third'"):
        measured("third", f)


def bounds(low: float, high: float, **more: Any) -> Row:
    return Row("x", 2.0, low, high, **more)


NAN = math.nan


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (bounds(2.0, 2.0), "2"),
        (bounds(1.0, 3.0), "2 [1, 3]"),
        (bounds(2.0, NAN), ">= 2"),
        (bounds(1.5, NAN), "2 [1.5, unknown]"),
        (bounds(NAN, NAN), "2"),
        (bounds(1.0, 3.0, converged=False), "2 [1, 3] (not converged)"),
        (Row("x", NAN), "undefined"),
    ],
)
def test_a_value_is_told_with_what_is_known_of_it(found: Row, told: str) -> None:
    assert found.told == told


def test_a_result_without_a_value_is_no_line_of_the_table() -> None:
    with pytest.raises(InputError, match="needs numbers, got a Solution"):
        row("x", Solution(theta(1.0), {}))  # type: ignore[arg-type]


# ---- the command -------------------------------------------------------------------------------

ONLY = "epsilon-sharpness"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    options = {"widths": []}
    for name, batch_size in (("sb", 60), ("lb", 600)):
        config = TrainConfig(model_options=options, batch_size=batch_size, updates=5, threads=1)
        save(folder / f"{name}.h5", train(config))
    return folder


@pytest.fixture
def made(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for file in runs.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


Ask = Callable[..., tuple[int, str, str]]


@pytest.mark.usefixtures("made")
def test_all_measures_leave_the_files_that_their_own_commands_would(ask: Ask) -> None:
    options = ("measure", "epsilon-sharpness", "sb.h5", "-q", "--json")
    code, own, _ = ask(*options)
    before = Path("sb.epsilon-sharpness.h5").read_bytes()
    assert code == 0
    code, told, _ = ask("measure", "all", "sb.h5", "--only", ONLY, "--json", "-q")
    assert code == 0
    assert Path("sb.epsilon-sharpness.h5").read_bytes() == before
    line = json.loads(told)["sb.h5"]["measures"][ONLY]
    assert line["value"] == json.loads(own)["value"]
    Path("sb.epsilon-sharpness.h5").unlink()
    assert ask("measure", "all", "sb.h5", "--only", ONLY, "-q")[0] == 0
    assert ask(*options)[0] == 0  # already done
    assert Path("sb.epsilon-sharpness.h5").read_bytes() == before


@pytest.mark.usefixtures("made")
def test_many_runs_stand_side_by_side(ask: Ask) -> None:
    code, told, err = ask("measure", "all", "sb.h5", "lb.h5", "--only", ONLY)
    assert code == 0
    assert "wrote sb.epsilon-sharpness.h5" in err
    header, *rest = told.splitlines()
    assert header.split() == ["measure", "sb", "lb"]
    cells = {line.split("  ")[0]: line.replace(">= ", "").split()[-2:] for line in rest}
    assert cells["batch size"] == ["60", "600"]
    assert cells["optimizer"] == ["adam", "adam"]
    wide = json.loads(ask("measure", "all", "sb.h5", "lb.h5", "--only", ONLY, "--json", "-q")[1])
    for i, name in enumerate(("sb.h5", "lb.h5")):
        assert cells[ONLY][i] == f"{wide[name]['measures'][ONLY]['value']:.4g}"
        spent = wide[name]["measures"][ONLY]["gradients"]
        assert float(cells["gradients"][i]) == spent > 1


@pytest.mark.usefixtures("made")
def test_one_run_has_its_costs_and_certificates(ask: Ask) -> None:
    code, told, _ = ask("measure", "all", "sb.h5", "--only", ONLY, "-q")
    assert code == 0
    about, header, line, words = told.splitlines()[:4]
    assert "batch size 60, learning rate 0.001, optimizer adam" in about
    assert header.split() == ["measure", "value", "gradients", "products", "forwards"]
    assert line.split()[0] == ONLY
    assert words.startswith(f"{ONLY}: ")


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("nothing.h5",), "nothing.h5 needs to be a file that is there"),
        (("sb.h5", "sb.h5"), "each run is named once"),
        (("sb.h5", "--only", "sharpness"), "needs one of"),
        ((), "Missing argument"),
    ],
)
def test_a_wrong_request_of_all_measures_is_one_line(ask: Ask, args: Any, told: str) -> None:
    code, out, err = ask("measure", "all", *args)
    assert (code, out) == (2, "")
    assert told in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.usefixtures("made")
def test_a_file_of_another_request_is_refused(ask: Ask) -> None:
    assert ask("measure", "all", "sb.h5", "--only", ONLY, "-q", "--examples", "300")[0] == 0
    code, _, err = ask("measure", "all", "sb.h5", "--only", ONLY, "-q")
    assert code == 2
    assert "holds the answer to another request (examples 300 there, nothing asked for)" in err
    assert ask("measure", "all", "sb.h5", "--only", ONLY, "-q", "--overwrite")[0] == 0


def test_what_fails_while_running_is_told_in_the_table(
    made: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = measures.MEASURES[ONLY]

    @wraps(usual)
    def fails(*args: Any, **options: Any) -> Measured:
        raise ComputationError("epsilon_sharpness needs a finite loss, got nan: look at the model")

    monkeypatch.setitem(measures.MEASURES, ONLY, fails)
    code, told, _ = ask("measure", "all", "sb.h5", "--only", ONLY, "-q")
    assert code == 0
    assert "undefined" in told
    assert "needs a finite loss, got nan" in told
    assert not (made / f"sb.{ONLY}.h5").exists()


def test_a_measure_is_stored_with_all_that_it_has(tmp_path: Path) -> None:
    found = number(
        samples={"rises": theta(1.0, 3.0), "errors": theta(0.0, 1.0)},
        details={"traces": torch.arange(6).reshape(2, 3), "share": torch.tensor(0.5).double()},
        converged=False,
    )
    save(tmp_path / "x.h5", found)
    again = load_as(tmp_path / "x.h5", Measured)
    assert torch.equal(again.samples["errors"], found.samples["errors"])
    assert torch.equal(again.details["traces"], found.details["traces"])
    assert (again.value, again.converged, again.words) == (2.0, False, "half of all")
