"""Memory of the process that the C library keeps for the next operation."""

from functools import cache

import torch

KEPT = 31 * 2**20  # bytes: glibc's threshold rises to 32 MiB at most


@cache
def keep_heap() -> None:
    """Let glibc keep freed memory of up to this size, once for the process.

    Otherwise it maps each piece of some MB anew and gives it back after the operation, or trims
    its heap: the page faults of that took a third of the time of a convolution's forward pass. Its
    threshold is that of the largest piece that was freed (``M_MMAP_THRESHOLD`` in mallopt(3));
    this one is never written to, so it costs nothing. Other C libraries take no notice.

    >>> keep_heap()
    """
    torch.empty(KEPT, dtype=torch.uint8)
