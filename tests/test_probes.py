"""What is no symmetric linear map is refused before it has a spectrum."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sharpness.curvature import Curvature, Dense, Hessian
from sharpness.errors import InputError
from sharpness.objective import Objective
from sharpness.operators import OPERATORS
from sharpness.probes import TOLERANCE, require_symmetric

cross_entropy = nn.functional.cross_entropy


def symmetric(n: int, dtype: torch.dtype) -> Tensor:
    Q = torch.linalg.qr(torch.randn(n, n).double())[0]
    return (Q * torch.logspace(-6, 2, n).double() @ Q.T).to(dtype)


class Counted(Dense):
    """A matrix that counts its products and adds something to each."""

    def __init__(self, matrix: Tensor, more: Any = None) -> None:
        super().__init__(matrix)
        self.products, self.more = 0, more

    def __matmul__(self, v: Tensor) -> Tensor:
        self.products += 1
        product = super().__matmul__(v)
        return product if self.more is None else product + self.more(self.products, product)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("n", [1, 2, 300])
def test_a_symmetric_matrix_passes_after_three_products(n: int, dtype: torch.dtype) -> None:
    for seed in range(5):
        A = Counted(symmetric(n, dtype))
        assert require_symmetric(A, seed) == A.products == 3


def test_the_zero_map_passes() -> None:
    assert require_symmetric(Dense(torch.zeros(3, 3))) == 3


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("named", "more"),
    [
        ("repeatable.*dropout.*shuffling", lambda i, product: (i == 1) * 0.01 * product),
        ("linear.*BatchNorm", lambda i, product: (i == 3) * 0.01 * product),
        ("(linear|symmetric)", lambda i, product: 0.01 * product.abs()),
        ("symmetric.*custom", lambda i, product: 0.02 * product.roll(1)),
    ],
    ids=["noise", "drift", "kinks", "asymmetry"],
)
def test_a_hundredth_of_what_is_wrong_is_seen_at_any_scale(
    named: str, more: Any, dtype: torch.dtype, scale: float
) -> None:
    for seed in range(10):
        A = Counted(scale * symmetric(50, dtype), more)
        with pytest.raises(InputError, match=f"needs to be {named}"):
            require_symmetric(A, seed)


@pytest.mark.parametrize("operator", OPERATORS.values())
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_curvature_of_a_network_with_kinks_passes(
    operator: type[Curvature], dtype: torch.dtype
) -> None:
    x, y = torch.randn(60, 8).to(dtype), torch.randint(0, 5, (60,))
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    model.append(nn.Linear(64, 5)).to(dtype)
    f = Objective(model, list(zip(x.split(25), y.split(25), strict=True)), cross_entropy)
    for seed in range(5):
        assert require_symmetric(operator(f), seed) == 3


class LateNoise(nn.Linear):
    """Dropout that the first look at a model does not see."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return nn.functional.dropout(super().forward(x), 0.5, training=self.calls > 3)


class LateShuffling:
    """Batches that the first look at the data finds in order."""

    def __init__(self) -> None:
        self.x, self.y, self.looks = torch.randn(40, 3), torch.randint(0, 2, (40,)), 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.looks += 1
        order = torch.arange(40) if self.looks < 4 else torch.randperm(40)
        yield from zip(self.x[order].split(8), self.y[order].split(8), strict=True)


def test_noise_and_shuffling_that_came_past_the_first_look_are_seen() -> None:
    batches = LateShuffling()
    noisy = Objective(LateNoise(3, 2), list(batches), cross_entropy)
    norms = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
    shuffled = Objective(norms, batches, cross_entropy, batch_norm="batch")
    for f in (noisy, shuffled):
        with pytest.raises(InputError, match=r"needs to be (repeatable|linear), got .* differ by"):
            require_symmetric(Hessian(f, engine="fresh"))


def test_differences_across_kinks_are_no_linear_map() -> None:
    model = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 2))
    f = Objective(model, [(torch.randn(20, 3), torch.randint(0, 2, (20,)))], cross_entropy)
    with pytest.raises(InputError, match=r"needs to be linear.*finite differences"):
        require_symmetric(Hessian(f, engine="finite-difference"))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("named", "times", "wrong"),
    [
        ("repeatable", 10, lambda i, product: (i == 1) * product),
        ("linear", 10, lambda i, product: (i == 3) * product),
        # Of a normal vector, of which the probe sees one entry: seldom a small one.
        ("symmetric", 50, lambda i, product: product.roll(1)),
    ],
    ids=["noise", "drift", "asymmetry"],
)
def test_a_map_is_refused_above_the_tolerance_and_passes_below(
    named: str, times: int, wrong: Any, dtype: torch.dtype
) -> None:
    tolerance = {torch.float64: 1e-6, torch.float32: 1e-3}[dtype]
    for seed in range(3):
        M = symmetric(50, dtype)
        bad = Counted(M, lambda i, product: times * tolerance * wrong(i, product))
        with pytest.raises(InputError, match=f"needs to be {named}"):
            require_symmetric(bad, seed)
        good = Counted(M, lambda i, product: tolerance / 10 * wrong(i, product))
        assert require_symmetric(good, seed) == 3
