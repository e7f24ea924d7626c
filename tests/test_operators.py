"""Operators made of operators are known from dense matrices."""

from functools import partial
from typing import Any

import pytest
import scipy.sparse.linalg
import torch
from torch import Tensor, nn
from torch.func import hessian
from torch.nn.functional import cross_entropy, mse_loss

from sharpness.curvature import AdaptiveHessian, Dense, GaussNewton, Hessian, to_scipy
from sharpness.errors import InputError
from sharpness.lanczos import eigsh
from sharpness.objective import Objective
from sharpness.operators import (
    Block,
    Scaled,
    Sum,
    WeightDecayed,
    places,
    sampling_errors_of,
    shapes_of,
)
from sharpness.spectrum import density, diagonal, frobenius, trace


def symmetric(n: int, seed: int = 0) -> Tensor:
    M = torch.randn(n, n, generator=torch.Generator().manual_seed(seed)).double()
    return M + M.T


def dense(A: Any) -> Tensor:
    return torch.stack([A @ row for row in torch.eye(A.size).double()])


def network(**options: Any) -> Objective:
    X, y = torch.randn(12, 3).double(), torch.randint(0, 3, (12,))
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    batches = list(zip(X.split(4), y.split(4), strict=True))
    return Objective(model, batches, cross_entropy, **options)


A, B = symmetric(6), symmetric(6, 1)
AT = torch.tensor([1, 2, 5])


@pytest.mark.parametrize(
    ("made", "want"),
    [
        (lambda: Sum((2.0, Dense(A)), (-0.5, Dense(B))), 2 * A - 0.5 * B),
        (lambda: Sum((3.0, Dense(A))), 3 * A),
        (lambda: WeightDecayed(Dense(A), 0.1), A + 0.1 * torch.eye(6).double()),
        (lambda: Scaled(Dense(A), torch.arange(6)), torch.arange(6)[:, None] * A * torch.arange(6)),
        (lambda: Block(Dense(A), AT), A[AT][:, AT]),
        (
            lambda: WeightDecayed(Block(Sum((2.0, Dense(A))), AT), 1.0),
            2 * A[AT][:, AT] + torch.eye(3),
        ),
    ],
    ids=["sum", "multiple", "decay", "scaled", "block", "several"],
)
def test_what_is_made_of_matrices_is_their_matrix(made: Any, want: Tensor) -> None:
    torch.testing.assert_close(dense(made()), want.double())
    again = scipy.sparse.linalg.eigsh(to_scipy(made()), k=1, which="LA")[0]
    top = torch.linalg.eigvalsh(want.double())[-1:]
    torch.testing.assert_close(torch.from_numpy(again.copy()), top)
    torch.testing.assert_close(eigsh(made(), 1, which="LA").values, top)


def test_weight_decay_is_the_curvature_of_the_penalty() -> None:
    f, decay = network(), 0.3
    weights = places(f.shapes, ["*.weight"])

    def penalized(theta: Tensor, at: Tensor) -> Tensor:
        losses = [cross_entropy(f.outputs(theta, x), y) for x, y in f.batches]
        return torch.stack(losses).mean() + decay / 2 * theta[at].square().sum()

    for params, at in ((None, torch.arange(31)), (["*.weight"], weights)):
        H = hessian(penalized)(f.theta, at)
        torch.testing.assert_close(dense(WeightDecayed(Hessian(f), decay, params=params)), H)


def test_blocks_by_name_are_those_of_the_second_derivatives_in_these_parameters() -> None:
    f = network()
    H = dense(Hessian(f))
    shapes = {name: shape.numel() for name, shape in f.shapes.items()}
    assert shapes == {"0.weight": 12, "0.bias": 4, "2.weight": 12, "2.bias": 3}
    for patterns, at in {
        ("0.weight",): range(12),
        ("0",): range(16),
        ("*.bias",): [*range(12, 16), *range(28, 31)],
        ("2.bias", "0.bias"): [*range(12, 16), *range(28, 31)],
        ("[02].weight",): [*range(12), *range(16, 28)],
    }.items():
        block = Block(Hessian(f), patterns)
        where = torch.tensor(list(at))
        torch.testing.assert_close(dense(block), H[where][:, where])
        assert sum(s.numel() for s in shapes_of(block).values()) == block.size
    inner = Block(Block(Hessian(f), ["2"]), ["*.bias"])
    torch.testing.assert_close(dense(inner), H[28:, 28:])


def test_the_adaptive_hessian_is_the_hessian_scaled_by_the_size_of_the_parameters() -> None:
    f = network()
    torch.testing.assert_close(dense(AdaptiveHessian(f)), dense(Scaled(Hessian(f), f.theta.abs())))


def test_every_algorithm_takes_what_is_made_of_a_matvec_of_ones_own() -> None:
    made = Block(Sum((2.0, Dense(A)), (1.0, Dense(A))), torch.arange(4))
    want = 3 * A[:4, :4]
    torch.testing.assert_close(
        eigsh(made, 4, which="LA").values, torch.linalg.eigvalsh(want).flip(0)
    )
    found = density(made, steps=4, probes=1)
    torch.testing.assert_close(found.nodes[0], torch.linalg.eigvalsh(want))
    for estimate, exact in ((trace, want.trace()), (frobenius, (want * want).sum())):
        assert estimate(made, probes=12).value == pytest.approx(float(exact))
    torch.testing.assert_close(diagonal(made).values, diagonal(Dense(want)).values)


