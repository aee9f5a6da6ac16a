"""The suite itself: a sound method passes, and each broken one is caught by the promise that it breaks and by no other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cl_zoo import testing
from cl_zoo.errors import OptionError, PluginError
from cl_zoo.testing import ConformanceError, check_method, check_promise
from cl_zoo.testing.conformance.check import ALL, PROMISES, SLOW, Undecided, _broken, verdicts

BROKEN = Path(__file__).with_name("broken_methods.py")

BREAKS = {
    "TakesAnything": "options",
    "Unseeded": "seeds",
    "NamesByTask": "streams",
    "NeedsTwoTasks": "streams",
    "InertTerm": "terms",
    "InertRegulariser": "terms",
    "UnregisteredGain": "terms",
    "InfiniteTerm": "terms",
    "InfiniteGradient": "terms",
    "MovesOldExpert": "frozen",
    "TrainsBackbone": "frozen",
    "MergesIntoBackbone": "frozen",
    "PreparesInEvaluation": "modes",
    "RehearsesInEvaluation": "modes",
    "TeachesInEvaluation": "modes",
    "MeasuresInEvaluation": "modes",
    "SavesInEvaluation": "modes",
    "KeepsTheTeacherOn": "modes",
    "WakesOldExpert": "modes",
    "DropsRoute": "modes",
    "KeepsAnObject": "state",
    "ForgetsAnchors": "saving",
    "ForgetsCount": "resuming",
    "ForgetsSteps": "resuming",
    "LearnsFromAnswering": "sharing",
    "SavesSharpness": "sharing",
    "LoadsOnTop": "sharing",
    "BatchWideRoute": "batches",
    "ReadsPadding": "batches",
    "PeeksAtIds": "identity",
    "PeeksAtFiles": "identity",
    "CountsQuestions": "identity",
    "PeeksAtBudget": "identity",
    "MergesForAnswering": "answering",
    "CountsAnswering": "answering",
    "MeanAsScalar": "micro_batches",
    "MeanOfMeans": "micro_batches",
    "DropsMix": "checkpointing",
    "HidesExperts": "ledger",
    "HidesAnchors": "ledger",
    "CountsTooMuch": "ledger",
    "Meddles": "probe",
}
"""Which promise each broken method breaks."""


def group(name: str) -> Any:
    """A row of its own for a process that is free, since each takes a method's whole trial."""
    return pytest.param(name, marks=pytest.mark.xdist_group(f"broken {name}"))


def broken(name: str, *, slow: bool = False) -> dict[str, str]:
    """The promises that a method of the file breaks, with the sentences."""
    found = verdicts(f"{BROKEN}:{name}", {}, slow=slow)
    return {promise: str(v) for promise, v in found if isinstance(v, ConformanceError)}


def test_a_sound_method_keeps_every_promise() -> None:
    found = dict(verdicts(f"{BROKEN}:Sound", {}))

    assert {promise for promise, verdict in found.items() if verdict is not None} == {"sharing", "probe"}
    assert all(isinstance(found[promise], Undecided) for promise in ("sharing", "probe"))


ALONE = {promise: name for name, promise in reversed(BREAKS.items())}
"""The first of those that break a promise; it is checked for all others, too. What `cl-zoo check` prints says the same of `batches`."""


@pytest.mark.parametrize("name", [group(name) for name, promise in BREAKS.items() if name != ALONE[promise]])
def test_a_broken_method_is_caught_by_the_promise_that_it_breaks(name: str) -> None:
    with pytest.raises(ConformanceError, match=f"^{BREAKS[name]}: .*{name}"):
        check_promise(f"{BROKEN}:{name}", BREAKS[name])


@pytest.mark.parametrize("name", [group(name) for promise, name in ALONE.items() if promise != "batches"])
def test_a_broken_promise_is_caught_and_no_other_is_taken_for_broken(name: str) -> None:
    found = broken(name)

    assert set(found) == {BREAKS[name]}, found
    assert name in found[BREAKS[name]]


def test_every_promise_is_broken_by_some_method() -> None:
    assert set(BREAKS.values()) == set(PROMISES)
    assert set(ALL) == {*PROMISES, *SLOW}


