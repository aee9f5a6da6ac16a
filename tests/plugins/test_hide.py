"""HiDe against a literal, slow transcription of its equations: loops over experts and samples, weights added by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cl_zoo_hide import HiDe, concatenated, summed
from tiny_runs import Watched, learnt
from torch import Tensor, nn

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import forward
from cl_zoo.engine.run import Run
from cl_zoo.errors import BackboneError
from cl_zoo.names import parse_stack
from cl_zoo.nn.anchors import Anchors, View
from cl_zoo.nn.bank import ExpertBank
from cl_zoo.planning.sizes import shapes, sizes
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.tasks import Sample, Task, TaskData
from cl_zoo.testing import tiny_backbone, tiny_benchmark

SQUARES = tiny_benchmark(3, size=12)
BENCHMARK = replace(
    SQUARES,  # with images that have another mean in every task
    tasks=tuple(replace(data, train=data.train[2 * i : 2 * i + 8]) for i, data in enumerate(SQUARES.tasks)),
)
SCALE = 2.0


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


# --- the literal transcription --------------------------------------------------------------------------------------


def cosine(a: Tensor, b: Tensor) -> float:
    norms = math.sqrt(float((a * a).sum())) * math.sqrt(float((b * b).sum()))
    return float((a * b).sum()) / norms if norms else 0.0


def literal_gate(
    image: Tensor, text: Tensor, images: Sequence[Tensor], texts: Sequence[Tensor], options: HiDe.Options
) -> list[float]:
    """Eq. 3 and 4 for one sample; one modality alone has the weight of both."""
    alpha, beta = options.alpha, options.beta
    if options.modality == "image":
        alpha, beta = alpha + beta, 0.0
    if options.modality == "text":
        alpha, beta = 0.0, alpha + beta
    scores = []
    for m_v, m_ins in zip(images, texts, strict=True):
        score = alpha * cosine(image, m_v) + beta * cosine(text, m_ins)
        scores.append(math.exp(score / options.temperature))
    return [score / sum(scores) for score in scores]


def features_of(backbone: Backbone, sample: Sample, options: HiDe.Options) -> tuple[Tensor, Tensor]:
    """f_v and f_ins of one sample."""
    image = torch.zeros(8) if sample.image is None else backbone.features.images([sample.image])[0]
    if options.variant == "released":
        return image, backbone.features.text_states([sample.prompt.split(" ASSISTANT")[0]])[0]
    return image, backbone.features.texts([sample.prompt])[0]


def literal_anchors(
    backbone: Backbone, task: TaskData, options: HiDe.Options | None = None
) -> tuple[Tensor, Tensor]:
    """Eq. 2: means over the training samples, added up one by one."""
    options = options or HiDe.Options()
    seen = [features_of(backbone, sample, options) for sample in task.train]
    image, text = seen[0][0] * 0, seen[0][1] * 0
    for f_v, f_ins in seen:
        image, text = image + f_v / len(seen), text + f_ins / len(seen)
    return image, text


def experts(weights: dict[str, Tensor], linear: str) -> list[tuple[Tensor, Tensor]]:
    """(A_i, B_i) of every task in one linear."""
    path = f"model.{linear}"
    return [(weights[f"{path}.bank_down.t{i}"], weights[f"{path}.bank_up.t{i}"]) for i in range(3)]


def literal_update(
    pairs: list[tuple[Tensor, Tensor]], d: list[float], role: str, options: HiDe.Options
) -> Tensor:
    """What Eq. 5 (expanded) or Eq. 6 and 7 (fused) add to a weight for one sample."""
    zero, epsilon = torch.tensor(0.0), options.coefficient
    if role == "bare":
        return zero
    if role == "expanded":
        return SCALE * sum((d_i * B @ A for d_i, (A, B) in zip(d, pairs, strict=True)), zero)
    if options.variant == "paper":
        return SCALE * sum((epsilon * B @ A for A, B in pairs), zero)
    total_a = sum((epsilon * A for A, _ in pairs), zero)
    total_b = sum((epsilon * B for _, B in pairs), zero)
    return SCALE * total_b @ total_a


@torch.no_grad()
def literal_logits(
    folder: Path,
    weights: dict[str, Tensor],
    sample: Sample,
    options: HiDe.Options,
    roles: Sequence[str] = ("fused", "expanded"),
    **of_backbone: Any,
) -> Tensor:
    """Logits for one sample on an untouched backbone whose weights get the updates added, linear by linear.

    `roles` says what each decoder layer does, bottom first.
    """
    backbone = tiny_backbone(folder, **of_backbone)
    means = [literal_anchors(backbone, task, options) for task in BENCHMARK.tasks]
    image, text = features_of(backbone, sample, options)
    d = literal_gate(image, text, [m_v for m_v, _ in means], [m_ins for _, m_ins in means], options)
    for name, module in backbone.model.named_modules():
        if f"model.{name}.bank_up.t2" in weights:
            role = next(role for place, role in enumerate(roles) if f".layers.{place}." in name)
            module.weight += literal_update(experts(weights, name), d, role, options)
    for name, weight in backbone.projector.named_parameters():
        path = f"model.model.multi_modal_projector.{name}"
        weight.copy_(weights.get(path, weight))
    return forward(backbone.model, backbone.batch([sample], answers=True)).logits[0]


def drawn(backbone: Backbone, options: HiDe.Options) -> tuple[nn.Module, dict[str, Tensor], HiDe]:
    """The method after three tasks whose experts were drawn instead of trained: what answers, and each (A_i, B_i)."""
    method, generator = HiDe(options), torch.Generator().manual_seed(0)
    bank = method.build_model(backbone, build_recipe({"adapter.rank": 2, "adapter.dropout": 0}))
    fresh: dict[str, Tensor] = {}
    tasks = [Task(i, data.name, "", len(data.train)) for i, data in enumerate(BENCHMARK.tasks)]
    for task, data in zip(tasks, BENCHMARK.tasks, strict=True):
        method.before_task(task)
        for name, weight in bank.named_parameters():
            if weight.requires_grad:
                weight.data = 0.3 * torch.randn(weight.shape, generator=generator)
                fresh[name] = weight.detach().clone()
        method.after_task(task, [backbone.batch(list(data.train), answers=True)])
    return method.build_inference_model(tasks).eval(), fresh, method


def assert_answers(
    folder: Path, options: HiDe.Options, roles: Sequence[str], **of_backbone: Any
) -> tuple[nn.Module, HiDe]:
    """A mixed batch through the method equals each sample alone through weights that were changed by hand."""
    backbone = tiny_backbone(folder, **of_backbone)
    answering, fresh, method = drawn(backbone, options)
    batch = backbone.batch(questions(), answers=True)
    with torch.no_grad():
        logits = forward(answering, batch).logits
    for row, sample in enumerate(questions()):
        expected = literal_logits(folder, fresh, sample, options, roles, **of_backbone)
        torch.testing.assert_close(logits[row][batch.answer_mask[row]], expected, rtol=0, atol=1e-3)
    return answering, method


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


@pytest.mark.parametrize(
    "options",
    [{}, {"alpha": 0.2, "beta": 0.7, "temperature": 0.3}, {"modality": "image"}, {"modality": "text"}],
    ids=str,
)
def test_the_gate_is_equations_3_and_4(options: dict[str, Any]) -> None:
    images, texts, m_v, m_ins = points()

    d = gate(images, texts, m_v, m_ins, **options)

    chosen = HiDe.Options(**options)
    expected = [literal_gate(images[i], texts[i], list(m_v), list(m_ins), chosen) for i in range(5)]
    torch.testing.assert_close(d, torch.tensor(expected), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(d.sum(1), torch.ones(5))


def test_each_similarity_reaches_the_route_with_its_own_weight(tiny: Backbone) -> None:
    options = HiDe.Options(alpha=0.9, beta=0.1, temperature=0.05)
    answering, _, _ = drawn(tiny, options)
    answering.prepare(tiny.batch(questions(), answers=False))

    means = [literal_anchors(tiny, task, options) for task in BENCHMARK.tasks]
    m_v, m_ins = [m for m, _ in means], [m for _, m in means]
    expected = [literal_gate(*features_of(tiny, one, options), m_v, m_ins, options) for one in questions()]
    torch.testing.assert_close(answering.route, torch.tensor(expected), rtol=1e-3, atol=1e-5)


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


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_anchors_are_means_over_each_tasks_training_samples(
    runs: dict[str, Fresh], tiny: Backbone, variant: str
) -> None:
    method = runs[variant].plugins.method
    for place, task in enumerate(BENCHMARK.tasks):
        image, text = literal_anchors(tiny, task, method.options)
        torch.testing.assert_close(method.anchors["images"][place], image)
        torch.testing.assert_close(method.anchors["texts"][place], text)


def test_the_released_text_is_before_the_projection_and_ends_before_the_answer(tiny: Backbone) -> None:
    """Where the template has its mark the prompt ends; a question's first line stays, with an image or without."""
    image = BENCHMARK.tasks[0].train[0].image
    prompts = ["What colour is it ?\nSay one .", "Where is the square ASSISTANT: left\nin short", "red"]
    kept = ["What colour is it ?\nSay one .", "Where is the square", "red"]
    for shown in (image, None):
        method = HiDe(HiDe.Options(variant="released"))
        method.build_model(tiny_again(tiny), build_recipe({"adapter.rank": 2}))
        samples = [Sample("t", shown, prompt, "red") for prompt in prompts]
        method.anchors.add([tiny.batch(samples, answers=True)])

        assert method.anchors["texts"].shape == (1, 16)
        torch.testing.assert_close(method.anchors["texts"][0], tiny.features.text_states(kept).mean(0))


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


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_answers_come_from_equations_5_to_7(runs: dict[str, Fresh], tiny_folder: Path, variant: str) -> None:
    """A mixed batch through the bank equals each sample alone through weights that were changed by hand."""
    run = runs[variant]
    weights = run.kept[-1] | run.fresh
    answering = run.plugins.build_inference_model(run.model, seen(run)).eval()
    batch = run.backbone.batch(questions(), answers=True)
    with torch.no_grad():
        logits = forward(answering, batch).logits
        trained_logits = forward(tiny_backbone(tiny_folder).model, batch).logits

    for row, sample in enumerate(questions()):
        expected = literal_logits(tiny_folder, weights, sample, HiDe.Options(variant=variant))
        got = logits[row][batch.answer_mask[row]]
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
        assert not torch.allclose(trained_logits[row][batch.answer_mask[row]], expected, atol=1e-2)


