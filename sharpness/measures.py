"""The measures of sharpness by name: each a function of an Objective and a point."""

from collections.abc import Callable

from sharpness.box_sharpness import epsilon_sharpness, subspace_sharpness
from sharpness.critical import critical_sharpness
from sharpness.curvature_measures import (
    eigenvalue_ratio,
    hessian_frobenius,
    hessian_trace,
    largest_eigenvalue,
)
from sharpness.results import Measured, Sharpness, SubspaceSharpness
from sharpness.stability import batch_sharpness, preconditioned_sharpness

MEASURES: dict[str, Callable[..., Sharpness | SubspaceSharpness | Measured]] = {
    "epsilon-sharpness": epsilon_sharpness,
    "subspace-sharpness": subspace_sharpness,
    "batch-sharpness": batch_sharpness,
    "preconditioned-sharpness": preconditioned_sharpness,
    "critical-sharpness": critical_sharpness,
    "lambda-1": largest_eigenvalue,
    "trace": hessian_trace,
    "frobenius": hessian_frobenius,
    "lambda-ratio": eigenvalue_ratio,
}
