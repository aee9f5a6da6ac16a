"""Batches, their order, and the one objective.

Sequences are padded on the left, in training too, so all answers of a batch end together: position j of
`outputs.logits` (batch, K, V) predicts position j of `targets` (batch, K), and K is the longest answer of the batch; of a
conversation it reaches back to the first answer that is learnt. No logit is computed before that.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cl_zoo.errors import PluginFault
from cl_zoo.tasks import Sample

IGNORED = -100
"""Target of a position that is not part of an answer."""


@dataclass
class Batch:
    """Samples and the tensors made from them.

    Attributes:
        samples: id, image and prompt; at inference neither answer nor references nor anything that names the task.
        inputs: arguments of the model's forward or generate: `input_ids`, `attention_mask` (batch, tokens), `pixel_values`
            where there are images, in the order of the samples and of the images in each (and `image_grid_thw` or `image_sizes`,
            one row per image, where the model asks for it); in training also
            `position_ids` and `logits_to_keep`.
        targets: (batch, K) token ids, −100 off the answer and between the answers of a conversation; `None` at inference.
        spans: how many rows of `pixel_values` each image has, in their order; empty where each has one.
    """

    samples: tuple[Sample, ...]
    inputs: dict[str, Any]
    targets: Tensor | None = None
    spans: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def tokens(self) -> int:
        """Real tokens, padding excluded."""
        return int(self.inputs["attention_mask"].sum())

    @property
    def answer_mask(self) -> Tensor:
        """(batch, K), true where `targets` holds a token of an answer."""
        if self.targets is None:
            raise ValueError("a batch without answers has no answer mask; it is defined in training only")
        return self.targets != IGNORED

    @property
    def first_tokens(self) -> Tensor:
        """(batch,) place of the first real token of each row; left padding comes before it."""
        return cast(Tensor, self.inputs["attention_mask"].argmax(dim=1))

    @property
    def prompt_mask(self) -> Tensor:
        """(batch, tokens), true at the real tokens that are there at inference too: in training up to the first learnt answer."""
        real = cast(Tensor, self.inputs["attention_mask"].bool())
        if self.targets is None:
            return real
        learnt = self.answer_mask
        # Position tokens − K + j predicts target j, so the first of a row's answer is predicted from the last of its prompt.
        first = torch.where(learnt.any(1), learnt.int().argmax(1), learnt.shape[1] - 1)
        places = torch.arange(real.shape[1], device=real.device)
        return real & (places <= (real.shape[1] - learnt.shape[1] + first)[:, None])

    def rows(self, places: Sequence[int]) -> Batch:
        """The batch of some of its samples, with the same padding; for per-sample gradients."""
        index = torch.as_tensor(list(places), device=self.inputs["input_ids"].device)
        ends = [0, *accumulate(len(sample.images) for sample in self.samples)]
        images = [image for place in places for image in range(ends[place], ends[place + 1])]
        spans = self.spans or (1,) * ends[-1]
        starts = [0, *accumulate(spans)]
        of_images = {
            "pixel_values": [row for image in images for row in range(starts[image], starts[image + 1])],
            "image_grid_thw": images,
            "image_sizes": images,
        }
        inputs: dict[str, Any] = {}
        for name, value in self.inputs.items():
            if name in of_images:
                if images:
                    inputs[name] = value[of_images[name]]
            else:
                inputs[name] = value[index] if isinstance(value, Tensor) else value
        targets = None if self.targets is None else self.targets[index]
        chosen = tuple(spans[image] for image in images) if self.spans else ()
        return Batch(tuple(self.samples[place] for place in places), inputs, targets, chosen)


class Row(NamedTuple):
    """Token ids of one sample.

    Attributes:
        ids: all of them, in training up to the end token of the last answer.
        targets: what is learnt of the last ones, from the first token of the first learnt answer on: −100 where a token is not
            learnt; empty at inference.
    """

    ids: list[int]
    targets: list[int]


def padded(
    rows: Sequence[Row], pad: int, device: torch.device, *, answers: bool
) -> tuple[dict[str, Any], Tensor | None]:
    """Token ids to the inputs of a batch, and its targets where it has answers.

    Args:
        pad: id of the padding.
    """
    # The last end token is a target but never an input: nothing is predicted from it.
    sequences = [row.ids[:-1] if answers else row.ids for row in rows]
    ids = _left(sequences, pad)
    mask = _left([np.ones(len(row), dtype=np.int64) for row in sequences], 0)
    inputs: dict[str, Any] = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    if not answers:
        return inputs, None
    kept = max(len(row.targets) for row in rows)
    targets = _left([row.targets for row in rows], IGNORED)
    inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0).to(device)
    inputs["logits_to_keep"] = kept
    return inputs, targets.to(device)


def _left(rows: Sequence[Any], fill: int) -> Tensor:
    """Rows of whole numbers as one tensor, the shorter ones filled on the left; through numpy, which reads lists faster than torch."""
    longest = max(len(row) for row in rows)
    made = np.full((len(rows), longest), fill, dtype=np.int64)
    for place, row in enumerate(rows):
        made[place, longest - len(row) :] = row
    return torch.from_numpy(made)


def answer_losses(outputs: Any, batch: Batch) -> Tensor:
    """−log p of each answer token, (batch, K) in fp32, zero off the answer (Eq. 1 of the HiDe-LLaVA paper).

    Raises:
        PluginFault: the outputs have no logits, or others than those of the targets.
    """
    if batch.targets is None:
        raise ValueError("a batch without answers has no loss; build it for training")
    logits = getattr(outputs, "logits", None)
    if logits is None:
        raise PluginFault(
            f"the model's forward returned a {type(outputs).__name__}",
            "return what the backbone's forward returns, with logits",
        )
    if logits.shape[:2] != batch.targets.shape:
        raise PluginFault(
            f"the model's forward returned logits {tuple(logits.shape)} for targets {tuple(batch.targets.shape)}",
            "pass all of batch.inputs on, logits_to_keep too",
        )
    logits = logits.float()
    return F.cross_entropy(logits.transpose(1, 2), batch.targets, ignore_index=IGNORED, reduction="none")


def task_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The model's own objective on a batch: mean of −log p over its answer tokens, a scalar.

    Runs `prepare` and the forward, so it is what a method uses for a Fisher information or a teacher.
    """
    return answer_losses(forward(model, batch), batch).sum() / batch.answer_mask.sum().clamp(min=1)


