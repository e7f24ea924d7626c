"""Relative flatness and the Fisher-Rao norm have closed forms, and stay under rescalings."""

import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, one_hot

from sharpness.errors import InputError
from sharpness.flatness import fisher_rao, relative_flatness
from sharpness.objective import Objective
from sharpness.results import Measured
from sharpness.vectors import flatten, gaussian, unflatten

FLOAT = torch.empty(0, dtype=torch.float64)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return gaussian(math.prod(shape), seed, 0, like=FLOAT).view(*shape)


def objective(model: nn.Module, x: Tensor, classes: int, **options: Any) -> Objective:
    """Cross-entropy on ragged batches, at weights that are no minimum."""
    y = torch.arange(len(x)) % classes
    cut = 2 * len(x) // 3
    f = Objective(model.double(), [(x[:cut], y[:cut]), (x[cut:], y[cut:])], cross_entropy)
    f.spec.update(options)
    f.theta.copy_(numbers(len(f.theta), seed=1))
    return f


def softmax_regression(d: int, K: int) -> tuple[Objective, float]:
    """Its kappa is mean |x|^2 (sum_s p_s |w_s|^2 - |sum_s p_s w_s|^2)."""
    x = numbers(11, d)
    f = objective(nn.Linear(d, K, bias=False), x, K)
    W = f.theta.view(K, d)
    p = (x @ W.T).softmax(dim=1)
    spread = p @ W.square().sum(dim=1) - (p @ W).square().sum(dim=1)
    return f, float((x.square().sum(dim=1) * spread).mean())


def mlp(*, bias: bool = True) -> nn.Module:
    layers = [nn.Linear(3, 4, bias=bias), nn.ReLU(), nn.Linear(4, 3, bias=bias)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(3, 3, bias=bias))


def hessian(f: Objective) -> Tensor:
    def loss(theta: Tensor) -> Tensor:
        parts = [len(y) * f.batch_loss(theta, x, y) for x, y in f.batches]
        return sum(parts[1:], parts[0]) / sum(len(y) for _, y in f.batches)

    H: Tensor = torch.func.hessian(loss)(f.theta)
    return H


def block(f: Objective, name: str) -> tuple[Tensor, Tensor]:
    """The weight of a layer, (K, d), and its Hessian, (K, d, K, d)."""
    at = unflatten(torch.arange(len(f.theta)), f.shapes)[name].flatten(1)
    H = hessian(f)[at.flatten()][:, at.flatten()]
    return f.theta[at], H.view(*at.shape, *at.shape)


def moved(f: Objective, change: dict[str, Tensor]) -> Tensor:
    """Theta with some parameters times a factor that broadcasts."""
    parts = unflatten(f.theta, f.shapes)
    return flatten([x * change.get(name, torch.ones(())) for name, x in parts.items()])


@pytest.mark.parametrize("shape", [(4, 3), (2, 5), (1, 2)])
def test_relative_flatness_of_softmax_regression_is_its_closed_form(
    shape: tuple[int, int],
) -> None:
    f, want = softmax_regression(*shape)
    found = relative_flatness(f)
    assert found.value == pytest.approx(want, rel=1e-12)
    assert found.interval.tolist() == [found.value] * 2
    assert (found.stderr, found.products) == (0, 3 + min(shape) * shape[0])


def test_the_estimate_for_a_large_layer_covers_the_closed_form() -> None:
    f, want = softmax_regression(60, 5)
    values = [relative_flatness(f, probes=24, seed=seed) for seed in range(8)]
    for found in values:
        assert 0 < abs(found.value - want) <= 5 * found.stderr  # of Student's t with few samples
        assert found.products == 3 + 24
        assert found.samples["value"].mean() == pytest.approx(found.value, rel=1e-12)
    assert sum(x.interval[0] <= want <= x.interval[1] for x in values) >= 6


@pytest.mark.parametrize("layer", ["0.weight", "2.weight", "4.weight"])
def test_both_forms_are_those_of_the_dense_hessian(layer: str) -> None:
    f = objective(mlp(), numbers(10, 3), 3)
    W, H = block(f, layer)
    want = torch.einsum("si,ti,sjtj->", W, W, H)
    if layer == "4.weight":  # the last, which is the default
        assert relative_flatness(f).value == pytest.approx(float(want), rel=1e-10)
    assert relative_flatness(f, layer=layer).value == pytest.approx(float(want), rel=1e-10)
    tops = torch.stack([torch.linalg.eigvalsh(H[s, :, s])[-1] for s in range(len(W))])
    found = relative_flatness(f, layer=layer, form="eigenvalue")
    assert found.value == pytest.approx(float(W.square().sum(dim=1) @ tops), rel=1e-8)
    assert found.interval[0] <= found.value <= found.interval[1]
    assert torch.allclose(found.details["eigenvalues"], tops, rtol=1e-8)


