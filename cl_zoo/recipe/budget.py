"""What a reader has to know of a method's budget, in words; the rule itself is in `cl_zoo.nn.budget`."""

from __future__ import annotations

from collections.abc import Mapping

LEAST = 4
"""The smallest rank at which an expert is not called starved."""

TOLERANCE = 0.1
"""How far what trains may be from the budget before a row is stamped."""


def beside_projector(trained: Mapping[str, int]) -> int:
    """What of the parameters trained in a task, by part, the budget is for: all but the projector's."""
    return sum(size for part, size in trained.items() if part != "projector")


def budget_notes(trained: Mapping[str, int], budget: int, learning: Mapping[str, int]) -> tuple[str, ...]:
    """`parameters × 4.9` where a task trains more or less than the budget, and how experts share it.

    Args:
        trained: in one task, by part.
        budget: what may train in one task, without the projector.
        learning: `experts`, `rank` and `update_rank` of an adapted layer, see `cl_zoo.nn.budget.Learning`.
    """
    spent = beside_projector(trained)
    notes = [f"parameters × {spent / budget:.2g}"] if abs(spent - budget) > TOLERANCE * budget else []
    if learning.get("experts", 0) > 1:
        rank, whole = learning["rank"], learning["update_rank"]
        starved = f" (starved: below {LEAST})" if min(rank, whole) < LEAST else ""
        notes.append(f"{learning['experts']} experts of rank {rank}, update rank {whole}{starved}")
    return tuple(notes)
