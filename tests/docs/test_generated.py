"""The generated pages hold everything that the code has: every method, option, hook, public name, recipe key, command and flag."""

from __future__ import annotations

import html
import importlib
import inspect
import re

import pytest
from cl_zoo_docs import cards, commands, names, pages, systems
from cl_zoo_docs.text import escaped, markdown
from cl_zoo_docs.values import fields
from pydantic import BaseModel, Field

from cl_zoo.cli import catalogue
from cl_zoo.contract.plugins import HOOKS
from cl_zoo.engine.sizes import sizes
from cl_zoo.names import BACKBONES, BENCHMARKS, METHODS, installed
from cl_zoo.planning.sizes import shapes
from cl_zoo.recipe.keys import recipe_settings, recipes
from cl_zoo.recipe.recipe import Recipe, build_recipe
from cl_zoo.scoring.rules import RULES


@pytest.fixture(scope="module")
def site() -> dict[str, str]:
    """All generated pages; parameters are counted after one task, which is quick."""
    return pages.pages(tasks=1)


def words(text: str) -> list[str]:
    """The words of Markdown as they are read: without marks, escapes and fences."""
    plain = re.sub(r"^\s*(```\w*|\* |\*\*(\w+)\*\*$)", r"\2", text, flags=re.MULTILINE)
    plain = re.sub(r"\\([\\*_\[\]|#+-])", r"\1", plain)
    return html.unescape(re.sub(r"<(https?://[^>]+)>", r"\1", plain)).replace("`", "").split()


def read_as(docstring: str) -> list[str]:
    """The words of a docstring; marks of lists and colons of sections are no words."""
    plain = re.sub(r"^(\s*)\* ", r"\1", docstring, flags=re.MULTILINE)
    return (
        re.sub(r"^(Args|Attributes|Returns|Yields|Raises):$", r"\1", plain, flags=re.MULTILINE)
        .replace("`", "")
        .split()
    )


def cells(page: str, first: str) -> list[str]:
    """The row of a table that begins with a cell, cell by cell."""
    (row,) = (line for line in page.split("\n") if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in row.strip("|").split(" | ")]


def test_every_method_benchmark_and_family_has_a_row_beside_other_systems(site: dict[str, str]) -> None:
    page = site["systems.md"]

    for kind in systems.KINDS:
        here = systems.ours(kind)
        assert here
        assert all(cells(page, f"`{name}`")[1] == "✓" for name in here)
    assert not {"routing", "drift", "cka"} & set(systems.ours("methods"))


@pytest.mark.parametrize("one", systems.systems(), ids=lambda one: one.name)
def test_what_another_system_holds_stands_in_its_column_with_its_place(
    one: systems.System, site: dict[str, str]
) -> None:
    for kind, held in one.holds.items():
        part = site["systems.md"].partition(f"## {kind.capitalize()}")[2].partition("\n## ")[0]
        if not held:
            continue
        heads = cells(part, kind)
        for name, place in held.items():
            shown = f"`{name}`" if name in systems.ours(kind) else escaped(name)
            cell = cells(part, shown)[heads.index(one.name)]
            assert cell == f"[✓](https://github.com/{one.repository}/tree/{one.commit}/{place})"


def test_every_bundled_method_and_probe_has_a_card_and_a_row(site: dict[str, str]) -> None:
    ours = [one.name for one in installed(METHODS) if one.distribution == catalogue.OURS]

    assert len(ours) >= 20
    for name in ours:
        assert f"methods/{name}.md" in site
        assert f"[`{name}`]({name}.md)" in site["methods/index.md"]


