"""Reads mentions from CoNLL coreference columns; what does not parse is named with file and line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from spanbert_kernels.data.faults import DataFault
from spanbert_kernels.data.text import cells_of, is_blank, lines_of, read_text

BEGIN = re.compile(r"#\s*begin document\s*(.*)")
MARK = re.compile(r"\(?[^()]+\)?")


@dataclass(frozen=True)
class Mention:
    """A span of words, the last one included, its type and the entity that it is a mention of."""

    first: int
    last: int
    kind: str
    entity: str


@dataclass(frozen=True)
class MarkedDocument:
    """The words of a document and its mentions in order, which may lie in each other; and the line of each word."""

    name: str
    words: tuple[str, ...]
    mentions: tuple[Mention, ...]
    path: Path
    lines: tuple[int, ...]


def read_marked(path: Path) -> list[MarkedDocument]:
    """Documents of a file, or of all .conll files of a folder, with brackets in the last column.

    `(person-1-Ada` opens a mention of the entity 1, whose type is person and whose name is Ada, `person-1-Ada)` closes
    it, `(place-2)` is one of a single word; `(3` and `3)` have no type. Words stand in the last column but one.

    Raises:
        DataFault: a row with one column, brackets that do not parse, that close nothing or are never closed, or a
            document without words.
        OSError: a file cannot be read.
    """
    if path.is_dir():
        return [document for file in sorted(path.glob("*.conll")) for document in read_marked(file)]
    documents: list[MarkedDocument] = []
    name, begun = path.stem, 0
    rows: list[tuple[int, str, str]] = []
    for number, line in enumerate([*lines_of(read_text(path)), "# begin document"], start=1):
        if begin := BEGIN.match(line):
            if rows:
                documents.append(_document(path, name, rows))
            elif begun:
                raise DataFault(path, begun, "a document without words")
            name, begun, rows = begin[1].strip() or path.stem, number, []
        elif not is_blank(line) and not (line.startswith("#") and "\t" not in line):
            columns = cells_of(line if "\t" in line else re.sub(r"\| +", "|", line))
            if len(columns) < 2 or not columns[-2]:
                raise DataFault(path, number, f"a word and its brackets are wanted, got {line!r}")
            rows.append((number, columns[-2], columns[-1]))
    return documents


def _document(path: Path, name: str, rows: list[tuple[int, str, str]]) -> MarkedDocument:
    opened: dict[str, list[int]] = {}
    found = []
    for place, (line, _, marks) in enumerate(rows):
        for mark in [] if marks in ("_", "-", "*") else re.split(r"\|\s*", marks):
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
