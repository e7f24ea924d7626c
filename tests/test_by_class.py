"""Of the Gauss-Newton matrix, the parts that belong to classes; dense matrices are the oracle."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev
from torch.multiprocessing.spawn import spawn

import sharpness as sh
from sharpness.by_class import class_structure, rows_of, subspace_errors, weights_of
from sharpness.data import digits
from sharpness.errors import ComputationError, InputError
from sharpness.objective import Batches, Objective
from sharpness.results import ClassStructure, Eigenpairs
from sharpness.training import cpu_threads

C = 4
cross_entropy = nn.functional.cross_entropy
EACH = partial(cross_entropy, reduction="none")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with cpu_threads(1):
        yield


class Dense(NamedTuple):
    """The parts of G as they are defined, one example and one class after the other."""

    parts: list[Tensor]  # G0 to G3, (n, n) each
    G: Tensor  # J^T (d^2 loss / dz^2) J, without a word of classes
    H: Tensor
    gradient: Tensor
    means: Tensor  # (C, n)  g_c
    weights: Tensor  # (C,)  w_c


def network() -> nn.Module:
    made = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, C)).double()  # n = 36
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(2)
    return made


def examples(count: int = 37) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 3).double(), torch.randint(C, (count,))


def share_of(y: Tensor) -> Tensor:
    """The weights of examples in their mean."""
    return torch.ones(len(y)).double() / len(y)


def dense(model: nn.Module, X: Tensor, y: Tensor, a: Tensor) -> Dense:
    """The matrices of sum a_i loss_i."""
    shapes = {name: p.shape for name, p in model.named_parameters()}
    theta = torch.cat([p.detach().flatten() for p in model.parameters()])

    def outputs(theta: Tensor) -> Tensor:
        parts = torch.split(theta, [shape.numel() for shape in shapes.values()])
        values = {k: v.view(s) for (k, s), v in zip(shapes.items(), parts, strict=True)}
        return functional_call(model, values, (X,))  # type: ignore[no-any-return]

    def loss(theta: Tensor) -> Tensor:
        return a @ EACH(outputs(theta), y)

    J, p = jacrev(outputs)(theta), outputs(theta).softmax(dim=1)
    curved = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    eye = torch.eye(C).double()
    g = torch.stack([(J * (eye[c] - p)[:, :, None]).sum(dim=1) for c in range(C)], dim=1)
    w = a[:, None] * p  # (N, C), g is (N, C, n)
    n = len(theta)
    G0, G1, G2, G3 = torch.zeros(4, n, n).double()
    means, sums = torch.zeros(C, n).double(), torch.zeros(C).double()
    for c in range(C):
        of_class = (y == c).nonzero().flatten().tolist()
        others = [other for other in range(C) if other != c]
        for i in of_class:
            G0 += w[i, c] * torch.outer(g[i, c], g[i, c])
        pairs = {other: sum(w[i, other] for i in of_class) for other in others}
        sums[c] = sum(pairs.values())
        if not sums[c]:
            continue
        of_pair = {
            other: sum(w[i, other] * g[i, other] for i in of_class) / pairs[other]
            for other in others
        }
        means[c] = sum(pairs[other] * of_pair[other] for other in others) / sums[c]
        G1 += sums[c] * torch.outer(means[c], means[c])
        for other in others:
            apart = of_pair[other] - means[c]
            G2 += pairs[other] * torch.outer(apart, apart)
            for i in of_class:
                within = g[i, other] - of_pair[other]
                G3 += w[i, other] * torch.outer(within, within)
    G = torch.einsum("i,icn,icd,idm->nm", a, J, curved, J)
    H = hessian(loss)(theta)
    return Dense([G0, G1, G2, G3], G, H, torch.func.grad(loss)(theta), means, sums)


def descending(A: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(A).flip(0)


def near(x: Tensor, y: Tensor, scale: float) -> bool:
    """To the rounding of sums of some thousand terms of this size."""
    return bool((x - y).abs().max() <= 1e-11 * scale)


def projected(A: Tensor, count: int, g: Tensor) -> float:
    V = torch.linalg.eigh(A)[1][:, -count:]
    return float((V.T @ g).square().sum() / g.square().sum())


Case = tuple[nn.Module, Objective, Tensor, Tensor, Tensor]


def plain() -> Case:
    model, (X, y) = network(), examples()
    f = Objective(model, [(X[:9], y[:9]), (X[9:], y[9:])], cross_entropy)
    return model, f, X, y, share_of(y)


def weighted_examples() -> Case:
    model, (X, y) = network(), examples()
    w = torch.rand(len(y)).double() * (torch.arange(len(y)) % 3 > 0)
    w[9:12] = 0  # a batch that weighs nothing
    batches = [(X[i:j], y[i:j], w[i:j]) for i, j in ((0, 9), (9, 12), (12, len(y)))]
    return model, Objective(model, batches, EACH, reduction="none"), X, y, w / w.sum()


def weighted_classes() -> Case:
    model, (X, y) = network(), examples()
    w = torch.tensor([1.0, 2.0, 0.5, 3.0]).double()
    loss = partial(cross_entropy, weight=w)
    f = Objective(model, [(X[:9], y[:9]), (X[9:], y[9:])], loss, count=lambda y: w[y].sum())
    return model, f, X, y, w[y] / w[y].sum()


def ignored() -> Case:
    model, (X, y) = network(), examples()
    told = y.clone()
    told[::4] = -100  # all of a batch too
    told[9:12] = -100
    batches = [(X[:9], told[:9]), (X[9:12], told[9:12]), (X[12:], told[12:])]
    f = Objective(model, batches, cross_entropy, count=lambda y: (y >= 0).sum())
    a = (told >= 0).double()
    return model, f, X, y, a / a.sum()


CASES = [plain, weighted_examples, weighted_classes, ignored]
USING = pytest.mark.parametrize("case", CASES)


@USING
def test_the_parts_by_class_are_positive_and_sum_to_the_gauss_newton_matrix(
    case: Callable[[], Case],
) -> None:
    model, f, X, y, a = case()
    true = dense(model, X, y, a)
    size = float(true.G.norm())
    assert near(sum(true.parts, torch.zeros(())), true.G, size)
    assert all(float(descending(part)[-1]) > -1e-13 * size for part in true.parts)
    A = torch.stack([sh.GaussNewton(f) @ row for row in torch.eye(len(true.G)).double()])
    assert near(A, true.G, size)


@USING
def test_eigenvalues_are_those_of_the_dense_matrices(case: Callable[[], Case]) -> None:
    model, f, X, y, a = case()
    true, found = dense(model, X, y, a), class_structure(f)
    size = float(true.G.norm())
    _, G1, G2, _ = true.parts
    assert found.converged.all()
    assert near(found.values, descending(true.G)[: len(found.values)], size)
    assert near(found.hessian_values, descending(true.H)[: C + 1], float(true.H.norm()))
    assert near(found.mean_values, descending(G1)[:C], size)
    assert near(found.pair_values, descending(G1 + G2)[: C * (C - 1)], size)
    scaled = true.weights.sqrt()[:, None] * true.means
    assert near(found.gram, scaled @ scaled.T, size)
    assert near(found.error_weights, true.weights, 1.0)
    assert near(found.class_weights, torch.zeros(C).double().index_add(0, y, a), 1.0)


@USING
def test_eigenvalues_of_the_parts_are_below_those_of_the_whole(case: Callable[[], Case]) -> None:
    found = class_structure(case()[1])
    least = 1e-12 * float(found.values[0])
    assert (found.values[:C] >= found.pair_values[:C] - least).all()
    assert (found.pair_values[:C] >= found.mean_values - least).all()


@USING
def test_shares_and_overlaps_are_those_of_the_dense_matrices(case: Callable[[], Case]) -> None:
    model, f, X, y, a = case()
    true, found = dense(model, X, y, a), class_structure(f)
    g = true.gradient
    assert abs(found.gradient_norm - float(g.norm())) <= 1e-11 * float(g.norm())
    for j in range(1, C + 1):
        assert abs(float(found.gradient_shares[j - 1]) - projected(true.G, j, g)) < 1e-9
        assert abs(float(found.hessian_gradient_shares[j - 1]) - projected(true.H, j, g)) < 1e-9
        U, V = (torch.linalg.eigh(A)[1][:, -j:] for A in (true.parts[1], true.G))
        overlap = float((U.T @ V).square().sum()) / j
        assert abs(float(found.overlaps[j - 1]) - overlap) < 1e-8
    assert bool((found.gradient_shares[:-1].diff() >= 0).all())
    assert found.gradient_shares[-1].isnan()  # without a next eigenvalue no gap is known


def test_the_sum_over_batches_is_that_of_one_batch() -> None:
    model, (X, y) = network(), examples()
    one = class_structure(Objective(model, [(X, y)], cross_entropy))
    many = class_structure(Objective(model, [(X[:5], y[:5]), (X[5:], y[5:])], cross_entropy))
    for name in ("values", "mean_values", "pair_values", "gram", "overlaps", "gradient_shares"):
        x, y = getattr(one, name), getattr(many, name)
        assert torch.allclose(x, y, rtol=1e-9, atol=1e-12, equal_nan=True)


def of_ranks(share: slice) -> tuple[Tensor, ...]:
    X = torch.randn(37, 3, generator=torch.Generator().manual_seed(0)).double()
    model = nn.Linear(3, C).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.linspace(-1, 1, p.numel()).view_as(p))
    y = torch.arange(37) // 10  # so that a rank has no example of some classes
    found = class_structure(Objective(model, [(X[share], y[share])], cross_entropy))
    return found.values, found.gram, found.pair_values, found.class_weights, found.gradient_shares


def rank(i: int, store: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=i, world_size=2)
    got = of_ranks(slice(0, 25) if i == 0 else slice(25, 37))
    want = torch.load(store.with_name("want.pt"))
    torch.testing.assert_close(got, want, equal_nan=True, rtol=1e-9, atol=1e-12)
    dist.destroy_process_group()


def test_ranks_with_other_classes_give_what_one_process_does(tmp_path: Path) -> None:
    torch.save(of_ranks(slice(None)), tmp_path / "want.pt")
    spawn(rank, args=(tmp_path / "ranks",), nprocs=2)  # type: ignore[no-untyped-call]


def test_a_weight_of_two_is_an_example_that_is_there_twice() -> None:
    model, (X, y) = network(), examples(9)
    w = torch.ones(9).double()
    w[3] = 2.0
    weighted = Objective(model, [(X, y, w)], EACH, reduction="none")
    twice = Objective(model, [(torch.cat([X, X[3:4]]), torch.cat([y, y[3:4]]))], cross_entropy)
    one, other = class_structure(weighted), class_structure(twice)
    assert torch.allclose(one.gram, other.gram, rtol=1e-10, atol=1e-14, equal_nan=True)
    assert torch.allclose(one.values, other.values, rtol=1e-10, atol=1e-14)


# ---- the closed form of softmax regression -----------------------------------------------------


def softmax_regression(dtype: torch.dtype = torch.float64) -> tuple[Objective, Tensor, Tensor]:
    (X, y), _ = digits()
    model = nn.Linear(64, 10, bias=False).to(dtype)
    nn.init.zeros_(model.weight)
    X = X.to(dtype)
    return Objective(model, [(X[:1000], y[:1000]), (X[1000:], y[1000:])], cross_entropy), X, y


@pytest.fixture(scope="module")
def regression() -> tuple[ClassStructure, Tensor, Tensor]:
    f, X, y = softmax_regression()
    return class_structure(f), X, y


def test_softmax_regression_at_zero_has_nine_outliers(
    regression: tuple[ClassStructure, Tensor, Tensor],
) -> None:
    found, X, _ = regression
    S = descending(X.T @ X / len(X)) / 10
    assert near(found.values, S.repeat_interleave(9)[:30], 1e3 * float(S[0]))
    assert float(found.values[0]) == pytest.approx(1.04552996869546, rel=1e-9)
    assert found.outliers == 9
    assert found.gap == pytest.approx(float(S[0] / S[1]), rel=1e-6)
    assert 14.9 < found.gap < 15


def test_class_means_of_softmax_regression_at_zero_are_those_by_hand(
    regression: tuple[ClassStructure, Tensor, Tensor],
) -> None:
    found, X, y = regression
    K, N = 10, len(y)
    counts = torch.bincount(y).double()
    means = torch.stack([X[y == c].mean(dim=0) for c in range(K)])
    # (1 - e_c K) / (K (K - 1)) (x) m_c, of the weight n_c / N (1 - 1 / K)
    w = counts / N * (1 - 1 / K)
    between = (torch.eye(K).double() - 1 / K) / (K - 1) ** 2
    gram = (w[:, None] * w).sqrt() * between * (means @ means.T)
    assert near(found.gram, gram, float(gram.norm()))
    assert near(found.class_weights, counts / N, 1.0)
    assert near(found.error_weights, w, 1.0)
    assert near(found.mean_values, descending(gram), float(gram.norm()))
    # The pairs of class c are (e_c' - 1 / K) (x) m_c, of the weight n_c / N / K each.
    eye, one = torch.eye(K).double(), torch.ones(K).double() / K
    steps = [((eye[d] - one), c) for c in range(K) for d in range(K) if d != c]
    rows = torch.stack([(counts[c] / N / K).sqrt() * torch.kron(u, means[c]) for u, c in steps])
    assert near(found.pair_values, descending(rows @ rows.T), float(gram.norm()))


def test_the_hessian_of_softmax_regression_is_its_gauss_newton_matrix(
    regression: tuple[ClassStructure, Tensor, Tensor],
) -> None:
    found, X, y = regression
    assert near(found.hessian_values, found.values[:11], 1e3 * float(found.values[0]))
    g = (0.1 - nn.functional.one_hot(y).double()).T @ X / len(y)
    v = torch.linalg.eigh(X.T @ X)[1][:, -1]
    share = float((g @ v).square().sum() / g.square().sum())  # of vectors that sum to 0
    for shares, errors in (
        (found.gradient_shares, found.gradient_share_errors),
        (found.hessian_gradient_shares, found.hessian_gradient_share_errors),
    ):
        assert abs(float(shares[8]) - share) <= float(errors[8]) < 1e-6
        # Among equal eigenvalues any vectors are eigenvectors: no share is that of the matrix.
        assert shares[:8].isnan().all()
        assert shares[9:11].isnan().all()
        assert torch.equal(shares.isnan(), errors.isnan())
    assert 0.5 < float(found.overlaps[8]) < 1
    assert found.overlaps[9].isnan()


# ---- what is not sure --------------------------------------------------------------------------


@pytest.mark.parametrize("tol", [1e-1, 1e-2, 1e-3])
@pytest.mark.parametrize("seed", range(2))
def test_errors_of_shares_are_bounds(tol: float, seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(20, 10), nn.Tanh(), nn.Linear(10, C)).double()  # n = 254
    X, y = torch.randn(60, 20).double(), torch.randint(C, (60,))
    true = dense(model, X, y, share_of(y))
    found = class_structure(Objective(model, [(X, y)], cross_entropy), tol=tol)
    for A, shares, errors in (
        (true.G, found.gradient_shares, found.gradient_share_errors),
        (true.H, found.hessian_gradient_shares, found.hessian_gradient_share_errors),
    ):
        known = (~errors.isnan()).nonzero().flatten().tolist()
        assert known
        assert (errors[known] < 1).all()
        for i in known:
            gap = abs(float(shares[i]) - projected(A, i + 1, true.gradient))
            assert gap <= float(errors[i]) + 1e-12
    for i in (~found.overlap_errors.isnan()).nonzero().flatten().tolist():
        U, V = (torch.linalg.eigh(A)[1][:, -i - 1 :] for A in (true.parts[1], true.G))
        gap = abs(float(found.overlaps[i]) - float((U.T @ V).square().sum()) / (i + 1))
        assert gap <= float(found.overlap_errors[i]) + 1e-12


def test_the_error_of_an_eigenspace_allows_for_the_next_eigenvalue() -> None:
    A = torch.diag(torch.tensor([3.0, 2.0, 0.0])).double()
    a, b = 0.1, 0.7
    v = torch.tensor([math.cos(a), math.sin(a), 0]).double()
    w = torch.tensor([-math.sin(a) * math.cos(b), math.cos(a) * math.cos(b), math.sin(b)]).double()
    V = torch.stack([v, w])
    values = (V @ A * V).sum(dim=1)
    pairs = Eigenpairs(
        values=values,
        vectors=V,
        residuals=(V @ A - values[:, None] * V).norm(dim=1),
        sampling_errors=torch.zeros(2),
        orthogonality=0.0,
        converged=torch.tensor([True, True]),
        products=0,
        check_products=0,
        spec={},
    )
    bound, last = subspace_errors(pairs).tolist()
    assert bound >= math.sin(a)  # the second Ritz value is far below 2: its own gap is too large
    assert float(pairs.residuals[0] / (values[0] - values[1])) < math.sin(a)
    assert math.isnan(last)
    missed = replace(pairs, converged=torch.tensor([True, False]))
    assert subspace_errors(missed).isnan().all()
    whole = replace(
        pairs,
        vectors=torch.eye(2).double(),
        values=values.new_tensor([3.0, 2.0]),
        residuals=values.new_zeros(2),
    )
    assert float(subspace_errors(whole)[1]) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gradient_that_is_rounding_has_no_share(dtype: torch.dtype) -> None:
    X = torch.randn(200, 3).to(dtype)
    y, order = torch.arange(200) % C, torch.randperm(400)
    X, y = torch.cat([X, -X])[order], y.repeat(2)[order]
    model = nn.Linear(3, C, bias=False).to(dtype)
    nn.init.zeros_(model.weight)
    f = Objective(model, [(X, y)], cross_entropy)  # the gradients of x and -x cancel
    found = class_structure(f)
    assert 0 < found.gradient_norm < 10 * torch.finfo(dtype).eps
    assert found.is_drowned
    assert found.gradient_shares.isnan().all()
    assert found.hessian_gradient_shares.isnan().all()
    there = class_structure(f, point=torch.full((12,), 0.1).to(dtype).cumsum(0))
    assert not there.is_drowned
    assert not there.gradient_shares[0].isnan()


def test_the_rounding_of_the_gradient_is_that_of_single_precision() -> None:
    f = softmax_regression(torch.float32)[0]
    exact = softmax_regression()[0]
    torch.manual_seed(0)
    at = torch.randn(640)
    found = class_structure(f, point=at, k=1, cross=False, tol=0.5)
    off = float((f.gradient(at).double() - exact.gradient(at.double())).norm())
    assert 0.01 * off < found.gradient_rounding < 10 * off


def test_a_class_without_an_example_is_absent() -> None:
    model, (X, y) = network(), examples()
    y[y == 2] = 1
    found = class_structure(Objective(model, [(X, y)], cross_entropy))
    assert found.absent == [2]
    for values in (found.gram, found.cosines):
        assert values[2].isnan().all()
        assert values[:, 2].isnan().all()
        assert not values[[0, 1, 3]][:, [0, 1, 3]].isnan().any()
    assert found.mean_values[3] == 0
    assert found.overlaps[3].isnan()
    true = dense(model, X, y, share_of(y))
    assert near(found.mean_values, descending(true.parts[1])[:C], float(true.G.norm()))
    G12 = true.parts[1] + true.parts[2]
    assert near(found.pair_values, descending(G12)[: C * (C - 1)], float(true.G.norm()))


def test_pairs_that_did_not_converge_leave_shares_unknown() -> None:
    X, y = torch.randn(100, 60).double(), torch.randint(C, (100,))
    f = Objective(nn.Linear(60, C).double(), [(X, y)], cross_entropy)
    found = class_structure(f, k=3, tol=1e-30)
    assert not found.converged.any()
    assert found.gradient_shares.isnan().all()
    assert found.overlaps.isnan().all()


def test_what_is_rounding_is_no_outlier() -> None:
    found = class_structure(plain()[1], k=6)
    values = torch.tensor([1.0, 0.9, 0.3, 0.2, 1e-15, 1e-30]).double()
    planted = replace(found, values=values, residuals=torch.zeros(6).double())
    assert planted.outliers == 2
    assert planted.gap == pytest.approx(3)
    unsure = replace(planted, residuals=torch.tensor([0, 0, 0, 0.5, 0, 0]).double())
    assert unsure.outliers == 2
    alone = replace(planted, values=values * torch.tensor([1.0, 0, 0, 0, 0, 0]).double())
    assert alone.outliers == 0
    assert math.isnan(alone.gap)


# ---- options -----------------------------------------------------------------------------------


def test_many_classes_go_without_their_pairs() -> None:
    model = nn.Linear(2, 21).double()
    X, y = torch.randn(42, 2).double(), torch.arange(42) % 21
    found = class_structure(Objective(model, [(X, y)], cross_entropy))
    assert len(found.pair_values) == 0
    assert "21 classes" in found.spec["cross_reason"]
    assert found.backward_passes == 21 + 2
    asked = class_structure(Objective(model, [(X, y)], cross_entropy), cross=True)
    assert len(asked.pair_values) == 21 * 20
    assert torch.equal(asked.mean_values, found.mean_values)
    little = Objective(network(), [examples()], cross_entropy, memory=2 * 16 * 36 * 8 - 2)
    assert not class_structure(little).spec["cross"]


def test_what_was_computed_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    f = plain()[1]
    pieces: dict[str, Tensor] = {}
    told: list[str] = []
    found = class_structure(f, pieces=pieces, progress=lambda i, of, text: told.append(text))
    assert told[-1] == f"class {C - 1}"
    monkeypatch.setattr(sh.GaussNewton, "__matmul__", None)
    monkeypatch.setattr(sh.Hessian, "__matmul__", None)
    monkeypatch.setattr(Objective, "mean", None)
    again = class_structure(f, pieces=pieces)
    for name in ("values", "hessian_values", "gram", "pair_values", "gradient_shares"):
        assert torch.equal(getattr(again, name).nan_to_num(), getattr(found, name).nan_to_num())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_means_of_confident_classes_keep_their_digits(dtype: torch.dtype) -> None:
    # Logits 40 e_c, where 1 - p_c is below the rounding of p_c.
    f = Objective(
        nn.Linear(C, C, bias=False).to(dtype),
        [(torch.eye(C).to(dtype), torch.arange(C))],
        cross_entropy,
    )
    here = f.settled(40 * torch.eye(C).to(dtype).flatten())
    weights = weights_of(f, here)
    q = math.exp(-40) / (1 + 3 * math.exp(-40))
    row = rows_of(f, here, weights, 1, cross=False)[0].double().view(C, C)
    # sqrt(w_c) g_c, with w_c = 3 q / C and g_c = (1 / 3 of the others - e_c) (x) e_1
    wanted = torch.zeros(C, C).double()
    wanted[:, 1] = 1 / 3
    wanted[1, 1] = -1
    wanted *= (3 * q / C) ** 0.5
    assert torch.allclose(row, wanted, rtol=1e-5, atol=0)


# ---- refusals ----------------------------------------------------------------------------------


def smoothed(z: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(z, y, label_smoothing=0.1)


def focal(z: Tensor, y: Tensor) -> Tensor:
    loss = EACH(z, y)
    return ((1 - torch.exp(-loss)) ** 2 * loss).mean()


def negative(z: Tensor, y: Tensor) -> Tensor:
    return -cross_entropy(z, y)


def squares(z: Tensor, y: Tensor) -> Tensor:
    return (z - nn.functional.one_hot(y, C)).square().mean()


@pytest.mark.parametrize("loss", [smoothed, focal, negative, squares])
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_another_loss_is_refused(loss: Any, scale: float) -> None:
    model, batch = network(), examples()
    f = Objective(model, [batch], loss)
    with pytest.raises(InputError, match=r"needs a cross-entropy.*got .*: take the eigenvalues"):
        class_structure(f, point=scale * f.theta)


def test_other_targets_are_refused() -> None:
    model, (X, y) = network(), examples()
    soft = nn.functional.one_hot(y, C).double()
    for batches, loss in (
        ([(X, soft)], cross_entropy),
        ([(X, soft)], nn.functional.mse_loss),
    ):
        with pytest.raises(InputError, match=r"integer targets \(batch,\), got .* \(37, 4\)"):
            class_structure(Objective(model, batches, loss))


def test_outputs_that_are_no_logits_by_class_are_refused() -> None:
    X, y = examples()
    one: Batches = [(X, torch.zeros(len(y)).long())]
    with pytest.raises(InputError, match="classes"):
        class_structure(Objective(nn.Linear(3, 1).double(), one, cross_entropy))
    many = [(X[None].expand(3, -1, -1), torch.randint(3, (3, 2)))]
    images = nn.Sequential(nn.Flatten(), nn.Linear(111, 8), nn.Unflatten(1, (4, 2))).double()
    with pytest.raises(InputError, match=r"outputs \(3, 4, 2\)"):
        class_structure(Objective(images, many, cross_entropy))


def test_bad_requests_are_refused() -> None:
    f = plain()[1]
    for options, said in (
        ({"k": 0}, "k=0"),
        ({"k": 37}, "k=37"),
        ({"engine": "none"}, "engine"),
        ({"engine": "finite-difference"}, "finite-difference"),
        ({"tol": 0.0}, "tol"),
        ({"seed": -1}, "seed"),
        ({"point": torch.zeros(3).double()}, "theta"),
    ):
        with pytest.raises(InputError, match=said):
            class_structure(f, **options)  # type: ignore[arg-type]


def test_a_loss_that_is_not_finite_is_told() -> None:
    f = plain()[1]
    with pytest.raises(ComputationError, match="finite"):
        class_structure(f, point=f.theta * float("nan"))
