"""Reads tables: .csv with quotes, by commas, semicolons or tabs; .tsv by tabs, where quotes are text."""

from __future__ import annotations

import contextlib
import csv
import io
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from spanbert_kernels.data.faults import DataFault
from spanbert_kernels.data.jsonl import TEXTS
from spanbert_kernels.data.text import BLANKS, is_blank, lines_of, read_text

SUFFIXES = frozenset({".csv", ".tsv"})
DELIMITERS = ",;\t"
WITHOUT_HEADER = ("id", "label", "text")
# What first lines call columns; any of the first, or two of the others, say that the line is a header
PLAIN_NAMES = frozenset({"id", "text", "label"})
OTHER_NAMES = frozenset(
    {"ids", "index", "idx", "nr", "number", "row", "texts", "labels", "cluster", "document", "sentence", "review"}
    | {"comment", "content", "body", "post", "tweet", "message", "title", "source", "target", "summary", "class"}
    | {"category", "sentiment", "polarity", "topic", "rating", "score", "stars", "input", "output"}
)
Table = Iterator[tuple[int, dict[str, str]]]
Rows = list[tuple[int, list[str]]]


def read_table(path: Path, wanted: Collection[str]) -> Table:
    """The rows of a table as fields by lower-case names, and their lines.

    The first line names the columns, in any order and case. A table of three columns may do without: id, label, text.

    Args:
        path: the file.
        wanted: names that have to be there.

    Raises:
        DataFault: a first line that lacks a wanted name or has a name twice, a row with more or fewer cells, quotes
            that do not match, or columns whose delimiter cannot be told.
        OSError: the file cannot be read.
    """
    content = read_text(path)
    if path.suffix.lower() == ".tsv":
        lines = enumerate(lines_of(content), start=1)
        yield from _named(path, [(number, line.split("\t")) for number, line in lines if not is_blank(line)], wanted)
        return
    first = content.lstrip("\r\n")
    readings = {mark: _first_row(first, mark) for mark in DELIMITERS}
    headers = [mark for mark, row in readings.items() if {*wanted} <= {*_columns(row)}]
    marks = headers or [mark for mark, row in readings.items() if len(row) == len(WITHOUT_HEADER)]
    if len(marks) > 1 and not headers:
        marks = [mark for mark in marks if _is_even(content, mark)] or marks
    if len(marks) > 1 and len({tuple(readings[mark]) for mark in marks}) > 1:
        raise DataFault(path, 1, f"columns are separated by one of {' '.join(map(repr, marks))}, which is not clear")
    chosen = marks[0] if marks else max(DELIMITERS, key=lambda mark: len(readings[mark]))
    yield from _named(path, _csv_rows(path, content, chosen), wanted)


def _names(row: Sequence[str]) -> list[str]:
    return [cell.strip(BLANKS).casefold() for cell in row]


def _columns(row: Sequence[str]) -> list[str]:
    """The names in a header, where the text is `text`, whatever it is called.

    A row of a table without a header, whose label may be such a name, has no other.

    Example:
        >>> _columns(["ID", "Content", "Date"]), _columns(["1", "review", "Good."])
        (['id', 'text', 'date'], ['1', 'review', 'good.'])
    """
    names = _names(row)
    others = OTHER_NAMES | PLAIN_NAMES
    found = next((name for name in (*TEXTS, "source") if name in names), "text")
    if "text" in names or found == "text" or (len(row) == len(WITHOUT_HEADER) and len(others & {*names}) < 2):
        return names
    return ["text" if name == found else name for name in names]


def _named(path: Path, rows: Rows, wanted: Collection[str]) -> Table:
    if not rows:
        return
    begin, first = rows[0]
    names = _columns(first)
    if {*wanted} <= {*names}:
        twice = [name for name, count in Counter(names).items() if count > 1 and name in ("text", "label", "cluster")]
        if twice:
            raise DataFault(path, begin, f"column {twice[0]!r} is there twice")
        rows = rows[1:]
    elif _has_no_header([row for _, row in rows]):
        names = list(WITHOUT_HEADER)
    else:
        seen = ", ".join(map(repr, first))[:100]
        known = ", ".join(wanted)
        raise DataFault(path, begin, f"a first line that names the columns {known} is wanted, got {seen}")
    for line, row in rows:
        if len(row) != len(names):
            raise DataFault(path, line, f"{len(names)} columns are wanted ({', '.join(names)}), got {len(row)}")
        yield line, dict(zip(names, row, strict=True))


def _has_no_header(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first row is one of id, label, text: it names nothing, its id is like others, texts are longer."""
    first, names = rows[0], _names(rows[0])
    if len(first) != len(WITHOUT_HEADER) or PLAIN_NAMES & {*names} or len(OTHER_NAMES & {*names}) > 1:
        return False
    even = [row for row in rows if len(row) == len(WITHOUT_HEADER)]
    if sum(len(row[1]) for row in even) > sum(len(row[2]) for row in even):
        return False
    numbered = [any(character.isdigit() for character in row[0]) for row in rows]
    return numbered[0] or not any(numbered)


def _csv_rows(path: Path, content: str, delimiter: str) -> Rows:
    found: Rows = []
    begin = 1
    with _long_cells():
        rows = _reader(content, delimiter)
        while True:
            try:
                row = next(rows, None)
            except csv.Error as error:
                raise DataFault(path, begin, f"quotes do not match in a row that begins here ({error})") from None
            if row is None:
                return found
            if row and not (len(row) == 1 and is_blank(row[0])):
                found.append((begin, row))
            begin = rows.line_num + 1


def _first_row(content: str, delimiter: str) -> list[str]:
    with _long_cells():
        try:
            return next(_reader(content, delimiter), [])
        except csv.Error:
            return []


def _is_even(content: str, delimiter: str) -> bool:
    with _long_cells():
        try:
            return len({len(row) for row in _reader(content, delimiter) if row}) == 1
        except csv.Error:
            return False


def _reader(content: str, delimiter: str) -> csv._reader:  # type: ignore[name-defined]
    return csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)


@contextlib.contextmanager
def _long_cells() -> Iterator[None]:
    """The limit is the interpreter's, not the reader's."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)
