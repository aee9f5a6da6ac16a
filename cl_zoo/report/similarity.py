"""What a probe measured by layer and pair of tasks, `cka/3/chart~icon`, taken out of a run: how alike two tasks are represented."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cl_zoo.report.rows import Row


@dataclass(frozen=True)
class Pair:
    """Two tasks.

    Attributes:
        name: `earlier~task`.
        layers: likeness by layer, from the bottom.
        shuffled: the same with the pairing of samples shuffled; what chance gives.
    """

    name: str
    layers: dict[int, float]
    shuffled: dict[int, float]


def pairs(row: Row) -> list[Pair]:
    """The pairs of tasks of a run in the order in which they were measured; none where the probe was not there."""
    return pairs_of(row.measured)


def pairs_of(measured: Sequence[Mapping[str, float]]) -> list[Pair]:
    """The pairs of tasks in the measurements of each task, in the order in which they were measured."""
    found: dict[str, Pair] = {}
    for of_task in measured:
        for name, value in of_task.items():
            _, *where = name.split("/")
            if len(where) not in (2, 3) or not where[-2].isdecimal() or "~" not in where[-1]:
                continue
            pair = found.setdefault(where[-1], Pair(where[-1], {}, {}))
            layers = pair.shuffled if where[0] == "shuffled" else pair.layers
            layers[int(where[-2])] = value
    return list(found.values())
