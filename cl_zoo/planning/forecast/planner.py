"""What a planned comparison will cost: parameters, memory, compute, time and disk, without weights and without running it.

Parameters are exact: the method's own hooks place them on the model's shapes (`cl_zoo.engine.sizes`). Steps and samples are exact where
the sizes of the tasks are. FLOPs follow the ledger's rule. Memory and time are estimates by the formulas below; nothing that
a hook computes besides (a teacher, Fisher information, anchors, rehearsed samples) is in them.

    memory of a process
      weights      bytes of the precision, each frozen parameter; with quantization=nf4 those of the codes and scales of the layers' linears
      written out  the largest of these linears in full, as one at a time is
      learning     16 bytes per trained parameter: fp32 weight and gradient, AdamW's two moments
      kept         4 bytes per stored parameter that does not learn now
      activations  of the micro-batch, by `cl_zoo.planning.forecast.activations`: for each token and layer about (34 h + 9 f) bytes in
                   bf16 with width h, inner width f, and adapters and their dropout on all linears; with checkpointing 2 h, and one layer in full
      answering    keys and values of a batch of answers; it is not there at the same time as the activations
      features     of images that the tower has seen, up to 1 GiB
      encoder      4 bytes per parameter of the feature encoder, where a stack asks for it while it is built
    seconds
      training     (training + recomputed FLOPs) / (efficiency × peak); the tower likewise
      answering    prompt FLOPs / (efficiency × peak) + answer tokens of a batch × bytes that it reads of the weights / (0.6 × bandwidth)
    disk
      features     with a cache, those of every image that is looked at, each once, with a record of 92 bytes; where a stack asks for
                   the feature encoder, its features in fp32 of every image and, as if no prompt came twice, of every prompt. With
                   a limit no more than that: the images that found no place pass through the tower at every use
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import ceil, inf
from typing import Any

import torch

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.backbones.checkpoints import backbone_parts
from cl_zoo.contract.plugins import Plugins
from cl_zoo.engine.ledger import TaskCost, training_flops
from cl_zoo.engine.sizes import Size, sizes
from cl_zoo.errors import BackboneError
from cl_zoo.features.shelves import STRIDE
from cl_zoo.names import BACKBONES, Choice, load
from cl_zoo.planning.forecast.activations import activations, decoder_of
from cl_zoo.planning.forecast.gpus import Gpu
from cl_zoo.planning.forecast.weights import weights
from cl_zoo.planning.forecast.workload import Look, TaskLoad, distinct
from cl_zoo.planning.sizes import published, shapes
from cl_zoo.recipe.recipe import Recipe

EFFICIENCY = 0.35
"""Share of a GPU's peak that training and reading a prompt are taken to reach."""
OF_BANDWIDTH = 0.6
"""Share of a GPU's memory bandwidth that writing an answer is taken to reach."""
KEPT_FEATURES = 2**30
CLIP = 427_944_193
"""Parameters of ViT-L-14-336, the encoder of the papers, which stands in where a backbone has shapes alone."""
ANSWER_BYTES = 300
"""Of a record of an answer file: id, prompt, answer and route."""


def planned_backbone(name: str) -> Backbone:
    """A backbone to plan with: shapes alone for a published model or a checkpoint folder, else what its plugin loads.

    Raises:
        BackboneError: there is no such backbone, or it can neither be shaped nor loaded.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    label, path = backbone_parts(name)
    if name in published() or (path is not None and (path / "config.json").is_file()):
        return shapes(name if path is None else str(path))
    try:
        loaded: Backbone = load(BACKBONES, label)(path, torch.device("cpu"), torch.float32)
    except BackboneError as error:
        raise BackboneError(
            f"{str(error).partition(';')[0]}; or name one of the published shapes: {', '.join(published())}"
        ) from None
    return loaded


class Watched:
    """A feature encoder that tells whether anything was asked of it; it is loaded only then."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone, self.asked = backbone, False

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)  # no plugin's business, and no copy's
        found = getattr(self._backbone.features, name)
        self.asked = True
        return found


