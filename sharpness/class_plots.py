"""What of the curvature belongs to classes, on matplotlib Axes."""

import math
from typing import Any

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from sharpness.results import ClassStructure
from sharpness.styles import BLUE, DARK, GRAY, GREEN, ORANGE, label_decades

COLORS = "PuOr"  # white at 0, and both ends apart for the color-blind
MOST_LABELS = 20  # of classes, beyond which every so many-th is labeled
MOST_NUMBERS = 12  # classes up to which the cosines have room in their cells
FAINT = 1e-6  # of the largest eigenvalue: what is below is not drawn


def class_eigenvalues(result: ClassStructure, ax: Axes) -> None:
    """Draw the eigenvalues of the Gauss-Newton matrix, and those that classes explain, by rank.

    Those that did not converge are hollow; bars are residuals, and pale ones two standard errors
    where the data are a sample. Dotted is the number of classes, dashed the largest ratio of
    neighbors. What is below a millionth of the largest is not drawn.
    """
    values, least = result.values.double(), FAINT * float(result.values.max())
    rank = torch.arange(1, len(values) + 1)
    kept = values > max(least, 0.0)
    _bars(ax, rank[kept], values[kept], result.residuals.double()[kept], {"capsize": 2})
    if bool((result.sampling_errors != 0).any()):
        wide = {"elinewidth": 5, "alpha": 0.25, "zorder": 0, "label": "sampling error, 2 s.e."}
        _bars(ax, rank[kept], values[kept], 2 * result.sampling_errors.double()[kept], wide)
    for filled, name in ((True, "$G$"), (False, "$G$, not converged")):
        chosen = kept & (result.converged == filled)
        if chosen.any():
            face = BLUE if filled else "white"
            _dots(ax, rank[chosen], values[chosen], "o", name, color=BLUE, markerfacecolor=face)
    for others, color, marker, name in (
        (result.pair_values[: len(values)], ORANGE, "s", "$G_1 + G_2$, pairs of classes"),
        (result.mean_values[: len(values)], GREEN, "^", "$G_1$, class means"),
    ):
        shown = others > max(least, 0.0)
        if shown.any():
            number = torch.arange(1, len(others) + 1)[shown]
            _dots(ax, number, others[shown], marker, name, color=color, markerfacecolor="none")
    ax.axvline(result.classes + 0.5, color=DARK, linestyle=":", label=f"C = {result.classes}")
    if result.outliers:
        ax.axvline(result.outliers + 0.5, color=GRAY, linestyle="--", label=_gap(result))
    ax.set_yscale("log")
    label_decades(ax)
    ax.set_xlabel("rank")
    ax.set_ylabel("eigenvalue")
    ax.xaxis.set_major_locator(MaxNLocator(7, integer=True))


def _gap(result: ClassStructure) -> str:
    """Return after which eigenvalue the largest ratio is, and whether it is sure."""
    count = result.outliers
    words = f"largest ratio after {count}"
    words += "" if math.isnan(result.gap) else f": {result.gap:.3g}"
    sure = bool(result.converged[: count + 1].all())
    return words if sure else f"{words} (not converged)"


def class_cosines(result: ClassStructure, ax: Axes) -> None:
    """Draw the cosines between the class means of gradients; gray is a class without an example."""
    count = result.classes
    colors = colormaps[COLORS].with_extremes(bad=GRAY)
    cosines = result.cosines
    drawn = ax.imshow(cosines.numpy(), vmin=-1, vmax=1, cmap=colors)
    step = math.ceil(count / MOST_LABELS)
    ticks = list(range(0, count, step))
    ax.set_xticks(ticks)
    ax.set_yticks(ticks)
    ax.set_xlabel("class" + (", gray: without an example" if result.absent else ""))
    ax.set_ylabel("class")
    if count <= MOST_NUMBERS:
        _numbers(ax, cosines)
    figure = ax.get_figure()
    if isinstance(figure, Figure):
        figure.colorbar(drawn, ax=ax, label="cosine of class means", shrink=0.8)


def _numbers(ax: Axes, cosines: Tensor) -> None:
    """Write the cosines into their cells, but for the ones of the diagonal."""
    for i, row in enumerate(cosines.tolist()):
        for j, x in enumerate(row):
            if i != j and not math.isnan(x):
                text = f"{x:.1f}".replace("0.", ".") if abs(x) >= 0.05 else "0"
                color = "white" if abs(x) > 0.6 else "black"
                ax.text(j, i, text, ha="center", va="center", fontsize=6, color=color)


def _bars(ax: Axes, x: Tensor, y: Tensor, errors: Tensor, look: dict[str, Any]) -> None:
    """Draw bars that do not reach 0, which a logarithmic axis has not."""
    low = torch.minimum(errors, 0.999 * y)
    ax.errorbar(x, y, yerr=torch.stack([low, errors]), fmt="none", ecolor=BLUE, **look)


def _dots(ax: Axes, x: Tensor, y: Tensor, marker: str, label: str, **look: Any) -> None:
    ax.plot(x, y, marker, markersize=5, label=label, **look)
