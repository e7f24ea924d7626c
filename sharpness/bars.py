"""Progress of a long algorithm: a bar on a terminal or in a notebook, elsewhere some lines."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from importlib import import_module
from typing import Any

Progress = Callable[[int, int | None, str], None]
FAST, SLOW = 0.1, 10.0  # seconds between two reports, where they are written over and elsewhere
WIDTH = 24  # of the bar, in characters
WIDE = 70  # columns of a terminal that has room for it


@contextmanager
def progress(label: str, unit: str, *, quiet: bool = False) -> Iterator[Progress]:
    """Yield what every long algorithm takes as ``progress=``: it shows how far the work has come.

    It is called with (done, total or None, state). On a terminal one line of stderr is written
    over; a Jupyter notebook shows one bar; elsewhere a line follows every ten seconds.

    Args:
        label: What is computed.
        unit: What is counted, such as products.
        quiet: Show nothing.

    >>> with progress("squares", "numbers", quiet=True) as tell:
    ...     for i in range(3):
    ...         tell(i + 1, 3, f"square {i * i}")
    """
    shows = _nowhere if quiet else _in_notebook() or (_on_terminal if _terminal() else _in_lines)
    begun = time.monotonic()
    shown: float | None = None
    show, end = shows()

    def tell(done: int, total: int | None, state: str) -> None:
        nonlocal shown
        now = time.monotonic()
        wait = SLOW if shows is _in_lines else FAST
        last = done == total and (wait == FAST or now - begun >= SLOW)
        if not last and now - (begun if shown is None else shown) < wait:
            return
        shown = now
        count = f"{done:,} of {total:,} {unit}" if total else f"{done:,} {unit}"
        show(label, f"{count}, {state}, {now - begun:.0f} s", done / total if total else None)

    try:
        yield tell
    finally:
        end()


Show = Callable[[str, str, float | None], None]  # (label, words, share that is done)
End = Callable[[], None]


def _nowhere() -> tuple[Show, End]:
    return (lambda label, words, share: None), (lambda: None)


def _terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _on_terminal() -> tuple[Show, End]:
    """Write one line of the terminal over and over, and clear it at the end."""

    def show(label: str, words: str, share: float | None) -> None:
        columns = shutil.get_terminal_size().columns - 1
        filled = round(WIDTH * (share or 0))
        drawn = share is not None and columns > WIDE
        text = f"{label} [{'#' * filled}{'.' * (WIDTH - filled)}]" if drawn else label
        _write(f"\r{f'{text} {words}'[:columns]:<{columns}}")

    return show, lambda: _write("\r\x1b[K")


def _in_lines() -> tuple[Show, End]:
    return (lambda label, words, share: _write(f"{label} {words}\n")), (lambda: None)


def _write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _in_notebook() -> Callable[[], tuple[Show, End]] | None:
    """Return what shows a bar in the notebook that runs this, None outside of one."""
    # A notebook has imported IPython; nobody else shall have to.
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if getattr(shell, "kernel", None) is None:
        return None

    def shows() -> tuple[Show, End]:
        handle: Any = None

        def show(label: str, words: str, share: float | None) -> None:
            nonlocal handle
            value = "" if share is None else f' value="{share:.4f}"'
            bar = f"<progress{value}></progress>"
            told = {
                "text/plain": f"{label} {words}",
                "text/html": f"<div>{escape(label)} {bar} {escape(words)}</div>",
            }
            if handle is None:
                handle = import_module("IPython.display").display(told, raw=True, display_id=True)
            else:
                handle.update(told, raw=True)

        return show, lambda: None

    return shows
