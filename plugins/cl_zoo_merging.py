"""Merging: a LoRA per task, trained alone, and one rule that makes a single update of all of them when a question is answered.

Task Arithmetic: Ilharco et al., "Editing Models with Task Arithmetic", ICLR 2023 (https://arxiv.org/abs/2212.04089).
TIES: Yadav et al., "TIES-Merging: Resolving Interference When Merging Models", NeurIPS 2023 (https://arxiv.org/abs/2306.01708).
DARE: Yu et al., "Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch", ICML 2024
(https://arxiv.org/abs/2311.03099).

Every task t trains a fresh LoRA on the frozen language model; no older one takes part. Its task vector τ_t is what it adds to the
weights of all adapted linears, s · B_t A_t. With T tasks learnt, a question is answered by W + τ:

    average      τ = 1/T Σ_t τ_t
    arithmetic   τ = λ Σ_t τ_t
    ties         τ̂_t = τ_t at its largest ⌊density · d⌋ of d magnitudes, else 0                trim
                 γ = sgn(Σ_t τ̂_t)                                                              elect sign
                 τ = λ · mean of those τ̂_t whose sign is γ, entry by entry                     disjoint mean
    dare         τ = λ Σ_t δ_t,  δ_t = (1 − m_t) ⊙ τ_t / (1 − p),  m_t ~ Bernoulli(p)
    dare-ties    ties of the δ_t

All options are read by answers alone: runs that differ in them share one training, and `cl-zoo analyze ablate merging` compares the
rules on it. The papers' figures are of other models and tasks, so none stands beside its rows.

`of` says what the rules act on. The papers have weights of whole models, so `update` is the default: B_t A_t is what a task changed,
whereas its A and its B mean nothing apart (A starts at random for every task, and −A with −B is the same update). Average and
arithmetic of updates are exact at rank T · r. The others choose entries of B_t A_t, which no low rank keeps: their τ is as large as the
adapted linears, stands beside W while questions are answered, in the type of W, and is counted as stored; with `of=factors` the rules
act on all A and on all B apart, each with √λ, and what answers is one LoRA of rank r. That is what PEFT's `add_weighted_adapter` does
with `linear`, `ties`, `dare_linear` and `dare_ties`. What is stored to learn on is the LoRAs, whatever the rule.

Choices the papers leave open, and ours:
  * λ: 0.4 for a sum and 1 for TIES, the values that TIES' paper takes where no validation set chooses them. DARE has those of the
    rule behind it.
  * p is 0.2, as in the commands of DARE's authors that merge models; from a single model they drop 0.9.
  * A single task is not merged: its LoRA answers as it was learnt.
  * The mask of a task stays the same in all later merges, and on a device of the same kind. It is drawn anew from the run's seed
    instead of being kept.
  * The projector is not merged: it learns on from task to task, as for every method, and the last one answers for all.

Held against:
  paper     arXiv 2212.04089, arXiv 2306.01708 and arXiv 2311.03099
  code      mlfoundations/task_vectors@826a64c, src/task_vectors.py
  code      prateeky2806/ties-merging@44e7891, src/utils/merge_utils.py
  code      yule-BUAA/MergeLM@6d49ad9, model_merging_methods/merging_methods.py and mask_weights_utils.py
  code      huggingface/peft@v0.21.2, src/peft/utils/merge_utils.py and src/peft/tuners/lora/model.py, the library that is installed
  verdict   equal but for the accidents below: task vectors, every rule entry by entry, answers; with the same masks DARE's too; of
            factors what PEFT's own functions return (tests/oracles/test_merging.py)
  differs   what is merged: theirs are all weights of fully fine-tuned models, ours the updates of the adapted linears; everything
            else of the model never changed
  differs   trim: PEFT trims each matrix by itself, the authors the flattened model, ours the flattened model and with `trim=linear`
            each matrix; linears that changed little keep less
  differs   number kept: the authors' code keeps one entry more than ⌊density · d⌋, ours and PEFT's that many; one entry of a model.
            Where magnitudes tie at the threshold PEFT keeps some of them, the authors' code and ours all
  differs   no sign: where Σ τ̂_t is exactly zero the authors' code gives it the sign of the model's majority, PEFT +1, ours leaves the
            entry at zero; two entries that cancel to the last bit
  differs   DARE before TIES: the authors' code trims what was not dropped, PEFT does not trim, ours as the authors; `density=1` is PEFT's
  differs   mask: theirs come from the global generator, ours from one for each task and linear; other draws of the same law
  variants  `of=factors,trim=linear` is PEFT's, for DARE before TIES with `density=1`
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import reduce
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from cl_zoo import Backbone, Recipe, Task, hookimpl
from cl_zoo.nn import BankLayer, ExpertBank, KeepsExperts, OtherUpdates, Scaled, adapters

COEFFICIENT = {"arithmetic": 0.4, "dare": 0.4, "ties": 1.0, "dare-ties": 1.0}
"""λ of a rule where none is given."""
UPPER, LOWER = 2**15, 2**16
"""Values of the upper and the lower half of a positive float's 32 bits."""


