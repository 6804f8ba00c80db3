"""What a model finds, one thing after the other beside what is wanted: by groups, and as a list of errors."""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from seqeval.metrics.sequence_labeling import get_entities

from spanbert_kernels.data.conll_coref import MarkedDocument
from spanbert_kernels.tasks.base import Task

BY = ("type", "length", "distance")
BOUNDS = (1, 2, 3, 4, 8, 16, 32, 64, 128, 256, 512)  # of groups of lengths and distances, in words
NOWHERE = "none"
AROUND = 10  # words that an error is shown with, on either side
ASKING = re.compile(r"\b(who|whom|whose|where|when|why|how|which|what)\b", re.IGNORECASE)
Entities = Iterable[frozenset[tuple[int, int]]]


@dataclass(frozen=True)
class Answer:
    """A thing that is wanted or found.

    Attributes:
        key: what one that is found has in common with the one that is wanted.
        text: in words.
        kind: its type.
        length: in words.
        distance: in words, between what is linked; None where nothing is, or where it cannot be said.
        first, last: the first and the last word of its place in the item, -1 where it has none.
    """

    key: Hashable
    text: str
    kind: str
    length: int
    distance: int | None = None
    first: int = -1
    last: int = -1


@dataclass(frozen=True)
class Compared:
    """An item with what is wanted in it and what was found."""

    path: Path
    line: int
    words: Sequence[str]
    wanted: list[Answer]
    found: list[Answer]
    lines: Sequence[int] = ()  # of the words

    @classmethod
    def of(
        cls, path: Path, line: int, words: Sequence[str], both: Iterable[list[Answer]], lines: Sequence[int] = ()
    ) -> Compared:
        """Of what is wanted and what was found."""
        wanted, found = both
        return cls(path, line, words, wanted, found, lines)


@dataclass(frozen=True)
class Group:
    """Numbers of a group.

    Example:
        >>> Group("person", wanted=4, found=2, right=1).f1
        0.3333333333333333
    """

    name: str
    wanted: int
    found: int
    right: int

    @property
    def precision(self) -> float:
        """The share of what was found that is wanted."""
        return self.right / max(self.found, 1)

    @property
    def recall(self) -> float:
        """The share of what is wanted that was found."""
        return self.right / max(self.wanted, 1)

    @property
    def f1(self) -> float:
        """Of both."""
        return 2 * self.right / max(self.wanted + self.found, 1)


@dataclass(frozen=True)
class Error:
    """What is wanted at a place, and what was found there instead; one of them may be missing."""

    path: Path
    line: int
    words: Sequence[str]
    first: int  # of the words, in the item
    wanted: Answer | None
    found: Answer | None


def _spans(words: Sequence[str], found: Iterable[tuple[int, int, str]]) -> list[Answer]:
    return [
        Answer((first, last, kind), f"{kind}: {_text(words, first, last)}", kind, last - first + 1, None, first, last)
        for first, last, kind in sorted(found)
    ]


def _text(words: Sequence[str], first: int, last: int) -> str:
    return " ".join(words[first : last + 1])


def _tagged(sentence: Any, labels: Sequence[str]) -> Compared:
    wanted, found = (
        _spans(sentence.words, [(first, last, kind) for kind, first, last in get_entities(list(own))])
        for own in (sentence.labels, labels)
    )
    lines = [sentence.line_of(place) for place in range(len(sentence.words))]
    return Compared.of(sentence.path, sentence.line, sentence.words, (wanted, found), lines)


def _nested(document: MarkedDocument, found: Iterable[tuple[int, int, str]]) -> Compared:
    wanted = {(m.first, m.last, m.kind) for m in document.mentions}
    both = (_spans(document.words, each) for each in (wanted, found))
    return Compared.of(document.path, 1, document.words, both, document.lines)


def _links(words: Sequence[str], entities: Entities, kinds: Mapping[tuple[int, int], str]) -> list[Answer]:
    """Each mention with the one of its entity before it."""
    found = []
    for mentions in entities:
        in_order = sorted(mentions)
        for (first, last), (begin, end) in pairwise(in_order):
            text = f"{_text(words, begin, end)} → {_text(words, first, last)}"
            kind = kinds.get((begin, end), "no mention") or "mention"
            found.append(Answer((first, last, begin, end), text, kind, end - begin + 1, begin - last, begin, end))
    return sorted(found, key=lambda each: (each.first, each.last))


