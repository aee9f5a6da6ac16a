"""Comparisons: budgets, stamps, and what is refused before anything starts."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cl_zoo.errors import ClZooError, OptionError, PluginError
from cl_zoo.names import Choice
from cl_zoo.runs import comparison, workers
from cl_zoo.runs.comparison import Comparison, Result, compare, unequal
from cl_zoo.runs.equal import HELD
from cl_zoo.runs.executors import local
from cl_zoo.runs.executors.local import accelerators
from cl_zoo.runs.job import Job
from cl_zoo.runs.plan import Planned
from cl_zoo.runs.work import Work
from cl_zoo.runs.worker import check
from cl_zoo.runs.workers import Workers

STREAM = """
from cl_zoo.tasks import Benchmark, Sample, TaskData
ONE = [Sample("0", None, "?", "yes")]
def load(data):
    task = TaskData("one", "O", "Say it.", "exact", 4, ONE, ONE, ONE)
    return Benchmark("stream", "1", (task,), ("zeroshot",), "mini", "hash")
"""


def result(label: str, *, steps: int = 10, samples: int = 100, seed: int = 0) -> Result:
    """A run of two tasks; steps and samples are those of both together."""
    tasks = [
        {"steps": steps // 2, "samples": samples // 2},
        {"steps": steps - steps // 2, "samples": samples - samples // 2},
    ]
    return Result(label, seed, {"ledger": {"tasks": tasks}})


def stamps(*results: Result) -> dict[str, str]:
    found = unequal(results, HELD)
    told = {one.label: [difference.what for difference in found.get(one.key, ())] for one in results}
    return {label: f"unequal: {', '.join(what)}" if what else "" for label, what in told.items()}


# Budgets


def test_equal_budgets_carry_no_stamp():
    assert stamps(result("a"), result("b")) == {"a": "", "b": ""}


@pytest.mark.parametrize(
    ("changes", "stamp"),
    [
        ({"steps": 20}, "unequal: steps ×2"),
        ({"steps": 4}, "unequal: steps ×0.4"),
        ({"samples": 125}, "unequal: samples ×1.25"),
        ({"steps": 16, "samples": 300}, "unequal: steps ×1.6, samples ×3"),
    ],
)
def test_a_budget_unlike_the_common_one_is_stamped_with_its_ratio(changes: dict[str, int], stamp: str):
    assert stamps(result("a"), result("odd", **changes), result("b")) == {"a": "", "odd": stamp, "b": ""}


@pytest.mark.parametrize(
    ("changes", "stamped"),
    [
        ({"steps": 1020}, False),
        ({"steps": 1021}, True),
        ({"samples": 9800}, False),
        ({"samples": 9799}, True),
    ],
)
def test_the_tolerance_is_2_percent_of_steps_and_samples(changes: dict[str, int], stamped: bool):
    common = {"steps": 1000, "samples": 10000}
    found = stamps(result("a", **common), result("b", **common), result("odd", **{**common, **changes}))

    assert bool(found["odd"]) is stamped


def test_what_trains_nothing_has_no_budget():
    """Zero-shot neither gets a stamp nor decides what is common."""
    nothing = Result("zeroshot", 0, {"ledger": {"tasks": [], "trained": 0}})
    failed = Result("broken", 0, {}, error="its process ended")

    assert stamps(nothing, failed, result("a")) == {"zeroshot": "", "broken": "", "a": ""}


def test_seeds_of_one_label_are_told_apart():
    found = unequal([result("a"), result("a", seed=1, steps=20), result("b"), result("b", seed=1)], HELD)

    assert {key: [one.what for one in many] for key, many in found.items()} == {("a", 1, ""): ["steps ×2"]}


def test_what_trains_is_measured_by_the_budget_of_the_recipe(run_tiny: Callable[..., Any]):
    """A LoRA is the budget, prompts are a small part of it; a mixture says how it shares it, and that it is starved."""
    recipe = {"adapter.rank": 8}

    assert run_tiny("finetune", recipe=recipe).row().stamps == ()
    prompts = run_tiny("l2p", recipe=recipe).row()
    assert prompts.stamps[0].startswith("parameters × 0.")
    assert 0 < prompts.marks["parameters"] < 1
    mixture = run_tiny("moelora[experts=4]", recipe=recipe).row()
    assert mixture.stamps[-1] == "4 experts of rank 1, update rank 4 (starved: below 4)"
    assert mixture.marks["experts"] == {"experts": 4, "rank": 1, "update_rank": 4, "starved": True}


def test_a_run_whose_rank_was_matched_is_measured_by_the_budget_of_the_others(run_tiny: Callable[..., Any]):
    """Of a mixture that trains eight times what its own rank allows, matched to an eighth of the rank."""
    plain = run_tiny("finetune")
    ledger = {**plain.ledger, "budget": plain.ledger["budget"] // 8}
    recipe = {**plain.manifest["identity"]["recipe"], "adapter": {"rank": 1}}
    identity = {**plain.manifest["identity"], "recipe": recipe}
    matched = replace(plain, label="mix", manifest={**plain.manifest, "ledger": ledger, "identity": identity})

    table = Comparison((plain, replace(plain, label="ewc"), matched)).table()

    assert matched.row().stamps == ("parameters × 8",)
    assert [row.stamps for row in table.rows] == [(), (), ("rank 1",)]


# The result


def test_what_learns_in_no_order_adds_none_to_a_table_when_it_fails():
    """It is prepared in the benchmark's order, whatever order the others learn in."""
    failed = Result("multitask", 0, {}, error="no memory is left", order="ABC", ordered=False)
    table = Comparison((failed, Result("ewc", 0, {}, error="the same", order="CBA"))).table()

    assert table.orders == ("CBA",)


