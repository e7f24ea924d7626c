"""Along a direction the loss has the slope and the curvature that the derivatives say."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from sharpness.curvature import Hessian
from sharpness.cuts import cut
from sharpness.directions import (
    NORMALIZATIONS,
    filter_normalized,
    layer_normalized,
    unnormalized,
    weight_normalized,
)
from sharpness.errors import InputError
from sharpness.lanczos import eigsh
from sharpness.objective import Objective, accuracy
from sharpness.results import Solution
from sharpness.vectors import unflatten

ALPHAS = torch.linspace(-1, 1, 9, dtype=torch.float64)


def network(*, bias: bool = True, hidden: type[nn.Module] = nn.Tanh) -> Objective:
    torch.manual_seed(1)
    sizes = (4, 6, 5, 3)
    linear = [nn.Linear(i, o, bias=bias) for i, o in pairwise(sizes)]
    model = nn.Sequential(linear[0], hidden(), linear[1], hidden(), linear[2]).double()
    X, y = torch.randn(20, 4).double(), torch.arange(20) % 3
    batches = [(X[:13], y[:13]), (X[13:], y[13:])]
    metrics = {"accuracy": accuracy}
    return Objective(model, batches, nn.functional.cross_entropy, metrics=metrics)


def test_the_cuts_of_a_quadratic_are_their_parabolas() -> None:
    X, y = torch.randn(11, 5).double(), torch.randn(11, 1).double()
    model = nn.Linear(5, 1, bias=False).double()
    f = Objective(model, [(X[:7], y[:7]), (X[7:], y[7:])], nn.functional.mse_loss)
    rows = torch.randn(3, 5).double()
    found = cut(f, f.theta, rows, alphas=ALPHAS)
    points = f.theta + ALPHAS[:, None, None] * rows  # (9, 3, 5)
    residuals = points @ X.T - y[:, 0]
    torch.testing.assert_close(found.values["loss"], residuals.square().mean(dim=2).T)
    torch.testing.assert_close(found.quadratic(), found.values["loss"])
    torch.testing.assert_close(found.curvatures, 2 * (rows @ X.T).square().mean(dim=1))


def test_the_center_is_exactly_what_evaluate_gives_there() -> None:
    f, g = network(), network()
    g.batches = [(x + 1, y) for x, y in g.batches]
    here = 3 * f.theta
    found = cut({"train": f, "test": g}, here, filter_normalized(f, 2, point=here), alphas=ALPHAS)
    assert found.values.keys() == {"train_loss", "train_accuracy", "test_loss", "test_accuracy"}
    for name, objective in (("train", f), ("test", g)):
        for measure, value in objective.evaluate(here).items():
            assert (found.values[f"{name}_{measure}"][:, 4] == value).all()
    assert found.loss == float(f.value(here))
    assert found.spec["quadratic_of"] == "train_loss"


def test_points_are_center_plus_alpha_times_the_direction() -> None:
    f = network()
    rows = unnormalized(f, 2)
    found = cut(f, f.theta, rows, alphas=ALPHAS)
    for i, row in enumerate(rows):
        for j, alpha in enumerate(ALPHAS.tolist()):
            assert found.values["loss"][i, j] == f.value(f.theta + alpha * row)
    torch.testing.assert_close(found.lengths, rows.norm(dim=1))
    assert found.norm == pytest.approx(float(f.theta.norm()))


def test_the_second_difference_along_a_unit_vector_is_its_curvature() -> None:
    f = network()
    h = 1e-3
    rows = torch.randn(3, len(f.theta)).double()
    rows /= rows.norm(dim=1, keepdim=True)
    found = cut(f, f.theta, rows, alphas=torch.tensor([-h, 0, h], dtype=torch.float64))
    low, middle, high = found.values["loss"].unbind(dim=1)
    dense = torch.stack([row @ (Hessian(f) @ row) for row in rows])
    torch.testing.assert_close((low - 2 * middle + high) / h**2, dense, rtol=1e-4, atol=0)
    torch.testing.assert_close(found.curvatures, dense, rtol=1e-12, atol=0)
    torch.testing.assert_close((high - low) / (2 * h), found.slopes, rtol=1e-4, atol=0)


def test_along_an_eigenvector_it_is_the_eigenvalue() -> None:
    f = network()
    pairs = eigsh(Hessian(f), 4, tol=1e-10)
    h = 1e-3
    found = cut(f, f.theta, pairs.vectors, alphas=torch.tensor([-h, 0, h], dtype=torch.float64))
    low, middle, high = found.values["loss"].unbind(dim=1)
    second = (low - 2 * middle + high) / h**2
    torch.testing.assert_close(second, pairs.values.double(), rtol=1e-4, atol=0)
    torch.testing.assert_close(found.curvatures, pairs.values.double(), rtol=1e-9, atol=0)


# ---- what filter normalization is worth ------------------------------------------------------


def layer_wise(f: Objective, theta: Tensor) -> Tensor:
    """Layers times 4, 1/8, 2: the same function of a ReLU network without biases."""
    blocks = unflatten(theta.clone(), f.shapes)
    return torch.cat(
        [(w * a).flatten() for w, a in zip(blocks.values(), (4.0, 0.125, 2.0), strict=True)]
    )


def neuron_wise(f: Objective, theta: Tensor) -> Tensor:
    """Weights into each hidden neuron times a power of two, those out of it divided by it."""
    first, second, third = (w.clone() for w in unflatten(theta, f.shapes).values())
    a, b = 2.0 ** torch.arange(-3, 3), 2.0 ** torch.arange(-2, 3)
    first, second = first * a[:, None], second / a
    second, third = second * b[:, None], third / b
    return torch.cat([first.flatten(), second.flatten(), third.flatten()])


def change(
    draw: Callable[..., Tensor], rescale: Callable[[Objective, Tensor], Tensor]
) -> tuple[float, float]:
    """Largest change of the cuts and of the function when the network is rescaled."""
    f = network(bias=False, hidden=nn.ReLU)
    curves, outputs = [], []
    for theta in (f.theta, rescale(f, f.theta)):
        found = cut(f, theta, draw(f, 3, point=theta), alphas=ALPHAS, quadratic=False)
        curves.append(found.values["loss"])
        outputs.append(f.outputs(theta, f.batches[0][0]))
    return tuple(float((one - other).abs().max()) for one, other in (curves, outputs))


@pytest.mark.parametrize("draw", [filter_normalized, layer_normalized, weight_normalized])
def test_normalized_cuts_do_not_see_a_rescaling_of_layers(draw: Callable[..., Tensor]) -> None:
    assert max(change(draw, layer_wise)) < 1e-8


def test_raw_cuts_see_a_rescaling_of_layers() -> None:
    curves, outputs = change(unnormalized, layer_wise)
    assert outputs < 1e-12
    assert curves > 1


@pytest.mark.parametrize("draw", [filter_normalized, layer_normalized, unnormalized])
def test_filter_normalized_cuts_see_a_rescaling_of_neurons(draw: Callable[..., Tensor]) -> None:
    curves, outputs = change(draw, neuron_wise)
    assert outputs < 1e-12
    assert curves > 0.1


def test_weight_normalized_cuts_do_not_see_a_rescaling_of_neurons() -> None:
    assert max(change(weight_normalized, neuron_wise)) < 1e-8


@pytest.mark.parametrize("a", [8.0, 0.125])
def test_before_a_batch_norm_rescaled_too_only_its_eps_is_seen(a: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)
    ).double()
    X, y = torch.randn(40, 4).double(), torch.arange(40) % 3
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm1d)
    with torch.no_grad():
        z = X @ model[0].weight.T
        norm.running_mean, norm.running_var = z.mean(dim=0), z.var(dim=0)
    curves = {}
    for eps in (norm.eps, 0.0):
        norm.eps = eps
        f = Objective(model, [(X, y)], nn.functional.cross_entropy)
        theta = f.theta.clone()
        unflatten(theta, f.shapes)["0.weight"].mul_(a)
        scaled = {"1.running_mean": a * norm.running_mean, "1.running_var": a**2 * norm.running_var}
        curves[eps] = [
            cut(f, p, filter_normalized(f, 3, point=p), alphas=ALPHAS).values["loss"]
            for p in (f.theta, Solution(theta, scaled))
        ]
    exact = float((curves[0.0][0] - curves[0.0][1]).abs().max())
    assert exact < 1e-12
    least = float(norm.running_var.min())
    seen = float((curves[1e-5][0] - curves[1e-5][1]).abs().max())
    assert exact < seen < 10 * 1e-5 / (2 * least) * max(1, a**-2)


# ---- the record --------------------------------------------------------------------------------


def test_an_interrupted_cut_continues_from_its_pieces() -> None:
    f = network()
    rows = unnormalized(f, 2)
    want = cut(f, f.theta, rows, alphas=ALPHAS)

    def stop(done: int, total: int | None, state: str) -> None:
        assert total == 18
        if done == 12:
            raise KeyboardInterrupt

    pieces: dict[str, Tensor] = {}
    with pytest.raises(KeyboardInterrupt):
        cut(f, f.theta, rows, alphas=ALPHAS, pieces=pieces, progress=stop)
    assert len(pieces) == 12
    calls: list[int] = []
    f.model.register_forward_hook(lambda *_: calls.append(1))
    got = cut(f, f.theta, rows, alphas=ALPHAS, pieces=pieces, quadratic=False)
    assert len(calls) == (17 - 12) * 2 + 2  # points of two batches, the center but once; its loss
    assert torch.equal(got.values["loss"], want.values["loss"])


def test_what_is_not_finite_is_kept_as_data() -> None:
    f = network()
    alphas = torch.tensor([-1e200, 0.0, 1.0], dtype=torch.float64)
    found = cut(f, f.theta, 1e200 * unnormalized(f), alphas=alphas, quadratic=False)
    assert not torch.isfinite(found.values["loss"][0, 0])
    assert torch.isfinite(found.values["loss"][0, 1])


def test_the_directions_are_in_the_record_and_how_they_were_made() -> None:
    f = network()
    rows = unnormalized(f, 2)
    specs = [cut(f, f.theta, r, alphas=ALPHAS, made={"seed": 0}).spec for r in (rows, 2 * rows)]
    assert specs[0]["directions"]["seed"] == 0
    assert specs[0]["directions"]["sha256"] != specs[1]["directions"]["sha256"]
    assert torch.equal(cut(f, f.theta, rows, alphas=ALPHAS).directions, rows)


def test_a_cut_without_derivatives_says_that_they_are_unknown() -> None:
    f = network()
    found = cut(f, f.theta, unnormalized(f), alphas=ALPHAS, quadratic=False)
    assert found.slopes.isnan().all()
    assert found.quadratic().isnan().all()
    assert found.spec["quadratic_of"] is None


def test_a_sample_tells_how_far_its_curvature_may_be_off() -> None:
    f = network()
    f.spec |= {"examples": 20, "of": 100}
    assert (cut(f, f.theta, unnormalized(f), alphas=ALPHAS).curvature_sampling_errors > 0).all()
    f.spec["of"] = 20
    assert (cut(f, f.theta, unnormalized(f), alphas=ALPHAS).curvature_sampling_errors == 0).all()


def test_impossible_requests_are_refused() -> None:
    f = network()
    row = f.theta[None]
    for rows in (f.theta, row[:, 1:], torch.zeros(0, len(f.theta))):
        with pytest.raises(InputError, match="as rows"):
            cut(f, f.theta, rows, alphas=ALPHAS)
    for rows in (0 * row, row * torch.inf):
        with pytest.raises(InputError, match="finite directions other than 0"):
            cut(f, f.theta, rows, alphas=ALPHAS)
    for alphas in (ALPHAS[:1], torch.zeros(0)):
        with pytest.raises(InputError, match="cut needs 2 to 1,000,000 finite alphas"):
            cut(f, f.theta, row, alphas=alphas)
    with pytest.raises(InputError, match="one BatchNorm policy"):
        cut({"a": f, "b": f.under("batch")}, f.theta, row, alphas=ALPHAS)


def test_every_normalization_makes_directions_of_a_cut() -> None:
    f = network()
    for draw in NORMALIZATIONS.values():
        found = cut(f, f.theta, draw(f, 2), alphas=ALPHAS, quadratic=False)
        assert found.values["loss"].shape == (2, 9)
