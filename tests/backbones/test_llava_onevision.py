"""LLaVA-OneVision: tiles, the bound on their tokens, and images in company; what it shares with other families is in `test_families`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from stripes import stripes

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.backbones.llava_onevision import load
from cl_zoo.batches import forward
from cl_zoo.preflight.check import preflight
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.tasks import Sample
from cl_zoo.testing import square, tiny_benchmark, tiny_llava_onevision

CPU = torch.device("cpu")
SIZES = [
    (16, 16),
    (32, 32),
    (40, 24),
    (24, 40),
    (43, 20),
    (48, 48),
    (47, 40),
    (300, 90),
    (17, 31),
    (1, 300),
    (3000, 1),
]
"""Width and height of images of many proportions, one row of pixels among them."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava_onevision(tmp_path_factory.mktemp("onevision") / "model")


@pytest.fixture
def backbone(folder: Path) -> Backbone:
    return load(folder, CPU, torch.float32)


def sample(*images: Image.Image, name: str = "0") -> Sample:
    first, more = (images[0], images[1:]) if images else (None, ())
    return Sample(name, first, "What colour is it ?", "red", more_images=more)


def processor(backbone: Backbone) -> Any:
    """transformers' own, around the backbone's tokenizer and image processor."""
    from transformers import LlavaOnevisionProcessor
    from transformers.video_processing_utils import BaseVideoProcessor

    class NoVideo(BaseVideoProcessor):
        def __init__(self) -> None: ...

    return LlavaOnevisionProcessor(
        backbone.image_processor,
        backbone.tokenizer,
        NoVideo(),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_4",
    )


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_prompt_is_token_for_token_and_pixel_for_pixel_that_of_the_processor(
    backbone: Backbone, size: tuple[int, int]
) -> None:
    image, text = (
        stripes(*size),
        "<|im_start|> user <image> What colour is it ? <|im_end|> <|im_start|> assistant",
    )
    backbone.adjust(template="internvl")

    theirs = processor(backbone)(images=[image], text=[text], return_tensors="pt")
    ours = backbone.batch([sample(image)], answers=False).inputs

    assert ours["input_ids"].tolist() == theirs["input_ids"].tolist()
    assert torch.equal(backbone._pixels(image)["pixel_values"], theirs["pixel_values"])
    assert torch.equal(ours["image_sizes"], theirs["image_sizes"])
    assert torch.equal(ours["batch_num_images"], theirs["batch_num_images"])


@pytest.mark.parametrize(
    ("size", "tiles", "tokens"),
    [
        ((16, 16), 1, 4 + 2 * (2 + 1)),
        ((32, 32), 4, 4 + 4 * (4 + 1)),
        # 3 × 3 tiles are 6 × 6 tokens, 1.5 times too many on each side
        ((48, 48), 9, 4 + 4 * (4 + 1)),
        # of 4 × 6 tokens one more row would not be padding alone; 1.2 times too many on each side
        ((48, 32), 6, 4 + 3 * (4 + 1)),
    ],
)
def test_more_tokens_than_those_of_four_tiles_become_fewer(
    backbone: Backbone, size: tuple[int, int], tiles: int, tokens: int
) -> None:
    batch = backbone.batch([sample(stripes(*size))], answers=True)

    assert int((batch.inputs["input_ids"] == backbone.model.config.image_token_id).sum()) == tokens
    assert batch.spans == (1 + tiles,)


@torch.no_grad()
def test_an_image_in_company_is_one_tile_and_alone_it_is_many(backbone: Backbone) -> None:
    """Two tokens for each side of the tile, and the end of a row; the same image is looked at in both ways."""
    wide, red = stripes(40, 24), square(0)[0]
    samples = [sample(wide), sample(wide, red, name="1"), sample(name="2")]
    batch = backbone.batch(samples, answers=True)

    ids = batch.inputs["input_ids"] == backbone.model.config.image_token_id
    assert ids.sum(1).tolist() == [backbone.image_tokens(40, 24), 2 * (4 + 1), 0]
    assert batch.spans == (7, 1, 1)
    assert batch.inputs["batch_num_images"].tolist() == [1, 2, 0]
    for place, one in enumerate(samples):
        alone = forward(backbone.model, backbone.batch([one], answers=True)).logits
        torch.testing.assert_close(
            forward(backbone.model, batch.rows([place])).logits, alone, rtol=0, atol=1e-5
        )


def test_preflight_counts_images_in_company_as_a_batch_has_them(backbone: Backbone) -> None:
    """At the limit nothing is found; a token less, and every sample with two images is."""
    from dataclasses import replace

    two = sample(stripes(48, 48), stripes(40, 24))
    first, *_ = tiny_benchmark().tasks
    task = replace(first, train=[two], test=[two])
    longest = backbone.batch([two], answers=True).tokens + 1

    for allowed, count in ((longest, 0), (longest - 1, 1)):
        recipe = build_recipe({"max_tokens": allowed})
        backbone.adjust(max_tokens=allowed)
        assert preflight([task], backbone, recipe).count == count
