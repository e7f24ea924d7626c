"""What a synthetic set promises of its distances, its losses and its spectrum is so."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn.functional import mse_loss

from sharpness.curvature import Hessian
from sharpness.data import source_of
from sharpness.errors import InputError
from sharpness.lanczos import eigsh
from sharpness.models import mlp
from sharpness.problem import objective_of
from sharpness.synthetic import clusters, planted, teacher, teacher_student
from sharpness.training import TrainConfig, cpu_threads, train


@pytest.fixture(autouse=True, scope="module")
def on_one_thread() -> Iterator[None]:
    with cpu_threads(1):  # the matrices are small
        yield


@pytest.mark.parametrize(("count", "dimension"), [(2, 1), (3, 2), (10, 9), (10, 30)])
def test_any_two_clusters_are_equally_far_apart(count: int, dimension: int) -> None:
    options: dict[str, Any] = {"count": count, "dimension": dimension, "examples": 40 * count}
    far = clusters(separation=1e9, **options)
    near = clusters(separation=0.0, **options)  # the same noise, about the origin
    for (x, y), (noise, _) in zip(far, near, strict=True):
        exact = x - noise
        centers = torch.stack([exact[y == label][0] for label in range(count)])
        assert torch.allclose(exact, centers[y], rtol=0, atol=1e-3)
        distances = torch.pdist(centers)
        assert (distances / 1e9 - 1).abs().max() < 1e-12
        assert (y.bincount() - len(y) / count).abs().max() < 1


def test_clusters_have_unit_variance_and_the_best_classifier_errs_as_it_must() -> None:
    (x, y), _ = clusters(count=2, dimension=3, separation=2.0, examples=20000)
    (noise, _), _ = clusters(count=2, dimension=3, separation=0.0, examples=20000)
    assert noise.mean(0).abs().max() < 5 / 20000**0.5
    # The error of a variance is sqrt(2 / N).
    assert (torch.cov(noise.T) - torch.eye(3)).abs().max() < 5 * (2 / 20000) ** 0.5
    centers = [(x - noise)[y == label][0] for label in (0, 1)]
    nearest = (x - centers[1]).norm(dim=1) < (x - centers[0]).norm(dim=1)
    right = (nearest == y.bool()).double().mean()
    phi = 0.5 * (1 + math.erf(2.0 / 2 / 2**0.5))
    assert abs(right - phi) < 5 * (phi * (1 - phi) / 20000) ** 0.5


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_the_teacher_itself_has_the_loss_of_the_noise(noise: float) -> None:
    sizes: dict[str, Any] = {"dimension": 5, "width": 3, "outputs": 2, "seed": 4}
    first, second = teacher(**sizes)
    model = mlp([5], 2, widths=[3]).double()
    state = {"0.weight": first, "2.weight": second}
    state |= {"0.bias": torch.zeros(3), "2.bias": torch.zeros(2)}
    model.load_state_dict({name: value.double() for name, value in state.items()})
    for x, y in teacher_student(noise=noise, examples=5000, test_examples=5000, **sizes):
        loss = mse_loss(model(x), y).item()
        # Of 10,000 squares of normal numbers, each with variance 2 noise^4; else roundings.
        assert abs(loss - noise**2) < max(5 * noise**2 * (2 / 10000) ** 0.5, 1e-28)


def test_targets_of_teachers_have_mean_square_one_on_average() -> None:
    squares = torch.tensor(
        [
            teacher_student(seed=seed, width=50, dimension=50, examples=200)[0][1].square().mean()
            for seed in range(200)
        ]
    )
    assert abs(squares.mean() - 1) < 5 * squares.std() / 200**0.5


SPECTRUM = [7.0, 3.0, 3.0, 0.25, 0.0]


@pytest.mark.parametrize("part", ["train", "test"])
def test_the_hessian_of_the_planted_regression_has_the_spectrum_and_2_of_the_bias(
    part: str,
) -> None:
    options = {"spectrum": SPECTRUM, "examples": 37, "test_examples": 23, "seed": 3}
    config = TrainConfig(
        data="planted", data_options=options, loss="mse", dtype="float64", updates=1, threads=1,
        model_options={"widths": []},
    )  # fmt: skip
    pairs = eigsh(Hessian(objective_of(train(config), split=part)), k=6, seed=0)
    wanted = torch.tensor(sorted([*SPECTRUM, 2.0], reverse=True), dtype=torch.float64)
    assert (pairs.values - wanted).abs().max() < 1e-10 * 7


def test_noise_is_all_the_loss_that_the_planted_weights_have() -> None:
    for noise in (0.0, 0.5):
        for x, y in planted(noise=noise, examples=2000):
            residual = y - x @ torch.linalg.lstsq(x, y).solution
            assert abs(residual.square().mean() - noise**2) < max(6 * noise**2 / 1000**0.5, 1e-25)


@pytest.mark.parametrize("name", ["clusters", "teacher-student", "planted"])
def test_a_set_is_a_function_of_its_options(name: str) -> None:
    first, again, other = (source_of(name, {"seed": seed}) for seed in (0, 0, 1))
    for part in (0, 1):
        assert torch.equal(first[part][0], again[part][0])
        assert not torch.allclose(first[part][0], other[part][0])
    longer = source_of(name, {"test_examples": 55})
    assert torch.equal(first[0][0], longer[0][0])
    assert len(longer[1][1]) == 55


def test_a_network_trains_on_each_of_them() -> None:
    for name, loss in (("clusters", "cross_entropy"), ("teacher-student", "mse")):
        run = train(
            TrainConfig(data=name, data_options={"examples": 64}, loss=loss, updates=3, threads=1)
        )
        assert run.history["train_loss"][-1] < run.history["train_loss"][0]


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("clusters", {"count": 22}, r"count of 2 to dimension \+ 1 = 21.*got 22"),
        ("clusters", {"count": 1}, "count of 2 .*got 1"),
        ("clusters", {"dimension": 2.5}, "dimension to be a whole number of at least 1, got 2.5"),
        ("clusters", {"examples": 0}, "examples to be a whole number of at least 1, got 0"),
        ("clusters", {"separation": -1}, "separation to be a number of at least 0, got -1"),
        ("teacher-student", {"width": 0}, "width to be a whole number of at least 1"),
        ("teacher-student", {"noise": "a"}, "noise to be a number of at least 0, got a"),
        ("planted", {"spectrum": []}, "spectrum of numbers"),
        ("planted", {"spectrum": [1, -1]}, r"numbers of at least 0, got \[1, -1\]"),
        ("planted", {"spectrum": 3}, "got 3"),
        ("planted", {"examples": 5}, "examples to be a whole number of at least 6, got 5"),
        ("planted", {"seed": -1}, "seed needs to be a whole number"),
        ("planted", {"specturm": [1]}, "planted .*got specturm: did you mean spectrum"),
    ],
)
def test_an_impossible_option_is_told_in_one_line(
    name: str, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=named) as caught:
        source_of(name, options)
    assert "\n" not in str(caught.value)