def test_the_filters_of_a_convolution_are_its_neurons() -> None:
    model = nn.Sequential(nn.Conv1d(2, 3, 2), nn.Flatten(), nn.Linear(6, 2))
    f = objective(model, numbers(7, 2, 3), 2)
    W, H = block(f, "0.weight")
    found = relative_flatness(f, layer="0.weight")
    assert found.details["neuron_norms"] == pytest.approx(W.norm(dim=1))
    want = torch.einsum("si,ti,sjtj->", W, W, H)
    assert found.value == pytest.approx(float(want), rel=1e-10)


def value(found: Measured) -> float:
    return found.value


LAYERWISE = {"0.weight": 8.0, "0.bias": 8.0, "2.weight": 0.25, "2.bias": 2.0, "4.weight": 0.5}
NEURONS = torch.tensor([8.0, 0.25, 1.0, 2.0]).double()


def test_rescalings_that_leave_the_function_alone_leave_relative_flatness_alone() -> None:
    f = objective(mlp(), numbers(10, 3), 3)
    scaled = moved(f, {name: torch.tensor(a) for name, a in LAYERWISE.items()})
    rows = {"0.weight": NEURONS[:, None], "0.bias": NEURONS, "2.weight": 1 / NEURONS}
    neurons = moved(f, rows)
    for theta in (scaled, neurons):
        assert f.value(theta) == pytest.approx(float(f.value(f.theta)), rel=1e-14)
    for form, layer in product(("trace", "eigenvalue"), ("0.weight", "2.weight", "4.weight")):
        options: dict[str, Any] = {"form": form, "layer": layer}
        want = relative_flatness(f, **options).value
        assert relative_flatness(f, scaled, **options).value == pytest.approx(want, rel=1e-9)
        if layer != "2.weight":  # the neurons are its features
            assert relative_flatness(f, neurons, **options).value == pytest.approx(want, rel=1e-9)


def test_scaled_features_matter_unless_they_are_brought_to_unit_deviation() -> None:
    f = objective(mlp(), numbers(10, 3), 3)
    rows = {"0.weight": NEURONS[:, None], "0.bias": NEURONS, "2.weight": 1 / NEURONS}
    neurons = moved(f, rows)
    for form in ("trace", "eigenvalue"):
        plain: dict[str, Any] = {"form": form, "layer": "2.weight"}
        want = relative_flatness(f, **plain).value
        assert abs(relative_flatness(f, neurons, **plain).value / want - 1) > 0.5
        unit = relative_flatness(f, **plain, rescaled=True).value
        again = relative_flatness(f, neurons, **plain, rescaled=True).value
        assert again == pytest.approx(unit, rel=1e-9)


def test_rescaled_features_have_unit_deviation_over_all_the_data() -> None:
    x = numbers(9, 3) * torch.tensor([0.1, 1.0, 20.0]).double() + 1
    x[:, 1] = 0.3  # a constant has no deviation, and stays
    f = objective(nn.Linear(3, 2, bias=False), x, 2)
    sigma = x.std(dim=0, correction=0)
    sigma[1] = 1
    unit = objective(nn.Linear(3, 2, bias=False), x / sigma, 2)
    unit.theta.copy_((f.theta.view(2, 3) * sigma).flatten())
    want = relative_flatness(unit).value
    assert relative_flatness(f, rescaled=True).value == pytest.approx(want, rel=1e-10)


def test_a_shift_of_all_logits_leaves_the_trace_form_and_not_that_of_eigenvalues() -> None:
    f, _ = softmax_regression(4, 3)
    shifted = (f.theta.view(3, 4) + numbers(4, seed=3)).flatten()
    want, eigen = (relative_flatness(f, form=form).value for form in ("trace", "eigenvalue"))
    assert relative_flatness(f, shifted).value == pytest.approx(want, rel=1e-10)
    assert abs(relative_flatness(f, shifted, form="eigenvalue").value / eigen - 1) > 0.1


