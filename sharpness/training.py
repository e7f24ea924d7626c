"""Training to a given training loss, recorded: the solutions whose sharpness is compared."""

import json
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from sharpness.data import batches, size, take
from sharpness.errors import ComputationError, InputError
from sharpness.finite import not_finite
from sharpness.methods import Task, plain
from sharpness.micro_batches import micro_batch_of
from sharpness.names import located, shown
from sharpness.objective import Objective, on_device
from sharpness.optimizers import OPTIMIZERS, require_options, set_state, state_of
from sharpness.problem import DTYPES, Problem, place, pose, seeded, solution
from sharpness.results import Run, Solution
from sharpness.signals import Stopped, whole
from sharpness.text import differences
from sharpness.vectors import stream

UPDATES = 20_000  # the cap where neither epochs nor updates is given
STOP_LOSS = 1e-2  # the goal where nothing else ends the training
NEAR = 2.0  # within this many times the next level, the loss is checked every 2 updates
KEEP_EVERY = 10.0  # seconds between two times that an unfinished run is kept
KEEP_SHARE = 20  # times what that takes, at least
INTERRUPTED = "interrupted"
MOST_THREADS = 1024  # torch dies of far more
LARGEST_SEED = 2**63 - 1

LATER = ("optimizer_options",)  # fields that came after the first files

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainConfig:
    """What a training is made of; the command line's options have the same names.

    ``model``, ``data`` and ``loss`` are names, or objects as ``problem.pose`` takes them. A
    training ends at the first of ``stop_loss``, ``epochs`` and ``updates``; with none of them, at
    a training loss of 1e-2; and without epochs and updates, after 20,000 updates at the latest.
    The training loss is that of the whole training part in eval mode, looked at every
    ``check_every`` updates and every 2 once it is within twice ``stop_loss``, or the next of
    ``checkpoint_losses``.

    >>> from dataclasses import replace
    >>> small = TrainConfig(batch_size=8, seed=3)
    >>> replace(small, batch_size=600).seed
    3
    """

    model: Any = "mlp"
    model_options: dict[str, Any] = field(default_factory=dict)
    data: Any = "digits"
    loss: Any = "cross_entropy"
    train_examples: int | None = None  # of the data set's own size by default
    label_noise: float = 0.0  # share of training labels moved to another class
    batch_size: int = 32  # 1 to N; the last batch of an epoch may be smaller
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.0  # of sgd and rmsprop
    nesterov: bool = False  # of sgd with momentum
    weight_decay: float = 0.0  # added to the gradient; of adamw, decoupled from it
    optimizer_options: dict[str, Any] = field(default_factory=dict)  # its own, as torch names them
    epochs: int | None = None
    updates: int | None = None
    stop_loss: float | None = None
    check_every: int = 10  # updates
    checkpoint_losses: list[float] = field(default_factory=list)  # store the solution there
    seed: int = 0  # of the initialization
    order_seed: int | None = None  # of the order of examples; the seed by default
    split_seed: int | None = None  # of split and label noise; the seed by default
    dtype: str = "float32"
    device: str = "cpu"
    threads: int | None = None  # of the CPU; what torch uses by default


