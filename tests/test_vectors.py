"""A vector is a function of its seed and number alone; a fingerprint of every bit."""

from itertools import product

import pytest
import torch

from sharpness.vectors import digest, flatten, gaussian, unflatten, uniform

DOUBLE = torch.zeros((), dtype=torch.float64)


def test_a_vector_depends_on_seed_and_number_and_on_nothing_else() -> None:
    first = gaussian(5, 3, 2, like=DOUBLE), uniform(5, 3, 2)
    torch.rand(7)
    again = gaussian(5, 3, 2, like=DOUBLE), uniform(5, 3, 2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(gaussian(5, 3, 2, like=DOUBLE.float()), first[0].float())


def test_every_seed_and_number_has_a_vector_of_its_own() -> None:
    # A seed of more than 32 bits must not spill into the number.
    seeds = [0, 1, 2, 5, 2**32, 2**32 + 5, 2 * 2**32 + 5, 2**63 - 1]
    pairs = list(product(seeds, range(4)))
    for vectors in (
        [gaussian(2, *pair, like=DOUBLE) for pair in pairs],
        [uniform(2, *pair) for pair in pairs],
    ):
        assert len({tuple(v.tolist()) for v in vectors}) == len(pairs)


def test_gaussian_vectors_are_standard_normal() -> None:
    n = 40_000
    v = gaussian(n, 0, 0, like=DOUBLE)
    # Standard errors of the first, second and fourth moment: 1, sqrt(2) and sqrt(96) / sqrt(n).
    for power, want, error in [(1, 0, 1), (2, 1, 2**0.5), (4, 3, 96**0.5)]:
        assert abs(v.pow(power).mean() - want) < 4 * error / n**0.5


def test_uniform_vectors_fill_the_interval_from_minus_1_to_1() -> None:
    n = 40_000
    v = uniform(n, 0, 0)
    assert v.dtype == torch.float64
    assert v.abs().max() <= 1
    # The largest of n is within t / n of its bound but for a chance of e^-t; t = 20 of width 2.
    assert v.min() < -1 + 40 / n
    assert v.max() > 1 - 40 / n
    assert abs(v.mean()) < 4 * (1 / 3 / n) ** 0.5  # the variance is 1/3


def test_unflatten_takes_apart_what_flatten_put_together() -> None:
    tensors = {
        "a": torch.randn(2, 3),
        "b": torch.randn(()),
        "c": torch.randn(4),
        "d": torch.ones(0),
    }
    theta = flatten(tensors.values())
    parts = unflatten(theta, {name: x.shape for name, x in tensors.items()})
    assert theta.shape == (11,)
    assert list(parts) == list(tensors)
    assert all(torch.equal(parts[name], x) for name, x in tensors.items())
    assert torch.equal(flatten(parts.values()), theta)


@pytest.mark.parametrize("count", [1, 2])
def test_flatten_copies_and_unflatten_views(count: int) -> None:
    tensors = [torch.zeros(2, requires_grad=True) for _ in range(count)]
    theta = flatten(tensors)
    assert not theta.requires_grad
    theta += 1
    assert all(x.tolist() == [0, 0] for x in tensors)
    unflatten(theta, {str(i): x.shape for i, x in enumerate(tensors)})["0"].zero_()
    assert theta[:2].tolist() == [0, 0]


def test_a_digest_changes_with_every_bit() -> None:
    x = torch.tensor([[1.5, -2.0]])
    seen = {digest(x)}
    for i in range(64):
        flipped = x.clone()
        flipped.view(torch.uint8)[0, i // 8] ^= 1 << (i % 8)
        seen.add(digest(flipped))
    assert len(seen) == 65


def test_a_digest_changes_with_shape_and_dtype_and_number_of_tensors() -> None:
    x = torch.zeros(4)
    others = [
        (x,),
        (x.reshape(2, 2),),
        (x.reshape(4, 1),),
        (x[:3],),
        (x[:0],),
        (x[0],),
        (x.int(),),
        (x.bfloat16(),),
        (x.bool(),),
        (x[:2], x[2:]),
        (x, x),
        (x, x[:0]),
        (),
    ]
    assert len({digest(*tensors) for tensors in others}) == len(others)


def test_a_digest_is_that_of_the_numbers_however_they_lie_in_memory() -> None:
    x = torch.randn(3, 2)
    assert digest(x.T) == digest(x.T.contiguous())
    assert digest(x.requires_grad_()) == digest(x.detach().clone())
