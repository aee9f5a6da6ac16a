"""The objective of a step: what each term counts in it, and its gradient in few operations.

A penalty is a function of the weights and of nothing else. Taken with the task's own loss in one backward pass, its gradient would be added to
the other one weight by weight, an operation for each; here it is taken by itself, and both are added in lists.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cl_zoo.batches import Batch
from cl_zoo.contract import returned

REENTRANT = "CheckpointFunctionBackward"
"""The node of `torch.utils.checkpoint` that allows no gradient of chosen weights."""


def reduce_term(
    name: str, term: Tensor, batch: Batch, *, samples: int, answer_tokens: float, forwards: int
) -> Tensor:
    """A term's share of the objective, by its shape, so that micro-batches and processes add up to one global batch.

    Args:
        term: a scalar (counts once per step), (batch,) per sample or (batch, K) per answer token.
        samples, answer_tokens: of the global batch.
        forwards: how many forwards the step takes over all processes.

    Raises:
        PluginFault: another shape, or no tensor.
    """
    returned.term(name, term, batch)
    if term.ndim == 0:
        return term / forwards if forwards > 1 else term
    if term.shape == (len(batch),):
        return term.sum() / samples
    return torch.where(batch.answer_mask, term, 0.0).sum() / max(answer_tokens, 1.0)


def backward(shares: Mapping[str, Tensor], terms: Mapping[str, Tensor]) -> None:
    """Add the gradient of a sum of shares to the `grad` of all weights that it is a function of.

    Args:
        shares: of the terms, by name.
        terms: as they were given, `task` among them, which the forward made before the others.
    """
    apart: dict[str, list[Tensor]] = {}
    for name, term in terms.items():
        weights = weights_alone(shares[name], terms["task"]) if term.ndim == 0 else None
        if weights is not None:
            apart[name] = weights
    others = (term for name, term in terms.items() if name != "task" and name not in apart)
    if any(term.requires_grad for term in others):
        apart = {}  # it may go through what a penalty goes through too, and one pass frees that for the other
    through = [share for name, share in shares.items() if name not in apart]
    if through:
        torch.stack(through).sum().backward()  # type: ignore[no-untyped-call]
    if apart:
        every = list({id(weight): weight for weights in apart.values() for weight in weights}.values())
        _add(every, torch.autograd.grad(_sum([shares[name] for name in apart]), every, allow_unused=True))


def weights_alone(term: Tensor, own: Tensor) -> list[Tensor] | None:
    """The weights that a term is a function of; `None` where one pass alone gives their gradient, or nothing learns.

    That is where it goes through what was computed before `own`, where somebody waits for the whole gradient of a weight, and where a
    part is computed again by a pass of its own.
    """
    if term.grad_fn is None or own.grad_fn is None:
        return None
    last: int = own.grad_fn._sequence_nr()  # nodes are numbered in the order in which they are made
    found: dict[int, Tensor] = {}
    todo: list[Any] = [term.grad_fn]
    seen = set(todo)
    while todo:
        node = todo.pop()
        if isinstance(node, torch._C._functions.AccumulateGrad):
            weight = node.variable
            if weight._backward_hooks or weight._post_accumulate_grad_hooks:
                return None
            found[id(weight)] = weight
            continue
        if node._sequence_nr() <= last or node.name() == REENTRANT:
            return None
        new = {before for before, _ in node.next_functions if before is not None} - seen
        seen |= new
        todo += new
    return list(found.values())


def _sum(scalars: Sequence[Tensor]) -> Tensor:
    return scalars[0] if len(scalars) == 1 else torch.stack(list(scalars)).sum()


def _add(weights: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Add gradients to those that are there, all in one call."""
    pairs = [(weight, one) for weight, one in zip(weights, gradients, strict=True) if one is not None]
    there = [(weight.grad, one) for weight, one in pairs if weight.grad is not None]
    if there:
        torch._foreach_add_([one for one, _ in there], [one for _, one in there])
    for weight, one in pairs:
        if weight.grad is None:
            weight.grad = one.clone()  # it may be a view of what is not its own
