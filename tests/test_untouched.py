"""The user's model, and what else is the user's, is the same to the bit after each public function.

Also where it ends by an exception at its k-th use of the model, forward or backward, for every k. A
public function that comes later has to be listed here.
"""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from inspect import isclass, isfunction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sharpness as sh
from sharpness import directions, plots
from sharpness.errors import ComputationError
from sharpness.results import Run

cross_entropy = nn.functional.cross_entropy


@dataclass
class Clock:
    """Counts the uses of a model, and raises an exception at one of them."""

    calls: int = 0
    at: int | None = None
    error: type[BaseException] = RuntimeError

    def tick(self) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise self.error("struck")

    def __deepcopy__(self, memo: Any) -> "Clock":
        return self  # of all copies of a model


CLOCK = Clock()


class Ticking(torch.autograd.Function):
    """The identity, each pass through which counts: forward, backward, and backward through it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        CLOCK.tick()
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        return Ticking.apply(*slopes)


class Net(nn.Module):
    """A frozen layer, BatchNorm and dropout, a shared layer, buffers of both kinds and hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(3, 4).requires_grad_(False)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout()
        self.head = nn.Linear(4, 2)
        self.alias = self.head
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("loose", torch.ones(()), persistent=False)
        self.drop.register_forward_hook(lambda *_: None)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = Ticking.apply(self.head(self.drop(self.norm(self.frozen(x)).tanh())))
        return self.scale * self.loose * z


def trained() -> Net:
    """A model in the midst of its training: in train mode but for one layer, with gradients."""
    net = Net().train()
    net.drop.eval()
    x = torch.randn(8, 3)
    cross_entropy(net(x), torch.arange(8) % 2).backward()
    net.head.bias.requires_grad_(False)  # with a gradient left over
    net.norm.weight.grad = None
    return net


def state(model: nn.Module) -> dict[str, str]:
    """The SHA-256 of each thing that is the user's: of the model, random numbers and settings."""
    things: dict[str, Any] = dict(model.named_parameters(remove_duplicate=False))
    things |= {f"{name}.grad": p.grad for name, p in model.named_parameters()}
    things |= dict(model.named_buffers())
    for name, part in model.named_modules(remove_duplicate=False):
        things[f"{name} mode"] = part.training
        things[f"{name} attributes"] = sorted(vars(part))
        things[f"{name} hooks"] = [len(x) for key, x in vars(part).items() if "hooks" in key and x]
    numbers = np.random.get_state(legacy=False)  # noqa: NPY002
    things |= {
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "settings": settings(),
    }
    things["numpy"] = [numbers["state"]["key"].tobytes(), numbers["state"]["pos"]]
    return {name: digest(x) for name, x in things.items()}


def digest(x: Any) -> str:
    found = hashlib.sha256()
    if isinstance(x, Tensor):
        found.update(f"{x.dtype} {tuple(x.shape)} {x.requires_grad} {x.data_ptr()}".encode())
        found.update(x.detach().numpy().tobytes())
    else:
        found.update(repr(x).encode())
    return found.hexdigest()


def settings() -> list[Any]:
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    sdp = [cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled()]
    modes = [torch.is_grad_enabled(), torch.is_inference_mode_enabled()]
    return [*sdp, *modes, cudnn.enabled, torch.get_num_threads(), torch.get_default_dtype()]


