"""Records in the reference: a dataclass says of each field what the comment at it says."""

import ast
import inspect
import re
import textwrap
from dataclasses import is_dataclass
from typing import Any

KEPT = re.compile(r"(``.*?``|(?<![\w*])\*\w+\*(?![\w*]))")  # literals, and a word that is stressed


def fields(record: type) -> list[tuple[str, str, str]]:
    """Return name, type and meaning of each field, the meaning from its comments."""
    source = textwrap.dedent(inspect.getsource(record))
    lines = source.splitlines()
    (definition,) = ast.parse(source).body
    found = []
    for node in getattr(definition, "body", []):
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        if ast.unparse(node.annotation).startswith("ClassVar"):
            continue
        last = node.end_lineno or node.lineno
        beside = lines[last - 1].encode()[node.end_col_offset :].decode()
        words = [*_above(lines[: node.lineno - 1]), beside.strip(" #")]
        if node.value is not None and not isinstance(node.value, ast.Call):
            words.append(f"(default ``{ast.unparse(node.value)}``)")
        found.append((node.target.id, _kind(node.annotation), " ".join(w for w in words if w)))
    return found


def _above(lines: list[str]) -> list[str]:
    comments: list[str] = []
    while lines and lines[-1].strip().startswith("#"):
        comments.insert(0, lines.pop().strip(" #"))
    return comments


def _kind(annotation: ast.expr) -> str:
    """Return a type in words: an array's axes are those of its HDF5 dataset."""
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Annotated":
        kind, *axes = getattr(annotation.slice, "elts", [])
        return f"{ast.unparse(kind)} over {', '.join(ast.literal_eval(axis) for axis in axes)}"
    return ast.unparse(annotation)


def escaped(line: str) -> str:
    r"""Return a line in which bars and stars, as of a norm or a product, stay what they are.

    >>> escaped("|A v| of ``a | b``")
    '\\|A v\\| of ``a | b``'
    """
    parts = KEPT.split(line)
    return "".join(
        part if i % 2 else re.sub(r"([|*])", r"\\\1", part) for i, part in enumerate(parts)
    )


def _docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    in_code = False
    for i, line in enumerate(lines):
        in_code = line.lstrip().startswith(">>>") or (in_code and bool(line.strip()))
        lines[i] = line if in_code else escaped(line)
    if what == "class" and is_dataclass(obj):
        lines += ["", ":Fields:"]
        for field, kind, meaning in fields(obj):
            about = f" -- {escaped(meaning)}" if meaning else ""
            lines.append(f"    * **{field}** (*{escaped(kind)}*){about}")
        lines.append("")


def _signature(
    app: Any, what: str, name: str, obj: Any, options: Any, given: str, returned: str
) -> tuple[str, str] | None:
    """Leave the parameters of a record to its fields."""
    return ("", "") if what == "class" and is_dataclass(obj) else None


def setup(app: Any) -> dict[str, bool]:
    """Listen before napoleon, which makes sections of the lines."""
    app.connect("autodoc-process-docstring", _docstring, priority=400)
    app.connect("autodoc-process-signature", _signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
