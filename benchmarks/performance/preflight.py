"""How long preflight takes and how much memory: a synthetic benchmark of N records, checked twice.

    python benchmarks/performance/preflight.py [--records 200000] --json FILE

Writes N small pictures (JPEG and PNG in turn, those of `data_check.py`), N records in six tasks with questions of ten to sixty words, and a random LLaVA's checkpoint with a
byte-level BPE of 8,000 tokens into a temporary folder. Then it does what a run does: read the records (`read`), look for
faults at token and header level (`first`), and once more, when every task is remembered (`again`). Memory is that of the process, in MiB: `read_mib` when the records are
read, `peak_mib` at most while it looked. The files have just been written, so the disk's cache holds them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from data_check import encoded
from results import given, machine, options, positive, versions, write

from cl_zoo.backbones.llava import load
from cl_zoo.data.benchmarks import Described
from cl_zoo.preflight.check import preflight
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.testing import tiny_checkpoint

TASKS, RENDERED, VOCABULARY = 6, 1000, 8000
LIBRARIES = ("cl-zoo", "pillow", "tokenizers", "transformers")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; returns the exit code."""
    asked = _parse(arguments)
    asked.json.parent.mkdir(parents=True, exist_ok=True)  # before minutes are spent
    load_before = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), asked.records)
    result = {
        "command": asked.command,
        **found,
        "setting": {"records": asked.records, "tasks": TASKS, "vocabulary": VOCABULARY},
        "machine": {**machine(), "load_before": load_before, "load_after": os.getloadavg()},
        "versions": versions(LIBRARIES),
    }
    write(asked.json, result)
    print(json.dumps(found, indent=1))
    return 0


def measure(folder: Path, records: int) -> dict[str, Any]:
    """Seconds and MiB."""
    words = _words()
    description = _write(folder, records, words)
    backbone = load(_checkpoint(folder / "model", words), torch.device("meta"), torch.float32)
    recipe, memory = build_recipe({"max_tokens": 2048}), folder / "memory"
    backbone.adjust(max_tokens=recipe.max_tokens)
    stream, read = _timed(lambda: Described(description, beside=True)(None).stream())
    before = _mib("VmRSS")
    first, seconds = _timed(lambda: preflight(stream, backbone, recipe, memory=memory))
    peak = _mib("VmHWM")
    again, second = _timed(lambda: preflight(stream, backbone, recipe, memory=memory))
    if first.count or again.count:
        raise SystemExit(f"the synthetic data are not as they should be: {first.told()}")
    return {
        "read": read,
        "first": seconds,
        "again": second,
        "records_per_second": round(records / seconds["seconds"], 1),
        "read_mib": before,
        "peak_mib": peak,
    }


def _timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    began, worked = time.perf_counter(), time.process_time()
    made = work()
    seconds, processor = time.perf_counter() - began, time.process_time() - worked
    return made, {"seconds": round(seconds, 3), "cpu_seconds": round(processor, 3)}


def _mib(what: str) -> float:
    """The memory of this process, as the kernel counts it."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return round(int(lines[what].split()[0]) / 1024, 1)


def _words() -> list[str]:
    draw, parts = random.Random(0), "ka lo mi ter sun ble gra o en vi da quo ri pla".split()
    return ["".join(draw.choices(parts, k=draw.randint(1, 4))) for _ in range(20_000)]


def _checkpoint(folder: Path, words: Sequence[str]) -> Path:
    """A tiny LLaVA with the tokenizer of a large one: a fast byte-level BPE."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    tiny_checkpoint(folder)
    special = ["<pad>", "<unk>", "<s>", "<image>", "</s>"]
    raw = ByteLevelBPETokenizer()
    raw.train_from_iterator(
        words, vocab_size=VOCABULARY, special_tokens=special, min_frequency=1, show_progress=False
    )
    marks = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=raw._tokenizer, **marks).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {"vocab_size": VOCABULARY, "max_position_embeddings": 2048}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _write(folder: Path, records: int, words: Sequence[str]) -> Path:
    """Pictures, records and a description; every tenth record stands in a test file."""
    draw, tasks = random.Random(1), []
    (folder / "pictures").mkdir()
    for place in range(TASKS):
        train, test = [], []
        for number in range(place, records, TASKS):
            name = f"{number:06d}.{'jpg' if number % 2 else 'png'}"
            (folder / "pictures" / name).write_bytes(encoded(number % RENDERED) + number.to_bytes(8))
            prompt = " ".join(draw.choices(words, k=draw.randint(10, 60)))
            if number // TASKS % 10:
                turns = [{"from": "human", "value": f"<image>\n{prompt}"}, {"from": "gpt", "value": words[0]}]
                train.append({"id": number, "image": name, "conversations": turns})
            else:
                test.append({"question_id": number, "image": name, "text": prompt, "answer": words[0]})
        task: dict[str, Any] = {"name": f"task {place}", "letter": "ABCDEF"[place], "instruction": ""}
        for split, found, form in (("train", train, "llava"), ("test", test, "question")):
            (folder / f"{split}-{place}.json").write_text(json.dumps(found))
            task[split] = {"files": [f"{split}-{place}.json"], "format": form}
        tasks.append({**task, "metric": "exact", "max_new_tokens": 16})
    about = {"name": "synthetic", "version": "1", "methods": ["finetune"], "backbone": "llava"}
    description = folder / "synthetic.yaml"
    description.write_text(yaml.safe_dump({**about, "images": ["pictures"], "tasks": tasks}))
    return description


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = options(__doc__)
    parser.add_argument("--records", type=positive, default=200_000)
    return given(parser, "preflight.py", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
