"""The bounds of the quadratic model hold, and a value is small for the reason that is told."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sharpness import box_certificates
from sharpness.box_certificates import BOUNDS, Certificate, certificate
from sharpness.box_sharpness import epsilon_sharpness
from sharpness.boxes import Box
from sharpness.curvature import Hessian
from sharpness.errors import ComputationError
from sharpness.objective import Objective
from sharpness.results import Solution

sys.path.insert(0, str(Path(__file__).parent))
from boxed import highest, numbers, quadratic, symmetric, trained

EPSILON = 0.01
# What rounding may take from a bound that is an equality.
SLACK = 1 + 1e-9


def bounds(f: Objective, epsilon: float = EPSILON) -> Certificate:
    return certificate(Box(f, f.at(f.theta), epsilon), 0)


@pytest.mark.parametrize("steep", [0.0, 0.01, 1.0])
def test_of_convex_quadratics_every_bound_holds_of_all_vertices(steep: float) -> None:
    for seed in range(6):
        H, g, x = symmetric(seed, 9)
        b = EPSILON * (x.abs() + 1)
        found = bounds(quadratic(H, steep * g, x, 0.5)).bounds
        top = highest(H, steep * g, b)
        assert all(found[name] <= top * SLACK for name in box_certificates.LOWER), found
        assert all(found[name] >= top / SLACK for name in box_certificates.UPPER), found


def test_of_indefinite_quadratics_all_but_two_bounds_hold() -> None:
    failed = 0
    for seed in range(6):
        H, g, x = symmetric(seed, 9, convex=False)
        b = EPSILON * (x.abs() + 1)
        found = bounds(quadratic(H, 0.01 * g, x, 0.5)).bounds
        # Their maximum may lie inside of the box, where no vertex is.
        top = highest(H, 0.01 * g, b)
        assert all(found[name] >= top / SLACK for name in box_certificates.UPPER), found
        assert all(found[name] <= top * SLACK for name in box_certificates.VERTICES), found
        assert found["khinchine"] <= top * SLACK
        failed += found["rank_one"] > top * SLACK
    assert failed  # so that they are told for what they are


def test_the_bounds_are_those_of_their_formulas() -> None:
    H, g, x = symmetric(3, 9)
    g = 0.01 * g
    b = EPSILON * (x.abs() + 1)
    M, G = b[:, None] * H * b, b * g
    mu, V = torch.linalg.eigh(M)
    q = V[:, -1]

    def model(u: Tensor) -> float:
        return float(G @ u + u @ M @ u / 2)

    found = bounds(quadratic(H, g, x, 0.5))
    want = {
        "khinchine": float(G.norm()) / 2**0.5 + float(M.trace()) / 2,
        "first_order": float(G.abs().sum()),
        "rank_one": float(mu[-1] * q.abs().sum() ** 2) / 2,
        "gradient_vertex": model(G.sign()),
        "eigenvector_vertex": max(model(q.sign()), model(-q.sign())),
        "eigenvalue_ceiling": 9 * float(mu[-1]) / 2 + float(G.abs().sum()),
    }
    for name, value in want.items():
        assert found.bounds[name] == pytest.approx(value, rel=1e-9), name
    assert float((found.v @ q).abs()) == pytest.approx(1, rel=1e-9)


def test_the_scaled_ceiling_of_rank_one_is_its_maximum_to_a_percent() -> None:
    """With d = mu |q| |q|_1, that of the maximum, to the floor that all coordinates have."""
    v, x = torch.randn(9).double(), torch.randn(9).double()
    found = bounds(quadratic(v[:, None] * v, torch.zeros(9).double(), x, 0.2)).bounds
    assert found["scaled_ceiling"] == pytest.approx(found["best_vertex"], rel=0.02)
    assert found["rank_one"] == pytest.approx(found["best_vertex"], rel=1e-9)
    assert found["eigenvalue_ceiling"] > 1.2 * found["best_vertex"]


@pytest.mark.parametrize("n", [8, 90])
def test_at_a_minimizer_the_value_is_between_its_bounds(n: int) -> None:
    """Of a convex quadratic, for which those of the model are those of the loss."""
    for seed in range(3):
        H, _, x = symmetric(seed, n)
        found = epsilon_sharpness(
            quadratic(H, torch.zeros(n).double(), x, 0.5), starts=2, sign_starts=5, seed=seed
        )
        b = {name: float(bound) for name, bound in found.bounds.items()}
        if n > box_certificates.EXACT:
            exact = 50 * float(H.diagonal() @ (1e-3 * (x.abs() + 1)).square()) / 1.5
            assert found.value >= exact  # of which a few probes give but an estimate
        assert found.value * SLACK >= max(b[name] for name in box_certificates.LOWER)
        assert 0 < found.value <= found.ceiling * SLACK
        assert 1 <= found.factor * SLACK < 3
        assert found.why == "truly flat" if found.value < 0.01 else not found.why


def test_of_a_network_the_value_is_no_less_than_at_the_signs_of_gradient_and_eigenvector() -> None:
    f = trained()
    found = epsilon_sharpness(f, starts=0, sign_starts=1)
    begins = dict(zip(found.start, found.start_begins.tolist(), strict=True))
    b, known = 1e-3 * (f.theta.abs() + 1), bounds(f, 1e-3)
    f0 = float(f.value(f.theta))
    signs = {
        "sign of the gradient": f.gradient(f.theta).sign(),
        "sign of q": known.v.sign(),
        "sign of -q": -known.v.sign(),
    }
    for name, u in signs.items():
        there = 100 * (float(f.value(f.theta + b * u)) - f0) / (1 + f0)
        assert found.value >= there
        # From the gradient it begins in a part of the box.
        if name != "sign of the gradient":
            assert begins[name] == pytest.approx(there, rel=1e-9)
    assert found.on_bounds > 0.5
    assert found.factor > 1


def test_the_products_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    product = Hessian.__matmul__

    def counted(self: Hessian, v: Tensor) -> Tensor:
        calls.append(v)
        return product(self, v)

    monkeypatch.setattr(Hessian, "__matmul__", counted)
    assert epsilon_sharpness(trained(), starts=0, sign_starts=1).products == len(calls) > 0
    assert epsilon_sharpness(trained(), certificate=False).products == 0


def test_a_certificate_that_was_found_is_taken_from_its_piece(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few: dict[str, Any] = {"starts": 0, "sign_starts": 1}
    pieces: dict[str, Tensor] = {}
    want = epsilon_sharpness(trained(), **few, pieces=pieces)
    monkeypatch.setattr(Hessian, "__matmul__", None)
    got = epsilon_sharpness(trained(), **few, pieces=pieces)
    assert got.bounds == want.bounds
    assert got.bounds.keys() == set(BOUNDS)
    assert (got.value, got.products, got.start) == (want.value, want.products, want.start)
    assert torch.equal(got.start_begins, want.start_begins)
    assert torch.equal(got.start_iterations, want.start_iterations)


def test_a_search_that_did_not_converge_leaves_its_ceiling_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    true = box_certificates.eigsh

    def unsettled(*args: Any, **options: Any) -> Any:
        pairs = true(*args, **options)
        return replace(pairs, converged=torch.zeros_like(pairs.converged))

    monkeypatch.setattr(box_certificates, "eigsh", unsettled)
    found = bounds(trained())
    assert all(torch.tensor(found.bounds[name]).isnan() for name in box_certificates.UPPER)
    assert all(torch.tensor(found.bounds[name]).isfinite() for name in box_certificates.LOWER)


class Once(torch.autograd.Function):
    """A square without a second derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return 2 * x * slope


