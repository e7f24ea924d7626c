"""A training is what its configuration says, to the last bit."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sharpness.data import digits, split
from sharpness.errors import ComputationError, InputError
from sharpness.optimizers import OPTIMIZERS
from sharpness.problem import objective_of, solution
from sharpness.results import Run
from sharpness.training import TrainConfig, cpu_threads, resolved, train
from sharpness.vectors import stream

SMALL = TrainConfig(model_options={"widths": [8]}, train_examples=100, threads=1)


def bits(run: Run) -> list[Tensor]:
    start = [] if run.start is None else [run.start.theta]
    return [*start, run.end.theta, *run.history.values(), *run.optimizer.values()]


def test_the_same_seeds_give_the_same_bits() -> None:
    config = replace(SMALL, batch_size=7, updates=30, label_noise=0.1, seed=3)
    torch.manual_seed(1)
    first = train(config)
    torch.manual_seed(2)  # the global state is neither read
    before = torch.get_rng_state()
    second = train(config)
    assert torch.equal(torch.get_rng_state(), before)  # nor changed
    assert all(torch.equal(a, b) for a, b in zip(bits(first), bits(second), strict=True))
    assert first.spec == second.spec


@pytest.mark.parametrize("changed", ["seed", "order_seed", "split_seed"])
def test_each_seed_changes_its_own_part_alone(changed: str) -> None:
    base = replace(SMALL, batch_size=50, updates=1, label_noise=0.2, order_seed=0, split_seed=0)
    one, other = train(base), train(replace(base, **{changed: 5}))
    assert one.start is not None
    assert other.start is not None
    assert torch.equal(one.start.theta, other.start.theta) == (changed != "seed")
    assert torch.equal(one.train_index, other.train_index) == (changed != "split_seed")
    same_data = one.spec["data"]["train_sha256"] == other.spec["data"]["train_sha256"]
    assert same_data == (changed != "split_seed")
    assert not torch.equal(one.end.theta, other.end.theta)


def test_order_and_split_follow_the_seed_by_default() -> None:
    assert resolved(TrainConfig(seed=4)).order_seed == 4
    assert resolved(TrainConfig(seed=4)).split_seed == 4
    assert resolved(TrainConfig(seed=4, split_seed=0)).split_seed == 0


def by_hand(config: TrainConfig, optimizer: Any) -> Tensor:
    """The same training as a plain loop: shuffled epochs of ragged batches."""
    parts = split(digits(), train_examples=100, split_seed=0)
    x, y = parts.train
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    steps = optimizer(model.parameters())
    for epoch in range(2):
        order = stream(0, epoch).permutation(100)
        for i in range(0, 100, config.batch_size):
            chosen = torch.from_numpy(order[i : i + config.batch_size])
            steps.zero_grad()
            nn.functional.cross_entropy(model(x[chosen]), y[chosen]).backward()
            steps.step()
    return solution(model).theta


@pytest.mark.parametrize(
    ("options", "optimizer"),
    [
        ({}, lambda p: torch.optim.Adam(p, lr=1e-3)),
        (
            {"learning_rate": 1e-2, "weight_decay": 0.1},
            lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=0.1),
        ),
        (
            {"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 1e-3},
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
        ),
        (
            {"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.9, "nesterov": True},
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
        ),
        (
            {"optimizer": "adamw", "weight_decay": 0.1},
            lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1),
        ),
        (
            {"optimizer": "rmsprop", "momentum": 0.5, "weight_decay": 0.01},
            lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5, weight_decay=0.01),
        ),
        ({"optimizer": "rprop"}, lambda p: torch.optim.Rprop(p, lr=1e-3)),
        (
            {"optimizer": "adagrad", "learning_rate": 0.01, "weight_decay": 0.01},
            lambda p: torch.optim.Adagrad(p, lr=0.01, weight_decay=0.01),
        ),
    ],
    ids=["adam", "adam with decay", "sgd", "nesterov", "adamw", "rmsprop", "rprop", "adagrad"],
)
def test_training_is_the_plain_loop(options: dict[str, Any], optimizer: Any) -> None:
    config = replace(SMALL, batch_size=30, epochs=2, **options)  # 30, 30, 30 and 10
    run = train(config)
    assert (run.updates, run.stopped) == (8, "epochs")
    # The fused update rounds otherwise: some 1e-7 of each of eight steps of at most 0.1.
    torch.testing.assert_close(run.end.theta, by_hand(config, optimizer), rtol=1e-5, atol=1e-6)


def test_the_history_is_what_the_objective_says() -> None:
    run = train(replace(SMALL, batch_size=25, updates=12, check_every=1))
    assert run.history["update"].tolist() == [0, 4, 8, 12]
    assert run.history["examples"].tolist() == [0, 100, 200, 300]
    assert run.start is not None
    for row, point in ((0, run.start), (-1, run.end)):
        for part, total in (("train", 100), ("test", 1697)):
            f = objective_of(run, split=part)
            measured = f.evaluate(point)
            assert run.history[f"{part}_loss"][row] == measured["loss"]
            right = int(run.history[f"{part}_right"][row])
            assert right == round(float(measured["accuracy"]) * total)
            outputs = torch.cat([f.outputs(point, x) for x, _ in f.batches])
            targets = torch.cat([y for _, y in f.batches])
            assert right == int((outputs.argmax(dim=1) == targets).sum())
    assert run.history["train_right"].dtype == torch.int64


@pytest.mark.parametrize("batch_size", [1, 100])
def test_one_example_and_all_of_them_are_batches_too(batch_size: int) -> None:
    run = train(replace(SMALL, batch_size=batch_size, epochs=1))
    assert run.updates == 100 // batch_size
    assert run.history["examples"].tolist() == [0, 100]


def test_training_stops_at_the_first_look_at_or_below_the_goal() -> None:
    goal = 0.8
    losses: dict[int, float] = {}
    config = replace(SMALL, batch_size=10, stop_loss=goal, learning_rate=3e-3)
    looks: list[int] = []
    run = train(config, progress=lambda done, total, state: looks.append(done))
    assert run.stopped == "stop_loss"
    assert run.history["train_loss"][-1] <= goal
    assert looks[-1] == run.updates
    for update in looks:
        part = train(replace(config, stop_loss=None, updates=update))
        losses[update] = float(part.history["train_loss"][-1])
    assert all(losses[update] > goal for update in looks[:-1])
    # Every 10 updates, every 2 once within twice the goal.
    steps = dict(zip(looks, np.diff([*looks, looks[-1]]).tolist(), strict=True))
    for update in looks[:-1]:
        assert steps[update] == (2 if losses[update] <= 2 * goal else 10)
    assert looks[0] == 10
    assert {2, 10} <= set(steps.values())


def test_the_cap_ends_a_training_that_does_not_meet_its_goal() -> None:
    run = train(replace(SMALL, stop_loss=1e-9, updates=3))
    assert (run.updates, run.stopped) == (3, "updates")
    assert run.history["update"][-1] == 3


def test_a_training_without_an_end_gets_the_goal_and_the_cap() -> None:
    default = resolved(TrainConfig())
    assert (default.stop_loss, default.updates, default.epochs) == (1e-2, 20_000, None)
    assert resolved(TrainConfig(epochs=3)).stop_loss is None
    assert resolved(TrainConfig(updates=3)).stop_loss is None
    assert resolved(TrainConfig(stop_loss=0.5)).updates == 20_000


def test_checkpoints_are_kept_where_the_loss_first_meets_a_level() -> None:
    config = replace(SMALL, batch_size=50, updates=60, learning_rate=1e-2)
    run = train(replace(config, checkpoint_losses=[1.0, 2.0]))
    assert len(run.checkpoints) == 2
    first, second = run.checkpoint_updates.tolist()
    assert first < second
    f = objective_of(run)
    for level, point, update in zip((2.0, 1.0), run.checkpoints, (first, second), strict=True):
        assert f.value(point) <= level
        assert torch.equal(train(replace(config, updates=update)).end.theta, point.theta)
        before = train(replace(config, updates=update - 10)).history["train_loss"][-1]
        assert before > level


def test_the_state_of_the_optimizer_is_that_of_the_end() -> None:
    run = train(replace(SMALL, updates=5))
    n = len(run.end.theta)
    assert run.optimizer.keys() == {"exp_avg", "exp_avg_sq", "step"}
    assert run.optimizer["exp_avg"].shape == run.optimizer["exp_avg_sq"].shape == (n,)
    assert set(run.optimizer["step"].tolist()) == {5.0}
    # After one update, the average of the squares is 0.001 of the square of the average's tenfold.
    one = train(replace(SMALL, updates=1)).optimizer
    torch.testing.assert_close(one["exp_avg_sq"], 1e-3 * (10 * one["exp_avg"]).square())


@pytest.mark.parametrize(
    ("optimizer", "names"),
    [
        ("adamw", {"exp_avg", "exp_avg_sq", "step"}),
        ("rmsprop", {"square_avg", "step"}),
        ("rprop", {"prev", "step_size", "step"}),
        ("adagrad", {"sum", "step"}),
    ],
)
def test_each_optimizer_leaves_its_own_state(optimizer: str, names: set[str]) -> None:
    run = train(replace(SMALL, optimizer=optimizer, updates=2))
    assert run.optimizer.keys() == names
    for name in names - {"step"}:
        assert run.optimizer[name].shape == run.end.theta.shape


def test_a_parameter_without_gradient_has_a_blank_state() -> None:
    class Half(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight.T  # without its bias

    run = train(replace(SMALL, model=lambda: Half(64, 10), model_options={}, updates=2))
    assert run.optimizer["exp_avg_sq"].shape == (650,)
    assert not run.optimizer["exp_avg_sq"][640:].any()
    assert run.optimizer["step"].tolist() == [2.0, 0.0]


def test_a_module_is_trained_as_a_copy_from_where_it_stands() -> None:
    model = nn.Sequential(nn.Linear(64, 10), nn.BatchNorm1d(10))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run = train(replace(SMALL, model=model, model_options={}, batch_size=50, updates=2))
    assert run.start is not None
    assert torch.equal(run.start.theta, solution(model).theta)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not torch.equal(run.end.buffers["1.running_mean"], before["1.running_mean"])
    assert run.spec["train"]["model"] == "object torch.nn.modules.container:Sequential"


def test_dropout_draws_from_the_seed_of_the_order_alone() -> None:
    same = (torch.ones(8, 4), torch.zeros(8, dtype=torch.int64))  # no order of these matters
    model = nn.Sequential(nn.Linear(4, 32), nn.Dropout(), nn.Linear(32, 2))
    config = TrainConfig(model=model, data=(same, same), batch_size=8, updates=3, threads=1)
    torch.manual_seed(1)
    one, state = train(config), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(one.end.theta, train(config).end.theta)
    assert not torch.equal(one.end.theta, train(replace(config, order_seed=1)).end.theta)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_that_stays_on_in_eval_mode_is_refused() -> None:
    class Noisy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(super().forward(x))

    with pytest.raises(InputError, match="same outputs twice in eval mode"):
        train(replace(SMALL, model=Noisy(64, 10), model_options={}, updates=1))


def test_frozen_parameters_stay_and_are_no_part_of_theta() -> None:
    model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    model[0].requires_grad_(False)
    run = train(replace(SMALL, model=model, model_options={}, updates=2))
    assert len(run.end.theta) == 90
    assert torch.equal(run.end.buffers["0.weight"], model[0].weight)


def test_regression_has_losses_and_no_right_answers() -> None:
    x = torch.randn(40, 3)
    data = ((x[:30], x[:30, :1]), (x[30:], x[30:, :1]))
    config = TrainConfig(model_options={"widths": [4]}, data=data, loss="mse", batch_size=10)
    run = train(replace(config, epochs=2, threads=1))
    assert run.history.keys() == {"update", "examples", "train_loss", "test_loss"}


def test_double_precision_is_trained_in_double_precision() -> None:
    run = train(replace(SMALL, dtype="float64", updates=2))
    assert run.end.theta.dtype == torch.float64
    assert run.optimizer["exp_avg"].dtype == torch.float64


def test_the_number_of_threads_is_put_back() -> None:
    before = torch.get_num_threads()
    with cpu_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"batch_size": 0}, "batch_size needs to be a whole number of at least 1, got 0"),
        ({"batch_size": 101}, "at most the 100 training examples, got 101"),
        ({"batch_size": 2.5}, "batch_size .* got 2.5"),
        ({"learning_rate": -1.0}, "learning_rate needs to be above 0 and finite, got -1"),
        ({"learning_rate": float("nan")}, "learning_rate .* got nan"),
        ({"stop_loss": float("inf")}, "stop_loss .* got inf"),
        ({"weight_decay": -1.0}, "weight_decay needs to be at least 0"),
        ({"weight_decay": float("nan")}, "weight_decay .* got nan"),
        ({"momentum": 1.0}, "momentum needs to be at least 0 and below 1"),
        ({"momentum": 0.9}, "momentum needs sgd or rmsprop, got 0.9 with adam"),
        ({"optimizer": "rprop", "weight_decay": 0.1}, "weight_decay needs adam or .* with rprop"),
        ({"nesterov": True}, "nesterov needs sgd, got True with adam"),
        ({"optimizer": "sgd", "nesterov": True}, "nesterov needs a momentum above 0"),
        ({"label_noise": 1.0}, "label_noise .* got 1"),
        ({"epochs": 0}, "epochs .* got 0"),
        ({"updates": -1}, "updates .* got -1"),
        ({"check_every": 0}, "check_every .* got 0"),
        ({"threads": 0}, "threads .* got 0"),
        ({"seed": -1}, "seed .* at least 0, got -1"),
        ({"seed": 2**63}, "seed .* got 9223372036854775808"),
        ({"checkpoint_losses": [0.5, -1.0]}, "checkpoint_losses -1"),
        ({"model_options": {"act": nn.ReLU}}, "plain numbers and words.*not JSON serializable"),
        ({"optimizer": "adan"}, r"one of adam, adamw, sgd, .*, got 'adan'"),
        ({"dtype": "float16"}, "one of float32, float64, got 'float16'"),
    ],
)
def test_impossible_configurations_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        train(replace(SMALL, **options))


class Torn(nn.Module):
    """A network to which, once it has moved, a root is added that is 0 with an infinite slope."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.torn = nn.Linear(64, 10), nn.Parameter(torch.zeros(2))
        self.before = self.fine.bias[0].item()

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.fine(x)
        return z + self.torn.square().sum().sqrt() if self.fine.bias[0] != self.before else z


