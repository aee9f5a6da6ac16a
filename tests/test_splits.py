"""Splits: read when first used, checked record by record, kept compactly; and those inside Hugging Face datasets."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cl_zoo.data.records import Entry
from cl_zoo.data.splits import Packed, Plan, Roots, Split
from cl_zoo.errors import DataError


def talk(question: str, answer: str, image: str | None = None, **more: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {**more, **({"image": image} if image else {}), "conversations": turns}


def asked(number: Any, **more: Any) -> dict[str, Any]:
    return {"question_id": number, "image": f"a/{number}.png", "text": "Who?", "answer": "me", **more}


def write(path: Path, records: Any) -> Path:
    path.write_text(json.dumps(records))
    return path


def plan(tmp_path: Path, records: Any, form: str = "llava", needs: str = "answer", **more: Any) -> Plan:
    return Plan(write(tmp_path / "data.json", records), form, Roots((tmp_path,)), needs, **more)


def split(*arguments: Any, **more: Any) -> Split:
    made = plan(*arguments, **more)
    return Split(lambda: made)


def test_samples_to_learn_are_told_apart_by_place_because_ids_come_twice(tmp_path: Path):
    train = split(tmp_path, [talk("<image>\nA?", "a", "x.png", id=5), talk("B?", "b", id=5)])

    assert [(sample.id, sample.prompt) for sample in train] == [("0", "A?"), ("1", "B?")]
    assert [sample.image for sample in train] == [tmp_path / "x.png", None]
    assert train[-1] == train[1]
    assert train[:1] == [train[0]]
    with pytest.raises(IndexError):
        train[2]


def test_nothing_is_read_before_it_is_used(tmp_path: Path):
    calls: list[int] = []

    def later() -> Plan:
        calls.append(1)
        return plan(tmp_path, [talk("A?", "a")])

    train = Split(later)
    assert not calls
    assert len(train) == 1
    assert train[0].answer == "a"
    assert len(calls) == 1


def test_packed_entries_come_back_as_they_were():
    entries = [
        (1, Entry("a", None, "ü\ud800\n", "", ("r", "s"), {"box": [0.5, 1.0]})),
        (4, Entry("", "x.png", "?", None)),
    ]

    packed = Packed(iter(entries))

    assert list(packed) == entries
    assert packed[-1] == entries[1]
    assert packed[1:] == entries[1:]


def test_a_hundred_thousand_records_take_little_more_memory_than_their_text():
    one = Entry("123456", "ArxivQA/images/1911.02852_1.jpg", "How many?\n" * 20, "B")

    packed = Packed((number, one) for number in range(100_000))

    assert len(packed._block) < 100_000 * (len(one.prompt) * 1.1 + 80)


def test_a_test_id_that_comes_twice_is_named_with_both_records(tmp_path: Path):
    test = split(tmp_path, [asked(3), asked(4), asked("3")], "question")

    with pytest.raises(
        DataError, match=r"data.json, record 3: question_id '3' stands in record 1 already; give every"
    ):
        len(test)


def test_ids_that_may_come_twice_are_told_apart_by_place(tmp_path: Path):
    test = split(tmp_path, [asked(3), asked(3)], "question", repeats=True)

    assert [sample.id for sample in test] == ["3-0", "3-1"]


@pytest.mark.parametrize(
    ("needs", "record", "sentence"),
    [
        ("answer", asked(1, answer=None), "has no answer"),
        ("answer", asked(1, answer=" "), "has an empty answer"),
        ("references", asked(1), "has no references to score a caption against"),
        ("answers", asked(1), "has no answers to score an answer against"),
        ("box", asked(1), "has no box to score an answer against"),
    ],
)
def test_a_record_without_what_its_rule_needs_is_refused(
    tmp_path: Path, needs: str, record: dict[str, Any], sentence: str
):
    with pytest.raises(DataError, match=f"data.json, record 1: {sentence}; repair or drop the record"):
        len(split(tmp_path, [record], "question", needs))


def test_an_empty_list_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"data.json: holds no records; fetch the file again"):
        len(split(tmp_path, []))


def test_a_path_that_leaves_the_folder_is_named_with_its_record(tmp_path: Path):
    train = split(tmp_path, [talk("A?", "a", "a.png"), talk("A?", "a", "../a.png")])

    assert train[0].image == tmp_path / "a.png"
    with pytest.raises(DataError, match=r"data.json, record 2: image '../a.png': holds '..'"):
        train[1]


def test_the_root_that_has_the_first_two_folders_of_a_path_is_taken(tmp_path: Path):
    for folder in ("one/A", "two/A/images/deep", "two/B"):
        (tmp_path / folder).mkdir(parents=True)
    roots = Roots((tmp_path / "one", tmp_path / "two"))

    assert roots.path("A/x.png") == tmp_path / "one/A/x.png"
    assert roots.path("A/images/x.png") == tmp_path / "two/A/images/x.png"
    assert roots.path("A/images/deep/x.png") == tmp_path / "two/A/images/deep/x.png"
    assert roots.path("./B/x.png") == tmp_path / "two/B/x.png"
    assert roots.path("C/x.png") == tmp_path / "one/C/x.png"
    assert roots.path("x.png") == tmp_path / "one/x.png"
    for text in ("/B/x.png", "../B/x.png"):
        with pytest.raises(DataError, match="may leave the data folder"):
            roots.path(text)


# Hugging Face datasets


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`disk/` by save_to_disk with a split train and a split test, `parquet/` the same as files."""
    import datasets

    folder = tmp_path_factory.mktemp("saved")
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    features = datasets.Features(
        {
            "question": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "picture": datasets.Image(),
        }
    )
    pictures = [Image.new("RGB", (3, 2), colour) for colour in ("red", "blue")]
    rows = {"question": ["A?", "B?", "C?"], "label": [1, 0, 1], "picture": [pictures[0], None, pictures[1]]}
    table = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": table, "test": table.select([2])}).save_to_disk(str(folder / "disk"))
    (folder / "parquet").mkdir()
    table.to_parquet(str(folder / "parquet/train-00000-of-00001.parquet"))
    return folder


