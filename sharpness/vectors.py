"""Vectors of length n: seeded random ones, parameters as one vector, and their fingerprints."""

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from sharpness.errors import InputError
from sharpness.options import is_whole


def stream(seed: int, *key: int) -> np.random.Generator:
    """Return NumPy's generator of a seed and a key; other seeds and other keys do not overlap.

    Raises:
        InputError: If the seed is no whole number of at least 0.
    """
    if not is_whole(seed, 0):
        raise InputError(f"a seed needs to be a whole number of at least 0, got {seed}: change it")
    # In one tuple, a seed above 2^32 would be two words: that of another seed and key.
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def gaussian(n: int, seed: int, i: int, *, like: Tensor) -> Tensor:
    """Return the i-th standard normal vector of stream ``seed``, the same on every device.

    Streams do not overlap: (seed, i + 1) and (seed + 1, i) are different vectors.
    """
    return torch.from_numpy(stream(seed, i).standard_normal(n)).to(like)


def uniform(n: int, seed: int, i: int) -> Tensor:
    """Return the i-th vector of stream ``seed``, uniform on [-1, 1], float64 on the CPU."""
    return torch.from_numpy(stream(seed, i, 1).uniform(-1, 1, n))


def rademacher(n: int, seed: int, i: int, *, like: Tensor) -> Tensor:
    """Return the i-th vector of random signs of stream ``seed``, the same on every device."""
    return torch.from_numpy(2 * stream(seed, i, 2).integers(0, 2, n, dtype="int8") - 1).to(like)


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """Return all entries in one vector, a copy of shape (n,)."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def unflatten(theta: Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Return views of theta, shape (n,), by name: what ``flatten`` took apart from them."""
    parts = torch.split(theta, [shape.numel() for shape in shapes.values()])
    items = zip(shapes.items(), parts, strict=True)
    return {name: part.view(shape) for (name, shape), part in items}


def digest(*tensors: Tensor) -> str:
    """Return the SHA-256 of shapes, dtypes and bytes, the same on every device."""
    total = hashlib.sha256()
    for tensor in tensors:
        array = tensor.detach().cpu().contiguous()
        total.update(f"{tuple(array.shape)} {array.dtype}".encode())
        total.update(array.flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
