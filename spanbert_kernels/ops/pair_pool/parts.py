"""What a pair's parts are called, and what they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

# In the order of csrc/pair_pool/kernels.h.
OPERATIONS = ("take", "*", "+", "-", "/", "distance", "feature")
ROWS = ("x", "y")
KINDS = '"x", "y", two of them with *, +, - or / between, "|x-y|" and "feature"'


class PairPart(NamedTuple):
    """An operation of OPERATIONS and the places in ROWS of what it takes."""

    operation: str
    left: int = 0
    right: int = 0

    @property
    def code(self) -> int:
        """What the raw operators are told."""
        return OPERATIONS.index(self.operation) * 4 + self.left * 2 + self.right

    def reads(self) -> set[int]:
        """The rows that it takes."""
        return set() if self.operation == "feature" else {self.left, self.right}

    def factors(self) -> tuple[int, int] | None:
        """What x and y are multiplied by and added up, or None where it is no such sum."""
        signs = {"take": 0, "+": 1, "-": -1}
        if self.operation not in signs:
            return None
        found = [0, 0]
        found[self.left] += 1
        found[self.right] += signs[self.operation]
        return (found[0], found[1]) if any(found) else None


def part_of(code: int) -> PairPart:
    """The part of a code."""
    return PairPart(OPERATIONS[code // 4], code // 2 % 2, code % 2)


def parse_parts(parts: Sequence[str]) -> list[PairPart]:
    """The parts of these names.

    Example:
        >>> parse_parts(["y", "x*y"])
        [PairPart(operation='take', left=1, right=1), PairPart(operation='*', left=0, right=1)]
    """
    if isinstance(parts, (str, bytes)) or not isinstance(parts, Sequence):
        kind = f"the string {parts!r}" if isinstance(parts, str) else type(parts).__name__
        raise TypeError(f"parts must be a sequence of names, got {kind}")
    if not parts:
        raise ValueError(f"parts is empty; it takes any of {KINDS}")
    return [_parse(part) for part in parts]


def _parse(name: object) -> PairPart:
    if name == "feature":
        return PairPart("feature")
    if name in ("|x-y|", "|y-x|"):
        return PairPart("distance", 0, 1)
    if isinstance(name, str) and name in ROWS:
        return PairPart("take", ROWS.index(name), ROWS.index(name))
    if isinstance(name, str) and len(name) == 3 and name[0] in ROWS and name[1] in "*+-/" and name[2] in ROWS:
        return PairPart(name[1], ROWS.index(name[0]), ROWS.index(name[2]))
    raise ValueError(f"parts: unknown part {name!r}; there are {KINDS}")
