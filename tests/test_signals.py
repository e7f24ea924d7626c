"""A first signal waits for the step under way, a second one for nothing."""

import os
import signal

import pytest

from sharpness.signals import ENDING, Stopped, answered, whole


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def steps(*numbers: int, done: list[str]) -> None:
    """A step within a step, in which signals come."""
    with whole():
        with whole():
            for number in numbers:
                send(number)
            done.append("inner")
        done.append("outer")


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_outside_of_a_step_stops_at_once(number: int) -> None:
    with answered(), pytest.raises(Stopped) as caught:
        send(number)
    assert caught.value.number == number


def test_a_signal_in_a_step_stops_behind_it_and_once() -> None:
    done: list[str] = []
    with answered():
        with pytest.raises(Stopped) as caught:
            steps(signal.SIGTERM, done=done)
        steps(done=done)  # what is done on the way out
    assert caught.value.number == signal.SIGTERM
    assert done == ["inner", "outer"] * 2


def test_a_second_signal_stops_in_the_middle_of_a_step() -> None:
    done: list[str] = []
    with answered():
        with pytest.raises(Stopped) as caught:
            steps(signal.SIGTERM, signal.SIGINT, done=done)
        assert caught.value.number == signal.SIGINT
        with pytest.raises(Stopped):  # also on the way out of the first one
            steps(signal.SIGINT, done=done)
    assert not done


def test_an_error_of_the_step_is_not_hidden_by_the_signal() -> None:
    with answered(), pytest.raises(TypeError):
        steps(signal.SIGTERM, "no number", done=[])  # type: ignore[arg-type]


def test_what_was_ignored_stays_ignored_and_the_handlers_come_back() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    own = signal.getsignal(signal.SIGINT)
    try:
        with answered():
            send(signal.SIGTERM)
            assert signal.getsignal(signal.SIGINT) is not own
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGTERM, before)


def test_outside_of_a_command_ctrl_c_is_what_python_makes_of_it() -> None:
    with pytest.raises(KeyboardInterrupt), whole():
        signal.raise_signal(signal.SIGINT)
