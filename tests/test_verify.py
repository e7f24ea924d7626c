"""A file that is damaged, or whose numbers are not those of its spec, is found and named."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch

import sharpness as sh
from sharpness import checks, names, recomputing, store
from sharpness.checks import Check
from sharpness.curvature import Dense, Hessian
from sharpness.directions import filter_normalized
from sharpness.operators import OPERATORS
from sharpness.recomputing import VERIFIERS
from sharpness.results import RESULTS, Measured, Result, Run, Solution
from sharpness.training import TrainConfig, cpu_threads, train

Ask = Callable[..., tuple[int, str, str]]
Change = Callable[[Any], dict[str, Any]]

LINEAR = '--model-options={"widths": []}'  # softmax regression: 650 parameters
SHORT = ("--updates=3", "--batch-size=600", "--threads=1", LINEAR)


@pytest.fixture(scope="session")
def other() -> Run:
    """The second run of the fixture ``results``."""
    config = TrainConfig(model_options={"widths": []}, batch_size=600, epochs=3, threads=1)
    with cpu_threads(1):
        return train(config)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with cpu_threads(1):
        yield


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def run() -> Run:
    """A short training to verify by all kinds of objectives."""
    with cpu_threads(1):
        return train(TrainConfig(model_options={"widths": [4]}, batch_size=600, updates=3))


def moved(x: torch.Tensor, place: Any, by: float = 0.1) -> torch.Tensor:
    """A copy that is larger by this part at one place."""
    x = x.clone()
    x[place] += by * max(abs(float(x[place])), 0.1)
    return x


def field(name: str, place: Any = None, by: float = 0.1) -> Change:
    """What changes one number of a field."""

    def change(result: Any) -> dict[str, Any]:
        value = getattr(result, name)
        return {name: value * (1 + by) if place is None else moved(value, place, by)}

    return change


def entry(name: str, key: str, place: Any, by: float = 0.1) -> Change:
    """What changes one number in a dict of arrays."""

    def change(result: Any) -> dict[str, Any]:
        values = dict(getattr(result, name))
        return {name: values | {key: moved(values[key], place, by)}}

    return change


def one_more(key: str, row: int) -> Change:
    """What changes a count in the history of a run."""

    def change(result: Run) -> dict[str, Any]:
        column = result.history[key].clone()
        column[row] += 1
        return {"history": result.history | {key: column}}

    return change


def theta(which: str) -> Change:
    """What changes one weight of a run."""
    return lambda run: {which: replace(getattr(run, which), theta=moved(run.end.theta, 3, 5.0))}


def spoiled_sample(found: Measured) -> dict[str, Any]:
    """What changes the sample in the middle of a measure."""
    name, samples = next(iter(found.samples.items()))
    return {"samples": found.samples | {name: moved(samples, 3)}}


# Kind, what is changed, and the number that is named.
CHANGES: list[tuple[str, Change, str]] = [
    ("Run", entry("history", "train_loss", 0, 1e-4), "train_loss at the start"),
    ("Run", entry("history", "test_loss", -1, 1e-4), "test_loss at the end"),
    ("Run", one_more("train_right", 0), "train_right at the start"),
    ("Run", one_more("test_right", -1), "test_right at the end"),
    ("Run", lambda run: {"updates": run.updates + 1}, "updates at the end"),
    ("Run", theta("start"), "distance of the start from that of its seed"),
    ("Run", theta("end"), "train_loss at the end"),
    ("Eigenpairs", field("values", 0, 1e-4), "eigenvalue 1"),
    ("Eigenpairs", field("values", 2, -1e-4), "eigenvalue 3"),
    ("Eigenpairs", field("residuals", 1), "residual 2"),
    ("Eigenpairs", field("sampling_errors", 1), "sampling error 2"),
    ("Eigenpairs", field("vectors", (2, 5)), "residual 3"),
    ("Eigenpairs", lambda pairs: {"orthogonality": 0.01}, "orthogonality"),
    ("Line", field("distance"), "distance"),
    ("Line", entry("values", "train_loss", 0, 1e-4), "train_loss at alpha -1"),
    ("Line", entry("values", "test_accuracy", 3, 1e-4), "test_accuracy at alpha 0.5"),
    ("Line", entry("values", "test_loss", 6, 1e-4), "test_loss at alpha 2"),
    ("Cut", entry("values", "train_loss", (0, 0), 1e-4), "train_loss at alpha -1 of direction 1"),
    ("Cut", entry("values", "test_loss", (1, 2), 1e-4), "test_loss at alpha 0 of direction 2"),
    ("Cut", field("directions", (1, 7), 5.0), "length of direction 2"),
    ("Cut", field("lengths", 0), "length of direction 1"),
    ("Cut", field("slopes", 0), "slope of direction 1"),
    ("Cut", field("curvatures", 1), "curvature of direction 2"),
    (
        "Cut",
        field("curvature_sampling_errors", 1),
        "sampling error of the curvature of direction 2",
    ),
    ("Cut", field("loss", by=1e-4), "loss"),
    ("Cut", field("norm"), "norm"),
    ("Sharpness", field("value", by=1e-4), "value"),
    ("Sharpness", field("loss", by=1e-4), "loss"),
    ("Sharpness", field("maximum", by=1e-4), "maximum"),
    ("Sharpness", field("first_order", by=1e-4), "first_order"),
    ("Sharpness", field("on_bounds"), "on_bounds"),
    ("Sharpness", field("displacement", 3, 5.0), "coordinates outside of the box"),
    ("SubspaceSharpness", field("value", by=1e-4), "value"),
    ("SubspaceSharpness", field("stderr", by=1e-4), "stderr"),
    ("SubspaceSharpness", field("interval", 0), "low end of the interval"),
    ("SubspaceSharpness", field("interval", 1), "high end of the interval"),
    ("SubspaceSharpness", field("loss", by=1e-4), "loss"),
    ("SubspaceSharpness", field("draw_values", 0), "value of draw 1"),
    ("SubspaceSharpness", field("draw_values", 2), "value"),
    ("SubspaceSharpness", field("draw_first_order", 0), "first order of draw 1"),
    ("EpsilonTrend", field("loss", by=1e-4), "loss"),
    ("EpsilonTrend", field("epsilon", 0), "epsilon 1"),
    ("EpsilonTrend", field("values", 2), "value at epsilon 0.002"),
    ("EpsilonTrend", lambda found: {"values": found.values.flip(0)}, "values below the one before"),
    ("EpsilonTrend", field("maxima", 1, 1e-4), "maximum at epsilon 0.001"),
    ("EpsilonTrend", field("first_order", 0, 1e-4), "first order at epsilon 0.0005"),
    ("EpsilonTrend", field("displacements", (1, 3), 5.0), "coordinates outside of the box at"),
    ("Trajectory", lambda found: {"updates": found.updates + 1}, "updates of point 1"),
    ("Trajectory", field("train_loss", 0, 1e-4), "train_loss at update 0"),
    ("Trajectory", field("lambda_1", 2), "lambda_1 at update 14"),
    ("Trajectory", field("residuals", 2), "residual of lambda_1 at update 14"),
    ("Trajectory", field("metric_2_1", 2), "metric_2_1 at update 14"),
    ("Trajectory", field("first_order", 2), "first_order at update 14"),
    (
        "Comparison",
        entry("values", "lambda_1", (0, 1)),
        "estimate of lambda_1_ratio of LB 600 / SB 8",
    ),
    (
        "Comparison",
        entry("ratios", "lambda_1_ratio", (0, 2)),
        "high end of lambda_1_ratio of LB 600 / SB 8",
    ),
    (
        "Comparison",
        entry("differences", "test_accuracy_difference", (0, 1)),
        "low end of test_accuracy_difference of LB 600 / SB 8",
    ),
    ("Comparison", lambda found: {"pairs": found.pairs + 1}, "pairs of LB 600 / SB 8"),
    ("Plane", entry("values", "train_loss", (0, 0), 1e-4), "train_loss at alpha -1, beta -1"),
    ("Plane", entry("values", "test_loss", (2, 2), 1e-4), "test_loss at alpha 0, beta 0"),
    ("Plane", field("directions", (1, 7), 5.0), "length 2"),
    ("Plane", field("lengths", 0), "length 1"),
    ("Plane", lambda found: {"cosine": 0.5}, "cosine"),
    ("Plane", field("norm"), "norm"),
    ("Plane", field("path", (0, 1)), "beta at update 0"),
    ("Plane", field("path_distances", 0), "distance at update 0"),
    ("Plane", entry("path_values", "path_test_loss", -1, 1e-4), "path_test_loss at update 18"),
    ("Plane", field("solution_points", (0, 0)), "alpha of other"),
    ("Plane", field("solution_distances", 0), "distance of other"),
    (
        "Plane",
        entry("solution_values", "solution_train_loss", 0, 1e-4),
        "solution_train_loss of other",
    ),
    ("Convexity", field("smallest", (1, 2), 1.0), "smallest at alpha -0.5, beta 0"),
    ("Convexity", field("largest", (1, 2)), "largest at alpha -0.5, beta 0"),
    ("Convexity", field("largest_residuals", (1, 2), 1.0), "residual of largest"),
    ("Convexity", field("lengths", 1), "length 2"),
    ("Convexity", field("norm"), "norm"),
    ("Density", field("nodes", (0, 0)), "first node of probe 1"),
    ("Density", field("nodes", (0, -1)), "last node of probe 1"),
    ("Density", field("nodes", (0, 9)), "mean square of probe 1"),
    ("Density", lambda found: {"weights": found.weights.flip(1)}, "mean of probe 1"),
    ("Density", field("weights", (2, 4)), "sum of the weights"),
    ("Density", field("known", 1), "known eigenvalue 2"),
    ("Density", lambda found: {"size": found.size + 1}, "size"),
    ("Density", lambda found: {"products": found.products + 1}, "products"),
    ("Estimate", field("value", by=1e-4), "value"),
    ("Estimate", field("stderr", by=1e-4), "standard error of the samples"),
    ("Estimate", field("interval", 0, 1e-4), "low end of the interval"),
    ("Estimate", field("interval", 1, 1e-4), "high end of the interval"),
    ("Estimate", field("exact", by=1e-2), "exact part"),
    ("Estimate", field("samples", 0), "sample 1"),
    ("Estimate", field("samples", 1), "value"),
    ("Diagonal", lambda found: {"values": 1.001 * found.values}, "entry"),
    ("Diagonal", lambda found: {"stderr": 1.001 * found.stderr}, "standard error"),
    ("Diagonal", field("values", 7, 1e-2), "sum"),
    ("Diagonal", lambda found: {"samples": found.samples + 1}, "samples"),
    ("Layers", field("traces", 0, 1e-4), "traces of 0.weight"),
    ("Layers", field("trace_low", 0, 1e-4), "trace_low of 0.weight"),
    ("Layers", field("share_high", 1, 1e-4), "share_high of 0.bias"),
    ("Layers", field("whole_trace", by=1e-4), "whole_trace"),
    ("Layers", field("exact", 0, 1e-3), "exact part of 0.weight"),
    ("Layers", field("exact", 1, 1e-4), "traces of 0.bias"),
    ("Layers", field("samples", (0, 0)), "sample 1 of 0.weight"),
    ("Layers", field("lambda_1", 0, 1e-4), "lambda_1 of 0.weight"),
    ("Layers", field("lambda_1", 1), "lambda_1 of 0.bias"),
    ("Layers", field("residuals", 0), "residual of 0.weight"),
    ("Layers", field("sampling_errors", 0), "sampling error of 0.weight"),
    ("Layers", field("squares", 0, 1e-2), "square of 0.weight"),
    ("Layers", field("square_high", 0, 1e-2), "square_high of 0.weight"),
    ("Layers", field("squares", 1, 1e-2), "square of 0.bias"),
    ("Layers", field("vectors", 3, 5.0), "lambda_1 of 0.weight"),
    ("Layers", field("whole_lambda_1", by=1e-4), "lambda_1 of the whole"),
    ("Layers", field("whole_square", by=1e-2), "square of the whole"),
    ("Layers", lambda found: {"sizes": found.sizes + 1}, "parameters of 0.bias"),
    ("Layers", lambda found: {"layer": found.layer[::-1]}, "layers of other names"),
    ("BatchEigenvalues", field("values", (0, 0), 1e-2), "eigenvalue 1 of mini-batch 1"),
    ("BatchEigenvalues", field("values", (4, 1), 1e-2), "eigenvalue 2 of mini-batch 5"),
    ("BatchEigenvalues", field("values", (2, 0), 1e-2), "eigenvalue 1 of mini-batch 3"),
    ("BatchEigenvalues", field("residuals", (0, 1), 1.0), "residual of eigenvalue 2"),
    ("BatchEigenvalues", field("losses", 2, 1e-4), "loss of mini-batch 3"),
    ("BatchEigenvalues", field("weights", 4), "weight of mini-batch 5"),
    ("BatchEigenvalues", field("whole_values", 0, 1e-2), "eigenvalue 1 of all the data"),
    ("BatchEigenvalues", field("whole_residuals", 1, 1.0), "residual of eigenvalue 2 of all"),
    ("BatchEigenvalues", field("whole_sampling_errors", 1), "sampling error 2 of all the data"),
    ("BatchEigenvalues", field("whole_loss", by=1e-4), "loss of all the data"),
    ("BatchEigenvalues", lambda found: {"examples": found.examples + 1}, "examples"),
    ("BatchEigenvalues", lambda found: {"batch_size": 1}, "batch_size"),
    ("Measured", field("value"), "value"),
    ("Measured", field("stderr"), "stderr"),
    ("Measured", field("interval", 1), "high end of the interval"),
    ("Measured", field("loss", by=1e-4), "loss"),
    ("Measured", field("products"), "products"),
    ("Measured", lambda found: {"converged": not found.converged}, "converged"),
    ("Measured", lambda found: {"threshold": 1.0}, "threshold"),
    ("Measured", lambda found: spoiled_sample(found), "mean of sample 4"),
    ("Invariance", field("before", 0), "sam"),
    ("Invariance", field("before", 1), "fisher-rao"),
    ("Invariance", field("function_change", 0), "change of the function by logit shift"),
    ("ClassStructure", field("values", 0, 1e-2), "eigenvalue 1 of G"),
    ("ClassStructure", field("hessian_values", 4), "eigenvalue 5 of the Hessian"),
    ("ClassStructure", field("mean_values", 1, 1e-4), "eigenvalue 2 of G1"),
    ("ClassStructure", field("pair_values", 3, 1e-2), "eigenvalue 4 of G1 + G2"),
    ("ClassStructure", field("gram", (0, 0), 1e-3), "product of the means of 0 and 0"),
    ("ClassStructure", field("gram", (5, 3)), "eigenvalue"),
    ("ClassStructure", field("gram", (3, 5)), "asymmetry of the products of means"),
    ("ClassStructure", field("class_weights", 9, 1e-3), "weight of class 9"),
    ("ClassStructure", field("error_weights", 0, 1e-3), "weight of errors of class 0"),
    ("ClassStructure", field("gradient_norm", by=1e-3), "gradient norm"),
    ("ClassStructure", field("gradient_shares", 8), "share of the gradient in 9 of G"),
    ("ClassStructure", field("overlaps", 8, 0.2), "overlap of the first 9"),
]


def beyond(result: Result, runs: list[Run]) -> dict[str, Check]:
    """The numbers that do not come out again, by name."""
    return {check.name: check for check in sh.verify(result, runs).checks if not check.agrees}


def test_every_kind_of_result_has_its_spot_values() -> None:
    assert VERIFIERS.keys() == RESULTS.keys()
    assert {kind for kind, _, _ in CHANGES} == RESULTS.keys()


def test_every_kind_of_result_verifies_from_its_file(
    results: dict[str, Result], other: Run, here: Path, ask: Ask
) -> None:
    sh.save("other.h5", other)
    for kind, result in results.items():
        sh.save(f"{kind}.h5", result)
    paths = [*(f"{kind}.h5" for kind in results), "other.h5"]
    code, out, err = ask("verify", "--quiet", *paths)
    lines = out.splitlines()
    assert (code, err) == (0, ""), (code, out, err)
    assert [line.partition(": ")[0] for line in lines] == paths
    assert all(line.partition(": ")[2].startswith("sealed; ") for line in lines)
    assert sum("recomputed, agree" in line for line in lines) == len(paths)


@pytest.mark.parametrize(
    ("kind", "change", "name"), CHANGES, ids=[f"{kind}: {name}" for kind, _, name in CHANGES]
)
def test_a_number_that_was_changed_is_found_and_named(
    kind: str, change: Change, name: str, results: dict[str, Result], other: Run
) -> None:
    result: Any = results[kind]
    runs = [other] if isinstance(result, Run) else [results["Run"], other]
    assert not beyond(result, runs)  # type: ignore[arg-type]
    found = beyond(replace(result, **change(result)), runs)  # type: ignore[arg-type]
    assert any(named.startswith(name) for named in found), list(found)


def test_what_is_recomputed_is_the_number_before_it_was_changed(
    results: dict[str, Any], other: Run
) -> None:
    pairs = results["Eigenpairs"]
    found = beyond(replace(pairs, values=moved(pairs.values, 0)), [results["Run"]])
    assert found["eigenvalue 1"].stored == pytest.approx(1.1 * float(pairs.values[0]))
    # A Ritz value in float32 is that of its vector to a few units of the largest.
    assert found["eigenvalue 1"].recomputed == pytest.approx(float(pairs.values[0]), rel=1e-6)
    line = results["Line"]
    values = line.values | {"train_loss": moved(line.values["train_loss"], 0)}
    (check,) = beyond(replace(line, values=values), [results["Run"], other]).values()
    assert check.recomputed == float(line.values["train_loss"][0])


# ---- by any objective ----------------------------------------------------------------------

OBJECTIVES: list[dict[str, Any]] = [
    {"split": "test"},
    {"dtype": "float64"},
    {"examples": 100, "seed": 3},
    {"examples": 100, "micro_batch": 7},
    {"micro_batch": 11},
]


@pytest.mark.parametrize("options", OBJECTIVES, ids=str)
def test_the_objective_of_the_spec_is_built_again(options: dict[str, Any], run: Run) -> None:
    with cpu_threads(1):
        found = sh.epsilon_sharpness(sh.objective_of(run, **options), starts=0, sign_starts=1)
    verified = sh.verify(found, [run])
    assert verified.agrees, verified.text
    assert all(check.stored == check.recomputed for check in verified.checks[:2])


@pytest.mark.parametrize("which", ["LA", "SA", "LM"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_eigenpairs_of_every_operator_verify(operator: str, which: str, run: Run) -> None:
    A = OPERATORS[operator](sh.objective_of(run, examples=64), run.start, engine="fresh")
    pairs = sh.eigsh(A, 2, which=which, tol=1e-2)
    verified = sh.verify(pairs, [run])
    assert verified.agrees, verified.text
    top = float(sh.eigsh(A, 1, which="LM", tol=1e-2).values.abs())
    changed = replace(pairs, values=pairs.values + 1e-4 * top)
    assert {"eigenvalue 1", "eigenvalue 2"} <= beyond(changed, [run]).keys()


MADE: dict[str, Any] = {
    "block": lambda f: sh.Block(sh.Hessian(f), ["*.weight"]),
    "decay": lambda f: sh.WeightDecayed(sh.Hessian(f), 0.1, params=["*.bias"]),
    "sum": lambda f: sh.Sum((1.0, sh.Hessian(f)), (-0.5, sh.Fisher(f, draws=2, seed=5))),
}


@pytest.mark.parametrize("name", MADE)
def test_eigenpairs_of_made_operators_verify(name: str, run: Run) -> None:
    pairs = sh.eigsh(MADE[name](sh.objective_of(run, examples=64, dtype="float64")), 2)
    verified = sh.verify(pairs, [run])
    assert verified.agrees, verified.text
    changed = replace(pairs, values=pairs.values * 1.001)
    assert {"eigenvalue 1", "eigenvalue 2"} <= beyond(changed, [run]).keys()


def test_scales_that_no_file_has_cannot_be_verified(run: Run) -> None:
    A = sh.Scaled(sh.Hessian(sh.objective_of(run, examples=64)), run.end.theta.abs())
    with pytest.raises(sh.InputError, match="or block of such, got Scaled: compare the numbers"):
        sh.verify(sh.trace(A, probes=3), [run])


def test_differences_of_gradients_are_held_to_the_error_that_they_tell(
    results: dict[str, Any],
) -> None:
    run = results["Run"]
    A = Hessian(sh.objective_of(run, dtype="float64", examples=50), engine="finite-difference")
    pairs = sh.eigsh(A, 1, tol=1e-3)
    assert pairs.spec["operator"]["product_error"] > 0
    assert not beyond(pairs, [run])
    assert beyond(replace(pairs, values=1.001 * pairs.values), [run])


ESTIMATES: dict[str, Callable[[sh.Hessian], Any]] = {
    "hutchinson": lambda A: sh.trace(A, method="hutchinson", probes=9),
    "hutch++, beyond its first samples": lambda A: sh.trace(A, probes=9, rtol=1e-9, budget=15),
    "xtrace": lambda A: sh.trace(A, method="xtrace", probes=8),
    "trace without eigenvectors": lambda A: sh.trace(A, probes=9, deflate=sh.eigsh(A, 2)),
    "squared norm": lambda A: sh.frobenius(A, probes=9),
    "bekas": lambda A: sh.diagonal(A, method="bekas", probes=3),
    "one sample": lambda A: sh.trace(A, method="hutchinson", probes=1),
    "one probe": lambda A: sh.density(A, steps=5, probes=1),
    "a probe without eigenvectors": lambda A: sh.density(A, steps=5, deflate=sh.eigsh(A, 2)),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("made", ESTIMATES.values(), ids=ESTIMATES.keys())
def test_estimates_of_every_method_verify(
    made: Callable[[sh.Hessian], Any], dtype: str, run: Run
) -> None:
    found = made(sh.Hessian(sh.objective_of(run, examples=64, dtype=dtype)))
    verified = sh.verify(found, [run])
    assert verified.agrees, verified.text
    assert not verified.notes
    assert len(verified.checks) > 5


LAYERS: dict[str, Callable[[sh.Hessian], Any]] = {
    "tensors": lambda A: sh.layers(A, probes=9),
    "modules": lambda A: sh.layers(A, by="module", probes=9),
    "one sample": lambda A: sh.layers(A, probes=3),
    "not converged": lambda A: sh.layers(A, probes=6, budget=5),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("made", LAYERS.values(), ids=LAYERS.keys())
def test_layers_verify(made: Callable[[sh.Hessian], Any], dtype: str, run: Run) -> None:
    found = made(sh.Hessian(sh.objective_of(run, examples=64, dtype=dtype)))
    verified = sh.verify(found, [run])
    assert verified.agrees, verified.text
    assert not verified.notes
    assert "layers and the whole" in verified.subject


def test_of_groups_whose_places_are_in_no_file_the_whole_is_verified(run: Run) -> None:
    A = sh.Hessian(sh.objective_of(run, examples=64))
    groups = {"even": torch.arange(0, A.size, 2), "odd": torch.arange(1, A.size, 2)}
    found = sh.layers(A, groups=groups, probes=6)
    verified = sh.verify(found, [run])
    assert verified.agrees, verified.text
    assert verified.subject == "the whole"
    assert verified.notes == ["layers taken as they are, for their places are in no file"]
    assert "traces of odd" in beyond(replace(found, traces=1.01 * found.traces), [run])


def test_a_sample_that_no_number_made_of_them_gives_away_is_found(run: Run) -> None:
    A = sh.Hessian(sh.objective_of(run, examples=64))
    for method in ("hutchinson", "hutch++", "xtrace"):
        found = sh.trace(A, method=method, probes=12)
        # Moved against each other, so that their mean is the same.
        samples = moved(found.samples, 0)
        samples[-1] -= float(samples[0] - found.samples[0])
        assert {"sample 1", f"sample {len(samples)}"} <= beyond(
            replace(found, samples=samples), [run]
        ).keys()


def test_other_eigenvectors_of_the_same_eigenvalues_leave_the_same_probe(run: Run) -> None:
    A = sh.Hessian(sh.objective_of(run, examples=64))
    found = sh.density(A, steps=20, probes=1, deflate=sh.eigsh(A, 2, seed=5))
    again = {**found.spec, "pairs": {**found.spec["pairs"], "seed": 0}}
    verified = sh.verify(replace(found, spec=again), [run])
    assert verified.agrees, verified.text
    assert any(check.difference for check in verified.checks)


def test_what_takes_too_many_products_is_told_and_left_out(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    A = sh.Hessian(sh.objective_of(run, examples=64))
    pairs = sh.eigsh(A, 2)
    made = [
        sh.density(A, steps=3, probes=1, deflate=pairs),
        sh.trace(A, probes=12),
        sh.trace(A, probes=6, deflate=pairs),
        sh.diagonal(A, probes=12),
        sh.density(A, steps=3, probes=1, deflate=sh.eigsh(A, 2, v0=pairs.vectors)),
    ]
    monkeypatch.setattr(recomputing, "AFFORDED", 8)
    for found in made:
        (note,) = sh.verify(found, [run]).notes
        assert "recomputed, for" in note or "taken as they are, for" in note
    few = sh.trace(A, method="hutchinson", probes=12)  # whose first samples can be had alone
    verified = sh.verify(few, [run])
    assert verified.subject == "3 of 12 samples"
    assert not verified.notes


@pytest.fixture(scope="module")
def normalized() -> list[Run]:
    """Two trainings of a network with BatchNorm."""
    options = {"model": "cnn", "model_options": {"channels": [2, 2]}, "train_examples": 64}
    with cpu_threads(1):
        return [train(TrainConfig(batch_size=b, updates=2, **options)) for b in (16, 64)]


@pytest.mark.parametrize("micro_batch", [None, 16, 1024])
@pytest.mark.parametrize("policy", ["frozen", "batch", "reestimate"])
def test_the_statistics_of_the_spec_are_taken_again(
    policy: str, micro_batch: int | None, normalized: list[Run]
) -> None:
    run = normalized[0]
    if policy == "batch" and micro_batch == 16:
        f = sh.objective_of(run, micro_batch=16).under("batch")
    else:
        f = sh.objective_of(run, batch_norm=policy, micro_batch=micro_batch)
    with cpu_threads(f.spec["threads"]):
        found = sh.epsilon_sharpness(f, run.end, starts=0, sign_starts=1)
    verified = sh.verify(found, normalized)
    assert verified.agrees, verified.text
    assert all(check.stored == check.recomputed for check in verified.checks[:2])


@pytest.mark.parametrize("policy", ["frozen", "reestimate"])
def test_statistics_of_other_batches_than_those_of_the_loss_are_taken_again(
    policy: str, normalized: list[Run]
) -> None:
    # Little memory makes batches small, and leaves those of the statistics as they are.
    f = sh.objective_of(normalized[0], batch_norm=policy, memory=2**17)
    assert f.spec["micro_batch"] < f.spec["statistics"]["micro_batch"]
    small = sh.objective_of(normalized[0], batch_norm=policy, micro_batch=f.spec["micro_batch"])
    same = f.value(f.theta) == small.value(f.theta)
    assert same == (policy == "frozen")
    found = sh.epsilon_sharpness(f, starts=0, sign_starts=1)
    verified = sh.verify(found, normalized)
    assert verified.agrees, verified.text
    assert all(check.stored == check.recomputed for check in verified.checks[:2])


@pytest.mark.parametrize("policy", ["interpolate", None])
def test_a_line_verifies_under_the_policy_it_took(
    policy: str | None, normalized: list[Run]
) -> None:
    a, b = normalized
    f = sh.objective_of(a)
    alphas = torch.linspace(0, 1, 5).double()
    line = sh.line(f, a.end, b.end, alphas=alphas, batch_norm=policy)
    assert line.spec["batch_norm"] == (policy or "reestimate")
    verified = sh.verify(line, normalized)
    assert verified.agrees, verified.text
    changed = replace(line, values=line.values | {"loss": moved(line.values["loss"], 2, 1e-4)})
    assert list(beyond(changed, normalized)) == ["loss at alpha 0.5"]


def test_a_plane_that_is_not_finite_verifies_and_one_made_finite_does_not(run: Run) -> None:
    f = sh.objective_of(run, dtype="float32")
    u, v = filter_normalized(f, 2)
    alphas = torch.tensor([-1e30, 0.0])
    plane = sh.plane(f, run.end, u, v, alphas=alphas, betas=torch.tensor([0.0, 1e30]))
    loss = plane.values["loss"]
    assert not torch.isfinite(loss[0, 0])
    assert not beyond(plane, [run])
    for number in (1.0, -torch.inf):
        other = loss.clone()
        other[0, 0] = number
        changed = replace(plane, values=plane.values | {"loss": other})
        assert len(beyond(changed, [run])) == 1
    convexity = sh.convexity(
        f,
        run.end,
        u,
        v,
        alphas=alphas[:1] * torch.tensor([2.0, 1.0]),
        betas=torch.tensor([0.0, 1e30]),
    )
    assert convexity.largest.isnan().any()
    assert not beyond(convexity, [run])


def test_an_interrupted_training_verifies_at_its_start(run: Run) -> None:
    verified = sh.verify(replace(run, stopped="interrupted", updates=run.updates + 1))
    assert verified.agrees
    assert verified.text.startswith("loss and right answers at the start recomputed")
    assert "interrupted" in verified.notes[0]


def test_an_eigenvalue_that_did_not_converge_is_told_and_not_searched_again(run: Run) -> None:
    f = sh.objective_of(run)
    axis = torch.tensor([0.0, 1.0])
    convexity = sh.convexity(
        f, run.end, *filter_normalized(f, 2), alphas=axis, betas=axis, budget=8
    )
    assert not convexity.smallest_converged[0, 0]
    verified = sh.verify(convexity, [run])
    assert any("did not converge" in note for note in verified.notes)
    assert not any(check.name.startswith("smallest") for check in verified.checks)


def test_the_threads_of_the_spec_are_in_force_meanwhile(run: Run) -> None:
    seen = []

    def loss(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return torch.nn.functional.cross_entropy(z, y)

    with cpu_threads(2):
        trained = train(TrainConfig(model_options={"widths": []}, loss=loss, updates=1, threads=1))
        f = sh.objective_of(trained, loss=loss)
        found = sh.epsilon_sharpness(f, starts=0, sign_starts=1)
    with cpu_threads(1):
        seen.clear()
        assert sh.verify(found, [trained], loss=loss).agrees
        assert set(seen) == {2}
        assert torch.get_num_threads() == 1


# ---- what cannot be verified ---------------------------------------------------------------


def test_what_no_spec_can_build_again_is_refused(run: Run) -> None:
    f = sh.objective_of(run)
    by_hand = sh.Objective(f.model, f.batches, f.loss)
    made = sh.epsilon_sharpness(by_hand, starts=0, sign_starts=1)
    with pytest.raises(sh.InputError, match="objects in memory"):
        sh.verify(made, [run])
    with pytest.raises(sh.InputError, match=r"an operator of a run, .*, got Dense"):
        sh.verify(sh.eigsh(Dense(torch.eye(3)), 1), [run])
    with pytest.raises(sh.InputError, match="made by hand"):
        sh.verify(sh.Line(torch.zeros(1), {"loss": torch.ones(1)}, 0.0, {}))
    nowhere = sh.epsilon_sharpness(f, f.theta + 1, starts=0, sign_starts=1)
    with pytest.raises(sh.InputError, match="needs the solution with SHA-256"):
        sh.verify(nowhere, [run])


def test_a_run_of_another_seed_is_not_taken(run: Run) -> None:
    f = sh.objective_of(run)
    pairs = sh.eigsh(Hessian(f), 1)
    with cpu_threads(1):
        other = train(TrainConfig(**{**run.spec["train"], "seed": 1}))
    with pytest.raises(sh.InputError, match="needs the run that this came from"):
        sh.verify(pairs, [other])
    # Nor one that says it is the run, and is at other weights.
    false = replace(run, end=Solution(other.end.theta, other.end.buffers))
    with pytest.raises(sh.InputError, match="needs the solution with SHA-256"):
        sh.verify(pairs, [false])
    assert sh.verify(pairs, [other, false, run]).agrees


def test_what_is_not_as_it_was_is_told(run: Run) -> None:
    found = sh.epsilon_sharpness(sh.objective_of(run), starts=0, sign_starts=1)
    spec = found.spec | {"objective": found.spec["objective"] | {"gemm": "oneDNN"}}
    verified = sh.verify(replace(found, spec=spec), [run])
    assert verified.agrees
    assert verified.notes == ["matrix products by oneDNN then, by torch's default now"]
    if not torch.cuda.is_available():
        spec = found.spec | {"objective": found.spec["objective"] | {"device": "cuda"}}
        assert sh.verify(replace(found, spec=spec), [run]).notes == [
            "computed on cuda then, on the CPU now"
        ]


def test_an_objective_of_another_version_is_refused_by_what_differs(run: Run) -> None:
    found = sh.epsilon_sharpness(sh.objective_of(run), starts=0, sign_starts=1)
    spec = found.spec | {"objective": found.spec["objective"] | {"reduction": "median"}}
    with pytest.raises(sh.InputError, match="got another reduction"):
        sh.verify(replace(found, spec=spec), [run])


def test_infinite_tolerances_let_nothing_pass() -> None:
    inf, nan = float("inf"), float("nan")
    assert Check("x", inf, inf, inf, inf).agrees
    assert Check("x", nan, nan, nan, nan).agrees
    for stored, recomputed in ((1.0, inf), (inf, 1.0), (nan, 1.0), (1.0, nan), (inf, -inf)):
        assert not checks.of_exact("x", stored, recomputed).agrees
        assert not checks.of_stored("x", stored, recomputed).agrees


def test_a_loss_near_0_may_be_off_by_the_rounding_of_logits(run: Run) -> None:
    f = sh.objective_of(run)  # in float32, whose precision at 10 is 1e-6
    assert checks.of_loss("loss", 1e-8, 5e-7, f).agrees
    assert not checks.of_loss("loss", 1e-8, 5e-6, f).agrees
    assert not checks.of_sum("norm", 1e-8, 5e-7, f).agrees


# ---- the command ---------------------------------------------------------------------------


@pytest.fixture
def files(here: Path, ask: Ask) -> Path:
    """Runs and results as the commands leave them."""
    assert ask("train", *SHORT, "-o", "sb.h5")[0] == 0
    assert ask("train", *SHORT, "--seed=1", "--split-seed=0", "-o", "lb.h5")[0] == 0
    assert ask("eigs", "sb.h5", "-k2")[0] == 0
    assert ask("line", "sb.h5", "lb.h5", "--alphas=0:1:3")[0] == 0
    return here


def stored_as(path: str, change: Change) -> None:
    """Save a result again with a number changed, so that the seal is right."""
    result: Any = sh.load(path)
    request = store.request_of(path)
    sh.save(path, replace(result, **change(result)), request=request, overwrite=True)


def test_the_line_of_a_file_names_the_number_that_is_another(files: Path, ask: Ask) -> None:
    stored_as("sb.eigs.h5", field("values", 0))
    stored = float(sh.load("sb.eigs.h5").values[0])  # type: ignore[union-attr]
    code, out, err = ask("verify", "sb.eigs.h5", "sb.h5")
    assert code == 1
    first, second = out.splitlines()
    assert first.startswith(f"sb.eigs.h5: sealed; eigenvalue 1 is {stored:.10g} there, ")
    assert f"{stored / 1.1:.5g}"[:5] in first
    assert second.startswith("sb.h5: sealed; loss and right answers at the start and the end")
    assert err.startswith("sharpness: error: ")
    assert "sb.eigs.h5" in err


def test_a_flipped_bit_is_found_and_its_file_named(files: Path, ask: Ask) -> None:
    raw = bytearray(Path("sb.h5").read_bytes())
    raw[len(raw) // 2] ^= 1
    Path("sb.h5").write_bytes(raw)
    code, out, err = ask("verify", "lb.h5", "sb.h5")
    assert code == 1
    assert out.splitlines()[0].startswith("lb.h5: sealed; ")
    assert "broken seal" in out.splitlines()[1]
    assert "1 of 2" in err
    assert "sb.h5" in err
    # What came from it has the right seal, and cannot be verified by it.
    code, out, _ = ask("verify", "sb.eigs.h5")
    assert code == 1
    assert out.startswith("sb.eigs.h5: sealed, but not verified: ")


def test_the_worst_of_all_files_is_the_exit_code(files: Path, ask: Ask) -> None:
    Path("text.h5").write_text("nothing\n")
    order = [["sb.h5"], ["sb.h5", "nosuch.h5"], ["nosuch.h5", "text.h5", "sb.h5"]]
    for paths, code in zip(order, (0, 2, 1), strict=True):
        found = ask("verify", *paths)
        assert found[0] == code
        assert len(found[1].splitlines()) == len(paths)
        assert len(found[2].splitlines()) == (code > 0)
    assert ask("verify")[0] == 2
    assert ask("verify", ".")[0] == 2


def test_a_run_that_is_not_there_is_asked_for_by_its_seal(files: Path, ask: Ask) -> None:
    seal = store.seal_of("sb.h5")
    assert seal is not None
    (files / "away").mkdir()
    shutil.move("sb.h5", "away/sb.h5")
    code, out, _ = ask("verify", "sb.eigs.h5")
    assert code == 2
    assert f"needs the run with seal {seal[:12]}, its run: give that file too" in out
    assert ask("verify", "sb.eigs.h5", "away/sb.h5")[0] == 0
    # Another run of that name and these shapes is none.
    shutil.copy("lb.h5", "sb.h5")
    code, out, _ = ask("verify", "sb.eigs.h5")
    assert code == 2
    assert seal[:12] in out
    # The end of a line likewise.
    assert ask("verify", "sb-lb.line.h5", "away/sb.h5")[0] == 0
    Path("lb.h5").unlink()
    Path("sb.h5").unlink()
    code, out, _ = ask("verify", "sb-lb.line.h5", "away/sb.h5")
    assert code == 2
    assert "its end" in out


def test_json_is_one_document_with_every_number(files: Path, ask: Ask) -> None:
    stored_as("sb-lb.line.h5", field("distance"))
    code, out, _ = ask("verify", "--json", "sb.eigs.h5", "sb-lb.line.h5", "nosuch.h5")
    assert code == 1
    eigs, line, nosuch = json.loads(out)
    assert (eigs["file"], eigs["type"], eigs["sealed"]) == ("sb.eigs.h5", "Eigenpairs", True)
    assert eigs["agrees"] is True
    assert eigs["recomputed"] == "2 of 2 eigenvalues"
    assert eigs["error"] is None
    assert {check["name"] for check in eigs["checks"]} >= {"eigenvalue 1", "residual 2"}
    assert line["agrees"] is False
    (wrong,) = [check for check in line["checks"] if not check["agrees"]]
    assert wrong["name"] == "distance"
    assert wrong["stored"] == pytest.approx(1.1 * wrong["recomputed"])
    assert (nosuch["agrees"], nosuch["sealed"]) == (None, False)
    assert "nosuch.h5" in nosuch["error"]


def test_another_version_of_torch_is_told(
    here: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(store, "versions", lambda: {"torch": "2.0.1"})
        assert ask("train", *SHORT, "-o", "sb.h5")[0] == 0
    code, out, _ = ask("verify", "sb.h5")
    assert code == 0
    assert "computed by torch 2.0.1, recomputed by " in out


def test_runs_that_were_compared_give_their_numbers_again(files: Path, ask: Ask) -> None:
    assert ask("train", *SHORT, "--batch-size=60", "--split-seed=0", "-o", "small.h5")[0] == 0
    code, _, err = ask("compare", "sb.h5", "small.h5", "--workers=1")
    assert code == 0, err
    code, out, _ = ask("verify", "comparison.h5")
    assert (code, out) == (
        0,
        "comparison.h5: sealed; 1 contrast and the numbers of 2 runs recomputed, agree exactly\n",
    )
    stored_as("comparison.h5", entry("values", "distance", (0, 0)))
    code, out, _ = ask("verify", "comparison.h5")
    assert code == 1
    assert "distance of batch_size 60, seed 0 is" in out
    Path("small.h5").unlink()
    code, out, _ = ask("verify", "comparison.h5")
    assert "not all of the trainings are at hand" in ask("verify", "--json", "comparison.h5")[1]


NETS = """
import torch
from torch import nn

