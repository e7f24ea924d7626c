"""Training to a given training loss, recorded: the solutions whose sharpness is compared."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from time import monotonic
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sharpness import averages
from sharpness.augmentation import epoch_of
from sharpness.batch_norm import layers
from sharpness.data import Part, batches, size, take
from sharpness.errors import ComputationError, InputError
from sharpness.finite import not_finite
from sharpness.gemm import fast_gemm
from sharpness.methods import METHODS, Task
from sharpness.micro_batches import micro_batch_of
from sharpness.names import located, shown
from sharpness.objective import Objective, on_device
from sharpness.optimizers import OPTIMIZERS, set_state, state_of
from sharpness.problem import Problem, place, pose, seeded, solution
from sharpness.results import Run, Solution
from sharpness.sampling import BATCHES
from sharpness.schedules import Setting, scaled_rate
from sharpness.signals import Stopped, whole
from sharpness.stopping import Patience, at_level, crossing, marks
from sharpness.text import differences
from sharpness.training_clock import Clock
from sharpness.training_config import (
    AUTOCAST,
    STOP_LOSS as STOP_LOSS,
    UPDATES as UPDATES,
    TrainConfig as TrainConfig,
    cpu_threads as cpu_threads,
    deterministic_kernels,
    record as record,
    resolved as resolved,
)
from sharpness.vectors import flatten, stream

NEAR = 2.0  # within this many times the next level, the loss is checked every 2 updates
KEEP_EVERY = 10.0  # seconds between two times that an unfinished run is kept
KEEP_SHARE = 20  # times what that takes, at least
INTERRUPTED = "interrupted"
# Losses that are looked at together. Each look makes the host wait for a GPU, but not for a CPU,
# where the gradients of the update before are still there to be blamed.
TOGETHER = {"cpu": 1, "cuda": 10}
# Of a training, in the spec of an unfinished run.
STATE = (
    *("looked", "next_look", "last_row", "examples", "epoch", "begun", "batch_size"),
    *("seen", "stopped", "told", "examples_before"),
)
HELD = ("updates", "examples", "loss", "examples_before", "batch_size")  # of a solution on the way
# Made for gradients without noise, and what that does to them.
FULL_BATCH = {
    "rprop": "signs of noisy gradients mislead it",
    "lbfgs": "its memory and line search are of one function, and each batch is another",
}

LOG = logging.getLogger(__name__)


def train(
    config: TrainConfig,
    *,
    begun: Run | None = None,
    keep: Callable[[Run], None] | None = None,
    progress: Callable[[int, int | None, str], None] | None = None,
    tell: Callable[[str], None] = LOG.warning,
) -> Run:
    """Return the run of a training: from where to where, by which way, and why it stopped there.

    The same configuration gives the same bytes on the same machine, also where it was interrupted
    and goes on. Every epoch takes a new permutation from ``order_seed``. The history has a row for
    the start, for the first look at the loss after each epoch, and for the end.

    Args:
        begun: What ``keep`` was called with at last by a training of the same configuration, to go
            on from.
        keep: Called with the unfinished run some every ten seconds, or less often where that takes
            long, and when a signal stops the training; it is a run like others, ``stopped`` is
            "interrupted".
        progress: Called after each look at the loss.
        tell: Called with each of ``remarks``, and where an average took no point.

    Raises:
        InputError: If the configuration cannot be met, or is not that of ``begun``.
        ComputationError: If the training loss stops being finite, unless ``keep_diverged`` asks
            for the run up to the last look at a finite one, ``stopped`` by "diverged".

    >>> run = train(TrainConfig(batch_size=600, updates=5))
    >>> run.updates, run.stopped, run.history["examples"].tolist()
    (5, 'updates', [0, 3000])
    """
    config = resolved(config)
    problem = problem_of(config)
    examples = size(problem.data.train)
    LOG.info(
        "train: %s on %s, %d examples in batches of %d, %s at rate %g, %d threads",
        shown(config.model),
        shown(config.data),
        examples,
        config.batch_size,
        config.optimizer,
        config.learning_rate,
        config.threads,
    )
    for remark in remarks(config, examples):
        tell(remark)
    where = next(problem.model.parameters()).device
    # Dropout draws from torch's own generator, which is made ours meanwhile.
    with (
        cpu_threads(config.threads),
        deterministic_kernels(config.deterministic),
        fast_gemm() if config.fast_gemm else nullcontext(),
        seeded(config.order_seed or 0, where),
    ):
        training = _Training(config, problem)
        if begun:
            training.resume(begun)
        run = training.run(keep, progress)
    if config.average != "none" and "average" not in run.spec:
        tell(
            f"{config.average} took no average, of a training that ended by {run.stopped} after "
            f"{run.updates:,} of {training.clock.updates:,} updates: the end is the last solution"
        )
    return run


def remarks(config: TrainConfig, examples: int) -> list[str]:
    """Return what is allowed and likely not meant, a sentence each.

    >>> remarks(TrainConfig(optimizer="rprop", batch_size=32), 600)
    ['rprop is made for full batches, got 32 of 600 examples: signs of noisy gradients mislead it']
    """
    if config.optimizer in FULL_BATCH and config.batch_size < examples:
        return [
            f"{config.optimizer} is made for full batches, got {config.batch_size} of {examples} "
            f"examples: {FULL_BATCH[config.optimizer]}"
        ]
    return []


def problem_of(config: TrainConfig) -> Problem:
    """Return the problem of a configuration that is resolved."""
    return pose(
        config.model,
        config.data,
        config.loss,
        model_options=config.model_options,
        data_options=config.data_options,
        train_examples=config.train_examples,
        label_noise=config.label_noise,
        seed=config.seed,
        split_seed=config.split_seed or 0,
        dtype=config.dtype,
        device=config.device,
    )


@dataclass(frozen=True)
class _Held:
    """A solution on the way that may become the end."""

    updates: int
    examples: int
    loss: float  # on the training part
    examples_before: int  # its last update, whose rate goes by them, and the size of its batch
    batch_size: int
    point: Solution
    optimizer: dict[str, Tensor]


class _DivergedError(ComputationError):
    """A number that is not finite, in or after an update."""

    update = 0


class _Training:
    """The state of one training: the model, its optimizer, what was seen and what is to come."""

    def __init__(self, config: TrainConfig, problem: Problem) -> None:
        self.config, self.problem, self.model = config, problem, problem.model
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.where = self.parameters[0].device
        k = config.batch_size / (config.base_batch_size or config.batch_size)
        self.rate = scaled_rate(config.learning_rate, config.rate_scaling, k)
        self.optimizer = OPTIMIZERS[config.optimizer](
            self.parameters, replace(config, learning_rate=self.rate)
        )
        parts = {"train": problem.data.train, "test": problem.data.test}
        if config.early_stopping is not None:
            if problem.data.validation is None:
                raise InputError(
                    "early_stopping needs a validation part of the data, got none: give validation "
                    "in data_options, or patience, which watches the training loss"
                )
            parts["validation"] = problem.data.validation
        self.objectives = {
            name: Objective(
                self.model,
                batches(part, micro_batch_of(self.model, part, problem.loss)),
                problem.loss,
                metrics=problem.metrics,
            )
            for name, part in parts.items()
        }
        kept = self.model.state_dict()
        self.loose = {n: b.clone() for n, b in self.model.named_buffers() if n not in kept}
        self.model.train()  # the objectives have modules of their own, in eval mode
        self.forward: Any = torch.compile(self.model) if config.compile else self.model
        self.clock = Clock(config, size(problem.data.train))
        self.rows: list[dict[str, float]] = []
        self.updates, self.examples, self.epoch = 0, 0, 0
        self.examples_before = 0  # the last update
        self.begun, self.batch_size = 0, config.batch_size  # of the present epoch
        self.last_row = 0  # the epoch of the last row of the history
        self.looked, self.next_look = -1, 0  # updates done at the last look, and at the next
        self.seen: tuple[int, float] | None = None  # the updates and the loss of the last look
        self.levels = sorted(config.checkpoint_losses, reverse=True)
        self.checkpoints: list[tuple[int, Solution]] = []
        self.marks = marks(config.checkpoint_updates, config.checkpoint_geometric)
        self.mark = next(self.marks, None)
        self.plateaus = {
            name: Patience(patience, config.min_improvement)
            for name, patience in (
                ("patience", config.patience),
                ("early_stopping", config.early_stopping),
            )
            if patience is not None
        }
        self.held: dict[str, _Held] = {}  # "before", of the last look, and the "best" one
        self.together = TOGETHER.get(self.where.type, 1)
        self.pending: list[tuple[int, Tensor]] = []  # updates, and losses nobody looked at
        self.average = averages.Average(config.average, config.average_options)
        self.start = solution(self.model)
        self.stopped: str | None = None  # why the training is at its end
        self.told: dict[str, Any] = {}  # and what is to be told of it
        self.is_whole = True  # no step was left in the middle
        _require_parts(config, problem, self.clock, self.optimizer)

    def run(
        self,
        keep: Callable[[Run], None] | None,
        progress: Callable[[int, int | None, str], None] | None,
    ) -> Run:
        try:
            return self._run(keep, progress)
        except _DivergedError as error:
            before = self.held.get("before")
            if not self.config.keep_diverged or before is None:
                raise
            self.told = {"update": error.update, "message": str(error)}
            return self._result("diverged", before)

    def _run(
        self,
        keep: Callable[[Run], None] | None,
        progress: Callable[[int, int | None, str], None] | None,
    ) -> Run:
        begun, cost = monotonic(), 0.0
        following = self._batches()
        try:
            while True:
                if self.looked < self.updates:
                    self._look(progress)
                if self.stopped:
                    best = None if self.stopped == "stop_loss" else self.held.get("best")
                    return self._result(self.stopped, best)
                if keep and monotonic() - begun >= max(KEEP_EVERY, KEEP_SHARE * cost):
                    begun = monotonic()
                    self._check()
                    keep(self._unfinished())
                    cost = monotonic() - begun
                with self._step():
                    self._update(*next(following))
                    if self.updates == self.mark:
                        self._store()
                        self.mark = next(self.marks, None)
        except Stopped:
            if keep and self.is_whole and self.rows:
                keep(self._unfinished())
            raise

    def _look(self, progress: Callable[[int, int | None, str], None] | None) -> None:
        """Look at the loss where it is time to, and decide whether the training goes on.

        Nothing is noted before all is measured, for a signal may come meanwhile.
        """
        done = self._done() if self.updates else None
        if self.updates < self.next_look and not done:
            self.looked = self.updates
            return
        fresh_epoch = self.epoch > self.last_row or not self.updates
        goal = self.config.stop_loss
        watched = goal is not None or self.levels or self.plateaus or self.config.keep_diverged
        if not (done or watched or fresh_epoch):
            with self._step():
                self.looked, self.next_look = self.updates, self.updates + self.config.check_every
            return
        self._check()
        measured = self._measured("train")
        loss = measured["loss"]
        if not math.isfinite(loss):
            after = f"after {self.updates} updates" if self.updates else "before the first update"
            raise self._not_finite(f"a finite loss, got {loss} {after}")
        plateaus = self._plateaus(loss)
        over = [name for name, x in plateaus.items() if x.is_over(self.updates)]
        meets = goal is not None and loss <= goal
        ends = "stop_loss" if meets else done or (over[0] if over else None)
        told, end = self._met(loss) if meets else ({}, None)
        if ends and not meets and "early_stopping" in plateaus:
            best = plateaus["early_stopping"]
            told = {"update": self.updates, "best": best.at, "validation_loss": best.best}
        measured = self._measured("train", end) if end else measured
        row = self._row(measured, end) if ends or fresh_epoch else None
        with self._step():
            self._note(loss, plateaus)
            if end:
                place(self.model, end)
            self.stopped, self.told = ends, told
            if row:
                self.last_row = self.epoch
                self.rows.append(row)
        if progress and self.updates:
            progress(self.updates, self.config.updates, f"training loss {loss:.2e}")

    def _note(self, loss: float, plateaus: dict[str, Patience]) -> None:
        """Keep what is to be kept of a look at this training loss."""
        while self.levels and loss <= self.levels[0]:
            self.levels.pop(0)
            self._store()
        self.looked, self.next_look = self.updates, self._next_look(loss)
        self.seen = (self.updates, loss)
        held = None
        if self.config.keep_diverged or self.config.stop_within is not None:
            held = self.held["before"] = self._now(loss)
        best = plateaus.get("early_stopping")
        if best and best.at == self.updates:
            self.held["best"] = held or self._now(loss)
        self.plateaus = plateaus

    def _plateaus(self, loss: float) -> dict[str, Patience]:
        """Return how long what is watched has not become better, after this look."""
        found = {}
        for name, plateau in self.plateaus.items():
            watched = self._measured("validation")["loss"] if name == "early_stopping" else loss
            found[name] = plateau.after(self.updates, watched)
        return found

    def _met(self, loss: float) -> tuple[dict[str, Any], Solution | None]:
        """Return how the goal was met, and the solution at it where one was asked for."""
        goal, within = self.config.stop_loss or 0.0, self.config.stop_within
        now = (self.updates, loss)
        told: dict[str, Any] = {"level": goal, "update": self.updates, "loss": loss}
        if self.seen is None or self.seen[1] <= goal:
            return {**told, "crossing": float(self.updates)}, None
        told |= {"before": list(self.seen), "crossing": crossing(self.seen, now, goal)}
        is_near = loss > 0 and within is not None and abs(math.log(loss / goal)) <= within
        if within is None or is_near:
            return told, None

        def loss_at(point: Solution) -> float:
            return self._measured("train", point)["loss"]

        before = _like(self.held["before"].point, self.where)
        alpha, end = at_level(loss_at, before, solution(self.model), goal, within)
        # 0 is the solution of the look before, 1 that of the update.
        return {**told, "alpha": alpha}, end

    def _store(self) -> None:
        self.checkpoints.append((self.updates, _on_cpu(solution(self.model))))

    def _now(self, loss: float) -> _Held:
        return _Held(
            updates=self.updates,
            examples=self.examples,
            loss=loss,
            examples_before=self.examples_before,
            batch_size=self.batch_size,
            point=_on_cpu(solution(self.model)),
            optimizer=state_of(self.optimizer, self.parameters),
        )

    def _step(self) -> "_Step":
        """Do a step of the training whole, or leave a mark that it was torn."""
        return _Step(self)

    def _batches(self) -> Iterator[Any]:
        """Yield the batches that are still to come, of one epoch after the other, without end."""
        part = self.problem.data.train
        while True:
            taken = self.updates - self.begun  # of this epoch, before an interruption
            if not taken:
                self.batch_size = self.clock.batch_size(self.updates, self.examples)
            augment = self.config.data_options.get("augment")
            changed = epoch_of(augment, part[0], seed=self.config.order_seed or 0, epoch=self.epoch)
            drawn = self._drawn()[taken:]
            for i, ((inputs, targets), chosen) in enumerate(drawn, start=1):
                if i == len(drawn):
                    self.epoch, self.begun = self.epoch + 1, self.updates + 1
                yield on_device(self.where, changed(inputs, chosen)), targets.to(self.where)

    def _drawn(self) -> list[tuple[Part, Tensor]]:
        """Return the batches of the present epoch, each with the numbers of its examples."""
        part, config = self.problem.data.train, self.config
        whole = config.batches == "shuffled" and self.batch_size == size(part)
        if whole and config.ghost_batch is None:
            return [(part, torch.arange(size(part)))]  # a mean, whatever their order
        rng = stream(config.order_seed or 0, self.epoch)
        drawn = BATCHES[config.batches](part[1], self.batch_size, rng)
        order = torch.from_numpy(np.concatenate(drawn))
        parts = batches(take(part, order), self.batch_size)
        return list(zip(parts, torch.split(order, self.batch_size), strict=True))

    def _update(self, inputs: Any, targets: Tensor) -> None:
        if self.clock.moves:
            self._set(self.clock.setting(self.updates, self.examples))
        update, is_first = self.updates + 1, True

        def loss(outputs: Any, of: Tensor) -> Tensor:
            nonlocal is_first
            value = self.objectives["train"].loss_of_outputs(outputs, of)
            if is_first:  # while the gradients of the update before are still there to be blamed
                self._watch(update, value)
            is_first = False
            return value

        limits = self.config
        task = Task(
            self.forward,
            loss,
            inputs,
            targets,
            self.optimizer,
            ghost_batch=limits.ghost_batch,
            clip_norm=limits.clip_norm,
            autocast=AUTOCAST[limits.autocast] if limits.autocast else None,
        )
        try:
            METHODS[limits.method](task, **limits.method_options)
        except (InputError, ComputationError):
            raise
        except (RuntimeError, ValueError, IndexError, TypeError) as error:  # the user's model
            where = f"update {update}, of a batch of {len(targets)}"
            alone = "more than 1 value per channel" in str(error)
            raise ComputationError(
                f"BatchNorm needs more than 1 value per channel, got {where}: change the batch size"
                if alone
                else f"training failed in {where}: {located(error)}"
            ) from error
        self.updates += 1
        self.examples_before = self.examples
        self.examples += len(targets)
        self.average = averages.taken(
            self.average, self._theta, update=self.updates, total=self.clock.updates
        )

    def _theta(self) -> Tensor:
        return flatten([p.detach() for p in self.parameters])

    def _watch(self, update: int, loss: Tensor) -> None:
        """Refuse a loss of an update that is not finite, now or with others later."""
        if self.together > 1:
            self.pending.append((update, loss.detach()))
        elif not math.isfinite(value := loss.item()):
            raise self._not_finite(f"a finite loss, got {value} in update {update}", update)
        if len(self.pending) >= self.together:
            self._check()

    def _set(self, setting: Setting) -> None:
        """Move rate and momentum to those of the next update."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * setting.rate
            if setting.momentum is not None:
                if "betas" in group:
                    group["betas"] = (setting.momentum, *group["betas"][1:])
                else:
                    group["momentum"] = setting.momentum

    def _set_again(self) -> None:
        """Move rate and momentum to those of the last update, which an end tells."""
        if self.clock.moves:
            self._set(self.clock.setting(max(self.updates - 1, 0), self.examples_before))

    def _check(self) -> None:
        """Refuse losses of updates that are not finite, of those that nobody looked at yet."""
        pending, self.pending = self.pending, []
        values = torch.stack([loss for _, loss in pending]).tolist() if pending else []
        for (update, _), value in zip(pending, values, strict=True):
            if not math.isfinite(value):
                raise self._not_finite(f"a finite loss, got {value} in update {update}", update)

    def _done(self) -> str | None:
        limits = self.config
        if limits.updates is not None and self.updates >= limits.updates:
            return "updates"
        if limits.examples is not None and self.examples >= limits.examples:
            return "examples"
        done = self.clock.epochs(self.updates, self.epoch)
        return "epochs" if limits.epochs is not None and done >= limits.epochs else None

    def _measured(self, part: str, point: Solution | None = None) -> dict[str, float]:
        """Return loss and metrics at a solution, by default the present one."""
        f = self.objectives[part]
        if point is None and f.shares(self.model):
            measured = f.evaluate_shared()
        else:
            measured = f.evaluate(point or solution(self.model))
        return {name: float(value) for name, value in measured.items()}

    def _row(self, on_train: dict[str, float], point: Solution | None = None) -> dict[str, float]:
        row: dict[str, float] = {"update": self.updates, "examples": self.examples}
        on_test = self._measured("test", point)
        for part, measured in (("train", on_train), ("test", on_test)):
            row[f"{part}_loss"] = measured["loss"]
            if "accuracy" in measured:
                total = size(getattr(self.problem.data, part))
                row[f"{part}_right"] = round(measured["accuracy"] * total)
        return row

    def _not_finite(self, otherwise: str, update: int | None = None) -> ComputationError:
        """Return the error that names where the first number that is not finite appeared.

        That is, in the order of an update: a gradient of the last one, whose loss was finite, the
        weights it left, or what came next.

        Args:
            otherwise: What is told where neither is found.
            update: The one with such a loss; where others came after it, they have to be blamed on
                it. Default: none, but the look at the training loss.
        """
        if not self.updates:
            f = self.objectives["train"]
            fault = not_finite(f, "training", solution(self.model), gradient=False)
            return fault or ComputationError(f"training needs {otherwise}: look at the model")
        named = list(self.model.named_parameters()) if (update or math.inf) > self.updates else []
        looked = [("a finite gradient", "in", n, p.grad) for n, p in named if p.grad is not None]
        looked += [("finite weights", "after", n, p.detach()) for n, p in named]
        for what, when, name, x in looked:
            bad = x[~torch.isfinite(x)]
            if len(bad):
                otherwise = f"{what}, got {float(bad[0])} for {name} {when} update {self.updates}"
                break
        error = _DivergedError(f"training needs {otherwise}: lower the learning rate")
        error.update = update or self.updates
        return error

    def _next_look(self, loss: float) -> int:
        """Return after how many updates the loss is looked at again: sooner near a level."""
        goal, wait = self.config.stop_loss or 0.0, self.config.check_every
        if self.config.stop_within is not None and loss <= NEAR * goal:
            return self.updates + 1
        level = max([*self.levels[:1], goal])
        return self.updates + (min(2, wait) if loss <= NEAR * level else wait)

    def _result(self, stopped: str, held: _Held | None = None) -> Run:
        """Return the run, which ends at what was held where that is given."""
        if held:
            self._return_to(held)
        self.model.eval()
        now = dict(self.model.named_buffers())
        for name, before in self.loose.items():
            if not torch.equal(now[name], before):
                raise InputError(
                    f"training needs buffers that are kept, got {name}, which changes and is not "
                    "persistent: register it with persistent=True"
                )
        told = {"stop": self.told} if self.told else {}
        run = self._so_far(
            stopped,
            state_of(self.optimizer, self.parameters) if held is None else held.optimizer,
            {"end": {"train_loss": self.rows[-1]["train_loss"], **self._moved()}, **told},
        )
        if held is not None:
            return run
        point = averages.solution_of(
            self.average, self.model, self.objectives["train"], solution(self.model)
        )
        if point is None:
            return run
        row = self._row(self._measured("train", point), point)
        return averages.averaged(run, _on_cpu(point), row)

    def _moved(self) -> dict[str, Any]:
        """Return what the last update had of the configuration that is not what was given."""
        group, config = self.optimizer.param_groups[0], self.config
        found = {"learning_rate": group["lr"], "batch_size": self.batch_size}
        if self.clock.setting(0, 0).momentum is not None:
            if "betas" in group:
                options = {**config.optimizer_options, "betas": list(group["betas"])}
                found["optimizer_options"] = options
            else:
                found["momentum"] = group["momentum"]
        return {name: x for name, x in found.items() if x != getattr(config, name)}

    def _return_to(self, held: _Held) -> None:
        """Go back to a solution on the way, as if the training had ended there."""
        place(self.model, held.point)
        self.updates, self.examples = held.updates, held.examples
        self.examples_before, self.batch_size = held.examples_before, held.batch_size
        self._set_again()
        self.rows = [row for row in self.rows if row["update"] <= held.updates]
        self.checkpoints = [found for found in self.checkpoints if found[0] <= held.updates]
        if self.rows[-1]["update"] < held.updates:
            self.rows.append(self._row(self._measured("train")))

    def _unfinished(self) -> Run:
        """Return the run so far, with all that a training needs to go on from there."""
        states = {"cpu": torch.get_rng_state()}
        if self.where.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.where)
        state = {name: getattr(self, name) for name in STATE}
        state |= {
            "plateaus": {name: asdict(plateau) for name, plateau in self.plateaus.items()},
            "levels": len(self.levels),
            "held": {
                name: {key: getattr(held, key) for key in HELD} for name, held in self.held.items()
            },
            "random": {name: x.numpy().tobytes().hex() for name, x in states.items()},
        }
        optimizer = state_of(self.optimizer, self.parameters) | averages.state_of(self.average)
        for name, held in self.held.items():
            optimizer |= {f"{name}/{key}": x for key, x in held.optimizer.items()}
        points = [(held.updates, held.point) for held in self.held.values()]
        return self._so_far(INTERRUPTED, optimizer, {"state": state}, points)

    def resume(self, begun: Run) -> None:
        """Take up a training where another of the same configuration was interrupted.

        Raises:
            InputError: If it was not interrupted, or is of another configuration or other data.
        """
        mine = {"train": record(self.config), "data": self.problem.spec}
        its = {key: begun.spec.get(key) for key in mine}
        if begun.stopped != INTERRUPTED or begun.start is None or mine != its:
            raise InputError(
                "a training needs one of its own configuration that was interrupted, to go on, got "
                f"{differences(its, mine) or begun.stopped}: begin anew"
            )
        place(self.model, begun.end)
        states: dict[str, dict[str, Tensor]] = {}
        for key, x in begun.optimizer.items():
            owner, _, name = key.rpartition("/")
            states.setdefault(owner, {})[name] = x
        self.average = averages.restored(self.average, begun.optimizer, self.parameters[0])
        set_state(self.optimizer, self.parameters, averages.without(begun.optimizer))
        self.start, self.updates = begun.start, begun.updates
        columns = {name: column.tolist() for name, column in begun.history.items()}
        self.rows = [
            dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
        ]
        self.checkpoints = list(
            zip(begun.checkpoint_updates.tolist(), begun.checkpoints, strict=True)
        )
        state = self._older(begun) | begun.spec["state"]
        for name, numbers in reversed(state["held"].items()):
            _, point = self.checkpoints.pop()
            optimizer = states.get(name, {})
            self.held[name] = _Held(**numbers, point=point, optimizer=optimizer)
        for name in STATE:
            setattr(self, name, state[name])
        self._set_again()
        self.levels = self.levels[len(self.levels) - state["levels"] :]
        self.plateaus = {name: Patience(**x) for name, x in state["plateaus"].items()}
        while self.mark is not None and self.mark <= self.updates:
            self.mark = next(self.marks, None)
        for name, text in state["random"].items():
            tensor = torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
            if name == "cpu":
                torch.set_rng_state(tensor)
            else:
                torch.cuda.set_rng_state(tensor, self.where)

    def _older(self, begun: Run) -> dict[str, Any]:
        """Return what the first version left out of an unfinished run.

        Its batches had one size, and all its checkpoints were levels of the loss.
        """
        state = begun.spec["state"]
        taken = state["examples"] - state["epoch"] * size(self.problem.data.train)
        return {
            "begun": begun.updates - taken // self.config.batch_size,
            "batch_size": self.config.batch_size,
            "examples_before": state["examples"],  # which no schedule asks for
            "seen": None,
            "told": {},
            "held": {},
            "plateaus": {},
            "levels": len(self.levels) - len(self.checkpoints),
        }

    def _so_far(
        self,
        stopped: str,
        optimizer: dict[str, Tensor],
        more: dict[str, Any],
        points: Sequence[tuple[int, Solution]] = (),
    ) -> Run:
        counts = {"update", "examples", "train_right", "test_right"}
        history = {
            name: torch.tensor(
                [row[name] for row in self.rows],
                dtype=torch.int64 if name in counts else torch.float64,
            )
            for name in self.rows[0]
        }
        checkpoints = [*self.checkpoints, *points]
        return Run(
            start=_on_cpu(self.start),
            end=_on_cpu(solution(self.model)),
            checkpoints=[point for _, point in checkpoints],
            checkpoint_updates=torch.tensor(
                [updates for updates, _ in checkpoints], dtype=torch.int64
            ),
            history=history,
            optimizer=optimizer,
            train_index=self.problem.data.train_index,
            test_index=self.problem.data.test_index,
            updates=self.updates,
            stopped=stopped,
            spec={
                "algorithm": "train",
                "train": record(self.config),
                "data": self.problem.spec,
                "parameters": len(self.start.theta),
                **more,
            },
        )


