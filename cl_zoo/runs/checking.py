"""What a comparison checks before the first of its runs: once for all jobs that share benchmark, backbone and template.

Backbones are made without weights, so that a fault in the last task of a large model costs seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cl_zoo.backbones.checkpoints import read_by
from cl_zoo.contract.plugins import Plugins
from cl_zoo.errors import BackboneError
from cl_zoo.runs.prepared import Prepared

if TYPE_CHECKING:
    from cl_zoo.backbones.backbone import Backbone
    from cl_zoo.preflight.found import Found


def check_data(everything: Sequence[Prepared]) -> None:
    """Look for all that would stop one of the runs after it has begun.

    Raises:
        DataError: something would, all of it in one message.
        ClZooError: a backbone cannot be had, or not be used as the jobs say.
    """
    groups: dict[str, list[Prepared]] = {}
    for one in everything:
        shared = replace(one.job, choices=(), seed=0, cells="lower", cache=None, cache_limit=None)
        groups.setdefault(repr(shared), []).append(one)
    for group in groups.values():
        if group[0].job.preflight and _worth_it(group[0]):
            _check(group)


def _worth_it(prepared: Prepared) -> bool:
    """Whether anything can be found; where all samples are drawn when they are needed, a backbone would be made for nothing."""
    from cl_zoo.preflight.check import legible

    splits = [split for task in prepared.stream for split in (task.train, task.test)]
    return any(map(legible, splits)) or bool(prepared.job.image_aspect or read_by(prepared.backbone[0]))


def _check(group: Sequence[Prepared]) -> None:
    import torch

    from cl_zoo.preflight.check import refuse

    first = group[0]
    backbone = first.load_backbone(torch.device("meta"))
    found = first.faults(backbone, processes=1)
    for one in {repr(one.job.choices): one for one in group}.values():
        _unserved(one, backbone, found)
    refuse(found)


def _unserved(prepared: Prepared, backbone: Backbone, found: Found) -> None:
    """Whether the backbone has what a stack asks of it when it is built: vectors among its tokens, a feature encoder whose weights can be had."""
    name = backbone.feature_name
    if backbone.takes_vectors and name is not None and Path(name).is_dir():
        return
    from cl_zoo.engine.run import placed

    try:
        placed(Plugins(prepared.job.choices, prepared.recipe.options), backbone, prepared.recipe)
    except BackboneError as error:
        found.add(f"{prepared.job.label}: {error}")
    except (
        Exception
    ):  # a hook that needs values to size its tensors; the run has them, and says what is wrong
        return
