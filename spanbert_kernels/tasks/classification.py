"""Sentiment or topic: a label for each document, which may depend on the other documents of its cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor

from spanbert_kernels.data.counts import cut as cut_short
from spanbert_kernels.data.counts import took
from spanbert_kernels.data.faults import DataFault
from spanbert_kernels.data.labelled import LabelledDocument, read_labelled
from spanbert_kernels.data.sources import Source, name_of
from spanbert_kernels.models import SpanBERTForSequenceClassification
from spanbert_kernels.tasks.base import Scores, Task
from spanbert_kernels.tasks.batches import outputs, padded
from spanbert_kernels.tasks.labels import label_fields, labels_of, listed, warn_of_unknown
from spanbert_kernels.tasks.predictions import Lines
from spanbert_kernels.tasks.span_training import SpansOfDocuments, SpanTraining, cut, shown
from spanbert_kernels.tasks.start import Start
from spanbert_kernels.tasks.vocabulary import Tokenizer


def clusters_of(documents: Sequence[LabelledDocument]) -> list[list[int]]:
    """The documents of each cluster, by number; one without a cluster is alone."""
    found: dict[Any, list[int]] = {}
    for index, document in enumerate(documents):
        found.setdefault(index if document.cluster is None else document.cluster, []).append(index)
    return list(found.values())


def cross_document_fields(documents: Sequence[LabelledDocument], layers: int) -> dict[str, Any]:
    """Of a model's configuration: where documents have company, the upper layers let their first tokens meet."""
    if all(document.cluster is None for document in documents):
        return {}
    return {"cross_document_layers": list(range(layers // 2, layers)), "cross_document_anchor": "first"}


def numbers_of(documents: Sequence[LabelledDocument], labels: Sequence[str]) -> list[int]:
    """The number of each document's label.

    Raises:
        DataFault: a label that is not among `labels`.
    """
    number = {label: i for i, label in enumerate(labels)}
    for document in documents:
        if document.label not in number:
            reason = f"unknown label {document.label}; the model has {listed(labels)}"
            raise DataFault(document.path, document.line, reason)
    return [number[document.label] for document in documents]


def encode(
    documents: Sequence[LabelledDocument], tokenizer: Tokenizer, labels: Sequence[str], length: int
) -> list[dict[str, Any]]:
    """An example a document; of a long one, the first `length` tokens, the special ones counted.

    Raises:
        DataFault: a label that is not among `labels`.
    """
    numbers = numbers_of(documents, labels)
    examples = []
    for document, number in zip(documents, numbers, strict=True):
        ids = tokenizer(document.text, verbose=False)["input_ids"]
        if len(ids) > length:
            cut_short("document", f"to its first {length - 2} tokens")
            ids = [*ids[: length - 1], ids[-1]]
        examples.append({"input_ids": np.array(ids, dtype=np.int64), "labels": number})
    return examples


def show(example: dict[str, Any], span: slice, crop: str) -> dict[str, Any]:
    """Span training: the label is of whatever part of the document is there."""
    return {**example, "input_ids": cut(example["input_ids"], span)}


class Clusters(torch.utils.data.Dataset[list[dict[str, Any]]]):
    """Examples of documents, a cluster at a time, so that a batch holds whole clusters."""

    def __init__(self, examples: Any, clusters: Sequence[Sequence[int]]) -> None:
        self.examples, self.clusters = examples, clusters

    def __len__(self) -> int:
        return len(self.clusters)

    def set_epoch(self, epoch: int) -> None:
        """Of the training; it matters to span training."""
        if isinstance(self.examples, SpansOfDocuments):
            self.examples.set_epoch(epoch)

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        """The documents of a cluster."""
        return [self.examples[i] for i in self.clusters[index]]


def collate(clusters: list[list[dict[str, Any]]]) -> dict[str, Tensor]:
    """A padded batch `[B, L]` with `labels [B]` and `cluster_ids [B]`."""
    documents = [document for cluster in clusters for document in cluster]
    batch = padded(documents, {"input_ids": 0})
    batch["labels"] = torch.tensor([document["labels"] for document in documents])
    batch["cluster_ids"] = torch.arange(len(clusters)).repeat_interleave(torch.tensor([len(c) for c in clusters]))
    return batch


def collate_alone(clusters: list[list[dict[str, Any]]]) -> dict[str, Tensor]:
    """The same, for a model whose documents do not see each other."""
    batch = collate(clusters)
    del batch["cluster_ids"]
    return batch


def _collate_for(model: Any) -> Any:
    return collate if model.config.cross_document_layers else collate_alone


def _examples(
    model: Any, tokenizer: Tokenizer, documents: Sequence[LabelledDocument], spans: SpanTraining | None, seed: int
) -> Clusters:
    """For batches of `options.batch_size` clusters, whole; documents see each other in cross-document layers."""
    took("document", len(documents))
    examples = encode(documents, tokenizer, labels_of(model), model.config.positions)
    if spans is not None and spans.crop == "loss":
        raise ValueError("a document's label belongs to no span: span training of documents needs crop input")
    return Clusters(shown(examples, spans, seed, show), clusters_of(documents))


def _check(model: Any, tokenizer: Tokenizer, documents: Sequence[LabelledDocument]) -> None:
    took("document", len(documents))
    warn_of_unknown(((each.label, each.path, each.line) for each in documents), labels_of(model))


def classify(
    model: SpanBERTForSequenceClassification,
    tokenizer: Tokenizer,
    documents: Sequence[LabelledDocument],
    backend: str = "auto",
) -> list[tuple[str, float]]:
    """The label of each document and its probability. The documents' own labels are not looked at."""
    labels, clusters = labels_of(model), clusters_of(documents)
    plain = [LabelledDocument(d.text, labels[0], d.cluster, d.path, d.line) for d in documents]
    examples = Clusters(encode(plain, tokenizer, labels, model.config.positions), clusters)
    found: dict[int, tuple[str, float]] = {}
    longest = [max(len(document["input_ids"]) for document in examples[i]) for i in range(len(examples))]
    items = [{"cluster": examples[i], "longest": longest[i]} for i in range(len(examples))]

    def batch_of(chosen: list[dict[str, Any]]) -> dict[str, Tensor]:
        return _collate_for(model)([item["cluster"] for item in chosen])

    for chosen, output in outputs(model, items, batch_of, lambda item: int(item["longest"]), backend=backend):
        best = output.logits.float().softmax(-1).max(-1)
        numbers = [index for cluster in chosen for index in clusters[cluster]]
        for index, label, chance in zip(numbers, best.indices.tolist(), best.values.tolist(), strict=True):
            found[index] = labels[label], chance
    return [found[index] for index in range(len(documents))]


def score(gold: Sequence[str], predicted: Sequence[str]) -> Scores:
    """Accuracy, and F1 averaged over the labels that occur."""
    macro = f1_score(gold, predicted, average="macro", zero_division=0.0)
    return {"accuracy": float(accuracy_score(gold, predicted)), "macro F1": float(macro)}


def majority(train_on: Sequence[LabelledDocument], documents: Sequence[LabelledDocument]) -> Scores:
    """The trivial baseline: the commonest label of the training data for all."""
    ((commonest, _),) = Counter(document.label for document in train_on).most_common(1)
    return score([document.label for document in documents], [commonest] * len(documents))


def _fields(documents: Sequence[LabelledDocument], start: Start, data: Source) -> dict[str, Any]:
    labels = sorted({document.label for document in documents})
    if len(labels) == 1:
        raise ValueError(
            f"{name_of(data)}: all documents have the label {labels[0]}, so there is nothing to tell apart"
        )
    kind = {"problem_type": "single_label_classification"}
    return {**label_fields(labels), **kind, **cross_document_fields(documents, start.layers())}


def _lines(lines: Lines, document: LabelledDocument, found: tuple[str, float]) -> Iterator[str]:
    """A JSON object a document: its label, the label's probability, the text."""
    yield lines.json(document.path, label=found[0], probability=round(found[1], 4), text=document.text)


TASK = Task(
    noun="document",
    kind=SpanBERTForSequenceClassification,
    read=read_labelled,
    read_plain=partial(read_labelled, labels=False),
    texts=lambda document: [document.text],
    fields=_fields,
    examples=_examples,
    collate=_collate_for,
    check=_check,
    find=classify,
    score=lambda documents, found: score([document.label for document in documents], [label for label, _ in found]),
    baseline=lambda train_on, documents, found: majority(train_on, documents),
    lines=_lines,
)
train, evaluate, load = TASK.fit, TASK.evaluate_items, TASK.load
