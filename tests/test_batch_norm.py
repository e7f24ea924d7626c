"""What BatchNorm does where the loss is evaluated, against evaluations written by hand."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import hessian
from torch.multiprocessing.spawn import spawn

import sharpness as sh
from sharpness.batch_norm import BATCH_NORM, mixed_variance
from sharpness.box_sharpness import epsilon_sharpness
from sharpness.curvature import GaussNewton, Hessian
from sharpness.errors import ComputationError, InputError
from sharpness.landscape import line
from sharpness.objective import Batches, Objective
from sharpness.problem import objective_of, solution
from sharpness.results import Line, Run, Solution
from sharpness.store import load_as, request_of
from sharpness.training import TrainConfig, train

ALPHAS = torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0], dtype=torch.float64)
EPS = 1e-5  # of BatchNorm
RAGGED = (7, 7, 3)
cross_entropy = nn.functional.cross_entropy
Statistics = tuple[Tensor, Tensor]


def network(seed: int = 0) -> nn.Sequential:
    """Linear 2-3, BatchNorm, tanh, linear 3-2, BatchNorm, with statistics as after a training."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2), nn.BatchNorm1d(2)
    ).double()
    for i in (1, 4):
        model[i].running_mean.normal_()
        model[i].running_var.uniform_(0.5, 2)
        nn.init.uniform_(model[i].weight, 0.5, 2)
        nn.init.normal_(model[i].bias)
    return model


def data(seed: int, sizes: tuple[int, ...] = RAGGED) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(seed)
    X, y = 1 + torch.randn(sum(sizes), 2).double(), torch.randint(0, 2, (sum(sizes),))
    return list(zip(X.split(list(sizes)), y.split(list(sizes)), strict=True))


TEST, TRAIN = data(1), data(2)


