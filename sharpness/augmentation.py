"""Images changed by chance while training: flips, rotations and translations, each by its seed.

They are those of Keskar et al. (2017, appendix E): horizontal flips, rotations by up to 10
degrees and translations by up to 0.2 of the size. What is drawn for an example is a function of
seed, epoch and its number alone, so that an interrupted training goes on as it would have.
No Objective sees it: under it the loss would be no function of theta.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from sharpness.errors import InputError
from sharpness.vectors import stream

KESKAR = {"flip": True, "rotate": 10.0, "translate": 0.2}
DRAWS = 4  # numbers for each example: flip, angle, and two shifts


def settings(value: Any, inputs: Any) -> dict[str, Any]:
    """Return ``flip``, ``rotate`` and ``translate``, those of the paper where ``value`` is true.

    Raises:
        InputError: If the value is none of these, or the inputs are no images.

    >>> settings({"flip": True}, torch.zeros(1, 64))
    {'flip': True, 'rotate': 0.0, 'translate': 0.0}
    """
    given = KESKAR if value is True else value
    numbers = isinstance(given, Mapping) and all(
        isinstance(x, bool) if name == "flip" else type(x) in (int, float) and 0 <= x <= most
        for name, x in given.items()
        for most in [180 if name == "rotate" else 1]
    )
    if not (numbers and given and given.keys() <= KESKAR.keys()):
        raise InputError(
            "augment needs true, or some of flip (true or false), rotate (0 to 180 degrees) and "
            f"translate (0 to 1 of the size), got {value}: change data_options"
        )
    if not (isinstance(inputs, Tensor) and inputs.is_floating_point() and image(inputs.shape)):
        shape = tuple(inputs.shape) if isinstance(inputs, Tensor) else "several tensors"
        raise InputError(
            "augment needs images of shape (N, c, h, w), (N, h, w) or flat square ones (N, s * s), "
            f"got {shape}: leave it out"
        )
    return {"flip": False, "rotate": 0.0, "translate": 0.0, **given}


def image(shape: Any) -> tuple[int, int, int] | None:
    """Return channels, height and width of one of several images, None of what is none.

    >>> image((600, 64)), image((10, 28, 28)), image((600, 20))
    ((1, 8, 8), (1, 28, 28), None)
    """
    c, h, w = 1, 0, 0
    if len(shape) == 4:
        c, h, w = shape[1:]
    elif len(shape) == 3:
        h, w = shape[1:]
    elif len(shape) == 2:
        h = w = math.isqrt(shape[1])
    return None if not h * w or (len(shape) == 2 and h * w != shape[1]) else (c, h, w)


def epoch_of(
    value: Any, inputs: Any, *, seed: int, epoch: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function of (inputs of a batch, their numbers) that changes them in one epoch.

    Args:
        value: The option ``augment``; None leaves all inputs as they are.
        inputs: Of the whole training part, which has as many examples as numbers are drawn for.
    """
    if value is None:
        return lambda batch, numbers: batch
    chosen = settings(value, inputs)
    draws = torch.from_numpy(stream(seed, epoch, 3).random((len(inputs), DRAWS)))
    return lambda batch, numbers: augmented(batch, draws[numbers], **chosen)


def augmented(
    inputs: Tensor, draws: Tensor, *, flip: bool, rotate: float, translate: float
) -> Tensor:
    """Return each image flipped, turned and shifted, with zeros from beyond its border.

    A draw below 1/2 flips; the others are from -``rotate`` to ``rotate`` degrees and from
    -``translate`` to ``translate`` times width and height. Values between pixels are bilinear.

    Args:
        inputs: Images (b, c, h, w), (b, h, w) or (b, s * s).
        draws: Shape (b, 4), uniform in [0, 1).

    >>> x = torch.arange(4.0).reshape(1, 4)
    >>> augmented(x, torch.zeros(1, 4), flip=True, rotate=0, translate=0)
    tensor([[1., 0., 3., 2.]])
    >>> augmented(x, torch.tensor([[0.9, 0.5, 1.0, 0.5]]), flip=True, rotate=0, translate=0.5)
    tensor([[0., 0., 0., 2.]])
    """
    found = image(inputs.shape)
    assert found is not None  # noqa: S101  settings has looked at them
    images, draws = inputs.reshape(-1, *found), draws.to(inputs)
    if flip:
        images = torch.where(draws[:, 0, None, None, None] < 0.5, images.flip(-1), images)
    if rotate or translate:
        images = _moved(images, (2 * draws[:, 1:] - 1), rotate, translate)
    return images.reshape(inputs.shape)


def _moved(images: Tensor, signed: Tensor, rotate: float, translate: float) -> Tensor:
    """Return images turned and shifted; ``signed`` is (b, 3) in [-1, 1)."""
    h, w = images.shape[-2:]
    angle = math.radians(rotate) * signed[:, 0]
    # The map goes from places of the result to those of the image, in halves of its size.
    cos, sin = angle.cos(), angle.sin()
    x, y = -2 * translate * signed[:, 1], -2 * translate * signed[:, 2]
    across = torch.stack([cos, sin * h / w, cos * x + sin * h / w * y], dim=1)
    down = torch.stack([-sin * w / h, cos, cos * y - sin * w / h * x], dim=1)
    grid = affine_grid(torch.stack([across, down], dim=1), list(images.shape), align_corners=False)
    return grid_sample(images, grid, padding_mode="zeros", align_corners=False)
