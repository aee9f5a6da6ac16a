"""What every family of backbones owes the engine: the same answers alone and in company, from pixels and from kept features."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from stripes import stripes
from torch import Tensor, nn

import cl_zoo
from cl_zoo.backbones.backbone import Backbone
from cl_zoo.backbones.checkpoints import backbone_parts
from cl_zoo.backbones.internvl import load as load_internvl
from cl_zoo.backbones.llava import load as load_llava
from cl_zoo.backbones.llava_next import load as load_llava_next
from cl_zoo.backbones.llava_onevision import load as load_onevision
from cl_zoo.backbones.qwen import load as load_qwen
from cl_zoo.backbones.qwen3 import load as load_qwen3
from cl_zoo.backbones.smolvlm import load as load_smolvlm
from cl_zoo.batches import Batch, answer_losses, forward, task_loss
from cl_zoo.contract.plugins import Plugins
from cl_zoo.engine import answering
from cl_zoo.engine.learning import Learner
from cl_zoo.errors import BackboneError, DataError
from cl_zoo.nn.placing import adapters
from cl_zoo.nn.prompts import Prompted
from cl_zoo.planning.sizes import shapes
from cl_zoo.processes import World
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.tasks import Benchmark, Sample, Task
from cl_zoo.testing import (
    square,
    tiny_benchmark,
    tiny_checkpoint,
    tiny_internvl,
    tiny_llava_next,
    tiny_llava_onevision,
    tiny_qwen,
    tiny_qwen3,
    tiny_smolvlm,
)

CPU = torch.device("cpu")
SURE = 1e-3
"""Margin between the best two tokens above which rounding cannot change an answer."""


@dataclass(frozen=True)
class Kind:
    """A family: its name on the command line, its loader, who writes a tiny checkpoint of it, and transformers' class."""

    name: str
    load: Callable[..., Backbone]
    write: Callable[..., Path]
    stock: str
    options: tuple[tuple[str, Any], ...] = ()


KINDS = {
    "llava": Kind("llava", load_llava, tiny_checkpoint, "LlavaForConditionalGeneration"),
    "internvl": Kind("internvl", load_internvl, tiny_internvl, "InternVLForConditionalGeneration"),
    "internvl-tiles": Kind(
        "internvl", load_internvl, tiny_internvl, "InternVLForConditionalGeneration", (("tiles", True),)
    ),
    "qwen": Kind("qwen2.5-vl", load_qwen, tiny_qwen, "Qwen2_5_VLForConditionalGeneration"),
    "qwen3": Kind("qwen3-vl", load_qwen3, tiny_qwen3, "Qwen3VLForConditionalGeneration"),
    "smolvlm": Kind("smolvlm2", load_smolvlm, tiny_smolvlm, "SmolVLMForConditionalGeneration"),
    "smolvlm-whole": Kind(
        "smolvlm2", load_smolvlm, tiny_smolvlm, "SmolVLMForConditionalGeneration", (("tiles", False),)
    ),
    "llava-next": Kind("llava-next", load_llava_next, tiny_llava_next, "LlavaNextForConditionalGeneration"),
    "llava-onevision": Kind(
        "llava-onevision", load_onevision, tiny_llava_onevision, "LlavaOnevisionForConditionalGeneration"
    ),
    "internvl3.5": Kind(
        "internvl",
        load_internvl,
        tiny_internvl,
        "InternVLForConditionalGeneration",
        (("qwen3", True), ("tiles", True)),
    ),
}


@pytest.fixture(scope="session", params=sorted(KINDS))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Kind, Path]:
    """A family with a folder of its tiny checkpoint; only read it."""
    kind = KINDS[request.param]
    folder = tmp_path_factory.mktemp(request.param) / "model"
    return kind, kind.write(folder, **dict(kind.options))


@pytest.fixture
def kind(family: tuple[Kind, Path]) -> Kind:
    return family[0]


@pytest.fixture
def folder(family: tuple[Kind, Path]) -> Path:
    return family[1]


