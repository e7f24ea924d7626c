"""A grid evaluates what ``evaluate`` evaluates, with less work and no more memory."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from sharpness import grid
from sharpness.errors import InputError
from sharpness.objective import Objective, accuracy
from sharpness.results import Solution

CROSS_ENTROPY = nn.functional.cross_entropy


class Tied(nn.Module):
    """Two layers of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).tanh())


class Sequence(nn.Module):
    """A recurrent layer, whose weights are kept in a list too."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.cell(x.view(-1, 2, 2).transpose(0, 1))
        return out[-1]


class Frozen(nn.Module):
    """A layer that is not trained, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.one.requires_grad_(False)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).relu()) * self.scale


MODELS: dict[str, Callable[[], nn.Module]] = {
    "dense": lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)),
    "tied": Tied,
    "recurrent": Sequence,
    "frozen": Frozen,
    "normalized": lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 4)),
    "attention": lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
    "spectral": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
    "half": lambda: nn.Linear(4, 4).to(torch.bfloat16),
}


def objective(model: nn.Module, **options: Any) -> Objective:
    X, y = torch.randn(11, 4), torch.arange(11) % 4
    batches = [(X[:6], y[:6]), (X[6:], y[6:])]
    metrics = {"accuracy": accuracy}
    return Objective(model, batches, CROSS_ENTROPY, metrics=metrics, statistics=batches, **options)


def at(f: Objective, points: Tensor, **options: Any) -> dict[str, Tensor]:
    """What a grid finds at thetas, the rows of points."""
    names = [str(i) for i in range(len(points))]
    base = f.at(f.theta)
    return grid.evaluated(
        {"": f}, base, names, lambda i, theta: theta.copy_(points[i]) is None or {}, **options
    )


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("policy", ["frozen", "batch", "reestimate"])
def test_a_point_has_exactly_what_evaluate_gives_there(kind: str, policy: str) -> None:
    f = objective(MODELS[kind](), batch_norm=policy)
    f.gradient(f.theta)  # with derivatives first: nothing of them stays behind
    points = f.theta + torch.randn(3, len(f.theta))
    found = at(f, points)
    for i, point in enumerate(points):
        for name, value in f.evaluate(point).items():
            assert found[name][i] == value
    assert len(set(found["loss"].tolist())) == 3


