"""The processes of one run, through accelerate's process group.

Adapters are small, so data parallelism is one flattened all-reduce of gradients per optimiser step, a missing gradient
counting as zero. A DDP wrapper would fail on keys that are used only in `loss` and on branches without a gradient.

`share` and `total` are for `after_task`: each process looks at its share of a task's batches, and sums of what it saw are
added up, so that all processes keep the same anchors, Fisher information and keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from cl_zoo.batches import Batch
from cl_zoo.errors import OptionError
from cl_zoo.sharding import forget, rest


class World:
    """One or many processes.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:1`; `auto` takes a CUDA device where there is one.

    Raises:
        OptionError: the device is not there.
    """

    def __init__(self, device: str = "auto") -> None:
        forget()
        kind = device.partition(":")[0]
        if kind not in ("auto", "cpu", "cuda"):
            raise OptionError(f"--device {device}: unknown; use auto, cpu or cuda")
        if kind == "cuda" and not torch.cuda.is_available():
            raise OptionError(f"--device {device}: torch sees no CUDA device here; use --device cpu")
        number = device.partition(":")[2]
        if number and not (number.isdecimal() and int(number) < torch.cuda.device_count()):
            raise OptionError(
                f"--device {device}: there is no such device; there are {torch.cuda.device_count()}, counted from cuda:0"
            )
        self._accelerator = Accelerator(cpu=kind == "cpu" or not torch.cuda.is_available())
        self.device = torch.device(device) if ":" in device else self._accelerator.device
        self.rank: int = self._accelerator.process_index
        self.size: int = self._accelerator.num_processes

    @property
    def main(self) -> bool:
        return self.rank == 0

    def sum(self, value: float) -> float:
        """The sum of a number over all processes."""
        if self.size == 1:
            return value
        rest()
        total = torch.tensor(value, device=self.device, dtype=torch.float64)
        return float(cast(Tensor, self._accelerator.reduce(total, "sum")))

    def sum_by_name(self, values: Mapping[str, float]) -> dict[str, float]:
        """Numbers of all processes, added up by name; a process may lack some."""
        summed: dict[str, float] = {}
        for one in self.gather([dict(values)]):
            for name, value in one.items():
                summed[name] = summed.get(name, 0.0) + value
        return summed

    def reduce_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum gradients over all processes, in fp32.

        A gradient that some process lacks counts as zero there; one that all lack stays missing, as in a single process.
        """
        if self.size == 1:
            return
        rest()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        there = torch.tensor([float(p.grad is not None) for p in parameters], device=gradients[0].device)
        flat = torch.cat([there, *(gradient.float().flatten() for gradient in gradients)])
        flat = cast(Tensor, self._accelerator.reduce(flat, "sum"))
        there, *parts = torch.split(flat, [len(parameters), *(p.numel() for p in parameters)])
        for parameter, part, owners in zip(parameters, parts, there.tolist(), strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype) if owners else None

    def gather(self, records: list[Any]) -> list[Any]:
        """Records of all processes, process by process."""
        if self.size == 1:
            return records
        rest()
        return cast(list[Any], gather_object(records))

    def wait(self) -> None:
        rest()
        self._accelerator.wait_for_everyone()

    def autocast(self, precision: str) -> AbstractContextManager[Any]:
        """bf16 where the recipe asks for it; weights that learn stay fp32.

        Casts are not kept: one made without a gradient (a teacher, a choice of prompts) must not serve a later forward.
        """
        if precision != "bf16":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)


def share(batches: Sequence[Batch], samples: int | None = None) -> Iterator[Batch]:
    """This process's share of a task's batches: every `world`-th one, all of them in a single process.

    Args:
        batches: those of the whole task, the same on every process; they are made when they are asked for.
        samples: only this many samples of the task, over all processes, see `drawn`.
    """
    rank, size = (dist.get_rank(), dist.get_world_size()) if _distributed() else (0, 1)
    chosen = batches if samples is None else drawn(batches, samples)
    yield from (chosen[place] for place in range(rank, len(chosen), size))


def drawn(batches: Sequence[Batch], samples: int) -> Sequence[Batch]:
    """Batches of so many samples of a task, see `draw_rows`; all of them where there are no more."""
    rows = draw_rows(batches, samples)
    if sum(map(len, rows.values())) < samples:
        return batches
    take = getattr(batches, "take", None)
    if take is not None:
        length = len(batches[0])
        made: Sequence[Batch] = take([place * length + row for place, those in rows.items() for row in those])
        return made
    return [batches[place].rows(those) for place, those in rows.items()]


def draw_rows(batches: Sequence[Batch], samples: int) -> dict[int, list[int]]:
    """So many samples of a task at random, none twice, as places in batches by place of the batch, in the task's order.

    A file may be sorted by class, so its first samples say little about it. The draw depends on the seed that the engine
    sets before each hook (of run, task and hook) and on nothing else: it is the same on every process, and for all in a stack.
    Only the first and the last batch are made, which tell how many samples there are.
    """
    if not len(batches):
        return {}
    length = len(batches[0])  # of each batch but the last
    size = length * (len(batches) - 1) + len(batches[-1])
    generator = torch.Generator().manual_seed(torch.initial_seed())
    rows: dict[int, list[int]] = {}
    for index in torch.randperm(size, generator=generator)[:samples].sort().values.tolist():
        rows.setdefault(index // length, []).append(index % length)
    return rows


def total(values: Tensor) -> Tensor:
    """The sum of a tensor over all processes, in fp32; in a single process the tensor itself, in fp32."""
    values = values.detach().float()
    if _distributed() and values.device.type != "meta":
        values = values.clone()
        rest()
        dist.all_reduce(values)
    return values


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
