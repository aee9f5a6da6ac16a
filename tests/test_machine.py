"""What the machine offers: cores and memory, as far as a process may use them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cl_zoo import machine


def test_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {2, 5, 7}, raising=False)
    assert machine.cores() == 3

    monkeypatch.delattr(os, "sched_getaffinity")
    assert machine.cores() == 64


def test_a_container_has_the_memory_that_it_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self: "1024\n")
    assert machine.memory_bytes() == 1024
    monkeypatch.setattr(Path, "read_text", lambda self: "max\n")
    assert machine.memory_bytes() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
