"""Pre-trains the base model: `python -m cl_zoo_bench_mini.train_base --work FOLDER [--device cuda]`.

Three phases, each seeded, checkpointed and resumable by the same command: labels for the vision tower (`vision.py`), packed
questions for the whole model (`language.py`), and the tasks' ways of saying things, asked for by other instructions than theirs.

The shipped base was trained so, but that the first two phases went by the clock, 300 s on one GPU with fourteen drawing processes; their numbers
of steps are in `Plan`. The third took 27 minutes on one core of a processor. The log lies beside this file.
"""

from __future__ import annotations

import argparse
import json
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPVisionModel, LlavaForConditionalGeneration

from cl_zoo_bench_mini.batches import CPU, Place, Steps
from cl_zoo_bench_mini.checkpoint import load_state, replace_folder, save_state
from cl_zoo_bench_mini.language import answer_loss, draw_batch, forced_accuracy
from cl_zoo_bench_mini.network import Shape, build_model, save_base
from cl_zoo_bench_mini.packing import Packed
from cl_zoo_bench_mini.questions import BINDING, BROAD, MIXED, SAYINGS, Mix
from cl_zoo_bench_mini.vision import LabelHeads, as_pixels, draw_scene, label_classes, painted, tower_patches

VISION_STREAM, LANGUAGE_STREAM, HELD_OUT_STREAM, SAYINGS_STREAM = 1, 2, 3, 6
"""First word of the seeds, so that no phase sees another's pictures; the tasks' streams start at 100."""


@dataclass(frozen=True)
class Stage:
    """A part of the second phase: what is asked, and the step before which it ends."""

    until: int
    mix: Mix


STAGES = (Stage(405, BROAD), Stage(1519, BINDING), Stage(3376, MIXED))


@dataclass(frozen=True)
class Plan:
    """How long and how fast. The third phase has few steps and a small rate: it adds words, and learns no new skill.

    Attributes:
        pictures, length: per step of the first two phases, and tokens of a packed sequence.
        vision_steps, vision_rate: of the first phase.
        stages: of the second phase.
        rate, matrix_rate: of the second phase: AdamW's, and Muon's for the language model's matrices.
        tower_share: the vision tower's learning rate in the second phase, as a share of AdamW's.
        steady: share of the first two phases before the learning rate falls linearly to nothing.
        average: decay of the moving average of the weights, which is what the second phase hands on.
        sayings_steps, sayings_pictures, sayings_rate: of the third phase.
        every: steps between two checkpoints.
        held_out: batches of held-out questions.
    """

    pictures: int = 512
    length: int = 176
    vision_steps: int = 1307
    vision_rate: float = 1.5e-3
    stages: tuple[Stage, ...] = STAGES
    rate: float = 1.5e-3
    matrix_rate: float = 5e-3
    tower_share: float = 0.25
    steady: float = 0.6
    average: float = 0.998
    sayings_steps: int = 1600
    sayings_pictures: int = 24
    sayings_rate: float = 3e-4
    every: int = 200
    held_out: int = 6

    @property
    def steps(self) -> int:
        """Steps of the second phase."""
        return self.stages[-1].until

    def mix(self, step: int) -> Mix:
        """What the second phase asks at a step."""
        return next(stage.mix for stage in self.stages if step < stage.until)


def train_vision(plan: Plan, shape: Shape, seed: int, work: Path, place: Place = CPU) -> CLIPVisionModel:
    """First phase; returns the trained tower."""
    config = build_model(shape, seed).config.vision_config
    torch.manual_seed(seed)
    tower = CLIPVisionModel(config).to(place.device)
    heads = LabelHeads(shape.vision_width).to(place.device)
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, plan.vision_rate, weight_decay=0.05, betas=(0.9, 0.98))
    modules: dict[str, nn.Module] = {"tower": tower, "heads": heads}
    done = load_state(work / "vision", modules, {"adamw": optimizer})
    batches = Steps(partial(_labelled, VISION_STREAM + seed * 1000, plan.pictures), done, plan.vision_steps)
    for step, (images, wanted) in place.each(batches):
        with torch.autocast(place.device, torch.bfloat16):
            patches = tower_patches(tower, as_pixels(images))
        loss, right = heads(patches.float(), wanted)
        _update(
            {"adamw": optimizer}, loss, parameters, warm_and_fall(step, 100, plan.vision_steps, plan.steady)
        )
        if (step + 1) % plan.every == 0 or step + 1 == plan.vision_steps:
            save_state(work / "vision", step + 1, modules, {"adamw": optimizer})
            _log(work, "vision", step + 1, loss=_rounded(loss), right=right)
    return tower


