"""What `train_step.py` lets compete: cl_zoo's engine with a method, and a plain PEFT loop.

All contenders of a process stand on one set of frozen base weights. The module objects around them are copies, because
adapters are put into them in place; the projector is a copy too, because it learns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from ground import DISTINCT, Ground
from torch import Tensor
from torch.nn import functional as F

from cl_zoo import Backbone, Sample, Task
from cl_zoo.batches import seed_everything
from cl_zoo.contract.plugins import Plugins, every_method, load_class
from cl_zoo.engine.answering import answers
from cl_zoo.engine.compiled import Compiled
from cl_zoo.engine.learning import Learner, recompute_activations
from cl_zoo.engine.ledger import training_flops
from cl_zoo.engine.run import placed
from cl_zoo.engine.streams import TaskBatches
from cl_zoo.errors import OptionError
from cl_zoo.names import parse_stack, split

COMPILED = " compiled"
"""What the name of a contender ends in whose layers are compiled."""

NEW_TOKENS = 8
"""Of each answer that is generated; random weights do not end one earlier."""


class Engine:
    """A method in cl_zoo's engine, at its second task or another one: the tasks before were learnt, closed and left behind.

    A step is the engine's whole `Learner.step`: tokenizing and padding the batch, looking up its image features, forward,
    all terms of the objective, backward, optimiser, schedule, and the ledger's counts.

    Args:
        name: a stack, `olora@6` for its sixth task.

    A name that ends in ` compiled` lets the decoder layers of the measured steps be compiled, as `--compile on` does.

    Attributes:
        first_loss: of the very first batch, before anything was learnt; `None` where the first task is measured.
        samples: per step, rehearsed ones included.
        flops: of a step by the ledger's rule, which counts no activation twice; 0 where nothing is learnt.
        told: what compiling took, nothing where it was not asked for.
    """

    def __init__(self, name: str, ground: Ground, total: int) -> None:
        stack, place = at_task(name.removesuffix(COMPILED))
        seed_everything("train_step", stack)
        self.ground, self.backbone, self.plugins = ground, ground.copy(), Plugins(parse_stack(stack))
        self.model = placed(self.plugins, self.backbone, ground.recipe)
        if ground.recipe.checkpointing:
            recompute_activations(self.backbone.model)
        batch = ground.recipe.global_batch
        data = TaskBatches(self.backbone, ground.first, ground.recipe)
        self.seen = [Task(index, f"task {index}", "", batch) for index in range(place - 1)]
        losses = [self._close(task, data) for task in self.seen]
        self.first_loss = losses[0] if losses else None
        self.learner = self._learner(Task(place - 1, "measured", "", batch * total), ground.second)
        self.backbone.encode([sample.image for sample in ground.second])  # from now on looked up
        old = range(len(ground.second), len(self.learner.pool))
        self.places = [
            [*range(place * batch, (place + 1) * batch), *old[place::DISTINCT]] for place in range(DISTINCT)
        ]
        self.samples = len(self.places[0])
        self.flops = self._flops()
        self._compiled = Compiled(self.backbone.layers, "on" if name.endswith(COMPILED) else "off")
        self.told: dict[str, float] = {}

    def _flops(self) -> float:
        """Of the first step: its padded tokens, through the language model and everything that learns."""
        samples = [self.learner.pool[place] for place in self.places[0]]
        tokens = self.backbone.batch(samples, answers=True).inputs["input_ids"].numel()
        return training_flops(self.backbone, tokens, sum(self.learner.cost.trained.values()))

    def _close(self, task: Task, data: TaskBatches) -> float:
        """Learn one step of an earlier task and leave it behind; returns its loss."""
        learner = self._learner(task, self.ground.first)
        loss = float(learner.step(range(len(learner.pool)))["task"])
        with self.ground.world.autocast(self.ground.recipe.precision):  # as the engine calls it
            # What a hook would learn further (MR-LoRA's router) is no part of a step, and stays as it was made.
            self.plugins.after_task(
                self.model, task, data, learner.names, self.backbone, learn=lambda samples, epochs: None
            )
        return loss

    def _learner(self, task: Task, samples: Sequence[Sample]) -> Learner:
        self.plugins.before_task(self.model, task, TaskBatches(self.backbone, samples, self.ground.recipe))
        pool = [*samples, *self.plugins.rehearse(task)]
        ground = self.ground
        learner = Learner(
            self.model,
            task,
            pool,
            backbone=self.backbone,
            plugins=self.plugins,
            recipe=ground.recipe,
            world=ground.world,
            seed=0,
        )
        self.model.train()
        return learner

    def step(self, number: int) -> None:
        with self._compiled.learning(forwards=1) as told:
            self.learner.step(self.places[number % DISTINCT])
        self.told = {name: self.told.get(name, 0.0) + value for name, value in told.items()}


class Answering(Engine):
    """The same, but a step generates the answers to one batch, with the tasks before the measured one as those seen."""

    def __init__(self, name: str, ground: Ground, total: int) -> None:
        super().__init__(name, ground, total)
        self.model.eval()
        with ground.world.autocast(ground.recipe.precision):
            self.answering = self.plugins.build_inference_model(self.model, self.seen).eval()
        self.samples, self.flops = ground.recipe.global_batch, 0.0
        self.step(0)

    def step(self, number: int) -> None:
        place = number % DISTINCT * self.samples
        asked = self.ground.second[place : place + self.samples]
        with self.ground.world.autocast(self.ground.recipe.precision):
            list(
                answers(
                    self.answering,
                    self.backbone,
                    asked,
                    max_new_tokens=NEW_TOKENS,
                    batch=self.samples,
                    static=self.ground.recipe.static_cache,
                )
            )


def at_task(name: str) -> tuple[str, int]:
    """`olora@6` to the stack and the task that it is measured at, counted from 1; without a number at its second."""
    stack, at, number = name.rpartition("@")
    return (stack, int(number)) if at and number.isdecimal() and int(number) > 0 else (name, 2)


class Bare:
    """A plain loop of stock PEFT LoRA and torch's AdamW, with nothing of cl_zoo between them.

    Its batches are finished tensors, made before the clock starts: the same token ids, the same image features, the same
    answer positions that the engine computes. The projector learns here as there.
    """

    def __init__(self, ground: Ground, total: int) -> None:
        from peft import LoraConfig, get_peft_model

        seed_everything("train_step", "bare")
        backbone, recipe = ground.copy(), ground.recipe
        self.recipe, self.device = recipe, ground.world.device
        lora = LoraConfig(
            r=recipe.adapter.rank,
            lora_alpha=recipe.adapter.scale * recipe.adapter.rank,
            lora_dropout=recipe.adapter.dropout,
            target_modules=backbone.linears,
            bias="none",
        )
        self.model = get_peft_model(backbone.model, lora)
        found = [weight for weight in self.model.parameters() if weight.requires_grad]
        backbone.projector.float().requires_grad_(recipe.projector == "sequential")
        self.llava, self.projector = backbone.model, backbone.projector
        if recipe.checkpointing:
            recompute_activations(self.llava)
        projector = [weight for weight in self.projector.parameters() if weight.requires_grad]
        groups = [
            {"params": found, "lr": recipe.rate("adapters")},
            {"params": projector, "lr": recipe.rate("projector")},
        ]
        self.learning = [*found, *projector]
        self.optimizer = torch.optim.AdamW(groups, betas=recipe.betas, weight_decay=recipe.weight_decay)
        self.schedule = _cosine(self.optimizer, math.ceil(recipe.warmup * total), total)
        self.model.train()
        batch, self.samples = recipe.global_batch, recipe.global_batch
        self.tokens, self.kept = 0, 0
        self.batches = [
            self._tensors(backbone, ground.second[n * batch : (n + 1) * batch]) for n in range(DISTINCT)
        ]
        trained = sum(weight.numel() for weight in self.learning)
        self.flops = training_flops(backbone, self.samples * self.tokens, trained)
        self.first_loss = self._learn(self._tensors(backbone, ground.first))

    def _tensors(self, backbone: Backbone, samples: Sequence[Sample]) -> dict[str, Any]:
        made = backbone.batch(samples, answers=True)
        tensors = {**made.inputs, "targets": made.targets}
        if backbone.model.config.vision_feature_select_strategy == "default":
            tensors["pixel_values"] = tensors["pixel_values"][:, 1:].contiguous()  # without the class token
        self.tokens, self.kept = tensors["input_ids"].shape[1], tensors["logits_to_keep"]
        return tensors

    def _learn(self, batch: dict[str, Any]) -> float:
        loss = self._loss(batch)
        self._update(loss)
        return float(loss.detach())

    def step(self, number: int) -> None:
        self._update(self._loss(self.batches[number % DISTINCT]))

    def _loss(self, batch: dict[str, Any]) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            words = self.llava.get_input_embeddings()(batch["input_ids"])
            images = self.projector(batch["pixel_values"]).to(words.dtype)
            there = (batch["input_ids"] == self.llava.config.image_token_id)[..., None]
            logits = self.model(
                inputs_embeds=words.masked_scatter(there, images),
                attention_mask=batch["attention_mask"],
                position_ids=batch["position_ids"],
                logits_to_keep=batch["logits_to_keep"],
                use_cache=False,
            ).logits
        return F.cross_entropy(logits.float().flatten(0, 1), batch["targets"].flatten())

    def _update(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]
        if self.recipe.clip == "norm":
            torch.nn.utils.clip_grad_norm_(self.learning, self.recipe.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)


def _cosine(optimizer: torch.optim.Optimizer, warm: int, total: int) -> torch.optim.lr_scheduler.LRScheduler:
    """The engine's schedule, written anew: a linear warm-up over `warm` steps, then a cosine to zero."""

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / (warm + 1)
        return 0.5 + 0.5 * math.cos(math.pi * (step - warm) / max(1, total - warm))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def chosen_methods(asked: str | None) -> list[str]:
    """The stacks to measure, `finetune` always the first: the others are held against it."""
    names = [name for name in every_method() if sequential(name)] if asked is None else named(asked)
    for name in names:
        protocol = Plugins(parse_stack(at_task(name)[0])).protocol
        if protocol != "sequential":
            raise OptionError(
                f"--methods {name}: its protocol is {protocol!r}, so it has no second task to be measured at; leave it out"
            )
    return ["finetune", *(name for name in dict.fromkeys(names) if name != "finetune")]


def named(asked: str) -> list[str]:
    """The names of a comma-separated list; commas within brackets part nothing."""
    return [name.strip() for name in split(asked, ",") if name.strip()]


def sequential(method: str) -> bool:
    """Whether a method learns task after task."""
    return getattr(load_class(method), "protocol", "sequential") == "sequential"
