"""The box of Metric 2.1 around a point, and the loss in it as a function of u on [-1, 1]^p.

    y = A z,  z_i = b_i u_i,  b_i = epsilon (|(A^+ x)_i| + 1)

Vectors stay on the device of theta and in its dtype; only SciPy has its own on the host.

Letters: x = theta, n parameters, p dimensions of the subspace that A spans, G = b * gradient.
"""

import math
from copy import copy
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sharpness.errors import InputError
from sharpness.finite import require_finite
from sharpness.objective import Objective, Targets
from sharpness.results import Solution
from sharpness.vectors import gaussian, stream

# A displacement of fewer units in the last place of a weight is rounded away.
FEWEST_UNITS = 16
PLACES = 3  # of the key of a stream: those of uniform vectors and of random signs end in 1 and 2
WITHIN = "use a smaller epsilon or float64"
COLUMNS = ("gaussian", "orthonormal", "coordinates")

Vector = np.ndarray[Any, Any]


class Subspace(Protocol):
    """The range of a matrix A, of n x p."""

    def coordinates(self, x: Tensor) -> Tensor:
        """Return A^+ x, shape (p,)."""
        ...

    def components(self, slope: Tensor) -> Tensor:
        """Return A^T slope, shape (p,)."""
        ...

    def displacement(self, z: Tensor) -> Tensor:
        """Return A z, shape (n,)."""
        ...


class Whole:
    """The space itself: A is the identity."""

    def coordinates(self, x: Tensor) -> Tensor:
        """Return x."""
        return x

    def components(self, slope: Tensor) -> Tensor:
        """Return the slope."""
        return slope

    def displacement(self, z: Tensor) -> Tensor:
        """Return z."""
        return z


class Columns:
    """The span of the columns of a matrix.

    Args:
        rows: A^T, shape (p, n).
    """

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def coordinates(self, x: Tensor) -> Tensor:
        """Return the least-squares solution of A z = x, in float64."""
        gram, right = (self.rows @ self.rows.T).double(), (self.rows @ x).double()
        return torch.linalg.solve(gram, right)

    def components(self, slope: Tensor) -> Tensor:
        """Return A^T slope."""
        return self.rows @ slope

    def displacement(self, z: Tensor) -> Tensor:
        """Return A z."""
        return z @ self.rows


class Coordinates:
    """The span of some unit vectors: p of the n parameters.

    Args:
        places: Which, ascending, shape (p,).
    """

    def __init__(self, places: Tensor) -> None:
        self.places, self.size = places, 0

    def coordinates(self, x: Tensor) -> Tensor:
        """Return the entries of x at the places."""
        self.size = len(x)
        return x[self.places]

    def components(self, slope: Tensor) -> Tensor:
        """Return the entries of the slope at the places."""
        return slope[self.places]

    def displacement(self, z: Tensor) -> Tensor:
        """Return a vector with these entries, and 0 elsewhere."""
        return z.new_zeros(self.size).index_copy(0, self.places, z)


def subspace(columns: str, dimension: int, seed: int, draw: int, *, like: Tensor) -> Subspace:
    """Return a random subspace.

    Args:
        columns: One of ``COLUMNS``.
        like: Theta.
    """
    n = len(like)
    if columns == "coordinates":
        # Without replacement: each set of p places is as probable as any other.
        places = np.sort(stream(seed, draw, PLACES).permutation(n)[:dimension])
        return Coordinates(torch.from_numpy(places).to(like.device))
    first = draw * dimension  # the rows of A^T are other vectors of the stream in each draw
    rows = torch.stack([gaussian(n, seed, first + i, like=like) for i in range(dimension)])
    if columns == "orthonormal":
        Q, R = torch.linalg.qr(rows.T)
        # Which of both signs a solver takes is its own affair.
        rows = (Q * torch.where(R.diagonal() < 0, -1, 1)).T.contiguous()
    return Columns(rows)


