"""What of the curvature of a cross-entropy belongs to classes (Papyan 2019, 2020).

The Gauss-Newton matrix is a second moment of gradients, and splits by class into parts that are
positive semidefinite: see "Classes" in ``docs/theory.md``.

Letters: C classes, c the class of an example and c' another; a_i the weight of an example in the
mean loss, p its probabilities; w_{c,c'} the sum of a_i p_{i,c'} over the examples of class c.
"""

from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sharpness.curvature import GaussNewton, Hessian
from sharpness.errors import InputError
from sharpness.lanczos import TOLERANCE, eigsh
from sharpness.objective import Inputs, Objective, Point, Targets, Weighted
from sharpness.results import DROWNED, ClassStructure, Eigenpairs, Solution
from sharpness.vectors import gaussian, rademacher

MORE = 5  # eigenpairs beyond the C-th, at least
THRICE = 30  # up to so many pairs, three for each class: the outliers and what they stand out of
MOST_CLASSES = 20  # up to which pairs of classes cost no more than the eigenpairs do
LOOK = 2**31  # the number of the outputs at which a loss is compared with a cross-entropy
UNITS = 100  # machine precisions that its gradient may be off, for logits of size 1
BLOCK = 2**16  # columns of an inner product in float64
REMEDY = "take the eigenvalues of the Gauss-Newton matrix, or train by cross_entropy"
Pieces = MutableMapping[str, Tensor]
Progress = Callable[[int, int | None, str], None]