@pytest.mark.parametrize("card", cards.bundled(), ids=lambda card: card.name)
def test_a_card_says_what_the_method_says_word_for_word(card: catalogue.Card, site: dict[str, str]) -> None:
    page = site[f"methods/{card.name}.md"]
    title, *rest = card.about.split("\n")

    assert words(page.split("\n")[0])[1:] == title.rstrip(".").split()
    said, told = " ".join(words(page)), " ".join(read_as("\n".join(rest)))
    assert told in said
    assert all(f"#hook-{hook})" in page for hook in card.hooks)
    for option in fields(card.options) if card.options else ():
        assert cells(page, f"`{option.key}`")[1:] == [
            f"`{option.default}`",
            escaped(option.takes),
            escaped(option.says),
        ]


@pytest.mark.parametrize("card", cards.bundled(), ids=lambda card: card.name)
def test_a_card_and_the_page_of_all_say_what_a_method_is_held_against(
    card: catalogue.Card, site: dict[str, str]
) -> None:
    page, every = site[f"methods/{card.name}.md"], site[cards.HELD]
    name = f"[`{card.name}`]({card.name}.md)"
    if card.held is None:
        assert "## Held against" not in page
        assert name not in every
        return
    verdict, *ways = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in every.split("\n")
        if line.startswith(f"| {name} |")
    ]
    assert [verdict[1], *verdict[3:]] == [
        escaped(card.held.paper),
        escaped(card.held.verdict),
        escaped(card.held.variants),
    ]
    for source in card.held.code:
        assert f"(https://github.com/{source.repository}/tree/{source.commit})" in verdict[2]
        assert escaped(source.files) in verdict[2]
    assert card.held.code or verdict[2] == "none released"
    assert [way[1:] for way in ways] == [
        [escaped(one.topic), escaped(one.says), escaped(one.effect)] for one in card.held.differs
    ]
    section = page.partition("## Held against")[2].partition("## Options")[0]
    assert cells(section, "verdict")[1:] == verdict[3:4]
    for way in ways:
        assert cells(section, way[1])[1:] == way[2:]


def test_a_card_counts_what_the_ledger_counts(site: dict[str, str]) -> None:
    from cl_zoo.names import stack

    (size,) = sizes(stack("branchlora", (), (), {}), shapes(cards.MODEL), build_recipe({}), 1)

    assert cells(site["methods/branchlora.md"], "routers")[1] == f"{size.trained['routers']:,}"
    assert cells(site["methods/branchlora.md"], "total")[1:] == [
        f"{sum(use.values()):,}" for use in (size.trained, size.inference, size.active)
    ]


@pytest.mark.parametrize("module", names.MODULES)
def test_every_public_name_is_documented(module: str, site: dict[str, str]) -> None:
    public = importlib.import_module(module)
    section = re.split(r"^## ", site["api.md"], flags=re.MULTILINE)
    (mine,) = (part for part in section if part.startswith(f"`{module}` "))
    parts = {part.split("`")[0]: part for part in re.split(r"^### `", mine, flags=re.MULTILINE)[1:]}

    assert list(parts) == list(public.__all__)
    for name in public.__all__:
        assert names.documented(public, name), f"{module}.{name} says nothing of itself"
        assert " ".join(read_as(names.documented(public, name))) in " ".join(words(parts[name]))


def test_every_fixture_for_authors_stands(site: dict[str, str]) -> None:
    plugin = importlib.import_module(names.FIXTURES)
    fixtures = {name for name, one in vars(plugin).items() if isinstance(one, type(plugin.tiny))}

    assert set(names.fixtures()) == {name for name in fixtures if not name.startswith("_")}
    for name, says in names.fixtures().items():
        assert says
        assert f"### `{name}` {{#fixture-{name}}}" in site["api.md"]


def test_every_hook_stands_with_its_arguments(site: dict[str, str]) -> None:
    hooks = dict(names.hooks())

    assert tuple(hooks) == HOOKS
    for name, hook in hooks.items():
        assert f"### `{name}` {{#hook-{name}}}" in site["api.md"]
        assert names.signature(name, hook) in site["api.md"]
        assert " ".join(read_as(inspect.cleandoc(hook.__doc__))) in " ".join(words(site["api.md"]))


