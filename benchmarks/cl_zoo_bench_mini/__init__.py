"""`mini`: six visual instruction tasks in UCIT's image, drawn when they are asked for, with a base model of a few million parameters.

Tasks in their default order: rendition (R), chart (A), captions of degraded photographs (V), icon (I), counting (C), captions of
outdoor scenes (F). Instructions, record schema and scoring are UCIT's. Nothing is downloaded: pictures are drawn from seeds, and the
pre-trained base and a small CLIP lie in this package. A task adjusts what the base has: names, figures of speech, number words and
wordings that the base knows from other questions and instructions.

How good the base is: it answers 99.0 % of 3,000 held-out questions of its own pre-training
(`python -m cl_zoo_bench_mini.held_out --questions 3000`).

How valid the benchmark is: `python -m cl_zoo_bench_mini.validity`, whose docstring says what was wanted; the figures stand in
`benchmarks/results/mini/validity.json` and, with what they mean, in `benchmarks/README.md`.
"""

from __future__ import annotations

from cl_zoo_bench_mini.backbone import BASE, CLIP
from cl_zoo_bench_mini.benchmark import load

__all__ = ["BASE", "CLIP", "load"]
