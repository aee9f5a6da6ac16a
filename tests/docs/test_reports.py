"""The page of other programs' bug reports: as many as it says, and every test that it names is there."""

from __future__ import annotations

import ast
import re

from doc_blocks import ROOT

PAGE = (ROOT / "docs" / "reports.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| [")]


def test_there_are_as_many_reports_as_the_page_says_each_once():
    sources = re.findall(
        r"^\| \[.+?\]\((https://github\.com/[\w.-]+/[\w.-]+/(?:issues|pull)/\d+)\): ", PAGE, re.M
    )

    assert len(sources) == len(set(sources)) == len(ROWS)
    assert PAGE.splitlines()[2].startswith(f"{len(ROWS)} public reports ")


def test_every_row_names_a_test_that_is_there():
    for row in ROWS:
        found = re.search(r"\| `(tests/[\w/]+\.py)`: `(test_\w+)` \|$", row)
        assert found, row
        tree = ast.parse((ROOT / found[1]).read_text(encoding="utf-8"))
        assert found[2] in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, row
