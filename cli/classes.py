"""``sharpness classes``."""

from typing import Any

import click

from sharpness.bars import Progress

from .parameters import COMMON, Real, Whole, analysis, engine, overwrite, reporting, source
from .sources import Pieces, answer, beside, objective, opened, request


@click.command(context_settings=COMMON)
@click.argument("run", metavar="RUN")
@click.option(
    "-k",
    "--pairs",
    "k",
    type=Whole(1),
    help="How many eigenpairs.  [default: 3 for each class up to 30, at least 5 more than classes]",
)
@click.option(
    "--cross/--no-cross",
    default=None,
    help="Take the means of pairs of classes too.  [default: up to 20 classes, if they fit]",
)
@click.option("--tol", type=Real(above=0), help="Of residuals; 1e-4 in float32, 1e-8 in float64.")
@engine
@analysis
@source
@click.option("-o", "--output", metavar="FILE", help="Default: RUN.classes.h5 beside the run.")
@overwrite
@reporting
def command(run: str, **options: Any) -> None:
    """Compute what of the curvature at the end of RUN belongs to its classes.

    Top eigenvalues of the Gauss-Newton matrix beside those of the class means that make them
    (Papyan 2019), and the share of the gradient in the top eigenspaces (Gur-Ari et al. 2018). The
    loss is a cross-entropy with integer targets. What is done of an interrupted one is kept, and
    the same command continues.

    \b
    Examples:
      sharpness classes sb.h5
      sharpness classes sb.h5 --split test --dtype float64
      sharpness classes sb.h5 -k 50 --no-cross
    """
    from sharpness.by_class import class_structure

    opened_run = opened(run, options)
    chosen = {key: options[key] for key in ("k", "cross", "tol", "engine", "seed")}

    def compute(progress: Progress, pieces: Pieces) -> Any:
        f = objective(opened_run, options)
        return class_structure(f, **chosen, pieces=pieces, progress=progress)

    answer(
        beside([opened_run], "classes", options),
        request("classes", {"run": opened_run}, options),
        options,
        compute,
        label="classes",
        unit="products",
        journaled=True,
    )
