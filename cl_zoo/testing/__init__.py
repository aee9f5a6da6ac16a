"""For those who write methods: the check of a method's promises, and small but real models and tasks for tests.

Fixtures for pytest are in `cl_zoo.testing.pytest`. The names below are looked up when they are used, so that asking for those
fixtures loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cl_zoo.testing.anyres_models import tiny_llava_next, tiny_llava_onevision
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
        tiny_qwen3,
        tiny_smolvlm,
        tiny_tokenizer,
    )

_HOMES = {
    "COLOURS": "streams",
    "ConformanceError": "conformance.moments",
    "PROMISES": "conformance.check",
    "SLOW": "conformance.check",
    "TEMPLATE": "streams",
    "WORDS": "tiny_models",
    "check_method": "conformance.check",
    "check_promise": "conformance.check",
    "load_tiny": "streams",
    "load_tiny_backbone": "streams",
    "square": "streams",
    "tiny_backbone": "streams",
    "tiny_benchmark": "streams",
    "tiny_checkpoint": "tiny_models",
    "tiny_clip": "tiny_models",
    "tiny_internvl": "tiny_models",
    "tiny_llava_next": "anyres_models",
    "tiny_llava_onevision": "anyres_models",
    "tiny_qwen": "tiny_models",
    "tiny_qwen3": "tiny_models",
    "tiny_smolvlm": "tiny_models",
    "tiny_tokenizer": "tiny_models",
}
"""The module of each name."""

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
    "tiny_llava_next",
    "tiny_llava_onevision",
    "tiny_qwen",
    "tiny_qwen3",
    "tiny_smolvlm",
    "tiny_tokenizer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cl_zoo.testing' has no attribute {name!r}")
    return getattr(importlib.import_module(f"cl_zoo.testing.{_HOMES[name]}"), name)
