"""A benchmark's files read for a check: every record that can be used as a row, every one that cannot as a finding.

A run stops at the first fault; here each file is read to its end. Of a folder of Hugging Face `datasets` and of a benchmark that
a plugin makes, samples are asked for one by one; a fault that concerns a whole split ends only that split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from cl_zoo.data.benchmarks import Described, nowhere, resolved, roots
from cl_zoo.data.faults import REPAIR, EmptyAnswer, Outside, Undecoded, halved
from cl_zoo.data.files import read_records
from cl_zoo.data.needs import ANSWER, NEEDS, lack
from cl_zoo.data.records import UNREAD, Entry, completed, entries, other_form
from cl_zoo.data.references import referred
from cl_zoo.data.roots import Roots
from cl_zoo.data.schema import ReferenceSource, SplitSource, TaskSource
from cl_zoo.data.shards import PACKED
from cl_zoo.data.splits import Split
from cl_zoo.data.turns import has_system
from cl_zoo.errors import ClZooError, DataError
from cl_zoo.inspection.findings import Finding, counted
from cl_zoo.inspection.golds import unmatched
from cl_zoo.inspection.inside import kinds_inside, named
from cl_zoo.inspection.survey import Row
from cl_zoo.inspection.turns import several_turns
from cl_zoo.recipe.recipe import build_recipe
from cl_zoo.scoring.judges import Expected
from cl_zoo.tasks import Benchmark, Sample, TaskData, as_named, origin
from cl_zoo.videos import FRAMES

SPLITS = ("train", "validation", "test")
KINDS = {Outside: "outside", Undecoded: "unreadable", EmptyAnswer: "empty answer"}
"""Kinds of findings that a fault of a record has an error for; the others are `record`."""


@dataclass(frozen=True)
class Reading:
    """One split.

    Attributes:
        file: where it stands, for people.
        records: all that the file holds, faulty ones included.
        official: how many there should be, if somebody says so.
        repeats: whether ids may come twice.
        instruction: the task's.
        outlines: perceptual hashes of images in memory, by their names in the rows.
        kinds: of each image in memory or inside a dataset (`cl_zoo.images.kinds`), by the numbers of their records.
        frames: images that stand for a video.
        batch: samples of a step by the benchmark's recipe; `None` where that cannot be used.
    """

    task: str
    split: str
    file: str
    records: int = 0
    official: int | None = None
    repeats: bool = False
    instruction: str = ""
    rows: Sequence[Row] = ()
    findings: Sequence[Finding] = ()
    outlines: Mapping[str, bytes] = field(default_factory=dict)
    kinds: Mapping[int, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    frames: int = FRAMES
    batch: int | None = None

    def finding(self, kind: str, sentence: str, record: int | None = None, id: str | None = None) -> Finding:
        """A finding about this split."""
        return Finding(kind, sentence, self.task, self.split, self.file, record, id)


def readings(
    plugin: Any, benchmark: Benchmark, data: Path | None, *, outline: bool = False
) -> list[Callable[[], Reading]]:
    """The readings to be made, one for each split; each is made when it is called.

    Args:
        plugin: what the benchmark was loaded by; files are read where it is a description.
        benchmark: what it gave.
        data: the data folder.
        outline: whether perceptual hashes of images in memory are wanted.
    """
    if not isinstance(plugin, Described):
        return [
            partial(_samples, _of_plugin(task, split), samples, outline, task)
            for task in benchmark.tasks
            for split in SPLITS
            if len(samples := getattr(task, split)) or split != "validation"
        ]
    bases, frames = plugin.bases(data), plugin.description.frames
    batches: dict[str, int] = {}
    with suppress(ClZooError):  # said of the recipe elsewhere
        recipe = build_recipe(benchmark.recipe, {})
        batches = {task.name: recipe.for_task(task.name).global_batch for task in benchmark.tasks}
    return [
        partial(_described, task, split, getattr(samples, split), bases, outline, batches, frames)
        for task, samples in zip(plugin.description.tasks, benchmark.tasks, strict=True)
        for split in SPLITS
        if getattr(task, split) is not None
    ]


def _of_plugin(task: TaskData, split: str) -> Reading:
    return Reading(task.name, split, f"{task.name}, {split}", instruction=task.instruction)


# Files


def _described(
    task: TaskSource,
    split: str,
    samples: Sequence[Sample],
    bases: tuple[Path, ...],
    outline: bool,
    batches: Mapping[str, int],
    frames: int,
) -> Reading:
    source: SplitSource = getattr(task, split)
    file = resolved(bases, source.files)
    reading = replace(_start(task, split, source, str(file or source.files[0]), batches), frames=frames)
    if file is None:
        words = nowhere(f"task {task.name}, {split}", bases, source.files)
        return replace(reading, findings=[reading.finding("no file", words)])
    if source.format in PACKED:
        return _turned(_samples(reading, samples, outline, task), source.turns)
    try:
        records = read_records(file)
    except DataError as error:
        return replace(reading, findings=[reading.finding("broken file", str(error))])
    if says := other_form(records, source.format) if records else "holds no records; fetch the file again":
        whole = replace(reading, records=len(records))
        return replace(whole, findings=[reading.finding("broken file", f"{file}: {says}")])
    reading = replace(reading, records=len(records))
    findings = _count(reading)
    numbered = _entries(reading, records, file, source, findings)
    needs = NEEDS.get(task.metric, ANSWER) if split == "test" else ANSWER
    if split == "test" and task.references is not None:
        numbered = _referred(reading, numbered, task.references, bases, findings)
    rows = _rows(reading, numbered, needs, roots(bases, source.images or task.images), findings)
    if split == "test" and not any(one.kind in ("references", "no file") for one in findings):
        asked = [(n, one.id, Expected(one.answer, one.references, one.truth)) for n, one, _ in numbered]
        findings += unmatched(reading, task.metric, task.max_new_tokens, asked)
    return replace(reading, rows=rows, findings=findings)


def _start(
    task: TaskSource, split: str, source: SplitSource, where: str, batches: Mapping[str, int]
) -> Reading:
    if source.format in PACKED:
        where = f"{where}, split {source.split or split}"
    about = (source.count, source.repeats, task.instruction)
    return Reading(task.name, split, where, 0, *about, batch=batches.get(task.name))


def _count(reading: Reading) -> list[Finding]:
    if reading.official in (None, reading.records):
        return []
    words = (
        f"{reading.file}: holds {reading.records:,} records where the official file has {reading.official:,}"
    )
    return [reading.finding("count", f"{words}; fetch it again")]


Numbered = list[tuple[int, Entry, int]]
"""Number of a record, one of its questions, and how many it has."""


def _entries(
    reading: Reading,
    records: Sequence[dict[str, Any]],
    file: Path,
    source: SplitSource,
    findings: list[Finding],
) -> Numbered:
    numbered: Numbered = []
    for number, record in enumerate(records, 1):
        try:
            found = entries(record, number, file, source.format, source.turns, reading.frames)
            asked = [completed(one, record, number, file, source.truth, source.closing) for one in found]
        except DataError as error:
            name = record.get("question_id", record.get("id"))
            shown = None if name is None or halved(str(name)) else str(name)
            findings.append(reading.finding(_kind(error), str(error), number, shown))
            asked = [UNREAD]
        numbered += [(number, entry, max(len(asked), 1 + len(entry.before))) for entry in asked]
    questions = {number: count for number, entry, count in numbered if entry != UNREAD}
    findings += several_turns(reading, questions, source.turns)
    findings += _system(reading, records)
    return numbered


def _system(reading: Reading, records: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    """What a system says is left out, which is a remark."""
    if spoken := sum(map(has_system, records)):
        words = f"in {counted(spoken, 'conversation', 'conversations')} the system speaks, which is left out"
        yield replace(reading.finding("system", f"{reading.task}, {reading.split}: {words}"), count=spoken)


def _referred(
    reading: Reading,
    numbered: Numbered,
    source: ReferenceSource,
    bases: tuple[Path, ...],
    findings: list[Finding],
) -> Numbered:
    """The entries with their references; as they were where the file of references is faulty, which is one finding."""
    file = resolved(bases, source.files)
    if file is None:
        if not source.optional:
            words = nowhere(f"task {reading.task}, references", bases, source.files)
            findings.append(reading.finding("no file", words))
        return numbered
    try:
        found, by = referred([entry for _, entry, _ in numbered], file, source.format, source.note)
    except DataError as error:
        findings.append(Finding("references", str(error), reading.task, reading.split, str(file)))
        return numbered
    words = f"{reading.task}, test: references in {file.name} are joined by {by}"
    findings.append(Finding("joined", words, reading.task, reading.split, str(file)))
    wanted = source.per_sample
    there = [one for one in found if one != UNREAD]
    odd = [one for one in there if wanted and len(one.references or one.truth.get("answers", ())) != wanted]
    if odd:
        records = counted(len(odd), "test record has", "test records have")
        words = f"{file}: {records} other than {wanted} references; fetch the file again"
        findings.append(Finding("references", words, reading.task, reading.split, str(file), count=len(odd)))
    return [(number, entry, turns) for (number, _, turns), entry in zip(numbered, found, strict=True)]


def _rows(
    reading: Reading, numbered: Numbered, needs: str, images: Roots, findings: list[Finding]
) -> list[Row]:
    lacks_file = any(one.kind in ("references", "no file") for one in findings)
    rows = []
    for number, entry, turns in numbered:
        if entry.prompt == "" and entry.answer is None:
            continue  # a record with a finding of its own
        where, name = f"{reading.file}, record {number}", entry.id or None
        what = None if lacks_file else lack(needs, entry.answer, entry.references, entry.truth)
        findings += _unanswered(reading, number, entry, what)
        try:
            named = [str(images.path(image)) for image in entry.images]
        except DataError as error:
            findings.append(reading.finding("outside", f"{where}: {error}", number, name))
            continue
        rows.append(_row(reading, number, named, entry, turns))
    return rows


def _row(reading: Reading, number: int, named: Sequence[str], one: Entry | Sample, turns: int) -> Row:
    where = (reading.task, reading.split, reading.file, number)
    return Row(
        *where, one.id, tuple(named), one.prompt, one.answer, turns, tuple(asked for asked, _ in one.before)
    )


# Samples


def _samples(
    reading: Reading, samples: Sequence[Sample], outline: bool, task: TaskData | TaskSource
) -> Reading:
    """What samples say, each asked for once; images in memory are named by their content."""
    try:
        numbers = _numbers(samples)
    except DataError as error:
        return replace(reading, findings=[reading.finding("broken file", str(error))])
    reading = replace(reading, records=len(set(numbers)))
    if not reading.records and reading.split != "validation":
        words = f"{reading.file}: holds no samples; add some, or drop the task"
        return replace(reading, findings=[reading.finding("broken file", words)])
    findings, rows = _count(reading), []
    outlines, odd, asked = dict[str, bytes](), dict[int, tuple[tuple[str, ...], ...]](), []
    asks = Counter(numbers)
    for place, number in enumerate(numbers):
        where = f"{reading.file}, record {number}"
        try:
            sample, names, of = _seen(samples, place, outlines if outline else None)
            odd.setdefault(number, of)
        except DataError as error:
            findings.append(reading.finding(_kind(error), str(error), number))
            continue
        except Exception as error:  # of a plugin that opens its images here, a damaged one raises anything
            words = f"{where}: its image cannot be decoded: {' '.join(str(error).split())}"
            findings.append(reading.finding("unreadable", words, number))
            continue
        if half := next(filter(None, map(halved, _texts(sample))), None):
            words = f"{where}: holds half of a character ({half}); {REPAIR}"
            findings.append(reading.finding("record", words, number))
            continue
        scored = sample.references or sample.truth  # by what: the rule says so when it is asked
        what = None if scored else lack(ANSWER, sample.answer, (), {})
        findings += _unanswered(reading, number, sample, what)
        rows.append(_row(reading, number, names, sample, max(asks[number], 1 + len(sample.before))))
        asked.append((number, sample.id, Expected(sample.answer, sample.references, sample.truth)))
    if reading.split == "test":
        findings += unmatched(reading, task.metric, task.max_new_tokens, asked)
    return replace(reading, rows=rows, findings=findings, outlines=outlines, kinds=odd)


def _seen(
    samples: Sequence[Sample], place: int, outlines: dict[str, bytes] | None
) -> tuple[Sample, list[str], tuple[tuple[str, ...], ...]]:
    """A sample by its record's own id, the names of its images, and the kinds of those that are no files."""
    sample = as_named(samples, place)
    names = [named(image, outlines) for image in sample.images]
    of = kinds_inside(samples, place, sample)
    return replace(sample, id=origin(samples, place).get("record", sample.id)), names, of


