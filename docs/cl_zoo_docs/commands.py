"""The command line: every command with its arguments and flags, from the parser that reads them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import NoneType
from typing import Any, get_args, get_type_hints

import typer.main

from cl_zoo.cli.catalogue import plain
from cl_zoo.cli.main import app
from cl_zoo_docs.text import code, escaped, fenced, table

PROGRAM = "cl-zoo"


def page() -> str:
    """`commands.md`."""
    parts = [
        "# Commands",
        f"`{PROGRAM} COMMAND --help` prints the same. `python -m cl_zoo` does what `{PROGRAM}` does. Errors that you can put "
        "right are one sentence on standard error, with exit code 2.",
    ]
    for path, command in commands():
        parts += _command(path, command)
    return "\n\n".join(parts) + "\n"


def commands() -> Iterator[tuple[str, Any]]:
    """Every command and group by its full name, `cl-zoo` itself first."""

    def walk(path: str, command: Any) -> Iterator[tuple[str, Any]]:
        yield path, command
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(f"{path} {name}", inner)

    yield from walk(PROGRAM, typer.main.get_command(app))


def flags(command: Any) -> list[Any]:
    """The parameters of a command that are flags."""
    return [one for one in command.params if one.param_type_name == "option"]


def _command(path: str, command: Any) -> list[str]:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    words = [path, *["[OPTIONS]"] * bool(flags(command)), *["COMMAND"] * hasattr(command, "commands")]
    words += [_name(one) if one.required else f"[{_name(one)}]" for one in arguments]
    parts = [
        f"## {code(path)} {{#{path.replace(' ', '-')}}}",
        escaped(_plain(command.help)),
        fenced(" ".join(words)),
    ]
    if arguments:
        rows = [[code(_name(one)), escaped(_plain(one.help))] for one in arguments]
        parts.append(table(["argument", "what it is"], rows))
    if flags(command):
        rows = [_flag(command, one) for one in flags(command)]
        parts.append(table(["flag", "takes", "default", "what it does"], rows))
    return parts


def _flag(command: Any, flag: Any) -> list[str]:
    names = ", ".join(code(name) for name in (*flag.opts, *flag.secondary_opts))
    takes = "–" if flag.is_flag else _takes(command, flag)
    default = "" if flag.is_flag or flag.default is None else code(plain(flag.default))
    return [names, takes, default, escaped(_plain(flag.help))]


def _takes(command: Any, flag: Any) -> str:
    """The type of a flag's value, as the command's own function declares it."""
    function = inspect.unwrap(command.callback)
    kind, about = get_args(get_type_hints(function, include_extras=True)[flag.name])
    kinds = [one for one in (*get_args(kind), kind) if one is not NoneType]
    name = {int: "integer", float: "number"}.get(kinds[0], "text")
    return name + (f" ≥ {about.min}" if about.min is not None else "")


def _name(argument: Any) -> str:
    return str(argument.metavar or argument.name).upper()


def _plain(text: str | None) -> str:
    """Help as it is printed: a backslash before a bracket is for the printer."""
    return (text or "").replace("\\[", "[").strip()
