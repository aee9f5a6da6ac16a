"""Executors: who makes the runs of a comparison, by name; runs elsewhere are sent again where they are lost; commands make the same runs."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

import cl_zoo
from cl_zoo.cli import flags
from cl_zoo.cli.main import app
from cl_zoo.contract.options import NoOptions
from cl_zoo.errors import ClZooError
from cl_zoo.names import stack
from cl_zoo.runs import workers
from cl_zoo.runs.executors import afar
from cl_zoo.runs.executors.afar import Afar, Errand
from cl_zoo.runs.executors.contract import chosen
from cl_zoo.runs.executors.printed import command
from cl_zoo.runs.executors.slurm import Slurm
from cl_zoo.runs.job import Job
from cl_zoo.runs.plan import Planned
from cl_zoo.runs.work import Work

TINY = {
    "benchmark": "cl_zoo.testing:load_tiny",
    "backbone": "cl_zoo.testing:load_tiny_backbone",
    "device": "cpu",
}
WORK = Work((), ((0,),), (("colour", 1),))
BEGINS = (
    "import json, os, sys\nfor line in sys.stdin:\n    asked = json.loads(line)\n    job = asked['run']\n"
)
ANSWERED = (
    "    print(json.dumps({'event': 'answered', 'run': '', 'facts': {'seed': job['seed']}}), flush=True)\n"
)


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Replace what a worker does with a run, `job`; `asked` is the whole command."""
    popen = subprocess.Popen

    def replace(body: str) -> None:
        monkeypatch.setattr(
            workers.subprocess,
            "Popen",
            lambda command, **settings: popen([command[0], "-c", BEGINS + body], **settings),
        )

    return replace


def planned(out: Path, *trainings: str) -> list[Planned]:
    jobs = [Job((), "tiny", out=str(out), seed=seed) for seed in range(len(trainings))]
    (out / "logs").mkdir(exist_ok=True)
    return [
        Planned(job, "C", ("colour",), True, WORK, None, f"{job.seed}", training, None)
        for job, training in zip(jobs, trainings, strict=True)
    ]


class Here(Afar):
    """Calls errands as soon as they are sent, those of seeds in `loses` only after they were lost once."""

    name = "here"
    loses: tuple[int, ...] = ()
    breaks: tuple[int, ...] = ()

    def __init__(self, jobs: list[Job], at_a_time: int | None = None) -> None:
        super().__init__(NoOptions(), jobs, at_a_time)
        self.sent: list[Errand] = []
        self.ends: list[str] = []

    def send(self, errand: Errand) -> Any:
        seed, times = errand.job["seed"], sum(one.job == errand.job for one in self.sent)
        self.sent.append(errand)
        if seed in self.breaks:
            return OSError("no cl_zoo there")
        if seed in self.loses and times < self.loses.count(seed):
            return "the node is gone"
        errand()
        return ""

    def ended(self, handle: Any) -> str | None:
        if isinstance(handle, Exception):
            raise handle
        assert handle is None or isinstance(handle, str)
        return handle

    def cancel(self, handle: Any) -> None:
        self.ends.append(handle)


def ends(made: Afar, runs: list[Planned]) -> dict[int, tuple[str, str]]:
    found = {}
    for place, event in made.run(runs):
        if event["event"] in workers.ENDS:
            found[place] = event["event"], event.get("message", "")
    return found


def test_a_run_that_is_lost_is_sent_again_and_what_cannot_be_called_is_a_row(
    tmp_path: Path, program: Callable[[str], None]
) -> None:
    program(ANSWERED)
    runs = planned(tmp_path, *"abcd")
    with Here([one.job for one in runs]) as made:
        made.loses, made.breaks = (1, 1, 2, 2, 2, 2), (3,)
        found = ends(made, runs)

    assert found == {
        0: ("answered", ""),
        1: ("answered", ""),
        2: ("failed", "the node is gone; it was sent 4 times"),
        3: ("failed", "OSError: no cl_zoo there"),
    }
    assert [one.again for one in made.sent if one.job["seed"] == 1] == [False, True, True]
    assert len({one.events for one in made.sent}) == len(made.sent) == 9, (
        "what two tries write is never mixed"
    )
    assert made.ends == []
    assert list((tmp_path / "logs").glob("events-*")) == []


