"""Conversations of several turns and several images as tokens: as each family was taught, and every answer is learnt."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import pytest
import torch
from stripes import stripes
from torch import Tensor
from torch.nn import functional as F

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.backbones.internvl import load as load_internvl
from cl_zoo.backbones.llava_onevision import load as load_onevision
from cl_zoo.backbones.qwen import load as load_qwen
from cl_zoo.backbones.qwen3 import load as load_qwen3
from cl_zoo.batches import IGNORED, answer_losses, forward, task_loss
from cl_zoo.errors import DataError
from cl_zoo.tasks import Sample
from cl_zoo.testing import square, tiny_internvl, tiny_llava_onevision, tiny_qwen, tiny_qwen3

CPU = torch.device("cpu")
TALK = (
    ("What colour is it ?", "red"),
    ("Where is the square ?", "left"),
    ("Say side in short .", "a red square"),
)
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and "
    "polite answers to the user's questions."
)


def conversation(turns: Sequence[tuple[str, str]] = TALK, image: Any = None, **more: Any) -> Sample:
    *before, (asked, answered) = turns
    return Sample("0", image, asked, answered, before=tuple(before), **more)


def letters(tiny: Backbone, end: str, *more: str) -> None:
    """Give the backbone a tokenizer for which every byte is a token: no text is the same in two ways."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    bytes_ = {one: place for place, one in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    raw = Tokenizer(models.BPE(bytes_, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    raw.add_special_tokens(
        [
            AddedToken(one, special=True, normalized=False)
            for one in ("<pad>", "</s>", "<|im_start|>", "<|im_end|>", *more)
        ]
    )
    tiny.tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=end, pad_token="<pad>")


def learnt(ids: Sequence[int], targets: Sequence[int]) -> list[list[int]]:
    """The runs of tokens that are learnt, with the end token that is no input."""
    found: list[list[int]] = [[]]
    for token in targets:
        if token == IGNORED:
            found.append([])
        else:
            found[-1].append(token)
    return [run for run in found if run]


# Templates


@pytest.mark.parametrize(
    ("template", "end", "text"),
    [
        (
            "vicuna_v1",
            "</s>",
            f"{SYSTEM} USER: What colour is it ? ASSISTANT:red</s>USER: Where is the square ? ASSISTANT:left</s>"
            "USER: Say side in short . ASSISTANT:a red square</s>",
        ),
        (
            "internvl",
            "<|im_end|>",
            "<|im_start|>user\nWhat colour is it ?<|im_end|>\n<|im_start|>assistant\nred<|im_end|>\n"
            "<|im_start|>user\nWhere is the square ?<|im_end|>\n<|im_start|>assistant\nleft<|im_end|>\n"
            "<|im_start|>user\nSay side in short .<|im_end|>\n<|im_start|>assistant\na red square<|im_end|>",
        ),
        (
            "qwen2.5-vl",
            "<|im_end|>",
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\nWhat colour is it ?<|im_end|>\n<|im_start|>assistant\nred<|im_end|>\n"
            "<|im_start|>user\nWhere is the square ?<|im_end|>\n<|im_start|>assistant\nleft<|im_end|>\n"
            "<|im_start|>user\nSay side in short .<|im_end|>\n<|im_start|>assistant\na red square<|im_end|>",
        ),
        (
            "mistral_instruct",
            "</s>",
            "[INST] What colour is it ? [/INST]red</s>[INST] Where is the square ? [/INST]left</s>"
            "[INST] Say side in short . [/INST]a red square</s>",
        ),
        (
            "plain",
            "</s>",
            "What colour is it ?red</s>Where is the square ?left</s>Say side in short .a red square</s>",
        ),
        (
            "Q: {prompt} A: ",
            "</s>",
            "Q: What colour is it ? A: red</s>Q: Where is the square ? A: left</s>Q: Say side in short . A: a red square</s>",
        ),
    ],
)
def test_a_conversation_is_token_for_token_its_text_and_each_answer_is_learnt_with_its_end(
    tiny: Backbone, template: str, end: str, text: str
) -> None:
    """As `get_prompt` of LLaVA's `conv_vicuna_v1` and the chat templates of the processors write it; of vicuna's the space before an
    answer belongs to the answer's own tokens, which a tokenizer of bytes does not make."""
    letters(tiny, end)
    tiny.adjust(template=template)
    whole = tiny.tokenizer(text, add_special_tokens=False)["input_ids"]

    batch = tiny.batch([conversation(), conversation(learns_before=False)], answers=True)

    assert batch.targets is not None
    for row, answers in enumerate((["red", "left", "a red square"], ["a red square"])):
        assert batch.inputs["input_ids"][row].tolist() == whole[:-1]
        runs = learnt(whole, batch.targets[row].tolist())
        assert [tiny.tokenizer.decode(run) for run in runs] == [one + end for one in answers]
    learns = batch.targets != IGNORED
    stood = torch.tensor([whole[-batch.targets.shape[1] :]] * 2)
    assert torch.equal(batch.targets[learns], stood[learns])  # each at its place in the text


