"""Metric 2.1 is known in closed form on quadratics, and a lower bound of the maximum elsewhere."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sharpness import box_sharpness
from sharpness.box_sharpness import epsilon_sharpness, subspace_sharpness
from sharpness.curvature import Dense
from sharpness.errors import ComputationError, InputError
from sharpness.intervals import t_interval
from sharpness.lanczos import eigsh
from sharpness.objective import Objective
from sharpness.results import Solution
from sharpness.vectors import gaussian


def numbers(*x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def quadratic(H: Tensor, g: Tensor, x: Tensor, f0: float) -> Objective:
    """f(x + y) = f0 + g y + y H y / 2, with its data in three ragged batches."""

    class Quadratic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.theta = nn.Parameter(x.clone())

        def forward(self, inputs: Tensor) -> Tensor:
            y = self.theta - x
            return (f0 + g @ y + y @ H @ y / 2) * inputs[:, 0]

    weights = numbers(0.5, 1.5, 1.0, 0.25, 1.75, 1.0)  # of mean 1
    cuts = [weights[:3], weights[3:5], weights[5:]]
    batches = [(part[:, None], torch.zeros(len(part)).double()) for part in cuts]
    return Objective(Quadratic(), batches, lambda z, _: z.mean())


SEPARABLE = quadratic(
    torch.diag(numbers(4, 1, -3, 0.5, -2)),
    numbers(0.1, -0.2, 0.05, 0, -1),
    numbers(1, -2, 0.5, 0, 3),
    0.3,
)


@pytest.mark.parametrize(
    ("epsilon", "want"), [(1e-3, 0.37449038461538453), (0.05, 17.868589743589745)]
)
def test_every_seed_finds_the_maximum_of_a_separable_quadratic(epsilon: float, want: float) -> None:
    """By m_i = |g_i| b_i + h_i b_i^2 / 2, or g_i^2 / (-2 h_i) where that lies inside the box."""
    for seed in range(50):
        assert epsilon_sharpness(SEPARABLE, epsilon=epsilon, seed=seed).value == pytest.approx(
            want, rel=1e-12
        )


def convex(seed: int, n: int, steep: float) -> tuple[Objective, float]:
    """A convex quadratic and its metric at epsilon 0.01, by trying all 2^n vertices."""
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(n, n, generator=generator, dtype=torch.float64)
    g, x = torch.randn(2, n, generator=generator, dtype=torch.float64)
    H, g, b = A @ A.T, steep * g, 0.01 * (x.abs() + 1)
    vertices = b * torch.tensor(list(product((-1.0, 1.0), repeat=n)), dtype=torch.float64)
    rises = vertices @ g + ((vertices @ H) * vertices).sum(dim=1) / 2
    return quadratic(H, g, x, 0.5), 100 * float(rises.max()) / 1.5


@pytest.mark.parametrize("steep", [0.0, 0.01, 1.0])
def test_many_starts_find_the_best_of_256_vertices_and_few_find_no_better(steep: float) -> None:
    for seed in range(20):
        f, want = convex(seed, 8, steep)
        many = epsilon_sharpness(f, epsilon=0.01, starts=0, sign_starts=100)
        assert many.value == pytest.approx(want, rel=1e-9)
        assert 0 < epsilon_sharpness(f, epsilon=0.01).value <= want * (1 + 1e-12)


@pytest.mark.parametrize(
    "options", [{"starts": 1, "sign_starts": 0}, {"starts": 0, "sign_starts": 1}]
)
def test_one_start_of_either_method_leaves_a_minimizer(options: dict[str, int]) -> None:
    """Where the gradient is zero, a call that starts at the center returns 0."""
    for seed in range(10):
        f, want = convex(seed, 8, 0.0)
        found = epsilon_sharpness(f, epsilon=0.01, seed=seed, **options)
        assert 0 < found.value <= want * (1 + 1e-12)


def trained(dtype: torch.dtype) -> tuple[Objective, Tensor]:
    """A small ReLU network near a minimum of cross-entropy."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, generator=generator).to(dtype)
    y = (x[:, 0] * x[:, 1] > 0).long()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 2)).to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    f = Objective(model, [(x[:40], y[:40]), (x[40:], y[40:])], nn.functional.cross_entropy)
    return f, f.theta


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_each_method_moves_far_in_the_box_of_a_trained_network(dtype: torch.dtype) -> None:
    """L-BFGS-B in unscaled variables moves some 1e-7 of the box and returns next to nothing."""
    f, _ = trained(dtype)
    found = epsilon_sharpness(f, starts=5, sign_starts=5)
    assert found.start_on_bounds.min() > 0.5
    assert found.start_values.min() > 0.5 * found.value
    assert found.value == pytest.approx(float(found.start_values.max()), rel=1e-3)


