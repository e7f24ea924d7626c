"""Trainings in one stack are those one by one, each with its own seeds and its own end."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sharpness import ensembles
from sharpness.ensembles import train_all
from sharpness.errors import ComputationError, InputError
from sharpness.optimizers import ELEMENTWISE, OPTIMIZERS
from sharpness.results import Run
from sharpness.store import load_as, save
from sharpness.training import TrainConfig, train

SMALL = TrainConfig(
    model_options={"widths": [8]},
    train_examples=100,
    batch_size=30,  # 30, 30, 30 and 10
    updates=50,
    learning_rate=0.01,
    dtype="float64",
    threads=1,
)


def seeds(config: TrainConfig, count: int = 3) -> list[TrainConfig]:
    return [replace(config, seed=seed) for seed in range(count)]


@pytest.fixture
def stacked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list[Run], int]]:
    """The runs of configurations, and how many of them were trained one by one."""

    def run(configs: list[TrainConfig]) -> tuple[list[Run], int]:
        alone = 0

        def counting(config: TrainConfig, **options: Any) -> Run:
            nonlocal alone
            alone += 1
            return train(config, **options)

        with monkeypatch.context() as patch:
            patch.setattr(ensembles, "train", counting)
            return train_all(configs), alone

    return run


def agree(a: Run, b: Run, tolerance: float = 1e-10) -> None:
    """Two runs tell the same, to that part of the largest number."""
    assert (a.updates, a.stopped, a.spec["train"]) == (b.updates, b.stopped, b.spec["train"])
    assert a.spec["data"] == b.spec["data"]
    assert a.start is not None
    assert b.start is not None
    assert torch.equal(a.start.theta, b.start.theta)
    assert torch.equal(a.train_index, b.train_index)
    assert torch.equal(a.checkpoint_updates, b.checkpoint_updates)
    assert a.optimizer.keys() == b.optimizer.keys()
    assert a.history.keys() == b.history.keys()
    pairs = [(a.end.theta, b.end.theta)]
    pairs += [(p.theta, q.theta) for p, q in zip(a.checkpoints, b.checkpoints, strict=True)]
    pairs += [(x, b.history[name]) for name, x in a.history.items()]
    pairs += [(x, b.optimizer[name]) for name, x in a.optimizer.items()]
    for x, y in pairs:
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        scale = float(y.abs().max()) if len(y) else 0.0
        torch.testing.assert_close(x, y, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("optimizer", ELEMENTWISE)
def test_each_member_is_the_training_of_its_own_seed(optimizer: str, stacked: Any) -> None:
    config = replace(SMALL, optimizer=optimizer)
    if optimizer in ("sgd", "rmsprop"):
        config = replace(config, momentum=0.9, weight_decay=1e-3)
    runs, alone = stacked(seeds(config))
    assert alone == 0
    for run, own in zip(runs, seeds(config), strict=True):
        agree(run, train(own))


def test_members_may_differ_in_each_seed_alone(stacked: Any) -> None:
    base = replace(SMALL, order_seed=0, split_seed=0, updates=10, label_noise=0.1)
    configs = [base, replace(base, seed=4), replace(base, order_seed=5)]
    configs.append(replace(base, split_seed=6))
    runs, alone = stacked(configs)
    assert alone == 0
    for run, own in zip(runs, configs, strict=True):
        agree(run, train(own))
    assert len({float(run.end.theta.sum()) for run in runs}) == 4


def test_each_member_ends_at_its_own_loss_and_the_others_go_on(stacked: Any) -> None:
    config = replace(SMALL, updates=400, stop_loss=1.0, checkpoint_losses=[2.0, 1.5])
    runs, alone = stacked(seeds(config, 5))
    assert alone == 0
    assert len({run.updates for run in runs}) > 2
    for run, own in zip(runs, seeds(config, 5), strict=True):
        agree(run, train(own))
        assert run.stopped == "stop_loss"
        assert run.history["train_loss"][-1] <= 1.0
        assert len(run.checkpoints) == 2


def test_a_member_is_a_run_as_others_are(tmp_path: Path, stacked: Any) -> None:
    config = replace(SMALL, dtype="float32", updates=5)
    runs, _ = stacked(seeds(config, 2))
    save(tmp_path / "run.h5", runs[1])
    run = load_as(tmp_path / "run.h5", Run)
    assert run.spec == train(replace(config, seed=1)).spec | {"end": run.spec["end"]}
    again, _ = stacked(seeds(config, 2))
    assert torch.equal(run.end.theta, again[1].end.theta)  # the same bits every time


ENDS: dict[str, dict[str, Any]] = {
    "scaled rate": {"rate_scaling": "sqrt", "base_batch_size": 10, "optimizer": "sgd"},
    "scaled rate of adam": {"rate_scaling": "linear", "base_batch_size": 10},
    "replacement": {"batches": "replacement"},
    "stratified": {"batches": "stratified", "batch_size": 25},
    "patience": {
        "patience": 16,
        "min_improvement": 0.1,
        "check_every": 4,
        "learning_rate": 0.03,
        "updates": 400,
    },
    "examples": {"examples": 230},
}


@pytest.mark.parametrize("case", ENDS)
def test_members_have_their_own_rate_batches_and_ends(case: str, stacked: Any) -> None:
    config = replace(SMALL, **ENDS[case])
    runs, alone = stacked(seeds(config))
    assert alone == 0
    plain = train(SMALL)
    for run, own in zip(runs, seeds(config), strict=True):
        wanted = train(own)
        agree(run, wanted)
        ends = run.spec["end"], wanted.spec["end"]
        assert ends[0].keys() == ends[1].keys()
        assert ends[0].get("learning_rate") == ends[1].get("learning_rate")
    assert (run.updates, run.spec["end"]) != (plain.updates, plain.spec["end"])
    if case == "patience":
        assert {run.stopped for run in runs} == {"patience"}
        assert len({run.updates for run in runs}) > 1


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "sam"},
        {"average": "ema"},
        {"schedule": "cosine"},
        {"clip_norm": 0.1},
        {"checkpoint_updates": [2]},
    ],
)
def test_what_no_stack_does_is_trained_one_by_one(changes: dict[str, Any], stacked: Any) -> None:
    config = replace(SMALL, updates=3, **changes)
    runs, alone = stacked(seeds(config, 2))
    assert alone == 2
    for run, own in zip(runs, seeds(config, 2), strict=True):
        agree(run, train(own), 0.0)


class Switching(nn.Linear):
    """In training mode another function than in eval mode."""

    def __init__(self) -> None:
        super().__init__(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2.0 if self.training else 1.0)


def test_the_others_stay_in_training_mode_where_one_is_done(stacked: Any) -> None:
    config = replace(SMALL, model=Switching(), model_options={}, updates=300, stop_loss=0.9)
    configs = [replace(config, order_seed=i, split_seed=i) for i in range(3)]
    runs, alone = stacked(configs)
    assert alone == 0
    assert len({run.updates for run in runs}) > 1
    for run, own in zip(runs, configs, strict=True):
        agree(run, train(own))


class Wrapped(nn.Module):
    """The same function, seen as one of no known layers."""

    def __init__(self, chain: nn.Module) -> None:
        super().__init__()
        self.chain = chain

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.chain(x)
        return z


def images() -> nn.Module:
    """Layers of matrices, which no chain of ours is."""
    first = nn.Sequential(nn.Linear(8, 6, bias=False))
    return nn.Sequential(nn.Unflatten(1, (8, 8)), first, nn.Flatten(), nn.Linear(48, 10))


def chain() -> nn.Module:
    last = nn.Linear(12, 10)
    last.bias.requires_grad_(False)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 12, bias=False), nn.Tanh(), nn.Linear(12, 12), nn.ELU(), last
    )


def wrapped() -> nn.Module:
    return Wrapped(chain())


@pytest.mark.parametrize("model", [chain, wrapped, images])
def test_chains_of_layers_and_other_networks_are_what_they_are_alone(
    model: Any, stacked: Any
) -> None:
    config = replace(SMALL, model=model, model_options={}, updates=20)
    runs, alone = stacked(seeds(config))
    assert alone == 0
    assert (ensembles._layered(model()) is None) == (model is not chain)
    for run, own in zip(runs, seeds(config), strict=True):
        agree(run, train(own))


def normalized() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))


def noisy() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 8), nn.Dropout(0.3), nn.Linear(8, 10))


class Counting(nn.Linear):
    def __init__(self) -> None:
        super().__init__(64, 10)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
        return super().forward(x)


class Deciding(nn.Linear):
    def __init__(self) -> None:
        super().__init__(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        z = super().forward(x)
        return z if z.sum().item() > 0 else 2 * z


@pytest.mark.parametrize("model", [normalized, noisy, Counting, Deciding])
def test_networks_that_do_not_stack_are_trained_one_by_one(model: Any, stacked: Any) -> None:
    config = replace(SMALL, model=model, model_options={}, updates=3, batch_size=50)
    runs, alone = stacked(seeds(config, 2))
    assert alone == 2
    for run, own in zip(runs, seeds(config, 2), strict=True):
        agree(run, train(own), 0.0)


def test_lbfgs_and_others_that_differ_in_more_than_seeds_are_trained_one_by_one(
    stacked: Any,
) -> None:
    base = replace(SMALL, updates=2)
    assert set(OPTIMIZERS) - set(ELEMENTWISE) == {"lbfgs"}
    assert stacked(seeds(replace(base, optimizer="lbfgs", batch_size=100), 2))[1] == 2
    assert stacked([base, replace(base, learning_rate=0.1)])[1] == 2
    # In the order that was asked for, also where a stack is between them.
    runs, alone = stacked([base, replace(base, learning_rate=0.1), replace(base, seed=1)])
    assert alone == 1
    assert [run.spec["train"]["learning_rate"] for run in runs] == [0.01, 0.1, 0.01]
    assert [run.spec["train"]["seed"] for run in runs] == [0, 0, 1]


def test_a_field_that_a_stack_does_not_know_is_trained_one_by_one(
    stacked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = replace(SMALL, updates=2)
    monkeypatch.setattr(ensembles, "KNOWN", ensembles.KNOWN - {"optimizer_options"})
    assert stacked(seeds(base))[1] == 0
    assert stacked(seeds(replace(base, optimizer_options={"eps": 1e-3})))[1] == 3


def test_a_stack_that_is_another_function_is_not_trusted(
    stacked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ensembles._passed
    monkeypatch.setattr(ensembles, "_passed", lambda *parts: 2 * original(*parts))
    assert stacked(seeds(replace(SMALL, updates=2)))[1] == 3


def twice(activation: nn.Module) -> nn.Module:
    first, second, last = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 10)
    return nn.Sequential(first, activation, second, activation, last)


def test_a_layer_that_is_there_twice_is_passed_twice(stacked: Any) -> None:
    base = replace(SMALL, model=twice(nn.Tanh()), model_options={}, updates=20)
    runs, _ = stacked(seeds(base, 2))
    for run, seed in zip(runs, (0, 1), strict=True):
        agree(run, train(replace(base, seed=seed)))


def test_losses_that_agree_do_not_make_a_stack(
    stacked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ensembles._passed
    monkeypatch.setattr(
        ensembles, "_passed", lambda *parts: 2 * original(*parts) - original(*parts).detach()
    )
    assert stacked(seeds(replace(SMALL, updates=2)))[1] == 3


def test_what_is_likely_not_meant_is_told_of_each_member() -> None:
    told: list[str] = []
    train_all(seeds(replace(SMALL, optimizer="rprop", updates=1), 2), tell=told.append)
    assert [text[:29] for text in told] == 2 * ["rprop is made for full batche"]


def test_the_random_state_of_the_user_stays_as_it_is(stacked: Any) -> None:
    for model in (chain, noisy, normalized):
        config = replace(SMALL, model=model, model_options={}, updates=2, batch_size=50)
        before = torch.get_rng_state()
        stacked(seeds(config, 2))
        assert torch.equal(torch.get_rng_state(), before)


def test_objects_of_one_class_are_no_single_network(stacked: Any) -> None:
    base = replace(SMALL, model_options={}, updates=2)
    one, other = nn.Linear(64, 10), nn.Linear(64, 10)
    runs, alone = stacked([replace(base, model=one), replace(base, model=other)])
    assert alone == 2
    assert not torch.equal(runs[0].start.theta, runs[1].start.theta)


def test_what_a_single_training_refuses_is_refused() -> None:
    with pytest.raises(InputError, match="batch_size needs to be at most the 100 training"):
        train_all(seeds(replace(SMALL, batch_size=101)))
    with pytest.raises(ComputationError, match=r"training needs .* lower the learning rate"):
        train_all(seeds(replace(SMALL, optimizer="sgd", learning_rate=1e200)))


def test_progress_tells_how_many_are_done() -> None:
    told: list[tuple[int, int | None, str]] = []
    train_all(seeds(replace(SMALL, updates=2)), progress=lambda *x: told.append(x))
    assert [(done, total) for done, total, _ in told] == [(1, 3), (2, 3), (3, 3)]
    assert told[0][2] == "seed 0, 2 updates"
