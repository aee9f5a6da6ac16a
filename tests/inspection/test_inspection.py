"""`cl-zoo data check`: trees in the official formats with one fault each; it is found at its place, and nothing else is."""

from __future__ import annotations

import base64
import builtins
import importlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image, ImageColor

from cl_zoo.data.benchmarks import Described
from cl_zoo.errors import ClZooError, DataError, OptionError, PluginError, RunError
from cl_zoo.inspection.check import inspect
from cl_zoo.inspection.findings import FAULTS, Report
from cl_zoo.names import load
from cl_zoo.preflight.looks import equal_files, looks, near_pairs, outline_of
from cl_zoo.tasks import Benchmark, Sample, TaskData

OFFICIAL = Path(__file__).parents[1] / "official_files.py"
write_ucit, write_coin = (load("", f"{OFFICIAL}:{name}") for name in ("write_ucit", "write_coin"))
edit_json, ucit_files, conversation = (
    load("", f"{OFFICIAL}:{name}") for name in ("edit_json", "ucit_files", "conversation")
)
SCRIPT = OFFICIAL.parents[1] / "benchmarks" / "performance" / "data_check.py"
SIZES = {"train": 6, "test": 4}


@dataclass(frozen=True)
class Tree:
    """Files of a benchmark, and a description of it that names their numbers as the official ones."""

    root: Path
    description: Path

    def check(self, **settings: Any) -> Report:
        return inspect(Described(self.description), self.root, **settings)

    def files(self, task: str) -> dict[str, Path]:
        found: dict[str, Path] = ucit_files(self.root, task)
        return found

    def image(self, task: str, split: str, place: int) -> Path:
        record = json.loads(self.files(task)[split].read_text())[place]
        return self.root / "datasets" / record["image"]


def described(loader: Described, file: Path) -> Path:
    """The description of an installed benchmark with the numbers of the small tree."""
    content = yaml.safe_load(loader.path.read_text())
    for task in content["tasks"]:
        for split, count in SIZES.items():
            task[split]["count"] = count
    file.write_text(yaml.safe_dump(content))
    return file


def one_task(folder: Path, train: dict[str, Any], test: dict[str, Any]) -> Described:
    """A benchmark of one task that lies beside its description."""
    about = {"name": "mine", "version": "1", "methods": ["finetune"], "backbone": "llava"}
    task = {"name": "a", "letter": "A", "instruction": "", "metric": "exact", "max_new_tokens": 8}
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump({**about, "tasks": [{**task, "train": train, "test": test}]}))
    return Described(file, beside=True)


def ucit_tree(folder: Path) -> Tree:
    return Tree(
        write_ucit(folder / "data"), described(load("cl_zoo.benchmarks", "ucit"), folder / "ucit.yaml")
    )


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    return ucit_tree(tmp_path_factory.mktemp("clean"))


@pytest.fixture
def tree(clean: Tree, tmp_path: Path) -> Tree:
    """A tree that a test may spoil."""
    shutil.copytree(clean.root, tmp_path / "data")
    return Tree(tmp_path / "data", Path(shutil.copy(clean.description, tmp_path / "ucit.yaml")))


# Nothing to complain about


def test_an_official_tree_has_no_faults_and_its_facts_are_remarks(clean):
    report = clean.check()

    assert report.ok
    assert report.images["checked"] == 48
    assert [(one.kind, one.task, one.split, one.count) for one in report.findings] == [
        ("joined", "VizWiz", "test", 1),
        ("joined", "Flickr30k", "test", 1),
        ("shared images", "ArxivQA", "test", 1),
        ("rationale", "ArxivQA", "train", 3),
        ("rationale", "ArxivQA", "test", 2),
        ("repeated ids", "VizWiz", "train", 3),
        ("instructions", "IconQA", "train", 1),
        ("instructions", "IconQA", "test", 1),
        ("repeated ids", "CLEVR-Math", "train", 3),
        ("repeated ids", "Flickr30k", "train", 3),
    ]


def test_counts_and_shares_of_a_split(clean):
    facts = {(one.task, one.split): one for one in clean.check().tasks}

    assert len(facts) == 12
    arxiv, icon = facts["ArxivQA", "train"], facts["IconQA", "train"]
    assert (arxiv.records, arxiv.official, arxiv.samples, arxiv.images) == (6, 6, 6, 3)
    assert (arxiv.records_per_image, arxiv.rationales, arxiv.text_only) == ((2, 2), 3, 0)
    assert icon.instructions == {
        "Answer the question using a single word or phrase.": 3,
        "Answer with the option's letter from the given choices directly.": 3,
    }
    assert facts["VizWiz", "train"].repeated_ids == 3


@pytest.mark.parametrize("layout", ["scripts", "mcit", "flat"])
def test_other_folder_names_are_no_fault(clean, tmp_path, layout):
    assert Tree(write_ucit(tmp_path / "data", layout=layout), clean.description).check().ok


def test_questions_without_an_image_are_a_remark_and_no_leak(tmp_path):
    """The small ScienceQA asks one and the same text in training and test."""
    description = described(load("cl_zoo.benchmarks", "coin"), tmp_path / "coin.yaml")
    report = inspect(Described(description), write_coin(tmp_path / "data"))

    assert report.ok, report.lines()
    remarks = {(one.kind, one.task, one.split): one.count for one in report.findings}
    assert remarks["text only", "ScienceQA", "train"] == 3
    assert remarks["text only", "ScienceQA", "test"] == 2
    assert len(report.tasks) == 16


# One fault each

Spoil = Callable[[Tree], object]


def removed(task: str, split: str, place: int) -> Spoil:
    return lambda tree: tree.image(task, split, place).unlink()


def overwritten(task: str, split: str, place: int, content: bytes) -> Spoil:
    return lambda tree: tree.image(task, split, place).write_bytes(content)


def cut(task: str, split: str, place: int, share: float) -> Spoil:
    def spoil(tree: Tree) -> None:
        path = tree.image(task, split, place)
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    return spoil


def record(task: str, split: str, place: int, **values: Any) -> Spoil:
    """Change a record of a file; `...` takes a key away."""

    def change(records: list[dict[str, Any]]) -> None:
        records[place].update(values)
        for key in [key for key, value in values.items() if value is ...]:
            del records[place][key]

    return lambda tree: edit_json(tree.files(task)[split], change)


def answered(task: str, place: int, value: Any) -> Spoil:
    def change(records: list[dict[str, Any]]) -> None:
        records[place]["conversations"][1]["value"] = value

    return lambda tree: edit_json(tree.files(task)["train"], change)


def broken_in_line_3(tree: Tree) -> None:
    tree.files("IconQA")["train"].write_text('[\n {"id": 1},\n {"id": }\n]')


