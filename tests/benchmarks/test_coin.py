"""`coin`: the official files of eight tasks, with instructions in several versions, questions without an image, and boxes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cl_zoo_bench_coin import load as coin

from cl_zoo.data.benchmarks import load_benchmark
from cl_zoo.errors import DataError, OptionError
from cl_zoo.names import Choice, load
from cl_zoo.recipe.keys import read_recipe
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.runs.job import Job
from cl_zoo.runs.prepared import prepare

OFFICIAL = Path(__file__).parents[1] / "official_files.py"
write_coin, edit_json, VARIANTS = (
    load("", f"{OFFICIAL}:{name}") for name in ("write_coin", "edit_json", "COIN_VARIANTS")
)
NAMES = ["ScienceQA", "TextVQA", "ImageNet", "GQA", "VizWiz", "Grounding", "VQAv2", "OCRVQA"]
INSTRUCTIONS = "playground/Instructions_Original"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The eight tasks with the original instructions, for a test to spoil."""
    root: Path = write_coin(tmp_path / "data")
    return root


def task(data: Path, name: str) -> Any:
    return load_benchmark("coin", str(data)).stream(name)[0]


def refused(data: Path, name: str) -> str:
    with pytest.raises(DataError) as caught:
        prepare(Job((Choice("finetune"),), "coin", data=str(data), order=name))
    return str(caught.value)


def test_the_order_and_the_rules_are_coins():
    about = coin.description.tasks

    assert [one.name for one in about] == NAMES
    assert [one.metric for one in about] == [
        "scienceqa",
        "textvqa",
        "imagenet",
        "gqa",
        "vqav2",
        "grounding",
        "vqav2",
        "ocrvqa",
    ]


def test_a_count_that_is_not_official_is_not_given():
    counts = {one.name: (one.train.count, one.test.count) for one in coin.description.tasks}

    assert counts.pop("ScienceQA") == (12_726, 4_241)
    assert counts.pop("TextVQA") == (34_602, None)
    assert counts.pop("VizWiz") == (20_523, None)
    assert set(counts.values()) == {(None, None)}


def test_its_recipe_is_that_of_coin_at_batch_24():
    """L2P's rates go with the batch: 0.03 · 24 / 256."""
    recipe = build_recipe(coin.description.recipe)
    rates = {f"lr.l2p.{part}": 0.0028125 for part in ("prompts", "keys")}

    assert recipe == build_recipe(
        read_recipe("coin"), {"max_tokens": None, "global_batch": 24, "micro_batch": None, **rates}
    )
    assert (recipe.adapter.rank, recipe.clip, recipe.clip_norm) == (128, "norm", 1.0)


@pytest.mark.parametrize("variant", sorted(VARIANTS))
@pytest.mark.parametrize("prefix", ["playground", ""])
def test_every_version_of_the_instructions_is_prepared(tmp_path: Path, variant: str, prefix: str):
    data = write_coin(tmp_path, variant=variant, prefix=prefix)
    name = "coin" if variant == "original" else f"coin[instructions={variant}]"

    prepared = prepare(Job((Choice("finetune"),), name, data=str(data)))

    assert prepared.benchmark.name == ("coin" if variant == "original" else f"coin-{variant}")
    assert [one.name for one in prepared.stream] == NAMES
    for one in prepared.stream:
        for sample in (*one.train, *one.test):
            assert sample.image is None or sample.image.is_file()  # type: ignore[union-attr]
    word = prepared.stream[2].test[0].prompt.splitlines()[-1]
    assert word == {
        "type2": "Express your answer in a single word or a short, descriptive phrase.",
        "diverse": "Summarize your response in a single word or a brief phrase.",
        "10type": "Provide your answer using a single word or a brief phrase.",
    }.get(variant, "Answer the question using a single word or phrase.")


def test_versions_lie_beside_each_other(data: Path):
    write_coin(data, variant="type2")

    hashes = {load_benchmark(name, str(data)).data_hash for name in ("coin", "coin[instructions=type2]")}

    assert len(hashes) == 2


