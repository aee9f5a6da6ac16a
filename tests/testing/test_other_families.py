"""Promises of methods on backbones that cut images into tiles: the check itself runs on a LLaVA."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.backbones.internvl import load_35
from cl_zoo.backbones.llava_next import load as load_llava_next
from cl_zoo.backbones.llava_onevision import load as load_onevision
from cl_zoo.testing import tiny_internvl, tiny_llava_next, tiny_llava_onevision
from cl_zoo.testing.conformance import trials
from cl_zoo.testing.conformance.check import verdicts
from cl_zoo.testing.conformance.moments import ConformanceError
from cl_zoo.testing.streams import tiny_files

FAMILIES: dict[str, tuple[Callable[[Path], Path], Callable[..., Backbone]]] = {
    "llava-next": (tiny_llava_next, load_llava_next),
    "llava-onevision": (tiny_llava_onevision, load_onevision),
    "internvl3.5": (lambda folder: tiny_internvl(folder, qwen3=True, tiles=True), load_35),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["finetune", "hide", "l2p", "branchlora"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_method_keeps_its_promises_on_a_backbone_in_tiles(
    family: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, load = FAMILIES[family]
    made = load(write(tmp_path / "model"), torch.device("cpu"), torch.float32)
    made.adjust(features=str(tiny_files() / "clip"))
    _ = made.features  # shared by the copies, as the check has it
    asked: list[Path] = []
    monkeypatch.setattr(trials, "pristine", lambda folder: asked.append(folder) or made)

    found = list(verdicts(method, {}))

    assert [str(verdict) for _, verdict in found if isinstance(verdict, ConformanceError)] == []
    assert asked
    assert any(verdict is None for _, verdict in found)