def cut_off_json(tree: Tree) -> None:
    file = tree.files("IconQA")["test"]
    file.write_text(file.read_text()[:-40])


def linked_out(tree: Tree) -> None:
    path = tree.image("CLEVR", "test", 1)
    outside = tree.root.parent / "elsewhere.png"
    path.rename(outside)
    path.symlink_to(outside)


def one_image_without_references(tree: Tree) -> None:
    """As the first published VizWiz file: one id fewer than there are test records."""

    def change(content: dict[str, Any]) -> None:
        content["annotations"] = [one for one in content["annotations"] if one["image_id"] != 3]

    edit_json(tree.files("VizWiz")["references"], change)


def four_references(tree: Tree) -> None:
    edit_json(tree.files("Flickr30k")["references"], lambda content: content["annotations"].pop() and None)


def a_caption(place: int, caption: Any) -> Spoil:
    def change(content: dict[str, Any]) -> None:
        content["annotations"][place]["caption"] = caption

    return lambda tree: edit_json(tree.files("Flickr30k")["references"], change)


def another_image_in_the_references(tree: Tree) -> None:
    edit_json(
        tree.files("VizWiz")["references"], lambda content: content["images"][1].update(file_name="x.jpg")
    )


def setting(key: str, value: Any) -> Spoil:
    def spoil(tree: Tree) -> None:
        content = yaml.safe_load(tree.description.read_text())
        tree.description.write_text(yaml.safe_dump({**content, key: value}))

    return spoil


def one_record_fewer(tree: Tree) -> None:
    edit_json(tree.files("IconQA")["train"], lambda records: records[:-1])


def a_training_image_again(tree: Tree) -> None:
    """The same bytes under another name, with the same question."""
    shutil.copy(tree.image("ImageNet-R", "train", 2), tree.image("ImageNet-R", "test", 1))


def replaced_by_a_folder(tree: Tree) -> None:
    path = tree.image("CLEVR", "train", 5)
    path.unlink()
    path.mkdir()


PLANTED: dict[str, tuple[Spoil, str, str, str, int | None, str]] = {
    "missing": (removed("ImageNet-R", "train", 1), "missing", "ImageNet-R", "train", 2, "art_1.jpg is missing; fetch it, or drop the record"),
    "missing and shared": (removed("ArxivQA", "train", 0), "missing", "ArxivQA", "train", 1, r"is missing \(1 more record names it\)"),
    "empty": (overwritten("VizWiz", "test", 3, b""), "empty", "VizWiz", "test", 4, "has no content"),
    "text": (overwritten("VizWiz", "test", 3, b"<html>sign in</html>"), "no image", "VizWiz", "test", 4, "is no image that Pillow knows"),
    "folder": (replaced_by_a_folder, "no image", "CLEVR-Math", "train", 6, "is a folder"),
    "cut JPEG": (cut("Flickr30k", "test", 0, 0.9), "truncated", "Flickr30k", "test", 1, "is truncated: the JPEG ends without its end marker"),
    "cut PNG": (cut("IconQA", "train", 3, 0.9), "truncated", "IconQA", "train", 4, "is truncated: the PNG ends without its end marker"),
    "cut in its header": (cut("IconQA", "train", 3, 0.1), "no image", "IconQA", "train", 4, "is no image"),
    "broken JSON": (broken_in_line_3, "broken file", "IconQA", "train", None, r"train.json, line 3, column 9: broken JSON"),
    "truncated JSON": (cut_off_json, "broken file", "IconQA", "test", None, "line 1, column .*: the file is truncated"),
    "an object": (lambda tree: edit_json(tree.files("IconQA")["test"], lambda _: {"a": 1}), "broken file", "IconQA", "test", None, "holds an object where a list of records is expected"),
    "mistyped": (record("CLEVR", "train", 2, conversations="text"), "record", "CLEVR-Math", "train", 3, "record 3: 'conversations' is a text, not a list"),
    "mistyped caption": (record("VizWiz", "test", 1, text=5), "record", "VizWiz", "test", 2, "record 2: 'text' is a number, not a text"),
    "without text": (record("ArxivQA", "test", 0, text=...), "record", "ArxivQA", "test", 1, "record 1: has no 'text'"),
    "without answer": (record("CLEVR", "test", 0, answer=...), "record", "CLEVR-Math", "test", 1, "record 1: lacks an 'answer'"),
    "empty answer to learn": (answered("IconQA", 4, " "), "empty answer", "IconQA", "train", 5, "record 5: has an empty answer"),
    "empty answer to score": (record("CLEVR", "test", 3, answer=""), "empty answer", "CLEVR-Math", "test", 4, "record 4: has an empty answer"),
    "gold": (record("CLEVR", "test", 1, answer="7 "), "gold", "CLEVR-Math", "test", 2, r"record 2 \(id '1'\): its answer '7 ' scores 0.00 by the rule exact when .*; write '7'"),
    "gold of many words": (record("CLEVR", "test", 1, answer="no " * 128 + "no"), "gold", "CLEVR-Math", "test", 2, "its answer has 129 words, which no 128 tokens"),
    "double id": (record("CLEVR", "test", 2, question_id=0), "double id", "CLEVR-Math", "test", 3, "record 3: id '0' stands in record 1 too"),
    "absolute": (record("IconQA", "test", 1, image="/etc/passwd"), "outside", "IconQA", "test", 2, "record 2: image '/etc/passwd': is absolute"),
    "dots": (record("IconQA", "train", 0, image="IconQA/../../x.png"), "outside", "IconQA", "train", 1, r"record 1: image .*holds '\.\.'"),
    "link": (linked_out, "outside", "CLEVR-Math", "test", 2, "record 2: image .*: leads out of .* through a link"),
    "references": (one_image_without_references, "references", "VizWiz", "test", None, r"annotates 3 of the 4 test records .*2,999"),
    "four references": (four_references, "references", "Flickr30k", "test", None, "1 test record has other than 5 references"),
    "count": (one_record_fewer, "count", "IconQA", "train", None, "holds 5 records where the official file has 6"),
    "no file": (lambda tree: tree.files("CLEVR")["train"].unlink(), "no file", "CLEVR-Math", "train", None, "task CLEVR-Math, train: no file; looked for "),
    "no references": (lambda tree: tree.files("VizWiz")["references"].unlink(), "no file", "VizWiz", "test", None, "task VizWiz, references: no file"),
    "null caption": (a_caption(0, None), "references", "Flickr30k", "test", None, r"annotation 1 \(id 0\): its caption is null; write"),
    "another image": (another_image_in_the_references, "references", "VizWiz", "test", None, "annotates 3 of the 4 test records by the name of the image, none for record 2: VizWiz_val_00000021.jpg; fetch"),
    "half a character": (record("CLEVR", "test", 2, text="How \ud800?"), "record", "CLEVR-Math", "test", 3, r"record 3: 'text' holds half of a character \('.ud800'\)"),
    "half a character in an id": (record("CLEVR", "test", 2, question_id="\ud800"), "record", "CLEVR-Math", "test", 3, "record 3: 'question_id' holds half"),
    "method": (setting("methods", ["finetune", "ewcc+lwf"]), "setting", "", "", None, "ucit, methods: no method is called 'ewcc'; did you mean 'ewc'?"),
    "stack": (setting("methods", ["ewc[strength"]), "setting", "", "", None, r"ucit, methods: method 'ewc\[strength': cannot read"),
    "recipe": (setting("recipe", {"epoch": 2}), "setting", "", "", None, "ucit, recipe: recipe has no key 'epoch'; did you mean 'epochs'?"),
    "recipe of a task": (setting("recipe", {"tasks": {"CLEVR": {"epochs": 2}}}), "setting", "", "", None, "ucit, recipe: recipe.tasks names 'CLEVR', which ucit does not have"),
    "backbone": (setting("backbone", "lava"), "setting", "", "", None, "ucit, backbone: no backbone is called 'lava'; did you mean 'llava'?"),
    "leak": (a_training_image_again, "leak", "ImageNet-R", "test", 2, "record 2 .*: the same image and question stand in .*train.json, record 3"),
}  # fmt: skip


