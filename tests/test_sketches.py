"""Are the hooks enough? Throw-away sketches of methods that ask for more than the bundled ones do, run by the real engine.

    L2P          prompts chosen before the forward and put before the language model's input, a rate of their own, a
                 key that is pulled per sample (https://arxiv.org/abs/2112.08654)
    BranchLoRA   one A, several B of which few answer, branches without a gradient, a router per task, keys that stand in
                 `loss` only (https://arxiv.org/abs/2506.02041)
    Replay       old samples in the training of a new task, beside any method
    Joint        everything at once

They are as short as they can be and claim nothing about the methods' quality.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from cl_zoo import Backbone, Batch, Recipe, Sample, Task, hookimpl
from cl_zoo.bank import ExpertBank, adapters
from cl_zoo.choices import parse_stack
from cl_zoo.config import build_recipe
from cl_zoo.engine import Run
from cl_zoo.mixes import SharedDown
from cl_zoo.plugins import Plugins
from cl_zoo.runs import RunFolder
from cl_zoo.testing import tiny_backbone, tiny_benchmark
from cl_zoo.world import World

BENCHMARK = tiny_benchmark(2, size=8)
TASKS = BENCHMARK.stream("CSC")


# --- L2P ------------------------------------------------------------------------------------------------------------


class Prompted(nn.Module):
    """A frozen model behind prompts that are chosen per sample by the nearest keys."""

    POOL, LENGTH, TOP = 6, 2, 2

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.model, self._features = backbone.model, backbone.features
        width = backbone.model.config.text_config.hidden_size
        self.prompts = nn.Parameter(torch.empty(self.POOL, self.LENGTH, width).uniform_(-1, 1))
        self.keys = nn.Parameter(torch.empty(self.POOL, 8).uniform_(-1, 1))
        self.query = self.chosen = torch.empty(0)

    def prepare(self, batch: Batch) -> None:
        self.query = self._features.images([sample.image for sample in batch.samples])
        self.chosen = self.similarity().topk(self.TOP).indices  # (batch, top), per sample

    def similarity(self) -> Tensor:
        return F.cosine_similarity(self.query[:, None], self.keys[None], dim=-1)

    def _before(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Prompts stand before the padding: attention mask and positions let nobody notice the gap."""
        ids, mask = inputs.pop("input_ids"), inputs.pop("attention_mask")
        embedded = self.model.get_input_embeddings()(ids)
        if (pixels := inputs.pop("pixel_values", None)) is not None:
            shown = torch.cat(
                list(self.model.model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output)
            )
            places = (ids == self.model.config.image_token_id)[..., None].expand_as(embedded)
            embedded = embedded.masked_scatter(places, shown.to(embedded))
        prompts = self.prompts[self.chosen].flatten(1, 2)  # (batch, top · length, width)
        whole = torch.cat([mask.new_ones(prompts.shape[:2]), mask], 1)
        return {
            **inputs,
            "inputs_embeds": torch.cat([prompts, embedded], 1),
            "attention_mask": whole,
            "position_ids": (whole.cumsum(1) - 1).clamp(min=0),
        }

    def forward(self, **inputs: Any) -> Any:
        return self.model(**self._before(inputs))

    def generate(self, **inputs: Any) -> Tensor:
        ids = inputs["input_ids"]
        before = self._before(inputs)
        del before["position_ids"]
        return torch.cat([ids, self.model.generate(**before)], 1)


class L2P:
    @hookimpl
    def build_model(self, backbone: Backbone) -> nn.Module:
        return Prompted(backbone)

    @hookimpl
    def loss(self, model: Prompted) -> dict[str, Tensor]:
        return {"l2p/pull": 0.5 * (1 - model.similarity().gather(1, model.chosen)).sum(1)}  # (batch,)

    def parts(self, model: nn.Module) -> dict[str, list[str]]:
        return {"prompts": ["prompts"], "keys": ["keys"]}


# --- BranchLoRA -----------------------------------------------------------------------------------------------------


