"""``sharpness trace``."""

from typing import Any

import click

from sharpness.bars import Progress

from .parameters import (
    COMMON,
    Name,
    Real,
    Whole,
    analysis,
    deflate,
    engine,
    operator,
    overwrite,
    reporting,
    source,
)
from .sources import Pieces, answer, beside, curvature, objective, opened, request

OF_ESTIMATES = ("method", "probes", "rtol", "budget", "deflate")


@click.command(context_settings=COMMON)
@click.argument("run", metavar="RUN")
@click.option(
    "--quantity",
    type=Name("spectrum", "QUANTITIES"),
    default="trace",
    help="The trace, the squared Frobenius norm, or the diagonal.",
)
@click.option(
    "--method",
    type=Name("spectrum", "METHODS"),
    help="How it is estimated.  [default: hutch++; xdiag of the diagonal]",
)
@click.option("--probes", type=Whole(1), default=32, help="Products to spend, at first.")
@click.option(
    "--rtol",
    type=Real(above=0),
    help="Go on until half of the 95 % interval is within this share of the value.",
)
@click.option("--budget", type=Whole(1), help="Products at most, with --rtol; 100 times --probes.")
@deflate
@operator
@engine
@analysis
@source
@click.option("-o", "--output", metavar="FILE", help="Default: RUN.QUANTITY.h5 beside the run.")
@overwrite
@reporting
def command(run: str, **options: Any) -> None:
    """Estimate the trace of the Hessian at the end of RUN, with its 95 % interval.

    \b
    Examples:
      sharpness trace sb.h5
      sharpness trace sb.h5 --rtol 0.01
      sharpness trace sb.h5 --quantity frobenius --split test
      sharpness trace sb.h5 --operator fisher --draws 4
      sharpness trace sb.h5 --method hutchinson --probes 100 --deflate 10
    """
    from sharpness.lanczos import eigsh
    from sharpness.spectrum import QUANTITIES, require_options

    opened_run = opened(run, options)
    chosen = require_options(options["quantity"], {key: options[key] for key in OF_ESTIMATES})

    def compute(progress: Progress, pieces: Pieces) -> Any:
        f = objective(opened_run, options)
        A, _ = curvature(f, options)
        more = dict(chosen)
        if options["deflate"]:
            more["deflate"] = eigsh(A, options["deflate"], seed=options["seed"], progress=progress)
        return QUANTITIES[options["quantity"]](A, **more, seed=options["seed"], progress=progress)

    answer(
        beside([opened_run], options["quantity"], options),
        request("trace", {"run": opened_run}, options),
        options,
        compute,
        label=options["quantity"],
        unit="products",
    )
