"""Streams of tasks: order, repetition, limits, and what a hook may see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cl_zoo.errors import DataError, OptionError
from cl_zoo.tasks import Benchmark, Limited, Sample, TaskData, source_hash

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


@given(st.integers(1, 8), st.integers(-9, 9), st.slices(6))
def test_a_limited_split_behaves_as_the_list_of_its_samples(limit: int, index: int, part: slice):
    wanted, limited = SAMPLES[:limit], Limited(SAMPLES, limit)

    assert list(limited) == wanted
    assert limited[part] == wanted[part]
    if -len(wanted) <= index < len(wanted):
        assert limited[index] == wanted[index]
    else:
        with pytest.raises(IndexError):
            limited[index]


def test_a_limited_split_reads_only_what_is_asked_for():
    class Reads(Sequence[Sample]):
        asked: list[int] = []  # noqa: RUF012

        def __len__(self) -> int:
            return 100

        def __getitem__(self, index: Any) -> Any:
            self.asked.append(index)
            return SAMPLES[0]

    split = Limited(Reads(), 10)
    split[3]
    split[-1]

    assert Reads.asked == [3, 9]


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
