"""Benchmarks described by a YAML file: what is found where, what is refused, and what a run's identity depends on."""

from __future__ import annotations

import builtins
import json
import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cl_zoo.data import schema
from cl_zoo.data.benchmarks import Described, benchmark_loader, load_benchmark
from cl_zoo.data.descriptions import read_description
from cl_zoo.errors import DataError, OptionError, PluginError

YAML = """
name: birds
version: "1"
methods: [finetune, ewc]
backbone: llava-1.5-7b
recipe: {epochs: 2, lr: {adapters: 1.0e-4}}
images: [pictures, .]
folders:
  texts: [instructions, .]
options:
  language:
    default: english
    values: {english: [en], german: [de, de_DE]}
tasks:
  - name: species
    letter: S
    instruction: One word.
    metric: exact
    max_new_tokens: 16
    train: {files: ["{texts}/{language}/{task}_train.json"], format: llava, count: 1200}
    test: {files: ["{texts}/{language}/{task}_test.jsonl"], format: question}
  - name: scenes
    letter: C
    instruction: Describe the bird.
    metric: caption
    max_new_tokens: 64
    folders: {task: [scenes, old_scenes]}
    train: {files: ["{texts}/{task}.json"], format: sharegpt}
    validation: {files: ["{texts}/{task}.json"], format: sharegpt}
    test: {files: ["{texts}/{task}_test.json"], format: question}
    references: {files: ["{texts}/{task}_coco.json"], format: coco, note: the second upload is whole}
"""


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def talk(question: str, answer: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"image": "a.png", "conversations": turns}


def asked(number: int, **more: Any) -> dict[str, Any]:
    return {"question_id": number, "image": "a.png", "text": "Who?", "answer": "me", **more}


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """The YAML file beside its data: German in a folder of another name, captions without the folder of texts."""
    write(tmp_path / "pictures/a.png", "")
    write(tmp_path / "instructions/en/species_train.json", [talk("<image>\nA?", "a")])
    write(tmp_path / "instructions/en/species_test.jsonl", json.dumps(asked(1)))
    write(tmp_path / "instructions/de_DE/species_train.json", [talk("<image>\nÄ?", "ä")])
    write(tmp_path / "instructions/de_DE/species_test.jsonl", json.dumps(asked(1)))
    write(tmp_path / "old_scenes.json", [talk("<image>", "birds")] * 2)
    write(tmp_path / "old_scenes_test.json", [asked(1)])
    write(tmp_path / "old_scenes_coco.json", {"annotations": [{"image_id": 1, "caption": "a bird"}]})
    return write(tmp_path / "birds.yaml", YAML)


def refused(file: Path) -> str:
    """What is said about a description, behind its name."""
    with pytest.raises(DataError) as caught:
        load_benchmark(str(file))
    says = str(caught.value)
    assert says.startswith(f"benchmark {file}")
    return says.removeprefix(f"benchmark {file}").removeprefix(": ")


def test_a_file_describes_a_benchmark(birds: Path):
    benchmark = load_benchmark(str(birds))

    assert (benchmark.name, benchmark.version, benchmark.default_methods) == (
        "birds",
        "1",
        ("finetune", "ewc"),
    )
    assert benchmark.recipe == {"epochs": 2, "lr": {"adapters": 1e-4}}
    species, scenes = benchmark.stream()
    assert (species.letter, species.instruction, species.metric, species.max_new_tokens) == (
        "S",
        "One word.",
        "exact",
        16,
    )
    assert [(s.prompt, s.answer, s.image) for s in species.train] == [
        ("A?", "a", birds.parent / "pictures/a.png")
    ]
    assert species.validation == ()
    assert len(scenes.validation) == 2
    assert scenes.test[0].references == ("a bird",)


def test_the_example_in_the_documentation_is_a_description(tmp_path: Path):
    text = (schema.__doc__ or "").split("\n\n")[1]

    about = read_description(write(tmp_path / "birds.yaml", textwrap.dedent(text)))

    assert [task.name for task in about.tasks] == ["species", "scenes"]
    assert about.tasks[1].sources[0].hub == "someone/birds"
    assert about.chosen({"language": "german"}).tasks[0].train.files == tuple(
        f"{texts}{folder}/species_train.json"
        for texts in ("instructions/", "annotations/", "")
        for folder in ("de", "de_DE")
    )


