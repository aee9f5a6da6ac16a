"""Images that are no files, in memory or inside a dataset: what they are called, and what kinds they are of."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from PIL import Image

from cl_zoo.data.splits import Split
from cl_zoo.images.kinds import kinds
from cl_zoo.inspection.survey import MEMORY
from cl_zoo.preflight.looks import outline_of
from cl_zoo.tasks import ImageSource, Sample, undecoded


def kinds_inside(samples: Sequence[Sample], place: int, sample: Sample) -> tuple[tuple[str, ...], ...]:
    """Kinds of each picture that is no file; a split gives those inside a dataset as RGB, and only as stored they tell."""
    if not any(isinstance(image, Image.Image) for image in sample.images):
        return ()
    stored = undecoded(samples, place) if isinstance(samples, Split) else sample
    return tuple(kinds(image) for image in stored.images if isinstance(image, Image.Image))


def named(image: ImageSource, outlines: dict[str, bytes] | None) -> str:
    """The path of a file; of an image that is none a name by what it looks like, under which `outlines` gets its perceptual hash."""
    if not isinstance(image, Image.Image):
        return str(image)
    # As a model sees it: the same indices under another palette are another picture.
    seen = image.convert("RGB")
    digest = hashlib.blake2b(f"{seen.size}".encode(), digest_size=16)
    digest.update(seen.tobytes())
    name = f"{MEMORY}{digest.hexdigest()}"
    if outlines is not None and (outline := outline_of(image)) is not None:
        outlines[name] = outline
    return name
