"""Reads plain text, a sentence a line."""

from __future__ import annotations

from pathlib import Path

from spanbert_kernels.data.text import lines_of, read_text, words_of


def read_words(path: Path) -> list[tuple[int, tuple[str, ...]]]:
    """Line numbers and words of plain text, a sentence a line, words separated by spaces.

    Raises:
        NotText: the file is not text.
        OSError: it cannot be read.
    """
    lines = enumerate(lines_of(read_text(path)), start=1)
    return [(number, tuple(words_of(line))) for number, line in lines if line.strip()]
