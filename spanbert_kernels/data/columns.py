"""What all column files share: rows of cells, sentences between empty lines, documents between marks, comments."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from spanbert_kernels.data.faults import DataFault
from spanbert_kernels.data.text import cells_of, is_blank, lines_of

BEGIN = re.compile(r"#\s*begin document\b[\s:=]*(.*)", re.IGNORECASE)
END = re.compile(r"#\s*end document\b", re.IGNORECASE)
DOCSTART = "-DOCSTART-"
LABEL = re.compile(r"O|[BIESLU]-\S+")  # of a word: BIO, BIOES, BILOU
NO_MARK = frozenset({"_", "-", "*"})
_BRACKETS = re.compile(r"[(]\S+|\S+[)]")
_INTEGER = re.compile(r"-?\d+")
# OntoNotes and LitBank: document, part, number of the word, word, ...; no two sentences need be equally wide
ONTONOTES_COLUMNS, ONTONOTES_WORD = 12, 3
CONLLU_COLUMNS = 10


@dataclass(frozen=True)
class ColumnRow:
    """The cells of a line, and its number."""

    line: int
    cells: tuple[str, ...]


@dataclass
class ColumnDocument:
    """Sentences of rows between two marks; `mark` is what stands behind `#begin document`, None without such a line."""

    mark: str | None
    line: int
    sentences: list[list[ColumnRow]] = field(default_factory=list)

    def rows(self) -> list[ColumnRow]:
        """All rows, whatever their sentence."""
        return [row for sentence in self.sentences for row in sentence]


def parse_columns(text: str) -> list[ColumnDocument]:
    r"""The documents of a column file; what stands before the first mark is a document too, if anything does.

    `#begin document` and `-DOCSTART-` begin a document. A line with `#` in front is a row where it is as wide as the
    others and, between spaces, ends with a label or a bracket; else it is a comment, and ends nothing.

    Example:
        >>> [document] = parse_columns("# a note\nWe O\n# O\n1 O\n\nYes O\n")
        >>> [[row.cells[0] for row in sentence] for sentence in document.sentences]
        [['We', '#', '1'], ['Yes']]
    """
    lines = lines_of(text)
    width = next((len(cells_of(line)) for line in lines if not (is_blank(line) or line.startswith(("#", DOCSTART)))), 2)
    documents = [ColumnDocument(None, 1)]
    begin_sentence = True
    for number, line in enumerate(lines, start=1):
        if (begin := BEGIN.match(line)) or line.startswith(DOCSTART):
            documents.append(ColumnDocument(begin[1].strip() if begin else None, number))
            begin_sentence = True
        elif is_blank(line) or END.match(line):
            begin_sentence = True
        elif not line.startswith("#") or _is_word(line, width):
            if begin_sentence:
                documents[-1].sentences.append([])
            documents[-1].sentences[-1].append(ColumnRow(number, tuple(cells_of(line))))
            begin_sentence = False
    return documents if documents[0].sentences else documents[1:]


def _is_word(line: str, width: int) -> bool:
    """Whether a line that begins with `#` has a word there."""
    cells = cells_of(line)
    if len(cells) != width or " " in cells[0]:
        return False
    return "\t" in line or is_label(cells[-1]) or is_mark(cells[-1])


def is_label(cell: str) -> bool:
    """A word's label, such as O or B-person."""
    return LABEL.fullmatch(cell) is not None


def is_mark(cell: str) -> bool:
    """A word's coreference brackets, or the sign that there are none."""
    return cell in NO_MARK or _BRACKETS.fullmatch(cell) is not None


def is_ontonotes(rows: Sequence[ColumnRow]) -> bool:
    """CoNLL-2012's columns, which LitBank has too: at least twelve, the second and the third of them counting."""
    return bool(rows) and all(
        len(row.cells) >= ONTONOTES_COLUMNS and all(_INTEGER.fullmatch(cell) for cell in row.cells[1:3]) for row in rows
    )


def check_width(rows: Iterable[ColumnRow], path: Path, wanted: str) -> int:
    """How many cells all rows have.

    Raises:
        DataFault: a row of one cell, or one that has not as many as the first.
    """
    first: ColumnRow | None = None
    for row in rows:
        if len(row.cells) < 2:
            raise DataFault(path, row.line, f"{wanted} are wanted, got {' '.join(row.cells)!r}")
        first = first or row
        if len(row.cells) != len(first.cells):
            reason = f"{len(first.cells)} columns are wanted as in line {first.line}, got {len(row.cells)}"
            raise DataFault(path, row.line, f"{reason}: {' '.join(row.cells)[:60]!r}")
    return len(first.cells) if first else 0


def word_column(rows: Sequence[ColumnRow]) -> int | None:
    """The first column that neither counts (integers) nor names the document (repeats the row above).

    A last column of labels or brackets is never the one. None where there is no such column.
    """
    if is_ontonotes(rows):
        return ONTONOTES_WORD
    width = min((len(row.cells) for row in rows), default=0)
    annotated = all(is_label(row.cells[-1]) or is_mark(row.cells[-1]) for row in rows)
    if width == 1 or (width == 2 and annotated):
        return 0
    for column in range(width - annotated):
        values = [row.cells[column] for row in rows]
        repeats = sum(value == above for value, above in zip(values[1:], values, strict=False))
        if not _counts(values) and (len(values) == 1 or 2 * repeats <= len(values) - 1):
            return column
    return None


def _counts(values: Sequence[str]) -> bool:
    return 2 * sum(_INTEGER.fullmatch(value) is not None for value in values) > len(values)
