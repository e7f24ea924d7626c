"""The import graph is the architecture: a module may use only lower layers."""

import ast
import subprocess
import sys
from inspect import isfunction, ismodule
from pathlib import Path

import pytest

import sharpness

LAYERS = [
    {
        "errors",
        "bars",
        "heap",
        "disk",
        "signals",
        "text",
        "intervals",
        "styles",
        "likelihoods",
        "ranges",
    },
    {"records", "profiles", "densities", "options"},
    {"reading_hdf5_child"},  # a process of its own, which knows nothing of ours
    {"results", "vectors", "distributed", "names", "gemm", "building"},
    {
        "unpickling",
        "labels",
        "augmentation",
        "synthetic",
        "symmetries",
        "models_images",
        "models_keskar",
        "transformers",
        "batch_norm",
        "plane_plots",
        "spectrum_plots",
        "layer_plots",
        "batch_plots",
        "class_plots",
        "measure_plots",
        "reading_torch",
        "reading_safetensors",
        "reading_hdf5",
    },
    {"reading"},
    {"data_files"},
    {
        "data",
        "models",
        "objective",
        "optimizers",
        "schedules",
        "store",
        "journal",
        "plots",
    },
    {"micro_batches", "finite", "logits", "apgd", "sampling", "methods", "averages", "specs"},
    {"problem", "curvature"},
    {"fisher"},
    {"operators", "training_config", "stopping"},
    {"probes", "rayleigh_ritz", "training_clock"},
    {"training", "lanczos"},
    {"quadrature", "ensembles"},
    {"spectrum", "directions", "by_class"},
    {"by_layer", "by_batch"},
    {"displaced"},
    {"grid"},
    {"landscape", "cuts", "planes", "paths"},
    {"boxes"},
    {"box_climbs", "box_certificates"},
    {"thresholds", "certificates"},
    {"box_sharpness", "perturbed", "noisy", "stability", "critical"},
    {"curvature_measures", "flatness", "norms"},
    {"bounds", "local_learning", "box_trends"},
    {"measures", "trajectory", "rebuilding", "checks"},
    {
        "invariances",
        "analyses",
        "recomputing_batches",
        "recomputing_classes",
    },
    {"comparison"},
    {"recomputing_layers", "recomputing_measures"},
    {"findings", "recomputing"},
    {"verification"},
]
# These see results, never a model.
LEAVES = {
    name: {"_version", "disk", "errors", "records", "results", "signals", "text"}
    for name in ("store", "journal", "plane_plots")
}
FORMATS = {"reading_torch", "reading_safetensors", "reading_hdf5"}
LEAVES |= {name: {"errors", "text"} for name in FORMATS}
LEAVES["reading"] = {"errors", "text"} | FORMATS
LEAVES["unpickling"] = {"errors", "text"}
LEAVES["data_files"] = {"errors", "text", "reading", "unpickling"}
LEAVES["reading_hdf5_child"] = set()
LEAVES["styles"] = set()
LEAVES["spectrum_plots"] = LEAVES["plane_plots"] | {"styles"}
LEAVES["layer_plots"] = LEAVES["spectrum_plots"]
LEAVES["batch_plots"] = LEAVES["spectrum_plots"]
LEAVES["class_plots"] = LEAVES["spectrum_plots"]
LEAVES["measure_plots"] = LEAVES["spectrum_plots"]
PLOTS = {
    "plane_plots",
    "spectrum_plots",
    "layer_plots",
    "batch_plots",
    "class_plots",
    "measure_plots",
}
LEAVES["plots"] = LEAVES["spectrum_plots"] | PLOTS
# A package that is used here is used nowhere else.
HOMES = {
    "h5py": {"store", "reading_hdf5_child"},
    "safetensors": {"reading_safetensors"},
    "matplotlib": {"plots", "styles"} | PLOTS,
    "scipy.optimize": {"box_climbs"},
    "scipy.sparse": {"curvature"},
    "torch.distributed": {"distributed"},
}


def imports(source: str) -> set[str]:
    """Dotted names that a module of ``sharpness/`` imports, relative ones made absolute."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = ["sharpness"] * (node.level == 1) + ["."] * (node.level > 1)
            home = ".".join([*parts, *filter(None, [node.module])])
            names |= {f"{home}.{alias.name}" for alias in node.names}
    return names


def uses(source: str) -> set[str]:
    """The modules of the library in them; ``sharpness`` itself is what lies above all layers."""
    ours = [name.split(".") for name in imports(source)]
    return {part[1] if len(part) > 1 else part[0] for part in ours if part[0] == "sharpness"}


SOURCES = {path.stem: path.read_text() for path in Path("sharpness").glob("[!_]*.py")}


def test_modules_import_only_lower_layers() -> None:
    rank = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    assert SOURCES.keys() <= rank.keys(), "a new module must be given a layer"
    for module, source in SOURCES.items():
        below = uses(source) - {"_version"}  # a literal
        above = {used for used in below if rank.get(used, len(LAYERS)) >= rank[module]}
        assert not above, (module, above)
        assert uses(source) <= LEAVES.get(module, {*rank, "_version"}), module


@pytest.mark.parametrize("package", HOMES)
def test_each_heavy_package_has_one_home(package: str) -> None:
    users = {
        m for m, s in SOURCES.items() for name in imports(s) if f"{name}.".startswith(f"{package}.")
    }
    assert users <= HOMES[package]


@pytest.mark.parametrize(
    ("source", "used"),
    [
        ("import sharpness.store", {"store"}),
        ("from sharpness import store", {"store"}),
        ("from sharpness.store import save", {"store"}),
        ("from . import store", {"store"}),
        ("from .store import save", {"store"}),
        ("import sharpness as sh", {"sharpness"}),
        ("from sharpness import eigsh", {"eigsh"}),
        ("def f():\n    from .cli import main", {"cli"}),
        ("import torch", set()),
    ],
)
def test_every_form_of_import_is_seen(source: str, used: set[str]) -> None:
    assert uses(source) == used


def test_the_package_and_its_names_wait_for_their_first_use() -> None:
    code = "import sharpness, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    for name in dir(sharpness):
        value = getattr(sharpness, name)
        if name == "__version__":
            continue
        assert getattr(value, "__name__", name).split(".")[-1] == name  # a dict has none


def test_no_public_name_is_also_the_name_of_a_module() -> None:
    # Once imported, the module would take the place of the function.
    modules = {name for name in dir(sharpness) if ismodule(getattr(sharpness, name))}
    assert SOURCES.keys() & set(dir(sharpness)) == modules


@pytest.mark.parametrize("name", sorted(sharpness.HOMES))
def test_every_public_name_says_what_it_is_and_shows_it(name: str) -> None:
    doc = getattr(sharpness, name).__doc__
    assert doc
    assert ">>> " in doc  # pytest runs them


def test_every_figure_says_what_it_draws() -> None:
    functions = [
        value
        for key, value in vars(sharpness.plots).items()
        if isfunction(value) and value.__module__ == "sharpness.plots" and key[0] != "_"
    ]
    assert len(functions) > 10
    assert all(function.__doc__ for function in functions)