def _numbers(samples: Sequence[Sample]) -> list[int]:
    """The number of each sample's record, from 1: of a conversation that is split several samples have one."""
    if isinstance(samples, Split):
        return [samples.entries[place][0] for place in range(len(samples))]
    return list(range(1, len(samples) + 1))


def _turned(reading: Reading, turns: str) -> Reading:
    several = several_turns(reading, {row.record: row.turns for row in reading.rows}, turns)
    return replace(reading, findings=[*reading.findings, *several])


def _texts(sample: Sample) -> Iterator[str]:
    yield from (sample.id, sample.prompt, sample.answer or "", *sample.references)
    for turn in sample.before:
        yield from turn


def _unanswered(reading: Reading, number: int, one: Entry | Sample, what: str | None) -> Iterator[Finding]:
    """A finding where there is nothing to learn or to score by: an empty answer, or what a rule needs is lacking."""
    where = f"{reading.file}, record {number}"
    if one.answer is not None and not one.answer.strip():
        words = f"{where}: has an empty answer; {REPAIR}"
        yield reading.finding("empty answer", words, number, one.id or None)
    elif what:
        yield reading.finding("record", f"{where}: lacks {what}; {REPAIR}", number, one.id or None)


def _kind(error: DataError) -> str:
    return next((kind for one, kind in KINDS.items() if isinstance(error, one)), "record")
