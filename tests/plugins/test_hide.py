"""HiDe in runs: what learns, what is kept, what an answer depends on. Its equations: `tests/oracles/test_hide.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cl_zoo_hide import HiDe
from tiny_runs import Watched, learnt
from torch import Tensor, nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import forward
from cl_zoo.engine.run import Run
from cl_zoo.engine.sizes import sizes
from cl_zoo.errors import BackboneError
from cl_zoo.names import parse_stack
from cl_zoo.nn.anchors import Anchors, View
from cl_zoo.planning.sizes import shapes
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.tasks import Sample, Task, TaskData
from cl_zoo.testing import tiny_backbone, tiny_benchmark

SQUARES = tiny_benchmark(3, size=12)
BENCHMARK = replace(
    SQUARES,  # with images that have another mean in every task
    tasks=tuple(replace(data, train=data.train[2 * i : 2 * i + 8]) for i, data in enumerate(SQUARES.tasks)),
)


class Fresh(Watched):
    """Keeps each task's expert too, as it is before anything is fused."""

    fresh: dict[str, Tensor]

    def _learn(self, lesson: Any) -> None:
        after_task = self.plugins.after_task

        def watched(model: nn.Module, task: Task, batches: Any, **more: Any) -> Any:
            self.fresh = getattr(self, "fresh", {}) | {
                name: weight.detach().clone()
                for name, weight in model.named_parameters()
                if name.endswith((f"bank_down.t{task.index}", f"bank_up.t{task.index}"))
            }
            return after_task(model, task, batches, **more)

        self.plugins.after_task = watched  # type: ignore[method-assign]
        super()._learn(lesson)
        self.plugins.after_task = after_task  # type: ignore[method-assign]


def trained(text: str, backbone: Backbone, root: Path, tasks: Sequence[TaskData] = BENCHMARK.tasks) -> Fresh:
    recipe = build_recipe(BENCHMARK.recipe, {"adapter.rank": 2, "adapter.dropout": 0, "lr.projector": 1e-3})
    return learnt(Fresh, text, tasks, backbone, recipe, root, cells="lower")


def seen(run: Run) -> list[Task]:
    return [lesson.task for lesson in run.lessons]


@pytest.fixture(scope="module")
def runs(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Fresh]:
    """Both variants after three tasks; each task's training is the same in both."""
    return {
        variant: trained(
            f"hide[variant={variant}]", tiny_backbone(tiny_folder), tmp_path_factory.mktemp(variant)
        )
        for variant in ("paper", "released")
    }


def tiny_again(backbone: Backbone) -> Backbone:
    """Another one of the same files: a bank changes a backbone's model in place."""
    return tiny_backbone(Path(str(backbone.feature_name)).parent)


def questions() -> list[Sample]:
    """Two tasks with images and a question without one; prompts of different lengths."""
    return [
        BENCHMARK.tasks[0].test[1],
        BENCHMARK.tasks[2].test[3],
        Sample("t", None, "Say one colour .", "red"),
    ]


def drawn(backbone: Backbone, options: HiDe.Options) -> tuple[nn.Module, HiDe]:
    """What answers after three tasks whose experts were drawn instead of trained, and the method."""
    method, generator = HiDe(options), torch.Generator().manual_seed(0)
    bank = method.build_model(backbone, build_recipe({"adapter.rank": 2, "adapter.dropout": 0}))
    tasks = [Task(i, data.name, "", len(data.train)) for i, data in enumerate(BENCHMARK.tasks)]
    for task, data in zip(tasks, BENCHMARK.tasks, strict=True):
        method.before_task(task)
        for weight in bank.parameters():
            if weight.requires_grad:
                weight.data = 0.3 * torch.randn(weight.shape, generator=generator)
        method.after_task(task, [backbone.batch(list(data.train), answers=True)])
    return method.build_inference_model(tasks).eval(), method


# --- the gate and the anchors ---------------------------------------------------------------------------------------


def gate(images: Tensor, texts: Tensor, m_v: Tensor, m_ins: Tensor, **options: Any) -> Tensor:
    """d from features and anchors that are given."""
    method = HiDe(HiDe.Options(**options))
    alpha, beta = method.options.weights
    views = {"images": View(lambda _: images, 8, alpha), "texts": View(lambda _: texts, 8, beta)}
    anchors = Anchors(views, method.options.temperature, torch.device("cpu"))
    anchors.restore({"images": m_v, "texts": m_ins})
    return anchors(questions())