def test_names_start_from_the_data_folder_first_and_from_the_file_itself_then(birds: Path, tmp_path: Path):
    data = tmp_path / "data"
    write(data / "instructions/en/species_train.json", [talk("<image>\nB?", "b")])

    species, scenes = load_benchmark(str(birds), str(data)).tasks

    assert species.train[0].prompt == "B?"
    assert len(scenes.train) == 2


def test_an_option_chooses_folders_and_shows_in_the_name(birds: Path):
    german = load_benchmark(f"{birds}[language=german]")

    assert german.name == "birds-german"
    assert german.tasks[0].train[0].prompt == "Ä?"
    assert german.data_hash != load_benchmark(str(birds)).data_hash
    assert load_benchmark(f"{birds}[language=english]").name == "birds"


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        (
            "[langage=german]",
            "benchmark birds has no option 'langage'; did you mean 'language'? known: language",
        ),
        (
            "[language=germn]",
            "benchmark birds: language=germn is unknown; did you mean 'german'? known: english",
        ),
        ("[german]", "option 'german': write it as key=value"),
    ],
)
def test_an_unknown_option_is_named(birds: Path, option: str, sentence: str):
    with pytest.raises(OptionError) as caught:
        load_benchmark(f"{birds}{option}")

    assert sentence in str(caught.value)


@pytest.mark.parametrize("value", ["1.10", "no", "010", "12:30", "2e-4", "~", "[a]"])
def test_the_value_of_an_option_is_read_as_it_is_written(birds: Path, value: str):
    birds.write_text(YAML.replace("german: [de, de_DE]", f"'{value}': [de_DE]"))

    german = load_benchmark(f"{birds}[language={value}]")

    assert german.name == f"birds-{value}"
    assert german.tasks[0].train[0].prompt == "Ä?"


def test_images_that_come_while_a_process_runs_are_found(birds: Path):
    (birds.parent / "pictures").rename(birds.parent / "elsewhere")
    train = load_benchmark(str(birds)).tasks[0].train
    with pytest.raises(DataError, match=f"record 1: image {birds.parent}/a.png: no such file"):
        train[0]

    (birds.parent / "elsewhere").rename(birds.parent / "pictures")
    assert train[0].image == birds.parent / "pictures/a.png"


def test_a_benchmark_without_options_says_so():
    with pytest.raises(PluginError, match="benchmark mini: has no options; write --benchmark mini"):
        benchmark_loader("mini[size=3]")


def test_a_description_is_read_without_data(birds: Path):
    about = benchmark_loader(str(birds)).description  # type: ignore[attr-defined]

    assert about.tasks[0].train.count == 1200
    assert about.tasks[0].images == ("pictures", ".")
    assert about.tasks[1].train.files == (
        "instructions/scenes.json",
        "instructions/old_scenes.json",
        "scenes.json",
        "old_scenes.json",
    )


def test_captions_are_cut_by_the_tokenizer_that_the_task_names(birds: Path):
    birds.write_text(YAML.replace("metric: caption", "metric: caption\n    tokenizer: char"))

    assert [task.metric for task in load_benchmark(str(birds)).tasks] == ["exact", "caption-char"]


def test_a_task_may_have_no_instruction(birds: Path):
    birds.write_text(YAML.replace("    instruction: One word.\n", ""))

    assert load_benchmark(str(birds)).tasks[0].instruction == ""


