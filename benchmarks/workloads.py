"""The four problems on which speed is stated, from the digits and seeded noise: no download.

W1 is an MLP 64-512x5-10 on the 1797 digits; W2 an MLP 784-512x5-10 on 6000 enlarged, noisy digits
with wrong labels; W3 a ResNet-8 with BatchNorm on 512 digits of 3x32x32; W4 a transformer of two
layers on 128 sequences of 32 tokens of a Markov chain. Some hundred steps of Adam give each
Hessian outliers and a bulk.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import (
    cross_entropy,
    interpolate,
    relu,
    scaled_dot_product_attention,
)

import sharpness as sh
from sharpness.data import batches, digits
from sharpness.micro_batches import micro_batch_of
from sharpness.objective import Measure

NAMES = ("W1", "W2", "W3", "W4")
SOLVED = {"W3": 256}  # examples that the solvers take, where they are not all
WRONG = 0.1  # share of the labels of W2 and W3 that are drawn anew


@dataclass(frozen=True)
class Workload:
    """A trained model in eval mode, its data and its loss, a mean over what ``count`` counts."""

    name: str
    model: nn.Module
    inputs: Tensor
    targets: Tensor
    loss: Measure
    count: Callable[[Tensor], int] = len

    def first(self, examples: int) -> "Workload":
        """Return the same model on the first examples."""
        return replace(self, inputs=self.inputs[:examples], targets=self.targets[:examples])

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """Return the data as every solver that takes batches gets them, by the library's rule."""
        part = self.inputs, self.targets
        return batches(part, micro_batch_of(self.model, part, self.loss))

    def objective(self, *, whole: bool = False) -> sh.Objective:
        """Return the mean loss as the library takes it, or by all examples in one batch."""
        parts = [(self.inputs, self.targets)] if whole else self.batches()
        return sh.Objective(self.model, parts, self.loss, count=self.count)


def make(name: str, weights: dict[str, Tensor] | None = None) -> Workload:
    """Return a workload, the same bit by bit at every call on one machine.

    Args:
        weights: The state dict of the trained model. Default: it is trained.
    """
    g = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        workload, steps, batch = MAKERS[name](g)
        if weights is None:
            _train(workload, steps, batch, g)
        else:
            workload.model.load_state_dict(weights)
    return replace(workload, model=workload.model.eval())


def _train(workload: Workload, steps: int, batch: int, g: torch.Generator) -> None:
    optimizer = torch.optim.Adam(workload.model.parameters(), 1e-3)
    for _ in range(steps):
        i = torch.randint(len(workload.inputs), (batch,), generator=g)
        optimizer.zero_grad()
        loss = workload.loss(workload.model(workload.inputs[i]), workload.targets[i])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    optimizer.zero_grad()


def tiny() -> Workload:
    """Return a problem of some milliseconds, on which a solver can load what it needs."""
    (inputs, targets), _ = digits()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _mlp(64, 16, 10)
    return Workload("tiny", model, inputs, targets, cross_entropy).first(64)


def token_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy as a mean over tokens, for outputs (b, length, vocabulary)."""
    return cross_entropy(outputs.flatten(0, 1), targets.flatten())


# Each maker returns the workload untrained, the steps of its training and their batch.


def _w1(g: torch.Generator) -> tuple[Workload, int, int]:
    (inputs, targets), _ = digits()
    return Workload("W1", _mlp(64, *[512] * 5, 10), inputs, targets, cross_entropy), 120, 64


def _w2(g: torch.Generator) -> tuple[Workload, int, int]:
    inputs, targets = _images(6000, 28, 1, g)
    model = _mlp(784, *[512] * 5, 10)
    return Workload("W2", model, inputs.flatten(1), targets, cross_entropy), 300, 64


def _w3(g: torch.Generator) -> tuple[Workload, int, int]:
    inputs, targets = _images(512, 32, 3, g)
    return Workload("W3", _resnet8(), inputs, targets, cross_entropy), 100, 64


def _w4(g: torch.Generator) -> tuple[Workload, int, int]:
    transitions = torch.softmax(3 * torch.randn(64, 64, generator=g), -1)
    tokens = torch.randint(64, (128, 1), generator=g)
    for _ in range(32):
        following = torch.multinomial(transitions[tokens[:, -1]], 1, generator=g)
        tokens = torch.cat([tokens, following], 1)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    return Workload("W4", Transformer(), inputs, targets, token_loss, Tensor.numel), 200, 32


MAKERS = {"W1": _w1, "W2": _w2, "W3": _w3, "W4": _w4}


def _images(n: int, size: int, channels: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return n enlarged digits with pixel noise, (n, channels, size, size), and their labels."""
    (x, y), _ = digits()
    x = x.view(-1, 1, 8, 8)
    i = torch.randint(len(x), (n,), generator=g)
    x = interpolate(x[i], size=(size, size), mode="bilinear").expand(-1, channels, -1, -1)
    x = x + 0.1 * torch.randn(x.shape, generator=g)
    wrong = torch.rand(n, generator=g) < WRONG
    y = torch.where(wrong, torch.randint(10, (n,), generator=g), y[i])
    return x.contiguous(), y


def _mlp(*widths: int) -> nn.Module:
    layers: list[nn.Module] = []
    for i, o in pairwise(widths):
        layers += [nn.Linear(i, o), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _resnet8() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        Block(16, 16, 1),
        Block(16, 32, 2),
        Block(32, 64, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


class Block(nn.Module):
    """Two normalized convolutions beside a shortcut."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o)
        self.b, self.nb = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        self.short = nn.Sequential()
        if i != o:
            self.short = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))

    def forward(self, x: Tensor) -> Tensor:
        """Return the images, (b, o, height / stride, width / stride)."""
        return relu(self.nb(self.b(relu(self.na(self.a(x))))) + self.short(x))


class Attention(nn.Module):
    """Causal attention of several heads."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.out, self.heads = nn.Linear(d, 3 * d), nn.Linear(d, d), heads

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, length, d) for the same shape."""
        b, t, d = x.shape
        q, k, v = (z.view(b, t, self.heads, -1).transpose(1, 2) for z in self.qkv(x).chunk(3, -1))
        z = scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.out(z.transpose(1, 2).reshape(b, t, d))
        return out


class Layer(nn.Module):
    """Attention and an MLP, each normalized first and added."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.n1, self.n2, self.attention = nn.LayerNorm(d), nn.LayerNorm(d), Attention(d, 4)
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, length, d) for the same shape."""
        x = x + self.attention(self.n1(x))
        out: Tensor = x + self.mlp(self.n2(x))
        return out


class Transformer(nn.Module):
    """A language model of two layers with learned positions."""

    def __init__(self, vocabulary: int = 64, length: int = 32, d: int = 64) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, d)
        self.position = nn.Parameter(0.02 * torch.randn(length, d))
        self.layers = nn.Sequential(Layer(d), Layer(d))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (b, length, vocabulary) for tokens (b, length)."""
        z: Tensor = self.head(self.norm(self.layers(self.token(x) + self.position)))
        return z