def rule(name: str, source: str, **options: Any) -> dict[str, Any]:
    """A row that compares rules."""
    return {"options": {"rule": name, **options}, "source": source}


class Merging(KeepsExperts):
    """LoRAs that were learnt apart, merged when a question is answered."""

    class Options(BaseModel, frozen=True, extra="forbid"):
        rule: Literal["average", "arithmetic", "ties", "dare", "dare-ties"] = Field(
            "arithmetic", description="how one update is made of all tasks'"
        )
        of: Literal["update", "factors"] = Field(
            "update", description="what the rule acts on: s·BA of each task, or its A and its B apart"
        )
        coefficient: float | None = Field(
            None, ge=0, description="λ; default: 0.4, with ties and dare-ties 1; an average has 1/T"
        )
        density: float = Field(0.2, gt=0, le=1, description="share of entries that TIES keeps of each task")
        trim: Literal["model", "linear"] = Field(
            "model", description="where TIES looks for the largest entries: in all linears, or in each"
        )
        drop: float = Field(0.2, ge=0, lt=1, description="p: share of entries that DARE drops")

        def factor(self, tasks: int) -> float:
            """λ, for so many tasks."""
            if self.rule == "average":
                return 1 / tasks
            return COEFFICIENT[self.rule] if self.coefficient is None else self.coefficient

    answering = ("rule", "of", "coefficient", "density", "trim", "drop")
    ablations: ClassVar = {
        "Averaging": rule("average", "rules"),
        "Task Arithmetic": rule("arithmetic", "rules"),
        "TIES": rule("ties", "rules"),
        "DARE + Task Arithmetic": rule("dare", "rules"),
        "DARE + TIES": rule("dare-ties", "rules"),
        **{f"TIES density {share}": rule("ties", "density", density=share) for share in (0.2, 0.1, 0.5, 1.0)},
        **{f"DARE p = {share}": rule("dare", "drop rate", drop=share) for share in (0.2, 0.5, 0.9)},
        "linear": rule("arithmetic", "PEFT", of="factors"),
        "ties": rule("ties", "PEFT", of="factors", trim="linear"),
        "dare_linear": rule("dare", "PEFT", of="factors"),
        "dare_ties": rule("dare-ties", "PEFT", of="factors", trim="linear", density=1.0),
    }

    def __init__(self, options: Options) -> None:
        self.options = options

    @hookimpl
    def build_model(self, backbone: Backbone, recipe: Recipe) -> ExpertBank:
        self.bank = adapters(backbone, recipe, "t0")
        self.seed = int(torch.randint(2**31, ()))  # of the masks; the engine has seeded what it is drawn from
        return self.bank

    @hookimpl
    def before_task(self, task: Task) -> None:
        self.bank.learn(task)  # alone on the frozen model

    @hookimpl
    def build_inference_model(self, tasks_seen: Sequence[Task]) -> nn.Module:
        options, names = self.options, self.bank.answer(tasks_seen)
        several = len(names) > 1
        low = options.of == "update" and options.rule in ("average", "arithmetic")
        fused = Scaled(options.factor(len(names))) if several and low else None  # λ Σ s·B_t A_t as it is
        self.bank.mix(lambda _: fused)
        return OtherUpdates(self.bank, self._merged(names)) if several and not low else self.bank

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "seed": self.seed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.seed = state["seed"]

    @torch.no_grad()
    def _merged(self, names: Sequence[str]) -> dict[BankLayer, list[Tensor]]:
        """τ of each linear in the type of W, or its A and B."""
        options, everywhere = self.options, None
        trims = options.rule.endswith("ties")
        if trims and options.trim == "model":
            everywhere = thresholds(
                lambda: (stack for _, held in self._vectors(names) for stack in held), options.density
            )
        merged: dict[BankLayer, list[Tensor]] = {}
        for layer, held in self._vectors(names):
            made = layer.base_layer.weight.dtype if options.of == "update" else layer.made["dtype"]
            share = options.factor(len(names)) ** (1 / len(held))  # of A and of B √λ
            merged[layer] = [
                (share * (self._ties(stack, everywhere) if trims else stack.sum(0))).to(made)
                for stack in held
            ]
        return merged

    def _ties(self, stack: Tensor, everywhere: Tensor | None) -> Tensor:
        smallest = thresholds(lambda: [stack], self.options.density) if everywhere is None else everywhere
        return disjoint_mean(trimmed(stack, smallest))

    def _vectors(self, names: Sequence[str]) -> Iterator[tuple[BankLayer, list[Tensor]]]:
        """Linear by linear the stacks (T, …) that the rule acts on: s·B_t A_t, or A_t and B_t; with DARE what it leaves of them."""
        rate = self.options.drop if self.options.rule.startswith("dare") else 0.0
        for layer in self.bank.layers:
            if self.options.of == "update":
                held = [torch.stack([layer.delta([name]) for name in names])]
            else:
                tables = (layer.bank_down, layer.bank_up)
                held = [torch.stack([table[name].detach() for name in names]) for table in tables]
            if rate:
                seeds = [[f"{self.seed} {layer.path} {place} {name}" for name in names] for place in (0, 1)]
                held = [dropped(stack, rate, seeds[place]) for place, stack in enumerate(held)]
            yield layer, held


