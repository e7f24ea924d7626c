"""The measures of sharpness by name: each a function of an Objective and a point."""

from collections.abc import Callable

from sharpness.box_sharpness import epsilon_sharpness
from sharpness.results import Sharpness

MEASURES: dict[str, Callable[..., Sharpness]] = {"epsilon-sharpness": epsilon_sharpness}
