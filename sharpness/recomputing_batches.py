"""The first, a middle and the last mini-batch of a result, and all its data, computed again."""

from collections.abc import Iterable

from torch import Tensor

from sharpness.by_batch import batch_eigenvalues, no_pieces
from sharpness.checks import Check, of_exact, of_loss, of_sum, relative_of
from sharpness.rebuilding import Origin
from sharpness.results import BatchEigenvalues

# Of a sampling error, whose vector another search finds to its residual over the gap.
VECTOR = 1e-2
OPTIONS = (
    *("batch_size", "count", "k", "engine", "draws", "weight_decay", "decayed", "params"),
    *("tol", "seed"),
)


def batches(found: BatchEigenvalues, origin: Origin) -> tuple[str, list[Check]]:
    """Compare eigenvalues, residuals, losses and weights, each search to its residual."""
    spec, made, count = found.spec, found.spec["operator"], len(found.values)
    while "of" in made:
        made = made["of"]
    f = origin.objective(made["objective"])
    spots = sorted({0, count // 2, count - 1})
    again = batch_eigenvalues(
        f,
        **{key: spec[key] for key in OPTIONS},
        operator=spec["matrix"],
        point=origin.point(f, made["point"]),
        pieces=no_pieces(spec["k"], set(range(count)) - set(spots)),
    )
    error = max(x.get("product_error", 0.0) for x in (spec, made))
    relative = relative_of(f.theta.dtype) + error
    checks = [
        of_exact("examples", found.examples, again.examples),
        of_exact("batch_size", found.batch_size, again.batch_size),
        of_loss("loss of all the data", found.whole_loss, again.whole_loss, f),
    ]
    parts: list[tuple[str, str, tuple[int, ...]]] = [("all the data", "whole_", ())]
    parts += [(f"mini-batch {i + 1}", "", (i,)) for i in spots]
    for of, start, place in parts:
        names = [f"{start}{name}" for name in ("values", "residuals", "converged")]
        mine, other = ([getattr(x, name)[place] for name in names] for x in (found, again))
        if not mine[2].all():
            origin.note(f"values of {of} did not converge, so that another search ends elsewhere")
        checks += _searches(of, mine, other, spec["tol"], relative)
    for i in spots:
        of = f"of mini-batch {i + 1}"
        checks.append(of_loss(f"loss {of}", found.losses[i], again.losses[i], f))
        checks.append(of_sum(f"weight {of}", found.weights[i], again.weights[i], f))
    errors = zip(found.whole_sampling_errors.tolist(), again.whole_sampling_errors, strict=True)
    for j, (stored, scatter) in enumerate(errors):
        scale = abs(float(scatter))
        name = f"sampling error {j + 1} of all the data"
        checks.append(Check(name, stored, float(scatter), VECTOR * scale, scale))
    return f"{len(spots)} of {count} mini-batches and all the data", checks


def _searches(
    of: str, stored: list[Tensor], again: list[Tensor], tol: float, relative: float
) -> Iterable[Check]:
    """Yield the checks of what converged, (k,) each: values, residuals and whether they did."""
    largest = max(float(x.abs().max()) for x in (stored[0], again[0]))
    rounding = relative * largest
    for j, (value, residual, converged) in enumerate(zip(*stored, strict=True)):
        if not converged:
            continue
        found, other = float(again[0][j]), float(again[1][j])
        name = f"eigenvalue {j + 1} of {of}"
        yield Check(name, float(value), found, float(residual) + other + rounding, largest)
        limit = 10 * tol * largest + rounding
        yield Check(f"residual of {name}", float(residual), other, limit, largest)
