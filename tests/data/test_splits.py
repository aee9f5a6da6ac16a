"""Splits: read when first used, checked record by record, kept compactly; and those inside Hugging Face datasets."""

from __future__ import annotations

import builtins
import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sequences import PARTS, PLACES, reads_as

from cl_zoo.data.contents import asked_and_expected, learnt
from cl_zoo.data.packed import Packed
from cl_zoo.data.places import where
from cl_zoo.data.records import Entry
from cl_zoo.data.roots import Roots
from cl_zoo.data.splits import Plan, Split
from cl_zoo.errors import DataError
from cl_zoo.features.encoder import open_image
from cl_zoo.tasks import Sample, as_named, origin, without_image


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


def test_which_answers_are_learnt_is_nothing_that_a_test_split_asks(tmp_path: Path):
    record = talk("A?", "a")
    record["conversations"] += talk("B?", "b")["conversations"]
    every, last = (split(tmp_path, [record], turns=turns) for turns in ("all", "last"))

    assert asked_and_expected(every, 1) == asked_and_expected(last, 1)
    assert learnt(every, 1) != learnt(last, 1)


def test_samples_to_learn_are_told_apart_by_place_because_ids_come_twice(tmp_path: Path):
    (tmp_path / "x.png").touch()
    train = split(tmp_path, [talk("<image>\nA?", "a", "x.png", id=5), talk("B?", "b", id=5)])

    assert [(sample.id, sample.prompt) for sample in train] == [("0", "A?"), ("1", "B?")]
    assert [sample.image for sample in train] == [tmp_path / "x.png", None]


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
        (5, Entry("b", None, "?", "a", before=(("Who?", "me"), ("", "you")), learns_before=False)),
        (6, Entry("c", "x.png", "?", "a", more_images=("y.png", "x.png"))),
    ]

    assert list(Packed(iter(entries))) == entries


@given(st.integers(0, 7), PLACES, PARTS)
def test_packed_entries_read_as_a_list(count: int, index: int, part: slice):
    entries = [(number, Entry(str(number), None, "?" * number, None)) for number in range(count)]

    reads_as(Packed(entries), entries, index, part)


@given(PLACES, PARTS)
def test_a_split_reads_as_a_list(index: int, part: slice):
    with tempfile.TemporaryDirectory() as folder:
        train = split(Path(folder), [talk(f"{place}?", f"{place}!") for place in range(5)])
        wanted = [Sample(f"{place}", None, f"{place}?", f"{place}!") for place in range(5)]

        reads_as(train, wanted, index, part)


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

    assert [test.as_named(place).id for place in (0, 1)] == ["3-0", "3-1"]


def test_the_records_own_id_and_the_name_of_its_image_stand_beside_a_sample(tmp_path: Path):
    """Where the sample's id is another one: of training records and of ids that come twice. No image is looked for."""
    train = split(tmp_path, [talk("<image>\nA?", "a", "b/x.png", id="q-7"), talk("B?", "b")])
    assert [origin(train, place) for place in (0, 1)] == [{"record": "q-7", "picture": "b/x.png"}, {}]

    twice = split(tmp_path, [asked(3), asked(3)], "question", repeats=True)
    assert [origin(twice, place)["record"] for place in (0, 1)] == ["3", "3"]

    once = split(tmp_path, [asked(3)], "question")
    assert origin(once, 0) == {"picture": "a/3.png"}


