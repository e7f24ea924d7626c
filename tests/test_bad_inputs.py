"""Every bad input of the table is answered by one line that says what to change, and by no more."""

import argparse
import errno
import fcntl
import os
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from types import FrameType
from typing import Any

import click
import h5py
import numpy as np
import pytest
import torch
import torch.distributed as dist
from sharpness.cli import COMMANDS, sharpness as group
from torch import nn
from torch.multiprocessing.spawn import spawn

import sharpness as sh
from sharpness.errors import InputError
from sharpness.journal import Journal
from sharpness.results import Result
from sharpness.store import SEAL
from sharpness.training import cpu_threads

Ask = Callable[..., tuple[int, str, str]]

BROUGHT = "--model nets:build --data nets:digits --loss cross_entropy"
NORMED = BROUGHT.replace("build", "Normed")
TRAIN = "train --updates 1 --batch-size 50 --threads 1 -o x.h5"
NETS = """
import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from sharpness.data import digits as images

NUMBER = 3


def build():
    return nn.Sequential(nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 10))


def deep(depth):
    return build()


def broken():
    return {}["width"]


def leaving():
    sys.exit(3)


def silent():
    print("built")


def wordless():
    return None


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.rest = build()

    def forward(self, x):
        return self.rest(nn.functional.dropout(x, training=True))


class Counting(Dropping):
    def forward(self, x):
        self.seen = getattr(self, "seen", 0) + 1
        return self.seen * self.rest(x)


class Frozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.rest = build().requires_grad_(False)

    def forward(self, x):
        return self.rest(x)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        return slope


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.rest = nn.Sequential(nn.Linear(64, 4), nn.BatchNorm1d(4), nn.Linear(4, 10))

    def forward(self, x):
        return self.rest(x)


class Cut(Dropping):
    def forward(self, x):
        return Once.apply(self.rest(x))


def empty_model():
    return nn.Flatten()


def column():
    return nn.Linear(64, 10)


def digits():
    (inputs, targets), _ = images()
    return (inputs[:100], targets[:100]), (inputs[100:200], targets[100:200])


def with_targets(change):
    (inputs, targets), test = digits()
    return (inputs, change(targets.clone())), test


def single():
    (inputs, _), (others, _) = digits()
    return TensorDataset(inputs), TensorDataset(others)


def alone():
    return digits()[0]


def triple():
    return (*digits()[0], 3), digits()[1]


def empty():
    return (torch.zeros(0, 64), torch.zeros(0, dtype=torch.long)), digits()[1]


def dropping_last():
    data = TensorDataset(*digits()[0])
    return DataLoader(data, batch_size=128, drop_last=True), digits()[1]


def generator():
    return (example for example in zip(*digits()[0])), digits()[1]


def shuffled():
    return DataLoader(TensorDataset(*digits()[0]), shuffle=True), digits()[1]


class Noisy(Dataset):
    def __len__(self):
        return 100

    def __getitem__(self, i):
        return torch.randn(64), i % 10


def augmented():
    return Noisy(), digits()[1]


def holed():
    (inputs, targets), test = digits()
    inputs[17, 3] = float("nan")
    return (inputs, targets), test


def small():
    (inputs, targets), (others, _) = digits()
    return (inputs[:, :63], targets), (others[:, :63], targets)


def shorter():
    return with_targets(lambda y: y[:-1])


def beyond():
    return with_targets(lambda y: y + 1)


def negative():
    return with_targets(lambda y: y - 1)


def ignored():
    return with_targets(lambda y: torch.where(y == 3, -100, y))


def floating():
    return with_targets(lambda y: y.float())


def flat():
    (inputs, targets), (others, labels) = digits()
    return (inputs, targets.float()), (others, labels.float())


def one():
    return nn.Linear(64, 1)


def from_file():
    return torch.load("digits.pt")


def summed(z, y):
    return nn.functional.cross_entropy(z, y, reduction="sum")


def each(z, y):
    return nn.functional.cross_entropy(z, y, reduction="none")


def number(z, y):
    return 3.0


def detached(z, y):
    return nn.functional.cross_entropy(z, y).detach()


def rooted(z, y):
    return nn.functional.cross_entropy(z, y) + (z - z.detach()).abs().pow(1.5).mean()


calls = [0]


def drifting(z, y):
    calls[0] += 1
    return calls[0] * nn.functional.cross_entropy(z, y)
"""


Calls = Mapping[str, str | tuple[int, str]]


@dataclass(frozen=True)
class Row:
    """A bad input: commands as typed, each with the words that its one line holds."""

    number: int
    what: str
    calls: Calls = field(default_factory=dict)
    code: int = 2  # of calls without a code of their own
    under: str | None = None  # what the machine is like meanwhile, of UNDER
    waits: str | None = None  # the command, or an option, of more such inputs to come
    printed: str = ""  # by the user's function, which may come before the line

    def checks(self) -> list[tuple[str, int, str]]:
        """Return each command with its exit code, 0 where it is no error, and words it prints."""
        return [
            (command, *(told if isinstance(told, tuple) else (self.code, told)))
            for command, told in self.calls.items()
        ]


