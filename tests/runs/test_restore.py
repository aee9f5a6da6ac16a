"""A finished run answers again: the same answers as in its files, from its folder alone, on weights that are its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_runs import made_once, relisted, resealed

import cl_zoo
import cl_zoo.runs.restore
from cl_zoo.errors import BackboneError, DataError, OptionError, PluginError, RunError
from cl_zoo.runs.comparison import Result
from cl_zoo.tasks import Benchmark, Sample
from cl_zoo.testing import TEMPLATE, tiny_checkpoint, tiny_clip
from cl_zoo.testing.tiny_models import tiny_qwen

Make = Callable[..., Result]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Make:
    """A finished run of a stack on the tiny benchmark, loaded from its folder anew; each is made once."""
    out = tmp_path_factory.mktemp("runs")

    @made_once
    def run(method: str, **settings: Any) -> Path:
        given = {
            "backbone": str(tiny_folder / "llava"),
            "features": str(tiny_folder / "clip"),
            "template": TEMPLATE,
            "device": "cpu",
            "out": out,
            **settings,
        }
        result = cl_zoo.run(
            method,
            benchmark="cl_zoo.testing:load_tiny",
            **given,
        )
        assert result.folder is not None
        return result.folder

    return lambda method, **settings: cl_zoo.load(run(method, **settings))


@pytest.fixture
def copied(make: Make, tmp_path: Path) -> Path:
    """The folder of a finished run that a test may damage."""
    return Path(shutil.copytree(str(make("finetune").folder), tmp_path / "damaged"))


def written(result: Result, place: int) -> list[str]:
    """The answers in the last row's file."""
    assert result.folder is not None
    row = len(result.matrix.scores) - 1
    lines = (result.folder / "answers" / f"{row}-{place}.jsonl").read_text().splitlines()
    return [json.loads(line)["answer"] for line in lines]


def asked(samples: Any) -> tuple[list[Any], list[str]]:
    return [sample.image for sample in samples], [sample.prompt for sample in samples]


QUESTION = "What colour is it ?\nAnswer with one word ."
METHODS = ("finetune", "hide", "l2p", "zeroshot", "multitask")
"""Each protocol, a route and prompts; that every method can be saved and loaded is the promise `saving`."""


# The same answers


@pytest.mark.parametrize("method", METHODS)
def test_a_loaded_run_gives_the_answers_of_its_files(make: Make, squares: Benchmark, method: str):
    result = make(method)

    for place, task in enumerate(squares.tasks):
        answers = result.generate(*asked(task.test), max_new_tokens=task.max_new_tokens)
        assert answers == written(result, place)


def test_a_run_in_bf16_gives_the_answers_of_its_files(make: Make, squares: Benchmark):
    result = make("hide", recipe={"precision": "bf16"})

    assert result.generate(*asked(squares.tasks[0].test)) == written(result, 0)


def test_the_size_of_a_batch_changes_no_answer(make: Make, squares: Benchmark):
    result = make("hide")

    assert result.generate(*asked(squares.tasks[1].test), batch=1) == written(result, 1)


@pytest.mark.parametrize("method", ["hide", "l2p"])
def test_a_run_with_a_static_cache_gives_the_answers_of_one_without(
    make: Make, squares: Benchmark, method: str
):
    """A route per sample and soft prompts; in the run's own cells and when it is loaded."""
    static = make(method, recipe={"static_cache": True, "eval_batch": 3})

    for place, task in enumerate(squares.tasks):
        answers = static.generate(*asked(task.test), max_new_tokens=task.max_new_tokens)
        assert answers == written(static, place) == written(make(method), place)


def test_the_default_budget_of_tokens_is_the_largest_of_the_runs_tasks(make: Make):
    assert make("finetune").restored.max_new_tokens == 4  # as `tiny_benchmark` has it


def test_a_budget_of_tokens_is_kept(make: Make, squares: Benchmark):
    result = make("finetune")

    whole = result.generate(*asked(squares.tasks[0].test))
    first = result.generate(*asked(squares.tasks[0].test), max_new_tokens=1)

    assert any(len(text.split()) > 1 for text in whole)
    assert first == [text.split()[0] if text else "" for text in whole]


def test_an_image_may_be_in_memory_a_file_or_the_path_of_one(make: Make, squares: Benchmark, tmp_path: Path):
    result, sample = make("finetune"), squares.tasks[0].test[0]
    assert isinstance(sample.image, Image.Image)
    file = tmp_path / "square.png"
    sample.image.save(file)

    answers = result.generate([sample.image, file, str(file)], [sample.prompt] * 3)

    assert len(set(answers)) == 1


def test_a_prompt_without_an_image_is_answered(make: Make):
    assert len(make("hide").generate([None, None], [QUESTION, "Where is the square ?"])) == 2


