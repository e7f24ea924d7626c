"""What the library logs, on stderr while a command runs."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

LIBRARY = logging.getLogger("sharpness")


class _Lines(logging.Formatter):
    """Lines such as ``[1.3 s] lanczos: ...``, which take the place of a progress bar."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = time.time()

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        clear = "\r\x1b[K" if sys.stderr.isatty() else ""
        module = record.name.removeprefix("sharpness.")
        return f"{clear}[{record.created - self.begun:.1f} s] {module}: {record.getMessage()}"


def show_logs(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    """Let the library tell on stderr what it does."""
    if wanted and not _handlers():
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Lines())
        handler.set_name("sharpness.cli")
        LIBRARY.addHandler(handler)
        LIBRARY.setLevel(logging.INFO)


@contextmanager
def logs_of_one_command() -> Iterator[None]:
    """Take back afterwards what a command asked of the loggers."""
    level = LIBRARY.level
    try:
        yield
    finally:
        LIBRARY.setLevel(level)
        for handler in _handlers():
            LIBRARY.removeHandler(handler)


def _handlers() -> list[logging.Handler]:
    return [handler for handler in LIBRARY.handlers if handler.get_name() == "sharpness.cli"]
