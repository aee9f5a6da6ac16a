"""Benchmarks made from a description: `--benchmark my.yaml`, and `load = Described(HERE / "mine.yaml")` in a package of one's own.

The format of the file is in `cl_zoo.data.descriptions`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from cl_zoo.choices import split
from cl_zoo.config import parse_pairs
from cl_zoo.data.descriptions import (
    Description,
    ReferenceSource,
    Source,
    SplitSource,
    TaskSource,
    read_description,
)
from cl_zoo.data.splits import NEEDS, Plan, Roots, Split
from cl_zoo.entrypoints import BENCHMARKS, load
from cl_zoo.errors import DataError, PluginError
from cl_zoo.tasks import Benchmark, TaskData

__all__ = ["Described", "Description", "ReferenceSource", "Source", "SplitSource", "TaskSource"]


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
            looked = ", ".join(self.description.tasks[0].train.files[:3])
            raise DataError(
                f"{bases[0]}: holds none of the files of {self.description.name} (looked for {looked} and others); "
                f"{self._remedy()}"
            )
        stamp = tuple(_stamp(file) for file in files if file is not None)
        return _benchmark(self, self.path.read_bytes(), tuple(sorted(self.options.items())), bases, stamp)

    def bases(self, data: Path | None) -> tuple[Path, ...]:
        """The folders that names start from.

        Raises:
            DataError: none is given, or it is no folder.
        """
        if data is not None and not data.is_dir():
            raise DataError(f"--data {data}: no such folder; {self._remedy()}")
        bases = ((data,) if data is not None else ()) + ((self.path.parent,) if self.beside else ())
        if not bases:
            raise DataError(f"benchmark {self.description.name} needs its data; {self._remedy()}")
        return bases

    def _remedy(self) -> str:
        name = str(self.path) if self.beside else read_description(self.path).name
        return f"pass its folder with --data DIR; 'cl-zoo data fetch {name}' gets what the hub holds"

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
    """
    name, bracket, rest = text.partition("[")
    options = (
        parse_pairs(split(rest.removesuffix("]"), ","), f"--benchmark {name}, option") if bracket else {}
    )
    if name.endswith((".yaml", ".yml")):
        return Described(Path(name), options, beside=True)
    loader: Callable[[Path | None], Any] = load(BENCHMARKS, name)
    if not options:
        return loader
    if isinstance(loader, Described):
        return Described(loader.path, options, beside=loader.beside)
    raise PluginError(f"benchmark {name}: has no options; write --benchmark {name}")


def resolved(bases: tuple[Path, ...], names: tuple[str, ...]) -> Path | None:
    """The first candidate that is there."""
    paths = (base / PurePosixPath(name) for base in bases for name in names)
    return next((path for path in paths if path.exists()), None)


def roots(bases: tuple[Path, ...], names: tuple[str, ...]) -> Roots:
    """The folders of images that are there; the bases themselves where none is."""
    folders = tuple(base / PurePosixPath(name) for base in bases for name in names)
    return Roots(tuple(folder for folder in folders if folder.is_dir()) or bases)


@lru_cache(maxsize=4)
def _benchmark(
    source: Described, text: bytes, options: Any, bases: tuple[Path, ...], stamp: tuple[Any, ...]
) -> Benchmark:
    """Remembered: a process that plans looks a benchmark up several times, and would read its files anew each time."""
    about = source.description
    tasks = tuple(
        TaskData(
            name=task.name,
            letter=task.letter,
            instruction=task.instruction,
            metric=task.metric,
            max_new_tokens=task.max_new_tokens,
            train=_split(task, "train", bases),
            validation=_split(task, "validation", bases) if task.validation else (),
            test=_split(task, "test", bases),
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
        description=about,
    )


def _split(task: TaskSource, which: str, bases: tuple[Path, ...]) -> Split:
    source: SplitSource = getattr(task, which)

    def plan() -> Plan:
        references = None
        if which == "test" and task.references is not None:
            file = resolved(bases, task.references.files)
            if file is not None:
                references = (file, task.references.format, task.references.note)
            elif not task.references.optional:
                raise _missing(f"task {task.name}, references", bases, task.references.files)
        file = resolved(bases, source.files)
        if file is None:
            raise _missing(f"task {task.name}, {which}", bases, source.files)
        return Plan(
            file=file,
            form=source.format,
            roots=roots(bases, task.images),
            needs=NEEDS.get(task.metric, "answer") if which == "test" else "answer",
            repeats=source.repeats or which != "test",
            references=references,
            split=source.split or which,
            columns=source.columns,
        )

    return Split(plan)


def _missing(what: str, bases: tuple[Path, ...], names: tuple[str, ...]) -> DataError:
    places = ", ".join(str(base / PurePosixPath(name)) for base in bases for name in names)
    return DataError(f"{what}: no file; looked for {places}; fetch it or pass another --data")


def _sources(about: Description) -> Iterator[SplitSource | ReferenceSource]:
    for task in about.tasks:
        for one in (task.train, task.validation, task.test, task.references):
            if one is not None:
                yield one


# What the data is


def _stamp(path: Path) -> tuple[str, int, int]:
    about = path.stat()
    return str(path), about.st_size, about.st_mtime_ns


def _hash(text: bytes, about: Description, bases: tuple[Path, ...]) -> str:
    """Content of the description and of all instruction and reference files, whatever they are called."""
    digest = hashlib.sha256(text)
    for one in _sources(about):
        file = resolved(bases, one.files)
        digest.update(b"-" if file is None else _content(*_stamp(file)).encode())
    return digest.hexdigest()[:16]


@lru_cache(maxsize=256)
def _content(path: str, size: int, changed: int) -> str:
    """Digest of a file; of a folder, names and sizes of its files and the content of its small JSON files."""
    if Path(path).is_file():
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for file_path in sorted(one for one in Path(path).rglob("*") if one.is_file()):
        digest.update(f"{file_path.relative_to(path).as_posix()} {file_path.stat().st_size}\n".encode())
        if file_path.suffix == ".json":
            digest.update(file_path.read_bytes())
    return digest.hexdigest()
