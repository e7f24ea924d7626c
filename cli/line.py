"""``sharpness line``."""

from typing import Any

import click

from sharpness.errors import InputError

from .parameters import COMMON, NORMALIZES, POLICIES, Grid, numerics, overwrite, reporting, source
from .sources import Source, answer, beside, objective, opened, request


@click.command(context_settings=COMMON)
@click.argument("start", metavar="START")
@click.argument("end", metavar="END")
@click.option("--alphas", type=Grid(), default="-1:2:25", help="Where, as START:END:POINTS.")
@numerics
@click.option(
    "--bn",
    type=POLICIES,
    help=f"{NORMALIZES} [default: frozen where the ends agree in them, reestimate otherwise]",
)
@source
@click.option("-o", "--output", metavar="FILE", help="Default: START-END.line.h5 beside START.")
@overwrite
@reporting
def command(start: str, end: str, **options: Any) -> None:
    """Compute loss and accuracy at (1 - alpha) START + alpha END, on train and test.

    Both are runs' files, or checkpoints together with --model, --data and --loss.

    \b
    Examples:
      sharpness line sb.h5 lb.h5
      sharpness line sb.pt lb.pt --model nets:build --data nets:digits --loss cross_entropy
    """
    import torch

    from sharpness.landscape import line

    a, b = opened(start, options), opened(end, options)
    _require_pair(a, b)
    low, high, points = options["alphas"]
    answer(
        beside([a, b], "line", options),
        request("line", {"start": a, "end": b}, options),
        options,
        lambda progress: line(
            {split: objective(a, {**options, "split": split}) for split in ("train", "test")},
            a.run.end,
            b.run.end,
            batch_norm=options["bn"],
            alphas=torch.linspace(low, high, int(points), dtype=torch.float64),
            progress=progress,
        ),
        label="line",
        unit="points",
    )


def _require_pair(a: Source, b: Source) -> None:
    if a.sha256 == b.sha256:
        raise InputError(f"line needs two solutions, got {a.path} and the same again: give another")
    one, other = len(a.run.end.theta), len(b.run.end.theta)
    records = [source.run.spec["train"] for source in (a, b)]
    for key in ("loss", "data"):
        if records[0][key] != records[1][key]:
            raise InputError(
                f"line needs two runs of one {key}, got {records[0][key]} in {a.path} and "
                f"{records[1][key]} in {b.path}: choose another pair"
            )
    for key in ("model", "model_options"):
        if records[0][key] != records[1][key] or one != other:
            raise InputError(
                f"line needs two runs of one architecture, got {a.path} with {records[0]['model']} "
                f"{records[0]['model_options']} ({one:,} parameters) and {b.path} with "
                f"{records[1]['model']} {records[1]['model_options']} ({other:,} parameters): "
                "choose another pair"
            )
    for part in ("train_sha256", "test_sha256"):
        if a.run.spec["data"][part] != b.run.spec["data"][part]:
            raise InputError(
                f"line needs two runs on the same data, got two different {part[:-7]} parts in "
                f"{a.path} and {b.path}: give both the same split_seed, size and label noise"
            )
