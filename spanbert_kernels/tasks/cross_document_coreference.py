"""Coreference across documents: which mentions of a cluster of documents are of one entity."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from spanbert_kernels.data.conll_coref import MarkedDocument, Mention
from spanbert_kernels.data.entities import read_marked
from spanbert_kernels.data.sources import Source, paths_of
from spanbert_kernels.data.words import read_documents
from spanbert_kernels.models import SpanBERTForCoreference
from spanbert_kernels.tasks import coreference
from spanbert_kernels.tasks.attribution import Claim, Pass, Shares
from spanbert_kernels.tasks.base import Task
from spanbert_kernels.tasks.batches import Example
from spanbert_kernels.tasks.coreference import Entity
from spanbert_kernels.tasks.formats import BRACKETED_WORDS
from spanbert_kernels.tasks.mentions import unmarked
from spanbert_kernels.tasks.predicting import chunks
from spanbert_kernels.tasks.predictions import Prediction
from spanbert_kernels.tasks.span_training import SpanTraining
from spanbert_kernels.tasks.vocabulary import Tokenizer

TOGETHER = 8  # documents of a cluster that a step of training sees at once
Cluster = tuple[MarkedDocument, ...]


def clusters_of(documents: Sequence[MarkedDocument]) -> list[Cluster]:
    """Documents whose names agree before the last `/`, such as `(apple/101); part 0`; without one, those of a file."""

    def key(document: MarkedDocument) -> str:
        name = document.name
        return name.rsplit("/", 1)[0] if "/" in name else str(document.path)

    return [tuple(own) for _, own in groupby(sorted(documents, key=key), key)]


def joined(cluster: Cluster) -> MarkedDocument:
    """The words of all documents, one after the other, and their mentions there."""
    starts = np.cumsum([0, *(len(document.words) for document in cluster)]).tolist()
    mentions = tuple(
        Mention(m.first + start, m.last + start, m.kind, m.entity)
        for document, start in zip(cluster, starts[:-1], strict=True)
        for m in document.mentions
    )
    words = tuple(word for document in cluster for word in document.words)
    lines = tuple(line for document in cluster for line in document.lines)
    return MarkedDocument(cluster[0].name, words, mentions, cluster[0].path, lines)


def merged(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Examples of documents, as `coreference.encode` makes them, as one: an entity's name is the same in all.

    It keeps them by the name `documents`.
    """
    number: dict[str, int] = {}
    mentions, entities, starts = [], [], np.cumsum([0, *map(coreference.windows_in, examples)])
    for start, example in zip(starts, examples, strict=False):
        mentions.append(example["mentions"] + [[start, 0, 0]])
        own = [number.setdefault(name, len(number)) for name in example["names"]]
        entities.append(np.array(own, dtype=np.int64)[example["entities"]])
    return {
        "windows": [window for example in examples for window in example["windows"]],
        "mentions": np.concatenate(mentions),
        "entities": np.concatenate(entities),
        "names": list(number),
        "documents": list(examples),
    }


