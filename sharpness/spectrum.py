"""What random probes tell of a spectrum: its density, trace and Frobenius norm, and the diagonal.

Every number comes with an interval: Student's, of independent samples. Where one eigenvalue
dominates, the samples of a plain estimator are nearly those of a chi-squared distribution with one
degree of freedom, and their intervals cover the truth too seldom (0.83 where they say 0.95, with 10
probes). So the default takes the range of the largest eigenvalues out first, exactly, and samples
what is left (Meyer et al. 2021), and known eigenpairs can be left out of all of them (``deflate``).

Letters: n unknowns, s probes, m steps, d eigenpairs that are known.
"""

import inspect
import logging
import math
from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from scipy.special import stdtrit
from torch import Tensor

from sharpness.curvature import Operator
from sharpness.errors import ComputationError, InputError
from sharpness.intervals import LEVEL, t_interval
from sharpness.options import require_counts, require_one_of
from sharpness.probes import Counted
from sharpness.quadrature import nodes_of
from sharpness.ranges import Range, orthonormal
from sharpness.rayleigh_ritz import inner
from sharpness.results import Density, Diagonal, Eigenpairs, Estimate
from sharpness.vectors import gaussian, rademacher

CHECKS = "checks"  # the piece that holds the products which probed the operator
FIRST = 2**30  # the number of the first vector of a sketch: no probe has it

LOG = logging.getLogger(__name__)

Progress = Callable[[int, int | None, str], None]
Pieces = MutableMapping[str, Tensor]


def density(
    A: Operator,
    *,
    steps: int = 80,
    probes: int = 8,
    deflate: Eigenpairs | None = None,
    seed: int = 0,
    pieces: Pieces | None = None,
    progress: Progress | None = None,
) -> Density:
    """Return the spectral density of A by stochastic Lanczos quadrature.

    Each probe is a random direction, uniform on the sphere. The nodes and weights of its m Lanczos
    steps are kept, so that smoothing, and all that is a sum of f(lambda) over the eigenvalues, is
    chosen afterwards and costs no product (see ``Density``). Source: Ghorbani et al. (2019).

    Cost: s m products and two that probe A; m + d + 4 vectors of memory.

    Args:
        steps: m of each probe, n at most.
        probes: s. With one, intervals are unknown.
        deflate: Eigenpairs of A, all converged. They count exactly, and the probes are spent on
            the rest of the spectrum.
        pieces: Nodes and weights, by the number of the probe; more of them may be asked for later.
        progress: Called after each product.

    Raises:
        InputError: If steps or probes are below 1, if the eigenpairs are not those of an operator
            of this size or not converged, or if A is no symmetric linear map.
        ComputationError: If a product is not finite.

    >>> from sharpness.curvature import Dense
    >>> A = Dense(torch.diag(torch.tensor([1.0, 5.0, 5.0]).double()))
    >>> found = density(A, steps=2, probes=1)
    >>> found.nodes.round(decimals=6), found.weights.sum().round(decimals=6)
    (tensor([[1., 5.]], dtype=torch.float64), tensor(1., dtype=torch.float64))
    """
    require_counts(steps=steps, probes=probes)
    n = A.size
    known = _known(A, deflate)
    d = 0 if known is None else len(known)
    m = min(steps, n - d)
    if m < steps:
        LOG.warning("density: %d steps are more than the %d unknowns, %d are taken", steps, n, m)
    pieces = {} if pieces is None else pieces
    counted = Counted(A, None, seed)
    like = torch.empty(0, dtype=A.dtype, device=A.device)
    found = []
    for i in range(probes):
        name = f"probe {i}"
        if name not in pieces:
            v = _outside(known, gaussian(n, seed, i, like=like))
            v = v / v.norm()

            def told(j: int, i: int = i) -> None:
                if progress:
                    progress(i * m + j, probes * m, f"step {j} of probe {i + 1}")

            nodes, weights = nodes_of(counted.row, v, m, without=known, progress=told)
            if CHECKS not in pieces:
                pieces[CHECKS] = torch.tensor(counted.probes)
            pieces[name] = torch.stack([nodes, weights])
        found.append(pieces[name])
    longest = max(piece.shape[1] for piece in found)
    padded = [torch.nn.functional.pad(x, (0, longest - x.shape[1]), value=torch.nan) for x in found]
    both = torch.stack(padded)  # (s, 2, m)
    return Density(
        nodes=both[:, 0].contiguous(),
        weights=both[:, 1].nan_to_num(0.0).contiguous(),
        known=torch.zeros(0).double() if deflate is None else deflate.values.double().cpu(),
        size=n,
        products=sum(piece.shape[1] for piece in found),
        check_products=int(pieces[CHECKS]),
        spec={
            "algorithm": "density",
            "steps": m,
            "probes": probes,
            "distribution": "uniform on the sphere",
            "seed": seed,
            "deflated": d,
            "pairs": _made(deflate),
            "operator": A.spec,
        },
    )


