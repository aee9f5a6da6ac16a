"""The tasks as a run reads them: what was drawn once is kept, and is drawn at the try that is known to hit.

A picture that stands in no split of its own is drawn again (`cl_zoo_bench_mini.tasks`), on average four times for a test sample.
Which try hits is a function of place and seed, so it is written down in `tries.json`; what is drawn there is looked at as before.
`python -m cl_zoo_bench_mini.kept` writes the file anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cl_zoo.tasks import Sample, TaskData
from cl_zoo_bench_mini.tasks import FIRST_STREAM, KINDS, SIZES, Asked, Generator, Split, task_data

TRIES = Path(__file__).parent / "tries.json"
"""By task and split two hexadecimal digits for each place: how many pictures were drawn before the one that stands there."""


class Kept(Split):
    """A split whose samples are drawn once; a picture takes 3 KB.

    Args:
        stream, split, ask: as for `Split`.
        tries: the try that hits, of each place; one that is too early costs time, and changes nothing.
    """

    def __init__(
        self, stream: int, split: str, ask: Callable[[Generator], Asked], tries: Sequence[int]
    ) -> None:
        super().__init__(stream, split, ask)
        self._tries.update(enumerate(tries))
        self._samples: dict[int, Sample] = {}

    def tried(self, place: int) -> int:
        """How many pictures were drawn before the one that stands at a place, from 0 to the length − 1."""
        self.make(place)
        return self._tries[place]

    def make(self, place: int) -> Sample:
        if place not in self._samples:
            self._samples[place] = super().make(place)
        return self._samples[place]


def kept_tasks() -> tuple[TaskData, ...]:
    """The six tasks of `task_data`, with splits that keep what they have drawn."""
    tries = json.loads(TRIES.read_text(encoding="utf-8"))
    splits = kept_splits(
        {kind: {split: bytes.fromhex(tries[kind][split]) for split in SIZES} for kind in tries}
    )
    return tuple(replace(task, **splits[task.name]) for task in task_data())


def kept_splits(tries: Mapping[str, Mapping[str, Sequence[int]]]) -> dict[str, dict[str, Kept]]:
    """The splits of every task by name, with the tries that are known to hit."""
    return {
        kind.name: {
            split: Kept(FIRST_STREAM + place, split, kind.ask, tries[kind.name][split]) for split in SIZES
        }
        for place, kind in enumerate(KINDS)
    }


def write_tries() -> None:
    """Draw everything from the first try on, and write down which one hit."""
    drawn = kept_splits({kind.name: dict.fromkeys(SIZES, ()) for kind in KINDS})
    found = {
        name: {split: bytes(map(one.tried, range(len(one)))).hex() for split, one in splits.items()}
        for name, splits in drawn.items()
    }
    TRIES.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_tries()
