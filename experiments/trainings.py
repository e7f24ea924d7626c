"""One training of an experiment with its analyses, each in a file of its own that is made once."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sharpness.analyses import ANALYSES, Analysis, metric, run_numbers, short
from sharpness.curvature import Hessian
from sharpness.lanczos import eigsh
from sharpness.landscape import line
from sharpness.problem import SPLITS, objective_of
from sharpness.results import Eigenpairs, Line, Result, Run, Trajectory
from sharpness.store import load, load_as, reuse, save, seal_of
from sharpness.training import TrainConfig, record, train
from sharpness.trajectory import along_training

ALPHAS = (-1, 2, 25)  # from, to, points: those of Keskar et al. (2017), Figure 3


@dataclass(frozen=True)
class Training:
    """One training with what is computed of it, each in a file of its own."""

    stem: str  # of the files
    config: TrainConfig
    epsilon: float  # of Metric 2.1
    ranks: int  # eigenvalues for the figure, 0 for none
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
        self._make(".h5", asked, lambda: train(self.config, progress=tell))
        if self.is_left_out():
            return
        made = {"run": seal_of(f"{self.stem}.h5"), **self.inputs}
        for name, analysis in self.analyses().items():
            asked = analysis_request(name, analysis, made, dtype=self.config.dtype)
            self._make(f".{name}.h5", asked, partial(self._analyzed, analysis))
        options = {"epsilon": self.epsilon}
        asked = {"command": "along", "options": options, "inputs": made}
        self._make(
            ".along.h5",
            asked,
            lambda: along_training(self.objective(), self.run(), epsilon=self.epsilon),
        )
        if self.ranks:
            asked = {"command": "eigs", "options": {"k": self.ranks}, "inputs": made}
            self._make(".eigs.h5", asked, lambda: eigsh(Hessian(self.objective()), self.ranks))

    def analyses(self) -> dict[str, Analysis]:
        """Return what is computed at the end of the training, by name."""
        chosen = {name: ANALYSES[name] for name in ("lambda-1", "adaptive-lambda-1")}
        return chosen | {f"metric-2-1-{short(self.epsilon)}": metric(self.epsilon)}

    def is_left_out(self) -> bool:
        """Say whether the run is there and missed its loss, in a design where runs may.

        Nothing is computed of it: it may have gone so far off that no number would be finite.
        """
        made = self.config.keep_diverged and Path(f"{self.stem}.h5").exists()
        return made and not self.has_met()

    def has_met(self) -> bool:
        """Say whether the run ended at the training loss that all are to meet."""
        return self.run().stopped == "stop_loss"

    def endings(self) -> list[str]:
        """Return how the names of the files end."""
        if self.is_left_out():
            return [".h5"]
        spectrum = [".eigs.h5"] if self.ranks else []
        return [".h5", *(f".{name}.h5" for name in self.analyses()), ".along.h5", *spectrum]

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
        """Return the eigenpairs for the figure from their file."""
        return load_as(f"{self.stem}.eigs.h5", Eigenpairs)

    def trajectory(self) -> Trajectory:
        """Return the sharpness along the training from its file."""
        return load_as(f"{self.stem}.along.h5", Trajectory)

    def numbers(self) -> tuple[dict[str, float], bool]:
        """Return what is compared, by name, and whether the eigenvalues converged."""
        found, converged = run_numbers(self.run()), True
        if self.is_left_out():
            short_epsilon = short(self.epsilon)
            unknown = ["lambda_1", "adaptive_lambda_1", f"metric_2_1_{short_epsilon}"]
            unknown += [f"first_order_share_{short_epsilon}"]
            return found | dict.fromkeys(unknown, math.nan), True
        for name, analysis in self.analyses().items():
            result = load(f"{self.stem}.{name}.h5")
            found |= analysis.numbers(result)
            if isinstance(result, Eigenpairs):
                converged = converged and bool(result.converged.all())
        return found, converged

    def _analyzed(self, analysis: Analysis) -> Result:
        return analysis.compute(self.objective())

    def _make(self, ending: str, asked: dict[str, Any], compute: Callable[[], Result]) -> None:
        stored(Path(f"{self.stem}{ending}"), asked, compute, self.overwrite)


def analysis_request(
    name: str, analysis: Analysis, inputs: Mapping[str, Any], **evaluation: Any
) -> dict[str, Any]:
    """Return what the file of an analysis answers, the same for recipes and ``compare``.

    Args:
        inputs: SHA-256 of the run and of the user's modules.
        evaluation: What is not as by default of where and on what it is computed.
    """
    options = {"examples": None, "device": "cpu", "micro_batch": None, "seed": 0}
    return {
        "command": f"compare {name}",
        "options": {**options, **evaluation, **analysis.options},
        "inputs": dict(inputs),
    }


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