# What a description may not say


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("version:", "verson:"), "it has no key 'verson'; did you mean 'version'? known: backbone, "),
        (("letter: S", "leter: S"), "tasks[0] has no key 'leter'; did you mean 'letter'? known: folders, "),
        (
            ("format: llava, count", "format: llava, cuont"),
            "tasks[0].train has no key 'cuont'; did you mean 'count'? ",
        ),
        (
            ("values: {english", "vals: {english"),
            "options.language has no key 'vals'; did you mean 'values'? ",
        ),
        (("backbone: llava-1.5-7b\n", ""), "backbone is missing; add it"),
        (("letter: S", "letter: SS"), "tasks[0].letter: write one capital letter, A to Z, got 'SS'"),
        (("letter: S", "letter: 5"), "tasks[0].letter: input should be a valid string, got 5"),
        (("methods: [finetune, ewc]", "methods: ewc"), "methods: input should be a list, got 'ewc'"),
        (
            ("folders:\n  texts: [instructions, .]", "folders: a"),
            "folders: input should be a mapping, got 'a'",
        ),
        (
            ("One word.", '"\\uD800"'),
            "tasks[0].instruction: holds half of a character ('\\ud800'); write it whole, got ",
        ),
        (
            ("max_new_tokens: 16", "max_new_tokens: 0"),
            "tasks[0].max_new_tokens: input should be greater than",
        ),
        (
            ("metric: exact", "metric: exact\n    tokenizer: char"),
            "tasks[0]: tokenizer char cuts captions, and the metric is 'exact'; leave it out",
        ),
        (("format: llava", "format: lava"), "tasks[0].train.format: input should be 'llava', 'sharegpt', "),
        (
            ("default: english", "default: englsh"),
            "options.language: no value 'englsh'; did you mean 'english'?",
        ),
    ],
)
def test_a_wrong_key_or_value_is_named_with_file_and_place(
    birds: Path, change: tuple[str, str], sentence: str
):
    birds.write_text(YAML.replace(*change, 1))

    assert refused(birds).startswith(sentence)


def test_all_faults_of_a_file_are_told_at_once(birds: Path):
    """A key that is misspelt is not also told to be missing."""
    changes = (
        ("letter: S", "leter: S"),
        ("letter: C", "letter: cc"),
        ("max_new_tokens: 16", "max_new_tokens: 0"),
    )
    text = YAML
    for change in changes:
        text = text.replace(*change, 1)
    birds.write_text(text.replace("version:", "# version:") + "colour: red\n")

    first, *others = refused(birds).split("\n  ")
    assert first == "has 5 faults:"
    assert [one.partition(";")[0] for one in others] == [
        "tasks[0] has no key 'leter'",
        "it has no key 'colour'",
        "version is missing",
        "tasks[0].max_new_tokens: input should be greater than or equal to 1, got 0",
        "tasks[1].letter: write one capital letter, A to Z, got 'cc'",
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: " + "[" * 20_000, "nested too deeply; write it"),
        ("name: [", ", line 1, column 8: broken YAML"),
        ("- a", "holds no mapping; write lines such as 'name: mine'"),
        ("", "holds no mapping"),
    ],
)
def test_a_broken_file_is_named_with_the_place(tmp_path: Path, text: str, sentence: str):
    assert refused(write(tmp_path / "a.yaml", text)).startswith(sentence)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"none.yaml: no such file; pass the path of a YAML file"):
        load_benchmark(str(tmp_path / "none.yaml"))


def test_a_name_in_braces_that_stands_for_nothing_is_named(birds: Path):
    birds.write_text(YAML.replace("{texts}/{language}", "{text}/{language}", 1))

    with pytest.raises(DataError, match="names no folders by 'text'; did you mean 'texts'"):
        load_benchmark(str(birds))


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (("{texts}/{language}/{task}_train.json", "/etc/passwd"), "tasks[0].train.files[0]: is absolute"),
        (("{texts}/{task}_coco.json", "../coco.json"), "tasks[1].references.files[0]: holds '..'"),
        (("[pictures, .]", "[pictures, a/../../b]"), "images[1]: holds '..'"),
        (("[instructions, .]", "[instructions, /]"), "folders.texts[1]: is absolute"),
        (("[de, de_DE]", "[..]"), "options.language.values.german[0]: holds '..'"),
        (("folders: {task: [scenes, old_scenes]}", "images: [/pictures]"), "tasks[1].images[0]: is absolute"),
        (
            ("folders: {task: [scenes, old_scenes]}", "sources: [{what: a, hub: a/b, into: ../c}]"),
            "tasks[1].sources[0].into: holds '..'",
        ),
    ],
)
def test_a_path_that_leads_out_of_the_data_folder_is_refused(
    birds: Path, change: tuple[str, str], place: str
):
    birds.write_text(YAML.replace(*change, 1))

    says = f"{place} and may leave the data folder; write a path inside it, got '"
    assert refused(birds).startswith(says)


@pytest.mark.parametrize("name", ["../x", "/x"])
def test_a_path_that_leads_out_once_names_are_filled_in_is_refused(birds: Path, name: str):
    birds.write_text(
        YAML.replace("{texts}/{language}/{task}_", "{task}_", 1).replace("name: species", f"name: {name}")
    )

    with pytest.raises(
        DataError, match=f"task {name}: '{{task}}_train.json' stands for '{name}_train.json', which"
    ):
        load_benchmark(str(birds))


