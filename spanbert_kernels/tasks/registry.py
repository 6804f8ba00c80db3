"""The tasks, and what commands say of them before PyTorch is loaded: a new one is a row here and its module."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskEntry:
    """What is known of a task without loading it.

    Attributes:
        text: what it finds, in words.
        trained_on: the files that it learns from.
        predicted_for: what it takes for a document when it predicts.
        explained: whether `explain` shows what its predictions looked at.
    """

    text: str
    trained_on: str
    predicted_for: str
    explained: bool = False


TASKS = {  # in the order of the commands' help
    "tagging": TaskEntry(
        "named entities as labels of words",
        "CoNLL columns or JSON with spans; a document is a sentence",
        "a document is a sentence: a line of a text",
    ),
    "nested": TaskEntry(
        "named entities that may lie in each other, as labels of spans",
        "coreference columns, CoNLL-U or JSON with spans",
        "a line of a text, a document of other files",
        explained=True,
    ),
    "coreference": TaskEntry(
        "which mentions of a document are of one entity",
        "coreference columns, or CoNLL-U with Entity",
        "a whole text, a document of other files",
        explained=True,
    ),
    "cross_document_coreference": TaskEntry(
        "which mentions of a cluster of documents are of one entity",
        "the same, named cluster/document",
        "the same; a folder's are a cluster",
        explained=True,
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
        explained=True,
    ),
    "parsing": TaskEntry(
        "dependency trees", "CoNLL-U; a document is a sentence", "a document is a sentence: a line of a text"
    ),
    "question_answering": TaskEntry(
        "answers that stand in a text", "SQuAD's JSON; a document is a text", "SQuAD's JSON; answers are not needed"
    ),
    "summarisation": TaskEntry(
        "summaries of documents", "JSON lines: source, target; or CoNLL-U", "a line of a text, a record, a row"
    ),
    "translation": TaskEntry("translations of lines", "folders of source.txt and target.txt; a line", "a line"),
}
