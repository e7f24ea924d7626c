"""From the spec of a result back to the runs, objectives and points that it was computed from."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from sharpness.curvature import Operator
from sharpness.errors import InputError
from sharpness.names import GIVEN, is_array_file, require_given, resolve
from sharpness.objective import Objective, fingerprint
from sharpness.operators import OPERATORS, Block, Sum, WeightDecayed
from sharpness.problem import objective_of, pose, solution
from sharpness.results import Run, Solution

# What of an objective may be another where it is built again, or is looked at by itself.
ELSEWHERE = ("device", "threads", "gemm", "metrics")


@dataclass(frozen=True)
class Origin:
    """The runs that are at hand, and what a person says of model, data and loss."""

    runs: Mapping[str, Run]
    given: Mapping[str, Any] = field(default_factory=dict)  # "model", "data" and "loss"
    trust_spec: bool = False
    notes: list[str] = field(default_factory=list)  # what was done otherwise than it was

    def run(self, record: Mapping[str, Any]) -> Run:
        """Return the run that has this spec.

        Raises:
            InputError: If there is none.
        """
        for run in self.runs.values():
            if plain(run.spec) == plain(record):
                return run
        made = record["train"]
        about = f"{made['model']} on {made['data']}, seed {made['seed']}"
        raise InputError(
            f"verify needs the run that this came from, of {about}, got {len(self.runs)} runs that "
            "are others: give it too"
        )

    def objective(self, spec: Mapping[str, Any]) -> Objective:
        """Return the objective that has this spec.

        Raises:
            InputError: If it cannot be built again.
        """
        if "run" not in spec or "split" not in spec:
            raise InputError(
                "verify needs an objective that objective_of made, got one of objects in memory, "
                "which no spec can build again: compare the numbers yourself"
            )
        run, policy = self.run(spec["run"]), spec["batch_norm"]
        shared: dict[str, Any] = {
            "split": spec["split"],
            "examples": None if spec["sample_seed"] is None else spec["examples"],
            "seed": spec["sample_seed"] or 0,
            "dtype": spec["dtype"].removeprefix("torch."),
            "device": self.device(spec["device"]),
            "metrics": self._metrics(spec["metrics"]),
            **names_of(run.spec["train"], self.given, trust_spec=self.trust_spec),
        }
        if "gemm" in spec:
            self.note(f"matrix products by {spec['gemm']} then, by torch's default now")
        # Statistics of batches that are not all the data are those of an objective that came to
        # this policy later.
        later = policy == "batch" and spec["micro_batch"] < spec["examples"]
        made = "frozen" if later else policy
        f = objective_of(run, **shared, batch_norm=made, micro_batch=spec["micro_batch"])
        f = f.under(policy)
        if "statistics" in spec:
            if policy == "reestimate" and f.spec["statistics"] != spec["statistics"]:
                size = spec["statistics"]["micro_batch"]
                f.statistics = objective_of(run, **shared, micro_batch=size).statistics
            f.spec = {**f.spec, "statistics": spec["statistics"]}
        told, wanted = plain(f.spec), plain(spec)
        differing = [k for k in wanted if k not in ELSEWHERE and told.get(k) != wanted[k]]
        if differing:
            raise InputError(
                f"verify needs the objective that the spec names, got another "
                f"{', '.join(differing)}: verify it by the version of sharpness that computed it"
            )
        return f

    def operator(self, spec: Mapping[str, Any]) -> Operator:
        """Return the operator that has this spec.

        Raises:
            InputError: If it is none of an objective, or is made by vectors that no spec has.
        """
        kind, by_class = spec.get("operator"), {kind.__name__: kind for kind in OPERATORS.values()}
        if kind in by_class:
            f = self.objective(spec["objective"])
            options = {key: spec[key] for key in ("draws", "seed") if key in spec}
            here = self.point(f, spec["point"])
            return by_class[kind](f, here, engine=spec["engine"], **options)
        if kind == "Sum":
            return Sum(*((x["factor"], self.operator(x["of"])) for x in spec["terms"]))
        if kind == "WeightDecayed":
            decay, params = spec["weight_decay"], spec["params"]
            return WeightDecayed(self.operator(spec["of"]), decay, params=params)
        if kind == "Block" and "params" in spec:
            return Block(self.operator(spec["of"]), spec["params"])
        raise InputError(
            f"verify needs an operator of a run, {', '.join(by_class)}, or a sum, weight decay or "
            f"block of such, got {kind}: compare the numbers yourself"
        )

    def point(self, f: Objective, sha256: str) -> Solution:
        """Return the point of a run at hand that has this fingerprint, as the objective has it.

        Raises:
            InputError: If there is none.
        """
        for run in self.runs.values():
            for point in reversed(run.points.values()):
                if len(point.theta) != len(f.theta):
                    break
                for here in (f.at(point), f.at(point.theta)):  # a bare theta has no buffers
                    if fingerprint(here) == sha256:
                        return here
        raise InputError(
            f"verify needs the solution with SHA-256 {sha256[:12]}, got none such among the points "
            f"of {len(self.runs)} runs: give the run that it belongs to"
        )

    def of(self, run: Run, split: str) -> Objective:
        """Return the objective of a part of a run's data, as its training looked at it."""
        record = run.spec["train"]
        names = names_of(record, self.given, trust_spec=self.trust_spec)
        return objective_of(run, split=split, device=self.device(record["device"]), **names)

    def start(self, run: Run) -> Solution | None:
        """Return where the seed of a run starts, None where its model was an object."""
        record = run.spec["train"]
        if run.start is None or record["model"].startswith("object "):
            return None
        settings = ("model_options", "train_examples", "label_noise", "seed", "split_seed", "dtype")
        problem = pose(
            **names_of(record, self.given, trust_spec=self.trust_spec),
            **{key: record[key] for key in settings},
            data_options=record.get("data_options"),
        )
        return solution(problem.model)

    def device(self, name: str) -> str:
        """Return the device of this name, the CPU where it is not here."""
        if name == "cpu" or torch.cuda.is_available():
            return name
        self.note(f"computed on {name} then, on the CPU now")
        return "cpu"

    def note(self, text: str) -> None:
        """Tell something once."""
        if text not in self.notes:
            self.notes.append(text)

    def _metrics(self, names: Mapping[str, str]) -> dict[str, Any]:
        """Return the user's metrics that may be imported."""
        found = {}
        for key, name in names.items():
            if name.startswith("sharpness."):
                continue
            if (self.trust_spec or name in GIVEN) and name.partition(":")[2].isidentifier():
                found[key] = resolve(name, {}, "metric")
            else:
                self.note(f"{key} not recomputed, for it is by {name}, which was not trusted")
        return found


