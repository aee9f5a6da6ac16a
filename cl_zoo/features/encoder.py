"""Frozen image and text features from open_clip, for anchors, keys and queries.

`--features` names an open_clip model (`ViT-L-14-336/openai`, weights from the hub once), the same with weights that lie here
(`ViT-L-14-336:FILE.safetensors`, or `ViT-L-14-336/openai:FILE.safetensors` where a model's published weights differ in how
they see), or a local folder with `open_clip_config.json` and `open_clip_model.safetensors`. Features are computed once per
distinct image or text and kept in memory, with `--cache` on disk as well; they are not normalised and always fp32. A text longer than the encoder's context (77 tokens in CLIP) loses its
end, the end token takes the last place: of a question with its instruction it is the instruction that goes first.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from cl_zoo import videos
from cl_zoo.errors import BackboneError, DataError, cut, no_file
from cl_zoo.features import loading as encoders
from cl_zoo.features.loading import encoder_revision, load_encoder
from cl_zoo.features.shelves import Shelf
from cl_zoo.images import frames, kinds
from cl_zoo.images.ahead import Ahead, reading_threads
from cl_zoo.images.frames import BadVideo, read_frame
from cl_zoo.images.kinds import as_rgb, faithfully
from cl_zoo.tasks import ImageSource, source_hash
from cl_zoo.videos import called, file_of, frame_of

Key = TypeVar("Key")
PICTURE = "name the file of a picture"

PICTURED = tuple(str(module.__file__) for module in (frames, kinds, videos))
"""The source of what decides an image's pixels before an encoder or a tower sees them."""


