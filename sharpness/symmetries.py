"""Changes of the weights that leave the function of a network as it is (Dinh et al. 2017).

Each is found in a model by the order of its layers and then tried: one that changes the outputs is
none. Factors are powers of two, which round nothing.

Letters: a factor for each unit of a layer; q, k, v, o what attention multiplies by.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sharpness.building import Factor
from sharpness.vectors import stream

State = dict[str, Tensor]  # parameters and buffers by name
STREAM = (0, 17)  # of factors among the streams of a seed
POWERS = (-3, -2, -1, 1, 2, 3)  # of two, that a layer or a unit is multiplied by
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# What is between two layers: maps of which f(a x) = a f(x) for a above 0 holds,
HOMOGENEOUS = (
    *(nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten),
    *(nn.Unflatten, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, Factor),
)
# and further ones that treat all units alike.
ALIKE = (*HOMOGENEOUS, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.Softplus)
# How entries of the state of torch's optimizers go with the weights: as gradients, which are
# divided by what a weight is multiplied by (1), as their squares (2), as weights (-1), or not (0).
POWERS_OF_STATE = {
    "exp_avg": 1,
    "exp_avg_sq": 2,
    "max_exp_avg_sq": 2,
    "square_avg": 2,
    "grad_avg": 1,
    "sum": 2,
    "prev": 1,
    "step_size": -1,
    "momentum_buffer": 1,
}
# RMSprop's is a mean of updates, g / sqrt(v).
POWERS_OF_OPTIMIZER = {"rmsprop": {"momentum_buffer": 0}}
Kind = Literal["scaling", "permutation", "mixing", "shift"]


@dataclass(frozen=True)
class Symmetry:
    """One change of the weights that is to leave the function as it is."""

    where: str  # which layers
    kind: Kind
    change: Callable[[State], State]  # gives what it changes

    def __call__(self, state: State) -> State:
        """Return all parameters and buffers after the change."""
        return {**state, **self.change(state)}


@dataclass(frozen=True)
class _Pair:
    """A layer with weights, the BatchNorm behind it if there is one, and the layer they feed."""

    first: str
    norm: str | None
    second: str
    between: tuple[nn.Module, ...]
    units: int

    @property
    def where(self) -> str:
        return f"{self.first} and {self.second}"

    def out_of(self) -> list[str]:
        """Return the parameters that scale the units: those of the last affine map before them."""
        name = self.norm or self.first
        return [f"{name}.weight", f"{name}.bias"]

    def are(self, kinds: tuple[type, ...]) -> bool:
        return all(isinstance(part, (*kinds, _BatchNorm)) for part in self.between)


def layerwise(model: nn.Module, seed: int = 0) -> Iterator[Symmetry]:
    """Yield scalings of a layer by one factor, and of the next by its inverse."""
    for i, pair in enumerate(_pairs(model)):
        if pair.are(HOMOGENEOUS):
            a = torch.full((pair.units,), float(_factors(seed, i, 1)[0]), dtype=torch.float64)
            yield _scaling(pair, a)


def neuronwise(model: nn.Module, seed: int = 0) -> Iterator[Symmetry]:
    """Yield scalings of each unit of a layer by a factor of its own, and of what reads it."""
    for i, pair in enumerate(_pairs(model)):
        if pair.are(HOMOGENEOUS):
            yield _scaling(pair, torch.from_numpy(_factors(seed, i, pair.units)))


def permutation(model: nn.Module, seed: int = 0) -> Iterator[Symmetry]:
    """Yield permutations of the units of a layer."""
    for i, pair in enumerate(_pairs(model)):
        if not pair.are(ALIKE):
            continue
        order = torch.from_numpy(stream(seed, *STREAM, i, 1).permutation(pair.units))

        def change(state: State, pair: _Pair = pair, order: Tensor = order) -> State:
            whole = [pair.first] + ([pair.norm] if pair.norm else [])
            names = ("weight", "bias", "running_mean", "running_var")
            moved = [f"{part}.{name}" for part in whole for name in names]
            found = {
                name: state[name][order.to(state[name].device)] for name in moved if name in state
            }
            weight = f"{pair.second}.weight"
            w = _by_unit(state[weight], pair.units)
            return {**found, weight: w[:, order.to(w.device)].reshape(state[weight].shape)}

        yield Symmetry(pair.where, "permutation", change)


def filterwise(model: nn.Module, seed: int = 0) -> Iterator[Symmetry]:
    """Yield scalings of the filters before BatchNorm, with its running statistics."""
    leaves = _leaves(model)
    for i, ((name, part), (norm, after)) in enumerate(pairwise(leaves)):
        if not (_has_weight(part) and isinstance(after, _BatchNorm)):
            continue
        a = torch.from_numpy(_factors(seed, i, len(_weight(part))))

        def change(state: State, name: str = name, norm: str = norm, a: Tensor = a) -> State:
            scaled = {f"{name}.weight": a, f"{name}.bias": a}
            scaled |= {f"{norm}.running_mean": a, f"{norm}.running_var": a.square()}
            return {key: _rows(state[key], by) for key, by in scaled.items() if key in state}

        yield Symmetry(f"{name} before {norm}", "scaling", change)


def logit_shift(model: nn.Module, seed: int = 0) -> Iterator[Symmetry]:
    """Yield a shift of all logits by one function of the inputs, which softmax does not see."""
    weighted = [(name, part) for name, part in _leaves(model) if _has_weight(part)]
    if not weighted or not isinstance(weighted[-1][1], nn.Linear):
        return
    name, part = weighted[-1]
    count = len(_weight(part)[0])
    size = 4 * count**-0.5  # some weights, so that its effect is seen
    v = size * torch.from_numpy(stream(seed, *STREAM, 2).standard_normal(count))

    def change(state: State) -> State:
        weight, bias = f"{name}.weight", f"{name}.bias"
        found = {weight: state[weight] + v.to(state[weight])}
        return found | ({bias: state[bias] + size} if bias in state else {})

    yield Symmetry(name, "shift", change)


def heads(model: nn.Module, seed: int = 0) -> Iterator[Symmetry]:
    """Yield maps A of each head, of GL(d_head): q by A^T, k by A^-1, v by B, o by B^-1."""
    yield from _attention(model, seed, orthogonal=False)


def orthogonal_heads(model: nn.Module, seed: int = 0) -> Iterator[Symmetry]:
    """Yield orthogonal maps of each head of attention."""
    yield from _attention(model, seed, orthogonal=True)


SYMMETRIES: dict[str, Callable[[nn.Module, int], Iterator[Symmetry]]] = {
    "layer-wise scaling": layerwise,
    "neuron-wise scaling": neuronwise,
    "permutation of neurons": permutation,
    "filter scaling before BatchNorm": filterwise,
    "GL(d_head) of attention": heads,
    "orthogonal maps of heads": orthogonal_heads,
    "logit shift": logit_shift,
}


def composed(parts: list[Symmetry]) -> Symmetry:
    """Return all these changes, one after the other."""

    def change(state: State) -> State:
        now = dict(state)
        for part in parts:
            now = part(now)
        return now

    return Symmetry("; ".join(part.where for part in parts), parts[0].kind, change)


def moved_optimizer(
    symmetry: Symmetry, parameters: State, name: str, entry: State, optimizer: str
) -> State:
    """Return an entry of an optimizer's state in the weights after the change, by parameter.

    A gradient is divided by what its weight is multiplied by, and its square twice. There is none
    for maps that mix weights, for a mean of squares does not tell it, nor for an entry that is not
    known: then nothing is returned.

    Args:
        parameters: Those before the change.
        name: Of the entry, as torch has it.
        entry: By name of parameter.
        optimizer: Whose state it is, by its name in a configuration.
    """
    if symmetry.kind == "shift":
        return entry
    if symmetry.kind == "mixing":
        return {}
    if symmetry.kind == "permutation":
        moved = symmetry({**parameters, **entry})
        return {key: moved[key] for key in entry}
    factors = symmetry({key: torch.ones_like(x) for key, x in parameters.items()})
    powers = POWERS_OF_STATE | POWERS_OF_OPTIMIZER.get(optimizer, {})
    if name not in powers:
        return {}
    power = powers[name]
    return {key: x / factors[key] ** power for key, x in entry.items()}


def _scaling(pair: _Pair, a: Tensor) -> Symmetry:
    def change(state: State) -> State:
        found = {name: _rows(state[name], a) for name in pair.out_of() if name in state}
        weight = f"{pair.second}.weight"
        w = _by_unit(state[weight], pair.units)
        return {**found, weight: (w / a.to(w)[:, None]).reshape(state[weight].shape)}

    return Symmetry(pair.where, "scaling", change)


def _pairs(model: nn.Module) -> Iterator[_Pair]:
    """Yield layers with weights of which the second reads the units of the first."""
    leaves = _leaves(model)
    at = [i for i, (_, part) in enumerate(leaves) if _has_weight(part)]
    for i, j in pairwise(at):
        (first, one), (second, other) = leaves[i], leaves[j]
        a, b = _weight(one), _weight(other)
        between = leaves[i + 1 : j]
        norms = [name for name, part in between if isinstance(part, _BatchNorm) and part.affine]
        units = len(a)
        fits = b[0].numel() % units == 0 and getattr(other, "groups", 1) == 1
        plain = len([x for _, x in between if isinstance(x, _BatchNorm)]) == len(norms) <= 1
        if fits and plain:
            parts = tuple(part for _, part in between)
            yield _Pair(first, norms[0] if norms else None, second, parts, units)


def _has_weight(part: nn.Module) -> bool:
    """Say whether a layer multiplies by a weight of its own, and by none that is computed."""
    return isinstance(part, WEIGHTED) and "weight" in dict(part.named_parameters(recurse=False))


def _weight(part: nn.Module) -> Tensor:
    return dict(part.named_parameters(recurse=False))["weight"]


def _leaves(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, part) for name, part in model.named_modules() if not list(part.children())]


def _attention(model: nn.Module, seed: int, *, orthogonal: bool) -> Iterator[Symmetry]:
    for i, (name, part) in enumerate(model.named_modules()):
        if not isinstance(part, nn.MultiheadAttention) or part.in_proj_weight is None:
            continue
        count, d = part.num_heads, part.head_dim
        maps = [_maps(seed, i, count, d, orthogonal=orthogonal, of=of) for of in range(2)]

        def change(
            state: State, name: str = name, maps: list[Tensor] = maps, count: int = count
        ) -> State:
            A, B = (x.to(state[f"{name}.in_proj_weight"]) for x in maps)
            by = (A.mT, torch.linalg.inv(A), B)  # of q, k and v
            found = {}
            for key in (f"{name}.in_proj_weight", f"{name}.in_proj_bias"):
                if key in state:
                    parts = state[key].chunk(3)
                    found[key] = torch.cat(
                        [_by_head(m, x, count) for m, x in zip(by, parts, strict=True)]
                    )
            key = f"{name}.out_proj.weight"
            o = state[key].T
            return {**found, key: _by_head(torch.linalg.inv(B).mT, o, count).T.contiguous()}

        yield Symmetry(name, "mixing", change)


def _by_head(maps: Tensor, x: Tensor, count: int) -> Tensor:
    """Return the rows of x, (heads d, ...), with a map for each head, (heads, d, d)."""
    rows = x.reshape(count, maps.shape[-1], -1)
    return (maps @ rows).reshape(x.shape)


def _maps(seed: int, i: int, count: int, d: int, *, orthogonal: bool, of: int) -> Tensor:
    rng = stream(seed, *STREAM, i, 3 + of)
    left, right = (np.linalg.qr(rng.standard_normal((count, d, d)))[0] for _ in range(2))
    if orthogonal:
        return torch.from_numpy(left)
    # Of known singular values, so that no head is mapped to nearly nothing.
    return torch.from_numpy(left @ (2.0 ** rng.choice(POWERS, (count, d, 1)) * right))


def _factors(seed: int, i: int, count: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    return 2.0 ** stream(seed, *STREAM, i).choice(POWERS, count)


def _rows(x: Tensor, a: Tensor) -> Tensor:
    return x * a.to(x).reshape(-1, *[1] * (x.ndim - 1))


def _by_unit(weight: Tensor, units: int) -> Tensor:
    """Return what reads the units, shape (out, units, ...), of a layer behind any flattening."""
    return weight.reshape(len(weight), units, -1)
