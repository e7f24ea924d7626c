"""What is not finite is named by its tensor and batch where one number is asked for."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sharpness.analyses import run_numbers
from sharpness.box_sharpness import epsilon_sharpness, subspace_sharpness
from sharpness.curvature import Hessian
from sharpness.cuts import cut
from sharpness.directions import gradient_direction
from sharpness.errors import ComputationError
from sharpness.finite import not_finite, require_finite
from sharpness.lanczos import eigsh
from sharpness.landscape import line
from sharpness.objective import Objective
from sharpness.planes import plane
from sharpness.problem import solution
from sharpness.results import Run, Solution
from sharpness.trajectory import along_training

mse = nn.functional.mse_loss


class Net(nn.Module):
    """A frozen layer, BatchNorm, a mask of -inf and a layer that is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(3, 4).requires_grad_(False)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 1)
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
        self.register_buffer("shift", torch.zeros(1))

    def forward(self, x: Tensor, attention: Tensor | None = None) -> Tensor:
        z: Tensor = self.head(self.norm(self.frozen(x)))
        return z + self.shift + self.mask.softmax(dim=0)[1]


def problem(
    spoil: Callable[[Net], Any] = lambda net: None, **options: Any
) -> tuple[Objective, Solution, Tensor, Tensor]:
    """An objective of three batches of 2, 2 and 1 examples, the point, inputs and targets."""
    net, x, y = Net(), torch.randn(5, 3), torch.randn(5, 1)
    with torch.no_grad():
        spoil(net)
    batches = list(zip(x.split(2), y.split(2), strict=True))
    f = Objective(net, batches, options.pop("loss", mse), **options)
    return f, solution(net), x, y


def spoiled(name: str, value: float, count: int = 1) -> Callable[[Net], Any]:
    def spoil(net: Net) -> None:
        {**dict(net.named_parameters()), **dict(net.named_buffers())}[name].view(-1)[:count] = value

    return spoil


NUMBERS: dict[str, Callable[[Objective, Solution], Any]] = {
    "eigsh": lambda f, p: eigsh(Hessian(f, p), 1),
    "epsilon_sharpness": lambda f, p: epsilon_sharpness(f, p, starts=1, sign_starts=1),
    "subspace_sharpness": lambda f, p: subspace_sharpness(f, p, dimension=2, draws=1),
    "gradient_direction": lambda f, p: gradient_direction(f, p),
    "cut": lambda f, p: cut(f, p, torch.eye(len(p.theta))[:1], alphas=torch.arange(2.0)),
    "run_numbers": lambda f, p: run_numbers(the_run(p), {"train": f, "test": f}),
    "along_training": lambda f, p: along_training(f, the_run(p)),
}


def the_run(point: Solution) -> Run:
    none = torch.zeros(0, dtype=torch.int64)
    return Run(point, point, [], none, {}, {}, none, none, 1, "updates", {})


@pytest.mark.parametrize("what", NUMBERS)
@pytest.mark.parametrize(
    ("name", "value", "count", "words"),
    [
        ("head.weight", torch.nan, 2, "finite weights, got 2 that are not in head.weight"),
        ("frozen.bias", torch.inf, 1, "finite weights, got 1 that is not in frozen.bias"),
        ("norm.running_var", torch.nan, 1, "finite buffers, got 1 that is not in norm.running_var"),
        ("shift", torch.inf, 1, "finite buffers, got 1 that is not in shift"),
    ],
)
def test_a_tensor_that_is_not_finite_is_named_where_a_number_is_asked_for(
    what: str, name: str, value: float, count: int, words: str
) -> None:
    f, here, _, _ = problem(spoiled(name, value, count))
    with pytest.raises(ComputationError, match=f"needs {words}: look at the solution$"):
        NUMBERS[what](f, here)


def test_the_tensors_are_those_of_the_point() -> None:
    """Whatever the model came with, a point has its own weights, frozen ones too."""
    f, here, _, _ = problem()
    theta = here.theta.clone()
    theta[-1] = torch.nan
    there = Solution(theta, here.buffers)
    assert "weights, got 1 that is not in head.bias:" in str(not_finite(f, "this", there))
    bias = torch.full((4,), torch.inf)
    there = Solution(here.theta, {**here.buffers, "frozen.bias": bias})
    assert "weights, got 4 that are not in frozen.bias:" in str(not_finite(f, "this", there))
    f, there, _, _ = problem(spoiled("frozen.bias", torch.nan))
    assert not_finite(f, "this", here) is None


@pytest.mark.parametrize("what", NUMBERS)
def test_inputs_targets_and_losses_are_named_by_their_batch(what: str) -> None:
    f, here, x, y = problem()
    x[3, 1] = torch.nan
    with pytest.raises(ComputationError, match="inputs, got nan in example 1 of batch 1: clean"):
        NUMBERS[what](f, here)
    x[3, 1], y[4] = 0, torch.inf
    with pytest.raises(ComputationError, match="targets, got inf in example 0 of batch 2: clean"):
        NUMBERS[what](f, here)
    y[4], x[4] = 0, 1e30
    with pytest.raises(ComputationError, match="needs a finite loss, got inf in batch 2: look at"):
        NUMBERS[what](f, here)


