"""Student's interval of a mean, the one interval of all that is averaged over draws or pairs."""

import math

from scipy.special import ndtri, stdtrit
from torch import Tensor

LEVEL = 0.95
NORMAL = float(ndtri((1 + LEVEL) / 2))  # standard errors to either side, where they are known


def t_interval(samples: Tensor) -> tuple[float, float, float]:
    """Return mean, low and high of the 95 % interval of independent samples, shape (s,).

    NaN ones do not count; with fewer than two others the bounds are NaN: unknown, not 0.

    >>> import torch
    >>> [round(x, 4) for x in t_interval(torch.tensor([1.0, 2.0, 3.0]))]  # 2 -+ 4.3027 / sqrt(3)
    [2.0, -0.4841, 4.4841]
    """
    known = samples[~samples.isnan()].double()
    if len(known) < 2:
        return (float(known.mean()) if len(known) else math.nan), math.nan, math.nan
    mean = float(known.mean())
    half = float(stdtrit(len(known) - 1, (1 + LEVEL) / 2) * known.std() / math.sqrt(len(known)))
    return mean, mean - half, mean + half
