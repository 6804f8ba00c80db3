"""Two ways to train, compared on the same documents: what each found in a document, and a paired bootstrap over them.

A document's sums are four: of what was found, how much is right and how much it is; of what is wanted, likewise. From
sums over documents come precision, recall and F1; where each item has one answer, all are the share of right ones.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from seqeval.metrics.sequence_labeling import get_entities

from spanbert_kernels.tasks import coreference
from spanbert_kernels.tasks.base import Judged
from spanbert_kernels.tasks.cross_document_coreference import joined
from spanbert_kernels.tasks.question_answering import score as score_of_answers

DRAWS = 10_000
Sums = dict[str, NDArray[np.float64]]  # by a document's name, [4]


@dataclass(frozen=True)
class Gap:
    """Of two means over seeds, with the interval that holds 95 % of the draws, and how often chance does as much."""

    mean: float
    low: float
    high: float
    p: float


def f1(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of sums `[..., 4]`.

    Example:
        >>> f1(np.array([[1.0, 2, 1, 1], [0, 0, 0, 3]])).round(3).tolist()
        [0.667, 0.0]
    """
    right, found, right_of_wanted, wanted = np.moveaxis(sums, -1, 0)
    precision, recall = right / np.maximum(found, 1e-9), right_of_wanted / np.maximum(wanted, 1e-9)
    mean: NDArray[np.float64] = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    return mean


def difference(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], seed: int = 0) -> Gap:
    """F1 of the one less that of the other: both are scored on the same documents, drawn again and again.

    Args:
        ours, theirs: a seed's sums by document; a document that one lacks has nothing that it could find there.
        seed: of the draws.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap; Berg-Kirkpatrick et al. 2012.
    """
    names = sorted({name for run in (*ours, *theirs) for name in run})
    sides = [np.array([[run.get(name, np.zeros(4)) for name in names] for run in runs]) for runs in (ours, theirs)]
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), DRAWS)
    seen, again = (
        [f1(np.einsum("wd,sdk->wsk", w, side)).mean(1) for side in sides] for w in (np.ones_like(drawn[:1]), drawn)
    )
    gaps = again[0] - again[1]
    low, high = np.quantile(gaps, (0.025, 0.975))
    either = min(np.count_nonzero(gaps <= 0), np.count_nonzero(gaps >= 0))
    return Gap(float(seen[0][0] - seen[1][0]), float(low), float(high), min(1.0, 2 * (either + 1) / (DRAWS + 1)))


def of_sets(documents: Iterable[tuple[str, Set[Hashable], Set[Hashable]]]) -> Sums:
    """Of what was found and what is wanted in documents; those of one name are one."""
    sums: Sums = {}
    for name, found, wanted in documents:
        right = len(found & wanted)
        sums.setdefault(name, np.zeros(4))[:] += (right, len(found), right, len(wanted))
    return sums


def of_mentions(judged: Judged) -> Sums:
    """B3 of entities in clusters of documents: each mention has its part in the score.

    Source: Bagga and Baldwin 1998.
    """
    sums: Sums = {}
    for cluster, found in zip(judged.items, judged.found, strict=True):
        ends = np.cumsum([len(document.words) for document in cluster])
        wanted = coreference.gold(joined(cluster))
        for place, (own, others) in enumerate(((found, wanted), (wanted, found))):
            own_of, other_of = ({mention: entity for entity in all_ for mention in entity} for all_ in (own, others))
            for mention, entity in own_of.items():
                name = cluster[int(np.searchsorted(ends, mention[0], side="right"))].name
                share = len(entity & other_of.get(mention, frozenset())) / len(entity)
                sums.setdefault(name, np.zeros(4))[2 * place : 2 * place + 2] += (share, 1)
    return sums


def of_relations(judged: Judged) -> Sums:
    """A relation is of the first document that mentions its first entity."""

    def parts() -> Iterable[tuple[str, Set[Hashable], Set[Hashable]]]:
        for cluster, found in zip(judged.items, judged.found, strict=True):
            places = [
                (mention.entity, document.name) for document in cluster.documents for mention in document.mentions
            ]
            name_of = dict(reversed(places))
            for name in dict.fromkeys(name_of.values()):
                own, wanted = (
                    {each for each in all_ if name_of[each[0]] == name} for all_ in (found, cluster.relations)
                )
                yield name, own, wanted

    return of_sets(parts())


def of_labels(judged: Judged) -> Sums:
    """A label a text; texts of a cluster are a document."""
    pairs = zip(judged.items, judged.found, strict=True)
    return of_sets(
        (item.cluster or str(item.line), {(item.line, label)}, {(item.line, item.label)}) for item, (label, _) in pairs
    )


def of_entities(judged: Judged) -> Sums:
    """Of tagged sentences, each of which is a document."""
    pairs = zip(judged.items, judged.found, strict=True)
    return of_sets(
        (str(item.line), set(get_entities(list(found))), set(get_entities(list(item.labels)))) for item, found in pairs
    )


def of_spans(judged: Judged) -> Sums:
    """Of spans with their types."""
    pairs = zip(judged.items, judged.found, strict=True)
    return of_sets((item.name, found, {(m.first, m.last, m.kind) for m in item.mentions}) for item, found in pairs)


def of_answers(judged: Judged) -> Sums:
    """F1 of each answer; a question's name begins with its document's."""
    sums: Sums = {}
    for question, answer in zip(judged.items, judged.found, strict=True):
        name, share = question.id.rsplit("-", 2)[0], score_of_answers([question], [answer])["F1"]
        sums.setdefault(name, np.zeros(4))[:] += (share, 1, share, 1)
    return sums


def written(sums: Sums) -> dict[str, str]:
    """A line a document that has something, for a record.

    Example:
        >>> written({"a": np.array([1, 2, 1, 0.25]), "b": np.zeros(4)})
        {'a': '1 2 1 0.25'}
    """
    return {name: " ".join(f"{value:.6g}" for value in own) for name, own in sorted(sums.items()) if own.any()}


def read(lines: Mapping[str, str]) -> Sums:
    """What `written` made."""
    return {name: np.array(own.split(), dtype=float) for name, own in lines.items()}


Parts = Callable[[Judged], Sums]
