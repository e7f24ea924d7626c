"""Rises in a ball, under noise and one step up are known on quadratics, and agree elsewhere."""

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from sharpness.apgd import Ball, Look, climb
from sharpness.curvature import Hessian
from sharpness.data import digits
from sharpness.errors import ComputationError, InputError
from sharpness.intervals import t_interval
from sharpness.lanczos import eigsh
from sharpness.logits import normalized_logits
from sharpness.noisy import average_case
from sharpness.objective import Objective
from sharpness.perturbed import sam, worst_case
from sharpness.results import Measured
from sharpness.spectrum import trace

Measure = Callable[..., Measured]


def drawn(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class Quadratic(nn.Module):
    """f(x + d) = g d + d H d / 2, times the input."""

    def __init__(self, H: Tensor, g: Tensor, x: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(x.clone())
        for name, constant in (("H", H), ("g", g), ("x", x)):
            self.register_buffer(name, constant)

    def forward(self, inputs: Tensor) -> Tensor:
        d = self.theta - self.x
        return (self.g @ d + d @ self.H @ d / 2) * inputs[:, 0]


def mean_output(z: Tensor, _: Tensor) -> Tensor:
    return z.mean()


def quadratic(H: Tensor, g: Tensor, x: Tensor, weights: tuple[float, ...] = (0.5, 1.5, 1.0)) -> Any:
    """A quadratic with its examples, whose weights have the mean 1, in ragged batches."""
    inputs = torch.tensor(weights, dtype=H.dtype)[:, None]
    batches = [(part, torch.zeros(len(part)).to(H)) for part in inputs.split(2)]
    return Objective(Quadratic(H, g, x), batches, mean_output)


def problem(seed: int, n: int, steep: float, *, convex: bool) -> tuple[Tensor, Tensor, Tensor]:
    A, g, x = drawn(seed, n, n), drawn(seed + 500, n), drawn(seed + 900, n)
    return (A @ A.T if convex else (A + A.T) / 2), steep * g, x


def highest_in_a_ball(H: Tensor, g: Tensor, rho: float) -> float:
    """The maximum of g d + d H d / 2 over |d|_2 <= rho, by the secular equation.

    It is at d = (nu I - H)^-1 g with |d| = rho, for a nu above the largest eigenvalue.
    """
    values, vectors = torch.linalg.eigh(H)
    a = vectors.T @ g

    def excess(nu: float) -> float:
        return float((a / (nu - values)).norm()) - rho

    low = max(float(values[-1]), 0.0)
    high = low + float(g.norm()) / rho + 1
    nu = brentq(excess, low + 1e-9 * high, high, xtol=1e-14 * high)
    d = a / (nu - values)
    return float(a @ d + (values * d) @ d / 2)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("convex", [True, False])
@pytest.mark.parametrize("steep", [0.1, 10.0])
def test_the_worst_case_of_a_quadratic_is_the_solution_of_the_trust_region(
    *, adaptive: bool, convex: bool, steep: float
) -> None:
    for seed in range(5):
        H, g, x = problem(seed, 12, steep, convex=convex)
        T = x.abs() if adaptive else torch.ones(12).double()
        want = highest_in_a_ball(T[:, None] * H * T, T * g, 0.5)
        found = worst_case(
            quadratic(H, g, x), rho=0.5, adaptive=adaptive, iterations=60, restarts=3, seed=seed
        )
        assert want * (1 - 1e-3) <= found.value <= want * (1 + 1e-9)
        low, high = found.interval.tolist()
        assert low == found.value
        assert math.isnan(high)
        assert found.details["first_order"].item() == pytest.approx(0.5 * float((T * g).norm()))


def test_at_a_minimizer_the_worst_case_is_half_the_largest_eigenvalue() -> None:
    """A start at the center cannot leave it; those at random points can."""
    H, g, x = problem(0, 12, 0.0, convex=True)
    f, lambda_1 = quadratic(H, g, x), float(torch.linalg.eigvalsh(H)[-1])
    found = worst_case(f, rho=0.1, iterations=60)
    assert found.value == pytest.approx(0.01 * lambda_1 / 2, rel=1e-3)
    assert found.converged
    stuck = worst_case(f, rho=0.1, restarts=0)
    assert stuck.value == 0
    assert not stuck.converged
    assert "not at all" in stuck.words


def test_the_worst_case_in_a_box_is_the_best_of_its_vertices() -> None:
    for seed in range(5):
        H, g, x = problem(seed, 6, 0.1, convex=True)
        vertices = 0.3 * torch.tensor(list(product((-1.0, 1.0), repeat=6)), dtype=torch.float64)
        want = float((vertices @ g + ((vertices @ H) * vertices).sum(dim=1) / 2).max())
        f = quadratic(H, g, x)
        many = worst_case(f, rho=0.3, norm="linf", iterations=10, restarts=60, seed=seed)
        assert many.value == pytest.approx(want, rel=1e-9)
        assert 0 < worst_case(f, rho=0.3, norm="linf").value <= want * (1 + 1e-12)
        assert many.details["first_order"].item() == pytest.approx(0.3 * float(g.abs().sum()))


def test_an_adaptive_box_of_a_diagonal_quadratic_has_its_closed_form() -> None:
    h, g, x = drawn(1, 6).abs(), drawn(2, 6), drawn(3, 6)
    b = 0.2 * x.abs()
    want = float((g.abs() * b + h * b**2 / 2).sum())
    found = worst_case(quadratic(torch.diag(h), g, x), rho=0.2, norm="linf", adaptive=True)
    assert found.value == pytest.approx(want, rel=1e-12)


def test_a_box_along_one_steep_direction_has_its_closed_form() -> None:
    """H = lambda v v^T: lambda rho^2 |v|_1^2 / 2."""
    v = drawn(4, 10)
    f = quadratic(3 * torch.outer(v, v), torch.zeros(10).double(), drawn(5, 10))
    found = worst_case(f, rho=0.1, norm="linf")
    assert found.value == pytest.approx(3 * 0.01 * float(v.abs().sum()) ** 2 / 2, rel=1e-9)


@pytest.mark.parametrize("noise", ["gaussian", "uniform"])
@pytest.mark.parametrize("adaptive", [False, True])
def test_the_average_case_of_a_quadratic_is_a_trace(noise: str, *, adaptive: bool) -> None:
    """sigma^2 tr(T H T) / 2 for normal noise, whose variance is known too, and a third of it."""
    H, g, x = problem(0, 10, 100.0, convex=False)
    T = x.abs() if adaptive else torch.ones(10).double()
    THT = T[:, None] * H * T
    third = 3 if noise == "uniform" else 1
    want = 0.01 * float(torch.trace(THT)) / 2 / third
    f = quadratic(H, g, x)
    found = average_case(f, sigma=0.1, noise=noise, adaptive=adaptive, draws=400)
    if noise == "gaussian":  # the variance of z A z is 2 |A|_F^2
        deviation = 0.01 / 2 * math.sqrt(2) * float(THT.norm())
    else:  # that of z_i^2 is 4 / 45, that of z_i z_j 1 / 9
        diagonal = THT.diag().square().sum()
        deviation = (
            0.01
            / 2
            * math.sqrt(4 / 45 * float(diagonal) + 2 / 9 * float(THT.square().sum() - diagonal))
        )
    assert found.value == pytest.approx(want, abs=4 * deviation / 20)
    assert found.stderr == pytest.approx(deviation / 20, rel=0.3)
    assert found.samples["rise"].shape == (400,)
    assert found.interval.tolist() == pytest.approx(t_interval(found.samples["rise"])[1:])


def test_noise_of_both_signs_cancels_what_is_linear() -> None:
    g, x = drawn(0, 10), drawn(1, 10)
    f = quadratic(torch.zeros(10, 10).double(), 1e3 * g, x)
    found = average_case(f, sigma=0.1, draws=5)
    assert found.samples["rise"].abs().max() < 1e-12 * 1e3


def test_each_mini_batch_has_noise_of_its_own() -> None:
    """So that the mean over M alike ones scatters sqrt(M) times less."""
    H, g, x = problem(0, 10, 1.0, convex=True)
    f = quadratic(H, g, x, (1.0,) * 16)
    one, many = (average_case(f, sigma=0.1, batch_size=m, draws=300) for m in (16, 1))
    assert many.stderr == pytest.approx(one.stderr / 4, rel=0.2)
    assert many.value == pytest.approx(0.01 * float(torch.trace(H)) / 2, abs=4 * many.stderr)
    assert (one.forwards, many.forwards) == (601, 601)


@pytest.mark.parametrize(("adaptive", "eta"), [(False, 0.0), (True, 0.0), (True, 0.01)])
def test_the_step_of_sam_has_its_closed_form_on_a_quadratic(*, adaptive: bool, eta: float) -> None:
    """It is rho |T g| + rho^2 (T^2 g)' H (T^2 g) / (2 |T g|^2)."""
    H, g, x = problem(0, 10, 1.0, convex=False)
    T = x.abs() + eta if adaptive else torch.ones(10).double()
    steep, e = float((T * g).norm()), T * T * g
    want = 0.3 * steep + 0.09 * float(e @ H @ e) / (2 * steep**2)
    found = sam(quadratic(H, g, x), rho=0.3, adaptive=adaptive, eta=eta)
    assert found.value == pytest.approx(want, rel=1e-12)
    assert found.details["first_order"].item() == pytest.approx(0.3 * steep, rel=1e-12)
    assert found.interval.tolist() == [found.value, found.value]
    assert found.stderr == 0


def test_the_step_of_sam_has_no_direction_where_the_gradient_is_zero() -> None:
    H, g, x = problem(0, 5, 0.0, convex=True)
    found = sam(quadratic(H, g, x))
    assert math.isnan(found.value)
    assert found.words.startswith("undefined: the gradient is zero")
    assert not found.converged


def trained(dtype: torch.dtype = torch.float64) -> Objective:
    """An MLP on digits, in ragged batches."""
    (x, y), _ = digits()
    x, y = x[:300].to(dtype), y[:300]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    batches = list(zip(x.split(128), y.split(128), strict=True))
    return Objective(model, batches, cross_entropy)


MLP, MLP32 = trained(), trained(torch.float32)
BALLS = [
    {"rho": 0.05},
    {"rho": 1e-3, "norm": "linf"},
    {"rho": 0.3, "adaptive": True},
    {"rho": 0.01, "norm": "linf", "adaptive": True},
]


@pytest.mark.parametrize("f", [MLP, MLP32], ids=["float64", "float32"])
@pytest.mark.parametrize("adaptive", [False, True])
def test_the_worst_case_is_at_least_the_step_of_sam(f: Objective, *, adaptive: bool) -> None:
    for rho in (1e-2, 0.1, 1.0):
        for m in (None, 100):
            options = {"rho": rho, "adaptive": adaptive, "batch_size": m}
            step = sam(f, **options)
            found = worst_case(f, restarts=0, **options)
            slack = 16 * torch.finfo(f.theta.dtype).eps * (step.loss + step.value)
            assert (found.samples["rise"] >= step.samples["rise"] - slack).all()


def scaled(f: Objective, factors: Tensor) -> Tensor:
    """The network of one hidden ReLU layer with its neurons scaled, and their outputs back."""
    w1, b1, w2, b2 = (
        x.view(shape)
        for x, shape in zip(
            f.theta.split([s.numel() for s in f.shapes.values()]), f.shapes.values(), strict=True
        )
    )
    parts = (w1 * factors[:, None], b1 * factors, w2 / factors, b2)
    return torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("kind", ["layer", "neurons"])
def test_adaptive_measures_do_not_see_scaling_by_powers_of_two(norm: Any, kind: str) -> None:
    factors = torch.full((32,), 8.0).double()
    if kind == "neurons":
        factors = 2.0 ** torch.arange(-4, 4).repeat(4).double()
    there = scaled(MLP, factors)
    measures: list[tuple[Measure, dict[str, Any]]] = [
        (worst_case, {"rho": 0.1, "norm": norm}),
        (average_case, {"sigma": 0.1, "draws": 3}),
        (sam, {"rho": 0.1}),
    ]
    for measure, options in measures:
        here = measure(MLP, adaptive=True, **options)
        assert measure(MLP, there, adaptive=True, **options).value == here.value
        moved = measure(MLP, there, **options).value
        assert moved != pytest.approx(measure(MLP, **options).value, rel=0.05)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_zero_weight_does_not_open_the_adaptive_ball(norm: Any) -> None:
    theta = MLP.theta.clone()
    theta[theta.abs().argmin()] = 0  # its own part of the value is the smallest
    options: dict[str, Any] = {"rho": 0.1, "norm": norm, "adaptive": True}
    here, there = worst_case(MLP, **options), worst_case(MLP, theta, **options)
    assert there.value == pytest.approx(here.value, rel=0.05)


def test_weights_that_are_zero_stay_zero_and_take_no_room_in_an_adaptive_ball() -> None:
    """The ball is that of the other weights, at a point where only random starts leave."""
    H, _, x = problem(0, 40, 0.0, convex=True)
    x[:39] = 0
    f = quadratic(H, torch.zeros(40).double(), x)
    found = worst_case(f, rho=0.1, adaptive=True, iterations=1)
    assert found.value == pytest.approx(0.01 * float(x[39] ** 2 * H[39, 39]) / 2, rel=1e-9)


def minimum() -> Objective:
    """Softmax regression on digits of 2x2 pixels with wrong labels, at its minimum."""
    (x, y), _ = digits()
    x = nn.functional.avg_pool2d(x.view(-1, 1, 8, 8), 4).flatten(1)[:400].double()
    y = torch.where(drawn(0, 400) > 1, (y[:400] + 1) % 10, y[:400])
    model = nn.Linear(4, 10).double()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    solver = torch.optim.LBFGS(
        model.parameters(),
        max_iter=500,
        tolerance_grad=1e-9,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        solver.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        return loss

    solver.step(closure)
    return Objective(model, [(x, y)], cross_entropy)


def test_at_a_minimum_the_measures_agree_with_the_spectrum_and_each_other() -> None:
    f = minimum()
    n = len(f.theta)
    assert f.gradient(f.theta).norm() < 1e-7
    A = Hessian(f)
    lambda_1, rho = float(eigsh(A, 1).values[0]), 0.05
    worst = worst_case(f, rho=rho, iterations=60)
    # |third derivative| <= |x|^3 for softmax, so that the next term is rho^3 max |x|^3 / 6 at most.
    third = max(float(x.square().sum(1).add(1).max()) for x, _ in f.batches) ** 1.5 / 6
    assert worst.value == pytest.approx(rho**2 * lambda_1 / 2, abs=third * rho**3, rel=1e-3)
    sigma = rho / math.sqrt(n)
    average = average_case(f, sigma=sigma, draws=400)
    exact = sigma**2 * trace(A, method="hutchinson", probes=400).value / 2
    assert average.value == pytest.approx(exact, rel=0.1)
    assert worst.value >= average.interval[1]


def test_a_mini_batch_is_measured_as_if_it_were_all_the_data() -> None:
    whole = worst_case(MLP, rho=0.1, restarts=0)
    found = worst_case(MLP, rho=0.1, batch_size=100, restarts=0)
    assert found.samples["rise"].shape == (3,)
    assert found.value == pytest.approx(float(found.samples["rise"].mean()))
    assert found.value >= whole.value  # a mean of maxima is no less than the maximum of the mean
    assert found.interval.tolist() == pytest.approx(t_interval(found.samples["rise"])[1:])
    order = worst_case(MLP, rho=0.1, batch_size=300, restarts=0)
    assert order.value == pytest.approx(whole.value, rel=1e-9)


@pytest.mark.parametrize("measure", [worst_case, average_case, sam])
def test_splitting_the_data_does_not_change_a_measure(measure: Measure) -> None:
    inputs, targets = (torch.cat(parts) for parts in zip(*MLP.batches, strict=True))
    one = Objective(MLP.model, [(inputs, targets)], cross_entropy)
    for m in (None, 90):
        assert measure(MLP, batch_size=m).value == pytest.approx(
            measure(one, batch_size=m).value, rel=1e-9
        )


@pytest.mark.parametrize("measure", [worst_case, average_case, sam])
@pytest.mark.parametrize("m", [None, 100, 80])
def test_costs_are_the_passes_that_are_made(measure: Measure, m: int | None) -> None:
    passes = {True: 0, False: 0}  # examples, with a gradient and without

    def counted(z: Tensor, y: Tensor) -> Tensor:
        passes[z.requires_grad] += len(y)
        return cross_entropy(z, y)

    f = Objective(MLP.model, MLP.batches, counted)
    found = measure(f, batch_size=m)
    assert found.gradients == pytest.approx(passes[True] / 300)
    assert found.forwards == pytest.approx(passes[False] / 300)
    assert found.products == 0
    assert found.details["left_out"] == (60 if m == 80 else 0)


@pytest.mark.parametrize("measure", [worst_case, average_case, sam])
def test_what_is_there_is_not_computed_again(measure: Measure) -> None:
    pieces: dict[str, Tensor] = {}
    seen: list[tuple[int, int | None]] = []
    first = measure(MLP, batch_size=100, pieces=pieces)
    never = Objective(MLP.model, MLP.batches, lambda z, y: z.sum() * torch.nan)
    again = measure(
        never, batch_size=100, pieces=pieces, progress=lambda *x: seen.append((x[0], x[1]))
    )
    assert again.value == first.value
    assert again.words == first.words
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("measure", [worst_case, average_case])
@pytest.mark.parametrize("m", [None, 100])
def test_normalized_scores_do_not_see_the_scale_of_the_last_layer(
    measure: Measure, m: int | None
) -> None:
    """Away from it: with the ball in units of the weights, which scales with them."""
    theta = MLP.theta.clone()
    theta[-330:] *= 4  # the last layer, weights and biases
    options: dict[str, Any] = {"adaptive": True, "batch_size": m}
    here, there = (measure(MLP, at, normalize_logits=True, **options) for at in (MLP.theta, theta))
    assert there.value == pytest.approx(here.value, rel=1e-9)
    assert there.loss == pytest.approx(here.loss, rel=1e-12)
    raw = measure(MLP, theta, **options).value
    assert raw != pytest.approx(measure(MLP, **options).value, rel=0.05)


def test_normalized_scores_of_one_value_have_a_finite_loss_and_gradient() -> None:
    f = normalized_logits(
        Objective(nn.Linear(2, 3), [(torch.eye(2), torch.tensor([0, 1]))], cross_entropy)
    )
    value, slope = f.value_and_gradient(torch.zeros(9))
    assert float(value) == pytest.approx(math.log(3))
    assert torch.isfinite(slope).all()


def flips() -> Objective:
    """Scores (a x, b x) of x = 1 and 3 with the label 0: right while a > b."""
    model = nn.Linear(1, 2, bias=False).double()
    x = torch.tensor([[1.0], [3.0]]).double()
    return Objective(model, [(x, torch.tensor([0, 0]))], cross_entropy)


def test_the_error_rises_where_the_loss_is_highest() -> None:
    f, theta = flips(), torch.tensor([0.01, -0.01]).double()
    assert worst_case(f, theta, rho=0.1, of="error").value == 1
    assert worst_case(f, theta, rho=0.01, of="error").value == 0  # a stays above b
    assert worst_case(f, theta, rho=0.1).value < 1
    found = average_case(f, theta, sigma=1e3, of="error", draws=50)
    assert found.value == pytest.approx(0.5)  # one of the two signs is wrong
    assert found.details["error"].item() == 0


@pytest.mark.parametrize("measure", [worst_case, average_case])
@pytest.mark.parametrize("options", [{"of": "error"}, {"normalize_logits": True}])
def test_what_needs_class_scores_refuses_a_regression(
    measure: Measure, options: dict[str, Any]
) -> None:
    who = "of=" if "of" in options else "normalize_logits"
    x = drawn(0, 4, 3)
    one = Objective(nn.Linear(3, 1).double(), [(x, x[:, :1])], mse_loss)
    with pytest.raises(InputError, match=rf"^{who}.* needs class scores .* shape \(4, 1\): leave"):
        measure(one, **options)
    many = Objective(nn.Linear(3, 3).double(), [(x, x)], mse_loss)
    with pytest.raises(InputError, match=rf"^{who}.* needs .* in torch.float64: leave it out"):
        measure(many, **options)


def test_the_error_refuses_labels_of_no_class() -> None:
    def lenient(z: Tensor, y: Tensor) -> Tensor:
        return z.square().mean()

    x = torch.eye(2)
    f = Objective(
        nn.Linear(2, 2), [(x, torch.tensor([0, -100])), (x, torch.tensor([1, 2]))], lenient
    )
    with pytest.raises(InputError, match=r"got labels from -100 to 2: change them"):
        worst_case(f, of="error")


@pytest.mark.parametrize(
    ("measure", "options", "words"),
    [
        (worst_case, {"rho": 0.0}, "rho above 0 and finite, got 0.0"),
        (worst_case, {"rho": math.inf}, "rho above 0 and finite, got inf"),
        (worst_case, {"rho": 1e-17}, "rho above .* in torch.float64, got 1.0e-17"),
        (worst_case, {"norm": "l1"}, "norm to be l2 or linf, got 'l1': choose one"),
        (worst_case, {"of": "accuracy"}, "of to be loss or error, got 'accuracy'"),
        (worst_case, {"iterations": 0}, "iterations to be a whole number of at least 1, got 0"),
        (worst_case, {"restarts": -1}, "restarts to be a whole number of at least 0, got -1"),
        (worst_case, {"batch_size": 301}, "a batch_size of 1 to 300, all the examples, got 301"),
        (worst_case, {"seed": -1}, "a seed needs to be a whole number of at least 0, got -1"),
        (average_case, {"sigma": math.nan}, "sigma above 0 and finite, got nan"),
        (average_case, {"sigma": 1e-18}, "sigma above .* in torch.float64, got 1.0e-18"),
        (average_case, {"noise": "normal"}, "noise to be gaussian or uniform, got 'normal'"),
        (average_case, {"draws": 0}, "draws to be a whole number of at least 1, got 0"),
        (average_case, {"batch_size": 0}, "a batch_size of 1 to 300, all the examples, got 0"),
        (sam, {"rho": -1.0}, "rho above 0 and finite, got -1.0"),
        (sam, {"eta": -1.0, "adaptive": True}, "eta of at least 0 and finite, got -1.0"),
        (sam, {"eta": 0.01}, "adaptive for an eta, got 0.01"),
    ],
)
def test_a_wrong_request_is_refused_in_a_sentence(
    measure: Measure, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words) as refused:
        measure(MLP, **options)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("measure", "options"),
    [(worst_case, {"rho": 3.0}), (average_case, {"sigma": 3.0}), (sam, {"rho": 3.0})],
)
def test_a_pole_within_reach_is_refused(measure: Measure, options: dict[str, Any]) -> None:
    class Pole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(1).double())

        def forward(self, x: Tensor) -> Tensor:
            return -torch.log(self.w) + x  # climbs towards 0, and is NaN beyond

    f = Objective(Pole(), [(torch.zeros(1).double(),) * 2], mean_output)
    with pytest.raises(ComputationError, match=r"needs a finite loss, got .* use a smaller"):
        measure(f, **options)


def test_one_pair_and_one_mini_batch_have_no_interval() -> None:
    for found in (average_case(MLP, draws=1), worst_case(MLP, batch_size=200)):
        assert math.isnan(found.stderr)
        assert found.interval.isnan().all()


def test_a_sample_of_the_data_has_a_sampling_error() -> None:
    """That of the rise to where SAM steps, or of the mean rise beside that of the draws."""
    inputs, targets = (torch.cat(parts) for parts in zip(*MLP.batches, strict=True))
    batches = list(zip(inputs.split(10), targets.split(10), strict=True))
    spec = {"examples": 300, "of": 1500}
    part = Objective(MLP.model, batches, cross_entropy, spec=spec)
    theta, slope = part.theta, part.gradient(part.theta)
    there = theta + 0.05 * slope / slope.norm()

    def rise(i: int, x: Any, y: Any) -> Tensor:
        return part.batch_loss(there, x, y) - part.batch_loss(theta, x, y)

    with torch.no_grad():
        want = float(part.sampling_error(rise))
    step = sam(part)
    assert step.stderr == pytest.approx(want, rel=1e-9)
    assert step.forwards == 3
    assert step.interval.isnan().all()
    assert worst_case(part).stderr > 0
    mine, other = average_case(part), average_case(MLP)
    assert mine.value == pytest.approx(other.value, rel=1e-9)
    assert mine.stderr > other.stderr
    width = float(mine.interval[1] - mine.interval[0]) / float(other.interval.diff())
    assert width == pytest.approx(mine.stderr / other.stderr, rel=1e-9)


@pytest.mark.parametrize("batch_norm", ["frozen", "batch", "reestimate"])
def test_measures_take_every_policy_of_batch_norm_and_leave_the_model(batch_norm: str) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2)).double()
    batches = [(drawn(0, 8, 2), torch.tensor([0, 1] * 4))]
    f = Objective(model, batches, cross_entropy, batch_norm=batch_norm, statistics=batches)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    state, scaling = torch.get_rng_state(), f.theta.clone()
    scaling[:9] *= 4  # filters before BatchNorm, with their biases
    for measure in (worst_case, average_case, sam):
        here = measure(f, adaptive=True)
        if batch_norm != "frozen":
            there = measure(f, scaling, adaptive=True)
            assert there.value == pytest.approx(here.value, rel=1e-3)  # but for BatchNorm's eps
    assert torch.equal(state, torch.get_rng_state())
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(p.grad is not None for p in model.parameters())
    assert all(p.requires_grad for p in model.parameters())


