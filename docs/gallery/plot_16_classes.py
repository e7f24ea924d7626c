r"""
Outliers and classes
====================

A few eigenvalues stand apart from the bulk of a spectrum, about as many as there are classes. They
belong to the class means of gradients: the Gauss-Newton matrix :math:`G` of a cross-entropy splits
by class into parts that are positive semidefinite (:doc:`/theory`, "Classes"). First where all is
known: softmax regression on the digits at :math:`W = 0`, where :math:`G` is the Hessian, with nine
equal eigenvalues on top.
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
print(f"class means explain {found.mean_values[0]:.4f} to {found.mean_values[8]:.4f}")

assert found.outliers == 9
assert 14 < found.gap < 16
assert torch.allclose(found.hessian_values, found.values[:11], rtol=1e-6)
assert found.gradient_shares[9].isnan()  # of ten: the tenth eigenvalue equals the eleventh

# %%
# In a trained network
# --------------------
#
# A small network at the end of its training. Left are the eigenvalues of :math:`G`, and what of
# them class means (:math:`G_1`) and means of pairs of classes (:math:`G_1 + G_2`) explain: below
# those of :math:`G`, as they must be. Right are the cosines between the class means.

config = sh.TrainConfig(model_options={"widths": [32]}, batch_size=8, epochs=15, threads=1)
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


end = sh.class_structure(objective)
drawn(end)
