"""A benchmark that is mended goes on where its tasks are as they were: what was learnt and answered before the edit stays."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from squares import edited, squares
from tiny_runs import resealed

import cl_zoo
from cl_zoo.engine.run import Run
from cl_zoo.export.writing import export
from cl_zoo.runs.answered import answered as answered_in
from cl_zoo.runs.progress import progress_for
from cl_zoo.runs.verify import repair, verify
from cl_zoo.scoring.scorer import Scorer

SETTINGS: dict[str, Any] = {"device": "cpu", "preflight": False}
WRONG = {"image": "lost.png"}
"""What is wrong with a record of the third task until it is mended."""

PASSING = (
    "seconds besides evaluation_seconds hooks peak_memory_mb taken data job environment files seal".split()
)
"""What differs in two manifests, or notes of a state, of one result."""


class Stop(Exception):
    """The run was interrupted here."""


def run(
    benchmark: Path, out: Path, method: str = "finetune", **settings: Any
) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of a finished run and what it told of."""
    events: list[dict[str, Any]] = []
    done = cl_zoo.run(method, benchmark=str(benchmark), out=out, watch=events.append, **SETTINGS, **settings)
    assert done.folder is not None
    return done.folder, events


def phases(events: list[dict[str, Any]], phase: str) -> list[Any]:
    return [(event["task"], event["index"]) for event in events if event.get("phase") == phase]


def learnt(events: list[dict[str, Any]]) -> list[str]:
    return [task for task, _ in phases(events, "after_task")]


def answered(events: list[dict[str, Any]]) -> list[str]:
    """Cells, `row-place`."""
    return [f"{event['index']}-{event['cell']}" for event in events if event.get("phase") == "answer"]


def told(events: list[dict[str, Any]]) -> str:
    """The line that says what was taken over, behind the run's name."""
    written = StringIO()
    lines = progress_for(Console(file=written), runs=1)
    for event in events:
        lines(event)
    found = [line for line in written.getvalue().splitlines() if " learnt in squares-" in line]
    return found[0].partition("seed 0: ")[2] if found else ""


def lasting(folder: Path) -> dict[str, Any]:
    """All files of a run but the lists of the others, without what they say of seconds, memory and who has learnt."""
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    found: dict[str, Any] = {}
    for name, file in files.items():
        if file.name in ("state.json", "manifest.json"):
            found[name] = _untimed(json.loads(file.read_text()))
        elif file.name != "files.json":
            found[name] = file.read_bytes()
    return found


def _untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _untimed(one) for key, one in value.items() if key not in PASSING}
    return [_untimed(one) for one in value] if isinstance(value, list) else value


@contextmanager
def stopped(tasks: int) -> Iterator[None]:
    """A run inside is interrupted where it would begin to learn with so many tasks behind it."""
    real = Run._learn

    def learn(self: Run, lesson: Any) -> None:
        if lesson.task.index == tasks:
            raise Stop
        real(self, lesson)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Run, "_learn", learn)
        with pytest.raises(Stop):
            yield


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks on disk, as they should be."""
    return squares(tmp_path_factory.mktemp("squares") / "data")


@pytest.fixture(scope="module")
def whole(benchmark: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on them that was never disturbed, with all its states."""
    return run(benchmark, tmp_path_factory.mktemp("whole"), keep_states="all")[0]


@pytest.fixture
def copy(benchmark: Path, tmp_path: Path) -> Path:
    """A copy of the benchmark that a test may edit."""
    return shutil.copytree(benchmark.parent, tmp_path / "data") / benchmark.name


@pytest.fixture
def runs(whole: Path, tmp_path: Path) -> Path:
    """A folder of runs with a copy of the run on the benchmark as it was."""
    shutil.copytree(whole, tmp_path / "runs" / whole.name)
    return tmp_path / "runs"


