"""``python -m benchmarks``: measure everything, beside the peers, and write the page of results."""

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from textwrap import shorten
from typing import Any

import click
import torch

import sharpness as sh

from . import boxes, ensembles, landscapes, perturbations, spectra, trainings
from .bars import apart, page, paired
from .solvers import PACKAGES
from .workloads import NAMES

HOME = Path(__file__).parent
TOL, FINE = 1e-3, 1e-6  # relative residuals asked for: of all solvers, and of ours in float32
LIMIT = 600.0  # seconds of one process


class Session:
    """The measurements of one run: all that was asked, answered and read from it."""

    def __init__(self, names: Iterable[str], rounds: int, folder: str) -> None:
        self.names, self.rounds, self.folder = list(names), rounds, folder
        self.readings: dict[str, list[float]] = {}
        self.solvers: list[dict[str, Any]] = []
        self.estimates: list[dict[str, Any]] = []
        self.log: list[dict[str, Any]] = []

    def ask(self, task: str, workload: str, **request: Any) -> dict[str, Any] | None:
        """Return what a process of its own found, None where it failed."""
        asked = {"task": task, "workload": workload, **request}
        load = os.getloadavg()[0]
        begun = time.perf_counter()
        command = [
            sys.executable,
            "-m",
            "benchmarks.measure",
            json.dumps({**asked, "folder": self.folder}),
        ]
        try:
            done = subprocess.run(  # noqa: S603
                command, cwd=HOME.parent, capture_output=True, text=True, timeout=LIMIT, check=False
            )
            failed = done.returncode and raised(done.stderr)
        except subprocess.TimeoutExpired:
            failed = f"not done after {LIMIT:.0f} s"
        wall = time.perf_counter() - begun
        found = {"error": failed} if failed else json.loads(done.stdout.splitlines()[-1])
        self.log.append({"asked": asked, "found": found, "load": load, "wall": wall})
        words = " ".join(str(value) for value in asked.values() if value is not None)
        click.echo(f"{words}: {f'failed: {failed}' if failed else f'{wall:.0f} s'}", err=True)
        return None if failed else found

    def fault(self) -> str:
        """Return why the last process failed, for a cell of a table."""
        error: str = self.log[-1]["found"]["error"]
        return shorten(error.replace("|", "/"), 100, placeholder=" ...")

    def read(self, key: str, value: float) -> None:
        """Add one value to a reading."""
        self.readings.setdefault(key, []).append(value)

    def part(self, machine: dict[str, Any], training: list[dict[str, Any]]) -> dict[str, Any]:
        """Return what is kept of a section: the machine, all readings and what is behind them."""
        return {
            "machine": machine,
            "readings": self.readings,
            "solvers": self.solvers,
            "estimates": self.estimates,
            "log": [*training, *self.log],
        }


def gradients(session: Session) -> None:
    """Read one product over one gradient of the mean loss, in one process."""
    cases = [("W1", None), ("W4", None), ("W3", None), ("W3", 256)]
    for _ in range(session.rounds):
        for name, examples in cases:
            if name not in session.names:
                continue
            found = session.ask("gradient", name, examples=examples)
            if not found:
                continue
            label = f"gradient {name}" + (f" {examples}" if examples else "")
            session.read(label, paired(found["product"], found["gradient"]))
            session.read(f"{label} fused", paired(found["product"], found["fused"]))


def engines(session: Session) -> None:
    """Read one product of the engine ``fresh``, of all examples in one batch, over the default.

    The default keeps the graphs of its micro-batches; peers build that of each of their batches
    anew, and take no micro-batches. What ``fresh`` takes by the same ones is read beside it.
    """
    for _ in range(session.rounds):
        for name in ("W1", "W3"):
            if name not in session.names:
                continue
            mine = session.ask("product", name)
            for key, whole in (("fresh", True), ("fresh by micro-batches", False)):
                other = session.ask("product", name, engine="fresh", whole=whole)
                if mine and other:
                    ratio = median(other["product"]) / median(mine["product"])
                    session.read(f"{key} {name}", ratio)


def solvers(session: Session) -> None:
    """Read the top ten eigenvalues of ours and of the peers."""
    for name in session.names:
        rows: dict[str, dict[str, Any]] = {}
        for i in range(session.rounds):
            mine = _solved(session, name, "ours", rows, None, first=i == 0)
            if not mine:
                break
            session.read(f"beside {name}", 1 - mine["product_seconds"] / mine["seconds"])
            fast = None
            for peer in _peers(name, first=i == 0):
                other = _solved(session, name, peer, rows, mine, first=i == 0)
                if other:
                    session.read(f"{peer} {name}", other["seconds"] / mine["seconds"])
                if other and fast:
                    session.read(f"{peer} {name} fast", other["seconds"] / fast["seconds"])
                if peer == "ours_fast":
                    fast = other
                if other and i == 0:
                    rows[peer]["values off ours"] = [apart(mine["values"], other["values"])]
                    _count(session, name, peer, mine, other)
        if not find_spec("hessian_eigenthings"):
            absent = "not installed: not in the package index"
            rows["hessian_eigenthings"] = {
                "workload": name,
                "solver": "hessian_eigenthings",
                "error": absent,
            }
        session.solvers += rows.values()


def floor(session: Session) -> None:
    """Read the true residual that float32 reaches."""
    if "W1" in session.names:
        precisions = ["float32", "float64"]
        found = session.ask("solve", "W1", solver="ours", tol=FINE, verify=precisions)
        if found:
            session.read("floor W1", found["residuals"]["float32"])


