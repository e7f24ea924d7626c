"""The kinds of values and the options that commands share."""

import difflib
import json
import math
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import click
from click.shell_completion import CompletionItem

from sharpness.names import is_array_file

from .configuration import read_options
from .logs import show_logs

if TYPE_CHECKING:
    Kind = click.ParamType[Any]
else:
    Kind = click.ParamType  # generic only since click 8.4

COMMON = {"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 100}
MEMORY = "8GiB"
F = TypeVar("F", bound=Callable[..., Any])


class Real(Kind):
    """A finite number, above or at least a bound."""

    name = "number"

    def __init__(self, *, above: float | None = None, least: float | None = None) -> None:
        self.above, self.least = above, least

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Return the number, or fail in one line."""
        try:
            number = float(value)
        except ValueError:
            self.fail(f"needs a number, got {value!r}", param, ctx)
        if not math.isfinite(number):
            self.fail(f"needs a finite number, got {value!r}", param, ctx)
        if self.above is not None and not number > self.above:
            self.fail(f"needs a number above {self.above:g}, got {value}", param, ctx)
        if self.least is not None and not number >= self.least:
            self.fail(f"needs a number of at least {self.least:g}, got {value}", param, ctx)
        return number


class Whole(Kind):
    """A whole number between two bounds that fits in 64 bits."""

    name = "integer"

    def __init__(self, least: int = 0, most: int = 2**63 - 1) -> None:
        self.least, self.most = least, most

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        """Return the number, or fail in one line."""
        try:
            number = int(value)
        except ValueError:
            self.fail(f"needs a whole number, got {value!r}", param, ctx)
        if number < self.least:
            self.fail(f"needs a whole number of at least {self.least}, got {value}", param, ctx)
        if number > self.most:
            self.fail(f"needs a whole number of at most {self.most}, got {value}", param, ctx)
        return number


class Bytes(Kind):
    """An amount of memory, such as 500MB or 4GiB."""

    name = "bytes"
    UNITS: ClassVar[dict[str, int]] = {
        "": 1,
        **{f"{letter}B": 10 ** (3 * i) for i, letter in enumerate("KMGT", start=1)},
        **{f"{letter}iB": 2 ** (10 * i) for i, letter in enumerate("KMGT", start=1)},
    }

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        """Return the number of bytes, or fail in one line."""
        digits = str(value).rstrip("KMGTiB")
        unit = str(value)[len(digits) :]
        try:
            amount = float(digits) * self.UNITS[unit]
        except (ValueError, KeyError):
            self.fail(f"needs an amount of memory such as 500MB or 4GiB, got {value!r}", param, ctx)
        if not 1 <= amount < 2**63:
            self.fail(f"needs an amount of memory above 0, got {value!r}", param, ctx)
        return int(amount)


class Grid(Kind):
    """START:END:POINTS, evenly spaced."""

    name = "start:end:points"

    def convert(self, value: Any, param: Any, ctx: Any) -> list[float]:
        """Return start, end and the number of points, or fail in one line."""
        if isinstance(value, list):
            return value
        try:
            start, end, points = (float(x) for x in value.split(":"))
        except ValueError:
            self.fail(f"needs START:END:POINTS, got {value!r}", param, ctx)
        if not (math.isfinite(start) and math.isfinite(end) and start < end):
            self.fail(f"needs a finite START below END, got {value!r}", param, ctx)
        if not 2 <= points <= 10**6 or points != int(points):
            self.fail(f"needs 2 to 1000000 points, got {value.split(':')[2]}", param, ctx)
        return [start, end, int(points)]


class Several(Kind):
    """Values of one kind with commas between them, such as 8,60,600."""

    def __init__(self, kind: Kind) -> None:
        self.kind, self.name = kind, f"{kind.name},..."

    def convert(self, value: Any, param: Any, ctx: Any) -> list[Any]:
        """Return the values, or fail in one line."""
        parts = value if isinstance(value, list | tuple) else str(value).split(",")
        return [self.kind.convert(part, param, ctx) for part in parts]


class Options(Kind):
    """A JSON object, such as ``{"widths": [64, 64]}``."""

    name = "json"

    def convert(self, value: Any, param: Any, ctx: Any) -> dict[str, Any]:
        """Return the object, or fail in one line."""
        if isinstance(value, dict):
            return value
        try:
            options = json.loads(value)
        except (json.JSONDecodeError, RecursionError) as error:
            self.fail(f"needs a JSON object, got {value!r} ({error})", param, ctx)
        if not isinstance(options, dict):
            self.fail(f"needs a JSON object, got {value!r}", param, ctx)
        return options


class Name(Kind):
    """A name of one of the library's tables; ``module:function`` or a file where that is allowed.

    The table is looked up when it is needed, so that no import waits for torch.
    """

    name = "name"

    def __init__(
        self, home: str, table: str, *, functions: bool = False, files: bool = False
    ) -> None:
        self.home, self.table, self.functions, self.files = home, table, functions, files

    def names(self) -> list[str]:
        """Return the names in the table."""
        return list(getattr(import_module(f"sharpness.{self.home}"), self.table))

    def get_metavar(self, param: Any, ctx: Any) -> str:
        """Return the choices for the help."""
        more = ["MODULE:FUNCTION"] * self.functions + ["FILE"] * self.files
        return f"[{'|'.join([*self.names(), *more])}]"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        """Return the name; one with a colon is looked up by the library."""
        other = (self.functions and ":" in value) or (self.files and is_array_file(value))
        if value not in self.names() and not other:
            more = " or MODULE:FUNCTION" * self.functions + " or FILE.npz or FILE.h5" * self.files
            close = difflib.get_close_matches(str(value), self.names(), 1)
            hint = f": did you mean {close[0]}?" if close else ""
            choices = ", ".join(self.names())
            self.fail(f"needs one of {choices}{more}, got {value!r}{hint}", param, ctx)
        return str(value)

    def shell_complete(self, ctx: Any, param: Any, incomplete: str) -> list[CompletionItem]:
        """Return the names that begin so, for the completion of a shell."""
        return [CompletionItem(name) for name in self.names() if name.startswith(incomplete)]


def chained(*options: Callable[[Any], Any]) -> Callable[[F], F]:
    """Return one decorator of several options, shown in the help in this order."""

    def decorate(f: F) -> F:
        for option in reversed(options):
            f = option(f)
        return f

    return decorate


model = click.option("--model", type=Name("models", "MODELS", functions=True), help="The network.")
data = click.option(
    "--data", type=Name("data", "DATA", functions=True, files=True), help="The data set."
)
data_options = click.option(
    "--data-options", type=Options(), help="Of the data set and what is made of it, as JSON."
)
loss = click.option("--loss", type=Name("problem", "LOSSES", functions=True), help="The loss.")
model_options = click.option(
    "--model-options", type=Options(), help="Arguments of the network's function, as JSON."
)
overwrite = click.option(
    "--overwrite", is_flag=True, help="Replace an output of another request once the new is whole."
)
reporting = chained(
    click.option(
        "--config",
        metavar="FILE",
        is_eager=True,  # before the options that it gives
        expose_value=False,  # a request holds what it says and not where
        callback=read_options,
        help="Options by their names from a TOML file; those given here win.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
    click.option("-q", "--quiet", is_flag=True, help="No progress and no notes on stderr."),
    click.option(
        "-v",
        "--verbose",
        is_flag=True,
        expose_value=False,
        callback=show_logs,
        help="Tell on stderr what is read and computed, and how long it takes.",
    ),
    click.option("--debug", is_flag=True, help="Show the traceback of an error."),
)
trust_spec = click.option(
    "--trust-spec", is_flag=True, help="Import the MODULE:FUNCTION that a run's file names."
)
# What tells where a solution comes from: for a checkpoint all that a run's file knows by itself.
source = chained(
    model,
    model_options,
    data,
    data_options,
    loss,
    click.option(
        "--train-examples", type=Whole(1), help="Size of the training part, for a checkpoint."
    ),
    click.option("--label-noise", type=Real(least=0), help="Share of moved labels, likewise."),
    click.option("--split-seed", type=Whole(), help="Seed of the split, likewise."),
    click.option("--key", help="Where the weights are in the file, likewise."),
    click.option("--max-bytes", type=Bytes(), help="Of its file; 16GiB by default."),
    trust_spec,
)
# Of which matrix, for ``sources.curvature``.
operator = chained(
    click.option(
        "--operator",
        type=Name("operators", "OPERATORS"),
        default="hessian",
        help="Of which matrix.",
    ),
    click.option(
        "--draws", type=Whole(1), help="Labels drawn for each target, of fisher.  [default: 1]"
    ),
    click.option(
        "--weight-decay",
        type=Real(least=0),
        default=0.0,
        help="Add so many times the identity, as a penalty of the loss would.",
    ),
    click.option(
        "--decayed",
        type=Several(click.STRING),
        metavar="PATTERN,...",
        help="Parameters with weight decay, by name or pattern.  [default: all]",
    ),
    click.option(
        "--params",
        type=Several(click.STRING),
        metavar="PATTERN,...",
        help="The block of these parameters alone, such as '0,*.bias'.",
    ),
)
engine = click.option(
    "--engine",
    type=Name("curvature", "ENGINES"),
    help="Keep the graphs of all batches, build them fresh for each product, or, where there is no "
    "second derivative, take differences of gradients.  [default: cached where they fit in "
    "memory, else fresh]",
)
deflate = click.option(
    "--deflate",
    type=Whole(0),
    default=0,
    help="Compute so many top eigenpairs first, which then count exactly: the probes are spent on "
    "the rest.",
)
split = click.option(
    "--split", type=Name("problem", "PARTS"), default="train", help="Part of the data."
)
numerics = chained(
    click.option(
        "--examples",
        type=Whole(1),
        help="Use a stratified sample of this size; eigenvalues and measures tell its error.",
    ),
    click.option("--dtype", type=Name("problem", "DTYPES"), help="Default: that of the run."),
    click.option("--device", help="cpu, cuda or cuda:N.  [default: cuda where there is one]"),
    click.option(
        "--micro-batch",
        type=Whole(1),
        help="Examples of one batch.  [default: by what the model keeps of each, at most 1024]",
    ),
    click.option("--seed", type=Whole(), default=0, help="Of all random numbers."),
    click.option(
        "--memory",
        type=Bytes(),
        default=MEMORY,
        help="For what is kept beside the model: half for the data or vectors, half for graphs.",
    ),
    click.option(
        "--fast-gemm",
        is_flag=True,
        help="Take float32 products of matrices by oneDNN, refused on a CPU where it rounds more.",
    ),
)
POLICIES = Name("batch_norm", "BATCH_NORM")
NORMALIZES = (
    "What BatchNorm normalizes by: the running statistics of the solution (frozen), those of each "
    "batch, or those of the training part, taken at every point (reestimate)."
)
evaluation = chained(
    numerics,
    click.option("--bn", type=POLICIES, default="frozen", help=NORMALIZES),
)
analysis = chained(split, evaluation)
# What is done to directions in parameter space.
rescaling = chained(
    click.option(
        "--normalize",
        type=Name("directions", "NORMALIZATIONS"),
        help="What of theta gives directions their scale.  "
        "[default: filter of random ones, else none]",
    ),
    click.option(
        "--ignore",
        type=Several(Name("directions", "IGNORABLE")),
        help="Parameters that directions leave as they are: bias, norm or both, with a comma.",
    ),
    click.option("--orthogonal", is_flag=True, help="Make the directions orthogonal."),
)
