"""From names to a model, data and a loss, and from a run back to its Objective."""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sharpness.batch_norm import layers
from sharpness.data import (
    Part,
    Split,
    batches,
    converted,
    is_labels,
    size,
    source_of,
    split as split_source,
    stratified,
    take,
    tensors,
)
from sharpness.errors import InputError
from sharpness.micro_batches import MOST, micro_batch_of
from sharpness.models import MODELS
from sharpness.names import called, is_array_file, located, require_given, resolve, shown
from sharpness.objective import MEMORY, Measure, Objective, accuracy, on_device
from sharpness.reading import MAX_BYTES, read_checkpoint, require_match, unprefixed, with_tied
from sharpness.results import Run, Solution
from sharpness.vectors import digest, flatten, stream, unflatten

LOSSES: dict[str, Measure] = {
    "cross_entropy": nn.functional.cross_entropy,
    "mse": nn.functional.mse_loss,
}
DTYPES = {"float32": torch.float32, "float64": torch.float64}
SPLITS = ("train", "test")
PARTS = (*SPLITS, "validation")  # which there is where the run's data_options say so
PROBE = 13  # examples of a batch when the loss is tried for being a mean
GROUPS = 32  # batches of a sample at least, from whose scatter its error is told

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Problem:
    """A model where its training starts, its data and its loss: all that a training needs."""

    model: nn.Module
    data: Split
    loss: Measure
    metrics: dict[str, Measure]
    spec: dict[str, Any]  # the SHA-256 and the numbers of examples of all parts


def pose(
    model: Any,
    data: Any,
    loss: Any,
    *,
    model_options: Mapping[str, Any] | None = None,
    data_options: Mapping[str, Any] | None = None,
    train_examples: int | None = None,
    label_noise: float = 0.0,
    seed: int = 0,
    split_seed: int = 0,
    dtype: str = "float32",
    device: str = "cpu",
) -> Problem:
    """Return the problem of these names or objects.

    Args:
        model: One of ``MODELS``, ``module:function`` or such a function, called with
            ``model_options`` under ``seed``; or a module, which is copied.
        data: One of ``DATA``, a file of arrays, ``module:function`` or such a function; or what it
            would return (see ``data``).
        loss: One of ``LOSSES``, ``module:function`` or such a function of (outputs, targets).
        data_options: Those of ``data.TRANSFORMS``, and arguments of the data set's function.

    Raises:
        InputError: If a name is unknown or what it names does not fit the others.
    """
    options = dict(model_options or {})
    if dtype not in DTYPES:
        raise InputError(f"dtype needs to be one of {', '.join(DTYPES)}, got {dtype}: choose one")
    where = usable_device(device)
    measure = resolve(loss, LOSSES, "loss")
    if not callable(measure):
        raise InputError(
            f"loss needs a function, got a {type(measure).__name__} as {shown(loss)}: give one of "
            "(outputs, targets)"
        )
    parts = split_source(
        source_of(data, data_options),
        train_examples=train_examples,
        label_noise=label_noise,
        split_seed=split_seed,
        options=data_options,
    )
    parts = parts.holding(lambda part: converted(part, DTYPES[dtype]))
    if isinstance(model, str) and model in MODELS:
        options = {"inputs": _example_shape(parts.train), "outputs": _outputs(parts), **options}
    builder = resolve(model, MODELS, "model")
    with seeded(seed, where):
        module = (
            builder if isinstance(builder, nn.Module) else called(builder, "model", model, options)
        )
    if not isinstance(module, nn.Module):
        raise InputError(
            f"model needs a torch.nn.Module, got a {type(module).__name__} from "
            f"{shown(model)}: return the network"
        )
    # A copy, also of what a function returns: it may keep the module, or share strided storage.
    module = deepcopy(module).to(device=where, dtype=DTYPES[dtype])
    metrics = _fit(module, parts, measure)
    return Problem(
        model=module,
        data=parts,
        loss=measure,
        metrics=metrics,
        spec={
            **{f"{name}_sha256": digest(*tensors(part)) for name, part in parts.parts.items()},
            **{f"{name}_examples": size(part) for name, part in parts.parts.items()},
        },
    )


