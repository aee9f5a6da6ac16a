"""Every installed method keeps every promise; a new one is covered by being installed."""

from __future__ import annotations

from typing import Any

import pytest

from cl_zoo.names import METHODS, installed
from cl_zoo.testing import PROMISES, SLOW, check_promise

QUICK = {"mrlora": "mrlora[samples=4,passes=2]"}
"""Options with which a method has the same promises to keep in fewer steps."""

NAMES = [QUICK.get(one.name, one.name) for one in installed(METHODS) if one.distribution == "cl-zoo"]
STACKS = [
    "moelora+ewc[samples=4]",
    "olora+lwf",
    "hide+replay",
    "moelora+si",
    "olora+derpp",
    "hide[variant=released]",
    "hide+cka",
    "disco[variant=released]",
    "smolora[variant=released]",
    "modeltailor[variant=released]",
    "same[variant=released]",
    "merging[rule=dare-ties]",
    "cram[alike=-1,lead=0]",
    "cram[alike=1]+ewc[samples=4]",
]


def group(name: str) -> Any:
    """All promises of a stack in one process, where they share its trials."""
    return pytest.param(name, marks=pytest.mark.xdist_group(f"stack {name}"))


@pytest.mark.parametrize("promise", PROMISES)
@pytest.mark.parametrize("name", [group(name) for name in [*NAMES, *STACKS]])
def test_a_method_keeps_its_promise(name: str, promise: str) -> None:
    check_promise(name, promise)


@pytest.mark.slow
@pytest.mark.parametrize("promise", SLOW)
@pytest.mark.parametrize("name", [group(name) for name in NAMES])
def test_a_method_keeps_its_promise_in_several_processes(name: str, promise: str) -> None:
    check_promise(name, promise)
