"""``sharpness compare``."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from sharpness.experiments.recipe import cores, share
from sharpness.experiments.trainings import analysis_request, stored

from sharpness.errors import InputError

from .parameters import COMMON, Whole, evaluation, overwrite, reporting, source
from .show import note
from .sources import (
    Source,
    answer,
    device,
    fitting,
    gemm,
    objective,
    opened,
    request,
    require_other,
)

if TYPE_CHECKING:
    from sharpness.analyses import Analysis
    from sharpness.results import Result


@click.command(context_settings=COMMON)
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@evaluation
@source
@click.option("--workers", type=Whole(1), help="Processes.  [default: one for each core]")
@click.option("-o", "--output", metavar="FILE", help="Default: comparison.h5 beside the first.")
@overwrite
@reporting
def command(runs: tuple[str, ...], workers: int | None, **options: Any) -> None:
    """Compare runs: the effect of what differs between them, in pairs over seeds.

    RUN is a run's file, a folder with such files, or a checkpoint together with --model, --data
    and --loss; as NAME=RUN, it is one of the group of that name. Runs are grouped by what their
    trainings differ in. Of each run lambda_1, that of diag(|w|) H diag(|w|) and Metric 2.1 in
    full and in subspaces are computed where their files are not there yet. Positive quantities
    are compared by ratio, accuracies and gaps by difference, with 95 % t-intervals over pairs
    that share a seed; a difference that is not shown is said so.

    \b
    Examples:
      sharpness compare sb.h5 lb.h5
      sharpness compare runs/*.h5
      sharpness compare sb=a0.pt sb=a1.pt lb=b0.pt lb=b1.pt \\
        --model nets:build --data nets:digits --loss cross_entropy
    """
    from sharpness.analyses import ANALYSES, run_numbers
    from sharpness.comparison import compare
    from sharpness.problem import SPLITS
    from sharpness.store import load

    named, passed_over = _named(runs)
    sources = {name: opened(str(path), options) for name, (path, _) in named.items()}
    groups = {name: group for name, (_, group) in named.items() if group}
    if groups and len(groups) < len(named):
        raise InputError(
            f"compare needs a group for each run or for none, got {len(groups)} for {len(named)}: "
            "write NAME=RUN for all"
        )
    given = {name: source.run for name, source in sources.items()}
    compare(given, {name: {} for name in given}, groups=groups or None)  # refused before any work
    asked = request("compare", sources, options)
    asked["options"]["groups"] = groups
    path = Path(options["output"] or next(iter(sources.values())).path.with_name("comparison.h5"))
    require_other(path, [source.path for source in sources.values()])

    def numbers(source: Source) -> dict[str, float]:
        whole = {**options, "examples": None}
        parts = SPLITS if source.run.stopped == "read" else ()  # a training recorded them
        by_part = {p: objective(source, {**whole, "split": p}) for p in parts}
        found = run_numbers(source.run, by_part or None)
        for name, analysis in ANALYSES.items():
            found |= analysis.numbers(load(_file(source, name)))
        return found

    def compute(progress: Any, pieces: Any) -> Any:
        jobs = [_Analyses(str(path), options) for path, _ in named.values()]
        single = device(options["device"]) != "cpu"
        share(
            jobs,
            workers=1 if single else workers or cores(),
            unit="analyses",
            progress=progress,
        )
        known = {name: numbers(source) for name, source in sources.items()}
        return compare(given, known, groups=groups or None)

    answer(path, asked, options, compute, label="compare", unit="runs")
    if passed_over:
        note(f"{passed_over} files passed over, which hold no run")


@dataclass(frozen=True)
class _Analyses:
    """The analyses of one run, each in a file of its own beside it that is made once."""

    path: str
    options: dict[str, Any]

    def __call__(self, count: Any) -> None:
        """Compute what is not there yet."""
        from sharpness.analyses import ANALYSES

        source = opened(self.path, self.options)
        inputs = request("compare", {"run": source}, self.options)["inputs"]
        evaluation = {key: self.options[key] for key in ("examples", "micro_batch", "seed")}
        evaluation["dtype"] = self.options["dtype"] or source.run.spec["train"]["dtype"]
        evaluation["device"] = device(self.options["device"])
        if self.options["bn"] != "frozen":
            evaluation["bn"] = self.options["bn"]
        if self.options["fast_gemm"]:
            evaluation["fast_gemm"] = True
        for name, analysis in ANALYSES.items():
            asked = analysis_request(name, analysis, inputs, **evaluation)
            compute = partial(_analyzed, analysis, source, self.options)
            stored(_file(source, name), asked, compute, self.options["overwrite"])
            count(1)


def _analyzed(analysis: "Analysis", source: Source, options: dict[str, Any]) -> "Result":
    def compute() -> "Result":
        f = objective(source, {**options, "split": "train"})
        return analysis.compute(f, seed=options["seed"])

    with gemm(options):
        return fitting(compute, options, {})


def _file(source: Source, analysis: str) -> Path:
    return source.path.with_name(f"{source.path.stem}.{analysis}.h5")


def _named(arguments: Sequence[str]) -> tuple[dict[str, tuple[Path, str | None]], int]:
    """Return path and group of each run by what it is called in tables, folders opened.

    And how many files were passed over.
    """
    from sharpness.store import kind_of

    found: dict[str, tuple[Path, str | None]] = {}
    passed_over = 0
    for argument in arguments:
        group, equals, rest = argument.partition("=")
        named = bool(equals) and not Path(argument).exists()
        path = Path(rest if named else argument)
        for file in sorted(path.rglob("*.h5")) if path.is_dir() else [path]:
            # The analyses lie beside the runs, where `*.h5` finds them the next time.
            if kind_of(file) not in ("Run", None) or (path.is_dir() and kind_of(file) is None):
                passed_over += 1
                continue
            if str(file) in found:
                raise InputError(f"compare needs each run once, got {file} twice: leave one out")
            found[str(file)] = (file, group if named else None)
    return found, passed_over
