"""What a training is made of, checked, and as the record of it that a run keeps."""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch

from sharpness.averages import require_average
from sharpness.errors import InputError
from sharpness.methods import require_method
from sharpness.names import shown
from sharpness.optimizers import require_options
from sharpness.problem import DTYPES
from sharpness.sampling import BATCHES
from sharpness.schedules import SCALINGS, UNITS, scheduled

UPDATES = 20_000  # the cap where neither epochs, updates nor examples are given
STOP_LOSS = 1e-2  # the goal where nothing else ends the training
MOST_THREADS = 1024  # torch dies of far more
LARGEST_SEED = 2**63 - 1
# Of the documentation of cuBLAS; torch asks for one of them.
CUBLAS, CUBLAS_FIXED = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")


@dataclass(frozen=True)
class TrainConfig:
    """What a training is made of; the command line's options have the same names.

    ``model``, ``data`` and ``loss`` are names, or objects as ``problem.pose`` takes them. A
    training ends at the first of ``stop_loss``, ``epochs``, ``updates``, ``examples``, ``patience``
    and ``early_stopping``; with none of them, at a training loss of 1e-2; and without epochs,
    updates and examples, after 20,000 updates at the latest.
    The training loss is that of the whole training part in eval mode, looked at every
    ``check_every`` updates and every 2 once it is within twice ``stop_loss``, or the next of
    ``checkpoint_losses``; with ``stop_within``, after every update there.

    ``stop_loss`` alone ends at the first look at or below it, however far. With ``stop_within`` d,
    a solution more than d below it in log loss is left for one between those of the last two
    looks, on the line from one to the other, whose loss is within d of the level.

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
    batches: str = "shuffled"  # how the examples of a batch are drawn
    schedule: str = "constant"  # of the rate, or of the batch size
    schedule_options: dict[str, Any] = field(default_factory=dict)
    schedule_unit: str = "updates"  # or epochs: of the schedule's times
    warmup: int = 0  # updates in which the rate grows from 1/warmup of itself
    rate_scaling: str | None = None  # of the rate with batch_size / base_batch_size
    base_batch_size: int | None = None
    # As many updates as epochs of batches of base_batch_size have, which are the schedule's epochs.
    regime_adaptation: bool = False
    ghost_batch: int | None = None  # examples that BatchNorm normalizes together
    clip_norm: float | None = None  # of the gradient, at most
    examples: int | None = None  # end after so many, with the update under way
    patience: int | None = None  # updates without a better training loss, to end after
    early_stopping: int | None = None  # likewise of the validation loss; the best is the end
    min_improvement: float = 0.0  # share by which a better loss is below the best one
    stop_within: float | None = None  # of stop_loss in log loss
    keep_diverged: bool = False  # end at the last finite look where numbers are no longer finite
    checkpoint_updates: list[int] = field(default_factory=list)  # store the solution there
    checkpoint_geometric: float | None = None  # and at 1 and each time at so many times the updates
    deterministic: bool = False  # only kernels of which torch knows that they are
    data_options: dict[str, Any] = field(default_factory=dict)
    optimizer_options: dict[str, Any] = field(default_factory=dict)  # its own, as torch names them
    method: str = "plain"  # of an update: along which gradient the optimizer steps
    method_options: dict[str, Any] = field(default_factory=dict)
    average: str = "none"  # of the weights, which is the end where there is one
    average_options: dict[str, Any] = field(default_factory=dict)
    autocast: str | None = None  # the passes of updates in this precision, weights in their own
    compile: bool = False  # the model by torch.compile, in updates
    fast_gemm: bool = False  # products of matrices by oneDNN, see gemm.fast_gemm


def resolved(config: TrainConfig) -> TrainConfig:
    """Return the configuration with its open ends filled in, checked.

    Raises:
        InputError: If a number is not in its range or a name is unknown.
    """
    _require_numbers(config)
    _require_names(config)
    _require_company(config)
    try:
        json.dumps(record(config), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"a configuration needs plain numbers and words, to be kept, got others: {error}"
        ) from error
    open_ended = config.epochs is None and config.updates is None and config.examples is None
    goes_on = open_ended and config.patience is None and config.early_stopping is None
    found = replace(
        config,
        updates=UPDATES if open_ended else config.updates,
        stop_loss=STOP_LOSS if goes_on and config.stop_loss is None else config.stop_loss,
        order_seed=config.seed if config.order_seed is None else config.order_seed,
        split_seed=config.seed if config.split_seed is None else config.split_seed,
        threads=torch.get_num_threads() if config.threads is None else config.threads,
    )
    if found.stop_within is not None and found.stop_loss is None:
        raise InputError(
            f"stop_within needs a stop_loss, got {found.stop_within} without: give both"
        )
    return found


# Of the first files, which hold them whatever they are. Any other field is held where it is not at
# its default: what did not know it has the same record still.
ALWAYS = (
    *("model", "model_options", "data", "loss", "train_examples", "label_noise", "batch_size"),
    *("optimizer", "learning_rate", "momentum", "nesterov", "weight_decay", "epochs", "updates"),
    *("stop_loss", "check_every", "checkpoint_losses", "seed", "order_seed", "split_seed"),
    *("dtype", "device", "threads"),
)


def record(config: TrainConfig) -> dict[str, Any]:
    """Return the configuration as JSON values; an object becomes the words ``object NAME``.

    >>> "clip_norm" in record(TrainConfig()), record(TrainConfig(clip_norm=5.0))["clip_norm"]
    (False, 5.0)
    """
    values = asdict(replace(config, model=None, data=None, loss=None))
    values |= {key: shown(getattr(config, key)) for key in ("model", "data", "loss")}
    default = TrainConfig()
    return {
        key: value
        for key, value in values.items()
        if key in ALWAYS or value != getattr(default, key)
    }


def completed(made: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with the defaults that it leaves out.

    >>> completed({"seed": 3})["clip_norm"] is None
    True
    """
    default = TrainConfig()
    left_out = [f.name for f in fields(TrainConfig) if f.name not in (*ALWAYS, *made)]
    return {**made, **{name: getattr(default, name) for name in left_out}}


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


