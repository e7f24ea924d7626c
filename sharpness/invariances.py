"""Which measures survive changes of the weights that leave the function as it is.

After Dinh et al. (2017): what moves under them cannot by itself say how a network generalizes.
"""

import logging
import math
from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sharpness.errors import InputError
from sharpness.finite import require_finite
from sharpness.measures import TABLE, chosen, measured, row
from sharpness.objective import Inputs, Objective, Point, Targets, fingerprint
from sharpness.results import Invariance, Run, Solution
from sharpness.symmetries import SYMMETRIES, State, Symmetry, composed, moved_optimizer
from sharpness.vectors import flatten, unflatten

LOG = logging.getLogger(__name__)

# Relative change of outputs up to which the function is the same: rounding, of many layers.
SAME = {torch.float64: 1e-9, torch.float32: 1e-4}
# And that of a number that nothing was left to chance in: residuals of eigenvalues are up to 1e-3.
EXACT = {torch.float64: 1e-5, torch.float32: 5e-3}
SEARCHED = 0.05  # of what a search found, which rounding takes to another maximum
ERRORS = 4  # standard errors of a difference, up to which an estimate is the same
Changes = Callable[[State], State]  # parameters and buffers by name -> all of them, or what changed


def invariance(
    objective: Objective,
    run: Run | None = None,
    *,
    point: Point | None = None,
    only: Iterable[str] | None = None,
    changes: dict[str, Changes] | None = None,
    seed: int = 0,
    pieces: MutableMapping[str, Tensor] | None = None,
    progress: Callable[[int, int | None, str], None] | None = None,
) -> Invariance:
    """Return every measure before and after changes of the weights that keep the function.

    The changes are those of ``symmetries.SYMMETRIES`` that the model has: scalings of layers and
    of neurons with ReLU between them, permutations, filters before BatchNorm, heads of attention,
    and a shift of all logits. Each is tried first: a change of the outputs by more than rounding
    is none of the function's. A measure *moved* where it changed by more than its accuracy: the
    tolerance of eigenvalues, four standard errors of an estimate, 5 % of what a search finds.

    Cost: all measures once, and once more for each change.

    Args:
        run: Whose start and end are changed, with the state of its optimizer.
        point: Where there is no run. Default: the model as it came.
        only: Names of ``measures.TABLE``. Default: all.
        changes: Further ones by name, functions of all parameters and buffers by name that give
            those that they change.
        seed: Of factors, permutations and measures.
        pieces: What was measured after each change; what is here is not measured again.
        progress: Called after each change.

    Raises:
        InputError: If the model has no such change, or one of ``changes`` is none.
        ComputationError: If the loss is not finite at the point, or a measure fails.

    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).double()
    >>> x = torch.tensor([[1.0, 2.0], [-1.0, 0.5]]).double()
    >>> f = Objective(model, [(x, x[:, :1])], nn.functional.mse_loss)
    >>> found = invariance(f, only=["epsilon-sharpness"])
    >>> found.symmetries[:2], found.moved[0, :2].tolist()
    (['layer-wise scaling', 'neuron-wise scaling'], [True, True])
    """
    f, names = objective, chosen(only)
    here = f.at(run.end if run is not None else f.theta if point is None else point)
    require_finite(f, "invariance", here, f.value(here))
    state = _state(f, here)
    known = dict(_found(f, here, state, seed)) | dict(_given(f, here, state, changes or {}))
    if not known:
        raise InputError(
            "invariance needs a model with layers that can be scaled or permuted, got "
            f"{type(f.model).__name__} without: give changes of your own"
        )
    kept: MutableMapping[str, Tensor] = {} if pieces is None else pieces
    todo: list[tuple[str, Symmetry | None]] = [("before", None), *known.items()]
    for done, (title, symmetry) in enumerate(todo, start=1):
        if title not in kept:
            there = run if run is not None else here
            changed = there if symmetry is None else _changed(f, there, state, symmetry)
            kept[title] = _numbers(f, changed, names, seed)
        if progress:
            progress(done, len(todo), title)
    before = kept["before"]
    after = torch.stack([kept[title] for title in known], dim=1)  # (measures, symmetries, 4)
    searched = before[:, 2] > 0
    return Invariance(
        measures=names,
        symmetries=list(known),
        where=[symmetry.where for symmetry in known.values()],
        before=before[:, 0],
        errors_before=before[:, 1],
        after=after[..., 0],
        errors_after=after[..., 1],
        converged=(before[:, None, 3] > 0) & (after[..., 3] > 0),
        moved=_moved(before[:, None, :2], after[..., :2], searched[:, None], f.theta.dtype),
        searched=searched,
        function_change=torch.tensor(
            [_difference(f, here, state, x) for x in known.values()], dtype=torch.float64
        ),
        spec={
            "algorithm": "invariance",
            "only": names,
            "changes": sorted(changes or {}),
            "seed": seed,
            "point": fingerprint(here),
            "objective": f.spec,
            **({} if run is None else {"run": run.spec}),
        },
    )


def function_changes(f: Objective, point: Point, seed: int = 0) -> dict[str, float]:
    """Return by how much each change that the model has moves its function: rounding, by name."""
    here = f.at(point)
    state = _state(f, here)
    found = _found(f, here, state, seed)
    return {title: _difference(f, here, state, symmetry) for title, symmetry in found}


