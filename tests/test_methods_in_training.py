"""Methods of an update, averages of weights and precisions, as a whole training has them."""

import shutil
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sharpness.averages import AVERAGES
from sharpness.critical import critical_sharpness
from sharpness.data import digits, split
from sharpness.errors import InputError
from sharpness.methods import METHODS, Task
from sharpness.problem import objective_of
from sharpness.results import Run
from sharpness.stability import preconditioned_sharpness
from sharpness.store import load_as, save
from sharpness.training import TrainConfig, train
from sharpness.vectors import stream

sys.path.insert(0, str(Path(__file__).parent))
from interruptions import content, interrupted

Ask = Callable[..., tuple[int, str, str]]
RATE = 0.1
SMALL = TrainConfig(
    model_options={"widths": [6]},
    train_examples=100,
    batch_size=30,
    optimizer="sgd",
    learning_rate=RATE,
    updates=17,
    threads=1,
)


class Noisy(nn.Sequential):
    """Dropout draws, BatchNorm remembers."""

    def __init__(self) -> None:
        super().__init__(
            nn.Linear(64, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 10)
        )


def ends_with_the_same_bytes(
    config: TrainConfig, every: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a training that goes on through its file ends as one without interruption."""
    run, begun, rounds = None, None, 0
    while run is None:
        run, begun = interrupted(config, every, begun, monkeypatch)
        if begun is not None:
            save(folder / "sb.h5.part", begun, overwrite=True)
            begun = load_as(folder / "sb.h5.part", Run)
        rounds += 1
    assert rounds > (config.updates or 0) / every
    assert content(run, folder) == content(train(config), folder)


@pytest.mark.parametrize("method", METHODS)
def test_a_training_by_any_method_goes_on_where_it_was_interrupted(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(SMALL, method=method, model=Noisy(), model_options={}, momentum=0.9)
    ends_with_the_same_bytes(config, 4, tmp_path, monkeypatch)


AVERAGED: dict[str, dict[str, Any]] = {
    "ema": {"decay": 0.8},
    "swa": {"start": 0.2, "every": 3},
}


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("average", AVERAGED)
def test_an_average_goes_on_where_it_was_interrupted(
    average: str, every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(AVERAGED) == set(AVERAGES) - {"none"}
    config = replace(SMALL, average=average, average_options=AVERAGED[average], optimizer="adam")
    config = replace(config, learning_rate=0.01, model=Noisy(), model_options={})
    ends_with_the_same_bytes(config, every, tmp_path, monkeypatch)


def test_what_the_last_update_had_is_told_also_where_a_signal_came_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for changes in (
        {"schedule": "cosine"},
        {"schedule": "one-cycle", "optimizer": "adam"},
        {"schedule": "cosine", "schedule_unit": "epochs", "epochs": 4},
    ):
        config = replace(SMALL, **{"updates": 12, **changes})
        ends_with_the_same_bytes(config, 12, tmp_path, monkeypatch)


# ---- one update by hand ------------------------------------------------------------------------


def normalized() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 10))


@pytest.mark.parametrize(("ghost", "clip"), [(None, None), (20, None), (20, 0.05), (None, 0.05)])
@pytest.mark.parametrize("method", ["plain", "sam"])
def test_an_update_of_a_training_is_that_by_hand(
    method: str, ghost: int | None, clip: float | None
) -> None:
    """BatchNorm and clipping as torch has them, SAM as its paper writes it."""
    rho = 0.3 if method == "sam" else 0.0
    config = replace(SMALL, model=normalized(), model_options={}, batch_size=50, updates=1)
    config = replace(config, dtype="float64", ghost_batch=ghost, clip_norm=clip, method=method)
    config = replace(config, method_options={"rho": rho} if rho else {})
    run = train(config)
    model = deepcopy(config.model).double().train()
    x, y = split(digits(), train_examples=100, split_seed=0).train
    order = stream(0, 0).permutation(100)[:50]
    x, y = x[order].double(), y[order]

    def gradients() -> list[Tensor]:
        total = torch.zeros((), dtype=torch.float64)
        for i in range(0, 50, ghost or 50):
            part = slice(i, min(i + (ghost or 50), 50))
            share = (part.stop - part.start) / 50
            total = total + share * nn.functional.cross_entropy(model(x[part]), y[part])
        return list(torch.autograd.grad(total, list(model.parameters())))

    def norm(g: list[Tensor]) -> Tensor:
        return sum((one.square().sum() for one in g), torch.zeros(())).sqrt()

    before = [p.detach().clone() for p in model.parameters()]
    g = gradients()
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    if rho:
        with torch.no_grad():
            for p, one in zip(model.parameters(), g, strict=True):
                p += rho * one / norm(g)
        g = gradients()
    if clip:
        shorter = min(1.0, clip / (float(norm(g)) + 1e-6))  # torch's guard against a norm of 0
        assert shorter < 0.5
        g = [shorter * one for one in g]
    wanted = torch.cat([(p - RATE * one).flatten() for p, one in zip(before, g, strict=True)])
    torch.testing.assert_close(run.end.theta, wanted, rtol=1e-12, atol=1e-12)
    assert buffers.keys() == run.end.buffers.keys()
    for name, buffer in buffers.items():
        torch.testing.assert_close(run.end.buffers[name], buffer, rtol=1e-12, atol=1e-12)
    assert buffers["1.num_batches_tracked"] == (1 if ghost is None else 3)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "plain"])
def test_every_method_makes_another_training_that_its_run_records(method: str) -> None:
    plain, run = train(SMALL), train(replace(SMALL, method=method))
    assert not torch.equal(plain.end.theta, run.end.theta)
    assert "method" not in plain.spec["train"]
    assert run.spec["train"]["method"] == method
    # It is a training: the loss falls.
    assert run.history["train_loss"][-1] < run.history["train_loss"][0]


# ---- averages ----------------------------------------------------------------------------------

EVERY = replace(SMALL, dtype="float64", checkpoint_updates=list(range(1, 18)))


def points_of(run: Run) -> Tensor:
    """The weights after each update, (updates, n)."""
    assert run.checkpoint_updates.tolist() == [*range(1, 18), 17]
    return torch.stack([point.theta for point in run.checkpoints[:17]])


def test_an_exponential_average_ends_at_the_sum_of_powers_of_its_decay() -> None:
    d = 0.8
    run = train(replace(EVERY, average="ema", average_options={"decay": d}))
    weights = [d**16, *((1 - d) * d ** (17 - i) for i in range(2, 18))]
    wanted = torch.tensor(weights, dtype=torch.float64) @ points_of(run)
    torch.testing.assert_close(run.end.theta, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("start", "every"), [(0.5, 1), (0.5, 3), (0.0, 5)])
def test_a_stochastic_average_ends_at_the_mean_of_its_points(start: float, every: int) -> None:
    options = {"start": start, "every": every}
    run = train(replace(EVERY, average="swa", average_options=options))
    first = int(start * 17) + every
    wanted = points_of(run)[first - 1 :: every].mean(dim=0)
    torch.testing.assert_close(run.end.theta, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("average", AVERAGED)
def test_a_run_ends_at_the_average_and_its_last_checkpoint_is_the_last_iterate(
    average: str,
) -> None:
    config = replace(SMALL, average=average, average_options=AVERAGED[average])
    run, plain = train(config), train(SMALL)
    assert torch.equal(run.checkpoints[-1].theta, plain.end.theta)
    assert not torch.equal(run.end.theta, plain.end.theta)
    assert run.updates == plain.updates
    assert run.checkpoint_updates.tolist() == [17]
    assert {k: x[-2].item() for k, x in run.history.items()} == {
        k: x[-1].item() for k, x in plain.history.items()
    }
    for part in ("train", "test"):
        f = objective_of(run, split=part)
        assert run.history[f"{part}_loss"][-1] == float(f.value(run.end))
    assert run.spec["end"]["train_loss"] == run.history["train_loss"][-1]
    assert run.spec["average"]["at"] == "end"


def test_running_statistics_at_the_average_are_those_of_the_data_there() -> None:
    """Of a first layer W x + b: mean W m + b and variance W C W', with m and C of the inputs."""
    config = replace(SMALL, model=normalized(), model_options={}, dtype="float64", average="ema")
    run = train(config)
    x = split(digits(), train_examples=100, split_seed=0).train[0].double()
    W, b = run.end.theta[: 6 * 64].reshape(6, 64), run.end.theta[6 * 64 : 6 * 65]
    wanted = {"mean": W @ x.mean(dim=0) + b, "var": (W @ x.T.cov() @ W.T).diagonal()}
    for name, value in wanted.items():
        torch.testing.assert_close(run.end.buffers[f"1.running_{name}"], value)
        last = run.checkpoints[-1].buffers[f"1.running_{name}"]
        assert not torch.allclose(last, value, rtol=1e-3)


def test_the_sharpness_that_an_optimizer_meets_is_refused_at_an_average() -> None:
    run = train(replace(SMALL, optimizer="adam", average="ema"))
    with pytest.raises(InputError, match="a run that ends at the average of its weights") as caught:
        preconditioned_sharpness(objective_of(run), run)
    assert "\n" not in str(caught.value)


def test_an_average_that_took_no_point_says_so() -> None:
    told: list[str] = []
    early = replace(SMALL, average="swa", stop_loss=2.2, updates=1000)
    run = train(early, tell=told.append)
    assert run.stopped == "stop_loss"
    assert told == [
        f"swa took no average, of a training that ended by stop_loss after {run.updates} of 1,000 "
        "updates: the end is the last solution"
    ]
    plain = train(replace(early, average="none"), tell=told.append)
    assert torch.equal(run.end.theta, plain.end.theta)
    assert len(told) == 1
    assert "average" not in run.spec
    train(replace(SMALL, average="ema"), tell=told.append)
    assert len(told) == 1


# ---- precision and compilation -----------------------------------------------------------------


def test_passes_in_bfloat16_are_near_those_in_float32_and_not_the_same() -> None:
    run, mixed = train(SMALL), train(replace(SMALL, autocast="bfloat16"))
    assert mixed.end.theta.dtype == torch.float32
    # Its numbers round to 2^-8, those of an update weigh a tenth of the weights here.
    error = (mixed.end.theta - run.end.theta).norm()
    assert 0 < error < 1e-2 * run.end.theta.norm()
    for part in ("train", "test"):  # looked at in the precision of the weights
        f = objective_of(mixed, split=part)
        assert mixed.history[f"{part}_loss"][-1] == float(f.value(mixed.end))


@pytest.mark.parametrize("method", ["plain", "stability"])
def test_only_the_passes_and_not_the_loss_are_in_bfloat16(method: str) -> None:
    seen = set()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        value = nn.functional.cross_entropy(outputs, targets)
        if torch.is_autocast_enabled("cpu"):
            seen.add((outputs.dtype, value.dtype))
        return value

    train(replace(SMALL, loss=loss, autocast="bfloat16", updates=2, method=method))
    assert seen == {(torch.bfloat16, torch.float32)}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own modules
@pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))), reason="needs a C++ compiler"
)
def test_a_compiled_training_is_the_same_to_rounding_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(SMALL, model=normalized(), model_options={}, method="sam")
    compiled = replace(config, compile=True)
    run, other = train(config), train(compiled)
    torch.testing.assert_close(other.end.theta, run.end.theta, rtol=0, atol=1e-6)
    assert other.end.buffers.keys() == run.end.buffers.keys()
    ends_with_the_same_bytes(compiled, 6, tmp_path, monkeypatch)


