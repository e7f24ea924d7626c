"""Small batch against large batch at equal training loss: which minima are sharp, and which bad?

After Keskar et al. (2017), sections 2 and 2.2.2, scaled to the digits, by Adam as in the paper.
The design ``pair``: a small batch of 8 and the full batch of 600 at one rate, and the full batch
at a rate scaled by the square root of the batch sizes (Hoffer et al. 2017), because the paper's
critics hold that the rate and not the batch size is at work. The design ``batch-rate``: three batch
sizes at four rates, or each at one rate as it is and scaled with the batch size. All trainings of a
seed share split, start, wrong labels and order, and all stop at the same training loss.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from sharpness.comparison import compared
from sharpness.data import is_labels, size
from sharpness.errors import InputError
from sharpness.names import source_digest
from sharpness.problem import pose
from sharpness.results import Comparison, Eigenpairs, Line, Trajectory
from sharpness.store import load_as, reuse, save, write
from sharpness.training import TrainConfig, cpu_threads, resolved

from . import rates, verdict
from .design import (
    ALONG,
    IMPROVEMENT,
    PATIENCE,
    Arm,
    Design,
    arms,
    check_every,
    filled,
    record,
)
from .recipe import Finding, Job, Progress, Recipe, share
from .trainings import ALPHAS, Training, line_between, stored

RANKS = 10  # eigenvalues of the first seed's solutions in the design pair
FIGURES = {
    "pair": ("sharpness.png", "along.png", "line.png", "eigenvalues.png"),
    "batch-rate": ("batch-rate.png", "along.png", "best-rate.png"),
}


def run(
    folder: str | Path,
    design: Design | None = None,
    *,
    workers: int = 1,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Run the whole design into a folder; what is there already is not computed again.

    Args:
        folder: Made if missing. Trainings and analyses are in a folder for each condition; beside
            them ``comparison.h5``, ``summary.txt`` and the figures.
        design: Default: a pair of batch sizes on the digits, 10 seeds.
        workers: Processes, of one thread each.
        overwrite: Replace a comparison of another design; trainings of the same request stay.
        progress: Called with the trainings done.

    Raises:
        InputError: If the design cannot be met, or the folder holds another design's files.
        ComputationError: If a training or an analysis fails.
    """
    plan = _Plan(Path(folder), Design() if design is None else design, overwrite)
    plan.folder.mkdir(parents=True, exist_ok=True)
    known = reuse(plan.comparison, plan.request, overwrite=overwrite)
    if known and plan.is_whole():
        return load_as(plan.comparison, Comparison)
    taken = [name for name in (*plan.pictures, "summary.txt") if (plan.folder / name).exists()]
    if taken and not (overwrite or plan.has_begun()):
        raise InputError(
            f"{plan.folder / taken[0]} exists and is no file of this recipe: choose another "
            "output, or overwrite it"
        )
    for condition in plan.conditions:
        (plan.folder / condition).mkdir(exist_ok=True)
    share(plan.jobs(), workers=workers, unit="updates", progress=progress)
    with cpu_threads(1):
        plan.lines()
        found = plan.compare()
    save(plan.comparison, found, request=plan.request, overwrite=overwrite)
    write(plan.folder / "summary.txt", f"{summary(found)}\n".encode(), overwrite=True)
    for name, picture in plan.figures(found).items():
        write(plan.folder / name, picture, overwrite=True)
    return found


def is_done(folder: str | Path, design: Design, *, overwrite: bool = False) -> bool:
    """Say whether the folder holds all that this design asks for."""
    plan = _Plan(Path(folder), design, overwrite=False)
    return reuse(plan.comparison, plan.request, overwrite=overwrite) and plan.is_whole()


def check(found: Comparison) -> list[Finding]:
    """Return the sentences of the verdict, by the kind of design."""
    return (rates if found.spec["design"]["design"] == "batch-rate" else verdict).check(found)


