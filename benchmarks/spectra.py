"""The trace and the density of a Hessian from random probes: ours beside PyHessian and curvlinops.

All are asked for as many products; ours takes two more, by which it checks the operator, in its
time. The batches are those of ours, but for PyHessian's ``data=``, which takes all examples at
once and keeps their graph.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.functional import cross_entropy

import sharpness as sh

from .solvers import Timed
from .workloads import Workload

if TYPE_CHECKING:
    from .__main__ import Session

NAME = "W1"
COUNTS = {"trace": 100, "density": 80}  # products: the defaults of PyHessian and of ours


@dataclass(frozen=True)
class Found:
    """An estimate, and what it cost."""

    products: int  # those of a check not counted
    check_products: int = 0
    trace: float | None = None  # where the tool tells it
    product_seconds: float | None = None  # spent inside the products
    bounds: tuple[float, float] | None = None  # of the eigenvalues


def spectra(session: "Session") -> None:
    """Read the time of the peers over that of ours, and our time beside the products."""
    if NAME not in session.names:
        return
    rows: dict[str, dict[str, Any]] = {}
    for i in range(session.rounds):
        for quantity, count in COUNTS.items():
            mine = _estimated(session, rows, None, quantity=quantity, tool="ours", count=count)
            if not mine:
                continue
            session.read(f"beside {quantity} {NAME}", 1 - mine["product_seconds"] / mine["seconds"])
            fast = None
            for tool in [tool for tool in TOOLS[quantity] if tool != "ours"]:
                if i and "error" in rows.get(f"{quantity} by {tool}", {}):
                    continue  # what failed fails again
                bounds = mine["bounds"] if tool == "curvlinops" else None
                other = _estimated(
                    session, rows, mine, quantity=quantity, tool=tool, count=count, bounds=bounds
                )
                if tool == "ours_fast":
                    fast = other
                elif other:
                    _compare(session, f"{quantity} {tool} {NAME}", mine, fast, other)
    session.estimates += rows.values()


def ours_trace(w: Workload, count: int, bounds: Any = None) -> Found:
    """Return the trace of ``sharpness.trace`` by Hutchinson's estimator."""
    A = Timed(sh.Hessian(w.objective()))
    found = sh.trace(A, method="hutchinson", probes=count)
    return Found(found.products, found.check_products, found.value, A.seconds)


def pyhessian_loader(w: Workload, count: int, bounds: Any = None) -> Found:
    """Return the trace of PyHessian over a loader, which builds the graph of a batch each time."""
    return _pyhessian_trace(w, count, dataloader=w.batches())


def pyhessian_data(w: Workload, count: int, bounds: Any = None) -> Found:
    """Return the trace of PyHessian of one batch, whose graph it keeps."""
    return _pyhessian_trace(w, count, data=(w.inputs, w.targets))


def curvlinops_trace(w: Workload, count: int, bounds: Any = None) -> Found:
    """Return the trace of curvlinops, as its documentation has it."""
    from curvlinops import hutchinson_trace

    return Found(count, trace=float(hutchinson_trace(_curvlinops(w), num_matvecs=count)))


def ours_density(w: Workload, count: int, bounds: Any = None) -> Found:
    """Return the trace that ``sharpness.density`` has from one probe."""
    A = Timed(sh.Hessian(w.objective()))
    found = sh.density(A, steps=count, probes=1)
    return Found(
        found.products,
        found.check_products,
        found.size * found.moment(1)[0],
        A.seconds,
        (float(found.nodes.min()), float(found.nodes.max())),
    )


def pyhessian_density(w: Workload, count: int, bounds: Any = None) -> Found:
    """Return what the density of PyHessian cost; 0.1 calls ``torch.eig``, gone from torch."""
    _pyhessian(w, data=(w.inputs, w.targets)).density(iter=count, n_v=1)
    return Found(count)


def curvlinops_density(w: Workload, count: int, bounds: Any = None) -> Found:
    """Return what the density of curvlinops cost, whose basis is not kept orthogonal.

    Args:
        bounds: Of the spectrum: without them it would spend more products to find them.
    """
    from curvlinops import lanczos_approximate_spectrum

    lanczos_approximate_spectrum(_curvlinops(w), count, boundaries=bounds or (-1.0, 1.0))
    return Found(count)


def _fast(tool: Callable[..., Found]) -> Callable[..., Found]:
    """Return a tool with oneDNN's product, checked before."""

    def under_fast_gemm(*args: Any) -> Found:
        with sh.fast_gemm():
            return tool(*args)

    return under_fast_gemm


# By the quantity: the tools, each called with a workload, the products to spend and bounds.
TOOLS: dict[str, dict[str, Callable[..., Found]]] = {
    "trace": {
        "ours": ours_trace,
        "ours_fast": _fast(ours_trace),
        "pyhessian_loader": pyhessian_loader,
        "pyhessian_data": pyhessian_data,
        "curvlinops": curvlinops_trace,
    },
    "density": {
        "ours": ours_density,
        "ours_fast": _fast(ours_density),
        "curvlinops": curvlinops_density,
        "pyhessian": pyhessian_density,
    },
}


def _estimated(
    session: "Session",
    rows: dict[str, dict[str, Any]],
    mine: dict[str, Any] | None,
    **request: Any,
) -> dict[str, Any] | None:
    """Return one estimate, entered into the row of its tool."""
    found = session.ask("estimate", NAME, **request)
    name = f"{request['quantity']} by {request['tool']}"
    row = rows.setdefault(name, {"workload": NAME, "estimate": name})
    if not found:
        row.setdefault("error", session.fault())
        return None
    over = found["seconds"] / mine["seconds"] if mine else 1.0
    row.setdefault("time over ours", []).append(over)
    row["products"] = [found["products"] + found["check_products"]]
    row.setdefault("memory, MiB", []).append(found["memory_mib"])
    if found["trace"] is not None:
        row.setdefault("trace", []).append(found["trace"])
    return found


def _compare(
    session: "Session",
    key: str,
    mine: dict[str, Any],
    fast: dict[str, Any] | None,
    other: dict[str, Any],
) -> None:
    """Read the time of a peer over both of ours, and over that of as many products."""
    session.read(key, other["seconds"] / mine["seconds"])
    share = (mine["products"] + mine["check_products"]) / other["products"]
    session.read(f"{key} per product", share * other["seconds"] / mine["seconds"])
    if fast:
        session.read(f"{key} fast", other["seconds"] / fast["seconds"])


def _pyhessian_trace(w: Workload, count: int, **data: Any) -> Found:
    # Below every change of the estimate: not even a negative trace ends it early.
    samples = _pyhessian(w, **data).trace(maxIter=count, tol=-math.inf)
    return Found(len(samples), trace=sum(samples) / len(samples))


def _pyhessian(w: Workload, **data: Any) -> Any:
    from pyhessian import hessian

    warnings.simplefilter("ignore")  # that it keeps a graph in .grad
    return hessian(w.model, cross_entropy, cuda=False, **data)


def _curvlinops(w: Workload) -> Any:
    from curvlinops import HessianLinearOperator

    parameters = list(w.model.parameters())
    return HessianLinearOperator(w.model, nn.CrossEntropyLoss(), parameters, w.batches())
