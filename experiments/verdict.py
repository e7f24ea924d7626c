"""What a comparison of small and large batches says: its table, its sentences, its figures."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sharpness import plots
from sharpness.analyses import short
from sharpness.comparison import by_difference, geometric_mean, paired_difference, paired_ratio
from sharpness.results import Comparison, Eigenpairs, Line, Trajectory
from sharpness.text import interval, table, wrapped

from .design import ALONG
from .recipe import Finding

CLAIM = (
    "At equal training loss the large batch ends in a sharper minimum than the small one, and the "
    "sharper minimum generalizes worse."
)
SOURCE = "Keskar et al. (2017), sections 2.2 and 2.2.2; rate scaled after Hoffer et al. (2017)"
NAMES = {
    "lambda_1": "lambda_1",
    "adaptive_lambda_1": "adaptive",
    "metric": "Metric 2.1",
    "share": "1st-order",
    "train_loss": "train loss",
    "updates": "updates",
    "test_accuracy": "test acc %",
    "test_loss": "test loss",
    "report_accuracy": "test acc %",
    "report_loss": "test loss",
    "distance": "distance",
}
OF_EPSILON = {"metric": "metric_2_1", "share": "first_order_share"}


def summary(found: Comparison) -> str:
    """Return the table of groups, the paired contrasts and the verdict, as text."""
    design, count = found.spec["design"], len(found.seeds)
    lines = [
        f"Small batch against large batch at training loss {design['level']:g}: "
        f"{design['model']} on {design['data']}, {design['loss']}, {count} seed{'s' * (count > 1)}",
        *wrapped(f"Claim: {CLAIM}", "  "),
        *wrapped(f"Source: {SOURCE}", "  "),
        "",
        *group_rows(found),
        "",
        *_contrasts(found),
        "",
        *remarks(found),
        "Verdict",
        *(line for finding in check(found) for line in wrapped(f"- {finding.sentence}", "  ")),
    ]
    return "\n".join(lines)


def check(found: Comparison) -> list[Finding]:
    """Return the sentences that the intervals allow: one for each measure, the claim, the rate."""
    findings: list[Finding] = []
    outcomes: list[str] = []
    whole = True
    for condition, noise in found.spec["conditions"].items():
        place = where(noise, found)
        row = _row(found, condition, "lb", "sb")
        ratios = {
            name: found.ratios[f"{key(name, found)}_ratio"][row].tolist()
            for name in ("lambda_1", "metric")
        }
        judged = [
            _ratio_finding(place, "lambda_1", ratios["lambda_1"]),
            _ratio_finding(
                place, "Metric 2.1", found.ratios[f"{key('metric', found)}_ratio"][row].tolist()
            ),
            _generalization(place, found, row),
        ]
        findings += judged
        outcomes.append(f"{_holds(judged)} {place}")
        whole = whole and all(finding.as_claimed for finding in judged)
    findings.append(Finding(f"So the claim holds {', and '.join(outcomes)}.", whole, whole))
    findings.append(_rate(found))
    return findings


def key(name: str, found: Comparison) -> str:
    """Return what a measure is called in this comparison, which may have another epsilon."""
    if name not in OF_EPSILON:
        return name
    return f"{OF_EPSILON[name]}_{short(found.spec['design']['epsilon'])}"


def sharpness_figure(found: Comparison) -> bytes:
    """Return lambda_1, Metric 2.1 and generalization by arm and seed, a row for each condition."""
    last = "test_accuracy" if "test_accuracy" in found.values else "test_loss"
    labels = {
        "lambda_1": r"$\lambda_1$ of the Hessian",
        "metric": rf"Metric 2.1 (%), $\epsilon$ = {found.spec['design']['epsilon']:g}",
        "test_accuracy": "test accuracy (%)",
        "test_loss": "test loss",
    }
    conditions = found.spec["conditions"]
    made, grid = plots.figure(10.5, 3.3 * len(conditions) + 0.2, rows=len(conditions), columns=3)
    for i, (condition, noise) in enumerate(conditions.items()):
        for ax, measure in zip(grid[i], ("lambda_1", "metric", last), strict=True):
            columns = _columns(found, condition, key(measure, found))
            arithmetic = by_difference(measure)
            plots.paired(
                {_stacked(name): column for name, column in columns.items()},
                ax,
                intervals=[mean_interval(column, arithmetic) for column in columns.values()],
                log=not arithmetic,
            )
            ax.set_ylabel(labels[measure])
        grid[i][0].set_title(where(noise, found).capitalize(), loc="left", fontsize="medium")
    made.supxlabel(
        "batch size   (points: seeds, lines join those of one seed; bars: mean, geometric where "
        f"the axis is logarithmic, and its 95 % interval over {len(found.seeds)} seeds)"
        + left_out(found.spec["unconverged"], "runs"),
        fontsize="small",
    )
    return plots.png(made)


def along_figure(
    found: Comparison, along: Mapping[str, Mapping[str, Sequence[Trajectory]]]
) -> bytes:
    """Return lambda_1 and Metric 2.1 against the training loss (Keskar et al. 2017, Figure 6).

    A row for each measure, a column for each condition, a band over the seeds for each arm.
    """
    conditions = found.spec["conditions"]
    made, grid = plots.figure(
        4.8 * len(conditions) + 0.6, 6.4, rows=2, columns=len(conditions), sharey="row"
    )
    for column, (condition, noise) in zip(grid.T, conditions.items(), strict=True):
        for style, (name, runs) in enumerate(along[condition].items()):
            draw_along(column, runs, found, label=_flat(name), style=style)
        column[0].set_title(where(noise, found).capitalize(), loc="left", fontsize="medium")
    finish_along(grid, found)
    made.supxlabel(along_note(found, along), fontsize="small")
    return plots.png(made)


def along_note(found: Comparison, along: Mapping[str, Mapping[str, Sequence[Trajectory]]]) -> str:
    """Return what the bands of sharpness along training are, and what they are without."""
    drawn = [run for arms in along.values() for runs in arms.values() for run in runs]
    return (
        "from the start to the right, at stored levels of the training loss; bands: 95 % intervals "
        f"of the geometric mean over {len(found.seeds)} seeds"
        + left_out(sum(int((~run.converged).sum()) for run in drawn), "points")
    )


def left_out(count: int, what: str) -> str:
    """Return the line of a figure on eigenvalues that are not in it, if there are any."""
    return f"\nleft out: lambda_1 of {count} {what}, which did not converge" if count else ""


def draw_along(
    axes: Sequence[Any],
    runs: Sequence[Trajectory],
    found: Comparison,
    *,
    label: str,
    style: int,
) -> None:
    """Draw lambda_1 and Metric 2.1 of some runs along their trainings, as bands over the runs."""
    for ax, measure in zip(axes, ("lambda_1", "metric_2_1"), strict=True):
        losses, numbers = at_levels(runs, measure, float(found.spec["design"]["level"]))
        known = (~numbers.isnan()).sum(dim=1) > 0
        if not known.any():  # the legend has all batch sizes
            losses, numbers, known = (
                losses[:1],
                numbers.new_full((1, 1), math.nan),
                known[:1] | True,
            )
        bands = [mean_interval(row, arithmetic=False) for row in numbers[known]]
        plots.band(losses[known], bands, ax, label=label, style=style)


def finish_along(grid: Any, found: Comparison) -> None:
    """Give the axes of sharpness along training their scales and names."""
    level = float(found.spec["design"]["level"])
    for row in grid:
        for ax in row:
            if not math.isfinite(ax.dataLim.x0):  # no run met the loss
                ax.set_xlim(level, ALONG[0] * level)
            ax.set_xscale("log")
            goals = [times * level for times in (*ALONG, 1.0)]
            low, high = ax.get_xlim()
            ax.set_xticks([x for x in goals if low <= x <= high])
            ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
            ax.minorticks_off()
            ax.invert_xaxis()
        plots.frame(row, log=True)
    for ax in grid[0]:
        ax.tick_params(labelbottom=False)
    for ax in grid[-1]:
        ax.set_xlabel("training loss")
    grid[0][0].set_ylabel(r"$\lambda_1$ of the Hessian")
    grid[1][0].set_ylabel(rf"Metric 2.1 (%), $\epsilon$ = {found.spec['design']['epsilon']:g}")
    grid[0][0].legend(fontsize="small", frameon=False, loc="lower right")  # free in practice


def at_levels(runs: Sequence[Trajectory], measure: str, level: float) -> tuple[Tensor, Tensor]:
    """Return the training losses and a measure where the runs first met each level.

    Returns:
        The geometric mean of the losses, shape (l,), and the measure, (l, runs), NaN where a run
        did not get so far or the eigenvalue did not converge. The first level is the start.
    """
    losses, table = [], []
    for goal in (math.inf, *(times * level for times in ALONG), level):
        met, numbers = [], []
        for run in runs:
            below = (run.train_loss <= goal).nonzero()
            i = int(below[0]) if len(below) else None
            known = i is not None and (measure != "lambda_1" or bool(run.converged[i]))
            met.append(float(run.train_loss[i]) if known else math.nan)
            numbers.append(float(getattr(run, measure)[i]) if known else math.nan)
        losses.append(geometric_mean(torch.tensor(met)))
        table.append(numbers)
    return torch.tensor(losses), torch.tensor(table, dtype=torch.float64)


def line_figure(lines: Mapping[str, Sequence[tuple[str, Line]]]) -> bytes:
    """Return loss and accuracy along lines: a row for each condition, a column for each end."""
    rows = list(lines)
    columns = len(lines[rows[0]])
    made, axes = plots.figure(5.4 * columns, 3.4 * len(rows), rows=len(rows), columns=columns)
    losses = _finite_losses(lines)
    for i, condition in enumerate(rows):
        for j, (name, found) in enumerate(lines[condition]):
            ax = axes[i][j]
            plots.line(found, ax, legend=False)
            if len(losses):
                ax.set_ylim(float(losses.min()) / 1.5, float(losses.max()) * 1.5)
            plots.label_decades(ax)
            ax.set_title(f"{condition}, seed 0: {_flat(name)}", fontsize="medium", loc="left")
    handles = [h for ax in made.axes for h in ax.get_lines()]
    known = {str(h.get_label()): h for h in handles if not str(h.get_label()).startswith("_")}
    made.legend(
        known.values(), known.keys(), loc="outside upper center", ncols=len(known), fontsize="small"
    )
    return plots.png(made)


def eigenvalue_figure(spectra: Mapping[str, Mapping[str, Eigenpairs]]) -> bytes:
    """Return the top eigenvalues by arm, a panel for each condition, on one scale."""
    made, axes = plots.figure(
        4.2 * len(spectra) + 0.4, 3.4, columns=len(spectra), sharey=len(spectra) > 1
    )
    for ax, (condition, arms) in zip(axes[0], spectra.items(), strict=True):
        for style, (name, pairs) in enumerate(arms.items()):
            plots.eigenvalues(pairs, ax, label=_flat(name), style=style)
        ax.set_title(f"{condition}, seed 0", loc="left", fontsize="medium")
    for ax in axes[0][1:]:
        ax.set_ylabel("")
        if any("not converged" in label for label in ax.get_legend_handles_labels()[1]):
            ax.legend(fontsize="small")
    axes[0][0].legend(fontsize="small")
    return plots.png(made)


def group_rows(
    found: Comparison, *, leave_out: Sequence[str] = (), count: bool = False
) -> list[str]:
    """Return the table of the groups' means, with the count of the runs that met the loss."""
    known = [name for name in NAMES if key(name, found) in found.values]
    measures = [name for name in known if name not in leave_out]
    rows = []
    for i, group in enumerate(found.groups):
        met = f"{int(found.reached[i].sum())} of {len(found.seeds)}"
        cells = [group, *([met] if count else [])]
        for measure in measures:
            numbers = found.values[key(measure, found)][i][found.reached[i]]
            mean = _mean(numbers, by_difference(measure))
            cells.append("unknown" if math.isnan(mean) else number_text(measure, mean))
        rows.append(cells)
    arithmetic = "accuracy and first-order share"
    if not any("accuracy" in name for name in measures):
        arithmetic = "the first-order share"
    return [
        *table(["", *(["met loss"] * count), *(NAMES[measure] for measure in measures)], rows),
        f"Means over seeds, geometric but of {arithmetic}. That share is the part of Metric 2.1",
        "that the gradient alone gives: where it is large, the stop was short of a minimum.",
    ]


