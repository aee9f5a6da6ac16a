"""A run's identity task by task: what each task is learnt from and asked, and a chain of hashes over what was learnt before.

Link 0 is a hash of everything beside the data that decides what is learnt, link k one of link k − 1 and of what the k-th task is
learnt from. So two runs with equal links up to k have learnt the same up to there, whatever comes behind, and a record that is
mended in one task changes the links of this task and of those behind it alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cl_zoo.data import contents
from cl_zoo.data.splits import Split
from cl_zoo.engine.files import canonical
from cl_zoo.engine.folder import cells_of_row
from cl_zoo.tasks import Benchmark, Part, Sample, TaskData


@dataclass(frozen=True)
class Data:
    """What identifies the data of a task, as long as a run uses them.

    Attributes:
        learnt: the training split.
        asked: the questions of the test split and the token budget of their answers.
        expected: what the answers are scored against; the rule stands beside it in the identity.
    """

    name: str
    instruction: str
    learnt: str
    asked: str
    expected: str


def data_of(benchmark: Benchmark, task: TaskData) -> Data:
    """What identifies a task's data; where its splits cannot tell it is that of the whole benchmark.

    Args:
        task: of the benchmark's stream, its splits cut where the run uses less.
    """
    train, test = _beginning(task.train), _beginning(task.test)
    whole = benchmark.data_hash
    learnt = contents.learnt(*train) if train else whole
    asked, expected = contents.asked_and_expected(*test) if test else (whole, whole)
    return Data(task.name, task.instruction, learnt, hashed([asked, task.max_new_tokens])[:16], expected)


def chain(
    start: Any, stream: Sequence[Data], protocol: str, watched: str | None = None
) -> list[dict[str, str]]:
    """The links of a run, one for each time that it learns.

    Args:
        start: everything beside the data that decides what is learnt.
        stream: the tasks' data in the order of the run.
        protocol: of the stack: a link for each task, one for all of them together (`joint`) or none.
        watched: which cells are answered, where plugins keep what they see of answers: these decide then, too.

    Returns:
        For each link the name of its task or tasks, what identifies the data (`learnt`), and the hash (`link`).
    """
    together = {"none": [], "joint": [tuple(stream)]}
    links, link = list[dict[str, str]](), hashed(start)
    for row, tasks in enumerate(together.get(protocol, [(task,) for task in stream])):
        cells = cells_of_row(watched, protocol, row, len(stream)) if watched is not None else []
        learnt = tasks[0].learnt if len(tasks) == 1 else hashed([task.learnt for task in tasks])[:16]
        about = [[task.name, task.instruction] for task in tasks]
        link = hashed([link, about, learnt, [[stream[place].name, stream[place].asked] for place in cells]])
        links.append({"task": ", ".join(task.name for task in tasks), "learnt": learnt, "link": link})
    return links


def hashed(value: Any) -> str:
    """SHA-256 of a JSON value, the first 32 digits."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:32]


def _beginning(split: Sequence[Sample]) -> tuple[Split, int] | None:
    """What was read from disk and how many samples of it a run uses; `None` for samples from elsewhere."""
    count = len(split)
    while isinstance(split, Part):
        if split.places != range(len(split)):
            return None
        split = split.whole
    return (split, count) if isinstance(split, Split) else None
