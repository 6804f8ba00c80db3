"""Reads mentions from CoNLL coreference columns; what does not parse is named with file and line."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from spanbert_kernels.data.columns import NO_MARK, check_width, is_ontonotes, parse_columns, word_column
from spanbert_kernels.data.faults import DataFault, warn
from spanbert_kernels.data.splitting import Located
from spanbert_kernels.data.text import read_text

MARK = re.compile(r"\(?[^()]+\)?")
EMPTY = "_"  # stands for a word without characters
SPACED = re.compile(r"\| +(?=\S+(?:\| +\S+)* *$)", re.MULTILINE)  # between brackets at the end of a line


@dataclass(frozen=True)
class Mention:
    """A span of words, the last one included, its type and the entity that it is a mention of."""

    first: int
    last: int
    kind: str
    entity: str


@dataclass(frozen=True)
class MarkedDocument:
    """The words of a document and its mentions in order, which may lie in each other; and the line of each word.

    `located` says where the words stand in the text, if there was one to split.
    """

    name: str
    words: tuple[str, ...]
    mentions: tuple[Mention, ...]
    path: Path
    lines: tuple[int, ...]
    located: Located | None = field(default=None, compare=False, repr=False)


def read_marked(path: Path, mentions: bool = True) -> list[MarkedDocument]:
    """Documents of a column file with brackets in the last column.

    `(person-1-Ada` opens a mention of the entity 1, whose type is person and whose name is Ada, `person-1-Ada)` closes
    it, `(place-2)` is one of a single word; `(3` and `3)` have no type. Words stand in the fourth column of
    CoNLL-2012's twelve and more (OntoNotes, LitBank), else in the first that neither counts nor repeats a name.

    Args:
        path: the file.
        mentions: whether the mentions are wanted; else the last column is not looked at.

    Raises:
        DataFault: a row of one column, or, but for CoNLL-2012's, of more or fewer than the others; no column of words;
            brackets that do not parse, that close nothing or are never closed; or a document without words. A word
            without characters among others is warned of.
        OSError: the file cannot be read.
    """
    documents = parse_columns(SPACED.sub("|", read_text(path)))
    rows = [row for document in documents for row in document.rows()]
    wanted = "a word and its brackets"
    if not is_ontonotes(rows) and (mentions or any(len(row.cells) > 1 for row in rows)):
        check_width(rows, path, wanted)
    column = word_column(rows)
    if rows and column is None:
        raise DataFault(path, rows[0].line, f"{wanted} are wanted, no column has words: {' '.join(rows[0].cells)!r}")
    found = []
    for number, document in enumerate(documents, start=1):
        own = document.rows()
        if not own:
            raise DataFault(path, document.line, "a document without words")
        empty = [row for row in own if not row.cells[column or 0]]
        if len(empty) == len(own):
            raise DataFault(path, empty[0].line, f"{wanted} are wanted, got {' '.join(empty[0].cells)!r}")
        if empty:  # as in a published file of OntoGUM
            warn(
                f"{path}, line {empty[0].line}: a word is empty, and taken for {EMPTY!r} ({len(empty)} in the document)"
            )
        marked = [(row.line, row.cells[column or 0] or EMPTY, row.cells[-1] if mentions else "_") for row in own]
        found.append(
            _document(path, document.mark or (path.stem if len(documents) == 1 else f"{path.stem} {number}"), marked)
        )
    return found


def _document(path: Path, name: str, rows: list[tuple[int, str, str]]) -> MarkedDocument:
    opened: dict[str, list[int]] = {}
    found = []
    for place, (line, _, marks) in enumerate(rows):
        for mark in [] if marks in NO_MARK else marks.split("|"):
            parts = MARK.findall(mark)
            if "".join(parts) != mark or not all(part[0] == "(" or part[-1] == ")" for part in parts):
                raise DataFault(path, line, f"{marks!r} is not a mention's bracket such as (person-1 or person-1)")
            for part in parts:
                kind, entity = _kind_and_entity(part.strip("()"))
                key = f"{kind}-{entity}"
                if part[0] == "(":
                    opened.setdefault(key, []).append(place)
                if part[-1] == ")":
                    if not opened.get(key):
                        raise DataFault(path, line, f"{part!r} closes a mention that is not open")
                    found.append(Mention(opened[key].pop(), place, kind, entity))
    for places in opened.values():
        if places:
            line, _, marks = rows[places[0]]
            raise DataFault(path, line, f"a mention of {marks!r} is never closed")
    mentions = tuple(sorted(found, key=lambda m: (m.first, -m.last, m.kind, m.entity)))
    return MarkedDocument(name, tuple(word for _, word, _ in rows), mentions, path, tuple(line for line, _, _ in rows))


def _kind_and_entity(mark: str) -> tuple[str, str]:
    """`person-1-Ada` -> person, 1; `3` -> no type, 3."""
    parts = mark.split("-", 2)
    return (parts[0], parts[1]) if len(parts) > 1 else ("", mark)
