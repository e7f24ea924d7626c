"""What the library asks of itself, and the page that tells what was reached."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Bar:
    """A number asked for: at most or at least so much of the reading called ``key``."""

    key: str
    text: str
    asked: float
    at_most: bool = True
    form: str = "{:.2f}"

    def is_met(self, values: Sequence[float]) -> bool:
        """Say whether the median of the values reaches the bar."""
        reached = median(values)
        return reached <= self.asked if self.at_most else reached >= self.asked

    def row(self, values: Sequence[float]) -> str:
        """Return the row ``bar | asked | reached (spread) | met`` of a table in Markdown."""
        asked = f"at {'most' if self.at_most else 'least'} {self.form.format(self.asked)}"
        if not values:
            return f"| {self.text} | {asked} | not measured | |"
        met = "yes" if self.is_met(values) else "**not reached**"
        return f"| {self.text} | {asked} | {spread(values, self.form)} | {met} |"


BARS = [
    Bar("gradient W1", "one product over one gradient, W1", 2.1),
    Bar("gradient W4", "one product over one gradient, W4", 2.3),
    Bar("gradient W3", "one product over one gradient, W3 (512 images)", 2.9),
    Bar("fresh W1", "product `fresh`, in one batch, over ours, W1", 1.4, at_most=False),
    Bar("fresh W3", "product `fresh`, in one batch, over ours, W3 (512)", 2.0, at_most=False),
    *(
        Bar(f"curvlinops {name}", f"time of curvlinops over ours, {name}", 1.5, at_most=False)
        for name in ("W1", "W2", "W3")
    ),
    *(
        Bar(
            f"curvlinops {name} fast",
            f"time of curvlinops over ours with fast_gemm, {name}",
            2.2,
            at_most=False,
        )
        for name in ("W1", "W2")
    ),
    Bar("pyhessian W1", "time of PyHessian over ours, W1", 5.0, at_most=False, form="{:.1f}"),
    Bar(
        "pyhessian residual W1",
        "true residual of PyHessian over ours, W1",
        10.0,
        at_most=False,
        form="{:.0f}",
    ),
    *(
        Bar(f"search {name}", f"products of our search over those of SciPy on ours, {name}", 1.0)
        for name in ("W1", "W2", "W3", "W4")
    ),
    *(
        Bar(f"check {name}", f"products of our check, {name}", 20, form="{:.0f}")
        for name in ("W1", "W2", "W3", "W4")
    ),
    Bar("floor W1", "true residual in float32, asked for 1e-6, W1", 2.5e-6, form="{:.1e}"),
    Bar("beside W1", "share of our time beside the products, W1", 0.08, form="{:.1%}"),
    Bar("beside W2", "share of our time beside the products, W2", 0.05, form="{:.1%}"),
    Bar("beside W3", "share of our time beside the products, W3", 0.03, form="{:.1%}"),
    *(
        Bar(f"points {name}", f"points of a plane over loss-landscapes, {name}", x, at_most=False)
        for name, x in {"W1": 1.3, "W2": 1.05, "W3": 3.0}.items()
    ),
    *(
        Bar(
            f"fast {name}",
            f"points of a plane with fast_gemm over loss-landscapes, {name}",
            2.2,
            at_most=False,
        )
        for name in ("W1", "W2")
    ),
    *(
        Bar(f"forward {name}", f"a point of a plane over bare forward passes, {name}", 1.05)
        for name in ("W1", "W2", "W3")
    ),
    Bar(
        "trace pyhessian_loader W1",
        "time of PyHessian's trace over a loader over ours, W1",
        1.4,
        at_most=False,
    ),
    Bar(
        "trace pyhessian_loader W1 fast",
        "time of PyHessian's trace over a loader over ours with fast_gemm, W1",
        1.6,
        at_most=False,
    ),
    Bar(
        "trace pyhessian_data W1",
        "time of PyHessian's trace of one batch over ours, W1",
        1.0,
        at_most=False,
    ),
    Bar("trace curvlinops W1", "time of curvlinops' trace over ours, W1", 1.0, at_most=False),
    Bar("density curvlinops W1", "time of curvlinops' density over ours, W1", 1.0, at_most=False),
    *(
        Bar(f"{key} {name}", f"{text}, {name}", 1.05)
        for name in ("W1", "W2")
        for key, text in {
            "worst": "a worst case over its bare gradients",
            "adaptive": "an adaptive worst case over its bare gradients",
            "average": "an average case over its bare forward passes and random vectors",
        }.items()
    ),
    Bar(
        "ensemble",
        "ten trainings of the digits MLP one by one over one stack, 750 updates of 8 examples",
        2.0,
        at_most=False,
    ),
    Bar("beside density W1", "share of a density beside the products, W1", 0.15, form="{:.1%}"),
    *(
        Bar(
            f"beside faithful {name}",
            f"what we add to SciPy's L-BFGS-B and the gradients, over both, {name}",
            0.05,
            form="{:.1%}",
        )
        for name in ("W1", "W2")
    ),
    *(
        Bar(
            f"signs {name}{' fast' if fast else ''}",
            f"time of SciPy's L-BFGS-B over that of the sign iteration to pass its value"
            f"{', both with fast_gemm' if fast else ''}, {name}",
            asked,
            at_most=False,
            form="{:.1f}",
        )
        for name, fast, asked in (
            *(("W1", False, 12.0), ("W2", False, 5.0)),
            *(("W1", True, 30.0), ("W2", True, 12.0)),
        )
    ),
    *(
        Bar(
            f"beside signs {name}",
            f"share of the sign iteration beside its gradients, {name}",
            0.10,
            form="{:.1%}",
        )
        for name in ("W1", "W2")
    ),
    *(
        Bar(f"training {size}", f"time of a training over a loop by hand, batches of {size}", 1.15)
        for size in (8, 32)
    ),
    Bar("training 600", "time of gradient descent over a loop by hand, all 600 examples", 1.0),
]
# Read beside the bars: what is asked of nobody.
OTHERS = {
    "fresh by micro-batches W1": "product `fresh` over ours, both by micro-batches, W1",
    "fresh by micro-batches W3": "product `fresh` over ours, both by micro-batches, W3 (512)",
    "gradient W4 fused": "one product over one gradient by fused attention, W4",
    "gradient W3 256": "one product over one gradient, W3 (256 images)",
    "curvlinops W4": "time of curvlinops over ours, W4",
    "pyhessian W1 fast": "time of PyHessian over ours with fast_gemm, W1",
    "trace pyhessian_loader W1 per product": "product of PyHessian's trace over a loader over ours",
    "trace pyhessian_data W1 per product": "product of PyHessian's trace of one batch over ours",
    "trace curvlinops W1 per product": "product of curvlinops' trace over ours",
    "density curvlinops W1 fast": "time of curvlinops' density over ours with fast_gemm, W1",
    "average W1 alone": "an average case over its bare forward passes alone, W1",
    "average W2 alone": "an average case over its bare forward passes alone, W2",
    "training 600 fast": "time of gradient descent in fast_gemm over a loop by hand without",
    "ensemble to a loss": "ten trainings one by one over one stack, to a training loss of 0.01",
    "beside trace W1": "share of a trace beside the products, W1",
    "SciPy in faithful W1": "share of SciPy's own in the time of its L-BFGS-B, W1",
    "SciPy in faithful W2": "share of SciPy's own in the time of its L-BFGS-B, W2",
    "gradients of signs W1": "gradients until the sign iteration passes L-BFGS-B, W1",
    "gradients of signs W2": "gradients until the sign iteration passes L-BFGS-B, W2",
}
COLUMNS = {
    "time over ours": "{:.2f}",
    "products": "{:.0f}",
    "true residual": "{:.1e}",
    "values off ours": "{:.1e}",
    "memory, MiB": "{:.0f}",
}
ESTIMATES = {
    "time over ours": "{:.2f}",
    "products": "{:.0f}",
    "trace": "{:.0f}",
    "memory, MiB": "{:.0f}",
}
Part = Mapping[str, Any]  # what one section found, and on which machine


def spread(values: Sequence[float], form: str) -> str:
    """Return the median with the smallest and the largest value.

    >>> spread([3.0, 1.0, 2.0], "{:.0f}"), spread([1.0], "{:.0f}")
    ('2 (1 .. 3)', '1')
    """
    middle = form.format(median(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({form.format(min(values))} .. {form.format(max(values))})"


def paired(a: list[float], b: list[float]) -> float:
    """Return the median of the ratios of what was measured in turn.

    >>> paired([2.0, 9.0, 4.0], [1.0, 3.0, 2.0])
    2.0
    """
    return median(x / y for x, y in zip(a, b, strict=True))


def apart(mine: list[float], other: list[float]) -> float:
    """Return the largest difference of two lists of eigenvalues over the largest magnitude.

    >>> apart([4.0, -2.0], [-1.0, 4.0])
    0.25
    """
    pairs = zip(sorted(mine), sorted(other), strict=True)
    return max(abs(a - b) for a, b in pairs) / max(map(abs, mine))


def page(parts: Mapping[str, Part]) -> str:
    """Return the results in Markdown: the machine, the bars, the tools side by side.

    Args:
        parts: By the name of the section.
    """
    readings: dict[str, list[float]] = {}
    for part in parts.values():
        readings.update(part["readings"])
    bars = [bar.row(readings.get(bar.key, [])) for bar in BARS]
    others = [
        f"| {text} | {spread(readings[key], '{:.2f}')} |"
        for key, text in OTHERS.items()
        if readings.get(key)
    ]
    solvers = [_row(row, "solver", COLUMNS) for part in parts.values() for row in part["solvers"]]
    estimates = [
        _row(row, "estimate", ESTIMATES) for part in parts.values() for row in part["estimates"]
    ]
    return "\n".join(
        [
            *TITLE,
            *_machines(parts),
            *_table(["bar", "asked", "reached (spread)", "met"], bars),
            *(_table(["without a bar", "reached (spread)"], others) if others else []),
            *(_table(["workload", "solver", *COLUMNS], solvers) if solvers else []),
            *(_table(["workload", "estimate", *ESTIMATES], estimates) if estimates else []),
            *NOTES,
        ]
    )


def _machines(parts: Mapping[str, Part]) -> list[str]:
    """Return the lines of each run: what it ran on, and its sections where there are several."""
    runs: list[tuple[Mapping[str, Any], list[str]]] = []
    for name, part in parts.items():
        same = [names for machine, names in runs if machine == part["machine"]]
        if same:
            same[0].append(name)
        else:
            runs.append((part["machine"], [name]))
    lines = []
    for machine, names in runs:
        if len(runs) > 1:
            lines += [f"Measured in one run: {', '.join(names)}.", ""]
        lines += [*(f"- {name}: {value}" for name, value in machine.items()), ""]
    return lines


TITLE = [
    "# Benchmarks",
    "",
    "Made by `python -m benchmarks`. Each number is a ratio within one run on one machine, the",
    "median of paired measurements in separate processes that took turns, with the smallest and",
    "the largest; the seconds behind it are in `results.json`.",
    "",
]
NOTES = [
    "All solvers are asked for the ten eigenvalues of largest magnitude to 1e-3 and start from a",
    "trained model and data in memory; their time holds all that they build and check. They stop",
    "by different rules: ours when |A v - lambda v| is below 1e-3 of the largest eigenvalue,",
    "SciPy's below 1e-3 of each, PyHessian when a value changes by less than 1e-3. So the true",
    "residuals, max |A v - lambda v| / max |lambda|, were taken again by one operator for all, our",
    "float32 Hessian. `values off ours` is the largest difference of an eigenvalue from ours, over",
    "the largest. Products of ours are search + check; PyHessian's batch is all the data, and ours",
    "and curvlinops take the same batches. Memory is the growth of the resident set in the solver.",
    "A gradient is that of plain PyTorch with the attention kernels that a product needs.",
    "`ours_fast` is ours under `sharpness.fast_gemm`, whose check is part of its time.",
    "",
    "A point of a plane is one loss over all the data; the time of all, 15 x 15 of W1, 9 x 9 of W2",
    "and 7 x 7 of W3, is taken with what a plane needs to begin. Ours and the bare passes take the",
    "same micro-batches, by our rule; loss-landscapes has none, and takes all examples at once.",
    "",
    "A trace is Hutchinson's, of 100 random vectors, a density that of 80 steps from one probe.",
    "Time and products of ours hold two more, which check the operator; a `product` is the time of",
    "all over their number. Ours, curvlinops and PyHessian over a loader take the same batches.",
    "`trace` is what each tool found from its own random vectors, for a density n times the mean",
    "of its spectrum. Ours keeps its basis orthogonal, curvlinops does not; it is told the ends of",
    "the spectrum, for which it would spend more products.",
    "",
    "A worst case is one climb of 20 iterations, so 21 gradients, and an average case 20 pairs of",
    "Gaussian vectors, so 41 losses, from a model and data in memory. Bare passes take the same",
    "micro-batches; the random vectors beside them are drawn by the same function as ours.",
    "Metric 2.1 in the whole space, epsilon 1e-3: SciPy's L-BFGS-B takes ten iterations from one",
    "random start, as our faithful mode; the sign iteration begins at the signs of the gradient.",
    "Both times hold the loss and the gradient at the center.",
    "",
    "W1: MLP, 1,089,034 parameters, 1797 digits. W2: MLP, 1,457,674, 6000 noisy digits. W3:",
    "ResNet-8, 78,042, the first 256 of 512 images for the solvers. W4: transformer, 110,400,",
    "128 sequences of 32 tokens.",
    "",
]


def _row(row: Mapping[str, Any], tool: str, columns: Mapping[str, str]) -> str:
    cells = [spread(row[name], form) if row.get(name) else "-" for name, form in columns.items()]
    if "error" in row:
        cells[0] = row["error"]
    return f"| {row['workload']} | {row[tool]} | {' | '.join(cells)} |"


def _table(heads: list[str], rows: list[str]) -> list[str]:
    return [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads), *rows, ""]
