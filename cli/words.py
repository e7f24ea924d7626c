"""What the words of several kinds of results have in common."""

import math
from typing import Any

from torch import Tensor


def place(spec: dict[str, Any]) -> str:
    """Return on what an objective's spec says something was computed."""
    words = f"{spec['parameters']:,} parameters, {spec['dtype'].replace('torch.', '')}"
    words += f" by {spec['gemm']}" if "gemm" in spec else ""
    if "split" in spec:
        words += f", {spec['split']} part, {spec['examples']} of {spec['of']} examples"
    return words


def operator(made: dict[str, Any]) -> str:
    """Return of which operator something is, and on what that is."""
    objective = _objective(made)
    return f"{operator_name(made)}: {place(objective)}" if objective else operator_name(made)


def operator_name(made: dict[str, Any]) -> str:
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


def _objective(made: dict[str, Any]) -> Any:
    """Return the spec of the objective that an operator is of, None where there is none."""
    if made["operator"] == "Sum":
        return next(filter(None, (_objective(term["of"]) for term in made["terms"])), None)
    return _objective(made["of"]) if "of" in made else made.get("objective")


def many(count: int, noun: str, plural: str = "s") -> str:
    """Return a count and its noun, with this ending of the plural.

    >>> many(1, "probe"), many(1200, "step"), many(2, "batch", "es")
    ('1 probe', '1,200 steps', '2 batches')
    """
    return f"{count:,} {noun}{plural if count != 1 else ''}"


def ends_of(values: Tensor) -> tuple[float, float]:
    """Return the smallest and the largest of the numbers that there are."""
    known = values[~values.isnan()]
    return float(known.min()), float(known.max())


def number(x: float, form: str) -> str:
    """Return a number in a form, or that it is unknown."""
    return "unknown" if math.isnan(x) else f"{x:{form}}"
