"""`cl-zoo data check`: every record read, every image looked at, and what is wrong or worth knowing, in one report.

The order of work: what the benchmark names for its runs (`cl_zoo.inspection.settings`), files and records (`cl_zoo.inspection.readings`), image files in parallel (`cl_zoo.preflight.looks`), what records have in common
(`cl_zoo.inspection.survey`). `cl_zoo.inspection.findings` says what the report holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cl_zoo.data.benchmarks import Described, made
from cl_zoo.errors import OptionError, cut, nearest
from cl_zoo.images.kinds import FAITHFUL, KINDS
from cl_zoo.inspection.findings import FAULTS, Facts, Finding, Report, counted
from cl_zoo.inspection.readings import Reading, readings
from cl_zoo.inspection.settings import check_description, refused
from cl_zoo.inspection.survey import Row, double_ids, facts, leaks, oddities, shared_images, similar_images
from cl_zoo.preflight.looks import Look, equal_files, looks
from cl_zoo.videos import called, file_of

OVERLAPS = ("exact", "perceptual", "none")
Watch = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""


def inspect(
    plugin: Any,
    data: Path | None,
    *,
    name: str = "",
    decode: bool = False,
    overlap: str = "exact",
    processes: int = 1,
    watch: Watch = lambda phase, done, total: None,
) -> Report:
    """Check a benchmark's data; the report does not depend on the number of processes.

    Args:
        plugin: the benchmark as it is loaded: a callable that takes the data folder.
        data: the data folder.
        name: how the user calls the benchmark, for the report.
        decode: decode every pixel of every image; finds damage that header and end of a file do not show.
        overlap: how images of training and test are compared: `exact` (content of the files), `perceptual` (also by
            what they look like, which decodes every image), `none`.
        processes: for image files.
        watch: told how far the check is.

    Raises:
        OptionError: there is no such overlap.
        PluginError: the plugin gives no benchmark.
        DataError: there is no such data folder, or nothing of the benchmark in it, or its YAML file cannot be used.
        RunError: a process died.
    """
    if overlap not in OVERLAPS:
        raise OptionError(f"--overlap {overlap}{nearest(overlap, OVERLAPS)}")
    if isinstance(plugin, Described):
        check_description(plugin.path)
    benchmark = made(plugin, data, name)
    read: list[Reading] = []
    jobs = readings(plugin, benchmark, data, outline=overlap == "perceptual")
    for job in jobs:
        watch("reading files", len(read), len(jobs))
        read.append(job())
    users = _users(read)
    seen = _looked_at(list(users), decode, overlap, processes, watch)
    same = {} if overlap == "none" else equal_files(list(users), list(seen.values()), processes)
    tables = [_facts(reading, same) for reading in read]
    findings = [*refused(benchmark), *_findings(read, tables, users, seen, same, overlap)]
    looked_at = [*_of_files(users, seen), *_in_memory(read)]
    findings += _odd_pictures(looked_at, plugin)
    return Report(
        benchmark=name or benchmark.name,
        version=benchmark.version,
        data=str(data or ""),
        options={"decode": decode, "overlap": overlap},
        images=_images_of(read, seen),
        tasks=tuple(tables),
        findings=tuple(sorted(findings, key=_order)),
        pictures=_names(looked_at),
    )


def _looked_at(paths: list[str], decode: bool, overlap: str, processes: int, watch: Watch) -> dict[str, Look]:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        watch("looking at images", done, len(paths))

    found = looks(paths, decode=decode, outline=overlap == "perceptual", processes=processes, advance=advance)
    return dict(zip(paths, found, strict=True))


def _findings(
    read: Sequence[Reading],
    tables: Sequence[Facts],
    users: Mapping[str, Sequence[Row]],
    seen: Mapping[str, Look],
    same: Mapping[str, str],
    overlap: str,
) -> Iterator[Finding]:
    for reading in read:
        yield from reading.findings
        if not reading.repeats:
            yield from double_ids(reading.rows)
    yield from _images(users, seen)
    if overlap != "none":
        rows = [row for reading in read for row in reading.rows]
        yield from leaks(rows, same)
        yield from shared_images(rows, same)
        outlines = {path: look.outline for path, look in seen.items() if look.outline is not None}
        for reading in read:
            outlines |= reading.outlines
        yield from similar_images(rows, same, outlines)
    for reading, table in zip(read, tables, strict=True):
        told = any(one.kind == "turns" for one in reading.findings)  # says more than that there are some
        yield from (one for one in oddities(table) if not (told and one.kind == "multi-turn"))


def _users(read: Sequence[Reading]) -> dict[str, list[Row]]:
    """Image files with the samples that name them, in the order of their first use."""
    users: dict[str, list[Row]] = {}
    for reading in read:
        for row in reading.rows:
            for image in row.files:
                users.setdefault(image, []).append(row)
    return users


def _images_of(read: Sequence[Reading], seen: Mapping[str, Look]) -> dict[str, int]:
    """Files, their bytes, and different images that are no files."""
    rows = (row for reading in read for row in reading.rows)
    memory = {image for row in rows for image in row.inside}
    sizes = {file_of(Path(path)): look.size for path, look in seen.items()}
    return {"checked": len(seen), "bytes": sum(sizes.values()), "memory": len(memory)}


def _images(users: Mapping[str, Sequence[Row]], seen: Mapping[str, Look]) -> Iterator[Finding]:
    """A finding for every image or video that cannot be used, at the first record that names it."""
    told = set[Path]()
    for path, look in seen.items():
        if look.fault and (file := file_of(Path(path))) not in told:
            told.add(file)
            row, others = users[path][0], len(users[path]) - 1
            more = f" ({counted(others, 'more record names', 'more records name')} it)" if others else ""
            sentence = f"{row.place}: {cut(called(Path(path)))} {look.words}{more}; {look.remedy}"
            yield Finding(look.fault, sentence, row.task, row.split, row.file, row.record, row.id or None)


class Picture(NamedTuple):
    """A picture that was looked at: its name for people, its kinds, and the first record that has it."""

    name: str
    kinds: tuple[str, ...]
    row: Row


def _of_files(users: Mapping[str, Sequence[Row]], seen: Mapping[str, Look]) -> Iterator[Picture]:
    return (Picture(path, look.kinds, users[path][0]) for path, look in seen.items())


def _in_memory(read: Sequence[Reading]) -> Iterator[Picture]:
    """Each record has its own: those that turn all white would be one by what they look like."""
    for reading in read:
        firsts = {
            row.record: row for row in reversed(reading.rows)
        }  # questions of one record share its pictures
        for record in sorted(firsts):
            for found in reading.kinds.get(record, ()):
                yield Picture(firsts[record].place, found, firsts[record])


def _by_kind(looked_at: Sequence[Picture]) -> dict[str, list[Picture]]:
    """Pictures of each kind that is not ordinary, kinds without any left out."""
    found = {kind: [one for one in looked_at if kind in one.kinds] for kind in KINDS}
    return {kind: pictures for kind, pictures in found.items() if pictures}


def _names(looked_at: Sequence[Picture]) -> dict[str, list[str]]:
    return {kind: [one.name for one in found] for kind, found in _by_kind(looked_at).items()}


def _odd_pictures(looked_at: Sequence[Picture], plugin: Any) -> Iterator[Finding]:
    """A remark for every kind of picture that may become another one as RGB."""
    faithful = isinstance(plugin, Described) and plugin.description.pictures == "faithful"
    for kind, pictures in _by_kind(looked_at).items():
        first = pictures[0]
        row = first.row
        what = KINDS[kind]
        if kind in FAITHFUL:
            what = (
                f"{what.partition(',')[0]}, and {'is' if len(pictures) == 1 else 'are'} read faithfully"
                if faithful
                else f"{what} (pictures: faithful in the description puts that right)"
            )
        has = "images has" if len(pictures) == 1 else "images have"
        place = row.place if first.name == row.place else f"{cut(first.name)}, {row.place}"
        sentence = f"{len(pictures):,} of {len(looked_at):,} {has} {what}; first {place}"
        yield Finding(
            kind, sentence, row.task, row.split, row.file, row.record, row.id or None, len(pictures)
        )


def _facts(reading: Reading, same: Mapping[str, str]) -> Facts:
    where = (reading.task, reading.split, reading.file)
    return facts(Facts(*where, reading.records, reading.official, reading.instruction), reading.rows, same)


def _order(finding: Finding) -> int:
    return list(FAULTS).index(finding.kind) if finding.fault else len(FAULTS)