@pytest.mark.parametrize("what", sorted(NUMBERS.keys() - {"run_numbers"}))
def test_a_gradient_or_a_product_is_named_by_parameter_and_batch(what: str) -> None:
    """The root of 0 is 0, with an infinite slope."""

    def loss(z: Tensor, y: Tensor) -> Tensor:
        root = (z - z.detach()).abs().sqrt().sum()
        return z.square().mean() + (root if len(z) == 1 else 0)

    f, here, _, _ = problem(loss=loss)
    needs = "the parabola of a cut needs a " if what == "cut" else ""
    wanted = rf"{needs}finite (gradient|product), got (nan|-?inf) for (norm|head)\.\w+ in batch 2:"
    with pytest.raises(ComputationError, match=wanted):
        NUMBERS[what](f, here)


@pytest.mark.parametrize("what", NUMBERS)
def test_a_loss_that_lets_no_slope_through_is_not_taken_for_a_flat_one(what: str) -> None:
    """Of a hinge at NaN the slope and the curvature are 0, as at a minimum."""
    f, here, _, y = problem(loss=lambda z, y: (y - z).clamp(min=0).mean())
    y[2] = torch.nan
    with pytest.raises(ComputationError, match="targets, got nan in example 0 of batch 1: clean"):
        NUMBERS[what](f, here)


def test_on_grids_such_numbers_are_data() -> None:
    f, here, x, _ = problem()
    x[3] = torch.nan
    u, v = torch.eye(len(here.theta))[:2]
    other = Solution(here.theta + u, here.buffers)
    grid = torch.arange(2.0)
    assert f.value(here).isnan()
    assert f.evaluate(here)["loss"].isnan()
    assert line(f, here, other, alphas=grid).values["loss"].isnan().all()
    assert cut(f, here, u[None], alphas=grid, quadratic=False).values["loss"].isnan().all()
    assert plane(f, here, u, v, alphas=grid, betas=grid).values["loss"].isnan().all()


def test_a_second_look_is_taken_only_where_a_number_is_not_finite() -> None:
    f, here, _, _ = problem()
    value, slope = f.value_and_gradient(here)
    calls: list[int] = []
    f.model.register_forward_hook(lambda *_: calls.append(1))
    require_finite(f, "this", here, value, slope)
    assert not calls
    assert not_finite(f, "this", here) is None
    assert len(calls) == 6  # the losses of three batches, and their gradients


def test_what_no_number_depends_on_is_not_named() -> None:
    """A mask is made of -inf; under batch statistics the running ones are of no account."""
    f, here, x, _ = problem(spoiled("norm.running_mean", torch.nan), batch_norm="batch")
    f.batches = [(x[:3], torch.zeros(3, 1)), (x[3:], torch.zeros(2, 1))]
    assert not_finite(f, "this", here) is None
    x[4, 0] = torch.nan
    found = str(not_finite(f, "this", here))
    assert found == "this needs finite inputs, got nan in example 1 of batch 1: clean the data"


def test_of_several_inputs_one_may_be_a_mask() -> None:
    net, y = Net().eval(), torch.zeros(2, 1)
    far, mask = torch.full((2, 3), 1e30), torch.full((2, 3), -torch.inf)
    f = Objective(net, [((far, mask), y)], mse)
    assert "a finite loss, got inf in batch 0" in str(not_finite(f, "this", f.theta))
    mask[1, 0] = torch.nan
    f = Objective(net, [({"x": far, "attention": mask}, y)], mse)
    assert "inputs, got nan in example 1 of batch 0" in str(not_finite(f, "this", f.theta))
    f = Objective(net, [(torch.full((2, 3), -torch.inf), y)], mse)
    assert "inputs, got -inf in example 0 of batch 0" in str(not_finite(f, "this", f.theta))


def test_statistics_that_are_re_estimated_are_named_and_so_is_where_they_come_from() -> None:
    f, here, _, y = problem(batch_norm="reestimate", statistics=[(torch.randn(4, 3),) * 2])
    assert not_finite(f, "this", here) is None
    training = torch.randn(4, 3)
    f.statistics = [(training[:2], y[:2]), (training[2:], y[:2])]
    training[3, 0] = torch.nan
    want = "finite inputs, got nan in example 1 of batch 1 of the statistics: clean the data"
    assert str(not_finite(f, "this", here)) == f"this needs {want}"
    training[3, 0] = 1e35  # of which the variance overflows: no channel is switched off by it
    assert f.value(here).isnan()
    want = "finite re-estimated statistics of BatchNorm, got 4 that are not in norm.running_var"
    assert str(not_finite(f, "this", here)).startswith(f"this needs {want}: ")
    with pytest.raises(ComputationError, match=want):
        epsilon_sharpness(f, here)


def test_a_mean_that_overflows_by_itself_is_told_as_such() -> None:
    """Two losses of 2e38 have a sum above 3.4e38, of float32."""
    f, here, _, _ = problem(loss=lambda z, y: 0 * z.sum() + 2e38)
    value, slope = f.value_and_gradient(here)
    with pytest.raises(ComputationError, match="that is not in the mean over all batches and rank"):
        require_finite(f, "this", here, value, slope)
    assert f.value(here) == pytest.approx(2e38)  # which is summed in float64
