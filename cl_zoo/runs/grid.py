"""The axes of a comparison: orders of the tasks and values of options, each a run of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from math import factorial
from typing import Any

from cl_zoo.errors import OptionError, nearest
from cl_zoo.names import Choice
from cl_zoo.tasks import Benchmark, letters

DRAWN_FROM = 0
"""What further orders are drawn from; everybody who asks for as many gets the same."""

Vary = Mapping[str, Mapping[str, Sequence[Any]]]
"""Values by plugin and option: `{"hide": {"coefficient": [0.3, 0.5]}}`."""


def orders_of(benchmark: Benchmark, asked: int | Sequence[str]) -> list[str | None]:
    """Orders of the tasks as jobs name them, `None` for the benchmark's own.

    Args:
        asked: how many, the benchmark's own first (`drawn`); or which, by letters, by task names or by the name of an order.

    Raises:
        OptionError: there are not so many, one stands twice or cannot be read.
    """
    own = letters(benchmark.tasks)
    if isinstance(asked, int):
        found = drawn(own, asked, benchmark.name)
    else:
        found = [letters(benchmark.stream(text)) for text in asked]
    for order in found:
        if found.count(order) > 1:
            raise OptionError(f"--order {order} stands twice among the orders; name each once")
    return [None if order == own else order for order in found]


def drawn(own: str, count: int, benchmark: str) -> list[str]:
    """A benchmark's own order and further ones, in letters; fewer are the first of more, and none comes twice.

    The k-th permutation sorts the tasks by SHA-256 of the text `0 k LETTER`, so it depends on the letters alone, on no library and on
    no earlier draw; one that came before is passed over.

    Raises:
        OptionError: the tasks have fewer orders, or none is asked for.
    """
    most = factorial(len(own))
    if not 1 <= count <= most:
        raise OptionError(f"--orders {count}: the {len(own)} tasks of {benchmark} have 1 to {most} orders")

    def permuted(k: int) -> str:
        return "".join(
            sorted(own, key=lambda letter: hashlib.sha256(f"{DRAWN_FROM} {k} {letter}".encode()).digest())
        )

    found, k = [own], 0
    while len(found) < count:
        k += 1
        if (order := permuted(k)) not in found:
            found.append(order)
    return found


def varied(stacks: Sequence[tuple[Choice, ...]], vary: Vary) -> list[tuple[Choice, ...]]:
    """Every stack once for each combination of the values that some of its options shall have; the others as they are.

    Raises:
        OptionError: a plugin is in no stack, an option has no values, or one is set as well.
    """
    names = {choice.name for choices in stacks for choice in choices}
    for plugin, options in vary.items():
        if plugin not in names:
            raise OptionError(
                f"options of {plugin!r} are varied, which is in no stack of this comparison{nearest(plugin, names)}"
            )
        for option, values in options.items():
            if not values:
                raise OptionError(
                    f"--vary {plugin}.{option}: names no value; write METHOD.option=value,value"
                )
    return [made for choices in stacks for made in product(*(_each(choice, vary) for choice in choices))]


def _each(choice: Choice, vary: Vary) -> list[Choice]:
    options = vary.get(choice.name, {})
    for option in options.keys() & choice.options.keys():
        raise OptionError(
            f"{choice.name}.{option} is varied and set to {choice.options[option]} as well; leave one of both out"
        )
    return [
        replace(choice, options={**choice.options, **dict(zip(options, values, strict=True))})
        for values in product(*options.values())
    ]
