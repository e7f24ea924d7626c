"""Sharpness on mini-batches and in the optimizer's metric is what closed forms say it is."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sharpness.by_batch import draw
from sharpness.curvature import Hessian
from sharpness.errors import ComputationError, InputError
from sharpness.lanczos import eigsh
from sharpness.objective import Objective
from sharpness.optimizers import OPTIMIZERS
from sharpness.problem import objective_of
from sharpness.results import Measured, Run, Solution
from sharpness.stability import batch_sharpness, preconditioned_sharpness
from sharpness.thresholds import RULES, at_end, is_plain, preconditioner, stability_threshold
from sharpness.training import TrainConfig, train


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def half_square(z: Tensor, y: Tensor) -> Tensor:
    return (z - y).square().mean() / 2


def least_squares(x: Tensor, w: Tensor, y: Tensor | None = None, size: int = 100) -> Objective:
    """The mean of r^2 / 2 at w, in batches of this size."""
    model = nn.Linear(x.shape[1], 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(w[None])
    y = torch.zeros(len(x)).double() if y is None else y
    return Objective(
        model, list(zip(x.split(size), y[:, None].split(size), strict=True)), half_square
    )


ROWS = torch.stack([numbers(1, 0), numbers(0, 2), numbers(2, 1)])
ONES = numbers(1, 1)
FORMS: tuple[Any, ...] = ("mean", "ratio")


def by_hand(x: Tensor, w: Tensor, rows: Tensor) -> tuple[float, float]:
    """Return g'Hg and |g|^2 of least squares with targets 0 on these rows."""
    part = x[rows]
    H = part.T @ part / len(part)
    g = H @ w
    return float(g @ H @ g), float(g @ g)


# ---- mini-batches ------------------------------------------------------------------------------


def test_each_mini_batch_gives_the_curvature_along_its_own_gradient() -> None:
    x, w = torch.randn(11, 3).double(), torch.randn(3).double()
    found = batch_sharpness(least_squares(x, w, size=4), batch_size=5, batches=6, seed=3)
    for i in range(6):
        rows = draw(11, 5, 3, i)
        assert len(set(rows.tolist())) == 5
        gHg, gg = by_hand(x, w, rows)
        torch.testing.assert_close(float(found.samples["gHg"][i]), gHg)
        torch.testing.assert_close(float(found.samples["gg"][i]), gg)
        torch.testing.assert_close(float(found.samples["mean"][i]), gHg / gg)
    mean = found.samples["mean"].mean()
    torch.testing.assert_close(found.value, float(mean))
    torch.testing.assert_close(found.stderr, float(found.samples["mean"].std() / 6**0.5))
    assert found.interval[0] < found.value < found.interval[1]


@pytest.mark.parametrize(
    ("form", "size", "exact"),
    [("ratio", 1, 145 / 31), ("mean", 1, 10 / 3), ("ratio", 2, 3.0), ("mean", 2, 2.70067613)],
)
def test_three_rows_have_the_batch_sharpness_of_the_closed_form(
    form: Any, size: int, exact: float
) -> None:
    subsets = [by_hand(ROWS, ONES, torch.tensor(s)) for s in combinations(range(3), size)]
    gHg, gg = torch.tensor(subsets, dtype=torch.float64).T
    enumerated = gHg.sum() / gg.sum() if form == "ratio" else (gHg / gg).mean()
    assert abs(float(enumerated) - exact) < 1e-8
    found = batch_sharpness(least_squares(ROWS, ONES), batch_size=size, form=form, batches=400)
    assert found.stderr > 0
    assert abs(found.value - exact) < 4 * found.stderr
    assert abs(float(found.details[form]) - exact) < 4 * found.stderr


@pytest.mark.parametrize("form", ["mean", "ratio"])
def test_all_examples_are_one_exact_mini_batch_in_which_the_forms_agree(form: Any) -> None:
    found = batch_sharpness(least_squares(ROWS, ONES, size=2), batch_size=3, form=form)
    assert found.value == pytest.approx(7 / 3, rel=1e-14)
    assert float(found.details["mean"]) == float(found.details["ratio"]) == found.value
    assert (found.stderr, found.interval.tolist()) == (0.0, [found.value] * 2)
    assert (found.gradients, found.products, found.forwards) == (2.0, 1.0, 1.0)  # two batches
    assert len(found.samples[form]) == 1
    whole = batch_sharpness(least_squares(ROWS, ONES), batch_size=3, form=form)
    assert whole.value == pytest.approx(found.value, rel=1e-14)
    assert whole.gradients == 1.0


