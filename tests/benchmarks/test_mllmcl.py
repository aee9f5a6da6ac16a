"""`mllm-dcl` and `mllm-acl`: files of domains and abilities, what scripts put behind prompts, and rules that read more than an answer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cl_zoo_bench_mllmcl import abilities, domains
from safetensors.torch import load_file, save_file

from cl_zoo.data.benchmarks import load_benchmark
from cl_zoo.data.converting import convert
from cl_zoo.errors import DataError
from cl_zoo.features.encoder import open_image
from cl_zoo.inspection.check import inspect
from cl_zoo.names import load
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.scoring.scorer import score_file

TREES = Path(__file__).parents[1] / "official_sequences.py"
write_domains, write_abilities, LAYOUTS = (
    load("", f"{TREES}:{name}") for name in ("write_domains", "write_abilities", "ACL_LAYOUTS")
)


@pytest.fixture
def dcl(tmp_path: Path) -> Path:
    """The five domains."""
    root: Path = write_domains(tmp_path / "data")
    return root


@pytest.fixture
def acl(tmp_path: Path) -> Path:
    """The two abilities."""
    root: Path = write_abilities(tmp_path / "data")
    return root


@pytest.fixture(scope="module")
def quick_llava(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA that soon comes to the end of an answer, of which OCR allows 2048 tokens."""
    folder = Path(shutil.copytree(tiny_folder / "llava", tmp_path_factory.mktemp("model") / "llava"))
    tensors = load_file(folder / "model.safetensors")
    (head,) = [name for name in tensors if name.endswith("lm_head.weight")]
    tensors[head][-1] *= 30  # the end token is the last one of the tiny vocabulary
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def task(name: str, data: Path, letter: str) -> Any:
    return load_benchmark(name, str(data)).stream(letter)[0]


# Domains


def test_the_order_and_the_rules_of_domains_are_those_of_the_scripts():
    about = domains.description.tasks

    assert [(one.letter, one.name, one.metric) for one in about] == [
        ("R", "RS", "contains-gold-bounded"),
        ("M", "Med", "contains-gold"),
        ("A", "AD", "contains-gold-bounded"),
        ("S", "Sci", "sci-mixed"),
        ("F", "Fin", "finvis"),
    ]


def test_medicine_learns_for_three_epochs_and_science_for_two():
    recipe = build_recipe(domains.description.recipe)

    assert [recipe.for_task(name).epochs for name in ("RS", "Med", "AD", "Sci", "Fin")] == [1, 3, 1, 2, 1]
    assert (recipe.global_batch, recipe.adapter.rank, recipe.clip) == (64, 128, "none")


@pytest.mark.parametrize("folder", ["MLLM-CL/domain", "domain", "Domain_data", "."])
def test_domains_are_found_wherever_a_copy_keeps_them(tmp_path: Path, folder: str):
    data = write_domains(tmp_path, folder=folder)

    for letter, name in zip("RMASF", ("RS", "Med", "AD", "Sci", "Fin"), strict=True):
        one = task("mllm-dcl", data, letter)
        assert {sample.image.parents[1] for sample in (*one.train, *one.test)} == {data / folder / name}


def test_prompts_of_medicine_and_finance_end_as_the_scripts_end_them(dcl: Path):
    medicine, finance = task("mllm-dcl", dcl, "M"), task("mllm-dcl", dcl, "F")

    assert {sample.prompt.partition("?")[2] for sample in medicine.test} == {
        " Answer the question with a single word (or phrase)."
    }
    letter, word = (
        " Answer with the given letter directly, e.g., A, B, C, D.",
        " Only answer with yes or no directly.",
    )
    assert [(sample.answer, sample.prompt.partition("?")[2]) for sample in finance.test] == [
        ("Yes", word),
        ("A", letter),
        ("No", word),
        ("C", letter),
    ]
    assert all(sample.prompt.endswith("?") for one in (medicine, finance) for sample in one.train)
    assert all(sample.prompt.endswith("?") for sample in task("mllm-dcl", dcl, "R").test)


def test_science_is_scored_with_the_name_of_its_image_and_its_question(dcl: Path):
    (diagram, states, *_) = task("mllm-dcl", dcl, "S").test

    assert diagram.truth == {"image": "images/AI2D_0004.png", "text": "What is it, number 4?"}
    assert states.truth == {"image": "images/MapQA_0005.png", "text": "Which states are red?"}


