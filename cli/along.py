"""``sharpness along``."""

from typing import Any

import click

from .parameters import COMMON, Real, Whole, evaluation, overwrite, reporting, source
from .sources import answer, beside, objective, opened, request


@click.command(context_settings=COMMON)
@click.argument("run", metavar="RUN")
@click.option("--epsilon", type=Real(above=0), default=1e-3, help="Of the box of Metric 2.1.")
@click.option("--sign-starts", type=Whole(1), default=5, help="Of its sign iteration.")
@evaluation
@source
@click.option("-o", "--output", metavar="FILE", help="Default: RUN.along.h5 beside the run.")
@overwrite
@reporting
def command(run: str, **options: Any) -> None:
    """Compute lambda_1 and Metric 2.1 along the training of RUN: at its checkpoints.

    \b
    Examples:
      sharpness train --checkpoint-losses 1 --checkpoint-losses 0.1 -o sb.h5
      sharpness along sb.h5
    """
    from sharpness.trajectory import along_training

    opened_run = opened(run, options)
    chosen = {key: options[key] for key in ("epsilon", "sign_starts", "seed")}
    answer(
        beside([opened_run], "along", options),
        request("along", {"run": opened_run}, options),
        options,
        lambda progress, pieces: along_training(
            objective(opened_run, {**options, "split": "train"}),
            opened_run.run,
            **chosen,
            progress=progress,
        ),
        label="along",
        unit="points",
    )
