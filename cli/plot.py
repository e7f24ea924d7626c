"""``sharpness plot``."""

import json
from pathlib import Path
from typing import Any

import click

from sharpness.errors import InputError

from .parameters import COMMON, Name, Whole, overwrite, reporting
from .show import note, say
from .sources import require_other, require_place


@click.command(context_settings=COMMON)
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--format", "form", type=Name("plots", "FORMATS"), help="[default: that of -o, or png]"
)
@click.option(
    "--kind", type=Name("plots", "KINDS"), help="How a plane is drawn.  [default: filled contours]"
)
@click.option("--value", metavar="NAME", help="Of a plane, such as test_loss.  [default: all]")
@click.option(
    "--unit",
    type=Name("plots", "UNITS"),
    help="Of the axes of a plane: steps along the axes, distances, or those relative to the norm "
    "of theta.  [default: step]",
)
@click.option("--dpi", type=Whole(10, 2400), default=200, help="Pixels in an inch, of png.")
@click.option("-o", "--output", metavar="PICTURE", help="[default: beside FILE, sb.png of sb.h5]")
@overwrite
@reporting
def command(files: tuple[str, ...], output: str | None, **options: Any) -> None:
    """Draw the figure of each result FILE: a run, eigenvalues, a line, a plane, a comparison.

    Several planes with one output are drawn in one picture, by the same levels, colors and axes.

    \b
    Examples:
      sharpness plot sb.h5 sb.eigs.h5 sb-lb.line.h5
      sharpness plot sb.plane.h5 --kind surface --value test_loss
      sharpness plot sb.plane.h5 lb.plane.h5 -o both.pdf
      sharpness plot runs/keskar/comparison.h5 --format pdf
      sharpness plot sb-lb.line.h5 -o line.svg
    """
    from sharpness.plots import encoded
    from sharpness.results import Plane
    from sharpness.store import load, write

    form = _format(options["form"], output)
    chosen = {key: options[key] for key in ("kind", "value", "unit") if options[key] is not None}
    results = {name: load(name) for name in files}
    others = [name for name, result in results.items() if not isinstance(result, Plane)]
    if chosen and others:
        option = next(iter(chosen))
        raise InputError(
            f"--{option} is for planes, got a {type(results[others[0]]).__name__} in {others[0]}: "
            "leave it out"
        )
    if output and len(results) > 1:
        if others:
            raise click.UsageError(f"-o names one picture, got {len(files)} files: leave it out")
        groups = [(" ".join(results), list(results))]
    else:
        groups = [(name, [name]) for name in results]
    made = []
    for name, members in groups:
        path = Path(output) if output else _beside(Path(name), form)
        require_other(path, map(Path, results))
        figure = _figure({member: results[member] for member in members}, chosen)
        picture = encoded(figure, form=form, dpi=options["dpi"])
        made.append((name, type(results[members[0]]).__name__, path, picture))
    done = [_is_there(path, picture, options["overwrite"]) for _, _, path, picture in made]
    for (_, _, path, picture), there in zip(made, done, strict=True):
        if not there:
            write(path, picture, overwrite=options["overwrite"])
        note(f"already done: {path}" if there else f"wrote {path}")
    if options["as_json"]:
        told = [
            {"file": name, "type": kind, "picture": str(path), "written": not there}
            for (name, kind, path, _), there in zip(made, done, strict=True)
        ]
        say(json.dumps(told))


def _figure(results: dict[str, Any], chosen: dict[str, Any]) -> Any:
    """Return the figure of a result, or of planes in one."""
    from sharpness.plots import drawn, planes_figure

    if len(results) == 1 and not chosen:
        return drawn(next(iter(results.values())))
    return planes_figure(
        {Path(name).name.removesuffix(".h5"): result for name, result in results.items()}, **chosen
    )


def _format(form: str | None, output: str | None) -> str:
    """Return the format that was asked for, by name or by the end of the output."""
    from sharpness.plots import FORMATS

    if output is None:
        return form or "png"
    ending = Path(output).suffix.removeprefix(".").lower()
    if ending not in FORMATS or form not in (None, ending):
        wanted = form or " or ".join(FORMATS)
        raise InputError(f"-o needs a name that ends in {wanted}, got {output}: rename it")
    return ending


def _beside(file: Path, form: str) -> Path:
    return file.with_name(f"{file.name.removesuffix('.h5')}.{form}")


def _is_there(path: Path, picture: bytes, overwrite: bool) -> bool:
    """Say whether the picture is there already.

    Raises:
        InputError: If something else is, unless that is to be overwritten.
    """
    require_place(path)
    if not path.exists():
        return False
    if path.read_bytes() == picture:
        return True
    if overwrite:
        return False
    raise InputError(
        f"{path} exists and is another picture: choose another output, or overwrite it"
    )
