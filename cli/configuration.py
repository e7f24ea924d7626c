"""Options from a TOML file: the keys are the names of the options, the command line wins."""

import difflib
import json
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

from sharpness.errors import InputError

LEFT_OUT = ("config", "help", "debug")  # of the call itself


def read_options(ctx: click.Context, param: click.Parameter, path: str | None) -> None:
    """Take the options of this command from a file, as defaults of what is not given.

    A key is an option, by any of its names with dashes or underscores. A table that is named as
    a command holds options of that command alone, ``[run.keskar]`` those of a command in a
    group; they win over those outside.

    Raises:
        InputError: If the file cannot be read, or a key is no option.
    """
    if path is None:
        return
    names = _names(ctx.command)
    found: dict[str, Any] = {}
    table = _read(path)
    groups = list(_groups(ctx))
    for group, word in groups:
        found |= _options(table, names, group, path, ctx)
        table = table.get(word, {})
        if not isinstance(table, dict):
            raise InputError(f"{word} in {path} needs to be a table of options, got {table!r}")
    found |= _options(table, names, None, path, ctx)
    ctx.default_map = {**(ctx.default_map or {}), **found}


def _read(path: str) -> dict[str, Any]:
    file = Path(path)
    if file.exists() and not (file.is_file() or file.is_dir()):
        raise InputError(f"{path} is no regular file: give a TOML file")
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} needs to be a file that is there: look at the name") from error
    except IsADirectoryError as error:
        raise InputError(f"{path} is a directory: give a TOML file") from error
    except PermissionError as error:
        raise InputError(f"{path} needs to be readable: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} needs to be TOML: {error}") from error


def _groups(ctx: click.Context) -> Iterator[tuple[click.Group, str]]:
    """Yield the groups that lead to this command, with the word that follows each."""
    chain = [ctx]
    while chain[0].parent:
        chain.insert(0, chain[0].parent)
    for context, below in pairwise(chain):
        if isinstance(context.command, click.Group):
            yield context.command, str(below.info_name)


def _names(command: click.Command) -> dict[str, click.Option]:
    """Return the options by each of their names, as they are spelled after the dashes."""
    return {
        name.lstrip("-"): option
        for option in command.params
        if isinstance(option, click.Option) and option.name not in LEFT_OUT
        for name in option.opts
    }


def _options(
    table: dict[str, Any],
    names: dict[str, click.Option],
    group: click.Group | None,
    path: str,
    ctx: click.Context,
) -> dict[str, Any]:
    """Return the values of a table by the options' own names.

    Args:
        group: Whose commands may have tables here.
    """
    found: dict[str, Any] = {}
    commands = group.list_commands(ctx) if group else []
    for key, value in table.items():
        option = names.get(key.replace("_", "-"))
        if option is None and key in commands:
            continue  # the options of another command, or of this one
        if option is None:
            near = difflib.get_close_matches(key, [*names, *commands], 1)
            raise InputError(
                f"{path} needs options of {ctx.command_path}, got {key}: "
                + (f"did you mean {near[0]}?" if near else "see --help")
            )
        if option.name in found:
            raise InputError(f"{path} gives {key} twice, by two of its names: leave one out")
        found[str(option.name)] = _words(option, value)
    return found


def _words(option: click.Option, value: Any) -> Any:
    """Return a value as it would stand on the command line, for the option's own check."""
    if option.multiple:
        return [_word(item) for item in (value if isinstance(value, list) else [value])]
    return value if option.is_flag and isinstance(value, bool) else _word(value)


def _word(value: Any) -> str:
    if isinstance(value, str) and "\0" in value:  # which no word of a command line can have
        raise InputError(f"a configuration needs words without a zero byte, got {value!r}: drop it")
    return value if isinstance(value, str) else json.dumps(value, default=str)
