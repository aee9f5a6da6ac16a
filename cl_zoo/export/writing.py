"""Export: a finished run as files that stock PEFT and transformers load.

    static, default     an ordinary LoRA adapter: adapter_config.json, adapter_model.safetensors; the projector goes with it
    static, merged      W + ΔW in an ordinary checkpoint folder, with tokenizer and image processor
    routed              adapters/<task>/, projector.safetensors, routing.json and routing.safetensors

Which of them a run can be is decided by `folding` from its modules. Every folder has a model card.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.engine.folder import write_json
from cl_zoo.errors import OptionError, full_disk_named
from cl_zoo.export.card import Base, card
from cl_zoo.export.folding import Folded, Update, fold
from cl_zoo.nn.layer import BankLayer
from cl_zoo.runs.restore import Restored, restore

CONTENT = {"format": "pt"}
"""Metadata that transformers asks of a safetensors file."""

WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".msgpack", ".h5", ".gguf"}


def export(
    run: Path,
    to: Path,
    *,
    merged: bool = False,
    backbone: str | None = None,
    features: str | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Write a finished run's model to a new folder.

    Args:
        merged: a full checkpoint in place of an adapter.
        backbone, features, device: as in `restore`.

    Returns:
        What was written: `folder`, `kind` (adapter, adapters or checkpoint), `adapters` and `files`.

    Raises:
        OptionError: the folder exists, or the model cannot be exported in this form; the message names what cannot.
        ClZooError: the model cannot be restored.
    """
    if to.exists():
        raise OptionError(f"--to {to}: exists already; name a folder that does not")
    restored = restore(run, backbone=backbone, features=features, device=device)
    try:
        folded = fold(restored.model, restored.backbone)
    except OptionError as error:
        raise OptionError(f"{run}: {error}") from None
    _possible(run, folded, merged)
    draft = to.with_name(f"{to.name}.{secrets.token_hex(4)}.draft")  # nobody's folder
    write = write_checkpoint if merged else write_routed if folded.routed else write_adapter
    with full_disk_named(to):
        try:
            draft.mkdir(parents=True)
            with torch.no_grad():
                adapters = write(draft, restored, folded)
            draft.rename(to)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
    kind = "checkpoint" if merged else "adapters" if folded.routed else "adapter"
    files = sorted(str(file.relative_to(to)) for file in to.rglob("*") if file.is_file())
    return {"folder": str(to), "kind": kind, "adapters": adapters, "files": files}


def _possible(run: Path, folded: Folded, merged: bool) -> None:
    if merged and folded.routed:
        raise OptionError(
            f"{run} weighs its experts by each sample's route, so no one set of weights answers as it does; export without --merged"
        )
    for update in () if merged else folded.updates[0]:
        if update.dense:
            raise OptionError(
                f"{run}: {update.layer.path} holds a change of full rank, which no LoRA can; export with --merged"
            )


# Adapters


def write_adapter(folder: Path, restored: Restored, folded: Folded) -> list[str]:
    """One PEFT adapter with the projector among its `modules_to_save`."""
    base, backbone = Base.of(restored.backbone.model), restored.backbone
    write_lora(folder, folded.updates[0], backbone, base, projector_of(backbone))
    loading = f"""
import torch
from peft import PeftModel
from transformers import {base.model_class}

model = {base.model_class}.from_pretrained({json.dumps(base.place)}, dtype=torch.{base.dtype})
model = PeftModel.from_pretrained(model, ".")
"""
    what = (
        "An ordinary PEFT LoRA adapter for the language model, with the projector where it was trained. It answers as the run's "
        f"model did after its last task{'' if base.dtype == 'float32' else f', up to the rounding of {base.dtype}'}."
    )
    _write_card(folder, card(restored, base, what, loading, library="peft"))
    return ["."]