def stopped(**changes: Any) -> str:
    """The error of a training that stops."""
    with pytest.raises(ComputationError) as error:
        train(replace(SMALL, **{"model_options": {}, "updates": 9, **changes}))
    return str(error.value)


def test_a_loss_that_is_no_longer_finite_stops_the_training_at_its_update() -> None:
    """A step of 1e30 leaves finite weights, whose outputs overflow."""
    options = {"optimizer": "sgd", "learning_rate": 1e30, "model_options": {"widths": [8]}}
    want = "training needs a finite loss, got nan in update 2: lower the learning rate"
    assert stopped(**options) == want
    want = "training needs a finite loss, got nan after 1 updates: lower the learning rate"
    assert stopped(**options, updates=1) == want


@pytest.mark.parametrize("updates", [2, 9])
def test_a_gradient_that_is_not_finite_is_named_by_update_and_parameter(updates: int) -> None:
    """In the second update; whether a third comes or the end, it is told of the second."""
    want = "training needs a finite gradient, got nan for torn in update 2: lower the learning rate"
    assert stopped(model=Torn(), updates=updates) == want


def test_weights_that_are_not_finite_after_a_finite_gradient_are_named() -> None:
    options = {"optimizer": "sgd", "learning_rate": 1e38, "model_options": {"widths": []}}
    x, y = 1e3 * torch.ones(20, 2), torch.zeros(20, 1)
    data = ((x, y), (x, y))
    message = stopped(**options, data=data, loss="mse", train_examples=None, batch_size=20)
    assert "training needs finite weights, got " in message
    assert message.endswith("inf for 0.weight after update 1: lower the learning rate")


