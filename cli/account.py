"""What the products of an operator cost: an estimate before a long search, an account after it."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sharpness.bars import Progress

from .show import note

if TYPE_CHECKING:
    from sharpness.curvature import Curvature

TRIED = 5  # products before the estimate: the first of them builds the graphs
LONG = 30.0  # seconds, from which on it is told
BEYOND = 15  # products beside the pairs that even an easy spectrum takes, those of checks included


class Account:
    """The products and seconds of one search for k eigenpairs, told on stderr."""

    def __init__(self, k: int) -> None:
        self.k, self.is_told, self.total = k, False, 0.0

    @contextmanager
    def of(self, A: "Curvature") -> Iterator[None]:
        """Take the time of a search for eigenpairs of A."""
        self.A, begun = A, time.perf_counter()
        yield
        self.total = time.perf_counter() - begun

    def told(self, progress: Progress) -> Progress:
        """Return the callback that estimates the time once it can, and goes on to another."""

        def called(done: int, total: int | None, state: str) -> None:
            if not self.is_told and self.A.products >= TRIED:
                self.is_told = True
                self._estimate()
            progress(done, total, state)

        return called

    def _estimate(self) -> None:
        each, least = self.A.seconds / self.A.products, min(self.A.size, self.k + BEYOND)
        if least * each > LONG:
            note(
                f"a product takes about {_duration(each)}: at least {least} of them, "
                f"{_duration(least * each)}, and more where eigenvalues lie close"
            )

    def close(self) -> None:
        """Tell what was spent."""
        A = self.A
        note(
            f"{A.products} products of {_duration(A.seconds / A.products)}, "
            f"{1 - A.seconds / self.total:.0%} of {_duration(self.total)} beside them, "
            f"engine {A.engine}, peak memory {peak()}"
        )


def _duration(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def peak() -> str:
    """Return the largest memory of this process so far, and of the GPUs that it used."""
    unit = 1 if sys.platform == "darwin" else 1024
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    torch = sys.modules.get("torch")
    used = torch.cuda.max_memory_allocated() if torch and torch.cuda.is_initialized() else 0
    gpu = f", {used / 2**20:,.0f} MiB on the GPU" if used else ""
    return f"{host / 2**20:,.0f} MiB{gpu}"