def test_a_training_is_shared_where_answers_alone_read_an_option() -> None:
    check_promise(f"{BROKEN}:Sharpened", "sharing")
    with pytest.raises(ConformanceError, match=r"sharing: .*:SavesSharpness.*sharpness differs with"):
        check_promise(f"{BROKEN}:SavesSharpness", "sharing")
    with pytest.raises(
        ConformanceError, match=r"differs with .*LearnsFromAnswering\.strength=0\.05; let answering"
    ):
        check_promise(f"{BROKEN}:LearnsFromAnswering", "sharing")
    with pytest.raises(Undecided, match="routing looks at answers, so that it shares no training"):
        check_promise(f"{BROKEN}:Sharpened+routing", "sharing")


def test_what_is_lost_within_a_task_is_told_from_what_is_lost_between_tasks() -> None:
    with pytest.raises(ConformanceError, match=r"after 2 tasks: .* differs after stopping within a task and"):
        check_promise(f"{BROKEN}:ForgetsSteps", "resuming")
    with pytest.raises(ConformanceError, match=r"after 2 tasks: .* differs after stopping and resuming"):
        check_promise(f"{BROKEN}:ForgetsCount", "resuming")


@pytest.mark.slow
def test_a_share_that_is_never_added_up_is_caught_by_two_processes() -> None:
    found = broken("OwnShare", slow=True)

    assert set(found) == {"processes"}
    assert "after 1 tasks" in found["processes"]


@pytest.mark.slow
def test_a_measurement_of_one_share_is_caught_by_two_processes() -> None:
    """Nine samples in batches of four: one process sees five of them."""
    found = broken("MeasuresItsShare", slow=True)

    assert set(found) == {"processes"}
    assert "measured/0/samples" in found["processes"]


@pytest.mark.slow
def test_a_sound_method_is_the_same_in_two_processes() -> None:
    assert not broken("Sound", slow=True)


# How it is called


def test_a_broken_promise_is_raised_once_with_its_page_and_what_it_hides() -> None:
    with pytest.raises(ConformanceError) as caught:
        check_method(f"{BROKEN}:InfiniteTerm")

    hidden = [promise for promise in PROMISES if promise not in ("options", "terms", "sharing", "probe")]
    assert (caught.value.promise, caught.value.hides) == ("terms", hidden)
    assert str(caught.value) == (
        f"terms: {BROKEN}:InfiniteTerm, task 0 (colour): the term 'log' is not finite "
        f"(see docs/write-a-method.md#promise-terms); because of it these cannot be told: {', '.join(hidden)}"
    )


def test_every_further_broken_promise_is_a_note_of_the_first() -> None:
    with pytest.raises(ConformanceError, match="takes the unknown option") as caught:
        check_method(f"{BROKEN}:TwiceWrong")

    assert caught.value.promise == "options"
    (note,) = caught.value.__notes__
    assert note.startswith("terms: ")
    assert "the term 'shrink' never has a gradient; compute it from the weights themselves" in note


def test_what_a_hook_raises_is_told_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from cl_zoo import hookimpl\n\nclass Mine:\n    @hookimpl\n    def after_task(self):\n        {}['weights']\n"
    )
    with pytest.raises(
        ConformanceError,
        match=r"\(mine.py, line 6, in after_task\): after_task raised KeyError: 'weights'; return",
    ) as caught:
        check_method(f"{tmp_path / 'mine.py'}:Mine")

    assert isinstance(caught.value.__cause__.__cause__, KeyError)


def test_options_are_those_of_the_first_plugin() -> None:
    with pytest.raises(
        ConformanceError, match=r"InertTerm\[strength=0.5\], tasks CSC: the term 'shrink' never"
    ):
        check_promise(f"{BROKEN}:InertTerm", "terms", strength=0.5)
    with pytest.raises(OptionError, match="has no option 'strenght'; did you mean 'strength'"):
        check_method(f"{BROKEN}:Sound", strenght=1)