@contextmanager
def seeded(seed: int, where: torch.device) -> Iterator[None]:
    """Let torch draw from ``seed`` meanwhile; the user's own random state stays as it is."""
    devices = [where] if where.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(seed)
        for device in devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def objective_of(
    run: Run,
    *,
    split: str = "train",
    examples: int | None = None,
    seed: int = 0,
    dtype: str | None = None,
    device: str | None = None,
    micro_batch: int | None = None,
    batch_norm: str = "frozen",
    metrics: Mapping[str, Measure] | None = None,
    memory: int = MEMORY,
    model: Any = None,
    data: Any = None,
    loss: Any = None,
    trust_spec: bool = False,
) -> Objective:
    """Return the loss of a run on one part of its data, at the run's end.

    Args:
        split: ``train``, ``test``, or ``validation`` where the run has such a part.
        examples: Take a stratified sample of that many, drawn from ``seed``. Default: all.
        dtype: ``float32`` or ``float64``. Default: that of the run.
        device: Default: that of the run.
        micro_batch: Examples of one batch; other sizes round differently. Default: by a fixed rule
            (see ``sharpness.micro_batches``).
        batch_norm: What layers with running statistics do (see ``Objective``); re-estimated ones
            are those of the whole training part, also for a sample or the test part. Under
            ``batch`` all examples are one batch, whose statistics a split would change.
        metrics: Further means over a batch by name, functions of (outputs, targets).
        memory: Bytes for what is kept beside the model (see ``Objective``); where they are few,
            batches are smaller too.
        model: What the run was made with, where that was an object or where the run came from a
            file that names ``module:function``; likewise ``data`` and ``loss``.
        trust_spec: Import what the run's file names; it can run any code.

    Raises:
        InputError: If the run's model or data cannot be had again, or are others than they were.

    >>> from sharpness.training import TrainConfig, train
    >>> run = train(TrainConfig(updates=1))
    >>> f = objective_of(run, split="test")
    >>> f.value(run.end) == run.history["test_loss"][-1]
    tensor(True)
    """
    parts = [part for part in PARTS if f"{part}_sha256" in run.spec["data"]]
    if split not in parts:
        raise InputError(
            f"split needs to be {' or '.join(parts)}, got {split!r}: choose one of them"
            + (", or train with data_options validation" if split == "validation" else "")
        )
    if micro_batch is not None and micro_batch < 1:
        raise InputError(f"micro_batch needs to be at least 1, got {micro_batch}: raise it")
    record = run.spec["train"]
    given = {"model": model, "data": data, "loss": loss}
    names = {key: record[key] if value is None else value for key, value in given.items()}
    for key, value in given.items():
        made = record[key]
        moved = is_array_file(value) and is_array_file(made)  # what is in it tells its SHA-256
        if isinstance(value, str) and value != made and not made.startswith("object ") | moved:
            raise InputError(
                f"the run was made with the {key} {made}, got {value}, which would measure "
                "something else: leave it out"
            )
    for key, value in names.items():
        require_given(key, value, explicit=given[key] is not None or trust_spec)
    problem = pose(
        **names,
        model_options=record["model_options"],
        data_options=record.get("data_options"),
        train_examples=record["train_examples"],
        label_noise=record["label_noise"],
        seed=record["seed"],
        split_seed=record["split_seed"],
        dtype=record["dtype"],
        device=device or record["device"],
    )
    for name in parts:
        was, now = run.spec["data"][f"{name}_sha256"], problem.spec[f"{name}_sha256"]
        if was != now:
            raise InputError(
                f"the {name} data need to be those of the run, SHA-256 {was[:12]}, got "
                f"{now[:12]} from {shown(names['data'])}: give the data that it was made with"
            )
    LOG.info("objective_of: the %s part, %s of its examples", split, examples or "all")
    place(problem.model, run.end)
    part = problem.data.parts[split]
    total, norms = size(part), bool(layers(problem.model))
    # That the statistics are taken in is part of the function, so it is no matter of speed.
    whole_batch = micro_batch or MOST
    if examples is not None:
        chosen = stratified(part[1], examples, seed)
        order = stream(seed, 2).permutation(chosen)
        part = take(part, torch.from_numpy(order))
    real = DTYPES.get(dtype or record["dtype"])
    if real is None:
        raise InputError(f"dtype needs to be one of {', '.join(DTYPES)}, got {dtype}: choose one")
    problem.model.to(real)
    part = converted(part, real)
    if norms and batch_norm == "batch":
        if micro_batch is not None and micro_batch < size(part):
            raise InputError(
                f"batch statistics need all {size(part)} examples in one batch, for they change "
                f"with a split, got micro_batch={micro_batch}: leave it out, or take frozen or "
                "reestimate"
            )
        micro_batch = size(part)
    elif micro_batch is None:
        micro_batch = micro_batch_of(problem.model, part, problem.loss, memory=memory)
    if examples is not None and not (norms and batch_norm == "batch"):
        # The scatter of the batches of a sample tells its error.
        micro_batch = min(micro_batch, math.ceil(examples / GROUPS))
    statistics = batches(converted(problem.data.train, real), whole_batch) if norms else None
    return Objective(
        problem.model,
        batches(part, micro_batch),
        problem.loss,
        metrics={**problem.metrics, **(metrics or {})},
        batch_norm=batch_norm,
        statistics=statistics,
        memory=memory,
        spec={
            **({"statistics": {"part": "train", "micro_batch": whole_batch}} if norms else {}),
            "split": split,
            "examples": size(part),
            "of": total,
            "sample_seed": None if examples is None else seed,
            "micro_batch": micro_batch,
            "data_sha256": problem.spec[f"{split}_sha256"],
            "run": run.spec,
        },
    )