def test_a_run_that_a_bad_record_has_stopped_goes_on_with_its_task_when_the_record_is_mended(
    whole: Path, copy: Path, tmp_path: Path
):
    """The answers and the model are those of a run on the mended data from the beginning, byte for byte."""
    mended: list[dict[str, Any]] = []
    edited(
        copy,
        "description_train.json",
        lambda records: mended.append(dict(records[5])) or records[5].update(WRONG),
    )
    with pytest.raises(cl_zoo.DataError, match=r"lost\.png"):
        run(copy, tmp_path / "runs")
    (left,) = (tmp_path / "runs").glob("*.partial")
    before = {file.name: file.read_bytes() for file in left.glob("answers/*")}
    edited(copy, "description_train.json", lambda records: records[5].update(mended[0]))

    folder, events = run(copy, tmp_path / "runs", keep_states="all")

    assert told(events) == f"colour, side were learnt in {left.name}; going on with description"
    assert learnt(events) == ["description"]
    assert answered(events) == ["2-0", "2-1", "2-2"]
    assert set(before) == {"0-0.jsonl", "1-0.jsonl", "1-1.jsonl"}
    assert {name: (folder / "answers" / name).read_bytes() for name in before} == before
    assert lasting(folder) == lasting(whole)
    assert cl_zoo.load(folder).ledger["taken"] == 2


def test_a_finished_run_serves_with_the_states_that_it_has_kept(
    whole: Path, runs: Path, copy: Path, tmp_path: Path
):
    """All of them: a record of the second task costs two tasks; the last one alone serves a stream that is longer."""
    edited(copy, "side_train.json", lambda records: records[0].update(image="000003.png"))

    folder, events = run(copy, runs)

    assert told(events) == f"colour was learnt in {whole.name}; going on with side"
    assert learnt(events) == ["side", "description"]
    assert answered(events) == ["1-0", "1-1", "2-0", "2-1", "2-2"]
    wanted = lasting(run(copy, tmp_path / "again")[0])
    assert lasting(folder) == wanted
    assert [path.name for path in folder.glob("state-*")] == ["state-3"]


def test_a_longer_stream_goes_on_from_a_finished_run(benchmark: Path, tmp_path: Path):
    short, _ = run(benchmark, tmp_path / "runs", order="CS")

    folder, events = run(benchmark, tmp_path / "runs", order="CSC")

    assert told(events) == f"colour, side were learnt in {short.name}; going on with colour"
    assert learnt(events) == ["colour"]
    assert lasting(folder) == lasting(run(benchmark, tmp_path / "alone", order="CSC")[0])


@pytest.mark.parametrize("method", ["finetune", "hide"])
def test_a_mended_question_is_asked_again_and_nothing_is_learnt_where_all_states_are_kept(
    benchmark: Path, copy: Path, tmp_path: Path, method: str
):
    edited(copy, "colour_test.json", lambda records: records[0].update(text="What is it ?"))
    old, _ = run(benchmark, tmp_path / "runs", method, keep_states="all")

    folder, events = run(copy, tmp_path / "runs", method)

    assert told(events) == f"colour, side, description were learnt in {old.name}; nothing new to learn"
    assert (learnt(events), answered(events)) == ([], ["0-0", "1-0", "2-0"])
    assert lasting(folder) == lasting(run(copy, tmp_path / "alone", method)[0])


def test_a_mended_question_costs_all_tasks_but_the_last_where_the_last_state_alone_is_kept(
    whole: Path, runs: Path, copy: Path, tmp_path: Path
):
    """What answered in an earlier row is made again by learning, since nothing else is left of it."""
    edited(copy, "colour_test.json", lambda records: records[0].update(text="What is it ?"))
    for earlier in (1, 2):
        shutil.rmtree(runs / whole.name / f"state-{earlier}")

    folder, events = run(copy, runs)

    assert told(events) == (
        f"colour, side, description were learnt in {whole.name}; learning colour, side once more for answers that "
        "are not there; nothing new to learn"
    )
    assert (learnt(events), answered(events)) == (["colour", "side"], ["0-0", "1-0", "2-0"])
    assert lasting(folder) == lasting(run(copy, tmp_path / "alone")[0])


