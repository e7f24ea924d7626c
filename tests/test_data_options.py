"""Options that every data set has: classes, a validation part, random labels, standard inputs."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sharpness.data import Part, Split, digits, is_labels, part, size, split, take, tensors
from sharpness.errors import InputError
from sharpness.problem import objective_of, read, solution
from sharpness.results import Run
from sharpness.store import load_as, save
from sharpness.training import TrainConfig, cpu_threads, record, train

SMALL = TrainConfig(model_options={"widths": [4]}, batch_size=100, updates=4, threads=1)


@pytest.fixture(autouse=True, scope="module")
def on_one_thread() -> Iterator[None]:
    with cpu_threads(1):
        yield


def same(a: Part, b: Part) -> bool:
    return all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))


def made(source: Any = None, **options: Any) -> Split:
    return split(source or digits(), options=options)


def require_taken(parts: Split, whole: Part, labels: list[int]) -> None:
    """Require that each part has the examples of its numbers, with the classes counted anew."""
    new = torch.full((10,), -1)
    new[torch.tensor(labels)] = torch.arange(len(labels))
    for found, index in ((parts.train, parts.train_index), (parts.test, parts.test_index)):
        inputs, targets = take(whole, index)
        assert same(found, (inputs, new[targets]))


def test_chosen_classes_are_counted_anew_and_known_by_their_place_in_the_source() -> None:
    whole, _ = digits()
    counts = torch.bincount(whole[1])
    for chosen, labels in ((2, [0, 1]), ([7, 2, 9], [7, 2, 9]), ([5], [5]), (10, list(range(10)))):
        parts = made(classes=chosen)
        require_taken(parts, whole, labels)
        of_these = int(counts[labels].sum())
        assert size(parts.train) + size(parts.test) == of_these
        assert size(parts.train) == round(600 * of_these / 1797)
    assert same(made(classes=10).train, made().train)


def test_chosen_classes_are_taken_from_a_test_part_of_its_own_too() -> None:
    (inputs, targets), _ = digits()
    source = ((inputs[:900], targets[:900]), (inputs[900:], targets[900:]))
    parts = split(source, train_examples=40, options={"classes": [3, 4]})
    assert parts.train[1].bincount().tolist() == [20, 20]
    assert same(parts.train, (inputs[parts.train_index], targets[parts.train_index] - 3))
    here = inputs[900:][parts.test_index], targets[900:][parts.test_index] - 3
    assert same(parts.test, here)
    assert size(parts.test) == int(((targets[900:] == 3) | (targets[900:] == 4)).sum())


@pytest.mark.parametrize("wanted", [100, 0.25, 1, 599])
def test_a_validation_part_is_a_stratified_share_of_the_training_part(wanted: float) -> None:
    plain, parts = made(), made(validation=wanted)
    assert parts.validation is not None
    assert parts.validation_index is not None
    count = wanted if isinstance(wanted, int) else round(wanted * 600)
    assert size(parts.validation) == count
    both = torch.cat([parts.train_index, parts.validation_index])
    assert torch.equal(both.sort().values, plain.train_index)
    assert same(parts.test, plain.test)
    whole, _ = digits()
    assert same(parts.validation, take(whole, parts.validation_index))
    assert same(parts.train, take(whole, parts.train_index))
    shares = plain.train[1].bincount().double() * count / 600
    found = parts.validation[1].bincount(minlength=10)
    assert ((found - shares).abs() < 1).all()


def test_a_validation_part_is_a_function_of_the_seed_and_another_draw_than_the_sample() -> None:
    first, again, other = (
        split(digits(), split_seed=seed, options={"validation": 300}).validation_index
        for seed in (0, 0, 1)
    )
    assert first is not None
    assert again is not None
    assert other is not None
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    # Were it drawn from the stream of the sample, both would be one set.
    sample = split((digits()[0], digits()[0]), train_examples=300).train_index
    whole = split((digits()[0], digits()[0]), options={"validation": 300}).validation_index
    assert whole is not None
    assert not torch.equal(whole, sample)


def test_labels_change_in_what_is_left_for_training_and_nowhere_else() -> None:
    clean = made(validation=100)
    noisy = split(digits(), label_noise=0.5, options={"validation": 100})
    random = made(validation=100, random_labels=1)
    assert (noisy.train[1] != clean.train[1]).sum() == 250
    for parts in (noisy, random):
        assert parts.validation is not None
        assert clean.validation is not None
        assert same(parts.validation, clean.validation)
        assert same(parts.test, clean.test)
        assert torch.equal(parts.train[0], clean.train[0])


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_random_labels_are_uniform_over_the_classes_and_their_share_is_exact(share: float) -> None:
    targets = torch.arange(10).repeat(2000)
    source = ((targets[:, None].float(), targets), (targets[:, None].float(), targets))
    drawn = split(source, options={"random_labels": share}).train[1]
    moved = (drawn != targets).sum().item()
    count = round(share * 20000)
    # A label stays with probability 1/10; five standard deviations.
    assert abs(moved - 0.9 * count) < 5 * (count * 0.09) ** 0.5
    assert moved <= count
    per_class = drawn.bincount(minlength=10)
    assert (per_class - 2000).abs().max() < 5 * (2000 * 0.9) ** 0.5
    again, other = (
        split(source, split_seed=seed, options={"random_labels": share}).train[1] for seed in (0, 1)
    )
    assert torch.equal(again, drawn)
    assert not torch.equal(other, drawn)


def images() -> Any:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((50, 3, 4, 5)) * 7 + 100)
    x[:, 1, 2, 3] = 0.1  # a place that is constant
    return (x, torch.arange(50) % 2), 30


@pytest.mark.parametrize(("by", "axes"), [("pixel", (0,)), ("channel", (0, 2, 3))])
def test_standard_inputs_have_mean_0_and_variance_1_over_the_training_part(
    by: str, axes: tuple[int, ...]
) -> None:
    plain, parts = made(images()), made(images(), standardize=by)
    inputs = parts.train[0]
    assert inputs.mean(axes).abs().max() < 1e-13
    variances = inputs.square().mean(axes)
    constant = torch.zeros_like(variances, dtype=torch.bool)
    if by == "pixel":
        constant[1, 2, 3] = True
    assert (variances[~constant] - 1).abs().max() < 1e-12
    assert (inputs.square().mean(axes)[constant] < 1e-30).all()  # roundings of 0.1
    # One map for all parts: the test part by the numbers of the training part.
    mean = plain.train[0].mean(axes, keepdim=True)
    deviation = plain.train[0].std(axes, unbiased=False, keepdim=True)
    deviation[deviation < 1e-12] = 1
    assert (parts.test[0] - (plain.test[0] - mean) / deviation).abs().max() < 1e-12


def test_statistics_are_those_of_training_without_validation() -> None:
    parts = made(images(), validation=10, standardize="pixel")
    assert parts.validation is not None
    assert parts.train[0].mean(0).abs().max() < 1e-13
    assert parts.validation[0].mean(0).abs().max() > 1e-3


def test_inputs_without_channels_share_one_mean() -> None:
    inputs = made(standardize="channel").train[0]
    assert abs(inputs.double().mean()) < 1e-6  # float32
    assert abs(inputs.double().square().mean() - 1) < 1e-6
    assert inputs.mean(0).abs().max() > 0.1


X, Y = torch.arange(36.0).reshape(12, 3), torch.arange(12) % 3
REAL = ((X, X), 6)


@pytest.mark.parametrize(
    ("source", "options", "named"),
    [
        (None, {"classes": 11}, "classes needs to be a number of 1 to 10.*got 11"),
        (None, {"classes": 0}, "classes needs .*got 0"),
        (None, {"classes": True}, "classes needs .*got True"),
        (None, {"classes": [1, 1]}, r"each once, got \[1, 1\]"),
        (None, {"classes": [1, 12]}, r"some of 0, 1, .*got \[1, 12\]"),
        (None, {"classes": []}, "classes needs"),
        (None, {"classes": "two"}, "classes needs .*got two"),
        (REAL, {"classes": 2}, "classes needs classes as targets, got torch.float32"),
        (None, {"validation": 600}, "number of 1 to 599 examples .*got 600"),
        (None, {"validation": 1.0}, "validation needs a share .*got 1.0"),
        (None, {"validation": 0}, "validation needs"),
        (None, {"validation": -0.5}, "validation needs"),
        (None, {"validation": 1e-9}, "validation needs"),
        (None, {"validation": float("nan")}, "validation needs"),
        (None, {"validation": "half"}, "validation needs .*got half"),
        (None, {"random_labels": 0}, "random_labels needs a share above 0"),
        (None, {"random_labels": 1.1}, "random_labels needs a share"),
        (None, {"random_labels": 1e-9}, "draws a label of 600"),
        (None, {"random_labels": True}, "random_labels needs a share"),
        (REAL, {"random_labels": 1}, "random_labels needs classes as targets"),
        (None, {"standardize": "all"}, "standardize needs pixel or channel, got all"),
        (((Y, Y), 6), {"standardize": "pixel"}, "inputs of real numbers, got torch.int64"),
        ((((X, X), Y), 6), {"standardize": "pixel"}, "real numbers, got a tuple"),
        (None, {"augment": 3}, "augment needs true"),
        (((X, Y), 6), {"augment": True}, "augment needs images"),
    ],
)
def test_an_option_that_cannot_be_met_is_told_in_one_line(
    source: Any, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=named) as caught:
        made(source, **options)
    assert "\n" not in str(caught.value)


def test_random_labels_and_moved_labels_are_not_mixed() -> None:
    with pytest.raises(InputError, match=r"random_labels need no label_noise, got 0\.1"):
        split(digits(), label_noise=0.1, options={"random_labels": 1})


class Table:
    """What a table of Hugging Face's does: rows are dicts, columns are lists."""

    def __init__(self, **columns: Any) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, i: int | str | slice) -> Any:
        if isinstance(i, str):
            return self.columns[i]
        return {name: column[i] for name, column in self.columns.items()}


