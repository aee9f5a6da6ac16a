"""A command starts with what it needs and no more; what it says does not depend on how much of the command line was built."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from cl_zoo.cli.main import COMMANDS, _asked, built

OURS = {"cl_zoo.contract.plugins", "cl_zoo.recipe.recipe", "cl_zoo.recipe.keys", "cl_zoo.tasks", "cl_zoo.api"}
"""Rooms that bring pydantic models, YAML, Pillow or all of the runs with them."""

OTHERS = {
    "torch",
    "transformers",
    "numpy",
    "yaml",
    "PIL",
    "pluggy",
    "jinja2",
    "matplotlib",
    "huggingface_hub",
}


def loaded(arguments: list[str]) -> set[str]:
    """Names of the modules that a process has imported when `cl-zoo` with these arguments ends."""
    code = f"""
import sys
from cl_zoo.cli.main import main
sys.argv = ["cl-zoo", *{arguments!r}]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print("LOADED", *sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("LOADED")[2].split())


def test_importing_the_package_imports_none_of_its_dependencies():
    code = "import sys, cl_zoo; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert not {*OTHERS, *OURS, "pydantic", "typer", "rich", "importlib.metadata"} & set(done.stdout.split())


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["list"], ["run", "--help"]], ids=" ".join)
def test_what_only_tells_imports_nothing_of_a_run(arguments: list[str]):
    assert not (OTHERS | OURS) & loaded(arguments)


def test_a_command_is_imported_when_it_is_asked_for():
    found = loaded(["compare", "--help"])

    assert "cl_zoo.cli.running" in found
    assert not {"cl_zoo.cli.premises", "cl_zoo.cli.data", "cl_zoo.cli.reporting"} & found


def shape(command: Any) -> Any:
    """Help and flags of a command, and of those below it."""
    inner = {name: shape(one) for name, one in getattr(command, "commands", {}).items()}
    return command.help, [(one.name, one.opts, one.default, one.required) for one in command.params], inner


def test_a_command_built_alone_is_the_one_of_the_whole_command_line():
    whole = typer.main.get_command(built())
    assert list(whole.commands) == list(COMMANDS)
    for name in COMMANDS:
        alone = typer.main.get_command(_asked([name, "--help"]))
        assert list(alone.commands) == [name]
        assert shape(alone.commands[name]) == shape(whole.commands[name])


def test_the_help_is_the_same_whether_flags_are_built_or_not():
    texts = {told: CliRunner().invoke(built(told=told), ["--help"]).output for told in (False, True)}

    assert texts[True] == texts[False]
    assert all(name in texts[True] for name in COMMANDS)
    asked = typer.main.get_command(_asked(["--help"]))
    assert not any(command.params for command in asked.commands.values())


@pytest.mark.parametrize(
    "words", [[], ["rum"], ["--version", "list"], ["--help", "run"], ["-x"]], ids=" ".join
)
def test_anything_but_a_command_is_answered_by_the_whole_command_line(words: list[str]):
    assert shape(typer.main.get_command(_asked(words))) == shape(typer.main.get_command(built()))


def test_a_shell_that_completes_names_gets_all_of_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("_CL_ZOO_COMPLETE", "complete_bash")

    assert list(typer.main.get_command(_asked(["run"])).commands) == list(COMMANDS)
