"""What did not converge, or is no number, is marked in every table and every figure.

A kind of result or a figure that comes later has to be listed here, with its mark or with the
reason why it has none.
"""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from inspect import isfunction
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from sharpness.cli.show import GRIDS, LINES, SUMMARIES, as_values
from sharpness.experiments import rates, verdict
from sharpness.experiments.design import Arm

from sharpness import (
    batch_plots,
    class_plots,
    layer_plots,
    measure_plots,
    plane_plots,
    plots,
    spectrum_plots,
    styles,
)
from sharpness.comparison import compared
from sharpness.curvature import Dense
from sharpness.results import (
    RESULTS,
    Comparison,
    Convexity,
    Cut,
    Eigenpairs,
    Line,
    Plane,
    Result,
    Trajectory,
)
from sharpness.spectrum import density, diagonal, trace
from sharpness.store import load, save


def missed(converged: torch.Tensor) -> torch.Tensor:
    """The same with one that did not converge, the last."""
    changed = converged.clone()
    changed.view(-1)[-1] = False
    return changed


def along_eigenvectors(found: Any, converged: list[bool]) -> Any:
    """The same along eigenvectors."""
    made = {"kind": "eigenvectors", "count": 2, "converged": converged}
    return replace(found, spec={**found.spec, "directions": made})


def without(found: Any, group: int) -> Any:
    values = {name: x.clone() for name, x in found.values.items()}
    values["lambda_1"][group, 0] = torch.nan
    return replace(found, values=values)


# By kind: the result as it is and with one eigenvalue or eigenvector that did not converge, and
# the mark of it, or why there is none.
DOUBTS: dict[str, Callable[[Any], tuple[Any, Any]] | str] = {
    "Run": "no eigenvalue; a loss that was to be met and was not is told",
    "Eigenpairs": lambda x: (x, replace(x, converged=missed(x.converged))),
    "Line": "no eigenvalue",
    "Cut": lambda x: (along_eigenvectors(x, [True] * 2), along_eigenvectors(x, [True, False])),
    "Sharpness": "a maximum from below, which is told",
    "SubspaceSharpness": "a mean of such maxima, with its interval",
    "Measured": lambda x: (x, replace(x, converged=False)),
    "Invariance": lambda x: (x, replace(x, converged=missed(x.converged))),
    "EpsilonTrend": "maxima from below, which is told of each",
    "Trajectory": lambda x: (x, replace(x, converged=missed(x.converged))),
    "Comparison": lambda x: (x, without(x, 0)),
    "Plane": lambda x: (along_eigenvectors(x, [True] * 2), along_eigenvectors(x, [True, False])),
    "Convexity": lambda x: (x, replace(x, smallest_converged=missed(x.smallest_converged))),
    "Density": "of probes, with their interval; what is deflated has converged",
    "Estimate": "a mean of samples; a tolerance that was to be met and was not is told",
    "Diagonal": "means of samples, with their standard errors",
    "Layers": lambda x: (x, replace(x, converged=missed(x.converged))),
    "BatchEigenvalues": lambda x: (x, replace(x, converged=missed(x.converged))),
    "ClassStructure": lambda x: (x, replace(x, converged=missed(x.converged))),
}
MARK = re.compile(r"not? converge|converged.* NO\b|\bNO\b|unknown", re.IGNORECASE)
DOUBTED = [kind for kind, made in DOUBTS.items() if not isinstance(made, str)]


def marks(words: list[str]) -> int:
    return len(MARK.findall("\n".join(words)))


def words(made: Figure) -> list[str]:
    """All that is written in a figure."""
    made.draw_without_rendering()
    return [text.get_text() for text in made.findobj(Text) if text.get_visible()]  # type: ignore[attr-defined]


def doubted(kind: str, results: dict[str, Result]) -> tuple[Any, Any]:
    make = DOUBTS[kind]
    assert not isinstance(make, str)
    before, after = make(results[kind])
    if isinstance(before, Convexity):  # of which each point may be in doubt
        sure = torch.ones_like(before.smallest_converged)
        before = replace(before, smallest_converged=sure, largest_converged=sure)
        after = replace(after, smallest_converged=missed(sure), largest_converged=sure)
    return before, after