def normalized(h: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return (h - mean) / (var + EPS).sqrt() * weight + bias


def by_hand(theta: Tensor, x: Tensor, statistics: list[Statistics | None]) -> Tensor:
    """The network's outputs in plain operations; where statistics are None, those of the batch."""
    W, b, g, c, V, d, k, e = torch.split(theta, [6, 3, 3, 3, 6, 2, 2, 2])

    def norm(h: Tensor, i: int, weight: Tensor, bias: Tensor) -> Tensor:
        own = (h.mean(dim=0), ((h - h.mean(dim=0)) ** 2).mean(dim=0))
        mean, var = statistics[i] or own
        return normalized(h, mean, var, weight, bias)

    hidden = norm(x @ W.view(3, 2).T + b, 0, g, c).tanh()
    return norm(hidden @ V.view(2, 3).T + d, 1, k, e)


def reestimated(theta: Tensor) -> list[Statistics | None]:
    """Mean and unbiased variance of all training examples' inputs of both layers, by hand."""
    W, b, g, c, V, d, _, _ = torch.split(theta, [6, 3, 3, 3, 6, 2, 2, 2])
    first = [x @ W.view(3, 2).T + b for x, _ in TRAIN]
    own = [((h - h.mean(dim=0)) / (h.var(dim=0, correction=0) + EPS).sqrt()) for h in first]
    second = [(h * g + c).tanh() @ V.view(2, 3).T + d for h in own]
    whole = [torch.cat(pieces) for pieces in (first, second)]
    return [(h.mean(dim=0), h.var(dim=0)) for h in whole]  # of 17 examples, divided by 16


def kept(model: nn.Sequential) -> list[Statistics | None]:
    return [(model[i].running_mean, model[i].running_var) for i in (1, 4)]


def statistics_of(policy: str, model: nn.Sequential, theta: Tensor) -> list[Statistics | None]:
    if policy == "batch":
        return [None, None]
    return reestimated(theta) if policy == "reestimate" else kept(model)


def loss_by_hand(theta: Tensor, statistics: list[Statistics | None]) -> Tensor:
    """The mean over all test examples of minus the log-probability of their class."""
    total = torch.zeros((), dtype=torch.float64)
    for x, y in TEST:
        z = by_hand(theta, x, statistics)
        total = total - (z.log_softmax(dim=1) * nn.functional.one_hot(y, 2)).sum()
    return total / sum(RAGGED)


def objective(model: nn.Module, policy: str, batches: Batches = TEST) -> Objective:
    return Objective(model, batches, cross_entropy, batch_norm=policy, statistics=TRAIN)


@pytest.mark.parametrize("policy", BATCH_NORM)
def test_each_policy_is_the_evaluation_written_by_hand(policy: str) -> None:
    model = network()
    f = objective(model, policy)
    want = loss_by_hand(f.theta, statistics_of(policy, model, f.theta))
    assert f.spec["batch_norm"] == policy
    for point in (f.theta, solution(model)):
        torch.testing.assert_close(f.evaluate(point)["loss"], want, rtol=1e-12, atol=0)
        torch.testing.assert_close(f.value(point), want, rtol=1e-12, atol=0)


def test_the_policies_differ_where_the_statistics_do() -> None:
    model = network()
    values = {float(objective(model, p).value(solution(model))) for p in BATCH_NORM}
    assert len(values) == 3  # at one solution interpolate is frozen


@pytest.mark.parametrize("policy", BATCH_NORM)
def test_the_gradient_takes_the_statistics_as_constants_except_those_of_a_batch(
    policy: str,
) -> None:
    model = network()
    f = objective(model, policy)
    statistics = statistics_of(policy, model, f.theta)
    want = torch.func.grad(lambda theta: loss_by_hand(theta, statistics))(f.theta)
    value, slope = f.value_and_gradient(f.theta)
    torch.testing.assert_close(slope, want, rtol=1e-10, atol=1e-14)
    assert value == pytest.approx(float(f.value(f.theta)), rel=1e-14)


@pytest.mark.parametrize("engine", ["cached", "fresh"])
@pytest.mark.parametrize("policy", BATCH_NORM)
def test_the_hessian_is_that_of_the_loss_written_by_hand(policy: str, engine: str) -> None:
    model = network()
    f = objective(model, policy)
    A = Hessian(f, engine=engine)
    statistics = statistics_of(policy, model, f.theta)
    H = hessian(lambda theta: loss_by_hand(theta, statistics))(f.theta)
    got = torch.stack([A @ row for row in torch.eye(len(f.theta)).double()])
    torch.testing.assert_close(got, H, rtol=1e-9, atol=1e-12 * float(H.norm()))


def test_the_gauss_newton_matrix_under_batch_statistics_is_that_of_all_outputs_of_a_batch() -> None:
    model = network()
    f = objective(model, "batch", TEST[:1])
    x, y = TEST[0]
    J = torch.func.jacrev(lambda theta: by_hand(theta, x, [None, None]).flatten())(f.theta)
    z = by_hand(f.theta, x, [None, None]).detach()
    middle = hessian(lambda u: cross_entropy(u.view(7, 2), y))(z.flatten())
    v = torch.randn(len(f.theta)).double()
    torch.testing.assert_close(GaussNewton(f) @ v, J.T @ middle @ J @ v, rtol=1e-9, atol=1e-12)


def test_statistics_are_reestimated_once_for_all_products_and_at_every_point_of_a_box() -> None:
    passes: list[int] = []

    class Counted:
        def __iter__(self) -> Any:
            passes.append(1)
            return iter(TRAIN)

    f = Objective(network(), TEST, cross_entropy, batch_norm="reestimate", statistics=Counted())
    f.value(f.theta)
    passes.clear()
    A = Hessian(f, engine="fresh")
    assert not passes  # an operator does not traverse data when it is made
    for _ in range(3):
        A @ f.theta
    assert len(passes) == 1
    passes.clear()
    found = epsilon_sharpness(f, epsilon=1e-2, starts=0, sign_starts=2)
    # Once more for all the products that tell the bounds of the model.
    assert len(passes) == found.gradients + found.forwards + 1
    there = f.theta + found.displacement
    assert found.maximum == pytest.approx(float(loss_by_hand(there, reestimated(there))))


def test_one_batch_gives_the_statistics_that_torch_would_keep() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2, momentum=None), nn.Flatten())
    x = torch.randn(5, 1, 3, 4).double()
    model = model.double()
    f = Objective(
        model,
        [(x, torch.zeros(5, 12).double())],
        nn.functional.mse_loss,
        batch_norm="reestimate",
        statistics=[(x, torch.zeros(5))],
    )
    found = f.settled(f.theta).buffers
    model.train()(x)
    torch.testing.assert_close(found["1.running_mean"], model[1].running_mean)
    torch.testing.assert_close(found["1.running_var"], model[1].running_var)


