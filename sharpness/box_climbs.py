"""Ways up in the box of Metric 2.1: each finds a high point of the loss, from one start.

L-BFGS-B is SciPy's, and Keskar's. Its objective must be scaled with the variables u on [-1, 1], or
each step is some 1e-7 of the box; its tolerances must be zero, or it stops where it starts. The
sign iteration u <- sign(gradient) is Frank-Wolfe with unit steps: it climbs from vertex to vertex,
because a convex function has its maximum there, and stays on the device. From the gradient at the
center it climbs in growing parts of the box first, because signs change on the way. Flips of single
coordinates are for few of them: what they leave is a vertex that no neighbor exceeds.

Letters: p dimensions of the box.
"""

from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import torch
from scipy.optimize import minimize
from torch import Tensor

from sharpness.boxes import Box, Vector
from sharpness.vectors import uniform

GROWING = (1 / 3, 2 / 3)  # parts of the box in which the climb from the gradient begins
FLIPPED = 64  # dimensions up to which all coordinates are flipped, one by one
NUMBERS = 6  # of a climb in a piece, before z

Start = Callable[["Climb"], None]


@dataclass
class Climb:
    """What one start has found in the box, and at what cost."""

    box: Box
    best: float = 0.0  # the highest rise; the center itself counts
    begin: float = 0.0  # the rise at the start
    iterations: int = 0
    gradients: int = 0  # passes that find loss and gradient
    forwards: int = 0  # those that find the loss alone
    scipy_seconds: float = 0.0
    z: Tensor = field(init=False)  # (p,)  where it is highest

    def __post_init__(self) -> None:
        self.z = torch.zeros_like(self.box.sides)

    def take(self, rise: float, z: Tensor) -> None:
        """Note one more point by its rise."""
        if self.gradients + self.forwards == 1:
            self.begin = rise
        if rise > self.best:
            self.best, self.z = rise, z

    @property
    def piece(self) -> Tensor:
        """All but the seconds in one vector, float64 on the host."""
        numbers = [self.best, self.begin, self.iterations, self.gradients, self.forwards]
        on_bounds = self.box.on_bounds(self.z)
        told = torch.tensor([*numbers, on_bounds], dtype=torch.float64)
        return torch.cat([told, self.z.double().cpu()])

    @classmethod
    def of(cls, box: Box, piece: Tensor) -> "Climb":
        """Return the climb that a piece is of."""
        best, begin, *counts = piece[: NUMBERS - 1].tolist()
        climb = cls(box, best, begin, *map(int, counts))
        climb.z = piece[NUMBERS:].to(box.sides)
        return climb


def climbed(
    box: Box,
    starts: dict[str, Start],
    pieces: MutableMapping[str, Tensor] | None = None,
    progress: Callable[[int, int | None, str], None] | None = None,
    *,
    flip: bool = True,
) -> dict[str, Climb]:
    """Return what each start found, by name.

    Args:
        flip: Whether the highest of them is the start of flips, where the dimensions are few.
    """
    found: dict[str, Climb] = {}
    flips = flip and box.dimension <= FLIPPED
    total, begun = len(starts) + flips, perf_counter()

    def climb(name: str, start: Start) -> None:
        if pieces is not None and name in pieces:
            found[name] = Climb.of(box, pieces[name])
        else:
            found[name] = Climb(box)
            start(found[name])
            if pieces is not None:
                pieces[name] = found[name].piece
        if progress:
            state = f"value {box.metric(highest(found).best):.4g}"
            spent = sum(climb.scipy_seconds for climb in found.values())
            if spent:
                state += f", {spent / (perf_counter() - begun):.0%} of the time in SciPy"
            progress(len(found), total, state)

    for name, start in starts.items():
        climb(name, start)
    if flips:
        best = highest(found)
        climb("flips", lambda climb: flip_coordinates(climb, best))
    return found


def highest(found: dict[str, Climb]) -> Climb:
    """Return the climb that rose most, the first of them where several did."""
    return max(found.values(), key=lambda climb: climb.best)


def lbfgsb(seed: int, i: int, iterations: int) -> Start:
    """Return the i-th start of L-BFGS-B, uniform in the box."""
    return lambda climb: _minimize(climb, uniform(climb.box.dimension, seed, i).numpy(), iterations)


