"""What the words of several kinds of results have in common."""

import math
from typing import Any

from torch import Tensor

from sharpness.text import objective_spec, operator_name


def place(spec: dict[str, Any]) -> str:
    """Return on what an objective's spec says something was computed."""
    words = f"{spec['parameters']:,} parameters, {spec['dtype'].replace('torch.', '')}"
    words += f" by {spec['gemm']}" if "gemm" in spec else ""
    if "split" in spec:
        words += f", {spec['split']} part, {spec['examples']} of {spec['of']} examples"
    return words


def operator(made: dict[str, Any]) -> str:
    """Return of which operator something is, and on what that is."""
    objective = objective_spec(made)
    return f"{operator_name(made)}: {place(objective)}" if objective else operator_name(made)


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
