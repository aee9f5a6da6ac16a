"""README, the results and the files beside them say what is true of the program."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cl_zoo_docs import cards
from doc_blocks import ROOT, blocks

import cl_zoo
from cl_zoo.cli import catalogue
from cl_zoo.contract.hookspecs import HookSpecs
from cl_zoo.report.rows import Row
from cl_zoo.report.table import LEGEND, Table
from cl_zoo.scoring.matrix import Matrix

README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = ROOT / "benchmarks" / "results" / "mini"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CHANGES = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def table(file: str) -> str:
    """The table of committed results, as the command printed it."""
    runs = json.loads((RESULTS / file).read_text(encoding="utf-8"))["runs"]
    rows = []
    for run in runs:
        values = {name: value for name, value in run.items() if name != "figures"}
        values |= {"tasks": tuple(run["tasks"]), "stamps": tuple(run["stamps"])}
        rows.append(Row(**{**values, "matrix": Matrix.from_json(run["matrix"])}))
    return Table(rows).text()


def test_it_is_short() -> None:
    assert README.count("\n") <= 150


@pytest.mark.parametrize(
    "command",
    ["python -m pip install -e . && cl-zoo compare", 'python -m pip install -e ".[test]" && pytest'],
)
def test_the_two_commands_stand_on_lines_of_their_own(command: str) -> None:
    assert f"\n    {command}\n" in README


def test_its_one_table_of_results_is_that_of_the_committed_run() -> None:
    (shown,) = (block.text for block in blocks(ROOT / "README.md") if block.language == "text")

    assert shown.splitlines()[0].split()[:2] == ["Avg", "Last"]
    assert shown in table("compare.json")


def test_the_columns_are_explained_right_below_the_table() -> None:
    """By the words of the legend that the program prints."""
    below = README.partition("```text")[2].partition("```")[2]
    explained = dict(re.findall(r"^\| (.+?) \| (.+?) \|$", below, flags=re.MULTILINE))

    assert list(explained)[1:] == [
        "Avg",
        "Last",
        "Immediate",
        "MAA",
        "BWT",
        "Forgetting",
        "Trained, Stored",
        "FLOPs, Seconds, Memory",
        "Notes",
    ]
    for name, says in re.findall(r"(\w+): (.+?)\.", LEGEND):
        assert explained[name].startswith(says)


@pytest.mark.parametrize("file", ["compare.json", "all.json", "all-AIRFCV.json", "newer.json", "orders.json"])
def test_a_table_of_the_results_is_that_of_the_committed_runs(file: str) -> None:
    printed = table(file)
    shown = [block.text for block in blocks(ROOT / "benchmarks" / "README.md") if block.language == "text"]

    assert sum(text in printed for text in shown) == 1


def test_the_table_of_methods_is_what_the_command_prints() -> None:
    """`cl-zoo list --markdown` and the generated overview name the same methods in the same words."""
    printed = catalogue.markdown(catalogue.entries()).split("\n")[2:]

    assert [f"| `{card.name}` | {card.about.splitlines()[0]} |" for card in cards.bundled()] == printed


def test_every_dependency_has_its_reason() -> None:
    text = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    reasons = dict(re.findall(r"^\| `([\w.-]+)` \| (.+) \|$", text, flags=re.MULTILINE))
    required = {re.split(r"[<>=\[]", one)[0] for one in PROJECT["dependencies"]}

    assert required | set(PROJECT["optional-dependencies"]) <= set(reasons)


def test_it_counts_the_hooks_as_they_are() -> None:
    hooks = [name for name in vars(HookSpecs) if not name.startswith("_")]

    assert len(hooks) == 9
    assert "Nine hooks" in README


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


def test_the_changes_are_in_the_known_form_and_the_newest_cut_version_is_this_one() -> None:
    versions = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", CHANGES, flags=re.MULTILINE)

    assert versions[0] == ("Unreleased", "")
    assert versions[1][0] == cl_zoo.__version__
    assert all(date for _, date in versions[1:])
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", CHANGES, flags=re.MULTILINE)) <= kinds


def test_the_citation_names_this_version_and_its_date() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))

    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["cff-version"] == "1.2.0"
    assert citation["authors"] == [{"name": "The cl_zoo developers"}]
    assert f"## [{citation['version']}] - {citation['date-released']}\n" in CHANGES
    assert citation["license"] == PROJECT["license"]
    assert citation["version"] == cl_zoo.__version__
    assert citation["keywords"] == PROJECT["keywords"]
