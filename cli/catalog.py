"""``sharpness list``: the names that options take, and the results in a folder."""

import inspect
import json
import os
import re
from collections.abc import Iterator
from importlib import import_module
from inspect import Parameter
from pathlib import Path
from typing import Any

import click

from sharpness.errors import ComputationError, InputError

from .parameters import COMMON, reporting
from .show import say, summary

# What is listed, and the table of the library that has it.
TABLES = {
    "models": ("sharpness.models", "MODELS"),
    "activations": ("sharpness.building", "ACTIVATIONS"),
    "initializations": ("sharpness.building", "INITIALIZATIONS"),
    "data sets": ("sharpness.data", "DATA"),
    "data options": ("sharpness.data", "TRANSFORMS"),
    "losses": ("sharpness.problem", "LOSSES"),
    "optimizers": ("sharpness.optimizers", "OPTIMIZERS"),
    "methods of an update": ("sharpness.methods", "METHODS"),
    "averages of weights": ("sharpness.averages", "AVERAGES"),
    "batches": ("sharpness.sampling", "BATCHES"),
    "schedules": ("sharpness.schedules", "SCHEDULES"),
    "scalings of the rate": ("sharpness.schedules", "SCALINGS"),
    "measures": ("sharpness.measures", "MEASURES"),
    "operators": ("sharpness.operators", "OPERATORS"),
    "recipes": ("sharpness.experiments", "RECIPES"),
}
# Whose names are functions with options of their own, which a JSON object gives.
WITH_OPTIONS = (
    *("models", "data sets", "methods of an update", "averages of weights", "schedules"),
)


@click.command(context_settings=COMMON)
@click.argument("folders", nargs=-1, metavar="[DIR]...")
@reporting
def command(folders: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """List what there is by name, or the result files under each DIR.

    A damaged file is listed as such, and so is one that ends in .h5 and is no result.

    \b
    Examples:
      sharpness list
      sharpness list runs
      sharpness list --json runs/keskar
    """
    if not folders:
        _print_names(as_json)
        return
    for folder in folders:
        if not Path(folder).is_dir():
            raise InputError(f"list needs a directory, got {folder}: look at the name")
    found = [_described(path) for folder in folders for path in _results(Path(folder))]
    if as_json:
        say(json.dumps(found))
        return
    for entry in found:
        path = click.format_filename(entry["path"])
        say(
            f"{path}: {entry['type']} {entry['description']}"
            if entry["type"]
            else f"{path}: DAMAGED or no result of ours"
        )
    if not found:
        say("no results")


def _print_names(as_json: bool) -> None:
    names = {
        kind: {
            name: _line(name, value) + _told(_options(kind, name, value))
            for name, value in _table(*home).items()
        }
        for kind, home in TABLES.items()
    }
    if as_json:
        say(json.dumps(names))
        return
    for kind, lines in names.items():
        say(f"{kind}")
        width = max(map(len, lines))
        for name, line in lines.items():
            say(f"  {name:<{width}}  {line}")


def _table(module: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = getattr(import_module(module), name)
    return found


def _line(name: str, value: Any) -> str:
    """Return the first sentence of what a name stands for, without the verb."""
    text = getattr(value, "claim", None) or inspect.getdoc(value) or _of_torch(name)
    first = re.split(r"(?<=\.)\s", " ".join(text.split("\n\n")[0].split()))[0]
    first = re.sub(r"^(Return|Compute|Implements) ((the|a|an) )?", "", first).rstrip(".")
    return first[:1].upper() + first[1:]


def _options(kind: str, name: str, value: Any) -> dict[str, Any]:
    """Return the options of a name with their defaults, ``empty`` where one is needed."""
    if kind == "optimizers":
        of, names = _table("sharpness.optimizers", "OPTIONS")[name]
        parameters = inspect.signature(of).parameters
        return {option: parameters[option].default for option in names}
    if kind not in WITH_OPTIONS:
        return {}
    parameters = inspect.signature(value).parameters
    return {p.name: p.default for p in parameters.values() if p.kind is p.KEYWORD_ONLY}


def _told(options: dict[str, Any]) -> str:
    """Return options in parentheses, each with its default, as JSON, where it has one."""
    if not options:
        return ""
    needed = Parameter.empty
    words = [name if x is needed else f"{name}={json.dumps(x)}" for name, x in options.items()]
    return f" ({', '.join(words)})"


def _of_torch(name: str) -> str:
    """Return what torch says of an optimizer of this name."""
    torch_optimizers = vars(import_module("torch.optim"))
    known = {key.lower(): value for key, value in torch_optimizers.items() if key[0].isupper()}
    return inspect.getdoc(known.get(name)) or ""


def _results(folder: Path) -> Iterator[Path]:
    """Yield the files under a folder that are results or are named so, in order."""
    from sharpness.store import seal_of

    for parent, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            path = Path(parent, name)
            if not path.is_file() or name.startswith("."):
                continue
            if path.suffix == ".h5" or seal_of(path):
                yield path


def _described(path: Path) -> dict[str, Any]:
    """Return path, kind and a short description of a file, null if it is damaged."""
    from sharpness.store import load

    try:
        result = load(path)
    except ComputationError:
        return {"path": str(path), "damaged": True, "type": None, "description": None}
    told = {"type": type(result).__name__, "description": summary(result)}
    return {"path": str(path), "damaged": False, **told}
