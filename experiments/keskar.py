"""Small batch against large batch at equal training loss: which minima are sharp, and which bad?

After Keskar et al. (2017), sections 2 and 2.2.2, scaled to the digits: a small batch of 8 and the
full batch of 600, Adam at the same rate as in the paper, and the full batch at a rate scaled by
the square root of the batch sizes (Hoffer et al. 2017), because the paper's critics hold that the
rate and not the batch size is at work. All trainings of a seed share split, start, wrong labels
and order, and all stop at the same training loss.
"""

import math
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from sharpness.comparison import compared
from sharpness.data import is_labels, size
from sharpness.errors import InputError
from sharpness.names import source_digest
from sharpness.problem import pose
from sharpness.results import Comparison, Eigenpairs, Line
from sharpness.store import load_as, reuse, save, write
from sharpness.training import TrainConfig, cpu_threads, resolved

from . import verdict
from .recipe import Job, Progress, Recipe, share
from .trainings import ALPHAS, Training, line_between, numbers, stored

RANKS = 10  # eigenvalues of the first seed's solutions; one of all others
FIGURES = ("sharpness.png", "line.png", "eigenvalues.png")


@dataclass(frozen=True)
class Design:
    """What is varied and what is held; the fields that ``TrainConfig`` has too mean the same."""

    model: str = "mlp"
    model_options: dict[str, Any] = field(default_factory=dict)
    data: str = "digits"
    loss: str = "cross_entropy"
    train_examples: int | None = None
    seeds: int = 10
    small_batch: int = 8
    large_batch: int | None = None  # all training examples by default
    learning_rate: float = 1e-3
    label_noise: float = 0.2  # of the noisy condition
    stop_loss: float = 1e-2
    updates: int = 20_000  # the cap
    epsilon: float = 1e-3  # of Metric 2.1


