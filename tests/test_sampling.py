"""Batches of an epoch have the examples that their name promises."""

import numpy as np
import pytest
import torch

from sharpness.errors import InputError
from sharpness.sampling import BATCHES, replacement, shuffled, stratified
from sharpness.vectors import stream

LABELS = torch.tensor([0] * 20 + [1] * 31 + [2] * 9)


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("batch_size", [4, 7, 12, 60])
def test_an_epoch_has_as_many_draws_as_examples(name: str, batch_size: int) -> None:
    if name == "stratified" and batch_size in (4, 7):
        batch_size += 4  # 9 of the last class do for 8 batches at most
    batches = BATCHES[name](LABELS, batch_size, stream(0, 0))
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert sum(map(len, batches)) == 60


@pytest.mark.parametrize("draw", [shuffled, stratified])
def test_without_replacement_every_example_comes_once(draw: object) -> None:
    for epoch in range(3):
        batches = draw(LABELS, 12, stream(5, epoch))  # type: ignore[operator]
        assert sorted(np.concatenate(batches)) == list(range(60))


def test_with_replacement_a_share_of_one_over_e_is_left_out() -> None:
    """Of N examples (1 - 1/N)^N in the mean; the spread of the share is below 0.5 / sqrt(N)."""
    n = 2000
    (batch,) = replacement(torch.zeros(n), n, stream(0, 0))
    left_out = 1 - len(np.unique(batch)) / n
    assert abs(left_out - (1 - 1 / n) ** n) < 4 * 0.5 / np.sqrt(n)


@pytest.mark.parametrize("batch_size", [8, 12, 13, 27, 60])
def test_stratified_batches_have_every_class_in_its_share(batch_size: int) -> None:
    """The classes keep their shares of what is beyond the one of each, to within one example."""
    counts = torch.bincount(LABELS).numpy()
    for seed in range(20):
        batches = stratified(LABELS, batch_size, stream(seed, 0))
        for batch in batches:
            found = torch.bincount(LABELS[batch], minlength=3).numpy()
            assert found.min() >= 1
            share = 1 + (counts - len(batches)) * (len(batch) - 3) / (60 - 3 * len(batches))
            # Each batch rounds what those before it left, so that two roundings may add up.
            assert np.abs(found - share).max() < 2


def test_equal_classes_are_equal_in_every_stratified_batch() -> None:
    labels = torch.arange(10).repeat(8)
    for batch in stratified(labels, 20, stream(0, 0)):
        assert torch.bincount(labels[batch]).tolist() == [2] * 10


@pytest.mark.parametrize("name", BATCHES)
def test_other_epochs_and_seeds_draw_others_and_the_same_the_same(name: str) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        drawn: list[int] = np.concatenate(BATCHES[name](LABELS, 12, stream(seed, epoch))).tolist()
        return drawn

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


@pytest.mark.parametrize(
    ("labels", "batch_size", "named"),
    [
        (LABELS, 2, "an example of each of 3 classes, got a batch of 2 in an epoch of 60"),
        (LABELS, 29, "got a batch of 2 in an epoch of 60: change the batch size"),
        (LABELS, 5, "need 12 examples of every class, .* got 9 of class 2: take larger"),
        (torch.rand(9), 9, "need classes as targets"),
    ],
)
def test_batches_that_cannot_have_every_class_are_refused(
    labels: torch.Tensor, batch_size: int, named: str
) -> None:
    with pytest.raises(InputError, match=named):
        stratified(labels, batch_size, stream(0, 0))
