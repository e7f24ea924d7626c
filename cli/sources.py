"""From a file on the command line to a run, and from a request to a file that answers it."""

import os
import sys
import time
from collections.abc import Callable, Iterable, MutableMapping
from contextlib import AbstractContextManager, nullcontext, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from sharpness.bars import Progress, progress as bar
from sharpness.errors import ComputationError, InputError
from sharpness.journal import Journal, part_of
from sharpness.results import Result, Run

from .account import peak
from .logs import LIBRARY
from .parameters import MEMORY, Bytes
from .show import note, report

if TYPE_CHECKING:
    from sharpness.curvature import Curvature, Operator
    from sharpness.objective import Objective

# Options that a checkpoint needs and a run's file knows by itself.
OF_CHECKPOINT = (
    *("model_options", "data_options", "train_examples", "label_noise", "split_seed"),
    *("key", "max_bytes"),
)
# What says which matrix of an objective is meant.
OF_MATRIX = ("operator", "engine", "draws", "seed", "weight_decay", "decayed", "params")
Pieces = MutableMapping[str, Tensor]
R = TypeVar("R")


@dataclass(frozen=True)
class Source:
    """A run or a checkpoint on the command line."""

    path: Path
    run: Run
    sha256: str
    names: dict[str, Any]  # what the command line says of model, data and loss


def opened(path: str, options: dict[str, Any]) -> Source:
    """Return the run of a file: ours by its seal, anybody's checkpoint otherwise."""
    from sharpness.problem import read
    from sharpness.store import load_as, seal_of

    file = Path(path)
    if not file.exists():
        raise InputError(f"{path} needs to be a file that is there: look at the name")
    if file.is_dir():
        raise InputError(f"{path} is a directory: give the file of a run or a checkpoint")
    if not file.is_file():
        raise InputError(f"{path} is no regular file: give the file of a run or a checkpoint")
    given = {key: options[key] for key in ("model", "data", "loss", *OF_CHECKPOINT)}
    given = {key: value for key, value in given.items() if value is not None}
    names = {key: given.get(key) for key in ("model", "data", "loss")}
    seal = seal_of(file)
    missing = [f"--{key}" for key in ("model", "data", "loss") if key not in given]
    if seal is None and file.suffix == ".h5" and missing:
        raise ComputationError(
            f"{path} has no seal of ours: if it is a checkpoint, give {', '.join(missing)}; if it "
            "was a run of ours, it is damaged, so compute it again"
        )
    if seal:
        run = load_as(file, Run)
        extra = [key for key in OF_CHECKPOINT if key in given]
        if extra:
            option = extra[0].replace("_", "-")
            raise InputError(f"--{option} is for a checkpoint, {path} knows its own: leave it out")
        return Source(file, run, seal, names)
    if missing:
        raise InputError(
            f"{path} is no run of ours, so its model, data and loss must be given, got no "
            f"{', '.join(missing)}: add them"
        )
    with redirect_stdout(sys.stderr):  # what the user's functions print is no result
        run = read(file, **given, dtype=options["dtype"])
    return Source(file, run, run.spec["checkpoint"]["sha256"], names)


def objective(source: Source, options: dict[str, Any], **changes: Any) -> Any:
    """Return the Objective of a source under the shared options of the analyses."""
    from sharpness.problem import objective_of

    names = ("examples", "seed", "dtype", "micro_batch", "memory", "split")
    shared = {key: options[key] for key in names}
    f = objective_of(
        source.run,
        **{**shared, **changes},
        batch_norm=options.get("bn") or "frozen",
        device=device(options["device"]),
        **source.names,
        trust_spec=options["trust_spec"],
    )
    if options["fast_gemm"] and "gemm" not in f.spec:
        raise InputError(
            f"--fast-gemm needs float32 on the CPU, got {f.spec['dtype'].replace('torch.', '')} on "
            f"{f.spec['device']}: leave it out, or give --dtype and --device"
        )
    return f


def curvature(f: "Objective", options: dict[str, Any]) -> "tuple[Operator, Curvature]":
    """Return the operator that the options ask for, and the matrix of f that it is made of."""
    from sharpness.operators import matrix

    return matrix(f, **{key: options[key] for key in OF_MATRIX})


def gemm(options: dict[str, Any]) -> AbstractContextManager[None]:
    """Return the context of the product of matrices that the options ask for."""
    from sharpness.gemm import fast_gemm

    return fast_gemm() if options.get("fast_gemm") else nullcontext()


def device(name: str | None) -> str:
    """Return the device of this name, the first GPU by default where there is one."""
    import torch

    return name or ("cuda" if torch.cuda.is_available() else "cpu")


def beside(sources: list[Source], kind: str, options: dict[str, Any]) -> Path:
    """Return the output: as given, or the inputs' names, the part if not train, and the kind."""
    if options["output"]:
        path = Path(options["output"])
        require_other(path, [source.path for source in sources])
        return path
    part = "" if options.get("split", "train") == "train" else f".{options['split']}"
    stem = "-".join(source.path.stem for source in sources)
    return sources[0].path.with_name(f"{stem}{part}.{kind}.h5")


