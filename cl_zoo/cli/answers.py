"""The command that shows a run's answers, sample by sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cl_zoo.cli.flags import AsJson
from cl_zoo.cli.looking import print_json
from cl_zoo.cli.models import RunFolder

if TYPE_CHECKING:
    from cl_zoo.runs.answered import Asked

WIDTH = 160
"""Signs of a question or an answer that are shown."""


def answers(
    run: RunFolder,
    task: Annotated[str | None, typer.Option("--task", help="Samples of this task only.")] = None,
    forgotten: Annotated[
        bool, typer.Option("--forgotten", help="Only what was right after an earlier task and is wrong now.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a finished run answered to each test sample, after which task, and what is forgotten."""
    from pathlib import Path

    from cl_zoo.runs.answered import answered

    everything = list(answered(Path(run), task))
    if as_json:
        print_json([one.to_json() for one in everything if one.forgotten or not forgotten])
        return
    for name, asked in _by_task(everything):
        count = sum(one.forgotten for one in asked)
        again = "" if len(asked[0].answers) > 1 else ", each asked once"
        print(f"{_line(name)}: {count} of {len(asked)} samples are forgotten{again}")
        for one in asked:
            if one.forgotten or not forgotten:
                print("\n".join(_sample(one, forgotten)))


def _by_task(everything: Sequence[Asked]) -> list[tuple[str, list[Asked]]]:
    places: dict[int, list[Asked]] = {}
    for one in everything:
        places.setdefault(one.task_place, []).append(one)
    return [(asked[0].task, asked) for asked in places.values()]


def _sample(one: Asked, forgotten: bool) -> Iterator[str]:
    """A sample's lines: its name, the question, what was expected, and the answers, of forgotten ones then and now."""
    about = [f"{key} {one.about[key]}" for key in ("id", "record", "picture") if key in one.about]
    yield f"  sample {one.about['place']} ({_line(', '.join(about))})"
    for asked, answer in one.before:
        yield f"    before     {_line(asked)} → {_line(answer)}"
    yield f"    question   {_line(one.question)}"
    expected = one.expected if isinstance(one.expected, str) else " | ".join(one.expected or ())
    yield f"    expected   {_line(expected)}"
    for said in (one.then, one.answers[-1]) if forgotten else one.answers:
        if said is not None:
            yield f"    {_after(said)}: {_line(said['answer']) or '(nothing)'}   [{said['score']:.0f}]"


def _after(said: dict[str, Any]) -> str:
    return "answered" if said["after"] is None else f"after {_line(said['after'])}"


def _line(text: str) -> str:
    """A text on one line that a terminal shows as it is, cut where it is long."""
    plain = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    return plain if len(plain) <= WIDTH else f"{plain[: WIDTH - 1].rstrip()}…"
