"""Reads words with the labels of named entities from CoNLL columns; what does not parse is named with file and line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from spanbert_kernels.data.columns import ColumnRow, check_width, is_label, parse_columns
from spanbert_kernels.data.faults import DataFault, warn
from spanbert_kernels.data.splitting import Located
from spanbert_kernels.data.text import read_text

# Types of phrases, whose labels stand before those of entities in CoNLL-2000 and CoNLL-2003
PHRASES = frozenset(
    {"ADJP", "ADVP", "CONJP", "INTJ", "LST", "NP", "PP", "PRT", "SBAR", "UCP", "VP"} | {"NC", "PC", "VC", "AC"}
)
ENDS, ALONE = frozenset("EL"), frozenset("SU")
NAMED_ROWS = 3  # that repeat the row above; so many words in a row are not the same by chance
GERMEVAL_COLUMNS = 4  # number, word, outer label, inner label
BIOES, IOB1 = "BIOES or BILOU", "IOB1"


@dataclass(frozen=True)
class TaggedSentence:
    """Words and their labels, and where they stand: the lines of the file, the first word's and every word's.

    `located` says where in the text, if there was one to split.
    """

    words: tuple[str, ...]
    labels: tuple[str, ...]
    path: Path
    line: int
    lines: tuple[int, ...] = ()
    located: Located | None = field(default=None, compare=False, repr=False)

    def line_of(self, word: int) -> int:
        """The line of a word by its number; comments may stand between words."""
        return self.lines[word] if self.lines else self.line + word


def read_tagged(path: Path) -> list[TaggedSentence]:
    """Sentences of a file with a word and, in the last column, its label; sentences stand apart by empty lines.

    Columns are separated by tabs or spaces, and every row has as many; columns in front that count the words or name
    the document are passed over. Labels are BIO; IOB1, BIOES and BILOU become BIO, and a warning says so. Where labels
    have layers (GermEval), the outer one is read, and a warning says so. `-DOCSTART-` ends a sentence.

    Raises:
        DataFault: a line with one column or with more or fewer than the others, a label of no such scheme, or one that
            goes on with nothing.
        OSError: the file cannot be read.
    """
    sentences = [rows for document in parse_columns(read_text(path)) for rows in document.sentences]
    every = [row for rows in sentences for row in rows]
    if not every:
        return []
    width = check_width(every, path, "a word and its label")
    word = word_place(sentences, width)
    column = _label_column(every, width, word, path)
    for row in every:
        if not row.cells[word]:
            raise DataFault(path, row.line, f"a word and its label are wanted, got {' '.join(row.cells)!r}")
        if not is_label(row.cells[column]):
            raise DataFault(path, row.line, f"{row.cells[column]!r} is not a label such as O, B-person or I-person")
    labels = _as_bio([[row.cells[column] for row in rows] for rows in sentences], sentences, path)
    return [
        TaggedSentence(
            tuple(row.cells[word] for row in rows), tuple(own), path, rows[0].line, tuple(row.line for row in rows)
        )
        for rows, own in zip(sentences, labels, strict=True)
    ]


def word_place(sentences: Sequence[Sequence[ColumnRow]], width: int) -> int:
    """The column of the words: the first but for columns that count words or name the document.

    The last two of the columns, of which one is the label, never are such.
    """
    counting = [column for column in range(width - 2) if _counts(sentences, column)]
    for column in range(width - 2):
        if column not in counting and not _names(sentences, column, any(each > column for each in counting)):
            return column
    return max(width - 2, 0)


def _counts(sentences: Sequence[Sequence[ColumnRow]], column: int) -> bool:
    """Numbers that go up by one, from 0 or 1 on in every sentence, or on through all of them."""
    after = ""
    for rows in sentences:
        first = rows[0].cells[column]
        if first not in ("0", "1", after):
            return False
        if any(row.cells[column] != str(int(first) + place) for place, row in enumerate(rows)):
            return False
        after = str(int(first) + len(rows))
    return True


def _names(sentences: Sequence[Sequence[ColumnRow]], column: int, before_numbers: bool) -> bool:
    """The same in all rows of a sentence, in front of the words' numbers or in more rows than chance makes so."""
    if any(row.cells[column] != rows[0].cells[column] for rows in sentences for row in rows):
        return False
    repeating = sum(map(len, sentences)) - len(sentences)
    return repeating > NAMED_ROWS or (repeating > 0 and before_numbers)


