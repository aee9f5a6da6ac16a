"""Routing: does a method find the task of a question by itself?

A probe: it reads the routes that a method writes beside its answers, (tasks,) per answer, and changes nothing. An answer
is routed to the task with the largest weight. After every task learnt it records

    routing/<i>-><j>    share of the answers to place i of the stream that are routed to task j      confusion matrix
    routing/accuracy    share of all answers to tasks learnt so far that are routed to their own     selection accuracy

The rows of the matrix sum to one. The accuracy is over answers, not over tasks: a task with more test samples weighs more.
Methods that write no route have no measurement.

Choices:
  * Place i of the stream is the task with index i. A task that stands in the stream twice has two places with the same
    questions, and no question tells which one is meant: either of them is right.
  * Places that are not learnt yet (`--cells full`) have their row, but no right route, so they do not count in the accuracy.
  * Of equal weights the earliest task wins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cl_zoo import Task, hookimpl


class Routing:
    """Measures which task's expert answers, as a confusion matrix, and how often it is the right one."""

    probe = True

    def __init__(self) -> None:
        self.names: list[str] = []  # of the tasks learnt, by place
        self.right = self.answered = 0  # answers since the last task was learnt

    @hookimpl
    def before_task(self, task: Task) -> None:
        self.names = [*self.names[: task.index], task.name]
        self.right = self.answered = 0

    @hookimpl
    def after_answers(
        self, task: Task, place: int, answers: Sequence[Mapping[str, Any]]
    ) -> dict[str, float] | None:
        routes = [record["route"] for record in answers if record.get("route")]
        if not routes:
            return None
        chosen = [choice(route) for route in routes]
        measured = {
            f"routing/{place}->{task_index}": share
            for task_index, share in enumerate(shares(chosen, len(routes[0])))
        }
        if place <= task.index:
            own = {here for here, name in enumerate(self.names) if name == self.names[place]}
            self.right += sum(one in own for one in chosen)
            self.answered += len(chosen)
        if place == task.index:  # the last of the tasks learnt
            measured["routing/accuracy"] = self.right / self.answered
        return measured

    def state_dict(self) -> dict[str, Any]:
        return {"names": self.names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.names = list(state["names"])


def choice(route: Sequence[float]) -> int:
    """The task with the largest weight; of equal ones the earliest."""
    return max(range(len(route)), key=lambda task: route[task])


def shares(chosen: Sequence[int], tasks: int) -> list[float]:
    """How often each of the tasks was chosen, as shares that sum to one."""
    return [sum(one == task for one in chosen) / len(chosen) for task in range(tasks)]
