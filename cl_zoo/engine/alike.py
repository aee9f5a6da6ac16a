"""Which samples are answered together: those of like length, so that little is computed for padding.

A batch is as long as its longest prompt, and what a row is shorter is padding. Samples of several batches are therefore held at once
and put into batches by length, the longest first: what does not fit into memory is found out at once, and a cache of fixed size
that was made for the first batch serves the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from PIL import Image

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import pieces
from cl_zoo.errors import DataError
from cl_zoo.tasks import ImageSource, Sample

HELD = 8
"""Batches whose samples are held at once, so that no task has to fit into memory and no answer waits for the whole of it."""
SIZES = ((224, 224), (448, 224), (224, 672), (896, 896))
"""Of images, in pixels; a family that has as many tokens for all of these has them for every image."""


def alike(backbone: Backbone, samples: Sequence[Sample], batch: int) -> Iterator[list[tuple[int, Sample]]]:
    """Batches of samples with their places, each sample made once; every place is in one of them.

    Args:
        batch: samples of each; of `HELD` times as many in a row the last batch alone has fewer.
    """
    for piece in pieces(len(samples), HELD * batch):
        held = list(enumerate(samples[piece], piece.start))
        if 1 < batch < len(held):
            sizes = lengths(backbone, [sample for _, sample in held])
            held = [held[n] for n in sorted(range(len(held)), key=lambda n: -sizes[n])]
        yield from (held[part] for part in pieces(len(held), batch))


def lengths(backbone: Backbone, samples: Sequence[Sample]) -> list[int]:
    """Tokens of each prompt with its images, as far as they are known without decoding one: a wrong guess costs padding, not an answer."""
    texts = backbone.sample_tokens(samples, answers=False)
    counts = {_image_tokens(backbone, size) for size in SIZES}
    each = counts.pop() if len(counts) == 1 else None
    return [
        text + sum(_tokens(backbone, image) if each is None else each for image in sample.images)
        for text, sample in zip(texts, samples, strict=True)
    ]


def _tokens(backbone: Backbone, image: ImageSource) -> int:
    """Of one image; zero where its size is not known."""
    size = image.size if isinstance(image, Image.Image) else _size(image)
    return 0 if size is None else _image_tokens(backbone, size)


def _image_tokens(backbone: Backbone, size: tuple[int, int]) -> int:
    try:
        return backbone.image_tokens(*size) or 0
    except DataError:  # who makes the batch says what is wrong with it
        return 0


def _size(file: ImageSource) -> tuple[int, int] | None:
    """Width and height by the header of an image file; `None` where it has none, as the frame of a video."""
    try:
        with Image.open(file) as opened:
            return opened.size
    except Exception:  # Pillow raises whatever a broken file leads it to; who reads the image names it
        return None