def test_the_buffers_of_the_base_and_of_a_point_are_those_of_their_points() -> None:
    f = objective(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    one = {"1.running_mean": torch.arange(4.0), "1.running_var": torch.full((4,), 2.0)}
    other = {"1.running_mean": -torch.arange(4.0), "1.running_var": torch.full((4,), 3.0)}
    found = grid.evaluated(
        {"": f}, Solution(f.theta, one), ["a", "b"], lambda i, theta: other if i else {}
    )["loss"]
    assert found[0] == f.value(Solution(f.theta, one))
    assert found[1] == f.value(Solution(f.theta, other))
    assert found[0] != found[1]


def test_neither_the_objective_nor_the_users_model_changes() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    before = {name: x.clone() for name, x in model.state_dict().items()}
    f = objective(model)
    loss = f.value(f.theta)
    base = f.at(f.theta)
    at(f, torch.randn(2, len(f.theta)))
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(base.theta, f.theta)
    assert f.value(f.theta) == loss


def test_a_derivative_can_be_taken_while_a_grid_is_there() -> None:
    f = objective(MODELS["dense"]())
    placed = f.placed(Solution(f.theta.clone(), {}))
    assert torch.equal(placed.gradient(placed.theta), f.gradient(f.theta))


def test_weights_of_examples_weigh_at_every_point() -> None:
    X, y, w = torch.randn(6, 4), torch.arange(6) % 4, torch.rand(6)
    batches = [(X[:4], y[:4], w[:4]), (X[4:], y[4:], w[4:])]
    loss = nn.CrossEntropyLoss(reduction="none")
    f = Objective(nn.Linear(4, 4), batches, loss, reduction="none", metrics={"hit": accuracy})
    points = torch.randn(2, 20)
    found = at(f, points)
    for i, point in enumerate(points):
        assert {name: float(x[i]) for name, x in found.items()} == f.evaluate(point)
        z = torch.nn.functional.linear(X, point[:16].view(4, 4), point[16:])
        want = float((w * loss(z, y)).sum() / w.sum())
        assert float(found["loss"][i]) == pytest.approx(want, rel=1e-6)


class Reader:
    """Batches that are read from somewhere, once for each pass."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        self.batches, self.passes = batches, 0

    def __iter__(self) -> Any:
        self.passes += 1
        yield from ((x.clone(), y.clone()) for x, y in self.batches)


def test_the_data_are_read_once_whatever_the_number_of_points() -> None:
    X, y = torch.randn(6, 4), torch.arange(6) % 4
    passes = []
    for count in (2, 9):
        reader = Reader([(X[:4], y[:4]), (X[4:], y[4:])])
        f = Objective(nn.Linear(4, 4), reader, CROSS_ENTROPY)
        at(f, torch.randn(count, 20))
        passes.append(reader.passes)
    assert passes == [2, 2]  # and once before, a look at whether they stay the same


def test_data_beyond_the_memory_for_them_are_read_at_every_point() -> None:
    X, y = torch.randn(6, 4), torch.arange(6) % 4
    reader = Reader([(X[:4], y[:4]), (X[4:], y[4:])])
    f = Objective(nn.Linear(4, 4), reader, CROSS_ENTROPY, memory=2 * X.nbytes)  # no room for y
    f.value(f.theta)  # has its look
    reader.passes = 0
    points = torch.randn(3, 20)
    found = at(f, points)
    assert reader.passes == 1 + 3
    assert [f.value(point) for point in points] == found["loss"].tolist()


def test_batches_that_shuffle_themselves_are_refused_before_they_are_kept() -> None:
    class Shuffled(Reader):
        def __iter__(self) -> Any:
            order = torch.randperm(6)
            yield X[order], y[order]

    X, y = torch.randn(6, 4), torch.arange(6)
    f = Objective(nn.Linear(4, 6), Shuffled([]), CROSS_ENTROPY)
    with pytest.raises(InputError, match="differs at a second look"):
        at(f, torch.randn(2, len(f.theta)))


def test_a_loader_gives_what_a_list_gives() -> None:
    X, y = torch.randn(10, 4), torch.arange(10) % 4
    loader = DataLoader(TensorDataset(X, y), batch_size=4)
    model, points = nn.Linear(4, 4), torch.randn(2, 20)
    one, other = (
        at(Objective(model, batches, CROSS_ENTROPY), points)["loss"]
        for batches in (loader, list(zip(X.split(4), y.split(4), strict=True)))
    )
    assert torch.equal(one, other)


def test_memory_does_not_grow_with_the_number_of_points() -> None:
    f = Objective(nn.Linear(4, 4), [(torch.ones(4, 4), torch.arange(4))], CROSS_ENTROPY)
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def write(i: int, theta: Tensor) -> dict[str, Tensor]:
        nonlocal most
        gc.collect()
        most = max(most, sum(issubclass(type(x), Tensor) for x in gc.get_objects()))
        alive.append(weakref.ref(theta))
        theta.fill_(i)
        return {}

    counts = []
    for points in (3, 60):
        most = 0
        grid.evaluated({"": f}, f.at(f.theta), [str(i) for i in range(points)], write)
        counts.append(most)
    assert counts[0] == counts[1]
    gc.collect()
    assert not any(ref() is not None for ref in alive)


def test_a_point_allocates_less_than_one_theta() -> None:
    f = Objective(
        nn.Linear(1000, 100), [(torch.ones(1, 1000), torch.zeros(1).long())], CROSS_ENTROPY
    )
    direction = torch.randn_like(f.theta)
    made: list[Tensor] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.numel() >= len(f.theta):
                made.append(out)
            return out

    def write(i: int, theta: Tensor) -> dict[str, Tensor]:
        torch.add(f.theta, direction, alpha=float(i), out=theta)
        return {}

    def storages(points: int) -> int:
        made.clear()
        with Watch():
            grid.evaluated({"": f}, f.at(f.theta), [str(i) for i in range(points)], write)
        return len({x.untyped_storage().data_ptr() for x in made})

    assert storages(2) == storages(20)


def test_pieces_are_not_computed_again_and_progress_counts_all() -> None:
    f = objective(MODELS["dense"]())
    points = torch.randn(4, len(f.theta))
    pieces: dict[str, Tensor] = {}
    told: list[tuple[int, int | None, str]] = []
    whole = at(f, points, pieces=pieces, progress=lambda *x: told.append(x))
    assert told == [(1, 4, "0"), (2, 4, "1"), (3, 4, "2"), (4, 4, "3")]
    pieces[" 2"] = torch.tensor([7.0, 0.5])
    again = at(f, torch.full_like(points, torch.nan), pieces=pieces)
    assert again["loss"].tolist() == [*whole["loss"][:2].tolist(), 7.0, float(whole["loss"][3])]


def test_objectives_of_two_precisions_are_refused() -> None:
    f, g = objective(nn.Linear(4, 4)), objective(nn.Linear(4, 4).double())
    with pytest.raises(InputError, match="one dtype"):
        grid.evaluated({"train": f, "test": g}, f.at(f.theta), ["0"], lambda i, theta: {})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([1.0], "at least 2 points"),
        ([[0.0, 1.0]], "at least 2 points"),
        ([0.0, torch.inf], "finite"),
        ([0.0, 1.0, 1.0], "got 1 before 1"),
        ([0.0, 2.0, 1.0], "got 2 before 1"),
    ],
)
def test_an_axis_ascends_over_two_finite_points(values: list[Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        grid.require_axis("alphas", torch.tensor(values))


def test_a_bare_theta_takes_the_first_buffers_that_are_given() -> None:
    f = objective(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    mean = torch.arange(4.0)
    bare, known = grid.joined("it", [f.theta, Solution(f.theta, {"1.running_mean": mean})], f)
    assert torch.equal(bare.buffers["1.running_mean"], mean)
    assert bare.buffers.keys() == known.buffers.keys()


def test_points_of_other_shapes_and_other_buffers_are_refused() -> None:
    f = objective(Frozen())
    with pytest.raises(InputError, match=r"\(20,\) and \(3,\)"):
        grid.joined("it", [f.theta, f.theta, torch.zeros(3)], f)
    two = [Solution(f.theta, {"scale": torch.tensor(x)}) for x in (2.0, 3.0)]
    with pytest.raises(InputError, match="two of scale"):
        grid.joined("it", two, f)
