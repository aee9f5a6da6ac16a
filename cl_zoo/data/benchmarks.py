"""Benchmarks made from a description: `--benchmark my.yaml`, and `load = Described(HERE / "mine.yaml")` in a package of one's own.

The format of the file is in `cl_zoo.data.schema`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

from cl_zoo.data.contents import content, stamp
from cl_zoo.data.descriptions import read_description
from cl_zoo.data.needs import ANSWER, NEEDS
from cl_zoo.data.roots import Roots
from cl_zoo.data.schema import (
    Description,
    ReferenceSource,
    Source,
    SplitSource,
    TaskSource,
)
from cl_zoo.data.splits import Plan, Split
from cl_zoo.errors import DataError, OptionError, PluginError
from cl_zoo.names import BENCHMARKS, load, split
from cl_zoo.tasks import Benchmark, TaskData

__all__ = ["Described", "Description", "ReferenceSource", "Source", "SplitSource", "TaskSource"]
FEW = 3
"""Places that a message about a missing file names."""


class Described:
    """A benchmark plugin made from a YAML file.

    Args:
        path: the YAML file.
        options: values of the description's options.
        beside: whether files may lie beside the YAML file, so that it needs no `--data`.
    """

    def __init__(self, path: Path, options: Mapping[str, Any] | None = None, *, beside: bool = False) -> None:
        self.path, self.options, self.beside = (
            Path(path),
            {key: str(value) for key, value in (options or {}).items()},
            beside,
        )

    @cached_property
    def description(self) -> Description:
        """What the file says under the chosen options; needs no data.

        Raises:
            DataError: it cannot be read, or a key is missing, unknown or of another type.
            OptionError: an option or its value is unknown.
        """
        return read_description(self.path).chosen(self.options)

    def __call__(self, data: Path | None = None) -> Benchmark:
        """The benchmark on a folder of data; its splits are read when they are first used.

        Raises:
            DataError: no folder is given or none of its files are there; on first use of a split, what is wrong with it.
        """
        bases = self.bases(data)
        files = [resolved(bases, one.files) for one in _sources(self.description)]
        if not any(files):
            looked = ", ".join(self.description.tasks[0].train.files[:FEW])
            raise DataError(
                f"{bases[0]}: holds none of the files of {self.description.name} (looked for {looked} and others); "
                f"{self._remedy()}"
            )
        stamps = tuple(stamp(file) for file in files if file is not None)
        return _benchmark(self, self.path.read_bytes(), tuple(sorted(self.options.items())), bases, stamps)

    def bases(self, data: Path | None) -> tuple[Path, ...]:
        """The folders that names start from.

        Raises:
            DataError: none is given, or it is no folder.
        """
        if data is not None and not os.path.isdir(data):
            raise DataError(f"--data {data}: no such folder; {self._remedy()}")
        bases = ((data,) if data is not None else ()) + ((self.path.parent,) if self.beside else ())
        if not bases:
            raise DataError(f"benchmark {self.description.name} needs its data; {self._remedy()}")
        return bases

    def _remedy(self) -> str:
        about = read_description(self.path)
        remedy = "pass its folder with --data DIR"
        if not (about.sources or any(task.sources for task in about.tasks)):
            return remedy
        return f"{remedy}; 'cl-zoo data fetch {self.path if self.beside else about.name}' gets what the hub holds"

    # Two of the same file and options are the same benchmark, for `_benchmark` below.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Described) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[str, tuple[tuple[str, Any], ...], bool]:
        return str(self.path.resolve()), tuple(sorted(self.options.items())), self.beside


def benchmark_loader(text: str) -> Callable[[Path | None], Any]:
    """What makes a benchmark from a folder of data, for `NAME`, `my.yaml` or either with options: `NAME[option=value]`.

    A described benchmark has its `description` here, which needs no data.

    Raises:
        PluginError: no such benchmark, or it has no options.
        OptionError: an option is not written as `key=value`.
    """
    name, bracket, rest = text.partition("[")
    options = _options(name, rest.removesuffix("]")) if bracket else {}
    if name.endswith((".yaml", ".yml")):
        return Described(Path(name), options, beside=True)
    loader: Callable[[Path | None], Any] = load(BENCHMARKS, name)
    if not options:
        return loader
    if isinstance(loader, Described):
        return Described(loader.path, options, beside=loader.beside)
    raise PluginError(f"benchmark {name}: has no options; write --benchmark {name}")


def load_benchmark(name: str, data: str | None = None) -> Benchmark:
    """A benchmark by name, with the options that stand behind it: `coin[instructions=type2]`.

    Raises:
        PluginError: no such benchmark, or its plugin does not give a `Benchmark`.
        OptionError: it has no such option or value.
        DataError: its description or its data cannot be used.
    """
    return made(benchmark_loader(name), Path(data) if data else None, name)


def made(loader: Callable[[Path | None], Any], data: Path | None, name: str) -> Benchmark:
    """The benchmark that a plugin gives on a folder of data.

    Args:
        loader: as `benchmark_loader` gives it.
        data: the folder of its data.
        name: how the user calls it.

    Raises:
        PluginError: the plugin gives something else.
        DataError: there is no such folder, or nothing of the benchmark in it.
    """
    benchmark = loader(data)
    if not isinstance(benchmark, Benchmark):
        raise PluginError(
            f"benchmark {name}: its plugin gave a {type(benchmark).__name__}, not a cl_zoo.Benchmark"
        )
    return benchmark


def _options(name: str, text: str) -> dict[str, str]:
    """`key=value,key=value`; values are names, so that `no`, `010` and `1.10` stay as they are written."""
    options = {}
    for pair in split(text, ","):
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise OptionError(f"--benchmark {name}, option {pair!r}: write it as key=value")
        options[key.strip()] = value.strip()
    return options


def files_of(about: Description) -> Iterator[tuple[TaskSource, str, Any]]:
    """Each file that a description names: the task, `train`, `validation`, `test` or `references`, and its source."""
    for task in about.tasks:
        for what in ("train", "validation", "test", "references"):
            if (source := getattr(task, what)) is not None:
                yield task, what, source


def resolved(bases: tuple[Path, ...], names: tuple[str, ...]) -> Path | None:
    """The first candidate that is there."""
    paths = (base / PurePosixPath(name) for base in bases for name in names)
    return next((path for path in paths if _there(path)), None)


def _there(path: Path) -> bool:
    """Whether there is such a file, also where nobody but its owner may look: who reads it says so."""
    try:
        path.stat()
    except (OSError, ValueError) as error:
        return isinstance(error, PermissionError)
    return True


def roots(bases: tuple[Path, ...], names: tuple[str, ...]) -> Roots:
    """Where images may lie: the folders of these names, the bases themselves where none is there."""
    return Roots(tuple(base / PurePosixPath(name) for base in bases for name in names), bases, names)


def nowhere(what: str, bases: tuple[Path, ...], names: tuple[str, ...]) -> str:
    """The sentence for a file of which no candidate is there."""
    places = [str(base / PurePosixPath(name)) for base in bases for name in names]
    more = f" and {len(places) - FEW} more" if len(places) > FEW else ""
    return f"{what}: no file; looked for {', '.join(places[:FEW])}{more}; fetch it or pass another --data"


@lru_cache(maxsize=4)
def _benchmark(
    source: Described, text: bytes, options: Any, bases: tuple[Path, ...], stamps: tuple[Any, ...]
) -> Benchmark:
    """Remembered: a process that plans looks a benchmark up several times, and would read its files anew each time."""
    about = source.description
    read = partial(_split, bases=bases, faithful=about.pictures == "faithful", frames=about.frames)
    tasks = tuple(
        TaskData(
            name=task.name,
            letter=task.letter,
            instruction=task.instruction,
            metric=task.metric,
            max_new_tokens=task.max_new_tokens,
            train=read(task, "train"),
            validation=read(task, "validation") if task.validation else (),
            test=read(task, "test"),
        )
        for task in about.tasks
    )
    return Benchmark(
        name=about.name,
        version=about.version,
        tasks=tasks,
        default_methods=about.methods,
        default_backbone=about.backbone,
        data_hash=_hash(text, about, bases),
        recipe=about.recipe,
        orders=about.orders,
    )


def _split(task: TaskSource, which: str, bases: tuple[Path, ...], faithful: bool, frames: int) -> Split:
    source: SplitSource = getattr(task, which)

    def plan() -> Plan:
        references = None
        if which == "test" and task.references is not None:
            file = resolved(bases, task.references.files)
            if file is not None:
                references = (file, task.references.format, task.references.note)
            elif not task.references.optional:
                raise DataError(nowhere(f"task {task.name}, references", bases, task.references.files))
        file = resolved(bases, source.files)
        if file is None:
            raise DataError(nowhere(f"task {task.name}, {which}", bases, source.files))
        return Plan(
            file=file,
            form=source.format,
            roots=roots(bases, source.images or task.images),
            needs=NEEDS.get(task.metric, ANSWER) if which == "test" else ANSWER,
            repeats=source.repeats or which != "test",
            references=references,
            split=source.split or which,
            columns=source.columns,
            turns=source.turns,
            faithful=faithful,
            frames=frames,
            truth=source.truth,
            closing=source.closing,
        )

    return Split(plan)


def _sources(about: Description) -> Iterator[SplitSource | ReferenceSource]:
    for task in about.tasks:
        for one in (task.train, task.validation, task.test, task.references):
            if one is not None:
                yield one


# What the data is


def _hash(text: bytes, about: Description, bases: tuple[Path, ...]) -> str:
    """Content of the description and of all instruction and reference files, whatever they are called."""
    digest = hashlib.sha256(text)
    for one in _sources(about):
        file = resolved(bases, one.files)
        try:
            digest.update(b"-" if file is None else content(*stamp(file)).encode())
        except OSError:  # reading the split says why; other splits can be used
            digest.update(b"?")
    return digest.hexdigest()[:16]
