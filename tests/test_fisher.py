"""The Fisher matrices of small networks are known from per-example gradients and all labels."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, hessian, jacrev, vmap
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    l1_loss,
    log_softmax,
    mse_loss,
)

from sharpness.curvature import Curvature, GaussNewton, Hessian
from sharpness.errors import InputError
from sharpness.fisher import EmpiricalFisher, Fisher
from sharpness.likelihoods import likelihood_of
from sharpness.objective import Objective

WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 3.0]).double()
IGNORED = torch.tensor([1, 3, 0, -100, 2, 1])


def dense(A: Any) -> Tensor:
    return torch.stack([A @ row for row in torch.eye(A.size).double()])


class Pixels(nn.Module):
    """Logits of shape (N, C, H, W), or with the classes at last."""

    def __init__(self, *, last: bool = False) -> None:
        super().__init__()
        self.layer, self.last = nn.Conv2d(1, 4, 2), last

    def forward(self, x: Tensor) -> Tensor:
        z = torch.tanh(self.layer(x))
        return z.movedim(1, -1) if self.last else z


def at_last(z: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(z.flatten(0, -2), y.flatten())


def problem(name: str) -> tuple[nn.Module, list[Any], Callable[..., Tensor]]:
    """A model, its batch and its loss."""
    X = torch.randn(6, 3).double()
    small = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 4)).double()
    images, labels = torch.randn(3, 1, 3, 4).double(), torch.randint(0, 4, (3, 2, 3))
    some = labels.clone()
    some[0, 0, :2] = -100
    p = torch.rand(6, 4).double().softmax(1)
    pixels, last = Pixels().double(), Pixels(last=True).double()
    return {
        "plain": (small, [(X, IGNORED.clamp(min=0))], cross_entropy),
        "class weights": (
            small,
            [(X, IGNORED.clamp(min=0))],
            partial(cross_entropy, weight=WEIGHTS),
        ),
        "ignored": (small, [(X, IGNORED)], cross_entropy),
        "smoothed": (
            small,
            [(X, IGNORED)],
            partial(cross_entropy, weight=WEIGHTS, label_smoothing=0.2),
        ),
        "soft": (small, [(X, p)], partial(cross_entropy, weight=WEIGHTS)),
        "pixels": (pixels, [(images, some)], partial(cross_entropy, weight=WEIGHTS)),
        "classes at last": (last, [(images, labels)], at_last),
        "binary": (
            small,
            [(X, (p > 0.25).double())],
            partial(binary_cross_entropy_with_logits, pos_weight=WEIGHTS),
        ),
        "squares": (small, [(X, p)], mse_loss),
    }[name]


NAMES = ["plain", "class weights", "ignored", "smoothed", "soft", "pixels", "classes at last"]
NAMES += ["binary", "squares"]


@pytest.mark.parametrize("name", NAMES)
def test_gauss_newton_is_that_of_the_loss_as_it_is(name: str) -> None:
    model, batches, loss = problem(name)
    f = Objective(model, batches, loss)
    X, y = batches[0]
    theta = torch.randn(len(f.theta)).double()
    z = f.outputs(theta, X)
    J = jacrev(f.outputs)(theta, X).reshape(z.numel(), -1)
    M = hessian(lambda z: loss(z, y))(z).reshape(z.numel(), -1)
    G = J.T @ M @ J
    torch.testing.assert_close(dense(GaussNewton(f, theta)), G, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_fisher_converges_to_gauss_newton(name: str) -> None:
    model, batches, loss = problem(name)
    f = Objective(model, batches, loss)
    G = dense(GaussNewton(f))
    errors = {
        draws: torch.stack(
            [(dense(Fisher(f, draws=draws, seed=s)) - G).norm() / G.norm() for s in range(8)]
        )
        for draws in (25, 2500)
    }
    # An error of a mean of d terms: a tenth of it with a hundred times as many.
    rate = float(errors[25].mean() / errors[2500].mean())
    assert 5 < rate < 20
    assert errors[2500].max() < 0.1


@pytest.mark.parametrize("operator", [Hessian, GaussNewton])
@pytest.mark.parametrize("name", ["linear", "logistic", "softmax"])
def test_gauss_newton_is_the_hessian_of_a_model_linear_in_theta(
    operator: type[Curvature], name: str
) -> None:
    X = torch.randn(9, 5).double()
    outputs, y, loss = {
        "linear": (2, torch.randn(9, 2).double(), mse_loss),
        "logistic": (1, torch.rand(9, 1).double().round(), binary_cross_entropy_with_logits),
        "softmax": (3, torch.randint(0, 3, (9,)), cross_entropy),
    }[name]
    f = Objective(nn.Linear(5, outputs).double(), [(X[:4], y[:4]), (X[4:], y[4:])], loss)
    H = hessian(lambda theta: loss(f.outputs(theta, X), y))(f.theta)
    gap = (dense(operator(f)) - H).abs().max()
    assert gap <= 1e-12 * H.abs().max()


def of_examples(f: Objective, X: Tensor, y: Tensor, loss: Callable[..., Tensor]) -> Tensor:
    """Return the gradient of each example, (N, n)."""

    def one(theta: Tensor, x: Tensor, target: Tensor) -> Tensor:
        return loss(f.outputs(theta, x[None]), target[None])

    return vmap(grad(one), (None, 0, 0))(f.theta, X, y)


@pytest.mark.parametrize("engine", ["cached", "fresh"])
@pytest.mark.parametrize("name", ["plain", "binary", "squares"])
def test_the_empirical_fisher_is_the_second_moment_of_the_gradients(name: str, engine: str) -> None:
    model, batches, loss = problem(name)
    (X, y) = batches[0]
    f = Objective(model, [(X[:4], y[:4]), (X[4:], y[4:])], loss)
    g = of_examples(f, X, y, loss)
    torch.testing.assert_close(dense(EmpiricalFisher(f, engine=engine)), g.T @ g / len(X))


def test_a_weight_of_two_is_an_example_that_is_there_twice() -> None:
    model, batches, _ = problem("plain")
    X, y = batches[0]
    each = partial(cross_entropy, reduction="none")
    weights = torch.tensor([2.0, 1.0, 0.0, 1.0, 1.0, 1.0]).double()
    twice = torch.tensor([0, 0, 1, 3, 4, 5])
    weighted = Objective(model, [(X, y, weights)], each, reduction="none")
    again = Objective(model, [(X[twice], y[twice])], cross_entropy)
    want = dense(EmpiricalFisher(again))
    torch.testing.assert_close(dense(EmpiricalFisher(weighted)), want)
    squares = partial(mse_loss, reduction="none")
    p = torch.rand(6, 4).double()
    weighted = Objective(model, [(X, p, weights)], squares, reduction="none")
    again = Objective(model, [(X[twice], p[twice])], mse_loss)
    torch.testing.assert_close(dense(EmpiricalFisher(weighted)), dense(EmpiricalFisher(again)))


def test_class_weights_weigh_the_moments_of_the_empirical_fisher() -> None:
    model, batches, loss = problem("class weights")
    X, y = batches[0]
    f = Objective(model, batches, loss)
    g, w = of_examples(f, X, y, cross_entropy), WEIGHTS[y]
    want = (g.T * w) @ g / w.sum()
    torch.testing.assert_close(dense(EmpiricalFisher(f)), want)


@pytest.mark.parametrize("operator", [Fisher, EmpiricalFisher])
@pytest.mark.parametrize("engine", ["cached", "fresh"])
@pytest.mark.parametrize("name", ["plain", "binary", "squares"])
def test_splitting_the_data_does_not_change_a_fisher_matrix(
    name: str, engine: str, operator: type[Curvature]
) -> None:
    model, batches, loss = problem(name)
    X, y = batches[0]
    whole = operator(Objective(model, batches, loss))
    parts = list(zip(X.split([1, 3, 2]), y.split([1, 3, 2]), strict=True))
    split = operator(Objective(model, parts, loss), engine=engine)
    v = torch.randn(whole.size).double()
    for _ in range(2):
        torch.testing.assert_close(split @ v, whole @ v)


def test_other_seeds_draw_other_labels_and_the_same_seed_the_same() -> None:
    model, batches, loss = problem("plain")
    f = Objective(model, batches, loss)
    v = torch.ones(len(f.theta)).double()
    assert torch.equal(Fisher(f, seed=1) @ v, Fisher(f, seed=1) @ v)
    assert not torch.equal(Fisher(f, seed=1) @ v, Fisher(f, seed=2) @ v)
    assert Fisher(f, draws=3, seed=2).spec["draws"] == 3
    assert Fisher(f, draws=3, seed=2).spec["seed"] == 2


def test_one_output_is_no_choice_of_classes() -> None:
    assert likelihood_of(torch.sign, torch.ones(4, 1)) is None


def focal(z: Tensor, y: Tensor) -> Tensor:
    loss = cross_entropy(z, y, reduction="none")
    return ((1 - (-loss).exp()) ** 2 * loss).mean()


def nll(z: Tensor, y: Tensor) -> Tensor:
    return -z.gather(1, y[:, None]).mean()  # of log-probabilities, which are the outputs


def hinge(z: Tensor, y: Tensor) -> Tensor:
    return (1 + z - z.gather(1, y[:, None])).relu().mean()


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (focal, torch.tensor([0, 2])),
        (nll, torch.tensor([0, 2])),
        (hinge, torch.tensor([0, 2])),
        (l1_loss, torch.zeros(2, 3)),
        (lambda z, y: log_softmax(z, 1).square().mean(), torch.zeros(2, 3)),
        (lambda z, y: (z - y).pow(4).mean(), torch.zeros(2, 3)),
        (lambda z, y: -mse_loss(z, y), torch.zeros(2, 3)),
        (lambda z, y: (torch.tensor([1, 1, -1]) * z.square()).mean(), torch.zeros(2, 3)),
    ],
    ids=["focal", "nll", "margin", "l1", "squared logs", "fourth powers", "negative", "saddle"],
)
def test_a_loss_of_no_labels_to_draw_is_refused_by_name(
    loss: Callable[..., Tensor], targets: Tensor
) -> None:
    f = Objective(nn.Linear(2, 3), [(torch.randn(2, 2), targets)], loss)
    with pytest.raises(InputError, match=r"needs the negative log-likelihood of labels.*take Emp"):
        Fisher(f) @ f.theta
    X = torch.randn(2, 2).double()
    f = Objective(nn.Linear(2, 3).double(), [(X, targets)], loss)
    g = of_examples(f, X, targets, loss) if loss not in (focal, nll) else None
    if g is not None:  # by rows
        torch.testing.assert_close(dense(EmpiricalFisher(f)), g.T @ g / 2)


def test_a_likelihood_is_found_in_single_precision_at_any_scale() -> None:
    y = torch.tensor([0, 1, 2, 1])
    for scale in (1e-6, 1.0, 1e6):

        def slope(z: Tensor, scale: float = scale) -> Tensor:
            return grad(lambda z: scale * cross_entropy(z, y))(z)

        found = likelihood_of(slope, torch.zeros(4, 5))
        assert found is not None
        assert (found.name, found.axis) == ("categorical", -1)
        torch.testing.assert_close(found.mass, torch.full((4, 1), scale / 4), rtol=1e-5, atol=0.0)


def test_draws_below_one_are_refused() -> None:
    f = Objective(nn.Linear(1, 2), [(torch.ones(1, 1), torch.tensor([0]))], cross_entropy)
    with pytest.raises(InputError, match="draws need to be a whole number of at least 1, got 0"):
        Fisher(f, draws=0)
