"""``sharpness run``: the recipes."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from sharpness.experiments import RECIPES
from sharpness.experiments.keskar import FIGURES, QUICK, Design, is_done
from sharpness.experiments.recipe import cores

from .parameters import (
    COMMON,
    Real,
    Whole,
    data,
    loss,
    model,
    model_options,
    overwrite,
    reporting,
)
from .progress import bar
from .show import report, say


@click.group(context_settings=COMMON)
def command() -> None:
    """Run a recipe: a whole experiment with its files, figures and verdict.

    \b
    Examples:
      sharpness run keskar
      sharpness run keskar --quick
      sharpness run keskar --seeds 20 -o runs/keskar-20
    """


@command.command(context_settings=COMMON)
@click.option("--seeds", type=Whole(1), help="Repetitions, each with its own split.  [default: 10]")
@click.option("--quick", is_flag=True, help="2 seeds to a training loss of 0.1: a look in seconds.")
@model
@model_options
@data
@loss
@click.option("--train-examples", type=Whole(1), help="Size of the training part.")
@click.option("--small-batch", type=Whole(1), help="The small batch.  [default: 8]")
@click.option("--large-batch", type=Whole(1), help="The large batch; all examples by default.")
@click.option("--learning-rate", type=Real(above=0), help="Of Adam.  [default: 0.001]")
@click.option("--label-noise", type=Real(least=0), help="Of the noisy arm.  [default: 0.2]")
@click.option("--stop-loss", type=Real(above=0), help="Where all trainings end.  [default: 0.01]")
@click.option("--updates", type=Whole(1), help="Cap of a training.  [default: 20000]")
@click.option("--epsilon", type=Real(above=0), help="Of Metric 2.1.  [default: 0.001]")
@click.option("--workers", type=Whole(1), help="Processes.  [default: one for each core]")
@click.option(
    "-o", "--output", metavar="DIR", help="[default: runs/keskar, with --quick runs/keskar-quick]"
)
@overwrite
@reporting
def keskar(quick: bool, workers: int | None, output: str | None, **options: Any) -> None:
    """Small batch against large batch at equal training loss, clean and with wrong labels.

    Trains the MLP 64-128-128-128-10 on 600 handwritten digits by Adam: batch size 8, the full
    600, and 600 at the rate scaled by the square root of the batch sizes; for each run lambda_1
    of the Hessian, Metric 2.1 and the test accuracy, compared in pairs over seeds. All files,
    figures and the summary lie in DIR. The same command again continues from what is there.
    """
    recipe = RECIPES["keskar"]
    given = {key: options[key] for key in asdict(Design()) if options.get(key) is not None}
    design = replace(Design(), **{**(QUICK if quick else {}), **given})
    folder = Path(output or ("runs/keskar-quick" if quick else "runs/keskar"))
    done = is_done(folder, design, overwrite=options["overwrite"])
    with bar("keskar", "trainings", quiet=options["quiet"]) as progress:
        found = recipe.run(
            folder,
            design,
            workers=workers or cores(),
            overwrite=options["overwrite"],
            progress=progress,
        )
    if options["as_json"]:
        report(found, as_json=True)
    else:
        say(recipe.summary(found))
    files = ", ".join(("comparison.h5", "summary.txt", *FIGURES))
    click.echo(f"{'already done' if done else 'wrote'}: {folder} ({files})", err=True)
