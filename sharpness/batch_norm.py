"""What BatchNorm does where a loss is evaluated, and the statistics that it does it with.

Four policies; without a layer that keeps running statistics, they are one and the same.

* ``frozen``: the running statistics of the solution.
* ``batch``: the statistics of each batch, as in the code of Keskar et al. (2017); the result
  depends on the size of the batches.
* ``reestimate``: running statistics computed over the training data at every point.
* ``interpolate``: at one solution as frozen; on a line the running means are interpolated, and
  the running variances in their logarithm.

Layers are BatchNorm of all kinds and InstanceNorm with ``track_running_stats=True``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from sharpness.distributed import sum_over_ranks
from sharpness.errors import ComputationError, InputError
from sharpness.options import require_one_of

BATCH_NORM = ("frozen", "batch", "reestimate", "interpolate")
# Of one call of a layer: how many values or instances, their mean and their variance, (C,) each.
Moments = tuple[int, Tensor, Tensor]


def require_policy(name: str) -> None:
    """Refuse what is no policy.

    Raises:
        InputError: If the name is none of ``BATCH_NORM``.
    """
    require_one_of(BATCH_NORM, batch_norm=name)


def layers(model: nn.Module) -> dict[str, _NormBase]:
    """Return the layers that keep running statistics, by name.

    >>> list(layers(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.InstanceNorm1d(3))))
    ['1']
    """
    return {
        name: part
        for name, part in model.named_modules()
        if isinstance(part, _NormBase) and part.running_mean is not None
    }


def copied(model: nn.Module) -> nn.Module:
    """Return a copy of modules and buffers; the large part, the parameters, is shared."""
    return deepcopy(model, {id(p): p for p in model.parameters()})


def by_batch(model: nn.Module) -> nn.Module:
    """Return such a copy that normalizes every batch by its own mean and variance."""
    model = copied(model)
    for layer in layers(model).values():
        # As torch makes a layer without running statistics: none to use and none to change.
        layer.track_running_stats = False
        layer.running_mean = layer.running_var = layer.num_batches_tracked = None
        layer.register_forward_pre_hook(_require_several)
    return model


@contextmanager
def watched(model: nn.Module, names: list[str]) -> Iterator[dict[str, list[Moments]]]:
    """Give the moments of what goes into these layers meanwhile, a list of all calls each."""
    found: dict[str, list[Moments]] = {name: [] for name in names}

    def watch(name: str) -> torch.utils.hooks.RemovableHandle:
        layer = model.get_submodule(name)
        return layer.register_forward_pre_hook(
            lambda layer, args: found[name].append(_moments(layer, args[0]))
        )

    handles = [watch(name) for name in names]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def pooled(layer: _NormBase, moments: list[Moments]) -> tuple[Tensor, Tensor]:
    """Return the mean and variance of all values of a channel, (C,) each, in float64.

    With c_j values in batch j, their mean m_j and their variance v_j (divided by c_j), and
    c = sum c_j, the mean is m = sum c_j m_j / c and the variance, by the law of total variance,
    sum c_j (v_j + (m_j - m)^2) / (c - 1): those of all batches in one, unbiased as torch's
    ``running_var`` is. A value is one example at one place of an image. Of InstanceNorm, as
    torch has it, they are the means over examples of each one's mean and unbiased variance.

    >>> batches = [torch.tensor([[1.0], [2.0]]), torch.tensor([[6.0], [7.0], [9.0]])]
    >>> layer = nn.BatchNorm1d(1)
    >>> pooled(layer, [_moments(layer, x) for x in batches])  # of 1, 2, 6, 7, 9
    (tensor([5.], dtype=torch.float64), tensor([11.5000], dtype=torch.float64))
    """
    counts = torch.tensor([c for c, _, _ in moments]).to(moments[0][1])  # (J,)
    means = torch.stack([m for _, m, _ in moments])  # (J, C)
    variances = torch.stack([v for _, _, v in moments])
    total = sum_over_ranks(counts.sum())
    mean = sum_over_ranks(counts @ means) / total
    if isinstance(layer, _InstanceNorm):
        return mean, sum_over_ranks(counts @ variances) / total
    return mean, sum_over_ranks(counts @ (variances + (means - mean).square())) / (total - 1)


def mixed_variance(name: str, a: Tensor, b: Tensor, alpha: float) -> Tensor:
    """Return a^(1 - alpha) b^alpha, which is exact where alpha is 0 or 1 or a and b agree.

    Args:
        name: Of the buffer, for the message.
        a: Running variances, shape (C,); b likewise.

    Raises:
        InputError: If a variance is 0 or less at one end only, which has no logarithm.
        ComputationError: If the dtype cannot hold the result.

    >>> mixed_variance("var", torch.tensor([4.0, 0.0]), torch.tensor([1.0, 0.0]), 2.0)
    tensor([0.2500, 0.0000])
    """
    same = a == b
    if not (same | ((a > 0) & (b > 0))).all():
        raise InputError(
            f"interpolate needs running variances above 0, got one of at most 0 at one end in "
            f"{name}: choose reestimate or batch"
        )
    if alpha in (0, 1):
        return b if alpha else a
    between = ((1 - alpha) * a.double().log() + alpha * b.double().log()).exp().to(a)
    mixed = torch.where(same, a, between)
    if not (same | (torch.isfinite(mixed) & (mixed > 0))).all():
        raise ComputationError(
            f"interpolate needs running variances that {a.dtype} can hold, got others in {name} "
            f"at alpha {alpha:g}: take alphas nearer to 0 and 1, or reestimate"
        )
    return mixed


def _moments(layer: nn.Module, x: Tensor) -> Moments:
    x = x.detach().double()
    if isinstance(layer, _InstanceNorm):
        variances, means = torch.var_mean(x.flatten(2), dim=2)  # (batch, C)
        return len(x), means.mean(dim=0), variances.mean(dim=0)
    x = x.transpose(0, 1).flatten(1)  # (C, values)
    variance, mean = torch.var_mean(x, dim=1, correction=0)
    return x.shape[1], mean, variance


def _require_several(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
    x = args[0]
    values = x[0, 0].numel() * (1 if isinstance(layer, _InstanceNorm) else len(x))
    if values < 2:
        raise InputError(
            f"statistics of a batch need at least 2 values of a channel, got {values} in "
            f"{type(layer).__name__}: choose another micro-batch, or freeze BatchNorm"
        )
