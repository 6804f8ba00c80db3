"""Reads tables: .csv with quotes, by commas, semicolons or tabs; .tsv by tabs, where quotes are text."""

from __future__ import annotations

import contextlib
import csv
import io
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from spanbert_kernels.data.faults import DataFault
from spanbert_kernels.data.jsonl import TEXTS
from spanbert_kernels.data.text import BLANKS, is_blank, lines_of, read_text

SUFFIXES = frozenset({".csv", ".tsv"})
SNIFFED_LINES = 400  # that say what the columns of a table are which does not stand in memory
DELIMITERS = ",;\t"
_SEPARATOR = re.compile(r"sep=(.)(?:\r\n?|\n|$)", re.IGNORECASE)  # as Excel reads and writes it above a table
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
    Rows of empty cells are passed over, and a line `sep=;` above the table names what separates cells.

    Args:
        path: the file.
        wanted: names that have to be there.

    Raises:
        DataFault: a first line that lacks a wanted name or has a name twice, a row with more or fewer cells, quotes
            that do not match, or columns whose delimiter cannot be told.
        OSError: the file cannot be read.
    """
    yield from parse_table(read_text(path), path, wanted)


def parse_table(content: str, path: Path, wanted: Collection[str]) -> Table:
    """The same of a text; `path` is for messages, and its suffix says what separates cells."""
    if path.suffix.lower() == ".tsv":
        lines = enumerate(lines_of(content), start=1)
        yield from _named(path, [(number, line.split("\t")) for number, line in lines if not is_blank(line)], wanted)
        return
    if named := _SEPARATOR.match(content):
        rows = _csv_rows(path, io.StringIO(content[named.end() :], newline=""), named[1], 2)
    else:
        rows = _csv_rows(path, io.StringIO(content, newline=""), _delimiter(content, path, wanted))
    yield from _named(path, list(rows), wanted)


def stream_table(lines: Iterator[str], path: Path, tabs: bool) -> Iterator[tuple[int, dict[str, str] | str]]:
    r"""The rows of a table of any size, by the names that its first line has, and their lines.

    Args:
        lines: with their ends, as they stand.
        path: for messages.
        tabs: whether tabs separate cells, and quotes are text, as in a .tsv.

    Returns:
        Of each row its line and its fields, or why it has none; rows of empty cells are passed over.

    Raises:
        DataFault: quotes that do not match, or columns whose delimiter cannot be told.

    Example:
        >>> list(stream_table(iter(["ID;Body\n", "1;Yes\n", "2\n"]), Path("a.csv"), tabs=False))
        [(2, {'ID': '1', 'Body': 'Yes'}), (3, '2 columns are wanted (ID, Body), got 1')]
    """
    head = list(islice(lines, SNIFFED_LINES))
    named = None if tabs or not head else _SEPARATOR.match(head[0])
    head, begin = (head[1:], 2) if named else (head, 1)
    content = "".join(head)
    every: Iterator[tuple[int, list[str]]]
    if tabs:
        every = ((number, line.rstrip("\r\n").split("\t")) for number, line in enumerate(chain(head, lines), begin))
        first = [line.split("\t") for line in lines_of(content) if not is_blank(line)]
    else:
        delimiter = named[1] if named else _delimiter(content, path, ("text",))
        every = _csv_rows(path, chain(head, lines), delimiter, begin)
        first = _sound_rows(content, delimiter)
    names: Sequence[str] | None = None
    if first and "text" not in _columns(first[0]) and _has_no_header(first):
        names = WITHOUT_HEADER
    for line, row in every:
        if all(map(is_blank, row)):
            continue
        if names is None:
            names = [cell.strip(BLANKS) for cell in row]
        elif len(row) != len(names):
            yield line, f"{len(names)} columns are wanted ({', '.join(names)}), got {len(row)}"
        else:
            yield line, dict(zip(names, row, strict=True))


def _delimiter(content: str, path: Path, wanted: Collection[str]) -> str:
    """What separates the cells of a .csv.

    Raises:
        DataFault: that is not clear.
    """
    first = content.lstrip("\r\n")
    readings = {mark: _first_row(first, mark) for mark in DELIMITERS}
    headers = [mark for mark, row in readings.items() if {*wanted} <= {*_columns(row)}]
    marks = headers or [mark for mark, row in readings.items() if len(row) == len(WITHOUT_HEADER)]
    if len(marks) > 1 and not headers:
        marks = [mark for mark in marks if _is_even(content, mark)] or marks
    if len(marks) > 1 and len({tuple(readings[mark]) for mark in marks}) > 1:
        raise DataFault(path, 1, f"columns are separated by one of {' '.join(map(repr, marks))}, which is not clear")
    return marks[0] if marks else max(DELIMITERS, key=lambda mark: len(readings[mark]))


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
        known = f"column{'s' if len(wanted) > 1 else ''} {', '.join(wanted)}"
        raise DataFault(path, begin, f"a first line that names the {known} is wanted, got {seen}")
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


def _csv_rows(path: Path, lines: Iterable[str], delimiter: str, first: int = 1) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not empty, and their lines, the first of which has that number."""
    begin, rows = first, csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        try:
            with _long_cells():
                row = next(rows, None)
        except csv.Error as error:
            raise DataFault(path, begin, f"quotes do not match in a row that begins here ({error})") from None
        if row is None:
            return
        if not all(map(is_blank, row)):
            yield begin, row
        begin = rows.line_num + first


def _first_row(content: str, delimiter: str) -> list[str]:
    with _long_cells():
        try:
            return next(_reader(content, delimiter), [])
        except csv.Error:
            return []


def _sound_rows(content: str, delimiter: str) -> list[list[str]]:
    """The rows at the beginning of a table whose rest is elsewhere."""
    found = []
    with _long_cells(), contextlib.suppress(csv.Error):
        for row in _reader(content, delimiter):
            if row:
                found.append(row)
    return found


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
