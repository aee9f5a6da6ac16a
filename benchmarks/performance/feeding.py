"""Whether images and words are ready when the device asks for its next batch.

    python benchmarks/performance/feeding.py --json benchmarks/results/performance/feeding-cpu.json

Renders JPEGs, measures what reading one costs a core (decoding, framing, the image processor, the cast) and what a batch of
texts costs the thread that steers the device, both in processor time, so that a busy machine does not change them. From these it computes how
long a step of LLaVA-7B waits for its batch with so many reading threads, and measures the same with a sleep in the place of the
device. `README.md` beside this file says which figures are measured and which are computed.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from heapq import heapify, heapreplace
from itertools import cycle, islice
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from ground import SIZES, random_backbone
from PIL import Image
from results import carried_out, given, machine, options, positive, versions

from cl_zoo import Backbone, Sample
from cl_zoo.backbones.llava_next import LlavaNext
from cl_zoo.backbones.towers import frame
from cl_zoo.features.encoder import open_image
from cl_zoo.images.ahead import Ahead
from cl_zoo.testing import TEMPLATE, WORDS

PICTURES = {
    "photo, 500 × 375": (500, 375),
    "rendered scene, 480 × 320": (480, 320),
    "web picture, 640 × 480": (640, 480),
    "icons, 400 × 300": (400, 300),
    "figure, 1000 × 750": (1000, 750),
    "phone, 1080 × 1440": (1080, 1440),
}
"""One size for each of UCIT's six tasks, in equal parts: typical of such pictures, not counted in the data themselves."""
RANK, PEAK, REACHED, GOAL = 8, 790e12, 0.35, 0.55
"""LoRA's rank; FLOP/s of a matrix product on an H200 in bf16; the share of it that a step of four samples was measured at, and that aimed at."""
BATCH, TEXT = 4, 64
"""Samples of a step, and its tokens per sample besides the image."""
WORKERS = (1, 2, 4, 8, 14)
ALLOWED = 0.02
"""The share of a step that may be spent waiting."""
STEPS = 600
"""Of the computed schedule: each starts at another picture of the mix."""
LIBRARIES = ("cl-zoo", "torch", "torchvision", "transformers", "tokenizers", "pillow")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, compute and write; returns the exit code, 2 where the user can put something right."""
    return carried_out(_parse(arguments), measure, _table)


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """The complete result."""
    load = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        files = {
            name: [
                render(Path(folder) / f"{place}-{number}.jpg", *size, seed=number)
                for number in range(asked.images)
            ]
            for place, (name, size) in enumerate(PICTURES.items())
        }
        families = {
            name: family(make(Path(folder)), files, asked)
            for name, make in (("llava-1.5", llava), ("llava-next", llava_next))
        }
        size = {name: fmean(file.stat().st_size for file in those) for name, those in files.items()}
    return {
        "command": asked.command,
        "families": families,
        "pictures": {name: {"pixels": PICTURES[name], "mean_bytes": size[name]} for name in PICTURES},
        "setting": {
            "batch": BATCH,
            "step": "tokens x (4 x language model + 6 x trained) / (share x peak)",
            "peak": PEAK,
            "shares": [REACHED, GOAL],
            "allowed": ALLOWED,
            "images_per_size": asked.images,
        },
        "machine": {**machine(), "load_before": load, "load_after": os.getloadavg()},
        "versions": versions(LIBRARIES),
    }


# The pictures and who reads them


def render(file: Path, width: int, height: int, *, seed: int) -> Path:
    """A JPEG of smooth shapes with a little noise, about as large as a photo of that size."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 256, (max(2, height // 24), max(2, width // 24), 3), dtype=np.uint8)
    smooth = np.asarray(
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32
    )
    noisy = np.clip(smooth + draw.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(file, quality=90)
    return file


SHAPES = replace(
    SIZES["7b"], hidden=64, layers=1, heads=4, inner=64, vision_hidden=64, vision_layers=2, vision_heads=4
)
"""LLaVA's image size and patches around a model that weighs nothing."""


def llava(folder: Path) -> Backbone:
    return random_backbone(SHAPES, torch.device("cpu"), torch.bfloat16, folder / "llava")


def llava_next(folder: Path) -> Backbone:
    """The family that cuts an image into tiles, with its usual five resolutions."""
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration, LlavaNextImageProcessor

    like = llava(folder).model.config
    like.text_config.max_position_embeddings = 4096
    config = LlavaNextConfig(
        vision_config=like.vision_config, text_config=like.text_config, image_token_id=like.image_token_id
    )
    model = LlavaNextForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    tokenizer, side = llava(folder).tokenizer, SHAPES.image
    processor = LlavaNextImageProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    return LlavaNext("random", model, tokenizer, processor, template=TEMPLATE)


# What is measured


def family(backbone: Backbone, files: dict[str, list[Path]], asked: argparse.Namespace) -> dict[str, Any]:
    """All figures of one family."""
    stages = {name: _stages(backbone, those) for name, those in files.items()}
    each = [sum(stages[name].values()) for name in files]
    words = text_seconds(backbone, files)
    tokens = {name: TEXT + _image_tokens(backbone, *size) for name, size in PICTURES.items()}
    steps = {f"{share:.0%}": step_seconds(BATCH * fmean(tokens.values()), share) for share in (REACHED, GOAL)}
    return {
        "stages": stages,
        "image_seconds": fmean(each),
        "images_per_second_and_core": 1 / fmean(each),
        "text_seconds_of_a_step": words,
        "tokens_per_sample": fmean(tokens.values()),
        "computed": {share: computed(each, words, seconds) for share, seconds in steps.items()},
        "measured": [
            measured(backbone, files, workers, steps[f"{REACHED:.0%}"], asked.steps) for workers in (1, 2)
        ],
    }


def _image_tokens(backbone: Backbone, width: int, height: int) -> int:
    told = backbone.image_tokens(width, height)
    return (SHAPES.image // SHAPES.patch) ** 2 if told is None else told


def _stages(backbone: Backbone, files: Sequence[Path]) -> dict[str, float]:
    """Processor seconds of each stage for one picture, medians over the pictures; the stages are `Backbone._pixels` in steps."""
    times: dict[str, list[float]] = {}

    def timed(stage: str, do: Callable[[], Any]) -> Any:
        began = time.thread_time()
        made = do()
        times.setdefault(stage, []).append(time.thread_time() - began)
        return made

    for file in [files[0], *files]:  # the first one twice: once before anything counts
        image = timed("decode", lambda file=file: open_image(file))
        framed = timed(
            "frame", lambda image=image: frame(image, backbone.image_aspect, backbone.image_processor)
        )
        made = timed("process", lambda framed=framed: backbone.process(framed))
        timed("cast", lambda made=made: made["pixel_values"].to(backbone.model.dtype))
    return {stage: median(those[1:]) for stage, those in times.items()}


def text_seconds(backbone: Backbone, files: dict[str, list[Path]], batches: int = 20) -> float:
    """Processor seconds that the steering thread spends on a batch whose image features are known: tokens, padding, looking up.

    Every question is new, as in the first epoch of a task.
    """
    draw, images = np.random.default_rng(5), [those[0] for those in files.values()]
    words = [word for word in WORDS if not word.endswith(":")]
    backbone.encode(images)
    times = []
    for number in range(batches):
        samples = [
            Sample(
                str(place),
                images[(number + place) % len(images)],
                f"{number} {place} " + " ".join(draw.choice(words, 30)),
                "red",
            )
            for place in range(BATCH)
        ]
        began = time.thread_time()
        sum(backbone.answer_tokens(sample) for sample in samples)
        backbone.batch(samples, answers=True)
        times.append(time.thread_time() - began)
    return median(times)


def measured(
    backbone: Backbone, files: dict[str, list[Path]], workers: int, seconds: float, steps: int
) -> dict[str, float]:
    """Wall-clock waiting for the images of a step while a sleep stands for the device, which holds no lock either.

    On a machine whose cores are taken most of it is waiting for a core; `load_before` tells, and the least of the waits is nearest to a quiet one.
    """
    ahead: Ahead[Any] = Ahead(backbone._prepare, workers)
    pictures = cycle(
        [(file, backbone.image_aspect) for those in zip(*files.values(), strict=True) for file in those]
    )
    coming = dict(enumerate(islice(pictures, BATCH)))
    ahead.begin(coming)
    ahead.take(coming)
    waits = []
    for step in range(1, steps + 1):
        coming = {step * BATCH + number: one for number, one in enumerate(islice(pictures, BATCH))}
        ahead.begin(coming)
        time.sleep(seconds)
        began = time.perf_counter()
        ahead.take(coming)
        waits.append(time.perf_counter() - began)
    return {
        "workers": workers,
        "steps": steps,
        "step_seconds": seconds,
        "wait_seconds": median(waits),
        "least_wait_seconds": min(waits),
        "stall": median(waits) / (seconds + median(waits)),
    }


# What is computed


def step_seconds(tokens: float, share: float) -> float:
    """Seconds of a step of LLaVA-7B with LoRA on all linears and a learning projector, by the ledger's count of FLOPs."""
    of = SIZES["7b"]
    language = of.layers * (4 * of.hidden**2 + 3 * of.hidden * of.inner)
    adapters = RANK * of.layers * (4 * 2 * of.hidden + 3 * (of.hidden + of.inner))
    projector = of.vision_hidden * of.hidden + of.hidden + of.hidden**2 + of.hidden
    return tokens * (4 * language + 6 * (adapters + projector)) / (share * PEAK)


def computed(each: Sequence[float], words: float, seconds: float) -> dict[str, Any]:
    """The stall of a step with so many workers, each a core of its own, and the fewest that keep it to what is allowed.

    The images of the next step are begun when the device begins this one, as `Learner.step` has it, and are waited for when it has ended; the texts
    are made then, by the thread that steers the device.
    """
    stalls = {str(workers): stall(each, words, seconds, workers) for workers in WORKERS}
    images = {str(workers): stall(each, 0.0, seconds, workers) for workers in WORKERS}
    enough = [
        workers for workers in range(1, WORKERS[-1] + 1) if stall(each, 0.0, seconds, workers) <= ALLOWED
    ]
    return {
        "step_seconds": seconds,
        "stall": stalls,
        "stall_by_images": images,
        "stall_by_text": words / (seconds + words),
        "cores_busy": BATCH * fmean(each) / seconds,
        "workers_needed": enough[0] if enough else None,
    }


def stall(each: Sequence[float], words: float, seconds: float, workers: int) -> float:
    """Share of the time that the device waits: pictures go to the first free worker in their order."""
    waits = []
    for step in range(STEPS):
        free = [0.0] * workers
        heapify(free)
        for number in range(BATCH):
            heapreplace(free, free[0] + each[(step + number) % len(each)])
        waits.append(max(0.0, max(free) - seconds) + words)
    return fmean(waits) / (seconds + fmean(waits))


def _table(result: dict[str, Any]) -> str:
    lines = []
    for name, one in result["families"].items():
        lines.append(
            f"{name}: {1e3 * one['image_seconds']:.1f} ms of a core per image, {one['images_per_second_and_core']:.0f} images/s and core; texts of a step {1e3 * one['text_seconds_of_a_step']:.1f} ms"
        )
        for share, at in one["computed"].items():
            stalls = ", ".join(f"{workers}: {value:.1%}" for workers, value in at["stall"].items())
            lines.append(
                f"  computed, step of {at['step_seconds']:.3f} s ({share} of the peak): stall by workers {stalls}; by texts alone {at['stall_by_text']:.1%}; needed {at['workers_needed']}"
            )
        for real in one["measured"]:
            lines.append(
                f"  measured, {real['workers']} workers beside a sleep of {real['step_seconds']:.3f} s: images wait {1e3 * real['wait_seconds']:.1f} ms in the median, {1e3 * real['least_wait_seconds']:.1f} ms at least"
            )
    return "\n".join(lines)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = options(__doc__)
    parser.add_argument("--images", type=positive, default=12, help="pictures of each size")
    parser.add_argument("--steps", type=positive, default=12, help="of the measurement with a sleep")
    return given(parser, "feeding.py", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
