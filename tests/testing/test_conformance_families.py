"""Promises are checked on a LLaVA; here a few methods keep them on the families whose models are built otherwise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.backbones.qwen import load as load_qwen
from cl_zoo.backbones.qwen3 import load as load_qwen3
from cl_zoo.backbones.smolvlm import load as load_smolvlm
from cl_zoo.names import stack
from cl_zoo.testing import PROMISES, tiny_qwen, tiny_qwen3, tiny_smolvlm
from cl_zoo.testing.conformance import trials
from cl_zoo.testing.conformance.promises import PROMISES as CHECKS
from cl_zoo.testing.conformance.subjects import Subject, Undecided

TWINS: dict[str, tuple[Callable[..., Path], Callable[..., Backbone]]] = {
    "qwen2.5-vl": (tiny_qwen, load_qwen),
    "qwen3-vl": (tiny_qwen3, load_qwen3),
    "smolvlm2": (tiny_smolvlm, load_smolvlm),
}


@pytest.fixture(scope="session")
def twins(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> dict[str, Backbone]:
    """The tiny backbones, with the encoder of the LLaVA's."""
    made = {}
    for name, (write, load) in TWINS.items():
        folder = write(tmp_path_factory.mktemp("twin") / "model")
        made[name] = load(folder, torch.device("cpu"), torch.float32)
        made[name].adjust(features=str(tiny_folder / "clip"))
        _ = made[name].features
    return made


@pytest.mark.slow
@pytest.mark.parametrize("method", ["finetune", "hide", "l2p", "moelora"])
@pytest.mark.parametrize("family", sorted(TWINS))
def test_a_method_keeps_its_promises_on_other_families(
    twins: dict[str, Backbone], family: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(trials, "pristine", lambda folder: asked.append(folder) or twins[family])
    subject = Subject(stack(method, (), (), {}))

    verdicts = {promise: subject.verdict(CHECKS[promise]) for promise in PROMISES}

    broken = [str(one) for one in verdicts.values() if one is not None and not isinstance(one, Undecided)]
    assert not broken
    assert sum(one is None for one in verdicts.values()) > len(PROMISES) / 2
    assert asked  # it was this family's
