"""The networks of Keskar et al. (2017), as their code has them where it differs from the paper.

The code (github.com/keskarnitish/large-batch-training, Keras on Theano) has C1 to C4; F1 and F2
follow table 1 and appendix B in the same manner. Each layer is Conv or Linear with a bias,
BatchNorm, ReLU; weights are uniform and biases 0 at the start, as Keras draws them. In that code
BatchNorm uses each batch's own statistics in the test too, which is ``--bn batch`` here. The
softmax is part of the loss. Inputs and outputs may be others than in the paper.
"""

import math
from collections.abc import Sequence

from torch import nn

from sharpness.building import (
    ACTIVATIONS,
    chosen,
    convolution,
    dense,
    flat,
    image,
    initialized,
    require_flags,
)

WIDTH = 512  # of the hidden layers of F1 and F2, and of the dense one of C2
DENSE = (384, 192)  # of C1
KEPT = 0.5  # by the dropout between dense layers
# Of C2: the channels of a convolution and the share that the dropout behind it drops.
STAGES = (
    ((64, 0.3), (64, 0.0)),
    ((128, 0.4), (128, 0.0)),
    ((256, 0.4), (256, 0.4), (256, 0.0)),
    ((512, 0.4), (512, 0.4), (512, 0.0)),
    ((512, 0.4), (512, 0.4), (512, 0.0)),
)


def f1(
    inputs: Sequence[int],
    outputs: int,
    *,
    activation: str = "relu",
    batch_norm: bool = True,
    initialization: str = "xavier",
    scale: float = 1.0,
) -> nn.Module:
    """Return F1, five hidden layers of 512 with BatchNorm; on MNIST 1,462,794 parameters.

    >>> sum(p.numel() for p in f1([28, 28], 10).parameters())
    1462794
    """
    model = _fully_connected(
        "f1", inputs, outputs, hidden=5, activation=activation, batch_norm=batch_norm
    )
    return initialized(model, "f1", initialization, scale=scale)


def f2(
    inputs: Sequence[int],
    outputs: int,
    *,
    activation: str = "relu",
    batch_norm: bool = True,
    initialization: str = "xavier",
    scale: float = 1.0,
) -> nn.Module:
    """Return F2, seven hidden layers of 512 with BatchNorm; on TIMIT 2,780,085 parameters.

    >>> sum(p.numel() for p in f2([360], 1973).parameters())
    2780085
    """
    model = _fully_connected(
        "f2", inputs, outputs, hidden=7, activation=activation, batch_norm=batch_norm
    )
    return initialized(model, "f2", initialization, scale=scale)


def c1(
    inputs: Sequence[int],
    outputs: int,
    *,
    activation: str = "relu",
    batch_norm: bool = True,
    dropout: bool = True,
    initialization: str = "xavier",
    scale: float = 1.0,
) -> nn.Module:
    """Return C1, two convolutions of 5x5 and two dense layers; on CIFAR-10 1,757,834 parameters.

    >>> sum(p.numel() for p in c1([3, 32, 32], 10).parameters())
    1757834
    """
    model = _shallow(
        "c1", inputs, outputs, activation=activation, batch_norm=batch_norm, dropout=dropout
    )
    return initialized(model, "c1", initialization, scale=scale)


def c2(
    inputs: Sequence[int],
    outputs: int,
    *,
    activation: str = "relu",
    batch_norm: bool = True,
    dropout: bool = True,
    initialization: str = "xavier",
    scale: float = 1.0,
) -> nn.Module:
    """Return C2, 13 convolutions of 3x3 and a dense layer; on CIFAR-10 14,991,946 parameters.

    >>> sum(p.numel() for p in c2([3, 32, 32], 10).parameters())
    14991946
    """
    model = _deep(
        "c2", inputs, outputs, activation=activation, batch_norm=batch_norm, dropout=dropout
    )
    return initialized(model, "c2", initialization, scale=scale)


