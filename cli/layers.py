"""``sharpness layers``."""

from typing import Any

import click

from sharpness.bars import Progress

from .parameters import (
    COMMON,
    Name,
    Whole,
    analysis,
    engine,
    operator,
    overwrite,
    reporting,
    source,
)
from .sources import Pieces, answer, beside, curvature, objective, opened, request


@click.command(context_settings=COMMON)
@click.argument("run", metavar="RUN")
@click.option(
    "--by",
    type=Name("by_layer", "BY"),
    default="tensor",
    help="What a layer is: one tensor of parameters, or all those of a module.",
)
@click.option(
    "--probes",
    type=Whole(3),
    default=32,
    help="Products for the traces of all layers, and for each norm; with 3, no interval is known.",
)
@click.option(
    "--budget",
    type=Whole(4),
    default=500,
    help="Products of each search for an eigenvalue; past it that is marked as not converged.",
)
@operator
@engine
@analysis
@source
@click.option("-o", "--output", metavar="FILE", help="Default: RUN.layers.h5 beside the run.")
@overwrite
@reporting
def command(run: str, **options: Any) -> None:
    """Compute trace, lambda_1 and norm of the Hessian layer by layer, at the end of RUN.

    Of each layer's diagonal block: the trace with its 95 % interval and its share of the whole, the
    largest eigenvalue with its residual, and the Frobenius norm. Layers of up to 200 parameters are
    exact. The last line is the whole. What is done of an interrupted one is kept, layer by layer,
    and the same command continues.

    \b
    Examples:
      sharpness layers sb.h5
      sharpness layers sb.h5 --by module --probes 64
      sharpness layers sb.h5 --operator gauss-newton --split test
      sharpness layers sb.h5 --params "*.weight"
    """
    from sharpness.by_layer import layers

    opened_run = opened(run, options)

    def compute(progress: Progress, pieces: Pieces) -> Any:
        f = objective(opened_run, options)
        A, _ = curvature(f, options)
        chosen = {key: options[key] for key in ("by", "probes", "budget", "seed")}
        return layers(A, **chosen, pieces=pieces, progress=progress)

    answer(
        beside([opened_run], "layers", options),
        request("layers", {"run": opened_run}, options),
        options,
        compute,
        label="layers",
        unit="products",
        journaled=True,
    )
