"""Frozen image and text features from open_clip, for anchors, keys and queries.

`--features` names an open_clip model (`ViT-L-14-336/openai`, weights from the hub once) or a local folder with
`open_clip_config.json` and `open_clip_model.safetensors`. Features are computed once per distinct image or text and kept
in memory; they are not normalised and always fp32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from cl_zoo.errors import BackboneError, DataError, first_line
from cl_zoo.tasks import ImageSource

Key = TypeVar("Key")


class Remembered(Generic[Key]):
    """Tensors by key, up to a number of bytes; the oldest are dropped first."""

    def __init__(self, limit: int = 2**30) -> None:
        self._kept: dict[Key, Tensor] = {}
        self._limit, self._bytes = limit, 0

    def rows(self, keys: Sequence[Key], compute: Callable[[list[int]], Tensor]) -> Tensor:
        """One row per key; `compute` gets the places of the keys not yet known, each distinct key once."""
        missing = {key: place for place, key in reversed(list(enumerate(keys))) if key not in self._kept}
        places = sorted(missing.values())
        fresh = dict(zip((keys[place] for place in places), compute(places), strict=True)) if places else {}
        rows = torch.stack([fresh[key] if key in fresh else self._kept[key] for key in keys])
        for key, row in fresh.items():
            self._keep(key, row)
        return rows

    def _keep(self, key: Key, row: Tensor) -> None:
        size = row.numel() * row.element_size()
        while self._kept and self._bytes + size > self._limit:
            oldest = self._kept.pop(next(iter(self._kept)))
            self._bytes -= oldest.numel() * oldest.element_size()
        if size <= self._limit:
            self._kept[key] = row.clone()
            self._bytes += size


class FeatureEncoder:
    """An open_clip model used only to look.

    Args:
        name: an open_clip model as `NAME/PRETRAINED`, or a local folder.
        device: where it runs.

    Raises:
        BackboneError: the folder or the name cannot be loaded.
    """

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        self.name, self.device = name, torch.device(device)
        self._model, self._transform, self._tokenizer = _load(name, self.device)
        self._images: Remembered[str] = Remembered(2**28)
        self._texts: Remembered[str] = Remembered(2**27)

    @torch.no_grad()
    def images(self, images: Sequence[ImageSource | None]) -> Tensor:
        """Image features (n, d) in CLIP's joint space, not normalised; zeros for a sample without an image."""
        blank = Image.new("RGB", (8, 8))
        keys = [image_key(image) if image is not None else "" for image in images]

        def compute(places: list[int]) -> Tensor:
            pixels = torch.stack([self._transform(open_image(images[i] or blank)) for i in places])
            with torch.autocast(self.device.type, enabled=False):
                return cast(Tensor, self._model.encode_image(pixels.to(self.device)).float())

        rows = self._images.rows(keys, compute)
        there = torch.tensor([image is not None for image in images], device=rows.device)
        return rows * there[:, None]

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Text features (n, d) in CLIP's joint space, not normalised; a text is cut at the encoder's context length."""

        def compute(places: list[int]) -> Tensor:
            tokens = self._tokenizer([texts[i] for i in places])
            with torch.autocast(self.device.type, enabled=False):
                return cast(Tensor, self._model.encode_text(tokens.to(self.device)).float())

        return self._texts.rows(list(texts), compute)


def image_key(image: ImageSource) -> str:
    """Identifies an image: the path of a file, the content of an image in memory."""
    if isinstance(image, Path):
        return str(image)
    return hashlib.blake2b(image.tobytes(), digest_size=16, person=image.mode.encode()).hexdigest() + str(
        image.size
    )


def open_image(image: ImageSource) -> Image.Image:
    """The image as RGB.

    Raises:
        DataError: the file is missing or not a readable image.
    """
    if not isinstance(image, Path):
        return image.convert("RGB")
    try:
        with Image.open(image) as opened:
            return opened.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else "not a readable image"
        raise DataError(f"image {image}: {reason}; check the data folder") from None


def _load(name: str, device: torch.device) -> tuple[Any, Any, Any]:
    import open_clip  # takes seconds; only methods that look at features pay for it

    folder = Path(name)
    model, _, pretrained = name.partition("/")
    if folder.is_dir():
        if not (folder / "open_clip_config.json").is_file():
            raise BackboneError(
                f"--features {name}: the folder has no open_clip_config.json; pass an open_clip folder"
            )
        model, pretrained = f"local-dir:{folder}", ""
    elif model not in open_clip.list_models():
        raise BackboneError(
            f"--features {name}: neither a folder nor a model of open_clip; see open_clip.list_pretrained()"
        )
    try:
        # It starts from random weights; what a hook draws must not depend on whether it was the first to look.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            clip, _, transform = open_clip.create_model_and_transforms(
                model, pretrained=pretrained or None, device=device
            )
        tokenizer = open_clip.get_tokenizer(model)
    except Exception as error:  # open_clip raises whatever its parsers and the hub raise
        raise BackboneError(
            f"--features {name}: {first_line(error)}; check the folder or the network"
        ) from None
    clip.eval().requires_grad_(False)
    return clip, transform, tokenizer