def class_structure(
    objective: Objective,
    *,
    point: Point | None = None,
    k: int | None = None,
    cross: bool | None = None,
    engine: str | None = None,
    tol: float | None = None,
    seed: int = 0,
    pieces: Pieces | None = None,
    progress: Progress | None = None,
) -> ClassStructure:
    """Return how the top of the Gauss-Newton matrix G follows from the means of the classes.

    The loss is a cross-entropy of outputs (batch, C) and integer targets (batch,), with weights of
    examples or classes and ``ignore_index`` where it has them. G = G0 + G1 + G2 + G3 by class
    (see ``docs/theory.md``); lambda_c(G) >= lambda_c(G1 + G2) >= lambda_c(G1) for each c.

    Returned are top eigenpairs of G; all eigenvalues of G1, from the C x C Gram matrix of weighted
    class means, and of G1 + G2; how far the top eigenspaces of G1 and of G agree; and the share of
    the gradient in the top eigenspaces of G and of the Hessian (Gur-Ari et al. 2018). Shares and
    overlaps have error bounds, from residuals and gaps by the theorem of Davis and Kahan, and are
    unknown where the gap does not separate the eigenspace, or the gradient is but rounding.

    Cost: the products of k eigenpairs of G and C + 1 of the Hessian; for the class means a gradient
    each; with ``cross``, C backward passes for each class instead of one. Two gradients more.

    Args:
        objective: A mean cross-entropy, as the loss itself shows.
        point: Where. Default: the model as it came.
        k: Eigenpairs of G. Default: 3 C up to 30, and at least C + 5.
        cross: Whether to take G1 + G2, which needs C (C - 1) vectors. Default: up to 20 classes,
            if they fit in half of the objective's ``memory``.
        engine: Of the products, as of ``Hessian``.
        tol: Of the eigenpairs, as of ``eigsh``.
        seed: Of all random vectors.
        pieces: Products, and means by class; those found here are not computed again.
        progress: Called after each product and each class.

    Raises:
        InputError: If the loss is no such cross-entropy, or k is not between 1 and n.
        ComputationError: If a product is not finite.

    >>> from sharpness.data import digits
    >>> (X, y), _ = digits()
    >>> model = torch.nn.Linear(64, 10, bias=False).double()
    >>> _ = torch.nn.init.zeros_(model.weight)
    >>> f = Objective(model, [(X.double(), y)], torch.nn.functional.cross_entropy)
    >>> found = class_structure(f)  # G = (I / 10 - 1 1^T / 100) (x) S: nine equal outliers
    >>> found.outliers, round(float(found.values[0]), 6), round(found.gap, 1)
    (9, 1.04553, 15.0)
    """
    given = objective.at(objective.theta if point is None else point)
    here = objective.settled(given)
    n = len(here.theta)
    if engine == "finite-difference" or (k is not None and not 0 < k <= n):
        raise InputError(
            "class_structure needs 0 < k <= n and an engine of exact products, got k="
            f"{k}, n={n}, engine={engine}: ask for fewer pairs, or leave the engine out"
        )
    G = GaussNewton(objective, given, engine=engine)
    H = Hessian(objective, given, engine=engine)
    specs = [A.spec for A in (G, H)]  # before pieces that are there make a difference to them
    pieces = {} if pieces is None else pieces
    weights = _kept(pieces, "weights", lambda: weights_of(objective, here))
    classes = len(weights)
    k = min(n, max(classes + MORE, min(3 * classes, THRICE))) if k is None else k
    tol = TOLERANCE[here.theta.dtype] if tol is None else tol
    options: dict[str, Any] = {"tol": tol, "seed": seed, "progress": progress}
    pairs = eigsh(G, k, **options, pieces=_Part(pieces, "Gauss-Newton"))
    G.maps.clear()  # before the graphs of another matrix come to those of this one
    others = eigsh(H, min(n, classes + 1), **options, pieces=_Part(pieces, "Hessian"))
    H.maps.clear()

    cross, reason = _chosen(objective, cross, classes, n)
    present = (weights.sum(dim=1) > 0).nonzero().flatten().tolist()
    parts = []
    for done, c in enumerate(present, start=1):
        compute = partial(rows_of, objective, here, weights, c, cross=cross)
        parts.append(_kept(pieces, f"class {c}", compute).to(here.theta.device))
        if progress:
            progress(done, len(present), f"class {c}")
    means = torch.stack([part[0] for part in parts])
    gram, mean_values, overlaps, overlap_errors = _of_means(means, present, classes, pairs)
    gradient = _kept(pieces, "gradient", lambda: objective.gradient(here))
    noise = _kept(pieces, "noise", lambda: _noise(objective, here, seed))
    shares, share_errors = _shares(pairs, gradient, noise)
    hessian_shares, hessian_share_errors = _shares(others, gradient, noise)
    off = weights - torch.diag(weights.diagonal())
    return ClassStructure(
        values=pairs.values.cpu(),
        residuals=pairs.residuals.cpu(),
        converged=pairs.converged.cpu(),
        sampling_errors=pairs.sampling_errors.cpu(),
        gradient_shares=shares,
        gradient_share_errors=share_errors,
        hessian_values=others.values.cpu(),
        hessian_residuals=others.residuals.cpu(),
        hessian_converged=others.converged.cpu(),
        hessian_gradient_shares=hessian_shares,
        hessian_gradient_share_errors=hessian_share_errors,
        mean_values=mean_values,
        overlaps=overlaps,
        overlap_errors=overlap_errors,
        pair_values=_pair_values(parts, classes),
        gram=gram,
        class_weights=weights.sum(dim=1).cpu(),
        error_weights=off.sum(dim=1).cpu(),
        gradient_norm=float(gradient.double().norm()),
        gradient_rounding=float(noise),
        products=pairs.products + others.products,
        check_products=pairs.check_products + others.check_products,
        backward_passes=len(present) * (classes if cross else 1) + 2,
        spec={
            "algorithm": "class_structure",
            "k": k,
            "tol": tol,
            "seed": seed,
            "cross": cross,
            "cross_reason": reason,
            "engine": engine,
            "operator": specs[0],
            "hessian": {key: specs[1][key] for key in ("engine", "engine_reason", "kernels")},
            "basis": {"m": pairs.spec["m"], "hessian_m": others.spec["m"]},
        },
    )


def weights_of(objective: Objective, here: Solution) -> Tensor:
    """Return the sums of a_i p_{i,c'} over the examples of class c, shape (C, C), float64.

    Their sum is 1; a row sums to the weight of its class.

    Raises:
        InputError: If the loss is no cross-entropy of outputs (batch, C) and integer targets.
    """

    def summed(i: int, inputs: Inputs, targets: Targets) -> Tensor:
        z = objective.outputs(here, inputs)
        y = _labels(objective, z, targets)
        a, p = _weights(objective, z, targets, y), z.double().softmax(dim=1)
        _require_cross_entropy(objective, z, targets, y, a)
        return torch.zeros_like(p[:1]).expand(p.shape[1], -1).index_add(0, y, a[:, None] * p)

    with torch.no_grad():
        return objective.mean(summed)


