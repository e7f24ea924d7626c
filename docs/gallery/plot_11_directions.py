r"""
What filter normalization is worth
==================================

One network written with three sets of weights: as it was trained; with layer 1 times 16 and the
weights of layer 2 divided by it; and with each neuron of layer 1 times a power of two of its own,
its weights into layer 2 divided by it. Every output is the same for all three. Below are cuts of
the loss along ten random directions around each, under three normalizations of the directions.
"""

import matplotlib.pyplot as plt
import torch

import sharpness as sh

run = sh.train(sh.TrainConfig(batch_size=32, dtype="float64", seed=0))
objective = sh.objective_of(run)
into, out_of = 64 * 128 + 128, 128 * 128  # parameters of layer 1, weights of 2


def rescaled(factors):
    """Return weights of the same function: neurons of layer 1 times factors, (128,)."""
    theta = run.end.theta.clone()
    theta[: 64 * 128].view(128, 64).mul_(factors[:, None])
    theta[64 * 128 : into].mul_(factors)
    theta[into : into + out_of].view(128, 128).div_(factors)
    return theta


networks = {
    "as trained": run.end.theta,
    "layer 1 times 16": rescaled(torch.full((128,), 16.0, dtype=torch.float64)),
    "neurons times 1/8 to 8": rescaled(2.0 ** (torch.arange(128) % 7 - 3).double()),
}
losses = {name: objective.value(theta).item() for name, theta in networks.items()}
assert len(set(losses.values())) == 1  # powers of two round nothing

# %%
# Raw Gaussian directions are the same in all three networks, and some ten times as long as the
# weights, so their cuts are drawn over a tenth of the range.

alphas = torch.linspace(-1, 1, 21, dtype=torch.float64)
cuts = {}
for normalization, draw in sh.directions.NORMALIZATIONS.items():
    reach = 0.1 if normalization == "none" else 1.0
    for name, theta in networks.items():
        rows = draw(objective, 10, point=theta, seed=0)
        cuts[normalization, name] = sh.cut(
            objective, theta, rows, alphas=reach * alphas, quadratic=False
        )

print(
    f"{'mean loss half way':24}" + "".join(f"{name:>10}" for name in sh.directions.NORMALIZATIONS)
)
half = {}
for name in networks:
    for normalization in sh.directions.NORMALIZATIONS:
        losses = cuts[normalization, name].values["loss"]
        half[normalization, name] = losses[:, [5, 15]].mean().item()
    row = "".join(
        f"{half[normalization, name]:10.4f}" for normalization in sh.directions.NORMALIZATIONS
    )
    print(f"{name:24}{row}")

# %%
# Filter and layer normalization, and multiplying each entry by its weight, do not see that a layer
# was rescaled; raw directions do. That neurons were rescaled one by one is seen by the filter
# normalization too: the rows of layer 2 mix entries that were divided by different numbers, and
# share the norm out evenly. Only the element-wise one stays the same.

trained, layer, neurons = networks
for normalization in sh.directions.NORMALIZATIONS:
    of_layer, of_neurons = (
        (cuts[normalization, name].values["loss"] - cuts[normalization, trained].values["loss"])
        .abs()
        .max()
        .item()
        for name in (layer, neurons)
    )
    print(f"{normalization:7} largest change: by layer {of_layer:.1e}, by neuron {of_neurons:.1e}")
    assert (of_layer < 1e-8) == (normalization != "none")
    assert (of_neurons < 1e-8) == (normalization == "weight")

# %%
# So filter normalization makes two networks comparable as far as they differ in the scales of their
# layers, and no further: a wider cut is not by itself a property of the function.

fig, axes = plt.subplots(1, 3, figsize=(9.6, 3.6), sharey=True, layout="constrained")
titles = {"none": "raw", "filter": "filter normalization", "weight": "element-wise"}
for ax, (normalization, title) in zip(axes, titles.items(), strict=True):
    for style, name in enumerate(networks):
        found = cuts[normalization, name]
        loss = found.values["loss"]
        bounds = zip(*(x.tolist() for x in (loss.mean(0), loss.amin(0), loss.amax(0))), strict=True)
        sh.plots.band(found.alphas, list(bounds), ax, label=name, style=style)
    ax.set_yscale("log")
    ax.set_title(title, fontsize="medium")
    ax.set_xlabel(r"position $\alpha$ along $d$")
axes[0].set_ylabel("training loss, mean and range of 10")
fig.legend(
    *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small"
)