def train_language(
    plan: Plan, shape: Shape, seed: int, work: Path, place: Place = CPU, until: int | None = None
) -> None:
    """Second phase, on the tower of the first; writes the averaged weights into the folder `broad`.

    Args:
        plan, shape, seed: what to train.
        work: folder of states and log.
        place: where.
        until: stop after this step, as an interruption would.
    """
    models = [build_model(shape, seed) for _ in range(2)]
    for one in models:
        one.model.vision_tower.load_state_dict(load_file(work / "vision" / "tower.safetensors"))
        one.model.language_model.set_attn_implementation("cl_zoo_mini_packed")
    model, mean = (one.to(place.device) for one in models)
    mean.requires_grad_(False)
    optimizers = broad_optimizers(model, plan)
    modules: dict[str, nn.Module] = {"model": model, "mean": mean}
    last, done = until or plan.steps, load_state(work / "language", modules, optimizers)
    held_out = _held_out(plan, plan.stages[-1].mix)
    asked = Steps(partial(_broad, plan, LANGUAGE_STREAM + seed * 1000), done, last)
    for step, batch in place.each(asked):
        rate = warm_and_fall(step, 150, plan.steps, plan.steady)
        loss = _learn(model, batch, place, optimizers, list(model.parameters()), rate)
        _average(mean, model, min(plan.average, step / (step + 10)))
        if (step + 1) % plan.every == 0 or step + 1 == last:
            save_state(work / "language", step + 1, modules, optimizers)
            _show(work, "language", step + 1, loss, mean, held_out, "broad")


def train_sayings(plan: Plan, seed: int, work: Path, place: Place = CPU, until: int | None = None) -> None:
    """Third phase: goes on with the checkpoint in the folder `broad`, its tower held, and writes the folder `base`.

    Args:
        plan, seed, work, place, until: as for the second phase.
    """
    model = LlavaForConditionalGeneration.from_pretrained(work / "broad", dtype=torch.float32)
    model.model.language_model.set_attn_implementation("cl_zoo_mini_packed")
    model.to(place.device).model.vision_tower.requires_grad_(False)
    parameters = [weight for weight in model.parameters() if weight.requires_grad]
    optimizers: dict[str, torch.optim.Optimizer] = {
        "adamw": torch.optim.AdamW(parameters, plan.sayings_rate, weight_decay=0.01, betas=(0.9, 0.98))
    }
    modules: dict[str, nn.Module] = {"model": model}
    last, done = until or plan.sayings_steps, load_state(work / "sayings", modules, optimizers)
    held_out = _held_out(plan, SAYINGS)
    asked = Steps(partial(_sayings, plan, SAYINGS_STREAM + seed * 1000), done, last)
    for step, batch in place.each(asked):
        rate = warm_and_fall(step, 50, plan.sayings_steps, 0.02)
        loss = _learn(model, batch, place, optimizers, parameters, rate)
        if (step + 1) % plan.every == 0 or step + 1 == last:
            save_state(work / "sayings", step + 1, modules, optimizers)
            _show(work, "sayings", step + 1, loss, model, held_out, "base")


def broad_optimizers(model: LlavaForConditionalGeneration, plan: Plan) -> dict[str, torch.optim.Optimizer]:
    """Muon for the matrices of the language model's layers, AdamW for the rest.

    Source of Muon: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; torch's implementation.
    """
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    inside = {id(weight) for weight in model.model.language_model.layers.parameters()}
    for weight in model.model.language_model.parameters():
        (matrices if id(weight) in inside and weight.ndim == 2 else rest).append(weight)
    rest += [*model.model.multi_modal_projector.parameters(), *model.lm_head.parameters()]
    tower = list(model.model.vision_tower.parameters())
    groups = [{"params": rest, "lr": plan.rate}, {"params": tower, "lr": plan.tower_share * plan.rate}]
    return {
        "muon": torch.optim.Muon(
            matrices, plan.matrix_rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"
        ),
        "adamw": torch.optim.AdamW(groups, weight_decay=0.02, betas=(0.9, 0.98)),
    }


