"""What a run learns one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cl_zoo.engine.streams import Union
from cl_zoo.tasks import Sample, Task, TaskData


@dataclass(frozen=True)
class Lesson:
    """A task with its training samples."""

    task: Task
    train: Sequence[Sample]


def lessons_of(protocol: str, stream: Sequence[TaskData]) -> list[Lesson]:
    """The tasks of a stream, all of them as one (`joint`), or nothing (`none`)."""
    if protocol == "none":
        return []
    if protocol == "joint":
        union = Union([task.train for task in stream])
        return [Lesson(Task(0, "joint", "", len(union)), union)]
    seen: dict[str, int] = {}
    lessons = []
    for index, data in enumerate(stream):
        occurrence = seen.get(data.name, 0)
        seen[data.name] = occurrence + 1
        task = Task(index, data.name, data.instruction, len(data.train), occurrence)
        lessons.append(Lesson(task, data.train))
    return lessons
