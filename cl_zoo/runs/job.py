"""A job: one run as a user describes it.

`Job` holds names and numbers only, so that it can be sent to a worker process as JSON. `cl_zoo.runs.prepared` looks everything
up, `cl_zoo.runs.execute` trains and answers, `cl_zoo.runs.manifest` scores and writes the manifest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from cl_zoo.errors import OptionError, nearest
from cl_zoo.names import Choice

CELLS = ("lower", "last", "full")
KEPT_STATES = ("last", "all")

SHARDINGS = ("none", "fsdp")
DEEPSPEED = ("deepspeed", "zero1", "zero2", "zero3")
COMPILE = ("auto", "on", "off")

EVERY = 30.0
"""Minutes between checkpoints within a task, where nothing else is asked for."""


@dataclass(frozen=True)
class Job:
    """One run as a user describes it.

    Attributes:
        choices: the stack: method, what runs with it, probes.
        benchmark, backbone: installed names; a backbone may be `NAME:PATH` or the path of a checkpoint.
        features: feature encoder in place of the backbone's own.
        template: chat template in place of the backbone's own, by name or as a text with `{prompt}`.
        image_aspect: how an image becomes what the vision tower takes, in place of the backbone's own way.
        cache: folder where image features are kept for all runs; `None` keeps them in memory only.
        cache_limit: GiB that this folder may take; `None` leaves the last GiB of the disk.
        data: folder of the benchmark's data.
        order: letters or names, `None` for the default order.
        recipe: recipe values by dotted key, over the benchmark's.
        limit: samples per split, `None` for all.
        cells: which cells of the matrix are measured.
        out: folder of all runs.
        preflight: whether everything that a run would meet is looked for before its first step.
        keep_states: which states a finished run keeps: the `last`, from which its model is built again, or `all`, from which
            runs with other later tasks go on as well.
        checkpoint_every: minutes between the checkpoints within a task, 0 for none; they change no bit of the result.
        sharding: `fsdp` divides the frozen decoder layers among the processes of the run, see `cl_zoo.sharding`; `none` leaves
            them whole on each. It changes where weights lie and no result.
        compile: whether decoder layers are compiled while a task is learnt, see `cl_zoo.engine.compiled`: `on`, `off`, or `auto`, on an
            accelerator for tasks that are long enough. It changes how numbers are rounded.

    Raises:
        OptionError: there are no such cells, states, sharding or compile, divided layers are to be compiled, a folder has no name, or
            minutes are no number from 0 on.
    """

    choices: tuple[Choice, ...]
    benchmark: str
    backbone: str | None = None
    features: str | None = None
    template: str | None = None
    image_aspect: str | None = None
    cache: str | None = None
    cache_limit: float | None = None
    data: str | None = None
    order: str | None = None
    seed: int = 0
    recipe: Mapping[str, Any] = field(default_factory=dict)
    limit: int | None = None
    cells: str = "lower"
    device: str = "auto"
    out: str = "runs"
    preflight: bool = True
    keep_states: str = "last"
    checkpoint_every: float = EVERY
    sharding: str = "none"
    compile: str = "auto"

    def __post_init__(self) -> None:
        if self.cells not in CELLS:
            raise OptionError(f"--cells {self.cells}{nearest(self.cells, CELLS)}")
        if self.keep_states not in KEPT_STATES:
            raise OptionError(f"--keep-states {self.keep_states}{nearest(self.keep_states, KEPT_STATES)}")
        if self.sharding in DEEPSPEED:
            raise OptionError(
                f"--sharding {self.sharding}: DeepSpeed is not built in; only adapters have gradients and moments here, and the frozen base is divided by --sharding fsdp"
            )
        if self.sharding not in SHARDINGS:
            raise OptionError(f"--sharding {self.sharding}{nearest(self.sharding, SHARDINGS)}")
        if self.compile not in COMPILE:
            raise OptionError(f"--compile {self.compile}{nearest(self.compile, COMPILE)}")
        if self.compile == "on" and self.sharding != "none":
            raise OptionError(
                f"--compile on: the processes of --sharding {self.sharding} meet within each layer, which cannot be compiled; leave out one of the two"
            )
        if not 0 <= self.checkpoint_every < math.inf:
            raise OptionError(
                f"--checkpoint-every {self.checkpoint_every:g}: is no time; give minutes, or 0 for no checkpoint within a task"
            )
        if self.cache_limit is not None and not 0 < self.cache_limit < math.inf:
            raise OptionError(
                f"--cache-limit {self.cache_limit:g}: is no size; give GiB, or leave it out to use the whole disk but its last GiB"
            )
        if self.cache_limit is not None and self.cache is None:
            raise OptionError(
                f"--cache-limit {self.cache_limit:g}: there is no cache to limit; name its folder with --cache DIR"
            )
        for name in ("out", "cache", "data", "features", "backbone"):
            value = getattr(self, name)
            if value is not None and not str(value).strip():
                raise OptionError(f"--{name} {value!r}: names nothing; name a folder, or leave the flag out")

    @property
    def label(self) -> str:
        """The stack without its probes: `moelora+ewc[strength=3]`."""
        return "+".join(choice.label for choice in self.choices if not choice.probe)

    @property
    def keeps_all(self) -> bool:
        """Whether all states stay."""
        return self.keep_states == "all"

    def compiles(self, device: str) -> str:
        """`compile` on a kind of device: `auto` is `off` on a CPU, and where processes share the layers."""
        if self.compile == "auto" and (device == "cpu" or self.sharding != "none"):
            return "off"
        return self.compile

    @property
    def names(self) -> tuple[str, ...]:
        """What was named by whoever asked for the run, and is trusted therefore."""
        return (*(choice.name for choice in self.choices), *([self.backbone] if self.backbone else []))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Job:
        return cls(**{**values, "choices": tuple(Choice(**choice) for choice in values["choices"])})