def _contrasts(found: Comparison) -> list[str]:
    columns = {
        "lambda_1": found.ratios["lambda_1_ratio"],
        "Metric 2.1": found.ratios[f"{key('metric', found)}_ratio"],
    }
    if "test_accuracy_difference" in found.differences:
        title = "gap = test accuracy of the one behind the stroke minus that of the one before it"
        columns["gap (points)"] = found.differences["test_accuracy_difference"]
    else:
        title = "and of the test loss"
        columns["test loss"] = found.ratios["test_loss_ratio"]
    rows = [
        [contrast, str(int(pairs)), *(interval(column[i].tolist()) for column in columns.values())]
        for i, (contrast, pairs) in enumerate(zip(found.contrasts, found.pairs, strict=True))
    ]
    return [
        *table(["", "pairs", *columns], rows),
        *wrapped(
            "Paired over seeds, with 95 % t-intervals: ratios of lambda_1 and of Metric 2.1, "
            f"{title}.",
            "",
        ),
    ]


def remarks(found: Comparison) -> list[str]:
    """Return what a reader must know before the verdict: what is missing or did not converge."""
    lines = []
    missed = {g: int((~r).sum()) for g, r in zip(found.groups, found.reached, strict=True)}
    for group, count in missed.items():
        if count:
            lines.append(
                f"NOTE {count} of {len(found.seeds)} runs of {group} did not meet the training "
                "loss: their pairs are left out"
            )
    for name in found.ratios:
        measure = name.removesuffix("_ratio")
        if (found.values[measure] <= 0).any():
            lines.append(f"NOTE {measure} is not positive in all runs: its ratios are unknown")
    if found.spec["unconverged"]:
        lines.append(
            f"NOTE lambda_1 of {found.spec['unconverged']} runs did not converge: left out"
        )
    return [*lines, ""] if lines else []


