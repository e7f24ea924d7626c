"""Averages of weights are the sums that their definitions say."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sharpness.averages import (
    AVERAGES,
    Average,
    averaged,
    require_average,
    restored,
    solution_of,
    state_of,
    taken,
)
from sharpness.errors import InputError
from sharpness.objective import Objective
from sharpness.problem import objective_of, solution
from sharpness.results import Run
from sharpness.store import load_as, save
from sharpness.training import TrainConfig, train

POINTS = torch.randn(23, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
T = len(POINTS)


def over(average: Average, points: Tensor, *, begun: int = 0) -> Average:
    for update, point in enumerate(points, start=begun + 1):
        average = taken(average, point.clone, update=update, total=T)
    return average


def test_ema_weighs_the_points_by_powers_of_its_decay() -> None:
    d, average = 0.8, over(Average("ema", {"decay": 0.8}), POINTS)
    weights = torch.tensor([(1 - d) * d ** (T - 1 - i) for i in range(T)], dtype=torch.float64)
    weights[0] = d ** (T - 1)
    assert average.mean is not None
    torch.testing.assert_close(average.mean, weights @ POINTS)
    assert average.count == T


def test_ema_is_that_of_torch() -> None:
    model = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    other = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for point in POINTS:
        with torch.no_grad():
            model.weight.copy_(point[None])
        other.update_parameters(model)
    average = over(Average("ema", {"decay": 0.9}), POINTS)
    assert average.mean is not None
    torch.testing.assert_close(average.mean, other.module.weight.detach()[0])


@pytest.mark.parametrize(("start", "every"), [(0.0, 1), (0.5, 1), (0.5, 4), (0.75, 2)])
def test_swa_is_the_plain_mean_of_every_so_many_late_points(start: float, every: int) -> None:
    average = over(Average("swa", {"start": start, "every": every}), POINTS)
    first = int(start * T) + every  # the number of the first update that counts
    late = POINTS[first - 1 :: every]
    assert average.mean is not None
    assert average.count == len(late) > 1
    torch.testing.assert_close(average.mean, late.mean(dim=0))


def test_without_a_point_there_is_no_average_and_no_state() -> None:
    model = nn.Linear(2, 1)
    f = Objective(model, [(torch.ones(1, 2), torch.ones(1, 1))], nn.MSELoss())
    for average in (Average("none", {}), Average("swa", {"start": 0.9, "every": 10})):
        found = over(average, POINTS)
        assert found == average
        assert state_of(found) == {}
        assert restored(average, {}, POINTS) == average
        assert solution_of(found, model, f, solution(model)) is None


@pytest.mark.parametrize("name", AVERAGES)
def test_an_average_that_is_taken_up_again_ends_with_the_same_bits(name: str) -> None:
    fresh = Average(name, {})
    if name == "swa":
        fresh = Average(name, {"start": 0.2, "every": 3})
    whole = over(fresh, POINTS)
    for cut in range(T):
        half = over(fresh, POINTS[:cut])
        again = over(restored(fresh, state_of(half), POINTS), POINTS[cut:], begun=cut)
        assert again.count == whole.count
        assert state_of(again).keys() == state_of(whole).keys()
        assert all(torch.equal(x, state_of(whole)[key]) for key, x in state_of(again).items())


def test_no_later_point_changes_a_mean_that_was_taken() -> None:
    theta = torch.ones(3)
    average = taken(Average("ema", {}), theta.clone, update=1, total=9)
    theta.zero_()
    other = taken(average, theta.clone, update=2, total=9)
    assert torch.equal(average.mean if average.mean is not None else theta, torch.ones(3))
    assert other.mean is not average.mean


def test_the_statistics_of_the_averaged_solution_are_those_of_the_data_there() -> None:
    """Of a first layer W x + b: mean W m + b and variance W C W, with m and C of the inputs."""
    x, y = torch.randn(50, 4, dtype=torch.float64), torch.randn(50, 3, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
    model(3 * x)  # statistics of something else
    f = Objective(model, [(x[:20], y[:20]), (x[20:], y[20:])], nn.MSELoss())
    theta = torch.randn(len(f.theta), dtype=torch.float64)
    before = {name: b.clone() for name, b in model.named_buffers()}
    found = solution_of(Average("ema", {}, theta, 1), model, f, solution(model))
    assert found is not None
    W, b = theta[:12].reshape(3, 4), theta[12:15]
    torch.testing.assert_close(found.buffers["1.running_mean"], W @ x.mean(dim=0) + b)
    torch.testing.assert_close(found.buffers["1.running_var"], (W @ x.T.cov() @ W.T).diagonal())
    assert torch.equal(found.theta, theta)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name])


LINEAR = TrainConfig(model_options={"widths": []}, batch_size=100, updates=6, threads=1)


@pytest.mark.parametrize("as_end", [True, False])
def test_a_run_keeps_both_its_last_iterate_and_its_average(as_end: bool, tmp_path: Path) -> None:
    run = train(LINEAR)
    assert run.start is not None
    mean = (run.start.theta + run.end.theta) / 2
    point = replace(run.end, theta=mean)
    f = {part: objective_of(run, split=part) for part in ("train", "test")}
    row: dict[str, float] = {"update": run.updates, "examples": 600}
    for part in f:
        measured = f[part].evaluate(point)
        row[f"{part}_loss"] = float(measured["loss"])
        row[f"{part}_right"] = round(float(measured["accuracy"]) * f[part].weight())
    both = averaged(run, point, row, as_end=as_end)
    save(tmp_path / "run.h5", both)
    both = load_as(tmp_path / "run.h5", Run)
    ends = (both.end.theta, both.checkpoints[-1].theta)
    wanted = (mean, run.end.theta) if as_end else (run.end.theta, mean)
    assert all(torch.equal(a, b) for a, b in zip(ends, wanted, strict=True))
    assert both.checkpoint_updates.tolist() == [run.updates]
    # The last row is that of the end.
    assert both.history["train_loss"][-1] == f["train"].value(both.end)
    assert both.spec["end"]["train_loss"] == float(both.history["train_loss"][-1])
    assert both.history["update"].tolist() == [0, 6] + [6] * as_end
    assert both.spec["average"]["train_loss"] == row["train_loss"]
    with pytest.raises(InputError, match="a row needs the columns update"):
        averaged(run, point, {"update": 6})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mean", {}, "average needs to be one of none, ema, swa, got 'mean'"),
        ("none", {"decay": 0.9}, "average none needs no options, got 'decay'"),
        ("ema", {"start": 0.9}, "average ema needs decay options, got 'start'"),
        ("ema", {"decay": 1.0}, "needs a number from 0 to below 1 as decay, got 1.0"),
        ("swa", {"start": -0.1}, "average swa needs a number .* as start, got -0.1"),
        ("swa", {"every": 0}, "average swa needs a whole number .* as every, got 0"),
        ("swa", {"every": "2"}, "average swa needs .* as every, got '2'"),
    ],
)
def test_what_an_average_does_not_take_is_refused_in_one_line(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        require_average(name, options)
