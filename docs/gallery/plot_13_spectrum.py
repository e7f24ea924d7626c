r"""
A whole spectrum: outliers and a bulk
=====================================

Random probes tell the density of *all* eigenvalues of a Hessian, and its trace, for a few hundred
products. First where the truth is known: softmax regression on the digits at :math:`W = 0`. Its
classes are equally probable there, so that the Hessian is
:math:`(I / 10 - 1 1^T / 100) \otimes S`, with the second moments :math:`S` of the 64 pixels: each
of its eigenvalues is one of :math:`S`, divided by 10, nine times over, and 64 more are zero. The
labels play no part.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import sharpness as sh
from sharpness.data import digits
from sharpness.densities import outliers

(inputs, targets), _ = digits()
inputs = inputs.double()
softmax = nn.Linear(64, 10, bias=False).double()
nn.init.zeros_(softmax.weight)
H = sh.Hessian(sh.Objective(softmax, [(inputs, targets)], nn.functional.cross_entropy))

S = inputs.T @ inputs / len(inputs)
truth = torch.linalg.eigvalsh(S).flip(0).clamp(min=0) / 10

# %%
# The thirty largest eigenvalues: nine stand apart, by the largest ratio of neighbors, for the
# pixels have a mean that is not zero. Lanczos finds all nine although they are equal.

top = sh.eigsh(H, k=30)
count = outliers(top.values)
gap = (top.values[count - 1] / top.values[count]).item()
print(f"{count} outliers of {top.values[0]:.4f}, {gap:.1f} times the next eigenvalue")

assert top.converged.all()
assert torch.allclose(top.values, truth.repeat_interleave(9)[:30], rtol=1e-6)
assert count == 9
assert 14 < gap < 16

# %%
# The trace is nine tenths of that of :math:`S`, and its interval holds it.

found = sh.trace(H)
low, high = found.interval.tolist()
exact = 0.9 * S.trace().item()
print(f"trace {found.value:.3f}, in [{low:.3f}, {high:.3f}]; exactly {exact:.3f}")

assert abs(exact - 13.512779111018364) < 1e-9
assert low < exact < high

# %%
# With the nine left out of the probes all of these are spent on the bulk, here of 631 eigenvalues.
# Triangles mark what is left out, and strokes the nodes of the quadrature.


def drawn(found: sh.Density) -> plt.Figure:
    fig, axes = plt.subplots(2, 1, figsize=(6.2, 6.8), layout="constrained")
    for ax, log in zip(axes, (False, True), strict=True):
        sh.plots.density(found, ax, log=log)
        ax.legend(
            fontsize="small", frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2
        )
    return fig


bulk = sh.density(H, steps=40, deflate=sh.eigsh(H, k=9))
drawn(bulk)

eighth = ((truth[8] + truth[9]) / 2).item()  # below eight eigenvalues of the bulk, each nine times
share, low, high = bulk.mass(eighth, 0.5)
print(f"{share:.2%} of all lie between {eighth:.3f} and 0.5, in [{low:.2%}, {high:.2%}]", end="")
print(f"; exactly {72 / 640:.2%}")

assert low < 72 / 640 < high
mean, low, high = bulk.moment(1)
assert low < exact / 640 < high
peak, *bounds = bulk.on(truth[:1], 0.001)
wanted = 9 / 640 / (0.001 * (2 * torch.pi) ** 0.5)
assert all(abs(x.item() / wanted - 1) < 1e-6 for x in (peak, *bounds))  # known, without a doubt

# %%
# A trained network
# -----------------
#
# The same of a small network at the end of its training: it has nine outliers too, one less than
# there are classes, and a bulk around zero. Nothing is known exactly here.

config = sh.TrainConfig(model_options={"widths": [32]}, batch_size=8, epochs=15, threads=1)
run = sh.train(config)
trained = sh.Hessian(sh.objective_of(run))

top = sh.eigsh(trained, k=30)
count = outliers(top.values)
print(
    f"{count} outliers; the {count}th is {top.values[count - 1] / top.values[count]:.1f} times",
    end="",
)
print(f" the next eigenvalue, of a network with the loss {run.history['train_loss'][-1]:.2f}")

assert top.converged.all()
assert count == 9

# %%
# Most eigenvalues are within a hundredth of the largest one around zero. What the steps do not tell
# apart there is one node, of which hardly more than that is known: the probes do not agree whether
# it is negative.

found = sh.density(trained, steps=60, deflate=sh.eigsh(trained, k=count))
drawn(found)

near = 0.01 * top.values[0].item()
share, low, high = found.mass(-near, near)
print(f"within {near:.3f} of 0 are {share:.0%} of {found.size} eigenvalues,", end=" ")
print(f"in [{low:.0%}, {high:.0%}]")

assert low > 0.5
_, low, high = found.negative_mass
assert high - low > 0.2
beyond = found.mass(top.values[count].item() * 1.01, top.values[count - 1].item() * 0.99)
assert beyond[0] == 0  # between the bulk and the outliers is nothing
