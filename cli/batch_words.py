"""What eigenvalues of mini-batches tell, in words and numbers."""

import math

from sharpness.results import BatchEigenvalues
from sharpness.text import interval, operator_name, table

from .words import many, number, operator

FEW = 5  # mini-batches that are named one by one
LEVELS = (0.0, 0.05, 0.5, 0.95, 1.0)  # of quantiles
HEADER = ["eigenvalue", "mean", "sd", "least", "5 %", "median", "95 %", "largest", "all the data"]


def batches(found: BatchEigenvalues) -> list[str]:
    """Return the lines of eigenvalues of mini-batches."""
    spec, (count, k) = found.spec, found.values.shape
    kept = f", {found.left_out:,} of them in none" if found.left_out else ""
    rows = []
    for i in range(k):
        numbers = [found.spread(i), *found.quantiles(LEVELS, i).tolist()]
        whole = f"{float(found.whole_values[i]):.6g}"
        sure = bool(found.whole_converged[i])
        rows.append(
            [
                f"lambda_{i + 1}",
                interval(found.mean(i)),
                *(number(x, ".4g") for x in numbers),
                whole if sure else f">= {whole} (NOT converged)",
            ]
        )
    return [
        operator(spec["operator"]),
        f"{many(count, 'mini-batch', 'es')} of {found.batch_size:,} of {found.examples:,} "
        f"examples{kept}, drawn by seed {spec['seed']}",
        *table(HEADER, rows),
        *_law(found),
        *_sampled(found),
        *_unconverged(found),
        f"losses from {float(found.losses.min()):.4g} to {float(found.losses.max()):.4g}, of all "
        f"the data {found.whole_loss:.4g}; {many(found.products, 'product')}",
    ]


def _law(found: BatchEigenvalues) -> list[str]:
    """Return how the mean stands to the value of all the data, which convexity bounds."""
    mean, whole = found.mean()[0], float(found.whole_values[0])
    if not (found.converged[:, 0].all() and found.whole_converged[0] and whole > 0):
        return []
    words = f"the mean of lambda_1 is {mean / whole:.3g} times that of all the data"
    if found.is_partition:
        words += (
            ", and over all mini-batches of a partition never less: the largest eigenvalue is "
            "convex in the matrix"
        )
    return [words]


def _sampled(found: BatchEigenvalues) -> list[str]:
    errors = found.whole_sampling_errors
    if not (errors != 0).any():
        return []
    told = ", ".join(number(x, ".2g") for x in errors.tolist())
    return [f"the data are a sample, by which theirs have standard errors of {told}"]


def _unconverged(found: BatchEigenvalues) -> list[str]:
    """Return which values did not converge."""
    missed = (~found.converged).nonzero().tolist()
    if not missed:
        return []
    places = [
        f"lambda_{j + 1} of mini-batch {i + 1} >= {float(found.values[i, j]):.4g}"
        for i, j in missed[:FEW]
    ]
    more = "; ..." if len(missed) > FEW else ""
    return [
        f"NOT converged: {many(len(missed), 'value')}, lower bounds that do not count in means "
        f"and quantiles ({'; '.join(places)}{more})"
    ]


def batches_summary(found: BatchEigenvalues) -> str:
    """Return eigenvalues of mini-batches in a few words."""
    mean, _, _ = found.mean()
    whole = float(found.whole_values[0])
    count = len(found.values)
    words = f"{operator_name(found.spec['operator'])}: lambda_1 of "
    words += f"{many(count, 'mini-batch', 'es')} of {found.batch_size:,}, mean "
    words += f"{'unknown' if math.isnan(mean) else f'{mean:.4g}'}, {whole:.4g} of all the data"
    missing = int((~found.converged).sum()) + int((~found.whole_converged).sum())
    return words + (f", {missing} NOT converged" if missing else "")