def test_the_value_beats_the_vertices_along_gradient_and_top_eigenvector() -> None:
    f, theta = trained(torch.float64)
    found = epsilon_sharpness(f)
    b = 1e-3 * (theta.abs() + 1)
    H = torch.func.hessian(lambda t: sum(len(y) * f.batch_loss(t, x, y) for x, y in f.batches) / 60)
    _, vectors = torch.linalg.eigh(b[:, None] * H(theta) * b)
    for u in (f.gradient(theta).sign(), vectors[:, -1].sign(), -vectors[:, -1].sign()):
        rise = f.value(theta + b * u) - f.value(theta)
        assert found.value >= 100 * float(rise / (1 + f.value(theta))) * (1 - 1e-12)


def test_the_record_can_be_checked_from_the_displacement_alone() -> None:
    f, theta = trained(torch.float64)
    found = epsilon_sharpness(f, starts=2, sign_starts=2)
    b = found.epsilon * (theta.abs() + 1)
    y = found.displacement
    assert (y.abs() <= b * (1 + 1e-15)).all()
    assert found.loss == f.value(theta)
    assert found.maximum == f.value(theta + y)
    assert found.value == pytest.approx(100 * (found.maximum - found.loss) / (1 + found.loss))
    slope = float((b * f.gradient(theta)).abs().sum())
    assert found.first_order == pytest.approx(100 * slope / (1 + found.loss), rel=1e-12)
    assert found.on_bounds == float((y.abs() >= b).double().mean())
    assert found.gradients == 1 + int(found.start_gradients.sum())
    assert found.start_signs.tolist() == [False, False, True, True]


def test_the_gradients_are_counted() -> None:
    f, _ = trained(torch.float64)
    calls = []
    f.value(f.theta)  # the first use looks at the first batch twice
    f.model.register_forward_hook(lambda *_: calls.append(1))
    found = epsilon_sharpness(f, starts=2, sign_starts=2)
    assert len(calls) / 2 == found.gradients + 2  # two batches; the loss at both ends once more


def test_a_linear_loss_has_a_first_order_share_of_one() -> None:
    f = quadratic(torch.zeros(3, 3).double(), numbers(1, -2, 0.5), numbers(0, 1, 2), 0.1)
    assert epsilon_sharpness(f).first_order_share == pytest.approx(1, rel=1e-9)


def test_the_value_grows_with_epsilon() -> None:
    f, _ = trained(torch.float64)
    values = [epsilon_sharpness(f, epsilon=e, starts=2).value for e in (1e-4, 5e-4, 1e-3, 5e-3)]
    assert values == sorted(values)


@pytest.mark.parametrize("method", ["starts", "sign_starts"])
def test_the_flattest_minimum_has_a_small_value_and_not_zero(method: str) -> None:
    """A tolerance on the gradient would end L-BFGS-B where it starts."""
    h, x = 1e-9 * numbers(3, 1, 2), numbers(0, 1, 2)
    f = quadratic(h.diag(), torch.zeros(3).double(), x, 0.0)
    want = 50 * float(h @ (1e-3 * (x.abs() + 1)).square())
    one = {"starts": 0, "sign_starts": 0, method: 1}
    assert epsilon_sharpness(f, **one).value == pytest.approx(want, rel=1e-9)


