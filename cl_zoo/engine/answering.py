"""Answers: batched greedy generation, one record per sample, in the order of the samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import Batch, pieces, prepare
from cl_zoo.errors import PluginError
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
        texts = backbone.decode(generated(model, backbone, prompts, max_new_tokens))
        route = getattr(model, "route", None)
        if route is not None and (getattr(route, "ndim", 0) != 2 or len(route) != len(prompts)):
            raise PluginError(
                f"the model that answers has a route of shape {tuple(getattr(route, 'shape', ()))} for {len(prompts)} samples; make it (batch, tasks) in prepare(batch)"
            )
        for row, (sample, text) in enumerate(zip(prompts.samples, texts, strict=True)):
            record: dict[str, Any] = {"id": sample.id, "prompt": sample.prompt, "answer": text}
            if route is not None:
                record["route"] = [round(float(weight), 4) for weight in route[row]]
            yield record


def generated(model: nn.Module, backbone: Backbone, prompts: Batch, max_new_tokens: int) -> Tensor:
    """Token ids of the answers to a batch that the model has prepared for, (batch, new), greedily.

    Raises:
        PluginError: the model's `generate` does not return the prompts' ids followed by new ones.
    """
    asked = prompts.inputs["input_ids"]
    tokens = model.generate(  # type: ignore[operator]
        **prompts.inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        pad_token_id=backbone.tokenizer.pad_token_id,
        eos_token_id=backbone.tokenizer.eos_token_id,
    )
    if not isinstance(tokens, Tensor) or not torch.equal(tokens[:, : asked.shape[1]], asked):
        shape = f" of shape {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else ""
        raise PluginError(
            f"generate of {type(model).__name__} returned a {type(tokens).__name__}{shape} to prompts {tuple(asked.shape)}; return token ids, in each row the prompt's and then the answer's"
        )
    return tokens[:, asked.shape[1] :]
