"""Right answers of a test split that no model can match, as findings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from cl_zoo.errors import ClZooError
from cl_zoo.inspection.findings import Finding, counted
from cl_zoo.scoring.golds import WORDLESS, Golds, Mismatch
from cl_zoo.scoring.judges import Expected

if TYPE_CHECKING:
    from cl_zoo.inspection.readings import Reading


def unmatched(
    reading: Reading, metric: str, budget: int, asked: Sequence[tuple[int, str, Expected]]
) -> Iterator[Finding]:
    """A fault for every gold that can be mended, and one remark for all that cannot: people who disagree, slips of official rules.

    Args:
        reading: the test split.
        metric, budget: the task's rule and its `max_new_tokens`.
        asked: number of the record, id, and what is expected.
    """
    capped, ceiling, through = [], 0.0, Golds(metric, budget)
    for place, (number, name, expected) in enumerate(asked):
        found = through.mismatch(place, expected)
        ceiling += 1.0 if found is None else found.ceiling
        if found is not None and found.remedy:
            yield _gold(reading, number, name, found)
        elif found is not None:
            capped.append(f"{_where(reading, number, name)}: {found.says}")
    try:
        yield from (_gold(reading, *asked[place][:2], WORDLESS) for place in through.wordless())
    except ClZooError as error:  # what a run needs, and a check of its data may do without
        words = f"whether captions without an English letter or digit hold a word is not known: {error}"
        yield reading.finding("captions", f"{reading.task}, test: {words}")
    if capped:
        few = counted(len(capped), "answer scores", "answers score")
        words = f"{few} less than full marks whoever gives it, so that no model scores above {100 * ceiling / len(asked):.2f}; first {capped[0]}"
        sentence = f"{reading.task}, test: of {len(asked):,} right answers {words}"
        yield Finding("ceiling", sentence, reading.task, reading.split, reading.file, count=len(capped))


def _gold(reading: Reading, number: int, name: str, found: Mismatch) -> Finding:
    says = f"{_where(reading, number, name)}: {found.says}; {found.remedy}"
    return reading.finding("gold", says, number, name or None)


def _where(reading: Reading, number: int, name: str) -> str:
    return f"{reading.file}, record {number} (id {name!r})"
