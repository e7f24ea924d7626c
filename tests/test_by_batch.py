"""Eigenvalues of mini-batches are those of their own examples, each example in one at most."""

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sharpness.by_batch import batch_eigenvalues, partition
from sharpness.curvature import ENGINES, Hessian
from sharpness.errors import ComputationError, InputError
from sharpness.intervals import t_interval
from sharpness.lanczos import eigsh
from sharpness.objective import Objective
from sharpness.operators import OPERATORS
from sharpness.problem import objective_of, solution
from sharpness.training import TrainConfig, train

N, FEATURES = 24, 3
mse, cross_entropy = nn.functional.mse_loss, nn.functional.cross_entropy


def data(n: int = N, features: int = FEATURES) -> tuple[Tensor, Tensor]:
    return torch.randn(n, features).double(), torch.randn(n, 1).double()


def cut(*parts: Any, size: int = 7) -> list[Any]:
    """The parts in batches, the last of which is smaller."""
    return list(zip(*(part.split(size) for part in parts), strict=True))


def linear(features: int = FEATURES) -> nn.Linear:
    return nn.Linear(features, 1, bias=False).double()


def net(norm: bool = False) -> nn.Sequential:
    between = [nn.BatchNorm1d(4)] if norm else []
    return nn.Sequential(nn.Linear(FEATURES, 4), *between, nn.Tanh(), nn.Linear(4, 1)).double()


def spectrum(x: Tensor, weights: Tensor | None = None) -> Tensor:
    """Descending eigenvalues of the Hessian of least squares, 2 X^T W X / tr W."""
    w = torch.ones(len(x)).double() if weights is None else weights
    return torch.linalg.eigvalsh(2 * x.T @ (w[:, None] * x) / w.sum()).flip(0)


def dense(f: Objective, **options: Any) -> Tensor:
    """Descending eigenvalues of the Hessian of an objective, product by product."""
    A = Hessian(f, **options)
    rows = [A @ e for e in torch.eye(A.size).to(f.theta)]
    return torch.linalg.eigvalsh(torch.stack(rows)).flip(0)


# ---- closed forms and laws ---------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3])
def test_least_squares_have_the_eigenvalues_of_the_examples_of_each_mini_batch(k: int) -> None:
    x, y = data()
    f = Objective(linear(), cut(x, y), mse)
    found = batch_eigenvalues(f, batch_size=5, k=k, seed=3)
    index = partition(N, 5, None, 3)
    assert found.values.shape == (4, k)
    for i, rows in enumerate(index):
        torch.testing.assert_close(found.values[i], spectrum(x[rows])[:k])
        loss = mse(f.model(x[rows]), y[rows])
        torch.testing.assert_close(found.losses[i], loss.detach())
    torch.testing.assert_close(found.whole_values, spectrum(x)[:k])
    torch.testing.assert_close(found.whole_loss, float(f.value(f.theta)))
    assert found.converged.all()
    assert found.whole_converged.all()
    assert (found.residuals <= 1e-8 * found.values[:, :1]).all()
    assert found.weights.tolist() == [5.0] * 4
    whole = eigsh(Hessian(f), k, seed=3)
    spent = found.batch_products.sum() + whole.products + whole.check_products
    assert found.products == spent
    assert (found.examples, found.left_out, found.spec["left_out"]) == (N, 4, 4)
    assert not found.is_partition


def test_the_largest_mini_batch_is_all_the_data() -> None:
    x, y = data()
    f = Objective(net(), cut(x, y), mse)
    found = batch_eigenvalues(f, batch_size=N, k=2)
    torch.testing.assert_close(found.values[0], found.whole_values)
    torch.testing.assert_close(found.losses[0].item(), found.whole_loss)
    assert found.is_partition


