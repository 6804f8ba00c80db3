"""Reads documents with a label each, alone or in clusters; what does not parse is named with file and line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spanbert_kernels.data.faults import DataFault
from spanbert_kernels.data.text import lines_of, read_text

DELIMITERS = ";", "\t", ","
COLUMNS = ("id", "label", "text")  # of a file without a header


@dataclass(frozen=True)
class LabelledDocument:
    """A text, its label, the cluster it belongs to (None: it stands alone), and where it comes from."""

    text: str
    label: str
    cluster: str | None
    path: Path
    line: int


def read_labelled(path: Path, labels: bool = True) -> list[LabelledDocument]:
    """Documents of a file: JSON lines with text, label and perhaps cluster; a table of id, label, text; or plain lines.

    A table is a .csv or .tsv file with `;`, tabs or commas between its columns, whose first line may name them
    (text, label, cluster). Where the cluster is empty, the document stands alone. Plain lines, where `labels` are not
    asked for, are a document each.

    Raises:
        DataFault: a line that is not JSON, or without a text or, where `labels` are asked for, without a label.
        OSError: the file cannot be read.
    """
    content = read_text(path)
    if path.suffix in (".csv", ".tsv"):
        found = _table(path, content)
    elif path.suffix in (".json", ".jsonl", ".ndjson"):
        found = _json_lines(path, content)
    elif labels:
        raise DataFault(path, 1, "labels stand in .jsonl, .csv or .tsv files")
    else:
        found = ((i, {"text": line}) for i, line in enumerate(lines_of(content), 1) if line.strip())
    documents = []
    for line, fields in found:
        text, label, cluster = (fields.get(name) for name in ("text", "label", "cluster"))
        if not isinstance(text, str) or not text.strip():
            raise DataFault(path, line, f"a text is wanted, got {text!r}")
        if labels and (label is None or not str(label).strip()):
            raise DataFault(path, line, f"a label is wanted, got {label!r}")
        alone = cluster is None or not str(cluster).strip()
        documents.append(LabelledDocument(text, str(label), None if alone else str(cluster), path, line))
    return documents


def _json_lines(path: Path, content: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines_of(content), start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataFault(path, number, f"not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise DataFault(path, number, f"a JSON object is wanted, got {line[:40]!r}")
        yield number, fields


def _table(path: Path, content: str) -> Iterator[tuple[int, dict[str, Any]]]:
    first = content.split("\n", 1)[0]
    delimiter = next((mark for mark in DELIMITERS if mark in first), ",")
    rows = csv.reader(content.splitlines(keepends=True), delimiter=delimiter)
    names: tuple[str, ...] = COLUMNS
    line = 0
    for row in rows:
        line, begin = rows.line_num, line + 1
        if begin == 1 and {"text", "label"} <= set(row):
            names = tuple(row)
        elif row:
            if len(row) != len(names):
                raise DataFault(path, begin, f"{len(names)} columns are wanted ({', '.join(names)}), got {len(row)}")
            yield begin, dict(zip(names, row, strict=True))
