"""What a training makes of batches, schedules, ghost batches, limits and checkpoints."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sharpness import training
from sharpness.data import digits, split
from sharpness.errors import ComputationError, InputError
from sharpness.problem import objective_of, solution
from sharpness.results import Run
from sharpness.sampling import BATCHES
from sharpness.schedules import scheduled, warmed
from sharpness.training import TrainConfig, record, train
from sharpness.training_config import ALWAYS, completed
from sharpness.vectors import stream

SMALL = TrainConfig(
    model_options={"widths": [8]}, train_examples=100, threads=1, optimizer="sgd", learning_rate=0.1
)


class Seen:
    """What the updates of a training were made with."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.momenta: list[float] = []
        self.sizes: list[int] = []
        self.labels: list[list[int]] = []


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    found, original = Seen(), training._Training._update

    def update(self: Any, inputs: Any, targets: Tensor) -> None:
        original(self, inputs, targets)
        group = self.optimizer.param_groups[0]
        found.rates.append(group["lr"])
        found.momenta.append(group.get("betas", [group.get("momentum")])[0])
        found.sizes.append(len(targets))
        found.labels.append(targets.tolist())

    monkeypatch.setattr(training._Training, "_update", update)
    return found


def by_hand(
    rates: list[float], *, batch_size: int = 30, draw: str = "shuffled", clip: float | None = None
) -> Tensor:
    """A plain loop of SGD with these rates."""
    x, y = split(digits(), train_examples=100, split_seed=0).train
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    steps = torch.optim.SGD(model.parameters(), lr=1.0)
    batches = [b for e in range(20) for b in BATCHES[draw](y, batch_size, stream(0, e))]
    for rate, chosen in zip(rates, batches, strict=False):
        steps.param_groups[0]["lr"] = rate
        steps.zero_grad()
        nn.functional.cross_entropy(model(x[chosen]), y[chosen]).backward()
        if clip:
            norm = float(torch.cat([p.grad.flatten() for p in model.parameters()]).norm())  # type: ignore[union-attr]
            for p in model.parameters():
                assert p.grad is not None
                p.grad *= min(1.0, clip / norm)
        steps.step()
    return solution(model).theta


