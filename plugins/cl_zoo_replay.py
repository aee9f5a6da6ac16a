"""Replay: some samples of every old task are learnt again with each new one.

Robins, "Catastrophic forgetting, rehearsal and pseudorehearsal", Connection Science 1995, is the idea's usual source; the
form here is that of the memory files of CoIN (https://arxiv.org/abs/2403.08350) and of the replay baselines after it:

    M_t = M_{t−1} ∪ {`samples` of task t, at random, none twice};  task t learns D_t ∪ M_{t−1}, shuffled

It trains what its stack trains: alone the one adapter and projector of fine-tuning, or, as in `hide+replay`, what another
method has placed.

Choices, and ours:
  * 100 samples per task, the smallest of CoIN's memory files (100, 500 and 1000 per data set). A buffer of fixed size, as
    others keep, would need to drop old samples as tasks come.
  * The number of optimiser steps stays that of the task, so batches grow; the ledger counts what is seen in addition.
  * Images in files stay files: their path is kept. Images in memory are kept as pixels, which the ledger counts.

Held against:
  paper     arXiv 2403.08350
  code      zackschen/CoIN@586087e, playground/Instructions/Grounding/memory_create.py, playground/Instructions/Memory/memory_create.py
            and llava/train/train.py, from its history
  verdict   equal: what can be drawn and how likely, none twice, and whose memory a task learns (tests/oracles/test_replay.py)
  differs   steps: theirs appends the memory to the task, which then takes more steps, ours keeps the number of steps and batches grow;
            the budget stays equal over methods
  differs   seed: theirs draws from numpy's generator without a seed, ours from the run's; other samples, the same ones again
  differs   small tasks: theirs fails where a data set has fewer samples than are to be kept, ours keeps all; nothing elsewhere
  variants  none
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pydantic import BaseModel, Field
from torch import Tensor

from cl_zoo import Batch, Faithful, ImageSource, Sample, draw_rows, hookimpl, open_image


class Replay:
    """A memory of old samples."""

    class Options(BaseModel, frozen=True, extra="forbid"):
        samples: int = Field(100, ge=1, description="samples kept of each task")

    def __init__(self, options: Options) -> None:
        self.samples = options.samples
        self.memory: list[Sample] = []  # M

    @hookimpl
    def rehearse(self) -> Sequence[Sample]:
        return list(self.memory)

    @hookimpl
    def after_task(self, batches: Sequence[Batch]) -> dict[str, float]:
        self.memory += draw(batches, self.samples)
        return {"replay/memory": len(self.memory)}

    def state_dict(self) -> dict[str, Any]:
        return {"memory": [pack(sample) for sample in self.memory]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.memory = [unpack(kept) for kept in state["memory"]]


def draw(batches: Sequence[Batch], samples: int) -> list[Sample]:
    """So many samples of a task at random, none twice, in the task's order; all of them where there are no more.

    The draw depends on the seed of the hook alone: it is the same on every process and whatever else is in the stack.
    A batch that no drawn sample is in is not made, except for the first and the last, which tell how many there are.
    """
    rows = draw_rows(batches, samples)
    return [batches[place].samples[row] for place, those in rows.items() for row in those]


def pack(sample: Sample) -> dict[str, Any]:
    """What of a sample is kept on disk: JSON and a tensor."""
    kept: dict[str, Any] = {"id": sample.id, "prompt": sample.prompt, "answer": sample.answer}
    kept["image"] = pixels(sample.image)
    if sample.more_images:
        kept["more_images"] = [pixels(image) for image in sample.more_images]
    if sample.before:
        kept |= {"before": [list(turn) for turn in sample.before], "learns_before": sample.learns_before}
    return kept


def unpack(kept: Mapping[str, Any]) -> Sample:
    """The sample that `pack` took apart."""
    sample = Sample(kept["id"], shown(kept["image"]), kept["prompt"], kept["answer"])
    before = tuple((asked, answer) for asked, answer in kept.get("before", ()))
    more = tuple(image for one in kept.get("more_images", ()) if (image := shown(one)) is not None)
    return replace(sample, before=before, learns_before=kept.get("learns_before", True), more_images=more)


def pixels(image: ImageSource | None) -> Tensor | str | dict[str, str] | None:
    """What is kept of an image: the path of a file and how it is read, (height, width, 3) bytes of one in memory."""
    if image is None:
        return None
    if isinstance(image, Path):
        return {"faithful": str(image)} if isinstance(image, Faithful) else str(image)
    flat = torch.frombuffer(bytearray(open_image(image).tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, 3)


def shown(kept: Tensor | str | Mapping[str, str] | None) -> ImageSource | None:
    """The image again, in RGB."""
    if isinstance(kept, Tensor):
        return Image.fromarray(kept.cpu().numpy())
    if isinstance(kept, Mapping):
        return Faithful(kept["faithful"])
    return None if kept is None else Path(kept)