# ---- the command -------------------------------------------------------------------------------

SHORT = ["--model-options", '{"widths": [4]}', "--updates=3", "--train-examples=100", "--threads=1"]


def test_the_command_trains_by_a_method_and_to_an_average(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Ask
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["--method=sam", "--method-options", '{"rho": 0.1}', "--average=ema", "-q"]
    code, _, err = ask("train", *SHORT, *given, "--average-options", '{"decay": 0.5}', "-o", "a.h5")
    assert (code, err) == (0, "")
    config = TrainConfig(
        model_options={"widths": [4]},
        updates=3,
        train_examples=100,
        threads=1,
        method="sam",
        method_options={"rho": 0.1},
        average="ema",
        average_options={"decay": 0.5},
    )
    run, wanted = load_as("a.h5", Run), train(config)
    assert torch.equal(run.end.theta, wanted.end.theta)
    assert run.spec["train"] == wanted.spec["train"]
    code, out, _ = ask("show", "a.h5")
    assert code == 0
    assert "adam by the method sam at rate 0.001" in out
    assert (
        "the end is an average of weights; the last iterate, of train loss "
        f"{float(wanted.history['train_loss'][-2]):.4g}, is the last checkpoint"
    ) in out
    other = train(replace(config, method_options={"rho": 0.2}))
    assert not torch.equal(run.end.theta, other.end.theta)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--method=sham"], "needs one of plain, sam, asam, proximal, adversarial, stability"),
        (["--method=sham"], "got 'sham': did you mean sam?"),
        (["--method-options", '{"rho": 0.1}'], "method plain needs no options, got 'rho'"),
        (
            ["--method=sam", "--method-options", '{"rho": 0}'],
            "a number above 0 as rho, got 0",
        ),
        (["--average=mean"], "needs one of none, ema, swa, got 'mean'"),
        (
            ["--average=swa", "--average-options", '{"decay": 0.1}'],
            "swa needs start or every options, got",
        ),
        (["--average=ema", "--early-stopping=5"], "early_stopping needs the average none, got ema"),
        (["--method=stability", "--ghost-batch=5"], "needs another method than stability"),
        (["--autocast=bfloat16", "--dtype=float64"], "needs dtype float32, got float64"),
        (["--autocast=float16"], "needs one of bfloat16, got 'float16'"),
        (["--optimizer-options", '{"beta": 0.9}'], "need to be of betas, eps, amsgrad, got 'beta'"),
    ],
)
def test_what_a_training_cannot_do_is_answered_in_one_line(
    words: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Ask
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = ask("train", *SHORT, *words, "-o", "a.h5")
    assert (code, out) == (2, "")
    assert err.startswith("sharpness: error: ")
    assert err.count("\n") == 1
    assert named in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"method": "swam"}, "method needs to be one of plain, sam, .*, got 'swam'"),
        ({"average": "mean"}, "average needs to be one of none, ema, swa, got 'mean'"),
        ({"autocast": "float8"}, "autocast needs to be one of bfloat16, got 'float8'"),
    ],
)
def test_names_that_are_unknown_are_refused_by_the_library_too(
    options: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        train(replace(SMALL, **options))


def test_an_average_above_the_goal_is_not_at_the_goal() -> None:
    config = TrainConfig(model_options={"widths": [8]}, train_examples=100, threads=1)
    config = replace(config, stop_loss=0.5, batch_size=20, learning_rate=0.01)
    run = train(replace(config, average="ema"))
    assert run.stopped == "stop_loss"
    assert float(run.history["train_loss"][-2]) <= 0.5 < run.spec["end"]["train_loss"]
    assert not run.has_met
    assert train(config).has_met


@pytest.mark.parametrize("more", [{"average": "ema"}, {"keep_diverged": True}])
def test_the_measures_of_an_interrupted_run_take_the_state_of_its_optimizer_alone(
    more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(model_options={"widths": [8]}, train_examples=100, threads=1, updates=9)
    config = replace(config, check_every=2, **more)
    _, begun = interrupted(config, 6, None, monkeypatch)
    assert begun is not None
    last = train(replace(config, updates=begun.updates, average="none", keep_diverged=False))
    found = [critical_sharpness(objective_of(r), run=r, direction="update") for r in (begun, last)]
    assert found[0].value == found[1].value


def test_stability_takes_one_output_for_each_example() -> None:
    """D of a linear model without a bias is the mean of (noise w)^2."""
    torch.manual_seed(0)
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(3, 1, bias=False, dtype=torch.float64), nn.Flatten(0))
    (p,) = model.parameters()
    w = p.detach()[0].clone()
    torch.manual_seed(1)
    noise = 0.1 * torch.randn_like(x)
    torch.manual_seed(1)
    task = Task(model, nn.functional.mse_loss, x, y, torch.optim.SGD([p], lr=1.0))
    METHODS["stability"](task, alpha=2.0, sigma=0.1)
    g = 2 * x.T @ (x @ w - y) / 6 + 2.0 * 2 * noise.T @ (noise @ w) / 6
    torch.testing.assert_close(p.detach()[0], w - g)
