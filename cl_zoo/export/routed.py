"""A run that routes as one adapter per task, and what the route of a sample is made from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file

from cl_zoo.engine.files import write_json
from cl_zoo.export.adapters import METADATA, plain, projector_name, projector_of, write_lora
from cl_zoo.export.card import Base
from cl_zoo.export.folders import Answering, encoder_name, write_folder
from cl_zoo.export.folding import Folded
from cl_zoo.nn.anchors import VIEWS, Anchors
from cl_zoo.runs.restore import Restored


def write_routed(folder: Path, restored: Restored, folded: Folded) -> list[str]:
    """One PEFT adapter per task, the projector once, and what the route of a sample is made from."""
    base, backbone = Base.behind(restored.backbone), restored.backbone
    names = folder_names([task.name for task in restored.tasks])
    for name, updates in zip(names, folded.updates, strict=True):
        write_lora(folder / "adapters" / name, updates, backbone, base, {})
    anchors = folded.routed.anchors  # type: ignore[union-attr]  # the caller's case
    _write_routing(folder, restored, anchors, names)
    loading = f"""
import json
import torch
from peft import PeftModel
from safetensors.torch import load_file
{base.loading}
with open("routing.json") as file:
    routing = json.load(file)
"""
    if projector_of(backbone):
        loading += f'model.get_submodule("{projector_name(backbone)}").load_state_dict(load_file("projector.safetensors"))\n'
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
    write_folder(folder, restored, _answering(anchors, names), what, loading=loading, library="peft")
    return [f"adapters/{name}" for name in names]


def _answering(anchors: Anchors, names: Sequence[str]) -> Answering:
    """How the adapters are weighed, for a program; none can where samples are looked at in a way that has no name."""
    views = {kind: {"view": view.name, "weight": view.weight} for kind, view in anchors.views.items()}
    how = {"adapters": list(names), "temperature": anchors.temperature, "views": views}
    alone = type(anchors) is Anchors and all(view.name in VIEWS for view in anchors.views.values())
    return Answering("adapters", how, looks=True, alone=alone)


def _write_routing(folder: Path, restored: Restored, anchors: Anchors, names: Sequence[str]) -> None:
    save_file(plain(anchors.keep()), folder / "routing.safetensors", METADATA)
    routing = {
        **anchors.describe(),
        "adapters": list(names),
        "tasks": [task.name for task in restored.tasks],
        "encoder": {
            "name": encoder_name(restored.backbone),
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