def test_weight_decay_moves_all_eigenvalues_by_itself() -> None:
    x, y = data()
    f = Objective(net(), cut(x, y), mse)
    plain = batch_eigenvalues(f, batch_size=6, k=2)
    decayed = batch_eigenvalues(f, batch_size=6, k=2, weight_decay=0.25)
    torch.testing.assert_close(decayed.values, plain.values + 0.25)
    torch.testing.assert_close(decayed.whole_values, plain.whole_values + 0.25)
    torch.testing.assert_close(decayed.losses, plain.losses)


def test_weight_decay_of_some_parameters_is_that_of_their_diagonal() -> None:
    x, y = data()
    model = nn.Linear(FEATURES, 1).double()
    f = Objective(model, cut(x, y), mse)
    found = batch_eigenvalues(f, batch_size=6, weight_decay=2.0, decayed=["weight"])
    for values, rows in zip(found.values, partition(N, 6, None, 0), strict=True):
        X = torch.cat([x[rows], torch.ones(6, 1).double()], dim=1)
        H = 2 * X.T @ X / 6 + torch.diag(torch.tensor([2.0, 2.0, 2.0, 0.0]).double())
        torch.testing.assert_close(values[0], torch.linalg.eigvalsh(H)[-1])


@pytest.mark.parametrize("operator", [name for name in OPERATORS if name != "fisher"])
def test_the_mean_over_a_whole_partition_is_at_least_the_value_of_the_data(operator: str) -> None:
    x, y = data()
    f = Objective(net(), cut(x, y), mse)
    for batch_size in (1, 2, 4, 8):
        found = batch_eigenvalues(f, batch_size=batch_size, operator=operator, seed=batch_size)
        assert found.is_partition
        assert found.mean()[0] > found.whole_values[0]  # strictly, for other examples differ


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_mini_batch_has_the_operator_of_its_examples(operator: str) -> None:
    x, y = data()
    f = Objective(net(), cut(x, y), mse)
    found = batch_eigenvalues(f, batch_size=8, operator=operator)
    rows = partition(N, 8, None, 0)[1]
    A = OPERATORS[operator](Objective(f.model, [(x[rows], y[rows])], mse))
    matrix = torch.stack([A @ e for e in torch.eye(A.size).double()])
    torch.testing.assert_close(found.values[1, 0], torch.linalg.eigvalsh(matrix)[-1])


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_finds_the_same_and_is_recorded(engine: str) -> None:
    x, y = data()
    f = Objective(net(), cut(x, y), mse)
    wanted = batch_eigenvalues(f, batch_size=12)
    found = batch_eigenvalues(f, batch_size=12, engine=engine, tol=1e-4)
    torch.testing.assert_close(found.values, wanted.values, rtol=1e-5, atol=0)
    assert found.spec["engines"] == [engine]
    assert found.spec["operator"]["engine"] == engine
    assert ("product_error" in found.spec) == (engine == "finite-difference")
    assert ("product_error" in found.spec["operator"]) == (engine == "finite-difference")


# ---- which examples ----------------------------------------------------------------------------


def test_a_partition_has_each_example_once_at_most_and_depends_on_the_seed_alone() -> None:
    index = partition(23, 4, None, 5)
    assert index.shape == (5, 4)
    assert len({*index.flatten().tolist()}) == 20
    assert (index.diff(dim=1) > 0).all()
    assert torch.equal(index, partition(23, 4, None, 5))
    assert torch.equal(index[:2], partition(23, 4, 2, 5))
    assert not torch.equal(index, partition(23, 4, None, 6))
    left = {
        i
        for seed in range(60)
        for i in {*range(23)} - {*partition(23, 4, None, seed).flatten().tolist()}
    }
    assert left == {*range(23)}  # not always the same ones


