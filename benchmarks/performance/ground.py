"""What the contenders of `train_step.py` stand on: models of three sizes, their recipe and their samples."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cl_zoo import Backbone, Benchmark, Recipe, Sample
from cl_zoo.backbones.llava import Llava
from cl_zoo.errors import OptionError
from cl_zoo.names import BACKBONES, BENCHMARKS, load
from cl_zoo.processes import World
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.testing import TEMPLATE, WORDS, tiny_backbone, tiny_benchmark, tiny_clip, tiny_tokenizer

MINI = Path(__file__).parents[1] / "cl_zoo_bench_mini" / "base"
DISTINCT = 4
"""Distinct batches that the measured steps go through in turn."""


@dataclass(frozen=True)
class Shapes:
    """Sizes of a random LLaVA and of its batches; `tokens` are the model's inputs per sample, image and answer included."""

    hidden: int
    layers: int
    heads: int
    inner: int
    vision_hidden: int
    vision_layers: int
    vision_heads: int
    image: int
    patch: int
    vocabulary: int
    tokens: int
    answer: int
    batch: int
    precision: str


SIZES = {
    "small": Shapes(768, 8, 12, 2048, 768, 2, 12, 224, 14, 32000, 320, 8, 8, "fp32"),
    "7b": Shapes(4096, 32, 32, 11008, 1024, 24, 16, 336, 14, 32064, 640, 8, 4, "bf16"),
}


@dataclass
class Ground:
    """What all contenders share: the base, the recipe, and the samples of two tasks, whole batches of them."""

    origin: str
    backbone: Backbone
    recipe: Recipe
    first: list[Sample]
    second: list[Sample]
    world: World

    def copy(self) -> Backbone:
        """A backbone of its own around the same frozen weights."""
        base = self.backbone
        learns = {id(weight) for weight in base.projector.parameters()}
        shared = {id(weight): weight for weight in base.model.parameters() if id(weight) not in learns}
        model = copy.deepcopy(base.model, shared)  # the memo: what is in it counts as copied
        return base.with_model(model)


def make_ground(
    size: str, shapes: str, world: World, folder: Path, changes: Mapping[str, Any] | None = None
) -> Ground:
    """The base and the samples of a size; `shapes` says whose a `tiny` one has, files go to `folder`.

    Args:
        changes: recipe values in the place of the size's own.
    """
    changes = changes or {}
    if size != "tiny":
        return _random_ground(SIZES[size], world, folder, changes)
    if shapes == "mini" or (shapes == "auto" and MINI.is_dir()):
        benchmark = load(BENCHMARKS, "mini")()
        backbone = load(BACKBONES, "mini")(None, world.device, torch.float32)
        return benchmark_ground("mini", benchmark, backbone, world, changes)
    backbone = tiny_backbone(folder, device=str(world.device))
    size_of_task = max(16, DISTINCT * changes.get("global_batch", 0))
    return benchmark_ground("cl_zoo.testing", tiny_benchmark(size=size_of_task), backbone, world, changes)


def benchmark_ground(
    origin: str, benchmark: Benchmark, backbone: Backbone, world: World, changes: Mapping[str, Any]
) -> Ground:
    """A backbone with the recipe and the first two tasks of a benchmark."""
    recipe = build_recipe(benchmark.recipe, changes)
    first, second = benchmark.stream()[:2]
    count = recipe.global_batch * DISTINCT
    if count > min(len(first.train), len(second.train)):
        raise OptionError(
            f"--batch {recipe.global_batch}: {origin} has no {DISTINCT} batches of that size in a task; take at most {min(len(first.train), len(second.train)) // DISTINCT}"
        )
    return Ground(
        origin,
        backbone,
        recipe,
        list(first.train[: recipe.global_batch]),
        list(second.train[:count]),
        world,
    )


def _random_ground(shapes: Shapes, world: World, folder: Path, changes: Mapping[str, Any]) -> Ground:
    shapes = replace(shapes, batch=changes.get("global_batch", shapes.batch))
    dtype = torch.bfloat16 if shapes.precision == "bf16" else torch.float32
    backbone = random_backbone(shapes, world.device, dtype, folder)
    recipe = build_recipe({"global_batch": shapes.batch, "precision": shapes.precision}, changes)
    first = noise(shapes, shapes.batch, seed=1)
    return Ground("random", backbone, recipe, first, noise(shapes, shapes.batch * DISTINCT, seed=2), world)


def random_backbone(shapes: Shapes, device: torch.device, dtype: torch.dtype, folder: Path) -> Backbone:
    """A LLaVA of the given sizes with random weights; its words are those of the tests' tokenizer."""
    from transformers import AutoModelForImageTextToText, CLIPImageProcessor

    tokenizer = tiny_tokenizer()
    config = _config(shapes, tokenizer)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    crop = {"height": shapes.image, "width": shapes.image}
    processor = CLIPImageProcessor(size={"shortest_edge": shapes.image}, crop_size=crop)
    clip = str(tiny_clip(folder / "clip"))
    return Llava("random", model, tokenizer, processor, template=TEMPLATE, features=clip)


def _config(shapes: Shapes, tokenizer: Any) -> Any:
    """transformers' description of a LLaVA of these sizes with this tokenizer."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    vision = CLIPVisionConfig(
        hidden_size=shapes.vision_hidden,
        intermediate_size=4 * shapes.vision_hidden,
        num_hidden_layers=shapes.vision_layers,
        num_attention_heads=shapes.vision_heads,
        image_size=shapes.image,
        patch_size=shapes.patch,
    )
    text = LlamaConfig(
        hidden_size=shapes.hidden,
        intermediate_size=shapes.inner,
        num_hidden_layers=shapes.layers,
        num_attention_heads=shapes.heads,
        num_key_value_heads=shapes.heads,
        vocab_size=shapes.vocabulary,
        max_position_embeddings=2048,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    image = tokenizer.convert_tokens_to_ids("<image>")
    return LlavaConfig(vision_config=vision, text_config=text, image_token_id=image, vision_feature_layer=-2)


def noise(shapes: Shapes, count: int, *, seed: int) -> list[Sample]:
    """Samples of random words about random pixels, every one exactly as long as `shapes` says."""
    draw = np.random.default_rng(seed)
    words = [word for word in WORDS if not word.endswith(":")]
    patches = (shapes.image // shapes.patch) ** 2
    # the template adds USER: and ASSISTANT:, the end token is a target but no input
    asked = shapes.tokens - patches - 2 - (shapes.answer - 1)
    samples = []
    for place in range(count):
        pixels = draw.integers(0, 256, (shapes.image, shapes.image, 3), dtype=np.uint8)
        prompt, answer = (" ".join(draw.choice(words, n)) for n in (asked, shapes.answer - 1))
        samples.append(Sample(f"{place:06d}", Image.fromarray(pixels), prompt, answer))
    return samples
