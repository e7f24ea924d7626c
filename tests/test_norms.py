"""Norms of weights and of paths are sums that can be written out, and know their symmetries."""

import math
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sharpness.errors import ComputationError, InputError
from sharpness.norms import distance_from_start, path_norm, weight_norm
from sharpness.objective import Objective
from sharpness.problem import objective_of
from sharpness.results import Run
from sharpness.training import TrainConfig, train
from sharpness.vectors import flatten, gaussian, unflatten


def numbers(*shape: int, seed: int = 0) -> Tensor:
    like = torch.empty(0, dtype=torch.float64)
    return gaussian(math.prod(shape), seed, 0, like=like).view(*shape)


def objective(model: nn.Module, *shape: int) -> Objective:
    x, y = numbers(6, *shape), torch.tensor([0, 1, 0, 1, 0, 1])
    f = Objective(model.double(), [(x[:4], y[:4]), (x[4:], y[4:])], cross_entropy)
    f.theta.copy_(numbers(len(f.theta), seed=1))
    return f


def mlp() -> Objective:
    layers = [nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)]
    return objective(nn.Sequential(*layers), 3)


def moved(f: Objective, change: dict[str, Tensor]) -> Tensor:
    parts = unflatten(f.theta, f.shapes)
    return flatten([x * change.get(name, torch.ones(())) for name, x in parts.items()])


A = torch.tensor([8.0, 0.25, 1.0, 2.0]).double()
NEURONS = {"0.weight": A[:, None], "0.bias": A, "2.weight": 1 / A}
LAYERS = {
    name: torch.tensor(a).double()
    for name, a in {
        "0.weight": 8.0,
        "0.bias": 8.0,
        "2.weight": 0.25,
        "2.bias": 2.0,
        "4.weight": 0.5,
    }.items()
}


def permuted(f: Objective) -> Tensor:
    parts = unflatten(f.theta, f.shapes)
    order = torch.tensor([2, 0, 3, 1])
    parts |= {name: parts[name][order] for name in ("0.weight", "0.bias")}
    return flatten((parts | {"2.weight": parts["2.weight"][:, order]}).values())


def test_the_norm_is_that_of_all_parameters_and_products_those_of_weights() -> None:
    f = mlp()
    W = [x for x in unflatten(f.theta, f.shapes).values() if x.ndim > 1]
    assert weight_norm(f).value == pytest.approx(float(f.theta.norm()), rel=1e-14)
    want = math.prod(math.sqrt(float((x * x).sum())) for x in W)
    assert weight_norm(f, kind="frobenius-product").value == pytest.approx(want, rel=1e-13)
    want = math.prod(float(torch.linalg.svdvals(x)[0]) for x in W)
    found = weight_norm(f, kind="spectral-product")
    assert found.value == pytest.approx(want, rel=1e-12)
    assert found.interval.tolist() == [found.value] * 2
    assert (found.forwards, found.stderr, found.loss) == (1, 0, f.value(f.theta))


def test_a_convolution_is_the_matrix_of_its_filters() -> None:
    f = objective(nn.Sequential(nn.Conv1d(2, 3, 2, bias=False), nn.Flatten()), 2, 3)
    f = f.over([(x, y) for x, y in f.batches])
    want = float(torch.linalg.svdvals(f.theta.view(3, 4))[0])
    assert weight_norm(f, kind="spectral-product").value == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("kind", ["frobenius-product", "spectral-product"])
def test_products_stay_when_layers_are_scaled_against_each_other(kind: Any) -> None:
    f = mlp()
    scaled = moved(f, LAYERS)
    want = weight_norm(f, kind=kind).value
    assert weight_norm(f, scaled, kind=kind).value == pytest.approx(want, rel=1e-13)
    assert weight_norm(f, permuted(f), kind=kind).value == pytest.approx(want, rel=1e-13)
    other = weight_norm(f, moved(f, NEURONS), kind=kind).value
    assert abs(other / want - 1) > 0.1


def test_the_path_norm_is_the_sum_over_all_paths_written_out() -> None:
    f = mlp()
    a, b1, b, b2, c, b3 = (x.square().tolist() for x in unflatten(f.theta, f.shapes).values())
    want = sum(b3)
    for k, j in product(range(2), range(3)):
        want += c[k][j] * b2[j]
        for i in range(4):
            want += c[k][j] * b[j][i] * (b1[i] + sum(a[i]))
    found = path_norm(f)
    assert found.value == pytest.approx(math.sqrt(want), rel=1e-13)
    assert float(found.details["squared_without_biases"].sum()) < want
    assert found.forwards == 1 + 4 / 6


