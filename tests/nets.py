"""Small networks that have the symmetries of weights, each on a few random inputs."""

import torch
from torch import Tensor, nn

from sharpness.objective import Objective


class Attention(nn.Module):
    """Two heads over a sequence, with its mean as the input of a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.attention(x, x, x)[0].mean(dim=1))


NETS = {
    "relu": lambda: nn.Sequential(
        *(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    ),
    "batch norm": lambda: nn.Sequential(
        *(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    ),
    "convolutions": lambda: nn.Sequential(
        *(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 3, padding=1), nn.LeakyReLU()),
        *(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)),
    ),
    "tanh": lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)),
    "attention": Attention,
}


def posed(net: str) -> Objective:
    """A net of random weights on random inputs of three classes, in two ragged batches."""
    model = NETS[net]().double()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.eps = 0.0  # else the scaling is a symmetry to eps over the variance only
            nn.init.uniform_(part.weight, 0.5, 2.0)
            nn.init.normal_(part.bias)
            part.running_mean = torch.randn(5).double()
            part.running_var = torch.rand(5).double() + 0.5
    if isinstance(model, Attention):  # rows of several sizes, which orthogonal maps mix
        weight = model.attention.in_proj_weight.data
        weight *= 4.0 ** (torch.arange(len(weight)) % 3 - 1)[:, None]
    x = torch.randn(12, 5, 6) if net == "attention" else torch.randn(12, 4)
    x, y = x.double(), torch.arange(12) % 3
    return Objective(model, [(x[:7], y[:7]), (x[7:], y[7:])], nn.functional.cross_entropy)
