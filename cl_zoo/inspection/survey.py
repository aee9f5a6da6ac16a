"""What the records of a benchmark have in common: repeated ids, twins, leaks from training to test, shares of prompts.

Works on rows, one per sample; whether they come from files or from a plugin makes no difference.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from cl_zoo.inspection.findings import Facts, Finding
from cl_zoo.preflight.looks import near_pairs

RATIONALE = re.compile(r"^\W*rationale\b", re.IGNORECASE | re.MULTILINE)
INSTRUCTIONS, SHOWN = 12, 3
MEMORY = "memory:"
"""Begins the names of images that are in memory or inside a dataset, where others have paths."""
WIDTH = 80
"""Letters of a prompt's line that a remark shows."""
NEAR = 10
"""Bits of 256 in which perceptual hashes of one picture may differ. Of rendered scenes saved again as JPEG most differ in 2 to 6, at half
their size in 2 to 10; different scenes mostly in more than 20, though simple icons may fall below."""


class Row(NamedTuple):
    """One sample and where it stands.

    Attributes:
        file: as shown to a user.
        record: counted from 1 in its file.
        images: a path each, or a name of what is in memory. Equal images have equal names once `same` was asked.
        turns: questions in the conversation that the sample comes from.
        before: the questions before its own that stand in the sample too.
    """

    task: str
    split: str
    file: str
    record: int
    id: str
    images: tuple[str, ...]
    prompt: str
    answer: str | None
    turns: int = 1
    before: tuple[str, ...] = ()

    @property
    def asked(self) -> tuple[str, ...]:
        """All questions in the sample."""
        return (*self.before, self.prompt)

    @property
    def place(self) -> str:
        """File and record, as a sentence begins."""
        return f"{self.file}, record {self.record}"

    @property
    def files(self) -> tuple[str, ...]:
        """Its images that are files."""
        return tuple(image for image in self.images if not image.startswith(MEMORY))

    @property
    def inside(self) -> tuple[str, ...]:
        """Its images that are not: in memory, or inside a dataset."""
        return tuple(image for image in self.images if image.startswith(MEMORY))


Same = Mapping[str, str]
"""For images that equal another one: the name of the group."""


def facts(start: Facts, rows: Sequence[Row], same: Same) -> Facts:
    """Counts and shares of one split, put into what `start` says about its file."""
    per_image = Counter(image for row in rows for image in _images(row, same))
    ids = Counter(name for _, name in {(row.record, row.id) for row in rows if row.id})
    records = Counter((_images(row, same), row.asked, row.answer) for row in rows)
    lines = Counter(_instruction(row.prompt, start.instruction) for row in rows)
    return replace(
        start,
        samples=len(rows),
        images=len(per_image),
        text_only=sum(not row.images for row in rows),
        several_images=sum(len(row.images) > 1 for row in rows),
        multi_turn=len({row.record for row in rows if row.turns > 1}),
        records_per_image=(min(per_image.values(), default=0), max(per_image.values(), default=0)),
        repeated_ids=_beyond_first(ids),
        identical=_beyond_first(records),
        rationales=sum(any(map(RATIONALE.search, row.asked)) for row in rows),
        instructions=dict(lines.most_common(INSTRUCTIONS)),
    )


def double_ids(rows: Sequence[Row]) -> Iterator[Finding]:
    """Test ids that stand twice in a file: answers could not be told apart."""
    first: dict[tuple[str, str], Row] = {}
    for row in rows:
        other = first.setdefault((row.file, row.id), row)
        if row.split == "test" and other.record != row.record:
            yield Finding(
                "double id",
                f"{row.place}: id {row.id!r} stands in record {other.record} too; give each test record its own",
                *(row.task, row.split, row.file, row.record, row.id),
            )


def leaks(rows: Sequence[Row], same: Same) -> Iterator[Finding]:
    """Test questions whose very image and prompt a task is trained on: a fault within a task, a remark across tasks."""
    trained: dict[tuple[tuple[str, ...], str], Row] = {}
    own: dict[tuple[str, tuple[str, ...], str], Row] = {}
    for row in rows:
        if row.split == "train":
            for asked in row.asked:
                key = (_images(row, same), asked)
                trained.setdefault(key, row)
                own.setdefault((row.task, *key), row)
    across: Counter[tuple[str, str]] = Counter()
    for row in rows:
        if row.split != "test" or not row.images:
            continue
        key = (_images(row, same), row.prompt)
        if (row.task, *key) in own:
            other = own[row.task, *key]
            yield Finding(
                "leak",
                f"{row.place} (id {row.id!r}): the same image and question stand in {other.place}; drop one of them",
                *(row.task, row.split, row.file, row.record, row.id),
            )
        elif key in trained:
            across[row.task, trained[key].task] += 1
    for (task, other_task), count in across.items():
        words = f"of the test questions {count:,} stand with the same image in the training records of {other_task}"
        sentence = f"{task}: {words}"
        yield Finding("leak across tasks", sentence, task, "test", count=count)


