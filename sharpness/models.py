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


MODELS: dict[str, Callable[..., nn.Module]] = {"mlp": mlp}
