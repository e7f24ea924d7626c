"""Changes of the weights leave the function as it is, and move gradients by their transpose."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sharpness.curvature import Hessian
from sharpness.errors import InputError
from sharpness.invariances import function_changes, invariance
from sharpness.objective import Objective
from sharpness.optimizers import OPTIMIZERS
from sharpness.problem import objective_of
from sharpness.results import Solution
from sharpness.symmetries import SYMMETRIES, composed, filterwise, moved_optimizer
from sharpness.training import TrainConfig, train
from sharpness.vectors import flatten, unflatten

sys.path.insert(0, str(Path(__file__).parent))
from nets import NETS, posed

RESCALED = ["layer-wise scaling", "neuron-wise scaling", "permutation of neurons"]
FOUND = {
    "relu": [*RESCALED, "logit shift"],
    "batch norm": [*RESCALED, "filter scaling before BatchNorm", "logit shift"],
    "convolutions": [*RESCALED, "logit shift"],
    "tanh": ["permutation of neurons", "logit shift"],
    "attention": [*RESCALED, "GL(d_head) of attention", "orthogonal maps of heads", "logit shift"],
}


@pytest.mark.parametrize("net", NETS)
def test_symmetries_of_a_net_are_found_and_leave_its_function(net: str) -> None:
    f = posed(net)
    changes = function_changes(f, f.theta)
    assert list(changes) == FOUND[net]
    assert max(changes.values()) < 1e-13


@pytest.mark.parametrize("net", ["relu", "convolutions"])
def test_rescaling_by_powers_of_two_rounds_nothing(net: str) -> None:
    f = posed(net)
    changes = function_changes(f, f.theta)
    assert [changes[title] for title in RESCALED[:2]] == [0.0, 0.0]


def state_of(f: Objective) -> dict[str, Tensor]:
    own = {**dict(f.model.named_parameters()), **dict(f.model.named_buffers())}
    return {name: x.detach().clone() for name, x in own.items()}


@pytest.mark.parametrize("title", [*RESCALED, "filter scaling before BatchNorm"])
@pytest.mark.parametrize("net", ["relu", "batch norm"])
def test_gradients_move_as_the_state_of_an_optimizer_does(net: str, title: str) -> None:
    """Theta -> T theta takes the gradient to T^-T g, and its squares to those of that."""
    f = posed(net)
    state = state_of(f)
    parts = list(SYMMETRIES[title](f.model, 0))
    if not parts:
        assert net == "relu"
        return
    symmetry = composed(parts)
    after = symmetry(state)
    theta = flatten(after[name] for name in f.shapes)
    there = Solution(theta, {k: x for k, x in after.items() if k not in f.shapes})
    here = Solution(f.theta, {k: x for k, x in state.items() if k not in f.shapes})
    g, moved_g = f.gradient(here), f.gradient(there)
    parameters = {name: state[name] for name in f.shapes}
    for entry, power in (("exp_avg", 1), ("exp_avg_sq", 2)):
        before = unflatten(g**power, f.shapes)
        moved = moved_optimizer(symmetry, parameters, entry, before, "adam")
        assert torch.allclose(flatten(moved[k] for k in f.shapes), moved_g**power, rtol=1e-12)


def test_the_hessian_of_rescaled_weights_is_the_congruent_one() -> None:
    f = posed("relu")
    state = state_of(f)
    symmetry = composed(list(SYMMETRIES["neuron-wise scaling"](f.model, 0)))
    T = flatten(symmetry({k: torch.ones_like(x) for k, x in state.items()})[k] for k in f.shapes)
    H, there = Hessian(f), Hessian(f, f.theta * T)
    v = torch.randn(len(f.theta)).double()
    assert torch.allclose(there @ v, (H @ (v / T)) / T, rtol=1e-12, atol=1e-15)


def test_layers_that_the_function_does_not_compose_are_no_symmetry() -> None:
    """A residual connection goes around the second layer, though it is listed behind the first."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.relu, self.two = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.relu(self.one(x))
            return h + self.two(h)

    x = torch.randn(5, 4).double()
    f = Objective(Residual().double(), [(x, x)], nn.functional.mse_loss)
    assert function_changes(f, f.theta) == {}
    with pytest.raises(InputError, match="needs a model with layers that can be scaled"):
        invariance(f, only=["weight-norm"])