COLUMNS = {"text": "question", "answer": "label", "image": "picture"}


def table(folder: Path, **more: Any) -> Split:
    made = Plan(folder, "datasets", Roots((folder,)), "answer", **{"columns": COLUMNS, **more})
    return Split(lambda: made)


@pytest.mark.parametrize("form", ["disk", "parquet", "parquet/train-00000-of-00001.parquet"])
def test_a_dataset_is_read_with_its_pictures_inside(saved: Path, form: str):
    train = table(saved / form, repeats=True)

    assert [(sample.prompt, sample.answer) for sample in train] == [
        ("A?", "dog"),
        ("B?", "cat"),
        ("C?", "dog"),
    ]
    assert train[1].image is None
    assert isinstance(train[2].image, Image.Image)
    assert train[2].image.getpixel((0, 0)) == (0, 0, 255)


def test_a_split_of_a_dataset_is_chosen_by_name(saved: Path):
    (sample,) = table(saved / "disk", split="test")

    assert (sample.id, sample.prompt) == ("1", "C?")


@pytest.mark.parametrize(
    ("folder", "changes", "sentence"),
    [
        ("disk", {"split": "tset"}, r"has no split 'tset'; did you mean 'test'\? known: test, train"),
        (
            "parquet",
            {"split": "test"},
            r"holds no dataset and no file test\*.parquet; save it with save_to_disk",
        ),
        ("disk", {"columns": {"text": "questoin"}}, r"has no column 'questoin'; did you mean 'question'\?"),
        ("disk", {"columns": {}}, "record 1: has no 'text'; repair or drop the record"),
    ],
)
def test_what_a_dataset_lacks_is_named(saved: Path, folder: str, changes: dict[str, Any], sentence: str):
    with pytest.raises(DataError, match=sentence):
        len(table(saved / folder, **changes))


def test_a_broken_dataset_is_one_sentence(tmp_path: Path):
    (tmp_path / "train-0.parquet").write_bytes(b"PAR1 broken")

    with pytest.raises(DataError, match="; save the dataset again"):
        len(table(tmp_path))


@pytest.mark.parametrize("column", ["conversations", "messages"])
def test_conversations_in_a_dataset_and_names_of_files_are_read(tmp_path: Path, column: str):
    import datasets

    turns = [talk("<image>\nA?", "a")["conversations"], talk("B?", "b")["conversations"]]
    rows = {column: turns, "image": ["x/1.png", None]}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "table"))

    train = table(tmp_path / "table", columns={})

    assert [(s.prompt, s.answer, s.image) for s in train] == [
        ("A?", "a", tmp_path / "table/x/1.png"),
        ("B?", "b", None),
    ]


def test_a_picture_in_a_list_of_one_is_the_picture(tmp_path: Path):
    import datasets

    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "answer": datasets.Value("string"),
            "images": datasets.List(datasets.Image()),
        }
    )
    picture = Image.new("RGB", (3, 2), "red")
    rows = {"text": ["A?", "B?", "C?"], "answer": ["a"] * 3, "images": [[picture], [], [picture] * 2]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "table"))
    train = table(tmp_path / "table", columns={})

    assert isinstance(train[0].image, Image.Image)
    assert train[1].image is None
    with pytest.raises(DataError, match="record 3: names 2 images where a sample has one"):
        train[2]


def test_the_package_datasets_is_asked_for_where_it_is_needed(saved: Path, monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def without(name: str, *more: Any, **named: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return real(name, *more, **named)

    monkeypatch.setattr(builtins, "__import__", without)

    with pytest.raises(
        DataError, match=r"disk: reading it takes the package datasets; pip install 'cl-zoo\[datasets\]'"
    ):
        len(table(saved / "disk"))
