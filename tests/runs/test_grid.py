"""The axes of a comparison: orders that everybody gets alike, and values of options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cl_zoo.errors import OptionError
from cl_zoo.names import parse_stack
from cl_zoo.runs.grid import drawn, orders_of, varied
from cl_zoo.tasks import Benchmark, Sample, TaskData

ONE = [Sample("0", None, "?", "yes")]
NAMES = {"R": "render", "A": "arrows", "V": "voice", "I": "icons"}
ZOO = Benchmark(
    "zoo",
    "1",
    tuple(TaskData(name, letter, "", "exact", 4, ONE, ONE, ONE) for letter, name in NAMES.items()),
    ("finetune",),
    "mini",
    "hash",
    orders={"paper-2": "AIRV"},
)


def labels(methods: list[str], vary: dict[str, dict[str, list[Any]]]) -> list[str]:
    made = varied([tuple(parse_stack(method)) for method in methods], vary)
    return ["+".join(choice.label for choice in choices) for choices in made]


# Orders


def test_the_default_order_comes_first_and_the_others_are_the_same_for_everybody() -> None:
    """As `printf "0 1 $letter" | sha256sum` for each letter, sorted, gives them."""
    assert drawn("RAVICF", 4, "ucit") == ["RAVICF", "VCAFIR", "RCVFIA", "FAICRV"]
    assert orders_of(ZOO, 1) == [None]


def test_fewer_orders_are_the_first_of_more_and_none_comes_twice() -> None:
    everything = drawn("RAVI", 24, "zoo")

    assert len(set(everything)) == 24
    assert all(drawn("RAVI", count, "zoo") == everything[:count] for count in range(1, 24))
    assert {"".join(sorted(order)) for order in everything} == {"AIRV"}


def test_orders_are_named_by_letters_by_tasks_and_as_the_benchmark_does() -> None:
    asked = ["default", "VIRA", "icons,voice,arrows,render", "paper-2"]

    assert orders_of(ZOO, asked) == [None, "VIRA", "IVAR", "AIRV"]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: orders_of(ZOO, 25), "--orders 25: the 4 tasks of zoo have 1 to 24 orders"),
        (lambda: orders_of(ZOO, 0), "--orders 0: the 4 tasks"),
        (lambda: orders_of(ZOO, ["AIRV", "paper-2"]), "--order AIRV stands twice among the orders"),
        (lambda: orders_of(ZOO, ["paper-3"]), "zoo has no task 'p'"),
    ],
)
def test_orders_that_cannot_be_had_are_refused(call: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        call()


# Options


def test_each_value_is_a_stack_and_several_options_all_combinations() -> None:
    vary = {"hide": {"coefficient": [0.1, 0.3], "alpha": [0.5, 1]}}

    assert labels(["finetune", "hide+ewc"], vary) == [
        "finetune",
        "hide[alpha=0.5,coefficient=0.1]+ewc",
        "hide[alpha=1,coefficient=0.1]+ewc",
        "hide[alpha=0.5,coefficient=0.3]+ewc",
        "hide[alpha=1,coefficient=0.3]+ewc",
    ]


def test_every_stack_with_the_plugin_is_varied_and_keeps_its_other_options() -> None:
    found = labels(["hide", "hide[variant=released]"], {"hide": {"alpha": [0.5]}})

    assert found == ["hide[alpha=0.5]", "hide[alpha=0.5,variant=released]"]


@pytest.mark.parametrize(
    ("vary", "sentence"),
    [
        ({"hid": {"alpha": [1]}}, "options of 'hid' are varied, .*; did you mean 'hide'"),
        ({"hide": {"alpha": []}}, "--vary hide.alpha: names no value"),
        ({"hide": {"variant": ["paper"]}}, "hide.variant is varied and set to released as well"),
    ],
)
def test_what_cannot_be_varied_is_refused(vary: dict[str, dict[str, list[Any]]], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        labels(["hide[variant=released]"], vary)
