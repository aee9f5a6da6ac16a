"""The base model from its configuration: an ordinary LLaVA of a few million parameters with its tokenizer and processor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from cl_zoo_bench_mini.figures import SIZE
from cl_zoo_bench_mini.render import CELL
from cl_zoo_bench_mini.words import MARKS, VOCABULARY

PAD, END, UNKNOWN, IMAGE, USER, ASSISTANT = "<pad>", "</s>", "<unk>", "<image>", "USER:", "ASSISTANT:"
SPECIAL = (PAD, END, UNKNOWN, IMAGE, USER, ASSISTANT)
TOKENS = (*SPECIAL, *MARKS, *VOCABULARY)


@dataclass(frozen=True)
class Shape:
    """Sizes of the base model."""

    width: int = 224
    layers: int = 5
    heads: int = 4
    inner: int = 576
    vision_width: int = 128
    vision_layers: int = 4
    vision_heads: int = 4


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Word by word, upper and lower case apart: `A` is an option, `a` is an article."""
    raw = Tokenizer(models.WordLevel({token: index for index, token in enumerate(TOKENS)}, unk_token=UNKNOWN))
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Split(Regex(r"[^\w\s]"), "isolated"),
            pre_tokenizers.Split(Regex(" +"), "removed"),
        ]
    )
    raw.add_tokens([AddedToken(token, normalized=False) for token in (USER, ASSISTANT)])
    raw.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in (PAD, END, UNKNOWN, IMAGE)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        padding_side="left",
        model_max_length=256,
        clean_up_tokenization_spaces=False,
        extra_special_tokens={"image_token": IMAGE},
    )


def build_processor() -> LlavaProcessor:
    """Tokenizer and image processor as the base model wants them."""
    size = {"height": SIZE, "width": SIZE}
    images = CLIPImageProcessor(
        size=size,
        crop_size=size,
        do_center_crop=False,
        do_resize=True,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(),
        patch_size=CELL,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE,
        chat_template=CHAT_TEMPLATE,
    )


CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'user' %}USER: {% for part in message.content %}"
    "{% if part.type == 'image' %}<image>\n{% else %}{{ part.text }}{% endif %}{% endfor %} "
    "{% else %}ASSISTANT: {{ message.content[0].text }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def build_model(shape: Shape, seed: int) -> LlavaForConditionalGeneration:
    """The untrained base model."""
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=shape.vision_width,
        intermediate_size=4 * shape.vision_width,
        num_hidden_layers=shape.vision_layers,
        num_attention_heads=shape.vision_heads,
        image_size=SIZE,
        patch_size=CELL,
    )
    text = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=TOKENS.index(END),
        pad_token_id=TOKENS.index(PAD),
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=TOKENS.index(IMAGE),
        image_seq_length=(SIZE // CELL) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=TOKENS.index(END), pad_token_id=TOKENS.index(PAD), max_new_tokens=24
    )
    return model


def save_base(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Write an ordinary checkpoint in half precision, with tokenizer and processor."""
    kept = model.dtype
    model.half().save_pretrained(folder)
    model.to(kept)
    build_processor().save_pretrained(folder)