@pytest.mark.parametrize("planted", PLANTED.values(), ids=PLANTED)
def test_a_fault_is_found_at_its_place_and_nothing_else_is(tree, planted):
    spoil, kind, task, split, number, sentence = planted
    spoil(tree)
    report = tree.check()

    (found,) = [one for one in report.findings if one.fault]
    assert (found.kind, found.task, found.split, found.record) == (kind, task, split, number)
    assert "\n" not in found.sentence
    assert found.file.startswith((str(tree.root), "instructions/")) or kind == "setting"
    assert re.search(sentence, found.sentence), found.sentence
    assert not report.ok


def test_right_answers_that_no_rule_counts_in_full_are_one_remark(tmp_path):
    """A slip of an official rule can be mended in no record; what it costs at most is said."""
    asked = [
        {"question_id": str(n), "text": f"{n}?", "answer": gold} for n, gold in enumerate(["U.S.", "Paris"])
    ]
    edit = {"test.json": asked, "train.json": [conversation("A?", "a")]}
    for name, records in edit.items():
        (tmp_path / name).write_text(json.dumps(records))
    plugin = one_task(
        tmp_path,
        {"files": ["train.json"], "format": "llava"},
        {"files": ["test.json"], "format": "question"},
    )
    plugin.path.write_text(plugin.path.read_text().replace("exact", "contains-gold-bounded"))
    report = inspect(plugin, None)

    assert report.ok
    (found,) = [one for one in report.findings if one.kind == "ceiling"]
    assert found.sentence == (
        "a, test: of 2 right answers 1 answer scores less than full marks whoever gives it, so that no model scores above 50.00; "
        f"first {tmp_path}/test.json, record 1 (id '0'): its answer 'U.S.' scores 0.00 by the rule contains-gold-bounded when a model "
        "says it, which is a slip of the official script (strict: 1.00)"
    )


def test_without_java_what_only_the_tokenizer_knows_is_a_remark(tmp_path, monkeypatch):
    (tmp_path / "train.json").write_text(json.dumps([{"question_id": 1, "text": "?", "answer": "a"}]))
    asked = [{"question_id": n, "text": "?", "references": [said]} for n, said in enumerate(["?!", "a dog"])]
    (tmp_path / "test.json").write_text(json.dumps(asked))
    split = {"files": ["train.json"], "format": "question"}
    plugin = one_task(tmp_path, split, {**split, "files": ["test.json"]})
    plugin.path.write_text(plugin.path.read_text().replace("exact", "caption"))

    def missing() -> str:
        raise ClZooError("caption scores need Java, and PATH has none; install it")

    monkeypatch.setattr("cl_zoo.scoring.captions.find_java", missing)
    report = inspect(Described(plugin.path, beside=True), None)

    assert report.ok
    assert [one.sentence for one in report.findings if one.kind == "captions"] == [
        "a, test: whether captions without an English letter or digit hold a word is not known: caption scores need Java, "
        "and PATH has none; install it"
    ]


def a_file_of_each(folder: Path, train: Any, test: Any, form: str = "llava") -> Described:
    (folder / "train.json").write_text(json.dumps(train))
    (folder / "test.json").write_text(json.dumps(test))
    return one_task(
        folder, {"files": ["train.json"], "format": form}, {"files": ["test.json"], "format": "question"}
    )


def test_a_whole_file_of_another_form_is_one_finding_that_names_the_form(tmp_path):
    asked = [{"question_id": str(n), "text": f"{n}?", "answer": "a"} for n in range(9)]
    report = inspect(a_file_of_each(tmp_path, asked, asked), None)

    (found,) = [one for one in report.findings if one.fault]
    assert (found.kind, found.split) == ("broken file", "train")
    assert found.sentence == (
        f"{tmp_path}/train.json: its records are in the format question, not llava; write 'format: question'"
    )


def test_every_image_of_a_record_is_looked_at_and_several_are_a_remark(tmp_path):
    for place, name in enumerate("abc"):
        Image.new("RGB", (8, 8), (80 * place, 0, 0)).save(tmp_path / f"{name}.png")
    talks = [conversation("A?", "a"), conversation("A?", "a"), conversation("A?", "a")]
    for talk, names in zip(
        talks, (["a.png", "b.png"], ["b.png", "a.png"], ["a.png", "gone.png"]), strict=True
    ):
        talk |= {"images": names}
        talk.pop("image", None)
    asked = [{"question_id": "1", "text": "A?", "answer": "a", "image": ["a.png", "b.png"]}]
    report = inspect(a_file_of_each(tmp_path, talks, asked), None)

    found = {one.kind: one for one in report.findings}
    assert "gone.png is missing" in found["missing"].sentence
    assert found["several images"].sentence in [
        f"a, {split}: {count} samples have several images"
        for split, count in (("train", "3 of 3"), ("test", "1 of 1"))
    ]
    assert (report.tasks[0].several_images, report.tasks[0].images, report.tasks[0].identical) == (3, 3, 0)
    assert found["leak"].sentence.startswith(
        f"{tmp_path}/test.json, record 1 (id '1'): the same image and question stand in"
    )
    assert report.images["checked"] == 3


