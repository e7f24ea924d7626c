"""What a comparison says in words: its tables, what is shown and what is not, and its confounds.

An effect is shown when its 95 % interval leaves out "no difference", a ratio of 1 or a difference
of 0; one comparison in twenty does so by chance, so that of many comparisons some will.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sharpness.comparison import MATCHED, by_difference, geometric_mean
from sharpness.results import Comparison, Result, Run
from sharpness.text import interval, table, wrapped

LABELS = {
    "train_loss": "training loss",
    "test_loss": "test loss",
    "train_accuracy": "training accuracy %",
    "test_accuracy": "test accuracy %",
    "accuracy_gap": "own gap in accuracy",
    "loss_gap": "own gap in loss",
    "lambda_1": "lambda_1",
    "adaptive_lambda_1": "adaptive lambda_1",
    "distance": "distance from start",
    "updates": "updates",
    "examples": "examples seen",
}
PREFIXES = {  # before an epsilon
    "metric_2_1_": "Metric 2.1",
    "subspace_2_1_": "Metric 2.1 in subspaces",
    "first_order_share_": "first-order share",
}
LEGEND = (
    "B - A of the test accuracy is the generalization gap of Keskar et al. (2017); a run's own gap",
    "is train - test for the accuracy and test - train for the loss.",
)
LIKELY = 20  # comparisons of which one is shown by chance


def label(measure: str) -> str:
    """Return what a measure is called in tables.

    >>> label("train_loss"), label("metric_2_1_1e-3"), label("subspace_2_1_5e-4")
    ('training loss', 'Metric 2.1 (1e-3)', 'Metric 2.1 in subspaces (5e-4)')
    """
    for start, words in PREFIXES.items():
        if measure.startswith(start):
            return f"{words} ({measure.removeprefix(start)})"
    return LABELS.get(measure, measure)


def lines(found: Comparison) -> list[str]:
    """Return the comparison as text: groups, effects with intervals, what is shown, remarks."""
    said = [*group_table(found), ""]
    for i, contrast in enumerate(found.contrasts):
        group, reference = found.spec["contrasts"][contrast]
        pairs = _count(int(found.pairs[i]), "pair")
        said += [f"{contrast}   ({pairs}; A: {group}, B: {reference})", *_effects(found, i), ""]
    said += [*LEGEND, "", "In words"]
    words = [*sentences(found), *remarks(found)]
    return said + [line for text in words for line in wrapped(f"- {text}", "  ")]


def group_table(found: Comparison) -> list[str]:
    """Return the table of means over the runs that count, a row for each measure."""
    rows = [
        [
            "runs",
            *(f"{int(met.sum())} of {_given(found, i)}" for i, met in enumerate(found.reached)),
        ]
    ]
    for measure, numbers in found.values.items():
        means = [_mean(measure, row[met]) for row, met in zip(numbers, found.reached, strict=True)]
        rows.append([label(measure), *(_number(mean) for mean in means)])
    note = "Means over runs, geometric but of accuracies, gaps and shares."
    return [*table(["", *found.groups], rows), note]


def sentences(found: Comparison) -> list[str]:
    """Return for each contrast which differences are shown, which are not, and which unknown."""
    said = []
    for i, contrast in enumerate(found.contrasts):
        words: dict[str, list[str]] = {}
        for measure in found.values:
            words.setdefault(_outcome(found, measure, i), []).append(label(measure))
        parts = [
            f"{outcome}: {', '.join(words[outcome])}"
            for outcome in ("larger", "smaller", "no difference shown", "unknown")
            if outcome in words
        ]
        if found.pairs[i] < 2:
            parts = [
                f"all is unknown with {_count(int(found.pairs[i]), 'pair')}, for an interval "
                "needs two"
            ]
        said.append(f"{contrast}: {'; '.join(parts)}.")
    return said


def remarks(found: Comparison) -> list[str]:
    """Return what a reader must know before the intervals are believed."""
    said = [
        f"WARNING {contrast}: taken at training losses whose ratio is {ratio:.3g}, and sharpness "
        "of cross-entropy falls with the training loss"
        for contrast, ratio in _losses(found).items()
        if ratio > MATCHED or ratio < 1 / MATCHED
    ]
    for part in found.spec.get("other_examples", []):
        said.append(f"WARNING runs of one seed have other {part} examples or labels")
    for i, (group, met) in enumerate(zip(found.groups, found.reached, strict=True)):
        missed = _given(found, i) - int(met.sum())
        if missed:
            said.append(
                f"NOTE {missed} of {_count(_given(found, i), 'run')} of {group} did not meet the "
                "training loss asked for: left out"
            )
    for measure, numbers in found.values.items():
        unknown = int((numbers.isnan() & found.reached).sum())
        if unknown:
            why = " (it did not converge)" if measure.endswith("lambda_1") else ""
            said.append(
                f"NOTE {label(measure)} of {_count(unknown, 'run')} is unknown{why}: left out"
            )
    said += [f"NOTE {text}" for text in confounds(found)]
    judged = [_outcome(found, m, i) for m in found.values for i in range(len(found.contrasts))]
    count = sum(outcome != "unknown" for outcome in judged)
    if count >= LIKELY:
        said.append(
            f"NOTE of {count} comparisons with 95 % intervals, some {round(count / LIKELY)} would "
            "show a difference where there is none"
        )
    return said


def confounds(found: Comparison) -> list[str]:
    """Return what else differs where a factor does.

    Equal epochs are not equal updates, and neither are at equal training loss.
    """
    levels = found.spec.get("levels", {})
    said = []
    for i, contrast in enumerate(found.contrasts):
        group, reference = found.spec["contrasts"][contrast]
        a, b = levels.get(group, {}), levels.get(reference, {})
        changed = [factor for factor in a if a[factor] != b[factor]]
        if len(changed) > 1:
            said.append(f"{contrast}: {' and '.join(changed)} differ at once, and share the effect")
        if changed in (["model"], ["model_options"]):
            said.append(
                f"{contrast}: the networks differ, and Metric 2.1 grows with the number of "
                "parameters"
            )
        work = [found.ratios.get(f"{m}_ratio") for m in ("updates", "examples")]
        if all(x is not None for x in work):
            updates, examples = (float(x[i][0]) for x in work if x is not None)
            if max(abs(math.log(x)) for x in (updates, examples)) > math.log(MATCHED):
                said.append(
                    f"{contrast}: {updates:.3g} times the updates and {examples:.3g} times the "
                    "examples"
                    + (", as equal epochs are not equal updates" if _even(examples) else "")
                    + (", as equal updates are not equal epochs" if _even(updates) else "")
                )
    factors = {factor for level in levels.values() for factor in level}
    if "batch_size" in factors and "learning_rate" not in factors:
        said.append("the learning rate was the same at all batch sizes, and was not scaled")
    return said


def _even(ratio: float) -> bool:
    return 1 / MATCHED < ratio < MATCHED


def _effects(found: Comparison, i: int) -> list[str]:
    rows = []
    for measure in found.values:
        numbers, kind = _numbers(found, measure, i)
        what = "B - A" if kind == "difference" else "A / B"
        rows.append([label(measure), what, interval(numbers), _outcome(found, measure, i)])
    return table(["", "", "95 % interval", ""], rows)


def _numbers(found: Comparison, measure: str, i: int) -> tuple[list[float], str]:
    kind = "difference" if by_difference(measure) else "ratio"
    effects = found.differences if kind == "difference" else found.ratios
    return effects[f"{measure}_{kind}"][i].tolist(), kind


def _outcome(found: Comparison, measure: str, i: int) -> str:
    """Return how the group stands to its reference."""
    (_, low, high), kind = _numbers(found, measure, i)
    if math.isnan(low):
        return "unknown"
    none = 0.0 if kind == "difference" else 1.0
    if low <= none <= high:
        return "no difference shown"
    above = low > none
    if kind == "difference":  # reference - group
        above = not above
    return "larger" if above else "smaller"


def _losses(found: Comparison) -> dict[str, float]:
    if "train_loss_ratio" not in found.ratios:
        return {}
    ratios = found.ratios["train_loss_ratio"][:, 0].tolist()
    known = dict(zip(found.contrasts, ratios, strict=True))
    return {contrast: ratio for contrast, ratio in known.items() if not math.isnan(ratio)}


def _given(found: Comparison, i: int) -> int:
    """Return how many runs a group has."""
    known = torch.stack([~numbers[i].isnan() for numbers in found.values.values()])  # (measures, s)
    return int(known.any(dim=0).sum())


def _mean(measure: str, numbers: Tensor) -> float:
    return float(numbers.nanmean()) if by_difference(measure) else geometric_mean(numbers)


def _number(x: float) -> str:
    return "unknown" if math.isnan(x) else f"{x:.4g}"


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def mismatches(results: Mapping[str, Result]) -> list[str]:
    """Return in words where values were taken at another training loss or on other examples.

    Args:
        results: By name; each is held against the first.
    """
    taken = {name: _taken(result) for name, result in results.items()}
    known = {name: where for name, where in taken.items() if where}
    said: list[str] = []
    for name in list(known)[1:]:
        first = next(iter(known))
        a, b = known[first], known[name]
        if a["loss"] and b["loss"] and not _even(b["loss"] / a["loss"]):
            said.append(
                f"WARNING {first} and {name} are of training losses {a['loss']:.3g} and "
                f"{b['loss']:.3g}, and sharpness of cross-entropy falls with the training loss"
            )
        if a["examples"] != b["examples"]:
            said.append(f"WARNING {first} and {name} are of other examples or labels")
    return said


def _taken(result: Result) -> dict[str, Any]:
    """Return at which training loss and on which examples a value was taken, nothing if unknown."""
    if isinstance(result, Run):
        losses = result.history.get("train_loss", [None])
        loss = None if losses[-1] is None else float(losses[-1])
        return {"loss": loss, "examples": ("train", result.spec["data"]["train_sha256"], None)}
    spec = result.spec.get("operator", result.spec)
    objective = spec.get("objective") if isinstance(spec, dict) else None
    if not objective or "data_sha256" not in objective:
        return {}
    part = [objective[key] for key in ("split", "data_sha256")]
    sample = (objective["examples"], objective["sample_seed"]) if _is_sample(objective) else None
    end = objective["run"].get("end", {})
    return {"loss": end.get("train_loss"), "examples": (*part, sample)}


def _is_sample(objective: dict[str, Any]) -> bool:
    return bool(objective["examples"] != objective["of"])