def test_the_same_seed_gives_the_same_numbers_and_another_others() -> None:
    x, y = data()
    f = Objective(net(), cut(x, y), mse)
    one, again, other = (batch_eigenvalues(f, batch_size=6, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.values, again.values)
    assert not torch.allclose(one.values, other.values)


@pytest.mark.parametrize("size", [1, 4, 5, N])
def test_the_batches_of_the_objective_do_not_change_the_result(size: int) -> None:
    x, y = data()
    model = net()
    wanted = batch_eigenvalues(Objective(model, [(x, y)], mse), batch_size=11, k=2)
    found = batch_eigenvalues(Objective(model, cut(x, y, size=size), mse), batch_size=11, k=2)
    torch.testing.assert_close(found.values, wanted.values)
    torch.testing.assert_close(found.losses, wanted.losses)


def test_a_mini_batch_goes_through_the_model_in_batches_no_larger_than_the_objectives() -> None:
    x, y = data()
    f, seen = Objective(net(), cut(x, y, size=5), mse), []
    f.model.register_forward_hook(lambda _, args, out: seen.append(len(out)))
    batch_eigenvalues(f, batch_size=12, engine="fresh")
    assert set(seen) == {5, 4, 2}  # of the data 5 and 4, of 12 twice 5 and 2


class Products(nn.Module):
    """A linear function of two inputs, in one of several forms."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(FEATURES).double())

    def forward(self, a: Any, b: Any = None, scale: float = 2.0) -> Tensor:
        a, b = a if isinstance(a, tuple) else (a, b)
        return ((a + scale * b) @ self.w)[:, None]


@pytest.mark.parametrize("form", ["tuple", "dict", "nested"])
def test_inputs_may_be_of_any_form(form: str) -> None:
    a, y = data()
    b = torch.randn_like(a)

    def formed(a: Tensor, b: Tensor) -> Any:
        return {"tuple": (a, b), "dict": {"b": b, "a": a, "scale": 2.0}, "nested": ((a, b),)}[form]

    batches = [(formed(u, v), t) for u, v, t in cut(a, b, y)]
    found = batch_eigenvalues(Objective(Products(), batches, mse), batch_size=10)
    for values, rows in zip(found.values, partition(N, 10, None, 0), strict=True):
        torch.testing.assert_close(values, spectrum((a + 2 * b)[rows])[:1])


def test_weights_go_with_their_examples() -> None:
    x, y = data()
    w = torch.rand(N).double() + 0.1

    def loss(z: Tensor, y: Tensor) -> Tensor:
        return (z - y).square()[:, 0]

    f = Objective(linear(), cut(x, y, w), loss, reduction="none")
    found = batch_eigenvalues(f, batch_size=8)
    for i, rows in enumerate(partition(N, 8, None, 0)):
        torch.testing.assert_close(found.values[i], spectrum(x[rows], w[rows])[:1])
        torch.testing.assert_close(found.weights[i], w[rows].sum())
    torch.testing.assert_close(found.whole_values, spectrum(x, w)[:1])
    assert not found.is_partition  # the mean of all is a weighted one
    assert float((found.weights * found.values[:, 0]).sum() / w.sum()) > found.whole_values[0]


def test_a_count_is_taken_of_each_mini_batch() -> None:
    x, y = torch.randn(N, FEATURES).double(), torch.arange(N) % 2
    by_class, model = torch.tensor([1.0, 3.0]).double(), nn.Linear(FEATURES, 2).double()

    def loss(z: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(z, y, weight=by_class)

    f = Objective(model, cut(x, y), loss, count=lambda y: by_class[y].sum())
    found = batch_eigenvalues(f, batch_size=8)
    for i, rows in enumerate(partition(N, 8, None, 0)):
        alone = Objective(model, [(x[rows], y[rows])], loss)
        torch.testing.assert_close(found.values[i], dense(alone)[:1])
        torch.testing.assert_close(found.weights[i], by_class[y[rows]].sum())


class Loader:
    """Batches that are made anew at each reading, and counted."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches, self.readings = batches, 0

    def __iter__(self) -> Iterator[Any]:
        self.readings += 1
        yield from [tuple(part.clone() for part in batch) for batch in self.batches]


def test_data_that_do_not_fit_in_half_of_the_memory_are_read_for_each_mini_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, y = data()
    loader, model = Loader(cut(x, y)), net()
    wanted = batch_eigenvalues(Objective(model, loader, mse), batch_size=6, engine="cached")
    kept = loader.readings
    f = Objective(model, loader, mse, memory=2 * (x.nbytes + y.nbytes) - 1)

    def search(A: Any, k: int, *, memory: int, **options: Any) -> Any:
        return eigsh(A, k, **options)  # so few bytes hold no basis

    monkeypatch.setattr("sharpness.by_batch.eigsh", search)
    found = batch_eigenvalues(f, batch_size=6, engine="cached")
    assert torch.equal(found.values, wanted.values)
    assert loader.readings - kept == kept + len(found.values)


def test_weights_in_half_precision_are_computed_with_in_single() -> None:
    x, y = data()
    model = net().float()
    halved = deepcopy(model).bfloat16()
    same = deepcopy(halved).float()
    X, Y = x.bfloat16(), y.bfloat16()
    found = batch_eigenvalues(Objective(halved, cut(X, Y), mse), batch_size=8)
    wanted = batch_eigenvalues(Objective(same, cut(X.float(), Y.float()), mse), batch_size=8)
    assert torch.equal(found.values, wanted.values)


# ---- BatchNorm ---------------------------------------------------------------------------------


def test_each_policy_of_batch_norm_is_that_of_the_mini_batch_by_itself() -> None:
    x, y = data()
    model = net(norm=True)
    model(3 * x + 1)  # moves the running statistics
    rows = partition(N, 8, None, 0)[2]
    alone = [(x[rows], y[rows])]
    for policy in ("frozen", "batch", "reestimate", "interpolate"):
        options: dict[str, Any] = {"batch_norm": policy, "statistics": cut(x, y)}
        f = Objective(model, cut(x, y), mse, **options)
        found = batch_eigenvalues(f, batch_size=8, k=2)
        wanted = dense(Objective(model, alone, mse, **options))[:2]
        torch.testing.assert_close(found.values[2], wanted)
        torch.testing.assert_close(found.whole_values, dense(f)[:2])
        torch.testing.assert_close(found.whole_loss, float(f.value(f.theta)))
        assert found.is_partition == (policy != "batch")
        assert found.spec["operator"]["objective"]["batch_norm"] == policy


def test_statistics_are_estimated_once_for_all_mini_batches() -> None:
    x, y = data()
    statistics = Loader(cut(x, y))
    f = Objective(net(norm=True), cut(x, y), mse, batch_norm="reestimate", statistics=statistics)
    batch_eigenvalues(f, batch_size=6)
    assert statistics.readings == 2  # one of them a second look at the first batch


def test_a_solution_brings_its_buffers() -> None:
    x, y = data()
    model = net(norm=True)
    model(3 * x + 1)
    f = Objective(model, cut(x, y), mse)
    model(9 * x - 2)
    moved = solution(model)
    found = batch_eigenvalues(f, batch_size=8, point=moved)
    alone = Objective(model, [(x[rows], y[rows]) for rows in partition(N, 8, 1, 0)], mse)
    torch.testing.assert_close(found.values[0], dense(alone)[:1])
    assert not torch.allclose(found.values, batch_eigenvalues(f, batch_size=8).values)


# ---- numbers over the mini-batches -------------------------------------------------------------


def test_what_did_not_converge_does_not_count_and_is_a_lower_bound() -> None:
    x, y = data(60, 210)  # more parameters than a dense search takes at once
    f = Objective(linear(210), cut(x, y, size=60), mse)
    found = batch_eigenvalues(f, batch_size=15, tol=1e-17)
    assert not found.converged.any()
    assert math.isnan(found.mean()[0])
    assert math.isnan(found.spread())
    assert found.quantiles([0.5]).isnan().all()
    assert found.counted.isnan().all()
    for value, rows in zip(found.values[:, 0], partition(60, 15, None, 0), strict=True):
        assert value <= spectrum(x[rows])[0] * (1 + 1e-12)


def test_mean_spread_and_quantiles_are_of_the_values_that_converged() -> None:
    x, y = data()
    found = batch_eigenvalues(Objective(linear(), [(x, y)], mse), batch_size=4, k=2)
    keep = torch.tensor([True, False, True, True, False, True])
    marked = replace(found, converged=keep[:, None].expand(6, 2).contiguous())
    for i in range(2):
        known = found.values[keep, i]
        assert marked.mean(i) == t_interval(known)
        assert marked.spread(i) == float(known.std())
        assert torch.equal(marked.quantiles([0.0, 1.0], i), torch.stack([known.min(), known.max()]))
    with pytest.raises(InputError, match=r"levels from 0 to 1, got \[50\]"):
        marked.quantiles([50])
    assert marked.quantiles([0.5])[0] == known_median(found.values[keep, 0])


def known_median(values: Tensor) -> Tensor:
    middle = values.sort().values
    return (middle[1] + middle[2]) / 2


def test_the_interval_covers_the_mean_of_other_mini_batches_as_often_as_it_says() -> None:
    # The mean over all mini-batches of 2 of 8 examples, and that over the source of them all.
    x = torch.randn(8, 2).double()
    pairs = [spectrum(x[list(rows)])[0] for rows in combinations(range(8), 2)]
    exact = float(torch.stack(pairs).mean())
    same = [
        t_interval(torch.stack([spectrum(x[r])[0] for r in partition(8, 2, None, s)]))
        for s in range(200)
    ]
    fresh = torch.randn(40_000, 2, 2).double()
    limit = float(torch.linalg.eigvalsh(fresh.mT @ fresh)[:, -1].mean())
    other = [
        t_interval(torch.linalg.eigvalsh(part.mT @ part)[:, -1])
        for part in fresh[: 200 * 30].view(200, 30, 2, 2)
    ]
    covered = [
        sum(low <= mean <= high for _, low, high in found)
        for mean, found in ((exact, same), (limit, other))
    ]
    assert covered[0] >= 190  # too wide: mini-batches of a partition share no example
    assert covered[1] >= 180


# ---- pieces, the user's own, and errors --------------------------------------------------------


@pytest.mark.parametrize("engine", [None, "finite-difference"])
def test_mini_batches_that_are_there_are_not_computed_again(
    engine: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = data()
    f = Objective(net(), cut(x, y), mse)
    options: dict[str, Any] = {"batch_size": 6, "engine": engine, "tol": 1e-5}
    pieces: dict[str, Tensor] = {}
    told: list[tuple[int, int | None]] = []
    wanted = batch_eigenvalues(
        f, **options, pieces=pieces, progress=lambda i, n, _: told.append((i, n))
    )
    assert list(pieces) == ["whole", "batch 0", "batch 1", "batch 2", "batch 3"]
    assert told == [(i, 5) for i in range(1, 6)]
    del pieces["batch 2"]
    searches: list[int] = []

    def search(A: Any, k: int, **options: Any) -> Any:
        pairs = eigsh(A, k, **options)
        searches.append(pairs.products + pairs.check_products)
        return pairs

    monkeypatch.setattr("sharpness.by_batch.eigsh", search)
    again = batch_eigenvalues(f, **options, pieces=pieces)
    assert searches == [wanted.batch_products[2]]
    assert torch.equal(again.values, wanted.values)
    assert again.spec == wanted.spec
    assert again.products == wanted.products


def test_fewer_mini_batches_are_the_first_ones() -> None:
    x, y = data()
    f = Objective(net(), cut(x, y), mse)
    all_of_them = batch_eigenvalues(f, batch_size=6)
    found = batch_eigenvalues(f, batch_size=6, count=3)
    assert torch.equal(found.values, all_of_them.values[:3])
    assert found.left_out == 6
    assert not found.is_partition


def test_the_model_and_its_objective_stay_as_they_are() -> None:
    x, y = data()
    model = net(norm=True).train()
    before = deepcopy(model.state_dict())
    f = Objective(model, cut(x, y), mse, batch_norm="reestimate", statistics=cut(x, y))
    spec, value = deepcopy(f.spec), f.value(f.theta)
    batch_eigenvalues(f, batch_size=7)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (f.spec, f.value(f.theta), f.batch_norm) == (spec, value, "reestimate")
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_a_sample_tells_the_sampling_error_of_its_whole_value_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []
    original = Objective.sampling_error

    def noted(f: Objective, of: Any) -> Tensor:
        asked.append(f.spec["examples"])
        return original(f, of)

    monkeypatch.setattr(Objective, "sampling_error", noted)
    run = train(TrainConfig(model_options={"widths": []}, batch_size=600, updates=2))
    found = batch_eigenvalues(objective_of(run, examples=100), batch_size=50)
    assert found.whole_sampling_errors[0] > 0
    assert found.examples == 100
    assert asked == [100]  # which costs two products, and not of each mini-batch
    whole = batch_eigenvalues(objective_of(run), batch_size=300)
    assert whole.whole_sampling_errors.tolist() == [0.0]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"batch_size": 0}, "1 to 24, all the examples, got 0"),
        ({"batch_size": 25}, "1 to 24, all the examples, got 25"),
        ({"batch_size": 2.5}, "got 2.5"),
        ({"batch_size": 5, "count": 5}, "5 of 24 examples need a count of 1 to 4, got 5"),
        ({"batch_size": 5, "count": 0}, "got 0"),
        ({"k": 4}, "k from 1 to the 3 parameters, got k=4"),
        ({"k": 0}, "got k=0"),
        ({"operator": "hesse"}, "one of hessian, .*empirical-fisher, got 'hesse'"),
        ({"weight_decay": -0.1}, "at least 0 and finite, got -0.1"),
        ({"weight_decay": math.nan}, "at least 0 and finite, got nan"),
        ({"decayed": ["weight"]}, "give both"),
        ({"weight_decay": 0.1, "decayed": ["head"]}, "'head' matches no parameter"),
        ({"params": ["head"]}, "'head' matches no parameter"),
        ({"draws": 2}, "draws are for fisher, got hessian"),
        ({"engine": "fast"}, "engine needs to be one of"),
        ({"tol": 0.0}, "tol above 0"),
        ({"seed": -1}, "at least 0, got -1"),
    ],
    ids=str,
)
def test_a_wrong_request_is_refused(options: dict[str, Any], named: str) -> None:
    f = Objective(linear(), cut(*data()), mse)
    with pytest.raises(InputError, match=named):
        batch_eigenvalues(f, **{"batch_size": 4, **options})