def shared_images(rows: Sequence[Row], same: Same) -> Iterator[Finding]:
    """Images that stand in training and in test, within a task and across tasks; remarks, with counts of images."""
    images: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in rows:
        images[row.task, row.split].update(_images(row, same))
    for (task, split), tested in images.items():
        for (other, other_split), trained in images.items():
            count = len(tested & trained) if (split, other_split) == ("test", "train") else 0
            if count:
                whose = "the task's own training records" if other == task else f"training records of {other}"
                sentence = f"{task}, test: {count:,} of {len(tested):,} images stand in {whose} too"
                yield Finding("shared images", sentence, task, "test", count=count)


def similar_images(rows: Sequence[Row], same: Same, outlines: Mapping[str, bytes]) -> Iterator[Finding]:
    """Test images that look like a training image without being the same file: perhaps saved again or scaled; remarks."""
    images: dict[tuple[str, str], dict[str, bytes]] = defaultdict(dict)
    for row in rows:
        for image in row.images:
            if image in outlines:
                images[row.task, row.split].setdefault(same.get(image, image), outlines[image])
    for (task, split), tested in images.items():
        for (other, other_split), trained in images.items():
            if (split, other_split) != ("test", "train"):
                continue
            names = list(tested)
            pairs = near_pairs(list(tested.values()), list(trained.values()), NEAR)
            found = {names[here] for here, _ in pairs if names[here] not in trained}
            if found:
                whose = "training image of the task" if other == task else f"training image of {other}"
                sentence = f"{task}, test: {len(found):,} of {len(tested):,} images look like a {whose}"
                yield Finding("similar images", sentence, task, "test", count=len(found))


def oddities(found: Facts) -> Iterator[Finding]:
    """What in a split's counts a reader should know, as remarks."""
    shares = [
        ("repeated ids", found.repeated_ids, "records repeat the id of another; training does not go by ids"),
        ("identical", found.identical, "samples repeat another in image, prompt and answer"),
        ("rationale", found.rationales, "prompts contain a rationale, which may give the answer away"),
        ("text only", found.text_only, "samples have no image"),
        ("several images", found.several_images, "samples have several images"),
        ("multi-turn", found.multi_turn, "conversations have more than one question"),
    ]
    for kind, count, words in shares:
        if count and not (kind == "repeated ids" and found.split == "test"):
            whole = found.records if kind in ("repeated ids", "multi-turn") else found.samples
            share = f"{count:,} of {whole:,}"
            yield _remark(kind, found, f"{share} {words}", count)
    if len(found.instructions) > 1:
        parts = [
            f"{100 * count / found.samples:.1f} % {_shortened(line)!r}"
            for line, count in found.instructions.items()
        ]
        more = ", …" if len(parts) > SHOWN else ""
        yield _remark(
            "instructions", found, f"prompts end in different ways: {', '.join(parts[:SHOWN])}{more}"
        )
    elif found.instruction and found.instruction not in found.instructions:
        says = f"no prompt holds the instruction {_shortened(found.instruction)!r}, and nothing adds it"
        yield _remark("instructions", found, says)


def _shortened(line: str) -> str:
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 1].rstrip()}…"


def _remark(kind: str, found: Facts, words: str, count: int = 1) -> Finding:
    place = (found.task, found.split, found.file)
    return Finding(kind, f"{found.task}, {found.split}: {words}", *place, count=count)


def _instruction(prompt: str, usual: str) -> str:
    """The task's instruction where it is one of the prompt's lines, else the last line."""
    lines = prompt.splitlines() or [""]
    return usual if usual and usual in lines else lines[-1]


def _images(row: Row, same: Same) -> tuple[str, ...]:
    return tuple(same.get(image, image) for image in row.images)


def _beyond_first(counts: Mapping[Any, int]) -> int:
    return sum(counts.values()) - len(counts)
