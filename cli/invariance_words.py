"""Which measures moved where the function did not, in words and numbers."""

import math

from sharpness.results import Invariance
from sharpness.text import table

from .words import many, number, place

SHORT = {  # titles of columns
    "layer-wise scaling": "layers",
    "neuron-wise scaling": "neurons",
    "permutation of neurons": "permuted",
    "filter scaling before BatchNorm": "filters",
    "GL(d_head) of attention": "GL(d_head)",
    "orthogonal maps of heads": "orthogonal",
    "logit shift": "logits",
}


def invariance(found: Invariance) -> list[str]:
    """Return the lines of a table of measures by changes of the weights."""
    lines = [f"invariance: {place(found.spec['objective'])}"]
    for title, where, moved in zip(
        found.symmetries, found.where, found.function_change.tolist(), strict=True
    ):
        what = "loss" if title == "logit shift" else "outputs"
        lines.append(f"{title} of {where}: {what} changed by {moved:.1e}")
    header = ["measure", "value", *(SHORT.get(x, x) for x in found.symmetries)]
    rows = [
        [name, number(float(found.before[i]), ".4g"), *_cells(found, i)]
        for i, name in enumerate(found.measures)
    ]
    return [*lines, *table(header, rows), *_verdict(found)]


def _cells(found: Invariance, i: int) -> list[str]:
    """Return what became of a measure under each change."""
    cells = []
    rows = (found.moved[i], found.after[i], found.converged[i])
    for moved, after, converged in zip(*(x.tolist() for x in rows), strict=True):
        before = float(found.before[i])
        if math.isnan(before) and math.isnan(after):
            cells.append("-")
        elif not moved:
            cells.append("same")
        elif math.isnan(after):
            cells.append("undefined")
        else:
            cells.append(factor(after, before))
        if not converged:
            cells[-1] += " (not converged)"
    return cells


def factor(after: float, before: float) -> str:
    """Return how a number changed, as a factor where both are of one sign.

    >>> factor(8.0, 2.0), factor(2.1, 2.0), factor(-1.0, 2.0)
    ('x4', '+5.0%', '-1')
    """
    if before == 0 or after / before <= 0:
        return f"{after:.3g}"
    ratio = after / before
    return f"x{ratio:.3g}" if not 0.5 < ratio < 2 else f"{100 * (ratio - 1):+.1f}%"


def _verdict(found: Invariance) -> list[str]:
    """Return which measures survived all changes."""
    known = ~(found.before.isnan() & found.after.isnan().all(dim=1))
    kept = [
        name
        for name, moved, is_known in zip(found.measures, found.moved, known, strict=True)
        if is_known and not moved.any()
    ]
    return [f"unchanged by all: {', '.join(kept) or 'none'}"]


def summary(found: Invariance) -> str:
    """Return the table in a few words."""
    moved = int(found.moved.any(dim=1).sum())
    missing = int((~found.converged).any(dim=1).sum())
    return (
        f"{many(len(found.measures), 'measure')} under "
        f"{many(len(found.symmetries), 'change')} of the weights: {moved} moved"
    ) + (f", {missing} NOT converged" if missing else "")
