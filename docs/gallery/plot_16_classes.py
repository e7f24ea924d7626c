r"""
Outliers and classes
====================

A few eigenvalues stand apart from the bulk of a spectrum, about as many as there are classes. They
belong to the class means of gradients: the Gauss-Newton matrix :math:`G` of a cross-entropy splits
by class into parts that are positive semidefinite (:doc:`/theory`, "Classes"). First where all is
known: softmax regression on the digits at :math:`W = 0`, where :math:`G` is the Hessian, with nine
equal eigenvalues on top. Class means make little of them there: where all classes are equally
probable, the directions to the nine wrong ones nearly cancel. Means of pairs of classes make most.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import sharpness as sh
from sharpness.data import digits

(inputs, targets), _ = digits()
inputs = inputs.double()
softmax = nn.Linear(64, 10, bias=False).double()
nn.init.zeros_(softmax.weight)
f = sh.Objective(softmax, [(inputs, targets)], nn.functional.cross_entropy)
found = sh.class_structure(f)
print(
    f"{found.outliers} outliers of {found.values[0]:.4f}, {found.gap:.1f} times the next;", end=" "
)
means, pairs = (float(x[0] / found.values[0]) for x in (found.mean_values, found.pair_values))
print(f"of the first, class means make {means:.1%} and pairs of classes {pairs:.0%}")

assert found.outliers == 9
assert 14 < found.gap < 16
assert means < 0.03
assert pairs > 0.6
assert torch.allclose(found.hessian_values, found.values[:11], rtol=1e-6)
assert found.gradient_shares[9].isnan()  # of ten: the tenth eigenvalue equals the eleventh

# %%
# In a trained network
# --------------------
#
# A small network at a training loss of 0.1. Left are the eigenvalues of :math:`G`, and those that
# class means (:math:`G_1`) and means of pairs of classes (:math:`G_1 + G_2`) make, below as they
# must be. Right are the cosines between the class means: most of these are nearly orthogonal, and
# those that are not point away from each other.

config = sh.TrainConfig(
    model_options={"widths": [32]},
    batch_size=8,
    epochs=60,
    stop_loss=0.1,
    checkpoint_losses=[2.0, 1.5, 1.0, 0.7, 0.5, 0.35, 0.2],
    threads=1,
)
run = sh.train(config)
objective = sh.objective_of(run, dtype="float64")


def drawn(found: sh.ClassStructure) -> plt.Figure:
    fig, axes = plt.subplots(1, 2, figsize=(9.6, 4.6), layout="constrained")
    sh.plots.class_eigenvalues(found, axes[0])
    axes[0].legend(
        fontsize="small", frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2
    )
    sh.plots.class_cosines(found, axes[1])
    return fig


end = sh.class_structure(objective, point=run.end)
drawn(end)

# %%
# Outliers are 9 here too, one less than there are classes. The class means point where they do, for
# the overlap of nine directions is nearly 1, but make less than half of their size. Means of pairs
# of classes make most of it.

means, pairs = (x[:9] / end.values[:9] for x in (end.mean_values, end.pair_values))
print(f"{end.outliers} outliers, the last {end.gap:.1f} times the next; overlap", end=" ")
print(f"{end.overlaps[8]:.2f}; of their size class means make {means.min():.0%} to", end=" ")
print(f"{means.max():.0%}, pairs {pairs.min():.0%} to {pairs.max():.0%}")

assert end.converged.all()
assert end.outliers == 9
assert end.gap > 2
assert end.overlaps[8] > 0.9
assert end.overlap_errors[8] < 0.01
assert means.max() < 0.6 < pairs.min()
apart = end.cosines - torch.eye(10)
assert apart.max() < 0.3
assert apart.min() < -0.3

# %%
# The gradient
# ------------
#
# How much of the gradient lies in the eigenspace of the ten largest eigenvalues of the Hessian, of
# 2410 dimensions? A fifth at the start, less than a tenth while the loss falls from 2 to 1, and
# nine tenths at the end. So it comes to lie "in a tiny subspace" (Gur-Ari et al. 2018), but in
# this training only after most of the loss is gone. A random direction would have 0.4 %. Error
# bounds are below the size of the markers.

points = {update: sh.class_structure(objective, point=p) for update, p in run.points.items()}
losses = torch.stack([objective.value(p) for p in run.points.values()])
shares = torch.stack([x.hessian_gradient_shares[9] for x in points.values()])
errors = torch.stack([x.hessian_gradient_share_errors[9] for x in points.values()])
others = torch.stack([x.gradient_shares[9] for x in points.values()])
norms = torch.tensor([x.gradient_norm for x in points.values()])

fig, (above, below) = plt.subplots(2, 1, figsize=(6.0, 5.0), sharex=True, layout="constrained")
above.plot(losses, shares, color=sh.plots.BLUE, marker="o", label="of the Hessian")
above.plot(losses, others, color=sh.plots.ORANGE, marker="s", linestyle="--", label="of $G$")
above.set_ylabel("share of $|g|^2$ in the first 10")
above.set_ylim(0, 1)
above.legend(frameon=False)
below.plot(losses, norms, color=sh.plots.BLUE, marker="o")
below.set_ylabel("$|g|$")
below.set_ylim(0, None)
below.set_xlabel(r"training loss  (training goes to the right $\rightarrow$)")
below.set_xscale("log")
below.invert_xaxis()
below.set_xticks([2, 1, 0.5, 0.2, 0.1], ["2", "1", "0.5", "0.2", "0.1"])
below.minorticks_off()

for share, error, loss in zip(shares.tolist(), errors.tolist(), losses.tolist(), strict=True):
    print(f"loss {loss:.2f}: {share:.3f}, to {error:.0e}")

assert errors.max() < 1e-3
assert 0.1 < shares[0] < 0.35
assert all(x < 0.1 for x, loss in zip(shares, losses, strict=True) if 0.9 < loss < 2.1)
assert shares[-1] > 0.7
