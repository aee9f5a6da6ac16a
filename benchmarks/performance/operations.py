"""How many operations one optimiser step of a method launches, by what launches them.

    python benchmarks/performance/operations.py [--methods a,b] [--shapes testing|mini] --json FILE

An accelerator that waits for its processor takes as long as the processor needs to launch what a step consists of, so their number, and not
the size of any, decides how long a step of adapters on a frozen model takes. It is the same on every machine, and counted here on the CPU in seconds.

An operation is a call into torch that computes or copies: views, new empty tensors and readings of a shape are none. One on a list of
tensors (`_foreach_…`) counts as often as the accelerator's kernels for lists have to be launched: once for every `LIST` tensors.
The optimiser runs as it does on an accelerator, on lists. A step is counted in the second task and after one step of it, so that momenta are there,
and by phase: `feeding` makes the batch, `forward` is the model's and the task's own loss, `hooks` all that the plugins' terms and hooks of steps compute,
`backward` the backward pass, `optimiser` clipping and AdamW. `teacher` is a second forward of the whole model inside a hook (LwF, …), which no
packing makes smaller; `ratio` counts everything against `finetune`, `besides` leaves feeding and teachers out on both sides.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from contenders import Bare, Engine, chosen_methods
from ground import make_ground
from results import carried_out, given, machine, options, versions
from torch.utils._python_dispatch import TorchDispatchMode

from cl_zoo.processes import World

PHASES = ("feeding", "forward", "hooks", "teacher", "backward", "optimiser")
LIST = 30
"""Tensors of a list that one launch of torch's multi-tensor kernels takes: 110 of one list, 36 of four, 30 of five."""
NOTHING = (
    "empty",
    "new_empty",
    "detach",
    "lift",
    "_unsafe_view",
    "_local_scalar_dense",
    "set_",
    "resize_",
    "profiler::",
)
"""Beginnings of the names of what computes nothing on the accelerator."""
LIBRARIES = ("cl-zoo", "torch", "transformers", "peft")


class Count(TorchDispatchMode):
    """Counts what is launched inside, by the phase that `during` says; `named` has the operations of each phase by name."""

    def __init__(self) -> None:
        super().__init__()
        self.phase, self.named = "backward", {phase: Counter[str]() for phase in PHASES}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if not func.is_view and not name.startswith(NOTHING):
            size = len(args[0]) if name.startswith(("_foreach", "_fused")) else 1
            self.named[self.phase][name] += -(-size // LIST)
        return func(*args, **(kwargs or {}))

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """What is launched inside belongs to this phase."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    def calls(self, of: Any, name: str, phase: str | Callable[[str], str]) -> None:
        """Let what this attribute of an object launches belong to a phase, which may depend on the one it is called in."""
        called = getattr(of, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            with self.during(phase if isinstance(phase, str) else phase(self.phase)):
                return called(*args, **kwargs)

        setattr(of, name, counted)


def count_engine(contender: Engine) -> Count:
    """One step of a method in the engine."""
    count, learner = Count(), contender.learner
    learner.by_rows = False  # as on an accelerator
    contender.step(0)
    count.calls(learner.backbone, "batch", "feeding")
    count.calls(learner, "_terms", "forward")
    count.calls(learner, "_update", "optimiser")
    for hook in ("loss", "before_step", "after_step"):
        count.calls(learner.plugins, hook, "hooks")
    count.calls(contender.backbone.model, "forward", lambda phase: "teacher" if phase == "hooks" else phase)
    with count:
        contender.step(0)
    return count


def count_bare(contender: Bare) -> Count:
    """One step of the plain loop."""
    count = Count()
    contender.step(0)
    count.calls(contender, "_loss", "forward")
    count.calls(contender.optimizer, "step", "optimiser")
    with count:
        contender.step(0)
    return count


def counts(methods: Sequence[str], shapes: str) -> dict[str, dict[str, Any]]:
    """By contender the operations of each phase, their sum, both ratios, and how many tensors learn."""
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        ground = make_ground("tiny", shapes, World("cpu"), Path(folder))
        for name in ("bare", *methods):
            contender = Bare(ground, 4) if name == "bare" else Engine(name, ground, 4)
            if isinstance(contender, Bare):
                for group in contender.optimizer.param_groups:
                    group["foreach"] = True  # as on an accelerator
                counted, learning = count_bare(contender), contender.learning
            else:
                counted, learning = count_engine(contender), contender.learner.learning
            found[name] = {
                "tensors": len(learning),
                **{phase: each.total() for phase, each in counted.named.items()},
            }
    for one in found.values():
        one["all"] = sum(one[phase] for phase in PHASES)
        one["besides"] = one["all"] - one["feeding"] - one["teacher"]
    for one in found.values():
        one["ratio"] = round(one["all"] / found["finetune"]["all"], 3)
        one["besides_ratio"] = round(one["besides"] / found["finetune"]["besides"], 3)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, write, print; returns the exit code, 2 where the user can put something right."""
    parser = options(__doc__)
    parser.add_argument("--methods", help="stacks, comma-separated; default: every installed sequential one")
    parser.add_argument(
        "--shapes", choices=("testing", "mini"), default="testing", help="whose model and data"
    )
    asked = given(parser, "operations.py", arguments)
    return carried_out(asked, measure, lambda result: table(result["operations"]))


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """The complete result."""
    return {
        "command": asked.command,
        "shapes_of": asked.shapes,
        "tensors_of_a_list": LIST,
        "operations": counts(chosen_methods(asked.methods), asked.shapes),
        "machine": machine(),
        "versions": versions(LIBRARIES),
    }


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """One line per contender."""
    columns = ("tensors", *PHASES, "all", "ratio", "besides_ratio")
    heads = (*columns[:-1], "besides")
    lines = [f"{'':<14}" + "".join(f"{head:>10}" for head in heads)]
    for name, one in found.items():
        lines.append(f"{name:<14}" + "".join(f"{one[column]:>10}" for column in columns))
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
