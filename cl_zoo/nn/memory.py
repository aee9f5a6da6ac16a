"""Samples of old tasks, for methods that learn them again: which are drawn, and what of them is kept on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cl_zoo.batches import Batch
from cl_zoo.features.encoder import open_image
from cl_zoo.images.kinds import Faithful
from cl_zoo.processes import draw_rows
from cl_zoo.tasks import ImageSource, Sample


def draw_samples(batches: Sequence[Batch], samples: int) -> list[Sample]:
    """So many samples of a task at random, none twice, in the task's order; all of them where there are no more.

    The draw depends on the seed of the hook alone: it is the same on every process and whatever else is in the stack.
    A batch that no drawn sample is in is not made, except for the first and the last, which tell how many there are.
    """
    rows = draw_rows(batches, samples)
    return [batches[place].samples[row] for place, those in rows.items() for row in those]


def pack_sample(sample: Sample) -> dict[str, Any]:
    """What of a sample is kept on disk: JSON and a tensor."""
    kept: dict[str, Any] = {"id": sample.id, "prompt": sample.prompt, "answer": sample.answer}
    kept["image"] = _pixels(sample.image)
    if sample.more_images:
        kept["more_images"] = [_pixels(image) for image in sample.more_images]
    if sample.before:
        kept |= {"before": [list(turn) for turn in sample.before], "learns_before": sample.learns_before}
    return kept


def unpack_sample(kept: Mapping[str, Any]) -> Sample:
    """The sample that `pack_sample` took apart."""
    sample = Sample(kept["id"], _shown(kept["image"]), kept["prompt"], kept["answer"])
    before = tuple((asked, answer) for asked, answer in kept.get("before", ()))
    more = tuple(image for one in kept.get("more_images", ()) if (image := _shown(one)) is not None)
    return replace(sample, before=before, learns_before=kept.get("learns_before", True), more_images=more)


def _pixels(image: ImageSource | None) -> Tensor | str | dict[str, str] | None:
    """What is kept of an image: the path of a file and how it is read, (height, width, 3) bytes of one in memory."""
    if image is None:
        return None
    if isinstance(image, Path):
        return {"faithful": str(image)} if isinstance(image, Faithful) else str(image)
    flat = torch.frombuffer(bytearray(open_image(image).tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, 3)


def _shown(kept: Tensor | str | Mapping[str, str] | None) -> ImageSource | None:
    """The image again, in RGB."""
    if isinstance(kept, Tensor):
        return Image.fromarray(kept.cpu().numpy())
    if isinstance(kept, Mapping):
        return Faithful(kept["faithful"])
    return None if kept is None else Path(kept)
