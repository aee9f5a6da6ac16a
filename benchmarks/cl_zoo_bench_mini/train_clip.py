"""Pre-trains the small CLIP that gives methods their features: `python -m cl_zoo_bench_mini.train_clip --work FOLDER`.

An ordinary open_clip model with a tokenizer of its own, trained contrastively on pictures of the pre-training world with their
descriptions and questions. It never sees a task. Seeded, checkpointed, resumable by the same command. The shipped CLIP was trained before the base's
third phase was thought of, on the questions that pre-training had then.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from tokenizers import processors
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast

from cl_zoo_bench_mini.checkpoint import load_state, replace_folder, save_state
from cl_zoo_bench_mini.figures import SIZE
from cl_zoo_bench_mini.network import END, PAD, TOKENS, build_tokenizer
from cl_zoo_bench_mini.questions import questions
from cl_zoo_bench_mini.render import CELL
from cl_zoo_bench_mini.vision import as_pixels, draw_scene, painted

STREAM = 4
"""First word of the seeds of this training."""
CONTEXT = 48
STEPS, BATCH, RATE = 900, 96, 1e-3
CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 64,
        "vision_cfg": {"image_size": SIZE, "patch_size": CELL, "layers": 3, "width": 64, "head_width": 32},
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": len(TOKENS),
            "hf_tokenizer_name": "local",
            "width": 64,
            "heads": 2,
            "layers": 3,
            "pool_type": "eos",
            "eos_id": TOKENS.index(END),
            "pad_id": TOKENS.index(PAD),
        },
    },
    "preprocess_cfg": {
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bicubic",
        "resize_mode": "squash",
    },
}


def build_clip_tokenizer() -> PreTrainedTokenizerFast:
    """The base model's words, closed by the end token, from which the text's feature is read."""
    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, TOKENS.index(END))]
    )
    tokenizer.padding_side = "right"
    return tokenizer


def draw_pairs(
    seed: tuple[int, ...], count: int, tokenizer: PreTrainedTokenizerFast
) -> tuple[Tensor, Tensor]:
    """Pictures [pair, 3, 32, 32], each with the tokens [pair, 48] of a question about it or of a description."""
    rng = np.random.default_rng(seed)
    scenes = [draw_scene(rng) for _ in range(count)]
    texts = []
    for scene in scenes:
        asked = questions(scene, rng, 1)[0]
        texts.append(asked.answer if asked.accepted else asked.prompt)
    encoded = tokenizer(texts, max_length=CONTEXT, padding="max_length", truncation=True, return_tensors="pt")
    return as_pixels(painted(scenes, rng)), encoded["input_ids"]


def contrastive_loss(model: nn.Module, images: Tensor, texts: Tensor) -> Tensor:
    """Symmetric cross-entropy over the batch's pairs."""
    image, text, scale = model(images, texts)
    logits = scale * image @ text.T
    own = torch.arange(len(images))
    return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2


def train(work: Path, seed: int, steps: int) -> nn.Module:
    """Train to the end, from the last checkpoint where there is one."""
    torch.manual_seed(seed)
    model: nn.Module = open_clip.model.CLIP(**CONFIG["model_cfg"])
    tokenizer = build_clip_tokenizer()
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.05, betas=(0.9, 0.98))
    modules: dict[str, nn.Module] = {"clip": model}
    began = time.monotonic()
    for step in range(load_state(work / "clip-state", modules, {"adamw": optimizer}), steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min((step + 1) / 100, 1.0, (steps - step) / (0.5 * steps))
        loss = contrastive_loss(model, *draw_pairs((STREAM + seed * 1000, step), BATCH, tokenizer))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0:
            save_state(work / "clip-state", step + 1, modules, {"adamw": optimizer})
            record = {
                "phase": "clip",
                "step": step + 1,
                "loss": round(float(loss.detach()), 4),
                "seconds": round(time.monotonic() - began, 1),
            }
            with (work / "train_clip.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(record) + "\n")
    return model


def write_clip(model: nn.Module, folder: Path) -> None:
    """Write weights, configuration and tokenizer as open_clip's `local-dir:` wants them."""
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, partial / "open_clip_model.safetensors")
    (partial / "open_clip_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n", encoding="utf-8")
    build_clip_tokenizer().save_pretrained(partial)
    replace_folder(partial, folder)


def main() -> None:
    """Train, or go on where it was stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of state, log and result")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    write_clip(train(options.work, options.seed, options.steps), options.work / "clip")


if __name__ == "__main__":
    main()
