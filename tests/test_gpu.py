"""What the CPU computes, a GPU computes too."""

from dataclasses import replace

import pytest
import torch

from sharpness.box_sharpness import epsilon_sharpness
from sharpness.by_batch import batch_eigenvalues
from sharpness.curvature import Hessian
from sharpness.cuts import cut
from sharpness.directions import NORMALIZATIONS
from sharpness.lanczos import eigsh
from sharpness.landscape import line
from sharpness.problem import objective_of
from sharpness.results import Run
from sharpness.training import TrainConfig, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
CONFIG = TrainConfig(model_options={"widths": [16]}, batch_size=100, dtype="float64", updates=20)


@pytest.fixture(scope="module")
def run() -> Run:
    return train(CONFIG)


def test_a_training_on_the_gpu_follows_that_on_the_cpu(run: Run) -> None:
    there = train(replace(CONFIG, device="cuda"))
    assert there.end.theta.device.type == "cpu"
    assert torch.equal(there.start.theta, run.start.theta)  # type: ignore[union-attr]
    torch.testing.assert_close(there.end.theta, run.end.theta, rtol=1e-9, atol=1e-9)


def test_analyses_on_the_gpu_agree_with_those_on_the_cpu(run: Run) -> None:
    here, there = (objective_of(run, device=device) for device in ("cpu", "cuda"))
    values = [eigsh(Hessian(f), 3).values.cpu() for f in (here, there)]
    torch.testing.assert_close(values[0], values[1], rtol=1e-8, atol=0)
    metrics = [epsilon_sharpness(f, starts=2, sign_starts=2).value for f in (here, there)]
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-6)
    alphas = torch.linspace(-1, 2, 5, dtype=torch.float64)
    assert run.start is not None
    lines = [line(f, run.start, run.end, alphas=alphas).values["loss"] for f in (here, there)]
    torch.testing.assert_close(lines[0], lines[1], rtol=1e-10, atol=0)


def test_mini_batches_on_the_gpu_are_those_on_the_cpu(run: Run) -> None:
    one, other = (
        batch_eigenvalues(objective_of(run, device=device), batch_size=150)
        for device in ("cpu", "cuda")
    )
    torch.testing.assert_close(one.values, other.values, rtol=1e-7, atol=0)
    torch.testing.assert_close(one.losses, other.losses, rtol=1e-10, atol=0)


def test_directions_on_the_gpu_are_those_on_the_cpu_bit_by_bit(run: Run) -> None:
    here, there = (objective_of(run, device=device) for device in ("cpu", "cuda"))
    for draw in NORMALIZATIONS.values():
        one, other = (draw(f, 2, point=run.end, seed=3) for f in (here, there))
        assert other.device.type == "cuda"
        assert torch.equal(one, other.cpu())
    alphas = torch.linspace(-1, 1, 5, dtype=torch.float64)
    cuts = [cut(f, run.end, one, alphas=alphas) for f in (here, there)]
    torch.testing.assert_close(cuts[0].values["loss"], cuts[1].values["loss"], rtol=1e-10, atol=0)
    torch.testing.assert_close(cuts[0].curvatures, cuts[1].curvatures, rtol=1e-8, atol=0)