def test_a_mended_right_answer_costs_nothing_but_the_scores(whole: Path, runs: Path, copy: Path):
    edited(copy, "colour_test.json", lambda records: records[0].update(answer="grey"))

    folder, events = run(copy, runs)

    assert (learnt(events), answered(events)) == ([], [])
    assert folder != whole
    for file in whole.glob("answers/*"):
        assert (folder / "answers" / file.name).read_bytes() == file.read_bytes()
    expected = json.loads((folder / "expected" / "0.jsonl").read_text().splitlines()[0])
    assert expected["answer"] == "grey"


@pytest.mark.parametrize("where", ["in place", "in a copy"])
def test_a_method_that_keeps_the_paths_of_pictures_takes_over_where_the_data_lie_in_the_same_place(
    copy: Path, tmp_path: Path, where: str
):
    """Its state would name pictures of the other folder."""
    run(copy, tmp_path / "runs", "replay", order="CS", keep_states="all")
    if where == "in a copy":
        copy = shutil.copytree(copy.parent, tmp_path / "other") / copy.name
    edited(copy, "side_train.json", lambda records: records[0].update(image="000003.png"))

    folder, events = run(copy, tmp_path / "runs", "replay", order="CS")

    assert learnt(events) == (["side"] if where == "in place" else ["colour", "side"])
    assert lasting(folder) == lasting(run(copy, tmp_path / "alone", "replay", order="CS")[0])


def test_an_edit_of_the_first_task_leaves_nothing_to_take_over(runs: Path, copy: Path):
    edited(copy, "colour_train.json", lambda records: records[0].update(image="000003.png"))

    _, events = run(copy, runs, order="C")

    assert told(events) == ""
    assert learnt(events) == ["colour"]


def test_a_damaged_state_is_not_taken_over_and_an_older_one_is(whole: Path, runs: Path, copy: Path):
    edited(copy, "description_train.json", lambda records: records[0].update(image="000003.png"))
    state = runs / whole.name / "state-2" / "model.safetensors"
    content = bytearray(state.read_bytes())
    content[-3] ^= 1
    state.write_bytes(content)

    folder, events = run(copy, runs)

    assert told(events) == f"colour was learnt in {whole.name}; going on with side"
    assert (folder / "answers/1-1.jsonl").read_bytes() == (whole / "answers/1-1.jsonl").read_bytes()


def test_a_damaged_answer_is_made_again(whole: Path, runs: Path, copy: Path):
    edited(copy, "description_train.json", lambda records: records[0].update(image="000003.png"))
    with (runs / whole.name / "answers/0-0.jsonl").open("a") as file:
        file.write("\n")

    folder, events = run(copy, runs)

    assert learnt(events) == ["description"]
    assert answered(events) == ["0-0", "2-0", "2-1", "2-2"]
    assert (folder / "answers/0-0.jsonl").read_bytes() == (whole / "answers/0-0.jsonl").read_bytes()


def test_what_was_taken_over_is_not_lost_in_an_interruption(whole: Path, runs: Path, copy: Path):
    """The run goes on from its own copy, whatever has become of the other one."""
    edited(copy, "description_train.json", lambda records: records[0].update(image="000003.png"))
    with stopped(2):
        run(copy, runs)
    shutil.rmtree(runs / whole.name)

    folder, events = run(copy, runs)

    assert (told(events), learnt(events)) == ("", ["description"])
    assert (folder / "answers/1-0.jsonl").read_bytes() == (whole / "answers/1-0.jsonl").read_bytes()
    assert cl_zoo.load(folder).ledger["taken"] == 2


