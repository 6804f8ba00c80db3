"""Reads plain text: its lines or paragraphs, each a text, of which sentences and words are made."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, pairwise
from pathlib import Path

from spanbert_kernels.data.faults import DataFault
from spanbert_kernels.data.splitting import Located, Place, sentences_in
from spanbert_kernels.data.text import first_line_of, lines_of, read_text

# Suffixes that say that a file holds more than its text
ANNOTATED = frozenset({".conll", ".conllu", ".iob", ".bio", ".csv", ".tsv", ".json", ".jsonl", ".ndjson"})
WIDTHS = range(40, 121)  # characters of the longest line, where a program broke the lines
WRAPPED, FEWEST = 0.9, 4  # share and number of line ends, where the next line's first word would not have fitted

Line = tuple[int, int, str]  # its number, its first character in the file, and the text


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Line numbers and lines of plain text, without empty ones; or paragraphs, where a program broke the lines.

    Raises:
        DataFault: the file's suffix is one of annotated data.
        NotText: the file is not text.
        OSError: it cannot be read.
    """
    if path.suffix.lower() in ANNOTATED:
        raise DataFault(path, 1, f"plain text is wanted here, {path.suffix} files are not read")
    first = first_line_of(path)
    return [(number, text.strip()) for number, _, text in paragraphs_of(read_text(path), first)]


def read_paragraphs(path: Path) -> list[tuple[int, Located, list[list[Place]]]]:
    """What `paragraphs_of` makes of a file: line number, text with its words, and the words by sentence.

    Raises:
        NotText: the file is not text.
        OSError: it cannot be read.
    """
    found = []
    for number, start, text in paragraphs_of(read_text(path), first_line_of(path)):
        if sentences := list(sentences_in(text)):
            found.append((number, Located(text, [place for own in sentences for place in own], start), sentences))
    return found


def paragraphs_of(text: str, first: int = 1) -> list[Line]:
    r"""Pieces of plain text that no sentence leaves, without empty ones.

    They are the lines; or what stands between empty lines, where lines were broken to be about as wide as each other.

    Args:
        text: what stands in a file.
        first: the number of its first line.

    Example:
        >>> paragraphs_of("Yes.\n\nNo. Never.\r\n")
        [(1, 0, 'Yes.'), (3, 6, 'No. Never.')]
    """
    lines = _lines(text, first)
    if not _is_wrapped([line for *_, line in lines]):
        return [each for each in lines if each[2].strip()]
    found = []
    for there, group in groupby(lines, key=lambda each: bool(each[2].strip())):
        if there:
            own = list(group)
            (number, start, _), (_, begin, last) = own[0], own[-1]
            found.append((number, start, text[start : begin + len(last)]))
    return found


def _lines(text: str, first: int) -> list[Line]:
    found, start = [], 0
    for number, line in enumerate(lines_of(text), start=first):
        found.append((number, start, line))
        start += len(line) + (2 if text.startswith("\r\n", start + len(line)) else 1)
    return found


def _is_wrapped(lines: Sequence[str]) -> bool:
    """Whether the lines were broken where the next word would have made them wider than the widest."""
    within = [(line, after) for line, after in pairwise(lines) if line.strip() and after.strip()]
    width = max(map(len, lines), default=0)
    full = sum(len(line) + 1 + len(after.split(maxsplit=1)[0]) > width for line, after in within)
    return width in WIDTHS and len(within) >= FEWEST and full >= WRAPPED * len(within)
