"""Langevin dynamics on quadratics has closed forms, step, noise and all; on w^4 an integral."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sharpness.errors import ComputationError, InputError
from sharpness.local_learning import (
    _Slopes,
    effective_draws,
    learning_coefficient,
    split_r_hat,
)
from sharpness.objective import Objective
from sharpness.vectors import gaussian

FLOAT = torch.empty(0, dtype=torch.float64)
SIGMAS = 4


def numbers(*x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


class Loss(nn.Module):
    """A function of its parameters; each example adds its product with them, which is noise."""

    def __init__(self, f: Callable[[Tensor], Tensor], n: int) -> None:
        super().__init__()
        self.w, self.f = nn.Parameter(torch.zeros(n).double()), f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self.w) + (x * self.w).sum(dim=1)


def objective(
    f: Callable[[Tensor], Tensor], n: int, x: Tensor | None = None, examples: int = 2
) -> Objective:
    x = torch.zeros(examples, n).double() if x is None else x
    cut = len(x) // 2 + len(x) % 2
    batches = [(x[:cut], x[:cut]), (x[cut:], x[cut:])]
    return Objective(Loss(f, n), [b for b in batches if len(b[0])], lambda z, y: z.mean())


H = numbers(10, 1, 0)


def quadratic(x: Tensor | None = None) -> Objective:
    return objective(lambda w: (H * w * w).sum() / 2, 3, x)


def closed(n_beta: float, gamma: float, step: float, noise: Tensor | float = 0.0) -> float:
    """Return sum n beta h / (2 a (1 - eps a / 4)) (1 + eps (n beta)^2 C / 4), C the noise."""
    a = n_beta * H + gamma
    each = n_beta * H / (2 * a * (1 - step * a / 4)) * (1 + step * n_beta**2 * noise / 4)
    return float(each.sum())


def near(value: float, stderr: float, want: float) -> bool:
    return abs(value - want) < SIGMAS * stderr < 0.2 * abs(want)


@pytest.mark.parametrize("largest", [1.0, 0.2])
def test_on_a_quadratic_it_is_the_closed_form_with_its_step(largest: float) -> None:
    n_beta, gamma = 10.0, 10.0
    step = largest / (10 * n_beta + gamma)
    found = learning_coefficient(
        quadratic(), n_beta=n_beta, gamma=gamma, step=step, chains=300, burn_in=80, draws=60
    )
    assert near(found.value, found.stderr, closed(n_beta, gamma, step))
    assert near(*found.details["half_step"].tolist(), closed(n_beta, gamma, step / 2))
    assert near(*found.details["tenth_gamma"].tolist(), closed(n_beta, gamma / 10, step))
    assert found.samples["coefficient"].mean() == pytest.approx(found.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gamma", "limit", "want", "steps"),
    [(1, 1.7596, 1.9404, (3000, 1000)), (100, 0.8338, 1.0032, (300, 200))],
)
def test_curvatures_of_four_decades_give_the_closed_form(
    gamma: float, limit: float, want: float, steps: tuple[int, int]
) -> None:
    h = numbers(10, 1, 0.1, 0.01, 0)
    n_beta = 1000 / math.log(1000)
    a = n_beta * h + gamma
    assert float((n_beta * h / a / 2).sum()) == pytest.approx(limit, abs=1e-4)
    f = objective(lambda w: (h * w * w).sum() / 2, 5, examples=1000)
    step = 1 / float(a.max())
    burn_in, draws = steps
    found = learning_coefficient(
        f, gamma=gamma, step=step, chains=200, burn_in=burn_in, draws=draws
    )
    assert near(found.value, found.stderr, want)


@pytest.mark.parametrize(("gamma", "want"), [(1.0, 0.2431), (10.0, 0.1902)])
def test_on_a_degenerate_minimum_it_is_the_integral(gamma: float, want: float) -> None:
    """Where w^4 alone would give 1/4."""
    n_beta = 1000 / math.log(1000)
    w = torch.linspace(-3, 3, 100_001, dtype=torch.float64)
    p = (-n_beta * w**4 - gamma / 2 * w**2).exp()
    exact = float(n_beta * (p * w**4).sum() / p.sum())
    assert exact == pytest.approx(want, abs=1e-4)
    f = objective(lambda w: (w**4).sum(), 1, examples=1000)
    found = learning_coefficient(f, gamma=gamma, step=1e-3, chains=600, burn_in=150, draws=100)
    assert near(found.value, found.stderr, exact)
    assert found.details["n_beta"] == pytest.approx(n_beta)


def test_a_point_that_is_no_minimum_gives_a_negative_number_and_no_verdict() -> None:
    """On a slope g it is 1/2 - n beta g^2 / (2 h), for gamma -> 0."""
    g, n_beta, gamma = 0.2, 100.0, 1.0
    f = objective(lambda w: (g * w + w * w / 2).sum(), 1)
    found = learning_coefficient(
        f, n_beta=n_beta, gamma=gamma, step=0.002, chains=200, burn_in=60, draws=60
    )
    a = n_beta + gamma
    mean, variance = -n_beta * g / a, 1 / (a * (1 - 0.002 * a / 4))
    want = n_beta * (g * mean + (mean**2 + variance) / 2)
    assert near(found.value, found.stderr, want)
    assert found.value < 0
    assert not found.converged
    assert "it is negative: the solution is not a minimum" in found.words
    assert found.samples["share_below"].mean() > 0.8


@pytest.mark.parametrize("vectorized", [True, False])
def test_mini_batches_add_the_noise_of_their_gradients(
    vectorized: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not vectorized:
        monkeypatch.setattr(_Slopes, "_together", _fail)
    N, m, n_beta, gamma = 40, 8, 10.0, 10.0
    x = 12 * gaussian(3 * N, 0, 0, like=FLOAT).view(N, 3)
    x = x - x.mean(dim=0)
    noise = x.square().mean(dim=0) / m * (N - m) / (N - 1)
    step = 0.5 / (10 * n_beta + gamma)
    chains, draws = (300, 60) if vectorized else (20, 20)
    found = learning_coefficient(
        quadratic(x),
        n_beta=n_beta,
        gamma=gamma,
        step=step,
        batch_size=m,
        chains=chains,
        burn_in=60,
        draws=draws,
    )
    assert found.spec["chains_at_once"] is vectorized
    assert found.gradients == 3 * chains * (60 + draws) * m / N
    assert found.samples["acceptance"].isnan().all()
    want = closed(n_beta, gamma, step, noise)
    assert abs(found.value - want) < SIGMAS * found.stderr
    if vectorized:
        assert SIGMAS * found.stderr < want - closed(n_beta, gamma, step)


def _fail(*_: object) -> Tensor:
    raise RuntimeError("not for several points at once")


def test_chains_one_by_one_are_those_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(12, 3).double(), torch.arange(12) % 2
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    f = Objective(model, [(x[:8], y[:8]), (x[8:], y[8:])], cross_entropy)
    options = {"chains": 2, "burn_in": 5, "draws": 6, "batch_size": 4}
    one = learning_coefficient(f, **options)
    before = torch.get_rng_state()
    monkeypatch.setattr(_Slopes, "_together", _fail)
    other = learning_coefficient(f, **options)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.allclose(one.details["losses"], other.details["losses"], rtol=1e-9)
    assert [one.spec["chains_at_once"], other.spec["chains_at_once"]] == [True, False]


def test_the_acceptance_is_that_of_metropolis_and_hastings() -> None:
    """For a Gaussian of precision a, min(1, exp(-eps a^2 (w'^2 - w^2) / 8))."""
    f = objective(lambda w: (w * w).sum() / 2, 1)
    n_beta, gamma, step = 6.0, 2.0, 0.2
    found = learning_coefficient(
        f, n_beta=n_beta, gamma=gamma, step=step, chains=3, burn_in=0, draws=30
    )
    square = found.details["distances"].square()
    rise = square[:, 1:] - square[:, :-1]
    want = (-step * (n_beta + gamma) ** 2 / 8 * rise).clamp(max=0).exp().mean(dim=1)
    assert torch.allclose(found.samples["acceptance"], want, rtol=1e-9)
    assert torch.allclose(found.details["losses"], square / 2, rtol=1e-12)


def test_the_step_is_a_share_of_the_largest_curvature_and_chains_that_agree_converge() -> None:
    f = objective(lambda w: (numbers(3, 3) * w * w).sum() / 2, 2)
    found = learning_coefficient(f, n_beta=1e4, gamma=1.0, chains=50, burn_in=60, draws=300, seed=1)
    assert found.details["step"] == pytest.approx(0.2 / (3e4 + 1), rel=0.01)
    assert found.details["step_curvature"] == pytest.approx(0.2)
    assert found.converged
    assert found.words.startswith("50 chains of 300 draws")
    assert "R-hat 1.0" in found.words
    assert near(found.value, found.stderr, 1 / (1 - 0.2 / 4))
    assert found.details["r_hat"] < 1.05


def test_a_gamma_that_makes_it_a_trace_is_told() -> None:
    f = objective(lambda w: (numbers(1, 0.1) * w * w).sum() / 2, 2)
    found = learning_coefficient(f, n_beta=10.0, gamma=1e3, chains=100, burn_in=60, draws=100)
    assert near(found.value, found.stderr, 10 * 1.1 / (2 * 1e3) / 0.95)
    assert not found.converged
    assert "it depends on gamma" in found.words


def test_one_chain_tells_no_error_and_slow_ones_disagree() -> None:
    one = learning_coefficient(quadratic(), n_beta=10.0, chains=1, burn_in=20, draws=100)
    assert math.isnan(one.stderr)
    assert "one chain tells no error" in one.words
    flat = objective(lambda w: (numbers(100, 0.01) * w * w).sum() / 2, 2)
    slow = learning_coefficient(flat, n_beta=1e4, gamma=0.1, chains=8, burn_in=20, draws=50)
    assert slow.details["r_hat"] > 1.05
    assert "the chains disagree" in slow.words
    assert not slow.converged


def test_r_hat_and_effective_draws_tell_independent_draws_from_others() -> None:
    x = gaussian(4 * 5000, 0, 0, like=FLOAT).view(4, 5000)
    assert split_r_hat(x) == pytest.approx(1, abs=0.01)
    assert effective_draws(x) == pytest.approx(4 * 5000, rel=0.1)
    assert split_r_hat(x + numbers(0, 0, 0, 1)[:, None]) > 1.05
    assert split_r_hat(x + torch.linspace(0, 2, 5000)) > 1.05  # a drift, the same in all chains
    rho, y = 0.8, torch.zeros_like(x)
    for i in range(1, 5000):
        y[:, i] = rho * y[:, i - 1] + x[:, i]
    assert effective_draws(y) == pytest.approx(4 * 5000 * (1 - rho) / (1 + rho), rel=0.15)
    assert split_r_hat(torch.ones(2, 8)) == 1
    assert effective_draws(torch.ones(2, 8)) == 16
    assert math.isnan(split_r_hat(x[:, :3]))


def test_gradients_are_counted_and_of_a_sample_the_error_is_unknown() -> None:
    calls = []

    def f(w: Tensor) -> Tensor:
        calls.append(1)
        return (w * w).sum() / 2

    told: list[int] = []
    found = learning_coefficient(
        objective(f, 2),
        n_beta=5.0,
        step=0.001,
        chains=3,
        burn_in=20,
        draws=80,
        progress=lambda done, total, _: told.append(done) or told.append(total or 0),
    )
    assert found.gradients == 3 * 3 * (20 + 80)
    assert found.products == 0
    # Two batches of one example each, all chains at once; a loss and a second look before.
    assert len(calls) == 2 * 3 * (20 + 80) + 2 * found.forwards + 1
    assert told[-2:] == [300, 300]
    sample = quadratic()
    sample.spec |= {"examples": 2, "of": 9}
    part = learning_coefficient(sample, n_beta=5.0, burn_in=2, draws=4)
    assert math.isnan(part.stderr)
    assert part.interval.isnan().all()
    assert part.details["chain_stderr"] > 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"gamma": -1.0}, "gamma to be at least 0"),
        ({"n_beta": 0.0}, "n_beta to be positive"),
        ({"step": math.inf}, "step to be positive and finite"),
        ({"chains": 0}, "chains to be a whole number of at least 1"),
        ({"burn_in": -1}, "burn_in to be a whole number of at least 0"),
        ({"draws": 0}, "draws to be a whole number"),
        ({"batch_size": 3}, "batch_size of 1 to 2"),
        ({"batch_size": 0}, "batch_size of 1 to 2"),
        ({"batch_size": 1.5}, "batch_size of 1 to 2"),
    ],
)
def test_what_is_out_of_range_is_refused(options: dict[str, float], says: str) -> None:
    with pytest.raises(InputError, match=says):
        learning_coefficient(quadratic(), **options)


def test_what_has_no_default_is_asked_for_and_divergence_is_told() -> None:
    with pytest.raises(InputError, match="needs n_beta where N / log N is none, got 1 examples"):
        learning_coefficient(objective(lambda w: w.sum(), 1, examples=1))
    with pytest.raises(InputError, match="give a step, or a gamma"):
        learning_coefficient(objective(lambda w: w.sum(), 1), gamma=0.0)
    weights = [(torch.zeros(2, 3).double(), torch.zeros(2), torch.ones(2))]
    f = Objective(Loss(lambda w: w.sum(), 3), weights, lambda z, y: z, reduction="none")
    with pytest.raises(InputError, match="got weights: leave batch_size out"):
        learning_coefficient(f, batch_size=1, step=0.1)
    quartic = objective(lambda w: (w**4).sum(), 1)
    with pytest.raises(ComputationError, match="take a step below 10"):
        learning_coefficient(quartic, n_beta=100.0, step=10.0, burn_in=0, draws=60)