def test_a_climb_goes_back_to_its_best_point_and_on_from_there_by_half_the_step() -> None:
    """Of a function that falls at every look: at the first checkpoint, after 5 of 20 steps."""
    points: list[Tensor] = []

    def see(u: Tensor) -> Look:
        points.append(u.clone())
        return Look(-float(len(points)), 1.0, torch.tensor([1.0, 0.0]))

    ball, start = Ball("l2", 1.0), torch.tensor([-0.5, 0.3])
    begun = Look(0.0, 1.0, torch.tensor([0.0, 1.0]))
    found = climb(see, ball, start, begun, iterations=20)
    assert (found.value, found.steps, found.rises) == (0, 20, 0)
    assert torch.equal(found.u, start)
    back = ball.step(start, begun, 1.0)
    assert not any(torch.equal(point, back) for point in points[:5])
    assert torch.equal(points[5], back)
    assert all(point.norm() <= 1 + 1e-6 for point in points)


def test_a_step_has_the_momentum_of_the_paper() -> None:
    """x2 = P(x1 + 3/4 (P(x1 + 2 rho s) - x1) + 1/4 (x1 - x0)), in a box that holds nothing."""
    points: list[Tensor] = []

    def see(u: Tensor) -> Look:
        points.append(u.clone())
        return Look(float(len(points)), 1.0, torch.tensor([1.0, -1.0]))

    start, begun = torch.tensor([0.5, 0.0]), Look(0.0, 1.0, torch.tensor([-1.0, -1.0]))
    climb(see, Ball("linf", 1.0), start, begun, iterations=2)
    # x1 = P(0.5 - 2, -2) = (-1, -1); z = P(-1 + 2, -1 - 2) = (1, -1)
    assert points[0].tolist() == [-1, -1]
    assert points[1].tolist() == [-1 + 0.75 * 2 + 0.25 * -1.5, -1]


