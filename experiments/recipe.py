"""What a recipe is, and how its jobs share the cores."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for
from typing import Any

from sharpness.results import Comparison
from sharpness.training import cpu_threads

Progress = Callable[[int, int | None, str], None]
POLL = 0.2  # seconds between two looks at the workers


@dataclass(frozen=True)
class Finding:
    """One sentence of the verdict, drawn from an interval."""

    sentence: str
    shown: bool  # the interval leaves out "no difference"
    as_claimed: bool  # and lies on the side that the claim says
    unknown: bool = False  # there are too few pairs for an interval


@dataclass(frozen=True)
class Recipe:
    """A named experiment: what it claims, after whom, how it runs and how it is judged."""

    name: str
    claim: str
    source: str
    run: Callable[..., Comparison]  # (folder, design, ...) -> what was found
    check: Callable[[Comparison], list[Finding]]
    summary: Callable[[Comparison], str]  # the table and the verdict, for people


# A piece of work that another process can be told; it leaves its results in files, and tells by
# its argument how much more it has done.
Job = Callable[[Callable[[int], None]], None]


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share(
    jobs: Sequence[Job], *, workers: int, unit: str, progress: Progress | None = None
) -> None:
    """Run the jobs, each on one thread of one process; the first failure ends all.

    Args:
        jobs: Picklable, the longest first.
        workers: Processes; with one, the jobs run in this process.
        unit: What the jobs count, such as updates.
        progress: Called with the jobs done and with what they count altogether.
    """
    if workers == 1 or len(jobs) < 2:
        counted = 0

        def count(more: int) -> None:
            nonlocal counted
            counted += more

        with cpu_threads(1):
            for done, job in enumerate(jobs, start=1):
                job(count)
                if progress:
                    progress(done, len(jobs), f"{counted:,} {unit}")
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    counter = context.Value("q", 0)
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, _begin, (counter,))
    try:
        left = {pool.submit(_do, job) for job in jobs}
        while left:
            ended, left = wait(left, timeout=POLL, return_when=FIRST_COMPLETED)
            for future in ended:
                future.result()
            if progress:
                progress(len(jobs) - len(left), len(jobs), f"{counter.value:,} {unit}")
    except BaseException:
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


_COUNTER: Any = None  # of this worker: what all workers counted


def _begin(counter: Any) -> None:
    """Prepare a worker: one thread, and an end with its parent's, whichever way that comes."""
    global _COUNTER
    import torch

    _COUNTER = counter
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait_for([sentinel])
    os._exit(1)


def _do(job: Job) -> None:
    def count(more: int) -> None:
        with _COUNTER.get_lock():
            _COUNTER.value += more

    job(count)
