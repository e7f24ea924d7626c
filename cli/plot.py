"""``sharpness plot``."""

import json
from pathlib import Path
from typing import Any

import click

from sharpness.errors import InputError

from .parameters import COMMON, Name, Whole, overwrite, reporting
from .show import note, say
from .sources import require_place


@click.command(context_settings=COMMON)
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--format", "form", type=Name("plots", "FORMATS"), help="[default: that of -o, or png]"
)
@click.option("--dpi", type=Whole(10, 2400), default=200, help="Pixels in an inch, of png.")
@click.option("-o", "--output", metavar="PICTURE", help="[default: beside FILE, sb.png of sb.h5]")
@overwrite
@reporting
def command(files: tuple[str, ...], output: str | None, **options: Any) -> None:
    """Draw the figure of each result FILE: a run, eigenvalues, a line, a measure, a comparison.

    \b
    Examples:
      sharpness plot sb.h5 sb.eigs.h5 sb-lb.line.h5
      sharpness plot runs/keskar/comparison.h5 --format pdf
      sharpness plot sb-lb.line.h5 -o line.svg
    """
    from sharpness.plots import drawn, encoded
    from sharpness.store import load, write

    if output and len(files) > 1:
        raise click.UsageError(f"-o names one picture, got {len(files)} files: leave it out")
    form = _format(options["form"], output)
    made = []
    for name in files:
        result = load(name)
        path = Path(output) if output else _beside(Path(name), form)
        picture = encoded(drawn(result), form=form, dpi=options["dpi"])
        made.append((name, type(result).__name__, path, picture))
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
