"""Curves in trackers: read back from TensorBoard's own files, and what happens where a tracker is missing or fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cl_zoo
from cl_zoo.errors import OptionError
from cl_zoo.names import Choice
from cl_zoo.runs.curves import Curve, Place, comparison_of
from cl_zoo.runs.job import Job

TINY: dict[str, Any] = {"benchmark": "cl_zoo.testing:load_tiny", "device": "cpu", "preflight": False}
FLAGS = ("--benchmark", TINY["benchmark"], "--device", "cpu", "--no-preflight")


def read_back(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of every curve in a folder of event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return {
        tag: [(one.step, one.value) for one in found.Scalars(tag)] for tag in sorted(found.Tags()["scalars"])
    }


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, list[dict[str, Any]]]:
    """A run of a method with a term of its own, with its curves and its events."""
    out, events = tmp_path_factory.mktemp("tracked"), list[dict[str, Any]]()
    result = cl_zoo.run(
        "finetune", with_=["ewc"], trackers=["tensorboard"], out=str(out), watch=events.append, **TINY
    )
    return result, out, events


def curves(tracked: tuple[Any, Path, list[dict[str, Any]]]) -> dict[str, list[tuple[int, float]]]:
    result, out, _ = tracked
    (folder,) = (out / "trackers").glob(f"*/{result.manifest['id']}")
    return read_back(folder)


def test_loss_terms_and_rate_of_every_event_are_on_one_axis_over_all_tasks(tracked: Any):
    result, _, events = tracked
    steps = [task["steps"] for task in result.ledger["tasks"]]
    told = [one for one in events if one.get("phase") == "train"]
    found = curves(tracked)

    assert [step for step, _ in found["loss"]] == [sum(steps[: one["index"]]) + one["step"] for one in told]
    assert [value for _, value in found["loss"]] == pytest.approx(
        [sum(one["terms"].values()) for one in told]
    )
    assert found["loss"][-1][0] == sum(steps)
    assert {f"term/{name}" for one in told for name in one["terms"]} == {
        tag for tag in found if tag.startswith("term/")
    }
    assert "term/ewc" in found
    assert [value for _, value in found["learning rate"]] == pytest.approx([one["rate"] for one in told])


def test_scores_stand_after_each_task_as_in_the_matrix(tracked: Any):
    found, scores = curves(tracked), tracked[0].matrix.scores

    assert found["score/colour"] == [(1, pytest.approx(scores[0][0])), (2, pytest.approx(scores[1][0]))]
    assert found["score/side"] == [(2, pytest.approx(scores[1][1]))]
    assert found["mean score"][-1] == (2, pytest.approx(sum(scores[1]) / 2))


def test_a_tracker_is_no_part_of_a_run_and_a_finished_run_is_not_written_twice(tracked: Any):
    result, out, _ = tracked
    before = sorted(out.glob("trackers/**/*"))

    again = cl_zoo.run("finetune", with_=["ewc"], trackers=["tensorboard"], out=str(out), **TINY)
    plain = cl_zoo.run("finetune", with_=["ewc"], out=str(out), **TINY)

    assert again.folder == plain.folder == result.folder
    assert sorted(out.glob("trackers/**/*")) == before


def test_a_tracker_that_fails_is_said_in_one_line_and_the_run_goes_on(
    cli: Callable[..., Any], tmp_path: Path
):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "trackers").write_text("a file where a folder should be")

    ended = cli("run", "finetune", *FLAGS, "--tracker", "tensorboard", "--out", tmp_path / "runs")

    assert ended.code == 0
    notes = [line for line in ended.err.splitlines() if "tracker" in line]
    assert notes == [
        "note: the tracker tensorboard failed and is left out of this run (FileExistsError: file exists)"
    ]


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_package_that_is_missing_is_asked_for_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
):
    monkeypatch.setattr("cl_zoo.runs.curves.find_spec", lambda package: None)
    with pytest.raises(
        OptionError, match=f"--tracker {name}: needs the package {name}, .*pip install {name}"
    ):
        cl_zoo.run("finetune", trackers=[name], out=str(tmp_path / "runs"), **TINY)
    assert not (tmp_path / "runs").exists()


def test_an_unknown_tracker_is_told_with_the_nearest_one(cli: Callable[..., Any], tmp_path: Path):
    for command in (("run", "finetune"), ("compare", "--methods", "finetune")):
        ended = cli(*command, *FLAGS, "--tracker", "tensorbord", "--out", tmp_path / "runs")

        assert ended.code == 2
        assert "--tracker tensorbord; did you mean 'tensorboard'?" in ended.err
    assert not (tmp_path / "runs").exists()


class Book:
    """A library that writes down what it is given."""

    def __init__(self, name: str, pages: list[Any]) -> None:
        self._name, self._pages = name, pages
        pages.append((name, "starts"))

    def log(self, values: dict[str, float], step: int) -> None:
        self._pages.append((self._name, step))

    def finish(self) -> None:
        self._pages.append((self._name, "ends"))


def test_a_library_of_one_run_at_a_time_hears_of_a_run_when_it_has_ended():
    pages: list[Any] = []
    starts = {"work": {"lessons": [["a", 20], ["b", 20]]}}
    step = {"index": 1, "step": 10, "terms": {"task": 1.0}}
    first, second = (
        Curve(starts, [Place("mlflow", lambda name=name: Book(name, pages))]) for name in ("first", "second")
    )

    first.learns(step)
    second.learns(step)
    second.ends(None)
    first.ends(None)

    assert pages == [(name, what) for name in ("second", "first") for what in ("starts", 30, "ends")]


def test_scores_stand_behind_the_training_where_steps_only_go_up(tracked: Any):
    result, _, _ = tracked
    pages: list[Any] = []
    lessons = [[task["task"], task["steps"]] for task in result.ledger["tasks"]]
    curve = Curve({"work": {"lessons": lessons}}, [Place("wandb", lambda: Book("wandb", pages))])

    curve.learns({"index": 1, "step": lessons[1][1], "terms": {"task": 1.0}})
    curve.ends(result.folder)

    total = sum(steps for _, steps in lessons)
    assert [step for _, step in pages[1:-1]] == [total, total + 1, total + 2]


def test_runs_that_may_be_compared_are_grouped_and_others_are_not():
    job = Job((Choice("finetune"),), "mini", out="runs")
    alike = Job((Choice("ewc"),), "mini", out="elsewhere", seed=3, order="RA", device="cpu")

    assert comparison_of(job) == comparison_of(alike)
    assert comparison_of(job).startswith("mini-")
    assert comparison_of(job) != comparison_of(Job((Choice("finetune"),), "mini", out="runs", limit=8))


@pytest.mark.slow
def test_the_runs_of_a_comparison_have_a_folder_each_below_its_own(cli: Callable[..., Any], tmp_path: Path):
    out = tmp_path / "runs"
    asked = ("compare", "--methods", "zeroshot,finetune", *FLAGS, "--out", out)

    ended = cli(*asked, "--tracker", "tensorboard")

    assert ended.code == 0
    (comparison,) = (out / "trackers").iterdir()
    found = {folder.name.split("-")[1]: read_back(folder) for folder in comparison.iterdir()}
    assert set(found["zeroshot"]) == {"mean score", "score/colour", "score/side"}
    assert {"loss", "term/task", "learning rate", "score/side"} <= set(found["finetune"])
