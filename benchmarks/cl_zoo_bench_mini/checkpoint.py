"""Training states on disk: tensors as safetensors, counters as JSON, written beside the old state and then renamed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def replace_folder(finished: Path, target: Path) -> None:
    """Put a completely written folder in the place of `target`."""
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    finished.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def save_state(
    folder: Path, step: int, modules: dict[str, nn.Module], optimizers: dict[str, torch.optim.Optimizer]
) -> None:
    """Write modules, the optimisers' moments and the number of finished steps."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, module in modules.items():
        tensors = {key: value.contiguous() for key, value in module.state_dict().items()}
        save_file(tensors, partial / f"{name}.safetensors")
    for name, optimizer in optimizers.items():
        save_file(_moments(optimizer), partial / f"{name}.safetensors")
    (partial / "state.json").write_text(json.dumps({"step": step}) + "\n", encoding="utf-8")
    replace_folder(partial, folder)


def finished_steps(folder: Path) -> int:
    """How many steps the state in a folder has behind it; 0 where there is none."""
    state = folder / "state.json"
    return int(json.loads(state.read_text(encoding="utf-8"))["step"]) if state.is_file() else 0


def load_state(
    folder: Path, modules: dict[str, nn.Module], optimizers: dict[str, torch.optim.Optimizer]
) -> int:
    """Read what `save_state` wrote, where there is something.

    Returns:
        The number of finished steps.
    """
    done = finished_steps(folder)
    for name, module in modules.items() if done else ():
        module.load_state_dict(load_file(folder / f"{name}.safetensors"))
    for name, optimizer in optimizers.items() if done else ():
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in load_file(folder / f"{name}.safetensors").items():
            index, moment = key.split(".")
            state.setdefault(int(index), {})[moment] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return done


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": value.contiguous()
        for index, moments in state.items()
        for name, value in moments.items()
    }