@pytest.mark.parametrize(
    ("batches", "named"),
    [
        (
            [(torch.ones(4, 3), torch.ones(4, 1)), (torch.ones(4, 2), torch.ones(4, 1))],
            r"float32 \[3\], float32 \[1\]\) and, in batch 1, \(float32 \[2\]",
        ),
        ([(torch.ones(1, 3), torch.ones(4, 1))], r"a tensor of shape \(1, 3\)"),
        ([(torch.ones(4, 3), torch.ones(()))], "first axis"),
        ([((torch.ones(4, 3), object()), torch.ones(4, 1))], "got object"),
    ],
    ids=["ragged", "shared", "no axis", "object"],
)
def test_examples_that_cannot_be_told_apart_are_refused(batches: list[Any], named: str) -> None:
    def loss(z: Tensor, y: Tensor) -> Tensor:
        return (z - y).square().mean()

    f = Objective(nn.Linear(3, 1), batches, loss, count=lambda y: 1.0)
    with pytest.raises(InputError, match=named):
        batch_eigenvalues(f, batch_size=1)


def test_a_mini_batch_without_a_finite_loss_is_an_error() -> None:
    x, y = data()
    f = Objective(linear(), cut(x, y / 0), mse)
    with pytest.raises(ComputationError, match="finite"):
        batch_eigenvalues(f, batch_size=6)


def test_several_ranks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sharpness.by_batch.world_size", lambda: 2)
    with pytest.raises(InputError, match="one process, got 2 ranks"):
        batch_eigenvalues(Objective(linear(), cut(*data()), mse), batch_size=6)
