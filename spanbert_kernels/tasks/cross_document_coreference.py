"""Coreference across documents: which mentions of a cluster of documents are of one entity."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from spanbert_kernels.data.conll_coref import MarkedDocument, Mention
from spanbert_kernels.data.counts import TEST, TRAINING, took
from spanbert_kernels.data.entities import read_marked
from spanbert_kernels.data.sources import Source, paths_of
from spanbert_kernels.data.words import read_documents
from spanbert_kernels.models import SpanBERTForCoreference, SpanBERTTokenizer
from spanbert_kernels.tasks import coreference
from spanbert_kernels.tasks.coreference import Entity
from spanbert_kernels.tasks.mentions import first_of_words
from spanbert_kernels.tasks.predictions import Lines
from spanbert_kernels.tasks.reading import read, read_to_predict
from spanbert_kernels.tasks.span_training import SpanTraining
from spanbert_kernels.tasks.start import Start, load_trained
from spanbert_kernels.tasks.task import Outcome, Scores, Task
from spanbert_kernels.tasks.training import Training, TrainingOptions, fit
from spanbert_kernels.tasks.windows import count_cut_words

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
    """Examples of documents, as `coreference.encode` makes them, as one: an entity's name is the same in all."""
    number: dict[str, int] = {}
    windows: list[Any] = []
    mentions, entities = [], []
    for example in examples:
        mentions.append(example["mentions"] + [[len(windows), 0, 0]])
        own = [number.setdefault(name, len(number)) for name in example["names"]]
        entities.append(np.array(own, dtype=np.int64)[example["entities"]])
        windows += example["windows"]
    return {
        "windows": windows,
        "mentions": np.concatenate(mentions),
        "entities": np.concatenate(entities),
        "names": list(number),
    }


class Clusters(Dataset[dict[str, Any]]):
    """Groups of up to `TOGETHER` documents of a cluster, drawn anew in every epoch from the seed and the epoch."""

    def __init__(self, documents: coreference.Documents, sizes: Sequence[int], seed: int) -> None:
        self.documents, self.sizes, self.seed = documents, sizes, seed
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
            self.groups += np.array_split(order, -(-size // TOGETHER))
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


def train(
    model: SpanBERTForCoreference,
    tokenizer: PreTrainedTokenizerBase,
    clusters: Sequence[Cluster],
    options: TrainingOptions,
    spans: SpanTraining | None = None,
) -> Training:
    """Trains the model and writes it to `options.output`; a batch holds `options.batch_size` groups of documents.

    Raises:
        ValueError: there is no document, or no mention in any that the model can learn.
    """
    documents = [document for cluster in clusters for document in cluster]
    if not documents:
        raise ValueError("there is no document to train on")
    plain = list(map(first_of_words, documents))
    data = coreference.Documents(plain, tokenizer, coreference.window_length(model), spans, options.seed)
    coreference.count_training(documents, data, model.config.max_span_width)
    groups = Clusters(data, [len(cluster) for cluster in clusters], options.seed)
    return fit(model, options, groups, collate, write_vocabulary=tokenizer.save_pretrained)


def resolve(
    model: SpanBERTForCoreference,
    tokenizer: PreTrainedTokenizerBase,
    clusters: Sequence[Cluster],
    backend: str = "auto",
) -> list[set[Entity]]:
    """The entities of each cluster, by the words of `joined`; the documents' own mentions are not looked at."""
    length = coreference.window_length(model)
    examples = [
        merged([coreference.encode(coreference.unmarked(document), tokenizer, length) for document in cluster])
        for cluster in clusters
    ]
    return coreference.entities_of(model, examples, collate, backend)


def evaluate(
    model: SpanBERTForCoreference,
    tokenizer: PreTrainedTokenizerBase,
    clusters: Sequence[Cluster],
    backend: str = "auto",
) -> Scores:
    """MUC, B3, CEAFe and CoNLL F1 over clusters: a link between documents counts as one inside a document does."""
    coreference.count_test(model, tokenizer, [document for cluster in clusters for document in cluster])
    return coreference.score([joined(c) for c in clusters], resolve(model, tokenizer, clusters, backend))


def _train_files(
    data: Source, test: Source | None, start: Start, options: TrainingOptions, spans: SpanTraining | None
) -> Outcome:
    clusters = clusters_of(read(read_marked, data, TRAINING))
    held_out = clusters_of(read(read_marked, test, TEST))
    tokenizer = start.tokenizer(" ".join(document.words) for cluster in clusters for document in cluster)
    model = start.build(SpanBERTForCoreference, tokenizer, options.seed, **cross_document_fields(start.layers()))
    training = train(model, tokenizer, clusters, options, spans)
    if not held_out:
        return Outcome(training, {}, {})
    coreference.count_test(model, tokenizer, [document for cluster in held_out for document in cluster])
    gold = [joined(cluster) for cluster in held_out]
    found = resolve(model, tokenizer, held_out, options.backend)
    return Outcome(training, coreference.score(gold, found), coreference.singletons(gold, found))


def _load(folder: Path) -> tuple[SpanBERTForCoreference, PreTrainedTokenizerBase]:
    return load_trained(SpanBERTForCoreference, folder), SpanBERTTokenizer.from_pretrained(folder)


def _evaluate_file(folder: Path, data: Source, backend: str) -> Scores:
    return evaluate(*_load(folder), clusters_of(read(read_marked, data, TEST)), backend)


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


def _predict_file(folder: Path, data: Source, backend: str) -> Iterator[str]:
    """A JSON object an entity: its mentions as lists of [document, first, last, text]."""
    clusters = read_to_predict(read_clusters, data)
    lines = Lines(document.path for cluster in clusters for document in cluster)
    took("document", sum(map(len, clusters)))
    model, tokenizer = _load(folder)
    words = (document.words for cluster in clusters for document in cluster)
    count_cut_words(words, tokenizer, coreference.window_length(model) - 2)
    for cluster, found in zip(clusters, resolve(model, tokenizer, clusters, backend), strict=True):
        starts = np.cumsum([0, *(len(document.words) for document in cluster)]).tolist()
        for entity in sorted(sorted(each) for each in found):
            mentions, paths = [], []
            for first, last in entity:
                number = bisect_right(starts, first) - 1
                document, begin = cluster[number], starts[number]
                place = first - begin, last - begin
                paths.append(document.path)
                mentions.append((document.name, *place, " ".join(document.words[place[0] : place[1] + 1])))
            yield lines.of_files(paths, mentions=mentions)


TASK = Task(_train_files, _evaluate_file, _predict_file)
