"""The measures of sharpness by name: each a function of an Objective and a point."""

from collections.abc import Callable

from sharpness.box_sharpness import epsilon_sharpness, subspace_sharpness
from sharpness.noisy import average_case
from sharpness.perturbed import sam, worst_case
from sharpness.results import Measured, Sharpness, SubspaceSharpness

MEASURES: dict[str, Callable[..., Measured | Sharpness | SubspaceSharpness]] = {
    "epsilon-sharpness": epsilon_sharpness,
    "subspace-sharpness": subspace_sharpness,
    "worst-case": worst_case,
    "average-case": average_case,
    "sam": sam,
}
