"""A measure of sharpness, computed again where it costs little, and its loss where it does not."""

import math

import torch
from torch import Tensor

from sharpness.checks import ASCENT, UNITS, Check, of_exact, of_loss
from sharpness.errors import InputError
from sharpness.invariances import function_changes
from sharpness.measures import COSTS, TABLE, measured, row
from sharpness.rebuilding import Origin
from sharpness.results import Invariance, Measured

AFFORDED = 2000.0  # passes over the data that a measure may take again


def measure(found: Measured, origin: Origin) -> tuple[str, list[Check]]:
    """Compare value, error, bounds, threshold, samples and costs: to a percent, as of a search."""
    spec = found.spec
    f = origin.objective(spec["objective"])
    here = origin.point(f, spec["point"])
    loss = float(f.value(here))
    checks = [of_loss("loss", found.loss, loss, f)]
    spent = sum(getattr(found, key) for key in COSTS)
    if spent > AFFORDED:
        origin.note(f"{found.measure} not recomputed, for that takes {spent:,.0f} passes")
        return "the loss", checks
    run = origin.run(spec["run"]) if "run" in spec else None
    made = {"run": run, "seed": spec["seed"], **spec["options"]}
    again = measured(spec["algorithm"], f, here, **made)
    if not isinstance(again, Measured):
        raise InputError(f"verify needs a measure with such numbers, got {spec['algorithm']}")
    rounding = UNITS * torch.finfo(f.theta.dtype).eps * abs(loss)

    def near(name: str, stored: float | Tensor, other: float | Tensor) -> Check:
        scale = abs(float(other))
        return Check(name, float(stored), float(other), ASCENT * scale + rounding, scale)

    numbers = ("value", "stderr", "threshold")
    checks += [near(name, getattr(found, name), getattr(again, name)) for name in numbers]
    ends = zip(("low", "high"), found.interval, again.interval, strict=True)
    checks += [near(f"{end} end of the interval", *pair) for end, *pair in ends]
    checks.append(of_exact("converged", found.converged, again.converged))
    checks += [near(key, getattr(found, key), getattr(again, key)) for key in COSTS]
    for name, samples in found.samples.items():
        if len(samples) and name in again.samples:
            i = len(samples) // 2
            checks.append(near(f"{name} of sample {i + 1}", samples[i], again.samples[name][i]))
    return "all of it", checks


def invariance(found: Invariance, origin: Origin) -> tuple[str, list[Check]]:
    """Compare the first and the last measure before the changes, and that the function stayed."""
    spec = found.spec
    f = origin.objective(spec["objective"])
    here = origin.point(f, spec["point"])
    run = origin.run(spec["run"]) if "run" in spec else None
    checks = []
    for i in sorted({0, len(found.measures) - 1}):
        name, before = found.measures[i], float(found.before[i])
        if math.isnan(before):
            continue
        entry = TABLE[name]
        result = measured(entry.measure, f, here, run=run, seed=spec["seed"], **entry.options)
        again = row(name, result).value
        checks.append(Check(name, before, again, ASCENT * abs(again), abs(again)))
    if spec["changes"]:
        origin.note("changes that were given are in no file, and were not tried again")
    for title, change in function_changes(f, here, spec["seed"]).items():
        stored = float(found.function_change[found.symmetries.index(title)])
        limit = ASCENT * change + UNITS * torch.finfo(f.theta.dtype).eps
        checks.append(Check(f"change of the function by {title}", stored, change, limit, change))
    return f"{len(checks)} numbers", checks
