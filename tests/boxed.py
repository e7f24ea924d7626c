"""Losses whose largest rise in a box is known, or can be tried out."""

from functools import cache
from itertools import product

import torch
from torch import Tensor, nn

from sharpness.objective import Objective


def numbers(*x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def quadratic(H: Tensor, g: Tensor, x: Tensor, f0: float) -> Objective:
    """f(x + y) = f0 + g y + y H y / 2, with its data in three ragged batches."""

    class Quadratic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.theta = nn.Parameter(x.clone())

        def forward(self, inputs: Tensor) -> Tensor:
            y = self.theta - x
            return (f0 + g @ y + y @ H @ y / 2) * inputs[:, 0]

    weights = numbers(0.5, 1.5, 1.0, 0.25, 1.75, 1.0).to(x)  # of mean 1
    cuts = [weights[:3], weights[3:5], weights[5:]]
    batches = [(part[:, None], torch.zeros(len(part)).to(x)) for part in cuts]
    return Objective(Quadratic(), batches, lambda z, _: z.mean())


SEPARABLE = quadratic(
    torch.diag(numbers(4, 1, -3, 0.5, -2)),
    numbers(0.1, -0.2, 0.05, 0, -1),
    numbers(1, -2, 0.5, 0, 3),
    0.3,
)


def symmetric(seed: int, n: int, *, convex: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """A symmetric matrix, and two normal vectors."""
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(n, n, generator=generator, dtype=torch.float64)
    g, x = torch.randn(2, n, generator=generator, dtype=torch.float64)
    return A @ A.T if convex else A + A.T, g, x


def highest(H: Tensor, g: Tensor, b: Tensor) -> float:
    """The largest g y + y H y / 2 at the 2^n vertices of the box |y_i| <= b_i."""
    vertices = b * torch.tensor(list(product((-1.0, 1.0), repeat=len(b))), dtype=torch.float64)
    return float((vertices @ g + ((vertices @ H) * vertices).sum(dim=1) / 2).max())


@cache
def _network() -> tuple[nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, generator=generator).double()
    y = (x[:, 0] * x[:, 1] > 0).long()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 2)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, x, y


def trained(dtype: torch.dtype = torch.float64) -> Objective:
    """A small ReLU network near a minimum of cross-entropy."""
    model, x, y = _network()
    with torch.random.fork_rng():
        other = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 2)).to(dtype)
    other.load_state_dict(model.state_dict())
    batches = [(x[:40].to(dtype), y[:40]), (x[40:].to(dtype), y[40:])]
    return Objective(other, batches, nn.functional.cross_entropy)
