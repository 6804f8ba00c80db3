"""Reads documents with summaries; what does not parse is named with file and line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from spanbert_kernels.data import kinds, records
from spanbert_kernels.data.conllu import read_sentences
from spanbert_kernels.data.faults import DataFault
from spanbert_kernels.data.parallel import Pair
from spanbert_kernels.data.plain import read_lines
from spanbert_kernels.data.sources import Source, files_of

SUMMARY = re.compile(r"# meta::summary\d* = \(human\d*\)\s*(.+)")


def read_summarised(source: Source, targets: bool = True) -> list[Pair]:
    """Documents with summaries: records with source and target, or CoNLL-U with `# meta::summary1 = (human) ...`.

    Records are those of JSON or of a table; a source may be called text, or as texts are, a target summary. Both are a
    text or a list: of sentences, and of alternatives. Plain lines are a document each, where no `targets` are wanted.

    Args:
        source: a file, a folder, or several of them.
        targets: whether every document has to have one.

    Raises:
        DataFault: a file of another kind, a line that is not JSON, a document without words or, where asked for,
            without a summary.
        OSError: a file cannot be read.
    """
    suffixes = (".conllu", *records.SUFFIXES, *(() if targets else kinds.TEXTS))
    return [pair for path in files_of(source, suffixes) for pair in _of_file(path, targets)]


def _of_file(path: Path, targets: bool) -> list[Pair]:
    suffix = kinds.suffix_of(path)
    if suffix == ".conllu":
        return _annotated(path, targets)
    if records.holds_records(path):
        return [_of_record(path, line, fields, targets) for line, fields in records.read_named(path)]
    if targets:
        raise DataFault(path, 1, "summaries stand in .jsonl, .csv, .tsv or .conllu files")
    return [Pair(text, (), path, line) for line, text in read_lines(path)]


def _of_record(path: Path, line: int, fields: dict[str, Any], targets: bool) -> Pair:
    source = _texts(path, line, "source", fields, "text")
    wanted = _texts(path, line, "target", fields, "summary") if targets else ()
    apart = isinstance(fields.get("source", fields.get("text")), list)
    return Pair(" ".join(source), wanted, path, line, source if apart else ())


def _texts(path: Path, number: int, name: str, fields: dict[str, Any], other: str) -> tuple[str, ...]:
    value = fields.get(name, fields.get(other))
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        got = f"got {value!r}"[:60] + records.seen(fields, name)
        raise DataFault(path, number, f"a text or a list of texts is wanted under {name} or {other}, {got}")
    return tuple(str(text).strip() for text in texts)


def _annotated(path: Path, targets: bool) -> list[Pair]:
    documents: list[tuple[int, list[str], list[str]]] = []
    for sentence in read_sentences(path):
        if sentence.new_document is not None or not documents:
            documents.append((sentence.line, [], []))
        _, texts, summaries = documents[-1]
        texts += [text] if (text := sentence.text()) else []
        summaries += [match[1].strip() for _, comment in sentence.comments if (match := SUMMARY.match(comment))]
    for line, texts, summaries in documents:
        if not texts:
            raise DataFault(path, line, "a document without a line such as '# text = ...'")
        if targets and not summaries:
            raise DataFault(path, line, "there is no summary such as '# meta::summary1 = (human) ...'")
    return [Pair(" ".join(texts), tuple(summaries), path, line, tuple(texts)) for line, texts, summaries in documents]
