r"""
What BatchNorm does where a loss is looked at
=============================================

With batch normalization the loss at given weights depends on which means and variances are used
(:doc:`/theory` has the rules). A small convolutional network, a small and a large batch, and what
the rule changes: on the line between them, and in the curvature at one of them.
"""

import matplotlib.pyplot as plt
import torch

import sharpness as sh

cnn = {"model": "cnn", "model_options": {"channels": [8]}, "stop_loss": 0.1}
sb = sh.train(sh.TrainConfig(**cnn, batch_size=16, seed=0))
lb = sh.train(sh.TrainConfig(**cnn, batch_size=300, seed=0))

objective = sh.objective_of(sb)
alphas = torch.linspace(-0.5, 1.5, 17, dtype=torch.float64)
lines = {
    rule: sh.line(objective, sb.end, lb.end, alphas=alphas, batch_norm=rule)
    for rule in ("reestimate", "interpolate")
}

# %%
# Between solutions whose running statistics differ, ``line`` re-estimates them at every point
# unless told otherwise, and records the rule. Frozen ones would be those of one end only, so that
# is refused.

chosen = sh.line(objective, sb.end, lb.end, alphas=alphas)
assert chosen.spec["batch_norm"] == "reestimate"
try:
    sh.line(objective, sb.end, lb.end, alphas=alphas, batch_norm="frozen")
except sh.InputError as refused:
    print(refused)
else:
    raise AssertionError("frozen statistics of two solutions")

# %%
# At one solution ``frozen`` keeps its running statistics, ``reestimate`` takes those of the
# training data as constants, and ``batch`` differentiates through those of the batch. That is
# another function of the weights, and its curvature is another.

tops = {}
for rule in ("frozen", "reestimate", "batch"):
    top = sh.eigsh(sh.Hessian(sh.objective_of(lb, batch_norm=rule)), k=1)
    assert top.converged.all()
    tops[rule] = top.values[0].item()
    print(f"{rule:10} lambda_1 {tops[rule]:.2f} +- {top.residuals[0]:.0e}")

assert tops["frozen"] > 1.25 * tops["batch"]

fig, (left, right) = plt.subplots(1, 2, figsize=(7.6, 3.5), layout="constrained")
for i, (rule, between) in enumerate(lines.items()):
    color, marker = sh.plots.COLORS[i], sh.plots.MARKERS[i]
    left.plot(alphas, between.values["loss"], color=color, marker=marker, label=rule)
left.set_xlabel(r"position $\alpha$  (0: batch 16, 1: batch 300)")
left.set_ylabel("training loss")
left.set_title("on the line", fontsize="medium")
left.legend()
right.bar(list(tops), list(tops.values()), color=sh.plots.COLORS[:3], width=0.6)
right.set_ylabel(r"$\lambda_1$ of the Hessian")
right.set_title("at the solution of batch 300", fontsize="medium")

# %%
# So numbers under one rule are not comparable with numbers under another, and every result has its
# rule in its ``spec``.
