"""Readers of document formats: the text of one file in, named documents out."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from spanbert_kernels.data import kinds
from spanbert_kernels.data.columns import ColumnDocument, parse_columns, word_column
from spanbert_kernels.data.conllu import parse_sentences
from spanbert_kernels.data.faults import DataFault
from spanbert_kernels.data.jsonl import TEXTS, parse_values
from spanbert_kernels.data.spans import NAMES, TOKENS
from spanbert_kernels.data.tables import SUFFIXES as TABLE_SUFFIXES
from spanbert_kernels.data.tables import parse_table

TEXT_SUFFIXES = frozenset({".txt", ".text", ".md", ".rst"})
_USUAL = ("text", "document", "article", "source", "abstract", "body", "content", "sentences", *TOKENS)
JSON_FIELDS = (*_USUAL, *(name for name in TEXTS if name not in _USUAL))
SENTENCES_PER_DOCUMENT = 10  # where a column file marks sentences but no documents


class NotADocument(ValueError):
    """The file is readable but holds no document; its message says why."""


@dataclass(frozen=True)
class Document:
    """One document: what it is called, what it says, and the file it came from."""

    name: str
    text: str
    source: Path


Complain = Callable[[str], None]  # hears what part of a file could not be read; the reader goes on
# (text of the file, stem of its name, complain) -> (name, text) pairs
Reader = Callable[[str, str, Complain], Iterator[tuple[str, str]]]


def read_plain(content: str, stem: str, complain: Complain) -> Iterator[tuple[str, str]]:
    """Plain text: one document a file."""
    yield stem, content


def _flatten(value: Any) -> str | None:
    """A string, a list of sentences or a list of lists of tokens as one text; None for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        parts = [_flatten(item) for item in value]
        if all(part is not None for part in parts):
            return " ".join(part.strip() for part in parts if part is not None)
    return None


def read_json(content: str, stem: str, complain: Complain) -> Iterator[tuple[str, str]]:
    """JSON lines or one JSON value: a record's text is its first field of `JSON_FIELDS`, in any case."""
    found, seen = False, ""
    for number, (_, value) in enumerate(_json_values(content, complain), start=1):
        if not isinstance(value, dict):
            continue
        record = {name.casefold(): each for name, each in value.items()}
        text = next((text for field in JSON_FIELDS if (text := _flatten(record.get(field))) is not None), None)
        if text is None:
            seen = seen or f"; there are {', '.join(value) or 'no fields'}"
            continue
        found = True
        yield _record_name(record) or f"{stem} {number}", text
    if not found:
        raise NotADocument(f"holds no record with a field {', '.join(JSON_FIELDS[:4])}{seen}"[:200])


def _record_name(record: Mapping[str, Any]) -> str:
    return next((str(record[field]) for field in NAMES if isinstance(record.get(field), (str, int))), "")


def read_rows(content: str, stem: str, complain: Complain, suffix: str = ".csv") -> Iterator[tuple[str, str]]:
    """A table: the texts of its rows."""
    try:
        for line, record in parse_table(content, Path(f"{stem}{suffix}"), ("text",)):
            yield _record_name(record) or f"{stem} {line}", record["text"]
    except DataFault as fault:
        raise NotADocument(f"is no table of texts (line {fault.line}: {fault.reason})") from None


def _json_values(content: str, complain: Complain) -> Iterator[tuple[int, Any]]:
    bad: list[str] = []
    yield from parse_values(content, lambda line, reason: bad.append(f"line {line} is {reason}"))
    if bad:
        more = f", and {len(bad) - 1:,} more line{'s' * (len(bad) > 2)}" if len(bad) > 1 else ""
        complain(bad[0] + more)


