"""The time that the schedule of a training goes by, and what it says at that time."""

import math

from sharpness.schedules import Setting, scheduled, warmed
from sharpness.training_config import TrainConfig


class Clock:
    """What a schedule says of an update, and the time that it goes by."""

    def __init__(self, config: TrainConfig, examples: int) -> None:
        self.config, self.size = config, examples
        self.schedule = scheduled(config.schedule, config.schedule_options)
        self.moves = config.schedule != "constant" or config.warmup > 0
        base = config.base_batch_size if config.regime_adaptation else None
        self.per_epoch = math.ceil(examples / (base or config.batch_size))  # updates
        whole, rest = divmod(config.examples or 0, examples)
        limits = {
            "updates": config.updates,
            "epochs": config.epochs and config.epochs * self.per_epoch,
            "examples": config.examples
            and whole * math.ceil(examples / config.batch_size)
            + math.ceil(rest / config.batch_size),
        }
        self.updates = min(limit for limit in limits.values() if limit is not None)  # at most
        in_epochs = config.schedule_unit == "epochs"
        self.total = self.updates / self.per_epoch if in_epochs else self.updates

    def epochs(self, updates: int, epoch: int) -> int:
        """Return the epochs that are done, those of the base batch size where it adapts to them."""
        return updates // self.per_epoch if self.config.regime_adaptation else epoch

    def setting(self, updates: int, examples: int) -> Setting:
        """Return what holds for the update after so many."""
        t = float(updates)
        if self.config.schedule_unit == "epochs":
            adapts = self.config.regime_adaptation
            t = updates / self.per_epoch if adapts else examples / self.size
        found = self.schedule(t, self.total)
        return found._replace(rate=found.rate * warmed(updates, self.config.warmup))

    def batch_size(self, updates: int, examples: int) -> int:
        """Return the batch size of the epoch that begins after so many."""
        return self.times(self.setting(updates, examples).batch)

    def times(self, factor: float) -> int:
        """Return so many times the batch size."""
        return round(self.config.batch_size * factor)

    def sizes(self) -> list[int]:
        """Return all batch sizes, each of which holds from a milestone on."""
        reached = [0.0, *self.config.schedule_options.get("milestones", [])]
        return sorted({self.times(self.schedule(t, self.total).batch) for t in reached})