@dataclass
class Case:
    """A model of the user's, and what functions take of it."""

    net: Net = field(default_factory=trained)
    folder: Path = Path()
    known: Any = None

    def __post_init__(self) -> None:
        x, y = torch.randn(12, 3), torch.arange(12) % 2
        self.batches = [(x[:5], y[:5]), (x[5:], y[5:])]
        self.part = (x, y)
        self.here = sh.solution(self.net)
        self.u, self.v = torch.eye(len(self.here.theta))[:2]

    def objective(self, batch_norm: str = "frozen") -> sh.Objective:
        return sh.Objective(
            self.net,
            self.batches,
            cross_entropy,
            metrics={"accuracy": sh.accuracy},
            batch_norm=batch_norm,
            statistics=self.batches if batch_norm == "reestimate" else None,
        )

    def run(self) -> Run:
        none = torch.zeros(0, dtype=torch.int64)
        there = sh.Solution(self.here.theta + self.u, self.here.buffers)
        history = {"examples": torch.tensor([8])}
        return Run(self.here, there, [], none, history, {}, none, none, 1, "updates", {})

    def brought(self) -> dict[str, Any]:
        return {"model": self.net, "data": (self.part, self.part)}

    def again(self, micro_batch: int | None = None) -> sh.Objective:
        """The objective of a run, of the model in memory."""
        return sh.objective_of(read(self), micro_batch=micro_batch, **self.brought())

    def to_verify(self) -> tuple[Any, list[Run]]:
        """Eigenpairs of a run, computed before anything strikes."""
        if self.known is None:
            at, CLOCK.at = CLOCK.at, None
            self.known = sh.eigsh(sh.Hessian(self.again()), 1), [read(self)]
            CLOCK.calls, CLOCK.at = 0, at
        return self.known

    def grid(self) -> dict[str, Tensor]:
        return {"alphas": torch.arange(2.0), "betas": torch.arange(2.0)}

    def train(self, **options: Any) -> Any:
        return sh.train(self.config(**options))

    def config(self, **options: Any) -> sh.TrainConfig:
        return sh.TrainConfig(
            model=self.net, data=(self.part, self.part), batch_size=6, threads=1, **options
        )


def once(operator: Any, case: Case, engine: str) -> None:
    A = operator(case.objective(), engine=engine)
    assert A @ case.u is not None
    assert A @ case.v is not None


def of_made(case: Case, make: Callable[[Any], Any]) -> None:
    A = make(sh.Hessian(case.objective()))
    assert A @ torch.ones(A.size, dtype=A.dtype) is not None


def evaluated(case: Case, batch_norm: str) -> None:
    f = case.objective(batch_norm)
    f.evaluate(case.here)
    f.value_and_gradient(case.here)
    f.outputs(case.here, case.batches[0][0])


def told(found: dict[str, Any]) -> None:
    """What is in words is why there is no number."""
    for x in found.values():
        if isinstance(x, str):
            raise sh.ComputationError(x)


def refused(call: Callable[[], Any]) -> None:
    with pytest.raises(sh.InputError):
        call()


def preconditioned(case: Case) -> None:
    run = case.train(updates=2)
    sh.preconditioned_sharpness(sh.objective_of(run, **case.brought()), run)


