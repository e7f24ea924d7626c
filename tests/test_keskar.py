"""The recipe keskar: its files hold what its table says, and its sentences what the table shows."""

import importlib
import math
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from sharpness.cli import main
from sharpness.experiments import RECIPES, recipe, trainings, verdict
from sharpness.experiments.keskar import Design, is_done, run

import sharpness as sh
from sharpness import plots
from sharpness.analyses import ANALYSES
from sharpness.comparison import compared
from sharpness.names import GIVEN
from sharpness.training import cpu_threads

# With clean labels the small batch meets the loss after 414 and 366 updates: the first seed's run
# ends at the cap.
TINY = Design(seeds=2, model_options={"widths": [8]}, level=1.5, updates=390)
ARMS = {"sb": "SB 8", "lb": "LB 600", "lb-sqrt": "LB 600, rate x8.66"}
ENDINGS = (".h5", ".lambda-1.h5", ".adaptive-lambda-1.h5", ".metric-2-1-1e-3.h5", ".along.h5")
PICTURES = ("sharpness.png", "along.png", "line.png", "eigenvalues.png")
STEPS = ("train", "eigsh", "along_training", "line")
NETS = """
import torch


def points():
    x = torch.linspace(-1, 1, 30)[:, None]
    return (x[::2], x[::2].sin()), (x[1::2], x[1::2].sin())


def squares(outputs, targets):
    return (outputs - targets).square().mean()
"""
CURVE = Design(
    model_options={"widths": [4]},
    data="nets:points",
    loss="nets:squares",
    seeds=2,
    batch_sizes=[3, 15],
    level=0.2,
    rates=[1e-2],
    updates=500,
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with cpu_threads(1):
        yield


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keskar") / "deep" / "tiny"
    run(folder, TINY)
    return folder


@pytest.fixture
def made(original: Path, tmp_path: Path) -> Path:
    """A copy of all that the recipe made, to be spoiled."""
    shutil.copytree(original, tmp_path / "made")
    return tmp_path / "made"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The steps that the recipe takes, in order."""
    taken: list[str] = []

    def counted(name: str, step: Any, *args: Any, **options: Any) -> Any:
        taken.append(name)
        return step(*args, **options)

    for name in STEPS:
        monkeypatch.setattr(trainings, name, partial(counted, name, getattr(trainings, name)))
    return taken


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "nets.py").write_text(NETS)
    importlib.invalidate_caches()
    yield tmp_path
    sys.modules.pop("nets", None)
    GIVEN.clear()


def names(conditions: tuple[str, ...], seeds: int) -> set[str]:
    runs = {
        f"{condition}/{arm}-{seed}{ending}"
        for condition in conditions
        for arm in ARMS
        for seed in range(seeds)
        for ending in ENDINGS
    }
    lines = {f"{c}/sb-0-{arm}-0.line.h5" for c in conditions for arm in ("lb", "lb-sqrt")}
    lines |= {f"{c}/{arm}-0.eigs.h5" for c in conditions for arm in ARMS}
    return {*runs, *lines, *PICTURES, "summary.txt", "comparison.h5"}


def contents(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


# ---- the files -----------------------------------------------------------------------------


def test_the_folder_holds_every_file_of_the_design_and_no_other(original: Path) -> None:
    files = contents(original)
    assert files.keys() == names(("clean", "noisy"), 2)
    assert all(files[name].startswith(b"\x89PNG\r\n\x1a\n") for name in PICTURES)
    assert files["summary.txt"].decode() == f"{verdict.summary(load(original))}\n"


def load(folder: Path) -> sh.Comparison:
    found = sh.load(folder / "comparison.h5")
    assert isinstance(found, sh.Comparison)
    return found


def test_the_table_says_what_the_files_of_the_runs_hold(original: Path) -> None:
    found = load(original)
    assert found.groups == [f"{c}, {name}" for c in ("clean", "noisy") for name in ARMS.values()]
    for i, (condition, arm) in enumerate((c, a) for c in ("clean", "noisy") for a in ARMS):
        for seed in range(2):
            stem = original / condition / f"{arm}-{seed}"
            parts: list[Any] = [sh.load(f"{stem}{ending}") for ending in ENDINGS]
            made, pairs, adaptive, box, _ = parts
            f, test = sh.objective_of(made), sh.objective_of(made, split="test")
            assert not found.spec["unconverged"]
            v, u = pairs.vectors[0], adaptive.vectors[0]
            there = sh.Solution(made.end.theta + box.displacement, made.end.buffers)
            here, top = (float(f.value(point)) for point in (made.end, there))
            want = {
                "lambda_1": float(v @ (sh.Hessian(f) @ v)),
                "adaptive_lambda_1": float(u @ (sh.AdaptiveHessian(f) @ u)),
                "metric_2_1_1e-3": 100 * (top - here) / (1 + here),
                "train_loss": here,
                "test_loss": float(test.value(made.end)),
                "train_accuracy": 100 * float(f.evaluate(made.end)["accuracy"]),
                "test_accuracy": 100 * float(test.evaluate(made.end)["accuracy"]),
                "distance": float((made.end.theta - made.start.theta).norm()),
                "updates": made.updates,
            }
            for measure, number in want.items():
                # float32, products of which round at some 1e-7 of lambda_1
                assert float(found.values[measure][i, seed]) == pytest.approx(number, rel=1e-4)
            assert bool(found.reached[i, seed]) == (here <= 1.5)
            assert (made.updates < 390) == (here <= 1.5)


def test_all_runs_of_a_seed_share_split_and_start_and_differ_in_one_thing(original: Path) -> None:
    for seed in range(2):
        loaded: dict[str, Any] = {
            f"{c}, {arm}": sh.load(original / c / f"{arm}-{seed}.h5")
            for c in ("clean", "noisy")
            for arm in ARMS
        }
        for one, other in pairwise(loaded.values()):
            assert torch.equal(one.start.theta, other.start.theta)
            assert torch.equal(one.train_index, other.train_index)
        records = {name: made.spec["train"] for name, made in loaded.items()}
        for name, record in records.items():
            condition, arm = name.split(", ")
            assert record["label_noise"] == (0.2 if condition == "noisy" else 0)
            assert record["batch_size"] == (8 if arm == "sb" else 600)
            rate = 1e-3 * math.sqrt(600 / 8) if arm == "lb-sqrt" else 1e-3
            assert record["learning_rate"] == pytest.approx(rate)
            assert record["seed"] == record["order_seed"] == record["split_seed"] == seed


def test_the_intervals_are_scipys_over_the_pairs_that_met_the_loss(original: Path) -> None:
    found = load(original)
    assert {True, False} <= set(found.reached[0].tolist())  # else the cap is not tested
    assert found.pairs.max() == 2
    for row, contrast in enumerate(found.contrasts):
        condition, names = contrast.split(": ")
        i, j = (found.groups.index(f"{condition}, {name}") for name in names.split(" / "))
        both = found.reached[i] & found.reached[j]
        assert found.pairs[row] == both.sum()
        for measure in ("lambda_1", "metric_2_1_1e-3", "test_loss", "distance"):
            numbers = found.values[measure].log()
            got = found.ratios[f"{measure}_ratio"][row].log()
            require_paired(got, numbers[i][both], numbers[j][both])
        numbers = found.values["test_accuracy"]
        got = found.differences["test_accuracy_difference"][row]
        require_paired(got, numbers[j][both], numbers[i][both])
    assert len(found.contrasts) == 6


def require_paired(got: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """Mean, low and high are those of a - b over the pairs, and unknown where there are too few."""
    if len(a):
        assert float(got[0]) == pytest.approx(float((a - b).mean()))
    if len(a) > 1:
        bounds = stats.ttest_rel(a.numpy(), b.numpy()).confidence_interval(0.95)
        assert got[1:].tolist() == pytest.approx([bounds.low, bounds.high])
    assert int(got.isnan().sum()) == {0: 3, 1: 2}.get(len(a), 0)


def test_runs_at_the_cap_are_named_in_the_summary_and_left_out_of_its_means(original: Path) -> None:
    found = load(original)
    text = verdict.summary(found)
    for i, group in enumerate(found.groups):
        met = found.reached[i]
        missed = int((~met).sum())
        note = f"{missed} of 2 runs of {group} did not meet the training loss"
        assert (note in text) == (missed > 0)
        row = next(line for line in text.splitlines() if line.startswith(f"{group}  "))
        numbers = found.values["lambda_1"][i][met].log()
        mean = f"{math.exp(float(numbers.mean())):.3g}" if len(numbers) else "unknown"
        assert row.removeprefix(group).split()[0] == mean


def test_a_regression_has_no_accuracy_and_no_wrong_labels(
    nets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []

    def seen(made: Any, picture: Any = plots.png) -> bytes:
        drawn.append(made)
        return picture(made)

    monkeypatch.setattr(plots, "png", seen)
    found = run(nets / "out", CURVE)
    assert found.reached.all()
    assert contents(nets / "out").keys() == names(("clean",), 2)
    assert not any("accuracy" in measure for measure in found.values)
    assert not any("accuracy" in measure for measure in found.differences)
    text = (nets / "out" / "summary.txt").read_text()
    assert "test loss" in text
    labels = [
        word
        for made in drawn
        for ax in made.axes
        for word in (
            ax.get_xlabel(),
            ax.get_ylabel(),
            ax.get_title(),
            *ax.get_legend_handles_labels()[1],
        )
    ]
    assert len(drawn) == 4
    for words in (text, *labels):
        assert "accuracy" not in words.lower()
        assert "label" not in words.lower()
        assert "noisy" not in words.lower()


# ---- the same design again -----------------------------------------------------------------


def test_the_same_design_again_computes_nothing(made: Path, calls: list[str]) -> None:
    before, stamps = contents(made), {p: p.stat().st_mtime_ns for p in made.rglob("*.*")}
    assert is_done(made, TINY)
    found = run(made, TINY)
    assert not calls
    assert contents(made) == before
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert verdict.summary(found) == verdict.summary(load(made))


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("clean/lb-1.h5", ["train"]),
        ("noisy/lb-0.eigs.h5", ["eigsh"]),
        ("noisy/lb-sqrt-1.metric-2-1-1e-3.h5", []),
        ("noisy/sb-1.along.h5", ["along_training"]),
        ("clean/sb-0-lb-0.line.h5", ["line"]),
        ("sharpness.png", []),
        ("summary.txt", []),
        ("comparison.h5", []),
    ],
)
def test_one_missing_file_is_computed_again_and_no_other(
    name: str, steps: list[str], made: Path, calls: list[str]
) -> None:
    before = contents(made)
    (made / name).unlink()
    assert not is_done(made, TINY)
    run(made, TINY)
    assert calls == steps
    assert contents(made) == before


def test_another_design_is_refused_by_name_until_it_may_replace(
    made: Path, calls: list[str]
) -> None:
    before = contents(made)
    other = Design(**{**vars(TINY), "epsilon": 2e-3})
    with pytest.raises(sh.InputError, match=r"\(epsilon 0.001 there, 0.002 asked for\)"):
        run(made, other)
    with pytest.raises(sh.InputError, match=r"epsilon 0.001 there"):
        is_done(made, other)
    assert contents(made) == before
    found = run(made, other, overwrite=True)
    assert set(calls) == {"along_training"}
    assert found.spec["design"]["epsilon"] == 2e-3
    after = contents(made)
    new = {name for name in names(("clean", "noisy"), 2) if name.endswith("metric-2-1-1e-3.h5")}
    assert after.keys() - before.keys() == {name.replace("1e-3", "2e-3") for name in new}
    kept = {name for name in before if name.endswith((".eigs.h5", ".line.h5", "0.h5", "1.h5"))}
    assert {name for name in kept if after[name] != before[name]} == set()


def test_a_damaged_file_is_an_error_that_names_it(made: Path) -> None:
    path = made / "clean" / "lb-0.eigs.h5"
    path.write_bytes(path.read_bytes()[:-1])
    (made / "comparison.h5").unlink()
    with pytest.raises(sh.ComputationError, match=r"lb-0\.eigs\.h5"):
        run(made, TINY)


@pytest.mark.parametrize(
    "changed",
    [
        {"seeds": 0},
        {"design": "nosuch"},
        {"batch_sizes": [0, 600]},
        {"batch_sizes": [600, 600]},
        {"batch_sizes": [600, 8]},
        {"batch_sizes": [8, 601]},
        {"batch_sizes": [8]},
        {"batch_sizes": [8, 60, 600]},
        {"design": "batch-rate", "batch_sizes": [8]},
        {"design": "batch-rate", "rates": []},
        {"noise": 1.0},
        {"noise": -0.1},
        {"level": 0.0},
        {"level": math.inf},
        {"updates": 0},
        {"rates": [-1.0]},
        {"rates": [1e-3, 1e-2]},
        {"epsilon": 0.0},
        {"model": "nosuch"},
    ],
    ids=str,
)
def test_a_design_that_cannot_be_met_is_refused_and_leaves_nothing(
    changed: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(sh.InputError):
        run(tmp_path / "new", Design(**{**vars(TINY), **changed}))
    assert not list(tmp_path.iterdir())


# ---- the verdict ---------------------------------------------------------------------------

TWICE = [2.0, 2.2, 1.8, 2.0, 2.1]  # ratios with an interval above 1
HALF = [1 / x for x in TWICE]
EVEN = [0.5, 2.0, 1.0, 0.8, 1.25]
UP, DOWN, FLAT = (
    [2.0, 2.2, 1.8, 2.1, 2.0],
    [-2.0, -2.2, -1.8, -2.1, -2.0],
    [-1.0, 1.0, 0, -0.5, 0.5],
)


def planted(
    *,
    sharper: list[float],
    gap: list[float],
    rate: list[float],
    noisy: list[float] | None = None,
    reached: list[bool] | None = None,
    labels: bool = True,
) -> sh.Comparison:
    """The comparison of runs with these ratios LB / SB, gaps SB - LB and effects of the rate."""
    count = len(sharper)
    values: dict[str, dict[str, list[float]]] = {}
    met: dict[str, list[bool]] = {}
    conditions = {"clean": 0.0} | ({"noisy": 0.2} if noisy else {})
    for condition in conditions:
        ratios = noisy if noisy and condition == "noisy" else sharper
        large = [3 * x for x in ratios]
        scaled = [x * y for x, y in zip(large, rate, strict=True)]
        for name, numbers in zip(ARMS.values(), ([3.0] * count, large, scaled), strict=True):
            group = f"{condition}, {name}"
            for measure in ("lambda_1", "metric_2_1_1e-3"):
                values.setdefault(measure, {})[group] = numbers
            lost = [0.0] * count if name == ARMS["sb"] else gap
            if labels:
                values.setdefault("test_accuracy", {})[group] = [90 - x for x in lost]
            values.setdefault("test_loss", {})[group] = [math.exp(x) for x in lost]
            met[group] = reached if reached and name == ARMS["sb"] else [True] * count
    contrasts = {
        f"{c}: {ARMS[one]} / {ARMS[other]}": (f"{c}, {ARMS[one]}", f"{c}, {ARMS[other]}")
        for c in conditions
        for one, other in (("lb", "sb"), ("lb-sqrt", "sb"), ("lb-sqrt", "lb"))
    }
    rates = {"sb": 1e-3, "lb": 1e-3, "lb-sqrt": 8.66e-3}
    sizes = {"sb": 8, "lb": 600, "lb-sqrt": 600}
    return compared(
        values,
        met,
        range(count),
        contrasts,
        spec={
            "recipe": "keskar",
            "design": {
                "design": "pair",
                "level": 0.01,
                "model": "mlp",
                "data": "digits",
                "loss": "l",
            }
            | {"epsilon": 1e-3},
            "conditions": conditions,
            "arms": [
                {"key": k, "name": n, "batch_size": sizes[k], "learning_rate": rates[k]}
                for k, n in ARMS.items()
            ],
            "unconverged": 0,
        },
    )


def interval(numbers: list[float], ratio: bool) -> str:
    """SciPy's interval as the sentences show it."""
    x = torch.tensor(numbers, dtype=torch.float64)
    x = x.log() if ratio else x
    low, high = stats.t.interval(0.95, len(x) - 1, float(x.mean()), stats.sem(x.numpy()))
    shown = [math.exp(v) if ratio else v for v in (float(x.mean()), low, high)]
    return "{:.2f} [{:.2f}, {:.2f}]".format(*shown)


@pytest.mark.parametrize(
    ("ratios", "words", "shown", "claimed"),
    [
        (TWICE, "is larger", True, True),
        (HALF, "is smaller", True, False),
        (EVEN, "no difference", False, False),
    ],
)
def test_a_measure_is_said_to_differ_where_its_interval_leaves_out_1(
    ratios: list[float], words: str, shown: bool, claimed: bool
) -> None:
    found = verdict.check(planted(sharper=ratios, gap=UP, rate=EVEN))
    for finding, measure in zip(found, ("lambda_1", "Metric 2.1"), strict=False):
        assert measure in finding.sentence
        assert words in finding.sentence
        assert interval(ratios, ratio=True) in finding.sentence
        assert (finding.shown, finding.as_claimed) == (shown, claimed)


@pytest.mark.parametrize(
    ("gap", "words", "shown", "claimed"),
    [
        (UP, "is above", True, True),
        (DOWN, "is below", True, False),
        (FLAT, "no generalization gap is shown", False, False),
    ],
)
def test_the_gap_is_test_accuracy_of_the_small_batch_minus_the_large_ones(
    gap: list[float], words: str, shown: bool, claimed: bool
) -> None:
    finding = verdict.check(planted(sharper=TWICE, gap=gap, rate=EVEN))[2]
    assert words in finding.sentence
    assert f"{interval(gap, ratio=False)} points" in finding.sentence
    assert (finding.shown, finding.as_claimed) == (shown, claimed)


def test_without_an_accuracy_generalization_is_the_test_loss() -> None:
    for gap, words, claimed in ((UP, "larger", True), (DOWN, "smaller", False)):
        found = planted(sharper=TWICE, gap=gap, rate=EVEN, labels=False)
        finding = verdict.check(found)[2]
        assert "test loss" in finding.sentence
        assert words in finding.sentence
        assert finding.as_claimed == claimed
        assert "accuracy" not in verdict.summary(found)


@pytest.mark.parametrize(
    ("sharper", "gap", "noisy", "holds"),
    [
        (TWICE, UP, None, True),
        (TWICE, UP, TWICE, True),
        (TWICE, UP, EVEN, False),
        (TWICE, FLAT, None, False),
        (EVEN, UP, None, False),
        (HALF, DOWN, None, False),
    ],
)
def test_the_claim_holds_where_all_its_parts_are_shown(
    sharper: list[float], gap: list[float], noisy: list[float] | None, holds: bool
) -> None:
    found = verdict.check(planted(sharper=sharper, gap=gap, rate=EVEN, noisy=noisy))
    whole = found[-2]
    assert "claim" in whole.sentence
    assert whole.as_claimed == holds
    assert len(found) == (8 if noisy else 5)


@pytest.mark.parametrize(
    ("rate", "shown"), [(HALF, True), (TWICE, True), (EVEN, False)], ids=["less", "more", "none"]
)
def test_the_rate_is_said_to_matter_where_its_interval_leaves_out_1(
    rate: list[float], shown: bool
) -> None:
    finding = verdict.check(planted(sharper=TWICE, gap=UP, rate=rate))[-1]
    assert "8.66" in finding.sentence
    assert finding.sentence.count(interval(rate, ratio=True)) == 2
    assert ("no effect shown" in finding.sentence) != shown
    assert finding.shown == shown


@pytest.mark.parametrize("reached", [None, [False]], ids=["one pair", "no pair"])
def test_one_seed_leaves_every_answer_unknown(reached: list[bool] | None) -> None:
    found = planted(sharper=[9.0], gap=[9.0], rate=[9.0], reached=reached)
    *judged, claim, rate = verdict.check(found)
    assert len(judged) == 3
    assert all("unknown" in finding.sentence for finding in judged)
    # What is not known does not fail either.
    assert "unknown" in claim.sentence
    assert "in no part" not in claim.sentence
    assert "unknown" in rate.sentence
    assert not any(f.shown or f.as_claimed for f in (*judged, claim, rate))


def test_a_pair_that_missed_the_loss_counts_in_no_sentence() -> None:
    spoiled = planted(
        sharper=[*TWICE, 1e6], gap=[*UP, 50.0], rate=[*EVEN, 1.0], reached=[True] * 5 + [False]
    )
    clean = planted(sharper=TWICE, gap=UP, rate=EVEN)
    sentences = [[f.sentence for f in verdict.check(x)][:4] for x in (spoiled, clean)]
    assert sentences[0] == sentences[1]
    assert "1 of 6 runs of clean, SB 8 did not meet the training loss" in verdict.summary(spoiled)
    assert "NOTE" not in verdict.summary(clean)


def test_the_summary_fits_a_wide_terminal_and_says_all_sentences() -> None:
    found = planted(sharper=TWICE, gap=UP, rate=HALF, noisy=EVEN)
    text = verdict.summary(found)
    flat = " ".join(text.split())
    assert all(finding.sentence in flat for finding in verdict.check(found))
    assert RECIPES["keskar"].claim in flat
    assert RECIPES["keskar"].source in flat
    assert max(map(len, text.splitlines())) <= 120
    assert "nan" not in text


# ---- the sharing of work -------------------------------------------------------------------


def test_the_first_failing_job_ends_all_in_one_process() -> None:
    done: list[int] = []

    def job(number: int, count: Any) -> None:
        done.append(number)
        count(7)
        if number == 1:
            raise sh.ComputationError("spoiled")

    told: list[tuple[Any, ...]] = []
    jobs = [partial(job, number) for number in range(3)]
    with pytest.raises(sh.ComputationError, match="spoiled"):
        recipe.share(jobs, workers=1, unit="updates", progress=lambda *x: told.append(x))
    assert done == [0, 1]
    assert told == [(1, 3, "7 updates")]


def test_the_error_of_a_worker_comes_back_and_no_worker_stays() -> None:
    with pytest.raises(TypeError):  # int("x", count)
        recipe.share([partial(int, "x")] * 3, workers=2, unit="updates")
    assert not active_children()


def test_compare_takes_the_analyses_of_the_recipe_as_they_are(
    made: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = contents(made)
    with pytest.raises(SystemExit) as stop:
        main(["compare", str(made / "clean"), "--workers=1", "-q", "-o", str(made / "c.h5")])
    assert stop.value.code == 0, capfd.readouterr().err
    after = contents(made)
    assert {path: after[path] for path in before} == before
    added = {path.partition(".")[2] for path in after.keys() - before.keys()}
    assert added == {f"{name}.h5" for name in ANALYSES if f".{name}.h5" not in ENDINGS} | {"h5"}


def test_two_workers_write_the_bytes_of_one(original: Path, tmp_path: Path) -> None:
    run(tmp_path / "two", TINY, workers=2)
    assert contents(tmp_path / "two") == contents(original)