class Branched(nn.Module):
    """A bank of branches on one A, with routers and keys per task beside it."""

    TOP = 2

    def __init__(self, bank: ExpertBank, backbone: Backbone) -> None:
        super().__init__()
        self.bank, self._features = bank, backbone.features
        self.routers, self.keys = nn.ParameterDict(), nn.ParameterDict()
        self.learning: str | None = None
        self.features = self.gates = torch.empty(0)
        self.route: Tensor | None = None

    def prepare(self, batch: Batch) -> None:
        self.features = self._features.images([sample.image for sample in batch.samples])
        if self.training and self.learning is not None:
            chosen = self.routers[self.learning].expand(len(batch), -1, -1)
            self.route = None
        else:
            similarity = torch.stack([self.pull(task) for task in self.keys], 1)
            self.route = F.one_hot(similarity.argmax(1), len(self.keys)).float()
            routers = torch.stack([self.routers[task] for task in self.routers])
            chosen = routers[similarity.argmax(1)]
        gates = torch.einsum("bef,bf->be", chosen, self.features).softmax(-1)
        kept = gates.topk(self.TOP).indices
        self.gates = torch.zeros_like(gates).scatter(1, kept, gates.gather(1, kept))

    def pull(self, task: str) -> Tensor:
        return F.cosine_similarity(self.features, self.keys[task][None], dim=-1)

    def forward(self, **inputs: Any) -> Any:
        return self.bank(**inputs)

    def generate(self, **inputs: Any) -> Tensor:
        return cast(Tensor, self.bank.generate(**inputs))