@pytest.mark.parametrize("size", [(16, 16), (40, 12), (12, 40), (7, 33), (300, 90)])
def test_tokens_are_counted_from_sizes_as_a_batch_has_them(backbone: Backbone, size: tuple[int, int]) -> None:
    """Without the image processor: for every way of framing, with an image and without one."""
    for aspect in backbone.aspects:
        backbone.adjust(image_aspect=aspect)
        for image in (Image.new("RGB", size, "red"), None):
            sample = Sample("a", image, "What colour is the square ?", "red and blue")
            batch = backbone.batch([sample], answers=True)
            (asked,) = backbone.sample_tokens([sample], answers=False)
            (learnt,) = backbone.sample_tokens([sample], answers=True)

            tokens = backbone.image_tokens(*size) if image is not None else 0
            assert tokens is not None
            assert asked + tokens == backbone.batch([sample], answers=False).tokens
            assert (learnt + tokens - 1, learnt - asked) == (batch.tokens, int(batch.answer_mask.sum()))


def test_proportions_that_the_image_processor_refuses_are_refused_from_the_size(tmp_path: Path) -> None:
    qwen = load_qwen(tiny_qwen(tmp_path / "qwen"), CPU, torch.float32)

    with pytest.raises(DataError, match="aspect ratio must be smaller than 200"):
        qwen.image_tokens(1, 3000)
    assert qwen.image_tokens(20, 3000)


@pytest.fixture
def backbone(kind: Kind, folder: Path) -> Backbone:
    return kind.load(folder, CPU, torch.float32)


def product(x: int, y: int) -> int:
    return x * y


def mixed() -> list[Sample]:
    """Square, wide, high and no images, with prompts and answers of several lengths."""
    images = [square(0)[0], stripes(40, 24, product), None, stripes(16, 48, product), square(3)[0], None]
    short, long = "What colour is it ?", "Where is the square ? Answer with one word ."
    answers = ["red", "a large red square", "two", "left", "one small blue square left", "three and one"]
    return [
        Sample(str(i), image, long if i % 2 else short, answer)
        for i, (image, answer) in enumerate(zip(images, answers, strict=True))
    ]


def stock(kind: Kind, folder: Path) -> Any:
    """transformers' model, nothing wrapped."""
    import transformers

    return getattr(transformers, kind.stock).from_pretrained(folder).eval()


def from_pixels(backbone: Backbone, samples: Sequence[Sample], batch: Batch) -> dict[str, Any]:
    """The batch's inputs with pixels in the place of kept features."""
    made = [backbone._pixels(one.image)["pixel_values"] for one in samples if one.image is not None]
    # with the sizes of images their tiles stand behind each other, without in a row of each sample
    tiles = [one.flatten(0, 1) if "image_sizes" in batch.inputs else one for one in made]
    return {**batch.inputs, "pixel_values": torch.cat(tiles)}


