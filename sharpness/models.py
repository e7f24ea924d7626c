"""Networks by name, each a function of the sizes of its inputs and outputs.

Options that several have, in ``model_options``: ``activation`` is one of ``ACTIVATIONS``,
``initialization`` one of ``INITIALIZATIONS``, whose weights and biases are multiplied by ``scale``.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

from sharpness.building import (
    ACTIVATIONS,
    Factor,
    chosen,
    convolution,
    dense,
    flat,
    image,
    initialized,
    require_flags,
    require_side,
    require_sizes,
    require_whole,
)
from sharpness.models_images import resnet, vgg
from sharpness.models_keskar import c1, c2, c3, c4, f1, f2
from sharpness.transformers import transformer


def mlp(
    inputs: Sequence[int],
    outputs: int,
    *,
    widths: Sequence[int] = (128, 128, 128),
    activation: str = "relu",
    batch_norm: bool = False,
    bias: bool = True,
    initialization: str = "default",
    scale: float = 1.0,
) -> nn.Module:
    """Return linear layers with an activation between them, ReLU unless another is named.

    Args:
        inputs: Shape of one example; one of several axes is flattened first.
        outputs: Number of classes, or of components of the target.
        widths: Of the hidden layers; none gives linear (softmax) regression.
        activation: One of ``ACTIVATIONS``.
        batch_norm: Between each hidden layer and its activation.
        bias: Of all linear layers.
        initialization: One of ``INITIALIZATIONS``; by default that of torch.
        scale: What its weights and biases are multiplied by.

    Raises:
        InputError: If a width is not a whole number above 0, or another option means nothing.

    >>> [tuple(p.shape) for p in mlp([64], 10, widths=[32]).parameters()]
    [(32, 64), (32,), (10, 32), (10,)]
    """
    require_sizes("mlp", "widths", widths)
    require_flags("mlp", batch_norm=batch_norm, bias=bias)
    act = chosen("mlp", "activation", activation, ACTIVATIONS)
    sizes = [math.prod(inputs), *widths]
    layers = dense(sizes, activation=act, batch_norm=batch_norm, bias=bias)
    last = nn.Linear(sizes[-1], outputs, bias=bias)
    return initialized(
        nn.Sequential(*flat(inputs), *layers, last), "mlp", initialization, scale=scale
    )


def softmax(
    inputs: Sequence[int],
    outputs: int,
    *,
    bias: bool = True,
    initialization: str = "default",
    scale: float = 1.0,
) -> nn.Module:
    """Return one linear layer: under cross-entropy, softmax regression, whose loss is convex.

    >>> [tuple(p.shape) for p in softmax([8, 8], 10, bias=False).parameters()]
    [(10, 64)]
    """
    require_flags("softmax", bias=bias)
    layer = nn.Linear(math.prod(inputs), outputs, bias=bias)
    model = nn.Sequential(*flat(inputs), layer)
    return initialized(model, "softmax", initialization, scale=scale)


def deep_linear(
    inputs: Sequence[int],
    outputs: int,
    *,
    depth: int = 4,
    width: int = 50,
    bias: bool = False,
    initialization: str = "default",
    scale: float = 1.0,
) -> nn.Module:
    """Return a product of matrices, a linear function whose loss is not convex.

    >>> [tuple(p.shape) for p in deep_linear([64], 10, depth=3, width=5).parameters()]
    [(5, 64), (5, 5), (10, 5)]
    """
    require_whole("deep-linear", depth=depth, width=width)
    require_flags("deep-linear", bias=bias)
    sizes = [math.prod(inputs), *[width] * (depth - 1), outputs]
    layers = [nn.Linear(fan_in, fan_out, bias=bias) for fan_in, fan_out in pairwise(sizes)]
    model = nn.Sequential(*flat(inputs), *layers)
    return initialized(model, "deep-linear", initialization, scale=scale)


# What a first layer of d inputs and a second of n multiply their inputs by.
SCALINGS: dict[str, Callable[[int, int], tuple[float, float]]] = {
    "standard": lambda d, n: (1.0, 1.0),
    "ntk": lambda d, n: (d**-0.5, n**-0.5),
    "mean-field": lambda d, n: (1.0, 1 / n),
}


def two_layer(
    inputs: Sequence[int],
    outputs: int,
    *,
    width: int = 512,
    activation: str = "relu",
    bias: bool = True,
    scaling: str = "standard",
    initialization: str | None = None,
    scale: float = 1.0,
) -> nn.Module:
    """Return one hidden layer, by choice in the scaling of the tangent kernel or of mean fields.

    With d inputs and n units, ``ntk`` is V act(U x / sqrt(d) + b) / sqrt(n) + c (Jacot et al.
    2018), which for d = 1, act the identity and no bias is the model of Lewkowycz et al. (2020),
    and ``mean-field`` is V act(U x + b) / n + c (Mei et al. 2018).

    Args:
        inputs: As of ``mlp``.
        outputs: As of ``mlp``.
        width: n.
        activation: One of ``ACTIVATIONS``.
        bias: Of both layers, b and c.
        scaling: One of ``SCALINGS``; ``standard`` has no factors.
        initialization: By default that of torch for ``standard``, else ``normal``, N(0, 1).
        scale: What its weights and biases are multiplied by.

    >>> two_layer([1], 1, width=4, activation="identity", bias=False, scaling="ntk")[2]
    Factor(0.5)
    """
    require_whole("two-layer", width=width)
    require_flags("two-layer", bias=bias)
    act = chosen("two-layer", "activation", activation, ACTIVATIONS)
    d = math.prod(inputs)
    factors = chosen("two-layer", "scaling", scaling, SCALINGS)(d, width)
    first, second = ([Factor(x)] * (x != 1) for x in factors)
    model = nn.Sequential(
        *flat(inputs),
        *first,
        nn.Linear(d, width, bias=bias),
        act(),
        *second,
        nn.Linear(width, outputs, bias=bias),
    )
    if initialization is None:
        initialization = "default" if scaling == "standard" else "normal"
    return initialized(model, "two-layer", initialization, scale=scale)


def cnn(
    inputs: Sequence[int],
    outputs: int,
    *,
    channels: Sequence[int] = (16, 32),
    batch_norm: bool = True,
    activation: str = "relu",
    initialization: str = "default",
    scale: float = 1.0,
) -> nn.Module:
    """Return convolutions of 3x3, BatchNorm, ReLU and pooling of 2x2 each, and a linear layer.

    Args:
        inputs: Shape of one image: (c, h, w), (h, w), or (s * s,) of a flat square one.
        outputs: Number of classes, or of components of the target.
        channels: Of each convolution; each pooling halves height and width.
        batch_norm: Without it, the convolutions have a bias.
        activation: One of ``ACTIVATIONS``.
        initialization: One of ``INITIALIZATIONS``; by default that of torch.
        scale: What its weights and biases are multiplied by.

    Raises:
        InputError: If inputs are no images, or too small for so many poolings.

    >>> model = cnn([64], 10, channels=[4])
    >>> [tuple(p.shape) for p in model.parameters()]
    [(4, 1, 3, 3), (4,), (4,), (10, 64), (10,)]
    """
    require_sizes("cnn", "channels", channels)
    require_flags("cnn", batch_norm=batch_norm)
    act = chosen("cnn", "activation", activation, ACTIVATIONS)
    shape, layers = image("cnn", inputs)
    side = require_side("cnn", shape, len(channels))
    for fan_in, fan_out in pairwise([shape[0], *channels]):
        layers += convolution(
            fan_in, fan_out, activation=act, batch_norm=batch_norm, bias=not batch_norm
        )
        layers.append(nn.MaxPool2d(2))
    features = (shape[1] // side) * (shape[2] // side) * [shape[0], *channels][-1]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, outputs))
    return initialized(model, "cnn", initialization, scale=scale)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "cnn": cnn,
    "softmax": softmax,
    "deep-linear": deep_linear,
    "two-layer": two_layer,
    "vgg": vgg,
    "resnet": resnet,
    "transformer": transformer,
    "f1": f1,
    "f2": f2,
    "c1": c1,
    "c2": c2,
    "c3": c3,
    "c4": c4,
}