ROWS = [
    # the command line
    Row(
        1,
        "unknown command",
        {
            "gird": "command gird",
            "eig sb.h5": "did you mean eigs?",
            "measure epsilon-sharpnes sb.h5": "epsilon-sharpness",
            "run kesker": "'keskar'",
        },
    ),
    Row(
        2,
        "unknown option",
        {
            "measure epsilon-sharpness sb.h5 --epsilo 0.1": "--epsilon",
            f"{TRAIN} --bath-size 8": "--batch-size",
            "--batch-size 8": "--batch-size",
            "eigs sb.h5 --zzzz 3": "--zzzz",
        },
    ),
    Row(
        3,
        "missing argument",
        {
            "eigs": "RUN",
            "line": "START",
            "plane": "RUN",
            "along": "RUN",
            "measure epsilon-sharpness": "RUN",
            "compare": "RUN",
            "plot": "FILE",
            "show": "FILE",
            "verify": "FILE",
            "train": "-o",
        },
    ),
    Row(
        4,
        "option without a value",
        {"train -o": "-o", "measure epsilon-sharpness sb.h5 --epsilon": "--epsilon"},
    ),
    Row(
        5,
        "no pairs",
        {"eigs sb.h5 -k 0": "at least 1, got 0", "eigs sb.h5 --pairs -3": "at least 1, got -3"},
    ),
    Row(
        6,
        "pairs that are no whole number",
        {"eigs sb.h5 -k 1.5": "whole number, got '1.5'", "eigs sb.h5 -k abc": "got 'abc'"},
    ),
    Row(
        7,
        "more pairs than parameters",
        {
            "eigs sb.h5 -k 651": "k=651",
            "batches sb.h5 --batch-size 60 -k 651": "650 parameters, got k=651",
        },
    ),
    Row(
        8,
        "fewer steps than pairs",
        {
            "eigs sb.h5 -k 3 --budget 1": "budget=1",
            "eigs sb.h5 -k 3 --budget 2": "budget=2",
            "density sb.h5 --steps 0": "at least 1, got 0",
            "trace sb.h5 --rtol 0.1 --budget 9": "at least the 32 probes, got 9",
        },
    ),
    Row(
        9,
        "radius that is not positive",
        {
            f"measure {name} sb.h5 --epsilon {value}": f"above 0 and finite, got {value}"
            for name in ("epsilon-sharpness", "subspace-sharpness")
            for value in ("-0.1", "0")
        }
        | {"along sb.h5 --epsilon 0": "above 0", "run keskar -o k --epsilon 0": "above 0"}
        | {
            f"{call} {value}": f"above 0, got {value}"
            for call in ("eigs sb.h5 --tol", f"{TRAIN} --learning-rate", f"{TRAIN} --stop-loss")
            for value in ("-0.1", "0")
        }
        | {
            f"measure {call} {value}": f"above 0 and finite, got {float(value)}"
            for call in (
                *("worst-case sb.h5 --rho", "sam sb.h5 --rho", "average-case sb.h5 --sigma"),
                "epsilon-trend sb.h5 --epsilons",
            )
            for value in ("-0.1", "0")
        },
    ),
    Row(
        10,
        "number that is not finite",
        {
            f"{call} {value}": f"finite number, got '{value}'"
            for call in (
                "measure epsilon-sharpness sb.h5 --epsilon",
                "eigs sb.h5 --tol",
                f"{TRAIN} --learning-rate",
                f"{TRAIN} --stop-loss",
                "run keskar -o k --epsilon",
            )
            for value in ("nan", "inf", "1e999")
        }
        | {
            "eigs sb.h5 --tol much": "needs a number, got 'much'",
            "eigs sb.h5 --memory nan": "got 'nan'",
            "measure epsilon-sharpness sb.h5 --epsilon 1e308": "overflows",
        },
    ),
    Row(
        11,
        "grid that descends",
        {
            "line sb.h5 lb.h5 --alphas=1:-1:51": "START below END, got '1:-1:51'",
            "plane sb.h5 --betas=1:-1:51": "1:-1:51",
        },
    ),
    Row(
        12,
        "grid without points",
        {
            "line sb.h5 lb.h5 --alphas=-1:1": "START:END:POINTS, got '-1:1'",
            "line sb.h5 lb.h5 --alphas=nan:1:3": "nan",
        },
    ),
    Row(
        13,
        "grid of one point",
        {
            f"line sb.h5 lb.h5 --alphas=-1:1:{points}": f"points, got {points}"
            for points in ("1", "0", "2.5", "nan", "inf")
        },
    ),
    Row(
        14,
        "grid beyond all memory",
        {
            "plane sb.h5 --alphas=-1:1:1000000": "points, got 1000000 x 1000000",
            "line sb.h5 lb.h5 --alphas=-1:1:1000001": "1000000 points",
        },
    ),
    Row(
        15,
        "unknown loss",
        {
            f"{TRAIN} --loss ce2": "cross_entropy, mse or MODULE:FUNCTION",
            f"{TRAIN} --loss cross-entropy": "did you mean cross_entropy?",
        },
    ),
    Row(
        16,
        "unknown choice",
        {
            f"{TRAIN} --model mlpp": "did you mean mlp?",
            f"{TRAIN} --data mnits": "did you mean mnist?",
            f"{TRAIN} --dtype half": "float32, float64",
            "line sb.h5 --normalize fliter": "did you mean filter?",
            "line sb.h5 --directions newton": "random, eigenvectors, gradient",
            "line sb.h5 lb.h5 --path bent": "linear, curvilinear",
            "line sb.h5 --ignore biasbn": "bias, norm",
            "eigs sb.h5 --dtype float16": "float32, float64",
            "eigs sb.h5 --which BE": "LA, SA, LM",
            "eigs sb.h5 --engine cache": "did you mean cached?",
            "eigs sb.h5 --operator hesian": "did you mean hessian?",
            "eigs sb.h5 --split valid": "train, test",
            "eigs sb.h5 --bn froze": "did you mean frozen?",
            f"{TRAIN} --optimizer adamm": "adam",
            "plot sb.h5 --kind surfaces": "did you mean surface?",
            "run keskar -o k --design pairs": "did you mean pair?",
        },
    ),
    Row(
        17,
        "cuda without a GPU",
        {f"{TRAIN} --device cuda": "use cpu", "eigs sb.h5 --device cuda": "use cpu"},
        under="no_gpu",
    ),
    Row(
        18,
        "a GPU that is not there",
        {
            f"{TRAIN} --device cuda:9": "cuda:9",
            "eigs sb.h5 --device cuda:9": "2 CUDA devices",
            "eigs sb.h5 --device gpu": "'gpu'",
        },
        under="two_gpus",
    ),
    Row(
        19,
        "batch of none",
        {
            f"{TRAIN} --batch-size 0": "at least 1, got 0",
            "eigs sb.h5 --micro-batch 0": "at least 1, got 0",
        },
    ),
    Row(
        20,
        "seed out of range",
        {
            f"{call} --seed {seed}": f"{told}, got {seed}"
            for call in (TRAIN, "eigs sb.h5")
            for seed, told in ((-1, "at least 0"), (2**63, f"at most {2**63 - 1}"))
        },
    ),
    Row(
        21,
        "no threads, no workers",
        {
            f"{TRAIN} --threads 0": "at least 1, got 0",
            "compare sb.h5 lb.h5 --workers -1": "at least 1, got -1",
            "run keskar -o k --workers 0": "at least 1, got 0",
        },
    ),
    Row(22, "confidence that is no probability", waits="--confidence"),
    Row(
        23,
        "options that exclude each other",
        {
            "plot sb.h5 lb.h5 -o x.png": "-o",
            "line sb.h5 lb.h5 --directions random": "--directions",
            "plane sb.h5 --through a.h5 b.h5 c.h5": "both",
            "plane sb.h5 --convexity --path": "--convexity",
            "plot sb.h5 -o sb.png --format pdf": "ends in pdf",
            "measure epsilon-sharpness sb.h5 lb.h5 -o x.h5": "-o names one file, got 2",
            "eigs sb.h5 --split-seed 1": "--split-seed",
        },
    ),
    Row(
        24,
        "one solution twice",
        {
            "line sb.h5 sb.h5": "got sb.h5 and the same again",
            f"line mine.pt mine.pt {BROUGHT}": "mine.pt",
            "plane --through sb.h5 sb.h5 lb.h5": "sb.h5",
            "compare sb.h5 sb.h5": "sb.h5 twice",
        },
    ),
    Row(
        25,
        "one solution where two are needed",
        {
            "line sb.h5 --path linear": "give END",
            "compare sb.h5": "at least two runs, got 1",
            "plane --through sb.h5 lb.h5": "--through",
        },
    ),
    Row(
        26,
        "format of a figure",
        {
            "plot sb.h5 --format gif": "png, pdf, svg",
            "plot sb.h5 -o sb.gif": "ends in png or pdf or svg, got sb.gif",
        },
    ),
    # paths
    Row(
        27,
        "input that does not exist",
        {
            "list sb.h5": "a directory, got sb.h5",
            "eigs a.h5": "a.h5",
            f"eigs a.pt {BROUGHT}": "a.pt",
            "line sb.h5 a.h5": "a.h5",
            "plane a.h5": "a.h5",
            "compare sb.h5 a.h5": "a.h5",
            "measure epsilon-sharpness a.h5": "a.h5",
            "show a.h5": "a.h5",
            "plot a.h5": "a.h5",
            "list a": "a directory, got a",
            "eigs sb.h5 --config a.toml": "a.toml",
        },
    ),
    Row(
        28,
        "input that is a directory",
        {
            "eigs runs": "runs is a directory",
            "eigs folder.h5": "folder.h5 is a directory",
            "show runs": "runs",
            "plot folder.h5": "folder.h5",
            "compare sb.h5 runs": "at least two runs",
            "eigs sb.h5 --config runs": "runs is a directory",
        },
    ),
    Row(
        29,
        "input that may not be read",
        {
            "eigs secret.h5": "secret.h5",
            f"eigs secret.pt {BROUGHT}": "secret.pt",
            "show secret.h5": "secret.h5",
            "compare sb.h5 secret.h5": "secret.h5",
            "eigs sb.h5 --config secret.toml": "secret.toml",
        },
        under="unreadable",
    ),
    Row(
        30,
        "input that is no regular file",
        {
            f"{call} {brought}".format(path): path
            for call, brought in (
                ("eigs {}", ""),
                ("eigs {}", BROUGHT),
                ("show {}", ""),
                ("plot {}", ""),
                ("compare sb.h5 {}", ""),
                ("line sb.h5 {}", ""),
                ("eigs sb.h5 --config {}", ""),
            )
            for path in ("pipe", "pipe.h5", "socket", "/dev/zero")
        },
        under="pipes",
    ),
    Row(
        31,
        "empty file",
        {
            f"eigs empty.pt {BROUGHT}": "empty.pt is empty",
            "eigs empty.h5": "empty.h5",
            "show empty.h5": "empty.h5 is empty",
            "plot empty.h5": "empty.h5 is empty",
        },
        code=1,
    ),
    Row(
        32,
        "output that exists",
        {
            "eigs sb.h5 -o text.pt": (1, "text.pt"),
            f"{TRAIN.replace('x.h5', 'lb.h5')}": "lb.h5 holds the answer to another request",
            "eigs sb.h5 -o lb.h5": "lb.h5",
            "plot sb.h5 -o taken.png": "taken.png exists",
            "run keskar --seeds 1 -o text.pt": "text.pt",
        },
    ),
    Row(
        33,
        "output that is an input",
        {
            "eigs sb.h5 -o sb.h5 --overwrite": "sb.h5 is also an input",
            "measure epsilon-sharpness sb.h5 -o ./sb.h5 --overwrite": "sb.h5 is also an input",
            "line sb.h5 lb.h5 -o lb.h5 --overwrite": "lb.h5 is also an input",
            "plane sb.h5 --mark lb.h5 -o lb.h5 --overwrite": "lb.h5 is also an input",
            "compare sb.h5 lb.h5 -o lb.h5 --overwrite": "lb.h5 is also an input",
            "plot sb.h5 -o sb.h5 --overwrite": "sb.h5",
            "plot picture.png -o picture.png --overwrite": "picture.png is also an input",
            "eigs sb.h5 -o hard.h5 --overwrite": "hard.h5 is also an input",
        },
        under="links",
    ),
    Row(
        34,
        "directory of the output missing",
        {
            "eigs sb.h5 -o no/x.h5": "no needs to be a directory",
            f"{TRAIN.replace('x.h5', 'no/x.h5')}": "no needs to be a directory",
            "plot sb.h5 -o no/sb.png": "no needs to be a directory",
            "compare sb.h5 lb.h5 -o no/x.h5": "no needs to be a directory",
            "run keskar --quick --batch-sizes 601,602 -o no/k": "601",
        },
    ),
    Row(
        35,
        "directory of the output read-only",
        {
            "eigs sb.h5 -o runs/x.h5": "runs needs to be writable",
            f"{TRAIN.replace('x.h5', 'runs/x.h5')}": "runs needs to be writable",
            "plot sb.h5 -o runs/sb.png": "runs needs to be writable",
        },
        under="read_only",
    ),
    Row(
        36,
        "output that is a directory",
        {
            "eigs sb.h5 -o folder.h5": "folder.h5 is a directory",
            f"{TRAIN.replace('x.h5', 'folder.h5')}": "folder.h5 is a directory",
            "plot sb.h5 -o folder.png": "folder.png is a directory",
        },
    ),
    Row(
        37,
        "output that is a symbolic link",
        {
            "eigs sb.h5 -o nowhere.h5": "nowhere.h5 is a symbolic link",
            "eigs sb.h5 -o nowhere.h5 --overwrite": "nowhere.h5 is a symbolic link",
            "plot sb.h5 -o nowhere.png": "nowhere.png is a symbolic link",
            "eigs sb.h5 -o soft.h5 --overwrite": "soft.h5 is also an input",
        },
        under="links",
    ),
    Row(
        38,
        "name that no file can have",
        {
            f"eigs sb.h5 -o {'x' * 300}.h5": "240 bytes",
            f"plot sb.h5 -o {'x' * 300}.png": "240 bytes",
            f"eigs {'x' * 300}.h5": "xxx",
            f"show {'x' * 300}.h5": "xxx",
            "eigs sb.h5 --config zero.toml": "zero byte",
            "plot sb.h5 -o sb": "ends in png",
        },
    ),
    Row(
        39,
        "full disk",
        {"eigs sb.h5 -k 1": "No space left", "plot sb.h5": "No space left", TRAIN: "No space left"},
        code=1,
        under="full",
    ),
    Row(40, "quota exceeded", {"eigs sb.h5 -k 1": "quota exceeded"}, code=1, under="quota"),
    Row(
        41,
        "disk that fails or cannot be written",
        {"eigs sb.h5 -k 1": "Input/output error"},
        code=1,
        under="failing",
    ),
    Row(
        44,
        "too many open files",
        {"eigs sb.h5 -k 1": "ulimit -n", "show sb.h5": "ulimit -n"},
        code=1,
        under="few_files",
    ),
    # checkpoints
    Row(
        48,
        "no checkpoint",
        {
            f"eigs text.pt {BROUGHT}": "text.pt",
            f"eigs page.pt {BROUGHT}": "HTML",
            f"eigs photo.pt {BROUGHT}": "photo.pt",
            "show text.pt": "text.pt",
            "plot text.pt": "text.pt",
        },
        code=1,
    ),
    Row(
        49,
        "pointer of Git LFS",
        {
            f"eigs pointer.pt {BROUGHT}": "Git LFS",
            "eigs pointer.h5": "pointer.h5",
            "show pointer.h5": "Git LFS",
        },
        code=1,
    ),
    Row(50, "truncated", {f"eigs short.pt {BROUGHT}": "truncated"}, code=1),
    Row(51, "damaged", {f"eigs flipped.pt {BROUGHT}": "Bad CRC-32"}, code=1),
    Row(52, "whole model pickled", {f"eigs pickled.pt {BROUGHT}": "Sequential"}, code=1),
    Row(53, "other classes", {f"eigs args.pt {BROUGHT}": "argparse.Namespace"}, code=1),
    Row(54, "malicious pickle", {f"eigs evil.pt {BROUGHT}": "system"}, code=1),
    Row(55, "no weights inside", {f"eigs keys.pt {BROUGHT}": "epoch"}, code=1),
    Row(
        56,
        "several candidates",
        {
            f"eigs several.pt {BROUGHT}": "under model, ema: choose by key",
            f"eigs several.pt {BROUGHT} --key nosuch": "under nosuch",
        },
        code=1,
    ),
    Row(57, "missing tensors", {f"eigs missing.pt {BROUGHT}": "2.weight"}),
    Row(58, "unexpected tensors", {f"eigs extra.pt {BROUGHT}": "head.weight"}),
    Row(
        59,
        "prefix of DataParallel",
        {
            f"eigs mixed.pt {BROUGHT}": "missing",
            f"eigs parallel.pt -k 1 {BROUGHT}": (0, "wrote parallel.eigs.h5"),
        },
    ),
    Row(60, "wrong shape", {f"eigs shaped.pt {BROUGHT}": "2.bias"}),
    Row(
        61,
        "wrong kind of numbers",
        {f"eigs complex.pt {BROUGHT}": (1, "complex"), f"eigs whole.pt {BROUGHT}": "0.weight"},
        code=2,
    ),
    Row(
        62,
        "weights that are not finite",
        {
            f"eigs nan.pt {BROUGHT}": "0.bias",
            f"line mine.pt nan.pt {BROUGHT}": "0.bias",
            f"eigs infinite.pt {BROUGHT}": "0.bias",
        },
        code=1,
    ),
    Row(
        63,
        "filter of zeros",
        {
            f"line dead.pt --alphas=-1:1:3 {BROUGHT}": "0.weight[2]",
            f"plane dead.pt --alphas=-1:1:3 {BROUGHT}": "0.weight[2]",
        },
    ),
    Row(
        64,
        "tensors that are not dense",
        {f"eigs {name}.pt {BROUGHT}": "0.weight" for name in ("sparse", "rows", "meta")},
        code=1,
    ),
    Row(65, "tensor larger than its file", {f"eigs large.pt {BROUGHT}": "0.weight"}, code=1),
    Row(66, "no parameters", {f"{TRAIN} --model nets:empty_model": "trainable parameters"}),
    Row(67, "all parameters frozen", {f"{TRAIN} --model nets:Frozen": "requires_grad"}),
    Row(
        68,
        "pattern of parameters that matches nothing",
        {
            f"{command} sb.h5 --params layer9.*": "matches no parameter; names begin 0.weight"
            for command in ("eigs", "density", "trace", "batches --batch-size 60")
        },
    ),
    Row(
        69,
        "two architectures",
        {
            "line sb.h5 wide.h5": "first in 0.weight, (10, 64) and (4, 64)",
            "plane --through sb.h5 lb.h5 wide.h5": "wide.h5",
        },
    ),
    Row(
        70,
        "shapes that would broadcast",
        {f"line mine.pt column.pt {BROUGHT}": "2.bias is (10, 1)"},
    ),
    Row(
        71,
        "trajectory of one point",
        {
            "plane sb.h5 --directions principal": "checkpoint",
            f"along mine.pt {BROUGHT}": "checkpoint",
        },
    ),
    Row(
        72,
        "checkpoints of two dtypes",
        {
            f"line mine.pt double.pt {BROUGHT}": "--dtype",
            f"plane --through mine.pt double.pt other.pt {BROUGHT}": "--dtype",
        },
    ),
    # functions and data
    Row(
        73,
        "no colon",
        {
            f"{TRAIN} --model model.py": "MODULE:FUNCTION",
            f"{TRAIN} --model nets:": "nets:",
            f"{TRAIN} --model :build": ":build",
            f"{TRAIN} --model :": "':'",
        },
    ),
    Row(
        74,
        "module not found",
        {
            f"{TRAIN} --model .nets:build": ".nets",
            "eigs sb.h5 --model nosuch.nets:build": "nosuch",
            "run keskar -o k --seeds 1 --workers 1 --model nosuch.nets:build": "nosuch",
            f"{TRAIN} --model nosuch:build": "no module named nosuch",
            f"{TRAIN} --data nosuch.a:b": "no module named nosuch",
            f"eigs mine.pt {BROUGHT.replace('nets:build', 'nosuch:f')}": "no module named nosuch",
            f"{TRAIN} --model /x/nets.py:build": "/x/nets",
        },
    ),
    Row(75, "function not found", {f"{TRAIN} --model nets:bild": "did you mean build?"}),
    Row(
        76,
        "cannot be called",
        {
            f"{TRAIN} --model nets:NUMBER": "nets:NUMBER",
            f"{TRAIN} --model nets:deep": "depth",
            f"{TRAIN} --loss nets:NUMBER": "nets:NUMBER",
        },
    ),
    Row(
        77,
        "function that fails",
        {
            f"{TRAIN} --model nets:broken": "KeyError 'width' (nets.py:",
            f"{TRAIN} --model broken:f": "ZeroDivisionError",
        },
    ),
    Row(
        78,
        "function that leaves, prints or returns nothing",
        {
            f"{TRAIN} --model sys:exit": "sys:exit",
            f"{TRAIN} --model nets:leaving": "SystemExit 3",
            f"{TRAIN} --model nets:silent": "NoneType",
            f"{TRAIN} --model os:getcwd": "str",
        },
        printed="built\n",
    ),
    Row(
        79,
        "data without pairs",
        {
            f"{TRAIN} --data nets:single": "pairs",
            f"{TRAIN} --data nets:triple": "3",
            f"{TRAIN} --data nets:alone": "train, test",
        },
    ),
    Row(
        80,
        "no data",
        {
            f"{TRAIN} --data nets:empty": "at least one example",
            f"{TRAIN} --data nets:dropping_last": "DataLoader",
        },
    ),
    Row(81, "data that can be read once", {f"{TRAIN} --data nets:generator": "generator"}),
    Row(
        82,
        "shuffled or augmented data",
        {
            f"{TRAIN} --data nets:shuffled": "DataLoader",
            f"{TRAIN} --data nets:augmented": "augmentation",
        },
    ),
    Row(83, "inputs that are not finite", {f"{TRAIN} --data nets:holed": "example 17"}),
    Row(84, "inputs that do not fit", {f"{TRAIN} --model nets:build --data nets:small": "2x63"}),
    Row(
        85,
        "batches of two sizes, and another reduction",
        {
            f"{TRAIN} --loss nets:summed": "mean over the examples",
            TRAIN.replace("50", "7"): (0, "wrote x.h5"),
        },
    ),
    Row(
        86,
        "inputs and targets of two lengths",
        {f"{TRAIN} --data nets:shorter": "100 inputs and 99 targets"},
    ),
    Row(87, "label out of range", {f"{TRAIN} --model nets:build --data nets:beyond": "10"}),
    Row(88, "negative label", {f"{TRAIN} --model nets:build --data nets:negative": "-1"}),
    Row(89, "ignored labels", {f"{TRAIN} --model nets:build --data nets:ignored": "-100"}),
    Row(
        90,
        "labels that are no whole numbers",
        {f"{TRAIN} --model nets:build --data nets:floating": "float32"},
    ),
    Row(
        91,
        "outputs and targets of two shapes",
        {
            f"{TRAIN} --loss mse": "(2, 10) and (2,)",
            f"{TRAIN} --model nets:one --data nets:flat --loss mse": "(2, 1) and (2,)",
        },
    ),
    Row(
        92,
        "file of the data missing or changed",
        {
            "eigs moved.h5 --data nets:digits": "SHA-256",
            f"{TRAIN} --data nets:from_file": "digits.pt",
        },
    ),
    # numbers
    Row(93, "loss that is not finite", {f"eigs huge.pt {BROUGHT}": "batch 0"}, code=1),
    Row(
        94,
        "loss that is no number of the parameters",
        {
            f"{TRAIN} --model nets:build --data nets:digits --loss nets:each": "shape (2,)",
            f"{TRAIN} --model nets:build --data nets:digits --loss nets:number": "float",
            f"{TRAIN} --model nets:build --data nets:digits --loss nets:detached": "detach",
        },
    ),
    Row(95, "noise in the model", {f"{TRAIN} --model nets:Dropping": "dropout"}),
    Row(
        96,
        "state that changes",
        {
            f"{TRAIN} --model nets:Counting": "same outputs twice",
            f"{TRAIN} --model nets:build --data nets:digits --loss nets:drifting": "loss",
        },
    ),
    Row(
        97,
        "no second derivative",
        {f"eigs rest.pt {BROUGHT.replace('build', 'Cut')}": "second derivative"},
        code=1,
    ),
    Row(
        98,
        "product that is not finite",
        {f"eigs mine.pt {BROUGHT.replace('cross_entropy', 'nets:rooted')}": "0.weight in batch 0"},
        code=1,
    ),
    Row(
        99,
        "BatchNorm of one example",
        {
            f"eigs normed.pt --bn batch --micro-batch 1 {NORMED}": "all 100 examples in one batch",
            f"{TRAIN.replace('50', '1')} --model nets:Normed": (1, "more than 1 value per channel"),
        },
    ),
    Row(
        101,
        "not converged",
        {"eigs sb.h5 -k 3 --budget 9 --tol 1e-12": (0, "  NO\n")},
        waits="--strict",
    ),
    # results
    Row(
        102,
        "no result, or of another kind",
        {
            "eigs pairs.h5": "needs to hold Run, but holds Eigenpairs",
            "line sb.h5 pairs.h5": "Eigenpairs",
            "plot sb.h5 --kind surface": "planes, got a Run",
            "show foreign.h5": (1, "foreign.h5"),
            "eigs foreign.h5": (1, "foreign.h5"),
        },
    ),
    Row(103, "newer format", {"show newer.h5": "format", "eigs newer.h5": "newer.h5"}, code=1),
    Row(
        104,
        "damaged result",
        {
            f"{call} {name}": name
            for call in ("show", "eigs", "plot", "line sb.h5")
            for name in ("flipped.h5", "short.h5")
        },
        code=1,
    ),
    Row(
        105,
        "results that do not compare",
        {
            "compare sb.h5 squares.h5": "one loss",
            "line sb.h5 squares.h5": "one loss",
            "line sb.h5 split.h5": "split_seed",
        },
    ),
]


