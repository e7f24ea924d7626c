"""``sharpness batches``."""

from typing import Any

import click

from sharpness.bars import Progress

from .parameters import (
    COMMON,
    Real,
    Whole,
    analysis,
    engine,
    operator,
    overwrite,
    reporting,
    source,
)
from .sources import OF_MATRIX, Pieces, answer, beside, objective, opened, request

CHOSEN = ("batch_size", "count", "k", "tol", *OF_MATRIX)


@click.command(context_settings=COMMON)
@click.argument("run", metavar="RUN")
@click.option("--batch-size", type=Whole(1), required=True, help="Examples of a mini-batch.")
@click.option(
    "--count",
    type=Whole(1),
    help="How many mini-batches.  [default: all that the examples give]",
)
@click.option("-k", "--pairs", "k", type=Whole(1), default=1, help="How many eigenvalues of each.")
@operator
@engine
@click.option("--tol", type=Real(above=0), help="Of residuals; 1e-4 in float32, 1e-8 in float64.")
@analysis
@source
@click.option("-o", "--output", metavar="FILE", help="Default: RUN.batches.h5 beside the run.")
@overwrite
@reporting
def command(run: str, **options: Any) -> None:
    """Compute the top eigenvalues of each mini-batch at the end of RUN, and of all the data.

    The mini-batches are such as one pass of training has, drawn by --seed: none shares an example
    with another, and what is left at the end is in none. Each that is done of an interrupted
    command is kept, and the same command continues.

    \b
    Examples:
      sharpness batches sb.h5 --batch-size 8
      sharpness batches sb.h5 --batch-size 60 --weight-decay 1e-3 -k 3
      sharpness batches sb.h5 --batch-size 8 --count 20 --operator gauss-newton
    """
    from sharpness.by_batch import batch_eigenvalues

    opened_run = opened(run, options)
    chosen = {key: options[key] for key in CHOSEN}

    def compute(progress: Progress, pieces: Pieces) -> Any:
        f = objective(opened_run, options)
        return batch_eigenvalues(f, **chosen, pieces=pieces, progress=progress)

    answer(
        beside([opened_run], "batches", options),
        request("batches", {"run": opened_run}, options),
        options,
        compute,
        label="batches",
        unit="searches",
        journaled=True,
    )
