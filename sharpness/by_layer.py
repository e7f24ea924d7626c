"""Curvature per layer: trace, largest eigenvalue and norm of each diagonal block of an operator.

The traces of all layers come from the same products with vectors z of random signs: z_l . (A z)_l
is a sample of the trace of block l, and over the layers they add up to that of the whole. Two parts
of A are taken out first, and count exactly: what the range of a third of the products tells of A
(as ``trace`` does), and what the top eigenvector of each block tells of the rest of that block.
Without the second, a layer whose curvature is small beside that of others but dominated by one
eigenvalue would have an interval that covers its trace too seldom.

Letters: n unknowns, L layers, s samples, b unknowns of a layer; B what the range tells of A.
"""

import logging
import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from scipy.special import stdtrit
from torch import Tensor

from sharpness.curvature import Dense, Operator
from sharpness.errors import ComputationError, InputError
from sharpness.intervals import LEVEL, t_interval
from sharpness.lanczos import SMALL, eigsh
from sharpness.operators import Block, sampling_errors_of, shapes_of
from sharpness.options import is_whole, require_one_of
from sharpness.probes import Counted
from sharpness.ranges import Range, orthonormal
from sharpness.results import Layers
from sharpness.spectrum import FIRST, frobenius
from sharpness.vectors import digest, gaussian, rademacher

FEWEST = 3  # products of the traces: a range takes two, and one is a sample
ROOT = "(root)"  # the module of parameters that are in no other
BUDGET = 500  # products of a search; those for outliers take some 30
BY: dict[str, Callable[[str], str]] = {
    "tensor": lambda name: name,
    "module": lambda name: name.rpartition(".")[0] or ROOT,
}

NUMBERS = 11  # of a part in its piece, before its vector

LOG = logging.getLogger(__name__)

Progress = Callable[[int, int | None, str], None]
Pieces = MutableMapping[str, Tensor]


def layers(
    A: Operator,
    *,
    by: str | None = None,
    groups: Mapping[str, Tensor] | None = None,
    probes: int = 32,
    budget: int = BUDGET,
    seed: int = 0,
    pieces: Pieces | None = None,
    progress: Progress | None = None,
) -> Layers:
    """Return trace, largest eigenvalue and Frobenius norm of each layer's block of A, and of A.

    A layer of at most 200 unknowns is formed by as many products, so that trace and norm are
    exact; of a larger one they are estimates with 95 % intervals (see docs/theory). Shares of the
    whole trace have Fieller's interval, and are unknown where the whole trace may be 0.

    Cost: of the whole and of each layer of more than 200 unknowns a search for one eigenpair, some
    30 products where the largest is an outlier, and ``probes`` for the norm; of each other layer as
    many products as it has unknowns; ``probes`` for the traces of all layers together; four to
    probe the whole. Memory: that of ``eigsh`` for one pair of n, and two thirds of the probes in
    vectors.

    Args:
        by: One of ``BY``: a layer is a parameter ``tensor``, the default, or a ``module``, all
            parameters whose names agree up to the last dot.
        groups: The places of the unknowns of each layer by its name, integers of shape (b,), in
            place of ``by``: for an operator that knows no names. Each unknown is in one of them.
        probes: For the traces, and as many for each norm that is estimated; at least 3. With two
            samples, from 4 on, there are intervals.
        budget: Products of each search at most; past it an eigenvalue is marked as not converged.
            Of a block that is zero but for the rounding of others no search converges.
        pieces: The numbers of each layer, and the samples.
        progress: Called after each product.

    Raises:
        InputError: If ``by`` is unknown, probes are too few, A knows no names and groups are not
            given, groups are no partition of the unknowns, or A is no symmetric linear map.
        ComputationError: If a product is not finite.

    >>> A = Dense(torch.block_diag(torch.full((2, 2), 2.0), torch.tensor([[6.0]])))
    >>> found = layers(A, groups={"a": torch.tensor([0, 1]), "b": torch.tensor([2])})
    >>> found.traces, found.whole_trace
    (tensor([4., 6.], dtype=torch.float64), 10.0)
    """
    if not is_whole(probes, FEWEST):
        raise InputError(
            f"layers needs at least {FEWEST} probes, got {probes}: raise them, to 4 or more for "
            "intervals"
        )
    places = _places(A, by, groups)
    options = _Options(probes, budget, seed)
    pieces = {} if pieces is None else pieces
    told = _Told(progress)
    whole = _part("whole", A, options, pieces, told)
    parts = [whole]  # the only layer
    if len(places) > 1:
        parts = [
            _part(f"layer {name}", Probed(A, at), options, pieces, told)
            for name, at in places.items()
        ]
    vectors = torch.zeros_like(whole.vector)
    for at, part in zip(places.values(), parts, strict=True):
        vectors[at.to(vectors.device)] = part.vector
    traces = Traces(
        A,
        list(places.values()),
        torch.tensor([part.trace for part in parts], dtype=torch.float64),
        vectors,
        [part.lambda_1 for part in parts],
        seed=seed,
        pieces=pieces,
        tell=told.within("traces"),
    )
    traces.sample(probes)
    LOG.info("layers: %d products for %d layers", told.spent, len(places))
    spec = {
        "algorithm": "layers",
        "by": "groups" if groups is not None else by or "tensor",
        "groups_sha256": None if groups is None else digest(*places.values()),
        "probes": probes,
        "budget": budget,
        "seed": seed,
        "operator": A.spec,
    }
    return _result(places, whole, parts, vectors, traces, spec)


