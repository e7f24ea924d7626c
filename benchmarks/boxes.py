"""Metric 2.1: SciPy's L-BFGS-B as in the paper beside the sign iteration, and what we add to each.

The rival is SciPy itself, called as our faithful mode calls it: ten iterations from one random
start. Times run from a model and data in memory; both take the same gradients.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import sharpness as sh
from sharpness.box_climbs import Climb
from sharpness.box_sharpness import ways_up
from sharpness.boxes import Box

from .workloads import Workload

if TYPE_CHECKING:
    from .__main__ import Session

NAMES = ("W1", "W2")
EPSILON, ITERATIONS = 1e-3, 10  # of the paper
SIGNS = 5  # starts of the sign iteration at most


def boxes(session: "Session") -> None:
    """Read the time to the faithful mode's value over ours, and what both add to gradients."""
    for name in NAMES:
        if name not in session.names:
            continue
        for _ in range(session.rounds):
            for fast in (False, True):
                _compare(session, name, fast=fast)


def _compare(session: "Session", name: str, *, fast: bool) -> None:
    faithful = session.ask("box", name, way="faithful", fast=fast)
    signs = faithful and session.ask(
        "box", name, way="signs", fast=fast, target=faithful["highest"]
    )
    key = f"{name} fast" if fast else name
    if not (faithful and signs):
        return
    needed = faithful["gradient_seconds"] + faithful["scipy_seconds"]
    session.read(f"beside faithful {key}", faithful["seconds"] / needed - 1)
    session.read(f"SciPy in faithful {key}", faithful["scipy_seconds"] / faithful["seconds"])
    session.read(f"beside signs {key}", 1 - signs["gradient_seconds"] / signs["seconds"])
    passed = signs["passed"]
    # Never is no time at all: a bar that is not reached.
    session.read(f"signs {key}", faithful["seconds"] / passed["seconds"] if passed else 0.0)
    if passed:
        session.read(f"gradients of signs {key}", passed["gradients"])


def climb(w: Workload, way: str, *, fast: bool, target: float | None = None) -> dict[str, Any]:
    """Return what one way up found and spent: seconds, those in gradients, and those in SciPy.

    Args:
        way: ``faithful`` or ``signs``, from the gradient and then from random vertices.
        fast: Whether under ``sharpness.fast_gemm``, whose check is not part of the time.
        target: A rise; ``passed`` tells when a higher one was found, None if never.
    """
    with sh.fast_gemm() if fast else nullcontext():
        f = w.objective()
        f.value_and_gradient(f.theta)  # looks at data and model twice, and starts threads
        spent = _timed(f)
        begun = time.perf_counter()
        box = Box(f, f.at(f.theta), EPSILON)
        ways = ways_up(box, int(way == "faithful"), SIGNS * (way == "signs"), ITERATIONS, 0)
        first: dict[str, float] | None = None
        highest, scipy, gradients = 0.0, 0.0, 1
        for start in ways.values():
            done = _Watched(box, begun, target)
            start(done)
            highest, scipy = max(highest, done.best), scipy + done.scipy_seconds
            if done.passed and first is None:
                first = {**done.passed, "gradients": gradients + done.passed["gradients"]}
            gradients += done.gradients
            if first is not None:
                break
        seconds = time.perf_counter() - begun
    return {
        "seconds": seconds,
        "gradient_seconds": sum(spent),
        "scipy_seconds": scipy,
        "gradients": gradients,
        "highest": highest,
        "passed": first,
    }


class _Watched(Climb):
    """A climb that tells when it came above a target."""

    def __init__(self, box: Box, begun: float, target: float | None) -> None:
        super().__init__(box)
        self.begun, self.target = begun, target
        self.passed: dict[str, float] | None = None

    def take(self, rise: float, z: Any) -> None:
        super().take(rise, z)
        if self.target is not None and self.passed is None and rise > self.target:
            seconds = time.perf_counter() - self.begun
            self.passed = {"seconds": seconds, "gradients": self.gradients}


def _timed(f: sh.Objective) -> list[float]:
    """Return the seconds of each loss and gradient that f finds from now on."""
    spent: list[float] = []

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def act(*args: Any) -> Any:
            begun = time.perf_counter()
            found = function(*args)
            spent.append(time.perf_counter() - begun)
            return found

        return act

    for name in ("value", "value_and_gradient"):
        setattr(f, name, timed(getattr(f, name)))
    return spent
