"""The plan of a comparison: each run once, who shares with whom, what is there, and the time that the rest may take."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from cl_zoo.names import parse_stack
from cl_zoo.report.sheets import as_text
from cl_zoo.runs.foreseen import foreseen
from cl_zoo.runs.job import Job
from cl_zoo.runs.pace import Pace, ground, measured, together
from cl_zoo.runs.plan import Plan, Planned, duration, planned
from cl_zoo.runs.prepared import prepare
from cl_zoo.runs.work import At, Work

TINY: dict[str, Any] = {
    "benchmark": "cl_zoo.testing:load_tiny",
    "backbone": "cl_zoo.testing:load_tiny_backbone",
    "device": "cpu",
}
WORK = Work((("colour", 20), ("side", 10)), ((0,), (0, 1)), (("colour", 8), ("side", 4)))
NAME = ("hide", "hide")


def plan(
    out: Path, methods: Sequence[str], axes: Sequence[dict[str, Any]] = ({},), processes: int = 2
) -> Plan:
    jobs = [
        Job(tuple(parse_stack(method)), **{**TINY, **changes}, out=str(out))
        for changes in axes
        for method in methods
    ]
    return planned(jobs, foreseen([prepare(job) for job in jobs]), processes)


def keys(made: Plan) -> list[tuple[str, int, str]]:
    return [one.key for one in made.runs]


# Each run once


def test_what_learns_nothing_or_all_at_once_is_one_run_for_all_orders(tmp_path: Path) -> None:
    """Joint training sees the tasks in the benchmark's order, whatever order is asked for; it does depend on the seed."""
    axes = [{"seed": seed, "order": order} for order in (None, "SC") for seed in (0, 1)]
    made = plan(tmp_path, ["finetune", "multitask", "zeroshot"], axes)

    assert keys(made) == [
        ("finetune", 0, "CS"),
        ("multitask", 0, "CS"),
        ("zeroshot", 0, "CS"),
        ("finetune", 1, "CS"),
        ("multitask", 1, "CS"),
        ("finetune", 0, "SC"),
        ("finetune", 1, "SC"),
    ]
    assert made.orders == ("CS", "SC")
    assert str(made).startswith("7 runs; for 12 asked for (those with the same bits are one); 0 finished")


def test_another_limit_or_other_cells_are_other_runs(tmp_path: Path) -> None:
    assert len(plan(tmp_path, ["zeroshot"], [{}, {"limit": 4}, {"recipe": {"eval_batch": 3}}]).runs) == 3


def test_runs_that_differ_in_what_answers_read_take_over_one_training(tmp_path: Path) -> None:
    made = plan(tmp_path, ["hide[coefficient=0.3]", "hide", "finetune"])
    by_label = {one["label"]: one for one in made.to_json(made.forecast())["runs"]}

    assert [by_label[label]["learns"] for label in ("hide[coefficient=0.3]", "hide", "finetune")] == [
        True,
        False,
        True,
    ]
    assert by_label["hide"]["shares"] == "hide[coefficient=0.3], seed 0"
    assert made.steps == 2 * by_label["finetune"]["steps"]
    assert "training of hide[coefficient=0.3], seed 0" in as_text(made.sheet(made.forecast()))


# What is there


def test_the_plan_knows_what_is_finished_and_how_far_the_rest_is(tmp_path: Path) -> None:
    """By the id that the run then has, found without weights."""
    first, second, _ = plan(tmp_path, ["finetune", "ewc", "olora"]).runs
    assert first.folder is not None
    assert second.folder is not None
    first.folder.mkdir(parents=True)
    (first.folder / "manifest.json").write_text("{}")
    Path(f"{second.folder}.partial", "state-1").mkdir(parents=True)
    made = plan(tmp_path, ["finetune", "ewc", "olora"])

    assert [one.standing for one in made.runs] == ["finished", "in part", "to do"]
    assert [one.job.label for one in made.left] == ["ewc", "olora"]
    assert "1 finished, 1 in part, 1 to do" in str(made)
    assert made.steps == made.left[0].work.steps // 2 + made.left[1].work.steps


# What is to be done


def test_the_work_that_is_left_is_that_behind_the_steps_and_cells_which_are_there() -> None:
    learnt = At(True, 1, 4)
    answering = At(True, 1, 10, 1)

    assert list(WORK.left(learnt)) == [
        ("step", "side", 6),
        ("hook", "side", 10),
        ("answer", "colour", 8),
        ("answer", "side", 4),
        ("score", "", 1),
    ]
    assert list(WORK.left(answering)) == [("answer", "side", 4), ("score", "", 1)]
    assert [part for part in WORK.left(learns=False) if part[0] == "step"] == []
    assert (WORK.steps, WORK.answers, WORK.behind(learnt)) == (30, 20, 24)
    assert Work.from_json(json.loads(json.dumps(WORK.to_json()))) == WORK


# Time


def test_without_a_measurement_no_time_is_told() -> None:
    pace = Pace()
    assert pace.seconds(WORK.left(), NAME) is None

    pace.add("step", "colour", 10.0, 20, NAME)
    assert pace.seconds(WORK.left(), NAME) is None, "nobody has answered yet"
    assert pace.seconds([("step", "side", 10)], NAME) == 5.0


