"""What all results can do: show themselves, and become tables of other libraries.

A record is a frozen dataclass of arrays, numbers and words. The names in the ``Annotated`` types
of its fields are the axes of an array; an axis named like a field, or like an entry of a dict of
arrays, has that for its coordinate.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from html import escape
from importlib import import_module
from typing import Annotated, Any, ClassVar, get_args, get_origin, get_type_hints

from torch import Tensor

from sharpness.errors import InputError

FEW = 10  # entries of an array that are shown one by one


class Shown:
    """What shows itself in a few words, also in notebooks."""

    def __repr__(self) -> str:
        """Return the fields in a few words each: of an array its shape, of the spec its keys."""
        told = (f"{f.name}={_brief(getattr(self, f.name))}" for f in fields(self))  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(told)})"

    def _repr_html_(self) -> str:
        """Return a table of the fields for notebooks, with the spec folded up."""
        rows = "".join(
            f'<tr><th style="text-align:left">{escape(name)}</th>'
            f'<td style="text-align:left">{escape(text)}</td></tr>'
            for name, text in _told(self)
        )
        spec = json.dumps(getattr(self, "spec", {}), indent=2, ensure_ascii=False)
        return (
            f"<div><strong>{escape(type(self).__name__)}</strong><table>{rows}</table>"
            f"<details><summary>spec</summary><pre>{escape(spec)}</pre></details></div>"
        )


class Record(Shown):
    """The base of the results."""

    rows: ClassVar[str]  # the axis along which ``to_pandas`` has its rows
    # What fields are that came later, in files that lack them, as functions of the other fields.
    later: ClassVar[Mapping[str, Callable[[Mapping[str, Any]], Any]]] = {}

    def to_xarray(self) -> Any:
        """Return an ``xarray.Dataset`` of the arrays, as ``xarray.open_dataset`` has their file.

        Axes and coordinates have their names; numbers, words and the spec, as JSON, are
        attributes. Solutions and the optimizer's state, which a file keeps in groups, are not in
        it.

        Raises:
            InputError: If xarray is not installed.
        """
        xarray = library("xarray")
        attributes: dict[str, Any] = {"type": type(self).__name__}
        variables = {}
        for name, kind, axes in layout(type(self)):
            value = getattr(self, name)
            if axes:
                for part, array in (value if isinstance(value, dict) else {name: value}).items():
                    data = array.detach().cpu().numpy() if isinstance(array, Tensor) else array
                    variables[part] = (axes, data, {"field": name})
            elif name == "spec":
                attributes[name] = json.dumps(value)
            elif kind in (bool, int, float, str):
                attributes[name] = int(value) if kind is bool else value
        named = {axis for axes, *_ in variables.values() for axis in axes} & variables.keys()
        coordinates = {name: variables.pop(name) for name in named}
        return xarray.Dataset(variables, coordinates, attributes)

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame`` of the arrays along the first axis of the table.

        A column is named as its field, or as its entry of a dict of arrays; the index is named as
        the axis.

        Raises:
            InputError: If pandas is not installed.
        """
        pandas = library("pandas")
        columns = {
            part: array.detach().cpu().numpy() if isinstance(array, Tensor) else array
            for name, _, axes in layout(type(self))
            if axes == (self.rows,)
            for part, array in _parts(name, getattr(self, name))
        }
        frame = pandas.DataFrame(columns)
        return frame.rename_axis(index=None if self.rows in columns else self.rows)


def layout(cls: type) -> list[tuple[str, Any, tuple[str, ...]]]:
    """Return (name, type, axes) of each field of a record.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Grid(Record):
    ...     values: Annotated[Tensor, "x", "y"]
    >>> layout(Grid)
    [('values', <class 'torch.Tensor'>, ('x', 'y'))]
    """
    hints = get_type_hints(cls, include_extras=True)
    split = {k: get_args(t) if get_origin(t) is Annotated else (t,) for k, t in hints.items()}
    return [(f.name, split[f.name][0], tuple(split[f.name][1:])) for f in fields(cls)]


def _parts(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the arrays of a field by name."""
    yield from value.items() if isinstance(value, dict) else [(name, value)]


def library(name: str) -> Any:
    """Return a module that sharpness can do without.

    Raises:
        InputError: If it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise InputError(
            f"this needs {name}, which is not installed: python -m pip install {name}"
        ) from error


def _told(record: Any) -> Iterator[tuple[str, str]]:
    """Yield the fields of a record but its spec, those of a dict one by one, each in words."""
    for field in fields(record):
        value = getattr(record, field.name)
        if field.name == "spec":
            continue
        if isinstance(value, dict) and value:
            for key, item in value.items():
                yield f"{field.name}[{key!r}]", _brief(item)
        else:
            yield field.name, _brief(value)


def _brief(value: Any) -> str:
    """Return a value in a few words."""
    if isinstance(value, Tensor):
        about = f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
        if value.ndim == 1 and 0 < len(value) <= FEW:
            return f"[{', '.join(_brief(x) for x in value.tolist())}] {about}"
        return about
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return f"{{{', '.join(map(repr, value))}}}"
    if isinstance(value, list) and len(value) > FEW:
        return f"{len(value)} of {type(value[0]).__name__}"
    if isinstance(value, list):
        return f"[{', '.join(map(_brief, value))}]"
    return str(value) if value is None or isinstance(value, Shown) else repr(value)