def points() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images, texts, m_v, m_ins = (torch.randn(n, 8, generator=generator) for n in (5, 5, 3, 3))
    images[4] = 0  # a sample without an image
    return images, texts, m_v, m_ins


def test_one_modality_routes_without_the_other() -> None:
    images, texts, m_v, m_ins = points()
    others = torch.flip(texts, [0]), torch.flip(images, [0])

    by_image, by_text = (gate(images, texts, m_v, m_ins, modality=one) for one in ("image", "text"))

    assert torch.equal(by_image, gate(images, others[0], m_v, m_ins, modality="image"))
    assert torch.equal(by_text, gate(others[1], texts, m_v, m_ins, modality="text"))
    torch.testing.assert_close(by_image[4], torch.full((3,), 1 / 3))  # no image, no preference
    assert torch.equal(
        gate(images, texts, m_v, m_ins, alpha=0.0, beta=1.0), gate(images, texts, m_v, m_ins, modality="text")
    )


def test_a_high_temperature_mixes_all_tasks_evenly() -> None:
    torch.testing.assert_close(gate(*points(), temperature=1e6), torch.full((5, 3), 1 / 3))


def test_samples_without_an_image_count_with_their_text_only(tiny: Backbone) -> None:
    shown = BENCHMARK.tasks[0].train[0]
    bare = Sample("t", None, "Say one colour .", "red")
    method = HiDe(HiDe.Options())
    method.build_model(tiny_again(tiny), build_recipe({"adapter.rank": 2}))
    method.anchors.add([tiny.batch([bare, shown], answers=True), tiny.batch([bare], answers=True)])
    method.anchors.add([tiny.batch([bare], answers=True)])

    images, texts = method.anchors["images"], method.anchors["texts"]
    torch.testing.assert_close(images[0], tiny.features.images([shown.image])[0])
    torch.testing.assert_close(
        texts[0], tiny.features.texts([bare.prompt, bare.prompt, shown.prompt]).mean(0)
    )
    assert images[1].tolist() == [0] * 8


# --- answering ------------------------------------------------------------------------------------------------------


def test_the_two_variants_differ_in_answering_only(runs: dict[str, Fresh]) -> None:
    paper, released = runs["paper"].fresh, runs["released"].fresh
    assert paper.keys() == released.keys()
    assert all(torch.equal(paper[name], released[name]) for name in paper)

    logits = []
    for run in runs.values():
        answering = run.plugins.build_inference_model(run.model, seen(run)).eval()
        with torch.no_grad():
            logits.append(forward(answering, run.backbone.batch(questions(), answers=True)).logits)
    assert not torch.allclose(logits[0], logits[1], atol=1e-3)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_an_answer_does_not_depend_on_who_else_is_in_the_batch(runs: dict[str, Fresh], variant: str) -> None:
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


def test_the_route_of_every_answer_is_over_the_tasks_seen(runs: dict[str, Fresh]) -> None:
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


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_older_experts_do_not_move_while_a_new_one_learns(runs: dict[str, Fresh], variant: str) -> None:
    first, second, third = runs[variant].kept
    for before, after, task in ((first, second, "t1"), (second, third, "t2")):
        old = [name for name in before if ".bank_" in name and "fused" not in name]
        assert len(old) == 7 * 2 * int(task[1])
        assert all(torch.equal(before[name], after[name]) for name in old)
        assert any(name.endswith(f"bank_up.{task}") and after[name].abs().sum() > 0 for name in after)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_below_the_top_only_what_is_fused_is_kept(runs: dict[str, Fresh], variant: str) -> None:
    """ΣA and ΣB of the three tasks, or all of them side by side; the tasks' own experts stand in the top layer only."""
    fresh, kept = runs[variant].fresh, runs[variant].kept[-1]

    below = [name for name in kept if ".layers.0." in name and ".bank_" in name]
    top = [name for name in kept if ".layers.1." in name and ".bank_" in name]
    assert len(below) == 7 * 2
    assert len(top) == 7 * 2 * 3
    assert all(name.endswith(".fused") for name in below)
    for name in below:
        parts = [fresh[name.removesuffix("fused") + f"t{i}"] for i in range(3)]
        side_by_side = torch.cat(parts, 0 if "bank_down" in name else 1)
        expected = side_by_side if variant == "paper" else parts[0] + parts[1] + parts[2]
        torch.testing.assert_close(kept[name], expected)
    assert all(torch.equal(kept[name], fresh[name]) for name in top)