def trace(
    A: Operator,
    *,
    method: str = "hutch++",
    probes: int = 32,
    rtol: float | None = None,
    budget: int | None = None,
    deflate: Eigenpairs | None = None,
    seed: int = 0,
    pieces: Pieces | None = None,
    progress: Progress | None = None,
) -> Estimate:
    """Return the trace of A, estimated.

    ``hutchinson`` averages z^T A z over vectors z of random signs. ``hutch++`` takes the trace
    within the range of A times a third of the probes exactly, and samples what is outside (Meyer
    et al. 2021). ``xtrace`` lets each probe sample what the range of the others leaves (Epperly et
    al. 2024), and is the most precise where eigenvalues decay; its estimates are not independent.

    Cost: ``probes`` products, or with ``rtol`` as many as it takes, and two that probe A. Memory:
    two thirds of the probes in vectors, for ``xtrace`` one and a half times as many; one vector
    for ``hutchinson``.

    Args:
        method: One of ``TRACES``.
        probes: Products to spend, at first.
        rtol: Go on until half of the interval is within this share of the value, or ``budget`` is
            spent: ``spec["stopped"]`` says which.
        budget: Products at most, with ``rtol``. Default: 100 times ``probes``.
        deflate: Converged eigenpairs of A, which count exactly, and outside of which the probes
            are.
        pieces: Products, by number.
        progress: Called after each product.

    Raises:
        InputError: If there is no such method, too few probes for it, or A is no symmetric map.
        ComputationError: If a product is not finite.

    >>> from sharpness.curvature import Dense
    >>> A = Dense(torch.diag(torch.tensor([1.0, 5.0, 2.0])))
    >>> found = trace(A, method="hutchinson", probes=2)
    >>> found.value, found.stderr  # signs leave a diagonal nothing to chance
    (8.0, 0.0)
    """
    require_one_of(TRACES, method=method)
    work = _Work(A, deflate, seed, pieces, progress)
    options = {"method": method, "probes": probes, "rtol": rtol, "budget": budget}
    if method == "xtrace":
        return _exchanged(work, options)
    return _streamed("trace", work, work.trace_outside, work.trace_inside, options)


def frobenius(
    A: Operator,
    *,
    method: str = "hutch++",
    probes: int = 32,
    rtol: float | None = None,
    budget: int | None = None,
    deflate: Eigenpairs | None = None,
    seed: int = 0,
    pieces: Pieces | None = None,
    progress: Progress | None = None,
) -> Estimate:
    """Return the squared Frobenius norm of A, the sum of its squared eigenvalues, estimated.

    As the trace of A^2, |A z|^2 of each probe; the arguments are those of ``trace``, without
    ``xtrace``.

    >>> from sharpness.curvature import Dense
    >>> A = Dense(torch.diag(torch.tensor([1.0, 5.0, 2.0]).double()))
    >>> round(frobenius(A, probes=12).value, 9)  # the range of four probes is all of A
    30.0
    """
    require_one_of(NORMS, method=method)
    work = _Work(A, deflate, seed, pieces, progress)
    options = {"method": method, "probes": probes, "rtol": rtol, "budget": budget}
    return _streamed(
        "squared Frobenius norm", work, work.square_outside, work.square_inside, options
    )


