"""AdamW whose lists are short: what lies together in memory is one tensor there.

A list is worked through in pieces of some thirty tensors, one launch for each and for every operation of AdamW, so that a mixture of many small experts
takes as many launches as there are tensors in it. Experts that learn together lie one behind the other, and so do their gradients
(`cl_zoo.nn.products.join`). If their moments do too, AdamW, which looks at each entry by itself, can take all of them for one long tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")


class Together(torch.optim.AdamW):
    """AdamW; the state of each weight is its own as ever, by weight, and all values are those of AdamW to the last bit."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._run: dict[Tensor, tuple[Tensor, ...]] = {}  # by each weight of it, whose moments lie together

    def _init_group(
        self,
        group: dict[str, Any],
        params_with_grad: list[Tensor],
        grads: list[Tensor],
        exp_avgs: list[Tensor],
        exp_avg_sqs: list[Tensor],
        max_exp_avg_sqs: list[Tensor],
        state_steps: list[Tensor],
    ) -> Any:
        found = super()._init_group(  # type: ignore[no-untyped-call]
            group, params_with_grad, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, state_steps
        )
        every = [
            piece
            for run in runs(params_with_grad, grads)
            for piece in self._pieces(tuple(params_with_grad[place] for place in run))
        ]
        gradient = dict(zip(params_with_grad, grads, strict=True))
        params_with_grad[:] = [flat(piece) for piece in every]
        grads[:] = [flat([gradient[weight] for weight in piece]) for piece in every]
        for moments, moment in zip((exp_avgs, exp_avg_sqs), MOMENTS, strict=True):
            moments[:] = [flat([self.state[weight][moment] for weight in piece]) for piece in every]
        state_steps[:] = [self.state[piece[0]]["step"] for piece in every]
        return found

    def _pieces(self, run: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
        """These weights as one, or as few as are equally far: their moments behind each other, their steps one count."""
        pieces = self._before(run)
        if len(pieces) == 1:
            return pieces
        found: list[tuple[Tensor, ...]] = []
        for _, alike in groupby(pieces, key=lambda piece: float(self.state[piece[0]]["step"])):
            each = list(alike)
            found.append(tuple(weight for piece in each for weight in piece))
            if len(each) > 1:
                self._lay(found[-1])
        return found

    def _before(self, run: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
        """These weights as they were taken before; each by itself where one of its piece stays away, or its state is another one."""
        found: list[tuple[Tensor, ...]] = []
        place = 0
        while place < len(run):
            weight = run[place]
            piece = self._run.get(weight, (weight,))
            if not (_same(piece, run[place : place + len(piece)]) and self._laid(piece)):
                piece, state = (weight,), self.state[weight]
                state["step"] = state["step"].clone()  # who stays away must not be counted by the others
                self._run.pop(weight, None)
            found.append(piece)
            place += len(piece)
        return found

    def _laid(self, piece: tuple[Tensor, ...]) -> bool:
        """Whether the state of these weights is still as `_lay` has left it."""
        states = [self.state[weight] for weight in piece]
        counted = all(state["step"] is states[0]["step"] for state in states)
        moments = ([state[moment] for state in states] for moment in MOMENTS)
        behind = all(follows(*pair) for each in moments for pair in pairwise(each))
        return (
            counted
            and behind
            and all(
                weight.stride() == state[MOMENTS[0]].stride()
                for weight, state in zip(piece, states, strict=True)
                if len(piece) > 1
            )
        )

    def _lay(self, piece: tuple[Tensor, ...]) -> None:
        states = [self.state[weight] for weight in piece]
        for moment in MOMENTS:
            whole = piece[0].new_empty(sum(weight.numel() for weight in piece))
            parts = torch.split(whole, [weight.numel() for weight in piece])
            for weight, state, part in zip(piece, states, parts, strict=True):
                here = part.as_strided(weight.shape, weight.stride())
                state[moment] = here.copy_(state[moment])
        for weight, state in zip(piece, states, strict=True):
            state["step"] = states[0]["step"]
            self._run[weight] = piece


def runs(weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[list[int]]:
    """Places of weights that lie one behind the other, as their gradients do; each place is in one run, most are alone in it."""

    def behind(last: int, place: int) -> bool:
        alike = all(weights[one].stride() == gradients[one].stride() for one in (last, place))
        return alike and all(follows(of[last], of[place]) for of in (weights, gradients))

    return _chains(weights, behind)


def together(tensors: Sequence[Tensor]) -> list[Tensor]:
    """These tensors, those that lie one behind the other as one (n,); in their order, which is not that of memory."""
    found = _chains(tensors, lambda last, place: follows(tensors[last], tensors[place]))
    return [flat([tensors[place] for place in chain]) for chain in sorted(found, key=min)]


def _chains(tensors: Sequence[Tensor], behind: Callable[[int, int], bool]) -> list[list[int]]:
    """Places of tensors in the order in which they lie, in one list as long as each is behind the last."""
    found: list[list[int]] = []
    for place in sorted(range(len(tensors)), key=lambda place: tensors[place].data_ptr()):
        if found and behind(found[-1][-1], place):
            found[-1].append(place)
        else:
            found.append([place])
    return found


def follows(one: Tensor, other: Tensor) -> bool:
    """Whether the second begins where the first ends, in the same piece of memory, and neither leaves entries out."""
    return (
        other.data_ptr() == one.data_ptr() + one.numel() * one.element_size()
        and one.dtype == other.dtype
        and one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
        and _dense(one)
        and _dense(other)
    )


def flat(run: Sequence[Tensor]) -> Tensor:
    """Tensors that follow each other as one (n,), in the order in which their entries lie; one alone as it is."""
    if len(run) == 1:
        return run[0]
    return run[0].as_strided((sum(one.numel() for one in run),), (1,))


def _dense(tensor: Tensor) -> bool:
    spanned = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return spanned == tensor.numel()


def _same(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(some) == len(others) and all(a is b for a, b in zip(some, others, strict=True))