@pytest.mark.parametrize("turns", ["all", "last", "split"])
def test_what_each_choice_makes_of_conversations_is_counted(tmp_path, turns):
    asked = [{"question_id": "1", "text": "?", "answer": "a"}]
    talks = [conversation("A?", "a"), conversation("B?", "b")]
    talks[1]["conversations"] = [{"from": "system", "value": "S"}, *talks[1]["conversations"] * 3]
    plugin = a_file_of_each(tmp_path, talks, asked)
    about = plugin.path.read_text().replace("format: llava", f"format: llava\n    turns: {turns}")
    plugin.path.write_text(f"recipe: {{global_batch: 3}}\n{about}")
    report = inspect(plugin, None)

    assert report.ok
    found = {one.kind: one.sentence for one in report.findings}
    assert found["turns"] == (
        f"a, train: 1 of 2 records hold several questions; 'turns' is '{turns}': 'all' 2 samples with 4 learnt answers in 1 step, "
        "'last' 2 samples with 2 learnt answers in 1 step, 'split' 4 samples with 4 learnt answers in 2 steps; a step has 3 samples"
    )
    assert found["system"] == "a, train: in 1 conversation the system speaks, which is left out"
    assert report.tasks[0].samples == (4 if turns == "split" else 2)
    assert report.tasks[0].multi_turn == 1


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_empty_list_of_records_is_a_fault_as_in_a_run(tmp_path, split):
    files = {
        "train": [conversation("A?", "a")],
        "test": [{"question_id": "1", "text": "?", "answer": "a"}],
        split: [],
    }
    plugin = a_file_of_each(tmp_path, files["train"], files["test"])

    (found,) = [one for one in inspect(plugin, None).findings if one.fault]
    assert found.sentence == f"{tmp_path}/{split}.json: holds no records; fetch the file again"


def test_a_plugin_s_empty_test_split_is_a_fault():
    task = TaskData("a", "A", "", "exact", 4, [Sample("0", None, "?", "a")], (), ())
    benchmark = Benchmark("mine", "1", (task,), ("finetune",), "llava", "0")

    (found,) = [one for one in inspect(lambda data: benchmark, None).findings if one.fault]
    assert found.sentence == "a, test: holds no samples; add some, or drop the task"


def test_a_pipe_in_the_place_of_a_picture_is_a_fault_and_does_not_hang(tree):
    path = tree.image("CLEVR", "test", 1)
    path.unlink()
    os.mkfifo(path)

    (found,) = [one for one in tree.check().findings if one.fault]
    assert (found.kind, found.task, found.record) == ("no image", "CLEVR-Math", 2)
    assert "is no file but a pipe, a socket or a device; fetch the file again" in found.sentence


def test_every_kind_of_fault_is_planted_above():
    """`unreadable` is what only decoding finds, and `forbidden` what the superuser does not meet, below."""
    assert {kind for _, kind, *_ in PLANTED.values()} | {"unreadable", "forbidden"} == set(FAULTS)


def test_all_faults_of_all_files_are_reported_at_once(tree):
    names = ["missing", "empty", "truncated JSON", "mistyped", "empty answer to score", "references", "leak"]
    for name in names:
        PLANTED[name][0](tree)
    report = tree.check()

    found = {(one.kind, one.task, one.split, one.record) for one in report.findings if one.fault}
    assert found == {PLANTED[name][1:5] for name in names}


def test_damage_in_the_middle_of_a_file_is_found_by_decoding_only(tree):
    """A header and an end without what lies between: what a copy leaves that was broken off and filled with zeros."""
    path = tree.image("IconQA", "train", 0)
    content = bytearray(path.read_bytes())
    start = content.index(b"IDAT") + 4
    content[start : start + 20] = bytes(20)
    path.write_bytes(content)

    assert tree.check().ok
    (found,) = [one for one in tree.check(decode=True).findings if one.fault]
    assert (found.kind, found.task, found.record) == ("unreadable", "IconQA", 1)
    assert "cannot be decoded: " in found.sentence


def closed(monkeypatch: pytest.MonkeyPatch, *paths: Path) -> None:
    """Let nobody read these files; the superuser of a test machine may read everything."""
    real_bytes, real_open = Path.read_bytes, builtins.open

    def refuse(path: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    def opened(path: Any, *more: Any, **named: Any) -> Any:
        return refuse(path) if path in map(str, paths) else real_open(path, *more, **named)

    monkeypatch.setattr(Path, "read_bytes", lambda path: refuse(path) if path in paths else real_bytes(path))
    monkeypatch.setattr(builtins, "open", opened)


def test_files_that_may_not_be_read_are_findings_beside_the_others(tree, monkeypatch):
    PLANTED["missing"][0](tree)
    image, records = tree.image("IconQA", "train", 0), tree.files("CLEVR")["train"]
    closed(monkeypatch, image, records, tree.files("VizWiz")["references"])
    found = [one for one in tree.check(overlap="none").findings if one.fault]

    assert [(one.kind, one.task, one.record) for one in found] == [
        ("broken file", "CLEVR-Math", None),
        ("references", "VizWiz", None),
        ("missing", "ImageNet-R", 2),
        ("forbidden", "IconQA", 1),
    ]
    assert found[0].sentence == f"{records}: Permission denied; check who may read it"
    assert found[3].sentence.endswith(f"image {image} may not be read; check who may read it")


def test_an_unknown_scoring_rule_is_a_finding(tree):
    content = yaml.safe_load(tree.description.read_text())
    content["tasks"][1]["metric"] = "exakt"
    tree.description.write_text(yaml.safe_dump(content))
    (found,) = [one for one in tree.check().findings if one.fault]

    assert (found.kind, found.task) == ("setting", "ArxivQA")
    assert found.sentence.startswith(
        "ucit, task ArxivQA, metric: no scoring rule is called 'exakt'; did you mean 'exact'? known: "
    )


def test_faults_of_a_description_and_names_that_are_not_installed_are_told_together(tree):
    content = yaml.safe_load(tree.description.read_text())
    content["tasks"][1] |= {"metric": "exakt", "letter": "a"}
    tree.description.write_text(yaml.safe_dump({**content, "methods": ["ewcc"], "backbone": "lava"}))

    with pytest.raises(DataError) as caught:
        tree.check()
    first, *others = str(caught.value).split("\n  ")
    assert first == f"benchmark {tree.description}: has 4 faults:"
    assert [one.partition(";")[0] for one in others] == [
        "tasks[1].letter: write one capital letter, A to Z, got 'a'",
        "tasks[1].metric: no scoring rule is called 'exakt'",
        "methods: no method is called 'ewcc'",
        "backbone: no backbone is called 'lava'",
    ]


def test_of_long_prompts_a_remark_shows_the_beginning(tree):
    def change(records: list[dict[str, Any]]) -> None:
        records[0]["conversations"][0]["value"] = "<image>\n" + "a long line " * 50
        records[1]["conversations"][0]["value"] = "<image>\n" + "x" * 80

    edit_json(tree.files("CLEVR")["train"], change)
    (found,) = [
        one for one in tree.check().findings if (one.kind, one.task) == ("instructions", "CLEVR-Math")
    ]

    assert f"16.7 % '{('a long line ' * 7)[:79].strip()}…'" in found.sentence
    assert f"16.7 % '{'x' * 80}'" in found.sentence


def test_an_instruction_that_no_prompt_holds_is_a_remark(tmp_path: Path):
    learnt = {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "me"}]}
    (tmp_path / "train.jsonl").write_text(json.dumps(learnt))
    (tmp_path / "test.jsonl").write_text(
        json.dumps({"question_id": 1, "text": "Who?\nSay it.", "answer": "me"})
    )
    splits = [{"files": ["train.jsonl"], "format": "llava"}, {"files": ["test.jsonl"], "format": "question"}]
    one_task(tmp_path, *splits)
    file = tmp_path / "mine.yaml"
    file.write_text(file.read_text().replace("instruction: ''", "instruction: Say it."))

    report = inspect(Described(file, beside=True), None, overlap="none")

    found = [one.sentence for one in report.findings if one.kind == "instructions"]
    assert found == ["a, train: no prompt holds the instruction 'Say it.', and nothing adds it"]