def write_routed(folder: Path, restored: Restored, folded: Folded) -> list[str]:
    """One PEFT adapter per task, the projector once, and what the route of a sample is made from."""
    base, backbone = Base.of(restored.backbone.model), restored.backbone
    names = folder_names([task.name for task in restored.tasks])
    for name, updates in zip(names, folded.updates, strict=True):
        write_lora(folder / "adapters" / name, updates, backbone, base, {})
    projector = projector_of(backbone)
    if projector:
        save_file(_plain(backbone.projector.state_dict()), folder / "projector.safetensors", CONTENT)
    _write_routing(folder, restored, folded, names)
    loading = f"""
import json
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import {base.model_class}

routing = json.load(open("routing.json"))
model = {base.model_class}.from_pretrained({json.dumps(base.place)}, dtype=torch.{base.dtype})
"""
    if projector:
        loading += f'model.get_submodule("{_projector_name(backbone)}").load_state_dict(load_file("projector.safetensors"))\n'
    loading += """
first, *others = routing["adapters"]
model = PeftModel.from_pretrained(model, f"adapters/{first}", adapter_name=first)
for name in others:
    model.load_adapter(f"adapters/{name}", adapter_name=name)
model.set_adapter(first)  # the adapter of one task alone; for a route see routing.json
"""
    what = (
        "One ordinary PEFT LoRA adapter per task, and a routing file. The run's model answers each sample with the adapters "
        "weighted by its route; `routing.json` says how a route is made and used, `routing.safetensors` holds its anchors."
    )
    _write_card(folder, card(restored, base, what, loading, library="peft"))
    return [f"adapters/{name}" for name in names]


def _write_routing(folder: Path, restored: Restored, folded: Folded, names: Sequence[str]) -> None:
    anchors = folded.routed.anchors  # type: ignore[union-attr]  # the caller's case
    save_file(_plain(anchors.keep()), folder / "routing.safetensors", CONTENT)
    encoder = restored.backbone.feature_name or ""
    routing = {
        **anchors.describe(),
        "adapters": list(names),
        "tasks": [task.name for task in restored.tasks],
        "encoder": {
            "name": Path(encoder).name if Path(encoder).is_dir() else encoder,
            "revision": restored.backbone.feature_revision,
            "library": "open_clip",
        },
        "anchors": "routing.safetensors: for each view a tensor (tasks, width), rows in the order of `adapters`",
        "use": (
            "y = W x + sum over the tasks t of w_t * scaling_t * B_t A_t x in every adapted layer, w the route of the sample; "
            "layers that are the same in all adapters count once, as w sums to one. In PEFT: model.add_weighted_adapter(adapters, "
            'w, "mixed", combination_type="cat") and model.set_adapter("mixed") for a sample; or set_adapter of the largest '
            "w, which is the same where the route is one-hot."
        ),
    }
    write_json(folder / "routing.json", routing)


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
        modules_to_save=[_projector_name(backbone)] if further else None,
        inference_mode=True,
        auto_mapping={"base_model_class": model.__name__, "parent_library": model.__module__},
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.target_modules = sorted(ranks)  # a list in the file, in one order
    config.save_pretrained(folder)
    named = {f"base_model.model.{name}": tensor for name, tensor in {**tensors, **further}.items()}
    save_file(_plain(named), folder / "adapter_model.safetensors", CONTENT)


def folder_names(tasks: Sequence[str]) -> list[str]:
    """A folder name for each task, distinct also where a task comes twice: `ocr`, `ocr-2`."""
    names: list[str] = []
    for task in tasks:
        plain = (
            re.sub(r"[^A-Za-z0-9_-]+", "_", task) or "task"
        )  # PEFT allows no dot in the name of an adapter
        name, count = plain, 1
        while name in names:
            count += 1
            name = f"{plain}-{count}"
        names.append(name)
    return names


# Checkpoints


def write_checkpoint(folder: Path, restored: Restored, folded: Folded) -> list[str]:
    """W + ΔW and the projector in the base's type, saved as the stock model with its tokenizer and image processor."""
    backbone, base = restored.backbone, Base.of(restored.backbone.model)
    model = backbone.model
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
    )
    _write_card(folder, card(restored, base, what, loading, library="transformers"))
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


# Names and tensors


def projector_of(backbone: Backbone) -> dict[str, Tensor]:
    """The projector's tensors by their name in the stock model, where it was trained; else nothing."""
    if all(backbone.owns(weight) for weight in backbone.projector.parameters()):
        return {}
    name = _projector_name(backbone)
    return {f"{name}.{part}": tensor for part, tensor in backbone.projector.state_dict().items()}


def _projector_name(backbone: Backbone) -> str:
    return backbone.hub_name(backbone.projector_at)


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _whole(value: float) -> float:
    """An integer as one: α is written as 16, not as 16.0."""
    return int(value) if float(value).is_integer() else value


def _write_card(folder: Path, text: str) -> None:
    (folder / "README.md").write_text(text, encoding="utf-8")