def summary(found: Comparison) -> str:
    """Return table and verdict as text, by the kind of design."""
    return (rates if found.spec["design"]["design"] == "batch-rate" else verdict).summary(found)


class _Plan:
    """A design on its data: conditions, arms, and the file of everything."""

    def __init__(self, folder: Path, design: Design, overwrite: bool) -> None:
        self.folder, self.overwrite = folder, overwrite
        problem = pose(
            design.model,
            design.data,
            design.loss,
            model_options=design.model_options,
            train_examples=design.train_examples,
        )
        self.design = filled(design, size(problem.data.train))
        self.arms = arms(self.design)
        self.conditions = {"clean": 0.0}
        if design.noise and is_labels(problem.data.train[1]) and problem.metrics:
            self.conditions["noisy"] = design.noise
        self.seeds = range(self.design.seeds or 0)
        trainable = (p.numel() for p in problem.model.parameters() if p.requires_grad)
        self.ranks = min(RANKS, sum(trainable)) if self.is_pair else 0
        names = (design.model, design.data, design.loss)
        inputs = {name: source_digest(name) for name in names}
        self.inputs = {name: sha256 for name, sha256 in inputs.items() if sha256}
        self.request = {
            "command": "run keskar",
            "options": record(self.design),
            "inputs": self.inputs,
        }
        self.comparison = folder / "comparison.h5"
        self.pictures = FIGURES[self.design.design]
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} needs to be a directory, but is a file: choose another")
        self.jobs()  # a design that cannot be met is refused before anything is written

    @property
    def is_pair(self) -> bool:
        return self.design.design == "pair"

    def training(self, condition: str, arm: Arm, seed: int) -> Training:
        """Return the job of one training and its analyses."""
        design = self.design
        may_miss: dict[str, Any] = {}
        if design.scalings:
            may_miss = {"patience": PATIENCE, "min_improvement": IMPROVEMENT, "keep_diverged": True}
        config = TrainConfig(
            model=design.model,
            model_options=design.model_options,
            data=design.data,
            loss=design.loss,
            train_examples=design.train_examples,
            label_noise=self.conditions[condition],
            batch_size=arm.batch_size,
            learning_rate=arm.learning_rate,
            updates=design.updates,
            stop_loss=design.level,
            check_every=check_every(design, arm.batch_size),
            checkpoint_losses=[times * design.level for times in ALONG],
            seed=seed,
            threads=1,
            rate_scaling=arm.rate_scaling,
            base_batch_size=arm.base_batch_size,
            **may_miss,
        )
        return Training(
            str(self.folder / condition / f"{arm.key}-{seed}"),
            resolved(config),
            design.epsilon,
            self.ranks if seed == 0 else 0,
            self.inputs,
            self.overwrite,
        )

    def trainings(self) -> list[Training]:
        """Return all trainings, those of wrong labels and small batches, which last, first."""
        conditions = reversed(list(self.conditions))
        return [
            self.training(condition, arm, seed)
            for condition in conditions
            for arm in self.arms
            for seed in self.seeds
        ]

    def jobs(self) -> list[Job]:
        """Return all trainings as work to share."""
        return list(self.trainings())

    def line_file(self, condition: str, arm: Arm) -> Path:
        """Return the file of the line from the small batch to this arm, of the first seed."""
        return self.folder / condition / f"sb-0-{arm.key}-0.line.h5"

    def files(self) -> list[Path]:
        """Return every file that the design makes, the comparison last."""
        made = [Path(f"{job.stem}{end}") for job in self.trainings() for end in job.endings()]
        if self.is_pair:
            made += [self.line_file(c, arm) for c in self.conditions for arm in self.arms[1:]]
        made += [self.folder / name for name in (*self.pictures, "summary.txt")]
        return [*made, self.comparison]

    def has_begun(self) -> bool:
        """Say whether a result of the design is there."""
        return any(file.exists() for file in self.files() if file.suffix == ".h5")

    def is_whole(self) -> bool:
        """Say whether every file is there."""
        return all(file.exists() for file in self.files())

    def lines(self) -> None:
        """Compute the lines from the small-batch solution of the first seed to the others."""
        for condition in self.conditions if self.is_pair else {}:
            start = self.training(condition, self.arms[0], 0)
            for arm in self.arms[1:]:
                end = self.training(condition, arm, 0)
                stored(
                    self.line_file(condition, arm),
                    {
                        "command": "line",
                        "options": {"alphas": list(ALPHAS)},
                        "inputs": {"start": start.seal(), "end": end.seal()},
                    },
                    partial(line_between, start, end),
                    self.overwrite,
                )

    def compare(self) -> Comparison:
        """Return the table of all numbers with its contrasts."""
        values: dict[str, dict[str, list[float]]] = {}
        reached: dict[str, list[bool]] = {}
        unconverged = 0
        for condition in self.conditions:
            for arm in self.arms:
                group = f"{condition}, {arm.name}"
                for seed in self.seeds:
                    job = self.training(condition, arm, seed)
                    numbers, converged = job.numbers()
                    if not self.is_pair:
                        numbers |= rates.held_out(job)
                    reached.setdefault(group, []).append(job.has_met())
                    unconverged += not converged
                    for measure, number in numbers.items():
                        values.setdefault(measure, {}).setdefault(group, []).append(number)
        best = {} if self.is_pair else rates.best(values, reached, self.conditions, self.arms)
        return compared(
            values,
            reached,
            list(self.seeds),
            self.contrasts() if self.is_pair else rates.contrasts(self.arms, best),
            spec={
                "recipe": "keskar",
                "design": record(self.design),
                "conditions": self.conditions,
                "arms": [record(arm) for arm in self.arms],
                "best": best,
                "unconverged": unconverged,
            },
        )

    def contrasts(self) -> dict[str, tuple[str, str]]:
        """Return the contrasts of the design pair."""
        small, large, scaled = (arm.name for arm in self.arms)
        return {
            f"{condition}: {one} / {other}": (f"{condition}, {one}", f"{condition}, {other}")
            for condition in self.conditions
            for one, other in ((large, small), (scaled, small), (scaled, large))
        }

    def figures(self, found: Comparison) -> dict[str, bytes]:
        """Return the pictures by file name."""
        if not self.is_pair:
            return {
                "batch-rate.png": rates.rate_figure(found),
                "along.png": rates.along_figure(found, self.along()),
                "best-rate.png": rates.best_figure(found),
            }
        lines: dict[str, list[tuple[str, Line]]] = {}
        spectra: dict[str, dict[str, Eigenpairs]] = {}
        small = self.arms[0].name
        for condition in self.conditions:
            for arm in self.arms:
                pairs = self.training(condition, arm, 0).pairs()
                spectra.setdefault(condition, {})[arm.name] = pairs
            for arm in self.arms[1:]:
                along = load_as(self.line_file(condition, arm), Line)
                lines.setdefault(condition, []).append((f"{small} to {arm.name}", along))
        return {
            "sharpness.png": verdict.sharpness_figure(found),
            "along.png": verdict.along_figure(found, self.along()),
            "line.png": verdict.line_figure(lines),
            "eigenvalues.png": verdict.eigenvalue_figure(spectra),
        }

    def along(self) -> Mapping[str, Mapping[str, list[Trajectory]]]:
        """Return the sharpness along all trainings, by condition and arm."""
        found: dict[str, dict[str, list[Trajectory]]] = {}
        for condition in self.conditions:
            for arm in self.arms:
                jobs = [self.training(condition, arm, seed) for seed in self.seeds]
                runs = [job.trajectory() for job in jobs if not job.is_left_out()]
                found.setdefault(condition, {})[arm.name] = runs
        return found


RECIPE = Recipe(
    name="keskar",
    claim=verdict.CLAIM,
    source=verdict.SOURCE,
    run=run,
    check=check,
    summary=summary,
)
