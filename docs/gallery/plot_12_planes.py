r"""
The loss on planes, and what lies beside them
=============================================

A training has far more directions than the two of a picture. Two planes through the end of one
training: the plane of its two principal components, in which its path is widest, and one of two
random directions. On both stand the points of the training, each with the color of *its own* loss
and with a size that grows with its distance to the plane (Li et al. 2018 draw such paths).
"""

import matplotlib.pyplot as plt
import torch

import sharpness as sh

levels = [2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.02]
small = {"model_options": {"widths": [32, 32]}, "batch_size": 8}
run = sh.train(sh.TrainConfig(**small, seed=0, checkpoint_losses=levels))
objective = sh.objective_of(run)

axes = sh.directions.principal(run).directions
principal = sh.plane(
    objective,
    run.end,
    *axes,
    alphas=torch.linspace(-15, 15, 21, dtype=torch.float64),
    betas=torch.linspace(-15, 15, 21, dtype=torch.float64),
    axes=("principal component 1", "principal component 2"),
    path=run,
)
sides = sh.directions.filter_normalized(objective, 2, point=run.end)
grid = torch.linspace(-1, 1, 21, dtype=torch.float64)
names = ("random direction 1", "random direction 2")
around = sh.plane(objective, run.end, *sides, alphas=grid, betas=grid, axes=names, path=run)

fig = plt.figure(figsize=(8.4, 5), layout="constrained")
sh.plots.planes({"principal": principal, "random": around}, fig, unit="distance")

# %%
# At the center a plane has exactly the loss that the training recorded. A path is *beside* its
# plane: on the random one all of it lies at one spot, the bottom, although it came from far above.

for name, plane in (("principal", principal), ("random", around)):
    share, walk = plane.explained.sum().item(), plane.random_walk.sum().item()
    far = plane.path_distances.max().item()
    print(f"{name:10} {share:6.1%} of the path's variance, up to {far:.1f} from the plane")
print(f"of a random walk's variance its own two components hold {walk:.1%}")

assert around.values["loss"][10, 10] == run.history["train_loss"][-1]
assert principal.explained.sum() > 0.9
assert around.explained.sum() < 0.01
assert around.path_distances.max() > 3 * principal.path_distances.max()
assert around.path.abs().max() < 0.1
assert around.path_values["path_loss"][0] > 100 * around.values["loss"][10, 10]

# %%
# That the principal plane holds most of the path tells little: of a walk without any aim, through
# as many points, two components would hold most too.
#
# Where the loss is convex, in all directions and not in two alone, is told by the extreme
# eigenvalues of the Hessian, here at the points of a coarser grid.

coarse = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0], dtype=torch.float64)
found = sh.convexity(objective, run.end, *sides, alphas=coarse, betas=coarse, axes=names, tol=1e-2)
assert found.smallest_converged.all()
assert found.largest_converged.all()

fig, ax = plt.subplots(figsize=(5.2, 4.4), layout="constrained")
sh.plots.convexity(found, ax)

ratio, doubt = found.ratio, found.smallest_residuals / found.largest
print(f"at the end {ratio[2, 2]:.3f} +- {doubt[2, 2]:.3f}")
print(f"half way to the corners and at them {ratio[[1, 3, 0, 4], [1, 3, 0, 4]].numpy().round(3)}")
others = torch.ones(5, 5, dtype=torch.bool)
others[2, 2] = False
assert (ratio + doubt < 0)[others].all()  # not convex, but at the end it is nearly so
assert ratio[2, 2].abs() < 0.5 * ratio[others].abs().min()
