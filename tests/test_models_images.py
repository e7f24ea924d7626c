"""Deep networks for images have the published sizes and are what their options say."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from sharpness.errors import InputError
from sharpness.models import MODELS
from sharpness.models_images import Residual, resnet, vgg

VGG_11 = [[64], [128], [256, 256], [512, 512], [512, 512]]
VGG_16 = [[64, 64], [128, 128], [256] * 3, [512] * 3, [512] * 3]


@pytest.mark.parametrize(
    ("stages", "batch_norm", "want"),
    [
        (VGG_11, False, 132_863_336),
        (VGG_11, True, 132_868_840),
        (VGG_16, False, 138_357_544),
        (VGG_16, True, 138_365_992),
    ],
)
def test_vgg_of_imagenet_has_its_known_number_of_parameters(
    stages: list[list[int]], batch_norm: bool, want: int
) -> None:
    # As torchvision tells them: BatchNorm behind the convolutions, not in the dense layers.
    dense = 2 * 2 * 4096 * batch_norm
    with torch.device("meta"):
        model = vgg([3, 224, 224], 1000, stages=stages, widths=[4096] * 2, batch_norm=batch_norm)
    assert sum(p.numel() for p in model.parameters()) == want + dense


def test_vgg_of_one_convolution_a_stage_is_cnn() -> None:
    torch.manual_seed(0)
    one = vgg([64], 10, stages=[[16], [32]], batch_norm=False)
    torch.manual_seed(0)
    other = MODELS["cnn"]([64], 10, batch_norm=False)
    x = torch.rand(3, 64)
    assert torch.equal(one(x), other(x))


def test_vgg_is_convolutions_batch_norm_activation_pooling_and_dense_layers() -> None:
    model = vgg([2, 4, 4], 3, stages=[[5, 6], [7]], widths=[8], activation="elu", dropout=0.25)
    block = ["Conv2d", "BatchNorm2d", "ELU"]
    hidden = ["Linear", "BatchNorm1d", "ELU", "Dropout"]
    want = [*block, *block, "MaxPool2d", *block, "MaxPool2d", "Flatten", *hidden, "Linear"]
    assert [type(part).__name__ for part in model] == want
    shapes = [tuple(p.shape) for p in model.parameters() if p.ndim > 1]
    assert shapes == [(5, 2, 3, 3), (6, 5, 3, 3), (7, 6, 3, 3), (8, 7), (3, 8)]
    assert [part.p for part in model if isinstance(part, nn.Dropout)] == [0.25]


def test_average_pooling_of_linear_stages_is_linear_and_the_largest_is_not() -> None:
    options = {"activation": "identity", "batch_norm": False, "bias": False}
    x, y = torch.rand(2, 1, 64).double()
    for pooling, linear in (("average", True), ("max", False)):
        f = vgg([64], 3, pooling=pooling, **options).double()
        assert torch.allclose(f(x - 2 * y), f(x) - 2 * f(y)) == linear


@pytest.mark.parametrize(
    ("n", "want"), [(3, 269_722), (5, 464_154), (7, 658_586), (9, 853_018), (18, 1_727_962)]
)
def test_resnet_has_the_parameters_of_its_depth(n: int, want: int) -> None:
    # 0.27, 0.46, 0.66, 0.85 and 1.7 million in table 6 of He et al. (2016).
    with torch.device("meta"):
        model = resnet([3, 32, 32], 10, n=n)
    layers = [part for part in model.modules() if isinstance(part, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 6 * n + 2
    assert sum(p.numel() for p in model.parameters()) == want


@pytest.mark.parametrize(("stride", "grown"), [(1, 0), (2, 4)])
def test_a_residual_block_without_weights_hands_on_its_input(stride: int, grown: int) -> None:
    block = Residual(4, 4 + grown, stride=stride, activation=nn.ReLU, batch_norm=True)
    for part in block.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.zeros_(part.weight)
    x = torch.rand(2, 4, 6, 5)
    out = block(x)
    assert torch.equal(out[:, :4], x[:, :, ::stride, ::stride])
    assert out.shape[1] == 4 + grown
    assert not out[:, 4:].any()


def test_a_residual_block_adds_its_input_before_the_last_activation() -> None:
    block = Residual(2, 4, stride=2, activation=nn.Tanh, batch_norm=False).double()
    x = torch.randn(3, 2, 6, 6).double()
    W, b, V, c = block.parameters()
    inner = conv2d(conv2d(x, W, b, stride=2, padding=1).tanh(), V, c, padding=1)
    shortcut = torch.cat([x[:, :, ::2, ::2], torch.zeros(3, 2, 3, 3)], dim=1)
    torch.testing.assert_close(block(x), (shortcut + inner).tanh())


def test_resnet_doubles_channels_and_halves_images_twice_and_ends_in_their_mean() -> None:
    model = resnet([64], 10, n=2, width=4).double().eval()
    seen: list[Tensor] = []
    for part in model:
        part.register_forward_hook(lambda _, __, out: seen.append(out))
    out = model(torch.rand(3, 64).double())
    blocks = [x.shape[1:] for x, part in zip(seen, model, strict=True) if type(part) is Residual]
    assert blocks == [(4, 8, 8)] * 2 + [(8, 4, 4)] * 2 + [(16, 2, 2)] * 2
    features = [x for x, part in zip(seen, model, strict=True) if type(part) is Residual][-1]
    head = model[-1]
    torch.testing.assert_close(out, features.mean(dim=(2, 3)) @ head.weight.T + head.bias)


def test_resnet_without_batch_norm_has_a_bias_in_each_convolution() -> None:
    for batch_norm in (True, False):
        model = resnet([3, 8, 8], 10, batch_norm=batch_norm)
        convolutions = [part for part in model.modules() if isinstance(part, nn.Conv2d)]
        assert [part.bias is None for part in convolutions] == [batch_norm] * 7
        norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
        assert len(norms) == 7 * batch_norm


@pytest.mark.parametrize(
    ("name", "inputs", "options", "named"),
    [
        (
            "vgg",
            [64],
            {"stages": [[8]] * 4},
            "at least 16 x 16 for 4 poolings, got 8 x 8: give few",
        ),
        ("vgg", [64], {"stages": [8, 16]}, r"vgg needs stages that are lists .* got \[8, 16\]"),
        ("vgg", [64], {"stages": [[8], []]}, r"vgg needs stages that are lists of channels, got"),
        ("vgg", [64], {"stages": [[8, 0]]}, r"channels in each stage of at least 1, got \[8, 0\]"),
        ("vgg", [64], {"stages": 3}, "vgg needs stages that are lists of channels, got 3"),
        ("vgg", [64], {"dropout": 1}, "vgg needs dropout of at least 0 and below 1, got 1"),
        ("vgg", [64], {"dropout": True}, "got True"),
        ("vgg", [64], {"pooling": "mean"}, "pooling to be one of max, average, got 'mean'"),
        ("vgg", [64], {"widths": [0]}, r"vgg needs widths of at least 1, got \[0\]"),
        ("vgg", [63], {}, "vgg needs images of shape"),
        ("resnet", [63], {}, "resnet needs images of shape"),
        ("resnet", [64], {"n": 0}, "resnet needs n of at least 1, got 0"),
        ("resnet", [64], {"width": "16"}, "resnet needs width of at least 1, got '16'"),
        ("resnet", [64], {"batch_norm": "off"}, "batch_norm true or false, got 'off'"),
    ],
    ids=str,
)
def test_what_they_cannot_be_is_refused_in_one_line(
    name: str, inputs: list[int], options: dict[str, object], named: str
) -> None:
    with pytest.raises(InputError, match=named) as error:
        MODELS[name](inputs=inputs, outputs=10, **options)
    assert "\n" not in str(error.value)