def saved(content: Any, **options: Any) -> bytes:
    file = BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def sealed(data: bytes) -> bytes:
    return data + SEAL + sha256(data).digest()


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch canary",)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All inputs of the table, made once."""
    folder = tmp_path_factory.mktemp("bad")
    _results(folder)
    _checkpoints(folder)
    (folder / "nets.py").write_text(NETS)
    (folder / "broken.py").write_text("1 / 0\n")
    for name in ("folder.h5", "folder.png", "runs"):
        (folder / name).mkdir()
    (folder / "secret.toml").write_text("seed = 1\n")
    (folder / "zero.toml").write_text('output = "a\\u0000.h5"\n')
    (folder / "taken.png").write_text("mine")
    return folder


def _results(folder: Path) -> None:
    linear: dict[str, Any] = {
        "model_options": {"widths": []},
        "batch_size": 600,
        "updates": 2,
        "threads": 1,
    }
    with cpu_threads(1):
        changes: dict[str, dict[str, Any]] = {
            "sb": {"batch_size": 60},
            "lb": {},
            "split": {"split_seed": 1},
            "wide": {"model_options": {"widths": [4]}},
        }
        runs = {
            name: sh.train(sh.TrainConfig(**linear | change)) for name, change in changes.items()
        }
        pairs = sh.eigsh(sh.Hessian(sh.objective_of(runs["sb"])), 1)
    for name, change in {"squares": {"loss": "mse"}, "moved": {"data": "nets:digits"}}.items():
        spec = runs["lb"].spec
        runs[name] = replace(runs["lb"], spec={**spec, "train": {**spec["train"], **change}})
    results: dict[str, Result] = {**runs, "pairs": pairs}
    for name, result in results.items():
        request = {"command": "made", "options": {"name": name}, "inputs": {}}
        sh.save(folder / f"{name}.h5", result, request=request)
    whole = (folder / "sb.h5").read_bytes()
    with h5py.File(BytesIO(whole[:-40])) as file:
        buffer = BytesIO()
        with h5py.File(buffer, "w") as newer:
            for name in file.attrs:
                newer.attrs[name] = file.attrs[name]
            newer.attrs["format"] = 99
    with h5py.File(folder / "foreign.h5", "w") as file:
        file["loss"] = np.arange(3.0)
    middle = len(whole) // 2
    for name, content in {
        "secret.h5": whole,
        "flipped.h5": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "short.h5": whole[:-9],
        "newer.h5": sealed(buffer.getvalue()),
        "empty.h5": b"",
        "pointer.h5": LFS,
    }.items():
        (folder / name).write_bytes(content)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def _checkpoints(folder: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 10))
    weights = net.state_dict()
    first = weights["0.weight"]
    nan, infinite = torch.full((4,), float("nan")), torch.full((4,), float("inf"))
    dead = first.clone()
    dead[2] = 0
    large = torch.ones(1).expand(10**6, 10**6)
    contents = {
        "mine": weights,
        "secret": weights,
        "other": {name: x + 1 for name, x in weights.items()},
        "double": {name: x.double() + 1 for name, x in weights.items()},
        "pickled": net,
        "args": {**weights, "args": argparse.Namespace(lr=0.1)},
        "evil": {**weights, "evil": Evil()},
        "keys": {"epoch": 3, "loss": 0.1},
        "missing": {name: x for name, x in weights.items() if not name.startswith("2")},
        "extra": {**weights, "head.weight": first, "head.bias": nan},
        "parallel": {f"module.{name}": x for name, x in weights.items()},
        "mixed": {("module." if i else "") + name: weights[name] for i, name in enumerate(weights)},
        "shaped": {**weights, "2.bias": torch.zeros(11)},
        "column": {**weights, "2.bias": torch.zeros(10, 1)},
        "complex": {**weights, "0.weight": first.to(torch.complex64)},
        "whole": {**weights, "0.weight": first.long()},
        "nan": {**weights, "0.bias": nan},
        "infinite": {**weights, "0.bias": infinite},
        "dead": {**weights, "0.weight": dead},
        "sparse": {**weights, "0.weight": first.to_sparse()},
        "meta": {**weights, "0.weight": first.to("meta")},
        "large": {**weights, "0.weight": large},
        "rest": {f"rest.{name}": x for name, x in weights.items()},
        "normed": {
            f"rest.{name}": x
            for name, x in nn.Sequential(nn.Linear(64, 4), nn.BatchNorm1d(4), nn.Linear(4, 10))
            .state_dict()
            .items()
        },
        "several": {"model": weights, "ema": {name: x + 1 for name, x in weights.items()}},
        "huge": {**weights, "2.weight": torch.full((10, 4), 3e38)},
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR")
        contents["rows"] = {**weights, "0.weight": first.to_sparse_csr()}
        for name, content in contents.items():
            (folder / f"{name}.pt").write_bytes(saved(content))
    whole = bytearray(saved(weights))
    (folder / "short.pt").write_bytes(whole[:-200])
    whole[whole.index(first.numpy().tobytes()) + 5] ^= 1
    (folder / "flipped.pt").write_bytes(whole)
    (folder / "text.pt").write_text("no weights\n")
    (folder / "page.pt").write_text("<!DOCTYPE html><title>Sign in</title>")
    (folder / "photo.pt").write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(200))
    (folder / "pointer.pt").write_bytes(LFS)
    (folder / "empty.pt").write_bytes(b"")


