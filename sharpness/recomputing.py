"""Spot values of each kind of result, computed again: few and cheap, and always the same ones."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from scipy.special import stdtrit
from torch import Tensor

from sharpness import recomputing_layers
from sharpness.analyses import run_numbers
from sharpness.box_sharpness import epsilon_sharpness, subspace_sharpness
from sharpness.checks import (
    ASCENT,
    RELATIVE,
    UNITS,
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
from sharpness.curvature import Hessian, Operator
from sharpness.cuts import cut
from sharpness.intervals import LEVEL, t_interval
from sharpness.lanczos import TOLERANCE, eigsh
from sharpness.landscape import line
from sharpness.objective import Objective
from sharpness.operators import sampling_errors_of
from sharpness.planes import plane
from sharpness.problem import SPLITS
from sharpness.rebuilding import Origin
from sharpness.recomputing_batches import batches
from sharpness.recomputing_classes import classes
from sharpness.recomputing_measures import invariance, measure
from sharpness.results import (
    Comparison,
    Convexity,
    Cut,
    Density,
    Diagonal,
    Eigenpairs,
    EpsilonTrend,
    Estimate,
    Layers,
    Line,
    Plane,
    Run,
    Sharpness,
    Solution,
    SubspaceSharpness,
    Trajectory,
)
from sharpness.spectrum import density, diagonal, frobenius, trace
from sharpness.training import INTERRUPTED
from sharpness.vectors import gaussian, rademacher

POWER_STEPS = 3  # after which a random vector has the size of |A| to some percent
AFFORDED = 200  # products that an estimate, or a search for what it left out, may take again
ESTIMATES = {"trace": trace, "squared Frobenius norm": frobenius}  # by the quantity


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
    A = origin.operator(pairs.spec["operator"])
    largest = max(float(pairs.values.abs().max()), _norm(A))
    # Differences of gradients are off by what they tell themselves.
    relative = relative_of(A.dtype, pairs.vectors.dtype) + _told_error(pairs.spec)
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
    errors = sampling_errors_of(A, pairs.vectors[chosen].to(A.device, A.dtype))
    if errors.any() or pairs.sampling_errors.any():
        for i, error in zip(chosen, errors.tolist(), strict=True):
            scatter = float(pairs.sampling_errors[i])
            name = f"sampling error {i + 1}"
            checks.append(Check(name, scatter, error, relative * largest, largest))
    gram = pairs.vectors @ pairs.vectors.T
    apart = float((gram - torch.eye(len(gram)).to(gram)).abs().max())
    limit = relative_of(pairs.vectors.dtype)
    checks.append(Check("orthogonality", pairs.orthogonality, apart, limit, 1.0))
    return f"{len(chosen)} of {len(pairs.values)} eigenvalues", checks


def _told_error(made: dict[str, Any]) -> float:
    """Return how far off products are by what differences of gradients tell, else 0."""
    operator = made["operator"]
    while "of" in operator:
        operator = operator["of"]
    terms = operator.get("terms", [])
    return float(operator.get("product_error", 0.0)) + sum(
        abs(x["factor"]) * _told_error({"operator": x["of"]}) for x in terms
    )


def _norm(A: Operator) -> float:
    """Return a lower bound of |A|, to which products round: near it after a few steps.

    The smallest eigenvalues alone may all be 0.
    """
    v, norm = gaussian(A.size, 0, 0, like=torch.empty(0, dtype=A.dtype, device=A.device)), 0.0
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


def _trend(found: EpsilonTrend, origin: Origin) -> tuple[str, list[Check]]:
    """Compare the losses at the center and at three displacements, and what is made of them."""
    f = origin.objective(found.spec["objective"])
    here = origin.point(f, found.spec["point"])
    loss = float(f.value(here))
    reach = here.theta.double().abs() + 1
    slope = 100 / (1 + loss) * float((reach * f.gradient(here).double()).abs().sum())
    checks = [
        of_loss("loss", found.loss, loss, f),
        of_exact("boxes", len(found.epsilon), len(found.spec["epsilons"])),
        of_exact("values below the one before", 0.0, int((found.values.diff() < 0).sum())),
    ]
    for i in _spots(len(found.epsilon)):
        epsilon, stored = float(found.epsilon[i]), float(found.maxima[i])
        y, at = found.displacements[i].to(here.theta), f"at epsilon {epsilon:g}"
        maximum = float(f.value(Solution(here.theta + y, here.buffers)))
        outside = float((y.double().abs() / (epsilon * reach)).max()) > 1 + relative_of(y.dtype)
        rise = 100 * (stored - found.loss) / (1 + found.loss)
        checks += [
            of_stored(f"epsilon {i + 1}", epsilon, found.spec["epsilons"][i]),
            of_loss(f"maximum {at}", stored, maximum, f),
            of_stored(f"value {at}", found.values[i], rise),
            of_sum(f"first order {at}", found.first_order[i], epsilon * slope, f),
            of_exact(f"coordinates outside of the box {at}", 0.0, float(outside)),
        ]
    return f"{len(_spots(len(found.epsilon)))} of {len(found.epsilon)} boxes", checks


def _subspace_sharpness(found: SubspaceSharpness, origin: Origin) -> tuple[str, list[Check]]:
    """Compare the loss, the first draw, and the mean of all draws as they are stored."""
    spec = found.spec
    f = origin.objective(spec["objective"])
    here = origin.point(f, spec["point"])
    keys = (
        "epsilon",
        "dimension",
        "columns",
        "mode",
        "starts",
        "sign_starts",
        "iterations",
        "seed",
    )
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
        certificate=False,
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


def _density(found: Density, origin: Origin) -> tuple[str, list[Check]]:
    """Compare the ends and two moments of the first probe, and the eigenvalues left out of it.

    A moment is a sum over the nodes that rounding leaves as it is, where single nodes and weights
    inside of the spectrum are not: they are what the last steps made of all that came before.
    """
    spec, count = found.spec, len(found.nodes)
    A = origin.operator(spec["operator"])
    sums = found.weights.sum(dim=1)
    furthest = float(sums[(sums - 1).abs().argmax()])
    checks = [
        of_exact("size", found.size, A.size),
        of_exact("products", found.products, int((~found.nodes.isnan()).sum())),
        of_stored("sum of the weights of a probe", furthest, 1.0),
    ]
    pairs = _left_out(spec, A, origin)
    if spec["deflated"] and pairs is None:
        return "sums of weights", checks
    again = density(A, steps=spec["steps"], probes=1, deflate=pairs, seed=spec["seed"])
    ends = (again.nodes, found.nodes, found.known)
    largest = max(float(x[~x.isnan()].abs().max()) for x in ends if x.numel())
    relative = relative_of(A.dtype) + _told_error(spec)
    if pairs is not None:
        tol = spec["pairs"]["tol"]  # of the vectors, of which each search finds others
        relative += tol
        for i, (stored, value) in enumerate(zip(found.known, again.known, strict=True), start=1):
            limit = 2 * tol * largest + relative * largest
            name = f"known eigenvalue {i}"
            checks.append(Check(name, float(stored), float(value), limit, largest))
    (there, of_there), (here, of_here) = (
        (x.nodes[0][~x.nodes[0].isnan()], x.weights[0][~x.nodes[0].isnan()]) for x in (found, again)
    )
    for name, i in (("first", 0), ("last", -1)):
        limit = relative * spec["steps"] * largest  # an end takes the rounding of each step on
        stored, value = float(there[i]), float(here[i])
        checks.append(Check(f"{name} node of probe 1", stored, value, limit, largest))
    size = float(of_here @ here**2) ** 0.5  # |A v| of the probe v, to which its products round
    limit = relative * size + UNITS * torch.finfo(A.dtype).eps * largest
    for name, k, near in (("mean", 1, limit), ("mean square", 2, 2 * size * limit)):
        stored, value = float(of_there @ there**k), float(of_here @ here**k)
        checks.append(Check(f"{name} of probe 1", stored, value, near, size**k))
    return f"1 of {count} probes", checks


def _left_out(spec: dict[str, Any], A: Operator, origin: Origin) -> Eigenpairs | None:
    """Return the eigenpairs that probes left out, by another search; None if it takes too much."""
    made = spec["pairs"]
    if made is None:
        return None
    if made.get("algorithm") != "eigsh" or made["start"] != "random":
        origin.note("probes not recomputed, for no spec tells what they left out")
        return None
    if made["products"] > AFFORDED:
        origin.note(f"probes not recomputed, for what they left out took {made['products']}")
        return None
    options = {key: made[key] for key in ("which", "tol", "m", "budget", "memory", "seed")}
    dtype = getattr(torch, made["basis"]["dtype"].removeprefix("torch."))
    pairs = eigsh(A, made["k"], dtype=dtype, **options)
    if not pairs.converged.all():
        origin.note("probes not recomputed, for what they left out does not converge again")
        return None
    return pairs


def _estimate(found: Estimate, origin: Origin) -> tuple[str, list[Check]]:
    """Compare samples, and what is made of all of them."""
    spec, count = found.spec, len(found.samples)
    A = origin.operator(spec["operator"])
    z = rademacher(A.size, spec["seed"], 0, like=torch.empty(0, dtype=A.dtype, device=A.device))
    w = (A @ z).double()
    # To which the terms of a sample round, and of which none may be left.
    scale = float(w @ w) if found.quantity != "trace" else float(z.double().norm() * w.norm())
    scale = max(scale, abs(found.exact), float(found.samples.abs().max()))
    checks = _of_samples(found, scale)
    probes = {
        "hutchinson": count if found.products <= AFFORDED else 3,
        "hutch++": spec["probes"],  # on which its range depends
        "xtrace": 2 * count,
    }[spec["method"]]
    if probes > AFFORDED:
        origin.note(f"samples taken as they are, for any of them takes {probes} products")
        return "mean and interval", checks
    pairs = _left_out(spec, A, origin)
    if spec["deflated"] and pairs is None:
        return "mean and interval", checks
    options = {key: spec[key] for key in ("method", "seed")}
    again = ESTIMATES[found.quantity](A, probes=probes, deflate=pairs, **options)
    relative = relative_of(A.dtype) + _told_error(spec)
    relative += spec["pairs"]["tol"] if pairs is not None else 0.0
    limit, done = relative * scale, len(again.samples)
    checks += [
        Check("exact part", found.exact, again.exact, limit, scale),
        *(
            Check(f"sample {i + 1}", float(found.samples[i]), float(again.samples[i]), limit, scale)
            for i in _spots(done)
        ),
    ]
    if spec["method"] == "xtrace":
        checks.append(Check("standard error", found.stderr, again.stderr, limit, scale))
    return f"{len(_spots(done))} of {count} samples", checks


def _of_samples(found: Estimate, scale: float) -> list[Check]:
    """Compare value, error and interval with those of the samples that are stored."""
    mean, low, high = t_interval(found.samples)
    exact, count, stderr = found.exact, len(found.samples), found.stderr
    if found.spec["method"] == "xtrace":  # whose samples are not independent: by its own error
        half = float(stdtrit(count - 1, (1 + LEVEL) / 2)) * stderr
        low, high = mean - half, mean + half
    elif count > 1:
        stderr = float(found.samples.std()) / math.sqrt(count)
    else:
        stderr = math.nan
    limit = RELATIVE[torch.float64] * scale
    return [
        Check("value", found.value, exact + mean, limit, scale),
        Check("standard error of the samples", found.stderr, stderr, limit, scale),
        Check("low end of the interval", float(found.interval[0]), exact + low, limit, scale),
        Check("high end of the interval", float(found.interval[1]), exact + high, limit, scale),
    ]


def _diagonal(found: Diagonal, origin: Origin) -> tuple[str, list[Check]]:
    """Compare the largest, a middle and the smallest entry, and the sum of all."""
    spec, n = found.spec, len(found.values)
    A = origin.operator(spec["operator"])
    if found.products > AFFORDED:
        origin.note(f"entries not recomputed, for any of them takes {found.products} products")
        return "nothing", [of_exact("entries", n, A.size)]
    again = diagonal(A, **{key: spec[key] for key in ("method", "probes", "seed")})
    relative = relative_of(A.dtype) + _told_error(spec)
    # To which an entry rounds, whose samples are its products with all others.
    scale = float((found.values.abs() + found.stderr.nan_to_num() * found.samples**0.5).max())
    places = dict.fromkeys([int(found.values.argmax()), n // 2, int(found.values.argmin())])
    checks = [of_exact("samples", found.samples, again.samples)]
    for i in places:
        for name, stored, value in (
            ("entry", found.values[i], again.values[i]),
            ("standard error", found.stderr[i], again.stderr[i]),
        ):
            name, limit = f"{name} {i}", relative * scale
            checks.append(Check(name, float(stored), float(value), limit, scale))
    whole = n**0.5 * scale
    total, other = float(found.values.sum()), float(again.values.sum())
    checks.append(Check("sum", total, other, relative * whole, whole))
    return f"{len(places)} of {n} entries", checks


def _layers(found: Layers, origin: Origin) -> tuple[str, list[Check]]:
    """Compare the first, a middle and the last layer, and the whole."""
    A = origin.operator(found.spec["operator"])
    chosen = _spots(len(found.layer))
    if found.spec["by"] == "groups":
        origin.note("layers taken as they are, for their places are in no file")

    def affords(what: str, products: int) -> bool:
        if products > AFFORDED:
            origin.note(f"{what} not recomputed, for that takes {products} products")
        return products <= AFFORDED

    error = _told_error(found.spec)
    checks = list(recomputing_layers.spots(found, A, chosen, error, affords))
    some = f"{len(chosen)} of {len(found.layer)} layers and "
    return f"{some if found.spec['by'] != 'groups' else ''}the whole", checks


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
    "Measured": measure,
    "Invariance": invariance,
    "EpsilonTrend": _trend,
    "Trajectory": _trajectory,
    "Comparison": _comparison,
    "Density": _density,
    "Estimate": _estimate,
    "Diagonal": _diagonal,
    "Layers": _layers,
    "BatchEigenvalues": batches,
    "ClassStructure": classes,
}
