"""Of which labels a loss is the negative log-likelihood, found from the loss itself.

As a function of its outputs z alone, the loss of a batch has one of three slopes, each with a mass
m and a vector t that the targets, weights, smoothing and the like make of it:

* categorical: m softmax(z) - t over the classes on some axis, one mass for each target,
* Bernoulli: m sigmoid(z) - t, for each output,
* normal: m z - t, for each output.

The slopes at two or three points give m and t, and the slope at another one tells whether the loss
is such. So nothing depends on the name of a loss, or on which of its options were used.

Letters: z outputs, of any shape with the examples first; C classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Slope = Callable[[Tensor], Tensor]  # of the loss of one batch in its outputs

FAR = 1e4  # a logit at which all others have no probability
LEAST = 2.0**-54  # in place of 0 among uniform numbers, which are multiples of 2^-53


@dataclass(frozen=True)
class Likelihood:
    """A distribution of labels given the outputs, and what each label weighs in a mean loss."""

    name: str  # "categorical", "bernoulli" or "normal"
    axis: int | None  # of the classes, from the last; None where each output is by itself
    mass: Tensor  # of the shape of z, with 1 for the classes: 0 where a target is ignored

    def slopes(self, z: Tensor, u: Tensor) -> Tensor:
        """Return the slope of -log likelihood at z for labels that are drawn at z, like z.

        Without the mass. Their second moments are the Hessian of the loss in z for unit masses.

        Args:
            u: Uniform on [0, 1), of the shape of the mass, float64.
        """
        if self.name == "normal":
            return torch.special.ndtri(u.clamp(min=LEAST)).to(z)
        if self.axis is None:
            p = torch.sigmoid(z)
            return p - (u < p).to(z)
        p = torch.softmax(z, self.axis)
        label = (p.double().cumsum(self.axis) < u).sum(self.axis, keepdim=True)
        one = torch.zeros_like(p).scatter_(self.axis, label.clamp(max=z.shape[self.axis] - 1), 1.0)
        return p - one

    def added(self, x: Tensor) -> Tensor:
        """Return x, with more axes in front or not, summed over what belongs to one label."""
        return x if self.axis is None else x.sum(self.axis, keepdim=True)


def likelihood_of(slope: Slope, z: Tensor) -> Likelihood | None:
    """Return of which labels a loss is the negative log-likelihood, None if of none of the three.

    Args:
        z: Outputs, for their shape, dtype and device.

    >>> z = torch.zeros(2, 3)
    >>> m, t = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    >>> found = likelihood_of(lambda z: m * z.softmax(1) - t, z)  # the second weighs twice as much
    >>> found.name, found.axis, found.mass.flatten().round(decimals=4)
    ('categorical', -1, tensor([1., 2.]))
    """
    trial = torch.cos(torch.arange(1, z.numel() + 1, device=z.device)).to(z.dtype).view(z.shape)
    near, there = slope(torch.zeros_like(z)), slope(trial)
    mass = slope(torch.ones_like(z)) - near
    if _same(mass * trial + near, there, mass):
        return Likelihood("normal", None, mass)
    far = slope(torch.full_like(z, FAR))
    mass = 2 * (far - near)  # m sigmoid is m / 2 at 0
    if _same(mass * torch.sigmoid(trial) - mass + far, there, mass):
        return Likelihood("bernoulli", None, mass)
    for axis in range(1 - z.ndim, 0):  # from that behind the examples on
        classes = z.shape[axis]
        if classes < 2:
            continue
        first = torch.zeros_like(z)
        first.select(axis, 0).fill_(FAR)
        far = slope(first)
        mass = (far - near).narrow(axis, 0, 1) * (classes / (classes - 1))
        t = mass / classes - near
        if _same(mass * torch.softmax(trial, axis) - t, there, mass):
            return Likelihood("categorical", axis, mass)
    return None


def _same(guess: Tensor, there: Tensor, mass: Tensor) -> bool:
    """Say whether a guess is the slope that was found, with masses that are none below 0."""
    scale = torch.maximum(mass.abs().max(), there.abs().max())
    if not torch.isfinite(scale):
        return False
    eps = torch.finfo(there.dtype).eps ** 0.5 * scale
    return bool(((guess - there).abs().max() <= eps) & (mass.min() >= -eps) & (mass.max() > eps))