def expected(x: Tensor, w: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """Return E[g'Hg] and E[|g|^2] over all batches of b rows, by counting pairs and triples."""
    N, gi = len(x), x * (x @ w)[:, None]
    G, K = gi.sum(0), x.T @ x
    p1 = b / N
    p2 = p1 * (b - 1) / (N - 1)
    p3 = p2 * (b - 2) / (N - 2)
    a1 = (x * gi).sum(1).square().sum()
    a2 = torch.einsum("ni,ij,nj->", gi, K, gi) - a1
    a3 = 2 * ((x @ G) @ (x * gi).sum(1) - a1)
    a4 = G @ K @ G - a1 - a2 - a3
    squares = gi.square().sum()
    gHg = (p1 * a1 + p2 * (a2 + a3) + p3 * a4) / b**3
    return gHg, (p1 * squares + p2 * (G @ G - squares)) / b**2


def test_eight_examples_have_the_ratio_that_counting_pairs_and_triples_gives() -> None:
    x, w = torch.randn(8, 3).double(), torch.randn(3).double()
    gHg, gg = expected(x, w, 3)
    subsets = [by_hand(x, w, torch.tensor(s)) for s in combinations(range(8), 3)]
    over, under = torch.tensor(subsets, dtype=torch.float64).mean(0)
    torch.testing.assert_close(over, gHg, rtol=1e-12, atol=0)
    torch.testing.assert_close(under, gg, rtol=1e-12, atol=0)
    f = least_squares(x, w, size=3)
    found = batch_sharpness(f, batch_size=3, form="ratio", batches=600)
    assert abs(found.value - float(gHg / gg)) < 4 * found.stderr


def test_rows_of_one_norm_have_it_as_their_batch_sharpness_everywhere() -> None:
    x = torch.randn(9, 4).double()
    x = 2 * x / x.norm(dim=1, keepdim=True)
    for form in FORMS:
        f = least_squares(x, torch.randn(4).double())
        found = batch_sharpness(f, batch_size=1, batches=20, form=form)
        assert found.value == pytest.approx(4, rel=1e-12)
        assert found.stderr < 1e-12


def test_the_mean_is_at_most_that_of_the_largest_eigenvalues() -> None:
    x, w = torch.randn(12, 4).double(), torch.randn(4).double()
    found = batch_sharpness(least_squares(x, w), batch_size=3, batches=30)
    for i, value in enumerate(found.samples["mean"]):
        part = x[draw(12, 3, 0, i)]
        assert value <= torch.linalg.eigvalsh(part.T @ part / 3)[-1] * (1 + 1e-12)


def test_splitting_the_data_does_not_change_batch_sharpness() -> None:
    x, w, y = torch.randn(20, 3).double(), torch.randn(3).double(), torch.randn(20).double()
    values = [
        batch_sharpness(least_squares(x, w, y, size), batch_size=9, batches=5).value
        for size in (20, 7, 1)
    ]
    torch.testing.assert_close(torch.tensor(values), torch.tensor(values[:1] * 3))


def test_a_multiple_of_the_loss_multiplies_batch_sharpness() -> None:
    x, w = torch.randn(9, 3).double(), torch.randn(3).double()
    f = least_squares(x, w)
    one = batch_sharpness(f, batch_size=2, batches=7)
    g = Objective(f.model, f.batches, lambda z, y: 8 * half_square(z, y))
    torch.testing.assert_close(batch_sharpness(g, batch_size=2, batches=7).value, 8 * one.value)


def test_mini_batches_without_a_gradient_do_not_count_and_their_share_is_told() -> None:
    x = torch.stack([numbers(1, 0), numbers(0, 3)])
    f = least_squares(x, numbers(0, 1))  # the first row is interpolated
    found = batch_sharpness(f, batch_size=1, batches=50, seed=1)
    empty = sum(int(draw(2, 1, 1, i)) == 0 for i in range(50))
    assert 0 < empty < 50
    assert found.value == pytest.approx(9, rel=1e-12)
    assert float(found.details["without_gradient"]) == empty / 50
    assert f"{2 * empty} % of the mini-batches have no gradient" in found.words
    assert int(found.samples["mean"].isnan().sum()) == empty
    nowhere = batch_sharpness(f, numbers(0, 0), batch_size=1, batches=3)
    assert math.isnan(nowhere.value)
    assert not nowhere.converged
    assert nowhere.words.startswith("undefined: no mini-batch has a gradient")
    assert nowhere.interval.isnan().all()


def test_the_ratio_is_the_jackknife_of_its_mini_batches() -> None:
    x, w = torch.randn(15, 3).double(), torch.randn(3).double()
    found = batch_sharpness(least_squares(x, w), batch_size=2, batches=12, form="ratio")
    gHg, gg = found.samples["gHg"], found.samples["gg"]
    keep = [[j for j in range(12) if j != i] for i in range(12)]
    left = torch.stack([gHg[k].sum() / gg[k].sum() for k in keep])
    value = 12 * gHg.sum() / gg.sum() - 11 * left.mean()
    error = (11 / 12 * (left - left.mean()).square().sum()).sqrt()
    torch.testing.assert_close(found.value, float(value))
    torch.testing.assert_close(found.stderr, float(error))
    assert "covers too seldom" in found.words
    enough = batch_sharpness(least_squares(x, w), batch_size=2, form="ratio")
    assert "covers too seldom" not in enough.words


def covered(K: int, trials: int) -> float:
    """Return how often the interval of a heavy-tailed ratio covers the exact one."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(400, 6, generator=generator).double()
    x, w = x * torch.randn(400, 1, generator=generator).double().mul(0.5).exp(), torch.ones(6)
    gHg, gg = expected(x, w.double(), 8)
    f = least_squares(x, w.double())
    inside = 0
    for trial in range(trials):
        rows = [torch.randperm(400, generator=generator)[:8] for _ in range(K)]
        pieces = {
            f"batch {i}": torch.tensor([*by_hand(x, w.double(), chosen), 1], dtype=torch.float64)
            for i, chosen in enumerate(rows)
        }
        found = batch_sharpness(f, batch_size=8, batches=K, form="ratio", pieces=pieces, seed=trial)
        inside += bool(found.interval[0] <= gHg / gg <= found.interval[1])
    return inside / trials


@pytest.mark.slow
def test_the_interval_of_a_ratio_covers_from_200_mini_batches_on_and_of_10_it_does_not() -> None:
    slack = 4 * math.sqrt(0.95 * 0.05 / 400)
    assert covered(200, 400) > 0.95 - slack
    assert covered(10, 400) < 0.95 - slack


def test_pieces_that_are_there_are_not_computed_again() -> None:
    f, calls = counted(least_squares(torch.randn(9, 3).double(), torch.ones(3).double()))
    pieces: dict[str, Tensor] = {}
    one = batch_sharpness(f, batch_size=2, batches=4, pieces=pieces)
    before = len(calls)
    again = batch_sharpness(f, batch_size=2, batches=5, pieces=pieces)
    assert len(calls) == before + 2  # the loss at the point, and one more mini-batch
    assert torch.equal(again.samples["mean"][:4], one.samples["mean"])


def counted(f: Objective) -> tuple[Objective, list[int]]:
    """The same objective, and a list that holds the size of each call of its loss."""
    calls: list[int] = []

    def loss(z: Tensor, y: Tensor) -> Tensor:
        calls.append(len(y))
        return half_square(z, y)

    return Objective(f.model, f.batches, loss), calls


@pytest.mark.parametrize(("size", "gradients"), [(100, 2.0), (3, 4.0)])
def test_the_cost_is_that_of_the_calls_of_the_loss(size: int, gradients: float) -> None:
    x = torch.randn(12, 3).double()
    f, calls = counted(least_squares(x, torch.ones(3).double(), size=size))
    found = batch_sharpness(f, batch_size=4, batches=6)
    assert (found.gradients, found.products, found.forwards) == (gradients, 2.0, 1.0)
    # Products take up the graph of a gradient, or build it once more, which counts as one.
    assert sum(calls) == 12 * (found.gradients + found.forwards)


def trained(optimizer: str = "sgd", **options: Any) -> Run:
    how: dict[str, Any] = {"learning_rate": 0.05, "batch_size": 100, "updates": 3} | options
    config = TrainConfig(
        model_options={"widths": []}, optimizer=optimizer, dtype="float64", threads=1, **how
    )
    return train(config)


def test_a_run_gives_its_batch_size_its_end_and_for_plain_sgd_its_threshold() -> None:
    run = trained()
    f = objective_of(run)
    found = batch_sharpness(f, run=run, batches=3)
    assert int(found.details["batch_size"]) == 100
    assert found.threshold == 2 / 0.05
    assert "above 2 / eta = 40, a step of SGD" in found.words
    assert "at one batch size only" in found.words
    assert found.spec["run"] == run.spec
    assert found.spec["options"] == {"batch_size": None, "form": "mean", "batches": 3}
    there = batch_sharpness(f, run.end, batch_size=100, batches=3)
    assert there.value == found.value
    assert math.isnan(there.threshold)
    assert math.isnan(batch_sharpness(f, run=run, batch_size=60, batches=1).threshold)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"momentum": 0.9}, "no single threshold with momentum"),
        ({"weight_decay": 0.1}, "SGD without weight decay only"),
        ({"optimizer": "adam"}, "SGD without weight decay only"),
        ({"method": "sam"}, "plain SGD without weight decay only"),
    ],
)
def test_other_optimizers_have_no_threshold_of_batch_sharpness(
    options: dict[str, Any], words: str
) -> None:
    run = trained(**options)
    found = batch_sharpness(objective_of(run), run=run, batches=2)
    assert math.isnan(found.threshold)
    assert words in found.words


def test_a_step_of_sgd_raises_the_loss_of_its_batch_on_average_beyond_the_ratio() -> None:
    subsets = [torch.tensor(s) for s in combinations(range(3), 2)]
    for eta, sign in ((2 / 3 * 0.999, -1), (2 / 3 * 1.001, 1)):  # 2 / eta around the ratio, 3
        rise = 0.0
        for rows in subsets:
            part = ROWS[rows]
            g = part.T @ (part @ ONES) / 2
            before, after = ((part @ w).square().mean() / 2 for w in (ONES, ONES - eta * g))
            rise += float(after - before)
        assert rise * sign > 0


def test_of_a_sample_of_the_examples_the_error_is_unknown() -> None:
    run = trained()
    f = objective_of(run, examples=200)
    found = batch_sharpness(f, run=run, batches=5)
    assert math.isnan(found.stderr)
    assert found.interval.isnan().all()
    assert float(found.details["stderr_of_batches"]) > 0
    assert "of these examples alone" in found.words


def test_statistics_that_are_estimated_anew_are_those_of_all_mini_batches() -> None:
    x, y = torch.randn(12, 3).double(), torch.randn(12, 1).double()
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()
    batches = [(x, y)]
    f = Objective(model, batches, half_square, batch_norm="reestimate", statistics=batches)
    settled = f.settled(f.theta)
    fixed = Objective(model, batches, half_square)
    want = batch_sharpness(fixed, Solution(settled.theta, settled.buffers), batch_size=4, batches=3)
    found = batch_sharpness(f, batch_size=4, batches=3)
    torch.testing.assert_close(found.value, want.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "needs a batch_size, got none"),
        ({"batch_size": 0}, "batch_size of 1 to 3"),
        ({"batch_size": 4}, "batch_size of 1 to 3"),
        ({"batch_size": 1.5}, "whole batch_size"),
        ({"batch_size": 2, "form": "median"}, "form of mean, ratio, got 'median'"),
        ({"batch_size": 2, "batches": 0}, "a batch at least, got batches=0"),
        ({"batch_size": 2, "seed": -1}, "a seed needs"),
    ],
)
def test_what_batch_sharpness_cannot_be_taken_of_is_refused(
    options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        batch_sharpness(least_squares(ROWS, ONES), **options)
    assert "\n" not in str(caught.value)


def test_a_loss_that_is_not_finite_stops_batch_sharpness() -> None:
    x = ROWS.clone()
    x[1, 0] = math.inf
    with pytest.raises(ComputationError, match="batch_sharpness needs finite inputs"):
        batch_sharpness(least_squares(x, ONES), batch_size=1)


# ---- thresholds --------------------------------------------------------------------------------

ETA, MU, WD = 0.1, 0.9, 0.5


def companion(optimizer: str, h: float, o: dict[str, Any]) -> Tensor:
    """The map of (x, m) by one update on h x^2 / 2, with P = 1 held fixed."""
    mu, wd = o.get("momentum", 0.0), o.get("weight_decay", 0.0)
    g = h + (0.0 if optimizer == "adamw" else wd)
    shrink = 1 - ETA * wd if optimizer == "adamw" else 1.0
    # m' = .9 m + .1 g x, or mu m + g x, and x' = shrink x - eta m'
    m = numbers(0.1 * g, 0.9) if optimizer in ("adam", "adamw") else numbers(g, mu)
    step = numbers(g, 0) + mu * m if o.get("nesterov") else m
    return torch.stack([numbers(shrink, 0) - ETA * step, m])


CASES = [
    ("sgd", {}, 20.0),
    ("sgd", {"momentum": MU}, 38.0),
    ("sgd", {"momentum": MU, "nesterov": True}, 3.8 / (2.8 * ETA)),
    ("sgd", {"momentum": MU, "weight_decay": WD}, 38.0),
    ("adam", {}, 380.0),
    ("adam", {"weight_decay": WD}, 380.0),
    ("adamw", {"weight_decay": WD}, (2 - ETA * WD) * 19 / ETA),
    ("rmsprop", {}, 20.0),
    ("rmsprop", {"momentum": MU}, 38.0),
    ("adagrad", {}, 20.0),
]


@pytest.mark.parametrize(("optimizer", "options", "want"), CASES)
def test_an_optimizer_is_unstable_exactly_above_its_threshold(
    optimizer: str, options: dict[str, Any], want: float
) -> None:
    record = {"optimizer": optimizer, "learning_rate": ETA, **options}
    value, words = stability_threshold(record)
    assert value == pytest.approx(want, rel=1e-12)
    assert f"{value:.5g}" in words
    wd = 0.0 if optimizer == "adamw" else options.get("weight_decay", 0.0)
    radii = [
        torch.linalg.eigvals(companion(optimizer, h * value - wd, options)).abs().max()
        for h in (0.999, 1.001)
    ]
    assert radii[0] < 1 < radii[1]
    assert ("wd I" in words) == bool(wd)


@pytest.mark.parametrize(("optimizer", "options", "want"), CASES[:4])
def test_torch_diverges_above_the_threshold_and_converges_below(
    optimizer: str, options: dict[str, Any], want: float
) -> None:
    value, _ = stability_threshold({"optimizer": optimizer, "learning_rate": ETA, **options})
    for factor, grows in ((0.98, False), (1.02, True)):
        h = factor * value - options.get("weight_decay", 0.0)
        x = nn.Parameter(torch.ones(1).double())
        torch_optimizer = OPTIMIZERS[optimizer](
            [x], TrainConfig(optimizer=optimizer, learning_rate=ETA, **options)
        )
        for _ in range(1000):
            x.grad = h * x.detach()
            torch_optimizer.step()
        assert bool(x.abs() > 1e3) == grows
        assert bool(x.abs() < 1e-3) != grows


def one_step(optimizer: torch.optim.Optimizer, x: nn.Parameter, h: float) -> Tensor:
    """The map of (x, m) by a step of a torch optimizer on h x^2 / 2, whose state it is given."""
    (momentum,) = {"exp_avg", "momentum_buffer"} & optimizer.state[x].keys()
    kept = {name: value.clone() for name, value in optimizer.state[x].items()}
    columns = []
    for at in 1e-6 * torch.eye(2).double():  # so small that no square moves what P is made of
        optimizer.state[x].update({name: value.clone() for name, value in kept.items()})
        optimizer.state[x][momentum] = at[1:].clone()
        x.data, x.grad = at[:1].clone(), h * at[:1]
        optimizer.step()
        columns.append(torch.cat([x.detach(), optimizer.state[x][momentum]]))
    return torch.stack(columns, dim=1) / 1e-6


# By optimizer: its settings, a state in which P stays as it is, and that P.
HELD: list[tuple[str, dict[str, Any], dict[str, float], float]] = [
    ("sgd", {"momentum": MU, "optimizer_options": {"dampening": 0.4}}, {}, 1.0),
    # The largest v so far stays, whatever becomes of v.
    (
        *("adam", {"optimizer_options": {"amsgrad": True}}),
        *({"exp_avg_sq": 0.0, "max_exp_avg_sq": 9.0, "step": 1e9}, 3.0),
    ),
    (
        *("adamw", {"weight_decay": WD, "optimizer_options": {"amsgrad": True}}),
        *({"exp_avg_sq": 0.0, "max_exp_avg_sq": 9.0, "step": 1e9}, 3.0),
    ),
    # Of the largest smoothing the averages stay: the root of 25 - 3^2.
    (
        *("rmsprop", {"momentum": MU, "optimizer_options": {"centered": True, "alpha": 1.0}}),
        *({"square_avg": 25.0, "grad_avg": 3.0, "step": 1.0}, 4.0),
    ),
]


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(("optimizer", "options", "state", "P"), HELD)
def test_the_optimizer_of_a_run_is_unstable_exactly_above_the_threshold_of_its_last_rate(
    optimizer: str, options: dict[str, Any], state: dict[str, float], P: float, scaled: bool
) -> None:
    config = TrainConfig(
        model_options={"widths": []},
        train_examples=40,
        optimizer=optimizer,
        learning_rate=ETA,
        batch_size=20,
        updates=3,
        **options,
    )
    eta = ETA
    if scaled:  # the last of three rates of a cosine, of twice the base rate
        config = replace(config, schedule="cosine", rate_scaling="sqrt", base_batch_size=5)
        eta = 2 * ETA * (1 + math.cos(math.pi * 2 / 3)) / 2
    run = train(config)
    value, words = stability_threshold(at_end(run))
    assert f"{value:.5g}" in words
    x = nn.Parameter(torch.ones(1).double())
    torch_optimizer = OPTIMIZERS[optimizer]([x], replace(config, learning_rate=eta))
    x.grad = torch.ones(1).double()
    torch_optimizer.step()
    for name, number in state.items():
        torch_optimizer.state[x][name].fill_(number)
    radii = [
        torch.linalg.eigvals(one_step(torch_optimizer, x, h * value * P)).abs().max()
        for h in (0.999, 1.001)
    ]
    assert radii[0] < 1 < radii[1]


def test_dampening_without_momentum_dampens_nothing() -> None:
    how = {"optimizer": "sgd", "learning_rate": ETA, "optimizer_options": {"dampening": 0.5}}
    value, words = stability_threshold(how)
    assert value == pytest.approx(2 / ETA)
    assert "2 / eta = 20" in words
    x = nn.Parameter(torch.ones(1).double())
    torch_optimizer = OPTIMIZERS["sgd"]([x], TrainConfig(**how))
    x.grad = value * x.detach()
    torch_optimizer.step()
    torch.testing.assert_close(x.detach(), -torch.ones(1).double())  # the cycle of two


def test_updates_without_a_rule_have_no_threshold_and_say_so() -> None:
    how = {"optimizer": "adagrad", "learning_rate": ETA, "optimizer_options": {"lr_decay": 0.1}}
    value, words = stability_threshold(how)
    assert math.isnan(value)
    assert words == "adagrad with lr_decay has no threshold of its own"
    value, words = stability_threshold({"optimizer": "sgd", "learning_rate": ETA, "method": "sam"})
    assert math.isnan(value)
    assert words == "sam has no threshold of its own"
    assert not is_plain({"optimizer": "sgd", "learning_rate": ETA, "method": "sam"})
    run = trained("sgd", method="sam")
    found = preconditioned_sharpness(objective_of(run), run)
    assert math.isnan(found.threshold)
    assert found.words.endswith("; sam has no threshold of its own")


def test_every_optimizer_with_a_rule_can_be_trained_with() -> None:
    assert RULES.keys() <= OPTIMIZERS.keys()
    assert math.isnan(stability_threshold({"optimizer": "rprop", "learning_rate": 1.0})[0])
    assert is_plain({"optimizer": "sgd", "learning_rate": 1.0})
    assert not is_plain({"optimizer": "sgd", "learning_rate": 1.0, "momentum": 0.9})
    with pytest.raises(InputError, match="needs an optimizer and a learning_rate"):
        stability_threshold({"model": "mlp"})
    with pytest.raises(InputError, match="optimizer needs to be one of"):
        stability_threshold({"optimizer": "lion", "learning_rate": 1.0})


# ---- preconditioned ----------------------------------------------------------------------------

H3, X3 = numbers(100, 3, 0.5), numbers(0.7, -2, 5)


def quadratic(h: Tensor, x: Tensor) -> Objective:
    """The sum of h x^2 / 2, at x."""
    rows = torch.diag((len(h) * h).sqrt())
    return least_squares(rows, x)


def after(optimizer: str, updates: int, **options: Any) -> tuple[Objective, Run]:
    """The state of a torch optimizer after updates with the gradient at X3, which stays."""
    config = TrainConfig(optimizer=optimizer, **({"learning_rate": 0.1} | options))
    f = quadratic(H3, X3)
    x = nn.Parameter(X3.clone())
    torch_optimizer = OPTIMIZERS[optimizer]([x], config)
    for _ in range(updates):
        x.grad = H3 * X3
        torch_optimizer.step()
        with torch.no_grad():
            x.copy_(X3)
    state = {
        name: value.reshape(-1).double()
        for name, value in torch_optimizer.state[x].items()
        if torch.is_tensor(value)
    }
    run = trained(updates=1)
    spec = {**run.spec, "train": {**run.spec["train"], **vars(config)}}
    end = Solution(X3, {})
    return f, replace(run, end=end, optimizer=state, updates=updates, spec=spec)


@pytest.mark.parametrize("updates", [1, 10, 200])
@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_a_constant_gradient_leaves_adam_a_value_that_knows_nothing_of_the_curvature(
    optimizer: str, updates: int
) -> None:
    f, run = after(optimizer, updates)
    found = preconditioned_sharpness(f, run)
    exact = (H3 / ((1 - 0.9**updates) * ((H3 * X3).abs() + 1e-8))).max()
    assert found.value == pytest.approx(float(exact), rel=1e-12)
    assert found.value == pytest.approx(1 / ((1 - 0.9**updates) * 0.7), rel=1e-9)
    if updates == 1:
        assert found.value == pytest.approx(14.285714283673, rel=1e-12)
    assert found.threshold == pytest.approx(380)
    assert found.converged
    assert found.interval[0] <= found.value <= found.interval[1]
    assert found.spec["options"] == {"tol": None}


def test_sgd_has_the_hessian_of_its_loss_and_coupled_weight_decay_adds_to_it() -> None:
    f, run = after("sgd", 2)
    assert preconditioned_sharpness(f, run).value == pytest.approx(100, rel=1e-9)
    f, run = after("sgd", 2, momentum=0.9, nesterov=True, weight_decay=0.25)
    found = preconditioned_sharpness(f, run)
    assert found.value == pytest.approx(100.25, rel=1e-9)
    assert found.threshold == pytest.approx(3.8 / (2.8 * 0.1))


def test_rmsprop_and_adagrad_divide_by_the_roots_of_their_own_sums() -> None:
    slope = (H3 * X3).abs()
    for optimizer, root in (
        ("rmsprop", slope * math.sqrt(1 - 0.99**7) + 1e-8),
        ("adagrad", slope * math.sqrt(7) + 1e-10),
    ):
        f, run = after(optimizer, 7)
        found = preconditioned_sharpness(f, run)
        assert found.value == pytest.approx(float((H3 / root).max()), rel=1e-9)
        assert found.threshold == pytest.approx(20)


def test_the_value_is_that_of_the_nonsymmetric_matrix() -> None:
    run = trained("adam", updates=20)
    f = objective_of(run, examples=100)
    found = preconditioned_sharpness(f, run)
    A = Hessian(f, run.end)
    dense = torch.stack([A @ e for e in torch.eye(A.size).double()])
    v, t = run.optimizer["exp_avg_sq"], 20
    P = (1 - 0.9**t) * ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    want = torch.linalg.eigvals(dense / P[:, None]).real.max()
    torch.testing.assert_close(found.value, float(want), rtol=1e-7, atol=0)


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [("adam", {"amsgrad": True}), ("rmsprop", {"centered": True})],
)
def test_options_of_an_optimizer_change_the_matrix_that_it_meets(
    optimizer: str, options: dict[str, bool]
) -> None:
    run = trained(optimizer, updates=20, optimizer_options=options)
    f = objective_of(run, examples=100)
    found = preconditioned_sharpness(f, run)
    A = Hessian(f, run.end)
    dense = torch.stack([A @ e for e in torch.eye(A.size).double()])
    s, t = run.optimizer, 20
    if optimizer == "adam":
        assert (s["max_exp_avg_sq"] > s["exp_avg_sq"]).any()
        P = (1 - 0.9**t) * ((s["max_exp_avg_sq"] / (1 - 0.999**t)).sqrt() + 1e-8)
    else:
        P = (s["square_avg"] - s["grad_avg"] ** 2).sqrt() + 1e-8
    want = torch.linalg.eigvals(dense / P[:, None]).real.max()
    torch.testing.assert_close(found.value, float(want), rtol=1e-6, atol=0)


def test_weight_on_coordinates_whose_gradients_epsilon_hides_is_told() -> None:
    f, run = after("adam", 5)
    root = numbers(1e-9, 1, 1)
    state = run.optimizer | {"exp_avg_sq": root.square() * (1 - 0.999**5)}
    found = preconditioned_sharpness(f, replace(run, optimizer=state))
    assert float(found.details["weight_at_epsilon"]) == pytest.approx(1, rel=1e-9)
    assert float(found.details["share_at_epsilon"]) == pytest.approx(1 / 3)
    assert "100 % of its eigenvector is where sqrt(v) is below 10 epsilon" in found.words
    fine = preconditioned_sharpness(f, run)
    assert float(fine.details["weight_at_epsilon"]) == 0
    assert "epsilon" not in fine.words


def test_a_parameter_that_never_had_a_gradient_is_left_out() -> None:
    class Loose(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.unused = nn.Linear(2, 1, bias=False), nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.w(x)

    data = ((torch.eye(2), torch.ones(2, 1)),) * 2
    run = train(
        TrainConfig(
            model=Loose(),
            data=data,
            loss="mse",
            dtype="float64",
            batch_size=2,
            updates=4,
            threads=1,
        )
    )
    assert run.optimizer["step"].tolist() == [0, 4] or run.optimizer["step"].tolist() == [4, 0]
    f = objective_of(run, model=Loose(), data=data, loss="mse")
    P, _ = preconditioner(run, [shape.numel() for shape in f.shapes.values()], "this")
    assert (P == 0).tolist() == [
        name == "unused" for name in f.shapes for _ in range(f.shapes[name].numel())
    ]
    found = preconditioned_sharpness(f, run)
    assert math.isfinite(found.value)
    assert found.value > 0


def test_rmsprop_locks_to_a_cycle_of_two_at_its_threshold() -> None:
    # x = +-eta / 2 on x^2 / 2: there sqrt(v) is eta / 2, and 1 / sqrt(v) = 2 / eta.
    one = torch.ones(1, 1)
    data = ((one, 0 * one),) * 2
    config = TrainConfig(
        model=nn.Linear(1, 1, bias=False),
        data=data,
        loss=half_square,
        optimizer="rmsprop",
        learning_rate=0.05,
        batch_size=1,
        updates=3000,
        check_every=1000,
        stop_loss=1e-30,
        dtype="float64",
        threads=1,
    )
    run = train(config)
    f = objective_of(run, model=config.model, data=data, loss=half_square)
    found = preconditioned_sharpness(f, run)
    assert found.value / found.threshold == pytest.approx(1, abs=1e-3)


def test_the_cost_of_a_search_is_its_products_a_graph_and_the_loss() -> None:
    f, run = after("adam", 5)
    f, calls = counted(f)
    found = preconditioned_sharpness(f, run)
    pairs = eigsh(Hessian(f, run.end), 1)
    assert found.products == pairs.products + pairs.check_products == 5
    assert (found.gradients, found.forwards) == (1.0, 1.0)
    # The loss, the graph and a look whether it fits; the last two of the other search too.
    assert len(calls) == 3 + 2


def read_run() -> Run:
    run = trained(updates=1)
    train_part = {k: v for k, v in run.spec["train"].items() if k not in ("optimizer",)}
    return replace(run, optimizer={}, stopped="read", spec={**run.spec, "train": train_part})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (read_run, "needs the optimizer of a training, got a checkpoint that was read"),
        (lambda: trained("rprop"), "needs an optimizer of sgd, adam, .*, got rprop"),
        (lambda: replace(trained("adam"), optimizer={}), "needs the exp_avg_sq and step of adam"),
        (lambda: replace(trained("adagrad"), updates=0), "a run of 0 updates"),
        (
            lambda: replace(trained("rmsprop"), optimizer={"square_avg": torch.ones(5)}),
            "got a state of 5 numbers",
        ),
    ],
)
def test_runs_without_the_state_of_such_an_optimizer_are_refused(
    make: Callable[[], Run], words: str
) -> None:
    run = make()
    f = objective_of(trained(updates=1), examples=100)
    with pytest.raises(InputError, match=words) as caught:
        preconditioned_sharpness(f, run)
    assert "\n" not in str(caught.value)


def test_of_a_sample_the_eigenvalue_has_a_sampling_error() -> None:
    run = trained("adam", updates=5)
    found: Measured = preconditioned_sharpness(objective_of(run, examples=100), run)
    assert "sampling error" in found.words
    assert math.isnan(found.stderr) or found.stderr > 0