def test_only_an_errand_that_is_sent_again_waits_for_a_held_folder(
    tmp_path: Path, program: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lost one may not have ended yet; a folder that somebody else holds is a fault at once."""
    held = {"event": "failed", "message": "another process is working on it", "user": True, "held": True}
    mark = tmp_path / "mark"
    program(
        f"    if not os.path.exists({str(mark)!r}):\n        open({str(mark)!r}, 'w')\n"
        f"        print(json.dumps(json.loads({json.dumps(held)!r})), flush=True)\n    else:\n    {ANSWERED}"
    )
    monkeypatch.setattr(afar.time, "sleep", lambda seconds: None)
    runs = planned(tmp_path, "a")
    with Here([runs[0].job]) as made:
        first = ends(made, runs)
    mark.unlink()
    with Here([runs[0].job]) as made:
        made.loses = (0,)
        second = ends(made, runs)

    assert first[0] == ("failed", "another process is working on it")
    assert second[0] == ("answered", "")


def test_of_runs_with_one_training_the_first_learns_and_the_others_wait_for_it(
    tmp_path: Path, program: Callable[[str], None]
) -> None:
    progress = "{'event': 'progress', 'phase': 'trained'}"
    program(f"    print(json.dumps({progress}), flush=True)\n{ANSWERED}")
    runs = planned(tmp_path, "a", "b", "a", "a")
    with Here([one.job for one in runs]) as made:
        found = ends(made, runs)

    assert {one[0] for one in found.values()} == {"answered"}
    assert [(one.job["seed"], one.training) for one in made.sent] == [
        (0, "kept"),
        (1, "own"),
        (2, "taken"),
        (3, "taken"),
    ]


def test_what_is_under_way_is_cancelled_when_a_comparison_ends(tmp_path: Path) -> None:
    class Never(Here):
        def send(self, errand: Errand) -> Any:
            return errand.job["seed"]

        def ended(self, handle: Any) -> str | None:
            if handle == 1:
                raise KeyboardInterrupt
            return None

    runs = planned(tmp_path, *"abc")
    made = Never([one.job for one in runs], 2)
    with pytest.raises(KeyboardInterrupt), made:
        ends(made, runs)

    assert made.ends == [0, 1]


def test_times_of_another_clock_keep_their_distances(
    tmp_path: Path, program: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that was started at another time: its first event counts as now, and the next ones come as far behind as there."""
    program(ANSWERED)
    clock = iter([10**9, 10**9 + 5, 0.0])  # of the errand: until when, beginning, end

    class Elsewhere(Here):
        def send(self, errand: Errand) -> Any:
            with monkeypatch.context() as there:
                there.setattr(afar.time, "monotonic", lambda: next(clock))
                return super().send(errand)

    runs = planned(tmp_path, "a")
    with Elsewhere([runs[0].job]) as made:
        times = [event["at"] for _, event in made.run(runs)]

    assert times[1] - times[0] == pytest.approx(-(10**9 + 5), abs=1)
    assert 0 < times[0] < 10**8


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"  # its debug executor leaves its log files open
)
def test_a_job_of_submitit_is_a_run(tmp_path: Path, program: Callable[[str], None]) -> None:
    """Its debug executor calls an errand in this process; parameters that only SLURM knows are handed on."""
    program(ANSWERED)
    runs = planned(tmp_path, *"ab")
    options = Slurm.Options(cluster="debug", partition="gpu", time=7, qos="low")
    with Slurm(options, [one.job for one in runs], 1) as made:
        found = ends(made, runs)

    assert found == {0: ("answered", ""), 1: ("answered", "")}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("rey", "no executor is called 'rey'; did you mean 'ray'"),
        ("ray+local", "--executor ray.local: names 2; a comparison has one executor"),
        ("ray[cpu=2]", "ray has no option 'cpu'; did you mean 'cpus'"),
        ("ray[cpus=0]", r"ray\.cpus: input should be greater than 0, got 0"),
        ("slurm[time=0]", r"slurm\.time: input should be greater than or equal to 1, got 0"),
        ("print[file=x]", "print has no option 'file'"),
        ("cl_zoo.runs.job:Job", "cl_zoo.runs.job:Job: is no executor; derive its class from"),
        ("cl_zoo.runs.executors.afar:Afar", "Afar: lacks cancel, ended, send"),
    ],
)
def test_an_executor_that_cannot_be_meant_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(ClZooError, match=sentence):
        chosen(text, [Job((), "tiny")], None)