@dataclass(frozen=True)
class Forecast:
    """What one run will cost.

    Attributes:
        tasks: as in a run's ledger; `seconds` by the formula.
        sizes: parameters after each task.
        answers: answered samples, over all cells.
        flops: training, recomputed, tower, answering.
        memory: bytes of a process by part, see the module.
        seconds: training, tower, answering.
        disk: bytes of checkpoint, answers and, with a shelf, features.
        shelf: bytes that a shelf of all features takes, whether there is one or not.
    """

    label: str
    tasks: tuple[TaskCost, ...]
    sizes: tuple[Size, ...]
    answers: int
    flops: dict[str, float]
    memory: dict[str, float]
    seconds: dict[str, float]
    disk: dict[str, float]
    shelf: float = 0.0

    @property
    def trained(self) -> int:
        return max((sum(task.trained.values()) for task in self.tasks), default=0)

    @property
    def peak_memory(self) -> float:
        """Bytes; activations and answering take turns."""
        turns = ("activations", "answering")
        return sum(size for part, size in self.memory.items() if part not in turns) + max(
            self.memory[part] for part in turns
        )

    def to_json(self) -> dict[str, Any]:
        tasks = [vars(task) | {"seconds": round(task.seconds, 1)} for task in self.tasks]
        return {
            "method": self.label,
            "tasks": tasks,
            "sizes": [size.to_json() for size in self.sizes],
            "answers": self.answers,
            "flops": self.flops,
            "memory": {**self.memory, "peak": self.peak_memory},
            "seconds": {**self.seconds, "total": sum(self.seconds.values())},
            "disk": self.disk,
            "shelf": self.shelf,
        }