def rows_of(
    objective: Objective, here: Solution, weights: Tensor, c: int, *, cross: bool
) -> Tensor:
    """Return sqrt(w_c) times the mean of class c, and with ``cross`` those of its pairs.

    The rows, (1, n) or (C, n): sqrt(w_c) g_c, and sqrt(w_{c,c'}) g_{c,c'} for the other classes
    c' in their order. Those of a weight of 0 are 0.

    Cost: a forward pass, and a backward pass for each row.
    """
    classes = len(weights)
    others = [other for other in range(classes) if other != c]
    # The scale goes into what is pulled back: p may be so small that its square is not there.
    scale = weights[c].rsqrt()
    scale[c] = -weights[c, others].sum().rsqrt()  # for sum_{c'} p_{c'} (e_{c'} - p) = 0
    scale = scale.nan_to_num(posinf=0.0, neginf=0.0)
    chosen = [c, *others] if cross else [c]

    def pulled(i: int, inputs: Inputs, targets: Targets) -> Tensor:
        theta = here.theta.detach().requires_grad_()
        z = objective.outputs(replace(here, theta=theta), inputs)
        y = _labels(objective, z, targets)
        a = _weights(objective, z, targets, y) * (y == c)
        if not (a.any() and z.requires_grad):
            return theta.new_zeros(len(chosen), len(theta))
        p = z.detach().double().softmax(dim=1)
        return torch.stack(
            [
                _pulled_back(z, theta, (scale[other] * a * p[:, other])[:, None] * _from(p, other))
                for other in chosen
            ]
        )

    with torch.enable_grad(), objective.with_native_rnn():
        return objective.mean(pulled)


def _from(p: Tensor, c: int) -> Tensor:
    """Return e_c - p, whose entry c is exact where p is nearly 1."""
    step = -p
    step[:, c] = 0
    step[:, c] = -step.sum(dim=1)
    return step


def _pulled_back(z: Tensor, theta: Tensor, u: Tensor) -> Tensor:
    (row,) = torch.autograd.grad(z, theta, u.to(z), retain_graph=True, materialize_grads=True)
    return row


def _labels(objective: Objective, z: Any, targets: Targets) -> Tensor:
    """Return the classes of a batch, (b,); one that is ignored and is none counts as the first."""
    y = targets.targets if isinstance(targets, Weighted) else targets
    fits = isinstance(z, Tensor) and z.ndim == 2 and z.shape[1] > 1 and y.shape == z.shape[:1]
    if not fits or y.dtype not in (torch.int64, torch.int32, torch.uint8, torch.int16, torch.int8):
        got = f"outputs {tuple(z.shape)}" if isinstance(z, Tensor) else f"a {type(z).__name__}"
        kind = str(y.dtype).removeprefix("torch.")
        raise InputError(
            "class_structure needs outputs (batch, classes) and integer targets (batch,), got "
            f"{got} and {kind} {tuple(y.shape)} of {objective.spec['loss']}: {REMEDY}"
        )
    return y.long().clamp(0, z.shape[1] - 1)


def _weights(objective: Objective, z: Tensor, targets: Targets, y: Tensor) -> Tensor:
    """Return the weights a_i of a batch in its mean loss, (b,), float64.

    Where all logits are 0 the gradient in them is a_i (1 / C - e_y), whatever the loss weighs by.
    """
    slope = objective.slope_of_outputs(torch.zeros_like(z), targets).double()
    a = -slope.gather(1, y[:, None])[:, 0] * (z.shape[1] / (z.shape[1] - 1))
    return a if torch.isfinite(slope).all() else torch.zeros_like(a)  # a batch that weighs nothing