def warm_and_fall(step: int, warm: int, steps: int, steady: float) -> float:
    """Factor on the learning rates: warm-up, held until the share `steady` of the steps, then linear to almost nothing."""
    return min((step + 1) / warm, 1.0, (steps - step) / (steps * (1 - steady)))


def _labelled(stream: int, pictures: int, step: int) -> tuple[Tensor, dict[str, Tensor]]:
    rng = np.random.default_rng([stream, step])
    scenes = [draw_scene(rng) for _ in range(pictures)]
    return painted(scenes, rng), label_classes(scenes)


def _broad(plan: Plan, stream: int, step: int) -> tuple[Tensor, Packed]:
    return draw_batch((stream, step), plan.pictures, plan.length, plan.mix(step))


def _sayings(plan: Plan, stream: int, step: int) -> tuple[Tensor, Packed]:
    return draw_batch((stream, step), plan.sayings_pictures, plan.length, SAYINGS)


def _held_out(plan: Plan, mix: Mix) -> list[tuple[Tensor, Packed]]:
    return [
        draw_batch((HELD_OUT_STREAM, index), plan.sayings_pictures, plan.length, mix)
        for index in range(plan.held_out)
    ]


def _learn(
    model: LlavaForConditionalGeneration,
    batch: tuple[Tensor, Packed],
    place: Place,
    optimizers: dict[str, torch.optim.Optimizer],
    parameters: list[nn.Parameter],
    rate: float,
) -> Tensor:
    """One step on questions; returns its loss."""
    with torch.autocast(place.device, torch.bfloat16):
        loss = answer_loss(model, *batch)
    _update(optimizers, loss, parameters, rate)
    return loss


def _show(
    work: Path,
    phase: str,
    step: int,
    loss: Tensor,
    model: LlavaForConditionalGeneration,
    held_out: list[tuple[Tensor, Packed]],
    folder: str,
) -> None:
    """Log how far a phase of questions is, and write its checkpoint."""
    accuracy = {name: round(value, 4) for name, value in forced_accuracy(model, held_out).items()}
    _log(work, phase, step, loss=_rounded(loss))
    _log(work, phase, step, held_out=accuracy)
    write_base(model, work / folder)


def _rounded(loss: Tensor) -> float:
    return round(float(loss.detach()), 4)


def write_base(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Write the checkpoint beside its place and move it there."""
    partial = folder.with_name(folder.name + ".partial")
    config = deepcopy(model.config)
    config._attn_implementation = "sdpa"
    copy = LlavaForConditionalGeneration(config)
    copy.load_state_dict(model.state_dict())
    copy.generation_config = model.generation_config
    save_base(copy, partial)
    replace_folder(partial, folder)


def _update(
    optimizers: dict[str, torch.optim.Optimizer],
    loss: torch.Tensor,
    parameters: list[nn.Parameter],
    rate: float,
) -> None:
    """One step at `rate` times each group's own learning rate."""
    for optimizer in optimizers.values():
        optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(parameters, 1.0)
    for optimizer in optimizers.values():
        full = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] *= rate
        optimizer.step()
        for group, own in zip(optimizer.param_groups, full, strict=True):
            group["lr"] = own


@torch.no_grad()
def _average(mean: nn.Module, model: nn.Module, keep: float) -> None:
    torch._foreach_lerp_(list(mean.parameters()), [each.detach() for each in model.parameters()], 1 - keep)


def _log(work: Path, phase: str, step: int, **found: Any) -> None:
    with (work / "train_base.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps({"phase": phase, "step": step, **found}) + "\n")


def main() -> None:
    """Run the three phases, or go on where they were stopped."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of states, log and base")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw pictures and questions")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here; leave the option out")
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    plan, place = Plan(), Place(options.device, options.workers)
    train_vision(plan, Shape(), options.seed, options.work, place)
    train_language(plan, Shape(), options.seed, options.work, place)
    train_sayings(plan, options.seed, options.work, place)


if __name__ == "__main__":
    main()