def test_two_tasks_of_one_letter_are_refused(birds: Path):
    birds.write_text(YAML.replace("letter: C", "letter: S"))

    with pytest.raises(DataError, match=r"birds.yaml: two tasks have the letter 'S'; rename one$"):
        load_benchmark(str(birds))


@pytest.mark.parametrize("key", ["truth: [image]", 'closing: {"*": " Say a letter."}'])
def test_what_belongs_to_test_records_is_refused_of_conversations(birds: Path, key: str):
    birds.write_text(YAML.replace("format: llava, count: 1200", f"format: llava, {key}"))

    with pytest.raises(DataError, match="truth and closing are of test records, and the format is llava"):
        load_benchmark(str(birds))


# Data that is not there


def test_a_benchmark_of_a_package_asks_for_its_data(birds: Path):
    sentence = "benchmark birds needs its data; pass its folder with --data DIR"
    with pytest.raises(DataError, match=f"^{sentence}$"):
        Described(birds)(None)

    birds.write_text(YAML + "    sources: [{what: all, hub: someone/birds}]\n")
    with pytest.raises(DataError, match=f"^{sentence}; 'cl-zoo data fetch birds' gets what the hub holds$"):
        Described(birds)(None)


def test_a_folder_that_is_not_there_or_holds_nothing_is_named(birds: Path, tmp_path: Path):
    with pytest.raises(DataError, match=r"--data .*nowhere: no such folder; pass its folder with --data DIR"):
        Described(birds)(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        DataError, match=r"empty: holds none of the files of birds \(looked for instructions/en/sp"
    ):
        Described(birds)(tmp_path / "empty")


def test_a_missing_file_of_a_task_is_named_when_the_task_is_used(birds: Path):
    (birds.parent / "instructions/en/species_test.jsonl").unlink()
    benchmark = load_benchmark(str(birds))

    assert [task.name for task in benchmark.stream("C")] == ["scenes"]
    with pytest.raises(DataError) as caught:
        benchmark.stream()
    assert str(caught.value) == (
        f"task species, test: no file; looked for {birds.parent}/instructions/en/species_test.jsonl, "
        f"{birds.parent}/en/species_test.jsonl; fetch it or pass another --data"
    )


def test_of_many_places_without_a_file_the_first_are_named(birds: Path):
    (birds.parent / "old_scenes_coco.json").unlink()
    birds.write_text(YAML.replace("[instructions, .]", "[one, two, three, .]"))
    write(birds.parent / "en/species_train.json", [talk("<image>\nA?", "a")])

    with pytest.raises(DataError) as caught:
        len(load_benchmark(str(birds)).tasks[1].test)
    assert str(caught.value) == (
        f"task scenes, references: no file; looked for {birds.parent}/one/scenes_coco.json, "
        f"{birds.parent}/one/old_scenes_coco.json, {birds.parent}/two/scenes_coco.json and 5 more; "
        "fetch it or pass another --data"
    )


