"""Runs compared in pairs that share seed, split and start: contrasts with their intervals.

A positive measure is compared by the ratio of a pair, on logarithms; an accuracy or a gap by the
difference. The interval is Student's over the pairs: with a new split for each seed it covers
split, start and order of the data at once (a bootstrap of ten does not reach its level).
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from sharpness.errors import InputError
from sharpness.intervals import t_interval
from sharpness.results import Comparison, Run
from sharpness.training_config import completed

# What makes two runs a pair rather than two groups.
SEEDS = ("seed", "order_seed", "split_seed")
# What may differ between runs and is no factor: how they were computed, not what.
IMMATERIAL = (
    *(*SEEDS, "threads", "device", "deterministic", "check_every", "checkpoint_losses"),
    *("checkpoint_updates", "checkpoint_geometric", "keep_diverged", "compile", "fast_gemm"),
)
SAME = ("data", "loss")  # must not differ
# Words of the names of measures compared by difference; all others are positive.
BY_DIFFERENCE = ("accuracy", "gap", "share")
MATCHED = 1.1  # training losses whose ratio is beyond this are warned of


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
    spec: Mapping[str, object],
) -> Comparison:
    """Return the comparison of groups of runs, one run of each group for each seed.

    Args:
        values: By measure and group, one number for each seed.
        reached: By group, whether the run of each seed met the training loss that all were to
            meet. A pair counts where both did.
        contrasts: By name, the group and its reference.
            Measures are compared by ratio, group / reference; accuracies, gaps and shares by
            difference, reference - group, which is Keskar's generalization gap for an accuracy.
        spec: Of the runs compared.

    >>> values = {"test_accuracy": {"SB": [98.0, 97.0], "LB": [97.0, 96.0]}}
    >>> reached = {"SB": [True, True], "LB": [True, True]}
    >>> found = compared(values, reached, [0, 1], {"LB / SB": ("LB", "SB")}, spec={})
    >>> found.differences["test_accuracy_difference"][0, 0]  # Keskar's gap, SB - LB
    tensor(1., dtype=torch.float64)
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
            if not by_difference(measure):
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


def by_difference(measure: str) -> bool:
    """Say whether a measure is compared by difference, as accuracies, gaps and shares are.

    >>> by_difference("test_accuracy"), by_difference("test_loss")
    (True, False)
    """
    return any(word in measure for word in BY_DIFFERENCE)


def compare(
    runs: Mapping[str, Run],
    numbers: Mapping[str, Mapping[str, float]],
    *,
    groups: Mapping[str, str] | None = None,
) -> Comparison:
    """Return the runs grouped by what differs, and the effect of each factor in pairs over seeds.

    A factor is an entry of ``TrainConfig`` that differs between runs, other than a seed. Two
    groups are contrasted where one factor differs between them and every other is the same, so
    that an interaction shows: each factor has an effect at each level of the others. Runs of one
    seed (initialization, order and split) are pairs.

    Args:
        runs: By name.
        numbers: What is compared of each run, by the same names.
        groups: Of each run, by the same names; its runs are then paired by their seeds if those
            tell them apart, else in this order. Default: by what differs, and a run from a
            checkpoint, of which no training is known, is a group of its own.

    Raises:
        InputError: If there are fewer than two groups, runs of different data or loss, or two
            runs of one group and one seed.

    >>> from sharpness.analyses import run_numbers
    >>> from sharpness.training import TrainConfig, train
    >>> runs = {f"{size}": train(TrainConfig(batch_size=size, updates=3)) for size in (8, 600)}
    >>> found = compare(runs, {name: run_numbers(run) for name, run in runs.items()})
    >>> found.groups, found.contrasts
    (['batch_size 8', 'batch_size 600'], ['batch_size 600 / 8'])
    """
    if len(runs) < 2:
        raise InputError(f"compare needs at least two runs, got {len(runs)}: give more")
    _require_same(runs)
    names = list(runs)
    levels = _levels(runs) if groups is None else {n: {"group": groups[n]} for n in names}
    titles = {name: _title(levels[name]) for name in names}
    by_group = {
        titles[name]: levels[name] for name in sorted(names, key=lambda n: _order(levels, n))
    }
    if len(by_group) < 2:
        raise InputError(
            f"compare needs runs that differ in more than their seeds, got {len(runs)} of "
            f"{next(iter(by_group)) or 'one configuration'}: give runs of another batch size, say"
        )
    units = _units(runs, titles)
    seeds = sorted(set(units.values()))
    places = {(titles[name], units[name]): name for name in names}
    measures = list(dict.fromkeys(key for name in names for key in numbers[name]))

    def row(group: str, measure: str) -> list[float]:
        found = (places.get((group, unit)) for unit in seeds)
        return [numbers[n].get(measure, math.nan) if n else math.nan for n in found]

    def met(group: str) -> list[bool]:
        found = (places.get((group, unit)) for unit in seeds)
        return [n is not None and runs[n].has_met for n in found]

    contrasts = effects(by_group)
    known = {m: {g: row(g, m) for g in by_group} for m in measures}
    return compared(
        {m: rows for m, rows in known.items() if not _all_nan(rows)},
        {group: met(group) for group in by_group},
        seeds,
        contrasts,
        spec={
            "runs": {name: titles[name] for name in names},
            "levels": by_group,
            "other_examples": _other_examples(runs, units),
            "stopped": sorted({run.stopped for run in runs.values()}),
        },
    )


