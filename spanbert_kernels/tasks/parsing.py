"""Dependency parsing: a head and a relation for every word, decoded to the best tree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from ufal.chu_liu_edmonds import chu_liu_edmonds

from spanbert_kernels.data.conll_ner import TaggedSentence
from spanbert_kernels.data.conllu import ParsedSentence, read_trees
from spanbert_kernels.data.counts import left_out, took
from spanbert_kernels.data.words import read_sentences
from spanbert_kernels.models import SpanBERTForDependencyParsing
from spanbert_kernels.tasks.attribution import Claim, Pass, reading_of_words
from spanbert_kernels.tasks.base import Batches, Scores, Task
from spanbert_kernels.tasks.batches import IGNORED, Example, padded
from spanbert_kernels.tasks.formats import TREES
from spanbert_kernels.tasks.labels import labels_of
from spanbert_kernels.tasks.predictions import Prediction, located
from spanbert_kernels.tasks.span_training import cut
from spanbert_kernels.tasks.vocabulary import Tokenizer
from spanbert_kernels.tasks.windows import encoded, pieces_of, text_length

Tree = tuple[list[int], list[str]]  # heads, 0 for the root, and relations
NOT_PARSED = -1


def encode(
    sentences: Sequence[ParsedSentence], tokenizer: Tokenizer, relations: Sequence[str], length: int
) -> list[Example]:
    """An example a sentence: word pieces, the column of each word's first piece, heads and relations.

    A sentence of more than `length` tokens has none: its tree cannot be learnt or found in parts. A relation that is
    not among `relations` carries no loss.
    """
    number = {relation: i for i, relation in enumerate(relations)}
    examples = []
    for index, sentence in enumerate(sentences):
        ids, word_starts = encoded(pieces_of(sentence.words, tokenizer, length), tokenizer)
        if len(ids) > length:
            left_out("sentence", f"longer than {length} tokens")
            continue
        examples.append(
            {
                "item": index,
                "input_ids": ids,
                "word_starts": np.array([0, *word_starts]),
                "heads": np.array([IGNORED, *sentence.heads]),
                "labels": np.array([IGNORED, *(number.get(relation, IGNORED) for relation in sentence.relations)]),
            }
        )
    return examples


def show(example: dict[str, Any], span: slice, crop: str) -> dict[str, Any]:
    """Span training: words of the span; with crop "input", those whose head lies outside carry no loss."""
    word_starts, heads, labels = example["word_starts"], example["heads"], example["labels"]
    inside = (word_starts >= span.start) & (word_starts < span.stop)
    if crop == "loss":
        return {**example, "heads": np.where(inside, heads, IGNORED), "labels": np.where(inside, labels, IGNORED)}
    kept = inside | (word_starts == 0)
    place = np.where(kept, kept.cumsum() - 1, IGNORED)
    heads = np.where(heads >= 0, place[heads.clip(0)], IGNORED)[kept]
    return {
        "input_ids": cut(example["input_ids"], span),
        "word_starts": np.where(word_starts == 0, 0, word_starts - span.start + 1)[kept],
        "heads": heads,
        "labels": np.where(heads >= 0, labels[kept], IGNORED),
    }


def collate(examples: list[Example]) -> dict[str, Tensor]:
    """A padded batch: pieces `[B, L]`, words `[B, W]`."""
    return padded(examples, {"input_ids": 0, "word_starts": -1, "heads": IGNORED, "labels": IGNORED})


def _count(model: Any, tokenizer: Tokenizer, sentences: Sequence[ParsedSentence], examples: Sequence[Example]) -> int:
    took("sentence", len(examples))
    return len(examples)


def best_tree(scores: NDArray[np.float64]) -> list[int]:
    """The heads `[W]` of the tree with the highest sum that has one root; scores `[W + 1, W + 1]`, dependents by heads.

    Chu and Liu's and Edmonds' algorithm; where its tree has several roots, once for each word as the only one.

    Example:
        >>> best_tree(np.array([[0.0, 0.0, 0.0], [2.0, 0.0, 1.0], [2.0, 1.5, 0.0]]))
        [0, 1]
    """
    scores = np.array(scores, dtype=np.float64)
    scores[0] = np.nan  # nothing is the head of the root
    np.fill_diagonal(scores, np.nan)
    heads, _ = chu_liu_edmonds(scores)
    if heads[1:].count(0) == 1:
        return list(heads[1:])
    found = []
    for root in range(1, len(scores)):
        alone = scores.copy()
        alone[:, 0] = np.nan
        alone[root, 0] = scores[root, 0]
        heads, total = chu_liu_edmonds(alone)
        found.append((total, heads))
    return list(max(found)[1][1:])


def _decode(model: Any, sentences: Sequence[ParsedSentence], batches: Batches) -> list[Tree]:
    """The best tree of each sentence.

    The words of a sentence that is longer than the model's positions have the head `NOT_PARSED` and the relation `_`.
    """
    relations = labels_of(model)
    found: list[Tree] = [([NOT_PARSED] * len(each.words), ["_"] * len(each.words)) for each in sentences]
    for examples, output in batches:
        arcs, best = output.arcs.float().log_softmax(-1).double().numpy(), output.relations.argmax(-1).numpy()
        for row, example in enumerate(examples):
            places = len(example["word_starts"])
            heads = best_tree(arcs[row, :places, :places])
            found[example["item"]] = heads, [relations[best[row, i, head]] for i, head in enumerate(heads, start=1)]
    return found


def _bare(sentence: ParsedSentence | TaggedSentence) -> ParsedSentence:
    count = len(sentence.words)
    return ParsedSentence(
        sentence.words, (0,) * count, ("_",) * count, sentence.path, sentence.line, located=sentence.located
    )


def score(sentences: Sequence[ParsedSentence], trees: Sequence[Tree]) -> Scores:
    """Shares of words with the right head (UAS), and with the right head and relation (LAS)."""
    gold_heads = np.concatenate([sentence.heads for sentence in sentences])
    gold_relations = np.concatenate([sentence.relations for sentence in sentences])
    attached = gold_heads == np.concatenate([heads for heads, _ in trees])
    labelled = attached & (gold_relations == np.concatenate([relations for _, relations in trees]))
    return {"UAS": float(attached.mean()), "LAS": float(labelled.mean())}


def left_neighbour(train_on: Iterable[ParsedSentence], sentences: Sequence[ParsedSentence]) -> Scores:
    """The trivial baseline: each word depends on the one before it, by the commonest relation of the training data."""
    counts = Counter(relation for sentence in train_on for relation in sentence.relations)
    ((commonest, _),) = counts.most_common(1)
    return score(sentences, [(list(range(len(s.words))), [commonest] * len(s.words)) for s in sentences])


def _claims(
    model: Any, tokenizer: Tokenizer, sentences: Sequence[ParsedSentence], passes: list[Pass]
) -> Iterator[Claim]:
    """The head of each word, and the relation to it."""
    ((example, _, output, _),) = passes
    sentence, starts = sentences[example["item"]], example["word_starts"]
    ((heads, relations),) = _decode(model, [sentence], iter([([{**example, "item": 0}], output)]))
    number = {relation: i for i, relation in enumerate(labels_of(model))}
    words = {**example, "word_starts": starts[1:]}
    reading = reading_of_words(sentence.words, 0, [words], len(example["input_ids"]))
    for place, (head, relation) in enumerate(zip(heads, relations, strict=True)):

        def score(output: Any, word: int = place + 1, head: int = head, relation: str = relation) -> Tensor:
            arc = output.arcs[0, word].float().log_softmax(-1)[head]
            kind: Tensor = output.relations[0, word, head].float().log_softmax(-1)[number[relation]]
            return arc + kind

        yield Claim(
            *(0, f"{relation} of {sentence.words[head - 1]}" if head else relation, score, reading),
            *((place,), (head - 1,) if head else ()),
            document=" ".join(sentence.words),
            file=str(sentence.path),
            probability=float(score(output).exp()),
        )


TASK = Task(
    noun="sentence",
    lack="no sentence is short enough for the model",
    kind=SpanBERTForDependencyParsing,
    read=read_trees,
    read_plain=lambda data: list(map(_bare, read_sentences(data))),
    texts=lambda sentence: [" ".join(sentence.words)],
    marks=lambda sentence: (
        (relation, sentence.path, sentence.line_of(place)) for place, relation in enumerate(sentence.relations)
    ),
    labels=sorted,
    bare=_bare,
    encode=lambda model, tokenizer, sentences: encode(sentences, tokenizer, labels_of(model), text_length(model)),
    count=_count,
    show=show,
    collate=collate,
    answers=("heads", "labels"),
    decode=_decode,
    score=score,
    measure="LAS",
    baseline=lambda train_on, sentences, found: left_neighbour(train_on, sentences),
    predictions=lambda sentence, tree: [Prediction(sentence.path, sentence.line, located(sentence).piece(), tree=tree)],
    columns=TREES,
    claims=_claims,
)
train, evaluate, load, parse = TASK.fit, TASK.evaluate_items, TASK.load, TASK.find
