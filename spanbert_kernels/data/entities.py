"""Reads named entities and mentions, whatever format a file has."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from spanbert_kernels.data import conll_coref, conll_ner, corefud, kinds, spans
from spanbert_kernels.data.conll_coref import MarkedDocument
from spanbert_kernels.data.conll_ner import TaggedSentence
from spanbert_kernels.data.faults import DataFault
from spanbert_kernels.data.jsonl import SUFFIXES as SPANS
from spanbert_kernels.data.sources import Source, files_of, paths_of


def read_tagged(source: Source) -> list[TaggedSentence]:
    """Sentences of words with BIO labels: CoNLL columns, or JSON with spans.

    Args:
        source: a file, a folder, or several of them.

    Raises:
        DataFault: what `conll_ner.read_tagged` and `spans.read_spans` raise, or spans that overlap.
        OSError: a file cannot be read.
    """
    found = []
    for path in files_of(source, (*kinds.IN_COLUMNS, *SPANS, ".tsv")):
        if kinds.kind_of(path) == kinds.JSON:
            found += [_tagged(document) for document in spans.read_spans(path)]
        else:
            with kinds.only(path, (kinds.CONLL,), "CoNLL columns of words and labels, or JSON with spans,"):
                found += conll_ner.read_tagged(path)
    return found


def _tagged(document: MarkedDocument) -> TaggedSentence:
    labels = ["O"] * len(document.words)
    for mention in document.mentions:
        own = slice(mention.first, mention.last + 1)
        if any(label != "O" for label in labels[own]):
            words = " ".join(document.words[own])
            raise DataFault(document.path, document.lines[0], f"{words!r} overlaps another entity: the task is nested")
        labels[own] = [f"B-{mention.kind}", *[f"I-{mention.kind}"] * (mention.last - mention.first)]
    return TaggedSentence(document.words, tuple(labels), document.path, document.lines[0], document.lines)


def read_marked(source: Source) -> list[MarkedDocument]:
    """Documents with mentions of entities: CoNLL coreference columns, or CoNLL-U with Entity brackets.

    Args:
        source: a file, a folder, or several of them; of a folder with both kinds, the columns.

    Raises:
        DataFault: what `conll_coref.read_marked` and `corefud.read_entities` raise, or a file of JSON.
        OSError: a file cannot be read.
    """
    found = []
    for path in _files(source, (".conllu",)):
        if kinds.kind_of(path) == kinds.JSON:
            raise DataFault(path, 1, "which mentions are of one entity is read from CoNLL columns or CoNLL-U, not JSON")
        found += _marked(path, "CoNLL columns of words and brackets, or CoNLL-U with Entity,")
    return found


def _marked(path: Path, wanted: str) -> list[MarkedDocument]:
    with kinds.only(path, (kinds.CONLL, kinds.CONLLU), wanted):
        if kinds.kind_of(path) == kinds.CONLLU:
            return corefud.read_entities(path)
        return conll_coref.read_marked(path)


def read_nested(source: Source) -> list[MarkedDocument]:
    """Documents with typed mentions, which may lie in each other: what `read_marked` reads, or JSON with spans."""
    found = []
    for path in _files(source, (".conllu", *SPANS)):
        is_json = kinds.kind_of(path) == kinds.JSON
        wanted = "CoNLL columns of words and brackets, CoNLL-U with Entity, or JSON with spans,"
        found += spans.read_spans(path) if is_json else _marked(path, wanted)
    return found


def _files(source: Source, others: Collection[str]) -> list[Path]:
    """The files that are named; of a folder those in columns, the same documents may be there twice, or else others."""
    found = []
    for path in paths_of(source):
        inside = files_of(path, (*kinds.IN_COLUMNS, *others))
        columns = [each for each in inside if each.name.lower().endswith(tuple(kinds.IN_COLUMNS))]
        found += columns if path.is_dir() and columns else inside
    return found
