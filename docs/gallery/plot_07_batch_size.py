r"""
Metric 2.1 against batch size, at equal training loss
=====================================================

Four batch sizes, six seeds each. All runs of a seed share split, initialization and data, and all
stop where the training loss first is at most 0.01, so they are compared in pairs: the ratio to the
smallest batch of the same seed, with Student's 95 % interval of the logarithms.
"""

import matplotlib.pyplot as plt
import torch

import sharpness as sh

batch_sizes, seeds = (8, 32, 128, 600), range(6)
phi = torch.zeros(len(batch_sizes), len(seeds), dtype=torch.float64)
accuracy, updates, loss = phi.clone(), phi.clone(), phi.clone()
for i, batch_size in enumerate(batch_sizes):
    for seed in seeds:
        run = sh.train(sh.TrainConfig(batch_size=batch_size, seed=seed))
        assert run.stopped == "stop_loss"  # or the runs would not be at equal loss
        found = sh.epsilon_sharpness(sh.objective_of(run), starts=0, sign_starts=3)
        phi[i, seed], updates[i, seed], loss[i, seed] = found.value, run.updates, found.loss
        right = run.history["test_right"][-1]
        accuracy[i, seed] = 100 * right / len(run.test_index)

# %%
# The bar beside the points of each batch size is its geometric mean with its own interval.

fig, (left, right) = plt.subplots(1, 2, figsize=(7.8, 3.6), layout="constrained")
ones = torch.ones(len(seeds))
names = [str(b) for b in batch_sizes]
sh.plots.paired(
    dict(zip(names, phi, strict=True)),
    left,
    intervals=[sh.paired_ratio(row, ones) for row in phi],
)
left.set_ylabel("Metric 2.1 (%)")
sh.plots.paired(
    dict(zip(names, accuracy, strict=True)),
    right,
    intervals=[sh.paired_difference(row, 0 * ones) for row in accuracy],
    log=False,
)
right.set_ylabel("test accuracy (%)")
fig.supxlabel("batch size", fontsize="medium")
fig.suptitle("Points: seeds. Bars: mean, 95 % interval", fontsize="medium")

# %%
# The intervals decide what may be said. One that holds "no difference" (a ratio of 1, a difference
# of 0) shows none, which is not the same as showing that there is none.

for i, batch_size in enumerate(batch_sizes[1:], start=1):
    ratio, low, high = sh.paired_ratio(phi[i], phi[0])
    print(f"Metric 2.1, {batch_size:3} / 8: {ratio:.2f} [{low:.2f}, {high:.2f}]")
for i, batch_size in enumerate(batch_sizes[1:], start=1):
    gap, low, high = sh.paired_difference(accuracy[0], accuracy[i])
    verdict = "shown" if low > 0 or high < 0 else "no difference shown"
    print(f"points of accuracy, 8 - {batch_size:3}: {gap:+.2f} [{low:+.2f}, {high:+.2f}]", verdict)

# %%
# On these data, with Adam at one learning rate, the full batch of 600 ends at a Metric 2.1 more
# than twice that of batch size 8: the whole interval lies above 2. The same six seeds leave the
# accuracy of the two open: the interval of the difference contains 0.

ratio, low, high = sh.paired_ratio(phi[-1], phi[0])
assert low > 2
gap, low, high = sh.paired_difference(accuracy[0], accuracy[-1])
assert low < 0 < high

# %%
# What else differs? The loss falls in jumps, so the losses that were met are not quite the same;
# they differ by less than a third, and the metric by more than a factor of two. And equal loss is
# not equal work: the small batch took more than four times the updates.

over, low, high = sh.paired_ratio(loss[-1], loss[0])
print(f"training loss, 600 / 8: {over:.2f} [{low:.2f}, {high:.2f}]")
assert 3 / 4 < low < high < 4 / 3
work, low, high = sh.paired_ratio(updates[0], updates[-1])
print(f"updates, 8 / 600: {work:.1f} [{low:.1f}, {high:.1f}]")
assert low > 4

# %%
# Eight intervals of 95 % are too many to read the narrowest of them alone.
