"""Reads texts that translate each other, and texts to translate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spanbert_kernels.data.faults import DataFault
from spanbert_kernels.data.text import lines_of, read_text


@dataclass(frozen=True)
class Pair:
    """A text and what is wanted of it, one text or several alternatives; and where it comes from."""

    source: str
    targets: tuple[str, ...]
    path: Path
    line: int


def read_aligned(folder: Path) -> list[Pair]:
    """Lines of `source.txt` and `target.txt` in a folder, which translate each other.

    Raises:
        DataFault: there are not as many lines in both, or one is empty on one side.
        OSError: a file cannot be read.
    """
    source, target = folder / "source.txt", folder / "target.txt"
    sides = [lines_of(read_text(path).rstrip("\r\n")) for path in (source, target)]
    if len(sides[0]) != len(sides[1]):
        shorter = source if len(sides[0]) < len(sides[1]) else target
        raise DataFault(shorter, min(map(len, sides)), f"{len(sides[0])} lines of source, {len(sides[1])} of target")
    found = []
    for number, (text, wanted) in enumerate(zip(*sides, strict=True), start=1):
        for path, line in ((source, text), (target, wanted)):
            if not line.strip():
                raise DataFault(path, number, "an empty line")
        found.append(Pair(text.strip(), (wanted.strip(),), source, number))
    return found


def read_lines(path: Path) -> list[Pair]:
    """Plain lines, a text each.

    Raises:
        NotText: the file is not text.
        OSError: it cannot be read.
    """
    lines = enumerate(lines_of(read_text(path)), start=1)
    return [Pair(line.strip(), (), path, number) for number, line in lines if line.strip()]
