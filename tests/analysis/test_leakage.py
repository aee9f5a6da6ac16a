"""Zero-shot against multi-task, and which datasets are worth learning."""

from __future__ import annotations

from pathlib import Path

import pytest
from kept_runs import write_run

from cl_zoo.analysis.leakage import Gap, gaps_of, leakage, published_gaps
from cl_zoo.analysis.screening import screen
from cl_zoo.errors import OptionError
from cl_zoo.runs.finding import find_runs


@pytest.fixture
def gaps(tmp_path: Path) -> list[Gap]:
    """Two tasks of which the untouched model knows the second, over two seeds, beside a method that learns in order."""
    for seed, (render, chart) in enumerate([(25, 75), (0, 100)]):
        write_run(tmp_path, "untouched", seed, [[render, chart]], protocol="none")
    write_run(tmp_path, "all", 0, [[100, 75]], protocol="joint")
    write_run(tmp_path, "in-order", 0)
    return gaps_of(find_runs([tmp_path]).comparisons)


def test_the_gap_is_the_multi_task_score_minus_the_zero_shot_score_over_the_seeds(gaps: list[Gap]) -> None:
    found = leakage(gaps)

    assert [(row["task"], row["zero_shot"], row["multi_task"], row["gap"]) for row in found.rows] == [
        ("render", 12.5, 100.0, 87.5),
        ("chart", 87.5, 75.0, -12.5),
        ("mean", 50.0, 87.5, 37.5),
    ]
    assert found.sentence == (
        "zoo: 37.50 points from zero-shot to multi-task (50.00 to 87.50), by task from -12.50 (chart) to 87.50 (render); "
        "learnt worse than not at all: chart."
    )
    assert "  zoo        chart       87.50       75.00  -12.50  untouched and all\n" in found.text
    assert found.figure().axes


def test_without_a_joint_run_there_is_no_gap_and_the_sentence_says_what_is_missing(tmp_path: Path) -> None:
    write_run(tmp_path, "untouched", 0, [[25, 75]], protocol="none")

    gaps = gaps_of(find_runs([tmp_path]).comparisons)
    assert [one.gap for one in gaps] == [None] * 3
    with pytest.raises(OptionError, match="protocol none and of one of protocol joint"):
        leakage(gaps)


@pytest.fixture(scope="module")
def printed() -> list[Gap]:
    """What the HiDe-LLaVA paper prints."""
    return [one for one in published_gaps() if "HiDe" in one.source]


def test_published_tables_have_the_gaps_that_their_paper_prints(printed: list[Gap]) -> None:
    """43.10 on UCIT and 13.19 on CoIN (Section 5.2); GQA, VQAv2 and OCR-VQA of CoIN are learnt worse than not at all."""
    rows = leakage(printed).rows
    means = {row["benchmark"]: round(row["gap"], 2) for row in rows if row["task"] == "mean"}
    worse = {row["task"] for row in rows if row["gap"] < 0}

    assert means == {"ucit": 43.10, "coin": 13.19}
    assert worse == {"GQA", "VQAv2", "OCRVQA"}


def test_the_gap_is_one_of_the_model_too(printed: list[Gap]) -> None:
    """Without instruction tuning a model knows nothing of CoIN; no mean is printed there, and ours is that of the seven tasks."""
    (mean,) = [
        one
        for one in published_gaps()
        if one.benchmark == "coin" and one.task == "mean" and one not in printed
    ]

    assert "Vicuna 7B" in mean.source
    assert mean.zero_shot == pytest.approx(7.04 / 7)
    assert mean.gap == pytest.approx((400.69 - 7.04) / 7)


def test_the_default_bounds_choose_the_datasets_of_ucit_from_the_published_tables(printed: list[Gap]) -> None:
    rows = screen(printed).rows

    assert all(row["qualifies"] for row in rows if row["benchmark"] == "ucit")
    assert [row["task"] for row in rows if row["benchmark"] == "coin" and row["qualifies"]] == ["ImageNet"]


def test_a_task_qualifies_by_little_known_and_much_gained(gaps: list[Gap]) -> None:
    found = screen(gaps, highest=54, least=15)

    assert [(row["task"], row["qualifies"]) for row in found.rows] == [("render", True), ("chart", False)]
    assert found.rows[1]["why"] == "zero-shot 87.50 is above 54 and training adds -12.50, less than 15"
    assert found.sentence == "zoo: 1 of 2 tasks qualify: render (zero-shot at most 54, gain at least 15)."
    assert [row["qualifies"] for row in screen(gaps, highest=90, least=-20).rows] == [True, True]
    assert found.figure().axes


def test_without_a_multi_task_model_the_zero_shot_score_decides_alone(gaps: list[Gap]) -> None:
    alone = [Gap(one.benchmark, one.task, one.zero_shot, None, one.source) for one in gaps]

    assert [row["qualifies"] for row in screen(alone).rows] == [True, False]
    assert "gain" not in screen(alone).sentence
    with pytest.raises(OptionError, match="add runs of a method of protocol none"):
        screen([])
