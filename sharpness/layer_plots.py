"""Curvature per layer on matplotlib Axes; nothing here computes a product."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from sharpness.results import Layers
from sharpness.styles import BLACK, BLUE, GRAY, ORANGE

MANY = 25  # layers; the names of more are smaller
LONGEST = 32  # letters of a name that are shown
UNKNOWN = "interval unknown"


def layers(result: Layers, made: Figure) -> None:
    """Draw the trace of each layer with its 95 % interval, and its largest eigenvalue.

    The first layer is on top. A hollow bar is a trace whose interval is unknown, or an eigenvalue
    that did not converge, a lower bound; strokes are Frobenius norms of the layers' blocks, with
    their intervals. Above each panel is the number of the whole.
    """
    of_traces, of_values = made.subplots(1, 2, sharey=True)
    known = ~result.trace_stderr.isnan()
    _bars(of_traces, result.traces, known, BLUE, "trace", UNKNOWN)
    _bars(of_values, result.lambda_1, result.converged, ORANGE, r"$\lambda_1$", "not converged")
    _whiskers(of_traces, result.traces, result.trace_low, result.trace_high, "95 % interval", "")
    low, high = (x.clamp(min=0).sqrt() for x in (result.square_low, result.square_high))
    _whiskers(of_values, result.norms, low, high, "Frobenius norm", "|")
    errors = result.sampling_errors
    if bool((errors != 0).any()):
        rows = range(len(errors))
        of_values.errorbar(
            result.lambda_1.tolist(),
            rows,
            xerr=(2 * errors).tolist(),
            fmt="none",
            ecolor=GRAY,
            capsize=2,
            label="sampling error, 2 s.e.",
        )
    of_traces.set_title(_trace_of(result), fontsize="small")
    of_values.set_title(_value_of(result), fontsize="small")
    of_traces.set_xlabel("trace")
    of_values.set_xlabel(r"$\lambda_1$ and Frobenius norm")
    for ax in (of_traces, of_values):
        ax.axvline(0, color=GRAY, linewidth=0.8)
        ax.grid(axis="x", color=GRAY, alpha=0.25, linewidth=0.6)
        ax.set_axisbelow(True)
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.tick_params(axis="x", labelsize="small")
    names = [name if len(name) <= LONGEST else f"...{name[3 - LONGEST :]}" for name in result.layer]
    size = "x-small" if len(names) > MANY else "small"
    of_traces.set_yticks(range(len(names)), names, fontsize=size)
    of_traces.set_ylim(len(names) - 0.4, -0.6)
    # Below both: inside, no corner is free of all bars.
    made.legend(fontsize="small", frameon=False, loc="outside lower center", ncols=3)


def height(result: Layers) -> float:
    """Return the height of a figure in inches, by the number of layers."""
    count = len(result.layer)
    return 1.9 + count * (0.16 if count > MANY else 0.24)


def _bars(ax: Axes, values: Tensor, sure: Tensor, color: str, name: str, doubt: str) -> None:
    """Draw bars, hollow ones where there is a doubt."""
    for chosen, face, label in ((sure, color, name), (~sure, "white", f"{name}, {doubt}")):
        rows = chosen.nonzero().flatten().tolist()
        if rows:
            ax.barh(
                rows,
                values[rows].tolist(),
                height=0.62,
                color=face,
                edgecolor=color,
                linewidth=0.8,
                label=label,
            )


def _whiskers(ax: Axes, values: Tensor, low: Tensor, high: Tensor, label: str, marker: str) -> None:
    """Draw markers, if there is one, and the intervals that are known."""
    sure = ~low.isnan()
    for chosen, name in ((sure, label), (~sure, f"{label}, {UNKNOWN}")):
        rows = chosen.nonzero().flatten().tolist()
        if not rows or not (marker or chosen is sure):
            continue
        x = values[rows]
        ends = [(x - low[rows]).clamp(min=0).tolist(), (high[rows] - x).clamp(min=0).tolist()]
        ax.errorbar(
            x.tolist(),
            rows,
            xerr=ends if chosen is sure else None,
            fmt=marker or "none",
            color=BLACK if chosen is sure else GRAY,
            ecolor=BLACK,
            markersize=7,
            markeredgewidth=1.4,
            elinewidth=1.0,
            capsize=2,
            label=name,
        )


def _trace_of(result: Layers) -> str:
    low, high = result.whole_trace_low, result.whole_trace_high
    bounds = UNKNOWN if math.isnan(low) else f"[{low:.4g}, {high:.4g}]"
    return f"whole: trace {result.whole_trace:.4g}\n{bounds}"


def _value_of(result: Layers) -> str:
    doubt = "" if result.whole_converged else " (not converged)"
    return (
        f"whole: $\\lambda_1$ {result.whole_lambda_1:.4g}{doubt}\n"
        f"Frobenius norm {result.whole_norm:.4g}"
    )
