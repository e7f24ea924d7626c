"""Products agree with a dense Hessian of the plain loss, whatever the network is made of."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from sharpness.curvature import AdaptiveHessian, GaussNewton, Hessian
from sharpness.errors import ComputationError, InputError
from sharpness.objective import Objective, arguments

N = 7  # examples, split into batches of 4 and 3
cross_entropy, mse = nn.functional.cross_entropy, nn.functional.mse_loss
attend = nn.functional.scaled_dot_product_attention


class Wired(nn.Module):
    """Modules by name and what the network does with them."""

    def __init__(self, forward: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.wires = forward
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.wires(self, *inputs, **named)


def mlp(activation: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), activation, nn.Linear(4, 3))


def images(*middle: nn.Module, features: int = 64) -> nn.Module:
    first = nn.Conv2d(2, 4, 3, padding=1)
    return nn.Sequential(first, *middle, nn.Flatten(), nn.Linear(features, 3))


def trained(model: nn.Module) -> nn.Module:
    """Return the model with running statistics that are not those of its initialization."""
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d) and part.running_mean is not None:
            part.running_mean.copy_(torch.randn(part.num_features))
            part.running_var.copy_(torch.rand(part.num_features) + 0.5)
    return model


def attention() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        q, k, v = (z[:, None] for z in self.qkv(x).split(4, dim=-1))  # one head
        return self.out(attend(q, k, v).flatten(1))

    return Wired(forward, qkv=nn.Linear(3, 12), out=nn.Linear(20, 3))


def recurrent(kind: Callable[..., nn.RNNBase], width: int = 4) -> nn.Module:
    return Wired(
        lambda self, x: self.out(self.cells(x)[0][:, -1]),
        cells=kind(3, 4, batch_first=True),
        out=nn.Linear(width, 3),
    )


def tied() -> nn.Module:
    def forward(self: Any, words: Tensor) -> Tensor:
        return self.decode(self.encode(words).tanh().mean(dim=1))

    model = Wired(forward, encode=nn.Embedding(3, 4), decode=nn.Linear(4, 3))
    model.decode.weight = model.encode.weight
    return model


def residual() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.out(x + self.inner(x).tanh())

    return Wired(forward, inner=nn.Linear(3, 3), out=nn.Linear(3, 3))


def shared() -> nn.Module:
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.Tanh(), layer)


def two_inputs() -> nn.Module:
    return Wired(lambda self, a, b: self.out((a * b).tanh()) + self.out(b), out=nn.Linear(3, 3))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.5, batch_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 3))


@dataclass
class Case:
    """A network, the shape of its inputs (None: words), and what its Hessian is compared in."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = (3,)
    words: bool = False
    inputs: Callable[[Tensor, Tensor], Any] | None = None  # of two tensors
    loss: Any = cross_entropy
    smooth: bool = True

    def data(self) -> tuple[Any, Tensor]:
        x = torch.randn(2, N, *self.shape, dtype=torch.float64)
        inputs: Any = torch.randint(0, 3, (N, *self.shape)) if self.words else x[0]
        if self.inputs:
            inputs = self.inputs(x[0], x[1])
        by_class = self.loss is cross_entropy
        targets = torch.randint(0, 3, (N,)) if by_class else torch.randn(N, 3).double()
        return inputs, targets


IMAGE, SEQUENCE = (2, 4, 4), (5, 3)
CASES = {
    "linear": Case(lambda: nn.Linear(3, 3)),
    "mean-squares": Case(lambda: mlp(nn.Tanh()), loss=mse),
    "convolution": Case(lambda: images(nn.Tanh()), IMAGE),
    "grouped-convolution": Case(
        lambda: images(nn.Tanh(), nn.Conv2d(4, 4, 3, groups=2), nn.Tanh(), features=16), IMAGE
    ),
    "batch-norm": Case(lambda: trained(images(nn.BatchNorm2d(4), nn.Tanh())), IMAGE),
    "layer-norm": Case(lambda: mlp(nn.Sequential(nn.LayerNorm(4), nn.Tanh()))),
    "group-norm": Case(lambda: images(nn.GroupNorm(2, 4), nn.Tanh()), IMAGE),
    "attention": Case(attention, SEQUENCE),
    "LSTM": Case(lambda: recurrent(nn.LSTM), SEQUENCE),
    "stacked-LSTM": Case(
        lambda: recurrent(partial(nn.LSTM, num_layers=2, bidirectional=True), 8), SEQUENCE
    ),
    "GRU": Case(lambda: recurrent(nn.GRU), SEQUENCE),
    "embedding": Case(
        lambda: nn.Sequential(nn.Embedding(3, 4), nn.Flatten(), nn.Tanh(), nn.Linear(12, 3)),
        words=True,
    ),
    "tied-weights": Case(tied, words=True),
    "residual": Case(residual),
    "GELU": Case(lambda: mlp(nn.GELU())),
    "SiLU": Case(lambda: mlp(nn.SiLU())),
    "ReLU": Case(lambda: mlp(nn.ReLU()), smooth=False),
    "ReLU-in-place": Case(lambda: mlp(nn.ReLU(inplace=True)), smooth=False),
    "max-pooling": Case(
        lambda: images(nn.Tanh(), nn.MaxPool2d(2), features=16), IMAGE, smooth=False
    ),
    "dropout": Case(lambda: mlp(nn.Sequential(nn.Tanh(), nn.Dropout(0.5)))),
    "transformer": Case(encoder, (3, 4), smooth=False),
    "shared-module": Case(shared),
    "dict-input": Case(two_inputs, inputs=lambda a, b: {"b": b, "a": a}),
    "tuple-input": Case(two_inputs, inputs=lambda a, b: (a, b), loss=mse),
}
every = pytest.mark.parametrize("name", CASES)


