"""On a plane, what is known in closed form is found in closed form."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sharpness as sh
from sharpness.directions import principal, random_walk_shares
from sharpness.errors import InputError
from sharpness.objective import Objective, accuracy
from sharpness.planes import convexity, plane
from sharpness.results import Plane, Solution
from sharpness.store import load, save

A, B = (torch.linspace(-1, 1, 5).double(), torch.linspace(-2, 3, 6).double())


def least_squares() -> tuple[Objective, Tensor, Tensor]:
    """An objective in float64, and its Hessian and center."""
    X, y = torch.randn(8, 5).double(), torch.randn(8, 1).double()
    model = nn.Linear(5, 1, bias=False).double()
    f = Objective(model, [(X[:4], y[:4]), (X[4:], y[4:])], nn.functional.mse_loss)
    return f, X, y


def first_output(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs[0, 0]


def second_output(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs[1, 0]


def seven(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.new_tensor(7.0)


def coordinates(**options: Any) -> Plane:
    """A plane over R^2 whose metrics are its coordinates and a constant."""
    model = nn.Linear(2, 1, bias=False).double()
    metrics = {"first": first_output, "second": second_output, "seven": seven}
    batches = [(torch.eye(2).double(), torch.zeros(2, 1).double())]
    f = Objective(model, batches, nn.functional.mse_loss, metrics=metrics)
    u, v = torch.eye(2).double()
    return plane(f, torch.zeros(2).double(), u, v, **{"alphas": A, "betas": B, **options})


def test_metrics_that_are_coordinates_are_the_grid_itself() -> None:
    found = coordinates()
    assert found.values["first"].shape == (5, 6)
    assert torch.equal(found.values["first"], A[:, None].expand(5, 6))
    assert torch.equal(found.values["second"], B.expand(5, 6))
    assert torch.equal(found.values["seven"], torch.full((5, 6), 7.0).double())


def test_from_two_to_three_are_two_to_three() -> None:
    grid = torch.tensor([2.0, 2.25, 2.5, 3.0]).double()
    found = coordinates(alphas=grid)
    assert found.values["first"][:, 0].tolist() == [2.0, 2.25, 2.5, 3.0]


@pytest.mark.parametrize("cosine", [0.0, 0.6])
def test_on_a_quadratic_a_plane_is_its_closed_form(cosine: float) -> None:
    f, X, y = least_squares()
    center, u, d = torch.randn(3, 5).double()
    d = d - (d @ u) / (u @ u) * u
    v = 3 * (cosine * u / u.norm() + math.sqrt(1 - cosine**2) * d / d.norm())
    found = plane(f, center, u, v, alphas=A, betas=B)
    for i, a in enumerate(A):
        for j, b in enumerate(B):
            want = (X @ (center + a * u + b * v)[:, None] - y).square().mean()
            assert float(found.values["loss"][i, j]) == pytest.approx(float(want), rel=1e-12)
    assert found.lengths.tolist() == pytest.approx([float(u.norm()), 3.0], rel=1e-12)
    assert found.cosine == pytest.approx(cosine, abs=1e-12)
    assert found.norm == pytest.approx(float(center.norm()), rel=1e-12)


def normalized(**options: Any) -> Objective:
    X, y = torch.randn(12, 3), torch.arange(12) % 2
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    batches = [(X[:8], y[:8]), (X[8:], y[8:])]
    return Objective(
        model,
        batches,
        nn.functional.cross_entropy,
        metrics={"accuracy": accuracy},
        statistics=[(5 * X, y)],
        **options,
    )


def pair(f: Objective) -> Tensor:
    return torch.randn(2, len(f.theta), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("policy", ["frozen", "batch", "reestimate"])
def test_the_center_has_exactly_what_evaluate_gives_there(policy: str) -> None:
    f, g = normalized(), normalized()
    center = Solution(f.theta, {"1.running_var": torch.full((4,), 2.0)})
    found = plane({"train": f, "test": g}, center, *pair(f), alphas=A, betas=B, batch_norm=policy)
    assert found.values.keys() == {"train_loss", "train_accuracy", "test_loss", "test_accuracy"}
    for name, objective in (("train", f), ("test", g)):
        for measure, value in objective.under(policy).evaluate(center).items():
            assert found.values[f"{name}_{measure}"][A == 0, B == 0] == value
    assert found.spec["batch_norm"] == policy
    assert found.spec["batch_norm_layers"] == 1


def test_every_point_is_what_evaluate_gives_there_under_the_policy() -> None:
    f = normalized()
    u, v = pair(f)
    found = plane(f, f.theta, u, v, alphas=A, betas=B, batch_norm="reestimate").values["loss"]
    for i, j in ((0, 0), (4, 5), (1, 3)):
        point = torch.add(torch.add(f.theta, u, alpha=float(A[i])), v, alpha=float(B[j]))
        assert found[i, j] == f.under("reestimate").value(point)


def test_a_point_that_is_not_finite_stays_one_and_its_neighbors_are_what_they_are() -> None:
    f, _, _ = least_squares()
    u, v = torch.eye(5).double()[:2]
    grid = torch.tensor([0.0, 1e200], dtype=torch.float64)
    found = plane(f, torch.zeros(5).double(), u, v, alphas=grid, betas=grid).values["loss"]
    assert torch.isfinite(found).tolist() == [[True, False], [False, False]]
    assert found[0, 0] == f.value(torch.zeros(5).double())


def test_an_interrupted_plane_continues_to_the_same_bytes(tmp_path: Path) -> None:
    f = normalized()
    others = {"solutions": {"b": -f.theta}, "path": {0: f.theta + 1, 7: f.theta}}
    options = {"alphas": A, "betas": B, "batch_norm": "batch", **others}
    save(tmp_path / "whole.h5", plane(f, f.theta, *pair(f), **options))
    pieces: dict[str, Tensor] = {}
    rounds = 0
    while True:

        def stop(done: int, total: int | None, state: str) -> None:
            assert total == 5 * 6 + 3
            if len(pieces) in (1, 13, 31):
                raise KeyboardInterrupt

        try:
            made = plane(f, f.theta, *pair(f), pieces=pieces, progress=stop, **options)
            break
        except KeyboardInterrupt:
            pieces[f"stopped {rounds}"] = torch.zeros(1)  # so that the next round goes on
            rounds += 1
    assert rounds == 3
    save(tmp_path / "made.h5", made)
    assert (tmp_path / "made.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_solutions_and_a_path_have_their_own_losses_and_their_distances() -> None:
    f, _, _ = least_squares()
    e = torch.eye(5).double()
    center = torch.randn(5).double()
    points = {0: center + e[2], 4: center + 2 * e[0] + e[1], 9: center}
    found = plane(
        f,
        center,
        2 * e[0],
        e[0] + e[1],
        alphas=A,
        betas=B,
        path=points,
        solutions={"far": center + 3 * e[1] - 4 * e[4]},
    )
    assert found.path_updates.tolist() == [0, 4, 9]
    torch.testing.assert_close(
        found.path, torch.tensor([[0, 0], [0.5, 1], [0, 0]]).double(), atol=1e-12, rtol=0
    )
    assert found.path_distances.tolist() == pytest.approx([1.0, 0.0, 0.0], abs=1e-12)
    want = [float(f.value(point)) for point in points.values()]
    assert found.path_values["path_loss"].tolist() == want
    assert found.solutions == ["far"]
    assert found.solution_points[0].tolist() == pytest.approx([-1.5, 3.0], abs=1e-12)
    assert found.solution_distances.tolist() == pytest.approx([4.0], rel=1e-12)
    assert found.solution_values["solution_loss"][0] == f.value(center + 3 * e[1] - 4 * e[4])


def test_the_variance_of_a_path_along_principal_axes_is_what_they_explain() -> None:
    f, _, _ = least_squares()
    points = list(torch.randn(6, 5).double().cumsum(dim=0))
    axes = principal(points)
    path = dict(enumerate(points))
    found = plane(f, points[-1], *axes.directions, alphas=A, betas=B, path=path)
    torch.testing.assert_close(found.explained, axes.explained)
    assert torch.equal(found.random_walk, random_walk_shares(6, 2))
    bare = plane(f, points[-1], *axes.directions, alphas=A, betas=B)
    assert bare.explained.isnan().all()
    assert bare.random_walk.isnan().all()
    assert len(bare.path) == len(bare.path_updates) == 0


def test_statistics_are_taken_anew_where_solutions_differ_in_them() -> None:
    f = normalized()
    other = Solution(-f.theta, {"1.running_mean": torch.ones(4)})
    options: dict[str, Any] = {"alphas": A, "betas": B}
    alone = plane(f, f.theta, *pair(f), **options)
    both = plane(f, f.at(f.theta), *pair(f), solutions={"b": other}, **options)
    assert (alone.spec["batch_norm"], both.spec["batch_norm"]) == ("frozen", "reestimate")
    assert both.solution_values["solution_loss"][0] == f.under("reestimate").value(other)
    for policy, words in (("frozen", "frozen needs the same"), ("interpolate", "for lines")):
        with pytest.raises(InputError, match=words):
            plane(
                f,
                f.at(f.theta),
                *pair(f),
                solutions={"b": other},
                batch_norm=policy,
                **options,
            )


@pytest.mark.parametrize("policy", ["batch", "reestimate", "frozen"])
def test_far_outside_no_variance_is_negative(policy: str) -> None:
    f = normalized()
    wide = torch.tensor([-50.0, 50.0])
    found = plane(f, f.theta, *pair(f), alphas=wide, betas=wide, batch_norm=policy)
    assert torch.isfinite(found.values["loss"]).all()


def change(**changes: Any) -> dict[str, Any]:
    f, _, _ = least_squares()
    e = torch.eye(5).double()
    return {
        "objectives": f,
        "center": f.theta,
        "u": e[0],
        "v": e[1],
        "alphas": A,
        "betas": B,
        **changes,
    }


E0 = torch.eye(5).double()[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"alphas": torch.zeros(1)}, "alphas need at least 2 points"),
        ({"betas": torch.tensor([1.0, 0.0])}, "betas need to ascend"),
        ({"alphas": torch.tensor([0.0, torch.nan])}, "alphas need to be finite"),
        ({"alphas": torch.arange(2000), "betas": torch.arange(501)}, "at most 1,000,000 points"),
        ({"u": torch.ones(4)}, r"\(5,\), got \(4,\) as u"),
        ({"center": torch.ones(4).double()}, r"\(4,\)"),
        ({"u": 0 * E0}, "no such u"),
        ({"v": torch.full((5,), torch.inf)}, "no such v"),
        ({"v": -3 * E0}, "two axes at an angle"),
        ({"v": E0 + 1e-12}, "two axes at an angle"),
        ({"axes": ("x", "x")}, "two names"),
        ({"batch_norm": "thawed"}, "thawed"),
    ],
)
def test_impossible_planes_are_refused_in_one_sentence(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as refused:
        plane(**change(**changes))
    assert "\n" not in str(refused.value)
    if "batch_norm" not in changes:
        options = change(**changes)
        with pytest.raises(InputError, match=words):
            convexity(options.pop("objectives"), **options)


def test_xarray_opens_a_plane_by_its_coordinates(tmp_path: Path) -> None:
    xarray = pytest.importorskip("xarray")
    f, _, _ = least_squares()
    e = torch.eye(5).double()
    bare = plane(f, f.theta, e[0], e[1], alphas=A, betas=B)
    full = plane(
        f, f.theta, e[0], e[1], alphas=A, betas=B, path={0: e[3], 5: f.theta}, solutions={"b": e[4]}
    )
    for name, found in (("bare", bare), ("full", full)):
        save(tmp_path / f"{name}.h5", found)
        for engine in ("h5netcdf", "netcdf4"):
            with xarray.open_dataset(tmp_path / f"{name}.h5", engine=engine) as there:
                assert there.loss.dims == ("alphas", "betas")
                assert float(there.loss.sel(alphas=0.5, betas=3.0)) == found.values["loss"][3, 5]
                assert there.axes.values.tolist() == ["u", "v"]
        again = load(tmp_path / f"{name}.h5")
        assert isinstance(again, Plane)
        assert torch.equal(again.path, found.path)
        assert again.solutions == found.solutions
    assert found.to_xarray().loss.dims == ("alphas", "betas")


def saddle(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean of x^2 y over outputs x, y: the Hessian [[2 y, 2 x], [2 x, 0]]."""
    x, y = outputs[:, 0], outputs[:, 1]
    return (x.square() * y).mean()