class Remembered(Generic[Key]):
    """Tensors by key, up to a number of bytes; the oldest are dropped first.

    Args:
        limit: bytes kept in memory.
        shelf: where tensors are looked for, and put, beside the memory; its keys are bytes, see `content_key`.
        device: where tensors that come from the shelf are needed.
    """

    def __init__(
        self, limit: int = 2**30, shelf: Shelf | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self._kept: dict[Key, Tensor] = {}
        self._limit, self._bytes = limit, 0
        self._shelf, self._device = shelf, device

    def rows(self, keys: Sequence[Key], compute: Callable[[list[int]], Sequence[Tensor]]) -> list[Tensor]:
        """One tensor per key; `compute` gets the places of the keys not yet known, each distinct key once.

        What comes from the shelf was computed in a batch of other company, and may differ in its last bits from what
        `compute` would give here.
        """
        missing = {key: place for place, key in reversed(list(enumerate(keys))) if key not in self._kept}
        fresh = self._shelved(missing)
        places = sorted(place for key, place in missing.items() if key not in fresh)
        computed = compute(places) if places else ()
        for place, row in zip(places, computed, strict=True):
            fresh[keys[place]] = row
            if self._shelf is not None:
                self._shelf.put(cast(bytes, keys[place]), row)
        rows = [fresh[key] if key in fresh else self._kept[key] for key in keys]
        for key, row in fresh.items():
            self._keep(key, row)
        return rows

    def knows(self, key: Key) -> bool:
        """Whether `rows` would give the tensor of a key without computing it."""
        return key in self._kept or (self._shelf is not None and cast(bytes, key) in self._shelf)

    def _shelved(self, keys: Iterable[Key]) -> dict[Key, Tensor]:
        if self._shelf is None:
            return {}
        found = ((key, self._shelf.get(cast(bytes, key))) for key in keys)
        return {key: row.to(self._device) for key, row in found if row is not None}

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
        name: an open_clip model as `NAME/PRETRAINED`, `NAME:FILE` or `NAME/PRETRAINED:FILE`, or a local folder.
        device: where it runs.
        cache: folder of a shelf that all methods, seeds and processes share. A feature from there was computed in a batch
            of other images and may differ in its last bits from one computed now, so it is used where a user asks for it.
        limit_bytes: of that folder, see `Shelf`.

    Attributes:
        width: d of image and text features, CLIP's joint space.

    Raises:
        BackboneError: the folder or the name cannot be loaded.
        RunError: the cache cannot be used.
    """

    def __init__(
        self,
        name: str,
        device: torch.device | str = "cpu",
        cache: Path | None = None,
        limit_bytes: int | None = None,
    ) -> None:
        self.name, self.device = name, torch.device(device)
        self._model, self._transform, self._tokenizer, self.width = load_encoder(name, self.device)
        code = source_hash(__file__, encoders.__file__, *PICTURED)[
            :8
        ]  # changed code does not serve what older code computed
        label = f"features-{encoder_revision(name)}-{self.device.type}-{code}"
        shelf = Shelf(cache, label, limit_bytes) if cache is not None else None
        self._by_content = shelf is not None
        transform = self._transform
        self._ahead: Ahead[bytes] = Ahead(
            lambda image: transform(open_image(image)), reading_threads(self.device)
        )
        self._images: Remembered[bytes] = Remembered(2**28, shelf, self.device)
        self._texts: Remembered[bytes] = Remembered(2**27, shelf, self.device)
        self._states: Remembered[bytes] = Remembered(2**27, shelf, self.device)

    @property
    def size(self) -> int:
        """Parameters of image and text tower together."""
        return sum(weight.numel() for weight in self._model.parameters())

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
        keys = [b"image" + self._image_key(image) if image is not None else b"blank" for image in images]

        def compute(places: list[int]) -> Sequence[Tensor]:
            pixels = torch.stack(self._ahead.take({keys[i]: images[i] or blank for i in places}))
            with torch.autocast(self.device.type, enabled=False):
                return list(self._model.encode_image(pixels.to(self.device)).float())

        rows = torch.stack(self._images.rows(keys, compute))
        there = torch.tensor([image is not None for image in images], device=rows.device)
        return rows * there[:, None]

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Text features (n, d) in CLIP's joint space, not normalised."""
        keys = [b"text" + text.encode() for text in texts]
        return torch.stack(
            self._texts.rows(keys, lambda places: list(self._encode([texts[i] for i in places])))
        )

    @torch.no_grad()
    def text_states(self, texts: Sequence[str]) -> Tensor:
        """Text features (n, text_width) before CLIP's projection: the normalised last state at the end token.

        What transformers calls the `pooler_output` of a CLIP text model.

        Raises:
            BackboneError: as for `text_width`.
        """
        _ = self.text_width  # says why where there is no projection

        def compute(places: list[int]) -> Sequence[Tensor]:
            with _unprojected(self._text_tower):
                return list(self._encode([texts[i] for i in places]))

        return torch.stack(self._states.rows([b"state" + text.encode() for text in texts], compute))

    def _image_key(self, image: ImageSource) -> bytes:
        """On a shelf an image goes by what it holds; in memory path, size and time of a file are enough: it is not read."""
        return content_key(image) if self._by_content else image_key(image).encode(errors="surrogateescape")

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
    """Identifies an image: path, size and time of a file, what `open_image` makes of an image in memory."""
    if isinstance(image, Path):
        place = os.path.abspath(image)
        try:
            status = os.stat(file_of(Path(place)))
        except (OSError, ValueError):
            return place  # `open_image` says what is wrong with it
        return f"{place} {status.st_size} {status.st_mtime_ns}{' faithful' * faithfully(image)}"
    seen = _rgb(image)
    return hashlib.blake2b(seen.tobytes(), digest_size=16, person=b"RGB").hexdigest() + str(seen.size)


def content_key(image: ImageSource) -> bytes:
    """Identifies an image by what it holds, wherever it lies: the bytes of a file, size and RGB pixels of one in memory.

    Raises:
        DataError: the file cannot be read.
    """
    if isinstance(image, Path):
        try:
            file = file_of(image)
            status = file.stat()
            if what := no_file(file):
                raise DataError(f"{called(image)}: {what}; {PICTURE}")
            return _file_key(image, status.st_size, status.st_mtime_ns, faithfully(image))
        except DataError:
            raise
        except (OSError, ValueError) as error:
            raise DataError(f"{cut(called(image))}: {_why(error)}; check the data folder") from None
    seen = _rgb(image)
    about = f"RGB {seen.size}".encode()
    return hashlib.blake2b(about + b"\0" + seen.tobytes(), digest_size=32, person=b"pixels").digest()


@lru_cache(maxsize=2**18)
def _file_key(image: Path, size: int, changed: int, faithful: bool) -> bytes:
    """A file is read for its key once, and again where its size or time has changed."""
    person = b"faithful file" if faithful else b"file"
    digest = hashlib.blake2b(file_of(image).read_bytes(), digest_size=32, person=person)
    if frame_of(image) is not None:
        digest.update(image.name.encode())
    return digest.digest()


def _rgb(image: Image.Image) -> Image.Image:
    """An image in memory as RGB; its pixels alone would leave out a palette."""
    return image if image.mode == "RGB" else open_image(image)


def _why(error: Exception) -> str:
    if isinstance(error, BadVideo):
        return error.words
    if isinstance(error, Image.DecompressionBombError):
        return f"has more than the {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels that Pillow opens"
    return "no such file" if isinstance(error, FileNotFoundError) else "not a readable image"


def open_image(image: ImageSource) -> Image.Image:
    """The image as RGB, a file as its benchmark asks for: by Pillow's conversion, or faithfully (`cl_zoo.images.kinds`).

    Raises:
        DataError: the file is missing or not a readable image.
    """
    try:
        if not isinstance(image, Path):
            return as_rgb(image)
        frame = frame_of(image)
        if what := no_file(image if frame is None else frame.video):
            raise DataError(f"{called(image)}: {what}; {PICTURE}")
        if frame is not None:
            return read_frame(frame, turned=faithfully(image))
        with Image.open(image) as opened:
            return as_rgb(opened, faithful=faithfully(image))
    except (MemoryError, DataError):
        raise
    except Exception as error:  # Pillow's readers raise whatever a broken file leads them to
        place = "image in memory" if isinstance(image, Image.Image) else cut(called(image))
        raise DataError(f"{place}: {_why(error)}; check the data folder") from None
