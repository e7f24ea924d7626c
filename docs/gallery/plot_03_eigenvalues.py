r"""
Top eigenvalues with their residuals
====================================

The largest eigenvalues of the Hessian of the training loss, at a small-batch and at a large-batch
solution of equal training loss. The bars are the residuals :math:`\|H v - \lambda v\|`: within
that distance of each computed value there is an eigenvalue. They are too small to be seen here, and
a pair that had not converged would be drawn hollow.
"""

import matplotlib.pyplot as plt

import sharpness as sh

spectra = {}
for batch_size in (8, 600):
    run = sh.train(sh.TrainConfig(batch_size=batch_size, seed=0))
    spectra[batch_size] = sh.eigsh(sh.Hessian(sh.objective_of(run)), k=12)

fig, ax = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
for style, (batch_size, pairs) in enumerate(spectra.items()):
    sh.plots.eigenvalues(pairs, ax, label=f"batch size {batch_size}", style=style)
ax.set_title("Hessian at two solutions of equal training loss", fontsize="medium")
ax.legend()

# %%
# Each pair carries its certificate, and the whole set another: how far the computed vectors are
# from orthonormal, and what the search for repeated eigenvalues cost.

for batch_size, pairs in spectra.items():
    assert pairs.converged.all()
    assert (pairs.residuals < 2e-4 * pairs.values[0]).all()
    print(
        f"batch size {batch_size:3}: lambda_1 {pairs.values[0]:.3f}"
        f" +- {pairs.residuals[0]:.0e}, |V V^T - I| <= {pairs.orthogonality:.0e},"
        f" {pairs.products} products, {pairs.check_products} to check"
    )

# %%
# At these two solutions the large batch has the larger :math:`\lambda_1`, by far more than the
# residuals leave open. Two solutions say nothing about batch sizes, though; the comparison over
# seeds is in :doc:`plot_07_batch_size`.

small, large = spectra[8], spectra[600]
margin = (small.residuals[0] + large.residuals[0]).item()
assert large.values[0] - small.values[0] > 100 * margin
