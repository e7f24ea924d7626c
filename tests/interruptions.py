"""Trainings that signals reach, and what they leave."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from sharpness import training
from sharpness.results import Run
from sharpness.signals import Stopped, answered
from sharpness.store import save
from sharpness.training import TrainConfig, train


def content(run: Run, folder: Path) -> bytes:
    path = folder / "content.h5"
    save(path, run, overwrite=True)
    return path.read_bytes()


def interrupted(
    config: TrainConfig, steps: int, begun: Run | None, monkeypatch: pytest.MonkeyPatch
) -> tuple[Run | None, Run | None]:
    """The run of a training that a signal reaches in a step, or what is kept of it."""
    kept: list[Run] = []
    original, count = training._Training._update, 0

    def update(self: Any, *batch: Any) -> None:
        nonlocal count
        count += 1
        if count == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, *batch)

    with monkeypatch.context() as patch, answered():
        patch.setattr(training._Training, "_update", update)
        try:
            return train(config, begun=begun, keep=kept.append), None
        except Stopped:
            return None, (kept or [None])[-1]