def _require_cross_entropy(
    objective: Objective, z: Tensor, targets: Targets, y: Tensor, a: Tensor
) -> None:
    """Refuse a loss whose gradient is not a (p - e_y), there or at other logits.

    Where all logits are equal, as in a network at 0, smoothed labels have the same gradient.
    """
    if not torch.isfinite(z).all():
        return  # the first product tells what is not finite
    noise = gaussian(z.numel(), 0, LOOK, like=z).view_as(z)
    for at in (z.detach(), noise):
        slope = objective.slope_of_outputs(at, targets).double()
        wanted = at.double().softmax(dim=1)
        wanted = a[:, None] * (wanted - torch.nn.functional.one_hot(y, z.shape[1]))
        size = float(a.abs().max())
        limit = UNITS * torch.finfo(z.dtype).eps * (1 + float(at.abs().max())) * size
        gap = float((slope - wanted).abs().max()) if size else 0.0
        if not gap <= limit or bool((a < 0).any()):
            raise InputError(
                "class_structure needs a cross-entropy, whose gradient in the outputs is "
                f"a (p - e_y), got {objective.spec['loss']}, which is off by "
                f"{gap / size:.1g} a: {REMEDY}"
            )


def _chosen(objective: Objective, cross: bool | None, classes: int, n: int) -> tuple[bool, str]:
    """Return whether the pairs of classes are taken, and the reason."""
    if cross is not None:
        return cross, "asked for"
    if classes > MOST_CLASSES:
        return False, f"{classes} classes are more than {MOST_CLASSES}"
    size = classes**2 * n * objective.theta.itemsize
    fits = size <= objective.memory // 2
    verb = "fit" if fits else "do not fit"
    return fits, f"{classes**2} vectors {verb} in half of the memory"


def _gram(x: Tensor, y: Tensor) -> Tensor:
    """Return the inner products of rows, float64, on the CPU."""
    blocks = zip(torch.split(x, BLOCK, dim=1), torch.split(y, BLOCK, dim=1), strict=True)
    return torch.stack([a.double() @ b.double().T for a, b in blocks]).sum(dim=0).cpu()


