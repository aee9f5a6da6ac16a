"""Runs that are there already: found by folder and pattern, grouped, told apart; unfinished and damaged ones are named."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from kept_runs import begin_run, write_run
from tiny_runs import resealed

import cl_zoo
from cl_zoo.errors import OptionError, RunError
from cl_zoo.runs.finding import find_runs
from cl_zoo.runs.written import parts


def labels(*places: object) -> list[list[str]]:
    return [[one.label for one in found.results] for found in find_runs(map(str, places)).comparisons]


def test_folders_of_runs_patterns_and_runs_themselves_name_the_same_runs(tmp_path: Path):
    run = write_run(tmp_path / "first" / "deep", "ewc")
    write_run(tmp_path / "second", "hide")

    assert labels(tmp_path) == [["ewc", "hide"]]
    assert labels(tmp_path / "second", tmp_path / "first") == [["hide", "ewc"]]
    assert labels(tmp_path / "*" / "deep", run, run) == [["ewc"]]


def test_what_no_run_is_in_is_an_error(tmp_path: Path):
    with pytest.raises(OptionError, match="no run is there"):
        find_runs([tmp_path])
    with pytest.raises(OptionError, match="nowhere: no such folder"):
        find_runs([tmp_path / "nowhere"])


def test_orders_of_the_same_tasks_are_one_comparison(tmp_path: Path):
    write_run(tmp_path, "ewc")
    write_run(tmp_path, "ewc", tasks=("chart", "render"))

    (one,) = parts(find_runs([tmp_path]))

    assert one.title == "zoo, version 1: 2 orders"
    assert [row.tasks for row in one.table.rows] == [("render", "chart"), ("chart", "render")]
    assert {row.label for row in one.table.rows} == {"ewc"}


def test_unfinished_and_damaged_runs_are_named_and_the_others_are_shown(tmp_path: Path):
    write_run(tmp_path, "ewc")
    started = begin_run(tmp_path, "hide")
    damaged = write_run(tmp_path, "lwf")
    file = damaged / "answers" / "1-0.jsonl"
    file.write_text(file.read_text().replace("dog", "cow"))
    strange = write_run(tmp_path, "l2p")
    resealed(strange, lambda manifest: manifest["ledger"].pop("tasks"))

    found = find_runs([tmp_path])

    assert [one.label for one in found.results] == ["ewc"]
    told = {one.folder: one.why for one in found.left_out}
    assert told[started] == "not finished, 1 of 2 tasks are learnt"
    assert "answers/1-0.jsonl" in told[damaged]
    assert "SHA-256 differs" in told[damaged]
    assert told[strange] == "its manifest is not what this program writes ('tasks'); do not use the folder"


def test_where_nothing_is_finished_the_reason_is_told(tmp_path: Path):
    begin_run(tmp_path, "hide", done=0)

    with pytest.raises(RunError, match=r"no finished run is there: .*0 of 2 tasks"):
        parts(find_runs([tmp_path]))


def test_runs_of_one_label_and_other_settings_are_no_seeds_of_one_method(tmp_path: Path):
    for seed in (0, 1):
        write_run(tmp_path, "ewc", seed)
        write_run(tmp_path, "ewc", seed, scores=([100], [50, 50]), epochs=3)
    write_run(tmp_path, "hide", 0)

    (part,) = parts(find_runs([tmp_path]))
    lines = {method.label: method.figure("last") for method in part.table.methods}

    assert set(lines) == {"ewc {epochs=1}", "ewc {epochs=3}", "hide"}
    assert lines["ewc {epochs=3}"].mean == 50.0
    assert lines["ewc {epochs=1}"].n == 2


def test_a_run_of_another_setting_than_most_is_stamped(tmp_path: Path):
    write_run(tmp_path, "ewc")
    write_run(tmp_path, "lwf")
    write_run(tmp_path, "hide", epochs=2, rank=8)

    (part,) = parts(find_runs([tmp_path]))

    assert {method.label: method.notes for method in part.table.methods} == {
        "ewc": "",
        "lwf": "",
        "hide": "set otherwise: epochs=2, rank=8",
    }


def test_a_copy_of_a_run_counts_once(tmp_path: Path):
    write_run(tmp_path / "a", "ewc")
    write_run(tmp_path / "b", "ewc")

    found = find_runs([tmp_path])

    assert len(found.results) == 1
    assert [one.why.split(" of ")[0] for one in found.left_out] == ["is another copy"]


def test_in_python_runs_are_loaded_and_become_frames(tmp_path: Path):
    write_run(tmp_path, "ewc", 0)
    write_run(tmp_path, "ewc", 1, scores=([100], [50, 100]))

    (comparison,) = cl_zoo.load_runs(tmp_path).comparisons
    runs, cells, samples = (comparison.frame(kind) for kind in ("runs", "cells", "samples"))

    assert list(runs["last"]) == [50.0, 75.0]
    assert runs["learning_steps"].tolist() == [4, 4]
    assert len(cells) == 2 * 3
    assert cells[(cells.seed == 1) & (cells.after == "chart")].set_index("task").score.to_dict() == {
        "render": 50.0,
        "chart": 100.0,
    }
    assert len(samples) == 2 * 3 * 4
    assert samples.groupby("seed").forgotten.sum().tolist() == [6, 4]  # two rows, one for each answer
    with pytest.raises(OptionError, match="did you mean 'cells'"):
        comparison.frame("cell")


def test_a_frame_without_pandas_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_run(tmp_path, "ewc")
    monkeypatch.setitem(sys.modules, "pandas", None)

    with pytest.raises(OptionError, match=r"install it with `pip install 'cl-zoo\[report\]'`"):
        cl_zoo.load_runs(tmp_path).comparisons[0].frame()
