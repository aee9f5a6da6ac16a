"""Records: formats, what is read as it is, and what is refused with file, record and remedy."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cl_zoo.data.files import read_records
from cl_zoo.data.records import Entry, entries, image_path
from cl_zoo.errors import DataError

FILE = Path("data/train.json")
TEXT = st.text(min_size=1).filter(lambda text: text.strip() and "<image>" not in text)


def talk(*texts: str, **more: Any) -> dict[str, Any]:
    speakers = ("human", "gpt") * len(texts)
    return {
        **more,
        "conversations": [{"from": w, "value": t} for w, t in zip(speakers, texts, strict=False)],
    }


def one(record: dict[str, Any], form: str = "llava") -> Entry:
    (entry,) = entries(record, 1, FILE, form)
    return entry


def refused(record: Any, form: str = "llava") -> str:
    with pytest.raises(DataError) as caught:
        entries(record, 7, FILE, form)
    message = str(caught.value)
    assert message.startswith("data/train.json, record 7: ")
    return message.removeprefix("data/train.json, record 7: ")


# Conversations


def test_a_training_record_is_its_question_and_answer():
    record = talk("<image>\nWhat is it?\nAnswer briefly.", "a cat", image="a/b.jpg", id="n1/art_1")

    assert one(record) == Entry("n1/art_1", "a/b.jpg", "What is it?\nAnswer briefly.", "a cat")


@pytest.mark.parametrize("value", ["<image>\nWho?", "Who?\n<image>", "<image>Who?", "<image> Who?\n"])
def test_the_image_token_goes_with_what_stands_between_it_and_the_question(value: str):
    assert one(talk(value, "me", image="a.jpg")).prompt == "Who?"


@given(TEXT, TEXT)
def test_a_question_without_a_token_and_every_answer_are_read_as_they_are(question: str, answer: str):
    entry = one(talk(question, answer, image="a.jpg"))

    assert (entry.prompt, entry.answer) == (question, answer)


@given(TEXT, TEXT, st.booleans())
def test_a_conversation_survives_writing_and_reading(
    tmp_path_factory, question: str, answer: str, lines: bool
):
    record = talk(f"<image>\n{question}", answer, image="a.jpg", id=3)
    path = tmp_path_factory.mktemp("talk") / ("train.jsonl" if lines else "train.json")
    path.write_text(json.dumps(record if lines else [record]))

    (entry,) = entries(read_records(path)[0], 1, path, "llava")

    assert entry == Entry("3", "a.jpg", question.strip(), answer)


def test_a_text_alone_has_no_image():
    assert one(talk("Two plus two?", "four", question_id="12")) == Entry("12", None, "Two plus two?", "four")
    assert one(talk("Two plus two?", "four", image=None)).image is None


def test_every_question_of_a_conversation_is_a_sample_without_the_turns_before_it():
    found = entries(talk("<image>\nA?", "a", "B?", "b", image="x.png"), 1, FILE, "llava", "split")

    assert [(entry.prompt, entry.answer, entry.image) for entry in found] == [
        ("A?", "a", "x.png"),
        ("B?", "b", "x.png"),
    ]


def test_a_system_turn_is_left_out():
    record = talk("A?", "a")
    record["conversations"].insert(0, {"from": "system", "value": "Be brief."})

    assert one(record).prompt == "A?"


@pytest.mark.parametrize(
    "record",
    [
        {
            "messages": [{"role": "user", "content": "<image>A?"}, {"role": "assistant", "content": "a"}],
            "images": ["x.png"],
        },
        {
            "messages": [
                {"role": "system", "content": "S"},
                {"role": "user", "content": "A?"},
                {"role": "assistant", "content": "a"},
            ],
            "image": "x.png",
        },
        talk("A?<image>", "a", images=["x.png"]),
        talk("A?", "a", image=["x.png"]),
    ],
)
def test_sharegpt_comes_in_several_spellings(record: dict[str, Any]):
    assert one(record, "sharegpt") == Entry("", "x.png", "A?", "a")


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        (talk("A?", " \n"), "has an empty answer, which teaches nothing; repair or drop the record"),
        (talk("A?", "see <image>"), "has <image> in an answer; "),
        (talk("A?"), "has 1 turns where questions have answers; "),
        (talk("<image>\nA?", "a"), "has <image> but names no image; "),
        (talk("<image> and <image>", "a", image="x.png"), "has 2 <image> in one turn; "),
        (talk("A?", "a", image=3), "its image is a number; "),
        (talk("A?", "a", image=""), "its image is an empty text; "),
        (
            talk("<image> or <image> or <image>?", "a", images=["x.png", "y.png"]),
            "has 3 <image> and names 2 images; ",
        ),
        (talk("A?", "a", images="x.png"), "'images' is a text, not a list; "),
        (talk("A?", "a", id=[1]), "'id' is a list, not a text or a whole number; "),
        ({"image": "x.png"}, "has no 'conversations'; "),
        ({"conversations": "A?"}, "'conversations' is a text, not a list; "),
        ({"conversations": ["A?", "a"]}, "'conversations' holds a text where a turn is expected; "),
        ({"conversations": [{"from": "human"}]}, "has no 'value'; "),
        (
            {"conversations": [{"from": "human", "value": 4}, {"from": "gpt", "value": "a"}]},
            "'value' is a number, not a text; ",
        ),
        (
            {"conversations": [{"from": "gpt", "value": "a"}, {"from": "human", "value": "A?"}]},
            "conversations turns 1 and 2 are from 'gpt' and 'human'; let a human's turn and gpt's alternate",
        ),
    ],
)
def test_what_is_wrong_with_a_training_record_is_one_sentence(record: dict[str, Any], sentence: str):
    assert refused(record).startswith(sentence)


# Test records


def test_a_test_record_is_its_question_answer_and_truth():
    record = {"question_id": 12, "image": "./a.jpg", "text": "Who?", "answer": "me", "choices": ["A", "B"]}

    assert one(record, "question") == Entry("12", "./a.jpg", "Who?", "me", (), {"choices": ["A", "B"]})


def test_a_list_of_right_answers_is_kept_whole_and_its_first_stands_for_all():
    record = {"question_id": 1, "image": "a.jpg", "text": "Who?", "answer": ["me", 7]}

    found = one(record, "question")

    assert (found.answer, found.truth) == ("me", {"answers": ["me", "7"]})


@pytest.mark.parametrize("answers", [[], [None], [["me"]]])
def test_a_list_of_right_answers_that_are_none_is_refused(answers: Any):
    sentence = refused({"question_id": 1, "text": "Who?", "answer": answers}, "question")

    assert sentence.startswith("'answer' is not a list of texts; ")


@pytest.mark.parametrize("box", ["[0.1, 0.25, 0.5, 1.0]", "0.1,0.25,0.5,1", [0.1, 0.25, 0.5, 1]])
def test_a_box_is_read_as_a_text_and_as_numbers(box: Any):
    record = {"question_id": 1, "image": "a.jpg", "text": "Where?", "answer_bbox": box, "size": [40, 30]}

    assert one(record, "question").truth == {"box": [0.1, 0.25, 0.5, 1.0], "size": [40, 30]}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"question_id": None}, "has no 'question_id'; number the test records"),
        ({"question_id": True}, "'question_id' is true or false, not a text or a whole number; "),
        ({"text": None}, "'text' is null, not a text; "),
        ({"text": " "}, "has an empty 'text'; "),
        ({"answer": True}, "'answer' is true or false, not a text; "),
        ({"image": {"path": "a.jpg"}}, "its image is an object; "),
        ({"references": []}, "'references' is not a list of texts; "),
        ({"references": ["a", 3]}, "'references' is not a list of texts; "),
        (
            {"answer_bbox": "[0.1, 0.2]", "size": [4, 3]},
            "'answer_bbox' '[0.1, 0.2]' is no box of four numbers; ",
        ),
        ({"answer_bbox": "[a, b, c, d]", "size": [4, 3]}, "'answer_bbox' '[a, b, c, d]' is no box"),
        ({"answer_bbox": "[0, 0, 1, 1]"}, "'size' None is no size of an image; write it as [width, height]"),
        ({"answer_bbox": "[0, 0, 1, 1]", "size": [4, 0]}, "'size' [4, 0] is no size of an image; "),
    ],
)
def test_what_is_wrong_with_a_test_record_is_one_sentence(changes: dict[str, Any], sentence: str):
    record = {"question_id": 1, "image": "a.jpg", "text": "Who?", "answer": "me", **changes}

    assert refused(record, "question").startswith(sentence)


# Paths of images


def test_a_path_may_start_with_the_folder_itself(tmp_path: Path):
    assert image_path(tmp_path, "./a/b.jpg") == tmp_path / "a" / "b.jpg"
    assert image_path(tmp_path, "a/b.jpg") == tmp_path / "a" / "b.jpg"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("/etc/passwd", "is absolute"),
        ("../secret.jpg", "holds '..'"),
        ("a/../../secret.jpg", "holds '..'"),
        ("", "names no file"),
        (" ", "names no file"),
        (".", "names no file"),
        ("./", "names no file"),
        ("a\0.jpg", "names no file"),
    ],
)
def test_a_path_that_may_leave_the_data_folder_is_refused(tmp_path: Path, text: str, says: str):
    with pytest.raises(DataError) as caught:
        image_path(tmp_path, text)

    assert str(caught.value).startswith(f"image {text!r}: {says}")


def test_a_very_long_name_is_shown_without_its_middle(tmp_path: Path):
    with pytest.raises(DataError, match=r"^image 'a/b{100,}…b{80,}/\.\./c': holds '\.\.'") as caught:
        image_path(tmp_path, f"a/{'b' * 5000}/../c")

    assert len(str(caught.value)) < 500


def test_a_link_may_stay_inside_the_data_folder_and_not_leave_it(tmp_path: Path):
    data, outside = tmp_path / "data", tmp_path / "outside"
    (data / "real").mkdir(parents=True)
    outside.mkdir()
    (outside / "a.jpg").write_bytes(b"a")
    (data / "out").symlink_to(outside)
    (data / "file.jpg").symlink_to(outside / "a.jpg")
    (data / "in").symlink_to(data / "real")

    assert image_path(data, "in/a.jpg") == data / "in" / "a.jpg"
    for text in ("out/a.jpg", "file.jpg"):
        with pytest.raises(
            DataError, match=r"leads out of .*data to .*outside/a.jpg through a link; move the file"
        ):
            image_path(data, text)


def test_the_data_folder_itself_may_be_a_link(tmp_path: Path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "disk")

    assert image_path(tmp_path / "data", "a.jpg") == tmp_path / "data" / "a.jpg"


# Halves of characters


@pytest.mark.parametrize(
    ("record", "form", "field"),
    [
        (talk("A\ud800?", "a"), "llava", "value"),
        (talk("A?", "a\udfff"), "llava", "value"),
        (talk("A?", "a", image="\ud800.png"), "llava", "image"),
        (talk("A?", "a", id="\ud800"), "llava", "id"),
        ({"messages": [{"role": "user", "content": "\ud800"}] * 2}, "sharegpt", "content"),
        ({"question_id": 1, "text": "A\ud800?"}, "question", "text"),
        ({"question_id": 1, "text": "A?", "answer": "\ud800"}, "question", "answer"),
        ({"question_id": 1, "text": "A?", "references": ["a", "\ud800"]}, "question", "references"),
        ({"question_id": "\ud800", "text": "A?"}, "question", "question_id"),
    ],
)
def test_half_of_a_character_is_refused_with_its_field(record: dict[str, Any], form: str, field: str):
    assert re.fullmatch(
        rf"'{field}' holds half of a character \('.ud[0-9a-f]{{3}}'\); repair or drop the record",
        refused(record, form),
    )


def test_two_halves_in_json_are_a_character_and_no_fault(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_text(r'[{"question_id": 1, "text": "\ud83d\ude00?"}]')

    (record,) = read_records(path)
    assert one(record, "question").prompt == "\U0001f600?"
