"""A network by name is what its widths say."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from sharpness.errors import InputError
from sharpness.models import MODELS, mlp


@pytest.mark.parametrize("widths", [[], [5], [128, 128, 128]], ids=str)
def test_mlp_has_a_weight_for_each_pair_of_neighbors_and_a_bias_for_each_output(
    widths: list[int],
) -> None:
    model = mlp([64], 10, widths=widths)
    sizes = [64, *widths, 10]
    want = [shape for a, b in pairwise(sizes) for shape in [(b, a), (b,)]]
    assert [tuple(p.shape) for p in model.parameters()] == want
    assert all(p.requires_grad for p in model.parameters())


def test_the_default_mlp_of_the_digits_has_42634_parameters() -> None:
    # 65 * 128 + 129 * 128 + 129 * 128 + 129 * 10
    assert sum(p.numel() for p in MODELS["mlp"](inputs=[64], outputs=10).parameters()) == 42634


def test_mlp_is_relu_between_affine_maps() -> None:
    model = mlp([3], 2, widths=[4, 5]).double()
    W, b, V, c, U, d = model.parameters()
    x = torch.randn(6, 3).double()
    hidden = (x @ W.T + b).clamp(min=0)
    want = (hidden @ V.T + c).clamp(min=0) @ U.T + d
    torch.testing.assert_close(model(x), want)


def test_mlp_without_widths_is_linear() -> None:
    model, x = mlp([3], 2, widths=[]).double(), torch.randn(6, 3).double()
    weight, bias = model.parameters()
    torch.testing.assert_close(model(x), x @ weight.T + bias)


def test_mlp_flattens_several_input_axes() -> None:
    image, flat = mlp([2, 3, 4], 2, widths=[5]), mlp([24], 2, widths=[5])
    assert list(flat.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    nn.utils.vector_to_parameters(
        nn.utils.parameters_to_vector(image.parameters()), flat.parameters()
    )
    x = torch.randn(6, 2, 3, 4)
    assert torch.equal(image(x), flat(x.reshape(6, 24)))


@pytest.mark.parametrize("widths", [[0], [4, -1], [1.5], ["4"], "44", [None], [True], 4], ids=repr)
def test_widths_that_are_no_whole_numbers_above_0_are_refused(widths: list[int]) -> None:
    with pytest.raises(InputError, match="mlp needs widths"):
        mlp([3], 2, widths=widths)
