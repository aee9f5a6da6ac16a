"""References in files of their own: joined as the official scorers join them, and refused where they do not belong to the test file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cl_zoo.data.records import UNREAD, Entry
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


def by_references(asked: list[Entry], path: Path) -> tuple[list[tuple[str, ...]], str]:
    found = referred(asked, path, "coco")
    assert [entry.id for entry in found.entries] == [entry.id for entry in asked]
    return [entry.references for entry in found.entries], found.by


def test_captions_are_joined_by_the_names_of_their_images(tmp_path: Path):
    """As the official files are: ids are places, and names say the same."""
    path = write(tmp_path, captions(3, 1, 2, 1))

    assert by_references(ASKED, path) == ([("11", "13"), ("22",), ("30",)], "the name of the image")


def test_a_test_file_in_another_order_than_its_captions_gets_those_of_its_images(tmp_path: Path):
    path = write(tmp_path, captions(1, 2, 3, names=("0.jpg", "2.jpg", "1.jpg")))

    assert by_references(ASKED, path)[0] == [("10",), ("32",), ("21",)]


@pytest.mark.parametrize("ids", [(4, 3, 2, 1), (391895, 522418, 184613, 318219)])
def test_captions_without_names_are_joined_by_question_id(tmp_path: Path, ids: tuple[int, ...]):
    """Ids that count down would swap every reference if places counted; real COCO ids have no place."""
    asked = [Entry(str(number), f"{number:012d}.jpg", "?") for number in ids]
    content = {"annotations": [{"id": 0, "image_id": one, "caption": f"of {one}"} for one in sorted(ids)]}

    assert by_references(asked, write(tmp_path, content)) == ([(f"of {one}",) for one in ids], "question_id")


def test_the_image_id_of_a_record_goes_before_all_else(tmp_path: Path):
    """Several questions about one image share its references, and a file of all of COCO serves a few records."""
    asked = [Entry("1", "a.jpg", "?", image_id="7"), Entry("2", "a.jpg", "!", image_id="000007")]
    content = {"annotations": [{"id": 0, "image_id": one, "caption": f"of {one}"} for one in (1, 2, 7)]}

    assert by_references(asked, write(tmp_path, content)) == ([("of 7",), ("of 7",)], "image_id")


@pytest.mark.parametrize(
    ("asked", "content", "says"),
    [
        (
            [Entry(str(one), None, "?") for one in (1, 2, 30, 40, 50, 60)],
            captions(1, 2, 3, 4, 5, 6, names=()),
            "annotates 2 of the 6 test records by question_id, none for record 3: 30, record 4: 40, record 5: 50",
        ),
        (
            ASKED,
            captions(1, 2, 3, names=("0.jpg", "x.jpg", "2.jpg")),
            "annotates 2 of the 3 test records by the name of the image, none for record 2: 1.jpg",
        ),
        (
            [Entry("1", None, "?", image_id="1"), Entry("2", None, "?")],
            captions(1, 2),
            "annotates 1 of the 2 test records by image_id, none for record 2: none",
        ),
        (
            [Entry("1", None, "?", image_id="8")],
            captions(1),
            "annotates 0 of the 1 test records by image_id, none for record 1: 8",
        ),
    ],
)
def test_files_that_belong_together_in_part_are_refused_with_examples(
    tmp_path: Path, asked: list[Entry], content: Any, says: str
):
    path = write(tmp_path, content)

    with pytest.raises(DataError) as caught:
        referred(asked, path, "coco")
    assert str(caught.value) == f"{path}: {says}; fetch the files that belong together"


def test_captions_are_joined_by_place_where_nothing_else_is_on_both_sides(tmp_path: Path):
    found, by = by_references(ASKED, write(tmp_path, captions(3, 1, 2, 1, names=())))

    assert found == [("11", "13"), ("22",), ("30",)]
    assert by == "place, since neither image_id nor names nor question_id stand in both"


def test_a_caption_file_that_lacks_a_record_is_explained(tmp_path: Path):
    path = write(tmp_path, captions(1, 3, names=()))

    with pytest.raises(DataError) as caught:
        referred(ASKED, path, "coco", "the first upload had 2,999")

    assert str(caught.value) == (
        f"{path}: annotates 2 of the 3 test records by place (1 to 3), none for 2, and no image_id, image name or question_id of "
        "the test file stands in it; fetch the file that belongs to this test file (the first upload had 2,999)"
    )


def test_a_caption_file_of_another_test_file_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="annotates 4, 9, but the test file has 3 records, and no image_id"):
        referred(ASKED, write(tmp_path, captions(1, 2, 3, 4, 9)), "coco")


def test_ids_that_lead_to_other_images_are_refused(tmp_path: Path):
    """The ids of both files agree, the names say that they are not about the same."""
    asked = [replace(entry, image_id=str(place)) for place, entry in enumerate(ASKED, 1)]
    path = write(tmp_path, captions(1, 2, 3, names=("0.jpg", "2.jpg", "1.jpg")))

    with pytest.raises(DataError) as caught:
        referred(asked, path, "coco")
    assert str(caught.value) == (
        f"{path}: test record 2 is about 1.jpg and joined to 2.jpg, test record 3 is about 2.jpg and joined to 1.jpg; "
        "restore the order of the test file"
    )


def test_a_record_that_cannot_be_read_does_not_stop_the_others(tmp_path: Path):
    """In a check it has neither image nor id, and `images` need not list all."""
    asked = [ASKED[0], UNREAD, ASKED[2]]
    content = captions(1, 2, 3)

    assert by_references(asked, write(tmp_path, content))[0] == [("10",), (), ("32",)]
    content["images"][2]["file_name"] = None
    assert by_references(asked, write(tmp_path, content))[0] == [("10",), ("21",), ("32",)]


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
    assert by_references(ASKED, write(tmp_path, captions(1, 2, 3, names=("a", "b", "c"))))[0] == [
        ("10",),
        ("21",),
        ("32",),
    ]


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

    assert [entry.truth for entry in found.entries] == [{"answers": [f"{place}"] * 10} for place in range(3)]


def test_ten_answers_are_joined_by_image_and_question_where_ids_are_those_of_images(tmp_path: Path):
    asked = [Entry("ab", "ab.jpg", f"Q {place}?\nBriefly.") for place in range(2)]
    people = [
        {"question_id": 7 + place, "image_id": "ab", "question": f"q {place}?", "answers": [f"{place}"]}
        for place in (1, 0)
    ]

    found = referred(asked, write(tmp_path, {"data": people}), "textvqa")

    assert [entry.truth["answers"] for entry in found.entries] == [["0"], ["1"]]


def test_two_sets_of_answers_to_one_question_are_refused(tmp_path: Path):
    people = [{"question_id": 40, "image_id": "a", "question": "?", "answers": [one]} for one in "ab"]

    with pytest.raises(DataError, match="question_id '40' stands in it twice; fetch the file again"):
        referred(ASKED[:1], write(tmp_path, {"data": people}), "textvqa")


def test_a_question_without_its_people_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"has nothing for 3 of the 3 test records \(40, 39, 38\); fetch"):
        referred(ASKED, write(tmp_path, {"data": []}), "textvqa")


def test_gqa_and_scienceqa_replace_the_answer_by_their_own(tmp_path: Path):
    gqa = {entry.id: {"answer": "yes"} for entry in ASKED}
    problems = {entry.id: {"choices": ["a", "b", "c"], "answer": 2} for entry in ASKED}

    assert {entry.answer for entry in referred(ASKED, write(tmp_path, gqa), "gqa").entries} == {"yes"}
    (first, *_) = referred(ASKED, write(tmp_path, problems), "scienceqa").entries
    assert (first.answer, first.truth) == ("C", {"choices": ["A", "B", "C"]})
