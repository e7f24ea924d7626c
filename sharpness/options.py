"""What the options of a request may be: an error tells of one that is something else."""

import math
from collections.abc import Iterable
from typing import Any

from sharpness.errors import InputError


def is_whole(x: Any, least: float = -math.inf, most: float = math.inf) -> bool:
    """Say whether x is a whole number in a range, ends included.

    >>> is_whole(2, 1, 2), is_whole(2.0, 1), is_whole(True, 1)
    (True, False, False)
    """
    return isinstance(x, int) and not isinstance(x, bool) and least <= x <= most


def require_whole(who: str, least: int, **numbers: Any) -> None:
    """Refuse numbers that are no whole numbers of at least so much."""
    for name, x in numbers.items():
        if not is_whole(x, least):
            raise InputError(
                f"{who} needs {name} to be a whole number of at least {least}, got {x}: change it"
            )


def require_counts(**counts: Any) -> None:
    """Refuse counts, such as of probes, that are no whole numbers of at least 1."""
    for name, x in counts.items():
        if not is_whole(x, 1):
            raise InputError(
                f"{name} need to be a whole number of at least 1, got {x}: change them"
            )


def require_positive(who: str, **numbers: Any) -> None:
    """Refuse numbers that are not positive and finite."""
    for name, x in numbers.items():
        if not (isinstance(x, int | float) and x > 0 and math.isfinite(x)):
            raise InputError(f"{who} needs {name} above 0 and finite, got {x}: change it")


def require_choice(who: str, choices: Iterable[str], **options: str) -> None:
    """Refuse options of an algorithm that are none of the choices."""
    for name, x in options.items():
        if x not in choices:
            raise InputError(
                f"{who} needs {name} to be {' or '.join(choices)}, got {x!r}: choose one"
            )


def require_one_of(choices: Iterable[str], **options: Any) -> None:
    """Refuse options that are none of the choices.

    >>> require_one_of(("gaussian", "uniform"), noise="pink")
    Traceback (most recent call last):
    sharpness.errors.InputError: noise needs to be one of gaussian, uniform, got 'pink': choose one
    """
    for name, x in options.items():
        if x not in choices:
            raise InputError(
                f"{name} needs to be one of {', '.join(choices)}, got {x!r}: choose one"
            )
