"""Whatever happens to a run or to its worker is the reason of a row: the others go on, and so does the same command afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cl_zoo
from cl_zoo.runs import comparison, workers
from cl_zoo.runs.job import Job
from cl_zoo.runs.plan import Planned
from cl_zoo.runs.work import Work
from cl_zoo.runs.workers import Workers

TINY: dict[str, Any] = {
    "benchmark": "cl_zoo.testing:load_tiny",
    "backbone": "cl_zoo.testing:load_tiny_backbone",
    "device": "cpu",
}
WORK = Work((), ((0,),), (("colour", 1),))
ANSWERED = "print(json.dumps({'event': 'answered', 'run': '', 'facts': {}}), flush=True)"
BEGINS = "import json, os, signal, sys, time\nfor line in sys.stdin:\n    job = json.loads(line)['run']\n"
KILLED = """
import os, signal, sys
from cl_zoo import hookimpl

class Killed:
    @hookimpl
    def after_task(self):
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[tuple[int, str, str]]]:
    """Ends of three runs, with seeds 0 to 2, that one worker with the given program was given: (seed, event, message)."""
    popen = subprocess.Popen

    def serve(
        program: str, before: Callable[[Workers], None] = lambda made: None
    ) -> list[tuple[int, str, str]]:
        monkeypatch.setattr(
            workers.subprocess,
            "Popen",
            lambda command, **settings: popen([command[0], "-c", BEGINS + program], **settings),
        )
        jobs = [Job((), "tiny", out=str(tmp_path), seed=seed) for seed in range(3)]
        runs = [
            Planned(job, "C", ("colour",), True, WORK, None, f"{job.seed}", f"{job.seed}", None)
            for job in jobs
        ]
        with Workers(1, [], tmp_path) as made:
            before(made)
            events = [one for one in made.run(runs) if one[1]["event"] in workers.ENDS]
        return [(place, event["event"], event.get("message", "")) for place, event in events]

    return serve


def test_a_worker_that_is_killed_in_the_middle_of_a_line_fails_its_run_alone(
    served: Callable[..., list[tuple[int, str, str]]],
) -> None:
    half = 'print(\'{"event": "progr\', end="", flush=True)'
    found = served(f"    if job['seed'] == 1: {half}; os.kill(os.getpid(), signal.SIGKILL)\n    {ANSWERED}\n")

    assert [one[:2] for one in found] == [(0, "answered"), (1, "failed"), (2, "answered")]
    assert found[1][2].startswith("its process ended by signal 9 (Killed), as where memory is short; see ")


def test_a_worker_that_is_killed_before_it_has_a_run_fails_none(
    served: Callable[..., list[tuple[int, str, str]]],
) -> None:
    def kill(made: Workers) -> None:
        made._processes[0].kill()
        made._processes[0].wait()

    assert [one[1] for one in served(f"    {ANSWERED}\n", kill)] == ["answered"] * 3


def test_where_no_process_can_be_started_every_run_has_that_reason(
    served: Callable[..., list[tuple[int, str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(made: Workers) -> None:
        made._processes[0].kill()
        made._processes[0].wait()

        def start(*_: object) -> None:
            raise OSError("cannot allocate memory")

        monkeypatch.setattr(Workers, "_start", start)

    found = served("", end)

    assert [one[:2] for one in found] == [(0, "failed"), (1, "failed"), (2, "failed")]
    assert {one[2] for one in found} == {"OSError: cannot allocate memory"}


@pytest.mark.slow
def test_a_run_that_fails_at_any_stage_is_a_row_and_the_others_finish(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One is killed in a hook, one meets a fault of the scorer; what is done is not done again."""
    (tmp_path / "bad.py").write_text(KILLED)
    finish, scored = comparison.finish, []

    def scoring(folder: Any, facts: Any, scorer: Any) -> Any:
        scored.append(facts["label"])
        if facts["label"] == "ewc":
            raise ZeroDivisionError("of the scorer")
        return finish(folder, facts, scorer)

    monkeypatch.setattr(comparison, "finish", scoring)
    methods = [f"{tmp_path / 'bad.py'}:Killed", "ewc", "finetune"]
    made = cl_zoo.compare(methods, processes=1, out=tmp_path / "runs", **TINY)
    reasons = [one.error for one in made.results]

    assert "its process ended by signal 9" in str(reasons[0])
    assert "in after_task of colour" in str(reasons[0])
    assert reasons[1:] == ["ZeroDivisionError: of the scorer", None]
    assert "of the scorer" in made.table().text()
    monkeypatch.setattr(comparison, "finish", finish)
    events: list[dict[str, Any]] = []
    again = cl_zoo.compare(methods[1:], processes=1, out=tmp_path / "runs", watch=events.append, **TINY)

    assert again.failed == []
    assert {one["label"] for one in events if one.get("phase") == "train"} == set()
    assert [one["label"] for one in events if one.get("again")] == ["finetune"]
    assert scored == ["ewc", "finetune"]


@pytest.mark.slow
def test_an_interrupted_grid_goes_on_with_the_same_command(tmp_path: Path) -> None:
    """Interrupted as soon as a run has ended; that one is not made again, and the table has all runs."""
    command = [
        sys.executable,
        "-m",
        "cl_zoo",
        "compare",
        "--methods",
        "finetune,ewc",
        "--orders",
        "2",
        "--jobs",
        "1",
    ]
    command += [word for key in ("benchmark", "backbone", "device") for word in (f"--{key}", TINY[key])]
    command += ["--out", str(tmp_path)]
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as first:
        assert first.stderr is not None
        assert any("(1 of 4 runs" in line for line in first.stderr)
        first.send_signal(signal.SIGINT)
        assert "the same command goes on" in first.stderr.read()
    assert first.returncode == 130
    before = {file: os.stat(file).st_mtime_ns for file in tmp_path.glob("*/manifest.json")}
    second = subprocess.run(command, capture_output=True, text=True, check=True)

    assert before
    assert f"4 runs; {len(before)} finished" in second.stderr
    assert {file: os.stat(file).st_mtime_ns for file in before} == before
    assert "learnt in 2 orders, CS, SC" in " ".join(second.stdout.split())


def test_the_logs_of_a_comparison_under_way_stay_when_another_one_is_planned_beside_it(tmp_path: Path):
    log = tmp_path / "logs" / "worker-0.log"
    with Workers(1, [], tmp_path):
        log.write_text("a traceback\n")
        with Workers(1, [], tmp_path):
            pass
        assert log.read_text() == "a traceback\n"

    with Workers(1, [], tmp_path):
        assert log.read_text() == ""
