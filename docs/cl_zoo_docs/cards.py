"""A card per method that comes with cl_zoo, and the table of all of them."""

from __future__ import annotations

from cl_zoo.cli import catalogue
from cl_zoo.contract.held import NONE_RELEASED, Held, Source
from cl_zoo.engine.sizes import Size, sizes
from cl_zoo.names import METHODS, installed, stack
from cl_zoo.planning.sizes import shapes
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo_docs.text import code, escaped, fenced, markdown, table
from cl_zoo_docs.values import fields

MODEL, TASKS = "llava-1.5-7b", 6
"""The model and the length of the stream on which sizes are counted."""


HELD = "methods/held-against.md"
"""The page on how every method stands to its authors' code."""


def bundled() -> list[catalogue.Card]:
    """The cards of the methods and probes of this distribution, by name."""
    return [catalogue.card(one.name) for one in installed(METHODS) if one.distribution == catalogue.OURS]


def pages(tasks: int = TASKS) -> dict[str, str]:
    """`methods/NAME.md` for each method and probe, `methods/index.md` with all of them, and what each is held against."""
    cards = bundled()
    counted = {one.name: _sizes(one.name, tasks) for one in cards if not one.probe}
    found = {f"methods/{one.name}.md": page(one, counted.get(one.name, [])) for one in cards}
    return {"methods/index.md": index(cards, counted, tasks), HELD: held_against(cards), **found}


def page(card: catalogue.Card, counted: list[Size]) -> str:
    """One method: its documentation, what it implements, its options, what it costs."""
    title, _, rest = card.about.partition("\n")
    lines = [f"# {escaped(title.rstrip('.'))}", _facts(card), markdown(rest)]
    if card.held:
        lines += ["## Held against", _held(card.held)]
    lines += ["## Options", _options(card)]
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
            "How each stands to its authors' code: [held against](held-against.md).",
            f"Parameters are counted on the shapes of `{MODEL}` at the default recipe (rank 8 per task), the projector included.",
            table(header, methods),
            "## Probes",
            "A probe goes with any method, `--probe NAME`; it measures and changes nothing.",
            table(["probe", "what it is", "hooks"], probes) + "\n",
        ]
    )


def held_against(cards: list[catalogue.Card]) -> str:
    """How every method stands to its authors' code: verdicts in one table, deviations in another."""
    held = [(f"[`{one.name}`]({one.name}.md)", one.held) for one in cards if one.held]
    verdicts = [
        [name, escaped(one.paper), _code(one), escaped(one.verdict), escaped(one.variants)]
        for name, one in held
    ]
    deviations = [
        [name, escaped(way.topic), escaped(way.says), escaped(way.effect)]
        for name, one in held
        for way in one.differs
    ]
    return "\n\n".join(
        [
            "# Held against",
            "Every method is compared with its paper and with its authors' code, read at the commit that is named. The equations of both "
            "are written out once more in `tests/oracles/`, as loops in fp64, and a test holds ours against them: outputs, gradients, "
            "penalties, routes, merged weights. What the verdict is and what differs stands in the method's own docstring; "
            "`cl-zoo show NAME` prints it.",
            table(["method", "paper", "code", "verdict", "options that switch to theirs"], verdicts),
            "## What differs",
            "On purpose, and what it changes.",
            table(["method", "what", "theirs and ours", "what it changes"], deviations) + "\n",
        ]
    )


def _held(held: Held) -> str:
    rows = [
        ["paper", escaped(held.paper)],
        ["code", _code(held)],
        ["verdict", escaped(held.verdict)],
        ["options that switch to theirs", escaped(held.variants)],
    ]
    parts = [table(["", ""], rows)]
    if held.differs:
        ways = [[escaped(one.topic), escaped(one.says), escaped(one.effect)] for one in held.differs]
        parts.append(table(["what differs", "theirs and ours", "what it changes"], ways))
    return "\n\n".join(parts)


def _code(held: Held) -> str:
    """What was read of it, each repository with a link to the commit."""

    def shown(one: Source) -> str:
        commit = f"https://github.com/{one.repository}/tree/{one.commit}"
        return f"[{escaped(one.repository)}]({commit}) at `{one.commit}`: {escaped(one.files)}"

    return "<br>".join(shown(one) for one in held.code) or NONE_RELEASED


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
