"""``sharpness classes`` saves what the library computes; words and figure tell what is there."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click import unstyle
from matplotlib.axes import Axes
from sharpness.cli.class_words import classes, classes_summary
from torch import Tensor

import sharpness as sh
from sharpness import journal, plots
from sharpness.results import ClassStructure, Run
from sharpness.store import load_as
from sharpness.training import TrainConfig, cpu_threads, train

Ask = Callable[..., tuple[int, str, str]]
NAN = float("nan")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with cpu_threads(1):
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    config = TrainConfig(model_options={"widths": []}, batch_size=100, epochs=5, threads=1)
    sh.save(folder / "sb.h5", train(config))
    return folder / "sb.h5"


@pytest.fixture
def run(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sb.h5").write_bytes(made.read_bytes())
    return load_as("sb.h5", Run)


@pytest.fixture(scope="module")
def found(made: Path) -> ClassStructure:
    with cpu_threads(1):
        return sh.class_structure(sh.objective_of(load_as(made, Run)), k=14)


def test_a_class_structure_is_that_of_the_library(run: Run, ask: Ask) -> None:
    options = ["--split=test", "--examples=200", "--seed=4", "-k12", "--no-cross", "--engine=fresh"]
    code, out, err = ask("classes", "sb.h5", *options, "--tol=1e-3")
    assert code == 0, err
    assert "10 classes; 9 outliers" in out
    f = sh.objective_of(run, split="test", examples=200, seed=4)
    wanted = sh.class_structure(f, k=12, cross=False, engine="fresh", tol=1e-3, seed=4)
    there = load_as("sb.test.classes.h5", ClassStructure)
    for name in ("values", "gram", "overlaps", "gradient_shares", "hessian_values"):
        assert torch.equal(getattr(there, name).nan_to_num(), getattr(wanted, name).nan_to_num())
    assert there.spec == wanted.spec
    assert len(there.pair_values) == 0
    assert not Path("sb.test.classes.h5.part").exists()


def test_one_that_was_stopped_goes_on_and_gives_the_same_bytes(
    run: Run, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["classes", "sb.h5", "-k11", "-q", "--examples=200"]
    assert ask(*command)[0] == 0
    wanted = Path("sb.classes.h5").read_bytes()
    Path("sb.classes.h5").unlink()
    put = journal.Journal.__setitem__

    def stopping(self: Any, key: str, value: Tensor) -> None:
        put(self, key, value)
        if key == "class 3":
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "__setitem__", stopping)
        assert ask(*command)[0] == 143
    monkeypatch.setattr(sh.Hessian, "__matmul__", None)  # no product is computed again
    assert ask(*command)[0] == 0
    assert Path("sb.classes.h5").read_bytes() == wanted


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["-k", "0"], 2, "at least 1"),
        (["-k", "651"], 2, "k=651"),
        (["--tol", "0"], 2, "above 0"),
        (["--engine", "none"], 2, "engine"),
        (["--engine", "finite-difference"], 2, "finite-difference"),
    ],
)
def test_a_wrong_request_gets_one_line(
    options: list[str], code: int, said: str, run: Run, ask: Ask
) -> None:
    status, out, err = ask("classes", "sb.h5", "-q", *options)
    assert (status, out) == (code, "")
    assert said in err
    assert len(err.splitlines()) == 1
    assert not list(Path().glob("*.classes.h5*"))


# ---- words -------------------------------------------------------------------------------------


def test_the_words_have_the_numbers(found: ClassStructure) -> None:
    words = "\n".join(classes(found))
    assert f"10 classes; {found.outliers} outliers" in words
    assert f"{float(found.values[0]):.6g}" in words
    assert f"{float(found.mean_values[0]):.6g}" in words
    assert f"{float(found.pair_values[0]):.6g}" in words
    assert f"{found.products} products, {found.check_products} more" in words
    assert f"{found.backward_passes} backward passes" in words
    share = float(found.gradient_shares[0])
    assert f"{share:.4f} +- " in words
    assert f"{found.outliers} outliers" in classes_summary(found)


def test_what_is_unknown_is_told(found: ClassStructure) -> None:
    drowned = replace(found, gradient_rounding=found.gradient_norm)
    assert "its shares are unknown" in "\n".join(classes(drowned))
    gram, weights = found.gram.clone(), found.class_weights.clone()
    gram[7], gram[:, 7], weights[7] = NAN, NAN, 0.0
    absent = replace(found, gram=gram, class_weights=weights)
    words = classes(absent)
    assert "without an example of 7" in words[1]
    (row,) = [line for line in words if line.startswith("7  ") and "unknown" in line]
    assert row.count("unknown") == 4
    values = 1 / torch.arange(2, 16).double()
    assert (
        "1 outlier, by the largest ratio of neighbors, 1.5, hardly a gap"
        in classes(replace(found, values=values))[1]
    )
    assert "hardly" not in classes(found)[1]
    none = replace(found, values=0 * found.values)
    assert "no outliers" in classes(none)[1]


def test_machines_get_the_same(run: Run, ask: Ask) -> None:
    code, out, _ = ask("classes", "sb.h5", "-k3", "--no-cross", "--json", "-q")
    assert code == 0
    told = json.loads(unstyle(out))
    assert told["gradient_shares"][2] is None  # of the last, no gap is known
    assert len(told["gram"]) == 10


# ---- figure ------------------------------------------------------------------------------------


def drawn(found: ClassStructure) -> tuple[Axes, Axes]:
    left, right, *_ = plots.drawn(found).axes
    return left, right


def curve(ax: Axes, label: str) -> Any:
    (line,) = [line for line in ax.get_lines() if line.get_label() == label]
    return line


def test_the_left_has_the_eigenvalues_by_rank(found: ClassStructure) -> None:
    left, _ = drawn(found)
    assert left.get_yscale() == "log"
    for label, values in (
        ("$G$", found.values),
        ("$G_1 + G_2$, pairs of classes", found.pair_values[:14]),
        ("$G_1$, class means", found.mean_values),
    ):
        x, y = curve(left, label).get_data()
        values = values.double()
        kept = values > 1e-6 * found.values.double().max()
        assert np.array_equal(y, values[kept].numpy())
        assert list(x) == list(range(1, len(x) + 1))
    assert curve(left, "C = 10").get_xdata()[0] == 10.5
    gap = f"largest ratio after {found.outliers}: {found.gap:.3g}"
    assert curve(left, gap).get_xdata()[0] == found.outliers + 0.5


def test_eigenvalues_that_did_not_converge_are_hollow(found: ClassStructure) -> None:
    some = found.converged.clone()
    some[2] = False
    left, _ = drawn(replace(found, converged=some))
    hollow = curve(left, "$G$, not converged")
    assert list(hollow.get_xdata()) == [3]
    assert hollow.get_markerfacecolor() == "white"
    assert any("(not converged)" in str(line.get_label()) for line in left.get_lines())


def test_the_right_has_the_cosines_with_white_at_0(found: ClassStructure) -> None:
    gram = found.gram.clone()
    gram[7], gram[:, 7] = NAN, NAN
    weights = found.class_weights.clone()
    weights[7] = 0.0
    _, right = drawn(replace(found, gram=gram, class_weights=weights))
    (image,) = right.get_images()
    shown = image.get_array()
    assert shown is not None
    cosines = replace(found, gram=gram).cosines.numpy()
    assert np.array_equal(np.ma.filled(shown, NAN), cosines, equal_nan=True)
    assert image.get_clim() == (-1, 1)
    low, middle, high = (image.get_cmap()(x) for x in (0.0, 0.5, 1.0))
    assert min(middle[:3]) > 0.9
    assert low != high
    assert "gray: without an example" in right.get_xlabel()
    assert [text.get_text() for text in right.get_xticklabels()] == list("0123456789")


def test_many_classes_are_labeled_now_and_then(found: ClassStructure) -> None:
    count = 50
    gram = torch.eye(count).double()
    many = replace(found, gram=gram, class_weights=torch.ones(count) / count)
    _, right = drawn(many)
    assert len(right.get_xticks()) == 17
    assert not right.texts
