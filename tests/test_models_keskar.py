"""The networks of Keskar et al. (2017) have the sizes of the paper and the layers of its code."""

import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import nn

from sharpness.errors import InputError
from sharpness.models import MODELS

# Table 1 of the paper: the shapes of examples, the classes, and what the layers add up to.
NETWORKS = {
    "f1": ([28, 28], 10, 1_462_794),
    "f2": ([360], 1973, 2_780_085),
    "c1": ([3, 32, 32], 10, 1_757_834),
    "c2": ([3, 32, 32], 10, 14_991_946),
    "c3": ([3, 32, 32], 100, 1_775_204),
    "c4": ([3, 32, 32], 100, 15_038_116),
}
BLOCK = ["Conv2d", "BatchNorm2d", "ReLU"]
HIDDEN = ["Linear", "BatchNorm1d", "ReLU"]


def kinds(model: nn.Module) -> list[str]:
    return [type(part).__name__ for part in model.children()]


def weights(model: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(p.shape) for p in model.parameters() if p.ndim > 1]


def made(name: str, inputs: Sequence[int], outputs: int, **options: object) -> nn.Module:
    """Return the network without memory for its parameters."""
    with torch.device("meta"):
        return MODELS[name](inputs=inputs, outputs=outputs, **options)


@pytest.mark.parametrize("name", NETWORKS)
def test_each_network_has_the_parameters_of_its_table(name: str) -> None:
    inputs, outputs, want = NETWORKS[name]
    model = made(name, inputs, outputs)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == want
    with torch.no_grad():
        out = model.to_empty(device="cpu").eval()(torch.zeros(1, *inputs))
    assert out.shape == (1, outputs)


@pytest.mark.parametrize(("name", "hidden"), [("f1", 5), ("f2", 7)])
def test_fully_connected_ones_are_linear_batch_norm_relu_of_512(name: str, hidden: int) -> None:
    inputs, outputs, _ = NETWORKS[name]
    model = made(name, inputs, outputs)
    first = ["Flatten"] * (len(inputs) > 1)
    assert kinds(model) == [*first, *HIDDEN * hidden, "Linear"]
    between = [(512, 512)] * (hidden - 1)
    assert weights(model) == [(512, math.prod(inputs)), *between, (outputs, 512)]
    assert all(p.bias is not None for p in model.modules() if isinstance(p, nn.Linear))


@pytest.mark.parametrize("name", ["c1", "c3"])
def test_shallow_ones_have_two_convolutions_of_5_with_pooling_and_two_dense_layers(
    name: str,
) -> None:
    outputs = NETWORKS[name][1]
    model = made(name, [3, 32, 32], outputs)
    pooled = [*BLOCK, "MaxPool2d"]
    assert kinds(model) == [*pooled, *pooled, "Flatten", *[*HIDDEN, "Dropout"] * 2, "Linear"]
    convolutions = [(64, 3, 5, 5), (64, 64, 5, 5)]
    assert weights(model) == [*convolutions, (384, 8 * 8 * 64), (192, 384), (outputs, 192)]
    assert shares(model) == [0.5, 0.5]


@pytest.mark.parametrize("name", ["c2", "c4"])
def test_deep_ones_have_13_convolutions_with_dropout_but_before_pooling(name: str) -> None:
    outputs = NETWORKS[name][1]
    model = made(name, [3, 32, 32], outputs)
    dropped = [*BLOCK, "Dropout"]
    two = [*dropped, *BLOCK, "MaxPool2d"]
    three = [*dropped, *dropped, *BLOCK, "MaxPool2d"]
    last = ["Flatten", "Dropout", *HIDDEN, "Dropout", "Linear"]
    assert kinds(model) == [*two, *two, *three, *three, *three, *last]
    sizes = [3, 64, 64, 128, 128, 256, 256, 256, *[512] * 6]
    convolutions = [(b, a, 3, 3) for a, b in pairwise(sizes)]
    assert weights(model) == [*convolutions, (512, 512), (outputs, 512)]
    assert shares(model) == [0.3, *[0.4] * 7, 0.5, 0.5]


def shares(model: nn.Module) -> list[float]:
    return [part.p for part in model.children() if isinstance(part, nn.Dropout)]


@pytest.mark.parametrize("side", [5, 6, 32])
def test_pooling_of_3_takes_the_largest_around_every_second_pixel(side: int) -> None:
    pool, _ = (p for p in made("c1", [3, 32, 32], 2).children() if isinstance(p, nn.MaxPool2d))
    x = torch.arange(side**2).flip(0).reshape(1, 1, side, side).double()
    pooled = pool(x)[0, 0]
    # Values fall along each row and column, so the largest is the first of those that are there.
    first = [max(0, i - 1) for i in range(0, side, 2)]
    assert torch.equal(pooled, x[0, 0][first][:, first])


@pytest.mark.parametrize("name", NETWORKS)
def test_at_the_start_weights_fill_the_interval_of_glorot_and_biases_are_0(name: str) -> None:
    model = MODELS[name](inputs=[6, 6], outputs=3)
    for part in model.modules():
        if isinstance(part, (nn.Linear, nn.Conv2d)):
            kernel = part.weight[0, 0].numel()
            bound = math.sqrt(6 / (kernel * (part.weight.shape[0] + part.weight.shape[1])))
            largest = float(part.weight.detach().abs().max())
            # The largest of m is above 0.9 of the bound but for a chance of 0.9^m, m >= 288.
            assert 0.9 * bound < largest <= bound * (1 + 1e-6)
            assert part.bias is not None
            assert not part.bias.any()
        elif isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert torch.equal(part.weight, torch.ones_like(part.weight))


@pytest.mark.parametrize("name", ["c1", "c2"])
def test_without_dropout_and_batch_norm_only_those_layers_are_gone(name: str) -> None:
    whole = made(name, [3, 32, 32], 10)
    plain = made(name, [3, 32, 32], 10, dropout=False, batch_norm=False, activation="tanh")
    gone = {"BatchNorm1d", "BatchNorm2d", "Dropout"}
    left = [kind for kind in kinds(whole) if kind not in gone]
    assert kinds(plain) == ["Tanh" if kind == "ReLU" else kind for kind in left]
    assert weights(plain) == weights(whole)


@pytest.mark.parametrize("shape", [[64], [8, 8], [1, 8, 8], [2, 5, 7]], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_they_take_images_of_other_sizes(name: str, shape: list[int]) -> None:
    with torch.no_grad():
        out = made(name, shape, 4).to_empty(device="cpu").eval()(torch.zeros(1, *shape))
    assert out.shape == (1, 4)


@pytest.mark.parametrize(
    ("name", "inputs", "options", "named"),
    [
        ("c1", [360], {}, r"^c1 needs images of .* got \(360,\): choose another model$"),
        ("c4", [1, 1, 8, 8], {}, r"^c4 needs images"),
        ("f1", [64], {"batch_norm": 1}, "^f1 needs batch_norm true or false, got 1: change"),
        ("c2", [64], {"dropout": 0.5}, "^c2 needs dropout true or false, got 0.5: change"),
        ("f2", [64], {"activation": "Relu"}, "^f2 needs activation to be one of relu, .* 'Relu'"),
        ("c3", [64], {"initialization": "he"}, "^c3 needs initialization to be one of default, "),
    ],
    ids=str,
)
def test_what_they_cannot_be_is_refused_in_one_line(
    name: str, inputs: list[int], options: dict[str, object], named: str
) -> None:
    with pytest.raises(InputError, match=named) as error:
        made(name, inputs, 10, **options)
    assert "\n" not in str(error.value)
