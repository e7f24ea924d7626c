"""``sharpness run``: the recipes."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from sharpness.experiments import RECIPES
from sharpness.experiments.design import QUICK, Design
from sharpness.experiments.keskar import FIGURES, is_done
from sharpness.experiments.recipe import cores

from sharpness.bars import progress as bar

from .parameters import (
    COMMON,
    Name,
    Real,
    Several,
    Whole,
    data,
    loss,
    model,
    model_options,
    overwrite,
    reporting,
)
from .show import note, report, say


@click.group(context_settings=COMMON)
def command() -> None:
    """Run a recipe: a whole experiment with its files, figures and verdict.

    \b
    Examples:
      sharpness run keskar
      sharpness run keskar --quick
      sharpness run keskar --seeds 20 -o runs/keskar-20
      sharpness run keskar --design batch-rate
      sharpness run keskar --design batch-rate --batch-sizes 1,8,60,600 --scalings fixed,sqrt,linear
    """


@command.command(context_settings=COMMON)
@click.option(
    "--design",
    type=Name("experiments.design", "KINDS"),
    default="pair",
    help="A pair of batch sizes, or several at several rates or scalings.",
)
@click.option("--seeds", type=Whole(1), help="Each with its own split.  [default: 10; 6 of many]")
@click.option("--quick", is_flag=True, help="2 seeds to a training loss of 0.1: a look in seconds.")
@model
@model_options
@data
@loss
@click.option("--train-examples", type=Whole(1), help="Size of the training part.")
@click.option(
    "--batch-sizes", type=Several(Whole(1)), help="Ascending.  [default: 8,600; 8,60,600]"
)
@click.option(
    "--rates",
    type=Several(Real(above=0)),
    help="Of Adam, ascending.  [default: 1e-3; 3e-4,1e-3,2.7e-3,8.7e-3]",
)
@click.option(
    "--scalings",
    type=Several(Name("experiments.design", "SCALINGS")),
    metavar="[fixed|linear|sqrt],...",
    help="Of one rate with batch size over 8, or over the smallest size where 8 is not one; in "
    "place of several rates.",
)
@click.option("--noise", type=Real(least=0), default=0.2, help="Share of wrong labels; 0: none.")
@click.option("--level", type=Real(above=0), help="Training loss at the end.  [default: 0.01]")
@click.option("--updates", type=Whole(1), help="Cap of a training.  [default: 20000; 40000]")
@click.option("--epsilon", type=Real(above=0), default=1e-3, help="Of Metric 2.1.")
@click.option("--workers", type=Whole(1), help="Processes.  [default: one for each core]")
@click.option(
    "-o",
    "--output",
    metavar="DIR",
    help="[default: runs/keskar; the design, -scalings and -quick added]",
)
@overwrite
@reporting
def keskar(quick: bool, workers: int | None, output: str | None, **options: Any) -> None:
    """Small batch against large batch at equal training loss, clean and with wrong labels.

    Trains the MLP 64-128-128-128-10 on 600 handwritten digits by Adam. The design pair: batch
    size 8, the full 600, and 600 at the rate scaled by the square root of the batch sizes. The
    design batch-rate: three batch sizes at four rates, and each batch size at its own best rate;
    with --scalings, at one rate as it is (fixed) and multiplied by the ratio of the batch sizes
    (linear) or its square root (sqrt), where runs that diverge or get stuck are counted and left
    out. Of each run lambda_1 of the Hessian, Metric 2.1 and the test accuracy are compared in pairs
    over seeds. All files, figures and the summary lie in DIR. The same command again continues
    from what is there.
    """
    recipe = RECIPES["keskar"]
    given = {key: options[key] for key in asdict(Design()) if options.get(key) is not None}
    design = replace(Design(), **{**(QUICK if quick else {}), **given})
    name = "keskar" if design.design == "pair" else f"keskar-{design.design}"
    name += "-scalings" if design.scalings else ""
    folder = Path(output or f"runs/{name}{'-quick' if quick else ''}")
    done = is_done(folder, design, overwrite=options["overwrite"])
    with bar(name, "trainings", quiet=options["quiet"]) as progress:
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
    files = ", ".join(("comparison.h5", "summary.txt", *FIGURES[design.design]))
    note(f"{'already done' if done else 'wrote'}: {folder} ({files})")
