"""Groups of tasks that look alike to a frozen encoder, and the group that a sample looks like.

    z   = LN(f(x))                                    a feature, with mean zero and variance one over its entries
    m_g = Σ_{t in g} Σ_x z / Σ_{t in g} N_t           prototype of a group, over all samples of its tasks

A group begins with the task that no other group takes. Nothing here is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cl_zoo.batches import Batch
from cl_zoo.features.encoder import cosines
from cl_zoo.nn.anchors import View
from cl_zoo.processes import share, total
from cl_zoo.tasks import Sample


class Groups(nn.Module):
    """The groups of all tasks so far, and what their samples look like.

    Args:
        view: f.
        device: where the buffers are.

    Attributes:
        sums, counts: Σ z (tasks, width) and N (tasks,) of the tasks learnt.
        numbers: the group of each task, in the order of the tasks; one longer while a task is learnt.
    """

    sums: Tensor
    counts: Tensor

    def __init__(self, view: View, device: torch.device) -> None:
        super().__init__()
        self.view, self.numbers = view, list[int]()
        self.register_buffer("sums", torch.zeros(0, view.width, device=device))
        self.register_buffer("counts", torch.zeros(0, device=device))

    def look(self, samples: Sequence[Sample]) -> Tensor:
        """z (samples, width)."""
        return F.layer_norm(self.view.look(samples), (self.view.width,))

    def join(self, z: Tensor, *, lead: float, alike: float) -> int:
        """Let a new task be in the group that its mean z (width,) says; returns the group's number.

        Args:
            lead: by how much the highest of several cosines with prototypes must exceed the second for that group to take the task.
            alike: what the cosine with the only group must exceed.
        """
        near = cosines(z[None], self.prototypes())[0].sort(descending=True)
        first, *others = near.values.tolist() or [-1.0]
        joins = first - others[0] > lead if others else first > alike
        self.numbers.append(int(near.indices[0]) if joins and len(near.indices) else len(near.indices))
        return self.numbers[-1]

    def mates(self, place: int) -> list[int]:
        """Places of the other tasks in the group of a task."""
        return [i for i, number in enumerate(self.numbers) if number == self.numbers[place] and i != place]

    @torch.no_grad()
    def add(self, batches: Sequence[Batch]) -> None:
        """One more task is learnt: its samples count in the prototype of its group, the first one's where it has joined none."""
        z, count = self.sums.new_zeros(self.view.width), self.counts.new_zeros(1)
        for batch in share(batches):
            z, count = z + self.look(batch.samples).sum(0), count + len(batch)
        self.sums, self.counts = (
            torch.cat([self.sums, total(z)[None]]),
            torch.cat([self.counts, total(count)]),
        )
        self.numbers += [0] * (len(self.sums) - len(self.numbers))

    def prototypes(self) -> Tensor:
        """m (groups, width) of the tasks learnt."""
        numbers = self.numbers[: len(self.sums)]
        rows = [[i for i, number in enumerate(numbers) if number == one] for one in sorted({*numbers})]
        means = [self.sums[row].sum(0) / self.counts[row].sum().clamp(min=1) for row in rows]
        return torch.stack(means) if means else self.sums

    def forward(self, samples: Sequence[Sample]) -> Tensor:
        """Whether a task is in the group of a sample, the one of highest cosine; (samples, tasks)."""
        numbers = torch.tensor(self.numbers, device=self.sums.device)
        return cosines(self.look(samples), self.prototypes()).argmax(1)[:, None] == numbers

    def keep(self) -> dict[str, Any]:
        """Buffers and groups, for a plugin's `state_dict`."""
        return {"sums": self.sums, "counts": self.counts, "numbers": list(self.numbers)}

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Put back what `keep` gave, whatever the number of tasks."""
        self.sums, self.counts = (kept[name].to(self.counts.device) for name in ("sums", "counts"))
        self.numbers = list(kept["numbers"])
