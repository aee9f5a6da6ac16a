"""Loading a backbone from a folder, the same way for all families."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.backbones.checkpoints import check_folder
from cl_zoo.errors import BackboneError, first_line
from cl_zoo.features.loading import files_hash

Family = TypeVar("Family", bound=Backbone)


def load_checkpoint(
    family: type[Family],
    path: Path | None,
    device: torch.device,
    dtype: torch.dtype,
    *,
    name: str,
    template: str | None = None,
    features: str | None = None,
) -> Family:
    """A checkpoint of a family from a local folder.

    Args:
        device: on torch's `meta` the model has shapes and no values, and no weights are read.

    Raises:
        BackboneError: no path, no such folder, another class, missing or corrupt weights.
        OptionError: no template is called so.
    """
    if path is None:
        raise BackboneError(f"backbone {name} needs a checkpoint; pass --backbone {name}:FOLDER")
    check_folder(path, family.model_type)
    import transformers

    try:
        model, missing = _model(getattr(transformers, family.model_class), path, device, dtype)
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
        # Two implementations differ in the last bit of a pixel; whichever is installed must not decide a result.
        processor = transformers.AutoImageProcessor.from_pretrained(
            path, local_files_only=True, backend="torchvision"
        )
    except Exception as error:  # safetensors, json and transformers each raise their own
        raise BackboneError(
            f"backbone {path}: {first_line(error)}; the checkpoint is corrupt or incomplete, copy it again"
        ) from None
    if missing:
        raise BackboneError(
            f"backbone {path}: {len(missing)} weights are missing, first {missing[0]}; copy the checkpoint again"
        )
    _mark(tokenizer, family, path)
    # Sampling habits and penalties that a checkpoint brings along would make greedy answers something else.
    model.generation_config = transformers.GenerationConfig.from_model_config(model.config)
    made: dict[str, Any] = {"template": template, "revision": revision_of(path), "features": features}
    return family(name, model.to(device), tokenizer, processor, **made)


def _model(kind: Any, path: Path, device: torch.device, dtype: torch.dtype) -> tuple[Any, list[str]]:
    """A model of transformers, and the names of the weights that its checkpoint lacks."""
    if device.type == "meta":
        import transformers

        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
        with torch.device("meta"):
            return kind(config).to(dtype), []
    model, info = kind.from_pretrained(
        path, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
    )
    return model, sorted(info["missing_keys"])


def _mark(tokenizer: Any, family: type[Backbone], path: Path) -> None:
    """See that a tokenizer knows what marks an image and the end of an answer, and let it pad."""
    known = tokenizer.get_vocab()
    marks = (*family.image_frame, family.image_text, family.end or "")
    for mark in filter(None, (text.strip() for text in marks)):
        if mark not in known:
            raise BackboneError(f"backbone {path}: its tokenizer has no {mark}; copy the checkpoint again")
    if family.end is not None:
        tokenizer.eos_token = family.end
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token


def revision_of(folder: Path) -> str:
    """A hash that changes with a checkpoint: its configuration, vocabulary and weights, as `files_hash` has them.

    Its chat template is not among them: what stands around a prompt is this package's own, and part of a run's id.
    """
    vocabulary = (folder / name for name in ("tokenizer.model", "merges.txt", "vocab.txt"))
    there = [file for file in vocabulary if file.is_file()]
    return files_hash([*folder.glob("*.json"), *folder.glob("*.safetensors"), *there])
