"""Reads relations of entities from a table of two entities and their relation, between tabs."""

from __future__ import annotations

from pathlib import Path

from spanbert_kernels.data.counts import left_out
from spanbert_kernels.data.faults import DataFault
from spanbert_kernels.data.text import is_blank, lines_of, read_text


def read_relations(path: Path) -> dict[tuple[str, str], tuple[int, str]]:
    """The line and the relation of each pair of entities.

    Raises:
        DataFault: a line that has not three columns, an entity that is related to itself, or a pair with two relations.
        OSError: the file cannot be read.
    """
    found: dict[tuple[str, str], tuple[int, str]] = {}
    for number, line in enumerate(lines_of(read_text(path)), start=1):
        if is_blank(line):
            continue
        columns = [column.strip(" ") for column in line.split("\t")]
        if len(columns) != 3 or not all(columns):
            raise DataFault(path, number, f"two entities and their relation are wanted, got {line!r}")
        first, second, kind = columns
        if first == second:
            raise DataFault(path, number, f"entity {first!r} is related to itself")
        if found.get((first, second), (0, kind))[1] != kind:
            line_before, _ = found[first, second]
            raise DataFault(path, number, f"{first!r} and {second!r} have another relation in line {line_before}")
        left_out("relation", "twice", (first, second) in found)
        found.setdefault((first, second), (number, kind))
    return found
