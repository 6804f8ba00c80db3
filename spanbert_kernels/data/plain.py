"""Reads plain text: a text, or a sentence of words, a line."""

from __future__ import annotations

from pathlib import Path

from spanbert_kernels.data.faults import DataFault
from spanbert_kernels.data.text import lines_of, read_text, words_of

# Suffixes that say that a file holds more than its text
ANNOTATED = frozenset({".conll", ".conllu", ".iob", ".bio", ".csv", ".tsv", ".json", ".jsonl", ".ndjson"})


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Line numbers and lines of plain text, without empty ones.

    Raises:
        DataFault: the file's suffix is one of annotated data.
        NotText: the file is not text.
        OSError: it cannot be read.
    """
    if path.suffix.lower() in ANNOTATED:
        raise DataFault(path, 1, f"plain text is wanted here, {path.suffix} files are not read")
    return [(number, line.strip()) for number, line in enumerate(lines_of(read_text(path)), start=1) if line.strip()]


def words_of_lines(text: str) -> list[tuple[int, tuple[str, ...]]]:
    r"""Line numbers and words of plain text, a sentence a line, words separated by spaces.

    Example:
        >>> words_of_lines("Yes .\n\nNo .")
        [(1, ('Yes', '.')), (3, ('No', '.'))]
    """
    lines = enumerate(lines_of(text), start=1)
    return [(number, tuple(words_of(line))) for number, line in lines if line.strip()]
