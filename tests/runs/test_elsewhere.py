"""Comparisons on Ray and submitit: the same table and the same bytes as in processes here, also where a node is lost, and nothing is left running."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("elsewhere")]

SHORT = ("--methods", "hide[coefficient=0.3],hide,finetune")
LONG = (
    "--methods",
    "hide[coefficient=0.3],hide,finetune",
    "--set",
    "epochs=30",
    "--checkpoint-every",
    "0.01",
)
"""Runs of some seconds, so that a node can be lost while it has one."""


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A short folder for Ray, since the path of a socket has at most 107 bytes."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    monkeypatch.setenv("RAY_TMPDIR", folder)
    yield
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def compare(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start a comparison of tiny runs, two at a time, in a process whose descendants can be told."""

    def start(executor: str, name: str, *words: str) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-m",
            "cl_zoo",
            "compare",
            *words,
            "--device",
            "cpu",
            "--jobs",
            "2",
            "--json",
        ]
        command += [
            "--benchmark",
            "cl_zoo.testing:load_tiny",
            "--backbone",
            "cl_zoo.testing:load_tiny_backbone",
        ]
        return subprocess.Popen(
            [*command, "--executor", executor, "--out", str(tmp_path / name)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "CL_ZOO_TESTED": str(tmp_path)},
        )

    return start


def result(out: Path, printed: str) -> tuple[list[Any], dict[str, bytes]]:
    """Labels, seeds and scores of the table, and the bytes of all answers."""
    runs = json.loads(printed)["runs"]
    answers = {str(file.relative_to(out)): file.read_bytes() for file in sorted(out.glob("tiny-*/answers/*"))}
    return [[one[key] for key in ("label", "seed", "matrix", "strict", "error")] for one in runs], answers


def left_running(mark: Path) -> list[str]:
    """Command lines of the processes that were started by a comparison and are still there after some seconds."""
    until = time.monotonic() + 10
    while (found := descendants(mark)) and time.monotonic() < until:
        time.sleep(0.5)
    return found


def descendants(mark: Path) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"CL_ZOO_TESTED={mark}\0".encode() in (process / "environ").read_bytes() + b"\0":
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("executor", ["slurm[cluster=local]", "ray"])
def test_runs_made_elsewhere_answer_byte_for_byte_as_those_made_here(
    compare: Callable[..., subprocess.Popen[str]], tmp_path: Path, executor: str
) -> None:
    """By submitit's processes, and by a Ray cluster that is started and stopped; hide's two runs share a training."""
    made = {}
    for name in ("local", executor):
        ran = compare(name, name[:4], *SHORT)
        printed, said = ran.communicate(timeout=300)
        assert ran.returncode == 0, said
        made[name] = result(tmp_path / name[:4], printed)
        assert not (tmp_path / name[:4] / "trained").exists()

    assert made["local"] == made[executor]
    assert len(made["local"][1]) == 9
    assert left_running(tmp_path) == []


def test_a_grid_that_loses_a_node_ends_with_the_same_table(
    compare: Callable[..., subprocess.Popen[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes of this machine beside the head; one is killed when both have a run, which then goes on elsewhere."""
    monkeypatch.setenv("CL_ZOO_TESTED", str(tmp_path))
    from ray.cluster_utils import Cluster

    here = compare("local", "local", *LONG)
    printed, said = here.communicate(timeout=300)
    assert here.returncode == 0, said
    wanted = result(tmp_path / "local", printed)
    small: dict[str, Any] = {"object_store_memory": 80_000_000}
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small}
    )
    try:
        nodes = [cluster.add_node(num_cpus=1, **small) for _ in range(2)]
        there = compare(f"ray[address={cluster.address}]", "ray", *LONG)
        watchdog = threading.Timer(400, there.kill)  # who reads its lines would wait for ever
        watchdog.daemon = True
        watchdog.start()
        begun, heard = 0, list[str]()
        assert there.stderr is not None
        for line in there.stderr:
            heard.append(line)
            begun += ": run tiny-" in line
            if begun == 2:
                break
        cluster.remove_node(nodes[0], allow_graceful=False)
        printed, said = there.communicate(timeout=300)
        watchdog.cancel()
    finally:
        cluster.shutdown()
    said = "".join(heard) + said

    assert there.returncode == 0, said
    assert "sent again" in said
    assert result(tmp_path / "ray", printed) == wanted
    assert len(wanted[1]) == 9
    assert left_running(tmp_path) == []
