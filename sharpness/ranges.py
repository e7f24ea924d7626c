"""What the range of a few products tells of an operator: a map of low rank, known exactly."""

from dataclasses import dataclass

import torch
from torch import Tensor

LEAK = 0.5  # residuals of their eigenvalue below which a Ritz vector is nearly an eigenvector


@dataclass(frozen=True)
class Range:
    """Ritz vectors q of an operator, as rows, with their values theta and residuals f.

    It stands for the map of low rank B, the sum of theta q q^T + q f^T + f q^T, and of
    f f^T / theta where f is small: that much an eigenvector that the range almost has leaves
    outside of it, of the one direction that a probe hits or not.
    """

    Q: Tensor  # (r, n)
    F: Tensor  # (r, n)
    theta: Tensor  # (r,)  float64, on the CPU
    inverse: Tensor  # (r,)  1 / theta where f is small, else 0

    @classmethod
    def of(cls, Q: Tensor, AQ: Tensor) -> "Range":
        """Return that of an orthonormal basis and its products, as rows.

        >>> A = torch.diag(torch.tensor([4.0, 1.0]))
        >>> found = Range.of(torch.eye(2), A)
        >>> found.theta, found @ torch.ones(2), found.trace
        (tensor([1., 4.], dtype=torch.float64), tensor([4., 1.]), 5.0)
        """
        H = (Q.double() @ AQ.double().T).cpu()
        theta, S = torch.linalg.eigh((H + H.T) / 2)
        turned = S.T.to(Q)
        Q, AQ = turned @ Q, turned @ AQ
        F = AQ - theta.to(Q)[:, None] * Q
        F = F - (F @ Q.T) @ Q
        near = F.double().norm(dim=1).cpu() < LEAK * theta.abs()
        return cls(Q, F, theta, torch.where(near, 1 / theta, torch.zeros_like(theta)))

    def on(self, at: Tensor) -> "Range":
        """Return the diagonal block of B at these places."""
        return Range(self.Q[:, at], self.F[:, at], self.theta, self.inverse)

    def __matmul__(self, v: Tensor) -> Tensor:
        """Return B v."""
        q, f = self.Q @ v, self.F @ v
        return (self.theta.to(v) * q + f) @ self.Q + (q + self.inverse.to(v) * f) @ self.F

    @property
    def trace(self) -> float:
        """The trace of B."""
        Q, F = self.Q.double(), self.F.double()
        theta, inverse = self.theta.to(Q)[:, None], self.inverse.to(Q)[:, None]
        return float((Q * (theta * Q + 2 * F)).sum() + (inverse * F * F).sum())

    def leaked(self, z: Tensor) -> float:
        """Return z^T B z of a vector z that is orthogonal to all q."""
        return float((self.inverse * (self.F @ z).double().cpu().square()).sum())


def orthonormal(Y: Tensor, known: Tensor | None = None) -> Tensor:
    """Return an orthonormal basis of rows, without what is known, (r, n).

    >>> orthonormal(torch.tensor([[0.0, 3.0], [0.0, 2.0]])).abs()
    tensor([[0., 1.]])
    """
    Q, R = torch.linalg.qr(Y.T)
    size = R.diagonal().abs()
    Q = Q[:, size > 10 * torch.finfo(Y.dtype).eps * size.max()] if size.any() else Q[:, :0]
    rows = Q.T.contiguous()
    if known is not None and len(rows):
        rows = torch.linalg.qr((rows - (rows @ known.T) @ known).T)[0].T.contiguous()
    return rows
