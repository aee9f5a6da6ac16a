"""Every method says what it is held against, and the oracle that its verdict rests on is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from cl_zoo.cli.catalogue import OURS, Card, card
from cl_zoo.names import METHODS, installed

ROOT = Path(__file__).parents[2]
OWN = {"routing", "drift"}
"""Probes that measure what nobody published a measure of."""
NOTHING_TO_WRITE_OUT = {"multitask", "zeroshot"}
"""Baselines that add no equation to the model's own; their verdict rests on what a run of them does."""


def cards() -> list[Card]:
    return [card(one.name) for one in installed(METHODS) if one.distribution == OURS]


def found_in(file: Path) -> list[str]:
    nodes = ast.parse(file.read_text(encoding="utf-8")).body
    return [one.name for one in nodes if isinstance(one, ast.FunctionDef) and one.name.startswith("test_")]


@pytest.mark.parametrize("method", cards(), ids=lambda method: method.name)
def test_a_method_has_a_paper_a_verdict_and_an_oracle_with_tests(method: Card) -> None:
    held, own = method.held, method.probe and method.name in OWN
    if held is None:
        assert own, f"{method.where} does not say what it is held against; end its docstring with it"
        return
    assert own or re.search(r"arXiv \d{4}\.\d{5}|\b(19|20)\d\d\b", held.paper)
    assert held.tests, f"the verdict of {method.name} names no file of tests"
    for file in held.tests:
        assert found_in(ROOT / file), f"{file} has no tests"
        assert file.startswith("tests/oracles/") or method.name in NOTHING_TO_WRITE_OUT


@pytest.mark.parametrize("method", cards(), ids=lambda method: method.name)
def test_the_section_is_where_published_code_is_spoken_of(method: Card) -> None:
    """What a released code does in another way stands there once, with its effect, and not in the text before it."""
    for heading in (
        "Where paper and released code differ",
        "Differences from published code",
        "accidents of",
    ):
        assert heading not in method.about


def test_every_oracle_is_some_methods() -> None:
    named = {file for one in cards() if one.held for file in one.held.tests}
    here = {f"tests/oracles/{file.name}" for file in Path(__file__).parent.glob("test_*.py")}

    assert here - named == {f"tests/oracles/{Path(__file__).name}"}


def test_code_is_named_by_a_commit_or_a_version() -> None:
    for method in cards():
        for source in method.held.code if method.held else ():
            assert re.fullmatch(r"[0-9a-f]{7,40}|v\d+(\.\d+)+", source.commit), f"{method.name}: {source}"
