"""One training of a small network: ours beside a loop as one writes it by hand in PyTorch.

Both make the same updates of the same batches and look at loss and accuracy of the training and
the test part after each epoch, of gradient descent after every ten; ours is recorded besides. Both
read the data and build the model.
"""

from collections.abc import Callable
from dataclasses import replace
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
# With all examples in a batch.
DESCENT = sh.TrainConfig(batch_size=600, optimizer="sgd", learning_rate=0.1, updates=300)


def trainings(session: "Session") -> None:
    """Read the time of ours over that of the loop by hand."""
    for _ in range(session.rounds):
        for batch_size in (*SIZES, DESCENT.batch_size):
            found = session.ask("training", NETWORK, batch_size=batch_size)
            if found:
                session.read(f"training {batch_size}", found["ratio"])
        found = session.ask("training", NETWORK, batch_size=DESCENT.batch_size, fast=True)
        if found:
            session.read("training 600 fast", found["ratio"])


def actions(
    batch_size: int, updates: int | None = None, *, fast: bool = False
) -> dict[str, Callable[[], Tensor]]:
    """Return both trainings, each of which gives the parameters that it ends at.

    Args:
        fast: Whether ours takes the products of oneDNN.
    """
    given = sh.TrainConfig(batch_size=batch_size, updates=UPDATES)
    if batch_size == DESCENT.batch_size:
        given = DESCENT
    config = resolved(replace(given, updates=updates or given.updates, fast_gemm=fast))

    def ours() -> Tensor:
        return sh.train(config).end.theta

    def by_hand() -> Tensor:
        write = descent if batch_size == DESCENT.batch_size else loop
        return write(problem_of(config), config)

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


def descent(problem: Problem, config: sh.TrainConfig) -> Tensor:
    """Return the parameters after the updates of gradient descent by hand."""
    model, (x, y) = problem.model, problem.data.train
    optimizer = torch.optim.SGD(model.parameters(), lr=config.learning_rate)
    history: list[list[Any]] = [evaluated(problem)]
    for done in range(1, (config.updates or 0) + 1):
        model.train()
        loss = cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if done % config.check_every == 0:
            history.append(evaluated(problem))
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