def generated(model: Any, backbone: Backbone, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Five greedy tokens per row, and how sure each was."""
    made = model.generate(
        **inputs,
        max_new_tokens=5,
        do_sample=False,
        pad_token_id=backbone.tokenizer.pad_token_id,
        eos_token_id=backbone.tokenizer.eos_token_id,
        output_logits=True,
        return_dict_in_generate=True,
    )
    first, second = torch.stack(made.logits, 1).topk(2).values.unbind(-1)
    return made.sequences[:, inputs["input_ids"].shape[1] :], first - second


def assert_same_answer(here: Tensor, there: Tensor, margin: Tensor) -> None:
    """Two rows of tokens agree up to the first one that was a matter of rounding."""
    unsure = (margin < SURE).tolist()
    known = unsure.index(True) if True in unsure else min(len(here), len(there))
    assert known > 0
    assert here[:known].tolist() == there[:known].tolist()


# The same answers


@torch.no_grad()
def test_kept_features_give_the_logits_of_the_stock_model_on_pixels(
    kind: Kind, folder: Path, backbone: Backbone
) -> None:
    samples = mixed()
    batch = backbone.batch(samples, answers=True)

    kept = forward(backbone.model, batch).logits
    plain = stock(kind, folder)(**from_pixels(backbone, samples, batch), use_cache=False).logits

    torch.testing.assert_close(kept, plain, rtol=0, atol=1e-5)


@torch.no_grad()
def test_kept_features_give_the_answers_of_the_stock_model_on_pixels(
    kind: Kind, folder: Path, backbone: Backbone
) -> None:
    samples = mixed()
    batch = backbone.batch(samples, answers=False)

    kept, margin = generated(backbone.model, backbone, batch.inputs)
    plain, _ = generated(stock(kind, folder), backbone, from_pixels(backbone, samples, batch))

    for row in range(len(samples)):
        assert_same_answer(kept[row], plain[row], margin[row])


@torch.no_grad()
def test_an_answer_does_not_depend_on_who_else_is_in_the_batch(backbone: Backbone) -> None:
    samples = mixed()
    together = backbone.batch(samples, answers=True)
    logits = forward(backbone.model, together).logits
    tokens, margin = generated(backbone.model, backbone, backbone.batch(samples, answers=False).inputs)

    for row, sample in enumerate(samples):
        alone = forward(backbone.model, backbone.batch([sample], answers=True)).logits[0]
        torch.testing.assert_close(logits[row, -len(alone) :], alone, rtol=0, atol=1e-5)
        one, _ = generated(backbone.model, backbone, backbone.batch([sample], answers=False).inputs)
        assert_same_answer(tokens[row], one[0], margin[row])


@torch.no_grad()
@pytest.mark.parametrize("soft", [False, True], ids=["plain", "soft prompts"])
def test_a_cache_of_fixed_size_gives_the_answers_of_one_that_grows(backbone: Backbone, soft: bool) -> None:
    """Batches of several lengths one after the other, the second the shorter: it reads the room of the first and not what is in it."""
    tokens = torch.tensor(backbone.tokenizer.convert_tokens_to_ids(["red", "blue"]))
    model = Two(backbone, tokens) if soft else backbone.model
    for samples in (mixed(), mixed()[2::3], mixed()[:1]):
        batch = backbone.batch(samples, answers=False)
        if isinstance(model, Two):
            model.prepare(batch)
            inputs = with_tokens(batch, tokens)
        else:
            inputs = batch.inputs
        _, margin = generated(backbone.model, backbone, inputs)

        fixed, grown = (
            answering.generated(model, backbone, batch, 5, static=static) for static in (True, False)
        )

        for row in range(len(samples)):
            if margin[row][0] >= SURE:  # a tie at once tells nothing
                assert_same_answer(fixed[row], grown[row], margin[row])


@torch.no_grad()
def test_what_is_learnt_is_what_is_answered(backbone: Backbone) -> None:
    """Where the answer begins, training and generation see the same tokens at the same positions: the logits agree."""
    learnt, asked = (backbone.batch(mixed(), answers=answers) for answers in (True, False))
    logits = forward(backbone.model, learnt).logits
    made = backbone.model.generate(
        **asked.inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
    )

    begins = learnt.answer_mask.int().argmax(1)
    first = logits[torch.arange(len(learnt)), begins]
    torch.testing.assert_close(first, made.logits[0], rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("places", [[3], [2], [1, 4], [5, 2], [4, 0, 3, 1]], ids=str)
def test_some_rows_of_a_batch_take_their_own_images_along(backbone: Backbone, places: list[int]) -> None:
    batch = backbone.batch(mixed(), answers=True)

    some = batch.rows(places)

    assert ("pixel_values" in some.inputs) == any(mixed()[place].image is not None for place in places)
    expected = forward(backbone.model, batch).logits[places]
    torch.testing.assert_close(forward(backbone.model, some).logits, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        forward(backbone.model, some.rows(range(len(places)))).logits, expected, rtol=0, atol=1e-5
    )


class Two(Prompted):
    """Soft prompts that are the embeddings of tokens."""

    def __init__(self, backbone: Backbone, tokens: Tensor) -> None:
        super().__init__(backbone)
        self.rows, self.own = 0, self.model.get_input_embeddings()(tokens)

    def prepare(self, batch: Batch) -> None:
        self.rows = len(batch)

    def soft_prompts(self) -> Tensor:
        return self.own.expand(self.rows, -1, -1)


def with_tokens(batch: Batch, tokens: Tensor) -> dict[str, Any]:
    """The batch's inputs with tokens written behind the first real one of each row, as words of the prompt."""
    longer = dict(batch.inputs)
    written = {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "mm_token_type_ids": tokens * 0,
    }
    for name in written.keys() & longer.keys():
        rows = zip(longer[name], batch.first_tokens.tolist(), strict=True)
        longer[name] = torch.stack(
            [torch.cat([row[: first + 1], written[name].to(row), row[first + 1 :]]) for row, first in rows]
        )
    if "position_ids" in longer:
        longer["position_ids"] = (longer["attention_mask"].cumsum(1) - 1).clamp(min=0)
    return longer


@torch.no_grad()
@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4, 5], [2, 5], [1]], ids=str)
def test_a_soft_prompt_that_is_a_tokens_embedding_reads_as_the_token(
    backbone: Backbone, rows: list[int]
) -> None:
    """With images and without, learning and answering: places, positions and images are those of the longer text."""
    tokens = torch.tensor(backbone.tokenizer.convert_tokens_to_ids(["red", "blue"]))
    samples = [mixed()[row] for row in rows]
    soft, batch = Two(backbone, tokens), backbone.batch(samples, answers=True)

    expected = backbone.model(**with_tokens(batch, tokens), use_cache=False).logits
    torch.testing.assert_close(forward(soft, batch).logits, expected, rtol=0, atol=1e-5)

    batch = backbone.batch(samples, answers=False)
    made, margin = generated(backbone.model, backbone, with_tokens(batch, tokens))
    answered = soft.generate(
        **batch.inputs, max_new_tokens=5, do_sample=False, pad_token_id=backbone.tokenizer.pad_token_id
    )[:, batch.inputs["input_ids"].shape[1] :]
    sure = [row for row in range(len(samples)) if margin[row][0] >= SURE]  # a tie at once tells nothing
    assert sure
    for row in sure:
        assert_same_answer(answered[row], made[row], margin[row])


