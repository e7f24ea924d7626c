"""Results in words and numbers on stdout: what each command prints, and the command ``show``."""

import json
import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
from torch import Tensor

from sharpness.errors import InputError
from sharpness.profiles import Basin
from sharpness.results import (
    BatchEigenvalues,
    ClassStructure,
    Comparison,
    Convexity,
    Cut,
    Density,
    Diagonal,
    Eigenpairs,
    EpsilonTrend,
    Estimate,
    Invariance,
    Layers,
    Line,
    Measured,
    Plane,
    Result,
    Run,
    Sharpness,
    Solution,
    SubspaceSharpness,
    Trajectory,
)
from sharpness.text import table

from . import batch_words, class_words, invariance_words, layered, measured_words, spectra
from .parameters import COMMON, reporting
from .words import operator, place

ENTRIES = 10_000  # of an array; a larger one is told by its shape in JSON
FEW = 5  # points that are named one by one
# The values of a grid by name, which are data where they are not finite.
GRIDS: dict[type, Callable[[Any], dict[str, Tensor]]] = {
    Line: lambda found: found.values,
    Cut: lambda found: found.values,
    Plane: lambda found: found.values,
    Convexity: lambda found: {"smallest": found.smallest, "largest": found.largest},
}


@click.command(context_settings=COMMON)
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@reporting
def command(files: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Print what a result FILE holds, and the tree of what computed it.

    \b
    Examples:
      sharpness show sb.h5
      sharpness show --json sb.eigs.h5
    """
    from sharpness.findings import mismatches
    from sharpness.store import load, request_of

    results = {name: load(name) for name in files}
    for remark in mismatches(results):
        click.echo(remark, err=True)
    for name in files:
        result = results[name]
        if as_json:
            say(json.dumps(as_values(result), allow_nan=False))
            continue
        say(f"{click.format_filename(Path(name).name)}: {type(result).__name__}")
        report(result, as_json=False)
        for remark in _unchecked(result.spec):
            say(remark)
        say("computed by")
        for line in tree(result.spec):
            say(f"  {line}")
        asked = request_of(name)
        if asked:
            say("asked for by")
            for line in tree(asked):
                say(f"  {line}")


def say(text: str) -> None:
    """Print a line on stdout; what goes wrong there is told with that name."""
    try:
        # What a file says is text, and nothing that a terminal obeys.
        click.echo("".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text))
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from error


def note(text: str) -> None:
    """Print a remark on stderr, unless the command is to be quiet."""
    if not click.get_current_context().params.get("quiet"):
        click.echo(text, err=True)


def report(result: Result, *, as_json: bool) -> None:
    """Print a result on stdout, for people or for machines."""
    if as_json:
        say(json.dumps(as_values(result), allow_nan=False))
        return
    for line in LINES[type(result)](result):
        say(line)


def summary(result: Result) -> str:
    """Return what a result is, in a few words."""
    return SUMMARIES[type(result)](result)


def tree(value: Any, indent: str = "") -> list[str]:
    """Return a tree of JSON values as indented lines."""
    lines: list[str] = []
    for key, item in value.items():
        if isinstance(item, dict) and item:
            lines += [f"{indent}{key}", *tree(item, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {json.dumps(item) if item != '' else ''}")
    return lines


def _unchecked(spec: Any) -> list[str]:
    """Return which checkpoints in a tree had nothing that damage would have shown by."""
    if not isinstance(spec, dict | list):
        return []
    remarks = []
    if isinstance(spec, dict) and spec.get("checksum") == "none":
        remarks = [f"NOT checked for damage: {spec['name']!a} has no checksum"]
    for item in spec.values() if isinstance(spec, dict) else spec:
        remarks += _unchecked(item)
    return list(dict.fromkeys(remarks))


def as_values(result: Any) -> Any:
    """Return a result as JSON values; NaN and infinity become null.

    Of a grid, ``not_finite`` counts both for each of its values that has some.
    """
    values: dict[str, Any] = {"type": type(result).__name__}
    for field in fields(result):
        values[field.name] = json_value(getattr(result, field.name))
    if type(result) in GRIDS:
        values["not_finite"] = {
            name: {"nan": int(x.isnan().sum()), "inf": int(x.isinf().sum())}
            for name, x in GRIDS[type(result)](result).items()
            if not x.isfinite().all()
        }
    return values


def json_value(x: Any) -> Any:
    """Return a field as JSON values."""
    if isinstance(x, dict):
        return {key: json_value(item) for key, item in x.items()}
    if isinstance(x, list):
        return [json_value(item) for item in x]
    if isinstance(x, Solution):
        return {"theta": json_value(x.theta), "buffers": json_value(x.buffers)}
    if isinstance(x, float):
        return x if math.isfinite(x) else None
    if hasattr(x, "numel"):
        if x.numel() > ENTRIES:
            return {"shape": list(x.shape), "dtype": str(x.dtype)}
        return json_value(x.tolist())
    return x


def _run(run: Run) -> list[str]:
    record = run.spec["train"]
    words = [f"{record['model']} on {record['data']}, loss {record['loss']}"]
    words[0] += f", {len(run.end.theta):,} parameters in {run.end.theta.dtype}".replace(
        "torch.", ""
    )
    if run.stopped == "read":
        checkpoint = run.spec["checkpoint"]
        return [*words, f"read from {checkpoint['name']}, SHA-256 {checkpoint['sha256'][:12]}"]
    goal = record["stop_loss"]
    words.append(
        f"{record['optimizer']}{_by(record)} at rate {record['learning_rate']:g}, batch size "
        f"{record['batch_size']}, seed {record['seed']}: {run.updates:,} updates, "
        f"{int(run.history['examples'][-1]):,} examples, {_ending(run)}"
    )
    if not run.has_met:
        words.append(f"NOT at the training loss {goal:g}: leave it out of comparisons at that loss")
    if "average" in run.spec:
        words.append(_averaged(run))
    rights = {}
    for part in ("train", "test"):
        text = f"{part:5} loss {float(run.history[f'{part}_loss'][-1]):.4g}"
        if f"{part}_right" in run.history:
            total = run.spec["data"][f"{part}_examples"]
            right = int(run.history[f"{part}_right"][-1])
            rights[part] = right / total
            text += f", accuracy {100 * right / total:.2f} % ({right} of {total})"
        words.append(text)
    if rights:
        gap = 100 * (rights["train"] - rights["test"])
        words.append(f"own generalization gap (train - test accuracy) {gap:.2f} points")
    return words


def _by(record: dict[str, Any]) -> str:
    return f" by the method {record['method']}" if "method" in record else ""


def _averaged(run: Run) -> str:
    told = run.spec["average"]
    if told["at"] != "end":
        return (
            f"the last checkpoint is an average of weights, of train loss {told['train_loss']:.4g}"
        )
    return (
        "the end is an average of weights; the last iterate, of train loss "
        f"{float(run.history['train_loss'][-2]):.4g}, is the last checkpoint"
    )


def _ending(run: Run) -> str:
    if run.stopped == "interrupted":
        return "interrupted there"
    told = run.spec.get("stop", {})
    if run.stopped == "diverged":
        return f"the last before it diverged in update {told['update']:,}"
    if run.stopped == "early_stopping":
        return (
            f"the best of {told['update']:,} by the validation loss {told['validation_loss']:.4g}"
        )
    if "alpha" in told:  # on the line between two looks
        return f"stopped by {run.stopped} between {told['before'][0]:,} and {told['update']:,}"
    return f"stopped by {run.stopped}"


def _eigenpairs(pairs: Eigenpairs) -> list[str]:
    sampled = bool((pairs.sampling_errors != 0).any())
    rows = [
        [str(i), f"{value:.8g}", f"{residual:.1e}", "yes" if ok else "NO"]
        + ([f"{error:.2g}"] if sampled else [])
        for i, (value, residual, ok, error) in enumerate(
            zip(
                pairs.values.tolist(),
                pairs.residuals.tolist(),
                pairs.converged.tolist(),
                pairs.sampling_errors.tolist(),
                strict=True,
            ),
            start=1,
        )
    ]
    header = ["i", "eigenvalue", "residual", "converged", *(["sampling error"] if sampled else [])]
    return [
        operator(pairs.spec["operator"]),
        *table(header, rows),
        f"{pairs.products} products, {pairs.check_products} more to "
        f"check them; |V V^T - I| <= {pairs.orthogonality:.1e}",
    ]


def _line(line: Line) -> list[str]:
    names = list(line.values)
    rows = [
        [f"{alpha:.6g}", *(f"{float(line.values[name][i]):.6g}" for name in names)]
        for i, alpha in enumerate(line.alphas.tolist())
    ]
    path = line.spec.get("path", "linear")
    about = f"distance of the ends {line.distance:.6g}"
    return [
        about if path == "linear" else f"{about}, {path} path",
        *_grounds(line.spec),
        *table(["alpha", *names], rows),
        *_barriers(line),
        *_basins(line),
        *_not_finite(line, ("alpha", line.alphas.tolist())),
    ]


def _grounds(spec: dict[str, Any]) -> list[str]:
    """Return what the values were computed of."""
    words = [place(of) for of in spec["objectives"].values()]
    norms = spec.get("batch_norm_layers", 0)
    return [*words, *([f"BatchNorm {spec['batch_norm']}, {norms} layers"] if norms else [])]


def _barriers(line: Line) -> list[str]:
    rows = []
    for name in line.values:
        unit, named = 1, name
        if name.endswith("accuracy"):
            unit, named = 100, f"{name.removesuffix('accuracy')}error, points"
        try:
            found, run = line.barrier(name), line.monotone(name)
        except InputError:
            return ["barrier unknown: no points at alpha 0 and 1"]
        height, chord, rise, fall = (
            "unknown" if math.isnan(x) else f"{unit * x:.4g}" for x in (*found[:2], *run)
        )
        at = "unknown" if math.isnan(found.height) else f"{found.alpha:.4g}"
        monotone = "yes" if 0 in run else "unknown" if "unknown" in (rise, fall) else "no"
        rows.append([named, height, chord, at, rise, fall, monotone])
    header = ["between the ends", "barrier", "above chord", "at alpha", "rise", "fall", "monotone"]
    return table(header, rows)


def _basins(line: Line) -> list[str]:
    rows, level = [], line.level
    if math.isnan(level):
        return []
    for at, end in enumerate(("start", "end")):
        found = line.basin(level, at=at)
        width = f"{found.high - found.low:.4g}"
        censored = found.low_censored or found.high_censored
        rows.append([end, *_sides(found), f">= {width}" if censored else width])
    return table([f"loss below {level:.3g} around", "from alpha", "to alpha", "width"], rows)


def _sides(found: Basin) -> tuple[str, str]:
    """Return both sides of a basin, marked where it may go on."""
    low, high = (f"{side:.4g}" for side in found[:2])
    return (
        f"<= {low}" if found.low_censored else low,
        f">= {high}" if found.high_censored else high,
    )


def _not_finite(found: Any, *axes: tuple[str, list[Any]]) -> list[str]:
    """Return which values of a grid are not finite, and where.

    Args:
        axes: In the order of the values' own, each with its name and its places.
    """
    said = []
    for name, x in GRIDS[type(found)](found).items():
        lost = (~x.isfinite()).nonzero().tolist()
        places = [
            ", ".join(
                f"{axis} {places[i]:.4g}" for (axis, places), i in zip(axes, index, strict=True)
            )
            for index in lost[:FEW]
        ]
        where = "; ".join(places) + ("; ..." if len(lost) > FEW else "")
        if lost:
            where = "everywhere" if len(lost) == x.numel() else where
            said.append(f"NOT finite: {name} at {len(lost)} of {x.numel()} points ({where})")
    return said


def _lost(found: Any) -> str:
    """Return in how many points of a grid something is not finite, for a summary."""
    lost = [x.isfinite().logical_not() for x in GRIDS[type(found)](found).values()]
    count = int(sum(lost[1:], lost[0]).bool().sum())
    return f", {count} NOT finite" if count else ""


def _missed(spec: dict[str, Any], i: int | None = None) -> str:
    """Return the mark of an eigenvector that did not converge, or of any of them."""
    converged = spec.get("directions", {}).get("converged", [])
    chosen = converged if i is None else converged[i : i + 1]
    return "" if all(chosen) else " (NOT converged)"


def _cut(found: Cut) -> list[str]:
    level, sampled = found.level, bool((found.curvature_sampling_errors > 0).any())
    header = ["direction", "length", "slope", "curvature"]
    header += ["sampling error"] if sampled else []
    header += [f"loss below {level:.3g} from", "to"]
    rows = []
    for i, (length, slope, curvature, error) in enumerate(
        zip(
            found.lengths.tolist(),
            found.slopes.tolist(),
            found.curvatures.tolist(),
            found.curvature_sampling_errors.tolist(),
            strict=True,
        )
    ):
        row = [f"{i + 1}{_missed(found.spec, i)}", f"{length:.6g}"]
        row += ["unknown" if math.isnan(x) else f"{x:.6g}" for x in (slope, curvature)]
        row += [f"{error:.2g}"] if sampled else []
        try:
            row += _sides(found.basin(i, level))
        except InputError:  # no point at 0
            row += ["unknown", "unknown"]
        rows.append(row)
    return [
        f"{found.title}; norm of theta {found.norm:.6g}",
        *_grounds(found.spec),
        *table(header, rows),
        *_bands(found),
        *_not_finite(
            found,
            ("direction", list(range(1, len(found.directions) + 1))),
            ("alpha", found.alphas.tolist()),
        ),
    ]


def _bands(found: Cut) -> list[str]:
    """Return the values at each alpha: of a band the mean, and the lowest and highest loss."""
    header, columns = ["alpha"], []
    for name, values in found.values.items():
        if len(values) == 1:
            header.append(name)
            columns.append(values[0])
        elif found.is_band:
            header.append(f"{name}, mean")
            columns.append(values.mean(dim=0))
            if name.endswith("loss"):
                header += ["lowest", "highest"]
                columns += [values.min(dim=0).values, values.max(dim=0).values]
        elif name.endswith("loss"):
            header += [f"{name} {i}" for i in range(1, len(values) + 1)]
            columns += values.unbind()
    rows = [
        [f"{alpha:.6g}", *(f"{float(column[i]):.6g}" for column in columns)]
        for i, alpha in enumerate(found.alphas.tolist())
    ]
    return table(header, rows)


def _sharpness(found: Sharpness) -> list[str]:
    spec = found.spec
    lines = [
        f"Metric 2.1 (epsilon {found.epsilon:g}): {place(spec['objective'])}",
        f"value {found.value:.8g} (at least: the best of {len(found.start_values)} starts, "
        f"{spec['mode']})",
    ]
    if found.sampling_error:
        lines.append(f"sampling error {found.sampling_error:.2g}")
    if found.value <= 10 * found.rounding:
        lines.append(
            f"NOT above rounding, which alone can give {found.rounding:.1e}: use --dtype float64"
        )
    else:
        lines.append(f"first-order share {found.first_order_share:.4f}")
    lines += [f"small: {SMALL[found.why]}"] if found.why else []
    lines += [
        f"loss {found.loss:.8g}, in the box {found.maximum:.8g}; {100 * found.on_bounds:.1f} % of "
        f"coordinates on its bounds; {found.gradients} gradients, {found.products} products, "
        f"{found.forwards} forward passes",
        *_bounds(found),
    ]
    rows = [
        [name, f"{begin:.8g}", f"{value:.8g}", f"{100 * share:.1f} %", str(steps), str(used)]
        for name, begin, value, share, steps, used in zip(
            found.start,
            found.start_begins.tolist(),
            found.start_values.tolist(),
            found.start_on_bounds.tolist(),
            found.start_iterations.tolist(),
            found.start_gradients.tolist(),
            strict=True,
        )
    ]
    header = ["start", "value there", "value", "on bounds", "iterations", "gradients"]
    return lines + table(header, rows)


# Why a value is small, in a sentence.
SMALL = {
    "stuck": "STUCK, for no start found what the model of the loss says must be there",
    "at float precision": "at float precision, where rounding hides what there may be",
    "truly flat": "truly flat, for the model of the loss can hardly rise more",
    "unknown": "unknown why, without a ceiling that is as small",
}


def _bounds(found: Sharpness) -> list[str]:
    """Return what the quadratic model of the loss says of its maximum in the box."""
    if not found.bounds:
        return []
    b = {name: f"{float(x):.6g}" for name, x in found.bounds.items()}
    ceiling = "unknown" if math.isnan(found.ceiling) else f"{found.ceiling:.6g}"
    factor = "unknown" if math.isnan(found.factor) else f"{found.factor:.3g}"
    return [
        "of the quadratic MODEL of the loss, which the loss itself may exceed:",
        f"  maximum at least {b['best_vertex']} (its best vertex), at most {ceiling}: certified to "
        f"a factor {factor}",
        f"  at the signs of G {b['gradient_vertex']}, of q {b['eigenvector_vertex']}; at least "
        f"{b['khinchine']} by norm of G and trace",
        f"  at least {b['first_order']} by |G|_1 and {b['rank_one']} by rank one, where the "
        "Hessian has no negative eigenvalue",
        f"  at most {b['eigenvalue_ceiling']} by the top eigenvalue, {b['scaled_ceiling']} scaled",
    ]


def _trend(found: EpsilonTrend) -> list[str]:
    rows = [
        [
            f"{epsilon:g}",
            f"{value:.8g}" + (" (rounding)" if value <= 10 * rounding else ""),
            "unknown" if math.isnan(share) else f"{share:.4f}",
            "unknown" if math.isnan(exponent) else f"{exponent:.3f}",
        ]
        for epsilon, value, rounding, share, exponent in zip(
            found.epsilon.tolist(),
            found.values.tolist(),
            found.rounding.tolist(),
            found.first_order_shares.tolist(),
            found.exponents.tolist(),
            strict=True,
        )
    ]
    lines = [
        f"Metric 2.1 of growing boxes: {place(found.spec['objective'])}",
        f"loss {found.loss:.8g}; {found.gradients} gradients, {found.forwards} forward passes; "
        "exponent 1 is that of a slope, 2 that of curvature",
    ]
    if found.sampling_errors.any():
        lines.append(f"sampling error of the last {float(found.sampling_errors[-1]):.2g}")
    return lines + table(["epsilon", "value", "first-order share", "exponent"], rows)


def _subspace(found: SubspaceSharpness) -> list[str]:
    spec = found.spec
    low, high = found.interval.tolist()
    rows = [
        [str(i), f"{x:.8g}", f"{slope / x:.4f}" if x else "unknown", f"{100 * share:.1f} %"]
        for i, (x, slope, share) in enumerate(
            zip(
                found.draw_values.tolist(),
                found.draw_first_order.tolist(),
                found.draw_on_bounds.tolist(),
                strict=True,
            ),
            start=1,
        )
    ]
    known = "unknown" if math.isnan(low) else f"[{low:.6g}, {high:.6g}]"
    return [
        f"Metric 2.1 in subspaces of {spec['dimension']} dimensions (epsilon {found.epsilon:g}): "
        f"{place(spec['objective'])}",
        f"mean {found.value:.8g} over {spec['draws']} draws ({spec['columns']} columns), 95 % "
        f"interval {known}",
        f"loss {found.loss:.8g}; {found.gradients} gradients, {found.forwards} forward passes",
        *table(["draw", "value", "first-order share", "on bounds"], rows),
    ]


def _trajectory(found: Trajectory) -> list[str]:
    rows = [
        [
            f"{update:,}",
            f"{loss:.4g}",
            f"{value:.6g}{'' if converged else ' (not converged)'}",
            f"{residual:.1e}",
            f"{phi:.6g}",
            f"{slope / phi:.4f}" if phi else "unknown",
        ]
        for update, loss, value, converged, residual, phi, slope in zip(
            found.updates.tolist(),
            found.train_loss.tolist(),
            found.lambda_1.tolist(),
            found.converged.tolist(),
            found.residuals.tolist(),
            found.metric_2_1.tolist(),
            found.first_order.tolist(),
            strict=True,
        )
    ]
    header = ["updates", "training loss", "lambda_1", "residual", "Metric 2.1", "1st-order share"]
    return [
        f"along training (epsilon {found.epsilon:g}): {place(found.spec['objective'])}",
        *table(header, rows),
    ]


def _comparison(comparison: Comparison) -> list[str]:
    from sharpness.findings import lines

    return lines(comparison)


def _plane(found: Plane) -> list[str]:
    center = _at_zero(found)
    rows = []
    for name, values in found.values.items():
        known = values[values.isfinite()]
        ends = [f"{float(x):.6g}" for x in (known.min(), known.max())] if len(known) else ["-", "-"]
        here = f"{float(values[center]):.6g}" if center else "-"
        rows.append([name, here, *ends, str(values.numel() - len(known))])
    beside = [
        [
            label,
            *(f"{x:.4g}" for x in [*place.tolist(), float(distance)]),
            *(f"{float(values[i]):.6g}" for values in numbers.values()),
        ]
        for labels, places, distances, numbers in (
            (
                [f"update {done:,}" for done in found.path_updates.tolist()],
                found.path,
                found.path_distances,
                found.path_values,
            ),
            (
                found.solutions,
                found.solution_points,
                found.solution_distances,
                found.solution_values,
            ),
        )
        for i, (label, place, distance) in enumerate(zip(labels, places, distances, strict=True))
    ]
    lines = [*_axes(found), *_grounds(found.spec)]
    lines += table(["value", "at the center", "smallest", "largest", "not finite"], rows)
    lines += _not_finite(found, *_coordinates(found))
    if beside:
        lines += table(["beside it", "alpha", "beta", "distance", *found.values], beside)
    if len(found.path) > 2:
        shares, walks = found.explained.tolist(), found.random_walk.tolist()
        lines += [
            f"the path's variance along the axes {100 * shares[0]:.1f} % and {100 * shares[1]:.1f}"
            f" %; a random walk's, along its own, {100 * walks[0]:.1f} % and {100 * walks[1]:.1f} %"
        ]
    return lines


def _convexity(found: Convexity) -> list[str]:
    missed, total = _unconverged(found), found.largest.numel()
    told = f"{missed} of {total} points NOT converged" if missed else f"all {total} converged"
    flat = int((found.largest <= 0).sum())
    rows = []
    for name in ("smallest", "largest", "ratio"):
        values = getattr(found, name)
        known = values[values.isfinite()]
        ends = [f"{float(x):.6g}" for x in (known.min(), known.max())] if len(known) else ["-", "-"]
        residuals = getattr(found, f"{name}_residuals", values[:0])
        worst = residuals[residuals.isfinite()]
        rows.append([name, *ends, f"{float(worst.max()):.1e}" if len(worst) else ""])
    return [
        *_axes(found),
        *_grounds({**found.spec, "objectives": {"": found.spec["objective"]}}),
        *table(["eigenvalue", "smallest", "largest", "residual at most"], rows),
        f"{found.products:,} products; {told}",
        *_not_finite(found, *_coordinates(found)),
        *([f"no ratio at {flat} points, where the largest is not above 0"] if flat else []),
    ]


def _unconverged(found: Convexity) -> int:
    return int((~(found.smallest_converged & found.largest_converged)).sum())


def _coordinates(found: Plane | Convexity) -> list[tuple[str, list[float]]]:
    return [("alpha", found.alphas.tolist()), ("beta", found.betas.tolist())]


def _axes(found: Plane | Convexity) -> list[str]:
    """Return what a plane's axes are, one in a line."""
    grids = (("alpha", found.alphas), ("beta", found.betas))
    return [
        f"{name} {float(grid[0]):g} to {float(grid[-1]):g} in {len(grid)} points along "
        f"{found.axes[i]}{_missed(found.spec, i)}, of length {float(found.lengths[i]):.4g} "
        f"({found.norm:.4g} is |theta|)"
        for i, (name, grid) in enumerate(grids)
    ] + [f"cosine of the angle between them {found.cosine:.2g}"]


def _at_zero(found: Plane) -> tuple[int, int] | None:
    """Return where the center is in the grid, if it is there."""
    places = [(grid == 0).nonzero().flatten().tolist() for grid in (found.alphas, found.betas)]
    return (places[0][0], places[1][0]) if all(places) else None


LINES: dict[type, Callable[[Any], list[str]]] = {
    Run: _run,
    Eigenpairs: _eigenpairs,
    Line: _line,
    Cut: _cut,
    Sharpness: _sharpness,
    SubspaceSharpness: _subspace,
    Measured: measured_words.measured,
    Invariance: invariance_words.invariance,
    EpsilonTrend: _trend,
    Trajectory: _trajectory,
    Comparison: _comparison,
    Plane: _plane,
    Convexity: _convexity,
    Density: spectra.density,
    Estimate: spectra.estimate,
    Diagonal: spectra.diagonal,
    Layers: layered.layers,
    BatchEigenvalues: batch_words.batches,
    ClassStructure: class_words.classes,
}


def _run_summary(run: Run) -> str:
    record = run.spec["train"]
    words = f"{record['model']} on {record['data']}"
    if run.stopped == "read":
        return f"{words} read from {run.spec['checkpoint']['name']}"
    loss = float(run.history["train_loss"][-1])
    return (
        f"{words} batch {record['batch_size']} rate {record['learning_rate']:g} seed "
        f"{record['seed']}: training loss {loss:.2g} after {run.updates:,} updates"
    )


def _pairs_summary(pairs: Eigenpairs) -> str:
    missing = int((~pairs.converged).sum())
    first, last = float(pairs.values[0]), float(pairs.values[-1])
    words = f"{pairs.spec['operator']['operator']}: eigenvalue {first:.4g}"
    words += f" to {last:.4g}, {len(pairs.values)} of them" if len(pairs.values) > 1 else ""
    return words + (f", {missing} NOT converged" if missing else "")


def _line_summary(line: Line) -> str:
    ends = f"alpha {float(line.alphas[0]):g} to {float(line.alphas[-1]):g}"
    words = f"{len(line.alphas)} points, {ends}, distance of the ends {line.distance:.4g}"
    return words + _lost(line)


def _cut_summary(found: Cut) -> str:
    ends = f"alpha {float(found.alphas[0]):g} to {float(found.alphas[-1]):g}"
    return f"{len(found.alphas)} points {found.title}{_missed(found.spec)}, {ends}{_lost(found)}"


def _sharpness_summary(found: Sharpness) -> str:
    starts = len(found.start_values)
    return f"Metric 2.1 {found.value:.4g} (epsilon {found.epsilon:g}, best of {starts} starts)"


def _subspace_summary(found: SubspaceSharpness) -> str:
    about = f"{found.spec['dimension']} dimensions, {found.spec['draws']} draws"
    return f"Metric 2.1 in subspaces {found.value:.4g} (epsilon {found.epsilon:g}, {about})"


def _trend_summary(found: EpsilonTrend) -> str:
    ends = [f"{float(x[i]):.4g}" for i in (0, -1) for x in (found.values, found.epsilon)]
    return f"Metric 2.1 from {ends[0]} (epsilon {ends[1]}) to {ends[2]} (epsilon {ends[3]})"


def _trajectory_summary(found: Trajectory) -> str:
    ends = f"{float(found.lambda_1[0]):.4g} to {float(found.lambda_1[-1]):.4g}"
    missing = int((~found.converged).sum())
    words = f"{len(found.updates)} points of a training, lambda_1 from {ends}"
    return words + (f", {missing} NOT converged" if missing else "")


def _comparison_summary(found: Comparison) -> str:
    unknown = sum(int((x.isnan() & found.reached).sum()) for x in found.values.values())
    words = f"{len(found.groups)} groups over {len(found.seeds)} seeds"
    words += f", {len(found.values)} measures"
    return words + (f", {unknown} values UNKNOWN" if unknown else "")


def _plane_summary(found: Plane) -> str:
    name, values = next(iter(found.values.items()))
    known = values[values.isfinite()]
    ends = f"{float(known.min()):.4g} to {float(known.max()):.4g}" if len(known) else "not finite"
    words = f"{len(found.alphas)} x {len(found.betas)} points{_missed(found.spec)}, {name} {ends}"
    return words + _lost(found)


def _convexity_summary(found: Convexity) -> str:
    ratio = found.ratio[found.ratio.isfinite()]
    ends = f"{float(ratio.min()):.4g} to {float(ratio.max()):.4g}" if len(ratio) else "unknown"
    words = f"{len(found.alphas)} x {len(found.betas)} points{_missed(found.spec)}"
    words += f", lambda_min / lambda_max {ends}{_lost(found)}"
    missing = _unconverged(found)
    return words + (f", {missing} NOT converged" if missing else "")


SUMMARIES: dict[type, Callable[[Any], str]] = {
    Run: _run_summary,
    Eigenpairs: _pairs_summary,
    Line: _line_summary,
    Cut: _cut_summary,
    Sharpness: _sharpness_summary,
    SubspaceSharpness: _subspace_summary,
    Measured: measured_words.summary,
    Invariance: invariance_words.summary,
    EpsilonTrend: _trend_summary,
    Trajectory: _trajectory_summary,
    Comparison: _comparison_summary,
    Plane: _plane_summary,
    Convexity: _convexity_summary,
    Density: spectra.density_summary,
    Estimate: spectra.estimate_summary,
    Diagonal: spectra.diagonal_summary,
    Layers: layered.summary,
    BatchEigenvalues: batch_words.batches_summary,
    ClassStructure: class_words.classes_summary,
}