class BranchLoRA:
    BRANCHES = ("b0", "b1", "b2", "b3")

    def __init__(self) -> None:
        self.frozen: list[str] = []
        self.tasks: list[str] = []

    @hookimpl
    def build_model(self, backbone: Backbone, recipe: Recipe) -> nn.Module:
        self.bank = adapters(backbone, recipe, "b0")
        for name in self.BRANCHES[1:]:
            self.bank.add(name, reads="b0")
        self.model = Branched(self.bank, backbone)
        mix = SharedDown(lambda z, x: self.model.gates)
        self.bank.mix(lambda layer: mix)
        return self.model

    @hookimpl
    def before_task(self, task: Task) -> None:
        self._grow(f"t{task.index}")
        self.model.learning = f"t{task.index}"
        for table in (self.model.routers, self.model.keys):
            for name, weight in table.items():
                weight.requires_grad_(name == self.model.learning)
        free = [name for name in self.BRANCHES if name not in self.frozen]
        self.bank.use(self.BRANCHES, trainable=free)
        for layer in self.bank.layers:  # the shared A learns on, whoever owns it
            layer.bank_down["b0"].requires_grad_(True)

    @hookimpl
    def loss(self, model: Branched) -> dict[str, Tensor]:
        assert model.learning is not None
        return {"branch/align": 1 - model.pull(model.learning)}

    @hookimpl
    def after_task(self, model: Branched, batches: Iterable[Batch]) -> dict[str, float]:
        used = torch.zeros(len(self.BRANCHES))
        for batch in batches:
            model.prepare(batch)
            used += model.gates.detach().sum(0)
        self.frozen.append(self.BRANCHES[int(used.argmax())])
        return {"branch/used": float(used.max())}

    def _grow(self, task: str) -> None:
        if task not in self.model.routers:
            self.tasks.append(task)
            self.model.routers[task] = nn.Parameter(torch.randn(len(self.BRANCHES), 8))
            self.model.keys[task] = nn.Parameter(torch.randn(8))

    def parts(self, model: Branched) -> dict[str, list[str]]:
        return {
            "routers": [f"routers.{task}" for task in model.routers],
            "keys": [f"keys.{task}" for task in model.keys],
        }

    def state_dict(self) -> dict[str, Any]:
        return {"frozen": self.frozen, "tasks": self.tasks, "experts": self.bank.describe()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for task in state["tasks"]:
            self._grow(task)
        self.frozen = list(state["frozen"])
        self.bank.rebuild(state["experts"])


# --- replay and a joint run -----------------------------------------------------------------------------------------


class Replay:
    """Keeps a few samples of each task, images included, in JSON and tensors."""

    KEPT = 3

    def __init__(self) -> None:
        self.memory: list[Sample] = []

    @hookimpl
    def rehearse(self) -> Sequence[Sample]:
        return list(self.memory)

    @hookimpl
    def after_task(self, batches: Iterable[Batch]) -> None:
        samples = [sample for batch in batches for sample in batch.samples]
        for place in torch.randperm(len(samples))[: self.KEPT].tolist():
            self.memory.append(samples[place])

    def state_dict(self) -> dict[str, Any]:
        return {
            "memory": [
                {
                    "id": one.id,
                    "prompt": one.prompt,
                    "answer": one.answer,
                    "image": torch.tensor(np.array(one.image)),
                }
                for one in self.memory
            ]
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.memory = [
            Sample(one["id"], Image.fromarray(one["image"].numpy()), one["prompt"], one["answer"])
            for one in state["memory"]
        ]


class Joint:
    """One expert on the union, with a key that is pulled; no hook but `loss` and what places it."""

    protocol = "joint"

    @hookimpl
    def build_model(self, backbone: Backbone, recipe: Recipe) -> nn.Module:
        model = adapters(backbone, recipe)
        model.norm_target = nn.Parameter(torch.ones(()))
        return model

    @hookimpl
    def loss(self, model: Any) -> dict[str, Tensor]:
        return {"joint/target": model.norm_target**2}

    def parts(self, model: nn.Module) -> dict[str, list[str]]:
        return {"targets": ["norm_target"]}


# --- what each of them must do --------------------------------------------------------------------------------------

HERE = __file__
SKETCHES = {
    "l2p": f"{HERE}:L2P",
    "branchlora": f"{HERE}:BranchLoRA",
    "replay": f"finetune+{HERE}:Replay",
    "joint": f"{HERE}:Joint",
}
RATES = {"lr.prompts": 0.5, "lr.keys": 0.1, "lr.targets": 0.1}


class Stop(Exception):
    pass


class Watched(Run):
    """Keeps the method's tensors after each task; stops behind one of them where it is told to."""

    stop = 0

    def _checkpoint(self, done: int) -> None:
        here = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        self.kept = [*getattr(self, "kept", []), here]
        super()._checkpoint(done)
        if done == self.stop:
            raise Stop


def trained(sketch: str, folder: Path, root: Path, stop: int = 0) -> Watched:
    recipe = {"adapter.rank": 2, **RATES}
    with RunFolder(root, "run", {}) as runs:
        run = Watched(
            Plugins(parse_stack(SKETCHES[sketch])),
            TASKS,
            tiny_backbone(folder),
            build_recipe(BENCHMARK.recipe, recipe),
            seed=0,
            cells="lower",
            folder=runs,
            world=World("cpu"),
            report=lambda **_: None,
        )
        run.stop = stop
        run.execute()
    return run


@pytest.fixture(scope="module")
def whole(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Each sketch's run over colour, side and colour again."""
    made: dict[str, Watched] = {}

    def get(sketch: str) -> Watched:
        if sketch not in made:
            made[sketch] = trained(sketch, tiny_folder, tmp_path_factory.mktemp(sketch))
        return made[sketch]

    return get


def answered(run: Run) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (run.folder.partial / "answers").iterdir()}


def fresh(sketch: str, folder: Path) -> dict[str, Tensor]:
    """The tensors before anything was learnt."""
    torch.manual_seed(0)
    model = Plugins(parse_stack(SKETCHES[sketch])).build_model(
        tiny_backbone(folder), build_recipe(BENCHMARK.recipe, {"adapter.rank": 2})
    )
    assert model is not None
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("sketch", list(SKETCHES))
def test_a_sketch_that_was_stopped_ends_as_one_that_was_not(
    tiny_folder: Path, tmp_path: Path, whole: Any, sketch: str
) -> None:
    with pytest.raises(Stop):
        trained(sketch, tiny_folder, tmp_path, stop=1)

    resumed, plain = trained(sketch, tiny_folder, tmp_path), whole(sketch)

    for name, tensor in plain.kept[-1].items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name
    assert answered(resumed) == answered(plain)
    assert resumed.measured == plain.measured


@pytest.mark.parametrize("sketch", list(SKETCHES))
def test_a_sketchs_answers_do_not_depend_on_the_batch(tiny_folder: Path, whole: Any, sketch: str) -> None:
    run = whole(sketch)
    answering = run.plugins.build_inference_model(
        run.model, [lesson.task for lesson in run._lessons()]
    ).eval()
    samples = [TASKS[0].test[0], TASKS[1].test[3], Sample("t", None, "Say one colour .")]
    if sketch == "branchlora":
        run.model.learning = None
    logits = []
    with torch.no_grad():
        for chosen in (samples, samples[:1], samples[1:2], samples[2:]):
            batch = run.backbone.batch(chosen, answers=False)
            answering.prepare(batch) if hasattr(answering, "prepare") else None
            logits.append(answering(**batch.inputs).logits[:, -1])

    torch.testing.assert_close(logits[0], torch.cat(logits[1:]), rtol=0, atol=1e-4)


def test_l2p_trains_prompts_and_keys_at_their_own_rate_and_nothing_of_the_language_model(
    tiny_folder: Path, whole: Any
) -> None:
    """AdamW moves a weight by about its rate per step: prompts 0.5, keys 0.1."""
    run = whole("l2p")
    first, last = run.kept[0], run.kept[-1]
    untouched = tiny_backbone(tiny_folder).model.state_dict()

    moves = [(last[name] - first[name]).abs().max().item() for name in ("prompts", "keys")]
    assert 0.1 < moves[0] < 4 * 0.5
    assert 0.01 < moves[1] < 4 * 0.1
    for name, tensor in untouched.items():
        assert torch.equal(last[f"model.{name}"], tensor) or "projector" in name
    assert run.ledger.tasks[0].trained == {"prompts": 6 * 2 * 32, "keys": 6 * 8, "projector": 1600}
    assert run.ledger.stored["inference"] == run.ledger.tasks[0].trained


def test_l2p_generates_behind_its_prompts_what_a_loop_without_cache_does(whole: Any) -> None:
    run = whole("l2p")
    model = run.model.eval()
    with torch.no_grad():
        batch = run.backbone.batch([TASKS[0].test[0], TASKS[1].test[1]], answers=False)
        model.prepare(batch)
        made = model.generate(
            **batch.inputs, max_new_tokens=3, do_sample=False, pad_token_id=0, eos_token_id=None
        )
        inputs = dict(batch.inputs)
        for _ in range(3):
            token = model(**inputs).logits[:, -1].argmax(-1, keepdim=True)
            inputs["input_ids"] = torch.cat([inputs["input_ids"], token], 1)
            inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(token)], 1)

    assert torch.equal(made, inputs["input_ids"])