class Point(nn.Module):
    """Theta itself as outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(2).double())

    def forward(self, x: Tensor) -> Tensor:
        return self.place.expand(len(x), 2)


def test_extreme_eigenvalues_are_those_of_a_known_hessian() -> None:
    batches = [(torch.ones(2, 1).double(), torch.zeros(2))]
    f = Objective(Point(), batches, saddle)
    u, v = torch.eye(2).double()
    found = convexity(f, torch.zeros(2).double(), u, v, alphas=A, betas=B, tol=1e-8)
    x, y = torch.meshgrid(A, B, indexing="ij")
    root = (y.square() + 4 * x.square()).sqrt()
    torch.testing.assert_close(found.smallest, y - root, atol=1e-7, rtol=0)
    torch.testing.assert_close(found.largest, y + root, atol=1e-7, rtol=0)
    assert found.smallest_converged.all()
    assert found.largest_converged.all()
    assert (found.smallest_residuals < 1e-6).all()
    known = found.largest > 1e-6
    torch.testing.assert_close(found.ratio[known], ((y - root) / (y + root))[known])
    assert found.ratio[found.largest <= 0].isnan().all()


def test_along_a_row_a_search_begins_where_the_one_before_ended() -> None:
    X, y = torch.randn(300, 250).double(), torch.randn(300, 1).double()
    f = Objective(nn.Linear(250, 1, bias=False).double(), [(X, y)], nn.functional.mse_loss)
    u, v = torch.eye(250).double()[:2]
    two, six = (
        convexity(f, f.theta, u, v, alphas=torch.arange(2), betas=torch.arange(q)).products
        for q in (2, 6)
    )
    assert six < 2.7 * two  # of searches that know nothing, three times as many


def dense(f: Objective, theta: Tensor) -> Tensor:
    H = sh.Hessian(f, theta)
    return torch.stack([H @ row for row in torch.eye(len(theta))])


def test_a_map_that_was_stopped_continues_to_the_same_bytes(tmp_path: Path) -> None:
    X, y = torch.randn(9, 3), torch.arange(9) % 2
    model = nn.Sequential(nn.Linear(3, 80), nn.Tanh(), nn.Linear(80, 2))
    f = Objective(model, [(X, y)], nn.functional.cross_entropy)
    grid = torch.tensor([-1.0, 0.0, 1.0])
    directions = torch.randn(2, len(f.theta)) / 10
    pieces: dict[str, Tensor] = {}

    def stop(done: int, total: int | None, state: str) -> None:
        assert total == 9
        if done == 5:
            raise KeyboardInterrupt

    save(tmp_path / "whole.h5", convexity(f, f.theta, *directions, alphas=grid, betas=grid))
    with pytest.raises(KeyboardInterrupt):
        convexity(f, f.theta, *directions, alphas=grid, betas=grid, pieces=pieces, progress=stop)
    assert list(pieces) == ["row -1.0"]
    made = convexity(f, f.theta, *directions, alphas=grid, betas=grid, pieces=pieces)
    save(tmp_path / "made.h5", made)
    assert (tmp_path / "made.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    exact = torch.linalg.eigvalsh(dense(f, f.theta))
    assert float(made.largest[1, 1]) == pytest.approx(float(exact[-1]), rel=1e-3)
    assert float(made.smallest[1, 1]) == pytest.approx(float(exact[0]), abs=1e-3 * float(exact[-1]))


def test_a_map_has_no_numbers_where_the_loss_has_none() -> None:
    f, _, _ = least_squares()
    u, v = torch.eye(5).double()[:2]
    grid = torch.tensor([0.0, 1e200], dtype=torch.float64)
    found = convexity(f, torch.zeros(5).double(), u, v, alphas=grid, betas=grid)
    assert found.largest.isnan().tolist() == [[False, True], [True, True]]
    assert found.largest_converged.tolist() == [[True, False], [False, False]]
    assert found.ratio.isnan().tolist() == [[False, True], [True, True]]


def test_progress_tells_the_place_of_each_point_and_then_what_lies_beside() -> None:
    told: list[tuple[int, int | None, str]] = []
    f = Objective(nn.Linear(2, 1, bias=False), [(torch.eye(2), torch.zeros(2, 1))], nn.MSELoss())
    u, v = torch.eye(2)
    grid = {"alphas": torch.tensor([0.0, 1 / 3]), "betas": torch.tensor([-1.0, 0.0, 2.5])}
    others = {"other": torch.ones(2)}
    plane(f, torch.zeros(2), u, v, **grid, solutions=others, progress=lambda *x: told.append(x))
    assert [(done, total) for done, total, _ in told] == [(i, 7) for i in range(1, 8)]
    assert told[0][2] == "alpha 0, beta -1"
    assert told[5][2] == "alpha 0.333, beta 2.5"
    assert told[6][2] == "solution other"