SECTIONS: dict[str, Callable[[Session], None]] = {
    "gradients": gradients,
    "engines": engines,
    "solvers": solvers,
    "floor": floor,
    "landscapes": landscapes.landscapes,
    "spectra": spectra.spectra,
    "perturbations": perturbations.perturbations,
    "boxes": boxes.boxes,
    "trainings": trainings.trainings,
    "ensembles": ensembles.ensembles,
}


def raised(stderr: str) -> str:
    """Return the line of a traceback that names the exception, whose text may have more lines."""
    lines = stderr.strip().splitlines() or ["no message"]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (named or lines)[-1]


def machine() -> dict[str, Any]:
    """Return what the numbers depend on, but for the problem."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line for line in lines if line.startswith("model name")]
    return {
        "CPU": models[0].split(":", 1)[1].strip() if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "sharpness": _revision(),
        "torch": torch.__version__,
        "MKL": torch.backends.mkl.is_available(),  # type: ignore[no-untyped-call]
        "oneDNN": torch.backends.mkldnn.is_available(),  # type: ignore[no-untyped-call]
        "scipy": version("scipy"),
        **{name: _version(name) for name in [*PACKAGES.values(), *landscapes.PACKAGES.values()]},
    }


@click.command()
@click.option("--only", type=click.Choice(list(SECTIONS)), multiple=True, help="These sections.")
@click.option("--quick", is_flag=True, help="One round of W1 and W4: a try.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for results.md and results.json.  [default: benchmarks; none for a part "
    "that is not merged]",
)
@click.option("--merge", is_flag=True, help="Keep what is there of the sections not measured.")
def main(only: tuple[str, ...], quick: bool, rounds: int, output: Path | None, merge: bool) -> None:
    """Measure the library beside its peers; nothing else should run on the machine."""
    names, rounds = (("W1", "W4"), 1) if quick else (NAMES, rounds)
    if merge and (quick or not only):
        raise click.UsageError("--merge is for sections named by --only, without --quick")
    folder = HOME if output is None and (merge or not (only or quick)) else output
    others = _kept(folder) if merge and folder else {}
    begun, load = time.perf_counter(), os.getloadavg()
    sections = only or tuple(SECTIONS)
    with tempfile.TemporaryDirectory() as weights:
        training = Session(names, rounds, weights)
        for name in names:
            if not training.ask("train", name):
                raise SystemExit(1)
        sessions = {section: Session(names, rounds, weights) for section in sections}
        for section, session in sessions.items():
            SECTIONS[section](session)
    run = {
        **machine(),
        "measured on": date.today().isoformat(),
        "load average at the start and the end": f"{load[0]:.2f}, {os.getloadavg()[0]:.2f}",
        "minutes": round((time.perf_counter() - begun) / 60, 1),
    }
    measured = {name: session.part(run, training.log) for name, session in sessions.items()}
    parts = {**others, **measured}
    click.echo(page(parts))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.md").write_text(page(parts))
        (folder / "results.json").write_text(json.dumps({"parts": parts}, indent=1) + "\n")


def _kept(folder: Path) -> dict[str, Any]:
    """Return the parts that are there."""
    path = folder / "results.json"
    parts: dict[str, Any] = json.loads(path.read_text())["parts"] if path.exists() else {}
    return parts


def _peers(name: str, *, first: bool) -> list[str]:
    """Return the solvers that take turns with ours; slow ones and mere counts have one turn."""
    fast = ["ours_fast"] if name in ("W1", "W2") else []  # what products of matrices decide
    once = ["scipy_on_ours"]
    if name == "W1":
        once.append("pyhessian")
    if find_spec("hessian_eigenthings"):
        once.append("hessian_eigenthings")
    return [*fast, "curvlinops", *(once if first else [])]


def _solved(
    session: Session,
    name: str,
    solver: str,
    rows: dict[str, dict[str, Any]],
    mine: dict[str, Any] | None,
    *,
    first: bool,
) -> dict[str, Any] | None:
    """Return one solution, entered into the row of its solver."""
    verify = ["float32"] if first else []
    found = session.ask("solve", name, solver=solver, tol=TOL, verify=verify)
    row = rows.setdefault(solver, {"workload": name, "solver": solver})
    if not found:
        row.setdefault("error", session.fault())
        return None
    if mine:
        row.setdefault("time over ours", []).append(found["seconds"] / mine["seconds"])
    else:
        row["time over ours"] = [1.0]
    row["products"] = [found["products"] + found["check_products"]]
    row.setdefault("memory, MiB", []).append(found["memory_mib"])
    if first:
        row["true residual"] = [found["residuals"]["float32"]]
    return found


def _count(
    session: Session, name: str, peer: str, mine: dict[str, Any], other: dict[str, Any]
) -> None:
    """Read what does not depend on time."""
    if peer == "scipy_on_ours":
        session.read(f"search {name}", mine["products"] / other["products"])
        session.read(f"check {name}", mine["check_products"])
    if peer == "pyhessian":
        ratio = other["residuals"]["float32"] / mine["residuals"]["float32"]
        session.read(f"pyhessian residual {name}", ratio)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _revision() -> str:
    """Return the version of the library and, in a checkout, the commit that it is at."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(  # noqa: S603
            command, cwd=HOME, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return sh.__version__
    return f"{sh.__version__} ({done.stdout.strip()})"


if __name__ == "__main__":
    main()
