"""Second phase of pre-training: questions about pictures, packed, on the tower of the first phase."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AttentionInterface, LlavaForConditionalGeneration

from cl_zoo_bench_mini.batches import Place
from cl_zoo_bench_mini.packing import PREFIX, Packed, pack, visible
from cl_zoo_bench_mini.questions import BROAD, Mix, questions
from cl_zoo_bench_mini.vision import as_pixels, draw_scene, painted, tower_patches

QUESTIONS = 14
"""Questions drawn for a picture; those that no longer fit are dropped."""


def masked_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **unused: Any
) -> tuple[Tensor, None]:
    """Attention as three plain products.

    On a processor with bfloat16 products this is three times as fast, forwards and backwards, as torch's fused attention
    with an arbitrary mask.

    Args:
        module: the attention layer, for its scaling.
        query, key, value: [sequence, head, token, width].
        attention_mask: 0 where a token is seen and a large negative number elsewhere, [sequence, 1, token, token].
    """
    sequences, heads, tokens, width = query.shape
    mask = attention_mask.expand(-1, heads, -1, -1).reshape(-1, tokens, tokens)
    flat_query, flat_key, flat_value = (each.reshape(-1, tokens, width) for each in (query, key, value))
    weights = torch.baddbmm(mask, flat_query, flat_key.transpose(1, 2), alpha=width**-0.5).softmax(-1)
    mixed = torch.bmm(weights, flat_value).view(sequences, heads, tokens, width)
    return mixed.transpose(1, 2).contiguous(), None


AttentionInterface.register("cl_zoo_mini_packed", masked_attention)


def draw_batch(seed: tuple[int, ...], pictures: int, length: int, mix: Mix = BROAD) -> tuple[Tensor, Packed]:
    """Pictures, as bytes, and packed questions, a function of the seed."""
    rng = np.random.default_rng(seed)
    scenes = [draw_scene(rng) for _ in range(pictures)]
    images = painted(scenes, rng)
    return images, pack([questions(scene, rng, QUESTIONS, mix) for scene in scenes], length)


def answer_logits(model: LlavaForConditionalGeneration, images: Tensor, packed: Packed) -> Tensor:
    """Logits of the answers' tokens, [target, token]; all other positions skip the head."""
    body: Any = model.model
    features = body.multi_modal_projector(tower_patches(body.vision_tower, as_pixels(images)))
    embedded = body.get_input_embeddings()(packed.ids)
    embedded = torch.cat([embedded[:, :1], features.to(embedded.dtype), embedded[:, len(PREFIX) :]], dim=1)
    dtype = torch.bfloat16 if torch.is_autocast_enabled(images.device.type) else embedded.dtype
    seen = visible(packed.owners)
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -1e4).unsqueeze(1)
    hidden = body.language_model(
        inputs_embeds=embedded, attention_mask=mask, position_ids=packed.positions, use_cache=False
    ).last_hidden_state
    logits: Tensor = model.lm_head(hidden.flatten(0, 1)[packed.places])
    return logits.float()


def answer_loss(model: LlavaForConditionalGeneration, images: Tensor, packed: Packed) -> Tensor:
    """Weighted mean of the cross-entropy over the answers' tokens."""
    losses = cross_entropy(answer_logits(model, images, packed), packed.targets, reduction="none")
    return (losses * packed.weights).sum() / packed.weights.sum()


@torch.no_grad()
def forced_accuracy(
    model: LlavaForConditionalGeneration, batches: list[tuple[Tensor, Packed]]
) -> dict[str, float]:
    """Share of answers of which every token is the likeliest one, by skill and by form.

    For an answer that can only be right in one way this is the accuracy of greedy generation. Descriptions have several
    right wordings; for them it is only a lower bound.
    """
    right: dict[str, list[bool]] = defaultdict(list)
    place = Place(model.device.type)
    for images, packed in batches:
        with torch.autocast(place.device, torch.bfloat16):
            best = answer_logits(model, *place.hold((images, packed))).argmax(-1).cpu() == packed.targets
        spans = torch.split(best, [_length(weight) for weight in _firsts(packed)])
        for question, span in zip(packed.questions, spans, strict=True):
            right[question.skill].append(bool(span.all()))
            right["form " + question.form].append(bool(span.all()))
            if not question.accepted:
                right["all but descriptions"].append(bool(span.all()))
    return {name: sum(values) / len(values) for name, values in sorted(right.items())}


def _firsts(packed: Packed) -> list[float]:
    """The weight of each answer's first token; it tells the answer's length."""
    weights, found, place = packed.weights.tolist(), [], 0
    while place < len(weights):
        found.append(weights[place])
        place += _length(weights[place])
    return found


def _length(weight: float) -> int:
    return round(weight**-2)
