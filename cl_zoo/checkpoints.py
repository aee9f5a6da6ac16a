"""Folders with the weights of a backbone: of which family they are, whether they are complete, where the hub keeps them.

Only names and JSON are looked at here; the weights are read by transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cl_zoo.errors import BackboneError, first_line

FAMILIES = {"llava": "llava", "internvl": "internvl", "qwen2_5_vl": "qwen2.5-vl"}
"""The backbone that reads a checkpoint, by the `model_type` in its `config.json`."""

TITLES = {"llava": "LLaVA", "internvl": "InternVL", "qwen2_5_vl": "Qwen2.5-VL"}

WANTED = ("*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model")
"""Files of a hub repository that a backbone is made of."""


def read_config(folder: Path, title: str = "supported") -> dict[str, Any]:
    """`config.json` of a checkpoint.

    Raises:
        BackboneError: no such folder, or no readable configuration in it.
    """
    if not folder.is_dir():
        raise BackboneError(f"backbone {folder}: no such folder; pass the path of a downloaded checkpoint")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict):
        raise BackboneError(
            f"backbone {folder}: no readable config.json; pass the folder of a {title} checkpoint"
        )
    return config


def family_of(folder: Path) -> str:
    """Name of the backbone that reads a checkpoint.

    Raises:
        BackboneError: its configuration cannot be read or is of no known family.
    """
    config = read_config(folder)
    _refuse_original(folder, config)
    kind = str(config.get("model_type"))
    if kind not in FAMILIES:
        raise BackboneError(
            f"backbone {folder}: holds a {kind!r} model; pass a checkpoint of one of {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[kind]


def check_folder(folder: Path, kind: str) -> None:
    """That a folder holds a complete checkpoint of a model type, as far as names and JSON tell.

    Raises:
        BackboneError: it does not.
    """
    title = TITLES[kind]
    config = read_config(folder, title)
    _refuse_original(folder, config)
    if config.get("model_type") != kind:
        raise BackboneError(
            f"backbone {folder}: holds a {config.get('model_type')!r} model, not {kind!r}; pass a {title} checkpoint"
        )
    layer = config.get("vision_feature_layer", -1)
    if not isinstance(layer, int):
        raise BackboneError(
            f"backbone {folder}: takes its image features from layers {layer}; only checkpoints that take one layer are supported"
        )
    if not any(file.is_file() for file in folder.glob("*.safetensors")):
        raise BackboneError(
            f"backbone {folder}: has no weights (*.safetensors); download them into the folder"
        )
    missing = missing_shards(folder)
    if missing:
        raise BackboneError(
            f"backbone {folder}: lacks {missing[0]}, which its index names ({len(missing)} missing); download it into the folder"
        )


def missing_shards(folder: Path) -> list[str]:
    """Files that the index of a checkpoint in several files names and that are not there."""
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
        files = sorted(set(index["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []  # in one file, or broken: transformers says so
    return [file for file in files if not (folder / file).is_file()]


def hub_folder(name: str, repository: str) -> Path:
    """A folder with a repository of the hub: from the local cache, else downloaded.

    Raises:
        BackboneError: it is not in the cache and cannot be downloaded.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repository, allow_patterns=list(WANTED), local_files_only=True))
        if any(folder.glob("*.safetensors")) and not missing_shards(folder):
            return folder
    except Exception:  # not in the cache; huggingface_hub has a class for each reason
        pass
    try:
        return Path(snapshot_download(repository, allow_patterns=list(WANTED)))
    except Exception as error:  # no network, offline mode, a gate, no space
        raise BackboneError(
            f"backbone {name}: {repository} is not in the local cache and cannot be downloaded "
            f"({first_line(error).partition('. ')[0]}); run `hf download {repository}` where there is a network, or pass {name}:FOLDER"
        ) from None


def _refuse_original(folder: Path, config: dict[str, Any]) -> None:
    """Checkpoints in their authors' own format, of which transformers knows converted ones."""
    kind = str(config.get("model_type"))
    if kind == "internvl_chat":
        raise BackboneError(
            f"backbone {folder}: holds an original InternVL checkpoint; take its conversion, whose name on the hub ends in -hf, such as OpenGVLab/InternVL3-8B-hf"
        )
    if kind.startswith("llava_") and kind not in ("llava_next", "llava_onevision", "llava_next_video"):
        original = True
    else:
        original = kind == "llava" and any(key.startswith("mm_") for key in config)
    if original:
        raise BackboneError(
            f"backbone {folder}: holds an original LLaVA checkpoint; take its conversion (`hf download llava-hf/llava-1.5-7b-hf`, or 13b), "
            "or convert your own with transformers' src/transformers/models/llava/convert_llava_weights_to_hf.py "
            "--text_model_id lmsys/vicuna-7b-v1.5 --vision_model_id openai/clip-vit-large-patch14-336 "
            "--output_hub_path NEW --old_state_dict_id YOURS"
        )