def _of_means(
    means: Tensor, present: list[int], classes: int, pairs: Eigenpairs
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the Gram matrix of class means, its eigenvalues, and overlaps with their errors."""
    found = _gram(means, means)
    mu, S = torch.linalg.eigh(found)
    mu, S = mu.flip(0).clamp(min=0), S.flip(1)
    gram = torch.full((classes, classes), torch.nan, dtype=torch.float64)
    gram[torch.tensor(present)[:, None], torch.tensor(present)] = found
    values = torch.zeros(classes, dtype=torch.float64)  # of a class without an example, it is 0
    values[: len(mu)] = mu

    # (k, C')  inner products of unit eigenvectors of G and of G1, whose are S^T means / sqrt(mu)
    vectors = pairs.vectors.to(means.device)
    cosines = _gram(vectors, means) @ S * mu.rsqrt()
    together = cosines.square().cumsum(0).cumsum(1).diagonal()
    j = torch.arange(1, len(together) + 1)
    eps = torch.finfo(means.dtype).eps
    exact = torch.full_like(mu, UNITS * eps * float(mu[0]))
    doubt = _davis_kahan(mu, exact, whole=True)[: len(j)] + subspace_errors(pairs)[: len(j)]
    overlaps, errors = torch.full((2, classes), torch.nan, dtype=torch.float64)
    overlaps[: len(j)], errors[: len(j)] = _unless_unknown(together / j, doubt)
    return gram, values, overlaps, errors


def _pair_values(parts: list[Tensor], classes: int) -> Tensor:
    """Return the eigenvalues of G1 + G2, (C (C - 1),), none where its vectors were not taken."""
    rows = torch.cat([part[1:] for part in parts])
    values = torch.zeros(classes * (classes - 1) if len(rows) else 0, dtype=torch.float64)
    if len(rows):
        values[: len(rows)] = torch.linalg.eigvalsh(_gram(rows, rows)).flip(0).clamp(min=0)
    return values


def _noise(objective: Objective, here: Solution, seed: int) -> Tensor:
    """Return an estimate of the rounding in the gradient, a norm, shape ().

    That of a machine precision in each a_i (p - e_y), of random signs.
    """

    def pulled(i: int, inputs: Inputs, targets: Targets) -> Tensor:
        theta = here.theta.detach().requires_grad_()
        z = objective.outputs(replace(here, theta=theta), inputs)
        a = _weights(objective, z, targets, _labels(objective, z, targets))
        if not z.requires_grad:
            return torch.zeros_like(theta)
        signs = rademacher(z.numel(), seed, i, like=a).view_as(z)
        return _pulled_back(z, theta, a[:, None] * signs)

    with torch.enable_grad(), objective.with_native_rnn():
        row = objective.mean(pulled)
    return torch.finfo(row.dtype).eps * row.double().norm()


def _shares(pairs: Eigenpairs, gradient: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return |P g|^2 / |g|^2 for the first 1, ..., k eigenvectors, and bounds of their errors.

    For projections P and P', |g^T (P - P') g| <= |P - P'| |g|^2; the rounding of g would add twice
    its part, if it were no estimate.
    """
    norm = gradient.double().norm()
    parts = _gram(pairs.vectors.to(gradient.device), gradient[None])[:, 0] / norm.cpu()
    doubt = subspace_errors(pairs) + DROWNED * float(noise / norm)
    return _unless_unknown(parts.square().cumsum(0), doubt)


def _unless_unknown(values: Tensor, doubts: Tensor) -> tuple[Tensor, Tensor]:
    """Return shares and the bounds of their errors, NaN both where a bound says nothing."""
    known = doubts < 1  # else they are no news of a number from 0 to 1
    return values.where(known, torch.nan).clamp(max=1), doubts.where(known, torch.nan)


def subspace_errors(pairs: Eigenpairs) -> Tensor:
    """Return bounds of |P - P'| for the span of the first 1, ..., k vectors, and the eigenspace.

    NaN where one of the pairs up to the next has not converged, or no gap is known: for the last
    one, unless the vectors are a whole basis, and among equal eigenvalues.
    """
    values, residuals = pairs.values.double().cpu(), pairs.residuals.double().cpu()
    rounding = UNITS * torch.finfo(pairs.vectors.dtype).eps * values.abs().max()
    sure = pairs.converged.cpu().cummin(0).values
    whole = pairs.vectors.shape[0] == pairs.vectors.shape[1]
    bounds = _davis_kahan(values, residuals + rounding, whole=whole)
    return torch.where(torch.cat([sure[1:], sure[-1:]]), bounds, torch.nan)


def _davis_kahan(values: Tensor, residuals: Tensor, *, whole: bool) -> Tensor:
    """Return |R| / gap, of which sin Theta is no more (Davis and Kahan 1970), for j = 1, ..., k.

    R are the residuals of the first j vectors, and the gap goes from the j-th value to the next
    eigenvalue, which is its Ritz value and its residual at most.
    """
    last = values.new_tensor([-torch.inf if whole else torch.nan])
    gaps = values - torch.cat([(values + residuals)[1:], last])
    gaps = torch.where(gaps > 0, gaps, torch.nan)
    return residuals.square().cumsum(0).sqrt() / gaps


def _kept(pieces: Pieces, name: str, compute: Callable[[], Tensor]) -> Tensor:
    """Return a piece, computed where it is not there yet."""
    if name not in pieces:
        pieces[name] = compute()
    return pieces[name]


class _Part(MutableMapping[str, Tensor]):
    """The pieces of one of several searches, under its name."""

    def __init__(self, pieces: Pieces, name: str) -> None:
        self.pieces, self.name = pieces, f"{name} "

    def __getitem__(self, key: str) -> Tensor:
        return self.pieces[self.name + key]

    def __setitem__(self, key: str, value: Tensor) -> None:
        self.pieces[self.name + key] = value

    def __delitem__(self, key: str) -> None:
        del self.pieces[self.name + key]

    def __iter__(self) -> Iterator[str]:
        own = (key for key in self.pieces if key.startswith(self.name))
        return (key.removeprefix(self.name) for key in own)

    def __len__(self) -> int:
        return sum(1 for _ in self)