def diagonal(
    A: Operator,
    *,
    method: str = "xdiag",
    probes: int = 32,
    seed: int = 0,
    pieces: Pieces | None = None,
    progress: Progress | None = None,
) -> Diagonal:
    """Return the diagonal of A, estimated.

    ``bekas`` averages z * (A z) over vectors z of random signs (Bekas et al. 2007); ``xdiag`` lets
    each probe sample what the range of the others leaves (Epperly et al. 2024).

    Cost: ``probes`` products and two that probe A; four vectors of memory, and for ``xdiag`` one
    and a half times as many as there are probes.

    The arguments are those of ``trace``.

    >>> from sharpness.curvature import Dense
    >>> diagonal(Dense(torch.diag(torch.tensor([1.0, 5.0]))), method="bekas", probes=2).values
    tensor([1., 5.], dtype=torch.float64)
    """
    require_one_of(DIAGONALS, method=method)
    work = _Work(A, None, seed, pieces, progress)
    require_counts(probes=probes)
    count, mean = 0, torch.zeros(A.size, dtype=torch.float64)
    squares = torch.zeros_like(mean)
    for sample in DIAGONALS[method](work, probes):
        count += 1
        step = sample.double().cpu() - mean
        mean = mean + step / count
        squares = squares + step * (sample.double().cpu() - mean)
    stderr = (
        (squares / (count - 1) / count).sqrt() if count > 1 else torch.full_like(mean, math.nan)
    )
    return Diagonal(
        values=mean,
        stderr=stderr,
        samples=count,
        products=work.counted.spent - work.counted.probes,
        check_products=work.counted.probes,
        spec={
            "algorithm": "diagonal",
            "method": method,
            "probes": probes,
            "seed": seed,
            "operator": A.spec,
        },
    )


class _Work:
    """An operator on what its known eigenvectors leave, and the range that is taken out of it."""

    def __init__(
        self,
        A: Operator,
        deflate: Eigenpairs | None,
        seed: int,
        pieces: Pieces | None,
        progress: Progress | None,
    ) -> None:
        self.A, self.seed, self.progress = A, seed, progress
        self.counted = Counted(A, pieces, seed)
        self.known = _known(A, deflate)
        self.made = _made(deflate)
        self.values = torch.zeros(0).double() if deflate is None else deflate.values.double().cpu()
        self.like = torch.empty(0, dtype=A.dtype, device=A.device)
        self.n, self.total = A.size, 0
        self.out = self.known  # rows that probes are orthogonal to
        none = self.like.new_zeros(0, self.n)
        self.taken = Range.of(none, none)

    def product(self, v: Tensor) -> Tensor:
        """Return A v; A maps what the eigenvectors leave to itself, but for their residuals."""
        w = self.counted.row(v)
        if not torch.isfinite(w).all():
            raise ComputationError(
                f"a trace needs finite products, got product {self.counted.spent} which is not: "
                "look at the loss there"
            )
        if self.progress:
            spent = self.counted.spent - self.counted.probes
            self.progress(spent, self.total or None, f"product {spent}")
        return w

    def signs(self, i: int) -> Tensor:
        """Return the i-th vector of signs."""
        return rademacher(self.n, self.seed, i, like=self.like)

    def direction(self, i: int) -> Tensor:
        """Return the i-th vector, in any direction outside of what was taken out alike.

        Its length is that of a vector of signs there, on average: a length of its own would be
        noise that tells nothing of A.
        """
        z = _outside(self.out, gaussian(self.n, self.seed, i, like=self.like))
        left = self.n - (0 if self.out is None else len(self.out))
        return z * (left**0.5 / z.norm()) if left else torch.zeros_like(z)

    def take_range(self, rank: int) -> None:
        """Take the range of A times that many probes out: what is in it is known exactly."""
        sketch = [
            _outside(self.known, self.product(self.direction(FIRST + i))) for i in range(rank)
        ]
        if not sketch:
            return
        Q = orthonormal(torch.stack(sketch), self.known)
        AQ = torch.stack([self.product(q) for q in Q]) if len(Q) else Q
        self.taken = Range.of(Q, AQ)
        rows = self.taken.Q
        self.out = rows if self.known is None else torch.cat([self.known, rows])

    def trace_inside(self) -> float:
        """Return the trace in what was taken out, and of what that leaves of its eigenvectors."""
        return float(self.values.sum()) + self.taken.trace

    def trace_outside(self, z: Tensor) -> float:
        """Return z^T A z of a probe, without what is known of it."""
        return float(z.double() @ self.product(z).double()) - self.taken.leaked(z)

    def square_inside(self) -> float:
        """Return the sum of squares in the rows and the columns of what was taken out."""
        inside = self.values.square().sum() + self.taken.theta.square().sum()
        return float(inside) + 2 * float(self.taken.F.double().square().sum())

    def square_outside(self, z: Tensor) -> float:
        """Return |A z|^2 of a probe, without the part in what was taken out."""
        w = _outside(self.out, self.product(z)).double()
        return float(w @ w)


