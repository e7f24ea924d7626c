"""Flips are exact, whole shifts are rolls with zeros, and what is drawn is a function of seeds."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sharpness.augmentation import KESKAR, augmented, epoch_of, settings
from sharpness.errors import InputError
from sharpness.training import TrainConfig, cpu_threads, train

EPS = 1e-12  # float64 roundings of a grid of some ten pixels


@pytest.fixture(autouse=True, scope="module")
def on_one_thread() -> Iterator[None]:
    with cpu_threads(1):  # the matrices are small
        yield


def images(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).random(shape))


def draws(*rows: tuple[float, float, float, float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


SHAPES = pytest.mark.parametrize("shape", [(5, 3, 6, 8), (5, 6, 8), (5, 64)], ids=str)


@SHAPES
def test_nothing_changes_at_strength_zero_or_in_the_middle_of_the_draws(
    shape: tuple[int, ...],
) -> None:
    x, any_draws = images(*shape), images(5, 4)
    assert torch.equal(augmented(x, any_draws, flip=False, rotate=0.0, translate=0.0), x)
    middle = torch.full((5, 4), 0.5, dtype=torch.float64)
    found = augmented(x, middle, flip=True, rotate=30.0, translate=0.3)
    assert (found - x).abs().max() < EPS


@SHAPES
def test_a_flip_is_exact_and_its_own_inverse(shape: tuple[int, ...]) -> None:
    x, coins = images(*shape), draws(*((c, 0.5, 0.5, 0.5) for c in (0.0, 0.49, 0.5, 0.51, 0.99)))
    once = augmented(x, coins, flip=True, rotate=0.0, translate=0.0)
    grid = (5, 8, 8) if len(shape) == 2 else shape
    assert torch.equal(once[:2].reshape(2, *grid[1:]), x[:2].reshape(2, *grid[1:]).flip(-1))
    assert torch.equal(once[2:], x[2:])
    assert torch.equal(augmented(once, coins, flip=True, rotate=0.0, translate=0.0), x)


@pytest.mark.parametrize("across", [-2, 0, 3])
@pytest.mark.parametrize("down", [-1, 0, 5])
def test_a_shift_by_whole_pixels_is_a_roll_with_zeros_from_the_border(
    across: int, down: int
) -> None:
    x = images(2, 3, 6, 8)
    wanted = torch.zeros_like(x)
    for i in range(6):
        for j in range(8):
            if 0 <= i - down < 6 and 0 <= j - across < 8:
                wanted[..., i, j] = x[..., i - down, j - across]
    one = (0.9, 0.5, (1 + across / 8) / 2, (1 + down / 6) / 2)  # of translate = 1, the whole size
    found = augmented(x, draws(one, one), flip=False, rotate=0.0, translate=1.0)
    assert (found - wanted).abs().max() < EPS


@pytest.mark.parametrize(("draw", "turns"), [(0.0, 1), (1.0, -1)])
def test_a_right_angle_turns_a_square_image_as_rot90_does(draw: float, turns: int) -> None:
    x = images(1, 2, 7, 7)
    found = augmented(x, draws((0.9, draw, 0.5, 0.5)), flip=False, rotate=90.0, translate=0.0)
    assert (found - torch.rot90(x, turns, (-2, -1))).abs().max() < EPS


def test_half_a_turn_flips_both_axes_also_of_images_that_are_no_squares() -> None:
    x = images(1, 2, 4, 9)
    found = augmented(x, draws((0.9, 1.0, 0.5, 0.5)), flip=False, rotate=180.0, translate=0.0)
    assert (found - x.flip(-1, -2)).abs().max() < EPS


def test_a_rotation_keeps_distances_in_pixels() -> None:
    # A bright spot 3 pixels right of the center of a wide image, turned by 90 degrees: 3 below.
    x = torch.zeros(1, 1, 9, 15, dtype=torch.float64)
    x[0, 0, 4, 10] = 1
    found = augmented(x, draws((0.9, 1.0, 0.5, 0.5)), flip=False, rotate=90.0, translate=0.0)
    assert (found[0, 0] > 1 - EPS).nonzero().tolist() == [[7, 7]]


def test_an_example_is_changed_alike_in_any_batch_and_otherwise_in_another_epoch() -> None:
    x = images(40, 1, 8, 8)
    change, again, other, seeded = (
        epoch_of(True, x, seed=seed, epoch=epoch)
        for seed, epoch in ((0, 3), (0, 3), (0, 4), (1, 3))
    )
    order = torch.randperm(40)
    whole = change(x, torch.arange(40))
    pieces = torch.cat([again(x[cut], cut) for cut in torch.split(order, 7)])
    assert (pieces - whole[order]).abs().max() < EPS
    for another in (other, seeded):
        differs = (another(x, torch.arange(40)) - whole).flatten(1).abs().amax(1) > 1e-3
        assert differs.all()


def test_draws_fill_their_ranges() -> None:
    # The second moments of a spot's place, moved by up to 0.25 of 33 pixels.
    x = torch.zeros(4000, 1, 33, 33, dtype=torch.float64)
    x[:, 0, 16, 16] = 1
    found = epoch_of({"translate": 0.25}, x, seed=0, epoch=0)(x, torch.arange(4000))[:, 0]
    line = torch.arange(33.0, dtype=torch.float64) - 16
    for places in (found.sum(1) @ line, found.sum(2) @ line):
        size = 0.25 * 33
        assert places.abs().max() <= size
        # Uniform: mean 0, variance size^2 / 3, whose own error is size^2 / 3 sqrt(0.8 / 4000).
        assert places.mean().abs() < 5 * size / (3 * 4000) ** 0.5
        assert abs(places.square().mean() - size**2 / 3) < 5 * size**2 / 3 * (0.8 / 4000) ** 0.5


def test_true_stands_for_the_changes_of_the_paper() -> None:
    assert settings(True, images(2, 64)) == KESKAR == {"flip": True, "rotate": 10, "translate": 0.2}


@pytest.mark.parametrize(
    "value",
    [
        *(False, None, 3, {}, [], {"flp": True}, {"flip": 1}, {"rotate": 181}, {"rotate": -1}),
        *({"translate": 1.1}, {"translate": True}, {"rotate": "10"}, {"translate": float("nan")}),
    ],
    ids=str,
)
def test_another_value_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match="augment needs true, or some of flip"):
        settings(value, images(2, 64))


@pytest.mark.parametrize(
    "inputs", [images(5, 3), images(5), torch.zeros(5, 64, dtype=torch.int64), (images(5, 64),)]
)
def test_inputs_that_are_no_images_are_refused(inputs: Any) -> None:
    with pytest.raises(InputError, match="augment needs images"):
        settings(True, inputs)


class Watching(nn.Module):
    """A linear network that keeps what it sees, in training and elsewhere."""

    seen: dict[bool, list[Tensor]]

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        type(self).seen[self.training].append(x.detach().clone())
        return self.map(x)


def test_training_sees_augmented_images_once_each_and_the_objective_never() -> None:
    Watching.seen = {True: [], False: []}
    config = TrainConfig(
        model=Watching, train_examples=50, batch_size=20, epochs=2, seed=5, threads=1
    )
    train(config)
    plain = Watching.seen
    Watching.seen = {True: [], False: []}
    train(replace(config, data_options={"augment": {"translate": 0.2}}))
    changed = Watching.seen
    known = {row.numpy().tobytes() for x in plain[False] for row in x}
    assert {row.numpy().tobytes() for x in changed[False] for row in x} == known
    assert [len(x) for x in changed[True]] == [20, 20, 10, 20, 20, 10]
    for epoch in range(2):
        whole = torch.cat(plain[True][3 * epoch : 3 * epoch + 3])
        # The same examples in the same order, each moved by what its number drew.
        rows = {row.numpy().tobytes() for row in whole}
        assert len(rows) == 50
        assert rows <= known
        seen = torch.cat(changed[True][3 * epoch : 3 * epoch + 3])
        assert ((seen - whole).abs().amax(dim=1) > 1e-3).all()
