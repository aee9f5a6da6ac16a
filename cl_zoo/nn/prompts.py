"""Soft prompts: vectors that learn and that the frozen language model reads among its token embeddings.

    [pad … pad] [first token] [prompt 1 … prompt P] [rest of the instruction] [answer]

They stand right behind the first real token of each row, which is the beginning-of-sequence token in LLaVA, as in
ModalPrompt's released code (https://arxiv.org/abs/2410.05849). Every row gets its own ones, all rows the same number.
Since the answer stays at the end of the row, the last K logits are still those of the last K targets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from cl_zoo.errors import BackboneError

if TYPE_CHECKING:
    from cl_zoo.backbones.backbone import Backbone


ABOUT_IMAGES = ("image_sizes", "batch_num_images")
"""Inputs that tell a model how its images are laid out in tokens."""


class Prompted(nn.Module):
    """A frozen LLaVA or InternVL behind soft prompts; a method derives from it and says which prompts each sample gets.

    Derived classes hold the prompts, choose among them in `prepare(batch)` and hand them out in `soft_prompts()`. The
    model's own weights stay frozen; its projector learns if the recipe lets it.

    Raises:
        BackboneError: the model counts positions from token ids, among which vectors have no place.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        if not backbone.takes_vectors:
            raise BackboneError(
                f"backbone {backbone.name} takes no soft prompts: it counts positions from token ids; choose a LLaVA or InternVL, or a method without soft prompts"
            )
        self.model = backbone.model

    @property
    def width(self) -> int:
        """Width of the language model's embeddings."""
        return int(self.model.get_input_embeddings().weight.shape[1])

    def soft_prompts(self) -> Tensor:
        """The prompts of the batch that `prepare` saw last, (batch, P, width).

        Called in every forward, so that each has a graph of its own to go backward through.
        """
        raise NotImplementedError(f"{type(self).__name__} chooses no prompts; define soft_prompts()")

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor | None = None, **further: Any
    ) -> Any:
        """As the plain model, P tokens longer; positions are counted anew, `logits_to_keep` counts from the end."""
        about = _taken(further)
        return self.model(**{**further, **self._inputs(input_ids, attention_mask, pixel_values, about)})

    def generate(
        self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor | None = None, **settings: Any
    ) -> Tensor:
        """Token ids (batch, tokens + new): the input without prompts, then what was generated."""
        inputs = self._inputs(input_ids, attention_mask, pixel_values, _taken(settings))
        del inputs["position_ids"]  # generation counts them from the mask, step by step
        made: Tensor = self.model.generate(**inputs, **settings)
        return torch.cat([input_ids, made], dim=1)

    def _inputs(
        self, ids: Tensor, mask: Tensor, pixels: Tensor | None, about: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Embeddings, mask and positions of the row with its prompts."""
        prompts = self.soft_prompts()
        if len(prompts) != len(ids):
            raise ValueError(
                f"prompts were chosen for {len(prompts)} samples and the input has {len(ids)}; call prepare(batch) first"
            )
        embedded, mask = insert(embeddings(self.model, ids, pixels, **about), mask, prompts)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        return {"inputs_embeds": embedded, "attention_mask": mask, "position_ids": positions}


def _taken(inputs: dict[str, Any]) -> dict[str, Tensor]:
    """What the model has to know of images besides, taken out of its inputs: with embeddings it is not asked for."""
    return {name: inputs.pop(name) for name in ABOUT_IMAGES if name in inputs}


def embeddings(model: Any, ids: Tensor, pixels: Tensor | None, **about: Tensor) -> Tensor:
    """What the language model of a LLaVA or InternVL reads for token ids (batch, tokens), (batch, tokens, width).

    Image tokens are replaced by the projected image features, in the order of the rows that have an image, as the model
    itself does when it is given ids.

    Args:
        about: those of `ABOUT_IMAGES` that the model takes.
    """
    embedded = cast(Tensor, model.get_input_embeddings()(ids))
    if pixels is None:
        return embedded
    found = model.model.get_image_features(
        pixel_values=pixels,
        vision_feature_layer=model.config.vision_feature_layer,
        vision_feature_select_strategy=model.config.vision_feature_select_strategy,
        **about,
    )
    shown = torch.cat(tuple(getattr(found, "pooler_output", found)))  # one (patches, width) per image
    places = (ids == model.config.image_token_id)[..., None]
    return embedded.masked_scatter(places.expand_as(embedded), shown.to(embedded))


def insert(embedded: Tensor, mask: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
    """Put prompts behind the first real token of each left-padded row.

    Args:
        embedded: (batch, tokens, width).
        mask: (batch, tokens), one from the first real token on.
        prompts: (batch, P, width); P may be zero.

    Returns:
        (batch, tokens + P, width) in the type of `embedded`, and its mask.
    """
    tokens, count = embedded.shape[1], prompts.shape[1]
    first = mask.argmax(dim=1, keepdim=True)
    place = torch.arange(tokens + count, device=mask.device)[None]
    # Where each place of the longer row reads in [tokens, prompts]: up to the first token, prompts, the rest.
    behind = torch.where(place <= first + count, tokens + place - first - 1, place - count)
    source = torch.where(place <= first, place, behind)
    both = torch.cat([embedded, prompts.to(embedded)], dim=1)
    real = torch.cat([mask, mask.new_ones(prompts.shape[:2])], dim=1)
    return both.take_along_dim(source[..., None], dim=1), real.gather(1, source)


def token_rows(backbone: Backbone, count: int) -> Tensor:
    """Copies of randomly drawn rows of the language model's embedding table, (count, width) in fp32.

    A prompt that starts as a token has the scale of what the frozen model is used to read.
    """
    table: Tensor = backbone.model.get_input_embeddings().weight.detach()
    drawn = torch.randint(len(table), (count,)).to(table.device)  # the same ones on every device
    return table[drawn].float()
