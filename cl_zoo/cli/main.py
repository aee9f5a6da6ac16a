"""The command line: select a method by name, compare methods, look at what is installed.

A command is imported when it is asked for, and heavy imports stay inside the commands: `cl-zoo --help` and `cl-zoo list` load no torch.
"""

from __future__ import annotations

import faulthandler
import importlib
import inspect
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from cl_zoo._version import __version__

COMMANDS = {
    "run": "running.run",
    "compare": "running.compare",
    "list": "looking.list_",
    "show": "looking.show",
    "ledger": "looking.ledger",
    "forecast": "looking.forecast",
    "check": "looking.check",
    "doctor": "looking.doctor",
    "new": "looking.new",
    "answers": "answers.answers",
    "predict": "models.predict",
    "export": "models.export",
    "verify": "verifying.verify",
    "report": "reporting.report",
    "reproduce": "reproducing.reproduce",
    "runs": "reporting.runs",
    "clean": "reporting.clean",
    "data": "data.app",
    "analyze": "premises.app",
}
"""The function or the group of each command, in the order of the help."""

HELP = ("--help", "-h")


def built(names: Sequence[str] = tuple(COMMANDS), *, told: bool = False) -> typer.Typer:
    """The command line with some of its commands; one alone starts in half the time of all.

    Args:
        told: whether the commands are only told of, as the help does: their flags are left out.
    """
    app = typer.Typer(
        name="cl-zoo",
        help="Continual-learning methods for multimodal language models: run, compare, extend.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": [*HELP]},
    )
    app.callback(invoke_without_command=True)(root)
    for name in names:
        module, _, called = COMMANDS[name].partition(".")
        command = getattr(importlib.import_module(f"cl_zoo.cli.{module}"), called)
        group = isinstance(command, typer.Typer)
        if told:
            app.command(name, help=command.info.help if group else inspect.getdoc(command))(_without_flags)
        elif group:
            app.add_typer(command)
        else:
            app.command(name)(command)
    return app


def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Continual-learning methods for multimodal language models: run, compare, extend."""
    if version:
        print(f"cl-zoo {__version__}")
        raise SystemExit(0)


def main() -> None:
    """Entry point: errors of the user are one sentence on standard error and exit code 2."""
    from cl_zoo.errors import ClZooError, debugging

    if (
        not faulthandler.is_enabled()
    ):  # compiled code that crashes cannot be caught; Python says where it was called
        faulthandler.enable(2)
    # peft imports it where it is installed, and it tells of kernels for CPUs that are not used here.
    logging.getLogger("bitsandbytes.backends.cpu").setLevel(logging.ERROR)
    try:
        _asked(sys.argv[1:])()
    except ClZooError as error:
        if debugging():
            traceback.print_exc()
        _fail(str(error))
    except OSError as error:
        from cl_zoo.runs.worker import describe

        _fail(describe(error))


def _asked(words: Sequence[str]) -> typer.Typer:
    """What answers these words of a user as the whole command line would; a shell that completes names asks for all of it."""
    if "_CL_ZOO_COMPLETE" in os.environ:
        return built()
    if words and words[0] in COMMANDS:
        return built([words[0]])
    if list(words) == ["--version"]:
        return built([])
    return built(told=len(words) == 1 and words[0] in HELP)


def _without_flags() -> None:
    """Stands for a command where its line of help alone is read."""


def _fail(sentence: str) -> None:
    from cl_zoo.errors import printable

    print(f"error: {printable(sentence)}", file=sys.stderr)
    raise SystemExit(2) from None


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return built()
