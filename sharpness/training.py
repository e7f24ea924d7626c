"""Training to a given training loss, recorded: the solutions whose sharpness is compared."""

import json
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from sharpness.data import batches, size, take
from sharpness.errors import ComputationError, InputError
from sharpness.micro_batches import micro_batch_of
from sharpness.names import located, shown
from sharpness.objective import Objective, arguments, on_device
from sharpness.problem import DTYPES, Problem, pose, seeded, solution
from sharpness.results import Run, Solution
from sharpness.vectors import flatten, stream

UPDATES = 20_000  # the cap where neither epochs nor updates is given
STOP_LOSS = 1e-2  # the goal where nothing else ends the training
NEAR = 2.0  # within this many times the next level, the loss is checked every 2 updates
MOST_THREADS = 1024  # torch dies of far more
LARGEST_SEED = 2**63 - 1

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


Build = Callable[[list[nn.Parameter], TrainConfig], torch.optim.Optimizer]

# Their state is stored in the run by the names that torch gives it.
OPTIMIZERS: dict[str, Build] = {
    "adam": lambda p, c: torch.optim.Adam(
        p, lr=c.learning_rate, weight_decay=c.weight_decay, fused=True
    ),
    "adamw": lambda p, c: torch.optim.AdamW(
        p, lr=c.learning_rate, weight_decay=c.weight_decay, fused=True
    ),
    "sgd": lambda p, c: torch.optim.SGD(
        p,
        lr=c.learning_rate,
        momentum=c.momentum,
        nesterov=c.nesterov,
        weight_decay=c.weight_decay,
        fused=True,
    ),
    "rmsprop": lambda p, c: torch.optim.RMSprop(
        p, lr=c.learning_rate, momentum=c.momentum, weight_decay=c.weight_decay
    ),
    "rprop": lambda p, c: torch.optim.Rprop(p, lr=c.learning_rate),
    "adagrad": lambda p, c: torch.optim.Adagrad(p, lr=c.learning_rate, weight_decay=c.weight_decay),
}
# The options that mean something to some of them only.
TAKES = {
    "momentum": ("sgd", "rmsprop"),
    "nesterov": ("sgd",),
    "weight_decay": ("adam", "adamw", "sgd", "rmsprop", "adagrad"),
}


