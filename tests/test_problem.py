"""From names or objects to a problem, from a run or a checkpoint back to its objective."""

import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sharpness import names
from sharpness.data import digits, tensors
from sharpness.errors import ComputationError, InputError
from sharpness.models import mlp
from sharpness.objective import Objective
from sharpness.problem import objective_of, place, pose, read, solution
from sharpness.results import Run, Solution
from sharpness.store import load_as, save
from sharpness.training import TrainConfig, cpu_threads, train
from sharpness.vectors import digest

X, Y = torch.arange(60.0).reshape(20, 3).sin(), torch.arange(20) % 2
SOURCE = ((X, Y), 14)
cross_entropy = nn.functional.cross_entropy

NETS = """
import torch
from torch import nn

instance = nn.Linear(3, 2)
number = 3

def build(width=4):
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 2))

def data():
    return (torch.arange(60.0).reshape(20, 3).sin(), torch.arange(20) % 2), 14

def loss(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets)

def needy(depth):
    return build()

def broken():
    raise KeyError("depth")

def leaving():
    raise SystemExit(3)

def forgetful():
    build()
"""


def norm_net(width: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


def frozen_net() -> nn.Sequential:
    model = norm_net()
    model[0].requires_grad_(False)
    return model


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Another number of threads may round differently, and two are slow on small problems."""
    with cpu_threads(1):
        yield


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with nets.py, in which a new process works that was given no names yet."""
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(names, "GIVEN", set())
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def same(a: Any, b: Any) -> bool:
    """Say whether two solutions or state dicts are equal, bit by bit."""
    if isinstance(a, Solution):
        return same({"": a.theta, **a.buffers}, {"": b.theta, **b.buffers})
    return a.keys() == b.keys() and all(digest(a[name]) == digest(b[name]) for name in a)


def trained(**options: Any) -> Run:
    return train(TrainConfig(**{"batch_size": 4, "updates": 5, **options}))


def one_line(error: BaseException) -> str:
    assert "\n" not in str(error)
    return str(error)


# Names and objects


def test_names_functions_and_objects_pose_the_same_problem(nets: Path) -> None:
    options = {"width": 5}
    named = pose("nets:build", "nets:data", "nets:loss", model_options=options)
    import nets as module  # type: ignore[import-not-found]

    for model, data, loss in [
        (module.build, module.data, module.loss),
        (norm_net, SOURCE, cross_entropy),
        (norm_net, SOURCE, "cross_entropy"),
    ]:
        other = pose(model, data, loss, model_options=options)
        assert same(other.model.state_dict(), named.model.state_dict())
        assert other.spec == named.spec
    assert named.model[0].weight.shape == (5, 3)
    assert named.loss is module.loss
    assert pose("nets:instance", SOURCE, "cross_entropy").model.weight.shape == (2, 3)


def test_a_bundled_model_gets_the_sizes_of_the_data() -> None:
    sizes = {"inputs": [64], "outputs": 10}
    named = pose("mlp", "digits", "cross_entropy")
    other = pose(mlp, digits, cross_entropy, model_options=sizes)
    assert same(named.model.state_dict(), other.model.state_dict())
    regression = pose("mlp", ((X, X[:, :2]), 14), "mse", model_options={"widths": []})
    assert regression.model[0].weight.shape == (2, 3)


def test_the_spec_counts_the_examples_and_signs_the_data() -> None:
    posed = pose(norm_net, SOURCE, cross_entropy)
    assert (posed.spec["train_examples"], posed.spec["test_examples"]) == (14, 6)
    for name in ("train", "test"):
        assert posed.spec[f"{name}_sha256"] == digest(*tensors(getattr(posed.data, name)))


def test_the_seed_sets_the_initial_weights_and_nothing_else() -> None:
    first, again, other = (pose(norm_net, SOURCE, cross_entropy, seed=seed) for seed in (1, 1, 2))
    assert same(first.model.state_dict(), again.model.state_dict())
    assert not torch.equal(first.model[0].weight, other.model[0].weight)
    assert first.spec == other.spec


def test_the_global_random_state_is_neither_read_nor_changed(tmp_path: Path) -> None:
    torch.save(norm_net().state_dict(), tmp_path / "a.pt")
    posed, points = [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        posed.append(pose(norm_net, SOURCE, cross_entropy).model.state_dict())
        run = trained(model=norm_net, data=SOURCE)
        f = objective_of(run, model=norm_net, data=SOURCE, examples=5)
        read(tmp_path / "a.pt", model=norm_net, data=SOURCE, loss=cross_entropy)
        assert torch.equal(torch.random.get_rng_state(), before)
        points.append(Solution(run.end.theta, {"sample": f.batches[0][0]}))  # type: ignore[index]
    assert same(*posed)
    assert same(*points)


def test_a_module_is_copied() -> None:
    model = norm_net()
    before = deepcopy(model.state_dict())
    posed = pose(model, SOURCE, cross_entropy, dtype="float64")
    assert same(posed.model.float().state_dict(), before)
    with torch.no_grad():
        posed.model[0].weight.zero_()
    posed.model(X)
    trained(model=model, data=SOURCE)
    assert same(model.state_dict(), before)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_model_and_data_have_the_dtype_that_was_asked_for(dtype: str) -> None:
    posed = pose(norm_net, ((X.half(), Y), 14), cross_entropy, dtype=dtype)
    want = getattr(torch, dtype)
    assert {p.dtype for p in posed.model.parameters()} == {want}
    assert tensors(posed.data.train)[0].dtype == tensors(posed.data.test)[0].dtype == want
    assert posed.data.train[1].dtype == torch.int64


def test_only_a_classifier_has_an_accuracy() -> None:
    assert list(pose(norm_net, SOURCE, cross_entropy).metrics) == ["accuracy"]
    assert not pose(norm_net, ((X, X[:, :2]), 14), "mse").metrics
    assert not pose(
        nn.Linear(3, 1), ((X, Y), 14), lambda z, y: (z[:, 0] - y).square().mean()
    ).metrics


@pytest.mark.parametrize(
    ("kind", "value", "named"),
    [
        ("model", "mpl", "mlp, cnn, .* or module:function, got 'mpl': did you mean mlp"),
        ("data", "digit", "data needs to be digits.*did you mean digits"),
        ("loss", "cross-entropy", "loss needs to be .*did you mean cross_entropy"),
        ("model", "zzz", "got 'zzz': choose one"),
        ("model", "nets", "got 'nets'"),
        ("model", "nets:", "got 'nets:'"),
        ("model", ":build", "got ':build'"),
        ("model", "netz:build", "no module named netz: look at the spelling"),
        ("model", ".nets:build", "model .nets:build failed while imported"),
        ("model", "nets:buld", "a name in nets, got buld: did you mean build"),
        ("data", "nets:zzz", "a name in nets, got zzz: look at the spelling"),
        ("model", "imports:f", "no module named not_installed"),
        ("model", "raises:f", r"raises:f failed while imported: OSError no disk \(raises.py:1\)"),
        ("model", "exits:f", "exits:f failed while imported: SystemExit 2"),
        ("model", "typo:f", r"typo:f failed while imported: SyntaxError .*typo.py, line 1"),
        ("model", "nets:needy", "nets:needy cannot be called so: .*'depth'"),
        ("data", "nets:needy", "nets:needy cannot be called so: .*'depth'"),
        ("model", "nets:broken", r"nets:broken failed: KeyError 'depth' \(nets.py:\d+\)"),
        ("data", "nets:broken", r"nets:broken failed: KeyError 'depth' \(nets.py:\d+\)"),
        ("model", "nets:leaving", "nets:leaving failed: SystemExit 3"),
        ("model", "nets:forgetful", "torch.nn.Module, got a NoneType from nets:forgetful"),
        ("data", "nets:forgetful", r"\(train, test\).*got a NoneType"),
        ("loss", "nets:forgetful", "the loss rejects outputs and targets: TypeError"),
        ("model", "nets:number", "model needs a function, got a int as nets:number"),
        ("loss", "nets:number", "loss needs a function, got a int as nets:number"),
        ("model", None, "model needs a function, got a NoneType"),
        ("loss", None, "loss needs a function, got a NoneType"),
        ("data", None, r"\(train, test\).*got a NoneType"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_a_name_that_stands_for_nothing_of_use_is_refused(
    kind: str, value: Any, named: str, nets: Path
) -> None:
    (nets / "imports.py").write_text("import not_installed")
    (nets / "raises.py").write_text("raise OSError('no\\n disk')")
    (nets / "exits.py").write_text("import sys\nsys.exit(2)")
    (nets / "typo.py").write_text("def f(:")
    given = {"model": norm_net, "data": SOURCE, "loss": cross_entropy, kind: value}
    with pytest.raises(InputError, match=named) as caught:
        pose(given["model"], given["data"], given["loss"])
    one_line(caught.value)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"model_options": {"wdth": 3}}, "unexpected keyword argument 'wdth'"),
        ({"dtype": "float16"}, "dtype needs to be one of float32, float64, got float16"),
        ({"device": "gpu"}, "device needs to be like cpu or cuda:0, got 'gpu'"),
        ({"device": "cpu:3"}, "device needs one that is here, got cpu:3"),
        ({"device": "meta"}, "device needs to be cpu or cuda, got meta"),
        ({"device": "cuda:99"}, "device needs one that is here, got cuda:99"),
        ({"label_noise": 1.0}, "label_noise"),
        ({"train_examples": 99}, "at most 20 examples, got 99"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_option_that_cannot_be_met_is_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        pose(norm_net, SOURCE, cross_entropy, **options)


class Answer(nn.Linear):
    """A network that does with its inputs what it is told to."""

    def __init__(self, f: Callable[[Tensor], Any]) -> None:
        super().__init__(3, 2)
        self.f = f

    def forward(self, x: Tensor) -> Any:
        return self.f(x)


def insist(x: Tensor) -> Tensor:
    if x.shape[1] != 4:
        raise AssertionError("four columns")
    return x


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (nn.Linear(4, 2), "the model rejects the inputs: RuntimeError .*multiplied.*linear.py"),
        (nn.Conv2d(1, 1, 3), "the model rejects the inputs: RuntimeError"),
        (Answer(insist), "the model rejects the inputs: AssertionError four columns"),
        (Answer(lambda x: x.image), "the model rejects the inputs: AttributeError .*image"),
        (Answer(lambda x: {"a": x}["b"]), "the model rejects the inputs: KeyError 'b'"),
        (Answer(lambda x: {"logits": x}), "a model needs to return a tensor, got a dict"),
        (Answer(lambda x: nn.functional.dropout(x[:, :2])), "same outputs twice in eval mode"),
        (nn.Linear(3, 2).requires_grad_(False), "trainable parameters.*got none"),
    ],
    ids=["size", "axes", "assert", "attribute", "key", "dict", "noise", "frozen"],
)
def test_a_model_that_does_not_fit_the_data_is_refused(model: nn.Module, named: str) -> None:
    with pytest.raises(InputError, match=named) as caught:
        pose(model, SOURCE, cross_entropy)
    one_line(caught.value)


@pytest.mark.parametrize("loss", ["cross_entropy", nn.CrossEntropyLoss()], ids=["name", "module"])
@pytest.mark.parametrize(
    "labels", [Y + 1, Y - 1, torch.arange(20) // 19 * 2], ids=["high", "low", "one"]
)
def test_a_label_without_an_output_is_refused_wherever_it_is(loss: Any, labels: Tensor) -> None:
    named = f"0 to 1, got {labels.min()} to {labels.max()}"
    for source in [((X, labels), 14), ((X, Y), (X, labels)), ((X, labels), (X, Y))]:
        with pytest.raises(InputError, match="cross_entropy needs a class for each output, 0 to 1"):
            pose(nn.Linear(3, 2), source, loss)
    with pytest.raises(InputError, match=named):
        pose(nn.Linear(3, 2), ((X, labels), (X, labels)), loss)


@pytest.mark.parametrize("loss", ["mse", nn.functional.mse_loss, nn.MSELoss()], ids=str)
@pytest.mark.parametrize("model", ["mlp", nn.Linear(3, 1)], ids=["mlp", "linear"])
@pytest.mark.filterwarnings("ignore:Using a target size:UserWarning")
def test_squares_of_outputs_and_targets_of_other_shapes_are_refused(model: Any, loss: Any) -> None:
    targets = X[:, 0]
    with pytest.raises(InputError, match=r"one shape, got \(2, 1\) and \(2,\): reshape"):
        pose(model, ((X, targets), 14), loss)
    assert not pose(model, ((X, targets[:, None]), 14), loss).metrics


def test_a_loss_that_is_no_mean_over_the_batch_is_refused() -> None:
    for reduction in ("none", "sum"):
        with pytest.raises(
            InputError, match=f'got one with reduction="{reduction}": take the mean'
        ):
            pose(norm_net, SOURCE, nn.CrossEntropyLoss(reduction=reduction))
    with pytest.raises(InputError, match=r"one number, a tensor \(\), got shape \(2,\)"):
        pose(norm_net, SOURCE, lambda z, y: z[:, 0])


def test_a_loss_that_rejects_the_targets_is_refused() -> None:
    with pytest.raises(InputError, match=r"the loss rejects outputs and targets: .*Int"):
        pose(norm_net, ((X, Y.int()), 14), "cross_entropy")


# From a run to its objective


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_objective_of_a_run_continues_its_history(split: str, dtype: str) -> None:
    run = trained(train_examples=100, label_noise=0.2, split_seed=7, dtype=dtype)
    f = objective_of(run, split=split)
    got = f.evaluate(run.end)
    assert f.theta.dtype == getattr(torch, dtype)
    assert torch.equal(f.theta, run.end.theta)
    assert f.value(run.end) == run.history[f"{split}_loss"][-1]
    examples = {"train": 100, "test": 1697}[split]
    assert (f.spec["examples"], f.spec["of"]) == (examples, examples)
    assert (got["accuracy"] * examples).round() == run.history[f"{split}_right"][-1]


def test_the_objective_of_a_run_takes_its_running_statistics_and_frozen_parameters() -> None:
    run = trained(model=frozen_net, data=SOURCE, updates=20)
    f = objective_of(run, model=frozen_net, data=SOURCE, loss=cross_entropy)
    assert not torch.equal(run.end.buffers["1.running_mean"], torch.zeros(4))
    assert same(solution(f.model), run.end)
    assert f.value(f.theta) == f.value(run.end) == run.history["train_loss"][-1]


def test_the_objective_in_another_dtype_is_that_of_the_same_weights() -> None:
    run = trained(model=norm_net, data=SOURCE)
    f = objective_of(run, model=norm_net, data=SOURCE, dtype="float64")
    model = norm_net()
    place(model, run.end)
    posed = pose(norm_net, SOURCE, cross_entropy)
    inputs, targets = posed.data.train
    want = cross_entropy(model.double().eval()(inputs.double()), targets)
    assert f.theta.dtype == torch.float64
    assert torch.equal(f.theta, run.end.theta.double())
    torch.testing.assert_close(f.value(run.end), want)


def test_the_size_of_the_micro_batch_changes_rounding_only() -> None:
    run = trained(model=norm_net, data=SOURCE, dtype="float64")
    values = [
        objective_of(run, model=norm_net, data=SOURCE, micro_batch=b).value(run.end)
        for b in (1, 5, 14, 1024)
    ]
    torch.testing.assert_close(torch.stack(values), values[0].expand(4))


@pytest.mark.parametrize("split", ["train", "test"])
def test_examples_take_a_seeded_stratified_sample_of_that_size(split: str) -> None:
    run = trained(train_examples=200)
    whole = {tuple(x.tolist()): int(y) for x, y in examples(objective_of(run, split=split))}
    shares = torch.bincount(torch.tensor(list(whole.values()))) * 50 / len(whole)
    drawn = []
    for seed in (1, 1, 2):
        f = objective_of(run, split=split, examples=50, seed=seed)
        drawn.append([(tuple(x.tolist()), int(y)) for x, y in examples(f)])
        assert (f.spec["examples"], f.spec["of"]) == (50, len(whole))
        assert len(dict(drawn[-1])) == 50
        assert all(whole[x] == y for x, y in drawn[-1])
        counts = torch.bincount(torch.tensor([y for _, y in drawn[-1]]), minlength=10)
        assert ((counts - shares).abs() < 1).all()
    assert drawn[0] == drawn[1]
    assert set(drawn[0]) != set(drawn[2])


def examples(f: Objective) -> Iterator[tuple[Tensor, Tensor]]:
    for inputs, targets in f.batches:
        yield from zip(inputs, targets, strict=True)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"split": "valid"}, "split needs to be train or test, got 'valid'"),
        ({"examples": 0}, "at most 14 examples, got 0"),
        ({"examples": 15}, "at most 14 examples, got 15"),
        ({"examples": 2.5}, "at most 14 examples, got 2.5"),
        ({"examples": 3, "seed": -1}, "seed"),
        ({"dtype": "float16"}, "dtype needs to be one of float32, float64, got float16"),
        ({"micro_batch": 0}, "micro_batch needs to be at least 1, got 0"),
        ({"device": "gpu"}, "device needs to be like cpu"),
        ({"model": None}, r"the model of this run was an object .*test_problem:norm_net.*model="),
        ({"data": None}, r"the data of this run was an object .*tuple.*data="),
        ({"loss": None}, r"the loss of this run was an object .*cross_entropy.*loss="),
        ({"model": nn.Linear(3, 2)}, "8 trainable parameters, got a solution with 34"),
        ({"data": ((X + 1, Y), 14)}, "the train data need to be those of the run, SHA-256"),
        ({"data": ((X, 1 - Y), 14)}, "the train data need to be those of the run, SHA-256"),
    ],
    ids=[
        *("split", "none", "too many", "fraction", "seed", "dtype", "micro_batch", "device"),
        *("model object", "data object", "loss object", "model", "inputs", "labels"),
    ],
)
def test_an_objective_that_a_run_does_not_have_is_refused(
    options: dict[str, Any], named: str
) -> None:
    run = trained(model=norm_net, data=SOURCE, loss=cross_entropy)
    objects = {"model": norm_net, "data": SOURCE, "loss": cross_entropy}
    objective_of(run, **objects)
    with pytest.raises(InputError, match=named) as caught:
        objective_of(run, **{**objects, **options})
    one_line(caught.value)


