"""The backbone that goes with the benchmark: loads the shipped base model and the shipped feature encoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from cl_zoo.backbones.backbone import Backbone

HERE = Path(__file__).parent
BASE = HERE / "base"
"""The base model, an ordinary checkpoint of `LlavaForConditionalGeneration`."""
CLIP = HERE / "clip"
"""The small CLIP, a folder for open_clip's `local-dir:`."""
TEMPLATE = "USER: {prompt} ASSISTANT:"


def load(path: Path | None, device: torch.device, dtype: torch.dtype) -> Backbone:
    """The shipped base, or another checkpoint of the same kind at `path`, with the shipped feature encoder.

    Raises:
        BackboneError: the checkpoint is missing or corrupt.
    """
    from cl_zoo.backbones.llava import load as load_llava

    folder = path or BASE
    return load_llava(folder, device, dtype, name="mini", template=TEMPLATE, features=str(CLIP))
