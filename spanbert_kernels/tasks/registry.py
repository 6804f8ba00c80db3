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
        docs: for their table: the files that it learns from in full, what a document is, the scores.
        formats: that `predict` writes; "columns" is what the task learns from.
        by_line: whether it predicts for lines of a text, or sentences, one by one.
    """

    text: str
    trained_on: str
    predicted_for: str
    docs: tuple[str, str, str]
    formats: tuple[str, ...] = (JSON, COLUMNS)
    by_line: bool = False


TASKS = {  # in the order of the commands' help
    "tagging": TaskEntry(
        "named entities, as labels of words",
        "CoNLL columns or JSON with spans; a document is a sentence",
        "a document is a sentence of a text",
        docs=(
            "CoNLL columns: word, ..., labels in BIO, IOB1, BIOES, BILOU (GermEval); JSON with spans (GLiNER, spaCy)",
            "a sentence; a line of plain text",
            "entity precision, recall, F1",
        ),
        formats=MARKED,
        by_line=True,
    ),
    "nested": TaskEntry(
        "named entities that may lie in each other",
        "coreference columns, CoNLL-U or JSON with spans",
        "a line of a text, a document of other files",
        docs=(
            "what `coreference` takes, with types; JSON with spans",
            "what the file marks; a line of plain text",
            "span precision, recall, F1",
        ),
        formats=MARKED,
        by_line=True,
    ),
    "coreference": TaskEntry(
        "which mentions of a document are of one entity",
        "coreference columns, or CoNLL-U with Entity",
        "a whole text, a document of other files",
        docs=(
            "CoNLL-2012 (OntoNotes, LitBank), columns of word and brackets (GUM), CoNLL-U with Entity (CorefUD)",
            "what the file marks; a file of plain text",
            "MUC, B3, CEAFe, CoNLL F1",
        ),
        formats=MARKED,
    ),
    "cross_document_coreference": TaskEntry(
        "which mentions of a cluster of documents are of one entity",
        "the same, named cluster/document",
        "the same; a folder's are a cluster",
        docs=("the same, document names `cluster/document`", "the same; a folder's are a cluster", "the same"),
        formats=MARKED,
    ),
    "relations": TaskEntry(
        "which entities of a cluster of documents stand in which relation",
        "folders of documents.conll and relations.tsv",
        "a folder with documents.conll",
        docs=(
            "a folder with `documents.conll`, as above, and `relations.tsv`: entity, entity, relation",
            "what the file marks",
            "pair precision, recall, F1",
        ),
    ),
    "classification": TaskEntry(
        "sentiment or topic of documents, alone or in clusters",
        "JSON lines, .csv or .tsv: text, label, cluster",
        "a line of a text, a record, a row",
        docs=(
            "JSON lines, .csv or .tsv: text, label, cluster",
            "a record, a row; a line of plain text",
            "accuracy, macro F1",
        ),
        formats=(JSON, COLUMNS, SPACY),
        by_line=True,
    ),
    "parsing": TaskEntry(
        "dependency trees",
        "CoNLL-U; a document is a sentence",
        "a document is a sentence of a text",
        docs=("CoNLL-U", "a sentence; a line of plain text", "UAS, LAS"),
        formats=(JSON, COLUMNS, SPACY),
        by_line=True,
    ),
    "question_answering": TaskEntry(
        "answers that stand in a text, or that there is none",
        "SQuAD's JSON, or records of question, context, answer",
        "the same; answers are not needed",
        docs=(
            "SQuAD's JSON, 1.1 or 2.0; JSON lines, .csv or .tsv: question, context, answers",
            "a question with its text",
            "exact match, F1",
        ),
        formats=(JSON,),
    ),
    "summarisation": TaskEntry(
        "summaries, of long documents too",
        "JSON lines, .csv or .tsv: source, target; or CoNLL-U",
        "a line of a text, a record, a row",
        docs=(
            "JSON lines, .csv or .tsv: source, target; or CoNLL-U with summaries",
            "a record, a `# newdoc`; a line of plain text",
            "ROUGE, loss",
        ),
        by_line=True,
    ),
    "extraction": TaskEntry(
        "the sentences of a document that summarise it",
        "the same as summarisation",
        "a line of a text, a record, a row",
        docs=("what `summarisation` takes", "the same", "ROUGE"),
        by_line=True,
    ),
    "translation": TaskEntry(
        "translations, with a vocabulary for the target",
        "folders of source.txt and target.txt; records",
        "a line of a text, a record, a row",
        docs=(
            "a folder with `source.txt` and `target.txt`, line by line; JSON lines, .csv or .tsv: source, target",
            "a line, a record, a row",
            "BLEU, chrF, loss",
        ),
        by_line=True,
    ),
}
