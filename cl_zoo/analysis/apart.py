"""LoRAs that were learnt apart, side by side on one backbone, and the scores of any choice of them.

Each task is learnt alone by an ordinary run, so it is trained once and found again the next time. What a run learnt is folded into one
LoRA per linear layer, which becomes an expert of one bank; then a layer may answer with any of them, or with their sum times a factor.

The projector stays frozen in these runs, whatever the recipe says: it is no low-rank update, and the sums are of LoRAs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_zoo import api
from cl_zoo.engine.files import canonical, write_text
from cl_zoo.errors import OptionError
from cl_zoo.export.folding import fold, refusal
from cl_zoo.names import stack
from cl_zoo.runs.job import Job
from cl_zoo.runs.prepared import Prepared, prepare
from cl_zoo.scoring.scorer import Cell, Scorer
from cl_zoo.tasks import TaskData

if TYPE_CHECKING:
    from torch import Tensor

    from cl_zoo.backbones.backbone import Backbone
    from cl_zoo.nn.bank import ExpertBank
    from cl_zoo.nn.layer import BankLayer
    from cl_zoo.processes import World
    from cl_zoo.runs.result import Result

Choose = Callable[["BankLayer"], tuple[Sequence[str], float]]
"""The experts that answer in a layer, and the factor on their sum."""

Loras = dict[str, tuple["Tensor", "Tensor"]]
"""A (r, d_in) and s · B (d_out, r) by the path of the layer."""

LEARNT = 10.0
"""Points above the base from which on a task alone counts as learnt; below, a share of its gain means nothing."""


@dataclass(frozen=True)
class Asked:
    """Test questions of a task to some choice of experts.

    Attributes:
        key: the answer's place in what `scores` returns.
        choose: what answers.
        task: the task that is asked about.
    """

    key: Hashable
    choose: Choose
    task: TaskData


class Apart:
    """Experts that were learnt in runs of their own, on one backbone.

    Args:
        method: of the runs, as `cl_zoo.run` takes it; what it learns must fold into a LoRA per layer.
        orders: tasks of each expert by its name: of most a single one, of one that learnt in sequence several.
        questions: test questions of each task, `None` for all.
        watch: told what the runs do.
        settings: as those of `cl_zoo.run`.

    Raises:
        ClZooError: a run cannot be made as described.
        OptionError: what was learnt does not fold.
    """

    def __init__(
        self,
        method: str,
        orders: Mapping[str, Sequence[str]],
        *,
        questions: int | None = None,
        watch: Callable[[dict[str, Any]], None] = lambda event: None,
        **settings: Any,
    ) -> None:
        settings["recipe"] = {**settings.get("recipe", {}), "projector": "frozen"}
        learnt = {}
        for name, tasks in orders.items():
            result = api.run(method, watch=watch, **{**settings, "order": ",".join(tasks)})
            watch({"event": "finished", "label": result.label, "seed": result.seed, **_ended(result)})
            learnt[name] = loras(result, settings.get("device", "auto"))
        prepared = _prepared(method, settings)
        self.world = _world(prepared)
        self.backbone: Backbone = prepared.load_backbone(self.world.device)
        self.recipe = prepared.recipe
        self.bank: ExpertBank = self._bank(learnt)
        named = {task.name: task for task in prepared.benchmark.stream(None, settings.get("limit"))}
        names = dict.fromkeys(task for tasks in orders.values() for task in tasks)
        self.tasks = [_first(named[name], questions) for name in names]

    def _bank(self, learnt: Mapping[str, Loras]) -> ExpertBank:
        """A bank with the experts; a layer that some run did not adapt has none of it."""
        from cl_zoo.nn.placing import adapters

        first, *others = learnt
        bank = adapters(self.backbone, self.recipe, first)
        for name in others:
            bank.add(name)
        known = {layer.path for layer in bank.layers}
        for name, updates in learnt.items():
            if strange := updates.keys() - known:
                raise OptionError(
                    f"{min(strange)} was adapted in training and is not by the recipe; name the same targets"
                )
            for layer in bank.layers:
                if layer.path in updates:
                    down, up = (
                        one.to(layer.made["device"], layer.made["dtype"]) for one in updates[layer.path]
                    )
                    bank.put(name, layer, down, up / layer.scale)
                else:
                    bank.remove(name, where=lambda one, path=layer.path: one.path == path)  # type: ignore[misc]
        bank.eval()
        return bank

    def scores(self, asked: Sequence[Asked]) -> dict[Hashable, float]:
        """The official score of each question set, 0 to 100, by its key."""
        with tempfile.TemporaryDirectory() as folder, Scorer() as scorer:
            cells = [self._answered(one, Path(folder), number) for number, one in enumerate(asked)]
            return {one.key: score.value for one, score in zip(asked, scorer.score(cells), strict=True)}

    def _answered(self, one: Asked, folder: Path, number: int) -> Cell:
        from cl_zoo.engine.answering import answers
        from cl_zoo.engine.streams import expected

        self.choose(one.choose)
        given, wanted = folder / f"{number}.jsonl", folder / f"expected-{number}.jsonl"
        with self.world.autocast(self.recipe.precision):
            said = answers(
                self.bank,
                self.backbone,
                one.task.test,
                max_new_tokens=one.task.max_new_tokens,
                batch=self.recipe.eval_batch,
                static=self.recipe.static_cache,
            )
            _write(given, said)
        _write(wanted, expected(one.task))
        return Cell(one.task.metric, given, wanted)

    def choose(self, choose: Choose) -> None:
        """Let these experts answer, layer by layer."""
        from cl_zoo.nn.mixes import Scaled

        for layer in self.bank.layers:
            names, factor = choose(layer)
            self.bank.use(names, where=lambda one, layer=layer: one is layer)  # type: ignore[misc]
            layer.bank_mix = None if factor == 1 else Scaled(factor)


def loras(result: Result, device: str = "auto") -> Loras:
    """What a finished run learnt, on the CPU; the model is let go again.

    Raises:
        OptionError: it does not fold into one LoRA per layer.
    """
    from cl_zoo.runs.result import load_result

    if result.folder is None:
        raise OptionError(f"{result.label} has no folder to load its model from; run it again")
    restored = load_result(
        result.folder, **{**result.places, "device": device}
    ).restored  # not kept with the result
    updates = fold(restored.model, restored.backbone).updates
    if len(updates) > 1 or any(update.dense for update in updates[0]):
        raise refusal(f"{result.label} answers by more than one LoRA per layer")
    return {
        update.layer.path: (update.down.cpu(), update.layer.scale * update.up.cpu())
        for update in updates[0]
        if update.down is not None and update.up is not None
    }


def tasks_of(benchmark: str, data: str | None, order: str | None) -> list[str]:
    """Names of the tasks of an order, each once.

    Raises:
        OptionError: there are fewer than two, or the order names an unknown one.
    """
    from cl_zoo.data.benchmarks import load_benchmark

    names = list(dict.fromkeys(task.name for task in load_benchmark(benchmark, data).stream(order)))
    if len(names) < 2:
        raise OptionError(
            f"--order {order}: names {len(names)} task; what was learnt apart is put together, so name two or more"
        )
    return names


def nobody(_: BankLayer) -> tuple[Sequence[str], float]:
    """The base alone."""
    return (), 1.0


def everywhere(names: Sequence[str], factor: float = 1.0) -> Choose:
    """The same experts in all layers."""
    return lambda _: (names, factor)


def kept(score: float, base: float, alone: float) -> float | None:
    """Percent of a task's gain over the base that a choice of experts keeps; `None` where it gained less than `LEARNT` alone."""
    return 100 * (score - base) / (alone - base) if alone - base >= LEARNT else None


def _prepared(method: str, settings: Mapping[str, Any]) -> Prepared:
    """All tasks of the benchmark with the settings of the runs."""
    known: dict[str, Any] = {"benchmark": "mini", **settings, "order": None}
    choices = stack(method, (), (), known.pop("options", None) or {})
    for name, value in known.items():
        known[name] = str(value) if isinstance(value, Path) else value
    return prepare(Job(choices, **known))


def _world(prepared: Prepared) -> World:
    import torch

    from cl_zoo.processes import World

    world = World(prepared.job.device)
    if world.device.type == "cpu":
        torch.set_num_threads(1)
    return world


def _first(task: TaskData, questions: int | None) -> TaskData:
    return task if questions is None else replace(task, test=task.test[:questions])


def _ended(result: Result) -> dict[str, Any]:
    return {"order": result.order, "last": result.matrix.last, "seconds": result.ledger["seconds"]}


def _write(file: Path, records: Iterable[Mapping[str, Any]]) -> None:
    write_text(file, "".join(canonical(record) + "\n" for record in records))
