"""A small transformer by name, for images, for sequences of vectors and for words.

Letters: t tokens of d numbers each, w the width of the stream.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sharpness.building import (
    ACTIVATIONS,
    chosen,
    initialized,
    require_flags,
    require_share,
    require_whole,
)
from sharpness.errors import InputError

POSITION = 0.02  # standard deviation of what is added for a position (Dosovitskiy et al. 2021)


class Patches(nn.Module):
    """The cut of an image, (c, h, w), into tokens that are its squares, row by row."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        """Return the squares, (b, t, c * side * side)."""
        b, c, h, w = x.shape
        s = self.side
        cut = x.reshape(b, c, h // s, s, w // s, s)
        return cut.permute(0, 2, 4, 1, 3, 5).reshape(b, (h // s) * (w // s), c * s * s)


class Block(nn.Module):
    """x + attention(norm(x)), and then x + dense(norm(x)): LayerNorm comes first."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        hidden: int,
        activation: Callable[[], nn.Module],
        bias: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.first = nn.LayerNorm(width, bias=bias)
        self.attention = nn.MultiheadAttention(
            width, heads, dropout=dropout, bias=bias, batch_first=True
        )
        self.second = nn.LayerNorm(width, bias=bias)
        self.dense = nn.Sequential(
            nn.Linear(width, hidden, bias=bias),
            activation(),
            nn.Linear(hidden, width, bias=bias),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the stream after the block, (b, t, w)."""
        y = self.first(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        out: Tensor = x + self.dense(self.second(x))
        return out


class Transformer(nn.Module):
    """Tokens, blocks, the mean over tokens, and a linear layer."""

    def __init__(
        self, tokens: nn.Module, blocks: list[nn.Module], head: nn.Module, *, shape: tuple[int, int]
    ) -> None:
        super().__init__()
        self.tokens = tokens
        self.position = nn.Parameter(POSITION * torch.randn(shape))  # (t, w)
        self.blocks = nn.Sequential(*blocks)
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs, (b, outputs)."""
        words = isinstance(self.tokens, nn.Embedding)
        if words == x.is_floating_point():
            raise InputError(
                f"transformer needs inputs of {'whole' if words else 'floating-point'} numbers "
                f"{'with' if words else 'without'} a vocabulary, got {x.dtype}: "
                f"{'leave vocabulary out' if words else 'give a vocabulary in model_options'}"
            )
        out: Tensor = self.head(self.blocks(self.tokens(x) + self.position).mean(dim=1))
        return out


def transformer(
    inputs: Sequence[int],
    outputs: int,
    *,
    patch: int = 8,
    vocabulary: int | None = None,
    width: int = 32,
    heads: int = 4,
    depth: int = 2,
    expansion: int = 4,
    activation: str = "gelu",
    bias: bool = True,
    dropout: float = 0.0,
    initialization: str = "default",
    scale: float = 1.0,
) -> nn.Module:
    """Return blocks of attention and dense layers, LayerNorm first, on tokens of the input.

    The head is LayerNorm, the mean over tokens, and a linear layer.

    Args:
        inputs: Shape of one example: (d t,) is cut into tokens of ``patch`` numbers, (t, d) has t
            tokens of d numbers, an image (c, h, w) is cut into squares of side ``patch``; with a
            vocabulary, (t,) has t whole numbers below it.
        outputs: Number of classes, or of components of the target.
        patch: See inputs; the flat digits become 8 tokens of 8, which are their rows.
        vocabulary: Number of different words.
        width: w, which the heads share.
        heads: Of attention.
        depth: Number of blocks.
        expansion: Hidden units of the dense layers of a block, in w.
        activation: One of ``ACTIVATIONS``, of the dense layers.
        bias: Of linear layers, attention and LayerNorm.
        dropout: Share that is dropped of attention's weights and behind the dense layers.
        initialization: One of ``INITIALIZATIONS``; by default that of torch.
        scale: What its weights and biases are multiplied by; positions too.

    Raises:
        InputError: If the input cannot be cut so, or an option means nothing.

    >>> model = transformer([64], 10, width=4, heads=2, depth=1)
    >>> model.tokens[1], model.position.shape
    (Linear(in_features=8, out_features=4, bias=True), torch.Size([8, 4]))
    """
    if vocabulary is not None:
        require_whole("transformer", vocabulary=vocabulary)
    require_whole(
        "transformer", patch=patch, width=width, heads=heads, depth=depth, expansion=expansion
    )
    require_flags("transformer", bias=bias)
    require_share("transformer", "dropout", dropout)
    if width % heads:
        raise InputError(
            f"transformer needs a width that its heads share, got width {width} and {heads} heads: "
            "change one of them"
        )
    act = chosen("transformer", "activation", activation, ACTIVATIONS)
    t, tokens = _tokens(inputs, width, patch=patch, vocabulary=vocabulary, bias=bias)
    blocks: list[nn.Module] = [
        Block(width, heads, hidden=expansion * width, activation=act, bias=bias, dropout=dropout)
        for _ in range(depth)
    ]
    blocks.append(nn.LayerNorm(width, bias=bias))
    model = Transformer(tokens, blocks, nn.Linear(width, outputs, bias=bias), shape=(t, width))
    return initialized(model, "transformer", initialization, scale=scale)


def _tokens(
    inputs: Sequence[int], width: int, *, patch: int, vocabulary: int | None, bias: bool
) -> tuple[int, nn.Module]:
    """Return the number of tokens, and what makes them of the input."""
    if vocabulary is not None:
        if len(inputs) != 1:
            raise InputError(
                f"transformer with a vocabulary needs inputs of shape (t,), got {tuple(inputs)}: "
                "leave vocabulary out"
            )
        return inputs[0], nn.Embedding(vocabulary, width)
    if len(inputs) not in (1, 2, 3):
        raise InputError(
            "transformer needs inputs of shape (d t,), (t, d) or (c, h, w), got "
            f"{tuple(inputs)}: choose another model"
        )
    cut = {1: inputs, 2: [], 3: inputs[1:]}[len(inputs)]
    if any(size % patch or not size for size in cut):
        raise InputError(
            f"transformer needs a patch that divides {' and '.join(map(str, cut))}, got {patch}: "
            "change it in model_options"
        )
    if len(inputs) == 1:
        t, d = inputs[0] // patch, patch
        return t, nn.Sequential(nn.Unflatten(1, (t, d)), nn.Linear(d, width, bias=bias))
    if len(inputs) == 2:
        t, d = inputs
        return t, nn.Sequential(nn.Linear(d, width, bias=bias))
    c, h, w = inputs
    t, d = (h // patch) * (w // patch), c * patch * patch
    return t, nn.Sequential(Patches(patch), nn.Linear(d, width, bias=bias))
