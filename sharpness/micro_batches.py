"""The size of micro-batches by a fixed rule: never by a timing, for another size rounds otherwise.

The activations of one micro-batch are to stay in the last cache of a CPU. A chunk of a few
hundred examples is as fast as one big batch for an MLP; for convolutions, whose temporaries
outgrow the cache and are mapped anew at each operation, it is several times faster.
"""

import logging
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from sharpness.data import Part, size, take
from sharpness.errors import OutOfMemoryError
from sharpness.objective import Measure, Objective

MOST = 1024  # examples: where they are small, more in a batch gain nothing
# Bytes of what one batch saves for its derivatives. A GPU wants larger kernels; no timing on one
# stands behind that number.
ACTIVATIONS = {"cpu": 2**25, "cuda": 2**31}

HALVED = "micro-batch"  # how the names of pieces begin that hold a size

LOG = logging.getLogger(__name__)

R = TypeVar("R")


def halving(
    compute: Callable[[int | None], R],
    micro_batch: int | None = None,
    *,
    pieces: MutableMapping[str, Tensor] | None = None,
    tell: Callable[[str], None] = LOG.info,
) -> R:
    """Return what ``compute`` does, with batches halved as often as memory runs out.

    Only before the first piece: pieces from other batches are rounded otherwise. A size that fits
    becomes a piece, which later calls begin with.

    Args:
        compute: Called with a micro-batch; makes its Objective with it.
        micro_batch: The first. Default: what ``objective_of`` chooses.
        pieces: Those that ``compute`` fills.
        tell: Called with a sentence at each halving.

    Raises:
        OutOfMemoryError: If one example does not fit, if a split would change the result, as under
            the statistics of batches, or if there are pieces already.

    >>> def compute(micro_batch):
    ...     if micro_batch > 2:
    ...         raise OutOfMemoryError("no room", examples=micro_batch, splits=True)
    ...     return micro_batch
    >>> halving(compute, 16, tell=print)
    out of memory in batches of 16 examples: going on with 8
    out of memory in batches of 8 examples: going on with 4
    out of memory in batches of 4 examples: going on with 2
    2
    """
    pieces = {} if pieces is None else pieces
    found = [int(value) for name, value in pieces.items() if name.startswith(HALVED)]
    micro_batch = min(found, default=micro_batch)
    while True:
        try:
            return compute(micro_batch)
        except OutOfMemoryError as error:
            if not error.splits or len(pieces) > len(found):
                raise
            tried, micro_batch = error.examples, error.examples // 2
        # Outside of the except, whose frames hold what did not fit.
        tell(f"out of memory in batches of {tried} examples: going on with {micro_batch}")
        found.append(micro_batch)
        pieces[f"{HALVED} {micro_batch}"] = torch.tensor(micro_batch)


def micro_batch_of(
    model: nn.Module, part: Part, loss: Measure, *, memory: int | None = None
) -> int:
    """Return how many examples of a part one batch holds: a power of two, at most 1024.

    So many that what the model saves for its derivatives fits in 32 MiB, or 2 GiB on a GPU, and in
    a quarter of ``memory``, in bytes.

    Cost: the model on three examples.

    >>> part = torch.zeros(4, 2**17), torch.zeros(4, 1)  # 2^19 bytes each, saved by the layer
    >>> micro_batch_of(nn.Linear(2**17, 1), part, nn.functional.mse_loss)
    64
    """
    if size(part) < 2:
        return 1
    one, two = (saved_bytes(Objective(model, [take(part, torch.arange(b))], loss)) for b in (1, 2))
    device = next(model.parameters()).device.type
    room = ACTIVATIONS[device] if memory is None else min(ACTIVATIONS[device], memory // 4)
    fitting = room // max(two - one, 1)
    # Of a power of two, so that a few bytes more or less change nothing.
    return min(MOST, 2 ** max(fitting.bit_length() - 1, 0))


def saved_bytes(f: Objective) -> int:
    """Return what the model saves for its derivatives on all examples, in bytes."""
    theta = f.theta.clone().requires_grad_()
    with torch.enable_grad(), saved() as seen, f.with_native_rnn():
        outputs = [f.outputs(theta, inputs) for inputs, *_ in f.batches]
    del outputs  # until here: what is freed would have its place taken by another
    return sum(seen.values())


@contextmanager
def saved() -> Iterator[dict[int, int]]:
    """Collect what graphs that are built meanwhile save: bytes, by the address of the memory.

    The graphs have to be kept until the bytes are added up: what is freed would have its place
    taken by another tensor, and be counted once.
    """
    seen: dict[int, int] = {}

    def see(x: Tensor) -> Tensor:
        seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x.detach()

    with saved_tensors_hooks(see, lambda x: x):
        yield seen
