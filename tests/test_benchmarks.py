import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import benchmarks.__main__ as bench
from benchmarks import boxes, ensembles, landscapes, perturbations, spectra, trainings
from benchmarks.__main__ import Session, solvers
from benchmarks.bars import BARS, OTHERS, Bar, page, paired
from benchmarks.boxes import climb
from benchmarks.solvers import Timed, ours, ours_fast, scipy_on_ours, true_residual
from benchmarks.workloads import MAKERS, make, tiny
from sharpness.curvature import Dense, Hessian
from sharpness.errors import InputError
from sharpness.training import cpu_threads
from sharpness.vectors import gaussian, rademacher

SIZES = {"W1": 1_089_034, "W2": 1_457_674, "W3": 78_042, "W4": 110_400}
EXAMPLES = {"W1": 1797, "W2": 6000, "W3": 512, "W4": 128}


@pytest.mark.parametrize(
    ("at_most", "values", "met"),
    [
        (True, [1.0, 2.0, 9.0], True),
        (True, [2.1, 2.1, 0.1], False),
        (False, [2.0], True),
        (False, [1.9, 1.9, 9.0], False),
    ],
)
def test_a_bar_is_met_where_the_median_reaches_it(
    at_most: bool, values: list[float], met: bool
) -> None:
    row = Bar("x", "a ratio", 2.0, at_most=at_most).row(values)
    assert ("not reached" in row, "| yes |" in row) == (not met, met)


def test_a_missed_bar_and_one_without_a_measurement_are_on_the_page() -> None:
    session = Session([], 1, "")
    session.readings["gradient W1"] = [2.2, 2.3, 2.4]
    found = page({"gradients": session.part({"cores": 2}, [])})
    rows = [line for line in found.splitlines() if line.startswith("| one product")]
    assert rows[0].split(" | ")[1:] == ["at most 2.10", "2.30 (2.20 .. 2.40)", "**not reached** |"]
    assert ["| not measured |" in row for row in rows] == [False, True, True]


def test_every_bar_has_a_reading_of_its_own() -> None:
    keys = [bar.key for bar in BARS] + list(OTHERS)
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("name", SIZES)
def test_workloads_have_the_stated_sizes(name: str) -> None:
    w, _, _ = MAKERS[name](torch.Generator().manual_seed(0))
    assert sum(p.numel() for p in w.model.parameters()) == SIZES[name]
    assert len(w.inputs) == len(w.targets) == EXAMPLES[name]


def test_a_workload_takes_its_weights_and_means_over_tokens() -> None:
    drawn, _, _ = MAKERS["W4"](torch.Generator().manual_seed(1))
    w = make("W4", drawn.model.state_dict())
    assert not w.model.training
    f = w.objective()
    assert torch.equal(f.theta, drawn.objective().theta)
    with torch.no_grad():
        whole = w.loss(w.model(w.inputs), w.targets)
    assert float(f.value(f.theta)) == pytest.approx(float(whole), rel=1e-6)


def test_the_ratio_of_paired_times_is_the_median_of_the_ratios() -> None:
    assert paired([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == 2.0  # of the medians it is 4 / 3


def test_a_wrong_eigenvalue_has_a_residual_of_its_error() -> None:
    A = Dense(torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64)))
    values, vectors = torch.tensor([4.0, 2.0]), 3 * torch.eye(2)
    assert true_residual(A, values, vectors) == pytest.approx(0.25, rel=1e-12)


def test_ours_and_scipy_find_the_same_eigenpairs_and_count_their_products() -> None:
    mine, other = (solver(tiny(), 1e-4) for solver in (ours, scipy_on_ours))
    torch.testing.assert_close(mine.values.sort()[0], other.values.sort()[0], rtol=1e-3, atol=1e-4)
    A = Timed(Hessian(tiny().objective()))
    for answer in (mine, other):
        assert answer.products >= 10
        assert true_residual(A, answer.values, answer.vectors) <= 2e-4
    assert A.products == 20


def test_ours_with_the_faster_product_solves_the_same_problem() -> None:
    try:
        answer = ours_fast(tiny(), 1e-4)
    except InputError as error:
        pytest.skip(str(error))
    assert true_residual(Hessian(tiny().objective()), answer.values, answer.vectors) <= 2e-4


