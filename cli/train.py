"""``sharpness train``: the options are the fields of ``TrainConfig``."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from sharpness.bars import Progress
from sharpness.data import is_read_anew
from sharpness.disk import remove
from sharpness.errors import ComputationError, InputError
from sharpness.journal import part_of
from sharpness.names import source_digest
from sharpness.results import Run
from sharpness.store import load_as, reuse, save, versions
from sharpness.training import TrainConfig, problem_of, record, resolved, train

from .parameters import COMMON, Kind, Name, Options, Real, Whole, overwrite, reporting
from .show import note
from .sources import Pieces, answer

# What the help says, and how the words of the command line become a value.
FIELDS: dict[str, tuple[Kind, str]] = {
    "model": (Name("models", "MODELS", functions=True), "The network."),
    "model_options": (Options(), "Arguments of the network's function, as JSON."),
    "data": (Name("data", "DATA", functions=True, files=True), "The data set."),
    "data_options": (Options(), "Of the data set and what is made of it, as JSON."),
    "loss": (Name("problem", "LOSSES", functions=True), "The loss."),
    "train_examples": (Whole(1), "Size of the training part; 600 of the digits by default."),
    "label_noise": (Real(least=0), "Share of training labels moved to another class."),
    "batch_size": (Whole(1), "Examples of one update."),
    "optimizer": (Name("optimizers", "OPTIMIZERS"), "What takes the steps."),
    "learning_rate": (Real(above=0), "Its rate."),
    "momentum": (Real(least=0), "Of sgd and rmsprop; adam has its own."),
    "nesterov": (click.BOOL, "Look ahead by the momentum; of sgd."),
    "weight_decay": (Real(least=0), "Added to the gradient; of adamw, decoupled from it."),
    "optimizer_options": (Options(), "Its own options by torch's names, such as betas, as JSON."),
    "method": (Name("methods", "METHODS"), "Of an update: along which gradient it steps."),
    "method_options": (Options(), "Its options, as JSON, such as '{\"rho\": 0.1}'."),
    "average": (Name("averages", "AVERAGES"), "Of the weights; it becomes the end."),
    "average_options": (Options(), "Its options, as JSON, such as '{\"decay\": 0.99}'."),
    "epochs": (Whole(1), "End after so many passes over the data."),
    "updates": (Whole(1), "End after so many updates; 20000 without epochs and examples."),
    "stop_loss": (Real(above=0), "End at this training loss; 0.01 where nothing else ends it."),
    "check_every": (Whole(1), "Updates between two looks at the training loss."),
    "checkpoint_losses": (Real(above=0), "Keep the solution at this loss too (repeatable)."),
    "seed": (Whole(), "Of the initialization."),
    "order_seed": (Whole(), "Of the order of examples; the seed by default."),
    "split_seed": (Whole(), "Of split and label noise; the seed by default."),
    "dtype": (Name("problem", "DTYPES"), "Of parameters and data."),
    "device": (click.STRING, "cpu, cuda or cuda:N."),
    "threads": (Whole(1), "Of the CPU; what torch uses by default."),
    "batches": (Name("sampling", "BATCHES"), "How the examples of a batch are drawn."),
    "schedule": (Name("schedules", "SCHEDULES"), "Of the rate, or of the batch size."),
    "schedule_options": (Options(), "Its options, as JSON, such as '{\"milestones\": [500]}'."),
    "schedule_unit": (Name("schedules", "UNITS"), "Of the times in its options."),
    "warmup": (Whole(), "Updates in which the rate grows from a small one."),
    "rate_scaling": (
        Name("schedules", "SCALINGS"),
        "Multiply the rate by batch size over base batch size, or by its root.",
    ),
    "base_batch_size": (Whole(1), "Of which rate or epochs are meant."),
    "regime_adaptation": (
        click.BOOL,
        "Make as many updates as the epochs have with the base batch size.",
    ),
    "ghost_batch": (Whole(1), "Examples that BatchNorm normalizes together."),
    "clip_norm": (Real(above=0), "Shorten longer gradients to this norm."),
    "examples": (Whole(1), "End after so many examples, with the update under way."),
    "patience": (Whole(1), "End after so many updates without a better training loss."),
    "early_stopping": (
        Whole(1),
        "End so many updates after the best validation loss; the best solution is the end.",
    ),
    "min_improvement": (Real(least=0), "Share by which a better loss is below the best."),
    "stop_within": (
        Real(above=0),
        "End so near to the stop loss, in its logarithm: 0.02 is 2 %; between two updates if need "
        "be.",
    ),
    "keep_diverged": (click.BOOL, "Keep the run up to its last finite training loss."),
    "checkpoint_updates": (Whole(1), "Keep the solution after so many updates (repeatable)."),
    "checkpoint_geometric": (
        Real(above=1),
        "Keep it after 1 update and each time at so many times as many.",
    ),
    "autocast": (
        Name("training_config", "AUTOCAST"),
        "Make the passes of updates in this precision; the weights keep their own.",
    ),
    "fast_gemm": (
        click.BOOL,
        "Let oneDNN multiply float32 matrices on the CPU, where that is as exact.",
    ),
    "compile": (click.BOOL, "Compile the model for its updates, by torch.compile."),
    "deterministic": (click.BOOL, "Only kernels that give the same bits each time."),
}


def _options(f: Callable[..., Any]) -> Callable[..., Any]:
    for field in reversed(fields(TrainConfig)):
        kind, text = FIELDS[field.name]
        default = getattr(TrainConfig(), field.name)
        f = click.option(
            f"--{field.name.replace('_', '-')}",
            type=kind,
            is_flag=kind is click.BOOL,
            default=default if default not in ({}, []) else None,
            multiple=isinstance(default, list),
            help=text,
        )(f)
    return f


@click.command(context_settings=COMMON)
@_options
@click.option("-o", "--output", required=True, metavar="FILE", help="The run's file.")
@overwrite
@reporting
def command(output: str, **options: Any) -> None:
    """Train one network to a training loss and record the run in FILE.

    The file holds the solution at the start and at the end, the optimizer's state, the history
    of loss and right answers, and which examples were which.

    \b
    Examples:
      sharpness train --batch-size 8 -o sb.h5
      sharpness train --batch-size 600 --label-noise 0.2 --seed 3 -o lb.h5
      sharpness train --model nets:build --data nets:digits --epochs 20 -o mine.h5
    """
    given = {name: options.pop(name) for name in FIELDS}
    known = {name: value for name, value in given.items() if value is not None}
    several = {name: list(value) for name, value in known.items() if isinstance(value, tuple)}
    config = resolved(TrainConfig(**{**known, **several}))
    sources = {name: source_digest(name) for name in (config.model, config.data, config.loss)}
    with redirect_stdout(sys.stderr):  # what the user's functions print is no result
        data = problem_of(config).spec if is_read_anew(config.data) else {}
    asked = {
        "command": "train",
        "options": record(config),
        "inputs": {name: sha256 for name, sha256 in sources.items() if sha256} | data,
    }
    path = Path(output)
    part = part_of(path)

    def compute(progress: Progress, pieces: Pieces) -> Run:
        kept = {**asked, "versions": versions()}
        goes_on = reuse(part, kept, overwrite=options["overwrite"])
        begun = load_as(part, Run) if goes_on else None
        if begun:
            note(f"continuing from update {begun.updates:,} in {part}")
        else:
            remove(part)  # of another request, which is overwritten
        return train(
            config,
            begun=begun,
            keep=lambda run: save(part, run, request=kept, overwrite=True),
            progress=progress,
            tell=note,
        )

    with _telling(part):
        answer(path, asked, options, compute, label="train", unit="updates")
        remove(part)


@contextmanager
def _telling(part: Path) -> Iterator[None]:
    """Tell what is kept with the exception that ends the command."""
    try:
        yield
    except InputError:
        raise  # the request is another, or cannot be met
    except BaseException as error:
        with suppress(InputError, ComputationError, OSError):
            updates = load_as(part, Run).updates
            error.add_note(f"{part} keeps {updates:,} updates: the same command again continues")
        raise
