"""Examples of a report: what most methods forgot comes first, with the very picture that was asked about, or with the reason why not."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import yaml
from kept_runs import write_run
from PIL import Image

from cl_zoo.data.benchmarks import load_benchmark
from cl_zoo.runs.examples import SIDE, Example, examples, pictures, thumbnail
from cl_zoo.runs.finding import find_runs


def of(root: Path, count: int = 4) -> list[Example]:
    (comparison,) = find_runs([root]).comparisons
    return examples(comparison.results, count)


def test_what_most_methods_forgot_comes_first(tmp_path: Path):
    write_run(tmp_path, "ewc", scores=([100], [50, 100]))
    write_run(tmp_path, "hide", scores=([100], [75, 100]))

    found = [one for one in of(tmp_path) if one.task == "render"]

    assert [(one.place, one.forgotten) for one in found] == [(3, 2), (2, 1), (0, 0), (1, 0)]
    assert [(said.label, [answer["answer"] for answer in said.answers]) for said in found[1].said] == [
        ("ewc", ["otter", "dog"]),
        ("hide", ["otter", "otter"]),
    ]


def test_a_task_has_answers_from_its_own_stage_on(tmp_path: Path):
    write_run(tmp_path, "ewc")

    (one,) = (one for one in of(tmp_path, 1) if one.task == "chart")

    assert one.first == 1
    assert [said.answers[0] for said in one.said] == [None]


def test_of_several_seeds_the_lowest_is_shown(tmp_path: Path):
    write_run(tmp_path, "ewc", 1, scores=([100], [0, 0]))
    write_run(tmp_path, "ewc", 0, scores=([100], [100, 100]))

    assert [one.forgotten for one in of(tmp_path)] == [0] * 8


def test_a_run_without_scores_of_its_samples_is_left_out_and_scored_by_nobody(tmp_path: Path):
    run = write_run(tmp_path, "ewc")
    (comparison,) = find_runs([tmp_path]).comparisons
    (run / "scores" / "1-0.jsonl").unlink()

    assert examples(comparison.results, 3) == []


def manifest(benchmark: str, data: str, version: str) -> dict[str, Any]:
    return {
        "job": {"benchmark": benchmark, "data": None},
        "identity": {"benchmark": {"data": data, "version": version}},
    }


def test_a_picture_is_that_of_the_sample(tmp_path: Path):
    mini = load_benchmark("mini")
    task = mini.tasks[0]
    (shown,), note = pictures(
        [Example(task.name, 5, "?", "", ())], manifest("mini", mini.data_hash, mini.version)
    )

    kind, _, content = shown.picture.partition(",")
    assert (kind, note) == ("data:image/jpeg;base64", "")
    small = Image.open(io.BytesIO(base64.b64decode(content))).convert("L").resize((8, 8))
    wanted = task.test[5].image
    assert isinstance(wanted, Image.Image)
    near = wanted.convert("L").resize((8, 8))
    assert max(abs(a - b) for a, b in zip(small.tobytes(), near.tobytes(), strict=True)) < 16


def test_pictures_of_other_data_are_not_shown():
    (shown,), note = pictures([Example("rendition", 5, "?", "", ())], manifest("mini", "another", "2"))

    assert shown.picture == ""
    assert "not those that the runs were made on" in note


def test_a_benchmark_that_a_folder_names_is_not_imported(tmp_path: Path):
    file = tmp_path / "evil.py"
    file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")

    _, note = pictures([Example("t", 0, "?", "", ())], manifest(f"{file}:load", "d", "1"))

    assert "runs no code" in note
    assert not (tmp_path / "ran").exists()


def test_a_thumbnail_is_small_and_of_what_cannot_be_read_there_is_none(tmp_path: Path):
    large = Image.new("RGB", (2000, 1000), "red")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG no picture")

    made = Image.open(io.BytesIO(base64.b64decode(thumbnail(large).partition(",")[2])))
    assert made.size == (SIDE, SIDE // 2)
    assert [thumbnail(), thumbnail(broken), thumbnail(tmp_path / "gone.png")] == ["", "", ""]


def test_all_pictures_of_a_sample_of_a_yaml_file_are_shown_and_one_that_is_gone_ends_nothing(tmp_path: Path):
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (SIDE, 10), colour).save(tmp_path / f"{name}.png")
    records = [{"question_id": n, "images": ["a.png", "b.png"], "text": "?", "answer": "a"} for n in range(2)]
    records[1]["images"] = ["c.png"]
    (tmp_path / "asked.json").write_text(json.dumps(records))
    split = {"files": ["asked.json"], "format": "question"}
    task: dict[str, Any] = {"name": "t", "letter": "T", "metric": "exact", "max_new_tokens": 4}
    about = {"name": "mine", "version": "1", "methods": ["finetune"], "backbone": "llava"}
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({**about, "tasks": [{**task, "train": split, "test": split}]}))
    made = manifest(str(file), load_benchmark(str(file)).data_hash, "1")

    (both, gone), note = pictures([Example("t", place, "?", "", ()) for place in range(2)], made)

    assert (note, gone.picture) == ("", "")
    strip = Image.open(io.BytesIO(base64.b64decode(both.picture.partition(",")[2])))
    assert strip.size == (2 * SIDE + 4, 10)
    red, _, blue = strip.getpixel((SIDE - 20, 5))
    assert (red > 200, blue > 200) == (True, False)
    red, _, blue = strip.getpixel((strip.width - 20, 5))
    assert (red > 200, blue > 200) == (False, True)
