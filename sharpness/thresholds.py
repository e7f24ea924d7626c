"""From which curvature on the optimizer of a training is unstable, and its preconditioner.

On a quadratic, with its preconditioner P held fixed, an optimizer diverges along the top
eigenvector of P^-1 H once that eigenvalue is above its threshold (Cohen et al. 2021, 2022; see
"Where an optimizer becomes unstable" in ``docs/theory.md``).

Letters: eta learning rate, b momentum or beta_1, d dampening, wd weight decay, v second moments, P.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from sharpness.averages import without
from sharpness.errors import InputError
from sharpness.optimizers import OPTIMIZERS
from sharpness.results import Run
from sharpness.training_config import TrainConfig

FLOOR = 10  # times epsilon

Options = dict[str, Any]  # of a torch optimizer, by torch's names
State = Mapping[str, Tensor]  # of a run's optimizer; steps are repeated to (n,) like the others


@dataclass(frozen=True)
class Rule:
    """Where an optimizer becomes unstable, and by which P it divides."""

    threshold: Callable[[Options], float]  # of lambda_1 of P^-1 (H + wd I)
    formula: Callable[[Options], str]
    preconditioner: Callable[[Options, State], Tensor] | None = None  # (n,); None for the identity
    root: Callable[[Options, State], Tensor] | None = None  # of v, to which P adds epsilon
    is_decoupled: bool = False  # whether weight decay is no part of the gradient
    needs: tuple[str, ...] = ()  # of the state


def _sgd(o: Options) -> float:
    b = o["momentum"]
    d = o["dampening"] if b else 0.0  # torch dampens what it adds to the momentum, and only that
    return (2 + 2 * b) / ((1 + 2 * b if o["nesterov"] else 1 - d) * o["lr"])


def _sgd_formula(o: Options) -> str:
    if o["nesterov"]:
        return "(2 + 2 b) / ((1 + 2 b) eta)"
    if o["dampening"] and o["momentum"]:
        return "(2 + 2 b) / ((1 - d) eta)"
    return "(2 + 2 b) / eta" if o["momentum"] else "2 / eta"


def _adam_root(o: Options, state: State) -> Tensor:
    _, second = o["betas"]
    v = state["max_exp_avg_sq" if o["amsgrad"] else "exp_avg_sq"].double()
    return (v / (1 - second ** state["step"].double())).sqrt()


def _adam_preconditioner(o: Options, state: State) -> Tensor:
    first, _ = o["betas"]
    return (1 - first ** state["step"].double()) * (_adam_root(o, state) + o["eps"])


def _rmsprop_root(o: Options, state: State) -> Tensor:
    v = state["square_avg"].double()
    return (v - state["grad_avg"].double().square() if o["centered"] else v).sqrt()


def _adagrad_root(o: Options, state: State) -> Tensor:
    return state["sum"].double().sqrt()


RULES: dict[str, Rule] = {
    "sgd": Rule(threshold=_sgd, formula=_sgd_formula),
    "adam": Rule(
        threshold=lambda o: (2 + 2 * o["betas"][0]) / ((1 - o["betas"][0]) * o["lr"]),
        formula=lambda o: "(2 + 2 b) / ((1 - b) eta)",
        preconditioner=_adam_preconditioner,
        root=_adam_root,
        needs=("exp_avg_sq", "step"),
    ),
    "adamw": Rule(
        threshold=lambda o: (
            (2 - o["lr"] * o["weight_decay"])
            * (1 + o["betas"][0])
            / ((1 - o["betas"][0]) * o["lr"])
        ),
        formula=lambda o: "(2 - eta wd) (1 + b) / ((1 - b) eta)",
        preconditioner=_adam_preconditioner,
        root=_adam_root,
        is_decoupled=True,
        needs=("exp_avg_sq", "step"),
    ),
    "rmsprop": Rule(
        threshold=lambda o: (2 + 2 * o["momentum"]) / o["lr"],
        formula=lambda o: "(2 + 2 b) / eta" if o["momentum"] else "2 / eta",
        preconditioner=lambda o, state: _rmsprop_root(o, state) + o["eps"],
        root=_rmsprop_root,
        needs=("square_avg",),
    ),
    "adagrad": Rule(
        # With decay, the rate is that of the step it has come to.
        threshold=lambda o: math.nan if o["lr_decay"] else 2 / o["lr"],
        formula=lambda o: "2 / eta",
        preconditioner=lambda o, state: _adagrad_root(o, state) + o["eps"],
        root=_adagrad_root,
        needs=("sum",),
    ),
}


def at_end(run: Run | None) -> dict[str, Any]:
    """Return how a run was trained, with the rate, momentum and batch size of its last update.

    None of a run gives nothing.
    """
    if run is None:
        return {}
    known = {field.name for field in fields(TrainConfig)}
    moved = {name: x for name, x in run.spec.get("end", {}).items() if name in known}
    return {**run.spec.get("train", {}), **moved}


def stability_threshold(train: Mapping[str, Any]) -> tuple[float, str]:
    """Return from which lambda_1 of P^-1 H on an optimizer is unstable, and that in words.

    It holds on a quadratic, for full batches, with P fixed; where weight decay is added to the
    gradient, H is that of the loss with the penalty, H + wd I. NaN for an optimizer without a
    rule, such as Rprop, and around one whose gradient is that of another method, such as SAM.

    Args:
        train: How a run was trained, ``at_end(run)`` or ``run.spec["train"]``.

    Raises:
        InputError: If that names no optimizer and no learning rate.

    >>> value, words = stability_threshold({"optimizer": "adam", "learning_rate": 0.1})
    >>> round(value, 9)  # (2 + 2 b) / ((1 - b) eta) with b = 0.9
    380.0
    """
    config, options = _settings(train)
    for name in (config.method, config.optimizer):
        if name not in ("plain", *RULES):
            return math.nan, f"{name} has no threshold of its own"
    rule = RULES[config.optimizer]
    value = rule.threshold(options) if options["lr"] else math.inf  # where a schedule ends at 0
    if math.isnan(value):
        return value, f"{config.optimizer} with lr_decay has no threshold of its own"
    matrix = "H + wd I" if decay(train) else "H"
    if rule.preconditioner:
        matrix = f"P^-1 ({matrix})" if decay(train) else "P^-1 H"
    kind = "nesterov" if options.get("nesterov") else config.optimizer
    return value, (
        f"{kind} is unstable above {rule.formula(options)} = {value:.5g}, "
        f"on a quadratic of curvature {matrix} and full batches"
    )


def decay(train: Mapping[str, Any]) -> float:
    """Return the weight decay that an optimizer adds to the gradient.

    >>> decay({"optimizer": "adamw", "learning_rate": 0.1, "weight_decay": 0.01})
    0.0
    """
    config, _ = _settings(train)
    rule = RULES.get(config.optimizer)
    return 0.0 if rule is not None and rule.is_decoupled else config.weight_decay


def is_plain(train: Mapping[str, Any]) -> bool:
    """Say whether an update is eta times the gradient of the loss, and nothing else.

    >>> is_plain({"optimizer": "sgd", "learning_rate": 0.1})
    True
    """
    config, _ = _settings(train)
    adds = config.momentum or config.weight_decay or config.method != "plain"
    return config.optimizer == "sgd" and not adds


def preconditioner(run: Run, sizes: list[int], who: str) -> tuple[Tensor, Tensor]:
    """Return P at the end of a run, float64, (n,), and where it is hardly more than epsilon, bool.

    P is 0 where a parameter never had a gradient. It is hardly more than epsilon where the root of
    v is below 10 epsilon: there it says nothing of the gradients.

    Args:
        sizes: Of the parameter tensors, in the order of theta.
        who: Needs it, for the message.

    Raises:
        InputError: If the optimizer has no rule, or the run not the state that it needs.
    """
    config, options = settings(run, who)
    if config.optimizer not in RULES:
        raise InputError(
            f"{who} needs an optimizer of {', '.join(RULES)}, got {config.optimizer}: train by one"
        )
    rule, n = RULES[config.optimizer], sum(sizes)
    if rule.preconditioner is None or rule.root is None:
        return torch.ones(n, dtype=torch.float64), torch.zeros(n, dtype=torch.bool)
    missing = [name for name in rule.needs if name not in run.optimizer]
    if missing or not run.updates:
        raise InputError(
            f"{who} needs the {' and '.join(rule.needs)} of {config.optimizer}, got a run of "
            f"{run.updates} updates with {', '.join(run.optimizer) or 'no state'}: train it on"
        )
    state = {name: _by_parameter(x, sizes, who) for name, x in own_state(run).items()}
    never = state["step"] == 0 if "step" in state else torch.zeros(n, dtype=torch.bool)
    P, root = rule.preconditioner(options, state), rule.root(options, state)
    return P.masked_fill(never, 0.0), (root < FLOOR * options["eps"]) & ~never


def settings(run: Run, who: str) -> tuple[TrainConfig, Options]:
    """Return the configuration of a training and the options of its torch optimizer.

    Raises:
        InputError: If the run was not trained here, or ends at an average of its weights.
    """
    if run.spec.get("average", {}).get("at") == "end":
        raise InputError(
            f"{who} needs the point of the optimizer's state, got a run that ends at the average "
            "of its weights: train it without"
        )
    if not {"optimizer", "learning_rate"} <= run.spec.get("train", {}).keys():
        raise InputError(
            f"{who} needs the optimizer of a training, got a checkpoint that was "
            f"{run.stopped}: train it here, or leave the run out"
        )
    return _settings(at_end(run))


def _settings(train: Mapping[str, Any]) -> tuple[TrainConfig, Options]:
    if not {"optimizer", "learning_rate"} <= train.keys():
        raise InputError(
            f"a threshold needs an optimizer and a learning_rate, got {', '.join(train) or 'none'}:"
            " give those of a training"
        )
    known = {field.name for field in fields(TrainConfig)}
    config = TrainConfig(**{name: x for name, x in train.items() if name in known})
    if config.optimizer not in OPTIMIZERS:
        raise InputError(
            f"optimizer needs to be one of {', '.join(OPTIMIZERS)}, got {config.optimizer!r}"
        )
    like = OPTIMIZERS[config.optimizer]([nn.Parameter(torch.zeros(1))], config)
    return config, dict(like.defaults)


def own_state(run: Run) -> dict[str, Tensor]:
    """Return the optimizer's state at the end of a run, without what an unfinished one keeps."""
    return without(run.optimizer)


def _by_parameter(x: Tensor, sizes: list[int], who: str) -> Tensor:
    """Return what the state has of each parameter, (n,), also where it has one for a tensor."""
    if len(x) == sum(sizes):
        return x
    if len(x) != len(sizes):
        raise InputError(
            f"{who} needs an objective of the run's model, with {sum(sizes)} parameters in "
            f"{len(sizes)} tensors, got a state of {len(x)} numbers: take objective_of the run"
        )
    return x.repeat_interleave(torch.tensor(sizes))
