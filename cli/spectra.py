"""What random probes tell of a spectrum, in words and numbers."""

import math

from sharpness.results import Density, Diagonal, Estimate
from sharpness.text import interval, operator_name, table

from .words import ends_of, many, number, operator

FEW = 5  # known eigenvalues that are told one by one
DIGITS = 8  # of a number whose error is 0, or far below it
UNSURE = 4  # digits of one whose error is unknown


def density(found: Density) -> list[str]:
    """Return the lines of a density."""
    spec, known = found.spec, found.known
    low, high = ends_of(found.nodes)
    lines = [
        operator(spec["operator"]),
        f"spectral density of {found.size:,} eigenvalues from {_probes(found)}: "
        f"{many(found.products, 'product')}, {found.check_products} more to check them",
        f"nodes from {low:.6g} to {high:.6g}",
    ]
    if len(known):
        first = ", ".join(f"{x:.6g}" for x in known[:FEW].tolist())
        more = ", ..." if len(known) > FEW else ""
        lines.append(f"beside {many(len(known), 'known eigenvalue')}, exact: {first}{more}")
    shares = (
        ("above 0", found.positive_mass),
        ("0 to rounding", found.zero_mass),
        ("below 0", found.negative_mass),
    )
    rows = [["mean eigenvalue", interval(found.moment(1))]]
    rows += [[f"share of eigenvalues {name}", interval(share)] for name, share in shares]
    lines += table(["over the probes", "with 95 % interval"], rows)
    return lines + _unresolved(found)


def _unresolved(found: Density) -> list[str]:
    """Return what share the nodes beside 0 stand for, which may be on the other side.

    Up to a node there is the weight below it at least, and with its own at most (Chebyshev, Markov
    and Stieltjes): no interval over the probes has that.
    """
    shares = []
    for nodes, weights in zip(found.nodes, found.weights, strict=True):
        below, above = (nodes < 0).nonzero().flatten()[-1:], (nodes > 0).nonzero().flatten()[:1]
        is_there = bool((nodes.abs() < found.rounding).any())  # an eigenvalue of 0, which is known
        if len(below) and len(above) and not is_there:
            shares.append(float(weights[below] + weights[above]))
    share = sum(shares) / len(found.nodes) * (1 - len(found.known) / found.size)
    if not share:
        return []
    steps = found.nodes.shape[1]
    return [f"nodes beside 0 have a share of {share:.2g}, whose sign {steps} steps do not tell"]


def _probes(found: Density) -> str:
    """Return of how many probes and steps a density is."""
    count, steps = found.nodes.shape
    return f"{many(count, 'probe')} of {many(steps, 'step')}"


def estimate(found: Estimate) -> list[str]:
    """Return the lines of an estimate."""
    spec = found.spec
    exact = f" ({found.exact:.{_digits(found)}g} of it exact)" if found.exact else ""
    lines = [
        operator(spec["operator"]),
        f"{_estimated(found)}, standard error {number(found.stderr, '.3g')}, of "
        f"{many(found.products, 'product')} by {spec['method']}{exact}",
    ]
    if not found.met:
        lines.append(f"{_unmet(found)}: raise the budget")
    deflated = spec["deflated"]
    known = f", beside {many(deflated, 'known eigenvalue')}" if deflated else ""
    return [
        *lines,
        f"{many(len(found.samples), 'sample')}{known}; {found.check_products} more products to "
        "check the operator",
    ]


def _estimated(found: Estimate) -> str:
    """Return what is estimated, with its interval, to the digits that its error leaves it."""
    digits = _digits(found)
    low, high = (f"{x:.{digits}g}" for x in found.interval.tolist())
    bounds = "unknown" if math.isnan(found.stderr) else f"{low}, {high}"
    return f"{found.quantity} {found.value:.{digits}g} [{bounds}]"


def _digits(found: Estimate) -> int:
    """Return how many digits of an estimate its error leaves, and two more, at least three."""
    value, error = abs(found.value), found.stderr
    if not error or math.isnan(error):
        return UNSURE if error else DIGITS
    return min(DIGITS, max(3, math.ceil(math.log10(value / error)) + 2 if value else 3))


def _unmet(found: Estimate) -> str:
    low, high = found.interval.tolist()
    half = (high - low) / 2 / abs(found.value) if found.value else math.nan
    return (
        f"NOT within rtol {found.spec['rtol']:g}, half of the interval is {number(half, '.2g')} "
        "of the value"
    )


def diagonal(found: Diagonal) -> list[str]:
    """Return the lines of a diagonal."""
    values, count = found.values, found.samples
    rows = []
    for name, i in (("largest", int(values.argmax())), ("smallest", int(values.argmin()))):
        error = float(found.stderr[i])
        rows.append([name, str(i), f"{float(values[i]):.6g}", number(error, ".2g")])
    below = f"{int((values < -2 * found.stderr).sum()):,} of {len(values):,}"
    return [
        operator(found.spec["operator"]),
        f"diagonal of {many(found.products, 'product')} by {found.spec['method']}, "
        f"{many(count, 'sample')}; {found.check_products} more to check the operator",
        *table(["entry", "parameter", "value", "standard error"], rows),
        f"sum {float(values.sum()):.6g}; below 0 by more than two standard errors: "
        f"{below if count > 1 else 'unknown'}",
    ]


def density_summary(found: Density) -> str:
    """Return a density in a few words."""
    ends = [*ends_of(found.nodes), *found.known.tolist()]
    words = (
        f"{operator_name(found.spec['operator'])}: {found.size:,} eigenvalues by {_probes(found)}"
    )
    words += f", {len(found.known)} known" if len(found.known) else ""
    return f"{words}, from {min(ends):.4g} to {max(ends):.4g}"


def estimate_summary(found: Estimate) -> str:
    """Return an estimate in a few words."""
    words = (
        f"{operator_name(found.spec['operator'])}: {_estimated(found)} by {found.spec['method']}"
    )
    return words if found.met else f"{words}, {_unmet(found)}"


def diagonal_summary(found: Diagonal) -> str:
    """Return a diagonal in a few words."""
    low, high = ends_of(found.values)
    words = f"{operator_name(found.spec['operator'])}: diagonal of {len(found.values):,} parameters"
    words += f" by {found.spec['method']}, {low:.4g} to {high:.4g}"
    return words + (", standard errors unknown" if found.samples < 2 else "")
