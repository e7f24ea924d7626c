"""Vectors of length n: seeded random ones, parameters as one vector, and their fingerprints."""

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor


def gaussian(n: int, seed: int, i: int, *, like: Tensor) -> Tensor:
    """Return the i-th standard normal vector of stream ``seed``, the same on every device.

    Streams do not overlap: (seed, i + 1) and (seed + 1, i) are different vectors.
    """
    return torch.from_numpy(np.random.default_rng((seed, i)).standard_normal(n)).to(like)


def uniform(n: int, seed: int, i: int) -> Tensor:
    """Return the i-th vector of stream ``seed``, uniform on [-1, 1], float64 on the CPU."""
    return torch.from_numpy(np.random.default_rng((seed, i, 1)).uniform(-1, 1, n))


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
