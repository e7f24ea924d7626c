r"""
Sharpness along a training
==========================

``checkpoint_losses`` keeps the solution where the training loss first meets each of these levels.
Drawn against the loss, not against time, small and large batch can be compared at equal loss all
the way, as in Figure 6 of Keskar et al. (2017).
"""

import matplotlib.pyplot as plt

import sharpness as sh

levels = [2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.02]
tracks = {}
for batch_size in (8, 600):
    run = sh.train(sh.TrainConfig(batch_size=batch_size, checkpoint_losses=levels, seed=0))
    objective = sh.objective_of(run)
    track = []
    for point in [run.start, *run.checkpoints, run.end]:
        top = sh.eigsh(sh.Hessian(objective, point), k=1)
        phi = sh.epsilon_sharpness(objective, point, starts=1, sign_starts=3)
        assert top.converged.all()
        track.append((phi.loss, top.values[0].item(), phi.value, phi.first_order_share))
    tracks[batch_size] = list(zip(*track, strict=True))

fig, axes = plt.subplots(1, 3, figsize=(8.2, 3.3), layout="constrained")
names = (r"$\lambda_1$ of the Hessian", "Metric 2.1 (%)", "its first-order share")
for style, (batch_size, (loss, *numbers)) in enumerate(tracks.items()):
    for ax, values, name in zip(axes, numbers, names, strict=True):
        ax.plot(
            loss,
            values,
            color=sh.plots.COLORS[style],
            marker=sh.plots.MARKERS[style],
            markersize=4,
            label=f"batch size {batch_size}",
        )
        ax.set_xscale("log")
        ax.set_title(name, fontsize="medium")
for ax in axes:
    ax.invert_xaxis()
axes[1].set_xlabel("training loss (training goes to the right)")
axes[0].legend(fontsize="small")

# %%
# At the start both networks are one and the same, and so are their numbers.

small, large = tracks[8], tracks[600]
assert [row[0] for row in small] == [row[0] for row in large]

# %%
# In both of these trainings :math:`\lambda_1` rises to a peak and falls again as the loss goes to
# zero. So a comparison at different losses compares where on this way the two trainings stand,
# which is why everything here is compared at equal training loss.

for loss, top, phi, share in tracks.values():
    peak = max(top)
    print(f"peak lambda_1 {peak:.1f} at loss {loss[top.index(peak)]:.2f}, last {top[-1]:.1f}")
    assert peak > 2 * top[-1]
    assert peak > 20 * top[0]

# %%
# The share that the gradient alone accounts for is large early on and, of these two, stays large
# for the small batch: its stopping point is less of a minimum than that of the large batch, and its
# Metric 2.1 says so only if one looks.

print(f"first-order share at the end: {small[3][-1]:.3f} and {large[3][-1]:.3f}")
assert small[3][-1] > 5 * large[3][-1]
