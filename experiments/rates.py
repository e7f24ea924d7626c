"""What batch size and learning rate do together: the effect of each at every level of the other.

A table of main effects would mislead, for the two interact: at some rates the effect of the batch
size vanishes. And each batch size may have its own best rate, so that they are also compared there;
it is chosen on one part of the held-out data and what it gives is counted on the other.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sharpness import plots
from sharpness.comparison import effects
from sharpness.data import batches, size, stratified, take
from sharpness.finite import require_finite
from sharpness.micro_batches import micro_batch_of
from sharpness.objective import Objective
from sharpness.results import Comparison, Trajectory
from sharpness.text import interval, table, wrapped
from sharpness.training import problem_of

from .design import Arm
from .recipe import Finding
from .trainings import Training
from .verdict import (
    CLAIM,
    SOURCE,
    along_note,
    draw_along,
    finish_along,
    group_rows,
    key,
    left_out,
    mean_interval,
    remarks,
    where,
)

CHOICE = 297 / 1197  # of the held-out examples, on which rates are chosen
Best = dict[str, dict[str, float]]  # by condition and batch size, the rate


def held_out(job: Training) -> dict[str, float]:
    """Return loss and accuracy at the end on the two halves of the held-out data.

    The rate is chosen by the numbers of ``choice`` and what it gives told by those of ``report``.
    """
    problem, end = problem_of(job.config), job.run().end
    part = problem.data.test
    chosen = stratified(part[1], max(1, round(CHOICE * size(part))), job.config.split_seed or 0)
    left = torch.ones(size(part), dtype=torch.bool)
    left[torch.from_numpy(chosen)] = False
    found: dict[str, float] = {}
    for name, index in (("choice", (~left).nonzero()[:, 0]), ("report", left.nonzero()[:, 0])):
        share = take(part, index)
        f = Objective(
            problem.model,
            batches(share, micro_batch_of(problem.model, share, problem.loss)),
            problem.loss,
            metrics=problem.metrics,
        )
        measured = f.evaluate(end)
        require_finite(f, f"the {name} of a rate", end, *measured.values())
        for measure, value in measured.items():
            found[f"{name}_{measure}"] = float(value) * (100 if measure == "accuracy" else 1)
    return found


def best(
    values: Mapping[str, Mapping[str, Sequence[float]]],
    reached: Mapping[str, Sequence[bool]],
    conditions: Mapping[str, float],
    arms: Sequence[Arm],
) -> Best:
    """Return each batch size's rate of the best mean accuracy on the examples for that choice.

    Among the rates at which the most seeds met the training loss; the lower rate of equals.
    Without an accuracy, the rate of the least loss.
    """
    by_accuracy = "choice_accuracy" in values
    scores = values["choice_accuracy" if by_accuracy else "choice_loss"]
    found: Best = {}
    for condition in conditions:
        ranked: dict[str, tuple[int, float, float]] = {}
        for arm in arms:
            group = f"{condition}, {arm.name}"
            met = [x for x, ok in zip(scores[group], reached[group], strict=True) if ok]
            mean = sum(met) / len(met) if met else -math.inf
            rank = (len(met), mean if by_accuracy or not met else -mean, -arm.learning_rate)
            B = str(arm.batch_size)
            if B not in ranked or rank > ranked[B]:
                ranked[B] = rank
                found.setdefault(condition, {})[B] = arm.learning_rate
    return found


def contrasts(arms: Sequence[Arm], chosen: Best) -> dict[str, tuple[str, str]]:
    """Return the effects of batch size at each rate and of the rate at each batch size.

    And of the batch size where each has its own best rate.
    """
    levels = {arm.name: {"batch": arm.batch_size, "rate": arm.learning_rate} for arm in arms}
    within = effects(levels)
    names = {(arm.batch_size, arm.learning_rate): arm.name for arm in arms}
    found = {}
    for condition, rates in chosen.items():
        for contrast, (group, reference) in within.items():
            found[f"{condition}: {contrast}"] = (
                f"{condition}, {group}",
                f"{condition}, {reference}",
            )
        first, *others = (int(B) for B in rates)
        at = names[first, rates[str(first)]]
        for other in others:
            found[f"{condition}: {best_name(other, first)}"] = (
                f"{condition}, {names[other, rates[str(other)]]}",
                f"{condition}, {at}",
            )
    return found


def best_name(size: int, reference: int) -> str:
    """Return the name of the contrast of two batch sizes, each at its best rate."""
    return f"batch {size} / {reference}, each at its best rate"


def summary(found: Comparison) -> str:
    """Return the tables of groups and effects and the verdict, as text."""
    design, seeds = found.spec["design"], len(found.seeds)
    lines = [
        f"Batch size and rate at training loss {design['level']:g}: {design['model']} on "
        f"{design['data']}, {design['loss']}, {seeds} seed{'s' * (seeds > 1)}",
        *wrapped(f"Claim: {CLAIM}", "  "),
        *wrapped(f"Source: {SOURCE}", "  "),
        "",
        *group_rows(found, leave_out=("test_accuracy", "test_loss")),
        "",
    ]
    for condition, noise in found.spec["conditions"].items():
        lines += [f"Effects {where(noise, found)}", *_effects(found, condition), ""]
    lines += wrapped(
        "Ratios of lambda_1, of the adaptive lambda_1 and of Metric 2.1, and the gap in points of "
        "test accuracy, the one behind the stroke minus the one before it (without accuracy the "
        "ratio of test losses); paired over seeds, with 95 % t-intervals. The best rates were "
        "chosen on a quarter of the held-out examples and all test numbers counted on the others.",
        "",
    )
    lines += ["", *remarks(found), "Verdict"]
    lines += [line for finding in check(found) for line in wrapped(f"- {finding.sentence}", "  ")]
    return "\n".join(lines)


def check(found: Comparison) -> list[Finding]:
    """Return the sentences that the intervals allow, on the smallest and the largest batch."""
    findings = []
    sizes, rates = _factors(found)
    small, large = sizes[0], sizes[-1]
    for condition, noise in found.spec["conditions"].items():
        place = where(noise, found)
        for what, name in (*SHARPNESS, _generalization(found)):
            findings.append(_across(found, condition, place, what, name, (small, large), rates))
        findings.append(_at_best(found, condition, place, (small, large)))
        findings.append(_of_rate(found, condition, place, sizes, rates))
    return findings


SHARPNESS = (("lambda_1", "lambda_1"), ("Metric 2.1", "metric"))


def rate_figure(found: Comparison) -> bytes:
    """Return lambda_1, Metric 2.1 and, below, generalization against the rate.

    A column for each condition and a band over the seeds for each batch size, whose best rate is
    ringed.
    """
    conditions, (sizes, rates) = found.spec["conditions"], _factors(found)
    rows = {
        "lambda_1": r"$\lambda_1$ of the Hessian",
        "metric": rf"Metric 2.1 (%), $\epsilon$ = {found.spec['design']['epsilon']:g}",
        _last(found): "test accuracy (%)" if "report_accuracy" in found.values else "test loss",
    }
    made, grid = plots.figure(4.8 * len(conditions) + 0.6, 9.2, rows=3, columns=len(conditions))
    for column, (condition, noise) in zip(grid.T, conditions.items(), strict=True):
        for ax, (name, title) in zip(column, rows.items(), strict=True):
            for style, B in enumerate(sizes):
                _draw(found, condition, name, B, rates, ax, style)
            ax.set_xscale("log")
            ax.set_xticks(rates, [f"{rate:g}" for rate in rates])
            ax.minorticks_off()
            if ax is grid[list(rows).index(name)][0]:
                ax.set_ylabel(title)
        column[0].set_title(where(noise, found).capitalize(), loc="left", fontsize="medium")
        column[-1].set_xlabel("learning rate")
    for row, name in zip(grid, rows, strict=True):
        for axes in [[ax] for ax in row] if name == "report_accuracy" else [row]:
            plots.frame(axes, log=name != "report_accuracy")
    grid[0][0].legend(fontsize="small", frameon=False)
    made.supxlabel(
        f"all at training loss {found.spec['design']['level']:g}; lines: means, geometric where "
        f"the axis is logarithmic; bands: their 95 % intervals over "
        f"{len(found.seeds)} seeds;\nrings: best rate, chosen on other held-out examples"
        + left_out(found.spec["unconverged"], "runs"),
        fontsize="small",
    )
    return plots.png(made)


def along_figure(
    found: Comparison, along: Mapping[str, Mapping[str, Sequence[Trajectory]]]
) -> bytes:
    """Return lambda_1 and Metric 2.1 against the training loss, a column for each rate.

    Two rows for each condition, a band over the seeds for each batch size.
    """
    conditions, (sizes, rates) = found.spec["conditions"], _factors(found)
    made, grid = plots.figure(
        3.1 * len(rates) + 0.6,
        5.4 * len(conditions),
        rows=2 * len(conditions),
        columns=len(rates),
        sharey="row",
    )
    names = {(a["batch_size"], a["learning_rate"]): a["name"] for a in found.spec["arms"]}
    for i, condition in enumerate(conditions):
        block = grid[2 * i : 2 * i + 2]
        for column, rate in zip(block.T, rates, strict=True):
            for style, B in enumerate(sizes):
                runs = along[condition][names[B, rate]]
                draw_along(column, runs, found, label=f"batch {B}", style=style)
            labels = f"{condition}, " if len(conditions) > 1 else ""
            column[0].set_title(f"{labels}rate {rate:g}", fontsize="medium", loc="left")
        finish_along(block, found)
    made.supxlabel(along_note(found, along), fontsize="small")
    return plots.png(made)


def best_figure(found: Comparison) -> bytes:
    """Return lambda_1, Metric 2.1 and generalization of each batch size at its own best rate."""
    conditions, (sizes, _) = found.spec["conditions"], _factors(found)
    titles = {
        "lambda_1": r"$\lambda_1$ of the Hessian",
        "metric": rf"Metric 2.1 (%), $\epsilon$ = {found.spec['design']['epsilon']:g}",
        _last(found): "test accuracy (%)" if "report_accuracy" in found.values else "test loss",
    }
    made, grid = plots.figure(10.5, 3.3 * len(conditions) + 0.2, rows=len(conditions), columns=3)
    for row, (condition, noise) in zip(grid, conditions.items(), strict=True):
        for ax, (name, title) in zip(row, titles.items(), strict=True):
            arithmetic = name == "report_accuracy"
            columns = {
                f"{size}\nrate {found.spec['best'][condition][str(size)]:g}": _numbers(
                    found, condition, name, size, found.spec["best"][condition][str(size)]
                )
                for size in sizes
            }
            plots.paired(
                columns,
                ax,
                intervals=[mean_interval(numbers, arithmetic) for numbers in columns.values()],
                log=not arithmetic,
            )
            ax.set_ylabel(title)
        row[0].set_title(where(noise, found).capitalize(), loc="left", fontsize="medium")
    made.supxlabel(
        "batch size, each at its best rate   (points: seeds, lines join those of one seed; bars: "
        "mean, geometric where the axis is logarithmic, and its 95 % interval over "
        f"{len(found.seeds)} seeds)" + left_out(found.spec["unconverged"], "runs"),
        fontsize="small",
    )
    return plots.png(made)


def _last(found: Comparison) -> str:
    return "report_accuracy" if "report_accuracy" in found.values else "report_loss"


def _generalization(found: Comparison) -> tuple[str, str]:
    last = _last(found)
    return ("the test accuracy" if last == "report_accuracy" else "the test loss", last)


def _factors(found: Comparison) -> tuple[list[int], list[float]]:
    sizes = sorted({arm["batch_size"] for arm in found.spec["arms"]})
    return sizes, sorted({arm["learning_rate"] for arm in found.spec["arms"]})


def _numbers(found: Comparison, condition: str, name: str, size: int, rate: float) -> torch.Tensor:
    """Return a measure of the runs of an arm, shape (s,), NaN where they missed the loss."""
    (arm,) = (
        a for a in found.spec["arms"] if (a["batch_size"], a["learning_rate"]) == (size, rate)
    )
    i = found.groups.index(f"{condition}, {arm['name']}")
    return torch.where(found.reached[i], found.values[key(name, found)][i], torch.nan)


def _draw(
    found: Comparison,
    condition: str,
    name: str,
    size: int,
    rates: Sequence[float],
    ax: Any,
    style: int,
) -> None:
    columns = [_numbers(found, condition, name, size, rate) for rate in rates]
    bands = [mean_interval(column, arithmetic=name == "report_accuracy") for column in columns]
    plots.band(torch.tensor(rates), bands, ax, label=f"batch {size}", style=style)
    at = list(rates).index(found.spec["best"][condition][str(size)])
    ax.plot(
        [rates[at]],
        [bands[at][0]],
        "o",
        markersize=10,
        markerfacecolor="none",
        color=plots.COLORS[style % len(plots.COLORS)],
    )


def _interval(found: Comparison, name: str, contrast: str) -> tuple[list[float], float]:
    """Return the interval of a measure in a contrast, and what "no difference" is there."""
    row = found.contrasts.index(contrast)
    if name == "report_accuracy":
        return found.differences["report_accuracy_difference"][row].tolist(), 0.0
    return found.ratios[f"{key(name, found)}_ratio"][row].tolist(), 1.0


def _effects(found: Comparison, condition: str) -> list[str]:
    columns = {"lambda_1": "lambda_1", "adaptive": "adaptive_lambda_1", "Metric 2.1": "metric"}
    last = _last(found)
    columns["gap (points)" if last == "report_accuracy" else "test loss"] = last
    rows = []
    for contrast, pairs in zip(found.contrasts, found.pairs.tolist(), strict=True):
        if contrast.startswith(f"{condition}: "):
            cells = [interval(_interval(found, name, contrast)[0]) for name in columns.values()]
            rows.append([contrast.removeprefix(f"{condition}: "), str(pairs), *cells])
    return table(["", "pairs", *columns], rows)


def _side(numbers: Sequence[float], none: float) -> str:
    """Return how the larger batch or rate stands by an interval: its ratio, or SB - LB."""
    _, low, high = numbers
    if math.isnan(low):
        return "unknown"
    if low <= none <= high:
        return "not shown"
    above = low > none
    return "larger" if above == (none == 1.0) else "smaller"


def _across(
    found: Comparison,
    condition: str,
    place: str,
    what: str,
    name: str,
    sizes: tuple[int, int],
    rates: Sequence[float],
) -> Finding:
    """Return the sentence on the effect of the batch size at each rate."""
    small, large = sizes
    by_side: dict[str, list[str]] = {}
    for rate in rates:
        contrast = f"{condition}: batch {large} / {small}"
        if len(rates) > 1:
            contrast += f" at rate {rate:g}"
        numbers, none = _interval(found, name, contrast)
        side = _side(numbers, none)
        times = "x " if none == 1.0 else "gap "
        by_side.setdefault(side, []).append(f"{rate:g} ({times}{interval(numbers)})")
    words = {
        "larger": "larger at the large batch at rate",
        "smaller": "smaller at the large batch at rate",
        "not shown": "no difference shown at rate",
        "unknown": "unknown at rate",
    }
    parts = [f"{text} {', '.join(by_side[s])}" for s, text in words.items() if s in by_side]
    worse = "smaller" if name == "report_accuracy" else "larger"
    return Finding(
        f"{place.capitalize()}, {what} of batch {large} against {small}: {'; '.join(parts)}.",
        bool(by_side.keys() & {"larger", "smaller"}),
        by_side.keys() == {worse},
        by_side.keys() == {"unknown"},
    )


def _at_best(found: Comparison, condition: str, place: str, sizes: tuple[int, int]) -> Finding:
    """Return the sentence on the two batch sizes, each at its own best rate."""
    small, large = sizes
    contrast = f"{condition}: {best_name(large, small)}"
    rates = found.spec["best"][condition]
    parts, sides = [], []
    for what, name in (*SHARPNESS, _generalization(found)):
        numbers, none = _interval(found, name, contrast)
        side = _side(numbers, none)
        unit = "gap " if name == "report_accuracy" else "x "
        told = {"not shown": "no difference shown", "unknown": "unknown"}.get(side, side)
        parts.append(f"{what} {told} ({unit}{interval(numbers)})")
        worse = "smaller" if name == "report_accuracy" else "larger"
        sides.append((side, side == worse))
    return Finding(
        f"{place.capitalize()}, batch {large} at its best rate {rates[str(large)]:g} against batch "
        f"{small} at its best rate {rates[str(small)]:g}: {', '.join(parts)}.",
        any(side in ("larger", "smaller") for side, _ in sides),
        all(claimed for _, claimed in sides),
        all(side == "unknown" for side, _ in sides),
    )


def _of_rate(
    found: Comparison, condition: str, place: str, sizes: Sequence[int], rates: Sequence[float]
) -> Finding:
    """Return the sentence on the effect of the rate at each batch size."""
    if len(rates) < 2:
        text = "the rate was not varied"
        return Finding(f"{place.capitalize()}, {text}.", shown=False, as_claimed=False)
    parts, shown = [], False
    for B in sizes:
        contrast = f"{condition}: rate {rates[-1]:g} / {rates[0]:g} at batch {B}"
        effects = []
        for what, name in SHARPNESS:
            numbers, none = _interval(found, name, contrast)
            clear = _side(numbers, none) in ("larger", "smaller")
            shown |= clear
            effects.append(f"{what} by {interval(numbers)}{'' if clear else ' (not shown)'}")
        parts.append(f"{' and '.join(effects)} at batch {B}")
    return Finding(
        f"{place.capitalize()}, rate {rates[-1]:g} against {rates[0]:g} multiplies "
        f"{'; '.join(parts)}.",
        shown,
        shown,
    )
