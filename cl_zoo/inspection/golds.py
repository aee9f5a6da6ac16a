"""Right answers of a test split that no model can match, as findings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from cl_zoo.inspection.findings import Finding, counted
from cl_zoo.scoring.golds import mismatch
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
    capped, ceiling = [], 0.0
    for number, name, expected in asked:
        found = mismatch(metric, expected, budget)
        ceiling += 1.0 if found is None else found.ceiling
        where = f"{reading.file}, record {number} (id {name!r})"
        if found is not None and found.remedy:
            yield reading.finding("gold", f"{where}: {found.says}; {found.remedy}", number, name or None)
        elif found is not None:
            capped.append(f"{where}: {found.says}")
    if capped:
        few = counted(len(capped), "answer scores", "answers score")
        words = f"{few} less than full marks whoever gives it, so that no model scores above {100 * ceiling / len(asked):.2f}; first {capped[0]}"
        sentence = f"{reading.task}, test: of {len(asked):,} right answers {words}"
        yield Finding("ceiling", sentence, reading.task, reading.split, reading.file, count=len(capped))