def test_a_loss_without_a_second_derivative_has_no_certificate() -> None:
    class Squared(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return Once.apply(super().forward(x))  # type: ignore[no-untyped-call]

    data = [(torch.randn(5, 3), torch.zeros(5, 1))]
    f = Objective(Squared(3, 1), data, nn.functional.mse_loss)
    with pytest.raises(ComputationError, match="leave the certificate out"):
        epsilon_sharpness(f)
    assert epsilon_sharpness(f, certificate=False).value > 0


# ---- why a value is small --------------------------------------------------------------------


def flat(h: float, f0: float, dtype: torch.dtype = torch.float64) -> Objective:
    n = 70  # so that no coordinate is flipped
    eye = h * torch.eye(n).to(dtype)
    return quadratic(eye, torch.zeros(n).to(dtype), torch.zeros(n).to(dtype), f0)


def test_a_flat_minimum_is_told_so_by_its_ceiling() -> None:
    found = epsilon_sharpness(flat(1e-3, 0.0), starts=1, sign_starts=2)
    assert 0 < found.value < 0.01
    assert found.why == "truly flat"
    alone = epsilon_sharpness(flat(1e-3, 0.0), starts=1, sign_starts=2, certificate=False)
    assert alone.why == "unknown"


def test_a_rise_below_rounding_is_told_so() -> None:
    """In float32 beside a loss of 10, of which the last place is 1e-6, in percent of 11."""
    found = epsilon_sharpness(
        flat(1e-2, 10.0, torch.float32), epsilon=1e-4, starts=1, sign_starts=2, certificate=False
    )
    assert found.value <= 10 * found.rounding
    assert found.why == "at float precision"


def test_a_start_that_does_not_move_is_told_so() -> None:
    found = epsilon_sharpness(flat(0.0, 1.0), mode="faithful")
    assert (found.value, found.start_iterations.tolist()) == (0, [0])
    assert found.why == "stuck"
    assert epsilon_sharpness(flat(0.0, 1.0), starts=1, sign_starts=1).why == "truly flat"


def test_a_search_that_misses_what_the_model_has_is_told_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a loss would, whose values are lost: no point that is tried is above the center."""
    f = flat(1.0, 1.0)
    monkeypatch.setattr(Box, "slope", lambda self, z: (f.value(f.theta), torch.ones_like(z)))
    found = epsilon_sharpness(f, starts=1, sign_starts=1)
    assert (found.value, found.why) == (0, "stuck")


def test_a_maximum_is_flat_and_a_steep_minimum_needs_no_reason() -> None:
    top = quadratic(-torch.eye(3).double(), torch.zeros(3).double(), numbers(0, 1, 2), 5.0)
    found = epsilon_sharpness(top)
    assert (found.value, found.ceiling, found.why) == (0, 0, "truly flat")
    assert epsilon_sharpness(flat(1.0, 0.0), epsilon=0.1).why == ""


def test_a_certificate_is_that_of_the_point() -> None:
    f = trained()
    moved = Solution(1.5 * f.theta, {})
    assert certificate(Box(f, f.at(moved), EPSILON), 0).bounds != bounds(f).bounds