class Told(Session):
    """A session whose solvers take the seconds that are told, or fail with the text told."""

    def __init__(self, names: list[str], rounds: int, **told: float | str) -> None:
        super().__init__(names, rounds, "")
        self.asked: list[dict[str, Any]] = []
        self.told = {"scipy_on_ours": 8.0, "pyhessian": 16.0, **told}

    def ask(self, task: str, workload: str, **request: Any) -> dict[str, Any] | None:
        key = f"{request['quantity']} by {request['tool']}" if "tool" in request else ""
        seconds = self.told[key or request["solver"]]
        if isinstance(seconds, str):
            self.log.append({"found": {"error": seconds}})
            return None
        once = {"product_seconds": 1.0, "products": 9, "check_products": 1, "memory_mib": 1.0}
        self.asked.append(request)
        told = {"seconds": seconds, "trace": None, "bounds": [-1.0, 2.0], **once}
        return {**told, "values": [1.0], "residuals": {"float32": 1e-4}}


def test_times_are_set_over_both_of_ours_in_each_round() -> None:
    session = Told(["W1", "W3"], 2, ours=4.0, ours_fast=2.0, curvlinops=6.0)
    solvers(session)
    found = {key: session.readings.get(key) for key in ("ours_fast W1", "ours_fast W3")}
    assert found == {"ours_fast W1": [0.5, 0.5], "ours_fast W3": None}
    assert session.readings["curvlinops W1"] == [1.5, 1.5]
    assert session.readings["curvlinops W1 fast"] == [3.0, 3.0]
    assert session.readings["pyhessian W1 fast"] == [8.0]
    assert "curvlinops W3 fast" not in session.readings


def test_where_the_faster_product_is_refused_the_page_says_so_and_the_rest_goes_on() -> None:
    refused = "InputError: fast_gemm needs a CPU where | here: leave it out"
    session = Told(["W1"], 2, ours=4.0, ours_fast=refused, curvlinops=6.0)
    solvers(session)
    assert session.readings["curvlinops W1"] == [1.5, 1.5]
    text = page({"solvers": session.part({}, [])})
    assert (
        "| W1 | ours_fast | InputError: fast_gemm needs a CPU where / here: leave it out |" in text
    )
    bar = "| time of curvlinops over ours with fast_gemm, W1 | at least 2.20 | not measured | |"
    assert bar in text


def test_ours_and_the_bare_passes_have_the_same_loss_and_as_many_points() -> None:
    found = landscapes.ours(tiny(), tiny().batches(), 3).values["loss"]
    passes = landscapes.bare(tiny(), tiny().batches(), 3)
    assert found.numel() == len(passes)
    f = tiny().objective()
    assert passes[0] == pytest.approx(float(f.value(f.theta)), rel=1e-6)


def test_perturbations_make_as_many_passes_as_the_bare_ones_beside_them() -> None:
    w, cut = tiny(), tiny().batches()
    climbed = perturbations.worst(w, cut, 3)
    passes = perturbations.bare_gradients(w, cut, 4)
    assert (climbed.gradients, climbed.forwards) == (4, 0)
    f = w.objective()
    steep = float(torch.cat([part.flatten() for part in passes]).norm())
    assert climbed.details["first_order"].item() == pytest.approx(0.05 * steep, rel=1e-5)
    shaken = perturbations.average(w, cut, 3)
    assert (shaken.gradients, shaken.forwards) == (0, len(landscapes.bare_losses(w, cut, 7)))
    assert shaken.loss == pytest.approx(float(f.value(f.theta)))


def test_perturbations_are_read_beside_their_passes_and_random_vectors() -> None:
    found = {
        "worst": [2.2, 2.0],
        "adaptive": [3.0, 3.0],
        "gradients": [2.0, 2.0],
        "average": [3.3, 3.0],
        "forwards": [2.0, 2.0],
        "noise": [1.0, 1.0],
    }

    class Answered(Session):
        def ask(self, task: str, workload: str, **request: Any) -> dict[str, Any] | None:
            return found if (task, workload) == ("perturbed", "W1") else None

    session = Answered(["W1", "W2", "W4"], 1, "")
    perturbations.perturbations(session)
    assert {key: round(x, 9) for key, (x,) in session.readings.items()} == {
        "worst W1": 1.05,
        "adaptive W1": 1.5,
        "average W1": 1.05,
        "average W1 alone": 1.575,
    }
    text = page({"perturbations": session.part({}, [])})
    assert "| an adaptive worst case over its bare gradients, W1 | at most 1.05 | 1.50 |" in text
    assert "| an average case over its bare forward passes alone, W1 | 1.57 |" in text


