"""``sharpness line``."""

from typing import Any

import click

from sharpness.errors import InputError

from .parameters import (
    COMMON,
    NORMALIZES,
    POLICIES,
    Grid,
    Name,
    Whole,
    numerics,
    overwrite,
    reporting,
    rescaling,
    source,
)
from .sources import Pieces, Source, answer, beside, objective, opened, request

# Options of one solution and of two, with their defaults; those of the other are refused.
OF_ONE = {
    "directions": "random",
    "count": 1,
    "normalize": None,
    "ignore": None,
    "orthogonal": False,
    "quadratic": True,
}
OF_TWO = {"path": "linear"}
ALPHAS = {1: [-1.0, 1.0, 51], 2: [-1.0, 2.0, 25]}  # Li et al. (2018) and Keskar et al. (2017)


@click.command(context_settings=COMMON)
@click.argument("start", metavar="START")
@click.argument("end", metavar="[END]", required=False)
@click.option(
    "--alphas",
    type=Grid(),
    help="Where, as START:END:POINTS.  [default: -1:2:25 of two, -1:1:51 of one]",
)
@click.option(
    "--path", type=Name("landscape", "PATHS"), help="From START to END.  [default: linear]"
)
@click.option(
    "--directions",
    type=Name("directions", "DIRECTIONS"),
    help="Around START, without END.  [default: random]",
)
@click.option("-n", "--count", type=Whole(1, 1000), help="How many directions.  [default: 1]")
@rescaling
@click.option(
    "--quadratic/--no-quadratic",
    default=True,
    help="Slope and curvature at START along each direction, where there are second derivatives.",
)
@numerics
@click.option(
    "--bn",
    type=POLICIES,
    help=f"{NORMALIZES} [default: frozen where the ends agree in them, reestimate otherwise]",
)
@source
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="Default: START-END.line.h5, or START.DIRECTIONS.line.h5, beside START.",
)
@overwrite
@reporting
def command(start: str, end: str | None, **options: Any) -> None:
    """Compute loss and accuracy between START and END, or around START, on train and test.

    Between two, points are (1 - alpha) START + alpha END; around one, they are START + alpha d,
    along directions d. Each is a run's file, or a checkpoint together with --model, --data and
    --loss.

    \b
    Examples:
      sharpness line sb.h5 lb.h5
      sharpness line sb.h5 lb.h5 --path curvilinear -o arc.h5
      sharpness line sb.h5 -n 10
      sharpness line sb.h5 --directions eigenvectors -n 3 --alphas=-0.5:0.5:41
      sharpness line sb.pt lb.pt --model nets:build --data nets:digits --loss cross_entropy
    """
    ends = 1 if end is None else 2
    own, foreign = (OF_ONE, OF_TWO) if end is None else (OF_TWO, OF_ONE)
    options["alphas"] = options["alphas"] or ALPHAS[ends]
    for key, default in foreign.items():
        if options.pop(key) not in (None, default if isinstance(default, bool) else None):
            raise InputError(
                f"--{key} is for {'one solution' if ends == 2 else 'two solutions'}, got {ends}: "
                f"{'leave END out' if ends == 2 else 'give END'}"
            )
    for key, default in own.items():
        options[key] = default if options[key] is None else options[key]
    if end is None:
        options["ignore"] = sorted(set(options["ignore"] or [])) or None
        options["bn"] = None if options["bn"] == "frozen" else options["bn"]  # the default here
        _around(opened(start, options), options)
    else:
        _between(opened(start, options), opened(end, options), options)


def _between(a: Source, b: Source, options: dict[str, Any]) -> None:
    from sharpness.landscape import line

    require_pair(a, b, options)
    asked = {key: x for key, x in options.items() if (key, x) != ("path", OF_TWO["path"])}
    answer(
        beside([a, b], "line", options),
        request("line", {"start": a, "end": b}, asked),
        options,
        lambda progress, pieces: line(
            _parts(a, options),
            a.run.end,
            b.run.end,
            path=options["path"],
            batch_norm=options["bn"],
            alphas=spaced(*options["alphas"]),
            progress=progress,
        ),
        label="line",
        unit="points",
    )


