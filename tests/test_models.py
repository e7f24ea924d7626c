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


@pytest.mark.parametrize("shape", [(36,), (6, 6), (1, 6, 6)], ids=str)
def test_cnn_is_convolution_batch_norm_relu_and_the_largest_of_each_square(
    shape: tuple[int, ...],
) -> None:
    model = MODELS["cnn"](inputs=shape, outputs=2, channels=[3]).double()
    W, g, b, V, c = model.parameters()
    x = torch.randn(5, 6, 6).double()
    padded = torch.zeros(5, 8, 8).double()
    padded[:, 1:7, 1:7] = x
    h = torch.zeros(5, 3, 6, 6).double()
    for i in range(3):
        for j in range(3):
            h += W[:, 0, i, j][:, None, None] * padded[:, None, i : i + 6, j : j + 6]
    mean, var = h.mean(dim=(0, 2, 3)), h.var(dim=(0, 2, 3), correction=0)
    h = (h - mean[:, None, None]) / (var + 1e-5).sqrt()[:, None, None]
    h = (h * g[:, None, None] + b[:, None, None]).clamp(min=0)
    pooled = h.reshape(5, 3, 3, 2, 3, 2).amax(dim=(3, 5))
    want = pooled.reshape(5, 27) @ V.T + c
    torch.testing.assert_close(model(x.reshape(5, *shape)), want)


def test_cnn_of_the_digits_has_6138_parameters_and_without_batch_norm_6090() -> None:
    # 9 * 16 + 2 * 16 + 9 * 16 * 32 + 2 * 32 + (2 * 2 * 32 + 1) * 10; a bias for two of BatchNorm
    for batch_norm, want in ((True, 6138), (False, 6138 - 16 - 32)):
        model = MODELS["cnn"](inputs=[64], outputs=10, batch_norm=batch_norm)
        assert sum(p.numel() for p in model.parameters()) == want


@pytest.mark.parametrize(
    ("inputs", "options", "named"),
    [
        ((65,), {}, r"flat square \(s \* s,\), got \(65,\)"),
        ((1, 2, 8, 8), {}, r"got \(1, 2, 8, 8\)"),
        ((), {}, r"got \(\)"),
        ((3, 8), {}, "at least 4 x 4 for 2 poolings, got 3 x 8"),
        ((64,), {"channels": [0]}, r"channels of at least 1, got \[0\]"),
        ((64,), {"channels": 16}, "got 16"),
        ((64,), {"batch_norm": "no"}, "true or false, got 'no'"),
    ],
    ids=str,
)
def test_cnn_refuses_what_is_no_image(
    inputs: tuple[int, ...], options: dict[str, object], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        MODELS["cnn"](inputs=inputs, outputs=2, **options)
