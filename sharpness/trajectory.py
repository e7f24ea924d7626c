"""Sharpness along a training, after Keskar et al. (2017), Figure 6."""

from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from torch import Tensor

from sharpness.box_sharpness import epsilon_sharpness
from sharpness.curvature import Hessian
from sharpness.errors import InputError
from sharpness.lanczos import eigsh
from sharpness.objective import Objective
from sharpness.results import Run, Trajectory


def along_training(
    objective: Objective,
    run: Run,
    *,
    epsilon: float = 1e-3,
    sign_starts: int = 5,
    seed: int = 0,
    pieces: MutableMapping[str, Tensor] | None = None,
    progress: Callable[[int, int | None, str], None] | None = None,
) -> Trajectory:
    """Return lambda_1 and Metric 2.1 at the start, the checkpoints and the end of a training.

    Checkpoints are best set at levels of the training loss (``TrainConfig.checkpoint_losses``):
    sharpness falls as the loss falls, so that trainings are compared at equal loss.

    Cost: for each point the products of one eigenvalue, and some 4 ``sign_starts`` gradients.

    Args:
        objective: Of the run's model, on its training part.
        epsilon: Of the box of Metric 2.1.
        sign_starts: Of its sign iteration, whose best comes within a few percent of L-BFGS-B's
            at a tenth of the cost.
        seed: Of all random vectors.
        pieces: What was found at a point, by its number; those here are not computed again.
        progress: Called after each point.

    Raises:
        InputError: If the run has neither a start nor checkpoints, or is not the objective's.

    >>> from sharpness.problem import objective_of
    >>> from sharpness.training import TrainConfig, train
    >>> run = train(TrainConfig(batch_size=600, updates=20, checkpoint_losses=[2.2]))
    >>> found = along_training(objective_of(run), run)
    >>> found.updates[[0, -1]].tolist(), bool((found.train_loss.diff() < 0).all())
    ([0, 20], True)
    """
    points = run.points
    if len(points) < 2:
        raise InputError(
            "along_training needs a run with checkpoints, got one that has but its end: train it "
            "with checkpoint_losses"
        )
    pieces = {} if pieces is None else pieces
    for done, (name, point) in enumerate(points.items(), start=1):
        if str(name) not in pieces:
            pairs = eigsh(Hessian(objective, point), 1, seed=seed)
            phi = epsilon_sharpness(
                objective,
                point,
                epsilon=epsilon,
                starts=0,
                sign_starts=sign_starts,
                certificate=False,
                seed=seed,
            )
            row: list[Any] = [phi.loss, pairs.values[0], pairs.residuals[0], pairs.converged[0]]
            row += [pairs.sampling_errors[0], phi.value, phi.first_order, phi.sampling_error]
            pieces[str(name)] = torch.tensor([float(x) for x in row], dtype=torch.float64)
        if progress:
            progress(done, len(points), f"training loss {float(pieces[str(name)][0]):.2e}")
    columns = torch.stack([pieces[str(name)] for name in points]).T
    return Trajectory(
        updates=torch.tensor(list(points)),
        train_loss=columns[0],
        lambda_1=columns[1],
        residuals=columns[2],
        converged=columns[3].bool(),
        lambda_1_sampling_errors=columns[4],
        metric_2_1=columns[5],
        first_order=columns[6],
        metric_2_1_sampling_errors=columns[7],
        epsilon=float(epsilon),
        spec={
            "algorithm": "along_training",
            "epsilon": epsilon,
            "sign_starts": sign_starts,
            "seed": seed,
            "objective": objective.spec,
        },
    )
