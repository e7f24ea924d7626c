"""The design of batch sizes and rates: what its files hold, how a rate is chosen, what is said."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sharpness.experiments import rates, verdict
from sharpness.experiments.design import ALONG, SCALINGS, Arm, Design, arms, filled, record
from sharpness.experiments.keskar import FIGURES, _Plan, check, is_done, run, summary

import sharpness as sh
from sharpness import training_config
from sharpness.comparison import compared, effects
from sharpness.errors import InputError
from sharpness.schedules import scaled_rate
from sharpness.training import cpu_threads

TINY = Design(
    design="batch-rate",
    seeds=2,
    model_options={"widths": [8]},
    batch_sizes=[60, 600],
    rates=[3e-3, 3e-2],
    level=1.2,
    updates=150,
)
SIZES, RATES = (8, 600), (1e-3, 1e-2)
ARMS = [Arm(f"b{B}-r{r:g}", f"batch {B}, rate {r:g}", B, r) for B in SIZES for r in RATES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("rates")
    with cpu_threads(1):
        run(made, TINY)
    return made


def comparison(folder: Path) -> sh.Comparison:
    found = sh.load(folder / "comparison.h5")
    assert isinstance(found, sh.Comparison)
    return found


def test_every_arm_has_its_files_and_the_same_again_computes_nothing(folder: Path) -> None:
    endings = ("", ".lambda-1", ".adaptive-lambda-1", ".metric-2-1-1e-3", ".along")
    want = {
        f"{condition}/b{size}-r{rate:g}-{seed}{ending}.h5"
        for condition in ("clean", "noisy")
        for size in (60, 600)
        for rate in (0.003, 0.03)
        for seed in range(2)
        for ending in endings
    }
    want |= {*FIGURES["batch-rate"], "summary.txt", "comparison.h5"}
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == want
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert is_done(folder, TINY)
    run(folder, TINY)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == stamps


def test_the_rate_is_chosen_on_a_quarter_of_the_held_out_images_and_told_on_the_others(
    folder: Path,
) -> None:
    found = comparison(folder)
    i = found.groups.index("clean, batch 600, rate 0.03")
    for seed in range(2):
        made = sh.load(folder / "clean" / f"b600-r0.03-{seed}.h5")
        assert isinstance(made, sh.Run)
        f = sh.objective_of(made, split="test")
        ((inputs, targets),) = [
            (torch.cat([x for x, _ in f.batches]), torch.cat([y for _, y in f.batches]))
        ]
        right = (f.outputs(made.end, inputs).argmax(dim=1) == targets).double()
        numbers = {k: float(v[i, seed]) / 100 for k, v in found.values.items() if "accuracy" in k}
        # 297 and 900 images that together are all 1197, whichever they are
        counts = numbers["choice_accuracy"] * 297, numbers["report_accuracy"] * 900
        assert all(count == pytest.approx(round(count), abs=1e-6) for count in counts)
        assert sum(counts) == pytest.approx(float(right.sum()))


def test_a_rate_at_which_runs_missed_the_level_is_not_the_best() -> None:
    values = {
        "choice_accuracy": {
            f"clean, {arm.name}": [90.0 + arm.learning_rate * 100, 90.0] for arm in ARMS
        }
    }
    met = {group: [True, True] for group in values["choice_accuracy"]}
    assert rates.best(values, met, {"clean": 0.0}, ARMS) == {"clean": {"8": 1e-2, "600": 1e-2}}
    met["clean, batch 8, rate 0.01"] = [True, False]
    assert rates.best(values, met, {"clean": 0.0}, ARMS) == {"clean": {"8": 1e-3, "600": 1e-2}}
    # of equal ones the lower rate, and without accuracy the least loss
    same = {"choice_loss": {group: [1.0, 1.0] for group in met}}
    met = {group: [True, True] for group in met}
    assert rates.best(same, met, {"clean": 0.0}, ARMS) == {"clean": {"8": 1e-3, "600": 1e-3}}
    same["choice_loss"]["clean, batch 600, rate 0.01"] = [0.5, 0.5]
    assert rates.best(same, met, {"clean": 0.0}, ARMS)["clean"]["600"] == 1e-2


TWICE, EVEN = [2.0, 2.2, 1.8, 2.1, 2.0], [0.5, 2.0, 1.0, 0.8, 1.25]


def planted(
    effect: dict[float, list[float]], best: dict[str, Any], arms: Sequence[Arm] = ARMS
) -> sh.Comparison:
    """Five seeds in which batch 600 has these multiples of batch 8's sharpness, at each rate."""
    values: dict[str, dict[str, list[float]]] = {}
    for arm in arms:
        group = f"clean, {arm.name}"
        times = effect[arm.learning_rate] if arm.batch_size == 600 else [1.0] * 5
        for measure in ("lambda_1", "adaptive_lambda_1", "metric_2_1_1e-3", "train_loss"):
            values.setdefault(measure, {})[group] = times
        values.setdefault("report_accuracy", {})[group] = [90 - x for x in times]
    chosen = {"clean": best}
    return compared(
        values,
        {group: [True] * 5 for group in values["lambda_1"]},
        range(5),
        rates.contrasts(arms, chosen),
        spec={
            "design": {"design": "batch-rate", "level": 0.01, "epsilon": 1e-3}
            | {"model": "mlp", "data": "digits", "loss": "l"},
            "conditions": {"clean": 0.0},
            "arms": [vars(arm) for arm in arms],
            "best": chosen,
            "unconverged": 0,
        },
    )