def read(
    checkpoint: str | Path,
    *,
    model: Any,
    data: Any,
    loss: Any,
    model_options: Mapping[str, Any] | None = None,
    data_options: Mapping[str, Any] | None = None,
    train_examples: int | None = None,
    label_noise: float = 0.0,
    split_seed: int = 0,
    dtype: str | None = None,
    device: str = "cpu",
    key: str | None = None,
    max_bytes: int = MAX_BYTES,
) -> Run:
    """Return a Run that ends at the weights of a checkpoint: .pt, .safetensors or HDF5.

    The options are those of a training, by which the weights came about; the dtype is by default
    float64 where the checkpoint has such weights, and float32 otherwise. ``spec["checkpoint"]``
    tells the checksum by which damage to the file would have shown, ``crc32`` or ``none``.

    Args:
        key: Where in the file the weights are. Default: the file itself, ``state_dict``,
            ``model_state_dict`` or ``model``, unless there are several sets of weights.
        max_bytes: Refuse larger files, which are held in memory whole.

    Raises:
        InputError: If there is no such file, or if its tensors are not those of the model.
        ComputationError: If the file is damaged, or holds more than dense, finite tensors.

    >>> from tempfile import TemporaryDirectory
    >>> model = torch.nn.Linear(64, 10)
    >>> with TemporaryDirectory() as folder:
    ...     torch.save(model.state_dict(), f"{folder}/mine.pt")
    ...     run = read(f"{folder}/mine.pt", model=model, data="digits", loss="cross_entropy")
    >>> torch.equal(run.end.theta, solution(model).theta), run.stopped
    (True, 'read')
    """
    file = read_checkpoint(checkpoint, key=key, max_bytes=max_bytes)
    weights = file.weights
    options = dict(model_options or {})
    if dtype is None:
        double = any(tensor.dtype == torch.float64 for tensor in weights.values())
        dtype = "float64" if double else "float32"
    problem = pose(
        model,
        data,
        loss,
        model_options=options,
        data_options=data_options,
        train_examples=train_examples,
        label_noise=label_noise,
        split_seed=split_seed,
        dtype=dtype,
        device=device,
    )
    name, wanted = Path(checkpoint).name, problem.model.state_dict()
    weights = with_tied(unprefixed(weights, wanted), wanted)
    require_match(weights, wanted, name)
    problem.model.load_state_dict(weights)
    for part, value in problem.model.state_dict().items():
        if not torch.equal(value.cpu(), weights[part].to(value.dtype)):
            raise InputError(
                f"{name} needs one value for weights that the model ties, got another for {part}: "
                "give the checkpoint of this model"
            )
    return Run(
        start=None,
        end=solution(problem.model),
        checkpoints=[],
        checkpoint_updates=torch.zeros(0, dtype=torch.int64),
        history={},
        optimizer={},
        train_index=problem.data.train_index,
        test_index=problem.data.test_index,
        updates=0,
        stopped="read",
        spec={
            "algorithm": "read",
            "checkpoint": {
                "name": Path(checkpoint).name,
                "sha256": file.sha256,
                "checksum": file.checksum,
                **({} if key is None else {"key": key}),
            },
            "train": {
                "model": shown(model),
                "model_options": options,
                "data": shown(data),
                "loss": shown(loss),
                "train_examples": train_examples,
                "label_noise": label_noise,
                **({"data_options": dict(data_options)} if data_options else {}),
                "seed": 0,
                "split_seed": split_seed,
                "dtype": dtype,
                "device": device,
            },
            "data": problem.spec,
        },
    )


