"""LLaVA-NeXT: an image whole and in tiles, its rows and their ends; what it shares with other families is in `test_families`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from stripes import stripes
from torch import Tensor

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.backbones.checkpoints import read_by
from cl_zoo.backbones.llava_next import load, size_in
from cl_zoo.backbones.templates import TEMPLATES
from cl_zoo.batches import Batch, forward
from cl_zoo.errors import DataError, OptionError
from cl_zoo.nn.prompts import Prompted
from cl_zoo.tasks import Sample
from cl_zoo.testing import square, tiny_llava_next

CPU = torch.device("cpu")
SIZES = [
    (16, 16),
    (32, 32),
    (40, 24),
    (24, 40),
    (43, 20),
    (48, 16),
    (16, 50),
    (300, 90),
    (17, 31),
    (1, 300),
    (3000, 1),
]
"""Width and height of images of many proportions, one row of pixels among them."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava_next(tmp_path_factory.mktemp("next") / "model")


@pytest.fixture
def backbone(folder: Path) -> Backbone:
    return load(folder, CPU, torch.float32)


def sample(image: Image.Image | None, name: str = "0") -> Sample:
    return Sample(name, image, "What colour is it ?", "red")


def processor(backbone: Backbone) -> Any:
    """transformers' own, around the backbone's tokenizer and image processor."""
    from transformers import LlavaNextProcessor

    return LlavaNextProcessor(
        backbone.image_processor,
        backbone.tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_prompt_is_token_for_token_and_pixel_for_pixel_that_of_the_processor(
    backbone: Backbone, size: tuple[int, int]
) -> None:
    image, text = stripes(*size), "USER: <image> What colour is it ? ASSISTANT:"
    backbone.adjust(template="USER: {prompt} ASSISTANT:")

    theirs = processor(backbone)(images=[image], text=[text], return_tensors="pt")
    ours = backbone.batch([sample(image)], answers=False).inputs

    written = ours["input_ids"][0].tolist()
    assert written[len(backbone._start) :] == theirs["input_ids"][0].tolist()
    assert torch.equal(backbone._pixels(image)["pixel_values"], theirs["pixel_values"])
    assert torch.equal(ours["image_sizes"], theirs["image_sizes"])
    assert written.count(backbone.model.config.image_token_id) == backbone.image_tokens(*size)


@pytest.mark.parametrize(
    ("size", "tiles", "tokens"),
    [
        ((16, 16), 2, 4 + 2 * (2 + 1)),  # on 32 × 16, of which the middle half is not padding
        ((32, 32), 4, 4 + 4 * (4 + 1)),
        (
            (40, 24),
            4,
            4 + 2 * (4 + 1),
        ),  # 32 × 19.2 of 32 × 32: a row of tokens above and one below are padding
        ((16, 48), 3, 4 + 6 * (2 + 1)),
    ],
)
def test_tokens_are_those_of_the_whole_and_of_rows_that_each_have_an_end(
    backbone: Backbone, size: tuple[int, int], tiles: int, tokens: int
) -> None:
    """A tile of 16 × 16 pixels is 2 × 2 patches of 8."""
    batch = backbone.batch([sample(stripes(*size)), sample(None, "1")], answers=True)

    ids = batch.inputs["input_ids"]
    assert (ids == backbone.model.config.image_token_id).sum(1).tolist() == [tokens, 0]
    assert batch.spans == (1 + tiles,)
    assert batch.inputs["pixel_values"].shape == (1 + tiles, 1, 5, 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_kept_features_tell_the_size_of_their_image_in_every_precision(
    folder: Path, dtype: torch.dtype
) -> None:
    backbone = load(folder, CPU, dtype)
    pixels = backbone._pixels(square(0)[0])
    for height, width in ((16, 16), (1, 3000), (4095, 257), (65535, 40001)):
        (kept,) = backbone.look([{**pixels, "image_sizes": torch.tensor([[height, width]])}])

        assert kept.dtype == dtype
        assert size_in(kept) == (height, width)


def test_features_of_an_image_are_the_same_bits_in_any_company(folder: Path) -> None:
    image, other = stripes(40, 24), square(1)[0]

    (alone,) = load(folder, CPU, torch.float32).encode([image])
    _, together = load(folder, CPU, torch.float32).encode([other, image])

    assert torch.equal(alone, together)


@torch.no_grad()
def test_images_of_the_same_tiles_and_another_size_are_told_apart(backbone: Backbone) -> None:
    """40 × 24 and 32 × 32 pixels have four tiles each; what is padding differs."""
    samples = [sample(None, "2"), sample(stripes(40, 24)), sample(stripes(32, 32), "1")]
    batch = backbone.batch(samples, answers=True)

    for place in (1, 2):
        row, alone = batch.rows([place]), backbone.batch([samples[place]], answers=True)
        logits = forward(backbone.model, alone).logits
        torch.testing.assert_close(forward(backbone.model, row).logits, logits, rtol=0, atol=1e-5)
    assert batch.rows([2]).inputs["image_sizes"].tolist() == [[32, 32]]


def test_a_mistral_is_asked_as_it_was_taught(folder: Path, tmp_path: Path) -> None:
    mistral = load(tiny_llava_next(tmp_path / "mistral", mistral=True), CPU, torch.float32)

    assert load(folder, CPU, torch.float32).template == TEMPLATES["vicuna_v1"]
    text = mistral.tokenizer.decode(mistral.batch([sample(None)], answers=True).inputs["input_ids"][0])
    assert text.endswith("[INST] What colour is it ? [/INST] red")


def test_an_image_keeps_its_aspect_and_several_are_refused(backbone: Backbone) -> None:
    with pytest.raises(
        OptionError, match="--image-aspect pad: backbone llava-next does not do that; known: keep"
    ):
        backbone.adjust(image_aspect="pad")
    two = Sample("7", square(0)[0], "What ?", "red", more_images=(square(1)[0],))
    with pytest.raises(DataError, match="sample '7': has 2 images where backbone llava-next was taught one"):
        backbone.batch([two], answers=True)


class Two(Prompted):
    """Two soft prompts that are the embeddings of two tokens."""

    def __init__(self, backbone: Backbone, tokens: Tensor) -> None:
        super().__init__(backbone)
        self.rows, self.own = 0, self.model.get_input_embeddings()(tokens)

    def prepare(self, batch: Batch) -> None:
        self.rows = len(batch)

    def soft_prompts(self) -> Tensor:
        return self.own.expand(self.rows, -1, -1)


@torch.no_grad()
def test_a_soft_prompt_that_is_a_tokens_embedding_reads_as_the_token(backbone: Backbone) -> None:
    tokens = torch.tensor(backbone.tokenizer.convert_tokens_to_ids(["red", "blue"]))
    batch = backbone.batch([sample(stripes(40, 24))], answers=True)

    soft = forward(Two(backbone, tokens), batch).logits
    ids = batch.inputs["input_ids"][0]
    hard = torch.cat([ids[:1], tokens, ids[1:]])[None]
    written = {
        "input_ids": hard,
        "attention_mask": torch.ones_like(hard),
        "position_ids": torch.arange(len(hard[0]))[None],
    }
    plain = backbone.model(**{**batch.inputs, **written}, use_cache=False).logits

    torch.testing.assert_close(soft, plain, rtol=0, atol=1e-5)


def test_a_name_that_begins_as_anothers_is_its_own() -> None:
    assert read_by("llava-next") == "llava_next"
    assert read_by("llava-1.5-7b") == read_by("llava") == "llava"
    assert read_by("qwen2.5-vl") == "qwen2_5_vl"
    assert read_by("mini") is None
