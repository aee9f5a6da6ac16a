"""Routing: the confusion matrix and the accuracy from routes written down by hand, and from a method that routes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cl_zoo_routing import Routing, choice, shares

from cl_zoo import Task


def after(probe: Routing, index: int, *names: str) -> Task:
    """The probe has seen the named tasks begin; returns the last of them."""
    for place, name in enumerate(names):
        task = Task(place, name, "", 4)
        probe.before_task(task=task)
    return Task(index, names[index], "", 4)


def answers(*routes: list[float] | None) -> list[dict[str, Any]]:
    return [
        {"id": str(place), "prompt": "?", "answer": "!"} | ({} if route is None else {"route": route})
        for place, route in enumerate(routes)
    ]


def test_the_largest_weight_decides_and_of_equal_ones_the_earliest() -> None:
    assert choice([0.2, 0.5, 0.3]) == 1
    assert choice([-3.0, -1.0]) == 1
    assert choice([0.4, 0.2, 0.4]) == 0


def test_shares_of_four_answers() -> None:
    assert shares([0, 2, 2, 1], 4) == [0.25, 0.25, 0.5, 0]


def test_the_matrix_and_the_accuracy_by_hand() -> None:
    """Two of three answers to task 0 and three of five to task 1 find their own: 5 of 8 in all, not the mean of 2/3 and 3/5."""
    probe = Routing()
    task = after(probe, 1, "icons", "charts")

    first = probe.after_answers(task, 0, answers([0.9, 0.1], [0.6, 0.4], [0.1, 0.9]))
    second = probe.after_answers(task, 1, answers([0.2, 0.8], [0.3, 0.7], [0.4, 0.6], [0.7, 0.3], [0.5, 0.5]))

    assert first == pytest.approx({"routing/0->0": 2 / 3, "routing/0->1": 1 / 3})
    assert second == pytest.approx({"routing/1->0": 2 / 5, "routing/1->1": 3 / 5, "routing/accuracy": 5 / 8})


def test_each_task_learnt_is_counted_anew() -> None:
    probe = Routing()
    probe.before_task(task=Task(0, "icons", "", 4))
    assert probe.after_answers(Task(0, "icons", "", 4), 0, answers([1.0])) == {
        "routing/0->0": 1,
        "routing/accuracy": 1,
    }
    probe.before_task(task=Task(1, "charts", "", 4))
    task = Task(1, "charts", "", 4)
    probe.after_answers(task, 0, answers([0.0, 1.0]))
    second = probe.after_answers(task, 1, answers([1.0, 0.0]))

    assert second == {"routing/1->0": 1, "routing/1->1": 0, "routing/accuracy": 0}


def test_a_task_seen_twice_is_right_at_either_place() -> None:
    probe = Routing()
    task = after(probe, 2, "icons", "charts", "icons")
    probe.after_answers(task, 0, answers([0.0, 0.0, 1.0], [1.0, 0.0, 0.0]))
    probe.after_answers(task, 1, answers([1.0, 0.0, 0.0]))

    last = probe.after_answers(task, 2, answers([1.0, 0.0, 0.0]))

    assert last is not None
    assert last["routing/accuracy"] == 3 / 4
    assert last["routing/2->0"] == 1


def test_places_not_learnt_yet_have_their_row_only() -> None:
    probe = Routing()
    task = after(probe, 0, "icons")

    learnt = probe.after_answers(task, 0, answers([1.0], [1.0]))
    future = probe.after_answers(task, 1, answers([1.0], [1.0]))

    assert learnt == {"routing/0->0": 1, "routing/accuracy": 1}
    assert future == {"routing/1->0": 1}


def test_a_slot_of_a_task_that_is_not_learnt_is_wrong() -> None:
    probe = Routing()
    task = after(probe, 0, "icons")

    assert probe.after_answers(task, 0, answers([0.1, 0.9])) == {
        "routing/0->0": 0,
        "routing/0->1": 1,
        "routing/accuracy": 0,
    }


def test_a_method_without_a_route_has_no_measurement() -> None:
    probe = Routing()

    assert probe.after_answers(after(probe, 0, "icons"), 0, answers(None, None)) is None


def test_an_interrupted_run_goes_on_with_the_names_of_its_tasks() -> None:
    probe, resumed = Routing(), Routing()
    probe.before_task(task=Task(0, "icons", "", 4))
    resumed.load_state_dict(probe.state_dict())
    task = Task(1, "icons", "", 4, 1)
    resumed.before_task(task=task)

    resumed.after_answers(task, 0, answers([0.0, 1.0]))

    assert resumed.after_answers(task, 1, answers([0.0, 1.0])) == {
        "routing/1->0": 0,
        "routing/1->1": 1,
        "routing/accuracy": 1,
    }


def test_the_routes_of_a_run_are_those_in_its_answer_files(run_tiny: Callable[..., Any]) -> None:
    import json

    result = run_tiny("hide", order="CS", probes=["routing"])
    measured = result.manifest["measured"]

    assert set(measured[0]) == {"routing/0->0", "routing/accuracy"}
    right = total = 0
    for place in (0, 1):
        lines = (result.folder / "answers" / f"1-{place}.jsonl").read_text().splitlines()
        chosen = [int(route[1] > route[0]) for route in (json.loads(line)["route"] for line in lines)]
        assert measured[1][f"routing/{place}->1"] == pytest.approx(sum(chosen) / len(chosen))
        right, total = right + sum(one == place for one in chosen), total + len(chosen)
    assert measured[1]["routing/accuracy"] == pytest.approx(right / total)
    assert Routing.probe


def test_a_run_without_routes_measures_nothing(run_tiny: Callable[..., Any]) -> None:
    assert run_tiny("finetune", order="C", probes=["routing"]).manifest["measured"] == [{}]
