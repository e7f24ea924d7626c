"""Metric 2.1 is known in closed form on quadratics, and a lower bound of the maximum elsewhere."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from sharpness import box_climbs, boxes
from sharpness.box_climbs import GROWING, Climb, climbed, sign_iteration
from sharpness.box_sharpness import epsilon_sharpness, subspace_sharpness, ways_up
from sharpness.curvature import Dense
from sharpness.errors import ComputationError, InputError
from sharpness.intervals import t_interval
from sharpness.lanczos import eigsh
from sharpness.objective import Objective
from sharpness.results import Solution
from sharpness.vectors import gaussian, uniform

sys.path.insert(0, str(Path(__file__).parent))
from boxed import SEPARABLE, highest, numbers, quadratic, symmetric, trained


@pytest.mark.parametrize(
    ("epsilon", "want"), [(1e-3, 0.37449038461538453), (0.05, 17.868589743589745)]
)
def test_every_seed_finds_the_maximum_of_a_separable_quadratic(epsilon: float, want: float) -> None:
    """By m_i = |g_i| b_i + h_i b_i^2 / 2, or g_i^2 / (-2 h_i) where that lies inside the box."""
    for seed in range(20):
        assert epsilon_sharpness(SEPARABLE, epsilon=epsilon, seed=seed).value == pytest.approx(
            want, rel=1e-12
        )


def convex(seed: int, n: int, steep: float) -> tuple[Objective, float]:
    """A convex quadratic and its metric at epsilon 0.01, by trying all 2^n vertices."""
    H, g, x = symmetric(seed, n)
    rise = highest(H, steep * g, 0.01 * (x.abs() + 1))
    return quadratic(H, steep * g, x, 0.5), 100 * rise / 1.5


@pytest.mark.parametrize("steep", [0.0, 0.01, 1.0])
def test_many_starts_find_the_best_of_256_vertices_and_few_find_no_better(steep: float) -> None:
    for seed in range(8):
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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_each_method_moves_far_in_the_box_of_a_trained_network(dtype: torch.dtype) -> None:
    """L-BFGS-B in unscaled variables moves some 1e-7 of the box and returns next to nothing."""
    f = trained(dtype)
    found = epsilon_sharpness(f, starts=5, sign_starts=5)
    assert found.start_on_bounds.min() > 0.5
    assert found.start_values.min() > 0.5 * found.value
    assert found.value == pytest.approx(float(found.start_values.max()), rel=1e-3)


def test_the_value_beats_the_vertices_along_gradient_and_top_eigenvector() -> None:
    f = trained()
    theta = f.theta
    found = epsilon_sharpness(f)
    b = 1e-3 * (theta.abs() + 1)
    H = torch.func.hessian(lambda t: sum(len(y) * f.batch_loss(t, x, y) for x, y in f.batches) / 60)
    _, vectors = torch.linalg.eigh(b[:, None] * H(theta) * b)
    for u in (f.gradient(theta).sign(), vectors[:, -1].sign(), -vectors[:, -1].sign()):
        rise = f.value(theta + b * u) - f.value(theta)
        assert found.value >= 100 * float(rise / (1 + f.value(theta))) * (1 - 1e-12)


def test_the_record_can_be_checked_from_the_displacement_alone() -> None:
    f = trained()
    theta = f.theta
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
    assert found.start == [
        *("L-BFGS-B 1", "L-BFGS-B 2", "sign of the gradient", "sign of q", "sign of -q"),
        "random vertex 1",
    ]
    assert found.start_signs.tolist() == [False] * 2 + [True] * 4


def test_the_gradients_are_counted() -> None:
    f = trained()
    calls = []
    f.value(f.theta)  # the first use looks at the first batch twice
    f.model.register_forward_hook(lambda *_: calls.append(1))
    found = epsilon_sharpness(f, starts=2, sign_starts=2, certificate=False)
    assert len(calls) / 2 == found.gradients + found.forwards  # of two batches
    # The loss at both ends once more, and at the signs of the gradient, which a climb passes by.
    assert (found.forwards, found.products) == (2 + 1, 0)


def test_a_linear_loss_has_a_first_order_share_of_one() -> None:
    f = quadratic(torch.zeros(3, 3).double(), numbers(1, -2, 0.5), numbers(0, 1, 2), 0.1)
    assert epsilon_sharpness(f).first_order_share == pytest.approx(1, rel=1e-9)


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
    assert found.start_on_bounds.tolist() == [1] * 6  # two of an eigenvector, and flips


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
    f = trained()
    few: dict[str, Any] = {"starts": 2, "sign_starts": 2, "certificate": False}
    want = epsilon_sharpness(f, **few)

    def stop(done: int, total: int | None, state: str) -> None:
        assert (total, state[:6]) == (4, "value ")
        if done == 3:
            raise KeyboardInterrupt

    pieces: dict[str, Tensor] = {}
    with pytest.raises(KeyboardInterrupt):
        epsilon_sharpness(f, **few, pieces=pieces, progress=stop)
    assert pieces.keys() == {"L-BFGS-B 1", "L-BFGS-B 2", "sign of the gradient"}
    calls: list[int] = []
    f.model.register_forward_hook(lambda *_: calls.append(1))
    got = epsilon_sharpness(f, **few, pieces=pieces)
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
        ({"mode": "best"}, "mode of converged, faithful, got best"),
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
    f = trained()
    scaled = epsilon_sharpness(f, starts=3, sign_starts=0)
    made = boxes.Box._resize

    def unscaled(self: Any, epsilon: float) -> None:
        made(self, epsilon)
        self.scale, self._descent = 1.0, -self.b

    monkeypatch.setattr(boxes.Box, "_resize", unscaled)
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
    f = trained()
    calls: list[int] = []
    told: list[tuple[int, int | None]] = []
    f.value(f.theta)  # the first use looks at the first batch twice
    f.model.register_forward_hook(lambda *_: calls.append(1))
    found = subspace_sharpness(
        f, dimension=3, draws=2, progress=lambda done, total, _: told.append((done, total))
    )
    # The loss at both ends of each draw, and at the neighbors of its highest vertex.
    assert len(calls) / 2 == found.gradients + found.forwards > found.gradients + 2 * 2
    assert told == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    "options", [{"draws": 0}, {"dimension": 0}, {"dimension": 6}, {"columns": "x"}]
)
def test_a_subspace_that_is_none_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="a draw, 1 <= dimension <= 5 and columns of"):
        subspace_sharpness(SEPARABLE, **{"dimension": 2, **options})


def test_a_loss_that_overflows_in_the_box_is_an_error() -> None:
    f = quadratic(torch.eye(2).double(), numbers(1, 1), numbers(0, 0), 0.0)
    steep = Objective(f.model, f.batches, lambda z, _: (1e6 * z.mean()).exp())
    with pytest.raises(ComputationError, match="got inf in batch 0: use a smaller epsilon"):
        epsilon_sharpness(steep, epsilon=0.1)


# ---- modes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_the_converged_value_is_no_less_than_the_faithful_one(seed: int) -> None:
    """Whose only start is among its own."""
    for f in (convex(seed, 8, 0.1)[0], SEPARABLE, trained(torch.float32)):
        one = epsilon_sharpness(f, mode="faithful", seed=seed)
        all_ = epsilon_sharpness(f, starts=1, sign_starts=1, certificate=False, seed=seed)
        assert one.start == ["L-BFGS-B 1"]
        assert all_.start[0] == "L-BFGS-B 1"
        assert one.start_values[0] == all_.start_values[0]
        assert all_.value >= one.value
        assert (one.products, one.bounds) == (0, {})


def test_the_faithful_mode_is_ten_iterations_of_scipy_from_one_random_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[tuple[Any, dict[str, Any]]] = []

    def watched(descent: Any, u: Any, **options: Any) -> Any:
        calls.append((u, options))
        return minimize(descent, u, **options)

    monkeypatch.setattr(box_climbs, "minimize", watched)
    found = epsilon_sharpness(trained(), mode="faithful", starts=7, sign_starts=7, seed=5)
    ((u, options),) = calls
    assert np.array_equal(u, uniform(130, 5, 0).numpy())
    assert options["method"] == "L-BFGS-B"
    assert options["options"] == {"maxiter": 10, "ftol": 0, "gtol": 0, "maxls": 20}
    assert 1 < found.start_iterations[0] <= 10


@pytest.mark.parametrize("n", [1, 3, 30])
def test_one_faithful_start_leaves_every_minimizer(n: int) -> None:
    for seed in range(5):
        H, _, x = symmetric(seed, n)
        found = epsilon_sharpness(
            quadratic(H, torch.zeros(n).double(), x, 0.1), mode="faithful", seed=seed
        )
        assert found.value > 0
        assert found.start_iterations[0] > 0


def test_flips_end_where_no_coordinate_can_rise(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the one vertex of a poor start, whose neighbors are higher."""
    H, g, x = symmetric(1, 12, convex=False)
    f, b = quadratic(H, g, x, 0.5), 0.3 * (x.abs() + 1)
    found = epsilon_sharpness(
        f, epsilon=0.3, starts=0, sign_starts=1, iterations=1, certificate=False
    )
    assert found.start == ["sign of the gradient", "flips"]
    assert found.start_values[1] > found.start_values[0] == found.start_begins[1]
    y = found.displacement
    for i in range(12):
        for bound in (b[i], -b[i]):
            other = y.clone()
            other[i] = bound
            assert float(f.value(x + other)) <= found.maximum
    assert found.forwards > 2 + 12
    monkeypatch.setattr(box_climbs, "FLIPPED", 11)
    unflipped = epsilon_sharpness(
        f, epsilon=0.3, starts=0, sign_starts=1, iterations=1, certificate=False
    )
    assert unflipped.value == float(found.start_values[0])