def effects(levels: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
    """Return the contrasts of groups, each a group and its reference, by name.

    Args:
        levels: Of the factors, by group, in the order of the levels. The reference is the first
            level. A group that differs from every other one in several factors at once is
            contrasted with the first group, under a name that has them all.

    >>> at = [{"B": B, "rate": rate} for B in (8, 600) for rate in (0.1, 0.2)]
    >>> list(effects({str(i): x for i, x in enumerate(at)}))[:2]
    ['B 600 / 8 at rate 0.1', 'B 600 / 8 at rate 0.2']
    """
    factors = list(next(iter(levels.values())))
    groups = list(levels)
    found: dict[str, tuple[str, str]] = {}
    for factor in factors:
        for reference, group in combinations(groups, 2):
            a, b = levels[reference], levels[group]
            if [f for f in factors if a[f] != b[f]] != [factor]:
                continue
            first = next(g for g in groups if _but(levels[g], factor) == _but(a, factor))
            if reference == first:
                found[_name(b, a, [factor])] = (group, reference)
    met = {group for pair in found.values() for group in pair}
    for group in groups[1:]:
        if group not in met:
            a, b = levels[groups[0]], levels[group]
            found[_name(b, a, [f for f in factors if a[f] != b[f]])] = (group, groups[0])
    return found


def _name(group: Mapping[str, Any], reference: Mapping[str, Any], factors: Sequence[str]) -> str:
    changed = ", ".join(f"{f} {_level(group[f])} / {_level(reference[f])}" for f in factors)
    changed = changed.removeprefix("group ")
    rest = ", ".join(f"{f} {_level(x)}" for f, x in group.items() if f not in factors)
    return f"{changed} at {rest}" if rest else changed


def _but(level: Mapping[str, Any], factor: str) -> dict[str, Any]:
    return {f: x for f, x in level.items() if f != factor}


def _title(level: Mapping[str, Any]) -> str:
    return ", ".join(f"{f} {_level(x)}" for f, x in level.items()).removeprefix("group ")


def _level(x: Any) -> str:
    return f"{x:g}" if isinstance(x, float) else "none" if x is None else str(x)


def _levels(runs: Mapping[str, Run]) -> dict[str, dict[str, Any]]:
    """Return the levels of all factors, by run."""
    if any(run.stopped == "read" for run in runs.values()):
        return {name: {"group": name} for name in runs}
    records = {name: completed(run.spec["train"]) for name, run in runs.items()}
    keys = [key for key in next(iter(records.values())) if key not in IMMATERIAL]
    varied = [k for k in keys if len({str(r.get(k)) for r in records.values()}) > 1]
    return {name: {key: record.get(key) for key in varied} for name, record in records.items()}


def _order(levels: Mapping[str, Mapping[str, Any]], name: str) -> list[Any]:
    """Return by what a run's group is sorted: numbers by size, others as they come."""
    names, key = list(levels), []
    for factor, x in levels[name].items():
        column = [levels[n][factor] for n in names]
        numeric = all(isinstance(y, int | float) for y in column)
        key.append(x if numeric else column.index(x))
    return key


def _units(runs: Mapping[str, Run], titles: Mapping[str, str]) -> dict[str, int]:
    """Return what pairs the runs: the seed where it tells those of a group apart, else a number."""
    records = {name: run.spec["train"] for name, run in runs.items()}
    seeds = {n: tuple(r.get(key) for key in SEEDS) for n, r in records.items()}
    if any(run.stopped == "read" for run in runs.values()):
        count: dict[str, int] = {}
        units = {}
        for name in runs:
            units[name] = count.get(titles[name], 0)
            count[titles[name]] = units[name] + 1
        return units
    taken: dict[tuple[str, Any], str] = {}
    for name, seed in seeds.items():
        other = taken.setdefault((titles[name], seed), name)
        if other != name:
            raise InputError(
                f"compare needs one run of each seed in a group, got {other} and {name} of "
                f"{titles[name] or 'one configuration'}, seed {seed[0]}: leave one out"
            )
    one = len(set(seeds.values())) == len({seed[0] for seed in seeds.values()})
    known = sorted(set(seeds.values()), key=lambda seed: [x or 0 for x in seed])
    return {name: seed[0] if one else known.index(seed) for name, seed in seeds.items()}


def _require_same(runs: Mapping[str, Run]) -> None:
    first, *others = runs
    for key in SAME:
        for other in others:
            a, b = (runs[name].spec["train"][key] for name in (first, other))
            if a != b:
                raise InputError(
                    f"compare needs runs of one {key}, got {a} in {first} and {b} in {other}: "
                    "compare those of each by themselves"
                )


def _other_examples(runs: Mapping[str, Run], units: Mapping[str, int]) -> list[str]:
    """Return the parts of the data that differ between runs of one seed."""
    found = []
    for part in ("train", "test"):
        seen: dict[int, set[str]] = {}
        for name, run in runs.items():
            seen.setdefault(units[name], set()).add(run.spec["data"][f"{part}_sha256"])
        if any(len(digests) > 1 for digests in seen.values()):
            found.append(part)
    return found


def _all_nan(rows: Mapping[str, Sequence[float]]) -> bool:
    return all(math.isnan(x) for row in rows.values() for x in row)


def geometric_mean(numbers: Tensor) -> float:
    """Return exp of the mean logarithm of numbers, NaN ones left out; NaN if one is not positive.

    >>> round(geometric_mean(torch.tensor([1.0, 4.0])), 6)
    2.0
    """
    known = numbers[~numbers.isnan()].double()
    usable = len(known) and (known > 0).all()
    return math.exp(float(known.log().mean())) if usable else math.nan
