"""How long one optimiser step takes: cl_zoo's methods, and a plain PEFT loop to hold them against.

    python benchmarks/performance/train_step.py --size tiny|small|7b [--methods a,b] [--phase train|answer] --json FILE

One optimiser step is forward, loss with every hook, backward, AdamW and schedule; `--phase answer` times the generation of
one batch of answers instead. `olora@6` is a method at its sixth task. With `--compile` each method takes part a second time,
as `hide compiled`: its decoder layers are compiled, in the step before the clock counts. The contenders take turns step by step
on the same batch in one process (A B A B, in odd rounds B A B A), so whatever slows the machine slows all of them. A ratio
is taken pair by pair, between two steps of one turn, and reported as the median over all pairs.
`README.md` beside this file says how to read a result.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contenders import COMPILED, Answering, Bare, Engine, chosen_methods
from ground import DISTINCT, SIZES, Ground, make_ground
from reach import peak, wait
from results import carried_out, given, machine, options, positive, versions

from cl_zoo.errors import OptionError
from cl_zoo.processes import World

WARMUP = 1
"""Steps of each contender before the clock counts: image features get cached, memory gets allocated."""
STEPS = {"tiny": 20, "small": 3, "7b": 8}
LIBRARIES = ("cl-zoo", "torch", "transformers", "peft", "accelerate")
Times = dict[str, list[list[float]]]
"""Seconds by contender, round and step."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write; returns the exit code, 2 where the user can put something right."""
    return carried_out(_parse(arguments), measure, _table)


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """The complete result.

    Raises:
        OptionError: the device is not there, a method is not sequential, or answers are asked for compiled.
    """
    if asked.compile and asked.phase != "train":
        raise OptionError("--compile: answers are not computed by compiled layers; take --phase train")
    methods = chosen_methods(asked.methods)
    world = World(asked.device)
    if asked.size == "7b" and world.device.type != "cuda":
        raise OptionError(f"--size 7b needs a CUDA device, got {world.device}; take --size small")
    load = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        ground = make_ground(asked.size, asked.shapes, world, Path(folder), changes(asked))
        ground.recipe = ground.recipe.model_copy(update={"static_cache": asked.static})
        fastest = peak(world.device, ground.recipe.precision)
        total = WARMUP + asked.rounds * asked.steps
        bare = Bare(ground, total)
        contenders: dict[str, Bare | Engine] = {"bare": bare} if asked.phase == "train" else {}
        for name in methods:
            contenders[name] = (Engine if asked.phase == "train" else Answering)(name, ground, total)
        for name in methods if asked.compile else ():
            contenders[name + COMPILED] = Engine(name + COMPILED, ground, total)
        wall, cpu = _race(contenders, asked.rounds, asked.steps, world.device)
    pairs = _pairs(asked, methods, contenders)
    ratios, spread = _ratios(wall, pairs)
    cpu_ratios, cpu_spread = _ratios(cpu, pairs)
    return {
        "command": asked.command,
        "size": asked.size,
        "phase": asked.phase,
        "ratios": ratios,
        "spread": spread,
        "cpu_ratios": cpu_ratios,
        "cpu_spread": cpu_spread,
        "contenders": {n: _result(one, wall[n], cpu[n], fastest) for n, one in contenders.items()},
        "setting": _setting(asked, ground, bare),
        "machine": {**_machine(world.device, fastest), "load_before": load, "load_after": os.getloadavg()},
        "versions": versions(LIBRARIES),
        "steps": wall,
        "cpu_steps": cpu,
    }


def changes(asked: argparse.Namespace) -> dict[str, Any]:
    """What the command line says of the recipe: a step of other samples, activations computed again."""
    said: dict[str, Any] = {"global_batch": asked.batch} if asked.batch else {}
    return said | ({"checkpointing": True} if asked.checkpointing else {})


def _result(
    contender: Bare | Engine, wall: Sequence[Any], cpu: Sequence[Any], fastest: Mapping[str, Any]
) -> dict[str, Any]:
    """One contender's times over all rounds and steps, and the share of the device's peak that they amount to."""
    seconds, flops = _quartiles(np.ravel(wall)), contender.flops
    return {
        "seconds": seconds,
        "flops": flops,
        "share_of_peak": flops / seconds["median"] / fastest["flops_per_second"] if flops else None,
        "cpu_seconds": _quartiles(np.ravel(cpu)),
        "samples_per_step": contender.samples,
        "first_loss": contender.first_loss,
        "compiled": dict(contender.told) if isinstance(contender, Engine) else {},
    }


def _race(
    contenders: dict[str, Bare | Engine], rounds: int, steps: int, device: torch.device
) -> tuple[Times, Times]:
    """Wall-clock and process seconds; within a round all contenders take step n before any takes step n + 1."""
    for number in range(WARMUP):
        for contender in contenders.values():
            contender.step(number)
    wall: Times = {name: [] for name in contenders}
    cpu: Times = {name: [] for name in contenders}
    for place in range(rounds):
        for times in (*wall.values(), *cpu.values()):
            times.append([])
        turns = list(contenders) if place % 2 == 0 else list(reversed(contenders))
        for number in range(steps):
            for name in turns:
                wait(device)
                began, worked = time.perf_counter(), time.process_time()
                contenders[name].step(WARMUP + place * steps + number)
                wait(device)
                wall[name][-1].append(time.perf_counter() - began)
                cpu[name][-1].append(time.process_time() - worked)
    return wall, cpu


