"""Run the blocks of a page in their order, in one process: python tests/page.py PAGE.

Commands run in this folder as the installed ``sharpness`` would run them, Python in one session as
in a notebook, and output that a page shows is compared with what the last commands printed.
"""

import io
import os
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

FENCE = re.compile(
    r"^```(?:\{code-block\} )?(\w+)\n(?::caption: (\S+)\n\n)?(.*?)^```$", re.MULTILINE | re.DOTALL
)
NUMBER = re.compile(r"[-+]?\d[\d.,]*(?:e[-+]?\d+)?")
UNTRIED = {"sh", "matlab"}  # installations and whole experiments; the programs of others


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """Return language, file name and text of each block."""
    return FENCE.findall(page.read_text(encoding="utf-8"))


def play(page: Path) -> None:
    """Run a page."""
    session: dict[str, Any] = {}
    printed = ""
    for language, name, text in blocks(page):
        if name:
            Path(name).write_text(text)
        elif language == "bash":
            printed = typed(text)
        elif language == "python":
            exec(compile(text, page.name, "exec"), session)  # noqa: S102
        elif language == "text":
            lines = printed.splitlines()
            missing = [x for x in text.splitlines() if not any(alike(x, line) for line in lines)]
            assert not missing, f"{missing} not in {printed}"
        else:
            assert language in UNTRIED, f"{page.name} has a block of {language}"


def typed(text: str) -> str:
    """Return what the commands print."""
    lines = text.replace("\\\n", "").splitlines()
    if not all(line.startswith("sharpness ") for line in lines):
        done = subprocess.run(["bash", "-ec", text], capture_output=True, text=True, check=True)  # noqa: S607
        return done.stdout
    return "".join(command(shlex.split(line)[1:]) for line in lines)


def command(args: list[str]) -> str:
    """Return what a command prints, in this process: each of its own would import torch anew."""
    from sharpness.cli import main

    from sharpness import names

    names.GIVEN.clear()  # a new process knows no names
    code: Any = 0
    with redirect_stdout(io.StringIO()) as output:
        try:
            main(args)
        except SystemExit as ended:
            code = ended.code
    assert not code, f"sharpness {shlex.join(args)} ended with {code}"
    return output.getvalue()


def alike(shown: str, printed: str) -> bool:
    """Say whether two lines have the same words, and numbers that only rounding sets apart.

    Another machine rounds otherwise, which a training amplifies; numbers of the size of a rounding
    have but their place.

    >>> alike("loss 0.0082, 599 of 600", "loss  0.0081, 600 of 600"), alike("loss 1", "loss 2")
    (True, False)
    """
    words = [" ".join(NUMBER.sub("#", line).split()) for line in (shown, printed)]
    if words[0] != words[1]:
        return False
    pairs = zip(numbers(shown), numbers(printed), strict=True)
    return all(abs(a - b) <= 0.25 * max(abs(a), abs(b)) or max(a, b) < 1e-3 for a, b in pairs)


def numbers(line: str) -> list[float]:
    """Return the numbers in a line."""
    return [float(x.replace(",", "").rstrip(".")) for x in NUMBER.findall(line)]


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity"):  # for one core no command starts processes of its own
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    play(Path(sys.argv[1]))