def test_a_parameter_that_the_loss_does_not_use_stays_at_its_bound() -> None:
    v = torch.cat([torch.randn(20), torch.zeros(20)]).double()  # one step to its signs is best
    f = quadratic(v[:, None] * v, torch.zeros(40).double(), torch.randn(40).double(), 0.1)
    found = epsilon_sharpness(f, starts=0, sign_starts=3)
    assert found.start_gradients.max() > 1
    assert found.start_on_bounds.tolist() == [1, 1, 1]


def test_a_rise_that_is_but_rounding_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    f = quadratic(torch.eye(3).double(), torch.zeros(3).double(), numbers(0, 1, 2), 0.1)
    monkeypatch.setattr(f, "value", lambda _: torch.tensor(0.1, dtype=torch.float64))
    found = epsilon_sharpness(f)
    assert (found.value, found.maximum) == (0, found.loss)
    assert not found.displacement.any()


def test_a_maximum_has_no_sharpness_and_that_is_no_error() -> None:
    f = quadratic(-torch.eye(3).double(), torch.zeros(3).double(), numbers(0, 1, 2), 5.0)
    found = epsilon_sharpness(f)
    assert (found.value, found.maximum, found.on_bounds) == (0.0, found.loss, 0.0)
    assert not found.displacement.any()
    assert np.isnan(found.first_order_share)


def test_a_solution_brings_its_buffers() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).double()
    x, y = torch.randn(8, 2).double(), torch.arange(8) % 2
    f = Objective(model, [(x, y)], nn.functional.cross_entropy)
    moved = {"1.running_mean": numbers(1, -1), "1.running_var": numbers(4, 0.25)}
    found = epsilon_sharpness(f, Solution(f.theta, moved), starts=1, sign_starts=1)
    assert found.loss == f.value(Solution(f.theta, moved)) != f.value(f.theta)
    assert found.maximum == f.value(Solution(f.theta + found.displacement, moved))


def test_an_interrupted_search_continues_from_its_pieces() -> None:
    f, _ = trained(torch.float64)
    want = epsilon_sharpness(f, starts=2, sign_starts=2)

    def stop(done: int, total: int | None, state: str) -> None:
        assert (total, state[:6]) == (4, "value ")
        if done == 3:
            raise KeyboardInterrupt

    pieces: dict[str, Tensor] = {}
    with pytest.raises(KeyboardInterrupt):
        epsilon_sharpness(f, starts=2, sign_starts=2, pieces=pieces, progress=stop)
    assert pieces.keys() == {"L-BFGS-B 0", "L-BFGS-B 1", "sign 0"}
    calls: list[int] = []
    f.model.register_forward_hook(lambda *_: calls.append(1))
    got = epsilon_sharpness(f, starts=2, sign_starts=2, pieces=pieces)
    assert len(calls) / 2 == int(want.start_gradients[3]) + 3  # of two batches
    assert torch.equal(got.displacement, want.displacement)
    assert got.value == want.value


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"epsilon": 0.0}, "above 0 and finite, got 0"),
        ({"epsilon": -1e-3}, "got -0.001"),
        ({"epsilon": float("nan")}, "got nan"),
        ({"epsilon": float("inf")}, "got inf"),
        ({"epsilon": 1e-16}, "rounding of the weights"),
        ({"starts": 0, "sign_starts": 0}, "starts=0, sign_starts=0"),
        ({"iterations": 0}, "a start and an iteration"),
    ],
)
def test_impossible_requests_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        epsilon_sharpness(SEPARABLE, **options)


