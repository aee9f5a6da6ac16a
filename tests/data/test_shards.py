"""Shards of WebDataset: what is read of them, what is refused, and that nothing is unpacked."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from cl_zoo.data import shards
from cl_zoo.data.benchmarks import Described
from cl_zoo.data.contents import learnt
from cl_zoo.data.converting import convert
from cl_zoo.data.places import digest, where
from cl_zoo.data.roots import Roots
from cl_zoo.data.splits import Plan, Split
from cl_zoo.errors import DataError
from cl_zoo.inspection.check import inspect

ASKED = {"text": "What colour?", "answer": "red"}
Members = list[tuple[str, bytes]]


def png(colour: str = "red", mode: str = "RGB") -> bytes:
    held = io.BytesIO()
    Image.new(mode, (4, 3), colour).save(held, "PNG")
    return held.getvalue()


def sample(key: str, picture: bytes | None = None, **record: Any) -> Members:
    pictured = [] if picture is None else [(f"{key}.png", picture)]
    return [*pictured, (f"{key}.json", json.dumps({**ASKED, **record}).encode())]


def shard(file: Path, members: Members, *more: tarfile.TarInfo) -> Path:
    with tarfile.open(file, "w") as opened:
        for name, content in members:
            about = tarfile.TarInfo(name)
            about.size = len(content)
            opened.addfile(about, io.BytesIO(content))
        for about in more:
            opened.addfile(about)
    return file


def split(file: Path, name: str = "train", **more: Any) -> Split:
    made = Plan(file, "webdataset", Roots((file.parent,)), "answer", split=name, **more)
    return Split(lambda: made)


def test_samples_are_read_from_a_shard_with_their_pictures_and_nothing_is_unpacked(tmp_path: Path):
    members = [*sample("a/000", png("red")), ("a/000.cls", b"7"), *sample("a/001", png("blue"), id="own")]
    test = split(shard(tmp_path / "a.tar", [*members, *sample("../../etc/x")]))

    assert [(one.id, one.prompt, one.answer) for one in test] == [
        (name, "What colour?", "red") for name in ("a/000", "own", "../../etc/x")
    ]
    colours = [one.image.getpixel((0, 0)) for one in test if isinstance(one.image, Image.Image)]
    assert colours == [(255, 0, 0), (0, 0, 255)]
    assert test[2].image is None
    assert test.undecoded(1).image.mode == "RGB"
    assert where(test, 1) == f"{tmp_path}/a.tar, split train, record 2 (id 'own')"
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_conversations_and_texts_under_other_names_are_read(tmp_path: Path):
    turns = [{"from": "human", "value": "<image>\nWho?"}, {"from": "gpt", "value": "me"}]
    said = shard(
        tmp_path / "a.tar", [("0.json", json.dumps({"conversations": turns}).encode()), ("0.png", png())]
    )
    told = shard(
        tmp_path / "b.tar", [("0.png", png()), ("0.json", b'{"question": "Who?"}'), ("0.txt", b"a dog")]
    )

    (one,) = split(said)
    assert (one.prompt, one.answer, one.image.size) == ("Who?", "me", (4, 3))
    (one,) = split(told, columns={"text": "question", "answer": "txt"})
    assert (one.prompt, one.answer) == ("Who?", "a dog")


@pytest.mark.parametrize(
    ("names", "wanted", "found"),
    [
        (["train-0.tar", "train-1.tar", "test-0.tar"], "train", ["train-0", "train-1"]),
        (["train-0.tar", "train-1.tar", "test-0.tar"], "test", ["test-0"]),
        (["0001.tar", "0000.tar", "notes.txt"], "test", ["0000", "0001"]),
        (["night-0.tar", "day-0.tar"], "night", ["night-0"]),
    ],
)
def test_of_a_folder_the_shards_of_the_split_are_read_in_the_order_of_their_names(
    tmp_path: Path, names: list[str], wanted: str, found: list[str]
):
    for name in names:
        shard(tmp_path / name, sample(name.partition(".")[0]))

    assert [one.id for one in split(tmp_path, wanted)] == found


def link(name: str) -> tarfile.TarInfo:
    about = tarfile.TarInfo(name)
    about.type, about.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return about


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:1100])


def garbled(file: Path) -> None:
    """The header of the second member."""
    content = bytearray(file.read_bytes())
    content[1024:1100] = b"x" * 76
    file.write_bytes(content)


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a link": (lambda f: shard(f, [], link("0.png")), r"member 0\.png: is a link, a device or a file with holes; write plain"),
    "too large": (lambda f: shard(f, [("0.txt", b"x" * 65)]), r"member 0\.txt: has 65 bytes where \.txt may have 64; leave"),
    "two pictures": (lambda f: shard(f, [("0.png", png()), ("0.jpg", b"x")]), "member 0: has 2 pictures where a sample has one"),
    "no JSON": (lambda f: shard(f, [("0.json", b"{")]), r"member 0\.json: is no JSON; write the shard again"),
    "no text": (lambda f: shard(f, [("0.txt", b"\xff")]), r"member 0\.txt: is no UTF-8 text; write the shard again"),
    "a list": (lambda f: shard(f, [("0.json", b"[]")]), r"member 0\.json: is no object; write the record as one"),
    "cut off": (lambda f: cut_off(shard(f, sample("0", png("red") * 9))), "is cut off|is damaged|damaged one"),
    "garbled": (lambda f: garbled(shard(f, [("0.txt", b"a"), ("1.txt", b"b")])), "is damaged from byte 1,024 on; fetch"),
    "no tar": (lambda f: f.write_bytes(b"x" * 2000), "is no tar archive, or a damaged one"),
    "nothing": (lambda f: shard(f, []), "holds no records; fetch the file again"),
    "no question": (lambda f: shard(f, [("0.png", png()), ("0.txt", b"a dog")]), "record 1: has no 'text'|'text'"),
    "no shard": (lambda f: f.mkdir(), r"holds no shard train\*\.tar; put the tar files there"),
}  # fmt: skip


@pytest.mark.parametrize("spoil", REFUSED)
def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: str):
    monkeypatch.setitem(shards.MOST, "txt", 64)
    write, sentence = REFUSED[spoil]
    write(tmp_path / "a.tar")

    with pytest.raises(DataError, match=sentence) as caught:
        len(split(tmp_path / "a.tar"))
    assert str(caught.value).startswith(f"{tmp_path}/a.tar")
    assert "\n" not in str(caught.value)


def test_a_damaged_picture_is_named_with_its_record(tmp_path: Path):
    train = split(shard(tmp_path / "a.tar", sample("0", png()[:40])))

    assert len(train) == 1
    with pytest.raises(DataError, match=r"record 1.*its image cannot be decoded"):
        train[0]


def test_what_identifies_a_split_changes_with_a_picture_in_a_shard(tmp_path: Path):
    file = tmp_path / "a.tar"
    before = digest(split(shard(file, sample("0", png("red")))))

    assert digest(split(file)) == before
    assert digest(split(shard(file, sample("0", png("red") + bytes(600))))) != before


def test_a_run_is_told_from_another_by_the_pictures_in_the_shards_of_its_own_split(tmp_path: Path):
    train = shard(tmp_path / "train-0.tar", sample("0", png("red")))
    shard(tmp_path / "test-0.tar", sample("0", png("red")))
    size, before = train.stat().st_size, learnt(split(tmp_path), 1)

    shard(tmp_path / "test-0.tar", sample("0", png("red") + bytes(20_000)))
    assert learnt(split(tmp_path), 1) == before
    shard(train, sample("0", png("red") + bytes(20)))
    assert train.stat().st_size == size
    assert learnt(split(tmp_path), 1) != before


def described(folder: Path) -> Described:
    (folder / "birds").mkdir()
    shard(folder / "birds/train-0.tar", [*sample("0", png("red")), *sample("1", png("#ff000080", "RGBA"))])
    shard(folder / "birds/test-0.tar", sample("2", png("blue"), answer="blue "))
    source = {"files": ["birds"], "format": "webdataset"}
    task: dict[str, Any] = {"name": "colour", "letter": "C", "metric": "exact", "max_new_tokens": 4}
    about = {"name": "mine", "version": "1", "methods": ["finetune"], "backbone": "llava", "images": ["."]}
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump({**about, "tasks": [{**task, "train": source, "test": source}]}))
    return Described(file, beside=True)


def test_a_list_of_shards_is_told_the_folder(tmp_path: Path):
    plugin = described(tmp_path)
    plugin.path.write_text(plugin.path.read_text().replace("birds", "birds/train-{0000..0012}.tar", 1))

    with pytest.raises(
        DataError, match=r"task colour: .*12}.tar' is a list of shards; name the folder that they lie in"
    ):
        Described(plugin.path, beside=True)(None)


def test_shards_are_checked_as_other_data_are(tmp_path: Path):
    report = inspect(described(tmp_path), None, name="mine")

    assert [(one.kind, one.record) for one in report.findings if one.fault] == [("gold", 1)]
    assert report.to_json()["pictures"]["transparent"]["files"] == [
        f"{tmp_path}/birds, split train, record 2"
    ]


def test_a_check_counts_records_and_pictures_and_not_the_questions_of_conversations_that_are_split(
    tmp_path: Path,
):
    plugin = described(tmp_path)
    texts = ("What colour?", "red", "Why?", "paint")
    turns = [{"from": who, "value": text} for who, text in zip(["human", "gpt"] * 2, texts, strict=True)]
    said = [(f"{n}.json", json.dumps({"conversations": turns}).encode()) for n in range(2)]
    pictured = [(f"{n}.png", png("#ff000080", "RGBA")) for n in range(2)]
    shard(tmp_path / "birds/train-0.tar", sorted(said + pictured))
    about = yaml.safe_load(plugin.path.read_text())
    about["tasks"][0]["train"] = {**about["tasks"][0]["train"], "turns": "split", "count": 2}
    plugin.path.write_text(yaml.safe_dump(about))

    report = inspect(Described(plugin.path, beside=True), None)

    train, _ = report.tasks
    assert (train.records, train.samples, train.multi_turn, train.repeated_ids) == (2, 4, 2, 0)
    assert [one.kind for one in report.findings if one.fault] == ["gold"]
    assert report.to_json()["pictures"]["transparent"]["count"] == 2
    (remark,) = [one.sentence for one in report.findings if one.kind == "turns"]
    assert "'turns' is 'split': 'all' 2 samples with 4 learnt answers" in remark


def test_converted_shards_are_json_lines_with_files_beside_them(tmp_path: Path):
    source = described(tmp_path)

    file = convert(source(None), source, tmp_path / "to")

    (task,) = Described(file, beside=True)(None).tasks
    assert [(one.prompt, one.answer) for one in task.train] == [("What colour?", "red")] * 2
    assert [one.id for one in task.test] == ["2"]
    with Image.open(task.test[0].image) as picture:
        assert picture.convert("RGB").getpixel((0, 0)) == (0, 0, 255)
