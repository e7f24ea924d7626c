"""A measure of sharpness in words and numbers."""

import math

from torch import Tensor

from sharpness.measures import row
from sharpness.results import Measured
from sharpness.text import table, wrapped

from .words import ends_of, many, number, place

DIGITS = 6


def measured(found: Measured) -> list[str]:
    """Return the lines of a measure."""
    told = row(found.measure, found).told
    error = "" if not found.stderr else f", standard error {number(found.stderr, '.3g')}"
    lines = [f"{found.measure}: {place(found.spec['objective'])}", f"{told}{error}"]
    if found.words:
        lines += wrapped(found.words, "  ")
    if not math.isnan(found.threshold):
        share = found.value / found.threshold
        lines.append(
            f"threshold {found.threshold:.{DIGITS}g}, of which it is {number(share, '.3g')}"
        )
    lines.append(
        f"loss {found.loss:.8g}; passes over the data: {found.gradients:g} gradients, "
        f"{found.products:g} products, {found.forwards:g} forwards"
    )
    cells = [[name.replace("_", " "), _told(x)] for name, x in found.details.items()]
    cells += [[name.replace("_", " "), _ends(x)] for name, x in found.samples.items() if len(x) > 1]
    return lines + (table(["beside it", ""], cells) if cells else [])


def _told(x: Tensor) -> str:
    """Return a further number, or what there is of several."""
    return f"{float(x):.{DIGITS}g}" if x.numel() == 1 else _ends(x.flatten())


def _ends(x: Tensor) -> str:
    """Return how many numbers there are, and from where to where."""
    if x.double().isnan().all():
        return f"{many(len(x), 'number')}, none known"
    low, high = ends_of(x.double())
    return f"{many(len(x), 'number')} from {low:.4g} to {high:.4g}"


def summary(found: Measured) -> str:
    """Return a measure in a few words."""
    told = f"{found.measure} {row(found.measure, found).told}"
    if math.isnan(found.threshold):
        return told
    return f"{told}, threshold {found.threshold:.4g}"
