"""What a recipe holds, the recipes that have a name, rules of scoring, and the benchmarks and backbones that come with cl_zoo."""

from __future__ import annotations

from cl_zoo.cli import catalogue, showing
from cl_zoo.recipe.keys import recipe_settings, recipes
from cl_zoo.recipe.recipe import Recipe
from cl_zoo.scoring.rules import RULES
from cl_zoo_docs.text import code, escaped, fenced, table
from cl_zoo_docs.values import fields


def page() -> str:
    """`options.md`: recipe keys, named recipes, rules of scoring, benchmarks, backbones."""
    parts = [
        "# Recipes, benchmarks, backbones",
        "The options of a method are on [its card](methods/index.md), the flags of a command under [commands](commands.md).",
        "## Keys of a recipe",
        "One recipe holds for all methods of a comparison. `--set KEY=VALUE` sets one key, `--recipe FILE.yaml` any of them. "
        "A benchmark may bring values of its own.",
        _keys(),
        "## Recipes with a name",
        "`--recipe NAME`. `cl-zoo show recipe NAME` prints the same table.",
        table(
            ["name", "what it is"], [[f"[{code(n)}](#recipe-{n})", escaped(s)] for n, s in recipes().items()]
        ),
        *(part for name, says in recipes().items() for part in _recipe(name, says)),
        "## Rules of scoring",
        "The `metric` of a task in a benchmark's file. Every cell of a table is scored by the official rule; `--scoring strict` shows the strict "
        "one where the official has a fault. A score says the version of its rule.",
        table(["metric", "version", "official", "strict"], [_rule(name) for name in RULES]),
        "## Benchmarks",
        "`--benchmark NAME`. Sizes are numbers of records.",
        *(part for one in _ours("benchmark") for part in _benchmark(one)),
        "## Backbones",
        "`--backbone NAME`, or `NAME:PATH` for a place of its own.",
        table(["name", "what it loads", "loader"], [_backbone(one) for one in _ours("backbone")]),
    ]
    return "\n\n".join(parts) + "\n"


def _keys() -> str:
    rows = [
        [code(one.key), code(one.default), escaped(one.takes), escaped(one.says)] for one in fields(Recipe)
    ]
    return table(["key", "default", "takes", "what it is"], rows)


def _recipe(name: str, says: str) -> list[str]:
    rows = [
        [code(one.key), code(catalogue.plain(one.value)), escaped(one.source)]
        for one in recipe_settings(name)
    ]
    heading = f"### {code(name)} {{#recipe-{name}}}"
    return [heading, escaped(says[:1].upper() + says[1:]), table(["key", "value", "source"], rows)]


def _rule(name: str) -> list[str]:
    rule = RULES[name]
    return [
        code(name),
        str(rule.version),
        escaped(rule.about),
        escaped(rule.about_strict or catalogue.plain(None)),
    ]


def _benchmark(name: str) -> list[str]:
    shown = f"$ cl-zoo show benchmark {name}\n{showing.describe_benchmark(name)}"
    return [f"### {code(name)} {{#benchmark-{name}}}", fenced(shown, "console")]


def _backbone(name: str) -> list[str]:
    what, _, facts = showing.describe_backbone(name).partition("\n\nloader")
    return [code(name), escaped(what), code(facts.split()[0])]


def _ours(kind: str) -> list[str]:
    """Installed benchmarks or backbones of this distribution, by name."""
    return [
        one.name for one in catalogue.entries() if one.kind == kind and one.distribution == catalogue.OURS
    ]
