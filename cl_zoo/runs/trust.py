"""Code that a run's folder names: decided before anything is imported.

A folder may come from anybody, and its manifest can name any file. An installed plugin is imported when its source is the one
the run was made with. A file or a module that is named with its path is imported only when whoever asks for the run's model has
named that file too. Modules of this package are the program itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cl_zoo.errors import PluginError
from cl_zoo.names import BACKBONES, METHODS, find, source_file
from cl_zoo.runs.job import Job
from cl_zoo.tasks import source_hash

PACKAGE = Path(__file__).parents[1]


def check_code(folder: Path, manifest: Mapping[str, Any], job: Job, trusted: Sequence[str | Path]) -> None:
    """Whether the plugins that a run names may be imported.

    Args:
        trusted: files that may run, and installed plugins that may be another source than the run's, by name.

    Raises:
        PluginError: one may not, or is not the source that the run was made with.
    """
    sources = manifest["identity"].get("sources", {})
    names = {str(one) for one in trusted}
    files = {Path(one).resolve() for one in trusted}
    others = []
    for name in (choice.name for choice in job.choices):
        if ":" in name:
            file = _trusted_file(folder, name, names, files)
            if source_hash(file) not in sources.values():
                raise PluginError(
                    f"run {folder} was made with another source of {name} than {file} holds now; put the run's own back, or run again"
                )
        elif name not in names and not _vouched(find(METHODS, name).value, sources):
            others.append(name)
    if others:
        trust = " ".join(f"--trust-plugin {name}" for name in others)
        raise PluginError(
            f"run {folder} was made with another source of {' and '.join(others)} than is installed; install cl-zoo "
            f"{manifest['identity'].get('version')} or the plugin's version of then, or pass {trust} to answer with what is installed"
        )


def check_backbone(folder: Path, name: str, trusted: Sequence[str | Path]) -> None:
    """Whether the loader that a run names may be imported; an installed one may.

    Raises:
        PluginError: it may not.
    """
    if ":" in name:
        _trusted_file(folder, name, {str(one) for one in trusted}, {Path(one).resolve() for one in trusted})
    else:
        find(BACKBONES, name)


def _trusted_file(folder: Path, name: str, names: set[str], files: set[Path]) -> Path:
    """The file of `file.py:Name` or `package.module:Name`, where it is trusted."""
    module = name.rpartition(":")[0]
    file = Path(module) if module.endswith(".py") else source_file(module)
    own = file is not None and not module.endswith(".py") and file.is_relative_to(PACKAGE)
    if file is not None and (own or name in names or file.resolve() in files) and file.is_file():
        return file
    shown = module if file is None else file
    there = "" if file is not None and file.is_file() else ", which is not there"
    raise PluginError(
        f"run {folder} names code of its own, {name}{there}; a run's folder never runs code by itself: read {shown}, and pass --trust-plugin {shown} if you trust it"
    )


def _vouched(value: str, sources: Mapping[str, str]) -> bool:
    """Whether an entry point's module is the source that the run was made with."""
    return any(file is not None and source_hash(file) == digest for file, digest in _sources(value, sources))


def _sources(value: str, sources: Mapping[str, str]) -> Iterator[tuple[Path | None, str]]:
    """Today's file and the hash of then, for each class of the run that an entry point may stand for."""
    module, _, attribute = value.partition(":")
    for path, digest in sources.items():
        where, _, what = path.rpartition(":")
        if where == module or what == attribute:
            yield source_file(where), digest