class Groups(Dataset[dict[str, Any]]):
    """Groups of up to `together` documents of a cluster, drawn anew in every epoch from the seed and the epoch."""

    def __init__(
        self, documents: coreference.Documents, sizes: Sequence[int], seed: int, together: int = TOGETHER
    ) -> None:
        self.documents, self.sizes, self.seed, self.together = documents, sizes, seed, together
        self.set_epoch(0)

    def __len__(self) -> int:
        return len(self.groups)

    def set_epoch(self, epoch: int) -> None:
        """Of the training."""
        self.documents.set_epoch(epoch)
        self.groups = []
        first = 0
        for cluster, size in enumerate(self.sizes):
            order = first + np.random.default_rng((self.seed, epoch, cluster)).permutation(size)
            self.groups += np.array_split(order, -(-size // self.together))
            first += size

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The documents of a group, as one example."""
        return merged([self.documents[int(i)] for i in self.groups[index]])


def collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """The batch of `coreference.collate`; windows of a cluster see each other: `cluster_ids [B]`."""
    batch = coreference.collate(examples)
    return {**batch, "cluster_ids": batch["documents"]}


def cross_document_fields(layers: int) -> dict[str, Any]:
    """Of a model's configuration: in the upper layers each token attends to the tokens of all other windows."""
    upper = list(range(layers // 2, layers))
    return {"cross_document_layers": upper, "cross_document_queries": "tokens", "cross_document_keys": "tokens"}


def documents_of(clusters: Iterable[Cluster]) -> list[MarkedDocument]:
    """Of all clusters."""
    return [document for cluster in clusters for document in cluster]


def encode(model: Any, tokenizer: Tokenizer, clusters: Sequence[Cluster]) -> list[Example]:
    """An example a cluster."""
    return [
        {**merged(coreference.encode_all(model, tokenizer, cluster)), "item": i} for i, cluster in enumerate(clusters)
    ]


def documents_in(examples: Iterable[Example]) -> list[Example]:
    """The examples of the documents of all clusters."""
    return [document for example in examples for document in example["documents"]]


def dataset(
    model: Any,
    tokenizer: Tokenizer,
    clusters: Sequence[Cluster],
    examples: Sequence[Example],
    spans: SpanTraining | None,
    seed: int,
) -> Groups:
    """For the Trainer."""
    documents = documents_of(clusters), documents_in(examples)
    data = coreference.dataset(model, tokenizer, *documents, spans, seed)
    return Groups(data, [len(cluster) for cluster in clusters], seed)


def read_clusters(source: Source) -> list[Cluster]:
    """Clusters of documents without mentions: those of a folder, or all files that are named, are one.

    Documents that are named `cluster/document`, as column files can name them, are of that cluster.

    Raises:
        DataFault: a file does not parse or has no words.
        ValueError: a folder has no file.
    """
    named = paths_of(source)
    folders = [path for path in named if path.is_dir()]
    groups: list[Source] = [*folders, [path for path in named if path not in folders]]
    found = []
    for group in groups:
        documents = read_documents(group) if group else []
        found += clusters_of(documents) if any("/" in each.name for each in documents) else [tuple(documents)]
    return [cluster for cluster in found if cluster]


def _predictions(cluster: Cluster, found: set[Entity]) -> Iterator[Prediction]:
    """Of each document of the cluster; an entity has the same number in all."""
    starts = np.cumsum([0, *(len(document.words) for document in cluster)]).tolist()
    entities = sorted(found, key=sorted)
    for begin, end, document in zip(starts, starts[1:], cluster, strict=False):
        own = [frozenset((a - begin, b - begin) for a, b in entity if begin <= a < end) for entity in entities]
        yield coreference.prediction(document, own)


def _claims(model: Any, tokenizer: Tokenizer, clusters: Sequence[Cluster], passes: list[Pass]) -> Iterator[Claim]:
    """What `coreference` says of mentions, with the documents that they looked at."""
    (passed,) = passes
    queries, cluster = model.config.cross_document_queries, clusters[passed.example["item"]]
    if passed.weights and queries != "tokens":
        raise ValueError(f"mentions are explained by their tokens, the queries are {queries}")
    sizes = [coreference.windows_in(each) for each in passed.example["documents"]]
    words = _seen_by_words(passed.weights, passed.batch, np.repeat(np.arange(len(cluster)), sizes))

    def seen(span: tuple[int, int]) -> dict[str, float]:
        if words is None:
            return {}
        shares = words[span[0] : span[1] + 1].mean(0).tolist()
        return {document.name: share for document, share in zip(cluster, shares, strict=True)}

    yield from coreference.claims_in(model, cluster, seen, passed)


def _seen_by_words(
    weights: Sequence[Tensor], batch: dict[str, Tensor], document_of: NDArray[np.int64]
) -> Shares | None:
    """How much each word's tokens looked at each document, `[W, D]`; None where documents do not see each other."""
    if not weights:
        return None
    by_window = torch.stack([each.mean(1) for each in weights]).mean(0)  # [T, windows]
    by_document = by_window.new_zeros(len(by_window), int(document_of[-1]) + 1)
    by_document.index_add_(1, torch.from_numpy(document_of), by_window[:, : len(document_of)])
    starts = torch.zeros_like(batch["input_ids"])
    row, _ = (batch["word_starts"] >= 0).nonzero().unbind(1)
    starts[row, batch["word_starts"][batch["word_starts"] >= 0]] = 1
    # a token's word is the last that began in its row; special tokens belong to none
    real = batch["attention_mask"] > 0
    word = (starts[real].cumsum(0) - 1).numpy()
    ids = batch["input_ids"]
    inner = real.clone()
    inner[:, 0] = False
    inner[torch.arange(len(ids)), real.sum(1) - 1] = False
    kept = inner[real].numpy()
    total = np.zeros((int(starts.sum()), by_document.shape[1]), dtype=np.float32)
    np.add.at(total, word[kept], by_document.numpy()[kept])
    total /= np.bincount(word[kept], minlength=len(total))[:, None]
    return total


TASK = Task(
    noun="document",
    lack="there is no mention",
    kind=SpanBERTForCoreference,
    read=lambda source: clusters_of(read_marked(source)),
    read_plain=read_clusters,
    texts=lambda cluster: [" ".join(document.words) for document in cluster],
    paths=lambda cluster: [document.path for document in cluster],
    fields=lambda clusters, start, data: cross_document_fields(start.layers()),
    bare=lambda cluster: tuple(map(unmarked, cluster)),
    encode=encode,
    count=lambda model, tokenizer, clusters, examples: coreference.count(
        model, tokenizer, documents_of(clusters), documents_in(examples)
    ),
    dataset=dataset,
    collate=collate,
    answers=("mentions", "entities"),
    means=coreference.MEANS,
    size=coreference.windows_in,
    batch_size=1,
    decode=coreference.decode,
    score=lambda clusters, found: coreference.score(list(map(joined, clusters)), found),
    measure="CoNLL F1",
    baseline=lambda train_on, clusters, found: coreference.singletons(list(map(joined, clusters)), found),
    predictions=_predictions,
    columns=BRACKETED_WORDS,
    groups=partial(chunks, size=1),
    claims=_claims,
    steps=4,
    quick=lambda clusters: all(len(cluster) <= TOGETHER for cluster in clusters),
)
train, evaluate, load, resolve = TASK.fit, TASK.evaluate_items, TASK.load, TASK.find
