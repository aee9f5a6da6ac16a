"""Random models that cut an image into tiles, as `tiny_models` has them for other families: a LLaVA-NeXT and a LLaVA-OneVision.

>>> folder = tiny_llava_next(Path("tiny-llava-next"))  # then: --backbone llava-next:tiny-llava-next
"""

from __future__ import annotations

from pathlib import Path

from cl_zoo.testing.tiny_models import CHAT, _decoder, _tower, _write, tiny_tokenizer

PINPOINTS = [[16, 32], [32, 16], [32, 32], [48, 16], [16, 48]]
"""Resolutions of LLaVA-NeXT with tiles of 16 pixels in the place of 336, (height, width)."""
SQUARES = [[16 * rows, 16 * columns] for rows in (1, 2, 3) for columns in (1, 2, 3)]
"""As LLaVA-OneVision has them, up to 3 × 3 tiles in the place of 6 × 6."""


def tiny_llava_next(folder: Path, *, layers: int = 2, seed: int = 0, mistral: bool = False) -> Path:
    """Write a random LLaVA-NeXT as an ordinary checkpoint folder: tiles of 16 × 16 pixels, 4 patches each.

    Args:
        mistral: with a Mistral in the place of the Llama.
    """
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaNextConfig,
        LlavaNextImageProcessor,
        MistralConfig,
    )

    tokenizer = tiny_tokenizer(more=("[INST]", "[/INST]"))
    vision = CLIPVisionConfig(
        **_tower(),
        patch_size=8,
    )
    config = LlavaNextConfig(
        vision_config=vision,
        text_config=(MistralConfig if mistral else LlamaConfig)(**_decoder(tokenizer, layers)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    processor = LlavaNextImageProcessor(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_grid_pinpoints=PINPOINTS
    )
    return _write(folder, "LlavaNextForConditionalGeneration", config, tokenizer, processor, seed)


def tiny_llava_onevision(folder: Path, *, layers: int = 2, seed: int = 0) -> Path:
    """Write a random LLaVA-OneVision as an ordinary checkpoint folder: tiles of 16 × 16 pixels, 4 patches each, and at most the tokens of four."""
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionImageProcessor,
        Qwen2Config,
        SiglipVisionConfig,
    )

    tokenizer = tiny_tokenizer("<image>", "<|im_end|>", None, ("<video>", *CHAT))
    vision = SiglipVisionConfig(
        **_tower(),
        patch_size=8,
        vision_use_head=False,
    )
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=Qwen2Config(**_decoder(tokenizer, layers)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=SQUARES,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_4",
    )
    processor = LlavaOnevisionImageProcessor(size={"height": 16, "width": 16}, image_grid_pinpoints=SQUARES)
    return _write(folder, "LlavaOnevisionForConditionalGeneration", config, tokenizer, processor, seed)
