"""Along a training on least squares the curvature stays what it is in closed form."""

import math
from typing import Any

import pytest
import torch
from torch import nn

import sharpness as sh
from sharpness.training import TrainConfig

X = torch.linspace(-1, 1, 24).view(12, 2).sin().double()
Y = (X @ torch.tensor([[2.0], [-4.0]]).double()) + 0.1


LEVELS = [0.6, 0.3, 0.1]


def problem(**options: Any) -> tuple[sh.Run, sh.Objective]:
    data = (X, Y), (X, Y)
    model = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(model.weight)
    made = {"model": model, "data": data, "loss": "mse"}
    run = sh.train(
        TrainConfig(**made, batch_size=12, learning_rate=0.03, dtype="float64", **options)
    )
    return run, sh.objective_of(run, **made)


def test_the_curvature_of_least_squares_is_the_same_all_along() -> None:
    run, f = problem(updates=60, checkpoint_losses=LEVELS)
    found = sh.along_training(f, run, epsilon=0.01)
    H = 2 / 12 * X.T @ X
    torch.testing.assert_close(
        found.lambda_1, torch.linalg.eigvalsh(H)[-1].expand(len(found.updates))
    )
    assert found.updates.tolist() == [0, *run.checkpoint_updates.tolist(), 60]
    assert bool(found.converged.all())
    for i, point in enumerate([run.start, *run.checkpoints, run.end]):
        assert point is not None
        r = (X @ point.theta[:, None] - Y)[:, 0]
        torch.testing.assert_close(found.train_loss[i], r.square().mean())
        g, b = 2 / 12 * X.T @ r, 0.01 * (point.theta.abs() + 1)
        # A convex function has its maximum over a box at a vertex: here at one of four.
        signs = torch.tensor([[s, t] for s in (1.0, -1.0) for t in (1.0, -1.0)]).double()
        rises = [float(y @ g + y @ H @ y / 2) for y in b * signs]
        loss = float(found.train_loss[i])
        assert float(found.metric_2_1[i]) == pytest.approx(100 * max(rises) / (1 + loss))
        first = 100 * float((b * g.abs()).sum()) / (1 + loss)
        assert float(found.first_order[i]) == pytest.approx(first)


def test_the_curvature_of_a_product_is_that_at_each_point() -> None:
    x = torch.linspace(0.5, 1.5, 12, dtype=torch.float64)[:, None]
    data = (x, 3 * x), (x, 3 * x)
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    for layer, start in zip(model, (0.5, 1.0), strict=True):
        nn.init.constant_(layer.weight, start)
    made = {"model": model, "data": data, "loss": "mse"}
    run = sh.train(
        TrainConfig(**made, batch_size=12, learning_rate=0.03, dtype="float64", updates=40)
    )
    found = sh.along_training(sh.objective_of(run, **made), run)
    s = float(x.square().mean())
    for point, got in zip((run.start, run.end), found.lambda_1, strict=True):
        assert point is not None
        u, v = point.theta.tolist()
        mixed = 2 * s * (2 * u * v - 3)  # of mean (u v x - 3 x)^2
        H = torch.tensor([[2 * s * v * v, mixed], [mixed, 2 * s * u * u]], dtype=torch.float64)
        torch.testing.assert_close(got, torch.linalg.eigvalsh(H)[-1])
    assert float(found.lambda_1[1]) > 1.5 * float(found.lambda_1[0])


def test_checkpoints_are_where_the_loss_first_met_their_levels() -> None:
    run, f = problem(updates=60, checkpoint_losses=LEVELS)
    losses = [float(f.value(point)) for point in run.checkpoints]
    for loss, level in zip(losses, LEVELS, strict=True):
        assert 0.8 * level < loss <= level  # looked at every 2 updates near the level


def test_two_levels_that_are_met_at_one_look_are_one_point() -> None:
    run, f = problem(updates=60, checkpoint_losses=[0.3, 0.2999])
    found = sh.along_training(f, run)
    assert len(run.checkpoints) == 2
    assert len(found.updates) == 3
    assert bool((found.updates.diff() > 0).all())


def test_points_that_are_there_are_not_computed_again() -> None:
    run, f = problem(updates=20)
    pieces: dict[str, torch.Tensor] = {}
    told: list[Any] = []
    whole = sh.along_training(f, run, pieces=pieces, progress=lambda *x: told.append(x[:2]))
    assert told == [(1, 2), (2, 2)]
    pieces["0"] = torch.full_like(pieces["0"], 7.0)
    again = sh.along_training(f, run, pieces=pieces)
    assert again.lambda_1.tolist() == [7.0, float(whole.lambda_1[1])]


def test_a_run_that_has_but_its_end_is_refused() -> None:
    run, f = problem(updates=20)
    with pytest.raises(sh.InputError, match="checkpoint_losses"):
        sh.along_training(f, sh.Run(**{**vars(run), "start": None}))


def test_a_sample_tells_its_error_and_the_whole_data_have_none() -> None:
    run, whole_f = problem(updates=20)
    made = {"model": nn.Linear(2, 1, bias=False), "data": ((X, Y), (X, Y)), "loss": "mse"}
    sample = sh.along_training(sh.objective_of(run, examples=6, **made), run)
    whole = sh.along_training(whole_f, run)
    for errors in ("lambda_1_sampling_errors", "metric_2_1_sampling_errors"):
        assert bool((getattr(sample, errors) > 0).all())
        assert not getattr(whole, errors).any()
    assert math.isfinite(float(sample.lambda_1.sum()))