def _ratio_finding(place: str, what: str, numbers: Sequence[float]) -> Finding:
    _, low, high = numbers
    shown = low > 1 or high < 1  # false for NaN
    if math.isnan(low):
        text = f"whether {what} differs is unknown: an interval needs two pairs"
    elif shown:
        word = "larger" if low > 1 else "smaller"
        text = f"{what} is {word} at the large batch, {interval(numbers)} times the small batch's"
    else:
        text = f"no difference of {what} is shown, the ratio LB / SB is {interval(numbers)}"
    return Finding(f"{place.capitalize()}, {text}.", shown, low > 1, math.isnan(low))


def _generalization(place: str, found: Comparison, row: int) -> Finding:
    if "test_accuracy_difference" not in found.differences:
        return _ratio_finding(place, "the test loss", found.ratios["test_loss_ratio"][row].tolist())
    numbers = found.differences["test_accuracy_difference"][row].tolist()
    _, low, high = numbers
    shown = low > 0 or high < 0
    if math.isnan(low):
        text = "the generalization gap is unknown: an interval needs two pairs"
    elif shown:
        word = "above" if low > 0 else "below"
        text = (
            f"the test accuracy of the small batch is {word} the large batch's, the gap SB - LB "
            f"is {interval(numbers)} points"
        )
    else:
        text = f"no generalization gap is shown, SB - LB is {interval(numbers)} points"
    return Finding(f"{place.capitalize()}, {text}.", shown, low > 0, math.isnan(low))


