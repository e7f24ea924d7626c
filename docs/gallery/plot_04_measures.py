r"""
Every measure of one run, with its certificate
==============================================

``MEASURES`` holds the measures of sharpness by name, those of ``sharpness measure``. Each takes an
objective and gives a record with a value and what tells how far to trust it.
"""

import matplotlib.pyplot as plt

import sharpness as sh
from sharpness.measures import MEASURES

run = sh.train(sh.TrainConfig(batch_size=600, seed=0))
objective = sh.objective_of(run)
names = ("epsilon-sharpness", "subspace-sharpness")
found = {name: MEASURES[name](objective) for name in names}

for name, result in found.items():
    print(f"{name}: {result.value:.4g}, loss at the center {result.loss:.3g}")

# %%
# **Metric 2.1 in the full space** is a maximum, and a maximum found by climbing is a lower bound:
# the record keeps what each of its starts reached. Here most of them come close to the best, so the
# value does not hang on one lucky start. The first-order share is the part of the value that a loss
# without curvature would have.

full = found["epsilon-sharpness"]
reached = full.start_values / full.value
print(f"starts reached {float(reached.min()):.4f} to 1 of the value")
print(f"first-order share {full.first_order_share:.3f}, {full.gradients} gradients")
print(f"{100 * full.on_bounds:.0f} % of the coordinates lie on the box")
assert full.value > 100 * full.rounding
assert full.value >= full.start_values.max() * (1 - 1e-6)
assert reached.median() > 0.9

# %%
# **In random subspaces** there is one maximum for each draw of the subspace, and the record tells
# their mean with Student's 95 % interval over the draws.

draws = found["subspace-sharpness"]
low, high = draws.interval.tolist()
count = len(draws.draw_values)
print(f"mean {draws.value:.3f} [{low:.3f}, {high:.3f}] over {count} draws")
assert low < draws.value < high

# %%
# The starts and the draws behind the two values. The two metrics measure rises in different boxes,
# so their sizes are not to be compared with each other.

fig, (left, right) = plt.subplots(1, 2, figsize=(7.4, 3.3), layout="constrained")
for i, label in enumerate(("L-BFGS-B", "sign iteration")):
    values = full.start_values[full.start_signs == bool(i)].sort().values
    color, marker = sh.plots.COLORS[i], sh.plots.MARKERS[i]
    left.plot(range(1, len(values) + 1), values, marker, color=color, label=label)
left.axhline(full.value, color="black", linewidth=1, label="value: the best")
left.set_ylim(0, 1.1 * full.value)
left.set_xlabel("start, in order of its value")
left.set_ylabel("Metric 2.1 (%)")
left.set_title("full space: best of all starts", fontsize="medium")
left.legend(loc="lower right")

right.plot(range(1, count + 1), draws.draw_values, "o", color=sh.plots.GREEN)
right.axhline(draws.value, color="black", linewidth=1, label="value: the mean")
right.axhspan(low, high, color="black", alpha=0.12, label="95 % interval")
right.set_ylim(0, 1.3 * max(high, draws.draw_values.max().item()))
right.set_xlabel("draw of the subspace")
right.set_title("random subspaces: mean of draws", fontsize="medium")
right.legend(loc="lower right")
