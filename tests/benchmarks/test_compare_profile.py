"""Where a comparison's processor time goes: which part a tick belongs to, and what the parts add up to. No time is checked."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "performance"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("compare_profile")


ENGINE = str(FOLDER.parents[1] / "cl_zoo")
STEP = [[f"{ENGINE}/engine/learning.py", "step"], [f"{ENGINE}/engine/run.py", "_learn"]]
DRAWN = [
    ["/anywhere/cl_zoo_bench_mini/scenes.py", "paint"],
    ["/anywhere/cl_zoo_bench_mini/tasks.py", "_drawn"],
]
LOOKED = [[f"{ENGINE}/backbones/backbone.py", "encode"], [f"{ENGINE}/backbones/backbone.py", "batch"]]


@pytest.mark.parametrize(
    ("calls", "part"),
    [
        (STEP, "around a training step"),
        ([["/torch/optim/adamw.py", "step"], *STEP], "optimiser"),
        ([["/torch/_tensor.py", "backward"], *STEP], "backward"),
        ([["/torch/_tensor.py", "clone"], *STEP], "around a training step"),
        ([*LOOKED, *STEP], "tower and encoder features"),
        ([*LOOKED[1:], *STEP], "tokenizing and padding"),
        ([*DRAWN, *LOOKED, *STEP], "drawing"),
        ([["<frozen importlib._bootstrap>", "_find_and_load"], *DRAWN], "imports"),
        ([*LOOKED[1:], [f"{ENGINE}/engine/answering.py", "answers"]], "tokenizing and padding"),
        ([["/usr/lib/json/decoder.py", "decode"]], "all else"),
        ([], "all else"),
    ],
)
def test_a_tick_belongs_to_the_first_part_that_one_of_its_calls_is_in(script: Any, calls: Any, part: str):
    assert script.part_of(calls) == part


def test_what_children_took_beside_the_workers_is_javas(script: Any):
    """Process 1 has the workers 2 and 3, of 6 s and 4 s; its children took 25 s, so 15 s were no worker's; a worker's child took 1 s."""
    noted = [
        {"process": 1, "parent": 0, "own": 2.0, "children": 25.0, "calls": [[[], 1.0]]},
        {"process": 2, "parent": 1, "own": 6.0, "children": 1.0, "calls": [[STEP, 1.0], [DRAWN, 0.5]]},
        {"process": 3, "parent": 1, "own": 4.0, "children": 0.0, "calls": [[STEP, 3.0]]},
    ]

    assert script.shares(noted) == {
        "Java of caption scores": 16.0,
        "around a training step": 4.0 + 4.0,
        "drawing": 2.0,
        "all else": 2.0,
    }
    assert list(script.shares(noted)) == sorted(
        script.shares(noted), key=script.shares(noted).get, reverse=True
    )


def test_a_function_counts_once_for_all_that_it_calls(script: Any):
    twice = [STEP[0], *STEP]
    noted = [{"calls": [[twice, 3.0], [STEP[1:], 1.0], [[["/elsewhere.py", "f"]], 4.0]]}]

    assert script.functions(noted) == {
        "cl_zoo/engine/run.py:_learn": 0.5,
        "cl_zoo/engine/learning.py:step": 0.375,
    }
    assert list(script.functions(noted, most=1)) == ["cl_zoo/engine/run.py:_learn"]


BUSY = """
import signal, time

def work():
    while time.process_time() < 0.3:
        pass

work()
if {waits}:
    signal.raise_signal(signal.SIGTERM)
"""


@pytest.mark.parametrize("waits", [False, True], ids=["that ends", "that is ended"])
def test_a_process_notes_what_it_calls(script: Any, tmp_path: Path, waits: bool):
    (tmp_path / "sampler").mkdir()
    (tmp_path / "sampler" / "sitecustomize.py").write_text(script.SAMPLER, encoding="utf-8")
    (tmp_path / "notes").mkdir()
    path = os.pathsep.join([str(tmp_path / "sampler"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "CL_ZOO_PROFILE": str(tmp_path / "notes")}
    code = BUSY.replace("{waits}", str(waits))
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False)

    assert done.returncode == (143 if waits else 0)
    [file] = (tmp_path / "notes").iterdir()
    noted = json.loads(file.read_text(encoding="utf-8"))
    assert noted["parent"] == os.getpid()
    assert ["<string>", "work"] in [call for calls, _ in noted["calls"] for call in calls]
    assert 0 < sum(spent for _, spent in noted["calls"]) <= noted["own"]


def test_parts_are_printed_with_their_shares(script: Any):
    assert script.as_table({"drawing": 3.0, "imports": 1.0}).splitlines()[2:] == [
        "| drawing | 3.0 | 75.0 % |",
        "| imports | 1.0 | 25.0 % |",
    ]