def test_a_question_ends_where_its_answer_begins_and_keeps_the_turns_before(tiny: Backbone) -> None:
    sample = conversation(image=square(0)[0])
    trained = tiny.batch([sample], answers=True).inputs["input_ids"][0].tolist()

    asked = tiny.batch([sample], answers=False)

    ids = asked.inputs["input_ids"][0].tolist()
    assert ids == trained[: len(ids)]
    assert tiny.tokenizer.decode(ids).endswith("left </s> USER: Say side in short . ASSISTANT:")
    assert asked.samples[0] == replace(sample, answer=None)


def test_a_turn_before_that_marks_an_image_or_has_nothing_to_learn_is_refused(tiny: Backbone) -> None:
    with pytest.raises(DataError, match="sample '0': its prompt holds <image>"):
        tiny.batch([conversation([("<image> ?", "a"), ("?", "b")])], answers=True)
    with pytest.raises(DataError, match="has no answer to learn"):
        tiny.batch([conversation([("a", ""), ("?", "b")])], answers=True)


# What is learnt


@pytest.mark.parametrize("place", ["before", "last"])
def test_an_answer_that_holds_the_text_of_an_image_is_refused(tiny: Backbone, place: str) -> None:
    said = f"red {tiny.image_text}"
    one = conversation() if place == "last" else conversation([(TALK[0][0], said), *TALK[1:]])
    one = replace(one, answer=said) if place == "last" else one

    with pytest.raises(DataError, match="its answer holds <image>, which stands for the image itself"):
        tiny.batch([one], answers=True)


def test_the_loss_of_a_conversation_is_the_mean_over_all_its_answers(tiny: Backbone) -> None:
    """Held against the logits of the whole text without any padding or cut."""
    sample = conversation(image=square(1)[0])
    batch = tiny.batch([sample, Sample("1", None, "a large small grey", "two")], answers=True)
    alone = tiny.batch([sample], answers=True)
    assert alone.targets is not None
    ids = [*alone.inputs["input_ids"][0].tolist(), tiny.tokenizer.eos_token_id]
    inputs = {key: value for key, value in alone.inputs.items() if key != "logits_to_keep"}
    logits = tiny.model(**inputs, use_cache=False).logits[0].float()
    losses = F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")

    words = [tiny.tokenizer.decode([token]) for token in ids[1:]]
    places, learning = [], False
    for place, word in enumerate(words):
        if learning:
            places.append(place)
        learning = (learning or word == "ASSISTANT:") and word != "</s>"
    assert [words[place] for place in places] == "red </s> left </s> a red square </s>".split()
    torch.testing.assert_close(task_loss(tiny.model, alone), losses[places].mean())
    in_company = answer_losses(forward(tiny.model, batch), batch)[0].sum() / len(places)
    torch.testing.assert_close(in_company, losses[places].mean())
    assert [tiny.answer_tokens(one) for one in batch.samples] == batch.answer_mask.sum(1).tolist()


@pytest.mark.parametrize("answers", [True, False])
@pytest.mark.parametrize("learns", [True, False])
def test_tokens_of_a_conversation_are_counted_as_a_batch_has_them(
    tiny: Backbone, answers: bool, learns: bool
) -> None:
    samples = [conversation(learns_before=learns), conversation(TALK[:2], learns_before=learns)]
    lengths = tiny.batch(samples, answers=answers).inputs["attention_mask"].sum(1) + answers  # the end token

    assert tiny.sample_tokens(samples, answers=answers) == lengths.tolist()


# Several images


