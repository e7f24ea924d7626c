"""Progress on stderr: a line that is written over on a terminal, now and then a line elsewhere."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[int, int | None, str], None]
FAST, SLOW = 0.1, 10.0  # seconds between two reports, on a terminal and elsewhere
WIDTH = 24  # of the bar, in characters
WIDE = 70  # columns of a terminal that has room for it


@contextmanager
def bar(label: str, unit: str, *, quiet: bool) -> Iterator[Progress]:
    """Yield a function of (done, total or None, state) that shows how far the work has come."""
    terminal = sys.stderr.isatty()
    begun = shown = time.monotonic()

    def show(done: int, total: int | None, state: str) -> None:
        nonlocal shown
        now = time.monotonic()
        if quiet or (now - shown < (FAST if terminal else SLOW) and done != total):
            return
        if not terminal and done == total and now - begun < SLOW:
            return
        shown = now
        count = f"{done:,} of {total:,} {unit}" if total else f"{done:,} {unit}"
        filled = round(WIDTH * done / total) if total else 0
        columns = shutil.get_terminal_size().columns - 1
        drawn = f" [{'#' * filled}{'.' * (WIDTH - filled)}]" if total and columns > WIDE else ""
        text = f"{label}{drawn if terminal else ''} {count}, {state}, {now - begun:.0f} s"
        if terminal:
            sys.stderr.write(f"\r{text[:columns]:<{columns}}")
        else:
            sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    try:
        yield show
    finally:
        if terminal and not quiet:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
