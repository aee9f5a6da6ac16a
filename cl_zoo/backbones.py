"""Backbones: the frozen multimodal model with everything the engine has to know about it.

A backbone plugin is a function `load(path, device, dtype) -> Backbone` under the entry-point group `cl_zoo.backbones`.
`llava` loads any checkpoint of transformers' `LlavaForConditionalGeneration` from a local folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from cl_zoo.batches import IGNORED, Batch
from cl_zoo.errors import BackboneError, DataError, first_line
from cl_zoo.features import FeatureEncoder, Remembered, image_key, open_image
from cl_zoo.tasks import Sample

VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: {prompt} ASSISTANT:"
)
"""LLaVA-1.5's conversation template, vicuna_v1."""

LINEARS = r".*language_model\.layers\.\d+\.(self_attn\.[qkvo]|mlp\.(gate|up|down))_proj"
"""All linears of a Llama decoder. A bare `q_proj` would match CLIP's vision tower as well."""


class FrozenTower(nn.Module):
    """A vision tower that also takes its own output: images it has seen need not pass through it again.

    A tensor of four axes is pixels; one of three axes (batch, patches, width) is what the tower answered for them at the
    layer that the model selects. The projector stays behind it, so features can be kept while the projector learns.
    """

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def train(self, mode: bool = True) -> FrozenTower:
        """Stays in evaluation mode: features that are kept must not hold a dropout mask."""
        return super().train(False)

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> Any:
        if pixel_values.ndim == 4:
            return self.tower(pixel_values, **kwargs)
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        return BaseModelOutputWithPooling(
            last_hidden_state=pixel_values, hidden_states=EveryLayer((pixel_values,))
        )


class EveryLayer(tuple[Tensor, ...]):
    """Hidden states of which only the selected layer is known: every index gives it."""

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(0)


class Backbone:
    """A frozen LLaVA with its tokenizer, image processor, chat template and feature encoder.

    Args:
        name: as on the command line.
        model: a `LlavaForConditionalGeneration`; it is frozen and its vision tower wrapped.
        tokenizer, image_processor: as transformers made them.
        template: text around a prompt, with `{prompt}`; the image token stands before the prompt.
        revision: identifies the weights; part of every run's id.
        features: name or folder of the feature encoder, or `None`.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        tokenizer: Any,
        image_processor: Any,
        *,
        template: str = VICUNA,
        revision: str = "",
        features: str | None = None,
    ) -> None:
        self.name, self.model, self.tokenizer, self.image_processor = name, model, tokenizer, image_processor
        self.template, self.revision, self.feature_name = template, revision, features
        self.linears = LINEARS
        model.eval().requires_grad_(False)
        if not isinstance(model.model.vision_tower, FrozenTower):
            model.model.vision_tower = FrozenTower(model.model.vision_tower)
        # The tensors themselves are kept beside their ids: the id of one that is gone may come back as another's.
        self._own = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
        self._seen: Remembered[str] = Remembered()

    @property
    def device(self) -> torch.device:
        return cast(torch.device, self.model.device)

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers of the language model, bottom first."""
        return cast(nn.ModuleList, self.model.model.language_model.layers)

    @property
    def projector(self) -> nn.Module:
        """Maps the vision tower's features to the language model's width."""
        return cast(nn.Module, self.model.model.multi_modal_projector)

    @property
    def vision_tower(self) -> nn.Module:
        return cast(nn.Module, self.model.model.vision_tower.tower)

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
        return FeatureEncoder(self.feature_name, self.device)

    @property
    def feature_revision(self) -> str | None:
        """Identifies the feature encoder: its name, or a hash of its folder."""
        if self.feature_name is None or not Path(self.feature_name).is_dir():
            return self.feature_name
        return revision_of(Path(self.feature_name))

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
            DataError: a sample has no answer to learn, or its image cannot be read.
        """
        if not answers:
            samples = [sample.question_only() for sample in samples]
        images = [sample.image for sample in samples if sample.image is not None]
        pixels = self.encode(images) if images else None
        width = self._image_tokens(pixels) if pixels is not None else 0
        rows = [self._tokens(sample, width, answers) for sample in samples]
        inputs, targets = self._pad(rows, answers)
        if pixels is not None:
            inputs["pixel_values"] = pixels
        return Batch(tuple(samples), inputs, targets)

    @torch.no_grad()
    def encode(self, images: Sequence[Any]) -> Tensor:
        """The frozen tower's features at the selected layer, (n, patches, width); each distinct image is encoded once."""

        def compute(places: list[int]) -> Tensor:
            opened = [open_image(images[place]) for place in places]
            pixels = self.image_processor(images=opened, return_tensors="pt")["pixel_values"]
            layer = self.model.config.vision_feature_layer
            pixels = pixels.to(self.device, self.model.dtype)
            # The same features whether they are first asked for inside or outside an autocast region.
            with torch.autocast(self.device.type, enabled=False):
                states = self.vision_tower(pixels, output_hidden_states=True).hidden_states
            return cast(Tensor, states[layer])

        return self._seen.rows([image_key(image) for image in images], compute)

    def decode(self, tokens: Tensor) -> list[str]:
        """Generated tokens (batch, n) to answers, without special tokens and outer white space."""
        return [text.strip() for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)]

    def _image_tokens(self, features: Tensor) -> int:
        strategy = self.model.config.vision_feature_select_strategy
        return features.shape[1] - (1 if strategy == "default" else 0)

    def _tokens(self, sample: Sample, image_tokens: int, answers: bool) -> tuple[list[int], list[int]]:
        """Token ids of the prompt, image tokens repeated, and of the answer with its end token."""
        text = sample.prompt if sample.image is None else f"<image>\n{sample.prompt}"
        image = self.model.config.image_token_id
        prompt: list[int] = []
        for token in self.tokenizer(self.template.format(prompt=text))["input_ids"]:
            prompt.extend([token] * image_tokens if token == image else [token])
        if not answers:
            return prompt, []
        if not sample.answer:
            raise DataError(
                f"sample {sample.id!r} ({sample.prompt[:40]!r}…) has no answer to learn; drop it from the training split"
            )
        answer = self.tokenizer(sample.answer, add_special_tokens=False)["input_ids"]
        return prompt, [*answer, self.tokenizer.eos_token_id]

    def _pad(
        self, rows: Sequence[tuple[list[int], list[int]]], answers: bool
    ) -> tuple[dict[str, Any], Tensor | None]:
        # The end token is a target but never an input: nothing is predicted from it.
        sequences = [prompt + answer[:-1] if answers else prompt for prompt, answer in rows]
        longest = max(len(sequence) for sequence in sequences)
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (longest - len(row)) + row for row in sequences])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in sequences])
        inputs: dict[str, Any] = {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}
        if not answers:
            return inputs, None
        kept = max(len(answer) for _, answer in rows)
        targets = torch.tensor([[IGNORED] * (kept - len(answer)) + answer for _, answer in rows])
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0).to(self.device)
        inputs["logits_to_keep"] = kept
        return inputs, targets.to(self.device)


