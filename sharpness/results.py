"""What the algorithms return: frozen records of arrays, numbers and words, nothing else.

The names in ``Annotated`` are the axes of an array, which ``store`` writes as HDF5 dimensions;
an axis named like a field has that field as its coordinate. Each ``spec`` is a tree of JSON
values that says what computed the result, from which operator, objective or run, with which
options.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from sharpness import densities, profiles
from sharpness.errors import InputError
from sharpness.intervals import t_interval
from sharpness.records import Record, Shown, layout, library
from sharpness.text import objective_spec

FEW = 5  # directions that are told one by one
LEVEL = 0.1  # of the loss, to tell basins at: above all ends of the curves of Keskar et al. (2017)
DROWNED = 10  # times its rounding, up to which a gradient has no direction


@dataclass(frozen=True, repr=False)
class Solution(Shown):
    """A point of parameter space, and what else the model's function depends on there.

    >>> import torch
    >>> Solution(torch.zeros(3), {"0.running_mean": torch.zeros(2)})
    Solution(theta=[0, 0, 0] float32 (3,), buffers={'0.running_mean'})
    """

    theta: Tensor  # (n,)  the trainable parameters
    buffers: dict[str, Tensor]  # by name: running means and the like, and frozen parameters


@dataclass(frozen=True, repr=False)
class Run(Record):
    """A training from its start to its end, or a checkpoint of somebody's, which has but an end.

    >>> from sharpness.training import TrainConfig, train
    >>> train(TrainConfig(batch_size=600, updates=5)).to_pandas().shape  # start and end
    (2, 6)
    """

    rows: ClassVar[str] = "update"
    start: Solution | None
    end: Solution
    # Where the training loss first met each of the levels, and after the updates, asked for.
    checkpoints: list[Solution]
    checkpoint_updates: Annotated[Tensor, "checkpoint"]  # (c,)  updates done there
    # (r,) each: updates, examples seen, train_loss, test_loss and, for a classifier, train_right
    # and test_right, the integer counts of right answers
    history: Annotated[dict[str, Tensor], "update"]
    optimizer: dict[str, Tensor]  # its state at the end, (n,) in the order of theta, and the steps
    train_index: Annotated[Tensor, "train_example"]  # (N,)  which examples of the data set
    test_index: Annotated[Tensor, "test_example"]
    updates: int
    # "stop_loss", "epochs", "updates", "examples", "patience", "early_stopping", "diverged", or
    # "read" for a checkpoint; spec["stop"] tells more of some
    stopped: str
    spec: dict[str, Any]

    @property
    def has_met(self) -> bool:
        """Whether the end is at the training loss that was asked for; True where none was."""
        goal = self.spec["train"].get("stop_loss")
        is_average = self.spec.get("average", {}).get("at") == "end"
        above = is_average and goal is not None and self.spec["end"]["train_loss"] > goal
        return goal is None or (self.stopped == "stop_loss" and not above)

    @property
    def points(self) -> dict[int, Solution]:
        """Start, checkpoints and end by the updates done; two may have been met at one look."""
        start = {} if self.start is None else {0: self.start}
        checkpoints = zip(self.checkpoint_updates.tolist(), self.checkpoints, strict=True)
        return start | dict(checkpoints) | {self.updates: self.end}


@dataclass(frozen=True, repr=False)
class Eigenpairs(Record):
    """Eigenpairs of a symmetric operator, in the order that was asked for.

    >>> import torch
    >>> from sharpness.curvature import Dense
    >>> from sharpness.lanczos import eigsh
    >>> pairs = eigsh(Dense(torch.diag(torch.tensor([2.0, 3.0]))), 2)
    >>> pairs.values.round(decimals=4), pairs.converged
    (tensor([3., 2.]), tensor([True, True]))
    """

    rows: ClassVar[str] = "pair"
    values: Annotated[Tensor, "pair"]  # (k,)
    vectors: Annotated[Tensor, "pair", "parameter"]  # (k, n)  orthonormal rows
    residuals: Annotated[Tensor, "pair"]  # (k,)  |A v - lambda v|
    # (k,)  standard errors as estimates for the data that the examples sample; 0 if they are all
    sampling_errors: Annotated[Tensor, "pair"]
    orthogonality: float  # largest entry of |V V^T - I|
    converged: Annotated[Tensor, "pair"]  # (k,)  bool: residual within tol, and check complete
    products: int  # operator-vector products until the pairs converged
    check_products: int  # others: two to probe the operator, and those that look for what is missed
    spec: dict[str, Any]


@dataclass(frozen=True, repr=False)
class Line(Record):
    """Loss and metrics at points of a line, or of another path, between a start and an end.

    >>> import torch
    >>> alphas = torch.tensor([0.0, 0.5, 1.0])
    >>> line = Line(alphas, {"loss": 4 * alphas * (1 - alphas)}, 2.0, {})
    >>> line
    Line(alphas=[0, 0.5, 1] float32 (3,), values={'loss'}, distance=2, spec={})
    >>> line.barrier()
    Barrier(height=1.0, above_chord=1.0, alpha=0.5)
    """

    rows: ClassVar[str] = "alphas"
    alphas: Annotated[Tensor, "alphas"]  # (p,)  0 is the start, 1 the end
    values: Annotated[dict[str, Tensor], "alphas"]  # (p,) each, such as "train_loss"
    distance: float  # |end - start|, so that alpha times it is a length in parameter space
    spec: dict[str, Any]

    def barrier(self, name: str | None = None) -> profiles.Barrier:
        """Return how far a loss, or the error where it is an accuracy, rises between the ends.

        Above the mean of both ends (Frankle et al. 2020), and above the straight line between
        them (Entezari et al. 2022).

        Args:
            name: One of ``values``. Default: the first loss.
        """
        return profiles.barrier(self.alphas, _rising(self.values, name))

    def basin(
        self, level: float = LEVEL, *, at: float = 0.0, name: str | None = None
    ) -> profiles.Basin:
        """Return the interval of alpha around a point in which the loss is below a level."""
        return profiles.basin(self.alphas, _rising(self.values, name), level, at=at)

    @property
    def level(self) -> float:
        """A level of the loss to tell basins at: 0.1, or twice the higher end where that is more.

        NaN where the grid has not both ends, or the loss is not finite there.
        """
        loss = self.values[_loss(self.values)]
        try:
            return _level(*(profiles.value(self.alphas, loss, end) for end in (0.0, 1.0)))
        except InputError:
            return math.nan

    def monotone(self, name: str | None = None) -> profiles.Monotone:
        """Return the largest rise and fall of a loss or an error between the ends."""
        return profiles.monotone(self.alphas, _rising(self.values, name))


@dataclass(frozen=True, repr=False)
class Cut(Record):
    """Loss and metrics at the points center + alpha d, along one direction d or several.

    Beside them is what the gradient and the Hessian say of the loss that the spec names: along d
    it is f + slope alpha + 1/2 curvature alpha^2, to second order.

    >>> import torch
    >>> from sharpness.cuts import cut
    >>> from sharpness.objective import Objective
    >>> model = torch.nn.Linear(1, 1, bias=False).double()
    >>> one = torch.ones(1, 1).double()
    >>> f = Objective(model, [(one, one)], torch.nn.functional.mse_loss)  # (x - 1)^2
    >>> found = cut(f, torch.zeros(1).double(), one, alphas=torch.tensor([-1.0, 0.0, 1.0]))
    >>> found.slopes, found.curvatures, torch.equal(found.quadratic(), found.values["loss"])
    (tensor([-2.], dtype=torch.float64), tensor([2.], dtype=torch.float64), True)
    """

    rows: ClassVar[str] = "direction"
    alphas: Annotated[Tensor, "alphas"]  # (p,)  0 is the center
    directions: Annotated[Tensor, "direction", "parameter"]  # (k, n)  d, as rows
    lengths: Annotated[Tensor, "direction"]  # (k,)  |d|: alpha times it is a length
    values: Annotated[dict[str, Tensor], "direction", "alphas"]  # (k, p) each, as "train_loss"
    slopes: Annotated[Tensor, "direction"]  # (k,)  gradient^T d; NaN if not asked for
    curvatures: Annotated[Tensor, "direction"]  # (k,)  d^T H d, the second derivative in alpha
    # (k,)  standard errors as estimates for the data that the examples sample; 0 if they are all
    curvature_sampling_errors: Annotated[Tensor, "direction"]
    loss: float  # of which the quadratic is, at the center
    norm: float  # |theta| of the center
    spec: dict[str, Any]

    def quadratic(self) -> Tensor:
        """Return f + slope alpha + 1/2 curvature alpha^2 at the points, (k, p)."""
        x = self.alphas.double()
        return self.loss + self.slopes[:, None] * x + self.curvatures[:, None] * x.square() / 2

    @property
    def level(self) -> float:
        """A level of the loss to tell basins at: 0.1, or twice the loss at the center."""
        return _level(self.loss)

    @property
    def is_band(self) -> bool:
        """Whether the directions are draws of one kind, or too many to be told one by one."""
        return self.spec.get("directions", {}).get("kind") == "random" or len(self.lengths) > FEW

    @property
    def title(self) -> str:
        """What it is along, in words."""
        made = self.spec.get("directions", {})
        count, kind = len(self.directions), made.get("kind", "given")
        noun = {"random": "random direction", "eigenvectors": "eigenvector"}.get(kind, "direction")
        words = "along the gradient" if kind == "gradient" else f"along {count} {noun}"
        words += "s" if count > 1 else ""
        normalization = made.get("normalization", "none")
        words += "" if normalization == "none" else f", {normalization} normalization"
        ignored = made.get("ignore", [])
        words += f", without {' and '.join(ignored)}" if ignored else ""
        return words + (", orthogonal" if made.get("orthogonal") else "")

    def basin(self, i: int = 0, level: float = LEVEL, *, name: str | None = None) -> profiles.Basin:
        """Return the interval of alpha around the center in which the loss is below a level.

        Args:
            i: Which direction.
            name: One of ``values``. Default: the first loss.
        """
        return profiles.basin(self.alphas, _rising(self.values, name)[i], level)


@dataclass(frozen=True, repr=False)
class Sharpness(Record):
    """Keskar's Metric 2.1: the largest rise of the loss in a box, in percent of 1 + loss.

    The value is a lower bound of the maximum: the best of all points that were tried.

    >>> import torch
    >>> from sharpness.box_sharpness import epsilon_sharpness
    >>> from sharpness.objective import Objective
    >>> model = torch.nn.Linear(1, 1, bias=False).double()
    >>> one = torch.ones(1, 1).double()
    >>> f = Objective(model, [(one, 0 * one)], lambda z, y: z.mean())  # linear: f = x
    >>> found = epsilon_sharpness(f, torch.zeros(1).double(), epsilon=0.1)
    >>> round(found.value, 9), round(found.first_order_share, 9)  # 100 epsilon, all of first order
    (10.0, 1.0)
    """

    rows: ClassVar[str] = "start"
    later: ClassVar[Mapping[str, Callable[[Mapping[str, Any]], Any]]] = {
        "why": lambda of: "",
        "bounds": lambda of: {},
        "products": lambda of: 0,
        "forwards": lambda of: 0,
        "start": lambda of: [f"start {i + 1}" for i in range(len(of["start_values"]))],
        "start_begins": lambda of: torch.full_like(of["start_values"], torch.nan),
        "start_iterations": lambda of: torch.full_like(of["start_gradients"], -1),
    }
    value: float  # 100 (maximum - loss) / (1 + loss)
    epsilon: float  # the box is |y_i| <= epsilon (|theta_i| + 1)
    loss: float  # at the center
    maximum: float  # the loss at center + displacement
    first_order: float  # the same metric of the linear model of the loss, from its gradient
    rounding: float  # one unit in the last place of the maximum, as a value of the metric
    sampling_error: float  # of the value, as an estimate for the data that the examples sample
    on_bounds: float  # share of coordinates of the displacement that lie on the box
    # Of a value of at most 0.01 or ten times the rounding, else "": "stuck" where no start moved
    # or what must be there was not found, "at float precision" where rounding hides what there may
    # be, "truly flat" where a ceiling of the model is as small, "unknown" without such a ceiling
    why: str
    # () each, as values of the metric: bounds of the quadratic model of the loss by name, of
    # which the last two are ceilings, NaN where a search did not converge; none if not asked for
    bounds: dict[str, Tensor]
    gradients: int  # evaluations of loss and gradient, over all starts
    products: int  # curvature times vector, for the bounds
    forwards: int  # evaluations of the loss alone
    displacement: Annotated[Tensor, "parameter"]  # (n,)  the y that gives the maximum
    start: Annotated[list[str], "start"]  # s names
    start_values: Annotated[Tensor, "start"]  # (s,)  the value that each start reached
    start_begins: Annotated[Tensor, "start"]  # (s,)  that at the start itself
    start_on_bounds: Annotated[Tensor, "start"]  # (s,)  share of coordinates on the box there
    start_iterations: Annotated[Tensor, "start"]  # (s,)  int: steps that it took, -1 unknown
    start_gradients: Annotated[Tensor, "start"]  # (s,)  int
    start_signs: Annotated[Tensor, "start"]  # (s,)  bool: by signs or flips, else by L-BFGS-B
    spec: dict[str, Any]

    @property
    def first_order_share(self) -> float:
        """Part of the value that a loss linear in theta would have; near 1 no curvature shows."""
        return self.first_order / self.value if self.value else float("nan")

    @property
    def ceiling(self) -> float:
        """The value that the quadratic model of the loss does not exceed; NaN where unknown."""
        known = [float(x) for name, x in self.bounds.items() if name.endswith("ceiling")]
        return min((x for x in known if not math.isnan(x)), default=math.nan)

    @property
    def factor(self) -> float:
        """By how much the maximum of the model may exceed the best vertex of it; NaN if unknown."""
        best = float(self.bounds.get("best_vertex", math.nan))
        return self.ceiling / best if best > 0 else math.nan


@dataclass(frozen=True, repr=False)
class SubspaceSharpness(Record):
    """Metric 2.1 in random subspaces, A of n x p: its mean over draws of A, and their spread.

    >>> import torch
    >>> from sharpness.box_sharpness import subspace_sharpness
    >>> from sharpness.objective import Objective
    >>> model = torch.nn.Linear(1, 1, bias=False).double()
    >>> one = torch.ones(1, 1).double()
    >>> f = Objective(model, [(one, 0 * one)], torch.nn.functional.mse_loss)
    >>> subspace_sharpness(f, dimension=1, draws=1).interval  # one draw tells no spread
    tensor([nan, nan], dtype=torch.float64)
    """

    rows: ClassVar[str] = "draw"
    later: ClassVar[Mapping[str, Callable[[Mapping[str, Any]], Any]]] = {
        "forwards": lambda of: 0,
        "draw_on_bounds": lambda of: torch.full_like(of["draw_values"], torch.nan),
    }
    value: float  # mean over the draws, each the best of its starts
    stderr: float  # of that mean; NaN with one draw
    interval: Annotated[Tensor, "bound"]  # (2,)  Student's 95 % interval of the mean
    epsilon: float  # the box is |z_i| <= epsilon (|(A^+ theta)_i| + 1)
    loss: float  # at the center
    gradients: int  # evaluations of loss and gradient, over all draws and starts
    forwards: int  # evaluations of the loss alone
    draw_values: Annotated[Tensor, "draw"]  # (d,)  the metric of each draw
    draw_first_order: Annotated[Tensor, "draw"]  # (d,)  that of the linear model of the loss
    draw_on_bounds: Annotated[Tensor, "draw"]  # (d,)  share of the p coordinates on the box
    spec: dict[str, Any]


@dataclass(frozen=True, repr=False)
class EpsilonTrend(Record):
    """Metric 2.1 in boxes of growing epsilon around one point; no value is below the one before.

    >>> import torch
    >>> from sharpness.box_trends import epsilon_trend
    >>> from sharpness.objective import Objective
    >>> model = torch.nn.Linear(1, 1, bias=False).double()
    >>> one = torch.ones(1, 1).double()
    >>> f = Objective(model, [(one, 0 * one)], lambda z, y: z.mean())  # linear: f = x
    >>> epsilon_trend(f, epsilons=(0.1, 0.2)).exponents.round(decimals=9)
    tensor([1., 1.], dtype=torch.float64)
    """

    rows: ClassVar[str] = "epsilon"
    epsilon: Annotated[Tensor, "epsilon"]  # (e,)  of the boxes, growing
    values: Annotated[Tensor, "epsilon"]  # (e,)  100 (maximum - loss) / (1 + loss)
    first_order: Annotated[Tensor, "epsilon"]  # (e,)  those of the linear model of the loss
    maxima: Annotated[Tensor, "epsilon"]  # (e,)  the loss at center + displacement
    # (e,)  of the values, as estimates for the data that the examples sample; 0 if they are all
    sampling_errors: Annotated[Tensor, "epsilon"]
    rounding: Annotated[Tensor, "epsilon"]  # (e,)  one unit in the last place of the maximum
    displacements: Annotated[Tensor, "epsilon", "parameter"]  # (e, n)  where the maxima are
    loss: float  # at the center
    gradients: int  # evaluations of loss and gradient, over all boxes and starts
    forwards: int  # evaluations of the loss alone
    spec: dict[str, Any]

    @property
    def first_order_shares(self) -> Tensor:
        """Part of each value that a loss linear in theta would have, (e,); NaN of a value of 0."""
        return torch.where(self.values > 0, self.first_order / self.values, torch.nan)

    @property
    def exponents(self) -> Tensor:
        """The slopes d log(value) / d log(epsilon), (e,), from neighbors; NaN beside a 0."""
        if len(self.epsilon) < 2:
            return torch.full_like(self.values, torch.nan)
        (slopes,) = torch.gradient(self.values.log(), spacing=(self.epsilon.log(),))
        return torch.where(slopes.isfinite(), slopes, torch.nan)


@dataclass(frozen=True, repr=False)
class Measured(Record):
    """One number that a measure of sharpness has at a point, with what certifies it and its cost.

    >>> import torch
    >>> b = torch.tensor([4.0, 6.0])
    >>> x = Measured("norm", 5.0, 0.5, b, torch.nan, 0.1, True, "", {}, {}, 0.0, 0.0, 1.0, {})
    >>> x.value, x.forwards
    (5.0, 1.0)
    """

    rows: ClassVar[str] = "sample"
    measure: str  # its name in ``measures.MEASURES``
    value: float  # NaN where it is undefined, as ``words`` says
    stderr: (
        float  # of what was left to chance or to a sample of the data; 0 if nothing, NaN unknown
    )
    interval: Annotated[Tensor, "bound"]  # (2,)  of 95 %, or bounds that are certain; NaN unknown
    threshold: float  # from which on the run's own optimizer is unstable; NaN where there is none
    loss: float  # at the point
    converged: bool  # whether what the words certify was reached
    words: str  # what certifies the value, or why there is none, in a sentence
    samples: Annotated[dict[str, Tensor], "sample"]  # (s,) each: what the value is made of
    details: dict[str, Tensor]  # further numbers by name, of any shape
    gradients: float  # passes over all the examples of the objective, of each kind:
    products: float  # curvature times vector
    forwards: float
    spec: dict[str, Any]  # "algorithm" is the measure, "options" are its arguments


@dataclass(frozen=True, repr=False)
class Invariance(Record):
    """Measures before and after changes of the weights that leave the function as it is.

    >>> import torch
    >>> one = torch.ones(1, 1).double()
    >>> x = {"before": one[0], "errors_before": 0 * one[0], "after": 4 * one, "errors_after": one}
    >>> words = {"measures": ["trace"], "symmetries": ["scaling"], "where": ["0 and 2"]}
    >>> found = Invariance(
    ...     **words, **x, moved=one > 0, converged=one > 0, searched=one[0] > 1,
    ...     function_change=0 * one[0], spec={}
    ... )
    >>> found.change
    tensor([[3.]], dtype=torch.float64)
    """

    rows: ClassVar[str] = "measure"
    measures: Annotated[list[str], "measure"]
    symmetries: Annotated[list[str], "symmetry"]
    where: Annotated[list[str], "symmetry"]  # the layers that are changed
    before: Annotated[Tensor, "measure"]  # (m,)  values, NaN where there is none
    errors_before: Annotated[Tensor, "measure"]  # (m,)  standard errors
    after: Annotated[Tensor, "measure", "symmetry"]  # (m, s)
    errors_after: Annotated[Tensor, "measure", "symmetry"]
    moved: Annotated[Tensor, "measure", "symmetry"]  # (m, s)  bool: by more than its accuracy
    converged: Annotated[Tensor, "measure", "symmetry"]  # (m, s)  bool: before and after
    searched: Annotated[Tensor, "measure"]  # (m,)  bool: the best that a search found
    # (s,)  largest change of an output relative to the largest output; of the loss for a shift
    function_change: Annotated[Tensor, "symmetry"]
    spec: dict[str, Any]

    @property
    def change(self) -> Tensor:
        """Relative changes after / before - 1, (m, s)."""
        return self.after / self.before[:, None] - 1

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame`` of the relative changes, measures by symmetries.

        Raises:
            InputError: If pandas is not installed.
        """
        frame = library("pandas").DataFrame(
            self.change.cpu().numpy(), index=self.measures, columns=self.symmetries
        )
        return frame.rename_axis(index=self.rows)


