"""``sharpness line`` around one solution and between two is one call of the library each."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import sharpness as sh
from sharpness.directions import make
from sharpness.results import Line

Ask = Callable[..., tuple[int, str, str]]
LINEAR = {"model_options": {"widths": []}, "batch_size": 600, "threads": 1}
BATCHED = {"model": "cnn", "model_options": {"channels": [2]}, "batch_size": 300, "threads": 1}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    sh.save("sb.h5", sh.train(sh.TrainConfig(**LINEAR, updates=5)))
    sh.save("lb.h5", sh.train(sh.TrainConfig(**LINEAR, updates=9, learning_rate=0.01)))
    return tmp_path


def parts(run: sh.Run) -> dict[str, sh.Objective]:
    return {split: sh.objective_of(run, split=split) for split in ("train", "test")}


@pytest.mark.parametrize(
    ("options", "name", "asked"),
    [
        ([], "random", {"kind": "random"}),
        (
            ["-n3", "--normalize=layer", "--ignore=bias", "--orthogonal", "--seed=4"],
            "random",
            {
                "kind": "random",
                "count": 3,
                "normalization": "layer",
                "ignore": ["bias"],
                "orthogonal": True,
                "seed": 4,
            },
        ),
        (["--directions=gradient"], "gradient", {"kind": "gradient"}),
        (
            ["--directions=eigenvectors", "-n2"],
            "eigenvectors",
            {"kind": "eigenvectors", "count": 2},
        ),
    ],
)
def test_a_cut_is_that_of_the_library(
    options: list[str], name: str, asked: dict[str, object], here: Path, ask: Ask
) -> None:
    assert ask("line", "sb.h5", "--alphas=-1:1:5", *options)[0] == 0
    found, run = sh.load(f"sb.{name}.line.h5"), sh.load("sb.h5")
    f = parts(run)
    rows, made = make(f["train"], **asked, point=run.end)
    alphas = torch.linspace(-1, 1, 5, dtype=torch.float64)
    wanted = sh.cut(f, run.end, rows, alphas=alphas, made=made)
    assert torch.equal(found.directions, wanted.directions)
    assert torch.equal(found.curvatures, wanted.curvatures)
    assert all(torch.equal(found.values[key], x) for key, x in wanted.values.items())
    assert found.spec == wanted.spec


def test_the_grids_are_those_of_the_papers(here: Path, ask: Ask) -> None:
    assert ask("line", "sb.h5")[0] == ask("line", "sb.h5", "lb.h5")[0] == 0
    around, between = sh.load("sb.random.line.h5").alphas, sh.load("sb-lb.line.h5").alphas
    assert around.tolist() == pytest.approx([(i - 25) / 25 for i in range(51)], abs=1e-15)
    assert between.tolist() == [(i - 8) / 8 for i in range(25)]
    assert around[25] == 0
    assert not torch.signbit(around[25])


def test_a_grid_that_has_the_ends_has_them_exactly(here: Path, ask: Ask) -> None:
    assert ask("line", "sb.h5", "lb.h5", "--alphas=-0.7:1.3:21")[0] == 0
    found, f = sh.load("sb-lb.line.h5"), parts(sh.load("sb.h5"))
    assert torch.linspace(-0.7, 1.3, 21, dtype=torch.float64)[7] != 0
    for i, name in ((7, "sb"), (17, "lb")):
        assert found.alphas[i] == float(name == "lb")
        assert found.values["train_loss"][i] == f["train"].value(sh.load(f"{name}.h5").end)


def test_the_linear_path_is_the_request_of_files_that_are_older_than_paths(
    here: Path, ask: Ask
) -> None:
    assert ask("line", "sb.h5", "lb.h5", "--alphas=0:1:3")[0] == 0
    code, _, err = ask("line", "sb.h5", "lb.h5", "--alphas=0:1:3", "--path=linear")
    assert (code, err) == (0, "already done: sb-lb.line.h5\n")
    code, _, err = ask("line", "sb.h5", "lb.h5", "--alphas=0:1:3", "--path=curvilinear")
    assert code == 2
    assert "path nothing there" in err


def test_the_curvilinear_path_is_that_of_the_library(here: Path, ask: Ask) -> None:
    assert ask("line", "sb.h5", "lb.h5", "--alphas=0:1:3", "--path=curvilinear")[0] == 0
    found, sb, lb = (sh.load(f"{name}.h5") for name in ("sb-lb.line", "sb", "lb"))
    wanted = sh.line(parts(sb), sb.end, lb.end, alphas=found.alphas, path="curvilinear")
    assert torch.equal(found.values["test_loss"], wanted.values["test_loss"])
    _, out, _ = ask("show", "sb-lb.line.h5")
    assert "curvilinear path" in out


def test_show_tells_the_barriers_and_basins_of_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Ask
) -> None:
    monkeypatch.chdir(tmp_path)
    x = torch.linspace(-1, 2, 13, dtype=torch.float64)
    loss = 4 * (x * (x - 1)).square()  # 0 at both ends, 1/4 between them
    values = {"train_loss": loss, "train_accuracy": 1 - x.clamp(0, 1) / 2}
    sh.save("a.h5", Line(x, values, 2.0, {"objectives": {}}))
    _, out, _ = ask("show", "a.h5")
    told = [row.split() for row in out.splitlines()]
    assert ["train_loss", "0.25", "0.25", "0.5", "0.25", "0.25", "no"] in told
    assert ["train_error,", "points", "25", "0", "1", "50", "0", "yes"] in told
    # From 0 at an end to 0.390625 at the next point beyond it, by linear interpolation.
    beyond = 0.25 * 0.1 / 0.390625
    sides = {row[0]: row[1:3] for row in told if row[:1] in (["start"], ["end"])}
    assert float(sides["start"][0]) == pytest.approx(-beyond, rel=1e-3)
    assert float(sides["end"][1]) == pytest.approx(1 + beyond, rel=1e-3)
    values["train_loss"][1] = torch.inf
    values["train_loss"][8] = 0.0
    sh.save("b.h5", Line(x, values, 2.0, {"objectives": {}}))
    _, out, _ = ask("show", "b.h5")
    assert "NOT finite: train_loss at 1 of 13 points" in out


def test_show_marks_what_the_grid_cuts_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Ask
) -> None:
    monkeypatch.chdir(tmp_path)
    x = torch.tensor([-1.0, 0.0, 1.0, 2.0], dtype=torch.float64)
    for name, values in (("a", 0 * x), ("b", x[:2].exp())):
        sh.save(f"{name}.h5", Line(x[: len(values)], {"loss": values}, 1.0, {"objectives": {}}))
    _, out, _ = ask("show", "a.h5")
    assert ["start", "<=", "-1", ">=", "2", ">=", "3"] in [row.split() for row in out.splitlines()]
    _, out, _ = ask("show", "b.h5")
    assert "barrier unknown: no points at alpha 0 and 1" in out


def test_a_network_with_batch_norm_has_its_policy_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Ask
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, rate in (("a", 1e-3), ("b", 1e-2)):
        config = sh.TrainConfig(**BATCHED, updates=4, learning_rate=rate)
        sh.save(f"{name}.h5", sh.train(config))
    for call, output, policy in (
        (["a.h5", "b.h5", "--alphas=0:1:3"], "a-b.line.h5", "reestimate"),
        (["a.h5", "--alphas=-1:1:3"], "a.random.line.h5", "frozen"),
        (["a.h5", "--alphas=-1:1:3", "--bn=batch", "-o", "c.h5"], "c.h5", "batch"),
    ):
        code, out, _ = ask("line", *call)
        assert code == 0
        assert f"BatchNorm {policy}, " in out
        made = sh.plots.drawn(sh.load(output))
        assert f"BatchNorm: {policy}" in made.get_suptitle()
    code, _, err = ask("line", "a.h5", "--alphas=-1:1:3", "--bn=frozen")
    assert (code, err) == (0, "already done: a.random.line.h5\n")


def test_a_file_of_a_cut_has_named_coordinates(here: Path, ask: Ask) -> None:
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    assert ask("line", "sb.h5", "-n2", "--alphas=-1:1:5")[0] == 0
    with xarray.open_dataset("sb.random.line.h5", engine="h5netcdf") as data:
        assert data.train_loss.dims == ("direction", "alphas")
        assert data.directions.dims == ("direction", "parameter")
        center = data.train_loss.sel(alphas=0.0)
        assert (center == center[0]).all()