def load_llava(
    path: Path | None,
    device: torch.device,
    dtype: torch.dtype,
    *,
    name: str = "llava",
    template: str = VICUNA,
    features: str | None = None,
) -> Backbone:
    """Any `LlavaForConditionalGeneration` checkpoint in a local folder.

    Raises:
        BackboneError: no path, no such folder, another class, missing or corrupt weights.
    """
    if path is None:
        raise BackboneError("backbone llava needs a checkpoint; pass --backbone llava:FOLDER")
    _check_folder(path)
    from transformers import AutoImageProcessor, AutoTokenizer, LlavaForConditionalGeneration

    try:
        model, info = LlavaForConditionalGeneration.from_pretrained(
            path, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        processor = AutoImageProcessor.from_pretrained(path, local_files_only=True)
    except Exception as error:  # safetensors, json and transformers each raise their own
        raise BackboneError(
            f"backbone {path}: {first_line(error)}; the checkpoint is corrupt or incomplete, copy it again"
        ) from None
    missing = sorted(info["missing_keys"])
    if missing:
        raise BackboneError(
            f"backbone {path}: {len(missing)} weights are missing, first {missing[0]}; copy the checkpoint again"
        )
    return Backbone(
        name,
        model.to(device),
        tokenizer,
        processor,
        template=template,
        revision=revision_of(path),
        features=features,
    )


def revision_of(folder: Path) -> str:
    """A hash that changes with a checkpoint: its configuration and weights, large files by size, head and tail."""
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")]):
        digest.update(file.name.encode() + str(file.stat().st_size).encode())
        with file.open("rb") as stream:
            if file.stat().st_size <= 2**26:
                digest.update(stream.read())
            else:
                digest.update(stream.read(2**20))
                stream.seek(-(2**20), 2)
                digest.update(stream.read())
    return digest.hexdigest()[:16]


def _check_folder(path: Path) -> None:
    import json

    if not path.is_dir():
        raise BackboneError(f"backbone {path}: no such folder; pass the path of a downloaded checkpoint")
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise BackboneError(
            f"backbone {path}: no readable config.json; pass the folder of a LLaVA checkpoint"
        ) from None
    if config.get("model_type") != "llava":
        raise BackboneError(
            f"backbone {path}: holds a {config.get('model_type')!r} model, not 'llava'; pass a LLaVA checkpoint"
        )
    layer = config.get("vision_feature_layer", -2)
    if not isinstance(layer, int):
        raise BackboneError(
            f"backbone {path}: takes its image features from layers {layer}; only checkpoints that take one layer are supported"
        )
    if not list(path.glob("*.safetensors")):
        raise BackboneError(f"backbone {path}: has no weights (*.safetensors); download them into the folder")
