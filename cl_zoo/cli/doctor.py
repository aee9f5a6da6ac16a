"""Whether this machine can do the work: one line for each thing that a run needs.

`cl-zoo doctor` looks and changes nothing. A fault stops runs; a warning stops some of them, or makes them slow.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from cl_zoo.cli.catalogue import aligned, all_importable, entries
from cl_zoo.data.benchmarks import Described, benchmark_loader, files_of, made, resolved
from cl_zoo.errors import ClZooError, OptionError, first_line
from cl_zoo.machine import cores, memory_bytes
from cl_zoo.scoring.captions import JAVA_REMEDY, find_java, java_version

Level = Literal["ok", "warning", "fault"]
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it is, and what to do where it is not as it should be."""

    what: str
    level: Level
    says: str
    remedy: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def examine(
    *, out: str = "runs", cache: str | None = None, benchmark: str | None = None, data: str | None = None
) -> list[Finding]:
    """Look at everything that a run needs.

    Args:
        out, cache: folders of runs and of image features, as `cl-zoo run` takes them.
        benchmark, data: looks for this benchmark's files in that folder too.

    Raises:
        OptionError: data without a benchmark.
        DataError, PluginError: the benchmark or the folder of its data cannot be used at all.
    """
    if data is not None and benchmark is None:
        raise OptionError(f"--data {data}: of which benchmark? name it with --benchmark")
    files = list(_data(benchmark, data)) if benchmark is not None else []  # first, as it may refuse
    looks: list[Callable[[], Iterator[Finding]]] = [
        _python,
        _packages,
        _four_bit,
        _accelerators,
        _machine,
        lambda: _disk(out, cache),
        _java,
        _plugins,
        _hub,
    ]
    return [finding for look in looks for finding in look()] + files


def text(found: Sequence[Finding]) -> str:
    """The findings as aligned lines, and a last one with the sum."""
    rows = [(one.level, one.what, f"{one.says}; {one.remedy}" if one.remedy else one.says) for one in found]
    count = {level: sum(one.level == level for one in found) for level in ("warning", "fault")}
    verdict = "something is broken" if count["fault"] else "ready"
    return f"{aligned(rows)}\n\n{verdict}: {_many(count['fault'], 'fault')}, {_many(count['warning'], 'warning')}"


def working(found: Sequence[Finding]) -> bool:
    """Whether nothing is broken."""
    return all(one.level != "fault" for one in found)


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


# Software


def _python() -> Iterator[Finding]:
    from packaging.specifiers import SpecifierSet

    wanted = metadata.metadata("cl-zoo")["Requires-Python"] or ""
    here = platform.python_version()
    if here in SpecifierSet(wanted, prereleases=True):
        yield Finding("Python", "ok", f"{here} on {platform.system()} {platform.machine()}")
    else:
        yield Finding("Python", "fault", f"{here}, wanted {wanted}", "make an environment with such a Python")


def _packages() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    wanted = [Requirement(line) for line in metadata.requires("cl-zoo") or ()]
    needed = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    unmet = 0
    for one in needed:
        try:
            here = metadata.version(one.name)
        except metadata.PackageNotFoundError:
            here = ""
        if not here or not one.specifier.contains(here, prereleases=True):
            unmet += 1
            what = f"{here}, wanted {one.specifier}" if here else f"not installed, wanted {one.specifier}"
            yield Finding(one.name, "fault", what, f"run pip install '{one.name}{one.specifier}'")
    shown = ", ".join(
        f"{name} {_version(name)}" for name in ("torch", "transformers", "peft", "open_clip_torch")
    )
    if not unmet:
        yield Finding("packages", "ok", f"all {len(needed)} as required: {shown}")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def _four_bit() -> Iterator[Finding]:
    """What a recipe with quantization=nf4 takes, and no other."""
    from cl_zoo.runs.prepared import FOUR_BIT_REMEDY, four_bit_missing

    says = four_bit_missing()
    if says:
        yield Finding(
            "4-bit base", "ok", f"quantization=nf4 takes {says}", f"if you want it, {FOUR_BIT_REMEDY}"
        )
    else:
        yield Finding("4-bit base", "ok", f"quantization=nf4 has bitsandbytes {_version('bitsandbytes')}")


def _java() -> Iterator[Finding]:
    try:
        java = find_java()
        said = java_version(java)
    except ClZooError as error:
        yield Finding("Java", "fault", f"caption scores need it: {first_line(error)}", JAVA_REMEDY)
    else:
        yield Finding("Java", "ok", f"{said or 'runs'}, {java}")