def test_ours_estimates_what_it_says_from_as_many_products_as_it_is_asked_for() -> None:
    A, count = Hessian(tiny().objective()), 12
    like = A.theta.detach()
    signs = [rademacher(A.size, 0, i, like=like) for i in range(count)]
    v = gaussian(A.size, 0, 0, like=like)
    wanted = {
        "trace": sum(float(z @ (A @ z)) for z in signs) / count,
        "density": A.size * float(v @ (A @ v) / (v @ v)),  # all that one probe has of it
    }
    for quantity, value in wanted.items():
        found = spectra.TOOLS[quantity]["ours"](tiny(), count)
        assert (found.products, found.check_products) == (count, 2)
        assert found.trace == pytest.approx(value, rel=1e-3)


SECONDS: dict[str, float | str] = {
    "trace by ours": 4.0,
    "trace by ours_fast": 2.0,
    "trace by pyhessian_loader": 8.0,
    "trace by pyhessian_data": 5.0,
    "trace by curvlinops": 9.0,
    "density by ours": 2.0,
    "density by ours_fast": 1.0,
    "density by curvlinops": 3.0,
    "density by pyhessian": "RuntimeError: torch.eig was removed",
}


def test_estimates_of_peers_are_set_over_both_of_ours_in_time_and_by_product() -> None:
    session = Told(["W1"], 2, **SECONDS)
    spectra.spectra(session)
    found = session.readings
    assert found["trace pyhessian_loader W1"] == [2.0, 2.0]
    assert found["trace pyhessian_loader W1 fast"] == [4.0, 4.0]
    assert found["trace pyhessian_data W1"] == [1.25, 1.25]
    assert found["trace curvlinops W1 per product"] == pytest.approx([2.5, 2.5])  # 10 by 9
    assert found["density curvlinops W1"] == [1.5, 1.5]
    assert found["beside density W1"] == [0.5, 0.5]
    assert {bar.key for bar in BARS if bar.key.startswith(("trace", "density"))} <= set(found)
    told = [request["bounds"] for request in session.asked if request.get("bounds")]
    assert told == 4 * [[-1.0, 2.0]]  # curvlinops alone


def test_what_a_peer_cannot_do_is_asked_once_and_on_the_page() -> None:
    session = Told(["W1"], 3, **SECONDS)
    spectra.spectra(session)
    assert len([entry for entry in session.log if "error" in entry["found"]]) == 1
    row = "| W1 | density by pyhessian | RuntimeError: torch.eig was removed | - | - | - |"
    assert row in page({"spectra": session.part({}, [])})


@pytest.mark.parametrize(
    ("stderr", "line"),
    [
        ("Traceback (most recent call last):\n  raise x\nValueError: no\n", "ValueError: no"),
        ("a.b.InputError: x is gone\n\ntake y:\ny = x\n", "a.b.InputError: x is gone"),
        ("Segmentation fault\n", "Segmentation fault"),
        ("", "no message"),
    ],
)
def test_a_failure_is_told_by_the_line_that_names_it(stderr: str, line: str) -> None:
    assert bench.raised(stderr) == line


def test_without_their_workload_there_are_no_estimates() -> None:
    session = Told(["W4"], 1)
    spectra.spectra(session)
    assert (session.readings, session.estimates) == ({}, [])


@pytest.mark.parametrize("batch_size", [32, 250])
def test_both_trainings_are_the_same(batch_size: int) -> None:
    """Up to the rounding of the same operations on the same numbers: none."""
    with cpu_threads(1):
        found = {name: act() for name, act in trainings.actions(batch_size, 25).items()}
    assert torch.equal(found["ours"], found["by_hand"])


def test_both_descents_are_the_same_up_to_the_order_of_the_examples() -> None:
    with cpu_threads(1):
        found = {name: act() for name, act in trainings.actions(600, 25).items()}
    torch.testing.assert_close(found["ours"], found["by_hand"], rtol=1e-4, atol=1e-6)


def test_the_time_of_a_training_is_read_for_all_batch_sizes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = Session((), 2, "")
    monkeypatch.setattr(
        session, "ask", lambda *args, batch_size, fast=False: {"ratio": 1 + batch_size / 100 - fast}
    )
    trainings.trainings(session)
    assert session.readings == {
        **{f"training {size}": [1 + size / 100] * 2 for size in (8, 32, 600)},
        "training 600 fast": [6.0] * 2,
    }
    known = [bar.key for bar in BARS] + list(OTHERS)
    assert set(session.readings) == {key for key in known if key.startswith("training")}


