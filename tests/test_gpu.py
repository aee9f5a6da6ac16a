"""The same promises on an accelerator: `pytest -m gpu`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import cl_zoo
from cl_zoo.contract.plugins import load_class
from cl_zoo.names import METHODS, installed, parse_stack

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
TINY = {
    "benchmark": "cl_zoo.testing:load_tiny",
    "backbone": "cl_zoo.testing:load_tiny_backbone",
    "device": "cuda",
}


NAMES = [one.name for one in installed(METHODS) if one.distribution == "cl-zoo"]


@pytest.mark.parametrize("method", [*NAMES, "hide[variant=released]", "moelora+ewc", "olora+lwf"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_method_trains_and_answers_on_the_accelerator(tmp_path: Path, method: str, precision: str) -> None:
    if getattr(load_class(parse_stack(method)[0].name), "probe", False):
        pytest.skip("only measures")
    result = cl_zoo.run(method, recipe={"precision": precision}, out=str(tmp_path), **TINY)

    assert result.matrix.last is not None
    assert result.manifest["environment"]["accelerator"] == torch.cuda.get_device_name()


@pytest.mark.parametrize("method", ["finetune", "modeltailor", "hide"])
@pytest.mark.parametrize("compiled", ["off", "on"])
def test_a_method_trains_and_answers_on_a_base_in_four_bits(
    tmp_path: Path, method: str, compiled: str
) -> None:
    pytest.importorskip("bitsandbytes")
    recipe = {"precision": "bf16", "quantization": "nf4"}
    result = cl_zoo.run(method, recipe=recipe, compile=compiled, out=str(tmp_path), **TINY)

    assert result.matrix.last is not None


def test_the_same_seed_gives_the_same_answers_on_the_accelerator(tmp_path: Path) -> None:
    first = cl_zoo.run("hide", out=str(tmp_path / "a"), **TINY)
    second = cl_zoo.run("hide", out=str(tmp_path / "b"), **TINY)

    assert first.folder is not None
    assert second.folder is not None
    for file in sorted((first.folder / "answers").iterdir()):
        assert file.read_bytes() == (second.folder / "answers" / file.name).read_bytes()


def test_bf16_trains_fp32_adapters_on_the_accelerator(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    result = cl_zoo.run("finetune", recipe={"precision": "bf16"}, out=str(tmp_path), **TINY)

    assert result.folder is not None
    (state,) = result.folder.glob("state-*")
    assert {tensor.dtype for tensor in load_file(state / "model.safetensors").values()} == {torch.float32}
