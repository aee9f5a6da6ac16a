"""What can be told of runs before they begin, by a process that has torch: ids, who shares a training, what is to be done.

Backbones are made without weights for it, one for all jobs that use it alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cl_zoo.contract.classes import ONLY_ONE
from cl_zoo.engine.files import canonical
from cl_zoo.engine.folder import run_id
from cl_zoo.runs.identity import hardware, identify, training_key
from cl_zoo.runs.pace import ground
from cl_zoo.runs.prepared import Prepared
from cl_zoo.tasks import letters

if TYPE_CHECKING:
    from cl_zoo.backbones.backbone import Backbone
    from cl_zoo.contract.plugins import Plugins


def foreseen(everything: Sequence[Prepared], *, elsewhere: bool = False) -> list[dict[str, Any]]:
    """For each job what `cl_zoo.runs.plan.Planned` holds, as JSON values.

    Args:
        elsewhere: whether they run on machines that may have other devices, and be faster or slower.
    """
    backbones: dict[str, Backbone | None] = {}
    found = []
    for one in everything:
        key = _backbone_of(one)
        if key not in backbones:
            backbones[key] = _without_weights(one)
        found.append(_foreseen(one, backbones[key], elsewhere))
    return found


def _foreseen(prepared: Prepared, backbone: Backbone | None, elsewhere: bool) -> dict[str, Any]:
    import torch

    from cl_zoo.processes import World

    job = prepared.job
    told = elsewhere and job.device != "auto"
    device = torch.device(job.device) if told else World(job.device).device
    identity = None
    if backbone is not None:
        identity = identify(prepared, backbone, device.type)
    order = letters(prepared.stream)
    # A seed decides nothing where nobody draws: such a run is one for all seeds.
    seed = None if _untouched(prepared.plugins) else job.seed
    same = identity or {**job.to_json(), "order": order, "out": None, "preflight": None}
    digest = hashlib.sha256(canonical({**same, "seed": seed, "label": job.label}).encode()).hexdigest()
    return {
        "order": order,
        "tasks": [task.name for task in prepared.stream],
        "ordered": prepared.plugins.protocol == "sequential",
        "work": prepared.work.to_json(),
        "run": run_id(identity, job.label, job.seed) if identity else None,
        "digest": digest,
        "training": training_key(prepared),
        "ground": ground(identity, hardware(device)) if identity and not elsewhere else None,
    }


def _untouched(plugins: Plugins) -> bool:
    """Whether the backbone answers as it is: nothing is learnt, and no plugin builds anything."""
    built = any(getattr(plugins.manager.hook, hook).get_hookimpls() for hook in ONLY_ONE)
    return plugins.protocol == "none" and not built


def _backbone_of(prepared: Prepared) -> str:
    job, recipe = prepared.job, prepared.recipe
    asked = (prepared.backbone, job.features, prepared.template, job.image_aspect, recipe.precision)
    return repr((*asked, recipe.quantization, recipe.max_tokens))


def _without_weights(prepared: Prepared) -> Backbone | None:
    """A run's backbone as far as its id is concerned; `None` where it cannot be had without weights."""
    import torch

    try:
        return prepared.load_backbone(torch.device("meta"))
    except Exception:  # a loader of somebody else's; the run loads it with weights, or says what is wrong
        return None
