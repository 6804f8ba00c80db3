"""Sentiment or topic: a label for each document, which may depend on the other documents of its cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor

from spanbert_kernels.data.counts import cut as cut_short
from spanbert_kernels.data.counts import took
from spanbert_kernels.data.labelled import LabelledDocument, read_labelled
from spanbert_kernels.data.sources import Source, name_of
from spanbert_kernels.data.splitting import Located, words_in
from spanbert_kernels.models import SpanBERTForSequenceClassification
from spanbert_kernels.tasks.attribution import Claim, Pass, Reading, reading_of_text
from spanbert_kernels.tasks.base import Batches, Scores, Task
from spanbert_kernels.tasks.batches import IGNORED, Example, padded, repeated
from spanbert_kernels.tasks.formats import LABELLED_TEXTS
from spanbert_kernels.tasks.labels import labels_of
from spanbert_kernels.tasks.predicting import TOGETHER
from spanbert_kernels.tasks.predictions import Prediction
from spanbert_kernels.tasks.span_training import SpansOfDocuments, SpanTraining, cut, shown
from spanbert_kernels.tasks.start import Start
from spanbert_kernels.tasks.vocabulary import Tokenizer
from spanbert_kernels.tasks.windows import text_length


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


def encode(
    documents: Sequence[LabelledDocument], tokenizer: Tokenizer, labels: Sequence[str], length: int
) -> list[Example]:
    """An example a document; of a long one, the first `length` tokens, the special ones counted.

    A label that is not among `labels` carries no loss.
    """
    number = {label: i for i, label in enumerate(labels)}
    examples = []
    for index, document in enumerate(documents):
        ids = tokenizer(document.text, verbose=False)["input_ids"]
        if len(ids) > length:
            cut_short("document", f"to its first {length - 2} tokens")
            ids = [*ids[: length - 1], ids[-1]]
        own = number.get(document.label, IGNORED)
        examples.append({"item": index, "input_ids": np.array(ids, dtype=np.int64), "labels": own})
    return examples


def _encode(model: Any, tokenizer: Tokenizer, documents: Sequence[LabelledDocument]) -> list[list[Example]]:
    """The examples of documents that see each other, as lists."""
    examples = encode(documents, tokenizer, labels_of(model), text_length(model))
    together = clusters_of(documents) if model.config.cross_document_layers else [[i] for i in range(len(examples))]
    return [[examples[i] for i in cluster] for cluster in together]


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


def collate(clusters: list[list[Example]]) -> dict[str, Tensor]:
    """A padded batch `[B, L]` with `labels [B]` and `cluster_ids [B]`."""
    documents = [document for cluster in clusters for document in cluster]
    return {
        **padded(documents, {"input_ids": 0}),
        "labels": torch.tensor([document["labels"] for document in documents]),
        "cluster_ids": repeated([len(cluster) for cluster in clusters]),
    }


def _dataset(
    model: Any, tokenizer: Tokenizer, documents: Any, clusters: list[Any], spans: SpanTraining | None, seed: int
) -> Clusters:
    """For batches of `options.batch_size` clusters, whole; documents see each other in cross-document layers."""
    if spans is not None and spans.crop == "loss":
        raise ValueError("a document's label belongs to no span: span training of documents needs crop input")
    by_document = sorted((example for cluster in clusters for example in cluster), key=lambda each: each["item"])
    return Clusters(shown(by_document, spans, seed, show), clusters_of(documents))


def _count(model: Any, tokenizer: Tokenizer, documents: Sequence[LabelledDocument], examples: Sequence[Example]) -> int:
    took("document", len(documents))
    return len(documents)


def _decode(model: Any, documents: Sequence[LabelledDocument], batches: Batches) -> list[tuple[str, float]]:
    """The label of each document and its probability."""
    labels = labels_of(model)
    found = [("", 0.0)] * len(documents)
    for clusters, output in batches:
        best = output.logits.float().softmax(-1).max(-1)
        examples = [example for cluster in clusters for example in cluster]
        for example, label, chance in zip(examples, best.indices.tolist(), best.values.tolist(), strict=True):
            found[example["item"]] = labels[label], chance
    return found


def score(gold: Sequence[str], predicted: Sequence[str]) -> Scores:
    """Accuracy, and F1 averaged over the labels that occur."""
    macro = f1_score(gold, predicted, average="macro", zero_division=0.0)
    return {"accuracy": float(accuracy_score(gold, predicted)), "macro F1": float(macro)}


def majority(train_on: Sequence[LabelledDocument], documents: Sequence[LabelledDocument]) -> Scores:
    """The trivial baseline: the commonest label of the training data for all."""
    ((commonest, _),) = Counter(document.label for document in train_on).most_common(1)
    return score([document.label for document in documents], [commonest] * len(documents))


def _fields(documents: Sequence[LabelledDocument], start: Start, data: Source) -> dict[str, Any]:
    if len({document.label for document in documents}) == 1:
        label = documents[0].label
        raise ValueError(f"{name_of(data)}: all documents have the label {label}, so there is nothing to tell apart")
    return {"problem_type": "single_label_classification", **cross_document_fields(documents, start.layers())}


def groups_of(documents: Sequence[LabelledDocument]) -> Iterator[Sequence[LabelledDocument]]:
    """The documents in their order, a cluster's in one group."""
    last = {index: own[-1] for own in clusters_of(documents) for index in own}
    first = end = 0
    for index in range(len(documents)):
        end = max(end, last[index])
        if index == end and (index + 1 - first >= TOGETHER or index + 1 == len(documents)):
            yield documents[first : index + 1]
            first = index + 1


