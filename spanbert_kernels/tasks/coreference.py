"""Coreference in a document: which mentions are of one entity."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from spanbert_kernels.data.conll_coref import MarkedDocument
from spanbert_kernels.data.entities import read_marked
from spanbert_kernels.data.words import read_documents
from spanbert_kernels.models import SpanBERTForCoreference
from spanbert_kernels.models.coreference import kept_spans
from spanbert_kernels.tasks.attribution import Claim, Pass, Reading, reading_of_words
from spanbert_kernels.tasks.base import Batches, Scores, Task
from spanbert_kernels.tasks.batches import Example, joined, padded, repeated
from spanbert_kernels.tasks.coreference_scores import f1_scores
from spanbert_kernels.tasks.formats import BRACKETED_WORDS
from spanbert_kernels.tasks.means import Batch, Mean, words
from spanbert_kernels.tasks.mentions import count_mentions, first_of_words, unmarked
from spanbert_kernels.tasks.predicting import chunks
from spanbert_kernels.tasks.predictions import Mark, Prediction, located
from spanbert_kernels.tasks.span_training import SpanTraining
from spanbert_kernels.tasks.vocabulary import Tokenizer
from spanbert_kernels.tasks.windows import pieces_of, window_length, windows

Entity = frozenset[tuple[int, int]]  # first and last words of its mentions
Seen = Callable[[tuple[int, int]], dict[str, float]]  # the documents that a mention looked at
Words = tuple[int, int]  # the first, and the one after the last


def gold(document: MarkedDocument) -> set[Entity]:
    """The entities of a document, those with a single mention too; the same words are a mention of the first alone."""
    found: dict[str, set[tuple[int, int]]] = {}
    for mention in first_of_words(document).mentions:
        found.setdefault(mention.entity, set()).add((mention.first, mention.last))
    return {frozenset(mentions) for mentions in found.values()}


def encode(document: MarkedDocument, tokenizer: Tokenizer, length: int, shown: Words | None = None) -> dict[str, Any]:
    """Windows of a document, and its mentions as row, first and last word there, but for those that leave a window.

    Of the words and mentions beyond `shown` the windows' tokens alone are there.
    """
    begin, end = shown or (0, len(document.words))
    rows, starts, mentions, entities = [], [], [], []
    number: dict[str, int] = {}
    for row, (first, last, ids, word_starts) in enumerate(windows(document.words, tokenizer, length)):
        low, high = max(first, begin), max(min(last, end), max(first, begin))
        rows.append({"input_ids": ids, "word_starts": word_starts[low - first : high - first]})
        starts.append(first)
        for mention in dict.fromkeys(document.mentions):
            if low <= mention.first and mention.last < high:
                mentions.append((row, mention.first - low, mention.last - low))
                entities.append(number.setdefault(mention.entity, len(number)))
    return {
        "windows": rows,
        "starts": starts,
        "mentions": np.array(mentions, dtype=np.int64).reshape(-1, 3),
        "entities": np.array(entities, dtype=np.int64),
        "names": list(number),
    }


def part_of(document: MarkedDocument, words: Words) -> MarkedDocument:
    """The document that these words are, with the mentions that lie in it."""
    first, last = words
    mentions = tuple(
        type(m)(m.first - first, m.last - first, m.kind, m.entity)
        for m in document.mentions
        if m.first >= first and m.last < last
    )
    lines = document.lines[first:last]
    return MarkedDocument(document.name, document.words[first:last], mentions, document.path, lines)


class Documents(Dataset[dict[str, Any]]):
    """Documents for the Trainer, whole, or of each a span of words anew in every epoch.

    The span depends on the seed, the epoch and the document alone.
    """

    def __init__(
        self,
        documents: Sequence[MarkedDocument],
        tokenizer: Tokenizer,
        length: int,
        spans: SpanTraining | None,
        seed: int,
        whole: Sequence[Example] | None = None,
    ) -> None:
        self.documents, self.tokenizer, self.length = documents, tokenizer, length
        self.spans, self.seed, self.epoch = spans, seed, 0
        self.whole = whole or [encode(document, tokenizer, length) for document in documents]
        self.sizes = [np.array([len(own) for own in pieces_of(d.words, tokenizer, length)]) for d in documents]

    def __len__(self) -> int:
        return len(self.documents)

    def set_epoch(self, epoch: int) -> None:
        """Of the training; it matters to span training."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A document, or its span: alone for crop "input"; for "loss" all is encoded, and the span scored."""
        sizes = self.sizes[index]
        if self.spans is None or sizes.sum() <= self.spans.span_length:
            return self.whole[index]
        ends = sizes.cumsum()
        places = np.flatnonzero(ends[-1] - (ends - sizes) >= self.spans.span_length)
        first = int(np.random.default_rng((self.seed, self.epoch, index)).choice(places))
        start = ends[first] - sizes[first]
        last = max(int(np.searchsorted(ends, start + self.spans.span_length, side="right")), first + 1)
        if self.spans.crop == "loss":
            return encode(self.documents[index], self.tokenizer, self.length, (first, last))
        return encode(part_of(self.documents[index], (first, last)), self.tokenizer, self.length)


