"""Named entities as labels of words: a token classifier, scored by entities."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from seqeval.metrics import f1_score, precision_score, recall_score

from spanbert_kernels.data.conll_ner import TaggedSentence
from spanbert_kernels.data.counts import took
from spanbert_kernels.data.entities import read_tagged
from spanbert_kernels.data.faults import DataFault, warn
from spanbert_kernels.data.words import read_sentences
from spanbert_kernels.models import SpanBERTForTokenClassification
from spanbert_kernels.tasks.base import Task
from spanbert_kernels.tasks.batches import IGNORED, outputs, padded
from spanbert_kernels.tasks.labels import label_fields, labels_of, listed, warn_of_unknown
from spanbert_kernels.tasks.predictions import Lines
from spanbert_kernels.tasks.span_training import SpanTraining, shown
from spanbert_kernels.tasks.vocabulary import Tokenizer
from spanbert_kernels.tasks.windows import count_cut_words, cut, encoded, pieces_of


@dataclass(frozen=True)
class SentenceWindow:
    """Part of a sentence that the encoder's positions hold: which words, and an example for the Trainer."""

    sentence: int
    words: NDArray[np.int64]  # of each token, -1 for special tokens
    example: dict[str, Any]


def labels_of_sentences(sentences: Iterable[TaggedSentence]) -> list[str]:
    """All labels, O first; of each type B and I, though only one of them may be there."""
    found = {label for sentence in sentences for label in sentence.labels} - {"O"}
    both = {f"{mark}-{label.split('-', 1)[1]}" for label in found for mark in "BI"}
    return ["O", *sorted(found | both)]


def windows_of(
    sentences: Sequence[TaggedSentence], tokenizer: Tokenizer, labels: Sequence[str], length: int
) -> list[SentenceWindow]:
    """Sentences as word pieces of at most `length` tokens; a word's first piece carries its label.

    A word without a piece, such as a control character, becomes the unknown token.

    Raises:
        DataFault: a label that is not among `labels`.
    """
    check_labels(sentences, labels)
    count_cut_words((sentence.words for sentence in sentences), tokenizer, length - 2)
    number = {label: i for i, label in enumerate(labels)}
    found = []
    for index, sentence in enumerate(sentences):
        pieces = pieces_of(sentence.words, tokenizer, length - 2)
        sizes = [len(own) for own in pieces]
        for first, last in cut(sentence.words, sizes, length - 2, ends=()):
            ids, word_starts = encoded(pieces[first:last], tokenizer)
            of_token, own = np.full(len(ids), -1), np.full(len(ids), IGNORED)
            of_token[1:-1] = np.repeat(np.arange(first, last), sizes[first:last])
            own[word_starts] = [number[label] for label in sentence.labels[first:last]]
            found.append(SentenceWindow(index, of_token, {"input_ids": ids, "labels": own}))
    return found


def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A padded batch `[B, L]`."""
    return padded(examples, {"input_ids": 0, "labels": IGNORED})


def _examples(
    model: Any, tokenizer: Tokenizer, sentences: Sequence[TaggedSentence], spans: SpanTraining | None, seed: int
) -> Any:
    if not _count(sentences):
        raise ValueError(f"{sentences[0].path}: there is no entity to train on")
    windows = windows_of(sentences, tokenizer, labels_of(model), model.config.positions)
    return shown([window.example for window in windows], spans, seed)


def _check(model: Any, tokenizer: Tokenizer, sentences: Sequence[TaggedSentence]) -> None:
    if not _count(sentences):
        warn(f"{sentences[0].path}: there is no entity to find")
    labels = ((label, s.path, s.line_of(place)) for s in sentences for place, label in enumerate(s.labels))
    warn_of_unknown(labels, labels_of(model))


def _count(sentences: Sequence[TaggedSentence]) -> int:
    """Counts sentences and entities; gives the number of entities."""
    entities = sum(label[0] in "BS" for sentence in sentences for label in sentence.labels)
    took("sentence", len(sentences))
    took("entity", entities)
    return entities


def tag(
    model: SpanBERTForTokenClassification,
    tokenizer: Tokenizer,
    sentences: Sequence[TaggedSentence],
    backend: str = "auto",
) -> list[list[str]]:
    """A label for every word. Sentences are encoded whole, in windows where they are longer than the positions.

    The labels of the sentences are not looked at.
    """
    plain = [TaggedSentence(s.words, ("O",) * len(s.words), s.path, s.line) for s in sentences]
    labels = labels_of(model)
    windows = windows_of(plain, tokenizer, ["O"], model.config.positions)
    found = [["O"] * len(sentence.words) for sentence in sentences]
    examples = [window.example for window in windows]
    for chosen, output in outputs(model, examples, _without_labels, _tokens, backend=backend):
        for index, row in zip(chosen, output.logits.argmax(-1).tolist(), strict=True):
            window = windows[index]
            for token in np.flatnonzero(window.example["labels"] != IGNORED).tolist():
                found[window.sentence][int(window.words[token])] = labels[row[token]]
    return found


def _without_labels(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return padded(examples, {"input_ids": 0})


def _tokens(example: dict[str, Any]) -> int:
    return len(example["input_ids"])


def score(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, float]:
    """Precision, recall and F1 of entities, micro-averaged, as seqeval counts them: a span and its type must agree."""
    measures = {"precision": precision_score, "recall": recall_score, "f1": f1_score}
    return {
        name: float(measure(list(map(list, gold)), list(map(list, predicted)), zero_division=0))
        for name, measure in measures.items()
    }


def check_labels(sentences: Sequence[TaggedSentence], labels: Sequence[str]) -> None:
    """Raises `DataFault` for a label that is not among `labels`."""
    for sentence in sentences:
        for place, label in enumerate(sentence.labels):
            if label not in labels:
                reason = f"unknown label {label}; the model has {listed(labels)}"
                raise DataFault(sentence.path, sentence.line_of(place), reason)


def majority(train_on: Sequence[TaggedSentence], sentences: Sequence[TaggedSentence]) -> dict[str, float]:
    """The trivial baseline: each word's commonest label in the training data, O for words that are not there."""
    counts: dict[str, dict[str, int]] = {}
    for sentence in train_on:
        for word, label in zip(sentence.words, sentence.labels, strict=True):
            of_word = counts.setdefault(word, {})
            of_word[label] = of_word.get(label, 0) + 1
    best = {word: max(of_word, key=lambda label: of_word[label]) for word, of_word in counts.items()}
    predicted = [[best.get(word, "O") for word in sentence.words] for sentence in sentences]
    return score([sentence.labels for sentence in sentences], predicted)


def _lines(lines: Lines, sentence: TaggedSentence, labels: Sequence[str]) -> Iterator[str]:
    """A word and its label a line, an empty line after each sentence."""
    yield from lines.comments(sentence.path)
    yield from (f"{word}\t{label}" for word, label in zip(sentence.words, labels, strict=True))
    yield ""


TASK = Task(
    noun="sentence",
    kind=SpanBERTForTokenClassification,
    read=read_tagged,
    read_plain=read_sentences,
    texts=lambda sentence: [" ".join(sentence.words)],
    fields=lambda sentences, start, data: label_fields(labels_of_sentences(sentences)),
    examples=_examples,
    collate=lambda model: collate,
    check=_check,
    find=tag,
    score=lambda sentences, found: score([s.labels for s in sentences], found),
    baseline=lambda train_on, sentences, found: majority(train_on, sentences),
    lines=_lines,
)
train, evaluate, load = TASK.fit, TASK.evaluate_items, TASK.load