def _coreference(document: MarkedDocument, found: Entities) -> Compared:
    gold: dict[str, set[tuple[int, int]]] = {}
    kinds: dict[tuple[int, int], str] = {}
    for mention in document.mentions:
        gold.setdefault(mention.entity, set()).add((mention.first, mention.last))
        kinds.setdefault((mention.first, mention.last), mention.kind)
    both = (_links(document.words, each, kinds) for each in (map(frozenset, gold.values()), found))
    return Compared.of(document.path, 1, document.words, both, document.lines)


def _across(cluster: tuple[MarkedDocument, ...], found: Entities) -> Compared:
    from spanbert_kernels.tasks.cross_document_coreference import joined

    return _coreference(joined(cluster), found)


def _related(cluster: Any, found: Iterable[tuple[str, str, str]]) -> Compared:
    places: dict[str, list[tuple[int, int]]] = {}
    for number, document in enumerate(cluster.documents):
        for mention in document.mentions:
            places.setdefault(mention.entity, []).append((number, mention.first))

    def answers(relations: Iterable[tuple[str, str, str]]) -> list[Answer]:
        made = []
        for first, second, kind in sorted(relations):
            pairs = ((a, b) for a in places.get(first, ()) for b in places.get(second, ()))
            nearest = min((abs(a[1] - b[1]) for a, b in pairs if a[0] == b[0]), default=None)
            made.append(Answer((first, second, kind), f"{first} {kind} {second}", kind, 0, nearest))
        return made

    document = cluster.documents[0]
    return Compared.of(document.path, 1, (), (answers(cluster.relations), answers(found)))


def _classified(document: Any, found: tuple[str, float]) -> Compared:
    words = document.text.split()
    both = ([Answer(label, label, label, len(words))] for label in (document.label, found[0]))
    return Compared.of(document.path, document.line, words, both)


def _parsed(sentence: Any, tree: tuple[Sequence[int], Sequence[str]]) -> Compared:
    words, both = sentence.words, []
    for heads, relations in ((sentence.heads, sentence.relations), tree):
        own = []
        for place, (head, relation) in enumerate(zip(heads, relations, strict=True)):
            text = f"{relation} of {words[head - 1]}" if head > 0 else relation
            distance = abs(place + 1 - head) if head > 0 else None
            own.append(Answer((place, head, relation), text, relation, len(words), distance, place, place))
        both.append(own)
    lines = [sentence.line_of(place) for place in range(len(words))]
    return Compared.of(sentence.path, sentence.line, words, both, lines)


def _answered(question: Any, found: str) -> Compared:
    texts = [text for text, _ in question.answers] or [""]
    asks = ASKING.search(question.question)
    kind = asks[1].lower() if asks else "other"
    right = next((text for text in texts if _normal(text) == _normal(found)), None)
    wanted = texts[0] if right is None else right
    both = (
        [Answer(_normal(text), f"{question.question} → {text or 'no answer'}", kind, len(wanted.split()))]
        for text in (wanted, found)
    )
    return Compared.of(question.path, 0, question.context.split(), both)


def _normal(text: str) -> str:
    """As SQuAD compares answers: without case, articles and punctuation.

    Example:
        >>> _normal("The  Harbour, of Oslo.")
        'harbour of oslo'
    """
    plain = re.sub(r"[^\w\s]", "", text.lower())
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


COMPARISONS: dict[str, tuple[Callable[[Any, Any], Compared], tuple[str, ...]]] = {
    "tagging": (_tagged, ("type", "length")),
    "nested": (_nested, ("type", "length")),
    "coreference": (_coreference, BY),
    "cross_document_coreference": (_across, BY),
    "relations": (_related, ("type", "distance")),
    "classification": (_classified, ("type", "length")),
    "parsing": (_parsed, BY),
    "question_answering": (_answered, ("type", "length")),
}


