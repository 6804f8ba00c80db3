"""The tasks, and what commands say of them before PyTorch is loaded: a new one is a row here and its module."""

from __future__ import annotations

from dataclasses import dataclass

JSON, COLUMNS, SPACY, BRAT = "json", "columns", "spacy", "brat"
MARKED = (JSON, COLUMNS, SPACY, BRAT)


@dataclass(frozen=True)
class TaskEntry:
    """What is known of a task without loading it.

    Attributes:
        text: what it finds, in words.
        trained_on: the files that it learns from.
        predicted_for: what it takes for a document when it predicts.
        formats: that `predict` writes; "columns" is what the task learns from.
        by_line: whether it predicts for lines of a text, or sentences, one by one.
    """

    text: str
    trained_on: str
    predicted_for: str
    formats: tuple[str, ...] = (JSON, COLUMNS)
    by_line: bool = False


TASKS = {  # in the order of the commands' help
    "tagging": TaskEntry(
        "named entities as labels of words",
        "CoNLL columns or JSON with spans; a document is a sentence",
        "a document is a sentence of a text",
        formats=MARKED,
        by_line=True,
    ),
    "nested": TaskEntry(
        "named entities that may lie in each other, as labels of spans",
        "coreference columns, CoNLL-U or JSON with spans",
        "a line of a text, a document of other files",
        formats=MARKED,
        by_line=True,
    ),
    "coreference": TaskEntry(
        "which mentions of a document are of one entity",
        "coreference columns, or CoNLL-U with Entity",
        "a whole text, a document of other files",
        formats=MARKED,
    ),
    "cross_document_coreference": TaskEntry(
        "which mentions of a cluster of documents are of one entity",
        "the same, named cluster/document",
        "the same; a folder's are a cluster",
        formats=MARKED,
    ),
    "relations": TaskEntry(
        "which entities of a cluster of documents stand in which relation",
        "folders of documents.conll and relations.tsv",
        "a folder with documents.conll",
    ),
    "classification": TaskEntry(
        "sentiment or topic of documents, alone or in clusters",
        "JSON lines, .csv or .tsv: text, label, cluster",
        "a line of a text, a record, a row",
        formats=(JSON, COLUMNS, SPACY),
        by_line=True,
    ),
    "parsing": TaskEntry(
        "dependency trees",
        "CoNLL-U; a document is a sentence",
        "a document is a sentence of a text",
        formats=(JSON, COLUMNS, SPACY),
        by_line=True,
    ),
    "question_answering": TaskEntry(
        "answers that stand in a text",
        "SQuAD's JSON; a document is a text",
        "SQuAD's JSON; answers are not needed",
        formats=(JSON,),
    ),
    "summarisation": TaskEntry(
        "summaries of documents",
        "JSON lines: source, target; or CoNLL-U",
        "a line of a text, a record, a row",
        by_line=True,
    ),
    "translation": TaskEntry(
        "translations of lines", "folders of source.txt and target.txt; a line", "a line", by_line=True
    ),
}