def test_routed_answers_come_with_their_routes(make: Make, squares: Benchmark):
    records = list(make("hide").restored.answers(*asked(squares.tasks[0].test[:2])))

    assert [set(record) for record in records] == [{"prompt", "answer", "route"}] * 2
    assert all(sum(record["route"]) == pytest.approx(1, abs=1e-3) for record in records)


def test_the_model_is_restored_once_and_kept(make: Make, monkeypatch: pytest.MonkeyPatch):
    result, real, calls = make("finetune"), cl_zoo.runs.restore.load_backbone, []
    monkeypatch.setattr(
        cl_zoo.runs.restore, "load_backbone", lambda *given: (calls.append(1), real(*given))[1]
    )

    result.generate([None], [QUESTION])
    result.generate([None], [QUESTION])

    assert calls == [1]


def test_nothing_of_the_benchmarks_data_is_needed(make: Make, monkeypatch: pytest.MonkeyPatch):
    def gone(*_: Any) -> Benchmark:
        raise DataError("the data is gone")

    run = make("finetune")
    monkeypatch.setattr(cl_zoo.testing, "load_tiny", gone, raising=False)

    assert len(run.generate([None], [QUESTION])) == 1


def test_a_run_on_the_benchmarks_own_backbone_finds_it_again(make: Make):
    result = make("finetune", backbone=None, features=None)

    assert len(result.generate([None], [QUESTION])) == 1


# Weights in another place


def test_weights_and_encoder_may_lie_elsewhere_now(make: Make, squares: Benchmark, tmp_path: Path):
    tiny_checkpoint(tmp_path / "llava")
    tiny_clip(tmp_path / "clip")
    run = make("hide", seed=1, backbone=str(tmp_path / "llava"), features=str(tmp_path / "clip"))
    (tmp_path / "llava").rename(tmp_path / "weights")
    (tmp_path / "clip").rename(tmp_path / "encoder")
    assert run.folder is not None

    with pytest.raises(BackboneError, match="llava"):
        cl_zoo.load(run.folder).generate([None], [QUESTION])
    elsewhere = cl_zoo.load(
        run.folder, backbone=str(tmp_path / "weights"), features=str(tmp_path / "encoder")
    )

    assert elsewhere.generate(*asked(squares.tasks[1].test)) == written(run, 1)


def test_other_weights_are_refused_with_both_revisions(make: Make, tmp_path: Path):
    folder = make("finetune").folder
    other = tiny_checkpoint(tmp_path / "other", seed=1)
    assert folder is not None
    wanted = json.loads((folder / "manifest.json").read_text())["identity"]["backbone"]["revision"]

    with pytest.raises(
        BackboneError, match=f"revision {wanted}, but .*other is of revision [0-9a-f]{{16}}; pass"
    ):
        cl_zoo.load(folder, backbone=str(other)).generate([None], [QUESTION])


def test_another_encoder_is_refused(make: Make, tmp_path: Path):
    folder = make("hide").folder
    assert folder is not None

    with pytest.raises(
        BackboneError, match=r"looked through a feature encoder .*pass the run's own with --features"
    ):
        cl_zoo.load(folder, features=str(tiny_clip(tmp_path / "other", seed=1))).generate([None], [QUESTION])


# What cannot be answered


@pytest.mark.parametrize(
    ("images", "prompts", "settings", "sentence"),
    [
        ([None], [QUESTION] * 2, {}, "there are 1 images and 2 prompts; pass one image per prompt"),
        ([None], [" "], {}, "prompt 0 is ' '; pass a question as text"),
        ([None], [None], {}, "prompt 0 is None; pass a question as text"),
        ([None], [f"<image>\n{QUESTION}"], {}, "prompt 0 holds <image>"),
        (
            [3],
            [QUESTION],
            {},
            "image 0 is a int; pass a PIL image, the path of a file, a list of these or None",
        ),
        ("a.png", [QUESTION], {}, "pass a list of either"),
        ([None], QUESTION, {}, "pass a list of either"),
        ([None], [QUESTION], {"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ([None], [QUESTION], {"batch": -1}, "batch must be at least 1, got -1"),
    ],
)
def test_a_question_that_is_none_is_refused(
    make: Make, images: Any, prompts: Any, settings: dict[str, int], sentence: str
):
    with pytest.raises((OptionError, DataError)) as refused:
        make("finetune").generate(images, prompts, **settings)
    assert sentence in str(refused.value)


def test_an_image_that_cannot_be_read_is_refused_by_name(make: Make, tmp_path: Path):
    (tmp_path / "broken.png").write_bytes(b"no image")

    for name, reason in (("missing.png", "no such file"), ("broken.png", "not a readable image")):
        with pytest.raises(DataError, match=f"{name}: {reason}"):
            make("finetune").generate([tmp_path / name], [QUESTION])


def test_a_run_that_failed_has_no_model():
    with pytest.raises(PluginError, match="finetune, seed 0 has no model: it broke"):
        Result("finetune", 0, {}, error="it broke").generate([None], [QUESTION])


# Folders that hold no model


def test_a_folder_without_a_run_is_refused(tmp_path: Path):
    with pytest.raises(RunError, match="so it is no finished run; finish it with the command that began it"):
        cl_zoo.load(tmp_path)


def test_an_unfinished_run_is_refused(copied: Path):
    (copied / "manifest.json").unlink()

    with pytest.raises(RunError, match=r"has no manifest\.json"):
        cl_zoo.load(copied)


def test_a_run_whose_checkpoint_was_deleted_still_shows_its_scores_but_does_not_answer(copied: Path):
    shutil.rmtree(copied / "state-2")
    result = cl_zoo.load(copied)

    assert result.matrix.last is not None
    with pytest.raises(RunError, match=r"holds no checkpoint \(state-2\); put it back, or delete the folder"):
        result.generate([None], [QUESTION])


def test_a_checkpoint_that_was_cut_off_is_refused(copied: Path):
    file = copied / "state-2" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])

    with pytest.raises(
        RunError, match=r"checkpoint .*state-2: model\.safetensors holds \d+ of \d+ bytes; .*--repair"
    ):
        cl_zoo.load(copied).generate([None], [QUESTION])