def test_the_sentences_say_at_which_rates_the_batch_size_has_an_effect() -> None:
    found = planted({1e-3: EVEN, 1e-2: TWICE}, {"8": 1e-3, "600": 1e-2})
    top, metric, accuracy, best, rate = check(found)
    for finding in (top, metric):
        larger, silent = finding.sentence.split(";")
        assert "larger at the large batch at rate 0.01 (x 2.0" in larger
        assert "no difference shown at rate 0.001" in silent
        assert finding.shown
        assert not finding.as_claimed
    assert "smaller at the large batch at rate 0.01 (gap 1.02" in accuracy.sentence
    assert "batch 600 at its best rate 0.01 against batch 8 at its best rate 0.001" in best.sentence
    assert best.shown
    assert best.as_claimed
    assert "rate 0.01 against 0.001 multiplies lambda_1 by 1.00" in rate.sentence
    assert "at batch 8" in rate.sentence
    text = summary(found)
    assert "each at its best rate" in text
    assert all(
        finding.sentence in " ".join(text.split())
        for finding in (top, metric, accuracy, best, rate)
    )


def test_an_effect_that_turns_round_is_told_on_both_sides() -> None:
    half = [1 / x for x in TWICE]
    found = planted({1e-3: half, 1e-2: TWICE}, {"8": 1e-3, "600": 1e-3})
    top = check(found)[0]
    assert "larger at the large batch at rate 0.01" in top.sentence
    assert "smaller at the large batch at rate 0.001" in top.sentence
    assert not top.as_claimed


def test_the_contrasts_are_the_simple_effects_and_those_at_the_best_rates() -> None:
    found = rates.contrasts(ARMS, {"clean": {"8": 1e-3, "600": 1e-2}})
    levels = {arm.name: {"batch": arm.batch_size, "rate": arm.learning_rate} for arm in ARMS}
    simple = [f"clean: {name}" for name in effects(levels)]
    assert list(found) == [*simple, "clean: batch 600 / 8, each at its best rate"]
    assert len(simple) == 4
    assert found["clean: batch 600 / 8, each at its best rate"] == (
        "clean, batch 600, rate 0.01",
        "clean, batch 8, rate 0.001",
    )


