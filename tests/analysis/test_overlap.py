"""Test samples in a training mix: what is planted is found at known rates, and nothing else."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFilter

from cl_zoo.analysis.mixes import grams, read_mix, words
from cl_zoo.analysis.overlap import overlap
from cl_zoo.analysis.planting import planting
from cl_zoo.errors import OptionError
from cl_zoo.tasks import Benchmark, Sample, TaskData

INSTRUCTION = "Answer the question using a single word or phrase."
NOUNS = "otter lamp river stone train apple cloud chair garden window paper mountain bridge candle kettle ladder".split()


def scene(place: int) -> Image.Image:
    """A picture with soft shapes of its own, 240 by 200 pixels."""
    drawn, chance = (
        Image.new("RGB", (240, 200), (place * 37 % 256, place * 91 % 256, 120)),
        random.Random(place),
    )
    brush = ImageDraw.Draw(drawn)
    for _ in range(14):
        x, y, side = chance.randrange(220), chance.randrange(180), chance.randrange(20, 90)
        brush.ellipse((x, y, x + side, y + side), fill=tuple(chance.randrange(256) for _ in range(3)))
    return drawn.filter(ImageFilter.GaussianBlur(2))


def sample(folder: Path, place: int) -> Sample:
    """A picture file and a question of twenty words that no other sample asks."""
    file, chance = folder / f"{place}.jpg", random.Random(place)
    scene(place).save(file, quality=90)
    question = " ".join(chance.choice(NOUNS) for _ in range(20))
    return Sample(f"{place}", file, f"{question}?\n{INSTRUCTION}", chance.choice(NOUNS))


def benchmark(folder: Path, count: int) -> Benchmark:
    """One task, tested on `count` samples and trained on as many others."""
    folder.mkdir()
    test = [sample(folder, place) for place in range(count)]
    train = [sample(folder, 1000 + place) for place in range(count)]
    task = TaskData("scenes", "S", INSTRUCTION, "exact", 8, train, (), test)
    return Benchmark("drawn", "1", (task,), (), "", "")


def test_planted_duplicates_are_found_at_known_rates(tmp_path: Path) -> None:
    """Of 80 samples: copies, other formats, strong compression and half the size all, a crop or a mirrored picture none.

    One changed word in ten breaks every run of thirteen, so such a text is not found.
    """
    found = planting(benchmark(tmp_path / "data", 80))
    rates = {(row["of"], row["change"]): row["percent"] for row in found.rows}

    kept = ("copied", "saved as PNG", "JPEG of quality 75", "JPEG of quality 30", "half the size")
    assert {kind: rates["picture", kind] for kind in kept} == dict.fromkeys(kept, 100.0)
    lost = ("cropped by a tenth", "mirrored", "not planted")
    assert {kind: rates["picture", kind] for kind in lost} == dict.fromkeys(lost, 0.0)
    assert rates["text", "as it is"] == rates["text", "capitals and punctuation"] == 100.0
    assert rates["text", "one word in ten changed"] == 0.0
    assert rates["text", "in another order"] == rates["text", "not planted"] == 0.0
    assert found.sentence.startswith("drawn: found of what was planted: picture copied 100 %")
    assert found.figure().axes


def test_texts_of_a_task_without_an_instruction_are_planted_as_they_are(tmp_path: Path) -> None:
    made = benchmark(tmp_path / "data", 10)
    (task,) = made.tasks
    blank = replace(made, tasks=(replace(task, instruction=""),))

    rates = {row["change"]: row["percent"] for row in planting(blank).rows if row["of"] == "text"}

    assert rates["as it is"] == rates["capitals and punctuation"] == 100.0


def test_shorter_runs_find_texts_of_which_words_are_changed(tmp_path: Path) -> None:
    """Of twenty words the 10th and 20th are others: 4 of the 13 runs of eight words are whole, and 10 of the 16 runs of five."""
    made = benchmark(tmp_path / "data", 10)
    rates = [
        {row["change"]: row["percent"] for row in planting(made, length=length).rows if row["of"] == "text"}
        for length in (8, 5)
    ]

    assert [one["one word in ten changed"] for one in rates] == [0.0, 100.0]
    assert [one["not planted"] for one in rates] == [0.0, 0.0]


def test_a_sample_is_found_by_its_file_its_looks_its_words_and_both(tmp_path: Path) -> None:
    made = benchmark(tmp_path / "data", 5)
    (tmp_path / "mix").mkdir()
    copied, smaller, worded, whole, _ = made.tasks[0].test
    shutil.copy(copied.image, tmp_path / "mix" / "a.jpg")
    scene(1).resize((120, 100)).save(tmp_path / "mix" / "b.png")
    shutil.copy(whole.image, tmp_path / "mix" / "c.jpg")
    records = [
        {"image": "b.png", "conversations": [{"from": "human", "value": "<image>\nWhat is this?"}]},
        {"messages": [{"role": "user", "content": worded.prompt.upper()}]},
        {"image": "c.jpg", "conversations": [{"from": "human", "value": f"<image>\n{whole.prompt}"}]},
    ]
    (tmp_path / "mix" / "mix.json").write_text(json.dumps(records))

    found = overlap(made, read_mix([tmp_path / "mix"]))

    kinds = [[kind for kind in ("exact", "near", "text", "both") if row[kind]] for row in found.rows]
    assert kinds == [["exact"], ["near"], ["text"], ["exact", "text", "both"], []]
    assert found.rows[1]["mix"] == str((tmp_path / "mix" / "b.png").resolve())
    assert found.sentence == (
        "drawn: of 5 test samples stand in a mix of 3 records and 3 pictures: 2 exact, 1 near, 2 text, 1 both."
    )
    assert smaller.id == "1"


def test_a_short_question_counts_with_its_picture_only(tmp_path: Path) -> None:
    """`What is this?` stands in every mix; with the same picture it is the same sample."""
    folder = tmp_path / "data"
    folder.mkdir()
    test = []
    for place in range(2):
        scene(place).save(folder / f"{place}.png")
        test.append(Sample(f"{place}", folder / f"{place}.png", f"What is this?\n{INSTRUCTION}", "an otter"))
    task = TaskData("scenes", "S", INSTRUCTION, "exact", 8, test, (), test)
    records = [{"image": str(folder / "0.png"), "text": f"What is this?\n{INSTRUCTION}"}]
    (tmp_path / "mix.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))

    rows = overlap(Benchmark("drawn", "1", (task,), (), "", ""), read_mix([tmp_path / "mix.jsonl"])).rows

    assert [(row["exact"], row["text"], row["both"]) for row in rows] == [
        (True, False, True),
        (False, False, False),
    ]
    assert not any(row["long"] for row in rows)


def test_pictures_of_a_mix_may_lie_elsewhere_and_those_that_are_not_there_do_not_count(
    tmp_path: Path,
) -> None:
    (tmp_path / "pictures").mkdir()
    scene(0).save(tmp_path / "pictures" / "a.png")
    file = tmp_path / "mix.json"
    file.write_text(json.dumps([{"image": "a.png"}, {"image": "gone.png"}]))

    assert read_mix([file]).pictures == []
    (there,) = read_mix([file], images=[tmp_path / "pictures"]).pictures
    assert Path(there).name == "a.png"
    whole = read_mix([tmp_path])  # a picture anywhere in the mix is found by the end of its path
    assert [(Path(*one.pictures).name, one.missing) for one in whole.records] == [("a.png", 0), ("", 1)]
    assert whole.missing == 1


def test_a_mix_that_is_not_there_or_holds_nothing_is_told(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"--mix .*gone: there is no such file or folder"):
        read_mix([tmp_path / "gone"])
    with pytest.raises(OptionError, match="holds neither records nor pictures"):
        read_mix([tmp_path])


def test_words_are_compared_in_small_letters_without_punctuation() -> None:
    assert words("What's THAT, then? 3.5 Größen") == ["what", "s", "that", "then", "3", "5", "größen"]
    assert grams(["a", "b", "c"], 2) == ["a b", "b c"]
    assert grams(["a"], 2) == []
