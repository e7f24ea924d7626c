"""Each way to make an update is what its definition says, on functions whose steps are known."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, softplus

from sharpness.errors import InputError
from sharpness.methods import METHODS, Task, require_method

RATE = 0.1
A = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
H = A @ A.T + torch.eye(5, dtype=torch.float64)
START = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0], dtype=torch.float64)


class Quadratic(nn.Module):
    """x, in two parameters; the loss is x H x / 2. It notes where it is evaluated."""

    def __init__(self, start: Tensor = START) -> None:
        super().__init__()
        self.first, self.rest = nn.Parameter(start[:2].clone()), nn.Parameter(start[2:].clone())
        self.points: list[Tensor] = []

    def forward(self, inputs: Tensor) -> Tensor:
        x = torch.cat([self.first, self.rest])
        self.points.append(x.detach().clone())
        return x


def energy(x: Tensor, targets: Tensor) -> Tensor:
    return x @ H @ x / 2


def task(model: nn.Module, loss: Any, optimizer: Any = None, **batch: Tensor) -> Task:
    steps = optimizer or (lambda p: torch.optim.SGD(p, lr=RATE))
    batch = {"inputs": torch.zeros(1), "targets": torch.zeros(1)} | batch
    return Task(model, loss, **batch, optimizer=steps(list(model.parameters())))


def theta(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def stepped(name: str, optimizer: Any = None, start: Tensor = START, **options: Any) -> Quadratic:
    model = Quadratic(start)
    METHODS[name](task(model, energy, optimizer), **options)
    return model


def test_the_plain_method_is_the_step_of_the_optimizer() -> None:
    model = stepped("plain")
    torch.testing.assert_close(theta(model), START - RATE * H @ START)
    assert len(model.points) == 1


def test_sam_steps_along_the_gradient_at_distance_rho() -> None:
    model, rho = stepped("sam", rho=0.3), 0.3
    g = H @ START
    e = rho * g / g.norm()
    torch.testing.assert_close(theta(model), START - RATE * H @ (START + e))
    here, there = model.points
    assert torch.equal(here, START)
    assert float((there - here).norm()) == pytest.approx(rho, rel=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.01])
def test_asam_steps_along_the_gradient_at_distance_rho_in_units_of_the_weights(eta: float) -> None:
    model, rho = stepped("asam", rho=0.3, eta=eta), 0.3
    g, t = H @ START, START.abs() + eta
    e = rho * t**2 * g / (t * g).norm()
    torch.testing.assert_close(theta(model), START - RATE * H @ (START + e))
    here, there = model.points
    assert float(((there - here) / t).norm()) == pytest.approx(rho, rel=1e-12)


def test_the_ascent_of_asam_moves_with_a_rescaling_that_leaves_the_function() -> None:
    class Product(Quadratic):
        def forward(self, inputs: Tensor) -> Tensor:
            super().forward(inputs)
            return self.first.sum() * self.rest.sum()

    factor, ways = torch.tensor([4.0, 4.0, 0.25, 0.25, 0.25], dtype=torch.float64), []
    for start in (START, START * factor):
        model = Product(start)
        METHODS["asam"](task(model, lambda z, _: (z - 1).square()), eta=0.0)
        here, there = model.points
        ways.append(there - here)
    torch.testing.assert_close(ways[1], ways[0] * factor)


@pytest.mark.parametrize("name", ["sam", "asam"])
def test_where_there_is_no_slope_there_is_no_ascent(name: str) -> None:
    model = stepped(name, start=torch.zeros(5, dtype=torch.float64))
    assert torch.equal(theta(model), torch.zeros(5, dtype=torch.float64))


@pytest.mark.parametrize("name", ["sam", "asam"])
def test_the_ascent_is_taken_back_to_the_last_bit(name: str) -> None:
    model = stepped(name, lambda p: torch.optim.SGD(p, lr=0.0), rho=0.7)
    assert torch.equal(theta(model), START)


def test_the_ascent_is_taken_back_where_the_second_pass_fails() -> None:
    model = Quadratic()

    def failing(x: Tensor, targets: Tensor) -> Tensor:
        if len(model.points) == 2:
            raise RuntimeError("no")
        return energy(x, targets)

    with pytest.raises(RuntimeError, match="no"):
        METHODS["sam"](task(model, failing))
    assert torch.equal(theta(model), START)


def test_sam_gives_its_gradient_to_any_optimizer() -> None:
    g = H @ START
    ascended = H @ (START + 0.3 * g / g.norm())
    model = stepped("sam", lambda p: torch.optim.Adam(p, lr=RATE, eps=1.0), rho=0.3)
    torch.testing.assert_close(theta(model), START - RATE * ascended / (ascended.abs() + 1))


def test_many_steps_of_the_proximal_method_reach_the_minimum_of_its_problem() -> None:
    strength = 0.5
    model = stepped("proximal", lambda p: torch.optim.SGD(p, lr=0.08), strength=strength, steps=800)
    pull = strength * torch.eye(5, dtype=torch.float64)
    wanted = START - torch.linalg.solve(H + pull, H @ START)
    torch.testing.assert_close(theta(model), wanted, rtol=1e-9, atol=1e-9)
    assert len(model.points) == 800


def test_the_anchor_of_the_proximal_method_is_where_the_update_begins() -> None:
    model, strength = stepped("proximal", strength=0.5, steps=2), 0.5
    once = START - RATE * H @ START
    torch.testing.assert_close(theta(model), once - RATE * (H @ once + strength * (once - START)))


def test_lbfgs_solves_the_proximal_problem_too() -> None:
    """Its line search needs the value of which it is given the gradient."""
    model = stepped(
        "proximal",
        lambda p: torch.optim.LBFGS(p, max_iter=50, line_search_fn="strong_wolfe"),
        strength=20.0,
        steps=2,
    )
    pull = 20 * torch.eye(5, dtype=torch.float64)
    wanted = START - torch.linalg.solve(H + pull, H @ START)
    # It stops at changes of 1e-9 in the value, of curvature 20 and more.
    torch.testing.assert_close(theta(model), wanted, rtol=0, atol=1e-5)


def margins(model: nn.Linear, inputs: Tensor, targets: Tensor) -> Tensor:
    return targets * (inputs @ model.weight[0])


def logistic(outputs: Tensor, targets: Tensor) -> Tensor:
    return softplus(-targets * outputs[:, 0]).mean()


@pytest.mark.parametrize("clean", [0.0, 0.5, 1.0])
def test_adversarial_inputs_of_a_linear_model_lower_every_margin_by_the_norm_of_its_weights(
    clean: float,
) -> None:
    """The logistic loss at y w.z - epsilon |w|_1, whose gradient is the closed form."""
    x, y = torch.randn(7, 4, dtype=torch.float64), torch.tensor([1.0, -1, 1, 1, -1, -1, 1])
    model = nn.Linear(4, 1, bias=False, dtype=torch.float64)
    before, epsilon = model.weight.detach().clone(), 0.3
    m = margins(model, x, y)
    attacked = softplus(epsilon * model.weight.abs().sum() - m).mean()
    loss = clean * softplus(-m).mean() + (1 - clean) * attacked
    (wanted,) = torch.autograd.grad(loss, model.weight)
    METHODS["adversarial"](task(model, logistic, inputs=x, targets=y), epsilon=epsilon, clean=clean)
    torch.testing.assert_close(model.weight.detach(), before - RATE * wanted)


def test_stability_adds_the_distance_of_the_outputs_at_noisy_inputs() -> None:
    """Of a linear model alpha sigma^2 |W xi|^2, xi what torch draws."""
    x, y = torch.randn(7, 4, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    model = nn.Linear(4, 3, bias=False, dtype=torch.float64)
    before = model.weight.detach().clone()
    torch.manual_seed(5)
    noise = torch.randn_like(x)
    loss = mse_loss(x @ model.weight.T, y)
    loss = loss + 0.7 * 0.2**2 * (noise @ model.weight.T).square().sum(dim=1).mean()
    (wanted,) = torch.autograd.grad(loss, model.weight)
    torch.manual_seed(5)
    METHODS["stability"](task(model, mse_loss, inputs=x, targets=y), alpha=0.7, sigma=0.2)
    torch.testing.assert_close(model.weight.detach(), before - RATE * wanted)


OTHERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05, fused=True),
    "lbfgs": lambda p: torch.optim.LBFGS(p, max_iter=3, line_search_fn="strong_wolfe"),
}


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))


@pytest.mark.parametrize("optimizer", OTHERS)
@pytest.mark.parametrize("name", METHODS)
def test_running_statistics_are_those_of_one_pass_around_any_optimizer(
    name: str, optimizer: str
) -> None:
    x, y = torch.randn(20, 4), torch.randn(20, 3)
    model = network()
    twin = network()
    twin.load_state_dict(model.state_dict())
    before = mse_loss(model.eval()(x), y).item()
    model.train()
    METHODS[name](task(model, mse_loss, OTHERS[optimizer], inputs=x, targets=y))
    twin.train()(x)
    for buffer, wanted in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.equal(buffer, wanted)
    for _ in range(8):
        METHODS[name](task(model, mse_loss, OTHERS[optimizer], inputs=x, targets=y))
    assert mse_loss(model.eval()(x), y).item() < before


@pytest.mark.parametrize("name", METHODS)
def test_the_first_loss_is_that_of_the_batch_before_any_gradient_changes(name: str) -> None:
    x, y = torch.randn(20, 4), torch.randn(20, 3)
    model = network()
    wanted = mse_loss(model(x), y)
    marks = [torch.full_like(p, 7.0) for p in model.parameters()]
    for p, mark in zip(model.parameters(), marks, strict=True):
        p.grad = mark
    first: list[float] = []

    def noting(outputs: Tensor, targets: Tensor) -> Tensor:
        loss = mse_loss(outputs, targets)
        if not first:
            first.append(loss.item())
            assert all(p.grad is m for p, m in zip(model.parameters(), marks, strict=True))
        return loss

    METHODS[name](task(model, noting, inputs=x, targets=y))
    assert first == [wanted.item()]


@pytest.mark.parametrize("name", ["adversarial", "stability"])
def test_inputs_of_several_tensors_move_where_they_are_real(name: str) -> None:
    class Masked(nn.Linear):
        def forward(self, z: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
            assert mask.dtype == torch.int64
            return super().forward(z * mask)

    x, y = torch.randn(5, 4), torch.randn(5, 3)
    model = Masked(4, 3)
    inputs: Any = {"z": x, "mask": torch.ones(5, 4, dtype=torch.int64)}
    METHODS[name](task(model, mse_loss, inputs=inputs, targets=y))
    tokens = nn.Sequential(nn.Embedding(4, 3), nn.Flatten())
    with pytest.raises(InputError, match=r"need inputs of real numbers, .* whole ones"):
        METHODS[name](task(tokens, mse_loss, inputs=torch.tensor([[1], [2]]), targets=y[:2]))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("swam", {}, "method needs to be one of plain, sam, .*, got 'swam'"),
        ("sam", {"eta": 1.0}, "method sam needs rho options, got 'eta'"),
        ("plain", {"rho": 1.0}, "method plain needs no options, got 'rho'"),
        ("asam", {"rho": 0}, "method asam needs a number above 0 as rho, got 0"),
        ("asam", {"eta": -0.1}, "method asam needs a number of at least 0 as eta, got -0.1"),
        ("sam", {"rho": "1"}, "method sam needs a number above 0 as rho, got '1'"),
        ("sam", {"rho": float("inf")}, "method sam needs a number above 0 as rho, got inf"),
        (
            "proximal",
            {"steps": 1.5},
            "method proximal needs a whole number of at least 1 as steps, got 1.5",
        ),
        ("adversarial", {"clean": 1.1}, "needs a number from 0 to 1 as clean, got 1.1"),
    ],
)
def test_what_a_method_does_not_take_is_refused_in_one_line(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        require_method(name, options)


def test_all_options_of_all_methods_can_be_given() -> None:
    require_method("sam", {"rho": 0.1})
    require_method("asam", {"rho": 1, "eta": 0})
    require_method("proximal", {"strength": 0.1, "steps": 5})
    require_method("adversarial", {"epsilon": 0.1, "clean": 0})
    require_method("stability", {"alpha": 0, "sigma": 0.1})
