"""Sharpness of minima: curvature, landscapes and what they say about generalization.

The names below are imported at their first use (PEP 562), so ``import sharpness`` and
``sharpness --help`` do not wait for torch.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sharpness._version import __version__ as __version__

if TYPE_CHECKING:
    from sharpness import directions as directions, plots as plots
    from sharpness.analyses import run_numbers as run_numbers
    from sharpness.bars import progress as progress
    from sharpness.bounds import pac_bayes as pac_bayes
    from sharpness.box_sharpness import (
        epsilon_sharpness as epsilon_sharpness,
        subspace_sharpness as subspace_sharpness,
    )
    from sharpness.box_trends import epsilon_trend as epsilon_trend
    from sharpness.by_batch import batch_eigenvalues as batch_eigenvalues
    from sharpness.by_class import class_structure as class_structure
    from sharpness.by_layer import layers as layers
    from sharpness.comparison import (
        compare as compare,
        compared as compared,
        paired_difference as paired_difference,
        paired_ratio as paired_ratio,
    )
    from sharpness.critical import critical_sharpness as critical_sharpness
    from sharpness.curvature import (
        AdaptiveHessian as AdaptiveHessian,
        Dense as Dense,
        GaussNewton as GaussNewton,
        Hessian as Hessian,
        to_scipy as to_scipy,
    )
    from sharpness.curvature_measures import (
        eigenvalue_ratio as eigenvalue_ratio,
        hessian_frobenius as hessian_frobenius,
        hessian_trace as hessian_trace,
        largest_eigenvalue as largest_eigenvalue,
    )
    from sharpness.cuts import cut as cut
    from sharpness.ensembles import train_all as train_all
    from sharpness.errors import (
        ComputationError as ComputationError,
        InputError as InputError,
        OutOfMemoryError as OutOfMemoryError,
    )
    from sharpness.fisher import EmpiricalFisher as EmpiricalFisher, Fisher as Fisher
    from sharpness.flatness import (
        fisher_rao as fisher_rao,
        relative_flatness as relative_flatness,
    )
    from sharpness.gemm import fast_gemm as fast_gemm
    from sharpness.invariances import invariance as invariance
    from sharpness.journal import Journal as Journal
    from sharpness.lanczos import eigsh as eigsh
    from sharpness.landscape import line as line
    from sharpness.local_learning import learning_coefficient as learning_coefficient
    from sharpness.logits import normalized_logits as normalized_logits
    from sharpness.measures import measure_all as measure_all
    from sharpness.micro_batches import halving as halving
    from sharpness.noisy import average_case as average_case
    from sharpness.norms import (
        distance_from_start as distance_from_start,
        path_norm as path_norm,
        weight_norm as weight_norm,
    )
    from sharpness.objective import Objective as Objective, accuracy as accuracy
    from sharpness.operators import (
        Block as Block,
        Scaled as Scaled,
        Sum as Sum,
        WeightDecayed as WeightDecayed,
    )
    from sharpness.perturbed import sam as sam, worst_case as worst_case
    from sharpness.planes import convexity as convexity, plane as plane
    from sharpness.problem import (
        objective_of as objective_of,
        read as read,
        solution as solution,
    )
    from sharpness.results import (
        BatchEigenvalues as BatchEigenvalues,
        ClassStructure as ClassStructure,
        Comparison as Comparison,
        Convexity as Convexity,
        Cut as Cut,
        Density as Density,
        Diagonal as Diagonal,
        Eigenpairs as Eigenpairs,
        EpsilonTrend as EpsilonTrend,
        Estimate as Estimate,
        Invariance as Invariance,
        Layers as Layers,
        Line as Line,
        Measured as Measured,
        Plane as Plane,
        Run as Run,
        Sharpness as Sharpness,
        Solution as Solution,
        SubspaceSharpness as SubspaceSharpness,
        Trajectory as Trajectory,
    )
    from sharpness.spectrum import (
        density as density,
        diagonal as diagonal,
        frobenius as frobenius,
        trace as trace,
    )
    from sharpness.stability import (
        batch_sharpness as batch_sharpness,
        preconditioned_sharpness as preconditioned_sharpness,
    )
    from sharpness.store import load as load, save as save
    from sharpness.thresholds import stability_threshold as stability_threshold
    from sharpness.training import TrainConfig as TrainConfig, train as train
    from sharpness.trajectory import along_training as along_training
    from sharpness.verification import Verification as Verification, verify as verify

logging.getLogger("sharpness").addHandler(logging.NullHandler())

HOMES = {
    "ComputationError": "errors",
    "InputError": "errors",
    "OutOfMemoryError": "errors",
    # a model, its data and its loss
    "Objective": "objective",
    "accuracy": "objective",
    "fast_gemm": "gemm",
    "halving": "micro_batches",
    "normalized_logits": "logits",
    "objective_of": "problem",
    "read": "problem",
    "solution": "problem",
    # trainings
    "TrainConfig": "training",
    "train": "training",
    "train_all": "ensembles",
    # curvature
    "AdaptiveHessian": "curvature",
    "Block": "operators",
    "Dense": "curvature",
    "EmpiricalFisher": "fisher",
    "Fisher": "fisher",
    "GaussNewton": "curvature",
    "Hessian": "curvature",
    "Scaled": "operators",
    "class_structure": "by_class",
    "Sum": "operators",
    "WeightDecayed": "operators",
    "batch_eigenvalues": "by_batch",
    "density": "spectrum",
    "diagonal": "spectrum",
    "eigsh": "lanczos",
    "frobenius": "spectrum",
    "layers": "by_layer",
    "trace": "spectrum",
    "to_scipy": "curvature",
    # landscapes and sharpness
    "along_training": "trajectory",
    "average_case": "noisy",
    "batch_sharpness": "stability",
    "convexity": "planes",
    "critical_sharpness": "critical",
    "cut": "cuts",
    "distance_from_start": "norms",
    "eigenvalue_ratio": "curvature_measures",
    "epsilon_sharpness": "box_sharpness",
    "fisher_rao": "flatness",
    "hessian_frobenius": "curvature_measures",
    "hessian_trace": "curvature_measures",
    "invariance": "invariances",
    "largest_eigenvalue": "curvature_measures",
    "learning_coefficient": "local_learning",
    "epsilon_trend": "box_trends",
    "line": "landscape",
    "measure_all": "measures",
    "pac_bayes": "bounds",
    "path_norm": "norms",
    "plane": "planes",
    "preconditioned_sharpness": "stability",
    "relative_flatness": "flatness",
    "sam": "perturbed",
    "stability_threshold": "thresholds",
    "subspace_sharpness": "box_sharpness",
    "weight_norm": "norms",
    "worst_case": "perturbed",
    # comparisons
    "compare": "comparison",
    "compared": "comparison",
    "paired_difference": "comparison",
    "paired_ratio": "comparison",
    "run_numbers": "analyses",
    # results and files
    "BatchEigenvalues": "results",
    "ClassStructure": "results",
    "Comparison": "results",
    "Journal": "journal",
    "Convexity": "results",
    "Cut": "results",
    "Density": "results",
    "Diagonal": "results",
    "Eigenpairs": "results",
    "EpsilonTrend": "results",
    "Estimate": "results",
    "Invariance": "results",
    "Layers": "results",
    "Line": "results",
    "Measured": "results",
    "Plane": "results",
    "Run": "results",
    "Sharpness": "results",
    "Solution": "results",
    "SubspaceSharpness": "results",
    "Trajectory": "results",
    "Verification": "verification",
    "load": "store",
    "progress": "bars",
    "save": "store",
    "verify": "verification",
}
MODULES = ("directions", "plots")


def __getattr__(name: str) -> Any:
    if name in MODULES:
        return import_module(f"sharpness.{name}")
    if name not in HOMES:
        raise AttributeError(f"module 'sharpness' has no attribute {name!r}")
    return getattr(import_module(f"sharpness.{HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*HOMES, *MODULES, "__version__"])
