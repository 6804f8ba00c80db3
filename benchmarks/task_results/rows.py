"""The rows: a task on data, how they are split, how long it trains, and what it is to reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from . import splits
from .questions import questions


@dataclass(frozen=True)
class ResultRow:
    """A row; its options were chosen on development data.

    Attributes:
        task: its name.
        data: which, in words.
        split: the rule, in words.
        files: cuts the data.
        measure: the score that is compared.
        goal: the mean of three seeds that is asked, None where the score is called what it is.
        faster: times as fast as transformers' own path a training is to be.
        options: of the training; `lower_layers` of the encoder are kept.
        begins_with: the row with whose first model a training begins; "" for the encoder.
    """

    task: str
    data: str
    split: str
    files: splits.Files
    measure: str
    goal: float | None
    faster: float
    options: Mapping[str, Any] = field(default_factory=dict)
    begins_with: str = ""

    def about(self) -> dict[str, Any]:
        """What a record says of how the row is trained."""
        return {**self.options, **({"begins_with": self.begins_with} if self.begins_with else {})}


def training(epochs: float, learning_rate: float = 1e-4, head: float | None = 5e-4, **more: Any) -> dict[str, Any]:
    """The options that differ between rows."""
    return {"epochs": epochs, "learning_rate": learning_rate, "head_learning_rate": head, "patience": 5, **more}


OWN = "the data's own parts"
THIRDS = "every third document to test on, every sixth of the rest to choose on"
POSTS = "every fifth training text to choose on; the 32 that are in both leave training"
WNUT = splits.below("wnut17/wnut17train.conll", "wnut17/emerging.dev.conll", "wnut17/emerging.test.annotated")
EWT = splits.below(*(f"ewt/en_ewt-ud-{part}.conllu" for part in ("train.part", "dev", "test")))
GUM, ONTO, TREES = (
    splits.below(*(f"gum/{kind}/{part}" for part in splits.PARTS)) for kind in ("coref", "ontogum", "dep")
)
SCITLDR = splits.below(*(f"scitldr/{part}.jsonl" for part in splits.PARTS))
TAGS, TREES_OF, TEXTS = {"batch_tokens": 1024}, {"batch_tokens": 512}, {"batch_tokens": 2048}
ROWS = {
    "tagging": ResultRow("tagging", "wnut17", OWN, WNUT, "f1", 0.47, 2.5, training(5, lower_layers=5, **TAGS)),
    "nested": ResultRow("nested", "gum", OWN, GUM, "F1", 0.70, 4.0, training(12, batch_size=2)),
    "parsing-ewt": ResultRow(
        "parsing", "ewt, a part of it to train on", OWN, EWT, "LAS", 0.85, 2.0, training(14, 2e-4, 2e-3, **TREES_OF)
    ),
    "parsing-gum": ResultRow("parsing", "gum", OWN, TREES, "LAS", 0.80, 2.0, training(8, 2e-4, 2e-3, **TREES_OF)),
    "coreference": ResultRow("coreference", "gum", OWN, GUM, "CoNLL F1", 0.53, 4.0, training(20, batch_size=1)),
    "coreference-ontogum": ResultRow(
        "coreference", "gum, OntoGUM's annotation", OWN, ONTO, "CoNLL F1", None, 4.0, training(20, batch_size=1)
    ),
    "cross-document-coreference": ResultRow(
        "cross_document_coreference",
        "meantime",
        THIRDS,
        splits.meantime,
        "CoNLL F1",
        0.35,
        3.0,
        training(30, 2e-4, 1e-3, batch_size=1),
        begins_with="coreference",
    ),
    "cross-document-coreference-beginnings": ResultRow(
        "cross_document_coreference",
        "meantime, the sentences of each document that are annotated in full",
        THIRDS,
        splits.beginnings,
        "CoNLL F1",
        None,
        3.0,
        training(30, 2e-4, 1e-3, batch_size=1),
        begins_with="coreference",
    ),
    "relations": ResultRow(
        "relations",
        "meantime, events and participants",
        THIRDS,
        splits.participants,
        "F1",
        0.40,
        3.0,
        training(10, head=1e-3, batch_size=1),
    ),
    "sentiment": ResultRow(
        "classification", "senti4sd", POSTS, splits.sentiment, "accuracy", 0.88, 2.5, training(5, **TEXTS)
    ),
    "genres": ResultRow(
        "classification",
        "genres of gum, pieces of five sentences",
        OWN,
        splits.genres,
        "accuracy",
        0.75,
        2.0,
        training(12, batch_size=2),
    ),
    "topics": ResultRow(
        "classification", "topics of meantime", THIRDS, splits.topics, "accuracy", 0.975, 2.0, training(12, **TEXTS)
    ),
    "questions": ResultRow(
        "question_answering",
        "questions by rule about meantime and gum",
        f"{OWN}; {THIRDS}",
        questions,
        "F1",
        0.5,
        2.5,
        training(2, batch_tokens=4096),
    ),
    "summaries": ResultRow(
        "summarisation",
        "scitldr",
        OWN,
        SCITLDR,
        "ROUGE-L",
        None,
        2.0,
        training(6, head=1e-3, batch_size=16, patience=3, evaluate_steps=150),
    ),
    "extracts": ResultRow(
        "extraction",
        "scitldr",
        OWN,
        SCITLDR,
        "ROUGE-L",
        0.248,
        2.0,
        training(1, **TEXTS, evaluate_steps=23),
    ),
    "translation-zh": ResultRow(
        "translation",
        "ntrex en-zh",
        THIRDS,
        splits.ntrex("zho-CN"),
        "BLEU",
        None,
        2.0,
        training(4, head=1e-3, batch_size=16, patience=3, evaluate_steps=150),
    ),
    "translation-de": ResultRow(
        "translation",
        "ntrex en-de",
        THIRDS,
        splits.ntrex("deu"),
        "BLEU",
        None,
        2.0,
        training(4, head=1e-3, batch_size=16, patience=3, evaluate_steps=150),
    ),
}
