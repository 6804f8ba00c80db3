"""Machine code of NVIDIA's GPUs as nvdisasm writes it: instructions with the lines of their source."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import NamedTuple

INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+\{?\s*(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*?)\s*\}?\s*;")
LABEL = re.compile(r"(\.L_x_\d+):")
TARGET = re.compile(r"`?\(?(\.L_x_\d+)\)?")
LINE = re.compile(r'\s*//## File "([^"]*)", line (\d+)')
BRANCHES = ("BRA", "WARPSYNC")
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
        lines: of the source, where the machine code tells: its own, then that of the call of what was put there inline.
        target: the place in the code that it branches to.
    """

    name: str
    operands: str = ""
    predicate: str = ""
    lines: tuple[SourceLine, ...] = ()
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


def parse(text: str, kernel: str | None = None) -> tuple[Instruction, ...]:
    """The instructions of a kernel from what nvdisasm writes; where there are several, of that with a part of its name.

    Example:
        >>> code = parse('''
        ...         /*0000*/                   MOV R1, c[0x0][0x28] ;
        ... .L_x_0:
        ...         /*0010*/                   IADD3 R1, R1, -0x1, RZ ;
        ...         /*0020*/              @!P0 BRA `(.L_x_0) ;
        ... ''')
        >>> [each.name for each in code], code[2].target
        (['MOV', 'IADD3', 'BRA'], 1)
    """
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    lines: tuple[SourceLine, ...] = ()
    ended, wanted = False, kernel is None
    for row in text.splitlines():
        if (section := SECTION.match(row)) is not None:
            wanted, lines = kernel is None or kernel in section[1], ()
        elif not wanted:
            continue
        elif (label := LABEL.match(row)) is not None:
            labels[label[1]] = len(instructions)
        elif (place := LINE.match(row)) is not None:
            lines = (*(() if ended else lines), SourceLine(place[1], int(place[2])))
            ended = False
        elif (found := INSTRUCTION.match(row)) is not None:
            predicate, name, operands = found.groups()
            instructions.append(Instruction(name, operands, predicate or "", lines))
            ended = True
    return tuple(_with_target(each, labels) for each in instructions)


def _with_target(instruction: Instruction, labels: dict[str, int]) -> Instruction:
    label = TARGET.search(instruction.operands) if instruction.base in BRANCHES else None
    return instruction if label is None else replace(instruction, target=labels.get(label[1]))