def test_every_kind_of_result_is_listed() -> None:
    assert DOUBTS.keys() == RESULTS.keys()
    assert LINES.keys() == SUMMARIES.keys() == plots.FIGURES.keys() == set(RESULTS.values())


@pytest.mark.parametrize("kind", DOUBTED)
@pytest.mark.parametrize("told", [LINES, SUMMARIES, plots.FIGURES], ids=["show", "list", "figure"])
def test_what_did_not_converge_is_marked(
    kind: str, told: dict[type, Callable[[Any], Any]], results: dict[str, Result], tmp_path: Path
) -> None:
    before, after = doubted(kind, results)
    said = []
    for result in (before, after):
        save(tmp_path / f"{len(said)}.h5", result)
        shown = told[type(result)](load(tmp_path / f"{len(said)}.h5"))
        lines = words(shown) if isinstance(shown, Figure) else [shown]
        said.append(lines if isinstance(lines[0], str) else lines[0])
    assert marks(said[1]) > marks(said[0])


@pytest.mark.parametrize("kind", DOUBTED)
def test_machines_are_told_what_did_not_converge(kind: str, results: dict[str, Result]) -> None:
    before, after = (json.dumps(as_values(x), allow_nan=False) for x in doubted(kind, results))
    assert max(after.count("false") - before.count("false"), after.count("null")) > 0
    assert before != after


# ---- figures -----------------------------------------------------------------------------------

# The functions that draw a result or make a figure of it, by what tests them for marks.
BY_KIND = {
    "drawn",
    "training",
    "line",
    "cuts",
    "eigenvalues",
    "along",
    "contrasts",
    "starts",
    "trend",
}
BY_KIND |= {
    "draws",
    "plane",
    "convexity",
    "quantities",
    "density",
    "estimate",
    "diagonal",
    "layers",
    "class_eigenvalues",
}
BY_KIND |= {"batches", "batch_histogram", "batch_violins", "measured", "invariance"}
OTHERS = {
    "planes": "draws each by plane",
    "planes_figure": "draws each by plane",
    "paired": "of numbers that are there; the figures of recipes say what is left out",
    "band": "of numbers that are there; the figures of recipes say what is left out",
    "class_cosines": "of means, which take no search; classes without an example are told",
    "levels_of": "draws nothing",
    "default_width": "draws nothing",
    "height": "draws nothing",
    "invariance_size": "draws nothing",
    "figure": "draws nothing",
    "frame": "draws nothing",
    "label_decades": "draws nothing",
    "png": "draws nothing",
    "encoded": "draws nothing",
}
RECIPES = {
    "sharpness_figure",
    "along_figure",
    "eigenvalue_figure",
    "line_figure",
    "rate_figure",
    "best_figure",
}


def public(module: Any) -> set[str]:
    return {
        name
        for name, value in vars(module).items()
        if isfunction(value) and value.__module__ == module.__name__ and name[0] != "_"
    }


def test_every_function_that_draws_is_listed() -> None:
    modules = (
        *(plots, plane_plots, spectrum_plots, layer_plots, batch_plots, class_plots, styles),
        measure_plots,
    )
    assert set().union(*map(public, modules)) == BY_KIND | OTHERS.keys()
    figures = {name for module in (verdict, rates) for name in public(module) if "figure" in name}
    assert figures == RECIPES


def by_design(name: str) -> Comparison:
    """A comparison as a recipe of this design makes it, of three seeds."""
    arms = [Arm(f"b{B}-r{r:g}", f"batch {B}, rate {r:g}", B, r) for B in (8, 600) for r in (1, 2)]
    best = {"clean": {"8": 1.0, "600": 2.0}}
    parts = ("test", "choice", "report")
    measures = ["lambda_1", "adaptive_lambda_1", "metric_2_1_1e-3", "train_loss"]
    measures += [f"{part}_accuracy" for part in parts]
    groups = [f"clean, {arm.name}" for arm in arms]
    return compared(
        {m: {g: [1.0 + i, 2.0 + i, 1.5] for i, g in enumerate(groups)} for m in measures},
        {group: [True] * 3 for group in groups},
        range(3),
        {"clean: one / other": (groups[1], groups[0])} | rates.contrasts(arms, best),
        spec={
            "design": {"design": name, "level": 0.01, "epsilon": 1e-3},
            "conditions": {"clean": 0.0},
            "arms": [vars(arm) for arm in arms],
            "best": best,
            "unconverged": 0,
        },
    )


