"""Runs compared in pairs that share seed, split and start: contrasts with their intervals.

A positive measure is compared by the ratio of a pair, on logarithms; an accuracy or a gap by the
difference. The interval is Student's over the pairs: with a new split for each seed it covers
split, start and order of the data at once (a bootstrap of ten does not reach its level).
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sharpness.errors import InputError
from sharpness.intervals import t_interval
from sharpness.results import Comparison


def paired_difference(a: Tensor, b: Tensor) -> tuple[float, float, float]:
    """Return mean, low and high of a - b over pairs, the bounds of Student's 95 % interval.

    Pairs with a NaN do not count; with fewer than two the bounds are NaN: unknown, not 0.

    Args:
        a: One number for each pair, shape (s,).
        b: Its partners, shape (s,).

    >>> a, b = torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3)
    >>> [round(x, 4) for x in paired_difference(a, b)]  # 2 -+ 4.3027 / sqrt(3)
    [2.0, -0.4841, 4.4841]
    """
    if a.shape != b.shape or a.ndim != 1:
        raise InputError(
            f"a paired comparison needs two shapes (s,), got {tuple(a.shape)} and "
            f"{tuple(b.shape)}: give one number for each pair"
        )
    return t_interval(a.double() - b.double())


def paired_ratio(a: Tensor, b: Tensor) -> tuple[float, float, float]:
    """Return the geometric mean of a / b over pairs, with Student's 95 % interval of its log.

    Raises:
        InputError: If a number is not positive.

    >>> ratios = torch.tensor([2.0, 4.0, 8.0])  # 4 times 2^-1, 2^0, 2^1
    >>> [round(x, 2) for x in paired_ratio(ratios, torch.ones(3))]  # 2^(2 -+ 4.3027 / sqrt(3))
    [4.0, 0.71, 22.38]
    """
    for numbers in (a, b):
        if (numbers <= 0).any():
            raise InputError(
                f"a ratio needs positive numbers, got {float(numbers.min()):g}: compare differences"
            )
    mean, low, high = paired_difference(a.double().log(), b.double().log())
    return math.exp(mean), math.exp(low), math.exp(high)


def compared(
    values: Mapping[str, Mapping[str, Sequence[float]]],
    reached: Mapping[str, Sequence[bool]],
    seeds: Sequence[int],
    contrasts: Mapping[str, tuple[str, str]],
    *,
    positive: Sequence[str],
    spec: Mapping[str, object],
) -> Comparison:
    """Return the comparison of groups of runs, one run of each group for each seed.

    Args:
        values: By measure and group, one number for each seed.
        reached: By group, whether the run of each seed met the training loss that all were to
            meet. A pair counts where both did.
        contrasts: By name, the group and its reference.
        positive: The measures compared by ratio, group / reference; all others are compared by
            difference, reference - group, which is Keskar's generalization gap for an accuracy.
        spec: Of the runs compared.
    """
    groups = list(reached)
    table = {
        measure: torch.tensor([list(by_group[g]) for g in groups], dtype=torch.float64)
        for measure, by_group in values.items()
    }
    met = torch.tensor([list(reached[g]) for g in groups])  # (g, s)
    ratios: dict[str, list[tuple[float, float, float]]] = {}
    differences: dict[str, list[tuple[float, float, float]]] = {}
    pairs: list[int] = []
    for group, reference in contrasts.values():
        i, j = groups.index(group), groups.index(reference)
        both = met[i] & met[j]
        pairs.append(int(both.sum()))
        for measure, numbers in table.items():
            a, b = numbers[i][both], numbers[j][both]
            if measure in positive:
                usable = not ((a <= 0).any() or (b <= 0).any())  # else the ratio is unknown
                ratio = paired_ratio(a, b) if usable else (math.nan,) * 3
                ratios.setdefault(f"{measure}_ratio", []).append(ratio)
            else:
                found = paired_difference(b, a)
                differences.setdefault(f"{measure}_difference", []).append(found)
    return Comparison(
        groups=groups,
        seeds=torch.tensor(list(seeds)),
        values=table,
        reached=met,
        contrasts=list(contrasts),
        ratios={k: torch.tensor(v, dtype=torch.float64) for k, v in ratios.items()},
        differences={k: torch.tensor(v, dtype=torch.float64) for k, v in differences.items()},
        pairs=torch.tensor(pairs),
        spec={"algorithm": "compared", "contrasts": {k: list(v) for k, v in contrasts.items()}}
        | dict(spec),
    )


def geometric_mean(numbers: Tensor) -> float:
    """Return exp of the mean logarithm of numbers, NaN ones left out; NaN if one is not positive.

    >>> round(geometric_mean(torch.tensor([1.0, 4.0])), 6)
    2.0
    """
    known = numbers[~numbers.isnan()].double()
    usable = len(known) and (known > 0).all()
    return math.exp(float(known.log().mean())) if usable else math.nan