def results(folder: Path) -> tuple[dict[str, Any], str]:
    return json.loads((folder / "results.json").read_text())["parts"], (
        folder / "results.md"
    ).read_text()


def test_a_part_is_merged_into_the_others_and_says_what_it_was_measured_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = {"gradient W1": 2.0, "floor W1": 1e-6}

    def section(*keys: str) -> Any:
        return lambda session: [session.read(key, reading[key]) for key in keys]

    monkeypatch.setattr(bench, "SECTIONS", {"a": section("gradient W1"), "b": section("floor W1")})
    monkeypatch.setattr(bench, "machine", lambda: {"torch": "1"})
    monkeypatch.setattr(Session, "ask", lambda *args, **request: {"loss": 0.0})
    only = bench.main.params[0]
    monkeypatch.setattr(only, "type", type(only.type)(["a", "b"]))

    def run(*arguments: str) -> None:
        done = CliRunner().invoke(bench.main, [*arguments, "-o", str(tmp_path)])
        assert done.exit_code == 0, done.output

    run()
    first, text = results(tmp_path)
    assert "Measured in one run" not in text
    monkeypatch.setattr(bench, "machine", lambda: {"torch": "2"})
    reading["floor W1"] = 2e-6
    run("--only", "b", "--merge")
    parts, text = results(tmp_path)
    assert parts["a"] == first["a"]
    assert parts["b"]["readings"] == {"floor W1": [2e-6]}
    assert "Measured in one run: a.\n\n- torch: 1\n" in text
    assert "Measured in one run: b.\n\n- torch: 2\n" in text
    # A reading that a section has no more is no reading of the new run.
    monkeypatch.setitem(bench.SECTIONS, "b", section())
    run("--only", "b", "--merge")
    parts, text = results(tmp_path)
    assert parts["b"]["readings"] == {}
    row = "| true residual in float32, asked for 1e-6, W1 | at most 2.5e-06 | not measured | |"
    assert row in text


@pytest.mark.parametrize("arguments", [["--merge"], ["--merge", "--quick", "--only", "floor"]])
def test_what_is_no_measured_part_is_not_merged(arguments: list[str]) -> None:
    done = CliRunner().invoke(bench.main, arguments)
    assert done.exit_code == 2
    assert "--merge is for sections named by --only" in done.output


def test_the_results_that_are_kept_are_those_on_the_page() -> None:
    parts, text = results(bench.HOME)
    for bar in BARS:
        values = [x for part in parts.values() for x in part["readings"].get(bar.key, [])]
        assert bar.row(values) in text


def test_a_way_up_tells_its_seconds_and_when_it_came_above_a_target() -> None:
    faithful = climb(tiny(), "faithful", fast=False)
    assert faithful["scipy_seconds"] > 0
    assert faithful["gradient_seconds"] + faithful["scipy_seconds"] < faithful["seconds"]
    low = climb(tiny(), "signs", fast=False, target=0.0)
    assert 1 < low["passed"]["gradients"] <= low["gradients"]
    assert low["passed"]["seconds"] <= low["seconds"]
    never = climb(tiny(), "signs", fast=False, target=2 * low["highest"] + 1)
    assert never["passed"] is None
    assert never["highest"] >= low["highest"]
    assert never["gradients"] > low["gradients"]


def test_ways_up_are_set_over_each_other() -> None:
    answers = {
        "faithful": {
            "seconds": 10.5,
            "gradient_seconds": 4.0,
            "scipy_seconds": 6.0,
            "highest": 2.0,
        },
        "signs": {
            "seconds": 2.0,
            "gradient_seconds": 1.9,
            "passed": {"seconds": 0.5, "gradients": 4},
        },
    }
    session = Session(["W1"], 1, "")
    session.ask = lambda task, name, way, **_: answers[way]  # type: ignore[method-assign]
    boxes.boxes(session)
    assert session.readings["beside faithful W1"] == [pytest.approx(0.05)]
    assert session.readings["beside signs W1"] == [pytest.approx(0.05)]
    assert session.readings["signs W1"] == session.readings["signs W1 fast"] == [21.0]
    answers["signs"]["passed"] = None
    boxes.boxes(session)
    assert session.readings["signs W1"] == [21.0, 0.0]


def test_a_stack_and_trainings_one_by_one_are_both_timed() -> None:
    found = ensembles.timed({"updates": 2, "model_options": {"widths": []}}, seeds=2)
    assert found.keys() == {"alone", "stack"}
    assert all(seconds > 0 for seconds in found.values())
