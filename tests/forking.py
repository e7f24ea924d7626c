"""Run commands in forks of one process that has imported torch: python tests/forking.py.

Each line of the input is a request, each of the output its answer, as JSON. ``{"args": [...],
"in": FOLDER, "set": {"module:NAME": value}, "limit": bytes or null}`` starts the command and
answers its process, ``{"wait": process}`` answers exit code, stdout and stderr once it has ended. A
fork begins as a fresh process that has done its imports, some two seconds later, has done.
"""

import json
import os
import resource
import signal
import sys
from importlib import import_module
from typing import Any

import matplotlib.figure  # noqa: F401 - so that no fork imports it
from sharpness.cli import COMMANDS, main
from sharpness.experiments import RECIPES  # noqa: F401

import sharpness  # noqa: F401


def begin(request: dict[str, Any]) -> tuple[int, int, int]:
    """Return the process of a command, and where its stdout and stderr can be read."""
    out, err = os.pipe(), os.pipe()
    child = os.fork()
    if child:
        os.close(out[1])
        os.close(err[1])
        return child, out[0], err[0]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out[1], 1)
    os.dup2(err[1], 2)
    os.chdir(request["in"])
    for name, value in request["set"].items():
        module, _, constant = name.partition(":")
        setattr(import_module(module), constant, value)
    if request["limit"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["limit"], request["limit"]))
    code = 70  # of an error that is none of ours
    try:
        main(request["args"])
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 71
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve() -> None:
    """Answer requests until the input ends."""
    started: dict[int, tuple[int, int, int]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "args" in request:
            found = begin(request)
            started[found[0]] = found
            answer: Any = found[0]
        else:
            process, *pipes = started.pop(request["wait"])
            _, status = os.waitpid(process, 0)
            texts = []
            for pipe in pipes:
                with open(pipe, encoding="utf-8") as file:
                    texts.append(file.read())
            answer = [os.waitstatus_to_exitcode(status), *texts]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    for module, _ in COMMANDS.values():
        import_module(f"sharpness.cli.{module}")
    for module in ("box_sharpness", "lanczos", "planes", "plane_plots", "problem", "trajectory"):
        import_module(f"sharpness.{module}")
    serve()