def test_sharpness_along_training_is_read_where_each_level_was_first_met() -> None:
    def trajectory(losses: list[float], values: list[float], converged: bool = True) -> Any:
        column = torch.tensor(values, dtype=torch.float64)
        blank = torch.zeros_like(column)
        return sh.Trajectory(
            updates=torch.arange(len(values)),
            train_loss=torch.tensor(losses, dtype=torch.float64),
            lambda_1=column,
            residuals=blank,
            converged=torch.tensor([converged] * len(values)),
            lambda_1_sampling_errors=blank,
            metric_2_1=2 * column,
            first_order=blank,
            metric_2_1_sampling_errors=blank,
            epsilon=1e-3,
            spec={},
        )

    whole = trajectory([2.0, 0.9, 0.25, 0.1, 0.03, 0.01], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    short = trajectory([2.0, 0.5], [1.0, 8.0])
    lost = trajectory([2.0, 0.9], [7.0, 7.0], converged=False)
    assert [times * 0.01 for times in ALONG] == pytest.approx([1.0, 0.3, 0.1, 0.03])
    losses, numbers = verdict.at_levels([whole, short, lost], "lambda_1", 0.01)
    nan = math.nan
    want = [[1.0, 1.0], [2.0, 8.0], [3.0, nan], [4.0, nan], [5.0, nan], [6.0, nan]]
    torch.testing.assert_close(
        numbers, torch.tensor([[*row, nan] for row in want]).double(), equal_nan=True
    )
    assert losses[1] == pytest.approx(math.sqrt(0.9 * 0.5))
    assert losses[2] == pytest.approx(0.25)
    _, metric = verdict.at_levels([whole, short, lost], "metric_2_1", 0.01)
    assert metric[1].tolist() == [4.0, 16.0, 14.0]


def test_the_open_ends_of_a_design_are_filled_in_by_its_kind() -> None:
    pair = filled(Design(), 600)
    assert (pair.seeds, pair.batch_sizes, pair.rates, pair.updates) == (10, [8, 600], [1e-3], 20000)
    grid = filled(Design(design="batch-rate"), 600)
    assert grid.batch_sizes == [8, 60, 600]
    assert grid.rates == [3e-4, 1e-3, 2.7e-3, 8.7e-3]
    assert grid.updates == 40_000
    assert [arm.key for arm in arms(grid)][:2] == ["b8-r0.0003", "b8-r0.001"]
    assert len(arms(grid)) == 12


def test_a_design_of_one_rate_has_a_verdict_too() -> None:
    single = [arm for arm in ARMS if arm.learning_rate == 1e-3]
    found = planted({1e-3: TWICE}, {"8": 1e-3, "600": 1e-3}, single)
    assert "larger at the large batch at rate 0.001" in check(found)[0].sentence
    assert "the rate was not varied" in check(found)[-1].sentence


# ---- scalings of one rate --------------------------------------------------------------------

SCALED = Design(
    design="batch-rate", batch_sizes=[1, 8, 60, 600], scalings=["fixed", "sqrt", "linear"], noise=0
)
SHORT = Design(
    design="batch-rate",
    seeds=2,
    model_options={"widths": [8]},
    batch_sizes=[6, 600],
    rates=[1e-2],
    scalings=["fixed", "linear"],
    noise=0,
    level=1.2,
    updates=200,
)


def rate_of(config: Any) -> float:
    k = config.batch_size / (config.base_batch_size or config.batch_size)
    return scaled_rate(config.learning_rate, config.rate_scaling, k)


def test_each_batch_size_is_trained_at_its_scaled_rates_and_the_base_once(tmp_path: Path) -> None:
    jobs = _Plan(tmp_path / "k", replace(SCALED, seeds=1), False).trainings()
    made = {Path(job.stem).name: job.config for job in jobs}
    want = {"b8-base-0": (8, 1e-3)}
    for B in (1, 60, 600):
        want |= {
            f"b{B}-fixed-0": (B, 1e-3),
            f"b{B}-sqrt-0": (B, 1e-3 * math.sqrt(B / 8)),
            f"b{B}-linear-0": (B, 1e-3 * B / 8),
        }
    assert made.keys() == want.keys()
    for name, config in made.items():
        assert (config.batch_size, rate_of(config)) == (want[name][0], pytest.approx(want[name][1]))
        assert config.learning_rate == 1e-3
        assert config.keep_diverged
        assert config.patience
        # two updates, but of one example sixteen, which are two of the base
        assert config.check_every == {1: 16}.get(config.batch_size, 2)


def test_the_base_is_the_smallest_batch_where_eight_is_none() -> None:
    (base, *others) = arms(filled(SHORT, 600))
    assert (base.key, base.rate_scaling, base.base_batch_size) == ("b6-base", None, None)
    assert [arm.key for arm in others] == ["b600-fixed", "b600-linear"]
    assert (others[1].rate_scaling, others[1].base_batch_size) == ("linear", 6)


def test_designs_without_scalings_are_recorded_as_before_there_were_any(tmp_path: Path) -> None:
    old = ["design", "model", "model_options", "data", "loss", "train_examples", "seeds"]
    old += ["batch_sizes", "rates", "noise", "level", "updates", "epsilon"]
    assert list(record(filled(Design(design="batch-rate"), 600))) == old
    assert list(record(SCALED)) == [*old, "scalings"]
    assert list(record(ARMS[0])) == ["key", "name", "batch_size", "learning_rate"]
    plan = _Plan(tmp_path / "k", Design(design="batch-rate", batch_sizes=[1, 8], seeds=1), False)
    later = {"keep_diverged", "patience", "min_improvement", "rate_scaling", "base_batch_size"}
    for job in plan.trainings():
        made = training_config.record(job.config)
        assert not later & made.keys()
        assert made["check_every"] == 2


def test_scalings_are_contrasted_with_the_base_and_no_training_with_itself() -> None:
    best = {"1": "sqrt", "8": "fixed", "60": "sqrt", "600": "linear"}
    found = rates.contrasts(arms(filled(SCALED, 600)), {"clean": {**best}})
    want = [f"batch {B} / 8 at scaling {s}" for B in (1, 60, 600) for s in SCALED.scalings or []]
    want += [f"scaling {s} / fixed at batch {B}" for B in (1, 60, 600) for s in ("sqrt", "linear")]
    want += [f"batch {B} / 8, each at its best scaling" for B in (1, 60, 600)]
    assert {*found} == {f"clean: {name}" for name in want}
    assert all(group != reference for group, reference in found.values())
    assert found["clean: batch 600 / 8 at scaling linear"] == (
        "clean, batch 600, linear, rate 0.075",
        "clean, batch 8, base, rate 0.001",
    )
    assert found["clean: batch 600 / 8, each at its best scaling"] == (
        "clean, batch 600, linear, rate 0.075",
        "clean, batch 8, base, rate 0.001",
    )


def scaled_comparison(times: dict[str, list[float]], missed: str) -> sh.Comparison:
    """Five seeds in which arms have these multiples of the base's sharpness, one of them missed."""
    made = arms(filled(SCALED, 600))
    chosen = {"clean": {"1": "fixed", "8": "fixed", "60": "fixed", "600": "sqrt"}}
    values: dict[str, dict[str, list[float]]] = {}
    for arm in made:
        numbers = [math.nan] * 5 if arm.key == missed else times.get(arm.key, [1.0] * 5)
        for measure in ("lambda_1", "adaptive_lambda_1", "metric_2_1_1e-3", "train_loss"):
            values.setdefault(measure, {})[f"clean, {arm.name}"] = numbers
        values.setdefault("report_accuracy", {})[f"clean, {arm.name}"] = [90 - x for x in numbers]
    return compared(
        values,
        {f"clean, {arm.name}": [arm.key != missed] * 5 for arm in made},
        range(5),
        rates.contrasts(made, chosen),
        spec={
            "design": record(filled(SCALED, 600)),
            "conditions": {"clean": 0.0},
            "arms": [record(arm) for arm in made],
            "best": chosen,
            "unconverged": 0,
        },
    )


def test_the_sentences_say_under_which_scaling_no_run_met_the_loss() -> None:
    found = scaled_comparison({"b600-sqrt": TWICE, "b600-fixed": EVEN}, "b600-linear")
    top, _, accuracy, best, root, line = check(found)
    assert "lambda_1 of batch 600 against 8: larger at the large batch" in top.sentence
    assert "with scaling sqrt (x 2.0" in top.sentence
    assert "no difference shown with scaling fixed (x 1.0" in top.sentence
    assert top.sentence.endswith("for no pair met the training loss, with scaling linear.")
    assert not top.as_claimed
    assert "smaller at the large batch with scaling sqrt (gap 1.02" in accuracy.sentence
    assert "batch 600 at its best scaling sqrt against batch 8 at the base rate" in best.sentence
    assert best.as_claimed
    assert "scaling sqrt against fixed multiplies lambda_1 by 1.00" in root.sentence
    assert "at batch 8" not in root.sentence
    assert line.sentence.endswith("has no pair that met the training loss at batch 600.")
    text = " ".join(summary(found).split())
    assert "clean, batch 600, linear, rate 0.075 0 of 5 unknown" in text
    assert "clean, batch 8, base, rate 0.001 5 of 5 1" in text
    assert "5 of 5 runs of clean, batch 600, linear, rate 0.075 did not meet" in text


def test_where_the_base_is_the_largest_batch_the_claim_is_of_the_other_side() -> None:
    made = arms(filled(replace(SCALED, batch_sizes=[1, 8]), 600))
    chosen = {"clean": {"1": "sqrt", "8": "fixed"}}
    numbers = {arm.name: TWICE if arm.batch_size == 8 else [1.0] * 5 for arm in made}
    measures = ("lambda_1", "adaptive_lambda_1", "metric_2_1_1e-3", "report_loss", "choice_loss")
    found = compared(
        {m: {f"clean, {name}": x for name, x in numbers.items()} for m in measures},
        {f"clean, {name}": [True] * 5 for name in numbers},
        range(5),
        rates.contrasts(made, chosen),
        spec={
            "design": record(SCALED),
            "conditions": {"clean": 0.0},
            "arms": [record(arm) for arm in made],
            "best": chosen,
            "unconverged": 0,
        },
    )
    top, *_ = check(found)
    assert "lambda_1 of batch 1 against 8: smaller at the small batch with scaling" in top.sentence
    assert top.as_claimed


@pytest.mark.parametrize(
    ("rate", "missed", "stopped"),
    [
        (1e-2, {"b600-linear"}, "updates"),
        (1e30, {"b6-base", "b600-fixed", "b600-linear"}, "diverged"),
    ],
)
def test_runs_that_miss_the_loss_are_counted_and_do_not_end_the_recipe(
    rate: float, missed: set[str], stopped: str, tmp_path: Path
) -> None:
    """At a hundred times the rate of the base no run meets the loss, and at 1e30 none at all."""
    design = replace(SHORT, rates=[rate])
    with cpu_threads(1):
        found = run(tmp_path / "k", design)
        assert is_done(tmp_path / "k", design)
    keys = [arm["key"] for arm in found.spec["arms"]]
    assert {key for key, row in zip(keys, found.reached, strict=True) if not row.any()} == missed
    assert {key for key, row in zip(keys, found.reached, strict=True) if not row.all()} == missed
    for key in keys:
        files = {path.name for path in (tmp_path / "k" / "clean").glob(f"{key}-0*")}
        assert (files == {f"{key}-0.h5"}) == (key in missed)
        made = sh.load(tmp_path / "k" / "clean" / f"{key}-0.h5")
        assert isinstance(made, sh.Run)
        assert made.stopped == (stopped if key in missed else "stop_loss")
    pictures = [(tmp_path / "k" / name).read_bytes() for name in FIGURES["batch-rate"]]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert "for no pair met the training loss, with scaling" in check(found)[0].sentence


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scalings": ["cubic"]}, "of fixed, linear, sqrt, each once, got cubic: change them"),
        ({"scalings": []}, "each once, got none: change them"),
        ({"scalings": ["sqrt", "sqrt"]}, "each once, got sqrt, sqrt: change them"),
        ({"rates": [1e-3, 1e-2]}, "need one rate, .* got 0.001, 0.01: give one"),
        ({"design": "pair", "batch_sizes": None}, "need the design batch-rate, got pair: choose"),
    ],
)
def test_scalings_that_cannot_be_met_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        filled(replace(SCALED, **changes), 600)
    assert filled(replace(SCALED, scalings=list(SCALINGS)), 600).rates == [1e-3]