def request(command: str, sources: dict[str, Source], options: dict[str, Any]) -> dict[str, Any]:
    """Return what is asked for: the command, its options, and the SHA-256 of all inputs.

    Args:
        sources: By their part in the command.
    """
    from sharpness.names import require_given, source_digest

    left_out = {"output", "overwrite", "as_json", "quiet", "debug", "trust_spec", "max_bytes"}
    asked = {key: value for key, value in options.items() if key not in left_out}
    if "device" in asked:
        asked["device"] = device(asked["device"])
    record = next(iter(sources.values())).run.spec["train"]
    for key in ("model", "data", "loss", "dtype"):
        asked[key] = asked[key] or record[key]
    # A default is left out: it is what files stand for that are older than the option.
    if asked.get("bn") == (None if command in ("line", "plane") else "frozen"):
        asked.pop("bn", None)
    later = ("fast_gemm", "key", "draws", "weight_decay", "decayed", "params", "data_options")
    for key in later:
        if not asked.get(key):
            asked.pop(key, None)
    if command != "eigs" and asked.get("memory") == Bytes().convert(MEMORY, None, None):
        del asked["memory"]
    if "tol" in asked and asked["tol"] is None:
        from sharpness.lanczos import TOLERANCE
        from sharpness.problem import DTYPES

        asked["tol"] = TOLERANCE[DTYPES[asked["dtype"]]]
    inputs: dict[str, Any] = {part: source.sha256 for part, source in sources.items()}
    for source in sources.values():
        record = source.run.spec["train"]
        if source.run.stopped == "read":  # of its own data, which a function may read anew
            inputs |= source.run.spec["data"]
        for key in ("model", "data", "loss"):
            name = source.names.get(key) or record[key]
            trusted = source.names.get(key) or options["trust_spec"]
            require_given(key, name, explicit=bool(trusted))
            digest = source_digest(name) if trusted else None
            if digest:
                inputs[str(name)] = digest
    return {"command": command, "options": asked, "inputs": inputs}


def answer(
    path: Path,
    asked: dict[str, Any],
    options: dict[str, Any],
    compute: Callable[[Progress, Pieces], Result],
    *,
    label: str,
    unit: str,
    account: Callable[[], None] | None = None,
    journaled: bool = False,
) -> None:
    """Compute, save and print a result, unless the file that answers the request is there.

    Args:
        options: Their micro-batch is halved in place where memory runs out.
        account: Called at last, to tell what was spent.
        journaled: Keep the pieces beside the output until it is there.
    """
    from sharpness.store import save

    require_place(path)
    if _is_done(path, asked, options):
        if journaled and part_of(path).exists():  # a kill came between the result and its removal
            _forget(path, asked, options)
        return
    begun = time.monotonic()
    none: dict[str, Tensor] = {}
    with _journal(path, asked, options) if journaled else nullcontext(none) as pieces:
        if journaled and _is_done(path, asked, options):  # by another process, a moment ago
            return
        if pieces:
            note(f"continuing from the {len(pieces):,} pieces in {part_of(path)}")
        with (
            bar(label, unit, quiet=options["quiet"]) as progress,
            redirect_stdout(sys.stderr),
            gemm(options),
        ):
            result = fitting(lambda: compute(progress, pieces), options, pieces)
        save(path, result, request=asked, overwrite=options["overwrite"])
        if isinstance(pieces, Journal):
            pieces.remove()
    LIBRARY.info("%s took %.1f s, peak memory %s", label, time.monotonic() - begun, peak())
    report(result, as_json=options["as_json"])
    note(f"wrote {path}")
    if account:
        account()


def _is_done(path: Path, asked: dict[str, Any], options: dict[str, Any]) -> bool:
    """Say whether the output answers the request, and print it then."""
    from sharpness.store import load, reuse

    if not reuse(path, asked, overwrite=options["overwrite"]):
        return False
    report(load(path), as_json=options["as_json"])
    note(f"already done: {path}")
    return True


def _forget(path: Path, asked: dict[str, Any], options: dict[str, Any]) -> None:
    """Remove the pieces of an output that is there, unless they are another computation's."""
    with (
        suppress(InputError, ComputationError, OSError),
        _journal(path, asked, {**options, "overwrite": False}) as pieces,
    ):
        pieces.remove()


def _journal(path: Path, asked: dict[str, Any], options: dict[str, Any]) -> Journal:
    """Return the journal of an output, whose spec holds all that its numbers depend on."""
    import torch

    from sharpness.store import versions

    spec = {**asked, "versions": versions(), "threads": torch.get_num_threads()}
    return Journal(part_of(path), spec, overwrite=options["overwrite"])


def fitting(compute: Callable[[], R], options: dict[str, Any], pieces: Pieces) -> R:
    """Return what ``compute`` does, with the micro-batch of the options halved where it must be."""
    from sharpness.micro_batches import halving

    def computed(micro_batch: int | None) -> R:
        options["micro_batch"] = micro_batch
        return compute()

    return halving(computed, options.get("micro_batch"), pieces=pieces, tell=note)


def require_other(path: Path, inputs: Iterable[Path]) -> None:
    """Refuse an output that is one of the inputs, by whatever name.

    Raises:
        InputError: If it is one.
    """
    _require_name(path)
    if path.exists() and any(path.samefile(file) for file in inputs):
        raise InputError(f"{path} is also an input: choose another output")


def require_place(path: Path) -> None:
    """Refuse an output that cannot be written.

    Raises:
        InputError: If the name or its directory does not take a file.
    """
    _require_name(path)
    if path.is_dir():
        raise InputError(f"{path} is a directory: give the name of a file")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no regular file: choose another output")
    if path.is_symlink() and not path.exists():
        raise InputError(
            f"{path} is a symbolic link to {os.readlink(path)}, which is not there: choose another "
            "output"
        )
    if not path.parent.is_dir():
        raise InputError(f"{path.parent} needs to be a directory that is there: make it first")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{path.parent} needs to be writable: choose another output")


def _require_name(path: Path) -> None:
    if len(os.fsencode(path.name)) > 240:
        raise InputError(f"the name of an output needs at most 240 bytes, got {path.name[:40]}...")
