"""Soft prompts: vectors that learn and that the frozen language model reads among its token embeddings.

    [pad … pad] [first token] [prompt 1 … prompt P] [rest of the instruction] [answer]

They stand right behind the first real token of each row, which is the beginning-of-sequence token in LLaVA, as in
ModalPrompt's released code (https://arxiv.org/abs/2410.05849). Every row gets its own ones, all rows the same number.
Since the answer stays at the end of the row, the last K logits are still those of the last K targets.

The model is given a longer row of token ids, and the prompts take the places of the embeddings of the ids that stand in for them.
So it looks at images and counts positions by itself, in one axis or in three, as if the prompts were words of the instruction.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cl_zoo.batches import Batch, forward
from cl_zoo.errors import BackboneError

if TYPE_CHECKING:
    from cl_zoo.backbones.backbone import Backbone
    from cl_zoo.nn.chosen import Choice


class Prompted(nn.Module):
    """A frozen model behind soft prompts; a method derives from it and says which prompts each sample gets.

    Derived classes hold the prompts, choose among them in `prepare(batch)` and hand them out in `soft_prompts()`. The
    model's own weights stay frozen; its projector learns if the recipe lets it.

    Raises:
        BackboneError: the backbone says that vectors have no place between the tokens of its language model.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        if not backbone.takes_vectors:
            raise BackboneError(
                f"backbone {backbone.name} takes no soft prompts; choose another backbone, or a method without soft prompts"
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

    def choice(self) -> Choice | None:
        """The prompts that answer and how they are chosen, where that can be said so; then a run can be exported."""
        return None

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **further: Any) -> Any:
        """As the plain model, P tokens longer; positions are counted anew, `logits_to_keep` counts from the end."""
        with self._reading(input_ids, attention_mask, further) as inputs:
            if "mm_token_type_ids" not in inputs:  # with which the model counts them itself, in three axes
                inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
            return self.model(**inputs)

    def generate(self, input_ids: Tensor, attention_mask: Tensor, **settings: Any) -> Tensor:
        """Token ids (batch, tokens + new): the input without prompts, then what was generated."""
        with self._reading(input_ids, attention_mask, settings) as inputs:
            made: Tensor = self.model.generate(**inputs)
        return torch.cat([input_ids, made[:, inputs["input_ids"].shape[1] :]], dim=1)

    @contextmanager
    def _reading(self, ids: Tensor, mask: Tensor, further: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Inside, the model reads the prompts once, in the longer row whose inputs are given."""
        prompts = self.soft_prompts()
        if len(prompts) != len(ids):
            raise ValueError(
                f"prompts were chosen for {len(prompts)} samples and the input has {len(ids)}; call prepare(batch) first"
            )
        standing = ids.new_full((*prompts.shape[:2], 1), self._word)
        longer, real = insert(ids[..., None], mask, standing)
        inputs = {**further, "input_ids": longer[..., 0], "attention_mask": real}
        inputs.pop("position_ids", None)
        if (kinds := further.get("mm_token_type_ids")) is not None:
            words = torch.zeros_like(standing, dtype=kinds.dtype)
            inputs["mm_token_type_ids"] = insert(kinds[..., None], mask, words)[0][..., 0]
        places = mask.argmax(dim=1, keepdim=True) + 1 + torch.arange(prompts.shape[1], device=mask.device)

        def put(table: nn.Module, given: Any, embedded: Tensor) -> Tensor:
            reading.remove()  # a later step of generation reads what was generated
            beams = len(embedded) // len(prompts)
            rows = prompts.repeat_interleave(beams, dim=0).to(embedded)
            return embedded.scatter(
                1, places.repeat_interleave(beams, dim=0)[..., None].expand_as(rows), rows
            )

        reading = self.model.get_input_embeddings().register_forward_hook(put)
        try:
            yield inputs
        finally:
            reading.remove()

    @property
    def _word(self) -> int:
        """A token id that stands for no image."""
        return int(self.model.config.image_token_id == 0)


def insert(embedded: Tensor, mask: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
    """Put prompts, or the ids that stand in for them, behind the first real token of each left-padded row.

    Args:
        embedded: (batch, tokens, width); width is one for ids.
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


def read_first(backbone: Backbone, batch: Batch) -> Tensor:
    """What the language model's first layer reads of a batch, images in their places and no prompts, (batch, tokens, width)."""
    found: list[Tensor] = []

    def look(layer: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        found.append(given[0] if given else named["hidden_states"])

    handle = backbone.layers[0].register_forward_pre_hook(look, with_kwargs=True)
    try:
        forward(backbone.model, batch)
    finally:
        handle.remove()
    return found[0]


def token_rows(backbone: Backbone, count: int) -> Tensor:
    """Copies of randomly drawn rows of the language model's embedding table, (count, width) in fp32.

    A prompt that starts as a token has the scale of what the frozen model is used to read.
    """
    table: Tensor = backbone.model.get_input_embeddings().weight.detach()
    drawn = torch.randint(len(table), (count,)).to(table.device)  # the same ones on every device
    return table[drawn].float()
