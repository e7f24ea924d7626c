"""Names on the command line and in files, and what they stand for.

A name is one of a table of ours or the user's ``module:function``. What a file names is never
imported on the file's word, for an import can run any code: a name must have been given by the
person in this process, as an argument or an option, or trusted outright.
"""

import difflib
import hashlib
import inspect
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sharpness.errors import ComputationError, InputError
from sharpness.text import plain

ARRAY_FILES = (".npz", ".h5", ".hdf5")  # how the names of files of data end
GIVEN: set[str] = set()  # the module:function names that the person gave in this process


def resolve(value: Any, table: Mapping[str, Any], kind: str) -> Any:
    """Return what a name stands for; an object stands for itself.

    Raises:
        InputError: If the name is neither in the table nor an importable ``module:function``.
    """
    if not isinstance(value, str):
        return value
    if value in table:
        return table[value]
    module_name, colon, name = value.partition(":")
    if not (colon and module_name and name):
        close = difflib.get_close_matches(value, table, 1)
        raise InputError(
            f"{kind} needs to be {', '.join(table)} or module:function, got {value!r}: "
            + (f"did you mean {close[0]}?" if close else "choose one")
        )
    GIVEN.add(value)
    _look_here()
    try:
        found: Any = import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{kind} needs a module that can be imported, got {value} and no module named "
            f"{error.name}: look at the spelling and the working directory"
        ) from error
    except (Exception, SystemExit) as error:
        raise InputError(f"{kind} {value} failed while imported: {located(error)}") from error
    if not hasattr(found, name):
        close = difflib.get_close_matches(name, dir(found), 1)
        hint = f"did you mean {close[0]}?" if close else "look at the spelling"
        raise InputError(f"{kind} needs a name in {module_name}, got {name}: {hint}")
    return getattr(found, name)


def is_array_file(name: Any) -> bool:
    """Say whether a name is that of a file of arrays.

    >>> is_array_file("runs/mine.npz"), is_array_file("nets:data")
    (True, False)
    """
    return isinstance(name, str) and Path(name).suffix.lower() in ARRAY_FILES


def source_digest(name: Any) -> str | None:
    """Return the SHA-256 of the file that a ``module:function`` is in, or of a file of arrays.

    None of other names.
    """
    if is_array_file(name):
        path = Path(name)
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
    if not (isinstance(name, str) and ":" in name):
        return None
    module_name = name.partition(":")[0]
    _look_here()
    origin = getattr(sys.modules.get(module_name), "__file__", None)
    if origin is None:
        try:
            found = find_spec(module_name)
        except (ImportError, ValueError):
            found = None  # refused by its name when it is imported
        origin = found.origin if found and found.has_location else None
    return hashlib.sha256(Path(origin).read_bytes()).hexdigest() if origin else None


def _look_here() -> None:
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)  # a console script does not look where it was started


def require_given(key: str, value: Any, *, explicit: bool) -> None:
    """Refuse a name that a file gives and the person did not.

    Raises:
        InputError: If it is ``module:function`` or stands for an object, unless it is explicit.
    """
    if not isinstance(value, str) or explicit:
        return
    if value.startswith("object "):
        raise InputError(
            f"the {key} of this run was an object in memory ({plain(value[7:])}), which no file "
            f"can keep: pass {key}="
        )
    if ":" in value and value not in GIVEN:
        raise InputError(
            f"the run's file names the {key} {plain(value)}, and importing it can run any code: "
            f"give it yourself by --{key} or {key}=, or trust the file by --trust-spec or "
            "trust_spec=True"
        )


def called(f: Callable[..., Any], kind: str, name: Any, options: dict[str, Any]) -> Any:
    """Return f(**options); its own errors are told as the user's."""
    if not callable(f):
        raise InputError(f"{kind} needs a function, got a {type(f).__name__} as {shown(name)}")
    try:
        inspect.signature(f).bind(**options)
    except TypeError as error:
        raise InputError(f"{kind} {shown(name)} cannot be called so: {error}") from error
    except ValueError:
        pass  # a builtin without a signature
    try:
        return f(**options)
    except (InputError, ComputationError):
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"{kind} {shown(name)} failed: {located(error)}") from error


def located(error: BaseException) -> str:
    """Return type, text and place of somebody else's error, in one line."""
    frame = error.__traceback__
    while frame and frame.tb_next:
        frame = frame.tb_next
    place = f" ({Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno})" if frame else ""
    return " ".join(f"{type(error).__name__} {error}{place}".split())


def named(f: Any) -> str:
    """Return ``module:name`` of a function or class, or of the class of an object."""
    known = f if hasattr(f, "__qualname__") else type(f)
    return f"{known.__module__}:{known.__qualname__}"


def shown(value: Any) -> str:
    """Return a name as it is, and of an object the words ``object module:name``."""
    return value if isinstance(value, str) else f"object {named(value)}"
