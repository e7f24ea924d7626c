"""``sharpness measure``: a command for each of the library's measures, made from its signature."""

import inspect
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import click

from sharpness.bars import Progress
from sharpness.measures import MEASURES
from sharpness.results import Result

from .parameters import (
    COMMON,
    Kind,
    Real,
    Whole,
    analysis,
    overwrite,
    reporting,
    source,
)
from .show import say
from .sources import Pieces, Source, answer, beside, objective, opened, request

SHARED = ("point", "objective", "seed", "pieces", "progress")  # not options of one measure
KINDS: dict[Any, Kind] = {float: Real(), int: Whole()}


@click.group(context_settings=COMMON)
def command() -> None:
    """Compute a measure of sharpness at the end of each RUN.

    \b
    Examples:
      sharpness measure epsilon-sharpness sb.h5 lb.h5
      sharpness measure epsilon-sharpness sb.h5 --epsilon 5e-4 -o sb.5e-4.h5
    """


def _command(name: str) -> click.Command:
    measure = MEASURES[name]
    doc = inspect.getdoc(measure) or ""
    parameters = [p for p in inspect.signature(measure).parameters.values() if p.name not in SHARED]

    @click.argument("runs", nargs=-1, required=True, metavar="RUN...")
    @analysis
    @source
    @click.option("-o", "--output", metavar="FILE", help=f"Default: RUN.{name}.h5 beside the run.")
    @overwrite
    @reporting
    def computed(runs: tuple[str, ...], **options: Any) -> None:
        if options["output"] and len(runs) > 1:
            raise click.UsageError(f"-o names one file, got {len(runs)} runs: leave it out")
        chosen = {p.name: options[p.name] for p in parameters}
        for run in runs:
            opened_run = opened(run, options)
            if len(runs) > 1 and not options["as_json"]:
                say(f"{click.format_filename(opened_run.path)}:")
            compute = partial(_compute, measure, opened_run, chosen, options)
            answer(
                beside([opened_run], name, options),
                request(f"measure {name}", {"run": opened_run}, options),
                options,
                compute,
                label=f"{name} {opened_run.path.stem}",
                unit="starts",
            )

    for p in reversed(parameters):
        option = click.option(
            f"--{p.name.replace('_', '-')}",
            type=KINDS[type(p.default)],
            default=p.default,
            help=_meaning(doc, p.name),
        )
        computed = option(computed)
    summary = doc.split("\n\n")[0].replace("Return", "Compute", 1)
    more = "RUN is a run's file, or a checkpoint together with --model, --data and --loss."
    return click.command(
        name,
        help=f"{summary}\n\n{more}",
        short_help=" ".join(summary.split()).rstrip("."),
        context_settings=COMMON,
    )(computed)


def _compute(
    measure: Callable[..., Result],
    source: Source,
    chosen: dict[str, Any],
    options: dict[str, Any],
    progress: Progress,
    pieces: Pieces,
) -> Result:
    f, point = objective(source, options), source.run.end
    return measure(f, point, **chosen, seed=options["seed"], progress=progress)


def _meaning(doc: str, name: str) -> str:
    """Return what ``Args:`` says of a parameter."""
    found = re.search(rf"^    {name}: (.*?)(?=^    \w+:|^$)", doc, re.MULTILINE | re.DOTALL)
    return " ".join(found[1].split()) if found else ""


for _name in ("epsilon-sharpness", "subspace-sharpness"):  # the others have other records
    command.add_command(_command(_name))