def collate(examples: list[Example]) -> dict[str, Tensor]:
    """The windows of all documents as a padded batch; `mentions [M, 3]`, `entities [M]`, `documents [B]`."""
    batch = windows_and_mentions(examples)
    entities = [example["entities"] for example in examples]
    return {**batch, "entities": joined(entities, list(map(len, entities)))}  # of numbers, more than are entities


def windows_and_mentions(examples: list[Example]) -> dict[str, Tensor]:
    """The same without entities."""
    sizes = [len(example["windows"]) for example in examples]
    rows = [window for example in examples for window in example["windows"]]
    return {
        **padded(rows, {"input_ids": 0, "word_starts": -1}),
        "documents": repeated(sizes),
        "mentions": joined([example["mentions"] for example in examples], sizes, column=0),
    }


def _kept(batch: Batch, config: Any) -> int:
    """Spans that the model keeps of the documents."""
    of_documents = batch["documents"].bincount((batch["word_starts"] >= 0).sum(1).float())
    return int(kept_spans(of_documents, config).sum())


MEANS = (Mean(words, "mention_loss"), Mean(_kept, "link_loss"))


def count(model: Any, tokenizer: Tokenizer, documents: Sequence[MarkedDocument], examples: Sequence[Example]) -> int:
    """Counts documents and mentions; those across windows, too wide or of a second entity are left out."""
    starts, width = [example["starts"] for example in examples], model.config.max_span_width
    return count_mentions(documents, starts, tokenizer, window_length(model) - 2, width, "entity")


def encode_all(model: Any, tokenizer: Tokenizer, documents: Sequence[MarkedDocument]) -> list[Example]:
    """What `encode` makes of each document, with its number."""
    length = window_length(model)
    return [{**encode(first_of_words(d), tokenizer, length), "item": i} for i, d in enumerate(documents)]


def dataset(
    model: Any,
    tokenizer: Tokenizer,
    documents: Sequence[MarkedDocument],
    examples: Sequence[Example],
    spans: SpanTraining | None,
    seed: int,
) -> Documents:
    """For the Trainer."""
    first = list(map(first_of_words, documents))
    return Documents(first, tokenizer, window_length(model), spans, seed, examples)


def decode(model: Any, items: Sequence[Any], batches: Batches) -> list[set[Entity]]:
    """The entities of each item: linked mentions, and alone those that are likelier a mention than not."""
    found: list[set[Entity]] = [set() for _ in items]
    for (example,), output in batches:
        found[example["item"]] = linked(output)
    return found


def windows_in(example: Example) -> int:
    """How many."""
    return len(example["windows"])


def linked(output: Any) -> set[Entity]:
    """The entities of a `CoreferenceOutput`: linked mentions, and alone those that are likelier a mention than not."""
    entity_of: list[set[tuple[int, int]]] = []
    spans = [(first, last) for first, last in output.spans.tolist()]
    alone = (output.scores > 0).tolist()
    for place, antecedent in enumerate(output.antecedents.tolist()):
        own = entity_of[antecedent] if antecedent >= 0 else set()
        own.add(spans[place])
        entity_of.append(own)
    return {frozenset(own) for place, own in enumerate(entity_of) if len(own) > 1 or alone[place]}


def score(documents: Sequence[MarkedDocument], found: Sequence[set[Entity]]) -> Scores:
    """F1 of MUC, B3 and CEAFe over all documents, entities with a single mention included, and their mean, CoNLL F1.

    A mention of two entities counts as one of the first.
    """
    wanted = [gold(document) for document in documents]
    key, response = (
        [
            [(index, *mention) for mention in entity]
            for index, entities in enumerate(each)
            for entity in sorted(map(sorted, entities))
        ]
        for each in (wanted, found)
    )
    return f1_scores(key, response)


def singletons(documents: Sequence[MarkedDocument], found: Sequence[set[Entity]]) -> Scores:
    """The trivial baseline: the same mentions, each an entity of its own."""
    return score(documents, [{frozenset([m]) for entity in each for m in entity} for each in found])


