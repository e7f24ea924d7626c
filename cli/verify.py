"""``sharpness verify``."""

import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from hashlib import file_digest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sharpness.bars import progress as bar
from sharpness.errors import ComputationError, InputError, is_out_of_memory

from .parameters import COMMON, data, loss, model, reporting, trust_spec
from .show import say

if TYPE_CHECKING:
    from sharpness.results import Result, Run
    from sharpness.verification import Verification


@click.command(context_settings=COMMON)
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@model
@data
@loss
@trust_spec
@reporting
def command(files: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Check the seal of each result FILE, and compute some of its numbers again.

    A few spot values are computed from the spec that is in the file and compared with those that
    it holds. The run or the checkpoint that it came from is looked for by its SHA-256, among the
    FILEs and beside each of them. The exit code is 1 if a file is damaged or a number is another,
    else 2 if a file could not be verified.

    \b
    Examples:
      sharpness verify sb.h5 sb.eigs.h5
      sharpness verify runs/*.h5
      sharpness verify sb.eigs.h5 sb.pt --model nets:build --data nets:digits
    """
    shelf, found = _Shelf([Path(name) for name in files]), []
    with bar("verify", "files", quiet=options["quiet"]) as progress:
        for done, name in enumerate(files, start=1):
            found.append(_verified(Path(name), shelf, options))
            progress(done, len(files), Path(name).name)
    for entry in found:
        if entry.error is None and entry.kind is None and entry.path not in shelf.used:
            entry.error = _unused(entry.path)
    if as_json:
        say(json.dumps([entry.values() for entry in found]))
    else:
        for entry in found:
            say(f"{click.format_filename(entry.path)}: {entry.text()}")
    _judge(found)


@dataclass
class _Entry:
    """A file, and what came out."""

    path: Path
    kind: str | None = None  # None of a checkpoint
    sealed: bool = False
    found: "Verification | None" = None
    error: Exception | None = None

    @property
    def code(self) -> int:
        """The exit code of this file by itself."""
        if self.error is not None:
            return 2 if isinstance(self.error, InputError) else 1
        return 0 if self.found is None or self.found.agrees else 1

    def text(self) -> str:
        """Return what came out, in words."""
        if self.error is not None:
            return f"{'sealed, but not verified: ' if self.sealed else ''}{_line(self.error)}"
        if self.found is None:
            return "a checkpoint, which others came from"
        return "; ".join([f"sealed; {self.found.text}", *self.found.notes])

    def values(self) -> dict[str, Any]:
        """Return what came out as JSON values."""
        checks = (
            [{**asdict(c), "agrees": c.agrees} for c in self.found.checks] if self.found else []
        )
        return {
            "file": str(self.path),
            "type": self.kind,
            "sealed": self.sealed,
            "agrees": self.found.agrees if self.found else None,
            "recomputed": self.found.subject if self.found else None,
            "checks": [{key: _finite(x) for key, x in check.items()} for check in checks],
            "notes": self.found.notes if self.found else [],
            "error": None if self.error is None else _line(self.error),
        }


def _verified(path: Path, shelf: "_Shelf", options: dict[str, Any]) -> _Entry:
    """Check the seal of a file, and its numbers."""
    from sharpness.store import load, versions, versions_of
    from sharpness.verification import verify

    entry = _Entry(path)
    if path.is_file() and shelf.seal(path) is None:
        return entry
    given = {key: options[key] for key in ("model", "data", "loss")}
    trusted = options["trust_spec"]
    try:
        result = load(path)
        entry.kind, entry.sealed = type(result).__name__, True
        with redirect_stdout(sys.stderr):  # what the user's functions print is no result
            runs = _runs(path, result, shelf, given, trusted)
            entry.found = verify(result, runs, **given, trust_spec=trusted)
    except Exception as error:
        known = isinstance(error, InputError | ComputationError | OSError)
        if not known and not is_out_of_memory(error):
            raise
        entry.error = error
        return entry
    then, now = (found.get("torch") for found in (versions_of(path), versions()))
    if then != now:
        entry.found.notes.append(f"computed by torch {then}, recomputed by {now}")
    return entry


def _unused(path: Path) -> InputError | ComputationError:
    """Return the error of a file without a seal that nothing came from."""
    if path.suffix == ".h5":
        return ComputationError(
            "has no seal, and no other FILE came from it: if it was a result, it is damaged or was "
            "opened for writing, so compute it again"
        )
    return InputError("is no result of ours, and no other FILE came from it")


def _runs(
    path: Path, result: "Result", shelf: "_Shelf", given: dict[str, Any], trusted: bool
) -> dict[str, "Run"]:
    """Return the runs that a result came from, by their part in its request.

    Raises:
        InputError: If one is not there.
    """
    from sharpness.rebuilding import runs_in
    from sharpness.results import Comparison, Run
    from sharpness.store import kind_of, load_as, request_of

    if isinstance(result, Run):
        return {}
    records, asked, runs = list(runs_in(result.spec)), request_of(path), {}
    if asked is None:  # saved by a script: the spec tells which of the runs it is
        near = [other for other in shelf.near(path) if kind_of(other) == "Run"]
        runs = {str(other): load_as(other, Run) for other in near}
    for part, digest in _inputs(asked, records).items():
        source = shelf.find(digest, path, ours=":" in part)  # else the user's module
        if source is not None and shelf.seal(source):
            runs[part] = load_as(source, Run)
        elif source is not None and records:
            runs[part] = _checkpoint(source, digest, records, given, trusted)
        elif asked is not None and ":" not in part and not isinstance(result, Comparison):
            is_read = any("checkpoint" in record for record in records)
            what = "checkpoint with SHA-256" if is_read else "run with seal"
            raise InputError(f"needs the {what} {digest[:12]}, its {part}: give that file too")
    return runs


def _inputs(asked: dict[str, Any] | None, records: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return the digests of the files that a result came from, by their part in it."""
    if asked is None:
        return {
            record["checkpoint"]["name"]: record["checkpoint"]["sha256"]
            for record in records
            if "checkpoint" in record
        }
    return {
        part: value
        for part, value in asked["inputs"].items()
        if isinstance(value, str) and part not in ("train_sha256", "test_sha256")
    }


def _checkpoint(
    path: Path,
    digest: str,
    records: Sequence[dict[str, Any]],
    given: dict[str, Any],
    trusted: bool,
) -> "Run":
    """Return the run of a checkpoint, read as the spec of the result says."""
    from sharpness.problem import read
    from sharpness.rebuilding import names_of

    own = [r for r in records if r.get("checkpoint", {}).get("sha256") == digest]
    made = (own or records)[0]["train"]
    return read(
        path,
        **names_of(made, given, trust_spec=trusted),
        **{k: made[k] for k in ("model_options", "train_examples", "label_noise", "split_seed")},
        data_options=made.get("data_options"),
        dtype=made["dtype"] if own else None,
        key=own[0]["checkpoint"].get("key") if own else None,
    )


class _Shelf:
    """The files at hand, by their digests: the seal of ours, the SHA-256 of others."""

    def __init__(self, given: Sequence[Path]) -> None:
        self.given = [path for path in given if path.is_file()]
        self.used: set[Path] = set()
        self.seals: dict[Path, str | None] = {}
        self.digests: dict[Path, str] = {}

    def near(self, path: Path) -> Iterator[Path]:
        """Yield the files that were given and those beside one, each once."""
        beside = (other for other in sorted(path.parent.iterdir()) if other.is_file())
        yield from dict.fromkeys([*self.given, *beside])

    def find(self, digest: str, path: Path, *, ours: bool) -> Path | None:
        """Return the file that has this digest, if there is one, perhaps of our files alone."""
        sealed = (other for other in self.near(path) if self.seal(other) == digest)
        others = (other for other in self.near(path) if self._sha256(other) == digest)
        found = next(sealed, None) or (None if ours else next(others, None))
        if found is not None:
            self.used.add(found)
        return found

    def seal(self, path: Path) -> str | None:
        """Return the seal of a file, None where it has none or is not to be read."""
        from sharpness.store import seal_of

        if path not in self.seals:
            self.seals[path] = seal_of(path) if os.access(path, os.R_OK) else None
        return self.seals[path]

    def _sha256(self, path: Path) -> str | None:
        """Return the SHA-256 of a file that is none of ours."""
        if self.seal(path) is not None or not os.access(path, os.R_OK):
            return None
        if path not in self.digests:
            with open(path, "rb") as file:
                self.digests[path] = file_digest(file, "sha256").hexdigest()
        return self.digests[path]


def _judge(found: Sequence[_Entry]) -> None:
    """End with the worst of all codes, where 1 is worse than 2.

    Raises:
        ComputationError: If a file is damaged, or has a number that does not come out again.
        InputError: If one could not be verified.
    """
    for code, kind, what in (
        (1, ComputationError, "is damaged or disagrees"),
        (2, InputError, "could not be verified"),
    ):
        names = [str(entry.path) for entry in found if entry.code == code]
        if names:
            raise kind(
                f"verify needs files that are whole and agree, got {len(names)} of {len(found)} "
                f"that {what}: look at {', '.join(names[:3])}{', ...' * (len(names) > 3)}"
            )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _finite(x: Any) -> Any:
    return None if isinstance(x, float) and not math.isfinite(x) else x
