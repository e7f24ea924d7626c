"""Which measure survives which change of the weights is what theory says, on nets of each kind."""

import inspect
import re
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from sharpness.invariances import invariance
from sharpness.measures import MEASURES, TABLE
from sharpness.problem import objective_of
from sharpness.results import Invariance
from sharpness.training import TrainConfig, cpu_threads, train

sys.path.insert(0, str(Path(__file__).parent))
from nets import posed

L, N, P = "layer-wise scaling", "neuron-wise scaling", "permutation of neurons"
B, GL = "filter scaling before BatchNorm", "GL(d_head) of attention"
OH, S = "orthogonal maps of heads", "logit shift"
ALL = {L, N, P, B, GL, OH, S}
PLAIN, RELATIVE = {P, OH, S}, {L, N, P, B}
# By the name in the table of all measures: what leaves it as it is.
SURVIVES = {
    **dict.fromkeys(("lambda-1", "trace", "frobenius", "lambda-ratio"), PLAIN),
    **dict.fromkeys(("worst-l2", "average", "sam", "critical-sharpness"), PLAIN),
    **dict.fromkeys(("adaptive-lambda-1", "adaptive-trace", "adaptive-frobenius"), RELATIVE),
    **dict.fromkeys(("adaptive-worst-l2", "adaptive-worst-linf"), RELATIVE),
    **dict.fromkeys(("adaptive-average", "asam"), RELATIVE),
    "worst-linf": {P, S},
    "epsilon-sharpness": {P},
    "relative-flatness": ALL - {N},  # of the last layer
    "fisher-rao": ALL,
    "weight-norm": {P, OH},
    "path-norm": {L, N, P},
    "batch-sharpness": PLAIN,
    "batch-sharpness-of-8": PLAIN,
    "preconditioned-sharpness": {P, S},
    "critical-sharpness-of-update": {P, S},
    "distance-from-start": {P, OH, S},
}
NETS = {"relu": (L, N, P, S), "batch norm": (B,), "attention": (GL, OH)}
# Those that are too small to be told from their accuracy on so small a net.
FAINT = {
    ("average", B),
    ("adaptive-average", B),
    *((name, x) for name in ("epsilon-sharpness", "worst-linf") for x in (B, OH)),
    *(
        (name, x)
        for name in ("trace", "average", "adaptive-average", "adaptive-trace")
        for x in (GL, OH)
    ),
}
RUNS = {  # what needs a run, or whose cost is large
    *("batch-sharpness", "batch-sharpness-of-8", "preconditioned-sharpness"),
    *("critical-sharpness-of-update", "distance-from-start"),
}


@cache
def found_on(net: str) -> Invariance:
    torch.manual_seed(0)
    skipped = RUNS | ({"path-norm", "epsilon-sharpness"} if net != "relu" else set())
    with cpu_threads(1):
        return invariance(posed(net), only=[name for name in SURVIVES if name not in skipped])


CELLS = [
    (net, name, title)
    for net, titles in NETS.items()
    for name in SURVIVES
    for title in titles
    if name not in RUNS and not (name in ("path-norm", "epsilon-sharpness") and net != "relu")
    if title in SURVIVES[name] or (name, title) not in FAINT
]


@pytest.mark.parametrize(("net", "name", "title"), CELLS)
def test_measures_survive_what_theory_says(net: str, name: str, title: str) -> None:
    found = found_on(net)
    i, j = found.measures.index(name), found.symmetries.index(title)
    told = (float(found.before[i]), float(found.after[i, j]))
    assert bool(found.moved[i, j]) != (title in SURVIVES[name]), told


@cache
def of_a_run(optimizer: str) -> Invariance:
    options = {"widths": [6, 5]}
    with cpu_threads(1):
        config = TrainConfig(
            model_options=options, optimizer=optimizer, batch_size=50, updates=12, dtype="float64"
        )
        run = train(replace(config, threads=1, learning_rate=0.01))
        return invariance(objective_of(run), run, only=sorted(RUNS))


@pytest.mark.parametrize("title", [L, N, P, S])
@pytest.mark.parametrize("name", sorted(RUNS))
def test_measures_of_a_run_survive_what_theory_says(name: str, title: str) -> None:
    found = of_a_run("rmsprop")
    i, j = found.measures.index(name), found.symmetries.index(title)
    told = (float(found.before[i]), float(found.after[i, j]))
    assert bool(found.moved[i, j]) != (title in SURVIVES[name]), told


# ---- the sentences in the documentation --------------------------------------------------------

WORDS = {
    "layer-wise scaling": L,
    "neuron-wise scaling": N,
    "permutation of neurons": P,
    "filter scaling before BatchNorm": B,
    "GL(d_head) of attention": GL,
    "orthogonal maps of attention heads": OH,
    "logit shift": S,
}


def said(name: str) -> set[str]:
    """What the documentation of a measure says that it is invariant to, at its default options."""
    doc = " ".join((inspect.getdoc(MEASURES[name]) or "").split())
    (sentence,) = re.findall(r"(?:^|\. )Invariant to (.*?)\.(?: |$)", doc)
    return {title for words, title in WORDS.items() if words in sentence}


USUAL = {
    entry.measure: SURVIVES[name]
    for name, entry in TABLE.items()
    if not entry.options and name in SURVIVES
}


@pytest.mark.parametrize("name", USUAL)
def test_the_documentation_says_what_a_measure_is_invariant_to(name: str) -> None:
    assert said(name) == USUAL[name]