def test_splitting_the_training_part_does_not_change_the_statistics_of_a_first_layer() -> None:
    """A later layer's inputs depend on the batches by which earlier ones were normalized."""
    X, y = 1e3 + torch.randn(17, 2).double(), torch.zeros(17, dtype=torch.long)
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2)).double()
    for sizes in ([17], [7, 7, 3], [15, 2]):
        batches = list(zip(X.split(sizes), y.split(sizes), strict=True))
        f = Objective(model, TEST, cross_entropy, batch_norm="reestimate", statistics=batches)
        found = f.settled(f.theta).buffers
        torch.testing.assert_close(found["0.running_mean"], X.mean(dim=0), rtol=1e-14, atol=0)
        torch.testing.assert_close(found["0.running_var"], X.var(dim=0), rtol=1e-12, atol=0)


def test_instance_norm_is_a_layer_with_running_statistics_too() -> None:
    norm = nn.InstanceNorm1d(3, track_running_stats=True, affine=True)
    model = nn.Sequential(norm, nn.Flatten(), nn.Linear(12, 2)).double()
    x, y = 2 + torch.randn(7, 3, 4).double(), torch.arange(7) % 2
    batches = [(x[:5], y[:5]), (x[5:], y[5:])]
    mean, var = x.mean(dim=2), x.var(dim=2)  # (7, 3), of each example
    W, b = model[2].weight, model[2].bias

    def loss(center: Tensor, spread: Tensor) -> Tensor:
        z = (x - center) / (spread + EPS).sqrt()
        return cross_entropy(z.flatten(1) @ W.T + b, y)

    biased = x.var(dim=2, correction=0)
    wants = {
        "batch": loss(mean[:, :, None], biased[:, :, None]),
        "reestimate": loss(mean.mean(dim=0)[:, None], var.mean(dim=0)[:, None]),
        "frozen": loss(torch.zeros(3, 1).double(), torch.ones(3, 1).double()),
    }
    for policy, want in wants.items():
        f = Objective(model, batches, cross_entropy, batch_norm=policy, statistics=batches)
        torch.testing.assert_close(f.value(f.theta), want.detach(), rtol=1e-12, atol=0)


def test_a_layer_that_the_model_does_not_use_keeps_its_statistics() -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = network(), nn.BatchNorm1d(4).double()

        def forward(self, x: Tensor) -> Tensor:
            return torch.as_tensor(self.used(x))

    model = Spare()
    f = objective(model, "reestimate")
    want = loss_by_hand(f.theta[:27], reestimated(f.theta[:27]))
    torch.testing.assert_close(f.value(f.theta), want)


def rank(i: int, store: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=i, world_size=2)
    share = slice(0, 2) if i == 0 else slice(2, 3)  # 14 and 3 examples
    f = Objective(
        network(),
        TEST[share],
        cross_entropy,
        batch_norm="reestimate",
        statistics=TRAIN[share],
    )
    want = loss_by_hand(f.theta, reestimated(f.theta)).detach()
    torch.testing.assert_close(f.value(f.theta), want, rtol=1e-12, atol=0)
    dist.destroy_process_group()


def test_ranks_with_uneven_shares_reestimate_over_the_data_of_all(tmp_path: Path) -> None:
    spawn(rank, args=(tmp_path / "ranks",), nprocs=2)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("policy", BATCH_NORM)
def test_the_model_and_its_running_statistics_come_back_bit_identical(
    policy: str, training: bool
) -> None:
    model = network().train(training)
    before, modes = deepcopy(model.state_dict()), [part.training for part in model.modules()]
    point = solution(model)
    f = objective(model, policy)
    f.evaluate(point)
    f.value_and_gradient(point)
    Hessian(f, point) @ f.theta
    line(f, point, Solution(-f.theta, dict(point.buffers)), alphas=ALPHAS, batch_norm=policy)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert all(torch.equal(x, before[name]) for name, x in point.buffers.items())
    assert [part.training for part in model.modules()] == modes
    assert all(part.track_running_stats for part in (model[1], model[4]))
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("policy", BATCH_NORM)
def test_without_running_statistics_every_policy_is_the_same_function(policy: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)).double()
    f = Objective(model, TEST, cross_entropy, batch_norm=policy)
    frozen = Objective(model, TEST, cross_entropy)
    assert f.spec == frozen.spec | {"batch_norm": policy}
    assert f.value(f.theta) == frozen.value(f.theta)
    assert torch.equal(f.gradient(f.theta), frozen.gradient(f.theta))