def names_of(
    record: Mapping[str, Any], given: Mapping[str, Any], *, trust_spec: bool = False
) -> dict[str, Any]:
    """Return model, data and loss of a training's record, or what a person gives for them.

    A name that is given stands for a record with that name alone, or with an object.

    Raises:
        InputError: If the record names a function that the person did not give.

    >>> record = {"model": "mlp", "data": "digits", "loss": "object nets:squares"}
    >>> names_of(record, {"model": "nets:build", "loss": "mse"})
    {'model': 'mlp', 'data': 'digits', 'loss': 'mse'}
    """
    found = {}
    for key in ("model", "data", "loss"):
        made, value = record[key], given.get(key)
        moved = is_array_file(value) and is_array_file(made)  # what is in it tells its SHA-256
        if isinstance(value, str) and value != made and not made.startswith("object ") | moved:
            value = None
        require_given(
            key, made if value is None else value, explicit=value is not None or trust_spec
        )
        found[key] = made if value is None else value
    return found


def runs_in(spec: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the specs of runs in the spec of a result.

    >>> list(runs_in({"operator": {"objective": {"run": {"train": {"seed": 3}}}}}))
    [{'train': {'seed': 3}}]
    """
    for key, value in spec.items():
        if key == "run" and isinstance(value, dict) and "train" in value:
            yield value
            continue
        for below in value if isinstance(value, list) else [value]:
            if isinstance(below, dict):
                yield from runs_in(below)


def threads_in(spec: Mapping[str, Any]) -> int | None:
    """Return the number of threads that a result was computed by, None where it does not say.

    >>> threads_in({"objective": {"threads": 2, "run": {"train": {"threads": 1}}}})
    2
    """
    level: list[Mapping[str, Any]] = [spec]
    while level:
        for tree in level:
            if isinstance(tree.get("threads"), int):
                return int(tree["threads"])
        level = [x for tree in level for x in tree.values() if isinstance(x, dict)]
    return None


def plain(spec: Any) -> Any:
    """Return a tree of JSON values as it comes back from a file.

    >>> plain({"widths": (3, 4)})
    {'widths': [3, 4]}
    """
    return json.loads(json.dumps(spec))
