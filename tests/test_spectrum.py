"""What probes tell of a spectrum is what the spectrum is, within the intervals that they tell."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sharpness.curvature import Dense
from sharpness.errors import ComputationError, InputError
from sharpness.lanczos import eigsh
from sharpness.results import Density
from sharpness.spectrum import density, diagonal, frobenius, trace
from sharpness.vectors import gaussian, rademacher

N = 60


def rotated(values: Tensor, seed: int = 0) -> Tensor:
    """A symmetric matrix with these eigenvalues and eigenvectors along no axis."""
    generator = torch.Generator().manual_seed(seed)
    n = len(values)
    Q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
    M = Q @ torch.diag(values.double()) @ Q.T
    return (M + M.T) / 2


class Counting(Dense):
    products = 0

    def __matmul__(self, v: Tensor) -> Tensor:
        self.products += 1
        return super().__matmul__(v)


OPERATORS = {
    "dominant": torch.cat([torch.tensor([9.0]), torch.linspace(0, 2 / N, N - 1)]),  # 0.9 of it
    "outliers": torch.cat([torch.tensor([99.0, 40.0, 7.0]), torch.linspace(0, 0.05, N - 3)]),
    "power law": 1 / torch.arange(1.0, N + 1),
    "both signs": torch.linspace(-1, 1, N) ** 3,
    "flat": torch.linspace(0.5, 1.5, N),
}


# ---- density -------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [5, 6, 8, 60])
def test_nodes_are_the_eigenvalues_where_there_are_no_more_of_them_than_steps(steps: int) -> None:
    values = torch.tensor([-2.0, 0.0, 1.0, 1.5, 7.0]).double()
    found = density(Dense(rotated(values.repeat(12))), steps=steps, probes=3)
    for nodes, weights in zip(found.nodes, found.weights, strict=True):
        counted = weights > 1e-12  # rounding may let more steps begin, which find the same again
        apart = (nodes[counted, None] - values).abs()
        assert float(apart.min(dim=1).values.max()) < 1e-8
        assert set(apart.argmin(dim=1).tolist()) == set(range(5))
        assert abs(float(weights.sum()) - 1) < 1e-12


def test_two_clusters_have_half_of_the_mass_each() -> None:
    values = torch.cat([torch.full((150,), 1.0), torch.full((150,), 5.0)]).double()
    found = density(Dense(torch.diag(values)), steps=10, probes=40)
    for low, high in ((0.9, 1.1), (4.9, 5.1)):
        mean, least, most = found.mass(low, high)
        assert least < 0.5 < most
        assert abs(mean - 0.5) < 0.02  # five times its standard error
    assert found.mass(1.1, 4.9)[0] < 1e-12


def test_the_weight_of_an_eigenvalue_has_the_mean_and_the_scatter_of_its_multiplicity() -> None:
    n, k, s = 300, 60, 400
    values = torch.cat([torch.ones(k), torch.zeros(n - k)]).double()
    found = density(Dense(torch.diag(values)), steps=2, probes=s)
    share = (found.weights * (found.nodes.nan_to_num() > 0.5)).sum(dim=1)
    spread = math.sqrt(2 * k * (n - k) / (n * n * (n + 2)))
    assert abs(float(share.mean()) - k / n) < 4 * spread / math.sqrt(s)
    assert abs(float(share.std()) / spread - 1) < 0.15


def test_the_density_of_a_random_covariance_is_that_of_marchenko_and_pastur() -> None:
    n, d = 2000, 500
    generator = torch.Generator().manual_seed(1)
    X = torch.randn(n, d, generator=generator, dtype=torch.float64)
    spikes = torch.tensor([5.0, 3.0, 1.3]).double()  # the third below 1 + sqrt(d / n) = 1.5
    X[:, :3] *= (n * spikes).sqrt() / X[:, :3].norm(dim=0)  # without the scatter of their lengths
    A = Dense(X.T @ X / n)
    top = eigsh(A, 12)
    assert (top.values > 1.05 * 2.25).tolist() == [True, True] + 10 * [False]  # no third
    for found, spike in zip(top.values[:2].tolist(), (5.0, 3.0), strict=True):
        assert abs(found / (spike * (1 + d / n / (spike - 1))) - 1) < 0.03
    bulk = density(A, steps=80, probes=80, deflate=eigsh(A, 2))
    nodes = bulk.nodes[bulk.weights > 1e-4]
    assert abs(float(nodes.min()) / 0.25 - 1) < 0.05
    assert abs(float(nodes.max()) / 2.25 - 1) < 0.05
    grid = torch.linspace(0.4, 2.0, 9).double()
    wanted = ((grid - 0.25) * (2.25 - grid)).sqrt() / (2 * math.pi * 0.25 * grid)
    mean, low, high = bulk.on(grid, 0.08)
    assert ((mean / wanted - 1).abs() < 0.08).all()
    assert (low <= mean).all()
    assert (mean <= high).all()


@pytest.mark.parametrize("deflated", [0, 2])
def test_a_density_integrates_to_one(deflated: int) -> None:
    A = Dense(rotated(OPERATORS["outliers"]))
    known = eigsh(A, deflated) if deflated else None
    found = density(A, steps=20, probes=4, deflate=known)
    grid = torch.linspace(-20, 120, 60_000).double()
    mean, low, _ = found.on(grid, 0.5)
    assert abs(float(torch.trapezoid(mean, grid)) - 1) < 1e-6
    assert (low <= mean).all()
    logs = torch.linspace(-40, 4, 60_000).double()
    mean, *_ = found.on_log(logs, 0.1)
    far = float((found.weights * (found.nodes.abs() < 1e-30)).sum(dim=1).mean())
    assert abs(float(torch.trapezoid(mean, logs)) - 1 + far) < 1e-6


def test_another_width_costs_no_product_and_more_probes_cost_theirs_alone() -> None:
    A = Counting(rotated(OPERATORS["flat"]))
    pieces: dict[str, Tensor] = {}
    few = density(A, steps=7, probes=2, pieces=pieces)
    spent = A.products
    assert spent == 2 * 7 + 2
    few.on(torch.linspace(0, 2, 5), 0.1)
    few.on_log(torch.linspace(0, 2, 5), 0.2)
    assert A.products == spent
    many = density(A, steps=7, probes=5, pieces=pieces)
    assert A.products - spent == 3 * 7 + 2  # the first of them is probed once more
    assert torch.equal(many.nodes[:2], few.nodes)
    assert (many.products, many.check_products) == (5 * 7, 2)
    spent = A.products
    assert density(A, steps=7, probes=5, pieces=pieces).check_products == 2
    assert A.products == spent
    whole = density(Dense(rotated(OPERATORS["flat"])), steps=7, probes=5)
    assert torch.equal(many.nodes, whole.nodes)


class Memory(TorchDispatchMode):
    """The most bytes that tensors held at once, without those that the caller had before."""

    def __init__(self, *before: Tensor) -> None:
        super().__init__()
        self.before = {StorageWeakRef(x.untyped_storage()).cdata for x in before}
        self.held: dict[int, tuple[StorageWeakRef, int]] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves((args, out)):
            if isinstance(x, Tensor):
                storage = StorageWeakRef(x.untyped_storage())
                self.held[storage.cdata] = storage, x.untyped_storage().nbytes()
        kept = {key: x for key, x in self.held.items() if not x[0].expired()}
        self.held = kept
        self.most = max(self.most, sum(b for key, (_, b) in kept.items() if key not in self.before))
        return out


class Diagonal(Dense):
    """A diagonal matrix without its zeros, whose product is one vector and nothing beside."""

    def __matmul__(self, v: Tensor) -> Tensor:
        return self.matrix * v


@pytest.mark.parametrize("deflated", [0, 3])
def test_a_density_holds_four_vectors_beside_those_of_one_probe(deflated: int) -> None:
    n, steps = 2**15, 20
    A = Diagonal(torch.cat([torch.tensor([9.0, 7.0, 5.0]), torch.linspace(-1, 1, n - 3)]))
    known = eigsh(A, deflated, tol=1e-3) if deflated else None
    memory = Memory(A.matrix, *([] if known is None else [known.vectors]))
    with memory:
        density(A, steps=steps, probes=2, deflate=known)
    vector = n * A.dtype.itemsize
    assert steps * vector < memory.most <= (steps + 4) * vector + 2**16  # and what is small


def test_products_that_an_operator_keeps_stay_what_they_are() -> None:
    M, kept = rotated(OPERATORS["flat"]), []

    class Keeping(Dense):
        def __matmul__(self, v: Tensor) -> Tensor:
            kept.append((v.clone(), super().__matmul__(v)))
            return kept[-1][1]

    density(Keeping(M), steps=9, probes=1)
    assert all(torch.equal(w, M @ v) for v, w in kept)


def test_what_is_deflated_counts_exactly_and_leaves_the_bulk_to_the_probes() -> None:
    values = OPERATORS["outliers"].double()
    A = Dense(rotated(values))
    found = density(A, steps=25, probes=5, deflate=eigsh(A, 3))
    assert found.nodes.nan_to_num(0.0).max() < 0.06
    assert torch.allclose(found.known, values[:3], rtol=1e-8)
    exact, low, high = found.mass(1, 1000)
    assert (round(exact, 12), round(low, 12), round(high, 12)) == (0.05, 0.05, 0.05)
    _, low, high = found.moment(1)
    assert low <= float(values.mean()) <= high
    plain = density(A, steps=25, probes=5).moment(1)
    assert high - low < (plain[2] - plain[1]) / 100


def test_sums_over_the_spectrum_are_those_of_the_eigenvalues() -> None:
    values = torch.linspace(0.1, 3, 8).double()
    A = Dense(rotated(values))
    found = density(A, steps=8, probes=60)
    for got, wanted in (
        (found.moment(1), values.mean()),
        (found.moment(2), values.square().mean()),
        (found.log_determinant(0.5), (values + 0.5).log().sum()),
        (found.effective_dimension(0.7), (values / (values + 0.7)).sum()),
        (found.negative_mass, torch.tensor(0.0)),
    ):
        mean, low, high = got
        assert low <= float(wanted) <= high  # of these seeds: the coverage is tested below
        assert low <= mean <= high


def test_negative_mass_counts_no_zeros() -> None:
    values = torch.cat([torch.full((10,), -1.0), torch.zeros(20), torch.ones(10)]).double()
    _, low, high = density(Dense(rotated(values)), steps=4, probes=50).negative_mass
    assert low < 0.25 < high


def test_with_one_probe_intervals_are_unknown_and_not_0() -> None:
    A = Dense(rotated(OPERATORS["flat"]))
    mean, low, high = density(A, steps=5, probes=1).moment(1)
    assert math.isfinite(mean)
    assert math.isnan(low)
    assert math.isnan(high)
    one = trace(A, method="hutchinson", probes=1)
    assert math.isnan(one.stderr)
    assert one.interval.isnan().all()


# ---- trace, norm and diagonal --------------------------------------------------------------


def test_signs_are_exact_on_a_diagonal_with_one_probe() -> None:
    values = torch.randn(30, dtype=torch.float64)
    found = trace(Dense(torch.diag(values)), method="hutchinson", probes=1)
    assert abs(found.value - float(values.sum())) < 1e-12
    assert torch.allclose(
        diagonal(Dense(torch.diag(values)), method="bekas", probes=1).values, values
    )


@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
def test_what_has_a_small_range_is_known_exactly(method: str) -> None:
    A = Dense(rotated(torch.cat([torch.tensor([5.0, -3.0, 2.0]), torch.zeros(47)])))
    found = trace(A, method=method, probes=24)
    assert abs(found.value - 4) < 1e-10
    assert float(found.interval.diff()) < 1e-9
    assert found.products <= 24


def test_the_variance_of_a_plain_trace_is_that_of_its_formula() -> None:
    M = rotated(OPERATORS["power law"])
    A = Dense(M)
    samples = trace(A, method="hutchinson", probes=4000).samples
    wanted = 2 * float((M * M).sum() - M.diagonal().square().sum())
    assert abs(float(samples.var()) / wanted - 1) < 0.15


def leaving_one_out(M: Tensor, k: int, seed: int) -> list[float]:
    """XTrace by its definition: a new range for each probe left out."""
    n, like = len(M), torch.empty(0, dtype=torch.float64)
    Omega = torch.stack([gaussian(n, seed, i, like=like) for i in range(k)])
    found = []
    for i in range(k):
        others = torch.cat([Omega[:i], Omega[i + 1 :]])
        Q = torch.linalg.qr(M @ others.T)[0]
        rest = Omega[i] - Q @ (Q.T @ Omega[i])
        rest = rest * math.sqrt((n - k + 1) / float(rest @ rest))
        found.append(float((Q.T @ M @ Q).trace() + rest @ M @ rest))
    return found


def test_xtrace_is_its_definition_at_less_cost() -> None:
    M = rotated(OPERATORS["power law"])
    A = Counting(M)
    found = trace(A, method="xtrace", probes=16, seed=3)
    assert torch.allclose(found.samples, torch.tensor(leaving_one_out(M, 8, 3)).double())
    assert found.products == 16
    assert A.products == 18


def test_xdiag_is_its_definition() -> None:
    M, k, like = rotated(OPERATORS["power law"]), 6, torch.empty(0, dtype=torch.float64)
    Omega = torch.stack([rademacher(N, 0, i, like=like) for i in range(k)])
    wanted = []
    for i in range(k):
        Q = torch.linalg.qr(M @ torch.cat([Omega[:i], Omega[i + 1 :]]).T)[0]
        P = Q @ Q.T
        wanted.append((P @ M).diagonal() + Omega[i] * ((M - P @ M) @ Omega[i]))
    found = diagonal(Dense(M), method="xdiag", probes=2 * k)
    assert torch.allclose(found.values, torch.stack(wanted).mean(dim=0))
    assert torch.allclose(found.stderr, torch.stack(wanted).std(dim=0) / math.sqrt(k))


def test_xtrace_beats_hutchinson_where_eigenvalues_decay() -> None:
    values = 0.8 ** torch.arange(N, dtype=torch.float64)
    A = Dense(rotated(values))
    truth = float(A.matrix.trace())
    errors = {
        method: math.sqrt(
            sum((trace(A, method=method, probes=40, seed=s).value - truth) ** 2 for s in range(40))
            / 40
        )
        for method in ("hutchinson", "xtrace")
    }
    # Theirs is the norm of what the best space of 19 dimensions leaves, but for a small factor.
    assert errors["xtrace"] < math.sqrt(2) * float(values[19:].norm())
    assert errors["hutchinson"] > 10 * errors["xtrace"]


def test_the_diagonal_adds_up_to_the_trace() -> None:
    M = rotated(OPERATORS["both signs"])
    for method in ("bekas", "xdiag"):
        found = diagonal(Dense(M), method=method, probes=50)
        apart = (found.values - M.diagonal()) / found.stderr
        assert float((apart.abs() < 2).double().mean()) > 0.85
        assert len(found.values) == N


@pytest.mark.parametrize("name", OPERATORS)
def test_deflated_pairs_count_exactly(name: str) -> None:
    values = OPERATORS[name].double()
    A = Dense(rotated(values))
    pairs = eigsh(A, 2, which="LM")
    for method in ("hutchinson", "hutch++", "xtrace"):
        found = trace(A, method=method, probes=12, deflate=pairs)
        assert abs(found.value - float(values.sum())) < 6 * found.stderr + 1e-9
    plain = trace(A, method="hutchinson", probes=12).stderr
    if name == "dominant":
        assert trace(A, method="hutchinson", probes=12, deflate=pairs).stderr < plain / 20


def test_probes_come_until_the_interval_is_narrow_enough_or_the_budget_is_spent() -> None:
    A = Counting(rotated(OPERATORS["flat"]))
    for method in ("hutchinson", "hutch++", "xtrace"):
        A.products = 0
        found = trace(A, method=method, probes=12, rtol=0.02)
        assert found.met
        assert found.spec["stopped"] == "rtol"
        assert float(found.interval.diff()) / 2 <= 0.02 * found.value
        assert A.products == found.products + found.check_products
        short = trace(A, method=method, probes=12, rtol=1e-9, budget=20)
        assert not short.met
        assert short.spec["stopped"] == "budget"
        assert short.products <= 20


COVERED: dict[str, Callable[[Dense, int], tuple[float, float]]] = {
    "trace": lambda A, seed: tuple(trace(A, probes=30, seed=seed).interval.tolist()),
    "norm": lambda A, seed: tuple(frobenius(A, probes=30, seed=seed).interval.tolist()),
    "deflated trace": lambda A, seed: tuple(
        trace(A, method="hutchinson", probes=10, seed=seed, deflate=known(A)).interval.tolist()
    ),
    "first moment": lambda A, seed: moments(A, seed, 1),
    "second moment": lambda A, seed: moments(A, seed, 2),
}


def known(A: Dense) -> Any:
    """The three largest eigenpairs in magnitude, computed once for a matrix."""
    if "known" not in A.spec:
        A.spec["known"] = eigsh(Dense(A.matrix), 3, which="LM")
    return A.spec["known"]


def moments(A: Dense, seed: int, k: int) -> tuple[float, float]:
    return density(A, steps=4, probes=20, seed=seed, deflate=known(A)).moment(k)[1:]


def truth(what: str, values: Tensor) -> float:
    return float(
        {
            "trace": values.sum(),
            "deflated trace": values.sum(),
            "norm": values.square().sum(),
            "first moment": values.mean(),
            "second moment": values.square().mean(),
        }[what]
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("what", COVERED)
def test_intervals_cover_the_truth_as_often_as_they_say(what: str, name: str) -> None:
    values = OPERATORS[name].double()
    A, wanted, seeds = Dense(rotated(values)), truth(what, values), 2000
    inside = 0
    for seed in range(seeds):
        low, high = COVERED[what](A, seed)
        inside += low <= wanted <= high
    print(f"{what} of {name}: {inside / seeds:.3f} of {seeds}")
    assert 0.93 <= inside / seeds <= 0.97


def test_a_plain_interval_covers_too_seldom_where_one_eigenvalue_dominates() -> None:
    """What the default and the deflated estimates are for; the limit with 10 probes is 0.86."""
    values = OPERATORS["dominant"].double()
    A, wanted, seeds = Dense(rotated(values)), float(values.sum()), 400
    inside = {"hutchinson": 0, "hutch++": 0}
    for seed in range(seeds):
        for method in inside:
            probes = 10 if method == "hutchinson" else 30  # ten samples each
            low, high = trace(A, method=method, probes=probes, seed=seed).interval.tolist()
            inside[method] += low <= wanted <= high
    assert inside["hutchinson"] / seeds < 0.92
    assert inside["hutch++"] / seeds > 0.925


# ---- bad input -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda A: density(A, steps=0), "steps need to be a whole number of at least 1, got 0"),
        (lambda A: trace(A, probes=True), "probes need to be a whole number .* got True"),
        (lambda A: density(A, probes=0), "probes need to be"),
        (lambda A: density(A, probes=1.5), "got 1.5"),
        (lambda A: trace(A, probes=0), "probes need to be"),
        (lambda A: trace(A, method="hutch"), r"one of hutchinson, hutch\+\+, xtrace, got 'hutch'"),
        (lambda A: frobenius(A, method="xtrace"), "one of hutchinson"),
        (lambda A: diagonal(A, method="x"), "one of bekas, xdiag"),
        (lambda A: trace(A, method="xtrace", probes=3), "xtrace needs at least 4 probes, got 3"),
        (lambda A: trace(A, probes=2), r"hutch\+\+ needs at least 3 probes, got 2"),
        (lambda A: frobenius(A, probes=2), r"hutch\+\+ needs at least 3 probes, got 2"),
        (lambda A: diagonal(A, probes=3), "at least 4 probes"),
        (lambda A: diagonal(A, method="bekas", probes=0), "probes need to be"),
        (lambda A: trace(A, rtol=-1.0), "rtol needs to be above 0"),
        (lambda A: trace(A, budget=9), "budget is for rtol"),
        (lambda A: trace(A, rtol=0.1, budget=9), "at least the 32 probes, got 9"),
        (lambda A: trace(A, deflate=eigsh(Dense(torch.eye(3)), 1)), "of 60 unknowns, got 3"),
        (lambda A: trace(A, deflate=eigsh(A, 60)), "fewer eigenpairs than the 60 unknowns"),
        (lambda A: density(A, deflate=eigsh(A, 3, m=9, budget=12)), "that converged, got"),
        (lambda A: density(A).on(torch.ones(2), 0.0), "width above 0"),
        (lambda A: density(A).log_determinant(-0.5), "A \\+ c I above 0"),
        (lambda A: density(A).effective_dimension(0.0), "c above 0"),
    ],
)
def test_what_cannot_be_met_is_refused(call: Callable[[Dense], Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        call(Dense(rotated(OPERATORS["flat"])))


@pytest.mark.parametrize("call", [density, trace, frobenius, diagonal])
def test_what_is_no_symmetric_map_is_refused(call: Callable[[Dense], Any]) -> None:
    M = rotated(OPERATORS["flat"])
    M[0, 1] += 1
    with pytest.raises(InputError, match="needs to be symmetric"):
        call(Dense(M))


@pytest.mark.parametrize("call", [density, trace, frobenius, diagonal])
def test_products_that_are_not_finite_are_told_with_their_number(
    call: Callable[[Dense], Any],
) -> None:
    class Late(Counting):
        def __matmul__(self, v: Tensor) -> Tensor:
            w = super().__matmul__(v)
            return w if self.products < 6 else w * torch.nan

    with pytest.raises(ComputationError, match="finite products"):
        call(Late(rotated(OPERATORS["flat"])))


def test_more_steps_than_unknowns_are_clipped_and_said(caplog: pytest.LogCaptureFixture) -> None:
    found: Density = density(Dense(rotated(torch.linspace(1, 2, 6))), steps=50, probes=2)
    assert found.nodes.shape == (2, 6)
    assert found.spec["steps"] == 6
    assert "50 steps are more than the 6 unknowns" in caplog.text
