"""The words of a comparison are those of its intervals, and warn of what spoils them."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import sharpness as sh
from sharpness.analyses import ANALYSES, run_numbers
from sharpness.comparison import compare, compared, effects
from sharpness.findings import lines, mismatches, remarks, sentences
from sharpness.problem import objective_of
from sharpness.results import Run
from sharpness.training import TrainConfig, record, resolved


def run_of(**options: Any) -> Run:
    """A run of this configuration, as if it had been trained."""
    config = resolved(TrainConfig(**options))
    theta = torch.zeros(3)
    met = config.stop_loss is not None
    return Run(
        start=sh.Solution(theta, {}),
        end=sh.Solution(theta + 1, {}),
        checkpoints=[],
        checkpoint_updates=torch.zeros(0, dtype=torch.int64),
        history={"train_loss": torch.tensor([0.01])},
        optimizer={},
        train_index=torch.arange(2),
        test_index=torch.arange(2),
        updates=10,
        stopped="stop_loss" if met else "epochs",
        spec={
            "train": record(config),
            "data": {
                "train_sha256": f"{config.split_seed} {config.label_noise}",
                "test_sha256": f"{config.split_seed}",
            },
        },
    )


def planted(
    effect: float, *, pairs: int = 10, seed: int = 0, noise: float = 0.3
) -> tuple[dict[str, Run], dict[str, dict[str, float]]]:
    """Runs of batch 8 and 600, whose lambda_1 differs by a factor and accuracy by its logarithm."""
    rng = np.random.default_rng(seed)
    runs, numbers = {}, {}
    for s in range(pairs):
        common = rng.standard_normal()
        for size in (8, 600):
            x = common + noise * rng.standard_normal() + math.log(effect) * (size == 600)
            runs[f"{size}-{s}"] = run_of(batch_size=size, seed=s)
            numbers[f"{size}-{s}"] = {
                "train_loss": 0.01 * math.exp(0.01 * rng.standard_normal()),
                "lambda_1": math.exp(x),
                "test_accuracy": 90 - x,
            }
    return runs, numbers


def test_the_intervals_of_planted_runs_are_scipys() -> None:
    runs, numbers = planted(3.0)
    found = compare(runs, numbers)
    assert found.contrasts == ["batch_size 600 / 8"]
    a, b = (
        {m: np.array([numbers[f"{B}-{s}"][m] for s in range(10)]) for m in numbers["8-0"]}
        for B in (600, 8)
    )
    want = stats.ttest_rel(np.log(a["lambda_1"]), np.log(b["lambda_1"])).confidence_interval(0.95)
    mean, low, high = found.ratios["lambda_1_ratio"][0].log().tolist()
    assert (low, high) == pytest.approx((want.low, want.high))
    assert mean == pytest.approx(float(np.log(a["lambda_1"] / b["lambda_1"]).mean()))
    want = stats.ttest_rel(b["test_accuracy"], a["test_accuracy"]).confidence_interval(0.95)
    got = found.differences["test_accuracy_difference"][0, 1:].tolist()
    assert got == pytest.approx((want.low, want.high))
    assert sentences(found) == [
        "batch_size 600 / 8: larger: lambda_1; smaller: test accuracy %; no difference shown: "
        "training loss."
    ]


@pytest.mark.parametrize("pairs", [3, 10])
def test_without_an_effect_no_difference_is_shown_in_95_of_100_simulations(pairs: int) -> None:
    rng = np.random.default_rng(pairs)
    count = {"lambda_1": 0, "test_accuracy %": 0}
    for _ in range(2000):
        common = rng.standard_normal(pairs)
        x, y = (common + rng.standard_normal(pairs) for _ in range(2))
        found = compared(
            {
                "lambda_1": {"A": list(np.exp(x)), "B": list(np.exp(y))},
                "test_accuracy": {"A": list(x), "B": list(y)},
            },
            {"A": [True] * pairs, "B": [True] * pairs},
            range(pairs),
            {"A / B": ("A", "B")},
            spec={},
        )
        (said,) = sentences(found)
        silent = said.partition("no difference shown: ")[2]
        count["lambda_1"] += "lambda_1" in silent
        count["test_accuracy %"] += "test accuracy %" in silent
    assert all(0.93 * 2000 < shown < 0.97 * 2000 for shown in count.values()), count


def test_an_interaction_gives_each_factor_an_effect_at_each_level_of_the_other() -> None:
    runs, numbers = {}, {}
    rng = np.random.default_rng(0)
    for size in (600, 8):
        for rate in (0.1, 0.001):
            for s in range(5):
                name = f"{size} {rate} {s}"
                runs[name] = run_of(batch_size=size, learning_rate=rate, seed=s, label_noise=0.1)
                times = 4.0 if (size, rate) == (600, 0.1) else 1.0
                numbers[name] = {
                    "train_loss": 0.01,
                    "lambda_1": times * math.exp(0.1 * rng.standard_normal()),
                }
    found = compare(runs, numbers)
    assert found.groups == [
        f"batch_size {B}, learning_rate {rate}" for B in (8, 600) for rate in ("0.001", "0.1")
    ]
    outcome = dict(zip(found.contrasts, sentences(found), strict=True))
    assert {name: "larger: lambda_1" in said for name, said in outcome.items()} == {
        "batch_size 600 / 8 at learning_rate 0.001": False,
        "batch_size 600 / 8 at learning_rate 0.1": True,
        "learning_rate 0.1 / 0.001 at batch_size 8": False,
        "learning_rate 0.1 / 0.001 at batch_size 600": True,
    }


def test_two_factors_that_change_at_once_are_one_contrast_and_named_as_a_confound() -> None:
    runs = {
        f"{B}-{s}": run_of(batch_size=B, learning_rate=rate, seed=s)
        for B, rate in ((8, 0.001), (600, 0.01))
        for s in range(2)
    }
    found = compare(runs, {name: {"train_loss": 0.01} for name in runs})
    assert found.contrasts == ["batch_size 600 / 8, learning_rate 0.01 / 0.001"]
    said = " ".join(remarks(found))
    assert "batch_size and learning_rate differ at once, and share the effect" in said


def test_every_group_is_in_a_contrast_also_in_a_ragged_design() -> None:
    levels = {"a": {"B": 8, "r": 1}, "b": {"B": 60, "r": 1}, "c": {"B": 600, "r": 2}}
    found = effects(levels)
    assert list(found.values()) == [("b", "a"), ("c", "a")]
    three = {str(B): {"B": B} for B in (8, 60, 600)}
    assert effects(three) == {"B 60 / 8": ("60", "8"), "B 600 / 8": ("600", "8")}


def test_networks_that_differ_are_a_confound_and_a_varied_rate_is_none() -> None:
    runs = {
        f"{w}-{s}": run_of(model_options={"widths": [w]}, seed=s) for w in (8, 9) for s in (0, 1)
    }
    said = " ".join(remarks(compare(runs, {name: {"train_loss": 0.01} for name in runs})))
    assert "the networks differ, and Metric 2.1 grows with the number of parameters" in said
    runs = {
        f"{B}-{r}": run_of(batch_size=B, learning_rate=r) for B in (8, 600) for r in (0.01, 0.001)
    }
    said = " ".join(remarks(compare(runs, {name: {"train_loss": 0.01} for name in runs})))
    assert "the learning rate was the same" not in said


@pytest.mark.parametrize(("measures", "said"), [(9, None), (19, 1), (39, 2)])
def test_many_comparisons_are_said_to_show_some_by_chance(measures: int, said: int | None) -> None:
    runs, numbers = planted(1.0, pairs=3)
    for known in numbers.values():
        known |= {f"measure_{i}": 1.0 + i for i in range(measures - 2)}
    notes = [note for note in remarks(compare(runs, numbers)) if "would show a difference" in note]
    want = f"NOTE of {measures + 1} comparisons with 95 % intervals, some {said} would show"
    assert [note.startswith(want) for note in notes] == ([] if said is None else [True])


def test_runs_of_one_seed_are_told_apart_by_their_splits() -> None:
    runs = {
        f"{B}-{split}": run_of(batch_size=B, seed=0, split_seed=split)
        for B in (8, 600)
        for split in (3, 4)
    }
    found = compare(runs, {name: {"train_loss": 0.01} for name in runs})
    assert found.pairs.tolist() == [2]
    assert found.seeds.tolist() == [0, 1]


def test_equal_epochs_are_said_to_be_other_numbers_of_updates() -> None:
    runs = {f"{B}-{s}": run_of(batch_size=B, seed=s, epochs=20) for B in (8, 600) for s in range(3)}
    numbers = {
        name: {"train_loss": 0.01, "examples": 12000.0, "updates": 1500.0 if "8-" in name else 20.0}
        for name in runs
    }
    said = " ".join(remarks(compare(runs, numbers)))
    assert "0.0133 times the updates and 1 times the examples" in said
    assert "equal epochs are not equal updates" in said
    assert "the learning rate was the same at all batch sizes" in said


@pytest.mark.parametrize(("times", "warned"), [(1.05, False), (1.2, True), (0.8, True)])
def test_another_training_loss_is_warned_of(times: float, warned: bool) -> None:
    runs, numbers = planted(1.0, pairs=3)
    for name, known in numbers.items():
        known["train_loss"] = 0.01 * (times if name.startswith("600") else 1)
    said = " ".join(remarks(compare(runs, numbers)))
    assert ("WARNING batch_size 600 / 8: taken at training losses" in said) == warned


def test_other_examples_are_warned_of_and_other_data_or_losses_are_refused_by_name() -> None:
    runs = {f"{noise}": run_of(label_noise=noise) for noise in (0.0, 0.2)}
    numbers = {name: {"train_loss": 0.01} for name in runs}
    said = " ".join(remarks(compare(runs, numbers)))
    assert "WARNING runs of one seed have other train examples or labels" in said
    assert "other test" not in said
    for key, value in (("data", "nets:points"), ("loss", "mse")):
        other = {"a": run_of(), "b": run_of(**{key: value}, batch_size=8)}
        with pytest.raises(sh.InputError, match=f"one {key}, got .* in a and {value} in b"):
            compare(other, {"a": {}, "b": {}})


def test_a_run_that_missed_its_goal_is_left_out_and_counted() -> None:
    runs, numbers = planted(2.0, pairs=3)
    missed = runs["600-1"]
    runs["600-1"] = Run(**{**vars(missed), "stopped": "updates"})
    found = compare(runs, numbers)
    assert found.pairs.tolist() == [2]
    assert "NOTE 1 of 3 runs of batch_size 600 did not meet the training loss" in " ".join(
        remarks(found)
    )


def test_an_eigenvalue_that_did_not_converge_is_no_number_to_compare() -> None:
    matrix = sh.Dense(torch.diag(torch.linspace(0, 1, 300, dtype=torch.float64)))
    short = sh.eigsh(matrix, 1, m=3, budget=3)
    assert not short.converged[0]
    assert math.isnan(ANALYSES["lambda-1"].numbers(short)["lambda_1"])
    runs, numbers = planted(2.0, pairs=3)
    numbers["600-1"]["lambda_1"] = math.nan
    found = compare(runs, numbers)
    others = torch.tensor([numbers[f"{B}-{s}"]["lambda_1"] for B in (600, 8) for s in (0, 2)])
    want = sh.paired_ratio(others[:2], others[2:])
    assert found.ratios["lambda_1_ratio"][0].tolist() == pytest.approx(want, rel=1e-6)
    assert "NOTE lambda_1 of 1 run is unknown (it did not converge): left out" in remarks(found)


def test_one_pair_is_unknown_and_not_zero() -> None:
    runs, numbers = planted(5.0, pairs=1)
    found = compare(runs, numbers)
    assert sentences(found) == [
        "batch_size 600 / 8: all is unknown with 1 pair, for an interval needs two."
    ]
    text = "\n".join(lines(found))
    assert "[unknown]" in text
    assert "nan" not in text


def test_runs_of_no_common_seed_make_no_pair() -> None:
    runs = {"a": run_of(batch_size=8, seed=0), "b": run_of(batch_size=600, seed=1)}
    found = compare(runs, {"a": {"train_loss": 1.0}, "b": {"train_loss": 1.0}})
    assert found.pairs.tolist() == [0]
    assert "0 pairs" in sentences(found)[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([{}], "at least two runs, got 1"),
        ([{}, {"seed": 1}], "more than their seeds, got 2"),
        ([{}, {}], "more than their seeds"),
        ([{"batch_size": 8}, {"batch_size": 8}, {"batch_size": 60}], "one run of each seed"),
    ],
)
def test_what_is_no_comparison_is_refused(options: list[dict[str, Any]], words: str) -> None:
    runs = {str(i): run_of(**given) for i, given in enumerate(options)}
    with pytest.raises(sh.InputError, match=words):
        compare(runs, {name: {} for name in runs})


def test_named_groups_are_paired_by_their_seeds_and_checkpoints_by_their_order() -> None:
    runs = {f"{B}-{s}": run_of(batch_size=B, seed=s) for s in (1, 0) for B in (600, 8)}
    numbers = {name: {"train_loss": 0.01, "lambda_1": float(len(name))} for name in runs}
    groups = {name: "large" if "600" in name else "small" for name in runs}
    found = compare(runs, numbers, groups=groups)
    assert found.groups == ["large", "small"]
    assert found.seeds.tolist() == [0, 1]
    assert found.contrasts == ["small / large"]
    read = {
        name: Run(**{**vars(run), "stopped": "read", "start": None}) for name, run in runs.items()
    }
    for i, name in enumerate(read):
        numbers[name]["lambda_1"] = float(i + 1)
    found = compare(read, numbers, groups=groups)
    assert found.values["lambda_1"].tolist() == [[1, 3], [2, 4]]


@pytest.mark.parametrize(("inputs", "dimension"), [(6, 6), (150, 100)])
def test_subspaces_have_a_hundred_dimensions_or_all(inputs: int, dimension: int) -> None:
    batches = [(torch.ones(2, inputs), torch.zeros(2, 1))]
    f = sh.Objective(torch.nn.Linear(inputs, 1, bias=False), batches, torch.nn.functional.mse_loss)
    for epsilon, name in ((1e-3, "subspace-2-1-1e-3"), (5e-4, "subspace-2-1-5e-4")):
        found = ANALYSES[name].compute(f)
        assert (found.spec["dimension"], found.epsilon) == (dimension, epsilon)
        full = name.replace("subspace", "metric")
        assert ANALYSES[full].compute(f).epsilon == epsilon


def test_the_numbers_of_a_run_are_those_of_its_objectives_and_have_both_gaps() -> None:
    run = sh.train(TrainConfig(batch_size=60, updates=30, stop_loss=1e-3))
    parts = {split: objective_of(run, split=split) for split in ("train", "test")}
    known, evaluated = run_numbers(run), run_numbers(run, parts)
    for measure, number in evaluated.items():
        assert number == pytest.approx(known[measure], rel=1e-12)
    train, test = (parts[split].evaluate(run.end) for split in ("train", "test"))
    assert known["accuracy_gap"] == pytest.approx(100 * float(train["accuracy"] - test["accuracy"]))
    assert known["loss_gap"] == pytest.approx(float(test["loss"] - train["loss"]))
    assert run.start is not None
    assert known["distance"] == pytest.approx(float((run.end.theta - run.start.theta).norm()))
    unknown = run_numbers(Run(**{**vars(run), "start": None}), parts)
    assert all(math.isnan(unknown[key]) for key in ("distance", "updates", "examples"))


def test_values_at_other_losses_or_of_other_examples_are_told_apart() -> None:
    near, far = (sh.train(TrainConfig(batch_size=600, updates=n)) for n in (40, 10))
    phi = {
        name: sh.epsilon_sharpness(objective_of(run, **options), starts=0, sign_starts=1)
        for name, run, options in (
            ("near", near, {}),
            ("far", far, {}),
            ("sample", near, {"examples": 50}),
            ("test", near, {"split": "test"}),
        )
    }
    assert mismatches({"a": phi["near"], "b": phi["near"]}) == []
    for other, words in (
        ("far", "training losses"),
        ("sample", "other exa"),
        ("test", "other exa"),
    ):
        (said,) = mismatches({"near": phi["near"], other: phi[other]})
        assert words in said
        assert f"near and {other} are" in said
    (said,) = mismatches({"run": near, "far": phi["far"]})
    assert "training losses" in said