def _rate(found: Comparison) -> Finding:
    """Return the sentence on what the rate does at the large batch."""
    times = found.spec["arms"][2]["learning_rate"] / found.spec["arms"][1]["learning_rate"]
    parts, shown = [], False
    for condition, noise in found.spec["conditions"].items():
        row = _row(found, condition, "lb-sqrt", "lb")
        effects = []
        for what, name in (("lambda_1", "lambda_1"), ("Metric 2.1", "metric")):
            numbers = found.ratios[f"{key(name, found)}_ratio"][row].tolist()
            clear = numbers[1] > 1 or numbers[2] < 1
            shown |= clear
            note = "" if clear else " (no effect shown)"
            effects.append(f"{what} by {interval(numbers)}{note}")
        parts.append(f"{' and '.join(effects)} {where(noise, found)}")
    return Finding(
        f"At the same large batch, {times:.2f} times the rate multiplies {'; '.join(parts)}"
        + (": batch size alone does not set the sharpness." if shown else "."),
        shown,
        shown,
    )


def _holds(judged: Sequence[Finding]) -> str:
    """Return how much of the claim holds: of lambda_1, Metric 2.1 and generalization."""
    if any(finding.unknown for finding in judged):
        return "to an unknown degree"
    *sharper, worse = (finding.as_claimed for finding in judged)
    if all(sharper):
        return "as a whole" if worse else "for the sharpness but not for the generalization"
    parts = [what for what, ok in zip(("lambda_1", "Metric 2.1"), sharper, strict=True) if ok]
    parts += ["the generalization"] if worse else []
    return f"for {' and '.join(parts)} alone" if parts else "in no part"


