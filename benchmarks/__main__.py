"""``python -m benchmarks``: measure everything, beside the peers, and write the page of results."""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch

from . import landscapes
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
            failed = done.returncode and (done.stderr.strip().splitlines() or ["no message"])[-1]
        except subprocess.TimeoutExpired:
            failed = f"not done after {LIMIT:.0f} s"
        wall = time.perf_counter() - begun
        found = {"error": failed} if failed else json.loads(done.stdout.splitlines()[-1])
        self.log.append({"asked": asked, "found": found, "load": load, "wall": wall})
        words = " ".join(str(value) for value in asked.values() if value is not None)
        click.echo(f"{words}: {f'failed: {failed}' if failed else f'{wall:.0f} s'}", err=True)
        return None if failed else found

    def read(self, key: str, value: float) -> None:
        """Add one value to a reading."""
        self.readings.setdefault(key, []).append(value)


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
}


def machine() -> dict[str, Any]:
    """Return what the numbers depend on, but for the problem."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line for line in lines if line.startswith("model name")]
    return {
        "CPU": models[0].split(":", 1)[1].strip() if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
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
    help="Folder for results.md and results.json.  [default: benchmarks; none for a part]",
)
def main(only: tuple[str, ...], quick: bool, rounds: int, output: Path | None) -> None:
    """Measure the library beside its peers; nothing else should run on the machine."""
    names, rounds = (("W1", "W4"), 1) if quick else (NAMES, rounds)
    begun, load = time.perf_counter(), os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        session = Session(names, rounds, folder)
        for name in names:
            if not session.ask("train", name):
                raise SystemExit(1)
        for section in only or SECTIONS:
            SECTIONS[section](session)
    found = {
        "machine": {
            **machine(),
            "load average at the start and the end": f"{load[0]:.2f}, {os.getloadavg()[0]:.2f}",
            "minutes": round((time.perf_counter() - begun) / 60, 1),
        },
        "readings": session.readings,
        "solvers": session.solvers,
        "log": session.log,
    }
    click.echo(page(found))
    if output is None and not only and not quick:
        output = HOME
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "results.md").write_text(page(found))
        (output / "results.json").write_text(json.dumps(found, indent=1) + "\n")


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
        row.setdefault("error", session.log[-1]["found"]["error"].replace("|", "/"))
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


if __name__ == "__main__":
    main()
