"""Loss and 0-1 error at points beside a solution, of all the data or of mini-batches.

Letters: w the solution, n parameters; c axes, u: the point is w + c u; M mini-batches.
"""

import math
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sharpness.by_batch import mini_batch, partition, starts_of
from sharpness.errors import ComputationError, InputError
from sharpness.finite import not_finite, require_finite
from sharpness.logits import normalized_logits, require_labels, with_error
from sharpness.objective import Inputs, Objective, Targets
from sharpness.results import Solution

Of = Literal["loss", "error"]
OF = ("loss", "error")
SMALLER = "use a smaller {} or float64"

Pieces = MutableMapping[str, Tensor] | None
Progress = Callable[[int, int | None, str], None] | None


@dataclass(frozen=True)
class Seen:
    """What was measured of a mini-batch at a point."""

    numbers: list[float]  # the loss, and the error where it is measured

    @property
    def loss(self) -> float:
        """The mean loss."""
        return self.numbers[0]

    @property
    def value(self) -> float:
        """What is measured: the loss or the error."""
        return self.numbers[-1]


class Displaced:
    """An objective, whole or in mini-batches, at points that are written to one vector.

    Args:
        who: Asks, for messages.
        adaptive: Whether the axes are |w| + eta instead of 1.
        batch_size: Of the mini-batches. Default: all the examples are one.
        seed: Of the order in which the examples are cut into mini-batches.
        normalize: Whether the loss is that of normalized class scores.
        of: What is measured.
    """

    def __init__(
        self,
        who: str,
        objective: Objective,
        here: Solution,
        *,
        adaptive: bool,
        eta: float = 0.0,
        batch_size: int | None = None,
        seed: int = 0,
        normalize: bool = False,
        of: Of = "loss",
    ) -> None:
        self.who, self.w, self.buffers = who, here.theta, here.buffers
        self.axes = here.theta.abs().add_(eta) if adaptive else None  # (n,)
        self.theta = here.theta.clone()
        f = objective.placed(Solution(self.theta, here.buffers))
        f = with_error(f) if of == "error" else f.measuring({})
        self.whole = normalized_logits(f) if normalize else f
        self.of = of
        self.index, self.starts = None, [0]
        if batch_size is not None:
            self.starts = starts_of(self.whole)
            self.index = partition(self.starts[-1], batch_size, None, seed)  # (M, B)
        self.micro: list[Tensor] = []  # () each: what ``see`` saw last, by micro-batch
        self.count = 1 if self.index is None else len(self.index)

    @property
    def left_out(self) -> int:
        """How many examples are in no mini-batch."""
        return 0 if self.index is None else self.starts[-1] - self.index.numel()

    @property
    def is_sample(self) -> bool:
        """Whether all the examples are taken at once, and are a sample of the data."""
        return self.index is None and self.whole.is_sample

    @property
    def share(self) -> float:
        """What a pass over one mini-batch is of a pass over all examples."""
        return 1.0 if self.index is None else self.index.shape[1] / self.starts[-1]

    def parts(self) -> Iterator[tuple[int, Objective]]:
        """Yield the number of each mini-batch and its mean loss."""
        if self.index is None:
            yield 0, self.whole
            return
        for i, rows in enumerate(self.index):
            yield i, mini_batch(self.whole, rows, self.starts)

    def go(self, u: Tensor | None = None, by: float = 1.0) -> None:
        """Write the point w + by c u, or w."""
        if u is None:
            self.theta.copy_(self.w)
        elif self.axes is None:
            torch.add(self.w, u, alpha=by, out=self.theta)
        else:
            torch.addcmul(self.w, self.axes, u, value=by, out=self.theta)

    def see(self, f: Objective, remedy: str | None = None) -> Seen:
        """Return what is measured at the point that was written, from a forward pass."""
        here, self.micro = f.settled(self.theta), []

        def note(i: int, inputs: Inputs, targets: Targets) -> Tensor:
            z = f.outputs(here, inputs)
            row = f.measured_outputs(z, targets, f.loss_of_outputs(z, targets))
            self.micro.append(row[-1])
            return row

        with torch.no_grad():
            return self._seen(f, f.mean(note), remedy)

    def see_slope(self, f: Objective, remedy: str | None = None) -> tuple[Seen, Tensor]:
        """Return what is measured at the point that was written, and the gradient in u, (n,)."""
        numbers, slope = f.evaluate_with_gradient(self.theta)
        if self.axes is not None:
            slope.mul_(self.axes)
        return self._seen(f, torch.stack(list(numbers.values())), remedy), slope

    def _seen(self, f: Objective, numbers: Tensor, remedy: str | None) -> Seen:
        seen = Seen(numbers.tolist())
        if not math.isfinite(seen.loss):
            require_finite(f, self.who, self.theta, numbers[0], remedy=remedy)
        if not math.isfinite(seen.value):
            require_labels(f, numbers[-1])
        return seen

    def require_steep(self, f: Objective, steep: float, remedy: str | None = None) -> None:
        """Refuse a gradient whose norm is not finite."""
        if math.isfinite(steep):
            return
        raise not_finite(f, self.who, self.theta, remedy=remedy) or ComputationError(
            f"{self.who} needs a gradient whose norm is finite, got {steep}: scale the loss"
        )

    def sampling_error(self, rises: list[Tensor]) -> float:
        """Return the standard error of a mean rise, of a sample of the data.

        Args:
            rises: Of each micro-batch, () each.
        """
        return float(self.whole.sampling_error(lambda i, x, y: rises[i]))


def rows_of(
    room: Displaced,
    found: Callable[[int, Objective], list[float]],
    pieces: Pieces,
    progress: Progress,
) -> Tensor:
    """Return what was found of each mini-batch, a row of numbers each, float64.

    Args:
        found: Called with the number of a mini-batch and its mean loss; its first number is a rise.
    """
    pieces = {} if pieces is None else pieces
    for i, f in room.parts():
        name = f"batch {i}"
        if name not in pieces:
            pieces[name] = torch.tensor(found(i, f), dtype=torch.float64)
        if progress:
            progress(i + 1, room.count, f"rise {float(pieces[name][0]):.3g}")
    return torch.stack([pieces[f"batch {i}"] for i in range(room.count)])


def measured_words(of: str) -> str:
    """Return what rises."""
    return "the loss" if of == "loss" else "the 0-1 error"


def batches_words(room: Displaced) -> str:
    """Return of what mini-batches a number is the mean, after a comma; nothing of all examples."""
    if room.index is None:
        return ""
    words = f", in the mean of {room.count} mini-batches of {room.index.shape[1]} examples"
    return words + (f" that leave out {room.left_out}" if room.left_out else "")


def units_words(*, adaptive: bool, eta: float = 0.0) -> str:
    """Return in what units weights move, after a space; nothing in those of length."""
    return "" if not adaptive else f" in units of |w| + {eta:g}" if eta else " in units of |w|"


def require_seen(who: str, name: str, x: float, *, lost: float, theta: Tensor) -> None:
    """Refuse a displacement that rounding of the weights would lose."""
    if x <= lost:
        raise InputError(
            f"{who} needs {name} above {lost:.1e} in {theta.dtype}, got {x:.1e}, which rounding of "
            "the weights would lose: raise it or use float64"
        )


def rounding(theta: Tensor, norm: float, *, adaptive: bool) -> float:
    """Return by how much rounding moves weights, in a norm: relative to each one if adaptive."""
    x = (theta != 0).to(theta) if adaptive else theta
    return torch.finfo(theta.dtype).eps / 2 * float(torch.linalg.vector_norm(x, norm))
