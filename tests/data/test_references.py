"""References in files of their own: joined as the official scorers join them, and refused where they do not belong to the test file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cl_zoo.data.records import Entry
from cl_zoo.data.references import referred
from cl_zoo.errors import DataError

ASKED = [Entry(str(40 - place), f"V/{place}.jpg", f"Q {place}?\nBriefly.", "x") for place in range(3)]


def write(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "references.json"
    path.write_text(json.dumps(content))
    return path


def captions(*numbers: int, names: tuple[str, ...] = ("0.jpg", "1.jpg", "2.jpg")) -> dict[str, Any]:
    return {
        "images": [{"id": place, "file_name": name} for place, name in enumerate(names, 1)],
        "annotations": [
            {"id": i, "image_id": number, "caption": f"{number}{i}"} for i, number in enumerate(numbers)
        ],
    }


def test_captions_are_joined_by_place_and_not_by_id(tmp_path: Path):
    path = write(tmp_path, captions(3, 1, 2, 1))

    found = referred(ASKED, path, "coco")

    assert [entry.references for entry in found] == [("11", "13"), ("22",), ("30",)]
    assert [entry.id for entry in found] == ["40", "39", "38"]


def test_a_caption_file_that_lacks_a_record_is_explained(tmp_path: Path):
    path = write(tmp_path, captions(1, 3))

    with pytest.raises(DataError) as caught:
        referred(ASKED, path, "coco", "the first upload had 2,999")

    assert str(caught.value) == (
        f"{path}: annotates 2 of the 3 test records by place (1 to 3), none for 2; "
        "fetch the file that belongs to this test file (the first upload had 2,999)"
    )


def test_a_caption_file_of_another_test_file_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="annotates 4, 9, but the test file has 3 records; fetch both again"):
        referred(ASKED, write(tmp_path, captions(1, 2, 3, 4, 9)), "coco")


def test_a_test_file_in_another_order_than_its_captions_is_refused(tmp_path: Path):
    path = write(tmp_path, captions(1, 2, 3, names=("0.jpg", "2.jpg", "1.jpg")))

    with pytest.raises(
        DataError,
        match=r"image 2 is 2.jpg, but test record 2 is about 1.jpg, and 1 more differ; restore the test",
    ):
        referred(ASKED, path, "coco")


def test_an_image_among_others_that_is_not_the_test_record_s_is_refused(tmp_path: Path):
    path = write(tmp_path, captions(1, 2, 3, names=("0.jpg", "x.jpg", "2.jpg")))

    with pytest.raises(DataError) as caught:
        referred(ASKED, path, "coco")
    assert str(caught.value) == (
        f"{path}: image 2 is x.jpg, but test record 2 is about 1.jpg; fetch the files that belong together"
    )


def test_only_names_on_both_sides_are_compared(tmp_path: Path):
    """A record that cannot be read has no image in a check, and `images` need not list all."""
    asked = [ASKED[0], Entry("", None, ""), ASKED[2]]
    content = captions(1, 2, 3)
    content["images"][2]["file_name"] = None

    assert referred(asked, write(tmp_path, content), "coco")


@pytest.mark.parametrize(
    ("caption", "sentence"),
    [
        (None, "is null"),
        (["a"], "is no text"),
        (" \n", "is blank"),
        ("a \ud800", r"holds half of a character ('\ud800')"),
    ],
)
def test_a_caption_that_is_no_sentence_is_named(tmp_path: Path, caption: Any, sentence: str):
    content = captions(1, 2, 3)
    content["annotations"][1] |= {"id": 70, "caption": caption}
    path = write(tmp_path, content)

    with pytest.raises(DataError) as caught:
        referred(ASKED, path, "coco")
    assert str(caught.value) == (
        f"{path}, annotation 2 (id 70): its caption {sentence}; write a sentence, or fetch the file again"
    )


@pytest.mark.parametrize("form", ["textvqa", "gqa"])
def test_half_of_a_character_in_an_answer_is_named(tmp_path: Path, form: str):
    people = {"question_id": 40, "image_id": "a", "question": "?", "answers": ["a", "\udc00"]}
    content = {"data": [people]} if form == "textvqa" else {"40": {"answer": "\udc00"}}

    with pytest.raises(DataError, match=r"an answer to question '40' holds half of a character \('.udc00'\)"):
        referred(ASKED[:1], write(tmp_path, content), form)


def test_names_of_other_images_prove_nothing(tmp_path: Path):
    assert referred(ASKED, write(tmp_path, captions(1, 2, 3, names=("a", "b", "c"))), "coco")


@pytest.mark.parametrize(
    ("form", "content"),
    [
        ("coco", [1, 2]),
        ("coco", {"images": []}),
        ("coco", {"annotations": [{"image_id": 1}]}),
        ("textvqa", {"questions": []}),
        ("gqa", {"40": "yes"}),
        ("scienceqa", {"40": {"choices": ["a"], "answer": 5}}),
    ],
)
def test_another_structure_is_named_and_explained(tmp_path: Path, form: str, content: Any):
    with pytest.raises(
        DataError, match=rf"references.json: not in the format {form} \(.*\); fetch the file again \(note\)"
    ):
        referred(ASKED, write(tmp_path, content), form, "note")


def test_ten_answers_are_joined_by_question_id(tmp_path: Path):
    people = [
        {"question_id": 40 - place, "image_id": "ab", "question": "?", "answers": [f"{place}"] * 10}
        for place in range(3)
    ]

    found = referred(ASKED, write(tmp_path, {"data": people}), "textvqa")

    assert [entry.truth for entry in found] == [{"answers": [f"{place}"] * 10} for place in range(3)]


def test_ten_answers_are_joined_by_image_and_question_where_ids_are_those_of_images(tmp_path: Path):
    asked = [Entry("ab", "ab.jpg", f"Q {place}?\nBriefly.") for place in range(2)]
    people = [
        {"question_id": 7 + place, "image_id": "ab", "question": f"q {place}?", "answers": [f"{place}"]}
        for place in (1, 0)
    ]

    found = referred(asked, write(tmp_path, {"data": people}), "textvqa")

    assert [entry.truth["answers"] for entry in found] == [["0"], ["1"]]


def test_a_question_without_its_people_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"has nothing for 3 of the 3 test records \(40, 39, 38\); fetch"):
        referred(ASKED, write(tmp_path, {"data": []}), "textvqa")


def test_gqa_and_scienceqa_replace_the_answer_by_their_own(tmp_path: Path):
    gqa = {entry.id: {"answer": "yes"} for entry in ASKED}
    problems = {entry.id: {"choices": ["a", "b", "c"], "answer": 2} for entry in ASKED}

    assert {entry.answer for entry in referred(ASKED, write(tmp_path, gqa), "gqa")} == {"yes"}
    (first, *_) = referred(ASKED, write(tmp_path, problems), "scienceqa")
    assert (first.answer, first.truth) == ("C", {"choices": ["A", "B", "C"]})
