"""Conversations of several turns as tokens: each template repeats itself as its family was taught, and every answer is learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from cl_zoo.backbones.backbone import Backbone
from cl_zoo.batches import IGNORED, answer_losses, forward, task_loss
from cl_zoo.errors import DataError
from cl_zoo.tasks import Sample
from cl_zoo.testing import square

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


def letters(tiny: Backbone, end: str) -> None:
    """Give the backbone a tokenizer for which every byte is a token: no text is the same in two ways."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    bytes_ = {one: place for place, one in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    raw = Tokenizer(models.BPE(bytes_, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    raw.add_special_tokens(
        [
            AddedToken(one, special=True, normalized=False)
            for one in ("<pad>", "</s>", "<|im_start|>", "<|im_end|>")
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