def test_a_failed_run_stands_in_the_table_with_its_sentence(run_tiny: Callable[..., Any]):
    both = Comparison(
        (run_tiny("zeroshot"), Result("hide", 0, {}, error="no feature encoder", user_error=True))
    )

    assert [one.label for one in both.failed] == ["hide"]
    assert list(both.matrix) == [("zeroshot", 0)]
    assert "no feature encoder" in both.table().markdown()


def test_runs_of_several_orders_are_told_apart_and_stand_in_one_table(run_tiny: Callable[..., Any]):
    made = Comparison((run_tiny("zeroshot"), *(run_tiny("finetune", order=order) for order in ("CS", "SC"))))

    assert list(made.matrices) == [("zeroshot", 0, "CS"), ("finetune", 0, "CS"), ("finetune", 0, "SC")]
    assert made.table().orders == ("CS", "SC")
    with pytest.raises(PluginError, match="a label and a seed have 2 matrices, one of each order"):
        _ = made.matrix
    assert list(Comparison(made.results[:2]).matrix) == [("zeroshot", 0), ("finetune", 0)]


def test_stamps_reach_the_table(run_tiny: Callable[..., Any]):
    runs = [run_tiny("finetune"), run_tiny("ewc"), run_tiny("hide", recipe={"epochs": 2})]
    table = Comparison(tuple(runs)).table()

    assert table.markdown().count("unequal: steps ×2, samples ×2") == 1
    marks = [run["marks"] for run in table.to_json()["runs"]]
    assert [one.get("unequal") for one in marks] == [None, None, {"steps": 2.0, "samples": 2.0}]
    assert [one.get("variants") for one in marks] == [None, None, {"hide": "paper"}]


# Before anything starts


@pytest.fixture
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let starting a worker fail the test."""

    def start(*_: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(Workers, "_start", start)


@pytest.fixture
def workers_that(monkeypatch: pytest.MonkeyPatch, install: Callable[..., Path]) -> Callable[[str], None]:
    """Replace the worker's program; `mini_stream:load` is a benchmark that loads without torch."""
    install("mini-stream", modules={"mini_stream": STREAM})
    popen = workers.subprocess.Popen

    def replace_program(program: str) -> None:
        monkeypatch.setattr(
            workers.subprocess,
            "Popen",
            lambda command, **settings: popen([command[0], "-c", program], **settings),
        )

    return replace_program


