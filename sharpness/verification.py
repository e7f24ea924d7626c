"""Spot values of a result, computed again from its spec and compared with those it holds.

By the version of torch, the machine and the number of threads that computed the result, the same
bits come out, but for what a search finds from another start. Elsewhere sums round in another
order, which the tolerances allow for (see ``sharpness.checks``).
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sharpness.checks import Check
from sharpness.errors import InputError
from sharpness.rebuilding import Origin, threads_in
from sharpness.recomputing import VERIFIERS
from sharpness.results import Result, Run
from sharpness.training import cpu_threads

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verification:
    """What was computed again of a result, and what came out.

    >>> Verification("a loss", [Check("loss", 2.0, 2.00001, 1e-4, 2.0)], []).text
    'a loss recomputed, agree to 5e-06'
    """

    subject: str  # what was computed again, such as "3 of 5 eigenvalues"
    checks: list[Check]
    notes: list[str]  # what was not as it was, or was left out

    @property
    def agrees(self) -> bool:
        """Whether all numbers do."""
        return all(check.agrees for check in self.checks)

    @property
    def text(self) -> str:
        """What came out, in words: how far the numbers agree, or those that do not."""
        if not self.checks:
            return "no number in it can be recomputed"
        if not self.agrees:
            return "; ".join(
                f"{check.name} is {check.stored:.10g} there, {check.recomputed:.10g} recomputed, "
                f"beyond {check.tolerance:.0e}"
                for check in self.checks
                if not check.agrees
            )
        apart = [check for check in self.checks if check.difference]
        furthest = max((check.difference / (check.scale or 1.0) for check in apart), default=0.0)
        return f"{self.subject} recomputed, agree {f'to {furthest:.0e}' if furthest else 'exactly'}"


def verify(
    result: Result,
    runs: Mapping[str, Run] | Sequence[Run] = (),
    *,
    model: Any = None,
    data: Any = None,
    loss: Any = None,
    trust_spec: bool = False,
) -> Verification:
    """Return spot values of a result, computed again from its spec, beside those it holds.

    The operator, the examples, the dtype, the micro-batches and what BatchNorm does are those of
    the spec; so is the number of threads. Parameters come from the runs: a point is taken by the
    SHA-256 in the spec, and by nothing else.

    Args:
        runs: Those that the result was computed from, and others; a run needs none. Of a
            comparison by the names it was made with; without them its contrasts are computed
            from its own values.
        model: What a run was made with, where that was an object or where the run came from a
            file that names ``module:function``; likewise ``data`` and ``loss``.
        trust_spec: Import what the run's file names; it can run any code.

    Raises:
        InputError: If a run is missing, or what it came from cannot be had again.

    >>> from dataclasses import replace
    >>> from sharpness.curvature import Hessian
    >>> from sharpness.lanczos import eigsh
    >>> from sharpness.problem import objective_of
    >>> from sharpness.training import TrainConfig, train
    >>> run = train(TrainConfig(model_options={"widths": []}, updates=3))
    >>> pairs = eigsh(Hessian(objective_of(run)), 2)
    >>> verify(pairs, [run]).agrees
    True
    >>> found = verify(replace(pairs, values=2 * pairs.values), [run])
    >>> [check.name for check in found.checks if not check.agrees]
    ['eigenvalue 1', 'residual 1', 'eigenvalue 2', 'residual 2']
    """
    if "algorithm" not in result.spec:
        raise InputError(
            "verify needs a spec that says what computed the result, got none: it was made by hand"
        )
    named = runs if isinstance(runs, Mapping) else {str(i): run for i, run in enumerate(runs)}
    origin = Origin(named, {"model": model, "data": data, "loss": loss}, trust_spec)
    with cpu_threads(threads_in(result.spec)):
        subject, checks = VERIFIERS[type(result).__name__](result, origin)
    LOG.info("verify: %d numbers of a %s", len(checks), type(result).__name__)
    return Verification(subject, checks, origin.notes)
