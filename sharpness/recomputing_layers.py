"""Spot values of curvature per layer, computed again."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sharpness.by_layer import Probed, Traces, formed, places_by, tabled
from sharpness.checks import Check, of_exact, relative_of
from sharpness.curvature import Operator
from sharpness.lanczos import SMALL
from sharpness.operators import sampling_errors_of, shapes_of
from sharpness.results import Eigenpairs, Layers
from sharpness.spectrum import frobenius

# Of what is made of stored numbers: an end of a share is the root of a difference.
STORED = 1e-7


@dataclass(frozen=True)
class _Block:
    """A block, or the whole, and what is stored of it."""

    name: str
    operator: Operator
    numbers: dict[str, float]
    vector: Tensor  # (b,)


def spots(
    found: Layers,
    A: Operator,
    chosen: Sequence[int],
    told_error: float,
    affords: Callable[[str, int], bool],
) -> Iterable[Check]:
    """Yield what is made of the samples, and what products tell of some layers and of the whole.

    Args:
        chosen: Places of layers.
        told_error: By how much products may be off, relative to their vectors.
        affords: Says whether so many products may be taken for something, and notes if not.
    """
    yield from _made(found)
    largest = max(abs(found.whole_lambda_1), found.whole_norm)
    limit = (relative_of(A.dtype) + told_error) * largest
    blocks = [_whole(found, A)]
    if found.spec["by"] != "groups":  # whose places are in no file
        places = places_by(found.spec["by"], shapes_of(A))
        same = found.layer == list(places)
        yield of_exact("layers of other names", 0.0, float(not same))
        if not same:
            return
        for i, (name, at) in enumerate(places.items()):
            yield of_exact(f"parameters of {name}", found.sizes[i], len(at))
        blocks += [_layer(found, A, i, list(places.values())[i]) for i in chosen]
        if affords("samples", found.spec["probes"]):
            yield from _traces(found, A, list(places.values()), chosen, limit)
    for block in blocks:
        yield from _values(block, limit, largest)
        yield from _norms(found, block, limit, largest, affords)


def _made(found: Layers) -> Iterable[Check]:
    """Yield traces and shares as they are made of the samples that are stored."""
    known = tabled(found.exact, found.samples)
    total = abs(found.whole_trace) + float(found.exact.abs().sum())
    total += float(found.samples.abs().sum())
    for field, again in known.items():
        stored = getattr(found, field)
        scale = 1.0 if field.startswith("share") else total
        several = zip(found.layer, stored, again, strict=True) if isinstance(again, Tensor) else ()
        for name, x, y in several:
            yield Check(f"{field} of {name}", float(x), float(y), STORED * scale, scale)
        if not isinstance(again, Tensor):
            yield Check(field, stored, again, STORED * scale, scale)


def _whole(found: Layers, A: Operator) -> _Block:
    names = {"lambda_1": "lambda_1", "residual": "residual", "converged": "converged"}
    names |= {name: name for name in ("square", "square_stderr", "square_low", "square_high")}
    names |= {"sampling error": "sampling_error"}
    numbers = {name: float(getattr(found, f"whole_{field}")) for name, field in names.items()}
    return _Block("of the whole", A, numbers, found.whole_vector.to(A.device, A.dtype))


def _layer(found: Layers, A: Operator, i: int, at: Tensor) -> _Block:
    names = {"lambda_1": "lambda_1", "residual": "residuals", "converged": "converged"}
    names |= {name: name for name in ("square_stderr", "square_low", "square_high")}
    names |= {"square": "squares", "sampling error": "sampling_errors", "trace": "traces"}
    numbers = {name: float(getattr(found, field)[i]) for name, field in names.items()}
    vector = found.vectors[at].to(A.device, A.dtype)
    return _Block(f"of {found.layer[i]}", Probed(A, at), numbers, vector)


def _values(block: _Block, limit: float, largest: float) -> Iterable[Check]:
    """Yield the eigenvalue, its residual and its sampling error by a fresh product."""
    v = block.vector
    w = (block.operator @ v).double()
    value = block.numbers["lambda_1"]
    again = {
        "lambda_1": float(v.double() @ w / (v.double() @ v.double())),
        "residual": float((w - value * v.double()).norm()),
        "sampling error": float(sampling_errors_of(block.operator, v[None])[0]),
    }
    for name, x in again.items():
        yield Check(f"{name} {block.name}", block.numbers[name], x, limit, largest)


def _norms(
    found: Layers,
    block: _Block,
    limit: float,
    largest: float,
    affords: Callable[[str, int], bool],
) -> Iterable[Check]:
    """Yield the squared norm with its interval, and the trace where that is exact."""
    B, spec = block.operator, found.spec
    cost = B.size if B.size <= SMALL else spec["probes"]
    if not affords(f"squared norm {block.name}", cost):
        return
    again: dict[str, float]
    if B.size <= SMALL:
        M = formed(B).double()
        square = float(M.square().sum())
        again = {"square": square, "square_stderr": 0.0}
        again |= {"square_low": square, "square_high": square}
        if "trace" in block.numbers:
            again["trace"] = float(M.diagonal().sum())
    else:
        known = _pair(block) if block.numbers["converged"] else None
        estimate = frobenius(B, probes=spec["probes"], deflate=known, seed=spec["seed"])
        low, high = estimate.interval.tolist()
        again = {"square": estimate.value, "square_stderr": estimate.stderr}
        again |= {"square_low": low, "square_high": high}
    for name, x in again.items():
        # To which the norm of a product rounds, and its square.
        scale = largest if name == "trace" else max(block.numbers["square"], limit) ** 0.5
        near = B.size**0.5 * limit if name == "trace" else 2 * B.size**0.5 * scale * limit
        scale = scale if name == "trace" else scale * scale
        yield Check(f"{name} {block.name}", block.numbers[name], x, near, scale)


def _pair(block: _Block) -> Eigenpairs:
    """Return the eigenpair that probes for the norm left out."""
    numbers: dict[str, Any] = {
        name: torch.tensor([block.numbers[field]])
        for name, field in (
            ("residuals", "residual"),
            ("sampling_errors", "sampling error"),
        )
    }
    return Eigenpairs(
        values=torch.tensor([block.numbers["lambda_1"]], dtype=torch.float64),
        vectors=block.vector[None],
        orthogonality=0.0,
        converged=torch.tensor([True]),
        products=0,
        check_products=0,
        spec={},
        **numbers,
    )


def _traces(
    found: Layers, A: Operator, places: list[Tensor], chosen: Sequence[int], limit: float
) -> Iterable[Check]:
    """Yield the exact parts and the first and last samples of some layers."""
    known = torch.where(found.sizes <= SMALL, found.exact, torch.nan)
    again = Traces(
        A,
        places,
        known,
        found.vectors,
        found.lambda_1.tolist(),
        seed=found.spec["seed"],
        pieces={},
        tell=lambda *_: None,
    )
    count = len(found.samples)
    rows = sorted({0, count - 1}) if count else []
    again.sample(found.spec["probes"], rows)
    yield of_exact("samples", float(count > 0), float(len(again.samples) > 0))
    if not count:
        return
    for i in chosen:
        # A sample is a sum over the unknowns of what each product rounds to.
        scale = int(found.sizes[i]) ** 0.5 * len(found.vectors) ** 0.5
        for name, x, y in (
            (f"exact part of {found.layer[i]}", found.exact[i], again.exact[i]),
            *(
                (f"sample {row + 1} of {found.layer[i]}", found.samples[row, i], z[i])
                for row, z in zip(rows, again.samples, strict=True)
            ),
        ):
            near = scale * limit / 10
            yield Check(name, float(x), float(y), near, max(abs(float(y)), limit))