def train(
    config: TrainConfig,
    *,
    begun: Run | None = None,
    keep: Callable[[Run], None] | None = None,
    progress: Callable[[int, int | None, str], None] | None = None,
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

    Raises:
        InputError: If the configuration cannot be met, or is not that of ``begun``.
        ComputationError: If the training loss stops being finite.

    >>> run = train(TrainConfig(batch_size=600, updates=5))
    >>> run.updates, run.stopped, run.history["examples"].tolist()
    (5, 'updates', [0, 3000])
    """
    config = resolved(config)
    problem = problem_of(config)
    examples = size(problem.data.train)
    if config.batch_size > examples:
        raise InputError(
            f"batch_size needs to be at most the {examples} training examples, got "
            f"{config.batch_size}: lower it"
        )
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
    where = next(problem.model.parameters()).device
    # Dropout draws from torch's own generator, which is made ours meanwhile.
    with cpu_threads(config.threads), seeded(config.order_seed or 0, where):
        training = _Training(config, problem)
        if begun:
            training.resume(begun)
        return training.run(keep, progress)


def problem_of(config: TrainConfig) -> Problem:
    """Return the problem of a configuration that is resolved."""
    return pose(
        config.model,
        config.data,
        config.loss,
        model_options=config.model_options,
        train_examples=config.train_examples,
        label_noise=config.label_noise,
        seed=config.seed,
        split_seed=config.split_seed or 0,
        dtype=config.dtype,
        device=config.device,
    )


def resolved(config: TrainConfig) -> TrainConfig:
    """Return the configuration with its open ends filled in, checked.

    Raises:
        InputError: If a number is not in its range or a name is unknown.
    """
    whole = {"batch_size": 1, "epochs": 1, "updates": 1, "check_every": 1, "threads": 1}
    whole |= {"train_examples": 1, "seed": 0, "order_seed": 0, "split_seed": 0}
    for name, least in whole.items():
        value = getattr(config, name)
        if value is not None and not (type(value) is int and least <= value <= LARGEST_SEED):
            raise InputError(
                f"{name} needs to be a whole number of at least {least}, got {value}: change it"
            )
    if config.threads is not None and config.threads > MOST_THREADS:
        raise InputError(
            f"threads need to be at most {MOST_THREADS}, got {config.threads}: take the cores"
        )
    above = {"learning_rate": config.learning_rate, "stop_loss": config.stop_loss}
    above |= {f"checkpoint_losses {x}": x for x in config.checkpoint_losses}
    for name, number in above.items():
        if number is not None and not (number > 0 and math.isfinite(number)):
            raise InputError(f"{name} needs to be above 0 and finite, got {number}: change it")
    if not (config.weight_decay >= 0 and math.isfinite(config.weight_decay)):
        raise InputError(f"weight_decay needs to be at least 0, got {config.weight_decay}")
    for name, share in {"momentum": config.momentum, "label_noise": config.label_noise}.items():
        if not 0 <= share < 1:
            raise InputError(f"{name} needs to be at least 0 and below 1, got {share}: change it")
    require_options(config)
    if config.dtype not in DTYPES:
        raise InputError(f"dtype needs to be one of {', '.join(DTYPES)}, got {config.dtype!r}")
    try:
        json.dumps(record(config), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"a configuration needs plain numbers and words, to be kept, got others: {error}"
        ) from error
    open_ended = config.epochs is None and config.updates is None
    return replace(
        config,
        updates=UPDATES if open_ended else config.updates,
        stop_loss=STOP_LOSS if open_ended and config.stop_loss is None else config.stop_loss,
        order_seed=config.seed if config.order_seed is None else config.order_seed,
        split_seed=config.seed if config.split_seed is None else config.split_seed,
        threads=torch.get_num_threads() if config.threads is None else config.threads,
    )


def record(config: TrainConfig) -> dict[str, Any]:
    """Return the configuration as JSON values; an object becomes the words ``object NAME``.

    A field of ``LATER`` that is at its default is left out, so that the records of older versions
    stay those of the same configuration.
    """
    values = asdict(replace(config, model=None, data=None, loss=None))
    default = asdict(TrainConfig())
    values = {k: x for k, x in values.items() if k not in LATER or x != default[k]}
    return values | {key: shown(getattr(config, key)) for key in ("model", "data", "loss")}


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Let torch use so many threads of the CPU meanwhile: another number rounds differently."""
    before = torch.get_num_threads()
    if count is not None and count != before:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


class _Training:
    """The state of one training: network, optimizer, history, and how far it has come."""

    def __init__(self, config: TrainConfig, problem: Problem) -> None:
        self.config, self.problem, self.model = config, problem, problem.model
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = OPTIMIZERS[config.optimizer](self.parameters, config)
        self.objectives = {
            name: Objective(
                self.model,
                batches(part, micro_batch_of(self.model, part, problem.loss)),
                problem.loss,
                metrics=problem.metrics,
            )
            for name, part in (("train", problem.data.train), ("test", problem.data.test))
        }
        kept = self.model.state_dict()
        self.loose = {n: b.clone() for n, b in self.model.named_buffers() if n not in kept}
        self.model.train()  # the objectives have modules of their own, in eval mode
        self.rows: list[dict[str, float]] = []
        self.updates, self.examples, self.epoch = 0, 0, 0
        self.last_row = 0  # the epoch of the last row of the history
        self.looked, self.next_look = -1, 0  # updates done at the last look, and at the next
        self.levels = sorted(config.checkpoint_losses, reverse=True)
        self.checkpoints: list[tuple[int, Solution]] = []
        self.start = solution(self.model)
        self.stopped: str | None = None  # why the training is at its end
        self.is_whole = True  # no step was left in the middle

    def run(
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
                    return self._result(self.stopped)
                if keep and monotonic() - begun >= max(KEEP_EVERY, KEEP_SHARE * cost):
                    begun = monotonic()
                    keep(self._unfinished())
                    cost = monotonic() - begun
                with self._step():
                    self._update(*next(following))
        except Stopped:
            if keep and self.is_whole and self.rows:
                keep(self._unfinished())
            raise

    def _look(self, progress: Callable[[int, int | None, str], None] | None) -> None:
        """Look at the loss where it is time to, and decide whether the training goes on.

        Nothing is noted before all is measured, for a signal may come meanwhile.
        """
        done = self._done() if self.updates else None
        fresh_epoch = self.epoch > self.last_row or not self.updates
        watched = self.config.stop_loss is not None or self.levels
        if self.updates < self.next_look and not done:
            self.looked = self.updates
            return
        if not (done or watched or fresh_epoch):
            with self._step():
                self.looked, self.next_look = self.updates, self.updates + self.config.check_every
            return
        measured = self._evaluate("train")
        loss = measured["loss"]
        meets = self.config.stop_loss is not None and loss <= self.config.stop_loss
        row = self._row(measured) if done or meets or fresh_epoch else None
        with self._step():
            self.stopped = "stop_loss" if self._judge(loss) else done
            self.looked, self.next_look = self.updates, self._next_look(loss)
            if row:
                self.last_row = self.epoch
                self.rows.append(row)
        if progress and self.updates:
            progress(self.updates, self.config.updates, f"training loss {loss:.2e}")

    @contextmanager
    def _step(self) -> Iterator[None]:
        """Do a step of the training whole, or leave a mark that it was torn."""
        with whole():
            self.is_whole = False
            yield
            self.is_whole = True

    def _batches(self) -> Iterator[Any]:
        """Yield the batches that are still to come, of one epoch after the other, without end."""
        part, where = self.problem.data.train, self.parameters[0].device
        total = size(part)
        taken = self.examples - self.epoch * total  # of this epoch, before an interruption
        while True:
            rng = stream(self.config.order_seed or 0, self.epoch)
            order = torch.from_numpy(rng.permutation(total)[taken:])
            shuffled, taken = take(part, order), 0
            for inputs, targets in batches(shuffled, self.config.batch_size):
                if self.examples + len(targets) == (self.epoch + 1) * total:
                    self.epoch += 1
                yield on_device(where, inputs), targets.to(where)

    def _update(self, inputs: Any, targets: Tensor) -> None:
        begun = False

        def loss(outputs: Any, of: Tensor) -> Tensor:
            nonlocal begun
            value = self.objectives["train"].loss_of_outputs(outputs, of)
            if not begun and not math.isfinite(number := value.item()):
                # While the gradients of the last update are still there.
                raise self._not_finite(f"a finite loss, got {number} in {self._next()}")
            begun = True
            return value

        try:
            plain(Task(self.model, loss, inputs, targets, self.optimizer))
        except (InputError, ComputationError):
            raise
        except (RuntimeError, ValueError, IndexError, TypeError) as error:  # the user's model
            raise ComputationError(
                f"training failed in {self._next()}, of a batch of {len(targets)}: {located(error)}"
            ) from error
        self.updates += 1
        self.examples += len(targets)

    def _next(self) -> str:
        return f"update {self.updates + 1}"

    def _done(self) -> str | None:
        if self.config.updates is not None and self.updates >= self.config.updates:
            return "updates"
        if self.config.epochs is not None and self.epoch >= self.config.epochs:
            return "epochs"
        return None

    def _evaluate(self, part: str) -> dict[str, float]:
        measured = self.objectives[part].evaluate(solution(self.model))
        return {name: float(value) for name, value in measured.items()}

    def _row(self, on_train: dict[str, float]) -> dict[str, float]:
        row: dict[str, float] = {"update": self.updates, "examples": self.examples}
        for part, measured in (("train", on_train), ("test", self._evaluate("test"))):
            row[f"{part}_loss"] = measured["loss"]
            if "accuracy" in measured:
                total = size(getattr(self.problem.data, part))
                row[f"{part}_right"] = round(measured["accuracy"] * total)
        return row

    def _judge(self, loss: float) -> bool:
        """Keep what is to be kept at this training loss; say whether it meets the goal."""
        if not math.isfinite(loss):
            after = f"after {self.updates} updates" if self.updates else "before the first update"
            raise self._not_finite(f"a finite loss, got {loss} {after}")
        while self.levels and loss <= self.levels[0]:
            self.levels.pop(0)
            self.checkpoints.append((self.updates, _on_cpu(solution(self.model))))
        return self.config.stop_loss is not None and loss <= self.config.stop_loss

    def _not_finite(self, otherwise: str) -> ComputationError:
        """Return the error that names where the first number that is not finite appeared.

        That is, in the order of an update: a gradient of the last one, whose loss was finite, the
        weights it left, or what came next.
        """
        if not self.updates:
            f = self.objectives["train"]
            fault = not_finite(f, "training", solution(self.model), gradient=False)
            return fault or ComputationError(f"training needs {otherwise}: look at the model")
        named = list(self.model.named_parameters())
        looked = [("a finite gradient", "in", n, p.grad) for n, p in named if p.grad is not None]
        looked += [("finite weights", "after", n, p.detach()) for n, p in named]
        for what, when, name, x in looked:
            bad = x[~torch.isfinite(x)]
            if len(bad):
                otherwise = f"{what}, got {float(bad[0])} for {name} {when} update {self.updates}"
                break
        return ComputationError(f"training needs {otherwise}: lower the learning rate")

    def _next_look(self, loss: float) -> int:
        """Return after how many updates the loss is looked at again: sooner near a level."""
        level = max([*self.levels[:1], self.config.stop_loss or 0.0])
        wait = self.config.check_every
        return self.updates + (min(2, wait) if loss <= NEAR * level else wait)

    def _result(self, stopped: str) -> Run:
        self.model.eval()
        now = dict(self.model.named_buffers())
        for name, before in self.loose.items():
            if not torch.equal(now[name], before):
                raise InputError(
                    f"training needs buffers that are kept, got {name}, which changes and is not "
                    "persistent: register it with persistent=True"
                )
        return self._so_far(stopped, {"end": {"train_loss": self.rows[-1]["train_loss"]}})

    def _unfinished(self) -> Run:
        """Return the run so far, with all that a training needs to go on from there."""
        where = self.parameters[0].device
        states = {"cpu": torch.get_rng_state()}
        if where.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(where)
        state = {
            "looked": self.looked,
            "next_look": self.next_look,
            "last_row": self.last_row,
            "examples": self.examples,
            "epoch": self.epoch,
            "stopped": self.stopped,
            "random": {name: x.numpy().tobytes().hex() for name, x in states.items()},
        }
        return self._so_far(INTERRUPTED, {"state": state})

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
        set_state(self.optimizer, self.parameters, begun.optimizer)
        self.start, self.updates = begun.start, begun.updates
        columns = {name: column.tolist() for name, column in begun.history.items()}
        self.rows = [
            dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
        ]
        self.checkpoints = list(
            zip(begun.checkpoint_updates.tolist(), begun.checkpoints, strict=True)
        )
        self.levels = self.levels[len(self.checkpoints) :]
        state = begun.spec["state"]
        for name in ("looked", "next_look", "last_row", "examples", "epoch", "stopped"):
            setattr(self, name, state[name])
        for name, text in state["random"].items():
            tensor = torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
            if name == "cpu":
                torch.set_rng_state(tensor)
            else:
                torch.cuda.set_rng_state(tensor, self.parameters[0].device)

    def _so_far(self, stopped: str, more: dict[str, Any]) -> Run:
        counts = {"update", "examples", "train_right", "test_right"}
        history = {
            name: torch.tensor(
                [row[name] for row in self.rows],
                dtype=torch.int64 if name in counts else torch.float64,
            )
            for name in self.rows[0]
        }
        return Run(
            start=_on_cpu(self.start),
            end=_on_cpu(solution(self.model)),
            checkpoints=[point for _, point in self.checkpoints],
            checkpoint_updates=torch.tensor(
                [updates for updates, _ in self.checkpoints], dtype=torch.int64
            ),
            history=history,
            optimizer=state_of(self.optimizer, self.parameters),
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


def _on_cpu(point: Solution) -> Solution:
    return Solution(point.theta.cpu(), {name: b.cpu() for name, b in point.buffers.items()})