@pytest.fixture
def as_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let recipes return their figures instead of PNG files."""
    monkeypatch.setattr(plots, "png", lambda made: made)


@pytest.mark.usefixtures("as_figure")
@pytest.mark.parametrize("draw", [verdict.sharpness_figure, rates.rate_figure, rates.best_figure])
def test_figures_of_recipes_say_which_eigenvalues_are_left_out(draw: Any) -> None:
    found = by_design("pair" if draw is verdict.sharpness_figure else "batch-rate")
    assert not marks(words(draw(found)))
    text = words(draw(replace(found, spec={**found.spec, "unconverged": 2})))
    assert any("left out: lambda_1 of 2 runs, which did not converge" in line for line in text)


@pytest.mark.usefixtures("as_figure")
@pytest.mark.parametrize("draw", [verdict.along_figure, rates.along_figure])
def test_figures_along_trainings_say_which_eigenvalues_are_left_out(
    draw: Any, results: dict[str, Result]
) -> None:
    run = results["Trajectory"]
    assert isinstance(run, Trajectory)
    found = by_design("pair" if draw is verdict.along_figure else "batch-rate")
    arms = [arm["name"] for arm in found.spec["arms"]]
    found.spec["design"]["level"] = float(run.train_loss.min())
    sure = replace(run, converged=torch.ones_like(run.converged))
    along = {c: {arm: [sure, sure] for arm in arms} for c in found.spec["conditions"]}
    assert not marks(words(draw(found, along)))
    next(iter(along.values()))[arms[0]][1] = replace(sure, converged=missed(sure.converged))
    text = words(draw(found, along))
    assert any("left out: lambda_1 of 1 points, which did not converge" in line for line in text)


@pytest.mark.usefixtures("as_figure")
@pytest.mark.parametrize("panel", [0, 1])
def test_the_spectra_of_a_recipe_name_what_is_hollow(
    panel: int, results: dict[str, Result]
) -> None:
    pairs = results["Eigenpairs"]
    assert isinstance(pairs, Eigenpairs)
    sure = replace(pairs, converged=torch.ones_like(pairs.converged))
    spectra = {name: {"SB": sure, "LB": sure} for name in ("clean", "noisy")}
    assert not marks(words(verdict.eigenvalue_figure(spectra)))  # type: ignore[arg-type]
    list(spectra.values())[panel]["LB"] = replace(sure, converged=missed(sure.converged))
    assert marks(words(verdict.eigenvalue_figure(spectra))) == 1  # type: ignore[arg-type]


# ---- what is not finite ------------------------------------------------------------------------

FIELDS = {"Line": "values", "Cut": "values", "Plane": "values", "Convexity": None}
SPOILED = pytest.mark.parametrize("kind", FIELDS)
FORMS = pytest.mark.parametrize("much", ["some", "all"])


def spoiled(found: Any, much: str) -> Any:
    """The same with an infinite number in the first value and NaN in the last, or all NaN."""

    def spoil(x: torch.Tensor, first: bool) -> torch.Tensor:
        y = x.clone()
        if much == "all":
            return torch.full_like(y, torch.nan)
        y.view(-1)[0 if first else -1] = torch.inf if first else torch.nan
        return y

    if isinstance(found, Convexity):
        both = {"smallest": spoil(found.smallest, False), "largest": spoil(found.largest, False)}
        off = {name: torch.where(x.isnan(), False, True) for name, x in both.items()}
        return replace(found, **both, **{f"{name}_converged": x for name, x in off.items()})
    values = {k: spoil(x, i == 0) for i, (k, x) in enumerate(found.values.items())}
    if isinstance(found, Plane):
        beside = {
            field: {k: spoil(x, True) for k, x in getattr(found, field).items()}
            for field in ("path_values", "solution_values")
        }
        return replace(found, values=values, **beside)
    if isinstance(found, Cut) and much == "all":
        return replace(found, values=values, loss=torch.nan, slopes=found.slopes * torch.nan)
    return replace(found, values=values)


def test_every_grid_is_listed() -> None:
    assert {grid.__name__ for grid in GRIDS} == FIELDS.keys()


@SPOILED
@FORMS
def test_tables_say_what_is_not_finite_and_where(
    kind: str, much: str, results: dict[str, Result]
) -> None:
    found = results[kind]
    assert not any("NOT finite" in line for line in LINES[type(found)](found))
    assert "NOT finite" not in SUMMARIES[type(found)](found)
    result = spoiled(found, much)
    said = [line for line in LINES[type(result)](result) if line.startswith("NOT finite")]
    assert len(said) == len(GRIDS[type(result)](result))
    total = next(iter(GRIDS[type(result)](result).values())).numel()
    for line in said:
        if much == "all":
            assert f"at {total} of {total} points (everywhere)" in line
        else:
            assert f"at 1 of {total} points (" in line
            place = {"Line": "alpha", "Cut": "direction", "Plane": "alpha", "Convexity": "alpha"}
            assert f"({place[kind]} " in line
    assert "NOT finite" in SUMMARIES[type(result)](result)


@SPOILED
@FORMS
def test_machines_are_told_what_is_not_finite(
    kind: str, much: str, results: dict[str, Result]
) -> None:
    found = results[kind]
    assert as_values(found)["not_finite"] == {}
    values = as_values(spoiled(found, much))
    json.dumps(values, allow_nan=False)
    grid = GRIDS[type(found)](found)
    assert values["not_finite"].keys() == grid.keys()
    if much == "all":
        total = next(iter(grid.values())).numel()
        assert all(x == {"nan": total, "inf": 0} for x in values["not_finite"].values())
    elif kind != "Convexity":
        assert values["not_finite"][next(iter(grid))] == {"nan": 0, "inf": 1}
    assert "null" in json.dumps(values["values" if kind != "Convexity" else "largest"])


@SPOILED
@FORMS
def test_figures_mark_what_is_not_finite(
    kind: str, much: str, results: dict[str, Result], tmp_path: Path
) -> None:
    found = results[kind]
    mark = "no ratio" if kind == "Convexity" else "not finite"
    before = words(plots.drawn(found))
    save(tmp_path / "spoiled.h5", spoiled(found, much))
    made = plots.drawn(load(tmp_path / "spoiled.h5"))
    after = words(made)
    if kind != "Convexity":  # the ratio of a few points of the fixture may be unknown
        assert not any(mark in line for line in before)
    assert any(mark in line for line in after)
    for form in plots.FORMATS:
        assert len(plots.encoded(made, form=form, dpi=40)) > 1000


@SPOILED
def test_tables_of_other_libraries_keep_what_is_not_finite(
    kind: str, results: dict[str, Result]
) -> None:
    pytest.importorskip("xarray")
    result = spoiled(results[kind], "some")
    table = result.to_xarray()
    for name, x in GRIDS[type(result)](result).items():
        assert torch.equal(torch.as_tensor(table[name].values).isfinite(), x.isfinite())


@pytest.mark.parametrize("shape", plots.KINDS)
@FORMS
def test_every_kind_of_plane_marks_its_own_and_what_lies_beside(
    shape: str, much: str, results: dict[str, Result]
) -> None:
    found = results["Plane"]
    assert isinstance(found, Plane)
    made = plots.planes_figure({"a": spoiled(found, much), "b": found}, kind=shape)
    text = words(made)
    assert "train loss not finite" in text
    assert "its own train loss not finite" in text
    (ax, *_) = made.axes
    beside = next(x for x in ax.get_lines() if x.get_label() == "its own train loss not finite")
    points = len(found.path) + len(found.solutions) if much == "all" else 2
    assert len(beside.get_xdata()) == points


@pytest.mark.usefixtures("as_figure")
@FORMS
def test_lines_of_a_recipe_are_drawn_with_what_is_not_finite(
    much: str, results: dict[str, Result]
) -> None:
    found = results["Line"]
    assert isinstance(found, Line)
    made = verdict.line_figure({"clean": [("SB to LB", spoiled(found, much))] * 2})
    assert "not finite" in words(made)  # type: ignore[arg-type]


def test_a_barrier_over_what_is_no_number_is_unknown_and_not_monotone_or_not() -> None:
    alphas = torch.linspace(0, 1, 5)
    loss = torch.tensor([1.0, 2.0, torch.nan, 0.5, 0.2])
    found = Line(alphas, {"loss": loss}, 1.0, {"objectives": {}})
    (row,) = [line for line in LINES[Line](found) if line.startswith("loss ") and "unkn" in line]
    assert row.split() == ["loss", *["unknown"] * 6]


def test_a_comparison_counts_only_runs_that_were_to_be_compared(
    results: dict[str, Result],
) -> None:
    """In the fixture a run has no numbers, and did not meet the loss either."""
    found = results["Comparison"]
    assert isinstance(found, Comparison)
    assert "UNKNOWN" not in SUMMARIES[Comparison](found)
    assert "1 values UNKNOWN" in SUMMARIES[Comparison](without(found, 0))


# ---- estimates from probes ---------------------------------------------------------------------


def told(result: Any) -> str:
    return "\n".join([*LINES[type(result)](result), SUMMARIES[type(result)](result)])


def test_a_density_of_one_probe_has_no_interval_and_says_so() -> None:
    A = Dense(torch.diag(torch.arange(-3.0, 9.0)))
    several, one = (told(density(A, steps=4, probes=probes)) for probes in (3, 1))
    assert "[unknown]" not in several
    assert one.count("[unknown]") == 4  # the mean, and the shares above, at and below 0
    assert not re.search(r"\[[^u]", one)


def test_shares_of_signs_are_those_of_the_spectrum_and_what_steps_cannot_tell_is_told() -> None:
    values = torch.tensor([-2.0] + 3 * [0.0] + 4 * [5.0]).double()
    A = Dense(torch.diag(values))
    whole = density(A, steps=3, probes=400)
    for share, count in ((whole.negative_mass, 1), (whole.zero_mass, 3), (whole.positive_mass, 4)):
        mean, low, high = share
        assert low <= mean <= high
        assert mean == pytest.approx(count / 8, abs=0.05)
    assert "do not tell" not in told(whole)
    # One step of a probe is one node; two are on both sides of 0, with all of the weight.
    assert "nodes beside 0 have a share of 1, whose sign 2 steps do not tell" in told(
        density(A, steps=2, probes=3)
    )


def test_an_estimate_tells_its_interval_its_cost_and_a_tolerance_that_was_not_met() -> None:
    A = Dense(torch.diag(torch.arange(1.0, 41.0)).double() + torch.ones(40, 40).double())
    found = trace(A, probes=12, rtol=1e-9, budget=20)
    low, high = found.interval.tolist()
    words = told(found)
    numbers = re.search(
        r"trace (\S+) \[(\S+), (\S+)\], standard error (\S+), of 20 products", words
    )
    assert numbers
    stored = [found.value, low, high, found.stderr]
    assert [float(x) for x in numbers.groups()] == pytest.approx(stored, rel=0.01)
    assert "by hutch++" in words
    assert words.count("NOT within rtol 1e-09") == 2  # in the table and in the list
    assert "NOT" not in told(trace(A, probes=12, rtol=1.0))
    assert "NOT" not in told(trace(A, probes=12))


def test_an_estimate_of_one_sample_is_unknown_and_not_sure() -> None:
    words = told(trace(Dense(torch.eye(9)), probes=1, method="hutchinson"))
    assert "trace 9 [unknown], standard error unknown, of 1 product by hutchinson" in words
    exact = told(trace(Dense(torch.eye(9)), probes=4, method="hutchinson"))
    assert "trace 9 [9, 9], standard error 0, of 4 products" in exact


def test_a_diagonal_tells_its_ends_and_how_many_entries_are_below_0() -> None:
    A = Dense(torch.diag(torch.tensor([4.0, -1.0, 2.0, -3.0])))
    words = told(diagonal(A, method="bekas", probes=3))
    assert re.search(r"largest +0 +4 +0\b", words)
    assert re.search(r"smallest +3 +-3 +0\b", words)
    assert "sum 2; below 0 by more than two standard errors: 2 of 4" in words
    one = told(diagonal(A, method="bekas", probes=1))
    assert one.count("unknown") == 4  # both errors, the count, and in the list
    assert "two standard errors: unknown" in one


def test_what_is_unknown_of_an_estimate_is_null_for_machines() -> None:
    values = as_values(trace(Dense(torch.eye(9)), probes=1, method="hutchinson"))
    assert (values["stderr"], values["interval"]) == (None, [None, None])
    early = density(Dense(torch.eye(9)), steps=3, probes=2, pieces={})
    assert json.dumps(as_values(early), allow_nan=False)
