"""``sharpness density``."""

import json
from pathlib import Path
from typing import Any

import click

from sharpness.bars import Progress

from .parameters import (
    COMMON,
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


@click.command(context_settings=COMMON)
@click.argument("run", metavar="RUN")
@click.option("--steps", type=Whole(1), default=80, help="Lanczos steps of each probe.")
@click.option(
    "--probes", type=Whole(1), default=8, help="Random directions; with one, no interval is known."
)
@deflate
@operator
@engine
@analysis
@source
@click.option("-o", "--output", metavar="FILE", help="Default: RUN.density.h5 beside the run.")
@overwrite
@reporting
def command(run: str, **options: Any) -> None:
    """Compute the spectral density of the Hessian at the end of RUN, with a band over the probes.

    By stochastic Lanczos quadrature: nodes and weights are stored, so a figure of another width,
    moments and shares of the spectrum cost no further product. What is done of an interrupted
    one is kept, and the same command continues; more probes, with --overwrite, come to those of
    the file that is there.

    \b
    Examples:
      sharpness density sb.h5
      sharpness density sb.h5 --deflate 10 --probes 16
      sharpness density sb.h5 --operator gauss-newton --dtype float64
    """
    from sharpness.lanczos import eigsh
    from sharpness.spectrum import density

    opened_run = opened(run, options)
    path = beside([opened_run], "density", options)
    asked = request("density", {"run": opened_run}, options)

    def compute(progress: Progress, pieces: Pieces) -> Any:
        f = objective(opened_run, options)
        A, _ = curvature(f, options)
        known = None
        if options["deflate"]:
            known = eigsh(
                A, options["deflate"], seed=options["seed"], pieces=pieces, progress=progress
            )
        for name, probe in _probes_of(path, asked, A).items():
            if name not in pieces:
                pieces[name] = probe
        chosen = {key: options[key] for key in ("steps", "probes", "seed")}
        return density(A, **chosen, deflate=known, pieces=pieces, progress=progress)

    answer(
        path,
        asked,
        options,
        compute,
        label="density",
        unit="products",
        journaled=True,
    )


def _probes_of(path: Path, asked: dict[str, Any], A: Any) -> dict[str, Any]:
    """Return the probes in a file that answers the same request but for their number.

    None, where another version, number of threads or micro-batch computed them: what one file
    holds is of one way to compute it.
    """
    import torch

    from sharpness.errors import ComputationError, InputError
    from sharpness.results import Density
    from sharpness.store import load_as, request_of, versions, versions_of

    try:
        there = request_of(path)
        alike = {"options": {"probes": None}, **(there or {})}
        alike["options"] = {**alike["options"], "probes": asked["options"]["probes"]}
        if alike != json.loads(json.dumps(asked)):
            return {}
        found = load_as(path, Density)
        if found.spec["operator"] != A.spec or versions_of(path) != versions():
            return {}
    except (InputError, ComputationError):  # none, or damaged: it is overwritten
        return {}
    kept = zip(found.nodes, found.weights, strict=True)
    return {"checks": torch.tensor(found.check_products)} | {
        f"probe {i}": torch.stack([nodes[~nodes.isnan()], weights[~nodes.isnan()]])
        for i, (nodes, weights) in enumerate(kept)
    }
