"""Which test samples of a benchmark stand in a given training mix: the same picture, a picture that looks the same, the same text.

    exact   the picture's file is in the mix byte by byte; pictures that are no files, as those of `mini`, are compared by looks alone
    near    another file whose perceptual hash differs in at most `NEAR` of 256 bits: saved again, scaled or slightly changed
    text    of a question, answer or caption at least `SHARE` of the runs of `WORDS` words stand in the mix, wherever; a text of
            fewer words is not counted, since short questions are alike by nature
    both    the picture, exact or near, stands in a record of the mix that has the question as well, or `SHARE` of its runs; of any length

The task's instruction is taken out of a question first. A crop, a mirrored picture or a question in other words is not found: what is
counted is a lower bound, and `cl_zoo.analysis.planting` measures on the same data how low.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from cl_zoo.analysis.columns import columns
from cl_zoo.analysis.mixes import Mix, grams, words
from cl_zoo.analysis.outcome import Outcome
from cl_zoo.preflight.looks import equal_files, looks, near_pairs, outline_of
from cl_zoo.tasks import Benchmark, Sample, TaskData

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WORDS = 13
"""Words of a run, as in GPT-3's check for contamination (Brown et al. 2020, Appendix C)."""
SHARE = 0.5
"""Of a text's runs, how many make it found."""
NEAR = 10
"""Bits of 256 in which perceptual hashes of one picture may differ, as for `cl-zoo data check --overlap perceptual`.

Small pictures need more: of `mini`'s, 32 pixels wide, a JPEG differs in 6 to 34 bits and another picture in 32 at the least."""
KINDS = ("exact", "near", "text", "both")


@dataclass
class Asked:
    """A test sample and what of it stands in the mix.

    Attributes:
        task, id: which one.
        question: its words without the instruction.
        runs: of each text that is long enough, its runs of words; the question first where it is.
        files, outlines: of its pictures.
        found: names in `KINDS`.
        near: pictures of the mix that are or look the same.
    """

    task: str
    id: str
    question: str
    runs: list[list[str]]
    files: list[str]
    outlines: list[bytes]
    found: set[str] = field(default_factory=set)
    near: set[str] = field(default_factory=set)

    def row(self) -> dict[str, Any]:
        """For a table."""
        pictures = len(self.files) or len(self.outlines)
        about = {"task": self.task, "sample": self.id, "pictures": pictures, "long": bool(self.runs)}
        return {**about, **{kind: kind in self.found for kind in KINDS}, "mix": ", ".join(sorted(self.near))}


def overlap(
    benchmark: Benchmark,
    mix: Mix,
    *,
    length: int = WORDS,
    bits: int = NEAR,
    limit: int | None = None,
    processes: int = 1,
) -> Outcome:
    """What of a benchmark's test splits stands in a mix.

    Args:
        length: words of a run.
        bits: in which perceptual hashes of pictures that count as one may differ.
        limit: test samples of each task.
        processes: that read pictures.

    Raises:
        DataError: a file of the mix holds no records.
        RunError: a process died.
    """
    asked = [one for task in benchmark.tasks for one in _asked(task, length, limit)]
    find(asked, mix, length, bits, processes)
    rows = [one.row() for one in asked]
    sums = [_sum(task.name, [row for row in rows if row["task"] == task.name]) for task in benchmark.tasks]
    heads = {
        "task": "task",
        "samples": "samples",
        "pictures": "with picture",
        "exact": "exact",
        "near": "near",
    }
    heads |= {"long": f"{length} words", "text": "text", "both": "both"}
    told = ", ".join(f"{sum(row[kind] for row in rows)} {kind}" for kind in KINDS)
    size = f"{len(mix.records):,} records and {len(mix.pictures):,} pictures"
    lost = (
        f" {mix.missing:,} pictures that it names are not there, and were not looked at."
        if mix.missing
        else ""
    )
    sentence = f"{benchmark.name}: of {len(rows):,} test samples stand in a mix of {size}: {told}.{lost}"
    return Outcome("overlap", sentence, rows, lambda: _draw(sums), columns(sums, heads))