def prediction(document: MarkedDocument, entities: Sequence[Entity]) -> Prediction:
    """The mentions of a document, with the numbers of their entities, which may have mentions in others, too."""
    where = located(document)
    numbered = sorted((*mention, number) for number, own in enumerate(entities, start=1) for mention in own)
    marks = tuple(Mark(*where.span(first, last), entity=str(number)) for first, last, number in numbered)
    return Prediction(document.path, 0, where, marks, "mentions", document=document.name)


def reading_of_rows(documents: Sequence[MarkedDocument], example: Example, rows: Iterable[int]) -> tuple[Reading, Any]:
    """The words in some windows of documents, and of each window the place of its first among them."""
    places = [
        (document, begin)
        for document, each in zip(documents, example.get("documents", [example]), strict=True)
        for begin in each["starts"]
    ]
    word_of = np.full((len(example["windows"]), max(len(each["input_ids"]) for each in example["windows"])), -1)
    words: tuple[str, ...] = ()
    first = {}
    for row in rows:
        first[row], (document, begin) = len(words), places[row]
        own = reading_of_words(document.words, begin, [example["windows"][row]], word_of.shape[1])
        word_of[row] = np.where(own.word_of[0] < 0, -1, own.word_of[0] + len(words))
        words += own.words
    return Reading(words, word_of, min(places[row][1] for row in first)), first


def claims_in(model: Any, documents: Sequence[MarkedDocument], seen: Seen, passed: Pass) -> Iterator[Claim]:
    """The mentions that are linked, entity by entity: the score of the link, of the first one that of a mention.

    The entities of most documents come first; their numbers are those of predictions.
    """
    example, _, output, _ = passed
    offsets = np.cumsum([0, *(len(window["word_starts"]) for window in example["windows"])])
    of_document = np.cumsum([0, *(len(document.words) for document in documents)])
    passed.batch["keep"] = output.kept  # of the masked document, too
    spans, antecedents = list(map(tuple, output.spans.tolist())), output.antecedents.tolist()
    numbered = [
        (number, own) for number, own in enumerate(sorted(map(sorted, linked(output))), start=1) if len(own) > 1
    ]

    def in_documents(own: Sequence[tuple[int, int]]) -> int:
        return len(set(np.searchsorted(of_document, [first for first, _ in own], side="right").tolist()))

    for number, mentions in sorted(numbered, key=lambda each: -in_documents(each[1])):
        for span in mentions:
            place = spans.index(span)
            other = spans[antecedents[place]] if antecedents[place] >= 0 else None
            rows = [int(np.searchsorted(offsets, first, side="right")) - 1 for first, _ in filter(None, (span, other))]
            reading, begin = reading_of_rows(documents, example, sorted(set(rows)))
            places = [
                tuple(range(begin[row] + first - int(offsets[row]), begin[row] + last - int(offsets[row]) + 1))
                for row, (first, last) in zip(rows, filter(None, (span, other)), strict=True)
            ]
            document = documents[int(np.searchsorted(of_document, span[0], side="right")) - 1]
            yield Claim(
                *(0, f"entity {number}", partial(_score_of_link, place, antecedents[place]), reading),
                about=places[0],
                other=places[1] if other else (),
                document=document.name,
                file=str(document.path),
                seen=seen(span),
                entity=str(number),
            )


def _score_of_link(place: int, antecedent: int, output: Any) -> Tensor:
    """Of a kept span and its antecedent among them, or of a mention that has none, -1."""
    if antecedent < 0:
        alone: Tensor = output.scores[place].float()
        return alone
    return output.links[place][output.earlier[place] == antecedent].float().sum()


def _claims(
    model: Any, tokenizer: Tokenizer, documents: Sequence[MarkedDocument], passes: list[Pass]
) -> Iterator[Claim]:
    (passed,) = passes
    yield from claims_in(model, [documents[passed.example["item"]]], lambda span: {}, passed)


TASK = Task(
    noun="document",
    lack="there is no mention",
    kind=SpanBERTForCoreference,
    read=read_marked,
    read_plain=read_documents,
    texts=lambda document: [" ".join(document.words)],
    bare=unmarked,
    encode=encode_all,
    count=count,
    dataset=dataset,
    collate=collate,
    answers=("mentions", "entities"),
    means=MEANS,
    size=windows_in,
    batch_size=1,
    decode=decode,
    score=score,
    measure="CoNLL F1",
    baseline=lambda train_on, documents, found: singletons(documents, found),
    predictions=lambda document, entities: [prediction(document, sorted(entities, key=sorted))],
    columns=BRACKETED_WORDS,
    groups=partial(chunks, size=8),
    claims=_claims,
    steps=4,  # a document's gradient costs much
)
train, evaluate, load, resolve = TASK.fit, TASK.evaluate_items, TASK.load, TASK.find