PIXELS = np.random.default_rng(0).integers(0, 256, (6, 4, 5), dtype=np.uint8)
COLORS = np.random.default_rng(1).integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)
LABELS = [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("image", ["image", "img", "pixel_values"])
@pytest.mark.parametrize("label", ["label", "labels", "fine_label"])
def test_rows_with_a_picture_and_a_label_are_pairs(image: str, label: str) -> None:
    for array in (PIXELS, COLORS):
        columns = {image: [Image.fromarray(x) for x in array], label: LABELS, "id": list("abcdef")}
        inputs, targets = part(Table(**columns))
        by_channel = array[:, None] if array.ndim == 3 else array.transpose(0, 3, 1, 2)
        # To the rounding of float32: pixels of 0 to 255 are divided by 255.
        assert np.abs(inputs.double().numpy() - by_channel / 255).max() < 2**-24
        assert targets.tolist() == LABELS


def test_rows_of_numbers_are_inputs_by_their_names() -> None:
    tokens, mask = torch.arange(24).reshape(6, 4), torch.ones(6, 4)
    table = Table(input_ids=tokens.tolist(), attention_mask=mask.tolist(), label=LABELS)
    inputs, targets = part(table)
    assert torch.equal(inputs["input_ids"], tokens)
    assert torch.equal(inputs["attention_mask"].float(), mask)
    assert targets.tolist() == LABELS
    inputs, _ = part(Table(features=X[:6].tolist(), label=LABELS))
    assert torch.equal(inputs.float(), X[:6])


def test_pairs_of_a_picture_and_a_number_are_read_as_torchvision_gives_them() -> None:
    pictures = [Image.fromarray(x) for x in COLORS]
    inputs, targets = part(Table(pairs=list(zip(pictures, LABELS, strict=True))).columns["pairs"])
    assert np.abs(inputs.numpy() - COLORS.transpose(0, 3, 1, 2) / 255).max() < 2**-24
    assert is_labels(targets)


def test_a_dict_of_both_parts_is_a_source() -> None:
    tables = {
        "train": Table(image=[Image.fromarray(x) for x in PIXELS], label=LABELS),
        "test": Table(image=[Image.fromarray(x) for x in PIXELS[:2]], label=LABELS[:2]),
        "unsupervised": None,
    }
    parts = split(tables)
    assert (size(parts.train), size(parts.test)) == (6, 2)
    assert same(parts.test, take(parts.train, torch.arange(2)))


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"image": [Image.fromarray(PIXELS[0])] * 2}, "dicts with one of label, .*got a dict"),
        ({"label": [1, 2]}, "got a dict"),
        (
            {"image": [Image.fromarray(x.astype(np.int32)) for x in PIXELS], "label": LABELS},
            "pixels of one byte, got an array of int32",
        ),
        ({"words": list("ab"), "label": [0, 1]}, "tensors or arrays, got a"),
    ],
)
def test_rows_of_other_things_are_refused(columns: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        part(Table(**columns))


def test_a_run_knows_its_validation_part_and_gives_its_loss(tmp_path: Path) -> None:
    run = train(replace(SMALL, data_options={"validation": 0.25, "classes": 3}))
    save(tmp_path / "sb.h5", run)
    again = load_as(tmp_path / "sb.h5", Run)
    parts = split(digits(), options={"validation": 0.25, "classes": 3})
    assert parts.validation is not None
    inputs, targets = parts.validation
    f = objective_of(again, split="validation", dtype="float64")
    point = f.at(again.end)
    outputs = f.outputs(point.theta.double(), inputs.double())
    wanted = torch.nn.functional.cross_entropy(outputs, targets)
    assert torch.allclose(f.value(point), wanted, rtol=1e-12)
    assert run.spec["data"]["validation_examples"] == size(parts.validation)
    assert f.spec["data_sha256"] == run.spec["data"]["validation_sha256"]
    assert again.train_index.tolist() == parts.train_index.tolist()
    assert outputs.shape[1] == 3


def test_a_run_without_a_validation_part_says_how_to_get_one() -> None:
    run = train(SMALL)
    with pytest.raises(InputError, match=r"train or test, got 'validation'.*data_options valid"):
        objective_of(run, split="validation")
    with pytest.raises(InputError, match=r"train or test, got 'all': choose one of them$"):
        objective_of(run, split="all")


def test_options_at_their_default_leave_records_as_they_were() -> None:
    assert "data_options" not in record(SMALL)
    assert record(replace(SMALL, data_options={"classes": 2}))["data_options"] == {"classes": 2}
    run = train(SMALL)
    assert list(run.spec["data"]) == [
        *("train_sha256", "test_sha256", "train_examples", "test_examples"),
    ]


def test_a_checkpoint_is_read_with_the_options_of_its_training(tmp_path: Path) -> None:
    options = {"classes": 2, "validation": 10}
    run = train(replace(SMALL, data_options=options))
    model = torch.nn.Sequential(torch.nn.Linear(64, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    torch.nn.utils.vector_to_parameters(run.end.theta, model.parameters())
    assert torch.equal(solution(model).theta, run.end.theta)
    torch.save(model.state_dict(), tmp_path / "mine.pt")
    mine = read(
        tmp_path / "mine.pt",
        model="mlp",
        data="digits",
        loss="cross_entropy",
        model_options={"widths": [4]},
        data_options=options,
    )
    assert mine.spec["data"] == run.spec["data"]
    for name in ("train", "validation"):
        values: list[Tensor] = [objective_of(x, split=name).value(x.end) for x in (mine, run)]
        assert torch.equal(*values)


def test_data_in_a_file_may_lie_elsewhere_if_they_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (inputs, targets), _ = digits()
    np.savez("mine.npz", x=inputs[:200], y=targets[:200])
    run = train(replace(SMALL, data="mine.npz"))
    before = objective_of(run).value(run.end)
    Path("elsewhere").mkdir()
    Path("mine.npz").rename("elsewhere/moved.npz")
    with pytest.raises(InputError, match=r"mine\.npz needs to be a file that is there"):
        objective_of(run)
    assert objective_of(run, data="elsewhere/moved.npz").value(run.end) == before
    np.savez("mine.npz", x=inputs[:200], y=targets[1:201])
    with pytest.raises(InputError, match="need to be those of the run"):
        objective_of(run)
    with pytest.raises(InputError, match=r"made with the data mine\.npz, got digits"):
        objective_of(run, data="digits")
