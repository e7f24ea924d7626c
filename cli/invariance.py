"""``sharpness invariance``."""

from typing import Any

import click

from sharpness.bars import Progress

from .parameters import COMMON, Name, Several, analysis, overwrite, reporting, source
from .sources import Pieces, answer, beside, objective, opened, request


@click.command(context_settings=COMMON)
@click.argument("run", metavar="RUN")
@click.option(
    "--only",
    type=Several(Name("measures", "TABLE")),
    metavar="NAME,...",
    help="These measures alone.  [default: all]",
)
@analysis
@source
@click.option("-o", "--output", metavar="FILE", help="Default: RUN.invariance.h5 beside the run.")
@overwrite
@reporting
def command(run: str, **options: Any) -> None:
    """Tell which measures change with the weights of RUN where its function does not.

    Layers, neurons and filters before BatchNorm are rescaled by powers of two, neurons permuted,
    heads of attention mapped, logits shifted, wherever the network has such a symmetry: that the
    function stayed is verified. Float64 tells rounding from change best.

    \b
    Examples:
      sharpness invariance sb.h5 --dtype float64
      sharpness invariance sb.h5 --only lambda-1,adaptive-lambda-1,epsilon-sharpness
    """
    from sharpness.invariances import invariance

    opened_run = opened(run, options)

    def compute(progress: Progress, pieces: Pieces) -> Any:
        f = objective(opened_run, options)
        more = {"only": options["only"], "seed": options["seed"]}
        return invariance(f, opened_run.run, **more, pieces=pieces, progress=progress)

    answer(
        beside([opened_run], "invariance", options),
        request("invariance", {"run": opened_run}, options),
        options,
        compute,
        label="invariance",
        unit="changes",
        journaled=True,
    )
