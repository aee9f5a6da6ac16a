"""Answers: batched greedy generation, one record per sample, in the order of the samples.

Samples of like length are answered together (`cl_zoo.engine.alike`). An answer does not depend on who else is in its batch, but where
rounding decides between two tokens; the records come in the order of the samples whatever the order of the batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import Batch, prepare
from cl_zoo.engine.alike import alike
from cl_zoo.errors import PluginFault
from cl_zoo.tasks import Sample


@torch.no_grad()
def answers(
    model: nn.Module,
    backbone: Backbone,
    samples: Sequence[Sample],
    *,
    max_new_tokens: int,
    batch: int,
    guard: AbstractContextManager[Any] | None = None,
    static: bool = False,
) -> Iterator[dict[str, Any]]:
    """Answer every sample greedily.

    Args:
        model: has `generate`; may have `prepare(batch)` and, after it, a `route` (batch, tasks).
        samples: answers and references in them are not shown to the model.
        max_new_tokens: token budget of one answer.
        batch: samples per generation.
        guard: entered around what the model does, see `cl_zoo.contract.calls`.
        static: whether keys and values are kept in memory of a fixed size, see `generated`.

    Yields:
        `{"id", "prompt", "answer"}`, and `"route"` (rounded to 4 digits) where the model exposes one; each as soon as it and all before it
        are answered.
    """
    answered: dict[int, dict[str, Any]] = {}
    due = 0
    for asked, coming in pairwise(chain(alike(backbone, samples, batch), [[]])):
        prompts = backbone.batch([sample for _, sample in asked], answers=False)
        backbone.expect(sample for _, sample in coming)
        with guard or nullcontext():
            prepare(model, prompts)
            tokens = generated(model, backbone, prompts, max_new_tokens, static=static)
            routes = routed(model, prompts)
        texts = backbone.decode(tokens)
        for (place, _), sample, text, route in zip(asked, prompts.samples, texts, routes, strict=True):
            answered[place] = {"id": sample.id, "prompt": sample.prompt, "answer": text}
            if route is not None:
                answered[place]["route"] = route
        while due in answered:
            yield answered.pop(due)
            due += 1


def routed(model: nn.Module, prompts: Batch) -> list[list[float] | None]:
    """The route of each sample of a batch that was just answered, rounded to 4 digits; `None` where the model exposes none.

    Raises:
        PluginFault: it is not (batch, tasks), or holds what is no finite number.
    """
    route = getattr(model, "route", None)
    if route is None:
        return [None] * len(prompts)
    if getattr(route, "ndim", 0) != 2 or len(route) != len(prompts):
        raise PluginFault(
            f"the model that answers has a route of shape {tuple(getattr(route, 'shape', ()))} for {len(prompts)} samples",
            "make it (batch, tasks) in prepare(batch)",
        )
    rows = [[round(float(weight), 4) for weight in row] for row in route]
    for sample, row in zip(prompts.samples, rows, strict=True):
        if not all(map(math.isfinite, row)):
            raise PluginFault(
                f"the model that answers has the route {row} for sample {sample.id}",
                "make it of finite numbers",
            )
    return list(rows)


def generated(
    model: nn.Module, backbone: Backbone, prompts: Batch, max_new_tokens: int, *, static: bool = False
) -> Tensor:
    """Token ids of the answers to a batch that the model has prepared for, (batch, new), greedily.

    Args:
        static: whether the cache of keys and values has room for the whole answer from the start, so that all steps after the first have
            one shape; transformers compiles them then where the device is an accelerator. The model's `generate` is told by
            `cache_implementation`.

    Raises:
        PluginFault: the model's `generate` does not return the prompts' ids followed by new ones.
    """
    asked = prompts.inputs["input_ids"]
    tokens = model.generate(  # type: ignore[operator]
        **prompts.inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        pad_token_id=backbone.tokenizer.pad_token_id,
        eos_token_id=backbone.tokenizer.eos_token_id,
        **({"cache_implementation": "static"} if static else {}),
    )
    if not isinstance(tokens, Tensor) or not torch.equal(tokens[:, : asked.shape[1]], asked):
        shape = f" of shape {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else ""
        raise PluginFault(
            f"generate of {type(model).__name__} returned a {type(tokens).__name__}{shape} to prompts {tuple(asked.shape)}",
            "return token ids, in each row the prompt's and then the answer's",
        )
    return tokens[:, asked.shape[1] :]
