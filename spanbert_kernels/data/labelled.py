"""Reads documents with a label each, alone or in clusters; what does not parse is named with file and line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spanbert_kernels.data import kinds, records
from spanbert_kernels.data.faults import DataFault
from spanbert_kernels.data.plain import read_lines
from spanbert_kernels.data.sources import Source, files_of


@dataclass(frozen=True)
class LabelledDocument:
    """A text, its label, the cluster it belongs to (None: it stands alone), and where it comes from."""

    text: str
    label: str
    cluster: str | None
    path: Path
    line: int


def read_labelled(source: Source, labels: bool = True) -> list[LabelledDocument]:
    """Documents of a file: JSON lines with text, label and perhaps cluster; a table of id, label, text; or plain lines.

    A table is a .csv or .tsv file, see `read_table`. Where the cluster is empty, the document stands alone. Plain
    lines, where `labels` are not asked for, are a document each.

    Args:
        source: a file, a folder, or several of them.
        labels: whether every document has to have one.

    Raises:
        DataFault: a file of another kind, a line that is not JSON, a table without a column text, or a document without
            a text or, where `labels` are asked for, without a label.
        OSError: the file cannot be read.
    """
    suffixes = (*records.SUFFIXES, *(() if labels else kinds.TEXTS))
    return [document for path in files_of(source, suffixes) for document in _documents(path, labels)]


def _documents(path: Path, labels: bool) -> list[LabelledDocument]:
    found: Iterable[tuple[int, dict[str, Any]]]
    if records.holds_records(path):
        found = records.read_named(path, ("text", "label") if labels else ("text",))
    elif labels:
        raise DataFault(path, 1, "labels stand in .jsonl, .csv or .tsv files")
    else:
        found = ((line, {"text": text}) for line, text in read_lines(path))
    documents = []
    for line, fields in found:
        text, label, cluster = (fields.get(name) for name in ("text", "label", "cluster"))
        if not isinstance(text, str) or not text.strip():
            raise DataFault(path, line, f"a text is wanted, got {text!r}{records.seen(fields, 'text')}")
        name = _name("label", label, path, line) if labels else None
        if labels and name is None:
            raise DataFault(path, line, f"a label is wanted, got {label!r}{records.seen(fields, 'label')}")
        documents.append(LabelledDocument(text, name or "", _name("cluster", cluster, path, line), path, line))
    return documents


def _name(what: str, value: Any, path: Path, line: int) -> str | None:
    """A label or a cluster as text, numbers and truth as JSON spells them, 2.0 as 2; None where there is none.

    Raises:
        DataFault: a list, an object or a number that is none.
    """
    if value is None or isinstance(value, str):
        return value if value and value.strip() else None
    if isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, (int, float)) and math.isfinite(value):
        return str(int(value)) if value == int(value) else str(value)
    kind = "a list" if isinstance(value, list) else "an object" if isinstance(value, dict) else "no number"
    raise DataFault(path, line, f"a {what} is one text or number, got {kind}: {str(value)[:60]}")
