"""Records of videos: as many images as are wanted, where the video's token stands, and what is said of records that cannot be used."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from films import TONES, film, tone

import cl_zoo
from cl_zoo.data.benchmarks import Described, load_benchmark
from cl_zoo.data.converting import convert
from cl_zoo.data.records import Entry, entries
from cl_zoo.errors import DataError
from cl_zoo.features.encoder import open_image
from cl_zoo.inspection.check import inspect
from cl_zoo.inspection.page import page
from cl_zoo.runs.chain import data_of
from cl_zoo.runs.examples import thumbnail
from cl_zoo.tasks import origin

MARKS = "<image><image>"
TWO = ("a.mp4/frame-1-of-2", "a.mp4/frame-2-of-2")


def asked_of(asked: str, *more: str, **named: Any) -> dict[str, Any]:
    said = zip(["human", "gpt"] * 9, [asked, "me", *more], strict=False)
    return {"conversations": [{"from": who, "value": text} for who, text in said], **named}


@pytest.mark.parametrize(
    ("asked", "prompt"),
    [
        ("Who?", "Who?"),
        ("<video>\nWho?", "Who?"),
        ("<image>\nWho?", "Who?"),
        ("Who is in <video> ?", f"Who is in {MARKS} ?"),
        ("Who?\n<video>", f"Who?\n{MARKS}"),
    ],
)
def test_a_video_stands_for_its_frames_where_its_token_does(asked: str, prompt: str) -> None:
    wanted = Entry("", TWO[0], prompt, "me", more_images=TWO[1:])

    assert entries(asked_of(asked, video="a.mp4"), 1, "x.json", "llava", frames=2) == [wanted]
    assert entries(asked_of(asked, videos=["a.mp4"]), 1, "x.json", "sharegpt", frames=2) == [wanted]
    record = {"question_id": "1", "text": asked, "answer": "me", "video": "a.mp4"}
    (found,) = entries(record, 1, "x.json", "question", frames=2)
    assert (found.prompt, found.images) == (prompt, TWO)


def test_of_one_frame_a_video_is_an_image_and_of_none_said_there_are_eight() -> None:
    (one,) = entries(asked_of("Who is in <video> ?", video="a.mp4"), 1, "x.json", "llava", frames=1)
    assert (one.images, one.prompt) == (("a.mp4/frame-1-of-1",), "Who is in  ?")
    (usual,) = entries(asked_of("Who?", video="a.mp4"), 1, "x.json", "llava")
    assert usual.images == tuple(f"a.mp4/frame-{number}-of-8" for number in range(1, 9))


def test_videos_and_images_named_in_the_parts_of_a_turn_keep_their_order() -> None:
    parts = [
        {"type": "image", "image": "a.png"},
        {"type": "text", "text": "Is it in"},
        {"type": "video", "video": "a.mp4"},
        {"type": "video_url", "video_url": {"url": "b.mp4"}},
    ]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "no"}]
    (found,) = entries({"messages": turns}, 1, "x.json", "sharegpt", frames=2)
    assert found.images == ("a.png", *TWO, "b.mp4/frame-1-of-2", "b.mp4/frame-2-of-2")
    assert found.prompt == f"Is it in\n{MARKS}\n{MARKS}"

    turns[0]["content"] = [{"type": "text", "text": "Who?"}, {"type": "video"}]
    (found,) = entries({"messages": turns, "videos": ["a.mp4"]}, 1, "x.json", "sharegpt", frames=2)
    assert (found.images, found.prompt) == (TWO, f"Who?\n{MARKS}")


def test_a_conversation_about_one_video_is_learnt_whole_or_split_and_about_two_it_is_not_split() -> None:
    record = asked_of("<video>\nWho?", "Where?", "here", video="a.mp4")

    (whole,) = entries(record, 1, "x.json", "llava", "all", 2)
    assert (whole.before, whole.prompt, whole.images) == ((("Who?", "me"),), "Where?", TWO)
    split = entries(record, 1, "x.json", "llava", "split", 2)
    assert [(one.prompt, one.answer, one.images) for one in split] == [
        ("Who?", "me", TWO),
        ("Where?", "here", TWO),
    ]
    two = asked_of("<video>\n<video>\nWho?", "Where?", "here", videos=["a.mp4", "b.mp4"])
    with pytest.raises(DataError, match="asks 2 questions about 4 images"):
        entries(two, 1, "x.json", "llava", "split", 2)


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (asked_of("<video>\nWho?"), "has <video> but names no video"),
        (asked_of("<video>\n<video>\nWho?", video="a.mp4"), "has more <video> than the 1 video that it names"),
        (asked_of("Who?", video="a.mp4", image="a.png"), "names images and videos beside its turns; name both as"),
        (asked_of("Who?", video=3), "its video is a number"),
        (asked_of("Who?", video="https://x.org/a.mp4"), "video 'https://x.org/a.mp4' is a web address; fetch the video"),
    ],
)  # fmt: skip
def test_a_record_of_a_video_that_cannot_be_used_is_named(record: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError) as caught:
        entries(record, 4, "x.json", "llava")
    assert str(caught.value).startswith(f"x.json, record 4: {says}")


def described(folder: Path, frames: int | None = 4, test: Any = None, train: Any = None) -> Path:
    """A task about `clips/a.mp4` and `clips/b.mp4`; the records may be others."""
    (folder / "clips").mkdir(exist_ok=True)
    for name, tones in (("a", TONES), ("b", TONES[::-1])):
        film(folder / "clips" / f"{name}.mp4", tones)
    learnt = [asked_of("<video>\nWhat happens?", id="1", video="a.mp4")]
    asked = [{"question_id": "1", "text": "What happens?", "answer": "me", "video": "b.mp4"}]
    (folder / "train.json").write_text(json.dumps(train or learnt))
    (folder / "test.json").write_text(json.dumps(test or asked))
    task = {"name": "t", "letter": "T", "metric": "exact", "max_new_tokens": 3}
    task["train"] = {"files": ["train.json"], "format": "llava"}
    task["test"] = {"files": ["test.json"], "format": "question"}
    about = {
        "name": "films",
        "version": "1",
        "methods": ["finetune"],
        "backbone": "mini",
        "images": ["clips"],
    }
    about |= {"tasks": [task]} | ({} if frames is None else {"frames": frames})
    (folder / "films.yaml").write_text(yaml.safe_dump(about))
    return folder / "films.yaml"


def test_a_description_says_how_many_frames_are_taken_and_nothing_is_read_before_it_is_asked_for(
    tmp_path: Path,
) -> None:
    (task,) = load_benchmark(str(described(tmp_path))).tasks

    (sample,) = task.train
    assert [str(image) for image in sample.images] == [
        str(tmp_path / "clips" / "a.mp4" / f"frame-{number}-of-4") for number in (1, 2, 3, 4)
    ]
    # 30/8 = 3.75, 11.25, 18.75, 26.25
    assert [tone(open_image(image)) for image in sample.images] == [TONES[k] for k in (3, 11, 18, 26)]
    assert origin(task.test, 0) == {"picture": "b.mp4"}
    assert thumbnail(*sample.images).startswith("data:image/jpeg;base64,")
    (tmp_path / "clips" / "b.mp4").unlink()
    with pytest.raises(
        DataError, match=r"test\.json, record 1: video .*b\.mp4: no such file; fetch it, or drop"
    ):
        task.test[0]


def test_the_number_of_frames_is_part_of_the_data_s_identity(tmp_path: Path) -> None:
    def told(frames: int | None) -> tuple[str, str, str]:
        benchmark = load_benchmark(str(described(tmp_path, frames)))
        data = data_of(benchmark, benchmark.tasks[0])
        return data.learnt, data.asked, data.expected

    usual, eight, four = told(None), told(8), told(4)
    assert usual == eight
    assert (usual[0] != four[0], usual[1] != four[1], usual[2] == four[2]) == (True, True, True)


def test_a_check_counts_videos_and_tells_each_fault_once(tmp_path: Path) -> None:
    file = described(tmp_path, frames=40)
    report = inspect(Described(file, {}, beside=True), None)
    assert [one.kind for one in report.findings if one.fault] == []
    short = next(one for one in report.findings if one.kind == "short video")
    assert short.sentence.startswith("80 of 80 images have a video of fewer frames than are taken")
    sizes = [(tmp_path / "clips" / name).stat().st_size for name in ("a.mp4", "b.mp4")]
    shown = page(report)
    assert shown.count("<img alt=") == 12  # the first of them, as they are
    assert "stands inside a dataset" not in shown
    assert report.images == {"checked": 80, "bytes": sum(sizes), "memory": 0}

    (tmp_path / "clips" / "a.mp4").write_bytes(b"no video at all")
    (tmp_path / "clips" / "b.mp4").unlink()
    faults = [one.sentence for one in inspect(Described(file, {}, beside=True), None).findings if one.fault]
    assert faults == [
        f"{tmp_path}/test.json, record 1: video {tmp_path}/clips/b.mp4 is missing; fetch it, or drop the record",
        f"{tmp_path}/train.json, record 1: video {tmp_path}/clips/a.mp4 cannot be read as a video: invalid data found when "
        "processing input; fetch the file again",
    ]


def test_a_test_question_about_a_video_that_training_holds_is_a_leak(tmp_path: Path) -> None:
    test = [{"question_id": "1", "text": "What happens?", "answer": "me", "video": "copy.mp4"}]
    file = described(tmp_path, test=test)
    (tmp_path / "clips" / "copy.mp4").write_bytes((tmp_path / "clips" / "a.mp4").read_bytes())

    found = {one.kind for one in inspect(Described(file, {}, beside=True), None).findings}
    assert "leak" in found


def test_a_video_that_leaves_the_data_folder_is_refused(tmp_path: Path) -> None:
    train = [asked_of("Who?", video="../a.mp4")]
    (task,) = load_benchmark(str(described(tmp_path, train=train))).tasks

    with pytest.raises(DataError, match=r"train\.json, record 1: image '\.\./a\.mp4': holds '\.\.'"):
        task.train[0]


def test_what_is_converted_reads_as_the_same_samples(tmp_path: Path) -> None:
    file = described(tmp_path)
    plugin = Described(file, {}, beside=True)
    before = load_benchmark(str(file))

    written = convert(before, plugin, tmp_path / "out", lambda _: None)

    (task,) = load_benchmark(str(written), str(tmp_path)).tasks
    assert [one.images for one in (*task.train, *task.test)] == [
        one.images for one in (*before.tasks[0].train, *before.tasks[0].test)
    ]
    assert task.train[0].prompt == before.tasks[0].train[0].prompt == "What happens?"


def test_a_plugin_makes_samples_of_videos(tmp_path: Path) -> None:
    first, *more = cl_zoo.frames(film(tmp_path / "a.mp4"), 3)
    samples = [cl_zoo.Sample("1", first, "Who?", "me", more_images=tuple(more))]
    task = cl_zoo.TaskData("t", "T", "", "exact", 3, samples, (), samples)
    benchmark = cl_zoo.Benchmark("b", "1", (task,), ("finetune",), "mini", "hash")

    assert origin(samples, 0) == {"picture": "a.mp4"}
    file = convert(benchmark, None, tmp_path / "out", lambda _: None)
    (again,) = load_benchmark(str(file), str(tmp_path / "out")).tasks
    assert [tone(open_image(image)) for image in again.train[0].images] == [TONES[k] for k in (5, 15, 25)]


def test_a_damaged_video_ends_a_conversion_in_one_sentence(cli: Any, tmp_path: Path) -> None:
    """Its last frame cannot be decoded; what makes the samples has read none."""
    video = film(tmp_path / "a.mp4", codec="libx264", header_first=True)
    content = bytearray(video.read_bytes())
    content[-200:] = bytes(200)
    video.write_bytes(content)
    (tmp_path / "mine.py").write_text(
        f"""
import cl_zoo

def load(data):
    first, *more = cl_zoo.frames({str(video)!r}, 8)
    samples = [cl_zoo.Sample("1", first, "Who?", "me", more_images=tuple(more))]
    task = cl_zoo.TaskData("t", "T", "", "exact", 3, samples, (), samples)
    return cl_zoo.Benchmark("b", "1", (task,), ("finetune",), "mini", "hash")
"""
    )

    ended = cli("data", "convert", f"{tmp_path}/mine.py:load", "--out", tmp_path / "out")

    assert ended.code == 2
    (line,) = ended.err.splitlines()
    assert re.search(r"video .*a\.mp4: .*; check the data folder", line), line