def test_other_test_data_than_those_of_the_run_are_refused() -> None:
    run = trained(model=norm_net, data=((X, Y), (X, Y)))
    with pytest.raises(InputError, match="the test data need to be those of the run"):
        objective_of(run, model=norm_net, data=((X, Y), (X, 1 - Y)))


NAMES = {"model": "nets:build", "data": "nets:data", "loss": "nets:loss"}


@pytest.fixture
def loaded(nets: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run from a file, in a process that was given no names yet."""
    run = trained(**NAMES)
    assert objective_of(run).value(run.end) == run.history["train_loss"][-1]
    save("run.h5", run)
    monkeypatch.setattr(names, "GIVEN", set())
    del sys.modules["nets"]
    return load_as("run.h5", Run)


@pytest.mark.parametrize("missing", NAMES)
def test_a_name_that_only_a_file_gives_is_not_imported(missing: str, loaded: Run) -> None:
    others = {key: name for key, name in NAMES.items() if key != missing}
    for options in ({}, others):
        with pytest.raises(InputError, match=r"the run's file names .*trust_spec") as caught:
            objective_of(loaded, **options)
        assert "nets" not in sys.modules
    told = one_line(caught.value)
    assert f"names the {missing} {NAMES[missing]}," in told
    assert f"by --{missing} or {missing}=" in told


@pytest.mark.parametrize("options", [NAMES, {"trust_spec": True}], ids=["given", "trusted"])
def test_a_name_that_the_person_gives_or_trusts_is_imported(
    options: dict[str, Any], loaded: Run
) -> None:
    f = objective_of(loaded, **options)
    assert f.value(loaded.end) == loaded.history["train_loss"][-1]


# From a checkpoint to a run


def used(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Give the model random weights and running statistics that no initialization has."""
    model.to(dtype)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape))
        else:
            tensor.fill_(7)
    return model


