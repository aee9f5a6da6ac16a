"""Folders that the pictures of a split may lie in, and where links may lead."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from cl_zoo.data.faults import leaving
from cl_zoo.data.records import image_path
from cl_zoo.videos import frame_of


@dataclass(frozen=True)
class Roots:
    """Where the images of a split may lie: in the first folder that has the first two folders of a path, or the file
    where the path is a name alone. What is found is remembered; a folder may still come while a process runs.

    Attributes:
        folders: candidates.
        bases: the data folders; in place of `folders` where none of them is there.
        names: what the folders are called from the data folders on, wherever these lie.

    Links may lead from one of all these into another one, and in a snapshot of the hub's cache to the files of its repository.
    """

    folders: tuple[Path, ...]
    bases: tuple[Path, ...] = ()
    names: tuple[str, ...] = ()
    _found: dict[PurePosixPath, Path] = field(default_factory=dict, compare=False, repr=False)

    def path(self, text: str) -> Path:
        """The path of an image or of a frame of a video, whether or not there is such a file.

        Raises:
            DataError: it leaves the data folder.
        """
        name = PurePosixPath(text)
        if (frame := frame_of(name)) is not None:
            return self.path(str(frame.video)) / name.name
        top = PurePosixPath(*name.parent.parts[:2])
        if top in self._found:
            return image_path(self._found[top], text, self._trusted)
        there = [folder for folder in self.folders if os.path.isdir(folder)] or self.bases or self.folders
        wanted, has = (top, os.path.isdir) if top.parts else (name, os.path.isfile)
        root = next((folder for folder in there if not leaving(name) and has(folder / wanted)), None)
        if root is not None and top.parts:
            self._found[top] = root
        return image_path(root or there[0], text, self._trusted)

    @cached_property
    def _trusted(self) -> tuple[Path, ...]:
        return (*self.folders, *self.bases, *filter(None, map(_blobs, self.bases)))


def _blobs(base: Path) -> Path | None:
    """Where the hub's cache keeps the files that the links of a snapshot lead to; `None` for any other folder."""
    for folder in (one := Path(os.path.abspath(base)), *one.parents):
        blobs = folder.parent.parent / "blobs"
        if folder.parent.name == "snapshots" and os.path.isdir(blobs):
            return blobs
    return None
