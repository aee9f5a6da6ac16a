"""The benchmark: its tasks with what a comparison on them starts from."""

from __future__ import annotations

from pathlib import Path

from cl_zoo.tasks import Benchmark, source_hash

HERE = Path(__file__).parent
VERSION = "2"
METHODS = ("zeroshot", "multitask", "finetune", "ewc", "olora", "branchlora", "hide")
"""The default comparison, the bounds first; in this order two processes end at about the same time."""
RECIPE = {  # rates: `python -m cl_zoo_bench_mini.tuning`
    "lr.adapters": 1e-3,
    "lr.projector": 2e-4,
    "lr.prompts": 1e-2,
    "lr.keys": 1e-2,
    "global_batch": 8,
    "clip": "norm",
    "adapter.rank": 16,
    "adapter.dropout": 0.0,
    "eval_batch": 50,
}
SOURCES = ("captions.py", "facts.py", "figures.py", "render.py", "scenes.py", "tasks.py", "words.py")
"""What decides a picture, a question or an answer."""


def load(data: Path | None = None) -> Benchmark:
    """The benchmark.

    Args:
        data: not used; nothing has to be downloaded.
    """
    from cl_zoo_bench_mini.kept import kept_tasks  # here, so that `python -m` may run that module

    return Benchmark(
        name="mini",
        version=VERSION,
        tasks=kept_tasks(),
        default_methods=METHODS,
        default_backbone="mini",
        data_hash=source_hash(*(HERE / name for name in SOURCES)),
        recipe=RECIPE,
    )