def test_requests_that_no_policy_meets_are_refused() -> None:
    with pytest.raises(InputError, match="one of frozen, batch, reestimate, interpolate, got 'no'"):
        objective(network(), "no")
    with pytest.raises(InputError, match="training part, got none for 1: give them as statistics"):
        Objective(network(), TEST, cross_entropy, batch_norm="reestimate")
    with pytest.raises(InputError, match="read once"):
        Objective(network(), TEST, cross_entropy, statistics=iter(TRAIN))
    alone = [(TRAIN[0][0][:1], TRAIN[0][1][:1])]
    for f in (
        objective(network(), "batch", alone),
        Objective(network(), TEST, cross_entropy, batch_norm="reestimate", statistics=alone),
    ):
        with pytest.raises(InputError, match="at least 2 values of a channel, got 1 in BatchNorm"):
            f.value(f.theta)


def ends() -> tuple[Objective, Solution, Solution]:
    a, b = network(0), network(5)
    return objective(a, "frozen"), solution(a), solution(b)


@pytest.mark.parametrize("policy", ["batch", "reestimate", "interpolate"])
def test_a_line_starts_and_ends_at_evaluate_under_the_same_policy(policy: str) -> None:
    f, a, b = ends()
    got = line({"test": f}, a, b, alphas=ALPHAS, batch_norm=policy)
    for i, point in ((1, a), (3, b)):
        assert got.values["test_loss"][i] == f.under(policy).evaluate(point)["loss"]
    assert got.spec["batch_norm"] == got.spec["objectives"]["test"]["batch_norm"] == policy


def test_a_line_with_one_set_of_statistics_is_frozen_and_so_are_its_ends() -> None:
    f, a, b = ends()
    b = Solution(b.theta, a.buffers | {"1.num_batches_tracked": torch.tensor(7)})
    got = line(f, a, b, alphas=ALPHAS)
    assert got.spec["batch_norm"] == "frozen"
    assert got.values["loss"][1] == f.value(a)
    assert got.values["loss"][3] == f.value(b)


def test_a_line_between_two_sets_of_statistics_reestimates_them_by_default() -> None:
    f, a, b = ends()
    got = line(f, a, b, alphas=ALPHAS)
    assert got.spec["batch_norm"] == "reestimate"
    for alpha, value in zip(ALPHAS.tolist(), got.values["loss"], strict=True):
        theta = (1 - alpha) * a.theta + alpha * b.theta
        torch.testing.assert_close(value, loss_by_hand(theta, reestimated(theta)))


def test_objectives_of_a_policy_of_their_own_keep_it_on_a_line() -> None:
    f, a, b = ends()
    got = line({"x": f.under("batch")}, a, b, alphas=ALPHAS)
    assert got.spec["batch_norm"] == "batch"
    with pytest.raises(InputError, match="one BatchNorm policy, got batch, frozen"):
        line({"x": f, "y": f.under("batch")}, a, b, alphas=ALPHAS)


def test_interpolated_statistics_are_linear_in_the_mean_and_in_the_logarithm_of_the_variance() -> (
    None
):
    f, a, b = ends()
    got = line(f, a, b, alphas=ALPHAS, batch_norm="interpolate")
    for alpha, value in zip(ALPHAS.tolist(), got.values["loss"], strict=True):
        theta = (1 - alpha) * a.theta + alpha * b.theta
        statistics: list[Statistics | None] = []
        for i in (1, 4):
            m, v = f"{i}.running_mean", f"{i}.running_var"
            mean = (1 - alpha) * a.buffers[m] + alpha * b.buffers[m]
            statistics.append((mean, a.buffers[v] ** (1 - alpha) * b.buffers[v] ** alpha))
        torch.testing.assert_close(value, loss_by_hand(theta, statistics), rtol=1e-12, atol=0)


