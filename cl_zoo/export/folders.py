"""A folder that answers without the run: what it says of itself, and a program of its own that needs no cl_zoo.

The program is written for models whose images all take the same number of tokens; of others `cl_zoo.load` answers alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import save_file

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.backbones.checkpoints import backbone_parts
from cl_zoo.backbones.templates import around
from cl_zoo.engine.files import entry, write_sealed
from cl_zoo.export.adapters import METADATA, plain, projector_name, projector_of
from cl_zoo.export.card import PARENTS, Base, write_card
from cl_zoo.export.programs import program
from cl_zoo.features.loading import encoder_source
from cl_zoo.nn.fourbit import quantized
from cl_zoo.runs.exported import ABOUT, PROJECTOR
from cl_zoo.runs.restore import Restored

OF_THE_RUN = "id label seed protocol tasks metrics order matrix strict scores ledger".split()
SIZES = ((24, 24), (4000, 300), (300, 4000))
"""Width and height of images that may take another number of tokens than each other."""


@dataclass(frozen=True)
class Answering:
    """What a folder holds.

    Attributes:
        kind: `prompts`, `adapters` or `gates`.
        how: what its tensors do not say, as JSON.
        looks: whether samples are looked at through the feature encoder.
        alone: whether a program without this package can do the same.
    """

    kind: str
    how: Mapping[str, Any]
    looks: bool
    alone: bool = True


def write_folder(
    folder: Path,
    restored: Restored,
    answering: Answering,
    what: str,
    *,
    loading: str | None = None,
    library: str = "transformers",
) -> None:
    """Write what all kinds of folders have beside the tensors of their own: projector, program, card, and what lists them.

    Args:
        what: one paragraph for the card on what the folder holds.
        loading: Python lines for the card that load it; default: with this package.
        library: that these lines need.
    """
    backbone, base = restored.backbone, Base.of(restored.backbone.model)
    encoder = _encoder(backbone) if answering.looks else None
    learnt = projector_of(backbone)
    if learnt:
        save_file(plain(backbone.projector.state_dict()), folder / PROJECTOR, METADATA)
    # Kernels of transformers and bitsandbytes round otherwise for a single row; a program of its own would answer something else.
    packed = quantized(backbone.model)
    takes = answering.alone and not packed and one_size(backbone) and _framed(backbone) is not None
    if takes:
        text = program(
            answering.kind,
            base.model_class,
            base.dtype,
            projector=projector_name(backbone) if learnt else None,
            encoder=encoder["place"] if encoder else None,
            pads=bool(_framed(backbone)),
        )
        (folder / "answer.py").write_text(text, encoding="utf-8")
    lines = loading or _loading(base, encoder)
    write_card(folder, restored, base, f"{what} {_asking(encoder, takes, packed)}", lines, library=library)
    _write_about(folder, restored, answering, encoder)


def _asking(encoder: Mapping[str, Any] | None, program: bool, packed: bool) -> str:
    if packed:
        return "It has no program that answers without cl_zoo: the run held the base in 4 bits."
    if not program:
        return (
            "It has no program that answers without cl_zoo: images take tokens by their size, or are framed or looked at in a way "
            "of their own."
        )
    beside = " ENCODER" if encoder and encoder["files"] else ""
    return (
        f"`python answer.py BASE{beside} < questions.jsonl` answers without cl_zoo; its first lines say how."
    )


def _loading(base: Base, encoder: Mapping[str, Any] | None) -> str:
    features = ", features=ENCODER" if encoder else ""
    return f"""
import cl_zoo