@dataclass(frozen=True, repr=False)
class Trajectory(Record):
    """Sharpness at the start, the checkpoints and the end of a training.

    >>> from sharpness.problem import objective_of
    >>> from sharpness.training import TrainConfig, train
    >>> from sharpness.trajectory import along_training
    >>> run = train(TrainConfig(model_options={"widths": []}, batch_size=600, updates=2))
    >>> along_training(objective_of(run), run).updates.tolist()
    [0, 2]
    """

    rows: ClassVar[str] = "updates"
    updates: Annotated[Tensor, "updates"]  # (c,) int: done at each point, ascending
    train_loss: Annotated[Tensor, "updates"]  # (c,)  of the examples that were used
    lambda_1: Annotated[Tensor, "updates"]  # (c,)  largest eigenvalue of the Hessian
    residuals: Annotated[Tensor, "updates"]  # (c,)  |H v - lambda_1 v|
    converged: Annotated[Tensor, "updates"]  # (c,) bool
    lambda_1_sampling_errors: Annotated[Tensor, "updates"]  # (c,)  0 if the data are whole
    metric_2_1: Annotated[Tensor, "updates"]  # (c,)  Keskar's, at least: the best of the starts
    first_order: Annotated[Tensor, "updates"]  # (c,)  that of the linear model of the loss
    metric_2_1_sampling_errors: Annotated[Tensor, "updates"]  # (c,)
    epsilon: float  # of Metric 2.1
    spec: dict[str, Any]