@pytest.mark.parametrize("measure", [epsilon_sharpness, subspace_sharpness])
def test_a_center_that_is_not_finite_is_an_error(measure: Any) -> None:
    options = {"dimension": 2} if measure is subspace_sharpness else {}
    with pytest.raises(ComputationError, match="finite weights, got 5 that are not in theta"):
        measure(SEPARABLE, torch.full((5,), torch.nan).double(), **options)
    absent = Objective(SEPARABLE.model, SEPARABLE.batches, lambda z, _: z.mean() * torch.nan)
    with pytest.raises(ComputationError, match="epsilon_sharpness needs a finite loss, got nan in"):
        measure(absent, **options)


@pytest.mark.parametrize("method", ["starts", "sign_starts"])
@pytest.mark.parametrize("beyond", ["nan", "inf"])
def test_a_box_in_which_the_loss_is_not_finite_everywhere_has_no_maximum(
    method: str, beyond: str
) -> None:
    """The loss is finite near the center, and where it exceeds 1e-3 it is no number."""
    f = quadratic(torch.eye(2).double(), numbers(1, 1), numbers(0, 0), 0.0)
    steep = Objective(
        f.model,
        f.batches,
        lambda z, _: z.mean() + torch.where(z.mean() > 1e-3, float(beyond), 0.0),
    )
    one = {"starts": 0, "sign_starts": 0, method: 2}
    wanted = f"epsilon_sharpness in its box needs a finite loss, got {beyond} in batch .: use a"
    with pytest.raises(ComputationError, match=wanted):
        epsilon_sharpness(steep, epsilon=0.1, **one)
    assert epsilon_sharpness(steep, epsilon=1e-5, **one).value > 0


def test_a_gradient_that_is_not_finite_in_the_box_is_named() -> None:
    """Away from the center a root is added that is 0 there, with an infinite slope."""

    def loss(z: Tensor, _: Tensor) -> Tensor:
        root = (z - z.detach()).abs().sum().sqrt()
        return z.mean() + (root if z.mean() > 1e-4 else 0)

    f = quadratic(torch.eye(2).double(), numbers(1, 1), numbers(0, 0), 0.0)
    torn = Objective(f.model, f.batches, loss)
    with pytest.raises(
        ComputationError, match=r"box needs a finite gradient, got \w+ for theta in"
    ):
        epsilon_sharpness(torn, epsilon=0.1)


def test_a_sample_of_the_data_tells_its_sampling_error() -> None:
    """The mean of N examples out of M, each its own batch: var / N (1 - N / M)."""
    rates = numbers(1, 2, 4, 8, 9, 3)
    batches = [(rate[None, None], torch.zeros(1).double()) for rate in rates]
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(model.weight)
    f = Objective(model, batches, lambda z, _: z.mean(), spec={"examples": 6, "of": 24})
    found = epsilon_sharpness(f, epsilon=0.01)  # each example rises by 0.02 of its rate
    want = 100 * 0.02 * float(rates.var() / 6 * (1 - 6 / 24)) ** 0.5 / (1 + float(rates.mean()))
    assert found.sampling_error == pytest.approx(want, rel=1e-9)
    whole = Objective(model, batches, lambda z, _: z.mean())
    assert epsilon_sharpness(whole, epsilon=0.01).sampling_error == 0


def test_the_scale_law_of_rank_one_holds() -> None:
    """50 lambda (sum |v_i| b_i)^2 / (1 + f) for H = lambda v v^T, whose pair eigsh finds."""
    v = torch.nn.functional.normalize(torch.randn(300).double(), dim=0)
    H, x = 7 * v[:, None] * v, torch.randn(300).double()
    pairs = eigsh(Dense(H), 1)
    want = 50 * float(pairs.values[0] * (v.abs() @ (1e-3 * (x.abs() + 1))) ** 2) / 1.2
    found = epsilon_sharpness(quadratic(H, torch.zeros(300).double(), x, 0.2))
    assert found.value == pytest.approx(want, rel=1e-9)


