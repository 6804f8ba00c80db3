"""Batches filled to a budget of tokens from what comes next, so that little of them stays empty."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
AHEAD = 4  # budgets that are looked at for what fits


def filled(items: Iterable[Item], size: Callable[[Item], int], budget: int) -> Iterator[list[Item]]:
    """Batches of at most `budget` tokens; what is larger is a batch alone.

    Each holds the first item that is not yet taken, then those behind it that fit, one of them changed for a larger one
    where that fills the batch better: no item waits for long, and little has to be kept until order is restored.

    Args:
        items: in the order that they come in.
        size: tokens of one.
        budget: tokens in a batch.

    Example:
        >>> list(filled([5, 3, 4, 2, 9, 20], int, 10))
        [[5, 3, 2], [4], [9], [20]]
    """
    source, waiting, sizes, tokens, more = iter(items), list[Item](), list[int](), 0, True
    while True:
        while more and tokens < AHEAD * budget:
            try:
                waiting.append(next(source))
            except StopIteration:
                more = False
            else:
                sizes.append(size(waiting[-1]))
                tokens += sizes[-1]
        if not waiting:
            return
        chosen, rest = _taken(sizes, budget)
        taken = [waiting[place] for place in chosen]
        tokens -= sum(sizes[place] for place in chosen)
        waiting, sizes = [waiting[place] for place in rest], [sizes[place] for place in rest]
        yield taken


def _taken(sizes: list[int], budget: int) -> tuple[list[int], list[int]]:
    """The places of a batch, and those that stay."""
    chosen, rest, left = [0], list[int](), budget - sizes[0]
    for place in range(1, len(sizes)):
        if left <= 0:
            rest += range(place, len(sizes))
            break
        if sizes[place] <= left:
            chosen.append(place)
            left -= sizes[place]
        else:
            rest.append(place)
    if left > 0 and rest and len(chosen) > 1:
        by_size = sorted(rest, key=sizes.__getitem__)
        ordered = [sizes[place] for place in by_size]
        best, change = 0, (0, 0)
        for place in chosen[1:]:
            own = sizes[place]
            index = bisect.bisect_right(ordered, own + left) - 1
            if index >= 0 and ordered[index] - own > best:
                best, change = ordered[index] - own, (place, by_size[index])
        if best:
            chosen, rest = [
                sorted([*(set(each) - {old}), new]) for each, old, new in ((chosen, *change), (rest, *change[::-1]))
            ]
    return chosen, rest
