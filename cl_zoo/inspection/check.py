"""`cl-zoo data check`: every record read, every image looked at, and what is wrong or worth knowing, in one report.

The order of work: what the benchmark names for its runs (`cl_zoo.inspection.settings`), files and records (`cl_zoo.inspection.readings`), image files in parallel (`cl_zoo.images.looks`), what records have in common
(`cl_zoo.inspection.survey`). `cl_zoo.inspection.findings` says what the report holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cl_zoo.data.benchmarks import Described, made
from cl_zoo.errors import OptionError, cut, nearest
from cl_zoo.images.kinds import FAITHFUL, KINDS
from cl_zoo.images.looks import Look, equal_files, looks
from cl_zoo.inspection.findings import FAULTS, Facts, Finding, Report, counted
from cl_zoo.inspection.readings import Reading, readings
from cl_zoo.inspection.settings import check_description, refused
from cl_zoo.inspection.survey import Row, double_ids, facts, leaks, oddities, shared_images, similar_images

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
    findings += _odd_pictures(users, seen, plugin)
    return Report(
        benchmark=name or benchmark.name,
        version=benchmark.version,
        data=str(data or ""),
        options={"decode": decode, "overlap": overlap},
        images={
            "checked": len(seen),
            "bytes": sum(look.size for look in seen.values()),
            "memory": len(_in_memory(read)),
        },
        tasks=tuple(tables),
        findings=tuple(sorted(findings, key=_order)),
        pictures=_by_kind(seen),
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
    for table in tables:
        yield from oddities(table)


def _users(read: Sequence[Reading]) -> dict[str, list[Row]]:
    """Image files with the samples that name them, in the order of their first use."""
    users: dict[str, list[Row]] = {}
    for reading in read:
        for row in reading.rows:
            for image in row.files:
                users.setdefault(image, []).append(row)
    return users


def _in_memory(read: Sequence[Reading]) -> set[str]:
    rows = (row for reading in read for row in reading.rows)
    return {image for row in rows for image in row.images if image not in row.files}


def _images(users: Mapping[str, Sequence[Row]], seen: Mapping[str, Look]) -> Iterator[Finding]:
    """A finding for every image that cannot be used, at the first record that names it."""
    for path, look in seen.items():
        if look.fault:
            row, others = users[path][0], len(users[path]) - 1
            more = f" ({counted(others, 'more record names', 'more records name')} it)" if others else ""
            sentence = f"{row.place}: image {cut(path)} {look.words}{more}; {look.remedy}"
            yield Finding(look.fault, sentence, row.task, row.split, row.file, row.record, row.id or None)


def _by_kind(seen: Mapping[str, Look]) -> dict[str, list[str]]:
    """Files of each kind of picture that is not ordinary, kinds without any left out."""
    found = {kind: [path for path, look in seen.items() if kind in look.kinds] for kind in KINDS}
    return {kind: paths for kind, paths in found.items() if paths}


def _odd_pictures(
    users: Mapping[str, Sequence[Row]], seen: Mapping[str, Look], plugin: Any
) -> Iterator[Finding]:
    """A remark for every kind of picture that may become another one as RGB."""
    faithful = isinstance(plugin, Described) and plugin.description.pictures == "faithful"
    for kind, paths in _by_kind(seen).items():
        row = users[paths[0]][0]
        what = KINDS[kind]
        if kind in FAITHFUL:
            what = (
                f"{what.partition(',')[0]}, and are read faithfully"
                if faithful
                else f"{what} (pictures: faithful in the description puts that right)"
            )
        has = "images has" if len(paths) == 1 else "images have"
        sentence = f"{len(paths):,} of {len(seen):,} {has} {what}; first {cut(paths[0])}, {row.place}"
        yield Finding(kind, sentence, row.task, row.split, row.file, row.record, row.id or None, len(paths))


def _facts(reading: Reading, same: Mapping[str, str]) -> Facts:
    where = (reading.task, reading.split, reading.file)
    return facts(Facts(*where, reading.records, reading.official, reading.instruction), reading.rows, same)


def _order(finding: Finding) -> int:
    return list(FAULTS).index(finding.kind) if finding.fault else len(FAULTS)
