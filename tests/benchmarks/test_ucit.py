"""`ucit`: the official files of six tasks in every layout that is about, in every order."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cl_zoo_bench_ucit import load as ucit

from cl_zoo.data.benchmarks import load_benchmark
from cl_zoo.errors import DataError
from cl_zoo.features.encoder import open_image
from cl_zoo.names import Choice, load
from cl_zoo.recipe.keys import read_recipe
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.runs.job import Job
from cl_zoo.runs.prepared import prepare
from cl_zoo.tasks import without_image

OFFICIAL = Path(__file__).parents[1] / "official_files.py"
write_ucit, ucit_files, edit_json, LAYOUTS = (
    load("", f"{OFFICIAL}:{name}") for name in ("write_ucit", "ucit_files", "edit_json", "UCIT_LAYOUTS")
)
NAMES = {
    "R": "ImageNet-R",
    "A": "ArxivQA",
    "V": "VizWiz",
    "I": "IconQA",
    "C": "CLEVR-Math",
    "F": "Flickr30k",
}


@pytest.fixture(scope="module", params=LAYOUTS)
def tree(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The six tasks in one of the layouts; only read it."""
    root: Path = write_ucit(tmp_path_factory.mktemp(request.param), layout=request.param)
    return root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The six tasks as the README lays them out, for a test to spoil."""
    root: Path = write_ucit(tmp_path / "data")
    return root


def task(data: Path, letter: str) -> Any:
    return load_benchmark("ucit", str(data)).stream(letter)[0]


# What it is


def test_the_orders_of_the_papers_table_4_go_by_name():
    assert ucit.description.orders == {"paper-1": "RAVICF", "paper-2": "AIRFCV", "paper-3": "IFRCAV"}


def test_the_order_is_that_of_the_paper():
    about = ucit.description

    assert "".join(one.letter for one in about.tasks) == "RAVICF"
    assert {one.letter: one.name for one in about.tasks} == NAMES


def test_sizes_are_the_official_ones():
    counts = [(one.train.count, one.test.count) for one in ucit.description.tasks]

    assert counts == [
        (23_998, 3_000),
        (40_000, 3_000),
        (40_000, 3_000),
        (29_859, 3_000),
        (40_000, 3_000),
        (40_000, 3_000),
    ]
    assert sum(train for train, _ in counts) == 213_857


def test_captions_are_scored_as_captions_and_the_rest_by_equality():
    about = ucit.description.tasks

    assert {one.letter: one.metric for one in about} == {
        **dict.fromkeys("RAIC", "exact"),
        **dict.fromkeys("VF", "caption"),
    }
    assert {one.max_new_tokens for one in about} == {128}


def test_its_recipe_is_the_papers():
    recipe = build_recipe(ucit.description.recipe)

    assert recipe == build_recipe(read_recipe("paper"), {"max_tokens": None})
    assert (recipe.epochs, recipe.global_batch) == (1, 24)
    assert (recipe.adapter.rank, recipe.adapter.scale, recipe.clip, recipe.warmup) == (8, 2.0, "none", 0.03)


# Its files


@pytest.mark.parametrize("order", [None, "RAVICF", "AIRFCV", "IFRCAV", "FCIVAR", "RR", "V"])
def test_every_layout_is_prepared_in_every_order(tree: Path, order: str | None):
    prepared = prepare(Job((Choice("finetune"),), "ucit", data=str(tree), order=order, limit=3))

    assert [one.name for one in prepared.stream] == [NAMES[letter] for letter in order or "RAVICF"]
    for one in prepared.stream:
        for sample in (*one.train, *one.test):
            assert open_image(sample.image).size == (32, 24)  # type: ignore[arg-type]
            assert sample.prompt.strip()
            assert "<image>" not in sample.prompt
            assert sample.answer
        assert len(one.train) == len(one.test) == 3
        assert one.validation == () or not len(one.validation)


def test_every_permutation_of_the_tasks_is_an_order(data: Path):
    benchmark = load_benchmark("ucit", str(data))

    for letters in itertools.permutations("RAVICF"):
        assert [one.letter for one in benchmark.stream("".join(letters))] == list(letters)


def test_the_layout_does_not_change_the_data(tree: Path, data: Path):
    assert load_benchmark("ucit", str(tree)).data_hash == load_benchmark("ucit", str(data)).data_hash


def test_a_folder_named_as_in_the_scripts_is_found_for_one_task_alone(data: Path):
    (data / "instructions/VizWiz").rename(data / "instructions/VizWiz-caption")

    assert len(task(data, "V").train) == 6


def test_training_ids_come_twice_and_samples_do_not(data: Path):
    for letter, name, key in (
        ("V", "VizWiz", "question_id"),
        ("C", "CLEVR", "id"),
        ("F", "Flickr30k", "question_id"),
    ):
        records = json.loads(ucit_files(data, name)["train"].read_text())
        assert len({record[key] for record in records}) == len(records) // 2

        train = task(data, letter).train

        assert [sample.id for sample in train] == [str(place) for place in range(6)]


def test_references_are_numbered_by_place(data: Path):
    test = task(data, "V").test

    assert [sample.id for sample in test] == ["28", "21", "14", "7"]
    assert [sample.references[0] for sample in test] == [
        f"a {colour} disc on a plain ground" for colour in ("red", "green", "blue", "yellow")
    ]
    assert {len(sample.references) for sample in test} == {5}


def test_prompts_are_read_as_they_are(data: Path):
    icons = [sample.prompt for sample in task(data, "I").test]
    figures = [sample.prompt for sample in task(data, "A").train]

    assert icons[0] == "How many shapes are there?\nAnswer the question using a single word or phrase."
    assert icons[1] == (
        "How many shapes are there?\n0. 72\n1. 71\n2. 63\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert ["**Rationale:**" in prompt for prompt in figures] == [True, False] * 3


def test_a_file_cut_to_half_a_thousand_is_told_by_the_count_and_still_read(data: Path):
    """Fewer records than the official number are for `data check` to find; reading them is no error."""
    edit_json(ucit_files(data, "CLEVR")["train"], lambda records: records[:2])

    assert len(task(data, "C").train) == 2


# What goes wrong


def refused(data: Path, letter: str) -> str:
    with pytest.raises(DataError) as caught:
        prepare(Job((Choice("finetune"),), "ucit", data=str(data), order=letter))
    return str(caught.value)


def test_the_first_published_annotation_of_vizwiz_is_explained(tmp_path: Path):
    data = write_ucit(tmp_path, train=2, test=30)
    file = ucit_files(data, "VizWiz")["references"]

    def without_the_seventh(content: dict[str, Any]) -> None:
        content["annotations"] = [one for one in content["annotations"] if one["image_id"] != 7]

    edit_json(file, without_the_seventh)

    assert refused(data, "V") == (
        f"{file}: annotates 29 of the 30 test records by the name of the image, none for record 7: VizWiz_val_00000168.jpg; "
        "fetch the files that belong together (the VizWiz file first published annotated 2,999 images; the one uploaded on 2025-10-28 annotates all "
        "3,000)"
    )


def test_a_shuffled_caption_test_keeps_the_references_of_its_images(data: Path):
    def references() -> dict[str, tuple[str, ...]]:
        test = load_benchmark("ucit", str(data)).stream("F")[0].test
        return {
            without_image(test, place).id: without_image(test, place).references for place in range(len(test))
        }

    before = references()
    edit_json(ucit_files(data, "Flickr30k")["test"], lambda records: records[::-1])

    assert len(before) == 4
    assert references() == before


def test_a_repeated_test_id_is_refused(data: Path):
    file = ucit_files(data, "ArxivQA")["test"]
    edit_json(file, lambda records: [*records, records[1]])

    assert refused(data, "A").startswith(
        f"{file}, record 5: question_id '40001' stands in record 2 already; "
    )


def test_an_empty_answer_is_refused(data: Path):
    file = ucit_files(data, "IconQA")["train"]

    def empty(records: list[dict[str, Any]]) -> None:
        records[4]["conversations"][1]["value"] = ""

    edit_json(file, empty)

    assert (
        refused(data, "I")
        == f"{file}, record 5: has an empty answer, which teaches nothing; repair or drop the record"
    )


def test_a_truncated_file_is_refused(data: Path):
    file = ucit_files(data, "CLEVR")["train"]
    file.write_bytes(file.read_bytes()[:-40])

    assert "the file is truncated; fetch it again" in refused(data, "C")
    assert refused(data, "C").startswith(f"{file}, line 1, column ")


@pytest.mark.parametrize("name", ["/etc/passwd", "../outside.jpg", "linked/a.jpg"])
def test_an_image_outside_the_data_is_refused(data: Path, tmp_path: Path, name: str):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/a.jpg").write_bytes(b"")
    (data / "datasets/linked").symlink_to(tmp_path / "outside")
    file = ucit_files(data, "ImageNet-R")["train"]

    def leave(records: list[dict[str, Any]]) -> None:
        records[2]["image"] = name

    edit_json(file, leave)

    with pytest.raises(DataError, match=rf"^{file}, record 3: image '{name}': (is absolute|holds|leads out)"):
        list(task(data, "R").train)


def test_a_missing_and_a_broken_image_are_named_when_they_are_opened(data: Path):
    train = task(data, "R").train
    gone, broken = train[0].image, train[1].image
    gone.unlink()
    broken.write_bytes(broken.read_bytes()[:100])

    for image in (gone, broken):
        with pytest.raises(DataError) as caught:
            open_image(image)
        assert str(image) in str(caught.value)


@pytest.mark.parametrize("arguments", [(), ("--data", "nowhere")])
def test_the_command_line_says_where_data_comes_from(
    cli: Callable[..., Any], tmp_path: Path, arguments: tuple[str, ...]
):
    ended = cli("compare", "--benchmark", "ucit", "--out", tmp_path / "runs", "--device", "cpu", *arguments)

    assert ended.code == 2
    sentence = ended.err.splitlines()[-1]
    assert sentence.startswith("error: ")
    assert sentence.endswith(
        "pass its folder with --data DIR; 'cl-zoo data fetch ucit' gets what the hub holds"
    )
    assert not (tmp_path / "runs").exists()
