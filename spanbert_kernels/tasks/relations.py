"""Relations across documents: which entities of a cluster of documents stand in which relation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from spanbert_kernels.data.conll_coref import MarkedDocument
from spanbert_kernels.data.counts import left_out, took
from spanbert_kernels.data.entities import read_marked
from spanbert_kernels.data.faults import DataFault
from spanbert_kernels.data.related import read_relations
from spanbert_kernels.data.sources import Source, paths_of
from spanbert_kernels.models import SpanBERTForRelations, kind_for
from spanbert_kernels.tasks import coreference
from spanbert_kernels.tasks.attribution import Claim, Pass
from spanbert_kernels.tasks.base import Batches, Scores, Task
from spanbert_kernels.tasks.batches import Example, joined, repeated
from spanbert_kernels.tasks.cross_document_coreference import (
    Cluster,
    Groups,
    clusters_of,
    cross_document_fields,
    documents_in,
    documents_of,
    merged,
)
from spanbert_kernels.tasks.formats import RELATED_ENTITIES
from spanbert_kernels.tasks.labels import labels_of
from spanbert_kernels.tasks.means import Mean, rows_of
from spanbert_kernels.tasks.mentions import count_mentions
from spanbert_kernels.tasks.predictions import Prediction
from spanbert_kernels.tasks.scores import scores_of_sets
from spanbert_kernels.tasks.span_training import SpanTraining
from spanbert_kernels.tasks.start import Start, trained_for
from spanbert_kernels.tasks.vocabulary import Tokenizer
from spanbert_kernels.tasks.windows import window_length

NO_RELATION = "none"
TOGETHER = 2  # documents of a cluster that a step of training sees at once; few relations need many steps
DOCUMENTS, RELATIONS = "documents.conll", "relations.tsv"
Related = tuple[str, str, str]  # two entities, and the relation of the first to the second


@dataclass(frozen=True)
class RelatedCluster:
    """Documents with their mentions, and the relations of entities that have a mention there."""

    documents: Cluster
    relations: frozenset[Related]
    lines: Mapping[Related, tuple[Path, int]] = field(default_factory=dict, compare=False)


def read_related(source: Source, relations: bool = True) -> list[RelatedCluster]:
    """Clusters of `documents.conll` in folders, and the relations of `relations.tsv`: entity, entity, relation.

    Mentions are marked as for coreference. A relation belongs to every cluster that has mentions of both entities; one
    that is called none is none.

    Args:
        source: a folder, or several.
        relations: whether the relations are wanted; else their file need not be there.

    Raises:
        DataFault: a line that has not three columns, an entity without a mention, one that is related to itself, a pair
            with two relations, or one whose entities no cluster has both of.
        OSError: a file cannot be read.
    """
    return [cluster for folder in paths_of(source) for cluster in _of_folder(folder, relations)]


def _of_folder(folder: Path, relations: bool) -> list[RelatedCluster]:
    if not (folder / DOCUMENTS).is_file():
        wanted = f"{DOCUMENTS}, columns that mark mentions (predict coreference writes them with --format columns)"
        raise ValueError(f"{folder}: relations are those of a folder with {wanted}, and to train on {RELATIONS}")
    clusters = clusters_of(read_marked(folder / DOCUMENTS))
    path = folder / RELATIONS
    found = read_relations(path) if relations else {}
    left_out("relation", f"called {NO_RELATION}", sum(kind == NO_RELATION for _, kind in found.values()))
    known = [{mention.entity for document in cluster for mention in document.mentions} for cluster in clusters]
    for (first, second), (line, _) in found.items():
        for entity in (first, second):
            if not any(entity in each for each in known):
                raise DataFault(path, line, f"entity {entity!r} has no mention in {DOCUMENTS}")
        if not any(first in each and second in each for each in known):
            raise DataFault(path, line, f"no cluster has mentions of both {first!r} and {second!r}")
    clusters_with_relations = []
    for cluster, each in zip(clusters, known, strict=True):
        own = {(a, b, kind): (path, line) for (a, b), (line, kind) in found.items() if {a, b} <= each}
        lines = {related: place for related, place in own.items() if related[2] != NO_RELATION}
        clusters_with_relations.append(RelatedCluster(cluster, frozenset(lines), lines))
    return clusters_with_relations


def read_related_to_predict(source: Source) -> list[RelatedCluster]:
    """The same without relations.

    Raises:
        ValueError: there is no mention of an entity.
    """
    found = read_related(source, relations=False)
    documents = _documents(found)
    if documents and not any(document.mentions for document in documents):
        raise ValueError(f"{documents[0].path}: there is no mention of an entity")
    return found


def with_relations(example: Example, relations: frozenset[Related], labels: Sequence[str]) -> Example:
    """An example of `merged` with its relations `[K, 3]`; those of entities that are not in it are left out."""
    number = {name: i for i, name in enumerate(example["names"])}
    found = [(number[a], number[b], labels.index(kind)) for a, b, kind in sorted(relations) if {a, b} <= number.keys()]
    return {**example, "relations": np.array(found, dtype=np.int64).reshape(-1, 3)}


class RelatedGroups(Dataset[dict[str, Any]]):
    """Groups of a cluster's documents, drawn anew in every epoch, with the relations between their entities."""

    def __init__(self, groups: Groups, clusters: Sequence[RelatedCluster], labels: Sequence[str]) -> None:
        self.groups, self.labels = groups, labels
        self.relations = [cluster.relations for cluster in clusters for _ in cluster.documents]

    def __len__(self) -> int:
        return len(self.groups)

    def set_epoch(self, epoch: int) -> None:
        """Of the training."""
        self.groups.set_epoch(epoch)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A group as one example."""
        relations = self.relations[int(self.groups.groups[index][0])]
        return with_relations(self.groups[index], relations, self.labels)


def collate(examples: list[Example]) -> dict[str, Tensor]:
    """A padded batch; `mentions [M, 3]`, `entities [M]`, `clusters [E]`, `relations [K, 3]`, `cluster_ids [B]`."""
    batch = coreference.windows_and_mentions(examples)
    sizes = [len(example["names"]) for example in examples]
    return {
        "cluster_ids": batch.pop("documents"),
        **batch,
        "entities": joined([example["entities"] for example in examples], sizes),
        "relations": joined([example["relations"] for example in examples], sizes, column=slice(2)),
        "clusters": repeated(sizes),
    }


def _documents(clusters: Iterable[RelatedCluster]) -> list[MarkedDocument]:
    return documents_of(cluster.documents for cluster in clusters)


def _encode(model: Any, tokenizer: Tokenizer, clusters: Sequence[RelatedCluster]) -> list[Example]:
    """An example a cluster, with all of its mentions: the same words may be one of several entities."""
    labels, length = labels_of(model), window_length(model)
    found = []
    for index, cluster in enumerate(clusters):
        documents = [coreference.encode(document, tokenizer, length) for document in cluster.documents]
        found.append({**with_relations(merged(documents), cluster.relations, labels), "item": index})
    return found


def _dataset(
    model: Any,
    tokenizer: Tokenizer,
    clusters: Sequence[RelatedCluster],
    examples: Sequence[Example],
    spans: SpanTraining | None,
    seed: int,
) -> RelatedGroups:
    documents, whole = _documents(clusters), documents_in(examples)
    data = coreference.Documents(documents, tokenizer, window_length(model), spans, seed, whole)
    sizes = [len(cluster.documents) for cluster in clusters]
    return RelatedGroups(Groups(data, sizes, seed, TOGETHER), clusters, labels_of(model))


def _count(model: Any, tokenizer: Tokenizer, clusters: Sequence[RelatedCluster], examples: Sequence[Example]) -> int:
    """Counts documents, mentions and relations; gives how many relations a model can use."""
    starts = [document["starts"] for document in documents_in(examples)]
    count_mentions(_documents(clusters), starts, tokenizer, window_length(model) - 2, None, "entity", shared=True)
    lost, total = 0, 0
    for cluster, example in zip(clusters, examples, strict=True):
        lost += sum(not {first, second} <= set(example["names"]) for first, second, _ in cluster.relations)
        total += len(cluster.relations)
    took("relation", total - lost)
    left_out("relation", "of an entity whose mentions were left out", lost)
    return total - lost


def _decode(model: Any, clusters: Sequence[RelatedCluster], batches: Batches) -> list[dict[Related, float]]:
    """The relations of each cluster's entities with their probabilities.

    Of all pairs the likeliest are taken, as many as give the largest expected F1.
    """
    labels, names = labels_of(model), [list[str]()] * len(clusters)
    scored, places = [torch.empty(0)], [torch.empty(0, 4, dtype=torch.long)]
    expected = 0.0
    for (example,), output in batches:
        names[example["item"]] = example["names"]
        chances = output.logits.softmax(-1)[:, 1:]
        expected += float(chances.sum())
        best = chances.max(-1)
        scored.append(best.values)
        places.append(F.pad(torch.cat((output.pairs, best.indices[:, None] + 1), 1), (1, 0), value=example["item"]))
    likely = torch.cat(scored).sort(descending=True, stable=True)
    chosen = likely.indices[: most_promising(likely.values.tolist(), expected)]
    found: list[dict[Related, float]] = [{} for _ in clusters]
    for chance, (index, first, second, kind) in zip(
        likely.values.tolist(), torch.cat(places)[chosen].tolist(), strict=False
    ):
        found[index][names[index][first], names[index][second], labels[kind]] = chance
    return found


def most_promising(chances: Sequence[float], expected: float) -> int:
    """How many of them, the first ones, have the largest expected F1, where so many are expected in all.

    Source: Lipton et al. 2014, Optimal Thresholding of Classifiers to Maximize F1 Measure.

    Example:
        >>> most_promising([0.9, 0.4, 0.1, 0.1], expected=1.5)
        2
    """
    values = np.cumsum(chances) / (np.arange(len(chances)) + 1 + expected)
    return int(values.argmax()) + 1 if len(values) else 0


def score(clusters: Sequence[RelatedCluster], found: Sequence[Collection[Related]]) -> Scores:
    """Precision, recall and F1 of pairs with their relations, over all clusters."""
    return scores_of_sets([cluster.relations for cluster in clusters], found)


def neighbours(train_on: Sequence[RelatedCluster], clusters: Sequence[RelatedCluster]) -> Scores:
    """The trivial baseline: the commonest relation between entities whose mentions follow each other in a document."""
    counts = Counter(kind for cluster in train_on for _, _, kind in sorted(cluster.relations))
    commonest = counts.most_common(1)[0][0] if counts else NO_RELATION
    found = []
    for cluster in clusters:
        orders = ([mention.entity for mention in document.mentions] for document in cluster.documents)
        pairs = {pair for order in orders for pair in pairwise(order)}
        found.append({(first, second, commonest) for first, second in pairs if first != second})
    return score(clusters, found)


def _fields(clusters: Sequence[RelatedCluster], start: Start, data: Source) -> dict[str, Any]:
    if not any(cluster.relations for cluster in clusters):
        raise ValueError(f"{paths_of(data)[0] / RELATIONS}: there is no relation to train on")
    return {**cross_document_fields(start.layers()), "relation_places": _places(start)}


def _places(start: Start) -> bool:
    """Whether relations are scored by place; a model that learnt relations before is gone on with as it is."""
    if start.model is None:
        return True
    config = kind_for(SpanBERTForRelations, start.model).config_class.from_pretrained(start.model)
    return bool(config.relation_places) or not trained_for(config).endswith("ForRelations")


def _predictions(cluster: RelatedCluster, found: dict[Related, float]) -> Iterator[Prediction]:
    """Of each relation of entities that `documents.conll` in a folder marks."""
    for (first, second, kind), chance in sorted(found.items()):
        fields = {"first": first, "second": second, "relation": kind, "probability": round(chance, 4)}
        yield Prediction(cluster.documents[0].path, found=fields)


def _claims(
    model: Any, tokenizer: Tokenizer, clusters: Sequence[RelatedCluster], passes: list[Pass]
) -> Iterator[Claim]:
    """The relations of a cluster, the likeliest of it first; the words are those of all windows with a mention."""
    ((example, _, output, _),) = passes
    cluster = clusters[example["item"]]
    (found,) = _decode(model, [cluster], iter([([{**example, "item": 0}], output)]))
    kinds = {kind: number for number, kind in enumerate(labels_of(model))}
    pairs = {(first, second): number for number, (first, second) in enumerate(output.pairs.tolist())}
    names = {name: number for number, name in enumerate(example["names"])}
    for (first, second, kind), chance in found.items():
        both = [names[first], names[second]]
        mentions = [example["mentions"][example["entities"] == entity].tolist() for entity in both]
        rows = sorted({row for own in mentions for row, _, _ in own})
        reading, begin = coreference.reading_of_rows(cluster.documents, example, rows)
        about, other = (
            tuple(sorted({begin[row] + word for row, one, last in own for word in range(one, last + 1)}))
            for own in mentions
        )

        def score(output: Any, pair: int = pairs[both[0], both[1]], number: int = kinds[kind]) -> Tensor:
            chance: Tensor = output.logits[pair].float().log_softmax(-1)[number]
            return chance

        yield Claim(
            *(0, f"{kind}: {first}, {second}", score, reading, about, other),
            document=cluster.documents[0].name,
            file=str(cluster.documents[0].path),
            probability=chance,
        )


TASK = Task(
    noun="document",
    lack="there is no relation",
    kind=SpanBERTForRelations,
    read=read_related,
    read_plain=read_related_to_predict,
    texts=lambda cluster: [" ".join(document.words) for document in cluster.documents],
    paths=lambda cluster: [cluster.documents[0].path],
    marks=lambda cluster: sorted((kind, *place) for (_, _, kind), place in cluster.lines.items()),
    labels=lambda kinds: [NO_RELATION, *sorted(kinds)],
    known=lambda model: labels_of(model)[1:],
    fields=_fields,
    bare=lambda cluster: RelatedCluster(cluster.documents, frozenset()),
    encode=_encode,
    count=_count,
    dataset=_dataset,
    collate=collate,
    answers=("relations",),
    means=(Mean(rows_of("clusters")),),
    size=coreference.windows_in,
    batch_size=1,
    decode=_decode,
    score=score,
    baseline=lambda train_on, clusters, found: neighbours(train_on, clusters),
    predictions=_predictions,
    columns=RELATED_ENTITIES,
    groups=lambda clusters: [clusters],
    claims=_claims,
)
train, evaluate, load, relate = TASK.fit, TASK.evaluate_items, TASK.load, TASK.find
