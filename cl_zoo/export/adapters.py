"""A run as one LoRA adapter of the stock model, with the projector where it was trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.export.card import Base, write_card
from cl_zoo.export.folding import Folded, Update
from cl_zoo.runs.restore import Restored

METADATA = {"format": "pt"}
"""What transformers asks of a safetensors file."""
PACKED = " The run held the base in 4 bits, and so do the lines below; the fused kernels of bitsandbytes round otherwise than the run did."
"""What a card says where it is so."""


def write_adapter(folder: Path, restored: Restored, folded: Folded) -> list[str]:
    """One PEFT adapter with the projector among its `modules_to_save`."""
    base, backbone = Base.behind(restored.backbone), restored.backbone
    write_lora(folder, folded.updates[0], backbone, base, projector_of(backbone))
    loading = f"""
import torch
from peft import PeftModel
{base.loading}
model = PeftModel.from_pretrained(model, ".")
"""
    what = (
        "An ordinary PEFT LoRA adapter for the language model, with the projector where it was trained. It answers as the run's "
        f"model did after its last task{'' if base.dtype == 'float32' else f', up to the rounding of {base.dtype}'}."
        f"{PACKED if base.whole else ''}"
    )
    write_card(folder, restored, base, what, loading, library="peft")
    return ["."]


def write_lora(
    folder: Path,
    updates: Sequence[Update],
    backbone: Backbone,
    base: Base,
    further: Mapping[str, Tensor],
) -> None:
    """Updates as a LoRA adapter of the stock model; layers without an update are not among its targets.

    Args:
        further: tensors of the projector by their name in the stock model; empty where it goes elsewhere.
    """
    tensors, ranks, scales = {}, {}, {}
    for update in updates:
        if update.down is None or update.up is None:
            continue
        name = backbone.hub_name(update.layer.path)
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = update.down, update.up
        ranks[name], scales[name] = update.down.shape[0], update.layer.scale
    rank, scale = Counter(ranks.values()).most_common(1)[0][0], next(iter(scales.values()))
    others = {name: one for name, one in ranks.items() if one != rank}
    model = type(backbone.model)
    config = LoraConfig(
        base_model_name_or_path=base.place,
        r=rank,
        lora_alpha=_whole(scale * rank),
        rank_pattern=others,
        alpha_pattern={name: _whole(scale * one) for name, one in others.items()},
        target_modules=sorted(ranks),
        modules_to_save=[projector_name(backbone)] if further else None,
        inference_mode=True,
        auto_mapping={"base_model_class": model.__name__, "parent_library": model.__module__},
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.target_modules = sorted(ranks)  # a list in the file, in one order
    config.save_pretrained(folder)
    named = {f"base_model.model.{name}": tensor for name, tensor in {**tensors, **further}.items()}
    save_file(plain(named), folder / "adapter_model.safetensors", METADATA)


def projector_of(backbone: Backbone) -> dict[str, Tensor]:
    """The projector's tensors by their name in the stock model, where it was trained; else nothing."""
    if all(backbone.owns(weight) for weight in backbone.projector.parameters()):
        return {}
    name = projector_name(backbone)
    return {f"{name}.{part}": tensor for part, tensor in backbone.projector.state_dict().items()}


def projector_name(backbone: Backbone) -> str:
    """The projector's name in the stock model."""
    return backbone.hub_name(backbone.projector_at)


def plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors takes them: on the CPU, each with memory of its own."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _whole(value: float) -> float:
    """An integer as one: α is written as 16, not as 16.0."""
    return int(value) if float(value).is_integer() else value