# Public functions and classes by name, each as calls that use the user's model.
CALLS: dict[str, list[Callable[[Case], Any]]] = {
    "Objective": [
        lambda c: evaluated(c, "frozen"),
        lambda c: evaluated(c, "batch"),
        lambda c: evaluated(c, "reestimate"),
    ],
    "solution": [lambda c: sh.solution(c.net)],
    "train": [
        lambda c: c.train(updates=3, check_every=1),
        lambda c: c.train(updates=2, optimizer="sgd", learning_rate=0.1),
        lambda c: c.train(updates=2, method="sam", average="ema"),
    ],
    "train_all": [
        lambda c: sh.train_all([c.config(updates=2, seed=seed) for seed in (0, 1)]),
    ],
    "fast_gemm": [lambda c: under_fast_gemm(c)],
    "Hessian": [
        lambda c: once(sh.Hessian, c, "cached"),
        lambda c: once(sh.Hessian, c, "fresh"),
        lambda c: once(sh.Hessian, c, "finite-difference"),
    ],
    "AdaptiveHessian": [lambda c: once(sh.AdaptiveHessian, c, "cached")],
    "GaussNewton": [lambda c: once(sh.GaussNewton, c, "fresh")],
    "Fisher": [lambda c: once(sh.Fisher, c, "fresh")],
    "EmpiricalFisher": [lambda c: once(sh.EmpiricalFisher, c, "cached")],
    "Sum": [lambda c: of_made(c, lambda A: sh.Sum((2.0, A), (-1.0, sh.GaussNewton(A.objective))))],
    "WeightDecayed": [lambda c: of_made(c, lambda A: sh.WeightDecayed(A, 0.1))],
    "Scaled": [lambda c: of_made(c, lambda A: sh.Scaled(A, c.here.theta.abs()))],
    "Block": [lambda c: of_made(c, lambda A: sh.Block(A, torch.tensor([0, 3])))],
    "to_scipy": [lambda c: sh.to_scipy(sh.Hessian(c.objective())) @ np.ones(len(c.here.theta))],
    "eigsh": [
        lambda c: sh.eigsh(sh.Hessian(c.objective()), 1),
        lambda c: sh.eigsh(sh.Hessian(c.objective("batch"), engine="fresh"), 1),
    ],
    "density": [lambda c: sh.density(sh.Hessian(c.objective()), steps=3, probes=2)],
    "trace": [lambda c: sh.trace(sh.Hessian(c.objective()), probes=6)],
    "frobenius": [lambda c: sh.frobenius(sh.Hessian(c.objective()), probes=6)],
    "batch_eigenvalues": [
        lambda c: sh.batch_eigenvalues(c.objective(), batch_size=5),
        lambda c: sh.batch_eigenvalues(c.objective("reestimate"), batch_size=5, weight_decay=0.1),
        lambda c: sh.batch_eigenvalues(c.objective("batch"), batch_size=6, engine="fresh"),
    ],
    "diagonal": [lambda c: sh.diagonal(sh.Hessian(c.objective()), probes=4)],
    "layers": [lambda c: sh.layers(sh.Hessian(c.objective()), probes=4)],
    "along_training": [lambda c: sh.along_training(c.objective(), c.run(), sign_starts=1)],
    "class_structure": [lambda c: sh.class_structure(c.objective(), point=c.here, k=3)],
    "convexity": [
        lambda c: sh.convexity(c.objective(), c.here, c.u, c.v, **c.grid()),
    ],
    "cut": [lambda c: sh.cut(c.objective(), c.here, c.u[None], alphas=torch.arange(2.0))],
    "line": [
        lambda c: sh.line(
            c.objective("reestimate"), c.here, c.here.theta + c.u, alphas=torch.arange(2.0)
        )
    ],
    "plane": [lambda c: sh.plane(c.objective(), c.here, c.u, c.v, **c.grid(), path=c.run())],
    "epsilon_sharpness": [
        lambda c: sh.epsilon_sharpness(
            c.objective(), c.here, starts=1, sign_starts=1, iterations=2
        ),
    ],
    "subspace_sharpness": [
        lambda c: sh.subspace_sharpness(
            c.objective(), c.here, dimension=2, draws=2, starts=1, sign_starts=1, iterations=2
        )
    ],
    "epsilon_trend": [
        lambda c: sh.epsilon_trend(
            c.objective(), c.here, epsilons=(1e-3, 2e-3), sign_starts=1, iterations=2
        )
    ],
    **{
        f.__name__: [lambda c, f=f: f(c.objective(), c.here)]
        for f in (
            *(sh.fisher_rao, sh.hessian_trace, sh.hessian_frobenius, sh.largest_eigenvalue),
            *(sh.relative_flatness, sh.sam, sh.weight_norm),
        )
    },
    "eigenvalue_ratio": [lambda c: sh.eigenvalue_ratio(c.objective(), c.here, k=2)],
    "worst_case": [
        lambda c: sh.worst_case(c.objective(), c.here, iterations=3),
        lambda c: sh.worst_case(c.objective("batch"), c.here, iterations=3, adaptive=True),
    ],
    "average_case": [lambda c: sh.average_case(c.objective(), c.here, draws=2)],
    "batch_sharpness": [
        lambda c: sh.batch_sharpness(c.objective(), c.here, batch_size=5, batches=2)
    ],
    "critical_sharpness": [lambda c: sh.critical_sharpness(c.objective(), c.here)],
    "pac_bayes": [lambda c: sh.pac_bayes(c.objective(), c.here, draws=2)],
    "learning_coefficient": [
        lambda c: sh.learning_coefficient(
            c.objective(), c.here, chains=2, burn_in=1, draws=2, batch_size=5
        )
    ],
    "measure_all": [
        lambda c: told(sh.measure_all(c.objective(), point=c.here, only=["sam", "trace"]))
    ],
    "normalized_logits": [lambda c: sh.normalized_logits(c.objective()).value(c.here)],
    "path_norm": [lambda c: refused(lambda: sh.path_norm(c.objective(), c.here))],
    "distance_from_start": [lambda c: sh.distance_from_start(c.objective(), run=c.run())],
    "preconditioned_sharpness": [lambda c: preconditioned(c)],
    "invariance": [lambda c: sh.invariance(c.objective(), only=["sam"])],
    "run_numbers": [
        lambda c: sh.run_numbers(c.run(), {"train": c.objective(), "test": c.objective()})
    ],
    "read": [lambda c: read(c)],
    "objective_of": [lambda c: c.again().value(c.here)],
    "halving": [lambda c: sh.halving(lambda size: c.again(size).value(c.here))],
    "verify": [lambda c: sh.verify(*c.to_verify(), **c.brought())],
}
DIRECTIONS: dict[str, list[Callable[[Case], Any]]] = {
    function.__name__: [lambda c, f=function: f(c.objective(), 2, point=c.here)]
    for function in directions.NORMALIZATIONS.values()
} | {
    "rescaled": [lambda c: directions.rescaled(c.objective(), torch.stack([c.u, c.v]), "none")],
    "gradient_direction": [lambda c: directions.gradient_direction(c.objective(), c.here)],
    "make": [lambda c: directions.make(c.objective(), "eigenvectors", 2)],
}
# Those that take neither a model nor an objective.
WITHOUT = {"ComputationError", "InputError", "TrainConfig", "accuracy", "Dense", "progress"}
WITHOUT |= {"compare", "compared", "paired_difference", "paired_ratio", "save", "load"}
WITHOUT |= {"Comparison", "Convexity", "Cut", "Eigenpairs", "Line", "Plane", "Run", "Sharpness"}
WITHOUT |= {"Solution", "SubspaceSharpness", "Trajectory", "Verification", "Journal"}
WITHOUT |= {"Density", "Diagonal", "Estimate", "Layers", "BatchEigenvalues", "OutOfMemoryError"}
WITHOUT |= {"ClassStructure", "EpsilonTrend", "Measured", "Invariance", "stability_threshold"}
WITHOUT_HERE = {"orthogonalized", "between", "through", "principal", "random_walk_shares"}
WITHOUT_HERE |= {"projected"}

