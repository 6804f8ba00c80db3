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
    source, waiting, tokens, more = iter(items), list[Item](), 0, True
    while True:
        while more and tokens < AHEAD * budget:
            try:
                waiting.append(next(source))
            except StopIteration:
                more = False
            else:
                tokens += size(waiting[-1])
        if not waiting:
            return
        taken, waiting = _taken(waiting, size, budget)
        tokens -= sum(map(size, taken))
        yield taken


def _taken(waiting: list[Item], size: Callable[[Item], int], budget: int) -> tuple[list[Item], list[Item]]:
    """A batch, and what stays."""
    chosen, rest, left = [0], list[int](), budget - size(waiting[0])
    for place in range(1, len(waiting)):
        if (own := size(waiting[place])) <= left:
            chosen.append(place)
            left -= own
        else:
            rest.append(place)
    if left > 0 and rest and len(chosen) > 1:
        by_size = sorted(rest, key=lambda place: size(waiting[place]))
        sizes = [size(waiting[place]) for place in by_size]
        best, change = 0, (0, 0)
        for place in chosen[1:]:
            own = size(waiting[place])
            index = bisect.bisect_right(sizes, own + left) - 1
            if index >= 0 and sizes[index] - own > best:
                best, change = sizes[index] - own, (place, by_size[index])
        if best:
            chosen, rest = [
                sorted([*(set(each) - {old}), new]) for each, old, new in ((chosen, *change), (rest, *change[::-1]))
            ]
    return [waiting[place] for place in chosen], [waiting[place] for place in rest]
