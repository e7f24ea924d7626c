"""The command ``sharpness``: each command is a load, a library call, a save and a print."""

import difflib
import errno
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import click
from click.shell_completion import CompletionItem

from sharpness._version import __version__
from sharpness.errors import ComputationError, InputError, is_out_of_memory
from sharpness.signals import Stopped, answered

from .logs import logs_of_one_command
from .parameters import COMMON

# Name: module of this package, one line of help. A command is imported at its first use, so that
# ``sharpness --help`` does not wait for torch. A module ``list`` would hide the function here.
COMMANDS = {
    "train": ("train", "Train one network and record the run."),
    "eigs": ("eigs", "Top eigenvalues of the Hessian at a solution."),
    "density": ("density", "The density of the whole spectrum, from random probes."),
    "trace": ("trace", "Trace, Frobenius norm or diagonal of the Hessian, estimated."),
    "layers": ("layers", "Trace, lambda_1 and norm of the Hessian layer by layer."),
    "batches": ("batches", "Top eigenvalues of each mini-batch, beside those of all the data."),
    "classes": ("classes", "What of the curvature belongs to classes, and of the gradient to it."),
    "line": ("line", "Loss and accuracy on the line between two solutions."),
    "plane": ("plane", "Loss and accuracy on a plane, or where it is convex there."),
    "measure": ("measure", "Measures of sharpness at solutions."),
    "invariance": ("invariance", "Which measures move where the function does not."),
    "along": ("along", "Sharpness along a training, at its checkpoints."),
    "compare": ("compare", "Runs compared: paired effects with their intervals."),
    "plot": ("plot", "The figure of a result file."),
    "show": ("show", "What a result file holds, and what computed it."),
    "verify": ("verify", "Whether files are whole, and their numbers come out again."),
    "list": ("catalog", "What there is by name, and what is in a folder."),
    "run": ("run", "Recipes: whole experiments with a verdict."),
}
LONGEST = 200  # characters of the line that tells an error
PATH = 40  # of the end of a path that is shortened for it
CONTINUES = "the same command again continues from the files that are whole"
KEPT = "no file was left half-written, the same command again continues from what is kept, if any"


class Commands(click.Group):
    """A group whose commands are named in ``COMMANDS`` and imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of a user's work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Return the command of this name."""
        if name not in COMMANDS:
            close = difflib.get_close_matches(name, COMMANDS, 1)
            hint = f"did you mean {close[0]}?" if close else "see sharpness --help"
            raise InputError(f"sharpness has no command {name}: {hint}")
        command: click.Command = import_module(f"sharpness.cli.{COMMANDS[name][0]}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the commands that begin so, without importing them, or the options."""
        named = [
            CompletionItem(name, help=line)
            for name, (_, line) in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return named + click.Command.shell_complete(self, ctx, incomplete)

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> click.Context:
        """Honour NO_COLOR and FORCE_COLOR, which click leaves to its users."""
        if os.environ.get("NO_COLOR"):
            extra["color"] = False
        elif os.environ.get("FORCE_COLOR"):
            extra["color"] = True
        return super().make_context(info_name, args, parent, **extra)


@click.group(cls=Commands, context_settings=COMMON)
@click.version_option(__version__, prog_name="sharpness")
def sharpness() -> None:
    """How sharp are the minima that training found, and does it matter for generalization?

    Train a small-batch and a large-batch solution (or bring your own), then measure the
    curvature, the sharpness and the landscape between them.

    \b
    Examples:
      sharpness run keskar
      sharpness train --batch-size 8 -o sb.h5
      sharpness train --batch-size 600 -o lb.h5
      sharpness eigs sb.h5 -k 10
      sharpness line sb.h5 lb.h5
      sharpness plane sb.h5
      sharpness eigs sb.pt --model nets:build --data nets:digits --loss cross_entropy

    \b
    Completion by the Tab key, in ~/.bashrc, ~/.zshrc or ~/.config/fish/config.fish:
      eval "$(_SHARPNESS_COMPLETE=bash_source sharpness)"
      eval "$(_SHARPNESS_COMPLETE=zsh_source sharpness)"
      _SHARPNESS_COMPLETE=fish_source sharpness | source
    """


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit: 0 done, 2 a wrong request, 1 a failure, 128 + n after a signal."""
    given = list(sys.argv[1:] if args is None else args)
    # click answers a KeyboardInterrupt with an empty line of its own.
    try:
        with answered(), logs_of_one_command():
            code = _run(given)
    except Stopped as late:  # a second signal, while the first was told
        code = 128 + late.number
    sys.exit(code)


def _run(args: list[str]) -> int:
    if sys.stdout is None:
        return _failed("standard output is closed: open it, or send it to a file", 1)
    try:
        code = sharpness.main(args, prog_name="sharpness", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help(), err=True)
        return 2
    except (Stopped, click.Abort, KeyboardInterrupt) as stopped:
        number = stopped.number if isinstance(stopped, Stopped) else signal.SIGINT
        kept = _notes(stopped) or (CONTINUES if args[:1] == ["run"] else KEPT)
        return _failed(f"interrupted: {kept}", 128 + number)
    except Exception as error:
        if "--debug" in args:
            traceback.print_exception(error)
        code = _code(error)
        if code is None:
            raise
        return _failed("; ".join(filter(None, [_text(error), _notes(error)])), code)
    return code if isinstance(code, int) else 0


def _code(error: Exception) -> int | None:
    """Return the exit code of a user's error, None of a bug."""
    if isinstance(error, InputError | click.UsageError) or _errno(error) == errno.ENAMETOOLONG:
        return 2
    known = isinstance(error, ComputationError | OSError | click.ClickException)
    return 1 if known or is_out_of_memory(error) else None


def _text(error: Exception) -> str:
    if isinstance(error, click.ClickException):
        return error.format_message()
    if _errno(error) == errno.EMFILE:
        return f"{error}: raise the limit by ulimit -n"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if is_out_of_memory(error) and not isinstance(error, ComputationError):
        return f"out of memory ({str(error) or 'of the host'}): lower --memory or --micro-batch"
    return str(error)


def _notes(error: BaseException) -> str:
    """Return what those said whom the exception passed by."""
    return "; ".join(getattr(error, "__notes__", []))


def _errno(error: Exception) -> int | None:
    return error.errno if isinstance(error, OSError) else None


def _failed(text: str, code: int) -> int:
    line = f"sharpness: error: {printable(' '.join(text.split()))}"
    if len(line) > LONGEST:  # the name of a file says more than where it is
        line = " ".join(f"...{x[-PATH:]}" if os.sep in x[:-PATH] else x for x in line.split(" "))
    if len(line) > LONGEST:  # and the end has the remedy
        line = f"{line[: LONGEST // 2 - 5]} ... {line[-LONGEST // 2 :]}"
    click.echo(line, err=True)
    return code


def printable(text: str) -> str:
    """Return the text with escapes for what a terminal would take as a command.

    >>> printable("a\x1b[2J")
    'a\\x1b[2J'
    """
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "".join(shown)
