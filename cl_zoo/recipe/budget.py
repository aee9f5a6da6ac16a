"""What a reader has to know of a method's budget, as numbers and in words; the rule itself is in `cl_zoo.nn.budget`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LEAST = 4
"""The smallest rank at which an expert is not called starved."""

TOLERANCE = 0.1
"""How far what trains may be from the budget before a row is stamped."""


def beside_projector(trained: Mapping[str, int]) -> int:
    """What of the parameters trained in a task, by part, the budget is for: all but the projector's."""
    return sum(size for part, size in trained.items() if part != "projector")


def budget_notes(trained: Mapping[str, int], budget: int, learning: Mapping[str, int]) -> tuple[str, ...]:
    """`budget_marks` in words: `parameters × 4.9`, `8 experts of rank 1, update rank 8 (starved: below 4)`."""
    marks = budget_marks(trained, budget, learning)
    notes = [f"parameters × {marks['parameters']:.2g}"] if "parameters" in marks else []
    if shared := marks.get("experts"):
        starved = f" (starved: below {LEAST})" if shared["starved"] else ""
        notes.append(
            f"{shared['experts']} experts of rank {shared['rank']}, update rank {shared['update_rank']}{starved}"
        )
    return tuple(notes)


def budget_marks(trained: Mapping[str, int], budget: int, learning: Mapping[str, int]) -> dict[str, Any]:
    """Where a task trains more or less than the budget `parameters`, how many times as many, and how `experts` share it.

    Args:
        trained: in one task, by part.
        budget: what may train in one task, without the projector.
        learning: `experts`, `rank` and `update_rank` of an adapted layer, see `cl_zoo.nn.budget.Learning`.
    """
    spent, marks = beside_projector(trained), dict[str, Any]()
    if abs(spent - budget) > TOLERANCE * budget:
        marks["parameters"] = spent / budget
    if learning.get("experts", 0) > 1:
        marks["experts"] = {**learning, "starved": min(learning["rank"], learning["update_rank"]) < LEAST}
    return marks
