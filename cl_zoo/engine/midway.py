"""Within a task: checkpoints every so many minutes, and going on from one as if nothing had happened.

A run that is stopped within a task takes up the state after the task before, gets ready for this one by `before_task` and
`rehearse`, which are functions of that state and of their seeds, and only then takes up what the steps have changed: weights,
the optimiser's moments and its place in the schedule, the generators of random numbers, costs, and what plugins and buffers hold
otherwise than when the first step began. So what a method makes for one task alone (a teacher, copies of the weights as they
stood) is made again from what it was made of, and need not be kept.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from cl_zoo.engine.files import LIST, canonical
from cl_zoo.engine.ledger import TaskCost, own_state, peak_memory_mb
from cl_zoo.engine.states import State, fill, read_state_in, split_tensors, steps_in
from cl_zoo.errors import RunError
from cl_zoo.tasks import Task

if TYPE_CHECKING:
    from cl_zoo.engine.learning import Learner
    from cl_zoo.engine.run import Run


class Midway:
    """The checkpoints within one task: of a run that is ready to learn it.

    Args:
        run: whose hooks `before_task` and `rehearse` have just returned; one that was stopped within this task before gets back
            what its plugins held otherwise by then.
    """

    def __init__(self, run: Run, task: Task) -> None:
        self._run, self._task = run, task
        self._begun = {name: digest(one) for name, one in self._changing().items()} if run.every else {}
        self._found, self._place = self._load()
        self._drawn = self._mine("generators")
        if self._found is not None:
            run.plugins.load_state_dict(self._mine("plugins"), some=True)
            run.model.to(run.backbone.device)
        self._last = time.monotonic()

    def go_on(self, learner: Learner) -> int:
        """Let a learner that was just made stand where the checkpoint found it; returns how many steps are done."""
        run = self._run
        if self._found is None:
            return 0
        tensors, _, notes = self._found
        named, own = dict(run.model.named_parameters()), own_state(run.model, run.backbone)
        fill(own, _below("model/", tensors), str(self._place))
        buffers = self._mine("buffers")
        fill({name: own[name] for name in buffers}, buffers, str(self._place))
        for key, value in _below("optimizer/", tensors).items():
            name, _, what = key.rpartition("/")
            # as AdamW itself has them: a count on the CPU, and moments that lie in memory as their weight does
            kept = value.cpu().clone() if what == "step" else torch.empty_like(named[name]).copy_(value)
            learner.optimizer.state[named[name]][what] = kept
        learner.cost = TaskCost(**notes["cost"])
        learner.rates_after(learner.cost.steps)
        self._found = None
        run.plugins.seconds.update(notes["hooks"])
        run.ledger.peak_memory_mb = max(run.ledger.peak_memory_mb, notes["peak_memory_mb"])
        run.report(
            phase="resumed",
            task=self._task.name,
            index=self._task.index,
            step=learner.cost.steps,
            steps=learner.total,
        )
        return learner.cost.steps

    def draw_on(self) -> None:
        """Let random numbers go on behind the last one that was drawn before the checkpoint."""
        set_generators(self._drawn, self._run.backbone.device)

    def due(self) -> bool:
        """Whether it is time for the next checkpoint by the main process's clock; all processes are told the same."""
        run = self._run
        if not run.every:
            return False
        late = run.world.main and time.monotonic() - self._last >= 60 * run.every
        return run.world.sum(float(late)) > 0

    def keep(self, learner: Learner) -> None:
        """Write a checkpoint after a whole step."""
        run, step = self._run, learner.cost.steps
        changing = self._changing()
        changed = {name for name, one in changing.items() if digest(one) != self._begun.get(name)}
        mine = {
            "generators": generators(run.backbone.device),
            "plugins": _below("plugin ", {name: changing[name] for name in changed}),
            "buffers": _below("buffer ", {name: changing[name] for name in changed}),
        }
        told = run.world.gather([send_to_device(mine, "cpu")])
        if run.world.main:
            notes = {
                "cost": asdict(learner.cost),
                "hooks": dict(run.plugins.seconds),
                "peak_memory_mb": max(run.ledger.peak_memory_mb, peak_memory_mb(run.backbone.device)),
                "processes": run.world.size,
            }
            by_process = {str(rank): one for rank, one in enumerate(told)}
            run.folder.save_step(self._task.index, step, self._tensors(learner), by_process, notes)
        run.world.wait()
        self._last = time.monotonic()
        run.report(phase="kept", task=self._task.name, index=self._task.index, step=step, steps=learner.total)

    def _tensors(self, learner: Learner) -> dict[str, Tensor]:
        """What all processes hold alike: the model beside the frozen backbone, and the optimiser's moments, by name."""
        names: dict[Tensor, str] = {weight: name for name, weight in self._run.model.named_parameters()}
        moments = {
            f"optimizer/{names[weight]}/{what}": value
            for weight, held in learner.optimizer.state.items()
            for what, value in held.items()
        }
        own = own_state(self._run.model, self._run.backbone)
        return {**{f"model/{name}": tensor for name, tensor in own.items()}, **moments}

    def _changing(self) -> dict[str, Any]:
        """What code other than the optimiser may change in a step, by what it is: plugins' states and the model's buffers."""
        run = self._run
        own = own_state(run.model, run.backbone)
        buffers = {f"buffer {name}": one for name, one in own.items() if not isinstance(one, nn.Parameter)}
        return {**buffers, **{f"plugin {name}": one for name, one in run.plugins.state_dict().items()}}

    def _mine(self, what: str) -> Any:
        """What the checkpoint holds of this process alone."""
        if self._found is None:
            return {}
        return self._found[1][str(self._run.world.rank)][what]

    def _load(self) -> tuple[State | None, Path | None]:
        """The newest checkpoint within this task that all processes can read, and its folder; a damaged one costs itself only."""
        run = self._run
        here = [place.name for place in steps_in(run.folder.partial, self._task.index)]
        for name in reversed(run.world.gather([here])[0]):
            place, found = run.folder.partial / name, None
            try:
                found, wrong = self._read(place), "another process cannot read it"
            except RunError as error:
                wrong = str(error).partition(";")[0]
            if run.world.sum(float(found is not None)) == run.world.size:
                return found, place
            sentence = f"{wrong}; what was learnt of task {self._task.name} since the checkpoint before it is learnt anew"
            run.report(phase="passed", task=self._task.name, index=self._task.index, message=sentence)
        return None, None

    def _read(self, place: Path) -> State:
        if not (place / LIST).is_file():
            raise RunError(f"checkpoint {place}: {LIST} is missing")
        tensors, told, notes = read_state_in(place, str(self._run.backbone.device))
        if notes["processes"] != self._run.world.size:
            raise RunError(
                f"checkpoint {place}: {notes['processes']} processes wrote it and {self._run.world.size} go on"
            )
        return tensors, told, notes


def digest(value: Any) -> str:
    """SHA-256 of JSON values and tensors, equal for equal bits only."""
    flat: dict[str, Tensor] = {}
    found = hashlib.sha256(canonical(split_tensors(value, "", flat)).encode())
    for tensor in flat.values():
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def generators(device: torch.device) -> dict[str, Any]:
    """Where torch (on the CPU and the device), numpy and Python stand in their random numbers, as JSON."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    version, words, gauss = random.getstate()
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return {
        "torch": {name: state.numpy().tobytes().hex() for name, state in states.items()},
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
        "python": [version, list(words), gauss],
    }


def set_generators(found: Mapping[str, Any], device: torch.device) -> None:
    """Let them all stand there again."""
    states = {
        name: torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
        for name, text in found["torch"].items()
    }
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    kind, keys, *rest = found["numpy"]
    np.random.set_state((kind, np.asarray(keys, dtype=np.uint32), *rest))
    version, words, gauss = found["python"]
    random.setstate((version, tuple(words), gauss))


def _below(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """What stands under a prefix, by the rest of its name."""
    return {name.removeprefix(prefix): one for name, one in values.items() if name.startswith(prefix)}