def test_scaling_of_the_box_variables_is_what_makes_l_bfgs_b_move(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    f, _ = trained(torch.float64)
    scaled = epsilon_sharpness(f, starts=3, sign_starts=0)
    made = box_sharpness._Box.__init__

    def unscaled(self: Any, *args: Any) -> None:
        made(self, *args)
        self.scale = 1.0

    monkeypatch.setattr(box_sharpness._Box, "__init__", unscaled)
    starved = epsilon_sharpness(f, starts=3, sign_starts=0)
    assert starved.value < 0.9 * scaled.value


def gaussian_columns(n: int, p: int, seed: int, draw: int) -> Tensor:
    rows = [gaussian(n, seed, draw * p + i, like=numbers(0)) for i in range(p)]
    return torch.stack(rows)  # (p, n)


def test_in_a_subspace_the_rank_one_law_holds_for_each_draw() -> None:
    """50 lambda (sum |(A^T v)_j| b_j)^2 / (1 + f), b_j = epsilon (|(A^+ x)_j| + 1)."""
    n, p = 60, 7
    v = nn.functional.normalize(torch.randn(n).double(), dim=0)
    x = 30 * torch.randn(n).double()  # so that |A^+ x| counts beside the 1
    f = quadratic(5 * v[:, None] * v, torch.zeros(n).double(), x, 0.2)
    found = subspace_sharpness(f, dimension=p, draws=3, seed=4)
    for draw, value in enumerate(found.draw_values.tolist()):
        A = gaussian_columns(n, p, 4, draw)
        b = 1e-3 * (torch.linalg.lstsq(A.T, x[:, None]).solution[:, 0].abs() + 1)
        want = 50 * 5 * float((A @ v).abs() @ b) ** 2 / 1.2
        assert value == pytest.approx(want, rel=1e-9)
    assert len(set(found.draw_values.tolist())) == 3
    low, high = found.interval.tolist()
    assert (found.value, low, high) == t_interval(found.draw_values)
    assert found.stderr == pytest.approx(float(found.draw_values.std()) / 3**0.5)


def test_in_a_subspace_a_linear_loss_gives_its_first_order_alone() -> None:
    g = numbers(1, -2, 0.5, 3)
    f = quadratic(torch.zeros(4, 4).double(), g, numbers(0, 1, 2, -1), 0.1)
    found = subspace_sharpness(f, dimension=2, draws=2)
    torch.testing.assert_close(found.draw_values, found.draw_first_order)
    assert found.draw_values.min() > 0


def test_one_draw_has_an_unknown_interval() -> None:
    found = subspace_sharpness(SEPARABLE, dimension=2, draws=1)
    assert np.isnan(found.stderr)
    assert found.interval.isnan().all()
    assert found.value == float(found.draw_values[0])


def test_the_gradients_of_all_draws_are_counted_and_told() -> None:
    f, _ = trained(torch.float64)
    calls: list[int] = []
    told: list[tuple[int, int | None]] = []
    f.value(f.theta)  # the first use looks at the first batch twice
    f.model.register_forward_hook(lambda *_: calls.append(1))
    found = subspace_sharpness(
        f, dimension=3, draws=2, progress=lambda done, total, _: told.append((done, total))
    )
    assert len(calls) / 2 == found.gradients + 2 * 2  # the loss at both ends of each draw
    assert told == [(1, 2), (2, 2)]


@pytest.mark.parametrize("options", [{"draws": 0}, {"dimension": 0}, {"dimension": 6}])
def test_a_subspace_that_is_none_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(InputError, match="a draw and 1 <= dimension <= 5"):
        subspace_sharpness(SEPARABLE, **{"dimension": 2, **options})


def test_a_loss_that_overflows_in_the_box_is_an_error() -> None:
    f = quadratic(torch.eye(2).double(), numbers(1, 1), numbers(0, 0), 0.0)
    steep = Objective(f.model, f.batches, lambda z, _: (1e6 * z.mean()).exp())
    with pytest.raises(ComputationError, match="got inf in batch 0: use a smaller epsilon"):
        epsilon_sharpness(steep, epsilon=0.1)