def with_variance(point: Solution, values: list[float]) -> Solution:
    return Solution(
        point.theta, point.buffers | {"1.running_var": torch.tensor(values, dtype=torch.float64)}
    )


def test_interpolated_variances_stay_positive_where_straight_lines_would_not() -> None:
    f, a, b = ends()
    a, b = with_variance(a, [0.1, 1.0, 3.0]), with_variance(b, [9.0, 1.0, 0.2])
    for alpha in (-1.0, 2.0):
        straight = (1 - alpha) * a.buffers["1.running_var"] + alpha * b.buffers["1.running_var"]
        assert straight.min() + EPS < 0  # whose root would be NaN
    got = line(f, a, b, alphas=ALPHAS, batch_norm="interpolate")
    assert torch.isfinite(got.values["loss"]).all()


def test_mixed_variances_are_those_of_the_ends_to_the_last_bit_and_positive_beyond() -> None:
    a, b = 10 ** torch.empty(2, 1000).uniform_(-8, 8).double()
    assert torch.equal(mixed_variance("v", a, b, 0.0), a)
    assert torch.equal(mixed_variance("v", a, b, 1.0), b)
    for alpha in (-1.0, 2.0):
        assert (mixed_variance("v", a, b, alpha) > 0).all()
        assert ((1 - alpha) * a + alpha * b).min() < 0  # on a straight line


def test_a_channel_dead_at_both_ends_stays_dead_and_one_dead_at_one_end_is_refused() -> None:
    f, a, b = ends()
    dead, alive = [0.0, 1.0, 2.0], [1.0, 1.0, 2.0]
    got = line(
        f,
        with_variance(a, dead),
        with_variance(b, dead),
        alphas=ALPHAS,
        batch_norm="interpolate",
    )
    assert torch.isfinite(got.values["loss"]).all()
    for one, other in ((dead, alive), (alive, dead)):
        pair = with_variance(a, one), with_variance(b, other)
        with pytest.raises(InputError, match=r"above 0, got .* in 1.running_var: choose reest"):
            line(f, *pair, alphas=ALPHAS, batch_norm="interpolate")
        for policy in ("batch", "reestimate"):
            found = line(f, *pair, alphas=ALPHAS, batch_norm=policy)
            assert torch.isfinite(found.values["loss"]).all()


def test_a_variance_that_no_number_holds_is_refused() -> None:
    f, a, b = ends()
    pair = with_variance(a, [1e-200, 1.0, 1.0]), with_variance(b, [1e200, 1.0, 1.0])
    for alpha in (-1.0, 2.0):
        with pytest.raises(ComputationError, match=r"can hold, got others in 1\.running_var at"):
            line(f, *pair, alphas=torch.tensor([0.0, alpha]), batch_norm="interpolate")


def test_frozen_between_two_sets_of_statistics_is_refused_with_the_alternatives() -> None:
    f, a, b = ends()
    with pytest.raises(InputError, match=r"choose reestimate, interpolate or batch$"):
        line(f, a, b, alphas=ALPHAS, batch_norm="frozen")
    g = Objective(f.model, TEST, cross_entropy)
    with pytest.raises(InputError, match="give them as statistics"):
        line(g, a, b, alphas=ALPHAS)


@pytest.mark.parametrize("policy", [None, *BATCH_NORM])
def test_other_buffers_that_differ_are_refused_by_name(policy: str | None) -> None:
    model = network()
    model.register_buffer("scale", torch.ones(1).double())
    f, a = objective(model, "frozen"), solution(model)
    b = Solution(a.theta, a.buffers | {"scale": 2 * torch.ones(1).double()})
    with pytest.raises(InputError, match="got two of scale"):
        line(f, a, b, alphas=ALPHAS, batch_norm=policy)


# ------------------------------------------------------------------- runs and the command line