def _around(a: Source, options: dict[str, Any]) -> None:
    from sharpness.bars import Progress
    from sharpness.cuts import cut
    from sharpness.directions import make
    from sharpness.results import Cut

    def compute(progress: Progress, pieces: Pieces) -> Cut:
        parts = _parts(a, options)
        rows, made = make(
            parts["train"],
            options["directions"],
            options["count"],
            point=a.run.end,
            normalization=options["normalize"],
            ignore=options["ignore"] or (),
            orthogonal=options["orthogonal"],
            seed=options["seed"],
        )
        return cut(
            parts,
            a.run.end,
            rows,
            alphas=spaced(*options["alphas"]),
            quadratic=options["quadratic"],
            made=made,
            progress=progress,
        )

    answer(
        beside([a], f"{options['directions']}.line", options),
        request("line", {"start": a}, options),
        options,
        compute,
        label="line",
        unit="points",
    )


def _parts(a: Source, options: dict[str, Any]) -> dict[str, Any]:
    return {split: objective(a, {**options, "split": split}) for split in ("train", "test")}


def spaced(low: float, high: float, points: int) -> Any:
    """Return evenly spaced alphas, those meant to be 0 or 1 exactly so."""
    import torch

    alphas = torch.linspace(low, high, points, dtype=torch.float64)
    whole = alphas.round() + 0.0  # never -0
    rounding = 4 * torch.finfo(torch.float64).eps * max(abs(low), abs(high))
    return torch.where((alphas - whole).abs() <= rounding, whole, alphas)


def require_pair(a: Source, b: Source, options: dict[str, Any], what: str = "line") -> None:
    """Refuse two solutions that are not of one network on the same data."""
    if a.sha256 == b.sha256:
        raise InputError(
            f"{what} needs two solutions, got {a.path} and the same again: give another"
        )
    one, other = len(a.run.end.theta), len(b.run.end.theta)
    records = [source.run.spec["train"] for source in (a, b)]
    for key in ("loss", "data"):
        if records[0][key] != records[1][key]:
            raise InputError(
                f"{what} needs two runs of one {key}, got {records[0][key]} in {a.path} and "
                f"{records[1][key]} in {b.path}: choose another pair"
            )
    for key in ("model", "model_options"):
        if records[0][key] != records[1][key] or one != other:
            raise InputError(
                f"{what} needs two runs of one architecture, got {a.path} with {one:,} parameters "
                f"and {b.path} with {other:,}{_difference(a, b, options)}: choose another pair"
            )
    dtypes = [record["dtype"] for record in records]
    if dtypes[0] != dtypes[1]:
        raise InputError(
            f"{what} needs two solutions of one dtype, got {dtypes[0]} in {a.path} and {dtypes[1]} "
            f"in {b.path}: choose another pair, or give --dtype for checkpoints"
        )
    for part in ("train_sha256", "test_sha256"):
        if a.run.spec["data"][part] != b.run.spec["data"][part]:
            raise InputError(
                f"{what} needs two runs on the same data, got two different {part[:-7]} parts in "
                f"{a.path} and {b.path}: give both the same split_seed, size and label noise"
            )


def _difference(a: Source, b: Source, options: dict[str, Any]) -> str:
    """Return in words the first parameter in which two networks differ, by its name."""
    one, other = (objective(source, {**options, "split": "train"}).shapes for source in (a, b))
    for name in {**one, **other}:
        shapes = [tuple(x[name]) if name in x else "none" for x in (one, other)]
        if shapes[0] != shapes[1]:
            return f", which differ first in {name}, {shapes[0]} and {shapes[1]}"
    return ""
