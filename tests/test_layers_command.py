"""``sharpness layers`` saves what the library computes, goes on where it stopped, and is shown."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from sharpness.cli.show import LINES, SUMMARIES
from torch import Tensor

import sharpness as sh
from sharpness import journal, layer_plots, plots
from sharpness.curvature import Dense
from sharpness.results import Layers, Run
from sharpness.store import load_as
from sharpness.training import TrainConfig, cpu_threads, train

Ask = Callable[..., tuple[int, str, str]]
FAST = ["--probes=6", "--examples=200", "-q"]


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


def same(found: Layers, wanted: Layers) -> bool:
    names = ("traces", "trace_low", "shares", "lambda_1", "squares", "samples", "vectors")
    pairs = ((getattr(found, name), getattr(wanted, name)) for name in names)
    return all(torch.allclose(x, y, rtol=0, atol=0, equal_nan=True) for x, y in pairs)


@pytest.mark.parametrize("by", ["tensor", "module"])
def test_curvature_per_layer_is_that_of_the_library(by: str, run: Run, ask: Ask) -> None:
    code, out, err = ask("layers", "sb.h5", "--by", by, "--seed=4", "--split=test", *FAST)
    assert code == 0, err
    A = sh.Hessian(sh.objective_of(run, split="test", examples=200, seed=4))
    wanted = sh.layers(A, by=by, probes=6, seed=4)
    found = load_as("sb.test.layers.h5", Layers)
    assert same(found, wanted)
    assert found.spec["by"] == by
    lines = out.splitlines()
    assert lines[1].startswith(by)
    assert [line.split()[0] for line in lines[2 : 3 + len(found.layer)]] == [*found.layer, "whole"]
    assert not Path("sb.test.layers.h5.part").exists()
    assert ask("layers", "sb.h5", "--by", by, "--seed=4", "--split=test", *FAST)[1] == out


def test_another_operator_and_engine_are_taken(run: Run, ask: Ask) -> None:
    options = ["--operator=gauss-newton", "--engine=fresh"]
    assert ask("layers", "sb.h5", *options, *FAST)[0] == 0
    A = sh.GaussNewton(sh.objective_of(run, examples=200), engine="fresh")
    assert same(load_as("sb.layers.h5", Layers), sh.layers(A, probes=6))


def test_layers_of_some_parameters_are_their_blocks(run: Run, ask: Ask) -> None:
    assert ask("layers", "sb.h5", "--params=*.weight", *FAST)[0] == 0
    A = sh.Block(sh.Hessian(sh.objective_of(run, examples=200)), ["*.weight"])
    found = load_as("sb.layers.h5", Layers)
    assert found.layer == ["0.weight", "2.weight"]
    assert same(found, sh.layers(A, probes=6))
    code, out, err = ask("verify", "sb.layers.h5", "sb.h5")
    assert code == 0, err
    assert "2 of 2 layers and the whole" in out


def test_what_was_stopped_goes_on_and_gives_the_same_bytes(
    run: Run, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["layers", "sb.h5", *FAST]
    assert ask(*command)[0] == 0
    wanted = Path("sb.layers.h5").read_bytes()
    Path("sb.layers.h5").unlink()
    products, original, put = [0], sh.Hessian.__matmul__, journal.Journal.__setitem__

    def stopping(self: Any, key: str, value: Tensor) -> None:
        put(self, key, value)
        if key in ("layer 2.weight", "sample 0"):
            os.kill(os.getpid(), signal.SIGINT)

    def product(self: Any, v: Tensor) -> Tensor:
        products[0] += 1
        return original(self, v)

    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "__setitem__", stopping)
        assert ask(*command)[0] == 130
        code, _, err = ask("layers", "sb.h5", *FAST[:-1])
        assert code == 130
        assert "continuing from the 4 pieces" in err  # the whole and three layers
    monkeypatch.setattr(sh.Hessian, "__matmul__", product)
    assert ask(*command)[0] == 0
    assert products[0] == 1  # the second of two samples
    assert Path("sb.layers.h5").read_bytes() == wanted


@pytest.mark.parametrize(
    ("options", "code", "named"),
    [
        (["--by=layer"], 2, "needs one of tensor, module, got 'layer'"),
        (["--probes=2"], 2, "needs a whole number of at least 3, got 2"),
        (["--operator=layers"], 2, "needs one of"),
        (["--budget=0"], 2, "at least 4, got 0"),
    ],
)
def test_a_wrong_request_is_refused_in_one_line(
    options: list[str], code: int, named: str, run: Run, ask: Ask
) -> None:
    status, out, err = ask("layers", "sb.h5", *options)
    assert (status, out) == (code, "")
    assert named in err
    assert len(err.splitlines()) == 1
    assert not Path("sb.layers.h5").exists()


def test_what_did_not_converge_is_marked_where_it_is_told(run: Run, ask: Ask) -> None:
    code, out, _ = ask("layers", "sb.h5", "--budget=4", *FAST)
    assert code == 0
    assert out.count("(not converged)") == 2  # the one layer of more than 200, and the whole
    assert "2 NOT converged" in ask("list", ".")[1]
    assert "not converged" in ask("show", "sb.layers.h5")[1]
    code, out, _ = ask("show", "--json", "sb.layers.h5")
    values = json.loads(out)
    assert values["converged"] == [False, True, True, True]
    assert not values["whole_converged"]
    assert ask("verify", "sb.layers.h5", "sb.h5")[0] == 0


# ---- words and figures -------------------------------------------------------------------------


def of_many(count: int, probes: int = 12, size: int = 3) -> Layers:
    """Curvature of so many groups of a matrix, with an estimate for the first."""
    n = 201 + (count - 1) * size
    M = torch.randn(n, n).double()
    ends = [0, *range(201, n + 1, size)]
    groups = {
        f"features.{i}.convolution.weight": torch.arange(a, b)
        for i, (a, b) in enumerate(pairwise(ends))
    }
    return sh.layers(Dense(M @ M.T / n), groups=groups, probes=probes)


def test_words_tell_intervals_and_what_is_exact() -> None:
    found = of_many(3)
    first, second, _, whole = LINES[Layers](found)[2:6]
    low, high = float(found.trace_low[0]), float(found.trace_high[0])
    assert f"[{low:.2f}, {high:.2f}]" in first
    assert f"{found.traces[1]:.6g} " in second
    assert second.count("[") == 1  # of the share, whose whole is an estimate
    assert f"[{found.whole_trace_low:.2f}, {found.whole_trace_high:.2f}]" in whole
    assert "largest features.0.convolution.weight" in SUMMARIES[Layers](found)
    one = of_many(3, probes=3)
    lines = LINES[Layers](one)
    assert lines[2].count("[unknown]") == 3  # trace, share and norm
    assert "intervals unknown" in SUMMARIES[Layers](one)
    lost = replace(found, shares=found.shares * torch.nan, share_low=found.share_low * torch.nan)
    assert all(line.count("unknown") == 1 for line in LINES[Layers](lost)[2:5])


@pytest.mark.parametrize("count", [1, 2, 60])
def test_a_figure_has_a_bar_for_each_layer_and_names_that_do_not_meet(count: int) -> None:
    found = of_many(count)
    made = plots.drawn(found)
    made.draw_without_rendering()
    for ax, values in zip(made.axes, (found.traces, found.lambda_1), strict=True):
        bars = [p for p in ax.patches if isinstance(p, Rectangle)]
        assert [bar.get_width() for bar in bars] == values.tolist()
        assert [bar.get_y() + bar.get_height() / 2 for bar in bars] == pytest.approx(
            list(range(count))
        )
    labels = made.axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == found.layer
    boxes = [label.get_window_extent() for label in labels]
    for above, below in pairwise(boxes):
        assert below.y1 <= above.y0
    assert min(box.x0 for box in boxes) >= 0
    assert made.axes[0].get_ylim()[0] > made.axes[0].get_ylim()[1]  # the first is on top


def test_a_long_name_is_cut_at_its_beginning() -> None:
    found = replace(of_many(2), layer=["a" * 50 + ".weight", "b"])
    made = Figure(figsize=(6, 3), layout="constrained")
    layer_plots.layers(found, made)
    (first, second) = (label.get_text() for label in made.axes[0].get_yticklabels())
    assert (len(first), second) == (32, "b")
    assert first.startswith("...a")
    assert first.endswith(".weight")


def test_unknown_intervals_are_hollow_and_named() -> None:
    made = plots.drawn(of_many(2, probes=3))
    (legend,) = made.legends
    told = [text.get_text() for text in legend.get_texts()]
    assert "trace, interval unknown" in told
    assert "Frobenius norm, interval unknown" in told
    whiskers = [x for x in made.axes[0].containers if isinstance(x, ErrorbarContainer)]
    assert len(whiskers[0].lines[2][0].get_segments()) == 1  # of the layer that is exact
    hollow = [p for p in made.axes[0].patches if p.get_facecolor()[:3] == (1, 1, 1)]
    assert len(hollow) == 1
