"""Dictionaries of arrays in Python pickles, without Python's unpickler.

A pickle is a program, and Python's unpickler calls what it names and makes room for what it
claims. Here its operations are read one by one (``pickletools``), those that build numbers, text,
lists, tuples and dictionaries are done, and of all names four are known, by which NumPy writes an
array of bytes. Nothing is imported or called, and nothing is larger than the file.
"""

import math
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharpness.errors import ComputationError
from sharpness.text import plain

VALUES = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE"),
    *("BINBYTES", "SHORT_BINBYTES"),
}
FRESH: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
IDLE = {"PROTO", "FRAME"}
NAMES = {
    "numpy.core.multiarray _reconstruct": "array",
    "numpy._core.multiarray _reconstruct": "array",
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    "_codecs encode": "encode",
}


class _RefusedError(Exception):
    """The pickle holds what is not read."""


class _Mark:
    """The place on the stack where a list of things begins."""


class _Name:
    """One of the names that are known."""

    def __init__(self, means: str) -> None:
        self.means = means


class _Array:
    """An array of bytes that NumPy makes in two steps."""

    def __init__(self) -> None:
        self.value: NDArray[np.uint8] | None = None


def unpickled(raw: bytes, path: Path) -> dict[str, Any]:
    """Return the dictionary in a pickle by its names; its arrays are of bytes.

    Raises:
        ComputationError: If the pickle is damaged, or holds anything but text, numbers, lists and
            arrays of bytes.

    >>> import pickle
    >>> content = {b"labels": [3, 1], b"data": np.arange(4, dtype=np.uint8).reshape(2, 2)}
    >>> found = unpickled(pickle.dumps(content, protocol=2), Path("data_batch_1"))
    >>> found["labels"], found["data"].tolist()
    ([3, 1], [[0, 1], [2, 3]])
    """
    try:
        found = _content(raw)
    except _RefusedError as error:
        raise ComputationError(
            f"{path} is refused, for a batch of images needs no more than text, numbers and "
            f"arrays of bytes, but it holds {plain(error)}: get the original file"
        ) from error
    except (ValueError, TypeError, LookupError, OverflowError) as error:
        raise ComputationError(f"{path} is damaged ({plain(error)}): get it again") from error
    if not isinstance(found, dict):
        raise ComputationError(f"{path} needs a dictionary, got a {type(found).__name__}")
    return {
        key if isinstance(key, str) else key.decode("latin-1"): (
            value.value if isinstance(value, _Array) else value
        )
        for key, value in found.items()
    }


def _content(raw: bytes) -> Any:
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    operations: Any = pickletools.genops(raw)
    for operation, value, _ in operations:
        name = operation.name
        if name in VALUES:
            stack.append(value)
        elif name in FRESH:
            stack.append(FRESH[name]())
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[value])
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if value is None else value] = stack[-1]
        elif name == "MARK":
            stack.append(_Mark())
        elif name in TUPLES:
            stack.append(tuple(_popped(stack, TUPLES[name])))
        elif name in ACTIONS:
            ACTIONS[name](stack)
        elif name == "GLOBAL":
            stack.append(_known(value))
        elif name == "STOP":
            break
        elif name not in IDLE:
            raise _RefusedError(f"the operation {name}")
    return stack.pop()


def _popped(stack: list[Any], count: int) -> list[Any]:
    if count > len(stack):
        raise ValueError("an operation without its operands")
    taken = stack[len(stack) - count :]
    del stack[len(stack) - count :]
    return taken


def _to_mark(stack: list[Any]) -> list[Any]:
    for count, value in enumerate(reversed(stack)):
        if isinstance(value, _Mark):
            return _popped(stack, count + 1)[1:]
    raise ValueError("a list without its beginning")


def _known(name: str) -> _Name:
    if name not in NAMES:
        raise _RefusedError(f"the name {name.replace(' ', '.')}")
    return _Name(NAMES[name])


def _stack_global(stack: list[Any]) -> None:
    module, name = _popped(stack, 2)
    stack.append(_known(f"{module} {name}"))


def _append(stack: list[Any], values: list[Any]) -> None:
    if not isinstance(stack[-1], list):
        raise TypeError("what is no list grows")
    stack[-1].extend(values)


def _set(stack: list[Any], values: list[Any]) -> None:
    if not isinstance(stack[-1], dict) or len(values) % 2:
        raise TypeError("what is no dictionary gets entries")
    for key, value in zip(values[::2], values[1::2], strict=True):
        if not isinstance(key, str | bytes):  # the hash of tuples in tuples has no end
            raise _RefusedError(f"a {type(key).__name__} as a key")
        stack[-1][key] = value


def _reduce(stack: list[Any]) -> None:
    """Do what a call of one of the four names would."""
    function, arguments = _popped(stack, 2)
    means = function.means if isinstance(function, _Name) else ""
    if means == "array":
        stack.append(_Array())
    elif means == "dtype" and arguments[0] in ("u1", b"u1"):
        stack.append(_Name("u1"))
    elif means == "encode" and arguments[1] == "latin1":
        stack.append(arguments[0].encode("latin-1") if isinstance(arguments[0], str) else b"")
    else:
        given = f" of {plain(arguments[0])}" if means == "dtype" else ""
        raise _RefusedError(f"a call of {means or type(function).__name__}{given}")


def _build(stack: list[Any]) -> None:
    """Give an array its shape and its bytes."""
    array, state = _popped(stack, 2)
    stack.append(array)
    if isinstance(array, _Name) and array.means == "u1":
        return  # a byte has no order, fields or alignment
    if not isinstance(array, _Array):
        raise _RefusedError(f"a state of a {type(array).__name__}")
    _, shape, kind, fortran, data = state
    if not (isinstance(kind, _Name) and kind.means == "u1"):
        raise _RefusedError("an array of something else than bytes")
    content = data.encode("latin-1") if isinstance(data, str) else data
    if not isinstance(content, bytes):
        raise _RefusedError(f"an array of a {type(content).__name__}")
    sizes = [x for x in shape if type(x) is int and x >= 0]
    if len(sizes) < len(shape) or math.prod(sizes) != len(content):
        raise ValueError(f"an array of shape {tuple(shape)} in {len(content):,} bytes")
    order: Any = "F" if fortran else "C"
    array.value = np.frombuffer(content, np.uint8).reshape(sizes, order=order)


ACTIONS: dict[str, Callable[[list[Any]], None]] = {
    "TUPLE": lambda stack: stack.append(tuple(_to_mark(stack))),
    "APPEND": lambda stack: _append(stack, _popped(stack, 1)),
    "APPENDS": lambda stack: _append(stack, _to_mark(stack)),
    "SETITEM": lambda stack: _set(stack, _popped(stack, 2)),
    "SETITEMS": lambda stack: _set(stack, _to_mark(stack)),
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "BUILD": _build,
}