def _predictions(document: LabelledDocument, found: tuple[str, float]) -> Iterator[Prediction]:
    label, chance = found
    where = Located(document.text, words_in(document.text))
    cluster = {} if document.cluster is None else {"cluster": document.cluster}
    fields = {"label": label, "probability": round(chance, 4), **cluster}
    yield Prediction(document.path, document.line, where, found=fields)


def _claims(
    model: Any,
    tokenizer: Tokenizer,
    documents: Sequence[LabelledDocument],
    passes: list[Pass],
) -> Iterator[Claim]:
    """The label of each document of a cluster."""
    ((cluster, _, output, weights),) = passes
    config = model.config
    if weights and config.cross_document_queries != "anchors":
        raise ValueError(f"documents are explained by their anchors, the queries are {config.cross_document_queries}")
    labels, columns = labels_of(model), max(len(example["input_ids"]) for example in cluster)
    mean = torch.stack([each.mean(1) for each in weights]).mean(0).tolist() if weights else []
    for row, example in enumerate(cluster):
        document, best = documents[example["item"]], int(output.logits[row].argmax())

        def score(output: Any, row: int = row, best: int = best) -> Tensor:
            chance: Tensor = output.logits[row].float().log_softmax(-1)[best]
            return chance

        encoding = tokenizer(
            document.text, truncation=True, max_length=len(example["input_ids"]), return_offsets_mapping=True
        )
        alone = reading_of_text(document.text, encoding.word_ids(), encoding["offset_mapping"])
        word_of = np.full((len(cluster), columns), -1)
        word_of[row, : len(example["input_ids"])] = alone.word_of
        yield Claim(
            *(0, labels[best], score, Reading(alone.words, word_of)),
            document=document.text,
            file=str(document.path),
            probability=float(score(output).exp()),
            seen={str(number): share for number, share in enumerate(mean[row], start=1)} if mean else {},
        )


TASK = Task(
    noun="document",
    lack="there is no document",
    kind=SpanBERTForSequenceClassification,
    read=read_labelled,
    read_plain=partial(read_labelled, labels=False),
    texts=lambda document: [document.text],
    marks=lambda document: [(document.label, document.path, document.line)],
    labels=sorted,
    fields=_fields,
    bare=lambda document: replace(document, label=""),
    encode=_encode,
    count=_count,
    dataset=_dataset,
    collate=collate,
    size=lambda cluster: max(len(document["input_ids"]) for document in cluster),
    decode=_decode,
    score=lambda documents, found: score([document.label for document in documents], [label for label, _ in found]),
    measure="accuracy",
    baseline=lambda train_on, documents, found: majority(train_on, documents),
    predictions=_predictions,
    columns=LABELLED_TEXTS,
    groups=groups_of,
    claims=_claims,
    item_of=lambda cluster: int(cluster[0]["item"]),
)
train, evaluate, load, classify = TASK.fit, TASK.evaluate_items, TASK.load, TASK.find
