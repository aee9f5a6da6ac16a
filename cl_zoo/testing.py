"""Small but real models and tasks for tests: a random LLaVA, a random CLIP, and two tasks of coloured squares.

Nothing here is mocked: the model is transformers' `LlavaForConditionalGeneration`, the encoder open_clip's, and training
moves real weights. They are made on the spot, in well under a second, and know nothing.
"""

from __future__ import annotations

import atexit
import importlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from cl_zoo.backbones import Backbone, load_llava
from cl_zoo.tasks import Benchmark, Sample, TaskData

if TYPE_CHECKING:
    from cl_zoo.conformance import PROMISES as PROMISES
    from cl_zoo.conformance import SLOW as SLOW
    from cl_zoo.conformance import check_method as check_method
    from cl_zoo.conformance import check_promise as check_promise
    from cl_zoo.conformance.moments import ConformanceError as ConformanceError

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "grey": (128, 128, 128)}
TEMPLATE = "USER: {prompt} ASSISTANT:"
WORDS = (
    "USER: ASSISTANT: What colour is it ? Where the square left right Answer with one word . Say side in short "
    "red green blue grey a large small one two three and"
).split()


def tiny_tokenizer() -> Any:
    """A word-level tokenizer with pad, end, image and unknown tokens; the end token has the highest id, as CLIP wants it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<unk>", "<s>", "<image>", *dict.fromkeys(WORDS), "</s>"]
    raw = Tokenizer(models.WordLevel({name: place for place, name in enumerate(names)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
        padding_side="left",
    )


def tiny_checkpoint(folder: Path, *, layers: int = 2, seed: int = 0) -> Path:
    """Write a random LLaVA of about 40,000 parameters as an ordinary checkpoint folder."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    tokenizer = tiny_tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    text = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
        for (
            name,
            weight,
        ) in model.named_parameters():  # larger than usual, so that answers differ between prompts
            if weight.ndim > 1 and "language_model" in name:
                torch.nn.init.normal_(weight, std=0.2)
    size = {"height": 16, "width": 16}
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size).save_pretrained(folder)
    return folder


def tiny_clip(folder: Path, *, seed: int = 0) -> Path:
    """Write a random open_clip model as a folder that `--features` takes."""
    import open_clip
    from safetensors.torch import save_file

    tokenizer = tiny_tokenizer()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8},
        "text_cfg": {
            "context_length": 24,
            "vocab_size": len(tokenizer),
            "width": 16,
            "heads": 2,
            "layers": 1,
            "hf_tokenizer_name": "local",
        },
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.CLIP(**config)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    content = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    return folder


def tiny_backbone(
    folder: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32, **options: Any
) -> Backbone:
    """A fresh tiny backbone with a feature encoder; the files are made in `folder` where they are not there yet."""
    if not (folder / "llava" / "config.json").is_file():
        tiny_checkpoint(folder / "llava", **options)
        tiny_clip(folder / "clip")
    where = torch.device(device)
    return load_llava(
        folder / "llava", where, dtype, name="tiny", template=TEMPLATE, features=str(folder / "clip")
    )


def tiny_benchmark(tasks: int = 2, size: int = 12) -> Benchmark:
    """Tasks about one image of a coloured square: its colour, its side, both in a caption (letters C, S, D)."""
    makers = [("colour", "C", "exact"), ("side", "S", "exact"), ("description", "D", "caption")]
    made = tuple(
        TaskData(
            name=name,
            letter=letter,
            instruction="Answer with one word .",
            metric=metric,
            max_new_tokens=4,
            train=_split(name, size, 0),
            validation=_split(name, 4, 1000),
            test=_split(name, max(4, size // 2), 2000),
        )
        for name, letter, metric in makers[:tasks]
    )
    return Benchmark(
        "tiny",
        "1",
        made,
        ("finetune",),
        "cl_zoo.testing:load_tiny_backbone",
        "tiny-1",
        {"global_batch": 4, "lr.adapters": 1e-2},
    )


def square(place: int) -> tuple[Image.Image, str, str]:
    """Image number `place` with its colour and its side."""
    colour, side = list(COLOURS)[place % 4], ("left", "right")[place // 4 % 2]
    image = Image.new("RGB", (16, 16), (250, 250 - place % 50, 250))
    image.paste(COLOURS[colour], (1, 4, 7, 12) if side == "left" else (9, 4, 15, 12))
    return image, colour, side


def _split(task: str, size: int, start: int) -> Sequence[Sample]:
    samples = []
    references: tuple[str, ...]
    for place in range(start, start + size):
        image, colour, side = square(place)
        if task == "colour":
            question, answer, references = "What colour is it ?", colour, ()
        elif task == "side":
            question, answer, references = "Where is the square ?", side, ()
        else:
            question, answer = "Say what is in it .", f"a {colour} square"
            references = (f"a {colour} square", f"one {colour} square", f"a {colour} square {side}")
        samples.append(
            Sample(f"{place:06d}", image, f"{question}\nAnswer with one word .", answer, references)
        )
    return samples


def load_tiny(data: Path | None = None) -> Benchmark:
    """`--benchmark cl_zoo.testing:load_tiny`: two tasks that train in seconds."""
    return tiny_benchmark()


def load_tiny_backbone(path: Path | None, device: torch.device, dtype: torch.dtype) -> Backbone:
    """`--backbone cl_zoo.testing:load_tiny_backbone`: the tiny backbone, made in a temporary folder."""
    folder = path or Path(tempfile.mkdtemp(prefix="cl-zoo-tiny-"))
    if path is None:
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return tiny_backbone(folder, device=str(device), dtype=dtype)


def __getattr__(name: str) -> Any:
    """The conformance suite under the name that a method's author looks for; it is loaded when it is used."""
    if name not in ("check_method", "check_promise", "PROMISES", "SLOW", "ConformanceError"):
        raise AttributeError(f"module 'cl_zoo.testing' has no attribute {name!r}")
    return getattr(importlib.import_module("cl_zoo.conformance"), name)