def test_an_unknown_version_is_named(data: Path):
    with pytest.raises(
        OptionError, match=r"benchmark coin: instructions=typ2 is unknown; did you mean 'type2'\? known: "
    ):
        load_benchmark("coin[instructions=typ2]", str(data))


def test_half_of_scienceqa_is_a_question_without_an_image(data: Path):
    science = task(data, "ScienceQA")

    assert [sample.image is None for sample in science.train] == [False, True] * 3
    assert science.train[1].prompt.startswith("Which of these states is farthest north?\nA. West Virginia")
    assert [sample.answer for sample in science.test] == ["A", "B", "C", "D"]
    assert science.test[0].truth == {"choices": ["A", "B", "C", "D"]}


def test_scienceqa_and_gqa_do_without_their_own_files(data: Path):
    (data / "cl_dataset/ScienceQA/problems.json").unlink()
    (data / "cl_dataset/GQA/testdev_balanced_questions.json").unlink()

    assert [sample.answer for sample in task(data, "ScienceQA").test] == ["A", "B", "C", "D"]
    assert [sample.answer for sample in task(data, "GQA").test] == ["yes", "no", "left", "yes"]


def test_without_either_answer_the_record_is_named(data: Path):
    (data / "cl_dataset/ScienceQA/problems.json").unlink()
    file = data / INSTRUCTIONS / "ScienceQA/test.json"
    edit_json(file, lambda records: [records[0], {**records[1], "answer": None}])

    assert refused(data, "ScienceQA") == f"{file}, record 2: lacks an 'answer'; repair or drop the record"


def test_gqa_takes_the_answers_of_its_own_file(data: Path):
    file = data / "cl_dataset/GQA/testdev_balanced_questions.json"
    edit_json(file, lambda questions: {key: {**one, "answer": "right"} for key, one in questions.items()})

    assert {sample.answer for sample in task(data, "GQA").test} == {"right"}


def test_textvqa_needs_the_answers_of_ten_people(data: Path):
    (sample, *_) = task(data, "TextVQA").test
    assert sample.truth["answers"] == ["stop 6"] * 7 + ["stop"] * 2 + ["sign"]

    (data / "cl_dataset/TextVQA/TextVQA_0.5.1_val.json").unlink()
    assert refused(data, "TextVQA").startswith("task TextVQA, references: no file; looked for ")


def test_textvqa_may_name_images_in_the_place_of_questions(data: Path):
    people = data / "cl_dataset/TextVQA/TextVQA_0.5.1_val.json"

    def one_image(content: dict[str, Any]) -> None:
        for one in content["data"]:
            one["image_id"] = "same"

    edit_json(people, one_image)
    edit_json(
        data / INSTRUCTIONS / "TextVQA/val.json",
        lambda records: [{**record, "question_id": "same"} for record in records],
    )

    test = task(data, "TextVQA").test

    assert [sample.id for sample in test] == [f"same-{place}" for place in range(4)]
    assert [sample.truth["answers"][0] for sample in test] == [f"stop {place}" for place in range(6, 10)]


def test_a_box_is_given_with_the_size_of_its_image(data: Path):
    (sample, *_) = task(data, "Grounding").test

    assert sample.truth == {"box": [0.1, 0.15, 0.55, 0.75], "size": [40, 30]}
    assert sample.answer == "[0.10, 0.15, 0.55, 0.75]"


def test_a_broken_box_is_named(data: Path):
    file = data / INSTRUCTIONS / "Grounding/test.json"
    edit_json(file, lambda records: [*records[:1], {**records[1], "answer_bbox": "[0.1, 0.2, 0.3]"}])

    assert refused(data, "Grounding").startswith(
        f"{file}, record 2: 'answer_bbox' '[0.1, 0.2, 0.3]' is no box of four numbers; "
    )


def test_image_strings_that_start_with_the_folder_itself_are_found(data: Path):
    (sample, *_) = task(data, "ImageNet").test

    assert sample.image == data / "cl_dataset/ImageNet_withlabel/val/ILSVRC2012_val_00000000.JPEG"
