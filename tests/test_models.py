"""A network by name is what its options say."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from sharpness.building import ACTIVATIONS, INITIALIZATIONS
from sharpness.curvature import Hessian
from sharpness.data import digits
from sharpness.errors import InputError
from sharpness.lanczos import eigsh
from sharpness.models import MODELS, SCALINGS, deep_linear, mlp, softmax, two_layer
from sharpness.objective import Objective
from sharpness.problem import solution


@pytest.mark.parametrize("widths", [[], [5], [128, 128, 128]], ids=str)
def test_mlp_has_a_weight_for_each_pair_of_neighbors_and_a_bias_for_each_output(
    widths: list[int],
) -> None:
    model = mlp([64], 10, widths=widths)
    sizes = [64, *widths, 10]
    want = [shape for a, b in pairwise(sizes) for shape in [(b, a), (b,)]]
    assert [tuple(p.shape) for p in model.parameters()] == want
    assert all(p.requires_grad for p in model.parameters())


def test_the_default_mlp_of_the_digits_has_42634_parameters() -> None:
    # 65 * 128 + 129 * 128 + 129 * 128 + 129 * 10
    assert sum(p.numel() for p in MODELS["mlp"](inputs=[64], outputs=10).parameters()) == 42634


def test_mlp_is_relu_between_affine_maps() -> None:
    model = mlp([3], 2, widths=[4, 5]).double()
    W, b, V, c, U, d = model.parameters()
    x = torch.randn(6, 3).double()
    hidden = (x @ W.T + b).clamp(min=0)
    want = (hidden @ V.T + c).clamp(min=0) @ U.T + d
    torch.testing.assert_close(model(x), want)


def test_mlp_without_widths_is_linear() -> None:
    model, x = mlp([3], 2, widths=[]).double(), torch.randn(6, 3).double()
    weight, bias = model.parameters()
    torch.testing.assert_close(model(x), x @ weight.T + bias)


def test_mlp_flattens_several_input_axes() -> None:
    image, flat = mlp([2, 3, 4], 2, widths=[5]), mlp([24], 2, widths=[5])
    assert list(flat.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    nn.utils.vector_to_parameters(
        nn.utils.parameters_to_vector(image.parameters()), flat.parameters()
    )
    x = torch.randn(6, 2, 3, 4)
    assert torch.equal(image(x), flat(x.reshape(6, 24)))


@pytest.mark.parametrize("widths", [[0], [4, -1], [1.5], ["4"], "44", [None], [True], 4], ids=repr)
def test_widths_that_are_no_whole_numbers_above_0_are_refused(widths: list[int]) -> None:
    with pytest.raises(InputError, match="mlp needs widths"):
        mlp([3], 2, widths=widths)


@pytest.mark.parametrize("shape", [(36,), (6, 6), (1, 6, 6)], ids=str)
def test_cnn_is_convolution_batch_norm_relu_and_the_largest_of_each_square(
    shape: tuple[int, ...],
) -> None:
    model = MODELS["cnn"](inputs=shape, outputs=2, channels=[3]).double()
    W, g, b, V, c = model.parameters()
    x = torch.randn(5, 6, 6).double()
    padded = torch.zeros(5, 8, 8).double()
    padded[:, 1:7, 1:7] = x
    h = torch.zeros(5, 3, 6, 6).double()
    for i in range(3):
        for j in range(3):
            h += W[:, 0, i, j][:, None, None] * padded[:, None, i : i + 6, j : j + 6]
    mean, var = h.mean(dim=(0, 2, 3)), h.var(dim=(0, 2, 3), correction=0)
    h = (h - mean[:, None, None]) / (var + 1e-5).sqrt()[:, None, None]
    h = (h * g[:, None, None] + b[:, None, None]).clamp(min=0)
    pooled = h.reshape(5, 3, 3, 2, 3, 2).amax(dim=(3, 5))
    want = pooled.reshape(5, 27) @ V.T + c
    torch.testing.assert_close(model(x.reshape(5, *shape)), want)


def test_cnn_of_the_digits_has_6138_parameters_and_without_batch_norm_6090() -> None:
    # 9 * 16 + 2 * 16 + 9 * 16 * 32 + 2 * 32 + (2 * 2 * 32 + 1) * 10; a bias for two of BatchNorm
    for batch_norm, want in ((True, 6138), (False, 6138 - 16 - 32)):
        model = MODELS["cnn"](inputs=[64], outputs=10, batch_norm=batch_norm)
        assert sum(p.numel() for p in model.parameters()) == want


@pytest.mark.parametrize(
    ("inputs", "options", "named"),
    [
        ((65,), {}, r"flat square \(s \* s,\), got \(65,\)"),
        ((1, 2, 8, 8), {}, r"got \(1, 2, 8, 8\)"),
        ((), {}, r"got \(\)"),
        ((3, 8), {}, "at least 4 x 4 for 2 poolings, got 3 x 8"),
        ((64,), {"channels": [0]}, r"channels of at least 1, got \[0\]"),
        ((64,), {"channels": 16}, "got 16"),
        ((64,), {"batch_norm": "no"}, "true or false, got 'no'"),
    ],
    ids=str,
)
def test_cnn_refuses_what_is_no_image(
    inputs: tuple[int, ...], options: dict[str, object], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        MODELS["cnn"](inputs=inputs, outputs=2, **options)


@pytest.mark.parametrize("shape", [(64,), (8, 8)], ids=str)
def test_the_first_networks_keep_the_initial_weights_that_a_seed_gave_them(
    shape: tuple[int, ...],
) -> None:
    def by_hand(batch_norm: bool) -> nn.Module:
        unflat = nn.Unflatten(1, (1, 8, 8) if len(shape) == 1 else (1, 8))
        layers: list[nn.Module] = [unflat]
        for a, b in ((1, 16), (16, 32)):
            layers.append(nn.Conv2d(a, b, 3, padding=1, bias=not batch_norm))
            layers += [nn.BatchNorm2d(b)] * batch_norm + [nn.ReLU(), nn.MaxPool2d(2)]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 10))

    def dense() -> nn.Module:
        layers: list[nn.Module] = [nn.Flatten()] * (len(shape) > 1)
        for a, b in ((64, 128), (128, 128), (128, 128)):
            layers += [nn.Linear(a, b), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(128, 10))

    for make, want in [
        (lambda: mlp(shape, 10), dense),
        (lambda: MODELS["cnn"](shape, 10), lambda: by_hand(True)),
        (lambda: MODELS["cnn"](shape, 10, batch_norm=False), lambda: by_hand(False)),
    ]:
        torch.manual_seed(5)
        ours = make()
        torch.manual_seed(5)
        theirs = want()
        assert str(ours) == str(theirs)
        found, expected = ours.state_dict(), theirs.state_dict()
        assert list(found) == list(expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


FORMULAS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda x: x.clamp(min=0),
    "tanh": lambda x: 1 - 2 / (1 + (2 * x).exp()),
    "softplus": lambda x: (1 + x.exp()).log(),
    "gelu": lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2,
    "elu": lambda x: torch.where(x > 0, x, x.exp() - 1),
    "hardtanh": lambda x: x.clamp(-1, 1),
    "identity": lambda x: x,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_each_activation_is_its_formula_between_linear_layers(name: str) -> None:
    model = mlp([3], 2, widths=[4], activation=name).double()
    x = 3 * torch.randn(6, 3).double()
    W, b, V, c = model.parameters()
    torch.testing.assert_close(model(x), FORMULAS[name](x @ W.T + b) @ V.T + c)


def test_mlp_with_batch_norm_has_it_before_each_activation() -> None:
    model = mlp([3], 2, widths=[4], activation="tanh", batch_norm=True).double()
    W, b, g, s, V, c = model.parameters()
    x = torch.randn(6, 3).double()
    h = x @ W.T + b
    h = (h - h.mean(dim=0)) / (h.var(dim=0, correction=0) + 1e-5).sqrt() * g + s
    torch.testing.assert_close(model(x), h.tanh() @ V.T + c)


def test_without_bias_relu_networks_are_homogeneous() -> None:
    # f(a x) = a f(x), and multiplying L layers by a gives a^L f(x).
    x = torch.randn(6, 3).double()
    for model in (
        mlp([3], 2, widths=[4, 4], bias=False).double(),
        two_layer([3], 2, width=4, bias=False).double(),
        deep_linear([3], 2, depth=3, width=4).double(),
    ):
        before, layers = model(x), list(model.parameters())
        torch.testing.assert_close(model(4 * x), 4 * before)
        for layer in layers:
            layer.data *= 2
        torch.testing.assert_close(model(x), 2 ** len(layers) * before)


WIDE = (300, 200)  # rows and columns of the layer that the moments are taken of


def drawn(name: str, **options: float) -> tuple[Tensor, Tensor]:
    """Return weights and biases of a layer of 200 inputs and 300 units under one seed."""
    torch.manual_seed(3)
    model = mlp([WIDE[1]], 2, widths=[WIDE[0]], initialization=name, **options).double()
    return model[0].weight.detach(), model[0].bias.detach()


@pytest.mark.parametrize(
    ("name", "variance"),
    [
        ("default", 1 / (3 * 200)),
        ("normal", 1),
        ("xavier", 2 / 500),
        ("xavier-normal", 2 / 500),
        ("kaiming", 2 / 200),
    ],
)
def test_initial_weights_have_the_variance_of_their_rule(name: str, variance: float) -> None:
    weight, bias = drawn(name)
    # The variance of m draws has a relative standard error of at most sqrt(2 / m) = 0.6 %.
    assert abs(float(weight.var()) / variance - 1) < 0.03
    assert abs(float(weight.mean())) < 5 * math.sqrt(variance / weight.numel())
    uniform = name in ("default", "xavier")
    assert (float(weight.abs().max()) <= math.sqrt(3 * variance) * (1 + 1e-6)) == uniform
    if name == "normal":
        assert abs(float(bias.var()) - 1) < 5 * math.sqrt(2 / len(bias))
    elif name != "default":
        assert not bias.any()


def test_orthogonal_weights_keep_lengths_and_zero_ones_are_0() -> None:
    weight, bias = drawn("orthogonal", scale=3.0)
    torch.testing.assert_close(
        weight.T @ weight, 9 * torch.eye(200).double(), atol=1e-4, rtol=0
    )  # drawn in float32
    assert not bias.any()
    assert not any(x.any() for x in drawn("zero"))


def test_scaled_is_the_default_times_the_scale_in_weights_and_biases() -> None:
    for found, want in zip(drawn("scaled", scale=4), drawn("default"), strict=True):
        assert torch.equal(found, 4 * want)


@pytest.mark.parametrize("name", INITIALIZATIONS)
def test_no_initialization_touches_norms(name: str) -> None:
    model = MODELS["cnn"]([64], 10, initialization=name)
    norms = [part for part in model if isinstance(part, nn.BatchNorm2d)]
    assert len(norms) == 2
    assert all(bool((n.weight == 1).all()) and not n.bias.any() for n in norms)


@pytest.mark.parametrize("bias", [False, True])
def test_the_hessian_of_softmax_regression_at_0_is_that_of_the_inputs_over_the_classes(
    bias: bool,
) -> None:
    # H = (I - 1 1^T / K) / K (x) X^T X / N: each eigenvalue of X^T X / N, over K, K - 1 times.
    (x, y), _ = digits()
    x = x.double()
    model = softmax([64], 10, bias=bias, initialization="zero").double()
    f = Objective(model, [(x, y)], nn.functional.cross_entropy)
    pairs = eigsh(Hessian(f), k=10, seed=0)
    X = torch.cat([x, torch.ones(len(x), 1)], dim=1) if bias else x
    values = torch.linalg.eigvalsh(X.T @ X / len(x)).flip(0)
    want = torch.cat([values[:1].expand(9), values[1:2]]) / 10
    torch.testing.assert_close(pairs.values, want.double(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_the_sharpness_of_a_balanced_deep_linear_network_is_that_of_its_closed_form(
    depth: int,
) -> None:
    # Zero residual, whitened inputs: L s^(2 (L - 1)) for L layers with singular values s, by
    # the squared error, of which mse takes the mean over C components and 2 instead of 1/2.
    C, s = 4, 1.5
    model = deep_linear([C], C, depth=depth, width=C, initialization="orthogonal", scale=s).double()
    x = 2 * torch.eye(C).double()  # X^T X / N = I
    f = Objective(model, [(x, model(x).detach())], nn.functional.mse_loss)
    value = float(eigsh(Hessian(f), k=1, seed=0).values[0])
    # Orthogonal to the rounding of float32, in which it was drawn.
    assert value == pytest.approx(2 / C * depth * s ** (2 * (depth - 1)), rel=1e-4)


def test_two_layers_of_the_tangent_kernel_follow_the_map_of_the_catapult() -> None:
    # Lewkowycz et al. (2020): f' = (1 - eta l + eta^2 f^2 / n) f, l' = l + eta f^2 / n (eta l - 4)
    n, eta = 16, 0.9
    options = {"width": n, "activation": "identity", "bias": False, "scaling": "ntk"}
    model = two_layer([1], 1, **options).double()
    u, v = model.parameters()
    x = torch.ones(1, 1).double()
    for _ in range(6):
        f = model(x).sum()
        kernel = ((u.square().sum() + v.square().sum()) / n).item()
        gradients = torch.autograd.grad(f**2 / 2, [u, v])
        with torch.no_grad():
            u -= eta * gradients[0]
            v -= eta * gradients[1]
        z = f.item()
        want = (1 - eta * kernel + eta**2 * z**2 / n) * z
        assert model(x).item() == pytest.approx(want, rel=1e-10)
        now = ((u.square().sum() + v.square().sum()) / n).item()
        assert now == pytest.approx(kernel + eta * z**2 / n * (eta * kernel - 4), rel=1e-10)


@pytest.mark.parametrize("name", SCALINGS)
def test_two_layers_have_the_factors_of_their_scaling(name: str) -> None:
    a, b = {"standard": (1, 1), "ntk": (1 / 6**0.5, 1 / 5**0.5), "mean-field": (1, 1 / 5)}[name]
    model = two_layer([2, 3], 2, width=5, activation="tanh", scaling=name).double()
    U, u, V, v = model.parameters()
    x = torch.randn(7, 2, 3).double()
    hidden = (a * x.reshape(7, 6) @ U.T + u).tanh()
    torch.testing.assert_close(model(x), b * hidden @ V.T + v)


def test_two_layers_start_from_standard_normals_but_in_the_standard_scaling() -> None:
    for scaling, variance in [("standard", 1 / (3 * 400)), ("ntk", 1), ("mean-field", 1)]:
        torch.manual_seed(0)
        theta = solution(two_layer([400], 2, width=100, scaling=scaling)).theta[: 400 * 100]
        assert abs(float(theta.var()) / variance - 1) < 0.05  # 7 standard errors


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        (
            "mlp",
            {"activation": "swish"},
            "mlp needs activation to be one of relu, tanh, .* 'swish'",
        ),
        ("mlp", {"activation": ["relu"]}, r"got \['relu'\]"),
        ("mlp", {"bias": 0}, "mlp needs bias true or false, got 0"),
        ("mlp", {"initialization": None}, "mlp needs initialization to be one of default, scaled"),
        ("cnn", {"scale": 0, "initialization": "scaled"}, "cnn needs a scale above 0 .* got 0"),
        ("cnn", {"scale": "2"}, "got '2'"),
        ("mlp", {"scale": 2}, "needs another initialization than default .* 2: take scaled"),
        ("softmax", {"bias": None}, "softmax needs bias true or false, got None"),
        ("deep-linear", {"depth": 0}, "deep-linear needs depth of at least 1, got 0"),
        ("deep-linear", {"width": 2.0}, "deep-linear needs width of at least 1, got 2.0"),
        ("two-layer", {"width": True}, "two-layer needs width of at least 1, got True"),
        ("two-layer", {"scaling": "NTK"}, "scaling to be one of standard, ntk, mean-field, got"),
    ],
    ids=str,
)
def test_options_that_mean_nothing_are_refused_in_one_line(
    name: str, options: dict[str, object], named: str
) -> None:
    with pytest.raises(InputError, match=named) as error:
        MODELS[name](inputs=[64], outputs=10, **options)
    assert "\n" not in str(error.value)