def test_a_link_inside_the_data_folder_is_no_fault(tree):
    path = tree.image("CLEVR", "test", 1)
    path.rename(path.with_name("kept.png"))
    path.symlink_to("kept.png")

    assert tree.check().ok


# Overlap


def photograph(seed: int, size: int = 96) -> Image.Image:
    """Soft patches: no sharp edges, and detail that survives scaling."""
    noise = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)


def test_an_image_saved_again_is_found_by_what_it_looks_like(tree):
    photograph(1).save(tree.image("Flickr30k", "train", 0), quality=95)
    photograph(1).resize((80, 80)).save(tree.image("Flickr30k", "test", 2), quality=60)
    photograph(2).save(tree.image("ImageNet-R", "test", 0))

    def similar(overlap: str) -> list[tuple[str, int, str]]:
        found = [one for one in tree.check(overlap=overlap).findings if one.kind == "similar images"]
        return [(one.task, one.count, one.sentence) for one in found if "of the task" in one.sentence]

    assert similar("exact") == []
    assert similar("perceptual") == [
        ("Flickr30k", 1, "Flickr30k, test: 1 of 4 images look like a training image of the task")
    ]


def test_an_image_in_training_of_another_task_is_a_remark(tree):
    shutil.copy(tree.image("Flickr30k", "train", 0), tree.image("VizWiz", "test", 0))
    report = tree.check()

    assert report.ok
    sentences = [one.sentence for one in report.findings]
    assert "VizWiz, test: 1 of 4 images stand in training records of Flickr30k too" in sentences
    assert (
        "VizWiz: of the test questions 1 stand with the same image in the training records of Flickr30k"
        in sentences
    )


def test_without_overlap_images_are_not_compared(tree):
    a_training_image_again(tree)
    report = tree.check(overlap="none")

    assert report.ok
    assert not [one for one in report.findings if one.kind in ("shared images", "similar images", "leak")]


def test_ids_may_come_twice_where_the_description_says_so(tree):
    PLANTED["double id"][0](tree)
    content = yaml.safe_load(tree.description.read_text())
    (task,) = [one for one in content["tasks"] if one["name"] == "CLEVR-Math"]
    task["test"]["repeats"] = True
    tree.description.write_text(yaml.safe_dump(content))

    assert tree.check().ok


def test_identical_training_records_are_counted(tree):
    edit_json(tree.files("VizWiz")["train"], lambda records: records + [records[0]] * 2)
    report = tree.check()

    assert [one.sentence for one in report.findings if one.kind == "identical"] == [
        "VizWiz, train: 2 of 8 samples repeat another in image, prompt and answer"
    ]


def test_conversations_of_several_questions_are_counted(tree):
    def longer(records: list[dict[str, Any]]) -> None:
        records[0]["conversations"] += [
            {"from": "human", "value": "And now?"},
            {"from": "gpt", "value": "7"},
        ]

    edit_json(tree.files("CLEVR")["train"], longer)
    report = tree.check()
    (facts,) = [one for one in report.tasks if (one.task, one.split) == ("CLEVR-Math", "train")]

    assert report.ok
    assert (facts.records, facts.samples, facts.multi_turn) == (6, 6, 1)
    (remark,) = [one for one in report.findings if one.kind in ("turns", "multi-turn")]
    assert remark.sentence.startswith("CLEVR-Math, train: 1 of 6 records hold several questions; ")


# Processes


def test_one_and_two_processes_find_the_same(tree, monkeypatch):
    monkeypatch.setattr("cl_zoo.preflight.looks.CHUNK", 5)
    for name in ("missing", "empty", "cut PNG", "leak"):
        PLANTED[name][0](tree)
    steps: list[tuple[str, int, int]] = []
    one = tree.check(overlap="perceptual")
    two = tree.check(overlap="perceptual", processes=2, watch=lambda *step: steps.append(step))

    assert two.to_json() == one.to_json()
    assert len([found for found in one.findings if found.fault]) == 4
    assert steps[-1] == ("looking at images", 48, 48)


# Image files


def encoded(kind: str, image: Image.Image | None = None, **settings: Any) -> bytes:
    file = io.BytesIO()
    (image or photograph(0)).save(file, kind, **settings)
    return file.getvalue()


def look(folder: Path, content: bytes, **settings: Any) -> str:
    file = folder / "picture"
    file.write_bytes(content)
    return looks([str(file)], **settings)[0].fault


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
@pytest.mark.parametrize("share", [0.5, 0.95])
def test_a_file_that_ends_too_early_is_found_without_decoding(tmp_path, kind, share):
    whole = encoded(kind)

    assert look(tmp_path, whole) == ""
    assert look(tmp_path, whole, decode=True, outline=True) == ""
    assert look(tmp_path, whole[: int(share * len(whole))]) == "truncated"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
def test_bytes_after_the_end_are_no_fault(tmp_path, kind):
    assert look(tmp_path, encoded(kind) + bytes(100)) == ""