from sharpness.data import digits as images

print("imported")


def build():
    return nn.Sequential(nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 10))


def digits():
    (inputs, targets), _ = images()
    return (inputs[:100], targets[:100]), (inputs[100:200], targets[100:200])


def surprise(outputs, targets):
    return outputs.square().mean()
"""
BROUGHT = ("--model=nets:build", "--data=nets:digits", "--loss=cross_entropy")


@pytest.fixture
def nets(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of the user, not known yet in this process."""
    import sys

    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(names, "GIVEN", set())
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    (here / "nets.py").write_text(NETS)
    return here


def forget() -> None:
    """Be as a fresh process, to which nobody has named a module yet."""
    import sys

    sys.modules.pop("nets", None)
    names.GIVEN.clear()


def test_what_a_file_names_is_imported_only_on_the_users_word(nets: Path, ask: Ask) -> None:
    assert ask("train", *BROUGHT, "--updates=2", "-o", "run.h5")[0] == 0
    assert ask("eigs", "run.h5", "-k1")[0] == 0
    forget()
    code, out, err = ask("verify", "run.h5", "run.eigs.h5")
    assert code == 2
    assert out.count("nets:build") == 2
    assert "imported" not in out + err
    for given in (["--trust-spec"], BROUGHT[:2]):
        forget()
        code, out, err = ask("verify", "run.h5", "run.eigs.h5", *given)
        assert code == 0
        assert "imported" in err
        assert len(out.splitlines()) == 2
    forget()


