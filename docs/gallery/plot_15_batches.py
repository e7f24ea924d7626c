r"""
The curvature that a mini-batch sees
====================================

A step of training meets the curvature of its mini-batch and not that of all the data. First where
the truth is known: for least squares with inputs :math:`X` the Hessian of a mini-batch is
:math:`\frac{2}{B} X_B^T X_B`.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import sharpness as sh
from sharpness.by_batch import partition

torch.manual_seed(0)
x = torch.randn(600, 20).double()
linear = nn.Linear(20, 1, bias=False).double()
f = sh.Objective(linear, [(x, x[:, :1])], nn.functional.mse_loss)

sizes = (6, 20, 60, 200, 600)
found = {f"B = {B}": sh.batch_eigenvalues(f, batch_size=B) for B in sizes}
for result, B in zip(found.values(), sizes, strict=True):
    for value, rows in zip(result.values[:, 0], partition(600, B, None, 0), strict=True):
        truth = torch.linalg.eigvalsh(2 * x[rows].T @ x[rows] / B)[-1]
        assert abs(value - truth) < 1e-8 * truth

# %%
# Each dot is a mini-batch, the line through a row all 600 examples. The largest eigenvalue is
# convex in the matrix, so the mean over the mini-batches of a whole partition is never below that
# of all the data. Here no direction stands out, for the inputs are independent: what six examples
# have more of in some direction is chance, and it makes most of their largest eigenvalue.

fig, ax = plt.subplots(figsize=(6.2, 4.2), layout="constrained")
sh.plots.batch_violins(found, ax)
above = {"fontsize": "small", "frameon": False, "loc": "lower center", "bbox_to_anchor": (0.5, 1)}
ax.legend(**above, ncols=3)

means = [result.mean()[0] for result in found.values()]
whole = float(result.whole_values[0])
print(", ".join(f"{mean / whole:.2f} at B = {B}" for mean, B in zip(means, sizes, strict=True)))
print("times the value of all the data, on average")

assert all(mean >= whole * (1 - 1e-8) for mean in means)
assert means == sorted(means, reverse=True)
assert means[0] > 3 * whole

# %%
# A small and a large batch
# -------------------------
#
# Twelve networks, six trained with batches of 8 and six with all 600 examples, each until the
# training loss is at most 0.01. All are looked at through the same twenty mini-batches of 30,
# whatever they were trained with.

seeds, trained = range(6), (8, 600)
networks = {(b, s): sh.train(sh.TrainConfig(batch_size=b, seed=s)) for b in trained for s in seeds}
found = {
    key: sh.batch_eigenvalues(sh.objective_of(run), batch_size=30) for key, run in networks.items()
}
assert all(run.stopped == "stop_loss" for run in networks.values())
assert all(x.is_partition and x.converged.all() for x in found.values())

# %%
# The pair of the first seed. In each of the twelve networks the largest of the twenty values is
# more than four times the smallest, and their mean is well above the value of all the data, so that
# a sharpness from one mini-batch is none of the network.

fig, ax = plt.subplots(figsize=(6.2, 2.8), layout="constrained")
sh.plots.batch_violins({"batch 8": found[8, 0], "batch 600": found[600, 0]}, ax)
ax.legend(**above, ncols=3)

for (b, s), result in found.items():
    least, most = result.quantiles([0.0, 1.0]).tolist()
    print(f"batch {b:3}, seed {s}: {least:.2f} to {most:.2f}, all the data", end=" ")
    print(f"{float(result.whole_values[0]):.2f}, on average {result.mean()[0]:.2f}")
    assert most > 4 * least
    assert result.mean()[0] > 1.4 * result.whole_values[0]

# %%
# Over the six seeds, with Adam at one learning rate: the networks of the full batch are sharper for
# all the data and on average over the mini-batches, and their mini-batches agree better, for the
# spread is a smaller part of the mean. Each whole interval lies on one side of 1.


def by_seed(number):
    return [torch.tensor([number(found[b, s]) for s in seeds]).double() for b in trained]


of = {
    "mean over mini-batches": lambda x: x.mean()[0],
    "all the data": lambda x: float(x.whole_values[0]),
    "spread over mean": lambda x: x.spread() / x.mean()[0],
}
ratios = {}
for name, number in of.items():
    small, large = by_seed(number)
    ratios[name] = sh.paired_ratio(large, small)
    mean, low, high = ratios[name]
    print(f"{name}, 600 / 8: {mean:.2f} [{low:.2f}, {high:.2f}]")

assert ratios["mean over mini-batches"][1] > 1.3
assert ratios["all the data"][1] > 1.3
assert ratios["spread over mean"][2] < 0.9
