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
    config = sh.TrainConfig(batch_size=batch_size, checkpoint_losses=levels, seed=0)
    run = sh.train(config)
    tracks[batch_size] = sh.along_training(sh.objective_of(run), run)
    assert tracks[batch_size].converged.all()

fig, axes = plt.subplots(1, 3, figsize=(8.2, 3.3), layout="constrained")
for style, (batch_size, track) in enumerate(tracks.items()):
    columns = {
        r"$\lambda_1$ of the Hessian": track.lambda_1,
        "Metric 2.1 (%)": track.metric_2_1,
        "its first-order share": track.first_order / track.metric_2_1,
    }
    for ax, (name, values) in zip(axes, columns.items(), strict=True):
        color, marker = sh.plots.COLORS[style], sh.plots.MARKERS[style]
        label = f"batch size {batch_size}"
        ax.plot(track.train_loss, values, color=color, marker=marker, label=label)
        ax.set_title(name, fontsize="medium")
for ax in axes:
    ax.set_xscale("log")
    ax.invert_xaxis()
axes[1].set_xlabel("training loss (training goes to the right)")
axes[0].legend(fontsize="small")

# %%
# At the start both networks are one and the same, and so are their numbers.

small, large = tracks[8], tracks[600]
assert small.lambda_1[0] == large.lambda_1[0]
assert small.metric_2_1[0] == large.metric_2_1[0]

# %%
# In both of these trainings :math:`\lambda_1` rises to a peak and falls again as the loss goes to
# zero. So a comparison at different losses compares where on this way the two trainings stand,
# which is why everything here is compared at equal training loss.

for batch_size, track in tracks.items():
    top, loss = track.lambda_1.max(), track.train_loss[track.lambda_1.argmax()]
    last = track.lambda_1[-1]
    print(f"batch size {batch_size:3}: {top:.1f} at loss {loss:.2f}, at last {last:.1f}")
    assert top > 2 * last
    assert top > 20 * track.lambda_1[0]

# %%
# The share that the gradient alone accounts for is large early on and, of these two, stays large
# for the small batch: the point where it stopped is less of a minimum than that of the large batch,
# which the value of Metric 2.1 alone does not tell.

shares = [(t.first_order / t.metric_2_1)[-1].item() for t in (small, large)]
print(f"first-order share at the end: {shares[0]:.3f} and {shares[1]:.3f}")
assert shares[0] > 5 * shares[1]
