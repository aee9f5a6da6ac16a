"""Frozen image and text features from open_clip, for anchors, keys and queries.

`--features` names an open_clip model (`ViT-L-14-336/openai`, weights from the hub once) or a local folder with
`open_clip_config.json` and `open_clip_model.safetensors`. Features are computed once per distinct image or text and kept
in memory; they are not normalised and always fp32. A text longer than the encoder's context (77 tokens in CLIP) loses its
end, the end token takes the last place: of a question with its instruction it is the instruction that goes first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

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

    Attributes:
        width: d of image and text features, CLIP's joint space.

    Raises:
        BackboneError: the folder or the name cannot be loaded.
    """

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        self.name, self.device = name, torch.device(device)
        self._model, self._transform, self._tokenizer, self.width = _load(name, self.device)
        self._images: Remembered[str] = Remembered(2**28)
        self._texts: Remembered[str] = Remembered(2**27)
        self._states: Remembered[str] = Remembered(2**27)

    @property
    def text_width(self) -> int:
        """Width of `text_states`: of the text tower before CLIP's projection.

        Raises:
            BackboneError: the text tower is not open_clip's own and keeps its projection to itself.
        """
        tower = self._text_tower
        if getattr(tower, "text_projection", None) is None:
            raise BackboneError(
                f"--features {self.name}: its text tower has no projection to stop before; use a CLIP of open_clip's own"
            )
        return int(tower.ln_final.weight.shape[0])

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
        """Text features (n, d) in CLIP's joint space, not normalised."""
        return self._texts.rows(list(texts), lambda places: self._encode([texts[i] for i in places]))

    @torch.no_grad()
    def text_states(self, texts: Sequence[str]) -> Tensor:
        """Text features (n, text_width) before CLIP's projection: the normalised last state at the end token.

        What transformers calls the `pooler_output` of a CLIP text model.

        Raises:
            BackboneError: as for `text_width`.
        """
        _ = self.text_width  # says why where there is no projection

        def compute(places: list[int]) -> Tensor:
            with _unprojected(self._text_tower):
                return self._encode([texts[i] for i in places])

        return self._states.rows(list(texts), compute)

    def _encode(self, texts: list[str]) -> Tensor:
        tokens = self._tokenizer(texts).to(self.device)
        with torch.autocast(self.device.type, enabled=False):
            return cast(Tensor, self._model.encode_text(tokens).float())

    @property
    def _text_tower(self) -> Any:
        """CLIP itself holds its text tower's layers; other models of open_clip have them under `text`."""
        return getattr(self._model, "text", self._model)


@contextmanager
def _unprojected(tower: Any) -> Iterator[None]:
    """Inside, the tower answers with what it otherwise projects."""
    projection, tower.text_projection = tower.text_projection, None
    try:
        yield
    finally:
        tower.text_projection = projection


def cosines(features: Tensor, others: Tensor) -> Tensor:
    """Cosine of each of n features (n, d) with each of t others (t, d), (n, t); zero where one of them is zero."""
    return F.cosine_similarity(features[:, None], others[None], dim=-1)


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


def _load(name: str, device: torch.device) -> tuple[Any, Any, Any, int]:
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
    elif not pretrained:
        raise BackboneError(
            f"--features {name}: names a model without weights; write {name}/TAG, see open_clip.list_pretrained()"
        )
    try:
        # It starts from random weights; what a hook draws must not depend on whether it was the first to look.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            tag = open_clip.get_pretrained_cfg(model, pretrained) if pretrained else {}
            clip, transform = open_clip.create_model_from_pretrained(  # refuses to go on without weights
                model,
                pretrained=pretrained or None,
                device=device,
                force_quick_gelu=bool(
                    tag.get("quick_gelu")
                ),  # OpenAI's weights need it, the name does not say so
            )
        tokenizer = open_clip.get_tokenizer(model)
        width = int(open_clip.get_model_config(model)["embed_dim"])
    except Exception as error:  # open_clip raises whatever its parsers and the hub raise
        raise BackboneError(
            f"--features {name}: {first_line(error)}; check the folder or the network"
        ) from None
    clip.eval().requires_grad_(False)
    return clip, transform, tokenizer, width