def bytewise(marks: Sequence[str]) -> Any:
    """A tokenizer that keeps every character: one token per byte, and one for each mark."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({one: place for place, one in enumerate(alphabet)}, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    raw.add_special_tokens(list(marks))
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=marks[-1], pad_token=marks[-1])


MARK = "<fake_token_around_image>"
SAID = {
    "llava": "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions. USER: <image>\nHow?\nSay it. ASSISTANT:",
    "internvl": "<|im_start|>user\n<img><IMG_CONTEXT></img>\nHow?\nSay it.<|im_end|>\n<|im_start|>assistant\n",
    "qwen2.5-vl": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    "<|vision_start|><|image_pad|><|vision_end|>How?\nSay it.<|im_end|>\n<|im_start|>assistant\n",
    "qwen3-vl": "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>How?\nSay it.<|im_end|>\n"
    "<|im_start|>assistant\n",
    "smolvlm2": f"<|im_start|>User:{MARK}<row_1_col_1><image>{MARK}<row_1_col_2><image>\n"
    f"{MARK}<row_2_col_1><image>{MARK}<row_2_col_2><image>\n\n{MARK}<global-img><image>{MARK}"
    "How?\nSay it.<end_of_utterance>\nAssistant:",
    "smolvlm-whole": f"<|im_start|>User:{MARK}<global-img><image>{MARK}How?\nSay it.<end_of_utterance>\nAssistant:",
}
SAID["llava-next"] = SAID["llava"]
SAID["llava-onevision"] = SAID["qwen2.5-vl"].replace(
    "<|vision_start|><|image_pad|><|vision_end|>", "<image>\n"
)
"""Prompts with one image token, character by character, as the families' own processors write them."""


def test_the_prompt_is_that_of_the_family_to_the_last_line_break(kind: Kind, backbone: Backbone) -> None:
    marks = ("<image>", "<img>", "<IMG_CONTEXT>", "</img>", "<|im_start|>", "<|im_end|>", "</s>")
    more = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>", MARK, "<global-img>", "<end_of_utterance>")
    backbone.tokenizer = bytewise([*more, *marks])
    backbone.model.config.image_token_id = backbone.tokenizer.convert_tokens_to_ids(backbone.image_text)

    batch = backbone.batch([Sample("0", square(0)[0], "How?\nSay it.", "So.")], answers=False)

    text = backbone.tokenizer.decode(batch.inputs["input_ids"][0])
    whole = "smolvlm-whole" if ("tiles", False) in kind.options else kind.name
    assert re.sub(f"({re.escape(backbone.image_text)})+", backbone.image_text, text) == SAID[whole]


def test_inputs_are_plain_tensors(backbone: Backbone) -> None:
    for value in backbone.batch(mixed(), answers=True).inputs.values():
        assert isinstance(value, Tensor | int)


@torch.no_grad()
def test_habits_of_a_checkpoint_leave_greedy_answers_alone(kind: Kind, folder: Path, tmp_path: Path) -> None:
    habits = {"do_sample": True, "temperature": 0.1, "repetition_penalty": 9.0, "max_length": 2}
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "generation_config.json").write_text(json.dumps(habits))
    plain, given = kind.load(folder, CPU, torch.float32), kind.load(copy, CPU, torch.float32)

    inputs = plain.batch(mixed(), answers=False).inputs

    assert torch.equal(generated(given.model, given, inputs)[0], generated(plain.model, plain, inputs)[0])


# Features


