"""``sharpness plane``."""

from typing import Any

import click

from sharpness.errors import InputError

from .line import require_pair, spaced
from .parameters import (
    COMMON,
    NORMALIZES,
    POLICIES,
    Grid,
    Name,
    numerics,
    overwrite,
    reporting,
    rescaling,
    source,
)
from .sources import (
    Pieces,
    Source,
    answer,
    beside,
    objective,
    opened,
    request,
    require_other,
)

# Coordinates by what the axes are: Li et al. (2018) have [-1, 1] for random directions.
RANGES = {"random": (-1.0, 1.0), "eigenvectors": (-1.0, 1.0), "through": (-0.5, 1.5)}
POINTS, COARSE = 25, 9  # along each axis: of losses, and of eigenvalues
ROOM = 0.25  # around a path, of its extent
OF_DIRECTIONS = ("directions", "normalize", "ignore")  # which three solutions do not need


@click.command(context_settings=COMMON)
@click.argument("run", metavar="[RUN]", required=False)
@click.option(
    "--directions",
    type=Name("directions", "AXES"),
    help="The axes: random directions, the top eigenvectors of the Hessian, or the principal "
    "components of the training, from its checkpoints.  [default: random]",
)
@click.option("--through", nargs=3, metavar="A B C", help="The plane of three solutions instead.")
@click.option(
    "--alphas",
    type=Grid(),
    help="Along the first axis, as START:END:POINTS.  [default: -1:1:25; -0.5:1.5:25 of three "
    "solutions; around the path for principal components; 9 points for --convexity]",
)
@click.option("--betas", type=Grid(), help="Along the second.  [default: as --alphas]")
@rescaling
@click.option("--path", is_flag=True, help="Project the training on any plane of RUN.")
@click.option("--mark", multiple=True, metavar="FILE", help="Project another solution; repeatable.")
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="MODULE:FUNCTION",
    help="A mean over a batch, of (outputs, targets), at every point; repeatable.",
)
@click.option(
    "--convexity",
    is_flag=True,
    help="The extreme eigenvalues of the Hessian on the train part, instead of losses.",
)
@numerics
@click.option(
    "--bn",
    type=POLICIES,
    help=f"{NORMALIZES} [default: frozen where all solutions agree in them, reestimate otherwise]",
)
@source
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="Default: RUN.plane.h5, RUN.DIRECTIONS.plane.h5 or A-B-C.plane.h5, beside the first.",
)
@overwrite
@reporting
def command(run: str | None, **options: Any) -> None:
    """Compute loss and accuracy on a plane around RUN, or through three solutions.

    Points are RUN + alpha u + beta v, or A + alpha (B - A) + beta (C - A), on train and test. Each
    solution is a run's file, or a checkpoint together with --model, --data and --loss. A training
    and other solutions lie beside the plane: they come with their own losses and their distances.

    \b
    Examples:
      sharpness plane sb.h5
      sharpness plane sb.h5 --directions principal
      sharpness plane sb.h5 --directions eigenvectors --alphas=-0.5:0.5:31
      sharpness plane --through a.h5 b.h5 c.h5
      sharpness plane sb.h5 --convexity
    """
    three = options.pop("through")
    if (run is None) == (three is None):
        got = "neither" if run is None else "both"
        raise InputError(f"plane needs RUN or --through A B C, got {got}: give one of them")
    if three and any(options[key] is not None for key in OF_DIRECTIONS):
        key = next(key for key in OF_DIRECTIONS if options[key] is not None)
        raise InputError(f"--{key} is for a plane of RUN, got --through: leave it out")
    if options["convexity"] and (options["mark"] or options["metrics"] or options["path"]):
        raise InputError(
            "--convexity has eigenvalues alone, got --mark, --metric or --path: leave them out"
        )
    if not three:
        options["directions"] = options["directions"] or "random"
        options["ignore"] = sorted(set(options["ignore"] or [])) or None
    solutions = [opened(path, options) for path in (three or [run])]
    marks = [opened(path, options) for path in options.pop("mark")]
    for other in (*solutions[1:], *marks):
        require_pair(solutions[0], other, options, "plane")
    _compute(solutions, marks, options)