def test_tensors_are_taken_strictly_by_name(copied: Path):
    file = copied / "state-2" / "model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[0]
    tensors[f"{name}.renamed"] = tensors.pop(name)
    save_file(tensors, file)
    relisted(copied / "state-2")
    resealed(copied, lambda manifest: None)

    with pytest.raises(RunError, match=f"lacks tensor {name}"):
        cl_zoo.load(copied).generate([None], [QUESTION])


@pytest.mark.parametrize("key", ["job", "lessons"])
def test_a_run_of_a_version_that_kept_too_little_is_refused(copied: Path, key: str):
    resealed(copied, lambda manifest: manifest.pop(key))

    with pytest.raises(RunError, match=r"does not say how to build the model again .*run it again"):
        cl_zoo.load(copied).generate([None], [QUESTION])


# cl-zoo predict


@pytest.fixture
def shown(squares: Benchmark, tmp_path: Path) -> tuple[Path, Sample]:
    """A test sample and the file of its image."""
    sample = squares.tasks[0].test[0]
    assert isinstance(sample.image, Image.Image)
    sample.image.save(tmp_path / "square.png")
    return tmp_path / "square.png", sample


def test_predict_prints_an_answer_per_pair(make: Make, cli: Any, shown: tuple[Path, Sample]):
    file, sample = shown
    result = make("finetune")

    pair = ("--image", file, "--prompt", sample.prompt)
    ended = cli("predict", result.folder, *pair, *pair, "--device", "cpu")

    assert ended.code == 0, ended.err
    assert ended.out.splitlines() == [written(result, 0)[0]] * 2


def test_predict_answers_a_file_of_lines_with_lines(
    make: Make, cli: Any, shown: tuple[Path, Sample], tmp_path: Path
):
    file, sample = shown
    result = make("hide")
    questions = [{"image": str(file), "prompt": sample.prompt}, {"image": None, "prompt": QUESTION}]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, questions)) + "\n\n")

    ended = cli("predict", result.folder, "--input", tmp_path / "asked.jsonl", "--device", "cpu")
    records = [json.loads(line) for line in ended.out.splitlines()]

    assert [(one["image"], one["prompt"]) for one in records] == [
        (one["image"], one["prompt"]) for one in questions
    ]
    assert records[0]["answer"] == written(result, 0)[0]
    assert len(records[0]["route"]) == 2


def test_predict_answers_prompts_of_several_lengths_in_their_order(make: Make, cli: Any, tmp_path: Path):
    """Batches of two hold others than the lines beside them; one by one the answers and routes are the same."""
    prompts = ["is it red ?", QUESTION, "What ?", "is the large square blue ?", QUESTION, "red ?"]
    (tmp_path / "asked.jsonl").write_text("\n".join(json.dumps({"prompt": one}) for one in prompts))
    given = ("--input", tmp_path / "asked.jsonl", "--device", "cpu")

    two, one = (cli("predict", make("hide").folder, *given, "--batch", batch).out for batch in (2, 1))

    assert [json.loads(line)["prompt"] for line in two.splitlines()] == prompts
    assert two == one


