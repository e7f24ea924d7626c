"""Directions have the norms, angles and spans that they promise."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sharpness.curvature import Hessian
from sharpness.directions import (
    NORMALIZATIONS,
    between,
    filter_normalized,
    gradient_direction,
    layer_normalized,
    make,
    orthogonalized,
    principal,
    projected,
    random_walk_shares,
    rescaled,
    through,
    unnormalized,
    weight_normalized,
)
from sharpness.errors import InputError
from sharpness.lanczos import eigsh
from sharpness.objective import Objective
from sharpness.problem import objective_of
from sharpness.results import Solution
from sharpness.training import TrainConfig, train
from sharpness.vectors import gaussian, unflatten

IMAGES, LABELS = torch.randn(6, 1, 8, 8), torch.arange(6) % 3


def convolutional(dtype: torch.dtype = torch.float64) -> Objective:
    """All roles: a convolution, BatchNorm, LayerNorm, a scalar, and biases."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.5))

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * x

    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 36, 5),
        nn.LayerNorm(5),
        Scaled(),
        nn.Linear(5, 3),
    ).to(dtype)
    return Objective(model, [(IMAGES.to(dtype), LABELS)], nn.functional.cross_entropy)


def blocks(f: Objective, row: Tensor) -> dict[str, Tensor]:
    return unflatten(row, f.shapes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_filter_has_the_norm_of_that_of_theta(dtype: torch.dtype) -> None:
    f = convolutional(dtype)
    point = 3 * f.theta
    rows = filter_normalized(f, 2, point=point)
    assert rows.dtype == dtype
    for row in rows:
        for name, d in blocks(f, row).items():
            w = blocks(f, point)[name]
            # A tensor of fewer than two axes has one filter for each entry.
            norms = [x.flatten(1).norm(dim=1) if x.ndim > 1 else x.abs() for x in (d, w)]
            torch.testing.assert_close(norms[0], norms[1])


def test_a_filter_keeps_the_direction_that_was_drawn() -> None:
    f = convolutional()
    raw, found = (
        blocks(f, g(f)[0])["0.weight"].flatten(1) for g in (unnormalized, filter_normalized)
    )
    torch.testing.assert_close(torch.cosine_similarity(raw, found), torch.ones(4).double())


def test_the_entries_of_biases_have_random_signs_of_their_own_in_each_direction() -> None:
    f = convolutional()
    one, other = (blocks(f, row)["4.bias"].sign() for row in filter_normalized(f, 2, seed=1))
    assert not torch.equal(one, other)
    assert not torch.equal(one, blocks(f, f.theta)["4.bias"].sign())


def test_each_layer_has_the_norm_of_that_of_theta() -> None:
    f = convolutional()
    for name, d in blocks(f, layer_normalized(f)[0]).items():
        torch.testing.assert_close(d.norm(), blocks(f, f.theta)[name].norm())


def test_weight_normalization_multiplies_by_the_size_of_each_entry() -> None:
    f = convolutional()
    assert torch.equal(weight_normalized(f, 2), unnormalized(f, 2) * f.theta.abs())


def test_raw_directions_are_the_seeded_vectors_of_the_library() -> None:
    f = convolutional(torch.float32)
    rows = unnormalized(f, 3, seed=7)
    for i, row in enumerate(rows):
        assert torch.equal(row, gaussian(len(f.theta), 7, i, like=f.theta))


@pytest.mark.parametrize("draw", NORMALIZATIONS.values(), ids=list(NORMALIZATIONS))
def test_the_same_seed_gives_the_same_rows_for_every_count(draw: Callable[..., Tensor]) -> None:
    f = convolutional()
    assert torch.equal(draw(f, 3, seed=1)[:2], draw(f, 2, seed=1))
    assert not torch.equal(draw(f, seed=1), draw(f, seed=2))
    assert not torch.equal(*draw(f, 2))


@pytest.mark.parametrize("draw", NORMALIZATIONS.values(), ids=list(NORMALIZATIONS))
@pytest.mark.parametrize(
    ("ignore", "still"),
    [
        ([], set()),
        (["norm"], {"1.weight", "1.bias", "5.weight", "5.bias"}),
        (["bias"], {"0.bias", "4.bias", "6.scale", "7.bias"}),
        (
            ["bias", "norm"],
            {"0.bias", "1.weight", "1.bias", "4.bias", "5.weight", "5.bias", "6.scale", "7.bias"},
        ),
    ],
)
def test_ignored_parameters_do_not_move_and_all_others_do(
    draw: Callable[..., Tensor], ignore: Sequence[str], still: set[str]
) -> None:
    f = convolutional()
    point = torch.ones_like(f.theta)  # a fresh BatchNorm has biases of 0, which stay anyway
    found = blocks(f, draw(f, point=point, ignore=ignore)[0])
    assert {name for name, d in found.items() if not d.any()} == still


def test_a_solution_is_a_point_as_its_theta_is() -> None:
    f = convolutional()
    rows = filter_normalized(f, point=2 * f.theta)
    assert torch.equal(rows, filter_normalized(f, point=Solution(2 * f.theta, {})))


def test_eigenvectors_stay_as_they_are_unless_rescaling_is_asked_for() -> None:
    f = convolutional()
    vectors = eigsh(Hessian(f), 2).vectors
    assert torch.equal(rescaled(f, vectors, "none"), vectors)
    scaled = blocks(f, rescaled(f, vectors, "filter")[1])["7.weight"]
    torch.testing.assert_close(scaled.norm(dim=1), blocks(f, f.theta)["7.weight"].norm(dim=1))


def test_a_filter_that_a_given_row_does_not_move_stays() -> None:
    f = convolutional()
    assert not rescaled(f, torch.zeros(1, len(f.theta)), "filter").any()


def test_a_filter_of_zeros_is_named() -> None:
    f = convolutional()
    theta = f.theta.clone()
    blocks(f, theta)["4.weight"][3] = 0
    with pytest.raises(InputError, match=r"filters other than 0, got 4\.weight\[3\]"):
        filter_normalized(f, point=theta)
    blocks(f, theta)["4.weight"][:] = 0
    with pytest.raises(InputError, match=r"layers other than 0, got 4\.weight"):
        layer_normalized(f, point=theta)


def test_orthogonalized_rows_span_the_same_and_keep_their_norms() -> None:
    rows = torch.randn(4, 50).double()
    rows[3] = rows[0] + rows[1] + 1e-6 * rows[3]  # almost dependent: once would not be enough
    found = orthogonalized(rows)
    assert torch.equal(found[0], rows[0])
    torch.testing.assert_close(found.norm(dim=1), rows.norm(dim=1))
    units = found / found.norm(dim=1, keepdim=True)
    assert float((units @ units.T - torch.eye(4)).abs().max()) < 1e-14
    assert torch.linalg.matrix_rank(torch.cat([rows, found]), rtol=1e-9) == 4


def test_rows_of_single_precision_are_orthogonal_to_1e_6() -> None:
    f = convolutional(torch.float32)
    rows = orthogonalized(filter_normalized(f, 2, ignore=("bias", "norm")))
    assert abs(float(torch.cosine_similarity(*rows.double(), dim=0))) < 1e-6


def test_dependent_rows_are_refused() -> None:
    rows = torch.randn(2, 9)
    with pytest.raises(InputError, match="independent, got row 2"):
        orthogonalized(torch.stack([*rows, rows[0] - 3 * rows[1]]))


def test_three_solutions_on_one_line_are_refused() -> None:
    a, b, c = 1e3 + torch.randn(3, 40)
    rows = through(a, Solution(b, {}), c)
    assert torch.equal(rows, torch.stack([b - a, c - a]))
    for third in (a + 0.3 * (b - a), a - 2 * (b - a), b, a):
        with pytest.raises(InputError, match="not on one line"):
            through(a, b, third)
    with pytest.raises(InputError, match="not on one line"):
        through(a, a, c)


def test_one_solution_twice_is_no_direction() -> None:
    a = torch.randn(3)
    assert torch.equal(between(a, -a), -2 * a[None])
    with pytest.raises(InputError, match="the same twice"):
        between(a, Solution(a.clone(), {}))
    with pytest.raises(InputError, match=r"\(3,\) and \(4,\)"):
        between(a, torch.zeros(4))


def test_the_gradient_is_a_unit_vector_along_which_the_loss_rises_as_its_norm() -> None:
    f = convolutional()
    (d,) = gradient_direction(f)
    slope = f.gradient(f.theta)
    torch.testing.assert_close(d @ slope, slope.norm())
    torch.testing.assert_close(d.norm(), torch.ones(()).double())


def test_a_gradient_of_zero_is_no_direction() -> None:
    f = Objective(nn.Linear(1, 1), [(torch.ones(1, 1),) * 2], lambda z, y: 0 * z.mean())
    with pytest.raises(InputError, match="other than 0"):
        gradient_direction(f)


def test_made_directions_are_what_their_record_says() -> None:
    f = convolutional()
    here = 2 * f.theta
    rows, record = make(f, "random", 2, point=here, ignore=["norm"], seed=3)
    assert torch.equal(rows, filter_normalized(f, 2, point=here, ignore=["norm"], seed=3))
    assert record == {
        "kind": "random",
        "count": 2,
        "normalization": "filter",
        "ignore": ["norm"],
        "seed": 3,
    }
    pairs = eigsh(Hessian(f, here), 2)
    rows, record = make(f, "eigenvectors", 2, point=here)
    assert torch.equal(rows, pairs.vectors)
    assert (record["normalization"], record["converged"]) == ("none", [True, True])
    rows, _ = make(f, "gradient", point=here, normalization="layer")
    wanted = rescaled(f, gradient_direction(f, here), "layer", point=here)
    assert torch.equal(rows, wanted)


def test_made_directions_are_orthogonal_where_that_is_asked_for() -> None:
    f = convolutional()
    rows, record = make(f, "random", 2, normalization="weight", orthogonal=True)
    assert record["orthogonal"]
    assert torch.equal(rows, orthogonalized(weight_normalized(f, 2)))
    assert abs(float(torch.cosine_similarity(*rows, dim=0))) < 1e-14


def test_unknown_kinds_and_more_than_one_gradient_are_refused() -> None:
    f = convolutional()
    with pytest.raises(InputError, match="random, eigenvectors, gradient, got 'newton'"):
        make(f, "newton")
    with pytest.raises(InputError, match="one direction, got a count of 2"):
        make(f, "gradient", 2)


def planted(points: int, sizes: Sequence[float] = (3.0, 1.0)) -> tuple[Tensor, Tensor, Tensor]:
    """Orthonormal axes (2, n), uncorrelated coordinates (points, 2), the points themselves."""
    axes = torch.linalg.qr(torch.randn(30, 2).double())[0].T
    t = 2 * torch.pi * torch.arange(points).double() / points
    x = torch.stack([t.cos(), t.sin()], dim=1) * torch.tensor(sizes).double()
    return axes, x, torch.randn(30).double() + x @ axes


def test_a_planted_plane_and_its_coordinates_are_recovered() -> None:
    axes, x, points = planted(12)
    found = principal(list(points), 2)
    cosines = (found.directions * axes).sum(dim=1)
    torch.testing.assert_close(cosines.abs(), torch.ones(2).double())
    torch.testing.assert_close(found.explained, torch.tensor([0.9, 0.1]).double())
    inside = projected(found.directions, points, points[-1])
    torch.testing.assert_close(inside.coordinates * cosines.sign(), x - x[-1])
    assert float(inside.distances.max()) < 1e-13


def test_principal_components_do_not_depend_on_where_the_trajectory_is() -> None:
    _, _, points = planted(9)
    one, other = principal(list(points)), principal(list(points + 100))
    torch.testing.assert_close(one.directions, other.directions)
    torch.testing.assert_close(one.explained, other.explained)


def test_single_precision_far_from_zero_recovers_the_plane() -> None:
    axes, _, points = planted(12)
    found = principal(list((points + 10).float()))
    assert found.directions.dtype == torch.float32
    cosines = (found.directions.double() * axes).sum(dim=1).abs()
    torch.testing.assert_close(cosines, torch.ones(2).double(), rtol=0, atol=1e-6)


def test_a_random_walk_has_the_shares_of_its_closed_form() -> None:
    p, n = 12, 20_000
    steps = np.random.default_rng(0).standard_normal((p - 1, n))
    walk = torch.from_numpy(np.concatenate([np.zeros((1, n)), steps]).cumsum(axis=0))
    found = principal(list(walk), p - 1)
    # A share of n-dimensional Gaussians scatters by about sqrt(2 / n) of itself.
    bound = 5 * math.sqrt(2 / n)
    torch.testing.assert_close(found.explained, found.random_walk, rtol=bound, atol=0)
    assert float(found.random_walk.sum()) == pytest.approx(1, rel=1e-14)


def test_the_shares_of_a_long_random_walk_fall_as_squares() -> None:
    k = torch.arange(1, 4).double()
    limit = 6 / (torch.pi * k).square()
    torch.testing.assert_close(random_walk_shares(10_000, 3), limit, rtol=1e-6, atol=0)


def test_a_run_gives_its_start_checkpoints_and_end() -> None:
    levels = [2.25, 2.2]
    run = train(TrainConfig(batch_size=100, updates=60, checkpoint_losses=levels, threads=1))
    assert run.start is not None
    points = [run.start, *run.checkpoints, run.end]
    one, other = principal(run), principal(points)
    assert torch.equal(one.directions, other.directions)
    assert torch.equal(one.random_walk, random_walk_shares(len(points), 2))
    f = objective_of(run)
    assert one.directions.shape == (2, len(f.theta))


def test_too_short_trajectories_are_refused() -> None:
    points = list(torch.randn(3, 5))
    with pytest.raises(InputError, match="trajectory of 1:"):
        principal(points[:1], 1)
    with pytest.raises(InputError, match="trajectory of 2:"):
        principal(points[:2], 2)
    with pytest.raises(InputError, match="count=0"):
        principal(points, 0)
    with pytest.raises(InputError, match="points that differ"):
        principal([torch.randn(1000, dtype=torch.float64)] * 7, 1)


def test_coordinates_on_oblique_axes_are_least_squares() -> None:
    axes, points, origin = torch.randn(2, 9), torch.randn(5, 9), torch.randn(9)
    axes[1] = 5 * axes[0] + axes[1]
    axes, points, origin = axes.double(), points.double(), origin.double()
    found = projected(axes, points, origin)
    want = torch.linalg.lstsq(axes.T, (points - origin).T).solution.T
    torch.testing.assert_close(found.coordinates, want)
    left = points - origin - found.coordinates @ axes
    torch.testing.assert_close(left @ axes.T, torch.zeros(5, 2).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(found.distances, left.norm(dim=1))


def test_points_of_the_plane_have_their_coordinates_and_no_distance() -> None:
    a, b, c = torch.randn(3, 20).double()
    found = projected(through(a, b, c), [a, Solution(b, {}), c], a)
    want = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]).double()
    torch.testing.assert_close(found.coordinates, want, atol=1e-14, rtol=0)
    assert float(found.distances.max()) < 1e-14


def test_impossible_requests_are_refused() -> None:
    f = convolutional()
    with pytest.raises(InputError, match="one of filter, layer, weight, none, got 'fliter'"):
        rescaled(f, f.theta[None], "fliter")
    for ignore in (["biasbn"], "bias"):
        with pytest.raises(InputError, match="ignore needs names of bias, norm"):
            filter_normalized(f, ignore=ignore)
    for count in (0, -1, 1.5):
        with pytest.raises(InputError, match="count of at least 1"):
            filter_normalized(f, count)
    for rows in (f.theta, f.theta[None, :-1], torch.zeros(0, len(f.theta))):
        with pytest.raises(InputError, match="need to be rows"):
            rescaled(f, rows, "none")
    with pytest.raises(InputError, match="need to be finite"):
        orthogonalized(torch.tensor([[1.0, torch.nan]]))
