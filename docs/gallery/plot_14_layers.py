r"""
Curvature layer by layer
========================

Which layers is a minimum sharp in? The diagonal block of a layer is the Hessian of the loss in its
parameters alone. First where the truth is known: softmax regression on the digits at
:math:`W = 0`, where the Hessian is :math:`(I / 10 - 1 1^T / 100) \otimes S`, with the second
moments :math:`S` of the inputs. Of the bias that is :math:`I / 10 - 1 1^T / 100` itself: its trace
is 0.9 and its largest eigenvalue 0.1.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import sharpness as sh
from sharpness.data import digits

(inputs, targets), _ = digits()
inputs = inputs.double()
softmax = nn.Linear(64, 10).double()
for parameter in softmax.parameters():
    nn.init.zeros_(parameter)
f = sh.Objective(softmax, [(inputs, targets)], nn.functional.cross_entropy)
found = sh.layers(sh.Hessian(f))
S = inputs.T @ inputs / len(inputs)


def told(found: sh.Layers) -> None:
    for i, name in enumerate(found.layer):
        interval = f"[{found.trace_low[i]:.3f}, {found.trace_high[i]:.3f}]"
        print(f"{name:9} trace {found.traces[i]:6.3f} {interval:16}", end=" ")
        print(f"share {found.shares[i]:5.1%}  lambda_1 {found.lambda_1[i]:.4f}", end="  ")
        print(f"norm {found.norms[i]:.3f}")


told(found)

exact = 0.9 * S.trace().item()
assert abs(exact - 13.512779111018364) < 1e-9
assert found.trace_low[0] < exact < found.trace_high[0]
assert abs(found.traces[1] - 0.9) < 1e-12
assert abs(found.lambda_1[1] - 0.1) < 1e-12
assert abs(found.lambda_1[0] - torch.linalg.eigvalsh(S)[-1] / 10) < 1e-9

# %%
# The ten parameters of the bias were known after ten products, without chance; the trace of the
# weights is an estimate with its interval. The traces of the layers add up to that of the whole.

assert abs(found.traces.sum() - found.whole_trace) < 1e-9
assert found.whole_trace_low < exact + 0.9 < found.whole_trace_high

# %%
# A trained network
# -----------------
#
# Now a small network at the end of its training, with one hidden layer of 32 units. In the figure
# bars are traces with their intervals and largest eigenvalues; strokes are Frobenius norms, which
# are larger than the eigenvalue where a layer has several of that size.

config = sh.TrainConfig(model_options={"widths": [32]}, batch_size=8, epochs=15, threads=1)
run = sh.train(config)
found = sh.layers(sh.Hessian(sh.objective_of(run)), probes=64)
told(found)

fig = plt.figure(figsize=(6.8, 3.1), layout="constrained")
sh.plots.layers(found, fig)

# %%
# The weights of the output layer are about an eighth of the parameters and have more than three
# fifths of the trace: per parameter, the loss is curved more than ten times as much as along those
# of the first layer. The largest eigenvalue of the whole is above that of any layer, as it must be,
# and here by a quarter: the layers bend the loss together.

share = found.sizes / found.sizes.sum()
assert found.converged.all()
assert found.whole_converged
assert 0.12 < share[2] < 0.14
assert found.share_low[2] > 0.6
per_parameter = [x / found.sizes for x in (found.trace_low, found.trace_high)]
assert per_parameter[0][2] > 10 * per_parameter[1][0]
assert found.whole_lambda_1 > 1.2 * found.lambda_1.max()

# %%
# Modules instead of tensors take weights and biases together; any other groups of parameters are
# given by their places, also for an operator that knows no network.

modules = sh.layers(sh.Hessian(sh.objective_of(run)), by="module")
told(modules)

halves = {"first half": torch.arange(0, 1205), "second half": torch.arange(1205, 2410)}
told(sh.layers(sh.Hessian(sh.objective_of(run)), groups=halves, probes=12))

assert modules.lambda_1[0] >= found.lambda_1[:2].max()  # each has a tensor for a block
assert modules.lambda_1[1] >= found.lambda_1[2:].max()