class Counting(nn.Module):
    """Something of a vision tower that counts how often it is used."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, *arguments: Any, **named: Any) -> Any:
        self.calls += 1
        return self.inner(*arguments, **named)


def count(backbone: Backbone) -> Counting:
    """Count the forwards of the tower's last block."""
    tower: Any = backbone.vision_tower
    blocks = getattr(tower, "blocks", None) or getattr(tower.encoder, "layers", None) or tower.encoder.layer
    blocks[0] = Counting(blocks[0])
    return blocks[0]


def test_features_on_a_shelf_serve_another_process(kind: Kind, folder: Path, tmp_path: Path) -> None:
    first, second = (kind.load(folder, CPU, torch.float32) for _ in range(2))
    for one in (first, second):
        one.adjust(cache=tmp_path)
    seen = first.batch(mixed(), answers=True)
    counting = count(second)

    again = second.batch(mixed(), answers=True)

    assert counting.calls == 0
    assert again.spans == seen.spans
    for name in seen.inputs.keys() & {"pixel_values", "image_grid_thw", "image_sizes"}:
        assert torch.equal(again.inputs[name], seen.inputs[name])


def test_an_image_that_was_looked_at_is_not_looked_at_again(backbone: Backbone) -> None:
    backbone.batch(mixed(), answers=True)
    counting = count(backbone)

    backbone.batch(mixed(), answers=True)

    assert counting.calls == 0


# Learning


def test_a_projector_that_learns_gets_a_gradient_through_kept_features(backbone: Backbone) -> None:
    backbone.train_projector(True)

    task_loss(backbone.model, backbone.batch(mixed(), answers=True)).backward()

    weights = list(backbone.projector.parameters())
    assert weights
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in weights)
    others = {id(weight) for weight in weights}
    assert all(w.grad is None for w in backbone.model.parameters() if id(w) not in others)


def learner(backbone: Backbone, samples: Sequence[Sample], **recipe: Any) -> Learner:
    chosen = build_recipe({"global_batch": 2, "adapter.dropout": 0, **recipe})
    model = adapters(backbone, chosen)
    backbone.train_projector(True)
    task = Task(0, "mixed", "", len(samples))
    return Learner(
        model,
        task,
        samples,
        backbone=backbone,
        plugins=Plugins(()),
        recipe=chosen,
        world=World("cpu"),
        seed=0,
    )


def test_a_step_without_images_moves_the_projector_by_its_momentum_alone(backbone: Backbone) -> None:
    """AdamW leaves out a weight without a gradient; a gradient of zero lets the moments fade and the weight follow them.

    m₁ = (1 − β₁) g, v₁ = (1 − β₂) g² after a step with images, m₂ = β₁ m₁, v₂ = β₂ v₁ after one without.
    """
    samples = mixed()
    learning = learner(backbone, samples, schedule="constant", warmup=0)
    weight = next(iter(backbone.projector.parameters()))

    learning.step([0, 1])
    moments = {name: value.clone() for name, value in learning.optimizer.state[weight].items()}
    learning.step([2, 5])  # neither has an image

    state = learning.optimizer.state[weight]
    assert int(state["step"]) == 2
    torch.testing.assert_close(state["exp_avg"], moments["exp_avg"] * learning.recipe.betas[0])
    torch.testing.assert_close(state["exp_avg_sq"], moments["exp_avg_sq"] * learning.recipe.betas[1])


def test_a_first_step_without_images_leaves_the_projector_where_it_is(backbone: Backbone) -> None:
    learning = learner(backbone, mixed(), weight_decay=0)
    before = [weight.clone() for weight in backbone.projector.parameters()]

    terms = learning.step([2, 5])

    assert torch.isfinite(terms["task"])
    assert all(map(torch.equal, backbone.projector.parameters(), before))


def test_adapters_go_on_all_linears_of_the_decoder_and_nowhere_else(backbone: Backbone) -> None:
    bank = adapters(backbone, build_recipe({}))

    names = [name for name, _ in bank.named_parameters() if "bank_down" in name]
    assert len(names) == 2 * 7  # layers, linears
    assert all(f"{backbone.decoder_at}.layers" in name for name in names)


def test_names_without_the_wrapper_are_those_of_the_stock_model(
    kind: Kind, folder: Path, backbone: Backbone
) -> None:
    ours = {backbone.hub_name(name): value for name, value in backbone.model.state_dict().items()}
    theirs = stock(kind, folder).state_dict()

    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


# Runs


