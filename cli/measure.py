"""``sharpness measure``: a command for each of the library's measures, made from its signature."""

import inspect
import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click

from sharpness.bars import Progress, progress as bar
from sharpness.errors import ComputationError, InputError, OutOfMemoryError
from sharpness.measures import COSTS, MEASURES, TABLE, Row, chosen, measured, row
from sharpness.results import Result
from sharpness.text import table, wrapped

from .parameters import (
    COMMON,
    Kind,
    Name,
    Real,
    Several,
    Whole,
    analysis,
    overwrite,
    reporting,
    source,
)
from .show import json_value, note, say
from .sources import Pieces, Source, answer, beside, fitting, gemm, objective, opened, request

SHARED = ("point", "run", "objective", "seed", "pieces", "progress")  # not options of one measure
KINDS: dict[Any, Kind] = {float: Real(), int: Whole(), str: click.STRING}


@click.group(context_settings=COMMON)
def command() -> None:
    """Compute a measure of sharpness at the end of each RUN.

    \b
    Examples:
      sharpness measure epsilon-sharpness sb.h5 lb.h5
      sharpness measure epsilon-sharpness sb.h5 --epsilon 5e-4 -o sb.5e-4.h5
      sharpness measure all sb.h5 lb.h5
    """


def _command(name: str) -> click.Command:
    measure = MEASURES[name]
    doc = inspect.getdoc(measure) or ""

    @click.argument("runs", nargs=-1, required=True, metavar="RUN...")
    @analysis
    @source
    @click.option("-o", "--output", metavar="FILE", help=f"Default: RUN.{name}.h5 beside the run.")
    @overwrite
    @reporting
    def computed(runs: tuple[str, ...], **options: Any) -> None:
        if options["output"] and len(runs) > 1:
            raise click.UsageError(f"-o names one file, got {len(runs)} runs: leave it out")
        for path in runs:
            opened_run = opened(path, options)
            if len(runs) > 1 and not options["as_json"]:
                say(f"{click.format_filename(opened_run.path)}:")
            answer(
                beside([opened_run], name, options),
                _request(name, opened_run, options),
                options,
                _computation(name, opened_run, options),
                label=f"{name} {opened_run.path.stem}",
                unit="steps",
            )

    for option in reversed(_options(measure, doc)):
        computed = option(computed)
    summary = doc.split("\n\n")[0].replace("Return", "Compute", 1)
    more = "RUN is a run's file, or a checkpoint together with --model, --data and --loss."
    return click.command(
        name,
        help=f"{summary}\n\n{more}",
        short_help=" ".join(summary.split()).rstrip("."),
        context_settings=COMMON,
    )(computed)


def _options(measure: Callable[..., Any], doc: str) -> list[Callable[[Any], Any]]:
    """Return the options of a command for the arguments of a measure."""
    hints = get_type_hints(measure)
    made = []
    for p in inspect.signature(measure).parameters.values():
        if p.name in SHARED:
            continue
        flag = f"--{p.name.replace('_', '-')}"
        meaning = _meaning(doc, p.name)
        if hints[p.name] is bool:
            # Of a switch that is on by default, the other side is what one asks for.
            both = f"{flag}/--no-{flag[2:]}" if p.default else flag
            made.append(click.option(both, is_flag=True, default=p.default, help=meaning))
            continue
        kind, default = _kind(hints[p.name]), p.default
        if isinstance(default, Sequence) and not isinstance(default, str):
            default = ",".join(f"{x:g}" for x in default)
        made.append(click.option(flag, type=kind, default=default, help=meaning))
    return made


def _kind(hint: Any) -> Kind:
    """Return how the value of an argument of this type is given on the command line."""
    if get_origin(hint) is Literal:
        return click.Choice(get_args(hint))
    if get_origin(hint) in (Sequence, list, tuple):
        return Several(_kind(get_args(hint)[0]))
    plain = [x for x in get_args(hint) if x is not NoneType]
    return _kind(plain[0]) if plain else KINDS[hint]


