"""Pre-trains the base model: `python -m cl_zoo_bench_mini.train_base --work FOLDER`.

Two phases, each seeded, checkpointed and resumable by the same command: labels for the vision tower (`vision.py`), then packed
questions for the whole model (`language.py`). What is shipped is the moving average of the weights.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import CLIPVisionModel, LlavaForConditionalGeneration

from cl_zoo_bench_mini.checkpoint import finished_steps, load_state, replace_folder, save_state
from cl_zoo_bench_mini.language import answer_loss, draw_batch, forced_accuracy
from cl_zoo_bench_mini.network import Shape, build_model, save_base
from cl_zoo_bench_mini.questions import BINDING, BROAD, GAMES, SEEING, Mix
from cl_zoo_bench_mini.vision import LabelHeads, draw_scene, pixels, tower_patches

VISION_STREAM, LANGUAGE_STREAM, HELD_OUT_STREAM = 1, 2, 3
"""First word of the seeds, so that no phase sees another's pictures; the tasks' streams start at 100."""


@dataclass(frozen=True)
class Stage:
    """A part of the second phase.

    Attributes:
        until: the step before which it ends.
        mix: what is asked.
        rate: AdamW's learning rate.
        matrix_rate: Muon's learning rate for the language model's matrices; `None` leaves them to AdamW.
        from_mean: starts from the average of the weights instead of from the weights.
    """

    until: int
    mix: Mix
    rate: float
    matrix_rate: float | None = None
    from_mean: bool = False


STAGES = (
    Stage(1250, BROAD, 1.5e-3),
    Stage(2000, BROAD, 5e-4, from_mean=True),
    Stage(2500, BINDING, 5e-4),
    Stage(2900, GAMES, 5e-4, 5e-3),
    Stage(3750, BINDING, 5e-4, 3e-3),
    Stage(4250, GAMES, 5e-4, 5e-3),
    Stage(6000, SEEING, 5e-4, 3e-3),
)
"""How the shipped base was trained. A rate of 1.5e-3 learns fast, but its noise hides what was learnt until the weights are
averaged. Binding a letter to the text of its option stayed near chance in every stage; finding the text of a letter and repeating
words came within a few hundred steps of Muon with many letters at once.