def load_mixed(data: Path | None = None) -> Benchmark:
    """Two tasks; every third training sample of the first has no image, nor has one test sample."""
    from dataclasses import replace

    first, second = tiny_benchmark().tasks
    train = [replace(one, image=None if i % 3 == 0 else one.image) for i, one in enumerate(first.train)]
    test = [replace(one, image=None if i == 0 else one.image) for i, one in enumerate(first.test)]
    return replace(tiny_benchmark(), tasks=(replace(first, train=train, test=test), second))


def run(kind: Kind, folder: Path, method: str, out: Path, clip: Path, **settings: Any) -> Any:
    return cl_zoo.run(
        method,
        benchmark=f"{__file__}:load_mixed",
        backbone=f"{kind.name}:{folder}",
        features=str(clip),
        device="cpu",
        out=out,
        **settings,
    )


@pytest.mark.parametrize("method", ["finetune", "moelora"])
def test_a_method_learns_and_answers_on_every_family(
    kind: Kind, folder: Path, method: str, tmp_path: Path, tiny_folder: Path
) -> None:
    result = run(kind, folder, method, tmp_path, tiny_folder / "clip")

    assert all(0 <= score <= 100 for row in result.matrix.scores for score in row if score is not None)
    assert result.ledger["stored"]["inference"]["projector"] > 0
    answers = [
        json.loads(line) for line in (result.folder / "answers" / "1-0.jsonl").read_text().splitlines()
    ]
    assert len(answers) == 6


@pytest.mark.parametrize("family", sorted(KINDS.keys() - {"llava"}), indirect=True)
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(
    kind: Kind, folder: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    """On a LLaVA it is the promise `resuming` of every method."""

    def interrupt(event: dict[str, Any]) -> None:
        if event["phase"] == "train" and event["index"] == 1:
            raise KeyboardInterrupt

    whole = run(kind, folder, "hide", tmp_path / "whole", tiny_folder / "clip")
    with pytest.raises(KeyboardInterrupt):
        run(kind, folder, "hide", tmp_path / "parts", tiny_folder / "clip", watch=interrupt)
    resumed = run(kind, folder, "hide", tmp_path / "parts", tiny_folder / "clip")

    for file in sorted((whole.folder / "answers").glob("*.jsonl")):
        assert (resumed.folder / "answers" / file.name).read_text() == file.read_text()


# Checkpoints


def test_a_folder_tells_its_family_itself(kind: Kind, folder: Path) -> None:
    assert backbone_parts(str(folder)) == (kind.name, folder)


def test_a_configuration_is_enough_to_count_parameters(kind: Kind, folder: Path, backbone: Backbone) -> None:
    for name in (str(folder), f"{kind.name}:{folder}"):
        counted = shapes(name)

        assert counted.device.type == "meta"
        assert [w.shape for w in counted.model.parameters()] == [w.shape for w in backbone.model.parameters()]
        assert len(list(counted.projector.parameters())) == len(list(backbone.projector.parameters()))


def without_weights(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        file.unlink()


def of_another_class(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama"}')


def without_a_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors[next(name for name in tensors if re.search("merger|linear_1|connector", name))]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def cut_off(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (without_weights, "has no weights"),
        (of_another_class, "holds a 'llama' model, not '"),
        (without_a_tensor, "1 weights are missing, first .*; copy the checkpoint again"),
        (cut_off, "; the checkpoint is corrupt or incomplete, copy it again"),
    ],
)
def test_a_spoilt_checkpoint_is_one_sentence(
    kind: Kind, folder: Path, tmp_path: Path, spoil: Callable[[Path], None], sentence: str
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    spoil(copy)

    with pytest.raises(
        BackboneError, match=f"backbone {copy}: .*{sentence}|backbone {copy}: {sentence}"
    ) as raised:
        kind.load(copy, CPU, torch.float32)
    assert "\n" not in str(raised.value)


def test_a_family_without_a_path_is_told_to_take_one(kind: Kind) -> None:
    with pytest.raises(
        BackboneError, match=f"backbone {kind.name} needs a checkpoint; pass --backbone {kind.name}:FOLDER"
    ):
        kind.load(None, CPU, torch.float32)


def test_a_folder_of_no_known_family_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')

    with pytest.raises(
        BackboneError, match=r"holds a 'llama' model; .* internvl, llava, .*qwen2_5_vl, qwen3_vl, smolvlm"
    ):
        backbone_parts(str(tmp_path))


def test_losses_of_a_limited_split_are_finite(backbone: Backbone) -> None:
    batch = backbone.batch(mixed()[:3], answers=True)

    assert torch.isfinite(answer_losses(forward(backbone.model, batch), batch)).all()
