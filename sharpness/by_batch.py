"""Eigenvalues of mini-batches of one size, which are spread around those of all the data.

Letters: N examples, B of them in a mini-batch, M mini-batches, k pairs, n parameters.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from sharpness.batch_norm import layers
from sharpness.curvature import ENGINES, Curvature, Operator
from sharpness.distributed import world_size
from sharpness.errors import InputError
from sharpness.lanczos import TOLERANCE, eigsh
from sharpness.objective import Inputs, Objective, Point, Targets, Weighted
from sharpness.operators import matrix
from sharpness.options import is_whole
from sharpness.results import BatchEigenvalues, Solution
from sharpness.vectors import stream

LOG = logging.getLogger(__name__)

STREAM = (0, 3)  # of the partition among the streams of a seed
DRAWS = 4  # of independent mini-batches
MORE = 5  # numbers of a search beside the four of each pair
PLAIN = (bool, int, float, str, type(None))  # what inputs may hold beside tensors


@dataclass(frozen=True)
class Search:
    """What is searched for in each mini-batch, and how."""

    made: Mapping[str, Any]  # options of ``operators.matrix``
    k: int
    tol: float | None
    seed: int

    def of(self, f: Objective, point: Point) -> tuple[Operator, Curvature]:
        """Return the operator of an objective, and the matrix that it is made of."""
        return matrix(f, point, seed=self.seed, **self.made)

    def row(self, f: Objective, point: Point, found: tuple[Operator, Curvature]) -> Tensor:
        """Return what was found of one objective, float64, (4k + MORE,)."""
        A, base = found
        memory = f.memory // 2
        pairs = eigsh(A, self.k, tol=self.tol, memory=memory, seed=self.seed)
        numbers = (pairs.values, pairs.residuals, pairs.converged, pairs.sampling_errors)
        engine = list(ENGINES).index(base.engine)
        spent = pairs.products + pairs.check_products
        loss, error = float(f.value(point)), base.spec.get("product_error", 0.0)
        more = [loss, f.weight(), spent, engine, error]
        return torch.cat([*(x.double().cpu() for x in numbers), torch.tensor(more).double()])


def batch_eigenvalues(
    objective: Objective,
    *,
    batch_size: int,
    count: int | None = None,
    k: int = 1,
    operator: str = "hessian",
    point: Point | None = None,
    engine: str | None = None,
    draws: int | None = None,
    weight_decay: float = 0.0,
    decayed: Sequence[str] | None = None,
    params: Sequence[str] | None = None,
    tol: float | None = None,
    seed: int = 0,
    pieces: MutableMapping[str, Tensor] | None = None,
    progress: Callable[[int, int | None, str], None] | None = None,
) -> BatchEigenvalues:
    """Return the k largest eigenvalues of each of M mini-batches of B examples, and of all N.

    The mini-batches are such as one pass of training has: the examples in an order drawn from
    ``seed``, cut every B. None shares an example with another, and up to B - 1 that are left at the
    end are in none. The curvature of the data is the mean of those of all mini-batches where
    nothing is left, and the mean of their largest eigenvalues is at least that of the data.

    Under ``batch`` statistics of BatchNorm each mini-batch is normalized by its own, in one batch;
    otherwise it is computed in micro-batches as large as the objective's. Re-estimated statistics
    are those of the training part at the point, for all mini-batches.

    Cost: one search for each mini-batch, of products over B examples, and one for all the data. A
    mini-batch is gathered from the batches of the objective, in memory where they take less than
    half of the objective's ``memory``, and else by another reading of all of them.

    Args:
        batch_size: B, from 1 to N.
        count: M. Default: N / B, rounded down.
        k: How many eigenvalues of each.
        operator: A name of ``OPERATORS``.
        point: Where, a Solution or theta. Default: the model as it came.
        engine: How products come about (see ``Hessian``).
        draws: Labels that ``fisher`` draws for each target.
        weight_decay: wd of a loss + wd / 2 |theta|^2, which moves all eigenvalues by wd.
        decayed: Patterns of the names of the parameters that are decayed (see
            ``operators.places``). Default: all.
        params: Patterns of the parameters to whose block this is restricted. Default: all.
        tol: Of residuals (see ``eigsh``).
        seed: Of the order of the examples and of the searches.
        pieces: What was found, by the number of the mini-batch; those here are not repeated.
        progress: Called after each search.

    Raises:
        InputError: If sizes and counts do not fit the data, if inputs have not the example as their
            first axis, if batches differ in the shape of one example, or under several ranks.
        ComputationError: If the loss of a mini-batch is not finite.

    >>> model = torch.nn.Linear(2, 1, bias=False).double()
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]]).double()
    >>> f = Objective(model, [(x, x[:, :1])], torch.nn.functional.mse_loss)  # 2 x x^T of each
    >>> found = batch_eigenvalues(f, batch_size=1, weight_decay=0.5)
    >>> sorted(found.values[:, 0].tolist()), found.whole_values.tolist()
    ([2.5, 8.5], [4.5])
    """
    made = {
        "operator": operator,
        "engine": engine,
        "draws": draws,
        "weight_decay": weight_decay,
        "decayed": None if decayed is None else list(decayed),
        "params": None if params is None else list(params),
    }
    search = Search(made, k, tol, seed)
    whole = A, base = search.of(objective, objective.theta if point is None else point)
    _require_search(k, A.size)
    starts = starts_of(objective)
    index = partition(starts[-1], batch_size, count, seed)
    # Statistics that are estimated anew are constants there: taken once, for all mini-batches.
    fixed = objective.under("frozen") if objective.batch_norm == "reestimate" else objective
    here = Solution(base.point.theta.detach(), base.point.buffers)
    kept = fixed.kept()
    pieces = {} if pieces is None else pieces
    LOG.info("batch_eigenvalues: %d mini-batches of %d of %d", *index.shape, starts[-1])
    for done, name in enumerate(["whole", *map(piece_of, range(len(index)))]):
        if name not in pieces:
            if name == "whole":
                pieces[name] = search.row(fixed, here, whole)
            else:
                f = mini_batch(kept, index[done - 1], starts)
                pieces[name] = search.row(f, here, search.of(f, here))
        if progress:
            progress(done + 1, len(index) + 1, f"lambda_1 {float(pieces[name][0]):.3g}")
    rows = torch.stack([pieces[piece_of(i)] for i in range(len(index))])
    error = float(pieces["whole"][-1])
    if error:  # which a search that was kept has not told
        base.spec["product_error"] = error
    return _result(A, search, pieces["whole"], rows, index, starts)


def piece_of(i: int) -> str:
    """Return the name of the piece of the i-th mini-batch."""
    return f"batch {i}"


def no_pieces(k: int, missing: Iterable[int]) -> dict[str, Tensor]:
    """Return pieces of zeros, of mini-batches that are not to be computed."""
    return {piece_of(i): torch.zeros(4 * k + MORE, dtype=torch.float64) for i in missing}


def partition(N: int, batch_size: int, count: int | None, seed: int) -> Tensor:
    """Return which examples are in each mini-batch, ascending, (M, B), the same for every M.

    Raises:
        InputError: If there are not so many examples.

    >>> partition(5, 2, None, 0).flatten().unique().numel()  # and one is left over
    4
    """
    if not is_whole(batch_size, 1, N):
        raise InputError(
            f"mini-batches need a batch_size of 1 to {N}, all the examples, got {batch_size}: "
            "change it"
        )
    most = N // batch_size
    count = most if count is None else count
    if not is_whole(count, 1, most):
        raise InputError(
            f"mini-batches of {batch_size} of {N} examples need a count of 1 to {most}, got "
            f"{count}: change it, or make them smaller"
        )
    order = torch.from_numpy(stream(seed, *STREAM).permutation(N))
    return order[: count * batch_size].view(count, batch_size).sort(dim=1).values


def draw(N: int, batch_size: int, seed: int, i: int) -> Tensor:
    """Return which examples are in the i-th of independent mini-batches, ascending, (B,).

    >>> draw(5, 5, 0, 0).tolist()
    [0, 1, 2, 3, 4]
    """
    rows = stream(seed, i, DRAWS).choice(N, batch_size, replace=False, shuffle=False)
    return torch.from_numpy(rows).sort().values


def mini_batch(f: Objective, index: Tensor, starts: Sequence[int]) -> Objective:
    """Return the mean loss over the examples with these numbers, (B,), ascending.

    Args:
        starts: The numbers of the first example of each batch of the objective, and N.
    """
    whole = gathered(f, index, starts)
    B = len(index)
    own = f.batch_norm == "batch" and layers(f.model)
    most = B if own else max(b - a for a, b in pairwise(starts))
    cuts = [torch.arange(i, min(i + most, B)).to(f.theta.device) for i in range(0, B, most)]
    batches = [taken(whole, cut) for cut in cuts]
    return f.over(batches, spec={"examples": B, "of": B})


def gathered(f: Objective, index: Tensor, starts: Sequence[int]) -> tuple[Any, ...]:
    """Return the examples with these numbers, (B,), ascending, as one batch of the objective.

    Args:
        starts: The numbers of the first example of each batch of the objective, and N.
    """
    parts: list[Any] = []

    def gather(i: int, inputs: Inputs, targets: Targets) -> Tensor:
        inside = (index >= starts[i]) & (index < starts[i + 1])
        rows = (index[inside] - starts[i]).to(f.theta.device)
        if len(rows):
            parts.append(taken(_batch(inputs, targets), rows))
        return f.theta.new_zeros(())

    f.mean(gather)
    joined: tuple[Any, ...] = _mapped(lambda *leaves: _joined(leaves), *parts)
    return joined


def taken(nest: Any, rows: Tensor) -> Any:
    """Return the examples of a batch, or of a part of one, in these rows.

    >>> taken((torch.tensor([1, 2, 3]), "mask"), torch.tensor([2, 0]))
    (tensor([3, 1]), 'mask')
    """
    return _mapped(lambda leaf: leaf[rows] if isinstance(leaf, Tensor) else leaf, nest)


def starts_of(f: Objective) -> list[int]:
    """Return the number of the first example of each batch, and that of all.

    Raises:
        InputError: If batches are not of examples of one form, or under several ranks.
    """
    require_one_process()
    sizes: list[int] = []
    forms: list[str] = []

    def look(i: int, inputs: Inputs, targets: Targets) -> Tensor:
        batch = _batch(inputs, targets)
        sizes.append(len(batch[1]) if batch[1].ndim else 0)
        forms.append(_form(batch, sizes[-1]))
        if forms[-1] != forms[0]:
            raise InputError(
                f"mini-batches need examples of one form, got {forms[0]} and, in batch {i}, "
                f"{forms[-1]}: bring them to one shape and dtype"
            )
        return f.theta.new_zeros(())

    f.mean(look)
    return [0, *accumulate(sizes)]


def require_one_process() -> None:
    """Refuse mini-batches of data of which each rank has a part.

    Raises:
        InputError: If there are several ranks.
    """
    if world_size() > 1:
        raise InputError(
            f"mini-batches need all the data in one process, got {world_size()} ranks: start one"
        )


def _require_search(k: int, n: int) -> None:
    require_one_process()
    if not is_whole(k, 1, n):
        raise InputError(
            f"batch_eigenvalues needs k from 1 to the {n} parameters, got k={k}: change it"
        )


def _batch(inputs: Inputs, targets: Targets) -> tuple[Any, ...]:
    """Return the parts of a batch as an Objective takes them."""
    if isinstance(targets, Weighted):
        return inputs, targets.targets, targets.weights
    return inputs, targets


def _form(x: Any, size: int) -> str:
    """Return what one example is like."""
    if isinstance(x, dict):
        return "{" + ", ".join(f"{key}: {_form(part, size)}" for key, part in x.items()) + "}"
    if isinstance(x, tuple | list):
        return "(" + ", ".join(_form(part, size) for part in x) + ")"
    if isinstance(x, Tensor) and x.ndim and len(x) == size:
        return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape[1:])}"
    if isinstance(x, PLAIN):
        return repr(x)
    got = f"a tensor of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
    raise InputError(
        f"mini-batches need tensors whose first axis is the {size} examples of a batch, got {got}: "
        "give each example its own"
    )


def _mapped(f: Callable[..., Any], *nests: Any) -> Any:
    """Return f of the leaves of nests of one form."""
    first = nests[0]
    if isinstance(first, dict):
        return {key: _mapped(f, *(nest[key] for nest in nests)) for key in first}
    if isinstance(first, tuple | list):
        return tuple(_mapped(f, *parts) for parts in zip(*nests, strict=True))
    return f(*nests)


def _joined(leaves: tuple[Any, ...]) -> Any:
    return torch.cat(leaves) if isinstance(leaves[0], Tensor) else leaves[0]


def _columns(rows: Tensor, k: int) -> Iterator[Tensor]:
    """Yield what the rows of searches hold, (..., k) of each pair and then (...) of each search."""
    yield from rows[..., : 4 * k].reshape(*rows.shape[:-1], 4, k).unbind(-2)
    yield from rows[..., 4 * k :].unbind(-1)


def _result(
    A: Operator,
    search: Search,
    whole: Tensor,
    rows: Tensor,
    index: Tensor,
    starts: Sequence[int],
) -> BatchEigenvalues:
    k, N = search.k, starts[-1]
    values, residuals, converged, _, losses, weights, spent, engines, errors = _columns(rows, k)
    all_values, all_residuals, all_converged, sampling, loss, _, more, *_ = _columns(whole, k)
    kinds = list(ENGINES)
    return BatchEigenvalues(
        values=values,
        residuals=residuals,
        converged=converged.bool(),
        losses=losses,
        weights=weights,
        batch_products=spent.long(),
        whole_values=all_values,
        whole_residuals=all_residuals,
        whole_converged=all_converged.bool(),
        whole_sampling_errors=sampling,
        whole_loss=float(loss),
        examples=N,
        batch_size=index.shape[1],
        products=int(spent.sum() + more),
        spec={
            "algorithm": "batch_eigenvalues",
            "batch_size": index.shape[1],
            "count": len(index),
            "left_out": N - index.numel(),
            "k": k,
            **search.made,
            "tol": TOLERANCE[A.dtype] if search.tol is None else search.tol,
            "seed": search.seed,
            "engines": sorted({kinds[int(i)] for i in engines.tolist()}),
            **({"product_error": float(errors.max())} if errors.any() else {}),
            "matrix": search.made["operator"],
            "operator": A.spec,
        },
    )
