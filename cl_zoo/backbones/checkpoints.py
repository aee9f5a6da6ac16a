"""Folders with the weights of a backbone: of which family they are, whether they are complete, where the hub keeps them.

Only names and JSON are looked at here; the weights are read by transformers.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from cl_zoo.errors import BackboneError, first_line
from cl_zoo.names import BACKBONES, installed

FAMILIES = {
    "llava": "llava",
    "internvl": "internvl",
    "qwen2_5_vl": "qwen2.5-vl",
    "qwen3_vl": "qwen3-vl",
    "smolvlm": "smolvlm2",
    "llava_next": "llava-next",
    "llava_onevision": "llava-onevision",
}
"""The backbone that reads a checkpoint, by the `model_type` in its `config.json`."""
ALSO = {"internvl3.5": "internvl"}
"""Other names of backbones, and the `model_type` that they read."""

TITLES = {
    "llava": "LLaVA",
    "internvl": "InternVL",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL",
    "smolvlm": "SmolVLM2",
    "llava_next": "LLaVA-NeXT",
    "llava_onevision": "LLaVA-OneVision",
}

HUB = {name: f"llava-hf/{name}-hf" for name in ("llava-1.5-7b", "llava-1.5-13b")}
"""Backbones that come from the hub where no folder is named, and the repository of each."""

NEEDED = ("*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model")
"""Files of a hub repository that a backbone is made of."""

WANTED = (*NEEDED, "README.md", "LICENSE*")
"""Files that are downloaded: a model that is exported from this one takes over what its card says of the licence."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""`OWNER/NAME` on the hub."""

INDEX = "model.safetensors.index.json"
SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")


def read_config(folder: Path, title: str = "supported") -> dict[str, Any]:
    """`config.json` of a checkpoint.

    Raises:
        BackboneError: no such folder, or no readable configuration in it.
    """
    if not folder.is_dir():
        raise BackboneError(f"backbone {folder}: no such folder; {_elsewhere(str(folder))}")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict):
        _refuse_adapter(folder)
        raise BackboneError(
            f"backbone {folder}: no readable config.json; pass the folder of a {title} checkpoint"
        )
    return config


def backbone_parts(text: str) -> tuple[str, Path | None]:
    """Name and checkpoint of `NAME`, `NAME:PATH`, a folder (its configuration names the family) or `module:function`.

    Raises:
        BackboneError: a folder of no known family; or it looks like a path, but there is no such folder.
    """
    name, _, path = text.partition(":")
    if any(one.name == name for one in installed(BACKBONES)):  # a folder of that name here changes nothing
        return name, Path(path) if path else None
    if Path(text).is_dir():
        return family_of(Path(text)), Path(text)
    if ":" not in text and ("/" in text or text.startswith(".")):
        raise BackboneError(f"backbone {text}: no such folder; {_elsewhere(text)}")
    return text, None


def _elsewhere(text: str) -> str:
    """What to do about a folder that is not there: it may be a name on the hub, perhaps in the local cache."""
    if not HUB_ID.fullmatch(text):
        return "pass the path of a downloaded checkpoint"
    from huggingface_hub import try_to_load_from_cache

    kept = try_to_load_from_cache(text, "config.json")
    if isinstance(kept, str):
        return f"the hub's {text} is in the local cache, pass {Path(kept).parent}"
    return (
        "pass the path of a downloaded checkpoint; of a name on the hub, "
        f"`hf download {text} --local-dir FOLDER` makes one"
    )


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


def read_by(backbone: str) -> str | None:
    """The `model_type` that a backbone of this package reads, by its name; `None` for anybody else's."""
    names = {**{name: kind for kind, name in FAMILIES.items()}, **ALSO}
    named = [name for name in names if f"{backbone}-".startswith(f"{name}-")]
    return names[max(named, key=len)] if named else None  # `llava-next` is not a `llava`


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
        pickled = min((file.name for file in folder.glob("*.bin")), default=None)
        raise BackboneError(
            f"backbone {folder}: has no weights (*.safetensors)"
            + (f", and {pickled} is a pickle, which could run code and is not read" if pickled else "")
            + "; download them into the folder"
        )
    missing = missing_shards(folder)
    if missing:
        raise BackboneError(
            f"backbone {folder}: lacks {missing[0]}, which its other files name ({len(missing)} missing); download it into the folder"
        )


def missing_shards(folder: Path) -> list[str]:
    """What a checkpoint in several files lacks: files that its index or their own numbers name, and the index itself."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        files = sorted(set(index["weight_map"].values()))
    except FileNotFoundError:
        files = _numbered(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []  # broken: transformers says so
    return [file for file in files if not (folder / file).is_file()]


def _numbered(folder: Path) -> list[str]:
    """The files of a checkpoint whose index is not there, as the names of some of them tell, and the index."""
    if (folder / "model.safetensors").is_file():
        return []  # in one file
    found = [SHARD.fullmatch(file.name) for file in sorted(folder.glob("*.safetensors"))]
    names = {
        f"{one[1]}-{number:05d}-of-{one[3]}.safetensors"
        for one in found
        if one
        for number in range(1, int(one[3]) + 1)
    }
    return [*sorted(names), INDEX] if names else []


def _lacking(folder: Path) -> list[str]:
    """What a downloaded folder lacks before a backbone can be made of it; a download may have been interrupted."""
    weights = [] if any(folder.glob("*.safetensors")) else ["*.safetensors"]
    kinds = (
        ("config.json",),
        ("preprocessor_config.json", "processor_config.json"),
        ("tokenizer.json", "tokenizer.model", "vocab.json"),
    )
    others = [names[0] for names in kinds if not any((folder / name).is_file() for name in names)]
    return [*others, *weights, *missing_shards(folder)]


def in_cache(repository: str) -> tuple[Path | None, str]:
    """The folder of a repository of the hub in the local cache, or what is wrong: `is not in the local cache`."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repository, allow_patterns=list(NEEDED), local_files_only=True))
    except Exception:  # not in the cache; huggingface_hub has a class for each reason
        return None, "is not in the local cache"
    lacking = _lacking(folder)
    return (None, f"is in the local cache without {lacking[0]}") if lacking else (folder, "")


def hub_folder(name: str, repository: str) -> Path:
    """A folder with a repository of the hub: from the local cache, else downloaded, as is what an interrupted download left out.

    Raises:
        BackboneError: it is not in the cache, or not all of it, and cannot be downloaded.
    """
    from huggingface_hub import snapshot_download

    kept, state = in_cache(repository)
    if kept is not None:
        return kept
    try:
        folder = Path(snapshot_download(repository, allow_patterns=list(WANTED)))
        lacking = _lacking(folder)  # without a network, huggingface_hub may answer with what was there before
        reason = f"{lacking[0]} is still missing" if lacking else ""
    except Exception as error:  # no network, offline mode, a gate, no space
        reason = first_line(error).partition(". ")[0]
    if reason:
        raise BackboneError(
            f"backbone {name}: {repository} {state} and cannot be downloaded ({reason}); run `hf download {repository}` where there is a network, or pass {name}:FOLDER"
        )
    return folder


def _refuse_adapter(folder: Path) -> None:
    """A folder that PEFT wrote: weights to be put on a base, whose name it holds."""
    try:
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))[
            "base_model_name_or_path"
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return
    raise BackboneError(
        f"backbone {folder}: holds an adapter of {base}, not a model; pass the folder of its base, or merge it into that first (PEFT's "
        "merge_and_unload and save_pretrained) to start from both"
    )


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
