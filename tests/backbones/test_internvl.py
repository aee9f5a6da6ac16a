"""InternVL: tiles and the frame around them; what it shares with other families is in `test_families`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.backbones.internvl import load
from cl_zoo.batches import Batch
from cl_zoo.engine.streams import TaskBatches
from cl_zoo.errors import BackboneError
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.tasks import Sample
from cl_zoo.testing import square, tiny_internvl

CPU = torch.device("cpu")
WIDE = Image.new("RGB", (48, 16), (250, 250, 250))
WIDE.paste((220, 30, 30), (0, 0, 8, 16))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_internvl(tmp_path_factory.mktemp("internvl") / "model")


@pytest.fixture(scope="module")
def tiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_internvl(tmp_path_factory.mktemp("tiled") / "model", tiles=True)


def image_tokens(backbone: Backbone, *images: Image.Image | None) -> tuple[list[int], Batch]:
    samples = [Sample(str(i), image, "What colour is it ?", "red") for i, image in enumerate(images)]
    batch = backbone.batch(samples, answers=True)
    return (batch.inputs["input_ids"] == backbone.model.config.image_token_id).sum(1).tolist(), batch


def test_a_tile_is_a_quarter_as_many_tokens_as_patches(folder: Path) -> None:
    """16 × 16 pixels in patches of 4 × 4 are 16 patches, four of which make a token."""
    tokens, batch = image_tokens(load(folder, CPU, torch.float32), square(0)[0], None, WIDE)

    assert tokens == [4, 0, 4]
    assert batch.inputs["pixel_values"].shape == (2, 17, 16)
    assert batch.spans == (1, 1)


def test_where_the_checkpoint_wants_tiles_a_wide_image_has_several_and_a_thumbnail(tiled: Path) -> None:
    """48 × 16 pixels are three tiles in a row and the whole; a square of the size of a tile is one."""
    tokens, batch = image_tokens(load(tiled, CPU, torch.float32), square(0)[0], WIDE)

    assert tokens == [4, 16]
    assert batch.spans == (1, 4)
    assert batch.inputs["pixel_values"].shape == (5, 17, 16)


def test_a_sample_of_a_tasks_batches_takes_all_its_tiles_along(tiled: Path) -> None:
    backbone = load(tiled, CPU, torch.float32)
    samples = [Sample(str(i), one, "What ?", "red") for i, one in enumerate((square(0)[0], WIDE, None, WIDE))]
    batches = TaskBatches(backbone, samples, build_recipe({"global_batch": 4}))

    one = batches[0].rows([3])

    assert one.spans == (4,)
    assert torch.equal(one.inputs["pixel_values"], batches[0].inputs["pixel_values"][5:])


def test_the_prompt_is_the_familys(folder: Path) -> None:
    backbone = load(folder, CPU, torch.float32)
    shown, blind = (Sample("0", image, "What colour is it ?", "red") for image in (square(0)[0], None))

    texts = [
        backbone.tokenizer.decode(backbone.batch([one], answers=False).inputs["input_ids"][0])
        for one in (shown, blind)
    ]

    tiles = " ".join(["<IMG_CONTEXT>"] * 4)
    assert texts[0] == (
        f"<|im_start|> user <img> {tiles} </img> What colour is it ? <|im_end|> <|im_start|> assistant"
    )
    assert texts[1] == "<|im_start|> user What colour is it ? <|im_end|> <|im_start|> assistant"
    targets = backbone.batch([shown], answers=True).targets
    assert targets is not None
    assert backbone.tokenizer.decode(targets[0]) == "red <|im_end|>"


def test_an_image_is_stretched_unless_another_way_is_chosen(folder: Path) -> None:
    backbone = load(folder, CPU, torch.float32)
    assert backbone.image_aspect == "stretch"
    seen = {"stretch": backbone.encode([WIDE])[0]}
    for aspect in ("pad", "crop"):
        backbone.adjust(image_aspect=aspect)
        seen[aspect] = backbone.encode([WIDE])[0]

    small = WIDE.resize((16, 16), Image.Resampling.BICUBIC)
    torch.testing.assert_close(seen["stretch"], backbone.encode([small])[0], rtol=0, atol=0.05)
    assert not torch.allclose(seen["stretch"], seen["pad"], atol=0.05)
    assert not torch.allclose(seen["pad"], seen["crop"], atol=0.05)


def test_an_original_checkpoint_is_refused_with_its_conversion(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "internvl_chat"}))

    with pytest.raises(BackboneError, match=r"original InternVL checkpoint; take its conversion.*-hf"):
        load(tmp_path, CPU, torch.float32)
