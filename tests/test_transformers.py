"""The transformer by name is attention and dense layers on the tokens that its options say."""

import math

import pytest
import torch
from torch import Tensor, nn

from sharpness.errors import InputError
from sharpness.problem import pose
from sharpness.transformers import Patches, transformer


@pytest.mark.parametrize(
    ("inputs", "options", "tokens", "embedding"),
    [
        ([64], {}, 8, 9 * 12),
        ([64], {"patch": 16}, 4, 17 * 12),
        ([5, 7], {}, 5, 8 * 12),
        ([3, 8, 4], {"patch": 2}, 8, 13 * 12),
        ([6], {"vocabulary": 20}, 6, 20 * 12),
    ],
    ids=str,
)
def test_the_parameters_are_those_of_tokens_positions_blocks_and_head(
    inputs: list[int], options: dict[str, int], tokens: int, embedding: int
) -> None:
    w = 12
    model = transformer(inputs, 10, width=w, heads=3, depth=2, expansion=5, **options)
    block = 2 * 2 * w + 4 * (w + 1) * w + (w + 1) * 5 * w + (5 * w + 1) * w
    want = embedding + tokens * w + 2 * block + 2 * w + (w + 1) * 10
    assert sum(p.numel() for p in model.parameters()) == want


def norm(x: Tensor, by: nn.LayerNorm) -> Tensor:
    centered = x - x.mean(dim=-1, keepdim=True)
    scaled = centered / (x.var(dim=-1, keepdim=True, correction=0) + 1e-5).sqrt()
    return scaled * by.weight + by.bias


def test_the_outputs_are_those_of_attention_with_layer_norm_first() -> None:
    w, heads, d = 6, 2, 3
    model = transformer([64], 4, width=w, heads=heads, depth=2, activation="tanh", expansion=2)
    model = model.double()
    for p in model.parameters():
        p.data += 0.3 * torch.randn(p.shape).double()  # also norms and biases
    inputs = torch.rand(5, 64).double()
    linear = model.tokens[1]
    x = inputs.reshape(5, 8, 8) @ linear.weight.T + linear.bias + model.position
    *blocks, last = model.blocks
    for block in blocks:
        a = block.attention
        qkv = norm(x, block.first) @ a.in_proj_weight.T + a.in_proj_bias
        q, k, v = (z.reshape(5, 8, heads, d).transpose(1, 2) for z in qkv.split(w, dim=-1))
        share = (q @ k.mT / math.sqrt(d)).softmax(dim=-1)
        mixed = (share @ v).transpose(1, 2).reshape(5, 8, w)
        x = x + mixed @ a.out_proj.weight.T + a.out_proj.bias
        first, _, second, _ = block.dense
        hidden = (norm(x, block.second) @ first.weight.T + first.bias).tanh()
        x = x + hidden @ second.weight.T + second.bias
    want = norm(x, last).mean(dim=1) @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(inputs), want)


def test_only_positions_tell_the_order_of_tokens() -> None:
    model = transformer([64], 4, width=8, heads=2).double().eval()
    x = torch.rand(5, 8, 8).double()
    turned = x[:, [3, 1, 7, 0, 6, 2, 5, 4]].reshape(5, 64)
    assert not torch.allclose(model(turned), model(x.reshape(5, 64)))
    nn.init.zeros_(model.position)
    torch.testing.assert_close(model(turned), model(x.reshape(5, 64)))


def test_patches_are_the_squares_of_an_image_row_by_row() -> None:
    x = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    squares = [x[:, :, i : i + 2, j : j + 2].flatten(1) for i in (0, 2) for j in (0, 2, 4)]
    assert torch.equal(Patches(2)(x), torch.stack(squares, dim=1))


def test_without_bias_there_is_none() -> None:
    model = transformer([64], 4, bias=False)
    assert not any(name.endswith("bias") for name, _ in model.named_parameters())


def test_words_are_the_rows_of_an_embedding() -> None:
    model = transformer([3], 2, vocabulary=5, width=4, heads=1).double().eval()
    words = torch.tensor([[4, 0, 4], [1, 2, 3]])
    rows = model.tokens.weight[words] + model.position
    want = model.head(model.blocks(rows).mean(dim=1))
    torch.testing.assert_close(model(words), want)


def words() -> tuple[tuple[Tensor, Tensor], int]:
    x = torch.arange(120).reshape(30, 4) % 7
    return (x, x[:, 0] % 2), 20


def test_a_data_set_of_words_takes_a_vocabulary_and_numbers_none() -> None:
    options = {"vocabulary": 7, "width": 8, "heads": 2, "depth": 1}
    problem = pose("transformer", words, "cross_entropy", model_options=options)
    assert problem.model.tokens.num_embeddings == 7
    for data, given, named in [
        (words, {"patch": 2}, "whole numbers|floating-point numbers without a vocabulary, got"),
        ("digits", options, "whole numbers with a vocabulary, got torch.float32: leave"),
    ]:
        with pytest.raises(InputError, match=f"^transformer needs inputs of .*({named})"):
            pose("transformer", data, "cross_entropy", model_options=given)


@pytest.mark.parametrize(
    ("inputs", "options", "named"),
    [
        ([64], {"width": 30}, "a width that its heads share, got width 30 and 4 heads: change"),
        ([64], {"patch": 7}, "a patch that divides 64, got 7: change"),
        ([3, 8, 6], {"patch": 4}, "a patch that divides 8 and 6, got 4"),
        (
            [1, 1, 8, 8],
            {},
            r"inputs of shape \(d t,\), \(t, d\) or \(c, h, w\), got \(1, 1, 8, 8\)",
        ),
        (
            [8, 8],
            {"vocabulary": 4},
            r"with a vocabulary needs inputs of shape \(t,\), got \(8, 8\)",
        ),
        ([64], {"vocabulary": 0}, "vocabulary of at least 1, got 0"),
        ([64], {"heads": 0}, "heads of at least 1, got 0"),
        ([64], {"depth": 1.0}, "depth of at least 1, got 1.0"),
        ([64], {"dropout": -0.1}, "dropout of at least 0 and below 1, got -0.1"),
        ([64], {"bias": None}, "bias true or false, got None"),
        ([64], {"activation": "silu"}, "activation to be one of relu, .* got 'silu'"),
        ([64], {"initialization": "unit"}, "initialization to be one of default, .* got 'unit'"),
    ],
    ids=str,
)
def test_what_it_cannot_be_is_refused_in_one_line(
    inputs: list[int], options: dict[str, object], named: str
) -> None:
    with pytest.raises(InputError, match=f"^transformer .*{named}") as error:
        transformer(inputs, 10, **options)
    assert "\n" not in str(error.value)