The shipped run differs from a fresh one in three things: its first 2,000 steps knew fewer wordings, its chains of letters grew
pairs at step 2,500, and its first 2,500 steps took 32 pictures each."""


@dataclass(frozen=True)
class Plan:
    """How long and how fast.

    Attributes:
        vision_steps, vision_batch, vision_rate: of the first phase.
        stages: of the second phase.
        pictures, length: per step, and tokens of a packed sequence.
        tower_share: the vision tower's learning rate in the second phase, as a share of AdamW's.
        falls: step from which the learning rate falls linearly to nothing.
        average: decay of the moving average of the weights.
        every: steps between two checkpoints.
        held_out: batches of held-out questions.
    """

    vision_steps: int = 3000
    vision_batch: int = 64
    vision_rate: float = 1e-3
    stages: tuple[Stage, ...] = STAGES
    pictures: int = 24
    length: int = 176
    tower_share: float = 2 / 15
    falls: int = 4400
    average: float = 0.998
    every: int = 250
    held_out: int = 12

    @property
    def steps(self) -> int:
        """Steps of the second phase."""
        return self.stages[-1].until

    def stage(self, step: int) -> Stage:
        """The stage that a step belongs to."""
        return next(stage for stage in self.stages if step < stage.until)


def train_vision(plan: Plan, shape: Shape, seed: int, work: Path) -> CLIPVisionModel:
    """First phase; returns the trained tower."""
    config = build_model(shape, seed).config.vision_config
    torch.manual_seed(seed)
    tower, heads = CLIPVisionModel(config), LabelHeads(shape.vision_width)
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, plan.vision_rate, weight_decay=0.05, betas=(0.9, 0.98))
    modules: dict[str, nn.Module] = {"tower": tower, "heads": heads}
    done = load_state(work / "vision", modules, {"adamw": optimizer})
    for step in range(done, plan.vision_steps):
        rate = min((step + 1) / 100, 1.0) * min(1.0, (plan.vision_steps - step) / (0.3 * plan.vision_steps))
        rng = np.random.default_rng([VISION_STREAM + seed * 1000, step])
        scenes = [draw_scene(rng) for _ in range(plan.vision_batch)]
        images = pixels(scenes, rng)
        with torch.autocast("cpu", torch.bfloat16):
            patches = tower_patches(tower, images)
        loss, right = heads(patches.float(), scenes)
        _update({"adamw": optimizer}, loss, parameters, rate)
        if (step + 1) % 100 == 0:
            _log(work, {"phase": "vision", "step": step + 1, "loss": float(loss.detach()), "right": right})
        if (step + 1) % plan.every == 0 or step + 1 == plan.vision_steps:
            save_state(work / "vision", step + 1, modules, {"adamw": optimizer})
    return tower


def train_language(
    plan: Plan, shape: Shape, seed: int, work: Path, until: int | None = None
) -> LlavaForConditionalGeneration:
    """Second phase; returns the model with averaged weights.

    Args:
        plan, shape, seed: what to train.
        work: folder of states and log.
        until: stop after this step, as an interruption would.
    """
    model, mean = _start(shape, seed, work)
    modules: dict[str, nn.Module] = {"model": model, "mean": mean}
    stage = plan.stage(max(finished_steps(work / "language") - 1, 0))
    optimizers = stage_optimizers(model, stage, plan)
    done = load_state(work / "language", modules, optimizers)
    held_out = [
        draw_batch((HELD_OUT_STREAM, index), plan.pictures, plan.length) for index in range(plan.held_out)
    ]
    began, last = time.monotonic(), plan.steps if until is None else until
    for step in range(done, last):
        if plan.stage(step) != stage:
            stage, before = plan.stage(step), stage
            optimizers = _enter(stage, before, modules, optimizers, plan)
        seeds = (LANGUAGE_STREAM + seed * 1000, step)
        images, packed = draw_batch(seeds, plan.pictures, plan.length, stage.mix)
        with torch.autocast("cpu", torch.bfloat16):
            loss = answer_loss(model, images, packed)
        _update(optimizers, loss, list(model.parameters()), language_rate(step, plan))
        _average(mean, model, min(plan.average, step / (step + 10)))
        if (step + 1) % 50 == 0:
            seconds = round(time.monotonic() - began, 1)
            _log(
                work,
                {
                    "phase": "language",
                    "step": step + 1,
                    "loss": round(float(loss.detach()), 4),
                    "seconds": seconds,
                },
            )
        if (step + 1) % plan.every == 0 or step + 1 == last:
            save_state(work / "language", step + 1, modules, optimizers)
            accuracy = {name: round(value, 4) for name, value in forced_accuracy(mean, held_out).items()}
            _log(work, {"phase": "language", "step": step + 1, "held_out": accuracy})
            write_base(mean, work / "base")
    return mean


def stage_optimizers(
    model: LlavaForConditionalGeneration, stage: Stage, plan: Plan
) -> dict[str, torch.optim.Optimizer]:
    """AdamW, and where the stage wants it Muon for the language model's matrices.

    Source of Muon: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; torch's implementation.
    """
    tower = list(model.model.vision_tower.parameters())
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    inside = {id(weight) for weight in model.model.language_model.layers.parameters()}
    for weight in model.model.language_model.parameters():
        (matrices if id(weight) in inside and weight.ndim == 2 else rest).append(weight)
    rest += [*model.model.multi_modal_projector.parameters(), *model.lm_head.parameters()]
    made: dict[str, torch.optim.Optimizer] = {}
    if stage.matrix_rate is None:
        rest += matrices
    else:
        made["muon"] = torch.optim.Muon(
            matrices, stage.matrix_rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"
        )
    groups = [{"params": rest, "lr": stage.rate}, {"params": tower, "lr": plan.tower_share * stage.rate}]
    made["adamw"] = torch.optim.AdamW(groups, weight_decay=0.02, betas=(0.9, 0.98), fused=True)
    return made


def language_rate(step: int, plan: Plan) -> float:
    """Factor on the stage's learning rates: warm-up over 200 steps, held, then linear to almost nothing."""
    return min((step + 1) / 200, 1.0, (plan.steps - step) / max(plan.steps - plan.falls, 1))


def _enter(
    stage: Stage,
    before: Stage,
    modules: dict[str, nn.Module],
    optimizers: dict[str, torch.optim.Optimizer],
    plan: Plan,
) -> dict[str, torch.optim.Optimizer]:
    """The optimisers of a new stage, with the moments of the one before where these are the same optimisers."""
    if stage.from_mean:
        modules["model"].load_state_dict(modules["mean"].state_dict())
    made = stage_optimizers(modules["model"], stage, plan)
    if made.keys() == optimizers.keys():
        for name, optimizer in made.items():
            state = optimizers[name].state_dict()["state"]
            optimizer.load_state_dict(
                {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
            )
    return made


def write_base(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Write the checkpoint beside its place and move it there."""
    partial = folder.with_name(folder.name + ".partial")
    kept, model.config._attn_implementation = model.config._attn_implementation, "sdpa"
    copy = LlavaForConditionalGeneration(model.config)
    copy.load_state_dict(model.state_dict())
    copy.generation_config = model.generation_config
    model.config._attn_implementation = kept
    save_base(copy, partial)
    replace_folder(partial, folder)


def _start(
    shape: Shape, seed: int, work: Path
) -> tuple[LlavaForConditionalGeneration, LlavaForConditionalGeneration]:
    from safetensors.torch import load_file

    models = []
    for _ in range(2):
        model = build_model(shape, seed)
        model.model.vision_tower.load_state_dict(load_file(work / "vision" / "tower.safetensors"))
        model.model.language_model.set_attn_implementation("cl_zoo_mini_packed")
        models.append(model)
    return models[0], models[1].requires_grad_(False)


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


def _log(work: Path, record: dict[str, Any]) -> None:
    with (work / "train_base.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps(record) + "\n")


def main() -> None:
    """Run both phases, or go on where they were stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of states, log and base")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    plan = Plan()
    train_vision(plan, Shape(), options.seed, options.work)
    train_language(plan, Shape(), options.seed, options.work)


if __name__ == "__main__":
    main()
