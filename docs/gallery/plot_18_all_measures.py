r"""
All measures, small batch against large
=======================================

Is the large-batch solution sharper? That depends on what is called sharp. Here are the solutions
of ``sharpness run keskar``, clean labels, and every measure of ``sharpness measure all`` at each of
them. All trainings of a seed share split, start and order, and all stop where the training loss
first is at most 0.01: ratios are taken within a seed, with Student's 95 % interval of their
logarithms.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from scipy.stats import ttest_1samp
from sharpness.experiments import keskar
from sharpness.experiments.design import Design

import sharpness as sh
from sharpness.measures import TABLE, measured, row

SEEDS = 4
with tempfile.TemporaryDirectory() as folder:
    keskar.run(folder, Design(seeds=SEEDS, noise=0.0))
    runs = {
        (arm, seed): sh.load(Path(folder) / "clean" / f"{arm}-{seed}.h5")
        for arm in ("sb", "lb")
        for seed in range(SEEDS)
    }
for (arm, seed), run in runs.items():
    if seed == 0:
        record = run.spec["train"]
        print(arm, {key: record[key] for key in ("batch_size", "optimizer", "learning_rate")})
    assert run.stopped == "stop_loss"  # or they would not be at equal loss

# %%
# One start of L-BFGS-B and three of the sign iteration come within a few percent of many more, and
# the chains of the learning coefficient are short; all else is as the command has it.

FEWER = {
    "epsilon-sharpness": {"starts": 1, "sign_starts": 3},
    "learning-coefficient": {"burn_in": 50, "draws": 50},
}
rows = {}
for (arm, seed), run in runs.items():
    objective = sh.objective_of(run)
    for name, entry in TABLE.items():
        options = {**entry.options, **FEWER.get(name, {})}
        found = measured(entry.measure, objective, run=run, **options)
        rows[name, arm, seed] = row(name, found)

# %%
# The first seed: each value with its interval or bound, and what all measures of one solution cost
# in passes over the data.

for arm, title in (("sb", "small batch"), ("lb", "large batch")):
    print(title)
    for name in TABLE:
        print(f"  {name:29} {rows[name, arm, 0].told}")
    for cost in ("gradients", "products", "forwards"):
        print(f"  {cost:29} {sum(getattr(rows[name, arm, 0], cost) for name in TABLE):,.0f}")

# %%
# Over the seeds. A measure that is undefined or not above 0 for some run has no ratio. Of some
# thirty intervals of 95 %, one or two miss by chance, so the last column says which differ after
# Holm's correction for all of them.


def ratios(name):
    """Return large over small batch, by seed."""
    values = {arm: [rows[name, arm, seed].value for seed in range(SEEDS)] for arm in ("sb", "lb")}
    return torch.tensor(values["lb"]).double(), torch.tensor(values["sb"]).double()


table, p = {}, {}
for name in TABLE:
    large, small = ratios(name)
    if (large > 0).all() and (small > 0).all():
        table[name] = sh.paired_ratio(large, small)
        p[name] = float(ttest_1samp((large / small).log(), 0.0).pvalue)
passed, adjusted = set(), 0.0
for rank, name in enumerate(sorted(p, key=p.get)):
    adjusted = max(adjusted, (len(p) - rank) * p[name])
    if adjusted < 0.05:
        passed.add(name)
order = sorted(table, key=lambda name: -table[name][0])
print(f"{'measure':29}{'large / small':>15}  95 % interval")
for name in order:
    ratio, low, high = table[name]
    moves = "differs" if low > 1 or high < 1 else "not shown"
    moves += ", also after Holm" if name in passed else ""
    print(f"{name:29}{ratio:15.2f}  [{low:.2f}, {high:.2f}]  {moves}")
print("no ratio:", ", ".join(name for name in TABLE if name not in table) or "none")

# %%
# Above 1 the large batch is the sharper. Filled points are those that differ.

fig, ax = plt.subplots(figsize=(6.6, 7.4), layout="constrained")
for y, name in enumerate(order):
    ratio, low, high = table[name]
    differs = low > 1 or high < 1
    color = sh.plots.BLUE if ratio > 1 else sh.plots.ORANGE
    ax.errorbar(
        ratio,
        y,
        xerr=[[ratio - low], [high - ratio]],
        fmt="o" if ratio > 1 else "s",
        color=color,
        markerfacecolor=color if differs else "white",
        capsize=3,
    )
ax.axvline(1, color="black", linewidth=0.8)
ax.set_xscale("log")
ax.set_yticks(range(len(order)), order)
ax.set_ylim(len(order) - 0.5, -0.5)
ax.set_xlabel("large / small batch at equal training loss, 95 % interval")
ax.set_title(f"{SEEDS} seeds of run keskar, clean labels", fontsize="medium")
ax.grid(axis="x", alpha=0.25)

# %%
# What the intervals allow to say. Curvature, plain and relative to the weights, and rises in boxes
# and balls are larger for the large batch. One step along the gradient (SAM) and the critical
# sharpness along it tell the opposite: they follow the slope that is left at the stop, which is
# larger for the small batch. So does batch sharpness at each run's own batch size, which compares
# two batch sizes and no two solutions; at a common one it is larger for the large batch. The
# learning coefficient gives no verdict at any of these runs. No measure of this table says by
# itself which network generalizes better.

larger = ("lambda-1", "adaptive-lambda-1", "trace", "adaptive-trace", "epsilon-sharpness")
for name in (*larger, "worst-linf", "average", "relative-flatness", "batch-sharpness-of-8"):
    assert table[name][1] > 1, name
for name in ("critical-sharpness", "batch-sharpness", "sam", "asam"):
    assert table[name][2] < 1, name
assert not any(rows["learning-coefficient", arm, seed].converged for arm, seed in runs)