class Box:
    """The loss in the box around a point.

    Args:
        here: The center.
        subspace: Default: the whole space, p = n.
    """

    def __init__(
        self,
        objective: Objective,
        here: Solution,
        epsilon: float,
        subspace: Subspace | None = None,
    ) -> None:
        self.objective, self.here = objective, here
        self.subspace: Subspace = Whole() if subspace is None else subspace
        self.reach = self.subspace.coordinates(here.theta).double().abs() + 1  # (p,)  b / epsilon
        value, (_, slope) = objective.value(here), objective.value_and_gradient(here)
        require_finite(objective, "epsilon_sharpness", here, value, slope)
        self.loss = float(value)
        self._slope = self.reach * self.subspace.components(slope).double()
        self._resize(epsilon)

    def resized(self, epsilon: float) -> "Box":
        """Return the box of another epsilon around the same point, without a pass."""
        other = copy(self)
        other._resize(epsilon)
        return other

    def _resize(self, epsilon: float) -> None:
        self.epsilon, self.b = epsilon, epsilon * self.reach
        self.sides = self.b.to(self.here.theta)
        self.G = epsilon * self._slope  # (p,)
        steepest = float(self.G.abs().mean())
        # Unscaled, the first step is the gradient itself: some 1e-7 of a box of size 1.
        self.scale = max(1 / epsilon**2, 10 / steepest if steepest else 0.0)
        self._descent = -self.scale * self.b

    @property
    def dimension(self) -> int:
        """How many variables there are: p."""
        return len(self.b)

    def inside(self, u: Tensor) -> Tensor:
        """Return z = b u, shape (p,), in the dtype of theta."""
        return (self.b * u).to(self.sides) if u.dtype == self.b.dtype else self.sides * u

    def at(self, z: Tensor) -> Solution:
        """Return the point of the box that z leads to."""
        return Solution(self.here.theta + self.subspace.displacement(z), self.here.buffers)

    def slope(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss there, shape (), and its gradient in z, shape (p,), unchecked."""
        value, slope = self.objective.value_and_gradient(self.at(z))
        return value, self.subspace.components(slope)

    def descent(self, u: Vector) -> tuple[Tensor, Vector]:
        """Return z and what SciPy minimizes, -scale (rise), before its gradient in u, (1 + p,).

        One vector goes to the device of theta and one comes back.
        """
        z = self.inside(torch.from_numpy(u).to(self.b.device))
        value, slope = self.slope(z)
        both = torch.empty(1 + len(z), dtype=torch.float64, device=z.device)
        both[0] = -self.scale * (value.double() - self.loss)
        torch.mul(slope, self._descent, out=both[1:])
        found: Vector = both.cpu().numpy()
        self.require_finite(z, float(found.sum()))
        return z, found

    def require_finite(self, z: Tensor, *numbers: float) -> None:
        """Refuse a point whose loss or gradient is not finite: the maximum is over all of them.

        Args:
            numbers: Of which one is not finite if the loss or an entry of the gradient is not.
        """
        if all(map(math.isfinite, numbers)):
            return
        there = self.at(z)
        found = self.objective.value_and_gradient(there)
        require_finite(self.objective, "epsilon_sharpness in its box", there, *found, remedy=WITHIN)

    def rise(self, z: Tensor) -> float:
        """Return the loss at a point of the box above that at the center, summed in float64."""
        value = float(self.objective.value(self.at(z)))
        self.require_finite(z, value)
        return value - self.loss

    def on_bounds(self, z: Tensor) -> float:
        """Return the share of coordinates that are on a bound."""
        return float((z.abs() >= self.sides).double().mean())

    def vertex(self, signs: Tensor, seed: int, i: int) -> Tensor:
        """Return signs in the dtype of theta, random ones where they are 0."""
        known = signs.to(self.sides).sign()
        unknown = known == 0
        if unknown.any():
            known = torch.where(unknown, self.random_vertex(seed, i), known)
        return known

    def random_vertex(self, seed: int, i: int) -> Tensor:
        """Return the i-th random vertex of a seed, shape (p,), in the dtype of theta."""
        # Other vectors than the starts of L-BFGS-B, of which there are fewer.
        random = stream(seed, 2**16 + i, 1).uniform(-1, 1, self.dimension)
        signs = np.where(random < 0, np.float32(-1), np.float32(1))
        return torch.from_numpy(signs).to(self.sides)

    def sampling_error(self, z: Tensor) -> float:
        """Return the standard error of the rise there; 0 if the data are whole."""
        if not self.objective.is_sample:
            return 0.0
        here = self.objective.settled(self.here)  # once, not for each batch
        there = self.objective.settled(self.at(z))

        def rise(i: int, inputs: Any, targets: Targets) -> Tensor:
            f = self.objective.batch_loss
            return f(there, inputs, targets).double() - f(here, inputs, targets).double()

        with torch.no_grad():
            return float(self.objective.sampling_error(rise))

    def metric(self, rise: float) -> float:
        """Return 100 rise / (1 + loss)."""
        return 100 * rise / (1 + self.loss)

    def rounding(self, maximum: float) -> float:
        """Return one unit in the last place of a loss, as a value of the metric."""
        return self.metric(torch.finfo(self.sides.dtype).eps * abs(maximum))


def require_box(who: str, epsilon: float, theta: Tensor) -> None:
    """Refuse an epsilon of which no box can be made.

    Raises:
        InputError: If it is not positive, not finite, or too large or too small for theta's dtype.
    """
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise InputError(f"{who} needs epsilon above 0 and finite, got {epsilon}: change it")
    largest = torch.finfo(theta.dtype).max ** 0.5
    if epsilon > largest:
        raise InputError(
            f"{who} needs epsilon up to {largest:.1e} in {theta.dtype}, where its square "
            f"overflows, got {epsilon:.1e}: lower it"
        )
    finest = FEWEST_UNITS * torch.finfo(theta.dtype).eps
    if epsilon < finest:
        raise InputError(
            f"{who} needs epsilon >= {finest:.1e} in {theta.dtype}, got {epsilon:.1e}, which "
            "rounding of the weights would lose: raise it or use float64"
        )