def test_what_does_not_apply_or_cannot_be_told_is_skipped() -> None:
    with pytest.raises(Undecided, match="Sound is no probe"):
        check_promise(f"{BROKEN}:Sound", "probe")
    with pytest.raises(Undecided, match=r"since another promise is broken: frozen$"):
        check_promise(f"{BROKEN}:TrainsBackbone", "resuming")


def test_a_stack_is_checked_as_a_whole() -> None:
    name = f"{BROKEN}:Sound+{BROKEN}:InertRegulariser"
    check_promise(name, "seeds")
    with pytest.raises(
        ConformanceError, match=r"InertRegulariser\+.*InfiniteTerm, task 0 \(colour\): the term"
    ):
        check_promise(f"{BROKEN}:InertRegulariser+{BROKEN}:InfiniteTerm", "terms")


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: check_promise(f"{BROKEN}:Sound", "sead"), OptionError),
        (lambda: check_method("no_such_method"), PluginError),
        (lambda: check_method(f"{BROKEN}:NoSuchClass"), PluginError),
    ],
)
def test_a_bad_argument_is_no_broken_promise(call: Callable[[], None], error: type[Exception]) -> None:
    with pytest.raises(error):
        call()


def test_the_suite_is_found_where_methods_are_tested() -> None:
    assert testing.PROMISES == PROMISES
    assert not hasattr(testing, "check_everything")


def test_the_command_says_of_each_promise_whether_it_holds(cli: Callable[..., Any]) -> None:
    ended = cli("check", f"{BROKEN}:BatchWideRoute")

    assert ended.code == 1
    lines = ended.out.splitlines()
    kept = [line.split()[1].rstrip(":") for line in lines if line.startswith("ok ")]
    assert ALONE["batches"] == "BatchWideRoute"
    assert kept == [promise for promise in PROMISES if promise not in ("batches", "sharing", "probe")]
    assert lines[-4:-2] == [
        f"-       probe: {BROKEN}:BatchWideRoute is no probe",
        "BROKEN  batches: an answer depends neither on who else is in the batch, nor on its size or its padding",
    ]
    assert "a batch of 4 and alone" in lines[-2]
    assert lines[-1] == "        how to keep it: docs/write-a-method.md#promise-batches"


def test_the_command_names_a_cause_once_and_what_it_hides(cli: Callable[..., Any]) -> None:
    ended = cli("check", f"{BROKEN}:TrainsBackbone")

    assert ended.code == 1
    assert ended.out.count("belongs to the frozen backbone") == 1
    hidden = [promise for promise in PROMISES if promise not in ("options", "frozen", "sharing", "probe")]
    assert ended.out.splitlines()[-1] == f"        cannot be told because of it: {', '.join(hidden)}"


def test_the_command_takes_options_and_refuses_what_does_not_exist(cli: Callable[..., Any]) -> None:
    method = f"{BROKEN}:InfiniteTerm"
    assert cli("check", "finetune", "-o", "finetune.no_such=1").code == 2
    assert cli("check", "no_such_method").code == 2
    ended = cli("check", method, "-o", f"{method}.strength=0.2")
    assert "InfiniteTerm[strength=0.2], task 0 (colour): the term 'log' is not finite" in ended.out
    assert ended.code == 1


def test_the_number_of_threads_does_not_matter_and_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever calls the suite may have two threads, whose sums need not end in the same bits."""
    seen = []

    def watching(subject: object) -> None:
        """how many threads compute"""
        seen.append(torch.get_num_threads())

    monkeypatch.setitem(ALL, "watching", watching)
    torch.set_num_threads(2)
    try:
        check_promise("finetune", "watching")
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(1)


def test_what_one_fault_breaks_is_told_once() -> None:
    """The first promise that meets it is named, the others behind it; another fault is told by itself."""
    mute = [
        (name, ConformanceError(name, f"{name}: no forward", ValueError("no forward")))
        for name in ("batches", "ledger")
    ]
    broken = _broken([*mute, ("seeds", ConformanceError("seeds", "differs", KeyError("a")))])

    assert [(one.promise, one.hides) for one in broken] == [("batches", ["ledger"]), ("seeds", [])]
