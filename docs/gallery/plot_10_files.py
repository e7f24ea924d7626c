r"""
Reading a result file with h5py and xarray
==========================================

A result is an ordinary HDF5 file. Nothing of this package is needed to read it: here one is written
with :func:`sharpness.save`, and opened with two libraries that know nothing of us.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import matplotlib.pyplot as plt
import torch
import xarray

import sharpness as sh

sb = sh.train(sh.TrainConfig(batch_size=8, seed=0))
lb = sh.train(sh.TrainConfig(batch_size=600, seed=0))
objectives = {part: sh.objective_of(sb, split=part) for part in ("train", "test")}
alphas = torch.linspace(-0.5, 1.5, 33, dtype=torch.float64)
between = sh.line(objectives, sb.end, lb.end, alphas=alphas)

folder = TemporaryDirectory()
path = Path(folder.name) / "sb-lb.line.h5"
sh.save(path, between)

# %%
# With **h5py**, arrays are datasets and numbers are attributes. The attribute ``spec`` is a tree in
# JSON that says what computed the file, down to the configuration of the training.

with h5py.File(path) as file:
    for name, dataset in file.items():
        print(f"{name:15} {dataset.shape} {dataset.dtype}")
    spec = json.loads(file.attrs["spec"])
    losses = file["train_loss"][:]

print(spec["objectives"]["train"]["run"]["train"]["batch_size"])

# %%
# With **xarray**, the axes have names and coordinates, so that a point is selected by its
# :math:`\alpha`.

dataset = xarray.open_dataset(path, engine="h5netcdf").load()
print(dataset)

assert (dataset.alphas.values == alphas.numpy()).all()
for alpha, run in enumerate((sb, lb)):
    assert dataset.train_loss.sel(alphas=alpha).item() == run.history["train_loss"][-1]
assert (dataset.train_loss.values == losses).all()

# %%
# xarray draws too. ``dataset.to_dataframe()`` would give a table of pandas.

fig, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
dataset.train_loss.plot.line("-", ax=ax, label="train", color=sh.plots.BLUE)
dataset.test_loss.plot.line("--", ax=ax, label="test", color=sh.plots.ORANGE)
ax.set_yscale("log")
ax.set_xlabel(r"position $\alpha$  (0: batch size 8, 1: batch size 600)")
ax.set_ylabel("loss")
ax.set_title("drawn by xarray from the file alone", fontsize="medium")
ax.legend()

folder.cleanup()
