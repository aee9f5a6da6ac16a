"""A training that several runs share: what was learnt after each task, kept until all of them have answered.

Runs that differ only in what their answers read learn the same, so one learns and the others take its states over. Each state
is that of a task just learnt, before anything was asked, with what learning it cost. Nobody depends on it: a run that finds no
state, or one that it cannot read, learns the task itself and ends with the same bits.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_zoo.engine.states import State, read_state_in, write_state
from cl_zoo.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor


class Trained:
    """The states of one training, by the number of tasks learnt.

    Args:
        folder: of this training alone, named by what decides it.
        keep: whether what is learnt is kept here; otherwise it is only taken.
    """

    def __init__(self, folder: Path, *, keep: bool) -> None:
        self.folder, self.keep = folder, keep

    def whole(self, tasks: int) -> bool:
        """Whether the state after every task is here."""
        return all(self._state(done).is_dir() for done in range(1, tasks + 1))

    def load(self, done: int, device: str = "cpu") -> State | None:
        """The state after `done` tasks, `None` where there is none that can be read."""
        try:
            return read_state_in(self._state(done), device)
        except RunError:
            return None

    def save(
        self, done: int, tensors: Mapping[str, Tensor], plugins: Mapping[str, Any], notes: Mapping[str, Any]
    ) -> None:
        """Keep the state after `done` tasks, unless another run was faster."""
        from safetensors import SafetensorError

        target, draft = self._state(done), self.folder / f"draft-{done}-{os.getpid()}"
        draft.mkdir(parents=True, exist_ok=True)
        try:
            write_state(draft, done, tensors, plugins, notes)
            draft.rename(target)
        except (OSError, SafetensorError):
            # Another comparison may have kept the same state, or have ended and deleted the folder.
            if draft.is_dir() and not target.is_dir():
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _state(self, done: int) -> Path:
        return self.folder / f"state-{done}"