def test_sign_iterations_stay_in_the_dtype_of_theta_and_on_its_device() -> None:
    """And SciPy's function gets one vector of the device a call, and gives it one."""
    box = boxes.Box(trained(torch.float32), trained(torch.float32).at(trained().theta), 1e-3)
    kinds: list[tuple[torch.dtype, torch.dtype]] = []
    slope = box.slope

    def watched(z: Tensor) -> tuple[Tensor, Tensor]:
        value, found = slope(z)
        kinds.append((z.dtype, found.dtype))
        return value, found

    box.slope = watched  # type: ignore[method-assign]
    climbed(box, ways_up(box, 0, 2, 10, 0), flip=False)
    assert set(kinds) == {(torch.float32, torch.float32)}
    z, found = box.descent(uniform(130, 0, 0).numpy())
    assert (found.shape, found.dtype) == ((131,), np.float64)
    want = -box.scale * float(box.objective.value(box.at(z)) - box.loss)
    assert found[0] == pytest.approx(want, rel=1e-3)
    steep = box.objective.gradient(box.at(z)).double()
    assert np.allclose(found[1:], -box.scale * (box.b * steep).numpy(), rtol=1e-6, atol=0)


# ---- subspaces of other columns ------------------------------------------------------------


@pytest.mark.parametrize("mode", ["converged", "faithful"])
def test_all_coordinates_are_the_whole_space(mode: Any) -> None:
    few: dict[str, Any] = {"mode": mode, "starts": 2, "sign_starts": 2, "seed": 3}
    for f in (convex(0, 8, 0.1)[0], SEPARABLE, trained()):
        whole = epsilon_sharpness(f, certificate=False, **few)
        n = len(f.theta)
        found = subspace_sharpness(f, columns="coordinates", dimension=n, draws=1, **few)
        assert found.value == pytest.approx(whole.value, rel=1e-12)
        assert (found.gradients, found.forwards) == (whole.gradients, whole.forwards)
        assert float(found.draw_on_bounds[0]) == whole.on_bounds
        best = epsilon_sharpness(f, **few)
        assert found.value <= best.value * (1 + 1e-6)