def test_the_end_marker_of_a_thumbnail_is_not_the_image_s(tmp_path):
    """Cameras lay a small JPEG with an end marker of its own into the header."""
    exif = (
        b"Exif\x00\x00"
        + b"MM\x00*\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00"
        + encoded("JPEG", photograph(3, 16))
    )
    whole = encoded("JPEG", exif=exif)

    assert whole.count(b"\xff\xd9") == 2
    assert look(tmp_path, whole) == ""
    assert look(tmp_path, whole[: whole.rindex(b"\xff\xd9")]) == "truncated"


def test_equal_files_are_those_with_equal_content(tmp_path):
    contents = [b"", encoded("PNG"), encoded("PNG"), encoded("PNG", photograph(1)), encoded("JPEG")]
    paths = [str(tmp_path / str(place)) for place in range(5)]
    for path, content in zip(paths, contents, strict=True):
        Path(path).write_bytes(content)
    groups = equal_files(paths, looks(paths))

    assert list(groups) == paths[1:3]
    assert len(set(groups.values())) == 1


def test_files_of_one_length_and_one_end_are_told_apart(tmp_path):
    """Candidates agree in length and last bytes; the content decides."""
    first = encoded("BMP")
    second = bytes([*first[:60], first[60] ^ 1, *first[61:]])
    paths = [str(tmp_path / name) for name in "ab"]
    Path(paths[0]).write_bytes(first)
    Path(paths[1]).write_bytes(second)
    found = looks(paths)

    assert (found[0].size, found[0].tail) == (found[1].size, found[1].tail)
    assert equal_files(paths, found) == {}


def test_near_pairs_are_those_of_all_comparisons():
    random = np.random.default_rng(0)
    left = random.integers(0, 256, (20, 32), dtype=np.uint8)
    right = np.concatenate([left[::-1] ^ (random.random((20, 32)) < 0.04), random.integers(0, 256, (9, 32))])
    right = right.astype(np.uint8)
    bits = np.unpackbits(left, axis=1)[:, None] != np.unpackbits(right, axis=1)[None]
    expected = {(i, j) for i, j in np.argwhere(bits.sum(-1) <= 2).tolist()}

    pairs = set(near_pairs([row.tobytes() for row in left], [row.tobytes() for row in right], 2))
    assert pairs == expected
    assert 5 < len(expected) <= 20


def test_a_picture_of_one_tone_has_no_outline():
    assert outline_of(Image.new("RGB", (20, 20), "red")) is None
    assert len(outline_of(photograph(0)) or b"") == 32


# Benchmarks that no file describes


def benchmark_of(*train: Sample, test: tuple[Sample, ...]) -> Benchmark:
    task = TaskData("only", "O", "Name it.", "exact", 8, train, (), test)
    return Benchmark("mine", "3", (task,), ("finetune",), "mini", "0")


def test_a_plugin_s_samples_are_checked_one_by_one(tmp_path):
    encoded_file = tmp_path / "a.jpg"
    encoded_file.write_bytes(encoded("JPEG")[:-2])
    train = (Sample("1", photograph(0), "What?\nName it.", "a"), Sample("2", encoded_file, "What?", "b"))
    test = (
        Sample("7", photograph(0), "What?\nName it.", "a"),
        Sample("7", photograph(1), "What?\nName it.", ""),
        Sample("8", None, "What?\nName it."),
    )
    report = inspect(lambda data: benchmark_of(*train, test=test), None, name="mine:load")

    assert (report.benchmark, report.version, report.data) == ("mine:load", "3", "")
    faults = [(one.kind, one.split, one.record, one.id) for one in report.findings if one.fault]
    assert faults == [
        ("record", "test", 3, "8"),
        ("empty answer", "test", 2, "7"),
        ("double id", "test", 2, "7"),
        ("truncated", "train", 2, "2"),
        ("leak", "test", 1, "7"),
    ]


def paletted(colours: tuple[str, str]) -> Image.Image:
    """The same indices whatever the colours."""
    image = Image.new("P", (4, 2))
    image.putpalette([part for colour in colours for part in ImageColor.getrgb(colour)])
    image.putdata([0, 1] * 4)
    return image


def test_images_in_memory_are_told_apart_by_their_colours(tmp_path):
    """Indices that mean other colours are another image; another way to store the same colours is the same."""
    train = (Sample("1", paletted(("red", "blue")), "What?\nName it.", "a"),)
    test = (
        Sample("2", paletted(("green", "white")), "What?\nName it.", "a"),
        Sample("3", paletted(("red", "blue")).convert("RGBA"), "What?\nName it.", "a"),
    )
    report = inspect(lambda data: benchmark_of(*train, test=test), None, name="mine")

    assert [(one.kind, one.id) for one in report.findings if one.fault] == [("leak", "3")]
    assert report.images == {"checked": 0, "bytes": 0, "memory": 2}
    assert report.lines()[-1] == "2 images in memory compared: 1 fault"
    report = inspect(lambda data: benchmark_of(*train, test=test), None, name="mine", overlap="none")
    assert report.lines()[-1] == "2 images in memory read: no faults"


def test_half_of_a_character_in_a_plugin_s_sample_is_found(tmp_path):
    train = (Sample("1", None, "What\ud800?", "a"), Sample("2", None, "What?", "\udc00"))
    test = (Sample("3", None, "Which?", None, ("a", "\ud800")), Sample("4", None, "Which?", "b"))
    report = inspect(lambda data: benchmark_of(*train, test=test), None, name="mine")

    assert [(one.kind, one.split, one.record) for one in report.findings if one.fault] == [
        ("record", "train", 1),
        ("record", "train", 2),
        ("record", "test", 1),
    ]
    report.write(tmp_path / "report.json")


def test_a_damaged_picture_inside_a_dataset_is_found_at_its_place(tmp_path):
    datasets = pytest.importorskip("datasets")
    stored = [encoded("PNG"), encoded("PNG", photograph(1))[:60]]
    kinds = {"text": datasets.Value("string"), "answer": datasets.Value("string"), "image": datasets.Image()}
    pictures = [{"bytes": content, "path": None} for content in stored]
    rows = {"text": ["What?"] * 2, "answer": ["a"] * 2, "image": pictures}
    datasets.Dataset.from_dict(rows, features=datasets.Features(kinds)).save_to_disk(tmp_path / "birds")
    split = {"files": ["birds"], "format": "datasets"}
    report = inspect(one_task(tmp_path, split, split), None, overlap="none")

    faults = [(one.kind, one.split, one.record) for one in report.findings if one.fault]
    assert faults == [("unreadable", "train", 2), ("unreadable", "test", 2)]