@pytest.fixture
def here(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with all inputs, in a process that knows nothing of a user's modules."""
    shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [x for x in sys.path if x not in ("", os.getcwd())])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name in ("nets", "broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with cpu_threads(1):
        yield tmp_path
    for name in ("nets", "broken"):
        sys.modules.pop(name, None)


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """A command that waits for ever is a failure and not a wait."""

    def late(number: int, frame: FrameType | None) -> None:
        raise AssertionError("a command hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def listing(folder: Path) -> dict[str, tuple[Any, ...]]:
    """All that is in a folder, by name: bytes and times of files, the ends of links."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in folder.rglob("*"):
        about = path.lstat()
        content = path.read_bytes() if path.is_file() else None
        end = os.readlink(path) if path.is_symlink() else None
        found[str(path.relative_to(folder))] = about.st_mode, about.st_mtime_ns, content, end
    return found


# ---- what the machine is like ----------------------------------------------------------------

Patch = pytest.MonkeyPatch


def no_gpu(patch: Patch, folder: Path) -> None:
    patch.setattr(torch.cuda, "device_count", lambda: 0)


def two_gpus(patch: Patch, folder: Path) -> None:
    patch.setattr(torch.cuda, "device_count", lambda: 2)


def unreadable(patch: Patch, folder: Path) -> None:
    """Refuse ``secret``, by a patch: permissions do not bind root, who may run the tests."""

    def refusing(opening: Callable[..., Any]) -> Callable[..., Any]:
        def opened(path: Any, *args: Any, **options: Any) -> Any:
            if str(path).startswith("secret"):  # by the name that was typed
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return opening(path, *args, **options)

        return opened

    for name in ("builtins.open", "io.open", "os.open"):
        module, _, function = name.partition(".")
        patch.setattr(name, refusing(getattr(sys.modules[module], function)))


def read_only(patch: Patch, folder: Path) -> None:
    """Refuse to write in ``runs``, by a patch, as above."""
    access = os.access
    patch.setattr(
        os,
        "access",
        lambda path, mode, **o: "runs" not in str(path) and access(path, mode, **o),
    )


def pipes(patch: Patch, folder: Path) -> None:
    for name in ("pipe", "pipe.h5", "pipe.png"):
        os.mkfifo(folder / name)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("socket")  # by the folder's own name, for a longer one does not fit


def links(patch: Patch, folder: Path) -> None:
    (folder / "nowhere.h5").symlink_to("gone.h5")
    (folder / "nowhere.png").symlink_to("gone.png")
    (folder / "soft.h5").symlink_to("sb.h5")
    (folder / "hard.h5").hardlink_to(folder / "sb.h5")
    shutil.copy(folder / "sb.h5", folder / "picture.png")


def failing(number: int) -> Callable[[Patch, Path], None]:
    def prepared(patch: Patch, folder: Path) -> None:
        def fsync(descriptor: int) -> None:
            raise OSError(number, os.strerror(number))

        patch.setattr(os, "fsync", fsync)

    return prepared


@contextmanager
def few_files() -> Iterator[None]:
    """Leave no descriptor for another file."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


UNDER: dict[str, Callable[[Patch, Path], None]] = {
    "no_gpu": no_gpu,
    "two_gpus": two_gpus,
    "unreadable": unreadable,
    "read_only": read_only,
    "pipes": pipes,
    "links": links,
    "full": failing(errno.ENOSPC),
    "quota": failing(errno.EDQUOT),
    "failing": failing(errno.EIO),
}


# ---- the tests -------------------------------------------------------------------------------

HELD: set[int] = set()  # the rows that passed in this process


def told(err: str) -> str:
    """The one line of an error, without its head."""
    head = "sharpness: error: "
    line = err.removesuffix("\n")
    assert err == f"{line}\n"
    assert line.isprintable(), err
    assert line.startswith(head), err
    assert len(line) <= 200, (len(line), line)
    return line.removeprefix(head)


def with_debug(words: list[str]) -> list[str]:
    """The same call with --debug, where no option takes it for its value."""
    place = 2 if words[0] in ("measure", "run") else 1
    return [*words[:place], "--debug", *words[place:]]


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.calls], ids=lambda row: f"{row.number} {row.what}"
)
def test_a_bad_input_gets_one_line_and_changes_nothing(
    row: Row, here: Path, ask: Ask, monkeypatch: Patch
) -> None:
    if row.under == "few_files":
        for command in row.calls:  # what is imported once needs no file again
            assert ask(*shlex.split(command))[0] == 0
            Path("sb.eigs.h5").unlink(missing_ok=True)
    elif row.under:
        UNDER[row.under](monkeypatch, here)
    before = listing(here)
    for command, wanted, words in row.checks():
        with few_files() if row.under == "few_files" else nullcontext():
            code, out, err = ask(*shlex.split(command))
        assert code == wanted, (command, err)
        if code == 0:
            assert words in out + err
            continue
        assert words in told(err.removeprefix(row.printed)), command
        assert out == ""
        assert listing(here) == before, command
    HELD.add(row.number)


