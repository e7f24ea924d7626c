"""What networks by name are built of: activations, initializations, layers, checks of options."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sharpness.errors import InputError

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "hardtanh": nn.Hardtanh,
    "identity": nn.Identity,
}


class Factor(nn.Module):
    """The multiplication by a constant above 0."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        """Return value times x."""
        return self.value * x

    def extra_repr(self) -> str:
        """Return the constant for the description of a model."""
        return f"{self.value:g}"


def default(parameter: Tensor) -> Tensor:
    """Return what torch drew, which depends on the layer."""
    return parameter


def scaled(parameter: Tensor) -> Tensor:
    """Return what torch drew, to be multiplied by scale."""
    return parameter


def normal(parameter: Tensor) -> Tensor:
    """Return weights and biases from N(0, 1)."""
    return nn.init.normal_(parameter)


def xavier(parameter: Tensor) -> Tensor:
    """Return uniform weights of variance 2 / (fan_in + fan_out), biases 0.

    Source: Glorot and Bengio (2010), equation 16.
    """
    return nn.init.zeros_(parameter) if parameter.ndim < 2 else nn.init.xavier_uniform_(parameter)


def xavier_normal(parameter: Tensor) -> Tensor:
    """Return normal weights of variance 2 / (fan_in + fan_out), biases 0."""
    return nn.init.zeros_(parameter) if parameter.ndim < 2 else nn.init.xavier_normal_(parameter)


def kaiming(parameter: Tensor) -> Tensor:
    """Return normal weights of variance 2 / fan_in, biases 0, for ReLU.

    Source: He et al. (2015), equation 10.
    """
    if parameter.ndim < 2:
        return nn.init.zeros_(parameter)
    return nn.init.kaiming_normal_(parameter, nonlinearity="relu")


def orthogonal(parameter: Tensor) -> Tensor:
    """Return weights with orthonormal rows or columns, biases 0.

    Source: Saxe et al. (2014).
    """
    return nn.init.zeros_(parameter) if parameter.ndim < 2 else nn.init.orthogonal_(parameter)


def zero(parameter: Tensor) -> Tensor:
    """Return weights and biases 0."""
    return nn.init.zeros_(parameter)


INITIALIZATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "default": default,
    "scaled": scaled,
    "normal": normal,
    "xavier": xavier,
    "xavier-normal": xavier_normal,
    "kaiming": kaiming,
    "orthogonal": orthogonal,
    "zero": zero,
}


def initialized(
    model: nn.Module, kind: str, initialization: str, *, scale: float = 1.0
) -> nn.Module:
    """Return the model, each weight and bias of its layers drawn so and multiplied by ``scale``.

    BatchNorm and LayerNorm stay as torch makes them, with weights 1 and biases 0.

    Args:
        kind: The network's name, for errors.
        initialization: One of ``INITIALIZATIONS``; ``default`` takes no scale.

    Raises:
        InputError: If there is no such initialization, or scale is no number above 0.

    >>> layer = initialized(nn.Linear(2, 2), "mlp", "orthogonal", scale=3.0)
    >>> bool((layer.weight @ layer.weight.T - 9 * torch.eye(2)).abs().max() < 1e-5)
    True
    """
    draw = chosen(kind, "initialization", initialization, INITIALIZATIONS)
    if type(scale) not in (int, float) or not (scale > 0 and math.isfinite(scale)):
        raise InputError(
            f"{kind} needs a scale above 0 and finite, got {scale!r}: change model_options"
        )
    if initialization == "default":
        if scale != 1:
            raise InputError(
                f"{kind} needs another initialization than default with a scale, got scale "
                f"{scale}: take scaled"
            )
        return model
    with torch.no_grad():
        for part in model.modules():
            if not isinstance(part, (_BatchNorm, nn.LayerNorm)):
                for parameter in part.parameters(recurse=False):
                    draw(parameter).mul_(scale)
    return model


def dense(
    sizes: Sequence[int],
    *,
    activation: Callable[[], nn.Module] = nn.ReLU,
    batch_norm: bool = False,
    bias: bool = True,
    dropout: float = 0.0,
) -> list[nn.Module]:
    """Return linear layers from size to size, each with BatchNorm, activation and dropout."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers.append(nn.Linear(fan_in, fan_out, bias=bias))
        layers += [nn.BatchNorm1d(fan_out)] * batch_norm + [activation()]
        layers += [nn.Dropout(dropout)] * (dropout > 0)
    return layers