def test_a_folder_of_datasets_is_checked_too(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"question": ["What?", "Who?"], "answer": ["a", "b"], "image": [photograph(0), photograph(0)]}
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(tmp_path / "birds")
    split = {"files": ["birds"], "format": "datasets", "columns": {"text": "question"}}
    report = inspect(one_task(tmp_path, {**split, "count": 3}, split), None)

    assert [(one.kind, one.record) for one in report.findings if one.fault] == [("count", None), ("leak", 1)]
    place = f"{tmp_path}/birds, split"
    assert report.tasks[1].file == f"{place} test"
    assert report.findings[1].sentence.startswith(f"{place} test, record 1 (id '1'): the same image")
    assert (report.tasks[0].records, report.tasks[0].images, report.tasks[1].records) == (2, 1, 1)


def test_an_image_that_a_dataset_names_is_looked_at_as_others_are(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"text": ["What?"] * 2, "answer": ["a"] * 2, "image": ["gone.png"] * 2}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "birds")
    split = {"files": ["birds"], "format": "datasets"}
    report = inspect(one_task(tmp_path, split, split), None, overlap="none")

    (found,) = [one for one in report.findings if one.fault]
    assert (found.kind, found.record) == ("missing", 1)
    assert found.sentence == (
        f"{tmp_path}/birds, split train, record 1: image {tmp_path}/gone.png is missing (3 more records name it); "
        "fetch it, or drop the record"
    )


def test_what_is_no_benchmark_is_named():
    with pytest.raises(PluginError, match=r"benchmark mine: its plugin gave a str, not a cl_zoo.Benchmark"):
        inspect(lambda data: "text", None, name="mine")


# The command


def test_aclean_tree_ends_with_0_and_a_table(cli, clean):
    ended = cli("data", "check", clean.description, "--data", clean.root, "--jobs", 1)

    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[0].split()[:4] == ["task", "split", "records", "official"]
    assert lines[3].split() == ["ArxivQA", "train", "6", "6", "3", "2", "50.0", "%", "1"]
    assert "worth knowing:" in lines
    assert lines[-1] == "48 images looked at: no faults"


def test_faults_end_with_1_and_the_first_of_each_kind_are_shown(cli, tree):
    for place in range(5):
        tree.image("ImageNet-R", "train", place).unlink()
    ended = cli("data", "check", tree.description, "--data", tree.root, "--jobs", 1)

    assert (ended.code, ended.err) == (1, "")
    lines = ended.out.splitlines()
    start = lines.index("5 images that are missing:")
    assert all("art_" in line for line in lines[start + 1 : start + 4])
    assert lines[start + 4] == "  … and 2 more; --report FILE writes all"
    assert lines[-1] == "48 images looked at: 5 faults"


def test_the_json_report_holds_everything(cli, tree, tmp_path):
    PLANTED["mistyped"][0](tree)
    file = tmp_path / "report.json"
    ended = cli(
        "data", "check", tree.description, "--data", tree.root, "--jobs", 1, "--json", "--report", file
    )
    report = json.loads(file.read_text())

    assert ended.code == 1
    assert json.loads(ended.out) == report
    assert (report["benchmark"], report["data"], report["ok"]) == (
        str(tree.description),
        str(tree.root),
        False,
    )
    assert report["options"] == {"decode": False, "overlap": "exact"}
    assert [one["sentence"] for one in report["findings"] if one["fault"]] == [
        f"{tree.files('CLEVR')['train']}, record 3: 'conversations' is a text, not a list; repair or drop the record"
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"data", "ucit.yaml", "report.json"}


def test_one_fault_is_told_in_the_singular(cli, tree):
    PLANTED["missing"][0](tree)
    ended = cli("data", "check", tree.description, "--data", tree.root, "--jobs", 1)

    assert "1 image that is missing:" in ended.out.splitlines()
    assert ended.out.splitlines()[-1] == "48 images looked at: 1 fault"


def test_what_was_found_is_shown_before_the_report_is_written(cli, clean, tmp_path, monkeypatch):
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cl_zoo.inspection.findings.write_json", full)
    ended = cli(
        "data", "check", clean.description, "--data", clean.root, "--jobs", 1, "--report", tmp_path / "r.json"
    )

    assert ended.code == 2
    assert ended.out.splitlines()[-1] == "48 images looked at: no faults"
    assert ended.err == (
        f"error: {tmp_path}: no space left on the device; free some and run the same command again\n"
    )


@pytest.mark.parametrize("place", ["folder", "file"])
def test_a_report_that_may_not_be_written_is_refused_before_anything_is_read(
    cli, clean, tmp_path, monkeypatch, place
):
    """The superuser of a test machine may write everywhere."""
    file = tmp_path / "r.json"
    file.touch()
    shut = {"folder": tmp_path, "file": file}[place]
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != shut)
    ended = cli("data", "check", clean.description, "--data", clean.root, "--report", file)

    assert (ended.code, ended.out) == (2, "")
    what = f"nothing may be written in {tmp_path}" if place == "folder" else "may not be written"
    assert ended.err == f"error: --report {file}: {what}; pass the path of a file to write\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("ucit", "--data", "no-such-folder"), "--data no-such-folder: no such folder; "),
        (("ucit",), "benchmark ucit needs its data; pass its folder with --data DIR"),
        (("ucitt", "--data", "."), "no benchmark is called 'ucitt'; did you mean 'ucit'?"),
        (("mini", "--overlap", "exakt"), "--overlap exakt; did you mean 'exact'? known: exact, none, perceptual"),
        (("mini", "--report", "no/such/report.json"), "--report no/such/report.json: there is no folder no/such"),
        (("mini", "--report", "."), "--report .: is a folder; pass the path of a file"),
    ],
)  # fmt: skip
def test_a_bad_argument_ends_with_2_and_one_sentence(cli, arguments, sentence):
    ended = cli("data", "check", *arguments)

    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"error: {sentence}")
    assert ended.err.count("\n") == 1


def test_a_folder_without_any_of_the_files_is_a_bad_argument(clean, tmp_path):
    (tmp_path / "empty").mkdir()

    with pytest.raises(DataError, match="holds none of the files of ucit"):
        inspect(Described(clean.description), tmp_path / "empty")
    with pytest.raises(OptionError, match="--overlap all"):
        inspect(Described(clean.description), tmp_path / "empty", overlap="all")


