"""Curvature per layer in words and numbers."""

import math

from sharpness.results import Layers
from sharpness.text import interval, operator_name, table

from .words import many, number, operator


def layers(found: Layers) -> list[str]:
    """Return the lines of curvature per layer, the whole at last."""
    sampled = bool((found.sampling_errors != 0).any()) or found.whole_sampling_error != 0
    header = [_noun(found, 1), "parameters", "trace", "share", "lambda_1", "residual"]
    header += ["sampling error"] if sampled else []
    rows = []
    for i, name in enumerate(found.layer):
        traces = (found.traces, found.trace_low, found.trace_high)
        shares = (found.shares, found.share_low, found.share_high)
        squares = (found.squares, found.square_low, found.square_high)
        pair = (found.lambda_1, found.residuals, found.sampling_errors)
        rows.append(
            [
                name,
                f"{int(found.sizes[i]):,}",
                _estimate(*(float(x[i]) for x in traces)),
                _percent(*(float(x[i]) for x in shares)),
                *_pair([float(x[i]) for x in pair], bool(found.converged[i]), sampled),
                _norm(*(float(x[i]) for x in squares)),
            ]
        )
    rows.append(
        [
            "whole",
            f"{int(found.sizes.sum()):,}",
            _estimate(found.whole_trace, found.whole_trace_low, found.whole_trace_high),
            "",
            *_pair(
                [found.whole_lambda_1, found.whole_residual, found.whole_sampling_error],
                found.whole_converged,
                sampled,
            ),
            _norm(found.whole_square, found.whole_square_low, found.whole_square_high),
        ]
    )
    count = len(found.samples)
    sampling = f"traces from {many(count, 'sample')}" if count else "all of it exact"
    return [
        operator(found.spec["operator"]),
        *table([*header, "Frobenius norm"], rows),
        f"{many(found.products, 'product')}, {found.check_products:,} more to check them; "
        f"{sampling}; intervals of 95 %, where there are none the number is exact",
    ]


def summary(found: Layers) -> str:
    """Return curvature per layer in a few words."""
    top = int(found.traces.argmax())
    words = f"{operator_name(found.spec['operator'])}: {_noun(found, len(found.layer))}"
    words += f", trace {found.whole_trace:.4g}, largest {found.layer[top]} {found.traces[top]:.4g}"
    words += f", lambda_1 {found.whole_lambda_1:.4g}"
    missing = int((~found.converged).sum()) + (not found.whole_converged)
    unknown = ", intervals unknown" if math.isnan(found.whole_trace_stderr) else ""
    return words + unknown + (f", {missing} NOT converged" if missing else "")


def _noun(found: Layers, count: int) -> str:
    noun = {"tensor": "tensor", "module": "module"}.get(found.spec["by"], "group")
    return noun if count == 1 else many(count, noun)


def _estimate(value: float, low: float, high: float) -> str:
    """Return a number with its interval, or alone where it is exact."""
    return f"{value:.6g}" if low == value == high else interval((value, low, high))


def _percent(value: float, low: float, high: float) -> str:
    """Return a share in percent, with its interval."""
    if math.isnan(value):
        return "unknown"
    shown = f"{100 * value:.3g} %"
    if low == value == high:
        return shown
    return f"{shown} [{'unknown' if math.isnan(low) else f'{100 * low:.3g}, {100 * high:.3g}'}]"


def _pair(numbers: list[float], converged: bool, sampled: bool) -> list[str]:
    """Return an eigenvalue, marked where it did not converge, its residual and sampling error."""
    value, residual, error = numbers
    mark = "" if converged else " (not converged)"
    return [f"{value:.6g}{mark}", f"{residual:.1e}", *([number(error, ".2g")] if sampled else [])]


def _norm(square: float, low: float, high: float) -> str:
    """Return a norm with its interval, from those of its square."""
    roots = (x if math.isnan(x) else math.sqrt(max(x, 0.0)) for x in (square, low, high))
    return _estimate(*roots)
