"""The size of micro-batches by a fixed rule: never by a timing, for another size rounds otherwise.

The activations of one micro-batch are to stay in the last cache of a CPU. A chunk of a few
hundred examples is as fast as one big batch for an MLP; for convolutions, whose temporaries
outgrow the cache and are mapped anew at each operation, it is several times faster.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from sharpness.data import Part, size, take
from sharpness.objective import Measure, Objective

MOST = 1024  # examples: where they are small, more in a batch gain nothing
# Bytes of what one batch saves for its derivatives. A GPU wants larger kernels; no timing on one
# stands behind that number.
ACTIVATIONS = {"cpu": 2**25, "cuda": 2**31}


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