REFUSED = [row for row in ROWS if row.calls and row.checks()[0][1] and row.under != "few_files"]


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: f"{row.number} {row.what}")
def test_debug_shows_the_traceback_before_the_line(
    row: Row, here: Path, ask: Ask, monkeypatch: Patch
) -> None:
    if row.under:
        UNDER[row.under](monkeypatch, here)
    command, wanted, words = row.checks()[0]
    code, out, err = ask(*with_debug(shlex.split(command)))
    assert (code, out) == (wanted, "")
    assert "Traceback (most recent call last):" in err
    assert words in told(f"{err.splitlines()[-1]}\n")


def test_a_folder_that_goes_away_meanwhile_is_told_in_one_line(
    here: Path, ask: Ask, monkeypatch: Patch
) -> None:
    """Row 42."""
    eigsh = sh.eigsh

    def slow(*args: Any, **options: Any) -> Any:
        Path("runs").rmdir()
        return eigsh(*args, **options)

    monkeypatch.setattr("sharpness.lanczos.eigsh", slow)
    before = listing(here)
    code, out, err = ask(*shlex.split("eigs sb.h5 -k 1 -o runs/x.h5"))
    assert (code, out) == (1, "")
    assert "runs/" in told(err)
    assert listing(here) == {name: x for name, x in before.items() if name != "runs"}
    HELD.add(42)


