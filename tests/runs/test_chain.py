"""A run's identity goes task by task: an edit changes what depends on it, and nothing before or beside it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from squares import edited, squares

from cl_zoo.data.benchmarks import load_benchmark
from cl_zoo.names import parse_stack
from cl_zoo.runs.chain import Data, chain, data_of
from cl_zoo.runs.identity import identify
from cl_zoo.runs.job import Job
from cl_zoo.runs.prepared import prepare
from cl_zoo.testing import load_tiny_backbone, tiny_benchmark

TASKS = ("colour", "side", "description")
TEXT = st.sampled_from(["", "a", "b"])
DATA = st.builds(Data, name=TEXT, instruction=TEXT, learnt=TEXT, asked=TEXT, expected=TEXT)
STREAMS = st.lists(DATA, max_size=5)


def links(start: Any, stream: list[Data], protocol: str = "sequential", **more: Any) -> list[str]:
    return [one["link"] for one in chain(start, stream, protocol, **more)]


def alike(one: list[str], other: list[str]) -> list[bool]:
    """For each place that both have, whether the links there are equal."""
    return [here == there for here, there in zip(one, other, strict=False)]


# The chain


@given(STREAMS, STREAMS)
def test_links_are_equal_up_to_the_first_task_that_is_learnt_from_something_else_and_differ_from_there_on(
    one: list[Data], other: list[Data]
):
    said = [[(task.name, task.instruction, task.learnt) for task in stream] for stream in (one, other)]
    same = [here == there for here, there in zip(*said, strict=False)]
    first = same.index(False) if False in same else len(same)

    assert alike(links(0, one), links(0, other)) == [place < first for place in range(len(same))]
    assert len(set(links(0, one))) == len(one)


@given(STREAMS)
def test_what_else_decides_what_is_learnt_stands_before_the_first_link(stream: list[Data]):
    assert not any(alike(links({"seed": 0}, stream), links({"seed": 1}, stream)))


def test_tasks_that_are_learnt_together_have_one_link_and_those_that_are_not_learnt_none():
    stream = [Data(name, "", name, "", "") for name in TASKS]
    mended = [*stream[:2], replace(stream[2], learnt="mended")]

    assert links(0, stream, "none") == []
    (one,), (other,) = chain(0, stream, "joint"), chain(0, mended, "joint")
    assert one["task"] == other["task"] == "colour, side, description"
    assert one["link"] != other["link"]


@pytest.mark.parametrize(
    ("cells", "kept"),
    [(None, 3), ("lower", 1), ("last", 2), ("full", 0)],
)
def test_what_is_asked_of_a_task_counts_where_a_plugin_keeps_what_it_sees_of_answers(
    cells: str | None, kept: int
):
    """From the first row on that asks the edited questions, those of the second task; without such a plugin nowhere."""
    stream = [Data(name, "", name, "?", "") for name in TASKS]
    other = [stream[0], replace(stream[1], asked="edited"), stream[2]]

    found = alike(links(0, stream, watched=cells), links(0, other, watched=cells))

    assert found == [place < kept for place in range(3)]


# The data of a task


def data(file: Path, limit: int | None = None) -> dict[str, Data]:
    benchmark = load_benchmark(str(file))
    return {task.name: data_of(benchmark, task) for task in benchmark.stream(limit=limit)}


def changed(before: dict[str, Data], after: dict[str, Data]) -> dict[str, list[str]]:
    """Which identifying values differ, by task."""
    found = {
        name: [
            what
            for what in ("learnt", "asked", "expected")
            if getattr(one, what) != getattr(after[name], what)
        ]
        for name, one in before.items()
    }
    return {name: what for name, what in found.items() if what}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return squares(tmp_path / "data")


@pytest.mark.parametrize(
    ("name", "key", "value", "wanted"),
    [
        ("side_train.json", "image", "000001.png", {"side": ["learnt"]}),
        ("side_test.json", "text", "Where ?", {"side": ["asked"]}),
        ("side_test.json", "image", "000001.png", {"side": ["asked"]}),
        ("side_test.json", "answer", "right", {"side": ["expected"]}),
        ("description_test.json", "references", ["a square"], {"description": ["expected"]}),
    ],
)
def test_an_edit_of_a_record_changes_what_identifies_its_own_task_and_use(
    file: Path, name: str, key: str, value: Any, wanted: dict[str, list[str]]
):
    before = data(file)

    edited(file, name, lambda records: records[3].update({key: value}))

    assert changed(before, data(file)) == wanted


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("max_new_tokens: 4", "max_new_tokens: 5", {name: ["asked"] for name in TASKS}),
        ("- pictures", "- .\n- pictures", {name: ["learnt", "asked"] for name in TASKS}),
        ("version: '1'", "version: '1'  # a remark\npictures: faithful", {name: ["learnt", "asked"] for name in TASKS}),
        ("version: '1'", "version: '1'  # a remark", {}),
        ("letter: C", "letter: Z", {}),
    ],
)  # fmt: skip
def test_of_the_description_what_decides_a_sample_counts(
    file: Path, key: str, value: str, wanted: dict[str, list[str]]
):
    before = data(file)

    text = file.read_text()
    assert key in text
    file.write_text(text.replace(key, value))

    assert changed(before, data(file)) == wanted


def test_neither_the_place_nor_the_spelling_of_the_files_counts_nor_what_a_limit_leaves_out(
    file: Path, tmp_path: Path
):
    before, few = data(file), data(file, limit=4)
    for path in file.parent.glob("*_t*.json"):
        path.write_text("\ufeff" + json.dumps(json.loads(path.read_text()), indent=3))
    moved = shutil.copytree(file.parent, tmp_path / "elsewhere") / file.name
    assert data(moved) == before

    for name in ("colour_train.json", "side_test.json"):
        edited_last = 4 if "train" in name else 3
        edited(moved, name, lambda records, place=edited_last: records[place].update(image="000001.png"))  # type: ignore[misc]
    assert data(moved, limit=3) == data(file, limit=3)
    assert changed(few, data(moved, limit=4)) == {"side": ["asked"]}


def test_samples_that_a_plugin_makes_are_identified_by_its_own_hash_of_all_its_data():
    benchmark = tiny_benchmark()
    one = data_of(benchmark, benchmark.tasks[0])
    other = data_of(replace(benchmark, data_hash="tiny-2"), benchmark.tasks[0])

    assert one.learnt == "tiny-1"
    assert (one.learnt != other.learnt, one.asked != other.asked, one.expected != other.expected) == (
        True,
    ) * 3


# The identity


def identity(file: Path, stack: str = "finetune", **job: Any) -> dict[str, Any]:
    job = {"backbone": "cl_zoo.testing:load_tiny_backbone", "device": "cpu", "limit": 4, **job}
    backbone = load_tiny_backbone(None, torch.device("cpu"), torch.float32)
    return identify(prepare(Job(tuple(parse_stack(stack)), str(file), **job)), backbone)


def chained(found: dict[str, Any]) -> list[str]:
    return [one["link"] for one in found["chain"]]


def test_an_identity_names_its_tasks_one_by_one_and_an_edit_outside_its_stream_is_none_of_it(file: Path):
    before = identity(file, order="CS")
    assert (
        [one["task"] for one in before["chain"]] == list(before["benchmark"]["tests"]) == ["colour", "side"]
    )

    edited(file, "description_train.json", lambda records: records[0].update(image="000001.png"))
    edited(file, "description_test.json", lambda records: records[0].update(image="000001.png"))
    head, tail = file.read_text().split("name: description")
    file.write_text(f"{head}name: description{tail.replace('metric: exact', 'metric: gqa')}")

    assert identity(file, order="CS") == before


@pytest.mark.parametrize(
    ("stack", "job", "kept"),
    [
        ("finetune", {}, 3),
        ("finetune", {"cells": "full"}, 3),
        ("finetune", {"order": "CSDC"}, 3),
        ("finetune", {"order": "CDS"}, 1),
        ("finetune", {"seed": 1}, 0),
        ("finetune", {"limit": 3}, 0),
        ("finetune", {"recipe": {"lr.adapters": 1e-3}}, 0),
        ("ewc", {}, 0),
    ],
)
def test_runs_share_the_links_of_what_they_learn_alike(
    file: Path, stack: str, job: dict[str, Any], kept: int
):
    found = alike(chained(identity(file)), chained(identity(file, stack, **job)))

    assert found == [place < kept for place in range(len(found))]


def test_options_that_answers_alone_read_are_in_the_identity_and_not_in_the_links(file: Path):
    one, other = identity(file, "hide"), identity(file, "hide[coefficient=0.2]")

    assert one["stack"] != other["stack"]
    assert one["chain"] == other["chain"]
