"""The benchmark `mini`: what its tasks ask, and that their answers follow from what their pictures show."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cl_zoo_bench_mini import kept, load
from cl_zoo_bench_mini.captions import outdoor_captions, photograph_captions
from cl_zoo_bench_mini.packing import IDS
from cl_zoo_bench_mini.render import COLOURS, SURFACES, Bar
from cl_zoo_bench_mini.scenes import Chart, Clock, Frame, Outdoors, Photograph
from cl_zoo_bench_mini.tasks import CAPTION, KINDS, LETTER, ONE_WORD, SIZES, Split, task_data
from cl_zoo_bench_mini.words import EXACT_NAMES, SPELLED, split_words
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
@given(st.sampled_from(sorted(TASKS)), st.integers(-210, 210), st.slices(SIZES["test"]))
def test_a_split_reads_as_the_list_of_its_samples(name: str, index: int, part: slice):
    wanted = [f"{place:05d}" for place in range(SIZES["test"])]

    reads_as(TASKS[name].test, wanted, index, part, seen=lambda sample: sample.id)


def test_no_picture_stands_in_two_splits_even_of_two_tasks():
    pictures = {
        split: {sample.image.tobytes() for task in TASKS.values() for sample in getattr(task, split)}
        for split in SPLITS
    }
    for one, other in itertools.combinations(SPLITS, 2):
        assert not pictures[one] & pictures[other]


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


def questions_of(name: str, count: int):
    """Samples of a task by the words of their question that stand for its kind."""
    kinds = {
        "rendition": r"(kind of art|dressed in|object in the image)",
        "chart": r"(the most|the least|in front|behind)",
        "icon": r"(dots|missing|time|category)",
        "counting": r"(left|taken|in the image)",
    }
    found: dict[str, list] = {}
    for index in range(count):
        sample = asked(TASKS[name], index)
        found.setdefault(re.search(kinds[name], sample.prompt.split("\n")[0]).group(1), []).append(sample)
    return found


def test_a_rendition_is_named_exactly_or_by_its_style_or_colour():
    found = questions_of("rendition", 100)
    assert min(map(len, found.values())) >= 10
    for sample in found["object in the image"]:
        assert sample.answer == EXACT_NAMES.get(sample.scene.thing, sample.scene.thing)
    assert all(sample.answer == sample.scene.style for sample in found["kind of art"])
    assert all(sample.answer == sample.scene.colour for sample in found["dressed in"])


def test_a_chart_question_is_answered_by_the_letter_of_the_bar_that_is_meant():
    found = questions_of("chart", 100)
    assert min(map(len, found.values())) >= 10
    for kind, samples in found.items():
        for sample in samples:
            bars = list(sample.scene.bars)
            by_height = sorted(bars, key=lambda bar: bar.height)
            meant = {
                "the most": by_height[-1],
                "the least": by_height[0],
                "in front": bars[0],
                "behind": bars[-1],
            }
            assert options(sample.prompt)[sample.answer] == meant[kind].colour
            assert set(options(sample.prompt).values()) == {bar.colour for bar in bars}


def test_options_stand_in_every_order():
    letters = Counter(sample.answer for samples in questions_of("chart", 200).values() for sample in samples)
    assert min(letters[letter] for letter in "ABCD") >= 30


def test_an_icon_question_counts_reads_the_clock_or_tells_the_colour():
    found = questions_of("icon", 120)
    assert min(map(len, found.values())) >= 15
    assert all(SPELLED.index(sample.answer) == sample.scene.count for sample in found["dots"])
    assert all(SPELLED.index(sample.answer) == 10 - sample.scene.count for sample in found["missing"])
    assert all(options(sample.prompt)[sample.answer] == str(sample.scene.hour) for sample in found["time"])
    for sample in found["category"]:
        shown = sample.scene.hour if isinstance(sample.scene, Clock) else sample.scene.count
        listed = options(sample.prompt)
        assert listed[sample.answer] == sample.scene.colour
        assert SPELLED[shown] in listed.values()
    assert {type(sample.scene) for sample in found["category"]} == {Clock, Frame}


def test_counting_subtracts_or_takes_what_the_question_names_or_counts_all():
    found = questions_of("counting", 120)
    assert min(map(len, found.values())) >= 15
    for kind, samples in found.items():
        for sample in samples:
            cells = list(sample.scene.cells.values())
            assert len(cells) <= 7
            named = re.match(r"\w+ all (?:(\w+) )?(\w+)\.", sample.prompt)
            colour, shape = named.groups() if named else (None, "objects")
            group = [
                (c, s) for c, s in cells if colour in (None, c) and shape in ("objects", s + "s", s + "es")
            ]
            right = {"left": len(cells) - len(group), "taken": len(group), "in the image": len(cells)}
            assert SPELLED.index(sample.answer) == right[kind]


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


@pytest.mark.parametrize("task", task_data(), ids=lambda task: task.name)
def test_what_is_kept_is_what_is_drawn_from_the_first_try_on(task: TaskData):
    """Of every eleventh place, in all splits: the same picture, question and answer."""
    for split in SPLITS:
        drawn, known = getattr(task, split), getattr(TASKS[task.name], split)
        for place in range(0, len(drawn), 11):
            one, other = drawn[place], known[place]
            assert one.image.tobytes() == other.image.tobytes()
            assert replace(one, image=None) == replace(other, image=None)


@pytest.mark.slow
def test_the_tries_are_those_that_drawing_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    written = kept.TRIES.read_text(encoding="utf-8")
    monkeypatch.setattr(kept, "TRIES", tmp_path / "tries.json")
    kept.write_tries()

    assert kept.TRIES.read_text(encoding="utf-8") == written


def test_a_picture_is_drawn_once(monkeypatch: pytest.MonkeyPatch):
    split = {task.name: task for task in load().tasks}["chart"].test
    first = split[3]
    monkeypatch.setattr(Chart, "paint", None)

    assert split[3] is first
    assert split[-197] is first
    with pytest.raises(TypeError):
        split[4]


def test_a_try_that_is_too_early_costs_time_and_changes_nothing():
    known = kept.kept_splits({kind.name: dict.fromkeys(SIZES, ()) for kind in KINDS})["icon"]["validation"]
    wanted = TASKS["icon"].validation

    assert known[5].image.tobytes() == wanted[5].image.tobytes()
    assert known.tried(5) == wanted.tried(5) > 0