EACH = [
    pytest.param(call, id=f"{name} {i}" if len(calls) > 1 else name)
    for name, calls in (CALLS | DIRECTIONS).items()
    for i, call in enumerate(calls)
]
USING = pytest.mark.parametrize("call", EACH)


def under_fast_gemm(case: Case) -> None:
    if not torch.backends.mkldnn.is_available():
        return
    with sh.fast_gemm():
        case.objective().value(case.here)


def read(case: Case) -> Run:
    """Of weights in a file, into a model in memory."""
    path = case.folder / "weights.pt"
    if not path.exists():
        torch.save(case.net.state_dict(), path)
    return sh.read(path, model=case.net, data=(case.part, case.part), loss="cross_entropy")


@pytest.fixture(autouse=True)
def clock() -> Iterator[Clock]:
    """Counting begins anew, and nothing strikes unless it is asked for."""
    CLOCK.calls, CLOCK.at = 0, None
    yield CLOCK
    CLOCK.at = None


@pytest.fixture
def case(tmp_path: Path, clock: Clock) -> Case:
    made = Case(folder=tmp_path)
    read(made)
    torch.manual_seed(1)  # another state than what was drawn from on the way
    clock.calls = 0
    return made


def test_every_public_function_is_listed() -> None:
    assert not CALLS.keys() & WITHOUT
    assert sh.HOMES.keys() == CALLS.keys() | WITHOUT
    assert set(sh.MODULES) == {"directions", "plots"}  # of which the latter sees results alone
    functions = {
        name
        for name, value in vars(directions).items()
        if isfunction(value) and value.__module__ == directions.__name__ and name[0] != "_"
    }
    assert functions == DIRECTIONS.keys() | WITHOUT_HERE
    assert not hasattr(plots, "Objective")