@pytest.mark.parametrize("place", ["/dev/full", "&-"])
def test_a_stdout_that_takes_nothing_is_told_in_one_line(place: str, here: Path) -> None:
    """Row 43."""
    before = listing(here)
    done = subprocess.run(  # noqa: S602
        f"exec '{sys.executable}' -m sharpness show sb.h5 >{place}",
        shell=True,
        stderr=subprocess.PIPE,
        check=False,
    )
    assert done.returncode == 1
    assert "standard output" in told(done.stderr.decode())
    assert listing(here) == before
    HELD.add(43)


def on_rank(i: int, folder: Path) -> None:
    """Note what a mean over two ranks says of models that are not the same, and of two that are."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=i, world_size=2)
    for what in ("bias", "dtype", "loss", "nothing"):
        model = nn.Linear(3, 2)
        nn.init.ones_(model.weight)
        nn.init.constant_(model.bias, float(i) if what == "bias" else 0.0)
        real = torch.float64 if i and what == "dtype" else torch.float32
        loss = nn.functional.l1_loss if i and what == "loss" else nn.functional.mse_loss
        f = sh.Objective(
            model.to(real), [(torch.ones(4, 3, dtype=real), torch.ones(4, 2, dtype=real))], loss
        )
        try:
            said = f"value {float(f.value(f.theta))}"
        except InputError as error:
            said = str(error)
        (folder / f"{what} {i}").write_text(said)
    dist.destroy_process_group()


def test_ranks_that_disagree_are_told_on_each_of_them(tmp_path: Path) -> None:
    """Row 106."""
    signal.alarm(300)  # two processes import torch
    spawn(on_rank, args=(tmp_path,), nprocs=2)  # type: ignore[no-untyped-call]
    for what in ("bias", "dtype", "loss", "nothing"):
        for i in range(2):
            wanted = f"another {what} on rank 1 than on rank 0" if what != "nothing" else "value 4"
            assert wanted in (tmp_path / f"{what} {i}").read_text()
    HELD.add(106)


def test_a_journal_that_is_another_s_or_damaged_is_told_in_one_line(
    here: Path, ask: Ask, monkeypatch: Patch
) -> None:
    """Rows 45 to 47."""
    plane = shlex.split("plane sb.h5 --alphas=-1:1:3 -q")
    put = Journal.__setitem__

    def stopping(self: Journal, key: str, value: torch.Tensor) -> None:
        put(self, key, value)
        self.commit()
        if len(self) == 9:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "__setitem__", stopping)
        assert ask(*plane)[0] == 130
    part = here / "sb.plane.h5.part"
    whole = part.read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    asked = (
        (45, plane, whole, 1, f"is being written by process {os.getpid()} on "),
        (46, [*plane, "--seed=7"], whole, 2, "(seed 0 there, 7 asked for)"),
        (47, plane, bytes(damaged), 1, "was damaged, and 8 pieces of it are whole"),
    )
    for number, command, content, wanted, words in asked:
        part.write_bytes(content)
        before = listing(here)
        with part.open("rb") as file:
            if number == 45:
                fcntl.flock(file, fcntl.LOCK_EX)
            code, out, err = ask(*command)
        assert (code, out) == (wanted, "")
        assert words in told(err)
        if number == 47:  # what is whole was kept
            before.pop(part.name)
        assert listing(here).items() >= before.items()
        HELD.add(number)
    code, _, err = ask(*plane[:-1])
    assert code == 0
    assert "continuing from the 8 pieces" in err


def test_a_lack_of_memory_for_one_example_is_told_in_one_line(
    here: Path, ask: Ask, monkeypatch: Patch
) -> None:
    """Row 100."""

    def greedy(*_: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 GB")

    monkeypatch.setattr(sh.Hessian, "batch_map", greedy)
    before = listing(here)
    code, out, err = ask(*shlex.split("eigs sb.h5 -k 1 -q --micro-batch 1"))
    assert (code, out) == (1, "")
    assert "batch 0, of 1 example, needs more memory than there is" in told(err)
    assert listing(here) == before
    HELD.add(100)


ALONE = {42, 43, 45, 46, 47, 100, 106}  # the rows that have tests of their own


def test_what_a_name_holds_reaches_no_terminal_as_a_command(here: Path, ask: Ask) -> None:
    code, _, err = ask("eigs", "a\x1b[2J\x07.h5")
    assert code == 2
    assert "a\\x1b[2J\\x07.h5" in told(err)


def test_a_line_that_is_too_long_is_told_with_the_ends_of_its_paths(here: Path, ask: Ask) -> None:
    folder = here / ("a" * 60) / ("b" * 60)
    folder.mkdir(parents=True)
    shutil.copy("sb.h5", folder / "sb.h5")
    for seed, wanted in ((0, 0), (1, 2)):
        code, _, err = ask("eigs", folder / "sb.h5", "-k1", "-q", f"--seed={seed}")
        assert code == wanted
    line = told(err)
    assert line.startswith("...bbb")
    assert "sb.eigs.h5 holds the answer to another request (seed 0 there, 1 asked for)" in line


def test_a_line_that_is_too_long_keeps_its_beginning_and_its_end(here: Path, ask: Ask) -> None:
    code, _, err = ask("show", f"{'a' * 200}.h5")
    assert code == 2
    line = told(err)
    assert line.startswith("aaa")
    assert line.endswith(".h5 needs to be a file that is there: No such file or directory")


def options() -> set[str]:
    """All options of all commands."""
    context = click.Context(group)
    todo: list[click.Command] = [group]
    found: set[str] = set()
    while todo:
        command = todo.pop()
        found |= {name for parameter in command.params for name in parameter.opts}
        if isinstance(command, click.Group):
            below = [command.get_command(context, name) for name in command.list_commands(context)]
            todo += [x for x in below if x]
    return found


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.waits], ids=lambda row: f"{row.number} {row.what}"
)
def test_a_row_waits_for_no_command_that_is_there(row: Row) -> None:
    assert row.waits not in COMMANDS.keys() | options(), f"write the calls of row {row.number}"


def test_every_row_is_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = [row.number for row in ROWS] + [*ALONE]
    assert sorted(numbers) == list(range(1, 107))
    waiting = {row.number: row.waits for row in ROWS if row.waits}
    with capsys.disabled():
        print(f"\nof 106 bad inputs {len(HELD)} hold in this process; ", end="")
        print(f"{len(waiting)} wait for (more) inputs: {waiting}")