def train(
    config: TrainConfig, *, progress: Callable[[int, int | None, str], None] | None = None
) -> Run:
    """Return the run of a training: from where to where, by which way, and why it stopped there.

    The same configuration gives the same bytes on the same machine. Every epoch takes a new
    permutation from ``order_seed``. The history has a row for the start, for the first look at
    the loss after each epoch, and for the end.

    Raises:
        InputError: If the configuration cannot be met.
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
        return _Training(config, problem).run(progress)


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
    if config.optimizer not in OPTIMIZERS:
        raise InputError(
            f"optimizer needs to be one of {', '.join(OPTIMIZERS)}, got {config.optimizer!r}"
        )
    for name, optimizers in TAKES.items():
        if getattr(config, name) and config.optimizer not in optimizers:
            raise InputError(
                f"{name} needs {' or '.join(optimizers)}, got {getattr(config, name)} with "
                f"{config.optimizer}: leave it out"
            )
    if config.nesterov and not config.momentum:
        raise InputError("nesterov needs a momentum above 0, got 0: give one")
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
    """Return the configuration as JSON values; an object becomes the words ``object NAME``."""
    values = asdict(replace(config, model=None, data=None, loss=None))
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
        self.levels = sorted(config.checkpoint_losses, reverse=True)
        self.checkpoints: list[tuple[int, Solution]] = []

    def run(self, progress: Callable[[int, int | None, str], None] | None) -> Run:
        config = self.config
        start = solution(self.model)
        last_row = 0  # the epoch of the last row of the history
        measured = self._evaluate("train")
        self._row(measured)
        if self._judge(measured["loss"]):
            return self._result(start, "stop_loss")
        next_look = self._next_look(measured["loss"])
        for batch in self._batches():
            self._update(*batch)
            done = self._done()
            if not done and self.updates < next_look:
                continue
            next_look = self.updates + config.check_every
            fresh_epoch = self.epoch > last_row
            watched = config.stop_loss is not None or self.levels
            if not (done or watched or fresh_epoch):
                continue
            measured = self._evaluate("train")
            loss = measured["loss"]
            if self._judge(loss):
                done = "stop_loss"
            next_look = self._next_look(loss)
            if progress:
                progress(self.updates, config.updates, f"training loss {loss:.2e}")
            if done or fresh_epoch:
                last_row = self.epoch
                self._row(measured)
            if done:
                return self._result(start, done)
        raise AssertionError("the batches have no end")

    def _batches(self) -> Iterator[Any]:
        """Yield the batches of one epoch after the other, without end."""
        part, where = self.problem.data.train, self.parameters[0].device
        total = size(part)
        while True:
            rng = stream(self.config.order_seed or 0, self.epoch)
            order = torch.from_numpy(rng.permutation(total))
            shuffled = take(part, order)
            for inputs, targets in batches(shuffled, self.config.batch_size):
                if self.examples + len(targets) == (self.epoch + 1) * total:
                    self.epoch += 1
                yield on_device(where, inputs), targets.to(where)

    def _update(self, inputs: Any, targets: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        args, kwargs = arguments(inputs)
        try:
            outputs = self.model(*args, **kwargs)
            loss = self.objectives["train"].loss_of_outputs(outputs, targets)
            torch.autograd.backward(loss)
            self.optimizer.step()
        except (InputError, ComputationError):
            raise
        except (RuntimeError, ValueError, IndexError, TypeError) as error:  # the user's model
            raise ComputationError(
                f"training failed in update {self.updates + 1}, of a batch of {len(targets)}: "
                f"{located(error)}"
            ) from error
        self.updates += 1
        self.examples += len(targets)

    def _done(self) -> str | None:
        if self.config.updates is not None and self.updates >= self.config.updates:
            return "updates"
        if self.config.epochs is not None and self.epoch >= self.config.epochs:
            return "epochs"
        return None

    def _evaluate(self, part: str) -> dict[str, float]:
        measured = self.objectives[part].evaluate(solution(self.model))
        return {name: float(value) for name, value in measured.items()}

    def _row(self, on_train: dict[str, float]) -> None:
        row: dict[str, float] = {"update": self.updates, "examples": self.examples}
        for part, measured in (("train", on_train), ("test", self._evaluate("test"))):
            row[f"{part}_loss"] = measured["loss"]
            if "accuracy" in measured:
                total = size(getattr(self.problem.data, part))
                row[f"{part}_right"] = round(measured["accuracy"] * total)
        self.rows.append(row)

    def _judge(self, loss: float) -> bool:
        """Keep what is to be kept at this training loss; say whether it meets the goal."""
        if not math.isfinite(loss):
            raise ComputationError(
                f"training needs a finite loss, got {loss} after {self.updates} updates: "
                "lower the learning rate"
            )
        while self.levels and loss <= self.levels[0]:
            self.levels.pop(0)
            self.checkpoints.append((self.updates, _on_cpu(solution(self.model))))
        return self.config.stop_loss is not None and loss <= self.config.stop_loss

    def _next_look(self, loss: float) -> int:
        """Return after how many updates the loss is looked at again: sooner near a level."""
        level = max([*self.levels[:1], self.config.stop_loss or 0.0])
        wait = self.config.check_every
        return self.updates + (min(2, wait) if loss <= NEAR * level else wait)

    def _result(self, start: Solution, stopped: str) -> Run:
        whole = {"update", "examples", "train_right", "test_right"}
        history = {
            name: torch.tensor(
                [row[name] for row in self.rows],
                dtype=torch.int64 if name in whole else torch.float64,
            )
            for name in self.rows[0]
        }
        self.model.eval()
        now = dict(self.model.named_buffers())
        for name, before in self.loose.items():
            if not torch.equal(now[name], before):
                raise InputError(
                    f"training needs buffers that are kept, got {name}, which changes and is not "
                    "persistent: register it with persistent=True"
                )
        return Run(
            start=_on_cpu(start),
            end=_on_cpu(solution(self.model)),
            checkpoints=[point for _, point in self.checkpoints],
            checkpoint_updates=torch.tensor(
                [updates for updates, _ in self.checkpoints], dtype=torch.int64
            ),
            history=history,
            optimizer=_optimizer_state(self.optimizer, self.parameters),
            train_index=self.problem.data.train_index,
            test_index=self.problem.data.test_index,
            updates=self.updates,
            stopped=stopped,
            spec={
                "algorithm": "train",
                "train": record(self.config),
                "data": self.problem.spec,
                "parameters": len(start.theta),
                "end": {"train_loss": self.rows[-1]["train_loss"]},
            },
        )


def _optimizer_state(
    optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]
) -> dict[str, Tensor]:
    """Return the state by name, each entry of a parameter in the order of theta, (n,).

    Numbers such as Adam's step stand once for each parameter tensor. A parameter that never had
    a gradient has no state, that is zeros.
    """
    states = [optimizer.state.get(p, {}) for p in parameters]
    names = sorted({name for state in states for name, x in state.items() if torch.is_tensor(x)})
    flat: dict[str, Tensor] = {}
    for name in names:
        known = next(state[name] for state in states if name in state)
        blank = [torch.zeros_like(p) if known.ndim else known.new_zeros(()) for p in parameters]
        pieces = [state.get(name, zero) for state, zero in zip(states, blank, strict=True)]
        flat[name] = flatten(pieces).cpu()
    return flat


def _on_cpu(point: Solution) -> Solution:
    return Solution(point.theta.cpu(), {name: b.cpu() for name, b in point.buffers.items()})