def test_branchlora_moves_only_the_branches_that_are_not_frozen(whole: Any) -> None:
    run = whole("branchlora")
    first, second, third = run.kept
    frozen = run.plugins.method.frozen
    assert len(frozen) == 3
    for before, after, still in ((first, second, frozen[:1]), (second, third, frozen[:2])):
        for name in after:
            if any(name.endswith(f"bank_up.{branch}") for branch in still):
                assert torch.equal(before[name], after[name]), name
    downs = [name for name in third if "bank_down" in name]
    assert len(downs) == 14
    assert all(not torch.equal(second[name], third[name]) for name in downs)
    free = [branch for branch in BranchLoRA.BRANCHES if branch not in frozen[:2]]
    moved = [name for name in second if not torch.equal(second[name], third[name])]
    assert any(name.endswith(f"bank_up.{branch}") for name in moved for branch in free)


def test_branchlora_trains_the_keys_and_the_router_of_the_task_at_hand(tiny_folder: Path, whole: Any) -> None:
    first, second, third = whole("branchlora").kept

    assert {"keys.t0", "routers.t0"} <= set(first)
    assert "keys.t1" not in first
    for name in ("keys.t0", "routers.t0"):
        assert torch.equal(first[name], third[name])
    model = Branched(cast(Any, nn.Identity()), tiny_backbone(tiny_folder))
    model.features = model._features.images([sample.image for sample in TASKS[1].train])
    for task, kept in (("t0", first), ("t1", second), ("t2", third)):
        model.keys[task] = nn.Parameter(kept[f"keys.{task}"])
    trained_part = whole("branchlora").ledger.tasks[1].trained
    assert trained_part["keys"] == 8
    assert trained_part["routers"] == 4 * 8
    assert torch.isfinite(model.pull("t1")).all()


def test_branchlora_answers_by_the_route_that_its_keys_choose(whole: Any) -> None:
    for name, content in answered(whole("branchlora")).items():
        for line in content.splitlines():
            route = json.loads(line)["route"]
            assert len(route) == int(name[0]) + 1
            assert sorted(route)[-1] == 1.0
            assert sum(route) == 1.0


def test_replay_adds_old_samples_to_any_method_and_the_ledger_says_so(tiny_folder: Path, whole: Any) -> None:
    run = whole("replay")

    assert [(task.steps, task.rehearsed) for task in run.ledger.tasks] == [(2, 0), (2, 3), (2, 6)]
    assert len(run.plugins.instances[SKETCHES["replay"].removeprefix("finetune+")].memory) == 9
    assert run.ledger.stored["continuing"]["plugins"] == 9 * 16 * 16 * 3


def test_a_joint_run_trains_its_own_tensor_beside_the_experts(whole: Any) -> None:
    run = whole("joint")

    assert run.kept[0]["norm_target"] < 0.9
    assert len(run.kept) == 1
    assert set(answered(run)) == {"0-0.jsonl", "0-1.jsonl", "0-2.jsonl"}


@pytest.mark.parametrize("sketch", list(SKETCHES))
def test_a_sketch_trains(tiny_folder: Path, whole: Any, sketch: str) -> None:
    """Whatever the method placed has moved by the end, beside nothing of the frozen model."""
    before, after = fresh(sketch, tiny_folder), whole(sketch).kept[-1]
    untouched = tiny_backbone(tiny_folder).model.state_dict()

    own = [name for name in after if ".bank_" in name or name in ("prompts", "keys", "norm_target")]
    assert own
    assert any(not torch.equal(before[name], after[name]) for name in own if name in before)
    for name, tensor in untouched.items():
        if "projector" not in name:
            found = [key for key in after if key.replace("base_layer.", "").endswith(f"model.{name}")]
            assert found
            assert torch.equal(after[found[0]], tensor)
