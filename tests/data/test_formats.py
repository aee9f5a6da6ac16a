"""What users bring: one tiny file of each form that is accepted, and the sentences for those that are not."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cl_zoo.data.faults import Outside
from cl_zoo.data.files import read_records
from cl_zoo.data.records import Entry, entries, image_path, other_form
from cl_zoo.data.roots import Roots
from cl_zoo.data.splits import Plan, Split
from cl_zoo.errors import DataError

FORMATS = Path(__file__).with_name("formats")
WHO = Entry("", "a.png", "Who?", "me")
ASKED = Entry("7", "a.png", "Who?", "me")
ACCEPTED = {
    "llava.json": ("llava", [ASKED]),
    "llava_turns.json": ("llava", [Entry("7", "a.png", "Where?", "here", before=(("Who?", "me"),))]),
    "llava_numbers.json": ("llava", [Entry("", "a.png", "How many?", "2.5")]),
    "sharegpt.json": ("sharegpt", [WHO]),
    "messages_trl.jsonl": ("sharegpt", [WHO]),
    "messages_qwen.jsonl": ("sharegpt", [WHO]),
    "messages_openai.jsonl": ("sharegpt", [WHO]),
    "texts_cauldron.json": ("sharegpt", [WHO]),
    "question.jsonl": ("question", [ASKED]),
    "question_numbers.json": ("question", [Entry("7", "a.png", "How many?", "4")]),
    "a_list.jsonl": ("question", [ASKED]),
    "byte_order_mark.json": ("question", [ASKED]),
    "byte_order_mark_utf16.jsonl": ("question", [ASKED]),
}


def refused(record: dict[str, Any], form: str = "sharegpt") -> str:
    with pytest.raises(DataError) as caught:
        entries(record, 1, "x.json", form)
    return str(caught.value).removeprefix("x.json, record 1: ")


@pytest.mark.parametrize("name", sorted(path.name for path in FORMATS.iterdir()))
def test_a_file_of_every_form_is_read(name: str):
    form, wanted = ACCEPTED[name]

    assert other_form(read_records(FORMATS / name), form) is None
    assert entries(read_records(FORMATS / name)[0], 1, name, form) == wanted


def test_a_conversation_is_one_sample_with_its_turns_or_one_for_each_question():
    record = read_records(FORMATS / "llava_turns.json")[0]
    whole = Entry("7", "a.png", "Where?", "here", before=(("Who?", "me"),))

    assert entries(record, 1, "x.json", "llava", "all") == [whole]
    assert entries(record, 1, "x.json", "llava", "last") == [replace(whole, learns_before=False)]
    assert entries(record, 1, "x.json", "llava", "split") == [ASKED, Entry("7", "a.png", "Where?", "here")]


def turns_of(*texts: str, **more: Any) -> dict[str, Any]:
    said = zip(["human", "gpt"] * len(texts), texts, strict=False)
    return {"conversations": [{"from": who, "value": text} for who, text in said], **more}


def test_one_image_stands_before_the_question_that_names_it_and_one_named_twice_may_be_split():
    record = turns_of("Who?", "me", "Where?\n<image>", "here", image="a.png")
    twice = turns_of("<image>\nWho?", "me", "<image>\nWhere?", "here", image="a.png")

    (found,) = entries(record, 1, "x.json", "llava")
    assert (found.before, found.prompt) == ((("Who?", "me"),), "<image>Where?")
    assert refused(twice, "llava") == (
        "has 2 <image> and names 1 image; write 'turns: split', or repair or drop the record"
    )
    assert [one.prompt for one in entries(twice, 1, "x.json", "llava", "split")] == ["Who?", "Where?"]


@pytest.mark.parametrize(
    ("asked", "prompt"),
    [
        ("What differs?", "What differs?"),
        ("<image>\n<image>\nWhat differs? ", "What differs?"),
        ("<image>\nWhat differs?", "What differs?"),
        ("What differs?\n<image><image>", "What differs?\n<image><image>"),
        ("<image> Is it in <image> ?", "Is it in <image> ?"),
        ("Picture 1: <image>\nPicture 2: <image>\nWhat differs?", "Picture 1: <image>\nPicture 2: <image>\nWhat differs?"),
    ],
)  # fmt: skip
def test_several_images_stand_where_their_tokens_do_and_those_without_come_first(asked: str, prompt: str):
    record = turns_of(asked, "me", images=["a.png", "b.png"])

    assert entries(record, 1, "x.json", "llava") == [Entry("", "a.png", prompt, "me", more_images=("b.png",))]
    (question,) = entries(
        {"question_id": 1, "image": ["a.png", "b.png"], "text": asked}, 1, "x.json", "question"
    )
    assert (question.prompt, question.images) == (prompt, ("a.png", "b.png"))


def test_several_images_in_a_conversation_stand_in_its_turns_and_are_not_split():
    record = turns_of("<image>\nWho?", "me", "<image>\n<image>\nWho now?", "you", images=["a", "b", "c"])

    (found,) = entries(record, 1, "x.json", "llava")
    assert (found.before, found.prompt) == ((("Who?", "me"),), "<image><image>Who now?")
    with pytest.raises(
        DataError, match=r"asks 2 questions about 3 images.*; write 'turns: all', or a record for each"
    ):
        entries(record, 1, "x.json", "llava", "split")
    parts = [
        {"type": "image", "image": "a.png"},
        {"type": "image", "image": "b.png"},
        {"type": "text", "text": "?"},
    ]
    (found,) = entries(of_parts(*parts), 1, "x.json", "sharegpt")
    assert (found.prompt, found.images) == ("?", ("a.png", "b.png"))


def of_parts(*parts: Any, **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": list(parts)}, {"role": "assistant", "content": "a"}]
    return {"messages": turns, **more}


def test_texts_around_a_picture_stay_apart():
    record = of_parts({"text": "Look at"}, {"type": "image"}, "What is it?", image="a.png")
    (found,) = entries(record, 1, "x.json", "sharegpt")

    assert found.prompt == "Look at\n\nWhat is it?"


def test_a_picture_that_turn_and_record_name_is_one():
    picture = {"type": "image", "image": "a.png"}

    assert entries(of_parts(picture, "?", images=["a.png"]), 1, "x.json", "sharegpt")[0].image == "a.png"
    assert refused(of_parts(picture, "?", images=["b.png"])) == (
        "names other images in its turns than beside them; repair or drop the record"
    )


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ({"type": "audio", "audio": "a.mp3"}, "'content' holds a part of type 'audio'; only texts, images and videos are read"),
        ({"type": "video", "video": "https://x.org/a.mp4"}, "video 'https://x.org/a.mp4' is a web address; fetch the video"),
        ({"type": "image_url", "image_url": {"url": "https://x.org/a.png"}}, "image 'https://x.org/a.png' is a web address; fetch"),
        ({"type": "image", "image": "data:image/png;base64,AAAA"}, "image 'data:image/png;base64,AAAA' is the picture itself; write"),
        ({"type": "image"}, "has <image> but names no image"),
        (5, "'content' holds a number where a part is expected"),
    ],
)  # fmt: skip
def test_a_part_that_cannot_be_read_is_named(part: Any, says: str):
    assert refused(of_parts(part, {"type": "text", "text": "?"})).startswith(says)


# Files of another form


@pytest.mark.parametrize(
    ("name", "form", "remedy"),
    [
        ("question.jsonl", "llava", "its records are in the format question, not llava; write 'format: question'"),
        ("llava.json", "question", "its records are in the format llava, not question; write 'format: llava'"),
        ("texts_cauldron.json", "question", "its records are in the format sharegpt, not question; write 'format: sharegpt'"),
    ],
)  # fmt: skip
def test_a_file_of_another_form_is_told_its_form(name: str, form: str, remedy: str):
    plan = Plan(FORMATS / name, form, Roots((FORMATS,)), "answer")

    with pytest.raises(DataError) as caught:
        len(Split(lambda: plan))
    assert str(caught.value) == f"{FORMATS / name}: {remedy}"


def test_a_file_of_no_known_form_is_told_which_there_are():
    says = other_form([{"instruction": "Who?", "output": "me"}] * 2, "llava")

    assert says == (
        "none of its 2 records is in the format llava (keys of the first: instruction, output); write them as llava, sharegpt or "
        "question, or give 'format: datasets' with 'columns'"
    )
    assert (
        other_form([{"text": "?", "question_id": 1}, {"id": 2}], "question") is None
    )  # the second is at fault


def test_a_file_of_another_kind_is_named_with_what_to_do(tmp_path: Path):
    for name, pack in (("a.zip", zipped), ("a.tar", tarred), ("a.gz", gzip.compress)):
        (tmp_path / name).write_bytes(pack(b"[]"))
    (tmp_path / "a.parquet").write_bytes(b"PAR1...PAR1")
    says = {
        "a.zip": "is a zip archive; unpack it",
        "a.gz": "is a gzip file; unpack it",
        "a.parquet": "is a Parquet file; write 'format: datasets'",
        "a.tar": "is a tar archive; write 'format: webdataset' for shards, else unpack it",
    }

    for name, sentence in says.items():
        with pytest.raises(DataError) as caught:
            read_records(tmp_path / name)
        assert str(caught.value) == f"{tmp_path / name}: {sentence}"


def zipped(content: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.json", content)
    return packed.getvalue()


def tarred(content: bytes) -> bytes:
    packed, member = io.BytesIO(), tarfile.TarInfo("a.json")
    member.size = len(content)
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


# Links


def linked(tmp_path: Path) -> tuple[Path, Path]:
    """A data folder with `pictures/coco` that leads elsewhere, as large picture folders are laid."""
    data, disk = tmp_path / "data", tmp_path / "disk"
    (data / "pictures").mkdir(parents=True)
    disk.mkdir()
    Image.new("RGB", (2, 2)).save(disk / "a.png")
    (data / "pictures" / "coco").symlink_to(disk)
    return data, disk


def test_a_linked_folder_is_read_where_it_is_listed_and_refused_elsewhere(tmp_path: Path):
    data, disk = linked(tmp_path)
    pictures = data / "pictures"

    with pytest.raises(Outside) as caught:
        Roots((pictures,), (data,)).path("coco/a.png")
    assert str(caught.value) == (
        f"image 'coco/a.png': leads out of {pictures} to {disk}/a.png through a link; move the file into the data folder, or list "
        "the linked folder under 'images' of the benchmark's YAML"
    )
    listed = Roots((pictures, pictures / "coco"), (data,))
    assert listed.path("coco/a.png") == pictures / "coco" / "a.png"
    (pictures / "passwd.png").symlink_to("/etc/passwd")
    with pytest.raises(Outside, match="leads out of"):
        listed.path("passwd.png")


def test_a_link_from_one_folder_of_the_data_into_another_is_inside(tmp_path: Path):
    data, _ = linked(tmp_path)
    (data / "real").mkdir()
    (data / "real" / "b.png").touch()
    (data / "pictures" / "b.png").symlink_to(data / "real" / "b.png")

    assert Roots((data / "pictures",), (data,)).path("b.png") == data / "pictures" / "b.png"


def test_a_snapshot_of_the_hub_s_cache_is_read_through_its_links(tmp_path: Path):
    repository = tmp_path / "datasets--someone--birds"
    snapshot = repository / "snapshots" / "0123abc"
    (repository / "blobs").mkdir(parents=True)
    (snapshot / "pictures").mkdir(parents=True)
    (repository / "blobs" / "ff00").write_bytes(b"picture")
    (snapshot / "pictures" / "a.png").symlink_to("../../../blobs/ff00")
    (snapshot / "pictures" / "b.png").symlink_to("/etc/passwd")

    roots = Roots((snapshot / "pictures",), (snapshot,))
    assert roots.path("a.png").read_bytes() == b"picture"
    with pytest.raises(Outside, match="to /etc/passwd through a link"):
        roots.path("b.png")


def test_a_long_name_is_shown_in_part(tmp_path: Path):
    with pytest.raises(DataError) as caught:
        image_path(tmp_path, "/" + "x" * 5000)
    assert len(str(caught.value)) < 400


# Pipes


def test_a_pipe_does_not_hang(tmp_path: Path):
    pipe = tmp_path / "a.png"
    os.mkfifo(pipe)
    (tmp_path / "train.json").write_text((FORMATS / "llava.json").read_text())
    split = Split(lambda: Plan(tmp_path / "train.json", "llava", Roots((tmp_path,)), "answer"))

    assert len(split) == 1
    with pytest.raises(
        DataError, match=r"a.png: is no file but a pipe, a socket or a device; replace it by the picture"
    ):
        split[0]
    with pytest.raises(
        DataError, match=r"a.png: is no file but a pipe, a socket or a device; pass the path of a file"
    ):
        read_records(pipe)


# Parquet


@pytest.mark.parametrize("name", ["trl", "cauldron", "numbers"])
def test_conversations_and_numbers_are_read_from_parquet(tmp_path: Path, name: str):
    """Pictures inside the file; in a list of parts every part has all keys, null where it does not use them."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    picture, kind = Image.new("RGB", (4, 4), (200, 0, 0)), datasets.Sequence(datasets.Image())
    asked = [{"type": "image", "text": None}, {"type": "text", "text": "Who?"}]
    answered = [{"type": "text", "text": "me"}]
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    rows = {
        "trl": {"images": [picture], "messages": turns},
        "cauldron": {"images": [picture], "texts": [{"user": "Who?", "assistant": "me", "source": "x"}]},
        "numbers": {"text": "Who?", "answer": 4},
    }
    table = datasets.Dataset.from_list([rows[name]])
    table = table.cast_column("images", kind) if "images" in rows[name] else table
    table.to_parquet(tmp_path / "a.parquet")
    plan = Plan(tmp_path / "a.parquet", "datasets", Roots((tmp_path,)), "answer")

    (found,) = Split(lambda: plan)
    assert (found.prompt, found.answer) == ("Who?", "4" if name == "numbers" else "me")
    if name != "numbers":
        assert found.image.tobytes() == picture.tobytes()
