"""Progress is shown where it can be seen, and nowhere else."""

import sys
import time
from types import ModuleType
from typing import Any

import pytest

from sharpness.bars import progress


class Notebook(ModuleType):
    """What a kernel has of IPython, and the displays that it shows."""

    def __init__(self, *, kernel: object) -> None:
        super().__init__("IPython")
        self.kernel = kernel
        self.displays: list[list[dict[str, str]]] = []
        self.display = ModuleType("IPython.display")
        self.display.display = self.new  # type: ignore[attr-defined]

    def get_ipython(self) -> "Notebook":
        return self

    def new(self, told: dict[str, str], *, raw: bool, display_id: bool) -> Any:
        assert raw
        assert display_id
        shown = [told]
        self.displays.append(shown)

        class Handle:
            def update(self, told: dict[str, str], *, raw: bool) -> None:
                shown.append(told)

        return Handle()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that is moved by hand."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def notebook(monkeypatch: pytest.MonkeyPatch, *, kernel: object) -> Notebook:
    made = Notebook(kernel=kernel)
    monkeypatch.setitem(sys.modules, "IPython", made)
    monkeypatch.setitem(sys.modules, "IPython.display", made.display)
    return made


def work(clock: list[float], *, quiet: bool = False, step: float = 1.0) -> None:
    with progress("a & b", "points", quiet=quiet) as tell:
        for i in range(4):
            clock[0] += step
            tell(i + 1, 4, "loss < 1")


def test_a_notebook_has_one_bar_that_moves(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = notebook(monkeypatch, kernel=object())
    work(clock)
    ((*_, last),) = made.displays
    assert len(made.displays[0]) == 4
    assert last["text/plain"] == "a & b 4 of 4 points, loss < 1, 4 s"
    assert "a &amp; b" in last["text/html"]
    assert 'value="1.0000"' in last["text/html"]
    assert capsys.readouterr() == ("", "")


def test_ipython_in_a_terminal_is_no_notebook(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = notebook(monkeypatch, kernel=None)
    work(clock, step=6.0)
    assert not made.displays
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "a & b 2 of 4 points, loss < 1, 12 s",
        "a & b 4 of 4 points, loss < 1, 24 s",
    ]


@pytest.mark.parametrize("step", [0.5, 60.0])
def test_quiet_work_and_short_work_say_nothing(
    step: float, clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    work(clock, quiet=step > 1, step=step)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_has_one_line_that_is_gone_at_the_end(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    work(clock)
    told = capsys.readouterr().err
    assert told.count("\r") == 5
    assert "\n" not in told
    assert f"a & b [{'#' * 12}{'.' * 12}] 2 of 4 points, loss < 1, 2 s" in told
    assert told.endswith("\r\x1b[K")


def test_ipython_is_not_imported_for_it(clock: list[float]) -> None:
    there = "IPython" in sys.modules
    work(clock, quiet=False, step=0.1)
    assert ("IPython" in sys.modules) == there
