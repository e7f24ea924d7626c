"""Data that are made by a rule and a seed, so that something about them is known exactly."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sharpness.errors import InputError
from sharpness.vectors import stream

Pair = tuple[Tensor, Tensor]
Matrix = NDArray[np.float64]
SPECTRUM = (4.0, 3.0, 2.0, 1.0, 0.5)


def clusters(
    *,
    count: int = 10,
    dimension: int = 20,
    separation: float = 4.0,
    examples: int = 1000,
    test_examples: int = 1000,
    seed: int = 0,
) -> tuple[Pair, Pair]:
    """Return Gaussian clusters of unit variance, any two centers ``separation`` apart.

    Each is a class. The centers are a regular simplex in a random rotation. The best classifier
    takes the nearest center; of two classes it is right with probability Phi(separation / 2).

    Args:
        count: Of classes, at most ``dimension + 1``.
        dimension: Of the inputs.
        separation: In standard deviations of a cluster.
        examples: For training, the same number of each class to within one.
        test_examples: Likewise.
        seed: Of centers and examples.

    >>> (inputs, targets), _ = clusters(count=2, dimension=3, separation=100, examples=10)
    >>> means = [inputs[targets == y].mean(dim=0) for y in (0, 1)]
    >>> 95 < (means[0] - means[1]).norm() < 105
    tensor(True)
    """
    _require_whole("clusters", 1, dimension=dimension, examples=examples)
    _require_whole("clusters", 1, test_examples=test_examples, count=count)
    _require_least("clusters", separation=separation)
    if not 2 <= count <= dimension + 1:
        raise InputError(
            f"clusters needs a count of 2 to dimension + 1 = {dimension + 1}, so that all are "
            f"equally far apart, got {count}: change it or the dimension"
        )
    rng = stream(seed, 0)
    basis = _orthonormal(count, count, rng, first=np.ones(count))[:, 1:]  # all sum to 0
    turned = _orthonormal(dimension, count - 1, rng)
    centers = separation / math.sqrt(2) * basis @ turned.T  # (count, dimension)
    parts = []
    for part, total in enumerate((examples, test_examples)):
        targets = np.arange(total) % count
        noise = stream(seed, 1, part).standard_normal((total, dimension))
        parts.append((torch.from_numpy(centers[targets] + noise), torch.from_numpy(targets)))
    return parts[0], parts[1]


def teacher_student(
    *,
    dimension: int = 10,
    width: int = 4,
    outputs: int = 1,
    noise: float = 0.0,
    examples: int = 1000,
    test_examples: int = 1000,
    seed: int = 0,
) -> tuple[Pair, Pair]:
    """Return Gaussian inputs with the outputs of a random network, for the loss ``mse``.

    The teacher is y = W2 relu(W1 x) without biases (see ``teacher``), so that without noise an MLP
    of at least that width has a loss of 0 at some weights, and with noise of ``noise`` squared.

    Args:
        dimension: Of the inputs.
        width: Of the teacher's hidden layer.
        outputs: Components of a target.
        noise: Standard deviation of what is added to each component.
        examples: For training.
        test_examples: Of the test part.
        seed: Of teacher, examples and noise.
    """
    _require_whole("teacher-student", 1, examples=examples, test_examples=test_examples)
    _require_least("teacher-student", noise=noise)
    first, second = teacher(dimension=dimension, width=width, outputs=outputs, seed=seed)
    parts = []
    for part, total in enumerate((examples, test_examples)):
        rng = stream(seed, 1, part)
        inputs = torch.from_numpy(rng.standard_normal((total, dimension)))
        targets = (inputs @ first.T).relu() @ second.T
        targets += noise * torch.from_numpy(rng.standard_normal((total, outputs)))
        parts.append((inputs, targets))
    return parts[0], parts[1]


def teacher(
    *, dimension: int = 10, width: int = 4, outputs: int = 1, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Return the weights (width, dimension) and (outputs, width) of the teacher of this seed.

    They are normal, of variance 1 / dimension and 2 / width, so that a target has mean square 1
    on average over seeds.

    >>> [tuple(w.shape) for w in teacher(dimension=3, width=2)]
    [(2, 3), (1, 2)]
    """
    _require_whole("teacher-student", 1, dimension=dimension, width=width, outputs=outputs)
    rng = stream(seed, 0)
    first = rng.standard_normal((width, dimension)) / math.sqrt(dimension)
    second = rng.standard_normal((outputs, width)) * math.sqrt(2 / width)
    return torch.from_numpy(first), torch.from_numpy(second)


def planted(
    *,
    spectrum: Sequence[float] = SPECTRUM,
    noise: float = 0.0,
    examples: int = 100,
    test_examples: int = 100,
    seed: int = 0,
) -> tuple[Pair, Pair]:
    """Return a linear regression whose Hessian has a given spectrum, for the loss ``mse``.

    The Hessian 2 X^T X / N of the mean squared error of a linear map has these eigenvalues, to
    rounding, and the same eigenvectors on both parts. The inputs have mean 0, so that a bias, as
    of ``mlp`` without hidden layers, adds the eigenvalue 2 and mixes with no other.

    Args:
        spectrum: Eigenvalues of at least 0, as many as an input has components.
        noise: Standard deviation of what is added to the targets X w.
        examples: For training, more than there are eigenvalues.
        test_examples: Likewise.
        seed: Of rotation, weights and noise.

    >>> (inputs, targets), _ = planted(spectrum=[4, 1], examples=10)
    >>> torch.linalg.eigvalsh(2 * inputs.T @ inputs / 10).round(decimals=12)
    tensor([1., 4.], dtype=torch.float64)
    """
    numbers = isinstance(spectrum, Sequence) and all(
        type(x) in (int, float) and 0 <= x < math.inf for x in spectrum
    )
    if not numbers or not spectrum:
        raise InputError(f"planted needs a spectrum of numbers of at least 0, got {spectrum}")
    d = len(spectrum)
    _require_whole("planted", d + 1, examples=examples, test_examples=test_examples)
    _require_least("planted", noise=noise)
    rng = stream(seed, 0)
    turned = _orthonormal(d, d, rng) * np.sqrt(np.array(spectrum) / 2)  # (d, d) columns
    weights = rng.standard_normal(d)
    parts = []
    for part, total in enumerate((examples, test_examples)):
        own = stream(seed, 1, part)
        columns = _orthonormal(total, d + 1, own, first=np.ones(total))[:, 1:]
        inputs = math.sqrt(total) * columns @ turned.T  # (N, d)
        targets = inputs @ weights + noise * own.standard_normal(total)
        parts.append((torch.from_numpy(inputs), torch.from_numpy(targets)[:, None]))
    return parts[0], parts[1]


def _orthonormal(
    rows: int, columns: int, rng: np.random.Generator, *, first: Matrix | None = None
) -> Matrix:
    """Return a random matrix with orthonormal columns, perhaps the first along a vector."""
    drawn = rng.standard_normal((rows, columns))
    if first is not None:
        drawn[:, 0] = first
    return np.linalg.qr(drawn)[0]


def _require_whole(name: str, least: int, **numbers: Any) -> None:
    for key, value in numbers.items():
        if not (type(value) is int and value >= least):
            raise InputError(
                f"{name} needs {key} to be a whole number of at least {least}, got {value}: "
                "change data_options"
            )


def _require_least(name: str, **numbers: Any) -> None:
    for key, value in numbers.items():
        if not (type(value) in (int, float) and 0 <= value < math.inf):
            raise InputError(
                f"{name} needs {key} to be a number of at least 0, got {value}: change data_options"
            )
