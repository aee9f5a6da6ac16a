"""What the package ships: a base model that answers, of a size that can be shipped."""

from __future__ import annotations

import json

import torch
from cl_zoo_bench_mini import BASE, CLIP
from cl_zoo_bench_mini.held_out import accuracy, answers, draw
from transformers import AutoProcessor, LlavaForConditionalGeneration


def test_base_and_clip_take_at_most_twelve_megabytes():
    assert sum(file.stat().st_size for folder in (BASE, CLIP) for file in folder.rglob("*")) <= 12e6


def test_the_base_answers_nearly_all_held_out_questions():
    asked = draw(150)
    right, count = accuracy(asked, answers(BASE, asked))["all"]
    assert count == 150
    assert right > 0.95


def test_the_base_writes_greedily_with_its_own_end_and_padding():
    settings = json.loads((BASE / "generation_config.json").read_text(encoding="utf-8"))
    assert not settings["do_sample"]
    model = LlavaForConditionalGeneration.from_pretrained(BASE, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(BASE)
    tokenizer = processor.tokenizer
    assert (settings["eos_token_id"], settings["pad_token_id"]) == (
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    )
    assert tokenizer.padding_side == "left"
    assert model.config.text_config.vocab_size == len(tokenizer)


def test_the_chat_template_writes_the_same_prompt_as_the_benchmark():
    processor = AutoProcessor.from_pretrained(BASE)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Read the clock."}]}]
    written = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert written == "USER: <image>\nRead the clock. ASSISTANT:"