@dataclass(frozen=True)
class Planner:
    """Forecasts runs of one comparison.

    Args:
        backbone: is left as it is; each run is planned on a copy.
        stream: the tasks in order, as work.
        look: what an image costs.
        shelved: whether features are kept on disk for all runs.
        limit: bytes that they may take there.
    """

    backbone: Backbone
    stream: Sequence[TaskLoad]
    look: Look
    recipe: Recipe
    cells: str
    gpu: Gpu
    efficiency: float = EFFICIENCY
    shelved: bool = False
    limit: float = inf

    def forecast(self, choices: Sequence[Choice]) -> Forecast:
        """What one run of a stack costs.

        Raises:
            PluginError: its hooks cannot be placed without values and data.
        """
        backbone, looked = self.backbone.with_model(deepcopy(self.backbone.model)), Watched(self.backbone)
        vars(backbone)["features"] = looked
        protocol = Plugins(choices, self.recipe.options).protocol
        found = sizes(choices, backbone, self.recipe, len(self.stream))
        tasks = self._learnt(protocol, found, backbone)
        language = training_flops(backbone, 1, 0) / 4
        cells = self._cells(protocol)
        read, written = self._answering(cells, found, language)
        learns, whole = bool(tasks), self._stored(bool(tasks), looked.asked)
        shelf = min(whole, self.limit) if self.shelved else 0.0
        looks = self._looks(cells, learns, shelf / (whole or 1.0))
        again = sum(2 * task.tokens * (language + sum(task.trained.values())) for task in tasks)
        flops = {
            "training": sum(task.flops for task in tasks),
            "recomputed": again if self.recipe.checkpointing else 0.0,
            "tower": 2 * self._tower * self.look.patches * looks,
            "answering": read + written,
        }
        seconds = self._seconds(flops, read, cells)
        for task in tasks:
            task.seconds = seconds["training"] * task.tokens / sum(other.tokens for other in tasks)
        kept = sum(found[-1].continuing.values())
        answers = sum(place.test for _, place in cells)
        return Forecast(
            label="+".join(choice.label for choice in choices if not choice.probe),
            tasks=tuple(tasks),
            sizes=tuple(found),
            answers=answers,
            flops=flops,
            memory=self._memory(found, learns, looked.asked),
            seconds=seconds,
            disk={
                "checkpoint": 4.0 * kept,
                "answers": float(ANSWER_BYTES * answers),
                "features": shelf,
            },
            shelf=whole,
        )

    # Work

    def _learnt(self, protocol: str, found: Sequence[Size], backbone: Backbone) -> list[TaskCost]:
        """The lessons of a run, as its ledger will list them."""
        if protocol == "none":
            return []
        lessons = (
            [("joint", list(self.stream))] if protocol == "joint" else [(t.name, [t]) for t in self.stream]
        )
        costs = []
        for (name, parts), size in zip(lessons, found, strict=True):
            recipe, train = self.recipe.for_task(name), sum(part.train for part in parts)
            tokens = round(sum(part.train * part.tokens for part in parts) * recipe.epochs)
            costs.append(
                TaskCost(
                    name,
                    steps=-(-train // recipe.global_batch) * recipe.epochs,
                    samples=train * recipe.epochs,
                    tokens=tokens,
                    answer_tokens=round(sum(part.train * part.answer for part in parts) * recipe.epochs),
                    flops=training_flops(backbone, tokens, sum(size.trained.values())),
                    trained=dict(size.trained),
                )
            )
        return costs

    def _cells(self, protocol: str) -> list[tuple[int, TaskLoad]]:
        """(row, task) of every cell that is answered."""
        last = len(self.stream) - 1
        if protocol != "sequential":
            return [(0, task) for task in self.stream]
        rows = [last] if self.cells == "last" else range(last + 1)
        return [
            (row, task)
            for row in rows
            for place, task in enumerate(self.stream)
            if self.cells == "full" or place <= row
        ]

    def _answering(
        self, cells: Sequence[tuple[int, TaskLoad]], found: Sequence[Size], language: float
    ) -> tuple[float, float]:
        """FLOPs of reading prompts and of writing answers as long as those of training."""
        read = written = 0.0
        for row, task in cells:
            each = 2 * task.test * (language + sum(found[row].active.values()))
            read, written = read + each * task.question, written + each * task.written
        return read, written

    def _seconds(
        self, flops: dict[str, float], read: float, cells: Sequence[tuple[int, TaskLoad]]
    ) -> dict[str, float]:
        rate = self.efficiency * self.gpu.peak(self.recipe.precision)
        batches = sum(ceil(task.test / self.recipe.eval_batch) * task.written for _, task in cells)
        writing = batches * weights(self.backbone, self.recipe).read / (OF_BANDWIDTH * self.gpu.bandwidth)
        return {
            "training": (flops["training"] + flops["recomputed"]) / rate,
            "tower": flops["tower"] / rate,
            "answering": read / rate + writing,
        }

    def _looks(self, cells: Sequence[tuple[int, TaskLoad]], learns: bool, kept: float) -> float:
        """Images that pass through the tower: each once where its features are `kept`, a share of them, else at every use."""
        each = self._images(learns)
        if self._feature_bytes(learns) <= KEPT_FEATURES:
            return each
        used = sum(task.train_images * self.recipe.for_task(task.name).epochs for task in self.stream)
        every = (used if learns else 0) + sum(task.test_images for _, task in cells)
        return kept * each + (1 - kept) * every

    # Bytes

    def _memory(self, found: Sequence[Size], learns: bool, looks: bool) -> dict[str, float]:
        recipe, decoder = self.recipe, decoder_of(self.backbone)
        trained = max(sum(size.trained.values()) for size in found)
        kept = sum(found[-1].continuing.values())
        batch = max(recipe.for_task(task.name).global_batch for task in self.stream)
        pairs = (
            2
            * decoder.layers
            * decoder.key_heads
            * decoder.of_head
            * (2 if recipe.precision == "bf16" else 4)
        )
        kept_for_backward = activations(
            decoder,
            recipe,
            samples=min(recipe.micro_batch or batch, batch),
            tokens=max(task.tokens for task in self.stream),
            answer=max(task.answer for task in self.stream),
            adapted=any("adapters" in size.trained for size in found),
            learning=trained,
        )
        answering = max(
            (task.question + task.written) * min(recipe.eval_batch, task.test) for task in self.stream
        )
        frozen = weights(self.backbone, recipe)
        return {
            "weights": float(frozen.held),
            **({"written out": float(frozen.written_out)} if frozen.written_out else {}),
            "learning": 16.0 * trained,
            "kept": 4.0 * max(0, kept - trained),
            "features": float(min(self._feature_bytes(learns), KEPT_FEATURES)),
            "encoder": 4.0 * getattr(self.backbone.features, "size", CLIP) if looks else 0.0,
            "activations": kept_for_backward if trained else 0.0,
            "answering": float(answering * pairs),
        }

    @property
    def _tower(self) -> int:
        """Parameters of the vision tower that meet every patch."""
        projector = {id(weight) for weight in self.backbone.projector.parameters()}
        tower = [weight for weight in self.backbone.vision_tower.parameters() if id(weight) not in projector]
        return sum(weight.numel() for weight in tower)

    def _images(self, learns: bool) -> float:
        """Of the stream, each once; a stack that learns nothing only sees those of the questions."""
        return sum((task.train_images if learns else 0) + task.test_images for task in distinct(self.stream))

    def _feature_bytes(self, learns: bool) -> int:
        """Of all images."""
        size = 2 if self.recipe.precision == "bf16" else 4
        return round(size * self.look.features * self._images(learns))

    def _stored(self, learns: bool, looks: bool) -> float:
        """Bytes on disk for images, and for images and prompts that the feature encoder looks at."""
        stored = self._feature_bytes(learns) + STRIDE * self._images(learns)
        if looks:
            prompts = sum((task.train if learns else 0) + task.test for task in distinct(self.stream))
            stored += (4 * self.backbone.features.width + STRIDE) * (self._images(learns) + prompts)
        return float(stored)