def _label_column(rows: Sequence[ColumnRow], width: int, word: int, path: Path) -> int:
    """The last column, or the first of several that hold layers of labels."""
    last = width - 1
    if not all(is_label(row.cells[last]) for row in rows):
        return last
    inner = _types(rows, last)
    outer = last
    while outer - 1 > word and all(is_label(row.cells[outer - 1]) for row in rows):
        found = _types(rows, outer - 1)
        layered = inner <= found or (word == 1 and width == GERMEVAL_COLUMNS)
        if not found or found <= PHRASES or not layered:
            break
        outer -= 1
    if outer < last and inner:
        names = f"column {last + 1}" if outer + 2 > last else f"columns {outer + 2} to {last + 1}"
        reason = f"labels in {names} lie inside those of column {outer + 1} and are not read"
        warn(f"{path}: {reason}")
    return outer


def _types(rows: Sequence[ColumnRow], column: int) -> set[str]:
    return {row.cells[column][2:] for row in rows} - {""}


def _as_bio(
    labels: Sequence[Sequence[str]], sentences: Sequence[Sequence[ColumnRow]], path: Path
) -> Sequence[Sequence[str]]:
    scheme = scheme_of(labels)
    if scheme == IOB1:
        found = [_from_iob1(own) for own in labels]
    else:
        for rows, own in zip(sentences, labels, strict=True):
            _check(rows, own, scheme == BIOES, path)
        if scheme is None:
            return labels
        found = [_from_bioes(own) for own in labels]
    warn(f"{path}: labels are {scheme} and are read as BIO")
    return found


def scheme_of(labels: Sequence[Sequence[str]]) -> str | None:
    """The scheme of sentences' labels where it is not BIO.

    In IOB1 an entity begins with I, and with B only where one of the same type stands right before it.

    Example:
        >>> scheme_of([["I-PER", "O", "I-PER", "B-PER"]]), scheme_of([["S-PER"]]), scheme_of([["B-PER", "I-PER"]])
        ('IOB1', 'BIOES or BILOU', None)
    """
    pairs = [(label, before) for own in labels for label, before in zip(own, ["O", *own], strict=False)]
    if any(label[0] in ENDS | ALONE for label, _ in pairs):
        return BIOES
    begins = any(label[0] == "I" and before[2:] != label[2:] for label, before in pairs)
    needless = any(label[0] == "B" and before[2:] != label[2:] for label, before in pairs)
    return IOB1 if begins and not needless else None


def _check(rows: Sequence[ColumnRow], labels: Sequence[str], ends: bool, path: Path) -> None:
    """Raises `DataFault` for a label that goes on with nothing and, where entities have ends, for one without."""
    for row, label, before in zip(rows, labels, ["O", *labels], strict=False):
        is_open = before[0] in "BI" if ends else before != "O"
        goes_on = label[0] == "I" or label[0] in ENDS
        if goes_on and not (is_open and before[2:] == label[2:]):
            raise DataFault(path, row.line, f"label {label} goes on with an entity that {before} is not")
        if ends and is_open and not goes_on:
            raise DataFault(path, row.line, f"label {label} follows {before}, whose entity has no end")
    if ends and labels[-1][0] in "BI":
        raise DataFault(path, rows[-1].line, f"label {labels[-1]} ends a sentence, and its entity has no end")


def _from_iob1(labels: Sequence[str]) -> list[str]:
    return [
        f"B-{label[2:]}" if label[0] == "I" and before[2:] != label[2:] else label
        for label, before in zip(labels, ["O", *labels], strict=False)
    ]


def _from_bioes(labels: Sequence[str]) -> list[str]:
    bio = dict.fromkeys(ENDS, "I") | dict.fromkeys(ALONE, "B")
    return [bio.get(label[0], label[0]) + label[1:] for label in labels]
