"""The size of a micro-batch follows from what a model saves, and from nothing else."""

import pytest
import torch
from torch import Tensor, nn

from sharpness.curvature import Hessian
from sharpness.data import batches
from sharpness.errors import InputError
from sharpness.micro_batches import ACTIVATIONS, MOST, micro_batch_of, saved_bytes
from sharpness.objective import Objective
from sharpness.problem import objective_of
from sharpness.training import TrainConfig, train

mse = nn.functional.mse_loss


def part(examples: int, width: int) -> tuple[Tensor, Tensor]:
    return torch.randn(examples, width), torch.zeros(examples, 1)


@pytest.mark.parametrize("layers", [1, 2])
def test_what_a_network_saves_is_counted_without_its_weights(layers: int) -> None:
    """Of each linear layer its input and of each tanh its output, which is the same tensor."""
    width, examples = 96, 5
    model = nn.Sequential()
    for _ in range(layers):
        model.append(nn.Linear(width, width)).append(nn.Tanh())
    model.append(nn.Linear(width, 1))
    sizes = [saved_bytes(Objective(model, batches(part(n, width), n), mse)) for n in (examples, 1)]
    assert sizes[0] - sizes[1] == (examples - 1) * (layers + 1) * width * 4


@pytest.mark.parametrize(("dtype", "bytes_each"), [(torch.float32, 4), (torch.float64, 8)])
def test_a_batch_is_the_largest_power_of_two_whose_activations_fit(
    dtype: torch.dtype, bytes_each: int
) -> None:
    for width in (2**15, 2**15 + 1, 3 * 2**15):
        inputs, targets = (x.to(dtype) for x in part(3, width))
        found = micro_batch_of(nn.Linear(width, 1).to(dtype), (inputs, targets), mse)
        assert found * width * bytes_each <= ACTIVATIONS["cpu"] < 2 * found * width * bytes_each
        assert found == 2 ** (found.bit_length() - 1)


def test_small_examples_come_in_batches_of_1024_and_huge_ones_alone() -> None:
    assert micro_batch_of(nn.Linear(4, 1), part(5000, 4), mse) == MOST == 1024
    assert micro_batch_of(nn.Linear(2**24, 1, bias=False), part(2, 2**24), mse) == 1
    assert micro_batch_of(nn.Linear(4, 1), part(1, 4), mse) == 1


def test_a_run_is_evaluated_as_its_training_did_it() -> None:
    """With activations of 2^16 bytes an example, 600 examples come in two batches."""
    run = train(TrainConfig(model_options={"widths": [2**14]}, updates=2, seed=1))
    f = objective_of(run)
    assert f.spec["micro_batch"] == 256
    assert f.value(run.end) == run.history["train_loss"][-1]


def test_batch_statistics_are_those_of_all_examples_or_refused() -> None:
    options = {"model": "cnn", "batch_size": 300, "updates": 2}
    run = train(TrainConfig(**options))
    f = objective_of(run, batch_norm="batch", examples=200)
    assert f.spec["micro_batch"] == 200
    with pytest.raises(InputError, match=r"batch statistics need all 600 .* got micro_batch=100"):
        objective_of(run, batch_norm="batch", micro_batch=100)


def test_graphs_that_do_not_fit_in_memory_are_built_anew() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    f = Objective(model, batches(part(48, 64), 16), mse)
    A = Hessian(f)
    assert (A.engine, A.spec["engine"]) == ("cached", "cached")
    assert A.spec["engine_reason"].endswith("fit in 4096 MiB")
    # At least the inputs of the layers, in three batches.
    short = Hessian(f, memory=48 * 64 * 4)
    assert short.spec["engine"] == "fresh"
    assert "do not fit" in short.spec["engine_reason"]
    v = torch.randn(A.size)
    assert torch.equal(A @ v, short @ v)
    assert A.maps.keys() == {0, 1, 2}
    assert not short.maps
    assert Hessian(f, engine="fresh").spec["engine_reason"] == "asked for"


def test_the_graph_of_a_batch_is_counted_with_what_its_slope_keeps() -> None:
    """Of z = x w, (z - y)^2: x and z - y, and, for the slope, what its product needs of them."""
    n, b = 2**12, 8
    inputs, targets = torch.randn(b, n), torch.zeros(b, 1)
    f = Objective(nn.Linear(n, 1, bias=False), [(inputs, targets)], mse)
    total = Hessian(f)._graph_bytes()
    assert b * n * 4 <= total <= b * n * 4 + 10 * n * 4
