"""README says what the program does: its tables are printed by it, its examples run."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cl_zoo.cli import catalogue
from cl_zoo.contract.hookspecs import HookSpecs

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_methods_is_what_the_command_prints() -> None:
    assert catalogue.markdown(catalogue.entries()) in README


@pytest.mark.parametrize(
    "command",
    ["python -m pip install -e . && cl-zoo compare", 'python -m pip install -e ".[test]" && pytest'],
)
def test_the_two_commands_stand_on_lines_of_their_own(command: str) -> None:
    assert f"\n    {command}\n" in README


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    reasons = README.partition("## Dependencies")[2].partition("## ")[0]

    for requirement in project["dependencies"]:
        assert re.split(r"[<>=\[]", requirement)[0] in reasons


def test_it_counts_the_hooks_as_they_are() -> None:
    hooks = [name for name in vars(HookSpecs) if not name.startswith("_")]

    assert len(hooks) == 7
    assert "Seven hooks" in README


def test_the_example_of_a_method_trains_and_its_term_is_there(
    tmp_path: Path, run_tiny: Callable[..., Any]
) -> None:
    code = re.search(r"```python\n# pull.py\n(.*?)```", README, flags=re.DOTALL)
    assert code is not None
    file = tmp_path / "pull.py"
    file.write_text(code.group(1))
    terms: list[dict[str, float]] = []

    run_tiny(f"{file}:Pull", watch=lambda event: terms.append(event.get("terms", {})))

    assert any(values.get("pull", 0.0) > 0 for values in terms)