def _moved(before: Tensor, after: Tensor, searched: Tensor, dtype: torch.dtype) -> Tensor:
    """Return which values differ by more than their accuracy, of rows (value, standard error)."""
    gap = (after[..., 0] - before[..., 0]).abs()
    chance = ERRORS * torch.hypot(*(x[..., 1].nan_to_num(0.0) for x in (before, after)))
    relative = torch.where(searched, SEARCHED, EXACT[dtype])
    size = torch.maximum(before[..., 0].abs(), after[..., 0].abs())
    # Between a value and none there is a difference too.
    known = [~x[..., 0].isnan() for x in (before, after)]
    return (gap > relative * size + chance) | (known[0] & ~known[1])


def _found(f: Objective, here: Solution, state: State, seed: int) -> Iterable[tuple[str, Symmetry]]:
    """Yield what the model has, each kind in all layers where it leaves the function as it is."""
    for title, kind in SYMMETRIES.items():
        parts = [x for x in kind(f.model, seed) if _is_one(f, here, state, x)]
        if parts:
            yield title, composed(parts)


def _given(
    f: Objective, here: Solution, state: State, changes: dict[str, Changes]
) -> Iterable[tuple[str, Symmetry]]:
    for title, change in changes.items():
        symmetry = Symmetry("given", "mixing", change)
        if not _is_one(f, here, state, symmetry):
            raise InputError(
                f"invariance needs changes that leave the function as it is, got {title}, which "
                f"moves outputs by {_difference(f, here, state, symmetry):.2g} of their size"
            )
        yield title, symmetry


def _is_one(f: Objective, here: Solution, state: State, symmetry: Symmetry) -> bool:
    try:
        symmetry(state)
    except (KeyError, RuntimeError):  # layers that do not fit together as they are listed
        return False
    return _difference(f, here, state, symmetry) <= _allowed(f, state)


def _allowed(f: Objective, state: State) -> float:
    """Return the change of outputs that is rounding, or what BatchNorm adds to its variances."""
    allowed = SAME[f.theta.dtype]
    for name, part in f.model.named_modules():
        variance = state.get(f"{name}.running_var")
        if variance is not None:
            # (v + eps) / (v + eps / a^2) with a down to 1/8, through further layers.
            least = float(variance.clamp(min=torch.finfo(f.theta.dtype).tiny).min())
            allowed = max(allowed, min(0.1, 10 * 64 * float(part.eps) / (2 * least)))
    return allowed


def _difference(f: Objective, here: Solution, state: State, symmetry: Symmetry) -> float:
    """Return the largest change of an output, relative to the largest output, or of the loss."""
    there = _solution(f, here, symmetry(state))
    if symmetry.kind == "shift":
        return abs(float(f.value(there)) / float(f.value(here)) - 1)
    one, other = f.settled(here), f.settled(there)
    gaps, sizes = [0.0], [0.0]

    def compared(i: int, inputs: Inputs, targets: Targets) -> Tensor:
        a, b = f.outputs(one, inputs), f.outputs(other, inputs)
        gaps.append(float((a - b).abs().max()))
        sizes.append(float(a.abs().max()))
        return f.theta.new_zeros(())

    with torch.no_grad():
        f.mean(compared)
    gap = max(gaps)
    return gap / max(sizes) if gap else 0.0


def _state(f: Objective, here: Solution) -> State:
    """Return all parameters and buffers there by name."""
    model = f.model
    rest = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    own = {name: x.detach() for name, x in rest.items()}
    return {**own, **here.buffers, **unflatten(here.theta, f.shapes)}


def _solution(f: Objective, here: Solution, state: State) -> Solution:
    theta = flatten(state[name] for name in f.shapes)
    return Solution(theta, {name: x for name, x in state.items() if name not in f.shapes})


def _changed(
    f: Objective, there: Run | Solution, state: State, symmetry: Symmetry
) -> Run | Solution:
    """Return a run or a point after the change."""
    if isinstance(there, Solution):
        return _solution(f, there, symmetry(state))
    end = _solution(f, there.end, symmetry(state))
    start = None if there.start is None else f.at(there.start)
    if start is not None:
        start = _solution(f, start, symmetry(_state(f, start)))
    parameters = {name: state[name] for name in f.shapes}
    kind, optimizer = there.spec.get("train", {}).get("optimizer", ""), {}
    for name, entry in there.optimizer.items():
        if entry.shape != f.theta.shape:  # a number for each tensor, such as a step
            optimizer[name] = entry
            continue
        by_name = unflatten(entry.to(f.theta), f.shapes)
        moved = moved_optimizer(symmetry, parameters, name, by_name, kind)
        if not moved:
            return replace(there, start=start, end=end, optimizer={})
        optimizer[name] = flatten(moved[key] for key in f.shapes)
    return replace(there, start=start, end=end, optimizer=optimizer)


def _numbers(f: Objective, there: Run | Solution, names: list[str], seed: int) -> Tensor:
    """Return value, standard error, whether a search found it and converged, (m, 4)."""
    is_run = isinstance(there, Run)
    where: dict[str, Any] = {"run": there} if is_run else {"point": there}
    found: dict[str, Any] = {}
    for name in names:
        entry = TABLE[name]
        try:
            found[name] = measured(entry.measure, f, **where, seed=seed, **entry.options)
        except InputError as error:  # it is no measure of such a model
            LOG.info("invariance: %s", error)
            found[name] = str(error)
    rows = [row(name, found[name]) for name in names]
    errors = [getattr(found[name], "stderr", 0.0) for name in names]
    searched = [math.isnan(x.high) and x.low == x.value for x in rows]
    values, converged = ([getattr(x, key) for x in rows] for key in ("value", "converged"))
    numbers = zip(values, errors, searched, converged, strict=True)
    return torch.tensor(list(numbers), dtype=torch.float64)
