"""Named entities that may lie in each other: a label for every span of words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spanbert_kernels import ops
from spanbert_kernels.data.conll_coref import MarkedDocument
from spanbert_kernels.data.entities import read_nested
from spanbert_kernels.data.faults import DataFault, warn
from spanbert_kernels.data.words import read_documents
from spanbert_kernels.models import SpanBERTForSpanClassification
from spanbert_kernels.tasks.base import Scores, Task
from spanbert_kernels.tasks.batches import outputs, padded
from spanbert_kernels.tasks.labels import label_fields, labels_of, listed, warn_of_unknown
from spanbert_kernels.tasks.mentions import count_cut_words_of, count_mentions, first_of_words, unmarked
from spanbert_kernels.tasks.predictions import Lines
from spanbert_kernels.tasks.span_training import SpanTraining, cut, shown
from spanbert_kernels.tasks.vocabulary import Tokenizer
from spanbert_kernels.tasks.windows import cut as cut_words
from spanbert_kernels.tasks.windows import encoded, pieces_of, window_length

NO_MENTION = "none"
Found = set[tuple[int, int, str]]  # first word, last word, type


@dataclass(frozen=True)
class DocumentWindow:
    """Part of a document: its first word, and an example for the Trainer. Mentions that leave it are not in it."""

    document: int
    first: int
    example: dict[str, Any]


def labels_of_documents(documents: Iterable[MarkedDocument]) -> list[str]:
    """All types, after the name for no mention, which no type has."""
    kinds = {mention.kind for document in documents for mention in document.mentions}
    nothing = NO_MENTION
    while nothing in kinds:
        nothing = f"({nothing})"
    return [nothing, *sorted(kinds)]


def gold(document: MarkedDocument) -> Found:
    """The mentions of a document."""
    return {(mention.first, mention.last, mention.kind) for mention in document.mentions}


def windows_of(
    documents: Sequence[MarkedDocument], tokenizer: Tokenizer, labels: Sequence[str], length: int
) -> list[DocumentWindow]:
    """Documents as windows of at most `length` tokens that end with a sentence where one ends, else with a word.

    Raises:
        DataFault: a type that is not among `labels`.
    """
    number = {label: i for i, label in enumerate(labels) if i}
    found = []
    for index, document in enumerate(documents):
        for mention in document.mentions:
            if mention.kind not in number:
                line = document.lines[mention.first]
                raise DataFault(
                    document.path, line, f"unknown type {mention.kind!r}; the model has {listed(labels[1:])}"
                )
        pieces = pieces_of(document.words, tokenizer, length - 2)
        for first, last in cut_words(document.words, [len(own) for own in pieces], length - 2):
            found.append(DocumentWindow(index, first, _example(document, pieces, first, last, tokenizer, number)))
    return found


def _example(
    document: MarkedDocument,
    pieces: list[list[int]],
    first: int,
    last: int,
    tokenizer: Tokenizer,
    number: dict[str, int],
) -> dict[str, Any]:
    ids, word_starts = encoded(pieces[first:last], tokenizer)
    inside = [m for m in document.mentions if m.first >= first and m.last < last]
    return {
        "input_ids": ids,
        "word_starts": word_starts,
        "mentions": np.array([(m.first - first, m.last - first) for m in inside], dtype=np.int64).reshape(-1, 2),
        "labels": np.array([number[m.kind] for m in inside], dtype=np.int64),
    }


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


def collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """A padded batch: pieces `[B, L]`, words `[B, W]`; `mentions [M, 3]` are row, first and last word."""
    batch = _without_mentions(examples)
    mentions = [np.insert(example["mentions"], 0, row, axis=1) for row, example in enumerate(examples)]
    batch["mentions"] = torch.from_numpy(np.concatenate(mentions))
    batch["labels"] = torch.from_numpy(np.concatenate([example["labels"] for example in examples]))
    return batch


def _without_mentions(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    return padded(examples, {"input_ids": 0, "word_starts": -1})


def _examples(
    model: Any, tokenizer: Tokenizer, documents: Sequence[MarkedDocument], spans: SpanTraining | None, seed: int
) -> Any:
    windows = windows_of(list(map(first_of_words, documents)), tokenizer, labels_of(model), window_length(model))
    if not _count(documents, windows, tokenizer, model):
        raise ValueError(f"{documents[0].path}: there is no mention to train on")
    return shown([window.example for window in windows], spans, seed, show)


def _check(model: Any, tokenizer: Tokenizer, documents: Sequence[MarkedDocument]) -> None:
    windows = windows_of(list(map(unmarked, documents)), tokenizer, [], window_length(model))
    if not _count(documents, windows, tokenizer, model):
        warn(f"{documents[0].path}: there is no mention to find")
    kinds = ((mention.kind, each.path, each.lines[mention.first]) for each in documents for mention in each.mentions)
    warn_of_unknown(kinds, labels_of(model)[1:])


def _count(documents: Sequence[MarkedDocument], windows: Sequence[DocumentWindow], tokenizer: Any, model: Any) -> int:
    """Counts documents and mentions; gives how many mentions the model can use."""
    starts: list[list[int]] = [[] for _ in documents]
    for window in windows:
        starts[window.document].append(window.first)
    return count_mentions(documents, starts, tokenizer, window_length(model) - 2, model.config.max_span_width, "kind")


def find(
    model: SpanBERTForSpanClassification,
    tokenizer: Tokenizer,
    documents: Sequence[MarkedDocument],
    backend: str = "auto",
) -> list[Found]:
    """The mentions of each document: spans for which a type is likelier than none, and of two that cross the likelier.

    The documents' own mentions are not looked at.
    """
    labels = labels_of(model)
    windows = windows_of(list(map(unmarked, documents)), tokenizer, labels, window_length(model))
    found: list[Found] = [set() for _ in documents]
    examples = [window.example for window in windows]
    for chosen, output in outputs(model, examples, _without_mentions, lambda e: len(e["input_ids"]), backend=backend):
        best = output.logits.float().log_softmax(-1).max(-1)
        likely = best.indices.nonzero()[:, 0]
        spans, chance = output.spans[likely], best.values[likely]
        kept = likely[ops.prune_spans(spans, chance, len(likely))]
        offsets = np.cumsum([0, *(len(examples[i]["word_starts"]) for i in chosen)])
        for (first, last), label in zip(output.spans[kept].tolist(), best.indices[kept].tolist(), strict=True):
            row = int(np.searchsorted(offsets, first, side="right")) - 1
            window = windows[chosen[row]]
            shift = window.first - int(offsets[row])
            found[window.document].add((first + shift, last + shift, labels[label]))
    return found


def score(documents: Sequence[MarkedDocument], found: Sequence[Found]) -> Scores:
    """Precision, recall and F1 of spans with their types, over all documents."""
    right = sum(len(gold(document) & spans) for document, spans in zip(documents, found, strict=True))
    given, wanted = sum(map(len, found)), sum(len(gold(document)) for document in documents)
    return {
        "precision": right / max(given, 1),
        "recall": right / max(wanted, 1),
        "F1": 2 * right / max(given + wanted, 1),
    }


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


def _lines(lines: Lines, document: MarkedDocument, mentions: Found) -> Iterator[str]:
    """A JSON object a document, a line of plain text: its words, and its mentions as [first, last, type]."""
    yield lines.json(document.path, words=document.words, mentions=sorted(mentions))


TASK = Task(
    noun="document",
    kind=SpanBERTForSpanClassification,
    read=read_nested,
    read_plain=partial(read_documents, by_line=True),
    texts=lambda document: [" ".join(document.words)],
    fields=lambda documents, start, data: label_fields(labels_of_documents(documents)),
    examples=_examples,
    collate=lambda model: collate,
    check=_check,
    find=find,
    score=score,
    baseline=lambda train_on, documents, found: dictionary(train_on, documents),
    lines=_lines,
    prepare=count_cut_words_of,
)
train, evaluate, load = TASK.fit, TASK.evaluate_items, TASK.load
