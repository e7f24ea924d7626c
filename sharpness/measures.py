"""The measures of sharpness by name: each a function of an Objective and a point."""

from collections.abc import Callable

from sharpness.box_sharpness import epsilon_sharpness, subspace_sharpness
from sharpness.results import Sharpness, SubspaceSharpness

MEASURES: dict[str, Callable[..., Sharpness | SubspaceSharpness]] = {
    "epsilon-sharpness": epsilon_sharpness,
    "subspace-sharpness": subspace_sharpness,
}
