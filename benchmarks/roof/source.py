"""Which loops of a kernel's Python source the loops of its machine code are, and which are for Inf and NaN alone."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from .flow import Flow, Loop
from .sass import SourceLine

SOURCES = ("spanbert_kernels", "csrc")
ROOT = Path(__file__).resolve().parents[2]
# What a kernel's code hangs on that is for Inf and NaN alone.
FOR_WHAT_IS_NOT_FINITE = "SANITIZE"
UNROLLED = "tl.static_range"
CPP_LOOP = re.compile(r"\s*((?:for|while) \(.*)")


@dataclass(frozen=True)
class SourceLoops:
    """Of a source file the text of each loop by its line, and the lines that are for Inf and NaN alone."""

    headers: dict[int, str]
    rare: Collection[int]


@functools.cache
def lines_of(file: str) -> list[str]:
    """The lines of a source file of ours; of another's there are none.

    A kernel that was compiled in another checkout names the files there; the same ones lie here, else its hash would
    be another.
    """
    for folder in SOURCES:
        _, found, rest = file.rpartition(f"/{folder}/")
        if found:
            return (ROOT / folder / rest).read_text().splitlines()
    return []


@functools.cache
def loops_of(file: str) -> SourceLoops:
    """The loops of a source file of ours."""
    text = "\n".join(lines_of(file))
    return read_loops(text) if file.endswith(".py") else SourceLoops(cpp_loops(text), ())


def cpp_loops(text: str) -> dict[int, str]:
    r"""The loops of a C++ source, as it is formatted here.

    Example:
        >>> cpp_loops("int i = 0;\nfor (; i < 3; ++i) {\n  f(i);\n}")
        {2: 'for (; i < 3; ++i)'}
    """
    found = {}
    for number, line in enumerate(text.splitlines(), start=1):
        match = CPP_LOOP.match(line)
        if match is not None:
            found[number] = _closed(match[1])
    return found


def _closed(text: str) -> str:
    """Up to the parenthesis that closes the first one."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if letter == ")" and depth == 0:
            return text[: place + 1]
    return text


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


def headers_of(flow: Flow, loop: Loop) -> list[str]:
    """What the loop may go by: the text of its line in the source, which its last branch is of, alone or with that of
    a line that it was put into inline. None where the compiler made it.
    """
    lines = flow.instructions[loop.last].lines
    for place, line in enumerate(lines):
        text = loops_of(line.file).headers.get(line.number)
        if text is not None:
            return [*(f"{text} < {text_of(each)}" for each in lines[place + 1 :]), text]
    return []


def text_of(line: SourceLine) -> str:
    """A line of a source of ours."""
    rows = lines_of(line.file)
    return rows[line.number - 1].strip() if line.number <= len(rows) else ""


def is_rare(flow: Flow, loop: Loop) -> bool:
    """Whether a loop is for Inf and NaN alone: by its own lines, or as all that it holds are such loops."""
    lines = (line for place in loop.own() for line in flow.instructions[place].lines[:1])
    if any(line.number in loops_of(line.file).rare for line in lines):
        return True
    return bool(loop.inner) and all(is_rare(flow, each) for each in loop.inner)
