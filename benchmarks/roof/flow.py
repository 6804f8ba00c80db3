"""The flow of control through machine code: its blocks, what is always passed before them, and its loops."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from .sass import Instruction

ENDS = ("BRA", "EXIT", "RET", "BRX", "JMP", "WARPSYNC")


@dataclass(frozen=True)
class Loop:
    """Instructions that are gone through again and again.

    Attributes:
        first: the place of the first one, which is passed whenever the loop is entered or gone through again.
        last: that of the last branch back to it.
        places: of all its instructions, those of loops within it among them.
        inner: the loops within it, outermost ones.
    """

    first: int
    last: int
    places: frozenset[int]
    inner: tuple[Loop, ...] = ()

    def all(self) -> Iterator[Loop]:
        """The loop itself and all within."""
        yield self
        for loop in self.inner:
            yield from loop.all()

    def own(self) -> frozenset[int]:
        """The places that belong to no inner loop."""
        return self.places.difference(*(loop.places for loop in self.inner))


@dataclass(frozen=True)
class Flow:
    """Code in blocks, each of which is executed from its first instruction to its last.

    Attributes:
        instructions: the code.
    """

    instructions: tuple[Instruction, ...]

    @cached_property
    def begins(self) -> list[int]:
        """The places at which blocks begin, in their order."""
        found = {0}
        for place, each in enumerate(self.instructions):
            if each.target is not None:
                found.add(each.target)
            if each.base in ENDS:
                found.add(place + 1)
        return sorted(place for place in found if place < len(self.instructions))

    @cached_property
    def blocks(self) -> list[range]:
        stops = [*self.begins[1:], len(self.instructions)]
        return [range(begin, stop) for begin, stop in zip(self.begins, stops, strict=True)]

    @cached_property
    def successors(self) -> list[list[int]]:
        """Of every block those that may follow it."""
        numbers = {begin: number for number, begin in enumerate(self.begins)}
        found: list[list[int]] = []
        for block in self.blocks:
            end = self.instructions[block[-1]]
            after = [] if end.target is None else [end.target]
            if end.base not in ENDS or end.predicate or end.base == "WARPSYNC":
                after.append(block.stop)
            found.append([numbers[place] for place in dict.fromkeys(after) if place in numbers])
        return found

    @cached_property
    def reached(self) -> frozenset[int]:
        """The blocks that the first one leads to; others are called, or fill up the end."""
        found: set[int] = set()
        waiting = [0]
        while waiting:
            block = waiting.pop()
            if block not in found:
                found.add(block)
                waiting += self.successors[block]
        return frozenset(found)

    @cached_property
    def dominators(self) -> list[int]:
        """Of every block those that are always passed on the way to it, itself among them, as bits of a number."""
        every = (1 << len(self.blocks)) - 1
        found = [1] + [every] * (len(self.blocks) - 1)
        before: list[list[int]] = [[] for _ in self.blocks]
        for block, after in enumerate(self.successors):
            for each in after:
                before[each].append(block)
        changed = True
        while changed:
            changed = False
            for block in range(1, len(self.blocks)):
                common = every
                for each in before[block]:
                    common &= found[each]
                mine = common | 1 << block
                if mine != found[block]:
                    found[block], changed = mine, True
        return found

    def behind(self, block: int) -> Iterator[int]:
        """The places in a block and in those that nobody reaches without passing it."""
        for other in self.reached:
            if self.dominators[other] >> block & 1:
                yield from self.blocks[other]

    @cached_property
    def loops(self) -> tuple[Loop, ...]:
        """The outermost loops: a branch back to a block that is always passed before it, and what leads there."""
        found: dict[int, tuple[set[int], int]] = {}
        for block in self.reached:
            for head in self.successors[block]:
                if self.dominators[block] >> head & 1:
                    body, last = found.get(head, ({head}, 0))
                    found[head] = (body | self._leading(block, head), max(last, self.blocks[block][-1]))
        loops = []
        for head, (body, last) in found.items():
            places = frozenset(place for block in body for place in self.blocks[block])
            loops.append(Loop(self.blocks[head][0], last, places))
        return nested(sorted(loops, key=lambda loop: len(loop.places), reverse=True))

    def _leading(self, block: int, head: int) -> set[int]:
        """The blocks on the ways from `head` to `block`."""
        found, waiting = {head}, [block]
        while waiting:
            each = waiting.pop()
            if each not in found:
                found.add(each)
                waiting += [other for other, after in enumerate(self.successors) if each in after]
        return found

    def straight(self) -> frozenset[int]:
        """The places of the instructions that are in no loop."""
        all_reached = frozenset(place for block in self.reached for place in self.blocks[block])
        return all_reached.difference(*(loop.places for loop in self.loops))


def nested(loops: Sequence[Loop]) -> tuple[Loop, ...]:
    """Loops in loops, of loops that begin with the largest.

    Example:
        >>> large, small, apart = (Loop(a, b, frozenset(range(a, b + 1))) for a, b in ((0, 9), (2, 4), (12, 13)))
        >>> [(loop.first, [each.first for each in loop.inner]) for loop in nested([large, small, apart])]
        [(0, [2]), (12, [])]
    """
    outer: list[tuple[Loop, list[Loop]]] = []
    for loop in loops:
        around = next((inner for each, inner in outer if loop.places < each.places), None)
        if around is None:
            outer.append((loop, []))
        else:
            around.append(loop)
    made = (Loop(each.first, each.last, each.places, nested(inner)) for each, inner in outer)
    return tuple(sorted(made, key=lambda loop: loop.first))
