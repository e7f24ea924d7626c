"""What is computed of every run before runs are compared, each with its numbers by name."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from sharpness.box_sharpness import epsilon_sharpness, subspace_sharpness
from sharpness.curvature import AdaptiveHessian, Curvature, Hessian
from sharpness.finite import require_finite
from sharpness.lanczos import eigsh
from sharpness.objective import Objective
from sharpness.results import Eigenpairs, Run, Sharpness, SubspaceSharpness

# One start of L-BFGS-B and three of the sign iteration come within a few percent of twenty; all
# runs of a comparison get the same, for the best of more starts is larger.
STARTS: dict[str, Any] = {"starts": 1, "sign_starts": 3}
EPSILONS = (1e-3, 5e-4)  # of Keskar et al. (2017)
DIMENSION = 100  # of theirs, of the subspaces


@dataclass(frozen=True)
class Analysis:
    """A result at the end of a run, and what is compared of it."""

    compute: Callable[..., Any]  # (objective, seed=) -> result
    numbers: Callable[[Any], dict[str, float]]
    options: Mapping[str, Any]  # what was chosen, for the request


def short(epsilon: float) -> str:
    """Return an epsilon as the names of files and measures have it.

    >>> short(0.001), short(0.0025)
    ('1e-3', '2_5e-3')
    """
    digits, power = f"{epsilon:e}".split("e")
    return f"{float(digits):g}e{int(power)}".replace(".", "_")


def top_eigenvalue(operator: type[Curvature], measure: str) -> Analysis:
    """Return the analysis of the largest eigenvalue, whose number has this name."""
    return Analysis(partial(_top, operator), partial(_eigenvalue, measure), {"k": 1})


def metric(epsilon: float) -> Analysis:
    """Return the analysis of Metric 2.1 in full space."""
    return Analysis(
        partial(epsilon_sharpness, epsilon=epsilon, certificate=False, **STARTS),
        partial(_metric, short(epsilon)),
        {"epsilon": epsilon, **STARTS},
    )


def subspace_metric(epsilon: float) -> Analysis:
    """Return the analysis of Metric 2.1 in random subspaces, of at most all dimensions."""
    return Analysis(
        partial(_in_subspaces, epsilon=epsilon),
        partial(_subspace_metric, short(epsilon)),
        {"epsilon": epsilon, "dimension": DIMENSION, **STARTS},
    )


def _top(operator: type[Curvature], objective: Objective, *, seed: int = 0) -> Eigenpairs:
    return eigsh(operator(objective), 1, seed=seed)


def _in_subspaces(objective: Objective, *, epsilon: float, seed: int = 0) -> SubspaceSharpness:
    p = min(DIMENSION, len(objective.theta))
    return subspace_sharpness(objective, epsilon=epsilon, dimension=p, seed=seed, **STARTS)


def _eigenvalue(measure: str, pairs: Eigenpairs) -> dict[str, float]:
    # An eigenvalue that did not converge is a lower bound, which no ratio can be told of.
    return {measure: float(pairs.values[0]) if pairs.converged[0] else math.nan}


def _metric(epsilon: str, found: Sharpness) -> dict[str, float]:
    return {
        f"metric_2_1_{epsilon}": found.value,
        f"first_order_share_{epsilon}": found.first_order_share,
    }


def _subspace_metric(epsilon: str, found: SubspaceSharpness) -> dict[str, float]:
    return {f"subspace_2_1_{epsilon}": found.value}


# In the order of tables; the names are those of files beside the run.
ANALYSES = {
    "lambda-1": top_eigenvalue(Hessian, "lambda_1"),
    "adaptive-lambda-1": top_eigenvalue(AdaptiveHessian, "adaptive_lambda_1"),
    **{f"metric-2-1-{short(epsilon)}": metric(epsilon) for epsilon in EPSILONS},
    **{f"subspace-2-1-{short(epsilon)}": subspace_metric(epsilon) for epsilon in EPSILONS},
}


def run_numbers(run: Run, objectives: Mapping[str, Objective] | None = None) -> dict[str, float]:
    """Return what is compared of a run itself, by name; accuracies in percent.

    Both generalization gaps of a run of its own are here: of the accuracy, train - test in points,
    and of the loss, test - train. What a run does not know is NaN.

    Args:
        objectives: By the part of the data, ``train`` and ``test``: where the run has no history
            of its own, as one from a checkpoint.

    Raises:
        ComputationError: If a loss that is computed is not finite.

    >>> from sharpness.training import TrainConfig, train
    >>> found = run_numbers(train(TrainConfig(updates=1)))
    >>> found["updates"], found["loss_gap"] == found["test_loss"] - found["train_loss"]
    (1.0, True)
    """
    found = {}
    for part in ("train", "test"):
        if objectives is not None:
            f = objectives[part]
            measured = f.evaluate(run.end)
            require_finite(f, f"{part} part", run.end, *measured.values())
            found[f"{part}_loss"] = float(measured["loss"])
            if "accuracy" in measured:
                found[f"{part}_accuracy"] = 100 * float(measured["accuracy"])
            continue
        found[f"{part}_loss"] = float(run.history[f"{part}_loss"][-1])
        if f"{part}_right" in run.history:
            total = run.spec["data"][f"{part}_examples"]
            found[f"{part}_accuracy"] = 100 * int(run.history[f"{part}_right"][-1]) / total
    found["loss_gap"] = found["test_loss"] - found["train_loss"]
    if "test_accuracy" in found:
        found["accuracy_gap"] = found["train_accuracy"] - found["test_accuracy"]
    if run.start is None:
        return found | {"distance": math.nan, "updates": math.nan, "examples": math.nan}
    way = run.end.theta.double() - run.start.theta.double()
    return found | {
        "distance": float(way.norm()),
        "updates": float(run.updates),
        "examples": float(run.history["examples"][-1]),
    }
