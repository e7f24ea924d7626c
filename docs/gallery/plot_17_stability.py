r"""
Where the optimizer becomes unstable
====================================

On a quadratic each optimizer diverges above a curvature of its own: gradient descent above
:math:`2 / \eta`, others in the metric :math:`P` that they divide by. ``preconditioned_sharpness``,
``critical_sharpness`` and ``batch_sharpness`` measure how near a training is to that. Here they are
taken along four trainings of one network on the digits; a run keeps the optimizer's state at its
end, so each point is the end of a run of so many updates.
"""

import matplotlib.pyplot as plt

import sharpness as sh

designs = {
    "gradient descent": {"optimizer": "sgd", "learning_rate": 0.3, "batch_size": 600},
    "Adam, all examples": {"optimizer": "adam", "learning_rate": 1e-3, "batch_size": 600},
    "RMSprop, all examples": {"optimizer": "rmsprop", "learning_rate": 3e-4, "batch_size": 600},
    "SGD, batches of 8": {"optimizer": "sgd", "learning_rate": 0.1, "batch_size": 8},
}
updates = [10, 50, 150, 400]
runs = {
    name: [sh.train(sh.TrainConfig(updates=count, threads=1, **design)) for count in updates]
    for name, design in designs.items()
}
f = sh.objective_of(runs["gradient descent"][0])  # they are of one network and one split
metric = {name: [sh.preconditioned_sharpness(f, run) for run in of] for name, of in runs.items()}
steps = {
    name: [sh.critical_sharpness(f, run=run, direction="update") for run in of]
    for name, of in runs.items()
}
on_batches = [sh.batch_sharpness(f, run=run) for run in runs["SGD, batches of 8"]]

fig, axes = plt.subplots(1, 3, figsize=(9.6, 3.6), sharey=True, layout="constrained")
for i, name in enumerate(designs):
    style = {"color": sh.plots.COLORS[i], "marker": sh.plots.MARKERS[i], "label": name}
    for ax, found in zip(axes, (metric[name], steps[name]), strict=False):
        ax.plot(updates, [x.value / x.threshold for x in found], **style)
threshold = on_batches[0].threshold
means = [x.value / threshold for x in on_batches]
bars = [[float(abs(x.value - x.interval[side])) / threshold for x in on_batches] for side in (0, 1)]
whole = [x.value / threshold for x in metric["SGD, batches of 8"]]
style["label"] = "mini-batches"
axes[2].errorbar(updates, means, bars, capsize=3, **style)
axes[2].plot(updates, whole, "k--", label="$\\lambda_1$ of all examples")
titles = ("preconditioned sharpness", "critical sharpness of the update", "batch sharpness of SGD")
for ax, title in zip(axes, titles, strict=True):
    ax.axhline(1, color="black", linewidth=1)
    ax.set_yscale("log")
    ax.set_xscale("log")
    ax.set_xlabel("updates")
    ax.set_title(title, fontsize="medium")
axes[0].set_ylabel("value / threshold")
axes[0].legend(fontsize="small")
axes[2].legend(fontsize="small")

# %%
# **RMSprop** has :math:`\lambda_1(P^{-1} H)` at its threshold after 150 updates and after 400,
# while the loss goes on falling: the edge of stability that Cohen et al. (2022) saw with Adam.

settled = [x.value / x.threshold for x in metric["RMSprop, all examples"][2:]]
losses = [x.loss for x in metric["RMSprop, all examples"][2:]]
print(
    f"RMSprop: {settled[0]:.3f} and {settled[1]:.3f} at losses {losses[0]:.3f} and {losses[1]:.3f}"
)
assert all(0.9 < value < 1.1 for value in settled)
assert losses[1] < losses[0] / 2

# %%
# **Gradient descent** at this rate is beyond its threshold after 50 updates, and its next update
# raises the loss: the first forward pass of critical sharpness is that update. Later the curvature
# falls, as it does with a cross-entropy that is nearly fitted, and so the same rate is stable.

peak, late = metric["gradient descent"][1], metric["gradient descent"][3]
following = steps["gradient descent"][1]
print(
    f"after 50 updates {peak.value:.1f}, after 400 {late.value:.1f}, 2 / eta = {peak.threshold:.1f}"
)
assert peak.interval[0] > 1.2 * peak.threshold
assert following.interval[0] > following.threshold
assert following.details["losses"][0] > following.loss
assert late.interval[1] < 0.8 * late.threshold

# %%
# **Adam** is tens of times above its threshold after 10 updates, and trains on without a spike. The
# certificate says what that number is worth: practically all of the eigenvector is where
# :math:`\sqrt{v}` is below ten times Adam's :math:`\epsilon`, so that the value is one of
# :math:`1 / \epsilon`. From 50 updates on nothing of it is there.

first, *others = metric["Adam, all examples"]
print(first.words)
assert first.value > 10 * first.threshold
assert first.details["weight_at_epsilon"] > 0.9
assert all(x.details["weight_at_epsilon"] < 0.01 for x in others)

# %%
# **Small batches** meet another curvature than the data as a whole has. At the end the batch
# sharpness of SGD is clearly above :math:`\lambda_1` of all examples, and nearer to
# :math:`2 / \eta`, which it has not come up to in these 400 updates.

end, of_all = on_batches[-1], metric["SGD, batches of 8"][-1]
print(end.words)
assert end.interval[0] > 1.2 * of_all.interval[1]
assert end.interval[1] < end.threshold

# %%
# Critical sharpness is the cheapest, some ten forward passes, and by far the most erratic: it sees
# the curvature along one update only, and most of it may lie elsewhere.

for name, found in steps.items():
    told = ", ".join(f"{x.value / x.threshold:.3g}" for x in found)
    print(f"{name}: {told} of 2 / eta, {sum(x.forwards for x in found) / len(found):.0f} passes")
assert max(x.forwards for found in steps.values() for x in found) < 25
