"""``sharpness plane`` computes what the library computes, once, and refuses what it cannot."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import sharpness as sh
from sharpness.results import Convexity, Plane
from sharpness.training import TrainConfig, cpu_threads, train

Ask = Callable[..., tuple[int, str, str]]
SMALL = ["--alphas=-1:1:3", "--betas=-1:1:5"]
NETS = """
from torch import nn

def build(inputs=64, outputs=10):
    return nn.Sequential(nn.Linear(64, 4), nn.BatchNorm1d(4), nn.Linear(4, 10))

def largest(z, y):
    return z.max()
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    linear = {"model_options": {"widths": []}, "updates": 40, "threads": 1, "split_seed": 0}
    with cpu_threads(1):
        for name, options in {
            "sb": {"batch_size": 60, "checkpoint_losses": [2.25, 2.2]},
            "lb": {"batch_size": 600},
            "other": {"batch_size": 300, "seed": 1},
            "wide": {"batch_size": 300, "model_options": {"widths": [4]}},
        }.items():
            sh.save(folder / f"{name}.h5", train(TrainConfig(**linear | options)))
    return folder


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for path in trained.iterdir():
        shutil.copy(path, tmp_path)
    (tmp_path / "plane_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_plane_is_the_librarys_and_a_second_request_is_already_done(here: Path, ask: Ask) -> None:
    code, out, _ = ask("plane", "sb.h5", *SMALL, "--mark", "lb.h5", "--path")
    assert code == 0
    found = sh.load("sb.plane.h5")
    assert isinstance(found, Plane)
    run, lb = sh.load("sb.h5"), sh.load("lb.h5")
    assert isinstance(run, sh.Run)
    assert isinstance(lb, sh.Run)
    parts = {part: sh.objective_of(run, split=part) for part in ("train", "test")}
    rows = sh.directions.filter_normalized(parts["train"], 2, point=run.end)
    want = sh.plane(
        parts,
        run.end,
        *rows,
        alphas=torch.linspace(-1, 1, 3).double(),
        betas=torch.linspace(-1, 1, 5).double(),
        path=run,
        solutions={"lb": lb.end},
    )
    for name, values in want.values.items():
        assert torch.equal(found.values[name], values)
    assert found.values["train_loss"][1, 2] == run.history["train_loss"][-1]
    assert torch.equal(found.path, want.path)
    assert torch.equal(found.solution_distances, want.solution_distances)
    assert found.axes == ["random direction 1", "random direction 2"]
    assert found.spec["directions"]["normalization"] == "filter"
    before = Path("sb.plane.h5").read_bytes()
    code, again, told = ask("plane", "sb.h5", *SMALL, "--mark", "lb.h5", "--path")
    assert (code, again) == (0, out)
    assert "already done" in told
    assert Path("sb.plane.h5").read_bytes() == before
    code, _, told = ask("plane", "sb.h5", *SMALL, "--seed", "1")
    assert code == 2
    assert "another request" in told


def test_principal_axes_hold_the_training_and_its_end_is_a_point_of_the_grid(
    here: Path, ask: Ask
) -> None:
    code, _, told = ask("plane", "sb.h5", "--directions", "principal", "--examples", "50")
    assert code == 0, told
    found = sh.load("sb.principal.plane.h5")
    assert isinstance(found, Plane)
    assert len(found.path) == 4
    for i, grid in enumerate((found.alphas, found.betas)):
        assert len(grid) == 25
        assert (grid == 0).any()
        assert grid[0] < found.path[:, i].min()
        assert grid[-1] > found.path[:, i].max()
    assert 0.9 < float(found.explained.sum()) <= 1.0 + 1e-9


def test_the_plane_through_three_has_them_at_its_corners(here: Path, ask: Ask) -> None:
    grid = "--alphas=0:1:2"
    code, _, told = ask("plane", "--through", "sb.h5", "lb.h5", "other.h5", grid)
    assert code == 0, told
    found = sh.load("sb-lb-other.plane.h5")
    assert isinstance(found, Plane)
    assert found.solutions == ["lb", "other"]
    torch.testing.assert_close(found.solution_points, torch.eye(2).double(), atol=1e-6, rtol=0)
    corners = [found.values["train_loss"][0, 0]]
    corners += [found.values["train_loss"][1, 0], found.values["train_loss"][0, 1]]
    for name, corner in zip(("sb", "lb", "other"), corners, strict=True):
        run = sh.load(f"{name}.h5")
        assert isinstance(run, sh.Run)
        assert float(corner) == pytest.approx(float(run.history["train_loss"][-1]), rel=1e-6)


def test_a_map_of_convexity_tells_residuals_and_is_drawn(here: Path, ask: Ask) -> None:
    code, out, _ = ask("plane", "sb.h5", "--convexity", "--alphas=-1:1:3", "--examples", "50")
    assert code == 0
    assert "residual at most" in out
    found = sh.load("sb.convexity.h5")
    assert isinstance(found, Convexity)
    assert found.smallest.shape == (3, 3)
    assert found.smallest_converged.all()
    assert (found.ratio > -1e-3).all()  # cross-entropy of a linear model is convex
    assert ask("plot", "sb.convexity.h5")[0] == 0
    assert Path("sb.convexity.png").stat().st_size > 1000


def test_a_metric_of_the_user_is_a_value_of_the_plane_and_part_of_the_request(
    here: Path, ask: Ask
) -> None:
    call = ("plane", "sb.h5", *SMALL, "--metric", "plane_nets:largest")
    assert ask(*call)[0] == 0
    found = sh.load("sb.plane.h5")
    assert isinstance(found, Plane)
    assert {"train_largest", "test_largest"} <= found.values.keys()
    Path("plane_nets.py").write_text(NETS.replace("z.max()", "z.min()"))
    code, _, told = ask(*call)
    assert code == 2
    assert "plane_nets:largest" in told


def test_a_network_with_batchnorm_is_taken_by_its_policies(here: Path, ask: Ask) -> None:
    own = ["--model", "plane_nets:build"]
    for name, seed in (("a", "0"), ("b", "1"), ("c", "2")):
        assert (
            ask("train", *own, "--seed", seed, "--split-seed=0", "--updates=5", "-o", f"{name}.h5")[
                0
            ]
            == 0
        )
    assert ask("plane", "a.h5", *own, *SMALL)[0] == 0
    code, _, told = ask("plane", "--through", "a.h5", "b.h5", "c.h5", *own, "--alphas=0:1:2")
    assert code == 0, told
    alone, three = sh.load("a.plane.h5"), sh.load("a-b-c.plane.h5")
    assert isinstance(alone, Plane)
    assert isinstance(three, Plane)
    assert (alone.spec["batch_norm"], three.spec["batch_norm"]) == ("frozen", "reestimate")
    code, out, _ = ask("show", "a-b-c.plane.h5")
    assert code == 0
    assert "BatchNorm reestimate, 1 layers" in out
    frozen = [*own, "--alphas=0:1:2", "--bn", "frozen", "-o", "x.h5"]
    code, _, told = ask("plane", "--through", "a.h5", "b.h5", "c.h5", *frozen)
    assert code == 2
    assert "frozen needs the same running statistics" in told


def test_planes_with_one_output_are_one_picture(here: Path, ask: Ask) -> None:
    for name in ("sb", "lb"):
        assert ask("plane", f"{name}.h5", *SMALL)[0] == 0
    planes = ["sb.plane.h5", "lb.plane.h5"]
    assert ask("plot", *planes, "-o", "both.svg", "--kind", "heat", "--value", "test_loss")[0] == 0
    assert Path("both.svg").read_text().count("<!-- sb.plane -->") == 1
    for call, words in (
        (["plot", "sb.h5", "--kind", "heat"], "--kind is for planes"),
        (["plot", "sb.h5", "sb.plane.h5", "-o", "x.png"], "-o names one picture"),
        (["plot", "sb.plane.h5", "--value", "gain"], "got 'gain'"),
    ):
        code, _, told = ask(*call)
        assert code == 2
        assert words in told


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ([], "RUN or --through A B C, got neither"),
        (["sb.h5", "--through", "sb.h5", "lb.h5", "other.h5"], "got both"),
        (["--through", "sb.h5", "lb.h5", "lb.h5"], "not on one line"),
        (["--through", "sb.h5", "sb.h5", "lb.h5"], "the same again"),
        (["--through", "sb.h5", "lb.h5", "wide.h5"], "one architecture"),
        (["--through", "sb.h5", "lb.h5", "other.h5", "--ignore", "bias"], "--ignore is for"),
        (["--through", "sb.h5", "lb.h5"], "requires 3 arguments"),
        (["sb.h5", "--mark", "wide.h5"], "wide.h5"),
        (["sb.h5", "--mark", "nosuch.h5"], "nosuch.h5"),
        (["lb.h5", "--directions", "principal"], "a trajectory of 2"),
        (["sb.h5", "--directions", "sideways"], "sideways"),
        (["sb.h5", "--alphas=1:0:3"], "START below END"),
        (["sb.h5", "--alphas=0:1:1"], "2 to 1000000 points"),
        (["sb.h5", "--alphas=0:1:2000"], "at most 1,000,000 points"),
        (["sb.h5", "--normalize", "spectral"], "spectral"),
        (["sb.h5", "--ignore", "weights"], "weights"),
        (["sb.h5", "--metric", "largest"], "MODULE:FUNCTION"),
        (["sb.h5", "--metric", "plane_nets:gone"], "gone"),
        (["sb.h5", "--metric", "plane_nets:accuracy"], "new names"),
        (["sb.h5", "--convexity", "--path"], "eigenvalues alone"),
        (["sb.h5", "--split", "test"], "--split"),
    ],
)
def test_a_wrong_request_gets_one_line_and_no_file(
    call: list[str], words: str, here: Path, ask: Ask
) -> None:
    before = sorted(path.name for path in here.iterdir() if path.suffix == ".h5")
    code, out, told = ask("plane", *call)
    assert (code, out) == (2, "")
    assert len(told.splitlines()) == 1
    assert words in told
    assert sorted(path.name for path in here.iterdir() if path.suffix == ".h5") == before