@pytest.mark.parametrize("settings", [{"expanded": 0}, {"expanded": "all", "bare": 1}], ids=str)
def test_it_goes_on_from_its_state_whatever_is_fused(tiny_folder: Path, settings: dict[str, Any]) -> None:
    options = HiDe.Options(**settings)
    answering, method = drawn(tiny_backbone(tiny_folder), options)
    backbone = tiny_backbone(tiny_folder)
    again = HiDe(options)
    bank = again.build_model(backbone, build_recipe({"adapter.rank": 2, "adapter.dropout": 0}))
    again.load_state_dict(method.state_dict())
    with torch.no_grad():
        for name, weight in method.bank.named_parameters():
            bank.get_parameter(name).copy_(weight)
    resumed = again.build_inference_model([Task(i, "", "", 1) for i in range(3)]).eval()

    batch = backbone.batch(questions(), answers=True)
    with torch.no_grad():
        torch.testing.assert_close(forward(resumed, batch).logits, forward(answering, batch).logits)
    again.before_task(Task(3, "", "", 1))
    assert [layer.experts for layer in bank.layers] == [["t3"]] * 14


@pytest.mark.parametrize(
    ("options", "ratio"),
    [("expanded=0", 32 / 37), ("expanded=0,bare=1", 31 / 37), ("expanded=all", 6 * 32 / 37)],
)
def test_sizes_after_six_tasks_are_those_of_table_3(options: str, ratio: float) -> None:
    """In LoRAs per layer: HiDe 31 · 1 + 1 · 6 = 37, merging all 32, expanding all 6 · 32: × 1, × 0.86, × 5.19."""
    recipe = build_recipe({"adapter.rank": 8})
    kept = [
        sizes(parse_stack(f"hide[variant=released{more}]"), shapes("llava-1.5-7b"), recipe, 6)[-1].inference
        for more in ("", f",{options}")
    ]

    assert kept[0]["adapters"] == 37 * 8 * 78_080
    assert kept[1]["adapters"] == pytest.approx(ratio * kept[0]["adapters"], rel=1e-9)


def test_a_task_that_comes_again_gets_another_expert_and_anchor(tiny: Backbone, tmp_path: Path) -> None:
    tasks = tiny_benchmark(2, size=8).stream("CSC")

    run = trained("hide", tiny, tmp_path, tasks)

    method = run.plugins.method
    assert method.bank.experts == ["t0", "fused", "t1", "t2"]
    torch.testing.assert_close(method.anchors["images"][0], method.anchors["images"][2])
    ups = [name for name in run.fresh if name.endswith("bank_up.t0")]
    assert not all(torch.equal(run.fresh[name], run.fresh[name.replace("t0", "t2")]) for name in ups)


def test_a_projector_learns_on_from_task_to_task(runs: dict[str, Fresh]) -> None:
    name = "model.model.multi_modal_projector.linear_1.weight"
    first, second, third = (kept[name] for kept in runs["paper"].kept)

    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


def test_it_needs_a_feature_encoder(tiny: Backbone) -> None:
    tiny.feature_name = None
    with pytest.raises(BackboneError, match="--features"):
        HiDe(HiDe.Options()).build_model(tiny, build_recipe({"adapter.rank": 2}))


def test_options_say_what_is_out_of_range() -> None:
    bad: list[dict[str, Any]] = [
        {"temperature": 0},
        {"alpha": -1},
        {"alpha": 0, "beta": 0},
        {"variant": "other"},
        {"modality": "sound"},
        {"expanded": -1},
        {"expanded": "some"},
        {"bare": -1},
        {"coefficient": -1},
        {"fusion": 1},
    ]
    for options in bad:
        with pytest.raises(ValueError, match="validation error"):
            HiDe.Options(**options)