def test_a_training_that_cannot_begin_says_why() -> None:
    model = nn.Sequential(nn.Linear(64, 10), nn.BatchNorm1d(10))
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_var is not None
    norm.running_var[3] = torch.nan
    found = stopped(model=model)
    assert found.startswith("training needs finite buffers, got 1 that is not in 1.running_var: ")
    norm.running_var[3] = 1
    norm.weight.data[:2] = torch.nan
    found = stopped(model=model)
    assert found.startswith("training needs finite weights, got 2 that are not in 1.weight: ")
    found = stopped(model=nn.Linear(64, 10), loss=lambda z, y: z.mean() / 0)
    assert found.startswith("training needs a finite loss, got ")
    assert found.endswith("inf in batch 0: look at the data and the weights")


def test_what_the_model_raises_in_training_is_told_with_the_update() -> None:
    """BatchNorm knows no variance of one example, the last of 13 in batches of 4."""
    model = nn.Sequential(nn.Linear(64, 10), nn.BatchNorm1d(10))
    config = replace(SMALL, model=model, model_options={}, train_examples=13, batch_size=4)
    with pytest.raises(ComputationError, match=r"BatchNorm needs .* got update 4, of a batch of 1"):
        train(replace(config, epochs=1))


def test_every_optimizer_lowers_the_loss() -> None:
    for name in OPTIMIZERS:
        size = 100 if name == "lbfgs" else 32  # its memory is that of one function
        run = train(replace(SMALL, optimizer=name, learning_rate=1e-2, epochs=3, batch_size=size))
        assert run.history["train_loss"][-1] < run.history["train_loss"][0]


