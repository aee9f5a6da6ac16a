"""Feature encoders by name: open_clip models from the hub, from a folder or from a weights file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from cl_zoo.errors import BackboneError, first_line, nearest

LARGE = 2**26
"""Bytes above which a file is not read for each hash."""
END = 2**12
"""Bytes that are read at both ends of a tensor in a large file."""
LONGEST_HEADER = 10**8
"""Bytes that safetensors takes for a header."""


def encoder_revision(name: str) -> str:
    """Identifies an encoder whatever its path: the name on the hub, or the hash of local files.

    Raises:
        BackboneError: a named file cannot be read.
    """
    folder = Path(name)
    if folder.is_dir():
        return files_hash([*folder.glob("*.json"), *folder.glob("*.safetensors")])
    head, colon, file = name.partition(":")
    if not colon:
        return name
    try:
        return f"{head}:{files_hash([Path(file)])}"
    except OSError as error:
        raise BackboneError(f"--features {name}: {error.strerror}; pass a .safetensors file") from None


def files_hash(files: Iterable[Path]) -> str:
    """A hash of files by name and content; of a large safetensors file by its header and both ends of every tensor.

    So two checkpoints that were trained from one base differ, though hardly any of their bytes are read.
    """
    digest = hashlib.sha256()
    for file in sorted(files):
        status = file.stat()
        digest.update(file.name.encode() + str(status.st_size).encode())
        if status.st_size <= LARGE:
            digest.update(file.read_bytes())
        else:
            digest.update(_of_large(file.resolve(), status.st_size, status.st_mtime_ns))
    return digest.hexdigest()[:16]


@lru_cache(maxsize=2**10)
def _of_large(file: Path, size: int, changed: int) -> bytes:
    """A file is read for it once in a process, and again where its size or time has changed."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        spans = _ends(stream.read(8), stream.read, size)
        if spans is None:
            stream.seek(0)
            return hashlib.file_digest(stream, "sha256").digest()
        for start, end in spans:
            stream.seek(start)
            digest.update(stream.read(end - start))
    return digest.digest()


def _ends(length: bytes, read: Callable[[int], bytes], size: int) -> list[tuple[int, int]] | None:
    """What is hashed of a large file, as (start, end): header and ends of tensors; `None` if it is not safetensors."""
    head = 8 + int.from_bytes(length, "little")
    if head > min(size, LONGEST_HEADER):
        return None
    try:
        tensors = json.loads(read(head - 8))
        places = [about["data_offsets"] for name, about in tensors.items() if name != "__metadata__"]
        tensors = sorted((head + int(first), head + int(last)) for first, last in places)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    if any(not head <= start <= end <= size for start, end in tensors):
        return None
    spans = [(0, head)]
    for start, end in tensors:
        middle = min(start + END, end)
        spans += [(start, middle), (max(middle, end - END), end)]
    return spans


def load_encoder(name: str, device: torch.device) -> tuple[Any, Any, Any, int]:
    """The model, its image transform, its tokenizer and the width of its features.

    Args:
        device: on torch's `meta` the model has shapes and no values; its weights are fetched where they are not here, and not read.

    Raises:
        BackboneError: the name or what lies under it cannot be loaded.
    """
    import open_clip  # takes seconds; only methods that look at features pay for it

    model, settings = encoder_source(name)
    try:
        if device.type == "meta":
            return _shapes(model, settings)
        # It starts from random weights; what a hook draws must not depend on whether it was the first to look.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            clip, transform = open_clip.create_model_from_pretrained(  # refuses to go on without weights
                model, device=device, **settings
            )
        tokenizer = open_clip.get_tokenizer(model)
        width = int(open_clip.get_model_config(model)["embed_dim"])
    except Exception as error:  # open_clip raises whatever its parsers and the hub raise
        raise BackboneError(
            f"--features {name}: {first_line(error)}; check the folder or the network"
        ) from None
    clip.eval().requires_grad_(False)
    return clip, transform, tokenizer, width


def _shapes(model: str, settings: dict[str, Any]) -> tuple[Any, None, None, int]:
    """What `load_encoder` gives for the meta device."""
    import open_clip

    tag = settings.get("pretrained", "")
    if published := open_clip.get_pretrained_cfg(model, tag):
        open_clip.download_pretrained(published)  # the path in the cache where it was fetched before
    with torch.device("meta"):
        clip = open_clip.create_model(model, load_weights=False, device="meta")
    return clip.eval(), None, None, int(open_clip.get_model_config(model)["embed_dim"])


def encoder_source(name: str) -> tuple[str, dict[str, Any]]:
    """open_clip's name of a model, and how it is made.

    Raises:
        BackboneError: no such folder, model or file, or weights that are not named or pickled.
    """
    import open_clip

    folder = Path(name)
    if folder.is_dir():
        if not (folder / "open_clip_config.json").is_file():
            raise BackboneError(
                f"--features {name}: the folder has no open_clip_config.json; pass an open_clip folder"
            )
        if not list(folder.glob("*.safetensors")):
            raise BackboneError(
                f"--features {name}: the folder has no *.safetensors, and pickled weights are not read; check the folder or the network"
            )
        return f"local-dir:{folder}", {}
    head, colon, file = name.partition(":")
    model, _, tag = head.partition("/")
    if model not in open_clip.list_models():
        raise BackboneError(
            f"--features {name}: neither a folder nor a model of open_clip; see open_clip.list_pretrained()"
        )
    if colon:
        return model, _from_file(name, model, tag, Path(file))
    if not tag:
        raise BackboneError(
            f"--features {name}: names a model without weights; write {name}/TAG, see open_clip.list_pretrained()"
        )
    published = open_clip.get_pretrained_cfg(model, tag)
    # OpenAI's weights need QuickGELU, the name does not say so
    return model, {"pretrained": tag, "force_quick_gelu": bool(published.get("quick_gelu"))}


def _from_file(name: str, model: str, tag: str, file: Path) -> dict[str, Any]:
    """How a model is made around a local weights file: it sees as the published weights of that name were trained to."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(model)
    if file.suffix != ".safetensors" or not file.is_file():
        what = "no such file" if not file.is_file() else f"{file.suffix or 'this file'} may hold pickled code"
        hubs = [open_clip.get_pretrained_cfg(model, one).get("hf_hub", "").strip("/") for one in tags]
        where = f", such as open_clip_model.safetensors of {hubs[0]} on the hub" if hubs and hubs[0] else ""
        raise BackboneError(f"--features {name}: {what}; pass a .safetensors file{where}")
    if tag and tag not in tags:
        raise BackboneError(f"--features {name}: {model} has no weights {tag!r}{nearest(tag, tags)}")
    looks = ("quick_gelu", "mean", "std", "interpolation", "resize_mode")
    published = [open_clip.get_pretrained_cfg(model, one) for one in ([tag] if tag else tags)]
    if len({tuple(one.get(look) for look in looks) for one in published}) > 1:
        raise BackboneError(
            f"--features {name}: the published weights of {model} differ in activation or image normalisation; write {model}/TAG:{file}, TAG one of {', '.join(tags)}"
        )
    like = published[0] if published else {}
    seen = {f"image_{look}": like[look] for look in looks[1:] if like.get(look) is not None}
    return {"pretrained": str(file), "force_quick_gelu": bool(like.get("quick_gelu")), **seen}
