"""Reads words with labels from CoNLL columns; what does not parse is named with file and line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

LABEL = re.compile(r"O|[BIES]-\S+")
Item = TypeVar("Item")


class DataFault(ValueError):
    """A line of a data file that cannot be used; the message begins with file and line."""

    def __init__(self, path: Path, line: int, reason: str) -> None:
        super().__init__(f"{path}, line {line}: {reason}")


class DataWarning(UserWarning):
    """Something in a data file that can be used in part only; the message begins with the file."""


@dataclass(frozen=True)
class TaggedSentence:
    """Words and their labels, and where they stand: the line of the first word."""

    words: tuple[str, ...]
    labels: tuple[str, ...]
    path: Path
    line: int


def some(found: list[Item], path: Path) -> list[Item]:
    """What was read from a file or folder, to train or score on.

    Raises:
        ValueError: that is nothing; the message names the file.
    """
    if not found:
        raise ValueError(f"{path}: there is nothing to train or score on")
    return found


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


def read_words(path: Path) -> list[tuple[int, tuple[str, ...]]]:
    """Line numbers and words of plain text, a sentence a line, words separated by spaces."""
    lines = path.read_text(encoding="utf-8-sig", errors="replace").split("\n")
    rows = ((number, tuple(line.split())) for number, line in enumerate(lines, start=1))
    return [(number, words) for number, words in rows if words]


def _paragraphs(path: Path) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    rows: list[tuple[str, str]] = []
    lines = path.read_text(encoding="utf-8-sig", errors="replace").split("\n")
    for number, line in enumerate([*lines, ""], start=1):
        if not line.strip():
            if rows:
                yield number - len(rows), rows
            rows = []
            continue
        if line.startswith(("-DOCSTART-", "# ")):
            continue
        columns = line.rstrip("\r").split("\t") if "\t" in line else line.split()
        if len(columns) < 2 or not columns[0].strip():
            raise DataFault(path, number, f"a word and its label are wanted, got {line!r}")
        label = columns[-1].strip()
        if not LABEL.fullmatch(label):
            raise DataFault(path, number, f"{label!r} is not a label such as O, B-person or I-person")
        rows.append((columns[0].strip(), label))
