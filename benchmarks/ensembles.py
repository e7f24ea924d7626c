"""Ten seeds of one small network, in one stack beside one by one."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import sharpness as sh

if TYPE_CHECKING:
    from .__main__ import Session

SEEDS = 10
UPDATES = 750  # ten epochs
# The digits and the MLP of the defaults.
CONFIG = sh.TrainConfig(batch_size=8)


def ensembles(session: "Session") -> None:
    """Read the time of trainings one by one over that of a stack."""
    for _ in range(session.rounds):
        for key, more in (("ensemble", {"updates": UPDATES}), ("ensemble to a loss", {})):
            found = session.ask("ensemble", "digits", options=more)
            if found:
                session.read(key, found["alone"] / found["stack"])


def timed(options: dict[str, Any], *, seeds: int = SEEDS) -> dict[str, float]:
    """Return the seconds of trainings one by one and in a stack, data and networks included.

    Args:
        options: Of all trainings, beside those of ``CONFIG``.
        seeds: How many trainings.
    """
    configs = [replace(CONFIG, seed=seed, **options) for seed in range(seeds)]
    warm = [replace(config, updates=3) for config in configs[:2]]
    ways: dict[str, Callable[[list[sh.TrainConfig]], Any]] = {
        "alone": lambda given: [sh.train(config) for config in given],
        "stack": sh.train_all,
    }
    seconds = {}
    for name, way in ways.items():
        way(warm)
        begun = time.perf_counter()
        way(configs)
        seconds[name] = time.perf_counter() - begun
    return seconds