@pytest.mark.parametrize(
    ("needs", "record", "sentence"),
    [
        ("answer", asked(1, answer=None), "lacks an 'answer'"),
        ("answer", asked(1, answer=" "), "has an empty answer"),
        ("references", asked(1), "lacks 'references'"),
        ("answers", asked(1), "lacks 10 texts as 'answers' in its 'truth'"),
        ("answers", asked(1, answers=["red"] * 9), "lacks 10 texts as 'answers' in its 'truth'"),
        ("box", asked(1), "lacks four numbers as 'box' in its 'truth'"),
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
    (tmp_path / "a.png").touch()
    train = split(tmp_path, [talk("A?", "a", "a.png"), talk("A?", "a", "../a.png")])

    assert train[0].image == tmp_path / "a.png"
    with pytest.raises(DataError, match=r"data.json, record 2: image '../a.png': holds '..'"):
        train[1]


def test_an_image_that_is_not_there_is_named_with_its_record(tmp_path: Path):
    train = split(tmp_path, [talk("A?", "a"), talk("B?", "b", "x/b.png"), talk("C?", "c", "data.json/c.png")])

    assert train[0].image is None
    for place in (1, 2):
        path = train.as_named(place).image
        with pytest.raises(DataError) as caught:
            train[place]
        assert str(caught.value) == (
            f"{tmp_path}/data.json, record {place + 1}: image {path}: no such file; "
            "fetch it, or drop the record; 'cl-zoo data check' finds all"
        )
    for part, place in ((train[:2], 1), (train[1:][:1], -1)):
        assert as_named(part, place) == train.as_named(1)
        assert without_image(part, place) == train.without_images(1)
    assert as_named([Sample("0", None, "A?")], 0).prompt == "A?"
    (tmp_path / "x").mkdir()
    (tmp_path / "x/b.png").touch()
    assert train[1].image == tmp_path / "x/b.png"


def test_an_image_that_nobody_may_look_at_is_named_with_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    train = split(tmp_path, [talk("A?", "a", "a.png")])

    def closed(path: Any, *more: Any, **named: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    len(train)
    monkeypatch.setattr("cl_zoo.errors.os.stat", closed)
    with pytest.raises(
        DataError, match=r"record 1: image .*a.png: Permission denied; check who may read it$"
    ):
        train[0]


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


def test_a_name_alone_is_looked_for_as_a_file_in_one_folder_after_the_other(tmp_path: Path):
    for path in ("one/A.png/x", "two/A.png", "three/A.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    roots = Roots(tuple(tmp_path / name for name in ("one", "two", "three")))

    assert roots.path("A.png") == tmp_path / "two/A.png"
    assert roots.path("B.png") == tmp_path / "one/B.png"
    (tmp_path / "three/B.png").touch()
    assert roots.path("B.png") == tmp_path / "three/B.png"
    assert roots.path("A.png") == tmp_path / "two/A.png"
    assert roots.path("x" * 1000) == tmp_path / "one" / ("x" * 1000)


def test_a_folder_that_comes_later_is_found(tmp_path: Path):
    roots = Roots((tmp_path / "one", tmp_path / "two"), (tmp_path,))

    assert roots.path("A/x.png") == tmp_path / "A/x.png"
    (tmp_path / "one").mkdir()
    assert roots.path("A/x.png") == tmp_path / "one/A/x.png"
    (tmp_path / "two/A").mkdir(parents=True)
    assert roots.path("A/x.png") == tmp_path / "two/A/x.png"


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


def table(folder: Path, roots: Roots | None = None, **more: Any) -> Split:
    made = Plan(folder, "datasets", roots or Roots((folder,)), "answer", **{"columns": COLUMNS, **more})
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


def test_pictures_inside_a_dataset_are_identified_split_by_split_where_each_has_a_folder(saved: Path):
    """By names and sizes of the files that hold them, wherever they lie."""
    with tempfile.TemporaryDirectory() as elsewhere:
        copy = shutil.copytree(saved / "disk", Path(elsewhere) / "disk")
        before, moved = (learnt(table(one, repeats=True), 3) for one in (saved / "disk", copy))
        with next((copy / "test").glob("*.arrow")).open("ab") as file:
            file.write(b"more")
        beside = learnt(table(copy, repeats=True), 3)
        with next((copy / "train").glob("*.arrow")).open("ab") as file:
            file.write(b"more")
        inside = learnt(table(copy, repeats=True), 3)

    assert before == moved == beside
    assert inside != before


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


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"query": None}, "record 2: 'text' (column 'query') is null, not a text; repair or drop the record"),
        ({"sentence": " "}, "record 2: has an empty answer (column 'sentence'); repair or drop the record"),
        ({"sentence": None}, "record 2: lacks an 'answer' (column 'sentence'); repair or drop the record"),
    ],
)
def test_a_fault_in_a_dataset_is_named_with_its_split_and_its_own_column(
    tmp_path: Path, row: dict[str, Any], sentence: str
):
    import datasets

    rows = [{"query": "A?", "sentence": "a"}, {"query": "B?", "sentence": "b", **row}]
    datasets.DatasetDict({"dev": datasets.Dataset.from_list(rows)}).save_to_disk(str(tmp_path / "table"))
    columns = {"text": "query", "answer": "sentence"}

    with pytest.raises(DataError) as caught:
        len(table(tmp_path / "table", split="dev", columns=columns))
    assert str(caught.value) == f"{tmp_path}/table, split dev, {sentence}"


def test_a_dataset_that_may_not_be_read_is_one_sentence(saved: Path, monkeypatch: pytest.MonkeyPatch):
    import datasets

    def closed(path: str) -> Any:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(datasets, "load_from_disk", closed)
    with pytest.raises(DataError, match=r"disk: Permission denied; check who may read it$"):
        len(table(saved / "disk"))


def test_a_broken_dataset_is_one_sentence(tmp_path: Path):
    (tmp_path / "train-0.parquet").write_bytes(b"PAR1 broken")

    with pytest.raises(DataError, match="; save the dataset again"):
        len(table(tmp_path))


