"""The answers of a finished run, sample by sample: what was said after which task, and what it scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_zoo.engine.files import remedy
from cl_zoo.engine.folder import read_manifest
from cl_zoo.errors import DataError, OptionError, nearest
from cl_zoo.runs.manifest import score_answers
from cl_zoo.scoring.files import lines, read_answers, read_expected
from cl_zoo.scoring.scorer import Scorer

NAMES = ("record", "picture")
"""Keys that a sample has where they are known."""


@dataclass(frozen=True)
class Asked:
    """A test sample and everything that was answered to it.

    Attributes:
        task, task_place: of the stream.
        about: `id`, `place` in the task's test split, and where they are known `record` (the record's own id) and `picture`.
        question: the prompt.
        before: the turns before it, (asked, answered) each.
        expected: the right answer, or the references of a caption.
        answers: `{"after": task, "stage", "answer", "score"}` in the order of the stages, the score by the official rule; `after`
            is `None` where nothing was learnt, and `form` is there (true) where the answer is wrong in form alone.
    """

    task: str
    task_place: int
    about: Mapping[str, Any]
    question: str
    expected: str | list[str] | None
    answers: tuple[dict[str, Any], ...]
    before: tuple[tuple[str, str], ...] = ()

    @property
    def then(self) -> dict[str, Any] | None:
        """The best of the earlier answers, of equal ones the latest; `None` where it was asked once."""
        earlier = self.answers[:-1]
        return max(earlier, key=lambda one: (one["score"], one["stage"])) if earlier else None

    @property
    def forgotten(self) -> bool:
        """Whether the last answer scores less than half of the best before: right then and wrong now, by a rule of 0 and 1."""
        return self.then is not None and 2 * self.answers[-1]["score"] < self.then["score"]

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        turns = {"before": [list(turn) for turn in self.before]} if self.before else {}
        rest = {"question": self.question, "expected": self.expected, "answers": list(self.answers)}
        where = {"task": self.task, "task_place": self.task_place}
        return {**where, **self.about, **turns, **rest, "forgotten": self.forgotten}


def answered(folder: Path, task: str | None = None) -> Iterator[Asked]:
    """Every test sample of a finished run, task by task in the order of the stream.

    Args:
        folder: of the run; scores of samples that are not on disk, as in runs of older versions, are made from its answers.
        task: of this task only.

    Raises:
        RunError: it has no readable manifest.
        OptionError: the run has no such task.
        DataError: a file of answers, of what was expected or of scores is missing or broken.
    """
    manifest = read_manifest(folder)
    tasks = manifest["tasks"]
    if task is not None and task not in tasks:
        raise OptionError(f"--task {task}: {folder} has no such task{nearest(task, tasks)}")
    stages: dict[int, list[int]] = {}
    for cell in manifest["scores"]:
        stage, place = map(int, cell.split("-"))
        if task in (None, tasks[place]):
            stages.setdefault(place, []).append(stage)
    scores = _scores(folder, [(t, i) for i, rows in stages.items() for t in rows], manifest["metrics"])
    for place in sorted(stages):
        yield from _of_task(folder, manifest, place, sorted(stages[place]), scores)


def _of_task(
    folder: Path, manifest: Mapping[str, Any], place: int, stages: list[int], scores: Mapping[str, Any]
) -> Iterator[Asked]:
    lessons = [lesson["name"] for lesson in manifest["lessons"]]
    files = {stage: folder / "answers" / f"{stage}-{place}.jsonl" for stage in stages}
    of_expected = folder / "expected" / f"{place}.jsonl"
    expected = read_expected(of_expected)
    said = {stage: read_answers(file, expected) for stage, file in files.items()}
    prompts = {one["id"]: str(one.get("prompt", "")) for _, one in lines(files[stages[0]])}
    told = [one for _, one in lines(of_expected)]
    for number, (sample, wanted) in enumerate(expected.items()):
        answers = tuple(
            {
                "after": lessons[stage] if lessons else None,
                "stage": stage,
                "answer": said[stage][sample],
                **_score(folder, scores, f"{stage}-{place}", sample),
            }
            for stage in stages
        )
        about = {
            "id": sample,
            "place": number,
            **{key: told[number][key] for key in NAMES if key in told[number]},
        }
        right = list(wanted.references) or wanted.answer
        before = tuple((str(asked), str(answer)) for asked, answer in told[number].get("before", ()))
        yield Asked(manifest["tasks"][place], place, about, prompts[sample], right, answers, before)


def _scores(
    folder: Path, cells: list[tuple[int, int]], metrics: list[str]
) -> dict[str, dict[str, Mapping[str, Any]]]:
    """What the rule says of every sample, by cell and id: from `scores/`, and made anew where a file is not there."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    missing = []
    for stage, place in cells:
        file = folder / "scores" / f"{stage}-{place}.jsonl"
        if file.is_file():
            found[f"{stage}-{place}"] = {one["id"]: one for _, one in lines(file)}
        else:
            missing.append((stage, place))
    if missing:
        with Scorer() as scorer:
            for cell, score in score_answers(folder, missing, metrics, scorer).items():
                found[cell] = {one["id"]: one for one in score.samples}
    return found


def _score(folder: Path, scores: Mapping[str, Mapping[str, Any]], cell: str, sample: str) -> dict[str, Any]:
    """`score`, and `form` where the form alone is wrong."""
    found = scores[cell].get(sample, {})
    score = found.get("score")
    if not isinstance(score, int | float):
        file = folder / "scores" / f"{cell}.jsonl"
        raise DataError(f"{file}: has no score of sample {sample!r}; {remedy(folder)}")
    return {"score": float(score), **({"form": True} if found.get("form") else {})}