def cut(inputs: Any, part: slice) -> Any:
    if isinstance(inputs, dict):
        return {key: x[part] for key, x in inputs.items()}
    return tuple(x[part] for x in inputs) if isinstance(inputs, tuple) else inputs[part]


def batches(inputs: Any, targets: Tensor, *ends: int) -> list[tuple[Any, Tensor]]:
    parts = [slice(*pair) for pair in pairwise((0, *ends, N))]
    return [(cut(inputs, part), targets[part]) for part in parts]


def converted(inputs: Any, dtype: torch.dtype) -> Any:
    if isinstance(inputs, dict):
        return {key: converted(x, dtype) for key, x in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(converted(x, dtype) for x in inputs)
    return inputs.to(dtype) if inputs.is_floating_point() else inputs


@dataclass
class Posed:
    """A network in float64 with its data, and its dense Hessian by other means than ours."""

    case: Case
    model: nn.Module
    inputs: Any
    targets: Tensor
    H: Tensor  # (n, n)

    def objective(self, *ends: int, dtype: torch.dtype = torch.float64) -> Objective:
        data = converted(self.inputs, dtype), converted(self.targets, dtype)
        return Objective(deepcopy(self.model).to(dtype), batches(*data, *ends), self.case.loss)


@cache
def posed(name: str) -> Posed:
    case = CASES[name]
    inputs, targets = case.data()
    model = case.build().double()
    return Posed(case, model, inputs, targets, dense(model, inputs, targets, case.loss))


def dense(model: nn.Module, inputs: Any, targets: Tensor, loss: Any) -> Tensor:
    """Return the Hessian of the loss of all examples in one batch, entry by entry."""
    model = deepcopy(model).eval()
    names, values = zip(*model.named_parameters(), strict=True)
    positional, named = arguments(inputs)

    def plain(*values: Tensor) -> Tensor:
        parameters = dict(zip(names, values, strict=True))
        return loss(functional_call(model, parameters, positional, named), targets)

    with sdpa_kernel(SDPBackend.MATH):
        blocks = torch.autograd.functional.hessian(plain, tuple(v.detach() for v in values))
    rows = [[b.reshape(v.numel(), -1) for b in row] for row, v in zip(blocks, values, strict=True)]
    return torch.cat([torch.cat(row, dim=1) for row in rows])


def off(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


@every
@pytest.mark.parametrize("engine", ["cached", "fresh"])
def test_products_are_those_of_the_dense_hessian(name: str, engine: str) -> None:
    problem = posed(name)
    A = Hessian(problem.objective(4), engine=engine)
    for _ in range(2):  # the second product uses what the first one kept
        v = torch.randn(A.size).double()
        assert off(A @ v, problem.H @ v) < 1e-10


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.smooth])
@pytest.mark.parametrize("operator", [Hessian, AdaptiveHessian])
def test_differences_are_as_near_as_they_say(name: str, operator: Any) -> None:
    f = posed(name).objective(4)
    A = operator(f, engine="finite-difference")
    v = torch.randn(A.size).double()
    want = operator(f) @ v
    distance = off(A @ v, want) * float(want.norm())
    assert distance <= A.error < 1e-6 * float(want.norm())


@every
def test_products_in_single_precision_are_right_to_its_rounding(name: str) -> None:
    problem = posed(name)
    A = Hessian(problem.objective(4, dtype=torch.float32))
    v = torch.randn(A.size)
    assert off(A @ v, problem.H @ v.double()) < 1e-5


@every
@pytest.mark.parametrize("operator", [Hessian, GaussNewton])
def test_splitting_the_data_changes_no_product_beyond_rounding(name: str, operator: Any) -> None:
    problem = posed(name)
    v = torch.randn(len(problem.H)).double()
    whole, *split = (operator(problem.objective(*ends)) @ v for ends in [(), (1,), (3, 6)])
    assert max(off(product, whole) for product in split) < 1e-12