{base.line}
{_line(encoder) if encoder else ""}
run = cl_zoo.load(".", backbone=BASE{features})  # run.generate(images, prompts)
"""


def _line(encoder: Mapping[str, Any]) -> str:
    """The line of Python that says what `features` takes."""
    here = {
        "folder": "  # a folder: give the path where it lies on your machine",
        "file": "  # behind the colon a file: give the path where it lies on your machine",
    }
    return f"ENCODER = {json.dumps(encoder['name'])}{here.get(encoder['place'], '')}"


def _write_about(
    folder: Path, restored: Restored, answering: Answering, encoder: Mapping[str, Any] | None
) -> None:
    """Write `export.json`; it comes last, since it lists what lies there."""
    backbone, base = restored.backbone, Base.of(restored.backbone.model)
    name, path = backbone_parts(restored.manifest["job"]["backbone"])
    about = {
        "kind": answering.kind,
        "how": dict(answering.how),
        "base": {
            "name": base.named,
            "class": base.model_class,
            "backbone": PARENTS.sub("", f"{name}:{path.name}" if path else name),
            "folder": path is not None,
            "revision": backbone.revision,
        },
        "encoder": encoder,
        "asked": _asked(backbone),
        "generate": {
            "max_new_tokens": restored.max_new_tokens,
            "do_sample": False,
            "num_beams": 1,
            "eos_token_id": backbone.tokenizer.eos_token_id,
            "pad_token_id": backbone.tokenizer.pad_token_id,
        },
        "precision": restored.recipe.precision,
        "run": _run(restored.manifest),
        "files": {
            str(file.relative_to(folder)): dict(entry(file))
            for file in sorted(folder.rglob("*"))
            if file.is_file() and file.suffix in (".safetensors", ".json")
        },
    }
    write_sealed(folder / ABOUT, about)


def one_size(backbone: Backbone) -> bool:
    """Whether every image is one row of `pixel_values` and the same number of image tokens, and nothing else goes in."""
    if len({backbone.image_tokens(*size) for size in SIZES} | {None}) != 2:
        return False
    inputs, shown, spans = backbone.show(backbone.encode([Image.new("RGB", (24, 24))]))
    return set(inputs) == {"pixel_values"} and isinstance(shown[0], int) and not spans


def _framed(backbone: Backbone) -> bool | None:
    """Whether an image is put on a square before the processor takes it; `None` where the program has no words for what is done."""
    crops = bool(getattr(backbone.image_processor, "do_center_crop", False))
    if backbone.image_aspect == ("crop" if crops else "stretch"):
        return False
    return True if backbone.image_aspect == "pad" else None


def _asked(backbone: Backbone) -> dict[str, Any]:
    """How a question becomes tokens: each text is tokenized alone."""
    head, tail = around(backbone.template)
    before, behind = backbone.image_frame
    one = one_size(backbone)
    return {
        "start": backbone._start,
        "head": head,
        "tail": tail,
        "before_image": before,
        "behind_image": behind,
        "image_token": int(backbone.model.config.image_token_id),
        "image_tokens": backbone.image_tokens(*SIZES[0]) if one else None,
        "image_aspect": backbone.image_aspect,
    }


def encoder_name(backbone: Backbone) -> str:
    """What the run called its feature encoder, of a folder or file here the last part alone."""
    name = backbone.feature_name or ""
    head, colon, file = name.partition(":")
    return Path(name).name if Path(name).is_dir() else f"{head}{colon}{Path(file).name}"


def _encoder(backbone: Backbone) -> dict[str, Any]:
    """The feature encoder as open_clip makes it; of a folder or file here the names alone, and the SHA-256 of what lies there."""
    name = backbone.feature_name or ""
    model, settings = encoder_source(name)
    place, files = "name", list[Path]()
    if Path(name).is_dir():
        place, files = "folder", sorted([*Path(name).glob("*.json"), *Path(name).glob("*.safetensors")])
        model = f"local-dir:{Path(name).name}"
    elif ":" in name:
        place, files = "file", [Path(settings.pop("pretrained"))]
    return {
        "name": encoder_name(backbone),
        "place": place,
        "files": {file.name: entry(file)["sha256"] for file in files},
        "model": model,
        "settings": settings,
        "revision": backbone.feature_revision,
        "library": "open_clip",
    }


def _run(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What of a run's manifest says how it scored, and what its model was asked with."""
    kept = {name: manifest[name] for name in OF_THE_RUN if name in manifest}
    identity = {name: _nobodys(manifest["identity"][name]) for name in ("benchmark", "stack", "recipe")}
    return {**_nobodys(kept), "identity": {**identity, "backbone": manifest["identity"]["backbone"]}}


def _nobodys(value: Any) -> Any:
    """The same without the folders of this machine."""
    if isinstance(value, str):
        return PARENTS.sub("", value)
    if isinstance(value, Mapping):
        return {name: _nobodys(one) for name, one in value.items()}
    return [_nobodys(one) for one in value] if isinstance(value, list | tuple) else value
