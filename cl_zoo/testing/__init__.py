"""For those who write methods: the check of a method's promises, and small but real models and tasks for tests."""

from __future__ import annotations

from cl_zoo.testing.conformance.check import PROMISES, SLOW, check_method, check_promise
from cl_zoo.testing.conformance.moments import ConformanceError
from cl_zoo.testing.streams import (
    COLOURS,
    TEMPLATE,
    load_tiny,
    load_tiny_backbone,
    square,
    tiny_backbone,
    tiny_benchmark,
)
from cl_zoo.testing.tiny_models import (
    WORDS,
    tiny_checkpoint,
    tiny_clip,
    tiny_internvl,
    tiny_qwen,
    tiny_tokenizer,
)

__all__ = [
    "COLOURS",
    "PROMISES",
    "SLOW",
    "TEMPLATE",
    "WORDS",
    "ConformanceError",
    "check_method",
    "check_promise",
    "load_tiny",
    "load_tiny_backbone",
    "square",
    "tiny_backbone",
    "tiny_benchmark",
    "tiny_checkpoint",
    "tiny_clip",
    "tiny_internvl",
    "tiny_qwen",
    "tiny_tokenizer",
]
