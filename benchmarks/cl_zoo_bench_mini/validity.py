"""Is the benchmark worth comparing on? `python -m cl_zoo_bench_mini.validity [--seeds N]` measures two properties of base and tasks.

(a) Zero-shot mean 15 to 45, multi-task mean at least 70 (exact tasks at least 80), sequential fine-tuning with a mean of the
    diagonal of at least 65 and a BWT of at most -12: there is something to learn, it can be learnt, and it is forgotten.
(b) The premise that merging methods rest on, with the projector frozen: of two LoRAs trained independently on two tasks, the
    sum of their products keeps at least 60 % of each task's gain over zero-shot, mean over the 15 pairs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

import cl_zoo
from cl_zoo.contract.plugins import Plugins
from cl_zoo.engine.answering import answers
from cl_zoo.engine.learning import Learner
from cl_zoo.engine.streams import expected
from cl_zoo.names import parse_stack
from cl_zoo.nn.bank import ExpertBank
from cl_zoo.nn.placing import adapters
from cl_zoo.processes import World
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.scoring.scorer import Cell, Scorer
from cl_zoo.tasks import Task, TaskData
from cl_zoo_bench_mini import load
from cl_zoo_bench_mini.backbone import load as load_backbone

Scores = dict[tuple[str, ...], dict[str, float]]
"""Score by task, for every set of active experts; the empty set is the base itself."""


def learning(seeds: int, out: str) -> dict[str, Any]:
    """(a), means over the seeds."""
    compared = cl_zoo.compare(["zeroshot", "finetune", "multitask"], benchmark="mini", seeds=seeds, out=out)
    for failed in compared.failed:
        raise SystemExit(f"{failed.label}, seed {failed.seed} failed: {failed.error}")
    rows: dict[str, list[dict[str, float]]] = {}
    for (label, _), matrix in sorted(compared.matrix.items()):
        final = [float(score or 0) for score in matrix.scores[-1]]
        figures = {"mean": sum(final) / len(final)} | {
            task.letter: score for task, score in zip(load().tasks, final, strict=True)
        }
        if label == "finetune":
            figures |= {"diagonal": float(matrix.immediate or 0), "BWT": float(matrix.bwt or 0)}
        rows.setdefault(label, []).append(figures)
    return {label: _mean(figures) | {"seeds": figures} for label, figures in rows.items()}


def premise(seed: int) -> dict[str, Any]:
    """(b) for one seed: kept gain by pair, and their mean."""
    tasks = load().tasks
    recipe = build_recipe(load().recipe, {"projector": "frozen"})
    torch.manual_seed(seed)
    backbone = load_backbone(None, torch.device("cpu"), torch.float32)
    bank = adapters(backbone, recipe, name=tasks[0].letter)
    backbone.train_projector(False)
    plugins, world = Plugins(parse_stack("finetune")), World("cpu")
    for index, task in enumerate(tasks):
        if index:
            bank.add(task.letter)
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
    sets = [
        (),
        *((task.letter,) for task in tasks),
        *itertools.combinations([task.letter for task in tasks], 2),
    ]
    scores = _scores(bank, backbone, tasks, sets, recipe.eval_batch)
    return _kept(scores, [task.letter for task in tasks])


def _scores(
    bank: ExpertBank, backbone: Any, tasks: Iterable[TaskData], sets: list[tuple[str, ...]], batch: int
) -> Scores:
    """Answers of every set of experts to its own tasks (of the empty set to all), scored."""
    asked = [(active, task) for active in sets for task in tasks if not active or task.letter in active]
    with tempfile.TemporaryDirectory() as folder, Scorer() as scorer:
        cells = []
        for number, (active, task) in enumerate(asked):
            bank.use(active)
            given, wanted = Path(folder, f"{number}.jsonl"), Path(folder, f"{task.letter}.jsonl")
            records = answers(bank, backbone, task.test, max_new_tokens=task.max_new_tokens, batch=batch)
            _write(given, records)
            _write(wanted, expected(task))
            cells.append(Cell(task.metric, given, wanted))
        values = [score.value for score in scorer.score(cells)]
    scores: Scores = {}
    for (active, task), value in zip(asked, values, strict=True):
        scores.setdefault(active, {})[task.letter] = value
    return scores


def _kept(scores: Scores, letters: list[str]) -> dict[str, Any]:
    """Shares of each task's gain that the sum of its LoRA and another's keeps."""
    kept = {}
    for pair in itertools.combinations(letters, 2):
        for letter in pair:
            zero = scores[()][letter]
            gain = scores[(letter,)][letter] - zero
            other = pair[1 - pair.index(letter)]
            kept[f"{letter} with {other}"] = (scores[pair][letter] - zero) / gain
    return {
        "zero-shot": scores[()],
        "alone": {letter: scores[(letter,)][letter] for letter in letters},
        "kept": kept,
        "mean kept": sum(kept.values()) / len(kept),
    }


def _mean(rows: list[dict[str, float]]) -> dict[str, Any]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def _write(file: Path, records: Iterable[Mapping[str, Any]]) -> None:
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def main() -> None:
    """Measure and print as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=["a", "b"], help="one of the two properties")
    parser.add_argument("--out", default="runs", help="folder of the runs behind (a)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.only != "a":
        for seed in range(options.seeds):
            print(json.dumps({"seed": seed} | premise(seed)), flush=True)
    if options.only != "b":
        print(json.dumps(learning(options.seeds, options.out), indent=2))


if __name__ == "__main__":
    main()
