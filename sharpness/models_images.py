"""Deep networks for images by name: stacks of convolutions, and residual ones."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

from torch import Tensor, nn

from sharpness.building import (
    ACTIVATIONS,
    chosen,
    convolution,
    dense,
    image,
    initialized,
    require_flags,
    require_share,
    require_side,
    require_sizes,
    require_whole,
)
from sharpness.errors import InputError

POOLINGS: dict[str, Callable[[int], nn.Module]] = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}


def vgg(
    inputs: Sequence[int],
    outputs: int,
    *,
    stages: Sequence[Sequence[int]] = ((16, 16), (32, 32)),
    widths: Sequence[int] = (),
    activation: str = "relu",
    batch_norm: bool = True,
    bias: bool = True,
    dropout: float = 0.0,
    pooling: str = "max",
    initialization: str = "default",
    scale: float = 1.0,
) -> nn.Module:
    """Return stages of 3x3 convolutions with pooling behind each, and dense layers.

    VGG-11 of Simonyan and Zisserman (2015) has stages [[64], [128], [256, 256], [512, 512],
    [512, 512]], batch_norm false and, for ImageNet, widths [4096, 4096] with dropout 0.5.

    Args:
        inputs: Shape of one image: (c, h, w), (h, w), or (s * s,) of a flat square one.
        outputs: Number of classes, or of components of the target.
        stages: Of each stage, the channels of its convolutions; each pooling of 2x2 halves height
            and width.
        widths: Of the dense hidden layers.
        activation: One of ``ACTIVATIONS``.
        batch_norm: Between each convolution or hidden layer and its activation.
        bias: Of convolutions and linear layers.
        dropout: Share that is dropped behind each dense hidden layer.
        pooling: One of ``POOLINGS``.
        initialization: One of ``INITIALIZATIONS``; by default that of torch.
        scale: What its weights and biases are multiplied by.

    Raises:
        InputError: If inputs are no images or too small, or an option means nothing.

    >>> [tuple(p.shape) for p in vgg([64], 10, stages=[[4], [5]], batch_norm=False).parameters()]
    [(4, 1, 3, 3), (4,), (5, 4, 3, 3), (5,), (10, 20), (10,)]
    """
    if not isinstance(stages, Sequence) or not all(isinstance(x, Sequence) and x for x in stages):
        raise InputError(
            f"vgg needs stages that are lists of channels, got {stages!r}: change model_options"
        )
    for stage in stages:
        require_sizes("vgg", "channels in each stage", stage)
    require_sizes("vgg", "widths", widths)
    require_flags("vgg", batch_norm=batch_norm, bias=bias)
    require_share("vgg", "dropout", dropout)
    act = chosen("vgg", "activation", activation, ACTIVATIONS)
    pool = chosen("vgg", "pooling", pooling, POOLINGS)
    shape, layers = image("vgg", inputs)
    side = require_side("vgg", shape, len(stages))
    fan_in = shape[0]
    for stage in stages:
        for a, b in pairwise([fan_in, *stage]):
            layers += convolution(a, b, activation=act, batch_norm=batch_norm, bias=bias)
        fan_in = stage[-1]
        layers.append(pool(2))
    sizes = [fan_in * (shape[1] // side) * (shape[2] // side), *widths]
    layers += [
        nn.Flatten(),
        *dense(sizes, activation=act, batch_norm=batch_norm, bias=bias, dropout=dropout),
        nn.Linear(sizes[-1], outputs, bias=bias),
    ]
    return initialized(nn.Sequential(*layers), "vgg", initialization, scale=scale)


class Residual(nn.Module):
    """A block of two convolutions whose input is added before the last activation.

    Where it halves height and width, the input is every second row and column of the image, with
    channels of zeros for those that are new: He et al. (2016), option A, without parameters.
    """

    def __init__(
        self,
        fan_in: int,
        fan_out: int,
        *,
        stride: int,
        activation: Callable[[], nn.Module],
        batch_norm: bool,
    ) -> None:
        super().__init__()
        self.stride, self.grown = stride, fan_out - fan_in
        layers = partial(
            convolution, activation=activation, batch_norm=batch_norm, bias=not batch_norm
        )
        first = layers(fan_in, fan_out, stride=stride)
        *second, last = layers(fan_out, fan_out)
        self.inner = nn.Sequential(*first, *second)
        self.last = last  # after the inner layers, for the order of modules is that of their use

    def forward(self, x: Tensor) -> Tensor:
        """Return act(x + inner(x))."""
        same = x[:, :, :: self.stride, :: self.stride]
        if self.grown:
            same = nn.functional.pad(same, (0, 0, 0, 0, 0, self.grown))
        out: Tensor = self.last(same + self.inner(x))
        return out


def resnet(
    inputs: Sequence[int],
    outputs: int,
    *,
    n: int = 1,
    width: int = 16,
    activation: str = "relu",
    batch_norm: bool = True,
    initialization: str = "default",
    scale: float = 1.0,
) -> nn.Module:
    """Return the residual network of 6 n + 2 layers for small images.

    Source: He et al. (2016), section 4.2.

    Args:
        inputs: Shape of one image: (c, h, w), (h, w), or (s * s,) of a flat square one.
        outputs: Number of classes, or of components of the target.
        n: Blocks of two convolutions in each of three stages; ResNet-20 has 3, ResNet-56 has 9.
        width: Channels of the first stage; each further one doubles them and halves the image.
        activation: One of ``ACTIVATIONS``.
        batch_norm: Without it, the convolutions have a bias.
        initialization: One of ``INITIALIZATIONS``; by default that of torch.
        scale: What its weights and biases are multiplied by.

    Raises:
        InputError: If inputs are no images, or an option means nothing.

    >>> sum(p.numel() for p in resnet([3, 32, 32], 10, n=3).parameters())
    269722
    """
    require_whole("resnet", n=n, width=width)
    require_flags("resnet", batch_norm=batch_norm)
    act = chosen("resnet", "activation", activation, ACTIVATIONS)
    (fan_in, _, _), layers = image("resnet", inputs)
    layers += convolution(fan_in, width, activation=act, batch_norm=batch_norm, bias=not batch_norm)
    fan_in = width
    for stage in range(3):
        for block in range(n):
            stride = 2 if stage and not block else 1
            fan_out = width * 2**stage
            layers.append(
                Residual(fan_in, fan_out, stride=stride, activation=act, batch_norm=batch_norm)
            )
            fan_in = fan_out
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(fan_in, outputs)]
    return initialized(nn.Sequential(*layers), "resnet", initialization, scale=scale)