def test_errors_of_differences_of_gradients_reach_what_is_made_of_them() -> None:
    f = network()
    H = Hessian(f, engine="finite-difference")
    v = torch.randn(len(f.theta)).double()
    assert Sum((2.0, Hessian(f)), (3.0, GaussNewton(f))).error is None
    made = {
        "sum": (Sum((-2.0, H), (3.0, GaussNewton(f))), 2.0),
        "decay": (WeightDecayed(H, 0.1), 1.0),
        "scaled": (Scaled(H, torch.full((31,), -4.0)), 4.0),
        "block": (Block(H, torch.arange(31)), 1.0),
    }
    for operator, factor in made.values():
        operator @ v
        assert H.error
        assert operator.error == pytest.approx(factor * H.error)


def test_sampling_errors_are_those_of_the_quadratic_forms() -> None:
    f = network(spec={"examples": 12, "of": 100})
    H = Hessian(f)
    rows = torch.randn(2, 31).double()
    errors = H.sampling_errors(rows)
    assert errors.min() > 0
    assert_close = partial(torch.testing.assert_close, rtol=1e-12, atol=0.0)
    assert_close(sampling_errors_of(WeightDecayed(H, 1.0), rows), errors)
    assert_close(sampling_errors_of(Sum((-2.0, H)), rows), 2 * errors)
    assert_close(sampling_errors_of(Scaled(H, torch.full((31,), 3.0)), rows), 9 * errors)
    inside = torch.arange(5, 20)
    whole = torch.zeros_like(rows)
    whole[:, inside] = rows[:, inside]
    got = sampling_errors_of(Block(H, inside), rows[:, inside])
    assert_close(got, H.sampling_errors(whole))
    both = sampling_errors_of(Sum((1.0, H), (1.0, Hessian(f))), rows)
    assert_close(both, 2 * errors)  # those of one sample, which add up
    assert_close(sampling_errors_of(Dense(A), rows[:, :6]), torch.zeros(2).double())


class Nameless:
    size, dtype, device = 3, torch.float64, torch.device("cpu")
    spec: dict[str, Any] = {"operator": "mine"}  # noqa: RUF012

    def __matmul__(self, v: Tensor) -> Tensor:
        return v


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: Sum(), "a sum needs operators, got none"),
        (lambda: Sum((float("inf"), Dense(A))), "a sum needs finite factors, got .inf.: change"),
        (lambda: Sum((1, Dense(A)), (1, Dense(A[:3, :3]))), "one kind, got 3 unknowns .* and 6"),
        (lambda: Sum((1, Dense(A)), (1, Dense(A.float()))), "in torch.float32 on cpu and 6 unkn"),
        (lambda: WeightDecayed(Dense(A), -1.0), "weight_decay needs to be at least 0"),
        (lambda: WeightDecayed(Dense(A), float("nan")), "weight_decay needs to be at least 0"),
        (lambda: WeightDecayed(Dense(A), 1.0, params=["0"]), "an operator of a model, got a Dense"),
        (lambda: Scaled(Dense(A), torch.ones(5)), r"finite vector of shape \(6,\), got shape \(5,"),
        (lambda: Scaled(Dense(A), torch.full((6,), torch.nan)), "that is not: change it"),
        (lambda: Block(Dense(A), torch.tensor([2, 1])), "ascending places from 0 to 5, got 1 to 2"),
        (lambda: Block(Dense(A), torch.tensor([1, 6])), "ascending places from 0 to 5, got 1 to 6"),
        (lambda: Block(Dense(A), torch.tensor([-1, 2])), "ascending places from 0 to 5, got -1"),
        (lambda: Block(Dense(A), torch.zeros(0).long()), "needs the places of its unknowns"),
        (lambda: Block(Dense(A), torch.tensor([0.5])), "torch.float32 of shape .1,.: give integer"),
        (lambda: Block(Nameless(), ["0"]), "operator of a model, got a Nameless: give the places"),
        (
            lambda: Block(Hessian(network()), ["0.wieght"]),
            "no parameter; names begin 0.weight,",
        ),
        (lambda: Block(Hessian(network()), ["0", "3"]), "params '3' matches no parameter"),
        (lambda: Block(Hessian(network()), []), r"params need patterns in a list, got \[\]"),
        (lambda: places({}, "0"), "params need patterns in a list, got '0'"),
        (lambda: Block(Dense(A), AT) @ torch.ones(6), r"vector of shape \(3,\), got \(6,\)"),
        (
            lambda: Block(Block(Hessian(network()), torch.arange(3)), ["0"]),
            "a block of places has no names",
        ),
    ],
)
def test_what_cannot_be_made_is_told_in_one_sentence(call: Any, line: str) -> None:
    with pytest.raises(InputError, match=line):
        call()


def test_mean_squares_with_weight_decay_have_the_spectrum_of_ridge_regression() -> None:
    X, y = torch.randn(20, 4).double(), torch.randn(20, 1).double()
    f = Objective(nn.Linear(4, 1, bias=False).double(), [(X, y)], mse_loss)
    want = torch.linalg.eigvalsh(X.T @ X / 10 + 0.7 * torch.eye(4).double()).flip(0)
    torch.testing.assert_close(eigsh(WeightDecayed(Hessian(f), 0.7), 4).values, want)
