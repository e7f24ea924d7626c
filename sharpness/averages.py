"""Averages of the weights along a training, by name: each is the weight that a point gets.

All are one recursion: mean <- mean + w (theta - mean), where w is what the function of that name
says for this update; 0 leaves the mean as it is, and the first point that weighs more is the mean.
The functions are pure, the state is one vector
and one count, and both can be stored in a run.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sharpness.errors import InputError
from sharpness.objective import Objective
from sharpness.options import Values, is_number, is_whole, require_entry
from sharpness.results import Run, Solution


def none(update: int, count: int, total: int) -> float:
    """Return 0: no point is averaged."""
    return 0.0


def ema(update: int, count: int, total: int, *, decay: float = 0.999) -> float:
    """Return 1 - decay: the exponential moving average that begins at the first update.

    After updates 1 to t the mean is d^(t-1) theta_1 + (1 - d) sum_(i=2..t) d^(t-i) theta_i.

    Args:
        update: How many updates there have been.
        count: How many points the mean has.
        total: How many updates the training has at most.
        decay: At least 0 and below 1; the default is torch's.
    """
    return 1 - decay


def swa(update: int, count: int, total: int, *, start: float = 0.75, every: int = 10) -> float:
    """Return 1 / (count + 1): the plain mean of the points late in training, 0 between them.

    That is stochastic weight averaging (Izmailov et al. 2018).

    Args:
        update: How many updates there have been.
        count: How many points the mean has.
        total: How many updates the training has at most.
        start: The share of the updates before the first point, at least 0 and below 1; in the
            paper it is about 0.75.
        every: Updates from one point to the next.

    >>> [swa(update, 0, 40, start=0.5, every=10) for update in (20, 25, 30)]
    [0.0, 0.0, 1.0]
    """
    since = update - math.floor(start * total)
    return 1 / (count + 1) if since > 0 and since % every == 0 else 0.0


STATE = ("average", "averaged")  # mean and count, beside an optimizer's state
AVERAGES: dict[str, Callable[..., float]] = {"none": none, "ema": ema, "swa": swa}
VALUES: Values = {
    **{
        name: ("a number from 0 to below 1", lambda x: is_number(x, 0) and x < 1)
        for name in ("decay", "start")
    },
    "every": ("a whole number of at least 1", lambda x: is_whole(x, 1)),
}


@dataclass(frozen=True)
class Average:
    """A mean of points of a training so far."""

    name: str
    options: Mapping[str, Any]
    mean: Tensor | None = None  # (n,)
    count: int = 0  # of the points in it


def require_average(name: str, options: Mapping[str, Any]) -> None:
    """Refuse an average that is unknown, or options that it does not take.

    Raises:
        InputError: If the name or an option is unknown, or a value is not in its range.
    """
    require_entry("average", AVERAGES, name, options, VALUES, given=3)


def taken(average: Average, theta: Callable[[], Tensor], *, update: int, total: int) -> Average:
    """Return the average after one more update.

    Args:
        average: That before.
        theta: Gives the weights now, (n,), a tensor of its own; called where they count.
        update: How many updates there have been, at least 1.
        total: How many the training has at most.

    >>> average = Average("ema", {"decay": 0.5})
    >>> for update, x in enumerate([4.0, 8.0], start=1):
    ...     average = taken(average, lambda x=x: torch.tensor([x]), update=update, total=2)
    >>> average.mean, average.count
    (tensor([6.]), 2)
    """
    weight = AVERAGES[average.name](update, average.count, total, **average.options)
    if not weight:
        return average
    point = theta()
    mean = point if average.mean is None else average.mean.lerp(point, weight)
    return replace(average, mean=mean, count=average.count + 1)


def state_of(average: Average) -> dict[str, Tensor]:
    """Return mean and count as tensors by name, to be kept in a run; none before the first."""
    if average.mean is None:
        return {}
    return dict(zip(STATE, (average.mean.cpu(), torch.tensor(average.count)), strict=True))


def without(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of an optimizer without what an unfinished run keeps beside it.

    That is an average, and the states of solutions on the way, ``best/NAME``.
    """
    return {name: x for name, x in state.items() if name not in STATE and "/" not in name}


def restored(average: Average, state: Mapping[str, Tensor], like: Tensor) -> Average:
    """Return the average with the state that ``state_of`` returned, on the device of ``like``."""
    if not set(STATE) <= state.keys():
        return average
    mean, count = (state[name] for name in STATE)
    return replace(average, mean=mean.to(like.device), count=int(count))


def solution_of(
    average: Average, model: nn.Module, objective: Objective, last: Solution
) -> Solution | None:
    """Return the averaged solution, None where no point was averaged.

    Running statistics are those of the training part at the averaged weights: those of the
    iterates belong to other weights (Izmailov et al. 2018). Other buffers are those of ``last``.

    Args:
        average: Of a training that is at its end.
        model: That was trained.
        objective: Of its training part, over batches from which statistics are estimated.
        last: Where the training ended.
    """
    if average.mean is None:
        return None
    batches = objective.batches
    estimating = Objective(
        model, batches, objective.loss, batch_norm="reestimate", statistics=batches
    )
    settled = estimating.settled(Solution(average.mean, last.buffers))
    return Solution(settled.theta, settled.buffers)


def averaged(run: Run, point: Solution, row: Mapping[str, float], *, as_end: bool = True) -> Run:
    """Return a run that has its averaged solution as its end, or as its last checkpoint.

    Nothing is lost: where the average is the end, the last iterate becomes the last checkpoint,
    at the same number of updates, and the optimizer's state belongs to it. The last row of the
    history is that of the end, and the one before, at the same update, that of the iterate.
    ``Run.points`` has one solution for each number of updates, and there the end.

    Args:
        run: A training that is at its end.
        point: Its averaged solution.
        row: What is measured there, by the columns of the history.
        as_end: Whether the average is the end.

    Raises:
        InputError: If the row has other columns than the history.
    """
    if row.keys() != run.history.keys():
        raise InputError(
            f"a row needs the columns {', '.join(run.history)}, got {', '.join(row)}: measure all"
        )
    other = run.end if as_end else point
    place = {"at": "end" if as_end else "checkpoint", "checkpoint": len(run.checkpoints)}
    both = replace(
        run,
        checkpoints=[*run.checkpoints, other],
        checkpoint_updates=torch.cat([run.checkpoint_updates, torch.tensor([run.updates])]),
        spec={**run.spec, "average": {**place, "train_loss": row["train_loss"]}},
    )
    if not as_end:
        return both
    history = {
        name: torch.cat([column, torch.tensor([row[name]], dtype=column.dtype)])
        for name, column in run.history.items()
    }
    at_end = {**run.spec.get("end", {}), "train_loss": row["train_loss"]}
    return replace(both, end=point, history=history, spec={**both.spec, "end": at_end})
