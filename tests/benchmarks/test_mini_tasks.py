"""The benchmark `mini`: what its tasks ask, and that their answers follow from what their pictures show."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from cl_zoo_bench_mini import load
from cl_zoo_bench_mini.captions import outdoor_captions, photograph_captions
from cl_zoo_bench_mini.packing import IDS
from cl_zoo_bench_mini.render import COLOURS, SURFACES, Bar
from cl_zoo_bench_mini.scenes import Board, Chart, Clock, Frame, Outdoors, Photograph, Portrait
from cl_zoo_bench_mini.tasks import CAPTION, KINDS, LETTER, ONE_WORD, SIZES, Split
from cl_zoo_bench_mini.words import EXACT_NAMES, split_words
from hypothesis import given, settings
from hypothesis import strategies as st
from sequences import reads_as

from cl_zoo.tasks import TaskData

TASKS = {task.name: task for task in load().tasks}
SPLITS = tuple(SIZES)


def asked(task: TaskData, index: int):
    assert isinstance(task.train, Split)
    return task.train.asked(index)


def options(prompt: str) -> dict[str, str]:
    return dict(re.findall(r"\n([A-D])\) (\w+)", prompt))


def test_the_tasks_and_their_instructions_are_those_of_ucit():
    assert "".join(task.letter for task in load().tasks) == "RAVICF"
    assert [task.instruction for task in load().tasks] == [
        ONE_WORD,
        LETTER,
        CAPTION,
        LETTER,
        ONE_WORD,
        CAPTION,
    ]
    assert [task.metric for task in load().tasks] == [
        "exact",
        "exact",
        "caption",
        "exact",
        "exact",
        "caption",
    ]


@pytest.mark.parametrize("name", TASKS)
def test_a_sample_is_a_function_of_task_split_and_index(name: str):
    first, again = TASKS[name].test[7], {task.name: task for task in load().tasks}[name].test[7]
    assert first.image.tobytes() == again.image.tobytes()
    assert (first.prompt, first.answer, first.references) == (again.prompt, again.answer, again.references)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(sorted(TASKS)), st.integers(-160, 160), st.slices(SIZES["test"]))
def test_a_split_reads_as_the_list_of_its_samples(name: str, index: int, part: slice):
    wanted = [f"{place:05d}" for place in range(SIZES["test"])]

    reads_as(TASKS[name].test, wanted, index, part, seen=lambda sample: sample.id)


@pytest.mark.parametrize("name", TASKS)
def test_splits_draw_their_own_pictures(name: str):
    """Seeds differ; a small world repeats a picture by chance now and then."""
    pictures = [{sample.image.tobytes() for sample in getattr(TASKS[name], split)[:60]} for split in SPLITS]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert len(pictures[one] & pictures[other]) <= 6


def test_an_id_says_nothing_about_its_task():
    assert {task.test[3].id for task in TASKS.values()} == {"00003"}


@pytest.mark.parametrize("name", TASKS)
def test_every_word_is_in_the_vocabulary(name: str):
    for index in range(300):
        sample = asked(TASKS[name], index)
        for text in (sample.prompt, sample.answer, *sample.references):
            assert [word for word in split_words(text) if word not in IDS] == []


@pytest.mark.parametrize("name", TASKS)
def test_an_answer_fits_its_token_budget(name: str):
    lengths = [len(split_words(asked(TASKS[name], index).answer)) for index in range(300)]
    assert max(lengths) < TASKS[name].max_new_tokens


@pytest.mark.parametrize("name", TASKS)
def test_a_prompt_is_a_question_and_one_of_the_instructions(name: str):
    allowed = {ONE_WORD, LETTER} if name == "icon" else {TASKS[name].instruction}
    assert {asked(TASKS[name], index).prompt.rpartition("\n")[2] for index in range(100)} == allowed


def test_a_rendition_is_named_exactly():
    for index in range(50):
        sample = asked(TASKS["rendition"], index)
        assert isinstance(sample.scene, Portrait)
        assert sample.answer == EXACT_NAMES.get(sample.scene.thing, sample.scene.thing)


def test_a_chart_question_is_answered_by_the_letter_of_the_right_bar():
    for index in range(100):
        sample = asked(TASKS["chart"], index)
        assert isinstance(sample.scene, Chart)
        heights = sorted((bar.height for bar in sample.scene.bars), reverse=True)
        which = {"highest": 0, "lowest": -1}[re.search(r"has the (\w+)", sample.prompt).group(1)]
        colours = {bar.height: bar.colour for bar in sample.scene.bars}
        assert options(sample.prompt)[sample.answer] == colours[heights[which]]


def test_an_icon_question_reads_the_clock_or_counts_the_dots():
    kinds = Counter()
    for index in range(100):
        sample = asked(TASKS["icon"], index)
        kinds[type(sample.scene)] += 1
        if isinstance(sample.scene, Clock):
            assert options(sample.prompt)[sample.answer] == str(sample.scene.hour)
        else:
            assert sample.answer == str(sample.scene.count)
    assert set(kinds) == {Clock, Frame}


def test_counting_subtracts_what_the_question_names():
    for index in range(100):
        sample = asked(TASKS["counting"], index)
        assert isinstance(sample.scene, Board)
        colour, shape = re.match(r"Subtract all (?:(\w+) )?(\w+)\.", sample.prompt).groups()
        gone = [
            (c, s)
            for c, s in sample.scene.cells.values()
            if colour in (None, c) and shape in ("objects", s + "s", s + "es")
        ]
        assert sample.answer == str(len(sample.scene.cells) - len(gone))


def test_a_photograph_has_five_different_captions_that_say_nothing_wrong():
    scene = Photograph("cup", "orange", "brown", "blurry")
    for seed in range(30):
        captions = photograph_captions(scene, np.random.default_rng(seed))
        assert len(set(captions)) == 5
        said = set(" ".join(captions).split())
        assert said & {"mug", "object"}
        assert not said & (
            (set(COLOURS) - {"orange"}) | (set(SURFACES) - {"brown"}) | {"dim", "pale", "grainy", "oak"}
        )


def test_a_scene_outdoors_has_five_different_captions_that_say_nothing_wrong():
    scene = Outdoors("night", "snow", "dog", "blue", "tent", True)
    for seed in range(30):
        captions = outdoor_captions(scene, np.random.default_rng(seed))
        assert len(set(captions)) == 5
        said = set(" ".join(captions).split())
        assert said & {"dog", "animal"}
        assert not said & (
            (set(COLOURS) - {"blue"}) | {"man", "bird", "person", "house", "meadow", "lake", "left"}
        )


def test_the_captions_of_a_task_are_not_one_stock_sentence():
    for name in ("photograph", "outdoors"):
        samples = [asked(TASKS[name], index) for index in range(100)]
        assert len({sample.answer for sample in samples}) > 50
        assert all(sample.answer in sample.references for sample in samples)


def test_a_chart_is_painted_as_it_is_described():
    picture = np.asarray(
        Chart((Bar("red", 9), Bar("green", 1), Bar("blue", 5))).paint(np.random.default_rng(0))
    )
    red, green, blue = (
        (picture == shade).all(-1).any(1).sum() for shade in ((225, 40, 40), (40, 175, 60), (50, 80, 230))
    )
    assert red > blue > green


def test_every_kind_of_scene_is_painted_deterministically():
    for kind in KINDS:
        scene = kind.ask(np.random.default_rng(1)).scene
        one, other = (scene.paint(np.random.default_rng(2)).tobytes() for _ in range(2))
        assert one == other
        assert scene.paint(np.random.default_rng(2)).size == (32, 32)