def check(task: str, by: str | None, errors: bool) -> None:
    """Can what a task finds be grouped so, and its errors listed?

    Raises:
        ValueError: no.
    """
    known = COMPARISONS[task][1] if task in COMPARISONS else ("length",)
    if by is not None and by not in known:
        raise ValueError(f"{task} cannot be grouped by {by}, only by {' or '.join(known)}")
    if errors and task not in COMPARISONS:
        raise ValueError(
            f"what {task} writes is a text, of which no part is right or wrong: there are no errors to list"
        )


def compared(task: str, items: Sequence[Any], found: Sequence[Any]) -> list[Compared]:
    """Each item; `check` says of which tasks."""
    compare, _ = COMPARISONS[task]
    return [compare(item, own) for item, own in zip(items, found, strict=True)]


def grouped(task: str, by: str, items: Sequence[Any], found: Sequence[Any]) -> list[Group]:
    """Numbers by type, by length or by distance, in words; `check` says of which tasks."""
    counts: dict[tuple[int, str], list[int]] = {}
    for each in compared(task, items, found):
        keys = {answer.key for answer in each.wanted}, {answer.key for answer in each.found}
        for answers, other, column in ((each.wanted, keys[1], 0), (each.found, keys[0], 1)):
            for answer in answers:
                numbers = counts.setdefault(_group(answer, by), [0, 0, 0])
                numbers[column] += 1
                numbers[2] += column == 0 and answer.key in other
    return [Group(name, *numbers) for (_, name), numbers in sorted(counts.items())]


def _group(answer: Answer, by: str) -> tuple[int, str]:
    """A number to sort by, and a name.

    Example:
        >>> [_group(Answer(0, "", "", length), "length")[1] for length in (1, 4, 5, 8, 600)]
        ['1', '4', '5 to 8', '5 to 8', 'over 512']
    """
    if by == "type":
        return 0, answer.kind
    value = answer.length if by == "length" else answer.distance
    return band(value)


def band(value: int | None) -> tuple[int, str]:
    """The group of a number of words, with a number to sort by."""
    if value is None:
        return len(BOUNDS) + 1, NOWHERE
    place = bisect.bisect_left(BOUNDS, value)
    if place == len(BOUNDS):
        return place, f"over {BOUNDS[-1]}"
    lowest = BOUNDS[place - 1] + 1 if place else 0
    return place, str(value) if lowest == BOUNDS[place] else f"{lowest} to {BOUNDS[place]}" if place else "1"


def scores_by_length(task: Task[Any, Any], items: Sequence[Any], found: Sequence[Any]) -> dict[str, dict[str, float]]:
    """Of texts that are written, by the words of their sources."""
    groups: dict[tuple[int, str], list[int]] = {}
    for place, item in enumerate(items):
        groups.setdefault(band(len(item.source.split())), []).append(place)
    return {
        name: dict(task.score([items[i] for i in own], [found[i] for i in own]))
        for (_, name), own in sorted(groups.items())
    }


def errors(each: Compared) -> Iterator[Error]:
    """What is wanted and was not found, beside what was found in its place; and what else was found."""
    keys = {answer.key for answer in each.wanted}, {answer.key for answer in each.found}
    missed = [answer for answer in each.wanted if answer.key not in keys[1]]
    extra = [answer for answer in each.found if answer.key not in keys[0]]
    pairs: list[tuple[Answer | None, Answer | None]] = []
    for answer in missed:
        instead = next((other for other in extra if _same_place(answer, other)), None)
        if instead is not None:
            extra.remove(instead)
        pairs.append((answer, instead))
    pairs += [(None, answer) for answer in extra]
    for wanted, found in sorted(pairs, key=lambda pair: min(own.first for own in pair if own is not None)):
        own = [answer for answer in (wanted, found) if answer is not None]
        begin = max(min(answer.first for answer in own) - AROUND, 0)
        end = max(answer.last for answer in own) + AROUND + 1
        place = own[0].first
        words = each.words[begin:end] if place >= 0 else each.words[: 4 * AROUND]
        line = each.lines[place] if each.lines and place >= 0 else each.line
        yield Error(each.path, line, words, begin if place >= 0 else 0, wanted, found)


def _same_place(one: Answer, other: Answer) -> bool:
    """Do they overlap? Things without a place are one another's only where an item has one."""
    return one.first <= other.last and other.first <= one.last
