"""``sharpness eigs``."""

from typing import Any

import click

from sharpness.bars import Progress

from .account import Account
from .parameters import (
    COMMON,
    Name,
    Real,
    Whole,
    analysis,
    engine,
    operator,
    overwrite,
    reporting,
    source,
)
from .sources import Pieces, Source, answer, beside, curvature, objective, opened, request

LARGE = 10**9  # parameters times examples, from which on products are kept: some seconds of them


@click.command(context_settings=COMMON)
@click.argument("run", metavar="RUN")
@click.option("-k", "--pairs", "k", type=Whole(1), default=5, help="How many eigenpairs.")
@click.option(
    "--which",
    type=Name("lanczos", "WHICH"),
    default="LA",
    help="Largest (LA), smallest (SA) or largest in magnitude (LM).",
)
@operator
@engine
@click.option("--tol", type=Real(above=0), help="Of residuals; 1e-4 in float32, 1e-8 in float64.")
@click.option("--budget", type=Whole(1), help="Products to spend; 100 per basis vector by default.")
@analysis
@source
@click.option("-o", "--output", metavar="FILE", help="Default: RUN.eigs.h5 beside the run.")
@overwrite
@reporting
def command(run: str, **options: Any) -> None:
    """Compute the top eigenvalues of the Hessian at the end of RUN, with residuals.

    RUN is a run's file, or a checkpoint together with --model, --data and --loss. A value counts
    as converged when its residual is within the tolerance and a search of the complement found no
    better one; what is not converged is marked.

    \b
    Examples:
      sharpness eigs sb.h5 -k 10
      sharpness eigs sb.h5 --split test --dtype float64 --which SA
      sharpness eigs sb.h5 --params '0,*.bias' --weight-decay 5e-4
      sharpness eigs sb.pt --model nets:build --data nets:digits --loss cross_entropy
    """
    from sharpness.lanczos import eigsh

    opened_run = opened(run, options)
    chosen = {key: options[key] for key in ("k", "which", "tol", "budget", "seed")}

    account = Account(options["k"])

    def compute(progress: Progress, pieces: Pieces) -> Any:
        f = objective(opened_run, options)
        A, matrix = curvature(f, options)
        with account.of(matrix):
            return eigsh(
                A,
                **chosen,
                memory=f.memory // 2,
                pieces=pieces,
                progress=account.told(progress),
            )

    answer(
        beside([opened_run], "eigs", options),
        request("eigs", {"run": opened_run}, options),
        options,
        compute,
        label="eigs",
        unit="products",
        account=account.close,
        journaled=len(opened_run.run.end.theta) * _examples(opened_run, options) >= LARGE,
    )


def _examples(source: Source, options: dict[str, Any]) -> int:
    """Return how many examples a product takes."""
    known = source.run.spec["data"].get(f"{options['split']}_examples", 0)  # else refused soon
    return options["examples"] or known
