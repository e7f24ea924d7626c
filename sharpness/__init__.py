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
    from sharpness.box_sharpness import (
        epsilon_sharpness as epsilon_sharpness,
        subspace_sharpness as subspace_sharpness,
    )
    from sharpness.by_batch import batch_eigenvalues as batch_eigenvalues
    from sharpness.by_class import class_structure as class_structure
    from sharpness.by_layer import layers as layers
    from sharpness.comparison import (
        compare as compare,
        compared as compared,
        paired_difference as paired_difference,
        paired_ratio as paired_ratio,
    )
    from sharpness.curvature import (
        AdaptiveHessian as AdaptiveHessian,
        Dense as Dense,
        GaussNewton as GaussNewton,
        Hessian as Hessian,
        to_scipy as to_scipy,
    )
    from sharpness.cuts import cut as cut
    from sharpness.ensembles import train_all as train_all
    from sharpness.errors import (
        ComputationError as ComputationError,
        InputError as InputError,
        OutOfMemoryError as OutOfMemoryError,
    )
    from sharpness.fisher import EmpiricalFisher as EmpiricalFisher, Fisher as Fisher
    from sharpness.gemm import fast_gemm as fast_gemm
    from sharpness.invariances import invariance as invariance
    from sharpness.journal import Journal as Journal
    from sharpness.lanczos import eigsh as eigsh
    from sharpness.landscape import line as line
    from sharpness.measures import measure_all as measure_all
    from sharpness.micro_batches import halving as halving
    from sharpness.objective import Objective as Objective, accuracy as accuracy
    from sharpness.operators import (
        Block as Block,
        Scaled as Scaled,
        Sum as Sum,
        WeightDecayed as WeightDecayed,
    )
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
    from sharpness.store import load as load, save as save
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
    "convexity": "planes",
    "cut": "cuts",
    "epsilon_sharpness": "box_sharpness",
    "invariance": "invariances",
    "line": "landscape",
    "measure_all": "measures",
    "plane": "planes",
    "subspace_sharpness": "box_sharpness",
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
