"""What the products of an operator cost: an estimate before a long search, an account after it."""

import resource
import sys
import time
from typing import TYPE_CHECKING

from sharpness.bars import Progress

from .show import note

if TYPE_CHECKING:
    from sharpness.curvature import Curvature

TRIED = 5  # products before the estimate: the first of them builds the graphs
LONG = 30.0  # seconds, from which on it is told
BEYOND = 15  # products beside the pairs that even an easy spectrum takes, those of checks included


class Account:
    """The products and seconds of one search for k eigenpairs of A, told on stderr."""

    def __init__(self, A: "Curvature", k: int) -> None:
        self.A, self.k = A, k
        self.begun, self.is_told = time.perf_counter(), False

    def told(self, progress: Progress) -> Progress:
        """Return the callback that estimates the time once it can, and goes on to another."""

        def called(done: int, total: int | None, state: str) -> None:
            if not self.is_told and self.A.products >= TRIED:
                self.is_told = True
                self._estimate()
            progress(done, total, state)

        return called

    def _estimate(self) -> None:
        least = min(self.A.size, self.k + BEYOND)
        seconds = self.A.seconds / self.A.products * least
        if seconds > LONG:
            note(
                f"a product takes about {_duration(self.A.seconds / self.A.products)}: at least "
                f"{least} of them, {_duration(seconds)}, and more where eigenvalues lie close"
            )

    def close(self) -> None:
        """Tell what was spent."""
        A, total = self.A, time.perf_counter() - self.begun
        note(
            f"{A.products} products of {_duration(A.seconds / A.products)}, "
            f"{1 - A.seconds / total:.0%} of {_duration(total)} beside them, engine {A.engine}, "
            f"peak memory {_peak(A) / 2**20:,.0f} MiB"
        )


def _duration(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _peak(A: "Curvature") -> int:
    """Return the largest memory so far, in bytes: of the device of A."""
    if A.device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(A.device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
