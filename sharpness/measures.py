"""The measures of sharpness by name, each a function of an Objective and a point, and all of them.

A measure takes ``(objective, point)`` and keyword options; one that depends on how a solution was
trained takes its ``run`` too.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sharpness.bounds import pac_bayes
from sharpness.box_sharpness import epsilon_sharpness, subspace_sharpness
from sharpness.box_trends import epsilon_trend
from sharpness.critical import critical_sharpness
from sharpness.curvature_measures import (
    eigenvalue_ratio,
    hessian_frobenius,
    hessian_trace,
    largest_eigenvalue,
)
from sharpness.errors import ComputationError, InputError, OutOfMemoryError
from sharpness.flatness import fisher_rao, relative_flatness
from sharpness.local_learning import learning_coefficient
from sharpness.noisy import average_case
from sharpness.norms import distance_from_start, path_norm, weight_norm
from sharpness.objective import Objective
from sharpness.perturbed import sam, worst_case
from sharpness.results import (
    EpsilonTrend,
    Measured,
    Result,
    Run,
    Sharpness,
    Solution,
    SubspaceSharpness,
)
from sharpness.stability import batch_sharpness, preconditioned_sharpness

# A result with a value, or one for each epsilon, and what certifies it.
Number = Measured | Sharpness | SubspaceSharpness | EpsilonTrend
COSTS = ("gradients", "products", "forwards")

MEASURES: dict[str, Callable[..., Number]] = {
    "epsilon-sharpness": epsilon_sharpness,
    "subspace-sharpness": subspace_sharpness,
    "relative-flatness": relative_flatness,
    "fisher-rao": fisher_rao,
    "worst-case": worst_case,
    "average-case": average_case,
    "sam": sam,
    "batch-sharpness": batch_sharpness,
    "preconditioned-sharpness": preconditioned_sharpness,
    "critical-sharpness": critical_sharpness,
    "lambda-1": largest_eigenvalue,
    "trace": hessian_trace,
    "frobenius": hessian_frobenius,
    "lambda-ratio": eigenvalue_ratio,
    "weight-norm": weight_norm,
    "path-norm": path_norm,
    "distance-from-start": distance_from_start,
    "pac-bayes": pac_bayes,
    "learning-coefficient": learning_coefficient,
    "epsilon-trend": epsilon_trend,
}


@dataclass(frozen=True)
class Entry:
    """A line of the table of all measures: a measure and how its options differ from the usual."""

    measure: str
    options: Mapping[str, Any]


# In the order of the table.
TABLE: dict[str, Entry] = {
    "lambda-1": Entry("lambda-1", {}),
    "adaptive-lambda-1": Entry("lambda-1", {"scaled": True}),
    "trace": Entry("trace", {}),
    "adaptive-trace": Entry("trace", {"scaled": True}),
    "frobenius": Entry("frobenius", {}),
    "adaptive-frobenius": Entry("frobenius", {"scaled": True}),
    "lambda-ratio": Entry("lambda-ratio", {}),
    "epsilon-sharpness": Entry("epsilon-sharpness", {}),
    "subspace-sharpness": Entry("subspace-sharpness", {}),
    "worst-l2": Entry("worst-case", {}),
    "worst-linf": Entry("worst-case", {"norm": "linf", "rho": 1e-3}),
    "adaptive-worst-l2": Entry("worst-case", {"adaptive": True, "rho": 0.5}),
    "adaptive-worst-linf": Entry("worst-case", {"adaptive": True, "norm": "linf", "rho": 2e-3}),
    "average": Entry("average-case", {}),
    "adaptive-average": Entry("average-case", {"adaptive": True, "sigma": 0.1}),
    "sam": Entry("sam", {}),
    "asam": Entry("sam", {"adaptive": True, "rho": 0.5}),
    "batch-sharpness": Entry("batch-sharpness", {}),
    "batch-sharpness-of-8": Entry("batch-sharpness", {"batch_size": 8}),
    "preconditioned-sharpness": Entry("preconditioned-sharpness", {}),
    "critical-sharpness": Entry("critical-sharpness", {}),
    "critical-sharpness-of-update": Entry("critical-sharpness", {"direction": "update"}),
    "relative-flatness": Entry("relative-flatness", {}),
    "fisher-rao": Entry("fisher-rao", {}),
    "weight-norm": Entry("weight-norm", {}),
    "path-norm": Entry("path-norm", {}),
    "distance-from-start": Entry("distance-from-start", {}),
    "pac-bayes": Entry("pac-bayes", {}),
    "magnitude-pac-bayes": Entry("pac-bayes", {"magnitude_aware": True}),
    "learning-coefficient": Entry(
        "learning-coefficient", {"batch_size": 60, "burn_in": 100, "draws": 200}
    ),
}


@dataclass(frozen=True)
class Row:
    """What the table tells of one measure."""

    name: str
    value: float  # NaN where it is undefined or could not be computed, as the words say
    low: float = math.nan  # of the 95 % interval, or a certain bound; NaN unknown
    high: float = math.nan
    threshold: float = math.nan  # of the run's own optimizer; NaN where there is none
    converged: bool = True
    words: str = ""  # what certifies the value, or why there is none
    gradients: float = 0.0  # passes over all the examples, of each kind:
    products: float = 0.0  # curvature times vector
    forwards: float = 0.0

    @property
    def told(self) -> str:
        """The value with its bounds, in words."""
        if math.isnan(self.value):
            return "undefined"
        text, low, high = (f"{x:.4g}" for x in (self.value, self.low, self.high))
        if math.isnan(self.high) and self.low == self.value:
            text = f">= {text}"
        elif not math.isnan(self.low) and (low, high) != (text, text):
            text += f" [{low}, {'unknown' if math.isnan(self.high) else high}]"
        return text if self.converged else f"{text} (not converged)"


def measured(
    name: str,
    objective: Objective,
    point: Solution | torch.Tensor | None = None,
    *,
    run: Run | None = None,
    seed: int = 0,
    progress: Callable[[int, int | None, str], None] | None = None,
    **options: Any,
) -> Number:
    """Return a measure by its name, given of point, run, seed and progress what it takes.

    Args:
        name: One of ``MEASURES``.
        point: Where. Default: the end of the run, or the model as it came.
        run: Whose start, state of the optimizer, rate and batch size are meant.
        options: Of the measure.

    Raises:
        InputError: If there is no such measure, or it needs what is not there.

    >>> model = torch.nn.Linear(1, 1, bias=False).double()
    >>> batches = [(torch.ones(1, 1).double(), torch.zeros(1, 1).double())]
    >>> f = Objective(model, batches, torch.nn.functional.mse_loss)
    >>> found = measured("epsilon-sharpness", f, torch.zeros(1).double(), epsilon=0.1)
    >>> round(found.value, 9)
    1.0
    """
    if name not in MEASURES:
        raise InputError(f"measure needs to be one of {', '.join(MEASURES)}, got {name!r}")
    function = MEASURES[name]
    if point is None and run is not None:
        point = run.end
    shared = {"point": point, "run": run, "seed": seed, "progress": progress}
    taken = inspect.signature(function).parameters
    return function(objective, **{k: x for k, x in shared.items() if k in taken}, **options)


def measure_all(
    objective: Objective,
    run: Run | None = None,
    *,
    point: Solution | torch.Tensor | None = None,
    only: Iterable[str] | None = None,
    seed: int = 0,
    progress: Callable[[int, int | None, str], None] | None = None,
) -> dict[str, Number | str]:
    """Return all measures at the end of a run by name, or in a sentence why one is not there.

    Args:
        point: Where there is no run. Default: the model as it came.
        only: Names of ``TABLE``. Default: all.
        progress: Called after each.

    Raises:
        InputError: If there is no such name.

    >>> model = torch.nn.Linear(1, 1, bias=False).double()
    >>> batches = [(torch.ones(1, 1).double(), torch.zeros(1, 1).double())]
    >>> f = Objective(model, batches, torch.nn.functional.mse_loss)
    >>> [row(*x).name for x in measure_all(f, only=["epsilon-sharpness"]).items()]
    ['epsilon-sharpness']
    """
    names = chosen(only)
    found: dict[str, Number | str] = {}
    for done, name in enumerate(names, start=1):
        entry = TABLE[name]
        try:
            found[name] = measured(
                entry.measure, objective, point, run=run, seed=seed, **entry.options
            )
        except OutOfMemoryError:
            raise
        except (InputError, ComputationError) as error:  # it is no measure of such a model
            found[name] = str(error)
        if progress:
            progress(done, len(names), name)
    return found


def chosen(only: Iterable[str] | None = None) -> list[str]:
    """Return names of the table, in its order.

    Raises:
        InputError: If there is no such name, or none.
    """
    names = list(TABLE) if only is None else list(only)
    unknown = [name for name in names if name not in TABLE]
    if unknown or not names:
        raise InputError(
            f"measures need to be of {', '.join(TABLE)}, got {', '.join(unknown) or 'none'}"
        )
    return [name for name in TABLE if name in names]


def row(name: str, found: Result | str) -> Row:
    """Return the line of a table that a measure has, or what is there instead of it.

    Raises:
        InputError: If the result is none of a measure.

    >>> row("sam", "sam needs a gradient, got none").told
    'undefined'
    """
    if isinstance(found, str):
        return Row(name, math.nan, words=found)
    if isinstance(found, Measured):
        low, high = found.interval.tolist()
        costs = {key: getattr(found, key) for key in COSTS}
        told = {key: getattr(found, key) for key in ("threshold", "converged", "words")}
        return Row(name, found.value, low, high, **told, **costs)
    costs = {key: float(getattr(found, key, 0)) for key in COSTS}
    if isinstance(found, Sharpness):
        words = f"the best of {len(found.start_values)} starts, which no maximum is below"
        if not math.isnan(found.ceiling):
            words += f"; the ceiling of the quadratic model is {found.ceiling:.4g}"
        words += f"; {found.why}" if found.why else ""
        return Row(name, found.value, found.value, words=words, **costs)
    if isinstance(found, SubspaceSharpness):
        low, high = found.interval.tolist()
        words = f"the mean over {len(found.draw_values)} draws of the subspace"
        return Row(name, found.value, low, high, words=words, **costs)
    raise InputError(f"a table of measures needs numbers, got a {type(found).__name__}")