def _compute(solutions: list[Source], marks: list[Source], options: dict[str, Any]) -> None:
    from sharpness.bars import Progress
    from sharpness.names import source_digest
    from sharpness.planes import convexity, plane
    from sharpness.results import Convexity, Plane

    metrics = _metrics(options["metrics"])
    kind = options["directions"] or "through"
    options["betas"] = options["betas"] or options["alphas"]
    _fill(options, kind)
    names = _names([*solutions, *marks])
    others = dict(zip(names[1:], [*solutions[1:], *marks], strict=True))
    what = "convexity" if options["convexity"] else "plane"
    asked = request("plane", dict(zip(names, [*solutions, *marks], strict=True)), options)
    asked["inputs"] |= {name: source_digest(name) for name in options["metrics"]}

    def compute(progress: Progress, pieces: Pieces) -> Plane | Convexity:
        first = solutions[0]
        here, run = first.run.end, first.run
        train = objective(first, {**options, "split": "train"}, metrics=metrics)
        (u, v), made, axes = _directions(train, solutions, kind, options)
        grid = _grid([u, v], run, options)
        shared: dict[str, Any] = {"batch_norm": options["bn"], "axes": axes, "made": made}
        if options["convexity"]:
            return convexity(train, here, u, v, **grid, **shared, pieces=pieces, progress=progress)
        test = objective(first, {**options, "split": "test"}, metrics=metrics)
        return plane(
            {"train": train, "test": test},
            here,
            u,
            v,
            **grid,
            **shared,
            path=run if options["path"] or kind == "principal" else None,
            solutions={name: other.run.end for name, other in others.items()},
            pieces=pieces,
            progress=progress,
        )

    ending = what if kind in ("random", "through") else f"{kind}.{what}"
    path = beside(solutions, ending, options)
    require_other(path, [mark.path for mark in marks])
    answer(
        path,
        asked,
        options,
        compute,
        label=what,
        unit="points",
        journaled=True,
    )


def _directions(
    train: Any, solutions: list[Source], kind: str, options: dict[str, Any]
) -> tuple[Any, dict[str, Any], tuple[str, str]]:
    """Return the axes as rows, how they were made, and what they are."""
    from sharpness.directions import make, orthogonalized, principal, rescaled, through

    run, ignore = solutions[0].run, options["ignore"] or ()
    if kind in ("random", "eigenvectors"):
        rows, made = make(
            train,
            kind,
            2,
            point=run.end,
            normalization=options["normalize"],
            ignore=ignore,
            orthogonal=options["orthogonal"],
            seed=options["seed"],
        )
        word = "random direction" if kind == "random" else "eigenvector"
        return rows, made, (f"{word} 1", f"{word} 2")
    made = {"kind": kind}
    if kind == "through":
        rows = through(*(solution.run.end for solution in solutions))
        one, *two = _names(solutions)
        axes = (f"{one} to {two[0]}", f"{one} to {two[1]}")
    else:
        rows = principal(run).directions
        axes = ("principal component 1", "principal component 2")
        if options["normalize"] or ignore:
            made |= {"normalization": options["normalize"] or "none", "ignore": list(ignore)}
            rows = rescaled(
                train, rows, options["normalize"] or "none", point=run.end, ignore=ignore
            )
    if options["orthogonal"]:
        rows, made["orthogonal"] = orthogonalized(rows), True
    return rows, made, axes


def _fill(options: dict[str, Any], kind: str) -> None:
    """Give the grid its default, but around a path, which is known later."""
    if kind in RANGES:
        default = [*RANGES[kind], COARSE if options["convexity"] else POINTS]
        for key in ("alphas", "betas"):
            options[key] = options[key] or default


def _grid(rows: list[Any], run: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Return the coordinates, of principal components by default those of the path and more."""
    import torch

    from sharpness.directions import projected

    if options["alphas"] and options["betas"]:
        return {key: spaced(*options[key]) for key in ("alphas", "betas")}
    path = projected(torch.stack(rows), list(run.points.values()), run.end).coordinates
    room = ROOM * float((path.max(dim=0).values - path.min(dim=0).values).max())
    points = COARSE if options["convexity"] else POINTS
    found = {}
    for i, key in enumerate(("alphas", "betas")):
        low, high = float(path[:, i].min()) - room, float(path[:, i].max()) + room
        step = (high - low) / (points - 1)
        around = step * (torch.arange(points, dtype=torch.float64) - round(-low / step))
        found[key] = spaced(*options[key]) if options[key] else around  # the end is a point of it
    return found


def _metrics(names: tuple[str, ...]) -> dict[str, Any]:
    """Return the functions by their own names."""
    from sharpness.names import resolve

    found: dict[str, Any] = {}
    for name in names:
        key = name.rpartition(":")[2]
        if ":" not in name or not key:
            raise InputError(f"--metric needs MODULE:FUNCTION, got {name!r}: name both")
        if key in found or key in ("loss", "accuracy"):
            raise InputError(f"--metric needs functions of new names, got {name}: rename it")
        found[key] = resolve(name, {}, "metric")
    return found


def _names(sources: list[Source]) -> list[str]:
    """Return what solutions are called: the names of their files, with folders where needed."""
    stems = [source.path.stem for source in sources]
    if len(set(stems)) == len(stems):
        return stems
    return [str(source.path.with_suffix("")) for source in sources]