def _streamed(
    quantity: str,
    work: _Work,
    sample: Callable[[Tensor], float],
    inside: Callable[[], float],
    options: dict[str, Any],
) -> Estimate:
    """Return an estimate whose samples are independent once the range was taken out."""
    probes, rtol = options["probes"], options["rtol"]
    budget = _budget(options)
    rank = min(probes // 3, work.n) if options["method"] == "hutch++" else 0
    work.total = 0 if rtol else probes
    work.take_range(rank)
    offset = inside()
    samples: list[float] = []
    left = probes - rank - len(work.taken.theta)
    while True:
        for i in range(len(samples), len(samples) + left):
            # Signs leave nothing of a diagonal to chance; a range is along no axis.
            z = work.direction(i) if rank else _outside(work.known, work.signs(i))
            samples.append(sample(z))
        value, low, high = t_interval(torch.tensor(samples, dtype=torch.float64))
        met = rtol is not None and (high - low) / 2 <= rtol * abs(offset + value)
        spent = work.counted.spent - work.counted.probes
        if rtol is None or met or spent >= budget:
            break
        left = min(len(samples), budget - spent)  # twice as many: few looks mislead little
    x = torch.tensor(samples, dtype=torch.float64)
    stderr = float(x.std() / len(x) ** 0.5) if len(x) > 1 else math.nan
    bounds = (offset + low, offset + high)
    return _estimate(quantity, work, offset, x, stderr, bounds, met, options)


def _exchanged(work: _Work, options: dict[str, Any]) -> Estimate:
    """Return the estimate by XTrace, made anew with twice the probes as often as it must."""
    probes, rtol = options["probes"], options["rtol"]
    budget = _budget(options)
    offset = float(work.values.sum())
    while True:
        work.total = 0 if rtol else probes
        samples, stderr = _xtrace(work, probes)
        value = offset + float(samples.mean())
        half = float(stdtrit(len(samples) - 1, (1 + LEVEL) / 2)) * stderr
        met = rtol is not None and half <= rtol * abs(value)
        spent = work.counted.spent - work.counted.probes
        if rtol is None or met or spent + 2 * probes > budget:
            bounds = (value - half, value + half)
            return _estimate("trace", work, offset, samples, stderr, bounds, met, options)
        probes *= 2


def _estimate(
    quantity: str,
    work: _Work,
    exact: float,
    samples: Tensor,
    stderr: float,
    bounds: tuple[float, float],
    met: bool,
    options: dict[str, Any],
) -> Estimate:
    asked = options["rtol"] is not None
    return Estimate(
        quantity=quantity,
        value=exact + float(samples.mean()),
        stderr=stderr,
        interval=torch.tensor(bounds, dtype=torch.float64),
        exact=exact,
        samples=samples,
        met=met or not asked,
        products=work.counted.spent - work.counted.probes,
        check_products=work.counted.probes,
        spec={
            "algorithm": quantity,
            **options,
            "stopped": ("rtol" if met else "budget") if asked else "probes",
            "deflated": len(work.values),
            "pairs": work.made,
            "seed": work.seed,
            "operator": work.A.spec,
        },
    )


def _xtrace(work: _Work, probes: int) -> tuple[Tensor, float]:
    """Return the estimate of each probe from the range of the others, and the error of their mean.

    They share that range, so that their scatter says too little (0.82 where it should be 0.95).
    The error is that of the jackknife, from the estimates without each of the probes, which is
    rather too large.
    """
    sketch = _Sketch(work, probes // 2)
    k = len(sketch.S)
    found = torch.tensor([sketch.estimate([i], i) for i in range(k)], dtype=torch.float64)
    without = torch.tensor(
        [[sketch.estimate([i, j], j) for j in range(k) if j != i] for i in range(k)],
        dtype=torch.float64,
    ).mean(dim=1)
    return found, float(((k - 1) / k * (without - without.mean()).square().sum()).sqrt())


class _Sketch:
    """The small matrices of XTrace: letters as in Epperly et al. (2024), of probes as columns."""

    def __init__(self, work: _Work, k: int) -> None:
        Omega, Q, AQ, self.R = _sketched(work, k, work.direction)
        H = (Q.double() @ AQ.double().T).cpu()
        self.H, self.S = (H + H.T) / 2, _left_out(self.R)
        self.W = (Q.double() @ Omega.double().T).cpu()
        self.lengths = (Omega.double() ** 2).sum(dim=1).cpu()
        self.n = work.n - (0 if work.known is None else len(work.known))

    def estimate(self, left_out: list[int], i: int) -> float:
        """Return the trace as probe i has it outside of the range of all but these probes."""
        B = self.S[left_out]
        B = torch.linalg.qr(B[B.any(dim=1)].T)[0]
        w, r = self.W[:, i], self.R[:, i]
        p = w - B @ (B.T @ w)  # the part of the probe in that range
        inside = self.H.trace() - (B.T @ self.H @ B).trace()
        outside = w @ r - 2 * p @ r + p @ self.H @ p
        left = self.n - len(self.H) + B.shape[1]
        # The length of what is left of a probe says nothing of A.
        return float(inside + outside * left / (self.lengths[i] - p @ p) if left else inside)


def _xdiag(work: _Work, probes: int) -> Any:
    """Yield the estimate of the diagonal of each probe from the range of the others."""
    Omega, Q, AQ, R = _sketched(work, probes // 2, work.signs)
    whole = (Q * AQ).sum(dim=0)
    for i, s in enumerate(_left_out(R)):
        near = s.to(Q)
        u, Au = near @ Q, near @ AQ
        yield whole - u * Au + Omega[i] * u * float(s @ R[:, i])


def _bekas(work: _Work, probes: int) -> Any:
    """Yield z * (A z) of each probe."""
    work.total = probes
    for i in range(probes):
        z = work.signs(i)
        yield z * work.product(z)


def _sketched(
    work: _Work, k: int, probe: Callable[[int], Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return probes, a basis of their products, its products, rows, and R: A Omega^T = Q^T R."""
    if k < 2:
        raise InputError(
            f"this estimate needs at least 4 probes, two of which leave each other out, got {2 * k}"
            ": raise them, or take another method"
        )
    k = min(k, work.n)
    Omega = torch.stack([probe(i) for i in range(k)])
    Y = torch.stack([_outside(work.known, work.product(z)) for z in Omega])
    Q = orthonormal(Y, work.known)
    AQ = torch.stack([_outside(work.known, work.product(q)) for q in Q])
    return Omega, Q, AQ, (Q.double() @ Y.double().T).cpu()


def _left_out(R: Tensor) -> Tensor:
    """Return the part of the range that each probe alone has, as rows of unit length.

    Zeros where the probes are more than the range has dimensions: each is in that of the others.
    """
    if len(R) < R.shape[1]:
        return R.new_zeros(R.shape[1], len(R))
    S = torch.linalg.inv(R)  # a row is orthogonal to all columns of R but its own
    return S / S.norm(dim=1, keepdim=True)


def _outside(rows: Tensor | None, v: Tensor) -> Tensor:
    """Return v without its part in the orthonormal rows."""
    if rows is None or not len(rows):
        return v
    for _ in range(2):
        v = v - inner(rows, v) @ rows
    return v


def _known(A: Operator, pairs: Eigenpairs | None) -> Tensor | None:
    if pairs is None:
        return None
    if pairs.vectors.shape[1] != A.size:
        raise InputError(
            f"deflate needs eigenpairs of {A.size} unknowns, got {pairs.vectors.shape[1]}: take "
            "those of this operator"
        )
    if len(pairs.vectors) >= A.size:
        raise InputError(
            f"deflate needs fewer eigenpairs than the {A.size} unknowns, got all of them: there is "
            "nothing left to estimate"
        )
    if not pairs.converged.all():
        raise InputError(
            f"deflate needs eigenpairs that converged, got {int((~pairs.converged).sum())} of "
            f"{len(pairs.values)} that did not: compute fewer of them, or to another tolerance"
        )
    return pairs.vectors.to(A.device, A.dtype)


def _made(pairs: Eigenpairs | None) -> dict[str, Any] | None:
    """Return how known eigenpairs were found, and at which cost; their operator is this one."""
    if pairs is None:
        return None
    options = {key: value for key, value in pairs.spec.items() if key != "operator"}
    return {**options, "products": pairs.products + pairs.check_products}


def _budget(options: dict[str, Any]) -> int:
    probes, rtol, budget = options["probes"], options["rtol"], options["budget"]
    require_counts(probes=probes)
    least = TRACES[options["method"]]
    if probes < least:
        raise InputError(
            f"{options['method']} needs at least {least} probes, got {probes}: raise them, or take "
            "another method"
        )
    if rtol is not None and not (rtol > 0 and math.isfinite(rtol)):
        raise InputError(f"rtol needs to be above 0 and finite, got {rtol}: change it")
    if budget is not None and (rtol is None or budget < probes):
        raise InputError(
            f"budget is for rtol, and at least the {probes} probes, got {budget}: change it"
        )
    return 100 * probes if budget is None else int(budget)


def require_options(quantity: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return those options that the function of a quantity takes, the given ones.

    Raises:
        InputError: If one is given that it does not take.

    >>> require_options("trace", {"probes": 8, "rtol": None, "deflate": 0})
    {'probes': 8}
    """
    given = {key: value for key, value in options.items() if value}
    taken = inspect.signature(QUANTITIES[quantity]).parameters
    extra = [key for key in given if key not in taken]
    if extra:
        raise InputError(f"{extra[0]} is for traces and norms, got the {quantity}: leave it out")
    if "method" in given:
        require_one_of(TABLES[quantity], method=given["method"])
    given.pop("deflate", None)  # a number of pairs, which are to be computed
    return given


TRACES = {"hutchinson": 1, "hutch++": 3, "xtrace": 4}  # probes that each needs at least
NORMS = {name: TRACES[name] for name in ("hutchinson", "hutch++")}
DIAGONALS: dict[str, Callable[[_Work, int], Any]] = {"bekas": _bekas, "xdiag": _xdiag}
METHODS = {**TRACES, **dict.fromkeys(DIAGONALS, 1)}
TABLES: dict[str, dict[str, Any]] = {"trace": TRACES, "frobenius": NORMS, "diagonal": DIAGONALS}
QUANTITIES: dict[str, Callable[..., Estimate | Diagonal]] = {
    "trace": trace,
    "frobenius": frobenius,
    "diagonal": diagonal,
}
