"""The Fisher information of a model's outputs, with the labels of the data or of the model.

Letters: N examples; J the Jacobian of the outputs z; m the share of a label in the mean loss.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sharpness.curvature import OutputCurvature
from sharpness.distributed import rank
from sharpness.errors import InputError
from sharpness.likelihoods import likelihood_of
from sharpness.names import named
from sharpness.objective import Objective, Point, Targets, Weighted
from sharpness.options import require_counts
from sharpness.vectors import stream

LABELS = 3  # the key of the stream of labels, which is no other's


class SecondMoment(OutputCurvature):
    """A mean of g g^T over gradients g of the loss, by the slopes that they have in the outputs."""

    def output_map(self, i: int, z: Tensor, targets: Targets) -> Callable[[Tensor], Tensor]:
        """Return u -> sum s (s . u) over the slopes s of one batch."""

        def slope(at: Tensor) -> Tensor:
            return self.objective.slope_of_outputs(at, targets)

        self._seen(self.objective.loss_of_outputs(z, targets))
        slopes, added = self.slopes(i, z, targets, slope)
        return lambda u: (slopes * added(slopes * u)).sum(dim=0)

    @abstractmethod
    def slopes(
        self, i: int, z: Tensor, targets: Targets, slope: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return slopes, (s, *z.shape), and the sum over all that belongs to one gradient."""


class Fisher(SecondMoment):
    """E[g g^T] over labels that the model draws: the Fisher information, by Monte Carlo.

    The loss needs to be the negative log-likelihood of labels given outputs, with any weights,
    ignored targets or smoothing: a cross-entropy over classes on any axis, a binary one of logits,
    or squared errors. The expectation is the Gauss-Newton matrix then; with d draws the entries
    have an error of the order 1 / sqrt(N d). Labels are drawn once, so that this is one matrix.

    Cost: of the Gauss-Newton matrix.

    Args:
        draws: Labels drawn for each target.
        seed: Of the labels. A split of the data into other batches leaves them the same.

    Raises:
        InputError: If draws are below 1; at the first product, if the loss is no such likelihood.

    >>> X, y = torch.tensor([[1.0], [2.0]]).double(), torch.tensor([0, 1])
    >>> model = torch.nn.Linear(1, 2, bias=False).double()
    >>> f = Objective(model, [(X, y)], torch.nn.functional.cross_entropy)
    >>> v, zero = torch.tensor([1.0, 0.0]).double(), torch.zeros(2).double()
    >>> Fisher(f, zero) @ v  # p = 1/2, so that any label has the same g g^T
    tensor([ 0.6250, -0.6250], dtype=torch.float64)
    """

    def __init__(
        self,
        objective: Objective,
        point: Point | None = None,
        *,
        draws: int = 1,
        seed: int = 0,
        engine: str | None = None,
        memory: int | None = None,
    ) -> None:
        require_counts(draws=draws)
        super().__init__(objective, point, engine=engine, memory=memory)
        self.draws, self.seed = draws, seed
        self._before = {0: 0}  # targets before each batch, by its number

    @property
    def making(self) -> dict[str, Any]:
        """How labels were drawn."""
        return {"draws": self.draws, "seed": self.seed}

    def slopes(
        self, i: int, z: Tensor, targets: Targets, slope: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return the slopes of drawn labels, by the root of their share."""
        found = likelihood_of(slope, z)
        if found is None:
            raise InputError(
                "Fisher needs the negative log-likelihood of labels, a cross-entropy or squared "
                f"errors of the outputs, got {named(self.objective.loss)}: take EmpiricalFisher or "
                "GaussNewton"
            )
        root = (found.mass.clamp(min=0) / self.draws).sqrt()
        noise = [self._noise(i, draw, found.mass) for draw in range(self.draws)]
        return torch.stack([root * found.slopes(z, u) for u in noise]), found.added

    def _noise(self, i: int, draw: int, like: Tensor) -> Tensor:
        """Return uniform numbers for the targets of a batch, those that any split gives them."""
        before = self._before[i]
        self._before[i + 1] = before + like.numel()
        noise = stream(self.seed, draw, LABELS, rank())
        noise.bit_generator.advance(before)  # type: ignore[attr-defined]  # of PCG64
        return torch.from_numpy(noise.random(like.shape)).to(like.device)


class EmpiricalFisher(SecondMoment):
    """The mean of g g^T over the gradients g of the loss of each example, with its own label.

    Where the loss is a cross-entropy, an example is a target, such as a pixel or a token, with the
    weight that it has there; otherwise it is a row of outputs. This is not the Fisher information
    of the model: where the labels are fitted it is near 0.

    Cost: of the Gauss-Newton matrix.

    >>> X, y = torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1)
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> f = Objective(model, [(X, y)], torch.nn.functional.mse_loss)
    >>> (EmpiricalFisher(f, torch.ones(1)) @ torch.ones(1)).round()  # g = 2 x^2: (4 + 64) / 2
    tensor([34.])
    """

    def slopes(
        self, i: int, z: Tensor, targets: Targets, slope: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return the slope of each example over the root of its share."""
        found = likelihood_of(slope, z)
        if found is None or found.axis is None:
            mass, added = _of_rows(z, targets)
        else:
            mass, added = found.mass, found.added
        root = torch.where(mass > 0, mass, torch.inf).sqrt()  # a slope without weight is 0
        return (slope(z) / root)[None], added


def _of_rows(z: Tensor, targets: Targets) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return the share of each row of outputs in a mean loss, and the sum over a row."""
    rest = tuple(range(1 - z.ndim, 0))  # from the last: more axes may be in front
    if isinstance(targets, Weighted):
        weights = targets.weights.reshape(len(targets.weights), -1).sum(dim=1) / targets.total
    else:
        weights = torch.full((len(z),), 1 / len(z))
    mass = weights.to(z).view(-1, *(1 for _ in rest))
    return mass, lambda x: x.sum(rest, keepdim=True) if rest else x
