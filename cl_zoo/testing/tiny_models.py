"""Random models of the very classes of the real ones, small enough to be made on the spot: a LLaVA, an InternVL, a Qwen2.5-VL,
a Qwen3-VL, a SmolVLM2 and a CLIP, each an ordinary checkpoint folder.

    >>> folder = tiny_qwen(Path("tiny-qwen"))  # then: --backbone qwen2.5-vl:tiny-qwen
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

WORDS = (
    "USER: ASSISTANT: What colour is it ? Where the square left right Answer with one word . Say side in short "
    "red green blue grey a large small one two three and"
).split()
"""What the tiny tokenizer knows, beside the words that are added to it."""

CHAT = ("<|im_start|>", "<|im_end|>", "system", "user", "assistant", "You", "are", "helpful", "assistant.")
"""What InternVL's and Qwen's templates say."""


def tiny_tokenizer(
    image: str = "<image>", end: str = "</s>", start: str | None = "<s>", more: Sequence[str] = ()
) -> Any:
    """A word-level tokenizer with pad, end, image and unknown tokens; the end token has the highest id, as CLIP wants it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<unk>", start or "<s>", image, *dict.fromkeys([*WORDS, *more])]
    names = [*(name for name in names if name != end), end]
    raw = Tokenizer(models.WordLevel({name: place for place, name in enumerate(names)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token=start,
        eos_token=end,
        additional_special_tokens=[image, *(one for one in more if one.startswith("<") and one != end)],
        padding_side="left",
    )


def tiny_checkpoint(folder: Path, *, layers: int = 2, seed: int = 0) -> Path:
    """Write a random LLaVA of about 40,000 parameters as an ordinary checkpoint folder."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, LlamaConfig, LlavaConfig

    tokenizer = tiny_tokenizer()
    vision = CLIPVisionConfig(
        **_tower(),
        patch_size=8,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**_decoder(tokenizer, layers)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    size = {"height": 16, "width": 16}
    processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size)
    return _write(folder, "LlavaForConditionalGeneration", config, tokenizer, processor, seed)


def tiny_internvl(
    folder: Path, *, layers: int = 2, seed: int = 0, tiles: bool = False, qwen3: bool = False
) -> Path:
    """Write a random InternVL as an ordinary checkpoint folder: tiles of 16 × 16 pixels, 4 tokens each.

    Args:
        tiles: an image that is not square is cut into up to four tiles with a thumbnail.
        qwen3: with a Qwen3 in the place of the Qwen2, as InternVL3.5 has it.
    """
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLVisionConfig,
        Qwen2Config,
        Qwen3Config,
    )

    tokenizer = tiny_tokenizer("<IMG_CONTEXT>", "<|im_end|>", None, ("<img>", "</img>", *CHAT))
    vision = InternVLVisionConfig(
        **_tower(),
        patch_size=4,
        attention_bias=True,
    )
    config = InternVLConfig(
        vision_config=vision,
        text_config=Qwen3Config(**_decoder(tokenizer, layers), head_dim=16)
        if qwen3
        else Qwen2Config(**_decoder(tokenizer, layers)),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    processor = GotOcr2ImageProcessor(
        size={"height": 16, "width": 16}, crop_to_patches=tiles, min_patches=1, max_patches=4
    )
    return _write(folder, "InternVLForConditionalGeneration", config, tokenizer, processor, seed)


def tiny_qwen(folder: Path, *, layers: int = 2, seed: int = 0) -> Path:
    """Write a random Qwen2.5-VL as an ordinary checkpoint folder: a token per 8 × 8 pixels, windows of 2 × 2 tokens."""
    from transformers import Qwen2_5_VLConfig, Qwen2VLImageProcessor

    marks = ("<|vision_start|>", "<|vision_end|>", "<|video_pad|>")
    tokenizer = tiny_tokenizer("<|image_pad|>", "<|im_end|>", None, (*marks, *CHAT))
    number = tokenizer.convert_tokens_to_ids
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "patch_size": 4,
            "window_size": 16,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
        },
        text_config={**_decoder(tokenizer, layers), "rope_parameters": rope},
        image_token_id=number("<|image_pad|>"),
        video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"),
        vision_end_token_id=number("<|vision_end|>"),
    )
    processor = Qwen2VLImageProcessor(
        patch_size=4, merge_size=2, size={"shortest_edge": 16 * 16, "longest_edge": 48 * 48}
    )
    return _write(folder, "Qwen2_5_VLForConditionalGeneration", config, tokenizer, processor, seed)


def tiny_qwen3(folder: Path, *, layers: int = 2, seed: int = 0) -> Path:
    """Write a random Qwen3-VL as an ordinary checkpoint folder: a token per 8 × 8 pixels, states of two earlier layers (DeepStack)."""
    from transformers import Qwen2VLImageProcessor, Qwen3VLConfig

    marks = ("<|vision_start|>", "<|vision_end|>", "<|video_pad|>")
    tokenizer = tiny_tokenizer("<|image_pad|>", "<|im_end|>", None, (*marks, *CHAT))
    number = tokenizer.convert_tokens_to_ids
    rope = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [4, 2, 2],
        "mrope_interleaved": True,
    }
    config = Qwen3VLConfig(
        vision_config={
            "depth": 3,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "patch_size": 4,
            "out_hidden_size": 32,
            "num_position_embeddings": 36,
            "deepstack_visual_indexes": [0, 1],
        },
        text_config={**_decoder(tokenizer, layers), "head_dim": 16, "rope_parameters": rope},
        image_token_id=number("<|image_pad|>"),
        video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"),
        vision_end_token_id=number("<|vision_end|>"),
    )
    processor = Qwen2VLImageProcessor(
        patch_size=4, merge_size=2, size={"shortest_edge": 16 * 16, "longest_edge": 48 * 48}
    )
    return _write(folder, "Qwen3VLForConditionalGeneration", config, tokenizer, processor, seed)


def tiny_smolvlm(folder: Path, *, layers: int = 2, seed: int = 0, tiles: bool = True) -> Path:
    """Write a random SmolVLM2 as an ordinary checkpoint folder: tiles of 16 × 16 pixels, 4 tokens each, one or two on a side.

    Args:
        tiles: an image is cut into tiles, and the whole of it follows them; else it is one.
    """
    from transformers import SmolVLMConfig, SmolVLMImageProcessor

    tile = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
    marks = ("<fake_token_around_image>", "<global-img>", *tile, "<|im_start|>", "User:", "Assistant:")
    tokenizer = tiny_tokenizer("<image>", "<end_of_utterance>", None, marks)
    config = SmolVLMConfig(
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 4,
        },
        text_config={**_decoder(tokenizer, layers), "model_type": "llama"},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    processor = SmolVLMImageProcessor(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 16}, do_image_splitting=tiles
    )
    return _write(folder, "SmolVLMForConditionalGeneration", config, tokenizer, processor, seed)


def tiny_clip(folder: Path, *, seed: int = 0) -> Path:
    """Write a random open_clip model as a folder that `--features` takes."""
    import open_clip
    from safetensors.torch import save_file

    tokenizer = tiny_tokenizer()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8},
        "text_cfg": {
            "context_length": 24,
            "vocab_size": len(tokenizer),
            "width": 16,
            "heads": 2,
            "layers": 1,
            "hf_tokenizer_name": "local",
        },
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.CLIP(**config)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    content = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    return folder


def _tower() -> dict[str, Any]:
    """Sizes of a vision tower for squares of 16 × 16 pixels."""
    return {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
    }


def _decoder(tokenizer: Any, layers: int) -> dict[str, Any]:
    """Sizes of a language model."""
    return {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 512,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _write(folder: Path, kind: str, config: Any, tokenizer: Any, processor: Any, seed: int) -> Path:
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, kind)(config)
        # Larger than usual, so that answers differ between prompts.
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and ("language_model" in name or "text_model" in name):
                torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