def _taken(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that are arguments of the measure."""
    names = [p for p in inspect.signature(MEASURES[name]).parameters if p not in SHARED]
    return {key: options[key] for key in names}


def _request(name: str, source: Source, options: dict[str, Any]) -> dict[str, Any]:
    return request(f"measure {name}", {"run": source}, options)


def _computation(
    name: str, source: Source, options: dict[str, Any]
) -> Callable[[Progress, Pieces], Result]:
    def compute(progress: Progress, pieces: Pieces) -> Result:
        f, run = objective(source, options), source.run
        more = {"run": run, "seed": options["seed"], "progress": progress}
        return measured(name, f, run.end, **more, **_taken(name, options))

    return compute


def _meaning(doc: str, name: str) -> str:
    """Return what ``Args:`` says of a parameter."""
    found = re.search(rf"^    {name}: (.*?)(?=^    \w+:|^$)", doc, re.MULTILINE | re.DOTALL)
    return " ".join(found[1].split()) if found else ""


@click.command("all", context_settings=COMMON)
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--only",
    type=Several(Name("measures", "TABLE")),
    metavar="NAME,...",
    help="These measures alone.  [default: all]",
)
@analysis
@source
@overwrite
@reporting
def every(runs: tuple[str, ...], only: list[str] | None, **options: Any) -> None:
    """Compute every measure of sharpness at the end of each RUN, and print them in one table.

    Each is in a file of its own, as the command of that measure writes it, and what is there is
    not computed again.

    \b
    Examples:
      sharpness measure all sb.h5 lb.h5
      sharpness measure all sb.h5 --only lambda-1,sam,batch-sharpness
    """
    names = chosen(only)
    sources = {path: opened(path, options) for path in runs}
    if len(sources) < len(runs):
        raise click.UsageError("each run is named once: leave one out")
    rows: dict[str, list[Row]] = {path: [] for path in sources}
    asked = [(path, name) for path in sources for name in names]
    with bar("measures", "measures", quiet=options["quiet"]) as progress:
        for done, (path, name) in enumerate(asked, start=1):
            rows[path].append(_line(name, sources[path], options))
            progress(done, len(asked), name)
    if options["as_json"]:
        told = {path: _json(sources[path], rows[path]) for path in sources}
        say(json.dumps(told, allow_nan=False))
        return
    alone = len(sources) == 1
    lines = _one(sources[runs[0]], rows[runs[0]]) if alone else _many(rows, sources)
    for line in lines:
        say(line)


def _line(name: str, source: Source, shared: dict[str, Any]) -> Row:
    """Return a line of the table from the file of that measure, which is made if need be."""
    from sharpness.store import load, reuse, save

    entry = TABLE[name]
    usual = _made(entry.measure).make_context(entry.measure, [str(source.path)]).params
    options = {**usual, **{key: x for key, x in shared.items() if key in usual}, **entry.options}
    del options["runs"]
    path = beside([source], name, options)
    asked = _request(entry.measure, source, options)
    if reuse(path, asked, overwrite=options["overwrite"]):
        return row(name, load(path))
    compute = _computation(entry.measure, source, options)
    try:
        with gemm(options), redirect_stdout(sys.stderr):
            found = fitting(lambda: compute(_silent, {}), options, {})
    except OutOfMemoryError:
        raise
    except (InputError, ComputationError) as error:  # it is no measure of such a run
        return row(name, str(error))
    save(path, found, request=asked, overwrite=options["overwrite"])
    note(f"wrote {path}")
    return row(name, found)


def _silent(done: int, total: int | None, state: str) -> None:
    """Tell nothing: the bar is that of all measures."""


def _about(source: Source) -> list[str]:
    """Return what the numbers of a run are to be read with."""
    record, history = source.run.spec["train"], source.run.history
    loss = f"{float(history['train_loss'][-1]):.4g}" if "train_loss" in history else "unknown"
    told = [record.get("batch_size"), record.get("learning_rate"), record.get("optimizer")]
    return [loss, *("unknown" if x is None else f"{x}" for x in told)]


ABOUT = ("training loss", "batch size", "learning rate", "optimizer")


def _one(source: Source, rows: list[Row]) -> list[str]:
    """Return the table of one run, with what certifies each number and what it cost."""
    about = ", ".join(f"{name} {x}" for name, x in zip(ABOUT, _about(source), strict=True))
    cells = [[r.name, r.told, *(f"{getattr(r, key):g}" for key in COSTS)] for r in rows]
    lines = [about, *table(["measure", "value", *COSTS], cells)]
    for r in rows:
        if r.words:
            lines += wrapped(f"{r.name}: {r.words}", "  ")
    return lines


def _many(rows: dict[str, list[Row]], sources: dict[str, Source]) -> list[str]:
    """Return the table of several runs, a column each."""
    about = zip(ABOUT, *(_about(source) for source in sources.values()), strict=True)
    names = [Path(path).stem for path in sources]
    lines = [[r[0].name, *(x.told for x in r)] for r in zip(*rows.values(), strict=True)]
    spent = [
        [name, *(f"{sum(getattr(r, name) for r in some):g}" for some in rows.values())]
        for name in COSTS
    ]
    found = table(["measure", *names], [*map(list, about), *lines, *spent])
    for path, some in rows.items():
        for r in some:
            if math.isnan(r.value):
                found += wrapped(f"{Path(path).stem}, {r.name}: {r.words}", "  ")
    return found


def _json(source: Source, rows: list[Row]) -> dict[str, Any]:
    about = {name.replace(" ", "_"): x for name, x in zip(ABOUT, _about(source), strict=True)}
    return {**about, "measures": {r.name: json_value(asdict(r)) for r in rows}}


@cache
def _made(name: str) -> click.Command:
    return _command(name)


for _name in MEASURES:
    command.add_command(_made(_name))
command.add_command(every)
