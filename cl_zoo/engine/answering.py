"""Answers: batched greedy generation, one record per sample, in the order of the samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import pieces, prepare
from cl_zoo.tasks import Sample


@torch.no_grad()
def answers(
    model: nn.Module, backbone: Backbone, samples: Sequence[Sample], *, max_new_tokens: int, batch: int
) -> Iterator[dict[str, Any]]:
    """Answer every sample greedily.

    Args:
        model: has `generate`; may have `prepare(batch)` and, after it, a `route` (batch, tasks).
        samples: answers and references in them are not shown to the model.
        max_new_tokens: token budget of one answer.
        batch: samples per generation.

    Yields:
        `{"id", "prompt", "answer"}`, and `"route"` (rounded to 4 digits) where the model exposes one.
    """
    for piece in pieces(len(samples), batch):
        prompts = backbone.batch(samples[piece], answers=False)
        backbone.expect(samples[i] for i in range(piece.stop, min(piece.stop + batch, len(samples))))
        prepare(model, prompts)
        tokens = model.generate(  # type: ignore[operator]
            **prompts.inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=backbone.tokenizer.pad_token_id,
            eos_token_id=backbone.tokenizer.eos_token_id,
        )
        texts = backbone.decode(tokens[:, prompts.inputs["input_ids"].shape[1] :])
        route = getattr(model, "route", None)
        for row, (sample, text) in enumerate(zip(prompts.samples, texts, strict=True)):
            record: dict[str, Any] = {"id": sample.id, "prompt": sample.prompt, "answer": text}
            if route is not None:
                record["route"] = [round(float(weight), 4) for weight in route[row]]
            yield record
