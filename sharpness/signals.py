"""Signals that end a computation, answered between two of its steps.

A program that wants so installs the handlers by ``answered``, as the command line does. Elsewhere
``whole`` does nothing: what Ctrl-C does in a script or a notebook is not the library's to change.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = [  # SIGUSR1 is what batch systems send ahead of their time limit
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
]


class Stopped(BaseException):
    """A signal asked the process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _State:
    blocks = 0  # of ``whole`` that are under way
    waiting: int | None = None  # the signal that came first
    is_raised = False  # and was answered


@contextmanager
def answered() -> Iterator[None]:
    """Raise ``Stopped`` at a signal: after the ``whole`` step under way, a second one at once.

    A signal that the process was started to ignore stays ignored.
    """
    _State.blocks, _State.waiting, _State.is_raised = 0, None, False
    previous = {
        number: signal.signal(number, _answer)
        for number in ENDING
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class _Whole:
    def __enter__(self) -> None:
        _State.blocks += 1

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        _State.blocks -= 1
        is_due = _State.waiting is not None and not (_State.blocks or _State.is_raised)
        if kind is None and is_due:
            _State.is_raised = True
            raise Stopped(_State.waiting or 0)


def whole() -> _Whole:
    """Let a first signal wait until the block is done.

    >>> with whole():
    ...     "a step that is done or not begun"
    'a step that is done or not begun'
    """
    return _Whole()


def _answer(number: int, frame: FrameType | None) -> None:
    is_first = _State.waiting is None
    if is_first:
        _State.waiting = number
    if _State.blocks == 0 or not is_first:
        _State.is_raised = True
        raise Stopped(number)
