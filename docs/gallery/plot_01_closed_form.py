r"""
Two answers known in advance
============================

Before a number is believed, the same code should reproduce one that can be worked out by hand.

**Softmax regression at zero weights.** All :math:`C` classes are equally probable there, so the
Hessian of the cross-entropy is :math:`\frac{1}{C}(I - \frac{1}{C} 1 1^T) \otimes S`, where
:math:`S = \frac{1}{N} \sum_i x_i x_i^T` and each :math:`x_i` ends in a 1 for the bias. Each
eigenvalue of :math:`S`, divided by :math:`C`, is an eigenvalue of the Hessian, :math:`C - 1` times
over: an eigensolver that misses copies shows here.
"""

import matplotlib.pyplot as plt
import torch

import sharpness as sh

config = sh.TrainConfig(model_options={"widths": []}, dtype="float64", updates=1)
objective = sh.objective_of(sh.train(config))
origin = torch.zeros_like(objective.theta)
pairs = sh.eigsh(sh.Hessian(objective, origin), k=30)

X = torch.cat([inputs for inputs, _ in objective.batches])
X = torch.cat([X, torch.ones(len(X), 1)], dim=1)
S = X.T @ X / len(X)
theory = torch.linalg.eigvalsh(S).flip(0).repeat_interleave(9)[:30] / 10

assert pairs.converged.all()
assert torch.allclose(pairs.values, theory, rtol=1e-7, atol=0)
error = (pairs.values / theory - 1).abs().max().item()
print(f"largest relative error {error:.1e}")

# %%
# **Metric 2.1 of a quadratic.** Along one coordinate with slope :math:`g_i` and curvature
# :math:`h_i \ge 0`, the largest rise within :math:`\pm b_i` is
# :math:`|g_i| b_i + \frac{1}{2} h_i b_i^2`, and where the loss is a sum over coordinates the rises
# add up. The fit of six weights to six numbers, one input each, is such a loss.

x = torch.tensor([3.0, 2.0, 1.0, 0.5, 0.2, 0.1], dtype=torch.float64)
target = torch.tensor([1.0, -2.0, 0.5, 1.0, 0.0, 3.0], dtype=torch.float64)
w = torch.tensor([0.5, -1.0, 0.4, 1.0, 2.0, -3.0], dtype=torch.float64)

model = torch.nn.Linear(6, 1, bias=False).double()
batches = [(torch.diag(x), target[:, None])]
quadratic = sh.Objective(model, batches, torch.nn.functional.mse_loss)

epsilons = torch.logspace(-3, 0, 13, dtype=torch.float64)
found = [sh.epsilon_sharpness(quadratic, w, epsilon=e) for e in epsilons.tolist()]
measured = [sharpness.value for sharpness in found]

g, h = 2 / 6 * x * (x * w - target), 2 / 6 * x**2
b = epsilons[:, None] * (w.abs() + 1)
known = 100 * (g.abs() * b + h * b**2 / 2).sum(dim=1) / (1 + quadratic.value(w))

assert torch.allclose(torch.tensor(measured, dtype=torch.float64), known, rtol=1e-9)

# %%
# Both answers drawn over what was computed.

fig, (left, right) = plt.subplots(1, 2, figsize=(7.4, 3.4), layout="constrained")
sh.plots.eigenvalues(pairs, left, label="computed")
left.plot(range(1, 31), theory, "k_", markersize=9, label="known")
left.set_title("Hessian of softmax regression", fontsize="medium")
left.legend()

right.loglog(epsilons, measured, "o", color=sh.plots.BLUE, label="computed")
right.loglog(epsilons, known, "k-", linewidth=1, label="known")
right.set_xlabel(r"$\epsilon$, size of the box")
right.set_ylabel("Metric 2.1 (%)")
right.set_title("Metric 2.1 of a quadratic", fontsize="medium")
right.legend()