def test_the_two_variants_differ_in_answering_only(runs: dict[str, Fresh], tiny_folder: Path) -> None:
    paper, released = runs["paper"].fresh, runs["released"].fresh
    assert paper.keys() == released.keys()
    assert all(torch.equal(paper[name], released[name]) for name in paper)

    logits = [
        literal_logits(tiny_folder, runs["paper"].kept[-1] | paper, questions()[0], HiDe.Options(variant=one))
        for one in ("paper", "released")
    ]
    assert not torch.allclose(logits[0], logits[1], atol=1e-3)


ROWS_OF_TABLE_3 = {
    "HiDe-LLaVA": ({}, ("fused", "expanded")),
    "Merge (1-32)": ({"expanded": 0}, ("fused", "fused")),
    "Merge (1-31)": ({"expanded": 0, "bare": 1}, ("fused", "bare")),
    "Expand (1-32)": ({"expanded": "all"}, ("expanded", "expanded")),
    "Expand (1-31)": ({"expanded": "all", "bare": 1}, ("expanded", "bare")),
}


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("row", ROWS_OF_TABLE_3)
def test_the_rows_of_table_3_are_options(tiny_folder: Path, row: str, variant: str) -> None:
    options, roles = ROWS_OF_TABLE_3[row]

    answering, _ = assert_answers(tiny_folder, HiDe.Options(variant=variant, **options), roles)

    assert isinstance(answering, ExpertBank) != (
        "expanded" in roles
    )  # nothing to route where nothing expands


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize(
    ("layers", "options", "roles"),
    [
        (1, {}, ["expanded"]),
        (1, {"expanded": 0}, ["fused"]),
        (1, {"bare": 1}, ["bare"]),
        (1, {"expanded": "all", "bare": 1}, ["bare"]),
        (3, {"expanded": 2}, ["fused", "expanded", "expanded"]),
        (3, {"bare": 1}, ["fused", "expanded", "bare"]),
        (3, {"expanded": 9}, ["expanded"] * 3),
    ],
    ids=str,
)
def test_any_number_of_layers_expands_on_a_decoder_of_any_depth(
    tmp_path: Path, variant: str, layers: int, options: dict[str, Any], roles: list[str]
) -> None:
    assert_answers(tmp_path, HiDe.Options(variant=variant, **options), roles, layers=layers)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_the_coefficient_acts_once_in_the_paper_and_twice_in_the_released_code(
    tiny_folder: Path, variant: str
) -> None:
    """Below the top layer ε Σ B_iA_i or (Σ ε B_i)(Σ ε A_i); the top layer's mix has none."""
    options = HiDe.Options(variant=variant, coefficient=0.5)

    answering, _ = assert_answers(tiny_folder, options, ("fused", "expanded"))

    below = [layer for layer in answering.bank.layers if layer.depth == 0]
    factor = 0.5 if variant == "paper" else 0.25
    assert all(layer.bank_mix.factor == factor for layer in below)


def test_fusing_sums_the_products_or_the_factors() -> None:
    """A_1 = (1 0), B_1 = 1, A_2 = (0 1), B_2 = 2: ΣBA = (1 2), (ΣB)(ΣA) = 3 · (1 1)."""
    A, B = torch.tensor([[1.0, 0], [0, 1]]).split(1), torch.tensor([[1.0], [2]]).split(1)

    (down, up), (sum_a, sum_b) = concatenated(A[0], A[1], B[0], B[1]), summed(A[0], A[1], B[0], B[1])

    assert (up @ down).tolist() == [[1, 2]]
    assert (sum_b @ sum_a).tolist() == [[3, 3]]


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


@pytest.mark.parametrize("row", ["Merge (1-32)", "Expand (1-31)"])
def test_it_goes_on_from_its_state_whatever_is_fused(tiny_folder: Path, row: str) -> None:
    options = HiDe.Options(**ROWS_OF_TABLE_3[row][0])
    answering, _, method = drawn(tiny_backbone(tiny_folder), options)
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