def c3(
    inputs: Sequence[int],
    outputs: int,
    *,
    activation: str = "relu",
    batch_norm: bool = True,
    dropout: bool = True,
    initialization: str = "xavier",
    scale: float = 1.0,
) -> nn.Module:
    """Return C3, which is C1 for 100 classes; on CIFAR-100 1,775,204 parameters.

    >>> sum(p.numel() for p in c3([3, 32, 32], 100).parameters())
    1775204
    """
    model = _shallow(
        "c3", inputs, outputs, activation=activation, batch_norm=batch_norm, dropout=dropout
    )
    return initialized(model, "c3", initialization, scale=scale)


def c4(
    inputs: Sequence[int],
    outputs: int,
    *,
    activation: str = "relu",
    batch_norm: bool = True,
    dropout: bool = True,
    initialization: str = "xavier",
    scale: float = 1.0,
) -> nn.Module:
    """Return C4, which is C2 for 100 classes; on CIFAR-100 15,038,116 parameters.

    >>> sum(p.numel() for p in c4([3, 32, 32], 100).parameters())
    15038116
    """
    model = _deep(
        "c4", inputs, outputs, activation=activation, batch_norm=batch_norm, dropout=dropout
    )
    return initialized(model, "c4", initialization, scale=scale)


def _fully_connected(
    kind: str,
    inputs: Sequence[int],
    outputs: int,
    *,
    hidden: int,
    activation: str,
    batch_norm: bool,
) -> nn.Module:
    require_flags(kind, batch_norm=batch_norm)
    act = chosen(kind, "activation", activation, ACTIVATIONS)
    sizes = [math.prod(inputs), *[WIDTH] * hidden]
    layers = dense(sizes, activation=act, batch_norm=batch_norm)
    return nn.Sequential(*flat(inputs), *layers, nn.Linear(WIDTH, outputs))


def _shallow(
    kind: str,
    inputs: Sequence[int],
    outputs: int,
    *,
    activation: str,
    batch_norm: bool,
    dropout: bool,
) -> nn.Module:
    require_flags(kind, batch_norm=batch_norm, dropout=dropout)
    act = chosen(kind, "activation", activation, ACTIVATIONS)
    (c, h, w), layers = image(kind, inputs)
    for fan_in in (c, 64):
        layers += convolution(fan_in, 64, kernel=5, activation=act, batch_norm=batch_norm)
        # "same" on Theano: one more row and column on each side.
        layers.append(nn.MaxPool2d(3, stride=2, padding=1))
        h, w = math.ceil(h / 2), math.ceil(w / 2)
    drop = (1 - KEPT) * dropout
    sizes = [64 * h * w, *DENSE]
    layers += [nn.Flatten(), *dense(sizes, activation=act, batch_norm=batch_norm, dropout=drop)]
    return nn.Sequential(*layers, nn.Linear(DENSE[-1], outputs))


def _deep(
    kind: str,
    inputs: Sequence[int],
    outputs: int,
    *,
    activation: str,
    batch_norm: bool,
    dropout: bool,
) -> nn.Module:
    require_flags(kind, batch_norm=batch_norm, dropout=dropout)
    act = chosen(kind, "activation", activation, ACTIVATIONS)
    (fan_in, h, w), layers = image(kind, inputs)
    for stage in STAGES:
        for fan_out, share in stage:
            layers += convolution(
                fan_in, fan_out, activation=act, batch_norm=batch_norm, dropout=share * dropout
            )
            fan_in = fan_out
        layers.append(nn.MaxPool2d(2, ceil_mode=True))  # "same": an odd row has its own maximum
        h, w = math.ceil(h / 2), math.ceil(w / 2)
    drop = (1 - KEPT) * dropout
    layers += [nn.Flatten(), *[nn.Dropout(drop)] * dropout]
    layers += dense([fan_in * h * w, WIDTH], activation=act, batch_norm=batch_norm, dropout=drop)
    return nn.Sequential(*layers, nn.Linear(WIDTH, outputs))