def test_predict_reads_a_line_to_its_newline(make: Make, cli: Any, tmp_path: Path):
    """Line and paragraph separators may stand inside a text; only a newline ends a line."""
    prompts = ["What\u2028now ?", "What\x85then ?"]
    lines = [json.dumps({"prompt": one}, ensure_ascii=False) for one in prompts]
    (tmp_path / "asked.jsonl").write_text("\n".join(lines), encoding="utf-8")

    file = tmp_path / "asked.jsonl"
    ended = cli("predict", make("finetune").folder, "--input", file, "--json", "--device", "cpu")

    assert ended.code == 0, ended.err
    assert [one["prompt"] for one in json.loads(ended.out)] == prompts


def test_predict_as_json_is_one_list(make: Make, cli: Any):
    ended = cli("predict", make("finetune").folder, "--prompt", QUESTION, "--json", "--device", "cpu")

    (record,) = json.loads(ended.out)
    assert record["image"] is None
    assert record["prompt"] == QUESTION


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "nothing is asked; pass --image FILE --prompt TEXT"),
        (("--image", "a.png", "--prompt", "it", "--prompt", "this"), "there are 1 --image and 2 --prompt"),
        (("--video", "a.mp4", "--video", "b.mp4", "--prompt", "it"), "there are 2 --video and 1 --prompt"),
        (("--image", "a.png", "--image", "b.png", "--prompt", "it"), "prompt 0: has 2 images where backbone"),
        (("--image", "missing.png", "--prompt", "it"), "image missing.png: no such file"),
        (("--prompt", ""), "prompt 0 is ''"),
        (
            ("--prompt", "\udcff"),
            r"--prompt '\udcff': holds half of a character ('\udcff'); write it in UTF-8",
        ),
        (("--prompt", "it", "--device", "tpu"), "--device tpu: unknown"),
        (("--prompt", "it", "--backbone", "./nowhere"), "backbone ./nowhere: no such folder"),
        (("--input", "missing.jsonl"), "--input missing.jsonl: "),
        (("--input", "asked.jsonl", "--prompt", "it"), "leave out --image and --prompt"),
    ],
)
def test_predict_refuses_in_one_sentence(make: Make, cli: Any, arguments: tuple[str, ...], sentence: str):
    ended = cli("predict", make("finetune").folder, *arguments)

    assert ended.code == 2
    assert ended.out == ""
    assert ended.err.startswith(f"error: {sentence}") or sentence in ended.err
    assert len(ended.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"prompt": ', "line 2: Expecting value"),
        ('{"image": null}', "line 2: is no {"),
        ('["it"]', "line 2: is no {"),
        ('{"prompt": "it", "image": 3}', "line 2: is no {"),
        (r'{"prompt": "it \ud800"}', r"line 2: holds half of a character ('\ud800'); repair the line"),
        (r'{"prompt": "it", "image": "\ud800.png"}', r"line 2: holds half of a character ('\ud800')"),
    ],
)
def test_predict_names_the_line_that_is_no_question(
    make: Make, cli: Any, tmp_path: Path, line: str, sentence: str
):
    (tmp_path / "asked.jsonl").write_text(f'{{"prompt": "it"}}\n{line}\n')

    ended = cli("predict", make("finetune").folder, "--input", tmp_path / "asked.jsonl")

    assert ended.code == 2
    assert sentence in ended.err


def test_predict_on_a_folder_that_is_no_run_is_refused(cli: Any, tmp_path: Path):
    ended = cli("predict", tmp_path, "--prompt", "it")

    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert "is no finished run" in ended.err


def test_an_encoder_that_nothing_looks_through_is_not_asked_for(make: Make, tmp_path: Path):
    result = make("finetune")
    assert result.folder is not None

    answers = cl_zoo.load(result.folder, features=str(tmp_path / "gone")).generate([None], [QUESTION])

    assert answers == result.generate([None], [QUESTION])


def test_options_of_the_recipe_are_in_the_runs_identity_and_come_back_with_it(make: Make):
    said = {"options.hide.variant": "released", "options.ewc.samples": 3}
    result, plain = make("hide", recipe=said), make("hide")

    assert result.label == "hide"
    assert [one.manifest["identity"]["stack"][0]["options"]["variant"] for one in (result, plain)] == [
        "released",
        "paper",
    ]
    assert result.restored.plugins.method.options.variant == "released"


def test_a_run_made_with_relative_paths_answers_from_anywhere(
    make: Make, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tiny_folder)
    made = make("hide", backbone="./llava", features="clip", out=tmp_path / "runs")
    before = made.generate([None], [QUESTION])

    monkeypatch.chdir(tmp_path)
    assert made.folder is not None
    assert cl_zoo.load(made.folder).generate([None], [QUESTION]) == before


def test_a_model_of_another_family_is_refused_before_anything_else_of_it_is(make: Make, tmp_path: Path):
    other = tiny_qwen(tmp_path / "qwen")

    with pytest.raises(BackboneError, match=r"is of revision .*pass the run's own weights with --backbone"):
        cl_zoo.load(make("finetune").folder, backbone=str(other)).generate([None], [QUESTION])
