"""The Python interface, and what a run promises whoever starts it: same seed, same bytes; another choice, another run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cl_zoo
from cl_zoo.errors import OptionError, PluginError
from cl_zoo.names import Choice, stack
from cl_zoo.runs.comparison import Result


def answers(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((folder / "answers").glob("*.jsonl"))}


# Stacks from names


def test_a_stack_is_the_method_what_runs_with_it_and_the_probes():
    choices = stack("moelora+ewc[strength=3]", ["lwf"], ["cka"], {"ewc": {"samples": 8}})

    assert choices == (
        Choice("moelora"),
        Choice("ewc", {"strength": 3, "samples": 8}),
        Choice("lwf"),
        Choice("cka", probe=True),
    )


def test_options_for_a_plugin_outside_the_stack_are_refused():
    with pytest.raises(
        OptionError, match="options are given for 'ewk', which is not in the stack; did you mean 'ewc'"
    ):
        stack("finetune+ewc", (), (), {"ewk": {"strength": 1}})


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: cl_zoo.compare(["finetune"], options={"hide": {"alpha": 1}}),
            "which is in no stack of this comparison",
        ),
        (
            lambda: cl_zoo.compare([], benchmark="cl_zoo.testing:load_tiny"),
            "nothing to compare: 0 methods and 1 seeds",
        ),
        (lambda: cl_zoo.compare(["finetune"], seeds=0), "nothing to compare: 1 methods and 0 seeds"),
        (
            lambda: cl_zoo.compare(["finetune"], orders=2, order="SC", benchmark="cl_zoo.testing:load_tiny"),
            "order 'SC' and orders 2 are both given",
        ),
        (lambda: cl_zoo.compare(["finetune"], sead=1), "there is no setting 'sead'; did you mean 'seed'"),
        (lambda: cl_zoo.run("finetune", benchmrk="mini"), "there is no setting 'benchmrk'"),
    ],
)
def test_a_call_that_cannot_be_meant_is_refused(call: Callable[[], Any], sentence: str):
    with pytest.raises(OptionError, match=sentence):
        call()


def test_the_names_of_the_package_are_functions_whatever_was_imported_before():
    code = "import cl_zoo.runs.comparison, cl_zoo\ncl_zoo.run\nassert callable(cl_zoo.compare) and callable(cl_zoo.compare)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


def test_an_unknown_name_of_the_package_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'cl_zoo' has no attribute 'rnu'"):
        _ = cl_zoo.rnu


# Runs


def test_a_result_has_matrix_table_and_ledger(run_tiny: Callable[..., Any]):
    result = run_tiny("finetune")
    again = cl_zoo.load(result.folder)

    assert result.matrix == again.matrix
    assert result.matrix.scores[0][1] is None  # the second task was not asked before it was learnt
    assert (result.label, result.seed, result.error) == ("finetune", 0, None)
    assert "finetune" in result.table().markdown()
    assert str(result.table()) == result.table().text()
    assert [task["task"] for task in result.ledger["tasks"]] == ["colour", "side"]
    assert [task["steps"] for task in result.ledger["tasks"]] == [3, 3]


def test_the_same_seed_gives_the_same_run_and_the_same_bytes(run_tiny: Callable[..., Any], tmp_path: Path):
    """Wherever it lies: `--out` says where, not what."""
    one, other = (run_tiny("hide", seed=3, out=tmp_path / place) for place in ("one", "other"))

    assert one.folder.name == other.folder.name
    assert answers(one.folder) == answers(other.folder)
    assert one.manifest["identity"] == other.manifest["identity"]
    assert one.matrix == other.matrix


def test_each_decision_makes_another_run(run_tiny: Callable[..., Any], tmp_path: Path):
    """Everything that could change an answer is in the id."""
    settings: list[dict[str, Any]] = [
        {},
        {"seed": 1},
        {"limit": 5},
        {"order": "S"},
        {"cells": "last"},
        {"recipe": {"lr.adapters": 1e-3}},
    ]
    folders = {run_tiny("zeroshot", **one).folder for one in settings}

    assert len(folders) == len(settings)


def test_how_a_task_is_asked_and_scored_makes_another_run(run_tiny: Callable[..., Any], tmp_path: Path):
    """Whatever a benchmark says of its version and data."""
    code = (
        "from dataclasses import replace\nfrom cl_zoo.testing import tiny_benchmark\n"
        "def load(data):\n    made = tiny_benchmark()\n"
        "    return replace(made, tasks=tuple(replace(task, max_new_tokens={}) for task in made.tasks))\n"
    )
    runs = set()
    for budget in (2, 3):
        file = tmp_path / f"of_{budget}.py"
        file.write_text(code.format(budget))
        runs.add(run_tiny("zeroshot", benchmark=f"{file}:load").folder)

    assert len(runs) == 2


def test_what_learns_no_task_after_another_is_one_run_in_any_order(run_tiny: Callable[..., Any]):
    """Joint training sees the union in the benchmark's order; methods that learn the tasks in turn have a run for each order."""
    for method, runs in (("zeroshot", 1), ("multitask", 1), ("finetune", 2)):
        made = [run_tiny(method, order=order) for order in ("CS", "SC")]
        assert len({one.folder for one in made}) == runs
    assert [one.order for one in made] == ["CS", "SC"]


def test_a_method_and_its_variant_are_two_runs(run_tiny: Callable[..., Any]):
    assert run_tiny("hide").folder != run_tiny("hide[variant=released]").folder


def test_a_progress_report_tells_run_steps_and_answers(run_tiny: Callable[..., Any]):
    events: list[dict[str, Any]] = []
    run_tiny("finetune", watch=events.append)
    phases = [event["phase"] for event in events]

    learnt = ["before_task", "train", "after_task", "answer"]
    assert phases == ["start", "preflight", "preflight", *learnt, *learnt, "answer", "score"]
    assert {(event["label"], event["seed"]) for event in events} == {("finetune", 0)}
    assert events[4]["terms"].keys() == {"task"}


def test_load_refuses_a_folder_that_is_no_finished_run(tmp_path: Path):
    with pytest.raises(RuntimeError, match=r"has no manifest\.json, so it is no finished run"):
        cl_zoo.load(tmp_path)


def test_a_failed_run_has_no_matrix():
    failed = Result("hide", 0, {}, error="its process ended with code 9")

    with pytest.raises(PluginError, match="hide, seed 0 has no matrix: its process ended with code 9"):
        _ = failed.matrix
