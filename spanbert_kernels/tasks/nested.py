"""Named entities that may lie in each other: a label for every span of words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from spanbert_kernels import ops
from spanbert_kernels.data.conll_coref import MarkedDocument
from spanbert_kernels.data.counts import TEST, TRAINING, counting
from spanbert_kernels.data.entities import read_nested
from spanbert_kernels.data.faults import DataFault, warn
from spanbert_kernels.data.sources import Source
from spanbert_kernels.data.words import read_documents
from spanbert_kernels.models import SpanBERTForSpanClassification, SpanBERTTokenizer
from spanbert_kernels.tasks.batches import outputs, padded
from spanbert_kernels.tasks.labels import label_fields, labels_of, listed, warn_of_unknown
from spanbert_kernels.tasks.mentions import count_mentions, first_of_words
from spanbert_kernels.tasks.predictions import Lines
from spanbert_kernels.tasks.reading import read, read_to_predict
from spanbert_kernels.tasks.span_training import SpansOfDocuments, SpanTraining, cut
from spanbert_kernels.tasks.start import Start, load_trained
from spanbert_kernels.tasks.task import Outcome, Scores, Task
from spanbert_kernels.tasks.training import Training, TrainingOptions, fit
from spanbert_kernels.tasks.windows import count_cut_words, encoded, pieces_of
from spanbert_kernels.tasks.windows import cut as cut_words

NO_MENTION = "none"
WINDOW = 128  # tokens of a training example, special ones counted, where the model can hold more
Found = set[tuple[int, int, str]]  # first word, last word, type


@dataclass(frozen=True)
class Window:
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
    documents: Sequence[MarkedDocument], tokenizer: PreTrainedTokenizerBase, labels: Sequence[str], length: int
) -> list[Window]:
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
            found.append(Window(index, first, _example(document, pieces, first, last, tokenizer, number)))
    return found


def _example(
    document: MarkedDocument,
    pieces: list[list[int]],
    first: int,
    last: int,
    tokenizer: PreTrainedTokenizerBase,
    number: dict[str, int],
) -> dict[str, Any]:
    ids, columns = encoded(pieces[first:last], tokenizer)
    inside = [m for m in document.mentions if m.first >= first and m.last < last]
    return {
        "input_ids": ids,
        "columns": columns,
        "mentions": np.array([(m.first - first, m.last - first) for m in inside], dtype=np.int64).reshape(-1, 2),
        "labels": np.array([number[m.kind] for m in inside], dtype=np.int64),
    }


def show(example: dict[str, Any], span: slice, crop: str) -> dict[str, Any]:
    """Span training: the words that begin in the span. For crop "loss" all are encoded, and spans of those scored."""
    columns, mentions = example["columns"], example["mentions"]
    kept = np.flatnonzero((columns >= span.start) & (columns < span.stop))
    first, last = (int(kept[0]), int(kept[-1])) if len(kept) else (0, -1)
    inside = (mentions[:, 0] >= first) & (mentions[:, 1] <= last)
    shown = {"columns": columns[kept], "mentions": mentions[inside] - first, "labels": example["labels"][inside]}
    if crop == "loss":
        return {**example, **shown}
    return {"input_ids": cut(example["input_ids"], span), **shown, "columns": columns[kept] - span.start + 1}


def collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """A padded batch: pieces `[B, L]`, words `[B, W]`; `mentions [M, 3]` are row, first and last word."""
    batch = _without_mentions(examples)
    mentions = [np.insert(example["mentions"], 0, row, axis=1) for row, example in enumerate(examples)]
    batch["mentions"] = torch.from_numpy(np.concatenate(mentions))
    batch["labels"] = torch.from_numpy(np.concatenate([example["labels"] for example in examples]))
    return batch


def _without_mentions(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    return padded(examples, {"input_ids": 0, "columns": -1})


def train(
    model: SpanBERTForSpanClassification,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[MarkedDocument],
    options: TrainingOptions,
    spans: SpanTraining | None = None,
) -> Training:
    """Trains the classifier, whose types stand in `model.config.id2label`, and writes it to `options.output`.

    Raises:
        ValueError: there is no document, or no mention in any that the model can learn; `DataFault` for a type that it
            does not have.
    """
    if not documents:
        raise ValueError("there is no document to train on")
    plain = list(map(first_of_words, documents))
    windows = windows_of(plain, tokenizer, labels_of(model), _length(model))
    with counting(TRAINING):
        if not _count(documents, windows, tokenizer, model):
            raise ValueError(f"{documents[0].path}: there is no mention to train on")
    examples: Any = [window.example for window in windows]
    if spans is not None:
        examples = SpansOfDocuments(examples, spans, options.seed, show)
    return fit(model, options, examples, collate, write_vocabulary=tokenizer.save_pretrained)


def _count(documents: Sequence[MarkedDocument], windows: Sequence[Window], tokenizer: Any, model: Any) -> int:
    """Counts documents and mentions; gives how many mentions the model can use."""
    starts: list[list[int]] = [[] for _ in documents]
    for window in windows:
        starts[window.document].append(window.first)
    return count_mentions(documents, starts, tokenizer, _length(model) - 2, model.config.max_span_width, "kind")


def _length(model: Any) -> int:
    return min(WINDOW, model.config.max_position_embeddings)


def find(
    model: SpanBERTForSpanClassification,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[MarkedDocument],
    backend: str = "auto",
) -> list[Found]:
    """The mentions of each document: spans for which a type is likelier than none, and of two that cross the likelier.

    The documents' own mentions are not looked at.
    """
    labels = labels_of(model)
    plain = [MarkedDocument(d.name, d.words, (), d.path, d.lines) for d in documents]
    windows = windows_of(plain, tokenizer, labels, _length(model))
    found: list[Found] = [set() for _ in documents]
    examples = [window.example for window in windows]
    for chosen, output in outputs(model, examples, _without_mentions, lambda e: len(e["input_ids"]), backend=backend):
        best = output.logits.float().log_softmax(-1).max(-1)
        likely = best.indices.nonzero()[:, 0]
        spans, chance = output.spans[likely], best.values[likely]
        kept = likely[ops.prune_spans(spans, chance, len(likely))]
        offsets = np.cumsum([0, *(len(examples[i]["columns"]) for i in chosen)])
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


def evaluate(
    model: SpanBERTForSpanClassification,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[MarkedDocument],
    backend: str = "auto",
) -> Scores:
    """The scores of a model; mentions across windows, too wide or of a type that it does not have are missed."""
    windows = windows_of([replace(document, mentions=()) for document in documents], tokenizer, [], _length(model))
    with counting(TEST):
        if not _count(documents, windows, tokenizer, model):
            warn(f"{documents[0].path}: there is no mention to find")
    kinds = ((mention.kind, each.path, each.lines[mention.first]) for each in documents for mention in each.mentions)
    warn_of_unknown(kinds, labels_of(model)[1:])
    return score(documents, find(model, tokenizer, documents, backend))


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


def _train_files(
    data: Source, test: Source | None, start: Start, options: TrainingOptions, spans: SpanTraining | None
) -> Outcome:
    documents = read(read_nested, data, TRAINING)
    held_out = read(read_nested, test, TEST)
    tokenizer = start.tokenizer(" ".join(document.words) for document in documents)
    fields = label_fields(labels_of_documents(documents))
    model = start.build(SpanBERTForSpanClassification, tokenizer, options.seed, **fields)
    training = train(model, tokenizer, documents, options, spans)
    if not held_out:
        return Outcome(training, {}, {})
    return Outcome(training, evaluate(model, tokenizer, held_out, options.backend), dictionary(documents, held_out))


def load(folder: Path) -> tuple[SpanBERTForSpanClassification, PreTrainedTokenizerBase]:
    """The span classifier that a training wrote to a folder, and its tokenizer."""
    model = load_trained(SpanBERTForSpanClassification, folder)
    return model, SpanBERTTokenizer.from_pretrained(folder)


def _evaluate_file(folder: Path, data: Source, backend: str) -> Scores:
    return evaluate(*load(folder), read(read_nested, data, TEST), backend)


def _predict_file(folder: Path, data: Source, backend: str) -> Iterator[str]:
    """A JSON object a document, a line of plain text: its words, and its mentions as [first, last, type]."""
    documents = read_to_predict(partial(read_documents, by_line=True), data, "document")
    model, tokenizer = load(folder)
    count_cut_words((document.words for document in documents), tokenizer, _length(model) - 2)
    lines = Lines(document.path for document in documents)
    for document, mentions in zip(documents, find(model, tokenizer, documents, backend), strict=True):
        yield lines.record(document.path, words=document.words, mentions=sorted(mentions))


TASK = Task(_train_files, _evaluate_file, _predict_file)