def test_a_climb_goes_back_where_steps_rise_but_never_to_the_best() -> None:
    """From 10 down to 0, and up by 1 each: 4 of the first 5 steps rise."""
    points: list[Tensor] = []

    def see(u: Tensor) -> Look:
        points.append(u.clone())
        return Look(float(len(points)) - 1, 1.0, torch.tensor([1.0, 0.0]))

    ball, start = Ball("l2", 1.0), torch.tensor([-0.5, 0.3])
    begun = Look(10.0, 1.0, torch.tensor([0.0, 1.0]))
    found = climb(see, ball, start, begun, iterations=20)
    assert torch.equal(points[5], ball.step(start, begun, 1.0))
    assert found.value == 19


@pytest.mark.parametrize(("norm", "p"), [("l2", 2), ("linf", math.inf)])
def test_random_points_are_uniform_in_the_ball(norm: Any, p: float) -> None:
    """The share of the volume within their norm, (|u| / rho)^n, is uniform on [0, 1]."""
    like = torch.zeros(3).double()
    points = [Ball(norm, 0.7).random(3, 0, i, like) for i in range(400)]
    shares = torch.tensor([(float(u.norm(p)) / 0.7) ** 3 for u in points])
    assert 0 <= shares.min() <= shares.max() <= 1
    assert float(shares.mean()) == pytest.approx(0.5, abs=4 * (1 / 12 / 400) ** 0.5)
    assert float(torch.stack(points).mean(0).abs().max()) < 4 * 0.7 / 20
