"""The spec of a measure: what computed it, of what, with which options."""

from typing import Any

from sharpness.objective import Objective
from sharpness.results import Run


def spec_of(
    name: str,
    options: dict[str, Any],
    seed: int,
    point: str,
    objective: Objective,
    run: Run | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Return the spec of a measure.

    Args:
        point: Its fingerprint.
        run: Whose training the measure looks at, if it does.
        more: What else there is to say.
    """
    return {
        "algorithm": name,
        "options": options,
        "seed": seed,
        **more,
        "point": point,
        "objective": objective.spec,
        **({} if run is None else {"run": run.spec}),
    }