def agree(run: Run, theta: Tensor) -> None:
    torch.testing.assert_close(run.end.theta, theta, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("draw", BATCHES)
def test_batches_are_drawn_by_name_of_order_seed_and_epoch(draw: str) -> None:
    agree(
        train(
            replace(SMALL, batch_size=30 if draw != "stratified" else 20, batches=draw, updates=9)
        ),
        by_hand([0.1] * 9, batch_size=30 if draw != "stratified" else 20, draw=draw),
    )


def test_every_stratified_batch_of_a_training_has_every_class(seen: Seen) -> None:
    run = train(replace(SMALL, batch_size=12, train_examples=96, batches="stratified", epochs=2))
    assert run.updates == 16
    assert all(set(labels) == set(range(10)) for labels in seen.labels)


def test_the_updates_have_the_rates_of_schedule_and_warm_up(seen: Seen) -> None:
    options = {"milestones": [6, 8], "factor": 0.5}
    config = replace(SMALL, schedule="step", schedule_options=options, warmup=4, updates=10)
    run = train(replace(config, batch_size=30))
    assert seen.rates == pytest.approx(
        [0.025, 0.05, 0.075, 0.1, 0.1, 0.1, 0.05, 0.05, 0.025, 0.025]
    )
    agree(run, by_hand(seen.rates))


def test_a_schedule_in_epochs_goes_by_the_examples(seen: Seen) -> None:
    options = {"milestones": [1, 2]}
    config = replace(SMALL, schedule="step", schedule_options=options, schedule_unit="epochs")
    train(replace(config, batch_size=30, epochs=3))  # four batches in an epoch
    assert seen.rates == pytest.approx([0.1] * 4 + [0.01] * 4 + [0.001] * 4)


def test_a_cosine_ends_with_the_training_whatever_ends_it(seen: Seen) -> None:
    config = replace(SMALL, schedule="cosine", batch_size=25)
    want = [0.1 * (1 + math.cos(math.pi * u / 8)) / 2 for u in range(8)]
    for limit in ({"updates": 8}, {"epochs": 2}, {"examples": 200}, {"epochs": 2, "updates": 90}):
        for unit in ("updates", "epochs"):
            seen.rates.clear()
            train(replace(config, schedule_unit=unit, **limit))
            assert seen.rates == pytest.approx(want)


def test_examples_are_counted_with_the_smaller_last_batch_of_each_epoch(seen: Seen) -> None:
    config = replace(SMALL, schedule="linear", batch_size=30, examples=230)  # 4 + 4 + 1 updates
    train(config)
    assert seen.rates == pytest.approx([0.1 * (1 - u / 9) for u in range(9)])


def test_batches_do_not_shrink_below_an_example() -> None:
    options = {"milestones": [2], "factor": 0.1}
    config = replace(SMALL, schedule="increase-batch", schedule_options=options, batch_size=4)
    with pytest.raises(InputError, match="increase-batch needs batches of at least 1 example"):
        train(replace(config, updates=9))


def test_one_cycle_moves_the_momentum_too(seen: Seen) -> None:
    f = scheduled("one-cycle", {})
    for optimizer in ("sgd", "adam", "rmsprop"):
        seen.rates.clear()
        seen.momenta.clear()
        train(replace(SMALL, optimizer=optimizer, schedule="one-cycle", updates=10))
        assert seen.rates == pytest.approx([0.1 * f(u, 10).rate for u in range(10)])
        assert seen.momenta == pytest.approx([f(u, 10).momentum for u in range(10)])
    with pytest.raises(InputError, match="one-cycle needs an optimizer with momentum, got adagrad"):
        train(replace(SMALL, optimizer="adagrad", schedule="one-cycle", updates=10))
    options = {"momenta": None}
    config = replace(SMALL, optimizer="adagrad", schedule="one-cycle", schedule_options=options)
    assert train(replace(config, updates=2)).updates == 2


def test_the_batch_grows_at_the_epochs_where_the_rate_would_fall(seen: Seen) -> None:
    options = {"milestones": [1, 2], "factor": 5, "most": 10}
    config = replace(
        SMALL, schedule="increase-batch", schedule_options=options, schedule_unit="epochs"
    )
    run = train(replace(config, batch_size=10, epochs=3))
    assert seen.sizes == [10] * 10 + [50] * 2 + [100]
    assert seen.rates == pytest.approx([0.1] * 12 + [0.1 * 10 / 25])
    assert (run.updates, int(run.history["examples"][-1])) == (13, 300)
    with pytest.raises(InputError, match="at most the 100 training examples, got 250: give most"):
        train(replace(config, batch_size=10, schedule_options={"milestones": [1, 2]}, epochs=3))


@pytest.mark.parametrize(("scaling", "factor"), [("linear", 4.0), ("sqrt", 2.0)])
def test_the_rate_is_scaled_from_a_base_batch_size(scaling: str, factor: float, seen: Seen) -> None:
    config = replace(SMALL, batch_size=100, rate_scaling=scaling, base_batch_size=25, updates=2)
    run = train(config)
    assert seen.rates == pytest.approx([0.1 * factor] * 2)
    agree(run, by_hand([0.1 * factor] * 2, batch_size=100))


def test_regime_adaptation_keeps_the_updates_and_where_the_rate_falls(seen: Seen) -> None:
    options = {"milestones": [1, 2]}
    base = replace(
        SMALL, schedule="step", schedule_options=options, schedule_unit="epochs", epochs=3
    )
    small, rates = train(replace(base, batch_size=30)), list(seen.rates)
    seen.rates.clear()
    large = train(replace(base, batch_size=100, base_batch_size=30, regime_adaptation=True))
    assert (small.updates, small.stopped) == (large.updates, large.stopped) == (12, "epochs")
    assert seen.rates == rates
    assert int(large.history["examples"][-1]) == 1200


def test_ghost_batches_are_normalized_by_themselves_and_leave_the_closed_form() -> None:
    """(1 - q)^S mu + sum_i (1 - q)^(S - i) q mu_i after one batch of S parts."""
    model = nn.Sequential(nn.Linear(64, 10, bias=False), nn.BatchNorm1d(10, momentum=0.2))
    config = replace(SMALL, model=model, model_options={}, batch_size=100, ghost_batch=30)
    run = train(replace(config, updates=1, dtype="float64"))
    assert run.start is not None
    (x, y), q = split(digits(), train_examples=100, split_seed=0).train, 0.2
    order = stream(0, 0).permutation(100)
    z = (x[order].double() @ model[0].weight.detach().double().T).split(30)
    for name, start, moment in (
        ("mean", torch.zeros(10).double(), lambda part: part.mean(dim=0)),
        ("var", torch.ones(10).double(), lambda part: part.var(dim=0)),
    ):
        want = (1 - q) ** 4 * start
        for i, part in enumerate(z, start=1):
            want = want + (1 - q) ** (4 - i) * q * moment(part)
        torch.testing.assert_close(run.end.buffers[f"1.running_{name}"], want)
    # The gradient is that of the mean loss over parts that are normalized apart.
    W = model[0].weight.detach().double().requires_grad_()
    parts = (x[order].double() @ W.T).split(30)
    normed = [(p - p.mean(0)) / (p.var(0, unbiased=False) + 1e-5).sqrt() for p in parts]
    nn.functional.cross_entropy(torch.cat(normed), y[order]).backward()
    assert W.grad is not None
    step = (run.start.theta - run.end.theta)[:640] / 0.1
    torch.testing.assert_close(step, W.grad.flatten())


def test_ghost_batches_that_are_not_smaller_change_nothing() -> None:
    model = nn.Sequential(nn.Linear(64, 10), nn.BatchNorm1d(10))
    config = replace(SMALL, model=model, model_options={}, batch_size=50, updates=3)
    one, other = train(config), train(replace(config, ghost_batch=50))
    assert torch.equal(one.end.theta, other.end.theta)


@pytest.mark.parametrize("clip", [0.05, 1e9])
def test_gradients_are_clipped_by_their_norm(clip: float) -> None:
    agree(
        train(replace(SMALL, batch_size=30, clip_norm=clip, updates=6)),
        by_hand([0.1] * 6, clip=clip),
    )


@pytest.mark.parametrize("level", [1.5, 0.5])
@pytest.mark.parametrize("batch_size", [10, 100])
def test_a_run_stops_within_two_percent_of_its_level_in_log_loss(
    level: float, batch_size: int
) -> None:
    """The rate is so large that the loss jumps over the level by more."""
    rate = {10: 0.4, 100: 0.8}[batch_size]
    config = replace(SMALL, batch_size=batch_size, learning_rate=rate, stop_loss=level)
    run = train(replace(config, stop_within=0.02))
    loss = float(objective_of(run).value(run.end))
    assert abs(math.log(loss / level)) <= 0.02
    assert run.history["train_loss"][-1] == loss
    told = run.spec["stop"]
    u, above = told["before"]
    assert above > level >= told["loss"]
    assert u < told["crossing"] <= told["update"] == run.updates
    # The line in log loss passes through the level there.
    share = (told["crossing"] - u) / (told["update"] - u)
    assert (1 - share) * math.log(above) + share * math.log(told["loss"]) == pytest.approx(
        math.log(level)
    )
    ends = [train(replace(config, stop_loss=None, updates=n)).end.theta for n in (u, run.updates)]
    alpha = told.get("alpha", 1.0)
    torch.testing.assert_close(run.end.theta, (1 - alpha) * ends[0] + alpha * ends[1])


def test_without_a_bound_the_end_is_the_first_look_at_or_below() -> None:
    run = train(replace(SMALL, batch_size=100, learning_rate=0.8, stop_loss=1.5))
    assert "alpha" not in run.spec["stop"]
    same = train(replace(SMALL, batch_size=100, learning_rate=0.8, updates=run.updates))
    assert torch.equal(run.end.theta, same.end.theta)
    assert "stop" not in same.spec


def test_training_ends_where_the_loss_no_longer_falls() -> None:
    """A rate of almost 0: one look after another, none is better by 1 %."""
    config = replace(SMALL, learning_rate=1e-9, patience=40, min_improvement=0.01)
    run = train(config)
    assert (run.stopped, run.updates) == ("patience", 40)
    falls = train(replace(config, learning_rate=0.1, updates=100, check_every=20))
    assert falls.stopped == "updates"


NOISY = replace(
    SMALL, optimizer="adam", learning_rate=0.03, batch_size=20, label_noise=0.4, check_every=5
)


# A fifth of 125 examples is kept apart, which leaves 100.
VALIDATION: dict[str, Any] = {"train_examples": 125, "data_options": {"validation": 0.2}}
VALIDATED = replace(NOISY, **VALIDATION)


def test_early_stopping_ends_at_the_best_solution_as_if_it_had_ended_there() -> None:
    run = train(replace(VALIDATED, early_stopping=60))
    told = run.spec["stop"]
    assert run.stopped == "early_stopping"
    assert told["best"] == run.updates == told["update"] - 60
    looks = list(range(5, told["update"] + 1, 5))
    points = train(replace(VALIDATED, updates=looks[-1], checkpoint_updates=looks)).points
    f = objective_of(run, split="validation")
    losses = {update: float(f.value(points[update])) for update in looks}
    there = train(replace(VALIDATED, updates=run.updates))
    assert torch.equal(there.end.theta, run.end.theta)
    assert all(torch.equal(x, run.optimizer[k]) for k, x in there.optimizer.items())
    assert {k: float(x[-1]) for k, x in there.history.items()} == {
        k: float(x[-1]) for k, x in run.history.items()
    }
    assert min(losses, key=lambda update: losses[update]) == run.updates
    assert told["validation_loss"] == losses[run.updates]


def test_the_best_solution_is_the_end_also_where_updates_end_a_training_that_watches_it() -> None:
    stopped = train(replace(VALIDATED, early_stopping=60))
    last = stopped.spec["stop"]["update"] - 5
    run = train(replace(VALIDATED, early_stopping=60, updates=last))
    assert (run.stopped, run.updates) == ("updates", stopped.updates)
    assert torch.equal(run.end.theta, stopped.end.theta)
    assert run.spec["stop"]["update"] == last


def test_the_best_solution_is_told_with_the_rate_of_its_own_last_update() -> None:
    """From the third epoch on the rate is far too large."""
    options = {"milestones": [2], "factor": 300.0}
    config = replace(SMALL, batch_size=20, check_every=5, schedule="step", schedule_unit="epochs")
    config = replace(config, schedule_options=options, **VALIDATION)
    run = train(replace(config, early_stopping=10))
    assert (run.stopped, run.updates) == ("early_stopping", 10)
    assert run.spec["end"] == train(replace(config, updates=10)).spec["end"]
    assert "learning_rate" not in run.spec["end"]


def test_the_best_solution_is_told_with_the_batch_of_its_own_last_update() -> None:
    best = train(replace(VALIDATED, early_stopping=60)).updates
    options = {"milestones": [best // 5 + 11], "factor": 2}  # shortly before the stop
    grows = replace(VALIDATED, schedule="increase-batch", schedule_unit="epochs", early_stopping=60)
    run = train(replace(grows, schedule_options=options))
    assert run.updates == best
    assert "batch_size" not in run.spec["end"]


def test_early_stopping_needs_a_validation_part() -> None:
    with pytest.raises(InputError, match="early_stopping needs a validation part of the data"):
        train(replace(SMALL, early_stopping=10))


@pytest.mark.parametrize("together", [1, 10])
def test_what_was_reached_before_a_divergence_is_kept(
    together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights grow without bound; a GPU's losses are looked at several at a time."""
    monkeypatch.setitem(training.TOGETHER, "cpu", together)
    config = replace(SMALL, loss="mse", data=lambda: None, model_options={"widths": []})
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    data = ((x, x[:, :1]), (x, x[:, :1]))
    config = replace(config, data=data, train_examples=None, batch_size=40, learning_rate=30.0)
    config = replace(config, updates=500, check_every=7, keep_diverged=True)
    run = train(config)
    assert run.stopped == "diverged"
    failed = run.spec["stop"]["update"]
    assert f"update {failed}: lower the learning rate" in run.spec["stop"]["message"]
    assert run.updates == (failed - 1) // 7 * 7
    assert torch.isfinite(run.end.theta).all()
    assert float(objective_of(run, data=data).value(run.end)) == run.history["train_loss"][-1]
    assert math.isfinite(run.history["train_loss"][-1])
    there = train(replace(config, updates=run.updates))
    assert torch.equal(there.end.theta, run.end.theta)
    with pytest.raises(ComputationError, match=f"update {failed}: lower the learning rate"):
        train(replace(config, keep_diverged=False))


def test_losses_that_are_looked_at_together_name_their_own_update(
    seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(training.TOGETHER, "cpu", 10)
    config = replace(SMALL, learning_rate=1e30, updates=30, check_every=30)
    with pytest.raises(ComputationError, match="a finite loss, got nan in update 2: lower"):
        train(config)
    assert len(seen.sizes) == 9  # done when the tenth loss was there


def test_solutions_are_stored_after_the_updates_asked_for() -> None:
    config = replace(SMALL, checkpoint_updates=[7, 3], checkpoint_geometric=2.0, updates=20)
    run = train(config)
    assert run.checkpoint_updates.tolist() == [1, 2, 3, 4, 7, 8, 16]
    for update, point in zip(run.checkpoint_updates.tolist(), run.checkpoints, strict=True):
        assert torch.equal(train(replace(SMALL, updates=update)).end.theta, point.theta)


def test_training_ends_with_the_update_that_reaches_the_examples() -> None:
    run = train(replace(SMALL, batch_size=30, examples=95))
    assert (run.updates, run.stopped) == (4, "examples")
    assert run.history["examples"].tolist() == [0, 100]


def test_deterministic_kernels_are_asked_for_while_it_trains(seen: Seen) -> None:
    asked: list[bool] = []
    looked = nn.Linear(64, 10)
    looked.register_forward_hook(
        lambda *_: asked.append(torch.are_deterministic_algorithms_enabled())
    )
    config = replace(SMALL, model=looked, model_options={}, updates=1)
    run = train(replace(config, deterministic=True))
    assert asked[-1]
    assert not torch.are_deterministic_algorithms_enabled()
    assert run.spec["train"]["deterministic"]
    train(config)
    assert not asked[-1]


def test_a_field_at_its_default_leaves_the_record_as_it_was() -> None:
    assert tuple(record(TrainConfig())) == ALWAYS
    changed = TrainConfig(clip_norm=1.0, warmup=3)
    assert record(changed) == record(TrainConfig()) | {"clip_norm": 1.0, "warmup": 3}
    assert TrainConfig(**completed(record(changed))) == changed


def test_rprop_on_parts_of_the_data_is_told() -> None:
    told: list[str] = []
    config = replace(SMALL, optimizer="rprop", updates=1)
    train(replace(config, batch_size=99), tell=told.append)
    assert told == [
        "rprop is made for full batches, got 99 of 100 examples: signs of noisy gradients mislead "
        "it"
    ]
    train(replace(config, batch_size=100), tell=told.append)
    assert len(told) == 1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"batches": "bootstrap"}, "batches needs to be one of shuffled, .*, got 'bootstrap'"),
        ({"batches": "stratified", "batch_size": 9}, "an example of each of 10 classes"),
        ({"schedule": "cosin"}, "schedule needs to be one of"),
        ({"schedule_unit": "days"}, "schedule_unit needs to be one of updates, epochs"),
        ({"schedule_options": {"x": 1}}, "schedule constant needs no options, got 'x'"),
        ({"warmup": -1}, "warmup needs to be a whole number of at least 0"),
        ({"optimizer": "rprop", "schedule": "cosine"}, "whose rate it can move, got rprop"),
        ({"optimizer": "rprop", "warmup": 3}, "whose rate it can move, got rprop"),
        ({"rate_scaling": "linear"}, "rate_scaling needs base_batch_size, got linear without"),
        ({"rate_scaling": "cubic", "base_batch_size": 8}, "one of linear, sqrt, got 'cubic'"),
        ({"base_batch_size": 8}, "base_batch_size needs rate_scaling or regime_adaptation"),
        ({"regime_adaptation": True, "base_batch_size": 8}, "regime_adaptation needs epochs"),
        ({"ghost_batch": 8}, "ghost_batch needs a model with BatchNorm, got mlp"),
        ({"clip_norm": 0.0}, "clip_norm needs to be above 0"),
        ({"examples": 0}, "examples needs to be a whole number"),
        ({"patience": 0}, "patience needs to be a whole number"),
        ({"min_improvement": 0.1}, "min_improvement needs patience or early_stopping"),
        ({"stop_within": 0.02}, "stop_within needs a stop_loss, got 0.02"),
        ({"checkpoint_geometric": 1.0}, "a ratio above 1, got 1"),
        ({"checkpoint_updates": [0]}, "checkpoint_updates 0 needs to be a whole number"),
    ],
)
def test_impossible_requests_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        train(replace(SMALL, **{"updates": 3, **options}))


def test_warm_ups_begin_above_zero_and_end_at_one() -> None:
    for warmup in (1, 2, 9):
        factors = [warmed(u, warmup) for u in range(warmup + 2)]
        assert factors[0] == 1 / warmup
        assert all(a <= b for a, b in pairwise(factors))
        assert factors[warmup - 1 :] == [1.0] * 3