def test_filters_before_batch_norm_need_their_statistics_scaled_too() -> None:
    f = posed("batch norm")
    state = state_of(f)
    (part,) = filterwise(f.model, 0)
    after = part(state)
    factor = after["0.bias"] / state["0.bias"]
    assert torch.equal(after["1.running_mean"], factor * state["1.running_mean"])
    assert torch.equal(after["1.running_var"], factor**2 * state["1.running_var"])


def test_a_change_of_ones_own_must_leave_the_function() -> None:
    f = posed("relu")
    with pytest.raises(InputError, match="doubled, which moves outputs by"):
        invariance(
            f,
            only=["weight-norm"],
            changes={"doubled": lambda state: {"0.weight": 2 * state["0.weight"]}},
        )
    flipped = {"signs": lambda s: {"0.weight": s["0.weight"] * 1.0, "0.bias": s["0.bias"] * 1.0}}
    found = invariance(f, only=["weight-norm"], changes=flipped)
    assert found.symmetries[-1] == "signs"
    assert not found.moved[0, -1]
    assert float(found.change[0, -1]) == 0


def test_pieces_that_are_there_are_not_measured_again() -> None:
    f = posed("relu")
    pieces: dict[str, Tensor] = {}
    found = invariance(f, only=["weight-norm"], pieces=pieces)
    pieces["layer-wise scaling"] = torch.tensor([[7.0, 0.0, 1.0, 1.0]]).double()
    again = invariance(f, only=["weight-norm"], pieces=pieces)
    assert float(again.after[0, 0]) == 7
    assert float(found.after[0, 0]) != 7
    assert torch.equal(found.after[:, 1:], again.after[:, 1:])


def test_the_state_of_an_optimizer_is_changed_with_the_weights() -> None:
    """With Adam's second moments moved, (v + 0) D^2 stays what it was."""
    run = train(TrainConfig(batch_size=200, updates=3, dtype="float64", threads=1))
    f = objective_of(run)
    found = invariance(f, run, only=["weight-norm"])
    assert found.symmetries == FOUND["relu"]
    assert float(found.function_change.max()) < 1e-13


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd", "rmsprop", "adagrad"])
def test_the_moved_state_is_that_of_an_optimizer_that_met_the_moved_gradients(kind: str) -> None:
    """Of gradients g / D at weights D w, for a diagonal D, entry by entry as torch names them."""
    f = posed("relu")
    state = state_of(f)
    symmetry = composed(list(SYMMETRIES["neuron-wise scaling"](f.model, 0)))
    D = symmetry({name: torch.ones_like(x) for name, x in state.items()})
    momentum = 0.9 if kind in ("sgd", "rmsprop") else 0.0
    config = TrainConfig(optimizer=kind, learning_rate=0.01, momentum=momentum)

    def states(scales: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """The entries after some steps, by name and by parameter."""
        parameters = {name: nn.Parameter(state[name] * scales[name]) for name in f.shapes}
        optimizer = OPTIMIZERS[kind](list(parameters.values()), config)
        numbers = torch.Generator().manual_seed(0)
        for _ in range(4):
            for name, p in parameters.items():
                g = torch.randn(p.shape, generator=numbers).double()
                p.grad = (g + g.sign()) / scales[name]
            optimizer.step()
        entries = list(optimizer.state[next(iter(parameters.values()))])
        return {
            entry: {name: optimizer.state[p][entry] for name, p in parameters.items()}
            for entry in entries
            if entry != "step"
        }

    before = states({name: torch.ones_like(x) for name, x in state.items()})
    after = states(D)
    assert before
    for entry, known in before.items():
        moved = moved_optimizer(symmetry, state, entry, known, kind)
        for name in f.shapes:
            # Epsilon is no part of the law: 1e-8 beside gradients above 1.
            assert torch.allclose(moved[name], after[entry][name], rtol=1e-5), (entry, name)


def test_an_entry_of_a_state_that_is_not_known_is_left_out() -> None:
    f = posed("relu")
    state = state_of(f)
    symmetry = composed(list(SYMMETRIES["layer-wise scaling"](f.model, 0)))
    assert moved_optimizer(symmetry, state, "mystery", dict(state), "adam") == {}