def test_what_came_from_a_checkpoint_verifies_with_the_checkpoint(nets: Path, ask: Ask) -> None:
    for name in ("mine", "yours"):
        net = torch.nn.Sequential(torch.nn.Linear(64, 4), torch.nn.Tanh(), torch.nn.Linear(4, 10))
        torch.save(net.state_dict(), f"{name}.pt")
    assert ask("eigs", "mine.pt", "-k2", "--dtype=float64", *BROUGHT)[0] == 0
    assert ask("line", "mine.pt", "yours.pt", "--alphas=0:1:3", *BROUGHT)[0] == 0
    forget()
    code, out, _ = ask("verify", "mine.eigs.h5", "mine-yours.line.h5", *BROUGHT)
    assert (code, len(out.splitlines())) == (0, 2), out
    (nets / "away").mkdir()
    shutil.move("yours.pt", "away/yours.pt")
    code, out, _ = ask("verify", "mine.eigs.h5", "mine-yours.line.h5", *BROUGHT)
    assert code == 2
    assert "needs the checkpoint with SHA-256" in out
    code, out, _ = ask("verify", "mine-yours.line.h5", "away/yours.pt", *BROUGHT)
    assert code == 0
    assert "away/yours.pt: a checkpoint, which others came from" in out
    code, out, _ = ask("verify", "mine.eigs.h5", "away/yours.pt", *BROUGHT)
    assert code == 2
    assert "away/yours.pt: is no result of ours" in out
    # A script saves without a request: the spec has the SHA-256.
    sh.save("mine.script.h5", sh.load("mine.eigs.h5"))
    assert ask("verify", "mine.script.h5", *BROUGHT)[0] == 0
    # The run of a checkpoint has no history.
    names_of = {"model": "nets:build", "data": "nets:digits", "loss": "cross_entropy"}
    sh.save("mine.h5", sh.read("mine.pt", **names_of))
    assert ask("verify", "mine.h5")[1] == "mine.h5: sealed; no number in it can be recomputed\n"
    forget()