def _minimize(climb: Climb, u: Vector, iterations: int) -> None:
    box, ours = climb.box, 0.0

    def descent(u: Vector) -> tuple[float, Vector]:
        nonlocal ours
        begun = perf_counter()
        z, found = box.descent(u)
        climb.gradients += 1
        climb.take(-float(found[0]) / box.scale, z)
        ours += perf_counter() - begun
        return float(found[0]), found[1:]

    begun = perf_counter()
    end = minimize(
        descent,
        u,
        method="L-BFGS-B",
        jac=True,
        bounds=[(-1.0, 1.0)] * len(u),
        options={"maxiter": iterations, "ftol": 0.0, "gtol": 0.0, "maxls": 20},
    )
    climb.scipy_seconds = perf_counter() - begun - ours
    climb.iterations = int(end.nit)


def sign_iteration(u: Callable[[], Tensor], iterations: int) -> Start:
    """Return a start of the sign iteration: u, then the signs of the gradient there, and so on.

    It ends where they do not change. Where the gradient is 0 the coordinate stays as it is.

    Args:
        u: Makes it, shape (p,), in the dtype of theta.
        iterations: Gradients at most.
    """
    return lambda climb: _iterate(climb, u(), iterations)


def from_gradient(seed: int, iterations: int) -> Start:
    """Return the start of the sign iteration from the signs of G, in growing parts of the box.

    Where G is 0, as at the weights of dead units, a coordinate stays at the center until a gradient
    moves it or the others have settled; then it takes a random sign. Where all of G is 0 this is
    the iteration from a random vertex. A loss at the end is that at the signs of G in the whole
    box, random ones where it is 0: the growing parts pass by this vertex.

    Args:
        seed: Of the random signs.
        iterations: Gradients at most, the last of which is in the whole box.
    """

    def start(climb: Climb) -> None:
        box = climb.box
        vertex = box.vertex(box.G, seed, 0)
        known = box.G.to(vertex).sign()
        if not known.any():  # the center would be all that it sees
            _iterate(climb, vertex, iterations)
            return
        _iterate(climb, known, iterations, growing=GROWING[: iterations - 1], settled=vertex)
        climb.forwards += 1
        z = box.inside(vertex)
        climb.take(box.rise(z), z)

    return start


def _iterate(
    climb: Climb,
    u: Tensor,
    iterations: int,
    *,
    growing: Sequence[float] = (),
    settled: Tensor | None = None,
) -> None:
    """Climb from u, in these parts of the box first.

    Args:
        settled: What takes the place of zeros of u where the signs do not change.
    """
    box = climb.box
    for i in range(iterations):
        part = growing[i] if i < len(growing) else 1.0
        z = box.inside(part * u)
        value, slope = box.slope(z)
        climb.gradients += 1
        following = torch.where(slope == 0, u, slope.sign())
        # In one vector: each look from the host makes a GPU wait.
        facts = torch.stack([x.double() for x in (value, slope.sum(), (following != u).any())])
        there, total, moves = facts.tolist()
        box.require_finite(z, there, total)
        climb.take(there - box.loss, z)
        if not moves and part == 1:
            if settled is None or u.all():
                return
            following = torch.where(u == 0, settled, u)
        climb.iterations, u = i + 1, following


def flip_coordinates(climb: Climb, start: Climb) -> None:
    """Move one coordinate after the other to its other bounds, until no move rises.

    Cost: p losses for each round at a vertex, and a last round that finds nothing.
    """
    box = climb.box
    climb.best = climb.begin = start.best
    climb.z = z = start.z
    # Of less, rounding makes rises without end.
    least = torch.finfo(z.dtype).eps * (abs(box.loss) + abs(start.best))
    moved = True
    while moved:
        moved = False
        for i in range(box.dimension):
            for bound in (box.sides[i], -box.sides[i]):
                if climb.z[i] == bound:
                    continue
                z = climb.z.clone()
                z[i] = bound
                rise = box.rise(z)
                climb.forwards += 1
                if rise > climb.best + least:
                    climb.best, climb.z, moved = rise, z, True
        climb.iterations += moved
