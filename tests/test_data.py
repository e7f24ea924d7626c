"""A split is a function of source and seed; what is no fixed data set is refused."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from sharpness.data import (
    Part,
    batches,
    converted,
    digits,
    is_labels,
    part,
    size,
    split,
    take,
    tensors,
)
from sharpness.errors import InputError

N = 12
X, Y = torch.arange(N * 3.0).reshape(N, 3), torch.arange(N) % 3
COUNTS = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # of the digits


def same(a: Part, b: Part) -> bool:
    return all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))


def test_the_digits_are_those_of_scikit_learn() -> None:
    (inputs, targets), size_of_train = digits()
    assert inputs.shape == (1797, 64)
    assert (inputs.min(), inputs.max()) == (0, 1)
    assert torch.bincount(targets).tolist() == COUNTS
    assert size_of_train == 600
    trace = inputs.double().square().sum() / 1797  # of X^T X / N, from load_digits() / 16
    # Every product is a whole number of 1/256, so that each partial sum is exact.
    assert trace.item() == pytest.approx(15.014199012242626, rel=1e-15)


def test_the_parts_are_disjoint_and_complete_and_in_the_order_of_the_source() -> None:
    whole, _ = digits()
    parts = split(digits())
    assert (size(parts.train), size(parts.test)) == (600, 1197)
    both = torch.cat([parts.train_index, parts.test_index])
    assert torch.equal(both.sort().values, torch.arange(1797))
    for found, index in [(parts.train, parts.train_index), (parts.test, parts.test_index)]:
        assert (index.diff() > 0).all()
        assert same(found, take(whole, index))


@pytest.mark.parametrize("wanted", [1, 9, 600, 1796])
def test_each_class_keeps_its_share_to_within_one_example(wanted: int) -> None:
    train = torch.bincount(split(digits(), train_examples=wanted).train[1], minlength=10)
    assert train.sum() == wanted
    shares = torch.tensor(COUNTS, dtype=torch.float64) * wanted / 1797
    assert ((train - shares).abs() < 1).all()


def test_a_split_is_a_function_of_its_seed() -> None:
    first, again, other = (split(digits(), split_seed=seed).train_index for seed in (1, 1, 2))
    torch.rand(3)
    assert torch.equal(first, again)
    # Two samples of 600 of 1797 share 200.3 on average, with a deviation of 9.4.
    shared = torch.isin(first, other).sum()
    assert 150 < shared < 250


def test_a_test_part_of_its_own_stays_whole() -> None:
    train, test = (X, Y), (X[:5] + 100, Y[:5])
    parts = split((train, test), train_examples=6)
    assert same(parts.test, test)
    assert parts.test_index.tolist() == [0, 1, 2, 3, 4]
    assert torch.bincount(parts.train[1]).tolist() == [2, 2, 2]
    assert same(parts.train, take(train, parts.train_index))
    assert same(split((train, test)).train, train)


@pytest.mark.parametrize("share", [0.001, 0.25, 0.5, 0.999])
def test_label_noise_moves_the_exact_share_to_other_classes_and_nothing_else(share: float) -> None:
    source = digits()
    clean = split(source, split_seed=3)
    noisy = split(source, split_seed=3, label_noise=share)
    assert (noisy.train[1] != clean.train[1]).sum() == round(share * 600)
    assert set(noisy.train[1].tolist()) <= set(range(10))
    assert torch.equal(noisy.train[0], clean.train[0])
    assert torch.equal(noisy.train_index, clean.train_index)
    assert same(noisy.test, clean.test)
    assert torch.bincount(source[0][1]).tolist() == COUNTS  # the source is nobody else's


def test_label_noise_is_a_function_of_the_seed_of_the_split() -> None:
    source = ((X, Y), (X, Y))  # whole, so that another split is no other sample
    first, again, other = (
        split(source, label_noise=0.5, split_seed=seed).train[1] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_every_example_and_every_other_class_is_as_likely() -> None:
    targets = torch.arange(10).repeat(2000)
    noisy = split(((targets[:, None], targets), (X, Y)), label_noise=0.5).train[1]
    shift = (noisy - targets) % 10
    counts = torch.stack([torch.bincount(shift[targets == y], minlength=10) for y in range(10)])
    moved, stayed = counts[:, 1:].double(), counts[:, 0].double()
    # Binomial: 2000 trials of 1/18 each, and of 1/2; five standard deviations of each.
    assert (moved - 2000 / 18).abs().max() < 5 * (2000 / 18 * 17 / 18) ** 0.5
    assert (stayed - 1000).abs().max() < 5 * (2000 / 4) ** 0.5


@pytest.mark.parametrize(
    ("dtype", "classes"),
    [(torch.int64, 100), (torch.uint8, 200), (torch.int8, 100), (torch.bool, 2)],
)
def test_label_noise_does_not_overflow_small_integers(dtype: torch.dtype, classes: int) -> None:
    wide = torch.arange(classes).repeat(50)
    targets = wide.to(dtype)
    noisy = split(((wide, targets), (wide, targets)), label_noise=0.5).train[1]
    assert noisy.dtype == dtype
    assert (noisy != targets).sum() == 25 * classes
    assert noisy.long().min() >= 0
    assert noisy.long().max() < classes


@pytest.mark.parametrize("targets", [Y.float(), Y[:, None], Y[:, None].double()], ids=str)
def test_targets_that_are_no_classes_are_sampled_uniformly(targets: Tensor) -> None:
    assert not is_labels(targets)
    often = torch.zeros(N)
    for seed in range(200):
        parts = split(((X, targets), 4), split_seed=seed)
        assert size(parts.train) == 4
        often[parts.train_index] += 1
    # Binomial: 200 trials of 1/3, five standard deviations.
    assert (often - 200 / 3).abs().max() < 5 * (200 * 2 / 9) ** 0.5
    with pytest.raises(InputError, match="label_noise needs classes as targets"):
        split(((X, targets), 4), label_noise=0.5)


class Pairs(Dataset[Any]):
    """X and Y as a map-style Dataset that knows how often it was read."""

    def __init__(self, pair: Callable[[int], Any] = lambda i: (X[i], int(Y[i]))) -> None:
        self.pair, self.reads = pair, 0

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> Any:
        self.reads += 1
        return self.pair(i)


@pytest.mark.parametrize(
    "source",
    [
        (X, Y),
        [X, Y],
        (X.numpy(), Y.numpy()),
        (X.requires_grad_(False), Y),
        TensorDataset(X, Y),
        Pairs(),
        Pairs(lambda i: (X[i].numpy(), Y[i])),
    ],
    ids=["tensors", "list", "arrays", "leaf", "TensorDataset", "ints", "rows"],
)
def test_the_same_examples_are_the_same_part_in_every_form(source: Any) -> None:
    assert same(part(source), (X, Y))


@pytest.mark.parametrize(
    "array",
    [
        X.numpy()[::-1].copy()[::-1],
        np.asfortranarray(X.numpy()),
        np.frombuffer(X.numpy().tobytes(), np.float32).reshape(N, 3),
        X.numpy().astype(">f4"),
    ],
    ids=["negative strides", "fortran", "read-only", "big-endian"],
)
def test_arrays_may_lie_in_memory_as_they_like(array: Any) -> None:
    assert same(part((array, Y)), (X, Y))


def test_a_dataset_is_read_into_memory() -> None:
    source = Pairs()
    parts = split((source, 6))
    reads = source.reads
    batches(take(parts.train, torch.arange(3)), 2)
    assert source.reads == reads < 2 * N + 6


@pytest.mark.parametrize("form", ["tensors", "dataset"])
def test_inputs_may_be_a_tuple_or_a_dict(form: str) -> None:
    for inputs in [(X, 2 * X), {"a": X, "b": 2 * X}]:
        source: Any = (inputs, Y)
        if form == "dataset":
            source = Pairs(lambda i, inputs=inputs: take((inputs, Y), torch.tensor(i)))
        parts = split((source, 6))
        first, second = tensors(parts.train)[:2]
        assert type(parts.train[0]) is type(inputs)
        assert torch.equal(first, X[parts.train_index])
        assert torch.equal(second, 2 * X[parts.train_index])
        cut = batches(parts.train, 4)
        assert [[len(x) for x in tensors(batch)] for batch in cut] == [[4, 4, 4], [2, 2, 2]]


def test_batches_are_views_in_order_and_the_last_one_is_ragged() -> None:
    cut = batches((X, Y), 5)
    assert [size(batch) for batch in cut] == [5, 5, 2]
    assert torch.equal(torch.cat([x for x, _ in cut]), X)
    assert torch.equal(torch.cat([y for _, y in cut]), Y)
    assert cut[1][0].data_ptr() == X[5:].data_ptr()


def test_converted_leaves_integers_alone() -> None:
    inputs, targets = converted(({"a": X, "ids": Y, "mask": Y > 1}, Y), torch.float64)
    assert [x.dtype for x in inputs.values()] == [torch.float64, torch.int64, torch.bool]
    assert targets.dtype == torch.int64
    assert converted((X, X), torch.float64)[1].dtype == torch.float64


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([(X, Y)])


def spoiled(index: tuple[int, ...], value: float) -> Tensor:
    x = X.clone()
    x[index] = value
    return x


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("source", "named"),
    [
        (DataLoader(TensorDataset(X, Y)), "DataLoader.*pass its dataset"),
        (DataLoader(TensorDataset(X, Y), shuffle=True), "DataLoader.*pass its dataset"),
        ((pair for pair in [(X, Y)]), "generator.*same examples"),
        (iter([(X, Y)]), "list_iterator.*same examples"),
        (Stream(), "Stream.*same examples"),
        ((X[:0], Y[:0]), r"shape \(0,\)"),
        ((X, Y[:5]), "12 inputs and 5 targets"),
        (((X, X[:4]), Y), "4, 12 inputs and 12 targets"),
        (((), Y), "no inputs and 12 targets"),
        ((X, list(range(N))), "list"),
        ((X, torch.tensor(1)), r"shape \(\)"),
        ((X.tolist(), Y), "float: convert"),
        ((X, np.array(["cat"] * N)), "convert"),
        ((spoiled((7, 1), NAN), Y), "finite inputs, got 1.*example 7"),
        ((spoiled((3,), INF), Y), "finite inputs, got 3.*example 3"),
        (({"a": X, "b": spoiled((4,), -INF)}, Y), "finite inputs, got 3.*example 4"),
        ((X, spoiled((9, 2), NAN)), "finite targets, got 1.*example 9"),
        ((X, spoiled((9, 2), NAN)[:, 2]), "finite targets, got 1.*example 9"),
        (Pairs(lambda i: (spoiled((0,), NAN)[i], 0)), "finite inputs, got 3.*example 0"),
        (Pairs(lambda i: (X[i], 0, 0)), "pairs.*tuple of 3"),
        (Pairs(lambda i: X[i]), "pairs"),
        (Pairs(lambda i: (X[i, : 1 + i % 2], 0)), "a Dataset needs"),
        (Pairs(lambda i: (object(), 0)), "a Dataset needs"),
        (Pairs(lambda i: (torch.randn(3), 0)), "switch random augmentation off"),
        (TensorDataset(X[:0], Y[:0]), "at least one"),
        (7, "got a int"),
    ],
    ids=[
        *("loader", "shuffled", "generator", "iterator", "stream", "empty", "fewer targets"),
        *("fewer inputs", "no inputs", "list", "one target", "numbers", "words", "nan", "inf"),
        *("dict", "target", "row", "nan Dataset", "triples", "no pairs", "ragged", "objects"),
        *("augmented", "empty Dataset", "int"),
    ],
)
def test_what_is_no_fixed_data_set_is_refused_in_one_line(source: Any, named: str) -> None:
    for pair in [(source, 1), ((X, Y), source)]:
        if pair[1] == 7:
            continue  # a size
        with pytest.raises(InputError, match=named) as caught:
            split(pair)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", range(6))
def test_a_flip_by_chance_is_refused_whatever_the_chance_gives(seed: int) -> None:
    coin = np.random.default_rng(seed)
    with pytest.raises(InputError, match="switch random augmentation off"):
        part(Pairs(lambda i: ((1 + X[i]) * int(coin.choice([-1, 1])), 0)))


@pytest.mark.parametrize(
    "source", [None, X, ((X, Y),), ((X, Y), (X, Y), (X, Y)), {"train": X}, TensorDataset(X, Y)]
)
def test_a_source_that_is_no_pair_is_refused(source: Any) -> None:
    with pytest.raises(InputError, match=r"data need \(train, test\), or \(all, size"):
        split(source)


@pytest.mark.parametrize("test", [6, (X, Y)], ids=["drawn", "given"])
@pytest.mark.parametrize("wanted", [0, -1, N + 1, 2.5])
def test_a_training_part_of_no_possible_size_is_refused(test: Any, wanted: int) -> None:
    with pytest.raises(InputError, match=f"at most 12 examples, got {wanted}"):
        split(((X, Y), test), train_examples=wanted)


def test_a_training_part_that_leaves_no_test_part_is_refused() -> None:
    with pytest.raises(InputError, match="test part needs at least one example, got 12 of 12"):
        split(((X, Y), N))
    assert size(split(((X, Y), N - 1)).test) == 1


@pytest.mark.parametrize("share", [-0.1, 1.0, 1.5, NAN])
def test_label_noise_outside_0_to_1_is_refused(share: float) -> None:
    with pytest.raises(InputError, match="label_noise needs to be at least 0 and below 1"):
        split(((X, Y), 6), label_noise=share)


def test_label_noise_needs_another_class() -> None:
    with pytest.raises(InputError, match="at least 2 classes, got 1"):
        split(((X, 0 * Y), 6), label_noise=0.5)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(InputError, match="seed"):
        split(((X, Y), 6), split_seed=-1)


def test_label_noise_moves_to_classes_that_there_are() -> None:
    targets = torch.tensor([-1, 1, 7] * 40)
    noisy = split(((torch.zeros(120, 1), targets), 60), label_noise=0.5, split_seed=3).train[1]
    assert set(noisy.tolist()) == {-1, 1, 7}


def test_label_noise_that_moves_no_label_is_refused() -> None:
    with pytest.raises(InputError, match=r"needs to move a label, got 0\.001 of 60"):
        split(((torch.zeros(120, 1), torch.arange(120) % 2), 60), label_noise=0.001)