def test_an_estimate_does_not_change_with_the_scale_of_the_layers_own_neurons() -> None:
    """Its probes are drawn in coordinates that the scale of a neuron is no part of."""
    f = objective(
        nn.Sequential(nn.Linear(60, 5, bias=False), nn.ReLU(), nn.Linear(5, 2)), numbers(9, 60), 2
    )
    a = torch.tensor([8.0, 0.25, 1.0, 2.0, 4.0]).double()
    theta = moved(f, {"0.weight": a[:, None], "2.weight": 1 / a})
    want = relative_flatness(f, layer="0.weight").value
    assert relative_flatness(f, theta, layer="0.weight").value == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"layer": "1.weight"}, "take one of 0.weight, 2.weight, 4.weight"),
        ({"layer": "0.bias"}, "two axes or more"),
        ({"form": "norm"}, "form needs to be one of trace, eigenvalue"),
    ],
)
def test_relative_flatness_refuses_what_is_no_layer_or_form(
    options: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        relative_flatness(objective(mlp(), numbers(4, 3), 3), **options)


def test_features_are_rescaled_of_linear_layers_alone() -> None:
    model = nn.Sequential(nn.Conv1d(2, 3, 2), nn.Flatten())
    with pytest.raises(InputError, match=r"0.weight of a Conv1d"):
        relative_flatness(objective(model, numbers(7, 2, 3), 2), rescaled=True)


@pytest.mark.parametrize("measure", ["0.weight", "3.weight", "fisher_rao"])
def test_the_scale_of_a_filter_before_batch_norm_is_no_part_of_either(measure: str) -> None:
    norm = nn.BatchNorm1d(4, eps=1e-12)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), norm, nn.ReLU(), nn.Linear(4, 3))
    f = objective(model, numbers(10, 3), 3).under("batch")
    theta = moved(f, {"0.weight": NEURONS[:, None]})

    def measured(at: Tensor) -> float:
        if measure == "fisher_rao":
            return fisher_rao(f, at).value
        return relative_flatness(f, at, layer=measure, rescaled=True).value

    assert measured(theta) == pytest.approx(measured(f.theta), rel=1e-9)


def slopes(f: Objective) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of each example with each label, (N, C, n), the probabilities, the labels."""
    x, y = (torch.cat(parts) for parts in zip(*f.batches, strict=True))
    p = f.outputs(f.theta, x).softmax(dim=1)

    def loss(theta: Tensor) -> Tensor:
        return -f.outputs(theta, x).log_softmax(dim=1)

    return torch.func.jacrev(loss)(f.theta), p, y


def test_both_fisher_rao_norms_are_means_of_squares_of_gradients_along_theta() -> None:
    f = objective(mlp(), numbers(10, 3), 3)
    gradients, p, y = slopes(f)
    squares = (gradients @ f.theta).square()
    want = float((p * squares).sum(dim=1).mean())
    assert fisher_rao(f).value == pytest.approx(want, rel=1e-10)
    own = float((one_hot(y, 3) * squares).sum(dim=1).mean())
    found = fisher_rao(f, labels="data")
    assert found.value == pytest.approx(own, rel=1e-10)
    assert (found.stderr, found.interval.tolist()) == (0, [found.value] * 2)


@pytest.mark.parametrize("labels", ["model", "data"])
def test_without_biases_it_is_nine_times_the_squared_slope_along_the_outputs(
    labels: Any,
) -> None:
    """By Euler's identity, J theta = 3 z for three layers (Liang et al. 2019)."""
    f = objective(mlp(bias=False), numbers(10, 3), 3)
    x, y = (torch.cat(parts) for parts in zip(*f.batches, strict=True))
    z = f.outputs(f.theta, x)
    p = z.softmax(dim=1)
    each = ((p * z).sum(dim=1, keepdim=True) - z).square()  # of each label
    weights = p if labels == "model" else one_hot(y, 3)
    want = 9 * float((weights * each).sum(dim=1).mean())
    found = fisher_rao(f, labels=labels, form="homogeneous")
    assert found.value == pytest.approx(want, rel=1e-12)
    assert float(found.details["degree"]) == pytest.approx(3, rel=1e-12)
    assert fisher_rao(f, labels=labels).value == pytest.approx(want, rel=1e-10)


