"""Reads records, of JSON or of a table, whose fields have names."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from spanbert_kernels.data import jsonl, kinds, tables

SUFFIXES = frozenset({*jsonl.SUFFIXES, *tables.SUFFIXES})


def holds_records(path: Path) -> bool:
    """Whether a file's name, or what came in, says so."""
    return kinds.suffix_of(path) in SUFFIXES


def read_named(path: Path, wanted: Collection[str] = ("text",)) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records of a file and their lines; names are in lower case, and the text is `text`, whatever it is called.

    Args:
        path: JSON lines, an array, or a table, see `read_table`.
        wanted: columns that a table has to have.

    Raises:
        DataFault: what does not parse, or a table without a wanted column.
        OSError: the file cannot be read.
    """
    if kinds.suffix_of(path) in tables.SUFFIXES:
        yield from tables.read_table(path, wanted)
        return
    for line, fields in jsonl.read_records(path):
        yield line, jsonl.with_text(fields)


def names_in(fields: dict[str, Any]) -> str:
    """The fields of a record, but for the `text` that stands for another of them.

    Example:
        >>> names_in({"body": "Good.", "mood": "x", "text": "Good."})
        'body, mood'
    """
    own = [each for each in fields if each != "text" or fields.get("text") not in [*fields.values()][:-1]]
    return ", ".join(own)[:100] or "no fields"


def seen(fields: dict[str, Any], name: str) -> str:
    """For a message that a field is wanted: what there is where that is not.

    Example:
        >>> seen({"body": "Good.", "mood": "x", "text": "Good."}, "label")
        '; there is no label among body, mood'
    """
    return "" if name in fields else f"; there is no {name} among {names_in(fields)}"[:120]