@pytest.mark.parametrize(
    ("column", "ids", "found"),
    [
        ("id", ["a7", "b8"], ["a7", "b8"]),
        ("id", [30, 40], ["30", "40"]),
        ("question_id", ["a7", "b8"], ["a7", "b8"]),
        ("name", ["a7", "b8"], ["1", "2"]),
        ("id", ["a7", None], ["a7", "2"]),
    ],
)
def test_a_record_of_a_dataset_keeps_its_own_id(
    tmp_path: Path, column: str, ids: list[Any], found: list[str]
):
    """Else its number in the dataset stands for one."""
    import datasets

    rows = {"text": ["A?", "B?"], "answer": ["a", "b"], column: ids}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "table"))

    test = table(tmp_path / "table", columns={})

    assert [sample.id for sample in test] == found
    assert [test.origin(place)["record"] for place in range(2)] == ["", ""]
    shown = [
        f"{test.plan.place}, record {n}" + f" (id {name!r})" * (name != str(n))
        for n, name in enumerate(found, 1)
    ]
    assert [where(test, place) for place in range(2)] == shown


def test_an_id_that_comes_twice_in_a_dataset_is_refused_or_told_apart(tmp_path: Path):
    import datasets

    rows = {"text": ["A?", "B?"], "answer": ["a", "b"], "id": ["a7", "a7"]}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "table"))

    with pytest.raises(DataError, match="record 2: question_id 'a7' stands in record 1 already"):
        len(table(tmp_path / "table", columns={}))
    told = table(tmp_path / "table", columns={}, repeats=True)
    assert [sample.id for sample in told] == ["a7-0", "a7-1"]


@pytest.mark.parametrize("column", ["conversations", "messages"])
def test_conversations_in_a_dataset_and_names_of_files_are_read(tmp_path: Path, column: str):
    import datasets

    turns = [talk("<image>\nA?", "a")["conversations"], talk("B?", "b")["conversations"]]
    rows = {column: turns, "image": ["x/1.png", None]}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "table"))

    train = table(tmp_path / "table", columns={})

    (tmp_path / "table/x").mkdir()
    (tmp_path / "table/x/1.png").touch()
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
    assert [image.size for image in train[2].images] == [(3, 2)] * 2
    assert train[2].prompt == "C?"


def pictured(folder: Path, *stored: dict[str, Any]) -> Split:
    """A dataset of pictures as they are stored: bytes, or a path."""
    import datasets

    kinds = {name: datasets.Value("string") for name in ("text", "answer")} | {"image": datasets.Image()}
    rows = {"text": ["A?"] * len(stored), "answer": ["a"] * len(stored), "image": list(stored)}
    made = datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))
    made.save_to_disk(str(folder / "table"))
    return table(folder / "table", columns={}, roots=Roots((folder,)))


def jpeg(path: Path, orientation: int) -> dict[str, Any]:
    """Left red, right blue, with a tag that says how a camera was held."""
    image = Image.new("RGB", (32, 16), "red")
    image.paste("blue", (16, 0, 32, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    return {"bytes": path.read_bytes(), "path": None}


def test_a_picture_inside_a_dataset_is_opened_as_its_file_would_be(tmp_path: Path):
    """A tag that turns the picture is ignored in both."""
    picture = jpeg(tmp_path / "turned.jpg", orientation=6)

    (sample,) = pictured(tmp_path, picture)

    assert isinstance(sample.image, Image.Image)
    file = open_image(tmp_path / "turned.jpg")
    assert (sample.image.mode, sample.image.size, sample.image.tobytes()) == ("RGB", (32, 16), file.tobytes())


def test_a_sample_without_its_image_decodes_nothing(tmp_path: Path):
    train = pictured(tmp_path, {"bytes": b"no picture", "path": None})

    sample = train.without_images(0)
    assert (sample.id, sample.image, sample.prompt, sample.answer) == ("1", None, "A?", "a")
    with pytest.raises(
        DataError,
        match=r"table, split train, record 1: its image cannot be decoded: .*; repair or drop the record",
    ):
        train[0]


def test_a_sample_without_its_image_says_what_the_sample_says(tmp_path: Path):
    test = split(tmp_path, [asked(3, references=["a dog"]), asked(4)], "question")

    for place in (0, 1, -1):
        assert test.as_named(place).image is not None
        assert test.without_images(place) == replace(test.as_named(place), image=None)


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


@pytest.mark.parametrize("faithful", [False, True])
def test_a_description_chooses_how_pictures_are_read(tmp_path: Path, faithful: bool):
    """Files and pictures inside a dataset alike."""
    picture = jpeg(tmp_path / "turned.jpg", orientation=6)
    plan = replace(pictured(tmp_path, picture).plan, faithful=faithful)
    (inside,) = Split(lambda: plan)
    questions = [{"question_id": 1, "text": "A?", "answer": "a", "image": "turned.jpg"}]
    (tmp_path / "test.json").write_text(json.dumps(questions))
    (beside,) = Split(lambda: replace(plan, file=tmp_path / "test.json", form="question"))

    assert inside.image is not None
    assert beside.image is not None
    for sample in (inside, beside):
        assert open_image(sample.image).size == ((16, 32) if faithful else (32, 16))