def test_a_probe_of_answers_takes_over_what_was_asked_alike_alone(
    benchmark: Path, copy: Path, tmp_path: Path
):
    """`routing` keeps what it saw of the answers to a task: an edited question of it ends what two runs have in common."""
    run(benchmark, tmp_path / "runs", "hide", order="CS", probes=["routing"], keep_states="all")
    edited(copy, "side_test.json", lambda records: records[0].update(text="Where ?"))

    folder, events = run(copy, tmp_path / "runs", "hide", order="CS", probes=["routing"])

    assert learnt(events) == ["side"]
    alone, _ = run(copy, tmp_path / "alone", "hide", order="CS", probes=["routing"])
    assert lasting(folder) == lasting(alone)


def test_other_options_of_answering_take_nothing_over(benchmark: Path, tmp_path: Path):
    """What a state says of its answers' costs would be wrong; runs of one comparison share their training otherwise."""
    run(benchmark, tmp_path, "hide", order="C")

    _, events = run(benchmark, tmp_path, "hide[coefficient=0.2]", order="C")

    assert told(events) == ""


def test_a_repaired_run_makes_an_answer_again_from_the_state_that_was_kept(
    whole: Path, runs: Path, benchmark: Path
):
    """And a damaged state that is not the newest costs nothing."""
    folder = runs / whole.name
    for name in ("answers/1-0.jsonl", "state-1/model.safetensors"):
        (folder / name).write_bytes(b"damaged")
    with Scorer() as scorer:
        sentence = repair(verify(folder, scorer))

    found, events = run(benchmark, runs, keep_states="all")

    assert sentence.endswith(
        "the command that made the run makes 1 answer files anew and goes on after task 3"
    )
    assert (learnt(events), answered(events)) == ([], ["1-0"])
    assert lasting(found) == {k: v for k, v in lasting(whole).items() if not k.startswith("state-1/")}


def test_a_run_from_before_identities_had_chains_is_read_as_ever(
    whole: Path, runs: Path, copy: Path, tmp_path: Path
):
    """Loaded, answering, checked, exported, looked into; and never taken over from."""
    folder = runs / whole.name

    def before(manifest: dict[str, Any]) -> None:
        identity = manifest["identity"]
        del identity["chain"], identity["benchmark"]["tests"]
        identity["benchmark"]["data"] = "0123456789abcdef"
        (folder / "identity.json").write_text(json.dumps(identity))

    resealed(folder, before)

    result = cl_zoo.load(folder, device="cpu")
    said = json.loads((folder / "answers/2-0.jsonl").read_text().splitlines()[0])
    picture = copy.parent / "pictures" / said["picture"]
    assert result.generate([str(picture)], [said["prompt"]]) == [said["answer"]]
    assert next(answered_in(folder)).about["id"] == said["id"]
    with Scorer() as scorer:
        assert verify(folder, scorer).damaged == {}
    export(folder, tmp_path / "exported", device="cpu")
    assert "squares 1, data 0123456789abcdef |" in (tmp_path / "exported/README.md").read_text()

    edited(copy, "description_train.json", lambda records: records[0].update(image="000003.png"))
    assert told(run(copy, runs, order="CD")[1]) == ""


@pytest.mark.slow
def test_a_comparison_keeps_all_states_and_takes_over_for_each_of_its_runs(copy: Path, tmp_path: Path):
    said: list[dict[str, Any]] = []
    methods, settings = ["finetune", "ewc"], {"out": tmp_path / "runs", "processes": 1, "device": "cpu"}
    first = cl_zoo.compare(methods, benchmark=str(copy), keep_states="all", **settings)
    edited(copy, "side_train.json", lambda records: records[0].update(image="000003.png"))

    cl_zoo.compare(methods, benchmark=str(copy), watch=said.append, **settings)

    for one in first.results:
        assert one.folder is not None
        assert sorted(path.name for path in one.folder.glob("state-*")) == ["state-1", "state-2", "state-3"]
    taken = [(event["label"], event["tasks"]) for event in said if event.get("phase") == "inherited"]
    assert taken == [("finetune", ["colour"]), ("ewc", ["colour"])]
