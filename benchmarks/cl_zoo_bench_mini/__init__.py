"""`mini`: six visual instruction tasks in UCIT's image, drawn when they are asked for, with a base model of a few million parameters.

Tasks in their default order: rendition classification (R), chart questions with options (A), captions of degraded photographs
(V), icon questions (I), counting after subtraction (C), captions of outdoor scenes (F). Instructions, record schema and scoring
are UCIT's. Nothing is downloaded: pictures are drawn from seeds, and the pre-trained base and a small CLIP lie in this package.

How good the base is: it answers 73 % of 3,000 held-out questions of its own pre-training, 94 % where a word is asked for, 96 % and
more of the descriptions; a third to two fifths where the letter of an option is asked for, and a third to a half of what is to be counted
(`python -m cl_zoo_bench_mini.held_out --questions 3000`). So the options of the chart and clock tasks stand in a fixed order.

How valid the benchmark is: with the projector frozen, the sum of two independently trained LoRAs keeps 79 % of each task's gain,
mean over the 15 pairs, one seed (`python -m cl_zoo_bench_mini.validity --only b --seeds 1`). What can be learnt and what is
forgotten: `python -m cl_zoo_bench_mini.validity --only a`.
"""

from __future__ import annotations

from pathlib import Path

from cl_zoo.tasks import Benchmark, source_hash
from cl_zoo_bench_mini.tasks import task_data

HERE = Path(__file__).parent
BASE = HERE / "base"
"""The base model, an ordinary checkpoint of `LlavaForConditionalGeneration`."""
CLIP = HERE / "clip"
"""The small CLIP, a folder for open_clip's `local-dir:`."""
VERSION = "1"
METHODS = ("zeroshot", "finetune", "ewc", "hide", "multitask")
RECIPE = {
    "lr.adapters": 3e-3,
    "lr.projector": 2e-4,
    "global_batch": 24,
    "clip": "norm",
    "adapter.rank": 8,
    "adapter.dropout": 0.0,
    "eval_batch": 150,
}
_SOURCES = ("captions.py", "figures.py", "render.py", "scenes.py", "tasks.py", "words.py")


def load(data: Path | None = None) -> Benchmark:
    """The benchmark.

    Args:
        data: not used; nothing has to be downloaded.
    """
    return Benchmark(
        name="mini",
        version=VERSION,
        tasks=task_data(),
        default_methods=METHODS,
        default_backbone="mini",
        data_hash=source_hash(*(HERE / name for name in _SOURCES)),
        recipe=RECIPE,
    )