def test_a_start_that_meets_the_goal_is_the_end() -> None:
    run = train(replace(SMALL, stop_loss=10.0, checkpoint_losses=[100.0]))
    assert (run.updates, run.stopped, run.checkpoint_updates.tolist()) == (0, "stop_loss", [0])
    assert run.start is not None
    assert torch.equal(run.start.theta, run.end.theta)


def test_a_buffer_that_changes_and_is_not_kept_is_refused() -> None:
    class Counting(nn.Linear):
        def __init__(self) -> None:
            super().__init__(64, 10)
            self.register_buffer("seen", torch.zeros(()), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.seen += 1
            return super().forward(x)

    with pytest.raises(InputError, match="got seen, which changes and is not persistent"):
        train(replace(SMALL, model=Counting(), model_options={}, updates=2))


class Tied(nn.Module):
    """One layer under two names, passed twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64, bias=False)
        self.second = self.first
        self.last = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.last(self.second(self.first(x).tanh()).tanh())
        return z


@pytest.mark.parametrize(
    "model", [nn.Linear(64, 10), Tied(), nn.Sequential(nn.Linear(64, 10), nn.BatchNorm1d(10))]
)
def test_a_look_is_at_the_present_weights_and_statistics(model: nn.Module) -> None:
    config = replace(SMALL, model=model, model_options={}, check_every=1, updates=7)
    run = train(replace(config, checkpoint_losses=[1e9], patience=5))
    f = objective_of(run, split="train", model=model, data="digits")
    assert float(f.evaluate(run.end)["loss"]) == float(run.history["train_loss"][-1])
    assert run.history["train_loss"][-1] != run.history["train_loss"][0]
