"""A card per method that comes with cl_zoo, and the table of all of them."""

from __future__ import annotations

from cl_zoo.cli import catalogue
from cl_zoo.names import METHODS, installed, stack
from cl_zoo.planning.sizes import Size, shapes, sizes
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo_docs.text import code, escaped, fenced, markdown, table
from cl_zoo_docs.values import fields

MODEL, TASKS = "llava-1.5-7b", 6
"""The model and the length of the stream on which sizes are counted."""


def bundled() -> list[catalogue.Card]:
    """The cards of the methods and probes of this distribution, by name."""
    return [catalogue.card(one.name) for one in installed(METHODS) if one.distribution == catalogue.OURS]


def pages(tasks: int = TASKS) -> dict[str, str]:
    """`methods/NAME.md` for each method and probe and `methods/index.md` with all of them."""
    cards = bundled()
    counted = {one.name: _sizes(one.name, tasks) for one in cards if not one.probe}
    found = {f"methods/{one.name}.md": page(one, counted.get(one.name, [])) for one in cards}
    return {"methods/index.md": index(cards, counted, tasks), **found}


def page(card: catalogue.Card, counted: list[Size]) -> str:
    """One method: its documentation, what it implements, its options, what it costs."""
    title, _, rest = card.about.partition("\n")
    lines = [f"# {escaped(title.rstrip('.'))}", _facts(card), markdown(rest), "## Options", _options(card)]
    if not card.probe:
        lines += ["## Parts and their size", _parts(counted)]
        lines += [fenced(f"$ cl-zoo ledger {card.name} --backbone {MODEL} --tasks {TASKS}", "console")]
    return "\n\n".join(lines) + "\n"


def index(cards: list[catalogue.Card], counted: dict[str, list[Size]], tasks: int) -> str:
    """All methods and probes in two tables."""
    methods = [
        [*_named(one), one.protocol, *(f"{total:,}" for total in _totals(counted[one.name]))]
        for one in cards
        if not one.probe
    ]
    probes = [[*_named(one), ", ".join(map(code, one.hooks))] for one in cards if one.probe]
    header = ["method", "what it is", "protocol", "trained per task", f"stored after {tasks} tasks"]
    return "\n\n".join(
        [
            "# Methods and probes",
            "Each has a card: its paper, its equations, the choices that the paper leaves open, its options. "
            "`cl-zoo show NAME` prints the same; `cl-zoo list --markdown` prints the first two columns.",
            f"Parameters are counted on the shapes of `{MODEL}` at the default recipe (rank 8 per task), the projector included.",
            table(header, methods),
            "## Probes",
            "A probe goes with any method, `--probe NAME`; it measures and changes nothing.",
            table(["probe", "what it is", "hooks"], probes) + "\n",
        ]
    )


def _named(card: catalogue.Card) -> list[str]:
    return [f"[`{card.name}`]({card.name}.md)", escaped(card.about.splitlines()[0])]


def _facts(card: catalogue.Card) -> str:
    rows = [
        ["name", f"`{card.name}`, a probe" if card.probe else f"`{card.name}`"],
        ["class", f"`{card.where}`"],
        ["from", card.origin],
        ["protocol", f"`{card.protocol}`"],
        ["hooks", ", ".join(f"[`{hook}`](../api.md#hook-{hook})" for hook in card.hooks) or "none"],
    ]
    if card.answering:
        rows.append(
            [
                "answers alone read",
                f"{', '.join(map(code, card.answering))}: [one training for all values](../running.md#sweeps)",
            ]
        )
    return table(["", ""], rows)


def _options(card: catalogue.Card) -> str:
    if not (card.options and card.options.model_fields):
        return "None."
    rows = [
        [code(one.key), code(one.default), escaped(one.takes), escaped(one.says)]
        for one in fields(card.options)
    ]
    return f"Set with `-o {card.name}.NAME=VALUE`, or in the name: `{card.name}[NAME=VALUE]`.\n\n" + table(
        ["option", "default", "takes", "what it is"], rows
    )


def _parts(counted: list[Size]) -> str:
    """Trained, stored and active parameters by part after the last task."""
    last = counted[-1]
    parts = list(dict.fromkeys((*last.trained, *last.inference, *last.active)))
    if not parts:
        return "It trains and stores nothing."
    uses = (last.trained, last.inference, last.active)
    rows = [[part, *(f"{use[part]:,}" if part in use else "–" for use in uses)] for part in parts]
    rows.append(["total", *(f"{sum(use.values()):,}" for use in uses)])
    when = f"after {len(counted)} tasks" if len(counted) > 1 else "after it has learnt"
    header = ["part", "trained per task", f"stored {when}", f"active in one answer {when}"]
    return f"On `{MODEL}` at the default recipe:\n\n" + table(header, rows)


def _totals(counted: list[Size]) -> tuple[int, int]:
    return sum(counted[-1].trained.values()), sum(counted[-1].inference.values())


def _sizes(name: str, tasks: int) -> list[Size]:
    return sizes(stack(name, (), (), {}), shapes(MODEL), build_recipe({}), tasks)