@dataclass(frozen=True, repr=False)
class Comparison(Record):
    """One number for each measure, group and seed, and contrasts of groups paired over seeds.

    >>> from sharpness.comparison import compared
    >>> values = {"lambda_1": {"SB": [1.0, 2.0], "LB": [2.0, 4.0]}}
    >>> reached = {"SB": [True, True], "LB": [True, True]}
    >>> found = compared(values, reached, [0, 1], {"LB / SB": ("LB", "SB")}, spec={})
    >>> found.ratios["lambda_1_ratio"].round(decimals=6)  # estimate, low, high
    tensor([[2., 2., 2.]], dtype=torch.float64)
    """

    groups: Annotated[list[str], "groups"]  # g names, such as "clean, LB 600"
    seeds: Annotated[Tensor, "seeds"]  # (s,)
    values: Annotated[dict[str, Tensor], "groups", "seeds"]  # (g, s) each, NaN where unknown
    reached: Annotated[Tensor, "groups", "seeds"]  # (g, s) bool: met the training loss asked for
    contrasts: Annotated[list[str], "contrasts"]  # c names, such as "clean: LB 600 against SB 8"
    # (c, 3) each: estimate, low, high of the 95 % interval; NaN bounds with fewer than two pairs
    ratios: Annotated[dict[str, Tensor], "contrasts", "bound"]  # of positive measures
    differences: Annotated[dict[str, Tensor], "contrasts", "bound"]
    pairs: Annotated[Tensor, "contrasts"]  # (c,) int: seeds whose two runs both count
    spec: dict[str, Any]

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame`` in long form: group, seed, reached, measure and value.

        Raises:
            InputError: If pandas is not installed.
        """
        rows = [
            (group, seed, reached, measure, value)
            for measure, numbers in self.values.items()
            for group, of_group, met in zip(
                self.groups, numbers.tolist(), self.reached.tolist(), strict=True
            )
            for seed, value, reached in zip(self.seeds.tolist(), of_group, met, strict=True)
        ]
        names = ["group", "seed", "reached", "measure", "value"]
        return library("pandas").DataFrame(rows, columns=names)


def _loss(values: dict[str, Tensor]) -> str:
    """Return the name of the first loss."""
    losses = [key for key in values if key == "loss" or key.endswith("_loss")]
    if not losses:
        raise InputError(f"values needs a loss, got {', '.join(values)}: name one of them")
    return losses[0]


def _rising(values: dict[str, Tensor], name: str | None) -> Tensor:
    """Return a loss, or an error, which like a loss is low where the network is right."""
    known = _loss(values) if name is None else name
    if known not in values:
        raise InputError(f"values needs one of {', '.join(values)}, got {name}: choose one")
    return 1 - values[known] if known.endswith("accuracy") else values[known]


def _level(*losses: float) -> float:
    if not all(map(math.isfinite, losses)):
        return math.nan
    return LEVEL if max(losses) < LEVEL else 2 * max(losses)


@dataclass(frozen=True, repr=False)
class Plane(Record):
    """Loss and metrics at the points center + alpha u + beta v, and what else lies there.

    Alpha times the first of ``lengths`` is a distance from the center in parameter space. On a
    path and at solutions, losses are those of the points themselves, wherever they lie; how far
    from the plane is beside them.

    >>> import torch
    >>> from sharpness.objective import Objective
    >>> from sharpness.planes import plane
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> f = Objective(model, [(torch.eye(2), torch.zeros(2, 1))], torch.nn.functional.mse_loss)
    >>> u, v = torch.eye(2)
    >>> found = plane(f, torch.zeros(2), u, v, alphas=torch.arange(2), betas=torch.arange(3))
    >>> found.to_pandas().head(3)  # (alpha^2 + beta^2) / 2
       alphas  betas  loss
    0     0.0    0.0   0.0
    1     0.0    1.0   0.5
    2     0.0    2.0   2.0
    """

    rows: ClassVar[str] = "point"
    alphas: Annotated[Tensor, "alphas"]  # (p,)  coordinates along u, ascending
    betas: Annotated[Tensor, "betas"]  # (q,)  along v
    values: Annotated[dict[str, Tensor], "alphas", "betas"]  # (p, q) each, such as "train_loss"
    axes: Annotated[list[str], "axes"]  # what u and v are, such as "random direction 1"
    directions: Annotated[Tensor, "axes", "parameter"]  # (2, n)  u and v
    lengths: Annotated[Tensor, "axes"]  # (2,)  |u| and |v|
    cosine: float  # of the angle between u and v
    norm: float  # |theta| at the center, to which distances can be compared
    path_updates: Annotated[Tensor, "path_updates"]  # (r,) int: updates done at points of a path
    path: Annotated[Tensor, "path_updates", "axes"]  # (r, 2)  their nearest points, in alpha, beta
    path_distances: Annotated[Tensor, "path_updates"]  # (r,)  to the plane
    path_values: Annotated[dict[str, Tensor], "path_updates"]  # (r,) each, such as "path_loss"
    explained: Annotated[Tensor, "axes"]  # (2,)  shares of the path's variance; NaN without one
    random_walk: Annotated[Tensor, "axes"]  # (2,)  of a random walk's, its first two components
    solutions: Annotated[list[str], "solutions"]  # s names of solutions beside the center
    solution_points: Annotated[Tensor, "solutions", "axes"]  # (s, 2)  their nearest points
    solution_distances: Annotated[Tensor, "solutions"]  # (s,)  to the plane
    solution_values: Annotated[dict[str, Tensor], "solutions"]  # (s,) each: "solution_loss"
    spec: dict[str, Any]

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame`` in long form: a row for each point of the grid.

        Raises:
            InputError: If pandas is not installed.
        """
        return _in_rows(self.alphas, self.betas, self.values)