def test_the_nearest_measurement_counts() -> None:
    """Own label and task, own label, same plugins with other options, then anybody."""
    pace = Pace()
    pace.add("step", "colour", 1.0, 1, ("ewc", "ewc"))
    assert pace.rate("step", "side", NAME) == 1.0
    pace.add("step", "colour", 3.0, 1, ("hide[alpha=1]", "hide"))
    assert [pace.rate("step", task, NAME) for task in ("colour", "side")] == [3.0, 3.0]
    pace.add("step", "side", 5.0, 1, NAME)
    assert [pace.rate("step", task, NAME) for task in ("colour", "side")] == [3.0, 5.0]


def test_a_later_measurement_weighs_more() -> None:
    """The first one nine tenths of the second: (0.9 · 2 + 1) / (0.9 + 1)."""
    pace = Pace()
    pace.add("answer", "", 2.0, 1, NAME)
    pace.add("answer", "", 1.0, 1, NAME)

    assert pace.rate("answer", "", NAME) == pytest.approx(2.8 / 1.9)


def manifest(cores: int = 2) -> dict[str, Any]:
    """20 + 10 steps in 10 + 20 s and 3 s of hooks around them, 20 answers in 4 s, 2 s to load, half a second to score."""
    recipe = {"global_batch": 8, "micro_batch": None, "eval_batch": 16, "precision": "fp32"}
    identity = {
        "benchmark": {"name": "tiny"},
        "backbone": {"name": "tiny", "revision": "r"},
        "device": "cpu",
        "recipe": {**recipe, "checkpointing": False, "adapter": {"rank": 8}},
        "stack": [{"name": "hide"}],
    }
    tasks = [{"task": "colour", "seconds": 10.0, "steps": 20}, {"task": "side", "seconds": 20.0, "steps": 10}]
    hooks = {"before_task": 1.0, "after_task": 2.0, "loss": 9.0}
    return {
        "label": "hide",
        "identity": identity,
        "environment": {"processor": "p", "cores": cores, "accelerator": None},
        "ledger": {"tasks": tasks, "hooks": hooks, "evaluation_seconds": 4.0},
        "scores": {"0-0": {"count": 8}, "1-0": {"count": 8}, "1-1": {"count": 4}},
        "besides": {"start": 2.0, "score": 0.5},
    }


def test_a_finished_run_foretells_itself(tmp_path: Path) -> None:
    """The hook `loss` lies inside the steps."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest()))
    here = ground(manifest()["identity"], manifest()["environment"])
    pace, count = measured(tmp_path, here)

    assert count == 1
    assert pace.seconds(WORK.left(), NAME) == pytest.approx(2 + 30 + 3 + 4 + 0.5)
    assert pace.seconds(WORK.left(learns=False), NAME) == pytest.approx(2 + 4 + 0.5)


def test_what_was_never_measured_is_named_in_the_forecast(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest()))
    here = ground(manifest()["identity"], manifest()["environment"])
    runs = [
        Planned(
            Job(tuple(parse_stack(label)), "tiny", out=str(tmp_path)),
            *("CS", ("colour", "side"), True, WORK, None, label, label, here),
        )
        for label in ("hide[alpha=1]", "ewc")
    ]

    assert str(Plan(tuple(runs), 2, 1).forecast()) == (
        "about 79 s, by what 1 finished run took on this machine (ewc taken to be as fast)"
    )


def test_runs_of_another_machine_or_version_foretell_nothing(tmp_path: Path) -> None:
    for name, content in {
        "other": manifest(cores=64),
        "old": {**manifest(), "besides": None},
        "odd": [],
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(json.dumps(content))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("{")

    assert measured(tmp_path, ground(manifest()["identity"], manifest()["environment"]))[1] == 0


def test_runs_share_the_processes_and_wait_for_the_training_that_they_take_over() -> None:
    assert together([3.0, 2.0, 2.0], [None, None, None], 2) == 4.0
    assert together([3.0, 2.0, 1.0], [None, 0, None], 2) == 5.0
    assert together([3.0, 2.0, 1.0], [None, 0, 1], 8) == 6.0
    assert together([], [], 2) == 0.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.4, "8 s"), (99.4, "99 s"), (100, "2 min"), (5999, "1 h 40 min"), (7500, "2 h 05 min")],
)
def test_a_time_is_told_as_people_do(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_planned_runs_go_on_where_an_interrupted_one_had_come(tmp_path: Path) -> None:
    job = Job((), "tiny", out=str(tmp_path))
    one = Planned(job, "CS", ("colour", "side"), True, WORK, "run", "same", "training", None)
    Path(tmp_path, "run.partial", "state-1").mkdir(parents=True)
    Path(tmp_path, "run.partial", "state.draft").mkdir()

    assert one.at == At(lesson=1)
    assert sum(units for kind, _, units in one.work.left(one.at) if kind == "step") == 10


@pytest.mark.parametrize("method", ["zeroshot", "multitask", "finetune"])
def test_a_run_has_the_id_that_was_foreseen_of_it(method: str, run_tiny: Callable[..., Any]) -> None:
    """Foreseen without weights, on no device: the id and all links of the chain are those of the device that it runs on."""
    made = run_tiny(method)
    (told,) = foreseen([prepare(Job.from_json(made.manifest["job"]))])

    assert told["run"] == made.manifest["id"]