def dropped(stack: Tensor, rate: float, seeds: Sequence[str]) -> Tensor:
    """δ_t of τ_t (T, …): an entry is zero with probability `rate`, else 1/(1 − rate) as large; a mask follows from its seed."""
    kept = torch.empty_like(stack, dtype=torch.bool)
    for row, seed in zip(kept, seeds, strict=True):
        generator = None  # where there are no values
        if stack.device.type != "meta":
            generator = torch.Generator(stack.device).manual_seed(random.Random(seed).getrandbits(48))
        row.copy_(torch.rand(row.shape, generator=generator, device=stack.device) >= rate)
    return stack * kept / (1 - rate)


def trimmed(stack: Tensor, smallest: Tensor) -> Tensor:
    """τ̂_t of τ_t (T, …): entries with magnitudes below the task's of `smallest` (T,) are zero."""
    limits = smallest.view(-1, *[1] * (stack.dim() - 1))
    return stack.where(stack.abs().float() >= limits, 0)


def disjoint_mean(stack: Tensor) -> Tensor:
    """Mean over the tasks of (T, …) whose entry has the sign of the sum of all; zero where there is none."""
    agree = stack * stack.sum(0).sign() > 0
    return stack.where(agree, 0).sum(0) / agree.sum(0).clamp(min=1)


def thresholds(stacks: Callable[[], Iterable[Tensor]], density: float) -> Tensor:
    """The ⌊density · d⌋-th largest magnitude of each task among all d entries of all stacks (T, …), at least the first; (T,), in fp32.

    Exact, and without holding all of them at once: positive floats are ordered as their bits are, so a count of their upper halves
    says in which of these the value lies, and a count of the lower halves there says which it is.
    """
    first = next(iter(stacks()))
    if first.device.type == "meta":
        return first.new_zeros(len(first), dtype=torch.float32)  # there are no values
    upper = counted(([row >> 16 for row in bits(stack)] for stack in stacks()), UPPER)
    most = max(1, int(density * int(upper[0].sum())))
    high, left = reached(upper, torch.full_like(upper[:, 0], most))
    inside = (
        [row[row >> 16 == one] & (LOWER - 1) for row, one in zip(bits(stack), high, strict=True)]
        for stack in stacks()
    )
    low, _ = reached(counted(inside, LOWER), left)
    return (high * LOWER + low).int().view(torch.float32)


def bits(stack: Tensor) -> Tensor:
    """Magnitudes (T, …) in fp32 as the integers that their bits are, (T, n)."""
    return stack.abs().float().flatten(1).contiguous().view(torch.int32)


def counted(stacks: Iterable[Sequence[Tensor]], values: int) -> Tensor:
    """How often each of 0 … values − 1 stands in each task's rows, (T, values)."""
    found = (torch.stack([row.bincount(minlength=values) for row in rows]) for rows in stacks)
    return reduce(torch.add, found)


def reached(found: Tensor, most: Tensor) -> tuple[Tensor, Tensor]:
    """The value at which counts (T, values), added up from the largest value down, reach `most` (T,), and how many it has to give."""
    down = found.flip(1).cumsum(1)
    place = (down < most[:, None]).sum(1, keepdim=True)
    above = (down - found.flip(1)).gather(1, place)[:, 0]
    return found.shape[1] - 1 - place[:, 0], most - above
