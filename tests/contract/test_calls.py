"""The guard around a call of a plugin's code: what ends a process, and what is long."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from cl_zoo.contract.calls import ASKS, Call
from cl_zoo.errors import LONGEST, PluginError, PluginFault
from cl_zoo.names import METHODS, load


class Mine:
    """A plugin."""


def guard() -> Call:
    return Call("before_task", {"mine": Mine()})


def test_ending_the_process_is_told_and_the_process_lives() -> None:
    before = os._exit
    with (
        pytest.raises(PluginFault, match=r"before_task called os\._exit\(0\); let it return, or raise"),
        guard(),
    ):
        os._exit(0)

    assert os._exit is before


def test_a_process_that_a_plugin_forks_ends_as_ever() -> None:
    with guard():
        child = os.fork()
        if child == 0:
            os._exit(5)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert ended == 5


def test_other_threads_end_the_process_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's own thread ends it when its parent is gone, whatever a hook does meanwhile."""
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    with guard():
        thread = threading.Thread(target=lambda: os._exit(4))
        thread.start()
        thread.join()

    assert ended == [4]


def test_a_module_that_ends_the_process_at_import_is_told(tmp_path: Path) -> None:
    file = tmp_path / "gone.py"
    file.write_text("import os\n\nos._exit(7)\n")

    with pytest.raises(
        PluginError, match=r"called os\._exit\(7\) \(line 3\); a module is imported for what it"
    ):
        load(METHODS, f"{file}:Mine")


def test_what_an_exception_says_is_cut_in_its_middle() -> None:
    """Its beginning says what is wrong, its end often where."""
    with pytest.raises(PluginFault) as caught, guard():
        raise ValueError(f"begin {'x' * 10_000} end")

    said = str(caught.value)
    assert "before_task raised ValueError: begin xxx" in said
    assert said.endswith(f"xxx end; {ASKS['before_task']}")
    assert len(said) < LONGEST + 200
