"""What a user sees of a plugin that misbehaves: one sentence, exit code 2, a log, and results that can be piped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cl_zoo.errors import DEBUG

TINY = ("--benchmark", "cl_zoo.testing:load_tiny", "--device", "cpu")

BAD = """
import os, sys
from cl_zoo import hookimpl

print("at import")

class Exits:
    @hookimpl
    def after_task(self):
        sys.exit(0)

class Raises:
    @hookimpl
    def loss(self, model):
        return helper(model)

def helper(model):
    raise IndexError("no \\x1b[31msuch row")

class Prints:
    def __init__(self):
        print("while it is made")

    @hookimpl
    def loss(self):
        print("in a hook")
        os.write(1, b"past Python\\n")

class Dies:
    @hookimpl
    def after_task(self):
        os._exit(0)

class Crashes:
    @hookimpl
    def after_task(self):
        os.abort()
"""


@pytest.fixture
def bad(tmp_path: Path) -> Callable[[str], str]:
    """The name of a plugin that misbehaves."""
    file = tmp_path / "bad.py"
    file.write_text(BAD)
    return lambda name: f"{file}:{name}"


@pytest.mark.parametrize(("name", "line", "call"), [("Exits", 10, "sys.exit"), ("Dies", 32, "os._exit")])
def test_a_hook_that_exits_with_0_ends_the_run_with_2(
    cli: Callable[..., Any], bad: Callable[[str], str], tmp_path: Path, name: str, line: int, call: str
) -> None:
    ended = cli("run", bad(name), *TINY, "--out", tmp_path / "runs")

    assert (ended.code, ended.out) == (2, "")
    (log,) = (tmp_path / "runs" / "logs").iterdir()
    assert ended.err.splitlines()[-1] == (
        f"error: {bad(name)}, task colour (bad.py, line {line}, in after_task): after_task called {call}(0); "
        f"let it return, or raise an exception that says what is wrong (its traceback: {log})"
    )


def test_a_traceback_stands_in_the_log_and_whole_with_debug(
    cli: Callable[..., Any], bad: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DEBUG, "")  # is put back to what it was
    quiet = cli("run", bad("Raises"), *TINY, "--out", tmp_path / "runs")
    (log,) = (tmp_path / "runs" / "logs").iterdir()
    short = log.read_text()
    loud = cli("run", bad("Raises"), *TINY, "--out", tmp_path / "runs", "--debug")

    assert "Traceback" not in quiet.err
    assert r"loss raised IndexError: no \x1b[31msuch row; return a mapping" in quiet.err
    assert short.count("  File ") == short.count('bad.py", line') == 2
    assert "learning.py" in log.read_text()
    assert "learning.py" in loud.err
    assert loud.code == quiet.code == 2


def test_what_a_plugin_prints_is_not_among_the_results(bad: Callable[[str], str], tmp_path: Path) -> None:
    """Neither by Python nor past it; in a process of its own, whose standard output is a pipe."""
    command = [
        sys.executable,
        "-m",
        "cl_zoo",
        "run",
        bad("Prints"),
        *TINY,
        "--json",
        "--out",
        tmp_path / "runs",
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True, env=os.environ)

    assert len(json.loads(done.stdout)["runs"]) == 1
    for said in ("at import", "while it is made", "in a hook", "past Python"):
        assert said in done.stderr


def test_a_failed_row_says_where_the_log_is_and_the_others_go_on(
    cli: Callable[..., Any], bad: Callable[[str], str], tmp_path: Path
) -> None:
    """One hook raises and one crashes its process; the third method is scored."""
    names = ",".join([bad("Crashes"), bad("Raises"), "finetune"])
    ended = cli("compare", "--methods", names, *TINY, "--jobs", 1, "--json", "--out", tmp_path / "runs")

    assert ended.code == 1  # a crash may be nobody's fault here
    crashes, raises, sound = json.loads(ended.out)["runs"]
    worker = tmp_path / "runs" / "logs" / "worker-0.log"
    assert (
        crashes["error"] == f"its process ended by signal 6 (Aborted) in after_task of colour; see {worker}"
    )
    assert 'bad.py", line 37 in after_task' in worker.read_text()
    log = raises["error"].rpartition("(its traceback: ")[2].rstrip(")")
    assert "in helper" in Path(log).read_text()
    assert sound["error"] is None


def test_where_compiled_code_crashed_is_on_standard_error(tmp_path: Path) -> None:
    file = tmp_path / "crash.py"
    file.write_text("import ctypes\n\nctypes.string_at(0)\n")
    command = [sys.executable, "-m", "cl_zoo", "show", f"{file}:Mine"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == -signal.SIGSEGV
    assert "Segmentation fault" in done.stderr
    assert f'File "{file}", line 3' in done.stderr


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("import sys; sys.exit(0)", "called sys.exit(0) (line 1); a module is imported for what it defines, take the call out"),
        ("1 / 0", "failed with ZeroDivisionError: division by zero (line 1); repair it"),
    ],
)  # fmt: skip
def test_a_module_that_cannot_be_imported_is_named_with_its_line(
    cli: Callable[..., Any], tmp_path: Path, line: str, says: str
) -> None:
    file = tmp_path / "early.py"
    file.write_text(line)
    ended = cli("run", f"{file}:Mine", *TINY, "--out", tmp_path / "runs")

    assert ended.code == 2
    assert ended.err.splitlines()[-1] == f"error: {file}:Mine: importing {file} {says}"
