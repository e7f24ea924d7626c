"""The curvature by class, in words and numbers."""

import math

from sharpness.results import ClassStructure
from sharpness.text import operator_name, table

from .words import many, number, operator

HARDLY = 2.0  # a ratio of neighbors below which an outlier hardly stands apart


def classes(found: ClassStructure) -> list[str]:
    """Return the lines of a class structure."""
    absent = f", without an example of {_listed(found.absent)}" if found.absent else ""
    return [
        operator(found.spec["operator"]),
        f"{found.classes:,} classes{absent}; {_outliers(found)}",
        *_eigenvalues(found),
        _overlap(found),
        *_gradient(found),
        *_means(found),
        f"{many(found.products, 'product')}, {found.check_products} more to check them; "
        f"{found.backward_passes} backward passes for means and gradient",
    ]


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _outliers(found: ClassStructure) -> str:
    count = found.outliers
    if not count:
        return "no outliers"
    words = f"{many(count, 'outlier')}, by the largest ratio of neighbors"
    words += "" if math.isnan(found.gap) else f", {found.gap:.3g}"
    words += ", hardly a gap" if found.gap < HARDLY else ""
    missed = not found.converged[: count + 1].all()
    return f"{words} (NOT converged)" if missed else words


def _eigenvalues(found: ClassStructure) -> list[str]:
    sampled = bool((found.sampling_errors != 0).any())
    rows = []
    for i, value in enumerate(found.values.tolist()):
        parts = [
            f"{float(x[i]):.6g}" if i < len(x) else ""
            for x in (found.pair_values, found.mean_values)
        ]
        row = [str(i + 1), f"{value:.6g}", f"{float(found.residuals[i]):.1e}"]
        row += ["yes" if found.converged[i] else "NO"]
        row += [f"{float(found.sampling_errors[i]):.2g}"] if sampled else []
        rows.append(row + parts)
    more = ["sampling error"] if sampled else []
    return table(["i", "of G", "residual", "converged", *more, "of G1 + G2", "of G1"], rows)


def _overlap(found: ClassStructure) -> str:
    """Return how far the class means span the top eigenspace, for all classes and for outliers."""
    parts = []
    for count in dict.fromkeys([found.outliers, found.classes - len(found.absent)]):
        if 0 < count <= len(found.overlaps):
            share = _sure(found.overlaps[count - 1], found.overlap_errors[count - 1])
            parts.append(f"{share} of the first {count}")
    return f"overlap of the top eigenvectors of G1 and of G: {', '.join(parts)}"


def _sure(value: object, error: object) -> str:
    """Return a number with the bound of its error."""
    x, bound = float(value), float(error)  # type: ignore[arg-type]
    return "unknown" if math.isnan(x) else f"{x:.4f} +- {bound:.1g}"


def _gradient(found: ClassStructure) -> list[str]:
    norm = f"|gradient| {found.gradient_norm:.4g}, of it rounding about"
    norm += f" {found.gradient_rounding:.1g}"
    if found.is_drowned:
        return [f"{norm}: its direction is rounding, so its shares are unknown"]
    rows = []
    chosen = {1, found.outliers, found.classes}
    for count in sorted(chosen):
        if not 0 < count <= len(found.hessian_values):
            continue
        i = count - 1
        rows.append(
            [
                str(count),
                _share(found, "gradient", i),
                _share(found, "hessian_gradient", i),
                f"{float(found.hessian_values[i]):.6g}",
                f"{float(found.hessian_residuals[i]):.1e}",
                "yes" if found.hessian_converged[i] else "NO",
            ]
        )
    header = ["gradient in the first", "of G", "of the Hessian", "whose last is", "residual"]
    return [norm, *table([*header, "converged"], rows)]


def _share(found: ClassStructure, kind: str, i: int) -> str:
    shares, errors = getattr(found, f"{kind}_shares"), getattr(found, f"{kind}_share_errors")
    return _sure(shares[i], errors[i]) if i < len(shares) else ""


def _means(found: ClassStructure) -> list[str]:
    """Return for each class its weight, its errors, its mean gradient and what is nearest to it."""
    cosines = found.cosines.clone()
    cosines.fill_diagonal_(-math.inf)
    rows = []
    for c, weight in enumerate(found.class_weights.tolist()):
        if c in found.absent:
            rows.append([str(c), "0", *4 * ["unknown"]])
            continue
        row = cosines[c].nan_to_num(nan=-math.inf)
        other = int(row.argmax())
        size = float(found.gram[c, c].sqrt())
        nearest = "unknown" if row.isinf().all() else str(other)
        rows.append(
            [
                str(c),
                f"{weight:.4g}",
                f"{float(found.error_weights[c]) / weight:.4g}",
                f"{size:.4g}",
                nearest,
                number(float(row[other]) if nearest != "unknown" else math.nan, ".3f"),
            ]
        )
    header = ["class", "weight", "mean of 1 - p", "sqrt(w) |mean|", "nearest class", "cosine"]
    return table(header, rows)


def classes_summary(found: ClassStructure) -> str:
    """Return a class structure in a few words."""
    missing = int((~found.converged).sum()) + int((~found.hessian_converged).sum())
    words = f"{operator_name(found.spec['operator'])} by class: {_outliers(found)}, of "
    words += f"{found.classes} classes, eigenvalue {float(found.values[0]):.4g} to "
    words += f"{float(found.values[-1]):.4g}"
    return words + (f", {missing} NOT converged" if missing else "")
