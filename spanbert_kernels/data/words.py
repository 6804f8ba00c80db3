"""Reads words to predict on: of plain text, and of all files that tasks learn from, whose labels are not looked at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from spanbert_kernels.data import conllu, kinds
from spanbert_kernels.data.columns import ColumnRow, check_width, is_label, is_ontonotes, parse_columns, word_column
from spanbert_kernels.data.conll_coref import MarkedDocument, read_marked
from spanbert_kernels.data.conll_ner import TaggedSentence, word_place
from spanbert_kernels.data.corefud import read_entities
from spanbert_kernels.data.counts import left_out
from spanbert_kernels.data.faults import DataFault
from spanbert_kernels.data.plain import read_paragraphs
from spanbert_kernels.data.sources import Source, files_of
from spanbert_kernels.data.spans import read_spans
from spanbert_kernels.data.splitting import Located, sentences_in, words_in
from spanbert_kernels.data.tables import read_table
from spanbert_kernels.data.text import read_text

SUFFIXES = (*kinds.TEXTS, *kinds.WORDS)
Sentence = tuple[tuple[str, ...], tuple[int, ...], Located | None]  # words and their lines


def read_sentences(source: Source) -> list[TaggedSentence]:
    """Sentences, all labelled O: of plain text, of CoNLL files, of the records of JSON and the rows of tables.

    Args:
        source: a file, a folder, or several of them.

    Raises:
        DataFault: a file that does not parse, or a table without a column text.
        OSError: a file cannot be read.
    """
    return [
        TaggedSentence(words, ("O",) * len(words), path, lines[0], lines, located)
        for path in files_of(source, SUFFIXES)
        for words, lines, located in _sentences(path)
    ]


def read_documents(source: Source, by_line: bool = False) -> list[MarkedDocument]:
    """Documents without mentions: files of plain text, or their paragraphs; documents of CoNLL files; records, rows.

    Args:
        source: a file, a folder, or several of them.
        by_line: whether each line, or paragraph of broken lines, of a plain text is a document, instead of the file.

    Raises:
        DataFault: a file that does not parse, or a table without a column text, or the only file has no words.
        OSError: a file cannot be read.
    """
    found: list[MarkedDocument] = []
    files = files_of(source, SUFFIXES)
    for path in files:
        kind = kinds.kind_of(path)
        if kind == kinds.CONLLU:
            found += read_entities(path, mentions=False)
        elif kind == kinds.CONLL:
            found += read_marked(path, mentions=False)
        elif kind == kinds.JSON:
            found += read_spans(path, mentions=False)
        elif kind == kinds.TABLE:
            found += _of_table(path)
        elif (own := _of_text(path, by_line)) or by_line:
            found += own
        elif len(files) > 1:
            left_out("file", "without words")
        else:
            raise DataFault(path, 1, "there are no words")
    return found


def _of_table(path: Path) -> list[MarkedDocument]:
    """The texts in the column `text`."""
    rows = [(line, Located(fields["text"], words_in(fields["text"]))) for line, fields in read_table(path, ("text",))]
    found = [
        MarkedDocument(f"line {line}", own.words(), (), path, (line,) * len(own.places), own)
        for line, own in rows
        if own.places
    ]
    left_out("row", "without words", len(rows) - len(found))
    return found


def _of_text(path: Path, by_line: bool) -> list[MarkedDocument]:
    paragraphs = read_paragraphs(path)
    if by_line:
        return [
            MarkedDocument(f"line {line}", own.words(), (), path, (line,) * len(own.places), own)
            for line, own, _ in paragraphs
        ]
    if not paragraphs:
        return []
    shifts = ((own.start or 0, own) for _, own, _ in paragraphs)
    places = [(start + shift, end + shift) for shift, own in shifts for start, end in own.places]
    lines = tuple(line for line, own, _ in paragraphs for _ in own.places)
    whole = Located(read_text(path), places, 0)
    return [MarkedDocument(path.stem, whole.words(), (), path, lines, whole)]


def _sentences(path: Path) -> list[Sentence]:
    kind = kinds.kind_of(path)
    if kind == kinds.CONLLU:
        words = [sentence.words for sentence in conllu.read_sentences(path) if sentence.words]
        return [(tuple(token.form for token in own), tuple(token.line for token in own), None) for own in words]
    if kind == kinds.CONLL:
        return [(*own, None) for own in _of_columns(path, read_text(path))]
    if kind in (kinds.JSON, kinds.TABLE):
        every = read_spans(path, mentions=False) if kind == kinds.JSON else _of_table(path)
        return [own for each in every for own in _sentences_of(each)]
    return [
        (sentence.words(), (line,) * len(own), sentence)
        for line, paragraph, sentences in read_paragraphs(path)
        for own in sentences
        for sentence in [replace(paragraph, places=own)]
    ]


def _sentences_of(record: MarkedDocument) -> list[Sentence]:
    """Of a record's text; a record that brings words of its own is one sentence."""
    where, line = record.located, record.lines[:1]
    if where is None or [*where.places] != words_in(where.text):
        return [(record.words, record.lines, where)]
    parts = (replace(where, places=own) for own in sentences_in(where.text))
    return [(part.words(), line * len(part.places), part) for part in parts]


def _of_columns(path: Path, text: str) -> list[tuple[tuple[str, ...], tuple[int, ...]]]:
    sentences: list[list[ColumnRow]] = [rows for document in parse_columns(text) for rows in document.sentences]
    every = [row for rows in sentences for row in rows]
    if not is_ontonotes(every) and any(len(row.cells) > 1 for row in every):
        check_width(every, path, "a word and other columns")
    if all(is_label(row.cells[-1]) for row in every):
        column: int | None = word_place(sentences, len(every[0].cells)) if every else 0
    else:
        column = word_column(every)
    if column is None:
        raise DataFault(path, every[0].line, f"no column has words: {' '.join(every[0].cells)!r}")
    return [(tuple(row.cells[column] for row in rows), tuple(row.line for row in rows)) for rows in sentences]
