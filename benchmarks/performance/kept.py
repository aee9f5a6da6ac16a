"""What a training step keeps for its backward pass, counted, against the forecast of it.

    python benchmarks/performance/kept.py [--shapes llava-1.5-7b,…] [--methods a,b] --json FILE

Two kinds of rows, each with and without gradient checkpointing:

* **published shapes**: the decoder of a model of published size with LoRA of the recipe's rank, forward and backward, on tensors without values, in bf16, for micro-batches of
  1, 4 and 16 samples of `--tokens`. Nothing is computed, so it takes seconds and no memory; what is counted is what a step of that size would hold. Two and three layers are
  counted and continued to all of them, since each layer adds the same.
* **tiny models**: a whole step of a method in the engine on the tests' model of each family, in fp32 with values.

`counted` is the most bytes at once of the tensors that forward and backward make, `forecast` what `cl-zoo forecast` calls activations. Both are for a CPU, whose dropout keeps its mask in
the type of the numbers; on an accelerator the mask has one byte. A kernel's own workspace and an allocator's rounding are in neither.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from contenders import Engine
from ground import benchmark_ground
from results import carried_out, given, machine, options, positive, versions
from tensors import Held
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from cl_zoo import Backbone, testing
from cl_zoo.engine.learning import recompute_activations
from cl_zoo.names import BACKBONES, load, split
from cl_zoo.nn import BankConfig, ExpertBank
from cl_zoo.nn.budget import adapted
from cl_zoo.planning.forecast.activations import activations, decoder_of
from cl_zoo.planning.sizes import published, shapes
from cl_zoo.processes import World
from cl_zoo.recipe.recipe import Recipe, build_recipe

MICRO = (1, 4, 16)
LIBRARIES = ("cl-zoo", "torch", "transformers", "peft")
TINY = {
    "llava": "tiny_checkpoint",
    "internvl": "tiny_internvl",
    "qwen2.5-vl": "tiny_qwen",
    "qwen3-vl": "tiny_qwen3",
    "smolvlm2": "tiny_smolvlm",
    "llava-next": "tiny_llava_next",
    "llava-onevision": "tiny_llava_onevision",
}
"""Families, and who writes a tiny model of each in `cl_zoo.testing`."""
ALL_MICRO = "llava-1.5-7b"
"""The published shapes that are counted with every micro-batch; the others with the middle one."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, write and print; returns the exit code, 2 where the user can put something right."""
    return carried_out(_parse(arguments), measure, lambda result: table(result["rows"]))


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """The complete result."""
    rows = [*_published(asked), *_tiny(asked)]
    return {"command": asked.command, "rows": rows, "machine": machine(), "versions": versions(LIBRARIES)}