def where(noise: float, found: Comparison) -> str:
    """Return the words for a condition."""
    if noise:
        return f"with {100 * noise:g} % wrong labels"
    labels = "test_accuracy" in found.values
    return "with clean labels" if labels else "on these data"


def _row(found: Comparison, condition: str, arm: str, reference: str) -> int:
    """Return the number of the contrast of two arms, by their keys."""
    names = {arm["key"]: arm["name"] for arm in found.spec["arms"]}
    return found.contrasts.index(f"{condition}: {names[arm]} / {names[reference]}")


def _columns(found: Comparison, condition: str, measure: str) -> dict[str, Tensor]:
    columns = {}
    for arm in found.spec["arms"]:
        i = found.groups.index(f"{condition}, {arm['name']}")
        numbers = found.values[measure][i]
        columns[arm["name"]] = torch.where(found.reached[i], numbers, torch.nan)
    return columns


def mean_interval(numbers: Tensor, arithmetic: bool) -> tuple[float, float, float]:
    """Return mean, low and high over seeds; the mean is geometric unless it is arithmetic."""
    if not arithmetic and (numbers <= 0).any():
        return math.nan, math.nan, math.nan
    one = torch.zeros_like(numbers) if arithmetic else torch.ones_like(numbers)
    return (paired_difference if arithmetic else paired_ratio)(numbers, one)


def _mean(numbers: Tensor, arithmetic: bool) -> float:
    return float(numbers.nanmean()) if arithmetic else geometric_mean(numbers)


def number_text(measure: str, number: float) -> str:
    """Return a mean as tables show it."""
    if measure == "updates":
        return f"{number:,.0f}"
    if measure == "train_loss":
        return f"{number:.2e}"
    return f"{number:.2f}" if by_difference(measure) else f"{number:.3g}"


def _flat(name: str) -> str:
    return name.replace(" x", " \u00d7")


def _stacked(name: str) -> str:
    """Return an arm's name in two lines, for an axis."""
    return name.replace(", ", ",\n").replace(" x", " \u00d7")


def _finite_losses(lines: Mapping[str, Sequence[tuple[str, Line]]]) -> Tensor:
    """Return all losses that can be drawn, in one row."""
    along = [found.values for row in lines.values() for _, found in row]
    losses = torch.cat([v for values in along for k, v in values.items() if k.endswith("loss")])
    return losses[torch.isfinite(losses)]
