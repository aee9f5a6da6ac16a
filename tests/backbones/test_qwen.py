"""Qwen2.5-VL: images of any size, positions in three axes; what it shares with other families is in `test_families`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.backbones.qwen import load
from cl_zoo.batches import forward
from cl_zoo.errors import DataError, OptionError
from cl_zoo.tasks import Sample
from cl_zoo.testing import square, tiny_qwen

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen(tmp_path_factory.mktemp("qwen") / "model")


@pytest.fixture
def backbone(folder: Path) -> Backbone:
    return load(folder, CPU, torch.float32)


def sample(image: Image.Image | Path | None) -> Sample:
    return Sample("0", image, "What colour is it ?", "red")


@pytest.mark.parametrize(
    ("width", "height", "tokens"),
    [
        (16, 16, (2, 2)),
        (40, 24, (3, 5)),
        (24, 40, (5, 3)),
        (43, 20, (2, 5)),
        (8, 8, (2, 2)),
        (96, 96, (6, 6)),
    ],
)
def test_an_image_has_a_token_for_each_8_by_8_pixels_of_its_rounded_size(
    backbone: Backbone, width: int, height: int, tokens: tuple[int, int]
) -> None:
    """Sides are rounded to multiples of 8 (half to even); between 16² and 48² pixels in all."""
    batch = backbone.batch([sample(Image.new("RGB", (width, height), (9, 99, 199)))], answers=True)

    rows, columns = tokens
    assert batch.inputs["image_grid_thw"].tolist() == [[1, 2 * rows, 2 * columns]]
    assert int((batch.inputs["input_ids"] == backbone.model.config.image_token_id).sum()) == rows * columns
    assert batch.spans == (rows * columns,)
    assert batch.inputs["pixel_values"].shape == (rows * columns, 4, 16)


def test_the_prompt_is_the_familys(backbone: Backbone) -> None:
    batch = backbone.batch([sample(square(0)[0])], answers=True)

    pads = " ".join(["<|image_pad|>"] * 4)
    assert backbone.tokenizer.decode(batch.inputs["input_ids"][0]) == (
        "<|im_start|> system You are a helpful assistant. <|im_end|> "
        f"<|im_start|> user <|vision_start|> {pads} <|vision_end|> What colour is it ? <|im_end|> "
        "<|im_start|> assistant red"
    )
    assert batch.targets is not None
    assert backbone.tokenizer.decode(batch.targets[0]) == "red <|im_end|>"


def test_tokens_of_an_image_are_told_from_those_of_text(backbone: Backbone) -> None:
    batch = backbone.batch([sample(square(0)[0]), sample(None)], answers=True)

    kinds, ids = batch.inputs["mm_token_type_ids"], batch.inputs["input_ids"]
    assert torch.equal(kinds.bool(), ids == backbone.model.config.image_token_id)
    assert "position_ids" not in batch.inputs  # the model counts them in three axes
    assert "mm_token_type_ids" not in backbone.batch([sample(None)], answers=True).inputs


@torch.no_grad()
def test_where_a_patch_stands_matters(backbone: Backbone) -> None:
    """Two images with the same patches in another order: another answer, unlike for a bag of patches."""
    image = Image.new("RGB", (48, 16), (250, 250, 250))
    image.paste((220, 30, 30), (0, 0, 16, 16))
    one = forward(backbone.model, backbone.batch([sample(image)], answers=True)).logits
    other = forward(
        backbone.model, backbone.batch([sample(image.rotate(90, expand=True))], answers=True)
    ).logits

    assert (one - other).abs().max() > 1e-3


def test_features_of_an_image_are_the_same_bits_in_any_company(folder: Path) -> None:
    image, other = Image.new("RGB", (40, 24), (9, 99, 199)), square(1)[0]

    (alone,) = load(folder, CPU, torch.float32).encode([image])
    _, together = load(folder, CPU, torch.float32).encode([other, image])

    assert torch.equal(alone, together)


def test_the_aspect_of_an_image_is_kept(backbone: Backbone) -> None:
    backbone.adjust(image_aspect="keep")

    with pytest.raises(
        OptionError, match=r"--image-aspect pad: backbone qwen2\.5-vl does not do that; known: keep"
    ):
        backbone.adjust(image_aspect="pad")


def test_an_image_that_is_too_narrow_is_named(backbone: Backbone, tmp_path: Path) -> None:
    file = tmp_path / "line.png"
    Image.new("RGB", (300, 1)).save(file)

    with pytest.raises(
        DataError, match=r"image .*line\.png: absolute aspect ratio must be smaller than 200.*; leave it out"
    ):
        backbone.batch([sample(file)], answers=True)


def test_the_merger_is_back_in_its_place_after_an_image_was_looked_at(backbone: Backbone) -> None:
    merger = backbone.projector

    backbone.encode([square(0)[0]])

    assert backbone.projector is merger