MARKS = {
    "internvl": ("<img>", "<IMG_CONTEXT>", "</img>"),
    "qwen": ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>"),
    "qwen3": ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>"),
    "onevision": ("", "<image>", ""),
}
SHOWN = {
    "internvl": "<IMG_CONTEXT>\n",
    "qwen": "".join(MARKS["qwen"]),
    "qwen3": "".join(MARKS["qwen3"]),
    "onevision": "<image>\n",
}
"""What the chat templates of the processors write for an image in a list of contents."""
HEADS = dict.fromkeys(MARKS, "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n") | {
    "internvl": "",
    "qwen3": "",
}


IMAGES = (stripes(16, 16, lambda *_: 0), stripes(32, 16, lambda *_: 90), stripes(16, 48, lambda *_: 200))
ASKED: dict[str, tuple[Sample, list[list[str]]]] = {
    "images first": (
        Sample("0", IMAGES[0], "What differs?", more_images=IMAGES[1:]),
        [["", "", "", "What differs?"]],
    ),
    "in the text": (
        Sample("1", IMAGES[1], "Is <image> in <image> or <image>?", more_images=(IMAGES[0], IMAGES[2])),
        [["Is ", " in ", " or ", "?"]],
    ),
    "in lines": (
        Sample("4", IMAGES[2], "1: <image>\n2: <image>\nWhat differs?", more_images=IMAGES[:1]),
        [["1: ", "\n2: ", "\nWhat differs?"]],
    ),
    "in two turns": (
        Sample(
            "2", IMAGES[2], "<image>And this?\n", more_images=IMAGES[:1], before=(("What is it?", "a dog"),)
        ),
        [["", "What is it?"], ["", "And this?\n"]],
    ),
}
"""Samples, and the texts of each turn between whose parts an image stands."""


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Backbone]:
    folder = tmp_path_factory.mktemp("several")
    return {
        "internvl": load_internvl(tiny_internvl(folder / "internvl", tiles=True), CPU, torch.float32),
        "qwen": load_qwen(tiny_qwen(folder / "qwen"), CPU, torch.float32),
        "qwen3": load_qwen3(tiny_qwen3(folder / "qwen3"), CPU, torch.float32),
        "onevision": load_onevision(tiny_llava_onevision(folder / "onevision"), CPU, torch.float32),
    }


def processor(name: str, backbone: Backbone) -> Any:
    """transformers' own, around the backbone's tokenizer and image processor."""
    import transformers
    from transformers.video_processing_utils import BaseVideoProcessor

    class NoVideo(BaseVideoProcessor):
        def __init__(self) -> None: ...

    if name.startswith("qwen"):
        kind = transformers.Qwen2_5_VLProcessor if name == "qwen" else transformers.Qwen3VLProcessor
        return kind(backbone.image_processor, backbone.tokenizer, NoVideo())
    if name == "onevision":
        return transformers.LlavaOnevisionProcessor(
            backbone.image_processor,
            backbone.tokenizer,
            NoVideo(),
            num_image_tokens=4,
            vision_feature_select_strategy="full",
            vision_aspect_ratio=backbone.model.config.vision_aspect_ratio,
        )
    for role, token in zip(("start_image", "context_image", "end_image"), MARKS[name], strict=True):
        setattr(backbone.tokenizer, f"{role}_token", token)
        setattr(backbone.tokenizer, f"{role}_token_id", backbone.tokenizer.convert_tokens_to_ids(token))
    backbone.tokenizer.video_token = "<video>"
    return transformers.InternVLProcessor(
        backbone.image_processor, backbone.tokenizer, NoVideo(), image_seq_length=4
    )


@pytest.mark.parametrize("name", sorted(MARKS))
@pytest.mark.parametrize("asked", sorted(ASKED))
def test_several_images_are_token_for_token_and_pixel_for_pixel_those_of_the_processor(
    several: dict[str, Backbone], name: str, asked: str
) -> None:
    backbone = copy.copy(several[name])
    letters(backbone, "<|im_end|>", *filter(None, MARKS[name]), "<video>", "<|video_pad|>")
    backbone.model = copy.copy(backbone.model)
    backbone.model.config = copy.deepcopy(backbone.model.config)
    backbone.model.config.image_token_id = backbone.tokenizer.convert_tokens_to_ids(MARKS[name][1])
    sample, turns = ASKED[asked]
    if not name.startswith("qwen"):  # the template writes the line break behind an image itself
        turns = [[parts[0], *(part.removeprefix("\n") for part in parts[1:])] for parts in turns]
    said = [
        f"<|im_start|>user\n{SHOWN[name].join(parts)}<|im_end|>\n<|im_start|>assistant\n" for parts in turns
    ]
    answered = [f"{answer}<|im_end|>\n" for _, answer in sample.before]
    text = HEADS[name] + "".join(part for pair in zip_longest(said, answered, fillvalue="") for part in pair)

    theirs = processor(name, backbone)(images=[list(sample.images)], text=[text], return_tensors="pt")
    ours = backbone.batch([sample], answers=False)

    assert ours.inputs["input_ids"].tolist() == theirs["input_ids"].tolist()
    made = [backbone._pixels(image, backbone.aspect_of(sample)) for image in sample.images]
    assert torch.equal(torch.cat([one["pixel_values"] for one in made]), theirs["pixel_values"])
    if name == "onevision":
        assert torch.equal(ours.inputs["batch_num_images"], theirs["batch_num_images"])
    if name.startswith("qwen"):
        assert torch.equal(ours.inputs["image_grid_thw"], theirs["image_grid_thw"])