CNN: dict[str, Any] = {"model": "cnn", "model_options": {"channels": [2, 3]}, "threads": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    for seed, name in enumerate(("sb", "lb")):
        config = TrainConfig(**CNN, batch_size=100, updates=6, seed=seed, split_seed=0)
        sh.save(folder / f"{name}.h5", train(config))
    return folder


def test_a_run_and_its_file_evaluate_alike(made: Path) -> None:
    run = load_as(made / "sb.h5", Run)
    f = objective_of(run, split="test")
    assert f.value(run.end) == run.history["test_loss"][-1]
    again = train(TrainConfig(**CNN, batch_size=100, updates=6, split_seed=0))
    for policy in BATCH_NORM:
        here = objective_of(run, split="test", batch_norm=policy).evaluate(run.end)
        assert here == objective_of(again, split="test", batch_norm=policy).evaluate(again.end)


def test_a_run_reestimates_over_its_whole_training_part(made: Path) -> None:
    run = load_as(made / "sb.h5", Run)
    whole = objective_of(run, dtype="float64", batch_norm="reestimate").settled(run.end)
    for options in ({"examples": 64}, {"split": "test"}):
        f = objective_of(run, dtype="float64", batch_norm="reestimate", **options)
        assert f.spec["statistics"] == {"part": "train", "micro_batch": 1024}
        found = f.settled(run.end).buffers
        assert all(torch.equal(found[name], x) for name, x in whole.buffers.items())
        assert found["2.running_var"].dtype == torch.float64


def test_a_line_of_the_command_reestimates_and_tells_so(
    made: Path, ask: Callable[..., tuple[int, str, str]]
) -> None:
    out = made / "line.h5"
    args = ("line", made / "sb.h5", made / "lb.h5", "--alphas=-1:2:4")
    code, _, said = ask(*args, "-o", out)
    assert (code, said.splitlines()[-1]) == (0, f"wrote {out}")
    found = load_as(out, Line)
    run = load_as(made / "lb.h5", Run)
    f = objective_of(load_as(made / "sb.h5", Run), batch_norm="reestimate")
    assert found.spec["batch_norm"] == "reestimate"
    assert found.values["train_loss"][2] == f.value(run.end)
    assert ask(*args, "-o", out)[2].splitlines()[-1] == f"already done: {out}"
    code, _, said = ask(*args, "-o", out, "--bn=reestimate")
    assert code == 2
    assert "bn" in said
    assert '  batch_norm: "reestimate"' in ask("show", out)[1].splitlines()


def test_the_command_refuses_one_set_of_statistics_for_two_networks(
    made: Path, ask: Callable[..., tuple[int, str, str]]
) -> None:
    code, out, said = ask("line", made / "sb.h5", made / "lb.h5", "--bn=frozen")
    assert (code, out, len(said.splitlines())) == (2, "", 1)
    assert "choose reestimate, interpolate or batch" in said
    code, _, said = ask("eigs", made / "sb.h5", "--bn=melted")
    assert code == 2
    assert "frozen, batch, reestimate, interpolate" in said


@pytest.mark.parametrize("policy", ["batch", "reestimate"])
def test_the_policy_of_an_analysis_is_that_of_the_library_and_is_stored(
    policy: str, made: Path, ask: Callable[..., tuple[int, str, str]]
) -> None:
    out = made / f"{policy}.h5"
    measure = ("measure", "epsilon-sharpness", made / "sb.h5", "--starts=1", "--sign-starts=1")
    assert ask(*measure, f"--bn={policy}", "-o", out)[0] == 0
    run = load_as(made / "sb.h5", Run)
    f = objective_of(run, batch_norm=policy)
    found = epsilon_sharpness(f, starts=1, sign_starts=1)
    assert load_as(out, sh.Sharpness).value == found.value
    shown = ask("show", out)[1].splitlines()
    assert f'    batch_norm: "{policy}"' in shown
    assert f'    bn: "{policy}"' in shown
    code, _, said = ask(*measure, "-o", out)
    assert code == 2
    assert "bn" in said


def test_the_default_policy_answers_requests_from_before_the_option(
    made: Path, ask: Callable[..., tuple[int, str, str]]
) -> None:
    out = made / "frozen.h5"
    args = ("eigs", made / "sb.h5", "-k1", "-o", out)
    assert ask(*args)[0] == 0
    asked = request_of(out)
    assert asked is not None
    assert "bn" not in asked["options"]
    assert ask(*args, "--bn=frozen")[2].splitlines()[-1] == f"already done: {out}"
