r"""
The same function, sharper by its numbers
=========================================

In a ReLU network the weights into one layer can be multiplied by :math:`a` and those out of it
divided by :math:`a`, and every output stays what it was (Dinh et al. 2017). So a measure that
changes under it cannot by itself say how such a network generalizes.
"""

import matplotlib.pyplot as plt

import sharpness as sh

run = sh.train(sh.TrainConfig(batch_size=32, dtype="float64", seed=0))
objective = sh.objective_of(run)
into, out_of = 64 * 128 + 128, 128 * 128  # parameters of layer 1, weights of 2

factors = [1.0, 2.0, 4.0, 8.0, 16.0]  # powers of two, which round nothing
table = []
for a in factors:
    theta = run.end.theta.clone()
    theta[:into] *= a
    theta[into : into + out_of] /= a
    top = sh.eigsh(sh.Hessian(objective, theta), k=1)
    relative = sh.eigsh(sh.AdaptiveHessian(objective, theta), k=1)
    assert top.converged.all()
    assert relative.converged.all()
    phi = sh.epsilon_sharpness(objective, theta, starts=0, sign_starts=3)
    table.append((phi.loss, top.values[0].item(), relative.values[0].item(), phi.value))

losses, plain, adaptive, metric = zip(*table, strict=True)

# %%
# The loss is the same to the last bit. The curvature in relative changes of the parameters,
# :math:`\mathrm{diag}(\lvert\theta\rvert) \, H \, \mathrm{diag}(\lvert\theta\rvert)`, keeps its
# largest eigenvalue to the tolerance of the solver; the Hessian does not, and neither does Metric
# 2.1, whose box is relative for large weights only.

assert len(set(losses)) == 1
assert max(adaptive) / min(adaptive) - 1 < 1e-6
assert max(plain) / min(plain) > 10
assert max(metric) / min(metric) > 10
print(" a   lambda_1  adaptive  Metric 2.1")
for a, _, *row in zip(factors, *zip(*table, strict=True), strict=True):
    print(f"{a:2.0f}  {row[0]:9.3f}  {row[1]:.6f}  {row[2]:8.2f} %")

fig, ax = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
for style, (name, values) in enumerate(
    {
        r"$\lambda_1$ of the Hessian": plain,
        "Metric 2.1": metric,
        r"$\lambda_1$ of the adaptive Hessian": adaptive,
    }.items()
):
    relative = [value / values[0] for value in values]
    color, marker = sh.plots.COLORS[style], sh.plots.MARKERS[style]
    ax.loglog(factors, relative, color=color, marker=marker, label=name)
ax.set_xticks(factors, [f"{a:g}" for a in factors])
ax.minorticks_off()
ax.set_xlabel("factor $a$ of layer 1, with layer 2 divided by it")
ax.set_ylabel("relative to $a = 1$")
ax.set_title("One function, five sets of weights", fontsize="medium")
ax.legend()