@dataclass(frozen=True, repr=False)
class Convexity(Record):
    """The smallest and the largest eigenvalue of the Hessian at center + alpha u + beta v.

    NaN where the loss is not finite.

    >>> import torch
    >>> from sharpness.objective import Objective
    >>> from sharpness.planes import convexity
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> x = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> f = Objective(model, [(x, torch.zeros(2, 1))], torch.nn.functional.mse_loss)
    >>> u, v = torch.eye(2)
    >>> grid = {"alphas": torch.arange(2), "betas": torch.arange(2)}
    >>> convexity(f, torch.zeros(2), u, v, **grid).ratio.round(decimals=4)  # 1 / 4 everywhere
    tensor([[0.2500, 0.2500],
            [0.2500, 0.2500]], dtype=torch.float64)
    """

    rows: ClassVar[str] = "point"
    alphas: Annotated[Tensor, "alphas"]  # (p,)
    betas: Annotated[Tensor, "betas"]  # (q,)
    smallest: Annotated[Tensor, "alphas", "betas"]  # (p, q)
    largest: Annotated[Tensor, "alphas", "betas"]  # (p, q)
    smallest_residuals: Annotated[Tensor, "alphas", "betas"]  # (p, q)  |H v - lambda v|
    largest_residuals: Annotated[Tensor, "alphas", "betas"]  # (p, q)
    smallest_converged: Annotated[Tensor, "alphas", "betas"]  # (p, q) bool
    largest_converged: Annotated[Tensor, "alphas", "betas"]  # (p, q) bool
    axes: Annotated[list[str], "axes"]  # what u and v are
    directions: Annotated[Tensor, "axes", "parameter"]  # (2, n)  u and v
    lengths: Annotated[Tensor, "axes"]  # (2,)  |u| and |v|
    cosine: float  # of the angle between u and v
    norm: float  # |theta| at the center
    products: int  # Hessian-vector products of all points
    spec: dict[str, Any]

    @property
    def ratio(self) -> Tensor:
        """Smallest over largest eigenvalue, (p, q): at least 0 where the loss is convex.

        NaN where the largest is not positive, so that the sign tells nothing.
        """
        return torch.where(self.largest > 0, self.smallest / self.largest, torch.nan)

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame`` in long form: a row for each point of the grid.

        Raises:
            InputError: If pandas is not installed.
        """
        names = ["smallest", "largest"]
        names += [f"{name}_{more}" for more in ("residuals", "converged") for name in names]
        return _in_rows(self.alphas, self.betas, {name: getattr(self, name) for name in names})


def _in_rows(alphas: Tensor, betas: Tensor, values: dict[str, Tensor]) -> Any:
    """Return a table with a row for each point of a grid."""
    a, b = torch.meshgrid(alphas, betas, indexing="ij")
    columns = {"alphas": a, "betas": b, **values}
    return library("pandas").DataFrame(
        {name: column.flatten().cpu().numpy() for name, column in columns.items()}
    )


@dataclass(frozen=True, repr=False)
class Density(Record):
    """Quadrature nodes and weights of the spectrum of a symmetric operator, from random probes.

    A sum of f(lambda) over all n eigenvalues is, by each probe, (n - d) sum_j weights[i, j]
    f(nodes[i, j]), and the known eigenvalues beside. What is drawn or told of it comes with the
    interval over the probes, and costs no product.

    >>> import torch
    >>> from sharpness.curvature import Dense
    >>> from sharpness.spectrum import density
    >>> found = density(Dense(torch.eye(4)), probes=3)
    >>> found.moment(1)  # mean, low, high
    (1.0, 1.0, 1.0)
    """

    rows: ClassVar[str] = "probe"
    nodes: Annotated[Tensor, "probe", "step"]  # (s, m)  ascending; NaN where a probe needed fewer
    weights: Annotated[Tensor, "probe", "step"]  # (s, m)  they sum to 1 over the steps
    known: Annotated[Tensor, "pair"]  # (d,)  eigenvalues that were left out and count exactly
    size: int  # n, of the operator
    products: int  # operator-vector products
    check_products: int  # others, to probe the operator
    spec: dict[str, Any]

    def sum_of(self, f: Callable[[Tensor], Tensor]) -> densities.Interval:
        """Return the sum of f over all eigenvalues: mean, low and high of the 95 % interval.

        The bounds are NaN, unknown, with one probe. The interval is that over the probes. That m
        steps know f well is another matter: they do for polynomials up to degree 2m - 1, and the
        better the smoother f is where there are eigenvalues.
        """
        parts = self.nodes, self.weights, self.known, self.size
        return t_interval(densities.sums(*parts, f))

    def _mean_of(self, f: Callable[[Tensor], Tensor]) -> densities.Interval:
        mean, low, high = self.sum_of(f)
        return mean / self.size, low / self.size, high / self.size

    def moment(self, k: int) -> densities.Interval:
        """Return the mean of lambda^k over all eigenvalues: mean, low, high."""
        return self._mean_of(lambda x: x**k)

    def mass(self, low: float, high: float) -> densities.Interval:
        """Return the share of eigenvalues in [low, high]: mean, low, high, within 0 and 1."""
        found = self._mean_of(lambda x: ((x >= low) & (x <= high)).to(x))
        return found[0], max(found[1], 0.0), min(found[2], 1.0)

    @property
    def negative_mass(self) -> densities.Interval:
        """The share of eigenvalues below 0, by more than rounding: mean, low, high."""
        return self.mass(-math.inf, -self.rounding)

    @property
    def positive_mass(self) -> densities.Interval:
        """The share of eigenvalues above 0, by more than rounding: mean, low, high."""
        return self.mass(self.rounding, math.inf)

    @property
    def zero_mass(self) -> densities.Interval:
        """The share of eigenvalues that are 0 to rounding: mean, low, high."""
        inside = math.nextafter(self.rounding, 0.0)
        return self.mass(-inside, inside)

    @property
    def rounding(self) -> float:
        """The least magnitude of an eigenvalue that is not 0 to rounding."""
        scale = float(torch.cat([self.nodes.flatten(), self.known]).nan_to_num().abs().max())
        single = "float32" in str(self.spec.get("operator", {}))
        eps = torch.finfo(torch.float32 if single else torch.float64).eps
        return max(self.size**0.5 * eps * scale, math.ulp(0.0))

    def log_determinant(self, c: float) -> densities.Interval:
        """Return log det(A + c I), a sum over all eigenvalues: mean, low, high.

        Raises:
            InputError: If a node is at or below -c.
        """
        least = float(torch.cat([self.nodes[~self.nodes.isnan()], self.known]).min())
        if not least + c > 0:
            raise InputError(
                f"a log-determinant needs A + c I above 0, got c={c:g} and an eigenvalue of "
                f"{least:.3g}: raise c"
            )
        return self.sum_of(lambda x: torch.log(x + c))

    def effective_dimension(self, c: float) -> densities.Interval:
        """Return the sum of lambda / (lambda + c) over all eigenvalues above 0: mean, low, high.

        Raises:
            InputError: If c is not above 0.
        """
        if not c > 0:
            raise InputError(f"an effective dimension needs c above 0, got {c:g}: raise it")
        return self.sum_of(lambda x: x.clamp(min=0) / (x.clamp(min=0) + c))

    def on(self, grid: Tensor, width: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return the density on a grid, (p,) each: mean, low and high over the probes.

        Args:
            grid: Where, shape (p,).
            width: Standard deviation of the normal curve that each node becomes.

        Raises:
            InputError: If the width is not above 0.
        """
        if not width > 0:
            raise InputError(f"a density needs a width above 0, got {width:g}: raise it")
        parts = self.nodes, self.weights, self.known, self.size
        return densities.smoothed(*parts, grid.double(), width)

    def on_log(self, grid: Tensor, width: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return the density of log10 |lambda| on a grid of such logarithms (Papyan 2020).

        The arguments and what is returned are those of ``on``. An eigenvalue of 0 has none, and
        lies far to the left.
        """
        logs = replace(
            self,
            nodes=self.nodes.abs().clamp(min=1e-300).log10(),
            known=self.known.abs().clamp(min=1e-300).log10(),
        )
        return logs.on(grid, width)

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame`` with a row for each node of each probe, and its weight.

        Raises:
            InputError: If pandas is not installed.
        """
        probe, step = (~self.nodes.isnan()).nonzero(as_tuple=True)
        columns = {
            "probe": probe,
            "step": step,
            "nodes": self.nodes[probe, step],
            "weights": self.weights[probe, step],
        }
        return library("pandas").DataFrame({k: x.cpu().numpy() for k, x in columns.items()})


@dataclass(frozen=True, repr=False)
class Estimate(Record):
    """A number estimated from random probes, with its interval.

    >>> import torch
    >>> from sharpness.curvature import Dense
    >>> from sharpness.spectrum import trace
    >>> trace(Dense(torch.eye(4)), method="hutchinson", probes=2).interval
    tensor([4., 4.], dtype=torch.float64)
    """

    rows: ClassVar[str] = "sample"
    quantity: str  # what is estimated
    value: float
    stderr: float  # NaN with one sample
    interval: Annotated[Tensor, "bound"]  # (2,)  Student's 95 % interval; NaN with one sample
    exact: float  # the part of the value that is not left to chance
    samples: Annotated[Tensor, "sample"]  # (s,)  whose mean is the rest
    met: bool  # the relative tolerance, if one was asked for
    products: int
    check_products: int  # others, to probe the operator
    spec: dict[str, Any]


@dataclass(frozen=True, repr=False)
class Diagonal(Record):
    """The diagonal of an operator, estimated from random probes.

    >>> import torch
    >>> from sharpness.curvature import Dense
    >>> from sharpness.spectrum import diagonal
    >>> diagonal(Dense(torch.eye(4)), method="bekas", probes=2).stderr
    tensor([0., 0., 0., 0.], dtype=torch.float64)
    """

    rows: ClassVar[str] = "parameter"
    values: Annotated[Tensor, "parameter"]  # (n,)
    stderr: Annotated[Tensor, "parameter"]  # (n,)
    samples: int
    products: int
    check_products: int  # others, to probe the operator
    spec: dict[str, Any]


@dataclass(frozen=True, repr=False)
class Layers(Record):
    """Trace, largest eigenvalue and norm of each diagonal block of an operator, and of the whole.

    The blocks are those of parameter tensors, modules or groups. Traces are ``exact`` plus the mean
    of ``samples``, so that those of all layers add up to that of the whole. Squares are squared
    Frobenius norms: those of the blocks do not add up, for the whole has what is between them too.

    >>> import torch
    >>> from sharpness.by_layer import layers
    >>> from sharpness.curvature import Dense
    >>> groups = {"a": torch.tensor([0, 1]), "b": torch.tensor([2])}
    >>> found = layers(Dense(torch.diag(torch.tensor([3.0, 4.0, 1.0]))), groups=groups)
    >>> found.layer, found.traces.tolist(), found.shares.tolist(), found.norms.tolist()
    (['a', 'b'], [7.0, 1.0], [0.875, 0.125], [5.0, 1.0])
    """

    rows: ClassVar[str] = "layer"
    layer: Annotated[list[str], "layer"]  # L names, in the order of the parameters
    sizes: Annotated[Tensor, "layer"]  # (L,) int: unknowns of each
    traces: Annotated[Tensor, "layer"]  # (L,)
    trace_stderr: Annotated[Tensor, "layer"]  # (L,)  0 of what is known, NaN with one sample
    trace_low: Annotated[Tensor, "layer"]  # (L,)  Student's 95 % interval
    trace_high: Annotated[Tensor, "layer"]
    shares: Annotated[Tensor, "layer"]  # (L,)  of the whole trace; NaN where that may be 0
    share_low: Annotated[Tensor, "layer"]  # (L,)  Fieller's 95 % interval
    share_high: Annotated[Tensor, "layer"]
    lambda_1: Annotated[Tensor, "layer"]  # (L,)  the largest eigenvalue of the block
    residuals: Annotated[Tensor, "layer"]  # (L,)  |B v - lambda_1 v| of the block B
    converged: Annotated[Tensor, "layer"]  # (L,) bool
    # (L,)  of lambda_1 as an estimate for the data that the examples sample; 0 if they are all
    sampling_errors: Annotated[Tensor, "layer"]
    squares: Annotated[Tensor, "layer"]  # (L,)  squared Frobenius norm of the block
    square_stderr: Annotated[Tensor, "layer"]
    square_low: Annotated[Tensor, "layer"]  # (L,)  95 % interval
    square_high: Annotated[Tensor, "layer"]
    exact: Annotated[Tensor, "layer"]  # (L,)  the part of the trace that is not left to chance
    samples: Annotated[Tensor, "sample", "layer"]  # (s, L)  whose means are the rest
    whole_trace: float  # of all layers together, as what follows
    whole_trace_stderr: float
    whole_trace_low: float
    whole_trace_high: float
    whole_lambda_1: float
    whole_residual: float
    whole_converged: bool
    whole_sampling_error: float
    whole_square: float
    whole_square_stderr: float
    whole_square_low: float
    whole_square_high: float
    vectors: Annotated[Tensor, "parameter"]  # (n,)  eigenvectors of lambda_1, each in its places
    whole_vector: Annotated[Tensor, "parameter"]  # (n,)
    products: int  # operator-vector products
    check_products: int  # others: of searches, and to probe the operator
    spec: dict[str, Any]

    @property
    def norms(self) -> Tensor:
        """Frobenius norms of the blocks, shape (L,)."""
        return self.squares.clamp(min=0).sqrt()

    @property
    def whole_norm(self) -> float:
        """The Frobenius norm of the whole."""
        return math.sqrt(max(self.whole_square, 0.0))

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame`` with a row for each layer, by its name.

        Raises:
            InputError: If pandas is not installed.
        """
        pandas = library("pandas")
        columns = {
            name: getattr(self, name).cpu().numpy()
            for name, kind, axes in layout(type(self))
            if kind is Tensor and axes == (self.rows,)
        }
        return pandas.DataFrame(columns, index=pandas.Index(self.layer, name=self.rows))


@dataclass(frozen=True, repr=False)
class BatchEigenvalues(Record):
    """The top eigenvalues of the curvature of each of M mini-batches, and of all the data.

    A value that did not converge is a lower bound, and does not count in means and quantiles.

    >>> import torch
    >>> from sharpness.by_batch import batch_eigenvalues
    >>> from sharpness.objective import Objective
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> x = torch.tensor([[1.0], [1.0], [2.0], [2.0]])
    >>> f = Objective(model, [(x, 0 * x)], torch.nn.functional.mse_loss)  # of curvature 2 x^2
    >>> found = batch_eigenvalues(f, batch_size=1)
    >>> found.quantiles([0.0, 1.0]), round(found.mean()[0], 6), found.whole_values
    (tensor([2., 8.], dtype=torch.float64), 5.0, tensor([5.], dtype=torch.float64))
    """

    rows: ClassVar[str] = "batch"
    values: Annotated[Tensor, "batch", "pair"]  # (M, k)  the most wanted first
    residuals: Annotated[Tensor, "batch", "pair"]  # (M, k)  |A v - lambda v|
    converged: Annotated[Tensor, "batch", "pair"]  # (M, k) bool
    losses: Annotated[Tensor, "batch"]  # (M,)  mean loss, without weight decay
    weights: Annotated[Tensor, "batch"]  # (M,)  in the mean over the data: counts of examples
    batch_products: Annotated[Tensor, "batch"]  # (M,) int: of each search, checks included
    whole_values: Annotated[Tensor, "pair"]  # (k,)  of all the data
    whole_residuals: Annotated[Tensor, "pair"]  # (k,)
    whole_converged: Annotated[Tensor, "pair"]  # (k,) bool
    # (k,)  standard errors as estimates for the data that the examples sample; 0 if they are all
    whole_sampling_errors: Annotated[Tensor, "pair"]
    whole_loss: float
    examples: int  # N, of which the mini-batches take M times the batch size
    batch_size: int
    products: int  # of all searches, that of the whole data and checks included
    spec: dict[str, Any]

    @property
    def counted(self) -> Tensor:
        """The values that converged, (M, k), NaN in the place of others."""
        return torch.where(self.converged, self.values, torch.nan)

    @property
    def left_out(self) -> int:
        """How many examples are in no mini-batch."""
        return self.examples - self.values.shape[0] * self.batch_size

    @property
    def is_partition(self) -> bool:
        """Whether the curvature of all the data is the mean of those of the mini-batches.

        The mean of their largest eigenvalues is at least that of all the data then, as the largest
        eigenvalue is convex in the matrix.
        """
        by_batch = (objective_spec(self.spec["operator"]) or {}).get("batch_norm") == "batch"
        alike = bool((self.weights == self.weights[0]).all())
        is_drawn = self.spec["matrix"] == "fisher"  # whose labels are other ones in the whole
        return not (self.left_out or by_batch or is_drawn) and alike

    def mean(self, i: int = 0) -> densities.Interval:
        """Return the mean of an eigenvalue over the mini-batches: mean, low, high.

        Student's 95 % interval takes the values for independent draws, as those of mini-batches
        of other examples from the same source are. The bounds are NaN, unknown, for fewer than two.

        Args:
            i: Which, 0 for the largest.
        """
        return t_interval(self.counted[:, i])

    def spread(self, i: int = 0) -> float:
        """Return the standard deviation over the mini-batches, NaN for fewer than two."""
        known = self._known(i)
        return float(known.std()) if len(known) > 1 else math.nan

    def quantiles(self, levels: Sequence[float], i: int = 0) -> Tensor:
        """Return quantiles over the mini-batches, NaN if none converged.

        Args:
            levels: Between 0 and 1; 0.5 is the median.
            i: Which eigenvalue, 0 for the largest.

        Raises:
            InputError: If a level is not between 0 and 1.
        """
        known, at = self._known(i), torch.tensor(levels, dtype=torch.float64)
        if not ((at >= 0) & (at <= 1)).all():
            raise InputError(f"quantiles need levels from 0 to 1, got {list(levels)}: change them")
        return known.quantile(at) if len(known) else torch.full_like(at, torch.nan)

    def _known(self, i: int) -> Tensor:
        return self.values[:, i][self.converged[:, i]].double()

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame`` in long form: a row for each pair of each mini-batch.

        Raises:
            InputError: If pandas is not installed.
        """
        count, k = self.values.shape
        batch, pair = torch.meshgrid(torch.arange(count), torch.arange(k), indexing="ij")
        columns = {"batch": batch, "pair": pair}
        columns |= {name: getattr(self, name) for name in ("values", "residuals", "converged")}
        columns["losses"] = self.losses[:, None].expand(count, k)
        return library("pandas").DataFrame(
            {name: column.flatten().cpu().numpy() for name, column in columns.items()}
        )


@dataclass(frozen=True, repr=False)
class ClassStructure(Record):
    """The top of the Gauss-Newton matrix G of a cross-entropy, and what of it classes explain.

    G1 is the second moment of the means of the C classes, G1 + G2 that of their C (C - 1) pairs.
    Numbers are NaN where they are unknown, and of a class without an example.

    >>> import torch
    >>> from sharpness.by_class import class_structure
    >>> from sharpness.objective import Objective
    >>> model = torch.nn.Linear(1, 2, bias=False).double()
    >>> _ = torch.nn.init.zeros_(model.weight)
    >>> data = [(torch.ones(2, 1).double(), torch.tensor([0, 1]))]
    >>> f = Objective(model, data, torch.nn.functional.cross_entropy)
    >>> found = class_structure(f)  # of the logistic model, with gradients that are opposite
    >>> found.cosines.round().tolist()
    [[1.0, -1.0], [-1.0, 1.0]]
    """

    rows: ClassVar[str] = "pair"
    values: Annotated[Tensor, "pair"]  # (k,)  of G
    residuals: Annotated[Tensor, "pair"]  # (k,)  |G v - lambda v|
    converged: Annotated[Tensor, "pair"]  # (k,)  bool
    # (k,)  standard errors as estimates for the data that the examples sample; 0 if they are all
    sampling_errors: Annotated[Tensor, "pair"]
    gradient_shares: Annotated[Tensor, "pair"]  # (k,)  of |g|^2, in the first 1, ..., k vectors
    gradient_share_errors: Annotated[Tensor, "pair"]  # (k,)  bounds
    hessian_values: Annotated[Tensor, "hessian_pair"]  # (C + 1,)
    hessian_residuals: Annotated[Tensor, "hessian_pair"]  # (C + 1,)
    hessian_converged: Annotated[Tensor, "hessian_pair"]  # (C + 1,)  bool
    hessian_gradient_shares: Annotated[Tensor, "hessian_pair"]  # (C + 1,)
    hessian_gradient_share_errors: Annotated[Tensor, "hessian_pair"]  # (C + 1,)
    mean_values: Annotated[Tensor, "rank"]  # (C,)  of G1; 0 beyond the classes that there are
    # (C,)  mean squared cosines of the angles between the first 1, ..., C vectors of G1 and of G
    overlaps: Annotated[Tensor, "rank"]
    overlap_errors: Annotated[Tensor, "rank"]  # (C,)  bounds
    pair_values: Annotated[Tensor, "class_pair"]  # (C (C - 1),)  of G1 + G2; none if not asked for
    gram: Annotated[Tensor, "class", "other_class"]  # (C, C)  of sqrt(w_c) times the class means
    class_weights: Annotated[Tensor, "class"]  # (C,)  in the loss; their sum is 1
    error_weights: Annotated[Tensor, "class"]  # (C,)  w_c, that part times the mean of 1 - p_y
    gradient_norm: float
    gradient_rounding: float  # an estimate of the norm of what is but rounding in it
    products: int  # operator-vector products, of G and of the Hessian
    check_products: int  # others, to probe the operators and for what is missed
    backward_passes: int  # others, for means, gradient and its rounding
    spec: dict[str, Any]

    @property
    def classes(self) -> int:
        """C, the number of outputs."""
        return len(self.gram)

    @property
    def cosines(self) -> Tensor:
        """The cosines between class means, (C, C)."""
        sizes = self.gram.diagonal().sqrt()
        return (self.gram / sizes / sizes[:, None]).clamp(-1, 1)

    @property
    def absent(self) -> list[int]:
        """The classes without an example that weighs anything."""
        return [c for c, weight in enumerate(self.class_weights.tolist()) if not weight > 0]

    @property
    def outliers(self) -> int:
        """How many eigenvalues of G are above the largest ratio of neighbors, of the first 3 C.

        Those that are 0 to rounding do not count.
        """
        return densities.outliers(self._told, 3 * self.classes)

    @property
    def gap(self) -> float:
        """The ratio of the last outlier to the eigenvalue after it; NaN where there is none."""
        count, told = self.outliers, self._told
        is_there = 0 < count < len(told) and told[count] > 0
        return float(told[count - 1] / told[count]) if is_there else math.nan

    @property
    def _told(self) -> Tensor:
        """The eigenvalues of G, 0 where they are to rounding."""
        eps = torch.finfo(self.values.dtype).eps
        least = (100 * eps * self.values.abs().max()).clamp(min=self.residuals)
        return torch.where(self.values > least, self.values, 0.0)

    @property
    def is_drowned(self) -> bool:
        """Whether the gradient is hardly more than rounding, so that it has no direction."""
        return not self.gradient_norm > DROWNED * self.gradient_rounding


Result = (
    Run
    | Eigenpairs
    | Line
    | Cut
    | Sharpness
    | SubspaceSharpness
    | EpsilonTrend
    | Measured
    | Invariance
    | Trajectory
    | Comparison
    | Plane
    | Convexity
    | Density
    | Estimate
    | Diagonal
    | Layers
    | BatchEigenvalues
    | ClassStructure
)
RESULTS: dict[str, type[Result]] = {
    "Run": Run,
    "Eigenpairs": Eigenpairs,
    "Line": Line,
    "Cut": Cut,
    "Sharpness": Sharpness,
    "SubspaceSharpness": SubspaceSharpness,
    "EpsilonTrend": EpsilonTrend,
    "Measured": Measured,
    "Invariance": Invariance,
    "Trajectory": Trajectory,
    "Comparison": Comparison,
    "Plane": Plane,
    "Convexity": Convexity,
    "Density": Density,
    "Estimate": Estimate,
    "Diagonal": Diagonal,
    "Layers": Layers,
    "BatchEigenvalues": BatchEigenvalues,
    "ClassStructure": ClassStructure,
}
