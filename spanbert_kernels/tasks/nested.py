"""Named entities that may lie in each other: a label for every span of words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from spanbert_kernels import ops
from spanbert_kernels.data.conll_coref import MarkedDocument
from spanbert_kernels.data.entities import read_nested
from spanbert_kernels.data.words import read_documents
from spanbert_kernels.models import SpanBERTForSpanClassification
from spanbert_kernels.tasks.attribution import Claim, Pass, reading_of_words
from spanbert_kernels.tasks.base import Batches, Scores, Task
from spanbert_kernels.tasks.batches import Example, joined, numbered, padded
from spanbert_kernels.tasks.formats import BRACKETED_WORDS
from spanbert_kernels.tasks.labels import labels_of
from spanbert_kernels.tasks.means import OF_WORDS
from spanbert_kernels.tasks.mentions import count_mentions, first_of_words, unmarked
from spanbert_kernels.tasks.predictions import Mark, Prediction, located
from spanbert_kernels.tasks.scores import scores_of_sets
from spanbert_kernels.tasks.span_training import cut
from spanbert_kernels.tasks.vocabulary import Tokenizer
from spanbert_kernels.tasks.windows import window_length, windows

NO_MENTION = "none"
Found = set[tuple[int, int, str]]  # first word, last word, type


def labels_of_kinds(kinds: Collection[str]) -> list[str]:
    """All types, after the name for no mention, which no type has."""
    nothing = NO_MENTION
    while nothing in kinds:
        nothing = f"({nothing})"
    return [nothing, *sorted(kinds)]


def gold(document: MarkedDocument) -> Found:
    """The mentions of a document."""
    return {(mention.first, mention.last, mention.kind) for mention in document.mentions}


def windows_of(
    documents: Sequence[MarkedDocument], tokenizer: Tokenizer, labels: Sequence[str], length: int
) -> list[Example]:
    """Documents as windows of at most `length` tokens that end with a sentence where one ends, else with a word.

    Mentions that leave their window are not in it, and of those of the same words the first alone is.
    """
    number = {label: i for i, label in enumerate(labels) if i}
    found = []
    for index, document in enumerate(map(first_of_words, documents)):
        for first, last, ids, word_starts in windows(document.words, tokenizer, length):
            inside = [m for m in document.mentions if m.first >= first and m.last < last]
            bounds = [(m.first - first, m.last - first) for m in inside]
            found.append(
                {
                    "item": index,
                    "begin": first,
                    "input_ids": ids,
                    "word_starts": word_starts,
                    "mentions": np.array(bounds, dtype=np.int64).reshape(-1, 2),
                    "labels": np.array([number[m.kind] for m in inside], dtype=np.int64),
                }
            )
    return found


def show(example: dict[str, Any], span: slice, crop: str) -> dict[str, Any]:
    """Span training: the words that begin in the span. For crop "loss" all are encoded, and spans of those scored."""
    word_starts, mentions = example["word_starts"], example["mentions"]
    kept = np.flatnonzero((word_starts >= span.start) & (word_starts < span.stop))
    first, last = (int(kept[0]), int(kept[-1])) if len(kept) else (0, -1)
    inside = (mentions[:, 0] >= first) & (mentions[:, 1] <= last)
    shown = {
        "word_starts": word_starts[kept],
        "mentions": mentions[inside] - first,
        "labels": example["labels"][inside],
    }
    if crop == "loss":
        return {**example, **shown}
    return {"input_ids": cut(example["input_ids"], span), **shown, "word_starts": word_starts[kept] - span.start + 1}


def collate(examples: list[Example]) -> dict[str, Tensor]:
    """A padded batch: pieces `[B, L]`, words `[B, W]`; `mentions [M, 3]` are row, first and last word."""
    return {
        **padded(examples, {"input_ids": 0, "word_starts": -1}),
        "mentions": numbered([example["mentions"] for example in examples]),
        "labels": joined([example["labels"] for example in examples]),
    }


def _count(model: Any, tokenizer: Tokenizer, documents: Sequence[MarkedDocument], examples: Sequence[Example]) -> int:
    """Counts documents and mentions; gives how many mentions the model can use."""
    starts: list[list[int]] = [[] for _ in documents]
    for window in examples:
        starts[window["item"]].append(window["begin"])
    return count_mentions(documents, starts, tokenizer, window_length(model) - 2, model.config.max_span_width, "kind")


def _decode(model: Any, documents: Sequence[MarkedDocument], batches: Batches) -> list[Found]:
    """The mentions of each document: spans with a type likelier than none, and of two that cross the likelier."""
    labels = labels_of(model)
    found: list[Found] = [set() for _ in documents]
    for examples, output in batches:
        offsets = np.cumsum([0, *(len(example["word_starts"]) for example in examples)])
        for span, label in _likeliest(output):
            first, last = output.spans[span].tolist()
            row = int(np.searchsorted(offsets, first, side="right")) - 1
            shift = examples[row]["begin"] - int(offsets[row])
            found[examples[row]["item"]].add((first + shift, last + shift, labels[label]))
    return found


def _likeliest(output: Any) -> Iterator[tuple[int, int]]:
    """The numbers of spans that are mentions, and of their types."""
    best = output.logits.float().log_softmax(-1).max(-1)
    likely = best.indices.nonzero()[:, 0]
    kept = likely[ops.prune_spans(output.spans[likely], best.values[likely], len(likely))]
    yield from zip(kept.tolist(), best.indices[kept].tolist(), strict=True)


def score(documents: Sequence[MarkedDocument], found: Sequence[Found]) -> Scores:
    """Precision, recall and F1 of spans with their types, over all documents."""
    return scores_of_sets([gold(document) for document in documents], found)


def dictionary(train_on: Iterable[MarkedDocument], documents: Sequence[MarkedDocument], width: int = 20) -> Scores:
    """The trivial baseline: word sequences that are mentions in the training data, of their commonest type."""
    kinds: dict[tuple[str, ...], Counter[str]] = {}
    for document in train_on:
        for mention in document.mentions:
            words = document.words[mention.first : mention.last + 1]
            kinds.setdefault(words, Counter())[mention.kind] += 1
    best = {words: counts.most_common(1)[0][0] for words, counts in kinds.items()}
    found: list[Found] = []
    for document in documents:
        spans = (
            (first, last, best.get(document.words[first : last + 1]))
            for first in range(len(document.words))
            for last in range(first, min(first + width, len(document.words)))
        )
        found.append({(first, last, kind) for first, last, kind in spans if kind is not None})
    return score(documents, found)


def _predictions(document: MarkedDocument, mentions: Found) -> Iterator[Prediction]:
    where = located(document)
    marks = tuple(Mark(*where.span(first, last), label) for first, last, label in sorted(mentions))
    name = "" if document.located else document.name
    yield Prediction(document.path, document.lines[0], where, marks, "entities", document=name)


def _claims(
    model: Any, tokenizer: Tokenizer, documents: Sequence[MarkedDocument], passes: list[Pass]
) -> Iterator[Claim]:
    """The mentions of a document."""
    labels = labels_of(model)
    for number, (window, _, output, _) in enumerate(passes):
        document = documents[window["item"]]
        reading = reading_of_words(document.words, window["begin"], [window], len(window["input_ids"]))
        for span, label in _likeliest(output):

            def score(output: Any, span: int = span, label: int = label) -> Tensor:
                chance: Tensor = output.logits[span].float().log_softmax(-1)[label]
                return chance

            first, last = output.spans[span].tolist()
            yield Claim(
                *(number, labels[label], score, reading, tuple(range(first, last + 1))),
                document=document.name,
                file=str(document.path),
                probability=float(score(output).exp()),
            )


TASK = Task(
    noun="document",
    lack="there is no mention",
    kind=SpanBERTForSpanClassification,
    read=read_nested,
    read_plain=partial(read_documents, by_line=True),
    texts=lambda document: [" ".join(document.words)],
    marks=lambda document: ((m.kind, document.path, document.lines[m.first]) for m in document.mentions),
    labels=labels_of_kinds,
    known=lambda model: labels_of(model)[1:],
    bare=unmarked,
    encode=lambda model, tokenizer, documents: windows_of(documents, tokenizer, labels_of(model), window_length(model)),
    count=_count,
    show=show,
    collate=collate,
    answers=("mentions", "labels"),
    means=OF_WORDS,
    decode=_decode,
    score=score,
    baseline=lambda train_on, documents, found: dictionary(train_on, documents),
    predictions=_predictions,
    columns=BRACKETED_WORDS,
    claims=_claims,
)
train, evaluate, load, find = TASK.fit, TASK.evaluate_items, TASK.load, TASK.find