QUICK = {"seeds": 2, "stop_loss": 0.1}


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    key: str  # in file names
    name: str  # in tables
    batch_size: int
    learning_rate: float


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
        design: Default: the digits, 10 seeds.
        workers: Processes, of one thread each.
        overwrite: Replace a comparison of another design; trainings of the same request stay.
        progress: Called with the trainings done.

    Raises:
        InputError: If the design cannot be met, or the folder holds another design's files.
        ComputationError: If a training or an analysis fails.
    """
    design = Design() if design is None else design
    plan = _Plan(Path(folder), design, overwrite)
    plan.folder.mkdir(parents=True, exist_ok=True)
    known = reuse(plan.comparison, plan.request, overwrite=overwrite)
    if known and plan.is_whole():
        return load_as(plan.comparison, Comparison)
    taken = [name for name in (*FIGURES, "summary.txt") if (plan.folder / name).exists()]
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
    write(plan.folder / "summary.txt", f"{verdict.summary(found)}\n".encode(), overwrite=True)
    for name, picture in plan.figures(found).items():
        write(plan.folder / name, picture, overwrite=True)
    return found


def is_done(folder: str | Path, design: Design, *, overwrite: bool = False) -> bool:
    """Say whether the folder holds all that this design asks for."""
    plan = _Plan(Path(folder), design, overwrite=False)
    there = plan.comparison.exists() and plan.is_whole()
    return there and reuse(plan.comparison, plan.request, overwrite=overwrite)


class _Plan:
    """A design on its data: conditions, arms, and the file of everything."""

    def __init__(self, folder: Path, design: Design, overwrite: bool) -> None:
        whole = {"seeds": design.seeds, "small_batch": design.small_batch}
        for name, value in whole.items():
            if value < 1:
                raise InputError(f"keskar needs {name} of at least 1, got {value}: raise it")
        self.folder, self.design, self.overwrite = folder, design, overwrite
        problem = pose(
            design.model,
            design.data,
            design.loss,
            model_options=design.model_options,
            train_examples=design.train_examples,
        )
        examples = size(problem.data.train)
        large = design.large_batch or examples
        if not design.small_batch < large <= examples:
            raise InputError(
                f"keskar needs a small batch below the large one, at most {examples}, got "
                f"{design.small_batch} and {large}: change the batch sizes"
            )
        scaled = design.learning_rate * math.sqrt(large / design.small_batch)
        small_name, large_name = f"SB {design.small_batch}", f"LB {large}"
        self.arms = [
            Arm("sb", small_name, design.small_batch, design.learning_rate),
            Arm("lb", large_name, large, design.learning_rate),
            Arm(
                "lb-sqrt", f"{large_name}, rate x{scaled / design.learning_rate:.2f}", large, scaled
            ),
        ]
        self.conditions = {"clean": 0.0}
        if design.label_noise and is_labels(problem.data.train[1]) and problem.metrics:
            self.conditions["noisy"] = design.label_noise
        self.seeds = range(design.seeds)
        trainable = (p.numel() for p in problem.model.parameters() if p.requires_grad)
        self.ranks = min(RANKS, sum(trainable))
        names = (design.model, design.data, design.loss)
        inputs = {name: source_digest(name) for name in names}
        self.inputs = {name: sha256 for name, sha256 in inputs.items() if sha256}
        self.request = {
            "command": "run keskar",
            "options": asdict(design),
            "inputs": self.inputs,
        }
        self.comparison = folder / "comparison.h5"
        if not 1e-5 <= design.epsilon < math.inf:  # rounding of float32 weights loses less
            raise InputError(f"keskar needs epsilon >= 1e-5, got {design.epsilon}: change it")
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} needs to be a directory, but is a file: choose another")
        self.jobs()  # a design that cannot be met is refused before anything is written

    def training(self, condition: str, arm: Arm, seed: int) -> Training:
        """Return the job of one training and its analyses."""
        design = self.design
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
            stop_loss=design.stop_loss,
            seed=seed,
            threads=1,
        )
        return Training(
            str(self.folder / condition / f"{arm.key}-{seed}"),
            resolved(config),
            design.epsilon,
            self.ranks if seed == 0 else 1,
            self.inputs,
            self.overwrite,
        )

    def jobs(self) -> list[Job]:
        """Return all trainings, those of wrong labels and small batches, which last, first."""
        conditions = reversed(list(self.conditions))
        return [
            self.training(condition, arm, seed)
            for condition in conditions
            for arm in self.arms
            for seed in self.seeds
        ]

    def line_file(self, condition: str, arm: Arm) -> Path:
        """Return the file of the line from the small batch to this arm, of the first seed."""
        return self.folder / condition / f"sb-0-{arm.key}-0.line.h5"

    def files(self) -> list[Path]:
        """Return every file that the design makes, the comparison last."""
        made = [
            Path(f"{job.stem}{ending}")
            for job in self.jobs()
            if isinstance(job, Training)
            for ending in (".h5", ".eigs.h5", ".epsilon-sharpness.h5")
        ]
        made += [self.line_file(c, arm) for c in self.conditions for arm in self.arms[1:]]
        made += [self.folder / name for name in (*FIGURES, "summary.txt")]
        return [*made, self.comparison]

    def has_begun(self) -> bool:
        """Say whether a result of the design is there."""
        return any(file.exists() for file in self.files() if file.suffix == ".h5")

    def is_whole(self) -> bool:
        """Say whether every file is there."""
        return all(file.exists() for file in self.files())

    def lines(self) -> None:
        """Compute the lines from the small-batch solution of the first seed to the others."""
        for condition in self.conditions:
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
                    made, pairs, sharpness = job.run(), job.pairs(), job.sharpness()
                    reached.setdefault(group, []).append(made.stopped == "stop_loss")
                    unconverged += not bool(pairs.converged[0])
                    for measure, number in numbers(made, pairs, sharpness).items():
                        values.setdefault(measure, {}).setdefault(group, []).append(number)
        small, large, scaled = (arm.name for arm in self.arms)
        contrasts = {
            f"{condition}: {one} / {other}": (f"{condition}, {one}", f"{condition}, {other}")
            for condition in self.conditions
            for one, other in ((large, small), (scaled, small), (scaled, large))
        }
        return compared(
            values,
            reached,
            list(self.seeds),
            contrasts,
            spec={
                "recipe": "keskar",
                "design": asdict(self.design),
                "conditions": self.conditions,
                "arms": [asdict(arm) for arm in self.arms],
                "unconverged": unconverged,
            },
        )

    def figures(self, found: Comparison) -> dict[str, bytes]:
        """Return the pictures by file name."""
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
            "line.png": verdict.line_figure(lines),
            "eigenvalues.png": verdict.eigenvalue_figure(spectra),
        }


RECIPE = Recipe(
    name="keskar",
    claim=verdict.CLAIM,
    source=verdict.SOURCE,
    run=run,
    check=verdict.check,
    summary=verdict.summary,
)
