"""What a run gave: its scores, its costs, its model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_zoo.engine.folder import check_answers, read_manifest
from cl_zoo.errors import PluginError
from cl_zoo.recipe.budget import beside_projector, budget_marks, budget_notes
from cl_zoo.report.rows import NOTED, Row
from cl_zoo.report.table import Table
from cl_zoo.runs.remarks import marks
from cl_zoo.runs.restore import Restored, Shown, restore
from cl_zoo.runs.samples import measured
from cl_zoo.scoring.matrix import Matrix

if TYPE_CHECKING:
    from cl_zoo.runs.equal import Difference
    from cl_zoo.statistics.measured import Measured

MANY = 5.0
"""Percent of a task's last answers from which a note says that they are empty, or wrong in form alone."""

ABOUT = (*NOTED, "notes")
"""What of a score `--json` says beside the matrix."""


@dataclass(frozen=True)
class Result:
    """A finished run, or the sentence with which it failed.

    Attributes:
        manifest: everything known about it; empty where it failed.
        folder: where it lies.
        stamps: what else a reader of its row has to know, from whoever put it beside others.
        budget: what may train in one task by those beside it, where it has another rank and trains as much as they may.
        unequal: budgets in which it differs from the comparison that it stands in.
        places: arguments of `restore`: where the weights are now, on which device it answers, and whose code is trusted.
        order: letters of its tasks; empty for a run from before they were written down.
        ordered: whether its tasks are learnt one after the other, so that their order matters.
    """

    label: str
    seed: int
    manifest: Mapping[str, Any]
    folder: Path | None = None
    error: str | None = None
    user_error: bool = False
    unequal: tuple[Difference, ...] = ()
    stamps: tuple[str, ...] = ()
    budget: int | None = None
    places: Mapping[str, Any] = field(default_factory=dict)
    order: str = ""
    ordered: bool = True

    @property
    def key(self) -> tuple[str, int, str]:
        """Label, seed and order."""
        return self.label, self.seed, self.order

    @property
    def matrix(self) -> Matrix:
        """Official scores A[t][i] on task i after learning task t.

        Raises:
            PluginError: the run failed.
        """
        return self._matrix("matrix")

    @property
    def strict(self) -> Matrix:
        """The same by the strict rules; the official scores where no task has a strict rule.

        Raises:
            PluginError: the run failed.
        """
        return self._matrix("strict" if "strict" in self.manifest else "matrix")

    def _matrix(self, name: str) -> Matrix:
        if self.error is not None:
            raise PluginError(f"{self.label}, seed {self.seed} has no matrix: {self.error}")
        return Matrix.from_json(self._checked[name])

    @cached_property
    def _checked(self) -> Mapping[str, Any]:
        """The manifest, once the answers behind its scores were found to be as they were written.

        Raises:
            RunError: one is missing or damaged.
        """
        if self.folder is not None:
            check_answers(self.folder, self.manifest)
        return self.manifest

    @property
    def complete(self) -> bool:
        """Whether it is finished and scored; false in the side processes of a distributed run."""
        return self.error is None and "matrix" in self.manifest

    @property
    def ledger(self) -> Mapping[str, Any]:
        """What the run cost."""
        costs: Mapping[str, Any] = self.manifest["ledger"]
        return costs

    @cached_property
    def restored(self) -> Restored:
        """The model that answers after the last task; it is loaded when it is first asked for, and kept.

        Raises:
            ClZooError: the run failed, or its model cannot be restored.
        """
        if self.error is not None or self.folder is None:
            raise PluginError(f"{self.label}, seed {self.seed} has no model: {self.error}")
        return restore(self.folder, **self.places)

    def generate(
        self,
        images: Sequence[Shown],
        prompts: Sequence[str],
        *,
        max_new_tokens: int | None = None,
        batch: int | None = None,
    ) -> list[str]:
        """Greedy answers to prompts about images.

        Args:
            images: for each prompt a PIL image, the path of a file, a list of several, in order, or `None`; of a video what
                `cl_zoo.frames` makes of it.
            prompts: question and instruction, without chat template; of several images `<image>` may say where one stands.
            max_new_tokens: token budget of one answer; default: the largest of the run's tasks.
            batch: prompts that are answered at a time; default: the recipe's.

        Raises:
            OptionError: an argument is of another type, empty or out of range.
            DataError: an image cannot be read, or the backbone was taught one and there are several.
            ClZooError: the model cannot be restored.
        """
        records = self.restored.answers(images, prompts, max_new_tokens=max_new_tokens, batch=batch)
        return [str(record["answer"]) for record in records]

    def row(self) -> Row:
        if self.error is not None:
            order = self.order if self.ordered else ""
            return Row(self.label, "sequential", self.seed, (), error=self.error, order=order)
        return Row(
            label=self.label,
            protocol=self.manifest["protocol"],
            seed=self.seed,
            tasks=tuple(self.manifest["tasks"]),
            matrix=self.matrix,
            strict=self.strict if "strict" in self.manifest else None,
            trained=self.ledger["trained"],
            stored=sum(self.ledger["stored"].get("inference", {}).values()),
            seconds=self.ledger["seconds"],
            stamps=tuple(self._stamps()),
            marks=self._marks(),
            answers={
                cell: {key: score[key] for key in ABOUT if key in score}
                for cell, score in self.manifest["scores"].items()
            },
            measured=self.manifest.get("measured", ()),
            probes=tuple(one["name"] for one in self.manifest["identity"].get("probes", ())),
            order=self.order,
            scores=self._scores,
            flops=sum(task.get("flops", 0.0) for task in self.ledger["tasks"]) or None,
            memory=self.ledger.get("peak_memory_mb"),
        )

    def _scores(self, scoring: str) -> Measured:
        """Its scores with those of each sample, by the official or the strict rules."""
        strict = scoring == "strict" and "strict" in self.manifest
        matrix, key = (self.strict, "strict") if strict else (self.matrix, "score")
        return measured(self.manifest, matrix, self.folder, key)

    def _stamps(self) -> Iterator[str]:
        """What a reader of its row has to know; a variant is named so that no reader has to know the default."""
        misleads = self._misleading()
        yield from (f"{name}: {variant}" for name, variant in self._variants().items())
        yield from budget_notes(*budget) if (budget := self._budget()) else ()
        yield from (f"{words}: {', '.join(misleads[key])}" for key, words in NOTED.items() if key in misleads)
        yield from (f"{', '.join(tasks)}: {note}" for note, tasks in misleads.get("notes", {}).items())
        if self.unequal:
            yield f"unequal: {', '.join(one.what for one in self.unequal)}"
        yield from self.stamps

    def _marks(self) -> dict[str, Any]:
        """The same for programs, by kind, and what is said before a run starts."""
        budget = self._budget()
        found = {
            **marks(self.manifest),
            "variants": self._variants(),
            **(budget_marks(*budget) if budget else {}),
            **self._misleading(),
            "unequal": {one.name: one.ratio for one in self.unequal},
        }
        return {kind: what for kind, what in found.items() if what}

    def _misleading(self) -> dict[str, Any]:
        """Tasks whose last answers mislead: `empty`, `form`, and `notes` with the tasks of each; nothing of older runs."""
        last, tasks = len(self.matrix.scores) - 1, self.manifest["tasks"]
        scores = self.manifest["scores"]
        found = [(task, scores.get(f"{last}-{place}", {})) for place, task in enumerate(tasks)]
        misleads: dict[str, Any] = {
            key: [task for task, score in found if (score.get(key) or 0.0) >= MANY] for key in NOTED
        }
        misleads["notes"] = {
            note: [task for task, score in found if note in score.get("notes", ())]
            for note in dict.fromkeys(note for _, score in found for note in score.get("notes", ()))
        }
        return {key: what for key, what in misleads.items() if what}

    def _variants(self) -> dict[str, str]:
        """The variant of every plugin that has some."""
        stack = self.manifest["identity"]["stack"]
        return {one["name"]: one["options"]["variant"] for one in stack if "variant" in one["options"]}

    def _budget(self) -> tuple[Mapping[str, int], int, Mapping[str, int]] | None:
        """Of the task in which it trained most: what by part, the budget, and how experts share it."""
        tasks = [task for task in self.ledger["tasks"] if task["trained"]]
        if (
            not tasks or "budget" not in self.ledger
        ):  # it learnt nothing, or was made before budgets were written down
            return None
        most = max(tasks, key=lambda task: beside_projector(task["trained"]))
        return most["trained"], self.budget or self.ledger["budget"], most["learning"]

    def table(self, scoring: str = "official") -> Table:
        """Its table by the official or the strict rules."""
        return Table([self.row()], scoring)


def load_result(folder: Path, **places: Any) -> Result:
    """A finished run from its folder.

    Raises:
        RunError: it has no readable manifest.
    """
    manifest = read_manifest(folder)
    about = {"order": manifest.get("order", ""), "ordered": manifest.get("protocol") == "sequential"}
    return Result(manifest["label"], manifest["seed"], manifest, folder, places=places, **about)