def read_conllu(content: str, stem: str, complain: Complain) -> Iterator[tuple[str, str]]:
    """CoNLL-U: documents from `# newdoc`, sentences from `# text` or from the forms."""
    documents: list[tuple[str | None, list[str]]] = []
    try:
        for sentence in parse_sentences(content, Path(stem)):
            if (name := sentence.new_document) is not None:
                documents.append((name or f"{stem} {len(documents) + 1}", []))
            if not sentence.tokens:
                continue
            if not documents:
                documents.append((None, []))
            documents[-1][1].append(sentence.text())
    except DataFault as fault:
        raise NotADocument(f"is not CoNLL-U (line {fault.line}: {fault.reason})") from None
    yield from _named(documents, stem)


def _named(documents: list[tuple[str | None, list[str]]], stem: str) -> Iterator[tuple[str, str]]:
    """Marked documents as they are; a run of sentences without a mark is cut every `SENTENCES_PER_DOCUMENT`."""
    if len(documents) == 1 and documents[0][0] is None:
        sentences = documents[0][1]
        if len(sentences) <= SENTENCES_PER_DOCUMENT:
            yield stem, "\n".join(sentences)
            return
        for number, first in enumerate(range(0, len(sentences), SENTENCES_PER_DOCUMENT), start=1):
            yield f"{stem} {number}", "\n".join(sentences[first : first + SENTENCES_PER_DOCUMENT])
    else:
        for name, sentences in documents:
            if sentences:
                yield name or stem, "\n".join(sentences)


def read_columns(content: str, stem: str, complain: Complain) -> Iterator[tuple[str, str]]:
    """CoNLL columns: documents from `#begin document` or `-DOCSTART-`, sentences from empty lines."""
    parsed = parse_columns(content)
    rows = [row for document in parsed for row in document.rows()]
    if not rows or min(len(row.cells) for row in rows) < 2:
        raise NotADocument("rows of fewer than two columns")
    column = word_column(rows)
    if column is None:
        raise NotADocument("no column of words")
    documents = [
        (None if document.mark is None else _document_name(document.mark) or "", _sentences(document, column))
        for document in parsed
        if document.sentences
    ]
    if len(documents) > 1:
        documents = [(name or f"{stem} {number}", text) for number, (name, text) in enumerate(documents, start=1)]
    yield from _named(documents, stem)


def _sentences(document: ColumnDocument, column: int) -> list[str]:
    sentences = ([row.cells[column] for row in rows] for rows in document.sentences)
    return [" ".join(filter(None, words)) for words in sentences]


def _document_name(mark: str) -> str | None:
    """`(corpus_airbus/100911); part 000` -> `corpus_airbus/100911`; a part above 0 stays in the name."""
    if match := re.match(r"\((.*?)\)(?:;\s*part\s+(\d+))?", mark):
        part = int(match[2] or 0)
        return f"{match[1]} part {part}" if part else match[1] or None
    return mark.strip() or None


_BY_KIND: dict[str, Reader] = {
    kinds.PLAIN: read_plain,
    kinds.JSON: read_json,
    kinds.CONLLU: read_conllu,
    kinds.CONLL: read_columns,
}
READERS: dict[str, Reader] = {
    **dict.fromkeys(TEXT_SUFFIXES, read_plain),
    **{suffix: _BY_KIND[kind] for suffix, kind in kinds.OF_SUFFIX.items() if kind in _BY_KIND},
}
CORPUS_SUFFIXES = frozenset(READERS) - TEXT_SUFFIXES


def reader_of(path: Path, content: str) -> Reader | None:
    """The reader that a file's suffix names; None where it says nothing. A .tsv may be columns."""
    suffix = path.suffix.lower()
    if suffix in TABLE_SUFFIXES:
        kind = kinds.sniff(content) if suffix == ".tsv" else kinds.TABLE
        return read_columns if kind == kinds.CONLL else partial(read_rows, suffix=suffix)
    return READERS.get(suffix)


def sniff(content: str) -> Reader:
    """The reader for a file whose suffix says nothing, from its first lines; plain text where nothing else fits."""
    return _BY_KIND[kinds.sniff(content)]