def job(name: str, out: Path, **changes: Any) -> Job:
    return Job((Choice(name),), "cl_zoo.testing:load_tiny", device="cpu", out=str(out), **changes)


def run_of(one: Job, training: str, **changes: Any) -> Planned:
    """A run of one task as it is planned; its id is its training's name."""
    work = Work((("one", 4),), ((0,),), (("one", 8),))
    facts = {
        "order": "O",
        "tasks": ("one",),
        "ordered": True,
        "work": work,
        "run": training,
        "digest": training,
    }
    return Planned(one, **{**facts, "training": training, "ground": "here", **changes})


@pytest.mark.parametrize("flag", ["out", "cache", "data", "features", "backbone"])
def test_a_flag_that_names_nothing_is_refused(tmp_path: Path, flag: str):
    with pytest.raises(
        OptionError, match=f"--{flag} '': names nothing; name a folder, or leave the flag out"
    ):
        replace(job("a", tmp_path), **{flag: ""})


def test_one_run_stands_once_in_a_comparison(no_processes: None, tmp_path: Path):
    with pytest.raises(PluginError, match="finetune stands twice in the comparison; name it once"):
        compare([job("finetune", tmp_path), job("finetune", tmp_path)])


def test_an_unknown_name_stops_a_comparison_before_its_first_run(
    tmp_path: Path, workers_that: Callable[[str], None]
):
    """The second method is misspelt; one worker looks everything up before the first, sound one starts."""
    workers_that(
        "import sys, json\n"
        "from cl_zoo.runs.job import Job\n"
        "from cl_zoo.runs.prepared import prepare\n"
        "from cl_zoo.errors import ClZooError\n"
        "for line in sys.stdin:\n"
        "    try: [prepare(Job.from_json(one)) for one in json.loads(line)['check']]\n"
        "    except ClZooError as error: print(json.dumps({'event': 'refused', 'message': str(error)}), flush=True)\n"
    )
    events: list[dict[str, Any]] = []
    jobs = [replace(job(name, tmp_path), benchmark="mini_stream:load") for name in ("zeroshot", "hid")]
    with pytest.raises(PluginError, match="no method is called 'hid'; did you mean 'hide'"):
        compare(jobs, processes=1, watch=events.append)

    assert events == []
    assert [path.name for path in tmp_path.iterdir() if path.name != "site"] == ["logs"]


def test_java_starts_while_the_jobs_are_still_looked_up(
    tmp_path: Path,
    workers_that: Callable[[str], None],
    install: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
):
    """The worker waits for it with its answer, ten seconds at most."""
    install("captioned", modules={"captioned": STREAM.replace('"exact"', '"caption"')})
    java = tmp_path / "java"
    monkeypatch.setattr(comparison.Scorer, "warm_up", lambda self: java.touch())
    workers_that(
        "import json, os, sys, time\ngiven = json.loads(sys.stdin.readline())['check'][0]\n"
        f"for _ in range(100):\n    if os.path.exists({str(java)!r}): break\n    time.sleep(0.1)\n"
        f"else: sys.exit(3)\n"
        "about = {'order': '', 'tasks': ['colour'], 'ordered': False, 'run': None, 'digest': '0', 'training': '0', 'ground': None}\n"
        "about['work'] = {'lessons': [], 'asked': [[0]], 'tests': [['colour', 1]]}\n"
        "print(json.dumps({'event': 'checked', 'jobs': [given], 'foreseen': [about]}), flush=True)\n"
        "sys.stdin.readline()\n"
        "print(json.dumps({'event': 'failed', 'message': 'enough', 'user': True}), flush=True)\n"
    )
    done = compare([replace(job("zeroshot", tmp_path), benchmark="captioned:load")], processes=1)

    assert [one.error for one in done.results] == ["enough"]


