"""A run as a full checkpoint of the stock model."""

from __future__ import annotations

import shutil
from pathlib import Path

from torch import nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.export.card import Base, write_card
from cl_zoo.export.folding import Folded
from cl_zoo.nn.fourbit import dequantize, quantized
from cl_zoo.nn.layer import BankLayer
from cl_zoo.runs.restore import Restored

WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".msgpack", ".h5", ".gguf"}


def write_checkpoint(folder: Path, restored: Restored, folded: Folded) -> list[str]:
    """W + ΔW and the projector in the base's type, W as it was rounded where the run held it in 4 bits, saved as the stock model with its tokenizer and image processor."""
    backbone, base = restored.backbone, Base.of(restored.backbone.model)
    model, packed = backbone.model, quantized(backbone.model)
    dequantize(model)
    for update in folded.updates[0]:
        linear = update.layer.base_layer
        linear.weight = nn.Parameter(update.merged(), requires_grad=False)
    backbone.projector.to(model.dtype)
    _stock(backbone)
    model.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    backbone.image_processor.save_pretrained(folder)
    _copy_rest(Path(str(model.name_or_path)), folder)
    loading = f"""
import torch
from transformers import AutoImageProcessor, AutoTokenizer, {base.model_class}

model = {base.model_class}.from_pretrained(".", dtype=torch.{base.dtype})
tokenizer = AutoTokenizer.from_pretrained(".")
image_processor = AutoImageProcessor.from_pretrained(".")
"""
    what = (
        f"A full checkpoint: the updates of the run's last model merged into the base's weights and rounded to {base.dtype}, the "
        "projector as it was trained. Merging rounds, so logits differ in their last digits from those of the run's model."
        f"{' The run held the base in 4 bits, and its weights are what they were rounded to there.' if packed else ''}"
    )
    write_card(folder, restored, base, what, loading, library="transformers")
    return []


def _stock(backbone: Backbone) -> None:
    """Take what was put around the model's own modules off again."""
    model = backbone.model
    around = {name: one.base_layer for name, one in model.named_modules() if isinstance(one, BankLayer)}
    for name, inner in {**around, backbone.tower_at: backbone.vision_tower}.items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, inner)
    if hasattr(model, "peft_config"):
        del model.peft_config  # the bank's; it is no adapter that transformers knows


def _copy_rest(base: Path, folder: Path) -> None:
    """Small files of the base folder that were not written anew: processor, chat template, vocabulary.

    How the base generates by default is taken over too: that a run answers greedily is the run's way, not the model's.
    """
    for file in base.iterdir() if base.is_dir() else ():
        wanted = file.is_file() and file.suffix not in WEIGHTS and not file.name.endswith(".index.json")
        kept = file.name == "generation_config.json" or not (folder / file.name).exists()
        if wanted and kept and file.suffix in (".json", ".jinja", ".txt", ".model"):
            shutil.copyfile(file, folder / file.name)