def test_what_takes_no_model_is_listed_rightly() -> None:
    words = ("Objective", "Module", "Operator", "Curvature")
    for name in WITHOUT:
        value = getattr(sh, name)
        kinds = [] if isclass(value) else list(value.__annotations__.items())
        assert not any(
            word in str(kind) for key, kind in kinds if key != "return" for word in words
        )


@USING
def test_the_model_is_the_same_to_the_bit_after(call: Callable[[Case], Any], case: Case) -> None:
    before = state(case.net)
    call(case)
    assert state(case.net) == before


def strike(
    call: Callable[[Case], Any],
    case: Case,
    clock: Clock,
    errors: Sequence[type[BaseException]],
    pace: float,
) -> None:
    """Let a function fail at its first use of the model, and at later ones, until it is through."""
    before, at = state(case.net), 1
    while True:
        clock.calls, clock.at, clock.error = 0, at, errors[at % len(errors)]
        try:
            call(case)
        except (*errors, sh.InputError, ComputationError) as struck:
            said = str(struck)
        else:
            said = ""
        assert state(case.net) == before
        assert ("struck" in said) == (clock.calls >= at)  # none is swallowed, and there is no other
        if not said:
            return
        at = max(at + 1, int(pace * at))


@USING
def test_the_model_is_the_same_to_the_bit_where_a_function_fails_or_is_stopped(
    call: Callable[[Case], Any], case: Case, clock: Clock
) -> None:
    """At the first uses of the model, forward or backward, and at later ones farther apart."""
    strike(call, case, clock, [RuntimeError, KeyboardInterrupt], 1.5)


def test_the_model_is_the_same_to_the_bit_where_memory_runs_out(case: Case, clock: Clock) -> None:
    """And the batches are halved."""
    before, halved = state(case.net), list[str]()
    clock.error = torch.OutOfMemoryError

    def compute(size: int | None) -> Tensor:
        x, y = (part.split(size or 12) for part in case.part)
        return sh.Objective(case.net, list(zip(x, y, strict=True)), cross_entropy).value(case.here)

    for at in (1, 2):  # at the first look at the batch, and at the second
        clock.calls, clock.at = 0, at
        sh.halving(compute, tell=halved.append)
        assert state(case.net) == before
    assert len(halved) == 2


@pytest.mark.slow
@USING
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt], ids=["error", "Ctrl-C"])
def test_the_model_is_the_same_to_the_bit_where_a_function_fails_at_each_use(
    call: Callable[[Case], Any], error: type[BaseException], case: Case, clock: Clock
) -> None:
    strike(call, case, clock, [error], 1.0)


def test_the_state_sees_every_kind_of_change() -> None:
    changes: list[Callable[[Net], Any]] = [
        lambda net: net.norm.running_var.add_(1e-7),
        lambda net: net.norm.num_batches_tracked.add_(1),
        lambda net: net.scale.add_(1),
        lambda net: net.loose.neg_(),
        lambda net: net.frozen.weight.view(-1)[:1].neg_(),
        lambda net: net.head.weight.grad.mul_(1 + 1e-6),
        lambda net: setattr(net.norm.weight, "grad", torch.zeros(4)),
        lambda net: setattr(net.head.weight, "grad", None),
        lambda net: net.frozen.bias.requires_grad_(),
        lambda net: net.drop.train(),
        lambda net: net.head.register_forward_pre_hook(lambda *_: None),
        lambda net: setattr(net, "head", deepcopy(net.head)),
        lambda net: setattr(net, "extra", 1),
        lambda net: torch.rand(1),
        lambda net: np.random.rand(),  # noqa: NPY002
        lambda net: random.random(),  # noqa: S311
    ]
    seen = set()
    for change in changes:
        torch.manual_seed(0)
        net = trained()
        before = state(net)
        assert state(net) == before
        kept = random.getstate(), np.random.get_state()  # noqa: NPY002
        with torch.no_grad():
            inside = state(net)
            change(net)
            seen.add(state(net) != inside)
        random.setstate(kept[0])
        np.random.set_state(kept[1])  # noqa: NPY002
    assert seen == {True}
    assert state(net) != inside  # torch.no_grad is a setting
