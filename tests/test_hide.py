"""HiDe against a literal, slow transcription of its equations: loops over experts and samples, weights added by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from cl_zoo_hide import HiDe, anchors, gate
from torch import Tensor

from cl_zoo.backbones import Backbone
from cl_zoo.batches import Batch, forward
from cl_zoo.choices import parse_stack
from cl_zoo.config import build_recipe
from cl_zoo.engine import Run
from cl_zoo.plugins import Plugins
from cl_zoo.runs import RunFolder
from cl_zoo.tasks import Sample, Task, TaskData
from cl_zoo.testing import tiny_backbone, tiny_benchmark
from cl_zoo.world import World

BENCHMARK = tiny_benchmark(3, size=8)
SCALE = 2.0


class Watched(Run):
    """Keeps the method's tensors as they are after each task."""

    kept: list[dict[str, Tensor]]

    def _checkpoint(self, done: int) -> None:
        here = {name: weight.detach().clone() for name, weight in self.model.named_parameters()}
        self.kept = [*getattr(self, "kept", []), here]
        super()._checkpoint(done)


def trained(
    text: str, backbone: Backbone, root: Path, tasks: Sequence[TaskData] = BENCHMARK.tasks
) -> Watched:
    recipe = build_recipe(BENCHMARK.recipe, {"adapter.rank": 2, "adapter.dropout": 0, "lr.projector": 1e-3})
    with RunFolder(root, "run", {}) as folder:
        run = Watched(
            Plugins(parse_stack(text)),
            tasks,
            backbone,
            recipe,
            seed=0,
            cells="lower",
            folder=folder,
            world=World("cpu"),
            report=lambda **_: None,
        )
        run.execute()
    return run


def seen(run: Run) -> list[Task]:
    return [lesson.task for lesson in run._lessons()]


@pytest.fixture(scope="module")
def runs(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Watched]:
    """Both variants after three tasks; each task's training is the same in both."""
    return {
        variant: trained(
            f"hide[variant={variant}]", tiny_backbone(tiny_folder), tmp_path_factory.mktemp(variant)
        )
        for variant in ("paper", "released")
    }


def questions() -> list[Sample]:
    """Two tasks with images and a question without one; prompts of different lengths."""
    return [
        BENCHMARK.tasks[0].test[1],
        BENCHMARK.tasks[2].test[3],
        Sample("t", None, "Say one colour .", "red"),
    ]


# --- the literal transcription --------------------------------------------------------------------------------------


def cosine(a: Tensor, b: Tensor) -> float:
    norms = math.sqrt(float((a * a).sum())) * math.sqrt(float((b * b).sum()))
    return float((a * b).sum()) / norms if norms else 0.0


def literal_gate(
    image: Tensor, text: Tensor, images: Sequence[Tensor], texts: Sequence[Tensor]
) -> list[float]:
    """Eq. 3 and 4 with α = β = 0.5, T = 0.1, for one sample."""
    scores = []
    for m_v, m_ins in zip(images, texts, strict=True):
        scores.append(math.exp((0.5 * cosine(image, m_v) + 0.5 * cosine(text, m_ins)) / 0.1))
    return [score / sum(scores) for score in scores]


def literal_anchors(backbone: Backbone, task: TaskData) -> tuple[Tensor, Tensor]:
    """Eq. 2: means over the training samples, added up one by one."""
    image, text = torch.zeros(8), torch.zeros(8)
    for sample in task.train:
        image += backbone.features.images([sample.image])[0] / len(task.train)
        text += backbone.features.texts([sample.prompt])[0] / len(task.train)
    return image, text


def experts(weights: dict[str, Tensor], linear: str) -> list[tuple[Tensor, Tensor]]:
    """(A_i, B_i) of every task in one linear."""
    path = f"model.{linear}"
    return [(weights[f"{path}.bank_down.t{i}"], weights[f"{path}.bank_up.t{i}"]) for i in range(3)]


def literal_update(pairs: list[tuple[Tensor, Tensor]], d: list[float], top: bool, variant: str) -> Tensor:
    """What Eq. 5 (top layer) or Eq. 6 and 7 (below) add to a weight for one sample."""
    if top:
        return SCALE * sum((d_i * B @ A for d_i, (A, B) in zip(d, pairs, strict=True)), torch.tensor(0.0))
    if variant == "paper":
        return SCALE * sum((B @ A for A, B in pairs), torch.tensor(0.0))
    total_a = sum((A for A, _ in pairs), torch.tensor(0.0))
    total_b = sum((B for _, B in pairs), torch.tensor(0.0))
    return SCALE * total_b @ total_a


