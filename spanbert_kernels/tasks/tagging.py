"""Named entities as labels of words: a token classifier, scored by entities."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities
from torch import Tensor

from spanbert_kernels.data.conll_ner import TaggedSentence
from spanbert_kernels.data.counts import took
from spanbert_kernels.data.entities import read_tagged
from spanbert_kernels.data.words import read_sentences
from spanbert_kernels.models import SpanBERTForTokenClassification
from spanbert_kernels.tasks.attribution import Claim, Pass, reading_of_words
from spanbert_kernels.tasks.base import Batches, Task
from spanbert_kernels.tasks.batches import IGNORED, Example, padded
from spanbert_kernels.tasks.formats import LABELLED_WORDS
from spanbert_kernels.tasks.labels import labels_of
from spanbert_kernels.tasks.predictions import Prediction, located, marks_of_labels
from spanbert_kernels.tasks.vocabulary import Tokenizer
from spanbert_kernels.tasks.windows import count_cut_words, text_length, windows


def labels_of_words(found: Iterable[str]) -> list[str]:
    """All labels, O first; of each type B and I, though only one of them may be there."""
    marked = set(found) - {"O"}
    return ["O", *sorted(marked | {f"{mark}-{label.split('-', 1)[1]}" for label in marked for mark in "BI"})]


def windows_of(
    sentences: Sequence[TaggedSentence], tokenizer: Tokenizer, labels: Sequence[str], length: int
) -> list[Example]:
    """Sentences as word pieces of at most `length` tokens; a word's first piece carries its label.

    A word without a piece, such as a control character, becomes the unknown token.
    """
    count_cut_words((sentence.words for sentence in sentences), tokenizer, length - 2)
    number = {label: i for i, label in enumerate(labels)}
    found = []
    for index, sentence in enumerate(sentences):
        for first, last, ids, word_starts in windows(sentence.words, tokenizer, length, ends=()):
            own = np.full(len(ids), IGNORED)
            own[word_starts] = [number[label] for label in sentence.labels[first:last]]
            found.append({"item": index, "begin": first, "input_ids": ids, "word_starts": word_starts, "labels": own})
    return found


def collate(examples: list[Example]) -> dict[str, Tensor]:
    """A padded batch `[B, L]`."""
    return padded(examples, {"input_ids": 0, "labels": IGNORED})


def _count(model: Any, tokenizer: Tokenizer, sentences: Sequence[TaggedSentence], examples: Sequence[Example]) -> int:
    entities = sum(label[0] in "BS" for sentence in sentences for label in sentence.labels)
    took("sentence", len(sentences))
    took("entity", entities)
    return entities


def _decode(model: Any, sentences: Sequence[TaggedSentence], batches: Batches) -> list[list[str]]:
    """A label for every word. Sentences are encoded whole, in windows where they are longer than the positions."""
    labels = labels_of(model)
    found = [["O"] * len(sentence.words) for sentence in sentences]
    for examples, output in batches:
        for example, row in zip(examples, output.logits.argmax(-1).tolist(), strict=True):
            for word, column in enumerate(example["word_starts"].tolist(), start=example["begin"]):
                found[example["item"]][word] = labels[row[column]]
    return found


def score(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, float]:
    """Precision, recall and F1 of entities, micro-averaged, as seqeval counts them: a span and its type must agree."""
    measures = {"precision": precision_score, "recall": recall_score, "f1": f1_score}
    return {
        name: float(measure(list(map(list, gold)), list(map(list, predicted)), zero_division=0))
        for name, measure in measures.items()
    }


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


def _predictions(sentence: TaggedSentence, labels: Sequence[str]) -> Iterator[Prediction]:
    where = located(sentence)
    marks = marks_of_labels(labels, where)
    yield Prediction(sentence.path, sentence.line, where, marks, "entities", tuple(labels))


def _claims(
    model: Any, tokenizer: Tokenizer, sentences: Sequence[TaggedSentence], passes: list[Pass]
) -> Iterator[Claim]:
    """The entities of a sentence, each as the labels of its words."""
    labels = labels_of(model)
    for number, (window, _, output, _) in enumerate(passes):
        sentence, starts, length = sentences[window["item"]], window["word_starts"], len(window["input_ids"])
        chances = output.logits[0].float().log_softmax(-1)[starts]
        best = chances.argmax(-1)
        reading = reading_of_words(sentence.words, window["begin"], [window], length)
        for kind, first, last in get_entities([labels[i] for i in best.tolist()]):
            words = torch.arange(first, last + 1)

            def score(output: Any, words: Tensor = words, starts: Any = starts, best: Tensor = best) -> Tensor:
                return output.logits[0].float().log_softmax(-1)[starts[words], best[words]].sum()

            yield Claim(
                *(number, kind, score, reading, tuple(words.tolist())),
                document=" ".join(sentence.words),
                file=str(sentence.path),
                probability=float(score(output).exp()),
            )


TASK = Task(
    noun="sentence",
    lack="there is no entity",
    kind=SpanBERTForTokenClassification,
    read=read_tagged,
    read_plain=read_sentences,
    texts=lambda sentence: [" ".join(sentence.words)],
    marks=lambda sentence: (
        (label, sentence.path, sentence.line_of(place)) for place, label in enumerate(sentence.labels)
    ),
    labels=labels_of_words,
    bare=lambda sentence: replace(sentence, labels=("O",) * len(sentence.words)),
    encode=lambda model, tokenizer, sentences: windows_of(sentences, tokenizer, labels_of(model), text_length(model)),
    count=_count,
    collate=collate,
    decode=_decode,
    score=lambda sentences, found: score([s.labels for s in sentences], found),
    measure="f1",
    baseline=lambda train_on, sentences, found: majority(train_on, sentences),
    predictions=_predictions,
    columns=LABELLED_WORDS,
    claims=_claims,
)
train, evaluate, load, tag = TASK.fit, TASK.evaluate_items, TASK.load, TASK.find