@contextmanager
def deterministic_kernels(wanted: bool) -> Iterator[None]:
    """Let torch use meanwhile only kernels that give the same bits each time, where it is wanted.

    Raises:
        InputError: If cuBLAS may have started without the setting that this needs.
    """
    if not wanted:
        yield
        return
    if torch.cuda.is_available() and os.environ.get(CUBLAS) not in CUBLAS_FIXED:
        raise InputError(
            f"deterministic needs {CUBLAS}={CUBLAS_FIXED[0]} in the environment of the process, "
            f"got {os.environ.get(CUBLAS)!r}: set it before the start"
        )
    before = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    searches = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)
        torch.backends.cudnn.benchmark = searches


WHOLE = {
    **dict.fromkeys(("batch_size", "epochs", "updates", "examples", "check_every", "threads"), 1),
    **dict.fromkeys(("train_examples", "base_batch_size", "ghost_batch"), 1),
    **dict.fromkeys(("patience", "early_stopping"), 1),
    **dict.fromkeys(("seed", "order_seed", "split_seed", "warmup"), 0),
}
ABOVE = ("learning_rate", "stop_loss", "clip_norm", "stop_within")
SHARES = ("momentum", "label_noise", "min_improvement")
# What means nothing without one of others.
NEEDS = {
    "rate_scaling": ("base_batch_size",),
    "regime_adaptation": ("base_batch_size",),
    "base_batch_size": ("rate_scaling", "regime_adaptation"),
    "min_improvement": ("patience", "early_stopping"),
}
AUTOCAST = {"bfloat16": torch.bfloat16}  # float16 would need its losses scaled
NO_RATE = ("rprop",)  # take the rate at the start alone


def _require_numbers(config: TrainConfig) -> None:
    whole = {name: (getattr(config, name), least) for name, least in WHOLE.items()}
    whole |= {f"checkpoint_updates {x}": (x, 1) for x in config.checkpoint_updates}
    for name, (value, least) in whole.items():
        if value is not None and not (type(value) is int and least <= value <= LARGEST_SEED):
            raise InputError(
                f"{name} needs to be a whole number of at least {least}, got {value}: change it"
            )
    if config.threads is not None and config.threads > MOST_THREADS:
        raise InputError(
            f"threads need to be at most {MOST_THREADS}, got {config.threads}: take the cores"
        )
    above = {name: getattr(config, name) for name in ABOVE}
    above |= {f"checkpoint_losses {x}": x for x in config.checkpoint_losses}
    for name, number in above.items():
        if number is not None and not (number > 0 and math.isfinite(number)):
            raise InputError(f"{name} needs to be above 0 and finite, got {number}: change it")
    ratio = config.checkpoint_geometric
    if ratio is not None and not (ratio > 1 and math.isfinite(ratio)):
        raise InputError(
            f"checkpoint_geometric needs a ratio above 1, got {ratio}: 2 doubles the updates"
        )
    if not (config.weight_decay >= 0 and math.isfinite(config.weight_decay)):
        raise InputError(f"weight_decay needs to be at least 0, got {config.weight_decay}")
    for name in SHARES:
        share = getattr(config, name)
        if not 0 <= share < 1:
            raise InputError(f"{name} needs to be at least 0 and below 1, got {share}: change it")


def _require_names(config: TrainConfig) -> None:
    tables: dict[str, Iterable[str]] = {
        "dtype": DTYPES,
        "autocast": AUTOCAST,
        "batches": BATCHES,
        "schedule_unit": UNITS,
        "rate_scaling": SCALINGS,
    }
    for name, table in tables.items():
        value = getattr(config, name)
        if value is not None and value not in table:
            raise InputError(f"{name} needs to be one of {', '.join(table)}, got {value!r}")
    scheduled(config.schedule, config.schedule_options)
    require_options(config)
    require_method(config.method, config.method_options)
    require_average(config.average, config.average_options)


def _require_company(config: TrainConfig) -> None:
    """Refuse what would have no effect beside the rest."""
    for name, others in NEEDS.items():
        if getattr(config, name) and not any(getattr(config, other) for other in others):
            raise InputError(
                f"{name} needs {' or '.join(others)}, got {getattr(config, name)} without: give it"
            )
    if config.regime_adaptation and config.epochs is None:
        raise InputError("regime_adaptation needs epochs, to be multiplied, got none: give them")
    if config.optimizer in NO_RATE and (config.schedule != "constant" or config.warmup):
        raise InputError(
            f"a schedule needs an optimizer whose rate it can move, got {config.optimizer}, which "
            "takes it at the start alone: choose another, or constant without warm-up"
        )
    if config.average != "none" and config.early_stopping is not None:
        raise InputError(
            f"early_stopping needs the average none, got {config.average}: its end is the best "
            "solution, not the average; leave one out"
        )
    if config.autocast and config.dtype != "float32":
        raise InputError(f"autocast needs dtype float32, got {config.dtype}: leave one of them out")
    if config.fast_gemm and (config.dtype != "float32" or config.device != "cpu"):
        raise InputError(
            f"fast_gemm needs float32 on the CPU, got {config.dtype} on {config.device}: leave it "
            "out"
        )
    if config.method == "stability" and config.ghost_batch is not None:
        raise InputError(
            "ghost_batch needs another method than stability, which compares whole batches: leave "
            "it out"
        )