def convolution(
    fan_in: int,
    fan_out: int,
    *,
    kernel: int = 3,
    stride: int = 1,
    activation: Callable[[], nn.Module] = nn.ReLU,
    batch_norm: bool = True,
    bias: bool = True,
    dropout: float = 0.0,
) -> list[nn.Module]:
    """Return a convolution of padded images, BatchNorm, activation and dropout."""
    first = nn.Conv2d(fan_in, fan_out, kernel, stride=stride, padding=kernel // 2, bias=bias)
    layers: list[nn.Module] = [first]
    layers += [nn.BatchNorm2d(fan_out)] * batch_norm + [activation()]
    return layers + [nn.Dropout(dropout)] * (dropout > 0)


def flat(inputs: Sequence[int]) -> list[nn.Module]:
    """Return what makes one axis of the axes of an example."""
    return [] if len(inputs) == 1 else [nn.Flatten()]


def image(kind: str, inputs: Sequence[int]) -> tuple[tuple[int, int, int], list[nn.Module]]:
    """Return channels, height and width of an example, and what brings it into that shape.

    Raises:
        InputError: If it is no image.

    >>> image("cnn", [64])
    ((1, 8, 8), [Unflatten(dim=1, unflattened_size=(1, 8, 8))])
    """
    c, h, w = 1, 0, 0
    if len(inputs) == 3:
        c, h, w = inputs
    elif len(inputs) == 2:
        h, w = inputs
    elif len(inputs) == 1:
        h = w = math.isqrt(inputs[0])
    if len(inputs) not in (1, 2, 3) or (len(inputs) == 1 and h * w != inputs[0]):
        raise InputError(
            f"{kind} needs images of shape (c, h, w), (h, w) or a flat square (s * s,), got "
            f"{tuple(inputs)}: choose another model"
        )
    shape = (c, h, w)
    if len(inputs) == 3:
        return shape, []
    return shape, [nn.Unflatten(1, shape if len(inputs) == 1 else shape[:2])]


def require_side(kind: str, shape: tuple[int, int, int], poolings: int) -> int:
    """Return by what so many poolings of 2 x 2 divide height and width.

    Raises:
        InputError: If the image is smaller.
    """
    side = 2**poolings
    if min(shape[1:]) < side:
        raise InputError(
            f"{kind} needs images of at least {side} x {side} for {poolings} poolings, got "
            f"{shape[1]} x {shape[2]}: give fewer {'channels' if kind == 'cnn' else 'stages'}"
        )
    return side


def require_sizes(kind: str, name: str, values: Any) -> None:
    """Refuse what is no list of whole numbers above 0."""
    if not (isinstance(values, Sequence) and all(type(w) is int and w > 0 for w in values)):
        raise InputError(f"{kind} needs {name} of at least 1, got {values}: change model_options")


def require_whole(kind: str, **values: Any) -> None:
    """Refuse options that are no whole numbers above 0."""
    for name, value in values.items():
        if type(value) is not int or value < 1:
            raise InputError(
                f"{kind} needs {name} of at least 1, got {value!r}: change model_options"
            )


def require_flags(kind: str, **values: Any) -> None:
    """Refuse options that are neither true nor false."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise InputError(
                f"{kind} needs {name} true or false, got {value!r}: change model_options"
            )


def require_share(kind: str, name: str, value: Any) -> None:
    """Refuse an option that is not at least 0 and below 1."""
    if type(value) not in (int, float) or not 0 <= value < 1:
        raise InputError(
            f"{kind} needs {name} of at least 0 and below 1, got {value!r}: change model_options"
        )


def chosen(kind: str, name: str, value: Any, table: Mapping[str, Any]) -> Any:
    """Return what an option names in a table.

    Raises:
        InputError: If it is none of its names.
    """
    if not isinstance(value, str) or value not in table:
        raise InputError(
            f"{kind} needs {name} to be one of {', '.join(table)}, got {value!r}: change "
            "model_options"
        )
    return table[value]
