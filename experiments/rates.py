"""What batch size and learning rate do together: the effect of each at every level of the other.

A table of main effects would mislead, for the two interact: at some rates the effect of the batch
size vanishes. And each batch size may have its own best rate, so that they are also compared there;
it is chosen on one part of the held-out data and what it gives is counted on the other. In place
of rates there may be scalings of one rate with the batch size; each batch size is then compared
with the base, at which all scalings are one training.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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

from .design import Arm, base_of
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
PARTS = ("choice", "report")
Column = float | str  # a rate, or a scaling of it
Best = dict[str, dict[str, Column]]  # by condition and batch size, the rate or scaling
LETTERS = 16  # of a footnote, in an inch


@dataclass(frozen=True)
class Grid:
    """Which arm has which batch size and which rate, or scaling of the rate."""

    factor: str  # "rate" or "scaling"
    sizes: list[int]
    columns: list[Column]
    names: dict[tuple[int, Column], str]
    base: Arm | None  # the one at the base batch size, where rates are scaled
    reference: int  # the batch size that others are contrasted with

    @property
    def other(self) -> int:
        """The batch size that the verdict contrasts with the reference."""
        return self.sizes[-1] if self.sizes[-1] != self.reference else self.sizes[0]


def grid_of(arms: Sequence[Arm]) -> Grid:
    """Return the grid of the arms of a design."""
    sizes, base = sorted({arm.batch_size for arm in arms}), base_of(arms)
    names = {(arm.batch_size, column): arm.name for arm in arms for column in arm.columns}
    return Grid(
        factor="scaling" if base else "rate",
        sizes=sizes,
        columns=list(dict.fromkeys(column for _, column in names)),
        names=names,
        base=base,
        reference=base.batch_size if base else sizes[0],
    )


def held_out(job: Training) -> dict[str, float]:
    """Return loss and accuracy at the end on the two halves of the held-out data.

    The rate is chosen by the numbers of ``choice`` and what it gives told by those of ``report``.
    """
    problem, end = problem_of(job.config), job.run().end
    if job.is_left_out():
        measures = ("loss", *problem.metrics)
        return {f"{name}_{measure}": math.nan for name in PARTS for measure in measures}
    part = problem.data.test
    chosen = stratified(part[1], max(1, round(CHOICE * size(part))), job.config.split_seed or 0)
    left = torch.ones(size(part), dtype=torch.bool)
    left[torch.from_numpy(chosen)] = False
    found: dict[str, float] = {}
    for name, index in zip(PARTS, ((~left).nonzero()[:, 0], left.nonzero()[:, 0]), strict=True):
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
    Without an accuracy, the rate of the least loss. Of scalings likewise, the first of equals.
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
                found.setdefault(condition, {})[B] = arm.columns[0]
    return found


def contrasts(arms: Sequence[Arm], chosen: Best) -> dict[str, tuple[str, str]]:
    """Return the effects of batch size at each rate and of the rate at each batch size.

    And of the batch size where each has its own best rate. A training is not contrasted with
    itself: at the base batch size all scalings are one.
    """
    grid = grid_of(arms)
    sizes = sorted(grid.sizes, key=lambda B: grid.reference != B)
    cells = {f"{B} {x}": (B, x) for B in sizes for x in grid.columns}
    within = effects({cell: {"batch": B, grid.factor: x} for cell, (B, x) in cells.items()})
    found = {}
    for condition, best_of in chosen.items():
        pairs = {name: (cells[a], cells[b]) for name, (a, b) in within.items()}
        pairs |= {
            best_name(B, grid): ((B, best_of[str(B)]), (sizes[0], best_of[str(sizes[0])]))
            for B in sizes[1:]
        }
        for contrast, cell_pair in pairs.items():
            group, reference = (f"{condition}, {grid.names[cell]}" for cell in cell_pair)
            if group != reference:
                found[f"{condition}: {contrast}"] = (group, reference)
    return found


def best_name(size: int, grid: Grid) -> str:
    """Return the name of the contrast of a batch size with the reference, each at its best."""
    return f"batch {size} / {grid.reference}, each at its best {grid.factor}"


def summary(found: Comparison) -> str:
    """Return the tables of groups and effects and the verdict, as text."""
    design, seeds, grid = found.spec["design"], len(found.seeds), _grid(found)
    lines = [
        f"Batch size and {grid.factor} at training loss {design['level']:g}: {design['model']} on "
        f"{design['data']}, {design['loss']}, {seeds} seed{'s' * (seeds > 1)}",
        *wrapped(f"Claim: {CLAIM}", "  "),
        *wrapped(f"Source: {SOURCE}{', linearly Goyal et al. (2017)' if grid.base else ''}", "  "),
        *wrapped(_scaling_note(grid), "  "),
        "",
        *group_rows(found, leave_out=("test_accuracy", "test_loss"), count=grid.base is not None),
        "",
    ]
    for condition, noise in found.spec["conditions"].items():
        lines += [f"Effects {where(noise, found)}", *_effects(found, condition), ""]
    lines += wrapped(
        "Ratios of lambda_1, of the adaptive lambda_1 and of Metric 2.1, and the gap in points of "
        "test accuracy, the one behind the stroke minus the one before it (without accuracy the "
        "ratio of test losses); paired over seeds, with 95 % t-intervals. The best "
        f"{grid.factor}s were chosen on a quarter of the held-out examples and all test numbers "
        "counted on the others.",
        "",
    )
    lines += ["", *remarks(found), "Verdict"]
    lines += [line for finding in check(found) for line in wrapped(f"- {finding.sentence}", "  ")]
    return "\n".join(lines)


def check(found: Comparison) -> list[Finding]:
    """Return the sentences that the intervals allow, on the smallest and the largest batch."""
    findings, grid = [], _grid(found)
    for condition, noise in found.spec["conditions"].items():
        place = where(noise, found)
        for what, name in (*SHARPNESS, _generalization(found)):
            findings.append(_across(found, condition, place, what, name))
        findings.append(_at_best(found, condition, place))
        # Of rates the ends tell; of scalings each is a rule of its own.
        for column in grid.columns[1:] if grid.base else grid.columns[-1:]:
            findings.append(_of_column(found, condition, place, column))
    return findings


SHARPNESS = (("lambda_1", "lambda_1"), ("Metric 2.1", "metric"))


def rate_figure(found: Comparison) -> bytes:
    """Return lambda_1, Metric 2.1 and, below, generalization against the rate or its scaling.

    A column for each condition and a band over the seeds for each batch size, whose best rate is
    ringed.
    """
    conditions, grid = found.spec["conditions"], _grid(found)
    at = list(range(len(grid.columns))) if grid.base else grid.columns
    rows = {
        "lambda_1": r"$\lambda_1$ of the Hessian",
        "metric": rf"Metric 2.1 (%), $\epsilon$ = {found.spec['design']['epsilon']:g}",
        _last(found): "test accuracy (%)" if "report_accuracy" in found.values else "test loss",
    }
    width = 4.8 * len(conditions) + 0.6
    made, panels = plots.figure(width, 9.2, rows=3, columns=len(conditions))
    for column, (condition, noise) in zip(panels.T, conditions.items(), strict=True):
        for ax, (name, title) in zip(column, rows.items(), strict=True):
            for style, B in enumerate(grid.sizes):
                _draw(found, condition, name, B, at, ax, style)
            ax.set_xscale("linear" if grid.base else "log")
            ax.set_xticks(at, [_text(x) for x in grid.columns])
            ax.minorticks_off()
            if ax is panels[list(rows).index(name)][0]:
                ax.set_ylabel(title)
        column[0].set_title(where(noise, found).capitalize(), loc="left", fontsize="medium")
        column[-1].set_xlabel(
            "scaling of the learning rate with batch size" if grid.base else "learning rate"
        )
    for row, name in zip(panels, rows, strict=True):
        for axes in [[ax] for ax in row] if name == "report_accuracy" else [row]:
            plots.frame(axes, log=name != "report_accuracy")
    if grid.base:  # whose bands fill the panels
        lines = panels[0][0].get_legend_handles_labels()
        made.legend(
            *lines,
            loc="outside upper center",
            ncols=len(grid.sizes),
            fontsize="small",
            frameon=False,
        )
    else:
        panels[0][0].legend(fontsize="small", frameon=False)
    made.supxlabel(
        _footnote(
            f"all at training loss {found.spec['design']['level']:g}; lines: means, geometric "
            f"where the axis is logarithmic; bands: their 95 % intervals over "
            f"{len(found.seeds)} seeds;\nrings: best {grid.factor}, chosen on other held-out "
            f"examples{_base_note(grid)}{_missed(found)}"
            + left_out(found.spec["unconverged"], "runs"),
            width,
        ),
        fontsize="small",
    )
    return plots.png(made)


def along_figure(
    found: Comparison, along: Mapping[str, Mapping[str, Sequence[Trajectory]]]
) -> bytes:
    """Return lambda_1 and Metric 2.1 against the training loss, a column for each rate or scaling.

    Two rows for each condition, a band over the seeds for each batch size.
    """
    conditions, grid = found.spec["conditions"], _grid(found)
    width = 3.1 * len(grid.columns) + 0.6
    made, panels = plots.figure(
        width,
        5.4 * len(conditions),
        rows=2 * len(conditions),
        columns=len(grid.columns),
        sharey="row",
    )
    for i, condition in enumerate(conditions):
        block = panels[2 * i : 2 * i + 2]
        for axes, column in zip(block.T, grid.columns, strict=True):
            for style, B in enumerate(grid.sizes):
                runs = along[condition][grid.names[B, column]]
                draw_along(axes, runs, found, label=f"batch {B}", style=style)
            labels = f"{condition}, " if len(conditions) > 1 else ""
            axes[0].set_title(
                f"{labels}{grid.factor} {_text(column)}", fontsize="medium", loc="left"
            )
        finish_along(block, found)
    made.supxlabel(
        _footnote(f"{along_note(found, along)}{_missed(found)}", width), fontsize="small"
    )
    return plots.png(made)


def best_figure(found: Comparison) -> bytes:
    """Return lambda_1, Metric 2.1 and generalization of each batch size at its best column."""
    conditions, grid = found.spec["conditions"], _grid(found)
    titles = {
        "lambda_1": r"$\lambda_1$ of the Hessian",
        "metric": rf"Metric 2.1 (%), $\epsilon$ = {found.spec['design']['epsilon']:g}",
        _last(found): "test accuracy (%)" if "report_accuracy" in found.values else "test loss",
    }
    made, panels = plots.figure(10.5, 3.3 * len(conditions) + 0.2, rows=len(conditions), columns=3)
    for row, (condition, noise) in zip(panels, conditions.items(), strict=True):
        best_of = found.spec["best"][condition]
        for ax, (name, title) in zip(row, titles.items(), strict=True):
            arithmetic = name == "report_accuracy"
            columns = {
                f"{B}\n{_best_text(found, condition, B)}": _numbers(
                    found, condition, name, B, best_of[str(B)]
                )
                for B in grid.sizes
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
        f"batch size, each at its best {grid.factor}   (points: seeds, lines join those of one "
        "seed; bars: mean, geometric where the axis is logarithmic, and its 95 % interval over "
        f"{len(found.seeds)} seeds)"
        + (_footnote(_missed(found), 10.5) if grid.base else "")
        + left_out(found.spec["unconverged"], "runs"),
        fontsize="small",
    )
    return plots.png(made)


def _last(found: Comparison) -> str:
    return "report_accuracy" if "report_accuracy" in found.values else "report_loss"


def _generalization(found: Comparison) -> tuple[str, str]:
    last = _last(found)
    return ("the test accuracy" if last == "report_accuracy" else "the test loss", last)


def _grid(found: Comparison) -> Grid:
    return grid_of([Arm(**arm) for arm in found.spec["arms"]])


def _text(column: Column) -> str:
    return column if isinstance(column, str) else f"{column:g}"


def _scaling_note(grid: Grid) -> str:
    """Return of which batch size the rate is scaled, or nothing where it is not."""
    if grid.base is None:
        return ""
    return (
        f"The rate is {grid.base.learning_rate:g} at the base batch size {grid.reference}, where "
        "all scalings are one training; at others it is this (fixed), or multiplied by the ratio "
        "of the batch sizes (linear) or by its square root (sqrt)."
    )


def _base_note(grid: Grid) -> str:
    if grid.base is None:
        return ""
    rate = grid.base.learning_rate
    return f"; rate {rate:g} at batch {grid.reference}, where all scalings are one training"


def _best_text(found: Comparison, condition: str, size: int) -> str:
    """Return under which rate or scaling a batch size is at its best, in short."""
    grid, column = _grid(found), found.spec["best"][condition][str(size)]
    if grid.base is None:
        return f"rate {column:g}"
    if not _reached(found, condition, size, column).any():
        return "loss not met"
    return "base" if size == grid.reference else str(column)


def _missed(found: Comparison) -> str:
    """Return the line of a figure on runs that are not in it, where some rate was scaled."""
    if _grid(found).base is None:
        return ""
    counts = zip(found.groups, (~found.reached).sum(dim=1).tolist(), strict=True)
    parts = [f"{count} of {group}" for group, count in counts if count]
    return f"\nleft out: runs that did not meet this loss, {'; '.join(parts)}" if parts else ""


def _footnote(text: str, width: float) -> str:
    """Return a text in lines that fit below a figure of this width in inches."""
    lines = (textwrap.wrap(line, int(LETTERS * width)) or [""] for line in text.split("\n"))
    return "\n".join(line for part in lines for line in part)


def _reached(found: Comparison, condition: str, size: int, column: Column) -> torch.Tensor:
    """Return which runs of an arm met the training loss, shape (s,)."""
    return found.reached[found.groups.index(f"{condition}, {_grid(found).names[size, column]}")]


def _numbers(
    found: Comparison, condition: str, name: str, size: int, column: Column
) -> torch.Tensor:
    """Return a measure of the runs of an arm, shape (s,), NaN where they missed the loss."""
    i = found.groups.index(f"{condition}, {_grid(found).names[size, column]}")
    return torch.where(found.reached[i], found.values[key(name, found)][i], torch.nan)


def _draw(
    found: Comparison,
    condition: str,
    name: str,
    size: int,
    at: Sequence[Any],
    ax: Any,
    style: int,
) -> None:
    """Draw a band over the rates or scalings, which are at these places, and ring the best."""
    grid = _grid(found)
    columns = [_numbers(found, condition, name, size, column) for column in grid.columns]
    bands = [mean_interval(column, arithmetic=name == "report_accuracy") for column in columns]
    plots.band(torch.tensor(at), bands, ax, label=f"batch {size}", style=style)
    if grid.base and size == grid.reference:
        return  # nothing was chosen
    i = grid.columns.index(found.spec["best"][condition][str(size)])
    ax.plot(
        [at[i]],
        [bands[i][0]],
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


def _across(found: Comparison, condition: str, place: str, what: str, name: str) -> Finding:
    """Return the sentence on the effect of the batch size at each rate or scaling."""
    grid = _grid(found)
    by_side: dict[str, list[str]] = {}
    for column in grid.columns:
        contrast = (
            f"{condition}: batch {grid.other} / {grid.reference} at {grid.factor} {_text(column)}"
        )
        numbers, none = _interval(found, name, contrast)
        side = _side(numbers, none)
        times = "x " if none == 1.0 else "gap "
        told = f" ({times}{interval(numbers)})"
        if grid.base and _no_pair(found, contrast):
            side, told = "missed", ""
        by_side.setdefault(side, []).append(f"{_text(column)}{told}")
    at = f"{'with' if grid.base else 'at'} {grid.factor}"
    end = "large" if grid.other > grid.reference else "small"
    words = {
        "larger": f"larger at the {end} batch {at}",
        "smaller": f"smaller at the {end} batch {at}",
        "not shown": f"no difference shown {at}",
        "unknown": f"unknown {at}",
        "missed": f"not known, for no pair met the training loss, {at}",
    }
    parts = [f"{text} {', '.join(by_side[s])}" for s, text in words.items() if s in by_side]
    return Finding(
        f"{place.capitalize()}, {what} of batch {grid.other} against {grid.reference}: "
        f"{'; '.join(parts)}.",
        bool(by_side.keys() & {"larger", "smaller"}),
        by_side.keys() == {_claimed(grid, name)},
        by_side.keys() <= {"unknown", "missed"},
    )


def _claimed(grid: Grid, name: str) -> str:
    """Return on which side the claim sees a measure of the other batch size."""
    above = (name == "report_accuracy") != (grid.other > grid.reference)
    return "larger" if above else "smaller"


def _no_pair(found: Comparison, contrast: str) -> bool:
    """Say whether there is no seed of which both runs met the training loss."""
    return not int(found.pairs[found.contrasts.index(contrast)])


def _at_best(found: Comparison, condition: str, place: str) -> Finding:
    """Return the sentence on the two batch sizes, each at its own best rate or scaling."""
    grid = _grid(found)
    contrast = f"{condition}: {best_name(grid.other, grid)}"
    chosen = found.spec["best"][condition]
    ours, its = (
        f"at its best {grid.factor} {_text(chosen[str(B)])}" for B in (grid.other, grid.reference)
    )
    if grid.base:
        its = "at the base rate"
        if _no_pair(found, contrast):
            return Finding(
                f"{place.capitalize()}, batch {grid.other} against batch {grid.reference}, each at "
                "its best: not known, for no pair met the training loss.",
                shown=False,
                as_claimed=False,
                unknown=True,
            )
    parts, sides = [], []
    for what, name in (*SHARPNESS, _generalization(found)):
        numbers, none = _interval(found, name, contrast)
        side = _side(numbers, none)
        unit = "gap " if name == "report_accuracy" else "x "
        told = {"not shown": "no difference shown", "unknown": "unknown"}.get(side, side)
        parts.append(f"{what} {told} ({unit}{interval(numbers)})")
        sides.append((side, side == _claimed(grid, name)))
    return Finding(
        f"{place.capitalize()}, batch {grid.other} {ours} against batch {grid.reference} {its}: "
        f"{', '.join(parts)}.",
        any(side in ("larger", "smaller") for side, _ in sides),
        all(claimed for _, claimed in sides),
        all(side == "unknown" for side, _ in sides),
    )


def _of_column(found: Comparison, condition: str, place: str, column: Column) -> Finding:
    """Return the sentence on the effect of a rate or scaling against the first at each batch."""
    grid = _grid(found)
    first, here = (_text(x) for x in (grid.columns[0], column))
    if column == grid.columns[0]:
        text = f"the {grid.factor} was not varied"
        return Finding(f"{place.capitalize()}, {text}.", shown=False, as_claimed=False)
    parts, missed, shown = [], [], False
    for B in grid.sizes:
        if grid.base and grid.reference == B:
            continue  # one training
        contrast = f"{condition}: {grid.factor} {here} / {first} at batch {B}"
        if grid.base and _no_pair(found, contrast):
            missed.append(str(B))
            continue
        effects = []
        for what, name in SHARPNESS:
            numbers, none = _interval(found, name, contrast)
            clear = _side(numbers, none) in ("larger", "smaller")
            shown |= clear
            effects.append(f"{what} by {interval(numbers)}{'' if clear else ' (not shown)'}")
        parts.append(f"{' and '.join(effects)} at batch {B}")
    told = [f"multiplies {'; '.join(parts)}"] if parts else []
    told += (
        [f"has no pair that met the training loss at batch {', '.join(missed)}"] if missed else []
    )
    return Finding(
        f"{place.capitalize()}, {grid.factor} {here} against {first} {', and '.join(told)}.",
        shown,
        shown,
    )