def test_some_coordinates_have_the_closed_form_of_those() -> None:
    """Of a separable quadratic each coordinate has its own maximum."""
    h, x = numbers(4, 1, 3, 0.5, 2), numbers(1, -2, 0.5, 0, 3)
    f = quadratic(h.diag(), torch.zeros(5).double(), x, 0.3)
    rises = 50 * h * (0.05 * (x.abs() + 1)).square() / 1.3
    found = subspace_sharpness(f, epsilon=0.05, columns="coordinates", dimension=2, draws=8)
    sums = {round(float(rises[i] + rises[j]), 9) for i in range(5) for j in range(i)}
    values = {round(x, 9) for x in found.draw_values.tolist()}
    assert values <= sums
    assert len(values) > 1


def test_orthonormal_columns_have_the_rank_one_law() -> None:
    n, p = 60, 7
    v = nn.functional.normalize(torch.randn(n).double(), dim=0)
    x = 30 * torch.randn(n).double()
    f = quadratic(5 * v[:, None] * v, torch.zeros(n).double(), x, 0.2)
    found = subspace_sharpness(f, dimension=p, draws=2, seed=4, columns="orthonormal")
    for draw, value in enumerate(found.draw_values.tolist()):
        A = boxes.subspace("orthonormal", p, 4, draw, like=x)
        assert isinstance(A, boxes.Columns)
        Q = A.rows
        torch.testing.assert_close(Q @ Q.T, torch.eye(p).double())
        drawn = gaussian_columns(n, p, 4, draw)
        torch.testing.assert_close(drawn @ Q.T @ Q, drawn)  # the same subspace
        b = 1e-3 * ((Q @ x).abs() + 1)
        want = 50 * 5 * float((Q @ v).abs() @ b) ** 2 / 1.2
        assert value == pytest.approx(want, rel=1e-9)