def closed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody read the files of this name; the superuser of a test machine may read everything."""
    real_bytes, real_open = Path.read_bytes, builtins.open

    def read_bytes(path: Path) -> bytes:
        return real_bytes(path) if path.name != name else refuse(path)

    def opened(path: Any, *more: Any, **named: Any) -> Any:
        return real_open(path, *more, **named) if not str(path).endswith(name) else refuse(path)

    def refuse(path: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    monkeypatch.setattr(builtins, "open", opened)


def test_a_file_that_may_not_be_read_is_one_sentence_and_ends_only_its_own_task(
    birds: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = load_benchmark(str(birds)).data_hash
    with monkeypatch.context() as patched:
        closed("species_train.json", patched)
        (birds.parent / "instructions/en/species_train.json").chmod(0o000)
        benchmark = load_benchmark(str(birds))

        assert [task.name for task in benchmark.stream("C")] == ["scenes"]
        with pytest.raises(DataError, match=r"species_train.json: Permission denied; check who may read it$"):
            benchmark.stream()
        assert benchmark.data_hash != whole

    (birds.parent / "instructions/en/species_train.json").chmod(0o644)
    assert load_benchmark(str(birds)).data_hash == whole


def test_a_folder_that_may_not_be_entered_is_one_sentence(birds: Path, monkeypatch: pytest.MonkeyPatch):
    real = os.stat

    def stat(path: Any, *more: Any, **named: Any) -> Any:
        if "instructions" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *more, **named)

    monkeypatch.setattr(os, "stat", stat)
    closed("species_train.json", monkeypatch)
    with pytest.raises(DataError, match=r"species_train.json: Permission denied; check who may read it\n"):
        load_benchmark(str(birds)).stream()


def test_a_description_that_may_not_be_read_is_one_sentence(birds: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(path: Path, **named: Any) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(DataError) as caught:
        load_benchmark(str(birds))
    assert str(caught.value) == f"benchmark {birds}: Permission denied; check who may read it"


def test_missing_references_are_named_unless_the_test_file_does_without(birds: Path):
    (birds.parent / "old_scenes_coco.json").unlink()
    with pytest.raises(DataError, match="task scenes, references: no file; looked for "):
        load_benchmark(str(birds)).stream()

    birds.write_text(YAML.replace("format: coco,", "format: coco, optional: true,"))
    with pytest.raises(DataError, match=r"old_scenes_test.json, record 1: lacks 'references'; repair"):
        load_benchmark(str(birds)).stream()

    write(birds.parent / "old_scenes_test.json", [asked(1, references=["a bird", "a robin"])])
    assert load_benchmark(str(birds)).stream()[1].test[0].references == ("a bird", "a robin")


@pytest.mark.parametrize("command", [("run", "finetune"), ("compare",)])
def test_the_command_line_ends_with_one_sentence_before_anything_is_started(
    cli: Callable[..., Any], birds: Path, tmp_path: Path, command: tuple[str, ...]
):
    ended = cli(
        *command,
        "--benchmark",
        birds,
        "--data",
        tmp_path / "no",
        "--out",
        tmp_path / "runs",
        "--device",
        "cpu",
    )

    assert ended.code == 2
    assert ended.err.splitlines()[-1].startswith(f"error: --data {tmp_path / 'no'}: no such folder; ")
    assert "Traceback" not in ended.err
    assert not (tmp_path / "runs").exists()


# Identity


def test_the_data_hash_is_that_of_the_content_of_description_and_instructions(birds: Path, tmp_path: Path):
    first = load_benchmark(str(birds)).data_hash
    (birds.parent / "old_scenes.json").rename(birds.parent / "scenes.json")
    write(birds.parent / "pictures/b.png", "another picture")
    assert load_benchmark(str(birds)).data_hash == first

    seen = {first}
    for path, content in (
        ("scenes.json", [talk("<image>", "a bird")] * 2),
        ("old_scenes_coco.json", {"annotations": [{"image_id": 1, "caption": "two"}]}),
        ("instructions/en/species_test.jsonl", json.dumps(asked(2))),
        ("birds.yaml", YAML.replace("One word", "Two words")),
        ("birds.yaml", YAML + "pictures: faithful\n"),
    ):
        write(birds.parent / path, content)
        seen.add(load_benchmark(str(birds)).data_hash)
    assert len(seen) == 6


def test_a_file_is_read_once_by_a_process_that_looks_the_benchmark_up_several_times(
    birds: Path, monkeypatch: pytest.MonkeyPatch
):
    from cl_zoo.data import splits

    read: list[Path] = []
    real = splits.read_records
    monkeypatch.setattr(splits, "read_records", lambda path: read.append(path) or real(path))

    for _ in range(3):
        load_benchmark(str(birds)).stream("S")

    assert sorted(path.name for path in read) == ["species_test.jsonl", "species_train.json"]


def test_a_benchmark_of_somebody_else_is_described_in_the_same_way(
    install: Callable[..., Path], birds: Path, tmp_path: Path
):
    source = f"from pathlib import Path\nfrom cl_zoo import Described\nload = Described(Path({str(birds)!r}))"
    install("cl-zoo-birds", modules={"birds_bench": source}, benchmarks={"birds": "birds_bench:load"})

    assert load_benchmark("birds[language=german]", str(tmp_path)).name == "birds-german"
    with pytest.raises(DataError, match="benchmark birds needs its data"):
        load_benchmark("birds")
