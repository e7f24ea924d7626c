"""Numbers and tables in words, for terminals."""

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH = 100
LARGE = 1000.0  # numbers above it are told by three significant digits
SMALL = 0.2  # numbers all below it are told by two significant digits, not by two decimals
LONGEST = 120  # letters of a foreign file that are told


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table, the first column to the left and all others to the right.

    >>> table(["arm", "loss"], [["SB", "0.1"], ["LB 600", "0.25"]])
    ['arm     loss', 'SB       0.1', 'LB 600  0.25']
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, *rows)
    ]


def wrapped(text: str, indent: str) -> list[str]:
    """Return the lines of a paragraph.

    >>> wrapped("- " + 12 * "a word, " + "end", "  ")[1]
    '  end'
    """
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent)


def interval(numbers: Sequence[float]) -> str:
    """Return ``estimate [low, high]``; what is NaN is unknown.

    >>> interval((2.0, 1.5, 2.5)), interval((2.0, float("nan"), float("nan")))
    ('2.00 [1.50, 2.50]', '2.00 [unknown]')
    >>> interval((0.0123, -0.0456, 0.0789))
    '0.012 [-0.046, 0.079]'
    >>> interval((31.93, 0.001, 1015843.99))
    '31.93 [0.001, 1.02e+06]'
    """
    estimate, low, _ = numbers
    if math.isnan(estimate):
        return "unknown"
    largest = max(abs(x) for x in numbers if not math.isnan(x))
    form = ".2f" if largest >= SMALL else "#.2g"
    said, *bounds = (_digits(x, form) for x in numbers)
    return f"{said} [unknown]" if math.isnan(low) else f"{said} [{', '.join(bounds)}]"


def differences(there: Any, asked: Any, name: str = "") -> str:
    """Return where two trees of JSON values differ, by name.

    >>> differences({"k": 5, "seed": 0}, {"k": 9, "seed": 0})
    'k 5 there, 9 asked for'
    """
    if isinstance(there, dict) and isinstance(asked, dict):
        keys = [key for key in {**there, **asked} if there.get(key) != asked.get(key)]
        return "; ".join(differences(there.get(key), asked.get(key), key) for key in keys)
    return f"{name or 'request'} {_short(there)} there, {_short(asked)} asked for"


def _short(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:18]}...{text[-18:]}"


def _digits(x: float, form: str) -> str:
    text = f"{x:{form}}"
    if abs(x) > LARGE:
        return f"{x:.3g}"
    return f"{x:.1g}" if x and not text.strip("-0.") else text


def plain(text: object) -> str:
    r"""Return text of a foreign file as a terminal may show it: one line, plain letters.

    >>> plain("conv1.weight"), plain("\x1b[2J")
    ('conv1.weight', '\\x1b[2J')
    """
    line = " ".join(str(text).split())
    shown = "".join(c if c.isascii() and c.isprintable() else ascii(c)[1:-1] for c in line)
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 3]}..."


def operator_name(made: Mapping[str, Any]) -> str:
    """Return what an operator is, and what it is made of.

    >>> of = {"operator": "Hessian"}
    >>> operator_name({"operator": "Block", "params": ["0.weight"], "of": of})
    'Hessian on 0.weight'
    >>> operator_name({"operator": "WeightDecayed", "weight_decay": 0.1, "params": None, "of": of})
    'Hessian + 0.1 I'
    """
    kind = str(made["operator"])
    if kind == "Sum":
        terms = [f"{x['factor']:g} {operator_name(x['of'])}" for x in made["terms"]]
        return " + ".join(terms)
    if "of" not in made:
        return kind
    inner = operator_name(made["of"])
    names = ", ".join(made.get("params") or [])
    if kind == "Block":
        return f"{inner} on {names or 'some unknowns'}"
    if kind == "WeightDecayed":
        return f"{inner} + {made['weight_decay']:g} I" + (f" on {names}" if names else "")
    return f"{kind} {inner}"


def objective_spec(made: Mapping[str, Any]) -> Any:
    """Return the spec of the objective that an operator is of, None where there is none."""
    if made["operator"] == "Sum":
        return next(filter(None, (objective_spec(term["of"]) for term in made["terms"])), None)
    return objective_spec(made["of"]) if "of" in made else made.get("objective")
