"""ModalPrompt: prompts per task, chosen under the guidance of image and text.

Zeng et al., "ModalPrompt: Towards Efficient Multimodal Continual Instruction Tuning with Dual-Modality Guided Prompt",
EMNLP 2025 (https://arxiv.org/abs/2410.05849). Letters are ours, the steps those of the paper and its released code.

The language model stays frozen. Task t learns soft tokens P_t (length L) and a small network g_t that maps them into CLIP's
joint space, where their mean, the prototype, is drawn to the task's images and instructions and later says whom P_t suits:

    p_t = mean g_t(P_t),  g_t = linear ∘ SiLU ∘ linear                                prototype                (1)
    G_t(x) = λ cos(f_v(x_v), p_t) + (1 − λ) cos(f_ins(x_ins), p_t)                    guidance                 (2)
    learning t: the k − 1 older prompts of highest G(x), then P_t, all older ones frozen                       (3)
    L = L_task + w (1 − cos(f_v(x_v), p_t)) + w (1 − cos(f_ins(x_ins), p_t))                                   (4)
    answering: the k prompts of highest G(x) over all tasks learnt, the best one last                          (5)

The prompts stand behind the first token, each new one of length L nearer to the instruction. With fewer than k tasks all
prompts are read. P_t starts as copies of random token embeddings; gradients reach it through the model and through g_t.

Choices the paper leaves open, and ours:
  * f_v and f_ins are the projected image and text features of one CLIP, the text is the whole prompt.
  * A sample without an image is guided by its text: the image's cosine is 0 in (2) and its term in (4) is left out.
  * g_t serves to place p_t. It goes when its task is learnt and p_t is kept in its place.
  * The projector learns on from task to task, as for every method, unless the recipe says `projector: frozen`.

Held against:
  paper     arXiv 2410.05849
  code      AuroraZengfh/ModalPrompt@c7bee7c, llava/model/llava_arch.py,
            llava/model/language_model/ModalPrompt.py, llava/train/llava_trainer.py,
            llava/model/multimodal_encoder/clip_encoder.py
  code      Ghy0501/MCITlib@2956dfd, ModalPrompt/llava/model/llava_arch.py
  verdict   equal but for the text's feature: prototypes, guidance, choice while learning and answering,
            losses and their gradients (tests/oracles/test_modalprompt.py)
  differs   f_ins: theirs is CLIP's state at the end token before its text projection, of the prompt behind
            its first newline, ours the projected text feature of the whole prompt; a prototype is compared
            there with features of two spaces
  differs   networks: theirs are all made before the first task, kept, and run for every batch, ours goes when
            its task is learnt and its prototype stays; the same vectors, without knowing the number of tasks
  differs   embeddings: theirs trains the whole table and puts all rows but the task's back before each step,
            ours trains the prompt alone; there the last task's own rows are put back too, since the slice
            that should spare them ends at −0, and its prompt stays as it began
  differs   projector: theirs is frozen where the lines that the README names are taken out, and learns
            otherwise, ours learns on unless the recipe freezes it; how images look to old prompts
  differs   a sample without an image: theirs has the feature of a black image while learning and no prompt at
            all in answering, ours a cosine of zero in (2) and no term in (4); its text alone guides it here
  differs   text that guides: theirs has the list of candidate answers in it when ImageNet is evaluated, ours
            is the prompt; answers to that task are easier there
  differs   k: MCITlib's is 1, theirs and ours 3; no transfer between tasks there
  variants  transfer=1: MCITlib's k
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from cl_zoo import Backbone, Batch, Task, hookimpl, share, total
from cl_zoo.nn import Choice, Prompted, cosines, token_rows


class ModalPrompt:
    """Prompts per task, chosen by image and text."""

    class Options(BaseModel, frozen=True, extra="forbid"):
        length: int = Field(10, ge=1, description="L: vectors that a task learns")
        transfer: int = Field(
            3, ge=1, description="k: prompts that a sample reads, its task's own among them"
        )
        balance: float = Field(0.5, ge=0, le=1, description="λ in (2): share of the image in the guidance")
        strength: float = Field(1.0, ge=0, description="w in (4): weight of either guidance loss")
        samples: int = Field(128, ge=1, description="samples per task for its mean guidance, a measurement")

    def __init__(self, options: Options) -> None:
        self.options = options

    @hookimpl
    def build_model(self, backbone: Backbone) -> Guided:
        self.backbone, self.model = backbone, Guided(backbone, self.options)
        return self.model

    @hookimpl
    def before_task(self, task: Task) -> None:
        rows = token_rows(self.backbone, self.options.length)
        self.model.grow(f"t{task.index}", rows)

    @hookimpl
    def loss(self) -> dict[str, Tensor]:
        image, text = self.model.misfit()
        strength = self.options.strength
        return {"modalprompt/image": strength * image, "modalprompt/text": strength * text}

    @hookimpl
    def after_task(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        self.model.settle()
        nearness = torch.zeros(2, device=self.backbone.device)  # of so many samples
        for batch in share(batches, samples=self.options.samples):
            own = self.model.scores(batch)[:, -1]
            nearness += torch.stack([own.sum(), own.new_tensor(len(own))])
        near, count = total(nearness)
        return {"modalprompt/guidance": near / count.clamp(min=1)}

    def parts(self, model: nn.Module) -> dict[str, list[str]]:
        mine = [name for name, _ in model.named_parameters() if not name.startswith("model.")]
        prompts = [name for name in mine if name.startswith("prompts.")]
        return {"prompts": prompts, "keys": [name for name in mine if name not in prompts]}

    def state_dict(self) -> dict[str, Any]:
        return {"tasks": list(self.model.prototypes)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in state["tasks"]:
            self.model.prompts[name] = nn.Parameter(torch.zeros(self.options.length, self.model.width))
            prototype = torch.zeros(self.backbone.features.width)
            self.model.prototypes[name] = nn.Parameter(prototype, requires_grad=False)


class Guided(Prompted):
    """A frozen model that reads the prompts of the tasks that a sample looks like.

    Attributes:
        prompts: P_t (L, width) by task.
        prototypes: p_t (d,) of the tasks learnt.
        network: g_t of the task being learnt, `None` between tasks.
        route: (batch, tasks), one for the task of highest guidance; while answering.
    """

    def __init__(self, backbone: Backbone, options: ModalPrompt.Options) -> None:
        super().__init__(backbone)
        self._features, self._options = backbone.features, options
        self.prompts, self.prototypes = nn.ParameterDict(), nn.ParameterDict()
        self.network: nn.Module | None = None
        self.images = self.texts = torch.empty(0)
        self.chosen = torch.empty(0, dtype=torch.long)
        self.route: Tensor | None = None

    def grow(self, name: str, rows: Tensor) -> None:
        """A prompt that learns, with its network; older prompts stand still."""
        self.prompts.requires_grad_(False)
        self.prompts[name] = nn.Parameter(rows)
        middle, d = self.width, self._features.width
        network = nn.Sequential(nn.Linear(middle, middle), nn.SiLU(), nn.Linear(middle, d))
        self.network = network.to(rows.device)

    def settle(self) -> None:
        """The newest prompt's prototype takes the place of its network."""
        name = list(self.prompts)[-1]
        self.prototypes[name] = nn.Parameter(self.prototype().detach().float(), requires_grad=False)
        self.network = None

    def prototype(self) -> Tensor:
        """p_t of the task being learnt, (d,), equation (1)."""
        newest = list(self.prompts)[-1]
        if self.network is None:
            return cast(Tensor, self.prototypes[newest])
        mapped: Tensor = self.network(self.prompts[newest])
        return mapped.float().mean(0)

    @torch.no_grad()
    def scores(self, batch: Batch) -> Tensor:
        """G of every task with a prompt, (batch, tasks)."""
        self.images = self._features.images([sample.image for sample in batch.samples])
        self.texts = self._features.texts([sample.words for sample in batch.samples])
        known = [self.prototypes[name] for name in self.prompts if name in self.prototypes]
        if self.network is not None:
            known.append(self.prototype())
        return guidance(self.images, self.texts, torch.stack(known), self._options.balance)

    def prepare(self, batch: Batch) -> None:
        scores = self.scores(batch)
        if self.training and self.network is not None:
            self.chosen, self.route = for_learning(scores, self._options.transfer), None
        else:
            self.chosen = for_answering(scores, self._options.transfer)
            self.route = F.one_hot(self.chosen[:, -1], scores.shape[1]).float()

    def misfit(self) -> tuple[Tensor, Tensor]:
        """1 − cos of image and of text with the prototype, each (batch,), equation (4) without w."""
        prototype = self.prototype()[None]
        shown = self.images.any(dim=1)
        image, text = (1 - F.cosine_similarity(seen, prototype, dim=-1) for seen in (self.images, self.texts))
        return torch.where(shown, image, 0.0), text

    def choice(self) -> Choice:
        image, text = self._options.balance, 1 - self._options.balance
        prompts, keys = (torch.stack(list(one.values())) for one in (self.prompts, self.prototypes))
        return Choice(prompts, keys, self._options.transfer, image, text, alone=text, best_last=True)

    def soft_prompts(self) -> Tensor:
        return torch.stack(list(self.prompts.values()))[self.chosen].flatten(1, 2)

    def active(self) -> dict[str, int]:
        one = self._options.length * self.width
        return {"prompts": min(self._options.transfer, len(self.prompts)) * one}


def guidance(images: Tensor, texts: Tensor, prototypes: Tensor, balance: float) -> Tensor:
    """G of equation (2): features (batch, d) and prototypes (tasks, d) to (batch, tasks)."""
    return balance * cosines(images, prototypes) + (1 - balance) * cosines(texts, prototypes)


def for_answering(scores: Tensor, count: int) -> Tensor:
    """Places of the highest `count` of scores (batch, tasks), the best one last (5); (batch, at most count)."""
    return scores.topk(min(count, scores.shape[1]), dim=1).indices.flip(1)


def for_learning(scores: Tensor, count: int) -> Tensor:
    """As `for_answering`, but the last task has its place for sure, and it is the last one (3)."""
    current = scores.shape[1] - 1
    older = for_answering(scores[:, :current], count - 1)
    return F.pad(older, (0, 1), value=current)
