"""Streams of tasks: order, repetition, limits, and what a hook may see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sequences import PARTS, PLACES, reads_as

from cl_zoo.errors import DataError, OptionError
from cl_zoo.tasks import Benchmark, OnDemand, Part, Sample, TaskData, letters, origin, source_hash

SAMPLES = [Sample(f"{place}", None, f"{place} ?", "yes", ("a", "b")) for place in range(5)]


def task(name: str, letter: str, **changes: Any) -> TaskData:
    return replace(TaskData(name, letter, "Say it.", "exact", 4, SAMPLES, SAMPLES, SAMPLES), **changes)


BENCHMARK = Benchmark(
    "three", "1", (task("red", "R"), task("green", "G"), task("B", "Z")), ("finetune",), "mini", "hash"
)


def names(stream: Sequence[TaskData]) -> list[str]:
    return [one.name for one in stream]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (None, ["red", "green", "B"]),
        ("GR", ["green", "red"]),
        ("green,red", ["green", "red"]),
        ("green, R", ["green", "red"]),
        ("green", ["green"]),
        ("B", ["B"]),
        ("Z", ["B"]),
        ("RGR", ["red", "green", "red"]),
    ],
)
def test_an_order_is_letters_or_names_and_may_repeat_a_task(order: str | None, expected: list[str]):
    assert names(BENCHMARK.stream(order)) == expected


@given(st.permutations("RGZ"))
def test_every_permutation_of_letters_is_an_order(letters: list[str]):
    stream = BENCHMARK.stream("".join(letters))

    assert [one.letter for one in stream] == letters
    assert stream == BENCHMARK.stream(",".join(names(stream)))


@pytest.mark.parametrize(
    ("order", "sentence"),
    [
        ("RX", "--order: three has no task 'X'; known: B, G, R, Z, green, red"),
        ("gren,red", "three has no task 'gren'; did you mean 'green'"),
        ("red,,green", "three has no task ''"),
        ("", "--order '': names no task; three has red, green, B"),
    ],
)
def test_an_unknown_task_in_an_order_is_named(order: str, sentence: str):
    with pytest.raises(OptionError, match=sentence):
        BENCHMARK.stream(order)


def test_an_order_of_a_paper_goes_by_its_name():
    made = replace(BENCHMARK, orders={"paper-2": "GR"})

    assert names(made.stream("paper-2")) == names(made.stream("GR")) == ["green", "red"]
    assert names(made.stream("default")) == names(made.stream()) == [one.name for one in BENCHMARK.tasks]
    assert letters(made.stream("paper-2")) == "GR"


@pytest.mark.parametrize(
    ("orders", "sentence"),
    [
        ({"RG": "GR"}, "three: the order 'RG' has a name that stands for tasks"),
        ({"red": "GR"}, "the order 'red' has a name that stands for tasks"),
        ({"default": "GR"}, "the order 'default' has a name"),
        ({"paper": "GX"}, "benchmark three, order paper: .* has no task 'X'"),
    ],
)
def test_a_named_order_that_is_none_or_hides_tasks_is_refused(orders: dict[str, str], sentence: str):
    with pytest.raises(DataError, match=sentence):
        replace(BENCHMARK, orders=orders)


def test_all_splits_that_cannot_be_used_are_named_at_once():
    """A file that is not there is one of them, and a task that comes twice is named once."""

    class Gone(OnDemand[Sample]):
        def __len__(self) -> int:
            raise DataError("red.json: no such file; fetch it")

        def make(self, place: int) -> Sample:
            raise IndexError(place)

    tasks = (task("red", "R", train=Gone()), task("green", "G", train=(), test=()))

    with pytest.raises(DataError) as caught:
        replace(BENCHMARK, tasks=tasks).stream("RGR")
    assert str(caught.value).splitlines() == [
        "3 splits of three cannot be used:",
        "  red.json: no such file; fetch it",
        "  three, task green: the train split is empty; add samples or drop the task",
        "  three, task green: the test split is empty; add samples or drop the task",
    ]


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_empty_split_is_refused_only_where_its_task_takes_part(split: str):
    broken = replace(BENCHMARK, tasks=(task("red", "R"), task("green", "G", **{split: ()})))

    assert names(broken.stream("R")) == ["red"]
    with pytest.raises(
        DataError, match=f"three, task green: the {split} split is empty; add samples or drop"
    ):
        broken.stream()


def test_an_empty_validation_split_is_no_fault():
    assert replace(BENCHMARK, tasks=(task("red", "R", validation=()),)).stream()


# Limits


@pytest.mark.parametrize(("limit", "size"), [(1, 1), (3, 3), (99, 5)])
def test_a_limit_cuts_every_split(limit: int, size: int):
    for one in BENCHMARK.stream(limit=limit):
        assert [len(split) for split in (one.train, one.validation, one.test)] == [size] * 3


@pytest.mark.parametrize("limit", [0, -2])
def test_a_limit_below_one_is_refused(limit: int):
    with pytest.raises(OptionError, match=f"--limit must be at least 1, got {limit}"):
        BENCHMARK.stream(limit=limit)


@given(st.integers(1, 8), PLACES, PARTS)
def test_a_limited_split_reads_as_its_first_samples(limit: int, index: int, part: slice):
    (cut,) = replace(BENCHMARK, tasks=BENCHMARK.tasks[:1]).stream(limit=limit)

    reads_as(cut.train, SAMPLES[:limit], index, part)


# Sequences on demand


class Squares(OnDemand[int]):
    """The squares below 100, and which of them were made."""

    def __init__(self) -> None:
        self.made: list[int] = []

    def __len__(self) -> int:
        return 10

    def make(self, place: int) -> int:
        self.made.append(place)
        return place**2


@given(PLACES, PARTS, PARTS)
def test_a_sequence_on_demand_reads_as_a_list(index: int, part: slice, again: slice):
    squares = [place**2 for place in range(10)]

    reads_as(Squares(), squares, index, part)
    reads_as(Squares()[part], squares[part], index, again)
    assert list(reversed(Squares())) == squares[::-1]


def test_only_what_is_asked_for_is_made():
    squares = Squares()

    middle = squares[2:8]
    odd = middle[1::2]
    assert (len(middle), len(odd), squares.made) == (6, 3, [])
    assert (squares[-1], odd[-1], middle[0]) == (81, 49, 4)
    assert squares.made == [9, 7, 2]


def test_an_index_error_inside_an_item_does_not_end_the_sequence_in_silence():
    class Faulty(Squares):
        def make(self, place: int) -> int:
            return [0, 1, 4][place]

    with pytest.raises(IndexError):
        list(Faulty())


# What may be seen


def test_a_question_holds_no_answer():
    question = SAMPLES[0].question_only()

    assert (question.answer, question.references) == (None, ())
    assert (question.id, question.prompt) == ("0", "0 ?")


def test_the_hash_of_files_follows_their_content_and_order(tmp_path: Path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("1")
    other.write_text("2")

    assert source_hash(one, other) != source_hash(other, one)
    assert len(source_hash(one)) == 16
    before = source_hash(one)
    one.write_text("3")
    assert source_hash(one) != before


class Named(OnDemand[Sample]):
    """Knows where its samples come from, and makes none of them for it."""

    def __len__(self) -> int:
        return 3

    def make(self, place: int) -> Sample:
        raise AssertionError(f"sample {place} was made")

    def origin(self, index: int) -> dict[str, str]:
        return {"record": f"r{index}", "picture": ""}


def test_where_a_sample_comes_from_is_known_without_making_it():
    assert origin(Part(Part(Named(), [2, 1]), [0]), 0) == {"record": "r2"}
    assert origin([Sample("0", Path("/data/a/one.png"), "?")], 0) == {"picture": "one.png"}
    assert origin([Sample("0", None, "?")], 0) == {}


def test_a_split_that_makes_its_samples_and_says_nothing_of_them_is_not_asked():
    class Rendered(Named):
        origin = None  # type: ignore[assignment]

    assert origin(Rendered(), 1) == {}


def test_words_of_a_sample_are_its_prompt_without_the_marks_of_images() -> None:
    """A sample of one image and one question has no marks: what looks like one there is text."""
    one = Sample("0", None, "What is <image> for?")
    two = Sample("1", None, "<image>\nIs it <image>?", more_images=(Path("b.png"),))

    assert one.words == "What is <image> for?"
    assert two.words == "Is it ?"
