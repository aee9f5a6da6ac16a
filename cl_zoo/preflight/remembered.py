"""Tasks in which nothing was found, remembered by what they hold, so that the next run need not look again.

A file `KEY.gz` stands for a task. The key covers what its records say, the checkpoint, template and limits, and the code of the
check; in the file stand the pictures and a hash of their sizes and times: one that was replaced, cut or deleted is looked at
again. A task with faults is not remembered.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import PIL

from cl_zoo import videos
from cl_zoo._version import __version__
from cl_zoo.backbones import backbone as backbones
from cl_zoo.backbones.backbone import Backbone
from cl_zoo.data import needs, places
from cl_zoo.data.splits import Split
from cl_zoo.images import frames, kinds
from cl_zoo.scoring import captions, domains, golds, judges, rules
from cl_zoo.tasks import Sample, TaskData, place_in, source_hash, whole_of
from cl_zoo.videos import file_of

END = "\0"
"""Ends each name in a file, and what stands before the first."""


class Remembered:
    """What is known of one task from earlier runs.

    Args:
        folder: where it stands; `None` remembers nothing.
        backbone: whose tokenizer, image processor, template and limits are asked; one without a revision is not remembered.
    """

    def __init__(self, folder: Path | None, task: TaskData, backbone: Backbone) -> None:
        self._folder, self._task, self._backbone = folder, task, backbone

    @property
    def known(self) -> bool:
        """Whether nothing was found in this very task, and no picture has changed since."""
        if self._file is None:
            return False
        with suppress(OSError, EOFError, ValueError, zlib.error):  # a damaged file knows nothing
            digest, *paths = (
                gzip.decompress(self._file.read_bytes()).decode(errors="surrogateescape").split(END)
            )
            return digest == _stamps(paths)
        return False

    def keep(self, pictures: Iterable[str]) -> None:
        """Remember that nothing was found; where the folder cannot be written, the next run looks again."""
        if self._file is None:
            return
        paths = list(pictures)
        text = END.join([_stamps(paths), *paths])
        draft = self._file.with_name(f"{self._file.name}.{os.getpid()}")
        with suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(gzip.compress(text.encode(errors="surrogateescape"), 1))
            draft.replace(self._file)

    @cached_property
    def _file(self) -> Path | None:
        task, backbone = self._task, self._backbone
        data = [_digest(split) for split in (task.train, task.test)]
        if self._folder is None or None in data or not backbone.revision:
            return None
        limits = (task.metric, task.max_new_tokens, backbone.max_tokens, backbone.positions)
        looks_at = (backbone.name, backbone.revision, backbone.template, backbone.image_aspect)
        about = repr((data, limits, looks_at, PIL.__version__, __version__, _code()))
        return self._folder / f"{hashlib.sha256(about.encode()).hexdigest()[:32]}.gz"


def _digest(split: Sequence[Sample]) -> str | None:
    """Identifies what the records of a split say; `None` where it does not tell."""
    whole = whole_of(split)
    if not isinstance(whole, Split):
        return None
    ends = (len(split), *(place_in(split, place) for place in (0, len(split) - 1)))
    return f"{places.digest(whole)} {ends}"


def _stamps(paths: Iterable[str]) -> str:
    """A hash of the sizes and times of files."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            about = os.stat(file_of(Path(path)))
        except (OSError, ValueError):
            digest.update(b"gone ")
        else:
            digest.update(f"{about.st_size} {about.st_mtime_ns} ".encode())
    return digest.hexdigest()


def _code() -> str:
    """Changed code does not take over what older code found."""
    rooms = (Path(__file__).parent, Path(str(backbones.__file__)).parent)
    files = [file for room in rooms for file in sorted(room.glob("*.py"))]
    return source_hash(
        *files,
        *(
            str(module.__file__)
            for module in (kinds, frames, videos, captions, domains, golds, judges, needs, rules)
        ),
    )
