"""Spot values of each kind of result, computed again: few and cheap, and always the same ones."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from sharpness.analyses import run_numbers
from sharpness.box_sharpness import epsilon_sharpness, subspace_sharpness
from sharpness.checks import (
    ASCENT,
    RELATIVE,
    Check,
    of_exact,
    of_loss,
    of_search,
    of_stored,
    of_sum,
    of_values,
    relative_of,
)
from sharpness.comparison import compare, compared
from sharpness.curvature import OPERATORS, Curvature, Hessian
from sharpness.cuts import cut
from sharpness.errors import InputError
from sharpness.intervals import t_interval
from sharpness.lanczos import TOLERANCE, eigsh
from sharpness.landscape import line
from sharpness.objective import Objective
from sharpness.planes import plane
from sharpness.problem import SPLITS
from sharpness.rebuilding import Origin
from sharpness.results import (
    Comparison,
    Convexity,
    Cut,
    Eigenpairs,
    Line,
    Plane,
    Run,
    Sharpness,
    Solution,
    SubspaceSharpness,
    Trajectory,
)
from sharpness.training import INTERRUPTED
from sharpness.vectors import gaussian

POWER_STEPS = 3  # after which a random vector has the size of |A| to some percent


def _run(run: Run, origin: Origin) -> tuple[str, list[Check]]:
    """Compare losses and right answers at both ends, and the start with that of the seed."""
    checks: list[Check] = []
    objectives = {part: origin.of(run, part) for part in SPLITS}  # their data have the SHA-256
    history = run.history
    if not history or not len(history["update"]):
        return "nothing", checks
    ends = {"start": (0, run.start), "end": (-1, run.end)}
    if run.stopped == INTERRUPTED:
        ends.pop("end")
        origin.note("interrupted, so that its last losses are those of an earlier update")
    else:
        checks.append(of_exact("updates at the end", history["update"][-1], run.updates))
    for end, (row, point) in ends.items():
        for part, f in objectives.items():
            if point is None:
                continue
            found = {name: float(x) for name, x in f.evaluate(point).items()}
            place = f"{part}_loss at the {end}"
            checks.append(of_loss(place, history[f"{part}_loss"][row], found["loss"], f))
            if f"{part}_right" in history:
                right = round(found["accuracy"] * run.spec["data"][f"{part}_examples"])
                stored = history[f"{part}_right"][row]
                checks.append(of_exact(f"{part}_right at the {end}", stored, right))
    seeded = origin.start(run)
    if run.start is not None and seeded is not None:
        norm = float(seeded.theta.double().norm())
        apart = float((run.start.theta.double() - seeded.theta.double()).norm())
        limit = RELATIVE[seeded.theta.dtype] * norm
        checks.append(Check("distance of the start from that of its seed", 0.0, apart, limit, norm))
    return f"loss and right answers at the {' and the '.join(ends)}", checks


def _eigenpairs(pairs: Eigenpairs, origin: Origin) -> tuple[str, list[Check]]:
    """Compare values and residuals with those of fresh products."""
    spec = pairs.spec["operator"]
    by_class = {kind.__name__: kind for kind in OPERATORS.values()}
    if spec.get("operator") not in by_class:
        raise InputError(
            f"verify needs an operator of a run, {', '.join(by_class)}, got "
            f"{spec.get('operator')}: compare the numbers yourself"
        )
    f = origin.objective(spec["objective"])
    A = by_class[spec["operator"]](f, origin.point(f, spec["point"]), engine=spec["engine"])
    largest = max(float(pairs.values.abs().max()), _norm(A))
    # Differences of gradients are off by what they tell themselves.
    relative = relative_of(A.dtype, pairs.vectors.dtype) + spec.get("product_error", 0.0)
    chosen = _spots(len(pairs.values))
    checks = []
    for i in chosen:
        v = pairs.vectors[i].to(A.device, A.dtype)
        w, v = (A @ v).double(), v.double()
        value = float(v @ w / (v @ v))
        residual = float((w - float(pairs.values[i]) * v).norm())
        for name, stored, found in (
            ("eigenvalue", pairs.values[i], value),
            ("residual", pairs.residuals[i], residual),
        ):
            checks.append(
                Check(f"{name} {i + 1}", float(stored), found, relative * largest, largest)
            )
    if f.is_sample:
        errors = A.sampling_errors(pairs.vectors[chosen].to(A.device, A.dtype))
        for i, error in zip(chosen, errors.tolist(), strict=True):
            scatter = float(pairs.sampling_errors[i])
            name = f"sampling error {i + 1}"
            checks.append(Check(name, scatter, error, relative * largest, largest))
    gram = pairs.vectors @ pairs.vectors.T
    apart = float((gram - torch.eye(len(gram)).to(gram)).abs().max())
    limit = relative_of(pairs.vectors.dtype)
    checks.append(Check("orthogonality", pairs.orthogonality, apart, limit, 1.0))
    return f"{len(chosen)} of {len(pairs.values)} eigenvalues", checks


def _norm(A: Curvature) -> float:
    """Return a lower bound of |A|, to which products round: near it after a few steps.

    The smallest eigenvalues alone may all be 0.
    """
    v, norm = gaussian(A.size, 0, 0, like=A.theta.detach()), 0.0
    for _ in range(POWER_STEPS):
        v = A @ (v / v.norm())
        norm = max(norm, float(v.norm()))
        if not v.any():
            break
    return norm


def _line(found: Line, origin: Origin) -> tuple[str, list[Check]]:
    """Compare the first, a middle and the last point."""
    objectives = _objectives(found, origin)
    f = next(iter(objectives.values()))
    chosen = _spots(len(found.alphas))
    again = line(
        objectives,
        origin.point(f, found.spec["start"]),
        origin.point(f, found.spec["end"]),
        alphas=found.alphas[chosen],
        path=found.spec["path"],
        batch_norm=found.spec["batch_norm"],
    )
    checks = [of_sum("distance", found.distance, again.distance, f)]
    for j, i in enumerate(chosen):
        at = f"at alpha {float(found.alphas[i]):g}"
        checks += of_values(found.values, again.values, (i,), (j,), at, f)
    return f"{len(chosen)} of {len(found.alphas)} points", checks


def _cut(found: Cut, origin: Origin) -> tuple[str, list[Check]]:
    """Compare the ends and the center of the first and the last direction, with derivatives."""
    objectives = _objectives(found, origin)
    f = next(iter(objectives.values()))
    here = origin.point(f, found.spec["center"])
    nearest = int(found.alphas.abs().argmin())
    columns = sorted({0, nearest, len(found.alphas) - 1})
    rows = sorted({0, len(found.directions) - 1})
    directions = found.directions[rows]
    again = cut(objectives, here, directions, alphas=found.alphas[columns], quadratic=False)
    checks = [
        of_loss("loss", found.loss, again.loss, f),
        of_sum("norm", found.norm, again.norm, f),
    ]
    for k, i in enumerate(rows):
        of = f"of direction {i + 1}"
        checks.append(of_sum(f"length {of}", found.lengths[i], again.lengths[k], f))
        for m, j in enumerate(columns):
            at = f"at alpha {float(found.alphas[j]):g} {of}"
            checks += of_values(found.values, again.values, (i, j), (k, m), at, f)
        if found.spec["quadratic_of"]:
            checks += _derivatives(found, i, f, here)
    points = len(found.directions) * len(found.alphas)
    return f"{len(rows) * len(columns)} of {points} points", checks


def _derivatives(found: Cut, i: int, f: Objective, here: Solution) -> list[Check]:
    """Compare slope and curvature along a direction, whose terms cancel."""
    A, of = Hessian(f, here), f"of direction {i + 1}"
    d = found.directions[i].to(A.device, A.dtype)
    gradient, product = f.gradient(here).double(), (A @ d).double()
    relative, length = relative_of(A.dtype), float(d.double().norm())
    steep, curved = length * float(gradient.norm()), length * float(product.norm())
    slope, curvature = float(d.double() @ gradient), float(d.double() @ product)
    error = float(A.sampling_errors(d[None])[0])
    stored = [float(x[i]) for x in (found.slopes, found.curvatures)]
    scatter = float(found.curvature_sampling_errors[i])
    return [
        Check(f"slope {of}", stored[0], slope, relative * steep, steep),
        Check(f"curvature {of}", stored[1], curvature, relative * curved, curved),
        Check(f"sampling error of the curvature {of}", scatter, error, relative * curved, curved),
    ]


def _plane(found: Plane, origin: Origin) -> tuple[str, list[Check]]:
    """Compare four points, from a corner to that nearest to the center, and what lies beside."""
    objectives = _objectives(found, origin)
    f = next(iter(objectives.values()))
    rows, columns = _corner_to_center(found.alphas), _corner_to_center(found.betas)
    updates = [int(found.path_updates[i]) for i in (0, -1) if len(found.path_updates)]
    path = dict(zip(updates, found.spec.get("path_ends", []), strict=False))
    solutions = found.spec.get("solutions", {})
    again = plane(
        objectives,
        origin.point(f, found.spec["center"]),
        *found.directions,
        alphas=found.alphas[rows],
        betas=found.betas[columns],
        batch_norm=found.spec["batch_norm"],
        path={update: origin.point(f, sha256) for update, sha256 in path.items()},
        solutions={name: origin.point(f, sha256) for name, sha256 in solutions.items()},
    )
    checks = _frame(found, again.norm, f)
    for name, places in (("path", [0, -1][: len(path)]), ("solution", range(len(solutions)))):
        for i in places:
            checks += _mark(found, again, name, i, f)
    for k, i in enumerate(rows):
        for m, j in enumerate(columns):
            at = f"at alpha {float(found.alphas[i]):g}, beta {float(found.betas[j]):g}"
            checks += of_values(found.values, again.values, (i, j), (k, m), at, f)
    points = len(found.alphas) * len(found.betas)
    return f"{len(rows) * len(columns)} of {points} points", checks


def _mark(found: Plane, again: Plane, name: str, i: int, f: Objective) -> Iterable[Check]:
    """Compare where a point beside the plane lies, and its losses."""
    what, points = (
        (f"at update {int(found.path_updates[i])}", "path")
        if name == "path"
        else (f"of {found.solutions[i]}", "solution_points")
    )
    relative, kept = relative_of(f.theta.dtype), getattr(found, points)[i].tolist()
    place = getattr(again, points)[i]
    there, here = (float(getattr(x, f"{name}_distances")[i]) for x in (found, again))
    way = here + float(place.norm())  # what the projection divides
    for coordinate, stored, recomputed in zip(("alpha", "beta"), kept, place.tolist(), strict=True):
        yield Check(f"{coordinate} {what}", stored, recomputed, relative * way, way)
    yield Check(f"distance {what}", there, here, relative * found.norm, found.norm)
    yield from of_values(
        getattr(found, f"{name}_values"), getattr(again, f"{name}_values"), (i,), (i,), what, f
    )


def _convexity(found: Convexity, origin: Origin) -> tuple[str, list[Check]]:
    """Compare both eigenvalues at the point nearest to the center."""
    f = origin.objective(found.spec["objective"])
    center = origin.point(f, found.spec["center"])
    i, j = int(found.alphas.abs().argmin()), int(found.betas.abs().argmin())
    u, v = found.directions.to(center.theta)
    theta = torch.add(center.theta, u, alpha=float(found.alphas[i]))
    here = Solution(torch.add(theta, v, alpha=float(found.betas[j])), center.buffers)
    checks = _frame(found, float(center.theta.double().norm()), f)
    at = f"at alpha {float(found.alphas[i]):g}, beta {float(found.betas[j]):g}"
    if not torch.isfinite(f.value(here)):
        for name in ("smallest", "largest"):
            checks.append(of_exact(f"{name} {at}", getattr(found, name)[i, j], math.nan))
        return "a point", checks
    options = {key: found.spec[key] for key in ("tol", "budget", "seed")}
    for name, which in (("smallest", "SA"), ("largest", "LA")):
        value, residual, converged = (
            getattr(found, field)[i, j]
            for field in (name, f"{name}_residuals", f"{name}_converged")
        )
        if not converged:
            origin.note(f"{name} {at} did not converge, so that another search ends elsewhere")
            continue
        pair = eigsh(Hessian(f, here), 1, which=which, **options)
        largest = max(abs(float(x[i, j])) for x in (found.smallest, found.largest))
        checks += of_search(f"{name} {at}", value, residual, pair, found.spec["tol"], largest)
    return f"1 of {found.smallest.numel()} points", checks


def _sharpness(found: Sharpness, origin: Origin) -> tuple[str, list[Check]]:
    """Compare the losses at the center and at the displacement, and what is made of them."""
    f = origin.objective(found.spec["objective"])
    here = origin.point(f, found.spec["point"])
    y = found.displacement.to(here.theta)
    there = Solution(here.theta + y, here.buffers)
    loss, maximum = float(f.value(here)), float(f.value(there))
    half = found.epsilon * (here.theta.double().abs() + 1)
    slope = float((half * f.gradient(here).double()).abs().sum())
    percent = 100 / (1 + loss)
    outside = float((y.double().abs() / half).max()) > 1 + relative_of(y.dtype)
    rise = 100 * (found.maximum - found.loss) / (1 + found.loss)
    return "loss at the center and at the maximum", [
        of_loss("loss", found.loss, loss, f),
        of_loss("maximum", found.maximum, maximum, f),
        of_stored("value", found.value, rise),
        of_sum("first_order", found.first_order, percent * slope, f),
        of_exact("on_bounds", found.on_bounds, float((y.abs() >= half.to(y)).double().mean())),
        of_exact("coordinates outside of the box", 0.0, float(outside)),
    ]


def _subspace_sharpness(found: SubspaceSharpness, origin: Origin) -> tuple[str, list[Check]]:
    """Compare the loss, the first draw, and the mean of all draws as they are stored."""
    spec = found.spec
    f = origin.objective(spec["objective"])
    here = origin.point(f, spec["point"])
    keys = ("epsilon", "dimension", "starts", "sign_starts", "iterations", "seed")
    again = subspace_sharpness(f, here, draws=1, **{key: spec[key] for key in keys})
    value, best = float(found.draw_values[0]), float(again.draw_values[0])
    mean, low, high = t_interval(found.draw_values)
    draws = len(found.draw_values)
    spread = float(found.draw_values.std()) / math.sqrt(draws) if draws > 1 else math.nan
    slopes = (found.draw_first_order[0], again.draw_first_order[0])
    return f"1 of {draws} draws", [
        of_loss("loss", found.loss, again.loss, f),
        Check("value of draw 1", value, best, ASCENT * abs(best), abs(best)),
        of_sum("first order of draw 1", *slopes, f),
        of_stored("value", found.value, mean),
        of_stored("stderr", found.stderr, spread),
        of_stored("low end of the interval", found.interval[0], low),
        of_stored("high end of the interval", found.interval[1], high),
    ]


def _trajectory(found: Trajectory, origin: Origin) -> tuple[str, list[Check]]:
    """Compare the losses at three points, and lambda_1 and Metric 2.1 at the middle one."""
    f = origin.objective(found.spec["objective"])
    points = origin.run(found.spec["objective"]["run"]).points
    checks = [of_exact("points", len(found.updates), len(points))]
    places = list(zip(found.updates.tolist(), points, strict=False))
    checks += [of_exact(f"updates of point {i + 1}", *pair) for i, pair in enumerate(places)]
    if not all(check.agrees for check in checks):
        return "the updates", checks
    solutions = list(points.values())
    for i in _spots(len(solutions)):
        loss = float(f.value(solutions[i]))
        checks.append(of_loss(f"train_loss at update {places[i][0]}", found.train_loss[i], loss, f))
    i = len(solutions) // 2
    at, seed = f"at update {places[i][0]}", found.spec["seed"]
    if found.converged[i]:
        pair = eigsh(Hessian(f, solutions[i]), 1, seed=seed)
        tol, largest = TOLERANCE[f.theta.dtype], abs(float(pair.values[0]))
        checks += of_search(
            f"lambda_1 {at}", found.lambda_1[i], found.residuals[i], pair, tol, largest
        )
    else:
        origin.note(f"lambda_1 {at} did not converge, so that another search ends elsewhere")
    phi = epsilon_sharpness(
        f,
        solutions[i],
        epsilon=found.epsilon,
        starts=0,
        sign_starts=found.spec["sign_starts"],
        seed=seed,
    )
    value = float(found.metric_2_1[i])
    checks.append(Check(f"metric_2_1 {at}", value, phi.value, ASCENT * phi.value, phi.value))
    checks.append(of_sum(f"first_order {at}", found.first_order[i], phi.first_order, f))
    return f"1 of {len(solutions)} checkpoints", checks


def _comparison(found: Comparison, origin: Origin) -> tuple[str, list[Check]]:
    """Compare all contrasts with those of the values, and values with those of the runs."""
    contrasts = {name: (a, b) for name, (a, b) in found.spec["contrasts"].items()}
    again = compared(
        {
            measure: dict(zip(found.groups, rows.tolist(), strict=True))
            for measure, rows in found.values.items()
        },
        dict(zip(found.groups, found.reached.tolist(), strict=True)),
        found.seeds.tolist(),
        contrasts,
        spec={},
    )
    checks = [
        of_stored(f"{bound} of {key} of {name}", stored[i, b], table[key][i, b])
        for mine, table in (
            (found.ratios, again.ratios),
            (found.differences, again.differences),
        )
        for key, stored in mine.items()
        for i, name in enumerate(contrasts)
        for b, bound in enumerate(("estimate", "low end", "high end"))
    ]
    pairs = zip(contrasts, found.pairs.tolist(), again.pairs.tolist(), strict=True)
    checks += [of_exact(f"pairs of {name}", stored, count) for name, stored, count in pairs]
    subject = f"{len(contrasts)} contrast{'s' * (len(contrasts) != 1)}"
    runs = {name: origin.runs.get(name) for name in found.spec.get("runs", {})}
    known = {name: run for name, run in runs.items() if run is not None and run.history}
    if not known or len(known) < len(runs):
        origin.note("values taken as they are, for not all of the trainings are at hand")
        return subject, checks
    levels = found.spec["levels"]
    is_named = all(list(level) == ["group"] for level in levels.values())
    numbers = {name: run_numbers(run) for name, run in known.items()}
    of_runs = compare(known, numbers, groups=found.spec["runs"] if is_named else None)
    for g, group in enumerate(found.groups):
        for s, seed in enumerate(found.seeds.tolist()):
            of = f"of {group}, seed {seed}"
            checks.append(of_exact(f"reached {of}", found.reached[g, s], of_runs.reached[g, s]))
            checks += [
                of_stored(f"{measure} {of}", found.values[measure][g, s], table[g, s])
                for measure, table in of_runs.values.items()
                if measure in found.values
            ]
    return f"{subject} and the numbers of {len(known)} runs", checks


def _objectives(found: Line | Cut | Plane, origin: Origin) -> dict[str, Objective]:
    return {name: origin.objective(spec) for name, spec in found.spec["objectives"].items()}


def _spots(count: int) -> list[int]:
    """Return the first, a middle and the last place."""
    return sorted({0, count // 2, count - 1})


def _corner_to_center(axis: Tensor) -> list[int]:
    """Return the first place of an axis and that nearest to 0, or the last where both are one."""
    nearest = int(axis.abs().argmin())
    return [0, nearest or len(axis) - 1]


def _frame(found: Plane | Convexity, norm: float, f: Objective) -> list[Check]:
    """Compare what places a plane in parameter space with its directions."""
    u, v = found.directions.double()
    lengths = [float(u.norm()), float(v.norm())]
    relative = relative_of(f.theta.dtype)
    return [
        *(of_sum(f"length {i + 1}", found.lengths[i], lengths[i], f) for i in range(2)),
        Check("cosine", found.cosine, float(u @ v) / math.prod(lengths), relative, 1.0),
        of_sum("norm", found.norm, norm, f),
    ]


# By the name of the kind of result; each takes the result and what it came from.
VERIFIERS: dict[str, Callable[[Any, Origin], tuple[str, list[Check]]]] = {
    "Run": _run,
    "Eigenpairs": _eigenpairs,
    "Line": _line,
    "Cut": _cut,
    "Plane": _plane,
    "Convexity": _convexity,
    "Sharpness": _sharpness,
    "SubspaceSharpness": _subspace_sharpness,
    "Trajectory": _trajectory,
    "Comparison": _comparison,
}