def test_the_path_norm_is_that_of_the_function_under_scales_and_permutations() -> None:
    f = mlp()
    want = path_norm(f).value
    for theta in (moved(f, LAYERS), moved(f, NEURONS), permuted(f)):
        assert f.value(theta) == pytest.approx(float(f.value(f.theta)), rel=1e-13)
        assert path_norm(f, theta).value == pytest.approx(want, rel=1e-13)
        assert abs(weight_norm(f, theta).value / weight_norm(f).value - 1) > 0.1 or torch.equal(
            theta.sort().values, f.theta.sort().values
        )


def test_paths_go_through_convolutions_pooling_and_shortcuts() -> None:
    class Shortcut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(1, 1, 2, bias=False)
            self.pool = nn.AvgPool1d(2)
            self.last = nn.Linear(1, 2, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            y = self.pool(self.conv(x).relu())
            return self.last((y + y * 1.0).flatten(1))

    f = objective(Shortcut(), 1, 3)
    a, b, c, d = f.theta.square().tolist()
    # Two windows of a + b, their mean, twice, to each of two outputs.
    assert path_norm(f).value == pytest.approx(math.sqrt(2 * (a + b) * (c + d)), rel=1e-13)


def test_frozen_weights_are_part_of_the_paths() -> None:
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    whole = objective(model, 3)
    with torch.no_grad():
        for p, x in zip(
            model.parameters(), unflatten(whole.theta, whole.shapes).values(), strict=True
        ):
            p.copy_(x)
    want = path_norm(whole).value
    model[0].weight.requires_grad_(False)
    f = Objective(model, whole.batches, cross_entropy)
    assert path_norm(f).value == pytest.approx(want, rel=1e-13)


class Squashed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x))


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (nn.Sequential(nn.Linear(3, 2), nn.Tanh()), "got 1, a Tanh: take weight_norm"),
        (
            nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)),
            "got 1, a BatchNorm1d: fold it into the weights",
        ),
        (nn.Sequential(nn.TransformerEncoderLayer(3, 1)), "got 0, a TransformerEncoderLayer"),
        (Squashed(), "outputs that double with their input"),
    ],
)
def test_what_no_sum_over_paths_goes_through_is_named(model: nn.Module, says: str) -> None:
    with pytest.raises(InputError, match=says):
        path_norm(objective(model, 3))


def test_a_product_needs_a_weight_and_a_path_real_numbers() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.table[x][:, None] * torch.ones(2)

    data = [(torch.tensor([0, 1]), torch.tensor([0, 1]))]
    f = Objective(Words(), data, cross_entropy)
    with pytest.raises(InputError, match="two axes or more"):
        weight_norm(f, kind="spectral-product")
    with pytest.raises(InputError, match=r"got torch\.int64"):
        path_norm(f)
    with pytest.raises(InputError, match="kind needs to be one of l2, frobenius-product"):
        weight_norm(f, kind="l1")
    with pytest.raises(ComputationError, match="finite weights"):
        weight_norm(f, torch.full((4,), torch.nan))


@pytest.fixture(scope="module")
def run() -> Run:
    return train(TrainConfig(model_options={"widths": [5]}, batch_size=600, updates=3))


def test_the_distance_is_that_of_the_end_from_the_start(run: Run) -> None:
    f = objective_of(run)
    assert run.start is not None
    want = float((run.end.theta.double() - run.start.theta.double()).norm())
    found = distance_from_start(f, run=run)
    assert found.value == pytest.approx(want, rel=1e-12)
    assert float(found.details["distances"].norm()) == pytest.approx(want, rel=1e-12)
    assert found.spec["run"] == run.spec
    assert distance_from_start(f, run.start, run=run).value == 0


def test_a_distance_needs_a_start(run: Run) -> None:
    f = objective_of(run)
    with pytest.raises(InputError, match="needs a run with its start, got no run"):
        distance_from_start(f)
    with pytest.raises(InputError, match="got a checkpoint, which has but an end"):
        distance_from_start(f, run=replace(run, start=None))
