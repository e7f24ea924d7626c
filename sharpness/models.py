"""Networks by name, each a function of the sizes of its inputs and outputs."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

from sharpness.errors import InputError


def mlp(
    inputs: Sequence[int], outputs: int, *, widths: Sequence[int] = (128, 128, 128)
) -> nn.Module:
    """Return linear layers with ReLU between them, of torch's default initialization.

    Args:
        inputs: Shape of one example; one of several axes is flattened first.
        outputs: Number of classes, or of components of the target.
        widths: Of the hidden layers; none gives linear (softmax) regression.

    Raises:
        InputError: If a width is not a whole number above 0.

    >>> [tuple(p.shape) for p in mlp([64], 10, widths=[32]).parameters()]
    [(32, 64), (32,), (10, 32), (10,)]
    """
    if not (isinstance(widths, Sequence) and all(type(w) is int and w > 0 for w in widths)):
        raise InputError(f"mlp needs widths of at least 1, got {widths}: change model_options")
    sizes = [math.prod(inputs), *widths, outputs]
    layers: list[nn.Module] = [] if len(inputs) == 1 else [nn.Flatten()]
    for i, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        layers += [nn.ReLU()] * (i > 0) + [nn.Linear(fan_in, fan_out)]
    return nn.Sequential(*layers)


def cnn(
    inputs: Sequence[int],
    outputs: int,
    *,
    channels: Sequence[int] = (16, 32),
    batch_norm: bool = True,
) -> nn.Module:
    """Return convolutions of 3x3, BatchNorm, ReLU and pooling of 2x2 each, and a linear layer.

    Args:
        inputs: Shape of one image: (c, h, w), (h, w), or (s * s,) of a flat square one.
        outputs: Number of classes, or of components of the target.
        channels: Of each convolution; each pooling halves height and width.
        batch_norm: Without it, the convolutions have a bias.

    Raises:
        InputError: If inputs are no images, or too small for so many poolings.

    >>> model = cnn([64], 10, channels=[4])
    >>> [tuple(p.shape) for p in model.parameters()]
    [(4, 1, 3, 3), (4,), (4,), (10, 64), (10,)]
    """
    if not (isinstance(channels, Sequence) and all(type(c) is int and c > 0 for c in channels)):
        raise InputError(f"cnn needs channels of at least 1, got {channels}: change model_options")
    if not isinstance(batch_norm, bool):
        raise InputError(
            f"cnn needs batch_norm true or false, got {batch_norm!r}: change model_options"
        )
    shape = _image(inputs)
    side = 2 ** len(channels)
    if min(shape[1:]) < side:
        raise InputError(
            f"cnn needs images of at least {side} x {side} for {len(channels)} poolings, got "
            f"{shape[1]} x {shape[2]}: give fewer channels"
        )
    layers: list[nn.Module] = []
    if len(inputs) < 3:
        layers.append(nn.Unflatten(1, shape if len(inputs) == 1 else shape[:2]))
    for fan_in, fan_out in pairwise([shape[0], *channels]):
        layers.append(nn.Conv2d(fan_in, fan_out, 3, padding=1, bias=not batch_norm))
        layers += [nn.BatchNorm2d(fan_out)] * batch_norm + [nn.ReLU(), nn.MaxPool2d(2)]
    features = (shape[1] // side) * (shape[2] // side) * [shape[0], *channels][-1]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, outputs))


def _image(inputs: Sequence[int]) -> tuple[int, int, int]:
    """Return channels, height and width."""
    c, h, w = 1, 0, 0
    if len(inputs) == 3:
        c, h, w = inputs
    elif len(inputs) == 2:
        h, w = inputs
    elif len(inputs) == 1:
        h = w = math.isqrt(inputs[0])
    if len(inputs) not in (1, 2, 3) or (len(inputs) == 1 and h * w != inputs[0]):
        raise InputError(
            "cnn needs images of shape (c, h, w), (h, w) or a flat square (s * s,), got "
            f"{tuple(inputs)}: choose another model"
        )
    return c, h, w


MODELS: dict[str, Callable[..., nn.Module]] = {"mlp": mlp, "cnn": cnn}
