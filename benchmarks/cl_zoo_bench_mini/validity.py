"""Is the benchmark worth comparing on? `python -m cl_zoo_bench_mini.validity [--only a|b|c|d] [--seeds N] [--split validation]`.

(a) There is something to learn, it can be learnt, and it is forgotten: zero-shot mean 15 to 45 and no task above 60; multi-task mean
    at least 85, every exact task at least 85, the caption tasks 40 to 75, and no task learnt alone more than 3 points above it, so that
    it is the upper bound; sequential fine-tuning with a mean of the diagonal of at least 80 and a BWT of at most -15.
(b) The premise of merging methods, with the projector frozen: of two LoRAs learnt apart, the sum keeps at least 70 % of each task's
    gain over zero-shot, mean of the 30, and at least 85 % where the two tasks share no instruction; of all six, the sum times the best of
    1/3, 1/2 and 1 keeps at least 50 %. A task that gains less than 10 points alone has no share: it has learnt nothing to keep.
(c) Stability: the standard deviation of Last over the seeds is at most 3 for each default method.
(d) The frozen CLIP tells the tasks apart by picture, and not the two caption tasks by their text, which is the same.

Whatever was chosen for these figures (tasks, sizes, rates) was chosen with `--split validation --seeds 1`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

import cl_zoo
from cl_zoo.contract.plugins import Plugins
from cl_zoo.data.benchmarks import load_benchmark
from cl_zoo.engine.answering import answers
from cl_zoo.engine.learning import Learner
from cl_zoo.engine.streams import expected
from cl_zoo.features.encoder import FeatureEncoder
from cl_zoo.names import parse_stack
from cl_zoo.nn import BankLayer, Scaled, cosines, image_view, text_view
from cl_zoo.nn.bank import ExpertBank
from cl_zoo.nn.placing import adapters
from cl_zoo.processes import World
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.report.estimates import estimate
from cl_zoo.scoring.scorer import Cell, Scorer
from cl_zoo.tasks import Task, TaskData
from cl_zoo_bench_mini import load
from cl_zoo_bench_mini.backbone import CLIP
from cl_zoo_bench_mini.backbone import load as load_backbone

Sum = tuple[tuple[str, ...], float]
"""Tasks whose LoRAs are added up, and the factor on their sum; no task is the base itself."""
FACTORS = (1.0, 1 / 2, 1 / 3)
BENCHMARKS = {"test": "mini", "validation": "cl_zoo_bench_mini.tuning:load_validation"}
"""Split that answers the questions -> the benchmark that has it as its test split."""
LEARNT = 10.0
"""Points above zero-shot from which on a task alone counts as learnt."""
ANCHOR, ASKED = 240, 120
"""Samples of a task behind its anchor, and samples that look for theirs."""


def learning(seeds: int, split: str, out: str) -> dict[str, Any]:
    """(a), means over the seeds and the figures of each."""
    rows: dict[str, list[dict[str, float]]] = {}
    tasks = load().tasks
    for (label, _), matrix in _compared(["zeroshot", "finetune", "multitask"], seeds, split, out).items():
        final = [float(score or 0) for score in matrix.scores[-1]]
        figures = {"mean": statistics.fmean(final)} | dict(zip([t.letter for t in tasks], final, strict=True))
        if label == "finetune":
            figures |= {"diagonal": float(matrix.immediate or 0), "BWT": float(matrix.bwt or 0)}
        rows.setdefault(label, []).append(figures)
    alone = {
        task.letter: _compared(["finetune"], seeds, split, out, order=task.letter).values() for task in tasks
    }
    rows["alone"] = [
        {letter: float(matrix.last or 0) for letter, matrix in zip(alone, seed, strict=True)}
        for seed in zip(*alone.values(), strict=True)
    ]
    return {label: _mean(figures) | {"seeds": figures} for label, figures in rows.items()}


def stability(seeds: int, split: str, out: str) -> dict[str, Any]:
    """(c): Last of the default methods, its mean and standard deviation over the seeds."""
    last: dict[str, list[float]] = {}
    for (label, _), matrix in _compared(load().default_methods, seeds, split, out).items():
        last.setdefault(label, []).append(float(matrix.last or 0))
    spread = {label: estimate(found) for label, found in last.items()}
    return {
        label: {"mean": spread[label].mean, "deviation": spread[label].std, "seeds": found}
        for label, found in last.items()
    }


def premise(seed: int, split: str) -> dict[str, Any]:
    """(b) for one seed: shares of the gain that sums keep."""
    benchmark = load_benchmark(BENCHMARKS[split])
    recipe = build_recipe(benchmark.recipe, {"projector": "frozen"})
    torch.manual_seed(seed)
    backbone = load_backbone(None, torch.device("cpu"), torch.float32)
    bank = adapters(backbone, recipe, name=benchmark.tasks[0].letter)
    backbone.train_projector(False)
    plugins, world = Plugins(parse_stack("finetune")), World("cpu")
    for index, task in enumerate(benchmark.tasks):
        bank.ensure(task.letter)
        bank.use([task.letter], trainable=[task.letter])
        lesson = Task(index, task.name, task.instruction, len(task.train))
        Learner(
            bank,
            lesson,
            task.train,
            backbone=backbone,
            plugins=plugins,
            recipe=recipe,
            world=world,
            seed=seed,
        ).run(lambda **_: None)
    bank.eval()
    letters = [task.letter for task in benchmark.tasks]
    sums: list[Sum] = [((), 1.0), *(((letter,), 1.0) for letter in letters)]
    sums += [(pair, 1.0) for pair in itertools.combinations(letters, 2)]
    sums += [(tuple(letters), factor) for factor in FACTORS]
    return kept(_scores(bank, backbone, benchmark.tasks, sums, recipe.eval_batch), benchmark.tasks)


def kept(scores: Mapping[Sum, Mapping[str, float]], tasks: Sequence[TaskData]) -> dict[str, Any]:
    """Shares of each task's gain that the sums of its LoRA and others keep; of the tasks that were learnt alone (`LEARNT`).

    Args:
        scores: by sum, the score of each of its tasks; of the base, of every task.
        tasks: the tasks.
    """
    letters = [task.letter for task in tasks]
    zero = scores[(), 1.0]
    gain = {letter: scores[(letter,), 1.0][letter] - zero[letter] for letter in letters}
    learnt = [letter for letter in letters if gain[letter] >= LEARNT]
    pairs = {
        f"{one} with {other}": (scores[pair, 1.0][one] - zero[one]) / gain[one]
        for pair in itertools.combinations(letters, 2)
        for one, other in (pair, pair[::-1])
        if one in learnt
    }
    apart = instructions_apart(tasks)
    six = {
        f"{factor:.2f}": statistics.fmean(
            (scores[tuple(letters), factor][letter] - zero[letter]) / gain[letter] for letter in learnt
        )
        for factor in FACTORS
    }
    return {
        "zero-shot": zero,
        "alone": {letter: scores[(letter,), 1.0][letter] for letter in letters},
        "not learnt alone": [letter for letter in letters if letter not in learnt],
        "pairs": pairs,
        "pairs, mean": statistics.fmean(pairs.values()),
        "pairs without a common instruction, mean": statistics.fmean(
            pairs[name] for name in pairs if name in apart
        ),
        "all": {f"{factor:.2f}": dict(scores[tuple(letters), factor]) for factor in FACTORS},
        "all, mean kept by factor": six,
    }


def instructions_apart(tasks: Sequence[TaskData]) -> set[str]:
    """The ordered pairs of tasks, as `kept` names them, none of whose samples close with the same instruction."""
    used = {task.letter: {sample.prompt.rpartition("\n")[2] for sample in task.train} for task in tasks}
    return {
        f"{one} with {other}" for one, other in itertools.permutations(used, 2) if not used[one] & used[other]
    }


def separation(split: str) -> dict[str, Any]:
    """(d): share of the samples whose nearest anchor is their task's, by picture, by text and by the sum of both likenesses.

    Features, anchors and likeness are those by which methods route. Equal texts are a tie, and go to the first task that has them.
    """
    tasks, encoder = load_benchmark(BENCHMARKS[split]).tasks, FeatureEncoder(str(CLIP))
    views = {"picture": image_view(encoder, 1.0), "text": text_view(encoder, 1.0)}
    anchors = {
        kind: torch.stack([view.look(task.train[:ANCHOR]).mean(0) for task in tasks])
        for kind, view in views.items()
    }
    found: dict[str, dict[str, float]] = {}
    for place, task in enumerate(tasks):
        asked = task.test[:ASKED]
        likeness = {kind: cosines(view.look(asked), anchors[kind]) for kind, view in views.items()}
        likeness["both"] = likeness["picture"] + likeness["text"]
        for kind, rows in likeness.items():
            right = int((rows.argmax(1) == place).sum())
            found.setdefault(kind, {})[task.letter] = round(100 * right / len(asked), 2)
    return {kind: shares | {"mean": statistics.fmean(shares.values())} for kind, shares in found.items()}


def _compared(methods: Sequence[str], seeds: int, split: str, out: str, **settings: Any) -> dict[Any, Any]:
    compared = cl_zoo.compare(list(methods), benchmark=BENCHMARKS[split], seeds=seeds, out=out, **settings)
    for failed in compared.failed:
        raise SystemExit(f"{failed.label}, seed {failed.seed} failed: {failed.error}")
    return dict(sorted(compared.matrix.items()))


def _scores(
    bank: ExpertBank, backbone: Any, tasks: Iterable[TaskData], sums: list[Sum], batch: int
) -> dict[Sum, dict[str, float]]:
    """Answers of every sum of experts to its own tasks (of the base to all), scored."""
    asked = [(each, task) for each in sums for task in tasks if not each[0] or task.letter in each[0]]
    with tempfile.TemporaryDirectory() as folder, Scorer() as scorer:
        cells = []
        for number, ((active, factor), task) in enumerate(asked):
            bank.use(active)
            bank.mix(partial(_scaled, factor))
            given, wanted = Path(folder, f"{number}.jsonl"), Path(folder, f"{task.letter}.jsonl")
            records = answers(bank, backbone, task.test, max_new_tokens=task.max_new_tokens, batch=batch)
            _write(given, records)
            _write(wanted, expected(task))
            cells.append(Cell(task.metric, given, wanted))
        values = [score.value for score in scorer.score(cells)]
    scores: dict[Sum, dict[str, float]] = {}
    for (each, task), value in zip(asked, values, strict=True):
        scores.setdefault(each, {})[task.letter] = value
    return scores


def _scaled(factor: float, layer: BankLayer) -> Scaled | None:
    return None if factor == 1 else Scaled(factor)


def _mean(rows: list[dict[str, float]]) -> dict[str, Any]:
    return {name: statistics.fmean(row[name] for row in rows) for name in rows[0]}


def _write(file: Path, records: Iterable[Mapping[str, Any]]) -> None:
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def main() -> None:
    """Measure and print as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=["a", "b", "c", "d"], help="one of the four")
    parser.add_argument("--split", choices=BENCHMARKS, default="test", help="where the questions come from")
    parser.add_argument("--out", default="runs", help="folder of the runs behind (a) and (c)")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    measures: dict[str, Any] = {
        "a": lambda: learning(asked.seeds, asked.split, asked.out),
        "b": lambda: [{"seed": seed} | premise(seed, asked.split) for seed in range(asked.seeds)],
        "c": lambda: stability(asked.seeds, asked.split, asked.out),
        "d": lambda: separation(asked.split),
    }
    for name, measure in measures.items():
        if asked.only in (None, name):
            print(json.dumps({name: measure()}, indent=1), flush=True)


if __name__ == "__main__":
    main()
