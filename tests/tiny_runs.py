"""Runs on tiny tasks that can be looked into: what the tests of the methods share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import Batch
from cl_zoo.contract.plugins import Plugins
from cl_zoo.engine.files import LIST, entry, write_sealed
from cl_zoo.engine.folder import MANIFEST, RunFolder, read_manifest
from cl_zoo.engine.run import Run
from cl_zoo.engine.states import read_list, write_list
from cl_zoo.names import parse_stack
from cl_zoo.processes import World
from cl_zoo.recipe.recipe import Recipe
from cl_zoo.tasks import Sample, TaskData
from cl_zoo.testing import tiny_benchmark

Kind = TypeVar("Kind", bound=Run)
Made = TypeVar("Made")


class Watched(Run):
    """Keeps all weights as they are at the start and after each task."""

    kept: list[dict[str, Tensor]]

    def execute(self) -> None:
        self.start = weights(self.model)
        super().execute()

    def _checkpoint(self, done: int) -> None:
        self.kept = [*getattr(self, "kept", []), weights(self.model)]
        super()._checkpoint(done)


def made_once(make: Callable[..., Made]) -> Callable[..., Made]:
    """The same, but what was made for some arguments is kept for the next time that they are given."""
    kept: dict[str, Made] = {}

    def made(*arguments: Any, **settings: Any) -> Made:
        asked = repr((arguments, sorted(settings.items())))
        if asked not in kept:
            kept[asked] = make(*arguments, **settings)
        return kept[asked]

    return made


def learnt(
    kind: type[Kind],
    stack: str,
    tasks: Sequence[TaskData],
    backbone: Backbone,
    recipe: Recipe,
    root: Path,
    *,
    cells: str = "last",
) -> Kind:
    """A run of the given kind after its last task, with seed 0; its folder is `root/run`."""
    with RunFolder(root, "run", {}) as folder:
        run = kind(
            Plugins(parse_stack(stack)),
            tasks,
            backbone,
            recipe,
            seed=0,
            cells=cells,
            folder=folder,
            world=World("cpu"),
            report=lambda **_: None,
        )
        run.execute()
    return run


def relisted(state: Path) -> None:
    """Let the list of a state say what its files hold now, as if they had been written so."""
    listed = read_list(state)
    assert listed is not None
    files = {file.name: entry(file) for file in state.iterdir() if file.name != LIST}
    write_list(state, files, listed["run"])


def resealed(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a finished run's manifest as if it had been written so; a run from before there were lists."""
    manifest = read_manifest(folder)
    manifest.pop("files", None)
    change(manifest)
    write_sealed(folder / MANIFEST, manifest)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters by name."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def questions(backbone: Backbone) -> Batch:
    """Two samples with an image and one without, of different lengths."""
    samples = [*tiny_benchmark().tasks[0].train[:2], Sample("t", None, "Say one colour .", "red")]
    return backbone.batch(samples, answers=True)


def written_by_hand(model: nn.Module, batch: Batch, tokens: int = 4) -> Tensor:
    """What a model without a cache writes: the whole sequence anew for each token, prepared as if nothing had been asked before."""
    inputs = dict(batch.inputs)
    for _ in range(tokens):
        model.prepare(batch)  # type: ignore[operator]
        token = model(**inputs).logits[:, -1].argmax(-1, keepdim=True)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], token], 1)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(token)], 1)
    return inputs["input_ids"]