def test_what_slurm_does_not_know_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    job = Job((), "tiny", out=str(tmp_path))
    with (
        pytest.raises(ClZooError, match="--executor slurm: Unknown argument 'quos'"),
        chosen("slurm[cluster=debug,quos=low]", [job], None),
    ):
        pass


@pytest.mark.parametrize(("name", "library"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_library_that_is_missing_is_named_with_the_extra_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, name: str, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with (
        pytest.raises(ClZooError, match=rf"pip install 'cl-zoo\[{name}\]'"),
        chosen(name, [Job((), "tiny")], 1),
    ):
        pass


def test_somebody_elses_executor_is_found_by_its_entry_point(install: Callable[..., Path]) -> None:
    source = """
from pydantic import BaseModel
import cl_zoo

class Mine(cl_zoo.Executor):
    class Options(BaseModel, frozen=True, extra="forbid"):
        queue: str = "short"

    def __exit__(self, *_):
        pass

    def run(self, runs):
        for place, _ in enumerate(runs):
            yield place, {"event": "failed", "message": f"{self.options.queue} is closed", "user": True}
"""
    install("cl-zoo-mine", executors={"mine": "third_queue:Mine"}, modules={"third_queue": source})
    made = chosen("mine[queue=long]", [Job((), "tiny")], None)

    assert list(made.run([None])) == [  # type: ignore[list-item]
        (0, {"event": "failed", "message": "long is closed", "user": True})
    ]


# Commands

JOBS = [
    Job(stack("finetune", (), (), {}), "mini"),
    Job(
        stack(
            "hide[coefficient=1e-5]+ewc",
            ("my dir/mine.py:Mine",),
            ("cka", "drift"),
            {
                "ewc": {"strength": 3, "on": True},
                "my dir/mine.py:Mine": {"sizes": [1, 2.5e-7], "word": "it's $HOME"},
            },
        ),
        "coin[instructions=type2]",
        backbone="llava:/weights of mine",
        template="USER: {prompt}\nASSISTANT:",
        order="RAVICF",
        seed=3,
        recipe={
            "lr.adapters": 2e-5,
            "epochs": 2,
            "projector": "frozen",
            "adapter.targets": "all",
            "max_tokens": None,
        },
        limit=8,
        cells="full",
        device="cuda:1",
        out="a b/runs",
        preflight=False,
        keep_states="all",
        checkpoint_every=0.5,
        cache="features of all",
        cache_limit=1.5,
    ),
]


@pytest.mark.parametrize("job", JOBS)
def test_a_printed_command_describes_the_same_job(job: Job) -> None:
    """The words of the shell are read by the command line itself; what comes of them is the job, value by value."""
    program, verb, *words = shlex.split(command(job))
    run = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    given = run.make_context(verb, words).params
    choices = stack(
        given["method"], given["with_"] or (), given["probe"] or (), flags.options(given["option"])
    )
    recipe = flags.values(given["recipe"], given["set_"], given["budget"])
    rest = {name: given[name] for name in flags.SETTINGS}
    again = Job(choices, given["benchmark"], seed=given["seed"] or 0, recipe=recipe, **rest)

    assert program == "cl-zoo"
    assert again.label == job.label
    assert again.to_json() == job.to_json()


@pytest.mark.slow
def test_what_print_leaves_is_made_by_its_commands(cli: Callable[..., Any], tmp_path: Path) -> None:
    """The ids are those of the plan; with all runs there the same command prints the table."""
    asked = [word for key, value in TINY.items() for word in (f"--{key}", value)]
    asked = ["compare", *asked, "--methods", "zeroshot,finetune", "--out", tmp_path, "--executor", "print"]
    plan = cl_zoo.api.plan(["zeroshot", "finetune"], out=tmp_path, executor="print", **TINY)
    first = cli(*asked)
    lines = first.out.splitlines()
    for line in lines:
        assert cli(*shlex.split(line)[1:]).code == 0
    second = cli(*asked)

    assert (first.code, len(lines)) == (0, 2)
    assert "2 of 2 runs are missing" in first.err
    assert {one.name for one in tmp_path.glob("tiny-*")} == {one.run for one in plan.runs}
    assert "zeroshot" in second.out
    assert "cl-zoo run" not in second.out