def test_a_checkpoint_in_hdf5_is_found_and_a_result_without_its_seal_is_damaged(
    nets: Path, ask: Ask
) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(64, 4), torch.nn.Tanh(), torch.nn.Linear(4, 10))
    with h5py.File("mine.h5", "w") as file:
        for name, tensor in net.state_dict().items():
            file[name] = tensor.numpy()
    assert ask("eigs", "mine.h5", "-k1", *BROUGHT)[0] == 0
    code, out, _ = ask("verify", "mine.h5", "mine.eigs.h5", *BROUGHT)
    assert code == 0
    assert out.startswith("mine.h5: a checkpoint, which others came from")
    raw = Path("mine.eigs.h5").read_bytes()
    Path("cut.h5").write_bytes(raw[:-1])
    code, out, _ = ask("verify", "cut.h5")
    assert code == 1
    assert "cut.h5: has no seal" in out
    forget()


def test_a_metric_of_the_user_is_left_out_unless_it_is_trusted(nets: Path, ask: Ask) -> None:
    assert ask("train", *SHORT, "-o", "sb.h5")[0] == 0
    options = ("--alphas=-1:1:3", "--metric=nets:surprise")
    assert ask("plane", "sb.h5", *options)[0] == 0
    forget()
    code, out, err = ask("verify", "sb.plane.h5")
    assert code == 0
    assert "surprise not recomputed" in out
    assert "imported" not in err
    stored_as("sb.plane.h5", entry("values", "train_surprise", (0, 0)))
    assert ask("verify", "sb.plane.h5")[0] == 0
    code, out, _ = ask("verify", "sb.plane.h5", "--trust-spec")
    assert code == 1
    assert "train_surprise at alpha -1, beta -1 is" in out
    forget()
