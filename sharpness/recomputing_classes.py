"""Spot values of a class structure, computed again."""

import torch

from sharpness.by_class import class_structure, rows_of, weights_of
from sharpness.checks import RELATIVE, Check, relative_of
from sharpness.objective import Objective
from sharpness.rebuilding import Origin
from sharpness.results import ClassStructure, Solution

AFFORDED = 300  # products that the eigenvalues may take again


def classes(found: ClassStructure, origin: Origin) -> tuple[str, list[Check]]:
    """Compare weights and means of two classes, and what follows from all as they are stored.

    Eigenvalues, shares and overlaps by another search, where that is affordable.
    """
    spec = found.spec["operator"]
    f = origin.objective(spec["objective"])
    here = origin.point(f, spec["point"])
    checks = [*_means(found, f, here), *_stored(found)]
    norm = float(f.gradient(here).double().norm())
    limit = relative_of(f.theta.dtype) * norm + 10 * found.gradient_rounding
    checks.append(Check("gradient norm", found.gradient_norm, norm, limit, norm))
    subject = "two class means"
    if not (found.converged.all() and found.hessian_converged.all()):
        origin.note("eigenvalues not recomputed, for another search ends elsewhere")
    elif found.products > AFFORDED:
        origin.note(f"eigenvalues not recomputed, for they took {found.products} products")
    else:
        keys = ("k", "cross", "engine", "tol", "seed")
        again = class_structure(f, point=here, **{key: found.spec[key] for key in keys})
        checks += _searched(found, again, relative_of(f.theta.dtype))
        subject += f" and {len(found.values) + len(found.hessian_values)} eigenvalues"
    return subject, checks


def _means(found: ClassStructure, f: Objective, here: Solution) -> list[Check]:
    """Compare the first and the last class that there is."""
    relative, here = relative_of(f.theta.dtype), f.settled(here)
    weights = weights_of(f, here)
    off = weights - torch.diag(weights.diagonal())
    present = (weights.sum(dim=1) > 0).nonzero().flatten().tolist()
    chosen = sorted({present[0], present[-1]})
    rows = [rows_of(f, here, weights, c, cross=False)[0].double() for c in chosen]
    checks = []
    for i, c in enumerate(chosen):
        for name, stored, again in (
            ("weight", found.class_weights[c], float(weights[c].sum())),
            ("weight of errors", found.error_weights[c], float(off[c].sum())),
        ):
            name = f"{name} of class {c}"
            checks.append(Check(name, float(stored), again, relative * again, again))
        for j, other in enumerate(chosen[: i + 1]):
            product, size = float(rows[i] @ rows[j]), float(rows[i].norm() * rows[j].norm())
            name = f"product of the means of {other} and {c}"
            stored = found.gram[c, other]
            checks.append(Check(name, float(stored), product, relative * size, size))
    return checks


def _stored(found: ClassStructure) -> list[Check]:
    """Compare the eigenvalues of G1 with those of the Gram matrix as it is stored."""
    there = [c for c in range(found.classes) if c not in found.absent]
    mu = torch.linalg.eigvalsh(found.gram[there][:, there]).flip(0).clamp(min=0)
    limit = RELATIVE[torch.float64] * float(mu[0])
    apart = float((found.gram - found.gram.T).nan_to_num().abs().max())
    checks = [Check("asymmetry of the products of means", apart, 0.0, limit, float(mu[0]))]
    for i, (stored, value) in enumerate(zip(found.mean_values, mu, strict=False), start=1):
        name = f"eigenvalue {i} of G1"
        checks.append(Check(name, float(stored), float(value), limit, float(mu[0])))
    return checks


def _searched(found: ClassStructure, again: ClassStructure, relative: float) -> list[Check]:
    checks = []
    for name, of in (("", "G"), ("hessian_", "the Hessian")):
        x, y = (getattr(z, f"{name}values").double() for z in (found, again))
        r, s = (getattr(z, f"{name}residuals").double() for z in (found, again))
        size = float(y.abs().max())
        limits = r + s + relative * size
        checks += [
            Check(f"eigenvalue {i + 1} of {of}", *pair, size)
            for i, pair in enumerate(zip(x.tolist(), y.tolist(), limits.tolist(), strict=True))
        ]
    size = float(again.pair_values.max()) if len(again.pair_values) else 0.0
    checks += [
        Check(f"eigenvalue {i + 1} of G1 + G2", *pair, relative * size, size)
        for i, pair in enumerate(
            zip(found.pair_values.tolist(), again.pair_values.tolist(), strict=True)
        )
    ]
    for name, errors, of in (
        ("gradient_shares", "gradient_share_errors", "share of the gradient in {} of G"),
        (
            "hessian_gradient_shares",
            "hessian_gradient_share_errors",
            "share of the gradient in {} of the Hessian",
        ),
        ("overlaps", "overlap_errors", "overlap of the first {}"),
    ):
        limits = getattr(found, errors) + getattr(again, errors) + relative
        checks += [
            Check(of.format(i + 1), *pair, 1.0)
            for i, pair in enumerate(
                zip(
                    getattr(found, name).tolist(),
                    getattr(again, name).tolist(),
                    limits.tolist(),
                    strict=True,
                )
            )
        ]
    return checks