def find(asked: Sequence[Asked], mix: Mix, length: int, bits: int = NEAR, processes: int = 1) -> None:
    """Mark what stands in a mix."""
    keys = {key for one in asked for runs in one.runs for key in runs} | {one.question for one in asked}
    in_record = _in_records(keys - {""}, mix, length)
    somewhere = {key for found in in_record.values() for key in found}
    users: dict[str, list[int]] = defaultdict(list)
    for number, record in enumerate(mix.records):
        for picture in record.pictures:
            users[picture].append(number)
    _pictures(asked, mix.pictures, bits, processes)
    for one in asked:
        if any(_share(runs, somewhere) >= SHARE for runs in one.runs):
            one.found.add("text")
        beside = (in_record.get(number, set()) for picture in one.near for number in users[picture])
        question = grams(one.question.split(), length)
        if any(one.question in there or (question and _share(question, there) >= SHARE) for there in beside):
            one.found.add("both")


def _in_records(keys: set[str], mix: Mix, length: int) -> dict[int, set[str]]:
    """By number of a record, which of the runs and whole questions stand in it."""
    found: dict[int, set[str]] = {}
    for number, record in enumerate(mix.records):
        for text in record.texts:
            said = words(text)
            here = keys.intersection([" ".join(said), *grams(said, length), *_lines(text)])
            if here:
                found.setdefault(number, set()).update(here)
    return found


def _lines(text: str) -> list[str]:
    """A question may stand on a line of its own, between the picture's mark and an instruction."""
    return [" ".join(words(line)) for line in text.splitlines()]


def _share(runs: Sequence[str], there: set[str]) -> float:
    return sum(run in there for run in runs) / len(runs)


def _pictures(asked: Sequence[Asked], pictures: Sequence[str], bits: int, processes: int) -> None:
    """Mark pictures that are the same file, then those that look the same."""
    files = list(dict.fromkeys(file for one in asked for file in one.files))
    paths = list(dict.fromkeys([*files, *pictures]))
    seen = looks(paths, outline=True, processes=processes)
    same = equal_files(paths, seen, processes)
    outlines = {path: look.outline for path, look in zip(paths, seen, strict=True)}
    groups: dict[str, list[str]] = defaultdict(list)
    for picture in pictures:
        groups[same.get(picture, picture)].append(picture)
    left: list[tuple[Asked, bytes]] = []
    for one in asked:
        equal = [copy for file in one.files for copy in groups.get(same.get(file, file), ())]
        if equal:
            one.found.add("exact")
            one.near.update(equal)
        own = [*one.outlines, *(outline for file in one.files if (outline := outlines[file]) is not None)]
        left += [(one, outline) for outline in own]
    right = [(picture, outline) for picture in pictures if (outline := outlines[picture]) is not None]
    for here, there in near_pairs([outline for _, outline in left], [outline for _, outline in right], bits):
        one = left[here][0]
        one.near.add(right[there][0])
        if "exact" not in one.found:
            one.found.add("near")


def _asked(task: TaskData, length: int, limit: int | None) -> list[Asked]:
    samples = task.test if limit is None else task.test[:limit]
    return [asked_of(sample, task.name, task.instruction, length) for sample in samples]


def asked_of(sample: Sample, task: str, instruction: str, length: int) -> Asked:
    """A test sample, of which nothing is found yet."""
    question = " ".join(words(sample.prompt.replace(instruction, " ") if instruction else sample.prompt))
    texts = [question, *(" ".join(words(text)) for text in (sample.answer or "", *sample.references))]
    runs = [found for text in texts if (found := grams(text.split(), length))]
    files = [str(image.resolve()) for image in sample.images if isinstance(image, Path)]
    held = [image for image in sample.images if isinstance(image, Image.Image)]
    outlines = [outline for image in held if (outline := outline_of(image)) is not None]
    return Asked(task, sample.id, question, runs, files, outlines)


def _sum(task: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    counts = {kind: sum(row[kind] for row in rows) for kind in (*KINDS, "long")}
    pictures = sum(bool(row["pictures"]) for row in rows)
    return {"task": task, "samples": len(rows), "pictures": pictures, **counts}


def _draw(sums: Sequence[Mapping[str, Any]]) -> Axes:
    """The share of each task's samples that is found, by kind."""
    from cl_zoo.report import colours
    from cl_zoo.report.figures import new_axes, plain

    axes = new_axes(6.4, 1.0 + 0.5 * len(sums))
    for number, kind in enumerate(KINDS):
        shares = [100 * one[kind] / max(one["samples"], 1) for one in sums]
        places = [place + 0.2 * (number - 1.5) for place in range(len(sums))]
        axes.barh(places, shares, height=0.18, color=colours.of_method(number)[0], label=kind)
    axes.set_yticks(range(len(sums)), [one["task"] for one in sums], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("Percent of the test samples")
    drawn: Axes = plain(axes)
    return drawn