def _ratios(times: Times, pairs: Sequence[tuple[str, str]]) -> tuple[dict[str, float], dict[str, Any]]:
    """Median over all pairs of steps, and its spread: quartiles over the pairs, medians of the rounds."""
    medians: dict[str, float] = {}
    spread: dict[str, Any] = {}
    for above, below in pairs:
        by_pair = np.array(times[above]) / np.array(times[below])  # (rounds, steps)
        found = _quartiles(by_pair.ravel())
        medians[f"{above}/{below}"] = found["median"]
        rounds = [float(value) for value in np.median(by_pair, axis=1)]
        spread[f"{above}/{below}"] = {"q1": found["q1"], "q3": found["q3"], "rounds": rounds}
    return medians, spread


def _quartiles(values: np.ndarray) -> dict[str, float]:
    q1, median, q3 = (float(value) for value in np.quantile(values, (0.25, 0.5, 0.75)))
    return {"median": median, "q1": q1, "q3": q3}


def _pairs(
    asked: argparse.Namespace, methods: Sequence[str], contenders: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """Whose times are divided by whose."""
    pairs = [("finetune", "bare")] if asked.phase == "train" else []
    pairs += [(name, "finetune") for name in methods if name != "finetune"]
    pairs += [(name + COMPILED, name) for name in methods if asked.compile]
    pairs += [_pair(text, contenders) for text in asked.pairs or ()]
    return pairs


def _pair(text: str, contenders: Mapping[str, Any]) -> tuple[str, str]:
    above, _, below = text.partition("/")
    if above not in contenders or below not in contenders:
        raise OptionError(f"--pairs {text}: write it as A/B with two of {', '.join(contenders)}")
    return above, below


def _setting(asked: argparse.Namespace, ground: Ground, bare: Bare) -> dict[str, Any]:
    """What was trained, and how."""
    text, recipe = ground.backbone.model.config.text_config, ground.recipe
    is_image = bare.batches[0]["input_ids"][0] == ground.backbone.model.config.image_token_id
    return {
        "shapes_of": ground.origin,
        "hidden": text.hidden_size,
        "layers": text.num_hidden_layers,
        "intermediate": text.intermediate_size,
        "vocabulary": text.vocab_size,
        "parameters": sum(weight.numel() for weight in ground.backbone.model.parameters()),
        "tokens": bare.tokens,
        "image_tokens": int(is_image.sum()),
        "logit_positions": bare.kept,
        "batch": recipe.global_batch,
        "distinct_batches": DISTINCT,
        "recipe": recipe.model_dump(mode="json"),
        "random_shapes": asdict(SIZES[asked.size]) if asked.size in SIZES else None,
        "base_weights": "one frozen set shared by all contenders",
        "measured_at": "second task, or the one after @",
        "warmup_steps": WARMUP,
        "rounds": asked.rounds,
        "steps_per_round": asked.steps,
    }


def _machine(device: torch.device, fastest: Mapping[str, Any]) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {**machine(), "accelerator": name, "threads": torch.get_num_threads(), "peak": fastest}


def _table(result: dict[str, Any]) -> str:
    lines = [f"{'contender':<24}{'median s':>10}{'q1':>9}{'q3':>9}{'of the peak':>18}"]
    for name, one in result["contenders"].items():
        at, share = one["seconds"], one["share_of_peak"]
        reached = "–" if share is None else f"{share:.1%}"
        lines.append(f"{name:<24}{at['median']:>10.4f}{at['q1']:>9.4f}{at['q3']:>9.4f}{reached:>18}")
    lines.append(f"{'ratio':<24}{'median':>10}{'q1':>9}{'q3':>9}{'by process time':>18}")
    for name, ratio in result["ratios"].items():
        at, cpu = result["spread"][name], result["cpu_ratios"][name]
        lines.append(f"{name:<24}{ratio:>10.3f}{at['q1']:>9.3f}{at['q3']:>9.3f}{cpu:>18.3f}")
    return "\n".join(lines)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = options(__doc__)
    parser.add_argument("--size", choices=("tiny", "small", "7b"), required=True)
    parser.add_argument("--methods", help="stacks, comma-separated; default: every installed sequential one")
    parser.add_argument("--phase", choices=("train", "answer"), default="train", help="what a step is")
    parser.add_argument("--static", action="store_true", help="answer with a cache of fixed size")
    parser.add_argument("--compile", action="store_true", help="each method once more, with compiled layers")
    parser.add_argument("--pairs", nargs="*", help="further ratios, such as branchlora/moelora")
    parser.add_argument("--steps", type=positive, help="measured steps per contender and round")
    parser.add_argument("--rounds", type=positive, default=6)
    parser.add_argument(
        "--batch",
        "--micro-batch",
        type=positive,
        help="samples of a step, all in one forward; default: the size's",
    )
    parser.add_argument("--checkpointing", action="store_true", help="activations are computed again")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument(
        "--shapes", choices=("auto", "mini", "testing"), default="auto", help="whose shapes --size tiny has"
    )
    found = given(parser, "train_step.py", arguments)
    found.steps = found.steps or STEPS[found.size]
    return found


if __name__ == "__main__":
    raise SystemExit(main())