@torch.no_grad()
def literal_logits(folder: Path, weights: dict[str, Tensor], sample: Sample, variant: str) -> Tensor:
    """Logits for one sample on an untouched backbone whose weights get the updates added, linear by linear."""
    backbone = tiny_backbone(folder)
    means = [literal_anchors(backbone, task) for task in BENCHMARK.tasks]
    image = torch.zeros(8) if sample.image is None else backbone.features.images([sample.image])[0]
    text = backbone.features.texts([sample.prompt])[0]
    d = literal_gate(image, text, [m_v for m_v, _ in means], [m_ins for _, m_ins in means])
    for name, module in backbone.model.named_modules():
        if f"model.{name}.bank_up.t2" in weights:
            top = ".layers.1." in name
            module.weight += literal_update(experts(weights, name), d, top, variant)
    for name, weight in backbone.projector.named_parameters():
        weight.copy_(weights[f"model.model.multi_modal_projector.{name}"])
    return forward(backbone.model, backbone.batch([sample], answers=True)).logits[0]


# --- the gate and the anchors ---------------------------------------------------------------------------------------


def test_the_gate_is_equations_3_and_4() -> None:
    generator = torch.Generator().manual_seed(0)
    images, texts, m_v, m_ins = (torch.randn(n, 8, generator=generator) for n in (5, 5, 3, 3))
    images[4] = 0  # a sample without an image

    d = gate(images, texts, m_v, m_ins, HiDe.Options())

    expected = [literal_gate(images[i], texts[i], list(m_v), list(m_ins)) for i in range(5)]
    torch.testing.assert_close(d, torch.tensor(expected), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(d.sum(1), torch.ones(5))


def test_a_weight_of_zero_leaves_its_kind_of_similarity_out() -> None:
    generator = torch.Generator().manual_seed(0)
    images, texts, m_v, m_ins = (torch.randn(n, 8, generator=generator) for n in (5, 5, 3, 3))

    d = gate(images, texts, m_v, m_ins, HiDe.Options(alpha=0.0))

    assert torch.equal(d, gate(images * 0 + 1, texts, m_v, m_ins, HiDe.Options(alpha=0.0)))
    assert torch.equal(
        gate(images, texts, m_v, m_ins, HiDe.Options(temperature=1e6)).round(decimals=4),
        torch.full((5, 3), 1 / 3).round(decimals=4),
    )


def test_anchors_are_equation_2(runs: dict[str, Watched], tiny: Backbone) -> None:
    method = runs["paper"].plugins.method
    for place, task in enumerate(BENCHMARK.tasks):
        image, text = literal_anchors(tiny, task)
        torch.testing.assert_close(method.image_anchors[place], image)
        torch.testing.assert_close(method.text_anchors[place], text)


def test_samples_without_an_image_count_with_their_text_only(tiny: Backbone) -> None:
    shown = BENCHMARK.tasks[0].train[0]
    bare = Sample("t", None, "Say one colour .", "red")
    image, text = anchors(tiny, [tiny.batch([bare, shown], answers=True), tiny.batch([bare], answers=True)])

    torch.testing.assert_close(image, tiny.features.images([shown.image])[0])
    torch.testing.assert_close(text, tiny.features.texts([bare.prompt, bare.prompt, shown.prompt]).mean(0))
    nothing, _ = anchors(tiny, [tiny.batch([bare], answers=True)])
    assert nothing.tolist() == [0] * 8


# --- answering ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_answers_come_from_equations_5_to_7(
    runs: dict[str, Watched], tiny_folder: Path, variant: str
) -> None:
    """A mixed batch through the bank equals each sample alone through weights that were changed by hand."""
    run = runs[variant]
    answering = run.plugins.build_inference_model(run.model, seen(run)).eval()
    batch = run.backbone.batch(questions(), answers=True)
    with torch.no_grad():
        logits = forward(answering, batch).logits
        trained_logits = forward(tiny_backbone(tiny_folder).model, batch).logits

    for row, sample in enumerate(questions()):
        expected = literal_logits(tiny_folder, runs["paper"].kept[-1], sample, variant)
        got = logits[row][batch.answer_mask[row]]
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
        assert not torch.allclose(trained_logits[row][batch.answer_mask[row]], expected, atol=1e-2)


def test_the_two_variants_differ(runs: dict[str, Watched], tiny_folder: Path) -> None:
    sample = questions()[0]
    weights = runs["paper"].kept[-1]
    paper, released = (
        literal_logits(tiny_folder, weights, sample, variant) for variant in ("paper", "released")
    )

    assert not torch.allclose(paper, released, atol=1e-3)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_an_answer_does_not_depend_on_who_else_is_in_the_batch(
    runs: dict[str, Watched], variant: str
) -> None:
    run = runs[variant]
    answering = run.plugins.build_inference_model(run.model, seen(run)).eval()
    with torch.no_grad():
        batch = run.backbone.batch(questions(), answers=True)
        together, route = forward(answering, batch).logits, answering.route.clone()
        for row, sample in enumerate(questions()):
            single = run.backbone.batch([sample], answers=True)
            alone = forward(answering, single).logits
            torch.testing.assert_close(answering.route[0], route[row])
            torch.testing.assert_close(together[row][batch.answer_mask[row]], alone[0], rtol=0, atol=1e-4)