def test_a_worker_that_dies_is_replaced_and_its_log_is_kept(
    tmp_path: Path, workers_that: Callable[[str], None]
):
    """The job at hand fails with the code; the next one gets a process again."""
    workers_that(
        "import json, os, sys\nfor line in sys.stdin:\n    job = json.loads(line)['run']\n"
        "    print('said', file=sys.stderr, flush=True)\n"
        "    if job['seed'] == 1: os._exit(9)\n"
        "    print(json.dumps({'event': 'answered', 'run': '', 'facts': {}}), flush=True)\n"
    )
    with Workers(1, [], tmp_path) as served:
        runs = [run_of(job("a", tmp_path, seed=seed), str(seed)) for seed in range(3)]
        events = [one for one in served.run(runs) if one[1]["event"] != "progress"]

    assert [(place, event["event"]) for place, event in events] == [
        (0, "answered"),
        (1, "failed"),
        (2, "answered"),
    ]
    assert events[1][1]["message"] == (
        "its process ended with code 9, though a hook returns or raises and never ends the process; "
        f"see {tmp_path}/logs/worker-0.log"
    )
    assert (tmp_path / "logs" / "worker-0.log").read_text() == "said\n" * 3


BUSY = """
import sys
from cl_zoo.runs.worker import end_with
end_with(int(sys.argv[1]))
print("busy", flush=True)
while True:
    sum(range(1000))
"""
PARENT = """
import os, subprocess, sys
print(subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())]).pid, flush=True)
sys.stdin.read()
"""


def test_a_worker_ends_within_two_seconds_of_a_killed_parent_also_while_it_computes():
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    assert "busy" in {parent.stdout.readline().strip() for _ in range(2)}

    killed = time.monotonic()
    parent.kill()
    parent.communicate(timeout=20)  # the worker has the same standard output: it ends with the worker

    assert time.monotonic() - killed < 2


def test_an_interrupted_comparison_ends_its_workers(tmp_path: Path, workers_that: Callable[[str], None]):
    """Ctrl-C reaches the parent alone; the worker in the middle of a job is ended with it."""
    workers_that(
        "import sys, time\nfor line in sys.stdin:\n"
        '    print(\'{"event": "progress", "phase": "train"}\', flush=True)\n    time.sleep(60)\n'
    )
    started: list[Workers] = []

    def interrupted() -> None:
        with Workers(2, [], tmp_path) as served:
            started.append(served)
            for _, event in served.run([run_of(job(name, tmp_path), name) for name in "ab"]):
                if event.get("phase") == "train":
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [process.poll() for process in started[0]._processes] == [-15, -15]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"backbone": "lava"}, "no backbone is called 'lava'; did you mean 'llava'"),
        ({"backbone": "./no/folder"}, "backbone ./no/folder: no such folder"),
        ({"device": "tpu"}, "--device tpu: unknown"),
        ({"benchmark": "minni"}, "no benchmark is called 'minni'"),
        ({"limit": 0}, "--limit must be at least 1, got 0"),
        ({"recipe": {"epoch": 1}}, "recipe has no key 'epoch'"),
        ({"cells": "all"}, "--cells all"),
    ],
)
def test_a_worker_looks_up_everything_that_a_job_names(
    tmp_path: Path, changes: dict[str, Any], sentence: str
):
    with pytest.raises(ClZooError, match=sentence):
        check([replace(job("zeroshot", tmp_path), **changes).to_json()], {})


def test_jobs_survive_their_way_to_a_worker(tmp_path: Path):
    choices = (Choice("hide", {"variant": "released"}), Choice("cka", probe=True))
    one = Job(choices, "mini", seed=3, recipe={"lr.adapters": 1e-3}, out=str(tmp_path))

    assert Job.from_json(comparison.json.loads(comparison.json.dumps(one.to_json()))) == one
    assert one.label == "hide[variant=released]"


@pytest.mark.parametrize(
    ("visible", "device", "found"), [("0,2", "auto", ["0", "2"]), ("", "auto", []), ("0", "cpu", [])]
)
def test_runs_are_shared_out_over_the_visible_accelerators(
    monkeypatch: pytest.MonkeyPatch, visible: str, device: str, found: list[str]
):
    monkeypatch.setattr(local.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    assert accelerators(device) == found