def test_all_domains_pass_data_check(dcl: Path):
    report = inspect(domains, dcl)

    assert report.ok
    assert [facts.task for facts in report.tasks if facts.split == "test"] == [
        "RS",
        "Med",
        "AD",
        "Sci",
        "Fin",
    ]


def test_a_published_answer_file_on_science_is_scored_by_the_test_file_itself(dcl: Path, tmp_path: Path):
    answers = tmp_path / "merge.jsonl"
    said = ["Seed", "ohio,utah", "about 12%", "a leaf"]
    answers.write_text(
        "".join(
            json.dumps({"question_id": 4 + place, "text": text}) + "\n" for place, text in enumerate(said)
        )
    )

    score = score_file(answers, dcl / "MLLM-CL/domain/Sci/test.json", "sci-mixed")

    assert score.value == 100 * (1 + 1 / 2 + 1 + 0) / 4
    assert score.strict == 100 * (1 + 1 + 0 + 0) / 4


# Abilities


def test_two_abilities_of_four_are_described_in_the_order_of_the_scripts():
    about = abilities.description.tasks

    assert [(one.letter, one.name, one.metric) for one in about] == [
        ("O", "OCR", "ocrbench"),
        ("V", "VP", "contains-bare"),
    ]
    assert [one.max_new_tokens for one in about] == [2048, 64]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_test_image_is_that_of_its_own_folder_though_training_has_one_of_its_name(
    tmp_path: Path, layout: str
):
    data = write_abilities(tmp_path, layout=layout)
    folders = {"O": "OCR_test", "V": LAYOUTS[layout][2]}

    for letter, folder in folders.items():
        one = task("mllm-acl", data, letter)
        assert one.train[0].image.name == one.test[0].image.name
        assert one.test[0].image.parents[1].name == folder
        assert open_image(one.train[0].image).tobytes() != open_image(one.test[0].image).tobytes()


def test_the_kind_of_a_question_and_all_right_texts_are_kept(acl: Path):
    (first, second, *_) = task("mllm-acl", acl, "O").test

    assert first.truth == {"answers": ["x ^0", "0"], "answer_type": "Digit String Recognition"}
    assert second.truth["answer_type"] == "Handwritten Mathematical Expression Recognition"


def test_a_record_without_its_kind_is_named(acl: Path):
    file = acl / "MLLM-CL/ability/OCR_test/test.json"
    records = json.loads(file.read_text())
    del records[1]["answer_type"]
    file.write_text(json.dumps(records))

    with pytest.raises(DataError) as caught:
        len(task("mllm-acl", acl, "O").test)

    assert str(caught.value) == f"{file}, record 2: has no 'answer_type'; repair or drop the record"


def test_abilities_pass_data_check_and_keep_what_rules_read_when_they_are_converted(
    acl: Path, tmp_path: Path
):
    assert inspect(abilities, acl).ok

    file = convert(load_benchmark("mllm-acl", str(acl)), abilities, tmp_path / "out", lambda _: None)

    again = load_benchmark(str(file), str(acl)).stream("O")[0]
    assert [sample.truth for sample in again.test] == [
        sample.truth for sample in task("mllm-acl", acl, "O").test
    ]
    assert [sample.image for sample in again.test] == [
        sample.image for sample in task("mllm-acl", acl, "O").test
    ]


# Runs


@pytest.mark.parametrize(
    ("name", "order", "rules"),
    [("mllm-dcl", "SF", ["sci-mixed", "finvis"]), ("mllm-acl", "OV", ["ocrbench", "contains-bare"])],
)
def test_a_run_scores_by_the_rules_that_read_more_than_an_answer(
    tmp_path: Path, cli: Callable[..., Any], quick_llava: Path, name: str, order: str, rules: list[str]
):
    write = write_domains if name == "mllm-dcl" else write_abilities
    ended = cli(
        *("run", "finetune", "--benchmark", name, "--data", write(tmp_path / "data"), "--order", order),
        *("--limit", 2, "--backbone", quick_llava, "--set", "global_batch=2", "--set", "precision=fp32"),
        *("--set", "checkpointing=false", "--set", "epochs=1", "--device", "cpu", "--out", tmp_path / "runs"),
    )

    assert ended.code == 0, ended.err
    (manifest,) = (tmp_path / "runs").glob("*/manifest.json")
    scores = json.loads(manifest.read_text())["scores"]
    assert [scores[cell]["metric"].partition("/")[0] for cell in ("0-0", "1-1")] == rules
