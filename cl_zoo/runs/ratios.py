"""How many times the budget of others a run has, in words, task by task."""

from __future__ import annotations


def of_tasks(values: tuple[int, ...], common: tuple[int, ...], share: float) -> str:
    """`×2 from task 2`; nothing where the values are those of the others within a share."""
    if len(values) != len(common):
        whole = sum(values) / sum(common)
        return times(whole) if abs(sum(values) - sum(common)) > share * sum(common) else ""
    ratios = [value / other if other else 1.0 for value, other in zip(values, common, strict=True)]
    groups: list[list[int]] = []
    for place, (value, other) in enumerate(zip(values, common, strict=True)):
        ratio = ratios[place]
        if abs(value - other) > share * other:
            alike = [group for group in groups if abs(ratio / ratios[group[0]] - 1) <= share]
            if alike:
                alike[0].append(place)
            else:
                groups.append([place])
    told = []
    for group in groups:
        ratio = sum(values[n] for n in group) / sum(common[n] for n in group)
        told.append(f"{times(ratio)}{_where(group, len(values))}")
    return ", ".join(told)


def _where(places: list[int], tasks: int) -> str:
    """` from task 2`, ` in tasks 1, 3`; nothing where it is all of them."""
    if len(places) == tasks:
        return ""
    if len(places) > 1 and places == list(range(places[0], tasks)):
        return f" from task {places[0] + 1}"
    if len(places) > 2 and places == list(range(places[0], places[-1] + 1)):
        return f" in tasks {places[0] + 1} to {places[-1] + 1}"
    return f" in task{'s' if len(places) > 1 else ''} {', '.join(str(n + 1) for n in places)}"


def times(ratio: float) -> str:
    """`×2`, `×0.035`."""
    return f"×{ratio:.2f}".rstrip("0").rstrip(".") if ratio >= 0.1 else f"×{ratio:.2g}"