def test_a_report_is_whole_or_not_there_and_keeps_its_order(tree, tmp_path, monkeypatch):
    edit_json(tree.files("IconQA")["train"], lambda records: [records[0], *records[2:]])
    report = tree.check()
    (facts,) = [one for one in report.tasks if (one.task, one.split) == ("IconQA", "train")]
    file = tmp_path / "out" / "report.json"
    file.parent.mkdir()
    report.write(file)

    written = json.loads(file.read_text())
    assert list(written) == list(report.to_json())
    assert [
        list(one["instructions"]) for one in written["tasks"] if one["instructions"] == facts.instructions
    ] == [list(facts.instructions)]
    before = file.read_bytes()
    real = Path.write_text

    def full(self: Path, text: str, **options: Any) -> int:
        real(self, text[: len(text) // 2], **options)
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(RunError, match="out: no space left on the device"):
        report.write(file)
    assert [path.name for path in file.parent.iterdir()] == ["report.json"]
    assert file.read_bytes() == before


# The performance script


def test_the_performance_script_runs_whole_checks_and_reports_their_rates(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    script = importlib.import_module(SCRIPT.stem)
    file = tmp_path / "results" / "check.json"

    assert script.main(["--images", "20", "--jobs", "1", "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    assert json.loads(capsys.readouterr().out) == result["ways"]
    assert {way: one["jobs 1"]["images"] for way, one in result["ways"].items()} == {
        "headers": 20, "exact": 20, "perceptual": 2, "decode": 2
    }  # fmt: skip
    one = result["ways"]["exact"]["jobs 1"]
    assert one["images_per_second_per_core"] == pytest.approx(20 / one["seconds"], rel=0.05)
    assert [path.name for path in file.parent.iterdir()] == ["check.json"]


# Kinds of pictures


def with_pictures(folder: Path, **more: Any) -> Described:
    """Four pictures, of which one has 16 bits a pixel, two are transparent and one of these has a name like markup."""
    Image.fromarray(np.full((8, 8), 2**15, np.uint16)).save(folder / "deep.png")
    for name in ("clear.png", "<b>&.png"):
        Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(folder / name)
    Image.new("RGB", (8, 8), "red").save(folder / "plain.png")
    names = ("deep.png", "clear.png", "<b>&.png", "plain.png")
    for split, chosen in (("train", names[:2]), ("test", names[2:])):
        asked = [
            {"question_id": n, "image": name, "text": f"{name}?", "answer": "a"}
            for n, name in enumerate(chosen)
        ]
        (folder / f"{split}.json").write_text(json.dumps(asked))
    described = one_task(
        folder,
        {"files": ["train.json"], "format": "question"},
        {"files": ["test.json"], "format": "question"},
    )
    described.path.write_text(yaml.safe_dump({**yaml.safe_load(described.path.read_text()), **more}))
    return Described(described.path, beside=True)


def test_kinds_of_pictures_that_become_others_are_counted_and_named(tmp_path):
    report = inspect(with_pictures(tmp_path), None, overlap="none")

    assert report.ok
    assert [one.sentence for one in report.findings if one.kind in ("16-bit", "transparent")] == [
        f"1 of 4 images has 16 bits a pixel, which turn nearly all white (pictures: faithful in the description puts "
        f"that right); first {tmp_path}/deep.png, {tmp_path}/train.json, record 1",
        f"2 of 4 images have transparency, under which hidden colours appear, mostly black (pictures: faithful in the "
        f"description puts that right); first {tmp_path}/clear.png, {tmp_path}/train.json, record 2",
    ]
    assert report.to_json()["pictures"]["transparent"] == {
        "count": 2, "files": [f"{tmp_path}/clear.png", f"{tmp_path}/<b>&.png"]
    }  # fmt: skip


@pytest.mark.parametrize("pictures", ["official", "faithful"])
def test_kinds_of_pictures_inside_a_dataset_are_counted_as_those_of_files_are(tmp_path, pictures):
    """Two that turn white, and would be one by what they look like, are two."""
    datasets = pytest.importorskip("datasets")
    stored = [Image.fromarray(np.full((8, 8), value, np.uint16)) for value in (2**15, 2**14)]
    stored += [Image.new("RGBA", (8, 8), (0, 0, 0, 0)), Image.new("RGB", (8, 8), "red")]
    names = {"text": datasets.Value("string"), "answer": datasets.Value("string"), "image": datasets.Image()}
    rows = {"text": ["What?"] * 4, "answer": ["a"] * 4}
    rows["image"] = [{"bytes": encoded("PNG", one), "path": None} for one in stored]
    table = datasets.Dataset.from_dict(rows, features=datasets.Features(names))
    datasets.DatasetDict({"train": table, "test": table.select([3])}).save_to_disk(tmp_path / "birds")
    split = {"files": ["birds"], "format": "datasets"}
    plugin = one_task(tmp_path, split, split)
    plugin.path.write_text(f"pictures: {pictures}\n{plugin.path.read_text()}")

    report = inspect(Described(plugin.path, beside=True), None, overlap="none")

    first = f"{tmp_path}/birds, split train, record"
    remedy = "(pictures: faithful in the description puts that right)"
    says = {
        "official": [f"turn nearly all white {remedy}; first {first} 1", f"mostly black {remedy}; first {first} 3"],
        "faithful": [f"2 of 5 images have 16 bits a pixel, and are read faithfully; first {first} 1",
                     f"1 of 5 images has transparency, and is read faithfully; first {first} 3"],
    }[pictures]  # fmt: skip
    found = [one for one in report.findings if one.kind in ("16-bit", "transparent")]
    assert [(one.count, one.sentence.endswith(end)) for one, end in zip(found, says, strict=True)] == [
        (2, True), (1, True)
    ]  # fmt: skip
    assert report.to_json()["pictures"]["16-bit"] == {"count": 2, "files": [f"{first} 1", f"{first} 2"]}
    page = tmp_path / "report.html"
    report.write(page)
    assert page.read_text().count("<figure>stands inside a dataset<figcaption>") == 3


def test_where_pictures_are_read_faithfully_the_remark_says_so(tmp_path):
    report = inspect(with_pictures(tmp_path, pictures="faithful"), None, overlap="none")

    (deep,) = [one.sentence for one in report.findings if one.kind == "16-bit"]
    assert deep.startswith("1 of 4 images has 16 bits a pixel, and is read faithfully; first ")


def test_the_page_shows_what_is_seen_both_ways_and_holds_no_foreign_markup(cli, tmp_path):
    with_pictures(tmp_path)
    report = tmp_path / "report.html"

    assert cli("data", "check", tmp_path / "mine.yaml", "--report", report).code == 0
    page = report.read_text()
    shown = re.findall(r"<img alt='(\w+)' title='\w+' src='data:image/png;base64,([^']+)'>", page)
    assert [way for way, _ in shown] == ["official", "faithful"] * 3
    colours = [Image.open(io.BytesIO(base64.b64decode(one))).getpixel((4, 4)) for _, one in shown]
    assert colours == [(255,) * 3, (128,) * 3, (0,) * 3, (255,) * 3, (0,) * 3, (255,) * 3]
    assert "&lt;b&gt;&amp;.png" in page
    assert "<b>" not in page