def forward(model: nn.Module, batch: Batch) -> Any:
    """`model.prepare(batch)` where there is one, then the model on the batch's inputs."""
    prepare(model, batch)
    return model(**batch.inputs, use_cache=False)


def prepare(model: nn.Module, batch: Batch) -> None:
    """Call `model.prepare(batch)` where the module defines it."""
    hook = getattr(model, "prepare", None)
    if hook is not None:
        hook(batch)


def stepped(model: nn.Module, done: int, total: int) -> None:
    """Call `model.stepped(done, total)` where the module defines it; `done` of the task's `total` optimiser steps are done."""
    hook = getattr(model, "stepped", None)
    if hook is not None:
        hook(done, total)


def entropy(*parts: object) -> int:
    """A 64-bit seed that is a function of the given values and of nothing else, on every machine."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big")


def order(size: int, *, seed: int, task: str, occurrence: int, epoch: int) -> list[int]:
    """The order of a task's samples in one epoch: a function of exactly these arguments.

    Not of the method, the number of processes, the number of workers or anything drawn before.
    """
    generator = np.random.Generator(np.random.PCG64(entropy(seed, task, occurrence, epoch)))
    return [int(index) for index in generator.permutation(size)]


def steps(indices: Sequence[int], *, batch: int, count: int) -> list[list[int]]:
    """Cut an epoch's order into `count` optimiser steps of `batch` samples, the last one short.

    Where rehearsed samples make the order longer than that, the number of steps stays and all batches grow evenly.
    """
    if len(indices) <= batch * count:
        return [list(indices[piece]) for piece in pieces(len(indices), batch)]
    return [list(map(int, part)) for part in np.array_split(np.asarray(indices), count)]


def shard(batch: Sequence[int], rank: int, world: int, micro: int | None) -> list[list[int]]:
    """The micro-batches of one process: every `world`-th sample from `rank`, cut into pieces of `micro`.

    Every process gets the same number of pieces; where samples run out a piece is empty.
    """
    mine = list(batch[rank::world])
    longest = -(-len(batch) // world)
    micro = micro or longest
    return [mine[start : start + micro] for start in range(0, longest, micro)]


def pieces(count: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size` over `count` things."""
    return (slice(start, start + size) for start in range(0, count, size))


def seed_everything(*parts: object) -> None:
    """Seed torch (CPU and accelerators), numpy and Python's `random` from the given values."""
    seed = entropy(*parts)
    torch.manual_seed(seed % 2**63)
    np.random.seed(seed % 2**32)
    random.seed(seed)
