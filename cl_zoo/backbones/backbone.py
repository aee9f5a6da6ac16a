"""Backbones: the frozen multimodal model with everything the engine has to know about it.

A backbone plugin is a function `load(path, device, dtype) -> Backbone` under the entry-point group `cl_zoo.backbones`.
`Backbone` holds what all families share; a family says how its images become features and how a prompt marks them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from PIL import Image
from torch import Tensor, nn

from cl_zoo.backbones import towers
from cl_zoo.backbones.templates import TEMPLATES, resolve
from cl_zoo.backbones.towers import FrozenTower as FrozenTower
from cl_zoo.backbones.towers import frame
from cl_zoo.backbones.wording import Worded
from cl_zoo.batches import Batch, padded
from cl_zoo.errors import BackboneError, DataError, OptionError, first_line, nearest
from cl_zoo.features import encoder as features
from cl_zoo.features.encoder import PICTURED, FeatureEncoder, Remembered, content_key, image_key, open_image
from cl_zoo.features.loading import encoder_revision
from cl_zoo.features.shelves import Shelf
from cl_zoo.images.ahead import Ahead, reading_threads
from cl_zoo.tasks import ImageSource, Sample, source_hash

LINEARS = r".*{}\.layers\.\d+\.(self_attn\.[qkvo]|mlp\.(gate|up|down))_proj"
"""All linears of a decoder, by its name in the model. A bare `q_proj` would match a vision tower as well."""


class Backbone(Worded):
    """A frozen multimodal model with its tokenizer, image processor, chat template and feature encoder.

    Args:
        name: as on the command line.
        model: of the family's `model_class`; it is frozen and its vision tower wrapped.
        tokenizer, image_processor: as transformers made them.
        template: name of a template or text around a prompt, with `{prompt}`; `None` takes the family's.
        revision: identifies the weights; part of every run's id.
        features: name or folder of the feature encoder, or `None`.

    A family is a derived class. It sets what stands below, and defines `look` and `show`.

    Attributes:
        model_type: in a checkpoint's `config.json`.
        model_class: name of transformers' class.
        style: name of the template that it was taught.
        image_frame: texts that stand before and behind an image's tokens.
        image_text: the text whose token is an image token.
        answer_lead: what an answer begins with, where the template of the family does not end with it: the space that a
            vocabulary has as a part of the next word.
        end: the token that ends an answer, where it is not the tokenizer's own end token.
        aspects: values of `--image-aspect`, the default first.
        tower_at, projector_at, decoder_at: where the model has its vision tower, its projector and its language model.
        takes_vectors: whether its language model can be given vectors between the tokens, as soft prompts need it.
        several_images: whether it was taught to look at several images at once; a sample with more than one is refused otherwise.
    """

    model_type: ClassVar[str]
    model_class: ClassVar[str]
    style: ClassVar[str]
    answer_lead: ClassVar[str] = ""
    end: ClassVar[str | None] = None
    aspects: ClassVar[tuple[str, ...]] = ("pad", "crop", "stretch")
    tower_at: ClassVar[str] = "model.vision_tower"
    projector_at: ClassVar[str] = "model.multi_modal_projector"
    decoder_at: ClassVar[str] = "model.language_model"
    takes_vectors: ClassVar[bool] = True
    several_images: ClassVar[bool] = False

    def __init__(
        self,
        name: str,
        model: Any,
        tokenizer: Any,
        image_processor: Any,
        *,
        template: str | None = None,
        revision: str = "",
        features: str | None = None,
    ) -> None:
        self.name, self.model, self.tokenizer, self.image_processor = name, model, tokenizer, image_processor
        self.template = resolve(template or TEMPLATES[self.style])
        self.revision, self.feature_name = revision, features
        self.linears = LINEARS.format(self.decoder_at.rpartition(".")[2])
        self.image_aspect = self.aspects[0]
        self.cache: Path | None = None
        self.cache_limit: int | None = None
        model.eval().requires_grad_(False)
        parent, _, child = self.tower_at.rpartition(".")
        holder = model.get_submodule(parent)
        if not isinstance(getattr(holder, child), FrozenTower):
            setattr(holder, child, self.wrap(getattr(holder, child)))
        # The tensors themselves are kept beside their ids: the id of one that is gone may come back as another's.
        self._own = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}

    # What a family says

    def wrap(self, tower: nn.Module) -> FrozenTower:
        """The module that takes the vision tower's place in the model."""
        return FrozenTower(tower)

    def look(self, pixels: Sequence[dict[str, Any]]) -> list[Tensor]:
        """What the vision tower answers at the selected layer, one tensor per image; nothing that learns takes part.

        Args:
            pixels: what the image processor made of each image alone.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how it looks at images; define look()")

    def show(
        self, features: Sequence[Tensor]
    ) -> tuple[dict[str, Tensor], Sequence[int | str], tuple[int, ...]]:
        """The model's inputs for images that `look` has seen.

        Returns:
            The inputs; how many image tokens each image takes in the prompt, or the text that stands for it where there are
            others among them; how many rows of `pixel_values` it has.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how it shows images; define show()")

    def image_tokens(self, width: int, height: int) -> int | None:
        """How many tokens an image of a size takes in a prompt, counted without looking at it; `None` where a family does not say.

        Raises:
            DataError: the image processor refuses its proportions, in the processor's words.
        """
        return None

    def cost(self, width: int, height: int) -> tuple[int, int, int] | None:
        """What an image of a size costs, counted from the configuration alone: tokens in a prompt, patches in the tower, numbers
        that are kept of it; `None` where an image of the tower's own size tells."""
        return None

    def process(self, image: Image.Image) -> dict[str, Any]:
        """What the image processor makes of one image: `pixel_values`, and what `look` needs besides."""
        return dict(self.image_processor(images=[image], return_tensors="pt"))

    def aspect_of(self, sample: Sample) -> str:
        """What becomes of a sample's images, as `frame` has it: the user's choice, where a family does not show several otherwise."""
        return self.image_aspect

    def finish(self, inputs: dict[str, Any]) -> None:
        """Add to a batch's inputs, in place, what the family's model needs besides."""

    # What all families share

    def adjust(
        self,
        *,
        features: str | None = None,
        template: str | None = None,
        image_aspect: str | None = None,
        cache: Path | None = None,
        cache_limit: int | None = None,
        max_tokens: int | None = None,
    ) -> None:
        """Put a user's choices in the place of the backbone's own; `None` leaves one as it is.

        Args:
            cache_limit: bytes that the shelves in the cache may take together, see `Shelf`.
            max_tokens: the longest prompt with its image and its answer; a longer one is refused when its batch is made.

        Raises:
            OptionError: no template is called so, or this family does not treat images so.
        """
        if image_aspect is not None and image_aspect not in self.aspects:
            raise OptionError(
                f"--image-aspect {image_aspect}: backbone {self.name} does not do that{nearest(image_aspect, self.aspects)}"
            )
        self.feature_name = features or self.feature_name
        self.template = resolve(template) if template else self.template
        self.image_aspect = image_aspect or self.image_aspect
        self.cache, self.cache_limit = cache or self.cache, cache_limit or self.cache_limit
        self.max_tokens = max_tokens or self.max_tokens
        if image_aspect or cache:
            self.__dict__.pop("_seen", None)
        if features or cache:
            self.__dict__.pop("features", None)

    def with_model(self, model: Any) -> Self:
        """The same backbone around another copy of its model; the frozen feature encoder is shared."""
        other = type(self)(
            self.name,
            model,
            self.tokenizer,
            self.image_processor,
            template=self.template,
            revision=self.revision,
            features=self.feature_name,
        )
        other.image_aspect, other.max_tokens = self.image_aspect, self.max_tokens
        other.cache, other.cache_limit = self.cache, self.cache_limit
        if "features" in self.__dict__:
            other.features = self.features
        return other

    @property
    def device(self) -> torch.device:
        return cast(torch.device, self.model.device)

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers of the language model, bottom first."""
        return cast(nn.ModuleList, self.model.get_submodule(self.decoder_at).layers)

    @property
    def projector(self) -> nn.Module:
        """Maps the vision tower's features to the language model's width."""
        return cast(nn.Module, self.model.get_submodule(self.projector_at))

    @property
    def vision_tower(self) -> nn.Module:
        return cast(nn.Module, self.model.get_submodule(f"{self.tower_at}.tower"))

    @cached_property
    def features(self) -> FeatureEncoder:
        """The frozen image and text encoder for anchors, keys and queries.

        Raises:
            BackboneError: the backbone brings none and none was named.
        """
        if self.feature_name is None:
            raise BackboneError(
                f"backbone {self.name} brings no feature encoder; name one with --features NAME|PATH"
            )
        return FeatureEncoder(self.feature_name, self.device, self.cache, self.cache_limit)

    @property
    def feature_revision(self) -> str | None:
        """Identifies the feature encoder: its name, or a hash of its files."""
        return None if self.feature_name is None else encoder_revision(self.feature_name)

    def hub_name(self, name: str) -> str:
        """The name that a parameter of `model` has in a checkpoint of transformers: without the wrapper of the tower."""
        return name.replace(f"{self.tower_at}.tower.", f"{self.tower_at}.", 1)

    def train_projector(self, learns: bool) -> None:
        """Let the projector learn (in fp32), or keep it as frozen as the rest; decides what counts as the backbone's own."""
        for tensor in self.projector.parameters():
            if learns:
                self._own.pop(id(tensor), None)
            else:
                self._own[id(tensor)] = tensor
        if learns:
            self.projector.float()
        self.projector.requires_grad_(learns)

    def owns(self, tensor: Tensor) -> bool:
        """Whether a tensor is the frozen backbone's; a projector that learns is not."""
        return id(tensor) in self._own

    def batch(self, samples: Sequence[Sample], *, answers: bool) -> Batch:
        """Tokenize, pad on the left and look up image features.

        Args:
            samples: at least one.
            answers: with targets, for training; without, answers and references are taken off the samples.

        Raises:
            DataError: a sample has no answer to learn, is too long, or its image cannot be read.
        """
        if not answers:
            samples = [sample.question_only() for sample in samples]
        for sample in samples:
            if says := self.misplaced(sample):
                raise DataError(f"sample {sample.id!r}: {says}")
        images = [image for sample in samples for image in sample.images]
        aspects = [self.aspect_of(sample) for sample in samples for _ in sample.images]
        seen, each, spans = self.show(self.encode(images, aspects)) if images else ({}, [], ())
        rows = self._rows(samples, iter(each), answers)
        inputs, targets = padded(rows, self.tokenizer.pad_token_id, self.device, answers=answers)
        inputs.update(seen)
        self.finish(inputs)
        return Batch(tuple(samples), inputs, targets, spans)

    @torch.no_grad()
    def encode(self, images: Sequence[ImageSource], aspects: Sequence[str] | None = None) -> list[Tensor]:
        """The frozen tower's features at the selected layer, one tensor per image; each distinct image is encoded once.

        With `aspects` each image is framed in its own way, else all as `image_aspect` says.

        Raises:
            DataError: an image cannot be read, or not be processed.
        """

        def compute(places: list[int]) -> Sequence[Tensor]:
            made = self._ahead.take({keys[place]: framed[place] for place in places})
            pixels = [{**one, "pixel_values": one["pixel_values"].to(self.device)} for one in made]
            # The same features whether they are first asked for inside or outside an autocast region.
            with torch.autocast(self.device.type, enabled=False):
                return self.look(pixels)

        framed = list(zip(images, aspects or [self.image_aspect] * len(images), strict=True))
        keys = [self._key(*one) for one in framed]
        return self._seen.rows(keys, compute)

    def expect(self, samples: Iterable[Sample]) -> None:
        """Begin to read the images of the samples that the next batch is made of, where threads are free for it.

        Not those whose features are known already.
        """
        if not self._ahead.threads:
            return  # a sample may be drawn when it is asked for
        those = ((image, self.aspect_of(one)) for one in samples for image in one.images)
        images = {self._key(*one): one for one in those if isinstance(one[0], Path)}
        self._ahead.begin({key: one for key, one in images.items() if not self._seen.knows(key)})

    def _key(self, image: ImageSource, aspect: str = "") -> bytes:
        """On a shelf an image goes by what it holds; in memory path, size and time of a file are enough: it is not read."""
        key = content_key(image) if self.cache else image_key(image).encode(errors="surrogateescape")
        return key if aspect in ("", self.image_aspect) else key + aspect.encode()

    @cached_property
    def _ahead(self) -> Ahead[bytes]:
        return Ahead(self._prepare, reading_threads(self.device))

    @cached_property
    def _seen(self) -> Remembered[bytes]:
        """Features of images that were looked at; those on a shelf are of one model, precision and way with images."""
        if self.cache is None:
            return Remembered()
        precision = str(self.model.dtype).removeprefix("torch.")
        # Changed code does not serve what older code computed.
        modules = (sys.modules[kind.__module__] for kind in type(self).__mro__ if issubclass(kind, Backbone))
        files = [getattr(module, "__file__", None) for module in (*modules, towers, features)]
        code = source_hash(*filter(None, files), *PICTURED)[:8]
        parts = ("tower", self.revision, self.image_aspect, precision, self.device.type, code)
        return Remembered(shelf=Shelf(self.cache, "-".join(parts), self.cache_limit), device=self.device)

    def _prepare(self, one: tuple[ImageSource, str]) -> dict[str, Any]:
        return self._pixels(*one)

    def _pixels(self, image: ImageSource, aspect: str | None = None) -> dict[str, Any]:
        """What the image processor makes of one image, in the model's type; on the CPU, as this runs in a thread."""
        framed = frame(open_image(image), aspect or self.image_aspect, self.image_processor)
        try:
            made = self.process(framed)
        except ValueError as error:
            raise DataError(
                f"image {image if isinstance(image, Path) else 'in memory'}: {first_line(error)}; leave it out of the data"
            ) from None
        return {**made, "pixel_values": made["pixel_values"].to(self.model.dtype)}