def test_the_route_of_every_answer_is_over_the_tasks_seen(runs: dict[str, Watched]) -> None:
    import json

    run = runs["paper"]
    for row in range(3):
        for place in range(row + 1):
            file = run.folder.partial / f"answers/{row}-{place}.jsonl"
            for line in file.read_text().splitlines():
                route = json.loads(line)["route"]
                assert len(route) == row + 1
                assert sum(route) == pytest.approx(1, abs=1e-3)


def test_after_one_task_it_answers_as_that_tasks_expert_alone(tiny_folder: Path, tmp_path: Path) -> None:
    """The gate of one task is 1, so all layers are W + s·BA: fine-tuning's model, trained on the same batches."""
    logits = []
    for text in ("finetune", "hide", "hide[variant=released]"):
        run = trained(text, tiny_backbone(tiny_folder), tmp_path / text, BENCHMARK.tasks[:1])
        answering = run.plugins.build_inference_model(run.model, seen(run)).eval()
        with torch.no_grad():
            logits.append(forward(answering, run.backbone.batch(questions(), answers=True)).logits)

    torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(logits[2], logits[0], rtol=0, atol=1e-5)


# --- learning -------------------------------------------------------------------------------------------------------


def test_each_task_trains_a_fresh_expert_alone_on_the_frozen_model(tiny: Backbone) -> None:
    method = HiDe(HiDe.Options())
    bank = method.build_model(tiny, build_recipe({"adapter.rank": 2}))
    method.before_task(Task(0, "colour", "", 12))
    assert bank.experts == ["t0"]
    for layer in bank.layers:
        layer.bank_up["t0"].data.fill_(0.5)

    method.before_task(Task(1, "side", "", 12))

    for layer in bank.layers:
        assert layer.experts == ["t1"]
        assert layer.bank_up["t1"].abs().sum() == 0
        assert layer.bank_down["t1"].abs().sum() > 0
        assert not torch.equal(layer.bank_down["t1"], layer.bank_down["t0"])
        learning = {name for name, weight in layer.named_parameters() if weight.requires_grad}
        assert learning == {"bank_down.t1", "bank_up.t1"}


@pytest.mark.parametrize(
    ("variant", "stays"),
    [("paper", lambda name: True), ("released", lambda name: ".layers.1." in name)],
)
def test_older_experts_do_not_move_while_a_new_one_learns(
    runs: dict[str, Watched], variant: str, stays: Callable[[str], bool]
) -> None:
    first, second, third = runs[variant].kept
    for before, after, task in ((first, second, "t1"), (second, third, "t2")):
        old = [name for name in before if ".bank_" in name and "fused" not in name and stays(name)]
        assert old
        assert all(torch.equal(before[name], after[name]) for name in old)
        assert any(name.endswith(f"bank_up.{task}") and after[name].abs().sum() > 0 for name in after)


def test_the_released_variant_keeps_the_sums_below_the_top(runs: dict[str, Watched]) -> None:
    """ΣA and ΣB of the three tasks, frozen; the tasks' own experts stand in the top layer only."""
    experts_of, fused = runs["paper"].kept[-1], runs["released"].kept[-1]

    below = [name for name in fused if ".layers.0." in name and ".bank_" in name]
    top = [name for name in fused if ".layers.1." in name and ".bank_" in name]
    assert len(below) == 7 * 2
    assert len(top) == 7 * 2 * 3
    assert all(name.endswith(".fused") for name in below)
    for name in below:
        parts = [experts_of[name.removesuffix("fused") + f"t{i}"] for i in range(3)]
        torch.testing.assert_close(fused[name], parts[0] + parts[1] + parts[2])


def test_a_task_that_comes_again_gets_another_expert_and_anchor(tiny: Backbone, tmp_path: Path) -> None:
    tasks = tiny_benchmark(2, size=8).stream("CSC")

    run = trained("hide", tiny, tmp_path, tasks)

    method = run.plugins.method
    assert method.bank.experts == ["t0", "t1", "t2"]
    torch.testing.assert_close(method.image_anchors[0], method.image_anchors[2])
    last = run.kept[-1]
    ups = [name for name in last if name.endswith("bank_up.t0")]
    assert not all(torch.equal(last[name], last[name.replace("t0", "t2")]) for name in ups)


def test_a_projector_learns_on_from_task_to_task(runs: dict[str, Watched]) -> None:
    name = "model.model.multi_modal_projector.linear_1.weight"
    first, second, third = (kept[name] for kept in runs["paper"].kept)

    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


def test_it_needs_a_feature_encoder(tiny: Backbone) -> None:
    from cl_zoo.errors import BackboneError

    tiny.feature_name = None
    batch: Batch = tiny.batch(questions(), answers=True)
    with pytest.raises(BackboneError, match="--features"):
        anchors(tiny, [batch])


def test_options_say_what_is_out_of_range() -> None:
    bad: list[dict[str, Any]] = [{"temperature": 0}, {"alpha": -1}, {"variant": "other"}, {"fusion": 1}]
    for options in bad:
        with pytest.raises(ValueError, match="validation error"):
            HiDe.Options(**options)