def _places(A: Operator, by: str | None, groups: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Return the places of the unknowns of each layer, by name."""
    if groups is not None:
        if by is not None:
            raise InputError(f"layers needs by or groups, got both, by={by!r}: leave one out")
        return _partition(groups, A.size)
    by = "tensor" if by is None else by
    require_one_of(BY, by=by)
    try:
        shapes = shapes_of(A)
    except InputError as error:
        raise InputError(
            "layers needs an operator that knows the names of its parameters, got a "
            f"{type(A).__name__} that does not: give groups, the places of each layer by name"
        ) from error
    return places_by(by, shapes)


def places_by(by: str, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Return the places of the unknowns of each layer, ascending, by name.

    >>> shapes = {"0.weight": torch.Size([1, 2]), "0.bias": torch.Size([1])}
    >>> places_by("module", shapes), list(places_by("tensor", shapes))
    ({'0': tensor([0, 1, 2])}, ['0.weight', '0.bias'])
    """
    found: dict[str, list[Tensor]] = {}
    begun = 0
    for name, shape in shapes.items():
        end = begun + shape.numel()
        found.setdefault(BY[by](name), []).append(torch.arange(begun, end))
        begun = end
    return {name: torch.cat(several) for name, several in found.items()}


def _partition(groups: Mapping[str, Tensor], n: int) -> dict[str, Tensor]:
    """Return the places of each group, ascending, once it is known that they are a partition."""
    found = {}
    for name, at in groups.items():
        whole = isinstance(at, Tensor) and at.ndim == 1 and not at.is_floating_point()
        if not whole or at.dtype == torch.bool or not len(at):
            raise InputError(
                f"groups need the places of their unknowns, got {name!r} without a vector of "
                "integers: give a tensor of places for each name"
            )
        found[name] = at.cpu().long().sort().values
        if int(found[name][0]) < 0 or int(found[name][-1]) >= n:
            raise InputError(
                f"groups need places from 0 to {n - 1}, got {int(found[name][0])} to "
                f"{int(found[name][-1])} in {name!r}: change them"
            )
    counts = torch.zeros(n, dtype=torch.long)
    for at in found.values():
        counts.index_add_(0, at, torch.ones_like(at))
    left_out, twice = int((counts == 0).sum()), int((counts > 1).sum())
    if left_out or twice:
        raise InputError(
            f"groups need each of the {n} unknowns once, got {left_out} in none and {twice} more "
            "than once: change them"
        )
    return found


class Probed(Block):
    """A block of an operator that was probed as a whole.

    By itself it may be but the rounding of other blocks, such as that of a bias before BatchNorm,
    which is no symmetric map.
    """

    @property
    def error(self) -> float:
        """Whatever the whole tells: with a number here no algorithm probes the map again."""
        return super().error or 0.0


@dataclass(frozen=True)
class _Options:
    probes: int
    budget: int
    seed: int


class _Told:
    """The products so far, and who is told of them."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress, self.spent = progress, 0

    def within(self, name: str) -> Progress:
        """Return what is told of the products of one part."""
        begun, last = self.spent, 0

        def tell(done: int, total: int | None, text: str) -> None:
            nonlocal begun, last
            if done < last:  # the next algorithm on this part counts from the first again
                begun += last
            last = done
            self.spent = begun + done
            if self.progress:
                self.progress(self.spent, None, f"{name}: {text}")

        return tell


@dataclass(frozen=True)
class _Part:
    """What is known of a block, or of the whole, by itself."""

    lambda_1: float
    residual: float
    converged: bool
    sampling_error: float
    trace: float  # NaN where the block is not formed
    square: tuple[float, float, float, float]  # with error and interval
    products: int
    checks: int
    vector: Tensor  # (b,)


def _part(name: str, B: Operator, options: _Options, pieces: Pieces, told: _Told) -> _Part:
    """Return what is known of a block, from the pieces where it is there."""
    if name not in pieces:
        made = (_formed if B.size <= SMALL else _searched)(B, options, told.within(name))
        numbers = [getattr(made, field.name) for field in fields(made)[:-1]]
        flat = [y for x in numbers for y in (x if isinstance(x, tuple) else (x,))]
        pieces[name] = torch.cat(
            [torch.tensor(flat, dtype=torch.float64), made.vector.double().cpu()]
        )
    x = pieces[name][:NUMBERS].tolist()
    return _Part(
        *(x[0], x[1], bool(x[2]), x[3], x[4]),
        square=(x[5], x[6], x[7], x[8]),
        products=int(x[9]),
        checks=int(x[10]),
        vector=pieces[name][NUMBERS:].to(B.device, B.dtype),
    )


def _formed(B: Operator, options: _Options, tell: Progress) -> _Part:
    """Return what is known of a block once it is known entry by entry."""
    M = formed(B, tell)
    pair = eigsh(Dense(M), 1, seed=options.seed)
    M = M.double()
    square = float(M.square().sum())
    return _Part(
        float(pair.values[0]),
        float(pair.residuals[0]),
        bool(pair.converged[0]),
        float(sampling_errors_of(B, pair.vectors)[0]),
        float(M.diagonal().sum()),
        (square, 0.0, square, square),
        products=B.size,
        checks=0,
        vector=pair.vectors[0],
    )


def formed(B: Operator, tell: Progress | None = None) -> Tensor:
    """Return the matrix of a block, (b, b), by as many products.

    >>> formed(Dense(torch.diag(torch.tensor([1.0, 4.0]))))
    tensor([[1., 0.],
            [0., 4.]])
    """
    columns = []
    for i, unit in enumerate(torch.eye(B.size, dtype=B.dtype, device=B.device), start=1):
        columns.append(B @ unit)
        if tell:
            tell(i, None, f"product {i}")
    M = torch.stack(columns)
    # What was not probed as a whole is probed as this matrix; what was is symmetric but for
    # rounding, or for what differences of gradients tell.
    return M if getattr(B, "error", None) is None else (M + M.T) / 2


def _searched(B: Operator, options: _Options, tell: Progress) -> _Part:
    """Return what a search and probes tell of a block."""
    budget, seed = options.budget, options.seed
    pair = eigsh(B, 1, budget=budget, seed=seed, progress=tell)
    known = pair if pair.converged.all() else None
    square = frobenius(B, probes=options.probes, deflate=known, seed=seed, progress=tell)
    return _Part(
        float(pair.values[0]),
        float(pair.residuals[0]),
        bool(pair.converged[0]),
        float(pair.sampling_errors[0]),
        math.nan,
        (square.value, square.stderr, *square.interval.tolist()),
        products=pair.products + square.products,
        checks=pair.check_products + square.check_products,
        vector=pair.vectors[0],
    )


class Traces:
    """Exact parts and samples of the traces of all layers but those that are known.

    Args:
        A: An operator that was probed.
        places: Those of each layer.
        known: Traces that are known, shape (L,), else NaN.
        vectors: A unit vector of each layer, in its places, (n,).
        values: v . A v of each.
        pieces: The range, as rows of a basis and of its products, and samples, by number.
    """

    def __init__(
        self,
        A: Operator,
        places: list[Tensor],
        known: Tensor,
        vectors: Tensor,
        values: list[float],
        *,
        seed: int,
        pieces: Pieces,
        tell: Progress,
    ) -> None:
        self.values, self.seed, self.pieces, self.tell = values, seed, pieces, tell
        self.exact, self.products = known.clone(), 0
        self.samples = known.new_zeros(0, len(places))
        self.open = known.isnan().nonzero().flatten().tolist()
        if not self.open:
            return
        # What is known would be but noise in the samples of the others.
        at, order = torch.cat([places[i] for i in self.open]).sort()
        self.rest = Probed(A, at)
        layer = torch.cat([torch.full((len(places[i]),), i) for i in self.open])
        self.label = layer[order].to(A.device)
        self.like = torch.empty(0, dtype=A.dtype, device=A.device)
        self.v = vectors.to(self.like)[at.to(A.device)]
        self.counted = Counted(self.rest, None, seed)

    def sample(self, probes: int, only: Sequence[int] | None = None) -> None:
        """Take out what is known, and sample what is left with the rest of the probes.

        Args:
            only: Which samples. Default: all.
        """
        if not self.open:
            return
        rank = min(probes // 3, self.rest.size)
        self.taken = self._range(rank)
        self._project()
        self.products = probes
        count = probes - rank - len(self.taken.Q)
        chosen = range(count) if only is None else only
        self.samples = torch.stack([self._sample(i) for i in chosen])

    def _product(self, v: Tensor) -> Tensor:
        w = self.counted.row(v)
        if not torch.isfinite(w).all():
            raise ComputationError(
                f"layers need finite products, got product {self.counted.spent} of the traces "
                "which is not: look at the loss there"
            )
        self.tell(self.counted.spent, None, f"product {self.counted.spent}")
        return w

    def _range(self, rank: int) -> Range:
        """Return what the range of so many products with random vectors tells of the operator."""
        if "range" not in self.pieces:
            vectors = (
                gaussian(self.rest.size, self.seed, FIRST + i, like=self.like) for i in range(rank)
            )
            Y = torch.stack([self._product(v) for v in vectors])
            Q = orthonormal(Y)
            AQ = torch.stack([self._product(q) for q in Q]) if len(Q) else Q
            self.pieces["range"] = torch.stack([Q, AQ])
        Q, AQ = self.pieces["range"].to(self.like)
        return Range.of(Q, AQ)

    def _project(self) -> None:
        """Find what the vector v of each layer tells of what the range leaves of its block, C.

        With w = (A - B) v in the block, C = v w^T + w v^T - (v . w) v v^T: what a projection
        outside of v takes away. Its trace is known, whether or not v is an eigenvector.
        """
        self.w = torch.zeros_like(self.v)
        self.mu = torch.zeros_like(self.exact)
        for i in self.open:
            at = (self.label == i).nonzero().flatten()
            v, block = self.v[at], self.taken.on(at)
            w = self.values[i] * v - block @ v
            self.w[at] = w
            self.mu[i] = float(v.double() @ w.double())
            self.exact[i] = block.trace + float(self.mu[i])

    def _sample(self, i: int) -> Tensor:
        """Return a sample of the rest of the traces of all layers, (L,)."""
        name = f"sample {i}"
        if name not in self.pieces:
            z = rademacher(self.rest.size, self.seed, i, like=self.like)
            left = self._product(z) - self.taken @ z
            sums = torch.zeros(3, len(self.exact), dtype=torch.float64, device=z.device)
            terms = torch.stack([x.double() * z for x in (left, self.v, self.w)])
            whole, a, b = sums.index_add_(1, self.label, terms).cpu()
            self.pieces[name] = whole - a * (2 * b - self.mu * a)
        return self.pieces[name]


def _result(
    places: dict[str, Tensor],
    whole: _Part,
    parts: list[_Part],
    vectors: Tensor,
    traces: Traces,
    spec: dict[str, Any],
) -> Layers:
    """Return the table, with what is made of the samples."""
    exact, samples = traces.exact, traces.samples
    spent = [whole, *(parts if len(places) > 1 else [])]
    table = tabled(exact, samples)
    table |= _columns([part.square for part in parts], _names("squares", "square"))
    table |= _columns(
        [(x.lambda_1, x.residual, x.sampling_error) for x in parts],
        ("lambda_1", "residuals", "sampling_errors"),
    )
    table |= dict(zip(_names("whole_square", "whole_square"), whole.square, strict=True))
    return Layers(
        layer=list(places),
        sizes=torch.tensor([len(at) for at in places.values()]),
        converged=torch.tensor([part.converged for part in parts]),
        exact=exact,
        samples=samples,
        whole_lambda_1=whole.lambda_1,
        whole_residual=whole.residual,
        whole_converged=whole.converged,
        whole_sampling_error=whole.sampling_error,
        vectors=vectors,
        whole_vector=whole.vector,
        products=traces.products + sum(part.products for part in spent),
        check_products=sum(part.checks for part in spent),
        spec=spec,
        **table,
    )


def tabled(exact: Tensor, samples: Tensor) -> dict[str, Any]:
    """Return the fields of ``Layers`` that tell traces and shares, from exact parts and samples.

    Args:
        exact: Shape (L,).
        samples: Shape (s, L), what they add; s is 0 where everything is exact. A column of zeros
            is that of a layer that is.

    >>> found = tabled(torch.tensor([1.0, 3.0]), torch.zeros(0, 2))
    >>> found["shares"], found["whole_trace"]
    (tensor([0.2500, 0.7500], dtype=torch.float64), 4.0)
    """
    of_layers = [_mean(e, x) for e, x in zip(exact, samples.T, strict=True)]
    whole = _mean(exact.sum(), samples.sum(dim=1))
    shares = [_share(of[0], x, whole, samples) for of, x in zip(of_layers, samples.T, strict=True)]
    found: dict[str, Any] = {
        **_columns(of_layers, _names("traces", "trace")),
        **_columns(shares, ("shares", "share_low", "share_high")),
    }
    return found | dict(zip(_names("whole_trace", "whole_trace"), whole, strict=True))


def _mean(exact: Tensor, samples: Tensor) -> tuple[float, float, float, float]:
    """Return a sum of a known part and a mean, with its standard error and interval."""
    value = float(exact)
    if not samples.any():  # known, or the zero map
        return value, 0.0, value, value
    mean, low, high = t_interval(samples)
    stderr = float(samples.std() / len(samples) ** 0.5) if len(samples) > 1 else math.nan
    return value + mean, stderr, value + low, value + high


def _share(
    value: float, samples: Tensor, whole: tuple[float, float, float, float], all_samples: Tensor
) -> tuple[float, float, float]:
    """Return the share of a trace in the whole, with Fieller's interval.

    It holds the shares r for which trace - r whole may be 0 by Student's interval of its samples.
    Where the whole itself may be 0 that is no interval, and nothing is known.
    """
    total, stderr, low, high = whole
    if not total or low <= 0 <= high:
        return math.nan, math.nan, math.nan
    share, count = value / total, len(samples)
    if not stderr > 0:  # 0 where all is exact, NaN with one sample
        return share, share + stderr, share + stderr
    t = float(stdtrit(count - 1, (1 + LEVEL) / 2))
    both = torch.stack([samples, all_samples.sum(dim=1)])
    (xx, xy), (_, yy) = (torch.cov(both) * t * t / count).tolist()
    a, b, c = total * total - yy, value * total - xy, value * value - xx
    half = math.sqrt(max(b * b - a * c, 0.0)) / a
    return share, b / a - half, b / a + half


def _names(value: str, prefix: str) -> tuple[str, ...]:
    """Return the names of an estimate, its error and the ends of its interval."""
    return value, f"{prefix}_stderr", f"{prefix}_low", f"{prefix}_high"


def _columns(rows: list[Any], names: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the columns of a table of numbers, by name."""
    table = torch.tensor(rows, dtype=torch.float64)
    return dict(zip(names, table.T.contiguous(), strict=True))
