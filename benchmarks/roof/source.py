"""Which loops of a kernel's Python source the loops of its machine code are, and which are for Inf and NaN alone."""

from __future__ import annotations

import ast
import functools
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from .sass import Code, Loop, SourceLine

PACKAGE = "spanbert_kernels"
ROOT = Path(__file__).resolve().parents[2]
# What a kernel's code hangs on that is for Inf and NaN alone.
FOR_WHAT_IS_NOT_FINITE = "SANITIZE"
UNROLLED = "tl.static_range"


@dataclass(frozen=True)
class SourceLoops:
    """Of a source file the text of each loop by its line, and the lines that are for Inf and NaN alone."""

    headers: dict[int, str]
    rare: Collection[int]


@functools.cache
def loops_of(file: str) -> SourceLoops:
    """The loops of a source file of ours; of another's there are none.

    A kernel that was compiled in another checkout names the files there; the same ones lie here, else its hash would
    be another.
    """
    _, found, rest = file.rpartition(f"/{PACKAGE}/")
    if not found or not rest.endswith(".py"):
        return SourceLoops({}, ())
    return read_loops((ROOT / PACKAGE / rest).read_text())


def read_loops(text: str) -> SourceLoops:
    r"""The loops of a source text.

    Example:
        >>> read_loops("while a < b:\n    if SANITIZE:\n        a = 1\n    for i in tl.static_range(4):\n        b = i")
        SourceLoops(headers={1: 'while a < b'}, rare={3})
    """
    lines, nodes = text.splitlines(), list(ast.walk(ast.parse(text)))
    numbers = (
        node.lineno
        for node in nodes
        if isinstance(node, ast.While) or (isinstance(node, ast.For) and UNROLLED not in ast.unparse(node.iter))
    )
    rare = {
        number
        for node in nodes
        if isinstance(node, ast.If) and ast.unparse(node.test) == FOR_WHAT_IS_NOT_FINITE
        for each in node.body
        for number in range(each.lineno, (each.end_lineno or each.lineno) + 1)
    }
    return SourceLoops({number: lines[number - 1].strip().removesuffix(":") for number in numbers}, rare)


def header_of(code: Code, loop: Loop) -> str | None:
    """The text of the loop's line in the source, which its last branch is of, or None where the compiler made it."""
    line = code.instructions[loop.last].line
    return None if line is None else loops_of(line.file).headers.get(line.number)


def is_rare(code: Code, loop: Loop) -> bool:
    """Whether a loop is for Inf and NaN alone: by its own lines, or as all that it holds are such loops."""
    if any(line.number in loops_of(line.file).rare for line in _lines(code, loop)):
        return True
    return bool(loop.inner) and all(is_rare(code, each) for each in loop.inner)


def _lines(code: Code, loop: Loop) -> list[SourceLine]:
    """Of the instructions that belong to no inner loop."""
    found = (code.instructions[place].line for place in loop.own())
    return [line for line in found if line is not None]