def checkpoint(content: Any, path: Path, model: Any = norm_net, **options: Any) -> Run:
    torch.save(content, path / "a.pt")
    return read(path / "a.pt", model=model, data=SOURCE, loss="cross_entropy", **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("build", [norm_net, frozen_net])
@pytest.mark.parametrize("key", [None, "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_run_that_was_read_ends_at_the_weights_of_the_checkpoint(
    prefix: str, key: str | None, build: Callable[[], nn.Module], dtype: torch.dtype, tmp_path: Path
) -> None:
    model = used(build(), dtype)
    weights = {prefix + name: x for name, x in model.state_dict().items()}
    run = checkpoint(weights if key is None else {key: weights, "epoch": 3}, tmp_path, build)
    assert same(run.end, solution(model))
    assert run.end.theta.dtype == dtype
    assert run.spec["train"]["dtype"] == str(dtype).removeprefix("torch.")
    assert (run.start, run.stopped, run.updates) == (None, "read", 0)


def test_the_objective_of_a_checkpoint_is_that_of_its_model(tmp_path: Path) -> None:
    model = used(frozen_net(), torch.float64)
    run = checkpoint(model.state_dict(), tmp_path, frozen_net, split_seed=3)
    for split, index in [("train", run.train_index), ("test", run.test_index)]:
        f = objective_of(run, split=split, model=frozen_net, data=SOURCE)
        want = cross_entropy(model.eval()(X[index].double()), Y[index])
        torch.testing.assert_close(f.value(run.end), want)
        torch.testing.assert_close(f.value(f.theta), want)
    assert (len(run.train_index), len(run.test_index)) == (14, 6)


def test_a_checkpoint_in_another_precision_is_converted(tmp_path: Path) -> None:
    model = used(norm_net())
    for options, stored in [({}, model.bfloat16()), ({"dtype": "float64"}, model)]:
        run = checkpoint(stored.state_dict(), tmp_path, **options)
        want = torch.float64 if options else torch.float32
        assert torch.equal(run.end.theta, solution(stored).theta.to(want))
        assert run.end.buffers["1.running_var"].dtype == want
        assert run.end.buffers["1.num_batches_tracked"] == 7


WEIGHT, BIAS = torch.ones(2, 3), torch.zeros(2)


@pytest.mark.parametrize(
    ("weights", "named"),
    [
        ({"weight": WEIGHT}, "bias is missing"),
        ({"bias": BIAS, "other": BIAS}, "weight is missing"),
        ({"other": BIAS}, "weight and 1 more are missing"),
        ({"weight": WEIGHT, "bias": BIAS, "scale": BIAS}, "scale is not in the model"),
        ({"weight": WEIGHT.T, "bias": BIAS}, r"weight is \(3, 2\), the model has \(2, 3\)"),
        ({"weight": WEIGHT, "bias": BIAS[:1]}, r"bias is \(1,\), the model has \(2,\)"),
        ({"weight": WEIGHT.to(torch.complex64), "bias": BIAS}, "weight is torch.complex64"),
        ({"weight": WEIGHT, "bias": BIAS.long()}, "bias is torch.int64"),
        ({"weight": WEIGHT, "bias": BIAS / 0}, "finite weights: bias holds 2"),
        ({"weight": WEIGHT, "bias": BIAS + float("inf")}, "finite weights: bias holds 2"),
    ],
    ids=[
        *("missing", "missing and unexpected", "two missing", "unexpected", "turned", "short"),
        *("complex", "integer", "nan", "inf"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_by_the_tensor(
    weights: dict[str, Tensor], named: str, tmp_path: Path
) -> None:
    with pytest.raises((InputError, ComputationError), match=f"a.pt needs .*{named}") as caught:
        checkpoint(weights, tmp_path, nn.Linear(3, 2))
    one_line(caught.value)


def test_a_complex_counter_is_refused(tmp_path: Path) -> None:
    weights = {**norm_net().state_dict(), "1.num_batches_tracked": torch.tensor(1j)}
    with pytest.raises(ComputationError, match=r"1.num_batches_tracked is torch.complex64"):
        checkpoint(weights, tmp_path)


def test_weights_beyond_the_range_of_the_dtype_are_refused(tmp_path: Path) -> None:
    weights = {"weight": WEIGHT.double() * 1e300, "bias": BIAS.double()}
    assert checkpoint(weights, tmp_path, nn.Linear(3, 2)).end.theta.max() == 1e300
    with pytest.raises(ComputationError, match=r"finite weights.* weight holds 6"):
        checkpoint(weights, tmp_path, nn.Linear(3, 2), dtype="float32")


# Solutions


@pytest.mark.parametrize("build", [norm_net, frozen_net, lambda: nn.Linear(3, 2, bias=False)])
def test_a_solution_is_placed_bit_by_bit(build: Callable[[], nn.Module]) -> None:
    model, other = used(build()), build()
    point = solution(model)
    assert not same(point, solution(other))
    place(other, point)
    assert same(solution(other), point)
    assert same(other.state_dict(), model.state_dict())
    flags = [p.requires_grad for p in model.parameters()]
    assert [p.requires_grad for p in other.parameters()] == flags


@pytest.mark.parametrize("build", [norm_net, frozen_net, lambda: nn.Linear(3, 2, bias=False)])
def test_a_solution_is_a_copy(build: Callable[[], nn.Module]) -> None:
    model = build()
    point = solution(model)
    before = deepcopy(point)
    used(model)
    assert same(point, before)
    assert not point.theta.requires_grad


def test_a_solution_holds_what_the_function_depends_on() -> None:
    model = frozen_net()
    model.register_buffer("mask", torch.ones(2), persistent=False)
    model.register_buffer("scale", torch.ones(2))
    point = solution(model)
    trainable = [model[1].weight, model[1].bias, model[2].weight.flatten(), model[2].bias]
    assert torch.equal(point.theta, torch.cat(trainable))
    statistics = [f"1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")]
    assert sorted(point.buffers) == sorted(["0.weight", "0.bias", "scale", *statistics])


@pytest.mark.parametrize(
    ("point", "named"),
    [
        (solution(norm_net(5)), "34 trainable parameters, got a solution with 42"),
        (Solution(torch.zeros(34), {**solution(norm_net()).buffers, "scale": BIAS}), "scale"),
        (Solution(torch.zeros(34), {"1.running_mean": torch.zeros(5)}), r"1.running_mean"),
        (Solution(torch.zeros(34), {"1.running_mean": torch.zeros(4)}), "1.running_var"),
        (Solution(torch.zeros(34), {}), r"1\.(num|running)"),
    ],
    ids=["length", "unknown", "shape", "incomplete", "none"],
)
def test_a_solution_of_another_model_is_refused_and_changes_nothing(
    point: Solution, named: str
) -> None:
    model = used(norm_net())
    before = deepcopy(model.state_dict())
    with pytest.raises(InputError, match=named):
        place(model, point)
    assert same(model.state_dict(), before)


def test_a_model_without_trainable_parameters_has_no_solution() -> None:
    with pytest.raises(InputError, match="trainable parameters, got none"):
        solution(nn.ReLU())


PAIR = ((torch.randn(20, 3), torch.arange(20) % 2), (torch.randn(6, 3), torch.arange(6) % 2))


def test_a_module_that_a_function_keeps_is_copied_too() -> None:
    net = nn.Linear(3, 2)
    before = net.weight.clone()
    config = TrainConfig(model=lambda: net, data=PAIR, batch_size=5, epochs=1, threads=1)
    runs = [train(config), train(config)]
    assert torch.equal(net.weight, before)
    assert torch.equal(runs[0].end.theta, runs[1].end.theta)


def test_a_run_is_not_measured_with_another_loss_than_its_own() -> None:
    run = train(TrainConfig(model_options={"widths": []}, updates=1))
    with pytest.raises(InputError, match="made with the loss cross_entropy, got mse"):
        objective_of(run, loss="mse")
    assert objective_of(run, loss="cross_entropy").value(run.end) > 0


@pytest.mark.parametrize(
    "loss",
    [
        lambda z, y: nn.functional.cross_entropy(z, y, reduction="sum"),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 9.0])),
    ],
    ids=["sum", "class weights"],
)
def test_a_loss_whose_value_depends_on_the_batches_is_refused(loss: Any) -> None:
    with pytest.raises(InputError, match="mean over the examples of a batch"):
        pose(nn.Linear(3, 2), PAIR, loss)


def test_a_checkpoint_with_two_values_for_tied_weights_is_refused(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x))

    one = torch.randn(3, 3)
    data = ((PAIR[0][0], PAIR[0][1]), (PAIR[1][0], PAIR[1][1]))
    for factor in (1, 3):
        torch.save({"a.weight": one, "b.weight": factor * one}, tmp_path / "a.pt")
        if factor == 1:
            run = read(tmp_path / "a.pt", model=Tied, data=data, loss="cross_entropy")
            assert torch.equal(run.end.theta, one.flatten())
        else:
            with pytest.raises(InputError, match="one value for weights that the model ties"):
                read(tmp_path / "a.pt", model=Tied, data=data, loss="cross_entropy")


def test_a_loss_that_is_all_rounding_is_still_a_mean() -> None:
    """A network that fits its targets: in other batches its outputs round otherwise."""
    net = nn.Sequential(nn.Linear(40, 300), nn.Tanh(), nn.Linear(300, 3))
    x = torch.randn(53, 40)
    with torch.no_grad():
        y = net(x)  # a loss of 0, and of some 1e-15 where a batch is of one example
    problem = pose(net, ((x, y), (x, y)), "mse")
    assert problem.metrics == {}
