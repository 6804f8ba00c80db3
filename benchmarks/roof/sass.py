"""Machine code of NVIDIA's GPUs as nvdisasm writes it: instructions with the lines of their source, and loops."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+\{?\s*(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*?)\s*\}?\s*;")
LABEL = re.compile(r"(\.L_x_\d+):")
TARGET = re.compile(r"`?\(?(\.L_x_\d+)\)?")
LINE = re.compile(r'\s*//## File "([^"]*)", line (\d+)')
SECTION = re.compile(r"\.text\.(\S+):")


class SourceLine(NamedTuple):
    """A line of a source file."""

    file: str
    number: int


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        name: with all that stands behind dots, such as `LDG.E.128`.
        operands: the text behind the name.
        predicate: the register that it hangs on, or none.
        line: of the source, where the machine code tells.
        target: the place in the code that it branches to.
    """

    name: str
    operands: str = ""
    predicate: str = ""
    line: SourceLine | None = None
    target: int | None = None

    @property
    def base(self) -> str:
        """The name alone.

        Example:
            >>> Instruction("LDG.E.128").base
            'LDG'
        """
        return self.name.split(".")[0]

    @property
    def width(self) -> int:
        """Bytes that a thread moves, where it moves any.

        Example:
            >>> [Instruction(name).width for name in ("LDG.E.128", "LDS", "STS.U16", "LDSM.16.MT88.4")]
            [16, 4, 2, 16]
        """
        fields = self.name.split(".")[1:]
        if self.base in ("LDSM", "STSM"):
            return 4 * int(fields[-1]) if fields[-1] in ("2", "4") else 4
        return next((BYTES[each] for each in fields if each in BYTES), 4)


BYTES = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}


@dataclass(frozen=True)
class Loop:
    """Instructions that a branch at their end goes back to the first of.

    Attributes:
        first, last: places in the code, that of the branch last.
        inner: the loops among them, outermost ones.
    """

    first: int
    last: int
    inner: tuple[Loop, ...] = ()

    def all(self) -> Iterator[Loop]:
        """The loop itself and all within."""
        yield self
        for loop in self.inner:
            yield from loop.all()

    def own(self) -> Iterator[int]:
        """The places that belong to no inner loop."""
        inside = {place for loop in self.inner for place in range(loop.first, loop.last + 1)}
        return (place for place in range(self.first, self.last + 1) if place not in inside)


@dataclass(frozen=True)
class Code:
    """A kernel's instructions and its outermost loops."""

    instructions: tuple[Instruction, ...]
    loops: tuple[Loop, ...]

    def straight(self) -> Iterator[int]:
        """The places of the instructions that are in no loop."""
        return Loop(0, len(self.instructions) - 1, self.loops).own()


def parse(text: str, kernel: str | None = None) -> Code:
    """The code of a kernel, by its name where there are several, from what nvdisasm writes.

    Example:
        >>> code = parse('''
        ...         /*0000*/                   MOV R1, c[0x0][0x28] ;
        ... .L_x_0:
        ...         /*0010*/                   IADD3 R1, R1, -0x1, RZ ;
        ...         /*0020*/              @!P0 BRA `(.L_x_0) ;
        ... ''')
        >>> [each.name for each in code.instructions], code.loops
        (['MOV', 'IADD3', 'BRA'], (Loop(first=1, last=2, inner=()),))
    """
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    line: SourceLine | None = None
    wanted = True
    for row in text.splitlines():
        if (section := SECTION.match(row)) is not None:
            wanted, line = kernel is None or kernel in section[1], None
        elif not wanted:
            continue
        elif (label := LABEL.match(row)) is not None:
            labels[label[1]] = len(instructions)
        elif (place := LINE.match(row)) is not None:
            line = SourceLine(place[1], int(place[2]))
        elif (found := INSTRUCTION.match(row)) is not None:
            predicate, name, operands = found.groups()
            instructions.append(Instruction(name, operands, predicate or "", line))
    placed = tuple(_with_target(each, labels) for each in instructions)
    return Code(placed, nested(sorted(_back_branches(placed).items())))


def _with_target(instruction: Instruction, labels: dict[str, int]) -> Instruction:
    label = TARGET.search(instruction.operands) if instruction.base == "BRA" else None
    return instruction if label is None else replace(instruction, target=labels.get(label[1]))


def _back_branches(instructions: Sequence[Instruction]) -> dict[int, int]:
    """Of every place that a later branch goes back to, the last such branch; a branch to itself only ends the code."""
    return {
        each.target: place for place, each in enumerate(instructions) if each.target is not None and each.target < place
    }


def nested(ranges: Sequence[tuple[int, int]]) -> tuple[Loop, ...]:
    """Loops in loops, of ranges in the order of their beginnings.

    Example:
        >>> [(loop.first, len(loop.inner)) for loop in nested([(0, 9), (2, 3), (5, 6), (11, 12)])]
        [(0, 2), (11, 0)]
    """
    loops = []
    rest = list(ranges)
    while rest:
        (first, last), *rest = rest
        inside = [each for each in rest if each[0] <= last]
        rest = rest[len(inside) :]
        last = max([last, *(end for _, end in inside)])
        loops.append(Loop(first, last, nested(inside)))
    return tuple(loops)
