r"""
The line between two solutions
==============================

Loss and accuracy at :math:`(1 - \alpha)\,\theta_{SB} + \alpha\,\theta_{LB}`, from a small-batch
solution at :math:`\alpha = 0` to a large-batch solution at :math:`\alpha = 1` and beyond both, as
in Figure 3 of Keskar et al. (2017). Both trainings start at the same weights and end at the same
training loss.
"""

import matplotlib.pyplot as plt
import torch

import sharpness as sh

sb = sh.train(sh.TrainConfig(batch_size=8, seed=0))
lb = sh.train(sh.TrainConfig(batch_size=600, seed=0))

objectives = {part: sh.objective_of(sb, split=part) for part in ("train", "test")}
alphas = torch.linspace(-1, 2, 25, dtype=torch.float64)
between = sh.line(objectives, sb.end, lb.end, alphas=alphas)

fig, ax = plt.subplots(figsize=(6.4, 4), layout="constrained")
sh.plots.line(between, ax)
fig.suptitle("From small batch (0) to large batch (1)", fontsize="medium")

# %%
# The ends are exact: they are the losses that the trainings themselves recorded.

loss = between.values["train_loss"]
start, end = loss[alphas == 0].item(), loss[alphas == 1].item()
assert start == sb.history["train_loss"][-1]
assert end == lb.history["train_loss"][-1]

# %%
# What this line shows is true of these two solutions, and of the direction that joins them: the
# training loss is higher somewhere between them than at either end, and one step of the same length
# beyond the large-batch end raises it far more than one beyond the small-batch end.

inside = loss[(alphas > 0) & (alphas < 1)].max().item()
beyond_sb, beyond_lb = loss[alphas == -1].item(), loss[alphas == 2].item()
print(f"training loss at the ends: {start:.4f} and {end:.4f}")
print(f"between them: up to {inside:.4f}")
print(f"{between.distance:.1f} further out: {beyond_sb:.3f} and {beyond_lb:.3f}")
assert inside > 1.5 * max(start, end)
assert beyond_lb > 10 * beyond_sb

# %%
# A width read off such a line depends on the scale of the weights, which a rescaling of the network
# changes without changing its function (Dinh et al. 2017), so this is a picture and no measure.
