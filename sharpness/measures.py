"""The measures of sharpness by name: each a function of an Objective and a point."""

from collections.abc import Callable

from sharpness.bounds import pac_bayes
from sharpness.box_sharpness import epsilon_sharpness, subspace_sharpness
from sharpness.flatness import fisher_rao, relative_flatness
from sharpness.local_learning import learning_coefficient
from sharpness.norms import distance_from_start, path_norm, weight_norm
from sharpness.results import Measured, Sharpness, SubspaceSharpness

MEASURES: dict[str, Callable[..., Measured | Sharpness | SubspaceSharpness]] = {
    "epsilon-sharpness": epsilon_sharpness,
    "subspace-sharpness": subspace_sharpness,
    "relative-flatness": relative_flatness,
    "fisher-rao": fisher_rao,
    "weight-norm": weight_norm,
    "path-norm": path_norm,
    "distance-from-start": distance_from_start,
    "pac-bayes": pac_bayes,
    "learning-coefficient": learning_coefficient,
}
