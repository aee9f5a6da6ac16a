"""What the package ships: a base model that answers, and a CLIP that tells the tasks apart."""

from __future__ import annotations

import json

import open_clip
import torch
from cl_zoo_bench_mini import BASE, CLIP, load
from cl_zoo_bench_mini.held_out import accuracy, answers, draw
from transformers import AutoProcessor, LlavaForConditionalGeneration


def test_base_and_clip_take_at_most_sixteen_megabytes():
    assert sum(file.stat().st_size for folder in (BASE, CLIP) for file in folder.rglob("*")) <= 16e6


def test_the_base_answers_most_held_out_questions():
    asked = draw(150)
    right, count = accuracy(asked, answers(BASE, asked))["all"]
    assert count == 150
    assert right > 0.6  # 0.7 over thousands of questions; letters of options stay near chance


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


def test_mean_features_of_the_clip_tell_the_tasks_apart():
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{CLIP}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{CLIP}")
    model.eval()
    tasks = load().tasks

    @torch.no_grad()
    def features(samples):
        images = model.encode_image(torch.stack([transform(sample.image) for sample in samples]))
        texts = model.encode_text(tokenizer([sample.prompt for sample in samples]))
        return [torch.nn.functional.normalize(part, dim=-1) for part in (images, texts)]

    def anchor(task):
        means = [part.mean(0) for part in features(task.train[:60])]
        return [mean / mean.norm() for mean in means]

    anchors = [anchor(task) for task in tasks]
    for place, task in enumerate(tasks):
        images, texts = features(task.test[:10])
        likeness = torch.stack([images @ image + texts @ text for image, text in anchors], dim=1)
        assert float((likeness.argmax(1) == place).float().mean()) >= 0.8
