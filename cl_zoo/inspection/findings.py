"""What a check of data found: faults and remarks, as a table for people and as JSON for programs.

A fault is something to put right before scores can be trusted; one is enough for exit code 1. A remark is a fact worth
knowing about data that are as they should be: official files hold repeated ids and images that training and test share.

The JSON report is one object::

    {
      "benchmark": "ucit", "version": "1", "data": "DIR", "ok": false,
      "options": {"decode": false, "overlap": "exact"},
      "images": {"checked": 231857, "bytes": 21474836480, "memory": 0},
      "tasks": [{"task": "ArxivQA", "split": "train", "file": "DIR/instructions/…", "records": 40000, "official": 40000,
                 "instruction": "Answer with …", "samples": 40000, "images": 39000, "text_only": 0, "multi_turn": 0, "several_images": 0, "records_per_image": [1, 8], "repeated_ids": 0,
                 "identical": 0, "rationales": 39000, "instructions": {"Answer with …": 40000}}, …],
      "findings": [{"kind": "missing", "fault": true, "task": "VizWiz", "split": "train", "file": "DIR/…",
                    "record": 12, "id": "00015790", "count": 1, "sentence": "…"}, …],
      "pictures": {"16-bit": {"count": 3, "files": ["DIR/…", …]}, …}
    }

`images` counts files, their bytes, and distinct images that are in memory or inside a dataset. `file` of a folder of `datasets`
ends with the name of the split. `official` is null where the benchmark names no count. `samples` are those of records that can be used: a conversation makes
one, or one for each of its questions (`turns: split`). `images` of a split are distinct ones; `records_per_image` holds least and
most. `identical` counts records beyond the first of each group with the same image, prompt and answer. `rationales` are
prompts with a line that starts with `Rationale`; `instruction` is the task's; `instructions` say how often it is a line of a
prompt, and how often which last line stands for it, the most frequent first, at most twelve. `record` counts from 1 in its file and is null where a finding is about a whole file or task; `count` says how many
records or images a finding stands for. `pictures` names files of kinds that may become other pictures as RGB (`cl_zoo.images.kinds`), the
first twelve of each; where pictures stand inside a dataset, their records.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_zoo.engine.files import write_json, write_text
from cl_zoo.errors import full_disk_named, printable

if TYPE_CHECKING:
    from rich.console import Console

FAULTS = {
    "setting": ("setting that a run refuses", "settings that a run refuses"),
    "no file": ("file that is not there", "files that are not there"),
    "broken file": ("file that cannot be read as records", "files that cannot be read as records"),
    "count": (
        "number of records that is not the official one",
        "numbers of records that are not the official ones",
    ),
    "record": ("record that cannot be used", "records that cannot be used"),
    "empty answer": ("empty answer", "empty answers"),
    "gold": ("test answer that no model can match", "test answers that no model can match"),
    "double id": ("test id that stands twice", "test ids that stand twice"),
    "outside": ("path that leaves the data folder", "paths that leave the data folder"),
    "references": ("fault of references for the test file", "faults of references for the test file"),
    "missing": ("image that is missing", "images that are missing"),
    "forbidden": ("image that may not be read", "images that may not be read"),
    "empty": ("image file without content", "image files without content"),
    "no image": ("file that is no image", "files that are no images"),
    "truncated": ("image that is cut off", "images that are cut off"),
    "unreadable": ("image that cannot be read", "images that cannot be read"),
    "leak": (
        "test question about an image that training holds too",
        "test questions about an image that training holds too",
    ),
}
"""Kinds of fault in the order in which they are shown, in words for one and for several."""
SHOWN = 3
FILES = 12
"""Files of each kind of picture that a report names."""


@dataclass(frozen=True)
class Finding:
    """One fault or remark.

    Attributes:
        kind: a key of `FAULTS`, or for a remark one word of what it is about.
        sentence: place, value and, for a fault, the remedy.
        task, split, file: where; empty where it is about more than one.
        record: counted from 1.
        id: the record's own.
        count: how many records or images it stands for.
    """

    kind: str
    sentence: str
    task: str = ""
    split: str = ""
    file: str = ""
    record: int | None = None
    id: str | None = None
    count: int = 1

    @property
    def fault(self) -> bool:
        """Whether it has to be put right."""
        return self.kind in FAULTS


@dataclass(frozen=True)
class Facts:
    """What is in one split; the keys are described with the JSON report."""

    task: str
    split: str
    file: str
    records: int
    official: int | None = None
    instruction: str = ""
    samples: int = 0
    images: int = 0
    text_only: int = 0
    multi_turn: int = 0
    several_images: int = 0
    records_per_image: tuple[int, int] = (0, 0)
    repeated_ids: int = 0
    identical: int = 0
    rationales: int = 0
    instructions: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """The whole of a check."""

    benchmark: str
    version: str
    data: str
    options: Mapping[str, Any]
    images: Mapping[str, int]
    tasks: tuple[Facts, ...]
    findings: tuple[Finding, ...]
    pictures: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether there is no fault; remarks do not count."""
        return not any(finding.fault for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """The report as described above."""
        return {
            "benchmark": self.benchmark,
            "version": self.version,
            "data": self.data,
            "ok": self.ok,
            "options": dict(self.options),
            "images": dict(self.images),
            "tasks": [asdict(facts) for facts in self.tasks],
            "findings": [{**asdict(one), "fault": one.fault} for one in self.findings],
            "pictures": {
                kind: {"count": len(files), "files": list(files[:FILES])}
                for kind, files in self.pictures.items()
            },
        }

    def write(self, path: Path) -> None:
        """Write the report as JSON, or as a page with thumbnails where the name ends in `.html`; in one go under its final name.

        Raises:
            RunError: the disk is full.
        """
        with full_disk_named(path.parent):
            if path.suffix != ".html":
                # instructions stand in the order of their counts
                write_json(path, self.to_json(), sort=False)
                return
            from cl_zoo.inspection.page import page

            write_text(path, page(self))

    def show(self, console: Console) -> None:
        """A line per task and split, then faults by kind (the first few of each), then remarks."""
        table = _table(self.tasks)
        console.width = max(console.width, console.measure(table).maximum)  # in a file nothing is cut off
        console.print(table)
        for line in self.lines():
            console.print(printable(line), markup=False, highlight=False, soft_wrap=True)

    def lines(self) -> list[str]:
        """What is shown below the table."""
        groups: dict[str, list[Finding]] = defaultdict(list)
        for finding in self.findings:
            groups[finding.kind if finding.fault else ""].append(finding)
        lines = []
        for kind, words in FAULTS.items():
            found = groups.get(kind, [])
            if found:
                lines.append(f"{counted(sum(one.count for one in found), *words)}:")
                lines += [f"  {one.sentence}" for one in found[:SHOWN]]
                if len(found) > SHOWN:
                    lines.append(f"  … and {len(found) - SHOWN:,} more; --report FILE writes all")
        if groups.get(""):
            lines += ["worth knowing:", *(f"  {one.sentence}" for one in groups[""])]
        faults = sum(one.count for one in self.findings if one.fault)
        return [*lines, f"{self._looked()}: {counted(faults, 'fault', 'faults') if faults else 'no faults'}"]

    def _looked(self) -> str:
        files, memory = self.images["checked"], self.images["memory"]
        parts = [f"{counted(files, 'image', 'images')} looked at"] if files or not memory else []
        if memory:
            done = "read" if self.options["overlap"] == "none" else "compared"
            parts.append(f"{counted(memory, 'image', 'images')} in memory {done}")
        return ", ".join(parts)


def counted(count: int, one: str, many: str) -> str:
    """`1 image`, `2,000 images`."""
    return f"{count:,} {one if count == 1 else many}"


def _table(tasks: Sequence[Facts]) -> Any:
    """Columns that would be the same in every line are left out."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("task", no_wrap=True)
    table.add_column("split", no_wrap=True)
    optional = {
        "text only": [f"{one.text_only:,}" if one.text_only else "" for one in tasks],
        "rationale": [_share(one.rationales, one.samples) for one in tasks],
        "instructions": [str(len(one.instructions)) for one in tasks],
    }
    optional = {title: values for title, values in optional.items() if len(set(values)) > 1}
    for title in ("records", "official", "images", "per image", *optional):
        table.add_column(title, justify="right", no_wrap=True)
    for place, facts in enumerate(tasks):
        low, high = facts.records_per_image
        table.add_row(
            Text(printable(facts.task)),  # a name is no markup
            facts.split,
            f"{facts.records:,}",
            "–" if facts.official is None else f"{facts.official:,}",
            f"{facts.images:,}",
            str(low) if low == high else f"{low}–{high}",
            *(values[place] for values in optional.values()),
        )
    return table


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if part else ""