def _published(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for name in asked.shapes:
        backbone = shapes(name)
        for micro in MICRO if name == ALL_MICRO else MICRO[1:2]:
            for checkpointing in (False, True):
                recipe = build_recipe(
                    {"precision": "bf16", "checkpointing": checkpointing, "micro_batch": micro}
                )
                two, three = (fake_step(backbone, recipe, asked.tokens, layers) for layers in (2, 3))
                decoder = decoder_of(backbone)
                trained = ranks(backbone, recipe)
                told = activations(
                    decoder, recipe, samples=micro, tokens=asked.tokens, answer=0, learning=trained, mask=2
                )
                counted = two + (decoder.layers - 2) * (three - two)
                yield row(name, "LoRA", micro, asked.tokens, checkpointing, counted, told)


def fake_step(backbone: Backbone, recipe: Recipe, tokens: int, layers: int) -> int:
    """The most bytes of forward and backward of a decoder with so many layers, on tensors without values."""
    bank = _bank(backbone, recipe, layers)
    if recipe.checkpointing:
        recompute_activations(bank.model)
    mode = FakeTensorMode()
    _without_values(bank, mode)
    samples, width = recipe.micro_batch or recipe.global_batch, bank.model.config.hidden_size
    with mode:
        words = torch.empty(samples, tokens, width, dtype=torch.bfloat16, requires_grad=True)
        inputs = {
            "inputs_embeds": words,
            "attention_mask": torch.zeros(samples, 1, tokens, tokens, dtype=torch.bool),
            "position_ids": torch.zeros(samples, tokens, dtype=torch.long),
        }
        with Held() as held:
            with torch.autocast("cpu", torch.bfloat16):
                states = bank.model(**inputs, use_cache=False).last_hidden_state
            states[:, -1:].sum().backward()
    return held.peak


def ranks(backbone: Backbone, recipe: Recipe) -> int:
    """Parameters of one LoRA on all layers."""
    bank = _bank(backbone, recipe, 1)
    layers = backbone.model.config.get_text_config().num_hidden_layers
    return layers * sum(weight.numel() for weight in bank.parameters() if weight.requires_grad)


def _bank(backbone: Backbone, recipe: Recipe, layers: int) -> ExpertBank:
    """The first layers of a decoder on the meta device, in bf16, with one expert."""
    language = backbone.model.get_submodule(backbone.decoder_at)
    config = copy.deepcopy(language.config)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    adapter = recipe.adapter
    targets = adapted(backbone, adapter.targets).replace(rf".*{backbone.decoder_at.rpartition('.')[2]}\.", "")
    with torch.device("meta"):
        decoder = type(language)(config).to(torch.bfloat16).requires_grad_(False)
        about = BankConfig(
            target_modules=targets, rank=adapter.rank, scale=adapter.scale, dropout=adapter.dropout
        )
        bank = ExpertBank(decoder, about, "t0")
    return bank.train()


def _without_values(model: nn.Module, mode: FakeTensorMode) -> None:
    """Let the tensors of a model on the meta device pass for tensors of the CPU."""
    convert: Callable[..., Any] = mode.fake_tensor_converter.from_meta_and_device
    cpu = torch.device("cpu")
    for module in model.modules():
        for name, weight in list(module._parameters.items()):
            if weight is not None:
                learns = weight.requires_grad
                module._parameters[name] = nn.Parameter(convert(mode, weight.data, cpu), requires_grad=learns)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = convert(mode, buffer, cpu)


def _tiny(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for family in asked.families:
        with tempfile.TemporaryDirectory() as folder:
            clip = str(testing.tiny_clip(Path(folder) / "clip"))
            where = getattr(testing, TINY[family])(Path(folder) / "model")
            loader = load(BACKBONES, family)
            for method in asked.methods:
                for checkpointing in (False, True):
                    backbone = loader(where, torch.device("cpu"), torch.float32)
                    backbone.adjust(features=clip)
                    yield _step(family, method, backbone, checkpointing)


def _step(family: str, method: str, backbone: Backbone, checkpointing: bool) -> dict[str, Any]:
    """One step of a method's second task on a tiny model, in one micro-batch."""
    ground = benchmark_ground(f"tiny {family}", testing.tiny_benchmark(size=16), backbone, World("cpu"))
    ground = replace(ground, recipe=ground.recipe.model_copy(update={"checkpointing": checkpointing}))
    engine = Engine(method, ground, 4)
    if checkpointing:
        recompute_activations(engine.backbone.model)
    engine.step(0)
    learner = engine.learner
    batch = engine.backbone.batch([learner.pool[place] for place in engine.places[0]], answers=True)
    learner.optimizer.zero_grad(set_to_none=True)
    with Held() as held:
        terms = learner._terms(batch)
        torch.stack([term.float().mean() for term in terms.values()]).sum().backward()
    trained = {part: sum(weight.numel() for weight in ws) for part, ws in learner.parts.items()}
    assert batch.targets is not None
    samples, tokens = batch.inputs["input_ids"].shape
    told = activations(
        decoder_of(backbone),
        ground.recipe,
        samples=samples,
        tokens=tokens,
        answer=batch.targets.shape[1],
        adapted=bool(trained.get("adapters")),
        learning=sum(trained.values()),
        mask=4,
    )
    return row(f"tiny {family}", method, samples, tokens, checkpointing, held.peak, told)


def row(
    model: str, method: str, micro: int, tokens: int, checkpointing: bool, counted: int, told: float
) -> dict[str, Any]:
    """One line of the table."""
    return {
        "model": model,
        "method": method,
        "micro_batch": micro,
        "tokens": tokens,
        "checkpointing": checkpointing,
        "counted": counted,
        "forecast": round(told),
        "ratio": told / counted,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as text."""
    lines = [
        f"{'model':<26}{'method':<12}{'micro':>6}{'tokens':>7}{'  checkpointing':<16}{'counted':>12}{'forecast':>12}{'ratio':>8}"
    ]
    for one in rows:
        unit, name = (2**30, "GiB") if one["counted"] > 2**27 else (2**10, "KiB")
        sizes = "".join(f"{one[key] / unit:>8.2f} {name}" for key in ("counted", "forecast"))
        lines.append(
            f"{one['model']:<26}{one['method']:<12}{one['micro_batch']:>6}{one['tokens']:>7}"
            f"  {'on' if one['checkpointing'] else 'off':<14}{sizes}{one['ratio']:>8.3f}"
        )
    return "\n".join(lines)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    def names(text: str) -> list[str]:
        return [name.strip() for name in split(text, ",") if name.strip()]

    parser = options(__doc__)
    parser.add_argument("--shapes", type=names, default=published(), help="published models; default: all")
    parser.add_argument("--tokens", type=positive, default=640, help="of a sample, for published shapes")
    parser.add_argument("--families", type=names, default=list(TINY), help="of tiny models; default: all")
    parser.add_argument("--methods", type=names, default=["finetune"], help="on tiny models")
    return given(parser, "kept.py", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