def solution(model: nn.Module) -> Solution:
    """Return the point where a model in memory stands, a copy.

    >>> solution(torch.nn.BatchNorm1d(2)).theta
    tensor([1., 1., 0., 0.])
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise InputError("a solution needs trainable parameters, got none: set requires_grad")
    kept = model.state_dict(keep_vars=True)
    rest: dict[str, Tensor] = {n: p for n, p in model.named_parameters() if not p.requires_grad}
    rest |= {name: b for name, b in model.named_buffers() if name in kept}
    return Solution(flatten(trainable), {name: x.detach().clone() for name, x in rest.items()})


def place(model: nn.Module, point: Solution) -> None:
    """Set the parameters and buffers of a model, in place.

    Raises:
        InputError: If the point is not one of this model.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    shapes = {name: p.shape for name, p in trainable.items()}
    n = sum(shape.numel() for shape in shapes.values())
    if n != len(point.theta):
        raise InputError(
            f"the model needs {n} trainable parameters, got a solution with {len(point.theta)}: "
            "give the model that it belongs to"
        )
    own = solution(model).buffers
    for name in [*own, *point.buffers]:
        want, got = own.get(name), point.buffers.get(name)
        if want is None or got is None or want.shape != got.shape:
            raise InputError(
                f"the model needs its own buffers, got a solution where {name} is "
                f"{'missing' if got is None else tuple(got.shape)}: give the model that it "
                "belongs to"
            )
    targets = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, value in {**unflatten(point.theta, shapes), **point.buffers}.items():
            targets[name].copy_(value)


def usable_device(name: str) -> torch.device:
    """Return the device of this name.

    Raises:
        InputError: If there is none.
    """
    try:
        where = torch.device(name)
    except RuntimeError as error:
        raise InputError(
            f"device needs to be like cpu or cuda:0, got {name!r}: change it"
        ) from error
    if where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device needs one that is here, got {name} and {torch.cuda.device_count()} CUDA "
            "devices: use cpu"
        )
    if where.type == "cpu" and where.index:
        raise InputError(f"device needs one that is here, got {name} and one CPU: use cpu")
    if where.type not in ("cpu", "cuda"):
        raise InputError(f"device needs to be cpu or cuda, got {name}: choose one of them")
    return where


def _example_shape(part: Part) -> list[int]:
    inputs = part[0]
    if not isinstance(inputs, Tensor):
        raise InputError("this model needs one input tensor, got several: give a model of your own")
    return list(inputs.shape[1:])


def _outputs(parts: Split) -> int:
    targets = parts.train[1]
    if is_labels(targets):
        return int(max(y.max() for _, y in parts.parts.values())) + 1
    return math.prod(targets.shape[1:])