class _Step:
    """What ``_Training._step`` gives; as a generator it would cost a percent of a training."""

    def __init__(self, training: _Training) -> None:
        self.training, self.block = training, whole()

    def __enter__(self) -> None:
        self.block.__enter__()
        self.training.is_whole = False

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        if kind is None:
            self.training.is_whole = True
        self.block.__exit__(kind, *error)


def _require_parts(
    config: TrainConfig, problem: Problem, clock: Clock, optimizer: torch.optim.Optimizer
) -> None:
    """Refuse what the model, the data or the optimizer cannot do, before the first update."""
    targets = problem.data.train[1]
    if config.batch_size > len(targets):
        raise InputError(
            f"batch_size needs to be at most the {len(targets)} training examples, got "
            f"{config.batch_size}: lower it"
        )
    if clock.sizes()[0] < 1:
        raise InputError(
            f"{config.schedule} needs batches of at least 1 example, got {clock.sizes()[0]}: take "
            "a larger factor in schedule_options"
        )
    if clock.sizes()[-1] > len(targets):
        raise InputError(
            f"{config.schedule} needs batches of at most the {len(targets)} training examples, got "
            f"{clock.sizes()[-1]}: give most in schedule_options"
        )
    if config.batches == "stratified":
        for batch_size in clock.sizes():
            BATCHES["stratified"](targets, batch_size, stream(0, 0))
    if config.ghost_batch is not None and not layers(problem.model):
        raise InputError(
            f"ghost_batch needs a model with BatchNorm, got {shown(config.model)} without: leave "
            "it out"
        )
    moves = clock.setting(0, 0).momentum is not None
    if moves and not {"momentum", "betas"} & optimizer.param_groups[0].keys():
        raise InputError(
            f"{config.schedule} needs an optimizer with momentum, got {config.optimizer}: choose "
            "another, or set momenta to null in schedule_options"
        )


def _on_cpu(point: Solution) -> Solution:
    return Solution(point.theta.cpu(), {name: b.cpu() for name, b in point.buffers.items()})


def _like(point: Solution, where: torch.device) -> Solution:
    return Solution(point.theta.to(where), {name: b.to(where) for name, b in point.buffers.items()})