def pixel_rows(backbone: Backbone, sample: Sample, image: Any) -> Tensor:
    """An image's pixels as the stock model takes them, in tiles where there are some."""
    pixels = backbone._pixels(image, backbone.aspect_of(sample))["pixel_values"]
    return pixels[0] if pixels.ndim == 5 else pixels


def image_tokens(backbone: Backbone, sample: Sample, image: Any) -> int:
    """As preflight counts them."""
    together = backbone.tokens_together if len(sample.images) > 1 else None
    return (backbone.image_tokens(*image.size) or 0) if together is None else together


@pytest.mark.parametrize("name", sorted(MARKS))
def test_samples_of_several_images_learn_alike_alone_in_company_and_from_pixels(
    several: dict[str, Backbone], name: str
) -> None:
    backbone = several[name]
    samples = [replace(sample, answer="red square") for sample, _ in ASKED.values()]
    samples[1:1] = [Sample("3", IMAGES[1], "What ?", "red"), Sample("4", None, "What ?", "blue and grey")]

    batch = backbone.batch(samples, answers=True)
    losses = answer_losses(forward(backbone.model, batch), batch)

    for place, sample in enumerate(samples):
        alone = backbone.batch([sample], answers=True)
        expected = answer_losses(forward(backbone.model, alone), alone)[0]
        torch.testing.assert_close(losses[place][-len(expected) :], expected)
        again = batch.rows([place, 0])
        torch.testing.assert_close(answer_losses(forward(backbone.model, again), again), losses[[place, 0]])
    pixels = [pixel_rows(backbone, one, image) for one in samples for image in one.images]
    raw = backbone.model(**{**batch.inputs, "pixel_values": torch.cat(pixels)}, use_cache=False)
    torch.testing.assert_close(answer_losses(raw, batch), losses)
    for answers in (True, False):
        tokens = [sum(image_tokens(backbone, one, image) for image in one.images) for one in samples]
        real = backbone.batch(samples, answers=answers).inputs["attention_mask"].sum(1) + answers
        counted = backbone.sample_tokens(samples, answers=answers)
        assert [a + b for a, b in zip(counted, tokens, strict=True)] == real.tolist()


def test_a_family_that_was_taught_one_image_refuses_several_and_too_many_marks_are_refused(
    tiny: Backbone, several: dict[str, Backbone]
) -> None:
    two = Sample("7", IMAGES[0], "What ?", "red", more_images=IMAGES[1:2])
    with pytest.raises(
        DataError, match=r"sample '7': has 2 images where backbone .* was taught one; choose one of a family"
    ):
        tiny.batch([two], answers=True)
    with pytest.raises(
        DataError, match="sample '7': marks 3 places of images with <image> and has 2; repair"
    ):
        several["qwen"].batch([replace(two, prompt="<image> <image> <image>")], answers=True)
    with pytest.raises(DataError, match=r"sample '7': its prompt holds <\|image_pad\|>, which stands for"):
        several["qwen"].batch([replace(two, prompt="<|image_pad|>")], answers=True)


def test_one_image_in_a_later_turn_stands_before_its_question_in_every_family(tiny: Backbone) -> None:
    sample = Sample("0", square(0)[0], "<image>Where is it ?", before=(("What colour ?", "red"),))

    text = tiny.tokenizer.decode(tiny.batch([sample], answers=False).inputs["input_ids"][0])
    shown = " ".join(["<image>"] * 4)
    assert text == f"USER: What colour ? ASSISTANT: red </s> USER: {shown} Where is it ? ASSISTANT:"