def _fit(model: nn.Module, parts: Split, loss: Measure) -> dict[str, Measure]:
    """Try the model and the loss on two examples; return the metrics that have a meaning here."""
    inputs, targets = take(parts.train, torch.arange(min(2, size(parts.train))))
    probe = Objective(model, [(inputs, targets)], loss)
    where = probe.theta.device
    try:
        with torch.no_grad(), seeded(0, where):
            outputs, again = (
                probe.outputs(probe.theta, on_device(where, inputs)) for _ in range(2)
            )
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"the model rejects the inputs: {located(error)}") from error
    if not isinstance(outputs, Tensor):
        raise InputError(
            f"a model needs to return a tensor, got a {type(outputs).__name__}: return its logits, "
            "by a forward hook where the model is not yours"
        )
    if not torch.equal(outputs.nan_to_num(), again.nan_to_num()):
        raise InputError(
            "a model needs to give the same outputs twice in eval mode, got two different ones: "
            "switch dropout and other noise off where self.training is false"
        )
    metrics: dict[str, Measure] = {}
    by_class = loss is nn.functional.cross_entropy or isinstance(loss, nn.CrossEntropyLoss)
    if by_class and targets.is_floating_point():
        _require_probabilities(parts)
    if is_labels(targets) and outputs.ndim == 2:
        labels = [y for _, y in parts.parts.values()]
        low, high = min(int(x.min()) for x in labels), max(int(x.max()) for x in labels)
        inside = low >= 0 and high < outputs.shape[1]
        if by_class and not inside:
            raise InputError(
                f"cross_entropy needs a class for each output, 0 to {outputs.shape[1] - 1}, got "
                f"{low} to {high}: change the targets or the model"
            )
        if inside and outputs.shape[1] > 1:
            metrics = {"accuracy": accuracy}
    try:
        probe.value(probe.theta)
    except InputError:
        raise
    except Exception as error:
        cause = error.__cause__ or error
        raise InputError(f"the loss rejects outputs and targets: {located(cause)}") from error
    _require_slope(probe)
    _require_mean(model, parts, loss)
    return metrics


def _require_slope(probe: Objective) -> None:
    """Refuse a loss that is cut from the parameters: its derivatives would be silent zeros."""
    theta = probe.theta.clone().requires_grad_()
    with torch.enable_grad(), seeded(0, theta.device), probe.with_native_rnn():
        loss = probe.first(lambda i, inputs, targets: probe.batch_loss(theta, inputs, targets))
    if not loss.requires_grad:
        raise InputError(
            "loss needs to depend on the parameters, got a number without a gradient: leave "
            "detach, item and no_grad out of the model and the loss"
        )


def _require_mean(model: nn.Module, parts: Split, loss: Measure) -> None:
    """Refuse a loss that is no mean over examples: its value would depend on the batches."""
    inputs, targets = take(parts.train, torch.arange(min(64, size(parts.train))))
    probe = Objective(model, [(inputs, targets)], loss)
    where = probe.theta.device
    try:
        with torch.no_grad():
            # Once: in other batches a model rounds otherwise, which near a loss of 0 is all.
            z, y = probe.outputs(probe.theta, on_device(where, inputs)), targets.to(where)
            cuts = [slice(i, i + PROBE) for i in range(0, len(y), PROBE)]
            pieces = [len(y[cut]) * float(probe.loss_of_outputs(z[cut], y[cut])) for cut in cuts]
            value, other = float(probe.loss_of_outputs(z, y)), sum(pieces) / len(y)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"the model or the loss rejects the data: {located(error)}") from error
    scale = max(abs(value), sum(map(abs, pieces)) / len(y))
    # To the rounding of float32 sums; a loss that is not finite is found when it is used.
    if math.isfinite(scale) and abs(value - other) > 1e-4 * scale:
        raise InputError(
            f"loss needs the mean over the examples of a batch, got {value:.6g} in one batch and "
            f"{other:.6g} in several: leave out sums, class weights and ignored targets"
        )


def _require_probabilities(parts: Split) -> None:
    for _, targets in parts.parts.values():
        sums = targets.sum(dim=1) if targets.ndim > 1 else torch.zeros(1)
        # To the rounding of a float32 softmax over many classes.
        whole = torch.allclose(sums, torch.ones_like(sums), atol=1e-4)
        if not whole or (targets < 0).any():
            raise InputError(
                "cross_entropy needs classes, or probabilities of them that sum to 1, got "
                f"{targets.dtype} of shape {tuple(targets.shape)}: choose another loss"
            )