def _plugins() -> Iterator[Finding]:
    everything = entries(check=not all_importable())
    broken = [one for one in everything if one.fault]
    for one in broken:
        yield Finding(f"{one.kind} {one.name}", "fault", one.fault, f"repair or uninstall {one.distribution}")
    if not broken:
        kinds = [one.kind for one in everything]
        counts = ", ".join(_many(kinds.count(kind), kind) for kind in dict.fromkeys(kinds))
        yield Finding("plugins", "ok", f"{counts}, each imported")


def _hub() -> Iterator[Finding]:
    flags = [name for name in OFFLINE if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")]
    if flags:
        says = f"{', '.join(flags)} set: nothing is fetched from the hub"
        yield Finding("hub", "warning", says, "unset it where weights or data are still to come")
    else:
        yield Finding("hub", "ok", "may be asked for weights and data; no flag forbids it")


# Hardware


def _accelerators() -> Iterator[Finding]:
    try:
        import torch

        devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else range(0)
    except Exception as error:  # a broken installation of torch raises whatever its libraries do
        yield Finding("GPU", "fault", f"torch cannot be imported: {first_line(error)}", "install torch again")
        return
    for place in devices:
        about = torch.cuda.get_device_properties(place)
        free, total = torch.cuda.mem_get_info(place)
        with torch.cuda.device(place):
            half = torch.cuda.is_bf16_supported(including_emulation=False)
        says = (
            f"{about.name}, {free / GIB:.0f} of {total / GIB:.0f} GiB free, {'bf16' if half else 'no bf16'}"
        )
        remedy = "" if half else "train with --set precision=fp32, as bf16 is slow there"
        yield Finding(f"GPU {place}", "ok" if half else "warning", says, remedy)
    if not devices:
        built = (
            f"torch is built for CUDA {torch.version.cuda}"
            if torch.version.cuda
            else "torch is built without CUDA"
        )
        yield Finding(
            "GPU", "warning", f"none ({built})", "mini runs on the CPU; models of published size need a GPU"
        )


def _machine() -> Iterator[Finding]:
    memory = memory_bytes()
    says = f"{cores()} cores, {memory / GIB:.1f} GiB of memory"
    if memory < 4 * GIB:  # two workers on mini and METEOR's 2 GiB
        yield Finding("machine", "warning", says, "run one job at a time with --jobs 1")
    else:
        yield Finding("machine", "ok", says)


def _disk(out: str, cache: str | None) -> Iterator[Finding]:
    from huggingface_hub.constants import HF_HUB_CACHE

    places = [
        ("runs", Path(out), 5, "--out"),
        ("hub cache", Path(HF_HUB_CACHE), 20, "HF_HOME"),
        ("temporary files", Path(tempfile.gettempdir()), 1, "TMPDIR"),
    ]
    if cache is not None:
        places.append(("features", Path(cache), 50, "--cache"))
    for what, folder, wanted, setting in places:
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(there).free / GIB
        says = f"{free:.1f} GiB free for {folder}"
        if not there.is_dir() or not os.access(there, os.W_OK):
            level: Level = "warning" if what == "hub cache" else "fault"
            yield Finding(what, level, f"{there} cannot be written", f"name another folder with {setting}")
        elif free < wanted:
            remedy = f"free some, or name another disk with {setting} ({wanted} GiB are comfortable)"
            yield Finding(what, "warning" if free > 0.1 else "fault", says, remedy)
        else:
            yield Finding(what, "ok", says)


# Data


def _data(benchmark: str, data: str | None) -> Iterator[Finding]:
    loader, folder = benchmark_loader(benchmark), Path(data) if data else None
    if not isinstance(loader, Described):
        tasks = made(loader, folder, benchmark).tasks
        yield Finding(
            "data", "ok", f"{benchmark}: {_many(len(tasks), 'task')}, made or read by the benchmark"
        )
        return
    about, bases = loader.description, loader.bases(folder)
    complete = True
    for task, what, source in files_of(about):
        if resolved(bases, source.files) is not None:
            continue
        optional = what == "references" and source.optional
        complete = complete and optional
        says = f"no {what} file; looked for {', '.join(source.files[:3])} in {bases[0]}"
        remedy = f"cl-zoo data fetch {benchmark} says where it is from"
        yield Finding(f"task {task.name}", "warning" if optional else "fault", says, remedy)
    if complete:
        says = f"{benchmark}: the files of {_many(len(about.tasks), 'task')} are there"
        yield Finding(
            "data",
            "ok",
            says,
            f"cl-zoo data check {benchmark} --data {bases[0]} opens every record and image",
        )
