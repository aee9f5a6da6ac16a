"""Export: a finished run as files that stock PEFT and transformers load.

    static, default     an ordinary LoRA adapter: adapter_config.json, adapter_model.safetensors; the projector goes with it
    static, merged      W + ΔW in an ordinary checkpoint folder, with tokenizer and image processor
    routed              adapters/<task>/, projector.safetensors, routing.json and routing.safetensors
    routed by token     gates.safetensors: A, B and the router of each linear
    prompts             prompts.safetensors, projector.safetensors, and how they are chosen in export.json

Which of them a run can be is decided by `folding` from its modules; `adapters`, `routed` and `checkpoints` write one form each.
Every folder has a model card.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from cl_zoo.errors import OptionError, full_disk_named
from cl_zoo.export.adapters import write_adapter
from cl_zoo.export.checkpoints import write_checkpoint
from cl_zoo.export.folding import Folded, fold
from cl_zoo.export.gated import gates_of, write_gated
from cl_zoo.export.prompted import choice_of, write_prompted
from cl_zoo.export.routed import write_routed
from cl_zoo.runs.restore import Restored, restore


def export(
    run: Path,
    to: Path,
    *,
    merged: bool = False,
    backbone: str | None = None,
    features: str | None = None,
    device: str = "auto",
    trust: Sequence[str | Path] = (),
) -> dict[str, Any]:
    """Write a finished run's model to a new folder.

    Args:
        merged: a full checkpoint in place of an adapter.
        backbone, features, device, trust: as in `restore`.

    Returns:
        What was written: `folder`, `kind` (adapter, adapters, checkpoint, prompts or gates), `adapters` and `files`.

    Raises:
        OptionError: the folder exists, or the model cannot be exported in this form; the message names what cannot.
        ClZooError: the model cannot be restored.
    """
    if to.exists():
        raise OptionError(f"--to {to}: exists already; name a folder that does not")
    restored = restore(run, backbone=backbone, features=features, device=device, trust=trust)
    try:
        kind, write = _form(restored, merged)
    except OptionError as error:
        raise OptionError(f"{run}: {error}") from None
    draft = to.with_name(f"{to.name}.{secrets.token_hex(4)}.draft")  # nobody's folder
    with full_disk_named(to):
        try:
            draft.mkdir(parents=True)
            with torch.no_grad():
                adapters = write(draft)
            draft.rename(to)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
    files = sorted(str(file.relative_to(to)) for file in to.rglob("*") if file.is_file())
    return {"folder": str(to), "kind": kind, "adapters": adapters, "files": files}


def _form(restored: Restored, merged: bool) -> tuple[str, Callable[[Path], list[str]]]:
    """What a run's model is written as, and by whom.

    Raises:
        OptionError: it cannot be written so; the message names what cannot.
    """
    choice = choice_of(restored.model, restored.backbone)
    if choice is not None:
        if merged:
            raise OptionError("it reads soft prompts, which are no weights; export without --merged")
        return "prompts", lambda folder: write_prompted(folder, restored, choice)
    layers = gates_of(restored.model, restored.backbone)
    if layers is not None:
        if merged:
            raise OptionError(
                "it routes each token, so no one set of weights answers as it does; export without --merged"
            )
        return "gates", lambda folder: write_gated(folder, restored, layers)
    folded = fold(restored.model, restored.backbone)
    _possible(folded, merged)
    kind = "checkpoint" if merged else "adapters" if folded.routed else "adapter"
    write = {"checkpoint": write_checkpoint, "adapters": write_routed, "adapter": write_adapter}[kind]
    return kind, lambda folder: write(folder, restored, folded)


def _possible(folded: Folded, merged: bool) -> None:
    if merged and folded.routed:
        raise OptionError(
            "it weighs its experts by each sample's route, so no one set of weights answers as it does; export without --merged"
        )
    for update in () if merged else folded.updates[0]:
        if update.dense:
            raise OptionError(
                f"{update.layer.path} holds a change of full rank, which no LoRA can; export with --merged"
            )
