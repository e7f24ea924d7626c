"""Every network by name trains, has a Hessian, and is refused in one line where it cannot be."""

import inspect
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from sharpness.batch_norm import layers
from sharpness.building import ACTIVATIONS, INITIALIZATIONS
from sharpness.curvature import Hessian
from sharpness.data import batches, digits
from sharpness.lanczos import eigsh
from sharpness.landscape import line
from sharpness.models import MODELS
from sharpness.objective import Objective
from sharpness.problem import Problem, objective_of, pose, solution
from sharpness.store import load
from sharpness.symmetries import SYMMETRIES
from sharpness.training import TrainConfig, cpu_threads, train

N = 7  # examples, split into batches of 4 and 3
# Options that make a network small, where it has some; F1 to C4 have their sizes.
TINY: dict[str, dict[str, Any]] = {
    "mlp": {"widths": [6], "batch_norm": True, "activation": "gelu"},
    "cnn": {"channels": [2], "activation": "softplus"},
    "softmax": {},
    "deep-linear": {"depth": 3, "width": 4},
    "two-layer": {"width": 6, "scaling": "ntk", "activation": "tanh"},
    "vgg": {"stages": [[2, 2], [3]], "activation": "elu", "widths": [4]},
    "resnet": {"width": 2, "activation": "softplus"},
    "transformer": {"width": 4, "heads": 2, "depth": 1},
}
LARGE = ("c2", "c4")  # 15 million parameters


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small networks only wait for a second one."""
    with cpu_threads(1):
        yield


def few() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    (inputs, targets), _ = digits()
    return (inputs[:20], targets[:20]), (inputs[20:30], targets[20:30])


def problem(name: str, dtype: str = "float64") -> Problem:
    return pose(name, few, "cross_entropy", model_options=TINY.get(name, {}), dtype=dtype)


def objective(posed: Problem, batch: int) -> Objective:
    inputs, targets = posed.data.train
    parts = batches((inputs[:N], targets[:N]), batch)
    return Objective(posed.model, parts, posed.loss)


def test_the_page_has_every_network_with_its_parameters_and_options() -> None:
    page = Path("docs/howto/models.md").read_text(encoding="utf-8")
    rows = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("| `")]
    cells = [[re.findall(r"`([^`]+)`", row[0]), *map(str.strip, row[1:])] for row in rows]
    sizes = {name: int(c[2].replace(",", "")) for c in cells if len(c) == 4 for name in c[0]}
    options = {name: re.findall(r"`(\w+)`", c[1]) for c in cells if len(c) == 2 for name in c[0]}
    for name, build in MODELS.items():
        with torch.device("meta"):
            model = build([64], 10)
        assert sizes.pop(name) == sum(p.numel() for p in model.parameters())
        assert options.pop(name) == list(inspect.signature(build).parameters)[2:]
    drawn = [name for c in cells if len(c) == 3 for name in c[0]]
    assert drawn == list(INITIALIZATIONS)
    assert not sizes
    assert not options
    assert ", ".join(f"`{name}`" for name in list(ACTIVATIONS)[:-1]) in " ".join(page.split())


@pytest.mark.parametrize("name", MODELS)
def test_each_network_trains_on_the_digits(name: str) -> None:
    run = train(TrainConfig(model=name, data=few, updates=3, batch_size=8, threads=1))
    assert run.updates == 3
    assert bool((run.end.theta != run.start.theta).any())
    assert bool(torch.isfinite(run.end.theta).all())
    assert len(run.end.theta) == sum(p.numel() for p in MODELS[name]([64], 10).parameters())


@pytest.mark.parametrize("name", [name for name in MODELS if name not in LARGE])
def test_products_are_derivatives_of_the_gradient_however_the_data_are_split(name: str) -> None:
    posed = problem(name)
    f = objective(posed, N)
    theta = solution(posed.model).theta
    # Off the kinks: where biases are 0, what lies beside the digits has activations of exactly 0.
    theta += 0.01 * torch.randn(len(theta)).double()
    u, v = torch.randn(2, len(theta)).double()
    v /= v.norm()
    Hv = Hessian(f, theta) @ v
    step = 1e-6
    difference = (f.gradient(theta + step * v) - f.gradient(theta - step * v)) / (2 * step)
    size = Hv.norm()
    assert size > 0
    # Rounding of the gradient over the step, and the third derivative times its square.
    assert (difference - Hv).norm() < 1e-5 * size + 1e-8
    assert abs(u @ Hv - v @ (Hessian(f, theta) @ u)) < 1e-10 * size * u.norm()
    torch.testing.assert_close(
        Hessian(objective(posed, 4), theta) @ v, Hv, rtol=0, atol=1e-12 * size
    )


@pytest.mark.parametrize("name", TINY)
def test_the_largest_eigenvalue_of_a_small_one_converges(name: str) -> None:
    pairs = eigsh(Hessian(objective(problem(name), 4)), k=1, seed=0)
    assert bool(pairs.converged.all())
    assert float(pairs.values[0]) > 0


@pytest.mark.parametrize(
    ("name", "kind", "options", "count"),
    [
        ("two-layer", "neuron-wise scaling", {"scaling": "ntk", "bias": False}, 1),
        ("resnet", "neuron-wise scaling", {}, 3),  # inside of each block
        ("resnet", "filter scaling before BatchNorm", {}, 7),
        ("transformer", "GL(d_head) of attention", {}, 2),
        ("vgg", "permutation of neurons", {}, 4),
        ("f1", "layer-wise scaling", {}, 5),
    ],
)
def test_changes_that_leave_the_function_are_found_in_it(
    name: str, kind: str, options: dict[str, Any], count: int
) -> None:
    model = MODELS[name]([64], 10, **options).double().eval()
    for norm in layers(model).values():
        norm.eps = 0.0  # which filters that are scaled do not have
    x = torch.rand(5, 64).double()
    before, state = model(x), model.state_dict()
    left = [functional_call(model, change(state), (x,)) for change in SYMMETRIES[kind](model, 0)]
    assert sum(torch.allclose(after, before, rtol=1e-9) for after in left) == count


@pytest.mark.parametrize("name", TINY)
def test_a_run_is_had_again_from_its_options(name: str) -> None:
    config = TrainConfig(model=name, model_options=TINY[name], updates=2, threads=1)
    run = train(config)
    f = objective_of(run, split="test")
    assert float(f.value(run.end)) == run.history["test_loss"][-1]
    assert run.start is not None
    ends = line({"test": f}, run.start, run.end, alphas=torch.tensor([0.0, 1.0]))
    assert bool(torch.isfinite(ends.values["test_loss"]).all())
    if not layers(f.model):  # statistics are estimated again on a line
        want = run.history["test_loss"][[0, -1]]
        torch.testing.assert_close(ends.values["test_loss"].double(), want.double())


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("resnet", {"n": -1}, "resnet needs n of at least 1, got -1: change model_options"),
        ("f1", {"width": 3}, "model f1 cannot be called so: got an unexpected keyword argument"),
        ("f3", {}, "--model': needs one of mlp, cnn, "),
    ],
)
def test_the_command_says_in_one_line_what_is_wrong(
    ask: Callable[..., tuple[int, str, str]],
    tmp_path: Any,
    name: str,
    options: dict[str, Any],
    named: str,
) -> None:
    given = ("--model", name, "--model-options", json.dumps(options))
    code, out, err = ask("train", *given, "-o", str(tmp_path / "x.h5"))
    assert (code, out) == (2, "")
    assert named in err
    assert len(err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_the_command_takes_names_and_options(
    ask: Callable[..., tuple[int, str, str]], tmp_path: Any
) -> None:
    path, options = tmp_path / "x.h5", {"scaling": "mean-field", "width": 3}
    given = ("--model", "two-layer", "--model-options", json.dumps(options))
    code, _, err = ask("train", *given, "--updates", "1", "--threads", "1", "-o", str(path))
    assert code == 0, err
    run = load(path)
    assert run.spec["train"]["model_options"] == options
    assert len(run.end.theta) == 65 * 3 + 4 * 10
