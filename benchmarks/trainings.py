"""One training of a small network: ours beside a loop as one writes it by hand in PyTorch.

Both make the same updates of the same batches and look at loss and accuracy of the training and
the test part after each epoch; ours is recorded besides. Both read the data and build the model.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import sharpness as sh
from sharpness.problem import Problem
from sharpness.training import problem_of, resolved
from sharpness.vectors import stream

if TYPE_CHECKING:
    from .__main__ import Session

NETWORK = "digits MLP"  # the default of a training: 64-128-128-128-10 on 600 digits
SIZES = (8, 32)  # of a batch
UPDATES = 1500


def trainings(session: "Session") -> None:
    """Read the time of ours over that of the loop by hand."""
    for _ in range(session.rounds):
        for batch_size in SIZES:
            found = session.ask("training", NETWORK, batch_size=batch_size)
            if found:
                session.read(f"training {batch_size}", found["ratio"])


def actions(batch_size: int, updates: int = UPDATES) -> dict[str, Callable[[], Tensor]]:
    """Return both trainings, each of which gives the parameters that it ends at."""
    config = resolved(sh.TrainConfig(batch_size=batch_size, updates=updates))

    def ours() -> Tensor:
        return sh.train(config).end.theta

    def by_hand() -> Tensor:
        return loop(problem_of(config), config)

    return {"ours": ours, "by_hand": by_hand}


def loop(problem: Problem, config: sh.TrainConfig) -> Tensor:
    """Return the parameters after the updates of a loop by hand."""
    model, (x, y) = problem.model, problem.data.train
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)
    history: list[list[Any]] = [evaluated(problem)]
    done, epoch, updates = 0, 0, config.updates or 0
    while done < updates:
        order = torch.from_numpy(stream(0, epoch).permutation(len(y)))
        inputs, targets = x[order], y[order]
        model.train()
        for i in range(0, len(y), config.batch_size):
            loss = cross_entropy(
                model(inputs[i : i + config.batch_size]), targets[i : i + config.batch_size]
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            done += 1
            if done == updates:
                break
        history.append(evaluated(problem))
        epoch += 1
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def evaluated(problem: Problem) -> list[Any]:
    """Return loss and right answers on both parts."""
    problem.model.eval()
    found: list[Any] = []
    with torch.no_grad():
        for inputs, targets in (problem.data.train, problem.data.test):
            z = problem.model(inputs)
            found += [float(cross_entropy(z, targets)), int((z.argmax(1) == targets).sum())]
    return found