def test_every_recipe_key_and_every_source_stands(site: dict[str, str]) -> None:
    keys, _, named = site["options.md"].partition("## Recipes with a name")
    for one in fields(Recipe):
        assert cells(keys, f"`{one.key}`")[1:] == [f"`{one.default}`", escaped(one.takes), escaped(one.says)]
    for name in recipes():
        (part,) = (one for one in named.split("\n### ") if one.startswith(f"`{name}` {{#recipe-"))
        for setting in recipe_settings(name):
            assert cells(part, f"`{setting.key}`")[1:] == [
                f"`{catalogue.plain(setting.value)}`",
                escaped(setting.source),
            ]


def test_every_rule_of_scoring_stands_with_what_it_does(site: dict[str, str]) -> None:
    assert len(RULES) >= 14
    for name, rule in RULES.items():
        assert cells(site["options.md"], f"`{name}`")[1:3] == [str(rule.version), escaped(rule.about)]
        assert escaped(rule.about_strict) in site["options.md"]


def test_every_benchmark_and_backbone_stands(site: dict[str, str]) -> None:
    for group, kind in ((BENCHMARKS, "benchmark"), (BACKBONES, "backbone")):
        for one in installed(group):
            if one.distribution == catalogue.OURS:
                mark = (
                    f"### `{one.name}` {{#benchmark-{one.name}}}"
                    if kind == "benchmark"
                    else f"| `{one.name}` | "
                )
                assert mark in site["options.md"]


def test_every_command_and_flag_stands_with_its_help(site: dict[str, str]) -> None:
    sections = {
        part.split("`")[1]: part for part in re.split(r"^## ", site["commands.md"], flags=re.MULTILINE)[1:]
    }

    assert {"cl-zoo run", "cl-zoo compare", "cl-zoo data fetch"} <= set(sections)
    for path, command in commands.commands():
        for flag in commands.flags(command):
            assert all(f"`{name}`" in sections[path] for name in flag.opts)
            assert flag.help
            assert " ".join(flag.help.replace("\\[", "[").split()) in " ".join(words(sections[path]))


def test_an_option_says_what_it_takes() -> None:
    from typing import Literal

    class Options(BaseModel):
        share: float = Field(0.5, ge=0, lt=1, description="of all")
        many: Literal["all"] | int = Field(3)
        name: str
        kinds: tuple[str, ...] = ()

    assert [(one.key, one.default, one.takes) for one in fields(Options)] == [
        ("share", "0.5", "number, 0 ≤ x < 1"),
        ("many", "3", "all, or integer"),
        ("name", "required", "text"),
        ("kinds", "[]", "list of text"),
    ]


def test_a_docstring_keeps_equations_lists_and_sections() -> None:
    shown = markdown(
        "Sum of a_i * b_i <c>.\nSee https://example.org/a_b.\n\n    y = a_1 * b\n      + c\n\nChoices:\n  * one `x_y`\n    goes on\n  * two\n\n"
        "Args:\n    a, b: the terms,\n        both of them.\n\nReturns:\n    A sum."
    )

    assert shown == (
        "Sum of a\\_i \\* b\\_i &lt;c&gt;.\nSee <https://example.org/a_b>.\n\n```text\ny = a_1 * b\n  + c\n```\n\nChoices:\n\n"
        "* one `x_y`\n  goes on\n* two\n\n**Args**\n\n* `a`, `b`: the terms,\n  both of them.\n\n**Returns**\n\nA sum."
    )


def test_links_go_where_the_site_has_their_targets() -> None:
    text = "[a](docs/data.md#formats), [b](CHANGELOG.md), [c](cl_zoo/errors.py), [d](https://example.org)"

    assert (
        pages.linked("README.md", text)
        == "[a](data.md#formats), [b](changelog.md), c, [d](https://example.org)"
    )
    assert pages.linked("docs/faq.md", "[a](../README.md), [b](data.md)") == "[a](index.md), [b](data.md)"
    assert pages.linked("benchmarks/README.md", "[a](../docs/data.md)") == "[a](data.md)"
