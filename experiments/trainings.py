"""One training of an experiment with its analyses, each in a file of its own that is made once."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sharpness.box_sharpness import epsilon_sharpness
from sharpness.curvature import Hessian
from sharpness.lanczos import eigsh
from sharpness.landscape import line
from sharpness.problem import SPLITS, objective_of
from sharpness.results import Eigenpairs, Line, Result, Run, Sharpness
from sharpness.store import load_as, reuse, save, seal_of
from sharpness.training import TrainConfig, record, train

ALPHAS = (-1, 2, 25)  # from, to, points: those of Keskar et al. (2017), Figure 3


@dataclass(frozen=True)
class Training:
    """One training with its eigenvalues and its Metric 2.1, each in a file of its own."""

    stem: str  # of the files
    config: TrainConfig
    epsilon: float
    ranks: int
    inputs: dict[str, str]
    overwrite: bool

    def __call__(self, count: Callable[[int], None]) -> None:
        """Compute what is not there yet; tell the updates done as they come."""
        seen = 0

        def tell(done: int, total: int | None, state: str) -> None:
            nonlocal seen
            count(done - seen)
            seen = done

        asked = {"command": "train", "options": record(self.config), "inputs": self.inputs}
        stored(
            Path(f"{self.stem}.h5"),
            asked,
            lambda: train(self.config, progress=tell),
            self.overwrite,
        )
        made = {"run": self.seal(), **self.inputs}
        stored(
            Path(f"{self.stem}.eigs.h5"),
            {"command": "eigs", "options": {"k": self.ranks}, "inputs": made},
            lambda: eigsh(Hessian(self.objective()), self.ranks),
            self.overwrite,
        )
        # One start and three of the sign iteration come within a few percent of twenty.
        options = {"epsilon": self.epsilon, "starts": 1, "sign_starts": 3}
        stored(
            Path(f"{self.stem}.epsilon-sharpness.h5"),
            {"command": "measure epsilon-sharpness", "options": options, "inputs": made},
            lambda: epsilon_sharpness(
                self.objective(), epsilon=self.epsilon, starts=1, sign_starts=3
            ),
            self.overwrite,
        )

    def seal(self) -> str | None:
        """Return the SHA-256 of the run's file."""
        return seal_of(f"{self.stem}.h5")

    def objective(self) -> Any:
        """Return the loss on the training part, at the end of the run."""
        return objective_of(self.run(), trust_spec=True)  # its file was written by this recipe

    def run(self) -> Run:
        """Return the run from its file."""
        return load_as(f"{self.stem}.h5", Run)

    def pairs(self) -> Eigenpairs:
        """Return the eigenpairs from their file."""
        return load_as(f"{self.stem}.eigs.h5", Eigenpairs)

    def sharpness(self) -> Sharpness:
        """Return the Metric 2.1 from its file."""
        return load_as(f"{self.stem}.epsilon-sharpness.h5", Sharpness)


def stored(
    path: Path, asked: dict[str, Any], compute: Callable[[], Result], overwrite: bool
) -> None:
    """Compute and save a result, unless the file that answers the request is there."""
    if not reuse(path, asked, overwrite=overwrite):
        save(path, compute(), request=asked, overwrite=overwrite)


def line_between(start: Training, end: Training) -> Line:
    """Return the line from the end of one training to that of another, on train and test."""
    a, b = start.run(), end.run()
    objectives = {split: objective_of(a, split=split, trust_spec=True) for split in SPLITS}
    return line(objectives, a.end, b.end, alphas=torch.linspace(*ALPHAS, dtype=torch.float64))


def numbers(run: Run, pairs: Eigenpairs, sharpness: Sharpness) -> dict[str, float]:
    """Return what is compared, by name; accuracies in percent, where there are any."""
    start = run.end if run.start is None else run.start
    way = run.end.theta.double() - start.theta.double()
    found = {
        "lambda_1": float(pairs.values[0]),
        "metric_2_1": sharpness.value,
        "first_order_share": sharpness.first_order_share,
        "train_loss": float(run.history["train_loss"][-1]),
        "test_loss": float(run.history["test_loss"][-1]),
        "updates": float(run.updates),
        "distance": float(way.norm()),
    }
    if "test_right" in run.history:
        for part in ("train", "test"):
            total = run.spec["data"][f"{part}_examples"]
            found[f"{part}_accuracy"] = 100 * int(run.history[f"{part}_right"][-1]) / total
    return found