# ---- the climb from the gradient ------------------------------------------------------------

EPSILON = 0.1


def around_0(
    rise: Callable[[Tensor], Tensor], p: int, dtype: torch.dtype = torch.float64
) -> boxes.Box:
    """The box of a loss of 1 + rise(u) at u = y / epsilon, whose center is 0."""
    model = nn.Linear(1, p, bias=False).to(dtype)
    nn.init.zeros_(model.weight)
    batches = [(torch.ones(1, 1).to(dtype), torch.zeros(1).to(dtype))]
    f = Objective(model, batches, lambda z, _: 1 + rise(z[0] / EPSILON))
    return boxes.Box(f, f.at(f.theta), EPSILON)


def from_gradient(box: boxes.Box, iterations: int = 10) -> Climb:
    return climbed(box, ways_up(box, 0, 1, iterations, 0), flip=False)["sign of the gradient"]


def two_sides(up: float, down: float) -> Callable[[Tensor], Tensor]:
    """0.6 up at u = 1 and 0.6 down at u = -1, and a slope at 0 that is upwards and turns soon.

    With down of 2 the slopes at -2/3 and -1 are downwards, and that at 1 is upwards.
    """

    def rise(u: Tensor) -> Tensor:
        wave = 0.1 * torch.sin(4 * torch.pi * u)
        return (wave + up * (u - 0.4).relu() + down * (-u - 0.4).relu()).sum()

    return rise


def test_growing_parts_of_the_box_lead_where_the_slope_at_the_center_does_not() -> None:
    box = around_0(two_sides(0, 2), 1)
    vertex = climbed(box, {"": sign_iteration(lambda: box.vertex(box.G, 0, 0), 10)}, flip=False)[""]
    assert vertex.best < 1e-9
    found = from_gradient(box)
    assert found.best == pytest.approx(0.6 * 2, rel=1e-9)
    assert found.z == -EPSILON


def test_no_climb_from_the_gradient_ends_below_the_signs_of_the_gradient() -> None:
    """Where growing parts of the box lead to the lower side."""
    found = from_gradient(around_0(two_sides(3, 2), 1))
    assert found.best == pytest.approx(0.6 * 3, rel=1e-9)
    assert found.z == EPSILON
    assert (found.gradients, found.forwards) == (len(GROWING) + 1, 1)


@pytest.mark.parametrize("iterations", [1, 2, 3, 10])
def test_the_last_gradient_of_a_climb_is_in_the_whole_box(iterations: int) -> None:
    box, seen, true = around_0(lambda u: u.sum(), 3), [], boxes.Box.slope

    def watched(z: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(float(z.abs().max()) / EPSILON)
        return true(box, z)

    box.slope = watched  # type: ignore[method-assign]
    found = from_gradient(box, iterations)
    assert seen == pytest.approx([*GROWING[: iterations - 1], 1.0], rel=1e-12)
    assert (found.best, found.begin) == pytest.approx((3, 3 * seen[0]), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_where_the_gradient_is_0_a_climb_stays_at_the_center_until_it_is_not(
    dtype: torch.dtype,
) -> None:
    """Of u_0 - |u_1| + u_0 u_2 on the box, 2 at (1, 0, 1) is the highest."""
    box = around_0(lambda u: u[0] - u[1].abs() + u[0] * u[2], 3, dtype)
    found = from_gradient(box)
    assert found.best == pytest.approx(2, rel=1e-5)
    assert torch.equal(found.z, box.sides * torch.tensor([1, 0, 1]).to(dtype))


def test_coordinates_that_are_left_at_the_center_take_random_signs_where_the_others_settle() -> (
    None
):
    """Of a loss whose slope along v is 0 at the center; what the others have found stays."""
    v, first = torch.arange(1, 10).double(), two_sides(0, 2)
    found = from_gradient(around_0(lambda u: first(u[:1]) + (v @ u[1:]).square() / 2, 10))
    assert found.best == pytest.approx(0.6 * 2 + float(v.sum()) ** 2 / 2, rel=1e-9)
    assert found.z[0] == -EPSILON
    assert found.box.on_bounds(found.z) == 1


def test_from_a_minimizer_the_climb_begins_at_a_random_vertex() -> None:
    v = torch.arange(1, 10).double()
    box = around_0(lambda u: (v @ u).square() / 2, 9)
    found = from_gradient(box)
    assert found.begin == box.rise(box.inside(box.random_vertex(0, 0))) > 0
    assert found.best == pytest.approx(float(v.sum()) ** 2 / 2, rel=1e-9)
    assert found.forwards == 0  # it passes by nothing