def test_single_precision_passes_for_homogeneous_too() -> None:
    f = objective(mlp(bias=False), numbers(10, 3), 3)
    single = Objective(mlp(bias=False), [(x.float(), y) for x, y in f.batches], cross_entropy)
    found = fisher_rao(single, f.theta, form="homogeneous")
    assert found.value == pytest.approx(fisher_rao(f).value, rel=1e-5)


def test_what_is_not_homogeneous_is_refused_and_named() -> None:
    with pytest.raises(InputError, match=r"layers without biases, got 0.bias"):
        fisher_rao(objective(mlp(), numbers(4, 3), 3), form="homogeneous")
    tanh = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 3, bias=False))
    with pytest.raises(InputError, match=r"differs from .* z by"):
        fisher_rao(objective(tanh, numbers(4, 3), 3), form="homogeneous")
    hinge = Objective(nn.Linear(3, 1), [(numbers(4, 3),) * 2], lambda z, y: z.relu().mean())
    with pytest.raises(InputError, match="log-likelihood of labels"):
        fisher_rao(hinge.over([(numbers(4, 3).float(), numbers(4, 1).float())]))
    with pytest.raises(InputError, match="labels needs to be one of model, data"):
        fisher_rao(hinge, labels="drawn")


def test_rescalings_permutations_and_shifts_leave_fisher_rao_alone() -> None:
    f = objective(mlp(), numbers(10, 3), 3)
    scaled = moved(f, {name: torch.tensor(a) for name, a in LAYERWISE.items()})
    rows = {"0.weight": NEURONS[:, None], "0.bias": NEURONS, "2.weight": 1 / NEURONS}
    parts = unflatten(f.theta, f.shapes)
    order = torch.tensor([2, 0, 3, 1])
    rows0, bias0, columns2 = parts["0.weight"][order], parts["0.bias"][order], parts["2.weight"]
    others = [parts[name] for name in ("2.bias", "4.weight", "4.bias")]
    permuted = flatten([rows0, bias0, columns2[:, order], *others])
    last = parts["4.weight"] + numbers(3, seed=3), parts["4.bias"] + 2.0
    shifted = flatten([*list(parts.values())[:4], *last])
    want = fisher_rao(f).value
    for theta in (scaled, moved(f, rows), permuted, shifted):
        assert fisher_rao(f, theta).value == pytest.approx(want, rel=1e-9)


def test_squared_errors_count_as_the_normal_likelihood_that_they_are() -> None:
    x = numbers(8, 3)
    f = Objective(nn.Linear(3, 1, bias=False).double(), [(x, 0 * x[:, :1])], mse_loss)
    theta = numbers(3, seed=5)
    want = 2 * float((x @ theta).square().mean())
    assert fisher_rao(f, theta).value == pytest.approx(want, rel=1e-12)


def test_of_a_part_of_the_data_the_sampling_error_is_told_or_unknown() -> None:
    f = objective(mlp(bias=False), numbers(10, 3), 3, examples=10, of=100)
    for form in ("quadratic", "homogeneous"):
        found = fisher_rao(f, form=form)
        assert found.stderr > 0
        assert found.interval[0] < found.value < found.interval[1]
    one, other = (fisher_rao(f, form=form).stderr for form in ("quadratic", "homogeneous"))
    assert one == pytest.approx(other, rel=1e-9)
    assert math.isnan(relative_flatness(f).stderr)
    assert relative_flatness(f).interval.isnan().all()


def test_the_passes_are_counted() -> None:
    calls = []

    class Counting(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(len(x))
            return super().forward(x)

    x, y = numbers(6, 3), torch.tensor([0, 1, 0, 1, 0, 1])
    f = Objective(
        Counting(3, 2, bias=False).double(), [(x[:4], y[:4]), (x[4:], y[4:])], cross_entropy
    )
    f.value(f.theta)  # which looks twice at the first batch
    spent = []
    for rescaled in (False, True):
        calls.clear()
        found = relative_flatness(f, rescaled=rescaled)
        spent.append(sum(calls) - 6 * found.forwards)
        assert (found.products, found.gradients) == (3 + 2 * 3, 0)
    assert spent[0] == spent[1]  # the graphs of the products, which are kept
    calls.clear()
    found = fisher_rao(f, form="homogeneous")
    assert sum(calls) == 6 * (found.forwards + found.products)
