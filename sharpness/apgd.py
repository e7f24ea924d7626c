"""Auto-PGD: climbing in a ball by steps of projected gradient, halved where they no longer pay.

The method is Croce and Hein's (2020, Algorithm 1): from x, and y before it,

    z = P(x + eta s),  x' = P(x + 3/4 (z - x) + 1/4 (x - y)),

with s the steepest unit step and P the projection on the ball, from eta = 2 rho. At checkpoints,
closer and closer to each other, eta is halved and x goes back to the best point if fewer than 3/4
of the steps have risen, or if neither eta nor the best has moved since the last one. There the
iterate, its gradient and the best agree, and there is no point before it.

An ellipsoid |T^-1 d| <= rho is the ball of u = T^-1 d. In u both the steepest step and the
projection are those of a ball, at no cost, where the nearest point in d needs the root of an
equation and divides by the zeros of T. And what is found is the same for all networks that are the
same but for a diagonal scaling.

Letters: u a point of the ball, G the gradient in u.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sharpness.vectors import gaussian, uniform

Norm = Literal["l2", "linf"]
NORMS = ("l2", "linf")
MOMENTUM = 0.75  # all four numbers are the paper's
PAYING = 0.75  # share of the steps that have to rise
FIRST, SHORTER, SHORTEST = 0.22, 0.03, 0.06  # of the periods between checkpoints
LATE = 0.75  # share of the iterations, after which a climb should rise no more


@dataclass(frozen=True)
class Look:
    """What was seen at a point."""

    value: float  # the rise since the center
    steep: float  # dual norm of the gradient: |G|_2 in a ball of l2, |G|_1 in one of linf
    slope: Tensor  # (n,)  G


@dataclass(frozen=True)
class Ball:
    """The points u with |u| <= rho in one of two norms."""

    norm: Norm
    rho: float

    def dual(self, slope: Tensor) -> Tensor:
        """Return the largest G u over the unit ball, shape ()."""
        return torch.linalg.vector_norm(slope, 2 if self.norm == "l2" else 1)

    def step(self, u: Tensor, look: Look, length: float) -> Tensor:
        """Return the projection of u + length s, a new vector, for the steepest s of norm 1."""
        if self.norm == "linf":
            return self.project_(torch.add(u, look.slope.sign(), alpha=length))
        return self.project_(torch.add(u, look.slope, alpha=length / look.steep))

    def project_(self, u: Tensor) -> Tensor:
        """Return u after it was moved to the nearest point of the ball."""
        if self.norm == "linf":
            return u.clamp_(-self.rho, self.rho)
        return u.mul_((self.rho / torch.linalg.vector_norm(u)).clamp(max=1))

    def random(self, n: int, seed: int, i: int, like: Tensor) -> Tensor:
        """Return the i-th point, uniform in the ball."""
        if self.norm == "linf":
            return self.rho * uniform(n, seed, i).to(like)
        u = gaussian(n, seed, i, like=like)
        inside = float((uniform(1, seed, i) + 1) / 2) ** (1 / n)
        return u.mul_(self.rho * inside / torch.linalg.vector_norm(u))


@dataclass(frozen=True)
class Climb:
    """What one start has found."""

    value: float  # the highest
    u: Tensor  # (n,)  where
    steps: int
    rises: int  # steps that went up
    late: float  # share of the rise that came in the last quarter of the steps; NaN of none

    @property
    def paid(self) -> float:
        """The share of the steps that went up, NaN of none."""
        return self.rises / self.steps if self.steps else math.nan


def climb(
    see: Callable[[Tensor], Look], ball: Ball, u: Tensor, begun: Look, *, iterations: int
) -> Climb:
    """Return the highest of all points that Auto-PGD looks at from u, which it leaves as it is.

    Cost: a look for each iteration. It ends where the gradient is zero.

    Args:
        see: Value and gradient at a point of the ball, not changed afterwards.
        begun: What it is at u.

    >>> H = torch.tensor([3.0, 1.0])
    >>> def see(u):
    ...     return Look(float(H @ u**2) / 2, float((H * u).norm()), H * u)
    >>> u = torch.tensor([0.1, 0.1])
    >>> found = climb(see, Ball("l2", 2.0), u, see(u), iterations=20)
    >>> round(found.value, 4)  # rho^2 lambda_1 / 2
    6.0
    """
    look, before, top = begun, None, (begun, u)
    length = 2 * ball.rho
    checkpoints = checkpoints_of(iterations)
    steps = rises = 0
    last, since, halved, reached, early = 0, 0, False, begun.value, begun.value
    while steps < iterations and look.steep > 0:
        z = ball.step(u, look, length)
        if before is not None:
            z.mul_(MOMENTUM).add_(u, alpha=2 * (1 - MOMENTUM)).sub_(before, alpha=1 - MOMENTUM)
            ball.project_(z)
        before, u, there = u, z, see(z)
        steps += 1
        rises += there.value > look.value
        since += there.value > look.value
        look = there
        if look.value > top[0].value:
            top = look, u
        if steps <= LATE * iterations:
            early = top[0].value
        if steps in checkpoints:
            stuck = not halved and top[0].value <= reached
            halved = since < PAYING * (steps - last) or stuck
            if halved:
                length /= 2
                (look, u), before = top, None
            last, since, reached = steps, 0, top[0].value
    value = top[0].value
    late = (value - early) / value if value > 0 else math.nan
    return Climb(value, top[1], steps, rises, late)


def checkpoints_of(iterations: int) -> set[int]:
    """Return after how many iterations a climb looks back.

    >>> sorted(checkpoints_of(100))
    [22, 41, 57, 70, 80, 87, 93, 99]
    """
    before, at, found = 0.0, FIRST, set()
    while at < 1:
        found.add(math.ceil(round(at * iterations, 9)))
        before, at = at, at + max(at - before - SHORTER, SHORTEST)
    return found
