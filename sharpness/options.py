"""What the options of a request may be: an error tells of one that is something else."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sharpness.errors import InputError

# What is wanted of an option by name, in words and as a test.
Values = Mapping[str, tuple[str, Callable[[Any], bool]]]


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


def is_number(x: Any, least: float = -math.inf, most: float = math.inf) -> bool:
    """Say whether x is a finite number in a range, ends included.

    >>> is_number(0.5, 0, 1), is_number(math.nan), is_number(True), is_number("1")
    (True, False, False, False)
    """
    is_real = isinstance(x, int | float) and not isinstance(x, bool)
    return is_real and math.isfinite(x) and least <= x <= most


def require_entry(
    what: str,
    table: Mapping[str, Callable[..., Any]],
    name: str,
    options: Mapping[str, Any],
    values: Values,
    *,
    given: int,
) -> None:
    """Refuse a name that a table of functions lacks, or options that its function does not take.

    Args:
        what: Is in the table, in one word; its options are called by it too.
        table: The functions by name.
        name: Of one of them.
        options: Of that, by name.
        values: What is wanted of each option; the default of an option is always fine.
        given: How many parameters of each function come first and are no options.

    Raises:
        InputError: If the name or an option is unknown, one is missing, or not as wanted.
    """
    require_one_of(table, **{what: name})
    parameters = list(inspect.signature(table[name]).parameters.values())[given:]
    known = [p.name for p in parameters]
    for key in options:
        if key not in known:
            raise InputError(
                f"{what} {name} needs {' or '.join(known) or 'no'} options, got {key!r}: change "
                f"{what}_options"
            )
    for p in parameters:
        value = options.get(p.name, p.default)
        if value is p.empty:
            raise InputError(f"{what} {name} needs {p.name}, got none: give {what}_options")
        wanted, is_fine = values[p.name]
        if value != p.default and not is_fine(value):
            raise InputError(
                f"{what} {name} needs {wanted} as {p.name}, got {value!r}: change {what}_options"
            )
