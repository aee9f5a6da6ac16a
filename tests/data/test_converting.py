"""`cl-zoo data convert`: what was understood, written as our own JSON lines, reads as the same samples."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from cl_zoo.data.benchmarks import Described, load_benchmark
from cl_zoo.data.converting import convert
from cl_zoo.errors import DataError, OptionError
from cl_zoo.features.encoder import open_image
from cl_zoo.images.kinds import Faithful
from cl_zoo.names import load
from cl_zoo.tasks import Benchmark, Sample, TaskData, as_named

OFFICIAL = Path(__file__).parents[1] / "official_files.py"
FORMATS = Path(__file__).with_name("formats")
write_ucit, write_coin = (load("", f"{OFFICIAL}:{name}") for name in ("write_ucit", "write_coin"))


def samples(task: TaskData, split: str) -> list[Sample]:
    """Those of a split; to learn they are told apart by place, which ids need not keep."""
    found = [as_named(getattr(task, split), place) for place in range(len(getattr(task, split)))]
    return found if split == "test" else [replace(one, id="") for one in found]


@pytest.mark.parametrize(("name", "write"), [("ucit", write_ucit), ("coin", write_coin)])
def test_converted_official_files_read_as_the_same_samples(tmp_path: Path, name: str, write: Any):
    data = write(tmp_path / "data")
    plugin = load("cl_zoo.benchmarks", name)
    before = plugin(data)
    said: list[str] = []
    after = load_benchmark(str(convert(before, plugin, tmp_path / "out", said.append)), str(data))

    assert len(said) == 2 * len(before.tasks) + 1
    assert (after.name, after.recipe, after.default_methods) == (
        before.name,
        before.recipe,
        before.default_methods,
    )
    for old, new in zip(before.tasks, after.tasks, strict=True):
        assert (old.name, old.letter, old.metric, old.instruction) == (
            new.name,
            new.letter,
            new.metric,
            new.instruction,
        )
        for split in ("train", "test"):
            assert samples(new, split) == samples(old, split)


@pytest.mark.parametrize("turns", ["all", "split", "last"])
def test_what_users_bring_is_written_in_the_plainest_form(tmp_path: Path, turns: str):
    for name in ("llava_turns.json", "question_numbers.json"):
        (tmp_path / name).write_text((FORMATS / name).read_text())
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    task = {"name": "a/b", "letter": "A", "instruction": "", "metric": "exact", "max_new_tokens": 8}
    task["train"] = {"files": ["llava_turns.json"], "format": "llava", "turns": turns}
    task["test"] = {"files": ["question_numbers.json"], "format": "question"}
    about = {"name": "mine", "version": "1", "methods": ["finetune"], "backbone": "llava", "tasks": [task]}
    about |= {"pictures": "faithful", "orders": {"only": "A"}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(about))
    plugin = Described(tmp_path / "mine.yaml", beside=True)

    after = load_benchmark(str(convert(plugin(None), plugin, tmp_path / "out")), str(tmp_path))

    assert after.orders == {"only": "A"}
    assert all(isinstance(one.image, Faithful) for one in after.tasks[0].train)

    assert samples(after.tasks[0], "train") == samples(plugin(None).tasks[0], "train")
    lines = [json.loads(line) for line in (tmp_path / "out" / "a-b_train.jsonl").read_text().splitlines()]
    said = [[turn["value"] for turn in one["conversations"]] for one in lines]
    each = [["<image>\nWho?", "me"], ["<image>\nWhere?", "here"]]
    assert said == (each if turns == "split" else [["<image>\nWho?", "me", "Where?", "here"]])
    assert json.loads((tmp_path / "out" / "a-b_test.jsonl").read_text())["answer"] == "4"


@pytest.mark.parametrize("turns", ["all", "last"])
def test_a_test_split_of_conversations_comes_back_and_the_next_command_finds_its_pictures(
    cli: Any, tmp_path: Path, turns: str
):
    (tmp_path / "talks.json").write_text((FORMATS / "llava_turns.json").read_text())
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    split = {"files": ["talks.json"], "format": "llava", "turns": turns}
    task = {"name": "a", "letter": "A", "metric": "exact", "max_new_tokens": 8, "train": split, "test": split}
    about = {"name": "mine", "version": "1", "methods": ["finetune"], "backbone": "llava", "tasks": [task]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(about))
    before = load_benchmark(str(tmp_path / "mine.yaml"))

    said = cli("data", "convert", tmp_path / "mine.yaml", "--out", tmp_path / "out").out

    assert said.endswith(f"next: cl-zoo data check {tmp_path}/out/mine.yaml --data {tmp_path}\n")
    after = load_benchmark(str(tmp_path / "out/mine.yaml"), str(tmp_path))
    assert samples(after.tasks[0], "test") == samples(before.tasks[0], "test")
    assert len(after.tasks[0].test[0].before) == 1


def test_several_pictures_and_where_they_stand_come_back(tmp_path: Path):
    files = [tmp_path / f"{name}.png" for name in "abc"]
    for place, file in enumerate(files):
        Image.new("RGB", (2 + place, 2)).save(file)
    start = Sample("0", files[0], "What differs?", "a", more_images=(files[1],))
    marked = replace(start, prompt="Is <image> in it?", more_images=(files[2],))
    talk = replace(start, prompt="<image>And now?", before=(("Who?", "me"),))
    memory = replace(start, more_images=(Image.new("RGB", (5, 2)),))
    asked = replace(start, references=("r",))
    task = TaskData("a", "A", "", "exact", 4, [start, marked, talk, memory], (), [asked])
    made = Benchmark("mine", "1", (task,), ("finetune",), "llava", "0")

    (new,) = load_benchmark(str(convert(made, None, tmp_path / "out"))).tasks

    def seen(one: Sample) -> Any:
        return one.before, one.prompt, one.answer, [open_image(image).size for image in one.images]

    for split in ("train", "test"):
        assert [seen(one) for one in samples(new, split)] == [seen(one) for one in samples(task, split)]


def test_pictures_in_memory_become_files(tmp_path: Path):
    red, file = Image.new("RGB", (3, 2), (200, 0, 0)), tmp_path / "blue.bmp"
    Image.new("RGB", (2, 2), (0, 0, 200)).save(file)
    test = Sample("q", file, "?", "a", ("r",), {"box": [0, 0, 1, 1.0], "size": [2, 2], "choices": ["A"]})
    task = TaskData("a", "A", "", "exact", 4, [Sample("0", red, " ?", "a")], (), [test])
    made = Benchmark("mine", "1", (task,), ("finetune",), "llava", "0")

    (new,) = load_benchmark(str(convert(made, None, tmp_path / "out"))).tasks

    (learnt,) = samples(new, "train")
    assert isinstance(learnt.image, Path)
    with Image.open(learnt.image) as kept:
        assert kept.tobytes() == red.tobytes()
    assert (learnt.prompt, learnt.answer) == (" ?", "a")
    (asked,) = samples(new, "test")
    assert replace(asked, image=None) == replace(test, image=None)
    assert asked.image.read_bytes() == file.read_bytes()


def test_a_folder_that_holds_something_and_a_truth_without_a_place_are_refused(tmp_path: Path):
    (tmp_path / "x").touch()
    task = TaskData(
        "a",
        "A",
        "",
        "exact",
        4,
        [Sample("0", None, "?", "a")],
        (),
        [Sample("0", None, "?", "a", (), {"b": 1})],
    )
    made = Benchmark("mine", "1", (task,), ("finetune",), "llava", "0")

    with pytest.raises(OptionError, match="holds something already; pass a new folder"):
        convert(made, None, tmp_path)
    with pytest.raises(DataError, match="its truth holds 'b', which a record has no place for"):
        convert(made, None, tmp_path / "out")