@every
def test_gauss_newton_is_assembled_from_the_jacobian_of_the_outputs(name: str) -> None:
    problem = posed(name)
    f = problem.objective(4)
    model, (positional, named) = deepcopy(problem.model).eval(), arguments(problem.inputs)
    names, values = zip(*model.named_parameters(), strict=True)

    def outputs(*values: Tensor) -> Tensor:
        return functional_call(model, dict(zip(names, values, strict=True)), positional, named)

    with sdpa_kernel(SDPBackend.MATH):
        blocks = torch.autograd.functional.jacobian(outputs, tuple(v.detach() for v in values))
    J = torch.cat([b.reshape(3 * N, -1) for b in blocks], dim=1)  # (3 N, n)
    z = outputs(*values).detach()
    loss = partial(problem.case.loss, target=problem.targets)
    middle = torch.autograd.functional.hessian(loss, z).reshape(3 * N, 3 * N)
    v = torch.randn(len(f.theta)).double()
    assert off(GaussNewton(f) @ v, J.T @ (middle @ (J @ v))) < 1e-10


@every
def test_the_adaptive_hessian_is_scaled_on_both_sides(name: str) -> None:
    problem = posed(name)
    f = problem.objective(4)
    v, D = torch.randn(len(f.theta)).double(), f.theta.abs()
    assert off(AdaptiveHessian(f) @ v, D * (problem.H @ (D * v))) < 1e-10


def test_frozen_parameters_have_no_rows_and_unused_ones_a_zero_block() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.last(self.first(x).tanh())

    parts = {"first": nn.Linear(3, 4), "unused": nn.Linear(2, 2), "last": nn.Linear(4, 3)}
    model = Wired(forward, **parts).double()
    x, y = torch.randn(N, 3).double(), torch.randint(0, 3, (N,))
    H = dense(Wired(forward, first=model.first, last=model.last), x, y, cross_entropy)
    model.first.bias.requires_grad_(False)
    used = torch.tensor([*range(12), *range(16, 31)])  # of H, without the frozen bias
    f = Objective(model, batches(x, y, 4), cross_entropy)
    v = torch.randn(12 + 6 + 15).double()
    for operator in (Hessian, GaussNewton):
        product = operator(f) @ v
        assert not product[12:18].any()
    w = torch.cat([v[:12], v[18:]])
    product = Hessian(f) @ v
    kept = torch.cat([product[:12], product[18:]])
    assert off(kept, H[used][:, used] @ w) < 1e-10


@dataclass
class Answer:
    z: Tensor
    name: str = "scores"


STRUCTURES: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    "tuple": (lambda z: (z, None), lambda out: out[0]),
    "dict": (lambda z: {"z": z, "other": [z, z]}, lambda out: out["z"]),
    "dataclass": (Answer, lambda out: out.z),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_outputs_of_any_structure_reach_the_loss_untouched(name: str) -> None:
    pack, unpack = STRUCTURES[name]
    model = nn.Linear(3, 3).double()
    x, y = torch.randn(N, 3).double(), torch.randint(0, 3, (N,))
    packed = Wired(lambda self, x: pack(self.inner(x)), inner=model)
    f = Objective(packed, batches(x, y, 4), lambda out, y: cross_entropy(unpack(out), y))
    plain = Objective(model, batches(x, y, 4), cross_entropy)
    v = torch.randn(12).double()
    assert f.value(f.theta) == plain.value(plain.theta)
    assert torch.equal(Hessian(f) @ v, Hessian(plain) @ v)
    with pytest.raises(InputError, match="GaussNewton needs outputs in one tensor, got "):
        GaussNewton(f) @ v


@pytest.mark.parametrize("name", STRUCTURES)
def test_noise_is_seen_in_outputs_of_any_structure(name: str) -> None:
    pack, unpack = STRUCTURES[name]
    noisy = Wired(
        lambda self, x: pack(self.inner(x) + torch.randn(len(x), 3)), inner=mlp(nn.Tanh())
    )
    data = torch.randn(N, 3), torch.randint(0, 3, (N,))
    f = Objective(noisy, batches(*data), lambda out, y: cross_entropy(unpack(out), y))
    with pytest.raises(InputError, match="same outputs twice"):
        f.value(f.theta)


def test_a_loss_that_looks_for_outputs_that_are_not_there_is_named() -> None:
    data = torch.randn(N, 3), torch.randint(0, 3, (N,))
    for loss in (lambda out, y: out.scores, lambda out, y: {"z": out}["scores"]):
        f = Objective(mlp(nn.Tanh()), batches(*data), loss)
        with pytest.raises(ComputationError, match=r"failed in batch 0: .*scores"):
            f.value(f.theta)
