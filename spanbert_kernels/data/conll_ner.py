"""Reads words with labels from CoNLL columns; what does not parse is named with file and line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from spanbert_kernels.data.faults import DataFault
from spanbert_kernels.data.text import cells_of, is_blank, lines_of, read_text

LABEL = re.compile(r"O|[BIES]-\S+")


@dataclass(frozen=True)
class TaggedSentence:
    """Words and their labels, and where they stand: the line of the first word."""

    words: tuple[str, ...]
    labels: tuple[str, ...]
    path: Path
    line: int


def read_tagged(path: Path) -> list[TaggedSentence]:
    """Sentences of a file with a word and, in the last column, its BIO label; sentences stand apart by empty lines.

    Columns are separated by tabs or spaces. Lines that begin with `-DOCSTART-` or `# ` are passed over.

    Raises:
        DataFault: a line with one column, a label that is not BIO, or a label that goes on with nothing.
        OSError: the file cannot be read.
    """
    sentences = []
    for line, rows in _paragraphs(path):
        for number, (_, label) in enumerate(rows):
            before = rows[number - 1][1] if number else "O"
            if label.startswith("I-") and before[2:] != label[2:]:
                raise DataFault(path, line + number, f"label {label} goes on with an entity that {before} is not")
        words, labels = zip(*rows, strict=True)
        sentences.append(TaggedSentence(words, labels, path, line))
    return sentences


def _paragraphs(path: Path) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    rows: list[tuple[str, str]] = []
    for number, line in enumerate([*lines_of(read_text(path)), ""], start=1):
        if is_blank(line):
            if rows:
                yield number - len(rows), rows
            rows = []
            continue
        if line.startswith(("-DOCSTART-", "# ")):
            continue
        columns = cells_of(line)
        if len(columns) < 2 or not columns[0]:
            raise DataFault(path, number, f"a word and its label are wanted, got {line!r}")
        label = columns[-1]
        if not LABEL.fullmatch(label):
            raise DataFault(path, number, f"{label!r} is not a label such as O, B-person or I-person")
        rows.append((columns[0], label))
